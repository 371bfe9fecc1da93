"""Counting places of an image: how many are distinct, along each axis and together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Places = list[Tensor]
"""One coordinate per spatial axis, each of the shape of the tensor it describes; NaN where there is none."""

_WIDER = 1.15  # how much the distance between neighbours must grow: less is rounding at a border


@dataclass(frozen=True)
class Count:
    """How many places: together, and along each axis, which ones and the mean step between neighbours."""

    places: int
    values: tuple[tuple[int, ...], ...]
    steps: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many there are along each axis."""
        return tuple(map(len, self.values))


def count_places(places: Places) -> Count:
    """Count distinct places: over all axes together, and along each axis with the step between them."""
    kept = [c.reshape(-1) for c in _drop_constant_axes(places)]
    known = ~torch.stack([c.isnan() for c in kept]).any(0)
    if not bool(known.any()):
        return Count(0, ((),) * len(places), (0.0,) * len(places))
    rounded = [(c[known] * 64).round().long() for c in kept]
    along: list[tuple[int, ...]] = []
    steps = []
    joint = torch.zeros_like(rounded[0])
    for c in rounded:
        values = c.unique()
        along.append(tuple(values.tolist()))
        steps.append(float(values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else 0.0)
        joint = joint * (1 << 21) + (c - values[0])
    return Count(len(joint.unique()), tuple(along), tuple(steps))


def _drop_constant_axes(places: Places) -> Places:
    """Leave out axes along which nothing changes, such as channels: most of the work of counting."""
    for axis in range(places[0].ndim):
        if places[0].shape[axis] > 1 and all(_is_constant(c, axis) for c in places):
            places = [c.narrow(axis, 0, 1) for c in places]
    return places


def _is_constant(c: Tensor, axis: int) -> bool:
    if c.stride(axis) == 0:
        return True
    first = c.narrow(axis, 0, 1)
    last = c.narrow(axis, c.shape[axis] - 1, 1)
    return all(bool(((d == first) | (d.isnan() & first.isnan())).all()) for d in (last, c))


def is_crop(before: Count, after: Count) -> bool:
    """Whether places are missing at the border alone: neighbours are as far from each other as before."""
    whole = after.places >= 0.999 * math.prod(after.sizes)
    axes = zip(before.values, after.values, before.steps, after.steps, strict=True)
    near = all(a == b or (len(a) > 1 and (_is_run(a, b) or t <= _WIDER * s)) for b, a, s, t in axes)
    return whole and near


def _is_run(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether values are neighbours among others, however far apart these are."""
    first = whole.index(part[0]) if part[0] in whole else 0
    return part == whole[first : first + len(part)]
