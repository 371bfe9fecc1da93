"""The command ``spectral`` in a process of its own, as a user starts it, and code as a page shows it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
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


def wait_until(done: Callable[[], bool], *running: subprocess.Popen[str]) -> None:
    """Wait for what running processes bring about; one that ended without it is a failure."""
    deadline = time.monotonic() + 1200
    while True:
        ended = [process for process in running if process.poll() is not None]
        if done():
            return
        assert not ended, [process.communicate() for process in ended]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_code(code: str, folder: Path) -> None:
    """Run what a page tells its readers to write, in a folder."""
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})
