"""ASAP: FrequencyLowCut pooling with a Hamming window over the spectrum (Grabinski 2023)."""

from __future__ import annotations

from torch import Tensor

from spectral.layers.flc import FLCPool


class ASAPPool(FLCPool):
    """`FLCPool` whose band is tapered by a Hamming window, against the ringing of a hard cut.

    A bin of frequencies (f_u, f_v), in cycles per pixel of the input, has gain w(f_u)·w(f_v) with
    w(f) = 0.54 + 0.46 cos(2πf), a Hamming window over the whole spectrum, and gain 0 from the new Nyquist
    frequency on. The window is centred on DC, whose gain is exactly 1. At stride 2 the gain falls to 0.54 at
    the cut, so ringing gets weaker and doesn't vanish. No aliasing at any size or stride; an axis of
    stride 1 is left alone.

    ``compat="paper"`` computes what the published layer does, for images at stride 2: the crop of
    `FLCPool`'s compat mode; the root of the window's product, centred between two bins where N is even (a
    constant map comes out 0.77 times as large at N = 4, 0.998 at N = 32); and a transposed map.

    Args:
        stride: decimation factor, one for all axes or one for each.
        compat: None, or ``"paper"`` for weights that were trained with the published layer.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); with ``compat`` the axes of `FLCPool`'s, swapped.

    Raises:
        SpectralError: if an argument is out of range, or an input has another rank or dtype.

    Source:
        J. Grabinski et al., Fix your downsampling ASAP! Be natively more robust via Aliasing and Spectral
        Artifact free Pooling, 2023.

    Example:
        >>> import torch
        >>> for layer in (ASAPPool2d(), ASAPPool2d(compat="paper")):
        ...     print(layer(torch.ones(1, 4, 4)).mean())
        tensor(1.)
        tensor(0.7700)
    """

    hamming = True

    def pool(self, x: Tensor) -> Tensor:
        """Low-pass and decimate."""
        y = super().pool(x)
        return y.mT if self.compat else y


class ASAPPool1d(ASAPPool):
    """`ASAPPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class ASAPPool2d(ASAPPool):
    """`ASAPPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class ASAPPool3d(ASAPPool):
    """`ASAPPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
