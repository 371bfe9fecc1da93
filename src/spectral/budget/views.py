"""Images that move: by one pixel, by half of one, at random, or as windows of a larger picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spectral.causes import Offset
from spectral.errors import check_choice
from spectral.intake import Feed
from spectral.network import list_moves, map_planes, roll_inputs
from spectral.network.inputs import Inputs
from spectral.numerics.finer import remove_nyquist
from spectral.stability import fourier_shift

RANDOM_SHIFTS = 4


@dataclass(frozen=True)
class View:
    """A batch of images, as they stay or moved.

    Attributes:
        inputs: ready for the network.
        move: by how many samples along each kind of axis they are the first view, moved circularly; None
            where they are no such.
    """

    inputs: Inputs
    move: Offset | None = None


# (a batch ready for the network, the feed) → the batch as it stays, and moved
Mover = Callable[[Inputs, Feed], list[View]]


@dataclass(frozen=True)
class Shifts:
    """How images move.

    Attributes:
        views: gives a batch's views.
        closed: the same moves without anything that enters over a border, circular ones of the first view;
            None where ``views`` has them.
    """

    views: Mover
    closed: Mover | None = None


def choose_shifts(shifts: str, stride: Mapping[str, int], seed: int, caller: str) -> Shifts:
    """Return how images move.

    Args:
        shifts: ``"pixel"``, ``"half"``, ``"random"`` or ``"crop"``.
        stride: the network's total stride along each axis, the farthest that random shifts go.
        seed: of the random ones.
        caller: whose name messages begin with.

    Raises:
        SpectralError: for unknown shifts.
    """
    known: dict[str, Shifts] = {
        "pixel": Shifts(_roll), "half": Shifts(_move_half), "crop": Shifts(_crop, _roll_window),
        "random": Shifts(partial(_roll_randomly, stride=dict(stride), seed=seed)),
    }  # fmt: skip
    check_choice(shifts, known, "shifts", caller)
    return known[shifts]


def relate(views: Sequence[View]) -> list[tuple[int, Offset] | None]:
    """Tell of each view of which earlier one it is a moved one, and by how much.

    Of several the one whose move halves most often to whole samples: it is one on coarser lattices too.

    Example:
        >>> x = Inputs((torch.zeros(1, 3, 4, 4),), {}, 1)
        >>> relate([View(x, {}), View(x, {"h": -1}), View(x, {"h": 1})])
        [None, (0, {'h': -1}), (1, {'h': 2})]
    """
    found: list[tuple[int, Offset] | None] = []
    for i, view in enumerate(views):
        moves = [
            (j, _subtract(view.move, other.move)) for j, other in enumerate(views[:i])
            if view.move is not None and other.move is not None
        ]  # fmt: skip
        found.append(max(moves, key=lambda pair: _divide(pair[1].values()), default=None))
    return found


def _subtract(move: Offset, other: Offset) -> Offset:
    return {kind: move.get(kind, 0) - other.get(kind, 0) for kind in {**other, **move}}


def _divide(steps: Iterable[int]) -> int:
    """Return the largest power of two that divides all of some steps; of zeros alone more than any does."""
    return min((step & -step for step in steps if step), default=2**62)


def _roll(inputs: Inputs, feed: Feed) -> list[View]:
    layout = feed.layout_of(inputs)
    moves = list_moves(inputs, layout)
    moved = [View(roll_inputs(inputs, move, layout), {move.kind: move.step}) for move in moves]
    return [View(inputs, {}), *moved]


def _move_half(inputs: Inputs, feed: Feed) -> list[View]:
    """Half a pixel each way, of the picture without its Nyquist bins: moved by half a pixel they are gone."""
    steps = [(0.0, 0.5), (0.0, -0.5)]
    if "h" in feed.extents:
        steps = [(0.5, 0.0), (-0.5, 0.0), *steps]
    still = _map(inputs, feed, lambda x: remove_nyquist(remove_nyquist(x, -2), -1))
    return [View(still), *(View(_map(still, feed, partial(fourier_shift, shift=step))) for step in steps)]


def _roll_randomly(inputs: Inputs, feed: Feed, stride: Mapping[str, int], seed: int) -> list[View]:
    rng = np.random.default_rng(seed)
    reach = [stride.get("h", 1) if "h" in feed.extents else 0, stride.get("w", 1)]
    drawn: list[tuple[int, int]] = []
    while len(drawn) < RANDOM_SHIFTS:
        step = (int(rng.integers(-reach[0], reach[0] + 1)), int(rng.integers(-reach[1], reach[1] + 1)))
        if any(step):
            drawn.append(step)
    return _roll_by(inputs, feed, drawn)


def _crop(inputs: Inputs, feed: Feed) -> list[View]:
    """Windows of a picture, one pixel smaller on each side; what enters over a border is the world's."""
    rows = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)) if "h" in feed.extents else ((0, 1), (0, 0), (0, 2))
    cut = partial(_cut, high=feed.extents.get("h", 1), wide=feed.extents["w"])
    return [View(_map(inputs, feed, partial(cut, top=top, left=left))) for top, left in rows]


def _roll_window(inputs: Inputs, feed: Feed) -> list[View]:
    """The window in the middle, moved circularly as the others lie to it."""
    steps = [(0, 1), (0, -1)]
    if "h" in feed.extents:
        steps = [(1, 0), (-1, 0), *steps]
    return _roll_by(_crop(inputs, feed)[0].inputs, feed, steps)


def _roll_by(inputs: Inputs, feed: Feed, steps: Sequence[tuple[int, int]]) -> list[View]:
    """Pictures, and all moved circularly by each of some steps along rows and columns."""
    moved = ((_map(inputs, feed, partial(torch.roll, shifts=s, dims=(-2, -1))), s) for s in steps)
    return [View(inputs, {}), *(View(own, {"h": s[0], "w": s[1]}) for own, s in moved)]


def _cut(x: Tensor, top: int, left: int, high: int, wide: int) -> Tensor:
    high = high - 2 if high > 1 else high
    return x[..., top : top + high, left : left + wide - 2].contiguous()


def _map(inputs: Inputs, feed: Feed, function: Callable[[Tensor], Tensor]) -> Inputs:
    return map_planes(inputs, function, feed.layout_of(inputs))


def find_features(output: object, count: int) -> Tensor | None:
    """Return one vector per image of an output without class scores; of a map its mean over the places.

    Example:
        >>> find_features((torch.ones(2, 5, 4, 4), None), 2).shape
        torch.Size([2, 5])
    """
    candidates: Sequence[object] = (
        list(output.values()) if isinstance(output, Mapping)
        else output if isinstance(output, tuple | list) else [output]
    )  # fmt: skip
    for x in candidates:
        if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 and len(x) == count:
            return x if x.ndim == 2 else x.flatten(2).mean(-1)
    return None
