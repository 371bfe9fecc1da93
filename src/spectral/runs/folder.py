"""A run's folder, read: its rows, each file compared with its digest, and what the run was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa

from spectral.arguments.values import as_path
from spectral.errors import SpectralError, StorageError
from spectral.files.json_files import read_json
from spectral.runs.shards import Shard, list_shards, read_shards
from spectral.runs.summary import describe_measurement
from spectral.table.attributes import share_facts
from spectral.table.lazy import gather
from spectral.table.rows import name_images
from spectral.table.schema import RUN_FILE, SITES_FILE, SWEEP_FILE

T = TypeVar("T")

RETRIES = 3  # to read a folder whose writer merges shards meanwhile

_WAY_OUT = "delete it and measure again"  # only this file: with it no measurement is lost
_EARLIER = ("run.json", "unmeasured.json")  # of folders whose rows have no clusters


def read(folder: str | Path) -> pd.DataFrame:
    """Read what `spectral.measure` wrote into a folder: the table that it returned, finished or not.

    ``pandas.read_parquet(folder)`` gives the same rows, and checks nothing; where images were listed without
    being read, its column ``images`` names that listing. Here every file is compared with its digest, and
    ``attrs["provenance"]`` and ``attrs["sites"]`` come with the rows, as from `measure`; nothing that is
    computed from the table needs these. Where a run was continued under other circumstances (versions,
    device), ``attrs["provenance"]["parts"]`` has those of each part.

    Args:
        folder: the ``out`` of `spectral.measure`; of ``spectral measure --out DIR`` it is DIR/measurements,
            and DIR does too.

    Raises:
        SpectralError: if it is no such folder, an earlier version wrote it, or a file in it is damaged,
            altered, or belongs to another run.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        spectral.errors.StorageError: no/such/folder holds no measurements; pass the folder that ...
    """
    path = as_path(folder, "read: folder")
    path = find_run(path) or path
    refuse_earlier(path)
    if not holds_run(path):
        raise StorageError(f"{folder} holds no measurements; pass the folder that measure(…, out=…) wrote")
    record = read_run(path)
    notes = read_notes(path, record["run"])
    concluded = notes.get("concluded", {})
    found = read_rows(path, record["run"], concluded.get("images", ""))
    _require_all(path, found.images, notes)
    first = {**record["provenance"], **concluded.get("provenance", {})}
    found.table.attrs["provenance"] = share_facts(list_provenance(first, record["parts"]))
    found.table.attrs["sites"] = share_facts(notes.get("sites", []))
    return found.table


def digest_run(folder: Path) -> str:
    """Verify a run's files, and return what tells its rows from those of others and of other times.

    Raises:
        SpectralError: as `read`.
    """
    run = read_run(folder)["run"]
    shards = _retry(lambda: [(shard.seal, len(shard.images)) for shard in _verify_shards(folder, run)])
    _require_all(folder, sum(images for _, images in shards), read_notes(folder, run))
    return f"sha256:{hashlib.sha256(''.join([run, *(seal for seal, _ in shards)]).encode()).hexdigest()}"


def _require_all(folder: Path, images: int, notes: Mapping[str, Any]) -> None:
    if images < notes.get("images", 0):
        raise LostImagesError(
            f"{folder} has {images} of the {notes['images']} images that were measured: a shard is gone; run "
            f"the same command again, which measures the others again"
        )


def find_run(folder: Path) -> Path | None:
    """Return where a folder's measurements are: in it, as `measure` writes them, or below, as the command.

    Example:
        >>> find_run(Path("no/such/folder")) is None
        True
    """
    return next((one for one in (folder, folder / "measurements") if holds_run(one)), None)


def holds_run(folder: Path) -> bool:
    """Whether there is anything in a folder of what a run writes."""
    return any(os.path.lexists(folder / name) for name in (RUN_FILE, SITES_FILE)) or bool(list_shards(folder))


def list_provenance(first: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a run's provenance; with the circumstances of each part where it was continued under others."""
    return {**first, "parts": list(parts)} if len(parts) > 1 else dict(first)


def read_run(folder: Path) -> dict[str, Any]:
    """Read what a run's folder says of the run.

    Raises:
        SpectralError: if that is damaged.
    """
    if not os.path.lexists(folder / RUN_FILE):
        raise StorageError(
            f"{folder} has shards but no {RUN_FILE}, so that nobody knows what they are of; put it back, or "
            f"choose another folder"
        )
    record = read_json(folder / RUN_FILE, sealed=True)
    if not {"run", "parts", "config", "provenance", "network"} <= set(record):
        raise StorageError(
            f"{folder / RUN_FILE} isn't what this version writes; delete its folder and measure again"
        )
    return record


class LostImagesError(StorageError):
    """A run lacks rows that it had, with all or the end of a shard; the same call measures them again."""


class _Rows(NamedTuple):
    """What a folder holds, and of how many images that is."""

    table: pd.DataFrame
    images: int


def read_rows(folder: Path, run: str, images: str) -> _Rows:
    """Verify all shards; read their rows now where they are few, and when they are looked at where many.

    Raises:
        SpectralError: if one is damaged or cut, or doesn't belong there.
    """
    return _retry(lambda: _gather_rows(folder, run, images))


def _retry(look: Callable[[], T]) -> T:
    """Look at a folder again where a shard went meanwhile, as when its writer merges some."""
    for _ in range(RETRIES):
        try:
            return look()
        except SpectralError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return look()


def _gather_rows(folder: Path, run: str, source: str) -> _Rows:
    rows = images = 0
    for shard in _verify_shards(folder, run):
        rows, images = rows + shard.rows, images + len(shard.images)

    def tables() -> Iterator[pa.Table]:
        return (name_images(shard.read(), source) for shard in read_shards(folder, run))

    return _Rows(gather(tables, rows, images, describe_measurement), images)


def _verify_shards(folder: Path, run: str) -> Iterator[Shard]:
    """Verify all shards; one that is cut is told too."""
    for shard in read_shards(folder, run):
        if shard.cut:
            raise LostImagesError(
                f"{shard.path} has only a part of its rows; continue the run, measure(…, out=…), which "
                f"measures its images again"
            )
        yield shard


def read_notes(folder: Path, run: str) -> dict[str, Any]:
    """Read what was noted at a run's end; nothing of one that isn't finished.

    Raises:
        SpectralError: if that is damaged, or of another run.
    """
    path = folder / SITES_FILE
    if not os.path.lexists(path):
        return {}
    notes = read_json(path, sealed=True, way_out=_WAY_OUT)
    if notes.get("run") != run:
        raise StorageError(f"{path} belongs to another run; {_WAY_OUT}")
    return notes


def refuse_sweep(folder: Path) -> None:
    """Refuse a sweep's folder, whose tables have the names of a run's.

    Raises:
        SpectralError: if it is one.
    """
    if os.path.lexists(folder / SWEEP_FILE):
        raise StorageError(f"{folder} holds a sweep, not a measurement; choose another folder")


def refuse_earlier(folder: Path) -> None:
    """Refuse what an earlier version wrote.

    Raises:
        SpectralError: if it did.
    """
    if any((folder / name).exists() for name in _EARLIER):
        raise StorageError(
            f"{folder} was written by an earlier version, whose tables don't say which images share a "
            f"photograph; delete it or choose another folder, and measure again"
        )
