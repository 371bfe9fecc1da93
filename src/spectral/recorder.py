"""Sees every resolution-reducing operator that runs, and which module's call it belongs to.

Discovery (`sites`) and capture (`hooks`) count operators with this one class, so a site found on the meta
device is the same site on real data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectral.decimation import Decimation, merge_slices, parse

# One for all recorders of a thread: what one of them measures, no other may count as the model's.
_PAUSED: ContextVar[bool] = ContextVar("paused", default=False)


@dataclass
class Frame:
    """One running call of a module."""

    path: str
    module: nn.Module
    call: int
    args: tuple[Any, ...]
    operators: int = 0  # candidates so far
    steps: int = 0  # operators so far that did more to a map than move its samples


EventHandler = Callable[[Frame, int, Decimation, Tensor], None]
Observer = Callable[[Any, Sequence[Any], dict[str, Any], Any], None]


@contextmanager
def paused() -> Iterator[None]:
    """Let no recorder count the operators that run inside: they are ours, not the model's."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


class Recorder(TorchDispatchMode):
    """Calls ``on_event(frame, index, decimation, output)`` for each candidate operator of the top frame.

    ``index`` counts the candidates of one call of the frame's module. A slice waits for the next operator,
    because x[:, :, ::2, ::2] arrives as two; it is handed over before anything can change its source.
    """

    def __init__(self, on_event: EventHandler, observe: Observer | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frames: list[Frame] = []
        self._on_event = on_event
        self._observe = observe
        self._pending: tuple[Frame, int, Decimation, Tensor] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and report it."""
        kwargs = kwargs or {}
        if not self.is_counting:
            return func(*args, **kwargs)
        decimation = parse(func, args, kwargs)
        continues = self._continues_pending(decimation)
        if not continues:
            self.flush()
        out = func(*args, **kwargs)
        if self._observe:
            self._observe(func, args, kwargs, out)
        if decimation is not None:
            self._register(decimation, out[0] if isinstance(out, tuple) else out, continues)
        return out

    def flush(self) -> None:
        """Hand over a waiting slice."""
        if self._pending is not None:
            event, self._pending = self._pending, None
            with paused():
                self._on_event(*event)

    def reset(self) -> None:
        """Forget frames and waiting slices of a forward that didn't end."""
        self.frames.clear()
        self._pending = None

    @property
    def is_counting(self) -> bool:
        """Whether an operator that runs now is the model's and inside a frame."""
        return bool(self.frames) and not _PAUSED.get()

    def _continues_pending(self, decimation: Decimation | None) -> bool:
        if self._pending is None or decimation is None or decimation.geometry.kind != "slice":
            return False
        _, _, first, output = self._pending
        return decimation.input is output and decimation.geometry.axes[0] not in first.geometry.axes

    def _register(self, decimation: Decimation, output: Tensor, continues: bool) -> None:
        if continues and self._pending is not None:
            frame, index, first, _ = self._pending
            self._pending = (frame, index, merge_slices(first, decimation), output)
            return
        frame = self.frames[-1]
        index = frame.operators
        frame.operators += 1
        self._pending = (frame, index, decimation, output)
        if decimation.geometry.kind != "slice":
            self.flush()
