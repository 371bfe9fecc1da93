"""What a call must leave as it found it: random numbers and torch's settings, which a process shares."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


@contextmanager
def kept_surroundings() -> Iterator[None]:
    """Put random numbers (torch's, NumPy's, Python's) and torch's settings back, whatever happens inside.

    Example:
        >>> with kept_surroundings():
        ...     _ = torch.manual_seed(7)
        >>> torch.initial_seed() != 7
        True
    """
    undo = [_save(read, write) for read, write in (*_list_random_states(), *_list_settings())]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


def _save(read: Callable[[], Any], write: Callable[[Any], Any]) -> Callable[[], None]:
    before = read()

    def put_back() -> None:
        write(before)

    return put_back


def _list_random_states() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state


def _list_settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.get_num_threads, _set_threads
    yield _get_device, _set_device
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    for device in ("cpu", "cuda"):
        yield partial(_get_autocast, device), partial(_set_autocast, device)


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:  # to set it starts threads
        torch.set_num_threads(count)


def _get_device() -> torch.device | None:
    chosen = any(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    return torch.get_default_device() if chosen else None


def _set_device(device: torch.device | None) -> None:
    if _get_device() != device:  # to set it lays a mode on the stack, which None takes off
        torch.set_default_device(device)


def _get_autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(device: str, state: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, state[0])
    torch.set_autocast_dtype(device, state[1])
