"""Polyphase components of a map: the s_h·s_w maps that a decimation could keep."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.common import Pool2d, extend


def split_phases(x: Tensor, stride: tuple[int, int], mode: str = "circular") -> Tensor:
    """Split into polyphase components: number i·s_w + j holds the samples (i + s_h·m, j + s_w·n).

    Where s doesn't divide N the map is extended by ``mode`` up to s·⌈N/s⌉ samples, so that all components
    have the size ⌈N/s⌉.

    Shape:
        (B, C, H, W) → (B, s_h·s_w, C, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Example:
        >>> split_phases(torch.arange(4.0).view(1, 1, 2, 2), (1, 2)).flatten(2)
        tensor([[[0., 2.],
                 [1., 3.]]])
    """
    for axis, step in zip((-2, -1), stride, strict=True):
        x = extend(x, axis, 0, -x.shape[axis] % step, mode)
    (s_h, s_w), (batch, channels, height, width) = stride, x.shape
    blocks = x.reshape(batch, channels, height // s_h, s_h, width // s_w, s_w)
    return blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)


class PhasePool2d(Pool2d):
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
            x: (B, C, H, W) or (C, H, W).
            phase: what `select` returned for the branch that decides.
        """
        self.check(x)
        maps = x if x.ndim == 4 else x[None]
        parts = split_phases(maps, self.stride)
        if phase is None:
            phase = self._select(parts)
        elif not self._fits(phase, parts):
            raise SpectralError(
                f"{type(self).__name__}: phase must be what select() returns for {parts.shape[0]} images and "
                f"{parts.shape[1]} phases, got shape {tuple(phase.shape)} of {phase.dtype}"
            )
        if phase.is_floating_point():
            kept = torch.einsum("bp,bpchw->bchw", phase.to(x.dtype), parts)
        else:
            kept = parts[torch.arange(parts.shape[0], device=x.device), phase]
        return kept if x.ndim == 4 else kept[0]

    def dense(self, x: Tensor, phase: Tensor | None = None) -> Tensor:
        """Move each image so that its choice comes first: ``dense(x)[..., ::s_h, ::s_w]`` is the output.

        Raises:
            SpectralError: for soft weights, which mix all components: no map is decimated then.
        """
        phase = self.select(x) if phase is None else phase
        if phase.is_floating_point():
            raise SpectralError(f"{type(self).__name__}: soft weights decimate no map; call eval() first")
        for axis, step in zip((-2, -1), self.stride, strict=True):
            x = extend(x, axis, 0, -x.shape[axis] % step, "circular")
        moves = [divmod(int(p), self.stride[1]) for p in phase]
        return torch.stack([one.roll((-i, -j), (-2, -1)) for one, (i, j) in zip(x, moves, strict=True)])

    def select(self, x: Tensor) -> Tensor:
        """Choose a component per image: its number i·s_w + j, for sharing between branches.

        Shape:
            (B, C, H, W) or (C, H, W) → (B,), int64; or (B, s_h·s_w) weights where the choice is soft.
        """
        self.check(x)
        return self._select(split_phases(x if x.ndim == 4 else x[None], self.stride))

    def _select(self, parts: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _fits(phase: Tensor, parts: Tensor) -> bool:
        if phase.is_floating_point():
            return phase.shape == parts.shape[:2]
        return phase.dtype == torch.int64 and phase.shape == parts.shape[:1]
