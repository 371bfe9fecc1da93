"""What commands print of tables, and write beside."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral.table.display import INTERVALS, NOTHING, format_mean, format_rows
from spectral.table.schema import BOUNDS

if TYPE_CHECKING:
    import pandas as pd


SMALLEST_P = 0.001  # that is written out


def write_printed(content: Mapping[str, Any], path: Path) -> None:
    """Write what is printed as JSON.

    Raises:
        SpectralError: if a file of something else would be lost by it, or it can't be written.
    """
    from spectral.files.atomic import GENERATOR, ensure_writable, refuse_foreign
    from spectral.files.json_files import write_json

    refuse_foreign(path)  # the command may have just written one
    ensure_writable(path.parent)
    write_json({**content, "generator": GENERATOR}, path)


def write_rows(table: pd.DataFrame, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a table as JSON, a record per row and null for what is unknown, with what it is about.

    Raises:
        SpectralError: as `write_printed`.
    """
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    write_printed({**facts, "rows": rows}, path)


def draw(stem: str, folder: Path) -> tuple[list[Path], str]:
    """Draw a figure beside its table; return its files, and what is to be said of it: the folder's name.

    Where nothing of it is known there is no figure, and that is said.
    """
    import spectral

    drawn, why = spectral.figures.draw_what_is_known(stem, folder, folder)
    return drawn, f"\nwritten to {folder}{f'; no figure: {why}' if why else ''}"


def format_attribution(table: pd.DataFrame) -> str:
    """Write an attribution as text: a line per replaced site, then the reasons for the others."""
    found = table[table["n"] > 0]
    first = found.iloc[0]
    lines = [
        f"SIS of the network as it is: {first['sis_original']:.4g}; n = {first['n']} images of "
        f"{first['n_clusters']} clusters (photographs), the units of the test",
        f"means {INTERVALS}; last out: with all other sites altered already",
        "",
    ]
    header = ["site", "op", "ΔSIS", "p (Holm)", "ΔSIS of its block", "ΔSIS last out", "agreement"]
    if (found["n_labelled"] > 0).any():
        header.append(f"Δaccuracy (n = {first['n_labelled']})")
    lines.append(format_rows(header, [_format_row(row)[: len(header)] for row in found.to_dict("records")]))
    for row in table[table["reason"] != ""].to_dict("records"):
        what = "not altered" if row["n"] == 0 else "not tested"
        lines.append(f"{what}: {row['site']} ({row['op']}): {row['reason']}")
    return "\n".join(lines)


def _format_row(row: Mapping[Hashable, Any]) -> list[str]:
    p = row["p_holm"]
    said = NOTHING if math.isnan(p) else "< 0.001" if p < SMALLEST_P else f"{p:.3f}"
    means = [
        format_mean(*(row[f"{name}{end}"] for end in BOUNDS))
        for name in ("delta_sis", "delta_sis_block", "delta_sis_last_out", "agreement", "accuracy_change")
    ]
    return [row["site"], row["op"], means[0], f"{said} {row['significance']}".rstrip(), *means[1:]]
