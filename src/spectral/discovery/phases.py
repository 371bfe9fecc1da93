"""Slices of one tensor that keep every phase between them: what they are together.

If what is used of them in the end can be told apart nothing is lost: space-to-depth, whether it is in the
channels of one tensor or in several. If they are added up, or the largest is taken, they are a pool. Sums are
followed as what they are, weights of the phases: a wavelet transform keeps as many independent ones as there
are phases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import Tensor

from spectral.axes import CROPS, JOINS, Call, Labels, Layout, find_layout, make_plain
from spectral.discovery.events import Event
from spectral.discovery.uses import find_view
from spectral.operators import LOSSLESS, Size
from spectral.tracing.places import Ending, Spot
from spectral.tracing.tensors import TensorTable
from spectral.tracing.tracker import Frame

# Not marked as pointwise by torch, but they don't move a sample.
_SAMPLEWISE = {"clone", "_to_copy", "lift_fresh", "native_dropout", "contiguous"}
_SLICES = ("slice", "select", "phase")
_EXTREMES = {"maximum": "window_max", "fmax": "window_max", "minimum": "window_min", "fmin": "window_min"}
_REASON = "a pool written as slices that are joined by arithmetic: there is no one operator to measure"

# Weight of each phase in a sum; None where it is no sum.
Weights = dict[Size, float] | None
Row = tuple[frozenset[Size], Weights]
Pool = tuple[str, tuple[float, ...]]  # its kind, and the weights of a window's samples where they differ


@dataclass(frozen=True)
class Lattice:
    """A tensor and a stride: what the phases are phases of."""

    root: Hashable  # what memory it reads: of one tensor there may be many views
    stride: Size


@dataclass(frozen=True)
class _Made:
    """Where a tensor was made, and its axes."""

    frame: Frame
    spot: Spot
    labels: Labels


@dataclass(frozen=True)
class _Blend:
    """What a tensor is made of: one row for each run of channels, the phases in it and their weights."""

    lattice: Lattice
    rows: tuple[Row, ...]
    extreme: str = ""  # kind of the pool that takes the largest or smallest of its phases
    gain: float = 1.0  # by what that has been multiplied; not a number where its phases were, by several
    bent: bool = (
        False  # by an activation: its rows can still be told apart, but their sums are none of the map
    )
    axis: int | None = None  # along which rows that were joined lie
    made: _Made | None = None  # what views of it and copies have the numbers of; None of a slice itself


class Phases:
    """Follows slices through views, samplewise operators and joins.

    A slice of a slice is a phase of either tensor: each tensor has a blend for every lattice that it lies on.
    """

    def __init__(self) -> None:
        self._blends: TensorTable[dict[Lattice, _Blend]] = TensorTable()  # tensor → lattice → blend
        self._events: dict[Lattice, list[Event]] = defaultdict(list)
        self._own: dict[Event, dict[Lattice, frozenset[Size]]] = {}  # the phase that each slice is
        self._parents: dict[Lattice, Lattice] = {}
        self._read: dict[Lattice, list[Row]] = defaultdict(list)  # what has been used as it is
        self._made: dict[Lattice, dict[Pool | None, _Made | None]] = defaultdict(dict)  # the pools among that
        self._pools: dict[Lattice, str] = {}
        self._roots: list[Tensor] = []  # alive, so that no two read the same memory

    def note(self, event: Event) -> None:
        """Follow what a slice gave."""
        geometry = event.geometry
        if min(geometry.stride) < 1:
            return
        self._roots.append(event.source)
        blends = {}
        for lattice, blend in self._blends_of(event.source).items():
            if len(blend.rows) > 1:
                self._note_read(blend)  # they stay channels
                continue
            ((phases, known),) = blend.rows
            if len(phases) != 1:
                self._note_read(blend)  # a sum of several, or the largest: what is sliced is a map of its own
                continue
            (outer,) = phases
            stride = tuple(s * t for s, t in zip(lattice.stride, geometry.stride, strict=True))
            steps = zip(outer, lattice.stride, geometry.phase, strict=True)
            finer, phase = Lattice(lattice.root, stride), tuple(p + s * q for p, s, q in steps)
            weight = known[outer] if known is not None else math.nan
            blends[finer] = _Blend(finer, ((frozenset([phase]), {phase: weight}),))
            self._parents[finer] = lattice
        own = Lattice(find_view(event.source), geometry.stride)
        blends[own] = _Blend(own, ((frozenset([geometry.phase]), {geometry.phase: 1.0}),))
        self._own[event] = {lattice: blend.rows[0][0] for lattice, blend in blends.items()}
        for lattice in blends:
            self._events[lattice].append(event)
        self._blends[event.output] = blends

    def find_joined(self, tensors: Sequence[Tensor]) -> tuple[list[Size], list[Event]] | None:
        """Return which phase each of some tensors is, and the slices, if they are all phases of a tensor."""
        for lattice, blends in self._find_common(tensors):
            rows = [blend.rows[0][0] for blend in blends if len(blend.rows) == 1]
            phases = [phase for row in rows if len(row) == 1 for phase in row]
            if len(tensors) == len(set(phases)) == math.prod(lattice.stride) > 1:
                return phases, self._collect(lattice)
        return None

    def follow(self, call: Call, frame: Frame, spot: Spot) -> None:
        """Follow an operator that ran in a call."""
        if not len(self._blends):
            return
        inputs, outputs = call.inputs, call.outputs
        tagged = [x for x in inputs if self._blends_of(x)]
        if not tagged:
            return
        name = call.name.removesuffix("_")
        if len(tagged) == 1 and _crops_rows(call, self._blends_of(tagged[0])):
            for i, y in enumerate(outputs):
                made_here = _Made(frame, replace(spot, entry=i), call.labels(y))
                self._blends[y] = {
                    k: replace(_crop(b, call, i), made=made_here)
                    for k, b in self._blends_of(tagged[0]).items()
                }
            return
        made: dict[Lattice, _Blend] = {}
        for lattice, blends in self._find_common(tagged):
            blend = None
            if name in JOINS and len(blends) == len(inputs):
                rows = tuple(row for each in blends for row in each.rows)
                axis = call.a.get("dim", 0) % outputs[0].ndim
                bent = any(each.bent for each in blends)
                blend = replace(blends[0], rows=rows, bent=bent, axis=axis)
            elif len(blends) == 1 and len([x for x in inputs if call.known(x)]) == 1:
                blend = _scale(blends[0], name, call)
            elif len(blends) == 2 and len(blends[0].rows) == len(blends[1].rows):
                blend = _combine(blends[0], blends[1], name, call)
                self._note_pool(blend)
            if blend is not None:
                made[lattice] = blend if _holds(blends[0], blend) else replace(blend, made=None)
        if made:
            for i, y in enumerate(outputs):
                here = _Made(frame, replace(spot, entry=i), call.labels(y))
                self._blends[y] = {k: b if b.made else replace(b, made=here) for k, b in made.items()}
        else:
            for x in inputs:
                self.read(x)

    def read(self, x: Tensor) -> None:
        """Note that a tensor is used as it is: if it is a lone phase, that is a site of its own."""
        for lattice, blend in self._blends_of(x).items():
            self._note_read(blend)
            for event in self._events[lattice] if len(blend.rows) == 1 else ():
                event.alone |= self._own[event][lattice] == blend.rows[0][0]

    def finish(self) -> None:
        """Let the first of the slices that keep all phases stand for all of them, as what they are."""
        lossless = {
            lattice
            for lattice, rows in self._read.items()
            if _count_independent(rows) == math.prod(lattice.stride) > 1
        }
        together = [*lossless, *(lattice for lattice in self._pools if lattice not in lossless)]
        for lattice in sorted(together, key=lambda lattice: -math.prod(lattice.stride)):
            kind: str = "space_to_depth"
            reason: str | None = LOSSLESS
            if lattice not in lossless:
                kind, reason = self._pools[lattice], _REASON
            weights: tuple[float, ...] = ()
            joined = ""
            ending: Ending | None = None
            layouts: tuple[Layout, Layout] | None = None
            group = self._collect(lattice)
            if any(e.alone or e.dropped or not e.used or e.geometry.kind not in _SLICES for e in group):
                continue
            first = group[0]
            if lattice not in lossless and first.family != "phase" and first.geometry.reason is None:
                found = self._find_pool(lattice, first, group[-1].output_size)
                if found is not None:
                    (kind, weights), ending, layouts = found
                    joined, reason = first.geometry.kind, None
            first.geometry = replace(
                first.geometry, kind=kind, stride=lattice.stride, kernel=lattice.stride,
                phase=(0,) * len(lattice.stride), joined=joined, weights=weights, reason=reason,
            )  # fmt: skip
            first.output_size, first.ending = group[-1].output_size, ending
            first.layouts = layouts or first.layouts
            for other in group[1:]:
                other.dropped = True

    def _note_read(self, blend: _Blend) -> None:
        self._read[blend.lattice] += blend.rows
        for row in blend.rows:
            made = blend.made if len(blend.rows) == 1 else None
            self._made[blend.lattice].setdefault(_describe(blend, row), made)

    def _find_pool(
        self, lattice: Lattice, first: Event, size: Size
    ) -> tuple[Pool, Ending, tuple[Layout, Layout]] | None:
        """Find the one pool that is used of a lattice of a tensor, and where it appears.

        None if there is none, or several, or if it isn't in the call of the slices that it is a map.
        """
        pools = self._made[lattice]
        if find_view(first.source) != lattice.root or len(pools) != 1 or not first.source.is_floating_point():
            return None
        ((pool, made),) = pools.items()
        layout = find_layout(made.labels) if made is not None else None
        if pool is None or made is None or layout is None or made.frame is not first.frame:
            return None
        before = first.layouts[0] if first.layouts is not None else make_plain(tuple(first.source.shape))
        return (pool, Ending((made.spot,)), (before, layout)) if layout.size == size else None

    def _blends_of(self, x: Tensor) -> dict[Lattice, _Blend]:
        blends: dict[Lattice, _Blend] = self._blends.get(x, {})
        return blends

    def _find_common(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Lattice, list[_Blend]]]:
        """Yield the lattices that all of some tensors lie on, the coarsest first, with their blends."""
        tables = [self._blends_of(x) for x in tensors]
        for lattice in sorted(tables[0], key=lambda lattice: -math.prod(lattice.stride)) if tables else ():
            if all(lattice in table for table in tables):
                yield lattice, [table[lattice] for table in tables]

    def _collect(self, lattice: Lattice) -> list[Event]:
        parent = self._parents.get(lattice)
        before = self._collect(parent) if parent is not None else []
        return list(dict.fromkeys([*before, *self._events[lattice]]))

    def _note_pool(self, blend: _Blend) -> None:
        for phases, weights in blend.rows:
            if len(phases) == math.prod(blend.lattice.stride) > 1:
                self._pools.setdefault(blend.lattice, _name_pool(blend, weights))


def _describe(blend: _Blend, row: Row) -> Pool | None:
    """Return the pool that a row of a blend is; None if it isn't one of all phases, or is multiplied."""
    phases, weights = row
    order = list(product(*map(range, blend.lattice.stride)))
    if phases != set(order):
        return None
    if blend.extreme:
        return (blend.extreme, ()) if blend.gain == 1 else None
    if weights is None or not all(math.isfinite(w) for w in weights.values()):
        return None
    values = tuple(weights.get(phase, 0.0) for phase in order)
    mean = all(math.isclose(value * len(order), 1, rel_tol=1e-9) for value in values)
    return ("window_mean", ()) if mean else ("window_blend", values)


def _holds(first: _Blend, blend: _Blend) -> bool:
    """Whether a tensor is the same sum of phases as that of which it was made, whatever bends it behind."""
    return (first.rows, first.gain, first.extreme) == (blend.rows, blend.gain, blend.extreme)


def _name_pool(blend: _Blend, weights: Weights) -> str:
    if blend.extreme:
        return blend.extreme
    alike = weights is not None and len({round(w, 6) for w in weights.values()}) == 1
    return "window_mean" if alike else "window_blend"


def _scale(blend: _Blend, name: str, call: Call) -> _Blend | None:
    """Follow an operator on one tensor: weights of a sum survive what is linear."""
    if call.facts.is_view and call.outputs[0].shape != call.inputs[0].shape:
        return replace(blend, axis=None)
    if name in _SAMPLEWISE or call.facts.is_view or (name in ("add", "sub") and len(call.inputs) == 1):
        return blend
    if not call.facts.is_pointwise:
        return None
    other = call.a.get("other")
    if blend.bent:
        return blend
    if name == "neg":
        factor = -1.0
    elif (
        name in ("mul", "div")
        and isinstance(other, (int, float))
        and other
        and not call.a.get("rounding_mode")
    ):
        factor = float(other) if name == "mul" else 1 / other
    else:
        return replace(blend, bent=True)
    rows = [(p, w and {phase: factor * weight for phase, weight in w.items()}) for p, w in blend.rows]
    return replace(blend, rows=tuple(rows), gain=blend.gain * factor)


def _combine(first: _Blend, second: _Blend, name: str, call: Call) -> _Blend:
    """Follow an operator on two tensors, sample by sample."""
    sign = {"add": 1.0, "sub": -1.0}.get(name)
    alpha = call.a.get("alpha", 1)
    rows: list[Row] = []
    plain_sum = sign is not None and not (first.bent or second.bent)
    for (phases, left), (others, right) in zip(first.rows, second.rows, strict=True):
        weights: Weights = None
        if (
            plain_sum
            and sign is not None
            and left is not None
            and right is not None
            and isinstance(alpha, (int, float))
        ):
            weights = {p: left.get(p, 0.0) + sign * alpha * right.get(p, 0.0) for p in phases | others}
        rows.append((phases | others, weights))
    plain = all(len(phases) == 1 for phases, _ in (*first.rows, *second.rows))
    extreme = _EXTREMES.get(name, "") if plain or first.extreme or second.extreme else ""
    gains = {gain for blend in (first, second) for gain in _list_gains(blend, extreme)}
    gain = gains.pop() if len(gains) == 1 else math.nan
    return _Blend(first.lattice, tuple(rows), extreme, gain, bent=first.bent or second.bent)


def _list_gains(blend: _Blend, extreme: str) -> set[float]:
    """By what the phases in a blend have been multiplied; NaN where the largest of them isn't known."""
    if blend.extreme:
        return {blend.gain if blend.extreme == extreme else math.nan}
    rows = [weights for _, weights in blend.rows]
    found = {w for weights in rows if weights is not None for w in weights.values()}
    plain = all(len(phases) == 1 for phases, _ in blend.rows)
    positive = plain and None not in rows and not blend.bent and all(w > 0 for w in found)
    return found if positive else {math.nan}


def _crops_rows(call: Call, blends: dict[Lattice, _Blend]) -> bool:
    """Whether a call takes a part of what was joined, along the axis along which it was."""
    axis = call.a["dim"] % call.inputs[0].ndim if isinstance(call.a.get("dim"), int) else None
    known = any(blend.axis is not None and blend.axis == axis for blend in blends.values())
    return known and call.name in CROPS | {"select", "unbind"} and call.a.get("step", 1) == 1


def _crop(blend: _Blend, call: Call, number: int) -> _Blend:
    """Keep the rows of which an output of such a call has some."""
    x, y, axis = call.inputs[0], call.outputs[number], blend.axis
    if axis is None or axis != call.a["dim"] % x.ndim:
        return blend
    if y.ndim < x.ndim:
        start, length, left = call.a["index"] % x.shape[axis] if "index" in call.a else number, 1, None
    else:
        start = (y.storage_offset() - x.storage_offset()) // max(x.stride(axis), 1)
        length, left = y.shape[axis], axis
    width = max(x.shape[axis] // len(blend.rows), 1)
    kept = range(start // width, -(-(start + length) // width))
    return replace(blend, axis=left, rows=tuple(blend.rows[i] for i in kept))


def _count_independent(rows: Sequence[Row]) -> int:
    """Count the independent sums of phases."""
    order = sorted({phase for phases, _ in rows for phase in phases})
    own = [dict.fromkeys(phases, 1.0) if len(phases) == 1 else weights for phases, weights in rows]
    known = [weights for weights in own if weights is not None]
    matrix = np.array([[weights.get(phase, 0.0) for phase in order] for weights in known])
    return int(np.linalg.matrix_rank(matrix)) if matrix.size and np.isfinite(matrix).all() else 0
