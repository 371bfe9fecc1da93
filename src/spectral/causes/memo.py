"""What a pass has computed, for later ones on the same images, or on these moved, that do the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral.numerics.finer import Axes

MEMO_BYTES = 2**27  # of one pass
STEADY = frozenset({
    "conv1d", "conv2d", "conv3d", "linear", "batch_norm", "group_norm", "layer_norm", "add", "sub", "mul",
    "cat", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "hardsigmoid",
    "hardswish", "permute",
})  # fmt: skip
"""Functions that give the same for the same: by their names, no random numbers are drawn in them."""

Move = Mapping[str, int]  # samples of the images, along each kind of axis


@dataclass(frozen=True)
class Lattices:
    """Image axes of what a function that is equivariant to shifts takes and gives.

    Attributes:
        entering: of each tensor among its arguments; None of one that is no map.
        leaving: of what it returns.
    """

    entering: Sequence[Axes | None]
    leaving: Axes


@dataclass(frozen=True)
class Turn:
    """Of which images a pass is.

    Attributes:
        key: names the pass.
        other: names an earlier pass, of the same network.
        move: by how much that one's images are moved to be this one's.
        later: the same of later passes to this one.
    """

    key: Hashable
    other: Hashable = None
    move: Move = field(default_factory=dict)
    later: Sequence[Move] = ()


@dataclass(frozen=True)
class _Step:
    """One function of a pass: what ran, on what, and what it gave."""

    what: tuple[Any, ...]
    leaves: Sequence[Any]
    output: Tensor
    versions: tuple[int, ...]  # of all these tensors: whether one was written into since

    def is_intact(self) -> bool:
        return self.versions == _find_versions((*self.leaves, self.output))


class _Steps:
    """The functions of a pass in their order; None in the place of one that isn't kept."""

    def __init__(self) -> None:
        self._steps: list[_Step | None] = []
        self._kept: set[int] = set()
        self._left = MEMO_BYTES

    def __len__(self) -> int:
        return len(self._steps)

    def find(self, place: int) -> _Step | None:
        return self._steps[place] if place < len(self._steps) else None

    def add(self, step: _Step | None) -> None:
        """Keep a step, or leave its place empty: of a function that writes, or that doesn't fit any more."""
        for x in (*step.leaves, step.output) if step else ():
            if isinstance(x, Tensor) and id(x) not in self._kept:
                self._kept.add(id(x))  # steps hold their tensors, so that no other has this number
                self._left -= x.numel() * x.element_size()
        self._steps.append(step if self._left > 0 else None)


class Memo:
    """The functions of the latest pass, in their order, and of passes on images that later ones have moved.

    Passes that make different causes ideal are alike up to the first function in which they differ. What the
    pass before computed there is taken over: each function's arguments are compared, so that nothing depends
    on where the passes part. What was taken over is the very same tensor, so that most of them are compared
    at a glance; others value by value.

    A function that is equivariant gives for moved maps what it gave for these, moved. Whether its arguments
    are those of an earlier pass, moved by whole samples, is compared value by value too.

    Args:
        extents: of the images, along each kind of axis.
    """

    def __init__(self, extents: Mapping[str, int] | None = None) -> None:
        self._extents = dict(extents or {})
        self._before, self._now = _Steps(), _Steps()
        self._together = False
        self._turn = Turn(None)
        self._other: _Steps | None = None
        self._passes: dict[Hashable, tuple[_Steps, list[Move]]] = {}  # and what later ones are still to come

    def expect(self, turn: Turn) -> None:
        """Say of which images the next pass is."""
        self._turn = turn

    def start(self) -> None:
        """Begin a pass, which is compared with the one before it, and with that of which it is a moved one."""
        self._before, self._now, self._together = self._now, _Steps(), True
        turn, self._other = self._turn, None
        if turn.other in self._passes:
            self._other, later = self._passes[turn.other]
            later.remove(turn.move)
            if not later:
                del self._passes[turn.other]
        if turn.later:
            self._passes[turn.key] = _Steps(), list(turn.later)

    def forget(self) -> None:
        """Let go of what the latest pass computed."""
        self._before, self._now, self._together = _Steps(), _Steps(), False

    def recall(
        self,
        what: tuple[Any, ...],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run: Callable[[], Any],
        lattices: Lattices | None = None,
    ) -> Any:
        """Return what the pass before computed in this place, or another one for these maps moved; or run.

        Args:
            what: the function, and what of it is ideal.
            args: its positional arguments.
            kwargs: its named ones.
            run: computes it.
            lattices: of a function that is equivariant to shifts; None of any other.
        """
        leaves = list(_list_leaves((args, *kwargs.items())))
        place = len(self._now)
        if self._together:
            step = self._before.find(place)
            if step is not None and step.is_intact():
                if step.what == what and _are_equal(step.leaves, leaves):
                    self._keep(step, lattices)
                    return step.output
                self._together = False
        output = self._find_moved(what, leaves, lattices) if self._other is not None and lattices else None
        before = _find_versions(leaves)
        if output is None:
            output = run()
        fits = isinstance(output, Tensor) and _find_versions(leaves) == before
        self._keep(_Step(what, leaves, output, (*before, output._version)) if fits else None, lattices)
        return output

    def _find_moved(self, what: tuple[Any, ...], leaves: Sequence[Any], lattices: Lattices) -> Tensor | None:
        """Return what another pass computed in this place, moved, if the arguments are that one's moved."""
        assert self._other is not None
        step = self._other.find(len(self._now))
        if step is None:
            return None
        steps = self._find_shifts(step, lattices, self._turn.move)
        if steps is None:
            return None
        *entering, leaving = steps
        moved = iter(entering)
        if step.what == what and step.is_intact():
            given = [_roll(x, next(moved)) if isinstance(x, Tensor) else x for x in step.leaves]
            if _are_equal(given, leaves):
                return _roll(step.output, leaving)
        self._other = None  # nothing behind it is alike
        return None

    def _find_shifts(self, step: _Step, lattices: Lattices, move: Move) -> list[dict[int, int]] | None:
        """Return by how much a step's tensors are moved along their axes; None if not by whole samples."""
        tensors = [x for x in (*step.leaves, step.output) if isinstance(x, Tensor)]
        known = (*lattices.entering, lattices.leaving)
        if len(known) != len(tensors):
            return None
        found = []
        for x, axes in zip(tensors, known, strict=True):
            own = {}
            for kind, axis in (axes or {}).items():
                shift, rest = divmod(move.get(kind, 0) * x.shape[axis], self._extents.get(kind, 1))
                if rest:
                    return None
                own[axis] = shift
            found.append(own)
        return found

    def _keep(self, step: _Step | None, lattices: Lattices | None) -> None:
        self._now.add(step)
        if self._turn.key in self._passes:
            steps, _ = self._passes[self._turn.key]
            fits = (
                step is not None
                and lattices is not None
                and any(self._find_shifts(step, lattices, move) is not None for move in self._turn.later)
            )
            steps.add(step if fits else None)


def _roll(x: Tensor, shifts: Mapping[int, int]) -> Tensor:
    """Move a map circularly along some axes."""
    own = {axis: shift for axis, shift in shifts.items() if shift % x.shape[axis]}
    return x.roll(tuple(own.values()), tuple(own)) if own else x


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
