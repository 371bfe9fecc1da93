"""Our own networks: stages of blocks, and what stands for a stride of 2 in them, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.layers import LAYERS, make_pool

STRIDED = "strided"
DOWNSAMPLING = (STRIDED, *LAYERS)
Pool = Callable[[int], nn.Module]


def pool_factory(downsample: str) -> Pool | None:
    """Return what builds a halving layer from a channel count, or None for plain strides.

    Args:
        downsample: ``"strided"`` or a name in `spectral.layers.LAYERS`.

    Raises:
        SpectralError: if the name is unknown.

    Example:
        >>> pool_factory("flc")(8)
        FLCPool2d(stride=(2, 2))
        >>> pool_factory("strided") is None
        True
    """
    if downsample not in DOWNSAMPLING:
        near = suggest(str(downsample), DOWNSAMPLING) or f"; choose one of {', '.join(DOWNSAMPLING)}"
        raise SpectralError(
            f"downsample must be 'strided' or a name in spectral.layers.LAYERS, got {downsample!r}{near}"
        )
    return None if downsample == STRIDED else partial(make_pool, downsample)


def stack_blocks(
    channels: int, widths: Sequence[int], count: int, block: Callable[[int, int, int], nn.Module]
) -> list[nn.Sequential]:
    """Stack residual blocks into stages, each after the first at half the resolution of the one before.

    Args:
        channels: of what enters the first.
        widths: channels of each stage.
        count: blocks of a stage; the first of them has the stride.
        block: makes one of (channels in, channels out, stride).

    Example:
        >>> stages = stack_blocks(3, [4, 8], 2, lambda i, o, s: nn.Conv2d(i, o, 3, s))
        >>> [(conv.in_channels, conv.stride) for stage in stages for conv in stage]
        [(3, (1, 1)), (4, (1, 1)), (4, (2, 2)), (8, (1, 1))]
    """
    stages = []
    for stage, width in enumerate(widths):
        blocks = []
        for place in range(count):
            blocks.append(block(channels, width, 2 if stage > 0 and place == 0 else 1))
            channels = width
        stages.append(nn.Sequential(*blocks))
    return stages


def draw_convolutions(model: nn.Module) -> None:
    """Draw all convolutions' weights from He et al.'s distribution, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
