"""Images as a measurement sees them: a tensor as a set, and what each image was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from spectral.data import LISTED, Images, ListedImages, Seen
from spectral.errors import StorageError
from spectral.intake import GivenImages
from spectral.network import make_inputs
from spectral.store import ShardStore, holds_run, read_run


class TensorImages(GivenImages):
    """A tensor of preprocessed images, seen as a set of images.

    Example:
        >>> import torch
        >>> len(TensorImages(torch.zeros(2, 3, 8, 8)))
        2
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__(make_inputs(images.detach()))


def find_clusters(images: Images) -> list[str]:
    """Return what each image was cut from; each image itself where the set doesn't say.

    Example:
        >>> import torch
        >>> find_clusters(TensorImages(torch.zeros(2, 3, 8, 8)))
        ['0000', '0001']
    """
    return list(getattr(images, "clusters", images.ids))


def insert_clusters(table: pd.DataFrame, images: Images) -> pd.DataFrame:
    """Put the column ``cluster`` behind ``image``: what each image was cut from.

    Example:
        >>> import torch
        >>> insert_clusters(pd.DataFrame({"image": ["0001"]}), TensorImages(torch.zeros(2, 3, 8, 8)))
          image cluster
        0  0001    0001
    """
    clusters = dict(zip(images.ids, find_clusters(images), strict=True))
    table.insert(list(table.columns).index("image") + 1, "cluster", table["image"].map(clusters))
    return table


def identify_images(images: Images) -> str:
    """Return what tells a set of images from others, so far as that is known before they are read.

    Of a set that is listed without reading it, names and lengths of the files; what the bytes are is noted
    with the rows of each image, see `describe_seen`.
    """
    return images.listing if isinstance(images, ListedImages) else images.fingerprint


def name_as_before(images: Images, folder: Path, config: dict[str, Any]) -> None:
    """Name listed images in a configuration as a run does that read them all first and is to be continued.

    Raises:
        SpectralError: if what the folder says of its run is damaged.
    """
    if isinstance(images, ListedImages) and holds_run(folder):
        before = str(read_run(folder)["config"].get("images_fingerprint"))
        if not before.startswith(LISTED):
            config["images_fingerprint"] = images.fingerprint


def sample_digests(images: Images, count: int = 8) -> list[str]:
    """Return digests of a few images all over a set that is listed without reading it; of others none.

    Ranks compare them: two disks may hold other images under the same names, and of the same lengths.
    """
    if not isinstance(images, ListedImages):
        return []
    chosen = [images.items[len(images) * i // count] for i in range(count)]
    return [item.find_fault() or item.key for item in chosen]


def describe_seen(images: Images, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return what reading some images has shown, for the shard with their rows; nothing if it was known."""
    if not isinstance(images, ListedImages):
        return {}
    return {name: images.book.seen[name].pack() for name in names if name in images.book.seen}


def refuse_changed(images: Images, store: ShardStore) -> None:
    """Make sure that the images whose rows a folder has are as they were when they were measured.

    Raises:
        SpectralError: naming one that isn't.
    """
    if not isinstance(images, ListedImages):
        return
    before = {name: Seen.unpack(own) for name, own in store.seen().items()}
    if changed := images.recognise(before):
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise StorageError(
            f"{store.folder} holds measurements of image {changed[0]!r}{others} as it was before it changed; "
            f"choose another folder or delete it"
        )
