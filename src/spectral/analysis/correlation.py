"""What goes with instability, image by image: the confidence of a prediction, and aliasing at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from spectral import stats
from spectral.analysis.layout import read_images, read_sites, require_same_images
from spectral.analysis.spectra import TAPS
from spectral.arguments.values import as_list
from spectral.errors import SpectralError
from spectral.stats.columns import add_holm, bound
from spectral.table.schema import SIGNAL_METRICS, with_bounds

SITES = ("image", "cluster", "model", "family", "layer", "tap", "avr", "silent")
RESAMPLES = 2000  # p can then survive the correction over all that the table shows
MIN_REGRESSION_CLUSTERS = 20  # four for each of five folds
RESPONSES = ("sis", "logit_jitter")
GIVEN = "logit_margin"
STILL = 1e-12  # an instability below it is rounding, and has no logarithm worth fitting
PREDICTORS = {"logit margin": (True, False), "AVR of all layers": (False, True), "both": (True, True)}
CONFIDENCE_COLUMNS = [
    "model", "family", "tap", "response", "predictors", "estimator", *with_bounds("r2"), "r2_std_repeats",
    "folds", "repeats", "n", "n_clusters", "n_silent", "silent_layers", "reason",
]  # fmt: skip
PARTIAL_COLUMNS = [
    "model", "family", "site", "layer", "layer_index", "op", "stride", "tap", "predictor", "response", "n",
    "n_clusters", *with_bounds("spearman", "spearman_given_margin"), "p", "reason",
]  # fmt: skip


def regress_confidence(per_image: pd.DataFrame, stability: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Out-of-fold R² of log SIS and log jitter from the logit margin, from AVR at the dense tap, from both.

    Linear, of logarithms, since both spread over orders of magnitude; of images of which no map is silent.

    Args:
        per_image: from `spectral.measure`, of one or several networks; or a row per image, family, layer and
            tap: image, cluster, model, family, layer, tap, avr, sis and silent.
        stability: from `spectral.measure_stability` of the same networks and images; or a row per image and
            family: image, family, sis, logit_jitter and logit_margin.
        seed: of the folds.
    """
    per_image = read_sites(per_image, (*SITES, "sis"), "regress_confidence")
    stability = read_images(stability, ("image", "family", *RESPONSES, GIVEN), "regress_confidence")
    rows = []
    for family, known in stability.groupby("family", sort=False):
        own = per_image[(per_image["family"] == family) & (per_image["tap"] == "dense")]
        if own.empty:
            raise SpectralError(
                f"regress_confidence: per_image has no rows of {family!r} at the tap dense, stability has"
            )
        known = known.set_index("image")
        require_same_images(own["image"], known.index, "regress_confidence", ("per_image", "stability"))
        layers, images, counts = select_loud(own[own["image"].isin(known.index)])
        known = known.loc[layers.index]
        columns = known[[GIVEN]].join(layers.add_prefix("avr "))
        for response, (name, (margin, avr)) in product(RESPONSES, PREDICTORS.items()):
            facts = {"model": own["model"].iloc[0], "family": family, "tap": "dense",
                     "response": f"log {response}", "predictors": name}  # fmt: skip
            lacking = _find_obstacle(known[response], counts)
            if lacking:
                found = pd.DataFrame([{"estimator": "none", "reason": lacking}])
            else:
                found = stats.regress_cross_validated(
                    columns[([GIVEN] if margin else []) + (list(columns.columns[1:]) if avr else [])],
                    np.log(known[response].clip(lower=STILL)), images["cluster"],
                    seed=seed, estimators=["ridge"],
                ).scores.drop(columns=["n", "n_clusters", "n_layers"])  # fmt: skip
            rows.append(label_rows(found, **facts).assign(**counts))
    return pd.concat(rows, ignore_index=True).reindex(columns=CONFIDENCE_COLUMNS)


def correlate_given_margin(
    per_image: pd.DataFrame,
    signal: pd.DataFrame,
    stability: pd.DataFrame,
    *,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Spearman's correlation of a layer's aliasing with SIS and with logit jitter, the margin held fixed.

    Of AVR at the dense tap and of the median channel's alias power ratio at the tap signal; of photographs'
    means. Beside it the correlation with the margin free. p is the former's, corrected over the whole table.

    Args:
        per_image: as for `regress_confidence`, with the columns that name a site.
        signal: the same at the tap signal, with the metrics there; or what `spectral.measure` gave, again.
        stability: as for `regress_confidence`.
        seed: of the resampling.
        progress: show a bar.
    """
    median = SIGNAL_METRICS[1]
    names = ("site", "layer_index", "op", "stride")
    per_image = read_sites(per_image, (*SITES, *names), "correlate_given_margin")
    places = ("image", "cluster", "model", "family", "layer", *names, median)
    signal = read_sites(signal, places, "correlate_given_margin", ("signal",))
    stability = read_images(stability, ("image", "family", *RESPONSES, GIVEN), "correlate_given_margin")
    avr = per_image[~per_image["silent"] & (per_image["tap"] == "dense")]
    every = pd.concat([
        avr.assign(predictor="avr", aliasing=avr["avr"]),
        signal.assign(predictor=median, aliasing=signal[median], tap="signal"),
    ]).dropna(subset=["aliasing"])  # fmt: skip
    facts = ["model", "family", "site", "layer", "layer_index", "op", "stride", "tap", "predictor"]
    known = stability[["family", "image", *RESPONSES, GIVEN]]
    require_same_images(every["image"], known["image"], "correlate_given_margin", ("per_image", "stability"))
    every = every[[*facts, "image", "cluster", "aliasing"]].merge(known, on=["family", "image"])
    blocks = list(every.groupby(facts, sort=False))
    rows = []
    for key, block in tqdm(blocks, desc="given the margin", unit="layer", disable=not progress):
        for response in RESPONSES:
            own = block.dropna(subset=[response])
            means = own.groupby("cluster", sort=False)[["aliasing", response, GIVEN]].mean()
            free, held = (
                stats.correlate_ranks(means["aliasing"], means[response], given, RESAMPLES, seed)
                for given in ({}, {GIVEN: means[GIVEN]})
            )
            rows.append({
                **dict(zip(facts, key, strict=True)), "response": response, "n": len(own),
                "n_clusters": held.n, **bound("spearman", free.rho, free.ci_low, free.ci_high),
                **bound("spearman_given_margin", held.rho, held.ci_low, held.ci_high), "p": held.p,
                "reason": held.reason,
            })  # fmt: skip
    return add_holm(pd.DataFrame(rows, columns=PARTIAL_COLUMNS), "p")


def correlate_layers(per_image: pd.DataFrame, *, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Dependence of SIS on AVR as the study reports it, per family, layer and tap; p corrected over all.

    Args:
        per_image: from `spectral.measure`, of one or several networks; or a row per image, family, layer and
            tap, with avr, sis, confidence and silent.
        seed: of the resampling.
        progress: show a bar.
    """
    needed = (*SITES, "site", "layer_index", "op", "stride", "sis", "confidence")
    per_image = read_sites(per_image, needed, "correlate_layers")
    blocks = list(per_image.groupby(["family", "tap", "layer_index"], sort=False))
    rows = []
    for _, block in tqdm(blocks, desc="correlating", unit="layer", disable=not progress):
        block = block[~block["silent"]]
        if block.empty:
            continue
        found = stats.correlate(block["avr"], block["sis"], block["cluster"], RESAMPLES, seed)
        means = block.groupby("cluster", sort=False)[["avr", "sis", "confidence"]].mean()
        given = stats.correlate_ranks(
            means["avr"], means["sis"], {"confidence": means["confidence"]}, RESAMPLES, seed
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


def regress_layers(
    per_image: pd.DataFrame, families: str | Sequence[str] | None = None, *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Out-of-fold R² of SIS from all layers' AVR, per family and tap, and each layer's importance.

    The AVR of a silent map is 0 by convention and says nothing: such images are left out (``n_silent``), and
    so are layers that are silent in every image (``silent_layers``).

    Args:
        per_image: from `spectral.measure`, of one or several networks; or a row per image, family, layer and
            tap, with avr, sis and silent.
        families: their order; by default the table's.
        seed: of the folds.
    """
    per_image = read_sites(per_image, (*SITES, "sis"), "regress_layers")
    scores, importances = [], []
    order = list(dict.fromkeys(per_image["family"])) if families is None else as_list(families)
    for family, tap in product(order, TAPS):
        own = per_image[(per_image["family"] == family) & (per_image["tap"] == tap)]
        if own.empty:
            continue  # that tap wasn't measured
        layers, images, counts = select_loud(own)
        facts = {"model": own["model"].iloc[0], "family": family, "tap": tap}
        lacking = _find_obstacle(images["sis"], counts)
        if lacking:
            found = pd.DataFrame([{"estimator": "none", "reason": lacking}])
        else:
            result = stats.regress_cross_validated(layers, images["sis"], images["cluster"], seed=seed)
            found = result.scores.drop(columns=["n", "n_clusters"])
            importances.append(label_rows(result.importances, **facts))
        scores.append(label_rows(found, **facts).assign(**counts))
    if not scores:
        raise SpectralError(f"regress_layers: no family is measured at one of the taps {', '.join(TAPS)}")
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


def label_rows(table: pd.DataFrame, **facts: str) -> pd.DataFrame:
    """Put constant columns in front of a table.

    Example:
        >>> label_rows(pd.DataFrame({"n": [1, 2]}), model="net").values.tolist()
        [['net', 1], ['net', 2]]
    """
    return pd.concat([pd.DataFrame(facts, index=table.index), table], axis=1)
