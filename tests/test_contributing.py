"""CONTRIBUTING: each worked example is applied to a copy of the package, and what it adds is used."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import environment

import spectral

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = Path(spectral.__file__).parent

SAY = """
import contextlib, io, json, os, torch, spectral
from spectral.cli import main
from torch import nn

def say(found, *command):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(command, standalone_mode=False)
    print(json.dumps([found, said.getvalue()]))
"""
METRIC = """
wave = torch.cos(2 * torch.pi * 3 / 16 * torch.arange(16.0)).expand(1, 1, 16, 16)
net = nn.Conv2d(1, 1, 1, stride=2, bias=False)
nn.init.ones_(net.weight)
table = spectral.measure(net, wave, ("spectral_centroid",), taps=("dense",), progress=False)
own = table[table["metric"] == "spectral_centroid"]
summary = spectral.summarize_measurements(table)
say([own["value"].tolist(), sorted(summary["metric"])], "list", "metrics", "centroid")
"""
LAYER = """
net = nn.Sequential(nn.Conv2d(1, 1, 1, stride=2, bias=False))
nn.init.ones_(net[0].weight)
smooth = spectral.convert(net, "box", example=(1, 8, 8))
x = torch.arange(64.0).view(1, 1, 8, 8)
say([smooth(x)[..., 1:3, 1:3].tolist(), nn.functional.avg_pool2d(x, 2)[..., 1:3, 1:3].tolist(),
     [site.measurable for site in spectral.find_sites(smooth, (1, 8, 8))]], "list", "layers", "box")
"""
OPERATOR = """
class Net(nn.Module):
    def forward(self, x):
        return third(x)

table = spectral.measure(Net(), torch.rand(2, 1, 12, 12), ("avr",), progress=False)
say([[s.name, s.stride, s.measurable] for s in spectral.find_sites(Net(), 12)]
    + [bool((table["reason"] == "").all())], "list", "layers")
"""
PHASE = """
say(os.path.abspath("out"), "study", "11", "--models", "bundled/resnet20,bundled/nula-w32",
    "--images", "synthetic", "--limit", "2", "--out", "out")
"""
HEAD = re.compile(r"^\+\+\+ (src/\S+)$", re.MULTILINE)


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def apply(diff: str, root: Path) -> str:
    """Make the edits of one block; every old passage must be there exactly once."""
    head, *hunks = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    found = HEAD.match(head)
    assert found, head
    path = root / found[1]
    text = path.read_text() if path.exists() else ""
    for hunk in hunks:
        lines = [line or " " for line in hunk.removesuffix("\n").split("\n")]
        before, after = ("\n".join(x[1:] for x in lines if x[0] in signs) for signs in (" -", " +"))
        assert not before or text.count(before) == 1, (
            f"{found[1]}: {before!r} is there {text.count(before)} times"
        )
        text = text.replace(before, after) if before else f"{after}\n"
    path.write_text(text)
    return found[1]


def copy(root: Path) -> None:
    """Copy the package, with what is compiled of it."""
    shutil.copytree(PACKAGE, root / "src/spectral")
    (root / "data").mkdir()
    (root / "data/checkpoints").symlink_to(ROOT / "data/checkpoints")


def perform(title: str, root: Path) -> list[str]:
    """Make the edits of a section, and return the files they touch."""
    return [apply(diff, root) for diff in blocks(title, "diff")]


def run(root: Path, *arguments: str) -> str:
    given = {**environment(), "PYTHONPATH": str(root / "src"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=given, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Any, str]]:
    """Of a metric, a layer, an operator kind and a phase: files touched, what a program finds, what it says.

    They stand beside one another in one copy, and one process uses them all.
    """
    root = tmp_path_factory.mktemp("added")
    copy(root)
    titles = ("A metric", "A layer", "An operator kind", "A phase")
    touched = {title: perform(title, root) for title in titles}
    (kind,) = blocks("An operator kind", "python")
    lines = run(root, "-c", "\n".join([SAY, METRIC, LAYER, kind, OPERATOR, PHASE])).splitlines()
    said = (json.loads(line) for line in lines[-4:])
    return {title: (files, *one) for (title, files), one in zip(touched.items(), said, strict=True)}


def test_a_metric_is_three_files(added):
    files, (values, metrics), listed = added["A metric"]
    assert len(set(files)) <= 3
    assert values == pytest.approx([2 * 2 * 3 / 16], rel=1e-6)  # radius of 3/16 cycles per sample, of 1/4
    assert "spectral_centroid" in metrics
    assert "spectral_centroid" in listed


def test_a_layer_is_two_files(added):
    files, (found, expected, measurable), listed = added["A layer"]
    assert len(set(files)) <= 2
    assert found == expected
    assert measurable == [True]
    assert "BoxPool" in section("A layer")
    assert "box" in listed


def test_an_operator_kind_is_one_class(added):
    files, (site, whole), _ = added["An operator kind"]
    assert not files
    assert site[1:] == [[3, 3], True]
    assert whole


def test_a_phase_is_two_files(added):
    files, out, said = added["A phase"]
    assert len(set(files)) <= 2
    assert "phase11_cost.csv" in said
    table = Path(out, "tables/phase11_cost.csv").read_text().splitlines()
    assert table[0] == "model,family,macs"
    assert len(table) == 3
    assert Path(out, "tables/phase11_cost.json").exists()
