"""How the phases write means, shares and their intervals into tables: a column, and two for its bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from spectral import stats
from spectral.figures.spec import BOUNDS, with_bounds


def bound(name: str, mean: float, low: float, high: float) -> dict[str, float]:
    """Return a mean and its interval as three columns.

    Example:
        >>> bound("sis", 0.2, 0.1, 0.3)
        {'sis': 0.2, 'sis_low': 0.1, 'sis_high': 0.3}
    """
    return dict(zip(with_bounds(name), (mean, low, high), strict=True))


def bound_summary(name: str, found: stats.Summary) -> dict[str, float]:
    """Return a summary's mean and interval as three columns."""
    return bound(name, found.mean, found.ci_low, found.ci_high)


def bound_share(name: str, successes: int, n: int) -> dict[str, float]:
    """Return a share and its interval as three columns, NaN where there is nothing to share.

    Example:
        >>> {key: round(value, 2) for key, value in bound_share("accuracy", 9, 10).items()}
        {'accuracy': 0.9, 'accuracy_low': 0.6, 'accuracy_high': 0.98}
    """
    if n == 0:
        return bound(name, math.nan, math.nan, math.nan)
    found = stats.proportion_interval(successes, n)
    return bound(name, found.proportion, found.ci_low, found.ci_high)


def tabulate(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], counts: Sequence[str]
) -> pd.DataFrame:
    """Make a table in which counts stay whole numbers although some rows have none."""
    table = pd.DataFrame(list(rows), columns=list(columns))
    return table.astype({column: "Int64" for column in counts if column in columns})


def read_means(summary: pd.DataFrame, site: str, means: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Read the means of one site, or of the whole network, with their intervals and counts.

    Args:
        summary: from `summarize_measurements`.
        site: its name; empty for the whole network.
        means: column → (tap, metric), the tap empty for the whole network's metrics.

    Returns:
        Nothing for what wasn't measured; the alias power ratio in dB too.
    """
    own = {(row["tap"], row["metric"]): row for row in summary[summary["site"] == site].to_dict("records")}
    row: dict[str, Any] = {}
    for column, key in means.items():
        if key in own:
            found = own[key]
            row |= bound(column, found["mean"], found["ci_low"], found["ci_high"])
            row |= {"n": found["n"], "n_silent": found["n_silent"]}
    return {**row, **in_decibels(row)}


def average_sites(
    table: pd.DataFrame, metrics: Sequence[str], photographs: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    """Average metrics of the dense maps over a network's sites, image by image, silent maps left out.

    Args:
        table: from `measure`.
        metrics: which.
        photographs: the photograph of each image, the unit of the intervals; None for each its own.
        seed: of the resampling.

    Returns:
        Means with intervals, n and n_photographs; n alone where nothing was measured.
    """
    dense = table[(table["tap"] == "dense") & table["metric"].isin([*metrics, "power"])]
    wide = dense.pivot(index=["image", "site"], columns="metric", values="value")
    if wide.empty or not (wide["power"] > 0).any():
        return {"n": 0}
    loud = wide[wide["power"] > 0].groupby("image", sort=False)[list(metrics)].mean()
    groups = None if photographs is None else [photographs[image] for image in loud.index]
    row: dict[str, Any] = {}
    for metric in metrics:
        row |= bound_summary(metric, stats.summarize(loud[metric], groups=groups, seed=seed))
    units = len(loud) if groups is None else len(set(groups))
    return {**row, **in_decibels(row), "n": len(loud), "n_photographs": units}


def to_decibels(ratio: float) -> float:
    """Write a ratio of powers in dB: −∞ for 0, NaN where it is unknown or an interval reaches below 0.

    Example:
        >>> to_decibels(0.1), to_decibels(0.0)
        (-10.0, -inf)
    """
    if ratio == 0:
        return -math.inf
    return 10 * math.log10(ratio) if ratio > 0 else math.nan


def in_decibels(row: Mapping[str, float]) -> dict[str, float]:
    """Write an alias power ratio's mean and bounds in dB, where there is one."""
    values = {end: row[f"alias_power_ratio{end}"] for end in BOUNDS if f"alias_power_ratio{end}" in row}
    return {f"alias_power_db{end}": to_decibels(value) for end, value in values.items()}
