"""Tune one network with each anti-aliasing layer in the place of its strides: one recipe, a checkpoint each.

What phase 7 compares. Each starts from the same trained weights and is called after the network and the
layer, such as resnet20-tuned-flc; "strided" is tuned too, so that the training itself isn't taken for a
layer's doing. A checkpoint that is there is left alone, and the same command continues after an interruption.

Example: python experiments/train_layers.py --data cifar10 --out data/checkpoints --methods flc,aps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from torch import nn

from spectral.files.atomic import ensure_writable
from spectral.files.training_state import remove_state
from spectral.models import load_model
from spectral.models.architectures import name_architecture
from spectral.surgery import check_methods
from spectral.terminal.console import FilePath, SpectralCommand, device_option, split_names
from spectral.training import STATE_NAME, Recipe
from spectral.training.checkpoints import LabelledSets, load_labelled_sets, train_checkpoint

BASE = "bundled/resnet20"
LAYER_METHODS = (
    "strided", "blurpool", "blurpool-5", "learned", "flc", "asap", "aps", "lps", "wavelet",
    "wavelet-bior2.2", "space-to-depth",
)  # fmt: skip
TUNING = Recipe(epochs=1, max_lr=0.02)  # one pass: eleven networks on two CPU cores


def name_tuned(base: str, method: str) -> str:
    """Return the file stem of a tuned checkpoint.

    Example:
        >>> name_tuned("bundled/resnet20", "flc")
        'resnet20-tuned-flc'
    """
    return f"{base.rpartition('/')[2]}-tuned-{method}"


def tune_layers(
    base: str,
    methods: Sequence[str],
    sets: LabelledSets,
    out: Path,
    recipe: Recipe = TUNING,
    device: str = "cpu",
) -> list[Path]:
    """Tune a network with each layer and write the checkpoints that aren't there yet.

    Args:
        base: the network that all start from.
        methods: layers, as `spectral.convert` names them.
        sets: train and test images.
        out: folder for the checkpoints.
        recipe: the hyper-parameters, the same for all.
        device: where to train.

    Returns:
        The checkpoints, old and new.

    Raises:
        SpectralError: for an unknown layer, before anything is trained; else as `train_checkpoint`.
    """
    check_methods(methods, "--methods: ")
    architecture = name_architecture(load_model(base))
    paths = []
    for method in methods:
        path = out / f"{name_tuned(base, method)}.safetensors"
        paths.append(path)
        # loaded converted: layers with weights of their own then start from the same ones every time
        network = partial(load_model, f"{base}+{method}", device=device)
        ensure_checkpoint(path, architecture, sets, recipe, device, network)
    return paths


def ensure_checkpoint(
    path: Path,
    architecture: str,
    sets: LabelledSets,
    recipe: Recipe,
    device: str = "cpu",
    load_start: Callable[[], nn.Module] | None = None,
) -> None:
    """Train a checkpoint that isn't there yet, say its accuracy, and remove the state of the training.

    Args:
        path: as `train_checkpoint`.
        architecture: as `train_checkpoint`.
        sets: as `train_checkpoint`.
        recipe: as `train_checkpoint`.
        device: as `train_checkpoint`.
        load_start: loads the network to tune instead of fresh weights, if it comes to that.

    Raises:
        SpectralError: as `train_checkpoint`.
    """
    if path.exists():
        said = "there already; delete it to train it again"
    else:
        result = train_checkpoint(path, architecture, sets, recipe, device, load_start and load_start())
        said = f"test accuracy {result['test_accuracy']:.2%}"
    remove_state(path.parent / "training" / path.stem / STATE_NAME)  # the checkpoint takes its place
    click.echo(f"{path.stem}: {said}")


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--data", required=True, metavar="cifar10|DIR",
              help="A folder has train/ and test/, a subfolder per class in each.")  # fmt: skip
@click.option("--data-id", help="What tables call the data; by default the folder's name.")
@click.option("--out", type=FilePath(), default=Path("data/checkpoints"), show_default=True,
              help="Folder for the checkpoints.")  # fmt: skip
@click.option("--methods", default=",".join(LAYER_METHODS), show_default=True, metavar="A,B,…")
@click.option("--epochs", type=click.IntRange(min=1), default=TUNING.epochs, show_default=True)
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True), default=TUNING.max_lr,
              show_default=True)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=TUNING.batch_size, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and augmentation.")
@device_option
def main(data: str, data_id: str | None, out: Path, methods: str, device: str, **recipe: Any) -> None:
    """Tune the bundled network with each layer."""
    ensure_writable(out)
    chosen = list(split_names(methods, "--methods"))
    sets = load_labelled_sets(data, data_id)
    click.echo(
        f"tuning {BASE} on {len(sets[0].images)} images of {sets[0].data_id} with {len(chosen)} layers"
    )
    tune_layers(BASE, chosen, sets, out, Recipe(**recipe), device)
