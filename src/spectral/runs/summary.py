"""What measurements say in summary: a row per model, site, tap and metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.table.csv_files import PROVENANCE, write_csvs
from spectral.table.display import INTERVALS, NOTHING, Card, format_mean
from spectral.table.lazy import LazyTable
from spectral.table.rows import read_frame
from spectral.table.schema import MEASUREMENT, NOT_AVERAGED, POWER_RATIOS, RANGES, SUMMARY, to_decibels
from spectral.table.wide import Columns, Place, split_frame, split_tables

SUMMARY_COLUMNS = list(SUMMARY)
SUMMARY_FILE, SITES_TABLE = "summary.csv", "sites.csv"
COLUMNS_SHOWN = "one for each image and number; a pandas table, with .attrs['sites'] and .attrs['provenance']"
_ESTIMATES = ("n", "n_clusters", "n_silent", "mean", "std", "ci_low", "ci_high", "median", "top_tenth")


def summarize_measurements(table: pd.DataFrame) -> pd.DataFrame:
    """One row per model, site, tap and metric: the mean with its 95 % interval, and what it rests on.

    The mean is that of the clusters' means, each photograph counting once however many crops it has, and
    ``std`` is the spread of these; interval and mean are one estimator. Silent maps are counted
    (``n_silent``) and left out, and so are images on which the site didn't run, or whose rows somebody took
    out (``n_absent``).
    ``avr_pooled`` is the AVR of pooled power. What could not be measured has a row with the reason.

    A large table that `spectral.measure` or `spectral.read` returned is summarised from its folder, without
    having all rows in memory.

    Args:
        table: rows of `spectral.measure`, of one run or of several joined by ``pandas.concat``; fresh, or
            from a CSV or Parquet file.

    Returns:
        Columns as `spectral.table.schema.SUMMARY` names them.

    Raises:
        SpectralError: for a table without these columns, or with two values of one metric for one image.

    Example:
        >>> from spectral.table.rows import Key, Origin, make_rows, to_frame
        >>> net = Origin("net", "sha256:0", "tensor@0")
        >>> rows = make_rows(net, ["a", "b"], ["a", "b"], [Key("sis")], np.array([[0.1], [0.3]]))
        >>> summarize_measurements(to_frame([rows]))[["metric", "n", "mean"]].values.tolist()
        [['sis', 2, 0.2]]
    """
    if isinstance(table, LazyTable) and table.waits:
        columns = split_tables(table.tables(), table.images)
    else:
        columns = split_frame(read_frame(table, "summarize_measurements"))
    rows = [*_summarize(columns)]
    none = dict.fromkeys(("n", "n_clusters", "n_silent", "n_absent"), 0)
    rows += [
        {**facts, "metric": metric, "reason": reason, **none} for facts, metric, reason in columns.unmeasured
    ]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def write_summary(
    summary: pd.DataFrame, table: pd.DataFrame, folder: Path, facts: Mapping[str, Any]
) -> list[Path]:
    """Write what a run comes to: its summary, its sites, and both their digests beside its provenance.

    Args:
        summary: of the table, as `summarize_measurements` gives it.
        table: as `spectral.measure` gives it, with its ``attrs``.
        folder: where to.
        facts: what else is to be told of the run.

    Raises:
        SpectralError: if it can't be written.
    """
    tables = {folder / SUMMARY_FILE: summary, folder / SITES_TABLE: pd.DataFrame(table.attrs["sites"])}
    return write_csvs(tables, {**table.attrs["provenance"], **facts}, folder / PROVENANCE)


def describe_measurement(table: pd.DataFrame) -> Card | None:
    """Say what `spectral.measure` found: the network, the images, means with half their 95 % intervals.

    Args:
        table: of one run; of another there is nothing to say. One whose rows nobody has read yet is told by
            what stands beside them.
    """
    run, sites = table.attrs.get("provenance"), table.attrs.get("sites")
    waits = isinstance(table, LazyTable) and table.waits
    if run is None or sites is None or not (waits or set(MEASUREMENT) <= set(table.columns)):
        return None
    measured = sum(bool(site["measurable"]) for site in sites)
    what = f"{run['model']}, weights {run['weights']}: {measured} of {len(sites)} sites measured, images of"
    lead = f"{what} {run['images']}"
    if waits:
        return Card([lead, "spectral.summarize_measurements(table) has means and intervals of all rows"])
    own = describe_summary(summarize_measurements(table))
    return replace(own, above=[lead, *own.above], below=[*own.below, f"{len(table)} rows: {COLUMNS_SHOWN}"])


def describe_summary(summary: pd.DataFrame, metrics: Sequence[str] | None = None) -> Card:
    """Say what a summary of measurements holds: means with half their intervals, and what has none.

    Args:
        summary: from `summarize_measurements`.
        metrics: at sites, in this order; all that are there by default.
    """
    measured = summary[summary["reason"] == ""]
    at_sites, whole = measured[measured["site"] != ""], measured[measured["site"] == ""]
    there = list(dict.fromkeys(at_sites["metric"]))
    shown = there if metrics is None else [metric for metric in metrics if metric in there]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    counts: dict[str, Counter[tuple[str, ...]]] = {"silent": Counter(), "didn't run": Counter()}
    for row in at_sites.to_dict("records"):
        place = tuple(str(row[key]) for key in ("site", "op", "stride", "tap"))
        rows.setdefault(place, {})[row["metric"]] = _write_mean(row)
        for name, column in zip(counts, ("n_silent", "n_absent"), strict=True):
            counts[name][place] = max(counts[name][place], row[column])
    extra = [name for name, count in counts.items() if any(count.values())]
    header = ["site", "op", "stride", "tap", *extra]
    cells = [
        [*place, *(str(counts[name][place]) for name in extra), *(own.get(m, NOTHING) for m in shown)]
        for place, own in rows.items()
    ]
    every = measured[["n", "n_silent", "n_absent"]].sum(axis=1)
    n, clusters = (int(column.max()) if len(measured) else 0 for column in (every, measured["n_clusters"]))
    of = f" of {clusters} clusters (photographs), each counting once" if clusters < n else ""
    below = [f"whole model: {row['metric']} {_write_mean(row)}" for row in whole.to_dict("records")]
    for row in summary[summary["reason"] != ""].to_dict("records"):
        what = f"{row['site']} ({row['op']})" if row["site"] else row["metric"]
        below.append(f"not measured: {what}: {row['reason']}")
    table = [[*header, *shown], *cells] if cells else []
    return Card([f"mean over {n} image{'' if n == 1 else 's'}{of} {INTERVALS}"], table, below, len(header))


def _write_mean(row: Mapping[Hashable, Any]) -> str:
    return format_mean(row["mean"], row["ci_low"], row["ci_high"]) if row["n"] else "silent"


def pool_ratio(ratio: pd.Series, power: pd.Series, clusters: pd.Series) -> float:
    """Return the ratio of pooled powers, in which each cluster counts as one image; 0 where all is silent.

    Args:
        ratio: of each image.
        power: that it is a share of.
        clusters: what each image was cut from.
    """
    means = pd.DataFrame({"above": ratio * power, "power": power}).groupby(clusters).mean().sum()
    return float(means["above"] / means["power"]) if means["power"] > 0 else 0.0


def _summarize(columns: Columns) -> Iterator[dict[str, Any]]:
    for place in columns.places:
        yield from _summarize_place(place)


def _summarize_place(place: Place) -> Iterator[dict[str, Any]]:
    """Give a row per metric of one site and tap, or of the whole model."""
    power = place.column("power") if "power" in place.metrics else None
    for metric in sorted({*place.metrics} - {*NOT_AVERAGED}):
        values = place.column(metric)
        there = place.rows(metric) & ~np.isnan(values if power is None else power)
        own, clusters = values[there], place.clusters[there]
        silent = np.isnan(own) if power is None else np.isnan(own) | (power[there] <= 0)
        found = stats.summarize(own, silent, clusters, *RANGES.get(metric, (-math.inf, math.inf)))
        row = {**place.facts, "metric": metric, "n_absent": len(values) - len(own), "reason": ""}
        row |= {name: getattr(found, name) for name in _ESTIMATES}
        if metric in POWER_RATIOS:
            ends = {"db": found.mean, "db_ci_low": found.ci_low, "db_ci_high": found.ci_high}
            row |= {name: to_decibels(ratio) for name, ratio in ends.items()}
        if metric == "avr" and power is not None:
            row["avr_pooled"] = pool_ratio(*map(pd.Series, (own, power[there], clusters)))
        yield row
