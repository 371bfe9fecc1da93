"""Validates tables before they are drawn: their columns, what they hold, and that no row is there twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import ParamSpec

import pandas as pd
from matplotlib.figure import Figure

from spectral.errors import SpectralError, suggest
from spectral.table.arguments import read_columns
from spectral.table.csv_files import require_commas
from spectral.table.schema import fill_words

Given = ParamSpec("Given")

_UNBOUNDED = ("db", "factor")  # parts of names of columns that may be infinite: 0 in dB is


def validate_columns(
    table: pd.DataFrame, needed: Iterable[str], optional: Iterable[str] = (),
    refuse: Callable[[str], SpectralError] = SpectralError,
) -> pd.DataFrame:  # fmt: skip
    """Return these columns of a table, words as words and numbers as numbers.

    Args:
        table: whatever was read or passed.
        needed: columns that it must have.
        optional: columns that are drawn where it has them.
        refuse: makes the error of a problem, such as ``"has no column 'sis'"``.

    Raises:
        SpectralError: if a column or all rows are absent, columns aren't told apart, a column of numbers
            holds something else, or a row is there twice.

    Example:
        >>> validate_columns(pd.DataFrame({"model": [7], "sis": ["0.5"], "note": ["mine"]}), ["model", "sis"])
          model  sis
        0     7  0.5
    """
    needed = list(dict.fromkeys(needed))
    absent = [column for column in needed if column not in table.columns]
    if absent:
        present = [str(column) for column in table.columns]
        require_commas(table, refuse)
        raise refuse(f"has no column {absent[0]!r}{suggest(absent[0], present)}")
    if table.empty:
        raise refuse("has no rows")
    read = [*needed, *(c for c in dict.fromkeys(optional) if c in table.columns and c not in needed)]
    for column in read:
        if isinstance(table[column], pd.DataFrame):
            raise refuse(f"has the column {column!r} twice")
    typed = read_columns(table[read], read, refuse)
    for column in read:
        _require_finite(typed[column], refuse)
    again = table.astype(object).duplicated()
    if again.any():
        raise refuse(f"has row {int(again.to_numpy().argmax()) + 1} twice")
    return typed


@contextmanager
def drawing(refuse: Callable[[str], SpectralError]) -> Iterator[None]:
    """Tell of values that no figure can be made of, such as names that belong to nothing, in one sentence.

    Args:
        refuse: as for `validate_columns`.

    Raises:
        SpectralError: whatever else the block raises of what its values can be to blame for.
    """
    try:
        yield
    except SpectralError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise refuse(f"has values that can't be drawn together ({words})") from error


def drawn_of(
    *needed: str, optional: Iterable[str] = ()
) -> Callable[[Callable[Given, Figure]], Callable[Given, Figure]]:
    """Let a function that draws its first argument look at it first.

    Args:
        needed: columns that the table must have.
        optional: columns that it reads where they are there.
    """

    def look_first(plot: Callable[Given, Figure]) -> Callable[Given, Figure]:
        def refuse(problem: str) -> SpectralError:
            wanted = f"; it needs {', '.join(needed)}" if "no column" in problem else ""
            return SpectralError(f"{plot.__name__}: the table {problem}{wanted}")

        shape = signature(plot)
        first = next(iter(shape.parameters))

        @wraps(plot)
        def checked(*given: Given.args, **named: Given.kwargs) -> Figure:
            bound = shape.bind(*given, **named)
            table = bound.arguments[first]
            if not isinstance(table, pd.DataFrame):
                raise SpectralError(f"{plot.__name__}: expected a table, got {type(table).__name__}")
            bound.arguments[first] = validate_columns(table, needed, optional, refuse)
            with drawing(refuse):
                return plot(*bound.args, **bound.kwargs)

        return checked

    return look_first


def holds_only_reasons(table: pd.DataFrame) -> bool:
    """Whether a table says of every row why there is nothing, or has no rows.

    Example:
        >>> holds_only_reasons(pd.DataFrame({"n": [0, None], "reason": ["no sites", "too small"]}))
        True
        >>> holds_only_reasons(pd.DataFrame({"avr": [0.1]}))
        False
    """
    if "reason" not in table:
        return bool(table.empty)
    explained = fill_words(table["reason"]).ne("")
    if "n" in table:
        explained &= ~pd.to_numeric(table["n"], errors="coerce").gt(0).fillna(False)
    return bool(explained.all())


def _require_finite(column: pd.Series, refuse: Callable[[str], SpectralError]) -> None:
    """Refuse a number that is more than all."""
    bounded = not any(part in str(column.name) for part in _UNBOUNDED)
    if bounded and pd.api.types.is_float_dtype(column) and column.abs().eq(float("inf")).any():
        raise refuse(f"has an infinite number in its column {column.name!r}")
