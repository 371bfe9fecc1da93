"""What a network is called with, as the user gave it, seen as a set of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from spectral.data.datasets import key_each
from spectral.data.imageset import find_repeated
from spectral.data.loading import group_positions
from spectral.data.structures import join, pick
from spectral.network import find_size, make_inputs
from spectral.network.inputs import Inputs


class GivenImages:
    """What a network is called with, as the user gave it, seen as a set of images.

    Args:
        inputs: of all images.
        source: where they come from.
        labels: of each, where known.
        classes: what they count, where they have names.

    Raises:
        SpectralError: if there are none.

    Example:
        >>> images = GivenImages(make_inputs(torch.rand(3, 3, 8, 9)))
        >>> len(images), images.size, next(images.batches(2))[1].image.shape
        (3, (8, 9), torch.Size([2, 3, 8, 9]))
    """

    prepared = True

    def __init__(
        self,
        inputs: Inputs,
        source: str = "tensor",
        labels: Sequence[int | None] = (),
        classes: list[str] | None = None,
    ) -> None:
        self.inputs, self.source, self.classes = inputs, source, classes
        self.ids = self.clusters = [f"{i:04d}" for i in range(inputs.count)]
        self.labels: list[int | None] = list(labels) or [None] * inputs.count
        self.size = find_size(inputs)

    @property
    def fingerprint(self) -> str:
        """Hash of the shapes, types and values of all tensors."""
        digest = hashlib.sha256()
        for x, _ in self.inputs.every_tensor():
            digest.update(repr((tuple(x.shape), x.dtype)).encode())
            flat = x.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if x.numel() else b"")
        return digest.hexdigest()[:16]

    @property
    def repeated(self) -> list[tuple[str, str]]:
        """Ids of images that are the same as an earlier one, each with that one's."""
        return find_repeated(self.ids, key_each((self.inputs.args, self.inputs.kwargs), len(self)))

    def resized(self, size: tuple[int, int]) -> GivenImages:
        """Return itself: what the user gives is taken as it is."""
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Inputs]]:
        """Yield (indices, inputs)."""
        for part in group_positions(len(self), batch_size, indices):
            yield part, pick_inputs(self.inputs, part)

    def __len__(self) -> int:
        return len(self.ids)


def pick_inputs(inputs: Inputs, indices: Sequence[int]) -> Inputs:
    """Return the inputs of some of the images.

    Example:
        >>> pick_inputs(make_inputs(torch.zeros(3, 1, 4, 4), torch.ones(5)), [2]).image.shape
        torch.Size([1, 1, 4, 4])
    """
    args, kwargs = pick((inputs.args, inputs.kwargs), indices, inputs.count)
    return make_inputs(*args, **kwargs)


def split_sizes(inputs: Inputs) -> Iterator[tuple[list[int], Inputs]]:
    """Take images in a list apart where they have several sizes; yield which they are, and their inputs.

    A detector pads a list to its largest image: what it computes of one would depend on those beside it.

    Example:
        >>> several = make_inputs([torch.zeros(3, 8, n) for n in (8, 8, 6)])
        >>> [own for own, _ in split_sizes(several)]
        [[0, 1], [2]]
    """
    sizes = _list_sizes(inputs)
    for _, alike in groupby(range(len(sizes)), key=sizes.__getitem__):
        own = list(alike)
        yield own, inputs if len(own) == len(sizes) else pick_inputs(inputs, own)


def pick_alike(inputs: Inputs) -> Inputs:
    """Return the inputs of those images in a list that have the size of most: of one size they are a batch.

    Example:
        >>> pick_alike(make_inputs([torch.zeros(3, 8, n) for n in (6, 8, 8)])).count
        2
    """
    sizes = _list_sizes(inputs)
    most = max(sizes, key=sizes.count)
    own = [i for i, size in enumerate(sizes) if size == most]
    return inputs if len(own) == len(sizes) else pick_inputs(inputs, own)


def _list_sizes(inputs: Inputs) -> list[tuple[int, ...]]:
    """List the size of each image; those that aren't in a list have one."""
    if all(batched for _, batched in inputs.every_tensor()):
        return [()] * inputs.count
    return [tuple(pick_inputs(inputs, [i]).image.shape) for i in range(inputs.count)]


def join_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Return the inputs of all images of several.

    Example:
        >>> join_inputs([make_inputs(torch.zeros(1, 4)), make_inputs(torch.ones(2, 4))]).count
        3
    """
    args, kwargs = join([(part.args, part.kwargs) for part in parts], [part.count for part in parts])
    return make_inputs(*args, **kwargs)
