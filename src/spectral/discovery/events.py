"""One place where resolution drops, as a forward pass showed it, and the numbers that labels tell of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spectral.axes import BATCH, IMAGE_AXES, MIXED, Factor, Labels, Layout, all_factors
from spectral.operators import Geometry
from spectral.operators.chain import Chain
from spectral.tracing.places import Ending, Place, Steps
from spectral.tracing.tracker import Frame

PLACES = {"t": "frames", "h": "rows", "w": "columns", MIXED: "places"}  # what an axis holds, in words


@dataclass(eq=False)
class Event:
    """One place where resolution drops (or everything does: a global pool), as the forward pass showed it.

    Attributes:
        frame: the call in which it ran.
        family: what ``index`` counts it with.
        index: which of its family in that call.
        geometry: its numbers.
        input_size: of the maps that enter.
        output_size: of those that leave.
        channels: of the maps that enter.
        source: the tensor that it decimates.
        output: what leaves.
        spread: maps of one image before and after each image on the batch axis.
        own: steps from the module's forward to it.
        turn: which of its family at this place.
        place: where in the model's code it ran.
        layouts: how source and output are maps, where they aren't (B, C, H, W).
        prepared: whether its module did no more to its input than move samples.
        returned: whether its module returns its output.
        used: whether anything has read its output; what only is written to loses nothing.
        root: the complex map of whose real or imaginary part it is.
        alone: whether something used a slice by itself, and not with the other phases.
        kept: whether what it made channels of has been read as channels.
        dropped: whether it turned out to be part of another, or none.
        chain: what follows it and commutes with it.
        no_chain: why nothing does.
        ending: where its output appears, if several operators make it.
        image_size: of the image that the model was called with, along its spatial axes.
    """

    frame: Frame
    family: str
    index: int
    geometry: Geometry
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    channels: int
    source: Tensor
    output: Tensor
    spread: tuple[int, int] = (1, 1)
    own: Steps = ()
    turn: int = 0
    place: Place = field(default_factory=Place)
    layouts: tuple[Layout, Layout] | None = None
    prepared: bool = False
    returned: bool = False
    used: bool = True
    alone: bool = False
    kept: bool = False
    root: Tensor | None = None
    dropped: bool = False
    chain: Chain | None = None
    no_chain: str = ""
    ending: Ending | None = None
    image_size: tuple[int, ...] = ()


def find_image_axes(labels: Labels) -> list[str]:
    """Return the axes of its maps: rows and columns (a signal has one row), time where there is any."""
    timed = any(f.kind == "t" for f in all_factors(labels))
    return [kind for kind in IMAGE_AXES if timed or kind != "t"]


def find_size(factors: Sequence[Factor], axes: Sequence[str]) -> tuple[int, ...]:
    """Multiply the extents of each image axis; rows and columns that are mixed count as one row.

    A spectrum, or what a crop has left of it, counts as the samples that it was made of; samples that
    several windows have count once.
    """
    mixed = any(f.kind == MIXED for f in factors)
    kinds = [axes[-1] if mixed and f.spatial else f.kind for f in factors]
    pairs = list(zip(factors, kinds, strict=True))
    return tuple(_count_samples([f for f, k in pairs if k == axis and f.spatial]) for axis in axes)


def _count_samples(factors: Sequence[Factor]) -> int:
    every = math.prod(f.spectrum or f.extent for f in factors)
    lattice = [f for f in factors if f.extent > 1 and f.kind != MIXED and not f.spectrum]
    if len(lattice) < 2:
        return every
    span = sum((f.extent - 1) * f.step for f in lattice) / min(f.step for f in lattice)
    return min(every, int(span) + 1)


def find_steps(inner: Sequence[Factor], outer: Sequence[Factor], axes: Sequence[str]) -> tuple[int, ...]:
    """Count the samples from one window to the next, along each axis; one window alone is its own stride."""
    steps = []
    for axis in axes:
        parts = [f for f in inner if f.kind == axis]
        apart = min((f.step for f in parts), default=1)
        whole = apart * math.prod(f.extent for f in parts)
        steps.append(int(min((f.step for f in outer if f.kind == axis), default=whole) / apart))
    return tuple(steps)


def count_channels(labels: Labels) -> int:
    """Multiply the extents of what is neither an image axis nor the batch."""
    return math.prod(f.extent for f in all_factors(labels) if not f.spatial and f.kind != BATCH)


def find_spread(labels: Labels) -> tuple[int, int] | None:
    """Find what stands before and after the images on the batch axis; None if they are elsewhere."""
    first = labels[0].factors
    position = next((i for i, f in enumerate(first) if f.kind == BATCH), None)
    if position is None:
        elsewhere = any(f.kind == BATCH for f in all_factors(labels[1:]))
        return None if elsewhere else (1, 1)
    before = math.prod(f.extent for f in first[:position])
    return before, math.prod(f.extent for f in first[position + 1 :])
