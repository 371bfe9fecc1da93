"""Many small pieces of work at once, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    """Call a function on many arguments, in as many threads as helps with decoding; results come in order."""
    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, arguments)
