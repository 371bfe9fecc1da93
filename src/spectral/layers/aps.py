"""Adaptive polyphase sampling: keep the strongest component (Chaman & Dokmanić 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.polyphase import PhasePool
from spectral.layers.pool import Stride


class APSPool(PhasePool):
    """Decimate from the phase whose component has the largest norm, per image, over channels and space.

    Which pixels are kept follows the content instead of the grid: a circular shift of the input shifts the
    output and changes nothing else, exactly, at sizes that the stride divides; see `PhasePool` for others
    and for residual branches. Aliasing is not reduced, it is the same for every shift. Of equal norms the
    first component wins, so a map with two equally strong ones (a checkerboard) is the exception.

    Args:
        stride: decimation factor, one for all axes or one for each.
        p: order of the norm, > 0; 2 is the published choice.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has another rank or dtype.

    Source:
        A. Chaman and I. Dokmanić, Truly Shift-Invariant Convolutional Neural Networks, CVPR 2021.

    Example:
        >>> APSPool2d()(torch.tensor([[[1.0, 2.0], [3.0, 9.0]]]))
        tensor([[[9.]]])
    """

    def __init__(self, stride: Stride = 2, p: float = 2.0) -> None:
        super().__init__(None, stride)
        if isinstance(p, bool) or not isinstance(p, int | float) or not p > 0:
            raise SpectralError(f"{type(self).__name__}: p must be > 0, got {p!r}")
        self.p = p

    def _select(self, parts: Tensor) -> Tensor:
        dtype = torch.promote_types(parts.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(
            parts.detach(), self.p, dim=tuple(range(2, parts.ndim)), dtype=dtype
        )
        return norms.argmax(1)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"{super().extra_repr()}, p={self.p}"


class APSPool1d(APSPool):
    """`APSPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class APSPool2d(APSPool):
    """`APSPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class APSPool3d(APSPool):
    """`APSPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
