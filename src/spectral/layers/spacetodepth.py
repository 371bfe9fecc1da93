"""Space-to-depth: every phase is kept, as channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers.common import Pool2d, Stride
from spectral.layers.polyphase import split_phases


class SpaceToDepth2d(Pool2d):
    """All s_h·s_w phases as channels, then optionally a 1×1 convolution: the reference without aliasing loss.

    Channel c of phase (i, j) becomes channel (c·s_h + i)·s_w + j, as in `torch.nn.PixelUnshuffle`. The
    convolution starts as the mean over the phases of each channel (if the channel counts are equal): an
    untrained layer is an average pool with DC gain 1. Where s doesn't divide N the last sample is repeated.

    Args:
        channels: number of input channels.
        stride: decimation factor, one for both axes or (s_h, s_w).
        out_channels: channels behind the 1×1 convolution; None for all C·s_h·s_w and no convolution.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, C·s_h·s_w or out_channels, ⌈H/s_h⌉, ⌈W/s_w⌉).

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        W. Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
        Convolutional Neural Network, CVPR 2016, read backwards.

    Example:
        >>> SpaceToDepth2d(1)(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).flatten()
        tensor([1., 2., 3., 4.])
    """

    def __init__(self, channels: int, stride: Stride = 2, out_channels: int | None = None) -> None:
        super().__init__(channels, stride)
        if out_channels is not None and (not isinstance(out_channels, int) or out_channels < 1):
            raise SpectralError(f"SpaceToDepth2d: out_channels must be ≥ 1, got {out_channels!r}")
        self.out_channels = out_channels
        phases = self.stride[0] * self.stride[1]
        self.mix: nn.Module = nn.Identity()
        if out_channels is not None:
            self.mix = nn.Conv2d(channels * phases, out_channels, 1, bias=False)
            if out_channels == channels:
                with torch.no_grad():
                    mean = torch.eye(channels).repeat_interleave(phases, dim=1) / phases
                    self.mix.weight.copy_(mean[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Move the phases into channels and mix them."""
        self.check(x)
        parts = split_phases(x if x.ndim == 4 else x[None], self.stride, "replicate")
        y: Tensor = self.mix(parts.transpose(1, 2).flatten(1, 2))
        return y if x.ndim == 4 else y[0]

    def extra_repr(self) -> str:
        """Show the arguments, as torch's own modules do."""
        return f"{super().extra_repr()}, out_channels={self.out_channels}"
