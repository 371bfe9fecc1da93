"""The two ways in: images to measure on, and arrays to train on."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from spectral.arguments.values import as_path
from spectral.classes import CIFAR10_CLASSES
from spectral.data.archives import load_cifar10, load_cifar10_arrays, load_stl10
from spectral.data.decode import describe_failure, map_in_threads, read_image
from spectral.data.folder import (
    Choice,
    has_images,
    list_folder,
    load_files,
    load_folder,
    require_folder,
)
from spectral.data.imageset import ImageItem, ImageSet, check_limit, warn_about_skipped
from spectral.data.loading import Loading, check_workers
from spectral.data.packed import is_packed, list_packed, load_packed
from spectral.data.samples import load_samples
from spectral.data.splits import choose_split
from spectral.errors import SpectralError, suggest, warn
from spectral.files.atomic import printable
from spectral.synthetic import Size, as_size, generator, make_dead_leaves_image

SOURCES = ("samples", "synthetic", "stl10", "cifar10", "cifar10-train")

_SYNTHETIC_COUNT, _SYNTHETIC_SIZE, _SYNTHETIC_MOST = 1000, (224, 224), 10**7


def load_images(
    source: str | Path | Sequence[str | Path],
    size: Size | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    workers: int | None = None,
    lazily: bool = False,
) -> ImageSet:
    """Load images by the name of their source, from a folder, or from files.

    Args:
        source: one of

            - "samples": photographs inside installed packages. With a ``size``, seeded crops of them, by
              default 240 (1024 below 96 px); a few whole labelled ones come first. Needs no network.
            - "synthetic": dead leaves, by default 1000, drawn at ``size`` (224 if None). Image i depends on
              seed, size and i alone. Rounded to 8 bits, as files are.
            - "stl10", "cifar10" (test images), "cifar10-train": downloaded on first use, into ``root``.
            - a folder of images: flat, or with a subfolder per class. If it has train/ and test/, test/ is
              read, or val/ where there is no test/ with classes. Every file chosen is decoded once, here, so
              that broken ones are known from the start: they are named in ``skipped`` and in one warning. So
              are, in ``left_out``, kinds of files that aren't read. What was found out of a large folder is
              remembered: a file whose size and times are as they were is read when its turn comes, and
              compared then.
            - an image file, a pattern such as "pictures/*.jpg", or a list of these and of folders.
            - .tar files in WebDataset's layout (name.jpg beside name.cls or name.json), or .parquet files
              with a column of encoded images, as the Hub's: one, several, a pattern, or a folder of them,
              whose test files are read, or those for validation, where all are named by their split.
        size: side of a square, or (height, width): the shorter side is resized (antialiased bicubic; for
            stl10 and cifar10 bilinear, as in the study), then the centre is cropped. None keeps each image's
            own size.
        limit: how many images, at most. Where there are more, a seeded choice that is spread over the
            classes, listed in the order of the whole; of samples and synthetic images, the first.
        seed: of the choice, the crops or the leaves.
        root: where data sets are kept, by default $SPECTRAL_DATA, or else data/ in the current folder.
        workers: processes that decode batches ahead of the network; by default as many as help, none for few
            images. 0 decodes in the main process. Pixels and order are the same.
        lazily: list files, where there are 500 or more, by names, lengths and times alone. One that can't be
            read then shows when its turn comes: it is passed over, and named in ``skipped`` from then on;
            with a ``limit`` no other takes its place.

    Returns:
        An `ImageSet`, which reads an image when it is indexed.

    Raises:
        SpectralError: if the source is unknown or empty, can't be fetched, or an option is not usable.

    Example:
        >>> images = load_images("synthetic", size=(24, 32), limit=2, seed=1)
        >>> images[1].shape, images.has_labels, images.source
        (torch.Size([3, 24, 32]), False, 'synthetic')
    """
    shape = None if size is None else as_size(size)
    if limit is not None:
        check_limit(limit)
    generator(seed)  # says at once if the seed is not usable
    loading = Loading(check_workers(workers, "load_images"))
    if not isinstance(lazily, bool | np.bool_):
        raise SpectralError(f"load_images: lazily must be True or False, got {lazily!r:.60}")
    choice = Choice(shape, limit, seed, bool(lazily))
    return _find_images(source, choice, root).with_loading(loading)


def _find_images(
    source: str | Path | Sequence[str | Path], choice: Choice, root: str | Path | None
) -> ImageSet:
    """Read the name of a source, a folder or files."""
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise SpectralError(f"load_images: source must be a path, a name or a list, got {source!r:.60}")
        return _load_paths([path for one in source for path in _expand(one)], choice)
    if not str(source):
        raise SpectralError(f"no images asked for: expected a folder, files or one of {', '.join(SOURCES)}")
    if source == "samples":
        return load_samples(*choice[:3])
    if source == "synthetic":
        return _load_synthetic(*choice[:3])
    if source == "stl10":
        return load_stl10(_data_root(root), *choice[:3])
    if source in ("cifar10", "cifar10-train"):
        split = "test" if source == "cifar10" else "train"
        return load_cifar10(_data_root(root), split, *choice[:3])
    path = Path(source).expanduser()
    if path.is_file() or (not path.exists() and glob.has_magic(str(path))):
        return _load_paths(_expand(path), choice)
    if not path.exists() and len(path.parts) == 1:
        raise SpectralError(
            f"unknown images {str(source)!r}: expected a folder, files or one of {', '.join(SOURCES)}"
            f"{suggest(str(source), SOURCES)}"
        )
    if not path.is_dir():
        return load_folder(path, choice)
    packed = list_packed(path)
    if packed and not has_images(path):
        return load_packed(choose_split(path, packed), choice)
    if packed:
        warn(
            f"{printable(path.name)}: {len(packed)} file(s) that may hold many images each, as "
            f"{printable(packed[0].name)}, aren't read, since image files lie beside them; name them to read "
            f"them"
        )
    return load_folder(path, choice)


def _load_paths(paths: Sequence[Path], choice: Choice) -> ImageSet:
    """Load image files and folders, or files that hold many images each."""
    packed = [path for path in paths if is_packed(path) and path.is_file()]
    if not packed:
        return load_files(paths, choice)
    if len(packed) < len(paths):
        other = next(path for path in paths if path not in packed)
        raise SpectralError(f"{packed[0].name} holds many images and {other.name} doesn't; load them apart")
    return load_packed(sorted(dict.fromkeys(packed)), choice)


def _expand(source: str | Path) -> list[Path]:
    """List the files that a path or a pattern stands for.

    Raises:
        SpectralError: if nothing matches a pattern.
    """
    path = as_path(source, "load_images: source")
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise SpectralError(f"no file matches {str(source)!r}; pass existing images")
    return [Path(one) for one in found]


def load_labelled_arrays(
    root: str | Path | None, split: str | None = None, source: str = "folder"
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Load all images and labels into memory, for training.

    Args:
        root: with "folder", a folder with one subfolder per class, or, if ``split`` is given, one with such
            a folder for each split. With "cifar10", where the data set is kept, as in `load_images`.
        split: "train", "test" or any other subfolder; None reads ``root`` itself.
        source: "folder", or "cifar10" for the original CIFAR-10, downloaded on first use.

    Returns:
        Images, labels, and the names of the classes that the labels count.

    Shape: images (N, 3, H, W), uint8; labels (N,), int64.

    Raises:
        SpectralError: if the folder is not so, if its images differ in size, or if none can be read.
    """
    if source == "cifar10":
        if split not in ("train", "test"):
            raise SpectralError(f"split of cifar10 must be 'train' or 'test', got {split!r}")
        pixels, targets = load_cifar10_arrays(_data_root(root), split)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(targets.copy()), list(CIFAR10_CLASSES)
    if source != "folder" or root is None:
        raise SpectralError(
            f"expected source 'folder' with a root, or 'cifar10', got {source!r} with {root!r}"
        )
    return _load_folder_arrays(Path(root, split or "").expanduser())


def _load_folder_arrays(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    require_folder(folder)
    names, labels, classes, _ = list_folder(folder)
    if classes is None:
        raise SpectralError(f"no labelled images in folder {str(folder)!r}: expected one subfolder per class")
    labelled = [(name, label) for name, label in zip(names, labels, strict=True) if label is not None]
    skipped: list[tuple[str, str]] = []
    images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    targets: list[int] = []
    read = map_in_threads(partial(_read_pixels, folder), [name for name, _ in labelled])
    progress = tqdm(read, f"reading {folder.name}", len(labelled), unit="image", delay=1, leave=False)
    for (name, label), pixels in zip(labelled, progress, strict=True):
        if isinstance(pixels, str):
            skipped.append((name, pixels))
        elif images and pixels.shape != images[0].shape:
            raise SpectralError(
                f"all training images must have one size, but {name!r} in {str(folder)!r} is "
                f"{pixels.shape[1]}×{pixels.shape[2]} and those before are "
                f"{images[0].shape[1]}×{images[0].shape[2]}; resize them first"
            )
        else:
            images.append(pixels)
            targets.append(label)
    if not images:
        raise SpectralError(f"none of the {len(skipped)} image files in folder {str(folder)!r} could be read")
    warn_about_skipped(skipped, folder.name)
    return torch.from_numpy(np.stack(images)), torch.tensor(targets), classes


def _read_pixels(folder: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str:
    """Return the pixels (3, H, W) of a file, or the reason why it has none."""
    try:
        image = read_image(folder / name)
    except Exception as error:  # as in check_image: a broken file may raise almost anything
        return describe_failure(error)
    if image.mode == "F":
        image = Image.fromarray(np.round(np.array(image) * 255).astype(np.uint8)).convert("RGB")
    return np.ascontiguousarray(np.array(image).transpose(2, 0, 1))


def _load_synthetic(size: tuple[int, int] | None, limit: int | None, seed: int) -> ImageSet:
    size = size or _SYNTHETIC_SIZE
    if (limit or 0) > _SYNTHETIC_MOST:
        raise SpectralError(f"synthetic images: at most {_SYNTHETIC_MOST}, got {limit}")
    items = []
    for i in range(limit or _SYNTHETIC_COUNT):
        draw = partial(_draw_leaves, size, int(seed) * 2**32 + i)
        items.append(ImageItem(f"synthetic/{i:04d}", draw, f"dead leaves 1, {size}, seed {seed}, {i}", size))
    return ImageSet("synthetic", items, size)


def _draw_leaves(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = make_dead_leaves_image(size, seed).numpy().transpose(1, 2, 0)
    return Image.fromarray(np.round(pixels * 255).astype(np.uint8))


def _data_root(root: str | Path | None) -> Path:
    return Path(root if root is not None else os.environ.get("SPECTRAL_DATA", "data")).expanduser()
