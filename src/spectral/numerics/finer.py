"""Functions of each place of a map, evaluated on a finer lattice: what they add beyond it doesn't fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from spectral.numerics.cache import remember
from spectral.numerics.matrices import as_matrix, phase_low_pass_rows, phase_rows
from spectral.numerics.products import disable_autocast, transform_axes
from spectral.numerics.tracing import is_traced

BLOCK = 2**17  # numbers of a map that are worked on at once: what a processor's cache holds
NARROW = 12  # a last axis of less is multiplied faster as the first
LARGE_BLOCK = 2**24  # on a GPU, which has no use for small ones
Axes = Mapping[str, int]  # of a map: which of its axes are t, h and w, of those along which it has samples


def multiply(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply one axis of maps by a matrix, in at least single precision.

    Example:
        >>> multiply(torch.ones(2, 3, 4), 1, torch.ones(1, 3)).shape
        torch.Size([2, 1, 4])
    """
    with disable_autocast(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return transform_axes(wide, axis, [matrix]).to(x.dtype)


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

    Maps are interpolated ideally; what is no map (gates, weights) is passed as it is. The finer lattice is
    worked on phase by phase, of which the first is the map itself: a function of each place knows no order.
    So is a batch, image by image, and an image by its rows: the finer lattice is never held as a whole, and
    what is worked on stays in a processor's cache.

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
        kind: _Ideal(extent, factor, whole) if taps is None else _Filtered(taps, extent, factor, whole)
        for kind, extent in kinds.items()
    }
    multiplied = kinds if taps is None else {}  # filters slide over maps as they are
    layouts = {i: _lay_out(leaves[i].ndim, own, multiplied) for i, own in axes.items()}

    def run(values: list[Any]) -> list[Tensor]:
        """Run the function on maps as it knows them."""
        given = [layouts[i].restore(v) if i in layouts else v for i, v in enumerate(values)]
        own_args, own_kwargs = tree_unflatten(given, structure)
        made = _tensors_of(func(*own_args, **own_kwargs))
        laid = zip(made, leaving, strict=True)
        return [_lay_out(y.ndim, axis, multiplied).arrange(y) for y, axis in laid]

    def evaluate(values: list[Any], left: Sequence[str]) -> list[Tensor]:
        """Evaluate on a lattice that is finer along the kinds of axes that are left."""
        if not left:
            return run(values)
        kind, *inner = left
        own = {i: layout.places[kind] for i, layout in layouts.items() if kind in layout.places}
        apart = bool(inner) and all(kind in axis for axis in leaving)
        phases: list[list[Tensor]] = []
        for phase in (*range(1, factor), 0):  # the map itself is the last: the function may write into it
            here = [finer[kind].rise(v, own[i], phase) if i in own and phase else v
                    for i, v in enumerate(values)]  # fmt: skip
            blocks = _split(here, own) if apart else [here]
            made = zip(*(evaluate(block, inner) for block in blocks), strict=True)
            phases.append([join(parts, y, kind) for y, parts in enumerate(made)])
        return [descend(kind, parts, y) for y, parts in enumerate(zip(*phases, strict=True))]

    def place(x: Tensor, y: int, kind: str) -> int:
        return _lay_out(x.ndim, leaving[y], multiplied).places[kind]

    def join(parts: Sequence[Tensor], y: int, kind: str) -> Tensor:
        return torch.cat(list(parts), place(parts[0], y, kind)) if len(parts) > 1 else parts[0]

    def descend(kind: str, phases: Sequence[Tensor], y: int) -> Tensor:
        """Low-pass an axis; whole numbers and truth values are those at the map's own samples."""
        *others, same = phases
        if not same.is_floating_point() or kind not in leaving[y]:
            return same
        return finer[kind].descend(same, others, place(same, y, kind))

    def finish(x: Tensor, y: int) -> Tensor:
        layout = _lay_out(x.ndim, leaving[y], multiplied)
        for kind, axis in layout.places.items() if x.is_floating_point() else ():
            x = finer[kind].finish(x, axis)
        return layout.restore(x).contiguous()

    with disable_autocast(whole):
        parts = []
        for block in _split(leaves, _find_batch(leaves, axes)):
            laid = [layouts[i].copy(v) if i in layouts else v for i, v in enumerate(block)]
            parts.append([finish(x, y) for y, x in enumerate(evaluate(laid, list(kinds)))])
        return [torch.cat(own) if len(own) > 1 else own[0] for own in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Layout:
    """In which order the axes of a map lie in memory while it is worked on, and where those of the image do.

    An axis is multiplied fastest as the first, as the columns of one large product, or as the last, as its
    rows. The image's come first, but for a last one that is long enough.
    """

    order: tuple[int, ...]
    places: Mapping[str, int]

    def arrange(self, x: Tensor) -> Tensor:
        return x.permute(self.order)

    def restore(self, x: Tensor) -> Tensor:
        return x.permute(sorted(self.order, key=self.order.__getitem__))

    def copy(self, x: Tensor) -> Tensor:
        return self.arrange(x).clone(memory_format=torch.contiguous_format)


def _lay_out(rank: int, axes: Axes, extents: Mapping[str, int]) -> _Layout:
    """Choose the order of a map's axes, of which ``axes`` are the image's and ``extents`` are multiplied."""
    last = {axis for kind, axis in axes.items() if axis == rank - 1 and extents.get(kind, 0) >= NARROW}
    first = [axes[kind] for kind in extents if kind in axes and axes[kind] not in last]
    rest = [axis for axis in range(rank) if axis not in first and axis not in last]
    order = (*first, *rest, *last)
    return _Layout(order, {kind: order.index(axis) for kind, axis in axes.items()})


class _Finer:
    """An axis' r times finer lattice by phases, of which 0 is the map itself: what leads there and back."""

    def rise(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        raise NotImplementedError

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int) -> Tensor:
        """Low-pass an axis, and keep the map's own samples: from phase 0, and from phases 1, 2, …"""
        raise NotImplementedError

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Do what is left to do once all axes have descended."""
        return y


class _Ideal(_Finer):
    """By thin products: nothing at or above the coarse lattice's Nyquist frequency is left."""

    def __init__(self, extent: int, factor: int, like: Tensor) -> None:
        self.share = 1 / factor
        self.there = as_matrix(phase_rows, like, extent, factor).split(extent)
        self.back = as_matrix(phase_low_pass_rows, like, extent, factor).split(extent, 1)
        self.wave = as_matrix(_alternating_row, like, extent)[0] if extent % 2 == 0 else None

    def rise(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        matrix = self.there[phase - 1]
        return _multiply_axis(matrix, x.to(matrix.dtype), axis).to(x.dtype)

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int) -> Tensor:
        """Low-pass an axis but for its Nyquist bin, and keep the map's own samples."""
        wide = (x.to(self.back[0].dtype) for x in others)
        first, *rest = (_multiply_axis(m, x, axis) for m, x in zip(self.back, wide, strict=True))
        for part in rest:
            first.add_(part)
        return first.add_(same.to(first.dtype), alpha=self.share).to(same.dtype)

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Take out the Nyquist bin, which the map's own samples have brought; an odd extent has none."""
        return y if self.wave is None else _remove(self.wave, y, axis)


def _multiply_axis(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply an axis by a square matrix, in as few products as its place in memory allows."""
    extent = len(matrix)
    if axis == x.ndim - 1:
        return torch.mm(x.reshape(-1, extent), matrix.T).view(x.shape)
    if axis == 0:
        return torch.mm(matrix, x.reshape(extent, -1)).view(x.shape)
    return torch.matmul(matrix, x.flatten(axis + 1)).view(x.shape)


class _Filtered(_Finer):
    """By windowed sinc filters on the periodic map."""

    def __init__(self, taps: int, extent: int, factor: int, like: Tensor) -> None:
        self.factor = factor
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.taps = [
            remember(_sinc_taps, taps, factor, phase, like=like, dtype=dtype) for phase in range(1, factor)
        ]

    def rise(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Interpolate an axis ``phase``/r of a sample behind each sample."""
        taps = self.taps[phase - 1]
        return self._filter(x, axis, taps, len(taps) // 2 - 1)

    def descend(self, same: Tensor, others: Sequence[Tensor], axis: int) -> Tensor:
        """Low-pass an axis, and keep the map's own samples."""
        for part, taps in zip(others, self.taps, strict=True):
            same = same + self._filter(part, axis, taps.flip(0), len(taps) // 2)
        return same / self.factor

    def _filter(self, x: Tensor, axis: int, taps: Tensor, before: int) -> Tensor:
        extent = x.shape[axis]
        index = torch.arange(-before, extent + len(taps) - 1 - before, device=x.device) % extent
        planes = x.to(taps.dtype).index_select(axis, index)
        planes = planes.reshape(math.prod(x.shape[:axis]), 1, len(index), math.prod(x.shape[axis + 1 :]))
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
    block = BLOCK if largest.device.type == "cpu" else LARGE_BLOCK
    each = max(1, block * extent // max(1, largest.numel()))
    if each >= extent:
        return [list(values)]
    split = {i: values[i].split(each, axis) for i, axis in axes.items()}
    count = -(-extent // each)
    return [[split[i][k] if i in split else leaf for i, leaf in enumerate(values)] for k in range(count)]


def remove_nyquist(x: Tensor, axis: int) -> Tensor:
    """Take the Nyquist bin out of an axis; one of odd extent has none.

    Example:
        >>> remove_nyquist(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0)
        tensor([2., 2., 2., 2.])
    """
    extent = x.shape[axis]
    return x if extent % 2 else _remove(as_matrix(_alternating_row, x, extent)[0], x, axis % x.ndim)


def _remove(wave: Tensor, x: Tensor, axis: int) -> Tensor:
    """Take the part of an axis out that is along a wave of ones."""
    wide, extent = x.to(wave.dtype), len(wave)
    if axis == x.ndim - 1:
        rows = wide.reshape(-1, extent)
        return torch.addr(rows, torch.mv(rows, wave), wave, alpha=-1 / extent).view(x.shape).to(x.dtype)
    first = wide.movedim(axis, 0)
    columns = first.reshape(extent, -1)
    found = torch.addr(columns, wave, torch.mv(columns.T, wave), alpha=-1 / extent)
    return found.view(first.shape).movedim(0, axis).to(x.dtype)


def _alternating_row(extent: int, arange: Any = np.arange) -> Any:
    return 1.0 - 2.0 * (arange(extent)[None] % 2)


def _tensors_of(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
