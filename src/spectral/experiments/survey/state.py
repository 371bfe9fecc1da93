"""Whether a model is what it was: everything reachable from its modules, compared before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, str]
"""What stands at each path: a digest of a tensor, the text of a number, the kind of anything else."""

_DEEP = 6
_LARGE = 4096


def snapshot(model: nn.Module) -> Snapshot:
    """Describe all that hangs on a model: state, flags, hook tables, the contents of every attribute.

    Args:
        model: any module; it isn't called.

    Example:
        >>> net = nn.Conv2d(3, 4, 3)
        >>> before = snapshot(net)
        >>> net.cache = {32: torch.zeros(2)}
        >>> compare_snapshots(before, snapshot(net))
        ['cache', 'cache[32]']
    """
    found: Snapshot = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        seen.add(id(module))
        for key, value in vars(module).items():
            path = f"{name}.{key}" if name else key
            for place, text in _describe(value, path, seen, 0):
                found[place] = text
    return found


def compare_snapshots(before: Snapshot, after: Snapshot, *excused: Snapshot) -> list[str]:
    """List the paths at which something has changed, leaving out what is as in any ``excused`` snapshot.

    Args:
        before: of the model as it was.
        after: of the same model later.
        excused: such as that of an equal model after a forward pass of its own.
    """
    return [
        path
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
        and not any(after.get(path) == other.get(path) for other in excused)
    ]


def digest(x: Tensor) -> str:
    """Return what tells two tensors apart: kind, shape, device and every bit."""
    facts = f"{x.dtype} {tuple(x.shape)} {x.device.type} {x.requires_grad}"
    if x.device.type == "meta" or x.layout != torch.strided:
        return facts
    flat = x.detach().reshape(-1).contiguous()
    if x.is_quantized or flat.numel() == 0:
        return facts
    content = flat.view(torch.uint8).numpy() if x.dtype != torch.bool else flat.byte().numpy()
    return f"{facts} {hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()}"


def _describe(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, Tensor):
        yield path, digest(value)
    elif value is None or isinstance(value, (bool, int, float, str, bytes, complex)):
        yield path, repr(value)
    elif (
        isinstance(value, (nn.Module, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType))
        or depth >= _DEEP
        or id(value) in seen
    ):
        yield path, type(value).__name__
    elif isinstance(value, Mapping):
        seen.add(id(value))
        yield path, f"{type(value).__name__} of {len(value)}"
        for n, (key, item) in enumerate(value.items()):
            # hooks are numbered over all of the process
            named = key if isinstance(key, str) else n if "_hooks" in path else repr(key)[:60]
            yield from _describe(item, f"{path}[{named}]", seen, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        seen.add(id(value))
        yield path, f"{type(value).__name__} of {len(value)}"
        items = value if isinstance(value, (list, tuple)) else sorted(value, key=repr)
        if len(items) <= _LARGE:
            for n, item in enumerate(items):
                yield from _describe(item, f"{path}[{n}]", seen, depth + 1)
    elif hasattr(value, "__dict__"):
        seen.add(id(value))
        yield path, type(value).__name__
        for key, item in vars(value).items():
            yield from _describe(item, f"{path}.{key}", seen, depth + 1)
    else:
        yield path, type(value).__name__
