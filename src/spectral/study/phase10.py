"""Phase 10, budget: which cause dominates a network's shift instability, and what does each layer remove?

Each of --models (any number) on the same pictures: what of SIS and of the logit jitter decimation,
nonlinearities and borders cause, as Shapley shares, what stays unexplained, and how often the prediction
stays with each set of them made ideal. Large networks see fewer of the pictures. By default the bundled
networks, tuned with one layer each or converted, and one trained on ImageNet; some five minutes on two cores.

Example: python experiments/phase10_budget.py --limit 16 --out results
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import click
import pandas as pd
import torch

from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.budget.summary import SUMMARY
from spectral.data import ImageSet
from spectral.errors import SpectralError, StorageError
from spectral.experiments.tuning import LAYER_METHODS, name_tuned
from spectral.latency import count_macs
from spectral.study.declaration import Phase, Table, Units
from spectral.study.networks import Networks
from spectral.study.options import StudyOptions

LIMIT = 32
LEAST = 8  # images, where the network is so large that LIMIT would take longer
MACS = 2.5e11  # that one network may take: some half a minute on two cores
PASSES = 80  # what a budget costs for each image, in passes of the network
IMAGE_SIZE = 32
MODELS = (
    "bundled/resnet20", "bundled/resnet20-blurpool", "bundled/nula-w32",
    *(f"bundled/{name_tuned('resnet20', layer)}" for layer in LAYER_METHODS),
    "bundled/resnet20+flc", "bundled/resnet20+circular", "bundled/resnet20+flc+alias-free+circular",
    "packaged/efficientnet-lite0",
)  # fmt: skip
COALITIONS = ["model", "ideal", "sis", "logit_jitter", "agreement", "factor"]


class Budgets(Networks):
    """Any number of models, one at a time, on the same pictures."""

    folder = "phase10"

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options, options.models or MODELS)
        click.echo(f"budgets of {len(self.names)} networks")
        self.introduce()

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, before each model gets them at its own size."""
        options = self.options
        return self.open_pictures(options.image_source, IMAGE_SIZE, options.limit or LIMIT).keep_decoded()


def measure_network(budgets: Budgets, name: str) -> Mapping[str, Any]:
    """Measure one network: the rows of its budget, and those of each set of causes that is made ideal."""
    try:
        return _measure(budgets, name)
    except StorageError:
        raise
    except SpectralError as error:
        failed = pd.DataFrame([{"model": name, "reason": str(error)}], columns=SUMMARY)
        return {"summary": failed, "coalitions": pd.DataFrame(columns=COALITIONS)}


def _measure(budgets: Budgets, name: str) -> Mapping[str, Any]:
    model, options = budgets.load(name), budgets.options
    size = budgets.infos[name].preprocessing.size
    macs = count_macs(model, torch.zeros(1, 3, *size, device=options.device))
    images = budgets.images.resized(size).take(max(LEAST, int(MACS / (PASSES * max(macs, 1)))))

    @cache
    def compute() -> tuple[pd.DataFrame, pd.DataFrame]:
        table = measure_instability_budget(
            model, images, seed=options.seed, batch_size=options.batch_size, progress=options.progress
        ).assign(model=name)
        values = [
            {"model": name, **record, "factor": table.attrs["factor"]} for record in table.attrs["coalitions"]
        ]
        return summarize_instability_budget(table), pd.DataFrame(values, columns=COALITIONS)

    seen = {"seen": len(images)}
    return {
        "summary": budgets.keep(name, "budget", seen, lambda: compute()[0]),
        "coalitions": budgets.keep(name, "coalitions", seen, lambda: compute()[1]),
    }


def _say(budgets: Budgets, name: str, found: Mapping[str, Any]) -> str:
    summary = found["summary"]
    if found["coalitions"].empty:
        return f"{name}: not measured: {summary['reason'].iloc[0]}"
    own = summary[(summary["metric"] == "logit_jitter") & (summary["site"].isna() | summary["site"].eq(""))]
    shares = dict(zip(map(str, own["source"]), own["share"].astype(float), strict=True))
    total = float(own.loc[own["source"] == "total", "value"].iloc[0])
    named = [f"{source} {100 * share:z.0f} %" for source, share in shares.items() if source != "total"]
    return f"{name}: logit jitter {total:.3g}: {', '.join(named)}"


PHASE = Phase(
    "instability budget",
    Budgets,
    (
        Table("phase10_budget", lambda budgets, summary: summary, needs=("summary",),
              figures=("fig30_budget",)),
        Table("phase10_coalitions", lambda budgets, values: values,
              needs=("coalitions",), optional=True),
    ),
    Units(lambda budgets: budgets.names, measure_network, _say, seconds=300),
)  # fmt: skip
