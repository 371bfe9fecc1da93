"""Polyphase components of a map: the Π s maps that a decimation could keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.filters import extend
from spectral.layers.pool import Pool
from spectral.numerics.memory import match_memory


def split_phases(x: Tensor, stride: Sequence[int], mode: str = "circular") -> Tensor:
    """Split into polyphase components: number i·s_w + j holds the samples (i + s_h·m, j + s_w·n).

    Where s doesn't divide N the map is extended by ``mode`` up to s·⌈N/s⌉ samples, so that all components
    have the size ⌈N/s⌉.

    Shape:
        (B, C, H, W) → (B, s_h·s_w, C, ⌈H/s_h⌉, ⌈W/s_w⌉); any number of spatial axes, the last phase fastest.

    Example:
        >>> split_phases(torch.arange(4.0).view(1, 1, 2, 2), (1, 2)).flatten(2)
        tensor([[[0., 2.],
                 [1., 3.]]])
    """
    axes = len(stride)
    blocks = [size for n, s in zip(x.shape[2:], stride, strict=True) for size in ((n + s - 1) // s, s)]
    x = fill_up(x, stride, mode)
    samples, phases = (range(first, 2 + 2 * axes, 2) for first in (2, 3))
    return x.reshape(*x.shape[:2], *blocks).permute(0, *phases, 1, *samples).flatten(1, axes)


def fill_up(x: Tensor, stride: Sequence[int], mode: str = "circular") -> Tensor:
    """Extend every spatial axis to the next multiple of its stride.

    Example:
        >>> fill_up(torch.tensor([[[1, 2, 3]]]), [2])
        tensor([[[1, 2, 3, 1]]])
    """
    for axis, step in enumerate(stride, -len(stride)):
        if step > 1:
            size = x.shape[axis]
            x = extend(x, axis, 0, (size + step - 1) // step * step - size, mode)
    return x


class PhasePool(Pool):
    """A pool that keeps one polyphase component per image; what chooses it is the subclass's.

    The choice depends on the components only and not on their order. A circular shift of an image whose sides
    the stride divides permutes its components, up to shifts of their own: the same content is kept, and the
    output is the old one, shifted. Where the stride doesn't divide a side, components wrap around its end (a
    sample of the beginning appears twice), a shift changes their content, and equivariance is lost: no
    lattice of step s is periodic there.

    A residual block stays aligned if its branches keep the same component:
    ``phase = pool.select(x)``, then ``pool(x, phase) + other_pool(y, phase)``.
    """

    kind = "polyphase"

    def forward(self, x: Tensor, phase: Tensor | None = None) -> Tensor:
        """Keep the component that `select` chooses, or the one chosen elsewhere.

        Args:
            x: (B, C, …) or (C, …).
            phase: what `select` returned for the branch that decides.
        """
        self.check(x)
        maps = self._as_batch(x)
        parts = split_phases(maps, self.stride)
        phase = self._select(parts) if phase is None else self._check_phase(phase, maps)
        if phase.is_floating_point():
            kept = torch.einsum("bp,bp...->b...", phase.to(x.dtype), parts)
        else:
            kept = parts[torch.arange(parts.shape[0], device=x.device), phase]
        return match_memory(kept, x, self.axes) if maps is x else kept[0]

    def dense(self, x: Tensor, phase: Tensor | None = None) -> Tensor:
        """Move each image so that its choice comes first: ``dense(x)[..., ::s_h, ::s_w]`` is the output.

        Raises:
            SpectralError: for soft weights, which mix all components: no map is decimated then.
        """
        self.check(x)
        maps = self._as_batch(x)
        phase = self.select(x) if phase is None else self._check_phase(phase, maps)
        if phase.is_floating_point():
            raise SpectralError(f"{type(self).__name__}: soft weights decimate no map; call eval() first")
        moved = fill_up(maps, self.stride)
        for axis, step in zip(range(-1, -self.axes - 1, -1), reversed(self.stride), strict=True):
            moved = _move(moved, axis, phase % step)
            phase = phase // step
        return moved if maps is x else moved[0]

    def select(self, x: Tensor) -> Tensor:
        """Choose a component per image: its number i·s_w + j, for sharing between branches.

        Shape:
            (B, C, …) or (C, …) → (B,), int64; or (B, Π s) weights where the choice is soft.
        """
        self.check(x)
        return self._select(split_phases(self._as_batch(x), self.stride))

    def _select(self, parts: Tensor) -> Tensor:
        raise NotImplementedError

    def _as_batch(self, x: Tensor) -> Tensor:
        return x if x.ndim == self.axes + 2 else x[None]

    def _check_phase(self, phase: Tensor, maps: Tensor) -> Tensor:
        images, phases = maps.shape[0], math.prod(self.stride)
        if phase.is_floating_point():
            fits = phase.shape == (images, phases)
        else:
            fits = phase.dtype == torch.int64 and phase.shape == (images,)
        if not fits:
            raise SpectralError(
                f"{type(self).__name__}: phase must be what select() returns for {images} images and "
                f"{phases} phases, got shape {tuple(phase.shape)} of {phase.dtype}"
            )
        return phase


def _move(maps: Tensor, axis: int, first: Tensor) -> Tensor:
    """Roll an axis of each image of a batch so that a sample of its own comes first."""
    size = maps.shape[axis]
    index = (first[:, None] + torch.arange(size, device=maps.device)) % size
    shape = [1] * maps.ndim
    shape[0], shape[axis] = index.shape
    return maps.gather(axis, index.view(shape).expand(maps.shape))
