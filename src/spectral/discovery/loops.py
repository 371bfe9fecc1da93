"""Windows that Python cuts and reduces one by one, and joins again: a pool, though no operator says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from spectral.axes import (
    CROPS,
    IMAGE_AXES,
    JOINS,
    MIXED,
    Axis,
    AxisTracker,
    Call,
    Factor,
    Labels,
    all_factors,
)
from spectral.discovery.events import PLACES, Event, count_channels, find_image_axes, find_size
from spectral.discovery.uses import find_view
from spectral.operators import Geometry
from spectral.tracing.tensors import TensorTable
from spectral.tracing.tracker import Frame

_REASON = "its windows are cut and reduced one by one: write it as a pool"
_SUMMED = "its {what} are taken one by one and joined by arithmetic: write it as a pool"
_PIECES = "its {what} are cut out one by one, {step} apart: write it as a slice"
_BLOCKS = "blocks of its {what} are cut out and others left, so that the rest is no lattice"
_UNEQUAL = "its windows are cut and reduced one by one, and are unequal"
# They change the shape, or nothing; what they return is still of the same window.
_PASSING = {
    "clone", "_to_copy", "contiguous", "alias", "unsqueeze", "squeeze", "view", "_unsafe_view", "reshape",
    "expand", "native_dropout",
}  # fmt: skip


@dataclass
class _Part:
    """A part of a map: where it was cut out, and what has reduced it.

    Attributes:
        root: the map.
        labels: its axes.
        spans: first sample and extent along each axis along which it was cut.
        events: the pools that were kept of it.
        kind: of the reduction.
        entries: whether it holds no axis any more along which it was cut: an entry, or some that were added.
        strides: of the axes along which parts were joined again: (stride, window).
    """

    root: Tensor
    labels: Labels
    spans: dict[str, tuple[int, int]]
    events: list[Event] = field(default_factory=list)
    kind: str = "global_pool"
    entries: bool = False
    strides: dict[str, tuple[int, int]] = field(default_factory=dict)

    def is_thin(self, kind: str) -> bool:
        """Whether it is no more than one sample, or one window of them, along an axis."""
        return self.entries or self.spans[kind][1] == 1


class Loops:
    """Follows parts of maps from where they are cut to where they are joined.

    Args:
        axes: the labels.
        running: the calls that are running.
        keep: takes an event.
    """

    def __init__(self, axes: AxisTracker, running: list[Frame], keep: Callable[[Event], None]) -> None:
        self._axes, self._running, self._keep = axes, running, keep
        self._parts: TensorTable[_Part] = TensorTable()

    def follow(self, call: Call, labels_before: Labels) -> None:
        """Follow an operator that ran, given the labels of its first input from the image."""
        name = call.name
        if name in CROPS and call.a.get("step", 1) == 1 and isinstance(call.a.get("dim"), int):
            self._cut(call, labels_before)
        elif name in ("select", "unbind"):
            self._take(call, labels_before)
        elif not len(self._parts):
            return
        elif name in JOINS:
            self._join(call)
        elif call.facts.is_pointwise and len(call.sources) > 1:
            self._combine(call, name)
        else:
            part = self._parts.get(call.source)
            passes = name in _PASSING or call.facts.is_pointwise or "keepdim" in call.a
            pools = "pool" in name
            if part is not None and pools:
                part = replace(part, kind="window_max" if "max" in name else "window_mean")
            if part is not None and (passes or pools) and len(call.sources) == 1:
                for y in call.outputs:
                    self._parts[y] = replace(part, events=list(part.events))

    def note_pool(self, event: Event, kind: str) -> None:
        """Note what has pooled all of a part."""
        part = self._parts.get(event.output)
        if part is not None:
            part.events.append(event)
            part.kind = part.kind if kind == "global_pool" else kind

    def _cut(self, call: Call, labels: Labels) -> None:
        x = call.source
        axis = call.a["dim"] % x.ndim
        whole = labels[axis].only
        if whole is None or whole.kind not in IMAGE_AXES or whole.folded:
            return
        known = self._parts.get(x)
        part = known if known is not None and not known.strides else _Part(x, labels, {})
        for y in call.outputs:
            cut = self._axes.labels(y)[axis].only
            if cut is not None and cut.kind == whole.kind and cut.extent < whole.extent:
                start = int((cut.start - whole.start) / whole.step)
                spans = {**part.spans, whole.kind: (start, cut.extent)}
                self._parts[y] = replace(part, spans=spans, events=[])

    def _take(self, call: Call, labels: Labels) -> None:
        """Follow entries of an axis that are taken one by one."""
        x = call.source
        axis = call.a["dim"] % x.ndim
        whole = labels[axis].only
        alone = whole is not None and sum(f.kind == whole.kind for f in all_factors(labels)) == 1
        known = self._parts.get(x)
        if whole is None or not alone or whole.kind not in IMAGE_AXES or whole.folded:
            return
        if known is not None and not known.strides:
            return  # an entry of a part
        chosen = [call.a["index"] % x.shape[axis]] if "index" in call.a else range(x.shape[axis])
        for place, y in zip(chosen, call.outputs, strict=True):
            self._parts[y] = _Part(x, labels, {whole.kind: (place, 1)}, entries=True)

    def _combine(self, call: Call, name: str) -> None:
        """Follow arithmetic of several parts of one sample each: a window of them."""
        parts = self._find_parts(call.sources)
        kind = _find_apart(parts)
        if kind is None or any(part.strides or not part.is_thin(kind) for part in parts):
            return
        start = min(part.spans[kind][0] for part in parts)
        end = max(sum(part.spans[kind]) for part in parts)
        largest = name.removesuffix("_") in ("maximum", "minimum", "fmax", "fmin")
        for y in call.outputs:
            self._parts[y] = replace(
                parts[0], spans={**parts[0].spans, kind: (start, end - start)}, events=[], entries=True,
                kind="window_max" if largest else "window_blend",
            )  # fmt: skip

    def _find_parts(self, tensors: Sequence[Tensor]) -> list[_Part]:
        """Return the parts that some tensors are, if they are several, and all of one map."""
        found = [self._parts.get(x) for x in tensors]
        parts = [part for part in found if part is not None]
        whole = len(parts) >= max(2, len(found)) and len({find_view(part.root) for part in parts}) == 1
        return parts if whole else []

    def _join(self, call: Call) -> None:
        parts = self._find_parts(call.a["tensors"])
        kind = _find_apart(parts)
        if kind is None:
            return
        if not any(part.events for part in parts):
            self._join_pieces(call, kind, parts)
            return
        if any(not part.events for part in parts):
            return
        if any(
            f.kind == kind and f.extent > 1
            for x in call.a["tensors"]
            for f in all_factors(self._axes.labels(x))
        ):
            return  # not reduced along this axis
        self._note(call, kind, parts)

    def _join_pieces(self, call: Call, kind: str, parts: list[_Part]) -> None:
        """Keep what is left of an axis of which pieces are joined that nothing has reduced."""
        if any(part.strides for part in parts) or len({part.entries for part in parts}) > 1:
            return
        what = PLACES[kind]
        if any(part.kind != "global_pool" for part in parts):
            self._note(call, kind, parts, _SUMMED.format(what=what))
            return
        if parts[0].entries:
            return  # `Entries` tells of them
        spans = sorted({part.spans[kind] for part in parts})
        gaps = sorted(b[0] - sum(a) for a, b in pairwise(spans))
        thin = all(part.is_thin(kind) for part in parts)
        left_out = gaps[len(gaps) // 2] if thin else gaps[-2] if len(gaps) > 1 else 0
        if left_out <= 0:
            return  # a crop, or both ends
        thin &= len(set(gaps)) == 1
        reason = (_PIECES if thin else _BLOCKS).format(what=what, step=gaps[0] + 1)
        named = [replace(part, kind="select") for part in parts]
        self._note(call, kind, named, reason, regular=thin)

    def _note(
        self, call: Call, kind: str, parts: list[_Part], reason: str = _REASON, regular: bool = True
    ) -> None:
        """Keep the windows as one pool, instead of a pool of each."""
        first, y = parts[0], call.outputs[0]
        starts = [part.spans[kind][0] for part in parts]
        windows = {part.spans[kind][1] for part in parts}
        steps = {b - a for a, b in pairwise(starts)}
        equal = regular and len(windows) == len(steps) == 1 and min(steps) > 0
        strides = {**first.strides, kind: (min(steps), min(windows)) if equal else (0, 0)}
        for event in (event for part in parts for event in part.events):
            event.dropped = True
        labels = self._axes.labels(y)
        self._relabel(call, kind, min(steps) if equal else 0, starts[0])
        part = replace(
            first, strides=strides, events=[], spans={k: v for k, v in first.spans.items() if k != kind}
        )
        self._parts[y] = part
        if all(stride == 1 for stride, _ in strides.values()):
            return  # as many windows as samples
        image_axes = find_image_axes(first.labels)
        before = find_size(all_factors(first.labels), image_axes)
        left = dict(zip(image_axes, find_size(all_factors(labels), image_axes), strict=True))
        if first.strides:  # the columns, where windows of one row were joined before
            left |= {k: n for k, n in zip(image_axes, first.events[-1].output_size, strict=True) if k != kind}
        count = len(parts) if regular else sum(part.spans[kind][1] for part in parts)
        after = tuple(count if k == kind else left[k] for k in image_axes)
        # An axis that was not cut has been reduced as a whole, or not at all.
        steps_of = {
            k: (n, n) if m == 1 else (1, 1) for k, n, m in zip(image_axes, before, after, strict=True)
        }
        given = [strides.get(k, steps_of[k]) for k in image_axes]
        whole = all(stride for stride, _ in given)
        geometry = Geometry(
            first.kind,
            tuple(stride if whole else 0 for stride, _ in given),
            tuple(window if whole else 1 for _, window in given),
            phase=(0,) * len(given),
            reason=reason if whole or reason != _REASON else _UNEQUAL,
        )  # fmt: skip
        frame = self._running[-1]
        index = frame.counts["loop"]
        frame.counts["loop"] += 1
        event = Event(
            frame, "loop", index, geometry, before, after, count_channels(first.labels), first.root, y
        )
        part.events.append(event)
        self._keep(event)

    def _relabel(self, call: Call, kind: str, step: int, start: int) -> None:
        """Say that the axis along which windows were joined is an image axis again, if it holds only them."""
        y = call.outputs[0]
        axis, labels = call.a.get("dim", 0) % y.ndim, self._axes.labels(y)
        if y.shape[axis] != len(call.a["tensors"]):
            return  # they are joined as channels
        root = next(f for f in all_factors(self._parts[call.a["tensors"][0]].labels) if f.kind == kind)
        n = y.shape[axis]
        made = (
            Factor(kind, n, root.step * step, start=root.start + start * root.step)
            if step
            else Factor(MIXED, n)
        )
        self._axes.relabel(y, (*labels[:axis], Axis((made,)), *labels[axis + 1 :]))


def _find_apart(parts: Sequence[_Part]) -> str | None:
    """Return the axis along which some parts are apart, if it is but one."""
    kinds = parts[0].spans if parts else {}
    apart = [k for k in kinds if len({part.spans.get(k) for part in parts}) > 1]
    return apart[0] if len(apart) == 1 else None
