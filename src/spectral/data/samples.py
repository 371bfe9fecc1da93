"""Photographs that installed packages carry, and seeded crops of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from spectral.classes import CIFAR10_CLASSES, list_imagenet
from spectral.data.decode import read_image
from spectral.data.imageset import ImageItem, ImageSet
from spectral.errors import SpectralError
from spectral.numerics.cache import CACHE
from spectral.synthetic import generator

# Chosen by eye: photographs of things and scenes. The packages' drawings, text, logos, masks, microscope and
# telescope images, texture close-ups and the second picture of a stereo pair are not in the list.
_PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/motorcycle_left.png",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
# In these names the last number is the label.
_LABELLED = {"imagenet": "data/imagenet_*_*.jpg", "cifar10": "data/cifar10_*_*.png"}
_LABELLED_PACKAGE = "foolbox"

# Below this side, objects in the ImageNet photographs are too small to be recognised.
_RECOGNISABLE = 96
_DEFAULT_COUNT, _DEFAULT_COUNT_SMALL = 240, 1024


@dataclass(frozen=True)
class Photograph:
    """A photograph on disk."""

    path: Path
    digest: str
    size: tuple[int, int]


def load_samples(size: tuple[int, int] | None, limit: int | None, seed: int) -> ImageSet:
    """Load photographs out of installed packages; see `spectral.load_images`.

    With a size: whole labelled photographs first (at 32 × 32 the CIFAR-10 images, at 96 px or more the
    ImageNet ones, none in between), then crops, as many as wanted. Crop i depends on the seed, i, the size
    and the photographs found, not on ``limit``. Without: every photograph once, whole, at its own size.

    Args:
        size: (height, width), or None.
        limit: how many images; by default 240, or 1024 if the shorter side is below 96 px.
        seed: of the crops.

    Raises:
        SpectralError: if no photograph is installed, or none is as large as ``size``.
    """
    labelled, classes = _find_labelled(size)
    photographs = _find_photographs()
    if not photographs:
        raise SpectralError(
            "no sample photographs in the installed packages; get them with "
            "pip install 'spectral-aliasing[samples]'"
        )
    if size is None:
        taken = {photo.path for photo, _ in labelled}
        whole = labelled + [(photo, None) for photo in photographs if photo.path not in taken]
        items = [_whole_item(i, photo, label) for i, (photo, label) in enumerate(whole)]
        return ImageSet("samples", items[:limit], None, classes)
    count = limit or (_DEFAULT_COUNT if min(size) >= _RECOGNISABLE else _DEFAULT_COUNT_SMALL)
    large = [photo for photo in photographs if photo.size[0] >= size[0] and photo.size[1] >= size[1]]
    if not large:
        raise SpectralError(
            f"no sample photograph is as large as {size[0]}×{size[1]}; choose a smaller size or a folder"
        )
    items = [_whole_item(i, photo, label) for i, (photo, label) in enumerate(labelled[:count])]
    order = generator(seed).permutation(len(large))
    for i in range(len(items), count):
        items.append(_crop_item(i, large[order[i % len(large)]], size, seed))
    return ImageSet("samples", items, size, classes)


def _find_labelled(
    size: tuple[int, int] | None,
) -> tuple[list[tuple[Photograph, int | None]], list[str] | None]:
    """Find the labelled photographs that suit a size, and the names of their classes."""
    if size == (32, 32):
        kind, classes = "cifar10", list(CIFAR10_CLASSES)
    elif size is None or min(size) >= _RECOGNISABLE:
        kind, classes = "imagenet", list(list_imagenet() or ())
    else:
        return [], None
    photographs = _find_in_package(_LABELLED_PACKAGE, (_LABELLED[kind],))
    return [(photo, int(photo.path.stem.split("_")[-1])) for photo in photographs], classes


def _find_photographs() -> list[Photograph]:
    """Find the photographs that are large enough to crop."""
    found = [p for package, patterns in _PHOTOGRAPHS.items() for p in _find_in_package(package, patterns)]
    return found + _find_in_package(_LABELLED_PACKAGE, (_LABELLED["imagenet"],))


def _find_in_package(package: str, patterns: tuple[str, ...]) -> list[Photograph]:
    """Find files in a package without importing it: skimage would offer to download what is missing."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return [_inspect(path) for path in paths]


@lru_cache(maxsize=256)
def _inspect(path: Path) -> Photograph:
    with Image.open(path) as image:
        size = (image.height, image.width)
    return Photograph(path, hashlib.sha256(path.read_bytes()).hexdigest()[:32], size)


def _whole_item(index: int, photo: Photograph, label: int | None) -> ImageItem:
    read = partial(read_image, photo.path, photo.digest)
    return ImageItem(_name(index, photo), read, photo.digest, photo.size, label, photo.path.stem)


def _crop_item(index: int, photo: Photograph, size: tuple[int, int], seed: int) -> ImageItem:
    """Choose scale, then place, then flip: a third of the photograph to all of it, never enlarged."""
    rng = generator(int(seed) * 2**32 + index)
    largest = min(photo.size[0] / size[0], photo.size[1] / size[1])
    # Smaller cuts would mostly show bare sky, wall or skin.
    scale = rng.uniform(max(1, largest / 3), largest)
    height, width = int(size[0] * scale), int(size[1] * scale)
    top = int(rng.integers(photo.size[0] - height + 1))
    left = int(rng.integers(photo.size[1] - width + 1))
    flip = bool(rng.integers(2))
    box = (left, top, left + width, top + height)
    read = partial(_read_crop, photo.path, box, flip)
    key = f"{photo.digest} {box} {flip}"
    return ImageItem(_name(index, photo), read, key, (height, width), photograph=photo.path.stem)


def _name(index: int, photo: Photograph) -> str:
    return f"samples/{index:04d}-{photo.path.stem}"


def _read_crop(path: Path, box: tuple[int, int, int, int], flip: bool) -> Image.Image:
    crop = _read_cached(path).crop(box)
    return ImageOps.mirror(crop) if flip else crop


def _read_cached(path: Path) -> Image.Image:
    """Keep the decoded photographs, about thirty of 0.8 MB: every one is cropped again and again."""
    image: Image.Image = CACHE.get(
        (_read_cached, path),
        lambda: read_image(path),
        nbytes=lambda image: image.width * image.height * len(image.getbands()),
    )
    return image
