"""Learnable polyphase sampling: a small network scores the components (Rojas-Gomez 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers.polyphase import PhasePool
from spectral.layers.pool import Stride, is_count
from spectral.numerics.products import disable_autocast

_BLOCKS: dict[int, tuple[Any, Any]] = {
    1: (nn.Conv1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.AdaptiveAvgPool2d),
    3: (nn.Conv3d, nn.AdaptiveAvgPool3d),
}


class LPSPool(PhasePool):
    """Decimate from the phase that a trainable scorer prefers.

    The scorer (circular 3×3 convolution, ReLU, another one, mean over space, one number) is the same for all
    components and doesn't see circular shifts. In evaluation mode the component of the highest score is kept,
    equivariant as `APSPool`. In training mode the components are mixed with Gumbel-softmax weights, which
    pass gradients to the scorer; `select` then returns those weights, (B, Π s).

    Args:
        channels: number of input (and output) channels.
        stride: decimation factor, one for all axes or one for each.
        hidden: channels inside the scorer.
        temperature: of the Gumbel-softmax; lower is closer to a hard choice. May be changed while training.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉); T, or T, H, W in place of H, W.

    Raises:
        SpectralError: if an argument is out of range, or an input has other channels, rank or dtype.

    Source:
        R. Rojas-Gomez et al., Learnable Polyphase Sampling for Shift Invariant and Equivariant Convolutional
        Networks, NeurIPS 2022.

    Example:
        >>> layer = LPSPool2d(3).eval()
        >>> layer(torch.rand(1, 3, 5, 6)).shape
        torch.Size([1, 3, 3, 3])
    """

    def __init__(self, channels: int, stride: Stride = 2, hidden: int = 16, temperature: float = 1.0) -> None:
        super().__init__(channels, stride)
        if not is_count(hidden):
            raise SpectralError(f"{type(self).__name__}: hidden must be ≥ 1, got {hidden!r}")
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise SpectralError(f"{type(self).__name__}: temperature must be > 0, got {temperature!r}")
        convolve, average = _BLOCKS[self.axes]
        self.temperature = temperature
        self.scorer = nn.Sequential(
            convolve(channels, hidden, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            convolve(hidden, hidden, 3, padding=1, padding_mode="circular"),
            average(1),
            nn.Flatten(),
            nn.Linear(hidden, 1, bias=False),  # a bias would be the same for every component
        )

    def _select(self, parts: Tensor) -> Tensor:
        # The scores decide: rounded to half precision by autocast, different components could tie.
        with disable_autocast(parts):
            images = parts.flatten(0, 1).to(self.scorer[-1].weight.dtype)  # type: ignore[arg-type]
            scores: Tensor = self.scorer(images).view(parts.shape[:2])
        if self.training:
            return F.gumbel_softmax(
                scores.to(torch.promote_types(scores.dtype, torch.float32)), self.temperature
            )
        return scores.argmax(1)


class LPSPool1d(LPSPool):
    """`LPSPool` for signals: (B, C, T) → (B, C, ⌈T/s⌉)."""

    axes = 1


class LPSPool2d(LPSPool):
    """`LPSPool` for images: (B, C, H, W) → (B, C, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 2


class LPSPool3d(LPSPool):
    """`LPSPool` for videos: (B, C, T, H, W) → (B, C, ⌈T/s_t⌉, ⌈H/s_h⌉, ⌈W/s_w⌉)."""

    axes = 3
