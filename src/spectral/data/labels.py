"""Labels among what comes with images: a number or a name for each, in whichever form people write it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spectral.arguments.values import is_integer
from spectral.data.structures import is_list_of_images, list_leaves
from spectral.errors import warn

LABEL_KEYS = ("label", "labels", "target", "targets", "y", "cls", "class", "fine_label")
SECOND = "the second of each pair"
MANY = "what is beside each image"
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(\.0*)?\s*")
_MOST_WHOLE = 2.0**53  # above, a float doesn't tell a whole number from the next
_NUMBERS = (float, np.generic, np.ndarray, Tensor)
_SHOWN = 30  # characters of what is no label
_LONGEST = 200  # characters of a class's name

Labels = list[int | None]
Named = list[int | str | None]
"""Numbers, or the names of classes."""


def digest_labels(labels: Sequence[int | None], classes: Sequence[str] | None = None) -> str | None:
    """Return what tells labels from others; None where there are none.

    Example:
        >>> digest_labels([0, 1]) == digest_labels([0, 1], ["cat", "dog"]), digest_labels([None])
        (False, None)
    """
    if all(label is None for label in labels):
        return None
    named = None if classes is None else list(classes)
    return hashlib.sha256(repr((list(labels), named)).encode()).hexdigest()[:16]


class Taken(NamedTuple):
    """What is left of a batch or an item without its labels.

    Attributes:
        rest: all of it, where none are taken.
        labels: of each image, a number or a name; empty where none are taken.
        where: the key that has them, or what may be them; empty of what may as well be another input.
        reason: why what may be labels isn't taken; empty where nothing may be.
    """

    rest: Any
    labels: Sequence[int | str | None] = ()
    where: str = ""
    reason: str = ""


def find_label_keys(columns: Iterable[str], named: Sequence[str], source: str) -> tuple[str, ...]:
    """Return the keys under which a data set's labels may be: the usual ones, else the only one with classes.

    Args:
        columns: of the data set.
        named: those of which it names the classes that they count; of several a warning says that none is
            taken, unless one has a usual name.
        source: what the set is called.

    Example:
        >>> find_label_keys(["image", "breed"], ["breed"], "dogs")
        ('breed',)
    """
    if not named or any(key in LABEL_KEYS for key in columns):
        return LABEL_KEYS
    if len(named) > 1:
        warn(
            f"{source}: {', '.join(map(repr, named))} count classes, and which of them are the labels isn't "
            f"known; give the one that is the name 'label'"
        )
        return LABEL_KEYS
    return (named[0],)


def take_labels(batch: Any, single: bool = False, keys: Sequence[str] = LABEL_KEYS) -> Taken:
    """Take the labels out of a batch, or out of an item, which is one image.

    They are under a key such as ``label`` of a dictionary, the first that has numbers, else that has names;
    or the last of (images, labels). Of a pair numbers of a whole type alone are labels, as anything else may
    be another input; beside a picture, which no network is called with, and under a key any form that
    `read_labels` reads. Of more than two the only number beside a picture is its label; of several it isn't
    known which is. Beside a tensor it is if there are but names otherwise, as in (image, label, path) or
    (key, image, label). An item's label that is None is missing, and goes likewise.

    Args:
        batch: in any form.
        single: whether it is an item.
        keys: under which they may be, see `find_label_keys`.

    Example:
        >>> take_labels((torch.zeros(2, 3, 8, 8), torch.tensor([4, 1]))).labels
        [4, 1]
        >>> take_labels((torch.zeros(3, 8, 8), 4, "cat.png"), single=True).labels
        [4]
        >>> take_labels({"image": torch.zeros(3, 8, 8), "label": 7.0}, single=True).labels
        [7]
        >>> take_labels({"image": torch.zeros(3, 8, 8), "label": 0.5}, single=True).reason
        '0.5 is among them'
    """
    if isinstance(batch, Mapping):
        batch = {k: v for k, v in batch.items() if not (single and v is None and k in keys)}
        named, refused = None, Taken(batch)
        for key in keys:
            rest = {k: v for k, v in batch.items() if k != key}
            labels, reason = read_labels(batch.get(key), _count_images(rest, single), single)
            if labels and not _list_names(labels):
                return Taken(rest, labels, repr(key))
            if labels:
                named = named or Taken(rest, labels, repr(key))
            if reason and not refused.reason:
                refused = Taken(batch, (), repr(key), reason)
        return named or refused
    if not isinstance(batch, tuple | list) or not batch:
        return Taken(batch)
    place = _find_image(batch)
    if single and _is_alone(batch, place):
        return Taken(batch[place])
    if len(batch) < 2:
        return Taken(batch)
    image, beside = batch[place], [*batch[:place], *batch[place + 1 :]]
    if isinstance(image, Image.Image) and len(batch) > 2:
        return _take_from_many(batch, image, beside)
    others = [one for one in beside if not _are_names(one)]
    if len(others) == 1:
        pictured = isinstance(image, Image.Image) and isinstance(others[0], _NUMBERS)
        labels, reason = [], "some of them are of no whole type"
        if pictured or _is_whole(others[0]):
            labels, reason = read_labels(others[0], _count_images(image, single), single)
        return Taken(image, labels) if labels else Taken(batch, (), SECOND if pictured else "", reason)
    return Taken(batch)


def _is_alone(item: Sequence[Any], place: int) -> bool:
    """Whether an item is an image by itself, or with None in the place of its label, and names at most."""
    beside = [*item[:place], *item[place + 1 :]]
    given = [one for one in beside if one is not None]
    return len(item) == 1 or (len(given) < len(beside) and all(map(_are_names, given)))


def _find_image(batch: Sequence[Any]) -> int:
    """Return the place of the only picture; else of the first that is more than names, as a path or a key."""
    pictures = [place for place, one in enumerate(batch) if isinstance(one, Image.Image)]
    if len(pictures) == 1:
        return pictures[0]
    return next((place for place, one in enumerate(batch) if not (one is None or _are_names(one))), 0)


def _take_from_many(item: Sequence[Any], image: Image.Image, beside: Sequence[Any]) -> Taken:
    """Take the label out of a picture with more than one thing beside it, as (image, label, path)."""
    numbers = [one for one in beside if is_integer(one) or isinstance(one, _NUMBERS)]
    if len(numbers) > 1:
        reason = f"it is {len(numbers)} numbers, and which of them is the label isn't known"
        return Taken(item, (), MANY, reason)
    labels, reason = read_labels(numbers[0], 1, single=True) if numbers else ([], "")
    return Taken(image, labels) if labels else Taken(item, (), MANY, reason)


def read_labels(value: Any, count: int | None = None, single: bool = False) -> tuple[Named, str]:
    """Read labels: whole numbers, as such, as floats or as text, (N,) or (N, 1), or one-hot (N, K); or names.

    Args:
        value: an array, a tensor, a list or a number.
        count: of the images; None if it isn't known.
        single: whether they are those of one image, which may then be one-hot (K,).

    Returns:
        Labels, NaN and blanks being none, and why there are none. Of more or fewer (N,) than images all are
        returned. Maps and the like, of more axes, are none, without a reason.

    Example:
        >>> read_labels(np.array([[2.0], [np.nan]]), 2), read_labels([0, 0, 1], 1, single=True)
        (([2, None], ''), ([2], ''))
        >>> read_labels(["cat", "dog"], 2), read_labels(["cat", 3], 2)
        ((['cat', 'dog'], ''), ([], "'cat' is among them"))
    """
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return [], ""
    if isinstance(value, Mapping):
        return [], f"a {type(value).__name__} is there instead"
    try:
        array = _as_array(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # lists of lists of several lengths
        return [], "numbers of them differ between images"
    shape = [n for n in array.shape if n != 1]
    if len(shape) > 2 or array.size == 0:
        return [], ""
    if len(shape) < 2 and not (single and shape) and not (array.ndim == 2 and array.shape[0] == count == 1):
        return _read_numbers(array.reshape(-1))
    if array.size == 1:
        return _read_numbers(array.reshape(-1))
    rows = array.reshape(1, -1) if single else array
    if rows.ndim == 2 and len(rows) == (count or len(rows)) and _is_one_hot(rows):
        return [int(i) for i in rows.argmax(1)], ""
    return [], f"there are {rows.shape[-1]} of them for each image, and not a single 1 among zeros"


class Joined(NamedTuple):
    """The labels of all images.

    Attributes:
        labels: a number or None for each.
        classes: what the numbers count, where labels are names: these, in order, as of folders.
        refused: whether some that may be labels aren't taken.
    """

    labels: Labels
    classes: list[str] | None = None
    refused: bool = False


def join_labels(parts: Sequence[Taken], counts: Sequence[int], source: str) -> Joined:
    """Return the labels of all images of several batches or items; of none, where some aren't labels.

    What isn't taken is said in a warning: numbers of which some are whole count no classes.

    Args:
        parts: what was taken of each.
        counts: how many images each has.
        source: what the set is called.
    """
    none = Joined([None] * sum(counts), refused=True)
    labelled = any(part.labels for part in parts)  # else what is of no whole type may be an input
    for part, count in zip(parts, counts, strict=True):
        reason = part.reason if labelled or part.where else ""
        if part.labels and len(part.labels) != count:
            reason = f"there are {len(part.labels)} of {count} images"
        if reason:
            refuse_labels(source, part.where or SECOND, reason)
            return none
    every = [part.labels or [None] * count for part, count in zip(parts, counts, strict=True)]
    joined = number_names([label for labels in every for label in labels])
    if isinstance(joined, str):
        refuse_labels(source, next((part.where for part in parts if part.labels), "") or SECOND, joined)
        return none
    return joined


def number_names(labels: Sequence[int | str | None]) -> Joined | str:
    """Number the classes of which labels are names; return the reason where some are names and some numbers.

    Example:
        >>> number_names(["dog", None, "cat", "dog"])
        Joined(labels=[1, None, 0, 1], classes=['cat', 'dog'], refused=False)
        >>> number_names([4, "cat"])
        "'cat' is among them"
    """
    names = _list_names(labels)
    numbers: Labels = [label for label in labels if not isinstance(label, str)]
    if not names:
        return Joined(numbers)
    if any(number is not None for number in numbers):
        return f"{names[0]!r} is among them"
    places = {name: place for place, name in enumerate(names)}
    return Joined([places[label] if isinstance(label, str) else None for label in labels], names)


def refuse_labels(source: str, where: str, reason: str) -> None:
    """Warn that something isn't taken as labels."""
    warn(
        f"{source}: {where} isn't taken as labels, since {reason}; give each image the number of its class, "
        f"or each its name"
    )


def _list_names(labels: Sequence[int | str | None]) -> list[str]:
    return sorted({label for label in labels if isinstance(label, str)})


def _are_names(value: Any) -> bool:
    """Whether it is a path or the like, or a list of these, which no network is called with."""
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_are_names, value))
    return isinstance(value, str | bytes | os.PathLike)


def _is_whole(value: Any) -> bool:
    """Whether all in it are of a whole type."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_integer, value))
    return is_integer(value)


def _count_images(rest: Any, single: bool) -> int | None:
    """Return how many images a batch has, where a tensor or an array in it tells."""
    if single:
        return 1
    if is_list_of_images(rest):
        return len(rest)
    maps = [leaf for leaf in list_leaves(rest) if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 1]
    return len(max(maps, key=lambda x: x.ndim)) if maps else None


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, Tensor):
        own = value.detach().cpu()
        return (own.double() if own.is_floating_point() else own).numpy()
    return np.asarray(value)


def _is_one_hot(rows: np.ndarray[Any, Any]) -> bool:
    if rows.dtype.kind not in "biuf" or rows.shape[1] < 2:
        return False
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all())


def _read_numbers(flat: np.ndarray[Any, Any]) -> tuple[Named, str]:
    """Read one number, or one name, for each image."""
    labels: Named = []
    for one in flat.tolist():
        label, reason = _read_one(one)
        if reason:
            return [], reason
        labels.append(label)
    joined = number_names(labels)
    if isinstance(joined, str):
        return [], joined
    return (labels, "") if any(label is not None for label in labels) else ([], "no number is among them")


def _read_one(value: Any) -> tuple[int | str | None, str]:
    """Return a label, None for an image that has none; and a reason where it can be no label."""
    if value is None or value != value:  # NaN, as tables write what is missing
        return None, ""
    if is_integer(value):
        return int(value), ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _MOST_WHOLE:
        return int(value), ""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        name = value.strip()
        if found := _WHOLE.fullmatch(value):
            return int(found[1]), ""
        if len(name) <= _LONGEST and name.isprintable():
            return name or None, ""
    shown = repr(value)
    return None, f"{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'} is among them"
