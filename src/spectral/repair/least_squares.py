"""Least squares from sums of products, with a ridge that images left out choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 2048  # places that are in float64 at a time


@dataclass(frozen=True)
class Sums:
    """What least squares need of some places: sums of products, in float64, made in blocks.

    Attributes:
        count: of places.
        power: (G, U, U) of the unknowns' factors; the last is 1 where there is a constant.
        shared: (G, U, O) of factors and what is missing.
        free: whether there is a constant, which no ridge holds.

    Example:
        >>> x = torch.arange(6.0).view(6, 1, 1)
        >>> sums = Sums.of(x, 3 * x.flatten(1) + 1, free=True)
        >>> sums.solve(1e-12).flatten().round(decimals=6).tolist()
        [3.0, 1.0]
    """

    count: int
    power: Tensor
    shared: Tensor
    free: bool

    @classmethod
    def of(cls, design: Tensor, missing: Tensor, free: bool) -> Sums:
        """Sum over places.

        Args:
            design: (places, G, U), what the unknowns are multiplied by.
            missing: (places, G · O), what they are to add.
            free: whether a constant is one of them.
        """
        blocks = zip(design.split(BLOCK), missing.split(BLOCK), strict=True)
        sums = [cls._of_block(*block, free) for block in blocks]
        return sum(sums[1:], sums[0])

    @classmethod
    def _of_block(cls, design: Tensor, missing: Tensor, free: bool) -> Sums:
        factors = nn.functional.pad(design, (0, 1), value=1.0) if free else design
        factors = factors.transpose(0, 1).double()  # (G, places, U)
        wanted = missing.unflatten(1, (len(factors), -1)).transpose(0, 1).double()
        return cls(factors.shape[1], factors.mT @ factors, factors.mT @ wanted, free)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.power + other.power, self.shared + other.shared, self.free)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.count - other.count, self.power - other.power, self.shared - other.shared, self.free)

    def solve(self, ridge: float) -> Tensor:
        """Return the changes of the weights, (G, U, O)."""
        power = self.power.diagonal(dim1=1, dim2=2)
        # The variance, not the power, where there is a constant; what is itself constant has next to none.
        mean = self.power[:, -1].square() / self.count if self.free else torch.zeros_like(power)
        held = torch.maximum(power - mean, 1e-6 * power)
        unknowns = held.shape[1] - self.free
        scale = held[:, :unknowns].mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        weights = torch.zeros_like(held)
        weights[:, :unknowns] = ridge * scale
        system = self.power + torch.diag_embed(weights)
        factor, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):  # rounding has taken what a small ridge left of it
            changes: Tensor = torch.linalg.solve(system, self.shared)
            return changes
        return torch.cholesky_solve(self.shared, factor)

    def gain(self, change: Tensor) -> float:
        """By how much a change makes the sum of squares here less."""
        return float((change * (2 * self.shared - self.power @ change)).sum())


def choose_ridge(folds: Sequence[Sums], whole: Sums, ridges: Sequence[float]) -> float | None:
    """Return the ridge that gains most on images left out, None if none gains anything."""
    gains = dict.fromkeys(ridges, 0.0)
    for fold in folds:
        others = whole - fold
        for ridge in ridges:
            gains[ridge] += fold.gain(others.solve(ridge))
    best = max(gains, key=lambda ridge: gains[ridge])
    return best if gains[best] > 0 else None
