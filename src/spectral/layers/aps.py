"""Adaptive polyphase sampling: keep the strongest component (Chaman & Dokmanić 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.common import Stride
from spectral.layers.polyphase import PhasePool2d


class APSPool2d(PhasePool2d):
    """Decimate from the phase whose component has the largest norm, per image, over channels and space.

    Which pixels are kept follows the content instead of the grid: a circular shift of the input shifts the
    output and changes nothing else, exactly, at sizes that the stride divides; see `PhasePool2d` for others
    and for residual branches. Aliasing is not reduced, it is the same for every shift. Of equal norms the
    first component wins, so a map with two equally strong ones (a checkerboard) is the exception.

    Args:
        stride: decimation factor, one for both axes or (s_h, s_w).
        p: order of the norm, > 0; 2 is the published choice.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

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
        if not isinstance(p, int | float) or not p > 0:
            raise SpectralError(f"APSPool2d: p must be > 0, got {p!r}")
        self.p = p

    def _select(self, parts: Tensor) -> Tensor:
        dtype = torch.promote_types(parts.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(parts.detach(), self.p, dim=(2, 3, 4), dtype=dtype)
        return norms.argmax(1)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"{super().extra_repr()}, p={self.p}"
