"""Published CIFAR-10 weights that load into our own modules: NULA, RobustBench's zoo, and He's ResNets."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from spectral.classes import CIFAR10_CLASSES
from spectral.errors import SpectralError
from spectral.models import robustbench
from spectral.models.architectures import build, family_of
from spectral.models.checkpoint import load_state
from spectral.models.fetching import download, fetch_from_hub, fetching
from spectral.models.info import CIFAR, CIFAR_NUM_CLASSES, IMAGENET, ModelInfo, Preprocessing
from spectral.models.renaming import match_names
from spectral.models.sources.base import Loaded, Source, State, name_classes, require_name

NULA_REPOSITORIES = {
    "robust": "MamaPearl/nula-cifar10-robust-v0",
    "robust-v1": "MamaPearl/nula-cifar10-robust-v1",
}
NULA_FILE = "model.safetensors"


def open_nula(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open NULA: our own module, the hub's weights."""
    require_name("nula", name, list(NULA_REPOSITORIES))
    model = build("nula", classes)
    metadata = {"hf_hub_id": NULA_REPOSITORIES[name], "license": "MIT"} if pretrained else {}
    info = ModelInfo(name, "nula", "", CIFAR, CIFAR_NUM_CLASSES, CIFAR10_CLASSES, metadata)
    if not pretrained:
        return model, name_classes(info, classes)
    with fetching(f"nula/{name}"):
        path = fetch_from_hub(NULA_REPOSITORIES[name], NULA_FILE)
    where = f"nula/{name}: {path}"
    return NULA.fill((model, info), load_state(path), where)


def open_robustbench(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open one of RobustBench's CIFAR-10 networks: our own modules, its files."""
    require_name("robustbench", name, list(robustbench.MODELS))
    published = robustbench.MODELS[name]
    preprocessing = Preprocessing(CIFAR.size, *published.normalisation)
    metadata = {"url": published.url, "threat": published.threat} if pretrained else {}
    family = family_of(published.architecture)
    info = ModelInfo(name, family, "", preprocessing, CIFAR_NUM_CLASSES, CIFAR10_CLASSES, metadata)
    if not pretrained:
        return build(published.architecture, classes), name_classes(info, classes)
    path = robustbench.find_file(name)
    if not path.is_file():
        by_hand = f"put the file by hand where RobustBench keeps it, at {path}; "
        with fetching(f"robustbench/{name}", by_hand):
            download(published.url, path)
    state = load_state(path)
    info = replace(info, files=(path,))
    return ROBUSTBENCH.fill((build(published.architecture), info), state, f"robustbench/{name}: {path}")


@dataclass(frozen=True)
class CifarFile:
    """A file of Idelbayev's ResNets for CIFAR-10: the start of its SHA-256 stands in its name."""

    depth: int
    digest: str
    test_error: float | None  # per cent, as its author publishes it

    @property
    def name(self) -> str:
        """The file's name, which is the author's."""
        return f"resnet{self.depth}-{self.digest}.th"


CIFAR_HUB = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
CIFAR_FILES = {
    f"resnet{file.depth}": file
    for file in (
        CifarFile(20, "12fca82f", 8.27),
        CifarFile(32, "d509ac18", 7.37),
        CifarFile(44, "014dd654", 6.90),
        CifarFile(56, "4bfd9763", 6.61),
        CifarFile(110, "1d1ed7c2", 6.32),
    )
}


def find_cifar_file(name: str) -> Path:
    """Return where a file of ``cifar-hub`` lies or belongs: in $SPECTRAL_DATA (or data/), models/cifar-hub.

    Example:
        >>> find_cifar_file("resnet20").parts[-3:]
        ('models', 'cifar-hub', 'resnet20-12fca82f.th')
    """
    root = Path(os.environ.get("SPECTRAL_DATA", "data")).expanduser()
    return root / "models" / "cifar-hub" / CIFAR_FILES[name].name


def open_cifar(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open a published ResNet for CIFAR-10: shortcuts without parameters, ImageNet's normalisation."""
    require_name("cifar-hub", name, list(CIFAR_FILES))
    file = CIFAR_FILES[name]
    metadata = {"url": CIFAR_HUB + file.name, "license": "BSD-2-Clause", "test_error": file.test_error}
    preprocessing = Preprocessing(CIFAR.size, IMAGENET.mean, IMAGENET.std)
    info = ModelInfo(
        name, "strided", "", preprocessing, CIFAR_NUM_CLASSES, CIFAR10_CLASSES, metadata if pretrained else {}
    )
    model = build(f"resnet{file.depth}-a", classes)
    if not pretrained:
        return model, name_classes(info, classes)
    path = find_cifar_file(name)
    if not path.is_file():
        with fetching(f"cifar-hub/{name}", f"put the file by hand at {path}; "):
            download(CIFAR_HUB + file.name, path)
    require_digest(path, file.digest)
    loaded = model, replace(info, files=(path,))
    return CIFAR_HUB_SOURCE.fill(loaded, load_state(path), f"cifar-hub/{name}: {path}")


def rename_cifar(state: State, model: nn.Module, where: str) -> State:
    """Give the weights of a ResNet for CIFAR-10 our names: their author calls the head ``linear``.

    Example:
        >>> import torch
        >>> file = {"conv1.weight": torch.zeros(1), "linear.bias": torch.zeros(1)}
        >>> list(rename_cifar(file, build("resnet20"), "file"))
        ['conv1.weight', 'fc.bias']
    """
    return {re.sub(r"^linear\.", "fc.", key): value for key, value in state.items()}


def require_digest(path: Path, digest: str) -> None:
    """Check that a file is the one its name promises.

    Raises:
        SpectralError: if its SHA-256 begins otherwise.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise SpectralError(
            f"{path}: its SHA-256 must begin with {digest}, got {found[: len(digest)]}: it is another file "
            f"or damaged; delete it and fetch or install it again"
        )


# NULA's card shows no code: what its tensors are called isn't known.
NULA = Source(lambda: list(NULA_REPOSITORIES), open_nula, match_names)
ROBUSTBENCH = Source(lambda: list(robustbench.MODELS), open_robustbench)
CIFAR_HUB_SOURCE = Source(lambda: list(CIFAR_FILES), open_cifar, rename_cifar)
