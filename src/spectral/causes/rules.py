"""What torch's operators do to a map's equivariance under shifts: nothing, or why it is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Size, Tensor

from spectral.axes import ATTENTION, IMAGE_AXES, JOINS, PRODUCTS, Call, Labels, find_step, operator_name
from spectral.axes.sums import find_factors
from spectral.numerics.finer import Axes
from spectral.operators import find_sliding, is_pointwise

# Linear, the same at every place; a product is so too where but one factor is a map.
_PLAIN = {
    "add", "sub", "rsub", "neg", "positive", "clone", "_to_copy", "to", "copy", "alias", "detach",
    "lift_fresh", "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand",
    "unsqueeze", "squeeze", "flatten", "unflatten", "contiguous", "split", "split_with_sizes", "unsafe_split",
    "chunk",
    "unbind", "slice", "select", "narrow", "cat", "stack", "sum", "mean", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm", "batch_norm",
    "native_group_norm", "native_dropout", "dropout", "constant_pad_nd", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "index_select", "roll", "new_empty", "empty_like", "zeros_like", "new_zeros", "ones_like", "fill", "zero",
    "_adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "as_strided", "channel_shuffle",
    "pixel_unshuffle",
}  # fmt: skip
_FACTORS = {"mul", "div", "lerp", "addcmul", "addcdiv"}  # linear in each map
_LINEAR_ALONG = {"cumsum", "flip"}  # linear; the same at every place where they work along other axes
_ACROSS = {"renorm"}  # whose ``dim`` is the axis along which they don't work
_EXTREMES = {
    "amax", "amin", "max", "min", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"
}  # fmt: skip
# Of a whole map and of order two: by Parseval's theorem as good as invariant.
_MOMENTS = {"linalg_vector_norm", "norm", "var", "std", "var_mean", "std_mean"}


@dataclass(frozen=True)
class Finding:
    """What one operator does: ``reason`` is None where a finer lattice helps."""

    nonlinear: bool
    reason: str | None = None


def read_axes(labels: Labels) -> Axes | None:
    """Tell which axes of a tensor are image axes of which it has more than one sample; empty of no map.

    None where they aren't whole: joined to tokens, cut into windows, or mixed with channels.

    Example:
        >>> from spectral.axes import single
        >>> read_axes((single("b", 2), single("h", 8), single("w", 6), single("c", 3)))
        {'h': 1, 'w': 2}
    """
    found: dict[str, int] = {}
    for position, axis in enumerate(labels):
        if not axis.spatial or axis.extent == 1:
            continue
        only = axis.only
        if only is None or only.kind not in IMAGE_AXES or only.kind in found or only.spectrum:
            return None
        found[only.kind] = position
    return found


def judge(call: Call) -> Finding | None:
    """Say what an operator that reads the image does to shift equivariance; None if it keeps it."""
    name = operator_name(call.func).removesuffix("_")
    labels = [(x, call.labels(x)) for x in call.inputs if call.known(x)]
    axes = [read_axes(own) for _, own in labels]
    if not any(own is None or own for own in axes):
        return None  # no map: a gate, class scores
    if name in PRODUCTS or name in ATTENTION:
        return _judge_product(call, name)
    if find_sliding(call.func, call.a) is not None:
        # What slides is a site, or has a border, and is read as a whole; a maximum over the map is neither.
        whole = name in _EXTREMES and not any(read_axes(call.labels(y)) for y in call.outputs)
        if any(own is None for own in axes) and slides_over_places(call):
            return Finding(False, "its rows and columns are no axes of their own (tokens, windows)")
        return Finding(True) if whole else None
    placed = _find_places(call, name)
    if placed is not None:
        return Finding(False, placed)
    if name in _PLAIN:
        return _judge_plain(call, name, axes)
    several = sum(own is None or bool(own) for own in axes) > 1
    if name in _FACTORS and not several:
        return None
    return _judge_nonlinear(call, name, axes)


def slides_over_places(call: Call) -> bool:
    """Whether an operator's window has several samples along an axis of the image, and a map leaves it."""
    sliding = find_sliding(call.func, call.a)
    if sliding is None or all(read_axes(call.labels(y)) == {} for y in call.outputs):
        return False
    if "upsample" in operator_name(call.func) and call.source.shape == call.outputs[0].shape:
        return False  # to the size that it has: nothing is done
    rank, weight = sliding[1], call.a.get("weight")
    given = call.a.get("kernel_size") if weight is None else weight.shape[2:]
    if given is None:
        return True  # adaptive: as wide as it takes
    sizes = [*given] if isinstance(given, list | tuple | Size) else [given]
    sizes = sizes if len(sizes) == rank else sizes[:1] * rank
    over = call.labels(call.source)[-rank:]
    return any(int(size) > 1 and any(f.spatial for f in own) for size, own in zip(sizes, over, strict=True))


def may_lose(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operator of which nothing but its call is known may lose shift equivariance on maps.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 2, 4, 4)
        >>> may_lose(torch.ops.aten.relu.default, (x,)), may_lose(torch.ops.aten.view.default, (x, [32]))
        (True, False)
    """
    name = operator_name(func).removesuffix("_")
    maps = [x for x in args if isinstance(x, Tensor) and x.ndim > 2 and x[0, 0].numel() > 1]
    if not maps or name in _PLAIN:
        return False
    if name in _FACTORS:
        return len(maps) > 1
    each = is_pointwise(func) or name in _EXTREMES
    return each or name in ("convolution", *PRODUCTS, *ATTENTION) or "pool" in name or "norm" in name


def _judge_plain(call: Call, name: str, axes: Sequence[Axes | None]) -> Finding | None:
    """See whether a view cuts windows or takes rows apart, or a join puts places beside each other."""
    if name == "unbind" and int(call.a.get("dim", 0)) % call.source.ndim in (axes[0] or {}).values():
        return Finding(False, "rows or columns are taken one by one, as a recurrent layer does")
    if name in JOINS and sum(bool(own) for own in axes) > 1:
        position = int(call.a.get("dim", 0)) % call.outputs[0].ndim
        if any(own and position in own.values() for own in axes):
            return Finding(False, "maps are joined along a spatial axis")
    if all(own is not None for own in axes):
        for y in call.outputs:
            kinds = [
                f.kind for axis in call.labels(y) for f in axis.factors if f.kind in IMAGE_AXES and f.spatial
            ]
            if len(kinds) > len(set(kinds)):
                return Finding(False, "the map is cut into windows, which stay where they are")
    return None


def _judge_nonlinear(call: Call, name: str, axes: Sequence[Axes | None]) -> Finding | None:
    if any(own is None for own in axes):
        return Finding(True, "its rows and columns are no axes of their own (tokens, windows)")
    maps = [x for x, own in zip(filter(call.known, call.inputs), axes, strict=True) if own]
    if any(not x.is_floating_point() for x in maps):
        return Finding(True, f"{name} is given no real numbers, so there is no lattice between them")
    along = _find_worked_axes(call, name)
    if _mixes_images(call, along):
        return Finding(True, f"{name} works over all images of a batch")
    leaving = [read_axes(call.labels(y)) or {} for y in call.outputs]
    kept = set().union(*(own or () for own in axes)) <= set().union(*leaving)
    if name == "native_layer_norm":
        return _judge_norm(call)
    if "softmax" in name:
        position = int(call.a["dim"]) % call.source.ndim
        over = position in (axes[0] or {}).values()
        return Finding(True, "a softmax over places") if over else Finding(True)
    if not kept and name in _EXTREMES:
        return Finding(True)
    order = next((call.a[key] for key in ("ord", "p") if call.a.get(key) is not None), 2)
    if name in _MOMENTS and not any(leaving) and order == 2:
        return None
    numbers = all(y.is_floating_point() for y in call.outputs[:1])
    if kept and not numbers:
        return Finding(True, f"{name} gives no real numbers, so there is no lattice between them")
    if along and along & {axis for own in axes for axis in (own or {}).values()}:
        return Finding(name not in _LINEAR_ALONG, f"{name} works along rows or columns")
    if along and name in _LINEAR_ALONG:
        return None
    if is_pointwise(call.func) or name in _FACTORS or (kept and along):
        return Finding(True)
    return Finding(True, f"{name} isn't known to act on each place alone")


def _find_worked_axes(call: Call, name: str) -> set[int]:
    """Return the axes along which an operator says that it works, each line of them alone; none if all."""
    given = [call.a[key] for key in ("dim", "dims") if call.a.get(key) is not None]
    if not given or name in _ACROSS:
        return set()
    named = given[0] if isinstance(given[0], list | tuple) else [given[0]]
    return {int(axis) % max(call.source.ndim, 1) for axis in named}


def _mixes_images(call: Call, along: set[int]) -> bool:
    """Whether an operator works along the axis of images, or takes it away."""
    first = {axis for axis, own in enumerate(call.labels(call.source)) if any(f.kind == "b" for f in own)}
    kept = (any(f.kind == "b" for own in call.labels(y) for f in own) for y in call.outputs)
    return bool(first) and (bool(along & first) or not all(kept))


def _judge_norm(call: Call) -> Finding | None:
    """Tell a norm over the channels of each place from one over the map, whose statistics are no map."""
    x = call.source
    count = len(call.a["normalized_shape"])
    over = [axis for axis in call.labels(x)[x.ndim - count :] if axis.spatial and axis.extent > 1]
    if not over:
        return Finding(True)
    return Finding(False, "a norm with weights for each place") if call.a["weight"] is not None else None


def _judge_product(call: Call, name: str) -> Finding | None:
    """Tell a product over channels from one over places."""
    if name in ATTENTION:
        return Finding(True, "attention: a softmax over places")
    first, second = find_factors(call.a)
    known = call.known(first), call.known(second)
    if all(known):
        return Finding(True, "a product of two maps over channels or places, as in attention")
    x, axis = (first, -1) if known[0] else (second, -2 if second.ndim > 1 else -1)
    if any(f.spatial and f.extent > 1 for f in call.labels(x)[axis]):
        return Finding(False, "a weight for each place (a flattened map)")
    return None


def _find_places(call: Call, name: str) -> str | None:
    """Find a tensor that isn't of the image and has numbers of its own for its places."""
    pointwise = is_pointwise(call.func) or name in JOINS
    if not pointwise or not call.outputs:
        return None
    y = call.outputs[0]
    spatial = [a for a, axis in enumerate(call.labels(y)) if axis.spatial and axis.extent > 1]
    noise = None if call.a.get("training") else call.a.get("noise")  # not read then, and not filled
    for x in call.inputs:
        if call.known(x) or x.ndim == 0 or x is noise:
            continue
        if any(_extent(x, y, axis) == y.shape[axis] for axis in spatial):
            return "it has numbers of its own for each place (a position embedding, a mask)"
    return None


def _extent(x: Tensor, y: Tensor, axis: int) -> int:
    """Return the extent of a tensor along the axis of another that it is broadcast to."""
    own = axis - y.ndim + x.ndim
    return x.shape[own] if own >= 0 else 1


def find_finer(call: Call) -> dict[int, Fraction]:
    """Tell along which axes of its first output an operator makes a map's lattice finer, and how much.

    What puts samples between others says so by its sizes; of views, joins and transforms the steps tell.
    """
    if not call.outputs or call.outputs[0].ndim < 3:
        return {}
    x, y = call.source, call.outputs[0]
    name = operator_name(call.func)
    if name == "convolution" and call.a["transposed"]:
        ratios = [Fraction(int(stride)) for stride in call.a["stride"]]
        return {y.ndim - len(ratios) + i: ratio for i, ratio in enumerate(ratios) if ratio > 1}
    if name == "col2im":
        return {y.ndim - 2 + i: Fraction(step) for i, step in enumerate(call.a["stride"]) if step > 1}
    if name.startswith(("upsample_", "_upsample_", "max_unpool", "pixel_shuffle")):
        first = 1 if y.ndim == 3 and name.startswith("max_unpool") else 2
        sizes = zip(x.shape[first - y.ndim + x.ndim :], y.shape[first:], strict=True)
        return {first + i: Fraction(n, m) for i, (m, n) in enumerate(sizes) if n > m}
    before: dict[str, Fraction] = {}
    for own in (call.labels(x) for x in call.inputs if call.known(x)):
        for kind, step in filter(None, map(find_step, own)):
            before[kind] = min(before.get(kind, Fraction(step)), Fraction(step))
    found = [find_step(axis) for axis in call.labels(y)]
    if y.ndim < len({one[0] for one in found if one}) + 2:
        return {}  # places of other channels stand between the samples: rows of tokens
    return {
        axis: before[one[0]] / one[1] for axis, one in enumerate(found)
        if one and y.shape[axis] > 1 and before.get(one[0], Fraction(0)) > one[1]
    }  # fmt: skip
