"""Space-to-depth: every phase is kept, as channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers.polyphase import split_phases
from spectral.layers.pool import Pool, Stride, is_count

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class SpaceToDepth(Pool):
    """All Π s phases as channels, then optionally a 1×1 convolution: the reference without aliasing loss.

    Channel c of phase (i, j) becomes channel (c·s_h + i)·s_w + j, as in `torch.nn.PixelUnshuffle`. The
    convolution starts as the mean over the phases of each channel (if the channel counts are equal): an
    untrained layer is an average pool with DC gain 1. Where s doesn't divide N the last sample is repeated.

    Args:
        channels: number of input channels.
        stride: decimation factor, one for all axes or one for each.
        out_channels: channels behind the 1×1 convolution; None for all C·s_h·s_w and no convolution.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, C·s_h·s_w or out_channels, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place
        of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        W. Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
        Convolutional Neural Network, CVPR 2016, read backwards.

    Example:
        >>> SpaceToDepth2d(1)(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten()
        tensor([1., 2., 3., 4.])
        >>> SpaceToDepth2d(3).extra_repr()
        '3, stride=(2, 2), out_channels=None'
    """

    kind = "space_to_depth"

    def __init__(self, channels: int, stride: Stride = 2, out_channels: int | None = None) -> None:
        super().__init__(channels, stride)
        if out_channels is not None and not is_count(out_channels):
            raise SpectralError(f"{type(self).__name__}: out_channels must be ≥ 1, got {out_channels!r}")
        self.out_channels = out_channels
        phases = math.prod(self.stride)
        self.mix: nn.Module = nn.Identity()
        if out_channels is not None:
            self.mix = _CONVOLUTIONS[self.axes](channels * phases, out_channels, 1, bias=False)
            if out_channels == channels:
                with torch.no_grad():
                    mean = torch.eye(channels).repeat_interleave(phases, dim=1) / phases
                    weight: Any = self.mix.weight
                    weight.copy_(mean.view_as(weight))

    def pool(self, x: Tensor) -> Tensor:
        """Move the phases into channels and mix them."""
        single = x.ndim == self.axes + 1
        parts = split_phases(x[None] if single else x, self.stride, "replicate")
        y: Tensor = self.mix(parts.transpose(1, 2).flatten(1, 2))
        return y[0] if single else y

    def dense(self, x: Tensor) -> Tensor:
        """Refuse: every phase is kept.

        Raises:
            SpectralError: always.
        """
        raise SpectralError(f"{type(self).__name__}: keeps all samples as channels, so no map is decimated")

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"{super().extra_repr()}, out_channels={self.out_channels}"


class SpaceToDepth1d(SpaceToDepth):
    """`SpaceToDepth` for signals: (B, C, T) → (B, C·s, ⌈T/s⌉)."""

    axes = 1


class SpaceToDepth2d(SpaceToDepth):
    """`SpaceToDepth` for images: (B, C, H, W) → (B, C·s_h·s_w, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class SpaceToDepth3d(SpaceToDepth):
    """`SpaceToDepth` for videos: (B, C, T, H, W) → (B, C·s_t·s_h·s_w, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
