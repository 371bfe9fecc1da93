"""How a network's own configuration brings images to its size, where that is otherwise than here."""

from __future__ import annotations

import enum
from typing import Any

from PIL import Image

from spectral.models.preparation import read_key

OURS = "bicubic"


def describe_resizing(told: Any, size: tuple[int, int] | None) -> str:
    """Say in words how a configuration resizes images, as far as this package does otherwise.

    Here the shorter side is resized, bicubic and antialiased, and the centre of that size is cropped.

    Args:
        told: a configuration of timm, torchvision's weights, or an image processor of transformers: keys or
            attributes.
        size: (height, width) that images come to.

    Returns:
        What differs, empty where nothing does or nothing is told.

    Example:
        >>> describe_resizing({"crop_pct": 0.875, "interpolation": "bilinear"}, (224, 224))
        'of the resized shorter side 0.875 are kept; bilinear'
        >>> describe_resizing({"size": {"shortest_edge": 256}, "resample": 3}, (224, 224))
        'the shorter side is resized to 256 px'
        >>> describe_resizing({"crop_pct": 1.0, "interpolation": "bicubic"}, (224, 224))
        ''
    """
    if told is None or size is None or read_key(told, "do_resize") is False:
        return ""
    return "; ".join(word for word in (_describe_crop(told, size), _name_filter(told)) if word)


def _describe_crop(told: Any, size: tuple[int, int]) -> str:
    kept, mode = read_key(told, "crop_pct"), read_key(told, "crop_mode")
    if isinstance(kept, int | float) and 0 < kept < 1 and mode != "squash":
        return f"of the resized shorter side {kept:g} are kept"
    if mode in ("squash", "border"):
        return f"{mode} in place of a crop"
    asked = read_key(told, "resize_size") or read_key(told, "size")
    if not isinstance(asked, int | list | tuple) and asked is not None:
        if read_key(asked, "height") and not read_key(told, "do_center_crop"):
            return "both sides are resized, whatever their ratio"
        asked = read_key(asked, "shortest_edge")
    asked = asked[0] if isinstance(asked, list | tuple) and len(asked) == 1 else asked
    larger = isinstance(asked, int) and asked > min(size)
    return f"the shorter side is resized to {asked} px" if larger else ""


def _name_filter(told: Any) -> str:
    name = read_key(told, "interpolation")
    name = read_key(told, "resample") if name is None else name
    if isinstance(name, enum.Enum):
        name = name.value if isinstance(name.value, str) else name.name
    if isinstance(name, int):
        name = next((one.name for one in Image.Resampling if one.value == name), None)
    found = name.lower() if isinstance(name, str) else OURS
    return "" if found == OURS else found
