"""BlurPool whose taps are learned, and stay a low-pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from spectral.layers.filterpool import FilterPool
from spectral.layers.filters import binomial_kernel
from spectral.layers.pool import Stride


class LearnedBlurPool(FilterPool):
    """A blur per channel, trained with the network: the softmax of its logits, starting as the binomial.

    Plain trainable taps have no reason to stay a low-pass, and training turns them into anything. The softmax
    keeps every kernel non-negative with sum 1: DC gain 1, and no frequency is passed more strongly than DC.
    An axis of stride 1 isn't blurred.

    Args:
        channels: number of input (and output) channels.
        kernel_size: taps on each axis that is decimated, 1 to 7; or one for each axis, which then counts on
            axes of stride 1 too.
        stride: decimation factor, one for all axes or one for each.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but the first keep a
            constant up to the borders.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

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
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: Stride = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__(channels, stride, padding_mode)
        sizes = self.read_kernel_size(kernel_size)
        self.kernel_size = kernel_size
        self.logits = nn.Parameter(self.repeat_kernel(binomial_kernel(sizes).log()))

    @property
    def kernel(self) -> Tensor:  # type: ignore[override]
        """The taps (C, 1, k, k): ≥ 0, with sum 1."""
        return self.logits.flatten(1).softmax(1).view_as(self.logits)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


class LearnedBlurPool1d(LearnedBlurPool):
    """`LearnedBlurPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class LearnedBlurPool2d(LearnedBlurPool):
    """`LearnedBlurPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class LearnedBlurPool3d(LearnedBlurPool):
    """`LearnedBlurPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
