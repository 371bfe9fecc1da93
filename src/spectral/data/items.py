"""Items of datasets in which an image is still encoded, or an array of pixels: the pictures that they are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from spectral.data.decode import describe_failure, read_bytes
from spectral.data.pictures import as_picture, has_last_channels
from spectral.data.structures import map_leaves
from spectral.errors import SpectralError

_ENCODED = {"bytes", "path"}  # an image of the Hub's that isn't decoded: Image(decode=False)


def find_picture(item: Any) -> Image.Image | None:
    """Return the only picture in an item that is nothing but it, its label and such.

    That is a PIL image, the bytes of an image file, alone or beside their path as the Hub's datasets have
    them undecoded, or 8-bit pixels with channels last, which no network of torch is called with.

    Args:
        item: of a dataset, in any form.

    Raises:
        SpectralError: if an encoded image can't be opened.

    Example:
        >>> find_picture({"image": np.zeros((8, 9, 3), np.uint8), "label": 4}).size
        (9, 8)
        >>> find_picture((np.zeros((3, 8, 9), np.float32), 4)) is None
        True
    """
    found: list[Any] = []
    map_leaves(item, found.append, whole=_is_encoded)
    pictures = [leaf for leaf in found if _is_picture(leaf)]
    others = [
        leaf
        for leaf in found
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 1 and not _is_picture(leaf)
    ]
    return _open(pictures[0]) if len(pictures) == 1 and not others else None


def show_picture(item: Any, picture: Image.Image) -> Any:
    """Return an item with the picture that it has in place of what it is there in another form."""
    return map_leaves(item, lambda leaf: picture if _is_picture(leaf) else leaf, whole=_is_encoded)


def _is_picture(leaf: Any) -> bool:
    if isinstance(leaf, Image.Image) or _is_encoded(leaf):
        return True
    if isinstance(leaf, bytes):
        return _is_image_file(leaf)
    return isinstance(leaf, Tensor | np.ndarray) and leaf.ndim == 3 and has_last_channels(leaf)


def _is_encoded(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value or not set(value) <= _ENCODED:
        return False
    content, path = value.get("bytes"), value.get("path")
    return isinstance(content, bytes) or (content is None and isinstance(path, str))


def _is_image_file(content: bytes) -> bool:
    """Whether bytes begin as an image file does; no decoder is run on others, such as text."""
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except Exception:  # Pillow raises almost anything on what is none
        return False


def _open(leaf: Any) -> Image.Image:
    if isinstance(leaf, Image.Image):
        return leaf
    if isinstance(leaf, Tensor | np.ndarray):
        return as_picture(np.asarray(leaf.cpu() if isinstance(leaf, Tensor) else leaf))
    try:
        content = leaf if isinstance(leaf, bytes) else leaf.get("bytes")
        picture = Image.open(io.BytesIO(read_bytes(Path(leaf["path"])) if content is None else content))
        picture.load()
    except Exception as error:  # as on any broken file
        raise SpectralError(f"an encoded image in it can't be read: {describe_failure(error)}") from error
    return picture
