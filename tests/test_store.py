"""A run's folder under faults: damage, foreign and doubled shards, two writers, killed writers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import command
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults import full_disk
from networks import image
from PIL import Image
from test_measurement import tiny

import spectral
from spectral.errors import SpectralError, SpectralWarning
from spectral.files.atomic import is_intact, replacing, seal, write_whole
from spectral.files.writers import claim
from spectral.measurement import measure
from spectral.models.checkpoint import load_into, load_state, save_checkpoint
from spectral.runs.store import MOST_SMALL, ShardStore
from spectral.table.rows import Key, Origin, make_reasons, make_rows
from spectral.training import STATE_NAME, LabelledImages, Recipe, train

X = image(6, 3, 16, 16)


def run(out: Path, **options: Any) -> pd.DataFrame:
    return measure(tiny(), X, ("avr", "am"), batch_size=2, progress=False, out=out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run(out)
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


class TestDamage:
    @pytest.mark.parametrize("name", ["_run.json", "_sites.json", "shard-000000.parquet"])
    def test_no_flipped_bit_goes_unnoticed(self, name, folder):
        path = folder / name
        whole = path.read_bytes()
        for at in random.Random(name).sample(range(8 * len(whole)), 60):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(damaged))
            with pytest.raises(SpectralError, match=rf"{name} .*(again|delete)"):
                spectral.read(folder)
        path.write_bytes(whole)
        assert len(spectral.read(folder))

    @pytest.mark.parametrize("name", ["_run.json", "_sites.json", "shard-000001.parquet"])
    def test_a_cut_file_is_named(self, name, folder):
        path = folder / name
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(SpectralError, match=rf"{name} .*(again|delete)"):
                spectral.read(folder)

    def test_an_altered_value(self, folder):
        path = folder / "shard-000001.parquet"
        table = pq.read_table(path)
        values = table["value"].to_numpy().copy()
        values[3] += 0.1
        column = table.column_names.index("value")
        pq.write_table(table.set_column(column, "value", [values]), path)
        for ask in (lambda: spectral.read(folder), lambda: run(folder)):
            with pytest.raises(SpectralError, match=r"shard-000001\.parquet .*delete it and measure again"):
                ask()

    def test_a_shard_that_something_else_wrote(self, folder):
        path = folder / "shard-000001.parquet"
        pd.read_parquet(path).to_parquet(path)
        with pytest.raises(SpectralError, match=r"shard-000001\.parquet wasn't written by this run"):
            run(folder)

    def test_a_shard_of_another_run(self, folder, tmp_path):
        other = tmp_path / "other"
        measure(tiny(seed=1), X, ("avr", "am"), batch_size=2, progress=False, out=other)
        shutil.copy(other / "shard-000001.parquet", folder)
        for ask in (lambda: spectral.read(folder), lambda: run(folder)):
            with pytest.raises(SpectralError, match=r"shard-000001\.parquet belongs to another run"):
                ask()

    def test_a_shard_that_is_there_twice(self, folder):
        shutil.copy(folder / "shard-000000.parquet", folder / "shard-000007.parquet")
        for ask in (lambda: spectral.read(folder), lambda: run(folder)):
            with pytest.raises(SpectralError, match=r"shard-000007\.parquet is a copy of shard-000000"):
                ask()

    @pytest.mark.parametrize("kept", [1, 7, -1])
    def test_a_shard_that_ends_within_an_image_is_measured_again(self, kept, folder):
        before = spectral.read(folder)
        path = folder / "shard-000001.parquet"
        pq.write_table(pq.read_table(path)[:kept], path)
        with pytest.raises(SpectralError, match="only a part of its rows; continue the run"):
            spectral.read(folder)
        with pytest.warns(SpectralWarning, match=r"shard-000001\.parquet has only a part of its rows"):
            again = run(folder)
        assert again.attrs["resumed"] == 4
        key = ["image", "site", "tap", "metric"]
        left, right = (t.sort_values(key, ignore_index=True) for t in (again, before))
        pd.testing.assert_frame_equal(left, right, check_exact=True)

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", "3", "null", "{}", '{"config": 1}', "\x00", "[" * 100_000, '{"a":' * 100_000],
    )
    @pytest.mark.parametrize("name", ["_run.json", "_sites.json"])
    def test_what_is_no_record(self, name, content, folder):
        (folder / name).write_text(content)
        for ask in (spectral.read, run):
            with pytest.raises(SpectralError, match=rf"{name} .*measure again"):
                ask(folder)
        assert (folder / name).read_text() == content

    @pytest.mark.parametrize("name", ["_run.json", "_sites.json", "shard-000001.parquet"])
    def test_what_is_no_file_or_another_run_s(self, name, finished, tmp_path):
        run(tmp_path / "other")

        def put_folder(path: Path) -> None:
            path.mkdir()
            (path / "mine").touch()

        ways: list[Callable[[Path], object]] = [
            put_folder,
            lambda path: path.symlink_to("/no/such/place"),
            lambda path: path.symlink_to(path.name),
            lambda path: shutil.copy(tmp_path / "other" / name, path),
        ]
        for number, way in enumerate(ways):
            folder = Path(shutil.copytree(finished, tmp_path / str(number)))
            (folder / name).unlink()
            way(folder / name)
            for ask in (spectral.read, run):
                with pytest.raises(SpectralError, match=r"can't be read|is damaged|belongs to another run"):
                    ask(folder)
            assert os.path.lexists(folder / name)

    def test_a_shard_that_is_gone(self, folder):
        (folder / "shard-000001.parquet").unlink()
        with pytest.raises(SpectralError, match="has 4 of the 6 images that were measured"):
            spectral.read(folder)
        with pytest.warns(SpectralWarning, match="lacks the rows of 2 images that it had"):
            assert run(folder).attrs["resumed"] == 4
        assert spectral.read(folder)["image"].nunique() == 6

    def test_a_record_without_its_seal(self, folder):
        path = folder / "_run.json"
        record = json.loads(path.read_text())
        record["parts"][0]["batch_size"] = 7
        path.write_text(json.dumps({key: value for key, value in record.items() if key != "seal"}))
        with pytest.raises(SpectralError, match=r"_run\.json .*measure again"):
            spectral.read(folder)

    def test_shards_without_what_the_run_was(self, folder):
        (folder / "_run.json").unlink()
        for ask in (spectral.read, spectral.write_report, run):
            with pytest.raises(SpectralError, match=r"has shards but no _run\.json"):
                ask(folder)

    def test_files_of_others_stay(self, folder):
        theirs = [folder / name for name in ("notes.partial", "a.tmp", ".b.partial", "shard.txt")]
        for path in theirs:
            path.write_text("mine")
        (folder / "shard-000002.parquet").unlink()
        run(folder)
        assert all(path.read_text() == "mine" for path in theirs)

    def test_a_page_that_another_process_writes_stays_and_what_a_killed_one_left_goes(self, tmp_path):
        code = (
            "import sys, pathlib; from spectral.files.atomic import replacing\n"
            "with replacing(pathlib.Path(sys.argv[1])) as name:\n"
            "    name.touch(); print(name, flush=True); input()"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "page.html")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as writer:
            name = Path(writer.stdout.readline().strip())
            with claim(tmp_path):
                assert name.exists()
            writer.kill()
            writer.wait()
            with claim(tmp_path):
                assert not name.exists()


@pytest.mark.parametrize("room", [0, 50])  # the second takes half of it, and says so by a number alone
def test_a_disk_without_room_for_who_writes_names_the_folder(room, tmp_path):
    refused = pytest.raises(SpectralError, match=r"can't write to .*run .*; make room")
    with full_disk(room), refused, claim(tmp_path / "run", shared=True):
        pass
    assert not list(tmp_path.iterdir())


class TestPlace:
    """A folder is the one that was opened, whatever becomes of its name and of the current folder."""

    ROWS = make_rows(Origin("net", "sha256:0", "tensor@0"), ["a"], ["a"], [Key("sis")], np.array([[0.5]]))

    def test_another_in_its_place_keeps_its_rows(self, tmp_path):
        store = ShardStore(tmp_path / "run", {"model": "net"})
        store.append(self.ROWS)
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(SpectralError, match="run was moved or deleted while it was written"):
            store.append(self.ROWS)
        other = ShardStore(tmp_path / "run", {"model": "net"})
        other.append(self.ROWS)
        with pytest.raises(SpectralError, match="run was moved or deleted while it was written"):
            store.finish([])
        assert spectral.read(tmp_path / "run")["value"].tolist() == [0.5]
        assert spectral.read(tmp_path / "moved")["value"].tolist() == [0.5]

    def test_another_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path)
        with claim(Path("run")):
            store = ShardStore(Path("run"), {"model": "net"})
            monkeypatch.chdir(tmp_path / "other")
            store.append(self.ROWS)
        assert not list((tmp_path / "other").iterdir())
        assert not (tmp_path / "run" / "_lock").exists()
        assert spectral.read(tmp_path / "run")["value"].tolist() == [0.5]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="processes aren't forked here")
    def test_a_process_that_was_forked_inside_has_no_lock_to_keep_or_remove(self, tmp_path):
        held = claim(tmp_path)
        held.__enter__()
        if (child := os.fork()) == 0:
            with suppress(BaseException):
                held.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(SpectralError, match="is being written by process"), claim(tmp_path):
            pass
        held.__exit__(None, None, None)
        reading, writing = os.pipe()
        if (killed := os.fork()) == 0:
            claim(tmp_path / "killed").__enter__()
            if os.fork() == 0:
                os.read(reading, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(killed, 0)
        with claim(tmp_path / "killed"):  # though a child of whoever had it lives on
            os.write(writing, b"end")


class TestParts:
    def test_what_differs_between_the_parts_is_recorded_for_each(self, tmp_path):
        first = ShardStore(tmp_path, {"model": "net"}, {"model": "net", "versions": {"torch": "2.6"}})
        assert first.parts == [{"versions": {"torch": "2.6"}}]
        same = ShardStore(tmp_path, {"model": "net"}, {"model": "net", "versions": {"torch": "2.6"}})
        assert len(same.parts) == 1
        ShardStore(tmp_path, {"model": "net"}, {"model": "net", "versions": {"torch": "2.7"}})
        found = spectral.read(tmp_path).attrs["provenance"]
        assert [part["versions"]["torch"] for part in found["parts"]] == ["2.6", "2.7"]

    def test_measure_and_read_say_the_same(self, folder):
        (folder / "shard-000002.parquet").unlink()
        table = measure(tiny(), X, ("avr", "am"), batch_size=3, progress=False, out=folder)
        parts = table.attrs["provenance"]["parts"]
        assert [part["batch_size"] for part in parts] == [2, 3]
        assert spectral.read(folder).attrs["provenance"]["parts"] == parts


class TestManyShards:
    """Batch by batch on disk at once, and few files in the end."""

    NET = Origin("net", "sha256:0", "tensor@0")
    KEYS = (Key("sis"), Key("avr", "conv", 0, "conv", "2", "input"))

    def append(self, store: ShardStore, batches: range) -> list[str]:
        names = []
        for number in batches:
            ids = [f"{number:04d}-{i}" for i in range(3)]
            rows = make_rows(self.NET, ids, ids, self.KEYS, np.random.default_rng(number).random((3, 2)))
            reasons = {Key("", f"pool{number}"): "why"} if number % 50 == 7 else {}
            store.append(pa.concat_tables([make_reasons(self.NET, reasons), rows]))
            names += ids
        return names

    def list_images(self, table: pd.DataFrame) -> list[str]:
        return [name for name in table["image"].unique() if name]

    def test_every_row_is_there_once_in_few_files(self, tmp_path):
        store = ShardStore(tmp_path, {"model": "net"})
        names = self.append(store, range(200))
        assert len(store.shards) <= 3 + MOST_SMALL
        table = store.read()
        assert self.list_images(table) == names
        assert len(table) == 600 * 2 + 4
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), table, check_exact=True)
        again = ShardStore(tmp_path, {"model": "net"})
        assert again.finished_images() == set(names)
        assert again.measured_sites() == {"", "conv"}
        assert {key.site for key in again.reasons()} == {"pool7", "pool57", "pool107", "pool157"}

    def test_rows_that_were_merged_arent_kept_in_memory(self, tmp_path):
        store = ShardStore(tmp_path, {"model": "net"})
        self.append(store, range(MOST_SMALL))
        levels = []
        for start in range(MOST_SMALL, 4 * MOST_SMALL, MOST_SMALL):
            self.append(store, range(start, start + MOST_SMALL))
            levels.append(pa.total_allocated_bytes())
        assert max(levels) <= levels[0] + 10_000

    def test_what_several_short_runs_left_becomes_few(self, tmp_path):
        names = []
        for start in range(0, 150, 10):
            store = ShardStore(tmp_path, {"model": "net"})
            store.finished_images()
            names += self.append(store, range(start, start + 10))
        assert len(store.shards) <= 2 + MOST_SMALL
        assert self.list_images(store.read()) == names

    def test_a_merge_that_was_broken_off_is_finished(self, tmp_path):
        before, after = tmp_path / "before", tmp_path / "after"
        names = self.append(ShardStore(after, {"model": "net"}), range(MOST_SMALL - 1))
        shutil.copytree(after, before)
        store = ShardStore(after, {"model": "net"})
        store.finished_images()
        names += self.append(store, range(MOST_SMALL - 1, MOST_SMALL))
        (merged,) = store.shards
        expected = store.read()
        for kept in (MOST_SMALL - 1, 5, 1):
            folder = tmp_path / f"broken off with {kept}"
            shutil.copytree(before, folder)
            for path in sorted(folder.glob("shard-*"))[kept:]:
                path.unlink()
            shutil.copy(merged, folder / f"_{merged.name}")
            assert not pd.read_parquet(folder).duplicated(["image", "metric", "site"]).any()
            pd.testing.assert_frame_equal(spectral.read(folder), expected, check_exact=True)
            again = ShardStore(folder, {"model": "net"})
            assert again.finished_images() == set(names)
            assert [path.name for path in again.shards] == [merged.name]
            assert not (folder / f"_{merged.name}").exists()

    @pytest.mark.slow
    def test_a_killed_writer_loses_nothing_that_it_had_appended(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; import numpy as np\n"
            "from spectral.runs.store import ShardStore\n"
            "from spectral.table.rows import Key, Origin, make_rows\n"
            "store = ShardStore(Path(sys.argv[1]), {'model': 'net'})\n"
            "store.finished_images(); begun = int(sys.argv[2])\n"
            "for number in range(begun, begun + 10_000):\n"
            "    names, one = [str(number)], np.ones((1, 1))\n"
            "    store.append(make_rows(Origin('net', '', ''), names, names, [Key('sis')], one))\n"
            "    print(number, flush=True)"
        )
        begun = 0
        for lines in (70, 64, 1):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), str(begun)],
                env=command.environment(), stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            last = [int(process.stdout.readline()) for _ in range(lines)][-1]
            process.kill()
            process.communicate()
            found = [int(image) for image in spectral.read(tmp_path)["image"]]
            assert found == [*range(len(found))]
            assert len(found) > last
            begun = len(found)

    def test_a_flipped_bit_of_a_merged_shard(self, tmp_path):
        store = ShardStore(tmp_path, {"model": "net"})
        self.append(store, range(MOST_SMALL))
        (path,) = store.shards
        whole = path.read_bytes()
        for at in random.Random(0).sample(range(8 * len(whole)), 40):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(damaged))
            for ask in (
                lambda: spectral.read(tmp_path),
                lambda: ShardStore(tmp_path, {"model": "net"}).finished_images(),
            ):
                with pytest.raises(SpectralError, match=r"shard-000000\.parquet .*measure again"):
                    ask()


class TestSeal:
    def test_any_bit_breaks_it(self):
        whole = seal(b'{"a": 1, "seal": "sha256:' + b"0" * 64 + b'", "weights": "sha256:' + b"1" * 64 + b'"}')
        assert is_intact(whole)
        for at in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            assert not is_intact(bytes(damaged))

    @pytest.mark.usefixtures("interruptible")
    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "a"
        write_whole(path, b"first")
        interrupt = signal.raise_signal
        with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
            interrupt(temporary.write_bytes(b"se"))  # two bytes, and signal 2 is SIGINT
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

    def test_what_killed_writers_left_is_removed_and_what_running_ones_write_is_not(self, tmp_path):
        code = (
            "import os, sys; from pathlib import Path; from spectral.files.atomic import replacing\n"
            "with replacing(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_bytes(b'half')\n"
            "    os._exit(9)"
        )
        path = tmp_path / "a.json"
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code, str(path)], env=command.environment(), check=False)
            assert len(list(tmp_path.iterdir())) == 1
        with replacing(path) as temporary:
            temporary.write_bytes(b"whole")
            other = threading.Thread(target=write_whole, args=(path, b"other"))
            other.start()
            other.join()
        assert path.read_bytes() == b"whole"
        assert list(tmp_path.iterdir()) == [path]

    def test_names_of_any_length_and_kind(self, tmp_path):
        for name in ("x" * 255, "\udcff.json", "a b+c"):
            write_whole(tmp_path / name, b"1")
            assert (tmp_path / name).read_bytes() == b"1"


class TestOneWriter:
    def test_the_second_is_refused_and_the_first_named(self, folder):
        with (
            claim(folder),
            pytest.raises(SpectralError, match=r"is being written by process \d+ on .+, since"),
        ):
            run(folder)
        assert len(run(folder))

    def test_in_two_threads(self, tmp_path):
        outcomes: list[str] = []

        nets = [tiny(), tiny()]  # here, since torch's random numbers are those of all threads

        def attempt() -> None:
            try:
                measure(nets.pop(), X, ("avr", "am"), batch_size=2, progress=False, out=tmp_path)
                outcomes.append("done")
            except SpectralError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=attempt) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "done" in outcomes
        refused = [outcome for outcome in outcomes if outcome != "done"]
        assert all("is being written by" in sentence for sentence in refused), refused
        np.testing.assert_array_equal(spectral.read(tmp_path)["value"], run(tmp_path)["value"])

    @pytest.mark.slow
    def test_a_killed_writers_lock_is_taken_over(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from spectral.files.writers import claim\n"
            "with claim(Path(sys.argv[1])):\n"
            "    print('mine', flush=True); input()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=command.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(SpectralError, match=rf"is being written by process {process.pid} on "):
            run(tmp_path)
        process.kill()
        process.wait()
        assert len(run(tmp_path))
        assert not (tmp_path / "_lock").exists()

    def test_nothing_of_the_lock_is_read_as_measurements(self, folder):
        with claim(folder):
            pd.testing.assert_frame_equal(pd.read_parquet(folder), spectral.read(folder), check_exact=True)
        assert json.loads((folder / "_run.json").read_text())["config"]["model"] == "Sequential"


class TestChangedImages:
    """What is measured or trained on is what was loaded."""

    def test_a_file_that_changes_after_loading(self, tmp_path):
        for i in range(3):
            Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        images = spectral.load_images(tmp_path)
        assert images[1].mean() == pytest.approx(40 / 255)
        Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "1.png")
        assert images[2].mean() == pytest.approx(80 / 255)
        with pytest.raises(SpectralError, match=r"image 1\.png of .*has changed since it was loaded.*again"):
            measure(tiny(), images, ("avr",), progress=False, preprocessing="none")

    @pytest.mark.parametrize("picture", [True, False])
    def test_a_dataset_that_gives_something_else_each_time(self, picture):
        class Random(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 2

            def __getitem__(self, index: int) -> Any:
                pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8)
                return Image.fromarray(pixels.numpy()) if picture else pixels.permute(2, 0, 1) / 255

        with pytest.raises(SpectralError, match=r"isn't the same as when it was first read"):
            measure(tiny(), Random(), ("avr",), progress=False, preprocessing="none")

    def test_training_on_other_pixels_or_labels_of_the_same_name(self, tmp_path):
        def images(value: int, label: int = 0) -> LabelledImages:
            pixels = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
            return LabelledImages(pixels, torch.tensor([label, 1, 0, 1]), ("a", "b"), "photos")

        def go(train_set: LabelledImages, test_set: LabelledImages) -> Any:
            recipe = Recipe(epochs=1, batch_size=2)
            return train("resnet20", train_set, test_set, tmp_path, recipe, progress=False)

        go(images(3), images(4))
        with pytest.raises(SpectralError, match="holds a run with train_images = sha256"):
            go(images(5), images(4))
        with pytest.raises(SpectralError, match="holds a run with train_images = sha256"):
            go(images(3, label=1), images(4))
        with pytest.raises(SpectralError, match="holds a run with test_images = sha256"):
            go(images(3), images(5))
        path = tmp_path / STATE_NAME
        whole = path.read_bytes()
        for at in random.Random(0).sample(range(8 * len(whole)), 40):
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(bytes(damaged))
            with pytest.raises(SpectralError, match="is damaged; delete it"):
                go(images(3), images(4))
        path.unlink()
        for way in (lambda: path.symlink_to("/no/such/place"), lambda: (path.unlink(), path.mkdir())):
            way()
            with pytest.raises(SpectralError, match=r"is damaged \((Is a directory|No such f.*)\); delete"):
                go(images(3), images(4))


class TestChangedLabels:
    """Rows have each image's class in the network's numbering: a run goes on with the same ones alone."""

    def images(self, labels: Any, classes: Any = None) -> spectral.data.ImageSet:
        known = spectral.load_images("synthetic", size=32, limit=4, workers=0)
        items = [
            dataclasses.replace(item, label=label) for item, label in zip(known.items, labels, strict=True)
        ]
        return dataclasses.replace(known, items=items, classes=classes)

    def test_other_classes_are_refused(self, tmp_path):
        net = spectral.load_model("bundled/resnet20")
        same = self.images([0, 1, 2, 3])
        spectral.measure(net, same, ("avr",), out=tmp_path, progress=False)
        for labels, classes, said in (
            ([0, 1, 2, 4], None, "'synthetic/0003' with class 3, which is now 4"),
            ([0, 1, 2, None], None, "'synthetic/0003' with class 3, which is now unknown"),
            ([3, 2, 1, 0], None, "'synthetic/0000' and 3 more with class 0, which is now 3"),
            ([0, 1, 2, 3], ["cat", "dog", "ship", "frog"], "'synthetic/0000' and 3 more with class 0, which"),
            ([0, 1, 2, 3], list("abcd"), "'synthetic/0000' and 3 more with class 0, which is now unknown"),
        ):
            with pytest.raises(SpectralError, match=f"measurements of image {said}"):
                spectral.measure(net, self.images(labels, classes), ("avr",), out=tmp_path, progress=False)
        again = spectral.measure(net, same, ("avr",), out=tmp_path, progress=False)
        assert again.attrs["resumed"] == 4

    def test_classes_that_were_unknown_are_refused(self, tmp_path):
        net = spectral.load_model("bundled/resnet20")
        spectral.measure(net, self.images([None] * 4), ("avr",), out=tmp_path, progress=False)
        with pytest.raises(SpectralError, match="'synthetic/0001' with no class, which is now 1"):
            spectral.measure(net, self.images([None, 1, None, None]), ("avr",), out=tmp_path, progress=False)

    def test_an_analysis_of_other_classes_is_another(self, tmp_path):
        net = spectral.load_model("bundled/resnet20")
        options = {"methods": ("flc",), "out": tmp_path, "progress": False, "budget_images": 0,
                   "minutes": 0.01}  # fmt: skip
        spectral.diagnose(net, self.images([0, 1, 2, 3]), **options)
        with pytest.raises(SpectralError, match="with labels = "):
            spectral.diagnose(net, self.images([3, 2, 1, 0]), **options)


class TestNames:
    def test_files_whose_names_are_no_utf8(self, tmp_path):
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(folder)
        for i in range(2):
            pixels = np.full((16, 16, 3), 40 * i, np.uint8)
            Image.fromarray(pixels).save(Path(os.fsdecode(folder + b"/caf\xe9%d.png" % i)))
        images = spectral.load_images(os.fsdecode(folder))
        assert images.ids == ["caf\\xe90.png", "caf\\xe91.png"]
        out = Path(os.fsdecode(folder + b"/out\xff"))
        table = measure(tiny(), images, ("avr",), out=out, progress=False, preprocessing="none")
        assert spectral.read(out).equals(table)

    def test_two_images_of_one_name(self):
        images = spectral.load_images("synthetic", size=16, limit=2)
        twice = dataclasses.replace(images, items=[images.items[0]] * 2)
        with pytest.raises(SpectralError, match="two images are called 'synthetic/0000'"):
            measure(tiny(), twice, ("avr",), progress=False, preprocessing="none")


class TestLimits:
    def test_an_image_of_a_few_bytes_that_unfolds_to_gigabytes(self, tmp_path):
        bomb = tmp_path / "bomb.png"
        Image.new("1", (13_000, 13_000)).save(bomb, optimize=True)
        assert bomb.stat().st_size < 40_000
        with pytest.raises(SpectralError, match=r"bomb\.png.*13000×13000 pixels are more than 89 million"):
            spectral.load_images(bomb)

    @pytest.mark.parametrize(
        ("tensor", "what"),
        [
            (torch.zeros(2, 2, dtype=torch.complex64), "of type complex64"),
            (torch.zeros(2, 2).to(torch.float8_e4m3fn), "of type float8_e4m3fn"),
            (torch.eye(2).to_sparse(), "sparse_coo"),
            (torch.zeros(1).expand(10**4, 10**6), "that repeat few values"),
        ],
    )
    def test_weights_that_are_no_plain_numbers(self, tensor, what, tmp_path):
        path = tmp_path / "net.pth"
        torch.save({"weight": tensor}, path)
        with pytest.raises(SpectralError, match=rf"net\.pth: the weights must be plain .*{what}"):
            load_state(path)

    def test_whole_numbers_in_the_place_of_weights(self):
        layer = torch.nn.Linear(2, 2)
        state = {name: value.long() for name, value in layer.state_dict().items()}
        with pytest.raises(SpectralError, match=r"should be real numbers and are torch\.int64"):
            load_into(layer, state, "file")

    @pytest.mark.parametrize("mean", ["[NaN, 0, 0]", "[Infinity, 0, 0]", "[" * 100_000])
    def test_a_description_that_says_nothing(self, mean, tmp_path):
        net = spectral.load_model("bundled/resnet20@random")
        path = save_checkpoint(net, tmp_path / "net+flc.safetensors", {"architecture": "resnet20"})
        assert torch.equal(spectral.load_model(path).fc.weight, net.fc.weight)  # a plus in a file's name
        described = json.loads(path.with_suffix(".json").read_text())
        text = json.dumps(described).replace("{", f'{{"mean": {mean}, "std": [1, 1, 1], ', 1)
        path.with_suffix(".json").write_text(text)
        with pytest.raises(SpectralError, match=r"net\+flc\.json: expected"):
            spectral.load_model(path)

    @pytest.mark.parametrize("name", ["resnet20-w999999999", "wrn-28-999999999"])
    def test_networks_that_fit_no_machine(self, name):
        with pytest.raises(SpectralError, match="999999999 is too large"):
            spectral.load_model(f"bundled/{name}@random")

    def test_an_operator_that_leaves_no_pixel(self):
        with pytest.raises(SpectralError, match="is too large, at most 1024"):
            spectral.make_perturbation("decimate-999999999")
