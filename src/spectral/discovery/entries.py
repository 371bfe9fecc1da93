"""Entries of an axis that are taken one by one: all of them lose nothing, every second is decimation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from spectral.axes import (
    IMAGE_AXES,
    MIXED,
    AxisTracker,
    Call,
    all_factors,
    drop_entry,
    extent_of,
    find_layout,
    find_spacing,
    is_lattice,
    resample,
)
from spectral.discovery.events import PLACES, Event, count_channels, find_image_axes
from spectral.discovery.placing import measure_places
from spectral.discovery.uses import Uses, find_view
from spectral.operators import Geometry
from spectral.tracing.places import Ending, Spot
from spectral.tracing.recorder import Operation
from spectral.tracing.tracker import Frame


@dataclass
class _Token:
    """One entry that was taken, in a call, and where."""

    frame: Frame
    spot: Spot
    used: bool = False


@dataclass
class _Taken:
    """The entries of one axis of one tensor."""

    event: Event
    kinds: set[str]
    count: int
    operation: Operation | None
    axis: int
    tokens: dict[int, list[_Token]] = field(default_factory=dict)


class Entries:
    """Collects what select and unbind take from an axis of places.

    Args:
        axes: the labels.
        uses: tells which entries are read.
        running: the calls that are running.
        keep: takes an event.
    """

    def __init__(
        self, axes: AxisTracker, uses: Uses, running: list[Frame], keep: Callable[[Event], None]
    ) -> None:
        self._axes, self._uses, self._running, self._keep = axes, uses, running, keep
        self._taken: dict[tuple[Hashable, int], _Taken] = {}

    def note(self, call: Call, operation: Operation | None, spot: Spot) -> bool:
        """Keep a call that takes entries of an axis of which nothing else is left; tell whether it does.

        Args:
            call: the operator that ran.
            operation: by what it is met again; None if it belongs to one before.
            spot: where it ran.
        """
        if call.a.name not in ("aten::select", "aten::unbind"):
            return False
        x = call.a["self"]
        labels = self._axes.labels(x)
        axis = call.a["dim"] % x.ndim
        first = labels[axis].joined.before if labels[axis].joined is not None else 0
        left = find_spacing(drop_entry(labels, axis, first))
        places = [f for f in labels[axis] if f.spatial and f.extent > 1]
        mixed = any(f.kind == MIXED for f in places)
        gone = {f.kind for f in labels[axis] if f.spatial and f.kind in IMAGE_AXES and f.extent > 1} - set(
            left
        )
        if not gone and not mixed:
            return False
        taken = self._taken.get((find_view(x), axis)) or self._begin(call, axis, gone or {MIXED}, operation)
        chosen = [call.a["index"] % x.shape[axis]] if "index" in call.a else range(x.shape[axis])
        for entry, (index, y) in enumerate(zip(chosen, call.outputs, strict=True)):
            place = index - first
            if 0 <= place < taken.count:
                token = _Token(self._running[-1], replace(spot, entry=entry))
                taken.tokens.setdefault(place, []).append(token)
                self._uses.watch(token, y)
        return True

    def finish(self) -> None:
        """Decide what the entries that were read are together."""
        for taken in self._taken.values():
            used = sorted(place for place, tokens in taken.tokens.items() if any(t.used for t in tokens))
            steps = {b - a for a, b in pairwise(used)}
            if not used or len(used) == taken.count or steps == {1}:
                taken.event.dropped = True  # none, all, or a crop
                continue
            what = PLACES[min(taken.kinds)] if len(taken.kinds) == 1 else "places"
            reason = f"{len(used)} of its {taken.count} {what} are taken one by one"
            if len(used) == 1:
                reason = f"one of its {taken.count} {what} is kept: no lattice is left along that axis"
            elif len(steps) == 1:
                reason = f"its {what} are taken one by one, {min(steps)} apart: write it as a slice"
                self._space(taken, used, min(steps))
                if taken.event.layouts is not None:
                    continue
            taken.event.geometry = replace(taken.event.geometry, reason=reason)

    def _space(self, taken: _Taken, used: list[int], step: int) -> None:
        """Say what is left of an axis of which every so many-th entry is taken; dense is the source."""
        event = taken.event
        labels = self._axes.labels(event.source)
        axes = [find_image_axes(labels).index(k) for k in taken.kinds & set(IMAGE_AXES)]
        if len(axes) != 1:
            return
        stride, size, phase = (
            [1] * len(event.geometry.stride),
            list(event.output_size),
            [0] * len(event.output_size),
        )
        stride[axes[0]], size[axes[0]], phase[axes[0]] = step, len(used), used[0]
        event.geometry = replace(
            event.geometry, kind="select", stride=tuple(stride), kernel=(1,) * len(stride), phase=tuple(phase)
        )
        event.output_size = tuple(size)
        left = resample(labels[taken.axis], len(used), step)
        layouts = find_layout(labels), find_layout((*labels[: taken.axis], left, *labels[taken.axis + 1 :]))
        read = [next(token for token in taken.tokens[place] if token.used) for place in used]
        apart = any(token.frame is not event.frame for token in read)
        if layouts[0] is None or layouts[1] is None or apart or not event.source.is_floating_point():
            return
        if taken.operation is not None:
            event.geometry = replace(event.geometry, joined=taken.operation.decimation.operator.kind)
            event.layouts = layouts[0], layouts[1]
            event.ending = Ending(tuple(token.spot for token in read), taken.axis)

    def _begin(self, call: Call, axis: int, kinds: set[str], operation: Operation | None) -> _Taken:
        x = call.a["self"]
        labels = self._axes.labels(x)
        after = drop_entry(labels, axis, 0)
        sizes = measure_places(labels, after)
        image_axes = find_image_axes(labels)
        stride = tuple(n if k in kinds else 1 for k, n in zip(image_axes, sizes[0], strict=True))
        geometry = Geometry("select" if is_lattice(after) else "global_pool", stride, stride)
        frame = self._running[-1]
        family, index = (
            ("entry", frame.counts["entry"]) if operation is None else (operation.family, operation.index)
        )
        frame.counts["entry"] += operation is None
        event = Event(frame, family, index, geometry, *sizes, count_channels(labels), x, call.outputs[0])
        if operation is not None:
            event.own, event.turn = operation.own, operation.turn
        self._keep(event)
        spatial = [f for f in all_factors((labels[axis],)) if f.spatial]
        taken = _Taken(event, kinds, extent_of(spatial), operation, axis)
        self._taken[find_view(x), axis] = taken
        return taken
