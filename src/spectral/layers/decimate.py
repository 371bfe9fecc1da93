"""Plain decimation: what a stride does to a dense map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectral.layers.pool import Pool, Stride


class Decimate(Pool):
    """Keep samples 0, s, 2s, … of every axis and nothing else.

    Args:
        stride: decimation factor, one for all axes or one for each.
        copy: put them into memory of their own, one behind the other, as a strided convolution or pool does;
            else the output is a view of the input, as a slice is.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if the stride is out of range, or an input has another rank or dtype.

    Example:
        >>> import torch
        >>> Decimate1d(2)(torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[0., 2.]])
    """

    kind = "plain"

    def __init__(self, stride: Stride = 2, copy: bool = True) -> None:
        super().__init__(None, stride)
        self.choose("copy", copy, (True, False))
        self.copy = copy

    def forward(self, x: Tensor) -> Tensor:
        """Decimate."""
        if self.copy:
            return super().forward(x)
        self.check(x)
        return self.pool(x)

    def pool(self, x: Tensor) -> Tensor:
        """Decimate."""
        steps: list[Any] = [slice(None, None, step) for step in self.stride]
        return x[(..., *steps)]

    def dense(self, x: Tensor) -> Tensor:
        """Return the map itself."""
        self.check(x)
        return x


class Decimate1d(Decimate):
    """`Decimate` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class Decimate2d(Decimate):
    """`Decimate` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class Decimate3d(Decimate):
    """`Decimate` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
