"""What commands write beside what they print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def write_rows(table: pd.DataFrame, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a table as JSON, a record per row and null for what is unknown, with what it is about.

    Raises:
        SpectralError: if the folder can't be written.
    """
    from spectral.files import ensure_writable
    from spectral.table import write_json

    ensure_writable(path.parent)
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    write_json({**facts, "rows": rows}, path)
