"""What in a training makes a network fall for a checkerboard: the same tuning, one thing altered at a time.

A published network is tuned on lossless CIFAR-10 images, as it was trained (SGD, weight decay 1e-4,
float32), and again with one of these altered: the same images as JPEG, or with noise; weight decay; rate;
length; precision. Images that no run was tuned on score all of them, clean and under checkerboards. The
gain of the stem at the Nyquist corner is that of its largest, over all frequencies. Rows are written as
they come; runs that are there are skipped.

Example: python experiments/checkerboard_training.py --images lossless.npz --jpeg cifar10-jpeg --out results
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

import spectral
from spectral.classes import CIFAR10_CLASSES
from spectral.files.atomic import hash_file
from spectral.stats.comparison import find_wilson_interval
from spectral.table.csv_files import describe_environment, read_csv, refuse_other_tables, write_csv
from spectral.training import LabelledImages, Recipe, train

PERTURBATIONS = ("checkerboard-0.03", "checkerboard-0.05", "resize-0.5")
BASE = Recipe(epochs=8, batch_size=128, max_lr=0.05, weight_decay=1e-4, precision="fp32")
JPEG = "jpeg"
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    JPEG: {},
    "noise of 2/255": {"jitter": 2 / 255},
    "weight decay 0": {"weight_decay": 0.0},
    "weight decay 1e-3": {"weight_decay": 1e-3},
    "rate 0.005": {"max_lr": 0.005},
    "rate 0.2": {"max_lr": 0.2},
    "24 epochs": {"epochs": 24},
    "bfloat16": {"precision": "bf16"},
}


def find_corner_gain(model: nn.Module) -> float:
    """Return the gain of the first convolution at the Nyquist corner, of its largest at any frequency."""
    weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d)).detach().double()
    gains = torch.fft.fft2(weight, s=(64, 64)).abs().square().sum((0, 1)).sqrt()
    return float(gains[32, 32] / gains.max())


def score(model: nn.Module, images: Tensor, labels: Tensor, **run: Any) -> list[dict[Any, Any]]:
    """Return a row per perturbation of a run: the accuracy and its interval."""
    said = spectral.measure_predictions(model, images.float() / 255, PERTURBATIONS, progress=False)
    gain, rows = find_corner_gain(model), []
    for name, own in said.groupby("perturbation", sort=False):
        right = float((own["prediction"].to_numpy() == labels.numpy()).mean())
        low, high = find_wilson_interval(right, len(own))
        rows.append({**run, "corner_gain": gain, "perturbation": name, "n": len(own), "accuracy": right,
                     "accuracy_ci_low": low, "accuracy_ci_high": high})  # fmt: skip
    return rows


@click.command(help=__doc__)
@click.option("--model", default="cifar-hub/resnet20", show_default=True)
@click.option("--images", required=True, help="An .npz with images, labels and jpeg_files.")
@click.option("--jpeg", type=click.Path(exists=True, path_type=Path), required=True, help="The same as JPEG.")
@click.option("--tuned", default=3000, show_default=True, help="So many are tuned on, the others score.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
def main(model: str, images: str, jpeg: Path, tuned: int, seeds: int, out: Path) -> None:
    """Tune and score, run after run."""
    held = np.load(images)
    pixels = torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(held["labels"].astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels)))
    own, scored = order[:tuned], order[tuned:]
    compressed = np.stack([np.asarray(Image.open(jpeg / held["jpeg_files"][i])) for i in own.tolist()])
    sets = {
        JPEG: torch.from_numpy(compressed).permute(0, 3, 1, 2).contiguous(),
        "lossless": pixels[own],
    }
    test = LabelledImages(pixels[scored], labels[scored], CIFAR10_CLASSES, "lossless")
    path = out / "tables" / "checkerboard_training.csv"
    notes = {"model": model, "tuned": tuned, "images": hash_file(Path(images))}
    refuse_other_tables([path], notes)
    start = spectral.load_model(model)
    rows: list[dict[Any, Any]] = read_csv(path).to_dict("records") if path.exists() else []
    if not rows:
        rows = score(start, pixels[scored], labels[scored], variant="untuned", seed=0)
    for seed in range(seeds):
        for variant, altered in VARIANTS.items():
            if any((row["variant"], row["seed"]) == (variant, seed) for row in rows):
                continue
            kind = JPEG if variant == JPEG else "lossless"
            data = LabelledImages(sets[kind], labels[own], CIFAR10_CLASSES, kind)
            recipe = replace(BASE, **altered, seed=seed)
            state = out / "states" / f"{variant.replace('/', '-')}-{seed}"
            found = train(model, data, test, state, recipe, progress=False, start=start)
            made = score(found["model"], pixels[scored], labels[scored], variant=variant, seed=seed)
            rows += made
            write_csv(pd.DataFrame(rows), path, {**describe_environment(), **notes})
            said = ", ".join(f"{row['perturbation']} {row['accuracy']:.3f}" for row in made)
            click.echo(f"{variant}, seed {seed}: {said}; corner {made[0]['corner_gain']:.3f}")


if __name__ == "__main__":
    main()
