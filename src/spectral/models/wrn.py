"""Wide residual networks for 32 px images (Zagoruyko and Komodakis 2016), strided or anti-aliased."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.pooling import Pool, draw_convolutions, pool_factory, stack_blocks
from spectral.models.preact import PreActivation, make_projection

STAGES = 3


class WideBlock(PreActivation):
    """A residual of two pre-activated convolutions; a projection starts from the first activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, pool: Pool | None) -> None:
        super().__init__(in_channels, out_channels, stride, pool)
        self.projects = in_channels != out_channels
        # The published checkpoints call the projection so; with a pool it is a sequence, as in our ResNets.
        self.convShortcut: nn.Module = nn.Identity()
        if self.projects:
            project = make_projection(in_channels, out_channels, stride, pool)
            self.convShortcut = project[0] if len(project) == 1 else nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        activated = F.relu(self.bn1(x))
        return self.transform(activated) + self.convShortcut(activated if self.projects else x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide ResNet of depth 6n + 4: three stages of n blocks at k, 2k and 4k times the stem's channels.

    The state dict has the names and shapes of RobustBench's CIFAR-10 checkpoints of WRN-28-10 and WRN-34-20.

    With a layer in the place of its strides, the pool stands where BlurPool's rule has it, behind the
    activation that follows the convolution whose stride it takes over: conv1 (stride 1) → bn2 → ReLU → pool →
    conv2. On the shortcut it is in front of the 1×1 convolution.

    Args:
        depth: 10, 16, 22, 28, … (6n + 4).
        widen: the factor k.
        width: channels of the stem; 16 is the published network.
        num_classes: outputs.
        downsample: ``"strided"`` or a name in `spectral.layers.LAYERS`.

    Shape:
        (B, 3, H, W) → (B, num_classes).

    Raises:
        SpectralError: if an argument is out of range.

    Source:
        S. Zagoruyko and N. Komodakis, Wide Residual Networks, BMVC 2016; names as in RobustBench.

    Example:
        >>> import torch
        >>> WideResNet(depth=10, widen=2, width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        width: int = 16,
        num_classes: int = 10,
        downsample: str = "strided",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise SpectralError(f"WideResNet: depth must be 6n + 4 (10, 16, 22, …), got {depth}")
        if min(widen, width) < 1:
            raise SpectralError(f"WideResNet: widen and width must be ≥ 1, got {widen} and {width}")
        pool = pool_factory(downsample)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width * widen * 2**stage for stage in range(STAGES)]
        stages = stack_blocks(width, widths, (depth - 4) // 6, lambda i, o, s: WideBlock(i, o, s, pool))
        self.block1, self.block2, self.block3 = (nn.Sequential(OrderedDict(layer=stage)) for stage in stages)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]
