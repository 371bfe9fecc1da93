"""BlurPool: a fixed binomial low-pass filter, then decimation (Zhang 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral.layers.common import PADDING_MODES, Pool2d, Stride, apply_axes, extend, filter_map
from spectral.numerics.cache import remember


class BlurPool2d(Pool2d):
    """Depthwise binomial blur followed by decimation, for maps of any size.

    The padding is ⌊(k−1)/2⌋ samples before and ⌈(k−1)/2⌉ after each axis, so the output has ⌈N/s⌉ samples and
    sample 0 of the input stays on the grid (for an even kernel the centroid moves by half a pixel). The
    filter has unit gain at DC: with every mode but ``"zeros"`` a constant map stays that constant up to its
    borders. It reduces aliasing and doesn't remove it: the gain at the new Nyquist frequency of stride 2 is
    0.707, 0.5, 0.354 and 0.25 for k = 2, 3, 4, 5.

    Args:
        channels: number of input (and output) channels.
        kernel_size: taps per axis, 1 to 7; 2 is ``Rect-2``, 3 ``Tri-3``, 5 ``Bin-5``.
        stride: decimation factor, one for both axes or (s_h, s_w).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Attributes:
        as_products: compute the same values as two matrix products. Gradients of a depthwise convolution are
            an order of magnitude slower on CPUs; `spectral.train` sets this there. The layer is then no
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

    kernel: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        stride: Stride = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__(channels, stride)
        self.check_kernel_size(kernel_size)
        self.choose("padding_mode", padding_mode, PADDING_MODES)
        self.kernel_size = kernel_size
        self.padding_mode = padding_mode
        self.as_products = False
        # One filter per channel, in the state dict: a checkpoint then holds all that the layer computes with.
        self.register_buffer("kernel", binomial_kernel(kernel_size).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Blur and decimate."""
        self.check(x)
        if self.as_products:
            return self._multiply(x)
        return filter_map(x, self.kernel, self.stride, self.padding_mode)

    def _multiply(self, x: Tensor) -> Tensor:
        """Blur and decimate as two matrix products."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, columns = (
            remember(_blurring_rows, size, self.kernel_size, step, self.padding_mode, like=x, dtype=dtype)
            for size, step in zip(x.shape[-2:], self.stride, strict=True)
        )
        return apply_axes(x, rows, columns)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


def binomial_kernel(kernel_size: int) -> Tensor:
    """Return the binomial coefficients over both axes, (k, k), with sum 1.

    Example:
        >>> binomial_kernel(3) * 16
        tensor([[1., 2., 1.],
                [2., 4., 2.],
                [1., 2., 1.]])
    """
    taps = _binomial_taps(kernel_size)
    return taps[:, None] * taps


def _binomial_taps(kernel_size: int) -> Tensor:
    taps = torch.tensor([math.comb(kernel_size - 1, i) for i in range(kernel_size)], dtype=torch.float32)
    return taps / taps.sum()


def _blurring_rows(size: int, kernel_size: int, step: int, mode: str) -> Tensor:
    """One axis of the layer as a matrix (⌈N/s⌉, N): the layer's answer to each unit impulse."""
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    identity = torch.eye(size)
    if mode == "zeros":
        padded = torch.nn.functional.pad(identity, (0, 0, before, after))
    else:
        padded = extend(identity, 0, before, after, mode)
    windows = padded.unfold(0, kernel_size, step)
    return torch.matmul(windows, _binomial_taps(kernel_size))
