"""One resolution-reducing operator call, and its dense map: what it would output with stride 1.

Operators are read at the level below autograd, where a convolution is one operator however it was written:
as a module, as a functional, with "same" padding computed at run time, or with weights made on the fly.
Signals are seen as maps of one row; videos have three axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral.errors import SpectralError

Size = tuple[int, ...]
aten = torch.ops.aten
ALL = slice(None)


@dataclass(frozen=True)
class Geometry:
    """The numbers of a resolution-reducing operator; all that a site needs to know of it without any data.

    ``kind`` is conv, max_pool, avg_pool, global_pool, slice, resize, unfold, space_to_depth, window_max,
    window_mean, matmul_pool, roi_pool or grid_sample; a site may refine it. Where ``reason`` is set there is
    no dense map. Tuples have one entry per spatial axis, two or three (of a slice: one per sliced axis, and
    ``axes`` tells which).
    """

    kind: str
    stride: Size
    kernel: Size = (1, 1)
    padding: Size = (0, 0)
    dilation: Size = (1, 1)
    phase: Size = (0, 0)
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    adaptive: bool = False
    axes: tuple[int, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Decimation:
    """A call that keeps fewer samples than its dense map has, and what it takes to recompute that map."""

    geometry: Geometry
    input: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    layer: Callable[[Tensor], Tensor] | None = None  # dense map of a layer that knows its own

    @property
    def channels(self) -> int:
        """Channels of the output (and of the dense map)."""
        g = self.geometry
        if self.weight is not None:
            return self.weight.shape[0]
        return self.input.shape[1] * (math.prod(g.kernel) if g.kind == "unfold" else 1)

    @property
    def output_size(self) -> Size:
        """Samples of the output per axis, as the operator's arguments make them."""
        g = self.geometry
        sizes = []
        axes = zip(self.input.shape[2:], g.kernel, g.stride, g.padding, g.dilation, strict=True)
        for extent, kernel, stride, padding, dilation in axes:
            room = extent + 2 * padding - dilation * (kernel - 1) - 1
            n = (math.ceil if g.ceil_mode else math.floor)(room / stride) + 1
            # A window that starts in the padding on the right is left out.
            sizes.append(n - (g.ceil_mode and (n - 1) * stride >= extent + padding))
        return tuple(sizes)

    def split_channels(self, most: int) -> Iterator[slice]:
        """Yield runs of at most ``most`` output channels (or the smallest that can be computed alone)."""
        g = self.geometry
        unit = 1
        if self.layer is not None:  # it may look at all channels
            most = self.channels
        if g.kind == "conv" and g.groups > 1:
            unit = self.channels // g.groups
        elif g.kind == "unfold":
            unit = math.prod(g.kernel)
        step = max(1, most // unit) * unit
        for start in range(0, self.channels, step):
            yield slice(start, min(start + step, self.channels))

    def dense(self, output_size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Compute the dense map, or a part of it, such that dense[φ::s][:n] is the output.

        Args:
            output_size: samples of the output per axis; tells how far ``ceil_mode`` reached.
            images: which part of the batch.
            channels: which output channels, as `split_channels` gives them.
        """
        g = self.geometry
        if g.kind == "conv":
            return self._convolve(images, channels)
        if self.layer is not None:
            return self.layer(self.input)[images, channels]
        start, stop, _ = channels.indices(self.channels)
        unit = math.prod(g.kernel) if g.kind == "unfold" else 1
        x = self.input[images, start // unit : stop // unit]
        if g.kind == "slice":
            return x
        if g.kind == "resize":
            return _average_neighbours(x, g.kernel)
        if g.kind == "unfold":
            columns = F.unfold(x, g.kernel, g.dilation, g.padding, 1)
            sizes = zip(x.shape[-2:], g.padding, g.dilation, g.kernel, strict=True)
            return columns.reshape(*columns.shape[:2], *(n + 2 * p - d * (k - 1) for n, p, d, k in sizes))
        if g.kind in ("window_max", "window_mean"):
            return _reduce_windows(x, g)
        extension = self._ceil_extension(x, output_size)
        if g.kind == "max_pool":
            ends = [p + e for p, e in zip(g.padding, extension, strict=True)]
            return _max_pool(_pad(x, g.padding, ends, -torch.inf), g.kernel, g.dilation)
        if not any(extension) and not g.adaptive:
            return _avg_pool(x, g.kernel, g.padding, g.count_include_pad, g.divisor)
        # These take a sum and divide it: in half precision the sum would be rounded on its own.
        wide = x.float() if x.element_size() < 4 else x
        return (self._average_adaptive(wide) if g.adaptive else self._average_ragged(wide, extension)).to(
            x.dtype
        )

    def arrange(self, output: Tensor) -> Tensor:
        """Return the operator's output as a batch of maps."""
        if self.geometry.kind in ("unfold", "space_to_depth") and output.ndim < 4:
            output = output if output.ndim == 3 else output[None]
            return output.reshape(*output.shape[:2], *self.output_size)
        if output.ndim == self.input.ndim:
            return output
        if self.input.ndim == 5:
            return output[None]
        # Either one image without a batch axis or signals, which have no rows.
        return output.reshape(len(self.input), self.channels, -1, output.shape[-1])

    def _convolve(self, images: slice, channels: slice) -> Tensor:
        g, weight, bias, x = self.geometry, self.weight, self.bias, self.input[images]
        assert weight is not None
        groups = g.groups
        start, stop, _ = channels.indices(len(weight))
        if (start, stop) != (0, len(weight)):
            weight, bias = weight[start:stop], bias[start:stop] if bias is not None else None
            if groups > 1:
                each = self.channels // groups
                groups = (stop - start) // each
                entering = weight.shape[1]
                x = x[:, start // each * entering : (start // each + groups) * entering]
        # Not torch.convolution, which autocast doesn't know.
        convolve: Callable[..., Tensor] = torch.conv2d if len(g.kernel) == 2 else torch.conv3d
        return convolve(x, weight, bias, 1, g.padding, g.dilation, groups)

    def _ceil_extension(self, x: Tensor, output_size: Size) -> Size:
        """How far beyond the right padding the windows of a ``ceil_mode`` pool reach."""
        g = self.geometry
        axes = zip(output_size, g.stride, g.dilation, g.kernel, x.shape[2:], g.padding, strict=True)
        return tuple(max(0, (n - 1) * s + d * (k - 1) + 1 - extent - 2 * p) for n, s, d, k, extent, p in axes)

    def _average_adaptive(self, x: Tensor) -> Tensor:
        """Average as adaptive pools do: axis by axis, which rounds differently."""
        total = _avg_pool(x, self.geometry.kernel, None, True, 1)
        for extent in self.geometry.kernel:
            total = total / extent
        return total

    def _average_ragged(self, x: Tensor, extension: Size) -> Tensor:
        """Average with ``ceil_mode``: samples beyond the padding count in neither the sum nor the divisor."""
        g = self.geometry
        ends = [p + e for p, e in zip(g.padding, extension, strict=True)]
        total = _avg_pool(_pad(x, g.padding, ends), g.kernel, None, True, 1)
        if g.divisor is not None:
            return total / g.divisor
        ones = torch.ones_like(x[:1, :1])
        if g.count_include_pad:
            counted = _pad(_pad(ones, g.padding, g.padding, 1.0), (0,) * len(ends), extension)
        else:
            counted = _pad(ones, g.padding, ends)
        return total / _avg_pool(counted, g.kernel, None, True, 1)


def parse(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Decimation | None:
    """Read an operator call as a decimation; None if it can't reduce resolution.

    Raises:
        SpectralError: if the operator is one on quantised integers, where no dense map can be computed.

    Example:
        >>> op = torch.ops.aten.max_pool2d.default
        >>> parse(op, (torch.zeros(1, 1, 8, 8), 2), {}).geometry.stride
        (2, 2)
        >>> parse(torch.ops.aten.relu.default, (torch.zeros(1),), {}) is None
        True
    """
    reader = _READERS.get(func)
    if reader is None:
        reader = _find_foreign(func)
        if reader is None:
            return None
    schema = func._schema
    names = [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return reader({**defaults, **dict(zip(names, args, strict=False)), **kwargs})


def merge_slices(first: Decimation, second: Decimation) -> Decimation:
    """Join x[:, :, a::s] and [:, :, :, b::t], which Python writes as one indexing and torch as two calls."""
    g, h = first.geometry, second.geometry
    geometry = replace(g, stride=g.stride + h.stride, phase=g.phase + h.phase, axes=g.axes + h.axes)
    return replace(first, geometry=geometry)


def _find_foreign(func: Any) -> Callable[[dict[str, Any]], Decimation | None] | None:
    """Find a reader for an operator of another library, which exists only once that library is imported."""
    namespace, _, name = str(func._schema.name).partition("::")
    if namespace == "quantized" and name.startswith("conv"):
        raise SpectralError(
            "a quantised model computes on integers, which have no spectrum; pass the float model it was "
            "made from"
        )
    return _FOREIGN.get(name) if namespace == "torchvision" else None


def _read_convolution(a: dict[str, Any]) -> Decimation | None:
    x, weight = a["input"], a["weight"]
    rank = weight.ndim - 2
    stride = _as_tuple(a["stride"], rank)
    if a.get("transposed") or rank not in (1, 2, 3) or max(stride) < 2:
        return None
    kernel, dilation = tuple(weight.shape[2:]), _as_tuple(a["dilation"], rank)
    # undecomposed conv2d; "same" isn't allowed with a stride
    padding = (0,) * rank if isinstance(a["padding"], str) else _as_tuple(a["padding"], rank)
    geometry = Geometry("conv", stride, kernel, padding, dilation, (0,) * rank, groups=int(a["groups"]))
    return _lift(Decimation(geometry, _batched(x, rank), weight, a["bias"]))


def _read_pool(kind: str, rank: int) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        kernel = _as_tuple(a["kernel_size"], rank)
        stride = _as_tuple(a["stride"], rank) if a["stride"] else kernel
        padding = _as_tuple(a["padding"], rank)
        if max(stride) < 2:
            return None
        x = _batched(a["self"], rank)
        whole = all(k >= n for k, n in zip(kernel, x.shape[2:], strict=True)) and not any(padding)
        geometry = Geometry(
            "global_pool" if whole else kind, stride, kernel, padding, _as_tuple(a.get("dilation", 1), rank),
            (0,) * rank, ceil_mode=a["ceil_mode"], count_include_pad=a.get("count_include_pad", True),
            divisor=a.get("divisor_override"),
        )  # fmt: skip
        return _lift(Decimation(geometry, x))

    return read


def _read_adaptive(kind: str, rank: int) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x, size = _batched(a["self"], rank), _as_tuple(a["output_size"], rank)
        extent = tuple(x.shape[2:])
        if size == (1,) * rank:  # autograd's level shows a plain mean: neither level counts it
            return None
        if all(n >= m for n, m in zip(size, extent, strict=True)):
            return None
        zeros, ones = (0,) * rank, (1,) * rank
        if any(m % n for n, m in zip(size, extent, strict=True)):
            reason = f"adaptive pool from {_by(extent)} to {_by(size)}: its windows are unequal"
            return _lift(Decimation(Geometry(kind, zeros, ones, zeros, ones, zeros, reason=reason), x))
        window = tuple(m // n for n, m in zip(size, extent, strict=True))
        geometry = Geometry(kind, window, window, zeros, ones, zeros, adaptive=kind == "avg_pool")
        return _lift(Decimation(geometry, x))

    return read


def _read_slice(a: dict[str, Any]) -> Decimation | None:
    x, axis, step = a["self"], a["dim"], a["step"]
    if step < 2 or x.ndim < 2 or not x.is_floating_point():
        return None
    start = a["start"] or 0
    start = max(start + x.shape[axis], 0) if start < 0 else start
    return Decimation(Geometry("slice", (step,), phase=(start,), axes=(axis % x.ndim,)), x)


def _read_resize(rule: str, rank: int) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x = a.get("self", a.get("input"))
        assert isinstance(x, Tensor)
        extent = tuple(x.shape[2:])
        given = a.get("scale_factors") or [a.get(key) for key in _SCALES[rank]]
        factors: list[float | None] = list(given)
        if a.get("output_size") is not None:
            size = _as_tuple(a["output_size"], rank)
        else:
            size = tuple(int(n * (f or 1)) for n, f in zip(extent, factors, strict=True))
        if all(n >= m for n, m in zip(size, extent, strict=True)):
            return None
        stride = tuple(max(m // max(n, 1), 1) for n, m in zip(size, extent, strict=True))
        # A factor that was given is the one that is used, in single precision, whatever the sizes say.
        used = [torch.tensor(1 / f).item() if f else s for f, s in zip(factors, stride, strict=True)]
        exact = all(s * n == m for s, n, m in zip(stride, size, extent, strict=True)) and used == list(stride)
        geometry = _place_resize(rule, stride, bool(a.get("align_corners"))) if exact else None
        if geometry is None:
            why = "filtered resizing" if exact else "a factor that is no integer"
            why = "its corners are aligned, the factor is no integer" if a.get("align_corners") else why
            reason = f"{rule} resize {_by(extent)} to {_by(size)}: {why}"
            geometry = Geometry("resize", (0,) * rank, (1,) * rank, phase=(0,) * rank, reason=reason)
        return _lift(Decimation(geometry, x))

    return read


def _place_resize(rule: str, stride: Size, align_corners: bool) -> Geometry | None:
    """Find where the samples of a resize by whole factors lie in its input; None if it has no dense map."""
    plain = Geometry("resize", stride, (1,) * len(stride), phase=(0,) * len(stride))
    if rule == "nearest":
        return plain
    if rule == "nearest-exact":
        return replace(plain, phase=tuple(s // 2 for s in stride))
    if rule != "linear" or align_corners:
        return None
    # The middle of an odd block is a sample, that of an even block lies between the inner two.
    return replace(plain, kernel=tuple(2 - s % 2 for s in stride), phase=tuple((s - 1) // 2 for s in stride))


def _read_unfold(a: dict[str, Any]) -> Decimation | None:
    stride = _as_tuple(a["stride"], 2)
    if max(stride) < 2:
        return None
    x = _batched(a["self"], 2)
    g = Geometry("unfold", stride, _as_tuple(a["kernel_size"], 2), _as_tuple(a["padding"], 2),
                 _as_tuple(a["dilation"], 2))  # fmt: skip
    if max(Decimation(g, x).output_size) == 1:
        return None
    if g.kernel == g.stride and g.dilation == (1, 1):
        g = replace(g, kind="space_to_depth", reason=LOSSLESS)
    return Decimation(g, x)


def _read_pixel_unshuffle(a: dict[str, Any]) -> Decimation | None:
    factor = (int(a["downscale_factor"]),) * 2
    return Decimation(Geometry("space_to_depth", factor, factor, reason=LOSSLESS), _batched(a["self"], 2))


def _read_sampling(kind: str, reason: str) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x, grid = a["input"], a.get("grid")
        if grid is not None and grid[..., 0][0].numel() >= x[0, 0].numel():
            return None
        return Decimation(Geometry(kind, (0, 0), reason=reason), x)

    return read


def _read_reduction(kind: str) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x, dims = a["self"], a["dim"]
        if x.ndim < 3 or not x.is_floating_point():
            return None
        axes = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        return Decimation(Geometry(kind, (0, 0), axes=tuple(axis % x.ndim for axis in axes)), x)

    return read


def _read_deformable(a: dict[str, Any]) -> Decimation | None:
    stride = (int(a["stride_h"]), int(a["stride_w"]))
    if max(stride) < 2:
        return None
    reason = "a deformable convolution: its offsets exist only at the samples that are kept"
    return Decimation(Geometry("conv", stride, tuple(a["weight"].shape[2:]), reason=reason), a["input"])


def _lift(decimation: Decimation) -> Decimation:
    """See a signal as a map of one row."""
    g, weight = decimation.geometry, decimation.weight
    if len(g.stride) > 1:
        return decimation
    ones, zeros = (1,), (0,)
    stride = (ones if g.stride != (0,) else zeros) + g.stride
    geometry = replace(g, stride=stride, kernel=ones + g.kernel, padding=zeros + g.padding[-1:],
                       dilation=ones + g.dilation[-1:], phase=zeros + g.phase)  # fmt: skip
    return Decimation(
        geometry, decimation.input.unsqueeze(-2), weight.unsqueeze(-2) if weight is not None else None,
        decimation.bias,
    )  # fmt: skip


def _pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(before) and not any(after):
        return x
    pairs = [amount for b, a in zip(reversed(before), reversed(after), strict=True) for amount in (b, a)]
    return F.pad(x, pairs, value=value)


def _max_pool(x: Tensor, kernel: Size, dilation: Size) -> Tensor:
    pool = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    return pool(x, kernel, 1, 0, dilation)


def _avg_pool(x: Tensor, kernel: Size, padding: Size | None, include: bool, divisor: int | None) -> Tensor:
    pool: Callable[..., Tensor] = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, kernel, 1, padding or 0, False, include, divisor)


def _average_neighbours(x: Tensor, kernel: Size) -> Tensor:
    """Mean of each sample and the next where the kernel has two.

    Equal to what a linear resize gives to rounding: torch has several orders, by size and threads.
    """
    if max(kernel) == 1:
        return x
    wide = x.float() if x.element_size() < 4 else x
    for axis, size in reversed(list(enumerate(kernel, start=2))):
        if size == 2:
            n = wide.shape[axis] - 1
            wide = 0.5 * wide.narrow(axis, 0, n) + 0.5 * wide.narrow(axis, 1, n)
    return wide.to(x.dtype)


def _reduce_windows(x: Tensor, g: Geometry) -> Tensor:
    """Reduce the window that starts at each sample, one of its samples after the other.

    A mean over one axis that holds the windows adds up in this order; over several axes torch's order
    depends on the memory layout, and the last bits with it.
    """
    wide = x.float() if x.element_size() < 4 else x
    total: Tensor | None = None
    for offset in product(*map(range, g.kernel)):
        part = wide
        for axis, (start, size) in enumerate(zip(offset, g.kernel, strict=True), start=2):
            part = part.narrow(axis, start, x.shape[axis] - size + 1)
        if total is None:
            total = part
        else:
            total = torch.maximum(total, part) if g.kind == "window_max" else total + part
    assert total is not None
    return (total if g.kind == "window_max" else total / math.prod(g.kernel)).to(x.dtype)


def _as_tuple(value: Any, rank: int) -> Size:
    """Return what torch accepts as one number or several as one per axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return tuple(int(v) for v in (values if len(values) == rank else values[:1] * rank))


def _batched(x: Tensor, rank: int) -> Tensor:
    return x if x.ndim == rank + 2 else x[None]


def _by(size: Size) -> str:
    return "×".join(map(str, size))


LOSSLESS = "lossless: every sample is kept, as a channel"
_SCALES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}

# Both levels are listed: inference mode shows operators that autograd's mode decomposes.
_READERS: dict[Any, Callable[[dict[str, Any]], Decimation | None]] = {
    aten.slice.Tensor: _read_slice,
    aten.im2col.default: _read_unfold,
    aten.pixel_unshuffle.default: _read_pixel_unshuffle,
    aten.mean.dim: _read_reduction("window_mean"),
    aten.amax.default: _read_reduction("window_max"),
    aten.max.dim: _read_reduction("window_max"),
}


def _register(reader: Callable[[dict[str, Any]], Decimation | None], *names: str) -> None:
    for name in names:
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            if overload in ("default", "padding", "vec"):
                _READERS[getattr(packet, overload)] = reader


_register(_read_convolution, "convolution", "conv1d", "conv2d", "conv3d")
for _rank in (1, 2, 3):
    _n = f"{_rank}d"
    _register(_read_pool("max_pool", _rank), f"max_pool{_n}", f"max_pool{_n}_with_indices")
    _register(_read_pool("avg_pool", _rank), f"avg_pool{_n}")
    _register(_read_adaptive("avg_pool", _rank), f"adaptive_avg_pool{_n}", f"_adaptive_avg_pool{_n}")
    _register(_read_adaptive("max_pool", _rank), f"adaptive_max_pool{_n}")
    _register(_read_resize("nearest", _rank), f"upsample_nearest{_n}")
    _register(_read_resize("nearest-exact", _rank), f"_upsample_nearest_exact{_n}")
for _rank, _name in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    _register(_read_resize("linear", _rank), f"upsample_{_name}")
_register(_read_resize("antialiased bilinear", 2), "_upsample_bilinear2d_aa")
_register(_read_resize("bicubic", 2), "upsample_bicubic2d")
_register(_read_resize("antialiased bicubic", 2), "_upsample_bicubic2d_aa")

_COMPUTED = "sampled at computed positions, which are no lattice"
_register(_read_sampling("grid_sample", _COMPUTED), "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")

_BOXES = "regions of interest: each box is resampled by its own factor"
_FOREIGN = {
    "roi_align": _read_sampling("roi_pool", _BOXES),
    "roi_pool": _read_sampling("roi_pool", _BOXES),
    "ps_roi_align": _read_sampling("roi_pool", _BOXES),
    "ps_roi_pool": _read_sampling("roi_pool", _BOXES),
    "deform_conv2d": _read_deformable,
}
