"""Images that are listed before any is read: each is read when its turn comes, and known from then on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import default_collate
from tqdm import tqdm

from spectral.data.decode import decode_image, describe_failure, digest_bytes, inspect_image, map_in_threads
from spectral.data.imageset import Batches, ImageItem, ImageSet, find_repeated, warn_about_skipped
from spectral.errors import SpectralError
from spectral.files.atomic import State, is_settled

LISTED = "listed-"  # begins what tells a listing from others
FEWEST_LISTED = 500  # images that are worth it: of fewer all are read at once


class Seen(NamedTuple):
    """What reading an image has shown: the digest of its bytes, (height, width) upright, the file's state.

    As long as the file system tells the same state the bytes are the same. It is empty where they had just
    been written, and may change again without another time.
    """

    digest: str
    size: tuple[int, int]
    state: State

    def pack(self) -> list[Any]:
        """Return it as one list, for JSON.

        Example:
            >>> Seen.unpack(Seen("a1", (4, 5), (20, 7)).pack())
            Seen(digest='a1', size=(4, 5), state=(20, 7))
        """
        return [self.digest, *self.size, *self.state]

    @classmethod
    def unpack(cls, packed: Sequence[Any]) -> Seen:
        """Return what was packed."""
        digest, height, width, *state = packed
        return cls(digest, _share(height, width), tuple(state))


@dataclass
class Book:
    """What reading has shown of images, by their names; all sets made of one listing share it.

    Attributes:
        seen: those that could be read.
        broken: why others couldn't.
        keep: writes down what is known now, for the next listing.
    """

    seen: dict[str, Seen] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    keep: Callable[[Mapping[str, Seen]], None] = lambda seen: None

    @property
    def found(self) -> tuple[dict[str, Seen], dict[str, str]]:
        """What other processes may want to know."""
        return self.seen, self.broken


@dataclass(frozen=True, slots=True)
class ListedItem:
    """An image that is known by its name: as `ImageItem`, with the rest found out when it is asked for.

    Attributes:
        read: returns its bytes.
        look: returns what the file system says of it, which differs whenever the bytes do; times come last.
        length: of the file, in bytes.
        book: where it is noted what reading has shown.
    """

    id: str
    read: Callable[[], bytes]
    look: Callable[[], State]
    length: int
    book: Book
    label: int | None = None
    photograph: str | None = None

    def open(self) -> Image.Image:
        """Read the image at its own size."""
        image, self.book.seen[self.id] = self.decode()
        return image

    def decode(self) -> tuple[Image.Image, Seen]:
        """Read the image, and say what that has shown.

        Raises:
            SpectralError: if it isn't the same that was read before.
        """
        begun, state, content = time.time(), self.look(), self.read()
        known = self.book.seen.get(self.id)
        image = decode_image(content, None if known is None else known.digest)
        size = _share(image.height, image.width)
        return image, Seen(digest_bytes(content), size, _settle(state, begun))

    def examine(self) -> Seen:
        """Return what reading the image has shown, for which it is read where it wasn't yet.

        Raises:
            SpectralError: with the reason, if it can't be.
        """
        if self.id not in self.book.seen:
            begun = time.time()
            try:
                state = self.look()
            except OSError as error:
                raise SpectralError(describe_failure(error)) from error
            digest, size = inspect_image(self.read)
            self.book.seen[self.id] = Seen(digest, _share(*size), _settle(state, begun))
        return self.book.seen[self.id]

    def find_fault(self) -> str:
        """Return the reason why it can't be read, nothing if it can."""
        try:
            self.examine()
        except SpectralError as error:
            return str(error)
        return ""

    def is_same(self, before: Seen) -> bool:
        """Whether its bytes are what they were; they are read only where the file system doesn't tell."""
        with suppress(OSError, SpectralError, ValueError):
            same_file = bool(before.state) and before.state == self.look()
            return same_file or digest_bytes(self.read()) == before.digest
        return False

    @property
    def key(self) -> str:
        """The digest of its bytes."""
        return self.examine().digest

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), in pixels."""
        return self.examine().size


@lru_cache(maxsize=4096)
def _share(height: int, width: int) -> tuple[int, int]:
    """Return a size that all images of it share: there may be a million."""
    return height, width


def _settle(state: State, begun: float) -> State:
    """Return the state of a file that is to get another time if it changes from now on."""
    return state if is_settled(state, begun) else ()


@dataclass
class _Decoded:
    """Some images on their way out of a worker: those that can be read, and what reading has shown."""

    chosen: list[int]
    pixels: torch.Tensor
    seen: dict[str, Seen]
    broken: dict[str, str]

    def pin_memory(self) -> _Decoded:
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True, repr=False)
class ListedImages(ImageSet):
    """A set of images of which none needs to have been read.

    As an `ImageSet`, but whether an image can be read shows when its turn comes: one that can't is passed
    over by `batches`, and named in ``skipped`` from then on.

    Args:
        book: what is known so far.
    """

    items: Sequence[ListedItem]  # type: ignore[assignment] # what an image is there, it can be asked for
    book: Book = field(default_factory=Book, compare=False)

    @property
    def listing(self) -> str:
        """Hash of what is known without reading: source, size, filter, and each image's name and length."""
        digest = hashlib.sha256(repr((self.source, self.size, self.resample.name)).encode())
        for item in self.items:
            digest.update(repr((item.id, item.length)).encode())
        return f"{LISTED}{digest.hexdigest()[:16]}"

    @property
    def fingerprint(self) -> str:
        """That of the images that can be read, for which those are read now that weren't yet."""
        return self.checked().fingerprint

    @property
    def enlarged(self) -> list[str]:
        """Ids of those of the images read so far that are smaller than ``size`` on either axis."""
        if self.size is None:
            return []
        height, width = self.size
        sizes = ((item.id, self.book.seen[item.id].size) for item in self.items if item.id in self.book.seen)
        return [name for name, own in sizes if own[0] < height or own[1] < width]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of images that are the same as an earlier one, as far as they have been read."""
        seen = [(item.id, self.book.seen[item.id].digest) for item in self.items if item.id in self.book.seen]
        return find_repeated([name for name, _ in seen], [digest for _, digest in seen])

    def readable(self) -> ListedImages:
        """Return the set without the images that have turned out to be broken so far."""
        return replace(self, items=[item for item in self.items if item.id not in self.book.broken])

    def checked(self) -> ImageSet:
        """Read what wasn't yet, and return the images that can be read as a set in which all is known."""
        left = [item for item in self.readable().items if item.id not in self.book.seen]
        reasons = zip(left, map_in_threads(ListedItem.find_fault, left), strict=True)
        broken = {item.id: reason for item, reason in reasons if reason}
        self.learn({}, broken)
        warn_about_skipped(list(broken.items()), self.source)
        items = [ImageItem(item.id, item.open, item.key, item.size, item.label, item.photograph)
                 for item in self.readable().items]  # fmt: skip
        self.remember()
        return ImageSet(self.source, items, self.size, self.classes, self.skipped, self.resample,
                        self.left_out, self.loading, self.kept)  # fmt: skip

    def learn(self, seen: Mapping[str, Seen], broken: Mapping[str, str]) -> None:
        """Take over what reading has shown elsewhere, as in a worker process or on another rank."""
        self.book.seen.update(seen)
        new = {name: reason for name, reason in broken.items() if name not in self.book.broken}
        self.book.broken.update(new)
        self.skipped.extend(new.items())

    def recognise(self, before: Mapping[str, Seen]) -> list[str]:
        """Take over what an earlier run has seen of images that are as they were; return which aren't.

        An image's bytes are compared only where the file system doesn't say that they are the same.
        """
        items = [item for item in self.items if item.id in before]
        with tqdm(total=len(items), desc="comparing images", unit="image", delay=1, leave=False) as progress:
            for item, same in zip(
                items, map_in_threads(lambda i: i.is_same(before[i.id]), items), strict=True
            ):
                progress.update()
                if same:
                    self.book.seen[item.id] = before[item.id]
        return [item.id for item in items if self.book.seen.get(item.id) is not before[item.id]]

    def remember(self) -> None:
        """Write down what is known of the images, for the next listing."""
        self.book.keep(self.book.seen)

    def batches(
        self, batch_size: int, start: int = 0, indices: Any = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Iterate as `ImageSet.batches` does, over the images that can be read."""
        return _pass_over_empty(super().batches(batch_size, start, indices))

    def _describe(self, index: int) -> tuple[object, ...]:
        item = self.items[index]
        seen = self.book.seen.get(item.id)
        return item.id, seen and seen.digest, self.size, self.resample

    def _decode(self, groups: list[list[int]]) -> Batches:
        with closing(self._load(self._read, groups)) as loaded:
            for _, found in loaded:
                self.learn(found.seen, found.broken)
                yield found.chosen, found.pixels

    def _read(self, indices: list[int]) -> _Decoded:
        pixels: dict[int, torch.Tensor] = {}
        seen: dict[str, Seen] = {}
        broken: dict[str, str] = {}
        for index in indices:
            item = self.items[index]
            try:
                image, seen[item.id] = item.decode()
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise almost anything on a broken file
                if item.id in self.book.seen:
                    raise self._lose(item.id, error) from error
                broken[item.id] = describe_failure(error)
            else:
                pixels[index] = self._fit(image)
        batch = default_collate(list(pixels.values())) if pixels else torch.empty(0)
        return _Decoded(list(pixels), batch, seen, broken)

    def _check_one_size(self, indices: list[int]) -> None:
        if self.size is None:
            super()._check_one_size([i for i in indices if self.items[i].id not in self.book.broken])


def _pass_over_empty(batches: Iterator[tuple[list[int], torch.Tensor]]) -> Batches:
    with closing(batches):  # type: ignore[type-var]
        yield from (batch for batch in batches if batch[0])
