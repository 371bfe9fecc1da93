"""What is known of tensors, as long as these live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar, overload

from torch import Tensor

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
