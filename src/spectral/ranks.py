"""Processes that share one job: the ranks of a process group of `torch.distributed`.

They meet at the same points of the same program. A rank that fails says so where the others meet next, so
that all end with one sentence; a rank that dies is noticed there too, since its connections close.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spectral.errors import SpectralError
from spectral.files import claim, join_claim

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)
"""How long ranks wait for one that neither answers nor ends; one that ends is noticed at once."""

_STEP, _VALUES, _FAILURE = range(3)  # what a meeting is for


class RanksError(SpectralError):
    """What ended a job, in the same words on every rank; all of them know."""


class LostRankError(RanksError):
    """A rank is gone, so that the others can't meet any more."""


class Ranks:
    """The processes that share a job, as one of them sees them; by default it is alone.

    Every rank calls the same methods in the same order.

    Args:
        group: a process group whose backend takes tensors in main memory.

    Attributes:
        rank: which of them this is.
        count: how many there are.

    Example:
        >>> alone = Ranks()
        >>> alone.split("abc"), alone.exchange(1)
        (['a', 'b', 'c'], [1])
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        self._pending: tuple[Any, list[Tensor]] | None = None
        self._failure: str | None = None

    @property
    def first(self) -> bool:
        """Whether it is the rank that does what only one may do."""
        return self.rank == 0

    def split(self, items: Sequence[T]) -> list[T]:
        """Return this rank's part of what all have: a range, none longer than another by more than one."""
        start, end = (len(items) * i // self.count for i in (self.rank, self.rank + 1))
        return list(items[start:end])

    def exchange(self, value: T) -> list[T]:
        """Return the values of all ranks in their order, once all are here.

        Raises:
            RanksError: if one of them failed or ended.
        """
        if self._group is None:
            return [value]
        content = pickle.dumps(value)  # before the others are told to wait for it
        self._settle()
        self._post(_VALUES)
        self._settle()
        return [pickle.loads(one) for one in self._gather(content)]

    def advance(self, done: int) -> int:
        """Tell how much is done, and return how much was by all when they last told.

        It waits for no rank that is less than a step behind.

        Raises:
            RanksError: if one of them failed or ended.
        """
        if self._group is None:
            return done
        total, _ = self._settle()
        self._post(_STEP, done)
        return total

    def await_others(self, done: int) -> Iterator[int]:
        """Yield how much all have done, whenever that changes, until the last has come here.

        Raises:
            RanksError: if one of them failed or ended.
        """
        finished = self._group is None
        while not finished:
            self._settle()
            self._post(_STEP, done, finished=True)
            total, finished = self._settle()
            yield total

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others if the block fails.

        Raises:
            RanksError: in place of what was raised.
        """
        try:
            yield
        except RanksError:
            raise
        except Exception as error:
            if self._group is None:
                raise
            self.tell(error)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Go on behind the block when it has succeeded on every rank.

        Raises:
            RanksError: if it failed on one of them.
        """
        with self.telling():
            yield
            self.exchange(None)

    def tell(self, error: Exception) -> NoReturn:
        """End the job: say to all why.

        Raises:
            RanksError: with the reasons of all ranks that fail now.
        """
        known = isinstance(error, SpectralError)
        self._failure = str(error) if known else f"{type(error).__name__}: {_first_line(error)}"
        try:
            self._settle()
            self._post(_FAILURE)
            self._settle()
        except RanksError as shared:
            raise shared from error
        raise AssertionError("a failure ends its meeting")

    def share_failure(self, error: Exception, sentence: str) -> str:
        """End the job where it hasn't ended yet, and return what all say: why those fail that do."""
        if isinstance(error, RanksError):
            return sentence
        try:
            self.tell(SpectralError(sentence))
        except RanksError as shared:
            return str(shared)

    def part(self) -> None:
        """Wait for the others before leaving, after an end that all know of."""
        with suppress(RanksError):
            self.exchange(None)

    def _post(self, kind: int, done: int = 0, *, finished: bool = False) -> None:
        own = torch.tensor([kind, done, finished])
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _noticing_loss():
            self._pending = dist.all_gather(found, own, group=self._group, async_op=True), found

    def _settle(self) -> tuple[int, bool]:
        """Wait for the meeting that was begun, if one was; return how much is done, and whether all is."""
        if self._pending is None:
            return 0, False
        (work, found), self._pending = self._pending, None
        with _noticing_loss():
            work.wait()
        kinds, done, finished = torch.stack(found).unbind(1)
        if _FAILURE in kinds:
            reports = self._gather(self._failure)
            self._failure = None
            raise RanksError(_join(reports))
        return int(done.sum()), bool(finished.all())

    def _gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with _noticing_loss():
            dist.all_gather_object(found, value, group=self._group)
        return found


_known: tuple[Any, Any] | None = None  # the default group, and ours beside it


def find_ranks(patience: timedelta = PATIENCE) -> Ranks:
    """Return the ranks of the process group that is initialised; none but this process where none is.

    Args:
        patience: how long they wait for one another, for the first time that it is asked.

    Raises:
        RanksError: if the others don't come.

    Example:
        >>> find_ranks().count
        1
    """
    global _known
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    whole = dist.group.WORLD
    if _known is None or _known[0] is not whole:
        try:
            # Beside the default one: NCCL takes no tensors in main memory, and others may be using it.
            _known = whole, dist.new_group(backend="gloo", timeout=patience)
        except RuntimeError as error:
            raise RanksError(
                f"the ranks of this process group don't meet ({_first_line(error)}); each of them must call "
                f"this, or the one that does passes together=False"
            ) from error
    return Ranks(_known[1])


@contextmanager
def hold(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only job that writes to a folder until the end of the block; its ranks all may.

    Raises:
        SpectralError: if another job has it, naming who, or it can't be written to, or not all ranks see it.
    """
    if ranks.count == 1:
        with claim(folder):
            yield
        return
    with ExitStack() as held:
        holder = ""
        with ranks.agreeing():
            if ranks.first:
                holder = held.enter_context(claim(folder, shared=True))
        holder = ranks.exchange(holder)[0]
        with ranks.agreeing():
            if not ranks.first:
                held.enter_context(join_claim(folder, holder))
        yield


@contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"a rank of this job ended or doesn't answer ({_first_line(error)}); what was finished is kept, "
            f"start the job again"
        ) from error


def _join(reports: Sequence[str | None]) -> str:
    """Say which ranks failed and why; what failed alike on all is said once."""
    if len(set(reports)) == 1:
        return str(reports[0])
    failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
    return "; ".join(f"rank {rank} of {len(reports)}: {report}" for rank, report in failed)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
