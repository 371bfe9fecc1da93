"""Find where a vision network aliases, measure how much, and whether it matters.

Begin with `diagnose` (a page about a network) or `measure` (a table). Both take any ``torch.nn.Module``, or
what `load_model` gives, and whatever holds images, or what `load_images` gives. `find_sites` lists where
resolution drops, `measure_stability` and `measure_instability_budget` say whether that matters and why,
`convert` puts anti-aliasing layers in, and `reconstruct` repairs what they cost. ``help(spectral.measure)``
and its like say the rest, ``spectral --help`` what there is on the command line.

The public names stand in ``__init__.pyi``; each loads its module when first used, so that importing this
costs little more than importing torch.

Example:
    >>> import torch, spectral
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU())
    >>> spectral.find_sites(model, 32)[0].name
    '0'
    >>> table = spectral.measure(model, torch.rand(4, 3, 32, 32), ["avr"], progress=False)
    >>> spectral.summarize_measurements(table)[["site", "tap", "metric", "n"]].values.tolist()
    [['0', 'dense', 'avr', 4], ['0', 'input', 'avr', 4]]
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Load a public name; its calls end in one sentence where an argument is unfit."""
    value = _load(name)
    if name in __all__ and not hasattr(value, "__path__"):
        from spectral.arguments.validation import guard

        value = globals()[name] = guard(value)
    return value
