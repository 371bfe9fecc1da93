"""Numbers on their way from a device to the host, which needn't wait for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Transfer:
    """A copy of a tensor to the host that is under way; `wait` returns it.

    The host doesn't wait when the copy starts, but when it is asked for: by then the device has gone on.

    Example:
        >>> Transfer(torch.ones(2)).wait()
        tensor([1., 1.])
    """

    def __init__(self, x: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._source = x  # alive until the copy has been made
        if x.device.type == "cuda":
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._host.copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))
        else:
            self._host = x

    def wait(self) -> Tensor:
        """Return the copy, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.cpu()
