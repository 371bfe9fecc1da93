"""Matrix products along the axes of maps, in the precision of their factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from spectral.numerics.memory import has_channels_last
from spectral.numerics.tracing import is_traced


def transform_axes(maps: Tensor, start: int, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply the axes from ``start`` on by one matrix (rows, extent) each; None leaves an axis alone.

    Example:
        >>> transform_axes(torch.ones(5, 4, 6), 1, [torch.ones(2, 4), torch.ones(3, 6)]).shape
        torch.Size([5, 2, 3])
    """
    factors = [(axis, matrix) for axis, matrix in enumerate(matrices, start) if matrix is not None]
    if not is_traced(maps):  # where sizes may be unknown: whatever the order, the result is the same
        factors.sort(key=lambda factor: factor[1].shape[0] / factor[1].shape[1])  # the cheapest order
    for axis, matrix in factors:
        if axis == maps.ndim - 1:
            maps = maps @ matrix.T
        else:  # the axes behind it are the columns of one product
            behind = maps.shape[axis + 1 :]
            maps = matrix @ maps.flatten(axis + 1)
            maps = maps.reshape(*maps.shape[:-1], *behind)
    return maps


def apply_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each spatial axis of every map by a matrix, a filter and its decimation; None leaves it alone.

    Computed in the matrices' dtype whatever autocast says; the result has x's dtype.

    Shape:
        (…, C, H, W), (n_h, H), (n_w, W) → (…, C, n_h, n_w).

    Example:
        >>> apply_axes(torch.ones(1, 2, 2), [torch.ones(1, 2), torch.eye(2)])
        tensor([[[2., 2.]]])
    """
    axes = len(matrices)
    with disable_autocast(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if has_channels_last(x, axes):
            # Channels are innermost: multiply there instead of copying the map into another order.
            y = transform_axes(wide.movedim(1, -1), 1, matrices).movedim(-1, 1)
        else:
            y = transform_axes(wide, x.ndim - axes, matrices)
        return y.to(x.dtype)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Compute matrix products in the precision of their factors: no autocast, no TF32, no bfloat16 inside.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), exact_products(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with torch.autocast(device.type, enabled=False):
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9 has one switch for all
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        mkldnn: Any = torch.backends.mkldnn
        backends = (torch.backends.cuda.matmul, mkldnn.matmul)
        found = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, found, strict=True):
                backend.fp32_precision = precision


def disable_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations keep the dtype of their operands."""
    kind = x.device.type
    # The meta device has no autocast to ask for; asking whether a device has any breaks torch 2.6's graphs.
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
