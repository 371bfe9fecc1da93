"""The command ``spectral`` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import spectral


def environment() -> dict[str, str]:
    """One thread, and the package under test importable from any folder."""
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        distribution("spectral-aliasing")
    except PackageNotFoundError:
        given["PYTHONPATH"] = str(Path(spectral.__file__).resolve().parents[1])
    return given


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "spectral", *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a test run that a shell put into the background ignores interrupts, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
