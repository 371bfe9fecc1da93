"""How much of the time that an analysis may take is left, and how many images that is enough for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from spectral.budget import VIEWS
from spectral.causes import SOURCES, idealize
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.network import undisturbed
from spectral.ranks import find_ranks

RESERVE = 0.1  # of all, for what comes at the end: tables, the page

Clock = Callable[[], float]


class Deadline:
    """The end of the time that an analysis may take.

    Args:
        minutes: about how long it may take in all; None sets no limit.
        clock: tells seconds.

    Example:
        >>> deadline = Deadline(1, clock=lambda: 0.0)
        >>> deadline.left(), deadline.allow(each=5, share=0.5, most=32), deadline.allow(each=1, most=32)
        (54.0, 5, 32)
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
            each: seconds that one takes.
            share: of the time that is left.
            most: return no more.
        """
        seconds = share * self.left()
        return most if seconds >= most * each else int(seconds / each)


def time_pass(feed: Feed) -> float:
    """Return how many seconds a forward pass takes for each image."""
    return _time(feed, lambda: feed.run(feed.example)) / _count(feed)


def time_budget(feed: Feed, plain: float, factor: int) -> float:
    """Return about how many seconds the causes of instability take for each image; 0 if that can't be told.

    Args:
        feed: images on their way to the network.
        plain: what `time_pass` gives.
        factor: how much finer the lattice of nonlinearities is.
    """
    ideal = idealize(feed.model, SOURCES, factor=factor)

    def run() -> None:
        with ideal:
            feed.run(feed.example)

    try:
        costly = _time(feed, run) / _count(feed)
    except SpectralError:
        return 0.0  # what measures them says why
    coalitions: int = 2 ** len(SOURCES)  # half of them have ideal nonlinearities, which cost most
    return VIEWS * coalitions * (costly + plain) / 2


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
