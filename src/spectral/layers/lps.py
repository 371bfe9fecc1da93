"""Learnable polyphase sampling: a small network scores the components (Rojas-Gomez 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers.common import Stride
from spectral.layers.polyphase import PhasePool2d
from spectral.numerics.products import disable_autocast


class LPSPool2d(PhasePool2d):
    """Decimate from the phase that a trainable scorer prefers.

    The scorer (circular 3×3 convolution, ReLU, another one, mean over space, one number) is the same for all
    components and doesn't see circular shifts. In evaluation mode the component of the highest score is kept,
    equivariant as `APSPool2d`. In training mode the components are mixed with Gumbel-softmax weights, which
    pass gradients to the scorer; `select` then returns those weights, (B, s_h·s_w).

    Args:
        channels: number of input (and output) channels.
        stride: decimation factor, one for both axes or (s_h, s_w).
        hidden: channels inside the scorer.
        temperature: of the Gumbel-softmax; lower is closer to a hard choice. May be changed while training.

    Shape:
        (B, C, H, W) or (C, H, W) → (…, ⌈H/s_h⌉, ⌈W/s_w⌉).

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
        if not isinstance(hidden, int) or hidden < 1:
            raise SpectralError(f"LPSPool2d: hidden must be ≥ 1, got {hidden!r}")
        if not temperature > 0:
            raise SpectralError(f"LPSPool2d: temperature must be > 0, got {temperature!r}")
        self.temperature = temperature
        self.scorer = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, padding_mode="circular"),
            nn.AdaptiveAvgPool2d(1),
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
