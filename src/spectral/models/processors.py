"""Image processors of transformers, as objects or as the files beside weights: what images go through."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from spectral.models.fetching import find_in_hub_cache
from spectral.models.preparation import Preparation, normalise, read_key, read_size
from spectral.models.resizing import describe_resizing

# Of an image processor alone, and of one with what else a network takes, as words: then it is a part of it.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def read_processor_file(model: nn.Module) -> Preparation | None:
    """Read the image processor's file that lies beside a network of transformers, without the network.

    Example:
        >>> read_processor_file(nn.Flatten())
    """
    where = read_key(read_key(model, "config"), "_name_or_path")
    if not isinstance(where, str) or not where:
        return None
    for name in PROCESSOR_FILES:
        path: Path | None = Path(where).expanduser() / name
        if path is not None and not path.is_file():
            path = _find_in_cache(where, name)
        with suppress(OSError, ValueError):
            described = None if path is None else json.loads(path.read_text())
            found = read_processor(read_key(described, "image_processor") or described, f"{where}/{name}")
            if found is not None:
                return found
    return None


def _find_in_cache(repository: str, name: str) -> Path | None:
    try:
        return find_in_hub_cache(repository, name)
    except ValueError:  # no name that a repository could have
        return None


def read_processor(asked: Any, origin: str) -> Preparation | None:
    """Read an image processor of transformers, as an object or as its file; None of anything else.

    Raises:
        SpectralError: if its numbers can't be used.

    Example:
        >>> read_processor({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 224}, "an example").std
        (0.25, 0.25, 0.25)
        >>> read_processor({"mean": 0.5}, "no image processor")
    """
    asked = _complete_processor(asked)
    mean, std, normalises = (read_key(asked, name) for name in ("image_mean", "image_std", "do_normalize"))
    # An object that says None, or that rescales and has no such switch, doesn't normalise.
    told = not isinstance(asked, Mapping) and any(
        hasattr(asked, name) for name in ("do_normalize", "do_rescale")
    )
    if normalises is None and not told and (mean is None or std is None):
        return None
    again = std if read_key(asked, "include_top") else None  # EfficientNet's divides by it once more
    if normalises is False or (normalises is None and told) or mean is None or std is None:
        mean, std = (0.0,), (1.0,)
    size = read_key(asked, "crop_size") if read_key(asked, "do_center_crop") else None
    found = normalise(origin, mean, std, read_size(size or read_key(asked, "size")))
    if again is not None:
        found = _divide(found, normalise(origin, 0.0, again, None).std)
    # Its pixels are 0 … 255, scaled by a factor: by default to [0, 1].
    factor = read_key(asked, "rescale_factor")
    largest = 255.0 * (1 / 255 if factor is None else float(factor))
    largest = 255.0 if read_key(asked, "do_rescale") is False else largest
    offset = 1.0 if read_key(asked, "offset") or read_key(asked, "rescale_offset") else 0.0
    if math.isclose(largest, 1) and not offset:
        largest = 1.0
    bgr = bool(read_key(asked, "do_flip_channel_order"))
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
    kind = read_key(asked, "image_processor_type") or read_key(asked, "feature_extractor_type")
    if not isinstance(asked, Mapping) or not isinstance(kind, str) or find_spec("transformers") is None:
        return asked
    name = kind.replace("FeatureExtractor", "ImageProcessor")
    library = import_module("transformers")
    for own in (name, name.removesuffix("Fast")):
        with suppress(Exception):  # of another version's file anything may fail
            return getattr(library, own).from_dict(dict(asked))
    return asked
