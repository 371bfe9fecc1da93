"""What torch's operators do to axes, where they don't slide a window over them: one rule for each family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from spectral.axes.labels import (
    CHANNEL,
    IMAGE_AXES,
    LOST,
    MIXED,
    Axis,
    Factor,
    Labels,
    all_factors,
    cut,
    exact,
    extent_of,
    join_along,
    mixed,
    move_origin,
    resample,
    single,
    through_view,
    unknown,
)
from spectral.operators import Arguments


@dataclass(frozen=True)
class Call:
    """One operator call, with what is known of the tensors in it.

    Attributes:
        func: the operator.
        a: its arguments by name.
        inputs: the tensors among them.
        outputs: the tensors it returned.
        labels: of a tensor, all "?" where nothing is known.
        known: whether a tensor was computed from the image.
        value: of a tensor that doesn't depend on the image, where it can be told.
        number: a new number, for the factors that it cuts.
        strict: whether fixed numbers that can't be told are worth a pass with data.
    """

    func: Any
    a: Arguments
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    labels: Callable[[Tensor], Labels]
    known: Callable[[Tensor], bool]
    value: Callable[[Tensor], Tensor | None]
    number: int
    strict: bool = True

    @property
    def source(self) -> Tensor:
        """The first tensor that was computed from the image."""
        return next(x for x in self.inputs if self.known(x))


Rule = Callable[[Call], list[Labels]]


class NeedsDataError(Exception):
    """What is picked depends on fixed numbers, which a pass without data doesn't have."""


def apply_rule(call: Call) -> list[Labels]:
    """Derive the labels of an operator's outputs.

    Those of an operator without a rule are matched by their extents.
    """
    rule = _RULES.get(call.a.name.partition("::")[2]) if call.a.name.startswith("aten::") else None
    if rule is None and "keepdim" in call.a:
        rule = _reduce
    return rule(call) if rule is not None else [_match(call, result) for result in call.outputs]


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


def align(call: Call, result: Tensor) -> Labels:
    """Label what is computed sample by sample: axes correspond from the last, an extent of 1 to any."""
    labels: list[Axis] = list(unknown(result.shape))
    for x in (t for t in call.inputs if call.known(t) and t.ndim <= result.ndim):
        for offset, axis in enumerate(reversed(call.labels(x)), start=1):
            empty = labels[-offset] == single(LOST, result.shape[-offset])
            if x.shape[-offset] == result.shape[-offset] and empty:
                labels[-offset] = axis
    return tuple(labels)


def _match(call: Call, result: Tensor) -> Labels:
    """Label the output of any operator: axes of the same extent correspond, the nearest first.

    What is left over on both sides is a resampled axis, or samples that are mixed.
    """
    aligned = align(call, result)
    source = max((x for x in call.inputs if call.known(x)), key=lambda x: x.ndim)
    labels, left = list(aligned), list(range(source.ndim))
    old = call.labels(source)
    open_axes = []
    for position, axis in enumerate(aligned):
        offset = source.ndim - result.ndim + position
        if offset in left and old[offset] == axis:
            left.remove(offset)
        elif axis == single(LOST, result.shape[position]):
            open_axes.append(position)
    for position in list(open_axes):
        alike = [a for a in left if source.shape[a] == result.shape[position]]
        if alike and result.shape[position] > 1:
            nearest = min(alike, key=lambda a: abs(a - position))
            labels[position] = old[nearest]
            left.remove(nearest)
            open_axes.remove(position)
    for position in open_axes:
        if result.ndim == source.ndim and position in left:
            before, after = source.shape[position], result.shape[position]
            labels[position] = resample(old[position], after, Fraction(before, max(min(before, after), 1)))
        elif left and result.shape[position] > 1:
            labels[position] = mixed([old[a] for a in left], result.shape[position])
    return tuple(labels)


def _view(call: Call) -> list[Labels]:
    x = call.a["self"]
    return [through_view(call.labels(x), tuple(x.shape), tuple(y.shape), call.number) for y in call.outputs]


def _permute(call: Call) -> list[Labels]:
    labels = call.labels(call.a["self"])
    return [tuple(labels[axis] for axis in call.a["dims"])]


def _transpose(call: Call) -> list[Labels]:
    labels = list(call.labels(call.a["self"]))
    first, second = call.a.get("dim0", 0), call.a.get("dim1", -1)
    if len(labels) > 1:
        labels[first], labels[second] = labels[second], labels[first]
    return [tuple(labels)]


def _select(call: Call) -> list[Labels]:
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


def _slice(call: Call) -> list[Labels]:
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels, start = call.labels(x), call.a.get("start") or 0
    start = min(max(start + x.shape[axis] if start < 0 else start, 0), x.shape[axis])
    kept = cut(labels[axis], start, call.outputs[0].shape[axis], call.a.get("step", 1))
    return [_replaced(labels, axis, kept)]


def _split(call: Call) -> list[Labels]:
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels, start, found = call.labels(x), 0, []
    for y in call.outputs:
        found.append(_replaced(labels, axis, cut(labels[axis], start, y.shape[axis])))
        start += y.shape[axis]
    return found


def _halve(call: Call) -> list[Labels]:
    """A gated linear unit: the first half times a function of the second."""
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    labels = call.labels(x)
    return [_replaced(labels, axis, cut(labels[axis], 0, call.outputs[0].shape[axis]))]


def _unsqueeze(call: Call) -> list[Labels]:
    labels, axis = call.labels(call.a["self"]), call.a["dim"] % call.outputs[0].ndim
    return [(*labels[:axis], single(LOST, 1), *labels[axis:])]


def _squeeze(call: Call) -> list[Labels]:
    x, y = call.a["self"], call.outputs[0]
    dims = call.a.get("dim")
    asked = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % x.ndim for d in asked if x.ndim and x.shape[d] == 1}
    if x.ndim == y.ndim and gone:  # in place: x is the result already
        return [call.labels(x)]
    return [tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)]


def _expand(call: Call) -> list[Labels]:
    """Repeat samples: an axis of one sample, or new ones in front, hold no places."""
    return [align(call, y) for y in call.outputs]


def _cat(call: Call) -> list[Labels]:
    tensors = [t for t in call.a["tensors"] if t.numel() or t.ndim > 1]
    if not any(map(call.known, tensors)):
        return [unknown(call.outputs[0].shape)]  # of the image there is nothing in it: no detections
    y, axis = call.outputs[0], call.a.get("dim", 0) % call.outputs[0].ndim
    first = next(t for t in tensors if call.known(t))
    old = [call.labels(t)[axis] if call.known(t) else single(LOST, t.shape[axis]) for t in tensors]
    joined = join_along(old, [t.shape[axis] for t in tensors])
    return [_replaced(call.labels(first), axis, joined) if first.ndim == y.ndim else align(call, y)]


def _stack(call: Call) -> list[Labels]:
    y, axis = call.outputs[0], call.a.get("dim", 0) % call.outputs[0].ndim
    labels = call.labels(next(t for t in call.a["tensors"] if call.known(t)))
    return [(*labels[:axis], single(LOST, y.shape[axis]), *labels[axis:])]


def _unfold(call: Call) -> list[Labels]:
    """x.unfold(axis, size, step): windows stay on the axis, their samples go to a new last one."""
    x, axis = call.a["self"], call.a["dimension"] % call.a["self"].ndim
    size, step, y = call.a["size"], call.a["step"], call.outputs[0]
    old = call.labels(x)[axis]
    only = old.only
    if only is None:
        return [(*_replaced(call.labels(x), axis, mixed([old], y.shape[axis])), mixed([old], size))]
    outer = Axis((replace(only, extent=y.shape[axis], step=only.step * step, cut=call.number),))
    inner = Axis((replace(only, extent=size, cut=call.number, start=0),))
    return [(*_replaced(call.labels(x), axis, outer), inner)]


def _im2col(call: Call) -> list[Labels]:
    """unfold(x, kernel, dilation, padding, stride): channels with their windows, then positions."""
    labels, y = call.labels(call.a["self"]), call.outputs[0]
    kernel, stride = call.a["kernel_size"], call.a["stride"]
    axes = [axis.only for axis in labels[-2:]]
    if list(kernel) != list(stride) or not all(f is not None and f.kind in IMAGE_AXES for f in axes):
        return [(*labels[:-3], single(CHANNEL, y.shape[-2]), single(MIXED, y.shape[-1]))]
    pairs = [(f, k) for f, k in zip(axes, kernel, strict=True) if f is not None]
    inner = [Factor(f.kind, k, f.step, call.number, folded=True) for f, k in pairs]
    outer = [Factor(f.kind, f.extent // k, f.step * k, call.number) for f, k in pairs]
    return [(*labels[:-3], Axis((*labels[-3].factors, *inner)), Axis(tuple(outer)))]


def _pixel_unshuffle(call: Call) -> list[Labels]:
    """Windows become channels: behind each channel its rows, then its columns."""
    labels, r, y = call.labels(call.a["self"]), int(call.a["downscale_factor"]), call.outputs[0]
    axes = [axis.only for axis in labels[-2:]]
    if not all(f is not None and f.kind in IMAGE_AXES for f in axes):
        return [(*labels[:-3], single(CHANNEL, y.shape[-3]), *(mixed([a], n) for a, n in
                zip(labels[-2:], y.shape[-2:], strict=True)))]  # fmt: skip
    image = [f for f in axes if f is not None]
    inner = [Factor(f.kind, r, f.step, call.number, folded=True) for f in image]
    outer = [Axis((Factor(f.kind, f.extent // r, f.step * r, call.number),)) for f in image]
    return [(*labels[:-3], Axis((*labels[-3].factors, *inner)), *outer)]


def _pixel_shuffle(call: Call) -> list[Labels]:
    """Channels become places between those that there are: a finer lattice."""
    x, y = call.a["self"], call.outputs[0]
    return [(*call.labels(x)[:-3], single(CHANNEL, y.shape[-3]), *_make_finer(call, x, y))]


def _unpool(call: Call) -> list[Labels]:
    """Samples are put between others that are 0."""
    x, y = call.a["self"], call.outputs[0]
    axes = _make_finer(call, x, y)
    return [(*call.labels(x)[: -len(axes)], *axes)]


def _make_finer(call: Call, x: Tensor, y: Tensor) -> list[Axis]:
    """Return the last two axes of a map as those of a finer one over the same extent."""
    sizes = zip(call.labels(x)[-2:], x.shape[-2:], y.shape[-2:], strict=True)
    return [resample(axis, n, Fraction(m, n)) for axis, m, n in sizes]


def _pad(call: Call) -> list[Labels]:
    """Samples are added at the ends of the last axes, or taken away."""
    pads, x = list(call.a.get("pad", call.a.get("padding"))), call.a["self"]
    labels = list(call.labels(x))
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        axis = labels[-1 - i]
        if axis.only is not None:
            start = axis.only.start - before * axis.only.step
            labels[-1 - i] = Axis((replace(axis.only, extent=axis.extent + before + after, start=start),))
        else:
            kept = cut(axis, max(-before, 0), axis.extent + min(before, 0) + min(after, 0))
            added = [single(LOST, max(before, 0)), kept, single(LOST, max(after, 0))]
            labels[-1 - i] = join_along(added, [one.extent for one in added])
    return [tuple(labels)]


def _as_strided(call: Call) -> list[Labels]:
    """Take samples by their distance in memory: each axis steps along the source axis that it divides by."""
    x = call.a["self"]
    labels = call.labels(x)
    order = sorted((a for a in range(x.ndim) if x.shape[a] > 1), key=lambda a: -x.stride(a))
    offset = (call.a["storage_offset"] if call.a["storage_offset"] is not None else x.storage_offset()
              ) - x.storage_offset()  # fmt: skip
    for a in order:
        place, offset = divmod(offset, x.stride(a)) if x.stride(a) else (0, offset)
        only = labels[a].only
        if only is not None and place:
            labels = _replaced(labels, a, Axis((replace(only, start=only.start + place * only.step),)))
    found: list[Axis] = []
    used: set[int] = set()
    for n, distance in zip(call.a["size"], call.a["stride"], strict=True):
        axis = next((a for a in order if x.stride(a) and distance >= x.stride(a)), None)
        if n == 1 or axis is None:
            found.append(single(LOST, n))
            continue
        step, rest = divmod(distance, x.stride(axis))
        only = labels[axis].only
        if rest or only is None:
            found.append(labels[axis] if step == 1 and n == labels[axis].extent else mixed([labels[axis]], n))
        else:
            start = 0 if axis in used else only.start  # those of all factors of a kind add up
            found.append(
                Axis((replace(only, extent=n, step=only.step * step, cut=call.number, start=start),))
            )
            used.add(axis)
    return [tuple(found)]


def _view_as_real(call: Call) -> list[Labels]:
    return [(*call.labels(call.a["self"]), single(LOST, 2))]


def _view_as_complex(call: Call) -> list[Labels]:
    return [call.labels(call.a["self"])[:-1]]


def _diagonal(call: Call) -> list[Labels]:
    x = call.a["self"]
    gone = {call.a["dim1"] % x.ndim, call.a["dim2"] % x.ndim}
    axes = [axis for a, axis in enumerate(call.labels(x)) if a in gone]
    kept = tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)
    return [(*kept, mixed(axes, call.outputs[0].shape[-1]))]


def _reduce(call: Call) -> list[Labels]:
    x = call.a["self"] if "self" in call.a else call.inputs[0]
    dims = call.a.get("dim")
    asked = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % x.ndim for d in asked} if x.ndim else set()
    found = []
    for y in call.outputs:
        if y.ndim == x.ndim:
            found.append(
                tuple(single(LOST, 1) if a in gone else axis for a, axis in enumerate(call.labels(x)))
            )
        else:
            kept = tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)
            found.append(kept if len(kept) == y.ndim else unknown(y.shape))
    return found


def _gather(call: Call) -> list[Labels]:
    """Samples picked along one axis, at positions that may be the same for all others."""
    x, index = call.a["self"], call.a["index"]
    axis = call.a["dim"] % max(x.ndim, 1)
    value = call.value(index) if index.ndim == x.ndim and x.ndim else None
    if value is None or not value.numel():
        return _pick(call)
    lines = value.movedim(axis, 0).flatten(1)
    if not bool((lines == lines[:, :1]).all()):
        return _pick(call)
    labels = call.labels(x)
    return [_replaced(labels, axis, _take_at(labels[axis], lines[:, 0]))]


def _pick(call: Call) -> list[Labels]:
    """Samples picked one by one, or so many of them by their value: what is left of an axis is no lattice."""
    x = call.a["self"]
    axis = call.a.get("dim", -1) % max(x.ndim, 1)
    labels = call.labels(x)
    return [
        _replaced(labels, axis, single(LOST, n) if n < x.shape[axis] else mixed([labels[axis]], n))
        for n in (y.shape[axis] for y in call.outputs)
    ]


def _forget(call: Call) -> list[Labels]:
    return [unknown(y.shape) for y in call.outputs]


def _sort(call: Call) -> list[Labels]:
    """The samples are all there, but not at their places: those of a window are told apart by rank alone."""
    x = call.a["self"]
    axis = call.a.get("dim", -1) % x.ndim
    labels = call.labels(x)
    elsewhere = {f.kind for a, other in enumerate(labels) if a != axis for f in other if f.spatial}
    window = len(call.outputs) > 1 and any(f.kind in elsewhere for f in labels[axis])
    ranks = single(LOST, x.shape[axis]) if window else mixed([labels[axis]], labels[axis].extent)
    return [_replaced(labels, axis, ranks) for _ in call.outputs]


def _index_select(call: Call) -> list[Labels]:
    x, axis = call.a["self"], call.a["dim"] % call.a["self"].ndim
    taken = _take(call, call.labels(x)[axis], call.a["index"])
    return [_replaced(call.labels(x), axis, taken)]


def _index(call: Call) -> list[Labels]:
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


def _product(call: Call) -> list[Labels]:
    """A matrix product: rows of the first factor, columns of the second."""
    a, y = call.a, call.outputs[0]
    first, second = find_factors(a)
    left, right = call.labels(first), call.labels(second)
    columns = single(CHANNEL, y.shape[-1]) if y.ndim else single(CHANNEL, 1)
    transposed = a.name == "aten::linear"
    if not transposed and call.known(second):
        columns = right[-1]
    elif first.shape[-1:] == y.shape[-1:] and left and all(f.spatial for f in left[-1]):
        columns = left[-1]  # places mixed with each other are still places
    if first.ndim >= 2 and first.ndim == y.ndim:
        batch = left[:-1] if call.known(first) else (*right[:-2], left[-2])
        return [(*batch, columns)]
    return [unknown(y.shape)]


def find_factors(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return both factors of a product, whatever the schema calls them."""
    for first, second in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other"),
                          ("input", "weight"), ("self", "vec")):  # fmt: skip
        if first in a and second in a:
            return a[first], a[second]
    raise KeyError(a.name)


def _attend(call: Call) -> list[Labels]:
    """Fused attention: one output for each query."""
    query = call.a["query"]
    labels = call.labels(query) if call.known(query) else unknown(query.shape)
    value = call.labels(call.a["value"])[-1]
    return [(*labels[:-1], value) if y.ndim == query.ndim else labels[: y.ndim] for y in call.outputs]


def _embed(call: Call) -> list[Labels]:
    """Look up vectors for integers."""
    return [(*call.labels(call.a["indices"]), single(CHANNEL, y.shape[-1])) for y in call.outputs]


def _transform(call: Call) -> list[Labels]:
    """A Fourier transform and its inverse: samples become frequencies, and samples again.

    Of the samples inside windows the transform makes channels: a spectrum for each window.
    """
    x, y = call.a["self"], call.outputs[0]
    labels = list(call.labels(x))
    for dim in call.a["dim"]:
        axis, n = labels[dim], y.shape[dim]
        only = axis.only
        if only is None or not only.spatial:
            labels[dim] = mixed([axis], n) if axis.spatial else single(CHANNEL, n)
        elif only.spectrum:
            step = exact(only.step * Fraction(only.spectrum, n))
            labels[dim] = Axis((replace(only, extent=n, step=step, spectrum=0),))
        elif any(f.kind == only.kind and f.step > only.step for f in all_factors(call.labels(x))):
            labels[dim] = single(CHANNEL, n)
        else:
            labels[dim] = Axis((replace(only, extent=n, spectrum=only.extent),))
    return [tuple(labels)]


def _short_time_transform(call: Call) -> list[Labels]:
    """stft where torch doesn't write it as views: (B, frequencies, frames)."""
    y, x = call.outputs[0], call.a["self"]
    old = call.labels(x)[-1]
    hop = int(call.a.get("hop_length") or call.a["n_fft"] // 4)
    frames = resample(old, y.shape[-1], hop)
    return [(*call.labels(x)[:-1], single(CHANNEL, y.shape[-2]), frames)]


def _overlay(call: Call) -> list[Labels]:
    """unfold_backward: windows of an axis are laid over each other again, a step apart."""
    x, axis = call.a["grad_in"], call.a["dim"]
    labels, y = call.labels(x)[:-1], call.outputs[0]
    frames = labels[axis].only
    if frames is None or frames.kind not in IMAGE_AXES:
        return [_replaced(labels, axis, mixed([labels[axis]], y.shape[axis]))]
    step = exact(Fraction(frames.step) / call.a["step"])
    return [_replaced(labels, axis, Axis((replace(frames, extent=y.shape[axis], step=step),)))]


def _fold(call: Call) -> list[Labels]:
    """col2im: rows and columns are there again."""
    labels, y = call.labels(call.a["self"]), call.outputs[0]
    kinds = IMAGE_AXES[-2:]
    image = [single(kind, n) for kind, n in zip(kinds, y.shape[-2:], strict=True)]
    return [(*labels[:-2], single(CHANNEL, y.shape[-3]), *image)]


def _replaced(labels: Labels, axis: int, new: Axis) -> Labels:
    return (*labels[:axis], new, *labels[axis + 1 :])


def flatten(values: Any) -> Iterator[Any]:
    """Yield what lists and tuples hold."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from flatten(value)
        else:
            yield value


@cache
def writes_first(func: Any) -> bool:
    """Whether an operator writes into its first argument."""
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


@cache
def is_view(func: Any) -> bool:
    """Whether an operator returns a view of its first argument."""
    arguments = func._schema.arguments
    info = arguments[0].alias_info if arguments else None
    return info is not None and not info.is_write


def is_lattice(labels: Labels) -> bool:
    """Whether rows, columns or frames are known of a tensor."""
    return any(f.kind in IMAGE_AXES for f in all_factors(labels))


JOINS = ("cat", "concat", "concatenate", "stack")
ATTENTION = (
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
PRODUCTS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "linear")
OVERLAYS = ("col2im", "unfold_backward")
CROPS = {
    "slice", "narrow", "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes",
    "tensor_split", "constant_pad_nd", "glu", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d",
}  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten",
                     "view_copy"), _view),
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    **dict.fromkeys(("transpose", "t", "transpose_", "t_", "swapaxes", "transpose_copy", "numpy_T"),
                    _transpose),
    **dict.fromkeys(("select", "unbind", "select_copy"), _select),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes",
                     "tensor_split"), _split),
    "glu": _halve,
    **dict.fromkeys(("unsqueeze", "unsqueeze_"), _unsqueeze),
    **dict.fromkeys(("squeeze", "squeeze_"), _squeeze),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(JOINS[:-1], _cat),
    "stack": _stack,
    "unfold": _unfold,
    "im2col": _im2col,
    "col2im": _fold,
    "pixel_unshuffle": _pixel_unshuffle,
    "pixel_shuffle": _pixel_shuffle,
    "max_unpool2d": _unpool,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
                     "replication_pad1d", "replication_pad2d", "replication_pad3d"), _pad),
    "as_strided": _as_strided,
    "view_as_real": _view_as_real,
    "view_as_complex": _view_as_complex,
    "diagonal": _diagonal,
    "count_nonzero": _reduce,
    "gather": _gather,
    "topk": _pick,
    **dict.fromkeys(("take", "masked_select", "nonzero", "histc", "bincount"), _forget),
    **dict.fromkeys(("sort", "argsort"), _sort),
    "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(PRODUCTS, _product),
    "embedding": _embed,
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _transform),
    "stft": _short_time_transform,
    "unfold_backward": _overlay,
    **dict.fromkeys(ATTENTION, _attend),
}  # fmt: skip
