"""What a pass has computed, for the next one on the same images, as long as that does the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEMO_BYTES = 2**27  # of one pass
STEADY = frozenset({
    "conv1d", "conv2d", "conv3d", "linear", "batch_norm", "group_norm", "layer_norm", "add", "sub", "mul",
    "cat", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "hardsigmoid",
    "hardswish", "permute",
})  # fmt: skip
"""Functions that give the same for the same: by their names, no random numbers are drawn in them."""


@dataclass(frozen=True)
class _Step:
    """One function of a pass: what ran, on what, and what it gave."""

    what: tuple[Any, ...]
    leaves: Sequence[Any]
    output: Tensor
    versions: tuple[int, ...]  # of all these tensors: whether one was written into since

    def is_intact(self) -> bool:
        return self.versions == _find_versions((*self.leaves, self.output))


class Memo:
    """The functions of the latest pass, in their order.

    Passes that make different causes ideal are alike up to the first function in which they differ. What the
    pass before computed there is taken over: each function's arguments are compared, so that nothing depends
    on where the passes part. What was taken over is the very same tensor, so that most of them are compared
    at a glance; others value by value.
    """

    def __init__(self) -> None:
        self._before: list[_Step | None] = []
        self._now: list[_Step | None] = []
        self._together = False
        self._kept: set[int] = set()
        self._left = MEMO_BYTES

    def start(self) -> None:
        """Begin a pass, which is compared with the one before it."""
        self._before, self._now, self._together = self._now, [], True
        self._kept, self._left = set(), MEMO_BYTES

    def forget(self) -> None:
        """Let go of all that was computed."""
        self._before, self._now, self._together = [], [], False

    def recall(
        self, what: tuple[Any, ...], args: Sequence[Any], kwargs: Mapping[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Return what the pass before computed in this place, or run.

        Args:
            what: the function, and what of it is ideal.
            args: its positional arguments.
            kwargs: its named ones.
            run: computes it.
        """
        leaves = list(_list_leaves((args, *kwargs.items())))
        place = len(self._now)
        if self._together:
            step = self._before[place] if place < len(self._before) else None
            if step is not None and step.is_intact():
                if step.what == what and _are_equal(step.leaves, leaves):
                    self._keep(step)
                    return step.output
                self._together = False
        before = _find_versions(leaves)
        output = run()
        fits = isinstance(output, Tensor) and _find_versions(leaves) == before
        self._keep(_Step(what, leaves, output, (*before, output._version)) if fits else None)
        return output

    def _keep(self, step: _Step | None) -> None:
        """Keep a step, or leave its place empty: of a function that writes, or that doesn't fit any more."""
        for x in (*step.leaves, step.output) if step else ():
            if isinstance(x, Tensor) and id(x) not in self._kept:
                self._kept.add(id(x))  # steps hold their tensors, so that no other has this number
                self._left -= x.numel() * x.element_size()
        self._now.append(step if self._left > 0 else None)


def _list_leaves(values: Iterable[Any]) -> Iterator[Any]:
    """List what is in lists and tuples, each behind its length: two of the same leaves are alike."""
    for value in values:
        if isinstance(value, list | tuple):
            yield len(value)
            yield from _list_leaves(value)
        else:
            yield value


def _find_versions(leaves: Sequence[Any]) -> tuple[int, ...]:
    return tuple(leaf._version for leaf in leaves if isinstance(leaf, Tensor))


def _are_equal(before: Sequence[Any], now: Sequence[Any]) -> bool:
    if len(before) != len(now):
        return False
    for a, b in zip(before, now, strict=True):
        if a is b:
            continue
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return False
        if isinstance(a, Tensor):
            if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) or not torch.equal(a, b):
                return False
        elif a != b:
            return False
    return True
