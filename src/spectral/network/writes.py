"""Sees what writes into a model's weights before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Writes(TorchDispatchMode):
    """Calls a function before an operator writes into one of some tensors, or into a view of one.

    Args:
        tensors: which to watch.
        before: called with those of them that share the memory about to be written to.

    Example:
        >>> import torch
        >>> x, seen = torch.ones(3), []
        >>> with Writes([x], seen.extend):
        ...     _ = x + 1
        ...     _ = x[:1].mul_(2)
        >>> seen[0] is x, len(seen)
        (True, 1)
    """

    def __init__(self, tensors: Iterable[Tensor], before: Callable[[list[Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self._watched: dict[int, list[Tensor]] = {}
        for x in tensors:
            storage = _storage_of(x)
            if storage is not None:
                self._watched.setdefault(storage, []).append(x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                if argument.is_write and isinstance(value, Tensor):
                    storage = _storage_of(value)
                    if storage in self._watched:
                        self._before(self._watched[storage])
        return func(*args, **kwargs)


def _storage_of(x: Tensor) -> int | None:
    try:
        return x.untyped_storage()._cdata or None
    except (RuntimeError, ValueError):  # a tensor without a storage, or not yet
        return None
