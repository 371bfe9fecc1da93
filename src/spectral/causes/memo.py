"""What a pass has computed, for later ones on the same images, or on these moved, that do the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral.numerics.finer import Axes
from spectral.tracing.tensors import TensorTable

MEMO_BYTES = 2**27  # of one pass
CHANNELWISE = frozenset({"batch_norm"})
PLACEWISE = CHANNELWISE | {
    "add", "sub", "mul", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "sigmoid",
    "hardsigmoid", "hardswish",
}  # fmt: skip
"""Functions of each place of maps of one size; in some of one map alone, and of numbers for its channels."""
STEADY = PLACEWISE | {
    "conv1d", "conv2d", "conv3d", "linear", "group_norm", "layer_norm", "cat", "permute",
}  # fmt: skip
"""Functions that give the same for the same: by their names, no random numbers are drawn in them."""

Offset = Mapping[str, int]  # samples of the images, along each kind of axis


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
        shared: whether the next pass is one on the same images.
    """

    key: Hashable
    other: Hashable = None
    move: Offset = field(default_factory=dict)
    later: Sequence[Offset] = ()
    shared: bool = True


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

    def holds(self, x: Tensor) -> bool:
        return id(x) in self._kept

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

    A function that is equivariant gives for moved maps what it gave for these, moved. That its arguments are
    those of an earlier pass, moved by whole samples, is known from how they were made, or found likewise.

    Args:
        extents: of the images, along each kind of axis.
    """

    def __init__(self, extents: Mapping[str, int] | None = None) -> None:
        self._extents = dict(extents or {})
        self._before, self._now = _Steps(), _Steps()
        self._together = False
        self._turn = Turn(None)
        self._other: _Steps | None = None
        # passes that later ones are moved ones of, and by how much those are that are still to come
        self._passes: dict[Hashable, tuple[_Steps, list[Offset]]] = {}
        # maps of this pass: of which of another pass they are moved ones, by how much, and in which version
        self._moved: TensorTable[tuple[Tensor, dict[int, int], int]] = TensorTable()

    def expect(self, turn: Turn) -> None:
        """Say of which images the next pass is."""
        self._turn = turn

    def start(self) -> None:
        """Begin a pass: it is compared with the one before, and with that of which it is a moved one."""
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
        self._other = None

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
        if not (self._together or self._other is not None or self._turn.shared or self._turn.later):
            return run()
        leaves = list(_list_leaves((args, *kwargs.items())))
        if self._together:
            step = self._before.find(len(self._now))
            if step is not None and step.is_intact():
                if step.what == what and _are_equal(step.leaves, leaves):
                    self._keep(step, lattices)
                    return step.output
                self._together = False
        output = self._find_moved(what, leaves, lattices)
        before = _find_versions(leaves)
        if output is None:
            output = run()
        fits = isinstance(output, Tensor) and _find_versions(leaves) == before
        self._keep(_Step(what, leaves, output, (*before, output._version)) if fits else None, lattices)
        return output

    def _find_moved(
        self, what: tuple[Any, ...], leaves: Sequence[Any], lattices: Lattices | None
    ) -> Tensor | None:
        """Return what another pass computed in this place, moved, if the arguments are that one's moved."""
        step = self._other.find(len(self._now)) if self._other is not None else None
        if step is None or step.what != what or not step.is_intact() or len(step.leaves) != len(leaves):
            return None
        found = self._find_shifts(step, lattices, self._turn.move) if lattices else self._follow(step, leaves)
        if found is None:
            return None
        *entering, leaving = found
        shifts = iter(entering)
        for before, now in zip(step.leaves, leaves, strict=True):
            own = next(shifts) if isinstance(before, Tensor) else {}
            if not self._is_moved(before, now, own):
                self._other = None  # nothing behind it is alike
                return None
        output = _roll(step.output, leaving)
        if output is not step.output:
            self._moved[output] = step.output, leaving, output._version
        return output

    def _follow(self, step: _Step, leaves: Sequence[Any]) -> list[dict[int, int]] | None:
        """Return the same of a function of each place all of whose maps are known to be moved alike."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        known = [self._moved.get(x) for x in tensors]
        first = known[0] if known else None
        name = step.what[0].__name__
        if first is None or name not in PLACEWISE or step.output.shape != tensors[0].shape:
            return None
        if name in CHANNELWISE:
            if first[1].get(1):
                return None  # rows stand where it takes channels to be
            return [first[1], *({} for _ in tensors[1:]), first[1]]
        alike = all(x.shape == tensors[0].shape for x in tensors)
        same = all(other is not None and other[1] == first[1] for other in known)
        return [first[1]] * (len(tensors) + 1) if alike and same else None

    def _is_moved(self, before: Any, now: Any, shifts: dict[int, int]) -> bool:
        """Whether an argument is another pass's, moved: known from how it was made, or value by value."""
        if not isinstance(before, Tensor) or not isinstance(now, Tensor):
            return _are_equal([before], [now])
        known = self._moved.get(now)
        if known is not None and known[0] is before and known[1:] == (shifts, now._version):
            return True
        return _are_equal([_roll(before, shifts)], [now])

    def _find_shifts(self, step: _Step, lattices: Lattices, move: Offset) -> list[dict[int, int]] | None:
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
            steps.add(step if step is not None and self._may_follow(steps, step, lattices) else None)

    def _may_follow(self, steps: _Steps, step: _Step, lattices: Lattices | None) -> bool:
        """Whether a later pass can take a step over, moved."""
        if lattices is None:
            maps = [x for x in step.leaves if isinstance(x, Tensor)]
            return step.what[0].__name__ in PLACEWISE and bool(maps) and steps.holds(maps[0])
        return any(self._find_shifts(step, lattices, move) is not None for move in self._turn.later)


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
