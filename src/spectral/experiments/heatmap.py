"""Fourier heatmaps: how networks answer to each spatial frequency (Yin et al. 2019).

Every image is classified with the basis image of one frequency added, for every frequency: about half as
many forward passes per image as it has pixels, a quarter of that with --stride 2. Writes
tables/fourier_heatmap.csv and figures/fourier_heatmap.png.

Example: python experiments/fourier_heatmap.py bundled/resnet20 bundled/resnet20-blurpool --limit 64
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd
from torch import nn

from spectral.classes import match_labels
from spectral.data import ImageSet, load_images
from spectral.figures import draw_and_say
from spectral.models import load_model
from spectral.models.info import model_info
from spectral.perturb import measure_fourier_heatmap
from spectral.perturb.heatmap import NORMS
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.terminal.console import (
    FilePath,
    SpectralCommand,
    device_option,
    hold_folder,
    quiet_option,
    workers_option,
)

TABLE = "fourier_heatmap"


def load_images_for(
    model: nn.Module, source: str, limit: int | None, seed: int, workers: int | None = None
) -> ImageSet:
    """Load images at a network's size, and say so if labels don't count its classes.

    Raises:
        SpectralError: as `load_images`.

    Example:
        >>> load_images_for(load_model("bundled/resnet20@random"), "synthetic", 2, 0).size
        (32, 32)
    """
    info = model_info(model)
    assert info is not None
    images = load_images(source, size=info.preprocessing.size, limit=limit, seed=seed, workers=workers)
    if images.has_labels and (reason := match_labels(model, images).reason):
        click.echo(f"  {info.name}, labels of {images.source}: {reason}")
    return images


@click.command(cls=SpectralCommand, help=__doc__)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--images", "source", default="samples", show_default=True,
              help="samples, synthetic, stl10, cifar10 or a folder.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True, help="So many images.")
@click.option("--norm", type=click.FloatRange(min=0, min_open=True), default=NORMS["CIFAR-10"],
              show_default=True, help="L2 norm per channel of what is added; 15.7 for ImageNet.")  # fmt: skip
@click.option("--radius", type=click.IntRange(min=0), help="Up to so many cycles per image; by default all.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True,
              help="Only every so-many-th frequency.")  # fmt: skip
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for the table and the figure.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of crops and signs.")
@device_option
@workers_option
@quiet_option
def main(
    models: tuple[str, ...],
    source: str,
    limit: int,
    out: Path,
    seed: int,
    device: str,
    workers: int | None,
    quiet: bool,
    **grid: Any,
) -> None:
    """Measure the heatmaps, write their table and draw them."""
    hold_folder(out, source)
    networks = {name: load_model(name, device=device) for name in models}
    click.echo(f"Fourier heatmaps of {', '.join(networks)} on up to {limit} images of {source}")
    path, facts = out / "tables" / f"{TABLE}.csv", {}
    pictures = {
        name: load_images_for(model, source, limit, seed, workers) for name, model in networks.items()
    }
    for name, model in networks.items():
        images = pictures[name]
        info = model_info(model)
        facts[name] = {
            "weights": info and info.weights_id, "source": images.source, "count": len(images),
            "fingerprint": images.fingerprint,
            "labelled": sum(y is not None for y in match_labels(model, images).renumber(images.labels)),
        }  # fmt: skip
    own = {name: value for name, value in grid.items() if name != "batch_size"}
    refuse_other_tables([path], {"models": facts, "seed": seed, **own})
    frames = []
    for name, model in networks.items():
        table = measure_fourier_heatmap(model, pictures[name], seed=seed, progress=not quiet, **grid)
        frames.append(table.assign(model=name)[["model", *table.columns]])
    whole = {"models": facts, "seed": seed, **grid, **describe_environment(), "device": device}
    write_csv(pd.concat(frames, ignore_index=True), path, whole)
    click.echo(f"  {path}\n  {draw_and_say(TABLE, out / 'tables', out / 'figures')}")
