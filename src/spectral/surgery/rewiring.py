"""What hangs on a converted model: hooks that run its layers, and a mode that replaces single operators.

Nothing of the model is wrapped or renamed. A layer is a child, ``antialias``, of the module whose operator
decimated, and small hooks run it: on the module's input, on its output, or on the output of the activation
that follows. All hooks are plain functions of this file, so that a converted model can be copied and pickled.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectral.layers.polyphase import PhasePool
from spectral.operators import Decimation, Geometry, Size, find_function, operator_of, parse

CHILD = "antialias"
_STRIDE = "decimating_stride"  # attribute of a module whose stride is replaced
_DUE = "_antialias_due"  # attribute of a dense map on its way to the layer that it still has to pass
aten = torch.ops.aten

Signature = tuple[str, Size, Size, Size]


@dataclass(frozen=True)
class Unit:
    """One replacement: everything about it but the layer, in terms that hold for any copy of the model.

    Attributes:
        sites: names of the sites that it replaces; several where the module runs several times.
        path: the module that decimated, and has the layer now.
        placement: ``before`` or ``behind`` the operator, or behind the ``activation``.
        chain: modules between the operator and the activation, which comes last; none if not that placement.
        function: the module in whose own forward the activation is called as a function, else None.
        key: the layer's name where an operator is replaced, None where the module's stride is.
        signature: which operators are alike, of those inside one call of the module.
        rank: which of the alike it is.
        lattice: size of the map that is decimated, and stride: where these are the same, the sites make one
            lattice, and layers that choose its phase choose the same.
    """

    sites: tuple[str, ...]
    path: str
    placement: str
    chain: tuple[str, ...] = ()
    function: str | None = None
    key: str | None = None
    signature: Signature = ("", (), (), ())
    rank: int = 0
    lattice: tuple[Size, Size] = ((), ())

    @property
    def layer_path(self) -> str:
        """Where the layer stands in the converted model."""
        return ".".join(filter(None, (self.path, CHILD, self.key)))


class Rewrites(nn.ModuleDict):
    """The layers of the operators that are replaced inside one module's forward, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[tuple[Signature, int], tuple[str, str]] = {}  # → key and placement


class PerChannels(nn.ModuleDict):
    """One layer per number of channels, for a module that pools maps of several."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer of these channels."""
        layer: Tensor = self[str(x.shape[-3])](x)
        return layer


class Choice:
    """The phases that one layer kept, for the others at its resolution; copies forget them."""

    def __init__(self) -> None:
        self.phase: Tensor | None = None

    def __getstate__(self) -> dict[str, None]:
        return {"phase": None}


def attach(model: nn.Module, layers: Mapping[Unit, nn.Module]) -> None:
    """Put each unit's layer in place of its decimation; the layers are in the order in which they run."""
    modules = dict(model.named_modules())
    framed: set[nn.Module] = set()
    for unit, layer in layers.items():
        owner = modules[unit.path]
        if unit.key is None:
            _attach_module(owner, unit.placement, layer)
        else:
            rewrites = _rewrites_of(owner)
            rewrites.add_module(unit.key, layer)
            rewrites.table[unit.signature, unit.rank] = unit.key, unit.placement
            framed.add(owner)
        for path in unit.chain:
            _hook(modules[path], _settle if path == unit.chain[-1] and unit.function is None else _pass_on)
        if unit.function is not None:
            _rewrites_of(modules[unit.function])
            framed.add(modules[unit.function])
    # Operators of the modules inside an owner are not its own.
    for module in {inner for owner in framed for inner in owner.modules()}:
        _hook_frame(module)
    lattices: dict[tuple[Size, Size], list[PhasePool]] = defaultdict(list)
    for unit, layer in layers.items():
        if isinstance(layer, PhasePool):
            lattices[unit.lattice].append(layer)
    for alike in lattices.values():
        if len(alike) > 1:
            _share_choice_among(alike)


def detach(model: nn.Module) -> None:
    """Undo all that was attached: every module is as it was, weights apart."""
    for module in list(model.modules()):
        for hooks, *flags in _hook_tables(module):
            for number in [n for n, hook in hooks.items() if hook in _OURS]:
                for table in (hooks, *flags):
                    table.pop(number, None)
        attributes = vars(module)
        if isinstance(attributes.get("choice"), Choice):
            del attributes["choice"], attributes["leads"]
        if _STRIDE in attributes:
            module.stride = attributes.pop(_STRIDE)
            delattr(module, CHILD)
        elif isinstance(module._modules.get(CHILD), Rewrites):
            delattr(module, CHILD)


def is_attached(model: nn.Module) -> bool:
    """Whether any layer is attached inside a model."""
    return any(
        _STRIDE in vars(module) or isinstance(module._modules.get(CHILD), Rewrites)
        for module in model.modules()
    )


def signature_of(geometry: Geometry) -> Signature:
    """Return what alike operators have in common, whatever the size of their input."""
    kind = operator_of(geometry.kind).runs_as or geometry.kind
    return kind, geometry.stride, geometry.kernel, geometry.phase


def _attach_module(owner: nn.Module, placement: str, layer: nn.Module) -> None:
    stride = vars(owner)["stride"]
    setattr(owner, _STRIDE, stride)
    owner.stride = 1 if isinstance(stride, int) else (1, 1)  # type: ignore[assignment]
    setattr(owner, CHILD, layer)
    if placement == "before":
        owner.register_forward_pre_hook(_pool_input, with_kwargs=True)
    else:
        _hook(owner, _pool_output if placement == "behind" else _owe)


def _rewrites_of(owner: nn.Module) -> Rewrites:
    rewrites = owner._modules.get(CHILD)
    if not isinstance(rewrites, Rewrites):
        rewrites = Rewrites()
        setattr(owner, CHILD, rewrites)
    return rewrites


def _hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook)


def _hook_frame(module: nn.Module) -> None:
    if _enter not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_enter, prepend=True)
        module.register_forward_hook(_leave, always_call=True)


def _hook_tables(module: nn.Module) -> list[tuple[dict[int, Any], ...]]:
    """Return the tables of a module's hooks, each with those that hold flags for the same numbers."""
    return [
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
    ]


def _pool_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (module.antialias(args[0]), *args[1:]), kwargs  # type: ignore[operator]
    return (), {**kwargs, "input": module.antialias(kwargs["input"])}  # type: ignore[operator]


def _pool_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module.antialias(output)  # type: ignore[operator, no-any-return]


def _owe(module: nn.Module, args: Any, output: Tensor) -> None:
    """Send the layer along with the dense map, to the activation that may serve other maps as well."""
    setattr(output, _DUE, module.antialias)


def _pass_on(module: nn.Module, args: Any, output: Tensor) -> None:
    layer = getattr(args[0], _DUE, None) if args else None
    if layer is not None:
        setattr(output, _DUE, layer)


def _settle(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    layer = getattr(args[0], _DUE, None) if args else None
    return None if layer is None else layer(output)


def _share_choice_among(layers: Sequence[PhasePool]) -> None:
    choice = Choice()
    for layer in layers:
        layer.choice = choice  # type: ignore[assignment]
        layer.leads = layer is layers[0]  # type: ignore[assignment]
        layer.register_forward_pre_hook(_share_choice, with_kwargs=True)


def _share_choice(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if module.leads:
        module.choice.phase = module.select(args[0])
    return args, {"phase": module.choice.phase}


class _Frames(threading.local):
    """The calls that are running in this thread, of owners and of the modules inside them."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, AbstractContextManager[Any] | None]] = []


_FRAMES = _Frames()


def _enter(module: nn.Module, args: Any) -> None:
    rewrites = module._modules.get(CHILD)
    mode: AbstractContextManager[Any] | None = None
    if isinstance(rewrites, Rewrites):
        mode = _Rewriter(rewrites)
    _FRAMES.stack.append((module, mode))
    if mode is not None:
        mode.__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    # Runs after an exception too, which may have come before _enter.
    while any(running is module for running, _ in _FRAMES.stack):
        running, mode = _FRAMES.stack.pop()
        if mode is not None:
            mode.__exit__(None, None, None)
        if running is module:
            break


_OURS = (_pool_input, _pool_output, _owe, _pass_on, _settle, _share_choice, _enter, _leave)


class _Rewriter(TorchFunctionMode):
    """Runs chosen operators of one call densely, each followed by its layer."""

    def __init__(self, rewrites: Rewrites) -> None:
        super().__init__()
        self._rewrites = rewrites
        self._counts: Counter[Signature] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, or what replaces it."""
        kwargs = kwargs or {}
        if not _FRAMES.stack or _FRAMES.stack[-1][1] is not self:
            return func(*args, **kwargs)
        decimation = read_call(func, args, kwargs)
        if decimation is not None:
            signature = signature_of(decimation.geometry)
            entry = self._rewrites.table.get((signature, self._counts[signature]))
            self._counts[signature] += 1
            if entry is not None:
                return _run_dense(decimation, self._rewrites[entry[0]], entry[1])
        out = func(*args, **kwargs)
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            layer = vars(args[0]).pop(_DUE, None)
            if layer is not None:
                return layer(out)
        return out


def _run_dense(decimation: Decimation, layer: nn.Module, placement: str) -> Tensor:
    if placement == "before":
        decimation = replace(decimation, input=layer(decimation.input))
    dense = decimation.dense(decimation.output_size)
    if placement == "behind":
        return layer(dense)  # type: ignore[no-any-return]
    if placement == "activation":
        setattr(dense, _DUE, layer)
    return dense


def read_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Decimation | None:
    """Read a torch function call as a decimation of a map (B, C, H, W), else None.

    Example:
        >>> read_call(F.avg_pool2d, (torch.zeros(1, 1, 8, 8), 2), {}).geometry.stride
        (2, 2)
    """
    if func is Tensor.__getitem__:
        return _read_indexing(*args)
    operator = find_function(func)
    x = args[0] if args else kwargs.get("input")
    if operator is None or not isinstance(x, Tensor) or x.ndim != 4:
        return None
    rest = {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
    decimation = parse(operator, (x, *args[1:]), rest)
    return None if decimation is None or decimation.geometry.kind == "global_pool" else decimation


def _read_indexing(x: Tensor, index: Any) -> Decimation | None:
    """Read x[:, :, a::s, b::t] as a decimation of x[:, :, a:, b:]."""
    index = list(index) if isinstance(index, tuple) else [index]
    if x.ndim != 4 or not x.is_floating_point() or not all(isinstance(i, slice) or i is ... for i in index):
        return None
    if ... in index:
        at = index.index(...)
        index[at : at + 1] = [slice(None)] * (5 - len(index))
    index += [slice(None)] * (4 - len(index))
    steps = [i.step or 1 for i in index]
    if steps[:2] != [1, 1] or max(steps) == 1:
        return None
    stride = tuple(steps[2:])
    phase = tuple(i.indices(n)[0] for i, n in zip(index[2:], x.shape[2:], strict=True))
    dense = x[tuple(slice(i.start, i.stop) for i in index)]
    return Decimation(Geometry("slice", stride, phase=phase), dense)
