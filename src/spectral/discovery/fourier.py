"""Crops of a spectrum: a Fourier transform, fewer of its frequencies, and a smaller inverse transform.

Of every axis that was transformed it is known which frequency lies at each place. What the inverse transform
gives at M samples is then every (N/M)-th sample of what it would give at all N, of the same frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectral.axes import Call, Labels, find_layout, operator_name, resample
from spectral.discovery.events import PLACES, Event, count_channels, find_image_axes
from spectral.discovery.placing import COMPLEX
from spectral.operators import Band, Geometry, Spectrum
from spectral.places import Ending, Spot
from spectral.recorder import Operation
from spectral.tracker import Frame

Numbers = tuple[int | None, ...]  # the frequency at each place of an axis; None where zeros were added
_SAME = {"clone", "_to_copy", "alias", "detach", "contiguous", "lift_fresh"}
_APART = "its frequencies are moved apart on the way back: what is left is no subsampled low-pass"


@dataclass(eq=False)
class _Root:
    """One transform of a map: what began it, and events of what was lost behind it and of what was picked."""

    operation: Operation
    events: list[Event] = field(default_factory=list)
    picks: list[Event] = field(default_factory=list)


@dataclass(frozen=True)
class _Frequencies:
    """One axis: how many samples it had, and the frequency at each place, None where zeros were added.

    ``sided`` tells that it has one half only, as of a real map. When it has been transformed back,
    ``inverted`` is the number of samples that it has then.
    """

    samples: int
    numbers: Numbers
    sided: bool = False
    inverted: int = 0


@dataclass(frozen=True)
class _State:
    """What a tensor is: its axes by number, those that were transformed, and by what all was multiplied."""

    root: _Root
    axes: dict[int, _Frequencies]
    gain: float = 1.0
    parts: bool = False  # real and imaginary part lie along the last axis

    @property
    def done(self) -> bool:
        """Whether all has been transformed back."""
        return all(axis.inverted for axis in self.axes.values())


class Spectra:
    """Follows spectra from the transform of a map to its inverse.

    Args:
        relabel: says what the axes of a tensor are.
    """

    def __init__(self, relabel: Callable[[Tensor, Labels], None]) -> None:
        self._relabel = relabel
        self._states: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._real: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # complex tensors that were real

    def note(self, event: Event) -> None:
        """Note that frequencies are picked one by one."""
        state = self._states.get(event.source)
        if state is not None and not state.done:
            state.root.picks.append(event)

    def follow(self, call: Call, met: Operation | None, lost: Event | None, frame: Frame, spot: Spot) -> None:
        """Follow an operator that ran.

        Args:
            call: the operator.
            met: by what it is met again, if it transforms.
            lost: the event of what an inverse transform has lost.
            frame: the call in which it ran.
            spot: and where.
        """
        name, y = operator_name(call.func), call.outputs[0] if call.outputs else None
        if y is None:
            return
        states = [self._states[x] for x in call.inputs if x in self._states]
        if name == "_to_copy" and y.is_complex() and not call.inputs[0].is_complex():
            self._real[y] = True
        if name in ("_fft_r2c", "_fft_c2c", "_fft_c2r"):
            self._transform(call, y, states[0] if states else None, met)
        elif states and states[0].done:
            self._take_part(call, name, y, states[0], frame, spot)
        elif states and len(states) == sum(map(call.known, call.inputs)) and name in _MOVES:
            moved = _MOVES[name](call, states)
            if moved is not None:
                self._states[y] = moved
        state = self._states.get(y)
        if state is None:
            return
        if lost is not None:
            lost.dropped = bool(state.root.events)  # one stands for all axes
            state.root.events.append(lost)
        if state.done and name == "_fft_c2r":
            self._finish(call, y, state, "real", frame, spot)
        elif state.done and state.root.events:  # unless a part of it is taken
            event = state.root.events[0]
            if event.ending is None:
                event.geometry = replace(event.geometry, reason=COMPLEX)

    def _transform(self, call: Call, y: Tensor, state: _State | None, met: Operation | None) -> None:
        a, x = call.a, call.a["self"]
        dims = [dim % x.ndim for dim in a["dim"]]
        count = math.prod(y.shape[dim] if a.name.endswith("c2r") else x.shape[dim] for dim in dims)
        gain = {0: 1.0, 1: count**-0.5, 2: 1 / count}[int(a["normalization"])]
        if a.name.endswith("r2c") or (a.name.endswith("c2c") and a["forward"]):
            if state is None and met is not None and (not x.is_complex() or x in self._real):
                state = _State(_Root(met), {})
            if state is None or any(dim in state.axes for dim in dims):
                return
            halved = dims[-1] if a.name.endswith("r2c") and a["onesided"] else None
            new = {d: _Frequencies(x.shape[d], tuple(range(y.shape[d])), d == halved) for d in dims}
            self._states[y] = replace(state, axes={**state.axes, **new}, gain=state.gain * gain)
        elif state is not None and all(d in state.axes and not state.axes[d].inverted for d in dims):
            halved = dims[-1] if a.name.endswith("c2r") else None
            if any(state.axes[d].sided != (d == halved) for d in dims):
                return
            new = {d: replace(state.axes[d], inverted=y.shape[d]) for d in dims}
            self._states[y] = replace(state, axes={**state.axes, **new}, gain=state.gain * gain)

    def _take_part(self, call: Call, name: str, y: Tensor, state: _State, frame: Frame, spot: Spot) -> None:
        """Take the real part of a complex map, or its magnitude."""
        if name == "view_as_real":
            self._states[y] = replace(state, parts=True)
        elif name == "select" and state.parts and call.a["dim"] % call.inputs[0].ndim == y.ndim:
            if call.a["index"] == 0:
                self._finish(call, y, state, "real", frame, spot)
        elif name == "abs" and not y.is_complex():
            self._finish(call, y, replace(state, gain=abs(state.gain)), "magnitude", frame, spot)
        elif name in _SAME:
            self._states[y] = state

    def _finish(self, call: Call, y: Tensor, state: _State, part: str, frame: Frame, spot: Spot) -> None:
        """Let the event of a crop be what it is: a low-pass, of which every so many-th sample is left."""
        event = state.root.events[0] if state.root.events else None
        if event is None or event.ending is not None or frame is not state.root.operation.frame:
            return
        found = self._describe(call, y, state, part)
        if isinstance(found, str):
            event.geometry = replace(event.geometry, reason=found)
            return
        operation = state.root.operation
        labels = list(call.labels(operation.source))
        for dim, axis in state.axes.items():
            labels[dim] = resample(labels[dim], axis.inverted, axis.samples // axis.inverted)
        self._relabel(y, tuple(labels))  # whatever its frequencies went through
        layouts = find_layout(call.labels(operation.source)), find_layout(tuple(labels))
        if layouts[0] is None or layouts[1] is None:
            return
        event.geometry, event.layouts = found, (layouts[0], layouts[1])
        row = (1,) * (len(found.stride) - len(layouts[0].size))  # of a signal
        event.input_size, event.output_size = row + layouts[0].size, row + layouts[1].size
        event.channels = count_channels(call.labels(operation.source))
        event.source, event.output, event.ending = operation.source, y, Ending((spot,))
        event.family, event.index = operation.family, operation.index
        event.own, event.turn = operation.own, operation.turn
        for pick in state.root.picks:
            pick.dropped = True

    def _describe(self, call: Call, y: Tensor, state: _State, part: str) -> Geometry | str:
        """Return stride and bands; or why there are none."""
        labels = call.labels(state.root.operation.source)
        kinds = find_image_axes(labels)
        bands, stride = [Band()] * len(kinds), [1] * len(kinds)
        for dim, axis in state.axes.items():
            only = labels[dim].only
            if only is None or only.kind not in kinds:
                return "an axis that isn't one of the map's is transformed with it"
            place = kinds.index(only.kind)
            if axis.samples % axis.inverted:
                return (
                    f"{axis.samples} {PLACES[only.kind]} become {axis.inverted}, not every so many-th of them"
                )
            band = _find_band(axis)
            if band is None:
                return _APART
            bands[place], stride[place] = band, axis.samples // axis.inverted
        spectrum = Spectrum(tuple(bands), state.gain, part == "magnitude")
        return Geometry(
            "fourier_crop", tuple(stride), (1,) * len(kinds), phase=(0,) * len(kinds),
            joined="fourier_crop", spectrum=spectrum,
        )  # fmt: skip


def _find_band(axis: _Frequencies) -> Band | None:
    """Return the run of frequencies that is kept, and by how many it is moved; None if there is none."""
    kept = [(m, k) for m, k in enumerate(axis.numbers) if k is not None]
    m = axis.inverted
    moved = {(place - k) % m for place, k in kept}
    if len(moved) != 1 or len({k for _, k in kept}) != len(kept) or len(axis.numbers) > m:
        return None
    shift = moved.pop()
    shift -= m * (shift > m // 2)
    numbers = {k for _, k in kept}
    if axis.sided:
        whole = numbers == set(range(len(numbers))) and shift == 0
        return Band(0, len(numbers), 0, sided=m) if whole else None
    firsts = [k for k in numbers if (k - 1) % axis.samples not in numbers]
    if len(firsts) > 1:
        return None
    first = firsts[0] if firsts else 0
    return Band(first - axis.samples * (first > axis.samples // 2), len(numbers), shift)


def _change(state: _State, dim: int, change: Callable[[Numbers], Sequence[int | None]]) -> _State:
    """Return a state in which the numbers along one axis are others; all of them, where it has some."""
    if dim not in state.axes:
        return state
    axis = state.axes[dim]
    return replace(state, axes={**state.axes, dim: replace(axis, numbers=tuple(change(axis.numbers)))})


def _slice(call: Call, states: list[_State]) -> _State | None:
    x, a = call.inputs[0], call.a
    dim = a["dim"] % x.ndim
    return _change(states[0], dim, lambda numbers: numbers[a["start"] : a["end"] : a["step"]])


def _roll(call: Call, states: list[_State]) -> _State | None:
    (state, *_), a, x = states, call.a, call.inputs[0]
    if not a["dims"]:
        return None
    for shift, dim in zip(a["shifts"], a["dims"], strict=True):
        state = _change(state, dim % x.ndim, partial(_turn, shift=shift))
    return state


def _turn(numbers: Numbers, shift: int) -> list[int | None]:
    return [numbers[(i - shift) % len(numbers)] for i in range(len(numbers))]


def _cat(call: Call, states: list[_State]) -> _State | None:
    first, dim = states[0], call.a["dim"] % call.inputs[0].ndim
    others = [{d: axis for d, axis in s.axes.items() if d != dim} for s in states]
    alike = all(s.root is first.root and s.gain == first.gain for s in states)
    if not alike or dim not in first.axes or any(one != others[0] for one in others):
        return None
    return _change(first, dim, lambda _: [k for s in states for k in s.axes[dim].numbers])


def _pick(call: Call, states: list[_State]) -> _State | None:
    x, a = call.inputs[0], call.a
    indices = a["indices"] if "indices" in a else [*[None] * (a["dim"] % x.ndim), a["index"]]
    chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(chosen) != 1:
        return None
    ((dim, index),) = chosen
    value = call.value(index)
    if value is None or value.ndim != 1 or value.dtype.is_floating_point:
        return None
    places = value.nonzero().flatten() if str(value.dtype) == "torch.bool" else value
    return _change(states[0], dim, lambda numbers: [numbers[i] for i in places.tolist()])


def _pad(call: Call, states: list[_State]) -> _State | None:
    state, x, pad = states[0], call.inputs[0], call.a["pad"]
    if call.a["value"]:
        return None
    for i in range(0, len(pad), 2):
        state = _change(state, x.ndim - 1 - i // 2, partial(_extend, before=pad[i], behind=pad[i + 1]))
    return state


def _extend(numbers: Numbers, before: int, behind: int) -> list[int | None]:
    """Add zeros at both ends of an axis, or take from them."""
    kept = list(numbers[max(-before, 0) : len(numbers) - max(-behind, 0)])
    return [*[None] * max(before, 0), *kept, *[None] * max(behind, 0)]


def _multiply(call: Call, states: list[_State]) -> _State | None:
    other = call.a.get("other")
    if not isinstance(other, (int, float)) or call.a.get("rounding_mode") or not other:
        return None
    divides = operator_name(call.func).startswith("div")
    return replace(states[0], gain=states[0].gain * (1 / other if divides else other))


def _keep(call: Call, states: list[_State]) -> _State | None:
    return states[0]


_MOVES: dict[str, Callable[[Call, list[_State]], _State | None]] = {
    **dict.fromkeys(_SAME, _keep), "slice": _slice, "roll": _roll, "cat": _cat, "index": _pick,
    "index_select": _pick, "constant_pad_nd": _pad, "mul": _multiply, "div": _multiply,
}  # fmt: skip
