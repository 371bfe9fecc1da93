"""Which calls of a model's modules are running: what discovery, capture and surgery all have to know.

While a module is tracked, a callable of this file stands in its ``forward``. Unlike hooks, it sees a forward
that doesn't enter through the module's own ``__call__``, is given the arguments that the forward is given,
and takes leave whatever ends the call, an interrupt too. Copies of the module don't have it.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint_sequential

from spectral.errors import SpectralError
from spectral.processes.interrupts import undivided
from spectral.processes.locks import is_held
from spectral.tracing.places import Spot, Steps, find_steps

# One for all trackers and recorders of a thread: what one of them runs, no other may count as the model's.
_PAUSED: ContextVar[bool] = ContextVar("paused", default=False)


@dataclass(eq=False)
class Frame:
    """One running call of a module.

    Attributes:
        path: name of the module.
        module: itself.
        call: which of its calls in this pass, from 0.
        args: positional arguments of its forward.
        kwargs: named arguments.
        record: what ``start`` returned for this pass.
        parent: the call inside which it runs, of those that are followed.
        turn: which of the calls of the module from the same place, once it has been located.
        counts: candidate operators so far, per family.
        turns: the same at each place, per family and steps.
        steps: operators so far that did more to a map than move its samples.
        spots: operators so far, per name and steps, of those that were asked for.
    """

    path: str
    module: nn.Module
    call: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    record: Any = None
    parent: Frame | None = None
    turn: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    turns: Counter[tuple[str, Steps]] = field(default_factory=Counter)
    steps: int = 0
    spots: Counter[tuple[str, Steps]] = field(default_factory=Counter)
    _python: FrameType | None = None  # while it runs
    _outer: Steps | None = None

    @property
    def input(self) -> Tensor | None:
        """The first tensor that it was given, by position or by name."""
        return next((x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)), None)

    @property
    def argument(self) -> Tensor | None:
        """The tensor that is all it was given, if so."""
        given = (*self.args, *self.kwargs.values())
        return given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None

    @property
    def outer(self) -> Steps:
        """The steps from the outermost call that is followed to this one."""
        if self._outer is None:
            parent = self.parent
            if parent is None or parent._python is None or self._python is None:
                self._outer = ()
            else:
                self._outer = parent.outer + find_steps(parent._python, self._python)
        return self._outer

    def find_steps(self) -> Steps:
        """Find the steps from its forward to what runs now; for the innermost call only."""
        return find_steps(self._python, sys._getframe(1))

    def find_spot(self, operator: str) -> Spot:
        """Count an operator that has run, and say where; for the innermost call only."""
        own = find_steps(self._python, sys._getframe(1))
        self.spots[operator, own] += 1
        return Spot(operator, own, self.spots[operator, own] - 1)


@dataclass(eq=False)
class _Pass:
    """One forward pass: what has run so far."""

    record: Any = None
    container: FrameType | None = None  # the method of the model that calls the modules, if one does
    entered: set[str] = field(default_factory=set)  # modules that were called from outside all others
    calls: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, Steps]] = field(default_factory=Counter)


class _State(threading.local):
    """What runs in one thread."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.latest = _Pass()


def _ignore(*_: Any) -> None:
    pass


class Scope(ABC):
    """What holds while its ``with`` block runs: several contexts, entered all or none."""

    _stack: ExitStack

    @abstractmethod
    def _enter(self, stack: ExitStack) -> None:
        """Enter them on a stack, which leaves those that were entered if one can't be."""

    def __enter__(self) -> Self:
        """Begin."""
        with ExitStack() as stack:
            self._enter(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        """End."""
        self._stack.__exit__(*exception)


class Tracker(AbstractContextManager["Tracker"]):
    """Follows the calls of some modules, from `attach` to `remove`.

    A pass begins when a tracked module is entered and none is running in this thread, however that came
    about: by a call of the model, its ``forward`` or a part of it alone. Modules that one method of the model
    calls, one after the other, are one pass, until one is called again that had all its calls. What runs
    inside `paused`, or in a backward pass that runs the forward again, isn't followed.

    Args:
        modules: what to follow, by names.
        expected: how often modules are called in one pass; once where nothing is said.
        start: called when a pass begins; what it returns goes along with all frames of the pass.
        begin: called when a module has been entered.
        end: called with its output when it has returned.
        close: called when it has ended in any way, after ``end``; also when ``begin`` or ``end`` raised.
        reset: called at the end of a pass; has to do again what ``close`` may not have come to do.

    Example:
        >>> net, seen = nn.Sequential(nn.ReLU()), []
        >>> with Tracker(dict(net.named_modules()), begin=lambda frame: seen.append(frame.path)):
        ...     _ = net.forward(torch.zeros(1))
        >>> seen
        ['', '0']
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        expected: Mapping[str, int] | None = None,
        start: Callable[[], Any] = _ignore,
        begin: Callable[[Frame], None] = _ignore,
        end: Callable[[Frame, Any], None] = _ignore,
        close: Callable[[Frame], None] = _ignore,
        reset: Callable[[], None] = _ignore,
    ) -> None:
        self.enabled = True
        self._modules = dict(modules)
        self._expected = dict(expected or {})
        self._ids = set(map(id, self._modules.values()))
        self._methods: dict[int, CodeType] = {}
        self._forwards: dict[str, _Forward] = {}
        self._start, self._begin, self._end, self._close, self._reset = start, begin, end, close, reset
        self._state = _State()
        self._thread: int | None = None  # whose passes alone are followed

    def __enter__(self) -> Tracker:
        """Attach it."""
        try:
            self.attach()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove it."""
        self.remove()

    @property
    def frames(self) -> list[Frame]:
        """The calls that are running in this thread, the innermost last."""
        return self._state.frames

    @property
    def calls(self) -> Counter[str]:
        """How often each module was called in the latest pass of this thread."""
        return self._state.latest.calls

    @property
    def places(self) -> Counter[tuple[str, Steps]]:
        """How often each module was called from each place, of the calls that have been located."""
        return self._state.latest.places

    def locate(self, frame: Frame) -> None:
        """Note from where a call has been made; once for each that matters, as it begins."""
        key = frame.path, frame.outer
        frame.turn = self.places[key]
        self.places[key] += 1

    @property
    def record(self) -> Any:
        """What ``start`` returned for the latest pass of this thread."""
        return self._state.latest.record

    @undivided
    def attach(self) -> None:
        """Begin to follow: where this thread alone may alter the modules, its own passes only."""
        if any(is_held(module) for module in self._modules.values()):
            self._thread = threading.get_ident()
        self._methods = _find_methods({type(module) for module in self._modules.values()})
        for path, module in self._modules.items():
            standing = vars(module).get("forward")
            forward = standing if isinstance(standing, _Forward) else _Forward(module, standing)
            self._forwards[path] = forward  # known before it acts, so that an interrupt leaves nothing behind
            forward.followers = (*forward.followers, (self, path))
            vars(module)["forward"] = forward

    @undivided
    def remove(self) -> None:
        """Follow no more; may be called more than once."""
        for forward in self._forwards.values():
            forward.followers = tuple(pair for pair in forward.followers if pair[0] is not self)
            forward.restore()
        self._forwards.clear()
        self.frames.clear()

    def follow(
        self, path: str, module: nn.Module, run: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a forward, and tell what began and ended."""
        foreign = self._thread is not None and self._thread != threading.get_ident()
        if not self.enabled or foreign or _PAUSED.get() or is_recomputing():
            return run(*args, **kwargs)
        if self.frames and _is_mapped():
            return run(*args, **kwargs)  # below it are plain operators, which are those of who calls vmap
        _refuse_transforms(path if self.frames else None)
        if self.frames:
            return self._follow_call(path, module, run, args, kwargs)
        state, container = self._state, self._find_container()
        try:
            if not self._continues(path, container):
                state.latest = _Pass(container=container)
                state.latest.record = self._start()
            state.latest.entered.add(path)
            return self._follow_call(path, module, run, args, kwargs)
        finally:
            _PAUSED.set(False)  # as it was; an interrupt may have come before that was said
            state.frames.clear()
            if container is not None and _is_call_of(container, module) and not module._forward_hooks:
                state.latest.container = None  # nothing else runs in it, and it holds the arguments
            self._reset()

    def _follow_call(
        self, path: str, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        frames, latest = self.frames, self._state.latest
        depth, parent = len(frames), frames[-1] if frames else None
        frame = Frame(path, module, latest.calls[path], args, kwargs, latest.record, parent)
        frame._python = sys._getframe()
        try:
            latest.calls[path] += 1
            frames.append(frame)
            self._begin(frame)
            output = run(*args, **kwargs)
            self._end(frame, output)
            return output
        finally:
            del frames[depth:]
            frame._python = None
            self._close(frame)

    def _find_container(self) -> FrameType | None:
        """Find the outermost call that is running of a method of a followed module, or of many in turn."""
        frame, container = sys._getframe(1).f_back, None
        while frame is not None:
            code = frame.f_code
            # First the code: to read a frame's variables keeps their values until its call has ended.
            if code is checkpoint_sequential.__code__ or (
                id(code) in self._methods and id(frame.f_locals.get(code.co_varnames[0])) in self._ids
            ):
                container = frame
            frame = frame.f_back
        return container

    def _continues(self, path: str, container: FrameType | None) -> bool:
        """Whether a module that is called from outside all others runs in the same pass as the last one."""
        latest = self._state.latest
        if container is None or container is not latest.container:
            return False
        if path not in latest.entered:
            return True
        inside = [p for p in self._expected if p == path or not path or p.startswith(f"{path}.")]
        return any(latest.calls[p] < self._expected[p] for p in inside)


def _find_methods(kinds: Iterable[type]) -> dict[int, CodeType]:
    """Collect the code of all methods of some classes, by identity: to compare code objects is slow."""
    codes = {}
    for base in {base for kind in kinds for base in kind.__mro__ if base is not object}:
        for function in vars(base).values():
            while isinstance(function, FunctionType):
                code = function.__code__
                if code.co_argcount:
                    codes[id(code)] = code
                function = getattr(function, "__wrapped__", None)
    return codes


def _is_call_of(frame: FrameType, module: nn.Module) -> bool:
    """Whether a frame is that of a module's own ``__call__``."""
    return frame.f_code.co_filename == torch_module.__file__ and frame.f_locals.get("self") is module


@contextmanager
def paused() -> Iterator[None]:
    """Let nothing that runs inside count as the model's: it is ours."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


def is_paused() -> bool:
    """Whether what runs now is not the model's."""
    return _PAUSED.get()


def is_recomputing() -> bool:
    """Whether a backward pass runs the forward again (gradient checkpointing): it was seen before."""
    return torch._C._current_graph_task_id() != -1


def _is_mapped() -> bool:
    """Whether vmap runs, and no other transform of torch.func."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return bool(stack) and all(one.key() == torch._C._functorch.TransformType.Vmap for one in stack)


def _refuse_transforms(inside: str | None) -> None:
    """Refuse to watch what is no ordinary forward pass: parts of it would be missed without a word.

    Args:
        inside: the module that is called, if the model's own forward does so.

    Raises:
        SpectralError: saying which transform it is.
    """
    way_out = "call remove_hooks() first, or use a copy.deepcopy(model), which has none"
    if torch.compiler.is_compiling() or _find_compiler() is not None:
        raise SpectralError(f"hooks see only parts of a model that is being compiled or exported; {way_out}")
    if torch._C._get_tracing_state() is not None:
        raise SpectralError(f"a trace would contain what the hooks on the model compute; {way_out}")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if inside is not None:
            way_out = f"the model calls {inside!r} so: measure that module by itself"
        raise SpectralError(
            f"inside a transform of torch.func (vmap, grad, jvp) tensors stand for others and end with it: "
            f"nothing can be captured; {way_out}"
        )


_find_compiler: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: None
)


class _Forward:
    """What stands in a module's ``forward`` while it is tracked."""

    def __init__(self, module: nn.Module, original: Any) -> None:
        self.module = module
        self.original = original  # of the module itself, set before by somebody else; None for its class's
        self.followers: tuple[tuple[Tracker, str], ...] = ()
        # whoever asks for the signature gets that of the forward
        functools.update_wrapper(self, original or _class_forward(module), updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        module = self._find_caller(sys._getframe(1))
        run = self.original or _class_forward(module)
        if module is self.module:
            for tracker, path in self.followers:
                run = functools.partial(tracker.follow, path, module, run)
        return run(*args, **kwargs)

    def restore(self) -> None:
        """Step aside if nobody follows any more."""
        attributes = vars(self.module)
        if self.followers or attributes.get("forward") is not self:
            return
        if self.original is None:
            del attributes["forward"]
        else:
            attributes["forward"] = self.original

    def _find_caller(self, frame: FrameType) -> nn.Module:
        """Find the module that is being called: a shallow copy, as replicas are, has this attribute too."""
        if frame.f_code.co_filename == torch_module.__file__:
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and vars(caller).get("forward") is self:
                return caller
        return self.module

    def __getattr__(self, name: str) -> Any:
        if name in ("__code__", "__globals__"):  # asked for by who reads the source
            raise SpectralError(
                "torch.jit.script and torch.export can't read a model that hooks are on; call remove_hooks() "
                "first, or use a copy.deepcopy(model), which has none"
            )
        raise AttributeError(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the module the plain forward."""
        if self.original is not None:
            return copy.deepcopy(self.original, memo)
        return _class_forward(memo.get(id(self.module), self.module))

    def __reduce__(self) -> Any:
        """Let a pickled module have the plain forward, without this package."""
        if self.original is not None:
            return functools.partial, (self.original,)
        return getattr, (self.module, "forward")


def drop_plain_forwards(model: nn.Module) -> None:
    """Take out what copies of a watched model have as an attribute: the forward that their class had then.

    It would stand before that of a class that a module is given later.

    Example:
        >>> net = nn.ReLU()
        >>> net.forward = net.forward
        >>> drop_plain_forwards(net)
        >>> "forward" in vars(net)
        False
    """
    for module in model.modules():
        standing = vars(module).get("forward")
        functions = [vars(base).get("forward") for base in type(module).__mro__]
        if (
            isinstance(standing, MethodType)
            and standing.__self__ is module
            and standing.__func__ in functions
        ):
            del vars(module)["forward"]


def _class_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward that a module has of its class, whatever stands in its attributes."""
    kind = type(module)
    forward: Any = next(vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base))
    return forward.__get__(module, kind) if hasattr(forward, "__get__") else forward  # type: ignore[no-any-return]
