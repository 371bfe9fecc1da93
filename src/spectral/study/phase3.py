"""Phase 3, natural images: AVR layer by layer on many photographs, families compared image by image.

At the input tap (the study's) and at the dense tap, which is what the decimation sees: a blur pool's input
looks worse than a strided convolution's, and its dense map doesn't. Paired tests, Holm-corrected over
all that the table shows.

Example: python experiments/phase3_natural_images.py --limit 200 --out results
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pandas as pd

from spectral import stats
from spectral.columns import add_holm, bound_summary, compare_columns
from spectral.study.common import TAPS, Study
from spectral.table import pool_ratio

PROFILE_IMAGES = 128


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    study.write_table("per_image", study.per_image)
    study.write_table("phase3_layerwise_avr_stats", compare_families(study))
    study.write_table("fig9_radial_profiles_natural", profile_reference(study))
    study.draw("fig7_layerwise_mean_avr", "fig8_avr_distributions", "fig9_radial_profiles_natural")


def compare_families(study: Study) -> pd.DataFrame:
    """Paired comparison of AVR for each pair of families at each layer and tap."""
    table = study.per_image
    rows = []
    for (tap, index, layer), block in table.groupby(["tap", "layer_index", "layer"], sort=True):
        present = [family for family in study.families if family in set(block["family"])]
        for a, b in combinations(present, 2):
            first, second = (block[block["family"] == family].set_index("image") for family in (a, b))
            facts = {"layer": layer, "layer_index": index, "tap": tap, "stride": first["stride"].iloc[0]}
            rows.append({**facts, **_compare(first, second)})
    return add_holm(pd.DataFrame(rows), "p", "wilcoxon_p")


def profile_reference(study: Study) -> pd.DataFrame:
    """Radial profiles of the strided network: one image, and mean and 10–90 % range over many."""
    family = study.families[0]
    images = study.images(family)
    frames = []
    for tap in TAPS:
        parts = [
            study.measure_profiles(family, study.prepare(family, batch), tap).assign(start=chosen[0])
            for chosen, batch in images.take(PROFILE_IMAGES).batches(study.options.batch_size)
        ]
        frames.append(pd.concat(parts))
    profiles = pd.concat(frames, ignore_index=True)
    profiles["image_index"] += profiles.pop("start")
    keys = [c for c in profiles.columns if c not in ("image_index", "power")]
    grouped = profiles.groupby(keys, sort=False)["power"]
    spread = grouped.agg(power_mean="mean", power_p10=lambda p: p.quantile(0.1),
                         power_p90=lambda p: p.quantile(0.9), n_images="count").reset_index()  # fmt: skip
    single = profiles[profiles["image_index"] == 0].drop(columns="image_index")
    return single.merge(spread, on=keys)


def _compare(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for side, block in (("a", first), ("b", second)):
        summary = stats.summarize(block["avr"], block["silent"], block["cluster"], 0.0, 1.0)
        row |= {f"{key}_{side}": block[key].iloc[0] for key in ("family", "model", "site", "op")}
        row |= bound_summary(f"mean_{side}", summary)
        pooled = pool_ratio(block["avr"], block["power"], block["cluster"])
        row |= {f"std_{side}": summary.std, f"avr_pooled_{side}": pooled}
        row[f"n_silent_{side}"] = summary.n_silent
    return row | compare_columns(
        first["avr"], second["avr"], first["silent"], second["silent"], first["cluster"]
    )
