"""Phase 3, natural images: AVR layer by layer on many photographs, families compared image by image.

At the input tap (the study's) and at the dense tap, which is what the decimation sees: a blur pool's input
looks worse than a strided convolution's, and its dense map doesn't. Paired tests, Holm-corrected over layers.

Example: python experiments/phase3_natural_images.py --limit 200 --out results
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from spectral import stats
from spectral.study.common import TAPS, Study

SIGNIFICANCE = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
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
    groups = dict(zip(study.images(study.families[0]).ids, study.groups() or [], strict=False))
    rows = []
    for (tap, index, layer), block in table.groupby(["tap", "layer_index", "layer"], sort=True):
        present = [family for family in study.families if family in set(block["family"])]
        for a, b in combinations(present, 2):
            first, second = (block[block["family"] == family].set_index("image") for family in (a, b))
            facts = {"layer": layer, "layer_index": index, "tap": tap, "stride": first["stride"].iloc[0]}
            rows.append({**facts, **_compare(first, second, groups)})
    result = pd.DataFrame(rows)
    # one family of hypotheses per tap and pair of networks: its layers
    for column in ("p", "wilcoxon_p"):
        add_holm(result, column, by=["tap", "family_a", "family_b"])
    result["significance"] = [significance(p) for p in result["p_holm"]]
    return result


def add_holm(table: pd.DataFrame, column: str, by: Sequence[str] = ()) -> None:
    """Insert ``<column>_holm`` behind a column of p-values, corrected within each group of rows."""
    p = table[column]
    adjusted = table.groupby(list(by))[column].transform(stats.holm) if by else stats.holm(p)
    table.insert(list(table.columns).index(column) + 1, f"{column}_holm", adjusted)


def significance(p: float) -> str:
    """Stars for an adjusted p-value.

    Example:
        >>> significance(0.0001), significance(0.2)
        ('***', '')
    """
    return next((stars for limit, stars in SIGNIFICANCE if p < limit), "")


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


def _compare(first: pd.DataFrame, second: pd.DataFrame, groups: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for side, block in (("a", first), ("b", second)):
        labels = [groups[image] for image in block.index] if groups else None
        summary = stats.summarize(block["avr"], silent=block["silent"].to_numpy(), groups=labels)
        total = float(block["power"].sum())
        pooled = float((block["avr"] * block["power"]).sum()) / total if total else 0.0
        row |= {f"{key}_{side}": block[key].iloc[0] for key in ("family", "model", "site", "op")}
        row |= {f"mean_{side}": summary.mean, f"std_{side}": summary.std, f"ci_low_{side}": summary.ci_low,
                f"ci_high_{side}": summary.ci_high, f"avr_pooled_{side}": pooled,
                f"n_silent_{side}": summary.n_silent}  # fmt: skip
    silent = set(first.index[first["silent"]]) | set(second.index[second["silent"]])
    both = [image for image in first.index.intersection(second.index) if image not in silent]
    labels = [groups[image] for image in both] if groups else None
    if len(both) < 2 or (labels is not None and len(set(labels)) < 2):
        blank = dict.fromkeys(("mean_difference", "t", "df", "p", "wilcoxon_p", "effect_size"), np.nan)
        return {**row, "n": len(both), "unit": "image", "n_units": len(both), **blank}
    result = stats.compare_paired(first.loc[both, "avr"], second.loc[both, "avr"], labels)
    grouped = result.n_groups is not None
    return {
        **row,
        "n": result.n,
        "unit": "photograph" if grouped else "image",
        "n_units": result.n_groups if grouped else result.n,
        "mean_difference": result.mean_difference,
        "t": result.t_groups if grouped else result.t,
        "df": (result.n_groups or result.n) - 1,
        "p": result.p_groups if grouped else result.p_t,
        "wilcoxon_p": result.p_wilcoxon,
        "effect_size": result.d_z,
    }
