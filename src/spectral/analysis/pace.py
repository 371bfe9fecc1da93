"""How much of the time that an analysis may take is left, and how much of each step that is enough for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from spectral.budget import VIEWS
from spectral.causes import SOURCES, idealize
from spectral.data.subset import Subset
from spectral.errors import SpectralError
from spectral.hooks.capture import Tap
from spectral.intake import Feed
from spectral.measurement import measure
from spectral.network import list_moves, undisturbed
from spectral.processes.ranks import find_ranks
from spectral.sites import Site

RESERVE = 0.12  # of all, for what comes before and after: imports, tables, the page

Clock = Callable[[], float]


class Deadline:
    """The end of the time that an analysis may take.

    Args:
        minutes: about how long it may take in all; None sets no limit.
        clock: tells seconds.

    Example:
        >>> deadline = Deadline(1, clock=lambda: 0.0)
        >>> deadline.left(), deadline.allow(each=5, share=0.5, most=32), deadline.allow(each=1, most=32)
        (52.8, 5, 32)
    """

    def __init__(self, minutes: float | None, clock: Clock = time.monotonic) -> None:
        self.minutes, self._clock = minutes, clock
        self._end = math.inf if minutes is None else clock() + 60 * minutes * (1 - RESERVE)

    def left(self) -> float:
        """Return how many seconds are left."""
        return max(self._end - self._clock(), 0.0)

    def allow(self, each: float, share: float = 1.0, most: int = 2**31) -> int:
        """Return how many things, of which each takes so many seconds, a share of what is left is enough for.

        Args:
            each: seconds that one takes; NaN, which nobody could tell, holds up none.
            share: of the time that is left.
            most: return no more.
        """
        seconds = share * self.left()
        return most if math.isnan(each) or seconds >= most * each else int(seconds / each)

    def extend(self, seconds: float) -> int:
        """Return how many minutes would be enough for so many seconds more.

        Example:
            >>> Deadline(2).extend(100)
            4
        """
        return math.ceil((self.minutes or 0) + seconds / 60 / (1 - RESERVE))


@dataclass(frozen=True)
class Step:
    """What a step of an analysis may take of the time that is left when its turn comes.

    Attributes:
        share: of the time.
        least: images, if there are as many, on which alone it is worth it.
        insists: whether it is done on those even where there is no time for them.
    """

    share: float
    least: int
    insists: bool = False

    def plan(self, deadline: Deadline, each: float, most: int) -> int:
        """Return on how many images it is done; 0 where that isn't worth it.

        Args:
            deadline: of all steps.
            each: seconds that an image takes.
            most: images there are, or that are enough.

        Example:
            >>> deadline = Deadline(1, clock=lambda: 0.0)  # 52.8 seconds
            >>> [Step(0.5, 4, insists=True).plan(deadline, each, 64) for each in (0.1, 1, 100)]
            [64, 26, 4]
            >>> Step(0.5, 4).plan(deadline, 100, 64)
            0
        """
        least, allowed = min(self.least, most), deadline.allow(each, self.share, most)
        return max(allowed, least) if self.insists or allowed >= least else 0


@dataclass
class Stopwatch:
    """How long the network of a feed takes for what, in seconds for each image; measured when asked for.

    Args:
        feed: images on their way to the network.
        batch_size: images per forward pass.
    """

    feed: Feed
    batch_size: int

    @cached_property
    def plain(self) -> float:
        """A forward pass."""
        return _time(self.feed, lambda: self.feed.run(self.feed.example)) / _count(self.feed)

    @cached_property
    def reading(self) -> float:
        """Getting an image ready that wasn't seen before."""
        start = time.perf_counter()
        self.feed.load([len(self.feed.images) - 1])
        return time.perf_counter() - start

    @cached_property
    def views(self) -> float:
        """What the network says of an image and of its shifts by one pixel."""
        return self.plain * (1 + len(list_moves(self.feed.example, self.feed.layout)))

    def sites(self, sites: Sequence[Site], metrics: Sequence[str], taps: Sequence[Tap]) -> float:
        """Measuring at the sites; NaN where that fails, for whatever measures them to say why."""
        options: dict[str, Any] = {
            "preprocessing": self.feed.preparation if self.feed.normalises else None, "progress": False,
        }  # fmt: skip
        several = min(self.batch_size, len(self.feed.images))

        def run(count: int) -> float:
            few, start = Subset(self.feed.images, range(count)), time.perf_counter()
            measure(self.feed.model, few, metrics, sites=sites, taps=taps, batch_size=count, **options)
            return time.perf_counter() - start

        try:
            run(1)  # plans are made and memory is there
            alone, together = run(1), run(several) if several > 1 else 0.0
        except SpectralError:
            return math.nan
        # A run of few images is mostly its own beginning.
        each = (together - alone) / (several - 1) if several > 1 else alone
        return max(each, self.plain) / find_ranks().count

    def causes(self, factor: int) -> float:
        """Telling the causes of its instability apart; NaN where that fails.

        Args:
            factor: how much finer the lattice of nonlinearities is.
        """
        ideal = idealize(self.feed.model, SOURCES, factor=factor)

        def run() -> None:
            with ideal:
                self.feed.run(self.feed.example)

        try:
            costly = _time(self.feed, run) / _count(self.feed)
        except SpectralError:
            return math.nan
        coalitions: int = 2 ** len(SOURCES)  # half of them have ideal nonlinearities, which cost most
        return VIEWS * coalitions * (costly + self.plain) / 2


def _count(feed: Feed) -> int:
    return feed.example.count * find_ranks().count


def _time(feed: Feed, run: Callable[[], object]) -> float:
    """Time a pass that another came before: plans are made and memory is there."""
    seconds = 0.0
    with undisturbed(feed.model), torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            run()
            if feed.device.type == "cuda":
                torch.cuda.synchronize(feed.device)
            seconds = time.perf_counter() - start
    return seconds
