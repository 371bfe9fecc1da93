"""Our own architectures by name: what a bundled checkpoint's JSON and `spectral train` refer to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.models.cifar import CifarResNet
from spectral.models.nula import NULA

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet20": CifarResNet,
    "resnet20-a": partial(CifarResNet, shortcut="A"),
    "resnet20-blurpool": partial(CifarResNet, downsample="blurpool"),
    "nula": NULA,
    "nula-w32": partial(NULA, width=32),
}


def family_of(architecture: str) -> str:
    """Return the comparison family of one of our architectures: strided, blurpool or nula.

    Example:
        >>> family_of("resnet20-blurpool")
        'blurpool'
    """
    if architecture.startswith("nula"):
        return "nula"
    return "blurpool" if architecture.endswith("-blurpool") else "strided"


def build(architecture: str) -> nn.Module:
    """Build one of our architectures with fresh weights.

    Raises:
        SpectralError: if the name is unknown; the nearest names are offered.

    Example:
        >>> type(build("resnet20")).__name__
        'CifarResNet'
    """
    if architecture not in ARCHITECTURES:
        raise SpectralError(
            f"unknown architecture {architecture!r}{suggest(architecture, ARCHITECTURES)}; "
            f"available: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture]()
