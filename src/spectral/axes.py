"""Which axes of a tensor are image rows and columns, followed through views, permutations and slices.

A step-2 slice is usually not spatial (rotary embeddings, boxes, channels): only its axis tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

# Per axis: "h", "w", None, or a tuple of (label, extent) for axes that a view has merged.
Label = str | None | tuple[tuple[Any, int], ...]
Labels = tuple[Label, ...]

_SPATIAL = {
    "convolution", "conv2d", "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
}  # fmt: skip
_KEEP_ALL = {"slice", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "roll", "flip", "expand"}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_LAST_IS_NEW = {"mm", "bmm", "matmul", "addmm", "baddbmm", "linear"}


class AxisTracker:
    """Labels of the tensors seen so far: mark the image, then follow every operator."""

    def __init__(self) -> None:
        self._labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def mark(self, x: Tensor, labels: Labels) -> None:
        """Set the labels of a tensor."""
        self._labels[x] = labels

    def labels(self, x: Tensor) -> Labels:
        """Return the labels of a tensor; all None where nothing is known."""
        known = self._labels.get(x)
        return known if known is not None and len(known) == x.ndim else (None,) * x.ndim

    def follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        """Derive the labels of an operator's output from its inputs'; tell whether it reads a map."""
        name = operator_name(func)
        outputs = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        inputs = [t for t in _flatten((*args, *kwargs.values())) if isinstance(t, Tensor)]
        labelled = [t for t in inputs if any(self.labels(t))]
        for result in outputs:
            if name in _SPATIAL and result.ndim >= 3:
                self.mark(result, (*(None,) * (result.ndim - 2), "h", "w"))
            elif labelled:
                source = max(labelled, key=lambda t: t.ndim)
                labels = _derive(name, args, self.labels(source), source, result)
                if any(labels):
                    self.mark(result, labels)
        return bool(labelled) or name in _SPATIAL


def operator_name(func: Any) -> str:
    """Return the name of an operator without namespace and overload.

    Example:
        >>> operator_name(torch.ops.aten.slice.Tensor)
        'slice'
    """
    return str(func._schema.name).split("::")[-1]


def _derive(name: str, args: Sequence[Any], labels: Labels, x: Tensor, result: Tensor) -> Labels:
    if name in _VIEWS:
        return _through_view(labels, tuple(x.shape), tuple(result.shape))
    if name == "permute":
        return tuple(labels[axis] for axis in args[1])
    if name in ("transpose", "t"):
        first, second = (args[1], args[2]) if name == "transpose" else (0, 1)
        swapped = list(labels)
        swapped[first], swapped[second] = labels[second], labels[first]
        return tuple(swapped)
    if name in ("select", "unbind") and result.ndim == x.ndim - 1:
        axis = (args[1] if len(args) > 1 else 0) % x.ndim
        return labels[:axis] + labels[axis + 1 :]
    if name in ("unsqueeze", "stack") and result.ndim == x.ndim + 1:
        axis = (args[1] if len(args) > 1 else 0) % result.ndim
        return (*labels[:axis], None, *labels[axis:])
    if name == "squeeze" and result.ndim < x.ndim:
        return tuple(label for label, n in zip(labels, x.shape, strict=True) if n != 1)[: result.ndim]
    if result.ndim != x.ndim:
        return (None,) * result.ndim
    if name in _KEEP_ALL:
        return labels
    kept = tuple(label if n == m else None for label, n, m in zip(labels, x.shape, result.shape, strict=True))
    return (*kept[:-1], None) if name in _LAST_IS_NEW else kept


def _through_view(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> Labels:
    """Match runs of axes with equal products: unchanged axes keep labels, merged ones their parts."""
    result: list[Label] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i_end, j_end = min(i + 1, len(before)), min(j + 1, len(after))
        left, right = _product(before[i:i_end]), _product(after[j:j_end])
        while left != right and (i_end < len(before) or j_end < len(after)):
            if (left < right and i_end < len(before)) or j_end == len(after):
                left *= before[i_end]
                i_end += 1
            else:
                right *= after[j_end]
                j_end += 1
        result += _match_run(labels[i:i_end], before[i:i_end], after[j:j_end])
        i, j = i_end, j_end
    return tuple(result)


def _match_run(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> list[Label]:
    parts: list[tuple[Any, int]] = []
    for label, extent in zip(labels, before, strict=True):
        parts += list(label) if isinstance(label, tuple) else [(label, extent)]
    parts = [part for part in parts if part[1] != 1 or part[0]]
    if len(after) == 1:
        if len(parts) == 1:
            return [parts[0][0]]
        return [tuple(parts) if any(label for label, _ in parts) else None]
    if [extent for _, extent in parts] == [n for n in after if n != 1] and len(parts) == len(after):
        return [label for label, _ in parts]
    return [None] * len(after)


def _product(values: Sequence[int]) -> int:
    total = 1
    for value in values:
        total *= value
    return total


def _flatten(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        flat += _flatten(value) if isinstance(value, (tuple, list)) else [value]
    return flat
