"""Trainings that end in a weights file: the images they see, and the networks that they start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import spectral.data
from spectral.errors import SpectralError
from spectral.files.atomic import require_place
from spectral.models.architectures import build
from spectral.models.checkpoint import save_checkpoint
from spectral.models.info import CIFAR_NUM_CLASSES, model_info
from spectral.processes.ranks import find_ranks
from spectral.surgery import conversion_report, convert_alike
from spectral.surgery.report import find_report
from spectral.training.images import LabelledImages
from spectral.training.loop import STATE_NAME, train
from spectral.training.recipe import Recipe

LabelledSets = tuple[LabelledImages, LabelledImages]


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
        files = path, path.with_suffix(".json")
        require_place(*files)
        for file in files:
            if os.path.lexists(file) and not os.path.lexists(state / STATE_NAME):
                raise SpectralError(
                    f"{file} is there already, and the state of its training is not ({state / STATE_NAME}); "
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
