"""What is worked out in a thread beside Python's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spectral.ahead import Ahead

LATE = """
import time
from spectral.ahead import Ahead
Ahead(lambda: time.sleep(0.3) or print("through"))
"""


def test_what_was_raised_is_raised_to_whoever_asks():
    ahead = Ahead(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ahead.value  # noqa: B018


def test_a_process_ends_after_what_it_has_begun():
    """After a refused call nobody asks for the weights' id: a process that ended in its code was aborted."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")
