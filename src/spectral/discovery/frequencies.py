"""What a spectrum holds: which frequency lies at each place, and by what it was multiplied.

Operators that move frequencies, leave some out or weigh them are followed; of what others make nothing is
known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from spectral.axes import BATCH, Call
from spectral.discovery.events import Event
from spectral.tracing.recorder import Operation

Numbers = tuple[int | None, ...]  # the frequency at each place of an axis; None where zeros were added
Box = tuple[range, ...]  # places along each axis
SAME = {"clone", "_to_copy", "alias", "detach", "contiguous", "lift_fresh"}
_WEIGHING = {"mul", "div", "masked_fill", "where", "neg", "fill", "zero", "copy"}  # with an underscore, too


@dataclass(eq=False)
class Root:
    """One transform of a map: what began it, and events of what was lost behind it and of what was picked."""

    operation: Operation
    events: list[Event] = field(default_factory=list)
    picks: list[Event] = field(default_factory=list)


@dataclass(frozen=True)
class Frequencies:
    """One axis: how many samples it had, and the frequency at each place, None where zeros were added.

    ``sided`` tells that it has one half only, as of a real map. When it has been transformed back,
    ``inverted`` is the number of samples that it has then.
    """

    samples: int
    numbers: Numbers
    sided: bool = False
    inverted: int = 0


@dataclass(frozen=True)
class State:
    """What a tensor is: its axes by number, those that were transformed, and by what all was multiplied.

    ``mask`` has the axes of the tensor, of extent 1 where all along it is multiplied alike; of images always.
    """

    root: Root
    axes: dict[int, Frequencies]
    gain: float = 1.0
    mask: Tensor | None = None
    parts: bool = False  # real and imaginary part lie along the last axis

    @property
    def done(self) -> bool:
        """Whether all has been transformed back."""
        return all(axis.inverted for axis in self.axes.values())

    def take(self, dim: int, places: Sequence[int | None]) -> State:
        """Return what some places of an axis hold; None is a place where zeros are added."""
        axes, mask = self.axes, self.mask
        if dim in axes:
            numbers = tuple(None if i is None else axes[dim].numbers[i] for i in places)
            axes = {**axes, dim: replace(axes[dim], numbers=numbers)}
        if mask is not None and mask.shape[dim] > 1:
            kept = torch.tensor([i is not None for i in places])
            mask = mask.index_select(dim, torch.tensor([i or 0 for i in places]))
            mask = mask * kept.reshape([-1 if i == dim else 1 for i in range(mask.ndim)])
        return replace(self, axes=axes, mask=mask)

    def weigh(self, factors: Tensor) -> State:
        """Return what it is when it is multiplied."""
        return replace(self, mask=factors if self.mask is None else self.mask * factors)


def follow_move(call: Call, states: Sequence[State]) -> State | None:
    """Say what an operator's output holds; None if that isn't known.

    Args:
        call: the operator.
        states: of its inputs that are made of the image.
    """
    name = call.name
    if name in SAME:
        return states[0]
    if name in _MOVES:
        return _MOVES[name](call, states)
    return weigh(call, states[0]) if name.rstrip("_") in _WEIGHING and len(states) == 1 else None


def empty_spectrum(like: State, ndim: int) -> State:
    """Return the state of zeros into which another spectrum is about to be written."""
    axes = {dim: replace(axis, numbers=()) for dim, axis in like.axes.items()}
    return State(like.root, axes, like.gain, torch.zeros([1] * ndim))


def overwrite(whole: State, x: Tensor, part: Tensor, written: State) -> State | None:
    """Say what a tensor holds when a part of it has been overwritten; None if that can't be told.

    Args:
        whole: what it held.
        x: the tensor.
        part: a view of its memory.
        written: what that holds now.
    """
    box = _find_box(x, part)
    if box is None or written.root is not whole.root or written.gain != whole.gain:
        return None
    axes = {}
    for dim, axis in whole.axes.items():
        numbers = list(axis.numbers) or [None] * x.shape[dim]
        for place, number in zip(box[dim], written.axes[dim].numbers, strict=True):
            if number is not None and numbers[place] not in (None, number):
                return None
            numbers[place] = numbers[place] if number is None else number
        axes[dim] = replace(axis, numbers=tuple(numbers))
    old, new = (torch.ones([1] * x.ndim) if one.mask is None else one.mask for one in (whole, written))
    for dim, axis in written.axes.items():
        kept = torch.tensor([k is not None for k in axis.numbers])
        new = new if kept.all() else new * kept.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    partly = [n > 1 or m > 1 or len(places) < extent
              for n, m, places, extent in zip(old.shape, new.shape, box, x.shape, strict=True)]  # fmt: skip
    mask = old.expand([n if own else 1 for n, own in zip(x.shape, partly, strict=True)])
    mask = mask.to(torch.promote_types(old.dtype, new.dtype), copy=True)
    places = [
        slice(p.start, p.stop, p.step) if own else slice(None) for p, own in zip(box, partly, strict=True)
    ]
    mask[tuple(places)] = new.to(mask.dtype)
    return replace(whole, axes=axes, mask=mask)


def _find_box(x: Tensor, part: Tensor) -> Box | None:
    """Find which places of a tensor a view of its memory has; None if that is no run along each axis."""
    if part.ndim != x.ndim or part.dtype != x.dtype:
        return None
    left, box = int(part.storage_offset()) - int(x.storage_offset()), [range(0)] * x.ndim
    for dim in sorted(range(x.ndim), key=x.stride, reverse=True):
        apart, n = x.stride(dim), part.shape[dim]
        start, left = divmod(left, apart) if apart else (0, left)
        step = part.stride(dim) // apart if n > 1 and apart else 1
        box[dim] = range(start, start + step * n, step)
        if (n > 1 and (step < 1 or step * apart != part.stride(dim))) or box[dim][-1] >= x.shape[dim]:
            return None
    return tuple(box) if left == 0 else None


def weigh(call: Call, state: State) -> State | None:
    """Ask what an operator with fixed numbers makes of ones; it has to leave zeros what they are.

    Args:
        call: the operator.
        state: of the one of its inputs that is made of the image.
    """
    image = call.source
    values = {id(x): call.value(x) for x in call.inputs if x is not image}
    if any(value is None for value in values.values()):
        return None
    # what is written to keeps its size; what is made anew need be no larger than what it is multiplied with
    size = image.shape if call.facts.writes_first else [1] * image.ndim
    ones = torch.ones(size, dtype=torch.promote_types(image.dtype, torch.cfloat))

    def run(given: Tensor) -> Tensor:
        args = tree_map_only(Tensor, lambda x: given if x is image else values[id(x)], dict(call.a.values))
        made: Tensor = call.func(**args)
        return made

    try:
        made, none = run(ones.clone()), run(torch.zeros_like(ones))
    except (RuntimeError, TypeError):
        return None
    if bool(none.any()) or made.ndim != image.ndim:
        return None
    for dim, axis in enumerate(call.labels(image)):
        if made.shape[dim] > 1 and any(f.kind == BATCH for f in axis):
            first = made.narrow(dim, 0, 1)
            if not torch.equal(made, first.expand_as(made)):
                return None  # images that are weighted in different ways
            made = first
    return state.weigh(made)


def _slice(call: Call, states: Sequence[State]) -> State | None:
    x, a = call.inputs[0], call.a
    dim = a["dim"] % x.ndim
    return states[0].take(dim, range(x.shape[dim])[a["start"] : a["end"] : a["step"]])


def _roll(call: Call, states: Sequence[State]) -> State | None:
    (state, *_), a, x = states, call.a, call.inputs[0]
    if not a["dims"]:
        return None
    for shift, dim in zip(a["shifts"], a["dims"], strict=True):
        n = x.shape[dim]
        state = state.take(dim % x.ndim, [(i - shift) % n for i in range(n)])
    return state


def _cat(call: Call, states: Sequence[State]) -> State | None:
    first, dim = states[0], call.a["dim"] % call.inputs[0].ndim
    others = [{d: axis for d, axis in s.axes.items() if d != dim} for s in states]
    alike = all(s.root is first.root and s.gain == first.gain for s in states)
    if not alike or dim not in first.axes or any(one != others[0] for one in others):
        return None
    numbers = tuple(k for s in states for k in s.axes[dim].numbers)
    mask = None
    if any(s.mask is not None for s in states):
        masks = [torch.ones([1] * call.inputs[0].ndim) if s.mask is None else s.mask for s in states]
        rest = torch.broadcast_shapes(*(m.narrow(dim, 0, 1).shape for m in masks))
        sizes = [(*rest[:dim], len(s.axes[dim].numbers), *rest[dim + 1 :]) for s in states]
        mask = torch.cat([m.expand(size) for m, size in zip(masks, sizes, strict=True)], dim)
    return replace(first, axes={**first.axes, dim: replace(first.axes[dim], numbers=numbers)}, mask=mask)


def _pick(call: Call, states: Sequence[State]) -> State | None:
    x, a = call.inputs[0], call.a
    indices = a["indices"] if "indices" in a else [*[None] * (a["dim"] % x.ndim), a["index"]]
    chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(chosen) != 1:
        return None
    ((dim, index),) = chosen
    value = call.value(index)
    if value is None or value.ndim != 1 or value.dtype.is_floating_point:
        return None
    places = value.nonzero().flatten() if value.dtype == torch.bool else value % x.shape[dim]
    return states[0].take(dim, places.tolist())


def _pad(call: Call, states: Sequence[State]) -> State | None:
    state, x, pad = states[0], call.inputs[0], call.a["pad"]
    if call.a["value"]:
        return None
    for i in range(0, len(pad), 2):
        dim, before, behind = x.ndim - 1 - i // 2, pad[i], pad[i + 1]
        kept = range(x.shape[dim])[max(-before, 0) : x.shape[dim] - max(-behind, 0)]
        state = state.take(dim, [*[None] * max(before, 0), *kept, *[None] * max(behind, 0)])
    return state


_MOVES: dict[str, Callable[[Call, Sequence[State]], State | None]] = {
    "slice": _slice, "roll": _roll, "cat": _cat, "index": _pick, "index_select": _pick,
    "constant_pad_nd": _pad,
}  # fmt: skip
