"""A pandas table whose rows are read when they are first looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from spectral.table.rows import to_frame
from spectral.table.shown import Describe, Shown, show_rows

EAGER_ROWS = 2**18
"""So many rows and fewer are read at once: some 100 MB as a pandas table."""


class LazyTable(Shown):
    """A pandas table whose rows are read when they are first looked at, and then kept.

    What is computed from a table as a whole, such as `spectral.summarize_measurements`, goes through the rows
    without keeping them as long as nobody has looked.

    Args:
        tables: gives all rows, some images after the others, as often as it is called.
        images: how many images these are of.
        describe: says what is shown of it, see `Shown`.

    Example:
        >>> from spectral.table.rows import SCHEMA
        >>> table = LazyTable(lambda: [SCHEMA.empty_table()], images=0)
        >>> table.waits, len(table), table.waits
        (True, 0, False)
    """

    _internal_names = [*Shown._internal_names, "tables", "images", "_read"]  # noqa: RUF012
    _internal_names_set = set(_internal_names)  # noqa: RUF012

    def __init__(
        self, tables: Callable[[], Iterable[pa.Table]], images: int, describe: Describe = show_rows
    ) -> None:
        super().__init__(pd.DataFrame(), describe)
        self.tables, self.images = tables, images
        self._read: Any = None

    @property
    def waits(self) -> bool:
        """Whether nobody has looked at the rows yet."""
        return self._read is None

    # pandas keeps all of a table's rows in this attribute.
    @property
    def _mgr(self) -> Any:
        if self._read is None:
            self._read = to_frame(self.tables())._mgr
        return self._read

    @_mgr.setter
    def _mgr(self, rows: Any) -> None:
        self._read = rows


def gather(
    tables: Callable[[], Iterable[pa.Table]], rows: int, images: int, describe: Describe = show_rows
) -> pd.DataFrame:
    """Return tidy rows as a pandas table, at once where they are few and when they are looked at where many.

    Args:
        tables: gives them, some images after the others, as often as it is called.
        rows: how many there are.
        images: how many images they are of.
        describe: says what is shown of it, see `Shown`.
    """
    if rows <= EAGER_ROWS:
        return Shown(to_frame(tables()), describe)
    return LazyTable(tables, images, describe)
