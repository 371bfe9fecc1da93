"""Who alters a model for a while: one thread at a time, and others are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from spectral.errors import SpectralError


class _Lock:
    """A lock that its thread may take again, and that says whose it is."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.owner: int | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self.owner = threading.get_ident()

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.owner = None
        self._lock.release()


_MAKING = threading.Lock()
_LOCKS: WeakIdKeyDictionary = WeakIdKeyDictionary()


@contextmanager
def alone(model: object) -> Iterator[None]:
    """Be the only thread that alters a model, or copies it, until the end of the block; others wait.

    Every module has a lock, so that models that share some exclude each other too; nothing else has one.

    Example:
        >>> layer = nn.ReLU()
        >>> with alone(nn.Sequential(layer)):
        ...     is_held(layer)
        True
    """
    with ExitStack() as held:
        for lock in _find_locks(model):
            held.enter_context(lock)
        yield


def is_held(module: nn.Module) -> bool:
    """Whether this thread is the only one that may alter a module."""
    lock = _LOCKS.get(module)
    return lock is not None and lock.owner == threading.get_ident()


def _find_locks(model: object) -> list[_Lock]:
    if not isinstance(model, nn.Module):
        return []
    modules = sorted(model.modules(), key=id)  # in one order, so that no two wait for each other
    with _MAKING:
        return [_LOCKS.setdefault(module, _Lock()) for module in modules]


class ThreadGuard:
    """Stands in a model's hooks while a thread has it in another mode: refuses passes of other threads."""

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()

    def __call__(self, module: nn.Module, args: object) -> None:
        """Refuse a pass that would run in the wrong mode.

        Raises:
            SpectralError: in any other thread.
        """
        if self._thread is not None and self._thread != threading.get_ident():
            raise SpectralError(
                f"{type(module).__name__} is in evaluation mode for a measurement in another thread; wait "
                f"for it to end, or measure a copy"
            )

    def end(self) -> None:
        """Mean nothing any more, wherever it may still hang."""
        self._thread = None

    def __deepcopy__(self, memo: object) -> ThreadGuard:
        """Mean nothing to copies of the model."""
        guard = ThreadGuard()
        guard.end()
        return guard
