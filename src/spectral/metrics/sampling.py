"""Which samples of a map a decimation keeps, and which bins of its spectrum pass without folding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from spectral.arguments.values import are_integers
from spectral.errors import SpectralError
from spectral.metrics.spectrum import centred_indices
from spectral.numerics.cache import remember
from spectral.numerics.lattice import Lattice
from spectral.numerics.matrices import highest_bin

Cutoff = Literal["radial", "separable"]
Stride = int | tuple[int, ...]


def as_stride(stride: Stride, caller: str) -> tuple[int, ...]:
    """Return one step per spatial axis: (s, s) for an int, a tuple as it is.

    Raises:
        SpectralError: if a step is < 1 or no integer, or if there is only one.
    """
    expected = f"{caller}: stride must be ≥ 1 on every axis"
    steps = _as_integers(stride, len(stride) if isinstance(stride, tuple | list) else 2, expected)
    if len(steps) < 2 or min(steps) < 1:
        raise SpectralError(f"{expected}, got {stride}; give an integer or two or more")
    return steps


def find_lattices(
    extents: Sequence[int], stride: tuple[int, ...], phase: Stride, size: tuple[int, ...] | None, caller: str
) -> list[Lattice]:
    """Return which samples a decimation keeps on each axis.

    Raises:
        SpectralError: if the lattice doesn't fit the map.

    Example:
        >>> find_lattices((8, 9), (2, 2), 0, None, "example")[1]
        Lattice(extent=9, step=2, first=0, count=5)
    """
    axes = len(stride)
    if len(extents) != axes:
        raise SpectralError(f"{caller}: expected {axes} extents, one per stride, got {len(extents)}")
    first = _as_integers(phase, axes, f"{caller}: phase must be ≥ 0 on every axis")
    if size is None:
        count = tuple(len(range(p, n, s)) for p, n, s in zip(first, extents, stride, strict=True))
    else:
        count = _as_integers(size, axes, f"{caller}: size must be ≥ 1 on every axis")
    for n, p, s, extent in zip(count, first, stride, extents, strict=True):
        if p < 0 or n < 1 or p + s * (n - 1) >= extent:
            raise SpectralError(f"{caller}: {n} samples from {p} in steps of {s} don't fit a map of {extent}")
    return [Lattice(*axis) for axis in zip(extents, stride, first, count, strict=True)]


def violation_mask(
    size: tuple[int, ...], stride: tuple[int, ...], cutoff: str = "radial", like: Tensor | None = None
) -> Tensor:
    """Bins (H, W) of a DC-centred spectrum that a decimation by ``stride`` would alias, on like's device.

    Decided in integers, so that a bin on the limit is the same on every platform.

    Example:
        >>> violation_mask((4, 4), (2, 2))[2]
        tensor([ True, False, False, False])
    """
    if cutoff not in ("radial", "separable"):
        raise SpectralError(f"compute_avr: cutoff must be 'radial' or 'separable', got {cutoff!r}")
    mask: Tensor = remember(_decide_violations, size, stride, cutoff, like=like)
    return mask


def _decide_violations(size: tuple[int, ...], stride: tuple[int, ...], cutoff: str) -> Tensor:
    limit = math.lcm(
        *size
    )  # at most the number of bins: its square fits 64 bits for any mask that fits memory
    squares = [
        # Beyond the limit on one axis is beyond it altogether: clamping there bounds the squares.
        (2 * s * k * (limit // n)).abs().clamp(max=limit + 1) ** 2
        for k, n, s in zip(centred_indices(size), size, stride, strict=True)
    ]
    add = torch.add if cutoff == "radial" else torch.maximum
    return reduce(lambda a, b: add(a, b), squares) > limit**2


def is_alias_free(count: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Bins of a map of s·n samples, DC first, that pass unfolded: 2·s·|k| < s·n on every axis with s > 1.

    Example:
        >>> is_alias_free((4,), (2,))
        tensor([ True,  True, False, False, False, False, False,  True])
    """
    axes = []
    for s, n in zip(stride, count, strict=True):
        k = torch.arange(s * n)
        axes.append(torch.minimum(k, s * n - k) <= highest_bin(s * n, s))
    free: Tensor = reduce(lambda free, axis: free[..., None] & axis, axes)
    return free


def _as_integers(value: Stride, axes: int, expected: str) -> tuple[int, ...]:
    given = value if isinstance(value, tuple | list) else (value,) * axes
    if len(given) != axes or not are_integers(given):
        raise SpectralError(f"{expected}, got {value!r}; give an integer, or {axes} of them")
    return tuple(int(v) for v in given)
