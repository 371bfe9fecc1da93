"""A list of images that are decoded only when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, overload

import torch
from PIL import Image
from torch.utils.data import default_collate

from spectral.arguments.values import as_integer
from spectral.classes import find_renumbered
from spectral.data.decode import describe_failure, fit_image, to_tensor
from spectral.data.kept import KeptImages
from spectral.data.loading import Loading, group_positions, load_batches
from spectral.errors import SpectralError, SpectralWarning, warn
from spectral.synthetic import Size, as_size, generator

T = TypeVar("T")
Batches = Generator[tuple[list[int], torch.Tensor], None, None]


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image: its name, its label, how to get it and what its pixels depend on."""

    id: str
    open: Callable[[], Image.Image]
    """Reads the image at its own size, as mode "RGB" or as "F" in [0, 1]."""
    key: str
    """Changes whenever the pixels do; for a file a digest of its bytes."""
    size: tuple[int, int]
    """(height, width) of what ``open`` returns, in pixels."""
    label: int | None = None
    photograph: str | None = None
    """Of a crop, what it was cut from: crops of one photograph aren't independent."""


@dataclass(frozen=True, repr=False)
class ImageSet:
    """A sequence of images, read when indexed: memory does not grow with their number.

    ``images[i]`` is a float32 tensor (3, H, W) in [0, 1]; ``images[a:b]`` is a smaller ImageSet.

    Args:
        source: where the images come from, such as "samples" or "folder:kittens"; never an absolute path.
        items: the images.
        size: (height, width) that every image is brought to (shorter side resized, antialiased, then the
            centre cropped), or None for each image's own.
        classes: names of the classes that labels count, if they have names.
        skipped: (name, reason) of files that were to be images and could not be read.
        resample: the filter that resizes.
        left_out: how many files beside them, by their endings, are of kinds that aren't read.
        loading: how batches are decoded; no part of what the images are.
        kept: images that were decoded before, see `keep_decoded`.

    Example:
        >>> from spectral.data import load_images
        >>> images = load_images("synthetic", size=16, limit=5)
        >>> len(images), images[0].shape, images.ids[0]
        (5, torch.Size([3, 16, 16]), 'synthetic/0000')
        >>> [indices for indices, batch in images.batches(2)]
        [[0, 1], [2, 3], [4]]
    """

    source: str
    items: Sequence[ImageItem]
    size: tuple[int, int] | None = None
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    resample: Image.Resampling = Image.Resampling.BICUBIC
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    loading: Loading = dataclasses.field(default=Loading(), compare=False)
    kept: KeptImages | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"ImageSet({self.source!r}, {len(self)} images, size={self.size})"

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> ImageSet: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | ImageSet:
        if isinstance(index, slice):
            return dataclasses.replace(self, items=self.items[index])
        item = self.items[index]
        try:
            image = item.open()
        except (OSError, SyntaxError, ValueError) as error:
            raise self._lose(item.id, error) from error
        return self._fit(image)

    def _lose(self, name: str, error: Exception) -> SpectralError:
        """Return the error that an image can't be read which could be."""
        reason = describe_failure(error)
        return SpectralError(
            f"image {name} of {self.source} can no longer be read ({reason}); load the images again"
        )

    def _fit(self, image: Image.Image) -> torch.Tensor:
        return to_tensor(image if self.size is None else fit_image(image, self.size, self.resample))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def ids(self) -> list[str]:
        """Name of every image, unique in the set and the same on every machine."""
        return [item.id for item in self.items]

    def with_classes(self, classes: Sequence[str] | None) -> ImageSet:
        """Say what the labels count.

        Args:
            classes: names in the order of the labels' numbers; None says that the numbers are those of the
                classes of whatever network is tested, which may then go by without names. Folders of classes
                count in the order of their names, so that "10" is before "2": a warning says so.

        Raises:
            SpectralError: if there are fewer names than the labels need.

        Example:
            >>> from spectral.data import load_images
            >>> load_images("synthetic", size=16, limit=5).with_classes(["leaf"]).classes
            ['leaf']
        """
        highest = max((label for label in self.labels if label is not None), default=-1)
        if classes is not None and len(classes) <= highest:
            raise SpectralError(f"with_classes: label {highest} needs more than {len(classes)} names")
        own = self.classes or []
        if classes is None and (moved := find_renumbered(own)) is not None:
            warn(
                f"with_classes(None): {own[moved]!r} is class {moved}, since classes count in the order of "
                f"their names; where these are the network's own numbers, keep them, and set "
                f"model.classes = [str(i) for i in range(n)] for its n classes"
            )
        return dataclasses.replace(self, classes=None if classes is None else list(classes))

    @cached_property
    def labels(self) -> list[int | None]:
        """Class index of every image; None where it is unknown."""
        return [item.label for item in self.items]

    @property
    def has_labels(self) -> bool:
        """Whether the label of at least one image is known."""
        return any(item.label is not None for item in self.items)

    @cached_property
    def clusters(self) -> list[str]:
        """The photograph that each image was cut from; its own id where it was cut from nothing.

        Images of one cluster aren't independent: it is the unit of intervals and tests.
        """
        return [item.photograph or item.id for item in self.items]

    @property
    def enlarged(self) -> list[str]:
        """Ids of the images that are smaller than ``size`` on either axis: they have no fine detail there."""
        if self.size is None:
            return []
        height, width = self.size
        return [item.id for item in self.items if item.size[0] < height or item.size[1] < width]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of images that are the same as an earlier one, each with that one's; crops aside."""
        own = [item for item in self.items if item.photograph is None]
        return find_repeated([item.id for item in own], [item.key for item in own])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of all that determines the pixels.

        That is source, size, resizing filter, and for each image its id and its key: the digest of the
        file's bytes (folders), of the photograph's bytes with crop and flip (samples), generator, size and
        seed (synthetic), or the MD5 of the data set's file and the position in it (stl10, cifar10). Neither
        paths nor times nor labels are part of it.
        """
        return self.describe_known((item.id, item.key) for item in self.items)

    def describe_known(self, keys: Iterable[tuple[str, str]]) -> str:
        """Return the fingerprint of images with these names and keys, at the size of this set."""
        digest = hashlib.sha256(repr((self.source, self.size, self.resample.name)).encode())
        for pair in keys:
            digest.update(repr(pair).encode())
        return digest.hexdigest()[:16]

    def take(self, n: int) -> ImageSet:
        """Return the first ``n`` images, or all of them if there are fewer.

        Args:
            n: how many.

        Raises:
            SpectralError: if ``n`` is less than 1.
        """
        return self[: check_limit(n)]

    def readable(self) -> ImageSet:
        """Return the set without the images that have turned out to be broken, where that wasn't known."""
        return self

    def resized(self, size: Size) -> ImageSet:
        """Return the same images (for samples: the same crops) at another size.

        Args:
            size: side of a square, or (height, width).

        Units: pixels.

        Raises:
            SpectralError: if the size is not usable.
        """
        return dataclasses.replace(self, size=as_size(size))

    def with_loading(self, loading: Loading) -> ImageSet:
        """Return the same images, decoded in another way."""
        return dataclasses.replace(self, loading=loading)

    def keep_decoded(self, limit: int | None = None) -> ImageSet:
        """Return the same images, which are decoded once for all networks that see them at one size.

        Args:
            limit: bytes that they may take in memory, those that come first; by default a quarter of what is
                free, and 4 GiB at most. Sets made of this one share them.

        Example:
            >>> from spectral.data import load_images
            >>> images = load_images("synthetic", size=16, limit=5).keep_decoded()
            >>> [len(list(images.batches(2))) for network in range(2)]
            [3, 3]
        """
        return dataclasses.replace(self, kept=KeptImages(limit))

    def batches(
        self, batch_size: int, start: int = 0, indices: Iterable[int] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Iterate over the images in batches, in order; many are decoded ahead, in worker processes.

        Args:
            batch_size: images in a batch; the last may be smaller.
            start: how many images to leave out, to resume after them.
            indices: which images, by default all in order; ``start`` counts in these.

        Yields:
            The positions in the set of the images in the batch, and their pixels.

        Shape: (batch, 3, H, W), float32, in [0, 1].

        Raises:
            SpectralError: if ``batch_size`` is less than 1, if the images differ in size, or, naming it, if
                one can't be read.
        """
        batch_size = as_integer(batch_size, "batch_size", least=1)
        chosen = list(range(len(self)) if indices is None else indices)[start:]
        self._check_one_size(chosen)
        groups = group_positions(len(self), batch_size, chosen)
        return self._decode(groups) if self.kept is None else self._decode_once(groups, self.kept)

    def _decode_once(self, groups: list[list[int]], kept: KeptImages) -> Batches:
        """Take batches that are kept, and decode the others ahead, in order."""
        known = [kept.holds(list(map(self._describe, group))) for group in groups]
        missing = [group for group, there in zip(groups, known, strict=True) if not there]
        with closing(self._decode(missing)) as decoded:
            for group, there in zip(groups, known, strict=True):
                if there:
                    yield group, kept.find(list(map(self._describe, group)))
                else:
                    chosen, batch = next(decoded)
                    if chosen:  # else all of them are broken
                        kept.add(list(map(self._describe, chosen)), batch)
                    yield chosen, batch

    def _describe(self, index: int) -> tuple[object, ...]:
        """Return all that an image's pixels depend on."""
        item = self.items[index]
        return item.id, item.key, self.size, self.resample

    def _decode(self, groups: list[list[int]]) -> Batches:
        """Yield what can be read of each group, and its pixels."""
        return self._load(self._stack, groups)

    def _load(
        self, read: Callable[[list[int]], T], groups: list[list[int]]
    ) -> Generator[tuple[list[int], T], None, None]:
        count, most = sum(map(len, groups)), max(map(len, groups), default=0)
        height, width = self.size or (0, 0)
        nbytes = most * 3 * height * width * torch.float32.itemsize
        workers = self.loading.count_workers(count, len(groups), nbytes)
        return load_batches(read, groups, workers=workers, pinned=self.loading.pinned, source=self.source)

    def _stack(self, indices: list[int]) -> torch.Tensor:
        # In a worker, torch's own function stacks into memory that is shared: nothing is copied twice.
        batch: torch.Tensor = default_collate([self[index] for index in indices])
        return batch

    def _check_one_size(self, indices: list[int]) -> None:
        """Fail before the first batch, not in the middle of a run."""
        if self.size is not None or not indices:
            return
        first = self.items[indices[0]]
        for item in (self.items[index] for index in indices):
            if item.size != first.size:
                raise SpectralError(
                    f"images of {self.source} differ in size ({first.id} is {first.size[0]}×{first.size[1]}, "
                    f"{item.id} is {item.size[0]}×{item.size[1]}) and can't form a batch; load them with "
                    f"size="
                )


def warn_about_skipped(skipped: Sequence[tuple[str, str]], source: str) -> None:
    """Warn once about all files that could not be read, with the first few by name."""
    if skipped:
        named = "; ".join(f"{name} ({reason})" for name, reason in sorted(skipped)[:3])
        more = "; …" if len(skipped) > 3 else ""
        warnings.warn(
            f"{source}: skipped {len(skipped)} broken image file(s): {named}{more}",
            SpectralWarning,
            stacklevel=5,
        )


def find_repeated(ids: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the ids whose key an earlier one has too, each with that one.

    Example:
        >>> find_repeated(["a.png", "b.png", "c.png"], ["1", "2", "1"])
        [('c.png', 'a.png')]
    """
    first: dict[str, str] = {}
    pairs = zip(ids, keys, strict=True)
    return [(name, first[key]) for name, key in pairs if first.setdefault(key, name) != name]


def check_limit(limit: int) -> int:
    """Return ``limit`` if it is a number of images that one can ask for.

    Raises:
        SpectralError: if it is not a whole number of at least 1.
    """
    return as_integer(limit, "the number of images", least=1)


def spread_over_classes(labels: Sequence[int | None], seed: int) -> list[int]:
    """Order positions so that every prefix holds about as many of each class; within a class at random.

    Args:
        labels: class of each position; None counts as one more class.
        seed: the same seed gives the same order.

    Returns:
        All positions, each once: one of each class, then another of each, and so on. Which class comes
        first changes by seed too.

    Raises:
        SpectralError: if the seed is not a whole number ≥ 0.

    Example:
        >>> labels = [0, 0, 0, 0, 1, 1]
        >>> [labels[i] for i in sorted(spread_over_classes(labels, seed=0)[:4])]
        [0, 0, 1, 1]
    """
    rng = generator(seed)
    members: dict[int | None, list[int]] = {}
    for position in rng.permutation(len(labels)).tolist():
        members.setdefault(labels[position], []).append(position)
    ranked = [(rank, turn, p) for turn, group in enumerate(members.values()) for rank, p in enumerate(group)]
    return [position for _, _, position in sorted(ranked)]
