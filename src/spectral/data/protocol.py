"""What a set of images is to all that measures on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Images(Protocol):
    """A set of images; `spectral.load_images` returns one, and `adapt_images` makes one of anything.

    One whose attribute ``prepared`` is true holds what a network is called with, in any form, instead of
    images in [0, 1] that are still to be normalised.
    """

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
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield (indices, images (B, 3, H, W) in [0, 1], or what the network is called with)."""

    def __len__(self) -> int: ...
