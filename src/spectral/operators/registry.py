"""The operators that are known, by their kind and by the torch operators that they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from torch import nn

from spectral.errors import SpectralError
from spectral.operators.base import KINDS, Arguments, Decimation, Operator
from spectral.operators.facts import tell_facts

_NAMES: dict[str, Operator] = {}
Kind = TypeVar("Kind", bound=type[Operator])


def register_operator(operator: Kind) -> Kind:
    """Make an operator kind known: `find_sites` then reads its calls, and hooks compute its dense map.

    Without it an operator of another library that has fewer samples than its input is listed as unrecognised.
    The class says what torch operators it reads (``names``), what one call is (``read``), what that would
    give with stride 1 (``make_dense``), and that in words (``rule``).

    Args:
        operator: a subclass of `spectral.operators.Operator`; also usable as its decorator.

    Raises:
        SpectralError: if it is no such class, has no kind, or its kind or one of its names is taken.

    Example:
        >>> import torch, spectral
        >>> from spectral.operators import Decimation, Geometry
        >>> @torch.library.custom_op("example::halve", mutates_args=())
        ... def halve(x: torch.Tensor) -> torch.Tensor:
        ...     return x[..., ::2, ::2].clone()
        >>> _ = halve.register_fake(lambda x: x[..., ::2, ::2].clone())
        >>> @register_operator
        ... class Halve(Operator):
        ...     kind, names, rule = "halve", ("example::halve",), "the map itself"
        ...     def read(self, a):
        ...         return Decimation(Geometry(self.kind, stride=(2, 2)), a["x"])
        ...     def make_dense(self, d, x, size):
        ...         return x
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return halve(x)
        >>> [(site.op, site.measurable, site.rule) for site in spectral.find_sites(Net(), 8)]
        [('halve', True, 'the map itself')]
    """
    if not (isinstance(operator, type) and issubclass(operator, Operator)):
        raise SpectralError(
            f"register_operator: expected a subclass of spectral.operators.Operator, got {operator!r:.60}"
        )
    kind = getattr(operator, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise SpectralError(
            f'register_operator: {operator.__name__} has no kind; set kind = "..." in its class'
        )
    taken = [name for name in operator.names if name in _NAMES]
    if kind in KINDS or taken:
        what = f"the kind {kind!r}" if kind in KINDS else taken[0]
        owner = type(KINDS[kind] if kind in KINDS else _NAMES[taken[0]]).__name__
        raise SpectralError(f"register_operator: {what} is that of {owner} already; choose another")
    KINDS[kind] = instance = operator()
    _NAMES.update(dict.fromkeys(operator.names, instance))
    find_reader.cache_clear()
    return operator


def parse(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Decimation | None:
    """Read an operator call as a decimation; None if it can't reduce resolution.

    Raises:
        SpectralError: if the operator is one on quantised integers, where no dense map can be computed.

    Example:
        >>> import torch
        >>> op = torch.ops.aten.max_pool2d.default
        >>> parse(op, (torch.zeros(1, 1, 8, 8), 2), {}).geometry.stride
        (2, 2)
        >>> parse(torch.ops.aten.relu.default, (torch.zeros(1),), {}) is None
        True
    """
    operator = find_reader(func)
    return None if operator is None else operator.read(name_arguments(func, args, kwargs))


def find_sliding(func: Any, a: Arguments) -> tuple[Operator, int] | None:
    """Return an operator that slides over the last axes, whatever its stride, and over how many.

    Example:
        >>> import torch
        >>> op = torch.ops.aten.avg_pool3d.default
        >>> find_sliding(op, name_arguments(op, (torch.zeros(1, 2, 3, 4, 5), 2, 1), {}))[1]
        3
    """
    operator = find_reader(func)
    count = operator.slides_over(a) if operator is not None else None
    return None if operator is None or count is None else (operator, count)


def find_plain_operator(module: nn.Module) -> Operator | None:
    """Return the operator that a module is nothing but, if it is one.

    Example:
        >>> find_plain_operator(nn.MaxPool2d(2)).kind
        'max_pool'
    """
    return next((operator for operator in KINDS.values() if type(module) in operator.modules), None)


def find_function(function: Callable[..., Any]) -> Any:
    """Return the torch operator that a torch function calls on a batch of maps, None if none we know.

    Example:
        >>> import torch
        >>> find_function(torch.nn.functional.avg_pool2d)
        <OpOverload(op='aten.avg_pool2d', overload='default')>
    """
    pairs = (pair for operator in KINDS.values() for pair in operator.functions)
    return next((operator for called, operator in pairs if called is function), None)


def list_replaceable_kinds() -> list[str]:
    """Kinds of which a layer can take the place.

    Example:
        >>> list_replaceable_kinds()
        ['conv', 'max_pool', 'avg_pool', 'slice']
    """
    return [kind for kind, operator in KINDS.items() if operator.obstacle is None]


@cache
def find_reader(func: Any) -> Operator | None:
    """Return the kind of a torch operator; None if it is none that we know.

    Raises:
        SpectralError: for a convolution of quantised integers.

    Example:
        >>> import torch
        >>> find_reader(torch.ops.aten.im2col.default).kind
        'unfold'
    """
    name, overload = str(func._schema.name), str(func._schema.overload_name)
    namespace, _, own = name.partition("::")
    if namespace == "quantized" and own.startswith("conv"):
        raise SpectralError(
            "a quantised model computes on integers, which have no spectrum; pass the float model it was "
            "made from"
        )
    if "out" in overload:
        return None
    return _NAMES.get(f"{name}.{overload}") or _NAMES.get(name)


def operator_name(func: Any) -> str:
    """Return the name of an operator without namespace and overload.

    Example:
        >>> import torch
        >>> operator_name(torch.ops.aten.slice.Tensor)
        'slice'
    """
    return tell_facts(func).name


def name_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """Return an operator's arguments by the names of its schema.

    Example:
        >>> import torch
        >>> name_arguments(torch.ops.aten.select.int, (torch.zeros(2, 3), 1, 2), {})["index"]
        2
    """
    facts = tell_facts(func)
    given = zip(facts.arguments, args, strict=False)
    return Arguments(facts.whole_name, {**facts.defaults, **dict(given), **kwargs})
