"""Where in a model's code something runs: which functions are running, and how far each has come.

A running count takes an operator for another as soon as a branch runs that didn't before. The place in the
code stays what it is: in evaluation and in training, on tensors without data, in copies of the model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

import torch

_MOST = 4096  # steps that are kept
# A function, and the expression that is running in it: line, from the function's first, and columns.
Step = tuple[str, int, int, int]
Steps = tuple[Step, ...]

# By which code it is: the code of two classes' methods is equal where it differs in nothing but their names.
_KNOWN: dict[tuple[int, int], tuple[CodeType, Step]] = {}

_TORCH = str(Path(torch.__file__).parent) + "/"
_PACKAGE = str(Path(__file__).parents[1]) + "/"
_MODELS = (_PACKAGE + "models/", _PACKAGE + "layers/")  # the rooms whose code is what runs, not what watches


@dataclass(frozen=True)
class Place:
    """The place of an operator in the pass in which it was found.

    Attributes:
        outer: the steps from the model's forward to the call of the owner.
        own: the steps from the owner's forward to the operator.
        call: which of the calls of the owner made at ``outer``.
        turn: which of the operators of its family run at ``own`` in one call.
        calls: how many calls of the owner there were, at ``outer`` and in all.
        turns: how many operators of its family there were in one call, at ``own`` and in all.
    """

    outer: Steps = ()
    own: Steps = ()
    call: int = 0
    turn: int = 0
    calls: tuple[int, int] = (1, 1)
    turns: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Spot:
    """One output of one operator of a call.

    Attributes:
        operator: the operator's name.
        own: the steps from the owner's forward to it.
        turn: which of the operators of this name at this place it is.
        entry: which of its outputs.
    """

    operator: str
    own: Steps
    turn: int
    entry: int = 0


@dataclass(frozen=True)
class Ending:
    """Where the output of a site appears that several operators make.

    Attributes:
        spots: the tensors that it consists of.
        axis: along which they are stacked; None where it is one tensor.
    """

    spots: tuple[Spot, ...]
    axis: int | None = None


def find_steps(stop: FrameType | None, start: FrameType | None = None) -> Steps:
    """List the functions of the model that are running, the outermost first, with the line each has reached.

    Those of torch and of this package are left out: they differ with modes, hooks and devices.

    Args:
        stop: the frame below which to stop, itself left out; None for all.
        start: the frame to begin with; that of the caller by default.

    Example:
        >>> def forward():
        ...     return find_steps(sys._getframe(1))
        >>> [name for name, *_ in forward()]
        ['forward']
    """
    frame = start if start is not None else sys._getframe(1)
    steps = []
    while frame is not None and frame is not stop:
        code = frame.f_code
        if _is_watched(code.co_filename):
            steps.append(_find_step(code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(steps))


def are_alike(found: Steps, ran: Steps) -> bool:
    """Whether two lists end in the same steps: one may begin further out than the other.

    Example:
        >>> pool, net = ("forward", 3, 8, 20), ("step", 9, 4, 12)
        >>> are_alike((pool,), (net, pool)), are_alike((pool,), (net,)), are_alike((pool,), ())
        (True, False, False)
    """
    n = min(len(found), len(ran))
    return found == ran if n == 0 else found[-n:] == ran[-n:]


@lru_cache(maxsize=1024)
def _is_watched(filename: str) -> bool:
    return not filename.startswith((_TORCH, _PACKAGE)) or filename.startswith(_MODELS)


def _find_step(code: CodeType, offset: int) -> Step:
    """Find the expression that runs in a function, once for each."""
    found = _KNOWN.get((id(code), offset))
    if found is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        found = _KNOWN[id(code), offset] = code, _read_step(code, offset)
    return found[1]


def _read_step(code: CodeType, offset: int) -> Step:
    # Not the offset itself: how the interpreter has specialised a call moves it by some bytes.
    line, _, first, last = next(islice(code.co_positions(), max(offset, 0) // 2, None))
    down = (line or code.co_firstlineno) - code.co_firstlineno
    if first is None or last is None:  # Python was told to keep no columns
        first = last = -1
    return code.co_qualname, down, first, last
