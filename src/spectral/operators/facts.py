"""What is known of a torch operator whatever it is called with: read from its schema once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from spectral.operators.pointwise import is_pointwise


@dataclass(frozen=True, eq=False, slots=True)
class Facts:
    """What the schema of an operator tells.

    Attributes:
        name: without namespace and overload.
        whole_name: with its namespace, ``aten::slice``.
        arguments: the names of what it takes, in order.
        defaults: what those are that may be left out.
        is_mutable: whether it writes into something that it is given.
        writes_first: whether that is its first argument.
        is_view: whether it returns a view of its first argument.
        is_pointwise: see `spectral.operators.is_pointwise`.
    """

    name: str
    whole_name: str
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]
    is_mutable: bool
    writes_first: bool
    is_view: bool
    is_pointwise: bool


@cache
def tell_facts(func: Any) -> Facts:
    """Return what is known of an operator.

    Example:
        >>> import torch
        >>> facts = tell_facts(torch.ops.aten.slice.Tensor)
        >>> facts.name, facts.arguments, facts.is_view, facts.is_mutable
        ('slice', ('self', 'dim', 'start', 'end', 'step'), True, False)
    """
    schema = func._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    return Facts(
        name=str(schema.name).split("::")[-1],
        whole_name=str(schema.name),
        arguments=tuple(one.name for one in schema.arguments),
        defaults={one.name: one.default_value for one in schema.arguments if one.has_default_value()},
        is_mutable=bool(schema.is_mutable),
        writes_first=first is not None and first.is_write,
        is_view=first is not None and not first.is_write,
        is_pointwise=is_pointwise(func),
    )
