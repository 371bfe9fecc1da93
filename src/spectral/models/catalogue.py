"""A few small models of every architecture that the installed libraries have, to look at their structure.

Which ones is decided by their names alone: building all of them to find the small ones would take minutes.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral.errors import check_choice
from spectral.models.info import IMAGENET
from spectral.models.load import RANDOM_SEED
from spectral.models.sources.libraries import import_antialiased, list_antialiased
from spectral.tracing.dataless import Dataless

LIBRARIES = ("timm", "torchvision", "antialiased")
PER_MODULE = 4
TASKS = ("", "segmentation", "detection", "video")  # submodules of torchvision.models; "" classifies
FRAMES = 16
DETECTOR_SIZE = 128  # detectors enlarge their images to 800 px by default, which shows no other structure

# What libraries call their sizes, smallest first; a name without any of them is of middle size.
_SIZES = (
    *("zepto", "atto", "femto", "pico", "nano", "xxtiny", "xxs", "xx", "xtiny", "xs", "pt", "t", "ti"),
    *("tiny", "mini", "s", "small", "m", "med", "medium", "", "b", "base", "plus", "l", "large", "x", "xl"),
    *("xlarge", "xxl", "h", "huge", "g", "giant", "gigantic"),
)  # fmt: skip

Example = tuple[int, ...] | list[torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """A model that a library offers.

    Attributes:
        library: timm, torchvision or antialiased.
        module: where the library defines it, such as ``resnet`` or ``detection.ssd``.
        name: the library's name for it with the library before it, ``timm/resnet18``.
    """

    library: str
    module: str
    name: str


def list_catalogue(libraries: Sequence[str] = LIBRARIES) -> list[Entry]:
    """List all models of the libraries, in the order in which they are defined.

    timm's ``test_…`` models and quantised ones are left out.

    Args:
        libraries: any of timm, torchvision, antialiased.

    Raises:
        SpectralError: for an unknown library, or antialiased where the package isn't installed.

    Example:
        >>> Entry("timm", "vgg", "timm/vgg11") in list_catalogue(["timm"])
        True
    """
    for library in libraries:
        check_choice(library, LIBRARIES, "library")
    return [
        Entry(library, module, f"{library}/{name}")
        for library in libraries
        for module, name in _SOURCES[library].list()
    ]


def list_representatives(libraries: Sequence[str] = LIBRARIES) -> list[Entry]:
    """Choose a few small models of every architecture module of the libraries.

    Models whose names differ in more than a size or a number differ in structure: of each such stem the
    smallest is taken. A module with many stems gives four, spread over the order of their definition; one of
    timm's with a single stem gives its two smallest models, since these are families of their own.

    Args:
        libraries: any of timm, torchvision, antialiased.

    Raises:
        SpectralError: as `list_catalogue`.

    Example:
        >>> [one.name for one in list_representatives(["antialiased"]) if one.module == "vgg"]
        ['antialiased/vgg11', 'antialiased/vgg11_bn']
    """
    modules: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in list_catalogue(libraries):
        modules[entry.library, entry.module].append(entry)
    return [
        entry
        for (library, _), entries in modules.items()
        for entry in _choose(entries, least=2 if library == "timm" else 1)
    ]


def build_untrained(name: str, device: str = "meta") -> tuple[nn.Module, Example]:
    """Build a model of a library without its weights, and say on what it can run.

    Args:
        name: ``timm/NAME``, ``torchvision/NAME`` (also segmentation, detection and video) or
            ``antialiased/NAME``.
        device: on ``"meta"`` neither memory nor time is spent, but some models can't be built there.

    Returns:
        The model in eval mode, and an example as `spectral.find_sites` takes it.

    Raises:
        SpectralError: if the library is unknown.

    Example:
        >>> model, example = build_untrained("torchvision/r3d_18")
        >>> example, next(model.parameters()).device.type
        ((3, 16, 112, 112), 'meta')
    """
    library, _, bare = name.partition("/")
    check_choice(library, LIBRARIES, "library")
    with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialising tensors without data
        torch.default_generator.manual_seed(RANDOM_SEED)
        with Dataless():  # drawing weights without data takes longer than all else
            model, example = _SOURCES[library].build(bare)
    return model.eval(), example


def _choose(entries: Sequence[Entry], least: int) -> list[Entry]:
    """Choose the smallest model of each of up to four stems, or the ``least`` smallest of a single stem."""
    stems: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        stems[_find_stem(entry.name)].append(entry)
    if len(stems) == 1:
        return sorted(entries, key=_rank)[:least]
    smallest = [min(group, key=_rank) for group in stems.values()]
    last, count = len(smallest) - 1, min(PER_MODULE, len(smallest))
    return [smallest[round(i * last / (count - 1))] for i in range(count)]


def _find_stem(name: str) -> str:
    """Leave out of a name what says how large the model is: digits, and words for sizes.

    Example:
        >>> _find_stem("timm/vit_tiny_patch16_gap_224"), _find_stem("timm/resnet50d")
        ('timm/vit_gap', 'timm/resnetd')
    """
    first, *others = name.split("_")
    kept = [word for word in others if word.isalpha() and word not in _SIZES]
    return "_".join([re.sub(r"\d", "", first), *kept])


def _rank(entry: Entry) -> tuple[int, list[int], str]:
    """Order models from small to large: by the word for a size, then by the numbers."""
    sizes = [_SIZES.index(word) for word in entry.name.split("_")[1:] if word in _SIZES]
    return min(sizes, default=_SIZES.index("")), [int(n) for n in re.findall(r"\d+", entry.name)], entry.name


def _list_timm() -> list[tuple[str, str]]:
    import timm
    from timm.models import _registry

    current = set(timm.list_models())
    defined: Mapping[str, str] = _registry._model_to_module
    return [(module, name) for name, module in defined.items()
            if name in current and not name.startswith("test_")]  # fmt: skip


def _list_torchvision() -> list[tuple[str, str]]:
    from torchvision import models

    found = []
    for task in TASKS:
        place = importlib.import_module(f"torchvision.models.{task}".rstrip("."))
        for name in models.list_models(module=place):
            module = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
            found.append((module, name))
    return found


def _list_antialiased() -> list[tuple[str, str]]:
    package = import_antialiased()
    return [(getattr(package, name).__module__.rpartition(".")[2], name) for name in list_antialiased()]


def _build_timm(name: str) -> tuple[nn.Module, Example]:
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    return model, tuple(model.pretrained_cfg["input_size"])


def _build_torchvision(name: str) -> tuple[nn.Module, Example]:
    from torchvision import models

    task = models.get_model_builder(name).__module__.split(".")[2:-1]
    backbone = {"weights_backbone": None} if task in (["segmentation"], ["detection"]) else {}
    model: Any = models.get_model(name, weights=None, **backbone)
    if task == ["detection"]:
        model.transform.min_size, model.transform.max_size = (DETECTOR_SIZE,), 2 * DETECTOR_SIZE
        noise = torch.Generator().manual_seed(RANDOM_SEED)  # real on any device: boxes depend on values
        return model, [torch.rand(3, DETECTOR_SIZE, DETECTOR_SIZE, generator=noise, device="cpu")]
    recipe = models.get_model_weights(name).DEFAULT.transforms()
    side = getattr(recipe, "crop_size", IMAGENET.size)[0]
    return model, (3, FRAMES, side, side) if task == ["video"] else (3, side, side)


def _build_antialiased(name: str) -> tuple[nn.Module, Example]:
    return getattr(import_antialiased(), name)(pretrained=False), (3, *IMAGENET.size)


@dataclass(frozen=True)
class _Source:
    """What a library offers, as (module, name), and how to build one of them."""

    list: Callable[[], list[tuple[str, str]]]
    build: Callable[[str], tuple[nn.Module, Example]]


_SOURCES = {
    "timm": _Source(_list_timm, _build_timm),
    "torchvision": _Source(_list_torchvision, _build_torchvision),
    "antialiased": _Source(_list_antialiased, _build_antialiased),
}
