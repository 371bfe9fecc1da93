"""What a network costs and what it gives: stability, accuracy, agreement, time and arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectral import stats
from spectral.classes import match_models
from spectral.data import ImageSet
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed
from spectral.latency import count_macs, measure_latency
from spectral.measurement import measure
from spectral.processes.ranks import shared
from spectral.stability import measure_stability
from spectral.stats.columns import FEWEST_CLUSTERS, add_holm, bound, bound_flags, bound_summary
from spectral.table.rows import widen
from spectral.table.schema import RANGES, fill_words

LATENCY_BATCH = 16


@shared
def weigh_models(
    models: Mapping[str, nn.Module],
    images: Mapping[str, ImageSet],
    measured: Mapping[str, pd.DataFrame] | None = None,
    stability: Mapping[str, pd.DataFrame] | None = None,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Stability, accuracy, agreement, latency and arithmetic of models, each against the first.

    Args:
        models: by name; the first is the reference.
        images: for each model, the same pictures in the same order.
        measured: what `spectral.measure` gave for each, with SIS; by default it is measured.
        stability: what `spectral.measure_stability` gave for each; by default it is measured.
        batch_size: images per forward pass.
        progress: show bars.

    Returns:
        A row per model: SIS with its interval and its change in percent, what stands beside SIS, agreement
        with the reference (agreement_reason: why there is none), accuracy where images have labels that count
        the model's classes, and milliseconds per image (timed interleaved), parameters and
        multiply–accumulate operations.

    Raises:
        SpectralError: if the models' images, or what was measured, aren't the same pictures in one order.

    Example:
        >>> import spectral
        >>> net = spectral.load_model("bundled/nula-w32")
        >>> pictures = spectral.load_images("synthetic", size=32, limit=3)
        >>> table = weigh_models({"a": net}, {"a": pictures}, progress=False)
        >>> table.loc[0, "n"].item(), table.loc[0, "latency_ratio"].item()
        (3, 1.0)
    """
    _require_same_images({name: images[name].ids for name in models}, "images")
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    if measured is None:
        measured = {name: measure(net, images[name], ("sis",), **how) for name, net in models.items()}
    if stability is None:
        stability = {name: measure_stability(net, images[name], **how) for name, net in models.items()}
    whole = {name: widen(measured[name]) for name in models}
    reference = next(iter(models))
    given = {"its images": images[reference].ids}
    _require_same_images(
        {**given, **{name: list(own.index) for name, own in whole.items()}}, "what was measured"
    )
    feeds = _make_feeds(models, images)
    costs = measure_costs(models, {name: images[name].size or (32, 32) for name in models})
    rows = []
    for name, model in models.items():
        sis, base, clusters = whole[name]["sis"], whole[reference]["sis"], whole[name]["cluster"]
        summary = stats.summarize(sis, None, clusters, *RANGES["sis"])
        row: dict[str, Any] = {
            "model": name, "n": summary.n, "n_clusters": summary.n_clusters, **bound_summary("sis", summary),
            "sis_median": summary.median, "sis_top_tenth": summary.top_tenth,
            **_describe_stability(stability[name]),
        }  # fmt: skip
        if name != reference and summary.n_clusters >= FEWEST_CLUSTERS:
            change = stats.relative_change(base, sis, clusters)
            row |= bound("sis_change_percent", change.percent, change.ci_low, change.ci_high)
            row["sis_p"] = stats.compare_paired(base, sis, clusters).p
        if name != reference:
            matching = match_models(
                models[reference], model, (feeds[reference].probe.width, feeds[name].probe.width)
            )
            same = whole[reference]["prediction"].map(matching.index) == whole[name]["prediction"]
            row |= bound_flags("agreement", same if matching.index else same[:0], clusters)
            if not matching.index:
                row["agreement_reason"] = matching.reason
        rows.append({**row, **_weigh_accuracy(feeds[name], whole[name]), **costs[name]})
    table = pd.DataFrame(rows)
    if "agreement_reason" in table:
        table["agreement_reason"] = fill_words(table["agreement_reason"])
    if "sis_p" in table:
        table = add_holm(table, "sis_p")
    table["latency_ratio"] = table["latency_ms"] / table["latency_ms"].iloc[0]
    return table


def measure_costs(
    models: Mapping[str, nn.Module], sizes: Mapping[str, tuple[int, ...]], batch: int = LATENCY_BATCH
) -> dict[str, dict[str, Any]]:
    """Time, arithmetic and parameters of models, timed in turns on one batch each.

    Args:
        models: by name.
        sizes: height and width of what each takes.
        batch: images at once.

    Returns:
        By name: median and quartiles of milliseconds per image, rounds, batch size, device, threads,
        parameters, and multiply–accumulate operations of one image.
    """
    devices = {
        name: next((p.device for p in m.parameters()), torch.device("cpu")) for name, m in models.items()
    }
    inputs = {name: torch.zeros(batch, 3, *sizes[name], device=devices[name]) for name in models}
    result = {}
    for name, seconds in measure_latency(models, inputs).items():
        per_image = np.array(seconds) * 1000 / batch
        low, middle, high = np.quantile(per_image, [0.25, 0.5, 0.75])
        result[name] = {
            "latency_ms": middle, "latency_q25": low, "latency_q75": high, "latency_runs": len(seconds),
            "batch_size": batch, "device": name_device(devices[name]), "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "macs": count_macs(models[name], inputs[name][:1]),
        }  # fmt: skip
    return result


def name_device(device: torch.device) -> str:
    """Return what tables call a device: the GPU's own name.

    Example:
        >>> name_device(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _require_same_images(ids: Mapping[str, Sequence[str]], what: str) -> None:
    """Refuse images that aren't the same ones in the same order: values are paired by their places."""
    (first, expected), *others = ((name, list(own)) for name, own in ids.items())
    for name, own in others:
        if own == expected:
            continue
        pairs = enumerate(zip(expected, own, strict=False))
        differ = next((f"{a!r} and {b!r} at place {i}" for i, (a, b) in pairs if a != b), None)
        raise SpectralError(
            f"weigh_models: {what} of {name} must be of the same pictures in the same order as {first}, got "
            f"{differ or f'{len(expected)} and {len(own)}'}; take the same images for each"
        )


def _make_feeds(models: Mapping[str, nn.Module], images: Mapping[str, ImageSet]) -> dict[str, Feed]:
    """Return each model's images on their way to it, which know its classes and its labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralWarning)  # of the images, which measure has said
        return {name: Feed(model, images[name], caller="weigh_models") for name, model in models.items()}


def _weigh_accuracy(feed: Feed, whole: pd.DataFrame) -> dict[str, Any]:
    """Accuracy on images with a label that counts the network's classes, and why others have none."""
    known = whole[whole["label"].notna()] if "label" in whole else whole.iloc[:0]
    right = known["prediction"] == known.get("label", known["prediction"])
    share = bound_flags("accuracy", right, known["cluster"])
    return {**share, "n_labelled": len(known), "accuracy_reason": feed.matching.reason}


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
