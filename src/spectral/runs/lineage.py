"""Which measurements a table was made of: noted beside it, and held against those that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from spectral.errors import StorageError
from spectral.files.json_files import read_json
from spectral.runs.folder import LostImagesError, digest_run
from spectral.table.csv_files import PROVENANCE, check_tables, read_csv
from spectral.table.schema import RUN_FILE, SHARD, SITES_FILE

RUNS = "runs"  # under what a table's provenance has the digests of the runs that it was made of


def list_runs(folder: Path, beside: Path) -> dict[str, str]:
    """Return the digests of all finished runs below a folder, by their places as seen from another.

    Args:
        folder: what lies in it is verified too.
        beside: the folder of the tables that are made of them.

    Raises:
        SpectralError: if a file of one is damaged.

    Example:
        >>> list_runs(Path("no/such/folder"), Path("tables"))
        {}
    """
    found = {}
    for run in _find_runs(folder):
        if os.path.lexists(run / SITES_FILE):
            with suppress(LostImagesError):  # nothing was made of it since; it is measured again
                found[Path(os.path.relpath(run, beside)).as_posix()] = digest_run(run)
    return found


def find_older(beside: Mapping[str, Any], folder: Path, known: dict[Path, str] | None = None) -> Path | None:
    """Find a run that isn't any more what a table was made of; None where all are, or none is there.

    Args:
        beside: what was written beside the table.
        folder: of the table.
        known: digests of runs that were verified already; those that are verified here come to them.

    Raises:
        SpectralError: if a file of a run is damaged or gone.
    """
    known = {} if known is None else known
    noted = beside.get(RUNS)
    for place, digest in (noted if isinstance(noted, dict) else {}).items():
        run = Path(os.path.normpath(folder / place))
        if os.path.lexists(run):  # tables may be taken elsewhere without what they were made of
            if run not in known:
                known[run] = digest_run(run)
            if known[run] != digest:
                return run
    return None


def read_result(path: Path, known: dict[Path, str] | None = None) -> pd.DataFrame:
    """Read a table as it was written, if it was made of the measurements that are there.

    Args:
        path: of the CSV file.
        known: see `find_older`.

    Raises:
        SpectralError: if it was altered, or made of other measurements, or these are damaged.
        OSError, ValueError: whatever pandas makes of one that it can't read.
    """
    table = read_csv(path)
    for beside in (path.with_suffix(".json"), path.with_name(PROVENANCE)):
        if os.path.lexists(beside) and (run := find_older(read_json(beside), path.parent, known)):
            raise StorageError(
                f"{path} wasn't made of what is in {run} now; run the command that made it again"
            )
    return table


def verify_below(folder: Path) -> dict[Path, str]:
    """Verify all runs and tables in a folder and below it.

    Returns:
        The runs' digests, for `read_result`.

    Raises:
        SpectralError: if a file is damaged or altered, or a part that was noted is gone.

    Example:
        >>> verify_below(Path("no/such/folder"))
        {}
    """
    known = {run: digest_run(run) for run in _find_runs(folder)}
    for inner in sorted({path.parent for path in folder.rglob("*.json")}):
        check_tables(inner)
    for path in sorted(folder.rglob("*.json")):
        with suppress(OSError):
            if b'"seal"' in path.read_bytes():
                read_json(path, sealed=True, way_out="run the command that made it again")
    return known


def _find_runs(folder: Path) -> list[Path]:
    """List the folders below one that have anything of a run, without what says of which it is among them."""
    marks = (RUN_FILE, SITES_FILE, SHARD.replace("{}{:06d}", "*"))
    return sorted({path.parent for mark in marks for path in folder.rglob(mark)})
