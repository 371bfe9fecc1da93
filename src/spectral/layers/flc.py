"""FrequencyLowCut pooling: keep the low-frequency block of the spectrum (Grabinski 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.ideal import IdealLowPass
from spectral.layers.pool import Stride
from spectral.numerics.matrices import as_matrix, cropping_rows
from spectral.numerics.products import apply_axes
from spectral.numerics.tracing import fixed_shape


class FLCPool(IdealLowPass):
    """Keep the low-frequency block of the DFT and transform back at the small size.

    By default **identical to `IdealLowPass`**, on which it is built. Where s divides N, cutting the block
    and transforming back at N/s samples is the same as zeroing the rest and keeping every s-th sample. Where
    it doesn't, the low-passed map is evaluated at the samples 0, s, 2s, … that a strided convolution keeps
    (and not at ⌈N/s⌉ equispaced points): the output stays on the grid of a parallel branch, and the layer
    remains a low-pass followed by decimation, with AM 0. The block is symmetric about DC: the bin at the new
    Nyquist frequency has no partner in it and is dropped, so the result is real without taking a real part.

    ``compat="paper"`` computes what the published layer does, for images at stride 2. It crops the DC-centred
    spectrum to the indices ⌊N/4⌋ … ⌊3N/4⌋ − 1, transforms back and takes the real part. At N ≡ 0 mod 4 this
    differs from the default by the unpaired bin at the new Nyquist frequency. At N ≡ 2 mod 4 the crop is off
    by one: DC lands in bin 1 and a constant map turns into a cosine. At N ≡ 1 mod 4 the output has ⌊N/2⌋
    samples instead of ⌈N/2⌉, and a side of one pixel has none.

    Args:
        stride: decimation factor, one for all axes or one for each.
        compat: None, or ``"paper"`` for weights that were trained with the published layer.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W; with ``compat`` see
        above.

    Raises:
        SpectralError: if an argument is out of range, or an input has another rank or dtype.

    Source:
        J. Grabinski et al., FrequencyLowCut Pooling: Plug & Play against Catastrophic Overfitting, ECCV 2022.

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 14, 14)
        >>> for layer in (FLCPool2d(), FLCPool2d(compat="paper")):
        ...     print(abs(round(float(layer(ones).mean()), 5)))
        1.0
        0.0
    """

    def __init__(self, stride: Stride = 2, compat: str | None = None) -> None:
        super().__init__(stride)
        self.choose("compat", compat, (None, "paper"))
        if compat and self.stride != (2, 2):
            got = f"stride {stride!r}" if self.axes == 2 else f"{self.axes} axes"
            raise SpectralError(
                f"{type(self).__name__}: compat='paper' is defined for images at stride 2 only, got {got}; "
                "leave compat out"
            )
        self.compat = compat

    @property
    def obstacle(self) -> str | None:
        """Why it has no dense map with ``compat="paper"``: the crop is a decimation at some sizes only."""
        return "compat='paper' crops the spectrum: it has no map before decimation" if self.compat else None

    def pool(self, x: Tensor) -> Tensor:
        """Low-pass and decimate."""
        return self._crop(x) if self.compat else super().pool(x)

    def dense(self, x: Tensor) -> Tensor:
        """Low-pass only: ``layer.dense(x)[..., ::s_h, ::s_w]`` is the layer's output.

        Raises:
            SpectralError: with ``compat="paper"``, whose crop is a decimation at some sizes only.
        """
        if self.compat:
            raise SpectralError(
                f"{type(self).__name__}: compat='paper' has no map before decimation; leave compat out"
            )
        return super().dense(x)

    def _crop(self, x: Tensor) -> Tensor:
        """Re(A_h x A_wᵀ) with complex A, in real arithmetic."""
        if 1 in fixed_shape(x)[-2:]:
            raise SpectralError(
                f"{type(self).__name__}: compat='paper' leaves nothing of a side of 1 pixel, "
                f"got shape {tuple(x.shape)}; leave compat out"
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # rounded to a half type once, at the end
        real, imaginary = (
            apply_axes(wide, [as_matrix(cropping_rows, x, size, part, self.hamming) for size in x.shape[-2:]])
            for part in ("real", "imaginary")
        )
        return (real - imaginary).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return super().extra_repr() + (f", compat={self.compat!r}" if self.compat else "")


class FLCPool1d(FLCPool):
    """`FLCPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class FLCPool2d(FLCPool):
    """`FLCPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class FLCPool3d(FLCPool):
    """`FLCPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
