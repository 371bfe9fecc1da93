"""Functions of each place of a map, evaluated on a finer lattice: what they add beyond it doesn't fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from spectral.numerics.cache import remember
from spectral.numerics.matrices import as_matrix, phase_low_pass_rows, phase_rows, wrap
from spectral.numerics.products import disable_autocast
from spectral.numerics.resampling import is_long, place
from spectral.numerics.tracing import is_traced

BLOCK = 2**18  # numbers of a map that are worked on at once: what a processor's cache holds
NARROW = 12  # a last axis of less is multiplied faster as the first
LARGE_BLOCK = 2**24  # on a GPU, which has no use for small ones
TOGETHER = 16  # times as many numbers of a finer map are held as a whole
Axes = Mapping[str, int]  # of a map: which of its axes are t, h and w, of those along which it has samples


def evaluate_finely(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    entering: Sequence[Axes],
    leaving: Sequence[Axes],
    factor: int,
    taps: int | None = None,
) -> list[Tensor]:
    """Evaluate a function of each place on an r times finer lattice, and low-pass what it gives back.

    Maps are interpolated ideally; what is no map (gates, weights) is passed as it is. A finer lattice is its
    phases, of which the first is the map itself: a function of each place knows no order, so that all are
    given to it at once, as further rows; or one by one, where they are large or maps differ in their axes.
    An axis that it takes away, as a maximum does, has the samples of all phases, one phase after the other.
    A batch is worked on in blocks of images, which stay in a processor's cache.

    Args:
        func: acts on each place of maps alone; it may write into them.
        args: its positional arguments.
        kwargs: its named ones.
        entering: of every tensor among them, in their order, which axes are image axes.
        leaving: the same of every tensor that it returns.
        factor: r.
        taps: interpolate and low-pass with filters of so many taps instead of ideally, which on large maps
            is cheaper; even.

    Example:
        >>> wave = torch.cos(2 * torch.pi * torch.arange(9) / 9)
        >>> (y,) = evaluate_finely(torch.square, (wave,), {}, [{"w": 0}], [{"w": 0}], factor=2)
        >>> bool((y - wave.square()).abs().max() < 1e-6)  # of frequency 2 at most: nothing is lost
        True
    """
    leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    axes = {i: own for i, own in zip(tensors, entering, strict=True) if own}
    whole = leaves[next(iter(axes))]
    kinds = {kind: leaves[i].shape[axis] for i, own in axes.items() for kind, axis in own.items()}
    finer: dict[str, _Finer] = {
        kind: _choose_ideal(extent, factor, whole) if taps is None else _Filtered(taps, extent, factor, whole)
        for kind, extent in kinds.items()
    }
    lengths = dict.fromkeys(kinds, NARROW) if is_traced(whole) else kinds  # those that stay open are long
    multiplied = lengths if taps is None else {}  # filters slide over maps as they are
    layouts = {i: _lay_out(leaves[i].ndim, own, multiplied) for i, own in axes.items()}
    reduced = [kind for kind in kinds if not any(kind in own for own in leaving)]
    left = [kind for kind in kinds if kind not in reduced]

    stack = _Stack(finer, factor)
    owned = not _is_followed(whole)  # what is computed on the way may be written over
    given_kwargs = {"inplace": True} if owned and kwargs.get("inplace") is False else {}
    alike = not reduced and all(
        own.keys() == kinds.keys() for own in (*axes.values(), *filter(None, leaving))
    )
    returned: list[_Layout] = []  # how what the function returns is laid out: known once it has run

    def run(values: list[Any]) -> list[Tensor]:
        """Run the function on maps as it knows them."""
        given = [layouts[i].restore(v) if i in layouts else v for i, v in enumerate(values)]
        own_args, own_kwargs = tree_unflatten(given, structure)
        made = _tensors_of(func(*own_args, **{**own_kwargs, **given_kwargs}))
        if len(reduced) == 1:  # of places along the axis, those of the map's own samples at or before them
            made = [y % kinds[reduced[0]] if y.dtype == torch.int64 else y for y in made]
        if not returned:
            laid = zip(made, leaving, strict=True)
            returned.extend(_lay_out(y.ndim, own, multiplied) for y, own in laid)
        return [layout.arrange(y) for y, layout in zip(made, returned, strict=True)]

    def evaluate(values: list[Any], kinds: Sequence[str]) -> list[Tensor]:
        """Evaluate on a lattice that is finer along some kinds of axes."""
        if not kinds:
            return run(values)
        if alike and fits(values, len(kinds)):
            fine = [stack.rise(v, layouts[i].find(kinds), i) if i in axes else v
                    for i, v in enumerate(values)]  # fmt: skip
            given = run(fine)
            over = owned and len(given) == 1  # several may be views of the same memory
            made = [stack.descend(y, layout.find(kinds), over) if layout.places else y
                    for y, layout in zip(given, returned, strict=True)]  # fmt: skip
            # The next of the phases of another axis is put into the same memory.
            return made if len(kinds) == len(left) else [y.clone() for y in made]
        kind, *inner = kinds
        phases: list[list[Tensor]] = []
        for phase in range(factor):
            here = list(values)
            for i, layout in layouts.items():
                rises = phase and kind in layout.places
                here[i] = finer[kind].rise(here[i], layout.places[kind], phase) if rises else here[i].clone()
            phases.append(evaluate(here, inner))
        return [descend(kind, *own) for own in zip(returned, *phases, strict=True)]

    def spread(values: list[Any]) -> list[Any]:
        """Give the axes that are taken away the samples of all phases."""
        for kind in reduced:
            for i, layout in layouts.items():
                if (axis := layout.places.get(kind)) is not None:
                    others = [finer[kind].rise(values[i], axis, phase) for phase in range(1, factor)]
                    values[i] = torch.cat([values[i], *others], axis)
        return values

    def fits(values: list[Any], count: int) -> bool:
        sizes = (values[i].numel() * factor**count for i in axes)
        return is_traced(whole) or max(sizes) <= TOGETHER * _find_block(whole)

    def descend(kind: str, layout: _Layout, *phases: Tensor) -> Tensor:
        """Low-pass an axis; whole numbers and truth values are those at the map's own samples."""
        same, *others = phases
        if not same.is_floating_point() or kind not in layout.places:
            return same
        return finer[kind].descend(same, others, layout.places[kind])

    def finish(x: Tensor, layout: _Layout) -> Tensor:
        for kind, axis in layout.places.items() if x.is_floating_point() else ():
            x = finer[kind].finish(x, axis, owned)
        return layout.restore(x)

    with disable_autocast(whole):
        blocks = _split(leaves, _find_batch(leaves, axes))
        joined = _Joined(len(whole) if len(blocks) > 1 else None, owned)
        for block in blocks:
            laid = spread([layouts[i].arrange(v) if i in layouts else v for i, v in enumerate(block)])
            joined.add([finish(*one) for one in zip(evaluate(laid, left), returned, strict=True)])
        return joined.get()


class _Joined:
    """What a function returned for one block of images after the other.

    Args:
        count: of images; None for one block, which may have no axis of them.
        owned: whether a block lies in memory of all its phases, into which the next is put.
    """

    def __init__(self, count: int | None, owned: bool) -> None:
        self._count, self._owned = count, owned
        self._parts: list[list[Tensor]] = []
        self._rooms: list[Tensor] = []
        self._done = 0

    def add(self, made: list[Tensor]) -> None:
        """Take a block."""
        if not self._owned:
            self._parts.append(made)
            return
        if self._count is None:
            self._rooms = [y.clone(memory_format=torch.contiguous_format) for y in made]
            return
        self._rooms = self._rooms or [y.new_empty((self._count, *y.shape[1:])) for y in made]
        for room, y in zip(self._rooms, made, strict=True):
            room[self._done : self._done + len(y)] = y
        self._done += len(made[0])

    def get(self) -> list[Tensor]:
        """Return all of them as one."""
        if self._owned:
            return self._rooms
        return [(torch.cat(own) if len(own) > 1 else own[0]).contiguous()
                for own in zip(*self._parts, strict=True)]  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """In which order the axes of a map lie in memory while it is worked on, and where those of the image do.

    An axis is multiplied fastest as the first, as the columns of one large product, or as the last, as its
    rows. The image's come first, but for a last one that is long enough and isn't the only one.
    """

    order: tuple[int, ...]
    places: Mapping[str, int]

    def arrange(self, x: Tensor) -> Tensor:
        return x.permute(self.order)

    def restore(self, x: Tensor) -> Tensor:
        return x.permute(sorted(self.order, key=self.order.__getitem__))

    def find(self, kinds: Iterable[str]) -> dict[str, int]:
        return {kind: self.places[kind] for kind in kinds}


def _lay_out(rank: int, axes: Axes, extents: Mapping[str, int]) -> _Layout:
    """Choose the order of a map's axes, of which ``axes`` are the image's and ``extents`` are multiplied."""
    last = {axis for kind, axis in axes.items()
            if axis == rank - 1 and extents.get(kind, 0) >= NARROW and len(axes) > 1}  # fmt: skip
    first = [axes[kind] for kind in extents if kind in axes and axes[kind] not in last]
    rest = [axis for axis in range(rank) if axis not in first and axis not in last]
    order = (*first, *rest, *last)
    return _Layout(order, {kind: order.index(axis) for kind, axis in axes.items()})


class _Finer:
    """An axis' r times finer lattice by phases, of which 0 is the map itself: what leads there and back."""

    dtype: torch.dtype

    def rise(self, x: Tensor, axis: int, phase: int, out: Tensor | None = None) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        raise NotImplementedError

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int, owned: bool = False) -> Tensor:
        """Low-pass an axis, and keep the map's own samples: from phase 0, and from phases 1, 2, …

        Args:
            same: of phase 0; written over if it is ``owned``.
            others: of the others.
            axis: which.
            owned: whether ``same`` is nobody else's.
        """
        raise NotImplementedError

    def finish(self, y: Tensor, axis: int, owned: bool = False) -> Tensor:
        """Do what is left to do once all axes have descended; ``y`` is written over if it is ``owned``."""
        return y


class _Stack:
    """All phases of maps, along several axes, as further rows below the first axis' own.

    One block after the other is put into the same memory: asking for it anew takes longer than filling it.
    """

    def __init__(self, finer: Mapping[str, _Finer], factor: int) -> None:
        self._finer, self._factor = finer, factor
        self._rooms: dict[int, Tensor] = {}

    def rise(self, x: Tensor, places: Mapping[str, int], slot: int) -> Tensor:
        """Interpolate; what was given for the same slot before is overwritten, unless it is recorded."""
        steps = [(self._finer[kind], axis + 1) for kind, axis in places.items()]
        if _is_followed(x) or any(own.dtype != x.dtype for own, _ in steps):
            # Phase by phase: in torch 2.10, graphs whose sizes stay open can't fold their axis with others.
            phases = [x]
            for own, axis in steps:
                phases += [own.rise(y, axis - 1, phase) for phase in range(1, self._factor) for y in phases]
            return torch.cat(phases)
        fine = self._find_room((self._factor ** len(steps), *x.shape), x, slot)
        fine[0] = x
        done = 1
        for own, axis in steps:
            for phase in range(1, self._factor):
                own.rise(fine[:done], axis, phase, fine[phase * done : (phase + 1) * done])
            done *= self._factor
        return fine.flatten(0, 1)

    def descend(self, y: Tensor, places: Mapping[str, int], owned: bool) -> Tensor:
        """Low-pass; whole numbers and truth values are those at the map's own samples."""
        phases: Tensor = y.unflatten(0, (self._factor ** len(places), -1))
        if not y.is_floating_point():
            return phases[0].clone()
        last_first = reversed([*places.items()])
        if _is_followed(y):
            each = list(phases.unbind())
            for kind, axis in last_first:
                n = len(each) // self._factor
                each = [self._finer[kind].descend(each[i], each[n + i :: n], axis) for i in range(n)]
            return each[0]
        for kind, axis in last_first:
            same, *others = phases.chunk(self._factor)
            phases = self._finer[kind].descend(same, others, axis + 1, owned)
        return phases[0]

    def _find_room(self, size: tuple[int, ...], x: Tensor, slot: int) -> Tensor:
        room = self._rooms.get(slot)
        if room is None or room.shape != size:
            room = self._rooms[slot] = x.new_empty(size)
        return room


def _choose_ideal(extent: int, factor: int, like: Tensor) -> _Finer:
    return (_Transformed if is_long(like, extent) else _Ideal)(extent, factor, like)


class _Ideal(_Finer):
    """By thin products: nothing at or above the coarse lattice's Nyquist frequency is left."""

    def __init__(self, extent: int, factor: int, like: Tensor) -> None:
        self.share = 1 / factor
        there = as_matrix(phase_rows, like, extent, factor)
        back = as_matrix(phase_low_pass_rows, like, extent, factor)
        self.there = there.unflatten(0, (factor - 1, -1)).unbind()  # by their number, which is never open
        self.back = back.unflatten(1, (factor - 1, -1)).unbind(1)
        odd = type(extent) is int and extent % 2 == 1  # of a size that stays open the wave tells
        self.wave = None if odd else as_matrix(_alternating_row, like, extent)
        self.dtype = self.there[0].dtype

    def rise(self, x: Tensor, axis: int, phase: int, out: Tensor | None = None) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        matrix = self.there[phase - 1]
        flat, at = _fold(x.to(self.dtype), axis)
        to = None if out is None else _fold(out, axis)[0]
        if flat.ndim > 2:
            found = torch.bmm(matrix.expand(flat.shape[0], -1, -1), flat, out=to)
        else:
            found = torch.mm(flat, matrix.T, out=to) if at else torch.mm(matrix, flat, out=to)
        return found.view(x.shape).to(x.dtype)

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int, owned: bool = False) -> Tensor:
        """Low-pass an axis but for its Nyquist bin, and keep the map's own samples."""
        (found, at), share = _fold(same.to(self.dtype), axis), self.share
        for matrix, other in zip(self.back, others, strict=True):
            flat = _fold(other.to(self.dtype), axis)[0]
            to = found if owned else None
            if flat.ndim > 2:
                found = torch.baddbmm(found, matrix.expand(flat.shape[0], -1, -1), flat, beta=share, out=to)
            else:
                pair = (flat, matrix.T) if at else (matrix, flat)
                found = torch.addmm(found, *pair, beta=share, out=to)
            share = 1
        return found.view(same.shape).to(same.dtype)

    def finish(self, y: Tensor, axis: int, owned: bool = False) -> Tensor:
        """Take out the Nyquist bin, which the map's own samples have brought; an odd extent has none."""
        return y if self.wave is None else _remove(self.wave, y, axis, owned)


def _is_followed(x: Tensor) -> bool:
    """Whether gradients, tangents or a graph follow a computation, so that no memory is used twice in it."""
    if torch.is_grad_enabled() or is_traced(x):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _fold(x: Tensor, axis: int) -> tuple[Tensor, int]:
    """Fold a map to a matrix, or several where an axis is between others; tell which axis it is of these."""
    extent = x.shape[axis]
    if axis == x.ndim - 1:
        return x.reshape(-1, extent), 1
    before = math.prod(x.shape[:axis])
    if before == 1:
        return x.reshape(extent, -1), 0
    return x.reshape(before, extent, -1), 1


class _Transformed(_Ideal):
    """The same by FFT, for axes that are too long for matrices."""

    def __init__(self, extent: int, factor: int, like: Tensor) -> None:
        self.factor, self.highest = factor, (extent - 1) // 2
        self.wave = None if extent % 2 else as_matrix(_alternating_row, like, extent)
        self.dtype = torch.promote_types(like.dtype, torch.float32)

    def rise(self, x: Tensor, axis: int, phase: int, out: Tensor | None = None) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        found = place(x, axis, x.shape[axis], phase / self.factor, self.highest, nyquist=True)
        return found if out is None else out.copy_(found)

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int, owned: bool = False) -> Tensor:
        """Low-pass an axis but for its Nyquist bin, and keep the map's own samples."""
        for phase, other in enumerate(others, 1):
            same = same + place(other, axis, other.shape[axis], -phase / self.factor, self.highest)
        return same / self.factor


class _Filtered(_Finer):
    """By windowed sinc filters on the periodic map."""

    def __init__(self, taps: int, extent: int, factor: int, like: Tensor) -> None:
        self.factor = factor
        self.dtype = dtype = torch.promote_types(like.dtype, torch.float32)
        self.taps = [
            remember(_sinc_taps, taps, factor, phase, like=like, dtype=dtype) for phase in range(1, factor)
        ]

    def rise(self, x: Tensor, axis: int, phase: int, out: Tensor | None = None) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        taps = self.taps[phase - 1]
        found = self._filter(x, axis, taps, len(taps) // 2 - 1)
        return found if out is None else out.copy_(found)

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int, owned: bool = False) -> Tensor:
        """Low-pass an axis, and keep the map's own samples."""
        for part, taps in zip(others, self.taps, strict=True):
            same = same + self._filter(part, axis, taps.flip(0), len(taps) // 2)
        return same / self.factor

    def _filter(self, x: Tensor, axis: int, taps: Tensor, before: int) -> Tensor:
        extent = x.shape[axis]
        index = wrap(torch.arange(-before, extent + len(taps) - 1 - before, device=x.device), extent)
        planes = x.to(taps.dtype).index_select(axis, index)
        planes = planes.reshape(-1, 1, extent + len(taps) - 1, math.prod(x.shape[axis + 1 :]))
        return functional.conv2d(planes, taps.view(1, 1, -1, 1)).view(x.shape).to(x.dtype)


def _sinc_taps(taps: int, factor: int, phase: int) -> Any:
    """Taps that interpolate ``phase``/``factor`` behind a sample, from those around it; they add up to 1."""
    places = np.arange(1 - taps // 2, taps // 2 + 1) - phase / factor
    kernel = np.sinc(places) * np.cos(np.pi * places / (taps + 1)) ** 2
    return kernel / kernel.sum()


def _find_batch(leaves: Sequence[Any], axes: Mapping[int, Axes]) -> dict[int, int]:
    """Tell of which leaves the first axis is one of images: of maps, and of what is broadcast to them."""
    rank = max(leaves[i].ndim for i in axes)
    if any(leaves[i].ndim != rank or 0 in own.values() for i, own in axes.items()):
        return {}
    images = leaves[next(iter(axes))].shape[0]
    if any(leaves[i].shape[0] != images for i in axes):
        return {}
    alike = (
        i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim == rank and x.shape[0] == images
    )
    return dict.fromkeys(alike, 0)


def _split(values: Sequence[Any], axes: Mapping[int, int]) -> list[list[Any]]:
    """Split an axis of tensors into blocks of a size that a processor's cache holds.

    Args:
        values: tensors, and what is none and goes with every block.
        axes: of tensors to be split which axis is.
    """
    if not axes or is_traced(values[next(iter(axes))]):
        return [list(values)]
    largest = max((values[i] for i in axes), key=Tensor.numel)
    extent = next(values[i].shape[axis] for i, axis in axes.items())
    each = max(1, _find_block(largest) * extent // max(1, largest.numel()))
    if each >= extent:
        return [list(values)]
    split = {i: values[i].split(each, axis) for i, axis in axes.items()}
    count = -(-extent // each)
    return [[split[i][k] if i in split else leaf for i, leaf in enumerate(values)] for k in range(count)]


def _find_block(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else LARGE_BLOCK


def remove_nyquist(x: Tensor, axis: int) -> Tensor:
    """Take the Nyquist bin out of an axis; one of odd extent has none.

    Example:
        >>> remove_nyquist(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0)
        tensor([2., 2., 2., 2.])
    """
    extent = x.shape[axis]
    return x if extent % 2 else _remove(as_matrix(_alternating_row, x, extent), x, axis % x.ndim)


def _remove(wave: Tensor, x: Tensor, axis: int, owned: bool = False) -> Tensor:
    """Take the part of an axis out that is along a wave of ones, a row; from the map itself if ``owned``."""
    flat, at = _fold(x.to(wave.dtype), axis)
    to = flat if owned else None
    mean = wave / -wave.shape[1]
    if flat.ndim > 2:
        found = torch.baddbmm(flat, wave.T.expand(flat.shape[0], -1, -1), mean @ flat, out=to)
    else:
        pair = (flat @ wave.T, mean) if at else (wave.T, mean @ flat)
        found = torch.addmm(flat, *pair, out=to)
    return found.view(x.shape).to(x.dtype)


def _alternating_row(extent: Any, arange: Any = np.arange) -> Any:
    """Return the wave at the Nyquist frequency, as a row; an odd extent has none, and gets zeros."""
    return (1.0 - 2.0 * wrap(arange(extent)[None], 2)) * (1 - extent % 2)


def _tensors_of(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
