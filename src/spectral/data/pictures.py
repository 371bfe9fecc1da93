"""Pictures in memory as a set of images: PIL images, and arrays of 8-bit pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from spectral.data.bounds import as_tensor
from spectral.data.decode import describe_failure, to_rgb
from spectral.data.imageset import ImageItem, ImageSet, find_repeated
from spectral.data.loading import group_positions
from spectral.errors import SpectralError, warn
from spectral.network import CHANNELS

WHITE = 255


class PixelImages:
    """8-bit pixels in memory, seen as a set of images in [0, 1] of their own size.

    Args:
        pixels: (N, C, H, W), uint8.
        source: where they come from.
        labels: of each, where known.
        classes: what they count, where they have names.

    Example:
        >>> images = PixelImages(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
        >>> images.size, float(next(images.batches(2))[1].max())
        ((4, 4), 0.20000000298023224)
    """

    prepared = False

    def __init__(
        self,
        pixels: Tensor,
        source: str = "array",
        labels: Sequence[int | None] = (),
        classes: list[str] | None = None,
    ) -> None:
        self.pixels, self.source, self.classes = pixels, source, classes
        self.ids = self.clusters = [f"{i:04d}" for i in range(len(pixels))]
        self.labels: list[int | None] = list(labels) or [None] * len(pixels)
        self.size: tuple[int, int] = (pixels.shape[-2], pixels.shape[-1])

    @property
    def fingerprint(self) -> str:
        """Hash of shape and values."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of images that are the same as an earlier one, each with that one's."""
        rows = self.pixels.cpu().flatten(1).contiguous().numpy()
        return find_repeated(self.ids, [hashlib.sha256(row.data).hexdigest()[:32] for row in rows])

    def resized(self, size: tuple[int, int]) -> PixelImages:
        """Return itself: an array is taken as it is."""
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images (B, C, H, W) in [0, 1])."""
        for part in group_positions(len(self), batch_size, indices):
            yield part, self.pixels[part].float() / WHITE

    def __len__(self) -> int:
        return len(self.pixels)


def read_pixels(array: npt.NDArray[np.uint8]) -> PixelImages:
    """Read an array of 8-bit pixels, one image or many, with channels first, last or none.

    Raises:
        SpectralError: if it can't be one.

    Example:
        >>> read_pixels(np.zeros((5, 8, 9, 3), np.uint8)).pixels.shape
        torch.Size([5, 3, 8, 9])
        >>> read_pixels(np.zeros((8, 9), np.uint8)).pixels.shape
        torch.Size([1, 1, 8, 9])
    """
    pixels = as_tensor(np.ascontiguousarray(array))
    if pixels.ndim not in (2, 3, 4):
        raise SpectralError(
            f"expected 8-bit images (N, H, W, C), (N, C, H, W), (N, H, W), (H, W, C) or (H, W), got an array "
            f"of shape {array.shape}"
        )
    last, first = pixels.shape[-1] in CHANNELS, pixels.shape[-3] in CHANNELS if pixels.ndim > 2 else False
    if pixels.ndim == 4:
        return PixelImages(pixels.movedim(-1, 1) if last and not first else pixels)
    if pixels.ndim == 2:
        return PixelImages(pixels[None, None])
    if last:
        return PixelImages(pixels.movedim(-1, 0)[None])
    if first and pixels.shape[0] > 1:
        warn(
            f"8-bit pixels of shape {array.shape} are taken as one image of {array.shape[0]} channels; add "
            f"an axis, as pixels[:, None], where they are {array.shape[0]} gray ones"
        )
    return PixelImages(pixels[None] if first else pixels[:, None])


def make_picture_set(pictures: Sequence[Any], source: str) -> ImageSet:
    """Make a set of images of PIL images, or of arrays (H, W), (H, W, C), (C, H, W) of 8-bit pixels.

    Raises:
        SpectralError: if an array can't be one.

    Example:
        >>> make_picture_set([Image.new("L", (8, 6)), Image.new("RGB", (4, 4))], "images")
        ImageSet('images', 2 images, size=None)
    """
    opened = [
        picture if isinstance(picture, Image.Image) else as_picture(np.asarray(picture))
        for picture in pictures
    ]
    items = [
        describe_picture(f"{source}/{i:04d}", partial(to_rgb, picture), picture, None)
        for i, picture in enumerate(opened)
    ]
    return ImageSet(source, items)


def has_last_channels(pixels: Any) -> bool:
    """Whether pixels are of eight bits with channels last, alone (H, W, C) or many (N, H, W, C).

    Example:
        >>> has_last_channels(np.zeros((8, 9, 3), np.uint8)), has_last_channels(np.zeros((3, 8, 9), np.uint8))
        (True, False)
    """
    byte = pixels.dtype in (np.uint8, torch.uint8)
    return byte and pixels.shape[-1] in CHANNELS and pixels.shape[-3] not in CHANNELS


def as_picture(array: npt.NDArray[np.uint8]) -> Image.Image:
    """Make a PIL image of an array (H, W), (H, W, C) or (C, H, W) of 8-bit pixels.

    Raises:
        SpectralError: if it can't be one.
    """
    shape = array.shape
    if array.ndim == 3 and shape[0] in CHANNELS and shape[-1] not in CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or (array.ndim == 3 and array.shape[-1] not in (*CHANNELS, 2)):
        raise SpectralError(
            f"expected 8-bit images (H, W), (H, W, C) or (C, H, W), of 1, 3 or 4 channels, got an array of "
            f"shape {shape}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def describe_picture(
    name: str, reopen: Callable[[], Image.Image], picture: Image.Image, label: int | None = None
) -> ImageItem:
    """Describe a PIL image as an item of a set, by its pixels.

    Args:
        name: its id.
        reopen: gets it again.
        picture: the image.
        label: its class.

    Raises:
        SpectralError: if it can't be decoded, as one of a file that is broken.
    """
    try:
        upright = to_rgb(picture)
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise SpectralError(
            f"image {name} can't be read ({describe_failure(error)}); leave it out"
        ) from error
    key = _hash_picture(upright)
    return ImageItem(name, partial(_reopen, reopen, key), key, (upright.height, upright.width), label)


def _reopen(reopen: Callable[[], Image.Image], key: str) -> Image.Image:
    picture = reopen()
    if _hash_picture(picture) != key:
        raise SpectralError("it isn't the same as when it was first read, as by a random transform")
    return picture


def _hash_picture(upright: Image.Image) -> str:
    facts = repr((upright.mode, upright.size)).encode()
    return hashlib.sha256(facts + upright.tobytes()).hexdigest()[:32]
