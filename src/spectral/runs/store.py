"""A run's folder, written: shards of the table that survive a kill, and beside them what the run was."""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from spectral.errors import LostRowsWarning, StorageError
from spectral.files.atomic import ensure_writable
from spectral.files.json_files import write_json
from spectral.files.sameness import Network, refuse_other
from spectral.runs.folder import holds_run, read_notes, read_rows, read_run, refuse_earlier, refuse_sweep
from spectral.runs.shards import (
    NAME,
    Shard,
    finish_merges,
    list_shards,
    merge_shards,
    open_shard,
    read_shards,
    write_shard,
)
from spectral.table.rows import Key
from spectral.table.schema import RUN_FILE, SITES_FILE

MOST_SMALL, MERGED_ROWS = 64, 2**18
"""Shards of a batch each are merged when there are so many of them, or so many rows in them."""

_LEFT_BEHIND = re.compile(r"_(shard-\d{6}|run|sites)\.partial")  # by a killed writer of an earlier version


class ShardStore:
    """A folder of Parquet shards that belongs to one configuration and can be continued after a kill.

    Every shard has the same columns, so pandas and pyarrow read the folder as one table; other files begin
    with ``_``, which both pass over. Each shard carries the id of the run, its number, the images that it is
    of and a digest of all of it: one that is damaged, altered, doubled or of another run is refused. What was
    appended is on disk at once, in a shard of its own; many of these become one, so that there are few of
    however many images. Whoever writes must have claimed the folder (`spectral.files.writers.claim`).

    Args:
        folder: created if it doesn't exist.
        config: what determines the values; a folder with another one is refused.
        provenance: what is recorded beside it but may differ when a run is continued (versions, device).
        network: what tells the network from others, and finds out in what another one differs.

    Attributes:
        run: the id of the run.
        parts: the circumstances under which it was measured so far.

    Raises:
        SpectralError: if the folder can't be written, or holds measurements of another configuration or
            network, or of an earlier version.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        network: Network | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()  # a data set may change the current folder
        ensure_writable(self.folder)
        refuse_earlier(self.folder)
        refuse_sweep(self.folder)
        self.run, self.parts = self._claim(json.loads(json.dumps(config)), dict(provenance or {}), network)
        self._noted = read_notes(self.folder, self.run)  # what is damaged is told, not written over
        for path in self.folder.iterdir():
            if _LEFT_BEHIND.fullmatch(path.name):
                path.unlink(missing_ok=True)
        finish_merges(self.folder, self.run)
        self._begin("")

    def _begin(self, writer: str) -> None:
        self._writer = writer
        self._place = self.folder.stat()
        self._contents: _Contents | None = None
        self._small_known = False
        self._images = 0
        self._next = 1 + max(map(_number, self._list_own()), default=-1)
        # Not the number of shards: someone may have deleted a damaged one.
        self._small: list[_Small] = []

    @property
    def invitation(self) -> dict[str, Any]:
        """What another process needs to write to the run, see `join`."""
        return {"run": self.run, "parts": self.parts}

    @classmethod
    def join(cls, folder: Path, invitation: Mapping[str, Any], writer: str) -> ShardStore:
        """Write to a run that another process has opened.

        Args:
            folder: where this process sees it.
            invitation: of the store that has opened it.
            writer: a word that no other writer's shards have in their names.
        """
        store = cls.__new__(cls)
        store.folder, store.run, store.parts = folder, invitation["run"], invitation["parts"]
        store._noted = {}
        store._begin(writer)
        return store

    @property
    def shards(self) -> list[Path]:
        """Finished shards in the order written."""
        return list_shards(self.folder)

    @property
    def written(self) -> list[str]:
        """Names of the shards of this writer."""
        return [path.name for path in self._list_own()]

    def finished_images(self) -> set[str]:
        """Ids of the images whose rows are on disk."""
        return set(self._look().images)

    def reasons(self) -> dict[Key, str]:
        """What the runs so far could not measure."""
        return dict(self._look().reasons)

    def measured_sites(self) -> set[str]:
        """Names of the sites that have values."""
        return set(self._look().sites)

    def known_sites(self) -> dict[str, dict[str, Any]]:
        """What is noted of sites beside the rows: of all at a run's end, before of those some images show."""
        noted = {site["name"]: site for site in self._noted.get("sites", ())}
        return {**noted, **self._look().notes, **noted}

    def seen(self) -> dict[str, list[Any]]:
        """What reading the finished images has shown of them, where `append` was told."""
        return dict(self._look().seen)

    def labels(self) -> dict[str, float]:
        """Classes of the finished images, as far as they have any in the rows."""
        return dict(self._look().labels)

    def append(
        self,
        rows: pa.Table,
        seen: Mapping[str, list[Any]] | None = None,
        sites: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write one shard: all of it or nothing.

        Args:
            rows: of whole images.
            seen: what reading these images has shown, by which they are told from others of their names.
            sites: what is to be noted of sites that not all images show.
        """
        self._require_place()
        own = dict(seen or {})
        path = write_shard(self.folder, self._describe(self._next, own, sites), rows)
        self._next += 1
        self._contents, self._small_known = None, True
        self._small.append(_Small(path, rows.num_rows, rows, own, sites))
        while len(self._small) >= MOST_SMALL or sum(shard.size for shard in self._small) >= MERGED_ROWS:
            self._merge()

    def read(self, images: str = "") -> pd.DataFrame:
        """Read everything that is on disk.

        Args:
            images: what the column of that name is to say, where it isn't what the rows say.
        """
        found = read_rows(self.folder, self.run, images)
        self._images = found.images
        return found.table

    def finish(self, sites: Sequence[Mapping[str, Any]], concluded: Mapping[str, Any] | None = None) -> None:
        """Write down what is known when all images are through.

        Args:
            sites: what is known of each site.
            concluded: ``images``, the word for all of them, and the ``provenance`` that wasn't known before.
        """
        self._require_place()
        # There are rows of so many images: those just read.
        notes = {
            "run": self.run,
            "sites": list(sites),
            "images": self._images,
            "concluded": dict(concluded or {}),
        }
        write_json(notes, self.folder / SITES_FILE, sealed=True)

    def _require_place(self) -> None:
        """Make sure that the folder is the one that was opened: in another of its name are another's rows."""
        try:
            same = os.path.samestat(self._place, self.folder.stat())
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"{self.folder} was moved or deleted while it was written; what was measured until then is "
                f"where it was moved to: run the same command there to continue it"
            )

    def _describe(
        self, number: int, seen: Mapping[str, list[Any]], sites: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        known = {name: own for name, own in (("seen", seen), ("notes", list(sites))) if own}
        return {
            "run": self.run,
            "writer": self._writer,
            "number": number,
            "part": len(self.parts) - 1,
            **known,
        }

    def _list_own(self) -> list[Path]:
        return [path for path in self.shards
                if (found := NAME.fullmatch(path.name)) and (found[1] or "") == self._writer]  # fmt: skip

    def _merge(self) -> None:
        """Put one shard in the place of the first small ones that this writer has written."""
        group, self._small = self._small[:MOST_SMALL], self._small[MOST_SMALL:]
        group = [shard for shard in group if shard.path.exists()]  # someone may have deleted a damaged one
        if len(group) > 1:
            tables = [open_shard(shard.path, self.run).read() if shard.rows is None else shard.rows
                      for shard in group]  # fmt: skip
            rows = pa.concat_tables(tables, promote_options="permissive")
            paths = [shard.path for shard in group]
            seen = {image: own for shard in group for image, own in shard.seen.items()}
            sites = [site for shard in group for site in shard.sites]
            merge_shards(self.folder, self._describe(_number(paths[0]), seen, sites), paths, rows)

    def _look(self) -> _Contents:
        """Find out what is there; a shard that was cut is removed, to be measured again."""
        if self._contents is None:
            found, own, lost = _Contents(), self._list_own(), self._noted.get("images", 0)
            for shard in read_shards(self.folder, self.run):
                if shard.cut:
                    shard.path.unlink()
                    lost -= len(shard.images)
                    warnings.warn(
                        f"{shard.path} has only a part of its rows; its images are measured again",
                        LostRowsWarning,
                        stacklevel=5,
                    )
                else:
                    found.add(shard)
                    if not self._small_known and shard.merged is None and shard.path in own:
                        self._small.append(_Small(shard.path, shard.rows, seen=shard.seen, sites=shard.notes))
            if lost > len(found.images):
                warnings.warn(
                    f"{self.folder} lacks the rows of {lost - len(found.images)} images that it had: a shard "
                    f"is gone; they are measured again",
                    LostRowsWarning,
                    stacklevel=5,
                )
            self._contents, self._small_known = found, True
        return self._contents

    def _claim(
        self, config: dict[str, Any], provenance: dict[str, Any], network: Network | None
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the id of the run and the circumstances of its parts, this one last."""
        path = self.folder / RUN_FILE
        part = {key: value for key, value in provenance.items() if key not in config}
        if not holds_run(self.folder):
            record = {"run": uuid.uuid4().hex, "parts": [part], "config": config, "provenance": provenance}
            write_json(record | {"network": network.describe() if network else {}}, path, sealed=True)
            return record["run"], record["parts"]  # type: ignore[return-value]
        before = read_run(self.folder)
        refuse_other(self.folder, before, config, network)
        if before["parts"][-1] != json.loads(json.dumps(part)):
            before["parts"].append(part)
            write_json(before, path, sealed=True)
        return before["run"], before["parts"]


class _Small(NamedTuple):
    """A shard of one batch, which is to be merged with others; its rows where they are at hand."""

    path: Path
    size: int
    rows: pa.Table | None = None
    seen: Mapping[str, list[Any]] = {}
    sites: Sequence[Mapping[str, Any]] = ()


@dataclass
class _Contents:
    """What a run that is continued has to know of its shards."""

    images: list[str] = field(default_factory=list)
    reasons: dict[Key, str] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    seen: dict[str, list[Any]] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, shard: Shard) -> None:
        self.labels.update(shard.labels())
        self.images += shard.images
        self.seen.update(shard.seen)
        self.reasons = {**shard.reasons, **self.reasons}
        self.sites.update(shard.sites)
        for site in shard.notes:
            if site["name"] not in self.notes or not self.notes[site["name"]]["reason"]:
                self.notes[site["name"]] = site


def _number(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    return int(found[2]) if found else 0
