"""One forward pass without data that sees every place where resolution may drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeGuard

from torch import Tensor, nn

from spectral.axes import (
    BATCH,
    CHANNEL,
    IMAGE_AXES,
    AxisTracker,
    Factor,
    Labels,
    Layout,
    Window,
    find_layout,
    operator_name,
)
from spectral.inputs import Inputs
from spectral.layers.pool import Pool
from spectral.operators import KINDS, LOSSLESS, Geometry
from spectral.places import Place, Steps
from spectral.recorder import Operation, Recorder
from spectral.standin import run_on_standins
from spectral.tracker import Frame, Tracker

# What a module may do to its input before its operator and still be one site: pad, crop, copy or cast it.
_PREPARING = {
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "slice", "index_select", "new_empty",
    "empty_like", "copy_", "clone", "_to_copy", "alias", "detach", "view", "unsqueeze", "squeeze",
}  # fmt: skip


SIGNALS = "a layer for signals: dense maps are read of images and videos"

Beside = Callable[[nn.Module], AbstractContextManager[Any]]


def watch_nothing(model: nn.Module) -> AbstractContextManager[None]:
    """Watch nothing beside."""
    return nullcontext()


@dataclass
class Event:
    """One place where resolution drops (or everything does: a global pool), as the forward pass showed it."""

    frame: Frame
    family: str
    index: int
    geometry: Geometry
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    channels: int
    source: Tensor
    output: Tensor
    spread: tuple[int, int] = (1, 1)
    own: Steps = ()
    turn: int = 0
    layouts: tuple[Layout, Layout] | None = None
    prepared: bool = False
    returned: bool = False
    place: Place = field(default_factory=Place)


def record_events(model: nn.Module, inputs: Inputs, beside: Beside = watch_nothing) -> list[Event]:
    """Run a copy of the model once, on the meta device if it can; return what reduced resolution, in order.

    Args:
        model: any module.
        inputs: what to call it with.
        beside: makes a context of the copy, in which the pass runs: for whoever watches it too.

    Raises:
        SpectralError: if its forward fails on the example.
    """
    return run_on_standins(model, inputs, partial(_record, beside))


class _Discovery:
    """The events of one forward pass, and what tells them apart from operators that only look like them."""

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        self.axes = AxisTracker()
        self.events: list[Event] = []
        self.calls = Tracker(dict(model.named_modules()), begin=self._enter, end=self._leave)
        self.recorder = Recorder(self.calls.frames, self.note, self.observe)
        self._weights = set(map(id, weights))
        self.axes.mark_learned(weights)
        self._cutters: dict[int, Frame] = {}  # which call made a view
        self._noted: set[int] = set()
        self._before: dict[Frame, int] = {}  # events there were when each call began

    def _enter(self, frame: Frame) -> None:
        self.recorder.flush()
        self.calls.locate(frame)
        self._before[frame] = len(self.events)

    def _leave(self, frame: Frame, output: Any) -> None:
        self.recorder.flush()
        entering = frame.input
        module = frame.module
        if knows_dense_map(module) and _are_maps(entering, module) and _are_maps(output, module):
            del self.events[self._before[frame] :]
            self.note_layer(frame, entering, output)
        for event in reversed(self.events):
            if event.frame is frame:
                event.returned = event.output is output
                break

    def note(self, operation: Operation) -> None:
        """Keep a candidate that reduces the resolution of a map of the image."""
        operator = operation.decimation.operator
        note = {"maps": self._note_operator, "slices": self._note_slice, "windows": self._note_reduction}
        event = note[operator.acts_on](operation)
        if event is not None:
            own = 0 if operator.waits else 1  # the operator itself
            event.prepared = operation.frame.steps == own
            event.own, event.turn = operation.own, operation.turn
            self.events.append(event)

    def place_events(self) -> None:
        """Say of each event where it ran, and of how many alike it is one; when the pass has ended."""
        for event in self.events:
            frame, family = event.frame, event.family
            event.place = Place(
                frame.outer,
                event.own,
                frame.turn,
                event.turn,
                (self.calls.places[frame.path, frame.outer], self.calls.calls[frame.path]),
                (frame.turns[family, event.own] or 1, frame.counts[family] or 1),
            )

    def observe(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Follow the axes through an operator, and keep views and products that turn places into channels."""
        contraction = self.axes.find_contraction(func, args)
        if contraction is not None and isinstance(out, Tensor):
            self._note_contraction(*contraction, out)
        if not self.axes.follow(func, args, kwargs, out):
            return
        self._cutters.setdefault(self.axes.cuts, self.recorder.frames[-1])
        if operator_name(func) not in _PREPARING:
            for frame in self.recorder.frames:
                frame.steps += 1
        if isinstance(out, Tensor) and out.ndim > 1:
            found = self.axes.collect_channels(out)
            if found:
                self._note_view(self.recorder.frames[-1], found, out)

    def _note_operator(self, operation: Operation) -> Event | None:
        decimation, source = operation.decimation, operation.source
        geometry, rank = decimation.geometry, len(decimation.geometry.stride)
        labels = self.axes.labels(source)
        known = self.axes.comes_from_image(source)
        strided = [labels[a] for a in range(-rank, 0) if -a <= source.ndim and geometry.stride[a] != 1]
        signal = rank == 2 and decimation.input.shape[2] == 1
        if known and signal and all(f.kind == CHANNEL for axis in strided for f in axis):
            return None  # a pool over channels
        if not known and (geometry.kind == "resize" or self.axes.comes_from_weights(source)):
            return None  # a table of positions or of weights, not the image
        output = decimation.arrange(operation.result)
        spread: tuple[int, int] | None = (1, 1)
        if source.ndim == decimation.input.ndim or (
            rank == 2 and source.ndim == 3 and decimation.input.ndim == 4
        ):
            spread = _find_spread(labels)
        event = self._event(operation, geometry, decimation.input, output)
        event.spread = spread or (1, 1)
        if spread is None and geometry.reason is None:
            event.geometry = replace(geometry, reason="its images don't lie along one axis")
        weight = decimation.weight
        if weight is not None and id(weight) not in self._weights and geometry.kind == "conv":
            depthwise = geometry.groups == decimation.input.shape[1] == weight.shape[0]
            learned = any(True for _ in operation.frame.module.parameters(recurse=False))
            if depthwise and not learned:
                event.geometry = replace(event.geometry, kind="blur_pool")
        return event

    def note_layer(self, frame: Frame, x: Tensor, output: Tensor) -> None:
        """Keep a layer that knows its own dense map, instead of the operators that it consists of."""
        module: Any = frame.module
        row = (1,) if module.axes == 1 else ()  # a signal has one row
        stride, reason = (*row, *module.stride), SIGNALS if row else None
        before, after = ((*row, *maps.shape[2:]) for maps in (x, output))
        event = Event(
            frame, "layer", 0, Geometry(module.kind, stride, stride, reason=reason),
            before, after, x.shape[1], x, output,
            _find_spread(self.axes.labels(x)) or (1, 1),
        )  # fmt: skip
        self.axes.mark_decimated(x, output)
        if max(module.stride) > 1:
            self.events.append(event)

    def _note_slice(self, operation: Operation) -> Event | None:
        """Keep a slice of rows or columns: its place among the axes is read from their labels."""
        geometry, source = operation.decimation.geometry, operation.source
        labels = self.axes.labels(source)
        if not any(f.spatial for axis in geometry.axes for f in labels[axis]):
            return None
        axes = _find_axes(labels)
        cut = [labels[axis] for axis in geometry.axes]
        alone = all(len(axis) == 1 and axis[0].kind in IMAGE_AXES for axis in cut)
        numbers = zip(cut, geometry.stride, geometry.phase, strict=True)
        steps = {axis[0].kind: (s, p) for axis, s, p in numbers} if alone else dict.fromkeys(axes, (0, 0))
        placed = replace(
            geometry, stride=tuple(steps.get(kind, (1, 0))[0] for kind in axes), kernel=(1,) * len(axes),
            phase=tuple(steps.get(kind, (1, 0))[1] for kind in axes), axes=(),
        )  # fmt: skip
        layouts = find_layout(labels), find_layout(self.axes.labels(operation.result))
        if not alone or layouts[0] is None or layouts[1] is None:
            reason = "its images don't lie along one axis"
            if not alone or any(f.kind == "s" for axis in labels for f in axis):
                reason = "its rows and columns are not two axes of one tensor"
            return self._unplaced_event(operation, replace(placed, reason=reason))
        event = self._event(
            operation, placed, layouts[0].arrange(source), layouts[1].arrange(operation.result)
        )
        plain = source.ndim == 4 and layouts[0].whole and layouts[0].order == (0, 1, 2, 3)
        event.layouts = None if plain else (layouts[0], layouts[1])
        return event

    def _note_reduction(self, operation: Operation) -> Event | None:
        """Keep a maximum or mean over windows that a view has made, or over a whole axis: a global pool."""
        geometry, source = operation.decimation.geometry, operation.source
        labels = self.axes.labels(source)
        reduced = [f for axis in geometry.axes for f in labels[axis] if f.spatial and f.extent > 1]
        kept = [f for a, axis in enumerate(labels) if a not in geometry.axes for f in axis if f.spatial]
        if not reduced:
            return None
        gone = {f.kind for f in reduced}
        left = [f for f in kept if f.kind in gone and f.extent > 1]
        if not left:
            whole = _find_size(reduced, _find_axes(labels))
            placed = replace(geometry, kind="global_pool", stride=whole, kernel=whole, axes=())
            return self._unplaced_event(operation, placed)
        if "s" in gone or any(f.step >= g.step for f in reduced for g in left if f.kind == g.kind):
            return None  # windows are kept apart from their samples, or nothing is known
        axes = _find_axes(labels)
        window = _find_size(reduced, axes)
        stride = _find_steps(reduced, left, axes)
        zeros = (0,) * len(axes)
        placed = replace(geometry, stride=stride, kernel=window, padding=zeros, phase=zeros, axes=())
        layouts = find_layout(labels), find_layout(self.axes.labels(operation.result))
        if layouts[0] is None or layouts[1] is None:
            reason = "the windows it pools are cut by a view that can't be followed back to rows and columns"
            event = self._unplaced_event(operation, replace(placed, reason=reason))
            cuts = zip(event.output_size, stride, window, strict=True)
            event.input_size = tuple((n - 1) * s + k for n, s, k in cuts)
            return event
        event = self._event(
            operation, placed, layouts[0].arrange(source), layouts[1].arrange(operation.result)
        )
        event.layouts = (layouts[0], layouts[1])
        return event

    def _note_contraction(self, x: Tensor, axis: int, other: Tensor, out: Tensor) -> None:
        """Keep a product that sums over places: over those of a window, or over all of them to fewer."""
        places = [f for f in self.axes.labels(x)[axis] if f.spatial and f.extent > 1]
        if not places or out.shape[axis % x.ndim - x.ndim if out.ndim == x.ndim else -1] == x.shape[axis]:
            return
        found = self.axes.collect_channels(x, contracted=axis)
        if found:  # once, however many products read the windows, and where they were cut
            cut = max(window.cut for window in found)
            if cut not in self._noted:
                self._note_view(self._cutters.get(cut, self.recorder.frames[-1]), found, x)
            self._noted.add(cut)
        elif not self.axes.comes_from_weights(other) and out.shape[axis] < x.shape[axis]:
            geometry = Geometry("matmul_pool", (0, 0), reason="a pool written as a matrix product")
            frame = self.recorder.frames[-1]
            self._add_view(frame, geometry, (1, x.shape[axis]), (1, out.shape[axis]), x)

    def _note_view(self, frame: Frame, found: list[Window], x: Tensor) -> None:
        """Keep windows that have become channels of a tensor."""
        factors = [f for axis in self.axes.labels(x) for f in axis]
        windows = {window.kind: window for window in found}
        for kind in ("h", "w"):
            n = math.prod(f.extent for f in factors if f.kind == kind)
            windows.setdefault(kind, Window(kind, 1, 1, n, 0))
        cuts = [windows[kind] for kind in IMAGE_AXES if kind in windows]
        window, stride = tuple(w.size for w in cuts), tuple(w.stride for w in cuts)
        kind, reason = "space_to_depth", LOSSLESS
        if window != stride:
            kind = "unfold"
            skips = any(k < s for k, s in zip(window, stride, strict=True))
            reason = "its windows are cut by views and skip samples" if skips else LOSSLESS
        size = tuple(w.stride * (w.count - 1) + w.size for w in cuts)
        zeros, ones = (0,) * len(cuts), (1,) * len(cuts)
        geometry = Geometry(kind, stride, window, zeros, ones, zeros, reason=reason)
        self._add_view(frame, geometry, size, tuple(w.count for w in cuts), x)

    def _add_view(
        self, frame: Frame, geometry: Geometry, size: tuple[int, ...], left: tuple[int, ...], x: Tensor
    ) -> None:
        index = frame.counts["view"]
        frame.counts["view"] += 1
        channels = _count_channels(self.axes.labels(x)) // math.prod(geometry.kernel)
        self.events.append(Event(frame, "view", index, geometry, size, left, max(channels, 1), x, x))

    def _unplaced_event(self, operation: Operation, geometry: Geometry) -> Event:
        """Describe an operation on what is no batch of maps: sizes are those of its image axes."""
        labels = self.axes.labels(operation.source)
        event = self._event(operation, geometry, operation.source, operation.result)
        axes = _find_axes(labels)
        sizes = [
            _find_size([f for axis in self.axes.labels(x) for f in axis], axes)
            for x in (operation.source, operation.result)
        ]
        event.input_size, event.output_size = sizes
        event.channels = _count_channels(labels)
        return event

    def _event(self, operation: Operation, geometry: Geometry, entering: Tensor, leaving: Tensor) -> Event:
        rank = max(len(geometry.stride), 1)
        return Event(
            operation.frame, operation.decimation.operator.family, operation.index, geometry,
            tuple(entering.shape[-rank:]), tuple(leaving.shape[-rank:]),
            entering.shape[-rank - 1] if entering.ndim > rank else 1, operation.source, operation.result,
        )  # fmt: skip


def _find_axes(labels: Labels) -> list[str]:
    """Return the axes of its maps: rows and columns (a signal has one row), time where there is any."""
    timed = any(f.kind == "t" for axis in labels for f in axis)
    return [kind for kind in IMAGE_AXES if timed or kind != "t"]


def _find_size(factors: Sequence[Factor], axes: Sequence[str]) -> tuple[int, ...]:
    """Multiply the extents of each image axis; rows and columns that are mixed count as one row."""
    mixed = any(f.kind == "s" for f in factors)
    kinds = [axes[-1] if mixed and f.spatial else f.kind for f in factors]
    return tuple(
        math.prod(f.extent for f, k in zip(factors, kinds, strict=True) if k == axis) for axis in axes
    )


def _find_steps(inner: Sequence[Factor], outer: Sequence[Factor], axes: Sequence[str]) -> tuple[int, ...]:
    """Count the samples from one window to the next, along each axis; one window alone is its own stride."""
    steps = []
    for axis in axes:
        parts = [f for f in inner if f.kind == axis]
        apart = min((f.step for f in parts), default=1)
        whole = apart * math.prod(f.extent for f in parts)
        steps.append(min((f.step for f in outer if f.kind == axis), default=whole) // apart)
    return tuple(steps)


def _count_channels(labels: Labels) -> int:
    return math.prod(f.extent for axis in labels for f in axis if not f.spatial and f.kind != BATCH)


def knows_dense_map(module: nn.Module) -> TypeGuard[Pool]:
    """Whether a module is a layer of ours that is a site as a whole, not by the operators it consists of."""
    return isinstance(module, Pool) and getattr(KINDS.get(module.kind), "family", None) == "layer"


def _are_maps(x: Any, layer: Pool) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.ndim == layer.axes + 2


def _find_spread(labels: Labels) -> tuple[int, int] | None:
    """Find what stands before and after the images on the batch axis; None if they are elsewhere."""
    first = labels[0]
    position = next((i for i, f in enumerate(first) if f.kind == BATCH), None)
    if position is None:
        elsewhere = any(f.kind == BATCH for axis in labels[1:] for f in axis)
        return None if elsewhere else (1, 1)
    before = math.prod(f.extent for f in first[:position])
    return before, math.prod(f.extent for f in first[position + 1 :])


def _record(
    beside: Beside, model: nn.Module, inputs: Inputs, weights: Sequence[Tensor], forward: Callable[[], Any]
) -> list[Event]:
    discovery = _Discovery(model, weights)
    for tensor, batched in inputs.tensors():
        discovery.axes.mark_image(tensor, batched)
    with beside(model), discovery.calls, discovery.recorder.listening():
        forward()
    discovery.place_events()
    return discovery.events
