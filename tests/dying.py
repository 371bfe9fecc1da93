"""A network that ends its own process, without a word, after some passes on one rank (see `test_ranks`)."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

passes = 0


class Dying(nn.Sequential):
    """Two sites and a head."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify; die where the environment says so."""
        global passes
        if len(x) > 1 and os.environ.get("RANK", "") == os.environ.get("SPECTRAL_TEST_DIES"):
            passes += 1
            if passes > 10:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)  # type: ignore[no-any-return]


def say_threads() -> None:
    """Say how many threads of a process group run into the interpreter's end, which aborts some of them."""
    names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    print(f"{sum('gloo' in name for name in names)} threads of process groups", file=sys.stderr)


def build() -> nn.Module:
    """Make it."""
    atexit.register(say_threads)
    torch.manual_seed(0)
    return Dying(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip
