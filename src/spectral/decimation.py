"""One resolution-reducing operator call, and its dense map: what it would output with stride 1.

Operators are read at the level below autograd, where a convolution is one operator however it was written:
as a module, as a functional, with "same" padding computed at run time, or with weights made on the fly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
aten = torch.ops.aten


@dataclass(frozen=True)
class Geometry:
    """The numbers of a resolution-reducing operator; all that a site needs to know of it without any data.

    ``kind`` is conv, max_pool, avg_pool, global_pool, slice or resize; a site may refine it. Where ``reason``
    is set there is no dense map.
    """

    kind: str
    stride: Pair
    kernel: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    phase: Pair = (0, 0)
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

    def dense(self, output_size: Pair, chunk: slice = slice(None)) -> Tensor:
        """Compute the dense map for a part of the batch, such that dense[φ::s][:n] is the output."""
        x, g = self.input[chunk], self.geometry
        if g.kind in ("slice", "resize"):
            return x
        if g.kind == "conv":
            assert self.weight is not None
            return torch.conv2d(x, self.weight, self.bias, (1, 1), g.padding, g.dilation, g.groups)
        extension = self._ceil_extension(x, output_size)
        if g.kind == "max_pool":
            (p_h, p_w), (e_h, e_w) = g.padding, extension
            x = F.pad(x, (p_w, p_w + e_w, p_h, p_h + e_h), value=-torch.inf)
            return F.max_pool2d(x, g.kernel, 1, 0, g.dilation)
        if extension == (0, 0) and not g.adaptive:
            return F.avg_pool2d(x, g.kernel, 1, g.padding, False, g.count_include_pad, g.divisor)
        # These take a sum and divide it: in half precision the sum would be rounded on its own.
        wide = x.float() if x.element_size() < 4 else x
        return (self._average_adaptive(wide) if g.adaptive else self._average_ragged(wide, extension)).to(
            x.dtype
        )

    def _ceil_extension(self, x: Tensor, output_size: Pair) -> Pair:
        """How far beyond the right padding the windows of a ``ceil_mode`` pool reach."""
        g = self.geometry
        axes = zip(output_size, g.stride, g.dilation, g.kernel, x.shape[-2:], g.padding, strict=True)
        reach = [(n - 1) * s + d * (k - 1) + 1 - extent - 2 * p for n, s, d, k, extent, p in axes]
        return max(0, reach[0]), max(0, reach[1])

    def _average_adaptive(self, x: Tensor) -> Tensor:
        """Average as adaptive pools do: by the rows, then by the columns, which rounds differently."""
        rows, columns = self.geometry.kernel
        return F.avg_pool2d(x, (rows, columns), 1, divisor_override=1) / rows / columns

    def _average_ragged(self, x: Tensor, extension: Pair) -> Tensor:
        """Average with ``ceil_mode``: samples beyond the padding count in neither the sum nor the divisor."""
        g = self.geometry
        (p_h, p_w), (e_h, e_w) = g.padding, extension
        pad = (p_w, p_w + e_w, p_h, p_h + e_h)
        total = F.avg_pool2d(F.pad(x, pad), g.kernel, 1, divisor_override=1)
        if g.divisor is not None:
            return total / g.divisor
        ones = torch.ones_like(x[:1, :1])
        if g.count_include_pad:
            counted = F.pad(F.pad(ones, (p_w, p_w, p_h, p_h), value=1.0), (0, e_w, 0, e_h))
        else:
            counted = F.pad(ones, pad)
        return total / F.avg_pool2d(counted, g.kernel, 1, divisor_override=1)


def parse(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Decimation | None:
    """Read an operator call as a decimation; None if it can't reduce resolution.

    Example:
        >>> op = torch.ops.aten.slice.Tensor
        >>> parse(op, (torch.zeros(1, 1, 8, 8), 2, 0, 8, 2), {}).geometry.stride
        (2, 1)
        >>> parse(torch.ops.aten.relu.default, (torch.zeros(1),), {}) is None
        True
    """
    reader = _READERS.get(func)
    if reader is None:
        return None
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return reader({**defaults, **dict(zip(names, args, strict=False)), **kwargs})


def merge_slices(first: Decimation, second: Decimation) -> Decimation:
    """Join x[:, :, a::s] and [:, :, :, b::t], which Python writes as one indexing and torch as two calls."""
    g, h = first.geometry, second.geometry
    stride = (max(g.stride[0], h.stride[0]), max(g.stride[1], h.stride[1]))
    phase = (max(g.phase[0], h.phase[0]), max(g.phase[1], h.phase[1]))
    return replace(first, geometry=replace(g, stride=stride, phase=phase, axes=g.axes + h.axes))


def as_pair(value: Any) -> Pair:
    """Return what torch accepts as one number or two as (rows, columns).

    Example:
        >>> as_pair(2), as_pair([3])
        ((2, 2), (3, 3))
    """
    values = (value,) if isinstance(value, int) else tuple(value)
    return (int(values[0]), int(values[-1]))


def _read_convolution(a: dict[str, Any]) -> Decimation | None:
    x, stride = a["input"], a["stride"]
    if a.get("transposed") or a["weight"].ndim != 4 or max(as_pair(stride)) < 2:
        return None
    kernel, dilation, padding = a["weight"].shape[-2:], as_pair(a["dilation"]), a["padding"]
    if isinstance(padding, str):  # undecomposed conv2d; "same" isn't allowed with a stride
        padding = (0, 0)
    geometry = Geometry(
        "conv", as_pair(stride), as_pair(kernel), as_pair(padding), dilation, groups=int(a["groups"])
    )
    return Decimation(geometry, _batched(x), a["weight"], a["bias"])


def _read_pool(kind: str) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        kernel = as_pair(a["kernel_size"])
        stride = as_pair(a["stride"]) if a["stride"] else kernel
        padding = as_pair(a["padding"])
        if max(stride) < 2:
            return None
        extent = as_pair(a["self"].shape[-2:])
        whole = kernel[0] >= extent[0] and kernel[1] >= extent[1] and padding == (0, 0)
        geometry = Geometry(
            "global_pool" if whole else kind, stride, kernel, padding, as_pair(a.get("dilation", 1)),
            ceil_mode=a["ceil_mode"], count_include_pad=a.get("count_include_pad", True),
            divisor=a.get("divisor_override"),
        )  # fmt: skip
        return Decimation(geometry, _batched(a["self"]))

    return read


def _read_adaptive(kind: str) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x, size = _batched(a["self"]), as_pair(a["output_size"])
        extent = as_pair(x.shape[-2:])
        if size in ((1, 1), extent):  # to 1×1, autograd's level shows a plain mean: neither level counts it
            return None
        if extent[0] % size[0] or extent[1] % size[1]:
            reason = f"adaptive pool from {_by(extent)} to {_by(size)}: its windows are unequal"
            return Decimation(Geometry(kind, (0, 0), reason=reason), x)
        window = (extent[0] // size[0], extent[1] // size[1])
        return Decimation(Geometry(kind, window, window, adaptive=kind == "avg_pool"), x)

    return read


def _read_slice(a: dict[str, Any]) -> Decimation | None:
    x, axis, step = a["self"], a["dim"], a["step"]
    if step < 2 or x.ndim < 2 or not x.is_floating_point():
        return None
    start = a["start"] or 0
    start = max(start + x.shape[axis], 0) if start < 0 else start
    axis %= x.ndim
    rows = axis == x.ndim - 2
    geometry = Geometry(
        "slice", (step, 1) if rows else (1, step), phase=(start, 0) if rows else (0, start), axes=(axis,)
    )
    return Decimation(geometry, x)


def _read_resize(rule: str) -> Callable[[dict[str, Any]], Decimation | None]:
    def read(a: dict[str, Any]) -> Decimation | None:
        x = a.get("self", a.get("input"))
        assert isinstance(x, Tensor)
        extent = as_pair(x.shape[-2:])
        factors: Sequence[float | None] = a.get("scale_factors") or (a.get("scales_h"), a.get("scales_w"))
        if a.get("output_size") is not None:
            size = as_pair(a["output_size"])
        else:
            size = (int(extent[0] * (factors[0] or 1)), int(extent[1] * (factors[-1] or 1)))
        if size[0] >= extent[0] and size[1] >= extent[1]:
            return None
        stride = (extent[0] // max(size[0], 1), extent[1] // max(size[1], 1))
        # A factor that was given is the one that is used, in single precision, whatever the sizes say.
        given = [torch.tensor(1 / f).item() if f else s for f, s in zip(factors, stride, strict=True)]
        exact = (stride[0] * size[0], stride[1] * size[1]) == extent and given == list(stride)
        if rule == "nearest" and exact:
            return Decimation(Geometry("resize", stride), x)
        if rule == "nearest-exact" and exact:
            return Decimation(Geometry("resize", stride, phase=(stride[0] // 2, stride[1] // 2)), x)
        why = "filtered resizing" if exact else "a factor that is no integer"
        reason = f"{rule} resize {_by(extent)} to {_by(size)}: {why}"
        return Decimation(Geometry("resize", (0, 0), reason=reason), x)

    return read


def _batched(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x[None]


def _by(size: Pair) -> str:
    return f"{size[0]}×{size[1]}"


# Both levels are listed: inference mode shows operators that autograd's mode decomposes.
_READERS: dict[Any, Callable[[dict[str, Any]], Decimation | None]] = {
    aten.convolution.default: _read_convolution,
    aten.conv2d.default: _read_convolution,
    aten.conv2d.padding: _read_convolution,
    aten.max_pool2d_with_indices.default: _read_pool("max_pool"),
    aten.max_pool2d.default: _read_pool("max_pool"),
    aten.avg_pool2d.default: _read_pool("avg_pool"),
    aten._adaptive_avg_pool2d.default: _read_adaptive("avg_pool"),
    aten.adaptive_avg_pool2d.default: _read_adaptive("avg_pool"),
    aten.adaptive_max_pool2d.default: _read_adaptive("max_pool"),
    aten.slice.Tensor: _read_slice,
    aten.upsample_nearest2d.default: _read_resize("nearest"),
    aten.upsample_nearest2d.vec: _read_resize("nearest"),
    aten._upsample_nearest_exact2d.default: _read_resize("nearest-exact"),
    aten._upsample_nearest_exact2d.vec: _read_resize("nearest-exact"),
    aten.upsample_bilinear2d.default: _read_resize("bilinear"),
    aten.upsample_bilinear2d.vec: _read_resize("bilinear"),
    aten._upsample_bilinear2d_aa.default: _read_resize("antialiased bilinear"),
    aten._upsample_bilinear2d_aa.vec: _read_resize("antialiased bilinear"),
    aten.upsample_bicubic2d.default: _read_resize("bicubic"),
    aten.upsample_bicubic2d.vec: _read_resize("bicubic"),
}
