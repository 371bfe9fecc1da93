"""ResNet-18 for 32 px images, strided or anti-aliased: convolve, normalise, then activate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.cifar import BasicBlock
from spectral.models.pooling import draw_convolutions, pool_factory, stack_blocks

STAGES, BLOCKS = 4, 2


class ResNet18(nn.Module):
    """ResNet-18 for 32 px images: four stages of two blocks, neither stride nor pool in the stem.

    This is the network of RobustBench's Sehwag2021Proxy_R18, and its state dict has the names and shapes of
    that file. Where a layer stands in the place of its strides, it does so as in our smaller ResNets.

    Args:
        width: channels of the first stage; 64 is the published network.
        num_classes: outputs.
        downsample: ``"strided"`` or a name in `spectral.layers.LAYERS`.

    Shape:
        (B, 3, H, W) → (B, num_classes).

    Raises:
        SpectralError: if an argument is out of range.

    Source:
        K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016; names as in RobustBench.

    Example:
        >>> import torch
        >>> ResNet18(width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, width: int = 64, num_classes: int = 10, downsample: str = "strided") -> None:
        super().__init__()
        if width < 1:
            raise SpectralError(f"ResNet18: width must be ≥ 1, got {width}")
        pool = pool_factory(downsample)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(STAGES)]
        stages = stack_blocks(width, widths, BLOCKS, lambda i, o, s: BasicBlock(i, o, s, "B", pool))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(widths[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
