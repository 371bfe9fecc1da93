"""Residual networks for 32 px images (He et al. 2016, section 4.2), strided or anti-aliased."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.pooling import Pool, draw_convolutions, pool_factory, stack_blocks


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut: every second pixel, new channels zero."""

    def __init__(self, in_channels: int, out_channels: int, pool: Pool | None) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.pool = pool(in_channels) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Decimate and pad the channels."""
        x = x[:, :, ::2, ::2] if self.pool is None else self.pool(x)
        before = self.new_channels // 2
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; anti-aliased as conv (stride 1) → ReLU → pool."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        shortcut: str,
        pool: Pool | None,
    ) -> None:
        super().__init__()
        use_pool = pool is not None and stride > 1
        conv_stride = 1 if use_pool else stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, conv_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.pool = pool(out_channels) if use_pool and pool else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            if shortcut == "A":
                self.shortcut = OptionAShortcut(in_channels, out_channels, pool)
            else:
                project = nn.Conv2d(in_channels, out_channels, 1, conv_stride, bias=False)
                blur = [pool(in_channels)] if use_pool and pool else []
                self.shortcut = nn.Sequential(*blur, project, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.pool(F.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet of depth 6n + 2 for 32 px images: three stages of n blocks at width, 2·width, 4·width.

    Args:
        depth: 20, 32, 44, 56, … (6n + 2).
        width: channels of the first stage; 16 is the published network.
        num_classes: outputs.
        shortcut: ``"A"`` (slice and zero channels, as published) or ``"B"`` (1×1 convolution).
        downsample: ``"strided"`` or a name in `spectral.layers.LAYERS`: conv (stride 1) → ReLU → pool, and
            the pool in front of the shortcut's 1×1 convolution, or in place of its slice.

    Shape:
        (B, 3, H, W) → (B, num_classes).

    Source:
        K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

    Example:
        >>> import torch
        >>> CifarResNet(depth=8)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        num_classes: int = 10,
        shortcut: str = "B",
        downsample: str = "strided",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise SpectralError(f"CifarResNet: depth must be 6n + 2 (8, 14, 20, …), got {depth}")
        if shortcut not in ("A", "B"):
            raise SpectralError(f"CifarResNet: shortcut must be 'A' or 'B', got {shortcut!r}")
        pool = pool_factory(downsample)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(3)]
        stages = stack_blocks(
            width, widths, (depth - 2) // 6, lambda i, o, s: BasicBlock(i, o, s, shortcut, pool)
        )
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(widths[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
