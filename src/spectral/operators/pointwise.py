"""Which of torch's operators work on each number by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

# Activations that torch doesn't mark as pointwise, or an older one doesn't.
_UNMARKED = {
    "_conj_physical", "_prelu_kernel", "celu", "elu", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "log_sigmoid_forward", "mish", "prelu", "relu", "relu6", "rrelu_with_noise", "selu",
    "threshold",
}  # fmt: skip


def is_pointwise(func: Any) -> bool:
    """Whether an operator gives, at every place, a function of the numbers at that place alone.

    What holds of an operator holds of the same in place: torch's marks differ between the two, and between
    versions, and no layer may lie elsewhere for that.

    Example:
        >>> aten = torch.ops.aten
        >>> is_pointwise(aten.hardswish.default), is_pointwise(aten.hardtanh_.default)
        (True, True)
        >>> is_pointwise(aten.cumsum.default)
        False
    """
    packet = func._overloadpacket
    return _is_marked(func) or _is_any_marked(packet._qualified_op_name.removesuffix("_"))


def _is_marked(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags


@cache
def _is_any_marked(name: str) -> bool:
    """Whether an operator, in place or not, is known or marked in any of its overloads."""
    space, _, base = name.partition("::")
    if space == "aten" and base in _UNMARKED:
        return True
    packets = (getattr(getattr(torch.ops, space), n, None) for n in (base, base + "_"))
    return any(
        _is_marked(getattr(packet, overload))
        for packet in packets if packet is not None for overload in packet.overloads()
    )  # fmt: skip
