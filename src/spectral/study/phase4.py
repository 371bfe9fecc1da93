"""Phase 4, shift correlation: does an image's AVR at a layer predict how unstable its prediction is?

Pearson, Spearman and distance correlation with intervals at every layer and tap, and regressions on all
layers together, scored on images that the fit hasn't seen.

Example: python experiments/phase4_shift_correlation.py --limit 200 --out results
"""

from __future__ import annotations

from itertools import product

import pandas as pd
from tqdm import tqdm

from spectral import stats
from spectral.study.common import TAPS, Study
from spectral.study.phase3 import add_holm, significance

RESAMPLES = 300
MIN_REGRESSION_GROUPS = 10


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    if not study.has_table("per_image"):  # phase 3 wrote it; alone, this one does
        study.write_table("per_image", study.per_image)
    study.write_table("phase4_correlation", correlate_layers(study))
    scores, importances = regress_layers(study)
    study.write_table("phase4_regression", scores)
    study.write_table("phase4_regression_importance", importances)
    study.draw("fig10_avr_sis_scatter", "fig11_correlation_comparison", "fig12_sis_distributions")


def correlate_layers(study: Study) -> pd.DataFrame:
    """Dependence of SIS on AVR per family, layer and tap; p corrected over the layers of a family and tap."""
    blocks = list(study.per_image.groupby(["family", "tap", "layer_index"], sort=False))
    photographs = _photographs(study)
    rows = []
    for _, block in tqdm(blocks, desc="correlating", unit="layer", disable=not study.options.progress):
        block = block[~block["silent"]]
        if block.empty:
            continue
        groups = [photographs[image] for image in block["image"]] if photographs else None
        found = stats.correlate(block["avr"], block["sis"], groups, RESAMPLES, study.options.seed)
        first = block.iloc[0]
        facts = {key: first[key] for key in
                 ("model", "family", "site", "layer", "layer_index", "op", "stride", "tap")}  # fmt: skip
        rows.append({
            **facts, "n": found.n, "n_groups": found.n_groups, "pearson": found.pearson_r,
            "pearson_low": found.pearson_low, "pearson_high": found.pearson_high,
            "pearson_p": found.pearson_p, "r2": found.r2, "spearman": found.spearman_rho,
            "spearman_low": found.spearman_low, "spearman_high": found.spearman_high,
            "spearman_p": found.spearman_p, "distance_correlation": found.distance_corrected,
            "distance_correlation_low": found.distance_corrected_low,
            "distance_correlation_high": found.distance_corrected_high,
            "distance_correlation_p": found.distance_p,
            "distance_correlation_plain": found.distance_correlation, "reason": found.reason,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    for name in ("pearson_p", "spearman_p", "distance_correlation_p"):
        add_holm(table, name, by=["family", "tap"])
    table["significance"] = [significance(p) for p in table["pearson_p_holm"]]
    return table


def regress_layers(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Out-of-fold R² of SIS from all layers' AVR, per family and tap, and each layer's importance."""
    photographs = _photographs(study)
    scores, importances = [], []
    for family, tap in product(study.families, TAPS):
        chosen = (study.per_image["family"] == family) & (study.per_image["tap"] == tap)
        wide = study.per_image[chosen].pivot(index="image", columns="layer", values="avr")
        sis = study.per_image[chosen].drop_duplicates("image").set_index("image")["sis"].loc[wide.index]
        groups = [photographs[image] for image in wide.index] if photographs else None
        n_groups = len(set(groups)) if groups else len(wide)
        facts = {"model": study.names[family], "family": family, "tap": tap}
        if n_groups < MIN_REGRESSION_GROUPS or len(wide) < 2 * MIN_REGRESSION_GROUPS:
            reason = f"{len(wide)} images of {n_groups} pictures are too few for five folds"
            found = pd.DataFrame([{"estimator": "none", "reason": reason}])
        else:
            result = stats.regress_cross_validated(wide, sis, groups, seed=study.options.seed)
            found = result.scores.drop(columns=["n", "n_groups"], errors="ignore")
            importances.append(_label(result.importances, **facts))
        scores.append(_label(found, **facts).assign(n=len(wide), n_groups=n_groups))
    table = pd.concat(scores, ignore_index=True)
    columns = ["model", "family", "tap", "estimator", "measure", "layer", "mean", "std"]
    parts = pd.concat(importances, ignore_index=True) if importances else pd.DataFrame(columns=columns)
    return table, parts[columns]


def _label(table: pd.DataFrame, **facts: str) -> pd.DataFrame:
    """Put constant columns in front of a table."""
    return pd.concat([pd.DataFrame(facts, index=table.index), table], axis=1)


def _photographs(study: Study) -> dict[str, str]:
    groups = study.groups()
    return dict(zip(study.images(study.families[0]).ids, groups, strict=True)) if groups else {}
