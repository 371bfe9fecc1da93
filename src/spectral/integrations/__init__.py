"""Aliasing in the training loops of others: callbacks for Lightning and for the Trainer of transformers.

Each needs its library (extras ``lightning``, ``transformers``), which is imported when the name is first
used. For a loop of your own take `spectral.AliasingMonitor`; `reduce_values` then makes its numbers one for
all processes. `make_aa_layer` gives timm our layers.

Example:
    >>> from spectral.integrations import reduce_values
    >>> reduce_values({"mean/dense/avr": 0.25})
    {'mean/dense/avr': 0.25}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectral.errors import SpectralError
from spectral.integrations.aa_layer import make_aa_layer
from spectral.integrations.watching import reduce_values

if TYPE_CHECKING:
    from spectral.integrations.lightning import AliasingCallback
    from spectral.integrations.trainer import AliasingTrainerCallback

__all__ = ["AliasingCallback", "AliasingTrainerCallback", "make_aa_layer", "reduce_values"]

_OWNERS = {
    "AliasingCallback": ("lightning", "lightning"),
    "AliasingTrainerCallback": ("trainer", "transformers"),
}


def __getattr__(name: str) -> Any:
    """Import a callback with its library."""
    import importlib

    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _OWNERS[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise SpectralError(
            f"{name} needs {extra}, which can't be imported ({error}); pip install "
            f"'spectral-aliasing[{extra}]'"
        ) from error
