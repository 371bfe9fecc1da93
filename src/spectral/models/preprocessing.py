"""What images in [0, 1] go through before a network sees them: as the user says, or as the network tells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.fetching import find_in_hub_cache
from spectral.models.info import IMAGENET, Preprocessing, model_info
from spectral.models.resizing import describe_resizing

NONE = "none"
# Of an image processor alone, and of one with what else a network takes, as words: then it is a part of it.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
FORMS = (
    "(mean, std), a timm configuration, torchvision transforms or weights, an image processor of "
    "transformers, a function, 'imagenet' or 'none'"
)
# Steps of a list of transforms by the names of their classes; what they do to our tensors in [0, 1].
_TO_BYTES = {"PILToTensor", "ToImage", "MaybePILToTensor"}
_TO_UNIT = {"ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToTensorV2"}
_SIZES = {"Resize", "CenterCrop", "CenterCropOrPad", "ResizeKeepRatio", "SmallestMaxSize"}
_NOTHING = {"ToPureTensor", "ToPILImage", "RGB", "Identity"}

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preparation:
    """What a network's images go through, and how that is known.

    Attributes:
        origin: where it is from, in words.
        size: (height, width) the network was made for, None where that isn't known.
        mean: of each channel, or one for all of them; empty where nothing is normalised.
        std: as ``mean``.
        bgr: whether the network wants blue first.
        function: what the user gave, in place of all these.
        assumed: whether nothing is known, so that images are passed as they are.
        resizing: how images are to be brought to the size, where that is otherwise than here, in words.

    Example:
        >>> import torch
        >>> halve = Preparation("an example", mean=(0.0,), std=(2.0,))
        >>> halve(torch.ones(1, 3, 2, 2)).unique()
        tensor([0.5000])
    """

    origin: str
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bgr: bool = False
    function: Function | None = None
    assumed: bool = False
    resizing: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] as the network expects them.

        Raises:
            SpectralError: if they have another number of channels, or the user's function fails on them.
        """
        if self.function is not None:
            return self._apply(self.function, images)
        images = images.flip(1) if self.bgr else images
        if not self.mean:
            return images
        count = images.shape[1] if len(self.mean) == 1 else 1
        return Preprocessing(self.size or (1, 1), self.mean * count, self.std * count)(images)

    @property
    def changes_values(self) -> bool:
        """Whether images come out other than they went in."""
        normalises = any(self.mean) or any(s != 1 for s in self.std)
        return self.bgr or self.function is not None or normalises

    @property
    def largest(self) -> float:
        """The largest magnitude that black or white comes to in any channel."""
        pairs = zip(self.mean, self.std, strict=True)
        return max((max(abs(m), abs(1 - m)) / s for m, s in pairs), default=1.0)

    def describe(self) -> dict[str, Any] | None:
        """Return what determines the values, for a table's account; None where images stay as they are."""
        if self.function is not None:
            return {"function": getattr(self.function, "__qualname__", type(self.function).__name__)}
        if not self.changes_values:
            return None
        return {"mean": list(self.mean), "std": list(self.std)} | ({"bgr": True} if self.bgr else {})

    def _apply(self, function: Function, images: Tensor) -> Tensor:
        try:
            made = function(images)
        except Exception as error:  # the user's function may raise anything
            what = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            raise SpectralError(
                f"preprocessing= failed on images of shape {tuple(images.shape)}: {what}"
            ) from error
        if not isinstance(made, Tensor) or len(made) != len(images):
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise SpectralError(
                f"preprocessing=: expected a function from images (B, C, H, W) in [0, 1] to a batch of as "
                f"many, got {got} for {tuple(images.shape)}"
            )
        return made


def find_preparation(model: nn.Module, asked: Any = None) -> Preparation:
    """Return what a network's images go through: as the user asks, else as the network itself tells.

    A network tells by what `load_model` recorded, timm's ``pretrained_cfg``, a normalising layer of its own,
    or, of transformers, an image processor's file in the folder or the cache that it was loaded from.

    Args:
        model: the network.
        asked: a `Preprocessing`, (mean, std), a configuration of timm as a dictionary or an object,
            torchvision transforms or weights, an image processor of transformers, a function from images
            (B, 3, H, W) in [0, 1] to a batch, ``"imagenet"``, or ``"none"`` for images as they are; None to
            ask the network.

    Raises:
        SpectralError: if what is asked for can't be read.

    Example:
        >>> find_preparation(nn.Flatten(), ((0.5,) * 3, (0.25,) * 3)).std
        (0.25, 0.25, 0.25)
        >>> find_preparation(nn.Flatten()).assumed
        True
    """
    if asked is not None:
        return read_preparation(asked)
    inner = _unwrap(model)
    for read in (_read_info, _read_configuration, _read_own_layer, _read_processor_file):
        found = read(inner)
        if found is not None:
            size = _told_size(inner) or found.size
            return replace(found, size=size, resizing=found.resizing or _find_resizing(inner, size))
    size = _told_size(inner) or _find_size(inner)
    return Preparation("assumed, nothing is known of the network's", size, assumed=True)


def explain_assumption(model: nn.Module, name: str) -> str:
    """Say that images are passed as they are, and what to do where that isn't right."""
    hint = f"preprocessing=(mean, std), or preprocessing={NONE!r} if that is right"
    for path, module in _unwrap(model).named_modules():
        inside = _read_configuration(module) if path else None
        if inside is not None and inside.mean:
            hint = f"preprocessing=model.{path}.pretrained_cfg (mean {_short(inside.mean)}), or {NONE!r}"
            break
    return f"images are passed to {name} in [0, 1], since its normalisation isn't known; pass {hint}"


def read_preparation(asked: Any) -> Preparation:
    """Read what a user gives as ``preprocessing=``; see `find_preparation`.

    Raises:
        SpectralError: if it can't be read.

    Example:
        >>> read_preparation({"mean": (0.5,), "std": (0.5,), "input_size": (3, 224, 224)}).size
        (224, 224)
    """
    origin = "preprocessing="
    if isinstance(asked, Preparation):
        return asked
    if isinstance(asked, str):
        if asked == NONE:
            return Preparation(origin)
        if asked == "imagenet":
            return Preparation(origin, None, IMAGENET.mean, IMAGENET.std)
        raise SpectralError(f"preprocessing: expected {FORMS}, got {asked!r}")
    if isinstance(asked, partial):
        return read_preparation(asked())
    if isinstance(asked, tuple | list):
        if len(asked) != 2:
            raise SpectralError(f"preprocessing: expected (mean, std), got {len(asked)} items")
        return _normalise(origin, asked[0], asked[1], None)
    inner = _get(asked, "image_processor") or _get(asked, "feature_extractor")
    if inner is not None:
        return read_preparation(inner)
    found = _read_processor(asked, origin) or _read_fields(asked, origin) or _read_transforms(asked, origin)
    if found is not None:
        return found
    if callable(asked):
        return Preparation(origin, function=asked)
    raise SpectralError(f"preprocessing: expected {FORMS}, got {type(asked).__name__}")


def _read_info(model: nn.Module) -> Preparation | None:
    info = model_info(model)
    if info is None or not info.preprocessing.mean:
        return None
    scale = info.preprocessing
    return Preparation(f"{info.name}", scale.size, scale.mean, scale.std)


def _find_resizing(model: nn.Module, size: tuple[int, int] | None) -> str:
    """Return what a network's configuration, or what was recorded of it, says of resizing."""
    info = model_info(model)
    for told in (getattr(model, "pretrained_cfg", None), None if info is None else info.metadata):
        if found := describe_resizing(told, size):
            return found
    return ""


def _told_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that was recorded when the network was loaded."""
    info = model_info(model)
    return None if info is None else info.preprocessing.size


def _read_configuration(model: nn.Module) -> Preparation | None:
    """Read timm's configuration, with the size that the network was built for if that is another."""
    wrapped = _get(_get(model, "config"), "pretrained_cfg")  # of a network of timm's in transformers
    for name, told in (
        ("pretrained_cfg", getattr(model, "pretrained_cfg", None)),
        ("default_cfg", getattr(model, "default_cfg", None)),
        ("config.pretrained_cfg", wrapped),
    ):
        found = _read_fields(told, f"the network's {name}")
        if found is not None and found.mean:
            return replace(found, size=_find_size(model) or found.size)
    return None


def _read_own_layer(model: nn.Module) -> Preparation | None:
    """Find a layer that normalises inside the network, which then takes images in [0, 1]."""
    for path, module in model.named_children():
        kind = type(module).__name__
        own = "normaliz" in kind.lower() and _has(module, "mean", "std")
        if own or _has(module, "image_mean", "image_std"):
            return Preparation(f"the network's own layer {path!r}", _find_size(model))
    if _has(model, "pixel_mean", "pixel_std"):
        return Preparation("the network's own pixel_mean", _find_size(model))
    return None


def _read_processor_file(model: nn.Module) -> Preparation | None:
    """Read the image processor's file that lies beside a network of transformers, without the network."""
    where = _get(_get(model, "config"), "_name_or_path")
    if not isinstance(where, str) or not where:
        return None
    for name in PROCESSOR_FILES:
        path: Path | None = Path(where).expanduser() / name
        if path is not None and not path.is_file():
            path = _find_in_cache(where, name)
        with suppress(OSError, ValueError):
            described = None if path is None else json.loads(path.read_text())
            found = _read_processor(_get(described, "image_processor") or described, f"{where}/{name}")
            if found is not None:
                return found
    return None


def _find_in_cache(repository: str, name: str) -> Path | None:
    try:
        return find_in_hub_cache(repository, name)
    except ValueError:  # no name that a repository could have
        return None


def _read_processor(asked: Any, origin: str) -> Preparation | None:
    """Read an image processor of transformers, as an object or as its file."""
    asked = _complete_processor(asked)
    mean, std, normalises = (_get(asked, name) for name in ("image_mean", "image_std", "do_normalize"))
    told = not isinstance(asked, Mapping) and hasattr(asked, "do_normalize")  # also if it is None: it doesn't
    if normalises is None and not told and (mean is None or std is None):
        return None
    again = std if _get(asked, "include_top") else None  # EfficientNet's divides by it once more
    if normalises is False or (normalises is None and told) or mean is None or std is None:
        mean, std = (0.0,), (1.0,)
    size = _get(asked, "crop_size") if _get(asked, "do_center_crop") else None
    found = _normalise(origin, mean, std, _read_size(size or _get(asked, "size")))
    if again is not None:
        found = _divide(found, _normalise(origin, 0.0, again, None).std)
    # Its pixels are 0 … 255, scaled by a factor: by default to [0, 1].
    factor = _get(asked, "rescale_factor")
    largest = 255.0 * (1 / 255 if factor is None else float(factor))
    largest = 255.0 if _get(asked, "do_rescale") is False else largest
    offset = 1.0 if _get(asked, "offset") or _get(asked, "rescale_offset") else 0.0
    if math.isclose(largest, 1) and not offset:
        largest = 1.0
    bgr = bool(_get(asked, "do_flip_channel_order"))
    scaled = tuple((m + offset) / largest for m in found.mean), tuple(s / largest for s in found.std)
    resizing = describe_resizing(asked, found.size)
    return replace(found, mean=scaled[0], std=scaled[1], bgr=bgr, resizing=resizing)


def _divide(found: Preparation, std: tuple[float, ...]) -> Preparation:
    """Divide by other deviations, after what is done already."""
    count = max(len(found.std), len(std))
    own, mean, further = (x * (count // len(x)) for x in (found.std, found.mean, std))
    return replace(found, mean=mean, std=tuple(a * b for a, b in zip(own, further, strict=True)))


def _complete_processor(asked: Any) -> Any:
    """Make the image processor that a file describes, whose class says what the file leaves out.

    What no class that is installed reads stays as it is.
    """
    kind = _get(asked, "image_processor_type") or _get(asked, "feature_extractor_type")
    if not isinstance(asked, Mapping) or not isinstance(kind, str) or find_spec("transformers") is None:
        return asked
    name = kind.replace("FeatureExtractor", "ImageProcessor")
    library = import_module("transformers")
    for own in (name, name.removesuffix("Fast")):
        with suppress(Exception):  # of another version's file anything may fail
            return getattr(library, own).from_dict(dict(asked))
    return asked


def _read_fields(asked: Any, origin: str) -> Preparation | None:
    """Read what has a mean and a standard deviation: a configuration, a recipe, a single transform."""
    mean, std = _get(asked, "mean"), _get(asked, "std")
    if mean is None or std is None or callable(mean) or callable(std):
        return None
    size = _get(asked, "input_size")
    if size is not None:
        size = tuple(size)[-2:]
    else:
        size = next((s for s in (_get(asked, n) for n in ("crop_size", "size", "resize_size")) if s), None)
    found = _normalise(origin, mean, std, _read_size(size))
    return replace(found, resizing=describe_resizing(asked, found.size))


def _read_transforms(asked: Any, origin: str) -> Preparation | None:
    """Read a list of transforms, step by step; torchvision's weights make theirs."""
    steps = getattr(asked, "transforms", None)
    if callable(steps) and not isinstance(steps, nn.Module):
        return read_preparation(steps())
    if not isinstance(steps, Sequence | nn.ModuleList) or isinstance(steps, str):
        return None
    return _Steps(origin).read(list(steps))


class _Steps:
    """What a list of transforms does to images in [0, 1], as far as its steps are known."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.size: tuple[int, int] | None = None
        self.resize: Any = None
        self.bytes = False  # whether pixels are integers here, which some steps bring to [0, 1]
        self.factor = 1.0  # what the images are still to be multiplied by to be what the next step gets
        self.parts: list[Preparation] = []

    def read(self, steps: Sequence[Any]) -> Preparation:
        """Return what all steps do together."""
        for step in self._flatten(steps):
            self._read_step(step)
        self._scale()
        resizing = describe_resizing(self.resize, self.size)
        if not self.parts:
            return Preparation(self.origin, self.size, resizing=resizing)
        if len(self.parts) == 1:
            return replace(self.parts[0], size=self.size, resizing=resizing)
        parts = list(self.parts)

        def apply(images: Tensor) -> Tensor:
            for part in parts:
                images = part(images)
            return images

        return Preparation(self.origin, self.size, function=apply, resizing=resizing)

    def _flatten(self, steps: Sequence[Any]) -> Iterator[Any]:
        for step in steps:
            inner = getattr(step, "transforms", None)
            if isinstance(inner, Sequence | nn.ModuleList):
                yield from self._flatten(list(inner))
            else:
                yield step

    def _read_step(self, step: Any) -> None:
        kind = type(step).__name__
        if kind.startswith("Random") or kind.startswith("Auto") or kind == "ColorJitter":
            raise SpectralError(
                f"preprocessing: {kind} alters images at random; pass the transforms used for evaluation"
            )
        if kind in _TO_BYTES:
            if not self.bytes:
                self.bytes, self.factor = True, 255 * self.factor
        elif kind in _TO_UNIT or (kind == "ToDtype" and getattr(step, "scale", False)):
            if self.bytes:
                self.bytes, self.factor = False, self.factor / 255
        elif kind in _SIZES:
            size = getattr(step, "size", None) or (getattr(step, "height", 0), getattr(step, "width", 0))
            self.size = _read_size(size)
            self.resize = step if kind == "Resize" else self.resize
        elif kind == "ToDtype":
            self.bytes = False  # of the same values, which are no integers any more
        elif kind in _NOTHING:
            pass
        elif (found := _read_fields(step, self.origin)) is not None:
            self._add(found.mean, found.std)
        elif callable(step):
            self._scale()
            self.parts.append(Preparation(self.origin, function=step))
            self.bytes = self.bytes and _keeps_integers(step)
        else:
            raise SpectralError(f"preprocessing: expected transforms, got {kind} among them")

    def _add(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        scaled = tuple(m / self.factor for m in mean), tuple(s / self.factor for s in std)
        self.parts.append(Preparation(self.origin, None, *scaled))
        self.bytes, self.factor = False, 1.0

    def _scale(self) -> None:
        """Make the images what the next step gets."""
        if self.factor != 1:
            self.parts.append(Preparation(self.origin, None, (0.0,), (1 / self.factor,)))
            self.factor = 1.0


def _keeps_integers(step: Callable[[Any], Any]) -> bool:
    """Whether a function gives integers for integers, which a later step would bring to [0, 1]."""
    try:
        found = step(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    except Exception:  # it wants other numbers than these
        return False
    return isinstance(found, Tensor) and found.dtype == torch.uint8


def _normalise(origin: str, mean: Any, std: Any, size: tuple[int, int] | None) -> Preparation:
    means, stds = _read_numbers(mean, "mean"), _read_numbers(std, "std")
    if len(means) != len(stds):
        if 1 not in (len(means), len(stds)):
            raise SpectralError(
                f"preprocessing: expected as many means as standard deviations, got {len(means)} and "
                f"{len(stds)}"
            )
        count = max(len(means), len(stds))
        means, stds = means * (count // len(means)), stds * (count // len(stds))
    if min(stds) <= 0:
        raise SpectralError(f"preprocessing: expected standard deviations above 0, got {list(stds)}")
    return Preparation(origin, size, means, stds)


def _read_numbers(values: Any, what: str) -> tuple[float, ...]:
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
        numbers = tuple(float(v) for v in array.ravel())
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise SpectralError(f"preprocessing: expected numbers as {what}, got {values!r}")
    return numbers


def _read_size(size: Any) -> tuple[int, int] | None:
    """Read 224, [224], (224, 224), {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, Mapping) or hasattr(size, "get"):
        height = size.get("height") or size.get("shortest_edge")
        size = (height, size.get("width") or height)
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    sides = sides * 2 if len(sides) == 1 else sides
    whole = len(sides) == 2 and all(isinstance(n, int) and n > 0 for n in sides)
    return (int(sides[0]), int(sides[1])) if whole else None


def _find_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that a network with position embeddings was built for."""
    return _read_size(_get(_get(model, "patch_embed"), "img_size")) or _read_size(
        _get(_get(model, "config"), "image_size")
    )


def _unwrap(model: nn.Module) -> nn.Module:
    """Return what a wrapper for compilation or for several devices wraps."""
    for name in ("_orig_mod", "module"):
        inner = dict(model.named_children()).get(name)  # a scripted network's table of modules has no get
        if inner is not None and (name == "_orig_mod" or "Parallel" in type(model).__name__):
            return _unwrap(inner)
    return model


def _get(holder: Any, name: str) -> Any:
    """Return a key of a dictionary or an attribute of anything else, None where there is none."""
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _has(module: nn.Module, *names: str) -> bool:
    return all(getattr(module, name, None) is not None for name in names)


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
