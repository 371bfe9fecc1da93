"""What of a forward depends on the passes before it: what is kept, and NumPy's and Python's generators.

Whether anything of that kind changes is seen in a pass that is made anyway; what has changed is compared in
passes on real data only then, so that a cache or a draw that the output doesn't depend on isn't named.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.network.inputs import Inputs
from spectral.processes.surroundings import kept_surroundings
from spectral.tracing.reach import Reach
from spectral.tracing.standin import run_on_copy

_TOSSES = 8  # passes with other random numbers: one of two coins is the same in half of them
_ROUNDING = 1e-5  # of the largest value in single precision, far above what two equal passes differ by


@dataclass
class Changes:
    """What a pass has changed.

    Attributes:
        kept: paths of a network's attributes and buffers.
        drawn: names of the generators outside of it from which numbers were drawn.
    """

    kept: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()


@contextmanager
def noted_changes(model: nn.Module) -> Iterator[Changes]:
    """Note what changes inside, of a model and of all that its code can write to.

    Example:
        >>> net = nn.BatchNorm1d(3)
        >>> with noted_changes(net) as changes:
        ...     _, _ = net(torch.rand(2, 3)), random.random()
        >>> changes
        Changes(kept=('running_mean', 'running_var', 'num_batches_tracked'), drawn=('random',))
    """
    changes = Changes()
    reach, generators = Reach([model]), _read_generators()
    yield changes
    changes.kept = tuple(reach.find_changes())
    changes.drawn = tuple(name for name, state in _read_generators().items() if generators[name] != state)


def confirm_changes(model: nn.Module, inputs: Inputs, changes: Changes) -> Changes:
    """Return those kinds of changes on which the output for an image depends.

    Copies of the model run on real data, each from the same state and generators.

    Args:
        model: any module.
        inputs: of one image.
        changes: what a pass has changed.

    Example:
        >>> from spectral.network import make_inputs
        >>> confirm_changes(nn.Identity(), make_inputs(torch.rand(1, 3, 8, 8)), Changes(drawn=("random",)))
        Changes(kept=(), drawn=())
    """
    kept = drawn = False
    try:
        if changes.kept:
            (fresh,) = _run(model, inputs, [_Pass()])
            _, *later = _run(model, inputs, [_Pass(other=True), _Pass(), _Pass()])
            kept = any(_differ(fresh, one) for one in later)
        if changes.drawn:
            same = _run(model, inputs, [_Pass()] * _TOSSES)
            others = _run(model, inputs, [_Pass(skip=i) for i in range(_TOSSES)])
            drawn = any(_differ(*pair) for pair in zip(same, others, strict=True))
    except SpectralError:  # whoever measures it is told by the pass that fails then
        return Changes()
    return Changes(changes.kept if kept else (), changes.drawn if drawn else ())


class _Pass(NamedTuple):
    other: bool = False  # of another image
    skip: int = 0  # numbers that NumPy's and Python's generators have given before


def _run(model: nn.Module, inputs: Inputs, passes: Sequence[_Pass]) -> list[list[Tensor]]:
    """Run a copy several times, and return what each pass gives."""

    def watch(running: nn.Module, own: Inputs, *_: Any) -> list[list[Tensor]]:
        outputs = []
        for other, skip in passes:
            with kept_surroundings():
                np.random.random(skip)
                random.choices([0], k=skip)
                given = own.turn() if other else own
                output = running(*given.args, **given.kwargs)
            outputs.append([x.detach().clone() for x in tree_leaves(output) if isinstance(x, Tensor)])
        return outputs

    return run_on_copy(model, inputs, watch)


def _differ(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    if [(x.shape, x.dtype) for x in a] != [(x.shape, x.dtype) for x in b]:
        return True
    return any(not agree(x, y) for x, y in zip(a, b, strict=True))


def agree(x: Tensor, y: Tensor, rounding: float = _ROUNDING) -> bool:
    """Whether two outputs are the same but for rounding.

    Args:
        x: one.
        y: the other, of its shape and dtype.
        rounding: how far values may differ, as a share of the largest; of whole numbers none may.

    Example:
        >>> one = torch.tensor([1.0, torch.nan])
        >>> agree(one, one + 1e-6), agree(one, one + 1e-3)
        (True, False)
    """
    if not x.is_floating_point():
        return torch.equal(x, y)
    finite = x[x.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    units = torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps
    return torch.allclose(x, y, rtol=0, atol=rounding * max(units, 1) * largest, equal_nan=True)


def _read_generators() -> dict[str, bytes]:
    return {"random": pickle.dumps(random.getstate()), "numpy.random": pickle.dumps(np.random.get_state())}
