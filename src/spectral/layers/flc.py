"""FrequencyLowCut pooling: keep the low-frequency block of the spectrum (Grabinski 2022)."""

from __future__ import annotations

from torch import Tensor

from spectral.errors import SpectralError
from spectral.layers.common import Stride, apply_axes
from spectral.layers.ideal import IdealLowPass2d
from spectral.numerics.matrices import as_matrix, cropping_rows


class FLCPool2d(IdealLowPass2d):
    """Keep the low-frequency block of the DFT and transform back at the small size.

    By default **identical to `IdealLowPass2d`**, on which it is built. Where s divides N, cutting the block
    and transforming back at N/s samples is the same as zeroing the rest and keeping every s-th sample. Where
    it doesn't, the low-passed map is evaluated at the samples 0, s, 2s, … that a strided convolution keeps
    (and not at ⌈N/s⌉ equispaced points): the output stays on the grid of a parallel branch, and the layer
    remains a low-pass followed by decimation, with AM 0. The block is symmetric about DC: the bin at the new
    Nyquist frequency has no partner in it and is dropped, so the result is real without taking a real part.

    ``compat="paper"`` computes what the published layer does, at stride 2 only. It crops the DC-centred
    spectrum to the indices ⌊N/4⌋ … ⌊3N/4⌋ − 1, transforms back and takes the real part. At N ≡ 0 mod 4 this
    differs from the default by the unpaired bin at the new Nyquist frequency. At N ≡ 2 mod 4 the crop is off
    by one: DC lands in bin 1 and a constant map turns into a cosine. At N ≡ 1 mod 4 the output has ⌊N/2⌋
    samples instead of ⌈N/2⌉, and a side of one pixel has none.

    Args:
        stride: decimation factor, one for both axes or (s_h, s_w).
        compat: None, or ``"paper"`` for weights that were trained with the published layer.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); with ``compat`` see above.

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
            raise SpectralError(
                f"{type(self).__name__}: compat='paper' is defined for stride 2 only, got {stride!r}; "
                "leave compat out"
            )
        self.compat = compat

    def forward(self, x: Tensor) -> Tensor:
        """Low-pass and decimate."""
        return self._crop(x) if self.compat else super().forward(x)

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
        self.check(x)
        if 1 in x.shape[-2:]:
            raise SpectralError(
                f"{type(self).__name__}: compat='paper' leaves nothing of a side of 1 pixel, "
                f"got shape {tuple(x.shape)}; leave compat out"
            )
        parts = (
            [as_matrix(cropping_rows, x, size, part, self.hamming) for size in x.shape[-2:]]
            for part in ("real", "imaginary")
        )
        (rows, columns), (rows_i, columns_i) = parts
        return apply_axes(x, rows, columns) - apply_axes(x, rows_i, columns_i)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return super().extra_repr() + (f", compat={self.compat!r}" if self.compat else "")
