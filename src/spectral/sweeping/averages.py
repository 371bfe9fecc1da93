"""What a sweep's table says of one network: its own summary in one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from spectral.table.csv_files import read_csv


def read_table(path: Path) -> pd.DataFrame:
    """Read a network's table; an empty one of a network without sites.

    Raises:
        SpectralError: if it was damaged or altered.
    """
    try:
        return read_csv(path, keep_default_na=False, na_values=[""])  # a site may be called NA
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def average_sites(summary: pd.DataFrame, sites: pd.DataFrame) -> dict[str, Any]:
    """Return the SIS of a network, and the means over its sites of the means of each metric at each tap."""
    known = summary[summary["reason"].isna()]
    at_sites, whole = known[known["site"].notna()], known[known["site"].isna()]
    row: dict[str, Any] = {
        "weights": summary["weights"].iloc[0],
        "images": int(known["n"].max()) if len(known) else 0,
        "sites": len(sites),
        "measurable": int(sites["measurable"].sum()) if len(sites) else 0,
    }
    for one in whole[whole["metric"] == "sis"].to_dict("records"):
        row |= {"sis": one["mean"], "sis_ci_low": one["ci_low"], "sis_ci_high": one["ci_high"]}
    for (tap, metric), block in at_sites.groupby(["tap", "metric"], sort=False):
        row[f"{metric}_{tap}"] = float(block["mean"].mean())
    return row
