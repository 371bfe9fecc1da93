"""Operators as they are recorded with a graph, for captures that a loss is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import CheckpointFunction

from spectral.tracing.recorder import Handler, Observer, Recorder
from spectral.tracing.tracker import Frame, paused


class GraphRecorder:
    """A `Recorder` that hands over operators when their outputs have a graph.

    Operators are seen below autograd, where nothing that is computed gets one. So each function call is run
    under a recorder on its own, and its operators are reported when it has returned.

    Args:
        frames: the calls that are running, as a `Tracker` keeps them.
        on_operation: called after a candidate has run.
        observe: called after every operator.
    """

    def __init__(self, frames: list[Frame], on_operation: Handler, observe: Observer | None = None) -> None:
        self._observe = observe
        self._seen: list[Callable[[], None]] = []
        keep = self._keep if observe is not None else None
        self._recorder = Recorder(frames, lambda one: self._seen.append(partial(on_operation, one)), keep)
        self._mode = _GraphKeeper(self)

    def start(self) -> None:
        """Listen in this thread."""
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Listen no more; may be called more than once, as after an interrupt."""
        self._recorder.stop()
        if any(mode is self._mode for mode in _get_current_function_mode_stack()):
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Hand over what waits: nothing does between two functions."""

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run one function, and report its operators."""
        if not self._recorder.is_counting:
            return func(*args, **kwargs)
        self._seen.clear()
        with self._recorder.listening():
            out = func(*args, **kwargs)
            self._recorder.flush()
        seen = self._seen.copy()
        self._seen.clear()
        with paused():
            for tell in seen:
                tell()
        return out

    def _keep(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        assert self._observe is not None
        self._seen.append(partial(self._observe, func, args, kwargs, out))


class _GraphKeeper(TorchFunctionMode):
    def __init__(self, recorder: GraphRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, reporting what it decimates."""
        return self._recorder.run(func, args, kwargs or {})


def saving_plainly() -> AbstractContextManager[Any]:
    """Let what is computed inside keep its tensors for the backward pass itself.

    A checkpointed block counts what it saves, and would miss ours when it is run again.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch 2.6 doesn't tell
    if top is not None and top(True) is None:
        return nullcontext()
    return saved_tensors_hooks(_pack, _unpack)


def is_reentrant() -> bool:
    """Whether reentrant checkpointing runs the model now, without the graph that it will have."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def _pack(x: Tensor) -> tuple[Tensor, int]:
    return x.detach(), x._version  # the tensor itself, if it is an output, would hold its own graph


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    x, version = packed
    if x._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(x.shape)} that a capture needs for its gradient has been modified by "
            f"an in-place operation"
        )
    return x
