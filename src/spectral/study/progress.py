"""How far a study is: which phase of how many, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

# What a phase costs next to the others with its own defaults, roughly; only used to guess the time left.
COSTS = {1: 1, 2: 2, 3: 20, 4: 40, 5: 5, 6: 60, 7: 60, 8: 40, 9: 200, 10: 60}
LEAST_DONE = 0.04  # of all costs, before a guess is worth anything


class Progress:
    """Counts phases and guesses the time left from that of the phases done.

    Args:
        phases: their numbers, in order.
        clock: tells seconds.

    Example:
        >>> seconds = iter([0.0, 0.0, 60.0])
        >>> progress = Progress([3, 4], clock=lambda: next(seconds))
        >>> progress.begin(3), progress.begin(4)
        ('1 of 2', '2 of 2, about 2 min left')
    """

    def __init__(self, phases: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._phases, self._clock = list(phases), clock
        self._start, self._done = clock(), 0

    def begin(self, phase: int) -> str:
        """Say which phase begins, and about how long it and those behind it take."""
        elapsed = self._clock() - self._start
        costs = [COSTS.get(one, 10) for one in self._phases]
        done, left = sum(costs[: self._done]), sum(costs[self._done :])
        self._done += 1
        text = f"{self._done} of {len(self._phases)}"
        if done < LEAST_DONE * (done + left):
            return text
        return f"{text}, about {format_duration(elapsed * left / done)} left"


def format_duration(seconds: float) -> str:
    """Write a duration as roughly as it is known.

    Example:
        >>> format_duration(7), format_duration(100), format_duration(9000)
        ('10 s', '2 min', '2.5 h')
    """
    if seconds < 55:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def describe_overwriting(out: Path) -> str | None:
    """Say what of an earlier run lies in a results folder and is written anew; None if nothing does."""
    tables, figures = (len(list((out / part).glob(end))) for part, end in
                       (("tables", "*.csv"), ("figures", "*.png")))  # fmt: skip
    if not tables and not figures:
        return None
    kept = "; what was measured is kept and continued" if (out / "measurements").is_dir() else ""
    return f"{out} holds {tables} tables and {figures} figures: those of these phases are overwritten{kept}"
