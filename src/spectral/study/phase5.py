"""Phase 5, intervention: what does anti-aliasing buy, and what does it cost?

SIS, accuracy where images have labels, agreement with the strided network, and latency measured interleaved
after a warm-up; then the families' radial profiles side by side.

Example: python experiments/phase5_intervention.py --limit 200 --out results
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from spectral import stats
from spectral.classes import match_labels, match_models
from spectral.columns import FEWEST_CLUSTERS, add_holm, bound, bound_flags, bound_summary
from spectral.latency import count_macs, measure_latency
from spectral.schema import RANGES
from spectral.study.common import Study
from spectral.study.phase3 import PROFILE_IMAGES, compare_families
from spectral.table import widen

LATENCY_BATCH = 16


def run(study: Study) -> None:
    """Write the phase's tables and figures."""
    if not study.has_table("phase3_layerwise_avr_stats"):  # alone: what the summary of AVR is drawn from
        study.write_table("phase3_layerwise_avr_stats", compare_families(study))
    study.write_table("phase5_tradeoff", weigh_families(study))
    study.write_table("fig15_radial_overlay", overlay_profiles(study))
    study.draw("fig13_avr_intervention", "fig14_tradeoff", "fig15_radial_overlay")


def weigh_families(study: Study) -> pd.DataFrame:
    """One row per family: stability, accuracy, agreement, latency and size."""
    whole = {family: widen(table) for family, table in study.measurements.items()}
    reference = study.families[0]
    latencies = _time(study)
    rows = []
    for family in study.families:
        sis, base = whole[family]["sis"], whole[reference]["sis"]
        clusters = whole[family]["cluster"]
        summary = stats.summarize(sis, None, clusters, *RANGES["sis"])
        row: dict[str, Any] = {
            "model": study.names[family], "family": family, "n": summary.n,
            "n_clusters": summary.n_clusters, **bound_summary("sis", summary), "sis_median": summary.median,
            "sis_top_tenth": summary.top_tenth, **_describe_stability(study.stability[family]),
        }  # fmt: skip
        if family != reference and summary.n_clusters >= FEWEST_CLUSTERS:
            change = stats.relative_change(base, sis, clusters)
            row |= bound("sis_change_percent", change.percent, change.ci_low, change.ci_high)
            row["sis_p"] = stats.compare_paired(base, sis, clusters).p
        if family != reference:
            matching = match_models(study.models[reference], study.models[family])
            same = whole[reference]["prediction"].map(matching.index) == whole[family]["prediction"]
            row |= bound_flags("agreement", same if matching.index else same[:0], clusters)
        row |= _accuracy(study, family, whole[family])
        rows.append({**row, **latencies[family]})
    table = pd.DataFrame(rows)
    if "sis_p" in table:
        table = add_holm(table, "sis_p")
    table["latency_ratio"] = table["latency_ms"] / table["latency_ms"].iloc[0]
    return table


def overlay_profiles(study: Study) -> pd.DataFrame:
    """Mean radial profile of the dense maps of many images, per family and layer."""
    frames = []
    for family in study.families:
        images = study.images(family).take(PROFILE_IMAGES)
        parts = [
            study.measure_profiles(family, study.prepare(family, batch), "dense")
            for _, batch in images.batches(study.options.batch_size)
        ]
        profiles = pd.concat(parts, ignore_index=True).drop(columns="image_index")
        keys = [column for column in profiles.columns if column != "power"]
        grouped = profiles.groupby(keys, sort=False)["power"]
        frames.append(grouped.agg(power="mean", n_images="count").reset_index())
    return pd.concat(frames, ignore_index=True)


def _describe_stability(table: pd.DataFrame) -> dict[str, Any]:
    """What stands beside SIS, on fewer images: SIS with circular borders, logit jitter, comb contrast."""
    row: dict[str, Any] = {"n_stability": len(table)}
    for name in ("sis_circular", "logit_jitter", "comb_contrast"):
        known = table[name].notna()
        if known.any():
            low, high = RANGES.get(name, (-np.inf, np.inf))
            found = stats.summarize(table[name][known], None, table["cluster"][known], low, high)
            row |= {**bound_summary(name, found), f"{name}_median": found.median}
    return row


def _accuracy(study: Study, family: str, whole: pd.DataFrame) -> dict[str, Any]:
    """Accuracy on images with a label that counts the network's classes, and why others have none."""
    reason = match_labels(study.models[family], study.images(family)).reason
    known = whole[whole["label"].notna()] if "label" in whole else whole.iloc[:0]
    right = known["prediction"] == known.get("label", known["prediction"])
    share = bound_flags("accuracy", right, known["cluster"])
    return {**share, "n_labelled": len(known), "accuracy_reason": reason}


def _time(study: Study) -> dict[str, dict[str, Any]]:
    inputs = {
        family: torch.zeros(LATENCY_BATCH, 3, *study.info(family).preprocessing.size,
                            device=study.options.device)
        for family in study.families
    }  # fmt: skip
    models = {family: study.models[family] for family in study.families}
    times = measure_latency(models, inputs)
    result = {}
    for family, seconds in times.items():
        per_image = np.array(seconds) * 1000 / LATENCY_BATCH
        low, middle, high = np.quantile(per_image, [0.25, 0.5, 0.75])
        result[family] = {
            "latency_ms": middle, "latency_q25": low, "latency_q75": high, "latency_runs": len(seconds),
            "batch_size": LATENCY_BATCH, "device": _device_name(study.options.device),
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in models[family].parameters()),
            "macs": count_macs(models[family], inputs[family][:1]),
        }  # fmt: skip
    return result


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
