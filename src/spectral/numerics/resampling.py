"""Low-passes and interpolation along one axis of periodic maps: by a matrix, or by FFT where it is long.

A matrix has as many numbers as the axis has samples, squared: gigabytes for seconds of audio.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spectral.numerics.lattice import ANY_FROM
from spectral.numerics.matrices import (
    as_matrix,
    highest_bin,
    interpolation_rows,
    low_pass_rows,
    resampling_rows,
    wrap,
)
from spectral.numerics.products import disable_autocast, transform_axes
from spectral.numerics.tracing import is_traced


def is_long(x: Tensor, extent: int) -> bool:
    """Whether an axis is worked on by FFT; in a graph, whose sizes may be open, none is.

    Example:
        >>> is_long(torch.ones(2, 4096), 4096), is_long(torch.ones(2, 4096), 2)
        (True, False)
    """
    return not is_traced(x) and extent >= ANY_FROM


def multiply(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply one axis of maps by a matrix, in at least single precision.

    Example:
        >>> multiply(torch.ones(2, 3, 4), 1, torch.ones(1, 3)).shape
        torch.Size([2, 1, 4])
    """
    with disable_autocast(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return transform_axes(wide, axis, [matrix]).to(x.dtype)


def low_pass(
    x: Tensor, axis: int, step: int, first: int, spacing: int, count: int, hamming: bool = False
) -> Tensor:
    """Samples of the ideal low-pass for a decimation: what `low_pass_rows` gives.

    Example:
        >>> low_pass(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0, step=2, first=0, spacing=2, count=2)
        tensor([2., 2.])
    """
    extent = x.shape[axis]
    if not is_long(x, extent):
        rows = as_matrix(low_pass_rows, x, extent, step, first, spacing, count, hamming)
        return multiply(x, axis, rows)
    with disable_autocast(x):
        band = _analyse(x, axis).narrow(axis, 0, highest_bin(extent, step) + 1)
        if hamming:
            angles = 2 * np.pi / extent * np.arange(band.shape[axis])
            band = band * _along(0.54 + 0.46 * np.cos(angles), band.real, axis)
        kept = wrap(first + spacing * torch.arange(count, device=x.device), extent)
        return _synthesise(band, axis, extent).index_select(axis, kept).to(x.dtype)


def interpolate(x: Tensor, axis: int, factor: int) -> Tensor:
    """Interpolate an axis ideally to a lattice that is finer by a factor: what `interpolation_rows` gives.

    Example:
        >>> interpolate(torch.tensor([1.0, 0.0]), 0, 2)
        tensor([1.0000, 0.5000, 0.0000, 0.5000])
    """
    extent = x.shape[axis]
    if not is_long(x, extent):
        return multiply(x, axis, as_matrix(interpolation_rows, x, extent, factor))
    return place(x, axis, factor * extent, 0, (extent - 1) // 2, nyquist=True)


def resample(x: Tensor, axis: int, count: int, first: int, highest: int, nyquist: bool = False) -> Tensor:
    """Interpolate an axis at places that are spread evenly over the period: what `resampling_rows` gives.

    Example:
        >>> resample(torch.tensor([1.0, 2.0, 3.0]), 0, count=3, first=1, highest=1)
        tensor([2., 3., 1.])
    """
    extent = x.shape[axis]
    if not is_long(x, extent):
        return multiply(x, axis, as_matrix(resampling_rows, x, extent, count, first, highest, nyquist))
    return place(x, axis, count, first, highest, nyquist)


def place(x: Tensor, axis: int, count: int, first: float, highest: int, nyquist: bool = False) -> Tensor:
    """`resample` by FFT, from a place that may lie between samples.

    Example:
        >>> place(torch.tensor([1.0, 0.0]), 0, count=2, first=0.5, highest=0, nyquist=True)
        tensor([0.5000, 0.5000])
    """
    extent = x.shape[axis]
    with disable_autocast(x):
        spectrum = _analyse(x, axis)
        band = spectrum.narrow(axis, 0, highest + 1)
        if first:
            turns = 2 * np.pi / extent * (np.arange(highest + 1) * first % extent)
            band = band * _along(np.exp(1j * turns), band, axis)
        y = _synthesise(band, axis, count)
        if nyquist and extent % 2 == 0:
            turns = np.pi * (np.arange(count) * extent % (2 * count) / count + first)
            y = y + spectrum.narrow(axis, extent // 2, 1).real * _along(np.cos(turns), y, axis)
        return y.to(x.dtype)


def _analyse(x: Tensor, axis: int) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    spectrum: Tensor = torch.fft.rfft(wide, dim=axis, norm="forward")
    return spectrum


def _synthesise(band: Tensor, axis: int, count: int) -> Tensor:
    """Return ``count`` samples over the period of a real axis, from its bins 0 … K; higher ones fold."""
    bins = band.shape[axis]
    if bins <= (count + 1) // 2:
        y: Tensor = torch.fft.irfft(band, n=count, dim=axis, norm="forward")
        return y
    both = torch.cat([band.narrow(axis, 0, 1), 2 * band.narrow(axis, 1, bins - 1)], axis)
    folded = both.new_zeros([count if a == axis % both.ndim else n for a, n in enumerate(both.shape)])
    folded = folded.index_add(axis, torch.arange(bins, device=band.device) % count, both)
    whole: Tensor = torch.fft.ifft(folded, dim=axis, norm="forward")
    return whole.real


def _along(values: np.ndarray, like: Tensor, axis: int) -> Tensor:
    """Lay values along one axis of maps, of their dtype and on their device."""
    row = torch.as_tensor(values).to(like.dtype).to(like.device)
    return row.view(-1, *[1] * (like.ndim - 1 - axis % like.ndim))
