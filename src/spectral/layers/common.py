"""What the layers share: the checks of arguments and maps, borders, and filtering along the two axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.numerics.products import disable_autocast, transform_axes

Stride = int | tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MAX_KERNEL_SIZE = 7


class Pool2d(nn.Module):
    """A layer that keeps every s-th sample: its stride, its channels and the checks of its input.

    Args:
        channels: number of input channels, None if any number will do.
        stride: decimation factor, one for both axes or (s_h, s_w).

    Raises:
        SpectralError: if an argument is out of range.
    """

    def __init__(self, channels: int | None, stride: Stride) -> None:
        super().__init__()
        if channels is not None and not _is_count(channels):
            raise SpectralError(f"{type(self).__name__}: channels must be ≥ 1, got {channels!r}")
        steps = tuple(stride) if isinstance(stride, tuple | list) else (stride, stride)
        if len(steps) != 2 or not all(_is_count(s) for s in steps):
            raise SpectralError(f"{type(self).__name__}: stride must be ≥ 1 on both axes, got {stride!r}")
        self.channels = channels
        self.stride: tuple[int, int] = (steps[0], steps[1])

    def check(self, x: Tensor) -> None:
        """Refuse what is no floating-point map with the layer's channels.

        Raises:
            SpectralError: for another rank, channel count or dtype, or a map without pixels.
        """
        name, channels = type(self).__name__, self.channels
        if x.ndim not in (3, 4) or (channels is not None and x.shape[-3] != channels):
            raise SpectralError(
                f"{name}: expected (B, {channels or 'C'}, H, W), got shape {tuple(x.shape)}; "
                + (
                    "add the missing axes"
                    if channels is None
                    else "build the layer with the channels of its input"
                )
            )
        if not x.is_floating_point():
            raise SpectralError(f"{name}: expected a floating-point map, got {x.dtype}; use x.float()")
        if 0 in x.shape[-2:]:
            raise SpectralError(f"{name}: the map is empty, got shape {tuple(x.shape)}")

    def choose(self, what: str, value: object, options: tuple[object, ...]) -> None:
        """Refuse a value that is not among the options.

        Raises:
            SpectralError: naming the options.
        """
        if value not in options:
            names = ", ".join(str(option) for option in options)
            raise SpectralError(f"{type(self).__name__}: {what} must be one of {names}, got {value!r}")

    def check_kernel_size(self, kernel_size: object, what: str = "kernel_size") -> None:
        """Refuse a kernel that is no integer from 1 to 7.

        Raises:
            SpectralError: naming the range.
        """
        if not _is_count(kernel_size) or kernel_size > MAX_KERNEL_SIZE:  # type: ignore[operator]
            raise SpectralError(
                f"{type(self).__name__}: {what} must be 1 to {MAX_KERNEL_SIZE}, got {kernel_size!r}"
            )

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"stride={self.stride}" if self.channels is None else f"{self.channels}, stride={self.stride}"


def filter_map(x: Tensor, kernel: Tensor, stride: tuple[int, int], padding_mode: str) -> Tensor:
    """Correlate every channel with its own kernel (C, 1, k, k), then decimate.

    The padding is ⌊(k−1)/2⌋ samples before and ⌈(k−1)/2⌉ after each axis: ⌈N/s⌉ samples, and sample 0 stays.

    Example:
        >>> filter_map(torch.ones(1, 1, 5, 6), torch.full((1, 1, 2, 2), 0.25), (2, 2), "reflect")[0, 0]
        tensor([[1., 1., 1.],
                [1., 1., 1.],
                [1., 1., 1.]])
    """
    size = kernel.shape[-1]
    padded = pad_map(x, (size - 1) // 2, size // 2, padding_mode)
    return F.conv2d(padded, kernel.to(x.dtype), stride=stride, groups=kernel.shape[0])


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
        x = extend(x, axis, before, after, mode)
    return x


def extend(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Extend one axis by any amount: circularly, by its outermost sample, or mirrored about it.

    Example:
        >>> extend(torch.tensor([1, 2, 3]), 0, before=0, after=4, mode="circular")
        tensor([1, 2, 3, 1, 2, 3, 1])
    """
    if before == after == 0:
        return x
    size = x.shape[axis]
    index = torch.arange(-before, size + after, device=x.device)
    if mode == "circular":
        index = index % size
    elif mode == "replicate" or size == 1:
        index = index.clamp(0, size - 1)
    else:
        period = 2 * (size - 1)
        index = (size - 1) - (index % period - (size - 1)).abs()
    return x.index_select(axis, index)


def apply_axes(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """rows · x · columnsᵀ for every map: a filter and its decimation along each axis, or None.

    Computed in the matrices' dtype whatever autocast says; the result has x's dtype.

    Shape:
        (…, C, H, W), (n_h, H), (n_w, W) → (…, C, n_h, n_w).

    Example:
        >>> apply_axes(torch.ones(1, 2, 2), torch.ones(1, 2), torch.eye(2))
        tensor([[[2., 2.]]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with disable_autocast(x):
        wide = x.to(dtype)
        if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            # Channels are innermost: multiply there instead of copying the map into another order.
            y = transform_axes(wide.permute(0, 2, 3, 1), 1, [rows, columns])
            return y.permute(0, 3, 1, 2).to(x.dtype)
        return transform_axes(wide, x.ndim - 2, [rows, columns]).to(x.dtype)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
