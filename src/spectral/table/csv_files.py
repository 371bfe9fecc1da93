"""Tables as CSV files: written beside what they were made with, and read only as they were written."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

import spectral
from spectral.errors import SpectralError, StorageError
from spectral.files.atomic import (
    GENERATOR,
    ensure_writable,
    hash_file,
    refuse_foreign,
    replacing,
    require_place,
)
from spectral.files.json_files import read_json, write_json
from spectral.files.sameness import pick_differing

CONTENT, PROVENANCE = "content", "provenance.json"  # under what, and where, the digests of tables are noted
_WRITE_AGAIN = "write it again with the command that made it"


def write_csv(table: pd.DataFrame, path: Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a CSV, whole or not at all; its provenance goes beside it as JSON, with the digest of the CSV.

    Without provenance, that of a table which stood there goes: it would call this one altered.

    Raises:
        SpectralError: if it can't be written.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    if provenance is not None:
        write_csvs({path: table}, provenance)
        return path
    ensure_writable(path.parent)
    with replacing(path) as temporary:
        _write_csv(table, temporary)
    if _is_beside(beside):  # of the table that this one has replaced
        beside.unlink()
    return path


def write_csvs(
    tables: Mapping[Path, pd.DataFrame], provenance: Mapping[str, Any], beside: Path | None = None
) -> list[Path]:
    """Write tables of one run, and beside each its provenance with its digest, as `read_csv` checks it.

    What is beside them comes first: at whatever moment the writer is killed, no table is there unchecked, and
    none of this run among those of an earlier one.

    Args:
        tables: by where they go.
        provenance: of all of them.
        beside: the one JSON file that is of all of them, in their folder; each has its own by default. The
            tables that it told of and that aren't among them now go: they are of an earlier run.

    Returns:
        All files that were written.

    Raises:
        SpectralError: if they can't be written.
    """
    digests: dict[Path, dict[str, str]] = {}
    with ExitStack() as places:
        for path, table in tables.items():
            ensure_writable(path.parent)
            temporary = places.enter_context(replacing(path))
            _write_csv(table, temporary)
            digests.setdefault(beside or path.with_suffix(".json"), {})[path.name] = hash_file(temporary)
        for place, own in digests.items():
            if place == beside:  # a table's own tells of no other, whatever was copied there
                _remove_others(place, own)
            write_json({**provenance, CONTENT: own}, place, sealed=True)
    return [*tables, *digests]


def _remove_others(beside: Path, kept: Iterable[str]) -> None:
    """Remove the tables that a JSON file tells of beside it, but for some."""
    with suppress(SpectralError):  # none, or damaged: it tells of none
        for name in set(_read_digests(beside)).difference(kept):
            (beside.parent / Path(name).name).unlink(missing_ok=True)


def refuse_foreign_csv(path: Path, table: pd.DataFrame) -> None:
    """Refuse to write a table without provenance where anything but one of its kind stands: it would be lost.

    Args:
        path: of the CSV file.
        table: whose columns tell its kind.

    Raises:
        SpectralError: if a file has other columns, or another one tells what it is.

    Example:
        >>> refuse_foreign_csv(Path("no/such/table.csv"), pd.DataFrame())
    """
    for beside in (path.with_suffix(".json"), path.with_name(PROVENANCE)):
        known: dict[str, str] = {}
        with suppress(SpectralError):  # none, or damaged: it tells of none
            known = _read_digests(beside)
        if path.name in known:
            raise StorageError(f"{path} is a table of which {beside.name} tells; choose another file")
    refuse_foreign(path, mark=",".join(map(str, table.columns)) or GENERATOR)


def refuse_other_tables(paths: Sequence[Path], facts: Mapping[str, Any], beside: Path | None = None) -> None:
    """Refuse to write tables where those of something else stand, or files of their names: they'd be lost.

    Args:
        paths: of the CSV files.
        facts: what determines their values, as `write_csvs` is given them; what isn't noted isn't compared.
        beside: the one JSON file that tells of all of them; each has its own by default.

    Raises:
        SpectralError: naming the first that differs.

    Example:
        >>> refuse_other_tables([Path("no/such/table.csv")], {"weights": "sha256:0"})
    """
    described = {path: beside or path.with_suffix(".json") for path in paths}
    require_place(*described, *described.values())
    for path, own in described.items():
        _refuse_other(path, own, facts)
    fresh = [path for path in paths if not os.path.lexists(path)]
    refuse_foreign(*(path.with_suffix(kind) for path in fresh for kind in (".png", ".pdf")))  # drawn of them


def _refuse_other(path: Path, beside: Path, facts: Mapping[str, Any]) -> None:
    way_out = "choose another --out or delete it"
    if _is_foreign(beside, facts):
        raise StorageError(f"{beside} stands there and tells of no table; {way_out}")
    if not os.path.lexists(path):
        return
    if not os.path.lexists(beside):
        raise StorageError(f"{path} stands there without {beside.name}, which says what it is of; {way_out}")
    before = read_json(beside, way_out=f"delete {path.name} and run the same command again")
    for key, value in json.loads(json.dumps(facts)).items():
        if key in before and before[key] != value:
            was, now = pick_differing(before[key], value)
            raise StorageError(f"{path} is of {key} = {was!r}, not {now!r}; {way_out}")


def _is_foreign(beside: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a JSON file that can be read is no table's, as it has no fact of it: somebody else's."""
    try:
        found = json.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):  # none, or damaged: that is told, or it is written again
        return False
    return not isinstance(found, dict) or not ({CONTENT, *facts} & {*found})


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, float_format="%.9g", errors="backslashreplace")


def list_digests(*paths: Path) -> dict[str, str]:
    """Return the digests of files by name, as `read_csv` looks for them beside a table."""
    return {path.name: hash_file(path) for path in paths}


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read a CSV; one whose digest was written beside it must be what was written.

    Args:
        path: of the file. Its digest is looked for in its own JSON, and in the folder's provenance.json.
        options: of `pandas.read_csv`.

    Raises:
        SpectralError: if it was damaged or altered, or its digest was, if its JSON tells of another table, if
            it is a file of no bytes, or if its columns aren't told apart.
        OSError, ValueError: whatever pandas makes of one that it can't read.
    """
    for beside in (path.with_suffix(".json"), path.with_name(PROVENANCE)):
        known = _read_digests(beside) if os.path.lexists(beside) else {}
        if path.name in known:
            _check_digest(path, known[path.name], beside)
        elif known and beside.name != PROVENANCE:
            raise StorageError(
                f"{beside} tells of {next(iter(known))}, not of {path.name}; {_WRITE_AGAIN}, or delete "
                f"{beside.name} to have {path.name} taken as it is"
            )
    if path.stat().st_size == 0:  # a table without columns has the end of a line
        raise StorageError(f"{path} is empty; {_WRITE_AGAIN}")
    table: pd.DataFrame = pd.read_csv(path, **options)
    require_commas(table, lambda problem: StorageError(f"{path} {problem}"))
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first for names, and shifts the others
        raise StorageError(f"{path} has more values in its rows than columns; {_WRITE_AGAIN}")
    return table


def require_commas(table: pd.DataFrame, refuse: Callable[[str], SpectralError] = SpectralError) -> None:
    """Refuse a table whose columns were read as one, as a spreadsheet writes them with other marks between.

    Args:
        table: as it was read.
        refuse: makes the error of a problem, such as ``"has no column 'sis'"``.

    Raises:
        SpectralError: naming the mark.

    Example:
        >>> require_commas(pd.DataFrame({"model;sis": ["resnet20;0,5"]}))
        Traceback (most recent call last):
        spectral.errors.SpectralError: has ';' between its columns; write it with commas
    """
    names = [str(column) for column in table.columns]
    mark = next((mark for mark in ";\t" if len(names) == 1 and mark in names[0]), None)
    if mark is not None:
        raise refuse(f"has {mark!r} between its columns; write it with commas")


def check_tables(folder: Path) -> None:
    """Compare all tables of a folder with the digests that were written beside them.

    Raises:
        SpectralError: if one was damaged or altered, or is gone, or its digest was damaged.

    Example:
        >>> check_tables(Path("no/such/folder"))
    """
    for beside in sorted(folder.glob("*.json")):
        if beside.name == PROVENANCE or os.path.lexists(beside.with_suffix(".csv")) or _is_beside(beside):
            for name, digest in _read_digests(beside).items():
                _check_digest(folder / name, digest, beside)


def _is_beside(path: Path) -> bool:
    """Whether a JSON file is what stood beside a table; it may be anything."""
    with suppress(OSError, ValueError, RecursionError):
        return CONTENT in json.loads(path.read_bytes())
    return False


def _read_digests(beside: Path) -> dict[str, str]:
    """Read which digests are noted of which tables; none in what an earlier version wrote."""
    noted = read_json(beside, way_out=_WRITE_AGAIN).get(CONTENT)
    return noted if isinstance(noted, dict) else {}


def _check_digest(path: Path, digest: str, beside: Path) -> None:
    if not os.path.lexists(path):
        raise StorageError(f"{path} is gone, of which {beside.name} tells; {_WRITE_AGAIN}")
    if hash_file(path) != digest:
        raise StorageError(
            f"{path} isn't what was written there; {_WRITE_AGAIN}, or delete {beside.name} to have it taken "
            f"as it is"
        )


def describe_environment() -> dict[str, Any]:
    """Versions and machine kind, for provenance; no names of hosts or users."""
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn")
    own = {"spectral-aliasing": spectral.__version__, "python": platform.python_version()}
    return {
        "versions": own | {name: _version(name) for name in packages},
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


@functools.cache  # to read it takes some milliseconds
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
