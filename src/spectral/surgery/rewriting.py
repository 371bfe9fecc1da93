"""Operators and activations that a block calls as functions, each told by its place in the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectral.errors import SpectralError
from spectral.operators import KINDS, Decimation, Geometry, Size, find_function, operator_of, parse
from spectral.places import Steps
from spectral.surgery import ledger
from spectral.surgery.hooks import CHILD
from spectral.surgery.places import find_spot, name_function

Signature = tuple[str, Size, Size, Size]


@dataclass(frozen=True)
class Function:
    """One call of a torch function in a module's own forward.

    Attributes:
        name: of the function.
        place: where in the code it is called.
        repeat: which of the calls at that place it is, from 0.
    """

    name: str
    place: Steps
    repeat: int = 0


@dataclass(frozen=True)
class Replacement:
    """What is done with the call of one operator.

    Attributes:
        site: the site that it is.
        key: the layer's name among the block's.
        placement: where the layer runs.
        signature: what alike operators have in common.
        point: where it is due, if behind an activation.
        wait: how many calls of that place come first.
    """

    site: str
    key: str
    placement: str
    signature: Signature
    point: str = ""
    wait: int = 0


def signature_of(geometry: Geometry) -> Signature:
    """Return what alike operators have in common, whatever the size of their input."""
    kind = operator_of(geometry.kind).runs_as or geometry.kind
    return kind, geometry.stride, geometry.kernel, geometry.phase


class Rewriter(TorchFunctionMode):
    """Runs chosen operators of one call of a block densely, and the layers behind its own activations.

    Args:
        block: the module whose forward runs.
        calls: what becomes of which operator.
        points: activations behind which layers are due, and their names in the ledger.
    """

    def __init__(
        self, block: nn.Module, calls: Mapping[Function, Replacement], points: Mapping[Function, str]
    ) -> None:
        super().__init__()
        self._block, self._calls, self._points = block, calls, points
        self._names = {function.name for function in (*calls, *points)}
        self._repeats: Counter[Function] = Counter()
        self._met: set[Function] = set()
        self._strangers: set[tuple[str, Signature]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, or what replaces it."""
        kwargs = kwargs or {}
        name = name_function(func)
        if name not in self._names:
            return func(*args, **kwargs)
        spot = find_spot()
        if spot.call is None or spot.call.f_locals.get("block") is not self._block:
            return func(*args, **kwargs)  # of a module inside
        function = Function(name, spot.place)
        if function in self._points:
            output = func(*args, **kwargs)
            settled = ledger.settle(self._points[function], output)
            return output if settled is None else settled
        self._repeats[function] += 1
        decimation = read_call(func, args, kwargs)
        if decimation is None:
            return func(*args, **kwargs)
        function = replace(function, repeat=self._repeats[function] - 1)
        chosen = self._calls.get(function)
        if chosen is None or chosen.signature != signature_of(decimation.geometry):
            self._strangers.add((name, signature_of(decimation.geometry)))
            return func(*args, **kwargs)
        self._met.add(function)
        return _run_dense(decimation, self._block.get_submodule(f"{CHILD}.{chosen.key}"), chosen)

    def check_complete(self) -> None:
        """Refuse that an operator that was replaced ran at another place of the code instead.

        Raises:
            SpectralError: naming its site.
        """
        for function, chosen in self._calls.items():
            if function not in self._met and (function.name, chosen.signature) in self._strangers:
                raise SpectralError(
                    f"the layer of site {chosen.site!r} did not run: its {function.name} isn't called where "
                    f"it was when the network was converted; {ledger.WAY_OUT}"
                )


def is_readable(name: str) -> bool:
    """Whether calls of a function can be read as decimations."""
    functions = [function for operator in KINDS.values() for function, _ in operator.functions]
    return name in {name_function(function) for function in (Tensor.__getitem__, *functions)}


def _run_dense(decimation: Decimation, layer: nn.Module, chosen: Replacement) -> Tensor:
    if chosen.placement == "before":
        decimation = replace(decimation, input=layer(decimation.input))
    dense = decimation.dense(decimation.output_size)
    if chosen.placement == "behind":
        return layer(dense)  # type: ignore[no-any-return]
    if chosen.placement == "activation":
        ledger.owe(ledger.Debt(chosen.site, chosen.point, chosen.wait, layer, dense.shape))
    return dense


def read_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Decimation | None:
    """Read a torch function call as a decimation of a map (B, C, H, W), else None.

    Example:
        >>> read_call(torch.nn.functional.avg_pool2d, (torch.zeros(1, 1, 8, 8), 2), {}).geometry.stride
        (2, 2)
    """
    if func is Tensor.__getitem__:
        return _read_indexing(*args)
    operator = find_function(func)
    x = args[0] if args else kwargs.get("input")
    if operator is None or not isinstance(x, Tensor) or x.ndim != 4:
        return None
    rest = {name: value for name, value in kwargs.items() if name not in ("input", "return_indices")}
    decimation = parse(operator, (x, *args[1:]), rest)
    return None if decimation is None or decimation.geometry.kind == "global_pool" else decimation


def _read_indexing(x: Tensor, index: Any) -> Decimation | None:
    """Read x[:, :, a::s, b::t] as a decimation of x[:, :, a:, b:]."""
    index = list(index) if isinstance(index, tuple) else [index]
    if x.ndim != 4 or not x.is_floating_point() or not all(isinstance(i, slice) or i is ... for i in index):
        return None
    if ... in index:
        at = index.index(...)
        index[at : at + 1] = [slice(None)] * (5 - len(index))
    index += [slice(None)] * (4 - len(index))
    steps = [i.step or 1 for i in index]
    if steps[:2] != [1, 1] or max(steps) == 1:
        return None
    stride = tuple(steps[2:])
    phase = tuple(i.indices(n)[0] for i, n in zip(index[2:], x.shape[2:], strict=True))
    dense = x[tuple(slice(i.start, i.stop) for i in index)]
    return Decimation(Geometry("slice", stride, phase=phase), dense)
