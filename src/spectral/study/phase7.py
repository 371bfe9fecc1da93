"""Phase 7, layers: what does each anti-aliasing layer do to one strided network, and what does it cost?

The network as it is; with each layer in the place of its strides, untrained ("converted"); and tuned with it
("tuned", as far as those checkpoints are there). Aliases at the sites that each then has, SIS, consistency
under shifts, time, arithmetic and parameters. Accuracies are the checkpoints' own on their test images;
--data measures all networks on yours. The first of --models is the network to convert.

Example: python experiments/phase7_layers.py --limit 64 --out results
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from torch import nn

from spectral import stats
from spectral.analysis import name_device
from spectral.classes import match_labels
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.experiments.tuning import LAYER_METHODS, name_tuned
from spectral.latency import count_macs, measure_latency
from spectral.models import list_bundled, load_model
from spectral.perturb import measure_predictions
from spectral.runs.summary import summarize_measurements
from spectral.stats.columns import (
    SIGNAL_COLUMNS,
    bound_flags,
    bound_share,
    bound_summary,
    tabulate,
    tabulate_sites,
)
from spectral.study.declaration import Phase, Table, Units
from spectral.study.networks import Networks, describe_aliases, describe_images
from spectral.study.options import PRESETS, StudyOptions
from spectral.table.rows import widen
from spectral.table.schema import with_bounds

LIMITS = {"bundled": 256, "paper": 64}
METRICS = ("avr", "am_relative", "alias_power_ratio")  # as published, at the dense tap
PROTOCOLS = ("circular", "crop")
PAIRS = 2  # of views of each image
LATENCY_BATCH, LATENCY_ROUNDS = 16, 30
ACCURACY_BATCH = 500
TRAIN_COMMAND = "python experiments/train_layers.py --data cifar10 --out data/checkpoints"
ORIGINAL = "original"
MEANS = {metric: ("dense", metric) for metric in METRICS}
_FACTS = ["method", "state", "model", "weights"]
COLUMNS = [
    *_FACTS, "sites", "measurable", "n", "n_clusters",
    *SIGNAL_COLUMNS, *with_bounds(*METRICS, "alias_power_db", "sis", *PROTOCOLS),
    "n_both_right", *(f"{name}_both_right" for name in PROTOCOLS),
    *with_bounds("accuracy"), "accuracy_n", "accuracy_source",
    "latency_ratio", "latency_ratio_q25", "latency_ratio_q75", "latency_ms", "latency_batch", "device",
    "threads", "macs", "macs_ratio", "parameters", "aliasing_reason", "accuracy_reason",
]  # fmt: skip
SITE_COLUMNS = [
    *_FACTS, "site", "site_index", "op", "kernel", "stride", "input_size", "output_size", "channels", "n",
    "n_silent", *with_bounds(*METRICS, "alias_power_db"), "n_signal", *SIGNAL_COLUMNS, "signal", "reason",
]  # fmt: skip
COUNTS = ("sites", "measurable", "n", "n_silent", "n_signal", "n_clusters", "n_both_right", "accuracy_n",
          "site_index", "channels", "macs", "parameters", "threads", "latency_batch")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One network of the comparison.

    Attributes:
        method: its layer; original for none.
        state: original, converted (not trained since) or tuned.
        name: what `load_model` is asked for.
    """

    method: str
    state: str
    name: str


class Layers(Networks):
    """One network and its variants, on the same pictures.

    Args:
        options: what to run on; the first of its models is the network to convert.
    """

    folder = "phase7"

    def __init__(self, options: StudyOptions) -> None:
        self.base = (options.models or PRESETS[options.preset].models)[0]
        there = set(list_bundled()) if self.base.startswith("bundled/") else set()
        variants = [Variant(ORIGINAL, ORIGINAL, self.base)]
        self.missing = []
        for method in LAYER_METHODS:
            variants.append(Variant(method, "converted", f"{self.base}+{method}"))
            if name_tuned(self.base, method) in there:
                variants.append(Variant(method, "tuned", f"bundled/{name_tuned(self.base, method)}"))
            else:
                self.missing.append(method)
        self.variants = {variant.name: variant for variant in variants}
        super().__init__(options, self.variants)
        click.echo(f"layers in {self.base}, preset {options.preset}: {len(self.names)} networks")
        self.introduce()
        if self.missing:
            click.echo(f"  no tuned checkpoint of {', '.join(self.missing)}; {self.say_how()}")

    @classmethod
    def list_unread(cls, options: StudyOptions) -> dict[str, str]:
        """Of --models, all but the first."""
        others = (options.models or ())[1:]
        return {"models": f"{', '.join(others)} of --models is for other phases than 7"} if others else {}

    def say_how(self) -> str:
        """Say how missing checkpoints are made."""
        if self.base == PRESETS["bundled"].models[0]:
            return f"this makes them: {TRAIN_COMMAND}"
        return f"there are such of {PRESETS['bundled'].models[0]} alone"

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, at the network's own size."""
        options = self.options
        self.load(self.base)
        size = self.infos[self.base].preprocessing.size
        limit = options.limit or LIMITS[options.preset]
        return self.open_pictures(options.image_source, size, limit).keep_decoded()

    @cached_property
    def test_images(self) -> ImageSet | None:
        """The labelled images of --data, on which all networks are tested."""
        data = self.options.data
        if data is None:
            return None
        images = load_images(data, size=self.images.size, workers=self.options.workers)
        if not images.has_labels:
            raise SpectralError(f"--data: {data!r} has no labels; expected cifar10, or a subfolder per class")
        return images

    def say_more(self) -> str:
        """On which images accuracies are measured."""
        images = self.test_images
        return "" if images is None else f"; accuracies on {len(images)} of {images.source}"

    def describe_pictures(self) -> dict[str, Any]:
        """What determines the numbers of any network."""
        return {"base": self.base, **super().describe_pictures()}

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        return {**super().config(), "pairs": PAIRS,
                "data": self.test_images and describe_images(self.test_images)}  # fmt: skip


def measure_network(layers: Layers, name: str) -> Mapping[str, Any]:
    """Measure one network: its row, those of its sites, and by image how it fares under shifts."""
    variant, model = layers.variants[name], layers.load(name)
    facts = {"method": variant.method, "state": variant.state, "model": name,
             "weights": layers.identities[name]["weights"]}  # fmt: skip
    table, records = layers.measure_sites(name, model, METRICS)
    row = {
        **facts, **describe_aliases(table, records, METRICS), "n": len(layers.images),
        "n_clusters": len(set(layers.clusters.values())),
    }  # fmt: skip
    correct, views = _find_correct(table), []
    for protocol in PROTOCOLS:
        agree = layers.measure_agreement(name, model, protocol, PAIRS, f"consistency-{protocol}")
        row |= bound_summary(
            protocol, stats.summarize(agree, None, layers.find_clusters(agree.index), 0.0, 1.0)
        )
        views.append(pd.DataFrame({"model": name, "protocol": protocol, "image": agree.index,
                                   "agree": agree.to_numpy(),
                                   "correct": correct.reindex(agree.index).to_numpy()}))  # fmt: skip
    return {
        "networks": [{**row, **find_accuracy(layers, variant, model)}],
        "sites": [
            {**facts, **site} for site in tabulate_sites(summarize_measurements(table), records, MEANS)
        ],
        "views": pd.concat(views, ignore_index=True),
    }


def tabulate_networks(layers: Layers, rows: Iterable[Mapping[str, Any]], views: pd.DataFrame) -> pd.DataFrame:
    """One row per network: what was measured of it, what it costs, and how images fare that all get right."""
    costs = measure_costs(layers)
    right = views[(views["model"] == layers.base) & views["correct"].astype(bool)]
    both = views[views["correct"].astype(bool) & views["image"].isin(right["image"])]
    return tabulate(
        [
            {**row, **_describe_both(layers, both[both["model"] == row["model"]]), **costs[row["method"]]}
            for row in rows
        ],
        COLUMNS, COUNTS,
    )  # fmt: skip


def _describe_both(layers: Layers, views: pd.DataFrame) -> dict[str, Any]:
    """How images fare under shifts that the network gets right, and the original too."""
    row: dict[str, Any] = {"n_both_right": views["image"].nunique()}
    for protocol in PROTOCOLS:
        own = views[views["protocol"] == protocol].set_index("image")["agree"]
        mean = stats.summarize(own, None, layers.find_clusters(own.index)).mean if len(own) else math.nan
        row[f"{protocol}_both_right"] = mean
    return row


def find_accuracy(layers: Layers, variant: Variant, model: nn.Module) -> dict[str, Any]:
    """Accuracy on labelled test images: those of --data, or what the checkpoint says of its own."""
    info, images = layers.infos[variant.name], layers.test_images
    if images is not None:
        matching = match_labels(model, images)
        if not matching.index:
            return {"accuracy_reason": f"{images.source}: {matching.reason}"}
        config = {"data": describe_images(images)}
        table = layers.keep(variant.name, "accuracy", config, lambda: predict_labelled(model, images))
        share = bound_flags("accuracy", table["correct"], table["cluster"])
        return _describe_accuracy(share, len(table), f"measured on {images.source}", matching.reason)
    if variant.state == "converted":
        return {"accuracy_reason": "not tuned, and its test images aren't at hand: --data measures it"}
    accuracy, n = (info.metadata.get(key) for key in ("test_accuracy", "test_images"))
    if accuracy is None or n is None:
        return {"accuracy_reason": "its checkpoint records none: --data measures it"}
    data_id = info.metadata.get("data_id", "its own")
    share = bound_share("accuracy", round(accuracy * n), n)
    return _describe_accuracy(share, n, f"recorded with its checkpoint, {data_id} test images")


def predict_labelled(model: nn.Module, images: ImageSet) -> pd.DataFrame:
    """Classify the images that have a label which counts the network's classes."""
    found = measure_predictions(model, images, (), batch_size=ACCURACY_BATCH, progress=False)
    return found.loc[found["label"].notna(), ["image", "cluster", "label", "prediction", "correct"]]


def measure_costs(layers: Layers) -> dict[str, dict[str, Any]]:
    """Time, arithmetic and parameters per layer, against the original; weights change none of them."""
    device = layers.options.device
    names = {v.method: v.name for v in layers.variants.values() if v.state != "tuned"}
    models = {method: load_model(name, device=device) for method, name in names.items()}
    size = layers.images.size or (32, 32)
    batch = torch.zeros(LATENCY_BATCH, 3, *size, device=device)
    times = measure_latency(models, dict.fromkeys(models, batch), LATENCY_ROUNDS)
    seconds = {method: np.array(own) for method, own in times.items()}
    macs = {method: count_macs(model, batch[:1]) for method, model in models.items()}
    rows = {}
    for method, model in models.items():
        # round by round: what else the machine did then fell on both
        low, middle, high = np.quantile(seconds[method] / seconds[ORIGINAL], [0.25, 0.5, 0.75])
        rows[method] = {
            "latency_ratio": middle, "latency_ratio_q25": low, "latency_ratio_q75": high,
            "latency_ms": 1000 * float(np.median(seconds[method])) / LATENCY_BATCH,
            "latency_batch": LATENCY_BATCH, "threads": torch.get_num_threads(),
            "device": name_device(batch.device),
            "macs": macs[method], "macs_ratio": macs[method] / macs[ORIGINAL],
            "parameters": sum(p.numel() for p in model.parameters()),
        }  # fmt: skip
    return rows


def _find_correct(table: pd.DataFrame) -> pd.Series:
    """Which labelled pictures are right, by image; none where labels don't count the network's classes."""
    whole = widen(table)
    return whole["prediction"] == whole["label"] if "label" in whole else pd.Series(False, whole.index)


def _describe_accuracy(share: dict[str, float], n: int, source: str, reason: str = "") -> dict[str, Any]:
    return {**share, "accuracy_n": n, "accuracy_source": source, "accuracy_reason": reason}


def _say(layers: Layers, name: str, found: Mapping[str, Any]) -> str:
    (row,) = found["networks"]
    decibels = row.get("alias_power_db_channel_median", math.nan)
    aliases = f"aliases {decibels:.1f} dB" if not math.isnan(decibels) else "no aliases"
    accuracy = f", accuracy {row['accuracy']:.2%}" if "accuracy" in row else ""
    return (
        f"{row['method']} ({row['state']}): {aliases}, SIS {row['sis']:.2g}, consistency "
        f"{row['circular']:.1%} circular, {row['crop']:.1%} crop{accuracy}"
    )


PHASE = Phase(
    "layers",
    Layers,
    (
        Table("phase7_layers", tabulate_networks, needs=("networks", "views"),
              figures=("fig18_layers_pareto", "fig19_layers_aliasing"), seconds=20),
        Table("phase7_layers_sites", lambda layers, rows: tabulate(rows, SITE_COLUMNS, COUNTS),
              needs=("sites",)),
    ),
    Units(lambda layers: layers.names, measure_network, _say, seconds=100),
    conclude=lambda layers, made: layers.missing and [
        f"without the tuned networks of {', '.join(layers.missing)}; {layers.say_how()}"
    ],
)  # fmt: skip
