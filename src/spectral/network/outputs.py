"""Where the class scores are in what a model returns, and why there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from spectral.errors import SpectralError

SLOTS = ("logits", "out")  # of transformers' and torchvision's outputs
ADVICE = "pass logits=, a function from the output to class scores (B, K)"
# Rows that add up to 1 as nearly as their type can tell are probabilities already.
_SUM_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4}

Take = Callable[[Any], Any]


@dataclass(frozen=True)
class Scores:
    """The class scores (B, K) of a batch, or the reason why there are none.

    Attributes:
        values: the scores, None where there are none.
        where: which part of the output they are, such as ``output.logits``.
        reason: why there are none, None where there are some.
        expected: what was asked for and what came instead, where there are none.
    """

    values: Tensor | None
    where: str
    reason: str | None = None
    expected: str = ""

    @property
    def are_probabilities(self) -> bool:
        """Whether every row is a distribution already, as behind a softmax that is part of the model."""
        return self.values is not None and bool(self._find_distributions(self.values))

    def require(self) -> None:
        """Make sure that there are scores.

        Raises:
            SpectralError: if there are none.
        """
        if self.values is None:
            raise SpectralError(f"{self.expected}; {ADVICE}")

    def finite(self) -> Tensor:
        """Return the scores (B, K) in float64, as they are.

        Raises:
            SpectralError: if there are no scores, or not all are finite.
        """
        self.require()
        assert self.values is not None
        if not torch.isfinite(self.values).all():
            raise SpectralError(
                "the model's logits have NaN or infinite values; check its weights and the input"
            )
        return self.values.double()

    def probabilities(self) -> Tensor:
        """Return the probabilities (B, K) in float64: the softmax, or the scores where they are some already.

        Raises:
            SpectralError: if there are no scores, or not all are finite.
        """
        self.finite()
        return self.find_probabilities()

    def find_probabilities(self) -> Tensor:
        """`probabilities` without looking at values on the host: NaN where scores aren't finite.

        Raises:
            SpectralError: if there are no scores.
        """
        self.require()
        assert self.values is not None
        scores = self.values.double()
        shares = scores / scores.sum(-1, keepdim=True)
        return torch.where(self._find_distributions(self.values), shares, scores.softmax(-1))

    @staticmethod
    def _find_distributions(x: Tensor) -> Tensor:
        """Whether every row is a distribution, as a tensor without axes."""
        excess = (x.detach().double().sum(-1) - 1).abs().amax()
        return (x >= 0).all() & (excess <= _SUM_TOLERANCE.get(x.dtype, 1e-6))


def read_scores(output: Any, batch: int, take: Take | None = None) -> Scores:
    """Find the class scores (B, K ≥ 2) in a model's output.

    They are what ``take`` makes of it; else the output itself, its ``logits`` or ``out`` (as an attribute or
    a key), or the same in the first item of a tuple or a list.

    Args:
        output: what the model returned.
        batch: how many images it was given.
        take: the user's own function.

    Example:
        >>> read_scores({"logits": torch.zeros(2, 10)}, batch=2).where
        'output["logits"]'
        >>> read_scores(torch.zeros(2, 64, 7, 7), batch=2).reason
        'its output (2, 64, 7, 7) is a map, not one row of class scores per image'
    """
    if take is not None:
        try:
            return _check(take(output), batch, "logits=(output)")
        except Exception as error:  # the user's function may raise anything
            what = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            raise SpectralError(f"logits= failed on {describe_output(output)}: {what}") from error
    found, where = _locate(output, "output")
    if found is None:
        what = describe_output(output)
        return Scores(None, where, f"its output, a {what}, has no logits", _expect(batch, what))
    return _check(found, batch, where)


def find_logits(output: Any, batch: int) -> Tensor | None:
    """Return the logits (B, K ≥ 2) in a model's output, as `read_scores` finds them; else None.

    Example:
        >>> find_logits((torch.zeros(2, 10), torch.zeros(2, 5)), batch=2).shape
        torch.Size([2, 10])
    """
    return read_scores(output, batch).values


def describe_output(output: Any) -> str:
    """Say in a few words what a model returned.

    Example:
        >>> describe_output({"boxes": torch.zeros(3, 4)}), describe_output([1, 2])
        ('dict of boxes', 'list of 2')
    """
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"nested tensor of {output.size(0)}" if output.is_nested else f"{tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{kind} of {shorten(', '.join(map(str, output)), 80)}"
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return f"{kind} of {', '.join(output._fields)}"
    return f"{kind} of {len(output)}" if isinstance(output, (tuple, list)) else kind


def _locate(output: Any, where: str) -> tuple[Tensor | None, str]:
    if isinstance(output, Tensor):
        return output, where
    for slot in SLOTS:
        if isinstance(getattr(output, slot, None), Tensor):
            return getattr(output, slot), f"{where}.{slot}"
        if isinstance(output, Mapping) and isinstance(output.get(slot), Tensor):
            return output[slot], f'{where}["{slot}"]'
    if isinstance(output, (tuple, list)) and output and not isinstance(output[0], str):
        return _locate(output[0], f"{where}[0]")
    return None, where


def _check(found: Any, batch: int, where: str) -> Scores:
    if not isinstance(found, Tensor) or found.is_nested:
        what = describe_output(found)
        return Scores(None, where, f"its {where}, a {what}, is no plain tensor", _expect(batch, what))
    shape = tuple(found.shape)
    if not found.is_floating_point():
        why = f"is of {str(found.dtype).removeprefix('torch.')}, no scores"
    elif found.ndim > 2:
        why = "is a map, not one row of class scores per image"
    elif found.ndim < 2 or shape[0] != batch:
        why = f"has not one row of class scores for each of {batch} images"
    elif shape[1] < 2:
        why = "is one number per image, not scores of classes"
    else:
        return Scores(found, where)
    return Scores(None, where, f"its {where} {shape} {why}", f"{_expect(batch, str(shape))}, which {why}")


def _expect(batch: int, got: str) -> str:
    return f"expected a classifier with logits of shape ({batch}, K ≥ 2), got {got}"
