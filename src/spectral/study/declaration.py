"""What a phase of the study declares: its inputs, its tables and their figures; `runner` does the rest."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spectral.errors import SpectralError

_MODULE = re.compile(r"phase(\d+)")


@dataclass(frozen=True)
class Table:
    """One table: a function of the phase's inputs and of what it needs, and the figures it is drawn in.

    Attributes:
        name: of the file, without ``.csv``.
        make: called with the phase's inputs, then with each of ``needs``.
        needs: names of earlier tables, or of what units give.
        figures: keys of `spectral.figures.FIGURES`. Tables that they need beside this one are made too,
            whichever phase declares them, unless they are there from the same configuration.
        seconds: how long it takes next to the others, by the clock; only to guess the time left.
        written: whether it is a table; else a value that other tables need.
        optional: left out where it has no rows.
    """

    name: str
    make: Callable[..., Any]
    needs: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    seconds: float = 1.0
    written: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Units:
    """What a phase measures one by one, such as networks: with ``--jobs`` several at a time.

    Attributes:
        names: called with the inputs; what each is called.
        measure: called with the inputs and one name, in a process of its own with ``--jobs``, so a function
            of a module. Gives rows or a table by name; those of all units, one behind the other, can be
            needed by tables under these names.
        say: called with the inputs, a name and what was measured: a line on the screen.
        noun: what they are.
        seconds: as for `Table`, of all of them together.
    """

    names: Callable[[Any], Sequence[str]]
    measure: Callable[[Any, str], Mapping[str, Any]]
    say: Callable[[Any, str, Mapping[str, Any]], str]
    noun: str = "network"
    seconds: float = 1.0


class Inputs(Protocol):
    """What a phase works on: a subclass of `spectral.study.results.Results`."""

    def __call__(self, options: Any) -> Any:
        """Open it."""

    def list_unread(self, options: Any) -> Mapping[str, str]:
        """Return what is asked for that nothing there reads."""


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        title: a few words.
        inputs: what it works on, made of the options; phases with the same share it.
        tables: in the order in which they are made.
        units: what is measured before the tables.
        conclude: called with the inputs and all that was made, by name: lines on the screen.
    """

    title: str
    inputs: Inputs
    tables: tuple[Table, ...]
    units: Units | None = None
    conclude: Callable[[Any, Mapping[str, Any]], Iterable[str]] | None = None

    @property
    def seconds(self) -> float:
        """What it takes next to the others."""
        return sum(table.seconds for table in self.tables) + (self.units.seconds if self.units else 0)


def list_phases() -> dict[int, str]:
    """Return the modules of the phases by number: every ``phaseN`` in this package.

    Example:
        >>> list_phases()[3]
        'spectral.study.phase3'
    """
    names = (name for _, name, _ in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = {int(match[1]): match[0] for match in map(_MODULE.fullmatch, names) if match}
    return {number: f"spectral.study.{found[number]}" for number in sorted(found)}


def read_phase(number: int) -> Phase:
    """Return what a phase declares.

    Raises:
        SpectralError: if there is none of this number.

    Example:
        >>> [table.name for table in read_phase(2).tables]
        ['phase2a_frequency_sweep', 'phase2b_architecture_comparison', 'fig6_aliasing_folding']
    """
    modules = list_phases()
    if number not in modules:
        raise SpectralError(f"unknown phase {number}; available: {', '.join(map(str, modules))}")
    declared: Phase = importlib.import_module(modules[number]).PHASE
    return declared


def find_table(name: str, inputs: Inputs) -> Table:
    """Return the declaration of a table, of whichever phase on the same inputs.

    Raises:
        SpectralError: if no such phase has it.
    """
    declared = _list_tables(inputs)
    if name not in declared:
        raise SpectralError(f"no phase on the same inputs makes the table {name!r}")
    return declared[name]


def list_made_of(name: str, inputs: Inputs) -> list[Table]:
    """List the tables that are always written of which another on the same inputs is made.

    Example:
        >>> from spectral.study.families import Study
        >>> [table.name for table in list_made_of("phase3_layerwise_avr_stats", Study)]
        ['per_image']
    """
    declared = _list_tables(inputs)
    needed = [declared[own] for own in declared[name].needs if own in declared] if name in declared else []
    return [table for table in needed if table.written and not table.optional]


def _list_tables(inputs: Inputs) -> dict[str, Table]:
    """Tables of all phases on the same inputs, by name."""
    phases = map(read_phase, list_phases())
    return {table.name: table for phase in phases if phase.inputs is inputs for table in phase.tables}
