"""What tells weights from others: a hash of their values, names and types."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the id of a set of weights: ``sha256:`` and 16 hexadecimal digits.

    The hash runs over the names in sorted order and each tensor's name, dtype, shape and bytes, buffers
    included, so it is the same on every device and changes with any single value.

    Args:
        state: what ``model.state_dict()`` returns; entries that aren't tensors are left out.

    Example:
        >>> hash_state({"a": torch.zeros(2)}) == hash_state({"a": torch.zeros(2)})
        True
        >>> hash_state({"a": torch.zeros(2)}) == hash_state({"a": torch.zeros(2, 1)})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in _list_plain(state):
        if isinstance(tensor, Tensor):
            # Each header names its tensor's length, so no two different states give the same stream.
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:16]}"


def _list_plain(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """List entries in the order of their names; tensors that others make up, as torchao's, by their parts."""
    for name, tensor in sorted(state.items()):
        if is_traceable_wrapper_subclass(tensor):
            parts, _ = tensor.__tensor_flatten__()
            yield from _list_plain({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor
