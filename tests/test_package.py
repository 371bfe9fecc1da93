"""What is shipped: a wheel that runs from outside the repository, versions that agree, a citation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

import spectral
from spectral import cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path) -> str:
    given = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**given, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel; what it needs comes from the running one."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; extra dev has it")
    pytest.importorskip("pip", reason="pip installs the wheel; this environment was made without it")
    place = tmp_path_factory.mktemp("wheel")
    build = ("-c", "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))", place)
    name = run(sys.executable, *build, cwd=ROOT).split()[-1]
    venv.create(place / "env", with_pip=False, symlinks=True)
    site = place / "env" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    dependencies = sysconfig.get_path("purelib")
    # Behind the wheel on the path, and not processed as a site folder: its editable installs stay out.
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    python = place / "env" / "bin" / "python"
    flags = ("--no-deps", "--no-index", "--quiet", "--ignore-installed", "--prefix", place / "env")
    run(sys.executable, "-m", "pip", "install", *flags, place / name, cwd=place)
    assert Path(
        run(python, "-c", "import spectral; print(spectral.__file__)", cwd=place).strip()
    ).is_relative_to(site)
    return place / "env" / "bin"


@pytest.mark.slow
def test_the_wheel_runs_from_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = (
        "import spectral; from spectral.cli import main; "
        "print(spectral.model_info(spectral.load_model('bundled/resnet20')).weights_id); "
        "main(['sites', 'bundled/resnet20', '--size', '32'])"
    )
    weights, listed = run(installed / "python", "-c", code, cwd=tmp_path).split("\n", 1)
    assert weights.strip()
    assert "layer2.0.conv1" in listed
    script = run(installed / "spectral", "--version", cwd=tmp_path)
    assert script == f"spectral, version {spectral.__version__}\n"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert {"cff-version", "message", "title", "type"} <= citation.keys()


def test_every_requirement_says_its_lowest_version() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+>=[0-9.]+", requirement), requirement


def test_versions_agree() -> None:
    assert spectral.__version__ == PROJECT["version"]


def test_what_a_run_writes_is_none_of_the_committed_files() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: an unpacked archive")
    out = next(o for o in cli.main.commands["study"].params if o.name == "out").default
    parts = (
        "tables/a.csv",
        "tables/a.json",
        "figures/a.png",
        "provenance.json",
        "measurements/a.csv",
        "_lock",
    )
    written = [f"{folder}/{part}" for folder in (out, f"{out}/reference") for part in parts]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *written], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    asked = {f"{out}/reference/{part}" for part in parts[:4]}
    assert set(written) - set(ignored) == asked
    tracked = run("git", "ls-files", str(out), cwd=ROOT).split()
    assert tracked
    assert [path for path in tracked if not path.startswith(f"{out}/reference/")] == []
