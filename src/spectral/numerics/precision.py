"""What a device can compute in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spectral.errors import SpectralError


def require_double(device: torch.device, caller: str, make: Callable[..., Any] = torch.empty) -> None:
    """Make sure that a device has float64, in which sums over maps and probabilities are kept.

    Args:
        device: where a network is.
        caller: whose name the message begins with.
        make: allocates a tensor there.

    Raises:
        SpectralError: if it hasn't, as Apple's GPUs (mps).

    Example:
        >>> require_double(torch.device("cpu"), "measure")
    """
    try:
        make(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpectralError(
            f"{caller}: the network is on {device.type!r}, which has no float64, in which sums and "
            f"probabilities are kept ({why}); move it to the CPU with .cpu(), or pass --device cpu"
        ) from error
