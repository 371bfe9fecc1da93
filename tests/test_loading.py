"""Batches decoded ahead, in worker processes: the same pixels in the same order, and nothing left behind."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import command
import numpy as np
import pytest
import torch
from PIL import Image
from test_measurement import tiny

import spectral
from spectral.data import ImageItem, ImageSet, Loading
from spectral.errors import SpectralError

SIDE = 24


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(23):
        pixels = rng.integers(0, 256, (SIDE + i % 3, SIDE + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    return folder


@pytest.fixture(autouse=True)
def earlier() -> Iterator[None]:
    """Tests before may have left a process that stays, as Python's own tracker of shared memory."""
    EARLIER.update(list_children())
    yield
    EARLIER.clear()


EARLIER: set[int] = set()


def list_children() -> set[int]:
    """Processes that a test has started and that still run, from the system's own list."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(status.parent.name))
    return found - EARLIER


def die(number: int) -> Image.Image:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(number)


def draw(number: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (number, 0, 0))


def break_off() -> Image.Image:
    raise OSError("image file is truncated")


def make_set(**special: object) -> ImageSet:
    """Twelve images of their own colour; some, by number, are gotten in another way."""
    items = [
        ImageItem(f"{i:02d}", special.get(f"at_{i}", functools.partial(draw, i)), str(i), (SIDE, SIDE))
        for i in range(12)
    ]
    return ImageSet("folder:drawn", items, (SIDE, SIDE))


class TestOrder:
    @pytest.mark.parametrize("batch_size", [1, 4, 23])
    def test_the_same_pixels_in_the_same_order(self, batch_size, photographs):
        here = spectral.load_images(photographs, size=16, workers=0)
        there = spectral.load_images(photographs, size=16, workers=2)
        expected, found = (list(images.batches(batch_size, start=2)) for images in (here, there))
        assert [indices for indices, _ in found] == [indices for indices, _ in expected]
        for (_, a), (_, b) in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)

    def test_chosen_images(self, photographs):
        images = spectral.load_images(photographs, size=16, workers=2)
        order = [7, 3, 20, 3, 0]
        found = torch.cat([batch for _, batch in images.batches(2, indices=order)])
        torch.testing.assert_close(found, torch.stack([images[i] for i in order]), rtol=0, atol=0)

    def test_nothing_of_it_is_part_of_what_the_images_are(self, photographs):
        sets = [spectral.load_images(photographs, size=16, workers=workers) for workers in (None, 0, 3)]
        assert len({images.fingerprint for images in sets}) == 1
        assert sets[2].take(5).resized(8).loading.workers == 3

    def test_a_measurement_has_the_same_values(self, photographs):
        model = tiny()
        options = {"metrics": ("avr",), "batch_size": 5, "progress": False, "preprocessing": "none"}
        images = spectral.load_images(photographs, size=16)
        here, there = (spectral.measure(model, images, workers=n, **options) for n in (0, 2))
        assert here.equals(there)


class TestFailures:
    def test_an_image_that_breaks_in_a_worker_is_named(self):
        images = make_set(at_7=break_off).with_loading(Loading(2))
        batches = images.batches(2)
        assert [next(batches)[0] for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
        with pytest.raises(SpectralError, match=r"image 07 of folder:drawn .*truncated"):
            next(batches)
        assert not list_children()

    def test_a_worker_that_is_killed(self):
        images = make_set(at_9=functools.partial(die, 9)).with_loading(Loading(2))
        found = []
        with pytest.raises(
            SpectralError, match=r"a worker process .*folder:drawn.* fewer workers"
        ) as failure:
            found.extend(indices for indices, _ in images.batches(2))
        assert found == [[0, 1], [2, 3], [4, 5], [6, 7]][: len(found)]  # what it had ready goes with it
        assert "\n" not in str(failure.value)
        assert not list_children()

    def test_what_was_measured_before_a_worker_died_is_kept(self, tmp_path):
        model, broken = tiny(), make_set(at_9=functools.partial(die, 9))
        options = {"metrics": ("avr",), "batch_size": 2, "progress": False, "preprocessing": "none"}
        with pytest.raises(SpectralError, match="a worker process"):
            spectral.measure(model, broken, out=tmp_path, workers=2, **options)
        kept = spectral.read(tmp_path)["image"].nunique()
        whole = spectral.measure(model, make_set(), out=tmp_path, workers=0, **options)
        assert 1 <= whole.attrs["resumed"] == kept <= 8
        assert whole["image"].nunique() == 12

    @pytest.mark.parametrize("workers", [-1, 1.5, True, "two"])
    def test_a_number_of_workers_that_is_none(self, workers, photographs):
        with pytest.raises(SpectralError, match=r"load_images: workers must be a whole number ≥ 0, got"):
            spectral.load_images(photographs, workers=workers)
        with pytest.raises(SpectralError, match=r"measure: workers must be a whole number ≥ 0, got"):
            spectral.measure(tiny(), photographs, workers=workers)


class TestNothingIsLeft:
    def test_workers_end_with_the_last_batch(self):
        for _ in make_set().with_loading(Loading(2)).batches(3):
            assert list_children()
        assert not list_children()

    def test_workers_end_with_whoever_reads(self):
        batches = make_set().with_loading(Loading(2)).batches(3)
        next(batches)
        del batches
        gc.collect()
        assert not list_children()

    def test_the_handler_of_ended_processes_stays(self):
        before = signal.getsignal(signal.SIGCHLD)
        for _ in make_set().with_loading(Loading(2)).batches(3):
            assert signal.getsignal(signal.SIGCHLD) == before

    def test_few_images_start_no_worker(self):
        for _ in make_set().batches(3):
            assert not list_children()

    def test_an_interrupted_command_ends_its_workers(self, photographs, tmp_path, monkeypatch):
        network, shards = f"{Path(__file__).with_name('dying.py')}:build", "run/measurements/shard-*"
        monkeypatch.setenv("SPECTRAL_TEST_WAITS", str(tmp_path / shards))
        running = command.start(
            "measure", network, "--images", photographs, "--size", "16", "--workers", "2",
            "--batch-size", "1", "--out", tmp_path / "run",
        )  # fmt: skip
        command.wait_until(lambda: any(tmp_path.glob(shards)), running)
        workers = {
            int(p) for p in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        }
        assert len(workers) == 2
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=600)
        assert running.returncode == 130, errors
        assert "Traceback" not in errors
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


@pytest.mark.parametrize(
    "name", ["measure", "compare", "attribute", "diagnose", "budget", "study", "convert"]
)
def test_commands_refuse_a_negative_number_alike(name):
    ended = command.start(name, "bundled/resnet20", "--workers", "-1")
    _, errors = ended.communicate(timeout=600)
    assert ended.returncode == 2
    assert "Invalid value for '--workers': -1 is not in the range x>=0." in errors


class TestKnownFiles:
    """Of a large folder, only files that have changed are read before their turn."""

    COUNT = 520

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path / "cache"))
        folder = tmp_path / "many"
        folder.mkdir()
        for i in range(self.COUNT):
            Image.new("RGB", (4 + i % 2, 4), (i % 256, i // 256, 7)).save(folder / f"{i:04d}.png")
            os.utime(folder / f"{i:04d}.png", (1e9, 1e9))
        return folder

    def wait_until_settled(self) -> None:
        time.sleep(2.1)  # the system's own times say that no file has changed since

    def test_the_same_set_without_reading(self, folder, tmp_path):
        self.wait_until_settled()
        first = spectral.load_images(folder, size=8)
        (kept,) = (tmp_path / "cache" / "images").iterdir()
        opened = count_opened(lambda: spectral.load_images(folder, size=8), folder)
        assert opened == 0
        second = spectral.load_images(folder, size=8)
        assert second.fingerprint == first.fingerprint
        assert [item.key for item in second.items] == [item.key for item in first.items]
        assert [item.size for item in second.items] == [item.size for item in first.items]
        torch.testing.assert_close(second[7], first[7], rtol=0, atol=0)
        kept.write_bytes(kept.read_bytes().replace(b'"0007.png"', b'"0008.png"'))
        assert spectral.load_images(folder, size=8).fingerprint == first.fingerprint

    def test_a_file_that_has_changed_without_another_size_or_time(self, folder):
        self.wait_until_settled()
        first = spectral.load_images(folder, size=8)
        path = folder / "0300.png"
        before = path.read_bytes()
        Image.new("RGB", (4, 4), (44, 2, 7)).save(path)
        os.utime(path, (1e9, 1e9))
        assert len(path.read_bytes()) == len(before)
        second = spectral.load_images(folder, size=8)
        assert second.fingerprint != first.fingerprint
        with pytest.raises(SpectralError, match=r"image 0300\.png of .*has changed since"):
            first[300]

    def test_what_has_just_been_written_is_read_again(self, folder, monkeypatch):
        first = min(path.stat().st_ctime for path in folder.iterdir())
        monkeypatch.setattr(time, "time", lambda: first + 1.9)  # however long it took to write them
        spectral.load_images(folder, size=8)
        assert count_opened(lambda: spectral.load_images(folder, size=8), folder) == self.COUNT


def test_a_limit_opens_no_more_files_than_it_takes(tmp_path):
    """Every command takes its images so."""
    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert count_opened(lambda: spectral.load_images(tmp_path, size=8, limit=3), tmp_path) == 3


def count_opened(call: Callable[[], object], folder: Path) -> int:
    """How many files of a folder a call opens, as the interpreter itself reports it."""
    seen: set[str] = set()
    watching = [True]

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(str(folder)):
            seen.add(str(arguments[0]))

    sys.addaudithook(look)
    call()
    watching.clear()
    return len(seen)


class TestDecodedOnce:
    """For networks that see the same images at one size, each is decoded once."""

    def make(self) -> tuple[ImageSet, list[int]]:
        opened: list[int] = []

        def get(number: int) -> Image.Image:
            opened.append(number)
            if number % 2:
                values = np.random.default_rng(number).random((SIDE, SIDE), dtype=np.float32)
                return Image.fromarray(values)  # 16-bit gray comes so
            pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 3, 3), dtype=np.uint8)
            return Image.fromarray(pixels)

        items = [ImageItem(f"{i}", functools.partial(get, i), str(i), (SIDE, SIDE)) for i in range(9)]
        return ImageSet("drawn", items, (16, 16)), opened

    def test_the_second_network_sees_the_same_pixels_without_decoding(self):
        images, opened = self.make()
        expected = torch.cat([batch for _, batch in images.batches(4)])
        opened.clear()
        once = images.keep_decoded()
        for batch_size in (4, 3):
            found = [*once.batches(batch_size)]
            assert [i for indices, _ in found for i in indices] == [*range(9)]
            torch.testing.assert_close(torch.cat([b for _, b in found]), expected, rtol=0, atol=0)
        assert opened == [*range(9)]

    def test_what_a_network_does_to_its_batch_isnt_kept(self):
        images, _ = self.make()
        once = images.keep_decoded()
        expected = images[0]
        for _ in range(2):
            (_, batch), *_ = once.batches(4)
            torch.testing.assert_close(batch[0], expected, rtol=0, atol=0)
            batch.zero_()

    def test_parts_and_the_same_size_share_it_and_other_sizes_dont(self):
        images, opened = self.make()
        once = images.keep_decoded()
        list(once.take(4).batches(2))
        opened.clear()
        list(once.batches(2))
        assert opened == [4, 5, 6, 7, 8]
        (_, small), *_ = once.resized(8).batches(9)
        torch.testing.assert_close(small[0], images.resized(8)[0], rtol=0, atol=0)

    def test_no_more_memory_than_was_allowed(self):
        images, opened = self.make()
        once = images.keep_decoded(limit=3 * 3 * 16 * 16)
        for _ in range(2):
            found = torch.cat([batch for _, batch in once.batches(1)])
        assert once.kept is not None
        assert 0 < once.kept.nbytes <= 3 * 3 * 16 * 16
        assert len(opened) == 2 * 9 - 3
        torch.testing.assert_close(found, torch.cat([b for _, b in images.batches(1)]), rtol=0, atol=0)

    def test_with_workers(self):
        images, _ = self.make()
        once = images.with_loading(Loading(2)).keep_decoded()
        first, second = (torch.cat([batch for _, batch in once.batches(2)]) for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
