"""README: its code runs, its commands exist, its numbers are those of the tables."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from spectral import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("spectral ")
]


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_code_runs(code: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat.png")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    called = cli.main.commands[name]
    with click.Context(called, info_name=name) as context:
        called.parse_args(context, arguments)
    given = {part.partition("=")[0] for part in arguments if part.startswith("--")}
    known = {option for parameter in called.params for option in parameter.opts}
    assert given <= known


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) >= 1
    assert len(COMMANDS) >= 8


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:experiments|benchmarks|tests|results|docs)/[\w/.-]+)`", TEXT):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT):
        assert (ROOT / name).exists(), name
