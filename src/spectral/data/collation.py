"""Items of a dataset made a batch, by torch's function or one of the user's own, and its labels out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from spectral.data.labels import LABEL_KEYS, Taken, take_labels
from spectral.data.structures import is_list_of_images, list_leaves
from spectral.network import can_be_stacked

Collate = Callable[[list[Any]], Any]


def take_from_batch(batch: Any, keys: Sequence[str] = LABEL_KEYS) -> Taken:
    """Take the labels out of what a loader gives: a batch, or the items themselves, as their collate may."""
    batch = _list_pairs(batch)
    if isinstance(batch, tuple | list) and all(isinstance(one, tuple | list | Mapping) for one in batch):
        each = [take_labels(item, single=True, keys=keys) for item in batch]
        if all(len(taken.labels) == 1 for taken in each):
            return Taken(join_images([taken.rest for taken in each]), [taken.labels[0] for taken in each])
    return take_labels(batch, keys=keys)


def _list_pairs(batch: Any) -> Any:
    """Make lists of the tuples that ``tuple(zip(*items))`` leaves of images and what is beside each.

    That is its label, a dictionary or the like; tuples of maps are several inputs.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], tuple):
        return batch
    images, others = map(list, batch) if isinstance(batch[1], tuple | list) else ([], [])
    if len(images) != len(others) or not all(isinstance(one, Tensor) and one.ndim > 0 for one in images):
        return batch
    most = 1 if is_list_of_images(images) else 0  # axes of what is beside, as boxes of images have
    maps = any(isinstance(one, Tensor | np.ndarray) and one.ndim > most for one in others)
    return batch if maps else [join_images(images), others]


def join_images(images: Any) -> Any:
    """Make a batch of a list of images; those (C, H, W) stay a list, as detectors take them.

    Example:
        >>> import torch
        >>> join_images([torch.zeros(2, 40)] * 3).shape, len(join_images([torch.zeros(3, 8, 8)] * 3))
        (torch.Size([3, 2, 40]), 3)
    """
    stacks = can_be_stacked(images) and not is_list_of_images(list(images))
    return torch.stack(list(images)) if stacks else images


def stack_items(items: Sequence[Any]) -> Any:
    """Make a batch of items, of which all but the images may be of several sizes, or of no kind for a batch.

    These stay a list with one for each, as the boxes of a detection data set.

    Example:
        >>> import torch
        >>> boxes = [{"boxes": [[0, 0, 4, 4]]}, {"boxes": []}]
        >>> stack_items([(torch.zeros(3, 8, 8), own) for own in boxes])[1] == boxes
        True
    """
    first = items[0]
    keys: Sequence[Any] = ()
    try:
        return default_collate(list(items))
    except (RuntimeError, TypeError, KeyError):
        if isinstance(first, Mapping) and all(one.keys() == first.keys() for one in items):
            keys = list(first)
        elif isinstance(first, tuple | list) and all(len(one) == len(first) for one in items):
            keys = range(len(first))
        if not keys:
            raise
    columns = {key: _stack_column([one[key] for one in items]) for key in keys}
    return columns if isinstance(first, Mapping) else list(columns.values())


def _stack_column(values: list[Any]) -> Any:
    """Make a batch of what items have in one place; a list of what makes none and is no image."""
    try:
        return default_collate(values)
    except (RuntimeError, TypeError, KeyError):
        images = (Image.Image, Tensor, np.ndarray)
        if any(isinstance(one, images) and getattr(one, "ndim", 3) > 2 for one in values):
            raise
        return values


def leaves_pictures(collate: Collate | None, item: Any) -> bool:
    """Whether a batch that is made of a picture has it as it was, and no map: it is a picture then."""
    if collate is None or collate is default_collate:
        return True
    try:
        leaves = list_leaves(collate([item]))
    except Exception:  # of the user's own function, which fails again where it is used
        return False
    maps = any(isinstance(leaf, Tensor) and leaf.ndim > 2 for leaf in leaves)
    return not maps and any(isinstance(leaf, Image.Image) for leaf in leaves)
