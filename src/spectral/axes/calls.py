"""One call of an operator on tensors whose axes are known, and what its schema tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from spectral.axes.labels import (
    LOST,
    Axis,
    Labels,
    single,
    unknown,
)
from spectral.operators import Arguments, Operator, find_sliding, name_arguments, tell_facts


class Call:
    """One operator that has run, made once and taken by all that follow the pass.

    What is known of its tensors is filled in by the tracker that reads it.

    Args:
        func: the operator.
        args: its positional arguments.
        kwargs: its named ones.
        out: what it returned.

    Attributes:
        facts: what is known of the operator.
        inputs: the tensors among its arguments.
        outputs: the tensors it returned.
        sources: those of the inputs that were computed from the image.
        labels: of a tensor, all "?" where nothing is known.
        known: whether a tensor was computed from the image.
        value: of a tensor that doesn't depend on the image, where it can be told.
        number: a new number, for the factors that it cuts.
        strict: whether fixed numbers that can't be told are worth a pass with data.
    """

    labels: Callable[[Tensor], Labels]
    known: Callable[[Tensor], bool]
    value: Callable[[Tensor], Tensor | None]
    number: int
    strict: bool

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.facts = tell_facts(func)
        self.inputs = tensors_of(args)
        if kwargs:
            self.inputs += tensors_of(tuple(kwargs.values()))
        self.outputs = tensors_of(out)
        self.sources: list[Tensor] = []
        self._a: Arguments | None = None
        self._sliding: tuple[tuple[Operator, int] | None] | None = None

    @property
    def name(self) -> str:
        """The operator's name, without namespace and overload."""
        return self.facts.name

    @property
    def a(self) -> Arguments:
        """Its arguments by name."""
        if self._a is None:
            self._a = name_arguments(self.func, self.args, self.kwargs)
        return self._a

    @property
    def sliding(self) -> tuple[Operator, int] | None:
        """What slides over the last axes of its input, and over how many; None if nothing does."""
        if self._sliding is None:
            self._sliding = (find_sliding(self.func, self.a),)
        return self._sliding[0]

    @property
    def source(self) -> Tensor:
        """The first tensor that was computed from the image."""
        return self.sources[0]


Rule = Callable[[Call], list[Labels]]


class NeedsDataError(Exception):
    """What is picked depends on fixed numbers, which a pass without data doesn't have."""


def align(call: Call, result: Tensor) -> Labels:
    """Label what is computed sample by sample: axes correspond from the last, an extent of 1 to any."""
    if _is_like_first(call, result):
        return call.labels(call.source)
    labels: list[Axis] = list(unknown(result.shape))
    for x in (t for t in call.sources if t.ndim <= result.ndim):
        for offset, axis in enumerate(reversed(call.labels(x)), start=1):
            empty = labels[-offset] == single(LOST, result.shape[-offset])
            if x.shape[-offset] == result.shape[-offset] and empty:
                labels[-offset] = axis
    return tuple(labels)


def replaced(labels: Labels, axis: int, new: Axis) -> Labels:
    """Return labels with another axis in one place."""
    return (*labels[:axis], new, *labels[axis + 1 :])


def _is_like_first(call: Call, result: Tensor) -> bool:
    """Whether a result has all axes of the first tensor of the image, so that no other has any to add."""
    first = call.source
    if first.shape != result.shape:
        return False
    if len(call.sources) == 1:
        return True
    labels = call.labels(first)
    return all(axis.only is None or axis.only.kind != LOST for axis in labels)


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in what an operator takes or returns: in lists and tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    for one in value if isinstance(value, (tuple, list)) else ():
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (tuple, list)):
            found += tensors_of(one)
    return found


def is_lattice(labels: Labels) -> bool:
    """Whether rows, columns or frames are known of a tensor."""
    return any(axis.image for axis in labels)
