"""What is left of axes where samples are taken: entries, slices, indices, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from spectral.axes.calls import Call, NeedsDataError, replaced
from spectral.axes.labels import (
    IMAGE_AXES,
    LOST,
    Axis,
    Labels,
    all_factors,
    cut,
    extent_of,
    mixed,
    move_origin,
    single,
    unknown,
)

SPLITS = ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "tensor_split")
_ENTRIES = ("select", "unbind")
_TAKING = (*_ENTRIES, *SPLITS, "slice", "narrow", "index", "index_select")


def find_progression(index: Tensor) -> tuple[int, int] | None:
    """Return first entry and step of equally spaced, growing positions; None if they aren't.

    Neighbours count in any order and however often: padding takes samples twice.

    Example:
        >>> import torch
        >>> find_progression(torch.arange(1, 9, 2)), find_progression(torch.tensor([0, 3, 4]))
        ((1, 2), None)
        >>> find_progression(torch.tensor([1, 0, 1, 2, 1]))
        (0, 1)
    """
    entries = [int(n) for n in index.flatten().tolist()]
    distinct = sorted(set(entries))
    steps = {b - a for a, b in pairwise(distinct)}
    if not entries or len(steps) > 1:
        return None
    step = steps.pop() if steps else 1
    return None if step > 1 and entries != distinct else (distinct[0], step)


def label_select(call: Call) -> list[Labels]:
    """Take one entry of an axis, or each of them: the others of its kind lie where it lies."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    chosen = [call.a["index"] % x.shape[axis]] if "index" in call.a else range(x.shape[axis])
    return [drop_entry(call.labels(x), axis, index) for index in chosen]


def drop_entry(labels: Labels, axis: int, index: int) -> Labels:
    """Return the labels of x.select(axis, index).

    Example:
        >>> from spectral.axes.labels import find_origin
        >>> find_origin(drop_entry((single("h", 16, 2), single("h", 2)), 1, 1))
        {'h': 1}
    """
    gone = labels[axis]
    left = labels[:axis] + labels[axis + 1 :]
    parts = gone.joined.parts if gone.joined is not None else gone.factors
    place = index - (gone.joined.before if gone.joined is not None else 0)
    if 0 <= place < extent_of(parts):
        for f in reversed(parts):
            place, within = divmod(place, f.extent)
            if f.kind in IMAGE_AXES:
                left = move_origin(left, f.kind, f.start + within * f.step)
    return left


def takes_joined(call: Call) -> list[bool]:
    """Tell of each output whether an axis of places has left nothing in it but what was joined to them.

    Class tokens and registers, taken from among the tokens of an image or of its windows: no sample is lost.
    """
    chosen = _find_chosen(call)
    whole = call.labels(call.a["self"])[chosen[0]].joined if chosen is not None else None
    if chosen is None or whole is None:
        return [False] * len(call.outputs)
    places = range(whole.before, whole.before + extent_of(whole.parts))
    return [len(entries) > 0 and not any(i in places for i in entries) for entries in chosen[1]]


def _find_chosen(call: Call) -> tuple[int, list[Sequence[int]]] | None:
    """Return the axis that entries are taken from, and which of them each output has; None if untold."""
    if call.name not in _TAKING:
        return None
    x, axis, index = call.a["self"], call.a.get("dim", 0), call.a.get("index")
    if "indices" in call.a:
        told = [(a, one) for a, one in enumerate(call.a["indices"]) if one is not None]
        axis, index = told[0] if len(told) == 1 else (0, None)
        index = None if index is None or _is_mask(index) else index
    axis, n = axis % x.ndim, x.shape[axis]
    if call.name in _ENTRIES:
        return axis, [[index % n]] if isinstance(index, int) else [[i] for i in range(n)]
    if "dim" not in call.a or isinstance(index, Tensor):
        value = call.value(index) if index is not None else None
        return None if value is None else (axis, [(value.flatten() % n).tolist()])
    start, step = call.a.get("start") or 0, call.a.get("step", 1)
    start = min(max(start + n if start < 0 else start, 0), n)
    chosen: list[Sequence[int]] = []
    for y in call.outputs:
        chosen.append(range(start, start + step * y.shape[axis], step))
        start += y.shape[axis]
    return axis, chosen


def label_slice(call: Call) -> list[Labels]:
    """Keep some entries of an axis, so many apart."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels, start = call.labels(x), call.a.get("start") or 0
    start = min(max(start + x.shape[axis] if start < 0 else start, 0), x.shape[axis])
    kept = cut(labels[axis], start, call.outputs[0].shape[axis], call.a.get("step", 1))
    return [replaced(labels, axis, kept)]


def label_split(call: Call) -> list[Labels]:
    """Cut an axis into parts."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels, start, found = call.labels(x), 0, []
    for y in call.outputs:
        found.append(replaced(labels, axis, cut(labels[axis], start, y.shape[axis])))
        start += y.shape[axis]
    return found


def label_halve(call: Call) -> list[Labels]:
    """A gated linear unit: the first half times a function of the second."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels = call.labels(x)
    return [replaced(labels, axis, cut(labels[axis], 0, call.outputs[0].shape[axis]))]


def label_gather(call: Call) -> list[Labels]:
    """Samples picked along one axis, at positions that may be the same for all others."""
    x, index = call.a["self"], call.a["index"]
    axis = call.a["dim"] % max(x.ndim, 1)
    value = call.value(index) if index.ndim == x.ndim and x.ndim else None
    if value is None or not value.numel():
        return label_pick(call)
    lines = value.movedim(axis, 0).flatten(1)
    if not bool((lines == lines[:, :1]).all()):
        return label_pick(call)
    labels = call.labels(x)
    return [replaced(labels, axis, _take_at(labels[axis], lines[:, 0]))]


def label_pick(call: Call) -> list[Labels]:
    """Samples picked one by one, or so many of them by their value: what is left of an axis is no lattice."""
    x = call.a["self"]
    axis = call.a.get("dim", -1) % max(x.ndim, 1)
    labels = call.labels(x)
    return [
        replaced(labels, axis, single(LOST, n) if n < x.shape[axis] else mixed([labels[axis]], n))
        for n in (y.shape[axis] for y in call.outputs)
    ]


def label_forget(call: Call) -> list[Labels]:
    """Know nothing of what is left."""
    return [unknown(y.shape) for y in call.outputs]


def label_sort(call: Call) -> list[Labels]:
    """The samples are all there, but not at their places: those of a window are told apart by rank alone."""
    x = call.a["self"]
    axis = call.a.get("dim", -1) % x.ndim
    labels = call.labels(x)
    elsewhere = {f.kind for a, other in enumerate(labels) if a != axis for f in other if f.spatial}
    window = len(call.outputs) > 1 and any(f.kind in elsewhere for f in labels[axis])
    ranks = single(LOST, x.shape[axis]) if window else mixed([labels[axis]], labels[axis].extent)
    return [replaced(labels, axis, ranks) for _ in call.outputs]


def label_index_select(call: Call) -> list[Labels]:
    """Take the samples at some positions of an axis."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    taken = _take(call, call.labels(x)[axis], call.a["index"])
    return [replaced(call.labels(x), axis, taken)]


def label_index(call: Call) -> list[Labels]:
    """x[…, index, …]: the axes that are indexed make room for those of the indices."""
    x, y = call.a["self"], call.outputs[0]
    left = list(call.labels(x))
    kept: list[Axis] = []
    chosen: list[tuple[Tensor, Axis]] = []
    places = []  # how many axes stand in front of each index
    for index in call.a["indices"]:
        width = 1 if index is None or not _is_mask(index) else index.ndim
        taken, left = left[:width], left[width:]
        if index is None:
            kept += taken
        else:
            places.append(len(kept))
            joined = taken[0] if width == 1 else mixed(taken, extent_of(all_factors(tuple(taken))))
            chosen.append((index, joined))
    at = places[0] if len(set(places)) == 1 else 0
    kept += left
    found = (*kept[:at], *_find_index_axes(call, chosen), *kept[at:])
    return [found if len(found) == y.ndim else unknown(y.shape)]


def _find_index_axes(call: Call, chosen: Sequence[tuple[Tensor, Axis]]) -> list[Axis]:
    """Label the axes that indices bring: each index varies along one of them, if it is a progression."""
    tensors = [
        index.nonzero().flatten() if index is not None and index.ndim == 1 and _is_mask(raw) else index
        for raw, index in ((raw, call.value(raw) if _is_mask(raw) else raw) for raw, _ in chosen)
    ]
    if any(index is None for index in tensors):
        return [single(LOST, -1)]
    rank = max((t.ndim for t in tensors if t is not None), default=0)
    made = [single(LOST, -1)] * rank
    for tensor, (_, axis) in zip(tensors, chosen, strict=True):
        assert tensor is not None
        along = [a for a in range(-tensor.ndim, 0) if tensor.shape[a] > 1]
        if len(along) == 1:
            made[along[0]] = _take(call, axis, tensor)
    return made


def _take(call: Call, axis: Axis, index: Tensor) -> Axis:
    """Label the samples at some positions of an axis."""
    value = call.value(index)
    if value is None and call.strict and not call.known(index):
        raise NeedsDataError
    if value is None:
        n = index.numel()
        if n == axis.extent and not call.known(index):
            return axis  # another order
        return mixed([axis], n) if n >= axis.extent else single(LOST, n)
    return _take_at(axis, value)


def _take_at(axis: Axis, index: Tensor) -> Axis:
    n, found = index.numel(), find_progression(index % max(axis.extent, 1))
    if found is None:
        return mixed([axis], n) if n >= axis.extent else single(LOST, n)
    first, step = found
    if step == 1 and axis.only is not None:
        return Axis((replace(axis.only, extent=n, start=axis.only.start + first * axis.only.step),))
    return cut(axis, first, n, step)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)
