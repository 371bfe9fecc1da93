"""Jobs that know nothing of one another share a sweep: each unit once, runs like those of measure."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from faults import full_disk
from PIL import Image
from torch import nn

import spectral
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.files.atomic import is_running
from spectral.files.writers import claim
from spectral.runs.folder import read_run
from spectral.runs.lineage import verify_below
from spectral.runs.store import ShardStore
from spectral.sweeping import read_models, sweep
from spectral.sweeping.claims import STALE, Claims
from spectral.sweeping.models import name_folders
from spectral.table.rows import COLUMNS

NETS = ["bundled/resnet8@random", "bundled/resnet8-blurpool@random"]
METRICS = ("avr", "sis")


def run(out: Path, models: list[str] = NETS, **options: object) -> pd.DataFrame:
    given = {"limit": 7, "unit": 3, "batch_size": 2, "workers": 0, **options}
    return sweep(models, "synthetic", METRICS, out=out, **given)  # type: ignore[arg-type]


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    keys = [column for column in COLUMNS if column != "value"]
    return pd.DataFrame(table)[COLUMNS].astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(ordered(one), ordered(other), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep")
    run(out)
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, pd.DataFrame]:
    """What measure gives."""
    pictures = spectral.load_images("synthetic", size=32, limit=7, workers=0)
    return {name: spectral.measure(spectral.load_model(name), pictures, METRICS, batch_size=2, progress=False)
            for name in NETS}  # fmt: skip


def folder_of(out: Path, name: str) -> Path:
    return out / name.replace("/", "-")


class TestRuns:
    @pytest.mark.parametrize("name", NETS)
    def test_each_network_has_the_rows_of_measure(self, name, finished, alone):
        same(spectral.read(folder_of(finished, name)), alone[name])

    def test_measure_takes_the_folder(self, finished):
        given = [
            "measure",
            NETS[0],
            "--images",
            "synthetic",
            "--limit",
            "7",
            "--metrics",
            "avr,sis",
            "--quiet",
        ]
        result = CliRunner().invoke(main, [*given, "--out", str(folder_of(finished, NETS[0]))])
        assert result.exit_code == 0, result.output
        assert "7 of 7 images measured earlier" in result.output

    def test_the_tables_are_of_all_networks(self, finished):
        table = pd.read_csv(finished / "networks.csv")
        assert list(table["model"]) == NETS
        assert list(table["state"]) == ["finished"] * 2
        own = pd.read_csv(folder_of(finished, NETS[1]) / "summary.csv")
        own = own[own["site"].notna() & (own["metric"] == "avr") & (own["tap"] == "input")]
        assert table["avr_input"][1] == pytest.approx(own["mean"].mean())
        assert set(pd.read_csv(finished / "summary.csv")["model"]) == set(NETS)

    def test_a_run_that_measure_began_is_completed(self, tmp_path, alone):
        pictures = spectral.load_images("synthetic", size=32, limit=7, workers=0)
        rows = folder_of(tmp_path, NETS[0]) / "measurements"
        spectral.measure(
            spectral.load_model(NETS[0]), pictures, METRICS, batch_size=2, progress=False, out=rows
        )
        for path in sorted(rows.glob("shard-*"))[1:]:
            path.unlink()
        run(tmp_path, NETS[:1])
        same(spectral.read(rows), alone[NETS[0]])


def damage_table(own: Path) -> None:
    (own / "summary.csv").write_bytes((own / "summary.csv").read_bytes()[:99])


def empty_provenance(own: Path) -> None:
    (own / "provenance.json").write_bytes(b"")


def remove_notes_and_a_shard(own: Path) -> None:
    (own / "measurements" / "_sites.json").unlink()
    (own / "measurements" / "shard-u000001-000000.parquet").unlink()


@pytest.mark.parametrize("harm", [damage_table, empty_provenance, remove_notes_and_a_shard])
def test_what_was_damaged_or_is_gone_is_made_again_by_the_same_call(harm, finished, tmp_path):
    own = shutil.copytree(finished, tmp_path / "own")
    harm(folder_of(own, NETS[0]))
    assert list(run(own)["state"]) == ["finished"] * 2
    for name in ("networks.csv", "summary.csv", *(f"{folder_of(own, NETS[0]).name}/{table}.csv"
                                                  for table in ("summary", "sites"))):  # fmt: skip
        assert (own / name).read_bytes() == (finished / name).read_bytes(), name
    assert verify_below(own)


class TestRefusing:
    def test_images_that_are_others_now_whatever_the_clock_says(self, tmp_path):
        for i in range(2):
            Image.new("RGB", (32, 32), (200 * i, 90, 0)).save(tmp_path / f"{i}.png")
        given = {"out": tmp_path / "out", "workers": 0}
        assert list(sweep(NETS[:1], str(tmp_path / "*.png"), ["avr"], **given)["state"]) == ["finished"]
        Image.new("RGB", (32, 32), (0, 9, 200)).save(tmp_path / "1.png")
        coming = time.time() + 9999  # when a clock that was set back since stood there
        for mark in (tmp_path / "out").glob("*/_queue/*.done"):
            os.utime(mark, (coming, coming))
        table = sweep(NETS[:1], str(tmp_path / "*.png"), ["avr"], **given)
        assert list(table["state"]) == ["failed"]

    def test_a_measurement_and_a_sweep_in_one_folder(self, finished, tmp_path):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        before = {path: path.read_bytes() for path in finished.glob("*.*")}
        with pytest.raises(SpectralError, match="holds a sweep, not a measurement; choose another"):
            spectral.measure(net, torch.rand(1, 3, 8, 8), ["avr"], out=finished, progress=False)
        assert {path: path.read_bytes() for path in finished.glob("*.*")} == before
        spectral.measure(net, torch.rand(1, 3, 8, 8), ["avr"], out=tmp_path, progress=False)
        with pytest.raises(SpectralError, match="holds a measurement, not a sweep; choose another"):
            run(tmp_path)

    def test_another_sweep(self, finished):
        with pytest.raises(SpectralError, match="holds a sweep with unit = 3, not 4; choose another"):
            run(finished, unit=4)

    def test_a_network_that_is_another_now(self, finished, tmp_path):
        def load(name: str) -> nn.Module:
            return spectral.load_model(NETS[1] if name == NETS[0] else name)

        own = shutil.copytree(finished, tmp_path / "own")
        before = (folder_of(own, NETS[0]) / "summary.csv").read_bytes()
        table = run(own, NETS[:1], load=load)
        assert list(table["state"]) == ["failed"]
        assert "holds measurements with model = " in table["reason"][0]
        assert (folder_of(own, NETS[0]) / "summary.csv").read_bytes() == before

    def test_a_network_that_fails_is_no_end_and_its_line_is_named(self, tmp_path):
        (tmp_path / "models.txt").write_text(f"# mine\nno/such\n{NETS[0]}\n")
        given = [
            "sweep",
            str(tmp_path / "models.txt"),
            "--images",
            "synthetic",
            "--limit",
            "2",
            "--metrics",
            "sis",
        ]
        result = CliRunner().invoke(main, [*given, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert "1 of 2 networks failed: " in result.output
        assert "models.txt, line 2: no/such: unknown model" in result.output
        assert list(pd.read_csv(tmp_path / "out" / "networks.csv")["state"]) == ["failed", "finished"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "names no models"),
            ("a\nb\na\n", "line 3: a stands in line 1 already"),
            ("a\nb   c\n", "line 2: 'b   c' is no model"),
            ("a\n\x01\n", "line 2: .* is no model"),
        ],
    )
    def test_lists_that_are_none(self, text, said, tmp_path):
        (tmp_path / "models.txt").write_text(text)
        with pytest.raises(SpectralError, match=said):
            read_models(tmp_path / "models.txt")

    def test_names_that_share_a_folder(self, tmp_path):
        with pytest.raises(SpectralError, match=r"a/b and a\*b would share the folder a-b"):
            sweep(["a/b", "a*b"], out=tmp_path)

    def test_a_folder_that_measure_is_writing(self, tmp_path):
        with claim(folder_of(tmp_path, NETS[0]) / "measurements"):
            table = run(tmp_path, NETS[:1])
        assert table["state"][0] == "failed"
        assert "is being written by process" in table["reason"][0]
        assert list(run(tmp_path, NETS[:1])["state"]) == ["finished"]


class TestClaims:
    def test_one_that_finds_no_room_is_refused_and_leaves_nothing(self, tmp_path):
        claims = Claims(tmp_path)
        with full_disk(0), pytest.raises(SpectralError, match="make room"), claims.take("a"):
            pass
        assert not list(tmp_path.iterdir())

    def test_one_of_a_process_that_is_gone_is_taken_over(self, tmp_path):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        claims = Claims(tmp_path)
        with claims.take("a"):
            path = tmp_path / "a.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "process": ended.pid}))
            with Claims(tmp_path).take("a") as mine:
                assert mine

    @pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="only Linux tells of ended processes here"
    )
    def test_a_process_that_ended_and_nobody_asked_for_is_gone(self):
        ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
        assert ended.stdout is not None
        ended.stdout.read()  # until it has closed it, which it does by ending
        command.wait_until(lambda: not is_running(ended.pid))
        ended.wait()

    @pytest.mark.skipif(
        not Path("/proc/self/task").exists(), reason="only Linux tells of threads of a process here"
    )
    def test_a_process_runs_until_its_last_thread_has_given_its_locks_up(self, tmp_path):
        code = (
            "import ctypes, platform, sys, threading, time\n"
            "from pathlib import Path; from spectral.files.writers import claim\n"
            "held = claim(Path(sys.argv[1])); held.__enter__()\n"
            "threading.Thread(target=time.sleep, args=[3600]).start(); print('mine', flush=True)\n"
            "number = {'x86_64': 60, 'aarch64': 93}[platform.machine()]  # exit, of the first thread alone\n"
            "ctypes.CDLL(None).syscall(number, 0)"
        )
        half = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], env=command.environment(), stdout=subprocess.PIPE
        )
        assert half.stdout is not None
        assert half.stdout.readline() == b"mine\n"
        first = Path(f"/proc/{half.pid}/task/{half.pid}/stat")
        command.wait_until(lambda: ") Z " in first.read_text())
        with pytest.raises(SpectralError, match="is being written"), claim(tmp_path):
            pass
        assert is_running(half.pid)  # so nobody takes over from it yet
        half.kill()
        command.wait_until(lambda: not is_running(half.pid))
        with claim(tmp_path):  # though nobody has asked for it
            half.wait()

    def test_one_of_a_container_that_has_this_host_s_name_and_its_own_numbers_is_no_dead_one(self, tmp_path):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        with Claims(tmp_path).take("a"):
            path = tmp_path / "a.json"
            there = {"process": ended.pid, "machine": f"{socket.gethostname()} pid:[1]"}
            path.write_text(json.dumps({**json.loads(path.read_text()), **there}))
            with Claims(tmp_path).take("a") as mine:
                assert not mine

    def test_jobs_that_look_at_once_do_not_disturb_each_other(self, tmp_path):
        """As two of one number, on hosts of one name, whose looks at the clock had one name."""
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
        with ThreadPoolExecutor(4) as jobs:
            found = [jobs.submit(Claims(tmp_path).list_taken) for _ in range(2000)]
        assert all(one.result() == {"a": "process 1 on elsewhere"} for one in found)

    def test_one_of_another_host_is_taken_over_when_it_is_old(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
        with Claims(tmp_path).take("a") as mine:
            assert not mine
        assert Claims(tmp_path).list_taken() == {"a": "process 1 on elsewhere"}
        os.utime(path, (time.time() - STALE - 10,) * 2)
        assert Claims(tmp_path).list_taken() == {}
        with Claims(tmp_path).take("a") as mine:
            assert mine
        assert list(tmp_path.glob("*")) == []

    def test_one_of_a_time_to_come_is_taken_over(self, tmp_path):
        """As of a host whose clock was wrong, or of a copied folder: it would never grow old."""
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
        os.utime(path, (time.time() + 10 * STALE,) * 2)
        assert Claims(tmp_path).list_taken() == {}
        with Claims(tmp_path).take("a") as mine:
            assert mine

    def test_who_waits_says_for_whom(self, tmp_path):
        path, said = tmp_path / "a.json", []
        path.write_text(json.dumps({"host": "elsewhere", "process": 1}))

        def report(text: str) -> None:
            said.append(text)
            path.unlink()

        with Claims(tmp_path).waiting("a", report):
            assert said == [f"waits for process 1 on elsewhere, which has {path}"]

    def test_a_sweep_says_for_whom_it_waits(self, tmp_path):
        path, said = folder_of(tmp_path, NETS[0]) / "_queue" / "begin.json", []
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"host": "elsewhere", "process": 1}))

        def report(text: str) -> None:
            said.append(text)
            if "waits" in text:
                path.unlink()

        assert list(run(tmp_path, NETS[:1], report=report)["state"]) == ["finished"]
        assert (
            said.count(f"{NETS[0]}: waits for process 1 on elsewhere, which finds out what can be measured")
            == 1
        )

    def test_one_that_slept_until_it_was_taken_over_leaves_the_other_s(self, tmp_path):
        path = tmp_path / "a.json"
        with Claims(tmp_path).take("a") as first:
            os.utime(path, (time.time() - STALE - 10,) * 2)
            other = Claims(tmp_path).take("a")
            assert first
            assert other.__enter__()
        assert path.exists()
        other.__exit__(None, None, None)
        assert not path.exists()

    def test_two_writers_of_one_unit_write_one_file(self, finished, tmp_path):
        rows = folder_of(finished, NETS[0]) / "measurements"
        record = read_run(rows)
        copy = Path(shutil.copytree(rows, tmp_path / "rows"))
        part = next(copy.glob("shard-u000001-*"))
        table = pq.read_table(part)
        part.unlink()
        stores = [ShardStore.join(copy, {"run": record["run"], "parts": record["parts"]}, "u000001")
                  for _ in range(2)]  # fmt: skip
        for store in stores:
            store.append(table)
        same(spectral.read(copy), spectral.read(rows))

    def test_a_unit_that_two_jobs_have_measured_is_there_once(self, tmp_path, alone):
        run(tmp_path, NETS[:1])
        rows = folder_of(tmp_path, NETS[0]) / "measurements"
        (folder_of(tmp_path, NETS[0]) / "_queue" / "000001.done").unlink()
        (folder_of(tmp_path, NETS[0]) / "_queue" / "end.done").unlink()
        run(tmp_path, NETS[:1])
        same(spectral.read(rows), alone[NETS[0]])


@pytest.mark.slow
def test_jobs_share_the_work_and_take_over_what_a_killed_one_left(tmp_path, alone, monkeypatch):
    """The first is stuck in a network; the other measures all the rest, and that when the first is killed."""
    network = f"{Path(__file__).with_name('dying.py')}:build"
    (tmp_path / "models.txt").write_text(f"{network}\n{NETS[0]}")
    given = ["sweep", tmp_path / "models.txt", "--images", "synthetic", "--limit", "7", "--unit", "3",
             "--batch-size", "2", "--workers", "0", "--metrics", "avr,sis",
             "--out", tmp_path / "out"]  # fmt: skip
    claimed, (left, whole) = "*/_queue/begin.json", name_folders([network, NETS[0]]).values()
    monkeypatch.setenv("SPECTRAL_TEST_WAITS", str(tmp_path / "out" / claimed))
    victim = command.start(*given)
    command.wait_until(lambda: any((tmp_path / "out").glob(claimed)), victim)
    monkeypatch.delenv("SPECTRAL_TEST_WAITS")
    other = command.start(*given)
    command.wait_until((tmp_path / "out" / whole / "_queue" / "end.done").exists, victim, other)
    assert Claims(tmp_path / "out" / left / "_queue").list_taken() == {
        "begin": f"process {victim.pid} on {socket.gethostname()}"
    }
    victim.kill()
    _, err = other.communicate(timeout=1200)
    assert other.returncode == 0, err
    victim.communicate()
    assert list(pd.read_csv(tmp_path / "out" / "networks.csv")["state"]) == ["finished"] * 2
    same(spectral.read(tmp_path / "out" / whole), alone[NETS[0]])
    pictures = spectral.load_images("synthetic", size=224, limit=7, workers=0)
    expected = spectral.measure(spectral.load_model(network), pictures, METRICS, batch_size=2, progress=False)
    same(spectral.read(tmp_path / "out" / left), expected)


@pytest.mark.slow
def test_processes_of_one_launch_share_it_and_one_speaks(tmp_path):
    (tmp_path / "models.txt").write_text("\n".join(["no/such", *NETS]))
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "spectral", "sweep", str(tmp_path / "models.txt"), "--images", "synthetic", "--limit", "4",
         "--unit", "2", "--metrics", "sis", "--out", str(tmp_path / "out")],
        env=command.environment(), capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert run.stdout.count("written to") == 1
    said = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, run.stderr
    assert "models.txt, line 1: no/such: unknown model" in said[0]
    assert list(pd.read_csv(tmp_path / "out" / "networks.csv")["state"]) == ["failed", "finished", "finished"]
