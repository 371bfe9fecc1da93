"""Functions that decimate in a traced graph: their nodes are replaced by two modules, and put back.

A graph has no code of its own in which a call could be told by its place, but nodes that can be changed. What
comes of it is plain modules: it can be compiled whole, exported in strict mode and traced again.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spectral.surgery.functions import name_function, run_densely
from spectral.surgery.hooks import CHILD, Layers
from spectral.surgery.rewriting import Function, Replacement, invert

_DENSELY = "_densely"  # behind a layer's name, the name of what runs the function without its stride
_HOMES = {"torch.nn.functional": F, "torch": torch, "operator": operator}


class Densely(nn.Module):
    """A function as if its stride were 1.

    Args:
        site: the site that it was.
        target: the function; of an index, ``operator.getitem``.

    Example:
        >>> Densely("", F.avg_pool1d)(torch.arange(4.0).view(1, 1, 4), 2)
        tensor([[[0.5000, 1.5000, 2.5000]]])
    """

    def __init__(self, site: str, target: Callable[..., Any]) -> None:
        super().__init__()
        _keep_whole()
        self.site = site
        # By name: torch's own functions that choose between two can't be pickled.
        self.home, self.function = next(
            (home, name_function(target))
            for home, module in _HOMES.items()
            if getattr(module, name_function(target), None) is target
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        _keep_whole()
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    @property
    def target(self) -> Callable[..., Any]:
        """The function."""
        return _find_function(self.home, self.function)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run it."""
        return run_function(self.home, self.function, args, kwargs)


def run_function(home: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run a function, told by the name of its module and its own, as if its stride were 1.

    Example:
        >>> run_function("torch", "max_pool1d", (torch.arange(4.0).view(1, 1, 4), 2), {})
        tensor([[[1., 2., 3.]]])
    """
    function = _find_function(home, name)
    return run_densely(Tensor.__getitem__ if function is operator.getitem else function, args, kwargs)


# A step of its own for whoever traces: what it looks up in tables is no part of a graph.
fx.wrap("run_function")


@functools.cache
def _keep_whole() -> None:
    """The same for the compiler, which takes two seconds to import: told once a graph is there to compile."""
    torch.compiler.allow_in_graph(run_function)


def _find_function(home: str, name: str) -> Callable[..., Any]:
    return getattr(_HOMES[home], name)  # type: ignore[no-any-return]


def find_node(graph: fx.GraphModule, function: Function) -> fx.Node | None:
    """Return the node of a function that ran in a graph; None if it is none that is known by name.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return F.max_pool2d(x.relu(), 2)
        >>> net = fx.symbolic_trace(Net())
        >>> find_node(net, Function("max_pool2d", (("forward", 2, 0, 0),))).name
        'max_pool2d'
    """
    lines = graph.code.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("def forward")), None)
    if first is None or len(function.place) != 1:
        return None
    down = first + function.place[0][1]
    name = lines[down].partition("=")[0].partition(":")[0].strip() if down < len(lines) else ""
    node = next((node for node in graph.graph.nodes if node.name == name), None)
    known = node is not None and node.op == "call_function" and any(
        getattr(home, name_function(node.target), None) is node.target for home in _HOMES.values()
    )  # fmt: skip
    return node if known else None


def replace_node(graph: fx.GraphModule, node: fx.Node, layer: nn.Module, chosen: Replacement) -> None:
    """Run a function of a graph densely from now on, and a layer before or behind it."""
    if CHILD not in graph._modules:
        setattr(graph, CHILD, Layers().train(graph.training))
    layers = graph.get_submodule(CHILD)
    layers.add_module(chosen.key, layer)
    dense = Densely(chosen.site, node.target)  # type: ignore[arg-type]
    layers.add_module(chosen.key + _DENSELY, dense.train(graph.training))
    path, nodes = f"{CHILD}.{chosen.key}", graph.graph
    with nodes.inserting_before(node):
        args, kwargs = list(node.args), dict(node.kwargs)
        if chosen.placement == "before":
            if args:
                args[0] = nodes.call_module(path, (args[0],))
            else:
                kwargs["input"] = nodes.call_module(path, (kwargs["input"],))
        out = nodes.call_module(path + _DENSELY, tuple(args), kwargs)
        if chosen.placement == "behind":
            if chosen.order is not None:
                out = nodes.call_method("permute", (out, tuple(chosen.order)))
            out = nodes.call_module(path, (out,))
            if chosen.order is not None:
                out = nodes.call_method("permute", (out, tuple(invert(chosen.order))))
    node.replace_all_uses_with(out)
    nodes.erase_node(node)
    graph.recompile()


def put_back_nodes(graph: fx.GraphModule) -> None:
    """Put back the functions whose nodes were replaced."""
    nodes = graph.graph
    replaced = [node for node in nodes.nodes if is_densely(graph, node)]
    for node in replaced:
        args, kwargs = list(node.args), dict(node.kwargs)
        path = str(node.target).removesuffix(_DENSELY)
        entering = args[0] if args else kwargs["input"]
        if isinstance(entering, fx.Node) and entering.target == path:  # the layer stood before it
            if args:
                args[0] = entering.args[0]
            else:
                kwargs["input"] = entering.args[0]
        made = [entering] if isinstance(entering, fx.Node) and entering.target == path else []
        made.append(node)
        if not made[:-1]:  # it stands behind, perhaps between two permutations
            while made[-1].target != path:
                made.append(next(iter(made[-1].users)))
            if made[-2] is not node:
                made.append(next(iter(made[-1].users)))
        with nodes.inserting_before(node):
            function = graph.get_submodule(str(node.target)).target
            back = nodes.call_function(function, tuple(args), kwargs)  # type: ignore[arg-type]
        made[-1].replace_all_uses_with(back)
        for one in reversed(made):
            nodes.erase_node(one)
    if replaced:
        delattr(graph, CHILD)
        graph.recompile()


def has_nodes(graph: fx.GraphModule) -> bool:
    """Whether any function of a graph is replaced."""
    return any(is_densely(graph, node) for node in graph.graph.nodes)


def is_densely(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a function that runs without its stride."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), Densely)
