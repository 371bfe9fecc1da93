"""One call of an operator on tensors whose axes are known, and what its schema tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from spectral.axes.labels import (
    IMAGE_AXES,
    LOST,
    Axis,
    Labels,
    all_factors,
    single,
    unknown,
)
from spectral.operators import Arguments


@dataclass(frozen=True)
class Call:
    """One operator call, with what is known of the tensors in it.

    Attributes:
        func: the operator.
        a: its arguments by name.
        inputs: the tensors among them.
        outputs: the tensors it returned.
        labels: of a tensor, all "?" where nothing is known.
        known: whether a tensor was computed from the image.
        value: of a tensor that doesn't depend on the image, where it can be told.
        number: a new number, for the factors that it cuts.
        strict: whether fixed numbers that can't be told are worth a pass with data.
    """

    func: Any
    a: Arguments
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    labels: Callable[[Tensor], Labels]
    known: Callable[[Tensor], bool]
    value: Callable[[Tensor], Tensor | None]
    number: int
    strict: bool = True

    @property
    def source(self) -> Tensor:
        """The first tensor that was computed from the image."""
        return next(x for x in self.inputs if self.known(x))


Rule = Callable[[Call], list[Labels]]


class NeedsDataError(Exception):
    """What is picked depends on fixed numbers, which a pass without data doesn't have."""


def align(call: Call, result: Tensor) -> Labels:
    """Label what is computed sample by sample: axes correspond from the last, an extent of 1 to any."""
    labels: list[Axis] = list(unknown(result.shape))
    for x in (t for t in call.inputs if call.known(t) and t.ndim <= result.ndim):
        for offset, axis in enumerate(reversed(call.labels(x)), start=1):
            empty = labels[-offset] == single(LOST, result.shape[-offset])
            if x.shape[-offset] == result.shape[-offset] and empty:
                labels[-offset] = axis
    return tuple(labels)


def replaced(labels: Labels, axis: int, new: Axis) -> Labels:
    """Return labels with another axis in one place."""
    return (*labels[:axis], new, *labels[axis + 1 :])


def flatten(values: Any) -> list[Any]:
    """List what lists and tuples hold."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += flatten(value)
        else:
            found.append(value)
    return found


@cache
def writes_first(func: Any) -> bool:
    """Whether an operator writes into its first argument."""
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


@cache
def is_view(func: Any) -> bool:
    """Whether an operator returns a view of its first argument."""
    arguments = func._schema.arguments
    info = arguments[0].alias_info if arguments else None
    return info is not None and not info.is_write


def is_lattice(labels: Labels) -> bool:
    """Whether rows, columns or frames are known of a tensor."""
    return any(f.kind in IMAGE_AXES for f in all_factors(labels))
