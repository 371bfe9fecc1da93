"""BlurPool: a fixed binomial low-pass filter, then decimation (Zhang 2019)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MAX_KERNEL_SIZE = 7


class BlurPool2d(nn.Module):
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
        stride: int | tuple[int, int] = 2,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise SpectralError(f"BlurPool2d: channels must be ≥ 1, got {channels}")
        if not isinstance(kernel_size, int) or not 1 <= kernel_size <= MAX_KERNEL_SIZE:
            raise SpectralError(
                f"BlurPool2d: kernel_size must be 1 to {MAX_KERNEL_SIZE}, got {kernel_size!r}"
            )
        steps = tuple(stride) if isinstance(stride, tuple | list) else (stride, stride)
        if len(steps) != 2 or not all(isinstance(s, int) and s >= 1 for s in steps):
            raise SpectralError(f"BlurPool2d: stride must be ≥ 1 on both axes, got {stride!r}")
        if padding_mode not in PADDING_MODES:
            raise SpectralError(
                f"BlurPool2d: padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}"
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = steps
        self.padding_mode = padding_mode
        self.as_products = False
        taps = _binomial_taps(kernel_size)
        # One filter per channel, in the state dict: a checkpoint then holds all that the layer computes with.
        self.register_buffer("kernel", (taps[:, None] * taps).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Blur and decimate."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.channels:
            raise SpectralError(
                f"BlurPool2d: expected (B, {self.channels}, H, W), got shape {tuple(x.shape)}; "
                f"build the layer with the channels of its input"
            )
        if not x.is_floating_point():
            raise SpectralError(f"BlurPool2d: expected a floating-point map, got {x.dtype}; use x.float()")
        if 0 in x.shape[-2:]:
            raise SpectralError(f"BlurPool2d: the map is empty, got shape {tuple(x.shape)}")
        if self.as_products:
            return self._multiply(x)
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        padded = pad_map(x, before, after, self.padding_mode)
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=self.stride, groups=self.channels)

    def _multiply(self, x: Tensor) -> Tensor:
        """Blur and decimate as two matrix products, rows then columns, with the channels innermost."""
        (s_h, s_w), (height, width) = self.stride, x.shape[-2:]
        rows = _blurring_rows(height, self.kernel_size, s_h, self.padding_mode).to(x)
        columns = _blurring_rows(width, self.kernel_size, s_w, self.padding_mode).to(x)
        y = torch.matmul(rows, x.movedim(-3, -1).flatten(-2)).unflatten(-1, (width, -1))
        return torch.matmul(columns, y).movedim(-1, -3)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding_mode={self.padding_mode!r}"
        )


def pad_map(x: Tensor, before: int, after: int, mode: str) -> Tensor:
    """Pad the last two axes by the same amounts, also where the pad is larger than the map.

    Example:
        >>> pad_map(torch.tensor([[[1.0, 2.0]]]), 1, 1, "reflect")[0, 1]
        tensor([2., 1., 2., 1.])
    """
    if before == after == 0:
        return x
    if mode == "zeros":
        return F.pad(x, (before, after, before, after))
    if max(before, after) < min(x.shape[-2:]):
        return F.pad(x, (before, after, before, after), mode=mode)
    # torch refuses pads as large as the map (a 1×1 map in a deep layer): index the extension instead.
    for axis in (-2, -1):
        index = _extension_index(x.shape[axis], before, after, mode).to(x.device)
        x = x.index_select(axis, index)
    return x


def _binomial_taps(kernel_size: int) -> Tensor:
    taps = torch.tensor([math.comb(kernel_size - 1, i) for i in range(kernel_size)], dtype=torch.float32)
    return taps / taps.sum()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached tensor may enter an autograd graph later
def _blurring_rows(size: int, kernel_size: int, step: int, mode: str) -> Tensor:
    """One axis of the layer as a matrix (⌈N/s⌉, N): the layer's answer to each unit impulse."""
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    identity = torch.eye(size)[None]
    # pad_map extends both axes: take the columns' extension only
    padded = pad_map(identity, before, after, mode)[..., before : before + size, :]
    windows = padded[0].unfold(-1, kernel_size, step)
    return torch.matmul(windows, _binomial_taps(kernel_size)).T.contiguous()


def _extension_index(size: int, before: int, after: int, mode: str) -> Tensor:
    index = torch.arange(-before, size + after)
    if mode == "circular":
        return index % size
    if mode == "replicate" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * (size - 1)
    return (size - 1) - (index % period - (size - 1)).abs()
