"""STL-10 and CIFAR-10: fetched once, checked, unpacked, then read where they lie."""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from spectral.classes import CIFAR10_CLASSES
from spectral.data.imageset import ImageItem, ImageSet, spread_over_classes
from spectral.errors import SpectralError

STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

_STL10_SIDE = 96
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
_PixelArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Archive:
    """A data set as its authors publish it: one archive, and the files in it that are read."""

    name: str
    url: str
    md5: str
    folder: str
    """Of the files, in the archive and on disk."""
    files: Mapping[str, str] = field(hash=False)
    """File names and their MD5."""


def stl10_archive() -> Archive:
    """Describe STL-10; addresses and checksums are torchvision's."""
    from torchvision.datasets import STL10

    files = dict(STL10.test_list)
    return Archive("stl10", STL10.url, STL10.tgz_md5, STL10.base_folder, files)


def cifar10_archive() -> Archive:
    """Describe CIFAR-10; addresses and checksums are torchvision's."""
    from torchvision.datasets import CIFAR10

    files = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    return Archive("cifar10", CIFAR10.url, CIFAR10.tgz_md5, CIFAR10.base_folder, files)


def load_stl10(root: Path, size: tuple[int, int] | None, limit: int | None, seed: int) -> ImageSet:
    """Load the 8000 test images of STL-10; see `spectral.load_images`.

    Args:
        root: folder that holds, or will hold, ``stl10_binary``.
        size: (height, width), or None for 96 × 96.
        limit: how many images, spread over the classes.
        seed: which images.

    Raises:
        SpectralError: if the data are not there and can't be fetched.
    """
    archive = stl10_archive()
    folder = require_archive(archive, root)
    # Labels on disk count from 1.
    labels = [int(label) - 1 for label in np.fromfile(folder / "test_y.bin", np.uint8)]
    read = partial(_read_stl10, folder / "test_X.bin")
    items = [
        ImageItem(f"stl10/test/{i:04d}", partial(read, i), f"{archive.md5} {i}", (_STL10_SIDE,) * 2, label)
        for i, label in enumerate(labels)
    ]
    return _choose(
        ImageSet("stl10", items, size, STL10_CLASSES, resample=Image.Resampling.BILINEAR), limit, seed
    )


def load_cifar10(
    root: Path, split: str, size: tuple[int, int] | None, limit: int | None, seed: int
) -> ImageSet:
    """Load the 10,000 test or the 50,000 training images of CIFAR-10; see `spectral.load_images`.

    Args:
        root: folder that holds, or will hold, ``cifar-10-batches-py``.
        split: "test" or "train".
        size: (height, width), or None for 32 × 32.
        limit: how many images, spread over the classes.
        seed: which images.

    Raises:
        SpectralError: if the data are not there and can't be fetched.
    """
    archive = cifar10_archive()
    paths = _cifar10_batches(require_archive(archive, root), split)
    labels = read_cifar10(paths)[1]
    items = [
        ImageItem(
            f"cifar10/{split}/{i:05d}",
            partial(_read_cifar10_image, paths, i),
            f"{archive.md5} {i}",
            (32, 32),
            label,
        )
        for i, label in enumerate(labels.tolist())
    ]
    source = "cifar10" if split == "test" else f"cifar10-{split}"
    images = ImageSet(source, items, size, list(CIFAR10_CLASSES), resample=Image.Resampling.BILINEAR)
    return _choose(images, limit, seed)


def load_cifar10_arrays(root: Path, split: str) -> tuple[_PixelArray, npt.NDArray[np.int64]]:
    """Load all pixels (N, 3, 32, 32) and labels (N,) of one split of CIFAR-10.

    Raises:
        SpectralError: if the data are not there and can't be fetched.
    """
    return read_cifar10(_cifar10_batches(require_archive(cifar10_archive(), root), split))


def require_archive(archive: Archive, root: Path) -> Path:
    """Return the folder with an archive's files, fetching and unpacking it if they are not there.

    Every file is checked against its MD5 each time. Files appear under their final name only when they are
    complete; a download that was interrupted goes on where it stopped.

    Args:
        archive: what is needed.
        root: where it is kept.

    Raises:
        SpectralError: if it can't be fetched, stored, or is damaged.
    """
    folder = root / archive.folder
    if all(_has_md5(folder / name, md5) for name, md5 in archive.files.items()):
        return folder
    packed = root / Path(archive.url).name
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetched = not _has_md5(packed, archive.md5)
        if fetched:
            _download(archive, packed)
        _unpack(archive, packed, folder)
        if fetched:
            packed.unlink()  # a file that the user put there stays
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise SpectralError(
            f"could not download {archive.name} ({reason}); run again, or put {packed.name} into "
            f"the folder {str(root)!r} by hand, or use images that need no network: 'samples', "
            "'synthetic' or a folder"
        ) from error
    except (OSError, tarfile.TarError, EOFError) as error:
        raise SpectralError(
            f"could not store {archive.name} in {str(root)!r} ({getattr(error, 'strerror', None) or error}); "
            "make room or name another folder in the environment variable SPECTRAL_DATA"
        ) from error
    return folder


def _download(archive: Archive, target: Path) -> None:
    arriving = target.with_name(target.name + ".part")
    _receive(archive.url, arriving, archive.name)
    if not _has_md5(arriving, archive.md5):
        arriving.unlink()
        raise ConnectionError("what arrived is not the published file and was removed")
    os.replace(arriving, target)


def _receive(url: str, arriving: Path, name: str) -> None:
    """Append to a file what it still lacks, or start it anew if the server can't go on from its end."""
    offset = arriving.stat().st_size if arriving.exists() else 0
    try:
        response = _open_url(url, offset)
    except urllib.error.HTTPError as error:
        if offset and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing follows: all of it is here
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        offset = offset if resumed else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        with (
            arriving.open("ab" if resumed else "wb") as file,
            tqdm(desc=name, total=total, initial=offset, unit="B", unit_scale=True) as progress,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = arriving.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes, which are kept")


def _open_url(url: str, offset: int) -> http.client.HTTPResponse:
    """Ask for a file from a byte on; a server may ignore that and send all of it (status 200)."""
    headers = {"User-Agent": "spectral-aliasing"} | ({"Range": f"bytes={offset}-"} if offset else {})
    response: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
    )
    return response


def _unpack(archive: Archive, packed: Path, folder: Path) -> None:
    """Copy the files that are read out of the archive, one by one.

    Members' own paths are never used, and links, which may lead out of it or in circles, are no files.
    """
    folder.mkdir(exist_ok=True)
    wanted = {f"{archive.folder}/{name}": name for name in archive.files}
    with tarfile.open(packed) as tar, tqdm(desc=f"unpacking {archive.name}", total=len(wanted)) as progress:
        for member in tar:
            name = wanted.get(member.name)
            content = tar.extractfile(member) if name and member.isreg() else None
            if name is None or content is None:
                continue
            temporary = folder / f"{name}.part"
            _copy(content, temporary)
            if not _has_md5(temporary, archive.files[name]):
                raise OSError(f"{name} in {packed.name} is damaged")
            os.replace(temporary, folder / name)
            progress.update()
    missing = [name for name in archive.files if not (folder / name).exists()]
    if missing:
        raise OSError(f"{missing[0]} is missing in {packed.name}")


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)


def _has_md5(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest() == md5


def _choose(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    """Keep ``limit`` images, spread over the classes, in their original order."""
    if limit is None or limit >= len(images):
        return images
    chosen = sorted(spread_over_classes(images.labels, seed)[:limit])
    return replace(images, items=[images.items[i] for i in chosen])


@lru_cache(maxsize=4)
def _map_stl10(path: Path) -> _PixelArray:
    """Map the file: it stays on disk, and pages that are looked at can be dropped again."""
    return np.memmap(path, np.uint8, "r").reshape(-1, 3, _STL10_SIDE, _STL10_SIDE)


def _read_stl10(path: Path, index: int) -> Image.Image:
    # Each channel is stored column by column: (channel, x, y) on disk, (y, x, channel) in an image.
    return Image.fromarray(np.ascontiguousarray(_map_stl10(path)[index].transpose(2, 1, 0)))


def _cifar10_batches(folder: Path, split: str) -> tuple[Path, ...]:
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return tuple(folder / name for name in names)


@lru_cache(maxsize=2)
def read_cifar10(paths: tuple[Path, ...]) -> tuple[_PixelArray, npt.NDArray[np.int64]]:
    """Read batches as pixels (N, 3, 32, 32) and labels (N,).

    The batches are pickles, so only files whose MD5 has been checked may come here.
    """
    batches = []
    for path in paths:
        with path.open("rb") as file:
            batches.append(pickle.load(file, encoding="latin1"))
    pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return pixels, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)


def _read_cifar10_image(paths: tuple[Path, ...], index: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(read_cifar10(paths)[0][index].transpose(1, 2, 0)))
