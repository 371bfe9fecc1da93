"""One forward pass of a model, watched: what ran on which tensors, and who used these."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from spectral.network.inputs import Example, Inputs
from spectral.operators import is_pointwise
from spectral.sites import Site, watch_reductions
from spectral.surgery import ledger
from spectral.surgery.functions import Signature, count_axes, name_function, read_signature
from spectral.surgery.places import find_spot
from spectral.surgery.rewriting import Function
from spectral.tracing.recorder import Operation, Recorder
from spectral.tracing.standin import run_on_standins
from spectral.tracing.tracker import Frame, Scope, Tracker

# Linear or without arithmetic: a pool may stand on either side of them.
_LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "clone", "_to_copy", "copy", "alias", "detach"}
_MOVES = {
    "permute", "transpose", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "alias",
    "detach", "empty", "empty_like", "t", "select",
}  # fmt: skip

# Modules that run their operator with their own ``stride``, as they would with another.
STRIDED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d,
)  # fmt: skip


@dataclass
class Call:
    """One call of a module, or of a torch function in its own forward: when it began and what it did.

    Attributes:
        path: the module's, or that of the module whose forward called the function.
        number: which call of the module it belongs to.
        start: when it began.
        input: the tensor it was given, where one is all it was given.
        function: which function it is, None of a module.
        signature: how the function decimates, None if it doesn't.
        axes: how many spatial axes the maps of such a function have.
        samplewise: nothing in it mixes samples.
        nonlinear: something in it is no linear function of what it was given.
        owing: a layer was owed when it ended: maps are still dense there.
        unsized: how large what it gave is, is up to the values in the images.
    """

    path: str
    number: int
    start: int
    input: Tensor | None
    function: Function | None = None
    signature: Signature | None = None
    axes: int = 0
    end: int = -1
    output: Any = None
    samplewise: bool = True
    nonlinear: bool = False
    owing: bool = False
    unsized: bool = False

    @property
    def place(self) -> tuple[str, Function | None]:
        """What runs, whichever time it is."""
        return self.path, self.function and replace(self.function, repeat=0)


@dataclass(frozen=True)
class Use:
    """One operator that read a tensor."""

    time: int
    call: Call  # of the innermost module
    function: Call | None  # the torch function that ran it
    activation: Tensor | None  # its output, where it is a nonlinear function of this tensor alone


@dataclass(frozen=True)
class Activation:
    """What activates a map: a module, or a function in the forward of one, at one of its calls."""

    call: Call
    wait: int  # calls of it for other maps, since the map was made


@dataclass(frozen=True)
class Operator:
    """An operator of a site as it ran.

    Attributes:
        function: the torch function that ran it; None if none did, or one of another module than the site's.
        channels: of what it gave.
        output: what it gave.
        time: when.
    """

    function: Call | None
    channels: int
    output: Tensor
    time: int


@dataclass
class Observation:
    """What one forward pass showed.

    Attributes:
        calls: of every module and function, in the order in which they began.
        returned: the tensors that the model returned.
        flops: floating-point operations of convolutions and matrix products.
        batch: images in the pass.
        leading: extent of the first axis of what the model was given.
        told: names of modules of `STRIDED` whose stride other code than their own forward has read.
    """

    calls: list[Call] = field(default_factory=list)
    returned: list[Tensor] = field(default_factory=list)
    flops: int = 0
    batch: int = 1
    leading: int = 2
    told: set[str] = field(default_factory=set)
    uses: dict[int, list[Use]] = field(default_factory=lambda: defaultdict(list))
    operators: dict[tuple[str, int, str, int], Operator] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply–accumulates for one image."""
        return self.flops // (2 * self.batch)

    def find_operator(self, site: Site) -> Operator | None:
        """Return the operator of a site as it ran; None if it is no operator but a view."""
        return self.operators.get(site.key)

    def find_activation(self, output: Any, time: int) -> Activation | None:
        """Follow a map through modules that alone use it, to the first that activates it.

        Args:
            output: the map.
            time: when it was made.

        Returns:
            None if there is none, or a map on the way is used by anything else.
        """
        tensor, now = output, time
        while isinstance(tensor, Tensor) and not any(tensor is t for t in self.returned):
            uses = [use for use in self.uses[id(tensor)] if use.time > now]
            following = self._find_consumer(tensor, now)
            if following is None:
                # What an in-place activation leaves is another map in the same tensor.
                alone = uses and (len(uses) == 1 or uses[0].activation is tensor)
                function = uses[0].function if alone and uses[0].activation is not None else None
                return None if function is None else self._wait_for(function, time)
            if following.output is tensor:
                uses = [use for use in uses if use.time < following.end]
            if any(not following.start < use.time < following.end for use in uses):
                return None
            if following.nonlinear:
                return self._wait_for(self._find_innermost(following), time)
            tensor, now = following.output, following.end
        return None

    def is_branching(self, output: Any, time: int, activation: Call) -> bool:
        """Whether a map is used by anything else, or returned, before an activation has taken it up.

        Unlike `find_activation` this doesn't ask what is on the way, which in training is another norm, and
        dropout.

        Args:
            output: the map.
            time: when it was made.
            activation: a call in the place of the activation, perhaps of another pass.
        """
        tensor, now = output, time
        while isinstance(tensor, Tensor) and not any(tensor is t for t in self.returned):
            following = self._find_consumer(tensor, now, samplewise=False)
            uses = [use for use in self.uses[id(tensor)] if use.time > now]
            if following is None:
                following = uses[0].function if uses else None
            if following is None:
                return True
            if following.output is tensor:
                uses = [use for use in uses if use.time < following.end]
            if any(not following.start < use.time < following.end for use in uses):
                return True
            if self._holds(following, activation):
                return False
            tensor, now = following.output, following.end
        return True

    def _holds(self, call: Call, other: Call) -> bool:
        inside = (c for c in self.calls if call.start <= c.start and c.end <= call.end)
        return any(c.place == other.place for c in inside)

    def _find_consumer(self, tensor: Tensor, time: int, samplewise: bool = True) -> Call | None:
        for call in self.calls:
            if call.start > time and call.input is tensor and call.function is None:
                out = call.output
                alike = isinstance(out, Tensor) and out.shape == tensor.shape
                if alike and (call.samplewise or not samplewise):
                    return call
        return None

    def _find_innermost(self, call: Call) -> Call:
        """Return the module inside another whose output that one returns: as an activation in a norm."""
        for inner in self.calls:
            within = call.start < inner.start and inner.end < call.end and inner.function is None
            if within and inner.output is call.output and inner.nonlinear and inner.samplewise:
                after = [use for use in self.uses[id(inner.output)] if inner.end < use.time < call.end]
                if not after:
                    return self._find_innermost(inner)
        return call

    def _wait_for(self, call: Call, time: int) -> Activation:
        earlier = [c for c in self.calls if c.place == call.place and time < c.start < call.start]
        return Activation(call, len(earlier))


def observe(
    model: nn.Module, inputs: Inputs, training: bool = False, batch: int | None = 2, or_real: bool = True
) -> Observation:
    """Run a copy of a model once, without data if it can be, and return what was seen.

    Args:
        model: any module.
        inputs: what to run it on.
        training: whether in that mode.
        batch: to how many images one image is repeated, as for `run_on_standins`.
        or_real: whether to run it with data if it doesn't run without.

    Raises:
        SpectralError: if its forward fails on the inputs.
    """

    def watch(
        copy: nn.Module, inputs: Inputs, weights: Sequence[Tensor], forward: Callable[[], Any]
    ) -> Observation:
        if training:
            copy.train()
        with Watcher(copy) as watcher:
            forward()
        return watcher.seen

    return run_on_standins(model, inputs, watch, batch, or_real)


def observe_sites(model: nn.Module, example: Example) -> tuple[Observation, list[Site]]:
    """Return what was seen in the same pass in which the sites are found, and these.

    Raises:
        SpectralError: as for `find_sites`.
    """
    watchers: list[Watcher] = []

    def watch(copy: nn.Module) -> Watcher:
        watchers.append(Watcher(copy))
        return watchers[-1]

    found = watch_reductions(model, example, watch)
    return watchers[-1].seen, [site for site in found if site.op != "global_pool"]


class Watcher(Scope):
    """Sees the modules, the functions and the operators of one pass.

    Attributes:
        seen: what it saw.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seen = Observation()
        self._model = model
        self._modules = Tracker(dict(model.named_modules()), begin=self._begin, end=self._end)
        self._operators = Recorder(self._modules.frames, self._note_operation, self._note)
        self._functions: list[Call | None] = []
        self._running: list[Call] = []
        self._repeats: Counter[tuple[int, Function]] = Counter()
        self._ran_by: dict[int, tuple[Call | None, int]] = {}  # by the operator's output
        self._unsized: set[int] = set()
        self._alive: list[Any] = []  # so that no two tensors have one id
        self._clock = 0

    def _enter(self, stack: ExitStack) -> None:
        strides = _reading_strides(self._model, self._note_stride)
        for watched in (strides, self._modules, _FunctionMode(self), self._operators.listening()):
            stack.enter_context(watched)

    def begin_function(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that a torch function is called; those that it calls itself are its own affair."""
        call = None
        if self._running:
            owner = self._running[-1]
            name = name_function(func)
            function = Function(name, find_spot().place)
            repeat = self._repeats[owner.start, function]
            self._repeats[owner.start, function] += 1
            tensors = _find_tensors((args, kwargs))
            alone = tensors[0] if len(tensors) == 1 else None
            call = Call(owner.path, owner.number, self._tick(), alone, replace(function, repeat=repeat))
            call.signature = read_signature(func, args, kwargs)
            if call.signature is not None:
                call.axes = count_axes(func, tensors[0])
            self.seen.calls.append(call)
        self._functions.append(call)

    def end_function(self, out: Any) -> None:
        """Note that it has ended."""
        call = self._functions.pop()
        if call is not None:
            self._finish(call, out)

    def _begin(self, frame: Frame) -> None:
        tensors = _find_tensors((frame.args, frame.kwargs))
        if not self._running and tensors:
            self.seen.batch = tensors[0].shape[0] if tensors[0].ndim > 3 else 1
            self.seen.leading = tensors[0].shape[0] if tensors[0].ndim else 1
        call = Call(frame.path, frame.call, self._tick(), tensors[0] if len(tensors) == 1 else None)
        self.seen.calls.append(call)
        self._running.append(call)
        self._alive.append(tensors)

    def _end(self, frame: Frame, output: Any) -> None:
        self._operators.flush()
        self._finish(self._running.pop(), output)
        if not self._running:
            self.seen.returned = _find_tensors(output)

    def _note_stride(self, names: set[str]) -> None:
        """Keep that a module's stride is read, unless it is by its own forward."""
        if self._running and self._running[-1].path not in names:
            self.seen.told |= names

    def _finish(self, call: Call, output: Any) -> None:
        call.end, call.output, call.owing = self._tick(), output, ledger.is_owing()
        call.unsized = any(id(tensor) in self._unsized for tensor in _find_tensors(output))
        self._alive.append(output)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _note_operation(self, operation: Operation) -> None:
        """Keep what a site's operator is, and which function ran it."""
        frame = operation.frame
        call, time = self._ran_by.get(id(operation.result), (None, self._clock))
        if call is not None and (call.path, call.number) != (frame.path, frame.call):
            call = None
        key = frame.path, frame.call, operation.family, operation.index
        self.seen.operators[key] = Operator(call, operation.decimation.channels, operation.result, time)

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Keep what an operator read, and what its module is made of."""
        time, function = self._tick(), self._functions[-1] if self._functions else None
        packet = func._overloadpacket
        name = packet.__name__.removesuffix("_")  # in place or not
        if packet in flop_registry:
            self.seen.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        pointwise = is_pointwise(func)
        nonlinear = pointwise and name not in _LINEAR
        samplewise = pointwise or name in _MOVES or _is_samplewise_norm(name, args)
        tensors = _find_tensors((args, kwargs))
        if _chooses_size(func, tensors, out) or any(id(tensor) in self._unsized for tensor in tensors):
            self._unsized |= {id(tensor) for tensor in _find_tensors(out) if tensor.ndim}
        for call in self._running:
            call.samplewise &= samplewise
            if nonlinear and call.input is not None:
                call.nonlinear |= any(t.shape == call.input.shape for t in tensors)
        whole = len(tensors) == 1 and [x.shape for x in _find_tensors(out)] == [tensors[0].shape]
        for tensor in tensors:
            use = Use(time, self._running[-1], function, out if nonlinear and whole else None)
            self.seen.uses[id(tensor)].append(use)
        first = out[0] if isinstance(out, tuple | list) and out else out
        self._ran_by[id(first)] = function, time
        self._alive.append((tensors, out))


@contextmanager
def _reading_strides(model: nn.Module, note: Callable[[set[str]], None]) -> Iterator[None]:
    """Call a function with all names of a module of `STRIDED` whenever anything reads its stride."""
    names: dict[nn.Module, set[str]] = defaultdict(set)
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in STRIDED:
            names[module].add(name)

    kinds = {module: type(module) for module in names}
    watched = {kind: _watch_stride(kind, lambda module: note(names[module])) for kind in kinds.values()}
    try:
        for module, kind in kinds.items():
            module.__class__ = watched[kind]
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


def _watch_stride(kind: type[nn.Module], note: Callable[[nn.Module], None]) -> type[nn.Module]:
    """Make a subclass that calls a function with a module whose stride is read."""

    def read(self: nn.Module, name: str) -> Any:
        if name == "stride":
            note(self)
        return kind.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__getattribute__": read})


def _find_tensors(values: Any) -> list[Tensor]:
    """Return the tensors among values, but for nested ones, which have no shape."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and not value.is_nested]


def _chooses_size(func: Any, tensors: Sequence[Tensor], out: Any) -> bool:
    """Whether the values that an operator is given say how large its output is."""
    if func.namespace != "aten":  # other libraries, as torchvision of its ``nms``, don't say so
        return any(not tensor.is_floating_point() for tensor in _find_tensors(out))
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    # Indexing is tagged, but has one size for all values unless a mask is among the indices.
    return func._overloadpacket is not torch.ops.aten.index or any(
        tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:]
    )


def _is_samplewise_norm(name: str, args: Sequence[Any]) -> bool:
    """Tell norms by fixed statistics, or over channels alone, from those that average over the map.

    The latter give another result on a dense map than on its decimation.
    """
    if name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):
        return not args[5]  # training
    if name == "native_layer_norm":
        return len(args[1]) == 1  # axes
    return name == "_native_batch_norm_legit_no_training"


class _FunctionMode(TorchFunctionMode):
    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and keep it."""
        kwargs = kwargs or {}
        self._watcher.begin_function(func, args, kwargs)
        out = None
        try:
            out = func(*args, **kwargs)
        finally:
            self._watcher.end_function(out)
        return out
