"""A network's stability in a few rows: means, medians, who carries the mean, and what confidence explains."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from spectral import stats
from spectral.table.arguments import check_table
from spectral.table.schema import RANGES, fill_words

MEASURES = ("sis", "sis_circular", "logit_jitter", "comb_contrast", "changed")
NEEDED = [
    "model", "image", "cluster", "total_stride", "sis", "sis_circular", "logit_jitter", "comb_contrast",
    "confidence", "n_shifts", "n_changed",
]  # fmt: skip
COLUMNS = [
    "model", "total_stride", "metric", "n", "n_clusters", "mean", "std", "ci_low", "ci_high", "median",
    "top_tenth", "confidence_rho", "confidence_rho_ci_low", "confidence_rho_ci_high", "reason",
]  # fmt: skip


def summarize_stability(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise `measure_stability`: a row per model and quantity.

    Mean, interval, median and the top tenth's share are all of the clusters' means, each photograph one
    value. SIS is skewed: its mean is carried by few images, which ``top_tenth`` tells (0.1 where all are
    alike), and mostly by those of low confidence, which ``confidence_rho`` tells.

    Args:
        table: of one model or of several, whose names differ; fresh or from a file.

    Returns:
        Columns model, total_stride, metric (sis, sis_circular, logit_jitter, comb_contrast, changed: the
        share of one-pixel shifts that change the prediction), n, n_clusters, mean, std, ci_low, ci_high,
        median, top_tenth (share of the sum that the tenth of the clusters with the largest values has; NaN
        where values may be negative), confidence_rho (Spearman's correlation with the confidence) and its
        interval, reason (where there is no value).

    Raises:
        SpectralError: if it is no table of `measure_stability`, or has an image of one model twice.

    Example:
        >>> own = {"model": "net", "image": ["a", "b"], "cluster": ["a", "b"], "total_stride": "4x4"}
        >>> own |= {"sis": [0.1, 0.3], "sis_circular": 0.1, "logit_jitter": 0.2, "n_shifts": 4}
        >>> own |= {"n_changed": [0, 2], "confidence": [0.9, 0.5]}
        >>> own |= {"comb_contrast": float("nan"), "comb_contrast_reason": "comb=False"}
        >>> found = summarize_stability(pd.DataFrame(own)).set_index("metric")
        >>> float(found.loc["sis", "mean"]), float(found.loc["changed", "median"])
        (0.2, 0.25)
        >>> found.loc["comb_contrast", "reason"]
        'comb=False'
    """
    # Why a model has no value of one kind stands beside it, and is needed where that is so.
    reasons = [f"{name}_reason" for name in MEASURES[:-1] if name in table and _is_lacking(table, name)]
    table = check_table(table, "summarize_stability", "measure_stability", [*NEEDED, *reasons])
    rows = [
        _summarize(str(model), metric, block)
        for model, block in table.groupby("model", sort=False)
        for metric in MEASURES
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_lacking(table: pd.DataFrame, name: str) -> bool:
    return "model" in table and not table.groupby("model")[name].count().all()


def _summarize(model: str, metric: str, block: pd.DataFrame) -> dict[str, Any]:
    values = block["n_changed"] / block["n_shifts"] if metric == "changed" else block[metric]
    known = values.notna()
    stride = fill_words(block["total_stride"]).iloc[0]
    row: dict[str, Any] = {"model": model, "total_stride": stride, "metric": metric, "n": 0,
                           "n_clusters": 0, "reason": ""}  # fmt: skip
    if not known.any():
        return row | {"reason": fill_words(block[f"{metric}_reason"]).iloc[0]}
    clusters = block["cluster"][known]
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    found = stats.summarize(values[known], None, clusters, low, high)
    row |= {name: value for name, value in asdict(found).items() if name in COLUMNS}
    if metric == "changed" and found.mean in (0.0, 1.0):
        # As many images that all agree don't prove that none differs: a share's interval, not a mean's.
        share = stats.summarize_share(values[known], clusters)
        row |= {"ci_low": share.ci_low, "ci_high": share.ci_high}
    relation = stats.correlate(values[known], block["confidence"][known], clusters, n_resamples=2)
    return row | {
        "confidence_rho": relation.spearman_rho,
        "confidence_rho_ci_low": relation.spearman_ci_low,
        "confidence_rho_ci_high": relation.spearman_ci_high,
    }
