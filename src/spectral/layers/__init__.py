"""Anti-aliased downsampling layers for signals, images and videos, one file each, and their names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spectral.arguments.validation import guard_room
from spectral.errors import SpectralError, suggest
from spectral.layers.activation import (
    AliasFreeActivation,
    AliasFreeActivation1d,
    AliasFreeActivation2d,
    AliasFreeActivation3d,
)
from spectral.layers.aps import APSPool, APSPool1d, APSPool2d, APSPool3d
from spectral.layers.asap import ASAPPool, ASAPPool1d, ASAPPool2d, ASAPPool3d
from spectral.layers.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d
from spectral.layers.decimate import Decimate, Decimate1d, Decimate2d, Decimate3d
from spectral.layers.flc import FLCPool, FLCPool1d, FLCPool2d, FLCPool3d
from spectral.layers.ideal import IdealLowPass, IdealLowPass1d, IdealLowPass2d, IdealLowPass3d
from spectral.layers.learned import LearnedBlurPool, LearnedBlurPool1d, LearnedBlurPool2d, LearnedBlurPool3d
from spectral.layers.lps import LPSPool, LPSPool1d, LPSPool2d, LPSPool3d
from spectral.layers.maxblurpool import MaxBlurPool, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d
from spectral.layers.polynomial import PolynomialActivation
from spectral.layers.polyphase import PhasePool
from spectral.layers.pool import MAX_KERNEL_SIZE, Pool, Stride
from spectral.layers.spacetodepth import SpaceToDepth, SpaceToDepth1d, SpaceToDepth2d, SpaceToDepth3d
from spectral.layers.wavelet import WaveletPool, WaveletPool1d, WaveletPool2d, WaveletPool3d

__all__ = [
    "LAYERS",
    "STRIDED",
    "APSPool",
    "APSPool1d",
    "APSPool2d",
    "APSPool3d",
    "ASAPPool",
    "ASAPPool1d",
    "ASAPPool2d",
    "ASAPPool3d",
    "AliasFreeActivation",
    "AliasFreeActivation1d",
    "AliasFreeActivation2d",
    "AliasFreeActivation3d",
    "BlurPool",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "Builder",
    "Decimate",
    "Decimate1d",
    "Decimate2d",
    "Decimate3d",
    "FLCPool",
    "FLCPool1d",
    "FLCPool2d",
    "FLCPool3d",
    "IdealLowPass",
    "IdealLowPass1d",
    "IdealLowPass2d",
    "IdealLowPass3d",
    "LPSPool",
    "LPSPool1d",
    "LPSPool2d",
    "LPSPool3d",
    "LearnedBlurPool",
    "LearnedBlurPool1d",
    "LearnedBlurPool2d",
    "LearnedBlurPool3d",
    "MaxBlurPool",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
    "PhasePool",
    "PolynomialActivation",
    "Pool",
    "SpaceToDepth",
    "SpaceToDepth1d",
    "SpaceToDepth2d",
    "SpaceToDepth3d",
    "Stride",
    "WaveletPool",
    "WaveletPool1d",
    "WaveletPool2d",
    "WaveletPool3d",
    "make_pool",
]

WAVELETS = ("haar", "db2", "db3", "db4", "db5", "db6", "bior2.2", "bior3.3", "bior4.4", "bior5.5")


@dataclass(frozen=True)
class Builder:
    """Builds one kind of layer, which keeps the channels, for a stride: what a name in `LAYERS` stands for.

    Args:
        name: what the layer is called.
        classes: the layer for one, two and three spatial axes.
        fixed: options that the name settles.
        keeps: the option that is the number of channels, for layers that could change it.

    Example:
        >>> LAYERS["blurpool"](8, (1, 2, 2), axes=3, padding_mode="zeros")
        BlurPool3d(8, kernel_size=3, stride=(1, 2, 2), padding_mode='zeros')
        >>> LAYERS["blurpool"].options
        ['kernel_size', 'padding_mode']
    """

    name: str
    classes: Sequence[type[Pool]]
    fixed: dict[str, Any] = field(default_factory=dict)
    keeps: str | None = None

    @property
    def options(self) -> list[str]:
        """Names of the options that `__call__` takes."""
        settled = {"channels", "stride", self.keeps, *self.fixed}
        return [name for name in inspect.signature(self.classes[0]).parameters if name not in settled]

    def __call__(self, channels: int, stride: Stride = 2, axes: int = 2, **options: Any) -> Pool:
        """Build the layer.

        Args:
            channels: of its input and output.
            stride: decimation factor, one for all axes or one for each.
            axes: 1 for signals, 2 for images, 3 for videos.
            options: as the layer's class takes them.

        Raises:
            SpectralError: if an option is unknown, or an argument out of range.
        """
        if isinstance(axes, bool) or axes not in (1, 2, 3):
            raise SpectralError(f"{self.name}: axes must be 1, 2 or 3, got {axes!r}")
        for option in options:
            if option not in self.options:
                known = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
                raise SpectralError(
                    f"{self.name}: no option is called {option!r}{suggest(option, self.options)}; {known}"
                )
        kind: Any = self.classes[axes - 1]
        arguments = {**self.fixed, **options, "stride": stride}
        if "channels" in inspect.signature(kind).parameters:
            arguments["channels"] = channels
        if self.keeps:
            arguments[self.keeps] = channels
        layer: Pool = kind(**arguments)
        return layer


_BLUR = (BlurPool1d, BlurPool2d, BlurPool3d)
_WAVELET = (WaveletPool1d, WaveletPool2d, WaveletPool3d)
_BUILDERS = (
    Builder("blurpool", _BLUR),
    *(Builder(f"blurpool-{size}", _BLUR, {"kernel_size": size}) for size in range(1, MAX_KERNEL_SIZE + 1)),
    Builder("learned", (LearnedBlurPool1d, LearnedBlurPool2d, LearnedBlurPool3d)),
    Builder("flc", (FLCPool1d, FLCPool2d, FLCPool3d)),
    Builder("asap", (ASAPPool1d, ASAPPool2d, ASAPPool3d)),
    Builder("ideal", (IdealLowPass1d, IdealLowPass2d, IdealLowPass3d)),
    Builder("aps", (APSPool1d, APSPool2d, APSPool3d)),
    Builder("lps", (LPSPool1d, LPSPool2d, LPSPool3d)),
    Builder("wavelet", _WAVELET),
    *(Builder(f"wavelet-{name}", _WAVELET, {"wavelet": name}) for name in WAVELETS),
    Builder("space-to-depth", (SpaceToDepth1d, SpaceToDepth2d, SpaceToDepth3d), keeps="out_channels"),
)
# Every pool that can stand for a stride: from channels, stride and axes to a layer that keeps the channels.
LAYERS: dict[str, Builder] = {builder.name: builder for builder in _BUILDERS}
# What leaves a network as it was: the stride's own decimation.
STRIDED = Builder("strided", (Decimate1d, Decimate2d, Decimate3d))


def make_pool(method: str, channels: int, stride: Stride = 2, axes: int = 2, **options: Any) -> Pool:
    """Build an anti-aliased downsampling layer by its name in ``LAYERS``.

    Args:
        method: ``"blurpool-5"``, ``"flc"``, …
        channels: of the layer's input and output.
        stride: decimation factor, one for all axes or one for each.
        axes: 1 for signals (B, C, T), 2 for images, 3 for videos (B, C, T, H, W).
        options: as the layer's class takes them: ``padding_mode``, ``kernel_size``, ``wavelet``, ``compat`` …

    Raises:
        SpectralError: if the name or an option is unknown, or an argument is out of range.

    Example:
        >>> make_pool("blurpool-5", channels=8)
        BlurPool2d(8, kernel_size=5, stride=(2, 2), padding_mode='reflect')
    """
    if method not in LAYERS:
        near = suggest(str(method), LAYERS) or f"; choose one of {', '.join(LAYERS)}"
        raise SpectralError(f"make_pool: no layer is called {method!r}{near}")
    return LAYERS[method](channels, stride, axes, **options)


guard_room(globals())
