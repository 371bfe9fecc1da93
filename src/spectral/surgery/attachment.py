"""Where each layer of a converted network goes, and how it is attached and taken off again.

Nothing of the model is wrapped or renamed. A convolution or pool module gets stride 1, its layer as a child,
and a hook; what a module calls as functions is replaced while its forward runs (`frames`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from spectral.layers.polyphase import PhasePool
from spectral.numerics.tracing import fixed_shape
from spectral.operators import Size
from spectral.surgery.frames import Link, find_frame, frame_of, unframe
from spectral.surgery.functions import Signature
from spectral.surgery.graphs import find_node, has_nodes, put_back_nodes, replace_node
from spectral.surgery.hooks import (
    CHILD,
    Layers,
    Owe,
    PoolInput,
    PoolOutput,
    Settle,
    SharePhase,
    add_hook,
    list_hooks,
    remove_hooks,
)
from spectral.surgery.remedies import put_back_border
from spectral.surgery.rewriting import Function, Replacement

_STRIDE = "decimating_stride"  # attribute of a module whose stride is replaced


@dataclass(frozen=True)
class Point:
    """The place behind which a layer is due.

    Attributes:
        path: the activation's module, or the one in whose own forward a function activates.
        function: that function, if it is one.
        wait: how many calls of that place are for other maps, between the operator and it.
    """

    path: str
    function: Function | None = None
    wait: int = 0

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        if self.function is None:
            return self.path
        return f"{self.path}:{self.function.name}{self.function.place}"


@dataclass(frozen=True)
class Unit:
    """One replacement: everything about it but the layer, in terms that hold for any copy of the model.

    Attributes:
        sites: names of the sites that it replaces; several where the module runs several times.
        path: the module that decimated, and has the layer now.
        placement: ``before`` or ``behind`` the operator, or behind the ``activation``.
        point: where that is.
        key: the layer's name where an operator is replaced, None where the module's stride is.
        function: the call of that operator.
        signature: what it has in common with its like.
        order: as for `Replacement`.
        axes: how many spatial axes its maps have.
        lattice: size of the map that is decimated, and stride: where these are the same, the sites make one
            lattice, and layers that choose its phase choose the same.
    """

    sites: tuple[str, ...]
    path: str
    placement: str
    point: Point | None = None
    key: str | None = None
    function: Function | None = None
    signature: Signature = ("", (), ())
    order: tuple[int, ...] | None = None
    axes: int = 2
    lattice: tuple[Size, Size] = ((), ())

    @property
    def layer_path(self) -> str:
        """Where the layer stands in the converted model."""
        return ".".join(filter(None, (self.path, CHILD, self.key)))

    @property
    def block(self) -> str | None:
        """The innermost module that holds both the operator and the place behind which the layer is due."""
        if self.point is None:
            return _parent(self.path)
        ends = [self.path if self.function else _parent(self.path) or ""]
        ends.append(self.point.path if self.point.function else _parent(self.point.path) or "")
        return _find_shared(ends)


class PerChannels(nn.ModuleDict):
    """One layer per number of channels, for a module that pools maps of several."""

    def __init__(self, layers: Mapping[str, nn.Module], axes: int = 2) -> None:
        super().__init__(layers)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer of these channels."""
        pooled: Tensor = self[str(fixed_shape(x)[-1 - self.axes])](x)
        return pooled


def attach(model: nn.Module, layers: Mapping[Unit, nn.Module]) -> None:
    """Put each unit's layer in place of its decimation; the layers are in the order in which they run."""
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes = {unit: _find_node(modules[unit.path], unit) for unit in layers}  # replacing one moves the others
    for unit, layer in layers.items():
        owner = modules[unit.path]
        if unit.function is None:
            _attach_to_module(owner, unit, layer)
        else:
            _attach_to_function(owner, unit, layer, nodes[unit])
        if unit.point is not None:
            place = modules[unit.point.path]
            if unit.point.function is None:
                add_hook(place, Settle(unit.point.name))
            else:
                frame_of(place).points[unit.point.function] = unit.point.name
        if unit.block is not None:
            _link(modules[unit.block], unit)
    lattices: dict[tuple[Size, Size], dict[str, PhasePool]] = defaultdict(dict)
    for unit, layer in layers.items():
        if isinstance(layer, PhasePool):
            lattices[unit.lattice][unit.path] = layer
    for lattice, alike in lattices.items():
        if len(alike) > 1:
            _share_phase(modules, lattice, alike)


def detach(model: nn.Module) -> None:
    """Undo all that was attached: every module is as it was, weights apart."""
    for module in list(model.modules()):
        if any(isinstance(hook, SharePhase) and not hook.leads for hook in list_hooks(module)):
            module.requires_grad_(True)
        remove_hooks(module)
        put_back_border(module)
        attributes = vars(module)
        frame = find_frame(module)
        if _STRIDE in attributes:
            module.stride = attributes.pop(_STRIDE)
            module._modules.pop(CHILD, None)  # perhaps it was deleted
        elif frame is not None and frame.calls:
            module._modules.pop(CHILD, None)
        elif isinstance(module, fx.GraphModule):
            put_back_nodes(module)
        if frame is not None:
            unframe(module)


def is_attached(model: nn.Module) -> bool:
    """Whether any layer is attached inside a model."""
    for module in model.modules():
        frame = find_frame(module)
        if _STRIDE in vars(module) or (frame is not None and frame.calls):
            return True
        if isinstance(module, fx.GraphModule) and has_nodes(module):
            return True
    return False


def _attach_to_module(owner: nn.Module, unit: Unit, layer: nn.Module) -> None:
    stride = vars(owner)["stride"]
    setattr(owner, CHILD, layer)
    setattr(owner, _STRIDE, stride)
    owner.stride = (1,) * len(stride) if isinstance(stride, tuple | list) else 1  # type: ignore[assignment]
    site = unit.sites[0]
    if unit.placement == "before":
        add_hook(owner, PoolInput(site))
    elif unit.point is not None:
        add_hook(owner, Owe(site, unit.point.name, unit.point.wait))
    else:
        add_hook(owner, PoolOutput(site))


def _find_node(owner: nn.Module, unit: Unit) -> fx.Node | None:
    """Return the node of a unit's function, if it is one of a traced graph."""
    graph = owner if isinstance(owner, fx.GraphModule) and unit.function is not None else None
    return find_node(graph, unit.function) if graph is not None and unit.function is not None else None


def _attach_to_function(owner: nn.Module, unit: Unit, layer: nn.Module, node: fx.Node | None) -> None:
    assert unit.key is not None
    assert unit.function is not None
    point, wait = ("", 0) if unit.point is None else (unit.point.name, unit.point.wait)
    chosen = Replacement(
        unit.sites[0], unit.key, unit.placement, unit.signature, unit.order, point, wait
    )  # fmt: skip
    if node is not None and isinstance(owner, fx.GraphModule):
        replace_node(owner, node, layer, chosen)
        return
    if CHILD not in owner._modules:
        setattr(owner, CHILD, Layers().train(owner.training))
    layers = owner._modules[CHILD]
    assert isinstance(layers, Layers)
    layers.add_module(unit.key, layer)
    frame_of(owner).calls[unit.function] = chosen


def _link(block: nn.Module, unit: Unit) -> None:
    """Let a block answer for the modules that a layer depends on."""
    cut = len(unit.block) + 1 if unit.block else 0
    point = None
    if unit.point is not None and unit.point.function is None:
        point = unit.point.path[cut:]
    name = unit.point.name if unit.point is not None else ""
    frame_of(block).links[unit.sites[0]] = Link(unit.path[cut:], point, name)


def _parent(path: str) -> str | None:
    return path.rpartition(".")[0] if path else None


def _find_shared(paths: Sequence[str]) -> str:
    """Return the innermost module that holds several."""
    shared: list[str] = []
    for names in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _share_phase(
    modules: Mapping[str, nn.Module], lattice: tuple[Size, Size], layers: Mapping[str, PhasePool]
) -> None:
    """Let layers keep the phase that the first of them chose, for as long as a block of them all runs.

    Those that choose nothing have nothing to learn: an optimiser or DDP would wait for their gradients.
    """
    frame_of(modules[_find_shared(list(layers))])
    first, *others = layers.values()
    add_hook(first, SharePhase(str(lattice), leads=True))
    for layer in others:
        add_hook(layer, SharePhase(str(lattice), leads=False))
        layer.requires_grad_(False)
