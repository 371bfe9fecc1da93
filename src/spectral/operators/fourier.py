"""Crops of a spectrum: the low-pass that they are part of, at full size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectral.operators.base import Arguments, Band, Decimation, Geometry, Operator, Size
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

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Transform, keep the frequencies, and transform back."""
        found = d.geometry.spectrum
        assert found is not None
        wide = x.float() if x.element_size() < 4 else x
        axes = [axis for axis, band in enumerate(found.bands, start=2) if band.count]
        spectrum = torch.fft.fftn(wide, dim=axes)
        for axis, band in zip(axes, (band for band in found.bands if band.count), strict=True):
            spectrum = _keep(spectrum, axis, band)
        y: Tensor = torch.fft.ifftn(spectrum, dim=axes, norm="forward") * found.gain
        return (y.abs() if found.magnitude else y.real).to(x.dtype)

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout and the output: a transform doesn't say what will be taken of it."""
        return True


def _keep(spectrum: Tensor, axis: int, band: Band) -> Tensor:
    """Keep a run of frequencies, and move it; of one half of a spectrum the other one counts as well."""
    n = spectrum.shape[axis]
    numbers = torch.arange(band.first, band.first + band.count, device=spectrum.device)
    part = spectrum.index_select(axis, numbers % n)
    if band.sided:
        single = (numbers == 0) | (2 * numbers == band.sided)
        weights = torch.where(single, 1.0, 2.0).to(spectrum.real.dtype)
        part = part * weights.reshape([-1 if i == axis else 1 for i in range(part.ndim)])
    zeros = torch.zeros_like(spectrum)
    kept: Tensor = zeros.index_copy(axis, (numbers + band.shift) % n, part)
    return kept
