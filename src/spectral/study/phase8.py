"""Phase 8, architectures: how much do the downsampling sites of different architectures alias?

The preset bundled gives libraries' architectures random weights: that is about structure, about what filters
stand before a decimation and where, not about trained networks; only this project's own are trained. The
preset paper takes the same networks with their published weights. A model that can't be loaded or measured is
a row with the reason. --models takes any number.

Example: python experiments/phase8_architectures.py --models timm/resnet18@random,timm/vgg11@random --limit 8
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click
import pandas as pd

from spectral.analysis import TAPS
from spectral.data import ImageSet
from spectral.errors import SpectralError, StorageError
from spectral.measurement import measure
from spectral.models.catalogue import LIBRARIES
from spectral.models.fetching import RANDOM
from spectral.operators import LOSSLESS
from spectral.runs.summary import summarize_measurements
from spectral.stats.columns import (
    SIGNAL_COLUMNS,
    average_signals,
    average_sites,
    bound,
    tabulate,
    tabulate_sites,
)
from spectral.study.declaration import Phase, Table, Units
from spectral.study.networks import Networks
from spectral.study.options import StudyOptions
from spectral.table.schema import SIGNAL_METRICS, with_bounds

IMAGE_SIZE = 224  # at which pictures are chosen; each model then gets them at its own size
LIMITS = {"bundled": 16, "paper": 200}
OWN = ("bundled/resnet20", "bundled/resnet20-blurpool", "bundled/nula-w32")
LIBRARY = (
    "timm/vgg11_bn", "timm/resnet18", "antialiased/resnet18", "timm/resnetblur50", "timm/densenet121",
    "timm/regnety_002", "timm/efficientnet_b0", "timm/mobilenetv3_small_100", "timm/convnextv2_atto",
    "timm/maxvit_rmlp_pico_rw_256", "timm/swin_tiny_patch4_window7_224", "timm/hiera_tiny_224",
    "timm/deit_tiny_patch16_224",
)  # fmt: skip
PACKAGED = ("packaged/efficientnet-lite0",)  # trained on ImageNet, and there without a hub
MODELS = {
    "bundled": (*(name + RANDOM for name in LIBRARY), *PACKAGED, *OWN),
    "paper": (*LIBRARY, *PACKAGED, *OWN),
}
METRICS = ("avr", "am_relative", "alias_power_ratio", *SIGNAL_METRICS, "sis")
# Column of the table → (tap, metric).
MEANS = {
    "avr_input": ("input", "avr"),
    "avr_dense": ("dense", "avr"),
    "am_relative": ("dense", "am_relative"),
    "alias_power_ratio": ("dense", "alias_power_ratio"),
}
COUNTS = ("site_index", "channels", "n", "n_silent", "n_signal", "parameters", "sites", "measurable",
          "lossless", "n_clusters")  # fmt: skip
_FACTS = ["model", "family", "weights"]
SITE_COLUMNS = [
    *_FACTS, "site", "site_index", "depth", "op", "kernel", "stride", "input_size", "output_size", "channels",
    "measurable", "n", "n_silent", *with_bounds(*MEANS, "alias_power_db"), "n_signal", *SIGNAL_COLUMNS,
    "signal", "reason",
]  # fmt: skip
MODEL_COLUMNS = [
    *_FACTS, "image_size", "parameters", "sites", "measurable", "lossless", "n", "n_clusters",
    *SIGNAL_COLUMNS, *with_bounds("alias_power_ratio", "alias_power_db", "sis"), "reason",
]  # fmt: skip


class Survey(Networks):
    """Any number of models, one at a time, on the same pictures.

    Args:
        options: what to run on; its models may be any number.
    """

    folder = "phase8"

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options, options.models or MODELS[options.preset])
        random = sum(find_weights(name) == "random" for name in self.names)
        click.echo(f"survey of {len(self.names)} architectures, preset {options.preset}")
        if random:
            click.echo(
                f"  {random} of them with random weights: this is about structure, not about trained networks"
            )
        self.introduce()

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, before each model gets them at its own size."""
        limit = self.options.limit or LIMITS[self.options.preset]
        return self.open_pictures(self.options.image_source, IMAGE_SIZE, limit).keep_decoded()


def measure_network(survey: Survey, name: str) -> Mapping[str, Any]:
    """Measure one model: a row for each site and one for the whole, or one each with the reason why not."""
    facts: dict[str, Any] = {"model": name, "weights": find_weights(name)}
    try:
        model = survey.load(name)
        facts["family"] = type(model).__module__.rpartition(".")[2]
        facts["parameters"] = sum(p.numel() for p in model.parameters())
        table = measure(
            model, survey.images_for(name), METRICS, taps=(*TAPS, "signal"),
            batch_size=survey.options.batch_size, out=survey.measurement_folder(name, survey.folder),
            progress=survey.options.progress,
        )  # fmt: skip
    except StorageError:
        raise
    except SpectralError as error:
        failed = {**facts, "reason": str(error)}
        return {"sites": [failed], "models": [failed]}
    records = table.attrs["sites"]
    summary = summarize_measurements(table)
    rows = [
        {**facts, **row, "depth": row["site_index"] / max(len(records) - 1, 1)}
        for row in tabulate_sites(summary, records, MEANS)
    ]
    whole = {
        **facts, "image_size": "x".join(map(str, table.attrs["provenance"]["image_size"])),
        "sites": len(records), "measurable": sum(record["measurable"] for record in records),
        "lossless": sum(record["reason"] == LOSSLESS for record in records),
        **average_signals(table), **average_sites(table, ("alias_power_ratio",)),
        **_read_sis(summary),
    }  # fmt: skip
    return {"sites": rows, "models": [whole]}


def find_weights(name: str) -> str:
    """Say where a model's weights come from: random, trained (by this project or the user) or published.

    Example:
        >>> [find_weights(name) for name in ("timm/vgg11@random", "timm/vgg11", "bundled/resnet20")]
        ['random', 'published', 'trained']
    """
    if RANDOM in name:  # perhaps with a conversion behind it
        return "random"
    return "published" if name.partition("/")[0] in LIBRARIES else "trained"


def _read_sis(summary: pd.DataFrame) -> dict[str, float]:
    found = summary[(summary["site"] == "") & (summary["metric"] == "sis")].iloc[0]
    return bound("sis", found["mean"], found["ci_low"], found["ci_high"])


def _say(survey: Survey, name: str, found: Mapping[str, Any]) -> str:
    (model,) = found["models"]
    if "sites" not in model:
        return f"{name}: not measured: {model['reason']}"
    decibels, sis = model.get("alias_power_db_channel_median", math.nan), model["sis"]
    return (
        f"{name} ({model['weights']} weights): {model['measurable']} of {model['sites']} sites "
        f"measured, aliases {decibels:.1f} dB, SIS {sis:.2g}"
    )


PHASE = Phase(
    "architectures",
    Survey,
    (
        Table("phase8_architectures", lambda survey, rows: tabulate(rows, SITE_COLUMNS, COUNTS),
              needs=("sites",), figures=("fig16_architectures_depth",)),
        Table("phase8_models", lambda survey, rows: tabulate(rows, MODEL_COLUMNS, COUNTS), needs=("models",),
              figures=("fig17_architectures_ranking",)),
    ),
    Units(lambda survey: survey.names, measure_network, _say, noun="model", seconds=80),
)  # fmt: skip
