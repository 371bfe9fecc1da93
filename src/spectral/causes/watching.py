"""One forward pass without data, watched: which calls of functions lose shift equivariance, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from spectral.axes import AxisTracker, Call, Order, find_step, memory_of, operator_name
from spectral.causes.rules import Finding, find_finer, judge, read_axes, slides_over_places
from spectral.discovery.record import is_image, keeps_lattice, knows_dense_map
from spectral.network.inputs import Example
from spectral.numerics.finer import Axes
from spectral.sites import Site, watch_reductions
from spectral.tracing.places import Steps
from spectral.tracing.recorder import Operation, Recorder
from spectral.tracing.standin import find_original
from spectral.tracing.tensors import TensorTable
from spectral.tracing.tracker import Frame, Scope, Tracker

FILTERS_IMAGES = "filters_images"
"""Attribute of functions that belong to the one before, which made the lattice finer."""
KEEPS_LATTICE = "keeps_lattice"
"""Attribute of functions that are one operator as a whole and lose no equivariance."""
RENORMALISES = "renormalises_border"
"""Attribute of functions that make up for zeros beyond the border, where there are any."""
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
MAXIMA = ("max_pool1d", "max_pool2d", "max_pool3d")
MEANS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
CONSUMERS = frozenset({*CONVOLUTIONS, *MAXIMA, *MEANS})
"""Functions that take a padded map as the periodic one behind it."""
Key = tuple[str, int, str, Steps, int]
"""Where a function is called: module, which of its calls, function, steps from its forward, which time."""


@dataclass(eq=False)
class FunctionCall:
    """One call of a torch function on a map, as it ran.

    Attributes:
        key: where.
        func: the function.
        args: its positional arguments; tensors without data.
        kwargs: its named ones.
        entering: of every tensor among them, which axes are image axes; None where that can't be said.
        leaving: the same of every tensor it returned.
        sizes: shapes of these.
        returned: the type of what held them.
        before: shapes of the tensors that entered.
        findings: what its operators do to shift equivariance.
        sites: keys of the sites that it runs.
        finer: along which axes of what it returned first the lattice is finer, and how much.
        written: which of the tensors that entered it returns, written to; None if none.
        writes: whether it writes into what it was given.
        wrapped: by how much its first tensor was padded circularly, by axis.
        slides: whether windows of several places slide over the map within it.
        padded: whether any tensor that entered was padded.
        carries: whether all maps that entered were padded alike and keep their places: what leaves is padded
            so too.
        opened: which function does something else with what this one, a pad, has padded; "" if none.
        alone: whether its module has none inside it and is no model of its own.
    """

    key: Key
    func: Callable[..., Any]
    args: Any
    kwargs: Mapping[str, Any]
    entering: list[Axes | None]
    before: list[tuple[int, ...]]
    leaving: list[Axes | None] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    returned: type = tuple
    findings: list[Finding] = field(default_factory=list)
    sites: list[tuple[str, int, str, int]] = field(default_factory=list)
    finer: dict[int, Fraction] = field(default_factory=dict)
    written: int | None = None
    writes: bool = False
    wrapped: Mapping[int, int] = field(default_factory=dict)
    slides: bool = False
    padded: bool = False
    carries: bool = False
    opened: str = ""
    alone: bool = False

    @property
    def name(self) -> str:
        """The function's name."""
        return self.key[2]

    @property
    def is_on_map(self) -> bool:
        """Whether any tensor that it was given is a map, or may be one."""
        return any(axes is None or axes for axes in self.entering)


@dataclass(frozen=True)
class _Pads:
    """What a tensor was padded by.

    Attributes:
        amounts: equal where two tensors are padded alike.
        calls: of pads.
    """

    amounts: tuple[Any, ...]
    calls: tuple[FunctionCall, ...]

    def grow(self, call: FunctionCall) -> _Pads | None:
        """Return what there is behind one more pad, None if that is nothing along image axes."""
        ends = call.args[1] if len(call.args) > 1 else call.kwargs["pad"]
        rank = len(call.before[0])
        sides = {rank - 1 - i: (ends[2 * i], ends[2 * i + 1]) for i in range(len(ends) // 2)}
        own = {
            kind: sides[axis] for kind, axis in (call.entering[0] or {}).items() if any(sides.get(axis, ()))
        }
        if not own:
            return self if self.calls else None
        return _Pads((*self.amounts, *sorted(own.items())), (*self.calls, call))


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer of this package that knows its own dense map: one operator as a whole.

    Attributes:
        site: its key.
        kind: the layer's.
        before: extents that entered, along its axes.
        after: those that left.
        stride: the layer's.
    """

    site: tuple[str, int, str, int]
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def path(self) -> str:
        """The layer's path."""
        return self.site[0]

    @property
    def is_closed(self) -> bool:
        """Whether what it keeps is a lattice of the whole period."""
        return all(m == s * n for m, n, s in zip(self.before, self.after, self.stride, strict=True))


class Turns:
    """Counts the calls of functions at each place, alike in a pass without data and in those with."""

    def __init__(self) -> None:
        self._turns: Counter[tuple[str, int, str, Steps]] = Counter()

    def locate(self, frame: Frame, func: Any) -> Key:
        """Return where a function is called now, and count it."""
        place = frame.path, frame.call, str(getattr(func, "__name__", func)), frame.find_steps()
        self._turns[place] += 1
        return (*place, self._turns[place] - 1)


class Watcher(Scope):
    """Watches one pass of a copy of a model.

    Args:
        model: the copy.
        order: what the axes of the images are, as for `AxisTracker`.

    Attributes:
        calls: what it saw of functions on maps, in their order.
        layers: calls of layers of this package that know their dense map.
        strays: operators that lose equivariance and that no torch function called.
        called: how often each module ran.
        keys: of every call of a function, on maps or not, with the shapes of the tensors that it was given.
    """

    def __init__(self, model: nn.Module, order: Order | None = None) -> None:
        self.keys: dict[Key, list[tuple[int, ...]]] = {}
        self.calls: list[FunctionCall] = []
        self.layers: list[LayerCall] = []
        self.strays: list[tuple[str, str, str]] = []
        self.called: Counter[str] = Counter()
        self._axes = AxisTracker(find_original, lambda x, before: None, order=order)
        self._axes.mark_learned(model.parameters())
        self._modules = Tracker(dict(model.named_modules()), begin=self._begin, end=self._end)
        self._operators = Recorder(self._modules.frames, self._note_operation, self._note)
        self._turns = Turns()
        self._running: FunctionCall | None = None
        self._made_by: TensorTable[Any] = TensorTable()
        self._wrapped: TensorTable[Any] = TensorTable()
        self._padded: TensorTable[_Pads] = TensorTable()
        self._own: list[Frame] = []  # calls of layers that are no operators but one of their own

    @property
    def reordered(self) -> Order | None:
        """What the axes of the images are, if the pass has shown that it isn't what was assumed."""
        return self._axes.reordered

    def _enter(self, stack: ExitStack) -> None:
        for watched in (self._modules, FunctionMode(self.run), self._operators.listening()):
            stack.enter_context(watched)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a torch function, and keep what it does to maps."""
        if not self._operators.is_counting:
            return func(*args, **kwargs)
        frame = self._modules.frames[-1]
        key = self._turns.locate(frame, func)
        given = tensors_of((args, kwargs))
        self.keys[key] = [tuple(x.shape) for x in given]
        if getattr(func, KEEPS_LATTICE, False):
            return self._run_whole(frame, func, args, kwargs)
        self._running = call = FunctionCall(
            key, func, args, kwargs, [self._read(x) for x in given], [tuple(x.shape) for x in given],
            wrapped=self._wrapped.get(given[0], {}) if given else {},
            alone=bool(frame.path) and not any(True for _ in frame.module.children()),
        )  # fmt: skip
        try:
            out = func(*args, **kwargs)
        finally:
            self._running = None
        made = tensors_of(out)
        if call.name == "__setitem__" and len(given) > 1:
            made = [given[0]]
            call.finer = self._find_filled(given[0], given[-1])
        call.leaving, call.sizes = [self._read(y) for y in made], [tuple(y.shape) for y in made]
        call.returned = type(out)
        call.written = next((i for i, x in enumerate(given) if made and made[0] is x and call.writes), None)
        for y in made:
            self._made_by[y] = call
        if call.name == "pad" and find_padding_mode(args, kwargs) == "circular":
            sizes = zip(call.sizes[0], call.before[0], strict=True)
            self._wrapped[made[0]] = {axis: n - m for axis, (n, m) in enumerate(sizes)}
        self._follow_pads(call, given, made)
        if (call.is_on_map or call.finer) and not self._own and not _is_choosing(key):
            self.calls.append(call)
        return out

    def _run_whole(self, frame: Frame, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that is one operator, whatever it consists of, and loses nothing."""
        self._own.append(frame)
        try:
            out = func(*args, **kwargs)
            self._operators.flush()
        finally:
            self._own.pop()
        given = tensors_of((args, kwargs))
        for y in tensors_of(out):
            like = next((x for x in given if x.shape == y.shape and self._axes.comes_from_image(x)), None)
            if like is not None:
                self._axes.relabel(y, self._axes.labels(like))
        return out

    def _follow_pads(self, call: FunctionCall, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Follow what was padded to what slides over it, or note that something else is done with it."""
        none = _Pads((), ())
        behind = [self._padded.get(x, none) for x in given]
        if call.name == "pad":
            if pads := behind[0].grow(call):
                self._padded[made[0]] = pads
            return
        if not any(pads.calls for pads in behind) or call.name in CONSUMERS:
            return
        call.padded = True
        maps = [i for i, own in enumerate(call.entering) if own is None or own]
        places = [_find_places(call.entering[i], call.before[i]) for i in maps]
        places += [_find_places(own, size) for own, size in zip(call.leaving, call.sizes, strict=True)]
        known = [own for own in places if own is not None]
        if maps and len(known) == len(places) and len({behind[i].amounts for i in maps}) == 1:
            pads = _Pads(behind[maps[0]].amounts, sum((behind[i].calls for i in maps), ()))
            whole = all(own == known[0] for own in known) and not call.slides and not call.sites
            whole &= call.name != "__setitem__"  # which returns nothing
            crops = call.name == "__getitem__" and not call.findings and known[0].keys() == known[-1].keys()
            call.carries = whole
            for y in made if whole or crops else ():
                self._padded[y] = pads if whole else _Pads((*pads.amounts, id(call)), pads.calls)
                if whole and call.entering[maps[0]] == self._read(y) and given[maps[0]] in self._wrapped:
                    self._wrapped[y] = self._wrapped[given[maps[0]]]
            if whole or crops:
                return
        for pad in {id(pad): pad for own in behind for pad in own.calls}.values():
            pad.opened = pad.opened or call.name

    def _find_filled(self, target: Tensor, source: Tensor) -> dict[int, Fraction]:
        """Tell along which axes a tensor is finer than what was written to every s-th entry of it."""
        if target.ndim != source.ndim or not self._axes.comes_from_image(source):
            return {}
        pairs = zip(self._axes.labels(target), self._axes.labels(source), strict=True)
        steps = [(find_step(own), find_step(other)) for own, other in pairs]
        return {
            axis: Fraction(other[1]) / own[1] for axis, (own, other) in enumerate(steps)
            if own and other and own[0] == other[0] and own[1] < other[1]
        }  # fmt: skip

    def _read(self, x: Tensor) -> Axes | None:
        """Tell the image axes of a tensor; what the image has no part in is no map."""
        return read_axes(self._axes.labels(x)) if self._axes.comes_from_image(x) else {}

    def _begin(self, frame: Frame) -> None:
        self._operators.flush()
        self.called[frame.path] += 1
        if frame.parent is None:
            for x in tree_leaves((frame.args, frame.kwargs)):
                if isinstance(x, Tensor) and is_image(x) and not self._axes.comes_from_image(x):
                    self._axes.mark_image(x)
        if is_own(frame.module):
            self._own.append(frame)

    def _end(self, frame: Frame, output: Any) -> None:
        self._operators.flush()
        if is_own(frame.module):
            self._own.pop()
            x, module = frame.input, frame.module
            if keeps_lattice(module) and x is not None and isinstance(output, Tensor):
                self._axes.relabel(output, self._axes.labels(x))
            elif knows_dense_map(module) and x is not None and isinstance(output, Tensor):
                self._axes.mark_decimated(x, output, module.stride)
                before, after = (tuple(y.shape[y.ndim - module.axes :]) for y in (x, output))
                key = frame.path, frame.call, "layer", 0
                self.layers.append(LayerCall(key, module.kind, before, after, module.stride))

    def _note_operation(self, operation: Operation) -> None:
        """Keep which function runs a site."""
        call = self._made_by.get(operation.result) or self._running
        if call is not None:
            frame = operation.frame
            call.sites.append((frame.path, frame.call, operation.family, operation.index))

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Follow the image's axes through an operator."""
        decimation = self._operators.reading
        slides = decimation is not None and decimation.operator.acts_on == "maps"
        running = self._running
        if running is not None and func._schema.is_mutable:
            running.writes |= any(_is_given(x, running) for x in _list_written(func, args, kwargs))
        call = Call(func, args, kwargs, out)
        if not self._axes.read(call, slides):
            return
        self._axes.label(call, decimation)
        if running is not None:
            running.slides |= slides_over_places(call)
        choosing = self._running is not None and _is_choosing(self._running.key)
        finding = None if self._own or choosing else judge(call)
        if running is not None:
            running.finer |= find_finer(call) if call.outputs else {}
            if finding is not None:
                running.findings.append(finding)
        elif finding is not None and finding.nonlinear:
            frame = self._modules.frames[-1]
            what = finding.reason or "it runs as no torch function, so nothing can run in its place"
            self.strays.append((frame.path, operator_name(func), what))


def watch_calls(model: nn.Module, example: Example) -> tuple[Watcher, list[Site]]:
    """Watch one pass of a copy of a model together with `find_sites`, and return what both have found.

    A model that takes its images in another order than torch's is run once more, knowing that order; the
    latest pass is that of the sites.

    Raises:
        SpectralError: as for `find_sites`.
    """
    watchers: list[Watcher] = []
    order: Order | None = None

    def watch(copy: nn.Module) -> Watcher:
        nonlocal order
        order = order or (watchers[-1].reordered if watchers else None)
        watchers.append(Watcher(copy, order))
        return watchers[-1]

    sites = watch_reductions(model, example, watch)
    return watchers[-1], sites


class FunctionMode(TorchFunctionMode):
    """Hands every torch function that runs inside to a function of its own: what to run, args and kwargs."""

    def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, or what takes its place."""
        return self._run(func, args, kwargs or {})


def _find_places(axes: Axes | None, size: Sequence[int]) -> dict[str, int] | None:
    """Return the extents of a tensor along its image axes, None where these aren't whole."""
    return None if axes is None else {kind: size[axis] for kind, axis in axes.items()}


def is_own(module: nn.Module) -> bool:
    """Whether a module is a layer of this package that is one operator as a whole."""
    return knows_dense_map(module) or keeps_lattice(module)


def find_padding_mode(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the mode that a call of torch's ``pad`` asks for."""
    return str(args[2] if len(args) > 2 else kwargs.get("mode") or "constant")


def _is_choosing(key: Key) -> bool:
    """Whether a function runs where a layer of this package chooses a phase for several."""
    return any(step[0] == "PhasePool.select" for step in key[3])


def _is_given(x: Tensor, call: FunctionCall) -> bool:
    """Whether a tensor lies in memory that a function was given: into what it made itself it may write."""
    return memory_of(x) in map(memory_of, tensors_of((call.args, call.kwargs)))


def _list_written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors that an operator writes into."""
    names = func._schema.arguments
    given = {**dict(zip((a.name for a in names), args, strict=False)), **kwargs}
    written = (given.get(a.name) for a in names if a.alias_info is not None and a.alias_info.is_write)
    return tensors_of(list(written))


def tensors_of(values: Any) -> list[Tensor]:
    """Return the tensors among what a function takes or returns, nested in any way, in order."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
