"""The tidy rows of measurements, and how a table of them is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from spectral.errors import SpectralError
from spectral.files.atomic import printable
from spectral.table.arguments import read_columns
from spectral.table.schema import MEASUREMENT, PLACE, fill_words

COLUMNS = list(MEASUREMENT)
_NUMBERS = {"call": pa.int32(), "value": pa.float64()}
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([(column, _NUMBERS.get(column, pa.string())) for column in COLUMNS])
_COMPACT = pa.schema([(column, _NUMBERS.get(column, _TEXT)) for column in COLUMNS])
_RUN = ["model", "weights", "images"]  # what is the same in all rows of one run


class Key(NamedTuple):
    """What a value is of; site, op, stride and tap are empty for the whole model."""

    metric: str
    site: str = ""
    call: int = 0
    op: str = ""
    stride: str = ""
    tap: str = ""


class Origin(NamedTuple):
    """Which network the values of a run are of, and on which images they were measured."""

    model: str
    weights: str
    images: str


def make_rows(
    origin: Origin,
    images: Sequence[str],
    clusters: Sequence[str],
    keys: Sequence[Key],
    values: npt.NDArray[np.float64],
) -> pa.Table:
    """Turn a block of values (images × keys) into tidy rows, image by image.

    Example:
        >>> net = Origin("net", "sha256:0", "tensor@0")
        >>> rows = make_rows(net, ["a", "b"], ["a", "b"], [Key("sis")], np.array([[0.1], [0.2]]))
        >>> rows.to_pandas()["value"].tolist()
        [0.1, 0.2]
    """
    n, k = values.shape
    order = np.repeat(np.arange(n), k)
    columns: dict[str, pa.Array] = {
        "image": _repeat_text(images, order),
        "cluster": _repeat_text(clusters, order),
        "value": pa.array(values.ravel()),
        "reason": _repeat_text([""], np.zeros(n * k)),
    }
    columns |= {name: _repeat_text([word], np.zeros(n * k)) for name, word in origin._asdict().items()}
    for name in Key._fields:
        entries = [getattr(key, name) for key in keys]
        if name == "call":
            columns[name] = pa.array(np.tile(np.array(entries, np.int32), n))
        else:
            words = list(dict.fromkeys(map(str, entries)))
            codes = np.tile(np.array([words.index(str(entry)) for entry in entries], dtype=np.intp), n)
            columns[name] = _repeat_text(words, codes)
    return pa.table(columns).select(COLUMNS).cast(_COMPACT)


def make_reasons(origin: Origin, reasons: Mapping[Key, str]) -> pa.Table:
    """Turn what couldn't be measured into rows: without image and value, but with the reason.

    A key without a metric stands for all of a site's; one without a site, for a metric of the whole model.

    Example:
        >>> found = make_reasons(Origin("net", "", ""), {Key("", "pool", op="max_pool"): "unequal windows"})
        >>> found.select(["site", "value", "reason"]).to_pylist()
        [{'site': 'pool', 'value': nan, 'reason': 'unequal windows'}]
    """
    rows = [
        {**origin._asdict(), **key._asdict(), "image": "", "cluster": "", "value": np.nan, "reason": reason}
        for key, reason in reasons.items()
    ]
    return pa.Table.from_pylist(rows, SCHEMA).cast(_COMPACT)


def name_images(rows: pa.Table, images: str) -> pa.Table:
    """Return tidy rows with another word for the images that they are of; as they are where it is empty.

    Example:
        >>> rows = make_reasons(Origin("net", "", "a@listed-0"), {Key("sis"): "no scores"})
        >>> name_images(rows, "a@1")["images"].to_pylist()
        ['a@1']
    """
    if not images:
        return rows
    place = rows.schema.get_field_index("images")
    return rows.set_column(place, "images", _repeat_text([images], np.zeros(len(rows))))


def as_codes(rows: pa.Table) -> pa.Table:
    """Return tidy rows with text as codes of its few different words.

    Example:
        >>> as_codes(SCHEMA.empty_table()).schema.field("site").type
        DictionaryType(dictionary<values=string, indices=int32, ordered=0>)
    """
    return rows.cast(_COMPACT).unify_dictionaries()


def split_reasons(rows: pa.Table) -> tuple[pa.Table, dict[Key, str]]:
    """Take tidy rows apart: those with values, and the reasons by what they are of.

    Example:
        >>> rows = make_reasons(Origin("net", "", ""), {Key("sis"): "no scores"})
        >>> measured, reasons = split_reasons(rows)
        >>> len(measured), list(reasons.values())
        (0, ['no scores'])
    """
    if all(word == "" for word in pc.unique(rows["reason"]).to_pylist()):
        return rows, {}
    found: dict[Key, str] = {}
    known = pc.equal(rows["reason"], "")
    for row in rows.filter(pc.invert(known)).select([*Key._fields, "reason"]).to_pylist():
        reason = row.pop("reason")
        found.setdefault(Key(**row), reason)
    return rows.filter(known), found


def to_frame(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Join tidy rows into one pandas table."""
    joined = pa.concat_tables([SCHEMA.empty_table(), *(table.cast(SCHEMA) for table in tables)])
    frame: pd.DataFrame = joined.to_pandas()
    return frame


def read_frame(table: pd.DataFrame, caller: str) -> pd.DataFrame:
    """Return a table of measurements as `measure` gave it, wherever it has been since.

    A CSV file has no empty text, and no text that looks like a number: both are put right.

    Raises:
        SpectralError: if it has not the columns of a table of measurements, or two values for one thing.

    Example:
        >>> rows = make_reasons(Origin("net", "", ""), {Key("", "0"): "why"}).to_pandas()
        >>> rows = rows.assign(site=0, image=float("nan"))  # as from a CSV file
        >>> read_frame(rows, "read_frame")[["site", "image"]].values.tolist()
        [['0', '']]
    """
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        hint = "; table['cluster'] = table['image'] where each image is a photograph of its own"
        raise SpectralError(
            f"{caller}: expected a table from spectral.measure, got one without the column {absent[0]!r}"
            f"{hint if absent == ['cluster'] else '; measure again, or read it with spectral.read'}"
        )
    frame = read_columns(table, COLUMNS, lambda problem: SpectralError(f"{caller}: the table {problem}"))
    words = [column for column in COLUMNS if column not in _NUMBERS]
    frame = frame.assign(**{column: fill_words(frame[column]) for column in words})
    frame = frame.astype({"call": np.int32, "value": np.float64})
    known = frame[frame["reason"] == ""]
    again = known.duplicated([*_RUN, "image", *PLACE, "metric"])
    if again.any():
        row = known[again].iloc[0]
        raise SpectralError(
            f"{caller}: the table has {row['metric']} of image {row['image']!r} twice for model "
            f"{row['model']!r}; join tables of different runs, or name the models apart (measure(…, name=…))"
        )
    return frame


def widen(table: pd.DataFrame) -> pd.DataFrame:
    """Spread what is of the whole model: a row per image, its cluster and a column per metric.

    Args:
        table: from `measure`, of one run.

    Example:
        >>> net = Origin("net", "sha256:0", "tensor@0")
        >>> rows = make_rows(net, ["b", "a"], ["c", "c"], [Key("sis")], np.array([[0.1], [0.3]]))
        >>> widen(to_frame([rows])).reset_index().values.tolist()
        [['b', 'c', 0.1], ['a', 'c', 0.3]]
    """
    own = table[(table["site"] == "") & (table["tap"] == "") & (table["reason"] == "")]
    wide = own.pivot(index="image", columns="metric", values="value").loc[own["image"].unique()]
    wide.insert(0, "cluster", own.drop_duplicates("image").set_index("image")["cluster"])
    return wide


def _repeat_text(words: Sequence[str], codes: npt.NDArray[Any]) -> pa.Array:
    text = pa.array([printable(word) for word in words], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), text)
