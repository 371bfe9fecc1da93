"""What comes one by one or in a list: images, batches or inputs of one network, as the network takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from spectral.arguments.values import is_integer
from spectral.data.collation import join_images, take_from_batch
from spectral.data.datasets import as_tensors, count_images
from spectral.data.items import find_picture
from spectral.data.labels import LABEL_KEYS, take_labels
from spectral.data.structures import (
    has_one_each,
    is_list_of_images,
    list_leaves,
    map_leaves,
    pick,
)
from spectral.errors import SpectralError
from spectral.network import CHANNELS, can_be_stacked

ONE, BATCH, LISTED, PICTURES = "one image", "a batch", "a list of images", "a batch of pictures"
FEW = 11
"""Copies of one image that make a batch on which a network is tried: as many as few images have channels."""
Choose = Callable[[Sequence[Any], bool], list[int]]
"""(batches of `FEW` images each, had in several ways; whether all are tried) → those that a network takes."""


def choose_none(batches: Sequence[Any], every: bool) -> list[int]:
    """Choose none, where no network is known: labels and shapes tell alone."""
    return []


def tell_item(item: Any, caller: str, choose: Choose) -> str:
    """Tell whether an item of a stream is one image, a batch, or a list of images: what its network takes.

    A picture is one image whatever the network; of what is left, what labels and shape say is tried first.

    Args:
        item: as it comes.
        caller: whose name errors begin with.
        choose: tries batches on the network.

    Raises:
        SpectralError: if nothing says whether it is one image or a batch, and the network takes both.

    Example:
        >>> import torch
        >>> images = torch.zeros(4, 3, 32, 32)
        >>> [tell_item(item, "example", choose_none) for item in (images, images[0], (images[0], 7))]
        ['a batch', 'one image', 'one image']
    """
    if split_pictures(item):
        return PICTURES
    if find_picture(item) is not None or any(isinstance(leaf, Image.Image) for leaf in list_leaves(item)):
        return ONE
    if _is_nested(item):
        return BATCH
    likely, shape, known = _guess(item)
    order = [likely, BATCH if likely == ONE else ONE]
    if isinstance(item, list) and (is_list_of_images(item) or (len(item) > 1 and can_be_stacked(item))):
        listed = len(shape) == 3 or shape[0] == 1 if len(item) > 1 else shape[0] > 1
        order = [LISTED, *order] if listed else [BATCH, LISTED, ONE]
    tried = {way: batch for way in order if (batch := _repeat(item, way)) is not None}
    doubtful = not known and LISTED not in order and len(shape) in (2, 3) and shape[0] > 1
    taken = [list(tried)[i] for i in choose(list(tried.values()), doubtful)]
    if doubtful and ({ONE, BATCH} == {*taken} or (choose is choose_none and len(shape) == 2)):
        raise SpectralError(
            f"{caller}: what comes one by one, of shape {shape}, may be one input or a batch of {shape[0]}; "
            f"join all, inputs by torch.stack and batches by torch.cat"
        )
    return taken[0] if taken else order[0] if LISTED not in order or len(item) > 1 else likely


def tell_list(items: list[Any], caller: str, choose: Choose) -> str | None:
    """Tell what each entry of a list is; None where they are together what a network is called with.

    These are its inputs, as (image, target), and what some take in a list: images (C, H, W), dictionaries.

    Args:
        items: all of it.
        caller: whose name errors begin with.
        choose: tries batches on the network.
    """
    first, each = items[0], as_tensors(items)
    if _are_rows(items, choose) or find_picture(first) is not None:
        return tell_item(first, caller, choose)
    stacks = can_be_stacked(each)
    alike = stacks or can_be_stacked(x[:1] for x in each if isinstance(x, Tensor) and x.ndim > 0)
    if not all(isinstance(x, Tensor) for x in each) or not alike or (stacks and first.ndim == 3):
        return None
    taken = choose([_repeat(first, ONE), _repeat(first, BATCH)], True)
    return ONE if stacks and taken == [0] else BATCH if not stacks and taken == [1] else None


def arrange(item: Any, reading: str) -> Any:
    """Return what comes in a stream as a batch, one of a list of images too; an item as it is.

    What is alone in a list is the batch, as loaders give those of a data set without labels.
    """
    if reading == ONE:
        return item
    single = isinstance(item, tuple | list) and len(item) == 1 and isinstance(item[0], Tensor | np.ndarray)
    return join_images(item) if reading == LISTED else item[0] if single else item


def split_pictures(batch: Any) -> list[Any]:
    """Take a batch of pictures apart into items, each with what the batch has of it; none of what is no such.

    That is a list of them, of items with one each, or columns of which they are one.

    Example:
        >>> one, other = (Image.new("L", (4, 4)) for _ in range(2))
        >>> split_pictures({"image": [one, other], "label": [3, 5]}) == [
        ...     {"image": one, "label": 3}, {"image": other, "label": 5}]
        True
        >>> split_pictures((one, 3))
        []
    """
    columns = _list_parts(batch)
    if columns and all(map(_is_picture_with_more, columns)):
        return columns
    if isinstance(batch, list) and _are_pictures(batch):
        return batch
    count = next((len(column) for column in columns if _are_pictures(column)), 0)
    sized = (isinstance(column, Sized) and not isinstance(column, str | bytes) for column in columns)
    if not count or not all(sized) or {len(column) for column in columns} != {count}:
        return []
    if isinstance(batch, Mapping):
        return [{key: values[i] for key, values in batch.items()} for i in range(count)]
    return list(zip(*columns, strict=True))


def _is_picture_with_more(item: Any) -> bool:
    """Whether it is an item: columns have several pictures each, or one alone."""
    parts = _list_parts(item)
    return len(parts) > 1 and sum(isinstance(part, Image.Image) for part in parts) == 1


def _list_parts(value: Any) -> list[Any]:
    return [*value.values()] if isinstance(value, Mapping) else [*value] if _is_row(value) else []


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _are_pictures(value: Any) -> bool:
    return _is_row(value) and len(value) > 0 and all(isinstance(one, Image.Image) for one in value)


def is_labelled(item: Any) -> bool:
    """Whether it is an item with one number or name as its label, as a batch has not."""
    labels = take_labels(item, single=True).labels
    own = item[1:] if isinstance(item, tuple | list) else item.values() if isinstance(item, Mapping) else ()
    names = [*labels] if isinstance(next(iter(labels), None), str) else []
    return bool(labels) and any(
        (is_integer(value) and not getattr(value, "ndim", 0))
        or (isinstance(value, str) and [value.strip()] == names)
        for value in own
    )


def _guess(item: Any) -> tuple[str, tuple[int, ...], bool]:
    """Guess what an item is; return the shape of its image or images too, and whether it isn't that alone."""
    one, batch = take_labels(item, single=True), take_labels(arrange(item, BATCH))
    leaves = [leaf for leaf in list_leaves(batch.rest) if isinstance(leaf, Tensor | np.ndarray)]
    shape = max((tuple(leaf.shape) for leaf in leaves), key=len, default=())
    each = bool(batch.labels) and shape[:1] == (len(batch.labels),)
    if not shape or (each and not is_labelled(item)):
        return BATCH, shape, True
    if one.labels:
        return ONE, shape, True
    planes = len(shape) == 3 and shape[0] in CHANNELS and min(shape[1:]) >= 8  # not signals of few channels
    if isinstance(item, list) and len(item) == 1:
        return ONE if planes else BATCH, shape, True
    alone = planes or len(shape) == 1 or (len(shape) == 2 and shape[0] > 1)
    return ONE if alone else BATCH, shape, False


def _repeat(item: Any, reading: str) -> Any:
    """Make a batch of `FEW` times the first image of an item, None where it has none in such a reading."""
    try:
        if reading == ONE:
            return map_leaves(as_tensors(take_labels(item, single=True).rest), _repeat_leaf)
        rest = take_from_batch(as_tensors(arrange(item, reading))).rest
        return pick(rest, [0] * FEW, count_images(rest))
    except (SpectralError, RuntimeError, TypeError, KeyError, IndexError):
        return None


def _repeat_leaf(leaf: Any) -> Any:
    return leaf.expand(FEW, *leaf.shape) if isinstance(leaf, Tensor) else [leaf] * FEW


def _is_nested(item: Any) -> bool:
    """Whether it is items, or lists of what these have, and so a batch."""
    if isinstance(item, list) and all(isinstance(one, Mapping) for one in item):
        return True
    return isinstance(item, tuple | list) and all(isinstance(one, tuple | list) for one in item)


def _are_rows(items: list[Any], choose: Choose) -> bool:
    """Whether each entry of a list is an item or a batch, alone or with more beside it, and no input."""
    if all(isinstance(item, Mapping) for item in items):
        keys = set[Any]().union(*items)
        return bool(keys & {*LABEL_KEYS}) or not choose([[items[0]] * FEW], False)  # as detectors take them
    if not all(isinstance(item, tuple | list) for item in items):
        return False
    # Two lists may be one batch: of images, and of what belongs to each.
    columns = len(items) == 2 and len(items[0]) == len(items[1]) > 0 and has_one_each(list(items[0]))
    return not columns or all(isinstance(arrange(item, BATCH), Tensor) for item in items)
