"""Finds the pointwise chain that follows each site, while a pass runs without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from spectral.axes import SIZES, Call, memory_of
from spectral.discovery.events import Event
from spectral.discovery.nodes import (
    ONLY_CHANNELS,
    TURNS,
    Constant,
    Cut,
    Node,
    Recipe,
    Root,
    Source,
    find_last,
    is_joined,
    regroup_axes,
    turn_axes,
    write_chain,
)
from spectral.operators.chain import Chain, Extent, Fixed, Here, Order, Weight
from spectral.tracing.dataless import Dataless
from spectral.tracing.tensors import TensorTable

_SAME = {"alias", "detach", "lift_fresh", "contiguous"}
_VIEWS = {"view", "slice", "expand"}
_BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
                "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"}  # fmt: skip
_DECIMATING = {"convolution", "native_layer_norm"}
_PASSING = {"constant_pad_nd", "slice", *(f"avg_pool{n}d" for n in (1, 2, 3)),
            *(f"max_pool{n}d_with_indices" for n in (1, 2, 3))}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "var", "var_mean", "std", "std_mean", "amax", "amin", "linalg_vector_norm"}
_RESHAPES = {"view", "_unsafe_view", "squeeze"}


@dataclass(eq=False)
class _Held:
    """What a tensor holds now: names of one tensor (alias, detach) share it.

    ``stale`` if that isn't so any more: another view of the same memory was overwritten.
    """

    content: Node | Constant
    stale: bool = False


class Chains:
    """Follows what is made of sites' outputs, and of which constants.

    Where a pool or a slice, which has no weights, decimates what others read too, and a 1×1 convolution alone
    reads its output, it is that convolution's stride (surgery places it so), and the chain goes through it.

    Args:
        model: the copy that runs.
        find_original: of a tensor that the copy keeps, that of the user's model.
        comes_from_image: whether a tensor was computed from the image.
    """

    def __init__(
        self,
        model: nn.Module,
        find_original: Callable[[Tensor], Tensor | None],
        comes_from_image: Callable[[Tensor], bool],
    ) -> None:
        weights = (*model.named_parameters(), *model.named_buffers())
        self._names = TensorTable[str]()
        for name, x in weights:
            self._names[x] = name
        self._model, self._find_original, self._comes_from_image = model, find_original, comes_from_image
        self._held: TensorTable[_Held] = TensorTable()
        self._roots: dict[Event, Root] = {}
        self._sources: TensorTable[Source] = TensorTable()

    def begin(self, event: Event) -> None:
        """Begin a chain at a site's output."""
        order, rank = _find_order(event), len(event.geometry.stride)
        if event.geometry.reason is not None or order is None:
            return
        one_row = len(order) == rank + 1 and event.output_size[-2:-1] == (1,)
        if len(order) != rank + 2 and not one_row:
            return
        root = Root(lacks_row=one_row)
        if event.geometry.kind != "conv":
            root.source = self._sources.setdefault(event.source, Source())
        root.nodes.append(Node(root, 0, tuple((axis,) for axis in order), event.output.shape))
        self._held[event.output] = _Held(root.nodes[0])
        self._roots[event] = root

    def follow(self, call: Call) -> None:
        """Follow an operator that ran."""
        inputs, outputs, name = call.inputs, call.outputs, call.name
        if name in SIZES:
            return
        nodes = [node for x in inputs if (node := self._node(x)) is not None]
        self._count_readers(call)
        if not nodes:
            if not call.sources:
                self._note_constant(call)
        elif any((held := self._held.get(x)) is not None and held.stale for x in inputs):
            self._end(nodes, name)
        elif _is_same(name, inputs, outputs):
            for y in outputs:
                self._held[y] = self._held[inputs[0]]
        elif name == "clone":
            self._held[outputs[0]] = _Held(nodes[0])
        elif not self._extend(call, nodes):
            self._end(nodes, name)

    def read(self, x: Tensor) -> None:
        """Note that a tensor is what the model returns."""
        node = self._node(x)
        if node is not None:
            self._end([node], "the output")

    def _end(self, nodes: Sequence[Node], reader: str) -> None:
        for node in nodes:
            node.reader = node.reader or reader

    def find(self, event: Event) -> tuple[Chain | None, str]:
        """Return the chain behind a site, or why there is none."""
        if event.geometry.reason is not None:
            return None, ""
        root = self._roots.get(event)
        if root is None:
            return None, "its map isn't laid out as (B, C, H, W)"
        if root.source is not None and root.source.may_decimate():
            _part_joined(root.nodes)
        last = find_last(root.nodes)
        reader = next((node.reader for node in root.nodes if node.reader), "")
        chain = write_chain(last)
        if not chain.operators:
            return None, f"no pointwise operator follows, but {reader or 'nothing'}"
        try:
            shape = [event.output.shape[chain.begin.index(axis)] for axis in range(event.output.ndim)]
            stand_in = torch.empty(shape, dtype=event.output.dtype, device=event.output.device)
            with Dataless():
                chain.apply(stand_in.unsqueeze(-2) if root.lacks_row else stand_in, self._find_weight)
        except Exception as error:  # whatever torch can't do once more
            return None, f"what follows can't be run again: {type(error).__name__}"
        return chain, ""

    def _count_readers(self, call: Call) -> None:
        """Count who reads each tensor of the image, and note what made it."""
        name, inputs, outputs, seen = call.name, call.inputs, call.outputs, call.sources
        if _is_same(name, inputs, outputs) or name == "clone":
            for y in outputs:
                self._sources[y] = self._sources.setdefault(inputs[0], Source())
            return
        for x in seen:
            source = self._sources.get(x)
            if source is None:
                source = self._sources[x] = Source()
            source.readers += 1
        pointwise = call.facts.is_pointwise
        passes = name in _PASSING or (pointwise and _differs_by_place(inputs, seen))
        before = self._sources.get(seen[0]) if passes and seen else None
        decimates = pointwise or name in _BATCH_NORMS or name in _DECIMATING
        for y in outputs:
            self._sources[y] = Source(decimates, before)

    def _find_weight(self, name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        weight: Tensor = getattr(self._model.get_submodule(path), own)
        return weight

    def _node(self, x: Tensor) -> Node | None:
        held = self._held.get(x)
        return held.content if held is not None and isinstance(held.content, Node) else None

    def _constant(self, x: Tensor) -> Constant | None:
        """Return what a tensor that isn't computed from the image is made of; None if that isn't known."""
        held = self._held.get(x)
        if held is None:
            if self._comes_from_image(x):
                return None
            source: Weight | Fixed | None = None
            original = self._find_original(x)
            if x in self._names:
                source = Weight(self._names[x])
            elif original is not None:
                source = Fixed(original.detach())
            elif not x.is_meta:
                source = Fixed(x.detach())
            held = self._held[x] = _Held(Constant(source))
        found = held.content
        return found if isinstance(found, Constant) and found.source is not None else None

    def _note_constant(self, call: Call) -> None:
        """Note how a tensor was made of constants."""
        name, func, inputs, outputs = call.name, call.func, call.inputs, call.outputs
        if call.facts.is_mutable or call.facts.writes_first:
            self._forget(outputs)
            return
        if inputs and _is_same(name, inputs, outputs) and self._constant(inputs[0]) is not None:
            for y in outputs:
                self._held[y] = self._held[inputs[0]]
            return
        known = all(self._constant(x) is not None for x in inputs)
        if not known or torch.Tag.nondeterministic_seeded in func.tags or "empty" in name:
            self._forget(outputs)
            return
        args, kwargs = tree_map(self._refer, (tuple(call.args), call.kwargs))
        for entry, y in enumerate(outputs):
            self._held[y] = _Held(Constant(Recipe(func, args, kwargs, entry)))

    def _forget(self, overwritten: Sequence[Tensor]) -> None:
        """Know no more what tensors hold that share memory with one that was overwritten."""
        memories = {memory_of(x) for x in overwritten}
        for other, held in self._held.items():
            if isinstance(held.content, Constant) and memory_of(other) in memories:
                held.content.source = None
        for x in overwritten:
            self._held[x] = _Held(Constant(None))

    def _outdate(self, overwritten: Tensor) -> None:
        """Note of other views of a tensor that was overwritten that they hold another map than is known."""
        new, memory = self._held[overwritten], memory_of(overwritten)
        for other, held in self._held.items():
            if held is not new and isinstance(held.content, Node) and memory_of(other) == memory:
                held.stale = True

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value) or self._constant(value)
        return Here() if isinstance(value, torch.device) else value

    def _extend(self, call: Call, nodes: Sequence[Node]) -> bool:
        """Go on with the chain through an operator; False if it doesn't work on each place by itself."""
        root, inputs, outputs = nodes[0].root, call.inputs, call.outputs
        if any(node.root is not root for node in nodes):
            return False
        if any(self._node(x) is None and self._constant(x) is None for x in inputs):
            return False
        name, a = call.name, call.a
        order, mixes, joins, full = nodes[0].order, False, False, any(node.full for node in nodes)
        cuts: dict[int, int] = {}
        if call.facts.is_pointwise:
            whole = max((node.shape for node in nodes), key=torch.Size.numel)
            found = self._match(inputs, order)
            written = call.facts.is_mutable and (self._node(inputs[0]) is None or outputs[0] is not inputs[0])
            alike = all(node.order == order for node in nodes) and outputs[0].shape == whole
            if found is None or written or not alike or len(outputs) != 1:
                return False
            cuts = found
        elif name in _BATCH_NORMS:
            training = bool(a.get("training", a.get("train", False)))
            if training or order[1] != ONLY_CHANNELS or self._node(inputs[0]) is None or len(nodes) > 1:
                return False
            cuts, outputs = {id(x): 0 for x in inputs[1:]}, outputs[:1]
        elif name == "native_layer_norm":
            alone = len(a["normalized_shape"]) == 1 and order[-1] == ONLY_CHANNELS
            if not alone or self._node(inputs[0]) is None or len(nodes) > 1:
                return False
            mixes, outputs = True, outputs[:1]
        elif name == "convolution":
            if not is_joined(a, nodes) or self._node(inputs[0]) is None:
                return False
            mixes = joins = True
        elif name in _REDUCTIONS:
            dims = a.get("dim")
            axes = [dims] if isinstance(dims, int) else list(dims or ())
            if not a.get("keepdim") or not axes or any(order[d] != ONLY_CHANNELS for d in axes):
                return False
            mixes, full = True, False
        elif name in TURNS:
            order = turn_axes(name, a, order)
        elif name in _RESHAPES:
            joined = regroup_axes(nodes[0], outputs[0].shape)
            if joined is None:
                return False
            order = joined
        else:
            return False
        func, given = call.func, (tuple(call.args), call.kwargs)
        if name in _RESHAPES:  # a dense map has other extents
            func, given = torch.ops.aten.reshape.default, ((inputs[0], [Extent(axes) for axes in order]), {})
        filled = tree_map(lambda value: self._fill(value, cuts), given)
        parents = tuple(dict.fromkeys(nodes))
        for entry, y in enumerate(outputs):
            recipe = Recipe(func, filled[0], filled[1], entry)
            real = y.is_floating_point()
            node = Node(root, len(root.nodes), order, y.shape, recipe, parents, mixes, full, real, joins)
            root.nodes.append(node)
            if call.facts.is_mutable:
                self._held[y].content = node  # all names of the tensor have it now
                viewed = any(other.order != order for other in root.nodes)  # with its axes in another order
                if viewed:
                    self._outdate(y)
            else:
                self._held[y] = _Held(node)
        return True

    def _fill(self, value: Any, cuts: dict[int, int]) -> Any:
        referred = self._refer(value)
        return Cut(referred, cuts[id(value)]) if isinstance(value, Tensor) and id(value) in cuts else referred

    def _match(self, inputs: Sequence[Tensor], order: Order) -> dict[int, int] | None:
        """Find the axis of each constant that has a number for each channel; None if one differs by place."""
        cuts = {}
        for x in inputs:
            if self._node(x) is not None:
                continue
            shape = (1,) * (len(order) - x.ndim) + tuple(x.shape)
            if len(shape) != len(order):
                return None
            for axes, n in zip(order, shape, strict=True):
                if n != 1 and axes != ONLY_CHANNELS:
                    return None
            at = order.index(ONLY_CHANNELS)
            if shape[at] != 1:
                cuts[id(x)] = at - (len(order) - x.ndim)
        return cuts


def _find_order(event: Event) -> tuple[int, ...] | None:
    """Tell for each axis of what a site gives which of a map (B, C, H, W) it is; None if it has others."""
    axes = range(event.output.ndim)
    if event.layouts is None:
        return tuple(axes)
    layout = event.layouts[1]
    told = layout.whole and len(axes) == 2 + len(layout.size)
    return tuple(layout.order.index(axis) for axis in axes) if told else None


def _is_same(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether what an operator gives is its input under another name: so is a view or slice of all of it."""
    return name in _SAME or (name in _VIEWS and outputs[0].shape == inputs[0].shape)


def _differs_by_place(inputs: Sequence[Tensor], maps: Sequence[Tensor]) -> bool:
    """Whether maps are joined with numbers that differ by place, such as a pool's counts."""
    rank = max((x.ndim for x in maps), default=0)
    places = [((1,) * (rank - x.ndim) + x.shape)[2:] for x in inputs if all(x is not y for y in maps)]
    return any(n > 1 for sizes in places for n in sizes)


def _part_joined(nodes: Sequence[Node]) -> None:
    """Let a site end where a convolution reads it that isn't its own: it may as well decimate earlier."""
    for node in nodes:
        if node.joins:
            nodes[0].reader = nodes[0].reader or "convolution"
