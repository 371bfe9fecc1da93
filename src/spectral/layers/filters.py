"""Borders of maps, and small filters along their axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral.numerics.matrices import wrap
from spectral.numerics.tracing import fixed_shape, is_traced

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def filter_map(x: Tensor, kernel: Tensor, stride: Sequence[int], padding_mode: str) -> Tensor:
    """Correlate every channel with its own kernel (C, 1, k, …), then decimate.

    The padding is ⌊(k−1)/2⌋ samples before and ⌈(k−1)/2⌉ after each axis: ⌈N/s⌉ samples, and sample 0 stays.

    Example:
        >>> filter_map(torch.ones(1, 1, 5, 6), torch.full((1, 1, 2, 2), 0.25), (2, 2), "reflect")[0, 0]
        tensor([[1., 1., 1.],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    padded = pad_map(x, [((k - 1) // 2, k // 2) for k in kernel.shape[2:]], padding_mode)
    filtered: Tensor = _CONVOLUTIONS[len(stride)](
        padded, kernel.to(x.dtype), stride=tuple(stride), groups=kernel.shape[0]
    )
    return filtered


def pad_map(x: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Pad the last axes by (before, after) each, also where the pad is larger than the map.

    Example:
        >>> pad_map(torch.tensor([[[1.0, 2.0]]]), [(1, 1), (0, 0)], "replicate")[0]
        tensor([[1., 2.],
                [1., 2.],
                [1., 2.]])
    """
    if not any(map(any, pads)):
        return x
    ends = [end for pad in reversed(pads) for end in pad]
    if mode == "zeros":
        return F.pad(x, ends)
    fits = all(max(pad) < n for pad, n in zip(pads, fixed_shape(x)[-len(pads) :], strict=True))
    if fits:
        return F.pad(x, ends, mode=mode)
    # torch refuses pads as large as the map (a 1×1 map in a deep layer): index the extension instead.
    for axis, (before, after) in enumerate(pads, -len(pads)):
        x = extend(x, axis, before, after, mode)
    return x


def extend(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Extend one axis by any amount: circularly, by its outermost sample, or mirrored about it.

    Example:
        >>> extend(torch.tensor([1, 2, 3]), 0, before=0, after=4, mode="circular")
        tensor([1, 2, 3, 1, 2, 3, 1])
    """
    # In a graph, whose sizes may vary, the amount is no reason for another graph.
    if not is_traced(x) and before == after == 0:
        return x
    size = x.shape[axis]
    index = torch.arange(-before, size + after, device=x.device)
    if mode == "circular":
        index = wrap(index, size)
    elif mode == "replicate" or size == 1:
        index = index.clamp(0, size - 1)
    else:
        period = 2 * (size - 1)
        index = (size - 1) - (wrap(index, period) - (size - 1)).abs()
    return x.index_select(axis, index)


def binomial_kernel(sizes: Sequence[int]) -> Tensor:
    """Return the binomial coefficients over all axes, with sum 1.

    Example:
        >>> binomial_kernel((3, 3)) * 16
        tensor([[1., 2., 1.],
                [2., 4., 2.],
                [1., 2., 1.]])
    """
    return outer([binomial_taps(size) for size in sizes])


def binomial_taps(size: int) -> Tensor:
    """Return the binomial coefficients of one axis, with sum 1.

    Example:
        >>> binomial_taps(4)
        tensor([0.1250, 0.3750, 0.3750, 0.1250])
    """
    taps = torch.tensor([math.comb(size - 1, i) for i in range(size)], dtype=torch.float32)
    return taps / taps.sum()


def outer(taps: Sequence[Tensor]) -> Tensor:
    """Return the product of one vector for each axis.

    Example:
        >>> outer([torch.tensor([1.0, 2.0]), torch.ones(3)]).shape
        torch.Size([2, 3])
    """
    kernel = torch.ones(())
    for axis in taps:
        kernel = kernel.to(axis.dtype)[..., None] * axis
    return kernel
