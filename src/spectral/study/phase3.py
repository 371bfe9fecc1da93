"""Phase 3, natural images: AVR layer by layer on many photographs, families compared image by image.

At the input tap (the study's) and at the dense tap, which is what the decimation sees: a blur pool's input
looks worse than a strided convolution's, and its dense map doesn't. Paired tests, Holm-corrected over
all that the table shows. Then at the tap signal, where two networks' maps are alike wherever their norms,
activations and pools stand: AVR per axis without the mean, and the alias power ratio channel by channel.

Example: python experiments/phase3_natural_images.py --limit 200 --out results
"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.columns import add_holm, bound_summary, compare_columns
from spectral.schema import POWER_RATIOS, RANGES, SIGNAL_METRICS, to_decibels
from spectral.study.common import TAPS, Study
from spectral.summary import pool_ratio

PROFILE_IMAGES = 128
NOISE = SIGNAL_METRICS[-1]
COMPARED = SIGNAL_METRICS[:-1]


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    study.write_table("per_image", study.per_image)
    study.write_table("phase3_layerwise_avr_stats", compare_families(study))
    study.write_table("phase3_signal", compare_signals(study))
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


def compare_signals(study: Study) -> pd.DataFrame:
    """Paired comparison of each family with the first at the tap ``signal``, of each metric at each layer.

    Ratios of powers are compared in dB, image by image; ``white_noise`` is that of noise on the lattice.
    """
    table, first = study.signal, study.families[0]
    rows = []
    for (index, layer), block in table.groupby(["layer_index", "layer"], sort=True):
        own = {family: part.set_index("image") for family, part in block.groupby("family", sort=False)}
        for metric, family in product(COMPARED, study.families):
            if family not in own:
                continue
            facts = {"layer": layer, "layer_index": index, "metric": metric, "model": study.names[family],
                     "family": family, "site": own[family]["site"].iloc[0]}  # fmt: skip
            rows.append({**facts, **_describe_signal(own[family], own.get(first), metric, family == first)})
    return add_holm(pd.DataFrame(rows), "p", "wilcoxon_p")


def _describe_signal(
    own: pd.DataFrame, base: pd.DataFrame | None, metric: str, is_first: bool
) -> dict[str, Any]:
    in_decibels = metric in POWER_RATIOS
    sides = [own] if base is None else [own, base]
    values = [
        side[metric].map(to_decibels, na_action="ignore") if in_decibels else side[metric] for side in sides
    ]
    silent = [(side["power"] <= 0) | side[metric].isna() for side in sides]
    limits = () if in_decibels else RANGES[metric]
    summary = stats.summarize(values[0], silent[0], own["cluster"], *limits)
    row = {"unit": "dB" if in_decibels else "share", "n": summary.n, "n_clusters": summary.n_clusters,
           "n_silent": summary.n_silent, **bound_summary("mean", summary), "median": summary.median,
           "white_noise": to_decibels(own[NOISE].iloc[0]) if in_decibels else np.nan}  # fmt: skip
    if base is None or is_first:
        return row
    found = compare_columns(values[0], values[1], silent[0], silent[1], own["cluster"])
    return row | {name: value for name, value in found.items() if name not in ("n", "n_clusters")}


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
