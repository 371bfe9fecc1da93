"""A run's folder: shards of the table that survive a kill, and beside them what the run was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spectral.errors import SpectralError
from spectral.schema import RUN_FILE, SHARD, SITES_FILE
from spectral.table import SCHEMA, Key, ensure_writable, read_json, to_frame, write_json

_EARLIER = ("run.json", "unmeasured.json")  # of folders whose rows have no clusters


class ShardStore:
    """A folder of Parquet shards that belongs to one configuration and can be continued after a kill.

    Every shard has the same columns, so pandas and pyarrow read the folder as one table; other files begin
    with ``_``, which both pass over.

    Args:
        folder: created if it doesn't exist.
        config: what determines the values; a folder with another one is refused.
        provenance: what is recorded beside it but may differ when a run is continued (versions, device).

    Raises:
        SpectralError: if the folder can't be written, or holds measurements of another configuration, or of
            an earlier version.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        ensure_writable(self.folder)
        _refuse_earlier(self.folder)
        self._claim(json.loads(json.dumps(config)), dict(provenance or {}))
        for left_over in self.folder.glob("*.partial"):
            left_over.unlink()

    @property
    def shards(self) -> list[Path]:
        """Finished shards in the order written."""
        return list_shards(self.folder)

    def finished_images(self) -> set[str]:
        """Ids of the images whose rows are on disk."""
        done: set[str] = set()
        for shard in self.shards:
            done |= set(read_shard(shard, ["image"])["image"].to_pylist())
        return done - {""}

    def reasons(self) -> dict[Key, str]:
        """What the runs so far could not measure."""
        columns = [*Key._fields, "reason"]
        found: dict[Key, str] = {}
        for shard in self.shards:
            table = read_shard(shard, columns)
            for row in table.filter(pc.not_equal(table["reason"], "")).to_pylist():
                reason = row.pop("reason")
                found.setdefault(Key(**row), reason)
        return found

    def measured_sites(self) -> set[str]:
        """Names of the sites that have values."""
        found: set[str] = set()
        for shard in self.shards:
            table = read_shard(shard, ["site", "reason"])
            found |= set(table.filter(pc.equal(table["reason"], ""))["site"].to_pylist())
        return found

    def append(self, rows: pa.Table) -> None:
        """Write one shard: all of it or nothing."""
        shards = self.shards
        # Not the number of shards: someone may have deleted a damaged one.
        number = int(shards[-1].stem.removeprefix("shard-")) + 1 if shards else 0
        path = self.folder / SHARD.format(number)
        partial = path.with_name(f"_{path.stem}.partial")
        pq.write_table(rows.cast(SCHEMA), partial, compression="zstd")
        os.replace(partial, path)

    def read(self) -> pd.DataFrame:
        """Read everything that is on disk."""
        return to_frame(read_shard(shard) for shard in self.shards)

    def note_sites(self, sites: Sequence[Mapping[str, Any]]) -> None:
        """Write down what is known of each site."""
        write_json({"sites": list(sites)}, self.folder / SITES_FILE)

    def _claim(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        path = self.folder / RUN_FILE
        if not path.exists():
            if self.shards:
                raise SpectralError(f"{self.folder} has shards but no {RUN_FILE}; choose another folder")
            write_json({"config": config, "provenance": provenance}, path)
            return
        before = read_json(path).get("config", {})
        differing = [key for key in {**before, **config} if before.get(key) != config.get(key)]
        if differing:
            key = differing[0]
            raise SpectralError(
                f"{self.folder} holds measurements with {key} = {_short(before.get(key))}, not "
                f"{_short(config.get(key))}; choose another folder or delete it"
            )


def read(folder: str | Path) -> pd.DataFrame:
    """Read what `spectral.measure` wrote into a folder: the table that it returned, finished or not.

    ``pandas.read_parquet(folder)`` gives the same rows. Here ``attrs["provenance"]`` and ``attrs["sites"]``
    come with them, as from `measure`; nothing that is computed from the table needs these.

    Args:
        folder: the ``out`` of `spectral.measure`; of ``spectral measure --out DIR`` it is DIR/measurements,
            and DIR does too.

    Raises:
        SpectralError: if it is no such folder, an earlier version wrote it, or a file in it is damaged.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        spectral.errors.SpectralError: no/such/folder holds no measurements; pass the folder that ...
    """
    path = Path(folder)
    if not (path / RUN_FILE).exists() and (path / "measurements" / RUN_FILE).exists():
        path /= "measurements"
    _refuse_earlier(path)
    if not (path / RUN_FILE).exists():
        raise SpectralError(f"{folder} holds no measurements; pass the folder that measure(…, out=…) wrote")
    table = to_frame(read_shard(shard) for shard in list_shards(path))
    table.attrs["provenance"] = read_json(path / RUN_FILE).get("provenance", {})
    sites = path / SITES_FILE
    table.attrs["sites"] = read_json(sites)["sites"] if sites.exists() else []
    return table


def list_shards(folder: Path) -> list[Path]:
    """Finished shards of a folder in the order written."""
    return sorted(folder.glob(SHARD.replace("{:06d}", "*")))


def read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a shard, or some of its columns.

    Raises:
        SpectralError: if it is damaged.
    """
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise SpectralError(f"{path} is damaged ({error}); delete it and measure again") from error
    return table if columns else table.cast(SCHEMA)


def _refuse_earlier(folder: Path) -> None:
    if any((folder / name).exists() for name in _EARLIER):
        raise SpectralError(
            f"{folder} was written by an earlier version, whose tables don't say which images share a "
            f"photograph; delete it or choose another folder, and measure again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
