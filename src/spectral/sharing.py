"""Analyses of images one by one, shared among the ranks of a process group: the mechanism of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from spectral.data.labels import digest_labels
from spectral.errors import SpectralError
from spectral.files.sameness import find_difference
from spectral.identity import Identity, identify
from spectral.network import undisturbed
from spectral.network.inputs import Inputs
from spectral.processes.ranks import Ranks, find_ranks

T = TypeVar("T")


class Source(Protocol):
    """Images on their way to a network, see `spectral.intake.Feed`."""

    caller: str
    name: str
    model: Any
    images: Any

    @property
    def example(self) -> Inputs:
        """The first image, ready for the network."""

    def describe_preparation(self) -> dict[str, Any] | None:
        """Say what images go through."""

    def describe_logits(self) -> str | None:
        """Say how class scores are read."""


class Sharing:
    """Which batches of an analysis are whose, and all that was found, in the order of the images.

    Ranks share whole batches: an image is seen with the same others however many ranks there are, so that
    their number changes no value.

    Args:
        feed: the images on their way to the network.
        batch_size: images per forward pass.

    Raises:
        SpectralError: if ranks see different images, labels or networks, or prepare them differently.

    Attributes:
        ranks: who shares.
        indices: which images are this rank's.

    Example:
        >>> import torch
        >>> from spectral.intake import Feed
        >>> feed = Feed(torch.nn.Flatten(), torch.rand(3, 1, 4, 4), caller="example")
        >>> share = Sharing(feed, 2)
        >>> share.run(feed.batches, lambda _, inputs: inputs.count, "counting", progress=False)
        [2, 1]
    """

    _seen = 0  # of its images, this rank

    def __init__(self, feed: Source, batch_size: int) -> None:
        self.ranks, self._batch_size, self._model = find_ranks(), batch_size, feed.model
        every = range(len(feed.images))
        self._total = len(every)
        batches = [every[start : start + batch_size] for start in every[::batch_size]]
        self.indices = [image for batch in self.ranks.split(batches) for image in batch]
        compare_feeds(feed, batch_size=batch_size)

    def bar(self, doing: str, progress: bool, leave: bool = True) -> tqdm[Any]:
        """Return a bar that counts images, shown on one rank if it is asked for."""
        return tqdm(
            total=self._total, desc=doing, unit="image", disable=not self.shows(progress), leave=leave
        )

    def shows(self, progress: bool) -> bool:
        """Say whether this is the rank that shows a bar, if one is asked for."""
        return progress and self.ranks.first

    def run(
        self,
        read: Callable[..., Iterable[tuple[list[int], Any]]],
        look: Callable[[list[int], Any], T],
        doing: str,
        progress: bool,
        leave: bool = True,
    ) -> list[T]:
        """Look at every batch without gradients, the network left as it was; return what all ranks' gave.

        Args:
            read: gives batches as (indices, batch), as `spectral.intake.Feed.batches` does.
            look: what is made of one.
            doing: what the bar says.
            progress: show it.
            leave: whether it stays when it is full.
        """
        batches = self.read(read)
        with undisturbed(self._model), torch.no_grad(), self.bar(doing, progress, leave) as bar:
            return self.gather((look(*batch) for batch in batches), bar)

    def read(self, read: Callable[..., Iterable[tuple[list[int], T]]]) -> Iterator[tuple[list[int], T]]:
        """Yield this rank's batches, which may come in parts, and count their images: `gather` tells of it.

        Args:
            read: as for `run`.
        """
        self._seen = 0
        for indices, batch in read(self._batch_size, indices=self.indices):
            self._seen += len(indices)
            yield indices, batch

    def gather(self, found: Iterable[T], bar: tqdm[Any] | None = None) -> list[T]:
        """Return what the batches of all ranks gave.

        Args:
            found: what this rank's own give, one after the other as `read` yields them.
            bar: counts the images of all.

        Raises:
            RanksError: if a rank failed or ended.
        """
        own: list[T] = []
        before = 0 if bar is None else bar.n
        for total in self._follow(found, own):
            if bar is not None:
                bar.update(before + total - bar.n)
        return [one for part in self.ranks.exchange(own) for one in part]

    def _follow(self, found: Iterable[T], own: list[T]) -> Iterator[int]:
        """Yield how many images all have seen, until they have seen theirs."""
        for one in found:
            own.append(one)
            yield self.ranks.advance(self._seen)
        yield from self.ranks.await_others(len(self.indices))


def compare_feeds(feed: Source, **options: Any) -> None:
    """Make sure that all ranks look at the same images with the same network.

    An analysis of several parts calls this first: each part would be refused for itself.

    Args:
        feed: the images on their way to the network.
        options: what else is to be the same.

    Raises:
        RanksError: naming what a rank has that the first hasn't.
    """
    ranks, images = find_ranks(), feed.images
    if ranks.count > 1:
        network = identify(feed.model, feed.example)
        config = {
            "caller": feed.caller, "model": feed.name, "weights": network.weights,
            "structure": network.structure, "image_count": len(images),
            "images_fingerprint": getattr(images, "fingerprint", None),
            "labels": digest_labels(images.labels, getattr(images, "classes", None)),
            "preprocessing": feed.describe_preparation(), "logits": feed.describe_logits(), **options,
        }  # fmt: skip
        compare_ranks(ranks, config, network)


def compare_ranks(ranks: Ranks, config: Mapping[str, Any], network: Identity) -> None:
    """Make sure that all ranks measure the same.

    Args:
        ranks: all of them call this.
        config: what determines every value.
        network: which it is.

    Raises:
        RanksError: naming what a rank has that the first hasn't.
    """
    before = ranks.exchange({"config": config, "network": network.describe()})[0]
    with ranks.agreeing():
        difference = find_difference(before, config, network)
        if difference is not None:
            raise SpectralError(
                f"rank 0 measures {difference}; give every rank the same network, images and arguments"
            )
