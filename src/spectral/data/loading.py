"""Batches decoded ahead of the network: in worker processes, in order, and gone when their reader is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Dataset

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError

FEWEST_IMAGES = 256  # below it workers take longer to start than to decode
MOST_WORKERS = 8  # that start unasked
PREFETCH = 2  # batches that each worker has ready
_SHARED_MEMORY = "/dev/shm"


def group_positions(count: int, batch_size: int, chosen: Sequence[int] | None = None) -> list[list[int]]:
    """Group the positions of images, all of them or those chosen, into batches.

    Example:
        >>> group_positions(5, 2), group_positions(5, 2, [4, 0, 1])
        ([[0, 1], [2, 3], [4]], [[4, 0], [1]])
    """
    positions = list(range(count) if chosen is None else chosen)
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


@dataclass(frozen=True)
class Loading:
    """How images are decoded; nothing of it changes a pixel or the order.

    Attributes:
        workers: processes that decode; 0 decodes in the main process, None takes as many as help.
        pinned: whether batches lie in pinned memory, from which a CUDA device copies by itself.
    """

    workers: int | None = None
    pinned: bool = False

    def count_workers(self, images: int, batches: int, batch_bytes: int) -> int:
        """Return how many processes decode.

        Unasked there are none for a few images, where processes can't be forked, or where the memory that
        they would share with this one is too small, as in many containers.

        Args:
            images: how many there are.
            batches: how many these make.
            batch_bytes: of one batch, 0 where that isn't known.

        Example:
            >>> Loading(3).count_workers(images=10, batches=2, batch_bytes=0)
            2
            >>> Loading(3).count_workers(images=2, batches=1, batch_bytes=0)
            0
        """
        most = batches if batches > 1 else 0  # the only batch is decoded as soon without
        if self.workers is not None:
            return min(self.workers, most)
        if images < FEWEST_IMAGES or sys.platform != "linux" or multiprocessing.current_process().daemon:
            return 0
        return min(_count_cores(), MOST_WORKERS, most, _count_fitting(batch_bytes))


def check_workers(workers: Any, caller: str) -> int | None:
    """Return a number of workers, None for as many as help.

    Raises:
        SpectralError: if it is no whole number ≥ 0.

    Example:
        >>> check_workers(-1, "load_images")
        Traceback (most recent call last):
        spectral.errors.SpectralError: load_images: workers must be a whole number ≥ 0, got -1
    """
    return None if workers is None else as_integer(workers, f"{caller}: workers", least=0)


def load_batches(
    read: Callable[[list[int]], Any],
    groups: Sequence[list[int]],
    *,
    workers: int,
    pinned: bool,
    source: str,
) -> Generator[tuple[list[int], Any], None, None]:
    """Read batches, each when it is due or ahead of that in worker processes; always in order.

    Args:
        read: makes a batch of positions; where it raises a `SpectralError`, so does this.
        groups: the positions in each batch.
        workers: how many processes; 0 reads here.
        pinned: whether batches are put into pinned memory.
        source: what is read, for messages.

    Raises:
        SpectralError: what ``read`` raises, or that a worker ended before its work.
    """
    if workers == 0:
        for group in groups:
            batch = read(group)
            yield group, _pin(batch) if pinned else batch
        return
    loader = DataLoader(
        _Reading(read), batch_size=None, sampler=groups, num_workers=workers, prefetch_factor=PREFETCH,
        pin_memory=pinned, collate_fn=_as_it_is, worker_init_fn=_begin_worker,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )  # fmt: skip
    batches = _start(loader)
    try:
        for group in groups:
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                raise _explain(error, source) from error
            if isinstance(batch, _Failure):
                raise SpectralError(batch.reason)
            yield group, batch
    finally:
        # At once, and not when the last traceback that knows of it is forgotten.
        batches._shutdown_workers()


@dataclass(frozen=True)
class _Failure:
    """Why a batch can't be read, on its way out of a worker."""

    reason: str


class _Reading(Dataset[Any]):
    def __init__(self, read: Callable[[list[int]], Any]) -> None:
        self.read = read

    def __getitem__(self, group: list[int]) -> Any:
        try:
            return self.read(group)
        except SpectralError as error:
            return _Failure(str(error))


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _overlook_partings


def _overlook_partings(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing where the main process no longer takes what a thread of a worker hands over."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _start(loader: DataLoader[Any]) -> Any:
    """Start the workers.

    Torch has the end of a worker raised wherever the main thread is, in the middle of a forward pass. Here it
    is noticed by whoever waits for the next batch.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _explain(error: Exception, source: str) -> Exception:
    """Say that a worker ended, in a sentence; what was raised in it is what it was."""
    if str(error).startswith("Caught "):
        return error
    return SpectralError(
        f"a worker process that decodes {source} ended before its work (killed, or out of memory or of "
        f"shared memory); run again with fewer workers, or 0, which decodes in the main process: what is "
        f"finished is kept"
    )


def _pin(batch: Any) -> Any:
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


def _count_cores() -> int:
    """Return the cores for this process; those of a machine are shared by the ranks that torchrun starts."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores //= max(1, int(ranks)) if ranks.isdecimal() else 1
    return cores if cores > 1 else 0


def _count_fitting(batch_bytes: int) -> int:
    """Return how many workers the shared memory has room for."""
    with suppress(OSError, AttributeError):
        found = os.statvfs(_SHARED_MEMORY)
        free = found.f_bavail * found.f_frsize // 2
        return free // max(1, (PREFETCH + 1) * batch_bytes)
    return 0
