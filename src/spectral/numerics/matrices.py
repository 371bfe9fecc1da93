"""One axis as a matrix: low-passes, interpolation and the waves of a transform, at any size.

Each is a function of integers, written for numpy and torch alike: numpy makes constants, which no trace sees;
torch makes a graph's nodes where a size isn't known before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral.numerics.cache import CACHE, remember

Range = Callable[..., Any]  # np.arange, or torch.arange on some device


def as_matrix(build: Callable[..., Any], x: Tensor, *arguments: Any) -> Tensor:
    """Return ``build(*arguments)`` on x's device, in x's dtype but at least float32, built once.

    Args:
        build: takes the arguments and ``arange``, with which it makes its indices.
        x: what will be multiplied.
        arguments: sizes and options; sizes of a graph that is being traced may be symbolic.

    Example:
        >>> as_matrix(wave_rows, torch.ones(1, dtype=torch.float16), 2, 0)
        tensor([[1., 1.],
                [0., 0.]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_dynamo_compiling() or not all(map(_is_constant, arguments)):
        return _build_on(x.device, build, arguments).to(dtype)
    if x.is_meta:
        return torch.empty(_find_shape(build, arguments), dtype=dtype, device="meta")
    matrix: Tensor = remember(build, *arguments, like=x, dtype=dtype)
    return matrix


def highest_bin(extent: Any, step: int) -> Any:
    """The largest k that the low-pass L of a decimation keeps: 2·s·k < N, or all at s = 1.

    An axis that keeps its samples isn't cut: nothing folds there, not even the Nyquist bin.

    Example:
        >>> [highest_bin(8, step) for step in (1, 2, 4)]
        [4, 1, 0]
    """
    return (extent - 1) // (2 * step) if step > 1 else extent // 2


def low_pass_rows(
    extent: Any,
    step: int,
    first: Any,
    spacing: int,
    count: Any,
    hamming: bool = False,
    arange: Range = np.arange,
) -> Any:
    """Rows of the circular low-pass |f| < 1/(2·step), step > 1, as a (count, extent) matrix.

    Args:
        extent: samples of the axis.
        step: decimation factor that the low-pass is for.
        first: sample that the first row gives.
        spacing: samples from one row to the next.
        count: rows.
        hamming: a bin of frequency f has gain 0.54 + 0.46 cos(2πf) instead of 1.
        arange: makes the indices.

    Example:
        >>> low_pass_rows(2, 2, 0, 2, 1)  # only the mean is below the new Nyquist frequency
        array([[0.5, 0.5]])
    """
    lag, bins = arange(extent), 2 * highest_bin(extent, step) + 1
    response = sum_waves(lag, extent, bins) / extent
    if hamming:  # a cosine over the bins is a shift by one sample, each way
        beside = sum_waves(lag - 1, extent, bins) + sum_waves(lag + 1, extent, bins)
        response = 0.54 * response + 0.23 * beside / extent
    kept = first + spacing * arange(count)
    return response[wrap(kept[:, None] - lag, extent)]


def interpolation_rows(extent: Any, factor: int, arange: Range = np.arange) -> Any:
    """Ideal interpolation to an r times finer lattice, as a (factor·extent, extent) matrix.

    Row r·n is sample n itself. The Nyquist bin of an even extent stands for both its signs, half each.

    Example:
        >>> interpolation_rows(2, 2).round(3) + 0.0  # a cosine through both samples
        array([[1. , 0. ],
               [0.5, 0.5],
               [0. , 1. ],
               [0.5, 0.5]])
    """
    period = factor * extent
    lag = arange(period)[:, None] - factor * arange(extent)
    bins = 2 * ((extent - 1) // 2) + 1
    paired = sum_waves(lag, period, bins)
    nyquist = 1 - extent % 2
    return (paired + nyquist * _cosine(wrap(extent // 2 * lag, period), period)) / extent


def resampling_rows(
    extent: Any, count: Any, first: Any, highest: Any, nyquist: bool = False, arange: Range = np.arange
) -> Any:
    """Rows of the periodic interpolation at ``count`` places spread evenly over the period, as a matrix.

    Args:
        extent: samples of the axis.
        count: places: ``first`` + i·extent/count.
        first: place of the first row.
        highest: largest frequency bin that is kept, below the Nyquist frequency.
        nyquist: keep the Nyquist bin of an even extent as well, half for each of its signs.
        arange: makes the indices.

    Example:
        >>> resampling_rows(3, 3, 0, 1).round(3) + 0.0
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]])
    """
    period = count * extent
    lag = (extent * arange(count))[:, None] + count * (first - arange(extent))
    waves = sum_waves(lag, period, 2 * highest + 1)
    if nyquist and extent % 2 == 0:
        waves = waves + _cosine(wrap(extent // 2 * lag, period), period)
    return waves / extent


def phase_rows(extent: Any, factor: int, arange: Range = np.arange) -> Any:
    """Rows of `interpolation_rows` that lie between samples: 1/r behind each, then 2/r, …, as one matrix.

    Example:
        >>> phase_rows(2, 2).round(3) + 0.0
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """
    rows = interpolation_rows(extent, factor, arange)
    return _concatenate([rows[phase::factor] for phase in range(1, factor)])


def phase_low_pass_rows(extent: Any, factor: int, arange: Range = np.arange) -> Any:
    """What those samples add to the low-pass back to the coarse lattice: its rows, for them as columns.

    The map's own samples add a part in r of themselves, but for the Nyquist bin of an even extent.

    Example:
        >>> phase_low_pass_rows(3, 2).sum(1).round(9)  # of a constant, one half
        array([0.5, 0.5, 0.5])
    """
    period = factor * extent
    lag = factor * (arange(extent)[:, None] - arange(extent))
    bins = 2 * ((extent - 1) // 2) + 1
    parts = [sum_waves(lag - phase, period, bins) for phase in range(1, factor)]
    return _concatenate(parts, 1) / period


def wave_rows(extent: Any, highest: Any, arange: Range = np.arange) -> Any:
    """Rows cos(2πkn/N), then sin(2πkn/N), for k = 0 … K: a (2·(K + 1), N) matrix."""
    # k·n is reduced modulo N in integers first: the argument stays small and exact.
    turns = wrap(arange(highest + 1)[:, None] * arange(extent), extent)
    return _concatenate([_cosine(turns, extent), _sine(turns, extent)])


def cropping_rows(extent: Any, part: str, hamming: bool = False, arange: Range = np.arange) -> Any:
    """DFT, crop to FrequencyLowCut's published block and inverse DFT of one axis, as an (n, extent) matrix.

    With ``hamming`` the bins are weighted by the root of a Hamming window over the whole DC-centred spectrum,
    symmetric about the middle between two bins where the size is even, as published.

    Args:
        extent: samples of the axis.
        part: ``"real"`` or ``"imaginary"``.
        hamming: weigh the bins.
        arange: makes the indices.

    Example:
        >>> cropping_rows(4, "real").sum(1).round(9)  # DC gain 1
        array([1., 1.])
        >>> cropping_rows(6, "real").sum(1).round(3)  # DC lands in bin 1 of 3
        array([ 1. , -0.5, -0.5])
    """
    kept = 3 * extent // 4 - extent // 4
    index = extent // 4 + arange(kept)
    bins = index - extent // 2  # of the map
    new_bins = arange(kept) - kept // 2  # of the output, where the inverse shift puts them
    forward = wrap(bins[:, None] * arange(extent), extent)
    backward = wrap(arange(kept)[:, None] * new_bins, kept)
    c_b, s_b = _cosine(backward, kept) / extent, _sine(backward, kept) / extent
    if hamming:
        root = (0.54 - 0.46 * _cosine(index, extent - 1)) ** 0.5
        c_b, s_b = c_b * root, s_b * root
    # exp(i(b − f)), summed over the bins as products of cosines and sines.
    c_f, s_f = _cosine(forward, extent), _sine(forward, extent)
    return c_b @ c_f + s_b @ s_f if part == "real" else s_b @ c_f - c_b @ s_f


def sum_waves(lag: Any, period: Any, bins: Any) -> Any:
    """Σ exp(2πik·lag/period) over the ``bins`` frequencies k about 0, an odd number: the Dirichlet kernel.

    Example:
        >>> sum_waves(np.arange(3), 3, 1)
        array([1., 1., 1.])
    """
    lag = abs(wrap(lag + period // 2, period) - period // 2)  # the smallest that is as far, for its sine
    singular = _as_float(lag == 0)  # the quotient's limit there is ``bins``
    # The angle of the numerator is reduced modulo one turn in integers: it stays small and exact.
    numerator = _sine(wrap(bins * lag, 2 * period), 2 * period) + singular * bins
    return numerator / (_sine(lag, 2 * period) + singular)


def wrap(x: Any, period: Any) -> Any:
    """Return integers modulo a period, also a symbolic one, which ONNX's remainder doesn't take.

    Example:
        >>> wrap(torch.tensor([-1, 5]), 3)
        tensor([2, 2])
    """
    return x - torch.div(x, period, rounding_mode="floor") * period if isinstance(x, Tensor) else x % period


def _concatenate(parts: list[Any], axis: int = 0) -> Any:
    library: Any = torch if isinstance(parts[0], Tensor) else np
    return library.concatenate(parts, axis)


def _cosine(turns: Any, period: Any) -> Any:
    angle = 2 * np.pi * _as_float(turns) / period
    return angle.cos() if isinstance(angle, Tensor) else np.cos(angle)


def _sine(turns: Any, period: Any) -> Any:
    angle = 2 * np.pi * _as_float(turns) / period
    return angle.sin() if isinstance(angle, Tensor) else np.sin(angle)


def _as_float(x: Any) -> Any:
    """Raise integers or truth values to float64 (float32 on devices that have no wider type)."""
    if isinstance(x, Tensor):
        return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
    return x.astype(np.float64)


def _find_shape(build: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of a matrix of which no values are wanted, found once."""

    def find() -> tuple[int, ...]:
        return tuple(_build_on(torch.device("meta"), build, arguments).shape)

    return CACHE.get((build, arguments, "shape"), find, len)


def _build_on(device: torch.device, build: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
    matrix: Tensor = build(*arguments, arange=lambda *ends: torch.arange(*ends, device=device))
    return matrix


def _is_constant(argument: object) -> bool:
    return type(argument) in (int, bool, str)
