"""Batches as people nest them: tensors in tuples, lists and dictionaries, picked, joined and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral.errors import SpectralError


def _takes_apart(value: Any) -> bool:
    return False


class Names(list[Any]):
    """Names of the images of a batch, one for each, as loaders leave them."""


def map_leaves(
    value: Any, function: Callable[[Any], Any], whole: Callable[[Any], bool] = _takes_apart
) -> Any:
    """Replace whatever is no tuple, list or dictionary by what a function makes of it.

    Args:
        value: nested in any way.
        function: of a leaf.
        whole: says of a tuple, list or dictionary whether it is a leaf as well.

    Example:
        >>> map_leaves({"a": (1, [2])}, str)
        {'a': ('1', ['2'])}
    """
    if whole(value):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_leaves(item, function, whole) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_leaves(item, function, whole) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def mark_names(value: Any, count: int) -> Any:
    """Mark the lists of text that have an entry for each of so many images, in whatever a batch holds.

    Example:
        >>> pick(mark_names({"key": ["a", "b"], "x": torch.zeros(2, 3)}, 2), [1], 2)["key"]
        ['b']
    """

    def are_names(one: Any) -> bool:
        return isinstance(one, list) and len(one) == count and all(isinstance(x, str) for x in one)

    return map_leaves(value, lambda one: Names(one) if are_names(one) else one, whole=are_names)


def list_leaves(value: Any) -> list[Any]:
    """List whatever is no tuple, list or dictionary, in order."""
    found: list[Any] = []
    map_leaves(value, found.append)
    return found


def pick(value: Any, indices: Sequence[int], count: int) -> Any:
    """Return some of the images of a batch.

    Tensors with one entry per image give theirs; so does a list with one image (C, H, W) for each, or with
    one dictionary, as detectors take them. Whatever else there is belongs to all images alike.

    Args:
        value: a batch, nested in any way.
        indices: which images.
        count: how many there are.

    Example:
        >>> pick((torch.arange(3), {"scale": 2.0}), [2, 0], count=3)
        (tensor([2, 0]), {'scale': 2.0})
    """
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != count:
            return value
        run = list(range(indices[0], indices[0] + len(indices))) if len(indices) else []
        return value[indices[0] : indices[0] + len(indices)] if run == list(indices) else value[list(indices)]
    if has_one_each(value) and len(value) == count:
        return type(value)(value[i] for i in indices)
    if isinstance(value, Mapping):
        return {key: pick(item, indices, count) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [pick(item, indices, count) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def join(values: Sequence[Any], counts: Sequence[int]) -> Any:
    """Join batches into one: what `pick` takes apart.

    Args:
        values: batches of one form.
        counts: how many images each has.

    Raises:
        SpectralError: if images differ in size.

    Example:
        >>> join([{"x": torch.zeros(2, 3)}, {"x": torch.ones(1, 3)}], [2, 1])["x"].sum()
        tensor(3.)
    """
    first = values[0]
    if isinstance(first, Tensor):
        one_each = all(v.ndim > 0 and len(v) == n for v, n in zip(values, counts, strict=True))
        if not one_each:
            return first
        if len({tuple(v.shape[1:]) for v in values}) > 1:
            shapes = sorted({tuple(v.shape[1:]) for v in values})
            raise SpectralError(
                f"images of shapes {shapes[0]} and {shapes[-1]} can't form a batch; resize them"
            )
        return torch.cat(list(values))
    if has_one_each(first) and len(first) == counts[0]:
        return type(first)(item for value in values for item in value)
    if isinstance(first, Mapping):
        return {key: join([value[key] for value in values], counts) for key in first}
    if isinstance(first, (tuple, list)):
        items = [join([value[i] for value in values], counts) for i in range(len(first))]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def has_one_each(value: Any) -> bool:
    """Whether it is a list with an entry for each image: its name, itself (C, H, W), or a dictionary for it.

    Dictionaries that hold batches (B, C, H, W), or others than the first, are several inputs.

    Example:
        >>> has_one_each([{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(0, 4)}])
        True
        >>> has_one_each([{"image": torch.zeros(2, 3, 8, 8)}, {"mask": torch.zeros(2, 1, 8, 8)}])
        False
    """
    if not isinstance(value, list) or not value:
        return False
    if isinstance(value, Names) or is_list_of_images(value):
        return True
    if not all(isinstance(one, Mapping) and one.keys() == value[0].keys() for one in value):
        return False
    return all(x.ndim < 4 for x in list_leaves(value) if isinstance(x, Tensor))


def is_list_of_images(value: Any) -> bool:
    """Whether it is a list of images (C, H, W), one tensor each."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(x, Tensor) and x.ndim == 3 for x in value)
    )


def find_list_of_images(value: Any) -> list[Any] | None:
    """Return the first list among nested values that has one entry for each image, where maps are in it.

    Example:
        >>> len(find_list_of_images(([torch.zeros(3, 8, 8)] * 2, {"scale": 2.0})))
        2
    """
    if has_one_each(value):
        maps = any(isinstance(leaf, Tensor) and leaf.ndim == 3 for leaf in list_leaves(value))
        return value if maps else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for one in inner if (found := find_list_of_images(one)) is not None), None)
