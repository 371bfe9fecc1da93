"""Decoded images kept in memory, for the next network that sees the same ones."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

MOST_BYTES = 2**32
_WHITE = 255


class KeptImages:
    """Decoded images by what they are, of so many bytes at most; those that come first stay.

    Images of 8-bit pixels are kept as such and come back as they were to the last bit.

    Args:
        limit: bytes; by default a quarter of the memory that is free, and 4 GiB at most.

    Example:
        >>> kept = KeptImages()
        >>> kept.add(["a", "b"], torch.tensor([[[[0.0]]], [[[1.0]]]]))
        >>> kept.find(["b", "a"]).flatten().tolist(), kept.holds(["a", "c"])
        ([1.0, 0.0], False)
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _find_room() if limit is None else limit
        self._images: dict[Hashable, Tensor] = {}
        self.nbytes = 0

    def holds(self, keys: Sequence[Hashable]) -> bool:
        """Whether all of some images are kept; none goes again."""
        return all(key in self._images for key in keys)

    def find(self, keys: Sequence[Hashable]) -> Tensor:
        """Return a batch of kept images."""
        return torch.stack([_to_unit(self._images[key]) for key in keys])

    def add(self, keys: Sequence[Hashable], batch: Tensor) -> None:
        """Keep a batch's images as far as there is room."""
        pixels = (batch * _WHITE).round().to(torch.uint8)
        exact = (_to_unit(pixels) == batch).flatten(1).all(1).tolist()
        for number, key in enumerate(keys):
            image = (pixels if exact[number] else batch)[number]
            if key not in self._images and self.nbytes + image.nbytes <= self._limit:
                self._images[key] = image.clone()
                self.nbytes += image.nbytes


def _to_unit(image: Tensor) -> Tensor:
    return image / torch.tensor(_WHITE, dtype=torch.float32) if image.dtype == torch.uint8 else image


def _find_room() -> int:
    with suppress(ValueError, OSError, AttributeError):
        return min(MOST_BYTES, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    return MOST_BYTES // 4
