"""Networks by name, each with the preprocessing it was trained with and the id of its weights.

timm, torchvision and antialiased_cnns are imported when a model of theirs is asked for, not before.
"""

from __future__ import annotations

import importlib
import os
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError, suggest
from spectral.models import robustbench
from spectral.models.architectures import ARCHITECTURES, EXAMPLES, build, family_of
from spectral.models.checkpoint import (
    explain_unreadable,
    hash_state,
    load_into,
    load_state,
    read_metadata,
    require_finite,
    strip_wrappers,
)

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
RANDOM = "@random"
RANDOM_SEED = 0
HUB_TIMEOUT = 10.0  # seconds until a silent hub counts as unreachable
# An installed package carries its checkpoints inside; a checkout has them in data/.
CHECKPOINT_FOLDERS = (
    Path(__file__).parents[1] / "checkpoints",
    Path(__file__).parents[3] / "data" / "checkpoints",
)
ANTIALIASED_FAMILIES = ("alexnet", "densenet", "mobilenet", "resnet", "vgg")
_PICKLE = b"\x80"  # how torch's older files begin; the newer ones are zip archives
ANTIALIASED_WEIGHTS = "_lpf4_finetune"  # what the package loads for its default filter size


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images: their size, and each channel's mean and standard deviation.

    Shape:
        (B, C, H, W) → (B, C, H, W), C being the number of means. Nothing is resized: `size` is what the
        network was trained at, and cropping to it is the caller's.

    Units:
        Images in [0, 1] → normalised values.

    Example:
        >>> scale = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> scale(torch.ones(1, 3, 2, 2)).unique()
        tensor([1.])
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the normalised images, with the input's dtype and device.

        Raises:
            SpectralError: if the images aren't a floating-point (B, C, H, W) batch.
        """
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise SpectralError(
                f"preprocessing: expected images of shape (B, {len(self.mean)}, H, W), got "
                f"{tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise SpectralError(
                f"preprocessing: expected floating-point images in [0, 1], got {images.dtype}; for 8-bit "
                f"images use images.float() / 255"
            )
        return (images - self._channels(self.mean, images)) / self._channels(self.std, images)

    def _channels(self, values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class ModelInfo:
    """Where a model and its weights come from, and what goes with them.

    Args:
        name: what `load_model` was asked for.
        family: ``"strided"``, ``"blurpool"`` or ``"nula"`` where it is known, else None.
        weights_id: `spectral.models.checkpoint.hash_state` of the weights as loaded, computed once; for a
            name ending in ``@random`` it starts with ``random-0:``, 0 being the seed.
        preprocessing: turns images in [0, 1] into what the network expects.
        num_classes: outputs of the classifier.
        classes: their names in order, where known.
        metadata: whatever else the source says: recipe, accuracy, hub repository, licence.
    """

    name: str
    family: str | None
    weights_id: str
    preprocessing: Preprocessing
    num_classes: int
    classes: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR_NUM_CLASSES = 10
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
NULA_REPOSITORIES = {"robust": "MamaPearl/nula-cifar10-robust-v0"}
NULA_FILE = "model.safetensors"

_Loaded = tuple[nn.Module, ModelInfo]


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
            ``nula/robust``: NULA's published weights, from the Hugging Face hub, into our own module;
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


def model_info(model: nn.Module) -> ModelInfo | None:
    """Return what `load_model` recorded about a model, or None for a model from elsewhere.

    Example:
        >>> model_info(nn.Identity()) is None
        True
    """
    info = getattr(model, "spectral_info", None)
    return info if isinstance(info, ModelInfo) else None


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


def _open_file(path: Path, architecture: str | None) -> _Loaded:
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
    model, info = _fill((model, info), state, str(path))
    classes = metadata.get("classes")
    return model, replace(
        info,
        family=metadata.get("family", info.family),
        preprocessing=_described_preprocessing(metadata, info.preprocessing, path),
        classes=info.classes if classes is None else tuple(classes),
        metadata=metadata,
    )


def _fill(loaded: _Loaded, state: Mapping[str, Tensor], where: str) -> _Loaded:
    """Load weights as their authors saved them: inside wrappers, with the normalisation beside them."""
    model, info = loaded
    state, normalisation = robustbench.separate_state(model, strip_wrappers(state, model))
    load_into(model, strip_wrappers(state, model), where)
    mean, std = normalisation or (info.preprocessing.mean, info.preprocessing.std)
    return model, replace(info, preprocessing=replace(info.preprocessing, mean=mean, std=std))


def _convert_as(model: nn.Module, report: Any) -> nn.Module:
    from spectral.surgery import ConversionReport

    return ConversionReport.from_dict(report).apply(model)


def _open_architecture(architecture: str) -> _Loaded:
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


@dataclass(frozen=True)
class _Source:
    """A prefix: what it offers, and how to open one of them, with its weights or without."""

    names: Callable[[], list[str]]
    open: Callable[[str, bool], _Loaded]


def _open_named(asked: str) -> _Loaded:
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


def _require_name(source: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = suggest(name, known)
        few = f"; available: {', '.join(known)}" if not near and len(known) <= 20 else ""
        raise SpectralError(f"unknown model '{source}/{name}': {source} has no {name!r}{near}{few}")


def _open_bundled(name: str, pretrained: bool) -> _Loaded:
    if pretrained:
        files = _bundled_files()
        if not files:
            raise SpectralError(
                f"bundled/{name}: there are no checkpoints in {' or '.join(map(str, CHECKPOINT_FOLDERS))}; "
                f"reinstall the package, or train one with `spectral train`"
            )
        _require_name("bundled", name, sorted(files))
        return _open_file(files[name], None)
    return build(name), ModelInfo(name, family_of(name), "", CIFAR, CIFAR_NUM_CLASSES)


def _open_nula(name: str, pretrained: bool) -> _Loaded:
    _require_name("nula", name, list(NULA_REPOSITORIES))
    model = build("nula")
    metadata = {"hf_hub_id": NULA_REPOSITORIES[name], "license": "MIT"} if pretrained else {}
    info = ModelInfo(name, "nula", "", CIFAR, CIFAR_NUM_CLASSES, CIFAR10_CLASSES, metadata)
    if not pretrained:
        return model, info
    with _fetching(f"nula/{name}"):
        path = _fetch_from_hub(NULA_REPOSITORIES[name], NULA_FILE)
    return _fill((model, info), load_state(path), f"nula/{name}: {path}")


def _open_robustbench(name: str, pretrained: bool) -> _Loaded:
    _require_name("robustbench", name, list(robustbench.MODELS))
    published = robustbench.MODELS[name]
    preprocessing = Preprocessing(CIFAR.size, *published.normalisation)
    metadata = {"url": published.url, "threat": robustbench.THREAT} if pretrained else {}
    family = family_of(published.architecture)
    info = ModelInfo(name, family, "", preprocessing, CIFAR_NUM_CLASSES, CIFAR10_CLASSES, metadata)
    if not pretrained:
        return build(published.architecture), info
    path = robustbench.find_file(name)
    if not path.is_file():
        by_hand = f"put the file by hand where RobustBench keeps it, at {path}; "
        with _fetching(f"robustbench/{name}", by_hand):
            _download(published.url, path)
    state = load_state(path)
    return _fill((build(published.architecture), info), state, f"robustbench/{name}: {path}")


def _download(url: str, path: Path) -> None:
    """Fetch a torch file; what arrives is kept only if it is one, whole, and no web page about a quota."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(url, str(arriving), progress=True)
        with arriving.open("rb") as file:
            torch_file = zipfile.is_zipfile(file) or (file.seek(0) == 0 and file.read(1) == _PICKLE)
        if not torch_file:
            raise OSError("what arrived is no complete weights file")
        os.replace(arriving, path)
    finally:
        arriving.unlink(missing_ok=True)


def _timm_names() -> list[str]:
    import timm

    return [*timm.list_models(), *timm.list_models(pretrained=True)]


def _open_timm(name: str, pretrained: bool) -> _Loaded:
    import timm
    from timm.data.config import resolve_data_config

    _require_name("timm", name, _timm_names())
    source = timm.get_pretrained_cfg(name)
    if pretrained and (source is None or not source.has_weights):
        offered = [n for n in timm.list_models(pretrained=True) if n.startswith(name.partition(".")[0])]
        raise SpectralError(
            f"timm/{name}: timm has the architecture but no pretrained weights under this name"
            f"{suggest(name, offered)}; for its structure alone ask for 'timm/{name}{RANDOM}'"
        )
    with _fetching(f"timm/{name}"):
        if pretrained:
            _require_hub(source)
        model: Any = timm.create_model(name, pretrained=pretrained)
    config = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    size, mean, std = config["input_size"][1:], config["mean"], config["std"]
    preprocessing = Preprocessing(tuple(size), tuple(mean), tuple(std))
    metadata = {key: getattr(source, key) for key in ("hf_hub_id", "tag", "license")} if pretrained else {}
    return model, ModelInfo(name, None, "", preprocessing, model.num_classes, metadata=metadata)


def _require_hub(source: Any) -> None:
    """Ask the hub once, with a timeout: timm retries an unreachable one for a minute, file by file."""
    import huggingface_hub as hub

    if not source.hf_hub_id:
        return
    names = [source.hf_hub_filename] if source.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(_find_in_hub_cache(source.hf_hub_id, name) for name in names):
        return
    with suppress(hub.errors.EntryNotFoundError):  # it answered; timm knows the other names of files
        hub.get_hf_file_metadata(hub.hf_hub_url(source.hf_hub_id, names[0]), timeout=HUB_TIMEOUT)


def _fetch_from_hub(repository: str, name: str) -> Path:
    """Return a file of the hub: as it lies in the cache, else downloaded into it."""
    import huggingface_hub as hub

    cached = _find_in_hub_cache(repository, name)
    if cached is None:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), timeout=HUB_TIMEOUT)
    return cached or Path(hub.hf_hub_download(repository, name))


def _find_in_hub_cache(repository: str, name: str) -> Path | None:
    import huggingface_hub as hub

    found = hub.try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _open_torchvision(name: str, pretrained: bool) -> _Loaded:
    from torchvision import models

    _require_name("torchvision", name, _torchvision_names())
    weights = models.get_model_weights(name).DEFAULT
    with _fetching(f"torchvision/{name}"):
        model = models.get_model(name, weights=weights if pretrained else None)
    recipe = weights.transforms()
    side = recipe.crop_size[0]
    preprocessing = Preprocessing((side, side), tuple(recipe.mean), tuple(recipe.std))
    classes = tuple(weights.meta["categories"])
    metadata = {"weights": str(weights), "url": weights.url} if pretrained else {}
    return model, ModelInfo(name, None, "", preprocessing, len(classes), classes, metadata)


def _import_antialiased() -> Any:
    try:
        return importlib.import_module("antialiased_cnns")
    except ImportError as error:
        raise SpectralError(
            "antialiased/… needs the optional package antialiased-cnns (its licence is CC BY-NC-SA: not for "
            "commercial use); install it with: pip install 'spectral-aliasing[antialiased]'"
        ) from error


def _antialiased_names() -> list[str]:
    _import_antialiased()
    families = [importlib.import_module(f"antialiased_cnns.{family}") for family in ANTIALIASED_FAMILIES]
    keys = [key for family in families for key in family.model_urls]
    return sorted(key.removesuffix(ANTIALIASED_WEIGHTS) for key in keys if key.endswith(ANTIALIASED_WEIGHTS))


def _open_antialiased(name: str, pretrained: bool) -> _Loaded:
    package = _import_antialiased()
    _require_name("antialiased", name, _antialiased_names())
    with _fetching(f"antialiased/{name}"):
        model = getattr(package, name)(pretrained=pretrained)
    metadata = {"filter_size": 4, "license": "CC BY-NC-SA 4.0"}
    return model, ModelInfo(name, "blurpool", "", IMAGENET, 1000, metadata=metadata)


_SOURCES = {
    "timm": _Source(_timm_names, _open_timm),
    "torchvision": _Source(_torchvision_names, _open_torchvision),
    "antialiased": _Source(_antialiased_names, _open_antialiased),
    "bundled": _Source(list_bundled, _open_bundled),
    "nula": _Source(lambda: list(NULA_REPOSITORIES), _open_nula),
    "robustbench": _Source(lambda: list(robustbench.MODELS), _open_robustbench),
}


@contextmanager
def _fetching(asked: str, by_hand: str = "") -> Iterator[None]:
    """Let a library fetch its weights: unpickling tensors only, giving up soon, failing in one sentence.

    torchvision and antialiased_cnns unpickle whatever a file holds; torch's environment switch is the one way
    to forbid that from outside. They also wait for a silent server without end.
    """
    allowed = {
        key: os.environ.pop(key, None)
        for key in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    }
    patience = socket.getdefaulttimeout()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    socket.setdefaulttimeout(HUB_TIMEOUT)
    try:
        yield
    except Exception as error:  # four libraries' network and file errors have no common base
        raise SpectralError(_explain_fetch(asked, error, by_hand)) from error
    finally:
        socket.setdefaulttimeout(patience)
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        os.environ.update({key: value for key, value in allowed.items() if value is not None})


def _explain_fetch(asked: str, error: Exception, by_hand: str) -> str:
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or library in ("huggingface_hub", "httpx", "httpx2", "requests"):
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return (
            f"{asked}: its published weights could not be fetched ({reason}); {by_hand}without the hub use "
            f"'bundled/resnet20', '{asked}{RANDOM}' (structure only), or the path of a local file with "
            f"architecture={asked!r}"
        )
    return f"{asked}: its weights were found but not loaded: {explain_unreadable(error)}"
