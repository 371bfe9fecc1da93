"""Decimation of axes, and of what a low-pass leaves of them: by thin products or FFT, the cheaper one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral.numerics.matrices import as_matrix, highest_bin, low_pass_rows, wave_rows
from spectral.numerics.products import transform_axes

# Samples of an axis from which on its FFT is cheaper than a product with a matrix: measured, see
# benchmarks/sizes.py. Extents with large prime factors have slow FFTs.
SMOOTH_FROM, ANY_FROM = 256, 1024
SMOOTH = (2, 3, 5, 7)


@dataclass(frozen=True)
class Lattice:
    """Samples first, first + step, … of an axis of ``extent`` samples: ``count`` of them.

    Example:
        >>> Lattice(9, step=2, first=1, count=4).highest
        2
    """

    extent: int
    step: int
    first: int
    count: int

    @property
    def highest(self) -> int:
        """The largest frequency bin k that survives the decimation's low-pass L."""
        return int(highest_bin(self.extent, self.step))

    @property
    def covers(self) -> bool:
        """Whether the lattice, wrapped around, is as periodic as the axis: decimation folds bins exactly."""
        return self.extent == self.step * self.count

    @property
    def rows(self) -> tuple[int, int, int, int, int]:
        """Arguments of `low_pass_rows` for the samples kept."""
        return self.extent, self.step, self.first, self.step, self.count

    @property
    def samples(self) -> slice:
        """The samples as an index."""
        return slice(self.first, self.first + self.step * (self.count - 1) + 1, self.step)


def decimate(maps: Tensor, start: int, lattices: Sequence[Lattice]) -> Tensor:
    """Keep the samples of a lattice on each axis from ``start`` on.

    Example:
        >>> decimate(torch.arange(12).view(2, 6), 0, [Lattice(2, 1, 0, 2), Lattice(6, 2, 1, 2)])
        tensor([[1, 3],
                [7, 9]])
    """
    return maps[(*[slice(None)] * start, *[lattice.samples for lattice in lattices])]


def decimate_low_pass(maps: Tensor, start: int, lattices: Sequence[Lattice]) -> Tensor:
    """Decimate the ideal low-pass L of real maps: the samples that are kept, without what would fold.

    An axis of step 1 keeps all its frequencies.

    Example:
        >>> decimate_low_pass(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0, [Lattice(4, 2, 0, 2)])
        tensor([2., 2.])
    """
    products: list[Tensor | None] = []
    transforms: dict[int, Lattice] = {}
    for axis, lattice in enumerate(lattices, start):
        if lattice.step == 1 or prefers_transform(lattice.extent):
            products.append(None)
        else:
            products.append(as_matrix(low_pass_rows, maps, *lattice.rows))
        if lattice.step > 1 and prefers_transform(lattice.extent):
            transforms[axis] = lattice
        if lattice.step == 1:
            maps = decimate(maps, axis, [lattice])
    maps = transform_axes(maps, start, products)
    return _low_pass_by_transform(maps, transforms) if transforms else maps


def analyse_axis(maps: Tensor, axis: int, extent: int, highest: int) -> Tensor:
    """Turn an axis into Σ x cos(2πkn/N), then Σ x sin(2πkn/N), for k = 0 … K: 2·(K + 1) numbers.

    Example:
        >>> analyse_axis(torch.ones(4), 0, extent=4, highest=1).round(decimals=5) + 0.0
        tensor([4., 0., 0., 0.])
    """
    if not prefers_transform(extent):
        return transform_axes(maps, axis, [as_matrix(wave_rows, maps, extent, highest)])
    band = torch.fft.rfft(maps, dim=axis).narrow(axis, 0, highest + 1)
    return torch.cat([band.real, -band.imag], axis)


def synthesise_axis(band: Tensor, axis: int, lattice: Lattice) -> Tensor:
    """Turn what `analyse_axis` gave into the samples that a lattice keeps of the axis' low-pass L, by FFT.

    Example:
        >>> band = analyse_axis(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0, extent=4, highest=1)
        >>> synthesise_axis(band, 0, Lattice(4, 2, 0, 2))
        tensor([2., 2.])
    """
    cosines, sines = band.chunk(2, axis)
    spectrum = torch.complex(cosines, -sines).narrow(axis, 0, lattice.highest + 1) / lattice.extent
    return _invert_real(spectrum, axis, lattice)


def prefers_transform(extent: int) -> bool:
    """Whether an FFT along an axis of so many samples beats a product with a matrix."""
    if extent < SMOOTH_FROM or extent >= ANY_FROM:
        return extent >= ANY_FROM
    for prime in SMOOTH:
        while extent % prime == 0:
            extent //= prime
    return extent == 1


def _low_pass_by_transform(maps: Tensor, lattices: dict[int, Lattice]) -> Tensor:
    """FFT, keep the low bins, and inverse FFT: at the small size where the lattice covers the axis."""
    *others, last = lattices
    spectrum = torch.fft.rfft(maps, dim=last, norm="forward").narrow(last, 0, lattices[last].highest + 1)
    for axis in others:
        lattice = lattices[axis]
        whole = torch.fft.fft(spectrum, dim=axis, norm="forward")
        low, size = lattice.highest, lattice.count if lattice.covers else lattice.extent
        gap = whole.new_zeros([size - 2 * low - 1 if a == axis else n for a, n in enumerate(whole.shape)])
        ends = whole.narrow(axis, 0, low + 1), gap, whole.narrow(axis, lattice.extent - low, low)
        moved = _move(torch.cat(ends, axis), axis, lattice)
        spectrum = _cut(torch.fft.ifft(moved, dim=axis, norm="forward"), axis, lattice)
    return _invert_real(spectrum, last, lattices[last])


def _invert_real(spectrum: Tensor, axis: int, lattice: Lattice) -> Tensor:
    """Samples of a lattice from the low bins 0 … K of a real map, which are normalised by its extent."""
    size = lattice.count if lattice.covers else lattice.extent
    moved = _move(spectrum, axis, lattice)
    return _cut(torch.fft.irfft(moved, n=size, dim=axis, norm="forward"), axis, lattice)


def _move(spectrum: Tensor, axis: int, lattice: Lattice) -> Tensor:
    """Move a low band so that sample 0 is the first that is kept, where the axis shrinks to the lattice."""
    if not lattice.covers or lattice.first == 0:
        return spectrum
    bins = torch.arange(spectrum.shape[axis], device=spectrum.device)
    bins = torch.where(bins > lattice.highest, bins - lattice.count, bins)  # the signed ones behind
    angle = 2 * torch.pi / lattice.extent * (bins * lattice.first % lattice.extent).to(spectrum.real.dtype)
    turn = torch.polar(torch.ones_like(angle), angle)
    return spectrum * turn.view(-1, *[1] * (spectrum.ndim - 1 - axis))


def _cut(maps: Tensor, axis: int, lattice: Lattice) -> Tensor:
    """Keep the samples of a lattice of one axis, unless the axis has shrunk to them."""
    return maps if lattice.covers else decimate(maps, axis, [lattice])
