"""One forward pass without data that sees every place where resolution may drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from spectral.axes import (
    ATTENTION,
    CHANNEL,
    CROPS,
    FILLS,
    IMAGE_AXES,
    JOINS,
    OVERLAYS,
    PRODUCTS,
    AxisTracker,
    Call,
    Order,
    single,
    tensors_of,
)
from spectral.discovery.another import mark_dependent, may_depend
from spectral.discovery.chains import Chains
from spectral.discovery.entries import Entries
from spectral.discovery.events import Event, find_spread
from spectral.discovery.folding import Folding
from spectral.discovery.fourier import Spectra
from spectral.discovery.loops import Loops
from spectral.discovery.phases import Phases
from spectral.discovery.placing import place_map, place_pick, place_reduction, place_slice
from spectral.discovery.separable import Separable
from spectral.discovery.uses import Uses
from spectral.layers.activation import AliasFreeActivation
from spectral.layers.pool import Pool
from spectral.network.inputs import Inputs
from spectral.operators import KINDS, LOSSLESS, Geometry
from spectral.tracing.places import Place, Spot
from spectral.tracing.recorder import Operation, Recorder
from spectral.tracing.standin import find_original, needs_data, run_on_standins
from spectral.tracing.tensors import TensorTable
from spectral.tracing.tracker import Frame, Tracker

# What a module may do to its input before its operator and still be one site: pad, crop, copy or cast it.
_PREPARING = {
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "slice", "index_select", "new_empty",
    "empty_like", "copy_", "clone", "_to_copy", "alias", "detach", "view", "unsqueeze", "squeeze",
}  # fmt: skip

_TOLD = frozenset({*PRODUCTS, *ATTENTION, *FILLS, *JOINS, *OVERLAYS})  # of what they lose is told elsewhere

_JOINED = "several operators make its output"
_OUTSIDE = "a smaller map that no torch operator made (NumPy?): what was done to it can't be seen"

Beside = Callable[[nn.Module], AbstractContextManager[Any]]


def watch_nothing(model: nn.Module) -> AbstractContextManager[None]:
    """Watch nothing beside."""
    return nullcontext()


def record_events(model: nn.Module, inputs: Inputs, beside: Beside = watch_nothing) -> list[Event]:
    """Run a copy of the model, on the meta device if it can; return what reduced resolution, in order.

    A model that loops over the images of its batch runs its sites once for each of them: such a model is run
    once more, on one image; one that takes its images in another order than torch's, knowing that order; and
    one that needs values and loops, on another image, on which it may loop otherwise.

    Args:
        model: any module.
        inputs: what to call it with.
        beside: makes a context of the copy, in which the pass runs: for whoever watches it too.

    Raises:
        SpectralError: if its forward fails on the example.
    """
    batch: int | None = 2
    events, order = run_on_standins(model, inputs, partial(_record, beside, None), batch)
    if order is not None:
        events, _ = run_on_standins(model, inputs, partial(_record, beside, order), batch)
    if any(event.frame.call or event.turn for event in events):
        alone, _ = run_on_standins(model, inputs, partial(_record, watch_nothing, order), batch=None)
        if 0 < len(alone) < len(events):
            batch = None
            events, _ = run_on_standins(model, inputs, partial(_record, beside, order), batch)
    if needs_data(model) and may_depend(events):
        others, _ = run_on_standins(model, inputs.turn(), partial(_record, watch_nothing, order), batch)
        mark_dependent(events, others)
    return events


def _record(
    beside: Beside, order: Order | None, model: nn.Module, inputs: Inputs, weights: Sequence[Tensor],
    forward: Callable[[], Any],
) -> tuple[list[Event], Order | None]:  # fmt: skip
    """Return the events of a pass, and what the axes of the images are if it isn't what was assumed."""
    discovery = _Discovery(model, weights, order)
    extents: dict[str, int] = {}
    for tensor, batched in inputs.every_tensor():
        if is_image(tensor):
            kinds = discovery.axes.mark_image(tensor, batched)
            if tensor is inputs.image:
                extents = dict(zip(kinds, tensor.shape, strict=True))
    with beside(model), discovery.calls, discovery.recorder.listening():
        forward()
    events = discovery.finish()
    for event in events:
        event.image_size = tuple(extents[axis] for axis in IMAGE_AXES if axis in extents)
    return events, discovery.axes.reordered


class _Discovery:
    """The events of one forward pass, and what tells them apart from operators that only look like them."""

    def __init__(self, model: nn.Module, weights: Sequence[Tensor], order: Order | None) -> None:
        originals = [find_original(weight) for weight in weights]
        empty = any(original is not None and original.is_meta for original in originals)
        self.axes = AxisTracker(find_original, self._note_arrival, not empty, order)
        self.axes.mark_learned(weights)
        self.events: list[Event] = []
        self.calls = Tracker(dict(model.named_modules()), begin=self._enter, end=self._leave)
        self.recorder = Recorder(self.calls.frames, self.note, self.observe)
        self._uses, self._phases, self._separable = Uses(), Phases(), Separable()
        self._spectra = Spectra(self.axes.relabel, self.axes.constants.find_zeros)
        self._chains = Chains(model, find_original, self.axes.comes_from_image)
        self._folding = Folding(self.axes, self.calls.frames, self.events.append)
        self._entries = Entries(self.axes, self._uses, self.calls.frames, self.events.append)
        self._loops = Loops(self.axes, self.calls.frames, self.events.append)
        self._weights = {id(x): x for x in weights}  # held: a buffer may be exchanged while the model runs
        self._parts: TensorTable[Tensor] = TensorTable()  # tensor → what complex one it is of
        self._spot = Spot("", (), 0)  # where the latest operator ran
        self._before: dict[Frame, int] = {}  # events there were when each call began

    def finish(self) -> list[Event]:
        """Return the events in the order in which they happened."""
        self._entries.finish()
        self._phases.finish()
        self._separable.finish()
        self._place_events()
        kept = [event for event in self.events if event.used and not event.dropped]
        for event in kept:
            joined = bool(event.geometry.joined)
            event.chain, event.no_chain = (None, _JOINED) if joined else self._chains.find(event)
        return kept

    def _place_events(self) -> None:
        """Say of each event where it ran, and of how many alike it is one; when the pass has ended."""
        for event in self.events:
            frame, family = event.frame, event.family
            event.place = Place(
                frame.outer, event.own, frame.turn, event.turn,
                (self.calls.places[frame.path, frame.outer], self.calls.calls[frame.path]),
                (frame.turns[family, event.own] or 1, frame.counts[family] or 1),
            )  # fmt: skip

    def note(self, operation: Operation) -> None:
        """Keep a candidate that reduces the resolution of a map of the image."""
        operator = operation.decimation.operator
        place = {
            "maps": place_map, "slices": place_slice, "picks": place_pick, "windows": place_reduction,
        }  # fmt: skip
        if operator.acts_on not in place:
            return  # of entries that are taken one by one `Entries` tells
        event = place[operator.acts_on](operation, self.axes)
        if event is None:
            return
        own = 0 if operator.waits else 1  # the operator itself
        event.prepared = operation.frame.steps == own
        event.own, event.turn = operation.own, operation.turn
        self.events.append(event)
        self._spectra.note(event)
        if event.geometry.kind == "global_pool":
            self._loops.note_pool(event, operator.kind)
        if operator.acts_on in ("slices", "picks"):
            self._uses.watch(event, event.output)
            self._phases.note(event)
        if operator.acts_on in ("picks", "windows") or event.geometry.kind == "phase":
            labels = self.axes.labels(operation.source)
            self._folding.note_pool([labels[axis] for axis in operation.decimation.geometry.axes])
        elif event.geometry.reason == LOSSLESS:
            self._folding.note_folded(event)
        elif operation.decimation.weight is not None:
            self._refine_convolution(event, operation)
        self._separable.note(event, self._spot)
        self._chains.begin(event)

    def observe(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Follow the axes through an operator, and keep what loses places without being a candidate."""
        decimation, frame = self.recorder.reading, self.recorder.frames[-1]
        call = Call(func, args, kwargs, out)
        self._spot = frame.find_spot(call.name)
        acts_on = None if decimation is None else decimation.operator.acts_on
        reads_image = self.axes.read(call, acts_on == "maps")
        self._uses.follow(call)
        self._separable.follow(call)
        self._chains.follow(call)
        if not reads_image:
            return
        self._folding.note_contraction(call)
        self._folding.note_transform(call)
        before = [(x, self.axes.labels(x)) for x in call.sources]
        self._spectra.begin(call)
        self.axes.label(call, decimation)
        self._folding.note_cut()
        self._loops.follow(call, before[0][1])
        if call.name not in _PREPARING:
            for frame in self.recorder.frames:
                frame.steps += 1
        self._follow_parts(call)
        if "tensors" in call.facts.arguments and (joined := self._phases.find_joined(call.a["tensors"])):
            self._folding.note_join(*joined, call)
        parts = []
        bare = acts_on in (None, "entries", "places")
        if bare or acts_on == "slices":
            parts = self._folding.note_phases(call, before)
            for event in parts:
                self._uses.watch(event, event.output)
                self._phases.note(event)
        self._phases.follow(call, frame, self._spot)
        entries = self._entries.note(call, self.recorder.met, self._spot)
        lost = None
        if not entries and bare and not parts and not _is_exempt(call):
            lost = self._folding.note_loss(call, before)
            if lost is not None and call.name == "sort":
                self._uses.watch(lost, lost.output)  # its positions alone lose nothing
        self._spectra.follow(call, self.recorder.met, lost, frame, self._spot)
        for y in call.outputs:
            self._folding.note_channels(y)

    def _enter(self, frame: Frame) -> None:
        self.recorder.flush()
        self.calls.locate(frame)
        self._before[frame] = len(self.events)

    def _leave(self, frame: Frame, output: Any) -> None:
        self.recorder.flush()
        for x in tensors_of(list(output.values()) if isinstance(output, dict) else output):
            self._uses.read(x)
            if frame is self.calls.frames[0]:
                self._folding.note_output(x)
                self._phases.read(x)
                self._separable.read(x)
                self._chains.read(x)
        if isinstance(frame.module, (Pool, AliasFreeActivation, nn.RNNBase)):
            self._see_whole(frame, output)
        for event in reversed(self.events[self._before[frame] :]):
            if event.frame is frame:
                event.returned = event.output is output
                break

    def _see_whole(self, frame: Frame, output: Any) -> None:
        """See a layer as what it is as a whole, and not as the operators of which it consists."""
        entering, module = frame.input, frame.module
        if knows_dense_map(module) and _are_maps(entering, module) and _are_maps(output, module):
            del self.events[self._before[frame] :]
            self._note_layer(frame, module, entering, output)
        elif keeps_lattice(module) and isinstance(entering, Tensor) and isinstance(output, Tensor):
            del self.events[self._before[frame] :]  # it goes to a finer lattice and back
            self.axes.relabel(output, self.axes.labels(entering))
        elif isinstance(module, nn.RNNBase) and isinstance(entering, Tensor):
            self._note_sequence(frame, entering, output[0])

    def _refine_convolution(self, event: Event, operation: Operation) -> None:
        """Tell a blur from other convolutions, and a complex one from the real ones that make it."""
        weight, geometry = operation.decimation.weight, event.geometry
        assert weight is not None
        root = self._parts.get(operation.source)
        if root is not None:
            self._join_complex(event, root)
        elif geometry.kind == "conv" and id(weight) not in self._weights:
            depthwise = geometry.groups == operation.decimation.input.shape[1] == weight.shape[0]
            learned = any(True for _ in event.frame.module.parameters(recurse=False))
            fixed = not (
                learned or self.axes.comes_from_weights(weight) or self.axes.comes_from_image(weight)
            )
            if depthwise and fixed and is_low_pass(self.axes.constants.value(weight), geometry.stride):
                event.geometry = replace(geometry, kind="blur_pool")

    def _follow_parts(self, call: Call) -> None:
        """Follow real and imaginary part of a complex map, and their sum."""
        if call.name == "view_as_real":
            self._parts[call.outputs[0]] = call.a["self"]
        elif len(self._parts) and call.name in ("select", "add"):
            roots = [self._parts.get(x) for x in call.inputs]
            if roots[0] is not None and all(root is roots[0] for root in roots):
                self._parts[call.outputs[0]] = roots[0]

    def _join_complex(self, event: Event, root: Tensor) -> None:
        """Let the first of the real convolutions that make a complex one stand for all."""
        event.root = root
        reason = "a complex convolution, and the metrics are those of real maps"
        event.geometry = replace(event.geometry, reason=reason)
        first = next(e for e in self.events if e.frame is event.frame and e.root is root)
        event.dropped = first is not event

    def _note_layer(self, frame: Frame, module: Pool, x: Tensor, output: Tensor) -> None:
        """Keep a layer that knows its own dense map, instead of the operators that it consists of."""
        one = (1,) if module.axes == 1 else ()  # a signal is a map of one row
        stride = one + module.stride
        geometry = Geometry(module.kind, stride, stride, phase=(0,) * len(stride), reason=module.obstacle)
        event = Event(
            frame, "layer", 0, geometry, one + tuple(x.shape[2:]), one + tuple(output.shape[2:]), x.shape[1],
            x, output, find_spread(self.axes.labels(x)) or (1, 1),
        )  # fmt: skip
        self.axes.mark_decimated(x, output, module.stride)
        if max(module.stride) > 1:
            self.events.append(event)
            self._chains.begin(event)

    def _note_sequence(self, frame: Frame, x: Tensor, output: Any) -> None:
        """Let a recurrent layer be a sequence for a sequence, whatever takes its steps one by one."""
        begin = self._before[frame]
        self.events[begin:] = [e for e in self.events[begin:] if e.geometry.kind == "matmul_pool"]
        if isinstance(output, Tensor) and output.ndim == x.ndim:
            self.axes.relabel(output, (*self.axes.labels(x)[:-1], single(CHANNEL, output.shape[-1])))

    def _note_arrival(self, x: Tensor, before: tuple[int, ...] | None) -> None:
        """Keep that a smaller map comes from outside torch: what was done to it there can't be seen."""
        size = tuple(x.shape[2:])
        if before is None or all(n >= m for n, m in zip(size, before, strict=True)):
            return
        frame = self.calls.frames[-1]
        index = frame.counts["outside"]
        frame.counts["outside"] += 1
        geometry = Geometry("outside", (0,) * max(len(size), 2), reason=_OUTSIDE)
        one = (1,) if len(size) == 1 else ()
        event = Event(frame, "outside", index, geometry, one + before, one + size, x.shape[1], x, x)
        self.events.append(event)


def is_low_pass(kernels: Tensor | None, stride: Sequence[int]) -> bool:
    """Whether kernels (C, 1, k, …) pass the mean best, and at most half its power at the Nyquist frequency.

    That along each axis that is decimated. Where the weights aren't known they are taken for a blur.

    Example:
        >>> box, identity = torch.ones(1, 1, 2, 2), torch.tensor([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]])
        >>> is_low_pass(box, (2, 2)), is_low_pass(identity, (2, 2))
        (True, False)
    """
    if kernels is None:
        return True
    axes = tuple(range(2, kernels.ndim))
    response = torch.fft.fftn(kernels.double(), s=[32] * len(axes), dim=axes).abs().square()
    mean = response[(..., *[slice(0, 1)] * len(axes))]
    best = bool((response <= mean * (1 + 1e-6)).all()) and bool((mean > 0).all())
    decimated = [axis for axis, s in zip(axes, stride[-len(axes) :], strict=True) if s > 1]
    nyquist = [
        response[tuple(slice(16, 17) if a == axis else slice(0, 1) if a > 1 else slice(None)
                       for a in range(kernels.ndim))]
        for axis in decimated
    ]  # fmt: skip
    return best and all(bool((2 * power <= mean).all()) for power in nyquist)


def is_image(x: Tensor) -> bool:
    """Whether an input may be images: integers are where they have the axes of images."""
    return 2 <= x.ndim <= 5 if x.is_floating_point() or x.is_complex() else 4 <= x.ndim <= 5


def knows_dense_map(module: nn.Module) -> TypeGuard[Pool]:
    """Whether a module is a layer of ours that is a site as a whole, not by the operators it consists of."""
    return isinstance(module, Pool) and getattr(KINDS.get(module.kind), "family", None) == "layer"


def keeps_lattice(module: nn.Module) -> bool:
    """Whether a module is a layer of ours that gives a map on its input's lattice, whatever it does inside.

    Example:
        >>> keeps_lattice(nn.ReLU())
        False
    """
    return isinstance(module, AliasFreeActivation)


def _are_maps(x: Any, layer: Pool) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.ndim == layer.axes + 2


def _has_no_room(call: Call) -> bool:
    """Whether more entries are written to a tensor than it has: some are added to one place, or lost."""
    target, *others = call.inputs
    return any(
        x.ndim == target.ndim and any(n > room for n, room in zip(x.shape, target.shape, strict=True))
        for x in others
    )


def _is_exempt(call: Call) -> bool:
    """Whether an operator that has fewer samples than its input loses none, or is told elsewhere."""
    crop = call.name in CROPS and call.a.get("step", 1) == 1
    if call.name in FILLS and _has_no_room(call):
        return False
    return crop or call.name in _TOLD or call.facts.is_pointwise or call.sliding is not None
