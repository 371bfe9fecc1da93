"""Anti-aliased downsampling layers, one file each, and their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.layers.aps import APSPool2d
from spectral.layers.asap import ASAPPool2d
from spectral.layers.blurpool import BlurPool2d
from spectral.layers.common import MAX_KERNEL_SIZE, Stride
from spectral.layers.flc import FLCPool2d
from spectral.layers.ideal import IdealLowPass2d
from spectral.layers.learned import LearnedBlurPool2d
from spectral.layers.lps import LPSPool2d
from spectral.layers.maxblurpool import MaxBlurPool2d
from spectral.layers.spacetodepth import SpaceToDepth2d
from spectral.layers.wavelet import WaveletPool2d

__all__ = [
    "LAYERS",
    "APSPool2d",
    "ASAPPool2d",
    "BlurPool2d",
    "FLCPool2d",
    "IdealLowPass2d",
    "LPSPool2d",
    "LearnedBlurPool2d",
    "MaxBlurPool2d",
    "SpaceToDepth2d",
    "WaveletPool2d",
    "make_pool",
]

WAVELETS = ("haar", "db2", "db3", "db4", "db5", "db6", "bior2.2", "bior3.3", "bior4.4", "bior5.5")


def _make_blur(kernel_size: int, channels: int, stride: Stride) -> nn.Module:
    return BlurPool2d(channels, kernel_size, stride)


def _make_wavelet(wavelet: str, channels: int, stride: Stride) -> nn.Module:
    return WaveletPool2d(channels, wavelet, stride)


# Every pool that can stand for a stride: from channels and stride to a layer that keeps the channels.
LAYERS: dict[str, Callable[[int, Stride], nn.Module]] = {
    "blurpool": partial(_make_blur, 3),
    **{f"blurpool-{size}": partial(_make_blur, size) for size in range(1, MAX_KERNEL_SIZE + 1)},
    "learned": lambda channels, stride: LearnedBlurPool2d(channels, stride=stride),
    "flc": lambda channels, stride: FLCPool2d(stride),
    "asap": lambda channels, stride: ASAPPool2d(stride),
    "ideal": lambda channels, stride: IdealLowPass2d(stride),
    "aps": lambda channels, stride: APSPool2d(stride),
    "lps": lambda channels, stride: LPSPool2d(channels, stride),
    "wavelet": partial(_make_wavelet, "haar"),
    **{f"wavelet-{name}": partial(_make_wavelet, name) for name in WAVELETS},
    "space-to-depth": lambda channels, stride: SpaceToDepth2d(channels, stride, channels),
}


def make_pool(method: str, channels: int, stride: Stride = 2) -> nn.Module:
    """Build an anti-aliased downsampling layer by its name in ``LAYERS``.

    Raises:
        SpectralError: if the name is unknown, or an argument is out of range.

    Example:
        >>> make_pool("blurpool-5", channels=8)
        BlurPool2d(8, kernel_size=5, stride=(2, 2), padding_mode='reflect')
    """
    if method not in LAYERS:
        near = suggest(str(method), LAYERS) or f"; choose one of {', '.join(LAYERS)}"
        raise SpectralError(f"make_pool: no layer is called {method!r}{near}")
    return LAYERS[method](channels, stride)
