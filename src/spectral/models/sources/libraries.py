"""timm, torchvision and antialiased_cnns, each imported when a model of it is asked for, not before."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral.errors import SpectralError, suggest, warn
from spectral.files.atomic import hash_file
from spectral.models.fetching import RANDOM, fetching, require_hub
from spectral.models.info import IMAGENET, ModelInfo, Preprocessing
from spectral.models.sources.base import Loaded, Source, State, name_classes, require_name

ANTIALIASED_FAMILIES = ("alexnet", "densenet", "mobilenet", "resnet", "vgg")
ANTIALIASED_WEIGHTS = "_lpf4_finetune"  # what the package loads for its default filter size


def list_timm() -> list[str]:
    """List timm's architectures, and those of their weights that have names."""
    import timm

    return [*timm.list_models(), *timm.list_models(pretrained=True)]


def open_timm(
    name: str, pretrained: bool, classes: int | None = None, arguments: Mapping[str, Any] | None = None
) -> Loaded:
    """Open one of timm's networks, with the preprocessing that its configuration names.

    Args:
        name: timm's.
        pretrained: whether with its weights.
        classes: outputs of its head, None for its own.
        arguments: further ones, as a file that timm wrote names them.
    """
    import timm
    from timm.data.config import resolve_data_config

    require_name("timm", name, list_timm())
    source = timm.get_pretrained_cfg(name)
    if pretrained and (source is None or not source.has_weights):
        offered = [n for n in timm.list_models(pretrained=True) if n.startswith(name.partition(".")[0])]
        raise SpectralError(
            f"timm/{name}: timm has the architecture but no pretrained weights under this name"
            f"{suggest(name, offered)}; for its structure alone ask for 'timm/{name}{RANDOM}'"
        )
    with fetching(f"timm/{name}"):
        if pretrained:
            require_hub(source)
        head: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        model: Any = timm.create_model(name, pretrained=pretrained, **head, **(arguments or {}))
    config = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    size, mean, std = config["input_size"][1:], config["mean"], config["std"]
    preprocessing = Preprocessing(tuple(size), tuple(mean), tuple(std))
    metadata = {key: getattr(source, key) for key in ("hf_hub_id", "tag", "license")} if pretrained else {}
    return model, ModelInfo(name, None, "", preprocessing, model.num_classes, metadata=metadata)


def list_torchvision() -> list[str]:
    """List torchvision's classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def open_torchvision(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open one of torchvision's classifiers, with the preprocessing of its default weights."""
    from torchvision import models

    require_name("torchvision", name, list_torchvision())
    weights = models.get_model_weights(name).DEFAULT
    with fetching(f"torchvision/{name}"):
        head = {} if classes is None else {"num_classes": classes}
        model = models.get_model(name, weights=weights if pretrained else None, **head)
    recipe = weights.transforms()
    side = recipe.crop_size[0]
    preprocessing = Preprocessing((side, side), tuple(recipe.mean), tuple(recipe.std))
    names = tuple(weights.meta["categories"])
    metadata = {"resize_size": recipe.resize_size[0], "interpolation": recipe.interpolation.value}
    metadata |= {"weights": str(weights), "url": weights.url} if pretrained else {}
    # A file that is there isn't asked for again: its name has a digest of its content.
    files = (Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name),) if pretrained else None
    info = ModelInfo(name, None, "", preprocessing, len(names), names, metadata, files)
    return model, name_classes(info, classes)


def settle_input(model: nn.Module, name: str, path: Path) -> None:
    """Have a network take its images as the weights of a file want them, where torchvision has two ways.

    GoogLeNet and Inception with published weights bring ImageNet's normalisation to another inside; built
    without them they don't, and a file of weights doesn't tell for which of the two it is.

    Args:
        model: with the weights.
        name: torchvision's.
        path: of the file.
    """
    from torchvision import models

    if getattr(model, "transform_input", None) is not False:
        return
    published = Path(models.get_model_weights(name).DEFAULT.url).stem.rpartition("-")[2]
    model.transform_input = hash_file(path).startswith(f"sha256:{published}")  # type: ignore[assignment]
    if not model.transform_input:
        warn(
            f"{path} isn't torchvision's own file of {name}, and doesn't tell whether images are normalised "
            f"again inside (transform_input), as with the published weights; they aren't: where it was tuned "
            f"from these, build it in a function of your own"
        )


def import_antialiased() -> Any:
    """Import the optional package.

    Raises:
        SpectralError: if it isn't installed.
    """
    try:
        return importlib.import_module("antialiased_cnns")
    except ImportError as error:
        raise SpectralError(
            "antialiased/… needs the optional package antialiased-cnns (its licence is CC BY-NC-SA: not for "
            "commercial use); install it with: pip install 'spectral-aliasing[antialiased]'"
        ) from error


def list_antialiased() -> list[str]:
    """List the BlurPool networks with weights for the package's default filter."""
    import_antialiased()
    families = [importlib.import_module(f"antialiased_cnns.{family}") for family in ANTIALIASED_FAMILIES]
    keys = [key for family in families for key in family.model_urls]
    return sorted(key.removesuffix(ANTIALIASED_WEIGHTS) for key in keys if key.endswith(ANTIALIASED_WEIGHTS))


def open_antialiased(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open one of Adobe's BlurPool networks."""
    package = import_antialiased()
    require_name("antialiased", name, list_antialiased())
    with fetching(f"antialiased/{name}"):
        head = {} if classes is None else {"num_classes": classes}
        model = getattr(package, name)(pretrained=pretrained, **head)
    metadata = {"filter_size": 4, "license": "CC BY-NC-SA 4.0"}
    return model, ModelInfo(name, "blurpool", "", IMAGENET, classes or 1000, metadata=metadata)


def rename_dense(state: State, model: nn.Module, where: str) -> State:
    """Give the weights of a DenseNet the names of its modules: published files have ``norm.1`` for ``norm1``.

    Example:
        >>> list(rename_dense({"denselayer1.norm.1.bias": torch.zeros(1)}, nn.Identity(), "file"))
        ['denselayer1.norm1.bias']
    """
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    return {old.sub(r"\1\2", key): value for key, value in state.items()}


def rename_published(state: State, model: nn.Module, where: str) -> State:
    """Give the weights of one of timm's networks timm's names, where a file has those of its authors.

    That is timm's own function for such files, if the module of the network has one.

    Args:
        state: as the file has it.
        model: one of timm's.
        where: it comes from, for the warning.

    Example:
        >>> list(rename_published({"bias": torch.zeros(2)}, nn.Linear(2, 2), "file"))
        ['bias']
    """
    own = model.state_dict()
    rename = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if rename is None or set(state) == set(own):
        return state
    try:
        found = rename(dict(state), model)
    except Exception:  # of another network's weights, which are then refused by their names
        return state
    if not isinstance(found, Mapping) or not set(found) <= set(own) or set(found) <= set(state):
        return state
    warn(f"{where}: its tensors have the names of its authors' code; timm's own function renames them")
    return found


TIMM = Source(list_timm, open_timm, rename_published)
TORCHVISION = Source(list_torchvision, open_torchvision, rename_dense)
ANTIALIASED = Source(list_antialiased, open_antialiased, rename_dense)
