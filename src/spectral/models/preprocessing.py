"""What images in [0, 1] go through before a network sees them: as the user says, or as the network tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.info import IMAGENET, model_info
from spectral.models.preparation import Preparation, normalise, read_key, read_size
from spectral.models.processors import read_processor, read_processor_file
from spectral.models.resizing import describe_resizing

NONE = "none"
FORMS = (
    "(mean, std), a timm configuration, torchvision transforms or weights, an image processor of "
    "transformers, a function, 'imagenet' or 'none'"
)
# Steps of a list of transforms by the names of their classes; what they do to our tensors in [0, 1].
_TO_BYTES = {"PILToTensor", "ToImage", "MaybePILToTensor"}
_TO_UNIT = {"ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToTensorV2"}
_SIZES = {"Resize", "CenterCrop", "CenterCropOrPad", "ResizeKeepRatio", "SmallestMaxSize"}
_NOTHING = {"ToPureTensor", "ToPILImage", "RGB", "Identity"}


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
    for read in (_read_info, _read_configuration, _read_own_layer, read_processor_file):
        found = read(inner)
        if found is not None:
            size = _told_size(inner) or found.size
            return replace(found, size=size, resizing=found.resizing or _find_resizing(inner, size))
    size = _told_size(inner) or _find_size(inner)
    return Preparation("assumed, nothing is known of the network's", size, assumed=True)


def explain_assumption(model: nn.Module, name: str) -> str:
    """Say that images are passed as they are, and what to do where that isn't right."""
    hint = f"preprocessing=(mean, std) (--mean and --std), or preprocessing={NONE!r} if that is right"
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
        return normalise(origin, asked[0], asked[1], None)
    inner = read_key(asked, "image_processor") or read_key(asked, "feature_extractor")
    if inner is not None:
        return read_preparation(inner)
    found = read_processor(asked, origin) or _read_fields(asked, origin) or _read_transforms(asked, origin)
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
    wrapped = read_key(read_key(model, "config"), "pretrained_cfg")  # of a network of timm's in transformers
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
        kind, origin = type(module).__name__, f"the network's own layer {path!r}"
        if "normaliz" in kind.lower() and _has(module, "mean", "std"):
            return _prepare_for(module.mean, module.std, origin, model)
        if _has(module, "image_mean", "image_std"):
            return _prepare_for(module.image_mean, module.image_std, origin, model)
    if _has(model, "pixel_mean", "pixel_std"):
        return _prepare_for(model.pixel_mean, model.pixel_std, "the network's own pixel_mean", model)
    return None


def _prepare_for(mean: Any, std: Any, origin: str, model: nn.Module) -> Preparation:
    """Bring images to the range that a layer of the network normalises: 0 … 255, or [0, 1]."""
    with suppress(SpectralError):  # they may be anything
        known = normalise(origin, mean, std, None)
        if max(*known.mean, *known.std) > 1:
            return Preparation(origin, _find_size(model), (0.0,), (1 / 255,))
    return Preparation(origin, _find_size(model))


def _read_fields(asked: Any, origin: str) -> Preparation | None:
    """Read what has a mean and a standard deviation: a configuration, a recipe, a single transform."""
    mean, std = read_key(asked, "mean"), read_key(asked, "std")
    if mean is None or std is None or callable(mean) or callable(std):
        return None
    size = read_key(asked, "input_size")
    if size is not None:
        size = tuple(size)[-2:]
    else:
        size = next(
            (s for s in (read_key(asked, n) for n in ("crop_size", "size", "resize_size")) if s), None
        )
    found = normalise(origin, mean, std, read_size(size))
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
            self.size = read_size(size)
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


def _find_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that a network with position embeddings was built for."""
    return read_size(read_key(read_key(model, "patch_embed"), "img_size")) or read_size(
        read_key(read_key(model, "config"), "image_size")
    )


def _unwrap(model: nn.Module) -> nn.Module:
    """Return what a wrapper for compilation or for several devices wraps."""
    for name in ("_orig_mod", "module"):
        inner = dict(model.named_children()).get(name)  # a scripted network's table of modules has no get
        if inner is not None and (name == "_orig_mod" or "Parallel" in type(model).__name__):
            return _unwrap(inner)
    return model


def _has(module: nn.Module, *names: str) -> bool:
    return all(getattr(module, name, None) is not None for name in names)


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
