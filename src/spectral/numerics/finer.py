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

BLOCK = 2**17  # numbers of a map that are worked on at once
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
    writes: bool = False,
    taps: int | None = None,
) -> list[Tensor]:
    """Evaluate a function of each place on an r times finer lattice, and low-pass what it gives back.

    Maps are interpolated ideally; what is no map (gates, weights) is passed as it is. The phases of the finer
    lattice pass one by one and are added up, so it is never held as a whole.

    Args:
        func: acts on each place of maps alone.
        args: its positional arguments.
        kwargs: its named ones.
        entering: of every tensor among them, in their order, which axes are image axes.
        leaving: the same of every tensor that it returns.
        factor: r.
        writes: whether it writes into its arguments.
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
    axes = dict(zip(tensors, entering, strict=True))
    whole = next(leaves[i] for i in tensors if axes[i])
    kinds = {kind: leaves[i].shape[axis] for i in tensors for kind, axis in axes[i].items()}
    finer: dict[str, _Finer] = {
        kind: _Ideal(extent, factor, whole) if taps is None else _Filtered(taps, factor, whole)
        for kind, extent in kinds.items()
    }

    def run(values: list[Any]) -> list[Tensor]:
        if writes:
            values = [v.clone() if axes.get(i) else v for i, v in enumerate(values)]
        own_args, own_kwargs = tree_unflatten(values, structure)
        return _tensors_of(func(*own_args, **own_kwargs))

    def descend(values: list[Any], left: list[str]) -> list[Tensor]:
        if not left:
            return run(values)
        kind, inner = left[0], left[1:]
        lattice = finer[kind]
        total = descend(values, inner)
        for phase in range(1, factor):
            moved = [
                lattice.interpolate(v, axes[i][kind], phase) if kind in axes.get(i, ()) else v
                for i, v in enumerate(values)
            ]
            total = [
                lattice.add(a, b, own[kind], phase) if kind in own else torch.maximum(a, b)
                for a, b, own in zip(total, descend(moved, inner), leaving, strict=True)
            ]
        return [
            lattice.finish(y, own[kind]) if kind in own else y for y, own in zip(total, leaving, strict=True)
        ]

    with disable_autocast(whole):
        blocks = [descend(block, list(kinds)) for block in _split_batch(leaves, axes)]
    return blocks[0] if len(blocks) == 1 else [torch.cat(parts) for parts in zip(*blocks, strict=True)]


class _Finer:
    """An axis' r times finer lattice: what leads to each of its phases and back. Phase 0 is the map's own."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def interpolate(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Return the samples of a phase."""
        raise NotImplementedError

    def add(self, total: Tensor, y: Tensor, axis: int, phase: int) -> Tensor:
        """Add what a phase contributes to the low-pass back to the sum of those before."""
        raise NotImplementedError

    def share(self, phase: int) -> float:
        """Return how much of the sum before a phase counts: phase 0 came in as it was."""
        return 1 / self.factor if phase == 1 else 1.0

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Return the low-pass, once all phases are in it."""
        return y


class _Ideal(_Finer):
    """By thin products: nothing at or above the coarse lattice's Nyquist frequency is left."""

    def __init__(self, extent: int, factor: int, like: Tensor) -> None:
        super().__init__(factor)
        phases = range(1, factor)
        self.there = [as_matrix(phase_rows, like, extent, factor, phase) for phase in phases]
        self.back = [as_matrix(phase_low_pass_rows, like, extent, factor, phase) for phase in phases]

    def interpolate(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Return the samples of a phase."""
        wide = x.to(self.there[0].dtype)
        return _product(wide, axis, self.there[phase - 1]).to(x.dtype)

    def add(self, total: Tensor, y: Tensor, axis: int, phase: int) -> Tensor:
        """Add what a phase contributes."""
        wide, matrix = self.back[0].dtype, self.back[phase - 1]
        return _product(y.to(wide), axis, matrix, total.to(wide), self.share(phase)).to(y.dtype)

    def finish(self, y: Tensor, axis: int) -> Tensor:
        """Take out the Nyquist bin, which phase 0 has brought."""
        return remove_nyquist(y, axis)


class _Filtered(_Finer):
    """By windowed sinc filters on the periodic map."""

    def __init__(self, taps: int, factor: int, like: Tensor) -> None:
        super().__init__(factor)
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.taps = [
            remember(_sinc_taps, taps, factor, phase, like=like, dtype=dtype) for phase in range(1, factor)
        ]

    def interpolate(self, x: Tensor, axis: int, phase: int) -> Tensor:
        """Return the samples of a phase."""
        return self._filter(x, axis, self.taps[phase - 1], len(self.taps[0]) // 2 - 1)

    def add(self, total: Tensor, y: Tensor, axis: int, phase: int) -> Tensor:
        """Add what a phase contributes."""
        found = self._filter(y, axis, self.taps[phase - 1].flip(0), len(self.taps[0]) // 2)
        return total * self.share(phase) + found / self.factor

    def _filter(self, x: Tensor, axis: int, taps: Tensor, before: int) -> Tensor:
        extent = x.shape[axis]
        index = torch.arange(-before, extent + len(taps) - 1 - before, device=x.device) % extent
        planes = x.to(taps.dtype).index_select(axis, index)
        planes = planes.reshape(math.prod(x.shape[:axis]), 1, len(index), -1)
        return functional.conv2d(planes, taps.view(1, 1, -1, 1)).view(x.shape).to(x.dtype)


def _sinc_taps(taps: int, factor: int, phase: int) -> Any:
    """Taps that interpolate ``phase``/``factor`` behind a sample, from those around it; they add up to 1."""
    places = np.arange(1 - taps // 2, taps // 2 + 1) - phase / factor
    kernel = np.sinc(places) * np.cos(np.pi * places / (taps + 1)) ** 2
    return kernel / kernel.sum()


def _product(x: Tensor, axis: int, matrix: Tensor, plus: Tensor | None = None, share: float = 1.0) -> Tensor:
    """Multiply one axis by a square matrix, and add a share of another tensor, in one operation."""
    extent = x.shape[axis]
    if axis == x.ndim - 1:
        rows = x.reshape(-1, extent)
        if plus is None:
            return (rows @ matrix.T).view(x.shape)
        return torch.addmm(plus.reshape(-1, extent), rows, matrix.T, beta=share).view(x.shape)
    lead = math.prod(x.shape[:axis])
    planes, matrices = x.reshape(lead, extent, -1), matrix.expand(lead, -1, -1)
    if plus is None:
        return torch.bmm(matrices, planes).view(x.shape)
    return torch.baddbmm(plus.reshape(planes.shape), matrices, planes, beta=share).view(x.shape)


def _split_batch(leaves: list[Any], axes: Mapping[int, Axes]) -> list[list[Any]]:
    """Split what a function is given into blocks of images that a processor's cache holds; a GPU takes all.

    What is broadcast to the maps and has their batch axis is split with them.
    """
    maps = [i for i in axes if axes[i]]
    rank = max(leaves[i].ndim for i in maps)
    if any(leaves[i].ndim != rank or 0 in axes[i].values() for i in maps):
        return [leaves]
    images = len(leaves[maps[0]])
    each = max(1, BLOCK * images // leaves[maps[0]].numel())
    if each >= images or leaves[maps[0]].device.type != "cpu" or any(len(leaves[i]) != images for i in maps):
        return [leaves]
    split = {
        i: leaves[i].split(each) for i in axes if leaves[i].ndim == rank and len(leaves[i]) == images
    }  # fmt: skip
    count = -(-images // each)
    return [[split[i][k] if i in split else leaf for i, leaf in enumerate(leaves)] for k in range(count)]


def remove_nyquist(x: Tensor, axis: int) -> Tensor:
    """Take the Nyquist bin out of an axis; one of odd extent has none.

    Example:
        >>> remove_nyquist(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0)
        tensor([2., 2., 2., 2.])
    """
    extent = x.shape[axis]
    if extent % 2:
        return x
    row = as_matrix(_alternating_row, x, extent)
    shape = [1] * x.ndim
    shape[axis] = extent
    return x - multiply(x, axis, row / extent) * row.view(shape).to(x.dtype)


def _alternating_row(extent: int, arange: Any = np.arange) -> Any:
    return 1.0 - 2.0 * (arange(extent)[None] % 2)


def _tensors_of(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
