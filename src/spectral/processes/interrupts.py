"""Ctrl-C at any moment leaves nothing behind: it waits until what is set up or cleaned up is whole.

Python lets a signal in between any two steps, so also between a hook's registration and the first step of the
block that would remove it. While a model is being altered, an interrupt that comes inside one of the
functions named here, or while a context is entered or left, is kept, and raised at the next safe point:
`raise_kept`, the end of `shielded`, or a moment later. A pass of a large network may take minutes.

Nor is an interrupt lost. Python prints and forgets whatever is raised while an object is being destroyed, and
a model may catch what it likes: one that was raised inside `shielded` and didn't get out is raised again.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.util import Finalize
from types import CodeType, FrameType
from typing import Any, TypeVar

# A context manager on its way in or out, whosever it is, and an object on its way out of the world.
_WAYS = {"__enter__", "__exit__", "__del__"}
# Where the callbacks of weak references are, which run while an object is being destroyed.
_WEAK = {kind.__init__.__code__.co_filename for kind in (weakref.WeakKeyDictionary, weakref.WeakSet)}
F = TypeVar("F", bound=Callable[..., Any])

_kept: list[int] = []
_raised: list[BaseException] = []  # by the handler, and not yet out of the shielded block

AGAIN = 0.2  # seconds after which what wasn't raised, or got lost, is sent once more
_sent_again: list[bool] = []  # a signal that is on its way to the handler
_sending = threading.Lock()  # held while one is sent, and while the handler is taken away
_watching = threading.Lock()  # held by the thread that sends


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
    """Raise the interrupt that was kept or got lost, if there is one: called where all is in its place."""
    if threading.current_thread() is not threading.main_thread():
        return
    if _raised:
        raise _raised.pop()
    handler = signal.getsignal(signal.SIGINT)
    if _kept:
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

    def __exit__(self, kind: object = None, error: BaseException | None = None, trace: object = None) -> None:
        if self._before is None:
            return
        try:
            with _sending:
                signal.signal(signal.SIGINT, self._before)
            if error is None or error not in _raised:
                raise_kept()
        finally:
            _kept.clear()  # of one that came when the handler before was back, and was raised by it
            _raised.clear()


class _Handler:
    """Takes an interrupt: keeps it, or hands it to whoever took them before."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Look whether something undivided is running, or something out of which nothing can be raised."""
        if _sent_again:
            _sent_again.clear()
            if not _kept and not _is_lost():
                return
        if _is_undivided(frame):
            _kept[:] = [number]
            self._watch()
            return
        _kept.clear()
        try:
            self.before(number, frame)
        except BaseException as error:
            _raised[:] = [error]
            self._watch()
            raise

    def _watch(self) -> None:
        """Send the interrupt again from a thread, as long as it is kept or not yet out of the block."""
        with suppress(RuntimeError):  # of a process that may have no more threads
            _thread.start_new_thread(_send_again, ())


def _is_undivided(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code in _UNDIVIDED or code.co_name in _WAYS or code.co_filename in _WEAK:
            return True
        frame = frame.f_back
    return False


def _is_lost() -> bool:
    """Whether an interrupt was raised and nobody is handling it, as all do through whom it is on its way."""
    handled = sys.exc_info()[1]
    while handled is not None and handled not in _raised:
        handled = handled.__context__
    return bool(_raised) and handled is None


def _send_again() -> None:
    while (_kept or _raised) and _watching.acquire(blocking=False):
        try:
            while _kept or _raised:
                time.sleep(AGAIN)
                with _sending:
                    if (_kept or _raised) and isinstance(signal.getsignal(signal.SIGINT), _Handler):
                        _sent_again.append(True)
                        _wake_main_thread()
        finally:
            _watching.release()


def _wake_main_thread() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # ends what the thread is waiting for
    else:
        _thread.interrupt_main()


_UNDIVIDED: set[CodeType] = {
    function.__code__
    for function in (
        # What `with` does by other names, and what is called once processes and queues aren't needed.
        ExitStack.callback, ExitStack.close, ExitStack.enter_context, Finalize.__call__,
    )
}  # fmt: skip
