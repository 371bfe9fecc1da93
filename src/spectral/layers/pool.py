"""The base of all layers: stride, channels, kind, dense map, and the checks of arguments and maps."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.fx import Proxy

from spectral.arguments.values import is_integer
from spectral.errors import SpectralError
from spectral.numerics.memory import match_memory
from spectral.numerics.tracing import fixed_shape

Stride = int | tuple[int, ...]
AXES = {1: "T", 2: "H, W", 3: "T, H, W"}
MAX_KERNEL_SIZE = 7


class Pool(nn.Module):
    """A layer that keeps every s-th sample of a filtered, moved or plain map, on any number of spatial axes.

    A subclass sets ``kind`` and gives `pool` and `dense`; those for signals, images and videos set ``axes``.
    What treats our layers apart from torch's own operators knows them by this base. An axis of stride 1 keeps
    its samples: no layer of ours filters along it, since nothing there can alias.

    Traced, exported and compiled graphs (`torch.jit.trace`, `torch.export`, both ONNX exporters) take other
    sizes than they were made with where their sizes are dynamic. What is static: number of axes, channels,
    stride and options, and for filters that the map is larger than the padding.

    Args:
        channels: number of input channels, None if any number will do.
        stride: decimation factor, one for all axes or one for each.

    Attributes:
        axes: how many of the last axes are spatial.
        kind: what the layer does before it decimates: ``"blur"``, ``"low_pass"``, ``"polyphase"`` (moves the
            map), ``"plain"`` (nothing), or ``"space_to_depth"`` (keeps all phases).
        channels: as given.
        stride: one factor for each axis.

    Raises:
        SpectralError: if an argument is out of range.
    """

    axes: ClassVar[int]
    kind: ClassVar[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make one of a class that knows its number of axes."""
        if not hasattr(cls, "axes"):
            name = cls.__name__
            raise SpectralError(f"{name} is what {name}1d, {name}2d and {name}3d share; make one of these")
        return super().__new__(cls)

    def __init__(self, channels: int | None, stride: Stride) -> None:
        super().__init__()
        if channels is not None and not is_count(channels):
            raise SpectralError(f"{type(self).__name__}: channels must be ≥ 1, got {channels!r}")
        self.channels = None if channels is None else int(channels)
        steps: tuple[Any, ...] = self.per_axis(stride)
        if not all(map(is_count, steps)) or len(steps) != self.axes:
            raise SpectralError(
                f"{type(self).__name__}: stride must be ≥ 1 on every axis, got {stride!r}; "
                f"give a whole number{f' or {self.axes} of them' if self.axes > 1 else ''}"
            )
        self.stride: tuple[int, ...] = tuple(int(s) for s in steps)

    @property
    def obstacle(self) -> str | None:
        """Why it has no dense map, although its kind has; None if it has one."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Filter and decimate (B, C, …) or (C, …); channels stay last in memory where they are."""
        self.check(x)
        return match_memory(self.pool(x), x, self.axes)

    def pool(self, x: Tensor) -> Tensor:
        """Filter and decimate a map that has been checked."""
        raise NotImplementedError

    def dense(self, x: Tensor) -> Tensor:
        """Return the map that is decimated: every s-th sample of it, from the first, is the output."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Refuse what is no floating-point map with the layer's channels.

        Raises:
            SpectralError: for another rank, channel count or dtype, or a map without pixels.
        """
        name, channels = type(self).__name__, self.channels
        if isinstance(x, Proxy):
            raise SpectralError(
                f"symbolic tracing can't look into {name}: make it a leaf of your torch.fx.Tracer "
                "(is_leaf_module)"
            )
        shape = fixed_shape(x)
        if x.ndim - self.axes not in (1, 2) or (channels is not None and shape[-self.axes - 1] != channels):
            raise SpectralError(
                f"{name}: expected (B, {channels or 'C'}, {AXES[self.axes]}), got shape {shape}; "
                + (
                    "add the missing axes"
                    if channels is None
                    else "build the layer with the channels of its input"
                )
            )
        if not x.is_floating_point():
            raise SpectralError(f"{name}: expected a floating-point map, got {x.dtype}; use x.float()")
        if 0 in shape[-self.axes :]:
            raise SpectralError(f"{name}: the map is empty, got shape {shape}")

    def per_axis(self, value: object) -> tuple[object, ...]:
        """One value for each axis: a list or tuple as it is, anything else repeated."""
        return tuple(value) if isinstance(value, list | tuple) else (value,) * self.axes

    def choose(self, what: str, value: object, options: tuple[object, ...]) -> None:
        """Refuse a value that is not among the options.

        Raises:
            SpectralError: naming the options.
        """
        if value not in options:
            names = ", ".join(str(option) for option in options)
            raise SpectralError(f"{type(self).__name__}: {what} must be one of {names}, got {value!r}")

    def read_kernel_size(
        self, value: object, what: str = "kernel_size", everywhere: bool = False
    ) -> list[int]:
        """Return a kernel's size on each axis: a single number is for those that are decimated.

        Args:
            value: a number from 1 to 7, or one for each axis.
            what: its name.
            everywhere: a single number is for axes of stride 1 too.

        Raises:
            SpectralError: if a size is out of range, or they are not as many as the axes.
        """
        sizes: tuple[Any, ...] = self.per_axis(value)
        if len(sizes) != self.axes or not all(is_count(k) and k <= MAX_KERNEL_SIZE for k in sizes):
            raise SpectralError(
                f"{type(self).__name__}: {what} must be 1 to {MAX_KERNEL_SIZE}, got {value!r}; give a whole "
                "number" + (f" or {self.axes} of them" if self.axes > 1 else "")
            )
        given = everywhere or isinstance(value, list | tuple)
        return [int(k) if given or step > 1 else 1 for k, step in zip(sizes, self.stride, strict=True)]

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"stride={self.stride}" if self.channels is None else f"{self.channels}, stride={self.stride}"


def is_count(value: Any) -> bool:
    """Whether a value is a whole number ≥ 1.

    Example:
        >>> is_count(2), is_count(0), is_count(2.0), is_count(True)
        (True, False, False, False)
    """
    return is_integer(value) and int(value) >= 1
