"""What `spectral compare` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from spectral.cli.output import SMALLEST_P
from spectral.table.display import INTERVALS, NOTHING, format_columns, format_mean
from spectral.table.schema import with_bounds

WIDTH = 120  # of a block


def format_comparison(table: pd.DataFrame) -> str:
    """Write a comparison as text: a block per model, tap and metric, a line per pair of like sites."""
    lines: list[str] = []
    for model, rows in table.groupby("model_b", sort=False):
        at_sites = rows[rows["layer"] != ""]
        reference = rows["model_a"].iloc[0]
        lines.append(f"a: {reference}, b: {model}\nmeans and difference b − a, each {INTERVALS}")
        for (tap, metric), block in at_sites.groupby(["tap", "metric"], sort=False):
            images, clusters = (_write_range(block.loc[block["n"] > 0, n]) for n in ("n", "n_clusters"))
            unit = ", dB of each image" if "_db" in str(metric) else ""
            lines.append(
                f"\n{metric}{unit}, {tap} tap; n = {images} images of {clusters} clusters (photographs)"
            )
            header = ["site of a", "site of b", "a", "b", "difference", "p (Holm)", "effect d_z"]
            cells = [_format_row(row) for row in block.to_dict("records")]
            lines.append(format_columns(header, cells, fixed=2, width=WIDTH))
        lines += ["", *_explain_pairs(at_sites), *_format_whole(rows), ""]
    return "\n".join(lines).rstrip()


def _write_range(counts: pd.Series) -> str:
    """Write how many, or from how many to how many where sites differ in it; of sites with any."""
    return (
        " to ".join(dict.fromkeys(str(end) for end in (counts.min(), counts.max()))) if len(counts) else "0"
    )


def _explain_pairs(rows: pd.DataFrame) -> list[str]:
    """Say why sites were paired, each reason once."""
    pairs = rows.drop_duplicates(["site_a", "site_b"])
    return [
        f"paired, {why}: {', '.join(own['site_a'] + ' with ' + own['site_b'])}"
        for why, own in pairs.groupby("pairing", sort=False)
    ]


def _format_row(row: Mapping[Any, Any]) -> list[str]:
    means = [format_mean(*(row[name] for name in with_bounds(f"mean_{side}"))) for side in "ab"]
    start = [row["site_a"], row["site_b"], *means]
    if row["reason"]:
        return [*start, NOTHING, row["reason"], NOTHING]
    between = format_mean(*(row[name] for name in with_bounds("difference")))
    return [*start, between, _format_p(row), f"{row['effect_size']:.2f}"]


def _format_p(row: Mapping[Any, Any]) -> str:
    p = "< 0.001" if row["p_holm"] < SMALLEST_P else f"{row['p_holm']:.3f}"
    return f"{p} {row['significance']}".rstrip()


def _format_whole(rows: pd.DataFrame) -> list[str]:
    """What is said of the whole models, and which sites could not be compared."""
    lines = []
    for row in rows[rows["layer"] == ""].to_dict("records"):
        if row["metric"] == "sis":
            *_, a, b, between, p, effect = _format_row(row)
            lines.append(f"whole model: sis a {a}, b {b}")
            lines.append(f"             difference {between}, p (Holm) {p}, effect d_z {effect}")
        elif row["metric"] == "agreement" and not row["reason"]:
            share = format_mean(*(row[name] for name in with_bounds("mean_b")))
            lines.append(f"same class for {share} of {row['n']} images")
        elif row["metric"] == "agreement":
            lines.append(f"same class: not compared, {row['reason']}")
        else:
            side = "a" if row["site_a"] else "b"
            lines.append(
                f"not compared: {row[f'site_{side}']} of {side} ({row[f'op_{side}']}): {row['reason']}"
            )
    return lines
