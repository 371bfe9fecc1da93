"""Commands that torchrun starts several times: which of the processes this is, and how they become one job.

torch is loaded only where there are several, so that a command that is started once answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

from spectral.errors import SpectralError

if TYPE_CHECKING:
    from spectral.processes.ranks import Ranks

_LONG = timedelta(days=30)
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
# Who says which process of its machine this is: torchrun, Slurm, Open MPI, and what is made of MPICH.
_PLACES = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")


@dataclass(frozen=True)
class Launch:
    """One of the processes that were started together.

    Attributes:
        rank: which of all.
        count: how many there are.
        local: which of those on this machine; None where nothing says so.
        bound: whether each was given devices that the others don't see.
        watched: whether who started them says which of them failed, and ends the others, as torchrun does.
    """

    rank: int = 0
    count: int = 1
    local: int | None = 0
    bound: bool = False
    watched: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks and writes for all."""
        return self.rank == 0


class Stopped(KeyboardInterrupt):
    """The process was told to end, as torchrun does when another rank has ended."""


def find_launch() -> Launch:
    """Return what torchrun, or whatever sets the same variables, says of this process.

    Processes that Slurm or MPI starts without them are no job, but each has its place on its machine.

    Raises:
        SpectralError: if these say what can't be.

    Example:
        >>> find_launch()
        Launch(rank=0, count=1, local=0, bound=False, watched=False)
    """
    local = next((_read(name) for name in _PLACES if name in os.environ), None)
    alone = Launch(local=local or 0, bound=_is_bound())
    if not all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", *_MEETING)):
        return alone
    rank, count = _read("RANK"), _read("WORLD_SIZE")
    if count == 1:
        return alone
    if rank >= count:
        raise SpectralError(f"RANK={rank} must be below WORLD_SIZE={count}; torchrun sets both")
    return Launch(rank, count, local, alone.bound, "TORCHELASTIC_RUN_ID" in os.environ)


def choose_device(device: str, launch: Launch | None = None) -> str:
    """Return the device of a process: of those of a kind that the user names without a number, its own.

    Args:
        device: as the user names it.
        launch: which process it is; by default this one.

    Raises:
        SpectralError: if nothing says which of several processes this is: all would take the same device.

    Example:
        >>> sixth = Launch(rank=5, count=8, local=1)  # the second process of the second machine
        >>> [choose_device(device, sixth) for device in ("cuda", "cuda:0", "cpu", "mps")]
        ['cuda:1', 'cuda:0', 'cpu', 'mps']
    """
    launch = launch or find_launch()
    if device not in ("cuda", "xpu") or (launch.count == 1 and not launch.local):
        return device
    if launch.local is None:
        raise SpectralError(
            f"RANK={launch.rank} and WORLD_SIZE={launch.count} are set, but nothing says which process of "
            f"its machine this is, and all would take the same {device} device; set LOCAL_RANK, as torchrun "
            f"does, or name a device such as {device}:0"
        )
    return f"{device}:{0 if launch.bound else launch.local}"


@contextlib.contextmanager
def joined(launch: Launch, *, apart: bool = False) -> Iterator[Ranks]:
    """Let the processes of a launch share what the block measures.

    They wait for one another as long as it takes: one may draw figures, or be at work alone.

    Args:
        launch: of this process.
        apart: share nothing but the beginning and the end: each has work of its own.

    Raises:
        RanksError: if the others don't come.
    """
    import torch.distributed as dist

    # The defaults of its functions hold the group that is there when it is first loaded.
    import torch.distributed.nn  # noqa: F401

    from spectral.processes.ranks import PATIENCE, Ranks, RanksError, alone, find_ranks, saying_that_it_waits

    if launch.count == 1:
        yield Ranks()
        return
    together = alone() if apart else contextlib.nullcontext()
    if dist.is_initialized():  # by a program that calls commands one after the other
        ranks = find_ranks(_LONG)
        with together:
            yield ranks
        return
    where = ":".join(os.environ[name] for name in _MEETING)
    way_out = "unset RANK and WORLD_SIZE to run one process"
    try:
        # Each for itself: the first, which speaks for all, may not be there.
        with saying_that_it_waits(launch.rank, launch.count, way_out, sys.__stderr__):
            dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RanksError(
            f"RANK={launch.rank} and WORLD_SIZE={launch.count} are set, as torchrun does, but the ranks "
            f"don't meet at {where} ({str(error).splitlines()[0]}); {way_out}"
        ) from error
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        ranks = find_ranks(_LONG)
        with together:
            yield ranks
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
        gc.collect()  # what refers to a group, as DistributedDataParallel does, and to itself: see `Ranks`


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # it is ending
    raise Stopped


def _is_bound() -> bool:
    """Whether Slurm shows this process fewer GPUs than the job has here, as with --gpus-per-task."""
    of_job, own = os.environ.get("SLURM_GPUS_ON_NODE", ""), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if "LOCAL_RANK" in os.environ or not of_job.isdecimal() or not own:
        return False
    return len(own.split(",")) < int(of_job)


def _read(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise SpectralError(f"{name} must be a whole number ≥ 0, got {text!r}; the launcher sets it")
    return int(text)
