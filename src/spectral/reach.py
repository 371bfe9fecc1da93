"""What the code of a model can write to outside the model, and how to put that back.

A forward pass may keep things in tables of its Python module, in attributes of its class, in the cache of a
cached function, in default arguments and closures. All of these are found by the names that the code reads,
from function to function, and none of torch's own.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

_FOREIGN = frozenset({"torch", "numpy", "functorch", "pandas", "PIL", *sys.stdlib_module_names}) - {
    "__main__"
}
_MOST = 20_000  # objects, so that a registry of everything doesn't cost more than the pass itself
_SMALL = 2**20  # elements of a tensor whose values are kept
_MISSING = object()
_CachedFunction = type(functools.lru_cache(len))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)

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
    undo = _Reach(code).undo
    try:
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


class _Reach:
    """Everything mutable that code names, each with what undoes a change of it."""

    def __init__(self, code: Iterable[Any]) -> None:
        self.undo: list[Undo] = []
        self._seen: dict[int, Any] = {}
        self._names: set[str] = set()  # that any code reads
        self._unnamed: dict[str, list[Any]] = defaultdict(list)  # what modules and classes have under others
        self._globals: dict[int, set[str]] = {}  # of each function's table, the names that its functions read
        self._left: deque[Any] = deque()
        for item in code:
            self._add(item)
        while self._left and len(self._seen) < _MOST:
            self._visit(self._left.popleft())

    def _add(self, x: Any) -> None:
        if id(x) not in self._seen and not isinstance(x, str | int | float | bytes | complex | None):
            self._seen[id(x)] = x
            self._left.append(x)

    def _visit(self, x: Any) -> None:
        if isinstance(x, types.FunctionType):
            self._visit_function(x)
        elif isinstance(x, type):
            self._visit_class(x)
        elif isinstance(x, types.ModuleType):
            self._visit_module(x)
        elif isinstance(x, types.MethodType):
            self._add(x.__func__)
            self._add(x.__self__)
        elif isinstance(x, functools.partial):
            for part in (x.func, *x.args, *x.keywords.values()):
                self._add(part)
        elif isinstance(x, staticmethod | classmethod):
            self._add(x.__func__)
        elif isinstance(x, property):
            for function in (x.fget, x.fset):
                self._add(function)
        elif isinstance(x, functools.cached_property):
            self._add(x.func)
        elif isinstance(x, _CachedFunction):
            self._visit_cached(x)
        elif type(x) in _CONTAINERS:
            self._visit_container(x)
        elif type(x) is tuple:
            for item in x:
                self._add(item)
        elif isinstance(x, Tensor):
            self._visit_tensor(x)
        elif isinstance(x, threading.local | nn.Module) or not _is_foreign(type(x)):
            self._visit_object(x)

    def _visit_function(self, f: types.FunctionType) -> None:
        if _is_foreign(f):
            return
        names = _names_of(f.__code__)
        self._visit_globals(f.__globals__, names)
        for name in names:  # imported where it is used
            for imported in (name, f"{f.__globals__.get('__package__')}.{name}"):
                if imported in sys.modules:
                    self._add(sys.modules[imported])
        for cell in f.__closure__ or ():
            self._add_cell(cell)
        for value in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self._add(value)
        self._visit_container(vars(f))
        for name in names - self._names:  # what is called of a class or module seen before
            for value in self._unnamed.pop(name, ()):
                self._add(value)
        self._names |= names

    def _visit_globals(self, table: dict[str, Any], names: frozenset[str]) -> None:
        if id(table) not in self._globals:
            self._globals[id(table)] = set()
            self._keep_bindings(table, self._globals[id(table)])
        new = names - self._globals[id(table)]
        self._globals[id(table)] |= new
        for name in new & table.keys():
            self._add(table[name])

    def _visit_module(self, module: types.ModuleType) -> None:
        if _is_foreign(module):
            return
        self._keep_bindings(vars(module), self._names)
        for name, value in vars(module).items():
            self._offer(name, value)

    def _offer(self, name: str, value: Any) -> None:
        """Visit what a module or class has under a name, as soon as any code reads that name."""
        if name in self._names:
            self._add(value)
        else:
            self._unnamed[name].append(value)

    def _keep_bindings(self, table: dict[str, Any], names: set[str]) -> None:
        """Put back what a table has under the names, which may still grow; new ones are taken out again."""
        before = dict(table)

        def put_back() -> None:
            for name in names & (table.keys() | before.keys()):
                if name not in before:
                    table.pop(name, None)
                elif not isinstance(before[name], types.ModuleType):
                    _bind(table, name, before[name])

        self.undo.append(put_back)

    def _add_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty
            return

        def put_back() -> None:
            if cell.cell_contents is not value:
                cell.cell_contents = value

        self.undo.append(put_back)
        self._add(value)

    def _visit_class(self, cls: type) -> None:
        if _is_foreign(cls):
            return
        before = dict(vars(cls))
        self.undo.append(lambda: _restore_class(cls, before))
        for name, value in before.items():
            if name in _CALLED or not _is_code(value):
                self._add(value)
            else:
                self._offer(name, value)
        for base in cls.__mro__:
            self._add(base)

    def _visit_cached(self, function: Any) -> None:
        before = set(_entries_of(function) or ())
        misses = function.cache_info().misses

        def forget() -> None:
            entries = _entries_of(function)
            if entries is not None:
                for key in [key for key in list(entries) if key not in before]:
                    entries.pop(key, None)
            elif function.cache_info().misses != misses:
                function.cache_clear()

        self.undo.append(forget)
        self._add(function.__wrapped__)

    def _visit_container(self, x: Any) -> None:
        before = x.copy()
        self.undo.append(lambda: _restore_container(x, before))
        values = [*before.keys(), *before.values()] if isinstance(before, dict) else before
        for value in list(values):
            self._add(value)

    def _visit_tensor(self, x: Tensor) -> None:
        if isinstance(x, nn.Parameter) or x.numel() > _SMALL or x.is_meta or x.is_inference():
            return
        before, version = x.detach().clone(), x._version

        def put_back() -> None:
            if x._version != version:
                x.detach().copy_(before)

        self.undo.append(put_back)

    def _visit_object(self, x: Any) -> None:
        own = type(x) if isinstance(x, threading.local) else object  # whose table is each thread's own
        with suppress(AttributeError):  # asked so, an object's own __getattr__ doesn't answer
            attributes = own.__getattribute__(x, "__dict__")
            if type(attributes) is dict:
                self._visit_container(attributes)
        self._add(type(x))


# Called without their names standing in any code.
_CALLED = frozenset(
    {"forward", "__call__", "__getattr__", "__getitem__", "__setitem__", "__contains__", "__iter__"}
)


def _is_code(x: Any) -> bool:
    return isinstance(x, types.FunctionType | staticmethod | classmethod | property | _CachedFunction)


def _is_foreign(x: Any) -> bool:
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
