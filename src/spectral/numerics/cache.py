"""One cache for whatever depends on sizes alone (matrices, masks, windows), bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from spectral.numerics.tracing import is_traced

T = TypeVar("T")
LIMIT = 64 * 2**20
# What an entry takes beside its values: keys, objects, links. Very many small ones are bounded as well.
OVERHEAD = 1024


class BoundedCache:
    """Values by key, the most recently used ones, of at most ``limit`` bytes in all; safe between threads.

    Args:
        limit: bytes; a value that is larger is built each time.

    Example:
        >>> cache = BoundedCache(limit=10_000)
        >>> for size in range(1000):
        ...     _ = cache.get(size, lambda: torch.zeros(100))
        >>> len(cache), cache.nbytes <= 10_000
        (7, True)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, build: Callable[[], T], nbytes: Callable[[T], int] | None = None) -> T:
        """Return the value of a key, which is built if it isn't there.

        Args:
            key: names all that the value depends on.
            build: gives the value; what is no plain tensor (on the meta device, of a trace) isn't kept.
            nbytes: counts the bytes of a value; by default of a tensor or a tuple of them.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                value: T = self._entries[key][0]
                return value
        value = build()  # outside the lock: two threads may both build it, none waits
        if nbytes is not None or _is_plain(value):
            self._keep(key, value, OVERHEAD + (nbytes or _count_bytes)(value))
        return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _keep(self, key: Hashable, value: object, size: int) -> None:
        with self._lock:
            if size > self.limit or key in self._entries:
                return
            self._entries[key] = (value, size)
            self.nbytes += size
            while self.nbytes > self.limit:
                _, (_, freed) = self._entries.popitem(last=False)
                self.nbytes -= freed


CACHE = BoundedCache(LIMIT)


def remember(
    build: Callable[..., Any],
    *arguments: Hashable,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Return ``build(*arguments)``, built once for each device and dtype and kept in `CACHE`.

    What is built while a graph is traced (compiled, exported, on fake tensors) belongs to it: it isn't kept.

    Args:
        build: gives an array, a tensor or a tuple of tensors; named by itself, so no lambda.
        arguments: all that the value depends on.
        like: a tensor on the device where the value is wanted; on the CPU if None.
        dtype: of the value; its own if None.

    Example:
        >>> remember(torch.eye, 2, dtype=torch.float64)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    device = torch.device("cpu") if like is None else like.device

    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(place(part) for part in value)
        return torch.as_tensor(value).to(device, dtype or None)

    if is_traced(like):
        return place(build(*arguments))

    def build_here() -> Any:
        # The caller's modes mustn't show in what is kept: a default device, inference mode, `torch.func`.
        with torch.device("cpu"), torch.inference_mode(False), torch._C._DisableFuncTorch():
            return place(build(*arguments))

    return CACHE.get((build, arguments, dtype, device), build_here)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) is Tensor and not value.is_meta


def _count_bytes(value: Any) -> int:
    # A view keeps all of its storage.
    return sum(map(_count_bytes, value)) if isinstance(value, tuple) else value.untyped_storage().nbytes()
