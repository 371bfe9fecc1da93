"""Processes that share one job: the ranks of a process group of `torch.distributed`.

They meet at the same points of the same program. A rank that fails says so where the others meet next, so
that all end with one sentence; a rank that dies is noticed there too, since its connections close.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from spectral import errors
from spectral.errors import BrokenJobError, LostRankError, SpectralError, StorageError
from spectral.files.writers import claim, join_claim

T = TypeVar("T")
P = ParamSpec("P")
PATIENCE = timedelta(minutes=10)
"""How long ranks wait for one that neither answers nor ends; one that ends is noticed at once."""
QUIET = timedelta(seconds=30)
"""How long one waits before it says so."""

_TOGETHER = "every rank must call this, or the one that does calls it within `with spectral.alone():`"
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
_STEP, _VALUES, _FAILURE = range(3)  # what a meeting is for
# Arguments of an analysis that are compared by what they hold (`spectral.sharing`, `hold`), or may differ.
_APART = {
    "model", "models", "images", "inputs", "preprocessing", "logits", "train_set", "test_set", "start", "out",
    "device", "progress", "seconds",
}  # fmt: skip


class RanksError(SpectralError):
    """What ended a job, in the same words on every rank; all of them know.

    It is also of the kind that they met, of those in `spectral.errors`: an analysis lets some through and
    notes others.
    """


_KNOWN = (RanksError, BrokenJobError)  # to every rank


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
        # A group's threads end with its last reference: one that outlived `destroy_process_group` would leave
        # them running into the interpreter's own end, which aborts the process.
        self._find_group = None if group is None else weakref.ref(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        self._pending: tuple[Any, list[Tensor]] | None = None
        self._failure: _Failure | None = None

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
            RanksError: if one of them failed.
            BrokenJobError: if one ended, or failed as nobody foresaw.
        """
        if self._find_group is None:
            return [value]
        content = pickle.dumps(value)  # before the others are told to wait for it
        self._settle()
        self._post(_VALUES)
        self._settle()
        return [pickle.loads(one) for one in self._gather(content)]

    def once(self, work: Callable[[], T]) -> T:
        """Do something on the first rank, which does it alone, and return what it gives on all.

        Example:
            >>> Ranks().once(lambda: "written")
            'written'

        Raises:
            RanksError: if it fails; as ``work`` where there is but one rank.
        """
        if self._find_group is None:
            return work()
        found: Any = None
        with self.telling(), alone():
            if self.first:
                found = work()
        return self.exchange(found)[0]  # type: ignore[no-any-return]

    def advance(self, done: int) -> int:
        """Tell how much is done, and return how much was by all when they last told.

        It waits for no rank that is less than a step behind.

        Raises:
            RanksError: if one of them failed.
            BrokenJobError: if one ended, or failed as nobody foresaw.
        """
        if self._find_group is None:
            return done
        total, _ = self._settle()
        self._post(_STEP, done)
        return total

    def await_others(self, done: int) -> Iterator[int]:
        """Yield how much all have done, whenever that changes, until the last has come here.

        Raises:
            RanksError: if one of them failed.
            BrokenJobError: if one ended, or failed as nobody foresaw.
        """
        finished = self._find_group is None
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
        except _KNOWN:
            raise
        except Exception as error:
            if self._find_group is None:
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
        said = str(error) if known else f"{type(error).__name__}: {_first_line(error)}"
        self._failure = said, _find_kind(error) if known else None
        try:
            self._settle()
            self._post(_FAILURE)
            self._settle()
        except _KNOWN as shared:
            raise shared from error
        raise AssertionError("a failure ends its meeting")

    def share_failure(self, error: Exception, sentence: str) -> str:
        """End the job where it hasn't ended yet, and return what all say: why those fail that do."""
        if isinstance(error, _KNOWN):
            return sentence
        try:
            self.tell(SpectralError(sentence))
        except _KNOWN as shared:
            return str(shared)

    def require_same(self, caller: str, given: Mapping[str, Any]) -> None:
        """Make sure that all ranks call the same with the same.

        Args:
            caller: what they call.
            given: what it is called with, under its names; equal where it is the same.

        Raises:
            RanksError: naming what a rank has that the first hasn't.
        """
        first, before = self.exchange((caller, given))[0]
        with self.agreeing():
            if first != caller:
                raise SpectralError(f"rank 0 calls {first}, not {caller}; let every rank call the same")
            for name in {**before, **given}:
                was, now = before.get(name), given.get(name)
                if was != now:
                    raise SpectralError(
                        f"rank 0 calls {caller} with {name} = {was}, not {now}; give every rank the same "
                        f"network, images and arguments"
                    )

    def part(self) -> None:
        """Wait for the others before leaving, after an end that all know of."""
        with suppress(*_KNOWN):
            self.exchange(None)

    def _group(self) -> Any:
        group = self._find_group() if self._find_group else None
        if group is None:  # which torch would take for the default one
            raise BrokenJobError("the process group of this job has been destroyed; call this before that")
        return group

    def _post(self, kind: int, done: int = 0, *, finished: bool = False) -> None:
        own = torch.tensor([kind, done, finished])
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _noticing_loss():
            self._pending = dist.all_gather(found, own, group=self._group(), async_op=True), found

    def _settle(self) -> tuple[int, bool]:
        """Wait for the meeting that was begun, if one was; return how much is done, and whether all is."""
        if self._pending is None:
            return 0, False
        (work, found), self._pending = self._pending, None
        with _noticing_loss(), saying_that_it_waits(self.rank, self.count):
            work.wait()
        kinds, done, finished = torch.stack(found).unbind(1)
        if _FAILURE in kinds:
            reports = self._gather(self._failure)
            self._failure = None
            raise _unite(reports)
        return int(done.sum()), bool(finished.all())

    def _gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with _noticing_loss(), saying_that_it_waits(self.rank, self.count):
            dist.all_gather_object(found, value, group=self._group())
        return found


_known: list[weakref.ref[Any]] = []  # the default group, and ours beside it
_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself within the block, whether or not a process group is initialised.

    What all ranks of a group call is shared among them; what one of them calls goes in here.

    Example:
        >>> with alone():
        ...     find_ranks().count
        1
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def shared(analysis: Callable[P, T]) -> Callable[P, T]:
    """Let an analysis that all ranks call end on all of them, with the same sentence, where it fails on one.

    Ranks that call it with other arguments fail: each would find its part of another thing.

    Example:
        >>> @shared
        ... def measure_nothing() -> int:
        ...     return find_ranks().count
        >>> measure_nothing()
        1
    """

    signature = inspect.signature(analysis)

    @functools.wraps(analysis)
    def run(*args: P.args, **given: P.kwargs) -> T:
        ranks = find_ranks()
        with ranks.telling():
            if ranks.count > 1:
                called = signature.bind(*args, **given)
                called.apply_defaults()
                own = {
                    name: _describe(value) for name, value in called.arguments.items() if name not in _APART
                }
                ranks.require_same(analysis.__name__, own)
            return analysis(*args, **given)

    return run


def _describe(value: Any) -> str:
    """Write an argument so that it reads the same in every process."""
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # where an object lies in memory


def find_ranks(patience: timedelta = PATIENCE) -> Ranks:
    """Return the ranks of the process group that is initialised; this process alone where none is.

    Args:
        patience: how long they wait for one another, for the first time that it is asked.

    Raises:
        RanksError: if the others don't come.
        LostRankError: if one ended.

    Example:
        >>> find_ranks().count
        1
    """
    global _known
    if _is_alone.get() or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    known = [find() for find in _known]
    if dist.group.WORLD not in known or None in known:
        try:
            # Beside the default one: NCCL takes no tensors in main memory, and others may be using it.
            with saying_that_it_waits(dist.get_rank(), dist.get_world_size()):
                known = [dist.group.WORLD, dist.new_group(backend="gloo", timeout=patience)]
        except RuntimeError as error:
            refuse_lost(error)
            raise RanksError(
                f"the ranks of this process group don't meet ({_first_line(error)}); {_TOGETHER}"
            ) from error
        _known = [weakref.ref(group) for group in known]
    return Ranks(known[1])


def take_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give a network the weights and buffers that it has on the first rank.

    What ranks work out each by itself differs by rounding where their machines differ, and a network is told
    by its last bit.
    """
    if ranks.count > 1:
        tensors = [*model.parameters(), *model.buffers()]
        first = ranks.once(lambda: [x.detach().cpu() for x in tensors])
        with torch.no_grad():
            for x, given in zip(tensors, first, strict=True):
                x.copy_(given)


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
        traceback.clear_frames(error.__traceback__)  # torch's hold the group: see `Ranks`
        raise _lose(error) from error


@contextmanager
def saying_that_it_waits(
    rank: int, count: int, advice: str = f"in a program of your own {_TOGETHER}", stream: TextIO | None = None
) -> Iterator[None]:
    """Say of a wait that it is long: nothing tells one for a slow rank from one for a rank that never comes.

    It is printed, not warned of: warnings are kept with the results, or for the end of a step.

    Args:
        rank: which of the processes this is.
        count: how many there are.
        advice: what to do if the others never come.
        stream: where it is printed; by default where errors are.
    """
    seconds = QUIET.total_seconds()
    said = (
        f"rank {rank} of {count} has waited {seconds:g} s for the others, which are slower or do something "
        f"else; {advice}"
    )
    word = threading.Timer(seconds, lambda: tqdm.write(said, file=stream or sys.stderr))
    word.start()
    try:
        yield
    finally:
        word.cancel()


def refuse_lost(error: Exception) -> None:
    """Raise what another rank's end is called, if that is what an error of a collective operation says.

    Raises:
        LostRankError: if it is.

    Example:
        >>> try:
        ...     refuse_lost(RuntimeError("[/src/gloo/pair.cc:5] Connection closed by peer. Check the logs."))
        ... except BrokenJobError as error:
        ...     print(str(error).partition(";")[0])
        a rank of this job ended or doesn't answer (Connection closed by peer)
    """
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST):
        raise _lose(error) from error


def _lose(error: Exception) -> LostRankError:
    # Of what gloo says the first sentence, without the place in its code before and the advice behind.
    why = re.sub(r"^\[[^]]*:\d+\] ", "", _first_line(error)).partition(". ")[0]
    said = (
        f"a rank of this job ended or doesn't answer ({why}); what was finished is kept, start the job again"
    )
    if why.startswith("Timed out"):  # a rank that has ended is noticed at once
        said += f"; {_TOGETHER}"
    return LostRankError(said)


_Failure = tuple[str, type[SpectralError] | None]  # what to say, and its kind, if it was foreseen


def _find_kind(error: Exception) -> type[SpectralError]:
    """Return the kind of an error that every process knows."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _unite(reports: Sequence[_Failure | None]) -> RanksError | BrokenJobError:
    """Return what ends all ranks."""
    said = _join([None if report is None else report[0] for report in reports])
    failures = [report[1] for report in reports if report is not None]
    kinds = {kind for kind in failures if kind is not None}
    if None in failures:
        return BrokenJobError(said)
    if StorageError in kinds:  # of which nothing is noted, whatever else there is
        return _share_kind(StorageError)(said)
    return _share_kind(kinds.pop() if len(kinds) == 1 else SpectralError)(said)


def _share_kind(kind: type[SpectralError]) -> type[RanksError]:
    if issubclass(RanksError, kind):
        return RanksError
    return type(kind.__name__, (RanksError, kind), {})


def _join(reports: Sequence[str | None]) -> str:
    """Say which ranks failed and why; what failed alike on all is said once."""
    if len(set(reports)) == 1:
        return str(reports[0])
    failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
    return "; ".join(f"rank {rank} of {len(reports)}: {report}" for rank, report in failed)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
