"""The low band of a map: its cosines and sines on each axis, and how often each of them counts.

A band is laid out as cosines, then sines, on each axis: of (b, c, *spatial), or (b, 1, *spatial, c).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral.metrics.sampling import violation_mask
from spectral.numerics.lattice import Lattice, analyse_axis, prefers_transform, synthesise_axis
from spectral.numerics.matrices import Range, as_matrix, wave_rows
from spectral.numerics.products import transform_axes


def split_waves(band: Tensor, axes: int) -> Tensor:
    """View (b, c, 2·K, 2·L) as (b, c, 2, K, 2, L): cosines and sines apart."""
    for axis in range(axes):
        band = band.unflatten(2 + 2 * axis, (2, -1))
    return band


def list_complex_parts(band: Tensor, axes: int) -> Sequence[tuple[Tensor, Tensor]]:
    """(real, imaginary) of Σ x·exp(i(a ± b …)), one pair for each choice of signs."""
    parts = [_halve(band, 2)]
    for axis in range(3, 2 + axes):
        both = [(_halve(real, axis), _halve(imaginary, axis)) for real, imaginary in parts]
        plus = [(rc - js, jc + rs) for (rc, rs), (jc, js) in both]
        minus = [(rc + js, jc - rs) for (rc, rs), (jc, js) in both]
        parts = plus + minus
    return parts


def _halve(band: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    cosines, sines = band.chunk(2, axis)
    return cosines, sines


def select_bins(name: str, extents: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Bins of a full, DC-centred spectrum whose power makes up a sum."""
    if name != "varying":
        return violation_mask(extents, stride, "separable" if name == "above_separable" else "radial")
    varying = torch.ones(extents, dtype=torch.bool)
    varying[tuple(n // 2 for n in extents)] = False
    return varying


def weigh_below(name: str, extents: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Share of the power of each cosine and sine of the low band that a sum hasn't."""
    highest = find_highest(extents, stride)
    shares = _count_bins(extents, highest) / math.prod(extents)
    outside = ~_crop_quadrant(select_bins(name, extents, stride), highest)
    return (shares * outside).repeat(*[2] * len(extents))


def weigh_magnitudes(count: tuple[int, ...]) -> Tensor:
    """How often each magnitude counts: each axis but one has both signs among them."""
    return _count_bins(count, tuple(n // 2 for n in count)) / float(2 ** (len(count) - 1))


def find_highest(extents: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Highest bin at or below the limit on each axis: 2·s·k ≤ N."""
    return tuple(n // (2 * s) for n, s in zip(extents, stride, strict=True))


def _crop_quadrant(mask: Tensor, highest: tuple[int, ...]) -> Tensor:
    """Bins 0, 1, …, K of each axis of a symmetric DC-centred mask; Nyquist is there as −N/2 only."""
    for axis, (n, k) in enumerate(zip(mask.shape, highest, strict=True)):
        mask = mask.index_select(axis, n // 2 - torch.arange(k + 1))
    return mask


def _count_bins(extents: tuple[int, ...], highest: tuple[int, ...]) -> Tensor:
    """How many bins ±k, ±l … the bin (k, l …) stands for: DC and Nyquist have no mirror image. Float64."""
    axes = [2 - ((2 * torch.arange(k + 1)) % n == 0).double() for n, k in zip(extents, highest, strict=True)]
    return reduce(lambda counts, axis: counts[..., None] * axis, axes)


def analyse(maps: Tensor, extents: Sequence[int], highest: Sequence[int]) -> Tensor:
    """Low band of maps (b, c, *spatial) or (b, 1, *spatial, c): cosines, then sines, on each axis."""
    sizes = list(zip(extents, highest, strict=True))
    for axis in sorted(
        range(len(sizes)), key=lambda i: (sizes[i][1] + 1) / sizes[i][0]
    ):  # the cheapest order
        maps = analyse_axis(maps, 2 + axis, *sizes[axis])
    return maps


def fold_axis(low: Tensor, axis: int, lattice: Lattice) -> Tensor:
    """Turn the low band of an axis into the spectrum of its decimated low-pass L."""
    if not prefers_transform(lattice.extent):
        return transform_axes(
            low,
            axis,
            [as_matrix(_fold_rows, low, lattice.extent, lattice.step, lattice.first, lattice.count)],
        )
    samples = synthesise_axis(low, axis, lattice)
    return analyse_axis(samples, axis, lattice.count, lattice.count // 2)


def _fold_rows(extent: int, step: int, first: int, count: int, arange: Range = np.arange) -> Any:
    """`fold_axis` as a matrix, both sides as rows of `wave_rows`."""
    lattice = Lattice(extent, step, first, count)
    highest = extent // (2 * step)
    # L keeps bins up to its highest; as in `_count_bins`, a bin stands for its mirror image too.
    weights = _count_bins((extent,), (highest,)).numpy() * (arange(highest + 1) <= lattice.highest) / extent
    samples = wave_rows(extent, highest)[:, lattice.samples] * np.tile(weights, 2)[:, None]
    return wave_rows(count, count // 2) @ samples.T
