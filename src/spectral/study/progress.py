"""How far a study is: which phase of how many, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from spectral.errors import SpectralError
from spectral.files.json_files import read_json
from spectral.study.declaration import Phase, Table, Units

DURATIONS = "durations.json"  # among a study's measurements

LEAST_DONE = 0.02  # of all that is to do, before a guess is worth anything


class Progress:
    """Counts phases and guesses the time left from how long what is done took, and what it weighs.

    Args:
        weights: what each phase weighs next to the others, such as the seconds that it once took.
        clock: tells seconds.

    Example:
        >>> seconds = iter([0.0, 60.0])
        >>> progress = Progress([20, 40], clock=lambda: next(seconds))
        >>> progress.begin()
        '1 of 2'
        >>> progress.advance(20)
        >>> progress.begin()
        '2 of 2, about 2 min left'
    """

    def __init__(self, weights: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._weights, self._clock = list(weights), clock
        self._start, self._begun, self._done = clock(), 0, 0.0

    def begin(self) -> str:
        """Say which phase begins, and about how long it and those behind it take."""
        # What a phase left out, or did beside its own, no longer counts.
        self._done = sum(self._weights[: self._begun])
        self._begun += 1
        left = self.describe_left()
        return f"{self._begun} of {len(self._weights)}" + (f", {left}" if left else "")

    def advance(self, weight: float) -> None:
        """Count a part of the present phase as done."""
        self._done = min(self._done + weight, sum(self._weights[: self._begun]))

    def describe_left(self) -> str:
        """Say about how long the rest takes; nothing while too little is done to tell."""
        total = sum(self._weights)
        if total <= 0 or self._done < LEAST_DONE * total:
            return ""
        elapsed = self._clock() - self._start
        return f"about {format_duration(elapsed * (total - self._done) / self._done)} left"


def read_durations(out: Path) -> dict[str, float]:
    """Read how long each table took when it was last made in a results folder.

    Nothing where none was, or where that is damaged: they tell only about how long the rest takes.

    Example:
        >>> read_durations(Path("no/such/folder"))
        {}
    """
    path = out / "measurements" / DURATIONS
    try:
        return read_json(path, sealed=True) if path.exists() else {}
    except SpectralError:
        return {}


def weigh_table(table: Table, known: Mapping[str, float]) -> float:
    """Return about how long a table takes: as long as it took, or what it declares.

    A table that was kept took no time, which says nothing of making it anew.
    """
    return max(known.get(table.name, 0.0), table.seconds)


def weigh_units(units: Units, phase: Phase, known: Mapping[str, float]) -> float:
    """Return about how long all units of a phase take."""
    return max(known.get(name_units(phase), 0.0), units.seconds)


def weigh_phase(phase: Phase, known: Mapping[str, float]) -> float:
    """Return about how long a phase takes."""
    units = weigh_units(phase.units, phase, known) if phase.units else 0.0
    return sum(weigh_table(table, known) for table in phase.tables) + units


def name_units(phase: Phase) -> str:
    """Name what the units of a phase took, among durations: phases share a folder."""
    return f"units of {phase.title}"


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
