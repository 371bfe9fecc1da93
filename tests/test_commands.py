"""Every command × every option × unfit values: done, or one sentence and code 2; never a traceback."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from spectral import cli

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
"""
UNFIT = (
    "", "\udce9", "a\0b", " ", "no such thing", "x" * 5000, "../nowhere/a/b", "[1]", ",", "-1", "nan", "inf",
    "1e999", "0x10", "two", "99999999999999999999",
)  # fmt: skip
WORDS = 7  # so many of them are odd as words: to what takes two words, the others are words as well
HEAVY_WORDS = 3  # of a command of which what works takes seconds
PICTURES = ("--images", "photos", "--limit", "2")
SMALL = (*PICTURES, "--input-size", "16")  # as they are, not enlarged to what networks take by default
# Quick calls that work; each option is then given to one of them.
CALLS: dict[str, tuple[str, ...]] = {
    "attribute": ("net.py:build", *SMALL, "--quiet"),
    "budget": ("net.py:build", *SMALL, "--quiet"),
    "classify": ("bundled/resnet8@random", "photos/a/0.png", "--resize"),
    "compare": ("net.py:build", "net.py:build+flc", *SMALL, "--quiet"),
    "convert": ("net.py:build", "--method", "flc", "--out", "made.safetensors"),
    "diagnose": ("net.py:build", *SMALL, "--methods", "flc", "--quiet", "--out", "found"),
    "list": ("layers",),
    "measure": ("net.py:build", *SMALL, "--quiet"),
    "plot": ("table.csv", "--out", "picture.png"),
    "report": ("run",),
    "sites": ("net.py:build",),
    "study": ("8", "--models", "net.py:build", *PICTURES, "--out", "study"),
    "sweep": ("models.txt", *PICTURES, "--quiet", "--out", "swept"),
    "train": ("--from", "net.py:build", "--data", "labelled", "--out", "trained", "--epochs", "1", "--quiet"),
}
HEAVY = {"compare", "diagnose", "study"}  # what works takes seconds: these get values that can't
ENDLESS = {("train", "--epochs"), ("train", "--batch-size")}  # a number that is large is what was asked for


def run(*arguments: str) -> Result:
    """Call a command."""
    return CliRunner().invoke(cli.main, list(arguments))


def find_fault(result: Result) -> str | None:
    """Return what is wrong with how a command ended."""
    if result.exit_code not in (0, 2) or "Traceback" in result.output:
        return f"code {result.exit_code}: {result.exception!r} {result.output[-200:]}"
    if result.exit_code == 2 and not result.stderr.strip():
        return "no sentence"
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a network, photographs and a finished run, as the current one."""
    place, before = tmp_path_factory.mktemp("commands"), Path.cwd()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / name / f"{i}.png")
    for part in ("train", "test"):
        shutil.copytree(place / "photos", place / "labelled" / part)
    (place / "net.py").write_text(NET)
    (place / "models.txt").write_text("net.py:build\n")
    (place / "table.csv").write_text("name,level_db\nconv,-12\npool,-20\n")
    os.chdir(place)
    try:
        assert run("measure", *CALLS["measure"], "--out", "run").exit_code == 0
        yield place
    finally:
        os.chdir(before)


def digest(folder: Path) -> dict[str, str]:
    own = [folder / "net.py", folder / "table.csv", *sorted((folder / "photos").rglob("*.png"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in own}


def clear(name: str, folder: Path) -> None:
    """Remove what an earlier call of a command has written: another one's result is refused."""
    if "--out" in CALLS[name]:
        out = folder / CALLS[name][CALLS[name].index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        for file in (out, out.with_suffix(".json")):
            if file.is_file():
                file.unlink()


def list_options(name: str) -> list[tuple[str, list[str]]]:
    """Return each parameter that takes a value, and the arguments that precede an unfit one."""
    found = []
    call = list(CALLS[name])
    for parameter in cli.main.commands[name].params:
        if isinstance(parameter, click.Argument):
            found.append((parameter.name or "", call[1:]))
        elif not getattr(parameter, "is_flag", False):
            option = parameter.opts[0]
            rest = call[: call.index(option)] + call[call.index(option) + 2 :] if option in call else call
            found.append((option, rest))
    return found


def unfit_for(name: str, option: str) -> tuple[str, ...]:
    if (name, option) in ENDLESS:
        return UNFIT[:-1]
    return UNFIT[:-3] if name in HEAVY else UNFIT


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_unfit_values_end_in_a_sentence(name: str, folder: Path) -> None:
    before = digest(folder)
    faults = []
    for option, rest in list_options(name):
        worked = 0
        for place, value in enumerate(unfit_for(name, option)):
            if worked >= 2 and place >= (HEAVY_WORDS if name in HEAVY else WORDS):
                break
            if name == "convert":  # whatever came before, it gets as far as it can
                clear(name, folder)
            given = [f"{option}={value}", *rest] if option.startswith("--") else [value, *rest]
            result = run(name, *given)
            worked += result.exit_code == 0
            if fault := find_fault(result):
                faults.append(f"spectral {name} {option} {value[:20]!r}: {fault}")
    assert digest(folder) == before
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_the_calls_that_are_spoilt_work(name: str, folder: Path) -> None:
    clear(name, folder)
    result = run(name, *CALLS[name])
    assert result.exit_code == 0, result.output[-500:]


def test_every_command_is_walked() -> None:
    assert set(CALLS) == set(cli.main.commands)
