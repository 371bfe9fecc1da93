"""Ranks of torch.distributed share a measurement: the rows of one process, one sentence for a failure."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pandas as pd
import pytest
import rank_program
import torch
from click.testing import CliRunner
from networks import Falling

import spectral
from spectral.cli import main
from spectral.files.writers import claim
from spectral.processes.ranks import refuse_lost

pytestmark = pytest.mark.slow  # each start of a process that imports torch takes seconds
HERE = Path(__file__).parent


def torchrun(count: int, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program on so many ranks."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*start, *map(str, arguments)], env=command.environment(), capture_output=True, text=True,
        timeout=1200, check=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found in every case; three go on with what they left in `TestCommand`."""
    folder = tmp_path_factory.mktemp("ranks")
    with claim(folder / "taken"):
        run = torchrun(2, HERE / "rank_program.py", folder)
    assert run.returncode == 0, run.stderr
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return [{**one, "place": folder, "stderr": run.stderr} for one in ranks]


def key(row: list[Any]) -> tuple[str, ...]:
    return tuple(map(str, row[:-1]))


def same_rows(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two tables have the same rows, bit for bit but for the rounding of values."""
    first, second = (sorted(case["rows"], key=key) for case in (one, other))
    assert [key(row) for row in first] == [key(row) for row in second]
    for a, b in zip(first, second, strict=True):
        if a[-1] is not None or b[-1] is not None:  # a reason has no value
            assert a[-1] == pytest.approx(b[-1], rel=1e-6, abs=1e-6), a


class TestRows:
    def test_every_rank_has_the_rows_of_one_process(self, found):
        for rank in found:
            for case in ("memory", "folder", "again"):
                same_rows(rank[case], found[0]["one process"])

    def test_in_memory_they_come_in_the_order_of_the_images(self, found):
        order = [key(row) for row in found[0]["one process"]["rows"]]
        assert all([key(row) for row in rank["memory"]["rows"]] == order for rank in found)

    def test_a_site_that_only_one_ranks_images_reach_has_run(self, found):
        reached = {row[5] for row in found[0]["fork"]["rows"] if row[3]}
        assert {"dark", "bright"} <= reached
        for rank in found:
            same_rows(rank["fork"], found[0]["fork in one process"])

    def test_a_site_that_only_one_ranks_images_reach_has_its_reason(self, found):
        alone = found[0]["late reason in one process"]
        assert [row[11] for row in alone["rows"] if row[11]]
        for rank in found:
            same_rows(rank["late reason"], alone)

    def test_what_one_rank_found_is_known_to_whoever_goes_on(self, found):
        """Although the job ended before that rank could tell the others."""
        assert all("fell" in rank["falls"]["error"] for rank in found)
        options = {"batch_size": 1, "progress": False}
        table = spectral.measure(
            Falling(), rank_program.brightening(12), out=found[0]["place"] / "falls", **options
        )
        assert table.attrs["resumed"] == 11
        same_rows({"rows": rank_program.rows(table)}, found[0]["late reason in one process"])
        whole = spectral.measure(Falling(), rank_program.brightening(12), **options)
        assert table.attrs["sites"] == whole.attrs["sites"]

    def test_more_ranks_than_images(self, found):
        assert {row[3] for row in found[0]["one image"]["rows"] if row[3]} == {"0000"}
        assert len({json.dumps(rank["one image"]["rows"]) for rank in found}) == 1

    def test_the_folder_is_one_run(self, found):
        folder = found[0]["place"] / "run"
        table = spectral.read(folder)
        assert table.attrs["provenance"]["ranks"] == len(found)
        same_rows({"rows": rank_program.rows(table)}, found[0]["one process"])
        assert len({path.name.split("-")[1] for path in folder.glob("shard-r*")}) == len(found) - 1


def without_clock(table: pd.DataFrame) -> pd.DataFrame:
    """What two runs have in common; −140 dB is rounding."""
    table = table[[column for column in table if not column.startswith("latency")]].copy()
    powers = [column for column in table if column.startswith("alias_power_db")]
    table[powers] = 10 ** (table[powers] / 10)
    return table


def same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two trainings ended alike, but for rounding."""
    assert one["weights"].keys() == other["weights"].keys()
    for name, values in one["weights"].items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(other["weights"][name]), rtol=1e-4, atol=1e-5
        )
    for a, b in zip(one["history"], other["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


ANALYSES = (
    "stability", "equivariance", "attribution", "budget", "predictions", "robustness", "consistency",
    "worst shift", "diagonal", "heatmap", "imaging",
)  # fmt: skip


class TestAnalyses:
    @pytest.mark.parametrize("name", ANALYSES)
    def test_every_rank_has_the_values_of_one_process(self, name, found):
        alone = found[0][f"{name} alone"]["rows"]
        assert len(alone) >= 7
        for rank in found:
            assert rank[name]["rows"] == alone  # to the digit: an image is seen with the same others

    def test_one_rank_reads_what_all_have_written(self, found):
        assert found[0]["read"] == 2

    def test_no_thread_outlives_the_process_group(self, found):
        """One that did would abort, now and then, the process that ends under it."""
        for rank in found:
            assert len(rank["threads"]) > 1  # of the machine's numerics
            assert not [name for name in rank["threads"] if "gloo" in name]

    def test_ranks_with_other_weights_are_refused(self, found):
        texts = {rank["other weights"]["error"] for rank in found}
        assert len(texts) == 1
        assert re.search(r"^rank 1 of 2: rank 0 measures with weights = .*; give every rank", texts.pop())

    def test_training_learns_what_one_process_learns(self, found):
        """The norm takes the statistics of whole batches, the gradients are theirs, and so is the attack."""
        alone = found[0]["training alone"]
        assert [rank["training"] for rank in found] == [found[0]["training"]] * len(found)
        same_training(found[0]["training"], alone)

    def test_training_goes_on_in_one_process(self, found):
        assert {rank["training stopped"]["error"] for rank in found} == {"stopped in a step"}
        same_training(found[0]["training resumed"], found[0]["training"])

    def test_all_ranks_distil_into_one_folder(self, found):
        tuned = found[0]["distilling"]["tuned"]
        assert tuned[0] == tuned[1]
        assert all(rank["distilling"]["tuned"] == tuned for rank in found)
        said = {rank["distilling"]["error"] for rank in found}
        assert len(said) == 1
        assert "rank 0 calls distill with seed = 0, not 1" in said.pop()

    def test_what_nobody_foresaw_ends_all_with_one_sentence(self, found):
        texts = {rank["no room"]["error"] for rank in found}
        assert texts == {f"rank 1 of {len(found)}: MemoryError: no room"}

    @pytest.mark.parametrize("command", rank_program.COMMANDS, ids=lambda command: command[0])
    def test_commands_write_the_files_of_one_process(self, command, found, tmp_path, monkeypatch):
        monkeypatch.setattr(rank_program, "COMMANDS", [command])
        rank_program.run_commands(tmp_path)
        together = found[0]["place"] / "commands"
        names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")}
        assert names == {path.relative_to(together) for path in (together / command[0]).rglob("*.csv")}
        assert names
        for name in names:
            one, other = (without_clock(pd.read_csv(folder / name)) for folder in (tmp_path, together))
            pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-9)


class TestRefusing:
    @pytest.mark.parametrize(
        ("case", "said"),
        [
            (
                "weights",
                r"^rank {last} of {count}: rank 0 measures with weights = .*, not .*; give every",
            ),
            ("images", r"^rank {last} of {count}: rank 0 measures with images_fingerprint = .*, not"),
            ("argument", r"^rank 0 of {count}: measure: unknown metric 'avt'"),
            (
                "other seed",
                r"^rank {last} of {count}: rank 0 calls measure_consistency with seed = 0, not 1; give every",
            ),
            ("other calls", r"rank 0 calls measure, not measure_stability; let every"),
            ("other calls, turned", r"rank 0 calls measure_stability, not measure; let every"),
            ("timed and measured", r"rank 0 calls measure_latency, not measure; let every"),
            ("none to compare", r"^rank 1 of {count}: compare_models: "),
            ("none to mend", r"^rank 1 of {count}: measure_fixes: "),
            ("images of a diagnosis", r"^rank {last} of {count}: rank 0 measures with images_fingerprint = "),
            ("network to mend", r"^rank {last} of {count}: rank 0 measures with weights = "),
            ("other labels", r"^rank {last} of {count}: rank 0 measures with labels = .*; give every"),
            ("other preparation", r"^rank {last} of {count}: rank 0 measures with preprocessing = .*0\.5\]"),
            ("all wrong", r"^measure: unknown metric 'avt'"),
            ("folders", r"rank {last} of {count}: .*own{last} on .* isn't the folder that rank 0 writes to"),
            ("taken", r"^rank 0 of {count}: .*taken is being written by process \d+ on .*; wait"),
            ("fails", r"^rank {last} of {count}: the forward of Fork failed .*met a nine"),
            ("wrapped", r"^hooks don't see the replicas of DistributedDataParallel; pass model\.module"),
        ],
    )
    def test_all_ranks_say_the_same(self, case, said, found):
        texts = {rank[case]["error"] for rank in found}
        assert len(texts) == 1
        pattern = said.replace("{last}", str(len(found) - 1)).replace("{count}", str(len(found)))
        assert re.search(pattern, texts.pop())
        assert all(rank[case]["seconds"] < 600 for rank in found)

    @pytest.mark.parametrize(
        ("case", "kind"),
        [("taken", "StorageError"), ("folders", "StorageError"), ("masked", "MaskedGradientError")],
    )
    def test_what_ends_all_is_of_the_kind_that_they_met(self, case, kind, found):
        """An analysis stops at some kinds, and notes others as the reason why it can't have a part."""
        assert all(kind in rank[case]["kinds"] for rank in found)
        assert all("StorageError" not in rank["argument"]["kinds"] for rank in found)

    def test_whoever_waits_for_long_says_so(self, found):
        """Also where warnings are passed over."""
        said = r"rank 0 of 2 has waited 1 s for the others, .* `with spectral\.alone\(\)"
        assert re.search(said, found[0]["stderr"])

    def test_whoever_waits_in_vain_is_told_how_one_works_alone(self):
        said = "[/src/gloo/buffer.cc:5] Timed out waiting 600000ms for send operation to complete"
        with pytest.raises(spectral.BrokenJobError, match=r"with spectral\.alone\(\)"):
            refuse_lost(RuntimeError(said))

    def test_what_was_finished_stays_and_another_number_goes_on(self, found):
        folder = found[0]["place"] / "fails"
        before = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
        assert before
        assert spectral.read(folder)["image"].nunique() >= 2
        with pytest.raises(spectral.SpectralError, match="holds measurements with images_fingerprint"):
            spectral.measure(rank_program.Fork(), rank_program.pictures(12), out=folder, progress=False)
        assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == before

    def test_after_all_refusals_they_measure(self, found):
        assert len({json.dumps(rank["after all"]["rows"]) for rank in found}) == 1


class TestCommand:
    ARGUMENTS = (f"{HERE / 'dying.py'}:build", "--images", "synthetic", "--limit", "16", "--batch-size", "2",
                 "--size", "16", "--mean", "0,0,0", "--std", "1,1,1", "--workers", "0", "--metrics",
                 "avr,am,sis")  # fmt: skip

    def test_a_rank_that_dies_leaves_what_it_finished_and_others_go_on(self, tmp_path, monkeypatch):
        together, alone = tmp_path / "together", tmp_path / "alone"
        monkeypatch.setenv("SPECTRAL_TEST_DIES", "1")
        died = torchrun(2, "-m", "spectral", "measure", *self.ARGUMENTS, "--out", together)
        monkeypatch.delenv("SPECTRAL_TEST_DIES")
        assert died.returncode != 0
        said = [line for line in died.stderr.splitlines() if "kept" in line]
        assert len(said) == 1, died.stderr
        before = {path.name: path.read_bytes() for path in (together / "measurements").glob("shard-*")}
        assert any(name.startswith("shard-r001-") for name in before)
        assert spectral.read(together)["image"].nunique() < 17

        went_on = torchrun(3, "-m", "spectral", "measure", *self.ARGUMENTS, "--out", together)
        assert went_on.returncode == 0, went_on.stderr
        assert re.findall(r"(\d+) threads of process groups", went_on.stderr) == ["0"] * 3
        assert went_on.stdout.count("written to") == 1
        assert "images measured earlier" in went_on.stdout
        assert went_on.stderr.count("16/16") >= 1
        after = {path.name: path.read_bytes() for path in (together / "measurements").glob("shard-*")}
        assert before.items() <= after.items()

        single = CliRunner().invoke(main, ["measure", *self.ARGUMENTS, "--out", str(alone)])
        assert single.exit_code == 0, single.output
        # torch 2.10 writes of its own connections there
        said = [line for line in went_on.stdout.splitlines() if not line.startswith("[Gloo]")]
        assert single.stdout.splitlines()[:5] == said[:5]
        one, other = (rank_program.rows(spectral.read(folder)) for folder in (together, alone))
        same_rows({"rows": one}, {"rows": other})

    def test_ranks_that_nobody_watches_say_that_the_first_died(self, monkeypatch):
        """As Slurm and MPI start them: the first speaks for all, and where it died nobody did."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        job = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "SPECTRAL_TEST_DIES": 0}
        for name, value in job.items():
            monkeypatch.setenv(name, str(value))
        running = []
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            running.append(command.start("measure", *self.ARGUMENTS))
        said = [process.communicate(timeout=600)[1] for process in running]
        assert [process.returncode for process in running] == [-signal.SIGKILL, 1]
        errors = [line for line in said[1].splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert re.search("a rank of this job ended or doesn't answer .* start the job again", errors[0])

    def test_a_sweep_is_told_of_when_all_have_done_their_part(self, found):
        assert [rank["sweep"] for rank in found] == ["finished"] * len(found)

    def test_a_refusal_is_one_sentence(self, found):
        assert all(rank["refused command"]["status"] for rank in found)
        said = found[0]["stderr"].splitlines()
        assert len([line for line in said if "Error: " in line and "cuda:77" in line]) == 1

    def test_what_fails_when_the_first_rank_writes_is_what_ends_all(self, found):
        assert [rank["no room for tables"]["status"] for rank in found] == [2] * len(found)
        said = [line for line in found[0]["stderr"].splitlines() if "Error: " in line and "full" in line]
        assert len(said) == 1
        assert "can't be written" in said[0]

    @pytest.mark.parametrize("rank", [0, 1])
    def test_what_ranks_do_not_share_one_does(self, rank, monkeypatch):
        launch = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost",
                  "MASTER_PORT": 1}  # fmt: skip
        for name, value in launch.items():
            monkeypatch.setenv(name, str(value))
        run = CliRunner().invoke(main, ["sites", "bundled/resnet20"])
        assert run.exit_code == 0
        assert run.stderr.count("runs in one process; the other 1 end.") == 1 - rank
        assert run.stdout.count("layer2.0.conv1") == 1 - rank
