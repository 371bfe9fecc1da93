"""Torch functions that decimate, as a module's forward calls them, and how they run without their stride."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral.operators import Decimation, Size, find_function, parse

INDEXING = "__getitem__"

# What is the same whenever a call decimates in the same way: name, steps, and window or starts.
Signature = tuple[str, Size, Size]


def name_function(func: Any) -> str:
    """Return what torch calls a function, however it was reached.

    Example:
        >>> name_function(torch.nn.functional.relu), name_function(torch.relu)
        ('relu', 'relu')
    """
    return str(getattr(func, "__name__", func))


def read_signature(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature | None:
    """Read one call of a function; None if it decimates nothing, or can't be run without that.

    Example:
        >>> read_signature(torch.max_pool2d, (torch.zeros(1, 1, 8, 8), 3), {"stride": 2})
        ('max_pool2d', (2, 2), (3, 3))
        >>> read_signature(Tensor.__getitem__, (torch.zeros(1, 1, 8, 8), (..., slice(1, None, 2))), {})
        ('__getitem__', (1, 1, 1, 2), (0, 0, 0, 1))
    """
    if func is Tensor.__getitem__:
        index = _complete(*args)
        steps = tuple(i.step or 1 for i in index or ())
        return (INDEXING, steps, tuple(i.start or 0 for i in index)) if index and max(steps) > 1 else None
    decimation = _read(func, args, kwargs)
    if decimation is None or decimation.geometry.kind == "global_pool":
        return None
    return name_function(func), decimation.geometry.stride, decimation.geometry.kernel


def count_axes(func: Any, x: Tensor) -> int:
    """Count the spatial axes of the maps that a decimating function takes.

    Example:
        >>> count_axes(torch.conv1d, torch.zeros(3, 8)), count_axes(Tensor.__getitem__, torch.zeros(1, 3, 8))
        (1, 1)
    """
    given = [axes for axes in (1, 2, 3) if f"{axes}d" in name_function(func)]
    return given[0] if given else x.ndim - 2


def run_densely(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Run a function as if its stride were 1; of indexing, keep the starts.

    Example:
        >>> run_densely(F.avg_pool1d, (torch.arange(4.0).view(1, 1, 4), 2), {})
        tensor([[[0.5000, 1.5000, 2.5000]]])
    """
    if func is Tensor.__getitem__:
        index = _complete(*args)
        assert index is not None
        return args[0][tuple(slice(i.start, i.stop) for i in index)]  # type: ignore[no-any-return]
    decimation = _read(func, args, kwargs)
    assert decimation is not None
    dense = decimation.dense(decimation.output_size)
    if func in _POWERS:
        dense = _take_root(dense, math.prod(decimation.geometry.kernel), _get(args, kwargs, 1, "norm_type"))
    return dense.reshape(_restore_shape(_get(args, kwargs, 0, "input"), dense, count_axes(func, dense)))


def _read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Decimation | None:
    x = _get(args, kwargs, 0, "input")
    if not isinstance(x, Tensor):
        return None
    if func in _POWERS:
        power, window, stride = (
            _get(args, kwargs, i, name) for i, name in enumerate(("norm_type", "kernel_size", "stride"), 1)
        )
        ceil = bool(_get(args, kwargs, 4, "ceil_mode"))
        return parse(_POWERS[func], (x.pow(power), window, stride or window, 0, ceil), {})
    operator = find_function(func)
    if isinstance(func, torch._ops.OpOverloadPacket):
        operator = getattr(func, "default", None)
    elif isinstance(func, torch._ops.OpOverload):
        operator = func
    if operator is None:
        return None
    given = {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
    return parse(operator, (x, *args[1:]), given)


def _take_root(mean: Tensor, count: int, power: float) -> Tensor:
    """Make a power pool of the mean of powers, as torch does."""
    return (mean.sign() * mean.abs().relu() * count).pow(1 / power)


def _restore_shape(x: Tensor, dense: Tensor, axes: int) -> list[int]:
    """Return the dense map's shape with as many axes as the input has: signals are read as maps."""
    size = list(dense.shape[-axes:])
    return [*dense.shape[:2], *size] if x.ndim == axes + 2 else [dense.shape[1], *size]


def _complete(x: Any, given: Any) -> list[slice] | None:
    """Write an index as one slice per axis; None if it is something else."""
    index: list[Any] = list(given) if isinstance(given, tuple) else [given]
    if not isinstance(x, Tensor) or not all(isinstance(i, slice) or i is ... for i in index):
        return None
    if not x.is_floating_point() and not x.is_complex():
        return None
    if ... in index:
        at = index.index(...)
        index[at : at + 1] = [slice(None)] * (x.ndim + 1 - len(index))
    return index + [slice(None)] * (x.ndim - len(index))


def _get(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


# Power pools are means of powers.
_POWERS = {
    getattr(F, f"lp_pool{axes}d"): getattr(torch.ops.aten, f"avg_pool{axes}d").default for axes in (1, 2, 3)
}
