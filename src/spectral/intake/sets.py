"""What is to be known of a set of images beside its values, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from spectral.data import Images, ImageSet, ListedImages
from spectral.errors import name_few
from spectral.models.preparation import Preparation

REPEATED = (
    "{} of {} images are the same as another, as {} and {}; each counts as an image of its own, so that "
    "intervals are narrower than they should be"
)
RESIZED = (
    "the shorter side of images is resized (bicubic, antialiased) and their centre cropped, where the "
    "configuration of {} says: {}; for that give images from a dataset with its transforms, or of its size"
)


def describe_resizing(images: Images, preparation: Preparation, name: str) -> list[str]:
    """Say that images are brought to their size otherwise than the configuration of a network says.

    Args:
        images: the set, at the size at which the network sees it.
        preparation: of the network.
        name: of the network.
    """
    if not preparation.resizing or images.size != preparation.size or not _is_resized(images):
        return []
    return [RESIZED.format(name, preparation.resizing)]


def describe_repeated(images: Images) -> list[str]:
    """Say how many images are the same as another."""
    repeated = getattr(images, "repeated", ())
    return [REPEATED.format(len(repeated), len(images), *repeated[0])] if repeated else []


def describe_enlarged(images: Images, enlarged: Sequence[str]) -> list[str]:
    """Say which images are smaller than the size at which they are seen.

    Args:
        images: the set.
        enlarged: the names of these.
    """
    if not enlarged or images.size is None:
        return []
    size = "×".join(map(str, images.size))
    return [
        f"{len(enlarged)} of {len(images)} images are smaller than {size} and are enlarged, "
        f"which lowers AVR: {name_few(enlarged)}"
    ]


def _is_resized(images: Images) -> bool:
    """Whether images are brought to their size from another; files that weren't read yet may be."""
    if isinstance(images, ListedImages):
        return True
    items = images.items if isinstance(images, ImageSet) else ()
    return any(item.photograph is None and item.size != images.size for item in items)
