"""Datasets and loaders of torch, and whatever else gives images one by one, as a set of images."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from spectral.data.bounds import as_tensor, check_values, count_items, keep_few
from spectral.data.collation import Collate, join_images, leaves_pictures, stack_items, take_from_batch
from spectral.data.decode import to_rgb
from spectral.data.imageset import ImageItem, ImageSet, find_repeated
from spectral.data.items import find_picture, show_picture
from spectral.data.labels import LABEL_KEYS, Taken, find_label_keys, join_labels, take_labels
from spectral.data.loading import Loading, group_positions, load_batches
from spectral.data.pictures import describe_picture
from spectral.data.structures import (
    find_list_of_images,
    join,
    list_leaves,
    map_leaves,
    mark_names,
    pick,
)
from spectral.errors import SpectralError, warn
from spectral.network import can_be_stacked

_SAMPLED = 16  # places along an axis, by which most images are told apart


class DatasetImages:
    """Items of a dataset, collated as its loader does, in the dataset's own form.

    Every item is read once to know its label and the digest of its values, then again when it is due.

    Args:
        dataset: has a length and gives an item for a number.
        indices: which items.
        collate: makes a batch of a list of items.
        owner: what tells what its labels count, by default the dataset.
    """

    prepared = True
    size: tuple[int, int] | None = (0, 0)  # as the dataset makes it

    loading = Loading(0)  # what a dataset holds open may not stand being taken along into other processes

    def __init__(
        self, dataset: Any, indices: Sequence[int], collate: Collate = default_collate, owner: Any = None
    ) -> None:
        self.dataset, self.positions, self._collate = dataset, list(indices), collate
        self.source = f"dataset:{type(dataset).__name__}"
        self.ids = self.clusters = [f"{i:04d}" for i in self.positions]
        owner = dataset if owner is None else owner
        self._label_keys = _find_label_keys(owner, self.source)
        described = [_describe_item(_get_item(dataset, i), self._label_keys) for i in self.positions]
        taken = [taken for taken, _, _ in described]
        joined = join_labels(taken, [1] * len(taken), self.source)
        self.labels, self._refused = _leave_out_missing(joined.labels, owner), joined.refused
        self.classes = joined.classes or find_classes(owner, self.labels, self._label_keys)
        self._keys = [whole if self._refused else without for _, without, whole in described]
        self.fingerprint = hashlib.sha256("".join(self._keys).encode()).hexdigest()[:16]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of items that are the same as an earlier one, each with that one's."""
        return find_repeated(self.ids, self._keys)

    def resized(self, size: tuple[int, int]) -> DatasetImages:
        """Return itself: what a dataset gives is taken as it is."""
        return self

    def with_loading(self, loading: Loading) -> DatasetImages:
        """Return the same items, read in another way; in worker processes only where that is asked for."""
        twin = copy.copy(self)
        twin.loading = loading
        return twin

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield (indices, batch without its labels)."""
        groups = group_positions(len(self), batch_size, indices)
        workers = self.loading.count_workers(sum(map(len, groups)), len(groups), 0)
        return load_batches(
            self._collate_items, groups, workers=workers, pinned=self.loading.pinned, source=self.source
        )

    def _collate_items(self, indices: list[int]) -> Any:
        items, rests = zip(*map(self._read, indices), strict=True)
        try:
            if self._collate is default_collate:
                return stack_items(items if self._refused else rests)
            batch = self._collate(list(items))
        except Exception as error:  # of the user's own function, perhaps
            raise SpectralError(
                f"the items of {self.source} can't form a batch "
                f"({next(iter(str(error).splitlines()), '')}); give each one picture, or tensors of one size"
            ) from error
        rest = batch if self._refused else take_from_batch(batch, self._label_keys).rest
        own, several = rests[0], isinstance(rest, tuple | list) and len(rest) == len(rests)
        alike = isinstance(own, Tensor) and several and can_be_stacked([own, *rest])
        return join_images(rest) if alike else rest

    def _read(self, index: int) -> tuple[Any, Any]:
        """Return an item, and what it is without its label."""
        item = _get_item(self.dataset, self.positions[index])
        taken, without, whole = _describe_item(item, self._label_keys)
        if (whole if self._refused else without) != self._keys[index]:
            raise SpectralError(
                f"item {self.positions[index]} of {self.source} isn't the same as when it was first read; "
                f"take random transforms out of the dataset, and load it again"
            )
        return item, taken.rest

    def __len__(self) -> int:
        return len(self.positions)


class BatchedImages:
    """Batches that can be had once and in one order, kept in memory.

    Args:
        batches: in any form.
        source: where they come from.
        dataset: whose they are, where it is known.

    Raises:
        SpectralError: if there are none.
    """

    prepared = True
    size: tuple[int, int] | None = (0, 0)  # as they come

    def __init__(self, batches: Iterable[Any], source: str, dataset: Any = None) -> None:
        self.source = source
        whole = list(map(as_tensors, batches))
        keys = _find_label_keys(dataset, source)
        taken = [take_from_batch(batch, keys) for batch in whole]
        self._counts = [count_images(part.rest) for part in taken]
        joined = join_labels(taken, self._counts, source)
        self.labels = _leave_out_missing(joined.labels, dataset)
        self.classes = joined.classes or find_classes(dataset, self.labels, keys)
        parts = whole if joined.refused else [part.rest for part in taken]
        self._parts = [mark_names(part, count) for part, count in zip(parts, self._counts, strict=True)]
        _require_alike(self._parts, source)
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(hash_values(part).encode())
        self.ids = self.clusters = [f"{i:04d}" for i in range(sum(self._counts))]
        self.fingerprint = digest.hexdigest()[:16]
        self._places = [(part, i) for part, count in enumerate(self._counts) for i in range(count)]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of images that are the same as an earlier one, each with that one's."""
        parts = zip(self._parts, self._counts, strict=True)
        return find_repeated(self.ids, [key for part, count in parts for key in key_each(part, count)])

    def resized(self, size: tuple[int, int]) -> BatchedImages:
        """Return itself: batches are taken as they are."""
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield (indices, batch without its labels)."""
        for part in group_positions(len(self), batch_size, indices):
            places = [self._places[i] for i in part]
            singles = [pick(self._parts[p], [i], self._counts[p]) for p, i in places]
            yield part, join(singles, [1] * len(singles))

    def __len__(self) -> int:
        return len(self.ids)


def _require_alike(parts: Sequence[Any], source: str) -> None:
    axes = [max(x.ndim for x in list_leaves(part) if isinstance(x, Tensor)) for part in parts]
    other = next((i for i, count in enumerate(axes) if count != axes[0]), None)
    if other is not None:
        raise SpectralError(
            f"{source}: batch {other} has {axes[other]} axes, batch 0 has {axes[0]}; give each as many, also "
            f"where one image is left"
        )


def read_dataset(
    dataset: Any,
    indices: Sequence[int] | None = None,
    collate: Collate | None = None,
    owner: Any = None,
) -> Any:
    """Read a dataset of torch, or anything with a length that gives an item for a number.

    Items that are PIL images, alone, with a label or in a dictionary, become an `ImageSet` of images in
    [0, 1]; others are passed on in their own form, without their labels.

    Args:
        dataset: has a length and gives an item for a number.
        indices: which items, by default all.
        collate: makes a batch of a list of items.
        owner: what tells what its labels count, by default the dataset.

    Raises:
        SpectralError: if it is empty, or its first item can't be read.
    """
    chosen = list(range(count_items(dataset)) if indices is None else indices)
    if not chosen:
        raise SpectralError(f"the dataset {type(dataset).__name__} is empty")
    item, picture = _look_at(dataset, chosen[0])
    if picture is not None and leaves_pictures(collate, item):
        source = f"dataset:{type(dataset).__name__}"
        owner = dataset if owner is None else owner
        keys = _find_label_keys(owner, source)
        described = [_describe_picture(dataset, i, keys) for i in chosen]
        joined = join_labels([taken for _, taken in described], [1] * len(described), source)
        labels = _leave_out_missing(joined.labels, owner)
        items = [replace(item, label=label) for (item, _), label in zip(described, labels, strict=True)]
        classes = joined.classes or find_classes(owner, labels, keys)
        return ImageSet(source, items, classes=classes, loading=Loading(0))
    return DatasetImages(dataset, chosen, collate or default_collate, owner)


def _get_item(dataset: Any, index: int) -> Any:
    """Return an item.

    Raises:
        SpectralError: if the dataset fails, saying where and how.
    """
    try:
        item = dataset[index]
        check_values(item)
        return item
    except SpectralError:
        raise
    except Exception as error:  # a dataset may raise anything
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        raise SpectralError(
            f"the dataset {type(dataset).__name__} gives no item for {index} ({why}); pass one that does"
        ) from error


def read_loader(loader: DataLoader[Any], bounded: bool = False) -> Any:
    """Read a loader of torch: its dataset in the dataset's order, in batches of our own size.

    The order and number of items are its sampler's where that doesn't go through all, each once. What has no
    length, or is batched by the dataset itself, is read through once and kept in memory; where ``bounded``
    only so much.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        source = f"loader:{type(loader.dataset).__name__}"
        return BatchedImages(keep_few(loader, bounded), source, loader.dataset)
    count = count_items(loader.dataset)
    if _goes_through_all(loader.batch_sampler, count):
        indices: list[Any] = list(range(count))
    else:
        drawn = [i for batch in keep_few(loader.batch_sampler, bounded) for i in batch]
        indices = list(dict.fromkeys(drawn))
        if len(indices) < len(drawn):
            warn(
                f"loader:{type(loader.dataset).__name__}: its sampler draws {len(indices)} different items "
                f"in {len(drawn)} draws; each counts once"
            )
    images = read_dataset(loader.dataset, indices, loader.collate_fn)
    return images.with_loading(Loading(loader.num_workers))


def _goes_through_all(batches: Any, count: int) -> bool:
    """Whether batches are of so many items, all of them, whatever their order."""
    sampler = batches.sampler if type(batches) is BatchSampler else None
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source) == count
    return isinstance(sampler, SequentialSampler) and len(sampler) == count


def read_iterable(batches: Iterable[Any], name: str | None = None, dataset: Any = None) -> BatchedImages:
    """Read an iterable of batches through once, and keep them in memory."""
    return BatchedImages(batches, name or type(batches).__name__, dataset)


def _leave_out_missing(labels: Sequence[int | None], dataset: Any) -> list[int | None]:
    """Return labels without those that the Hub writes for images that have none: −1."""
    hub = isinstance(getattr(dataset, "features", None), Mapping)
    return [None if hub and label is not None and label < 0 else label for label in labels]


def _find_label_keys(dataset: Any, source: str) -> tuple[str, ...]:
    """Return the keys of a data set's labels; those of the Hub tell what counts classes."""
    if type(dataset) is Subset:
        return _find_label_keys(dataset.dataset, source)
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return LABEL_KEYS
    named = [key for key, told in features.items() if isinstance(getattr(told, "names", None), list)]
    return find_label_keys(features, named, source)


def find_classes(
    dataset: Any, labels: Iterable[int | None], keys: Sequence[str] = LABEL_KEYS
) -> list[str] | None:
    """Return the names of the classes, where a dataset tells what its labels count.

    Those of the Hub tell it by their ``features``, torchvision's by ``classes``, unless a
    ``target_transform`` makes other numbers of them; a part of one has those of the whole.
    """
    names = _list_classes(dataset, keys)
    most = max((label for label in labels if label is not None), default=-1)
    return names if names and most < len(names) else None


def _list_classes(dataset: Any, keys: Sequence[str]) -> list[str] | None:
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        told = [features[key] for key in keys if features.get(key) is not None]
        counted = (one for one in told if getattr(one, "dtype", None) not in ("string", "large_string"))
        names = getattr(next(counted, None), "names", None)  # of what is read as labels, and of no other
        return [str(name) for name in names] if isinstance(names, list) else None
    if type(dataset) is Subset:
        return _list_classes(dataset.dataset, keys)
    if type(dataset) is ConcatDataset:
        first, *others = (_list_classes(part, keys) for part in dataset.datasets)
        return first if all(other == first for other in others) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple):
        return None
    words = [
        ", ".join(name) if isinstance(name, tuple) else name for name in names
    ]  # of ImageNet all of them
    return words if all(isinstance(word, str) for word in words) and len(set(words)) == len(words) else None


def _describe_picture(dataset: Any, index: int, keys: Sequence[str]) -> tuple[ImageItem, Taken]:
    item, picture = _open_item(dataset, index)
    described = describe_picture(f"{index:04d}", partial(_reopen, dataset, index), picture, None)
    return described, take_labels(show_picture(item, picture), single=True, keys=keys)


def _look_at(dataset: Any, index: int) -> tuple[Any, Image.Image | None]:
    """Return an item, and the picture in it if there is one."""
    item = _get_item(dataset, index)
    try:
        return item, find_picture(item)
    except SpectralError as error:
        raise SpectralError(f"item {index} of {type(dataset).__name__}: {error}") from error


def _open_item(dataset: Any, index: int) -> tuple[Any, Image.Image]:
    """Return an item, and the picture in it.

    Raises:
        SpectralError: if it has none, unlike the first.
    """
    item, picture = _look_at(dataset, index)
    if picture is None:
        raise SpectralError(f"item {index} of {type(dataset).__name__} has no image, unlike the first one")
    return item, picture


def _reopen(dataset: Any, index: int) -> Image.Image:
    return to_rgb(_open_item(dataset, index)[1])


def _describe_item(item: Any, keys: Sequence[str]) -> tuple[Taken, str, str]:
    """Return what was taken of an item, and digests of its values without the label and with it."""
    taken = take_labels(item, single=True, keys=keys)
    without = hash_values(taken.rest)
    return taken, without, hash_values((without, taken.labels)) if taken.labels else without


def hash_values(value: Any) -> str:
    """Return a digest of the shapes, types and values of whatever a batch holds."""
    digest = hashlib.sha256()
    for leaf in list_leaves(value):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous()
            digest.update(repr((tuple(flat.shape), flat.dtype)).encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            digest.update(
                leaf.tobytes() if isinstance(leaf, np.ndarray | Image.Image) else repr(leaf).encode()
            )
    return digest.hexdigest()[:32]


def key_each(batch: Any, count: int) -> list[str]:
    """Return a key of each image of a batch, with what belongs to it: one for those that are the same.

    Few samples tell most images apart; of the others all values are read.

    Example:
        >>> len(set(key_each((torch.tensor([[1.0], [2.0], [1.0]]), "a caption of all"), 3)))
        2
    """
    keys = [hash_values(map_leaves(pick(batch, [i], count), _sample)) for i in range(count)]
    shared = Counter(keys)
    return [key if shared[key] == 1 else hash_values(pick(batch, [i], count)) for i, key in enumerate(keys)]


def _sample(leaf: Any) -> Any:
    """Return a tensor's values at some places along each axis."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf[tuple(slice(None, None, max(1, n // _SAMPLED)) for n in leaf.shape)]


def count_images(batch: Any) -> int:
    """How many images a batch has: the entries of a list of them, or of its first tensor of most axes."""
    images = find_list_of_images(batch)
    if images is not None:
        return len(images)
    tensors = [leaf for leaf in list_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 1]
    if not tensors:
        what = f"one of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise SpectralError(f"expected tensors of two axes or more, the first that of the images, got {what}")
    return len(max(tensors, key=lambda x: x.ndim))


def as_tensors(batch: Any) -> Any:
    """Turn arrays among a batch into tensors, and those of text into lists."""
    return map_leaves(batch, _read_leaf)


def _read_leaf(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):
        return leaf
    return leaf.tolist() if leaf.dtype.kind in "US" else as_tensor(leaf)
