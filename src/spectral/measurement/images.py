"""Images as a measurement sees them: a tensor as a set, and what each image was cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from spectral.data import LISTED, Images, ImageSet, ListedImages, Seen
from spectral.errors import StorageError
from spectral.intake import GivenImages
from spectral.network import make_inputs
from spectral.runs.folder import holds_run, read_run
from spectral.runs.store import ShardStore

SOME_IMAGES = 8  # of a set that is listed without reading it, compared among ranks


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
    """Name images in a configuration as the run does that is to be continued.

    One that read all images first and one that listed them name the same images otherwise. Whether those that
    are measured are the same is told by what they are, see `refuse_changed`.

    Raises:
        SpectralError: if what the folder says of its run is damaged.
    """
    if not isinstance(images, ImageSet) or not holds_run(folder):
        return
    before = read_run(folder)["config"]
    listed = is_listed(before)
    if isinstance(images, ListedImages) and not listed:
        config["images_fingerprint"] = images.fingerprint
    elif listed and before.get("image_count") == len(images) + len(images.skipped):
        config |= {name: before[name] for name in ("images_fingerprint", "image_count")}


def is_listed(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names images by a listing, which says nothing of what they are.

    Example:
        >>> is_listed({"images_fingerprint": "listed-a1"})
        True
    """
    return str(config.get("images_fingerprint")).startswith(LISTED)


def sample_digests(images: Images) -> list[str]:
    """Return digests of a few images all over a set that is listed without reading it; of others none.

    Ranks compare them: two disks may hold other images under the same names, and of the same lengths.
    """
    if not isinstance(images, ListedImages):
        return []
    chosen = [images.items[len(images) * i // SOME_IMAGES] for i in range(SOME_IMAGES)]
    return [item.find_fault() or item.key for item in chosen]


def describe_seen(images: Images, names: Sequence[str], config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what reading some images has shown, for the shard with their rows; nothing if it was known."""
    if not is_listed(config) or not isinstance(images, ImageSet):
        return {}
    seen = _list_seen(images)
    return {name: seen[name].pack() for name in names if name in seen}


def refuse_changed(images: Images, labels: Mapping[str, int], store: ShardStore) -> None:
    """Make sure that the images whose rows a folder has are as they were, and of the classes that they were.

    Args:
        images: as they are now.
        labels: by image, as rows have them: in the network's numbering.
        store: the folder.

    Raises:
        SpectralError: naming one that isn't, or that isn't among the images any more.
    """
    if isinstance(images, ImageSet):
        _refuse_others(images, store)
    _refuse_relabelled(labels, store)


def _refuse_others(images: ImageSet, store: ShardStore) -> None:
    """Refuse to continue with other pictures."""
    before = {name: Seen.unpack(own) for name, own in store.seen().items()}
    gone = sorted(before.keys() - {item.id for item in images.items})
    if gone:
        raise StorageError(
            f"{store.folder} holds measurements of image {gone[0]!r}{_count_others(gone)}, which the images "
            f"lack now; choose another folder or delete it"
        )
    if isinstance(images, ListedImages):
        changed = images.recognise(before)
    else:
        known = {name: seen.digest for name, seen in _list_seen(images).items()}
        changed = [name for name, seen in before.items() if known.get(name) != seen.digest]
    if changed:
        raise StorageError(
            f"{store.folder} holds measurements of image {changed[0]!r}{_count_others(changed)} as it was "
            f"before it changed; choose another folder or delete it"
        )


def _refuse_relabelled(labels: Mapping[str, int], store: ShardStore) -> None:
    """Refuse to continue with other classes."""
    before = store.labels()
    changed = [image for image in sorted(store.finished_images()) if before.get(image) != labels.get(image)]
    if changed:
        was, now = before.get(changed[0]), labels.get(changed[0])
        raise StorageError(
            f"{store.folder} holds measurements of image {changed[0]!r}{_count_others(changed)} with "
            f"{'no class' if was is None else f'class {was:g}'}, which is now "
            f"{'unknown' if now is None else now}; choose another folder or delete it"
        )


def _count_others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _list_seen(images: ImageSet) -> Mapping[str, Seen]:
    """Return what reading a set's images has shown so far."""
    if isinstance(images, ListedImages):
        return images.book.seen
    return {item.id: Seen(item.key, item.size, ()) for item in images.items}
