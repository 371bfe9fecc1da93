"""Find where a vision network aliases, measure how much, and whether it matters.

The public names stand in ``__init__.pyi``; each loads its module when first used, so that importing this
costs little more than importing torch.

Example:
    >>> import torch, spectral
    >>> P = spectral.compute_power_spectrum(torch.ones(3, 8, 8))
    >>> float(spectral.compute_avr(P, stride=2))
    0.0
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Load a public name; its calls end in one sentence where an argument is unfit."""
    value = _load(name)
    if name in __all__ and not hasattr(value, "__path__"):
        from spectral.validation import guard

        value = globals()[name] = guard(value)
    return value
