"""A run's folder: shards of the table that survive a kill, and beside them what the run was."""

from __future__ import annotations

import io
import json
import re
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spectral.arguments import as_path
from spectral.errors import SpectralError, SpectralWarning
from spectral.files import SEAL, ensure_writable, is_intact, seal, write_whole
from spectral.schema import RUN_FILE, SHARD, SITES_FILE
from spectral.table import SCHEMA, Key, read_json, to_frame, write_json

_EARLIER = ("run.json", "unmeasured.json")  # of folders whose rows have no clusters
_LEFT_BEHIND = re.compile(r"_(shard-\d{6}|run|sites)\.partial")  # by a killed writer of an earlier version
_SHARD = re.compile(r"shard-(?:(\w+)-)?(\d{6,})\.parquet")
_FACTS = b"spectral"  # under what a shard keeps what it is


class Network(Protocol):
    """What tells a network from others: `spectral.identity.Identity`."""

    def describe(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""

    def find_difference(self, before: Mapping[str, Any]) -> str | None:
        """Say what is different from a network that was described before."""


@dataclass(frozen=True)
class Shard:
    """A verified shard, and what it says of itself.

    Attributes:
        path: where it is.
        images: the images whose rows it has, in their order.
        table: its rows.
        cut: whether rows at its end are missing; it is as it was written otherwise.
    """

    path: Path
    images: list[str]
    table: pa.Table
    cut: bool = False


class ShardStore:
    """A folder of Parquet shards that belongs to one configuration and can be continued after a kill.

    Every shard has the same columns, so pandas and pyarrow read the folder as one table; other files begin
    with ``_``, which both pass over. Each shard carries the id of the run, its number, the images that it is
    of and a digest of all of it: one that is damaged, altered, doubled or of another run is refused. Whoever
    writes must have claimed the folder (`spectral.files.claim`).

    Args:
        folder: created if it doesn't exist.
        config: what determines the values; a folder with another one is refused.
        provenance: what is recorded beside it but may differ when a run is continued (versions, device).
        network: what tells the network from others, and finds out in what another one differs.

    Attributes:
        run: the id of the run.
        parts: the circumstances under which it was measured so far.
        written: names of the shards that this writer has written.

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
        self.folder = Path(folder)
        ensure_writable(self.folder)
        _refuse_earlier(self.folder)
        self.run, self.parts = self._claim(json.loads(json.dumps(config)), dict(provenance or {}), network)
        for path in self.folder.iterdir():
            if _LEFT_BEHIND.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self._begin("")

    def _begin(self, writer: str) -> None:
        self._writer = writer
        self._seen: dict[tuple[Path, int, int], _Contents] = {}
        self.written: list[str] = []

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
        store._begin(writer)
        return store

    @property
    def shards(self) -> list[Path]:
        """Finished shards in the order written."""
        return list_shards(self.folder)

    def finished_images(self) -> set[str]:
        """Ids of the images whose rows are on disk."""
        return {image for contents in self._look() for image in contents.images}

    def reasons(self) -> dict[Key, str]:
        """What the runs so far could not measure."""
        found: dict[Key, str] = {}
        for contents in self._look():
            for key, reason in contents.reasons.items():
                found.setdefault(key, reason)
        return found

    def measured_sites(self) -> set[str]:
        """Names of the sites that have values."""
        return {site for contents in self._look() for site in contents.sites}

    def append(self, rows: pa.Table) -> None:
        """Write one shard: all of it or nothing."""
        own = [int(found[2]) for path in self.shards
               if (found := _SHARD.fullmatch(path.name)) and (found[1] or "") == self._writer]  # fmt: skip
        # Not the number of shards: someone may have deleted a damaged one.
        number = max(own, default=-1) + 1
        facts = {"run": self.run, "writer": self._writer, "number": number, "part": len(self.parts) - 1,
                 "rows": rows.num_rows, "images": _list_images(rows), "seal": SEAL}  # fmt: skip
        text = json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace")
        rows = rows.cast(SCHEMA).replace_schema_metadata({_FACTS: text})
        content = pa.BufferOutputStream()  # in memory: Arrow takes no path that isn't UTF-8
        pq.write_table(rows, content, compression="zstd", write_page_checksum=True)
        name = _name_shard(facts)
        write_whole(self.folder / name, seal(content.getvalue().to_pybytes()))
        self.written.append(name)

    def read(self) -> pd.DataFrame:
        """Read everything that is on disk."""
        return to_frame(shard.table for shard in read_shards(self.folder, self.run))

    def note_sites(self, sites: Sequence[Mapping[str, Any]]) -> None:
        """Write down what is known of each site."""
        write_json({"run": self.run, "sites": list(sites)}, self.folder / SITES_FILE, sealed=True)

    def _look(self) -> list[_Contents]:
        """Read what is new since the last look; a shard that was cut is removed, to be measured again."""
        found = {}
        for path in self.shards:
            state = path.stat()
            key = path, state.st_mtime_ns, state.st_size
            if key not in self._seen:
                shard = read_shard(path, self.run)
                if shard.cut:
                    path.unlink()
                    warnings.warn(
                        f"{path} has only a part of its rows; its images are measured again",
                        SpectralWarning,
                        stacklevel=5,
                    )
                    continue
                self._seen[key] = _Contents.of(shard)
            found[path] = self._seen[key]
        _refuse_doubled({path: contents.images for path, contents in found.items()})
        return list(found.values())

    def _claim(
        self, config: dict[str, Any], provenance: dict[str, Any], network: Network | None
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the id of the run and the circumstances of its parts, this one last."""
        path = self.folder / RUN_FILE
        part = {key: value for key, value in provenance.items() if key not in config}
        if not path.exists():
            if self.shards:
                raise SpectralError(f"{self.folder} has shards but no {RUN_FILE}; choose another folder")
            record = {"run": uuid.uuid4().hex, "parts": [part], "config": config, "provenance": provenance}
            write_json(record | {"network": network.describe() if network else {}}, path, sealed=True)
            return record["run"], record["parts"]  # type: ignore[return-value]
        before = read_run(self.folder)
        self._refuse_other(before, config, network)
        if before["parts"][-1] != json.loads(json.dumps(part)):
            before["parts"].append(part)
            write_json(before, path, sealed=True)
        return before["run"], before["parts"]

    def _refuse_other(
        self, record: Mapping[str, Any], config: dict[str, Any], network: Network | None
    ) -> None:
        difference = find_difference(record, config, network)
        if difference is not None:
            raise SpectralError(
                f"{self.folder} holds measurements {difference}; choose another folder or delete it"
            )


@dataclass(frozen=True)
class _Contents:
    """What a run that is continued has to know of a shard."""

    images: list[str]
    reasons: dict[Key, str]
    sites: set[str]

    @classmethod
    def of(cls, shard: Shard) -> _Contents:
        table = shard.table
        rest = table.filter(pc.not_equal(table["reason"], "")).select([*Key._fields, "reason"]).to_pylist()
        reasons: dict[Key, str] = {}
        for row in rest:
            reason = row.pop("reason")
            reasons.setdefault(Key(**row), reason)
        measured = table.filter(pc.equal(table["reason"], ""))["site"]
        return cls(shard.images, reasons, set(pc.unique(measured).to_pylist()))


def find_difference(
    before: Mapping[str, Any], config: Mapping[str, Any], network: Network | None
) -> str | None:
    """Say in what a measurement differs from an earlier one; None where it is the same.

    Args:
        before: of the earlier one, its ``config`` and its ``network``.
        config: what determines the values now.
        network: which network it is now.

    Example:
        >>> find_difference({"config": {"images": "a"}}, {"images": "b"}, None)
        'with images = "a", not "b"'
    """
    earlier = before["config"]
    differing = [key for key in {**earlier, **config} if earlier.get(key) != config.get(key)]
    if network is not None and (not differing or differing[0] == "structure"):
        difference = network.find_difference(before["network"])
        if difference is not None:
            return f"of another network: {difference}"
    if not differing:
        return None
    key = differing[0]
    return f"with {key} = {_short(earlier.get(key))}, not {_short(config.get(key))}"


def read(folder: str | Path) -> pd.DataFrame:
    """Read what `spectral.measure` wrote into a folder: the table that it returned, finished or not.

    ``pandas.read_parquet(folder)`` gives the same rows, and checks nothing. Here every file is compared with
    its digest, and ``attrs["provenance"]`` and ``attrs["sites"]`` come with the rows, as from `measure`;
    nothing that is computed from the table needs these. Where a run was continued under other circumstances
    (versions, device), ``attrs["provenance"]["parts"]`` has those of each part.

    Args:
        folder: the ``out`` of `spectral.measure`; of ``spectral measure --out DIR`` it is DIR/measurements,
            and DIR does too.

    Raises:
        SpectralError: if it is no such folder, an earlier version wrote it, or a file in it is damaged,
            altered, or belongs to another run.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        spectral.errors.SpectralError: no/such/folder holds no measurements; pass the folder that ...
    """
    path = as_path(folder, "read: folder")
    if not (path / RUN_FILE).exists() and (path / "measurements" / RUN_FILE).exists():
        path /= "measurements"
    _refuse_earlier(path)
    if not (path / RUN_FILE).exists():
        raise SpectralError(f"{folder} holds no measurements; pass the folder that measure(…, out=…) wrote")
    record = read_run(path)
    shards = list(read_shards(path, record["run"]))
    cut = next((shard.path for shard in shards if shard.cut), None)
    if cut is not None:
        raise SpectralError(
            f"{cut} has only a part of its rows; continue the run, measure(…, out=…), which measures its "
            f"images again"
        )
    table = to_frame(shard.table for shard in shards)
    table.attrs["provenance"] = list_provenance(record["provenance"], record["parts"])
    table.attrs["sites"] = _read_sites(path, record["run"])
    return table


def list_provenance(first: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a run's provenance; with the circumstances of each part where it was continued under others."""
    return {**first, "parts": list(parts)} if len(parts) > 1 else dict(first)


def read_run(folder: Path) -> dict[str, Any]:
    """Read what a run's folder says of the run.

    Raises:
        SpectralError: if that is damaged.
    """
    record = read_json(folder / RUN_FILE, sealed=True)
    if not {"run", "parts", "config", "provenance", "network"} <= set(record):
        raise SpectralError(
            f"{folder / RUN_FILE} isn't what this version writes; delete its folder and measure again"
        )
    return record


def list_shards(folder: Path) -> list[Path]:
    """Finished shards of a folder in the order written."""
    return sorted(folder.glob(SHARD.replace("{}{:06d}", "*")))


def read_shards(folder: Path, run: str) -> Iterable[Shard]:
    """Read all shards of a run, one after the other.

    Raises:
        SpectralError: if one is damaged or doesn't belong there.
    """
    images = {}
    for path in list_shards(folder):
        shard = read_shard(path, run)
        images[path] = shard.images
        _refuse_doubled(images)
        yield shard


def read_shard(path: Path, run: str) -> Shard:
    """Read a shard and make sure that it is what a run wrote there.

    Raises:
        SpectralError: if it is damaged or altered, or belongs to another run or place.
    """
    try:
        data = path.read_bytes()
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        facts = json.loads((file.metadata.metadata or {}).get(_FACTS, b"null"))
        table = file.read()
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpectralError(f"{path} is damaged ({why}); delete it and measure again") from error
    way_out = "delete it and measure again"
    if not isinstance(facts, dict) or not {"run", "number", "rows", "images"} <= set(facts):
        raise SpectralError(f"{path} wasn't written by this run, or rewritten by something else; {way_out}")
    if facts["run"] != run:
        raise SpectralError(f"{path} belongs to another run; {way_out}")
    if path.name != _name_shard(facts):
        raise SpectralError(f"{path} is a copy of {_name_shard(facts)}; {way_out}")
    if table.column_names != SCHEMA.names:
        raise SpectralError(f"{path} has other columns than were written; {way_out}")
    table = table.replace_schema_metadata(None).cast(SCHEMA)
    if not is_intact(data):
        if table.num_rows < facts["rows"] and set(_list_images(table)) <= set(facts["images"]):
            return Shard(path, list(facts["images"]), table, cut=True)
        raise SpectralError(f"{path} isn't what was written; {way_out}")
    return Shard(path, list(facts["images"]), table)


def _list_images(rows: pa.Table) -> list[str]:
    return [image for image in pc.unique(rows["image"]).to_pylist() if image]


def _name_shard(facts: Mapping[str, Any]) -> str:
    writer = facts.get("writer", "")
    return SHARD.format(f"{writer}-" if writer else "", facts["number"])


def _refuse_doubled(images: Mapping[Path, Sequence[str]]) -> None:
    owners: dict[str, Path] = {}
    for path, own in images.items():
        for image in own:
            if image in owners:
                raise SpectralError(
                    f"{path} has image {image!r} again, which {owners[image].name} has; delete one of the two"
                )
            owners[image] = path


def _read_sites(folder: Path, run: str) -> list[dict[str, Any]]:
    path = folder / SITES_FILE
    if not path.exists():
        return []
    content = read_json(path, sealed=True)
    if content.get("run") != run:
        raise SpectralError(f"{path} belongs to another run; delete it and measure again")
    sites: list[dict[str, Any]] = content["sites"]
    return sites


def _refuse_earlier(folder: Path) -> None:
    if any((folder / name).exists() for name in _EARLIER):
        raise SpectralError(
            f"{folder} was written by an earlier version, whose tables don't say which images share a "
            f"photograph; delete it or choose another folder, and measure again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
