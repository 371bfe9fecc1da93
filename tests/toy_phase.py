"""A phase that costs nothing, for `test_study_runner`: processes of their own must be able to import it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spectral.study.declaration import Phase, Table, Units
from spectral.study.options import StudyOptions
from spectral.study.results import Results


class Toy(Results):
    """Networks that are words."""

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        return {"seed": self.options.seed, "models": list(self.options.models or ())}


def measure(toy: Toy, name: str) -> Mapping[str, Any]:
    """Count the letters of a word."""
    if name == "mute":
        return {"rows": [{"word": name, "reason": "it says nothing"}]}
    return {"rows": [{"word": name, "letters": len(name)}], "maps": pd.DataFrame({"letter": list(name)})}


def hold(toy: Toy, name: str) -> Mapping[str, Any]:
    """Hold a lock for longer than any test lasts."""
    with (Path(toy.out) / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(toy.out, f"{name}.held").touch()
        time.sleep(3600)
    return {}


def kill(toy: Toy, word: str) -> dict[str, Any]:
    """End the process, as a system does that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def list_words(toy: Toy) -> tuple[str, ...]:
    """Return the words."""
    return tuple(toy.options.models or ())


def tabulate(toy: Toy, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the table."""
    return pd.DataFrame(rows, columns=["word", "letters", "reason"])


COUNTING = Phase(
    "letters",
    Toy,
    (
        Table("double", lambda toy, rows: 2 * len(rows), needs=("rows",), written=False),
        Table("words", tabulate, needs=("rows",)),
        Table("letters", lambda toy, maps, double: maps.assign(double=double), needs=("maps", "double")),
        Table("none", lambda toy: pd.DataFrame({"a": []}), optional=True),
    ),
    Units(list_words, measure, lambda toy, name, found: f"{name}: {found['rows'][0]}", noun="word"),
    conclude=lambda toy, made: [f"{made['double']} in two rounds"],
)
KILLED = Phase("killed", Toy, (), Units(list_words, kill, lambda toy, name, found: name))
HOLDING = Phase("holding", Toy, (), Units(list_words, hold, lambda toy, name, found: name))


def options(out: Path, *words: str, jobs: int = 1) -> StudyOptions:
    """Options of a run on these words."""
    return StudyOptions(models=words or None, out=out, jobs=jobs, progress=False)
