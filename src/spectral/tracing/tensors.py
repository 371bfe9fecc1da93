"""What is known of tensors, as long as these live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

V = TypeVar("V")
D = TypeVar("D")


class _Ref(weakref.ref[Tensor]):
    """A tensor that may be gone, and the key that it had."""

    __slots__ = ("key",)
    key: int


class TensorTable(Generic[V]):
    """A value for each tensor itself, not for what equals it; forgotten when the tensor is gone.

    As `torch.utils.weak.WeakTensorKeyDictionary`, at a fifth of the time: a look-up makes no object.

    Example:
        >>> import torch
        >>> x, table = torch.ones(2), TensorTable[str]()
        >>> table[x] = "an image"
        >>> table.get(x), torch.ones(2) in table, len(table)
        ('an image', False, 1)
        >>> del x
        >>> len(table)
        0
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[_Ref, V]] = {}
        owner = weakref.ref(self)  # a table is gone with whoever has it, and waits for no garbage collector

        def drop(ref: _Ref) -> None:
            table = owner()
            if table is not None and (found := table._entries.get(ref.key)) is not None and found[0] is ref:
                del table._entries[ref.key]

        self._drop = drop

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._entries)

    def __contains__(self, x: Tensor) -> bool:
        """Whether anything is known of a tensor."""
        found = self._entries.get(id(x))
        # An interrupt may have kept a tensor that is gone from being dropped, and another have its id.
        return found is not None and found[0]() is x

    def __getitem__(self, x: Tensor) -> V:
        """Return what is known of a tensor."""
        found = self._entries[id(x)]
        if found[0]() is not x:
            raise KeyError(id(x))
        return found[1]

    def __setitem__(self, x: Tensor, value: V) -> None:
        """Keep what is known of a tensor."""
        key = id(x)
        found = self._entries.get(key)
        if found is not None and found[0]() is x:
            ref = found[0]
        else:
            ref = _Ref(x, self._drop)
            ref.key = key
        self._entries[key] = ref, value

    @overload
    def get(self, x: Tensor) -> V | None: ...
    @overload
    def get(self, x: Tensor, default: D) -> V | D: ...
    def get(self, x: Tensor, default: D | None = None) -> V | D | None:
        """Return what is known of a tensor, or else the default."""
        found = self._entries.get(id(x))
        return found[1] if found is not None and found[0]() is x else default

    def pop(self, x: Tensor, default: D | None = None) -> V | D | None:
        """Forget a tensor; return what was known of it, or else the default."""
        if x not in self:
            return default
        return self._entries.pop(id(x))[1]

    def setdefault(self, x: Tensor, value: V) -> V:
        """Return what is known of a tensor, from now on the value if nothing was."""
        if x not in self:
            self[x] = value
        return self[x]

    def items(self) -> Iterator[tuple[Tensor, V]]:
        """Yield all that is known of the tensors that there are at first."""
        for ref, value in list(self._entries.values()):
            x = ref()
            if x is not None:
                if hasattr(x, "_fix_weakref"):  # torch asks for it: C++ may have kept it alive alone
                    x._fix_weakref()
                yield x, value

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors."""
        return (x for x, _ in self.items())


class MemoryTable(Generic[V]):
    """A value for the memory of a tensor, which all views of it have.

    Without data, the next tensor that is made has the number of the memory that was let go of last. So what
    is in a table keeps its number, and no later tensor is taken for it.

    Example:
        >>> import torch
        >>> x, table = torch.zeros(2, device="meta"), MemoryTable[str]()
        >>> table[x] = "written to"
        >>> x[:1] in table
        True
        >>> del x
        >>> torch.zeros(2, device="meta") in table
        False
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, V]] = {}

    def __contains__(self, x: Tensor) -> bool:
        """Whether anything is known of a tensor's memory."""
        return bool(self._entries) and memory_of(x) in self._entries

    def __setitem__(self, x: Tensor, value: V) -> None:
        """Keep what is known of a tensor's memory."""
        self._entries[memory_of(x)] = _hold_number(x), value

    def get(self, x: Tensor) -> V | None:
        """Return what is known of a tensor's memory, or None."""
        found = self._entries.get(memory_of(x))
        return None if found is None else found[1]

    def pop(self, x: Tensor) -> V | None:
        """Forget a tensor's memory; return what was known of it, or None."""
        found = self._entries.pop(memory_of(x), None)
        return None if found is None else found[1]


def memory_of(x: Tensor) -> int:
    """Return a number that is the same for all views of one tensor, as long as any of them lives."""
    try:
        return int(x.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors, lazy ones and some others
        return id(x)


def _hold_number(x: Tensor) -> Any:
    """Return what keeps the number of a tensor's memory, when both are gone."""
    try:
        return StorageWeakRef(x.untyped_storage())
    except (NotImplementedError, RuntimeError, ValueError):  # its number is its own
        return x
