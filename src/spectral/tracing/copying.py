"""A structural copy of a model: every object that it consists of once more, with other tensors.

`copy.deepcopy` copies weights, lets hooks of the copy write into lists of the original (closures are not
followed), loses hooks and modes of fx graphs, and gives up at the first lock. Here each tensor is mapped by a
function, and what can't be copied is kept as it is and named.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from copyreg import dispatch_table
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from spectral.errors import SpectralError
from spectral.processes.locks import alone

TensorMap = Callable[[Tensor], Tensor]
M = TypeVar("M")

_LARGE = 2**20  # bytes: larger NumPy arrays are shared, write-protected

# Immutable, or made to be shared: locks, modules, classes.
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented),
    property, types.ModuleType, types.CodeType, types.MethodDescriptorType, types.WrapperDescriptorType,
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Stream, torch.Event,
    type(threading.Lock()), type(threading.RLock()), np.generic, np.dtype, weakref.ProxyType,
    contextvars.ContextVar,
)  # fmt: skip


@dataclass
class Copied:
    """What a copy consists of.

    Attributes:
        root: the copy.
        shared: where in the original an object stands that can't be copied, and that object.
        code: functions and classes whose code belongs to it.
    """

    root: Any
    shared: dict[str, Any] = field(default_factory=dict)
    code: list[Any] = field(default_factory=list)


def copy_structure(root: M, map_tensor: TensorMap) -> Copied:
    """Copy an object with all that it consists of, tensors apart: those are mapped, each once.

    Sharing is kept: what has two names in the original has two in the copy. Functions are copied where their
    closures hold something that is copied, so that a hook of the copy writes into the copy.

    Args:
        root: a module, or anything else.
        map_tensor: a tensor → the one that takes its place.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> copied = copy_structure(layer, lambda tensor: tensor.to("meta"))
        >>> copied.root.weight.device.type, layer.weight.device.type
        ('meta', 'cpu')
    """
    copier = _Copier(map_tensor)
    root_copy = copier.copy(root)
    functions = [f for f in copier.originals.values() if isinstance(f, types.FunctionType)]
    code = [*functions, *{type(x): None for x in copier.originals.values()}]
    return Copied(root_copy, copier.shared, code)


def copy_model(model: M) -> M:
    """Copy a model with weights of its own, as `copy.deepcopy` does where it can.

    Raises:
        SpectralError: naming what can't be copied.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer.lock = threading.Lock()
        >>> torch.equal(copy_model(layer).weight, layer.weight)
        True
    """
    with alone(model):
        copied = copy_structure(model, clone)
    if copied.shared:
        named = ", ".join(f"{path!r} (a {type(x).__name__})" for path, x in copied.shared.items())
        raise SpectralError(f"{type(model).__name__} can't be copied: it holds {named}")
    twin: M = copied.root
    return twin


def clone(x: Tensor) -> Tensor:
    """Return a tensor of the same class and values, with no history.

    Example:
        >>> clone(nn.Parameter(torch.ones(2))).requires_grad
        True
    """
    if is_lazy(x):
        return make_lazy(x, x.device)
    if isinstance(x, nn.Parameter):
        return type(x)(x.detach().clone(), x.requires_grad)
    return x.detach().clone().requires_grad_(x.requires_grad and x.is_leaf)


def make_lazy(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor as uninitialised as another."""
    kind: Any = UninitializedParameter if isinstance(x, nn.Parameter) else UninitializedBuffer
    lazy: Tensor = kind(device=device, dtype=x.dtype)
    return lazy


class _Copier:
    """Follows an object graph; ``memo`` is what `copy.deepcopy` calls so, for ``__deepcopy__`` methods."""

    def __init__(self, map_tensor: TensorMap) -> None:
        self.memo: dict[int, Any] = {}
        self.originals: dict[int, Any] = {}  # alive, so that no two objects have one id
        self.shared: dict[str, Any] = {}
        self._map_tensor = map_tensor
        self._path: list[Any] = []

    def copy(self, x: Any) -> Any:
        """Return the copy of any object."""
        kind = type(x)
        if kind in _ATOM_TYPES or isinstance(x, type):
            return x
        key = id(x)
        if key in self.memo:
            return self.memo[key]
        self.originals[key] = x
        rule = _RULES.get(kind)
        if rule is not None:
            return rule(self, x)
        for base, rule in _BASE_RULES:
            if isinstance(x, base):
                return rule(self, x)
        return self._copy_object(x)

    def _keep(self, x: Any, new: M) -> M:
        self.memo[id(x)] = new
        return new

    def _share(self, x: Any) -> Any:
        """Keep an object itself, and say so."""
        self.shared[".".join(map(_name, self._path))] = x
        return self._keep(x, x)

    def _atom(self, x: Any) -> Any:
        return self._keep(x, x)

    def _fill(self, new: dict[Any, Any], x: dict[Any, Any]) -> None:
        path = self._path
        for key, value in list(x.items()):  # at once: another thread may add to it
            kind = type(value)
            if kind in _ATOM_TYPES:
                copied = value
            elif kind is OrderedDict and not value:  # most of a module's attributes: tables of hooks
                self.originals[id(value)] = value
                copied = self.memo[id(value)] = OrderedDict()
            else:
                path.append(key)
                copied = self.copy(value)
                path.pop()
            new[key if type(key) is str else self.copy(key)] = copied

    def _copy_dict(self, x: dict[Any, Any]) -> dict[Any, Any]:
        new = self._keep(x, type(x)())
        if x:
            self._fill(new, x)
        return new

    def _copy_list(self, x: list[Any]) -> list[Any]:
        new: list[Any] = self._keep(x, [])
        for i, item in enumerate(list(x)):
            self._path.append(i)
            new.append(self.copy(item))
            self._path.pop()
        return new

    def _copy_deque(self, x: deque[Any]) -> deque[Any]:
        new: deque[Any] = self._keep(x, deque(maxlen=x.maxlen))
        new.extend(map(self.copy, list(x)))
        return new

    def _copy_tuple(self, x: tuple[Any, ...]) -> tuple[Any, ...]:
        items = tuple(map(self.copy, x))
        if id(x) in self.memo:  # it holds itself, by way of a list
            known: tuple[Any, ...] = self.memo[id(x)]
            return known
        same = all(new is old for new, old in zip(items, x, strict=True))
        return self._keep(x, x if same else items)

    def _copy_set(self, x: Any) -> Any:
        return self._keep(x, type(x)(map(self.copy, list(x))))

    def _copy_tensor(self, x: Tensor) -> Tensor:
        try:
            new = self._keep(x, self._map_tensor(x))
        except Exception:  # whatever a class of tensors can't do
            new = self._share(x)
        if new is not x and vars(x):
            self._fill(vars(new), vars(x))
        return new

    def _copy_array(self, x: np.ndarray) -> np.ndarray:
        if x.nbytes <= _LARGE and not x.dtype.hasobject:
            return self._keep(x, x.copy())
        view = x.view()
        view.flags.writeable = False
        return self._keep(x, view)

    def _copy_generator(self, x: torch.Generator) -> torch.Generator:
        new = torch.Generator(x.device)
        new.set_state(x.get_state())
        return self._keep(x, new)

    def _copy_module(self, x: nn.Module) -> nn.Module:
        cls = type(x)
        graph = isinstance(x, fx.GraphModule)  # its forward stands in a class of its own
        try:
            new = cls.__new__(cls) if graph else object.__new__(cls)
        except TypeError:
            new = cls.__new__(cls)
        self._keep(x, new)
        self._restore_state(x, new)
        if isinstance(new, fx.GraphModule):
            new._graph.owning_module = new
            new.recompile()
            if getattr(vars(new).get("forward"), "__func__", None) is nn.Module.forward:
                # A watched one gave it as the forward of its class, which had none yet.
                del vars(new)["forward"]
        return new

    def _restore_state(self, x: nn.Module, new: nn.Module) -> None:
        """Give a module its attributes, those that its class gives to copies if it is choosy."""
        cls, state = type(x), x.__dict__
        if cls.__getstate__ is not nn.Module.__getstate__:
            try:
                state = x.__getstate__()
            except Exception:  # parametrised modules refuse
                state = x.__dict__
        if type(state) is not dict or cls.__setstate__ is not nn.Module.__setstate__:
            new.__setstate__(self.copy(state))
        else:
            self._fill(new.__dict__, state)

    def _copy_function(self, x: types.FunctionType) -> types.FunctionType:
        if _is_constant(x):
            return self._keep(x, x)
        cells = [self._open_cell(cell) for cell in x.__closure__ or ()]
        new = types.FunctionType(
            x.__code__, x.__globals__, x.__name__, None, tuple(cell for cell, _ in cells)
        )
        self._keep(x, new)
        for cell, content in cells:
            if content is not None:
                cell.cell_contents = self.copy(content.cell_contents)
        new.__defaults__, new.__kwdefaults__ = self.copy(x.__defaults__), self.copy(x.__kwdefaults__)
        new.__qualname__, new.__module__, new.__doc__ = x.__qualname__, x.__module__, x.__doc__
        new.__annotations__ = x.__annotations__
        self._fill(new.__dict__, x.__dict__)
        return new

    def _open_cell(self, cell: types.CellType) -> tuple[types.CellType, types.CellType | None]:
        """Return the cell's copy, and the cell itself if the copy has yet to be filled."""
        if id(cell) in self.memo:
            return self.memo[id(cell)], None
        self.originals[id(cell)] = cell
        new = self._keep(cell, types.CellType())
        try:
            _ = cell.cell_contents
        except ValueError:  # empty
            return new, None
        return new, cell

    def _copy_method(self, x: types.MethodType) -> types.MethodType:
        return self._keep(x, types.MethodType(self.copy(x.__func__), self.copy(x.__self__)))

    def _copy_builtin(self, x: Any) -> Any:
        owner = x.__self__
        if owner is None or isinstance(owner, types.ModuleType | type):
            return self._keep(x, x)
        return self._keep(x, getattr(self.copy(owner), x.__name__))

    def _copy_partial(self, x: functools.partial[Any]) -> functools.partial[Any]:
        new = functools.partial(self.copy(x.func), *map(self.copy, x.args), **self.copy(x.keywords))
        self._keep(x, new)
        self._fill(vars(new), vars(x))
        return new

    def _copy_cache(self, x: Any) -> Any:
        """Copy a cached function; the copy's cache is empty."""
        return self._keep(x, functools.lru_cache(**x.cache_parameters())(self.copy(x.__wrapped__)))

    def _copy_reference(self, x: Any) -> Any:
        target = x()
        return self._keep(x, x if target is None else weakref.ref(self.copy(target)))

    def _copy_local(self, x: threading.local) -> threading.local:
        """Copy what this thread sees of it."""
        new = self._keep(x, threading.local())
        self._fill(vars(new), vars(x))
        return new

    def _copy_proxy(self, x: types.MappingProxyType[Any, Any]) -> Any:
        return self._keep(x, types.MappingProxyType(self._copy_dict(dict(x))))

    def _copy_object(self, x: Any) -> Any:
        """Copy what has no rule here as its class says, else attribute by attribute, else not at all."""
        cls, depth = type(x), len(self._path)
        try:
            if hasattr(cls, "__deepcopy__"):
                return self._keep(x, x.__deepcopy__(self.memo))
            reducer = dispatch_table.get(cls)
            reduced = x.__reduce_ex__(4) if reducer is None else reducer(x)
            return self._keep(x, x) if isinstance(reduced, str) else self._rebuild(x, *reduced)
        except Exception:  # whatever a class raises that isn't made to be copied
            self.memo.pop(id(x), None)
            del self._path[depth:]
        if cls.__flags__ & _HEAP_TYPE and hasattr(x, "__dict__"):
            try:
                new = self._keep(x, object.__new__(cls))
            except TypeError:
                return self._share(x)
            self._fill(new.__dict__, x.__dict__)
            return new
        return self._share(x)

    def _rebuild(
        self, x: Any, make: Any, args: Any, state: Any = None, items: Any = None, pairs: Any = None, *_: Any
    ) -> Any:
        """Carry out what ``__reduce_ex__`` returned, on copies."""
        new = self._keep(x, make(*(self.copy(arg) for arg in args)))
        if state is not None:
            state = self.copy(state)
            if hasattr(new, "__setstate__"):
                new.__setstate__(state)
            else:
                attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
                if attributes:
                    vars(new).update(attributes)
                for name, value in (slots or {}).items():
                    setattr(new, name, value)
        for item in items or ():
            new.append(self.copy(item))
        for key, value in pairs or ():
            new[self.copy(key)] = self.copy(value)
        return new


def _name(key: Any) -> str:
    return str(key) if isinstance(key, str | int) else type(key).__name__


def _is_constant(x: Any, seen: tuple[Any, ...] = ()) -> bool:
    """Whether nothing of an object can change, so that it may stand for its own copy."""
    if type(x) in _ATOM_TYPES or isinstance(x, type):
        return True
    if type(x) is tuple:
        return all(_is_constant(item, seen) for item in x)
    if type(x) is not types.FunctionType:
        return False
    if x in seen:
        return True
    contents = [x.__defaults__ or (), *(x.__kwdefaults__ or {}).values(), *vars(x).values()]
    for cell in x.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    return all(_is_constant(content, (*seen, x)) for content in contents)


_HEAP_TYPE = 1 << 9  # set in the flags of classes that are written in Python
_ATOM_TYPES = frozenset(_ATOMS)

# Exact types first, then classes with all that derive from them.
_RULES: dict[type, Callable[[_Copier, Any], Any]] = {
    dict: _Copier._copy_dict,
    OrderedDict: _Copier._copy_dict,
    list: _Copier._copy_list,
    tuple: _Copier._copy_tuple,
    set: _Copier._copy_set,
    frozenset: _Copier._copy_set,
    deque: _Copier._copy_deque,
    types.FunctionType: _Copier._copy_function,
    types.MethodType: _Copier._copy_method,
    types.BuiltinMethodType: _Copier._copy_builtin,
    types.MethodWrapperType: _Copier._copy_builtin,
    types.MappingProxyType: _Copier._copy_proxy,
    functools.partial: _Copier._copy_partial,
    type(functools.lru_cache(_is_constant)): _Copier._copy_cache,
    weakref.ref: _Copier._copy_reference,
    torch.Generator: _Copier._copy_generator,
    threading.local: _Copier._copy_local,
}
_BASE_RULES: list[tuple[type, Callable[[_Copier, Any], Any]]] = [
    (nn.Module, _Copier._copy_module),
    (Tensor, _Copier._copy_tensor),
    (np.ndarray, _Copier._copy_array),
    *((kind, _Copier._atom) for kind in _ATOMS),
]
