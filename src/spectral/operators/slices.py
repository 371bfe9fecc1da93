"""Bare decimation: slices with a step, and samples that are picked at equal distances."""

from __future__ import annotations

from dataclasses import replace

import torch
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
        if step < 2 or x.ndim < 2 or not (x.is_floating_point() or x.is_complex()):
            return None
        start = a["start"] or 0
        start = max(start + x.shape[axis], 0) if start < 0 else start
        return Decimation(Geometry(self.kind, (step,), phase=(start,), axes=(axis % x.ndim,)), x)

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Return the map itself."""
        return d.input[images, channels]

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Compare the axes that were sliced: a slice as it runs doesn't say which they are.

        Of channels that are windows it doesn't say what phases they are either; of several slices that are
        joined the first doesn't say what the others are.
        """
        if found.kind != self.kind:
            return True
        sliced = [(s, p) for s, p in zip(found.stride, found.phase, strict=True) if s > 1]
        return sorted(zip(ran.stride, ran.phase, strict=True)) == sorted(sliced)

    def joins(self, first: Geometry, second: Geometry) -> bool:
        """Join slices of different axes: x[::2][1::2] are two."""
        return first.kind == second.kind and second.axes[0] not in first.axes

    def place(self, d: Decimation, found: Geometry) -> Decimation:
        """Say which image axes the slice is of."""
        return replace(d, geometry=found)


class Pick(Operator):
    """Samples picked at equal distances: the dense map is the tensor itself."""

    rule = "the map itself"
    acts_on = "picks"
    obstacle = "it picks samples by their positions, not with a stride that could be taken off"

    def read(self, a: Arguments) -> Decimation | None:
        """Read a pick from any tensor; what it is of only the labels tell."""
        x = a["self"]
        if x.ndim < 2 or not (x.is_floating_point() or x.is_complex()):
            return None
        return Decimation(Geometry(self.kind, (0,), phase=(0,), axes=self.find_axes(a)), x)

    def find_axes(self, a: Arguments) -> tuple[int, ...]:
        """Return the axes from which it picks, where the call says so."""
        return (a["dim"] % a["self"].ndim,) if "dim" in a else ()

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Return the map itself."""
        return d.input[images, channels]

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout: a pick as it runs doesn't say of which lattice it is."""
        return True


@register_operator
class Select(Pick):
    """One entry of an axis: of the samples inside windows that a view has cut, a phase."""

    kind = "select"
    family = "select"
    names = ("aten::select.int",)
    waits = True

    def read(self, a: Arguments) -> Decimation | None:
        """Read a selection from any axis but the first, where images are."""
        return super().read(a) if a["dim"] % max(a["self"].ndim, 1) else None


@register_operator
class Unbind(Operator):
    """All entries of an axis, each by itself: which of them are used tells what is left of it."""

    kind = "unbind"
    family = "unbind"
    names = ("aten::unbind.int",)
    acts_on = "entries"

    def read(self, a: Arguments) -> Decimation | None:
        """Read it from any tensor; what it is of only the labels tell."""
        x = a["self"]
        if x.ndim < 2 or not x.is_floating_point():
            return None
        return Decimation(Geometry(self.kind, (0,), phase=(0,), axes=(a["dim"] % x.ndim,)), x)

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout: which entries are used is seen where they are."""
        return True


@register_operator
class Phase(Pick):
    """A slice of channels that windows were moved to: a phase of the map, which lies on its lattice."""

    kind = "phase"
    runs_as = "slice"


@register_operator
class Index(Pick):
    """x[…, index] and index_select; where the index is no progression there is no lattice."""

    kind = "index"
    family = "index"
    names = ("aten::index.Tensor", "aten::index_select")
    reason = "its samples are picked at positions that are no progression, or that only the data tell"

    def find_axes(self, a: Arguments) -> tuple[int, ...]:
        """Return the axes that have an index; a mask has as many axes as it takes."""
        if "indices" not in a:
            return super().find_axes(a)
        position, axes = 0, list[int]()
        for index in a["indices"]:
            width = index.ndim if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
            axes += range(position, position + width) if index is not None else ()
            position += width
        return tuple(axes)


@register_operator
class Gather(Pick):
    """gather and take_along_dim; where the positions are no progression there is no lattice."""

    kind = "gather"
    family = "gather"
    names = ("aten::gather",)
    reason = "its samples are picked at positions that are no progression, or that only the data tell"


@register_operator
class StridedView(Pick):
    """as_strided with constant steps."""

    kind = "strided_view"
    family = "strided_view"
    names = ("aten::as_strided",)
    reason = "its samples are picked by their distance in memory, and are no lattice"


def merge_slices(first: Decimation, second: Decimation) -> Decimation:
    """Join x[:, :, a::s] and [:, :, :, b::t], which Python writes as one indexing and torch as two calls.

    Example:
        >>> import torch
        >>> from spectral.operators import parse
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> rows = parse(torch.ops.aten.slice.Tensor, (x, 2, 0, 8, 2), {})
        >>> columns = parse(torch.ops.aten.slice.Tensor, (x[:, :, ::2], 3, 1, 8, 4), {})
        >>> merge_slices(rows, columns).geometry.stride
        (2, 4)
    """
    g, h = first.geometry, second.geometry
    geometry = replace(g, stride=g.stride + h.stride, phase=g.phase + h.phase, axes=g.axes + h.axes)
    return replace(first, geometry=geometry)
