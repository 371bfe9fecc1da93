"""Whether anything reads what a slice gave: one that is only written to loses nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from torch import Tensor

from spectral.axes import SIZES, flatten, is_view, memory_of, operator_name, writes_first
from spectral.tensors import TensorTable


class Readable(Protocol):
    """Anything that keeps whether it was read."""

    used: bool


class Uses:
    """Follows tensors and views of them until something reads them."""

    def __init__(self) -> None:
        self._unread: TensorTable[tuple[Readable, ...]] = TensorTable()  # tensor → what wants to know

    def watch(self, token: Readable, x: Tensor) -> None:
        """Note in ``token.used`` whether a tensor is read, or a view of it."""
        token.used = False
        self._unread[x] = (*self._unread.get(x, ()), token)

    def follow(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Follow an operator that ran."""
        if operator_name(func) in SIZES or _copies_onto_itself(func, inputs):
            return
        for x in inputs[1:] if writes_first(func) else inputs:
            tokens = self._unread.get(x, ())
            if not tokens:
                continue
            if is_view(func):
                for y in outputs:
                    self._unread[y] = (*self._unread.get(y, ()), *tokens)
            else:
                self.read(x)

    def read(self, x: Tensor) -> None:
        """Note that a tensor is read, or returned."""
        for token in self._unread.get(x, ()):
            token.used = True


def find_view(x: Tensor) -> Hashable:
    """Tell views apart by the memory they read: torch may make a new tensor of each ``:`` before an index."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in what an operator takes or returns."""
    return [x for x in flatten((value,)) if isinstance(x, Tensor)]


def _copies_onto_itself(func: Any, inputs: Sequence[Tensor]) -> bool:
    """Whether a tensor is copied onto itself, as x[…] *= 2 does in Python."""
    if str(func._schema.name) != "aten::copy_" or len(inputs) < 2:
        return False
    first, second = inputs[:2]
    return memory_of(first) == memory_of(second) and bool(
        first.storage_offset() == second.storage_offset() and first.stride() == second.stride()
    )
