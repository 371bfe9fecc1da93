"""One forward pass without data that says what a model's inputs and outputs are.

Which axes of an input are spatial is told by the first operator that slides over them; whether an output
(B, K) is one of class scores by what computed it: scores are what a last learned linear layer gives, features
what comes out of a nonlinearity, a normalisation or a pool behind one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectral.classes import count_declared_classes
from spectral.errors import SpectralError
from spectral.network import SPATIAL, Kinds, Scores, guess_layout, read_scores
from spectral.network.inputs import Inputs
from spectral.operators import Arguments, name_arguments
from spectral.tracing.batchwise import BatchAxis, tell_name
from spectral.tracing.branches import depends_on_others
from spectral.tracing.dataless import Dataless, run_operator
from spectral.tracing.randomness import Draws
from spectral.tracing.standin import run_on_copy, run_on_standins
from spectral.tracing.stateful import Changes, confirm_changes, noted_changes
from spectral.tracing.tensors import TensorTable

_PRODUCTS = {"mm", "bmm", "matmul", "addmm", "baddbmm", "linear", "mv", "addmv", "einsum"}
# What leaves scores the scores they are, up to scale: a network of convolutions alone averages over places.
_LINEAR = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "select", "slice", "expand", "alias", "clone", "_to_copy", "detach", "cat", "stack", "mean",
    "sum", "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "dropout",
    "native_dropout", "feature_dropout", "flatten", "unflatten", "split", "unbind", "index_select",
    "contiguous", "lift_fresh", "view_copy", "copy_", "split_with_sizes", "chunk", "narrow", "movedim",
    "squeeze_", "unsqueeze_",
}  # fmt: skip
_TWO_SIDED = {"mul", "mul_", "div", "div_"}  # linear unless both sides are computed from the image
_PROBABILITIES = {"softmax", "_softmax", "log_softmax", "_log_softmax"}
_NORMS = {"linalg_vector_norm", "norm", "frobenius_norm"}
_TELLING = re.compile(r"embed|project|encod|latent|feature|descriptor|backbone|representation", re.IGNORECASE)
_HEADS = ("fc", "head", "heads", "classifier", "last_linear")

CLASSES, UNKNOWN, EMBEDDING = "classes", "unknown", "embedding"


@dataclass(frozen=True)
class Head:
    """What an output (B, K) is: ``classes``, ``embedding`` or ``unknown``, and why."""

    kind: str
    why: str


@dataclass(frozen=True)
class Probe:
    """What one forward pass said.

    Attributes:
        layout: the axes of every tensor among the inputs.
        scores: the class scores in the output, or why there are none.
        head: what the scores are, None where there are none.
        width: how many class scores there are, None where that isn't known.
        mixed_by: what works over all images of a batch, so that each one's output depends on the others.
        drawn_by: what draws random numbers, so that the output for one image is another each time.
        kept_in: attributes that a pass changes and on which the output of the next one depends.
    """

    layout: list[Kinds]
    scores: Scores
    head: Head | None
    width: int | None
    mixed_by: tuple[str, ...] = ()
    drawn_by: tuple[str, ...] = ()
    kept_in: tuple[str, ...] = ()

    def find_obstacle(self) -> tuple[str, bool]:
        """Say why the output holds no class scores, and whether that is certain; empty if it does."""
        if self.head is None:
            return str(self.scores.reason), True
        if self.head.kind in (EMBEDDING, UNKNOWN):
            reason = f"its {self.scores.where} isn't known to be class scores: {self.head.why}"
            return reason, self.head.kind == EMBEDDING
        return "", False


def probe(model: nn.Module, inputs: Inputs, chosen: bool = False) -> Probe:
    """Run a model once on stand-ins and say what its inputs and outputs are.

    Args:
        model: any module.
        inputs: what it is called with, of one image.
        chosen: whether the user has a function of their own from the output to the class scores.

    Raises:
        SpectralError: if its forward fails on the inputs.

    Example:
        >>> import torch
        >>> from spectral.network import make_inputs
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> probe(net, make_inputs(torch.rand(1, 3, 8, 8))).head.kind
        'classes'
        >>> net.insert(1, nn.ReLU())[-1]
        Flatten(start_dim=1, end_dim=-1)
        >>> probe(net, make_inputs(torch.rand(1, 3, 8, 8))).head
        Head(kind='unknown', why='it is computed by relu, not by a last linear layer')
    """

    def watch(
        running: nn.Module, standins: Inputs, weights: Sequence[Tensor], forward: Callable[[], Any]
    ) -> tuple[Probe, Changes, tuple[str, ...]]:
        names = [name for name, _ in running.named_parameters()]
        trace = _Trace(standins, dict(zip(map(id, weights), names, strict=False)))
        with trace, noted_changes(running) as changes:
            output = forward()
            # The user's own function may read values, which stand-ins don't have.
            scores = Scores(None, "logits=(output)") if chosen else read_scores(output, standins.count)
        head = Head(CLASSES, "logits= gives it") if chosen else None
        if scores.values is not None:
            head = _judge(model, scores, trace)
        width = None if scores.values is None else scores.values.shape[-1]
        told = Scores(None, scores.where, scores.reason, scores.expected)
        mixed, drawn = trace.find_mixing(output), trace.find_draws(output)
        return Probe(trace.layout(standins), told, head, width, mixed, drawn), changes, trace.find_read()

    found, seen, read = run_on_standins(model, inputs, watch)
    changes = confirm_changes(model, inputs, seen)
    drawn, mixed = (*found.drawn_by, *changes.drawn), found.mixed_by
    # Else it is known already, or two passes differ anyway.
    if read and not (mixed or drawn) and depends_on_others(model, inputs):
        mixed = (f"a branch on {', '.join(read)}",)
    return replace(found, mixed_by=mixed, drawn_by=drawn, kept_in=changes.kept)


def is_taken(model: nn.Module, inputs: Inputs, data: bool = False) -> bool:
    """Whether a model can be called so, as far as a copy of it tells.

    Args:
        model: any module.
        inputs: what it is called with.
        data: whether it runs on these values, as few models need, and not on stand-ins.

    Example:
        >>> import torch
        >>> from spectral.network import make_inputs
        >>> [is_taken(nn.Conv2d(3, 4, 3), make_inputs(torch.zeros(2, n, 8, 8))) for n in (3, 1)]
        [True, False]
    """

    def watch(copy: nn.Module, own: Inputs, weights: Sequence[Tensor], forward: Callable[[], Any]) -> bool:
        with Dataless():
            forward()
        return True

    with suppress(SpectralError):
        return (
            run_on_copy(model, inputs, watch)
            if data
            else run_on_standins(model, inputs, watch, or_real=False)
        )
    return False


@dataclass
class _Node:
    """What computed a tensor: an operator, from which tensors of the image, with which weight."""

    name: str
    parents: list[_Node] = field(default_factory=list)
    weight: str = ""
    mixes: bool = False  # images of a batch


Origin = tuple[int, int]  # which tensor among the inputs, and which of its axes


class _Trace(TorchDispatchMode):
    """Keeps what computed each tensor of the image, and where the axes of the inputs go at first."""

    def __init__(self, inputs: Inputs, weights: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = dict(weights)
        self.nodes: TensorTable[_Node] = TensorTable()
        self._origins: TensorTable[tuple[frozenset[Origin], ...]] = TensorTable()
        self._spatial: dict[int, tuple[int, ...]] = {}  # of each input, the axes slid over
        self._told: set[int] = set()  # inputs of which it is known where their channels are, too
        self._batch, self._draws = BatchAxis(inputs), Draws()
        self._read: list[_Node] = []
        for number, (x, _) in enumerate(inputs.every_tensor()):
            self.nodes[x] = _Node("input")
            self._origins[x] = tuple(frozenset({(number, axis)}) for axis in range(x.ndim))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and note it."""
        name = tell_name(func)
        given = [x for x in _flatten((*args, *(kwargs or {}).values())) if isinstance(x, Tensor)]
        parents = [self.nodes[x] for x in given if x in self.nodes]
        mixes = bool(parents) and self._batch.is_mixed_by(func, args, kwargs or {})
        out = run_operator(func, args, kwargs or {})
        results = [x for x in _flatten((out,)) if isinstance(x, Tensor)]
        if parents and isinstance(out, (bool, int, float)):
            self._read += parents
        if parents and results:
            self._see_axes(func, args, kwargs or {}, given, results[0])
        self._draws.follow(func, args, kwargs or {}, given, bool(parents), results)
        if parents:
            weight = next((self._name(x) for x in given if x not in self.nodes and self._name(x)), "")
            for made in results:
                if made not in self.nodes or name.endswith("_"):
                    self.nodes[made] = _Node(name, parents, weight, mixes)
                self._follow_axes(name, args, given, made)
                self._batch.follow(func, args, kwargs or {}, made)
        return out

    def find_mixing(self, output: Any) -> tuple[str, ...]:
        """Name what works over all images of a batch on the way to what the output has for each of them."""
        made = [x for x in tree_leaves(output) if isinstance(x, Tensor) and self._batch.has_all(x)]
        return _name_mixing(self.nodes[x] for x in made if x in self.nodes)

    def find_read(self) -> tuple[str, ...]:
        """Name what works over all images of a batch on the way to the numbers that Python has read."""
        return _name_mixing(self._read) or (("a value",) if self._read else ())

    def find_draws(self, output: Any) -> tuple[str, ...]:
        """Name what drew random numbers on which the pass depends."""
        return self._draws.find(x for x in tree_leaves(output) if isinstance(x, Tensor))

    def layout(self, inputs: Inputs) -> list[Kinds]:
        """Return the axes of every input: as they were slid over, else by their shapes."""
        guessed = guess_layout(inputs)
        places = {number: axes for number, axes in self._spatial.items() if axes}
        return [
            _name_axes(x, batched, places[number], guessed[number]) if number in places else guessed[number]
            for number, (x, batched) in enumerate(inputs.every_tensor())
        ]

    def _name(self, x: Tensor) -> str:
        base = x if x._base is None else x._base
        return self._weights.get(id(x)) or self._weights.get(id(base)) or ""

    def _see_axes(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor], made: Tensor
    ) -> None:
        """Note which axes of which input an operator slides over, the first time that one does.

        Of an input without channels, or with one that it got on the way, such as signals (B, C, T) that a
        two-dimensional convolution takes for gray images, that are the axes along which the windows of any
        operator lie; not one of which each window has but one sample, or all.
        """
        source, name = given[0], tell_name(func)
        origins = self._origins.get(source)
        if origins is None:
            return
        if name == "unfold" and source.ndim == 3:  # of a signal; of an image each axis is cut by a call
            cut = origins[int(args[1]) % 3]
            self._spatial.update({n: (axis,) for n, axis in cut if not self._spatial.get(n)})
            self._told |= {n for n, _ in cut}
        weight = given[1] if len(given) > 1 else None
        count = _count_slid(name, weight)
        if not count or source.ndim < count:
            return
        kernel = _find_kernel(name, name_arguments(func, args, kwargs), weight, count)
        sizes = list(zip(kernel, source.shape[-count:], made.shape[-count:], strict=True))
        slides = [1 < k < n for k, n, _ in sizes]
        whole = [n > 1 == left and k in (0, n) for k, n, left in sizes]
        channels = origins[source.ndim - count - 1] if source.ndim > count else frozenset[Origin]()
        found = [origin for axis in origins[source.ndim - count :] for origin in sorted(axis)]
        for number in {number for number, _ in found} - self._told:
            known = any(n == number for n, _ in channels) and source.shape[-count - 1] > 1
            earlier = self._spatial.get(number, ())
            either = not earlier and not any(slides)  # nothing tells them apart, yet
            places = zip(origins[source.ndim - count :], slides, whole, strict=True)
            axes = {axis for own, slid, all_ in places for n, axis in own
                    if n == number and (known or ((slid or either) and not all_))}  # fmt: skip
            if known and not earlier:
                self._told.add(number)
            self._spatial[number] = tuple(sorted({*earlier, *axes}))

    def _follow_axes(self, name: str, args: Sequence[Any], given: Sequence[Tensor], made: Tensor) -> None:
        source = next((x for x in given if x in self._origins), None)
        if source is None or made.is_nested:  # whose images have sizes of their own
            return
        axes: tuple[frozenset[Origin], ...] = self._origins[source]
        count = _count_slid(name, given[1] if len(given) > 1 else None)
        if count:
            if source is given[0] and made.ndim == source.ndim > count:
                head = axes[: source.ndim - count - 1]
                self._origins[made] = (*head, frozenset(), *axes[source.ndim - count :])
            return
        moved = _move_axes(name, args, axes, tuple(source.shape), tuple(made.shape))
        if moved is not None:
            self._origins[made] = moved


def _name_mixing(nodes: Iterable[_Node]) -> tuple[str, ...]:
    """Name what works over all images of a batch among nodes and what computed them."""
    stack, seen, names = [*nodes], set[int](), dict[str, None]()
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack += node.parents
            if node.mixes:
                names[node.name.strip("_")] = None
    return tuple(names)


def _count_slid(name: str, weight: Tensor | None) -> int:
    """How many of the last axes an operator slides over: those of a convolution, a pool or a resize."""
    if "conv" in name and weight is not None:
        return weight.ndim - 2
    if "pool" in name or "upsample" in name:
        digits = re.search(r"([123])d", name)
        return int(digits.group(1)) if digits else 0
    return {"im2col": 2, "unfold": 0, "stft": 1, "grid_sampler_2d": 2, "pixel_unshuffle": 2}.get(name, 0)


def _find_kernel(name: str, told: Arguments, weight: Tensor | None, count: int) -> tuple[int, ...]:
    """Return how many samples a window has along each axis; 0 where that isn't known."""
    if "conv" in name and weight is not None:
        return tuple(weight.shape[2:])
    given = told.get("kernel_size", 0)  # adaptive pools, resizes and unpooling have none
    sizes = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    return sizes if len(sizes) == count else sizes[:1] * count


def _move_axes(
    name: str,
    args: Sequence[Any],
    axes: tuple[frozenset[Origin], ...],
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> tuple[frozenset[Origin], ...] | None:
    """Tell where the axes of a tensor are in what was made of it; None where that isn't known."""
    rank, nothing = len(before), frozenset[Origin]()
    if name == "permute":
        return tuple(axes[a] for a in args[1])
    if name in ("transpose", "transpose_", "swapaxes", "t"):
        first, second = (int(a) % rank for a in args[1:3]) if len(args) > 2 else (0, rank - 1)
        order = list(axes)
        order[first], order[second] = order[second], order[first]
        return tuple(order)
    if name == "select":
        return tuple(a for i, a in enumerate(axes) if i != int(args[1]) % rank)
    if name in _PRODUCTS:
        return None
    if len(after) == rank and name not in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return axes
    # Views and the like: axes that keep their extent at both ends; what lies between has been mixed.
    head = _count_alike(before, after)
    tail = min(_count_alike(before[::-1], after[::-1]), min(rank, len(after)) - head)
    between = len(after) - head - tail
    return (*axes[:head], *[nothing] * between, *axes[rank - tail :])


def _count_alike(before: Sequence[int], after: Sequence[int]) -> int:
    count = 0
    for a, b in zip(before, after, strict=False):
        if a != b:
            break
        count += 1
    return count


def _name_axes(x: Tensor, batched: bool, spatial: Sequence[int], guessed: Kinds) -> Kinds:
    """Name the axes of an input of which the spatial ones are known."""
    chosen = sorted(set(spatial))[-len(SPATIAL) :]
    names = dict(zip(chosen, SPATIAL[-len(chosen) :], strict=True))
    if [kind for kind in guessed if kind in SPATIAL] == [] and not names:
        return guessed
    return tuple(names.get(axis) or ("b" if batched and axis == 0 else "c") for axis in range(x.ndim))


def _judge(model: nn.Module, scores: Scores, trace: _Trace) -> Head:
    """Say whether an output (B, K) are class scores."""
    assert scores.values is not None
    if scores.where.endswith(("logits", 'logits"]')):
        return Head(CLASSES, f"it is {scores.where}")
    node = trace.nodes.get(scores.values)
    ends = list(_walk(node)) if node is not None else []
    if any(end.name == "sigmoid" for end in ends):
        return Head(UNKNOWN, "it is computed by sigmoid, a probability of its own for each of them")
    declared, count = count_declared_classes(model), scores.values.shape[1]
    if declared == 0:
        return Head(EMBEDDING, "the network's num_classes is 0")
    if declared == count:
        return Head(CLASSES, f"the network says that it has {count} classes")
    if node is None:
        return Head(UNKNOWN, "what computes it can't be followed")
    if any(end.name in _NORMS for end in ends):
        return Head(EMBEDDING, "its rows are normalised to unit length")
    other = next((end for end in ends if end.name not in _PRODUCTS and "conv" not in end.name), None)
    if other is not None:
        empty = next((name for name in _HEADS if _is_empty(model, name)), None)
        if empty is not None:
            return Head(EMBEDDING, f"the network's {empty!r} is an Identity")
        return Head(UNKNOWN, f"it is computed by {_describe(other)}, not by a last linear layer")
    named = next((word for word in _list_names(model, ends) if _TELLING.search(word)), None)
    if named is not None:
        return Head(UNKNOWN, f"it comes from {named!r}, the name of an embedding")
    return Head(CLASSES, f"it comes from {ends[0].weight.rpartition('.')[0] or 'a linear layer'}")


def _walk(node: _Node) -> Iterator[_Node]:
    """Go back through what is linear, to what is not or to the layers that are learned."""
    stack, seen = [node], set()
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        two = one.name in _TWO_SIDED and len(one.parents) > 1
        if two and any(n.name in _NORMS for parent in one.parents for n in _list_near(parent)):
            yield _Node("norm")
        elif (one.name in _LINEAR and not two) or one.name in _PROBABILITIES or _is_mean_pool(one.name):
            stack += one.parents
        else:
            yield one


def _list_near(node: _Node, steps: int = 4) -> Iterator[_Node]:
    """List what a norm's value goes through before it divides: a clamp, an expansion."""
    yield node
    if steps and len(node.parents) == 1 and node.name not in _PRODUCTS:
        yield from _list_near(node.parents[0], steps - 1)


def _is_mean_pool(name: str) -> bool:
    return "avg_pool" in name or "upsample" in name


def _describe(node: _Node) -> str:
    return "nothing but the image" if node.name == "input" else node.name.strip("_")


def _list_names(model: nn.Module, ends: Sequence[_Node]) -> list[str]:
    """List the names that may tell what an output is: of its last layers, and of the network's class."""
    return [*(end.weight.rpartition(".")[0] for end in ends), type(model).__name__]


def _is_empty(model: nn.Module, name: str) -> bool:
    """Whether a head is there and does nothing."""
    head = getattr(model, name, None)
    inner = getattr(head, "fc", None)
    return isinstance(head, nn.Identity) or isinstance(inner, nn.Identity)


def _flatten(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if isinstance(value, Mapping):
            flat += _flatten(list(value.values()))
        else:
            flat += _flatten(value) if isinstance(value, (tuple, list)) else [value]
    return flat
