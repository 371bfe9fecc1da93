"""Phase 10, budget: which cause dominates a network's shift instability, and what does each layer remove?

Each of --models (any number) on the same pictures: what of SIS and of the logit jitter decimation,
nonlinearities and borders cause, as Shapley shares, what stays unexplained, and how often the prediction
stays with each set of them made ideal. Large networks see fewer of the pictures. By default the bundled
networks, tuned with one layer each or converted, and one trained on ImageNet; some five minutes on two cores.

Example: python experiments/phase10_budget.py --limit 16 --out results
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import click
import pandas as pd
import torch

from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.budget.summary import SUMMARY
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.latency import count_macs
from spectral.models import load_model, model_info
from spectral.study.common import PictureResults
from spectral.study.options import StudyOptions

LIMIT = 32
LEAST = 8  # images, where the network is so large that LIMIT would take longer
MACS = 2.5e11  # that one network may take: some half a minute on two cores
PASSES = 80  # what a budget costs for each image, in passes of the network
IMAGE_SIZE = 32
MODELS = (
    "bundled/resnet20", "bundled/resnet20-blurpool", "bundled/nula-w32", "bundled/resnet20-tuned-flc",
    "bundled/resnet20-tuned-aps", "bundled/resnet20-tuned-wavelet", "bundled/resnet20+flc",
    "bundled/resnet20+circular", "bundled/resnet20+flc+alias-free+circular", "packaged/efficientnet-lite0",
)  # fmt: skip
COALITIONS = ["model", "ideal", "sis", "logit_jitter", "agreement", "factor"]


class Budgets(PictureResults):
    """Any number of models, one at a time, on the same pictures."""

    def __init__(self, options: StudyOptions) -> None:
        super().__init__(options)
        self.names = tuple(dict.fromkeys(options.models or MODELS))
        self.weights: dict[str, str] = {}
        click.echo(f"budgets of {len(self.names)} networks on {len(self.images)} of {self.images.source}")

    @cached_property
    def images(self) -> ImageSet:
        """The pictures, before each model gets them at its own size."""
        options = self.options
        limit = options.limit or LIMIT
        return load_images(options.image_source, size=IMAGE_SIZE, limit=limit, seed=options.seed,
                           workers=options.workers).keep_decoded()  # fmt: skip

    def measure(self, name: str) -> pd.DataFrame:
        """Measure one network.

        Raises:
            SpectralError: if nothing of it can be made ideal, or it fails on the pictures.
        """
        model = load_model(name, device=self.options.device)
        info = model_info(model)
        assert info is not None
        self.weights[name] = info.weights_id
        size = info.preprocessing.size
        macs = count_macs(model, torch.zeros(1, 3, *size, device=self.options.device))
        images = self.images.resized(size).take(max(LEAST, int(MACS / (PASSES * max(macs, 1)))))
        table = measure_instability_budget(
            model, images, seed=self.options.seed,
            batch_size=self.options.batch_size, progress=self.options.progress,
        )  # fmt: skip
        return table.assign(model=name)

    def config(self) -> dict[str, Any]:
        """What determines every number."""
        images = self.images
        facts = {"source": images.source, "fingerprint": images.fingerprint, "count": len(images)}
        return {"images": facts, "seed": self.options.seed, "weights": self.weights}


RESULTS = Budgets


def run(budgets: Budgets) -> None:
    """Write the phase's tables and figure."""
    parts, values = [], []
    for name in budgets.names:
        try:
            table = budgets.measure(name)
        except SpectralError as error:
            parts.append(pd.DataFrame([{"model": name, "reason": str(error)}], columns=SUMMARY))
            click.echo(f"  {name}: not measured: {error}")
            continue
        summary = summarize_instability_budget(table)
        parts.append(summary)
        values += [
            {"model": name, **record, "factor": table.attrs["factor"]} for record in table.attrs["coalitions"]
        ]
        click.echo(f"  {name}: {_say(summary)}")
        # After each, so that what was measured stays where the next takes too long.
        budgets.write_table("phase10_budget", pd.concat(parts, ignore_index=True))
        budgets.write_table("phase10_coalitions", pd.DataFrame(values, columns=COALITIONS))
    if not values:
        raise SpectralError("none of the networks could be measured; the reasons are above")
    budgets.draw("fig30_budget")


def _say(summary: pd.DataFrame) -> str:
    own = summary[(summary["metric"] == "logit_jitter") & (summary["site"] == "")]
    shares = dict(zip(map(str, own["source"]), own["share"].astype(float), strict=True))
    total = float(own.loc[own["source"] == "total", "value"].iloc[0])
    named = [f"{source} {100 * share:.0f} %" for source, share in shares.items() if source != "total"]
    return f"logit jitter {total:.3g}: {', '.join(named)}"
