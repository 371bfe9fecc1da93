"""Networks by name, each with the preprocessing it was trained with and the id of its weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral.arguments.factories import SUFFIX, split_factory
from spectral.arguments.values import as_integer
from spectral.errors import SpectralError, SpectralWarning
from spectral.models.architectures import EXAMPLES, build, family_of
from spectral.models.checkpoint import WEIGHT_SUFFIXES, find_bounds, is_weights_file, require_finite
from spectral.models.fetching import RANDOM
from spectral.models.info import CIFAR, CIFAR_NUM_CLASSES, IMAGENET, ModelInfo, Preprocessing, model_info
from spectral.models.preprocessing import read_preparation
from spectral.models.sources import (
    FORM,
    SOURCES,
    UNKNOWN,
    Loaded,
    Source,
    is_folder,
    open_own,
    open_timm,
    open_transformers,
    require_name,
    settle_input,
)
from spectral.models.weights_file import read_weights_file
from spectral.models.weights_id import hash_state
from spectral.network import find_size, list_inputs, put_into_evaluation

RANDOM_SEED = 0
# An installed package carries its checkpoints inside; a checkout has them in data/.
CHECKPOINT_FOLDERS = (
    Path(__file__).parents[1] / "checkpoints",
    Path(__file__).parents[3] / "data" / "checkpoints",
)


def load_model(
    name: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    example: Any = None,
) -> nn.Module:
    """Load a network by name or from a weights file, in eval mode, its parameters still requiring gradients.

    What belongs to it (preprocessing, weights id, classes) is the attribute ``spectral_info`` of the model,
    a `ModelInfo`; `model_info` reads it. A copy of the model keeps it, so after surgery or training it says
    where the weights came from, not what they are now.

    Args:
        name: one of
            ``my_net.py:build``, ``package.module:build``: your own, built by a function without arguments, a
            class, or a network that is there already; a file is run only where one of its names is given so;
            ``timm/NAME``, ``torchvision/NAME``: published weights, downloaded once into the library's cache;
            ``hf/ORG/NAME`` and folders with a config.json: transformers' networks (optional package);
            ``antialiased/NAME``: Adobe's BlurPool networks (optional package, CC BY-NC-SA);
            ``packaged/efficientnet-lite0`` (1, 2): ImageNet weights that an installed package holds;
            ``cifar-hub/resnet20`` (32, 44, 56, 110): trained on the original CIFAR-10, from
            ``models/cifar-hub`` in $SPECTRAL_DATA (or data/), downloaded there if they are missing;
            ``nula/robust``, ``nula/robust-v1``: NULA's published weights, from the Hugging Face hub, into
            our own module;
            ``robustbench/NAME``: CIFAR-10 models of RobustBench's zoo, into our own modules, from
            ``models/cifar10/Linf/NAME.pt`` in $SPECTRAL_DATA (or data/), downloaded there if it is missing;
            ``bundled/NAME``: trained by this project and part of it, see `list_bundled`;
            any but your own with ``@random`` behind: no weights, a seeded initialisation, for its structure;
            the path of a ``.safetensors`` or torch file (``.pt``, ``.pth``, ``.bin``), or of the index of
            several (``model.safetensors.index.json``).
            ``@FILE`` behind a network puts the weights of such a file into it: ``my_net.py:build@tuned.pt``.
            ``+NAME`` behind any of them converts it (`spectral.convert`), with a layer, activations or a
            border, one after the other: ``bundled/resnet20+flc+alias-free+circular``.
        architecture: for a path without a JSON beside it: ``"resnet20"`` and the like for our own networks,
            else any of the names above, ``"timm/resnet50"`` or ``"my_net.py:build"``.
        weights: a file of weights to put into the named network, as ``@FILE`` behind its name.
        classes: outputs of its head where these are others than usual, as after fine-tuning; with weights.
        input_size: height and width of its images, where others are meant than it was made for.
        mean: of each channel, what its images are normalised with, in place of what is known of it.
        std: as ``mean``.
        device: where to put the model.
        example: of ``NAME+METHOD``, what to look for its sites with; by default an image of its size. Of the
            file of a converted network with several inputs, one of each. Its size is that of the images of a
            network that doesn't say it. A function is given the network before it is converted and returns
            an example, or None.

    Raises:
        SpectralError: if the name, architecture or device is unknown, a hub can't be reached, what is run of
            your own raises or gives no network, or the weights are damaged, unsafe, not finite or of another
            architecture. Nothing is ever loaded in place of what was asked for.

    Example:
        >>> model = load_model("bundled/resnet20@random")
        >>> model.training, model_info(model).weights_id.split(":")[0]
        (False, 'random-0')
    """
    _require_device(device)
    asked = os.fspath(name)
    if not asked.strip():
        raise SpectralError(f"unknown model {asked!r}: expected a name or a path, such as {EXAMPLES}")
    converted = "+" in Path(asked).name and not Path(asked).expanduser().is_file()
    plain, _, method = asked.rpartition("+") if converted else (asked, "", "")
    if method:
        own = {"architecture": architecture, "weights": weights, "classes": classes, "input_size": input_size,
               "mean": mean, "std": std, "device": device, "example": example}  # fmt: skip
        return _load_converted(plain, method, own)
    asked, weights = _split_weights(asked, weights)
    count = None if classes is None else as_integer(classes, "load_model: classes", least=1)
    model, info = _open(asked, architecture, weights, count, example)
    state = model.state_dict()
    require_finite(state, asked, find_bounds(model))
    weights_id = hash_state(state)
    if asked.endswith(RANDOM):
        weights_id = f"random-{RANDOM_SEED}:{weights_id.partition(':')[2]}"
    if input_size is None and info.preprocessing.size == UNKNOWN.size:
        input_size = _find_size(model, example)
    scale = _choose_preprocessing(info.preprocessing, asked, input_size, mean, std)
    full = asked if weights is None else f"{asked}@{os.fspath(weights)}"
    metadata = dict(info.metadata) if count is None else {**info.metadata, "num_classes": count}
    info = replace(info, metadata=metadata, name=full, weights_id=weights_id, preprocessing=scale)
    model.spectral_info = info  # type: ignore[assignment]
    model = model.to(device)
    put_into_evaluation(model)
    return model


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw initial weights from a seed, and without disturbing the caller's stream."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        yield


def _give_example(model: nn.Module, example: Any) -> Any:
    return example(model) if callable(example) else example


def _find_size(model: nn.Module, example: Any) -> tuple[int, int] | None:
    """Return height and width of an example, None where there is none."""
    given = _give_example(model, example)
    with suppress(SpectralError):  # whoever runs the network on it says what is wrong with it
        return None if given is None else find_size(list_inputs(model, given)[0])
    return None


def _split_weights(
    asked: str, weights: str | os.PathLike[str] | None
) -> tuple[str, str | os.PathLike[str] | None]:
    """Split MODEL@FILE; an @ in a path of its own means nothing."""
    name, _, file = asked.rpartition("@")
    named = split_factory(name) is not None or name.partition("/")[0] in _SOURCES or is_folder(name)
    fits = is_weights_file(Path(file))
    if named and not fits and Path(file).is_file():
        raise SpectralError(
            f"load_model: {file!r} behind {name!r} is no weights file, whose name ends in "
            f"{', '.join(WEIGHT_SUFFIXES)}; pass one, or rename it"
        )
    if not named or not fits:
        return asked, weights
    if weights is not None:
        raise SpectralError(
            f"load_model: {asked!r} and weights={os.fspath(weights)!r} are two weights files; give one"
        )
    return name, file


def _open(
    asked: str,
    architecture: str | None,
    weights: str | os.PathLike[str] | None,
    classes: int | None,
    example: Any,
) -> Loaded:
    """Open a weights file, or a network by name with its own weights or with those of a file."""
    if _is_path(asked):
        if weights is not None:
            raise SpectralError(
                f"load_model: {asked!r} and weights={os.fspath(weights)!r} are two weights files; name the "
                f"network and give one"
            )
        return _open_file(Path(asked).expanduser(), architecture, classes, example)
    if architecture is not None:
        raise SpectralError(
            f"load_model: architecture={architecture!r} goes with the path of a weights file (ending in "
            f"{', '.join(WEIGHT_SUFFIXES)}), not with {asked!r}; leave it out or give such a path"
        )
    if weights is None:
        return _open_named(asked, classes)
    if asked.endswith(RANDOM):
        raise SpectralError(
            f"load_model: {asked!r} has random weights, so weights={os.fspath(weights)!r} has no place; "
            f"leave one of them out"
        )
    return _open_file(Path(weights).expanduser(), asked, classes, example)


def _choose_preprocessing(
    known: Preprocessing,
    asked: str,
    input_size: int | tuple[int, int] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> Preprocessing:
    """Put what the caller says of the images in the place of what is known of them."""
    if input_size is not None:
        sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(sides) != 2:
            raise SpectralError(
                f"load_model: input_size must be a side or (height, width), got {input_size!r}"
            )
        height, width = (as_integer(side, "load_model: input_size", least=1) for side in sides)
        known = replace(known, size=(height, width))
    elif known.size == UNKNOWN.size:
        known = replace(known, size=IMAGENET.size)
        warnings.warn(
            f"{asked} doesn't say what size of images it takes; {IMAGENET.size[0]} × {IMAGENET.size[1]} is "
            f"assumed: give input_size (--input-size) if that isn't right",
            SpectralWarning,
            stacklevel=3,
        )
    if (mean is None) != (std is None):
        raise SpectralError("load_model: mean and std go together; give both, or neither")
    if mean is None:
        return known
    found = read_preparation((mean, std))
    count = len(known.mean) if len(found.mean) == 1 and known.mean else 1
    if known.mean and len(found.mean) * count != len(known.mean):
        raise SpectralError(
            f"load_model: {asked} takes {len(known.mean)} channels, got {len(found.mean)} means"
        )
    return replace(known, mean=found.mean * count, std=found.std * count)


def _load_converted(name: str, method: str, own: Mapping[str, Any]) -> nn.Module:
    from spectral.surgery import conversion_report, convert, read_change

    model = load_model(name, **own)
    example = _give_example(model, own["example"])
    with _seeded():  # some layers have weights of their own
        model = convert(model, **read_change(method), example=example)
    report = conversion_report(model)
    if not report.changes:
        first = report.obstacle
        raise SpectralError(f"{name}+{method}: nothing can be replaced; {first}")
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


def list_models() -> list[str]:
    """Return the names that `load_model` knows, of all sources that are installed; hf/ORG/NAME are too many.

    Example:
        >>> {"bundled/resnet20", "torchvision/resnet18", "timm/resnet50"} <= set(list_models())
        True
    """
    return [f"{source}/{name}" for source in _SOURCES for name in dict.fromkeys(_names_if_installed(source))]


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
    named = asked.partition("/")[0] in _SOURCES or split_factory(asked) is not None
    is_weights = is_weights_file(path) or (path.is_file() and path.suffix.lower() != SUFFIX)
    return is_weights and not named


def _open_file(
    path: Path, architecture: str | None, classes: int | None = None, example: Any = None
) -> Loaded:
    file = read_weights_file(path, architecture)
    named, count = file.architecture, file.count if classes is None else classes
    with _seeded():
        if file.arguments:
            model, info = open_timm(named.partition("/")[2], False, count, file.arguments)
        else:
            model, info = open_untrained(named, count)
    example = _give_example(model, example)
    with _seeded():
        model = file.convert(model, example)
    model, info = _find_source(named).fill((model, info), file.state, str(path))
    if named.startswith("torchvision/"):
        settle_input(model, named.partition("/")[2], path)
    files = file.list_files() if _is_installed(named) else None
    return model, replace(file.describe(info), files=files)


def _find_source(architecture: str) -> Source:
    """Return the source of an architecture, which knows how its files name their tensors."""
    prefix, separator, _ = architecture.partition("/")
    known = separator and split_factory(architecture) is None and not is_folder(architecture)
    return _SOURCES.get(prefix, _OWN) if known else _OWN


def _is_installed(architecture: str) -> bool:
    """Whether an architecture is installed code alone, which reads no file of the user's or of a hub."""
    own = split_factory(architecture) is not None or is_folder(architecture)
    return not own and not architecture.startswith("hf/")


def open_untrained(architecture: str, classes: int | None = None) -> Loaded:
    """Build any network without trained weights: ours by bare name, others as `load_model` names them.

    Args:
        architecture: the name.
        classes: outputs of its head, where these are others than usual.

    Raises:
        SpectralError: if the name is unknown, or what is run of the user's own fails.

    Example:
        >>> open_untrained("resnet20", 7)[1].num_classes
        7
    """
    if split_factory(architecture) is not None:
        return open_own(architecture, classes)
    if is_folder(architecture):
        return open_transformers(architecture, False, classes)
    source, separator, name = architecture.partition("/")
    if not separator:
        return _open_bundled(architecture, False, classes)
    if source not in _SOURCES:
        raise SpectralError(
            f"unknown architecture {architecture!r}; expected a name such as {EXAMPLES}, {FORM}, or NAME "
            f"behind {_prefixes()}"
        )
    return _SOURCES[source].open(name, False, classes)


@_seeded()
def _open_named(asked: str, classes: int | None) -> Loaded:
    if split_factory(asked.removesuffix(RANDOM)) is not None:
        if asked.endswith(RANDOM):
            raise SpectralError(
                f"{asked}: your own network comes with the weights that its factory gives it; leave "
                f"{RANDOM} out"
            )
        return open_own(asked, classes)
    bare = asked.removesuffix(RANDOM)
    pretrained = not asked.endswith(RANDOM)
    source, separator, name = bare.partition("/")
    if is_folder(bare):
        loaded = open_transformers(bare, pretrained, None if pretrained else classes)
    elif separator and source in _SOURCES:
        loaded = _SOURCES[source].open(name, pretrained, None if pretrained else classes)
    else:
        raise SpectralError(_explain_unknown(asked, name if separator else source))
    if not pretrained and _is_installed(bare):
        loaded = loaded[0], replace(loaded[1], files=())
    if classes not in (None, loaded[1].num_classes):
        raise SpectralError(
            f"{asked} has {loaded[1].num_classes} classes, and a head for {classes} would be untrained; give "
            f"the weights it was tuned to (weights=, --weights FILE), or ask for '{bare}{RANDOM}'"
        )
    return loaded


def _explain_unknown(asked: str, name: str) -> str:
    """Say what a name should have been."""
    if SUFFIX in Path(asked).name:
        return f"{asked}: a file of Python is run only where one of its names is given, such as {FORM}"
    full = [f"{prefix}/{name}" for prefix in _SOURCES if name in _names_if_installed(prefix)]
    hint = f"; did you mean {' or '.join(repr(n) for n in full)}?" if full else ""
    return (
        f"unknown model {asked!r}: expected {FORM}, NAME behind {_prefixes()}, a folder of transformers, or "
        f"the path of a {', '.join(WEIGHT_SUFFIXES)} file{hint}"
    )


def _prefixes() -> str:
    return ", ".join(f"{source}/" for source in _SOURCES)


def _names_if_installed(source: str) -> list[str]:
    try:
        return _SOURCES[source].names()
    except SpectralError:
        return []


def _open_bundled(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    if pretrained:
        files = _bundled_files()
        if not files:
            raise SpectralError(
                f"bundled/{name}: there are no checkpoints in {' or '.join(map(str, CHECKPOINT_FOLDERS))}; "
                f"reinstall the package, or train one with `spectral train`"
            )
        require_name("bundled", name, sorted(files))
        return _open_file(files[name], None)
    return build(name, classes), ModelInfo(name, family_of(name), "", CIFAR, classes or CIFAR_NUM_CLASSES)


_OWN = Source(list_bundled, _open_bundled)
_SOURCES = {**SOURCES, "bundled": _OWN}
