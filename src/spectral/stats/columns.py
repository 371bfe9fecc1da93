"""How tables write means, shares and their intervals into tables: a column, and two for its bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from spectral import stats
from spectral.files.atomic import printable
from spectral.table.schema import (
    BOUNDS,
    POWER_RATIOS,
    RANGES,
    SIGNAL_METRICS,
    name_decibels,
    to_decibels,
    with_bounds,
)

FEWEST_CLUSTERS = 2  # that a test needs
_AVR, _MEDIAN, _NINETIETH, _NOISE = SIGNAL_METRICS
SIGNAL_COLUMNS = [
    *with_bounds(_AVR, _MEDIAN, name_decibels(_MEDIAN), name_decibels(_NINETIETH)), name_decibels(_NOISE),
]  # fmt: skip
"""Columns of what networks are compared by, at the tap ``signal``."""
SIGNIFICANCE = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def bound(name: str, mean: float, low: float, high: float) -> dict[str, float]:
    """Return a mean and its interval as three columns.

    Example:
        >>> bound("sis", 0.2, 0.1, 0.3)
        {'sis': 0.2, 'sis_ci_low': 0.1, 'sis_ci_high': 0.3}
    """
    return dict(zip(with_bounds(name), (mean, low, high), strict=True))


def bound_summary(name: str, found: stats.Summary) -> dict[str, float]:
    """Return a summary's mean and interval as three columns."""
    return bound(name, found.mean, found.ci_low, found.ci_high)


def bound_share(name: str, successes: int, n: int) -> dict[str, float]:
    """Return a share and its interval as three columns, NaN where there is nothing to share.

    Example:
        >>> {key: round(value, 2) for key, value in bound_share("accuracy", 9, 10).items()}
        {'accuracy': 0.9, 'accuracy_ci_low': 0.6, 'accuracy_ci_high': 0.98}
    """
    if n == 0:
        return bound(name, math.nan, math.nan, math.nan)
    return _bound_found(name, stats.count_share(successes, n))


def bound_flags(name: str, flags: pd.Series, clusters: pd.Series) -> dict[str, float]:
    """Return the share of true values and its interval as three columns, NaN where there is nothing to share.

    Args:
        name: of the first column.
        flags: true or false, by image.
        clusters: what each image was cut from, by image too.
    """
    if len(flags) == 0:
        return bound(name, math.nan, math.nan, math.nan)
    return _bound_found(name, stats.summarize_share(flags.astype(float), clusters[flags.index]))


def compare_columns(
    a: pd.Series, b: pd.Series, silent_a: pd.Series, silent_b: pd.Series, clusters: pd.Series
) -> dict[str, Any]:
    """Compare two columns of the same images a − b, without those that are silent in either.

    Args:
        a: values by image.
        b: values by image.
        silent_a: whether a's map was silent.
        silent_b: whether b's was.
        clusters: what each image was cut from.

    Returns:
        The columns of one test: its counts, the difference with its interval, t, df, p, Wilcoxon's p and the
        effect size d_z, all of the clusters' means; only counts and a reason where there are too few.
    """
    both = a.index.intersection(b.index)
    both = both[~(silent_a[both] | silent_b[both]).to_numpy(dtype=bool)]
    counts = {"n": len(both), "n_clusters": clusters[both].nunique()}
    if counts["n_clusters"] < FEWEST_CLUSTERS:
        return {**counts, "reason": f"a test needs {FEWEST_CLUSTERS} clusters where neither map is silent"}
    found = stats.compare_paired(a[both], b[both], clusters[both])
    return {
        **counts, **bound("difference", found.difference, found.ci_low, found.ci_high), "t": found.t,
        "df": found.df, "p": found.p, "wilcoxon_p": found.wilcoxon_p, "effect_size": found.effect_size,
        "reason": "",
    }  # fmt: skip


def add_holm(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Put ``<column>_holm`` behind columns of p-values, corrected over all that the table shows.

    All columns together are one family of hypotheses: whoever looks through the table looks at all of them.
    Stars for the first of the columns go into ``significance``, behind the last.

    Example:
        >>> add_holm(pd.DataFrame({"p": [0.01, 0.04]}), "p")["p_holm"].tolist()
        [0.02, 0.04]
    """
    table = table.assign(**{column: table[column].astype(float) for column in columns})
    p = table[list(columns)].to_numpy(dtype=float)
    adjusted = stats.holm(p.ravel()).reshape(p.shape) if p.size else p
    for position, column in enumerate(columns):
        table.insert(list(table.columns).index(column) + 1, f"{column}_holm", adjusted[:, position])
    stars = [significance(p) for p in table[f"{columns[0]}_holm"]]
    table.insert(list(table.columns).index(f"{columns[-1]}_holm") + 1, "significance", stars)
    return table


def significance(p: float) -> str:
    """Stars for an adjusted p-value; none for NaN.

    Example:
        >>> significance(0.0001), significance(0.2)
        ('***', '')
    """
    return next((stars for limit, stars in SIGNIFICANCE if p < limit), "")


def tabulate(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], counts: Sequence[str]
) -> pd.DataFrame:
    """Make a table in which counts stay whole numbers although some rows have none; text can be written."""
    written = [{k: printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    table = pd.DataFrame(written, columns=list(columns))
    return table.astype({column: "Int64" for column in counts if column in columns})


def tabulate_sites(
    summary: pd.DataFrame, records: Iterable[Mapping[str, Any]], means: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return a row per site: what it is, its means with their intervals, and what networks are compared by.

    Args:
        summary: from `summarize_measurements`.
        records: of the sites, as in ``attrs["sites"]`` of a measurement.
        means: column → (tap, metric).
    """
    return [
        {**record, "site": record["name"], "site_index": index, **read_means(summary, record["name"], means),
         **read_signal(summary, record["name"])}
        for index, record in enumerate(records)
    ]  # fmt: skip


def read_means(summary: pd.DataFrame, site: str, means: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Read the means of one site, or of the whole network, with their intervals and counts.

    Args:
        summary: from `summarize_measurements`.
        site: its name; empty for the whole network.
        means: column → (tap, metric), the tap empty for the whole network's metrics.

    Returns:
        Nothing for what wasn't measured; ratios of powers in dB too.
    """
    own = {(row["tap"], row["metric"]): row for row in summary[summary["site"] == site].to_dict("records")}
    row: dict[str, Any] = {}
    for column, key in means.items():
        if key in own:
            found = own[key]
            row |= bound(column, found["mean"], found["ci_low"], found["ci_high"])
            row |= {key: found[key] for key in ("n", "n_clusters", "n_silent")}
    return {**row, **in_decibels(row)}


def read_signal(summary: pd.DataFrame, site: str) -> dict[str, Any]:
    """Read what one site is compared by at the tap ``signal``; ``n_signal`` images have it.

    Args:
        summary: from `summarize_measurements`.
        site: its name.
    """
    row = read_means(summary, site, {metric: ("signal", metric) for metric in SIGNAL_METRICS})
    row = {name: value for name, value in row.items() if name not in ("n_clusters", "n_silent")}
    return {"n_signal" if name == "n" else name: value for name, value in row.items()}


def average_signals(table: pd.DataFrame) -> dict[str, Any]:
    """Average what networks are compared by over a network's sites, at the tap ``signal``.

    Args:
        table: from `measure`.
    """
    row = average_sites(table, SIGNAL_METRICS, "signal")
    return {name: value for name, value in row.items() if name not in ("n", "n_clusters")}


def average_sites(table: pd.DataFrame, metrics: Sequence[str], tap: str = "dense") -> dict[str, Any]:
    """Average metrics over a network's sites, image by image, silent maps left out.

    Args:
        table: from `measure`.
        metrics: which.
        tap: of which maps.

    Returns:
        Means with intervals, n and n_clusters; n = 0 alone where nothing was measured.
    """
    own = table[(table["tap"] == tap) & table["metric"].isin([*metrics, "power"])]
    wide = own.pivot(index=["image", "cluster", "site"], columns="metric", values="value")
    if wide.empty or not (wide["power"] > 0).any():
        return {"n": 0}
    loud = wide[wide["power"] > 0].groupby(["image", "cluster"], sort=False)[list(metrics)].mean()
    clusters = loud.index.get_level_values("cluster")
    row: dict[str, Any] = {}
    for metric in metrics:
        unknown = loud[metric].isna()  # no channel of any site varies
        row |= bound_summary(metric, stats.summarize(loud[metric], unknown, clusters, *RANGES[metric]))
    return {**row, **in_decibels(row), "n": len(loud), "n_clusters": clusters.nunique()}


def in_decibels(row: Mapping[str, float]) -> dict[str, float]:
    """Write the means and bounds of ratios of powers in dB, where there are any."""
    return {
        f"{name_decibels(metric)}{end}": to_decibels(row[f"{metric}{end}"])
        for metric in POWER_RATIOS for end in BOUNDS if f"{metric}{end}" in row
    }  # fmt: skip


def _bound_found(name: str, found: stats.Share) -> dict[str, float]:
    return bound(name, found.share, found.ci_low, found.ci_high)
