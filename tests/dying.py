"""A network that ends its own process, without a word, or waits in a pass: where the environment says so.

``SPECTRAL_TEST_DIES`` names the rank that dies after some passes (see `test_ranks`). As soon as a file is
there that ``SPECTRAL_TEST_WAITS`` describes, a pass takes longer than any test: a signal that is sent then
comes in the middle of the work, however fast the machine is.
"""

from __future__ import annotations

import atexit
import glob
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

passes = 0


class Dying(nn.Sequential):
    """Two sites and a head."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify; die or wait where the environment says so."""
        global passes
        if glob.glob(os.environ.get("SPECTRAL_TEST_WAITS", "")):
            time.sleep(3600)
        if len(x) > 1 and os.environ.get("RANK", "") == os.environ.get("SPECTRAL_TEST_DIES"):
            passes += 1
            if passes > 10:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)  # type: ignore[no-any-return]


def list_threads() -> list[str]:
    """Return the names of the threads of this process; one may end meanwhile."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):
            names.append(path.read_text().strip())
    return names


def say_threads() -> None:
    """Say how many threads of a process group run into the interpreter's end, which aborts some of them."""
    count = sum("gloo" in name for name in list_threads())
    print(f"{count} threads of process groups", file=sys.stderr)


def build() -> nn.Module:
    """Make it."""
    if "RANK" in os.environ:
        atexit.register(say_threads)
    torch.manual_seed(0)
    return Dying(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip
