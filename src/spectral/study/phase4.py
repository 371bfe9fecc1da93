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
from typing import Any

import pandas as pd

from spectral.analysis import summarize_attribution, summarize_equivariance
from spectral.analysis.correlation import (
    correlate_given_margin,
    correlate_layers,
    label_rows,
    regress_confidence,
    regress_layers,
)
from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.stability import (
    attribute_instability,
    measure_diagonal,
    measure_equivariance,
    summarize_stability,
)
from spectral.study.declaration import Phase, Table
from spectral.study.families import Study

STABILITY_IMAGES = 128  # of equivariance and attribution, which run every network many times
DIAGONAL_IMAGES = 4
BUDGET_IMAGES = 32  # of the budget, which takes some eighty passes of each
IMAGE_COLUMNS = [
    "model", "family", "image", "cluster", "sis", "sis_circular", "logit_jitter", "comb_contrast",
    "confidence", "margin", "logit_margin",
]  # fmt: skip


def list_images(study: Study) -> pd.DataFrame:
    """SIS, logit jitter and how certain the prediction is, a row per family and image."""
    frames = [
        table.assign(model=study.names[family], family=family) for family, table in study.stability.items()
    ]
    return pd.concat(frames, ignore_index=True)[IMAGE_COLUMNS]


def summarize_families(study: Study) -> pd.DataFrame:
    """SIS and what stands beside it, of each family: `summarize_stability`."""
    frames = [
        label_rows(summarize_stability(table).drop(columns="model"), model=study.names[family], family=family)
        for family, table in study.stability.items()
    ]
    return pd.concat(frames, ignore_index=True)


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
        frames.append(label_rows(summary, model=study.names[family], family=family))
    return pd.concat(frames, ignore_index=True)


def trace_diagonals(study: Study) -> pd.DataFrame:
    """Prediction and confidence of the first images along a diagonal: a row per family, image and offset."""
    frames = []
    for family in study.families:
        images = study.images(family).take(DIAGONAL_IMAGES)
        found = measure_diagonal(
            study.models[family], images, batch_size=study.options.batch_size, progress=False
        )
        frames.append(label_rows(found, model=study.names[family], family=family).assign(n=len(images)))
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


def _how(study: Study) -> dict[str, Any]:
    return {"seed": study.options.seed, "progress": study.options.progress}


PHASE = Phase(
    "shift correlation",
    Study,
    (
        Table("phase4_images", list_images, seconds=15),
        Table("phase4_confidence",
              lambda study, layers, images: regress_confidence(layers, images, seed=study.options.seed),
              needs=("per_image", "phase4_images"), seconds=3),
        Table("phase4_partial",
              lambda study, layers, images: correlate_given_margin(
                  layers, study.signal, images, **_how(study)),
              needs=("per_image", "phase4_images"), seconds=10),
        Table("phase4_correlation", lambda study, layers: correlate_layers(layers, **_how(study)),
              needs=("per_image",), figures=("fig10_avr_sis_scatter", "fig11_correlation_comparison"),
              seconds=15),
        Table("phase4_stability", summarize_families, figures=("fig12_sis_distributions",)),
        Table("regressions",
              lambda study, layers: regress_layers(layers, study.families, seed=study.options.seed),
              needs=("per_image",), written=False, seconds=10),
        Table("phase4_regression", lambda study, both: both[0], needs=("regressions",)),
        Table("phase4_regression_importance", lambda study, both: both[1], needs=("regressions",)),
        Table("phase4_equivariance", compare_equivariance, figures=("fig20_equivariance",), seconds=10),
        Table("phase4_attribution", attribute_families, figures=("fig21_attribution",), seconds=15),
        Table("phase4_diagonal_trace", trace_diagonals, figures=("fig22_diagonal_trace",)),
        Table("phase4_budget", find_causes, figures=("fig31_causes",), seconds=40),
    ),
)  # fmt: skip
