"""How a tensor is a batch of maps, whatever the order of its axes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from spectral.axes.labels import BATCH, IMAGE_AXES, MIXED, Labels, extent_of


@dataclass(frozen=True)
class Layout:
    """How a tensor is a batch of maps: its axes split into factors, and their order in (B, C, H, W).

    ``shape`` has −1 where the batch is. A tensor whose axes are whole (no factors) may change its size.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    size: tuple[int, ...]
    whole: bool

    def arrange(self, x: Tensor) -> Tensor:
        """Return the tensor as maps (B, C, H, W); a signal's have one row.

        Raises:
            RuntimeError: if the tensor can't be split like the one the layout was made for.
        """
        maps = (x if self.whole else x.reshape(self.shape)).permute(self.order)
        size = maps.shape[-len(self.size) :] if self.whole else self.size
        maps = maps.reshape(len(maps), -1, *size)
        return maps if maps.ndim > 3 else maps.unsqueeze(-2)


def make_plain(shape: tuple[int, ...]) -> Layout:
    """Return the layout of a tensor that is a batch of maps (B, C, H, W) already.

    Example:
        >>> make_plain((2, 3, 8, 6)).size
        (8, 6)
    """
    return Layout((-1, *shape[1:]), tuple(range(len(shape))), shape[2:], whole=True)


def find_layout(labels: Labels) -> Layout | None:
    """Find the order of a tensor's factors that makes maps of it; None if rows or columns can't be told.

    Samples of windows that count as channels are channels.

    Example:
        >>> import torch
        >>> from spectral.axes.labels import single
        >>> nhwc = single("b", 2), single("h", 8), single("w", 6), single("c", 3)
        >>> find_layout(nhwc).arrange(torch.zeros(2, 8, 6, 3)).shape
        torch.Size([2, 3, 8, 6])
    """
    factors = [f for axis in labels for f in axis.factors]
    kinds = {f.kind for f in factors if not f.folded}
    if (
        any(f.parts for f in factors)
        or "w" not in kinds
        or MIXED in kinds
        or sum(f.kind == BATCH for f in factors) != 1
    ):
        return None
    numbers = range(len(factors))
    batch = next(i for i in numbers if factors[i].kind == BATCH)
    axes = [kind for kind in IMAGE_AXES if kind in kinds]
    spatial = []
    for a in axes:
        own = [i for i in numbers if factors[i].kind == a and not factors[i].folded]
        own = [i for i in own if factors[i].extent > 1] or own[:1]  # one sample of a window lies anywhere
        spatial.append(sorted(own, key=lambda i: -factors[i].step))
    for run in spatial:
        if any(factors[i].step != factors[j].step * factors[j].extent for i, j in pairwise(run)):
            return None  # windows that overlap, or samples left out between them
    if any(factors[i].spectrum for run in spatial for i in run):
        return None
    placed = {batch, *(i for run in spatial for i in run)}
    other = [i for i in numbers if i not in placed]
    return Layout(
        shape=tuple(-1 if i == batch else factors[i].extent for i in numbers),
        order=(batch, *other, *(i for run in spatial for i in run)),
        size=tuple(extent_of([factors[i] for i in run]) for run in spatial),
        whole=all(len(parts) == 1 for parts in (*(axis.factors for axis in labels), *spatial)),
    )
