"""Windows that Python cuts and reduces one by one, and joins again: a pool, though no operator says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

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
    operator_name,
)
from spectral.discovery.events import Event, count_channels, find_image_axes, find_size
from spectral.operators import Geometry
from spectral.tracker import Frame

_REASON = "its windows are cut and reduced one by one: write it as a pool"
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
        strides: of the axes along which parts were joined again: (stride, window).
    """

    root: Tensor
    labels: Labels
    spans: dict[str, tuple[int, int]]
    events: list[Event] = field(default_factory=list)
    kind: str = "global_pool"
    strides: dict[str, tuple[int, int]] = field(default_factory=dict)


class Loops:
    """Follows parts of maps from where they are cut to where they are joined.

    Args:
        axes: the labels.
        running: the calls that are running.
        keep: takes an event.
    """

    def __init__(self, axes: AxisTracker, running: list[Frame], keep: Callable[[Event], None]) -> None:
        self._axes, self._running, self._keep = axes, running, keep
        self._parts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def follow(self, call: Call, labels_before: Labels) -> None:
        """Follow an operator that ran, given the labels of its first input from the image."""
        name = operator_name(call.func)
        if name in CROPS and call.a.get("step", 1) == 1 and isinstance(call.a.get("dim"), int):
            self._cut(call, labels_before)
        elif name in JOINS:
            self._join(call)
        else:
            part = self._parts.get(call.source)
            passes = name in _PASSING or torch.Tag.pointwise in call.func.tags or "keepdim" in call.a
            pools = "pool" in name
            if part is not None and pools:
                part = replace(part, kind="window_max" if "max" in name else "window_mean")
            if part is not None and (passes or pools) and len(list(filter(call.known, call.inputs))) == 1:
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

    def _join(self, call: Call) -> None:
        found = [self._parts.get(x) for x in call.a["tensors"]]
        parts = [part for part in found if part is not None]
        if len(parts) < max(2, len(found)) or any(part.root is not parts[0].root for part in parts):
            return
        first = parts[0]
        apart = [k for k in first.spans if len({part.spans.get(k) for part in parts}) > 1]
        if len(apart) != 1 or any(not part.events for part in parts):
            return
        (kind,) = apart
        if any(
            f.kind == kind and f.extent > 1
            for x in call.a["tensors"]
            for f in all_factors(self._axes.labels(x))
        ):
            return  # not reduced along this axis
        self._note(call, kind, parts)

    def _note(self, call: Call, kind: str, parts: list[_Part]) -> None:
        """Keep the windows as one pool, instead of a pool of each."""
        first, y = parts[0], call.outputs[0]
        starts = [part.spans[kind][0] for part in parts]
        windows = {part.spans[kind][1] for part in parts}
        steps = {b - a for a, b in pairwise(starts)}
        equal = len(windows) == len(steps) == 1 and min(steps) > 0
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
        after = tuple(len(parts) if k == kind else left[k] for k in image_axes)
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
            phase=(0,) * len(given), reason=_REASON if whole else _UNEQUAL,
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
