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
from torch import nn

from spectral.columns import (
    SIGNAL_COLUMNS,
    average_signals,
    average_sites,
    bound,
    read_means,
    read_signal,
    tabulate,
)
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.measurement import measure
from spectral.models import load_model, model_info
from spectral.models.catalogue import LIBRARIES
from spectral.models.fetching import RANDOM
from spectral.operators import LOSSLESS
from spectral.schema import SIGNAL_METRICS, with_bounds
from spectral.study.common import TAPS, PictureResults
from spectral.study.options import StudyOptions
from spectral.summary import summarize_measurements

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


class Survey(PictureResults):
    """Any number of models, one at a time, on the same pictures.

    Args:
        options: what to run on; its models may be any number.
    """

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options)
        self.names = tuple(dict.fromkeys(options.models or MODELS[options.preset]))
        self.weights: dict[str, str] = {}
        random = sum(find_weights(name) == "random" for name in self.names)
        click.echo(f"survey of {len(self.names)} architectures, preset {options.preset}")
        if random:
            click.echo(
                f"  {random} of them with random weights: this is about structure, not about trained networks"
            )
        images = self.images
        click.echo(f"  images    {len(images)} of {images.source}, {len(images.skipped)} skipped")
        # models may come and go, but not the pictures
        self.claim(self.out / "measurements" / "phase8" / "survey.json", self._pictures())

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, before each model gets them at its own size."""
        options = self.options
        limit = options.limit or LIMITS[options.preset]
        return load_images(options.image_source, size=IMAGE_SIZE, limit=limit, seed=options.seed,
                           workers=options.workers).keep_decoded()  # fmt: skip

    def measure(self, name: str, model: nn.Module) -> pd.DataFrame:
        """Measure one model, or continue where it was interrupted.

        Raises:
            SpectralError: if it has no site that can be measured, or fails on the pictures.
        """
        info = model_info(model)
        assert info is not None
        self.weights[name] = info.weights_id
        return measure(
            model, self.images.resized(info.preprocessing.size), METRICS, taps=(*TAPS, "signal"),
            batch_size=self.options.batch_size, out=self.measurement_folder(name, "phase8"),
            progress=self.options.progress,
        )  # fmt: skip

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        return {"preset": self.options.preset, **self._pictures(), "weights": self.weights}

    def _pictures(self) -> dict[str, Any]:
        images = self.images
        facts = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images)}
        return {"images": facts, "seed": self.options.seed}


RESULTS = Survey


def run(survey: Survey) -> None:
    """Write the phase's tables and figures."""
    sites: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    for name in survey.names:
        rows, model = describe_model(survey, name)
        sites += rows
        models.append(model)
        click.echo(f"  {_say(model)}")
    survey.write_table("phase8_architectures", tabulate(sites, SITE_COLUMNS, COUNTS))
    survey.write_table("phase8_models", tabulate(models, MODEL_COLUMNS, COUNTS))
    if not any(model.get("measurable") for model in models):
        raise SpectralError("none of the models could be measured; the tables have the reasons")
    survey.draw("fig16_architectures_depth", "fig17_architectures_ranking")


def describe_model(survey: Survey, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure one model: a row for each site and one for the whole, or one each with the reason why not."""
    facts: dict[str, Any] = {"model": name, "weights": find_weights(name)}
    try:
        model = load_model(name, device=survey.options.device)
        facts["family"] = type(model).__module__.rpartition(".")[2]
        facts["parameters"] = sum(p.numel() for p in model.parameters())
        table = survey.measure(name, model)
    except SpectralError as error:
        failed = {**facts, "reason": str(error)}
        return [failed], failed
    summary = summarize_measurements(table)
    records = table.attrs["sites"]
    rows = [
        {**facts, **record, "site": record["name"], "site_index": index,
         "depth": index / max(len(records) - 1, 1), **read_means(summary, record["name"], MEANS),
         **read_signal(summary, record["name"])}
        for index, record in enumerate(records)
    ]  # fmt: skip
    whole = {
        **facts, "image_size": "x".join(map(str, table.attrs["provenance"]["image_size"])),
        "sites": len(records), "measurable": sum(record["measurable"] for record in records),
        "lossless": sum(record["reason"] == LOSSLESS for record in records),
        **average_signals(table), **average_sites(table, ("alias_power_ratio",)),
        **_read_sis(summary),
    }  # fmt: skip
    return rows, whole


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


def _say(model: Mapping[str, Any]) -> str:
    if "sites" not in model:
        return f"{model['model']}: not measured: {model['reason']}"
    decibels, sis = model.get("alias_power_db_channel_median", math.nan), model["sis"]
    return (
        f"{model['model']} ({model['weights']} weights): {model['measurable']} of {model['sites']} sites "
        f"measured, aliases {decibels:.1f} dB, SIS {sis:.2g}"
    )
