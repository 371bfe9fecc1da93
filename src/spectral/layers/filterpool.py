"""A depthwise filter, then decimation: what blurs and wavelets have in common."""

from __future__ import annotations

from torch import Tensor

from spectral.layers.filters import PADDING_MODES, filter_map
from spectral.layers.pool import Pool, Stride


class FilterPool(Pool):
    """Correlate every channel with its own small kernel and decimate; the subclass has the kernels.

    The padding is ⌊(k−1)/2⌋ samples before and ⌈(k−1)/2⌉ after each axis, so the output has ⌈N/s⌉ samples and
    sample 0 of the input stays on the grid.

    Args:
        channels: number of input (and output) channels.
        stride: decimation factor, one for all axes or one for each.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Attributes:
        kernel: (C, 1, k, …), one size for each axis.
    """

    kind = "blur"
    kernel: Tensor
    channels: int

    def __init__(self, channels: int, stride: Stride, padding_mode: str) -> None:
        super().__init__(channels, stride)
        self.choose("padding_mode", padding_mode, PADDING_MODES)
        self.padding_mode = padding_mode

    def pool(self, x: Tensor) -> Tensor:
        """Filter and decimate."""
        return filter_map(x, self.kernel, self.stride, self.padding_mode)

    def dense(self, x: Tensor) -> Tensor:
        """Filter only: ``layer.dense(x)[..., ::s_h, ::s_w]`` is the layer's output."""
        self.check(x)
        return filter_map(x, self.kernel, [1] * self.axes, self.padding_mode)

    def repeat_kernel(self, kernel: Tensor) -> Tensor:
        """Return one copy of a kernel (k, …) for each channel, as torch's convolutions take them."""
        return kernel.repeat(self.channels, 1, *[1] * self.axes)
