"""Tidy rows seen as columns: a vector per site, tap and metric, with one value for each image of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from spectral.errors import SpectralError
from spectral.table.rows import Key, Origin, split_reasons
from spectral.table.schema import PLACE

Vector = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

IN_MEMORY = 2**26
_FIELDS = (*Key._fields,)


@dataclass(frozen=True)
class Place:
    """A site and tap of a run, or its whole model, with a column for each metric.

    Attributes:
        facts: model, weights, images, and the place.
        metrics: what has a column.
        clusters: a number for what each image of the run was cut from.
        column: gets a metric's values, one per image of the run, NaN where it has none.
        rows: tells which images have a row of a metric; `measure` gives each one, others may have taken some.
    """

    facts: Mapping[str, Any]
    metrics: Sequence[str]
    clusters: Codes
    column: Callable[[str], Vector]
    rows: Callable[[str], Flags]


class Unmeasured(NamedTuple):
    """What couldn't be measured, and why."""

    facts: Mapping[str, Any]
    metric: str
    reason: str


@dataclass
class Columns:
    """All that one or several runs measured, place by place.

    Attributes:
        places: in the order in which they first come.
        unmeasured: likewise, each once.
    """

    places: Iterable[Place]
    unmeasured: list[Unmeasured] = field(default_factory=list)


def split_frame(frame: pd.DataFrame) -> Columns:
    """See a pandas table of measurements, as `spectral.table.read_frame` returns it, as columns.

    Example:
        >>> from spectral.table.rows import make_rows, to_frame
        >>> values = np.array([[1.0], [3.0]])
        >>> rows = make_rows(Origin("net", "", ""), ["b", "a"], ["c", "c"], [Key("sis")], values)
        >>> (place,) = split_frame(to_frame([rows])).places
        >>> place.metrics, place.column("sis").tolist(), place.clusters.tolist()
        (['sis'], [1.0, 3.0], [0, 0])
    """
    run = list(Origin._fields)
    measured, rest = frame[frame["reason"] == ""], frame[frame["reason"] != ""]
    rest = rest[[*run, *PLACE, "metric", "reason"]].drop_duplicates()
    unmeasured = [
        Unmeasured({key: row[key] for key in (*run, *PLACE)}, str(row["metric"]), str(row["reason"]))
        for row in rest.to_dict("records")
    ]
    return Columns(_split_runs(measured), unmeasured)


def _split_runs(measured: pd.DataFrame) -> Iterator[Place]:
    for _, own in measured.groupby(list(Origin._fields), sort=False):
        images, names = pd.factorize(own["image"])
        clusters = pd.factorize(own["cluster"].iloc[np.unique(images, return_index=True)[1]])[0]
        numbered = own.assign(image=images)
        for _, block in numbered.groupby(list(PLACE), sort=False):
            facts = {str(key): block[key].head(1).tolist()[0] for key in (*Origin._fields, *PLACE)}
            columns = {str(metric): part for metric, part in block.groupby("metric", sort=False)}

            def column(
                metric: str, columns: Mapping[str, pd.DataFrame] = columns, n: int = len(names)
            ) -> Vector:
                found = np.full(n, np.nan)
                found[columns[metric]["image"].to_numpy()] = columns[metric]["value"].to_numpy()
                return found

            def rows(
                metric: str, columns: Mapping[str, pd.DataFrame] = columns, n: int = len(names)
            ) -> Flags:
                return np.isin(np.arange(n), columns[metric]["image"])

            yield Place(facts, list(columns), clusters, column, rows)


def split_tables(tables: Iterable[pa.Table], count: int, in_memory: int = IN_MEMORY) -> Columns:
    """See the tidy rows of one run, some images after the others, as columns, without having all at once.

    Args:
        tables: each with all rows of its images, whose rows lie together.
        count: how many images there are in all.
        in_memory: bytes of all columns together, beyond which they lie in a temporary file.

    Raises:
        SpectralError: if the temporary file can't be written.

    Example:
        >>> from spectral.table.rows import make_rows
        >>> def rows(image: str, value: float) -> pa.Table:
        ...     return make_rows(Origin("net", "", ""), [image], [image], [Key("sis")], np.array([[value]]))
        >>> (place,) = split_tables([rows("b", 0.5), rows("a", 0.25)], count=2).places
        >>> place.column("sis").tolist()
        [0.5, 0.25]
    """
    columns = _Scratch(count, in_memory)
    clusters = np.empty(count, np.int64)
    unmeasured: dict[tuple[Any, ...], Unmeasured] = {}
    origin: dict[str, Any] | None = None
    done = 0
    for table in tables:
        origin = origin or {name: table[name][0].as_py() for name in Origin._fields if len(table)}
        rows, reasons = split_reasons(table)
        for key, reason in reasons.items():
            facts = {**(origin or {}), **key._asdict()}
            metric = facts.pop("metric")
            unmeasured.setdefault((key, reason), Unmeasured(facts, metric, reason))
        if len(rows):
            done += _take_in(rows.unify_dictionaries().combine_chunks(), columns, clusters, done)
    known = origin or {}
    return Columns(_list_places(known, columns, _number(clusters[:done]), done), list(unmeasured.values()))


class _Scratch:
    """Columns of one length that are filled part by part, in memory while they are few."""

    def __init__(self, length: int, in_memory: int) -> None:
        self.keys: dict[Key, int] = {}
        self._length = length
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115 - goes with this

    def write(self, key: Key, at: int, values: Vector) -> None:
        try:
            if key not in self.keys:
                self.keys[key] = len(self.keys)
                self._seek(key, 0)
                self._file.write(np.full(self._length, np.nan).tobytes())
            self._seek(key, at)
            self._file.write(values.tobytes())
        except OSError as error:
            raise SpectralError(
                f"the summary's columns can't be kept in {tempfile.gettempdir()} ({error.strerror}); make "
                f"room, or name another folder in the environment variable TMPDIR"
            ) from error

    def read(self, key: Key) -> Vector:
        self._seek(key, 0)
        return np.frombuffer(self._file.read(8 * self._length))

    def _seek(self, key: Key, at: int) -> None:
        self._file.seek(8 * (self.keys[key] * self._length + at))


def _take_in(rows: pa.Table, columns: _Scratch, clusters: Codes, start: int) -> int:
    """Put the values of some images into columns, and return how many images they are."""
    image = _encode(rows["image"]).indices.to_numpy()
    places, firsts, images = np.unique(image, return_index=True, return_inverse=True)
    count = len(places)
    cluster = _encode(rows["cluster"])
    hashes = np.array([hash(name) for name in cluster.dictionary.to_pylist()], np.int64)
    # In the order of the rows, and not of whatever codes Arrow gave them.
    rank = np.argsort(np.argsort(firsts))
    clusters[start : start + count][rank] = hashes[cluster.indices.to_numpy()[firsts]]
    code, words = np.zeros(len(rows), np.int64), []
    for name in _FIELDS:
        column = _encode(rows[name])
        words.append(column.dictionary.to_pylist())
        code = code * len(words[-1]) + column.indices.to_numpy()
    found, first, own = np.unique(code, return_index=True, return_inverse=True)
    values = np.full((len(found), count), np.nan)
    values[own, rank[images]] = rows["value"].to_numpy()
    for number in np.argsort(first):
        columns.write(_decode(int(found[number]), words), start, values[number])
    return count


def _encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a column as codes of its few different values."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded


def _decode(code: int, words: Sequence[Sequence[Any]]) -> Key:
    entries: list[Any] = []
    for own in reversed(words):
        code, digit = divmod(code, len(own))
        entries.append(own[digit])
    return Key(*reversed(entries))


def _number(hashes: Codes) -> Codes:
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64)


def _list_places(
    origin: Mapping[str, Any], columns: _Scratch, clusters: Codes, count: int
) -> Iterator[Place]:
    groups: dict[tuple[Any, ...], dict[str, Key]] = {}
    for key in columns.keys:
        groups.setdefault(tuple(getattr(key, name) for name in PLACE), {})[key.metric] = key
    for place, own in groups.items():

        def column(metric: str, own: Mapping[str, Key] = own) -> Vector:
            return columns.read(own[metric])[:count]

        def rows(metric: str) -> Flags:
            return np.ones(count, np.bool_)

        facts = {**origin, **dict(zip(PLACE, place, strict=True))}
        yield Place(facts, list(own), clusters, column, rows)
