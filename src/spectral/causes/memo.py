"""What a pass has computed, for the next one on the same images, as long as that does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

MEMO_BYTES = 2**27  # of one pass


@dataclass(frozen=True)
class _Step:
    """One operator of a pass: what ran, on which tensors, and what it gave."""

    what: tuple[Any, ...]
    leaves: tuple[Any, ...]
    output: Tensor
    versions: tuple[int, ...]  # of all these tensors: whether one was written into since

    def is_intact(self) -> bool:
        return self.versions == _find_versions((*self.leaves, self.output))


class Memo:
    """The costly operators of the latest pass, in their order.

    Passes that make different causes ideal are alike up to the first operator in which they differ. What the
    pass before computed there is taken over: each operator's arguments are compared, value by value, so that
    nothing depends on where the passes part.
    """

    def __init__(self) -> None:
        self._before: list[_Step] = []
        self._now: list[_Step] = []
        self._together = False
        self._left = MEMO_BYTES

    def start(self) -> None:
        """Begin a pass, which is compared with the one before it."""
        self._before, self._now, self._together = self._now, [], True
        self._left = MEMO_BYTES

    def forget(self) -> None:
        """Let go of all that was computed."""
        self._before, self._now, self._together = [], [], False

    def recall(
        self, what: tuple[Any, ...], args: Sequence[Any], kwargs: Mapping[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Return what the pass before computed in this place, or run.

        Args:
            what: the operator, and what of it is ideal.
            args: its positional arguments.
            kwargs: its named ones.
            run: computes it.
        """
        leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
        what = (*what, str(structure))
        place = len(self._now)
        if self._together and place < len(self._before):
            step = self._before[place]
            if step.what == what and step.is_intact() and _are_equal(step.leaves, leaves):
                self._now.append(step)
                return step.output
        self._together = False
        output = run()
        if isinstance(output, Tensor):
            self._left -= sum(
                x.numel() * x.element_size() for x in (*leaves, output) if isinstance(x, Tensor)
            )
            if self._left > 0:  # what doesn't fit is computed anew
                versions = _find_versions((*leaves, output))
                self._now.append(_Step(what, tuple(leaves), output, versions))
        return output


def _find_versions(leaves: Sequence[Any]) -> tuple[int, ...]:
    return tuple(leaf._version for leaf in leaves if isinstance(leaf, Tensor))


def _are_equal(before: Sequence[Any], now: Sequence[Any]) -> bool:
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
