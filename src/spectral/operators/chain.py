"""The pointwise chain behind a site: what works on each place by itself, and so commutes with decimation.

Decimating and then adding a bias gives what adding it and then decimating gives. So of a convolution with a
stride, its norm and its activation, it can't be told where along the chain samples are dropped, and no number
should depend on it: the tap ``signal`` is the dense map behind all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from spectral.operators import operator_name

ALL = slice(None)
CHANNEL_AXIS = 1
Order = tuple[tuple[int, ...], ...]  # for each axis of a tensor: the axes of the map that lie along it


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, by name: whatever it holds when the chain runs."""

    name: str


@dataclass(frozen=True, eq=False)
class Fixed:
    """A tensor that is none of the model's parameters and buffers."""

    value: Tensor


@dataclass(frozen=True)
class Made:
    """What a step has made; 0 is the map itself."""

    number: int


@dataclass(frozen=True)
class PerChannel:
    """A tensor that has a number for each channel along one of its axes."""

    value: Weight | Fixed | Made
    axis: int


@dataclass(frozen=True)
class Extent:
    """How many samples the map has along some of its axes together."""

    axes: tuple[int, ...]

    def find(self, size: torch.Size) -> int:
        """Return it for a map of this size; −1, as many as there are, of channels: a step may change them."""
        return -1 if self.axes == (CHANNEL_AXIS,) else math.prod(size[axis] for axis in self.axes)


class Here:
    """Stands for the map's device."""


@dataclass(frozen=True)
class Step:
    """One operator: ``entry`` of what it gives, where it gives several."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    entry: int = 0

    @property
    def name(self) -> str:
        """The operator's name."""
        return operator_name(self.func)

    def __reduce__(self) -> Any:
        """Pickle the operator by its name: of some versions of torch it can't be pickled itself."""
        schema = self.func._schema
        return _restore_step, (schema.name, schema.overload_name, self.args, dict(self.kwargs), self.entry)


def _restore_step(name: str, overload: str, args: tuple[Any, ...], kwargs: Any, entry: int) -> Step:
    namespace, _, own = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), own)
    return Step(getattr(packet, overload or "default"), args, kwargs, entry)


@dataclass(frozen=True)
class Chain:
    """Operators that follow a site and commute with its decimation.

    Attributes:
        operators: names of those that the map goes through.
        steps: all that has to be computed, in order.
        result: the step whose result is the end of the chain.
        begin: for each axis of what the site gives, which axis of the map it is.
        order: for each axis of that result, which axes of the map lie along it.
        mixes: whether a step needs all channels at once.
        lacks_row: whether the operators work on signals, which have no rows.
    """

    operators: tuple[str, ...]
    steps: tuple[Step, ...]
    result: int
    begin: tuple[int, ...]
    order: Order
    mixes: bool = False
    lacks_row: bool = False

    def apply(self, dense: Tensor, find_weight: Callable[[str], Tensor], channels: slice = ALL) -> Tensor:
        """Run the chain on a dense map.

        Args:
            dense: maps (B, C, H, W), left as they are.
            find_weight: name of a parameter or buffer → itself.
            channels: which channels these are, if only some. A chain that mixes them needs all, and may give
                another number of them: weights behind it are then whole, whatever is said here.

        Example:
            >>> import torch
            >>> relu = Step(torch.ops.aten.relu.default, (Made(0),), {})
            >>> rows = Chain(("relu",), (relu,), 1, (0, 1, 2, 3), ((0,), (1,), (2,), (3,)))
            >>> rows.apply(-torch.ones(1, 1, 2, 2), {}.get).max()
            tensor(0.)
        """
        entering = dense.squeeze(-2) if self.lacks_row else dense
        made = [entering.permute(self.begin)]
        own = ALL if self.mixes else channels

        def find(value: Weight | Fixed | Made) -> Tensor:
            if isinstance(value, Made):
                return made[value.number]
            return find_weight(value.name) if isinstance(value, Weight) else value.value.to(dense.device)

        def fill(value: Any) -> Any:
            if isinstance(value, PerChannel):
                whole = find(value.value)
                return whole[(slice(None),) * value.axis + (own,)]
            if isinstance(value, (Weight, Fixed, Made)):
                return find(value)
            if isinstance(value, Extent):
                return value.find(entering.shape)
            return dense.device if isinstance(value, Here) else value

        for step in self.steps:
            args, kwargs = tree_map(fill, (step.args, dict(step.kwargs)))
            if step.func._schema.is_mutable:
                args = (args[0].clone(), *args[1:])
            out = step.func(*args, **kwargs)
            made.append(out[step.entry] if isinstance(out, (tuple, list)) else out)
        axes = [axis for along in self.order for axis in along]
        apart = made[self.result].reshape([Extent((axis,)).find(entering.shape) for axis in axes])
        result = apart.permute([axes.index(axis) for axis in range(len(axes))])
        return result.unsqueeze(-2) if self.lacks_row else result
