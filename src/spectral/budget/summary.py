"""Means of the instability budget over photographs, and each part's share of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.budget.schema import COLUMNS, METRICS, TOTAL, UNEXPLAINED
from spectral.causes import SOURCES
from spectral.table.arguments import check_table
from spectral.table.display import NOTHING, Card, write_share
from spectral.table.schema import fill_words

SUMMARY = [
    "model", "metric", "source", "site", "n", "n_clusters", "value", "share", "share_ci_low", "share_ci_high",
    "error", "first_in", "last_out", "agreement", "reason",
]  # fmt: skip

NO_SPREAD = (
    "images have no spread in what the network says, or none with some sources ideal, beyond rounding: what "
    "is relative to it isn't known"
)
NO_INTERVAL = "no intervals of its shares: its mean may be 0, so few photographs are these or so unlike"
LONE = "no intervals of its shares, which need two photographs"
ROUNDING = "no more than what rounding gives, which has no causes: no shares"


def summarize_instability_budget(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise `measure_instability_budget`: a row per metric, source and place.

    Shares are of means (a share of an image that hardly moves says nothing), each photograph counting once.
    Sampling's error is that of the images' values taken together, as if all erred alike.

    Args:
        table: of one model or of several, whose names differ.

    Returns:
        Columns model, metric, source, site, n, n_clusters, value (mean), share (of the total's mean) with its
        95 % interval, error (of the share, by sampling), first_in and last_out (as shares), agreement (how
        often the prediction stays the same with this source alone made ideal; for ``unexplained``, with all
        of them; a table from a file doesn't have it), reason (why there is no share, or no interval of it;
        without a metric, why that place can't be made ideal).

    Raises:
        SpectralError: if it is no table of `measure_instability_budget`, or has an image of one model twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from spectral.budget import measure_instability_budget
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_instability_budget(net, torch.rand(4, 3, 16, 16), progress=False)
        >>> summary = summarize_instability_budget(table)
        >>> parts = summary[(summary["metric"] == "sis") & (summary["source"] != "total")]
        >>> round(float(parts["share"].sum()), 9)
        1.0
    """
    place = ["metric", "source", "site"]
    table = check_table(table, "summarize_instability_budget", "measure_instability_budget", COLUMNS, place)
    table = table.assign(**{name: fill_words(table[name]) for name in (*place, "reason")})  # as from a file
    agreement = _read_agreement(table)
    rows: list[dict[Any, Any]] = []
    measured = table[table["metric"].isin(METRICS)]
    for (model, metric), block in measured.groupby(["model", "metric"], sort=False):
        total = block[block["source"] == TOTAL].set_index("image")
        for (source, site), own in block.groupby(["source", "site"], sort=False):
            row = {"model": model, "metric": metric, "source": source, "site": site}
            part = _summarize(own.set_index("image").loc[total.index], total)
            rows.append(row | part | {"agreement": np.nan if site else agreement.get(str(source), np.nan)})
    left = table[table["reason"] != ""]
    rows += left[["model", "source", "site", "reason"]].to_dict("records")
    found = pd.DataFrame(rows, columns=SUMMARY).fillna({"metric": "", "reason": ""})
    found.attrs["output"] = table.attrs.get("output", "")
    return found


def describe_budget(table: pd.DataFrame) -> Card | None:
    """Say what `measure_instability_budget` found: each source's share, and what can't be made ideal."""
    if not set(COLUMNS) <= set(table.columns) or "coalitions" not in table.attrs:
        return None
    return describe_shares(summarize_instability_budget(table))


def describe_shares(summary: pd.DataFrame) -> Card:
    """Say what a summary of the budget holds.

    Args:
        summary: from `summarize_instability_budget`.
    """
    measured, left = summary[summary["metric"] != ""], summary[summary["metric"] == ""]
    header = ["source", "place", "metric", "share", "95 % interval", "first", "last", "agree"]
    cells = [
        [
            str(row["source"]), str(row["site"]), str(row["metric"]), _percent(row["share"]),
            _interval(row["share_ci_low"], row["share_ci_high"]),
            _percent(row["first_in"]), _percent(row["last_out"]), _percent(row["agreement"]),
        ]
        for row in measured.to_dict("records") if row["source"] != TOTAL
    ]  # fmt: skip
    totals = measured[measured["source"] == TOTAL].to_dict("records")
    means = ", ".join(f"{row['metric']} {row['value']:.3g}" for row in totals)
    lead = f"instability of {', '.join(dict.fromkeys(measured['model']))}: mean {means}"
    if totals:
        lead += f"; n = {totals[0]['n']:.0f} images of {totals[0]['n_clusters']:.0f} clusters (photographs)"
    reasons = [f"can't be made ideal: {row['site']} ({row['source']}): {row['reason']}"
               for row in left.to_dict("records")]  # fmt: skip
    unknown = measured[measured["reason"] != ""].drop_duplicates(["model", "metric", "reason"])
    notes = [f"{row['metric']}: {row['reason']}" for row in unknown.to_dict("records")]
    output = summary.attrs.get("output") or "logits"
    if output != "logits":
        notes.insert(0, f"logit_jitter is the jitter of its {output}: its logits aren't known; tell where "
                          f"they are with logits=")  # fmt: skip
    return Card([lead], [header, *cells], [*notes, *reasons], fixed=3)


def _interval(low: float, high: float) -> str:
    return NOTHING if low != low or high != high else f"{_percent(low)} to {_percent(high)}"


def _percent(value: object) -> str:
    share = float(value)  # type: ignore[arg-type]
    return NOTHING if share != share else write_share(share)


def _summarize(own: pd.DataFrame, total: pd.DataFrame) -> dict[str, Any]:
    clusters = total["cluster"].to_numpy()
    whole, value = (frame["value"].to_numpy(float) for frame in (total, own))
    row: dict[str, Any] = {"n": len(own), "n_clusters": len(set(clusters)), "reason": ""}
    row |= {"value": average(value, clusters), "share": np.nan}
    if np.isnan(whole).any() or np.isnan(value).any():
        return row | {"reason": NO_SPREAD}
    if total["share"].isna().all():  # no image moves it by more than rounding does
        return row | {"reason": ROUNDING}
    mean = average(whole, clusters)
    row |= {name: average(own[name].to_numpy(float), clusters) / mean
            for name in ("error", "first_in", "last_out")}  # fmt: skip
    if row["n_clusters"] < 2:
        return row | {"share": row["value"] / mean, "reason": LONE}
    change = stats.relative_change(whole, whole - value, clusters)
    return row | {
        "reason": NO_INTERVAL if change.reason else "",
        "share": 0.0 - change.percent / 100, "share_ci_low": 0.0 - change.ci_high / 100,  # and never −0
        "share_ci_high": 0.0 - change.ci_low / 100,
    }  # fmt: skip


def average(values: Any, clusters: Any) -> float:
    """Mean of the clusters' means.

    Example:
        >>> average([1.0, 3.0, 5.0], ["a", "a", "b"])
        3.5
    """
    return float(pd.Series(values).groupby(clusters).mean().mean())


def _read_agreement(table: pd.DataFrame) -> dict[str, float]:
    """Return how often predictions stay, of single sources and of all of them."""
    records = table.attrs.get("coalitions", ())
    known: dict[str, float | None] = {record["ideal"]: record["agreement"] for record in records}
    found = {TOTAL: known.get(""), **{str(s): known[s] for s in SOURCES if s in known}}
    found[UNEXPLAINED] = list(known.values())[-1] if known else None
    return {source: np.nan if value is None else value for source, value in found.items()}
