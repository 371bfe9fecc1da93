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
from torch.utils.data import DataLoader, IterableDataset, default_collate

from spectral.data.bounds import as_tensor, keep_few
from spectral.data.datasets import as_tensors, read_dataset, read_iterable, read_loader
from spectral.data.imageset import ImageSet, check_limit, spread_over_classes
from spectral.data.labels import join_labels, take_labels
from spectral.data.loading import Loading, check_workers
from spectral.data.pictures import PixelImages, has_last_channels, make_picture_set, read_pixels
from spectral.data.readings import (
    ONE,
    PICTURES,
    Choose,
    arrange,
    choose_none,
    is_labelled,
    split_pictures,
    tell_item,
    tell_list,
)
from spectral.data.sources import load_images
from spectral.data.structures import list_leaves
from spectral.data.subset import Subset
from spectral.data.values import Values, names_values, read_values
from spectral.errors import SpectralError
from spectral.synthetic import Size

EXPECTED = (
    "images from load_images, a tensor or an array (N, C, H, W), a tuple of several inputs, a dictionary of "
    "named ones, PIL images, paths, a .npy or .npz file, a Dataset or a DataLoader"
)


_ARRAYS = (Tensor, np.ndarray)
_OBJECTS = ("O", "S", "U")  # kinds of an array's entries that are no numbers


def is_image_set(images: Any) -> bool:
    """Whether it is a set of images already: `ImageSet` and whatever is made like it."""
    return hasattr(images, "batches") and hasattr(images, "ids")


def adapt_images(
    images: Any, caller: str, lazily: bool = False, bounded: bool = False, choose: Choose = choose_none
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
        choose: tries on the network what may be one image or a batch; without it shapes tell.

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
            return _open_values(images, caller, choose)
        return load_images(images, lazily=lazily)  # type: ignore[arg-type]
    if isinstance(images, Image.Image):
        return make_picture_set([images], "image")
    if isinstance(images, DataLoader):
        streamed = isinstance(images.dataset, IterableDataset)
        if images.batch_sampler is None or (streamed and images.collate_fn is not default_collate):
            # Items come one by one, or the dataset makes batches itself, or a function of the user's.
            name = f"loader:{type(images.dataset).__name__}"
            return _read_stream(keep_few(images, bounded), caller, images.dataset, name, choose)
        return read_loader(images, bounded)
    if isinstance(images, np.ndarray):
        return _read_array(images, caller)
    if isinstance(images, Tensor):
        return images
    if isinstance(images, Mapping):
        return _read_nested(images, caller, choose)
    if isinstance(images, list | tuple):
        return _read_items(images, caller, lazily, choose)
    if (
        hasattr(images, "__getitem__")
        and hasattr(images, "__len__")
        and not isinstance(images, IterableDataset)
    ):
        return read_dataset(images)
    if isinstance(images, Iterable):
        return _read_stream(keep_few(images, bounded), caller, images, choose=choose)
    raise SpectralError(f"{caller}: expected {EXPECTED}, got {type(images).__name__}")


def open_images(
    source: str | Sequence[str],
    size: Size | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    lazily: bool = False,
    choose: Choose = choose_none,
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
        choose: as for `adapt_images`.

    Raises:
        SpectralError: if it can't be read, or holds nothing.
    """
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    several = [] if isinstance(source, str) else [one for one in source if names_values(one)]
    if several:
        raise SpectralError(f"{several[0]} can't be joined with other images; give it alone")
    if not isinstance(source, str) or not names_values(source):
        return load_images(source, size, limit, seed, workers=workers, lazily=lazily)
    found = adapt_images(source, "images", choose=choose)
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


def _open_values(source: str | os.PathLike[str], caller: str, choose: Choose) -> Any:
    """Read a file of arrays or call a function; tensors come as `Values`, under the name of their source."""
    made, (labels, classes, _), name = read_values(source)
    try:
        found = adapt_images(made, caller, bounded=True, choose=choose)
        if isinstance(found, PixelImages):
            found = PixelImages(found.pixels, name, labels, classes)
        elif not is_image_set(found):
            found = Values(name, found, labels, classes)
        count = len(found)
    except SpectralError as error:
        raise SpectralError(f"{name}: {error}") from error
    except Exception as error:  # of the user's own, perhaps
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        raise SpectralError(
            f"{name} gives what can't be read as inputs ({why}); give tensors, arrays, images or a dataset"
        ) from error
    if labels and len(labels) != count:
        raise SpectralError(f"{name} has {len(labels)} labels of {count} inputs; give each its own")
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
    items: Iterator[Any], caller: str, owner: Any, name: str | None = None, choose: Choose = choose_none
) -> Any:
    """Read what can be gone through once: batches, paths, or images one by one, which then are items.

    Args:
        items: all of it.
        caller: whose name errors begin with.
        owner: what they are of, which may tell what its labels count.
        name: of batches; by default the owner's type.
        choose: as for `adapt_images`.
    """
    first = next(items, None)
    if first is None:
        raise SpectralError(f"{caller}: there are no images")
    every = chain([first], items)
    if isinstance(first, str | os.PathLike):
        return _read_items(list(every), caller)
    return _read_rows(every, tell_item(first, caller, choose), owner, name)


def _read_rows(rows: Iterable[Any], reading: str, owner: Any = None, name: str | None = None) -> Any:
    """Read images one by one, or batches."""
    if reading == PICTURES:
        rows, reading = _split_batches(rows), ONE
    if reading != ONE:
        name = name or type(rows if owner is None else owner).__name__
        return read_iterable((arrange(row, reading) for row in rows), name=name, dataset=owner)
    stream = Stream(rows)
    return make_picture_set(stream, "images") if _are_pixels(stream) else read_dataset(stream, owner=owner)


def _split_batches(batches: Iterable[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if not (items := split_pictures(batch)):  # the first was one
            raise SpectralError(
                f"batch {number} is no batch of pictures with one of all else for each, as batch 0 is"
            )
        yield from items


def _are_pixels(items: Iterable[Any]) -> bool:
    """Whether all are PIL images, or arrays (H, W), (H, W, C), (C, H, W) of 8-bit pixels."""
    return all(
        isinstance(item, Image.Image)
        or (isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3))
        for item in items
    )


def _read_items(items: Sequence[Any], caller: str, lazily: bool = False, choose: Choose = choose_none) -> Any:
    """Read a list: of paths, of PIL images, of arrays of pixels, or of what a network is called with."""
    if not items:
        raise SpectralError(f"{caller}: there are no images")
    if all(isinstance(item, str | os.PathLike) for item in items):
        return load_images(list(items), lazily=lazily)
    pictures = isinstance(items, list) or all(isinstance(item, Image.Image) for item in items)
    if pictures and _are_pixels(items):
        return make_picture_set(items, "images")
    rows = isinstance(items, list) or all(isinstance(item, tuple) and is_labelled(item) for item in items)
    reading = tell_list(list(items), caller, choose) if rows else None
    return _read_nested(items, caller, choose) if reading is None else _read_rows(items, reading)


def _read_nested(value: Any, caller: str, choose: Choose = choose_none) -> Any:
    """Read a dictionary or a tuple: pictures with their labels, or what a network is called with.

    Pictures are PIL images, and 8-bit pixels with channels last, which no network of torch is called with.
    An item of a dataset, one image with its label, is a set of one.
    """
    if is_labelled(value) and tell_item(value, caller, choose) == ONE:
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
