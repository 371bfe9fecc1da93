"""What a model and its code can write to: what has changed, and how to put that back.

A forward pass may keep things in tables of its Python module, in attributes of its class, in the cache of a
cached function, in default arguments and closures. All of these are found by the names that the code reads,
from function to function, and none of torch's own.
"""

from __future__ import annotations

import functools
import gc
import pickle
import random
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_FOREIGN = frozenset({"torch", "numpy", "functorch", "pandas", "PIL", *sys.stdlib_module_names}) - {
    "__main__"
}
_MOST = 20_000  # objects, so that a registry of everything doesn't cost more than the pass itself
_SMALL = 2**20  # elements of a tensor whose values are kept
_MISSING = object()
_VALUES = {str, int, float, bool, bytes, complex, type(None)}
_CachedFunction = type(functools.lru_cache(len))
_STATEFUL = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)

Look = Callable[[], Iterable[str]]  # names of what has changed
Undo = Callable[[], None]


@contextmanager
def kept_reach(code: Iterable[Any]) -> Iterator[None]:
    """Put back what code can write to outside the objects it belongs to, whatever happens inside.

    Args:
        code: functions and classes.

    Example:
        >>> seen = []
        >>> def forward(x, seen=seen):
        ...     seen.append(x)
        >>> with kept_reach([forward]):
        ...     forward(1)
        >>> seen
        []
    """
    reach = Reach(code)
    try:
        yield
    finally:
        reach.put_back()


class Reach:
    """Everything mutable that code names, each with what tells a change of it and what undoes that.

    Args:
        code: functions and classes; also modules and other objects, which are reached themselves then.

    Example:
        >>> net = nn.BatchNorm1d(3)
        >>> reach = Reach([net])
        >>> _ = net(torch.rand(2, 3))
        >>> reach.find_changes()
        ['running_mean', 'running_var', 'num_batches_tracked']
    """

    def __init__(self, code: Iterable[Any]) -> None:
        self._looks: list[Look] = []
        self._undo: list[Undo] = []
        self._seen: dict[int, Any] = {}
        self._names: set[str] = set()  # that any code reads
        # What modules and classes have under other names, and what it is called.
        self._unnamed: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        self._globals: dict[int, set[str]] = {}  # of each function's table, the names that its functions read
        self._left: deque[tuple[Any, str]] = deque()
        for item in code:
            self._add(item, "")
        while self._left and len(self._seen) < _MOST:
            self._visit(*self._left.popleft())

    def find_changes(self) -> list[str]:
        """Name what has changed: the paths of attributes, the names of what modules and classes have."""
        return list(dict.fromkeys(name for look in self._looks for name in look()))

    def put_back(self) -> None:
        """Bring all back."""
        for put_back in reversed(self._undo):
            put_back()

    def _add(self, x: Any, name: str) -> None:
        if type(x) not in _VALUES and id(x) not in self._seen:
            self._seen[id(x)] = x
            self._left.append((x, name))

    def _visit(self, x: Any, name: str) -> None:
        if isinstance(x, types.FunctionType):
            self._visit_function(x, name)
        elif isinstance(x, type):
            self._visit_class(x)
        elif isinstance(x, types.ModuleType):
            self._visit_module(x)
        elif isinstance(x, types.MethodType):
            self._add(x.__func__, name)
            self._add(x.__self__, name)
        elif isinstance(x, functools.partial):
            for part in (x.func, *x.args, *x.keywords.values()):
                self._add(part, name)
        elif isinstance(x, staticmethod | classmethod):
            self._add(x.__func__, name)
        elif isinstance(x, property):
            for function in (x.fget, x.fset):
                self._add(function, name)
        elif isinstance(x, functools.cached_property):
            self._add(x.func, name)
        elif isinstance(x, _CachedFunction):
            self._visit_cached(x, name)
        elif type(x) in _CONTAINERS:
            self._visit_container(x, name)
        elif type(x) is tuple:
            for item in x:
                self._add(item, name)
        elif isinstance(x, Tensor):
            self._visit_tensor(x, name)
        elif isinstance(x, _STATEFUL):
            self._visit_state(x, name)
        elif isinstance(x, nn.Module):
            self._visit_network(x, name)
        elif isinstance(x, threading.local) or not is_foreign(type(x)):
            self._visit_object(x, name)

    def _visit_function(self, f: types.FunctionType, name: str) -> None:
        if is_foreign(f):
            return
        names = _names_of(f.__code__)
        self._visit_globals(f.__globals__, names)
        for read in names:  # imported where it is used
            for imported in (read, f"{f.__globals__.get('__package__')}.{read}"):
                if imported in sys.modules:
                    self._add(sys.modules[imported], imported)
        for variable, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            self._add_cell(cell, variable)
        for value in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self._add(value, f"{f.__qualname__} (default)")
        self._visit_container(vars(f), f.__qualname__)
        for read in names - self._names:  # what is called of a class or module seen before
            for value, full in self._unnamed.pop(read, ()):
                self._add(value, full)
        self._names |= names

    def _visit_globals(self, table: dict[str, Any], names: frozenset[str]) -> None:
        if id(table) not in self._globals:
            self._globals[id(table)] = set()
            self._keep_bindings(table, self._globals[id(table)])
        new = names - self._globals[id(table)]
        self._globals[id(table)] |= new
        for name in new & table.keys():
            self._add(table[name], name)

    def _visit_module(self, module: types.ModuleType) -> None:
        if is_foreign(module):
            return
        self._keep_bindings(vars(module), self._names)
        for name, value in vars(module).items():
            self._offer(name, value, name)

    def _offer(self, name: str, value: Any, full: str) -> None:
        """Visit what a module or class has under a name, as soon as any code reads that name."""
        if name in self._names:
            self._add(value, full)
        else:
            self._unnamed[name].append((value, full))

    def _keep_bindings(self, table: dict[str, Any], names: set[str]) -> None:
        """Keep what a table has under the names, which may still grow; new ones are taken out again."""
        before = dict(table)

        def put_back() -> None:
            for name in names & (table.keys() | before.keys()):
                if name not in before:
                    table.pop(name, None)
                elif not isinstance(before[name], types.ModuleType):
                    _bind(table, name, before[name])

        self._looks.append(lambda: [name for name in _find_rebound(before, table) if name in names])
        self._undo.append(put_back)

    def _add_cell(self, cell: types.CellType, name: str) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty
            return

        def put_back() -> None:
            if cell.cell_contents is not value:
                cell.cell_contents = value

        self._looks.append(lambda: [name] if cell.cell_contents is not value else [])
        self._undo.append(put_back)
        self._add(value, name)

    def _visit_class(self, cls: type) -> None:
        if is_foreign(cls):
            return
        before = dict(vars(cls))
        self._looks.append(lambda: [f"{cls.__name__}.{name}" for name in _find_rebound(before, vars(cls))])
        self._undo.append(lambda: _restore_class(cls, before))
        for name, value in before.items():
            full = f"{cls.__name__}.{name}"
            if name in _CALLED or not _is_code(value):
                self._add(value, full)
            else:
                self._offer(name, value, full)
        for base in cls.__mro__:
            self._add(base, base.__name__)

    def _visit_cached(self, function: Any, name: str) -> None:
        before = set(_entries_of(function) or ())
        misses = function.cache_info().misses

        def forget() -> None:
            entries = _entries_of(function)
            if entries is not None:
                for key in [key for key in list(entries) if key not in before]:
                    entries.pop(key, None)
            elif function.cache_info().misses != misses:
                function.cache_clear()

        self._looks.append(lambda: [name] if function.cache_info().misses != misses else [])
        self._undo.append(forget)
        self._add(function.__wrapped__, name)

    def _visit_container(self, x: Any, name: str) -> None:
        before = x.copy()
        self._looks.append(lambda: _find_changed(name, before, x))
        self._undo.append(lambda: _restore_container(x, before))
        if isinstance(before, dict):
            for key, value in before.items():
                self._add(key, name)
                if type(value) not in _VALUES and id(value) not in self._seen:  # most are known
                    self._add(value, _join(name, key))
        else:
            for value in before:
                self._add(value, name)

    def _visit_tensor(self, x: Tensor, name: str) -> None:
        if x.is_inference():  # which counts no versions
            return
        version = x._version
        if isinstance(x, nn.Parameter) or x.numel() > _SMALL or x.is_meta:
            self._looks.append(lambda: [name] if x._version != version else [])
            return
        before = x.detach().clone()
        countless = x.is_floating_point() and x.element_size() > 1  # a norm's statistics, which count none

        def has_changed() -> bool:
            return x._version != version or (countless and not torch.equal(x, before))

        def put_back() -> None:
            if has_changed():
                x.detach().copy_(before)

        self._looks.append(lambda: [name] if has_changed() else [])
        self._undo.append(put_back)

    def _visit_state(self, x: Any, name: str) -> None:
        try:
            before = _read_state(x)
        except NotImplementedError:  # the system's own source of chance has no state
            return
        frozen = _freeze(before)
        if frozen is None:
            return

        def has_changed() -> bool:
            return _freeze(_read_state(x)) != frozen

        if not isinstance(x, torch.Generator):  # of which the operators tell that draw
            self._looks.append(lambda: [name] if has_changed() else [])
        self._undo.append(lambda: _write_state(x, before) if has_changed() else None)

    def _visit_network(self, x: nn.Module, name: str) -> None:
        """Visit what a module has; most of its own tables are those of hooks, and empty."""
        tables = [(key, table) for key, table in vars(x).items() if type(table) in (dict, OrderedDict)]
        for key, table in tables:
            self._seen[id(table)] = table
            if key in ("_parameters", "_buffers", "_modules"):
                self._visit_container(table, name)
            elif table:
                self._visit_container(table, _join(name, key))
        self._visit_object(x, name)

    def _visit_object(self, x: Any, name: str) -> None:
        own = type(x) if isinstance(x, threading.local) else object  # whose table is each thread's own
        with suppress(AttributeError):  # asked so, an object's own __getattr__ doesn't answer
            attributes = own.__getattribute__(x, "__dict__")
            if type(attributes) is dict:
                self._visit_container(attributes, name)
        self._add(type(x), type(x).__name__)


# Called without their names standing in any code.
_CALLED = frozenset(
    {"forward", "__call__", "__getattr__", "__getitem__", "__setitem__", "__contains__", "__iter__"}
)


def _is_code(x: Any) -> bool:
    return isinstance(x, types.FunctionType | staticmethod | classmethod | property | _CachedFunction)


def is_foreign(x: Any) -> bool:
    """Whether something belongs to torch, NumPy or Python itself, whose tables are no model's business."""
    module = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", None)
    return not isinstance(module, str) or module.partition(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=10_000)
def _names_of(code: types.CodeType) -> frozenset[str]:
    """Names that a function's code reads or writes, its inner functions' too."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(_names_of, inner))


def _entries_of(function: Any) -> dict[Any, Any] | None:
    """Return the table of a cached function; None if this Python doesn't show it.

    Keys may be taken out of it: an entry of the list beside it that has lost its key is passed over.
    """
    tables = [x for x in gc.get_referents(function) if type(x) is dict and x is not vars(function)]
    return tables[0] if len(tables) == 1 and len(tables[0]) == function.cache_info().currsize else None


def _bind(table: dict[str, Any], name: str, value: Any) -> None:
    if table.get(name, _MISSING) is not value:
        table[name] = value


def _read_state(x: Any) -> Any:
    """Return a copy of the values of an array, or of the state of a generator; None where that is large."""
    if isinstance(x, np.ndarray):
        return x.copy() if x.nbytes <= _SMALL else None
    if isinstance(x, torch.Generator):
        return x.get_state().numpy()
    if isinstance(x, np.random.Generator):
        return x.bit_generator.state
    if isinstance(x, np.random.RandomState):
        return x.get_state(legacy=False)
    return x.getstate()


def _write_state(x: Any, state: Any) -> None:
    if isinstance(x, np.ndarray):
        x[...] = state
    elif isinstance(x, torch.Generator):
        x.set_state(torch.from_numpy(state))
    elif isinstance(x, np.random.Generator):
        x.bit_generator.state = state
    elif isinstance(x, np.random.RandomState):
        x.set_state(state)
    else:
        x.setstate(state)


def _freeze(state: Any) -> bytes | None:
    """Return a state as bytes, which are the same as long as it is; None where there is none to be told."""
    try:
        return None if state is None else pickle.dumps(state)
    except Exception:  # of whatever an array holds
        return None


def _find_rebound(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[Any]:
    return [key for key in {**before, **now} if before.get(key, _MISSING) is not now.get(key, _MISSING)]


def _find_changed(name: str, before: Any, now: Any) -> list[str]:
    """Name the entries of a dictionary that are others than before; of another container all of it."""
    if isinstance(before, dict):
        return [_join(name, key) for key in _find_rebound(before, now)]
    alike = len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
    return [] if alike else [name]


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _restore_class(cls: type, before: dict[str, Any]) -> None:
    for name, value in list(vars(cls).items()):
        if name not in before:
            delattr(cls, name)
        elif before[name] is not value:
            setattr(cls, name, before[name])


def _restore_container(x: Any, before: Any) -> None:
    if isinstance(x, dict):
        for key in [key for key in list(x) if key not in before]:
            x.pop(key, None)
        for key, value in before.items():
            _bind(x, key, value)
        if list(x) != list(before):
            x.clear()
            x.update(before)
    elif isinstance(x, set):
        if set(map(id, x)) != set(map(id, before)):
            x.clear()
            x.update(before)
    elif list(map(id, x)) != list(map(id, before)):
        x.clear()
        x.extend(before)
