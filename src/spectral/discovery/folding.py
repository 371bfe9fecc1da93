"""Places that become channels, or are summed by a matrix, without an operator of its own that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from spectral.axes import (
    BATCH,
    CHANNEL,
    CROPS,
    IMAGE_AXES,
    MIXED,
    Axis,
    AxisTracker,
    Call,
    Factor,
    Labels,
    Window,
    all_factors,
    count_places,
    exact,
    extent_of,
    find_spacing,
    is_lattice,
    loses_places,
    unfold_windows,
)
from spectral.discovery.events import Event, count_channels, find_image_axes, find_size
from spectral.discovery.placing import find_pick, measure_places, takes_lattice
from spectral.operators import LOSSLESS, Geometry, Size, find_reader
from spectral.tracing.tracker import Frame

_PHASES = "a phase of windows that are channels is taken by itself: write it as a slice of the map"
_PARTS = "a part of windows that a view has cut is taken by itself: write it as a slice of the map"
_WHOLE = "a matrix over all its places: what is left is no lattice"
_ONE_AXIS = "a matrix along one of its axes: what is left of that axis is no lattice"
_PRODUCT = "a pool written as a matrix product"
_SPECTRA = "a short-time Fourier transform: its windows become spectra, of which each frequency is a channel"


@dataclass(eq=False)
class _Folded:
    """Windows that have become channels: what says so, and how many samples they have along each axis."""

    events: list[Event]
    window: dict[str, int]


class Folding:
    """Finds space-to-depth by views, products over places, and whatever else loses places.

    Args:
        axes: the labels.
        running: the calls that are running.
        keep: takes an event.
    """

    def __init__(self, axes: AxisTracker, running: list[Frame], keep: Callable[[Event], None]) -> None:
        self._axes, self._running, self._keep = axes, running, keep
        self._cutters: dict[int, Frame] = {}  # which call made a view
        self._noted: dict[int, _Folded] = {}  # by the view that cut the windows

    def note_cut(self) -> None:
        """Note which call made the latest view."""
        self._cutters.setdefault(self._axes.cuts, self._running[-1])

    def note_contraction(self, call: Call) -> None:
        """Keep a product that sums over places: over those of a window, or over all of them to fewer."""
        contraction = self._axes.find_contraction(call)
        if contraction is None or not call.outputs:
            return
        (x, axis, other), out = contraction, call.outputs[0]
        labels, learned = self._axes.labels(x), self._axes.comes_from_weights(other)
        left = out.shape[axis % x.ndim - x.ndim if out.ndim == x.ndim else -1]
        pooled = left < x.shape[axis] and not _holds_channels(labels, axis, learned)
        folded = [f for f in labels[axis] if f.folded and f.extent > 1]
        if folded and pooled:
            self._take_back(folded)
            before = unfold_windows(labels)
            after = (*labels[: axis % x.ndim], *labels[axis % x.ndim + 1 :])
            geometry = Geometry("matmul_pool", _find_stride(before, after), reason=_PRODUCT)
            self._add(geometry, measure_places(before, after), count_channels(before), x, out, "view")
            return
        self._keep_channels(tuple(labels[axis]))
        places = [f for f in labels[axis] if f.spatial and f.extent > 1]
        if not places or left == x.shape[axis]:
            return
        found = self._axes.collect_channels(x, contracted=axis)
        if found and pooled:
            self._note_windows(found, x, "matmul_pool", _PRODUCT)
        elif found:
            self._note_windows(found, x)
        elif left < x.shape[axis] or (learned and _leaves_others(labels, axis)):
            self._note_matrix(x, axis, left, learned)

    def note_transform(self, call: Call) -> None:
        """Keep a Fourier transform of the samples inside windows: a spectrum for each window."""
        if not call.name.startswith("_fft_"):
            return
        for dim in call.a["dim"]:
            found = self._axes.collect_channels(call.a["self"], contracted=dim)
            if found:
                self._note_windows(found, call.a["self"], "stft", _SPECTRA)

    def note_channels(self, x: Tensor) -> None:
        """Keep windows that a view has moved to the channels of a tensor."""
        if x.ndim > 1:
            found = self._axes.collect_channels(x)
            if found:
                self._note_view(self._running[-1], found, x)

    def note_join(self, phases: Sequence[Size], slices: list[Event], call: Call) -> None:
        """Note that an axis holds all the phases of a tensor, one slice behind the other."""
        x, axis = call.outputs[0], call.a.get("dim", 0) % call.outputs[0].ndim
        labels = self._axes.labels(x)
        spacing = find_spacing(labels)
        kinds = find_image_axes(labels)
        steps = [max(p[i] for p in phases) + 1 for i in range(len(kinds))]
        strides = {k: s for k, s in zip(kinds, steps, strict=True) if s > 1 and k in spacing}
        rows_first = list(phases) == sorted(phases)
        self._axes.cuts += 1
        made = tuple(
            Factor(kind, s, exact(Fraction(spacing[kind]) / s), self._axes.cuts, folded=True)
            for kind, s in (strides.items() if rows_first else reversed(strides.items()))
        )
        each = labels[axis].extent // max(extent_of(made), 1)
        channels = (Factor(CHANNEL, each),) if each > 1 else ()
        joined = Axis((*made, *channels))
        self._axes.relabel(x, (*labels[:axis], joined, *labels[axis + 1 :]))
        self._noted[self._axes.cuts] = _Folded(slices, strides)

    def note_folded(self, event: Event) -> None:
        """Note an operator that has itself made channels of windows."""
        folded = [f for f in all_factors(self._axes.labels(event.output)) if f.folded]
        for cut in {f.cut for f in folded} - self._noted.keys():
            self._noted[cut] = _Folded([event], _count_window([f for f in folded if f.cut == cut]))

    def note_pool(self, reduced: Sequence[Axis]) -> None:
        """Take back that windows are channels: they have been pooled, or picked from."""
        self._take_back([f for axis in reduced for f in axis])

    def note_phases(self, call: Call, before: Sequence[tuple[Tensor, Labels]]) -> list[Event]:
        """Keep what takes a part of windows that a view has cut; return one event for each part.

        Of all the parts together `Phases` tells whether anything is lost.
        """
        if len(before) != 1 or not (call.name in CROPS or call.name == "unbind"):
            return []
        ((x, labels),) = before
        folded = [f for f in all_factors(labels) if f.folded and f.extent > 1]
        events = []
        for y in (y for y in call.outputs if not self._axes.is_joined(y)):
            after = self._axes.labels(y)
            left = _count_window([f for f in all_factors(after) if f.folded])
            taken = [f for f in folded if left.get(f.kind, 1) < f.extent and f.cut in self._noted]
            if takes_lattice(labels, after) and call.a.get("step", 1) > 1:
                continue  # a slice of channels, which `place_slice` keeps
            if taken or _takes_phase(call, labels, after):
                self._take_back(taken)
                events.append(self._note_phase(x, labels, y, _PHASES if taken else _PARTS))
        return events

    def _note_phase(self, x: Tensor, labels: Labels, y: Tensor, reason: str) -> Event:
        before, after = unfold_windows(labels), unfold_windows(self._axes.labels(y))
        picked = find_pick(before, after)
        steps = [picked.get(kind, (1, 0)) for kind in find_image_axes(before)]
        stride, phase = tuple(step for step, _ in steps), tuple(start for _, start in steps)
        geometry = Geometry("select", stride, (1,) * len(stride), phase=phase, reason=reason)
        sizes = measure_places(before, after)
        return self._add(geometry, sizes, count_channels(before), x, y, "phase")

    def _take_back(self, factors: Sequence[Factor]) -> None:
        for f in factors:
            for event in self._noted[f.cut].events if f.folded and f.cut in self._noted else ():
                event.dropped = not event.kept

    def note_output(self, x: Tensor) -> None:
        """Note that a tensor is the model's output: what it holds as channels stays so."""
        self._keep_channels(all_factors(self._axes.labels(x)))

    def note_loss(self, call: Call, before: Sequence[tuple[Tensor, Labels]]) -> Event | None:
        """Keep an operator that loses places and that nothing else has told: the rule behind all rules."""
        results = list(map(self._axes.labels, call.outputs))
        losing = [
            (x, labels) for x, labels in before if results and all(loses_places(labels, r) for r in results)
        ]
        if not losing:
            return None
        x, labels = losing[0]
        after = results[0]
        reader = find_reader(call.func)
        left = is_lattice(after) or count_places(after) > 1 or (reader is not None and reader.picks)
        kinds = [{f.kind for f in all_factors(one)} for one in (labels, after)]
        images = BATCH in kinds[0] - kinds[1]
        if not left and (images or not (x.is_floating_point() or x.is_complex())):
            return None  # a statistic of the batch, or of what is no map
        known = reader is not None and reader.acts_on == "places"
        kind = reader.kind if reader is not None and known else "unrecognised"
        reason = reader.reason if reader is not None and known else f"unrecognised operator {call.a.name}"
        if kind == "fourier_crop" and reader is not None and reader.read(call.a) is not None:
            # Forward, nothing is cropped: fewer of them are spectra of windows.
            kind, reason = "stft", _SPECTRA
        if not (x.is_floating_point() or x.is_complex()) and not known:
            reason = "its samples are no floating-point numbers"
        sizes = measure_places(labels, after)
        stride = _find_stride(labels, after) if left else sizes[0]
        geometry = Geometry(kind if left else "global_pool", stride, reason=reason)
        return self._add(geometry, sizes, count_channels(labels), x, call.outputs[0], "place")

    def _note_matrix(self, x: Tensor, axis: int, left: int, learned: bool) -> None:
        labels = self._axes.labels(x)
        size = x.shape[axis]
        if not learned:
            geometry = Geometry("matmul_pool", (0, 0), reason=_PRODUCT)
            measured = _measure_product(labels, axis, left) or ((1, size), (1, left))
            self._add(geometry, measured, count_channels(labels), x, x, "view")
            return
        mixed = {f.kind for f in labels[axis] if f.extent > 1}
        if not mixed <= set(IMAGE_AXES):
            return  # a fully connected layer
        if len(mixed) == 1:
            geometry = Geometry("matmul_pool", (0, 0), reason=_ONE_AXIS)
            image_axes = find_image_axes(labels)
            before = find_size(all_factors(labels), image_axes)
            after = tuple(left if k in mixed else n for k, n in zip(image_axes, before, strict=True))
            self._add(geometry, (before, after), count_channels(labels), x, x, "place")
            return
        sizes = find_size(all_factors(labels), find_image_axes(labels))
        geometry = Geometry("global_pool", sizes, sizes, reason=_WHOLE)
        self._add(geometry, (sizes, (1,) * len(sizes)), count_channels(labels), x, x, "place")

    def _note_windows(
        self, found: list[Window], x: Tensor, kind: str | None = None, reason: str | None = None
    ) -> None:
        """Keep windows once, however many products read them, and where they were cut."""
        cut = max(window.cut for window in found)
        if cut not in self._noted:
            self._note_view(self._cutters.get(cut, self._running[-1]), found, x, kind, reason)

    def _note_view(
        self, frame: Frame, found: list[Window], x: Tensor, kind: str | None = None, reason: str | None = None
    ) -> None:
        """Keep windows that have become channels of a tensor."""
        labels = self._axes.labels(x)
        factors = [f for f in all_factors(labels) if f.spatial]
        windows = {window.kind: window for window in found}
        for axis in ("h", "w"):
            n = math.prod(f.extent for f in factors if f.kind == axis)
            windows.setdefault(axis, Window(axis, 1, 1, n, 0))
        cuts = [windows[axis] for axis in IMAGE_AXES if axis in windows]
        window, stride = tuple(w.size for w in cuts), tuple(w.stride for w in cuts)
        if kind is None:
            kind, reason = "space_to_depth", LOSSLESS
            if window != stride:
                kind = "unfold"
                skips = any(k < s for k, s in zip(window, stride, strict=True))
                reason = "its windows are cut by views and skip samples" if skips else LOSSLESS
        size = tuple(w.stride * (w.count - 1) + w.size for w in cuts)
        zeros, ones = (0,) * len(cuts), (1,) * len(cuts)
        geometry = Geometry(kind, stride, window, zeros, ones, zeros, reason=reason)
        channels = count_channels(labels) // math.prod(window)
        sizes = (size, tuple(w.count for w in cuts))
        family = "place" if kind == "stft" else "view"
        event = self._add(geometry, sizes, max(channels, 1), x, x, family, frame)
        folded = _Folded([event], {one.kind: one.size for one in found})
        for one in found:
            self._noted[one.cut] = folded

    def _keep_channels(self, factors: Sequence[Factor]) -> None:
        """Note that whole windows are read as channels; where a part was pooled the rest isn't enough."""
        for noted in {id(one): one for one in self._noted.values()}.values():
            own = [f for f in factors if f.folded and self._noted.get(f.cut) is noted]
            if own and _count_window(own) == noted.window:
                for event in noted.events:
                    event.kept, event.dropped = True, False

    def _add(
        self, geometry: Geometry, sizes: tuple[tuple[int, ...], tuple[int, ...]], channels: int, x: Tensor,
        output: Tensor, family: str, frame: Frame | None = None,
    ) -> Event:  # fmt: skip
        frame = frame or self._running[-1]
        index = frame.counts[family]
        frame.counts[family] += 1
        event = Event(frame, family, index, geometry, *sizes, channels, x, output)
        self._keep(event)
        return event


def _measure_product(labels: Labels, axis: int, left: int) -> tuple[Size, Size] | None:
    """Measure a map before and after some of its places are summed; None where they are of several axes."""
    kinds = {f.kind for f in labels[axis] if f.spatial and f.extent > 1}
    if len(kinds) != 1 or MIXED in kinds:
        return None
    image_axes = find_image_axes(labels)
    before = find_size(all_factors(labels), image_axes)
    summed = extent_of([f for f in labels[axis] if f.kind in kinds])
    return before, tuple(
        n // summed * left if k in kinds else n for k, n in zip(image_axes, before, strict=True)
    )


def _holds_channels(labels: Labels, axis: int, learned: bool) -> bool:
    """Whether a product over windows takes them as channels: with all others there are, and for weights."""
    windows = [f for f in labels[axis] if (f.spatial or f.folded) and f.extent > 1]
    if extent_of(windows) < labels[axis].extent:
        return True
    return learned and count_channels(unfold_windows(labels)) == 1


def _leaves_others(labels: Labels, axis: int) -> bool:
    """Whether an axis is one of several of a map: all of its samples become as many features as there are."""
    whole = labels[axis].only
    spacing = find_spacing(labels)
    return whole is not None and whole.kind in spacing and len(spacing) > 1


def _count_window(factors: Sequence[Factor]) -> dict[str, int]:
    """Multiply the extents of each image axis."""
    window: dict[str, int] = {}
    for f in factors:
        window[f.kind] = window.get(f.kind, 1) * f.extent
    return window


def _takes_phase(call: Call, before: Labels, after: Labels) -> bool:
    """Whether a crop leaves a part of each window, so that samples are further apart."""
    if call.a.get("step", 1) > 1:
        return False
    if any(f.spectrum or f.kind == MIXED for f in (*all_factors(before), *all_factors(after))):
        return False
    old, new = find_spacing(before), find_spacing(after)
    return old.keys() == new.keys() and any(new[k] > old[k] for k in old)


def _find_stride(before: Labels, after: Labels) -> tuple[int, ...]:
    """Return how many times coarser each image axis is; zeros if by no whole number."""
    old, new = find_spacing(before), find_spacing(after)
    image_axes = find_image_axes(before)
    ratios = [new.get(k, 0) / old[k] if k in old else 1 for k in image_axes]
    whole = all(ratio and ratio == int(ratio) for ratio in ratios)
    return tuple(int(ratio) if whole else 0 for ratio in ratios)
