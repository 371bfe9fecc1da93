"""MaxBlurPool: max pooling without its stride, then BlurPool (Zhang 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spectral.layers.blurpool import BlurPool2d
from spectral.layers.common import Pool2d, Stride


class MaxBlurPool2d(Pool2d):
    """Max pool of stride 1, then blur and decimate: the anti-aliased max pool.

    The maximum runs over the samples that exist among ⌊(p−1)/2⌋ before and ⌈(p−1)/2⌉ after, so it keeps the
    size and every constant.

    Args:
        channels: number of input (and output) channels.
        pool_size: window of the maximum, 1 to 7.
        kernel_size: taps of the blur, 1 to 7.
        stride: decimation factor, one for both axes or (s_h, s_w).
        padding_mode: the blur's, as in `BlurPool2d`.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019.

    Example:
        >>> import torch
        >>> MaxBlurPool2d(1)(torch.ones(1, 1, 5, 7)).shape
        torch.Size([1, 1, 3, 4])
    """

    def __init__(
        self,
        channels: int,
        pool_size: int = 3,
        kernel_size: int = 3,
        stride: Stride = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__(channels, stride)
        self.check_kernel_size(pool_size, "pool_size")
        self.check_kernel_size(kernel_size)
        self.pool_size = pool_size
        self.blur = BlurPool2d(channels, kernel_size, stride, padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum, blur and decimate."""
        self.check(x)
        peaks = F.max_pool2d(x, self.pool_size, stride=1, padding=self.pool_size // 2)
        even = 1 - self.pool_size % 2  # torch pads both sides alike: one window too many for an even size
        return self.blur(peaks[..., even:, even:])  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the arguments that the blur doesn't."""
        return f"pool_size={self.pool_size}"
