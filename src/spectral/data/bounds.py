"""What a function or a file of the user's own may give: inputs that are there, and not without end."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from sys import getsizeof
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spectral.errors import SpectralError

MOST_UNFOLDED = 2**28
"""Bytes that values may have beyond 16 times those which they are stored in: arrays of zeros and the like."""
MOST_ITEMS = 2**26
_MOST_KEPT, _OVERHEAD = 2**29, 2**12  # bytes of what comes one by one, and of each besides its values
_DEEPEST, _MOST_VALUES = 64, 2**21  # of what is nested


def check_values(value: Any) -> None:
    """Make sure that what is nested in tuples, lists and dictionaries can be gone through, and read.

    Raises:
        SpectralError: if it is in itself, too deep or too much, or a tensor in it has no values of its own
            or far more of them than memory.

    Example:
        >>> check_values({"x": torch.zeros(2, 3), "y": [np.ones(4)]})
        >>> check_values(torch.zeros(1).expand(10**12))
        Traceback (most recent call last):
        spectral.errors.SpectralError: a tensor of 3814697 MiB stands for 4 bytes; give one with values of ...
    """
    ways, seen = [iter([value])], 0
    while ways:
        for item in ways[-1]:
            seen += 1
            if seen > _MOST_VALUES:
                raise SpectralError(
                    f"more than {_MOST_VALUES} values are nested in it; give fewer, or arrays"
                )
            inner = item.values() if isinstance(item, Mapping) else item
            if isinstance(item, Mapping | list | tuple):
                ways.append(iter(inner))
                break
            _check_leaf(item)
        else:
            ways.pop()
        if len(ways) > _DEEPEST:
            raise SpectralError(f"it is nested more than {_DEEPEST} deep, or in itself; give it flat")


def count_items(items: Any) -> int:
    """Return the length of a set of items.

    Raises:
        SpectralError: if it has none, or one that nobody can go through.
    """
    try:
        count = len(items)
    except Exception as error:  # of the user's own
        raise SpectralError(
            f"the length of {type(items).__name__} can't be read ({type(error).__name__}: {error}); give a "
            f"set with one"
        ) from error
    if count > MOST_ITEMS:
        raise SpectralError(f"{type(items).__name__} has {count} items, more than {MOST_ITEMS}; give a part")
    return count


def keep_few(items: Iterable[Any], bounded: bool) -> Iterator[Any]:
    """Pass on what comes one by one and is kept in memory, as long as that isn't too much.

    Args:
        items: in any form.
        bounded: whether there is a limit: whoever passes their own objects knows how many there are.

    Raises:
        SpectralError: if there are more.
    """
    size = 0
    for item in items:
        check_values(item)
        size += _OVERHEAD + _measure(item)
        if bounded and size > _MOST_KEPT:
            raise SpectralError(
                f"more than {_MOST_KEPT / 2**20:.0f} MiB come one by one, without a length; give a dataset "
                f"that has one, or an array"
            )
        yield item


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Make a tensor of an array of numbers, whatever their order of bytes and their strides.

    Raises:
        SpectralError: if it is of none.

    Example:
        >>> as_tensor(np.array([1, 2], ">f4")).tolist()
        [1.0, 2.0]
    """
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        with warnings.catch_warnings():  # of a file in memory that can't be written: nobody does
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(
                np.ascontiguousarray(native) if min(native.strides, default=0) < 0 else native
            )
    except (TypeError, ValueError) as error:
        raise SpectralError(
            f"an array of {array.dtype} isn't of numbers that torch has; convert it with .astype(np.float32)"
        ) from error


def _check_leaf(leaf: Any) -> None:
    if isinstance(leaf, np.ndarray):
        if isinstance(leaf, np.ma.MaskedArray) and np.ma.is_masked(leaf):
            raise SpectralError("an array has masked values; fill them (.filled()) or leave them out")
        own = leaf
        while isinstance(own.base, np.ndarray):
            own = own.base
        _refuse_unfolding("an array", leaf.nbytes, own.nbytes)
    elif isinstance(leaf, Tensor):
        kind = str(leaf.layout).rpartition(".")[2]
        kind = "nested" if leaf.is_nested else "meta" if leaf.is_meta else kind
        kind = "quantised" if leaf.is_quantized else kind
        if kind != "strided":
            raise SpectralError(
                f"a tensor is {kind}; give a dense one, with floating-point values of its own"
            )
        _refuse_unfolding("a tensor", leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())


def _refuse_unfolding(what: str, unfolded: int, stored: int) -> None:
    if unfolded > MOST_UNFOLDED + 16 * stored:
        raise SpectralError(
            f"{what} of {unfolded / 2**20:.0f} MiB stands for {stored} bytes; give one with values of its own"
        )


def _measure(value: Any) -> int:
    """Return the bytes of what was checked."""
    if isinstance(value, Mapping | list | tuple):
        return sum(map(_measure, value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return int(getattr(value, "nbytes", 0)) if isinstance(value, Tensor | np.ndarray) else getsizeof(value)
