"""Phase 5, intervention: what does anti-aliasing buy, and what does it cost?

SIS, accuracy where images have labels, agreement with the strided network, and latency measured interleaved
after a warm-up; then the families' radial profiles side by side.

Example: python experiments/phase5_intervention.py --limit 200 --out results
"""

from __future__ import annotations

import pandas as pd

from spectral.analysis import average_profiles, weigh_models
from spectral.study.declaration import Phase, Table
from spectral.study.families import Study
from spectral.study.phase3 import PROFILE_IMAGES


def weigh_families(study: Study) -> pd.DataFrame:
    """One row per family: stability, accuracy, agreement, latency and size."""
    names = study.names
    table = weigh_models(
        {names[family]: model for family, model in study.models.items()},
        {names[family]: study.images(family) for family in study.families},
        {names[family]: measured for family, measured in study.measurements.items()},
        {names[family]: beside for family, beside in study.stability.items()},
    )
    table.insert(1, "family", list(study.families))
    return table


def overlay_profiles(study: Study) -> pd.DataFrame:
    """Mean radial profile of the dense maps of many images, per family and layer."""
    return study.measure_each(
        lambda family, *_: average_profiles(study.profile_images(family, PROFILE_IMAGES, "dense"))
    )


PHASE = Phase(
    "intervention",
    Study,
    (
        Table("phase5_tradeoff", weigh_families, figures=("fig13_avr_intervention", "fig14_tradeoff"),
              seconds=9),
        Table("fig15_radial_overlay", overlay_profiles, figures=("fig15_radial_overlay",)),
    ),
)  # fmt: skip
