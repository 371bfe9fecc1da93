"""Windows that a view has cut: how they lie, and whether their samples were told apart by their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from spectral.axes.calls import Call
from spectral.axes.labels import IMAGE_AXES, Axis, Factor, Labels, Step, all_factors, extent_of
from spectral.axes.rules import PRODUCTS

Key = tuple[str, Step]
# Each entry of an axis depends on which of them it is, or on the others.
_ALONG = {"cumsum", "cumprod", "logcumsumexp", "flip", "roll"}


@dataclass(frozen=True)
class Window:
    """How an image axis was cut: samples per window, from one to the next, windows, and by which view."""

    kind: str
    size: int
    stride: int
    count: int
    cut: int


def find_windows(moved: list[Factor], others: Labels) -> list[Window]:
    """Match the samples inside windows with the windows on other axes; nothing unless all of them fit."""
    rest = [f for f in all_factors(others) if not f.folded]
    found = []
    for kind in IMAGE_AXES:
        inner = [f for f in moved if f.kind == kind]
        outer = [f for f in rest if f.kind == kind and all(f.step > g.step for g in inner)]
        if inner and outer:
            stride = int(min(f.step for f in outer) / min(f.step for f in inner))
            found.append(Window(kind, extent_of(inner), stride, extent_of(outer), max(f.cut for f in inner)))
    kinds = {f.kind for f in moved}
    # Where only rows (or columns) became channels the others are an axis as they were; otherwise the view
    # belongs to something else, such as relative positions in attention.
    alone = {axis.factors[0].kind for axis in others if len(axis.factors) == 1}
    left = {f.kind for f in rest if f.kind in IMAGE_AXES} - kinds
    return found if len(found) == len(kinds) and left <= alone else []


def mark_uneven(call: Call, labels: Labels) -> Labels:
    """Mark the samples of windows of which an operator treats each in its own way.

    Weights that are those of every window, a softmax over each, a matrix: a window that begins one sample
    further isn't treated so, and what was made of it isn't in the tensor.

    Args:
        call: the operator.
        labels: of what it gave.
    """
    if not _may_have_windows(labels):
        return labels
    factors = all_factors(labels)
    if not any(f.extent > 1 and _find_outer(f, factors) for f in factors):
        return labels
    told = set(_find_told(call, labels))
    return tuple(Axis(tuple(_mark(f, (axis, _key(f)) in told and bool(_find_outer(f, factors)))
                            for f in whole.factors)) for axis, whole in enumerate(labels))  # fmt: skip


def _may_have_windows(labels: Labels) -> bool:
    """Whether an image axis has several factors, as where windows were cut."""
    kinds = [f.kind for axis in labels for f in axis.image if f.extent > 1]
    return len(kinds) > len(set(kinds))


def _key(f: Factor) -> Key:
    return f.kind, f.step


def _mark(f: Factor, uneven: bool) -> Factor:
    return replace(f, uneven=True) if uneven else f


def _find_outer(f: Factor, factors: list[Factor]) -> list[Factor]:
    """Find the factors that tell one window from another, where it is the samples of windows."""
    return [g for g in factors if g.kind == f.kind in IMAGE_AXES and g.step > f.step and g.extent > 1]


def _find_told(call: Call, labels: Labels) -> Iterator[tuple[int, Key]]:
    """Yield the factors along which an operator makes a difference, and the axis of each."""
    name, a = call.name.rstrip("_"), call.a
    along: Iterable[int] = ()
    if name in _ALONG or "softmax" in name:
        dims = a.get("dims", a.get("dim"))
        along = [dims] if isinstance(dims, int) else dims or range(len(labels))
    elif name in PRODUCTS and not all(map(call.known, call.inputs)):
        along = [-1]
    elif call.facts.is_pointwise:
        for x in call.inputs:
            yield from (_find_shared if call.known(x) else _find_varied)(call, x, labels)
    for axis in (axis % len(labels) for axis in along):
        yield from ((axis, _key(f)) for f in labels[axis])


def _find_varied(call: Call, x: Tensor, labels: Labels) -> Iterator[tuple[int, Key]]:
    """Yield factors along which a tensor that isn't made of the image varies, in each window alike."""
    varied = {len(labels) - x.ndim + own: own for own, n in enumerate(x.shape) if n > 1}
    along = [(axis, own, f) for axis, own in varied.items() for f in labels[axis]]
    everywhere = {_key(f) for _, _, f in along}
    for axis, own, f in along:
        outer = _find_outer(f, all_factors(labels))
        if outer and not everywhere.intersection(map(_key, outer)):
            value = call.value(x)
            if value is None or bool((value != value.narrow(own, 0, 1)).any()):
                yield axis, _key(f)


def _find_shared(call: Call, x: Tensor, labels: Labels) -> Iterator[tuple[int, Key]]:
    """Yield factors that one of the inputs lacks, a number for each window, or that are uneven in it."""
    own = call.labels(x)
    there = {_key(f) for f in all_factors(own)}
    kinds = {f.kind for f in all_factors(own) if f.extent > 1}
    for axis, whole in enumerate(labels):
        place = axis - len(labels) + len(own)
        uneven = {_key(f) for f in own[place] if f.uneven} if place >= 0 else set()
        for f in whole:
            if _key(f) in uneven or (_key(f) not in there and f.kind in kinds):
                yield axis, _key(f)
