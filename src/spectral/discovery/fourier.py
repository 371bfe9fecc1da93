"""Crops of a spectrum: a Fourier transform, fewer of its frequencies, and a smaller inverse transform.

Of every axis that was transformed it is known which frequency lies at each place. What the inverse transform
gives at M samples is then every (N/M)-th sample of what it would give at all N, of the same frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spectral.axes import Call, Labels, find_layout, memory_of, resample
from spectral.discovery.events import PLACES, Event, count_channels, find_image_axes
from spectral.discovery.frequencies import (
    SAME,
    Frequencies,
    Root,
    State,
    empty_spectrum,
    follow_move,
    overwrite,
    weigh,
)
from spectral.discovery.placing import COMPLEX
from spectral.operators import Band, Geometry, Mask, Spectrum
from spectral.tracing.places import Ending, Spot
from spectral.tracing.recorder import Operation
from spectral.tracing.tensors import TensorTable
from spectral.tracing.tracker import Frame

_APART = "its frequencies are moved apart on the way back: what is left is no subsampled low-pass"
_UNEVEN = "its frequencies are weighted by channels that a view has split"
_TRANSFORMS = ("_fft_r2c", "_fft_c2c", "_fft_c2r")
_WRITTEN = "what is written into its spectrum can't be followed"


class Spectra:
    """Follows spectra from the transform of a map to its inverse.

    Args:
        relabel: says what the axes of a tensor are.
        find_zeros: returns the tensor that another is a part of, if there is nothing but zeros in it.
    """

    def __init__(
        self, relabel: Callable[[Tensor, Labels], None], find_zeros: Callable[[Tensor], Tensor | None]
    ) -> None:
        self._relabel, self._find_zeros = relabel, find_zeros
        self._zeros: Tensor | None = None  # that are about to be written to
        self._states: TensorTable[State] = TensorTable()
        self._losses: TensorTable[str] = TensorTable()  # why nothing is known any more
        self._real: TensorTable[bool] = TensorTable()  # complex tensors that were real

    def note(self, event: Event) -> None:
        """Note that frequencies are picked one by one."""
        state = self._states.get(event.source)
        if state is not None and not state.done:
            state.root.picks.append(event)

    def begin(self, call: Call) -> None:
        """See where a spectrum is about to be written."""
        copies = call.name == "copy_" and call.inputs[-1] in self._states
        self._zeros = self._find_zeros(call.inputs[0]) if copies else None

    def follow(self, call: Call, met: Operation | None, lost: Event | None, frame: Frame, spot: Spot) -> None:
        """Follow an operator that ran.

        Args:
            call: the operator.
            met: by what it is met again, if it transforms.
            lost: the event of what an inverse transform has lost.
            frame: the call in which it ran.
            spot: and where.
        """
        name, y = call.name, call.outputs[0] if call.outputs else None
        if y is None:
            return
        if name == "_to_copy" and y.is_complex() and not call.inputs[0].is_complex():
            self._real[y] = True
        if name not in _TRANSFORMS and not len(self._states) and not len(self._losses):
            return
        states = [self._states[x] for x in call.inputs if x in self._states]
        if call.facts.writes_first:
            self._write(call, name)
        elif name in _TRANSFORMS:
            self._transform(call, y, states[0] if states else None, met)
        elif states and states[0].done:
            self._take_part(call, name, y, states[0], frame, spot)
        elif states and len(states) == sum(map(call.known, call.inputs)):
            moved = follow_move(call, states)
            if moved is not None:
                self._states[y] = moved
        state = self._states.get(y)
        if state is None:
            self._note_unknown(call, name, y, lost)
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

    def _write(self, call: Call, name: str) -> None:
        """Follow what is written into a spectrum, or a spectrum that is written into zeros."""
        x, *sources = call.inputs
        old = self._states.pop(x, None)
        found = [self._states.get(source) for source in sources]
        new = None
        if name == "copy_" and found[0] is not None:
            alike = (x.shape, x.dtype) == (sources[0].shape, sources[0].dtype)
            new = found[0] if alike else None
        elif old is not None and not any(map(call.known, sources)):
            new = weigh(call, old)
        for other, whole in self._states.items():
            if memory_of(other) != memory_of(x):
                continue
            self._states.pop(other)
            changed = None if new is None else overwrite(whole, other, x, new)
            if changed is not None:
                self._states[other] = changed
            else:
                self._losses[other] = _WRITTEN
        zeros = self._zeros
        if new is not None and zeros is not None and zeros is not x:
            changed = overwrite(empty_spectrum(new, zeros.ndim), zeros, x, new)
            if changed is not None:
                self._states[zeros] = changed
        if new is not None:
            self._states[x] = new

    def _note_unknown(self, call: Call, name: str, y: Tensor, lost: Event | None) -> None:
        """Note why nothing is known of a spectrum any more; an event of what is lost then has that reason."""
        why = next((self._losses[x] for x in call.inputs if x in self._losses), None)
        if why is None and any(x in self._states and not self._states[x].done for x in call.inputs):
            why = f"what {name} does to its spectrum can't be followed"
            if any(call.known(x) or call.value(x) is None for x in call.inputs if x not in self._states):
                why = f"{name} gives its frequencies weights that aren't fixed numbers"
        if why is None:
            return
        self._losses[y] = why
        if lost is not None and lost.geometry.kind == "fourier_crop":
            lost.geometry = replace(lost.geometry, reason=f"a crop of the spectrum: {why}")

    def _transform(self, call: Call, y: Tensor, state: State | None, met: Operation | None) -> None:
        a, x = call.a, call.a["self"]
        dims = [dim % x.ndim for dim in a["dim"]]
        count = math.prod(y.shape[dim] if a.name.endswith("c2r") else x.shape[dim] for dim in dims)
        gain = {0: 1.0, 1: count**-0.5, 2: 1 / count}[int(a["normalization"])]
        if a.name.endswith("r2c") or (a.name.endswith("c2c") and a["forward"]):
            if state is not None and state.done:
                state = None  # a map, which is transformed once more
            if state is None and met is not None and (not x.is_complex() or x in self._real):
                state = State(Root(met), {})
            if state is None or any(dim in state.axes for dim in dims):
                return
            halved = dims[-1] if a.name.endswith("r2c") and a["onesided"] else None
            new = {d: Frequencies(x.shape[d], tuple(range(y.shape[d])), d == halved) for d in dims}
            self._states[y] = replace(state, axes={**state.axes, **new}, gain=state.gain * gain)
        elif state is not None and all(d in state.axes and not state.axes[d].inverted for d in dims):
            halved = dims[-1] if a.name.endswith("c2r") else None
            if any(state.axes[d].sided != (d == halved) for d in dims):
                return
            new = {d: replace(state.axes[d], inverted=y.shape[d]) for d in dims}
            self._states[y] = replace(state, axes={**state.axes, **new}, gain=state.gain * gain)

    def _take_part(self, call: Call, name: str, y: Tensor, state: State, frame: Frame, spot: Spot) -> None:
        """Take the real part of a complex map, or its magnitude."""
        if name == "view_as_real":
            self._states[y] = replace(state, parts=True)
        elif name == "select" and state.parts and call.a["dim"] % call.inputs[0].ndim == y.ndim:
            if call.a["index"] == 0:
                self._finish(call, y, state, "real", frame, spot)
        elif name == "abs" and not y.is_complex():
            self._finish(call, y, replace(state, gain=abs(state.gain)), "magnitude", frame, spot)
        elif name in SAME:
            self._states[y] = state

    def _finish(self, call: Call, y: Tensor, state: State, part: str, frame: Frame, spot: Spot) -> None:
        """Let the event of a crop be what it is: a low-pass, of which every so many-th sample is left."""
        event = state.root.events[0] if state.root.events else None
        if event is None or event.ending is not None or frame is not state.root.operation.frame:
            return
        found = self._describe(call, state, part)
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

    def _describe(self, call: Call, state: State, part: str) -> Geometry | str:
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
        mask = _arrange_mask(state, labels, kinds)
        if isinstance(mask, str):
            return mask
        spectrum = Spectrum(tuple(bands), state.gain, part == "magnitude", mask)
        return Geometry(
            "fourier_crop", tuple(stride), (1,) * len(kinds), phase=(0,) * len(kinds),
            joined="fourier_crop", spectrum=spectrum,
        )  # fmt: skip


def _find_band(axis: Frequencies) -> Band | None:
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


def _arrange_mask(state: State, labels: Labels, kinds: Sequence[str]) -> Mask | str | None:
    """Return by what the frequencies that are kept are multiplied, as maps; why that can't be told."""
    mask = state.mask
    if mask is None:
        return None
    for dim, axis in state.axes.items():
        band = _find_band(axis)
        if mask.shape[dim] > 1 and band is not None:
            places = {k: place for place, k in enumerate(axis.numbers) if k is not None}
            run = [places[(band.first + i) % axis.samples] for i in range(band.count)]
            mask = mask.index_select(dim, torch.tensor(run, dtype=torch.long))
    layout = find_layout(labels)
    if layout is not None and layout.whole:
        others = layout.order[1 : mask.ndim - len(layout.size)]
        uneven = any(mask.shape[dim] > 1 for dim in others)
        full = [
            labels[dim].extent if uneven and dim in others else mask.shape[dim] for dim in range(mask.ndim)
        ]
        return Mask(layout.arrange(mask.expand(full)))
    if any(mask.shape[dim] > 1 for dim in range(mask.ndim) if dim not in state.axes):
        return _UNEVEN
    dims = sorted(state.axes, key=lambda dim: kinds.index(_kind(labels, dim)))
    sizes = {_kind(labels, dim): mask.shape[dim] for dim in dims}
    rest = [dim for dim in range(mask.ndim) if dim not in dims]
    return Mask(mask.permute(*rest, *dims).reshape(1, 1, *(sizes.get(kind, 1) for kind in kinds)))


def _kind(labels: Labels, dim: int) -> str:
    return labels[dim].factors[0].kind
