"""Graphs that record a computation: whether one does, and sizes as numbers inside it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def is_traced(x: Tensor | None) -> bool:
    """Whether a computation on ``x`` is recorded into a graph, or runs on a stand-in: nothing outlives it.

    Example:
        >>> is_traced(torch.ones(1)), is_traced(torch.ones(1, device="meta"))
        (False, True)
    """
    if torch.compiler.is_compiling() or is_scripted():
        return True
    return x is not None and (type(x) not in (Tensor, nn.Parameter) or x.is_meta)


def is_scripted() -> bool:
    """Whether `torch.jit.trace` is recording: sizes are tensors then.

    Example:
        >>> is_scripted()
        False
    """
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def fixed_shape(x: Tensor) -> tuple[int, ...]:
    """Return sizes as numbers: what is decided by them is decided for good, and `torch.jit` needn't say so.

    Example:
        >>> fixed_shape(torch.ones(2, 3))
        (2, 3)
    """
    if not is_scripted():
        return tuple(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return tuple(int(n) for n in x.shape)
