"""Networks of the user's own, built by what is named: ``my_net.py:build``, ``package.module:build``.

Only what is named in this form is ever run; the path of a file alone runs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectral.arguments.factories import describe_kind, explaining, find_needed, opened
from spectral.errors import SpectralError
from spectral.models.info import ModelInfo, Preprocessing, model_info
from spectral.models.preprocessing import find_preparation
from spectral.models.sources.base import Loaded

FORM = "my_net.py:build or package.module:build"
UNKNOWN = Preprocessing((0, 0), (), ())
"""What a network without a word about its images has, until someone says more."""
_CLASSES = ("num_classes", "classes", "n_classes", "num_labels")  # what factories call the number of classes


def open_own(asked: str, classes: int | None = None) -> Loaded:
    """Run a factory: a function without arguments, a class, or a network that is there already.

    Args:
        asked: FILE.py:NAME or PACKAGE.MODULE:NAME. Modules beside the file, or in the current folder, can be
            imported as in a script.
        classes: goes to its parameter ``num_classes``.

    Raises:
        SpectralError: if there is no such file, module or name, what runs raises, it needs arguments, or what
            comes back isn't a network.
    """
    with opened(asked) as factory:
        model = _build(factory, asked, classes)
    name = asked.rpartition(":")[2]
    if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
        raise SpectralError(
            f"{asked}: the network has layers that get their shape from their first input; run it once on an "
            f"image inside {name}"
        )
    if any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        raise SpectralError(f"{asked}: the network is on the meta device and has no weights; build it on cpu")
    count = classes or next((n for n in (getattr(model, a, None) for a in _CLASSES) if _is_count(n)), None)
    info = model_info(model)  # of a network that the factory itself got from load_model
    if info is not None:
        return model, replace(info, name=asked)
    size = find_preparation(model).size or UNKNOWN.size
    return model, ModelInfo(asked, None, "", Preprocessing(size, (), ()), count)


def _build(factory: Any, asked: str, classes: int | None) -> nn.Module:
    """Call a factory, or take the network that it is."""
    if isinstance(factory, nn.Module):
        if classes is not None:
            raise SpectralError(
                f"{asked} is a network and no function, so classes={classes} can't be given to it; leave "
                f"classes out, or name a function with a parameter num_classes"
            )
        return factory
    if not callable(factory):
        raise SpectralError(
            f"{asked} is {describe_kind(factory)}; expected a function that builds a network, a class or a "
            f"network"
        )
    options = _choose_options(factory, asked, classes)
    with explaining(asked, "the factory"):
        made = factory(**options)
    if not isinstance(made, nn.Module):
        raise SpectralError(f"{asked} returned {describe_kind(made)}; expected a torch.nn.Module")
    return made


def _choose_options(factory: Callable[..., Any], asked: str, classes: int | None) -> dict[str, Any]:
    """Return what a factory is called with: nothing, or the number of classes."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = {}
    known = next((name for name in _CLASSES if name in parameters), None)
    if known is None and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = _CLASSES[0]
    if classes is not None and known is None:
        raise SpectralError(
            f"{asked}: classes={classes} goes to a parameter num_classes, which the factory doesn't have; "
            f"add it, or leave classes out"
        )
    options = {} if classes is None or known is None else {known: classes}
    needed = find_needed(factory, options)
    if needed:
        hint = "pass classes (--classes N), or " if needed == [known] else ""
        raise SpectralError(
            f"{asked} needs arguments ({', '.join(needed)}), but is called without; {hint}give them "
            f"defaults, or name a function that needs none"
        )
    return options


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
