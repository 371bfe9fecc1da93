"""Where in the code of a module's own forward a torch function is called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from spectral import tracker

# Names of functions, and line and column of the call in each, from the forward down to the torch function.
Place = tuple[tuple[str, int, int], ...]

_SKIPPED = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(tracker.__file__))
_CALLS = {nn.Module._call_impl.__code__}  # where the call of a module begins


@dataclass(frozen=True)
class Spot:
    """One place, and the frame in which the module's call that it belongs to began."""

    place: Place
    call: FrameType | None


def mark_call(code: CodeType) -> None:
    """Make known that a module's call may also begin in a function of ours."""
    _CALLS.add(code)


def find_spot() -> Spot:
    """Find where the code that runs now is, in the forward of the innermost module that is running."""
    place: list[tuple[str, int, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _CALLS:
        if not frame.f_code.co_filename.startswith(_SKIPPED):
            place.append(_locate(frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return Spot(tuple(reversed(place)), frame)


@lru_cache(4096)
def _locate(code: CodeType, instruction: int) -> tuple[str, int, int]:
    """Return where in its function an instruction is; its offset varies as Python optimises."""
    line, _, column, _ = next(islice(code.co_positions(), instruction // 2, None))
    return code.co_qualname, (line or code.co_firstlineno) - code.co_firstlineno, column or 0


def name_function(func: Any) -> str:
    """Return what torch calls a function, however it was reached.

    Example:
        >>> name_function(torch.nn.functional.relu), name_function(torch.relu)
        ('relu', 'relu')
    """
    return str(getattr(func, "__name__", func))
