"""Shards: Parquet files with some images' rows, which say what they are and know when they are damaged."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spectral.errors import StorageError
from spectral.files.atomic import SEAL, is_intact, replacing, seal, sync, write_whole
from spectral.table.rows import SCHEMA, Key, as_codes, split_reasons
from spectral.table.schema import SHARD

NAME = re.compile(r"_?shard-(?:(\w+)-)?(\d{6,})\.parquet")
_FACTS = b"spectral"  # under what a shard keeps what it is
_HIDDEN = "_"  # begins the name of a shard that takes the place of others, until they are gone
_TEXT = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
_WAY_OUT = "delete it and measure again"


@dataclass(frozen=True)
class Shard:
    """A verified shard, and what it says of itself.

    Attributes:
        path: where it is.
        images: the images whose rows it has, in their order.
        rows: how many rows it has.
        reasons: what couldn't be measured, so far as that is noted here.
        sites: names of the sites that have values here.
        merged: names of the shards, besides its own, in whose place it is; None where there were none.
        seen: by image, what reading it has shown, where that is noted.
        notes: of sites that not all images show, what is noted of them.
        cut: whether rows at its end are missing; it is as it was written otherwise.
        content: the file's bytes.
        seal: the digest that it was written with.
    """

    path: Path
    images: list[str]
    rows: int
    reasons: dict[Key, str]
    sites: list[str]
    merged: list[str] | None
    seen: dict[str, list[Any]]
    notes: list[dict[str, Any]]
    cut: bool
    content: bytes
    seal: str

    def read(self) -> pa.Table:
        """Return its rows."""
        return _read_rows(self.content)

    def labels(self) -> dict[str, float]:
        """Return the class of each image that has one here."""
        columns, chosen = ["image", "metric", "value"], [("metric", "==", "label")]
        rows = pq.read_table(io.BytesIO(self.content), columns=columns, filters=chosen).to_pydict()
        return dict(zip(rows["image"], rows["value"], strict=True))


def name_shard(writer: str, number: int) -> str:
    """Name a shard's file.

    Example:
        >>> name_shard("", 3), name_shard("r001", 3)
        ('shard-000003.parquet', 'shard-r001-000003.parquet')
    """
    return SHARD.format(f"{writer}-" if writer else "", number)


def write_shard(folder: Path, facts: Mapping[str, Any], rows: pa.Table) -> Path:
    """Write a shard: all of it or nothing.

    Args:
        folder: where to.
        facts: its run, writer, number and part, what was ``seen`` of its images, and ``notes`` of sites.
        rows: of whole images.

    Raises:
        SpectralError: if it can't be written.
    """
    path = folder / name_shard(facts["writer"], facts["number"])
    write_whole(path, _serialize(facts, rows))
    return path


def merge_shards(folder: Path, facts: Mapping[str, Any], paths: Sequence[Path], rows: pa.Table) -> Path:
    """Put one shard in the place of several, whose rows it has.

    Whenever this is broken off, every row is there once: the new shard is complete and hidden until the
    others are gone, and `finish_merges` goes on from there.

    Args:
        folder: where they are.
        facts: of the new one; its number is that of the first.
        paths: of all.
        rows: of all.

    Raises:
        SpectralError: if it can't be written.
    """
    path = folder / name_shard(facts["writer"], facts["number"])
    content = _serialize({**facts, "merged": [other.name for other in paths if other != path]}, rows)
    hidden = _hide(path)
    with replacing(hidden) as temporary:
        temporary.write_bytes(content)
        sync(temporary)
    _finish_merge(hidden, [other for other in paths if other != path])
    return path


def finish_merges(folder: Path, run: str) -> None:
    """Finish what `merge_shards` was broken off in; only whoever has claimed the folder may.

    Raises:
        SpectralError: if a shard is damaged or doesn't belong there.
    """
    for hidden in sorted(folder.glob(f"{_HIDDEN}{SHARD.replace('{}{:06d}', '*')}")):
        shard = open_shard(hidden, run)
        _finish_merge(hidden, [folder / name for name in shard.merged or ()])


def _finish_merge(hidden: Path, others: Iterable[Path]) -> None:
    for other in others:
        other.unlink(missing_ok=True)
    os.replace(hidden, hidden.with_name(hidden.name.removeprefix(_HIDDEN)))


def _hide(path: Path) -> Path:
    return path.with_name(f"{_HIDDEN}{path.name}")


def list_shards(folder: Path) -> list[Path]:
    """List the finished shards of a folder in the order written."""
    return sorted(folder.glob(SHARD.replace("{}{:06d}", "*")))


def read_shards(folder: Path, run: str) -> Iterator[Shard]:
    """Verify all shards of a run, one after the other; none's rows are read.

    Raises:
        SpectralError: if one is damaged or doesn't belong there.
    """
    owners: dict[str, str] = {}
    for path in _list_current(folder, run):
        shard = open_shard(path, run)
        for image in shard.images:
            if image in owners:
                raise StorageError(
                    f"{path} has image {image!r} again, which {owners[image]} has; delete one of the two"
                )
            owners[image] = path.name
        yield shard


def _list_current(folder: Path, run: str) -> list[Path]:
    """List shards without those that a merged one, still hidden, takes the place of."""
    paths = {path.name: path for path in list_shards(folder)}
    for hidden in folder.glob(f"{_HIDDEN}{SHARD.replace('{}{:06d}', '*')}"):
        for name in open_shard(hidden, run).merged or ():
            paths.pop(name, None)
        paths[hidden.name.removeprefix(_HIDDEN)] = hidden
    return [paths[name] for name in sorted(paths)]


def open_shard(path: Path, run: str) -> Shard:
    """Make sure that a shard is what a run wrote there.

    Raises:
        SpectralError: if it is damaged or altered, or belongs to another run or place.
    """
    try:
        content = path.read_bytes()
        file = pq.ParquetFile(io.BytesIO(content))
        facts = json.loads((file.metadata.metadata or {}).get(_FACTS, b"null"))
        intact, named = is_intact(content), file.schema_arrow.names == SCHEMA.names
        table = _read_rows(content) if named and not (intact and _says_all(facts)) else None
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(f"{path} is damaged ({why}); {_WAY_OUT}") from error
    if not isinstance(facts, dict) or not {"run", "number", "rows", "images"} <= set(facts):
        raise StorageError(f"{path} wasn't written by this run, or rewritten by something else; {_WAY_OUT}")
    if facts["run"] != run:
        raise StorageError(f"{path} belongs to another run; {_WAY_OUT}")
    name = name_shard(facts.get("writer", ""), facts["number"])
    if path.name.removeprefix(_HIDDEN) != name:
        raise StorageError(f"{path} is a copy of {name}; {_WAY_OUT}")
    if not named:
        raise StorageError(f"{path} has other columns than were written; {_WAY_OUT}")
    if table is not None:
        cut = table.num_rows < facts["rows"] and set(_list_images(table)) <= set(facts["images"])
        if not intact and not cut:
            raise StorageError(f"{path} isn't what was written; {_WAY_OUT}")
        facts = {**facts, **_describe(table)}
    reasons = {Key(*key): reason for *key, reason in facts["reasons"]}
    merged, seen, notes = facts.get("merged"), facts.get("seen", {}), facts.get("notes", [])
    return Shard(
        path, facts["images"], facts["rows"], reasons, facts["sites"], merged, seen, notes, not intact,
        content, str(facts.get("seal", "")),
    )  # fmt: skip


def _serialize(facts: Mapping[str, Any], rows: pa.Table) -> bytes:
    whole = {**facts, "rows": rows.num_rows, "images": _list_images(rows), **_describe(rows), "seal": SEAL}
    text = json.dumps(whole, ensure_ascii=False).encode("utf-8", "backslashreplace")
    coded = as_codes(rows)
    content = pa.BufferOutputStream()  # in memory: Arrow takes no path that isn't UTF-8
    # Without Arrow's schema text is read as text, although it is written as codes, which is quicker.
    options = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": _TEXT,
        "store_schema": False,
    }
    with pq.ParquetWriter(content, coded.schema, **options) as writer:
        writer.write_table(coded)
        writer.add_key_value_metadata({_FACTS: text})
    return seal(content.getvalue().to_pybytes())


def _read_rows(content: bytes) -> pa.Table:
    """Read rows; text as codes of its few different words."""
    file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True, read_dictionary=_TEXT)
    return file.read().replace_schema_metadata(None)


def _says_all(facts: Any) -> bool:
    return isinstance(facts, dict) and {"reasons", "sites"} <= set(facts)


def _describe(rows: pa.Table) -> dict[str, Any]:
    """Return what a run that is continued has to know of rows, besides their images."""
    measured, reasons = split_reasons(rows)
    return {
        "reasons": [[*key, reason] for key, reason in reasons.items()],
        "sites": pc.unique(measured["site"]).to_pylist(),
    }


def _list_images(rows: pa.Table) -> list[str]:
    return [image for image in pc.unique(rows["image"]).to_pylist() if image]
