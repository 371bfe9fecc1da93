"""Crops of a spectrum: the low-pass that they are part of, at full size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectral.operators.base import ALL, Arguments, Band, Decimation, Geometry, Mask, Operator, Size
from spectral.operators.registry import register_operator


@register_operator
class FourierCrop(Operator):
    """A Fourier transform, a part of its frequencies, and an inverse transform with fewer samples.

    At M samples the inverse transform gives every (N/M)-th sample of what it gives at all N, of the same
    frequencies. The forward transform is what is read; what is taken of it only the pass tells.
    """

    kind = "fourier_crop"
    family = "fourier"
    names = ("aten::_fft_c2c", "aten::_fft_c2r", "aten::_fft_r2c")
    acts_on = "places"
    rule = "the same frequencies, transformed back at full size"
    reason = (
        "a crop of the spectrum, then a smaller inverse transform, of which it can't be told which "
        "frequencies are kept; spectral.layers.FLCPool2d has a dense map"
    )

    def read(self, a: Arguments) -> Decimation | None:
        """Read a forward transform."""
        x = a["self"]
        backward = a.name.endswith("c2r") or not a.get("forward", True)
        if backward or x.ndim < 2:
            return None
        return Decimation(Geometry(self.kind, (0,), phase=(0,), axes=tuple(d % x.ndim for d in a["dim"])), x)

    def find_obstacle(self, geometry: Geometry) -> str | None:
        """Say that there is nothing to replace."""
        return "it keeps a part of the spectrum, and is a low-pass itself"

    def place(self, d: Decimation, found: Geometry) -> Decimation:
        """Take the map for what it was before it became complex."""
        return replace(d, input=d.input.real if d.input.is_complex() else d.input)

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Compute the dense map of some images and channels, with the weights of those."""
        found = d.geometry.spectrum
        assert found is not None
        if found.mask is not None and found.mask.factors.shape[1] > 1:
            part = replace(found, mask=Mask(found.mask.factors[:, channels]))
            d = replace(d, geometry=replace(d.geometry, spectrum=part))
        return super().dense(d, size, images, channels)

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Transform, keep the frequencies, weigh them, and transform back."""
        found = d.geometry.spectrum
        assert found is not None
        wide = x.float() if x.element_size() < 4 else x
        kept = [(axis, band) for axis, band in enumerate(found.bands, start=2) if band.count]
        axes = [axis for axis, _ in kept]
        spectrum = torch.fft.fftn(wide, dim=axes)
        for axis, band in kept:
            spectrum = _take(spectrum, axis, band)
        if found.mask is not None:
            spectrum = spectrum * found.mask.factors.to(spectrum)
        for axis, band in kept:
            spectrum = _put(spectrum, axis, band, x.shape[axis])
        y: Tensor = torch.fft.ifftn(spectrum, dim=axes, norm="forward") * found.gain
        return (y.abs() if found.magnitude else y.real).to(x.dtype)

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout and the output: a transform doesn't say what will be taken of it."""
        return True


def _take(spectrum: Tensor, axis: int, band: Band) -> Tensor:
    """Take a run of frequencies; of one half of a spectrum the other one counts as well."""
    numbers = torch.arange(band.first, band.first + band.count, device=spectrum.device)
    part = spectrum.index_select(axis, numbers % spectrum.shape[axis])
    if not band.sided:
        return part
    single = (numbers == 0) | (2 * numbers == band.sided)
    weights = torch.where(single, 1.0, 2.0).to(spectrum.real.dtype)
    return part * weights.reshape([-1 if i == axis else 1 for i in range(part.ndim)])


def _put(part: Tensor, axis: int, band: Band, n: int) -> Tensor:
    """Put a run of frequencies to its places among all of them."""
    places = torch.arange(band.first, band.first + band.count, device=part.device) + band.shift
    size = (*part.shape[:axis], n, *part.shape[axis + 1 :])
    kept: Tensor = part.new_zeros(size).index_copy(axis, places % n, part)
    return kept
