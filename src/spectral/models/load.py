"""Networks by name, each with the preprocessing it was trained with and the id of its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral.errors import SpectralError
from spectral.models.architectures import ARCHITECTURES, EXAMPLES, build, family_of
from spectral.models.checkpoint import hash_state, load_state, read_metadata, require_finite
from spectral.models.fetching import RANDOM
from spectral.models.info import CIFAR, CIFAR_NUM_CLASSES, ModelInfo, Preprocessing, model_info
from spectral.models.sources import SOURCES, Loaded, Source, fill, require_name

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".th")
RANDOM_SEED = 0
# An installed package carries its checkpoints inside; a checkout has them in data/.
CHECKPOINT_FOLDERS = (
    Path(__file__).parents[1] / "checkpoints",
    Path(__file__).parents[3] / "data" / "checkpoints",
)


def load_model(
    name: str | os.PathLike[str], *, architecture: str | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Load a network by name or from a weights file, in eval mode, its parameters still requiring gradients.

    What belongs to it (preprocessing, weights id, classes) is the attribute ``spectral_info`` of the model,
    a `ModelInfo`; `model_info` reads it. A copy of the model keeps it, so after surgery or training it says
    where the weights came from, not what they are now.

    Args:
        name: one of
            ``timm/NAME``, ``torchvision/NAME``: published weights, downloaded once into the library's cache;
            ``antialiased/NAME``: Adobe's BlurPool networks (optional package, CC BY-NC-SA);
            ``packaged/efficientnet-lite0`` (1, 2): ImageNet weights that an installed package holds;
            ``cifar-hub/resnet20`` (32, 44, 56, 110): trained on the original CIFAR-10, from
            ``models/cifar-hub`` in $SPECTRAL_DATA (or data/), downloaded there if they are missing;
            ``nula/robust``, ``nula/robust-v1``: NULA's published weights, from the Hugging Face hub, into
            our own module;
            ``robustbench/NAME``: CIFAR-10 models of RobustBench's L∞ zoo, into our own modules, from
            ``models/cifar10/Linf/NAME.pt`` in $SPECTRAL_DATA (or data/), downloaded there if it is missing;
            ``bundled/NAME``: trained by this project and part of it, see `list_bundled`;
            any of these with ``@random`` behind: no weights, a seeded initialisation, to study structure;
            the path of a ``.safetensors`` or torch file (``.pt``, ``.pth``, ``.bin``).
            ``+METHOD`` behind any of them converts it (`spectral.convert`): ``bundled/resnet20+flc``.
        architecture: for a path without a JSON beside it: ``"resnet20"`` and the like for our own networks,
            ``"timm/resnet50"``, or ``"robustbench/NAME"`` for a checkpoint with that model's preprocessing.
        device: where to put the model.

    Raises:
        SpectralError: if the name, architecture or device is unknown, a hub can't be reached, or the weights
            are damaged, unsafe, not finite or of another architecture. Nothing is ever loaded in place of
            what was asked for.

    Example:
        >>> model = load_model("bundled/resnet20@random")
        >>> model.training, model_info(model).weights_id.split(":")[0]
        (False, 'random-0')
    """
    _require_device(device)
    asked = os.fspath(name)
    name, _, method = asked.rpartition("+") if "+" in Path(asked).name else (asked, "", "")
    if method:
        return _load_converted(name, method, architecture, device)
    # Building a network draws its initial weights: from a seed, and without disturbing the caller's stream.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        if _is_path(asked):
            model, info = _open_file(Path(asked).expanduser(), architecture)
        elif architecture is None:
            model, info = _open_named(asked)
        else:
            raise SpectralError(
                f"load_model: architecture={architecture!r} goes with the path of a weights file (ending in "
                f"{', '.join(WEIGHT_SUFFIXES)}), not with {asked!r}; leave it out or give such a path"
            )
    state = model.state_dict()
    require_finite(state, asked)
    weights_id = hash_state(state)
    if asked.endswith(RANDOM):
        weights_id = f"random-{RANDOM_SEED}:{weights_id.partition(':')[2]}"
    model.spectral_info = replace(info, name=asked, weights_id=weights_id)  # type: ignore[assignment]
    return model.to(device).eval()


def _load_converted(
    name: str, method: str, architecture: str | None, device: str | torch.device
) -> nn.Module:
    from spectral.surgery import conversion_report, convert

    model = load_model(name, architecture=architecture, device=device)
    with torch.random.fork_rng(devices=[]):  # some layers have weights of their own
        torch.default_generator.manual_seed(RANDOM_SEED)
        model = convert(model, method)
    report = conversion_report(model)
    if not report.replaced:
        first = report.rows[0]
        raise SpectralError(f"{name}+{method}: nothing can be replaced; {first.site!r}: {first.reason}")
    info = model_info(model)
    assert info is not None
    weights_id = hash_state(model.state_dict())
    model.spectral_info = replace(info, name=f"{name}+{method}", weights_id=weights_id)  # type: ignore[assignment]
    return model


def list_bundled() -> list[str]:
    """Return the names of the checkpoints that come with this package, for ``bundled/NAME``.

    Example:
        >>> all(isinstance(name, str) for name in list_bundled())
        True
    """
    return sorted(_bundled_files())


def _bundled_files() -> dict[str, Path]:
    for folder in CHECKPOINT_FOLDERS:
        files = {path.stem: path for path in folder.glob("*.safetensors")}
        if files:
            return files
    return {}


def _require_device(device: str | torch.device) -> None:
    """Fail before a download rather than after it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise SpectralError(
            f"load_model: device {str(device)!r} can't be used ({reason}); 'cpu' works everywhere"
        ) from error


def _is_path(asked: str) -> bool:
    path = Path(asked).expanduser()
    named = asked.partition("/")[0] in _SOURCES
    return path.suffix.lower() in WEIGHT_SUFFIXES or (path.is_file() and not named)


def _open_file(path: Path, architecture: str | None) -> Loaded:
    metadata = read_metadata(path)
    state = load_state(path)
    described = metadata.get("architecture")
    if architecture is None and described is None:
        raise SpectralError(
            f"{path}: weights alone don't say which network they are for; pass architecture=, such as "
            f"{', '.join(ARCHITECTURES)}, or a library's such as 'timm/resnet50'"
        )
    if None not in (architecture, described) and architecture != described:
        raise SpectralError(
            f"{path}: the JSON beside it says {described!r}, but architecture={architecture!r} was asked "
            f"for; leave architecture out or move the JSON away"
        )
    if metadata.get("weights_id") not in (None, hash_state(state)):
        raise SpectralError(
            f"{path}: the JSON beside it describes other weights; restore both from one source"
        )
    model, info = _open_architecture(str(architecture or described))
    if "conversion" in metadata:
        model = _convert_as(model, metadata["conversion"])
    model, info = fill((model, info), state, str(path))
    classes = metadata.get("classes")
    return model, replace(
        info,
        family=metadata.get("family", info.family),
        preprocessing=_described_preprocessing(metadata, info.preprocessing, path),
        classes=info.classes if classes is None else tuple(classes),
        metadata=metadata,
    )


def _convert_as(model: nn.Module, report: Any) -> nn.Module:
    from spectral.surgery import ConversionReport

    return ConversionReport.from_dict(report).apply(model)


def _open_architecture(architecture: str) -> Loaded:
    """Build any network without weights: ours by bare name, a library's with its prefix."""
    source, separator, name = architecture.partition("/")
    if not separator:
        return _open_bundled(architecture, pretrained=False)
    if source not in _SOURCES:
        raise SpectralError(
            f"unknown architecture {architecture!r}; expected a name such as {EXAMPLES}, or NAME behind "
            f"{_prefixes()}"
        )
    return _SOURCES[source].open(name, False)


def _described_preprocessing(
    metadata: Mapping[str, Any], default: Preprocessing, path: Path
) -> Preprocessing:
    try:
        height, width = (int(n) for n in metadata.get("size", default.size))
        mean = tuple(float(m) for m in metadata.get("mean", default.mean))
        std = tuple(float(s) for s in metadata.get("std", default.std))
        if len(mean) != len(std) or min(height, width, *std) <= 0:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise SpectralError(
            f"{path.with_suffix('.json')}: expected size as [height, width] and mean and std as one number "
            f"per channel, std above 0, got {[metadata.get(key) for key in ('size', 'mean', 'std')]}"
        ) from error
    return Preprocessing((height, width), mean, std)


def _open_named(asked: str) -> Loaded:
    source, separator, name = asked.removesuffix(RANDOM).partition("/")
    if separator and source in _SOURCES:
        return _SOURCES[source].open(name, not asked.endswith(RANDOM))
    bare = name if separator else source
    full = [f"{prefix}/{bare}" for prefix in _SOURCES if bare in _names_if_installed(prefix)]
    hint = f"; did you mean {' or '.join(repr(n) for n in full)}?" if full else ""
    raise SpectralError(
        f"unknown model {asked!r}: expected NAME behind {_prefixes()}, or the path of a "
        f"{', '.join(WEIGHT_SUFFIXES)} file{hint}"
    )


def _prefixes() -> str:
    return ", ".join(f"{source}/" for source in _SOURCES)


def _names_if_installed(source: str) -> list[str]:
    try:
        return _SOURCES[source].names()
    except SpectralError:
        return []


def _open_bundled(name: str, pretrained: bool) -> Loaded:
    if pretrained:
        files = _bundled_files()
        if not files:
            raise SpectralError(
                f"bundled/{name}: there are no checkpoints in {' or '.join(map(str, CHECKPOINT_FOLDERS))}; "
                f"reinstall the package, or train one with `spectral train`"
            )
        require_name("bundled", name, sorted(files))
        return _open_file(files[name], None)
    return build(name), ModelInfo(name, family_of(name), "", CIFAR, CIFAR_NUM_CLASSES)


_SOURCES = {**SOURCES, "bundled": Source(list_bundled, _open_bundled)}
