"""Tune one network with each anti-aliasing layer in the place of its strides: one recipe, a checkpoint each.

What phase 7 compares. Each starts from the same trained weights and is called after the network and the
layer, such as resnet20-tuned-flc; "strided" is tuned too, so that the training itself isn't taken for a
layer's doing. A checkpoint that is there is left alone, and the same command continues after an interruption.

Example: python experiments/train_layers.py --data cifar10 --out data/checkpoints --methods flc,aps
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import spectral.data
from spectral.errors import SpectralError
from spectral.files.atomic import ensure_writable
from spectral.files.training_state import remove_state
from spectral.models import load_model
from spectral.models.architectures import build
from spectral.models.checkpoint import save_checkpoint
from spectral.models.fetching import RANDOM
from spectral.models.info import CIFAR_NUM_CLASSES, model_info
from spectral.processes.ranks import find_ranks
from spectral.study.options import split_names
from spectral.surgery import check_methods, conversion_report, convert_alike
from spectral.surgery.report import find_report
from spectral.terminal.console import FilePath, SpectralCommand, device_option
from spectral.training import STATE_NAME, LabelledImages, Recipe, train

BASE = "bundled/resnet20"
LAYER_METHODS = (
    "strided", "blurpool", "blurpool-5", "learned", "flc", "asap", "aps", "lps", "wavelet",
    "wavelet-bior2.2", "space-to-depth",
)  # fmt: skip
TUNING = Recipe(epochs=1, max_lr=0.02)  # one pass: eleven networks on two CPU cores
LabelledSets = tuple[LabelledImages, LabelledImages]


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


def load_labelled_sets(data: str, data_id: str | None = None) -> LabelledSets:
    """Read the train and test images, and check that one network can be trained and tested on them.

    Args:
        data: cifar10, or a folder with train/ and test/, a subfolder per class in each.
        data_id: what tables call the data; by default the folder's name.

    Raises:
        SpectralError: if the data is not so.
    """
    root = None if data == "cifar10" else Path(data).expanduser()
    missing = [split for split in ("train", "test") if root and not (root / split).is_dir()]
    if missing:
        raise SpectralError(
            f"--data: expected cifar10 or a folder with train/ and test/, but {data!r} has no {missing[0]}/"
        )
    source = "folder" if root else "cifar10"
    name = data_id or (root.resolve().name if root else data)
    sets = []
    for split in ("train", "test"):
        images, labels, classes = spectral.data.load_labelled_arrays(root, split, source)
        sets.append(LabelledImages(images, labels, tuple(classes), name))
    if sets[0].classes != sets[1].classes:
        raise SpectralError(
            f"--data: train/ and test/ must have the same classes, got {', '.join(sets[0].classes)} and "
            f"{', '.join(sets[1].classes)}"
        )
    if not 2 <= len(sets[0].classes) <= CIFAR_NUM_CLASSES:
        raise SpectralError(
            f"--data: expected 2 to {CIFAR_NUM_CLASSES} classes, as the architectures have "
            f"{CIFAR_NUM_CLASSES} outputs, got {len(sets[0].classes)}"
        )
    return sets[0], sets[1]


def train_checkpoint(
    path: Path,
    architecture: str,
    sets: LabelledSets,
    recipe: Recipe,
    device: str = "cpu",
    start: nn.Module | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, or continue an interrupted training, and write the weights with all that describes them.

    Args:
        path: weights file; the state to continue from is kept beside it, under training/.
        architecture: name from `spectral.models.architectures`.
        sets: train and test images.
        recipe: the hyper-parameters.
        device: where to train.
        start: the network to tune instead of fresh weights; how it was converted is written down with it.
        progress: show a bar per epoch.

    Returns:
        The metadata written.

    Raises:
        SpectralError: as `spectral.train` and `save_checkpoint`; if weights are there without the state of
            their training, which alone tells whether they are those of this one.
    """
    state = path.parent / "training" / path.stem
    with find_ranks().agreeing():
        if os.path.lexists(path) and not os.path.lexists(state / STATE_NAME):
            raise SpectralError(
                f"{path} is there already, and the state of its training is not ({state / STATE_NAME}); "
                f"choose another folder, or delete it to train it again"
            )
    result = train(architecture, *sets, state, recipe, device, start=start, progress=progress)
    model = result.pop("model")
    if start is not None:
        info, report = model_info(start), find_report(start)
        # a converted network's own source, unless it is a tuned one that was loaded
        source = (report and report.source) or (info and info.name)
        result |= {"tuned_from": source} if source else {}
        result |= {"conversion": report.to_dict()} if report is not None else {}
    find_ranks().once(lambda: save_checkpoint(model, path, result))
    return result


def convert_fresh(architecture: str, model: nn.Module, seed: int) -> nn.Module:
    """Return a network with the weights that training starts from, converted as another of its architecture.

    The weights are those that `train` gives the unconverted network from this seed: what the two learn then
    differs by the conversion alone.

    Args:
        architecture: name from `spectral.models.architectures`.
        model: a converted network of it.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return convert_alike(build(architecture), conversion_report(model))


def name_architecture(model: nn.Module) -> str:
    """Return what a network's weights file must call its architecture.

    Example:
        >>> from spectral.models import load_model
        >>> name_architecture(load_model("bundled/nula-w32@random"))
        'nula-w32'
    """
    info = model_info(model)
    assert info is not None
    described = info.metadata.get("architecture")
    if described:
        return str(described)
    return info.name.partition("+")[0].removesuffix(RANDOM).removeprefix("bundled/")


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
