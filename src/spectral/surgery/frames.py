"""Blocks whose own forward is watched: what they owe has to be settled, what they call may be replaced.

Such a block gets a subclass of its class, as `torch.nn.utils.parametrize` does it: that holds however the
forward is called, and in copies, pickles, compiled and exported programs. The subclass has the same name, and
`unframe` gives the class back.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx import Proxy, Tracer
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.surgery import ledger
from spectral.surgery.graphs import Densely
from spectral.surgery.hooks import CHILD, Owe, Settle, add_hook, list_hooks
from spectral.surgery.places import mark_call
from spectral.surgery.rewriting import Function, Replacement, Rewriter, Run

_FRAME = "antialias_frame"


@dataclass(frozen=True)
class Link:
    """Where in a block one site's operator is, and the place behind which its layer is due.

    Attributes:
        owner: path of the module that decimated, from the block.
        point: path of the module behind which the layer is due; None if it is due behind no module.
        name: of that place in the ledger.
    """

    owner: str
    point: str | None = None
    name: str = ""


@dataclass
class Frame:
    """What one block answers for.

    Attributes:
        links: of the sites whose operator's module is inside it.
        calls: functions of its own forward that are replaced, and by what.
        points: those behind which a layer is due, with the names of these places in the ledger.
        activations: those that are evaluated in another way, and how; by repeat where these differ.
    """

    links: dict[str, Link] = field(default_factory=dict)
    calls: dict[Function, Replacement] = field(default_factory=dict)
    points: dict[Function, str] = field(default_factory=dict)
    activations: dict[Function, Run | Mapping[int, Run]] = field(default_factory=dict)


class _Framed(type):
    """The type of the subclasses: they are pickled by the class that they stand for."""


def frame_of(block: nn.Module) -> Frame:
    """Return what a block answers for, which is nothing at first.

    A traced graph has a forward and a class of its own, which its copies make anew: it answers for nothing.
    """
    kind: Any = type(block)
    if isinstance(block, fx.GraphModule):
        return Frame()
    if not isinstance(kind, _Framed):
        block.__class__ = _subclass(kind)
    frame: Frame = vars(block).setdefault(_FRAME, Frame())
    return frame


def find_frame(module: nn.Module) -> Frame | None:
    """Return what a module answers for, None if it isn't such a block."""
    return vars(module).get(_FRAME)


def is_carrying(module: nn.Module, site: str) -> bool:
    """Whether a module, with those inside it, still has a site's layer and what runs it."""
    has_layer = runs_it = False
    for inner in module.modules():
        frame = find_frame(inner)
        has_layer |= CHILD in inner._modules
        runs_it |= any(getattr(hook, "site", None) == site for hook in list_hooks(inner))
        runs_it |= frame is not None and any(chosen.site == site for chosen in frame.calls.values())
        runs_it |= isinstance(inner, Densely) and inner.site == site
    return has_layer and runs_it


def unframe(module: nn.Module) -> None:
    """Give a block its class back; where something has subclassed it since, ours stays without effect."""
    vars(module).pop(_FRAME, None)
    if isinstance(type(module), _Framed):
        module.__class__ = type(module).__bases__[0]


@cache
def _subclass(base: Any) -> type[nn.Module]:
    rewrite = _break_graphs()

    @wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        frame: Frame | None = self.__dict__.get(_FRAME)
        if frame is None:
            return _run_part(self, base, args, kwargs)
        return _run(self, frame, base, rewrite, args, kwargs)

    kind = type(base)
    meta = _Framed if kind is type else type(kind.__name__, (_Framed, kind), {})
    copyreg.pickle(meta, _reduce)
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    kind = meta(base.__name__, (base,), {**names, "forward": forward})
    return cast(type[nn.Module], kind)


def _reduce(kind: type[nn.Module]) -> Any:
    return _subclass, kind.__bases__


def _run_part(block: nn.Module, base: Any, args: Any, kwargs: Any) -> Any:
    """Run a slice of a block, which has its class: it answers for all that its modules owe."""
    owing = {hook.site for module in block.modules() for hook in list_hooks(module) if isinstance(hook, Owe)}
    account = ledger.open_account(owing)
    try:
        output = base.forward(block, *args, **kwargs)
    finally:
        ledger.close_account(account)
    account.check_settled()
    return output


def _run(block: nn.Module, frame: Frame, base: Any, rewrite: Any, args: Any, kwargs: Any) -> Any:
    """Run a block's own forward."""
    proxies = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Proxy)]  # torch 2.6 compiles no next()
    if proxies:
        _check_symbolic(block, frame, proxies[0])
    elif not torch.compiler.is_compiling():
        _check_links(block, frame)
    account = ledger.open_account(frame.links)
    try:
        if frame.calls or frame.points or frame.activations:
            output = rewrite(block, frame, base, args, kwargs)
        else:
            output = base.forward(block, *args, **kwargs)
    finally:
        ledger.close_account(account)
    account.check_settled()
    return output


def _rewrite(block: nn.Module, frame: Frame, base: Any, args: Any, kwargs: Any) -> Any:
    with Rewriter(block, frame.calls, frame.points, frame.activations) as rewriter:
        output = base.forward(block, *args, **kwargs)
    rewriter.check_complete()
    return output


@cache
def _break_graphs() -> Any:
    """Return `_rewrite` for compilers: they see no frames, by which places are told, and break the graph."""
    return torch.compiler.disable(  # not before a network is converted: the compiler takes long to import
        _rewrite,
        reason="layers replace functions in its forward, which are told by their place in the code: compile "
        "it without fullgraph and export it with strict=False, or trace the original network "
        "(torch.fx.symbolic_trace) and convert that graph, which is compiled and exported whole",
    )


for _forward in (_run, _rewrite):
    mark_call(_forward.__code__)


def _check_links(block: nn.Module, frame: Frame) -> None:
    """See that what carries a layer is still there; a new activation gets the hook of the old one."""
    for site, link in frame.links.items():
        owner: nn.Module | None
        try:
            owner = block.get_submodule(link.owner)
            point = None if link.point is None else block.get_submodule(link.point)
        except AttributeError:
            owner = point = None
        if owner is None or not is_carrying(owner, site):
            raise SpectralError(
                f"site {site!r} has lost its layer: another module is in the place of {link.owner!r} or of "
                f"{link.point or link.owner!r}; {ledger.WAY_OUT}"
            )
        if point is not None and Settle(link.name) not in list_hooks(point):
            add_hook(point, Settle(link.name))


def _check_symbolic(block: nn.Module, frame: Frame, proxy: Proxy) -> None:
    """See that a symbolic trace keeps what a layer depends on: modules it doesn't look into."""
    name, tracer = type(block).__name__, cast(Tracer, proxy.tracer)
    if frame.calls or frame.points or frame.activations:
        raise SpectralError(
            f"symbolic tracing can't follow {name}, which calls operators as functions that were replaced by "
            f"layers; trace the original network and convert that graph, or use torch.export"
        )
    for site, link in frame.links.items():
        paths = [link.owner] if link.point is None else [link.owner, link.point]
        if not all(tracer.is_leaf_module(block.get_submodule(path), path) for path in paths):
            raise SpectralError(
                f"symbolic tracing would look into {' or '.join(paths)} of {name} and lose the layer of "
                f"{site!r}; make them leaves, or trace the original network and convert that graph"
            )
