"""Functions of each place of a map, evaluated on a finer lattice: what they add beyond it doesn't fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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

BLOCK = 2**18  # numbers of a finer lattice that are worked on at once: what a processor's cache holds
NARROW = 12  # a last axis of less is multiplied faster as the first
LARGE_BLOCK = 2**26  # on a GPU, which has no use for small ones
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

    Maps are interpolated ideally; what is no map (gates, weights) is passed as it is. On the finer lattice
    the map's own samples come first along each axis, then those between them: a function of each place knows
    no order, and nothing is multiplied that is there already. Blocks of images, and of rows of an image, are
    worked on one by one, so that the finer lattice is never held as a whole.

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

    def run(values: list[Any]) -> list[Tensor]:
        own_args, own_kwargs = tree_unflatten(values, structure)
        return _tensors_of(func(*own_args, **own_kwargs))

    def evaluate(values: list[Any], left: Sequence[str]) -> list[Tensor]:
        """Evaluate on a lattice that is finer along the axes that are left."""
        if not left:
            return run(values)
        kind, *inner = left
        own = {i: axis[kind] for i, axis in axes.items() if kind in axis}
        values = [finer[kind].rise(v, own[i]) if i in own else v for i, v in enumerate(values)]
        split = bool(inner) and all(kind in axis for axis in leaving)
        blocks = _split(values, own, factor ** len(inner)) if split else [values]
        made = zip(*(evaluate(block, inner) for block in blocks), strict=True)
        return [
            descend(kind, _join(parts, axis[kind]), axis[kind]) if kind in axis else parts[0]
            for parts, axis in zip(made, leaving, strict=True)
        ]

    def descend(kind: str, y: Tensor, axis: int) -> Tensor:
        """Low-pass an axis; whole numbers and truth values are those at the map's own samples."""
        return finer[kind].descend(y, axis) if y.is_floating_point() else y.narrow(axis, 0, kinds[kind])

    def finish(y: Tensor, axis: Axes) -> Tensor:
        for kind, position in axis.items() if y.is_floating_point() else ():
            y = finer[kind].finish(y, position)
        return y.contiguous()

    images = _split(leaves, _find_batch(leaves, axes), factor ** len(kinds))
    with disable_autocast(whole):
        made = zip(*(evaluate(block, list(kinds)) for block in images), strict=True)
        finished = [
            [finish(y, axis) for y in parts] for parts, axis in zip(made, leaving, strict=True)
        ]  # fmt: skip
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in finished]


class _Finer:
    """An axis' r times finer lattice, phase behind phase: what leads there and back. Phase 0 is the map."""

    def rise(self, x: Tensor, axis: int) -> Tensor:
        """Interpolate an axis."""
        raise NotImplementedError

    def descend(self, y: Tensor, axis: int) -> Tensor:
        """Low-pass an axis, and keep the map's own samples."""
        raise NotImplementedError

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Do what is left to do once all axes have descended."""
        return y


class _Ideal(_Finer):
    """By thin products: nothing at or above the coarse lattice's Nyquist frequency is left."""

    def __init__(self, extent: int, factor: int, like: Tensor) -> None:
        self.extent, self.factor = extent, factor
        self.there = as_matrix(phase_rows, like, extent, factor)
        self.back = as_matrix(phase_low_pass_rows, like, extent, factor)
        self.wave = as_matrix(_alternating_row, like, extent)[0] if extent % 2 == 0 else None

    def rise(self, x: Tensor, axis: int) -> Tensor:
        """Interpolate an axis."""
        wide = x.to(self.there.dtype)
        if self._is_inner(x, axis):
            wide = wide.contiguous()
            others = torch.mm(wide.view(-1, self.extent), self.there.T)
            return torch.cat([wide, others.view(*x.shape[:-1], (self.factor - 1) * self.extent)], -1).to(
                x.dtype
            )
        first = wide.movedim(axis, 0)  # as the rows of one large product
        rows = first.reshape(self.extent, -1)
        fine = torch.cat([rows, torch.mm(self.there, rows)]).to(x.dtype)
        return fine.view(self.factor * self.extent, *first.shape[1:]).movedim(0, axis)

    def descend(self, y: Tensor, axis: int) -> Tensor:
        """Low-pass an axis but for its Nyquist bin, and keep the map's own samples."""
        n, share, wide = self.extent, 1 / self.factor, y.to(self.back.dtype)
        if self._is_inner(y, axis):
            columns = wide.reshape(-1, n * self.factor)
            found = torch.addmm(columns[:, :n], columns[:, n:], self.back.T, beta=share)
            return found.view(*y.shape[:-1], n).to(y.dtype)
        first = wide.movedim(axis, 0)
        rows = first.reshape(n * self.factor, -1)
        found = torch.addmm(rows[:n], self.back, rows[n:], beta=share)
        return found.view(n, *first.shape[1:]).movedim(0, axis).to(y.dtype)

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Take out the Nyquist bin, which the map's own samples have brought; an odd extent has none."""
        return y if self.wave is None else _remove(self.wave, y, axis)

    def _is_inner(self, x: Tensor, axis: int) -> bool:
        """Whether an axis is multiplied where it is, as the last in memory; any other is put first."""
        return axis == x.ndim - 1 and self.extent >= NARROW


class _Filtered(_Finer):
    """By windowed sinc filters on the periodic map."""

    def __init__(self, taps: int, extent: int, factor: int, like: Tensor) -> None:
        self.extent, self.factor = extent, factor
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.taps = [
            remember(_sinc_taps, taps, factor, phase, like=like, dtype=dtype) for phase in range(1, factor)
        ]

    def rise(self, x: Tensor, axis: int) -> Tensor:
        """Interpolate an axis."""
        before = len(self.taps[0]) // 2 - 1
        return torch.cat([x, *(self._filter(x, axis, taps, before) for taps in self.taps)], axis)

    def descend(self, y: Tensor, axis: int) -> Tensor:
        """Low-pass an axis, and keep the map's own samples."""
        own: Tensor
        own, *others = y.split(self.extent, axis)
        for part, taps in zip(others, self.taps, strict=True):
            own = own + self._filter(part, axis, taps.flip(0), len(taps) // 2)
        return own / self.factor

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


def _split(values: Sequence[Any], axes: Mapping[int, int], finer: int) -> list[list[Any]]:
    """Split an axis of tensors into blocks of a size that a processor's cache holds.

    Args:
        values: tensors, and what is none and goes with every block.
        axes: of tensors to be split which axis is.
        finer: how many times larger they become.
    """
    if not axes or is_traced(values[next(iter(axes))]):
        return [list(values)]
    largest = max((values[i] for i in axes), key=Tensor.numel)
    extent = next(values[i].shape[axis] for i, axis in axes.items())
    block = BLOCK if largest.device.type == "cpu" else LARGE_BLOCK
    each = max(1, block * extent // max(1, largest.numel() * finer))
    if each >= extent:
        return [list(values)]
    split = {i: values[i].split(each, axis) for i, axis in axes.items()}
    count = -(-extent // each)
    return [[split[i][k] if i in split else leaf for i, leaf in enumerate(values)] for k in range(count)]


def _join(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Put blocks behind each other along an axis, in memory the first."""
    return torch.cat([y.movedim(axis, 0) for y in parts]).movedim(0, axis) if len(parts) > 1 else parts[0]


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
