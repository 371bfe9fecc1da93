"""A results folder: tables with their provenance and figures, kept while what they came from is the same."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd

from spectral.errors import SpectralError, warn
from spectral.figures import draw_and_say
from spectral.files.atomic import find_folder
from spectral.files.json_files import read_json, write_json
from spectral.processes.ranks import find_ranks
from spectral.runs.folder import LostImagesError
from spectral.runs.lineage import RUNS, find_older, list_runs
from spectral.study.options import StudyOptions
from spectral.study.progress import DURATIONS, read_durations
from spectral.table.csv_files import CONTENT, describe_environment, list_digests, read_csv, write_csv
from spectral.table.schema import VERSION

_WAY_OUT = "delete it and run the same command again"


class Results(ABC):
    """A results folder: tables with their provenance, and the figures drawn from them.

    Where several ranks share the work, all of them make the tables; the first alone looks what is there, and
    writes and draws.

    Args:
        options: what to run on.
    """

    def __init__(self, options: StudyOptions) -> None:
        self.options = options
        self.out = Path(options.out)
        self.identities: dict[str, dict[str, str]] = {}
        """What tells the networks that were loaded from others, by name."""
        self.files: dict[str, tuple[Path, ...] | None] = {}
        """What they depend on, as `ModelInfo.files`."""

    @classmethod
    def list_unread(cls, options: StudyOptions) -> dict[str, str]:
        """Return which options nothing here reads though they are given, and what they are for."""
        return {} if options.data is None else {"data": "--data is for phases 6, 7 and 9"}

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What determines every number."""

    def provenance(self) -> dict[str, Any]:
        """The configuration, and versions and device of this run."""
        return {**self.config(), **describe_environment(), "device": self.options.device}

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write ``tables/<name>.csv`` with its provenance beside it."""
        path, facts = self.out / "tables" / f"{name}.csv", self.provenance()

        def write() -> None:
            write_csv(table, path, {**facts, RUNS: list_runs(self.out / "measurements", path.parent)})

        find_ranks().once(write)
        click.echo(f"  {path}  ({len(table)} rows)")

    def draw(self, *stems: str) -> None:
        """Draw figures from the tables on disk."""
        for stem in stems:
            draw = partial(draw_and_say, stem, self.out / "tables", self.out / "figures")
            click.echo(f"  {find_ranks().once(draw)}")

    def announce(self, text: str) -> None:
        """Print a heading."""
        click.echo(f"\n{text}")

    def finish(self) -> None:  # noqa: B027
        """Do what is left after the last phase: nothing, by default."""

    def claim(self, path: Path, config: dict[str, Any]) -> None:
        """Write down what the measurements beside ``path`` belong to.

        Raises:
            SpectralError: if they belong to another configuration.
        """
        find_ranks().once(lambda: self._claim(path, config))

    def _claim(self, path: Path, config: dict[str, Any]) -> None:
        if os.path.lexists(path):
            before = read_json(path, sealed=True, way_out=_WAY_OUT)
            differing = [key for key in config if before.get(key) != config[key]]
            if differing and differing[0] not in before:
                raise SpectralError(
                    f"{self.out} holds measurements of a study that an earlier version began, which doesn't "
                    f"say its {differing[0]}; choose another --out or delete {path.parent}"
                )
            if differing:
                raise SpectralError(
                    f"{self.out} holds measurements of a study with other {differing[0]} "
                    f"({before.get(differing[0])}); choose another --out or delete {path.parent}"
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(config, path, sealed=True)

    def has_table(self, name: str) -> bool:
        """Whether this table is there, from this configuration."""
        config = self.config()
        return find_ranks().once(lambda: self._has_table(name, config))

    def _has_table(self, name: str, config: Mapping[str, Any]) -> bool:
        path = self.out / "tables" / f"{name}.csv"
        before = _read_kept(path)
        if before is None or any(before.get(key) != value for key, value in config.items()):
            return False
        try:
            older = find_older(before, path.parent)
        except LostImagesError:  # they are measured again
            return False
        if older:
            warn(f"{path} wasn't made of what is in {older} now; it is computed again")
        return older is None

    def note_duration(self, name: str, seconds: float) -> None:
        """Write down how long a table took, beside what was measured: `Table.seconds` is taken from there."""
        find_ranks().once(lambda: self._note_duration(name, seconds))

    def _note_duration(self, name: str, seconds: float) -> None:
        path = self.out / "measurements" / DURATIONS
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json({**read_durations(self.out), name: round(seconds, 3)}, path, sealed=True)

    def keep_table(
        self, path: Path, config: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return what an earlier run computed with this configuration, or compute it and keep it."""
        whole, ranks = {**config, "schema": VERSION}, find_ranks()
        if not ranks.once(lambda: _is_kept(path, whole)):
            table = compute()
            ranks.once(lambda: write_csv(table, path, whole))
        return ranks.once(lambda: read_csv(path, dtype={"image": str, "cluster": str}))

    def measurement_folder(self, name: str, part: str = "") -> Path:
        """Return where the measurements of a model are kept."""
        return find_folder(self.out / "measurements" / part, name)


def _is_kept(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a table is there that was computed with a configuration."""
    return bool(_read_kept(path) == json.loads(json.dumps(config)))


def _read_kept(path: Path) -> dict[str, Any] | None:
    """Read what is written beside a table; None where there is none, or one that was altered, which is told.

    Raises:
        SpectralError: if what is written beside it is damaged.
    """
    written = path.with_suffix(".json")
    if not (os.path.lexists(path) and os.path.lexists(written)):
        return None
    before = read_json(written, way_out=_WAY_OUT)
    digests = before.pop(CONTENT, None)
    if digests != list_digests(path):
        why = "isn't what was written there" if digests else "has no digest: an earlier version wrote it"
        warn(f"{path} {why}; it is computed again")
        return None
    return before
