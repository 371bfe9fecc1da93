"""Our own architectures by name: what a checkpoint's JSON and `spectral train` refer to.

A name is a network, then what differs from the published one. Networks are ``resnetD`` (D = 6n + 2; ``-a``
for shortcuts without parameters), ``resnet18``, ``nula``, ``preact-resnet18`` (``-he`` with He et al.'s
shortcuts and last norm) and ``wrn-D-K`` (D = 6n + 4, K times as wide). Behind them may stand ``-wN`` for N
channels in the stem, then ``-strided`` or the name of a layer of `spectral.layers` for what halves the
maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.models.cifar import CifarResNet
from spectral.models.fetching import RANDOM
from spectral.models.info import model_info
from spectral.models.nula import NULA
from spectral.models.pooling import STRIDED
from spectral.models.preact import PreActResNet18
from spectral.models.resnet18 import ResNet18
from spectral.models.wrn import WideResNet

ARCHITECTURES = (
    "resnet20", "resnet20-a", "resnet20-blurpool", "nula", "nula-w32", "resnet18", "preact-resnet18",
    "wrn-28-10",
)  # fmt: skip
"""Examples of names; others are made alike."""
EXAMPLES = (
    f"{', '.join(ARCHITECTURES)} (also -wN for N channels in the stem, and the name of a layer: nula-w32-flc)"
)

_NUMBER = "[1-9][0-9]*"
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    rf"resnet(?P<depth>{_NUMBER})(?:-(?P<shortcut>a))?": CifarResNet,
    "nula": NULA,
    "preact-resnet18(?:-(?P<variant>he))?": PreActResNet18,
    rf"wrn-(?P<depth>{_NUMBER})-(?P<widen>{_NUMBER})": WideResNet,
}
_VARIANT = rf"(?:-w(?P<width>{_NUMBER}))?(?:-(?P<downsample>.+))?"


def family_of(architecture: str) -> str | None:
    """Return the comparison family of one of our architectures, or None where it has none.

    Returns:
        ``"nula"`` for any NULA; else ``"strided"``, or ``"blurpool"`` for a BlurPool of any length; None for
        other layers and for names that aren't ours.

    Example:
        >>> family_of("resnet20-blurpool"), family_of("wrn-28-10"), family_of("wrn-28-10-asap")
        ('blurpool', 'strided', None)
    """
    found = _parse(architecture)
    if found is None:
        return None
    network, arguments = found
    if network is NULA:
        return "nula"
    downsample = str(arguments.get("downsample", STRIDED)).partition("-")[0]
    return downsample if downsample in (STRIDED, "blurpool") else None


def build(architecture: str, classes: int | None = None) -> nn.Module:
    """Build one of our architectures with fresh weights.

    Args:
        architecture: such as ``"resnet20"``, ``"resnet56-a"``, ``"resnet20-flc"``, ``"nula-w32-strided"``,
            ``"preact-resnet18-w16"``, ``"wrn-28-10-asap"``.
        classes: outputs of the head; 10 by default.

    Raises:
        SpectralError: if the name is unknown; the nearest names are offered.

    Example:
        >>> type(build("resnet20-wavelet-db2")).__name__
        'CifarResNet'
    """
    unknown = f"unknown architecture {architecture!r}{suggest(architecture, ARCHITECTURES)}"
    found = _parse(architecture)
    if found is None:
        raise SpectralError(f"{unknown}; expected a name such as {EXAMPLES}")
    network, arguments = found
    if (large := max((v for v in arguments.values() if isinstance(v, int)), default=0)) > MOST:
        raise SpectralError(f"{unknown}; {large} is too large, at most {MOST}")
    try:
        return network(**arguments, **({} if classes is None else {"num_classes": classes}))
    except SpectralError as error:
        raise SpectralError(f"{unknown}; {error}") from error


MOST = 1024  # of layers, or times the usual width: more fits no machine that this is run on


def _parse(architecture: str) -> tuple[Callable[..., nn.Module], dict[str, Any]] | None:
    """Split a name into a network and its arguments, still unchecked; None if it names no network."""
    for pattern, network in _NETWORKS.items():
        found = re.fullmatch(pattern + _VARIANT, architecture)
        if found:
            given = {key: value for key, value in found.groupdict().items() if value is not None}
            arguments = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
            return network, {**arguments, **({"shortcut": "A"} if "shortcut" in given else {})}
    return None


def name_architecture(model: nn.Module) -> str:
    """Return what a network's weights file must call its architecture.

    Example:
        >>> from spectral.models import load_model
        >>> name_architecture(load_model("bundled/nula-w32@random"))
        'nula-w32'
    """
    info = model_info(model)
    assert info is not None
    described = info.metadata.get("architecture")
    if described:
        return str(described)
    return info.name.partition("+")[0].removesuffix(RANDOM).removeprefix("bundled/")
