"""BlurPool whose taps are learned, and stay a low-pass."""

from __future__ import annotations

from torch import Tensor, nn

from spectral.layers.blurpool import binomial_kernel
from spectral.layers.common import PADDING_MODES, Pool2d, Stride, filter_map


class LearnedBlurPool2d(Pool2d):
    """A blur per channel, trained with the network: the softmax of its logits, starting as the binomial.

    Plain trainable taps have no reason to stay a low-pass, and training turns them into anything. The softmax
    keeps every kernel non-negative with sum 1: DC gain 1, and no frequency is passed more strongly than DC.

    Args:
        channels: number of input (and output) channels.
        kernel_size: taps per axis, 1 to 7.
        stride: decimation factor, one for both axes or (s_h, s_w).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but the first keep a
            constant up to the borders.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Attributes:
        logits: (C, 1, k, k), trainable.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        The learned filters of R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019,
        constrained.

    Example:
        >>> LearnedBlurPool2d(1).kernel.mul(16).round()
        tensor([[[[1., 2., 1.],
                  [2., 4., 2.],
                  [1., 2., 1.]]]], grad_fn=<RoundBackward0>)
    """

    def __init__(
        self, channels: int, kernel_size: int = 3, stride: Stride = 2, padding_mode: str = "reflect"
    ) -> None:
        super().__init__(channels, stride)
        self.check_kernel_size(kernel_size)
        self.choose("padding_mode", padding_mode, PADDING_MODES)
        self.kernel_size = kernel_size
        self.padding_mode = padding_mode
        self.logits = nn.Parameter(binomial_kernel(kernel_size).log().repeat(channels, 1, 1, 1))

    @property
    def kernel(self) -> Tensor:
        """The taps (C, 1, k, k): ≥ 0, with sum 1."""
        return self.logits.flatten(1).softmax(1).view_as(self.logits)

    def forward(self, x: Tensor) -> Tensor:
        """Blur and decimate."""
        self.check(x)
        return filter_map(x, self.kernel, self.stride, self.padding_mode)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )
