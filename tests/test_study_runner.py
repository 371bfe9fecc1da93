"""What phases declare is what is run: tables, figures that show something, processes that end."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy_phase

import spectral
from spectral.errors import SpectralError, SpectralWarning
from spectral.figures import FIGURES, holds_only_reasons
from spectral.files.atomic import find_folder, name_folder
from spectral.files.json_files import write_json
from spectral.study import StudyOptions, run_study, runner
from spectral.study.declaration import find_table, list_phases, read_phase
from spectral.study.jobs import work_through
from spectral.study.progress import Progress, read_durations, weigh_phase
from spectral.study.runner import Run
from spectral.sweeping.models import name_folders
from spectral.table.schema import VERSION


def run(out: Path, *words: str, phase=toy_phase.COUNTING) -> Run:
    toy = toy_phase.Toy(toy_phase.options(out, *words))
    progress = Progress([phase.seconds])
    progress.begin()
    one = Run(phase, toy, progress)
    one.finish()
    return one


def test_tables_are_made_of_what_they_need(tmp_path, capsys):
    one = run(tmp_path, "moire", "mute")
    words = pd.read_csv(tmp_path / "tables" / "words.csv")
    assert words["word"].tolist() == ["moire", "mute"]
    assert pd.read_csv(tmp_path / "tables" / "letters.csv")["double"].tolist() == [4] * 5
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {"words", "letters"}
    assert one.progress.describe_left().startswith("about 10 s left")
    said = capsys.readouterr().out
    assert "1 of 2 words" in said
    assert "4 in two rounds" in said
    durations = json.loads((tmp_path / "measurements" / "durations.json").read_text())
    assert set(durations) - {"seal"} == {"units of letters", "double", "words", "letters", "none"}


def test_nothing_but_reasons_is_an_error_behind_the_tables(tmp_path):
    phase = toy_phase.Phase("mute", toy_phase.Toy, toy_phase.COUNTING.tables[1:2], toy_phase.COUNTING.units)
    with pytest.raises(
        SpectralError, match="none of the words could be measured; the tables have the reasons"
    ):
        run(tmp_path, "mute", phase=phase)
    assert pd.read_csv(tmp_path / "tables" / "words.csv")["reason"].tolist() == ["it says nothing"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"n": [0, None], "reason": ["a", "b"]}, True),
        ({"n": [3, 0], "reason": ["gated", "b"]}, False),
        ({"reason": ["a", None]}, False),
        ({"reason": ["a", "b"]}, True),
        ({"a": []}, True),
        ({"a": [1]}, False),
    ],
)
def test_tables_that_hold_only_reasons_are_told(table, expected):
    assert holds_only_reasons(pd.DataFrame(table)) is expected


def test_a_figure_of_reasons_is_left_out_and_one_of_another_table_brings_it(tmp_path, monkeypatch, capsys):
    tables = {
        "phase4_attribution": pd.DataFrame({"n": [0], "reason": ["no site"]}),
        "phase8_architectures": pd.DataFrame({"a": [1]}),
        "phase8_models": pd.DataFrame({"a": [2]}),
    }
    drawn: list[str] = []
    draw = toy_phase.Toy.draw

    def note(self, stem):
        draw(self, stem) if stem == "fig21_attribution" else drawn.append(stem)

    monkeypatch.setattr(toy_phase.Toy, "draw", note)
    monkeypatch.setattr(
        runner, "find_table", lambda name, inputs: toy_phase.Table(name, lambda toy: tables[name])
    )
    own = [
        toy_phase.Table(name, lambda toy, name=name: tables[name], figures=(stem,))
        for name, stem in (
            ("phase4_attribution", "fig21_attribution"),
            ("phase8_architectures", "fig17_architectures_ranking"),
        )
    ]
    assert "phase8_models" in FIGURES["fig17_architectures_ranking"].tables
    run(tmp_path, phase=toy_phase.Phase("both", toy_phase.Toy, tuple(own)))
    assert drawn == ["fig17_architectures_ranking"]
    assert (
        "fig21_attribution isn't drawn: phase4_attribution holds nothing but reasons"
        in capsys.readouterr().out
    )
    assert pd.read_csv(tmp_path / "tables" / "phase8_models.csv")["a"].tolist() == [2]


def test_a_figure_is_drawn_as_soon_as_its_tables_are_there(tmp_path, monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(toy_phase.Toy, "draw", lambda self, stem: done.append(stem))

    def make(name):
        def now(toy):
            done.append(name)
            if name == "last":
                raise SpectralError("stopped")
            return pd.DataFrame({"a": [1]})

        return now

    stems = {"phase8_models": (), "phase8_architectures": ("fig17_architectures_ranking",),
             "phase4_attribution": ("fig21_attribution",), "last": ()}  # fmt: skip
    assert FIGURES["fig17_architectures_ranking"].tables == ("phase8_models",)
    order = ("phase8_architectures", "phase4_attribution", "phase8_models", "last")
    earlier = toy_phase.Toy(toy_phase.options(tmp_path))
    earlier.write_table("phase8_models", pd.DataFrame({"a": [0]}))
    assert earlier.has_table("phase8_models")  # and is made anew all the same
    phase = toy_phase.Phase(
        "four", toy_phase.Toy, tuple(toy_phase.Table(name, make(name), figures=stems[name]) for name in order)
    )
    with pytest.raises(SpectralError, match="stopped"):
        run(tmp_path, phase=phase)
    assert done == [
        "phase8_architectures", "phase4_attribution", "fig21_attribution", "phase8_models",
        "fig17_architectures_ranking", "last",
    ]  # fmt: skip


def test_the_time_left_weighs_what_tables_took_before(tmp_path):
    run(tmp_path, "moire")
    path = tmp_path / "measurements" / "durations.json"
    before = json.loads(path.read_text())
    path.unlink()
    toy = toy_phase.Toy(toy_phase.options(tmp_path))
    for name, seconds in {**before, "words": 40.0, "units of letters": 100.0}.items():
        if name != "seal":
            toy.note_duration(name, seconds)
    known = read_durations(tmp_path)
    declared = toy_phase.COUNTING.seconds
    units = toy_phase.COUNTING.units.seconds
    assert weigh_phase(toy_phase.COUNTING, known) == pytest.approx(declared + 39 + 100 - units, abs=1)
    assert weigh_phase(toy_phase.COUNTING, {}) == declared


def test_damaged_durations_end_no_study_and_are_noted_anew(tmp_path):
    run(tmp_path, "moire")
    path = tmp_path / "measurements" / "durations.json"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(b"words", b"wards")):
        path.write_bytes(damaged)
        run(tmp_path, "moire")
        assert set(read_durations(tmp_path)) == {"units of letters", "double", "words", "letters", "none"}


@pytest.mark.parametrize("number", list_phases())
def test_what_is_declared_fits_together(number):
    phase = read_phase(number)
    known = {table.name for table in phase.tables}
    assert len(known) == len(phase.tables)
    assert phase.title
    for table in phase.tables:
        for stem in table.figures:
            assert all(find_table(name, phase.inputs).written for name in FIGURES[stem].tables)


def _start_holders(out: Path) -> None:
    toy = toy_phase.Toy(toy_phase.options(out, "one", "two", jobs=2))
    list(work_through(toy_phase.HOLDING, toy, ("one", "two")))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Each holds a lock, which the system gives up when it has ended."""
    fcntl = pytest.importorskip("fcntl", reason="locks of this kind are POSIX's")
    parent = multiprocessing.get_context("fork").Process(target=_start_holders, args=(tmp_path,))
    parent.start()
    held = [tmp_path / name for name in ("one", "two")]
    _wait(lambda: all(path.with_suffix(".held").exists() for path in held))
    parent.kill()
    parent.join()

    def ended(path: Path) -> bool:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    assert parent.exitcode == -9
    _wait(lambda: all(map(ended, held)))


@pytest.mark.parametrize(
    ("phases", "given", "sentence"),
    [
        ([1, 8], {"data": "cifar10"}, "--data is for phases 6, 7 and 9, and would be passed over by phases"),
        ([6, 9], {"data": "cifar10", "images": "samples"}, "--images gives way to --data in phases 6 and 9"),
        ([7], {"models": ("bundled/resnet20", "x")}, "x of --models is for other phases than 7"),
    ],
)
def test_what_none_of_the_phases_reads_is_refused(phases, given, sentence, tmp_path):
    with pytest.raises(SpectralError, match=f"{sentence}.*leave it out"):
        run_study(phases, StudyOptions(out=tmp_path, progress=False, **given))
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_told_with_what_to_do(tmp_path):
    toy = toy_phase.Toy(toy_phase.options(tmp_path, "one", "two", jobs=2))
    with pytest.raises(SpectralError, match=r"a process of --jobs was killed.*fewer --jobs"):
        list(work_through(toy_phase.KILLED, toy, ("one", "two")))


def _wait(done, limit: float = 300.0) -> None:
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < limit
        time.sleep(0.05)


@pytest.mark.parametrize("before", ["nets-r18.py-build-random", ".-nets-r18.py-build-random", None])
def test_folders_of_models_have_one_name_and_those_of_earlier_versions_are_found(tmp_path, before):
    model, name = "./nets/r18.py:build@random", "nets-r18.py-build@random"
    assert find_folder(tmp_path, "diagnosis", model).name == f"diagnosis-{name}"
    assert name_folders([model]) == {model: name}
    if before is not None:
        (tmp_path / before).mkdir()
    assert find_folder(tmp_path, model) == tmp_path / (before or name)
    (tmp_path / name).mkdir()
    assert find_folder(tmp_path, model) == tmp_path / name
    with pytest.raises(SpectralError, match="no folder can be named after"):
        name_folder("./")


def test_a_folder_that_an_earlier_version_began_is_told_with_the_way_out(tmp_path):
    toy, path = toy_phase.Toy(toy_phase.options(tmp_path, "one")), tmp_path / "measurements" / "study.json"
    path.parent.mkdir()
    path.write_text('{"seed": 0}')
    with pytest.raises(SpectralError, match=r"without a digest\); delete it and run the same command again"):
        toy.claim(path, {"seed": 0, "structures": {}})
    write_json({"seed": 0}, path, sealed=True)
    with pytest.raises(
        SpectralError, match="which doesn't say its structures; choose another --out or delete"
    ):
        toy.claim(path, {"seed": 0, "structures": {}})
    kept = path.with_name("kept.csv")
    kept.write_text("value\n1\n")
    write_json({"seed": 0, "schema": VERSION}, kept.with_suffix(".json"))
    with pytest.warns(
        SpectralWarning, match="has no digest: an earlier version wrote it; it is computed again"
    ):
        table = toy.keep_table(kept, {"seed": 0}, lambda: pd.DataFrame({"value": [2]}))
    assert table["value"].tolist() == [2]


def test_a_table_of_measurements_that_are_others_now_is_made_again(tmp_path):
    toy, run_folder = toy_phase.Toy(toy_phase.options(tmp_path, "one")), tmp_path / "measurements" / "net"
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1))
    spectral.measure(net, images, ("avr",), out=run_folder, progress=False)
    toy.write_table("words", pd.DataFrame({"word": ["one"]}))
    assert toy.has_table("words")
    next(run_folder.glob("shard-*")).unlink()
    assert not toy.has_table("words")  # and what is gone is measured again
    with pytest.warns(SpectralWarning, match="measured again"):
        spectral.measure(net, images, ("avr",), batch_size=1, out=run_folder, progress=False)
    with pytest.warns(
        SpectralWarning, match=r"words\.csv wasn't made of what is in .*net now; it is computed"
    ):
        assert not toy.has_table("words")


@pytest.mark.parametrize("jobs", [1, 2])
def test_networks_that_would_be_kept_in_one_folder_are_refused(jobs, tmp_path):
    toy = toy_phase.Toy(toy_phase.options(tmp_path, "a/net.pt", "a-net.pt", jobs=jobs))
    with pytest.raises(SpectralError, match=r"'a/net.pt' and 'a-net.pt' would be kept in one folder"):
        list(work_through(toy_phase.COUNTING, toy, ("a/net.pt", "a-net.pt")))
