"""Wavelet pooling: keep the LL band of a discrete wavelet transform (WaveCNet)."""

from __future__ import annotations

import numpy as np
import pywt
import torch
from torch import Tensor

from spectral.errors import SpectralError, suggest
from spectral.layers.common import PADDING_MODES, Pool2d, Stride, filter_map


class WaveletPool2d(Pool2d):
    """The LL band of a wavelet transform, scaled to unit gain at DC.

    A wavelet's low-pass filter has DC gain √2 per axis, so the band is twice as bright as the map; here the
    taps sum to 1. Output k sees the samples s·k − L/2 + 1 … s·k + L/2 for a filter of L taps, as in
    PyWavelets' ``periodization`` mode, which ``padding_mode="circular"`` reproduces at even sizes and stride
    2. Aliasing is reduced, not removed. Other strides keep every s-th sample behind the same filter, which
    was designed for 2 and does little for 4: apply the layer twice there.

    Args:
        channels: number of input (and output) channels.
        wavelet: a discrete wavelet's name in PyWavelets: ``"haar"``, ``"db2"``, ``"bior3.3"``, …
        stride: decimation factor, one for both axes or (s_h, s_w).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but the first keep a
            constant up to the borders.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        Q. Li et al., Wavelet Integrated CNNs for Noise-Robust Image Classification, CVPR 2020.

    Example:
        >>> WaveletPool2d(1)(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]))
        tensor([[[4.]]])
    """

    kernel: Tensor

    def __init__(
        self, channels: int, wavelet: str = "haar", stride: Stride = 2, padding_mode: str = "reflect"
    ) -> None:
        super().__init__(channels, stride)
        self.choose("padding_mode", padding_mode, PADDING_MODES)
        names = pywt.wavelist(kind="discrete")
        if wavelet not in names:
            raise SpectralError(
                f"WaveletPool2d: wavelet must be one of PyWavelets' discrete ones (haar, db2, bior3.3 …), "
                f"got {wavelet!r}{suggest(str(wavelet), names)}"
            )
        self.wavelet = wavelet
        self.padding_mode = padding_mode
        # A transform convolves, torch correlates: the taps are reversed.
        taps = np.array(pywt.Wavelet(wavelet).dec_lo[::-1])
        taps /= taps.sum()
        kernel = torch.from_numpy(np.outer(taps, taps)).to(torch.get_default_dtype())
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Filter and decimate."""
        self.check(x)
        return filter_map(x, self.kernel, self.stride, self.padding_mode)

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"{super().extra_repr()}, wavelet={self.wavelet!r}, padding_mode={self.padding_mode!r}"
