"""Some of a set of images, for what is too slow to do on all of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from spectral.data.loading import Loading
from spectral.data.protocol import Images


class Subset:
    """Some images of a set, in the form that the set has.

    Args:
        images: the set.
        indices: which of it, in their order here.

    Example:
        >>> from spectral.data import load_images
        >>> few = Subset(load_images("synthetic", size=16, limit=5), [0, 3])
        >>> len(few), [indices for indices, _ in few.batches(1)]
        (2, [[0], [1]])
    """

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self.images, self.indices = images, list(indices)
        self.ids = [images.ids[i] for i in self.indices]
        self.clusters = [images.clusters[i] for i in self.indices]
        self.labels = [images.labels[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def prepared(self) -> bool:
        """Whether they are what a network is called with, in place of images in [0, 1]."""
        return bool(getattr(self.images, "prepared", False))

    @property
    def classes(self) -> Sequence[str] | None:
        """What the labels' classes are called, where that is known."""
        return getattr(self.images, "classes", None)

    @property
    def enlarged(self) -> list[str]:
        """Those of them that are smaller than their size."""
        own = set(self.ids)
        return [name for name in getattr(self.images, "enlarged", ()) if name in own]

    @property
    def loading(self) -> Loading:
        """How they are decoded."""
        return getattr(self.images, "loading", Loading(0))

    def with_loading(self, loading: Loading) -> Subset:
        """Return the same images, decoded in another way."""
        known: Any = self.images
        return Subset(known.with_loading(loading), self.indices) if hasattr(known, "with_loading") else self

    @property
    def source(self) -> str:
        """Where they come from."""
        return self.images.source

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all images, None where they differ."""
        return self.images.size

    @property
    def fingerprint(self) -> str:
        """Changes whenever a pixel does, or the choice."""
        return hashlib.sha256(repr((self.images.fingerprint, self.indices)).encode()).hexdigest()[:16]

    def resized(self, size: tuple[int, int]) -> Subset:
        """Return the same images at another size."""
        return Subset(self.images.resized(size), self.indices)

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield (indices, images)."""
        own = list(range(len(self)) if indices is None else indices)
        start = 0
        for part, raw in self.images.batches(batch_size, indices=[self.indices[i] for i in own]):
            yield own[start : start + len(part)], raw
            start += len(part)


def spread_over_clusters(clusters: Sequence[str], count: int) -> list[int]:
    """Choose images from as many photographs as there are, in their order.

    Example:
        >>> spread_over_clusters(["a", "a", "b", "b", "c"], 4)
        [0, 1, 2, 4]
    """
    seen: Counter[str] = Counter()
    ranks = []
    for index, cluster in enumerate(clusters):
        ranks.append((seen[cluster], index))
        seen[cluster] += 1
    return sorted(index for _, index in sorted(ranks)[:count])
