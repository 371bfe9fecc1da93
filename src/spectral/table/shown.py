"""Tables that are shown as a summary of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from spectral.table.display import Card

Describe = Callable[[Any], Card | None]
"""Gives the summary of a table; None where the table isn't any more what it summarises."""


def show_rows(table: Any) -> None:
    """Show a table as pandas does."""


class _Frames(type):
    """Any pandas table is an instance: who compares two of them asks that, and rows are what counts."""

    def __instancecheck__(cls, instance: Any) -> bool:
        own = pd.DataFrame if cls is Shown else cls
        return type.__instancecheck__(own, instance)


class Shown(pd.DataFrame, metaclass=_Frames):
    """A pandas table that is shown as a summary of its rows; what is made of it is a plain one.

    Args:
        frame: the rows.
        describe: gives the summary; None where the table isn't any more what it summarises.

    Example:
        >>> table = Shown(pd.DataFrame({"value": [1.0, 3.0]}), lambda t: Card([f"mean {t['value'].mean()}"]))
        >>> print(table)
        mean 2.0
        >>> type(table[table["value"] > 1]).__name__
        'DataFrame'
    """

    _internal_names = [*pd.DataFrame._internal_names, "_describe"]  # type: ignore[attr-defined] # noqa: RUF012
    _internal_names_set = set(_internal_names)  # noqa: RUF012

    def __init__(self, frame: pd.DataFrame, describe: Describe) -> None:
        super().__init__(frame)  # type: ignore[call-arg] # pandas has no types
        self._describe = describe
        self.attrs = dict(frame.attrs)

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        card = self._describe(self)
        return super().__repr__() if card is None else card.text()

    def _repr_html_(self) -> str | None:
        card = self._describe(self)
        return pd.DataFrame._repr_html_(self) if card is None else card.html()  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        """Go to other processes as the plain table."""
        return self.copy().__reduce__()
