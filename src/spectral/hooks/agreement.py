"""Whether what stands and runs at a site is what was found there, and that operator seen as the site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.operators import Decimation, Size, find_plain_operator
from spectral.sites import Site
from spectral.tracing.tracker import Frame


def check_site(site: Site, module: Any) -> None:
    """Check that a module is what was found there.

    Raises:
        SpectralError: if it isn't, or the site has no dense map.
    """
    if not site.measurable:
        raise SpectralError(f"site {site.name!r} can't be measured: {site.reason}")
    if site.family == "layer":
        if getattr(module, "kind", None) != site.op or module.stride != site.stride[-module.axes :]:
            raise SpectralError(f"site {site.name!r} isn't what runs there; call find_sites on this model")
        return
    operator = find_plain_operator(module)
    if site.access == "direct" and (
        operator is None
        or operator.kind != site.operator
        or _as_size(module.stride, site) != site.stride
        or _as_size(module.kernel_size, site) != site.kernel
    ):
        raise SpectralError(f"site {site.name!r} isn't what runs there; call find_sites on this model")


def check_standing(modules: Mapping[str, nn.Module], watched: Iterable[str]) -> None:
    """Check that the modules on which hooks were set still are the model's.

    One that was wrapped, or stands elsewhere now, still runs.

    Args:
        modules: the modules of the model as they were, by names.
        watched: names of those on which hooks were set.

    Raises:
        SpectralError: naming one that was replaced, whose successor would run unseen.
    """
    missing = [path for path in watched if _find_module(modules[""], path) is not modules[path]]
    if not missing:
        return
    there = {id(module) for module in modules[""].modules()}
    gone = next((path for path in missing if id(modules[path]) not in there), None)
    if gone is not None:
        raise SpectralError(
            f"module {gone!r} isn't the one on which hooks were set: it was replaced or taken out since; "
            f"remove the hooks, and set them again at what find_sites finds now"
        )


def _find_module(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module that stands at a path; None if there is none."""
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def call_dense(frame: Frame, x: Tensor) -> Tensor:
    """Compute a layer's own dense map, with the choices that were made for it elsewhere."""
    named = {name: value for name, value in frame.kwargs.items() if value is not frame.input}
    module: Any = frame.module
    x = x.squeeze(-2) if module.axes == 1 else x
    dense: Tensor = module.dense(x, *frame.args[1:], **named)
    return dense.unsqueeze(-2) if module.axes == 1 else dense


def place_operator(decimation: Decimation, site: Site, source: Tensor) -> Decimation:
    """See an operator that ran as the site that was found there.

    Raises:
        SpectralError: if something else ran.
    """
    ran, found = decimation.geometry, site.geometry
    alike = ran.kind == site.operator and decimation.operator.agrees(ran, found)
    try:
        if alike and site.layouts is not None:
            placed = replace(decimation, geometry=found, input=site.layouts[0].arrange(source))
            placed = placed.operator.place(placed, found)
            _check_joined(placed, site)
            return placed
    except RuntimeError:  # a size that the layout can't be split into
        alike = False
    if not alike:
        raise SpectralError(
            f"site {site.name!r} ran as {ran.kind} with stride {ran.stride}, not as {site.operator} with "
            f"{found.stride}; call find_sites again for this input"
        )
    placed = decimation.operator.place(decimation, found)
    _check_joined(placed, site)
    return placed


def _check_joined(decimation: Decimation, site: Site) -> None:
    """Refuse maps of another size where several operators make a site: the others may leave other samples.

    Raises:
        SpectralError: if the map isn't of the size on which the site was found.
    """
    size = tuple(decimation.input.shape[-len(site.stride) :])
    if site.geometry.joined and size != site.input_size:
        raise SpectralError(
            f"site {site.name!r}, which several operators make, was found on maps of {site.input_size}, not "
            f"of {size}; call find_sites again for this input"
        )


def _as_size(value: Any, site: Site) -> Size:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * len(site.stride)
