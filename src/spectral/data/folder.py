"""Image folders: which files are images, which class each belongs to, which of them are broken."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from spectral.classes import SYNSET
from spectral.data.decode import (
    CheckedFile,
    check_image,
    describe_failure,
    list_extensions,
    map_in_threads,
    read_bytes,
    read_image,
)
from spectral.data.imageset import ImageItem, ImageSet, spread_over_classes, warn_about_skipped
from spectral.data.known import KnownFiles
from spectral.data.listed import FEWEST_LISTED, Book, ListedImages, ListedItem, Seen
from spectral.data.splits import are_parts, find_part
from spectral.data.values import ARRAYS
from spectral.errors import SpectralError, SpectralWarning
from spectral.files.atomic import State, look_at, printable, walk_files

# Kinds that lie beside images and that nobody takes for any.
_COMPANIONS = frozenset({
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".ini", ".db",
    ".log", ".py", ".pkl", ".parquet", ".npy", ".npz", ".pt", ".mat", ".zip", ".tar", ".gz",
})  # fmt: skip


class FolderListing(NamedTuple):
    """The images of a folder before any has been read, in the order of their names."""

    names: list[str]
    """Relative to the folder, with "/"."""
    labels: list[int | None]
    classes: list[str] | None
    left_out: Mapping[str, int] = {}
    """How many files of each kind, by their endings, aren't read."""


class Choice(NamedTuple):
    """Which images of a folder or of packed files are wanted, and in which form.

    Attributes:
        size: (height, width), or None for each image's own.
        limit: how many images, at most.
        seed: which images, if there are more.
        lazily: whether many are listed without reading them.
    """

    size: tuple[int, int] | None
    limit: int | None
    seed: int
    lazily: bool = False


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a folder: of a million of them each takes little memory."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    def read(self) -> bytes:
        return read_bytes(self.path)

    def look(self) -> State:
        return look_at(self.path)


def load_folder(root: Path, choice: Choice) -> ImageSet:
    """Load the images of a folder; see `spectral.load_images`.

    Args:
        root: a flat folder of images, a folder with one subfolder per class, or one whose test/ or val/,
            beside train/, is so; of several parts the first that has classes is read.
        choice: which of them.

    Raises:
        SpectralError: if there is no such folder, or not one readable image in it.
    """
    require_folder(root)
    source = f"folder:{printable(root.resolve().name)}"
    part = find_part(root, lambda folder: bool(list_folder(folder).classes))
    listing = list_folder(part or root)
    if part is None and are_parts(name.split("/")[0] for name in listing.names):  # without classes
        part = find_part(root, has_images)
        listing = list_folder(part or root)
    if part is not None:
        root, source = part, f"{source}/{printable(part.name)}"
    if not listing.names:
        endings = ", ".join(list_extensions())
        there = f"; there are {describe_kinds(listing.left_out)}" if listing.left_out else ""
        raise SpectralError(f"no images in folder {str(root)!r}: expected files ending in {endings}{there}")
    return _load_listed(root, source, listing, choice)


def load_files(paths: Sequence[Path], choice: Choice) -> ImageSet:
    """Load image files, and those in folders among them; see `spectral.load_images`.

    Ids are relative to the folder that has all of them; classes are known where names begin with ImageNet's.

    Raises:
        SpectralError: if a path leads nowhere, a file's kind can't be read, or none is left.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            found = list_folder(path)
            files += [path / name for name in found.names]
            left_out.update(found.left_out)
        elif not path.exists():
            raise SpectralError(f"no file {str(path)!r}; pass existing images")
        elif path.suffix.lower() in list_extensions():
            files.append(path)
        elif len(paths) == 1:
            arrays = "; arrays are for `measure` and the analyses" if path.suffix in ARRAYS else ""
            raise SpectralError(
                f"{str(path)!r} is no image that can be read here: expected a file ending in "
                f"{', '.join(list_extensions())}, or a folder{arrays}"
            )
        else:
            left_out[path.suffix.lower()] += 1
    files = sorted(dict.fromkeys(file.absolute() for file in files))
    if not files:
        raise SpectralError(f"no images among {len(paths)} path(s): there are {describe_kinds(left_out)}")
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).as_posix() for file in files]
    labels, classes = _find_labels([_read_synset(file.name) for file in files])
    listing = FolderListing(names, labels, classes, left_out)
    return _load_listed(root, f"files:{printable(root.name)}", listing, choice)


def _load_listed(root: Path, source: str, listing: FolderListing, choice: Choice) -> ImageSet:
    wanted = len(choose(listing, choice))
    known = KnownFiles(root, wanted)
    new: dict[str, CheckedFile] = {}

    def recall(position: int) -> ImageItem | None:
        checked = known.find(listing.names[position])
        return None if checked is None else _make_item(root, listing, position, checked)

    def check(position: int) -> ImageItem | str:
        name = listing.names[position]
        try:
            new[name] = check_image(root / name)
        except SpectralError as error:
            return str(error)
        return _make_item(root, listing, position, new[name])

    def find(position: int) -> Found:
        file = _File(root, listing.names[position])
        return file.read, file.look, file.path.stat().st_size

    if choice.lazily and wanted >= FEWEST_LISTED:
        return choose_listed(listing, find, source, str(root), choice, known)
    images = choose_readable(listing, check, source, str(root), choice, recall)
    known.note(new.items())
    return images


def choose(listing: FolderListing, choice: Choice) -> Sequence[int]:
    """Return the positions of the images that are wanted, in order."""
    every = range(len(listing.names))
    if choice.limit is None or choice.limit >= len(every):
        return every
    return sorted(spread_over_classes(listing.labels, choice.seed)[: choice.limit])


def choose_readable(
    listing: FolderListing,
    check: Callable[[int], ImageItem | str],
    source: str,
    where: str,
    choice: Choice,
    recall: Callable[[int], ImageItem | None] = lambda position: None,
) -> ImageSet:
    """Make a set of the images that can be read, spread over the classes if not all are wanted.

    Args:
        listing: all.
        check: returns the image at a position, or the reason why it is none.
        source: what the set is called.
        where: the folder that they are in, for messages.
        choice: which are wanted.
        recall: returns the image at a position where it is known without reading it.

    Raises:
        SpectralError: if none can be read.
    """
    names, wanted = listing.names, len(choose(listing, choice))
    items: dict[int, ImageItem] = {}
    skipped: list[tuple[str, str]] = []
    # Broken files are replaced by the next in order, so more than one round may be needed.
    every = range(len(names))
    remaining = iter(every if wanted == len(every) else spread_over_classes(listing.labels, choice.seed))
    with tqdm(total=wanted, desc="checking images", unit="image", delay=1, leave=False) as progress:
        while len(items) < wanted and (candidates := list(islice(remaining, wanted - len(items)))):
            known = {position: own for position in candidates if (own := recall(position)) is not None}
            checks = map_in_threads(check, [position for position in candidates if position not in known])
            for position in candidates:
                item = known.get(position) or next(checks)
                progress.update()
                if isinstance(item, ImageItem):
                    items[position] = item
                else:
                    skipped.append((printable(names[position]), item))
    if not items:
        raise _refuse_broken(skipped, where)
    warn_about_skipped(skipped, source)
    _warn_about_left_out(listing.left_out, source)
    return ImageSet(
        source, [items[p] for p in sorted(items)], choice.size, listing.classes, sorted(skipped),
        left_out=dict(listing.left_out),
    )  # fmt: skip


Found = tuple[Callable[[], bytes], Callable[[], State], int]
"""How an image's bytes are read, what the file system says of them, and how many there are."""


def choose_listed(
    listing: FolderListing,
    find: Callable[[int], Found],
    source: str,
    where: str,
    choice: Choice,
    known: KnownFiles | None = None,
) -> ListedImages:
    """Make a set of images that are read when their turn comes; only the first that can be is read here.

    Args:
        listing: all.
        find: finds the image at a position.
        source: what the set is called.
        where: the folder that they are in, for messages.
        choice: which are wanted.
        known: what earlier runs found out about files.

    Raises:
        SpectralError: if none can be read, or one is no longer there.
    """
    book, names, chosen = Book(), listing.names, choose(listing, choice)
    items = []
    for position in chosen:
        name = printable(names[position])
        try:
            items.append(ListedItem(name, *find(position), book, listing.labels[position]))
        except OSError as error:
            raise SpectralError(f"{source}: {name} can't be read ({describe_failure(error)})") from error
    if known is not None:
        _recall(items, [names[position] for position in chosen], known)
    skipped: list[tuple[str, str]] = []
    while items and (reason := items[0].find_fault()):
        skipped.append((items.pop(0).id, reason))
    if not items:
        raise _refuse_broken(skipped, where)
    warn_about_skipped(skipped, source)
    _warn_about_left_out(listing.left_out, source)
    return ListedImages(
        source, items, choice.size, listing.classes, skipped, left_out=dict(listing.left_out), book=book
    )


def _recall(items: Sequence[ListedItem], names: Sequence[str], known: KnownFiles) -> None:
    """Put into the items' book what is known of them, and have it kept what they turn out to be."""
    book, paths = items[0].book, dict(zip((item.id for item in items), names, strict=True))
    for item, name in zip(items, names, strict=True):
        if (checked := known.find(name)) is not None:
            book.seen[item.id] = Seen(*checked, item.look())
    book.keep = lambda seen: known.note((paths[name], CheckedFile(*own[:2])) for name, own in seen.items())


def _refuse_broken(skipped: Sequence[tuple[str, str]], where: str) -> SpectralError:
    return SpectralError(
        f"none of the {len(skipped)} image files in folder {where!r} could be read; "
        f"the first, {skipped[0][0]!r}: {skipped[0][1]}"
    )


def has_images(root: Path) -> bool:
    """Whether there is any image file in a folder or below it."""
    known = set(list_extensions())
    return any(path.suffix.lower() in known for path in map(Path, walk_files(root)))


def list_folder(root: Path) -> FolderListing:
    """List the images in a folder and everything below it.

    An image's class is the subfolder of ``root`` that it is in, however deep; an image in ``root`` itself
    has none, unless its name begins with one of ImageNet's (``n01440764_tench.JPEG``). Hidden files and
    folders are left out, as are files without an image's extension, which are counted.

    Args:
        root: an existing folder.

    Raises:
        SpectralError: if a folder in it can't be listed.
    """
    files = [*map(Path, walk_files(root))]
    known = set(list_extensions())
    names = sorted(path.relative_to(root).as_posix() for path in files if path.suffix.lower() in known)
    labels, classes = _find_labels(
        [name.split("/")[0] if "/" in name else _read_synset(name) for name in names]
    )
    left_out = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in known)
    return FolderListing(names, labels, classes, left_out)


def _find_labels(names: Sequence[str | None]) -> tuple[list[int | None], list[str] | None]:
    """Number the classes that images have, if they have one, and return their names."""
    classes = sorted({name for name in names if name is not None})
    index = {name: label for label, name in enumerate(classes)}
    labels = [None if name is None else index[name] for name in names]
    return labels, [printable(name) for name in classes] or None


def _read_synset(name: str) -> str | None:
    """Return ImageNet's identifier of a class at the start of a file's name, as in n01440764_tench.JPEG."""
    found = SYNSET.match(name)
    return None if found is None else found[0]


def describe_kinds(left_out: Mapping[str, int]) -> str:
    """Name files by their kind.

    Example:
        >>> describe_kinds({".heic": 2, "": 1})
        '2 .heic, 1 without an ending'
    """
    return ", ".join(
        f"{n} {ending or 'without an ending'}" for ending, n in sorted(left_out.items(), key=_rank)
    )


def _rank(kind: tuple[str, int]) -> tuple[int, str]:
    return -kind[1], kind[0]


def require_folder(root: Path) -> None:
    """Make sure that a path is a folder.

    Raises:
        SpectralError: if it is a file, or nothing.
    """
    if root.is_file():
        raise SpectralError(
            f"expected a folder of images, got the file {str(root)!r}; pass the folder it is in"
        )
    if not root.is_dir():
        raise SpectralError(f"no folder {str(root)!r}; pass an existing folder of images")


def _warn_about_left_out(left_out: Mapping[str, int], source: str) -> None:
    """Warn once about files that may be images of a kind that can't be read here."""
    kinds = {ending: n for ending, n in left_out.items() if ending not in _COMPANIONS}
    if kinds:
        warnings.warn(
            f"{source}: left out {sum(kinds.values())} file(s) of kinds that aren't read: "
            f"{describe_kinds(kinds)}",
            SpectralWarning,
            stacklevel=5,
        )


def _make_item(root: Path, listing: FolderListing, position: int, checked: CheckedFile) -> ImageItem:
    name, label = listing.names[position], listing.labels[position]
    read = partial(read_image, root / name, checked.digest)
    return ImageItem(printable(name), read, checked.digest, checked.size, label)
