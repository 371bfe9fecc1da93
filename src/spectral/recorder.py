"""Sees every resolution-reducing operator that runs, and which module's call it belongs to.

Discovery and capture (`hooks`) count operators with this one class, so a site found on the meta device is the
same site on real data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectral.operators import Decimation, merge_slices, parse
from spectral.tracker import Frame, is_paused, paused


@dataclass(frozen=True)
class Operation:
    """A candidate operator that ran: the ``index``-th of its family in one call of the frame's module."""

    frame: Frame
    index: int
    decimation: Decimation
    source: Tensor  # what the operator was given
    output: Tensor


Handler = Callable[[Operation], None]
Observer = Callable[[Any, Sequence[Any], dict[str, Any], Any], None]
# (frame, index, decimation, run) → the operator's output if it was computed otherwise, else None
Substitute = Callable[[Frame, int, Decimation, Callable[[], Tensor]], Tensor | None]


class Recorder(TorchDispatchMode):
    """Calls ``on_operation`` for each candidate operator of the innermost call that is running.

    A slice waits for the next operator, because x[:, :, ::2, ::2] arrives as two; it is handed over before
    anything can change its source.

    Args:
        frames: the calls that are running, as a `Tracker` keeps them.
        on_operation: called after a candidate has run.
        observe: called after every operator.
        substitute: asked before a convolution runs; may return its output instead.
    """

    def __init__(
        self,
        frames: list[Frame],
        on_operation: Handler,
        observe: Observer | None = None,
        substitute: Substitute | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.frames = frames
        self._on_operation = on_operation
        self._observe = observe
        self._substitute = substitute
        self._pending: Operation | None = None

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
        if self._substitute and decimation and decimation.weight is not None and decimation.input is args[0]:
            frame = self.frames[-1]
            with paused():
                out = self._substitute(
                    frame, frame.counts["operator"], decimation, lambda: func(*args, **kwargs)
                )
            if out is not None:
                frame.counts["operator"] += 1
                return out
        out = func(*args, **kwargs)
        if self._observe:
            self._observe(func, args, kwargs, out)
        if decimation is not None:
            source = args[0] if args else next(iter(kwargs.values()))
            self._register(decimation, source, out[0] if isinstance(out, (tuple, list)) else out, continues)
        return out

    def flush(self) -> None:
        """Hand over a waiting slice."""
        if self._pending is not None:
            operation, self._pending = self._pending, None
            with paused():
                self._on_operation(operation)

    @property
    def is_counting(self) -> bool:
        """Whether an operator that runs now is the model's and inside a frame."""
        return bool(self.frames) and not is_paused()

    def _continues_pending(self, decimation: Decimation | None) -> bool:
        if self._pending is None or decimation is None or not decimation.operator.waits:
            return False
        first = self._pending
        return (
            decimation.input is first.output
            and decimation.geometry.axes[0] not in first.decimation.geometry.axes
        )

    def _register(self, decimation: Decimation, source: Tensor, output: Tensor, continues: bool) -> None:
        if continues and self._pending is not None:
            merged = merge_slices(self._pending.decimation, decimation)
            self._pending = replace(self._pending, decimation=merged, output=output)
            return
        frame, family = self.frames[-1], decimation.operator.family
        operation = Operation(frame, frame.counts[family], decimation, source, output)
        frame.counts[family] += 1
        self._pending = operation
        if not decimation.operator.waits:
            self.flush()
