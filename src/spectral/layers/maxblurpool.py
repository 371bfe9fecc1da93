"""MaxBlurPool: max pooling without its stride, then BlurPool (Zhang 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from spectral.layers.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d
from spectral.layers.pool import Pool, Stride


class MaxBlurPool(Pool):
    """Max pool of stride 1, then blur and decimate: the anti-aliased max pool.

    The maximum runs over the samples that exist among ⌊(p−1)/2⌋ before and ⌈(p−1)/2⌉ after, so it keeps the
    size and every constant.

    Args:
        channels: number of input (and output) channels.
        pool_size: window of the maximum, 1 to 7, on all axes as in torch's max pools, or one for each axis.
        kernel_size: the blur's, as in `BlurPool`.
        stride: decimation factor, one for all axes or one for each.
        padding_mode: the blur's, as in `BlurPool`.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019.

    Example:
        >>> import torch
        >>> MaxBlurPool2d(1)(torch.ones(1, 1, 5, 7)).shape
        torch.Size([1, 1, 3, 4])
    """

    kind = "blur"
    blur_class: ClassVar[type[BlurPool]]

    def __init__(
        self,
        channels: int,
        pool_size: int | Sequence[int] = 3,
        kernel_size: int | Sequence[int] = 3,
        stride: Stride = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__(channels, stride)
        self.windows = self.read_kernel_size(pool_size, "pool_size", everywhere=True)
        self.read_kernel_size(kernel_size)
        self.pool_size = pool_size
        self.blur = self.blur_class(channels, kernel_size, stride, padding_mode)

    def pool(self, x: Tensor) -> Tensor:
        """Take the maximum, blur and decimate."""
        blurred: Tensor = self.blur(self._maximize(x))
        return blurred

    def dense(self, x: Tensor) -> Tensor:
        """Take the maximum and blur."""
        self.check(x)
        return self.blur.dense(self._maximize(x))

    def _maximize(self, x: Tensor) -> Tensor:
        pads = [size // 2 for size in self.windows]
        if self.axes == 1:  # as one row: exporters fix the length of torch's pool of signals
            peaks = F.max_pool2d(x.unsqueeze(-2), (1, *self.windows), 1, (0, *pads)).squeeze(-2)
        else:
            maximize: Any = F.max_pool2d if self.axes == 2 else F.max_pool3d
            peaks = maximize(x, self.windows, 1, pads)
        # torch pads both sides alike: one window too many for an even size.
        ends: list[Any] = [slice(1 - size % 2, None) for size in self.windows]
        return peaks[(..., *ends)]

    def extra_repr(self) -> str:
        """Show the arguments that the blur doesn't."""
        return f"pool_size={self.pool_size}"


class MaxBlurPool1d(MaxBlurPool):
    """`MaxBlurPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1
    blur_class = BlurPool1d


class MaxBlurPool2d(MaxBlurPool):
    """`MaxBlurPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2
    blur_class = BlurPool2d


class MaxBlurPool3d(MaxBlurPool):
    """`MaxBlurPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
    blur_class = BlurPool3d
