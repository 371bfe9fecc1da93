"""Convolutions, pools, pads and slices as ideal as they are asked to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from spectral.causes.cause import Source
from spectral.causes.lattices import Sampling, pass_low
from spectral.causes.watching import CONVOLUTIONS, MAXIMA, FunctionCall, tensors_of
from spectral.layers.filters import extend, pad_map
from spectral.numerics.resampling import interpolate, low_pass
from spectral.operators import find_function, parse
from spectral.tracing.tensors import TensorTable

FINE_BYTES = 2**22  # of a finer lattice that is held at once

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAXIMISE: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups",
                       "dilation"),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                 "divisor_override"),
    "pad": ("input", "pad", "mode", "value"),
}  # fmt: skip


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pool along one axis.

    Attributes:
        size: samples that it has.
        dilation: from one of them to the next.
        stride: from one window to the next.
        padding: how many samples lie before the map.
    """

    size: int
    dilation: int
    stride: int
    padding: int

    @property
    def reach(self) -> int:
        """From its first sample to its last."""
        return self.dilation * (self.size - 1)


@dataclass
class Extensions:
    """Which maps of a pass are circular extensions, of which maps, and by how much.

    An operator that slides over one of them slides over a periodic map.
    """

    known: TensorTable[Any] = field(default_factory=TensorTable)

    def note(self, padded: Tensor, base: Tensor, pads: Mapping[int, tuple[int, int]]) -> None:
        """Keep what a pad did, by axis."""
        self.known[padded] = (base, dict(pads))

    def find(self, x: Tensor) -> tuple[Tensor, dict[int, tuple[int, int]]]:
        """Return the periodic map behind one, and the pads; the map itself where it is none."""
        found: tuple[Tensor, dict[int, tuple[int, int]]] = self.known.get(x, (x, {}))
        return found

    def carry(self, call: FunctionCall, args: Any, kwargs: Any, run: Callable[[Any, Any], Any]) -> Any:
        """Run a function of each place on the periodic maps behind what was padded, and pad what it returns.

        Args:
            call: as it was planned.
            args: its positional arguments.
            kwargs: its named ones.
            run: runs it.
        """
        given = tensors_of((args, kwargs))
        pads: dict[str, tuple[int, int]] = {}
        for x, own in zip(given, call.entering, strict=True):
            found = self.find(x)[1]
            pads |= {kind: found[axis] for kind, axis in (own or {}).items() if axis in found}
        if not pads:
            return run(args, kwargs)

        def reduce(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            base = self.find(x)[0]
            return base.clone() if call.writes else base

        out = run(*tree_map(reduce, (args, kwargs)))
        made = [out] if isinstance(out, Tensor) else list(out)
        extended = []
        for y, own in zip(made, call.leaving, strict=True):
            around = {axis: pads[kind] for kind, axis in (own or {}).items() if kind in pads}
            whole = wrap_around(y, around)
            if call.written is not None:
                whole = given[call.written].copy_(whole)
            self.note(whole, y, around)
            extended.append(whole)
        return extended[0] if isinstance(out, Tensor) else type_like(call.returned, extended)


@dataclass(frozen=True)
class Task:
    """How one call of an operator is to be made ideal.

    Attributes:
        func: the torch function.
        sources: what of it is made ideal.
        axes: which axes of its input are image axes.
        counts: extents of its output along the axes that it slides over.
        factor: how much finer the lattice is on which a maximum is taken.
    """

    func: Callable[..., Any]
    sources: frozenset[Source]
    axes: tuple[int, ...]
    counts: tuple[int, ...]
    factor: int


def name_parameters(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a convolution, transposed or not, a pool or a pad by their names."""
    return {**dict(zip(_SIGNATURES[kind], args, strict=False)), **kwargs}


def read_windows(name: str, a: Mapping[str, Any]) -> list[Window]:
    """Read the window of a convolution or pool along each axis that it slides over.

    Example:
        >>> read_windows("max_pool2d", {"input": torch.zeros(1, 1, 8, 8), "kernel_size": 3, "stride": 2})[0]
        Window(size=3, dilation=1, stride=2, padding=0)
    """
    rank = int(name[-2])
    is_pool = name not in CONVOLUTIONS
    kernel = _each(a["kernel_size"], rank) if is_pool else tuple(a["weight"].shape[2:])
    stride = _each(a.get("stride") or (kernel if is_pool else 1), rank)
    dilation = _each(a.get("dilation") or 1, rank)
    padding = a.get("padding") or 0
    if isinstance(padding, str):
        pads = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    else:
        pads = list(_each(padding, rank))
    return [Window(*own) for own in zip(kernel, dilation, stride, pads, strict=True)]


def as_convolution(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Tensor], tuple[Any, ...]] | None:
    """Write a transposed convolution of stride 1 as the convolution that it is: a function and its arguments.

    None where it is none that pads: one that crops, or gives further samples at its end.

    Example:
        >>> x, w = torch.randn(1, 2, 5), torch.randn(2, 3, 3)
        >>> run, given = as_convolution("conv_transpose1d", (x, w), {"padding": 1})
        >>> torch.allclose(run(*given), F.conv_transpose1d(x, w, padding=1), atol=1e-6)
        True
    """
    a = name_parameters("conv_transpose", args, kwargs)
    rank, weight, groups = int(name[-2]), a["weight"], a.get("groups", 1)
    dilation = _each(a.get("dilation", 1), rank)
    cropped = _each(a.get("padding", 0), rank)
    padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], cropped, strict=True))
    if min(padding) < 0 or any(_each(a.get("output_padding", 0), rank)):
        return None
    own = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip([*range(2, 2 + rank)])
    return _CONVOLVE[rank], (a["input"], own, a.get("bias"), 1, padding, dilation, groups)


def slide_ideally(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], known: Extensions) -> Any:
    """Run a convolution or pool with borders, decimation and maximum made ideal as the task asks for it.

    Borders: the dense map has the periodic input's extent. Where the stride doesn't divide that, no lattice
    of this stride is periodic: the samples that are kept then lie evenly on the period.
    """
    name = task.func.__name__
    kind = name[:-2].rstrip("_")
    a = name_parameters(kind, args, kwargs)
    windows = read_windows(name, a)
    base, pads = known.find(a["input"])
    rank = len(windows)
    first = a["input"].ndim - rank
    axes = dict(zip(range(first, first + rank), windows, strict=True))
    counts = dict(zip(axes, task.counts, strict=True))
    even = "border" in task.sources
    # A map that was padded circularly is periodic anyhow, where one period has all the samples that are kept.
    circular = even or (
        bool(pads) and all(counts[axis] == -(-base.shape[axis] // w.stride) for axis, w in axes.items())
    )
    if circular:
        maps, befores = base, {axis: w.padding + pads.get(axis, (0, 0))[0] for axis, w in axes.items()}
    else:
        maps, befores = a["input"], {axis: w.padding for axis, w in axes.items()}
    maximum = name in MAXIMA and "nonlinearity" in task.sources
    low_pass = "decimation" in task.sources
    sampling = {
        axis: Sampling(counts[axis], w.stride, 0, even, low_pass) for axis, w in axes.items()
    }  # fmt: skip
    if low_pass and not any(w.reach or befores[axis] for axis, w in axes.items()):
        # Windows of one place: those of the samples that are kept are all that it takes.
        for axis, own in sampling.items():
            maps = own.take(maps, axis)
        return _run(name, a, maps, axes, [1] * rank)
    if maximum:
        dense = _maximise_finely(maps, axes, befores, circular, task.factor, counts)
    elif circular:
        fits = not any(s.moves(maps.shape[axis]) for axis, s in sampling.items())
        if fits and low_pass and name not in MAXIMA:
            # A low-pass and a periodic convolution commute: what is low-passed first needs no dense map.
            for axis, w in axes.items():
                maps = pass_low(maps, axis, w.stride)
        maps = wrap_around(maps, {axis: (befores[axis], w.reach - befores[axis]) for axis, w in axes.items()})
        if fits and (name not in MAXIMA or not low_pass):
            return _run(name, a, maps, axes, [w.stride for w in windows])
        dense = _run(name, a, maps, axes, [1] * rank)
    elif not low_pass:
        return task.func(*args, **kwargs)
    else:
        dense = _run_densely(task.func, args, kwargs)
    for axis, own in sampling.items():
        dense = own.take(dense, axis)
    return dense


def pad_circularly(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], known: Extensions) -> Any:
    """Pad the image axes circularly, and any other axis as it was asked for; a negative pad crops."""
    a = name_parameters("pad", args, kwargs)
    x, ends = a["input"], list(a["pad"])
    pads = {x.ndim - 1 - i: (ends[2 * i], ends[2 * i + 1]) for i in range(len(ends) // 2)}
    spatial = set(task.axes)
    rest = [0 if x.ndim - 1 - i // 2 in spatial else n for i, n in enumerate(ends)]
    y = task.func(x, rest, **{key: a[key] for key in ("mode", "value") if key in a}) if any(rest) else x
    base, found = known.find(x) if y is x else (y, {})
    return _extend(base, found, {axis: pads[axis] for axis in sorted(spatial & set(pads))}, known)


def _extend(
    base: Tensor,
    found: Mapping[int, tuple[int, int]],
    pads: Mapping[int, tuple[int, int]],
    known: Extensions,
) -> Tensor:
    """Extend a periodic map circularly by what was added to it before and is added now; or sample a part."""
    total = dict(found)
    for axis, (before, after) in pads.items():
        total[axis] = before + found.get(axis, (0, 0))[0], after + found.get(axis, (0, 0))[1]
    kept = {axis: pad for axis, pad in total.items() if min(pad) >= 0}
    y = base
    for axis, (before, after) in total.items():
        if axis not in kept:
            y = Sampling(base.shape[axis] + before + after, 1, -before, spread=True).take(y, axis)
    whole = wrap_around(y, kept)
    known.note(whole, y, kept)
    return whole


def index_ideally(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], known: Extensions) -> Any:
    """Index a map whose image axes are low-passed before they are sliced, or sampled evenly where cropped.

    Of a map that was padded, a crop takes off of that first, and every s-th sample is one of the periodic map
    behind it.
    """
    x, given = args
    index = list_entries(given, x.ndim)
    size, (base, found) = x.shape, known.find(x)
    pads: dict[int, tuple[int, int]] = {}
    axis = 0
    for position, entry in enumerate(index):
        if entry is None:
            continue
        if axis in task.axes and isinstance(entry, slice):
            extent, around = size[axis], found.get(axis, (0, 0))
            start, stop, step = entry.indices(extent)
            count = len(range(start, stop, step))
            left = start, extent - start - count
            crops = "border" in task.sources
            inside = axis in found and (crops or all(n <= m for n, m in zip(left, around, strict=True)))
            if step == 1 and inside:
                pads[axis] = -left[0], -left[1]
                index[position] = slice(None)
            elif step > 1 or (crops and count < extent):
                if axis in found:  # only a whole period of it has a lattice
                    x = base = base.roll(around[0] - start, axis)
                    found, start = {k: pad for k, pad in found.items() if k != axis}, 0
                sampling = Sampling(count, step, start, crops, "decimation" in task.sources)
                x = base = sampling.take(x, axis)
                index[position] = slice(None)
        axis += 1
    if found:
        x = _extend(base, found, pads, known)
    rest = tuple(index)
    return x if all(isinstance(i, slice) and i == slice(None) for i in rest) else x[rest]


def list_entries(index: Any, rank: int) -> list[Any]:
    """List the entries of an index of a tensor, with a ``:`` for each axis that an ellipsis stands for.

    Example:
        >>> list_entries((..., 0), 3)
        [slice(None, None, None), slice(None, None, None), 0]
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    gap = next((i for i, entry in enumerate(entries) if entry is ...), None)
    if gap is not None:
        new = sum(entry is None for entry in entries)
        entries[gap : gap + 1] = [slice(None)] * (rank + 1 - len(entries) + new)
    return entries


def type_like(kind: type, made: list[Tensor]) -> Any:
    """Return tensors as the function returned them: a list, a tuple, or one whose parts have names."""
    return getattr(kind, "_make", kind)(made)


def wrap_around(x: Tensor, pads: Mapping[int, tuple[int, int]]) -> Tensor:
    """Extend axes of a map circularly, by (before, after) each; what is negative is cut off.

    Example:
        >>> wrap_around(torch.tensor([[1.0, 2.0, 3.0]]), {1: (1, 0)})
        tensor([[3., 1., 2., 3.]])
    """
    grown = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in pads.items()}
    if 3 <= x.ndim <= 5 and min(pads, default=2) >= 2:  # maps as torch pads them: all of their axes at once
        x = pad_map(x, [grown.get(axis, (0, 0)) for axis in range(2, x.ndim)], "circular")
    else:
        for axis, pad in grown.items():
            x = extend(x, axis, *pad, "circular")
    for axis, (before, after) in pads.items():
        if min(before, after) < 0:
            x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    return x


def _run(name: str, a: Mapping[str, Any], x: Tensor, axes: Mapping[int, Window], stride: list[int]) -> Tensor:
    """Run a convolution or pool on an extended map, with no padding of its own."""
    rank = len(stride)
    windows = list(axes.values())
    if name in CONVOLUTIONS:
        dilation = [w.dilation for w in windows]
        return _CONVOLVE[rank](
            x, a["weight"], a.get("bias"), stride, 0, dilation, a.get("groups", 1)
        )  # fmt: skip
    sizes = [w.size for w in windows]
    if name in MAXIMA:
        return _MAXIMISE[rank](x, sizes, stride, 0, [w.dilation for w in windows])
    divisor = a.get("divisor_override")
    return _AVERAGE[rank](x, sizes, stride, **({"divisor_override": divisor} if divisor else {}))


def _run_densely(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Run a convolution or pool as if its stride were 1."""
    given = {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
    x = args[0] if args else kwargs["input"]
    decimation = parse(find_function(func), (x, *args[1:]), given)
    assert decimation is not None
    dense = decimation.dense(decimation.output_size)
    return dense.squeeze(-2) if func.__name__.endswith("1d") else dense


def _maximise_finely(
    x: Tensor,
    axes: Mapping[int, Window],
    befores: Mapping[int, int],
    circular: bool,
    factor: int,
    counts: Mapping[int, int],
) -> Tensor:
    """Take the maximum over windows of the same extent on a finer lattice, and low-pass it back: a dense map.

    In blocks of channels, so that the finer lattice is never held as a whole.
    """
    start = min(axes)
    flat = x.reshape(-1, 1, *x.shape[start:])
    each = max(1, FINE_BYTES // (flat[:1].numel() * flat.element_size() * factor ** len(axes)))
    parts = []
    for block in flat.split(each):
        fine, around, beyond = block, {}, [0] * (2 * len(axes))
        for axis, w in axes.items():
            own = axis - start + 2
            extent = block.shape[own]
            fine = interpolate(fine, own, factor)
            before = befores[axis]
            around[own] = before * factor, (w.reach - before) * factor
            reached = max((counts[axis] - 1) * w.stride + w.reach + 1 - extent - before, before)
            at = 2 * (fine.ndim - 1 - own)
            beyond[at : at + 2] = before * factor, reached * factor
        fine = wrap_around(fine, around) if circular else F.pad(fine, beyond, value=-torch.inf)
        # A window without gaps has all the samples between its ends; one with gaps only its own.
        sizes = [w.reach * factor + 1 if w.dilation == 1 else w.size for w in axes.values()]
        gaps = [1 if w.dilation == 1 else w.dilation * factor for w in axes.values()]
        for i, (size, gap) in enumerate(zip(sizes, gaps, strict=True)):  # one axis after the other: far less
            ones = [1] * len(sizes)
            along, apart = [*ones[:i], size, *ones[i + 1 :]], [*ones[:i], gap, *ones[i + 1 :]]
            fine = _MAXIMISE[len(axes)](fine, along, 1, 0, apart)
        for own in range(2, fine.ndim):
            fine = low_pass(fine, own, factor, 0, factor, fine.shape[own] // factor)
        parts.append(fine)
    dense = torch.cat(parts)
    return dense.reshape(*x.shape[:start], *dense.shape[2:])


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(int(v) for v in (values if len(values) == rank else values[:1] * rank))
