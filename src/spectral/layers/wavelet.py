"""Wavelet pooling: keep the LL band of a discrete wavelet transform (WaveCNet)."""

from __future__ import annotations

import pywt
import torch

from spectral.errors import SpectralError, suggest
from spectral.layers.filterpool import FilterPool
from spectral.layers.filters import outer
from spectral.layers.pool import Stride


class WaveletPool(FilterPool):
    """The low band of a wavelet transform along every axis (LL of an image), scaled to unit gain at DC.

    A wavelet's low-pass filter has DC gain √2 per axis, so LL is twice as bright as the map; here the taps
    sum to 1. Output k sees the samples s·k − L/2 + 1 … s·k + L/2 for a filter of L taps, as in
    PyWavelets' ``periodization`` mode, which ``padding_mode="circular"`` reproduces at even sizes and stride
    2. Aliasing is reduced, not removed. Other strides keep every s-th sample behind the same filter, which
    was designed for 2 and does little for 4: apply the layer twice there. An axis of stride 1 isn't filtered.

    Args:
        channels: number of input (and output) channels.
        wavelet: a discrete wavelet's name in PyWavelets: ``"haar"``, ``"db2"``, ``"bior3.3"``, …
        stride: decimation factor, one for all axes or one for each.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but the first keep a
            constant up to the borders.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        Q. Li et al., Wavelet Integrated CNNs for Noise-Robust Image Classification, CVPR 2020.

    Example:
        >>> WaveletPool2d(1)(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]))
        tensor([[[4.]]])
    """

    def __init__(
        self, channels: int, wavelet: str = "haar", stride: Stride = 2, padding_mode: str = "reflect"
    ) -> None:
        super().__init__(channels, stride, padding_mode)
        names = pywt.wavelist(kind="discrete")
        if wavelet not in names:
            raise SpectralError(
                f"{type(self).__name__}: wavelet must be one of PyWavelets' discrete ones (haar, db2, "
                f"bior3.3 …), got {wavelet!r}{suggest(str(wavelet), names)}"
            )
        self.wavelet = wavelet
        # A transform convolves, torch correlates: the taps are reversed.
        taps = torch.tensor(pywt.Wavelet(wavelet).dec_lo[::-1], dtype=torch.float64)
        whole = torch.ones(1, dtype=torch.float64)
        kernel = outer([taps / taps.sum() if step > 1 else whole for step in self.stride])
        self.register_buffer("kernel", self.repeat_kernel(kernel.to(torch.get_default_dtype())))

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return (
            f"{self.channels}, stride={self.stride}, wavelet={self.wavelet!r}, "
            f"padding_mode={self.padding_mode!r}"
        )


class WaveletPool1d(WaveletPool):
    """`WaveletPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class WaveletPool2d(WaveletPool):
    """`WaveletPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class WaveletPool3d(WaveletPool):
    """`WaveletPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
