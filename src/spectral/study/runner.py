"""Runs what phases declare: measures, makes tables, draws figures, and says how far it is."""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import click
import pandas as pd

from spectral.codebook import write_codebook
from spectral.errors import SpectralError
from spectral.figures import FIGURES, holds_only_reasons
from spectral.files.atomic import require_place
from spectral.processes.ranks import find_ranks
from spectral.study.declaration import Phase, Table, Units, find_table, list_made_of, read_phase
from spectral.study.findings import report_findings
from spectral.study.jobs import work_through
from spectral.study.options import StudyOptions
from spectral.study.progress import (
    Progress,
    describe_overwriting,
    name_units,
    read_durations,
    weigh_phase,
    weigh_table,
    weigh_units,
)
from spectral.study.results import Results


@dataclass(frozen=True)
class Outcome:
    """What came of a study.

    Attributes:
        said: what it has found, in lines.
        files: what its networks depend on, by name, as `ModelInfo.files`.
    """

    said: list[str]
    files: dict[str, tuple[Path, ...] | None]


def run_phases(numbers: Sequence[int], options: StudyOptions) -> Outcome:
    """Run phases in order, say what they find, and write the codebook.

    Raises:
        SpectralError: for an unknown phase, an option that none of them reads, or whatever a phase meets.
    """
    phases = {number: read_phase(number) for number in numbers}
    _refuse_unread(phases, options)
    _require_places(phases.values(), Path(options.out))
    opened: dict[Any, Results] = {}
    made: dict[Any, dict[str, Any]] = {}
    known = read_durations(Path(options.out))
    progress = Progress([weigh_phase(phase, known) for phase in phases.values()])
    if earlier := describe_overwriting(Path(options.out)):
        click.echo(earlier)
    for phase in phases.values():  # before the first works for minutes: a later one's may not be there
        if phase.inputs not in opened:
            opened[phase.inputs], made[phase.inputs] = phase.inputs(options), {}
    for number, phase in phases.items():
        results = opened[phase.inputs]
        results.announce(f"phase {number}: {phase.title} ({progress.begin()})")
        Run(phase, results, progress, made[phase.inputs]).finish()
    for results in opened.values():
        results.finish()
    tables = Path(options.out) / "tables"
    ranks = find_ranks()
    said = ranks.once(lambda: list(report_findings(tables, list(phases))))
    for line in said:
        click.echo(line)
    ranks.once(lambda: write_codebook(tables))
    return Outcome(said, {name: files for one in opened.values() for name, files in one.files.items()})


def _refuse_unread(phases: Mapping[int, Phase], options: StudyOptions) -> None:
    """Refuse an option that none of the phases reads: it would be passed over without a word.

    Raises:
        SpectralError: naming it, and what does read it.
    """
    unread = [phase.inputs.list_unread(options) for phase in phases.values()]
    for option in unread[0]:
        if all(option in one for one in unread):
            why = "; ".join(dict.fromkeys(one[option] for one in unread))
            asked = f"phase{'s' * (len(phases) > 1)} {', '.join(map(str, phases))}"
            raise SpectralError(f"{why}, and would be passed over by {asked}; leave it out")


def _require_places(phases: Collection[Phase], out: Path) -> None:
    """Check that all files that phases declare can be written, before the first works for minutes.

    Raises:
        SpectralError: naming one that can't.
    """
    tables = [table for phase in phases for table in phase.tables]
    written = ["codebook", *(table.name for table in tables if table.written)]
    drawn = [stem for table in tables for stem in table.figures]
    for folder, names, kinds in (
        ("tables", written, (".csv", ".json")),
        ("figures", drawn, (".png", ".pdf")),
    ):
        require_place(*(out / folder / f"{name}{kind}" for name, kind in product(names, kinds)))


class Run:
    """One phase on its inputs.

    Args:
        phase: what it declares.
        results: what it works on, and where it writes.
        progress: told what is done.
        made: tables and what units gave, by name, of phases on the same inputs; what this one makes goes in.
    """

    def __init__(
        self, phase: Phase, results: Results, progress: Progress, made: dict[str, Any] | None = None
    ) -> None:
        self.phase, self.results, self.progress = phase, results, progress
        self.made = {} if made is None else made
        self.drawn: set[str] = set()
        self.durations = read_durations(results.out)

    def finish(self) -> None:
        """Measure, write and draw all that the phase declares.

        Raises:
            SpectralError: if nothing at all could be measured, after the tables with the reasons are written.
        """
        if self.phase.units is not None:
            self.made.update(self._measure(self.phase.units))
        left = {table.name for table in self.phase.tables}
        for table in self.phase.tables:
            self.make(table)
            left.discard(table.name)
            self._draw_what_is_there(left)
        if self.phase.conclude is not None:
            for line in self.phase.conclude(self.results, self.made):
                click.echo(f"  {line}")
        tables = [self.made[table.name] for table in self.phase.tables if table.written]
        if tables and all(map(holds_only_reasons, tables)):
            noun = self.phase.units.noun if self.phase.units else "model"
            raise SpectralError(f"none of the {noun}s could be measured; the tables have the reasons")
        for stem in self._list_figures():
            self._draw(stem)

    def make(self, table: Table) -> Any:
        """Make a table, or take it if it is made, and write it."""
        if table.name in self.made:
            return self.made[table.name]
        needed = [self._find(name) for name in table.needs]
        begun = time.monotonic()
        value = self.made[table.name] = table.make(self.results, *needed)
        self.progress.advance(weigh_table(table, self.durations))
        self.results.note_duration(table.name, time.monotonic() - begun)
        if table.written and not (table.optional and value.empty):
            self.results.write_table(table.name, value)
        return value

    def _list_figures(self) -> list[str]:
        """List the figures that aren't drawn yet."""
        return [stem for table in self.phase.tables for stem in table.figures if stem not in self.drawn]

    def _draw_what_is_there(self, left: Container[str]) -> None:
        """Draw the figures of which no table is left to be made, so that an interrupted study shows them."""
        for table in self.phase.tables:
            for stem in table.figures if table.name in self.made else ():
                names = FIGURES[stem].tables
                there = all(name not in left and (name in self.made or self.results.has_table(name))
                            for name in names)  # fmt: skip
                if stem not in self.drawn and there:
                    self._draw(stem)

    def _find(self, name: str) -> Any:
        if name in self.made:
            return self.made[name]
        return self.make(find_table(name, self.phase.inputs))

    def _stands(self, name: str) -> bool:
        """Whether a table is made, or there from this configuration with the tables it is made of."""
        return name in self.made or (
            self.results.has_table(name)
            and all(self._stands(own.name) for own in list_made_of(name, self.phase.inputs))
        )

    def _draw(self, stem: str) -> None:
        """Draw a figure, if its tables hold anything to draw."""
        self.drawn.add(stem)
        for name in FIGURES[stem].tables:
            if not self._stands(name):
                self._find(name)
        self.results.draw(stem)

    def _measure(self, units: Units) -> dict[str, Any]:
        """Measure every unit, as many at a time as ``--jobs`` says, in their order."""
        names = units.names(self.results)
        begun, found = time.monotonic(), []
        for name, measured in work_through(self.phase, self.results, names):
            found.append(measured)
            self.progress.advance(weigh_units(units, self.phase, self.durations) / len(names))
            click.echo(f"  {units.say(self.results, name, measured)}")
            left = self.progress.describe_left()
            if left and len(found) < len(names):
                click.echo(f"    {len(found)} of {len(names)} {units.noun}s, {left}")
        self.results.note_duration(name_units(self.phase), time.monotonic() - begun)
        return join_units(found)


def join_units(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put what units gave one behind the other, by name: rows with rows, tables with tables.

    Example:
        >>> join_units([{"rows": [{"a": 1}]}, {"rows": [{"a": 2}]}])
        {'rows': [{'a': 1}, {'a': 2}]}
    """
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(key for one in found for key in one):
        parts = [one[name] for one in found if name in one]
        if isinstance(parts[0], pd.DataFrame):
            filled = [part for part in parts if len(part)] or parts[:1]
            joined[name] = pd.concat(filled, ignore_index=True)
        else:
            joined[name] = list(chain.from_iterable(parts))
    return joined
