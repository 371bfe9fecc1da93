"""Operators on tensors without data: what one gives follows from shapes, so torch is asked once for each.

torch takes many of them apart in Python there, at a millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode

from spectral.tracing.tensors import memory_of

_MOST = 1 << 12  # outcomes that are kept
_PLAIN = {
    type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip
_TENSORS = {Tensor, nn.Parameter}

# Size, stride and dtype of each output; none where it wrote into its first argument and gave it back.
_Outcome = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
_KNOWN: dict[Any, _Outcome] = {}


class _NotPlain(Exception):  # noqa: N818 - it is caught and never seen
    """An argument of which more than its shape may matter."""


class Dataless(TorchDispatchMode):
    """Makes the outputs of operators on tensors without data while it is entered.

    Example:
        >>> with Dataless():
        ...     x = torch.empty(2, 3, 8, device="meta").uniform_()
        >>> x.shape
        torch.Size([2, 3, 8])
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator."""
        return run_operator(func, args, kwargs or {})


def run_operator(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator; where it has run on such tensors without data before, make its outputs.

    With data, of views, and of all that depends on more than shapes and numbers, torch is asked each time.

    Args:
        func: an operator, as a dispatch mode is given it.
        args: its arguments.
        kwargs: its named ones.

    Example:
        >>> x = torch.empty(2, 3, 4, 4, device="meta")
        >>> [run_operator(torch.ops.aten.gelu.default, (x,), {}).shape for _ in range(2)]
        [torch.Size([2, 3, 4, 4]), torch.Size([2, 3, 4, 4])]
    """
    _count_writes(func, args)
    if not args or type(args[0]) not in _TENSORS or not args[0].is_meta or _find_writes(func) is None:
        return func(*args, **kwargs)
    try:
        key = func, torch.get_default_dtype(), _describe(args), tuple(kwargs), _describe(kwargs.values())
    except _NotPlain:
        return func(*args, **kwargs)
    known = _KNOWN.get(key)
    if known is None:
        return _run_and_keep(key, func, args, kwargs)
    if not known:
        return args[0]
    made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in known]
    return tuple(made) if len(made) > 1 else made[0]


def _count_writes(func: Any, args: Sequence[Any]) -> None:
    """Count what an operator writes beside its outputs, as a norm's statistics; torch itself may not."""
    if func is torch.ops.aten.native_batch_norm.default:  # whose schema says nothing of them
        places: Sequence[int] = (3, 4) if args[5] else ()
    else:
        places = _find_uncounted(func)
    for x in (args[i] for i in places if i < len(args)):
        if isinstance(x, Tensor) and not x.is_inference():
            increment_version(x)


@cache
def _find_uncounted(func: Any) -> tuple[int, ...]:
    """Find the arguments that an operator writes and doesn't return: the ranges that an observer keeps."""
    returned = [one.alias_info.before_set for one in func._schema.returns if one.alias_info is not None]
    return tuple(
        i
        for i, one in enumerate(func._schema.arguments)
        if one.is_write and one.alias_info.before_set not in returned
    )


def _run_and_keep(key: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator, and keep what it gave unless that can't be told from the key."""
    memory = memory_of(args[0])
    out = func(*args, **kwargs)
    if _find_writes(func):
        unchanged = out is args[0] and memory_of(out) == memory and _describe(args) == key[2]
        outcome: _Outcome | None = () if unchanged else None
    else:
        outcome = _read_outcome(out, [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])
    if outcome is not None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        _KNOWN[key] = outcome
    return out


@cache
def _find_writes(func: Any) -> bool | None:
    """Whether an operator writes into its first argument and returns it; None if it may do anything else."""
    schema = func._schema
    if not str(schema.name).startswith("aten::") or torch.Tag.dynamic_output_shape in func.tags:
        return None
    if not schema.returns or any(str(one.type) != "Tensor" for one in schema.returns):
        return None
    shared = [one.alias_info for one in (*schema.arguments, *schema.returns) if one.alias_info is not None]
    if not shared:
        return False
    # Else a view, or one that writes elsewhere too; what changes a shape in place is seen when it has run.
    returned = [one.alias_info for one in schema.returns]
    alone = len(shared) == 2 and len(returned) == 1 and schema.arguments[0].alias_info in shared
    return True if alone and schema.is_mutable and returned[0] is not None else None


def _describe(values: Iterable[Any]) -> tuple[Any, ...]:
    """Say all of arguments that what an operator gives can depend on."""
    told: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if not value.is_meta or value.is_nested or value.layout is not torch.strided or not value.ndim:
                raise _NotPlain  # of no axes are also numbers in Python, which count less for the dtype
            if value.is_neg() or value.is_conj():
                raise _NotPlain
            told += (value.shape, value.stride(), value.dtype)
        elif kind in _PLAIN:
            told += (kind, value)
        elif kind is list or kind is tuple:
            told += (kind, _describe(value))
        else:
            raise _NotPlain
    return tuple(told)


def _read_outcome(out: Any, given: Sequence[Tensor]) -> _Outcome | None:
    """Describe what an operator gave; None if it can't be made again so."""
    outputs = out if isinstance(out, tuple) else (out,)
    if not all(type(y) is Tensor and y.is_meta and y.layout is torch.strided for y in outputs):
        return None
    if len({memory_of(x) for x in (*given, *outputs)}) < len({id(x) for x in given}) + len(outputs):
        return None
    if any(y.is_quantized or y.is_conj() or y.is_neg() for y in outputs):
        return None
    if any(y.storage_offset() or y.untyped_storage().nbytes() != y.nbytes for y in outputs):
        return None
    return tuple((y.shape, y.stride(), y.dtype) for y in outputs)
