"""Reductions over windows of one axis and then of another: together they are one pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import Tensor

from spectral.axes import SIZES, Call
from spectral.discovery.events import Event
from spectral.tracing.places import Ending, Spot
from spectral.tracing.tensors import TensorTable

_KINDS = (
    "window_mean",
    "window_sum",
    "window_max",
    "window_min",
)  # those of a part and of the whole are alike


class Separable:
    """Follows what a reduction gave, through views, to the next reduction that alone reads it."""

    def __init__(self) -> None:
        self._made: TensorTable[Event] = TensorTable()  # tensor → the event that gave it
        self._readers: Counter[Event] = Counter()
        self._pairs: list[tuple[Event, Event, Spot]] = []

    def note(self, event: Event, spot: Spot) -> None:
        """Begin at a reduction, which ran at a spot, and note which one it follows."""
        if event.geometry.kind not in _KINDS or event.geometry.reason is not None:
            return
        first = self._made.get(event.source)
        if first is not None and _is_other_axis(first, event):
            self._pairs.append((first, event, spot))
        self._made[event.output] = event

    def follow(self, call: Call) -> None:
        """Follow an operator that ran."""
        if not len(self._made) or call.name in SIZES:
            return
        for x in call.inputs:
            event = self._made.get(x)
            if event is not None and call.facts.is_view:
                for y in call.outputs:
                    self._made[y] = event
            else:
                self.read(x)

    def read(self, x: Tensor) -> None:
        """Note that a tensor is read, or returned."""
        event = self._made.get(x)
        if event is not None:
            self._readers[event] += 1

    def finish(self) -> None:
        """Let the first of two reductions stand for both."""
        for first, second, spot in self._pairs:
            g, h = first.geometry, second.geometry
            if self._readers[first] != 1 or first.dropped or second.dropped or g.reason or h.reason:
                continue
            stride, kernel = (
                tuple(a * b for a, b in zip(*pair, strict=True))
                for pair in ((g.stride, h.stride), (g.kernel, h.kernel))
            )
            first.geometry = replace(g, stride=stride, kernel=kernel, joined=g.kind)
            first.output_size, first.ending = second.output_size, Ending((spot,))
            assert first.layouts is not None
            assert second.layouts is not None
            first.layouts = first.layouts[0], second.layouts[1]
            second.dropped = True


def _is_other_axis(first: Event, second: Event) -> bool:
    """Whether two reductions of one kind have windows along different axes."""
    g, h = first.geometry, second.geometry
    if first.frame is not second.frame or g.kind != h.kind or len(g.stride) != len(h.stride):
        return False
    axes = zip(g.stride, g.kernel, h.stride, h.kernel, strict=True)
    return all((s, k) == (1, 1) or (t, m) == (1, 1) for s, k, t, m in axes)
