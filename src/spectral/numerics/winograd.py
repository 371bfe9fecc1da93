"""Convolutions of stride 1 with 3 × 3 kernels by fewer products: tiles of 2 × 2 samples from 16, not 36."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spectral.numerics.memory import has_channels_last
from spectral.numerics.products import exact_products
from spectral.numerics.tracing import is_traced

FEWEST = 192  # channels on each side from which on products cost more than the sums before and behind them
SAMPLES = 2**11  # of all maps of a channel, from which on it pays to transform the kernels
AT_ONCE = 2**21  # transformed samples: with their products they stay in the cache

# A kernel's values at the points 0, 1, −1 and ∞, of Winograd's F(2, 3).
_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def suits(x: Tensor, weight: Tensor, dilation: tuple[int, ...], groups: int) -> bool:
    """Whether `convolve_tiles` takes a convolution and is the faster way: many channels, on a CPU.

    Example:
        >>> x = torch.zeros(8, 256, 16, 16).to(memory_format=torch.channels_last)
        >>> suits(x, torch.zeros(256, 256, 3, 3), (1, 1), 1), suits(x, torch.zeros(256, 256, 1, 1), (1, 1), 1)
        (True, False)
    """
    return (
        tuple(weight.shape[2:]) == (3, 3)
        and set(dilation) == {1}
        and groups == 1
        and min(weight.shape[:2]) >= FEWEST
        and len(x) * x[0, 0].numel() >= SAMPLES
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and has_channels_last(x, 2)
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not is_traced(x)
    )


def convolve_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """Convolve with stride 1, equal to `torch.conv2d` within rounding.

    Args:
        x: maps, best with their channels innermost; so are those that are returned.
        weight: (filters, channels, 3, 3).
        bias: one number per filter, or None.
        padding: zeros at both ends of each axis.

    Shape:
        (B, C, H, W) → (B, filters, H + 2p − 2, W + 2p − 2).

    Source:
        A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016: F(2 × 2, 3 × 3).

    Example:
        >>> convolve_tiles(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), None, (1, 1))[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    height, width = (n + 2 * p - 2 for n, p in zip(x.shape[2:], padding, strict=True))
    tall, wide = -(-height // 2), -(-width // 2)  # tiles: the last may reach beyond the map
    filters, channels = weight.shape[:2]
    points = torch.tensor(_KERNEL, dtype=weight.dtype)
    # In this order each of the 16 is one matrix, laid out for its product.
    kernels = torch.einsum("ai,bj,ocij->abco", points, points, weight).reshape(16, channels, filters)
    step = min(len(x), max(1, AT_ONCE // (16 * tall * wide * max(channels, filters))))
    maps = x.new_empty(len(x), tall, 2, wide, 2, filters)
    samples = x.new_empty(4, 4, step, tall, wide, channels)
    with exact_products(x.device):
        for start in range(0, len(x), step):
            images = x[start : start + step]
            _transform(images, padding, (tall, wide), samples[:, :, : len(images)])
            rows = samples[:, :, : len(images)].reshape(16, -1, channels)
            products = torch.bmm(rows, kernels).view(4, 4, len(images), tall, wide, filters)
            _assemble(products, maps[start : start + step])
    whole = maps.view(len(x), 2 * tall, 2 * wide, filters)[:, :height, :width]
    whole = whole if bias is None else whole + bias
    return whole.contiguous().movedim(-1, 1)


def _transform(x: Tensor, padding: tuple[int, ...], tiles: tuple[int, int], out: Tensor) -> None:
    """Fill in the values at the four points of each axis, (4, 4, B, tiles, C)."""
    (tall, wide), (top, left) = tiles, padding
    below, right = (2 * n + 2 - m - p for n, m, p in zip(tiles, x.shape[2:], padding, strict=True))
    padded = F.pad(x, (left, right, top, below)).movedim(1, -1)
    rows = [padded[:, i : i + 2 * tall - 1 : 2] for i in range(4)]
    for row, values in enumerate(_combine(rows)):
        columns = [values[:, :, i : i + 2 * wide - 1 : 2] for i in range(4)]
        for (a, b, sign), place in zip(_POINTS, out[row], strict=True):
            torch.add(columns[a], columns[b], alpha=sign, out=place)


_POINTS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))  # first sample, second, and its sign


def _combine(samples: list[Tensor]) -> list[Tensor]:
    return [torch.add(samples[a], samples[b], alpha=sign) for a, b, sign in _POINTS]


def _assemble(products: Tensor, out: Tensor) -> None:
    """Bring values at the points of each axis (4, 4, B, …) back to samples (B, tall, 2, wide, 2, C)."""
    even = (products[1] + products[2]).add_(products[0])
    odd = (products[1] - products[2]).sub_(products[3])
    for row, values in enumerate((even, odd)):
        torch.add(values[0], values[1], out=out[:, :, row, :, 0]).add_(values[2])
        torch.sub(values[1], values[2], out=out[:, :, row, :, 1]).sub_(values[3])
