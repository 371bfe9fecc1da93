"""BlurPool: a fixed binomial low-pass filter, then decimation (Zhang 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral.layers.filterpool import FilterPool
from spectral.layers.filters import binomial_kernel, binomial_taps, extend
from spectral.layers.pool import Stride
from spectral.numerics.cache import remember
from spectral.numerics.products import apply_axes


class BlurPool(FilterPool):
    """Depthwise binomial blur followed by decimation, for maps of any size.

    The padding is ⌊(k−1)/2⌋ samples before and ⌈(k−1)/2⌉ after each axis, so the output has ⌈N/s⌉ samples and
    sample 0 of the input stays on the grid (for an even kernel the centroid moves by half a pixel). The
    filter has unit gain at DC: with every mode but ``"zeros"`` a constant map stays that constant up to its
    borders. It reduces aliasing and doesn't remove it: the gain at the new Nyquist frequency of stride 2 is
    0.707, 0.5, 0.354 and 0.25 for k = 2, 3, 4, 5. An axis of stride 1 isn't blurred.

    Args:
        channels: number of input (and output) channels.
        kernel_size: taps on each axis that is decimated, 1 to 7: 2 is ``Rect-2``, 3 ``Tri-3``, 5 ``Bin-5``;
            or one for each axis, which then counts on axes of stride 1 too.
        stride: decimation factor, one for all axes or one for each.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Attributes:
        as_products: compute the same values as matrix products. Gradients of a depthwise convolution are an
            order of magnitude slower on CPUs; `spectral.train` sets this there. The layer is then no
            convolution, and `find_sites` can't see it.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019.

    Example:
        >>> layer = BlurPool2d(2)
        >>> layer(torch.ones(1, 2, 5, 7)).shape
        torch.Size([1, 2, 3, 4])
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
        self.as_products = False
        # One filter per channel, in the state dict: a checkpoint then holds all that the layer computes with.
        self.register_buffer("kernel", self.repeat_kernel(binomial_kernel(sizes)))

    def pool(self, x: Tensor) -> Tensor:
        """Blur and decimate."""
        return self._multiply(x) if self.as_products else super().pool(x)

    def _multiply(self, x: Tensor) -> Tensor:
        """Blur and decimate as matrix products."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        sizes = x.shape[-self.axes :], self.kernel.shape[2:], self.stride
        return apply_axes(
            x,
            [
                None if (taps, step) == (1, 1)
                else remember(_blurring_rows, size, taps, step, self.padding_mode, like=x, dtype=dtype)
                for size, taps, step in zip(*sizes, strict=True)
            ],
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


class BlurPool1d(BlurPool):
    """`BlurPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class BlurPool2d(BlurPool):
    """`BlurPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class BlurPool3d(BlurPool):
    """`BlurPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3


def _blurring_rows(size: int, taps: int, step: int, mode: str) -> Tensor:
    """One axis of the layer as a matrix (⌈N/s⌉, N): the layer's answer to each unit impulse."""
    before, after = (taps - 1) // 2, taps // 2
    identity = torch.eye(size)
    if mode == "zeros":
        padded = torch.nn.functional.pad(identity, (0, 0, before, after))
    else:
        padded = extend(identity, 0, before, after, mode)
    return torch.matmul(padded.unfold(0, taps, step), binomial_taps(taps))
