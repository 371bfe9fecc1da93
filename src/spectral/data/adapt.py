"""Whatever people keep images in, as a set of images or as what a network is called with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from spectral.arguments import is_integer
from spectral.data.bounds import as_tensor, keep_few
from spectral.data.datasets import as_tensors, read_dataset, read_iterable, read_loader
from spectral.data.imageset import ImageSet, check_limit, spread_over_classes
from spectral.data.items import find_picture
from spectral.data.labels import Taken, join_labels, take_labels
from spectral.data.loading import Loading, check_workers
from spectral.data.pictures import PixelImages, has_last_channels, make_picture_set, read_pixels
from spectral.data.sources import load_images
from spectral.data.structures import has_one_each, list_leaves
from spectral.data.subset import Subset
from spectral.data.values import Values, names_values, read_values
from spectral.errors import SpectralError
from spectral.network import CHANNELS
from spectral.synthetic import Size

EXPECTED = (
    "images from load_images, a tensor or an array (N, C, H, W), a tuple of several inputs, a dictionary of "
    "named ones, PIL images, paths, a .npy or .npz file, a Dataset or a DataLoader"
)


_ARRAYS = (Tensor, np.ndarray)
Stem = tuple[int | None, int | None]  # spatial axes and input channels of a first convolution
NO_STEM: Stem = (None, None)
_OBJECTS = ("O", "S", "U")  # kinds of an array's entries that are no numbers


def is_image_set(images: Any) -> bool:
    """Whether it is a set of images already: `ImageSet` and whatever is made like it."""
    return hasattr(images, "batches") and hasattr(images, "ids")


def adapt_images(
    images: Any, caller: str, lazily: bool = False, bounded: bool = False, stem: Stem = NO_STEM
) -> Any:
    """Make a set of images of whatever holds some.

    Names, paths, PIL images, arrays of 8-bit pixels, datasets and loaders become sets. Tensors, alone or
    nested in tuples, lists and dictionaries, are what a network is called with, and are returned as such,
    arrays among them as tensors; those in a file of arrays, or from a function that is named, as `Values`.

    Args:
        images: what the user gave.
        caller: whose name errors begin with.
        lazily: as for `load_images`, of names and paths.
        bounded: whether what comes one by one, without a length, may only be so much.
        stem: spatial axes and channels of the network's first convolution: they tell one from a batch.

    Raises:
        SpectralError: if it is none of these, or empty.

    Example:
        >>> adapt_images(np.zeros((2, 8, 9, 3), np.uint8), "example").size
        (8, 9)
        >>> adapt_images(np.zeros((2, 3, 8, 9)), "example").shape
        torch.Size([2, 3, 8, 9])
    """
    if is_image_set(images) or isinstance(images, Values):
        return images
    if getattr(getattr(images, "dtype", None), "kind", None) in _OBJECTS and hasattr(images, "tolist"):
        images = images.tolist()  # of names or objects, as a column of pandas
    if isinstance(images, str | os.PathLike):
        if names_values(images):
            return _open_values(images, caller)
        return load_images(images, lazily=lazily)  # type: ignore[arg-type]
    if isinstance(images, Image.Image):
        return make_picture_set([images], "image")
    if isinstance(images, DataLoader):
        if images.batch_sampler is None:  # items come one by one, or the dataset makes batches itself
            name = f"loader:{type(images.dataset).__name__}"
            return _read_stream(keep_few(images, bounded), caller, images.dataset, name, stem)
        return read_loader(images, bounded)
    if isinstance(images, np.ndarray):
        return _read_array(images, caller)
    if isinstance(images, Tensor):
        return images
    if isinstance(images, Mapping):
        return _read_nested(images, caller, stem)
    if isinstance(images, list | tuple):
        return _read_items(images, caller, lazily, stem)
    if (
        hasattr(images, "__getitem__")
        and hasattr(images, "__len__")
        and not isinstance(images, IterableDataset)
    ):
        return read_dataset(images)
    if isinstance(images, Iterable):
        return _read_stream(keep_few(images, bounded), caller, images, stem=stem)
    raise SpectralError(f"{caller}: expected {EXPECTED}, got {type(images).__name__}")


def open_images(
    source: str | Sequence[str],
    size: Size | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    lazily: bool = False,
) -> Any:
    """Load images as `load_images` does, or what is named besides: a file of arrays, or a function.

    Args:
        source: as for `load_images`; one .npy or .npz file, or ``my_data.py:load``, whose values are passed
            as they are.
        size: of images; values, and pixels in an array, have their own.
        limit: how many, at most: a seeded choice, spread over the classes where these are known.
        seed: of the choice.
        workers: as for `load_images`.
        lazily: as for `load_images`.

    Raises:
        SpectralError: if it can't be read, or holds nothing.
    """
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    several = [] if isinstance(source, str) else [one for one in source if names_values(one)]
    if several:
        raise SpectralError(f"{several[0]} can't be joined with other images; give it alone")
    if not isinstance(source, str) or not names_values(source):
        return load_images(source, size, limit, seed, workers=workers, lazily=lazily)
    found = adapt_images(source, "images")
    if not len(found):
        raise SpectralError(f"{source} holds no images")
    if isinstance(found, ImageSet):
        found = (found if found.size or size is None else found.resized(size)).with_loading(
            Loading(found.loading.workers if workers is None else check_workers(workers, "images"))
        )
    if limit is None or len(found) <= check_limit(limit):
        return found
    labels = found.labels or [None] * len(found)
    chosen = sorted(spread_over_classes(labels, seed)[:limit])
    if isinstance(found, Values):
        return found.choose(chosen)
    if isinstance(found, ImageSet):
        return replace(found, items=[found.items[i] for i in chosen])
    return Subset(found, chosen)


def _open_values(source: str | os.PathLike[str], caller: str) -> Any:
    """Read a file of arrays or call a function; tensors come as `Values`, under the name of their source."""
    made, (labels, classes, _), name = read_values(source)
    try:
        found = adapt_images(made, caller, bounded=True)
    except SpectralError as error:
        raise SpectralError(f"{name}: {error}") from error
    except Exception as error:  # of the user's own, perhaps
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        raise SpectralError(
            f"{name} gives what can't be read as inputs ({why}); give tensors, arrays, images or a dataset"
        ) from error
    if isinstance(found, PixelImages):
        found = PixelImages(found.pixels, name, labels, classes)
    elif not is_image_set(found):
        found = Values(name, found, labels, classes)
    if labels and len(labels) != len(found):
        raise SpectralError(f"{name} has {len(labels)} labels of {len(found)} inputs; give each its own")
    return found


def _read_array(array: np.ndarray[Any, Any], caller: str) -> Any:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise SpectralError(f"{caller}: the array has masked values; fill them (.filled()) or leave them out")
    if array.dtype == np.uint8:
        return read_pixels(array) if array.ndim < 5 else as_tensor(array)  # of videos
    if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.complexfloating):
        raise SpectralError(
            f"{caller}: expected pixels of type uint8 or floating-point numbers, got an array of "
            f"{array.dtype}; convert it with .astype(np.uint8) or .astype(np.float32)"
        )
    return as_tensor(np.ascontiguousarray(array))


class Stream(list[Any]):
    """Images that came one by one, kept in memory."""


def _read_stream(
    items: Iterator[Any], caller: str, owner: Any, name: str | None = None, stem: Stem = NO_STEM
) -> Any:
    """Read what can be gone through once: batches, paths, or images one by one, which then are items.

    Args:
        items: all of it.
        caller: whose name errors begin with.
        owner: what they are of, which may tell what its labels count.
        name: of batches; by default the owner's type.
        stem: as for `adapt_images`.
    """
    first = next(items, None)
    if first is None:
        raise SpectralError(f"{caller}: there are no images")
    every = chain([first], items)
    if isinstance(first, str | os.PathLike):
        return _read_items(list(every), caller)
    if not _is_one_image(first, stem):
        return read_iterable(every, name=name or type(owner).__name__, dataset=owner)
    stream = Stream(every)
    if all(isinstance(item, np.ndarray | Image.Image) for item in stream):
        return _read_items(list(stream), caller)
    return read_dataset(stream, owner=owner)


def _is_one_image(item: Any, stem: Stem = NO_STEM) -> bool:
    """Whether an item of a stream is one image, by its label, as a picture, or by its shape, and no batch."""
    if _is_batch_of_images(item):
        return False
    taken = take_labels(item, single=True)
    rest, leaves = taken.rest, list_leaves(taken.rest)
    if find_picture(item) is not None or any(isinstance(leaf, Image.Image) for leaf in leaves):
        return True
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray)]
    shape = max(shapes, key=len, default=())
    if isinstance(rest, np.ndarray) and rest.dtype == np.uint8 and len(shape) == 3:
        return True  # pixels with channels last
    if _is_labelled_batch(item, stem):
        return False
    axes, channels = stem
    if axes is not None and len(shape) == axes + 2 and shape[1] == channels:
        return False
    ends = {1: shape[:1], 2: shape[::2], 3: (*shape[:2], *shape[3:])}  # of a video the time may be first
    if axes is not None and len(shape) == axes + 1 and channels in ends[axes]:
        return True
    if channels == 1 and len(shape) == axes:
        return True  # without channels
    # Else the first convolution may be of another branch, or the network may add an axis to images.
    planes = len(shape) == 3 and shape[0] in CHANNELS and min(shape[1:]) >= 8  # not signals of few channels
    return planes or (len(shape) == 3 and _has_label(item, taken))


def _is_batch_of_images(item: Any) -> bool:
    """Whether it is a list of images of as many channels, or of dictionaries, alone or with one for each."""
    images = item
    if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(x, tuple | list) for x in item):
        images = list(item[0]) if len(item[0]) == len(item[1]) else None
    return has_one_each(images) and len({len(x) for x in images if isinstance(x, Tensor)}) < 2


def _has_label(item: Any, taken: Taken) -> bool:
    """Whether an item from which labels were taken has one number or name as such, as a batch has not."""
    own = item[1:] if isinstance(item, tuple | list) else item.values() if isinstance(item, Mapping) else ()
    names = [*taken.labels] if isinstance(next(iter(taken.labels), None), str) else []
    return bool(taken.labels) and any(
        is_integer(value) or (isinstance(value, str) and [value.strip()] == names) for value in own
    )


def _read_items(items: Sequence[Any], caller: str, lazily: bool = False, stem: Stem = NO_STEM) -> Any:
    """Read a list: of paths, of PIL images, of arrays of pixels, or of what a network is called with."""
    if not items:
        raise SpectralError(f"{caller}: there are no images")
    if all(isinstance(item, str | os.PathLike) for item in items):
        return load_images(list(items), lazily=lazily)
    if all(isinstance(item, Image.Image) for item in items):
        return make_picture_set(items, "images")
    arrays = isinstance(items, list) and all(isinstance(item, np.ndarray) for item in items)
    if arrays and all(item.dtype == np.uint8 and item.ndim in (2, 3) for item in items):
        return make_picture_set(items, "images")
    if isinstance(items, list):
        # One alone of a single image may be its item; the others tell.
        if all(map(_find_labelled, items)) and any(_is_labelled_batch(item, stem) for item in items):
            return read_iterable(items)
        labelled = any(_has_label(item, take_labels(item, single=True)) for item in items)
        paired = stem[0] is not None and all(
            isinstance(item, tuple) and _is_one_image(item, stem) for item in items
        )
        if labelled or paired or find_picture(items[0]) is not None:
            return read_dataset(Stream(items))
    return _read_nested(items, caller, stem)


def _is_labelled_batch(item: Any, stem: Stem) -> bool:
    """Whether it is what a loader gives, and no item."""
    axes, channels = stem
    shape = () if axes is None else _find_labelled(item)
    if axes is None or not shape:
        return False
    if len(shape) == axes + 1:  # images to which their network adds an axis, or one of so many channels
        return shape[0] != channels and (shape[0] > 1 or len(shape) == 4)
    return len(shape) in (4, axes + 2)


def _find_labelled(item: Any) -> tuple[int, ...]:
    """Return the shape of what has as many entries as there are labels beside it; an empty one of none."""
    if not isinstance(item, tuple | list | Mapping):
        return ()
    taken = take_labels(item)
    tensors = [leaf for leaf in list_leaves(taken.rest) if isinstance(leaf, Tensor)]
    shape = tuple(max(tensors, key=lambda x: x.ndim).shape) if tensors else ()
    return shape if shape and shape[0] == len(taken.labels) else ()


def _read_nested(value: Any, caller: str, stem: Stem = NO_STEM) -> Any:
    """Read a dictionary or a tuple: pictures with their labels, or what a network is called with.

    Pictures are PIL images, and 8-bit pixels with channels last, which no network of torch is called with.
    An item of a dataset, one image with its label, is a set of one.
    """
    if _has_label(value, take_labels(value, single=True)) and _is_one_image(value, stem):
        return read_dataset(Stream([value]))
    taken = take_labels(value)
    parts = taken.rest.values() if isinstance(taken.rest, Mapping) else [taken.rest]
    maps = [part for part in parts if _are_pictures(part) or (isinstance(part, _ARRAYS) and part.ndim > 1)]
    if len(maps) != 1 or not _are_pictures(maps[0]):
        return _require_tensors(value, caller)
    made = adapt_images(maps[0] if isinstance(maps[0], list) else np.asarray(maps[0]), caller)
    labels, classes, _ = join_labels([taken], [len(made)], caller)
    if isinstance(made, PixelImages):
        return PixelImages(made.pixels, made.source, labels, classes)
    items = [replace(item, label=label) for item, label in zip(made.items, labels, strict=True)]
    return replace(made, items=items, classes=classes)


def _are_pictures(part: Any) -> bool:
    if isinstance(part, _ARRAYS):
        return part.ndim == 4 and has_last_channels(part)
    if not isinstance(part, list) or not part:
        return False
    if all(isinstance(one, Image.Image) for one in part):
        return True
    return all(isinstance(one, np.ndarray) and one.ndim == 3 and has_last_channels(one) for one in part)


def _require_tensors(value: Any, caller: str) -> Any:
    made = as_tensors(value)
    if not any(isinstance(leaf, Tensor) for leaf in list_leaves(made)):
        named = list(value) if isinstance(value, Mapping) else []
        datasets = all(
            hasattr(value[key], "__getitem__") and not isinstance(value[key], str) for key in named
        )
        advice = f"; give one of its {', '.join(map(repr, named))}" if named and datasets else ""
        raise SpectralError(
            f"{caller}: expected {EXPECTED}, got a {type(value).__name__} without any{advice}"
        )
    return made
