"""Images packed into few files: tar shards in WebDataset's layout, and Parquet with encoded images."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from spectral.data.decode import (
    decode_image,
    inspect_image,
    list_extensions,
    read_slice,
)
from spectral.data.folder import Choice, FolderListing, Found, choose, choose_listed, choose_readable
from spectral.data.imageset import ImageItem, ImageSet
from spectral.data.labels import (
    Joined,
    Named,
    find_label_keys,
    number_names,
    read_labels,
    refuse_labels,
    take_labels,
)
from spectral.data.listed import FEWEST_LISTED
from spectral.data.pages import MOST_UNFOLDED, measure_unfolded
from spectral.data.splits import choose_members
from spectral.errors import SpectralError, warn
from spectral.files.atomic import State, is_settled, look_at, printable, walk_files

PACKED = (".tar", ".parquet")
_MOST_HEADER = 2**20  # bytes of a header in a tar; of labels no more is read either
_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


_Told = dict[str, tuple[str, int | str | None, str]]
"""Of each sample the file that tells its label, the label, and why what it tells is none."""


class _Packed(NamedTuple):
    """An image in a file of many.

    Attributes:
        name: of the image.
        read: returns its bytes.
        label: of the image, a number or the name of its class.
        path: of the file.
        place: of the image in the file.
        length: of its bytes, or of the file where that isn't known.
    """

    name: str
    read: Callable[[], bytes]
    label: int | str | None
    path: Path
    place: tuple[int, int]
    length: int


def is_packed(path: Path) -> bool:
    """Whether a file's name says that it holds many images.

    Example:
        >>> is_packed(Path("train-000.tar")), is_packed(Path("cat.png"))
        (True, False)
    """
    return path.suffix.lower() in PACKED or path.name.lower().endswith(_COMPRESSED)


def list_packed(folder: Path) -> list[Path]:
    """List the files of a folder that hold many images each, in the order of their names.

    Raises:
        SpectralError: if a folder in it can't be listed.
    """
    return sorted(path for path in map(Path, walk_files(folder)) if is_packed(path) and path.is_file())


def load_packed(paths: Sequence[Path], choice: Choice) -> ImageSet:
    """Load the images of tar shards or of Parquet files; see `spectral.load_images`.

    In a tar each image is a file; ``name.cls`` beside ``name.jpg`` has its class's number or name, or else
    ``name.json`` has it as "label" or "cls". Of two files of one name the last is read. A Parquet file has a
    column of encoded images, as bytes or with their path, as the Hub's; a column such as "label" has the
    classes, whose names the Hub's own metadata tells.

    Args:
        paths: all of one kind.
        choice: which of them.

    Raises:
        SpectralError: if they are of several kinds, or one can't be read, or holds no image.
    """
    for path in paths:
        if path.name.lower().endswith(_COMPRESSED):
            raise SpectralError(
                f"{str(path)!r} is compressed, so images in it can't be read one by one; unpack it to a .tar"
            )
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise SpectralError(f"expected files of one kind, got {' and '.join(sorted(kinds))}; load them apart")
    kind = kinds.pop()
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    found: list[_Packed] = []
    names: list[str] | None = None
    for path in paths:
        name = path.absolute().relative_to(root).as_posix()
        own, classes = (list(_list_tar(path, name)), None) if kind == ".tar" else _list_parquet(path, name)
        if not own:
            raise SpectralError(f"no images in {str(path)!r}; pass files that have some")
        if found and classes != names:
            raise SpectralError(
                f"{str(path)!r} names its classes otherwise than {paths[0].name}; load them apart"
            )
        found, names = found + own, classes
    source = f"{kind[1:]}:{printable(paths[0].resolve().parent.name if len(paths) > 1 else paths[0].name)}"
    joined = number_names([one.label for one in found])
    if isinstance(joined, str):
        refuse_labels(source, "what is beside them", joined)
        joined = Joined([None] * len(found))
    listing = FolderListing([one.name for one in found], joined.labels, joined.classes or names)
    found = [one._replace(label=label) for one, label in zip(found, joined.labels, strict=True)]
    if choice.lazily and len(choose(listing, choice)) >= FEWEST_LISTED:
        return choose_listed(listing, partial(_find, found), source, str(root), choice)
    return choose_readable(listing, partial(_check, found), source, str(root), choice)


def _find(found: Sequence[_Packed], position: int) -> Found:
    one = found[position]
    return one.read, partial(look_at, one.path, *one.place), one.length


def _check(found: Sequence[_Packed], position: int) -> ImageItem | str:
    """Return the image, or the reason why it is none."""
    one = found[position]
    try:
        digest, size = inspect_image(one.read)
    except SpectralError as error:
        return str(error)
    label = one.label if isinstance(one.label, int) else None  # by now they are numbers
    return ImageItem(printable(one.name), partial(_open, one.read, digest), digest, size, label)


def _open(read: Callable[[], bytes], digest: str) -> Any:
    return decode_image(read(), digest)


class _Bounded(io.BufferedReader):
    """A file of which nobody reads much at once: a tar's header may say that its name has gigabytes.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read what is asked for.

        Raises:
            ValueError: where that is more than any header.
        """
        if size is None or not 0 <= size <= _MOST_HEADER:
            raise ValueError(f"a header in it claims {size} bytes")
        return super().read(size)


def _list_tar(path: Path, prefix: str) -> Iterator[_Packed]:
    """List the images in a tar by where they lie in it."""
    told: dict[str, _Told] = {"cls": {}, "json": {}}
    images: dict[str, tuple[str, str, int, int]] = {}
    doubled: list[str] = []
    try:
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, ending = _split(member.name)
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                if f".{ending.rsplit('.', 1)[-1]}" in list_extensions():
                    where = posixpath.normpath(member.name)  # that it would be unpacked to
                    if images.pop(where, None) is not None:  # an update of it
                        doubled.append(member.name)
                    images[where] = (member.name, key, member.offset_data, member.size)
                elif ending in ("cls", "json") and (content := tar.extractfile(member)) is not None:
                    told[ending][key] = member.name, *_read_label(ending, content.read(_MOST_HEADER))
    except (
        OSError,
        tarfile.TarError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # a hostile header
        why = shorten(str(error), 200, placeholder=" …")
        raise SpectralError(f"{str(path)!r} can't be read as a tar ({why}); fetch it again") from error
    if doubled:
        warn(
            f"{prefix}: of {len(doubled)} name(s) it has several images, as {printable(doubled[0])}; the "
            f"last of each is read, as when it is unpacked"
        )
    labels = _join_labels(prefix, told["cls"], told["json"])
    chosen, part = choose_members(list(images))
    if part:
        warn(
            f"{prefix}: {len(chosen)} of {len(images)} images are read, those in {printable(part)}/, since "
            f"the others are other parts of the data; unpack it to read these"
        )
    for name, key, start, length in (images[where] for where in images if where in chosen):
        read = partial(read_slice, path, start, length)
        yield _Packed(f"{prefix}/{name}", read, labels.get(key), path, (start, length), length)


def _join_labels(prefix: str, classes: _Told, facts: _Told) -> dict[str, int | str | None]:
    """Return the label of each sample: that of its file for nothing else, or of its facts."""
    found = {**facts, **classes}
    refused = [(name, reason) for name, _, reason in found.values() if reason]
    if refused:  # numbers of which some are whole count no classes
        refuse_labels(prefix, f"what {printable(refused[0][0])} has", refused[0][1])
        return {}
    return {key: label for key, (_, label, _) in found.items()}


def _split(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does: at the first point of its last part."""
    folder, _, base = posixpath.normpath(name).rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _read_label(ending: str, content: bytes) -> tuple[int | str | None, str]:
    """Return an image's label, and why what is there is none."""
    if ending == "cls":
        labels, reason = read_labels(content, 1, single=True)
        return next(iter(labels), None), reason
    with suppress(ValueError, RecursionError):
        facts = json.loads(content)
        if isinstance(facts, dict):
            taken = take_labels(facts, single=True)
            return next(iter(taken.labels), None), taken.reason
    return None, ""


def _list_parquet(path: Path, prefix: str) -> tuple[list[_Packed], list[str] | None]:
    """List the images of a Parquet file by row, and the names of their classes if it tells them."""
    try:
        with _open_parquet(path) as file:
            facts, schema = file.metadata, file.schema_arrow
        column = _find_column(schema, path)
        _refuse_claims(facts, column, path)
        label, labels = _read_label_column(facts, schema, path, prefix)
        counts = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
    except (OSError, pa.ArrowException, OverflowError, ValueError) as error:
        if isinstance(error, SpectralError):
            raise
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpectralError(f"{str(path)!r} can't be read as Parquet ({why}); fetch it again") from error
    places = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    # The Hub writes -1 for an image without a label.
    known = [None if isinstance(own, int) and own < 0 else own for own in labels]
    length = path.stat().st_size
    packed = [
        _Packed(f"{prefix}/{i:06d}", partial(_read_cell, path, column, *place), known[i], path, place, length)
        for i, place in enumerate(places)
    ]
    return packed, None if label is None else _read_classes(schema).get(label)


def _read_label_column(
    facts: pq.FileMetaData, schema: pa.Schema, path: Path, source: str
) -> tuple[str | None, Named]:
    """Read the first column of labels that are numbers, else of names; say why one isn't read, if none is."""
    refused: tuple[str, str] | None = None
    named: tuple[str, Named] | None = None
    for name in find_label_keys(schema.names, list(_read_classes(schema)), source):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_text(kind):
            _refuse_unfolding(path, facts, name)
            labels, reason = read_labels(_read_values(path, name, kind), facts.num_rows)
            if labels and not any(isinstance(label, str) for label in labels):
                return name, labels
            if labels:
                named = named or (name, labels)
        else:  # lists may unfold to any number
            reason = f"it is of type {shorten(str(kind), 60, placeholder=' …')}"
        refused = refused or (name, reason)
    if named is not None:
        return named
    if refused is not None and refused[1]:
        refuse_labels(source, repr(refused[0]), refused[1])
    return None, [None] * facts.num_rows


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read_values(path: Path, name: str, kind: pa.DataType) -> list[Any]:
    """Read a column; of text that is in it many times each is kept once: it may be long."""
    with _open_parquet(path, read_dictionary=[name] if _is_text(kind) else []) as file:
        column = file.read([name]).column(name)
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    values: list[Any] = []
    for chunk in column.chunks:
        texts = [*chunk.dictionary.to_pylist(), None]
        values += [texts[-1 if place is None else place] for place in chunk.indices.to_pylist()]
    return values


def _refuse_claims(facts: pq.FileMetaData, column: str, path: Path) -> None:
    """Refuse a file of which a few bytes would unfold to more than memory holds.

    Raises:
        SpectralError: saying what it claims to hold.
    """
    size = path.stat().st_size
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    counts = [group.num_rows for group in groups]
    if min(counts, default=0) < 0 or sum(counts) != facts.num_rows or facts.num_rows > size:
        raise SpectralError(f"{str(path)!r} claims {facts.num_rows} rows in {size} bytes; fetch it again")
    for group in groups:
        for part in map(group.column, range(group.num_columns)):
            unfolded = part.total_uncompressed_size
            if part.path_in_schema.partition(".")[0] == column and not 0 <= unfolded <= MOST_UNFOLDED:
                raise SpectralError(
                    f"{str(path)!r} has {unfolded / 2**20:.0f} MiB of images in one row group, more than "
                    f"{MOST_UNFOLDED / 2**20:.0f}; write it with fewer rows in each (row_group_size)"
                )


def _refuse_unfolding(path: Path, facts: pq.FileMetaData, column: str, groups: Sequence[int] = ()) -> None:
    """Refuse a column whose pages unfold to more than memory holds, whatever the footer says of them.

    Raises:
        ValueError: saying to how much.
    """
    with path.open("rb") as file:
        for group in groups or range(facts.num_row_groups):
            whole = facts.row_group(group)
            for part in map(whole.column, range(whole.num_columns)):
                if part.path_in_schema == column and (size := measure_unfolded(file, part)) > MOST_UNFOLDED:
                    raise ValueError(
                        f"the pages of {column} unfold to up to {size / 2**20:.0f} MiB, more than "
                        f"{MOST_UNFOLDED / 2**20:.0f}"
                    )


def _find_column(schema: pa.Schema, path: Path) -> str:
    """Find the column of encoded images: bytes, or a struct that has bytes.

    Raises:
        SpectralError: if there are none or several.
    """
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in fitting if name in ("image", "img")] or fitting
    if len(named) != 1:
        what = "no column" if not named else f"the columns {', '.join(named)}"
        raise SpectralError(
            f"{str(path)!r} has {what} of encoded images; expected one, as 'image', of bytes or with bytes "
            f"in it"
        )
    return str(named[0])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes that columns count, where the Hub's own metadata tells them."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        facts = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        told = {name: one.get("names") for name, one in facts.items() if isinstance(one, dict)}
        return {name: list(map(str, names)) for name, names in told.items() if isinstance(names, list)}
    return {}


@contextmanager
def _open_parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a file by what Python calls it: Arrow takes no names that aren't UTF-8."""
    with path.open("rb") as file:
        yield pq.ParquetFile(file, **options)


def _read_cell(path: Path, column: str, group: int, row: int) -> bytes:
    begun, state = time.time(), look_at(path)
    # A file that has just been written may be written again without another time.
    read = _read_group if is_settled(state, begun) else _read_group.__wrapped__
    try:
        cell = read(path, state, column, group)[row].as_py()
    except (IndexError, KeyError) as error:
        raise ValueError("it is no longer there") from error
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if content is None:
        raise ValueError("it has no bytes of its own")
    return bytes(content)


@lru_cache(maxsize=1)
def _read_group(path: Path, state: State, column: str, group: int) -> pa.ChunkedArray:
    """Keep the encoded images that lie together in the file, which come one after the other."""
    with _open_parquet(path) as first:
        facts, kind = first.metadata, first.schema_arrow.field(column).type
    leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column  # nothing else that may lie beside it
    _refuse_unfolding(path, facts, leaf, [group])
    # What is in it many times is kept once: a few bytes may stand for gigabytes.
    with _open_parquet(path, metadata=facts, read_dictionary=[leaf]) as file:
        return file.read_row_group(group, columns=[leaf]).column(column)
