"""Whether anything reads what a slice gave: one that is only written to loses nothing."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor

from spectral.axes import SIZES, Call, memory_of
from spectral.tracing.tensors import TensorTable


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

    def follow(self, call: Call) -> None:
        """Follow an operator that ran."""
        if not len(self._unread) or call.name in SIZES or _copies_onto_itself(call):
            return
        for x in call.inputs[1:] if call.facts.writes_first else call.inputs:
            tokens = self._unread.get(x, ())
            if not tokens:
                continue
            if call.facts.is_view:
                for y in call.outputs:
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


def _copies_onto_itself(call: Call) -> bool:
    """Whether a tensor is copied onto itself, as x[…] *= 2 does in Python."""
    if call.facts.whole_name != "aten::copy_" or len(call.inputs) < 2:
        return False
    first, second = call.inputs[:2]
    return memory_of(first) == memory_of(second) and bool(
        first.storage_offset() == second.storage_offset() and first.stride() == second.stride()
    )
