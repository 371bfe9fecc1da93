"""Which of torch's operators work on each number by itself."""

from __future__ import annotations

from typing import Any

import torch

# Activations that torch, or an older one, doesn't mark as pointwise.
_UNMARKED = {
    "hardswish", "leaky_relu", "mish", "_prelu_kernel", "prelu", "threshold", "log_sigmoid_forward",
    "rrelu_with_noise",
}  # fmt: skip


def is_pointwise(func: Any) -> bool:
    """Whether an operator gives, at every place, a function of the numbers at that place alone.

    Example:
        >>> is_pointwise(torch.ops.aten.hardswish.default), is_pointwise(torch.ops.aten.cumsum.default)
        (True, False)
    """
    name = func._overloadpacket.__name__.removesuffix("_")  # in place or not
    return torch.Tag.pointwise in func.tags or name in _UNMARKED
