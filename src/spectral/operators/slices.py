"""Slices with a step: bare decimation."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from spectral.operators.base import ALL, Arguments, Decimation, Geometry, Operator, Size
from spectral.operators.registry import register_operator


@register_operator
class Slice(Operator):
    """x[..., a::s]: the dense map is the tensor itself."""

    kind = "slice"
    names = ("aten::slice.Tensor",)
    rule = "the map itself"
    acts_on = "slices"
    waits = True
    obstacle = None

    def read(self, a: Arguments) -> Decimation | None:
        """Read a slice with a step of any axis; most are not spatial."""
        x, axis, step = a["self"], a["dim"], a["step"]
        if step < 2 or x.ndim < 2 or not x.is_floating_point():
            return None
        start = a["start"] or 0
        start = max(start + x.shape[axis], 0) if start < 0 else start
        return Decimation(Geometry(self.kind, (step,), phase=(start,), axes=(axis % x.ndim,)), x)

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Return the map itself."""
        return d.input[images, channels]

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Compare the axes that were sliced: a slice as it runs doesn't say which they are."""
        sliced = [(s, p) for s, p in zip(found.stride, found.phase, strict=True) if s > 1]
        return sorted(zip(ran.stride, ran.phase, strict=True)) == sorted(sliced)

    def place(self, d: Decimation, found: Geometry) -> Decimation:
        """Say which image axes the slice is of."""
        return replace(d, geometry=found)


def merge_slices(first: Decimation, second: Decimation) -> Decimation:
    """Join x[:, :, a::s] and [:, :, :, b::t], which Python writes as one indexing and torch as two calls."""
    g, h = first.geometry, second.geometry
    geometry = replace(g, stride=g.stride + h.stride, phase=g.phase + h.phase, axes=g.axes + h.axes)
    return replace(first, geometry=geometry)
