"""Where each tensor comes from, and where the samples of the image have gone in it.

An operator's name doesn't tell whether it loses resolution: a step-2 slice is usually not spatial (rotary
embeddings, boxes, channels), and space-to-depth or window pooling are a view and something harmless. What
tells is where the samples of the image's axes have gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from torch import Tensor

from spectral.axes.calls import Call, is_lattice
from spectral.axes.constants import Constants
from spectral.axes.labels import (
    BATCH,
    CHANNEL,
    IMAGE_AXES,
    LOST,
    MIXED,
    Axis,
    Factor,
    Labels,
    cut,
    cut_windows,
    exact,
    find_step,
    resample,
    single,
    unknown,
)
from spectral.axes.picks import takes_joined
from spectral.axes.rules import CUTS, PRODUCTS, apply_rule
from spectral.axes.sums import find_factors
from spectral.axes.windows import Window, find_windows, mark_uneven
from spectral.operators import Decimation
from spectral.tracing.tensors import MemoryTable, TensorTable, memory_of

# They give other numbers than those of the tensor that they take the size from.
SIZES = {
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "new_zeros", "new_ones",
    "new_full", "new_empty",
}  # fmt: skip
FILLS = {
    "copy_",
    "index_put_",
    "scatter_",
    "index_copy_",
    "_index_put_impl_",
    "add_",
    "index_add_",
}

OWN = -1  # in place of the number of a view, of the channels with which an image came

Order = dict[str, str]


@dataclass(frozen=True)
class _Entry:
    """One entry of an axis: of which axis of which memory, which it is, and what the axis was."""

    memory: int
    axis: int
    index: int
    whole: Axis

    @property
    def axis_of(self) -> tuple[int, int, int]:
        """What entries of one axis have in common."""
        return self.memory, self.axis, self.whole.extent


@dataclass(frozen=True)
class _Part:
    """A part of an axis of places: of which axis of which memory, where it begins, and what the axis was."""

    memory: int
    axis: int
    start: int
    extent: int
    whole: Factor


class AxisTracker:
    """Labels of the tensors seen so far: mark the image, then follow every operator.

    Only what has been computed from the image has labels. Of the others it is known whether they were made of
    weights, or of fixed numbers; a tensor that no operator made comes from outside.

    Args:
        find_original: of a tensor that a model keeps, the one with its values; None of others.
        on_arrival: called with a map that comes from outside, and the size of the latest map before it.
        strict: whether to ask for a pass with data where fixed numbers are needed that can't be told.
        order: what the axes of the images are, where the model doesn't take them in torch's order: of each
            what it is instead.

    Attributes:
        reordered: such an order, if the first operator that slides over an image shows that it is another.
    """

    reordered: Order | None

    def __init__(
        self,
        find_original: Callable[[Tensor], Tensor | None],
        on_arrival: Callable[[Tensor, tuple[int, ...] | None], None],
        strict: bool = True,
        order: Order | None = None,
    ) -> None:
        self.constants = Constants()
        self.cuts = 0  # views so far
        self._find_original, self._on_arrival, self._strict = find_original, on_arrival, strict
        self._labels: TensorTable[Labels] = TensorTable()
        self._learned: TensorTable[bool] = TensorTable()
        self._fixed: TensorTable[bool] = TensorTable()
        self._outside: TensorTable[bool] = TensorTable()
        self._joined: TensorTable[bool] = TensorTable()
        self._entries: TensorTable[_Entry] = TensorTable()
        self._parts: TensorTable[_Part] = TensorTable()
        self._filled: MemoryTable[bool] = MemoryTable()
        self._taken_apart: MemoryTable[bool] = MemoryTable()  # of which there are entries
        self._images = 0  # in the batch
        self._order, self.reordered = order or {}, None
        self._first: tuple[
            str, ...
        ] = ()  # what the axes of the first image were taken for, until it is known
        self._maps: dict[tuple[int, ...], Labels] = {}  # of the latest map of each shape
        self._latest: dict[int, tuple[int, ...]] = {}  # size of the latest map of each rank

    def mark_image(self, x: Tensor, batched: bool = True) -> list[str]:
        """Label an input: (B, W), (B, C, W), (B, C, H, W) or (B, C, T, H, W); unbatched (C, H, W).

        Returns:
            What each of its axes is, in the order that the images are known to have.
        """
        leading = [BATCH, CHANNEL] if batched and x.ndim > 2 else [BATCH] if batched else [CHANNEL]
        kinds = [*leading, *IMAGE_AXES[-(x.ndim - len(leading)) :]]
        if self._order.keys() == set(kinds) - {BATCH}:
            kinds = [self._order.get(kind, kind) for kind in kinds]
        elif not self._order:
            self._first = self._first or tuple(kind for kind in kinds if kind != BATCH)
        self._images = len(x) if batched else 1
        pairs = zip(kinds, x.shape, strict=True)
        self._label(x, tuple(single(kind, n, cut=OWN if kind == CHANNEL else 0) for kind, n in pairs))
        return kinds

    def mark_learned(self, weights: Iterable[Tensor]) -> None:
        """Note the parameters."""
        for weight in weights:
            self._learned[weight] = True

    def mark_decimated(self, x: Tensor, output: Tensor, stride: Sequence[int]) -> None:
        """Label what a layer made of maps (B, C, …), whatever operators it used."""
        self._label(output, self._through_lattice(x, output, len(stride), stride))

    def comes_from_weights(self, x: Tensor) -> bool:
        """Whether a tensor is a parameter or was computed from parameters and not from the image."""
        return x in self._learned

    def comes_from_image(self, x: Tensor) -> bool:
        """Whether a tensor was computed from the image; parameters and tables of positions are not."""
        return x in self._labels or x in self._filled

    def is_joined(self, x: Tensor) -> bool:
        """Whether a tensor is what was joined to places, taken from among them: class tokens, registers."""
        return x in self._joined

    def labels(self, x: Tensor) -> Labels:
        """Return the labels of a tensor; all "?" where nothing is known."""
        if x.is_nested:
            return ()
        known: Labels | None = self._labels.get(x)
        return known if known is not None else unknown(x.shape)

    def relabel(self, x: Tensor, labels: Labels) -> None:
        """Say what is known better now."""
        self._label(x, labels)

    def read(self, call: Call, slides: bool) -> bool:
        """Fill in what is known of the tensors of a call that ran; return whether it reads the image.

        Args:
            call: the call.
            slides: whether it decimates a map.
        """
        inputs = call.inputs
        call.labels, call.known, call.value = self.labels, self.comes_from_image, self._find_value
        nested = any(x.is_nested for x in (*inputs, *call.outputs))
        for x in () if nested else inputs:
            self._meet(x, slides=slides and x is inputs[0])
        call.sources = list(filter(self.comes_from_image, inputs))
        if nested:
            return False  # of maps of several sizes, whose axes have none
        if call.name in SIZES or not call.sources:
            self._follow_constant(call, [] if call.name in SIZES else inputs)
            return False
        self.cuts += 1
        call.number, call.strict = self.cuts, self._strict
        return True

    def label(self, call: Call, decimation: Decimation | None) -> None:
        """Derive the labels of an operator's outputs from its inputs'."""
        inputs, outputs = call.inputs, call.outputs
        if call.name in FILLS and not self.comes_from_image(inputs[0]):
            self._fill(inputs[0], inputs[1:])
            call.sources = list(filter(self.comes_from_image, inputs))
        if call.sliding is not None:
            operator, count = call.sliding
            first = inputs[0].ndim - count
            channels = first - 1 if operator.makes_channels else None
            self._check_order(inputs[0], range(first, inputs[0].ndim), channels)
            stride = decimation.geometry.stride if decimation is not None else None
            found = [
                self._through_lattice(inputs[0], y, count, stride, operator.makes_channels) for y in outputs
            ]
            if operator.scatters and decimation is not None:
                found = [(*one[:-count], *(single(MIXED, n.extent) for n in one[-count:])) for one in found]
        else:
            if call.name == "unfold" and len(self._first) == 2:  # of an image each axis is cut by a call
                self._check_order(inputs[0], [call.a["dimension"] % inputs[0].ndim])
            found = [mark_uneven(call, labels) for labels in apply_rule(call)]
        for result, labels in zip(outputs, found, strict=True):
            self._label(result, labels)
        for result, joined in zip(outputs, takes_joined(call), strict=True):
            if joined:
                self._joined[result] = True
        if call.facts.is_mutable:  # what it has written to is of the image now
            call.sources = list(filter(self.comes_from_image, inputs))
        self._follow_entries(call)
        self._follow_parts(call)

    def collect_channels(self, x: Tensor, contracted: int | None = None) -> list[Window]:
        """Find windows of image samples that have become channels: by a view, or as factors of a product.

        The windows then count as channels, so the next view doesn't find them again.

        Args:
            x: the tensor.
            contracted: the axis over which a learned product is about to sum; else any that holds channels.

        Returns:
            The windows of each image axis that lost samples to the channels.
        """
        labels = self.labels(x)
        if contracted is not None:
            axes = [contracted % x.ndim]
        else:  # on the first axis stand images, with their windows
            axes = [a for a, axis in enumerate(labels) if a and axis.image and _holds_channels(axis)]
        for position in axes:
            moved = [f for f in labels[position].image if f.spatial and not f.spectrum]
            if not moved:
                continue
            others = labels[:position] + labels[position + 1 :]
            found = find_windows(moved, others)
            if found:
                factors = tuple(
                    replace(f, folded=True) if f in moved else f for f in labels[position].factors
                )
                channels = Axis(factors)
                self._label(x, (*labels[:position], channels, *labels[position + 1 :]))
                return found
        return []

    def find_contraction(self, call: Call) -> tuple[Tensor, int, Tensor] | None:
        """Return the image tensor in a product with another, the axis summed over, and the other factor."""
        if call.name not in PRODUCTS and "weight" not in call.facts.arguments:
            return None
        a, name = call.a, call.name
        if "weight" in a and "input" in a and "groups" in a:
            x, weight = a["input"], a["weight"]
            return (x, 1 - weight.ndim, weight) if x.ndim == weight.ndim else None
        if name not in PRODUCTS:
            return None
        first, second = find_factors(a)
        known = self.comes_from_image(first), self.comes_from_image(second)
        if known == (True, False):
            return first, -1, second
        return (second, -2, first) if known == (False, True) and second.ndim > 1 else None

    def _check_order(self, x: Tensor, axes: Sequence[int], channels: int | None = None) -> None:
        """See by the first operator that slides over an image whether its axes are what they were taken for.

        NHWC images and videos (B, T, C, H, W) are permuted before. What is slid over are places, what a
        convolution sums over are channels. Channels that an operator has made are no axis of the image: the
        frequencies of a spectrogram.

        Args:
            x: what it slides over.
            axes: along which.
            channels: the axis over which it sums, if there is one.
        """
        if not self.comes_from_image(x):
            return
        kinds, self._first = self._first, ()
        labels = self.labels(x)
        slid = [
            LOST if f is None or (f.kind == CHANNEL and not f.cut) else f.kind
            for f in (labels[axis].only for axis in axes)
        ]
        if len(kinds) < 2 or not set(slid) <= set(kinds) or len(set(slid)) < len(axes):
            return
        order = dict(zip(slid, IMAGE_AXES[-len(axes) :], strict=True))
        summed = labels[channels].only if channels is not None and channels >= 0 else None
        if summed is not None and summed.kind in set(kinds) - set(slid):
            order[summed.kind] = CHANNEL
        rest = [kind for kind in kinds if kind not in order.values()]
        for kind in (kind for kind in kinds if kind not in order):
            order[kind] = kind if kind in rest else rest[0]
            rest.remove(order[kind])
        if any(old != new for old, new in order.items()):
            self.reordered = order

    def _label(self, x: Tensor, labels: Labels) -> None:
        """Keep labels that fit the tensor."""
        if len(labels) != x.ndim:
            labels = unknown(x.shape)
        shape = tuple(x.shape)
        if tuple(axis.extent for axis in labels) != shape:
            labels = tuple(
                axis if axis.extent == n else single(LOST, n) for axis, n in zip(labels, shape, strict=True)
            )
        self._labels[x] = labels
        if len(shape) > 2 and is_lattice(labels):
            self._maps[shape] = labels
            self._latest[len(shape)] = shape[2:]

    def _find_value(self, x: Tensor) -> Tensor | None:
        """Return the value of a tensor that is the same for every image."""
        return None if self.comes_from_image(x) else self.constants.value(x)

    def _follow_entries(self, call: Call) -> None:
        """Follow entries that were taken from an axis one by one, until they are stacked again."""
        name = call.name
        if name in ("select", "unbind"):
            a = call.a
            x, axis = a["self"], a["dim"] % a["self"].ndim
            whole = self.labels(x)[axis]
            chosen = [a["index"] % x.shape[axis]] if "index" in a else range(x.shape[axis])
            self._taken_apart[x] = True
            for index, y in zip(chosen, call.outputs, strict=True):
                self._entries[y] = _Entry(memory_of(x), axis, index, whole)
            return
        found = [self._entries.get(x) for x in call.sources] if len(self._entries) else []
        entries = [entry for entry in found if entry is not None]
        if not entries or any(entry.axis_of != entries[0].axis_of for entry in entries):
            return
        if name == "stack" and len(entries) == len(call.inputs):
            steps = {b.index - a.index for a, b in pairwise(entries)}
            if len(steps) == 1 and min(steps) > 0:
                y, (step,) = call.outputs[0], steps
                axis, labels = call.a["dim"] % y.ndim, self.labels(y)
                restored = cut(entries[0].whole, entries[0].index, y.shape[axis], step)
                self._label(y, (*labels[:axis], restored, *labels[axis + 1 :]))
            return
        latest = max(
            entries, key=lambda entry: entry.index
        )  # a recurrent network's also depend on earlier ones
        for y in call.outputs:
            self._entries[y] = latest

    def _follow_parts(self, call: Call) -> None:
        """Follow parts into which an axis was cut, until they are stacked: windows, as `unfold` cuts them."""
        if call.name in CUTS and call.a.get("step", 1) == 1:
            self._note_parts(call)
        elif call.name == "stack" and len(self._parts):
            self._stack_parts(call)

    def _note_parts(self, call: Call) -> None:
        x, axis = call.a["self"], call.a.get("dim", 0) % call.a["self"].ndim
        whole = self.labels(x)[axis].only
        if whole is None or whole.kind not in IMAGE_AXES:
            return
        start = (call.a.get("start") or 0) % max(x.shape[axis], 1)
        for y in call.outputs:
            self._parts[y] = _Part(memory_of(x), axis, start, y.shape[axis], whole)
            start += y.shape[axis]

    def _stack_parts(self, call: Call) -> None:
        parts = [part for part in map(self._parts.get, call.inputs) if part is not None]
        steps = {b.start - a.start for a, b in pairwise(parts)}
        alike = len({replace(part, start=0) for part in parts}) == 1
        if not alike or len(parts) < len(call.inputs) or len(steps) != 1 or min(steps) < 1:
            return
        y, (step,), one = call.outputs[0], steps, parts[0]
        outer = call.a["dim"] % y.ndim
        inner = one.axis + (one.axis >= outer)
        labels = list(self.labels(y))
        labels[outer], labels[inner] = cut_windows(one.whole, one.extent, step, len(parts), call.number)
        self._label(y, tuple(labels))

    def _meet(self, x: Tensor, slides: bool) -> None:
        """Take up the trail where a tensor arrives that no operator made, as after NumPy.

        It counts as a map of the image if there was one of that shape, or if it is decimated.
        """
        if any(x in table for table in (self._labels, self._learned, self._fixed, self._outside)):
            return
        original = self._find_original(x)
        if original is not None:
            self._fixed[x] = True
            self.constants.mark(x, original)
            return
        if x in self._filled or x.ndim < 3:
            self._outside[x] = True
        elif tuple(x.shape) in self._maps:
            self._labels[x] = self._maps[tuple(x.shape)]
        elif slides or (x.is_floating_point() and x.ndim in (4, 5) and len(x) == self._images):
            self._on_arrival(x, self._latest.get(x.ndim))
            self.mark_image(x)
        else:
            self._outside[x] = True

    def _follow_constant(self, call: Call, inputs: list[Tensor]) -> None:
        """Say what a tensor was made of; what came from outside may be anything."""
        if any(x in self._outside for x in inputs):
            table = self._outside
        elif any(x in self._learned for x in inputs):
            table = self._learned
        else:
            table = self._fixed
            self.constants.note(call.func, call.args, call.kwargs, call.outputs)
        for y in call.outputs:
            table[y] = True

    def _fill(self, target: Tensor, sources: Sequence[Tensor]) -> None:
        """Let a constant that is filled with the image be one: its other views read it too."""
        self._filled[target] = True
        self.constants.forget(target)
        source = next((x for x in sources if self.comes_from_image(x) and x.ndim == target.ndim), None)
        if source is None:
            return
        # Of more entries than there is room for some are added to one place, or lost: nothing is resampled.
        places = [
            axis if n >= axis.extent else single(LOST, axis.extent)
            for axis, n in zip(self.labels(source), target.shape, strict=True)
        ]
        for other in self._fixed:
            if memory_of(other) == memory_of(target) and other.ndim == source.ndim:
                # Where every s-th entry is filled, entries lie s times closer than the samples.
                steps = [_ratio(own, wide) for own, wide in zip(other.stride(), target.stride(), strict=True)]
                axes = zip(places, other.shape, steps, strict=True)
                self._label(other, tuple(resample(axis, n, s) if axis.only else axis for axis, n, s in axes))

    def _through_lattice(
        self,
        x: Tensor,
        result: Tensor,
        count: int,
        stride: Sequence[int] | None,
        makes_channels: bool = False,
    ) -> Labels:
        """Label a convolution's or pool's output: the last axes are image axes, whatever they were before."""
        labels = list(self.labels(x))
        before, after = x.shape[x.ndim - count :], result.shape[result.ndim - count :]
        axes: list[Axis] = []
        # Of two axes that an operator slides over none holds channels; the axis of a signal may.
        trusted = (*IMAGE_AXES, CHANNEL) if count == 1 or before[0] == 1 else IMAGE_AXES
        for position in range(count):
            old, n = labels[x.ndim - count + position], after[position]
            only = old.only
            ratio = _ratio(before[position], n) if not stride or not any(stride) else stride[position - count]
            if n == before[position] and all(f.spatial for f in old) and old.joined is None:
                axes.append(old)
            elif only is not None and only.kind in trusted:
                axes.append(Axis((replace(only, extent=n, step=exact(only.step * ratio)),)))
            else:
                kind, apart = find_step(old) or (IMAGE_AXES[3 - count + position], None)
                axes.append(single(kind, n, 1 if apart is None else exact(apart * ratio)))
        leading = list(labels[: x.ndim - count])
        if len(leading) != result.ndim - count:
            leading = list(unknown(result.shape[: result.ndim - count]))
        made = result.shape[result.ndim - count - 1]
        same = all(f.spatial for f in leading[-1]) and leading[-1].extent == made
        if makes_channels and not same:
            leading[-1] = single(CHANNEL, made)
        return (*leading, *axes)


def _ratio(before: int, after: int) -> Fraction | int:
    """How many times as far apart samples are that a resampling left."""
    if after > before:
        return Fraction(1, max(1, round(after / max(before, 1))))
    return max(1, round(before / max(after, 1)))


def _holds_channels(axis: Axis) -> bool:
    return not axis.kinds.isdisjoint((CHANNEL, LOST)) and BATCH not in axis.kinds
