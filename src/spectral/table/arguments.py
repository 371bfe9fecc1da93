"""Tables as people pass them: from a function of this package, or from a file, or edited since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from spectral.errors import SpectralError
from spectral.table.schema import EITHER, WORDS

if TYPE_CHECKING:
    import pandas as pd


def require_columns(table: pd.DataFrame, columns: Iterable[str], caller: str, source: str) -> None:
    """Refuse a table that isn't what an analysis reads.

    Args:
        table: what was given.
        columns: that are needed.
        caller: whose name the message begins with.
        source: what gives such a table.

    Raises:
        SpectralError: naming the first column that is absent.

    Example:
        >>> import pandas as pd
        >>> require_columns(pd.DataFrame({"a": [1]}), ["a", "b"], "compare", "spectral.measure")
        Traceback (most recent call last):
        spectral.errors.SpectralError: compare: the table has no column 'b'; expected one of spectral.measure
    """
    if not hasattr(table, "columns"):
        raise SpectralError(f"{caller}: expected a table of {source}, got {type(table).__name__}")
    absent = [column for column in columns if column not in table]
    if absent:
        raise SpectralError(f"{caller}: the table has no column {absent[0]!r}; expected one of {source}")


def read_columns(
    table: pd.DataFrame, columns: Iterable[str], refuse: Callable[[str], SpectralError]
) -> pd.DataFrame:
    """Return a table with words as words and numbers as numbers, wherever it has been since it was made.

    A file takes names of digits for numbers, a spreadsheet numbers for text.

    Args:
        table: whatever was read or passed.
        columns: those that are read; others stay as they are.
        refuse: makes the error of a problem, such as ``"has '0,5' in its column 'sis', …"``.

    Raises:
        SpectralError: if a column of numbers holds something else, or an image has no cluster.

    Example:
        >>> import pandas as pd
        >>> read_columns(pd.DataFrame({"site": [0], "avr": ["0.5"]}), ["site", "avr"], SpectralError)
          site  avr
        0    0  0.5
    """
    typed = {
        column: table[column] if column in EITHER
        else _read_words(table[column]) if column in WORDS or column.endswith("_reason")
        else _read_numbers(table[column], refuse)
        for column in columns
    }  # fmt: skip
    if {"image", "cluster"} <= typed.keys():
        alone = _is_unknown(typed["cluster"]) & ~_is_unknown(typed["image"])
        if alone.any():
            raise refuse(
                f"has no cluster of image {typed['image'][alone].iloc[0]!r}; "
                f"table['cluster'] = table['image'] where each image is a photograph of its own"
            )
    return table.assign(**typed)


def _read_words(column: pd.Series) -> pd.Series:
    """Read names, which a file may have taken for numbers; what is unknown stays so."""
    if column.dtype.kind == "f" and column.dropna().mod(1).eq(0).all():
        column = column.astype("Int64")  # numbered from 0, with some unknown
    return column.astype(object).map(str, na_action="ignore")


def _read_numbers(column: pd.Series, refuse: Callable[[str], SpectralError]) -> pd.Series:
    """Read numbers or flags; the empty text is none."""
    from pandas import to_numeric
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(column):
        return column
    known = column.astype(object).mask(_is_unknown(column))
    numbers = to_numeric(known, errors="coerce")
    wrong = known[numbers.isna() & known.notna()]
    if len(wrong):
        raise refuse(f"has {str(wrong.iloc[0])[:40]!r} in its column {column.name!r}, which holds numbers")
    return numbers


def _is_unknown(column: pd.Series) -> pd.Series:
    return column.isna() | column.astype(object).eq("")


def check_table(
    table: pd.DataFrame,
    caller: str,
    maker: str,
    needed: Sequence[str],
    place: Sequence[str] = (),
    *,
    alone: bool = False,
) -> pd.DataFrame:
    """Return a table that is to be summarised, which must be one and have each image of a model once.

    Args:
        table: what somebody passed.
        caller: whose name messages begin with.
        maker: the function that makes such tables.
        needed: columns that it must have, model and image among them.
        place: what, beside model and image, tells its rows apart.
        alone: whether it must be of one model.

    Raises:
        SpectralError: if a column is absent or holds something else, two rows are of one thing, or there are
            more models.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"model": "net", "image": ["a", "a"]})
        >>> check_table(table, "example", "measure_it", ["model", "image"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        spectral.errors.SpectralError: example: the table has image 'a' twice for model 'net'; ...
    """
    absent = [column for column in needed if column not in table.columns]
    if absent:
        raise SpectralError(
            f"{caller}: expected a table from spectral.{maker}, got one without the column {absent[0]!r}"
        )
    table = read_columns(table, needed, lambda problem: SpectralError(f"{caller}: the table {problem}"))
    known = table[table["image"].notna() & (table["image"] != "")]  # others say what couldn't be measured
    again = known.duplicated(["model", "image", *place])
    one_by_one = "summarise tables of different models one by one"
    if again.any():
        row = known[again].iloc[0]
        raise SpectralError(
            f"{caller}: the table has image {row['image']!r} twice for model {row['model']!r}; "
            f"{one_by_one if alone else f'name models apart ({maker}(…, name=…))'}"
        )
    if alone and known["model"].nunique() > 1:
        first, second = known["model"].unique()[:2]
        raise SpectralError(
            f"{caller}: expected a table of one model, got {first!r} and {second!r}; {one_by_one}"
        )
    return table
