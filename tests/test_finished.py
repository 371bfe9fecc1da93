"""A second run of a command on finished work: read without torch where nothing has changed, and only then."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import environment
from PIL import Image

import spectral
from spectral.cli.finished import (
    Inputs,
    Said,
    look_at_code,
    look_at_files,
    look_at_inputs,
    note_finished,
    recall,
)
from spectral.files.json_files import read_json
from spectral.models.checkpoint import save_checkpoint
from spectral.models.load import open_untrained

PROGRAM = """
import sys
from spectral.cli import main
try:
    main(prog_name="spectral")
finally:
    print("torch" in sys.modules, file=open("loaded.txt", "w"))
"""
TABLES = ("summary.csv", "sites.csv", "provenance.json")
MEASURE = ("measure", "net.safetensors", "--metrics", "avr,am")
NOTE = "_finished.json"


def paint(path: Path, number: int, side: int = 32) -> None:
    pixels = np.random.default_rng(number).integers(256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save(path: Path, width: int = 4) -> None:
    model = open_untrained(f"resnet8-w{width}")[0]
    save_checkpoint(model, path, {"architecture": f"resnet8-w{width}"})


def run(folder: Path, *words: str, out: str = "run") -> tuple[subprocess.CompletedProcess[str], bool]:
    """Run a command in a process of its own; return what it said, and whether it loaded torch."""
    words = (*(words or MEASURE), "--images", "photos", "--quiet", "--out", out)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=folder, env=environment(), capture_output=True, text=True
    )
    return done, (folder / "loaded.txt").read_text().strip() == "True"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, of files that can change no more without another time."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for number in range(5):
        paint(folder / "photos" / f"{number}.png", number)
    paint(folder / "photos" / "4.png", 4, 16)
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    save(folder / "net.safetensors")
    time.sleep(2.1)
    first, loaded = run(folder)
    assert (first.returncode, loaded) == (0, True), first.stderr
    (folder / "first.txt").write_text(first.stdout)
    return folder


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a note of its own, in the current folder: files that a test may change."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "photos"):
        shutil.copytree(made / name, name)
    network = [shutil.copy(made / name, name) for name in ("net.safetensors", "net.json")]
    noted = read_json(made / "run" / NOTE, sealed=True)
    Path("asked.json").write_text(json.dumps(noted["circumstances"]["asked"]))
    inputs = ask()
    assert inputs is not None
    later = Inputs(inputs.circumstances, inputs.newest, time.time() + 10)  # when files have settled
    Path("run.json").write_text("{}")  # --json may be anywhere
    wrote = [Path("run", "measurements"), *(Path("run", name) for name in TABLES), Path("run.json")]
    said = Said(noted["said"], noted["warned"])
    assert note_finished(Path("run"), later, ask(), look_at_files(map(Path, network)), said, wrote)
    return Path("run")


def ask(**other: Any) -> Inputs | None:
    """Look at what the command depends on, as it does."""
    asked: Mapping[str, Any] = json.loads(Path("asked.json").read_text())
    return look_at_inputs({**asked, **other}, "photos")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def is_recalled(run: Path, inputs: Inputs | None) -> bool:
    return inputs is not None and recall(run, inputs) is not None


def test_the_second_run_says_what_the_usual_one_does_without_torch(made, tmp_path):
    note = made / "run" / NOTE
    kept = tmp_path / "finished.json"
    shutil.copy(note, kept)
    note.unlink()
    usual, loaded = run(made)
    assert loaded
    assert read_json(note)["digests"] == read_json(kept)["digests"]  # the usual run writes and notes the same
    again, loaded = run(made)
    assert not loaded
    assert (again.returncode, again.stdout, again.stderr) == (0, usual.stdout, usual.stderr)
    assert "1 broken file(s) skipped" in again.stdout
    assert [word in again.stderr for word in ("skipped 1 broken", "are enlarged")] == [True, True]
    assert again.stdout.rstrip().endswith("written to run, 5 of 5 images measured earlier")
    assert (made / "first.txt").read_text().rstrip() == again.stdout.rstrip().partition(", 5 of 5")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "net.safetensors", "other.safetensors", "--metrics", "avr"),
        ("attribute", "net.safetensors"),
        ("budget", "net.safetensors"),
        ("sweep", "models.txt", "--metrics", "avr"),
        ("diagnose", "net.safetensors", "--minutes", "0.05", "--methods", "flc"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_keeps_its_result_says_it_again(made, words):
    out = f"out-{words[0]}"
    if not (made / "other.safetensors").exists():
        save(made / "other.safetensors", 6)
        (made / "models.txt").write_text("net.safetensors\nother.safetensors\n")
        time.sleep(2.1)
    words = (*words, "--json", f"{words[0]}.json")
    first, loaded = run(made, *words, out=out)
    assert (first.returncode, loaded) == (0, True), first.stderr
    again, loaded = run(made, *words, out=out)
    assert (again.returncode, loaded, again.stderr) == (0, False, first.stderr)
    assert again.stdout.strip()
    assert first.stdout.endswith(again.stdout)


def test_a_finished_study_says_what_it_has_found_until_anything_has_changed(made):
    """Another number of --jobs changes nothing; a table that isn't what was written does."""
    study = ("study", "8", "--models", "net.safetensors", "--limit", "4", "--batch-size", "4")
    first, loaded = run(made, *study, out="out-study")
    assert (first.returncode, loaded) == (0, True), first.stderr
    tables = {path: path.read_bytes() for path in (made / "out-study" / "tables").iterdir()}
    again, loaded = run(made, *study, "--jobs", "2", out="out-study")
    assert (again.returncode, loaded, again.stderr) == (0, False, first.stderr)
    assert again.stdout.startswith("nothing has changed since: tables and figures are in out-study")
    assert {path: path.read_bytes() for path in tables} == tables
    asked = read_json(made / "out-study" / NOTE, sealed=True)["circumstances"]["asked"]
    assert {"phases", "models", "seed", "limit", "full_limit", "preset", "data"} <= set(asked)
    flip(made / "out-study" / "tables" / "phase8_models.csv", -5)
    anew, loaded = run(made, *study, out="out-study")
    assert (anew.returncode, loaded) == (0, True), anew.stderr
    assert {path: path.read_bytes() for path in tables if path.suffix == ".csv"} == {
        path: content for path, content in tables.items() if path.suffix == ".csv"
    }


def test_what_nothing_has_changed_of_is_recalled(finished):
    found = recall(finished, ask())
    assert found is not None
    assert found.said[-1] == "\nwritten to run, 5 of 5 images measured earlier"


@pytest.mark.parametrize("change", ["pixels", "another", "gone", "time"])
def test_other_images_are_not_recalled(finished, change):
    path = Path("photos/1.png")
    if change == "pixels":  # of the same length, and with the same time put back
        before = path.stat()
        flip(path, -20)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "another":
        paint(Path("photos/9.png"), 9)
    elif change == "gone":
        path.unlink()
    else:
        os.utime(path)
    assert not is_recalled(finished, ask())


@pytest.mark.parametrize("change", ["weights", "description", "gone"])
def test_other_weights_are_not_recalled(finished, change):
    assert is_recalled(finished, ask())
    if change == "weights":
        flip(Path("net.safetensors"), -1)
    elif change == "description":
        Path("net.json").write_text("{}")
    else:
        Path("net.safetensors").unlink()
    assert not is_recalled(finished, ask())


@pytest.mark.parametrize(
    "other",
    [{"metrics": ["avr"]}, {"limit": 3}, {"taps": ["input"]}, {"seed": 1}, {"batch_size": 2},
     {"model": "other.safetensors"}, {"input_size": [16, 16]}, {"mean": [0.5]}, {"weights": "w.pt"}],
    ids=str,
)  # fmt: skip
def test_other_options_are_not_recalled(finished, other):
    assert is_recalled(finished, ask())
    assert not is_recalled(finished, ask(**other))


def test_another_version_is_not_recalled(finished, monkeypatch):
    monkeypatch.setattr(spectral, "__version__", "0.0.9")
    assert not is_recalled(finished, ask())


def test_another_installation_is_not_recalled(finished, tmp_path, monkeypatch):
    assert is_recalled(finished, ask())
    (tmp_path / "torch-9.9.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_recalled(finished, ask())


def test_a_package_that_has_come_in_front_of_another_is_not_passed_over(finished, tmp_path, monkeypatch):
    assert is_recalled(finished, ask())
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_recalled(finished, ask())


def test_code_that_was_edited_is_other_code(tmp_path, monkeypatch):
    path = tmp_path / "own_code.py"
    path.write_text("a = 1")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    before = look_at_code(["own_code"], [str(path)])
    assert before is not None
    assert before["roots"]["own_code"][0] == str(path)
    assert look_at_code(["own_code"], [str(path)]) == before
    path.write_text("a = 2")
    assert look_at_code(["own_code"], [str(path)]) != before
    every = look_at_code()
    assert every is not None
    assert {"torch", "click", "spectral"} <= set(every["roots"])
    assert torch.nn.functional.__file__ in every["files"]


def test_installed_images_are_those_alone(tmp_path, monkeypatch):
    """In a list their name is a folder's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").mkdir()
    paint(tmp_path / "samples" / "a.png", 1)
    named = ("samples", ["samples", "samples/a.png"])
    before = [look_at_inputs({}, images) for images in named]
    paint(tmp_path / "samples" / "a.png", 2)
    after = [look_at_inputs({}, images) for images in named]
    assert None not in (*before, *after)
    same = [one.circumstances == other.circumstances for one, other in zip(before, after, strict=True)]
    assert same == [True, False]


def test_from_another_folder_a_name_may_mean_another_file(finished, monkeypatch):
    run, there = finished.resolve(), Path("there").resolve()
    assert is_recalled(run, ask())
    shutil.copytree("photos", there / "photos")
    shutil.copy("asked.json", there)
    monkeypatch.chdir(there)
    assert not is_recalled(run, ask())


@pytest.mark.parametrize(
    "name",
    [
        "measurements/shard-000000.parquet",
        "measurements/_run.json",
        "summary.csv",
        "provenance.json",
        NOTE,
        "../run.json",
    ],
)
@pytest.mark.parametrize("change", ["damaged", "gone"])
def test_results_that_are_not_as_written_are_left_to_the_usual_way(finished, name, change):
    path = finished / name
    if change == "gone":
        path.unlink()
    else:
        flip(path, path.stat().st_size // 2)
    assert not is_recalled(finished, ask())


def test_a_result_that_has_come_in_between_is_left_to_the_usual_way(finished):
    shard = finished / "measurements" / "shard-000000.parquet"
    shutil.copy(shard, shard.with_name("shard-000009.parquet"))
    assert not is_recalled(finished, ask())


def test_what_has_just_been_written_is_not_noted(finished):
    said, now = recall(finished, ask()), ask()
    assert now is not None
    assert said is not None
    before = Inputs(now.circumstances, now.newest, time.time() + 10)
    fresh = Inputs(before.circumstances, int((before.begun - 1) * 1e9), before.begun)
    assert not note_finished(finished, fresh, before, {}, said, [])
    assert not (finished / NOTE).exists()
    assert not note_finished(finished, before, ask(seed=1), {}, said, [])  # it changed meanwhile
    assert not note_finished(finished, before, before, None, said, [])  # nobody knows of what it is made
    network = look_at_files([Path("net.safetensors")])
    flip(Path("net.safetensors"), -1)  # behind the run's back
    assert not note_finished(finished, before, before, network, said, [])
    assert note_finished(finished, before, before, {}, said, [])


def test_another_list_of_networks_is_another_sweep(tmp_path):
    (tmp_path / "models.txt").write_text("bundled/resnet20\n")
    before = look_at_inputs({}, "samples", [tmp_path / "models.txt"])
    (tmp_path / "models.txt").write_text("bundled/resnet8\n")
    after = look_at_inputs({}, "samples", [tmp_path / "models.txt"])
    assert before is not None
    assert after is not None
    assert before.circumstances != after.circumstances
    assert look_at_inputs({}, "samples", [tmp_path / "gone.txt"]) is None


@pytest.mark.parametrize("images", ["my_data.py:load", "stl10", "no/such/folder", ["photos", "cifar10"]])
def test_images_that_files_do_not_tell_are_unclear(finished, images):
    assert look_at_inputs({}, images) is None


def test_a_link_that_leads_nowhere_is_looked_at(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "there.png")
    before, nothing = look_at_inputs({}, str(tmp_path)), look_at_inputs({}, "synthetic")
    paint(tmp_path / "there.png", 1)
    assert before is not None
    assert nothing is not None
    assert before.newest == nothing.newest  # that of the package's own files
    after = look_at_inputs({}, str(tmp_path / "*.png"))
    assert after is not None
    assert after.newest > nothing.newest


def test_an_image_in_a_linked_folder_is_looked_at(tmp_path):
    for name in ("there", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "there")
    before = look_at_inputs({}, str(tmp_path / "photos"))
    paint(tmp_path / "there" / "a.png", 1)
    after = look_at_inputs({}, str(tmp_path / "photos"))
    assert before is not None
    assert after is not None
    assert before.circumstances != after.circumstances


@pytest.mark.parametrize(
    ("name", "files"),
    [("bundled/resnet20", True), ("timm/resnet18@random", True),
     ("bundled/resnet20@random", True), ("net.py:build", False)],
)  # fmt: skip
def test_networks_say_of_which_files_they_are(name, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\nbuild = lambda: nn.Conv2d(3, 4, 3, 2)\n")
    info = spectral.model_info(spectral.load_model(name, input_size=32))
    assert info is not None
    assert (info.files is not None) == files
    assert all(path.is_file() for path in info.files or ())


def test_a_note_for_which_there_is_no_room_fails_no_command(tmp_path: Path) -> None:
    then = Inputs({}, 0, time.time() + 1e6)
    assert note_finished(tmp_path, then, then, {}, Said([], []), [])
    assert not note_finished(tmp_path / "gone", then, then, {}, Said([], []), [])
