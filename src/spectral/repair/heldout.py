"""How far a network in training is from its teacher, on images that are left out for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError, warn
from spectral.intake import Feed
from spectral.network import run_forward

_LEAST = 1e-30  # a probability that rounds to nothing


def as_share(value: float, caller: str) -> float:
    """Return the share of images that are to be left out.

    Raises:
        SpectralError: if it leaves none.

    Example:
        >>> as_share(1.5, "distill")
        Traceback (most recent call last):
        spectral.errors.SpectralError: distill: held_out must be ≥ 0 and < 1, got 1.5
    """
    if not 0 <= value < 1:
        raise SpectralError(f"{caller}: held_out must be ≥ 0 and < 1, got {value}")
    return float(value)


def leave_out(feed: Feed, share: float) -> tuple[list[int], list[int]]:
    """Return which images are trained on, and which aren't, spread evenly: folders come class by class.

    Args:
        feed: all images.
        share: of the photographs that are left out, one at least; 0 for none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        >>> leave_out(Feed(net.eval(), torch.rand(6, 3, 8, 8), caller="example"), 0.3)
        ([0, 2, 3, 5], [1, 4])
    """
    every = list(range(len(feed.images)))
    groups: list[object] = [*feed.images.clusters]
    if len(set(groups)) < 2:  # of one photograph: some of its images must do
        groups = [*every]
    order = list(dict.fromkeys(groups))
    count = min(max(1, round(share * len(order))), len(order) - 1) if share else 0
    chosen = {order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)}
    if share and not count:
        warn(f"{feed.caller}: of a single image none is left out, so what it is trained to isn't judged")
    return [i for i in every if groups[i] not in chosen], [i for i in every if groups[i] in chosen]


class Nearest:
    """The weights with which a network was nearest to its teacher on images that it isn't trained on.

    Args:
        feed: all images, on their way to the network.
        teacher: the network to learn from.
        left_out: which images; of none nothing is judged, and nothing kept.
        batch_size: images at a time.
        trained: the weights that change.
        on_check: is told what is found.
    """

    def __init__(
        self,
        feed: Feed,
        teacher: nn.Module,
        left_out: Sequence[int],
        batch_size: int,
        trained: Sequence[nn.Parameter],
        on_check: Callable[[int, float], None] | None,
    ) -> None:
        self._feed, self._teacher, self._left_out, self._batch_size = feed, teacher, left_out, batch_size
        self._trained, self._tell = trained, on_check or (lambda steps, found: None)
        self._found: list[tuple[int, float]] = []
        self._weights: list[Tensor] = []
        self._targets: list[Tensor] = []  # of each batch, what the teacher says: it doesn't change

    @torch.no_grad()
    def check(self, steps: int) -> None:
        """Measure the divergence after so many steps, and keep the weights if it is the least so far."""
        if not self._left_out:
            return
        total = 0.0
        batches = self._feed.batches(self._batch_size, indices=self._left_out)
        for number, (_, batch) in enumerate(batches):
            if number == len(self._targets):
                said = run_forward(self._teacher, batch, type(self._teacher).__name__)
                self._targets.append(self._feed.scores(said, batch.count).probabilities())
            given = self._feed.predict(batch)
            target = require_same(self._targets[number], given, self._feed)
            total += len(given) * float(diverge(given, target))
        divergence = total / len(self._left_out)
        divergence = divergence if math.isfinite(divergence) else math.inf
        if not self._found or divergence < min(found for _, found in self._found):
            self._weights = [x.detach().clone() for x in self._trained]
        self._found.append((steps, divergence))
        self._tell(steps, divergence)

    def restore(self) -> None:
        """Put the weights back, and warn if they are those that the network came with."""
        if not self._found:
            return
        with torch.no_grad():
            for x, kept in zip(self._trained, self._weights, strict=True):
                x.copy_(kept)
        (_, before), (steps, after) = self._found[0], self._found[-1]
        if before <= min(found for _, found in self._found):
            warn(
                f"{self._feed.caller}: {self._feed.name} is given back as it was: {steps} step(s) bring it "
                f"no nearer to its teacher on {len(self._left_out)} image(s) left out (divergence "
                f"{before:.3g} before, {after:.3g} after); lower max_lr, tune less (tune='norms') or give "
                f"more images"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that is known, for `load_state_dict`."""
        return {"found": self._found, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was known."""
        self._found, self._weights = [tuple(found) for found in state["found"]], state["weights"]
        for found in self._found:
            self._tell(*found)


def require_same(target: Tensor, given: Tensor, feed: Feed) -> Tensor:
    """Return what the teacher says, if it is of the same classes.

    Raises:
        SpectralError: if it is of others.
    """
    if given.shape != target.shape:
        raise SpectralError(
            f"{feed.caller}: {feed.name} gives scores of shape {tuple(given.shape)}, the teacher "
            f"{tuple(target.shape)}; pass a teacher of the same classes"
        )
    return target


def diverge(given: Tensor, target: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of probabilities (B, K) from the teacher's."""
    return F.kl_div(given.clamp_min(_LEAST).log(), target, reduction="batchmean")
