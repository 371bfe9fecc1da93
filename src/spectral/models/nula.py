"""NULA: an anti-aliased residual network with squeeze-and-excitation for 32 px images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.pooling import pool_factory

SE_REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Channel-wise reweighting s = σ(W₂ SiLU(W₁ GAP(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bottleneck = max(channels // SE_REDUCTION, 1)
        self.reduce = nn.Linear(channels, bottleneck)
        self.expand = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of the map."""
        scale: Tensor = self.expand(F.silu(self.reduce(x.mean(dim=(2, 3))))).sigmoid()
        return x * scale[:, :, None, None]


class Stage(nn.Module):
    """One residual stage; with downsampling it is conv (stride 1) → SiLU → pool on both paths."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool, downsample: str) -> None:
        super().__init__()
        pool = pool_factory(downsample) if halve else None
        stride = 2 if halve and pool is None else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.pool = pool(out_channels) if pool else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.se = SqueezeExcitation(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if halve or in_channels != out_channels:
            project = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            blur = [pool(in_channels)] if pool else []
            self.shortcut = nn.Sequential(*blur, project, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stage."""
        y = self.pool(F.silu(self.bn1(self.conv1(x))))
        y = self.se(self.bn2(self.conv2(y)))
        return F.silu(y + self.shortcut(x))


class NULA(nn.Module):
    """Stem, three residual stages (the last two halve the map with BlurPool), global pooling, two-layer head.

    Args:
        width: channels of the stem; 128 is the published size (5.22 M elements in the state dict).
        num_classes: outputs.
        downsample: ``"blurpool"`` (published), ``"strided"`` or another name in `spectral.layers.LAYERS`.

    Shape:
        (B, 3, H, W) → (B, num_classes).

    Source:
        NULA model card, MamaPearl/nula-cifar10-robust-v0, 2026. The card doesn't say where inside a stage
        the blur sits; here it follows the first activation, as BlurPool's paper places it.

    Example:
        >>> import torch
        >>> NULA(width=8)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, width: int = 128, num_classes: int = 10, downsample: str = "blurpool") -> None:
        super().__init__()
        if width < 1:
            raise SpectralError(f"NULA: width must be ≥ 1, got {width}")
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU())
        self.stage1 = Stage(width, width, halve=False, downsample=downsample)
        self.stage2 = Stage(width, 2 * width, halve=True, downsample=downsample)
        self.stage3 = Stage(2 * width, 4 * width, halve=True, downsample=downsample)
        self.head = nn.Sequential(
            nn.Linear(4 * width, 4 * width), nn.SiLU(), nn.Dropout(0.3), nn.Linear(4 * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
