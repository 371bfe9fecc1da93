"""Maps and constants of a pointwise chain: what each was made of, how its axes lie, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from spectral.operators import operator_name
from spectral.operators.chain import CHANNEL_AXIS, Chain, Fixed, Made, Order, PerChannel, Step, Weight

ONLY_CHANNELS = (CHANNEL_AXIS,)
TURNS = {"permute", "transpose", "t"}
_UNTOLD = {*TURNS, "reshape", "_to_copy"}


@dataclass(eq=False)
class Constant:
    """A tensor that doesn't depend on the image; None where it isn't known what it is made of."""

    source: Weight | Fixed | Recipe | None


@dataclass(frozen=True, eq=False)
class Recipe:
    """An operator with its arguments, maps and constants among them, and which of its results it is of."""

    func: Any
    args: Any
    kwargs: Any
    entry: int


@dataclass(eq=False)
class Node:
    """A map of a chain: what it was made of, and whether anything outside the chain reads it.

    ``order`` tells of each of its axes which axes of the site's map lie along it; ``full`` whether it has a
    map's channels, not only a number for all of them; ``real`` whether it has a spectrum: no comparison has.
    """

    root: Root
    number: int
    order: Order
    shape: torch.Size
    recipe: Recipe | None = None
    parents: tuple[Node, ...] = ()
    mixes: bool = False
    full: bool = True
    real: bool = True
    joins: bool = False
    reader: str = ""


@dataclass(eq=False)
class Root:
    """Where a chain begins; ``source`` is what the site decimates, if it has no weights of its own."""

    nodes: list[Node] = field(default_factory=list)
    lacks_row: bool = False
    source: Source | None = None


@dataclass(eq=False)
class Source:
    """A tensor of the image: how many read it, and whether what made it could decimate just as well.

    A convolution could, and what is pointwise; a pool at stride 1, padding, weights by place and an earlier
    decimation could if that is true of the tensor before.
    """

    decimates: bool = False
    before: Source | None = None
    readers: int = 0

    def may_decimate(self) -> bool:
        """Whether samples may be dropped before this tensor, and nothing would notice."""
        able = self.decimates if self.before is None else self.before.may_decimate()
        return able and self.readers == 1


@dataclass(frozen=True)
class Cut:
    """A constant with a number for each channel along an axis."""

    held: Node | Constant
    axis: int


def regroup_axes(node: Node, shape: Sequence[int]) -> Order | None:
    """Tell which axes of the map lie along each of a view; None if it cuts one, or channels aren't alone."""
    begin = node.root.nodes[0]
    axes: list[int] = []
    extents: list[int] = []
    for along, n in zip(node.order, node.shape, strict=True):
        axes += along
        extents += [n] if len(along) == 1 else [begin.shape[begin.order.index((axis,))] for axis in along]
    order, at = [], 0
    for n in shape:
        end = next((i for i in range(at + 1, len(axes) + 1) if math.prod(extents[at:i]) == n), at)
        order.append(tuple(axes[at:end]))
        at = end
    told = at == len(axes) and all(order) and ONLY_CHANNELS in order
    return tuple(order) if told else None


def turn_axes(name: str, a: Any, order: Order) -> Order:
    """Order the axes as a permutation leaves them."""
    if name == "permute":
        return tuple(order[d] for d in a["dims"])
    first, second = (a["dim0"], a["dim1"]) if name == "transpose" else (0, 1)
    turned = list(order)
    turned[first], turned[second] = turned[second], turned[first]
    return tuple(turned)


def is_joined(a: Any, nodes: Sequence[Node]) -> bool:
    """Whether a convolution is one of 1×1 directly behind a site that has no weights.

    Axes that are turned and turned back change nothing: so memory is laid out with channels last.
    """
    (node, *others), kernel = nodes, a["weight"].shape[2:]
    begin, behind = node.root.nodes[0], node
    while behind.recipe is not None and operator_name(behind.recipe.func) in TURNS:
        (behind,) = behind.parents
    turned = behind is not begin or node.order != begin.order
    if others or turned or node.root.source is None or a["transposed"]:
        return False
    return set(kernel) == {1} and set(a["stride"]) == {1} and not any(a["padding"])


def find_last(nodes: Sequence[Node]) -> Node:
    """Return the last map of a chain through which all goes that leaves it."""
    live: set[int] = set()
    for node in reversed(nodes):
        if node.reader or node.number in live:
            live |= {node.number, *(parent.number for parent in node.parents)}
    found = nodes[0]
    for node in nodes[1:]:
        if node.number not in live:
            continue
        before = [other for other in nodes[: node.number] if other.number in live]
        crossing = any(
            parent.number < node.number
            for other in nodes[node.number + 1 :]
            if other.number in live
            for parent in other.parents
        )
        if not crossing and not any(other.reader for other in before) and node.full and node.real:
            found = node
    return found


def write_chain(last: Node) -> Chain:
    """Write down all steps that a map is made by, each once."""
    steps: list[Step] = []
    numbers: dict[Any, Any] = {}
    names: list[str] = []
    mixes = False

    def place(content: Node | Constant) -> Weight | Fixed | Made:
        nonlocal mixes
        source = content.recipe if isinstance(content, Node) else content.source
        if isinstance(source, (Weight, Fixed)):
            return source
        if source is None:
            return Made(0)
        if source not in numbers:
            args, kwargs = tree_map(fill, (source.args, source.kwargs))
            steps.append(Step(source.func, args, kwargs, source.entry))
            numbers[source] = Made(len(steps))
            if isinstance(content, Node):
                mixes |= content.mixes
                if steps[-1].name not in _UNTOLD:
                    names.append(steps[-1].name)
        return numbers[source]  # type: ignore[no-any-return]

    def fill(value: Any) -> Any:
        if isinstance(value, Cut):
            return PerChannel(place(value.held), value.axis)
        return place(value) if isinstance(value, (Node, Constant)) else value

    result = place(last)
    assert isinstance(result, Made)  # of a map
    begin = tuple(axis for (axis,) in last.root.nodes[0].order)
    return Chain(tuple(names), tuple(steps), result.number, begin, last.order, mixes, last.root.lacks_row)
