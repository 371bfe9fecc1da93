"""Repair after surgery: what a layer costs a trained network, and what repair without labels gives back.

A network and its conversions, as converted, with batch-norm statistics measured again, with weights fitted in
closed form, and then tuned on the network's own outputs. Half of the images is for the repair and the other
half tells accuracy or agreement, SIS, logit jitter and crop consistency; then the halves change places, so
that every image is scored, by a network that never saw it.

Example: python experiments/repair.py --images photos --methods blurpool,flc --out results
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import pandas as pd
from torch import nn

from spectral import stats
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError, suggest
from spectral.figures import draw_and_say
from spectral.latency import measure_latency
from spectral.models import load_model, model_info
from spectral.repair.distillation import TUNED, distill
from spectral.repair.recalibration import recalibrate
from spectral.repair.reconstruction import reconstruct
from spectral.repair.views import Views
from spectral.stability import measure_consistency, measure_stability
from spectral.stats.columns import bound, bound_flags, bound_summary
from spectral.surgery import check_methods, conversion_report, convert
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.table.schema import RANGES, with_bounds
from spectral.terminal.console import (
    FilePath,
    SpectralCommand,
    device_option,
    hold_folder,
    quiet_option,
    split_names,
    workers_option,
)

MOST = 256  # images that repair, in one batch
MODEL = "packaged/efficientnet-lite0"
LAYERS = ("blurpool", "flc", "asap", "aps", "wavelet")
UNALTERED, CONVERTED, DISTILLED = "unaltered", "as converted", "distilled"
RECALIBRATED, RECONSTRUCTED = "recalibrated", "reconstructed"
STATES = (CONVERTED, RECALIBRATED, RECONSTRUCTED, DISTILLED)
SCORES = ("accuracy", "agreement", "sis", "logit_jitter", "consistency", "consistency_both")
COLUMNS = [
    "model", "method", "repair", "replaced", "n_tuned", "n", "n_clusters", "n_labelled",
    *with_bounds(*SCORES), "n_both", *with_bounds("accuracy_change"), "sis_ratio", "logit_jitter_ratio",
    "latency_ratio", "seconds",
]  # fmt: skip
Network = tuple[nn.Module, ImageSet]  # with the images that score it


@dataclass(frozen=True)
class Effort:
    """How the networks are repaired, and on what they are scored."""

    ridge: float | None = None
    views: int = 1
    steps: int = 600
    batch_size: int = 16
    max_lr: float = 2e-4
    layer_weight: float = 1.0
    tune: str = "all"
    zoom: float = Views.zoom
    mix: float = Views.mix
    pairs: int = 4
    seed: int = 0


def compare_repairs(
    model: nn.Module,
    images: ImageSet,
    methods: Sequence[str] = LAYERS,
    effort: Effort = Effort(),
    *,
    states: Sequence[str] = STATES,
    progress: bool = True,
) -> Iterator[dict[str, Any]]:
    """Convert a network with each layer and repair it, a row for each state of it.

    Args:
        model: a classifier, trained, as it is.
        images: the odd ones (by place) repair and the even ones score, and the other way round; labels are
            used for the score alone. At most 256 of each half repair.
        methods: layers, as `spectral.convert` names them; ``flc@NAME+NAME`` for sites of these names alone.
        effort: how the networks are repaired; 0 steps for no distillation.
        states: those that are scored, beside the unaltered network.
        progress: show bars.

    Yields:
        The columns of ``COLUMNS``: accuracy (of labelled images), agreement with the unaltered network, SIS,
        logit jitter, crop consistency, and the same over the images that both this network and the unaltered
        one get right (or agree on, where there are no labels); changes and ratios to the unaltered network,
        on the same images; seconds that the repair took, for one half of the images, with what it builds on.

    Raises:
        SpectralError: for an unknown layer or state, fewer than four images, or a network that can't be
            converted.
    """
    check_methods(method.split("@")[0] for method in methods)
    _check_states(states)
    if len(images) < 4:
        raise SpectralError(f"repair: needs at least 4 images, got {len(images)}")
    halves = _halve(images)
    info = model_info(model)
    assert info is not None
    example = info.preprocessing.size
    base = _Scores([(model, half) for half in halves], effort, progress)
    tail = {"model": info.name, "n_tuned": min(len(halves[1]), MOST)}
    unaltered = {**base.describe(base), "latency_ratio": 1.0, "seconds": 0.0, "replaced": 0}
    yield {**tail, "method": UNALTERED, "repair": UNALTERED, **unaltered}
    batch = info.preprocessing(halves[0].resized(example)[0][None]).to(next(model.parameters()))
    for method in methods:
        layer, _, where = method.partition("@")
        smooth = convert(model, layer, where.split("+") if where else None, example=example)
        times = measure_latency({"own": model, "new": smooth}, {"own": batch, "new": batch})
        same = {
            "latency_ratio": median(times["new"]) / median(times["own"]),
            "replaced": len(conversion_report(smooth).replaced),
        }
        repairs = [
            _repair(model, smooth, tuning[:MOST], effort, states, progress) for tuning in reversed(halves)
        ]
        for pair in zip(*repairs, strict=True):
            networks = [(network, half) for (_, network, _), half in zip(pair, halves, strict=True)]
            found = _Scores(networks, effort, progress).describe(base)
            seconds = sum(spent for *_, spent in pair) / len(pair)
            yield {**tail, "method": method, "repair": pair[0][0], **same, "seconds": seconds, **found}


def _halve(images: ImageSet) -> list[ImageSet]:
    """Divide images into two halves that share no photograph, every second one in either.

    Raises:
        SpectralError: if all are of one photograph.
    """
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(images.clusters))}
    if len(places) < 2:
        raise SpectralError("repair: all images are of one photograph, and none is left to judge by")
    sides = [places[cluster] % 2 for cluster in images.clusters]
    return [
        replace(images, items=[item for item, own in zip(images.items, sides, strict=True) if own == side])
        for side in (0, 1)
    ]


def _check_states(states: Iterable[str]) -> None:
    unknown = [state for state in states if state not in STATES]
    if unknown:
        near = suggest(unknown[0], STATES)
        raise SpectralError(f"repair: no state is called {unknown[0]!r}{near}; there are {', '.join(STATES)}")


def _repair(
    model: nn.Module,
    smooth: nn.Module,
    tuning: ImageSet,
    effort: Effort,
    states: Sequence[str],
    progress: bool,
) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield (state, network, seconds) of each repair that is asked for; make those it builds on."""
    if CONVERTED in states:
        yield CONVERTED, smooth, 0.0
    if RECALIBRATED in states:
        begun = time.perf_counter()
        yield RECALIBRATED, recalibrate(smooth, tuning, limit=len(tuning)), time.perf_counter() - begun
    distilled = effort.steps > 0 and DISTILLED in states
    if RECONSTRUCTED not in states and not distilled:
        return
    begun = time.perf_counter()
    fitted = reconstruct(
        smooth, tuning, ridge=effort.ridge, limit=len(tuning), views=effort.views, seed=effort.seed
    )
    spent = time.perf_counter() - begun
    if RECONSTRUCTED in states:
        yield RECONSTRUCTED, fitted, spent
    if distilled:
        begun = time.perf_counter()
        tuned = distill(  # judged by the other half, so none of this one is left out
            fitted, tuning, teacher=model, steps=effort.steps, batch_size=effort.batch_size,
            max_lr=effort.max_lr, layer_weight=effort.layer_weight, tune=effort.tune,
            views=Views(zoom=effort.zoom, mix=effort.mix), held_out=0, seed=effort.seed, progress=progress,
        )  # fmt: skip
        yield DISTILLED, tuned, spent + time.perf_counter() - begun


class _Scores:
    """What networks say, each of its own images."""

    def __init__(self, networks: Sequence[Network], effort: Effort, progress: bool) -> None:
        self.still = pd.concat(
            measure_stability(network, images, comb=False, circular=False, progress=progress)
            for network, images in networks
        ).set_index("image")
        pairs = pd.concat(
            measure_consistency(
                network, images, protocol="crop", pairs=effort.pairs, seed=effort.seed, progress=False
            )
            for network, images in networks
        )
        self.consistency = pairs.groupby("image", sort=False)["agree"].mean()
        self.clusters = self.still["cluster"]

    @property
    def is_labelled(self) -> bool:
        return bool(self.still["correct"].notna().any())

    def average(self, name: str) -> float:
        """Return a column's mean over photographs."""
        return stats.summarize(self.still[name], None, self.clusters).mean

    def describe(self, base: _Scores) -> dict[str, Any]:
        """Return the columns of these networks beside the unaltered one."""
        still, clusters = self.still, self.clusters
        same = still["prediction"] == base.still["prediction"]
        right = still["correct"].dropna()
        both = same if not self.is_labelled else (still["correct"] == 1) & (base.still["correct"] == 1)
        means = {
            "sis": still["sis"], "logit_jitter": still["logit_jitter"], "consistency": self.consistency,
            "consistency_both": self.consistency[both[both].index],
            "accuracy_change": right - base.still["correct"][right.index],
        }  # fmt: skip
        row: dict[str, Any] = {
            "n": len(still), "n_clusters": clusters.nunique(), "n_labelled": len(right),
            "n_both": int(both.sum()),
            **bound_flags("accuracy", right, clusters), **bound_flags("agreement", same, clusters),
        }  # fmt: skip
        for name, values in means.items():
            if len(values):
                limits = (0.0, 1.0) if "consistency" in name else RANGES.get(name, ())
                row |= bound_summary(name, stats.summarize(values, None, clusters[values.index], *limits))
            else:
                row |= bound(name, *(math.nan,) * 3)
        for name in ("sis", "logit_jitter"):
            row[f"{name}_ratio"] = row[name] / base.average(name)
        return row


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--model", default=MODEL, show_default=True)
@click.option("--images", required=True, metavar="DIR",
              help="Photographs; classes by subfolder or by names such as n01440764_tench.jpg.")  # fmt: skip
@click.option("--methods", default=",".join(LAYERS), show_default=True, metavar="A,B,…",
              help="Layers; flc@SITE+SITE for some sites alone.")  # fmt: skip
@click.option("--states", default=",".join(STATES), show_default=True, metavar="A,B,…",
              help="Which states of the networks are scored.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=4), help="Use so many images.")
@click.option("--ridge", type=click.FloatRange(min=0, min_open=True),
              help="How weights are held in the fit; as images left out say by default.")  # fmt: skip
@click.option("--views", type=click.IntRange(min=1), default=Effort.views, show_default=True,
              help="In how many forms each image enters the fit.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=0), default=Effort.steps, show_default=True,
              help="Of the distillation; 0 for none.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=Effort.batch_size, show_default=True)
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True), default=Effort.max_lr,
              show_default=True)  # fmt: skip
@click.option("--layer-weight", type=click.FloatRange(min=0), default=Effort.layer_weight, show_default=True)
@click.option("--tune", type=click.Choice(TUNED), default=Effort.tune, show_default=True)
@click.option("--zoom", type=click.FloatRange(min=0, min_open=True, max=1), default=Effort.zoom,
              show_default=True)  # fmt: skip
@click.option("--mix", type=click.FloatRange(min=0), default=Effort.mix, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of images and all else.")
@device_option
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table and the figure.")  # fmt: skip
@workers_option
@quiet_option
def main(
    model: str,
    images: str,
    methods: str,
    states: str,
    limit: int | None,
    device: str,
    out: Path,
    workers: int | None,
    quiet: bool,
    **effort: Any,
) -> None:
    """Convert, repair, score; write table and figure."""
    hold_folder(out, images)
    chosen = Effort(**effort)
    network = load_model(model, device=device)
    pictures = load_images(images, limit=limit, seed=chosen.seed, workers=workers)
    names = list(split_names(methods, "--methods"))
    scored = list(split_names(states, "--states"))
    path = out / "tables" / "repair.csv"
    facts = {
        "model": model, "images": pictures.source, "fingerprint": pictures.fingerprint,
        "n_images": len(pictures), "methods": names, "states": scored, "effort": asdict(chosen),
    }  # fmt: skip
    refuse_other_tables([path], facts)
    facts |= {**describe_environment(), "device": device}
    rows: list[dict[str, Any]] = []
    for row in compare_repairs(network, pictures, names, chosen, states=scored, progress=not quiet):
        rows.append(row)
        write_csv(pd.DataFrame(rows)[COLUMNS], path, facts)  # what is there stays, whatever comes
        shown = ("method", "repair", "accuracy", "agreement", "sis_ratio", "logit_jitter_ratio")
        click.echo("  ".join(f"{row[k]:.3f}" if isinstance(row[k], float) else row[k] for k in shown))
    click.echo(f"  {path}  ({len(rows)} rows)")
    click.echo(f"  {draw_and_say('repair', out / 'tables', out / 'figures')}")
