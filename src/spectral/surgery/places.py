"""Where in the code of a module's own forward a torch function is called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import CodeType, FrameType

from torch import nn

from spectral.tracing.places import Steps, find_steps

_CALLS = {nn.Module._call_impl.__code__}  # where the call of a module begins


@dataclass(frozen=True)
class Spot:
    """One place, and the frame in which the module's call that it belongs to began."""

    place: Steps
    call: FrameType | None


def mark_call(code: CodeType) -> None:
    """Make known that a module's call may also begin in a function of ours."""
    _CALLS.add(code)


def find_spot() -> Spot:
    """Find where the code that runs now is, in the forward of the innermost module that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _CALLS:
        frame = frame.f_back
    return Spot(find_steps(frame), frame)
