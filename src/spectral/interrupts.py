"""Ctrl-C at any moment leaves nothing behind: it waits until what is set up or cleaned up is whole.

Python lets a signal in between any two steps, so also between a hook's registration and the first step of the
block that would remove it. While a model is being altered, an interrupt that comes inside one of the
functions named here is kept, and raised at the next safe point: `raise_kept`, or the end of `shielded`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeVar

from torch import overrides
from torch.utils import _python_dispatch

_WAYS = ("__enter__", "__exit__", "enter_context", "close", "callback")
F = TypeVar("F", bound=Callable[..., Any])

_kept: list[int] = []


def undivided(function: F) -> F:
    """Let a function be done as a whole: an interrupt that comes meanwhile, in a shielded block, is kept.

    Example:
        >>> @undivided
        ... def attach() -> str:
        ...     return "whole"
        >>> attach()
        'whole'
    """
    _UNDIVIDED.add(function.__code__)
    return function


def raise_kept() -> None:
    """Raise the interrupt that was kept, if there is one: called where everything is in its place."""
    handler = signal.getsignal(signal.SIGINT)
    if _kept and threading.current_thread() is threading.main_thread():
        _kept.clear()
        before = handler.before if isinstance(handler, _Handler) else handler
        if callable(before):
            before(signal.SIGINT, None)


class shielded:  # noqa: N801 - reads as a statement
    """While the block runs, interrupts wait for undivided functions. In the main thread; elsewhere none come.

    Example:
        >>> with shielded():
        ...     pass
    """

    def __init__(self) -> None:
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and not isinstance(before, _Handler):
            self._before = before
            signal.signal(signal.SIGINT, _Handler(before))

    def __exit__(self, *exception: object) -> None:
        if self._before is None:
            return
        try:
            signal.signal(signal.SIGINT, self._before)
            raise_kept()
        finally:
            _kept.clear()  # of one that came when the handler before was back, and was raised by it


class _Handler:
    """Takes an interrupt: keeps it, or hands it to whoever took them before."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Look whether something undivided is running."""
        inner = frame
        while inner is not None:
            if inner.f_code in _UNDIVIDED:
                _kept.append(number)
                return
            inner = inner.f_back
        self.before(number, frame)


# Context managers on their way in and out, Python's and torch's.
_UNDIVIDED: set[CodeType] = {
    function.__code__
    for owner in (
        contextlib._GeneratorContextManager,
        contextlib.ExitStack,
        contextlib._BaseExitStack,
        overrides.TorchFunctionMode,
        _python_dispatch.TorchDispatchMode,
    )
    for name, function in vars(owner).items()
    if isinstance(function, FunctionType) and name in _WAYS
}
# Its own way in and out as well: an interrupt there would leave the handler for good.
_UNDIVIDED |= {shielded.__enter__.__code__, shielded.__exit__.__code__}
