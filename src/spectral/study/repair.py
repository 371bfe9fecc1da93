"""Repair after surgery: what a layer costs a trained network, and what statistics and distillation give back.

A network and its conversions, as converted, with batch-norm statistics measured again, and tuned on the
network's own outputs. No labels are used; every other image (the odd ones) is for that, and the rest tells
accuracy or agreement, SIS, logit jitter and crop consistency.

Example: python experiments/repair.py --images photos --methods blurpool,flc --out results
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import pandas as pd
from torch import nn

from spectral import stats
from spectral.columns import bound, bound_flags, bound_summary
from spectral.console import FilePath, SpectralCommand, workers_option
from spectral.data import ImageSet, load_images
from spectral.distillation import distill
from spectral.errors import SpectralError
from spectral.figures import draw_figure
from spectral.files import ensure_writable
from spectral.latency import measure_latency
from spectral.models import load_model, model_info
from spectral.recalibration import recalibrate
from spectral.schema import with_bounds
from spectral.stability import measure_consistency, measure_stability
from spectral.surgery import check_methods, convert
from spectral.table import describe_environment, write_csv

MODEL = "packaged/efficientnet-lite0"
LAYERS = ("blurpool", "flc", "asap", "aps", "wavelet")
UNALTERED, CONVERTED, RECALIBRATED, DISTILLED = "unaltered", "as converted", "recalibrated", "distilled"
STEPS = (CONVERTED, RECALIBRATED, DISTILLED)
SCORES = ("accuracy", "agreement", "sis", "logit_jitter", "consistency", "consistency_both")
COLUMNS = [
    "model", "method", "repair", "n_tuned", "n", "n_clusters", "n_labelled", *with_bounds(*SCORES),
    "n_both", "accuracy_change", "sis_ratio", "logit_jitter_ratio", "latency_ratio",
]  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How the networks are tuned, and on what they are scored."""

    steps: int = 600
    batch_size: int = 16
    max_lr: float = 2e-4
    pairs: int = 4
    seed: int = 0


def compare_repairs(
    model: nn.Module,
    images: ImageSet,
    methods: Sequence[str] = LAYERS,
    effort: Effort = Effort(),
    *,
    progress: bool = True,
) -> Iterator[dict[str, Any]]:
    """Convert a network with each layer and repair it, a row for each state of it.

    Args:
        model: a classifier, trained, as it is.
        images: the odd ones (by place) tune, the even ones score; labels are used for the score alone.
        methods: layers, as `spectral.convert` names them.
        effort: how long the networks are tuned; 0 steps for no distillation.
        progress: show bars.

    Yields:
        The columns of ``COLUMNS``: accuracy (of labelled images), agreement with the unaltered network, SIS,
        logit jitter, crop consistency, and the same over the images that both this network and the unaltered
        one get right (or agree on, where there are no labels); changes and ratios to the unaltered network.

    Raises:
        SpectralError: for an unknown layer, fewer than four images, or a network that can't be converted.
    """
    check_methods(methods)
    if len(images) < 4:
        raise SpectralError(f"repair: needs at least 4 images, got {len(images)}")
    tuning, scored = images[1::2], images[::2]
    info = model_info(model)
    assert info is not None
    example = info.preprocessing.size
    base = _Scores(model, scored, effort, progress)
    tail = {"model": info.name, "n_tuned": len(tuning)}
    yield {**tail, "method": UNALTERED, "repair": UNALTERED, **base.describe(base, 1.0)}
    batch = info.preprocessing(scored.resized(example)[0][None]).to(next(model.parameters()))
    for method in methods:
        smooth = convert(model, method, example=example)
        times = measure_latency({"own": model, "new": smooth}, {"own": batch, "new": batch})
        ratio = median(times["new"]) / median(times["own"])
        for repair, network in _repair(model, smooth, tuning, effort, progress):
            found = _Scores(network, scored, effort, progress).describe(base, ratio)
            yield {**tail, "method": method, "repair": repair, **found}


def _repair(
    model: nn.Module, smooth: nn.Module, tuning: ImageSet, effort: Effort, progress: bool
) -> Iterator[tuple[str, nn.Module]]:
    yield CONVERTED, smooth
    calibrated = recalibrate(smooth, tuning)
    yield RECALIBRATED, calibrated
    if effort.steps:
        yield DISTILLED, distill(
            calibrated, tuning, teacher=model, steps=effort.steps, batch_size=effort.batch_size,
            max_lr=effort.max_lr, seed=effort.seed, progress=progress,
        )  # fmt: skip


class _Scores:
    """What one network says of the images."""

    def __init__(self, network: nn.Module, images: ImageSet, effort: Effort, progress: bool) -> None:
        self.still = measure_stability(
            network, images, comb=False, circular=False, progress=progress
        ).set_index("image")
        pairs = measure_consistency(network, images, protocol="crop", pairs=effort.pairs, seed=effort.seed)
        self.consistency = pairs.groupby("image", sort=False)["agree"].mean()
        self.clusters = self.still["cluster"]

    @property
    def is_labelled(self) -> bool:
        return bool(self.still["correct"].notna().any())

    def describe(self, base: _Scores, latency_ratio: float) -> dict[str, Any]:
        """Return the row of this network beside the unaltered one."""
        still, clusters = self.still, self.clusters
        same = still["prediction"] == base.still["prediction"]
        right = still["correct"].dropna()
        both = same if not self.is_labelled else (still["correct"] == 1) & (base.still["correct"] == 1)
        means = {
            name: stats.summarize(values, clusters=clusters[values.index]) if len(values) else None
            for name, values in {
                "sis": still["sis"], "logit_jitter": still["logit_jitter"], "consistency": self.consistency,
                "consistency_both": self.consistency[both[both].index],
            }.items()
        }  # fmt: skip
        row: dict[str, Any] = {
            "n": len(still), "n_clusters": clusters.nunique(), "n_labelled": len(right),
            "n_both": int(both.sum()), "latency_ratio": latency_ratio,
            **bound_flags("accuracy", right, clusters), **bound_flags("agreement", same, clusters),
        }  # fmt: skip
        for name, found in means.items():
            row |= bound(name, *(math.nan,) * 3) if found is None else bound_summary(name, found)
        for name in ("sis", "logit_jitter"):
            row[f"{name}_ratio"] = still[name].mean() / base.still[name].mean()
        row["accuracy_change"] = right.mean() - base.still["correct"].dropna().mean()
        return row


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--model", default=MODEL, show_default=True)
@click.option("--images", required=True, metavar="DIR",
              help="Photographs; classes by subfolder or by names such as n01440764_tench.jpg.")  # fmt: skip
@click.option("--methods", default=",".join(LAYERS), show_default=True, metavar="A,B,…")
@click.option("--limit", type=click.IntRange(min=4), help="Use so many images.")
@click.option("--steps", type=click.IntRange(min=0), default=Effort.steps, show_default=True,
              help="Of the distillation; 0 for none.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=Effort.batch_size, show_default=True)
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True), default=Effort.max_lr,
              show_default=True)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of images and all else.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, …")
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table and the figure.")  # fmt: skip
@workers_option
@click.option("--quiet", is_flag=True, help="No progress bars.")
def main(
    model: str,
    images: str,
    methods: str,
    limit: int | None,
    device: str,
    out: Path,
    workers: int | None,
    quiet: bool,
    **effort: Any,
) -> None:
    """Convert, repair, score; write table and figure."""
    ensure_writable(out)
    chosen = Effort(**effort)
    network = load_model(model, device=device)
    pictures = load_images(images, limit=limit, seed=chosen.seed, workers=workers)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    path = out / "tables" / "repair.csv"
    facts = {
        "model": model, "images": pictures.source, "fingerprint": pictures.fingerprint,
        "n_images": len(pictures), "effort": asdict(chosen), **describe_environment(), "device": device,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for row in compare_repairs(network, pictures, names, chosen, progress=not quiet):
        rows.append(row)
        write_csv(pd.DataFrame(rows)[COLUMNS], path, facts)  # what is there stays, whatever comes
        shown = ("method", "repair", "accuracy", "agreement", "sis_ratio", "logit_jitter_ratio")
        click.echo("  ".join(f"{row[k]:.3f}" if isinstance(row[k], float) else row[k] for k in shown))
    click.echo(f"  {path}  ({len(rows)} rows)")
    click.echo(f"  {draw_figure('repair', out / 'tables', out / 'figures')[0]} (+ .pdf)")
