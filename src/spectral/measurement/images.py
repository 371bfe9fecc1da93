"""Images as a measurement sees them: named, in batches, and a tensor taken as such."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from spectral.errors import SpectralError


class Images(Protocol):
    """What `measure` needs of a set of images; `spectral.load_images` returns one."""

    @property
    def source(self) -> str:
        """Where they come from."""

    @property
    def ids(self) -> Sequence[str]:
        """Names, all different."""

    @property
    def clusters(self) -> Sequence[str]:
        """What each image was cut from; its own id where it was cut from nothing."""

    @property
    def labels(self) -> Sequence[int | None]:
        """Class of each image where it is known."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a pixel does."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all images, None where they differ."""

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images at another size."""

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images (B, 3, H, W) in [0, 1])."""

    def __len__(self) -> int: ...


class TensorImages:
    """A tensor of preprocessed images, seen as a set of images."""

    source = "tensor"

    def __init__(self, images: Tensor) -> None:
        if images.ndim not in (3, 4, 5) or not images.is_floating_point():
            raise SpectralError(
                f"measure: expected floating-point images (N, C, H, W), signals (N, C, T) or videos "
                f"(N, C, T, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        self.images = images.detach()
        self.ids = self.clusters = [f"{i:04d}" for i in range(len(images))]
        self.labels: list[int | None] = [None] * len(images)
        self.size: tuple[int, int] = (images.shape[-2], images.shape[-1])

    @property
    def fingerprint(self) -> str:
        """Hash of shape, dtype and values."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.images.dtype)).encode())
        digest.update(self.images.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def resized(self, size: tuple[int, int]) -> TensorImages:
        """Return itself: a tensor is taken as it is."""
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images)."""
        chosen = list(range(len(self)) if indices is None else indices)
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            yield part, self.images[part]

    def __len__(self) -> int:
        return len(self.images)


def find_clusters(images: Images) -> list[str]:
    """Return what each image was cut from; each image itself where the set doesn't say.

    Example:
        >>> find_clusters(TensorImages(torch.zeros(2, 3, 8, 8)))
        ['0000', '0001']
    """
    return list(getattr(images, "clusters", images.ids))


def insert_clusters(table: pd.DataFrame, images: Images) -> pd.DataFrame:
    """Put the column ``cluster`` behind ``image``: what each image was cut from.

    Example:
        >>> insert_clusters(pd.DataFrame({"image": ["0001"]}), TensorImages(torch.zeros(2, 3, 8, 8)))
          image cluster
        0  0001    0001
    """
    clusters = dict(zip(images.ids, find_clusters(images), strict=True))
    table.insert(list(table.columns).index("image") + 1, "cluster", table["image"].map(clusters))
    return table


def as_images(images: Tensor | Images) -> Images:
    """Return a set of images, made of a tensor if need be.

    Raises:
        SpectralError: for something else, or no images.
    """
    if isinstance(images, Tensor):
        images = TensorImages(images)
    elif not hasattr(images, "batches"):
        raise SpectralError(
            f"measure: expected images from load_images or a tensor (N, C, H, W), got {type(images).__name__}"
        )
    if len(images) == 0:
        raise SpectralError("measure: there are no images")
    return images
