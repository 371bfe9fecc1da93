"""Phase 4, shift correlation: what predicts how unstable a prediction is, and what causes it?

SIS is mostly how certain a prediction is. So first: how much of SIS, and of the logit jitter, the logit
margin predicts on photographs that the fit hasn't seen, how much the AVR of all layers, and both. Then each
layer's rank correlation with the two, as it is and with the margin held fixed. The answer to "why" are
causes, not correlations: the instability budget of decimation, nonlinearities and borders, and site by site
what a low-pass takes off. Beside it what the study reports: Pearson, Spearman and distance
correlation of AVR and SIS at every layer and tap, and regressions on all layers together. And on fewer
images: whether each site's output moves with the image, and how a prediction changes along a diagonal.

Example: python experiments/phase4_shift_correlation.py --limit 200 --out results
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from spectral import stats
from spectral.analysis import summarize_attribution, summarize_equivariance
from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.columns import add_holm, bound
from spectral.schema import SIGNAL_METRICS, with_bounds
from spectral.stability import (
    attribute_instability,
    measure_diagonal,
    measure_equivariance,
    summarize_stability,
)
from spectral.study.common import TAPS, Study

RESAMPLES = 2000  # p can then survive the correction over all that the table shows
MIN_REGRESSION_CLUSTERS = 20  # four for each of five folds
STABILITY_IMAGES = 128  # of equivariance and attribution, which run every network many times
DIAGONAL_IMAGES = 4
BUDGET_IMAGES = 32  # of the budget, which takes some eighty passes of each
RESPONSES = ("sis", "logit_jitter")
GIVEN = "logit_margin"
STILL = 1e-12  # an instability below it is rounding, and has no logarithm worth fitting
PREDICTORS = {"logit margin": (True, False), "AVR of all layers": (False, True), "both": (True, True)}
IMAGE_COLUMNS = [
    "model", "family", "image", "cluster", "sis", "sis_circular", "logit_jitter", "comb_contrast",
    "confidence", "margin", "logit_margin",
]  # fmt: skip
CONFIDENCE_COLUMNS = [
    "model", "family", "tap", "response", "predictors", "estimator", *with_bounds("r2"), "r2_std_repeats",
    "folds", "repeats", "n", "n_clusters", "n_silent", "silent_layers", "reason",
]  # fmt: skip
PARTIAL_COLUMNS = [
    "model", "family", "site", "layer", "layer_index", "op", "stride", "tap", "predictor", "response", "n",
    "n_clusters", *with_bounds("spearman", "spearman_given_margin"), "p", "reason",
]  # fmt: skip


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    if not study.has_table("per_image"):  # phase 3 wrote it; alone, this one does
        study.write_table("per_image", study.per_image)
    study.write_table("phase4_images", list_images(study))
    study.write_table("phase4_confidence", regress_confidence(study))
    study.write_table("phase4_partial", correlate_given_margin(study))
    study.write_table("phase4_correlation", correlate_layers(study))
    study.write_table("phase4_stability", summarize_families(study))
    scores, importances = regress_layers(study)
    study.write_table("phase4_regression", scores)
    study.write_table("phase4_regression_importance", importances)
    study.draw("fig10_avr_sis_scatter", "fig11_correlation_comparison", "fig12_sis_distributions")
    tables = {
        "fig20_equivariance": ("phase4_equivariance", compare_equivariance(study)),
        "fig21_attribution": ("phase4_attribution", attribute_families(study)),
        "fig22_diagonal_trace": ("phase4_diagonal_trace", trace_diagonals(study)),
        "fig31_causes": ("phase4_budget", find_causes(study)),
    }
    for stem, (name, table) in tables.items():
        study.write_table(name, table)
        if table["n"].gt(0).any():  # else the table has nothing but reasons
            study.draw(stem)


def list_images(study: Study) -> pd.DataFrame:
    """SIS, logit jitter and how certain the prediction is, a row per family and image."""
    frames = [
        table.assign(model=study.names[family], family=family) for family, table in study.stability.items()
    ]
    return pd.concat(frames, ignore_index=True)[IMAGE_COLUMNS]


def regress_confidence(study: Study) -> pd.DataFrame:
    """Out-of-fold R² of log SIS and log jitter from the logit margin, from AVR at the dense tap, from both.

    Linear, of logarithms, since both spread over orders of magnitude; of images of which no map is silent.
    """
    rows = []
    for family in study.families:
        own = study.per_image[(study.per_image["family"] == family) & (study.per_image["tap"] == "dense")]
        known = study.stability[family].set_index("image")
        layers, images, counts = select_loud(own[own["image"].isin(known.index)])
        known = known.loc[layers.index]
        columns = known[[GIVEN]].join(layers.add_prefix("avr "))
        for response, (name, (margin, avr)) in product(RESPONSES, PREDICTORS.items()):
            facts = {"model": study.names[family], "family": family, "tap": "dense",
                     "response": f"log {response}", "predictors": name}  # fmt: skip
            lacking = _find_obstacle(known[response], counts)
            if lacking:
                found = pd.DataFrame([{"estimator": "none", "reason": lacking}])
            else:
                found = stats.regress_cross_validated(
                    columns[([GIVEN] if margin else []) + (list(columns.columns[1:]) if avr else [])],
                    np.log(known[response].clip(lower=STILL)), images["cluster"],
                    seed=study.options.seed, estimators=["ridge"],
                ).scores.drop(columns=["n", "n_clusters", "n_layers"])  # fmt: skip
            rows.append(_label(found, **facts).assign(**counts))
    return pd.concat(rows, ignore_index=True).reindex(columns=CONFIDENCE_COLUMNS)


def correlate_given_margin(study: Study) -> pd.DataFrame:
    """Spearman's correlation of a layer's aliasing with SIS and with logit jitter, the margin held fixed.

    Of AVR at the dense tap and of the median channel's alias power ratio at the tap signal; of photographs'
    means. Beside it the correlation with the margin free. p is the former's, corrected over the whole table.
    """
    median = SIGNAL_METRICS[1]
    avr = study.per_image[~study.per_image["silent"] & (study.per_image["tap"] == "dense")]
    every = pd.concat([
        avr.assign(predictor="avr", aliasing=avr["avr"]),
        study.signal.assign(predictor=median, aliasing=study.signal[median], tap="signal"),
    ]).dropna(subset=["aliasing"])  # fmt: skip
    facts = ["model", "family", "site", "layer", "layer_index", "op", "stride", "tap", "predictor"]
    known = list_images(study)[["family", "image", *RESPONSES, GIVEN]]
    every = every[[*facts, "image", "cluster", "aliasing"]].merge(known, on=["family", "image"])
    blocks = list(every.groupby(facts, sort=False))
    rows = []
    for key, block in tqdm(blocks, desc="given the margin", unit="layer", disable=not study.options.progress):
        for response in RESPONSES:
            own = block.dropna(subset=[response])
            means = own.groupby("cluster", sort=False)[["aliasing", response, GIVEN]].mean()
            free, held = (
                stats.correlate_ranks(
                    means["aliasing"], means[response], given, RESAMPLES, study.options.seed
                )
                for given in ({}, {GIVEN: means[GIVEN]})
            )
            rows.append({
                **dict(zip(facts, key, strict=True)), "response": response, "n": len(own),
                "n_clusters": held.n, **bound("spearman", free.rho, free.ci_low, free.ci_high),
                **bound("spearman_given_margin", held.rho, held.ci_low, held.ci_high), "p": held.p,
                "reason": held.reason,
            })  # fmt: skip
    return add_holm(pd.DataFrame(rows, columns=PARTIAL_COLUMNS), "p")


def correlate_layers(study: Study) -> pd.DataFrame:
    """Dependence of SIS on AVR as the study reports it, per family, layer and tap; p corrected over all."""
    blocks = list(study.per_image.groupby(["family", "tap", "layer_index"], sort=False))
    rows = []
    for _, block in tqdm(blocks, desc="correlating", unit="layer", disable=not study.options.progress):
        block = block[~block["silent"]]
        if block.empty:
            continue
        found = stats.correlate(block["avr"], block["sis"], block["cluster"], RESAMPLES, study.options.seed)
        means = block.groupby("cluster", sort=False)[["avr", "sis", "confidence"]].mean()
        given = stats.correlate_ranks(
            means["avr"], means["sis"], {"confidence": means["confidence"]}, RESAMPLES, study.options.seed
        )
        first = block.iloc[0]
        facts = {key: first[key] for key in
                 ("model", "family", "site", "layer", "layer_index", "op", "stride", "tap")}  # fmt: skip
        rows.append({
            **facts, "n": found.n, "n_clusters": found.n_clusters, "pearson": found.pearson_r,
            "pearson_ci_low": found.pearson_ci_low, "pearson_ci_high": found.pearson_ci_high,
            "pearson_p": found.pearson_p, "r2": found.r2, "spearman": found.spearman_rho,
            "spearman_ci_low": found.spearman_ci_low, "spearman_ci_high": found.spearman_ci_high,
            "spearman_p": found.spearman_p, "distance_correlation": found.distance_corrected,
            "distance_correlation_ci_low": found.distance_corrected_ci_low,
            "distance_correlation_ci_high": found.distance_corrected_ci_high,
            "distance_correlation_p": found.distance_p,
            "distance_correlation_plain": found.distance_correlation,
            **bound("spearman_given_confidence", given.rho, given.ci_low, given.ci_high),
            "spearman_given_confidence_p": given.p, "reason": found.reason or given.reason,
        })  # fmt: skip
    tests = ("pearson_p", "spearman_p", "distance_correlation_p", "spearman_given_confidence_p")
    return add_holm(pd.DataFrame(rows), *tests)


def summarize_families(study: Study) -> pd.DataFrame:
    """SIS and what stands beside it, of each family: `summarize_stability`."""
    frames = [
        summarize_stability(table).drop(columns="model").assign(model=study.names[family], family=family)
        for family, table in study.stability.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    return table[["model", "family", *(c for c in table.columns if c not in ("model", "family"))]]


def regress_layers(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Out-of-fold R² of SIS from all layers' AVR, per family and tap, and each layer's importance.

    The AVR of a silent map is 0 by convention and says nothing: such images are left out (``n_silent``), and
    so are layers that are silent in every image (``silent_layers``).
    """
    scores, importances = [], []
    for family, tap in product(study.families, TAPS):
        own = study.per_image[(study.per_image["family"] == family) & (study.per_image["tap"] == tap)]
        layers, images, counts = select_loud(own)
        facts = {"model": study.names[family], "family": family, "tap": tap}
        lacking = _find_obstacle(images["sis"], counts)
        if lacking:
            found = pd.DataFrame([{"estimator": "none", "reason": lacking}])
        else:
            result = stats.regress_cross_validated(
                layers, images["sis"], images["cluster"], seed=study.options.seed
            )
            found = result.scores.drop(columns=["n", "n_clusters"])
            importances.append(_label(result.importances, **facts))
        scores.append(_label(found, **facts).assign(**counts))
    table = pd.concat(scores, ignore_index=True)
    columns = ["model", "family", "tap", "estimator", "measure", "layer", "mean", "std"]
    parts = pd.concat(importances, ignore_index=True) if importances else pd.DataFrame(columns=columns)
    return table, parts[columns]


def _find_obstacle(values: pd.Series, counts: Mapping[str, Any]) -> str:
    """Return why there is no regression of these values, if there is none."""
    if counts["n_clusters"] < MIN_REGRESSION_CLUSTERS:
        return f"{counts['n']} images of {counts['n_clusters']} pictures are too few for five folds"
    return (
        f"{values.isna().sum()} of {len(values)} images have no {values.name}" if values.isna().any() else ""
    )


def select_loud(per_image: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Take the images of one network and tap of which no map is silent.

    Args:
        per_image: image, cluster, layer, avr, sis and silent.

    Returns:
        AVR, a row per image and a column per layer; sis and cluster of these images; how many images and
        clusters that is, how many images were left out, and which layers are silent throughout.

    Example:
        >>> rows = pd.DataFrame({"image": ["a", "b"], "cluster": ["a", "b"], "layer": "conv",
        ...                      "sis": [0.1, 0.2], "avr": [0.3, 0.0], "silent": [False, True]})
        >>> select_loud(rows)[2]
        {'n': 1, 'n_clusters': 1, 'n_silent': 1, 'silent_layers': ''}
    """
    avr = per_image.assign(avr=per_image["avr"].mask(per_image["silent"].astype(bool)))
    wide = avr.pivot(index="image", columns="layer", values="avr")
    dead = [str(layer) for layer in wide if wide[layer].isna().all()]
    known = wide.drop(columns=dead).dropna()
    images = per_image.drop_duplicates("image").set_index("image").loc[known.index, ["sis", "cluster"]]
    counts = {"n": len(known), "n_clusters": images["cluster"].nunique(), "n_silent": len(wide) - len(known)}
    return known, images, {**counts, "silent_layers": ", ".join(dead)}


def compare_equivariance(study: Study) -> pd.DataFrame:
    """PSNR of each family's sites for shifts by one pixel and by half a pixel."""
    return _describe_families(study, measure_equivariance, summarize_equivariance)


def attribute_families(study: Study) -> pd.DataFrame:
    """ΔSIS of each family with one site at a time replaced by an ideal low-pass, and with all of them."""
    return _describe_families(study, attribute_instability, summarize_attribution)


def _describe_families(
    study: Study, measure: Callable[..., pd.DataFrame], summarize: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    """Measure each family's network on the first images, and summarise it."""
    options = study.options
    frames = []
    for family in study.families:
        images = study.images(family).take(STABILITY_IMAGES)
        found = measure(
            study.models[family], images, batch_size=options.batch_size, progress=options.progress
        )
        frames.append(_place(study, family, summarize(found)))
    return pd.concat(frames, ignore_index=True)


def find_causes(study: Study) -> pd.DataFrame:
    """Shares of each family's instability by cause; what each site of it does is `attribute_families`'s."""
    options = study.options
    frames = []
    for family in study.families:
        found = measure_instability_budget(
            study.models[family], study.images(family).take(BUDGET_IMAGES),
            seed=options.seed, batch_size=options.batch_size, progress=options.progress,
        )  # fmt: skip
        summary = summarize_instability_budget(found).drop(columns="model")
        frames.append(_label(summary, model=study.names[family], family=family))
    return pd.concat(frames, ignore_index=True)


def trace_diagonals(study: Study) -> pd.DataFrame:
    """Prediction and confidence of the first images along a diagonal: a row per family, image and offset."""
    frames = []
    for family in study.families:
        images = study.images(family).take(DIAGONAL_IMAGES)
        found = measure_diagonal(study.models[family], images, batch_size=study.options.batch_size)
        frames.append(_label(found, model=study.names[family], family=family).assign(n=len(images)))
    return pd.concat(frames, ignore_index=True)


def _place(study: Study, family: str, summary: pd.DataFrame) -> pd.DataFrame:
    """Put model, family and like layer in front; a site that can't be measured is like none but itself."""
    places: Mapping[str, tuple[int, str]] = {
        site: place for (owner, site), place in study.layers.items() if owner == family
    }
    found = [places.get(site, (len(study.layers), site)) for site in summary["site"]]
    facts: dict[str, Any] = {"model": study.names[family], "family": family}
    facts |= {"layer": [label for _, label in found], "layer_index": [index for index, _ in found]}
    labels = pd.DataFrame(facts, index=summary.index)
    return pd.concat([labels, summary], axis=1)


def _label(table: pd.DataFrame, **facts: str) -> pd.DataFrame:
    """Put constant columns in front of a table."""
    return pd.concat([pd.DataFrame(facts, index=table.index), table], axis=1)
