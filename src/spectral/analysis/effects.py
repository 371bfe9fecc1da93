"""What moves with the image and what is to blame, site by site: means with intervals and tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.stats.columns import add_holm, bound, bound_flags, bound_summary
from spectral.table.arguments import check_table
from spectral.table.schema import fill_words, with_bounds

EQUIVARIANCE_COLUMNS = [
    "site", "op", "stride", "total_stride", "kind", "shifts", "n", "n_flat", "n_clusters", "psnr_db",
    "psnr_db_ci_low", "psnr_db_ci_high", "psnr_db_median", "mse_ratio", *with_bounds("relative_error"),
    "reason",
]  # fmt: skip
ATTRIBUTION_COLUMNS = [
    "site", "op", "method", "n", "n_clusters", "sis_original", "sis", *with_bounds("delta_sis"), "t", "df",
    "p", "p_holm", "significance", "effect_size", "block", *with_bounds("delta_sis_block"), "block_p",
    "block_p_holm", *with_bounds("delta_sis_last_out"), "last_out_p", "last_out_p_holm",
    *with_bounds("agreement"), "block_agreement", "last_out_agreement", "n_agreeing",
    *with_bounds("delta_sis_agreeing"), "n_labelled", "accuracy_original", "accuracy",
    *with_bounds("accuracy_change"), "reason",
]  # fmt: skip
COUNTS = ("shifts", "n", "n_flat", "n_clusters", "df", "n_labelled", "n_agreeing")
WORDS = ("site", "op", "stride", "total_stride", "kind", "method", "block", "reason")
AGREEING = 0.8  # share of predictions that must stay for an effect on SIS to be one on this network
TESTS = ("p", "block_p", "last_out_p")
ALTERED = {  # effect → its p, whether a prediction stays, the share of those that do, and whose they are
    "delta_sis": ("p", "agree", "agreement", ""),
    "delta_sis_block": ("block_p", "agree_block", "block_agreement", " in its block"),
    "delta_sis_last_out": ("last_out_p", "agree_last_out", "last_out_agreement", " with all others altered"),
}
FEW = 2  # what a test needs
MOVED = [
    "model", "image", "cluster", "site", "op", "stride", "total_stride", "kind", "row", "column", "mse_ratio",
    "relative_error",
]  # fmt: skip
CHANGED = [
    "model", "image", "cluster", "site", "op", "method", "block", "sis_original", "sis", "delta_sis",
    "delta_sis_block", "delta_sis_last_out", "agree", "agree_block", "agree_last_out", "label", "correct",
    "correct_original",
]  # fmt: skip


def summarize_equivariance(table: pd.DataFrame) -> pd.DataFrame:
    """One row per site and kind of shift: PSNR of the mean error, with its interval.

    An image's error is the mean of ``mse_ratio`` over its shifts of one kind; ``psnr_db`` is that of
    the mean over clusters, in which an exact image counts as an error of 0; ``psnr_db_median`` is the
    clusters' median. Flat maps are counted and left out.

    Args:
        table: from `measure_equivariance`, of one model; sites that couldn't be measured are known from its
            ``attrs`` alone, which a table from a file lacks.

    Raises:
        SpectralError: for a table of another kind, or of several models.
    """
    place = ["site", "row", "column"]
    table = check_table(table, "summarize_equivariance", "measure_equivariance", MOVED, place, alone=True)
    rows: list[dict[str, Any]] = []
    for _, block in table.groupby(["site", "kind"], sort=False):
        first = block.iloc[0]
        facts = {key: first[key] for key in ("site", "op", "stride", "total_stride", "kind")}
        shifts = len(block[["row", "column"]].drop_duplicates())
        errors = ["mse_ratio", "relative_error"]
        images = block.groupby(["image", "cluster"], sort=False)[errors].mean().reset_index("cluster")
        loud = images[images["mse_ratio"].notna()]
        rows.append({**facts, "shifts": shifts, "n": len(loud), "n_flat": len(images) - len(loud),
                     **_describe_errors(loud)})  # fmt: skip
    rows += [
        {"site": record["name"], "op": record["op"], "stride": record["stride"], "n": 0,
         "reason": record["reason"]}
        for record in table.attrs.get("sites", ()) if record["reason"]
    ]  # fmt: skip
    return _finish(rows, EQUIVARIANCE_COLUMNS)


def summarize_attribution(table: pd.DataFrame) -> pd.DataFrame:
    """One row per site, altered or not: its three effects with their tests, agreement and change of accuracy.

    Holm's correction is over all tests of all rows. Where fewer than 80 % of the predictions stay, the
    altered network is another one, and no test of it says anything about this one: the effect has its mean,
    no p, and the reason; the block's and the last out's have an agreement of their own, that of all networks
    they are between. ``delta_sis_agreeing`` is ΔSIS on the images whose prediction stays.

    Args:
        table: from `attribute_instability`, of one model; sites that couldn't be altered are known from its
            ``attrs`` alone, which a table from a file lacks.

    Raises:
        SpectralError: for a table of another kind, or of several models.
    """
    table = check_table(
        table, "summarize_attribution", "attribute_instability", CHANGED, ["site"], alone=True
    )
    rows = [
        {**{key: block[key].iloc[0] for key in ("site", "op", "method", "block")},
         **_test_variant(block)}
        for _, block in table.groupby("site", sort=False)
    ]  # fmt: skip
    rows += [
        {"site": record["name"], "op": record["op"], "n": 0, "reason": record["reason"]}
        for record in table.attrs.get("sites", ()) if not record["replaced"]
    ]  # fmt: skip
    corrected = {*(f"{name}_holm" for name in TESTS), "significance"}
    found = _finish(rows, [column for column in ATTRIBUTION_COLUMNS if column not in corrected])
    return add_holm(found, *TESTS)[ATTRIBUTION_COLUMNS]


def _describe_errors(loud: pd.DataFrame) -> dict[str, Any]:
    if loud.empty:
        return {"n_clusters": 0}
    clusters = loud["cluster"]
    found = stats.summarize(loud["mse_ratio"], clusters=clusters, low=0.0)
    with np.errstate(divide="ignore"):  # +∞ where all maps are equal
        median = float(np.median(-10 * np.log10(loud.groupby("cluster")["mse_ratio"].mean())))
        psnr, low, high = -10 * np.log10([found.mean, found.ci_high, found.ci_low])
    relative = stats.summarize(loud["relative_error"], clusters=clusters, low=0.0)
    return {
        "n_clusters": found.n_clusters, **bound("psnr_db", psnr, low, high), "psnr_db_median": median,
        "mse_ratio": found.mean, **bound_summary("relative_error", relative),
    }  # fmt: skip


def _test_variant(block: pd.DataFrame) -> dict[str, Any]:
    clusters, staying = block["cluster"], block[block["agree"].astype(bool)]
    row = {
        "n": len(block), "n_clusters": clusters.nunique(), "n_agreeing": len(staying),
        **bound_flags("agreement", block["agree"], clusters),
        **_weigh_accuracy(block[block["label"].notna()]),
        **{name: stats.summarize(block[name], None, clusters).mean for name in ("sis_original", "sis")},
    }  # fmt: skip
    if len(staying):
        found = stats.summarize(staying["delta_sis"], None, staying["cluster"])
        row |= bound_summary("delta_sis_agreeing", found)
    enough = row["n_clusters"] >= FEW
    reasons = [] if enough else [f"a test needs {FEW} clusters (photographs)"]
    for name, (p, agree, share, where) in ALTERED.items():
        if block[name].isna().any():
            continue
        row |= bound_summary(name, stats.summarize(block[name], None, clusters))
        row[share] = stats.summarize_share(block[agree].astype(float), clusters).share
        if enough and row[share] < AGREEING:
            reasons.append(
                f"only {row[share]:.0%} of the predictions stay{where}: the altered network is another"
            )
        elif enough:
            test = stats.compare_paired(block[name], np.zeros(len(block)), clusters)
            row[p] = test.p
            if p == TESTS[0]:
                row |= {"t": test.t, "df": test.df, "effect_size": test.effect_size}
    return row | {"reason": "; ".join(reasons)}


def _weigh_accuracy(labelled: pd.DataFrame) -> dict[str, Any]:
    if labelled.empty:
        return {"n_labelled": 0}
    before, after, clusters = labelled["correct_original"], labelled["correct"], labelled["cluster"]
    shares = [stats.summarize_share(flags, clusters).share for flags in (before, after)]
    change, low, high = shares[1] - shares[0], math.nan, math.nan
    if clusters.nunique() >= FEW:
        found = stats.compare_shares(after, before, clusters)
        low, high = found.ci_low, found.ci_high
    return {
        "n_labelled": len(labelled), "accuracy_original": shares[0], "accuracy": shares[1],
        **bound("accuracy_change", change, low, high),
    }  # fmt: skip


def _finish(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A table in which counts stay whole numbers and missing words are empty."""
    table = pd.DataFrame(rows, columns=columns)
    for column in columns:
        if column in COUNTS:
            table[column] = table[column].astype("Int64")
        elif column in WORDS:
            table[column] = fill_words(table[column]).map(str)  # a file's site 0 is a number
        else:
            table[column] = table[column].astype(float)
    return table
