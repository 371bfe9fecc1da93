"""Sees every resolution-reducing operator that runs, and which module's call it belongs to.

Discovery and capture (`hooks`) count operators with this one class, so a site found on the meta device is the
same site on real data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from spectral.operators import ALL, Decimation, merge_slices, parse
from spectral.tracing.dataless import run_operator
from spectral.tracing.places import Steps
from spectral.tracing.tracker import Frame, is_paused, paused


@dataclass(frozen=True)
class Operation:
    """A candidate operator, which runs or has run.

    Attributes:
        frame: the innermost call that is followed.
        index: which of the operators of its family in that call.
        own: the steps from the forward of that call to the operator.
        turn: which of its family at this place.
        decimation: the operator and what it was given.
        source: the tensor that it was given.
        output: what it returned; None as long as it hasn't run.
    """

    frame: Frame
    index: int
    own: Steps
    turn: int
    decimation: Decimation
    source: Tensor
    output: Tensor | None = None

    @property
    def family(self) -> str:
        """What it is counted with."""
        return self.decimation.operator.family

    @property
    def result(self) -> Tensor:
        """What it returned."""
        assert self.output is not None
        return self.output


Handler = Callable[[Operation], None]
Observer = Callable[[Any, Sequence[Any], dict[str, Any], Any], None]
# (operation, run) → the operator's output if it was computed otherwise, else None
Run = Callable[[slice], Tensor]  # (some images) → what the operator gives of them
Substitute = Callable[[Operation, Run], Tensor | None]


class Recorder:
    """Calls ``on_operation`` for each candidate operator of the innermost call, while it is listening.

    A slice waits for the next operator, because x[:, :, ::2, ::2] arrives as two; it is handed over before
    anything can change its source.

    Args:
        frames: the calls that are running, as a `Tracker` keeps them.
        on_operation: called after a candidate has run.
        observe: called after every operator.
        substitute: asked before a convolution runs; may return its output instead.
    """

    def __init__(
        self,
        frames: list[Frame],
        on_operation: Handler,
        observe: Observer | None = None,
        substitute: Substitute | None = None,
    ) -> None:
        self.frames = frames
        self._on_operation = on_operation
        self._observe = observe
        self._substitute = substitute
        self._pending: Operation | None = None
        self.reading: Decimation | None = None  # how the operator was read that is observed now
        self.met: Operation | None = None  # what it is, if it is a candidate of its own

    def start(self) -> None:
        """Listen in this thread."""
        _HUB.add(self)

    def stop(self) -> None:
        """Listen no more; may be called more than once, as after an interrupt."""
        self._pending = None
        _HUB.discard(self)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of the operators that run inside."""
        try:
            self.start()
            yield
        finally:
            self.stop()

    @property
    def is_counting(self) -> bool:
        """Whether an operator that runs now is the model's and inside a frame."""
        return bool(self.frames) and not is_paused()

    def flush(self) -> None:
        """Hand over a waiting slice."""
        if self._pending is not None:
            operation, self._pending = self._pending, None
            with paused():
                self._on_operation(operation)

    def meet(self, decimation: Decimation | None, source: Any) -> Operation | None:
        """Meet an operator before it runs; return it if it is a candidate of its own."""
        if self._continues_pending(decimation):
            return None
        self.flush()
        if decimation is None:
            return None
        frame, family = self.frames[-1], decimation.operator.family
        own = frame.find_steps()
        operation = Operation(
            frame, frame.counts[family], own, frame.turns[family, own], decimation, source
        )  # fmt: skip
        frame.counts[family] += 1
        frame.turns[family, own] += 1
        return operation

    def substitute(self, operation: Operation, run: Run) -> Tensor | None:
        """Compute a convolution's output otherwise, or return None."""
        decimation = operation.decimation
        if self._substitute is None or decimation.weight is None or decimation.input is not operation.source:
            return None
        return self._substitute(operation, run)

    def leave(
        self, operation: Operation | None, decimation: Decimation | None, call: tuple[Any, Any, Any, Any]
    ) -> None:
        """Leave an operator that has run: (func, args, kwargs, output)."""
        self.reading, self.met = decimation, operation
        if self._observe:
            self._observe(*call)
        output = call[3][0] if isinstance(call[3], (tuple, list)) else call[3]
        if operation is not None:
            self._pending = replace(operation, output=output)
            if not operation.decimation.operator.waits:
                self.flush()
        elif decimation is not None and self._pending is not None:
            merged = merge_slices(self._pending.decimation, decimation)
            self._pending = replace(self._pending, decimation=merged, output=output)

    def _continues_pending(self, decimation: Decimation | None) -> bool:
        if self._pending is None or decimation is None or not decimation.operator.waits:
            return False
        first = self._pending
        return decimation.input is first.output and decimation.operator.joins(
            first.decimation.geometry, decimation.geometry
        )


class _Hub(threading.local):
    """The recorders that listen in one thread; one mode tells them all, so that none hides from another."""

    def __init__(self) -> None:
        self.recorders: list[Recorder] = []
        self.mode = _Mode(self)

    def add(self, recorder: Recorder) -> None:
        """Let a recorder listen."""
        self.recorders.append(recorder)
        self._switch()

    def discard(self, recorder: Recorder) -> None:
        """Let it listen no more."""
        self.recorders[:] = [other for other in self.recorders if other is not recorder]
        self._switch()

    def _switch(self) -> None:
        """Enter the mode, or leave it: what its stack says holds, also where an interrupt came between."""
        active = any(mode is self.mode for mode in _get_current_dispatch_mode_stack())
        if self.recorders and not active:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        elif active and not self.recorders:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operator consists of others: in inference mode alone torch shows it, and not those."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE.name)


class _Mode(TorchDispatchMode):
    def __init__(self, hub: _Hub) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hub = hub

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and report it."""
        kwargs = kwargs or {}
        recorders = [recorder for recorder in self._hub.recorders if recorder.is_counting]
        if not recorders:
            return run_operator(func, args, kwargs)
        if _is_composite(func):
            with self:  # by torch's own kernel: a decomposition in Python may stand beside it, in other parts
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        decimation = parse(func, args, kwargs)
        source = (args[0] if args else next(iter(kwargs.values()))) if decimation is not None else None
        met = {recorder: recorder.meet(decimation, source) for recorder in recorders}
        out = self._substitute(met, partial(_run_on, func, args, kwargs))
        if out is None:
            out = run_operator(func, args, kwargs)
        for recorder, operation in met.items():
            recorder.leave(operation, decimation, (func, args, kwargs, out))
        return out

    def _substitute(self, met: dict[Recorder, Operation | None], run: Run) -> Tensor | None:
        """Let the first recorder that wants to compute an output; it needn't hear of it again."""
        for recorder, operation in met.items():
            if operation is not None:
                with paused():
                    out = recorder.substitute(operation, run)
                if out is not None:
                    del met[recorder]
                    return out
        return None


def _run_on(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], images: slice) -> Any:
    """Run an operator on some images of the batch that is its first argument."""
    if args and images != ALL:
        return func(args[0][images], *args[1:], **kwargs)
    return func(*args, **kwargs)[images]


_HUB = _Hub()
