"""Whether labels count a network's classes: by name, never because the numbers happen to fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from spectral.errors import name_few

SYNSET = re.compile(r"n\d{8}(?!\d)")  # an identifier of WordNet, as ImageNet's folders are called
ALIKE = 0.95  # share of an ordered list of names that must be ImageNet's own for it to be that list
MOST_CLASSES = 100_000  # of networks that don't say how many they have
ENOUGH = 0.5  # share of the images' classes that the network must have for any label to count
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
BACKGROUND = "background"
SAY_SO = "images.with_classes(None), or dataset.classes = None, says that they are its own numbers"


class Labelled(Protocol):
    """A set of images of which some may have labels."""

    @property
    def labels(self) -> Sequence[int | None]:
        """Class of each image where it is known."""


@dataclass(frozen=True)
class Matching:
    """How one list of classes is numbered in another.

    Attributes:
        index: number in the first list → number in the second, of the classes that both have.
        reason: why labels don't count the other's classes (``index`` is empty), or which of them don't.
    """

    index: Mapping[int, int]
    reason: str = ""

    def renumber(self, labels: Sequence[int | None]) -> list[int | None]:
        """Return labels in the other numbering; None where the other has no such class."""
        return [None if label is None else self.index.get(label) for label in labels]


def match_labels(model: Any, images: Labelled, width: int | None = None) -> Matching:
    """Match the labels of a set of images to a network's classes: the one rule of this project.

    Names decide, in whatever order they are. Names of one ImageNet class are alike: WordNet's identifiers
    (``n01440764``), timm's and torchvision's names; a network of ImageNet's number of classes that doesn't
    name them has ImageNet's order, for images whose classes are such identifiers. Labels without names are
    the network's own numbers, because somebody has said so. Labels with names mean nothing to another network
    that has none, unless each name is the number of its class, as of folders 0 … 9.

    Args:
        model: a network, or its ``spectral_info``: what its classes are called and how many there are.
        images: ``labels``, and ``classes`` with their names where they have some.
        width: how many class scores the network gives, where that is known.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> net = Some(spectral_info=Some(classes=("cat", "dog", "frog"), num_classes=3))
        >>> match_labels(net, Some(labels=[0, 1], classes=["dog", "cat"])).index
        {0: 1, 1: 0}
        >>> match_labels(net, Some(labels=[0], classes=["tabby"])).reason
        "the network has 0 of the labels' 1 classes (not tabby)"
    """
    known = {label for label in images.labels if label is not None}
    if not known:
        return Matching({}, "the images have no labels")
    names = getattr(images, "classes", None)
    count, told = _count_classes(model), find_classes(model)
    numbered = names is not None and told is None and _are_numbers(names) and find_renumbered(names) is None
    if names is not None and not numbered:
        return match_names(names, told, count)
    count = min((n for n in (count, width) if n is not None), default=None)
    above = sorted(label for label in known if label < 0 or (count is not None and label >= count))
    if above:
        own = "" if count is None else f"{count} "
        return Matching({}, f"label {above[0]} is none of the network's {own}classes")
    return Matching({label: label for label in sorted(known)})


def match_names(names: Sequence[str], others: Sequence[str] | None, count: int | None = None) -> Matching:
    """Match one list of class names to another.

    Args:
        names: of the labels.
        others: of the network, None where it doesn't name its classes.
        count: how many classes the network has, if that is known.

    Example:
        >>> match_names(["ship", "Cat"], ["cat", "dog", "ship"]).index
        {0: 2, 1: 0}
    """
    own = _canonical(names)
    if others is None and count is not None and all(SYNSET.fullmatch(name) for name in own):
        others = list_imagenet(count)
    if others is None:
        return Matching({}, f"the network doesn't name its classes, and the labels have names; {SAY_SO}")
    places = _list_places(others)
    index = {place: found[0] for place, name in enumerate(own) if len(found := places.get(name, [])) == 1}
    missing = [name for place, name in enumerate(names) if place not in index]
    if not missing:
        return Matching(index)
    reason = f"the network has {len(index)} of the labels' {len(own)} classes (not {name_few(missing)})"
    return Matching(index if len(index) >= ENOUGH * len(own) else {}, reason)


def _are_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(re.fullmatch(r"[0-9]{1,9}", str(name)) for name in names)


def find_renumbered(names: Sequence[str]) -> int | None:
    """Return the place of the first name that is another's number; None where there is none.

    Example:
        >>> find_renumbered(["0", "1", "10", "2"]), find_renumbered(["00", "01"]), find_renumbered(["cat"])
        (2, None, None)
    """
    if not _are_numbers(names):
        return None
    return next((place for place, name in enumerate(names) if int(name) != place), None)


def match_models(a: Any, b: Any, widths: tuple[int | None, int | None] = (None, None)) -> Matching:
    """Match the classes of two networks, for questions such as whether both give the same one.

    By name; where neither names its classes, by number, if both have as many.

    Args:
        a: a network.
        b: another one.
        widths: how many class scores each gives, which counts where a network doesn't say how many classes
            it has; None where that isn't known.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> match_models(Some(classes=["cat", "dog"]), Some(classes=["dog", "cat"])).index
        {0: 1, 1: 0}
        >>> match_models(Some(num_classes=10), Some(num_classes=1000)).reason
        'their classes differ in number'
    """
    own = _count_classes(a), _count_classes(b)
    counts = [width if count is None else count for count, width in zip(own, widths, strict=True)]
    if counts[0] != counts[1]:
        known = None not in counts
        reason = "their classes differ in number" if known else "how many classes one of them has isn't known"
        return Matching({}, reason)
    names = [find_classes(model) or list_imagenet(counts[0] or 0) for model in (a, b)]
    if names[0] is None and names[1] is None:
        return Matching({label: label for label in range(counts[0] or MOST_CLASSES)})
    if names[0] is None or names[1] is None:
        return Matching({}, "only one of them names its classes")
    found = match_names(names[0], names[1])
    return Matching({}, f"their classes differ: {found.reason}") if found.reason else found


def find_classes(model: Any) -> tuple[str, ...] | None:
    """Return the names of a network's classes: of its ``spectral_info``, or what it says itself.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> find_classes(Some(config=Some(id2label={0: "cat", 1: "dog"})))
        ('cat', 'dog')
    """
    for owner in (getattr(model, "spectral_info", None), model):
        named = getattr(owner, "classes", None)
        if isinstance(named, (list, tuple)) and named and all(isinstance(name, str) for name in named):
            return tuple(named)
    told = getattr(getattr(model, "config", None), "id2label", None)  # Hugging Face
    if isinstance(told, Mapping) and told and set(told) == set(range(len(told))):
        names = tuple(str(told[place]) for place in range(len(told)))
        return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
    cfg = getattr(model, "pretrained_cfg", None)  # timm
    listed = cfg.get("label_names") if isinstance(cfg, Mapping) else None
    return tuple(listed) if listed else None


@lru_cache
def list_imagenet(count: int = 1000) -> tuple[str, ...] | None:
    """Return the identifiers of ImageNet's classes in timm's order; None if no ImageNet has so many.

    Example:
        >>> list_imagenet()[0], list_imagenet(10)
        ('n01440764', None)
    """
    found = _read_imagenet(count)
    return None if found is None else found[0]


@lru_cache
def _read_imagenet(count: int) -> tuple[tuple[str, ...], tuple[frozenset[str], ...]] | None:
    """Identifiers, and the names that each class goes by."""
    if count < 1000:  # no ImageNet has so few, and timm takes seconds to load
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info: Any = ImageNetInfo(subset)
    told = [
        frozenset({_plain(text), *map(_plain, text.split(","))})
        for text in info.label_descriptions(detailed=False)
    ]
    return tuple(info.label_names()), tuple(told)


def _canonical(names: Sequence[str]) -> list[str]:
    """Names in one spelling; those of ImageNet's classes, however written, are WordNet's identifiers."""
    found = [SYNSET.match(str(name)) for name in names]
    if names and all(found):
        return [match.group() for match in found if match]
    plain = [_plain(str(name)) for name in names]
    imagenet = _read_imagenet(len(names))
    if imagenet is not None:
        same = [name in told for name, told in zip(plain, imagenet[1], strict=True)]
        if sum(same) >= ALIKE * len(same):
            return list(imagenet[0])
    return plain


def _list_places(names: Sequence[str]) -> dict[str, list[int]]:
    """Return where each name stands in a list, and what else a class of ImageNet's goes by.

    Names of some of its classes alone aren't known to be ImageNet's, so that they are left as they are.
    """
    places: dict[str, list[int]] = {}
    if len(names) > 1 and _plain(str(names[0])) == BACKGROUND:  # in front of ImageNet's, as in TensorFlow
        behind = _list_places(names[1:])
        return {BACKGROUND: [0], **{name: [place + 1 for place in own] for name, own in behind.items()}}
    canonical, imagenet = _canonical(names), _read_imagenet(len(names))
    told = (
        imagenet[1] if imagenet is not None and canonical == list(imagenet[0]) else [frozenset()] * len(names)
    )
    for place, (name, one, others) in enumerate(zip(names, canonical, told, strict=True)):
        for word in {one, _plain(str(name)), *others}:
            places.setdefault(word, []).append(place)
    return places


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _count_classes(model: Any) -> int | None:
    """How many classes a network has, where it says so, by a number or by their names."""
    count = count_declared_classes(model)
    if count:
        return count
    names = find_classes(model)
    return len(names) if names else None


def count_declared_classes(model: Any) -> int | None:
    """Return the number of classes that a network says it has, 0 for none; None where it doesn't say.

    Example:
        >>> from types import SimpleNamespace as Some
        >>> count_declared_classes(Some(n_classes=10)), count_declared_classes(Some(classes=["cat"]))
        (10, None)
    """
    info = getattr(model, "spectral_info", None)
    for holder, name in ((info, "num_classes"), (model, "num_classes"), (model, "n_classes")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
