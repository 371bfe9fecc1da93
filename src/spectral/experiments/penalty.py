"""Train one network twice from the same seed, without and with a penalty on aliasing, and compare.

The penalty is the mean of am_relative over the images of a batch and the sites of the network, times
--weight, added to the cross-entropy; both runs see the same batches for the same number of epochs. By default
the images are 32 px crops of ten photographs and the classes are the photographs: enough to see what the
penalty does to the aliases, too easy and too small to say what it costs in accuracy. Crops of one photograph
overlap, so the test crops aren't new pictures either. On harder data (--data cifar10) a penalty of this
weight does cost accuracy. Writes tables/penalty.csv and figures/penalty.png.

Example: python experiments/train_with_penalty.py --weight 1 --epochs 6
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from spectral import stats
from spectral.data import ImageSet, load_images, load_labelled_arrays
from spectral.errors import SpectralError
from spectral.figures import draw_and_say
from spectral.models.architectures import build
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.numerics.memory import move_for_training
from spectral.sites import Site, find_sites
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.table.display import format_rows
from spectral.terminal.console import FilePath, SpectralCommand, device_option, quiet_option
from spectral.training import NUM_CLASSES, LabelledImages, augment, normalize

ARCHITECTURE = "resnet20"
METRIC = "am_relative"
PIXELS = 32
CROPS, TEST_SHARE = 200, 4  # of each photograph; one crop in four is for testing
SOME_CROPS = 200  # enough to meet every photograph
EVALUATION_BATCH = 500
LOGGED = (METRIC, "alias_power_ratio")


@dataclass(frozen=True)
class PenaltyRecipe:
    """What both runs share; SGD with one cycle, crops by up to 4 px and flips."""

    epochs: int = 6
    batch_size: int = 128
    max_lr: float = 0.1
    weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_lr", "weight"):
            if not getattr(self, name) > 0:
                raise SpectralError(f"PenaltyRecipe: {name} must be > 0, got {getattr(self, name)}")


def compare_penalty(
    train_set: LabelledImages,
    test_set: LabelledImages,
    recipe: PenaltyRecipe = PenaltyRecipe(),
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train without and with the penalty: one row per run and epoch, epoch 0 being the untrained network.

    Args:
        train_set: images to train on, of one size.
        test_set: images that accuracy and aliases are measured on.
        recipe: what both runs share, and the weight of the penalty.
        device: where to train.
        progress: show a bar.

    Returns:
        Columns run (plain, penalty), weight, epoch, loss (cross-entropy alone), am_relative,
        alias_power_ratio (means over sites and test images at the dense tap), accuracy with its 95 %
        interval, n, n_clusters: of crops the photographs are the unit.
    """
    weights = {"plain": 0.0, "penalty": recipe.weight}
    total = 2 * recipe.epochs * -(-len(train_set.images) // recipe.batch_size)
    rows: list[dict[str, Any]] = []
    with tqdm(total=total, unit="batch", disable=not progress) as bar:
        for run, weight in weights.items():
            bar.set_description(run)
            found = _train(train_set, test_set, recipe, weight, torch.device(device), bar)
            rows += [{"run": run, "weight": weight, **row} for row in found]
    return pd.DataFrame(rows)


def load_sample_crops(crops: int = CROPS, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Cut crops of ten sample photographs, the photograph being the class; the last quarter is for testing.

    Args:
        crops: of each photograph.
        seed: of the crops.

    Raises:
        SpectralError: if no photographs are installed.

    Example:
        >>> train_set, test_set = load_sample_crops(crops=8)
        >>> tuple(train_set.images.shape), len(test_set.labels)
        ((60, 3, 32, 32), 20)
    """
    every = load_images("samples", size=PIXELS, limit=SOME_CROPS, seed=seed)
    names = sorted({item.photograph for item in every.items if item.label is None and item.photograph})
    # the crops go round all photographs in turn, behind the pictures that have labels of their own
    labelled = sum(label is not None for label in every.labels)
    images = load_images("samples", size=PIXELS, limit=labelled + crops * len(names), seed=seed)
    split: tuple[list[int], list[int]] = ([], [])
    classes = names[:NUM_CLASSES]
    for name in classes:
        own = [i for i, item in enumerate(images.items) if item.photograph == name and item.label is None]
        split[0].extend(own[: -len(own) // TEST_SHARE])
        split[1].extend(own[-len(own) // TEST_SHARE :])
    first, second = (_read(images, indices, classes) for indices in split)
    return first, second


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--weight", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Of the penalty in the loss.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True), default=0.1, show_default=True)
@click.option("--data", default="samples", show_default=True, metavar="samples|cifar10|DIR",
              help="A folder has train/ and test/, a subfolder per class in each.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, crops and batches.")
@device_option
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table and the figure.")  # fmt: skip
@quiet_option
def main(data: str, device: str, out: Path, quiet: bool, **recipe: Any) -> None:
    """Run both trainings and write table and figure."""
    chosen = PenaltyRecipe(**recipe)
    train_set, test_set = _load_data(data, chosen.seed)
    click.echo(
        f"{ARCHITECTURE} on {len(train_set.images)} images of {train_set.data_id} ({len(train_set.classes)} "
        f"classes), tested on {len(test_set.images)}; {chosen.epochs} epochs without and with {METRIC} × "
        f"{chosen.weight:g} in the loss"
    )
    path = out / "tables" / "penalty.csv"
    facts = {"architecture": ARCHITECTURE, "data": train_set.data_id, "recipe": asdict(chosen)}
    refuse_other_tables([path], facts)
    table = compare_penalty(train_set, test_set, chosen, device, progress=not quiet)
    write_csv(table, path, {**facts, **describe_environment(), "device": device})
    click.echo(describe_outcome(table))
    if data == "samples":
        click.echo("telling ten photographs apart is too easy to show what the penalty costs; see --data")
    click.echo(f"  {path}  ({len(table)} rows)")
    click.echo(f"  {draw_and_say('penalty', out / 'tables', out / 'figures')}")


def describe_outcome(table: pd.DataFrame) -> str:
    """Put both runs' last epoch side by side, and say what the difference in accuracy is worth."""
    last = table.groupby("run", sort=False).last()
    lines = [format_rows(["run", METRIC, "alias power ratio", "loss", "accuracy (95 % interval)"], [
        [str(run), f"{row[METRIC]:.3f}", f"{row['alias_power_ratio']:.4f}", f"{row['loss']:.3f}",
         f"{row['accuracy']:.1%} ({row['accuracy_ci_low']:.1%} – {row['accuracy_ci_high']:.1%})"]
        for run, row in last.iterrows()
    ])]  # fmt: skip
    plain, penalty = last.loc["plain"], last.loc["penalty"]
    overlap = (
        penalty["accuracy_ci_high"] >= plain["accuracy_ci_low"]
        and plain["accuracy_ci_high"] >= penalty["accuracy_ci_low"]
    )
    lines.append(
        f"{METRIC} {100 * (penalty[METRIC] / plain[METRIC] - 1):+z.0f} %, accuracy "
        f"{100 * (penalty['accuracy'] - plain['accuracy']):+.1f} percentage points: "
        f"{'the intervals overlap' if overlap else 'the intervals are apart'}, and this is one run of each"
    )
    return "\n".join(lines)


def _train(
    train_set: LabelledImages,
    test_set: LabelledImages,
    recipe: PenaltyRecipe,
    weight: float,
    device: torch.device,
    bar: Any,
) -> list[dict[str, float]]:
    """Train one network; what was measured before the first epoch and after each."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model = move_for_training(build(ARCHITECTURE), device)
    sites = find_sites(model, tuple(train_set.images.shape[-2:]))
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.max_lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = recipe.epochs * -(-len(train_set.images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps))
    order = torch.Generator().manual_seed(recipe.seed)  # the same batches for both runs
    rows = [{"epoch": 0, "loss": math.nan, **_evaluate(model, sites, test_set, device)}]
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        losses = []
        with AliasingPenalty(model, sites, METRIC) if weight else nullcontext() as penalty:
            for images, labels in _batches(train_set, recipe.batch_size, order, device):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad(set_to_none=True)
                (loss if penalty is None else loss + weight * penalty.value()).backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
        mean = sum(losses) / len(losses)
        rows.append({"epoch": epoch, "loss": mean, **_evaluate(model, sites, test_set, device)})
    return rows


def _batches(
    data: LabelledImages, batch_size: int, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle, shift by up to 4 px, flip."""
    for chosen in torch.randperm(len(data.images), generator=generator).split(batch_size):
        shifts = torch.randint(0, 9, (len(chosen), 2), generator=generator)
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        batch = augment(data.images[chosen], shifts, flips, pad=4)
        yield normalize(batch).to(device), data.labels[chosen].to(device)


@torch.no_grad()
def _evaluate(
    model: nn.Module, sites: Sequence[Site], data: LabelledImages, device: torch.device
) -> dict[str, float]:
    """Accuracy, and the mean of the alias metrics over sites and images, in evaluation mode."""
    model.eval()
    right, sums = [], dict.fromkeys(LOGGED, 0.0)
    with AliasingMonitor(model, sites, metrics=LOGGED) as monitor:
        for start in range(0, len(data.images), EVALUATION_BATCH):
            images = normalize(data.images[start : start + EVALUATION_BATCH]).to(device)
            labels = data.labels[start : start + EVALUATION_BATCH].to(device)
            right.append((model(images).argmax(1) == labels).cpu())
            values = monitor.values()
            for name in LOGGED:
                sums[name] += values[f"mean/dense/{name}"] * len(images)
    n = len(data.images)
    share = stats.summarize_share(torch.cat(right), data.clusters)
    means = {name: total / n for name, total in sums.items()}
    return {**means, "accuracy": share.share, "accuracy_ci_low": share.ci_low,
            "accuracy_ci_high": share.ci_high, "n": n, "n_clusters": share.n_clusters}  # fmt: skip


def _one_cycle(progress: float) -> float:
    """Rise over a quarter of the run, then fall to nothing, both along half a cosine."""
    rise = 0.25
    part = progress / rise if progress < rise else 1 - (progress - rise) / (1 - rise)
    return max((1 - math.cos(math.pi * part)) / 2, 1e-3)


def _load_data(data: str, seed: int) -> tuple[LabelledImages, LabelledImages]:
    if data == "samples":
        return load_sample_crops(seed=seed)
    root, source = (None, "cifar10") if data == "cifar10" else (Path(data).expanduser(), "folder")
    sets = []
    for split in ("train", "test"):
        images, labels, classes = load_labelled_arrays(root, split, source)
        sets.append(LabelledImages(images, labels, tuple(classes), root.resolve().name if root else data))
    if sets[0].classes != sets[1].classes or len(sets[0].classes) > NUM_CLASSES:
        raise SpectralError(
            f"--data: train/ and test/ must have the same classes, at most {NUM_CLASSES}, got "
            f"{len(sets[0].classes)} and {len(sets[1].classes)}"
        )
    return sets[0], sets[1]


def _read(images: ImageSet, indices: Sequence[int], classes: Sequence[str]) -> LabelledImages:
    pixels = torch.stack([(images[i] * 255).round().to(torch.uint8) for i in indices])
    photographs = tuple(str(images.items[i].photograph) for i in indices)
    labels = torch.tensor([classes.index(name) for name in photographs])
    return LabelledImages(pixels, labels, tuple(classes), "samples", photographs)
