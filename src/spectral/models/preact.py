"""PreAct-ResNet-18 for 32 px images, strided or anti-aliased: normalise, activate, then convolve."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.pooling import Pool, draw_convolutions, pool_factory, stack_blocks

STAGES, BLOCKS = 4, 2
HE = "he"


class PreActivation(nn.Module):
    """Batch norm → ReLU → 3×3 convolution, twice: what the blocks of PreAct and wide ResNets share.

    Anti-aliased as norm → ReLU → conv (stride 1) → norm → ReLU → pool → conv.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, pool: Pool | None) -> None:
        super().__init__()
        halve = pool if stride > 1 else None
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1 if halve else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool = halve(out_channels) if halve else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)

    def transform(self, activated: Tensor) -> Tensor:
        """Return the residual of what the first norm and ReLU made of the input."""
        return self.conv2(self.pool(F.relu(self.bn2(self.conv1(activated)))))  # type: ignore[no-any-return]


def make_projection(in_channels: int, out_channels: int, stride: int, pool: Pool | None) -> list[nn.Module]:
    """Return a shortcut's 1×1 convolution, with the pool in front of it where there is one."""
    halve = pool if stride > 1 else None
    project = nn.Conv2d(in_channels, out_channels, 1, 1 if halve else stride, bias=False)
    return [halve(in_channels), project] if halve else [project]


class PreActBlock(PreActivation):
    """A residual of two pre-activated convolutions, and a shortcut.

    A projecting shortcut starts from the block's input, or as He et al. have it (``variant="he"``) from what
    the first norm and ReLU made of it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, pool: Pool | None, variant: str | None = None
    ) -> None:
        super().__init__(in_channels, out_channels, stride, pool)
        self.shortcut: nn.Module = nn.Identity()
        projects = stride > 1 or in_channels != out_channels
        if projects:
            self.shortcut = nn.Sequential(*make_projection(in_channels, out_channels, stride, pool))
        self.starts_activated = projects and variant == HE

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        activated = F.relu(self.bn1(x))
        return self.transform(activated) + self.shortcut(activated if self.starts_activated else x)  # type: ignore[no-any-return]


class PreActResNet18(nn.Module):
    """A pre-activation ResNet-18 for 32 px images: four stages of two blocks, no stride in the stem.

    This is the network of RobustBench's CIFAR-10 checkpoints (Wong2020Fast), and its state dict has their
    names and shapes. It differs from He et al.'s in two places: shortcuts project the block's input before
    its normalisation, and neither norm nor ReLU comes between the last block and the global pooling. With
    ``variant="he"`` it is theirs, and the network of RobustBench's Rice2020Overfitting of its L2 zoo, whose
    names it then has.

    With a layer in the place of its strides, the pool stands where BlurPool's rule has it, behind the
    activation that follows the convolution whose stride it takes over: conv1 (stride 1) → bn2 → ReLU → pool →
    conv2. On the shortcut it is in front of the 1×1 convolution.

    Args:
        width: channels of the first stage; 64 is the published network.
        num_classes: outputs.
        downsample: ``"strided"`` or a name in `spectral.layers.LAYERS`.
        variant: None, or ``"he"``.

    Shape:
        (B, 3, H, W) → (B, num_classes).

    Raises:
        SpectralError: if an argument is out of range.

    Source:
        K. He et al., Identity Mappings in Deep Residual Networks, ECCV 2016; names as in RobustBench.

    Example:
        >>> import torch
        >>> PreActResNet18(width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        downsample: str = "strided",
        variant: str | None = None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise SpectralError(f"PreActResNet18: width must be ≥ 1, got {width}")
        if variant not in (None, HE):
            raise SpectralError(f"PreActResNet18: variant must be None or {HE!r}, got {variant!r}")
        pool = pool_factory(downsample)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width * 2**stage for stage in range(STAGES)]
        stages = stack_blocks(width, widths, BLOCKS, lambda i, o, s: PreActBlock(i, o, s, pool, variant))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(widths[-1]) if variant == HE else None
        self.linear = nn.Linear(widths[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
