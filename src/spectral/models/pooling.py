"""What stands for a stride of 2 in our own networks: nothing, or a layer that halves the map, by name."""

from __future__ import annotations

from collections.abc import Callable
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


def draw_convolutions(model: nn.Module) -> None:
    """Draw all convolutions' weights from He et al.'s distribution, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
