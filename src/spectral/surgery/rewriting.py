"""Operators and activations that a block calls as functions, each told by its place in the code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectral.errors import SpectralError
from spectral.surgery import ledger
from spectral.surgery.functions import Signature, name_function, read_signature, run_densely
from spectral.surgery.hooks import CHILD
from spectral.surgery.places import find_spot
from spectral.tracing.places import Steps


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


Run = Callable[[Any, Any, Any], Any]  # of a function and its arguments
Runs = Mapping[Function, Run | Mapping[int, Run]]  # instead of all calls at a place, or of some repeats


@dataclass(frozen=True)
class Replacement:
    """What is done with the call of one operator.

    Attributes:
        site: the site that it is.
        key: the layer's name among the block's.
        placement: where the layer runs.
        signature: what alike calls have in common.
        order: of the axes in a batch of maps (B, C, …), where the function's are in another.
        point: where it is due, if behind an activation.
        wait: how many calls of that place come first.
    """

    site: str
    key: str
    placement: str
    signature: Signature
    order: tuple[int, ...] | None = None
    point: str = ""
    wait: int = 0


class Rewriter(TorchFunctionMode):
    """Runs chosen operators of one call of a block densely, and the layers behind its own activations.

    Args:
        block: the module whose forward runs.
        calls: what becomes of which operator.
        points: activations behind which layers are due, and their names in the ledger.
        activations: functions that run in another way, and how.
    """

    def __init__(
        self,
        block: nn.Module,
        calls: Mapping[Function, Replacement],
        points: Mapping[Function, str],
        activations: Runs | None = None,
    ) -> None:
        super().__init__()
        self._block, self._calls, self._points = block, calls, points
        self._activations = activations or {}
        self._names = {function.name for function in (*calls, *points, *self._activations)}
        self._repeats: Counter[Function] = Counter()
        self._met: set[Function] = set()
        self._strangers: set[Signature] = set()

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
        number = self._repeats[function]
        self._repeats[function] += 1
        run = self._activations.get(function)
        if isinstance(run, Mapping):
            run = run.get(number)
        if run is not None and function not in self._points:
            return run(func, args, kwargs)
        if function in self._points:
            output = func(*args, **kwargs) if run is None else run(func, args, kwargs)
            settled = ledger.settle(self._points[function], output)
            return output if settled is None else settled
        signature = read_signature(func, args, kwargs)
        if signature is None:
            return func(*args, **kwargs)
        function = replace(function, repeat=number)
        chosen = self._calls.get(function)
        if chosen is None or chosen.signature != signature:
            self._strangers.add(signature)
            return func(*args, **kwargs)
        self._met.add(function)
        layer = self._block.get_submodule(f"{CHILD}.{chosen.key}")
        return _run_with_layer(func, args, kwargs, layer, chosen)

    def check_complete(self) -> None:
        """Refuse that an operator that was replaced ran at another place of the code instead.

        Raises:
            SpectralError: naming its site.
        """
        for function, chosen in self._calls.items():
            if function not in self._met and chosen.signature in self._strangers:
                raise SpectralError(
                    f"the layer of site {chosen.site!r} did not run: its {function.name} isn't called where "
                    f"it was when the network was converted; {ledger.WAY_OUT}"
                )


def _run_with_layer(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], layer: nn.Module, chosen: Replacement
) -> Tensor:
    if chosen.placement == "before":
        if args:
            args = [layer(args[0]), *args[1:]]
        else:
            kwargs = {**kwargs, "input": layer(kwargs["input"])}
    dense = run_densely(func, args, kwargs)
    if chosen.placement == "behind":
        maps = dense if chosen.order is None else dense.permute(chosen.order)
        pooled: Tensor = layer(maps)
        return pooled if chosen.order is None else pooled.permute(invert(chosen.order))
    if chosen.placement == "activation":
        ledger.owe(ledger.Debt(chosen.site, chosen.point, chosen.wait, layer, dense.shape))
    return dense


def invert(order: Sequence[int]) -> list[int]:
    """Return the permutation that undoes another.

    Example:
        >>> invert([2, 0, 1])
        [1, 2, 0]
    """
    return [order.index(axis) for axis in range(len(order))]
