"""Image sets that are listed without being read: the same table, what breaks, and what changes meanwhile."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from test_loading import count_opened
from test_measurement import tiny

import spectral
from spectral.analysis import compare_models
from spectral.data import ListedImages
from spectral.errors import SpectralError, SpectralWarning
from spectral.measurement.images import sample_digests
from spectral.stability import attribute_instability

COUNT = 501
OPTIONS: dict[str, Any] = {
    "metrics": ("avr",), "taps": ("input",), "progress": False, "preprocessing": "none", "batch_size": 125,
}  # fmt: skip


def paint(path: Path, number: int) -> None:
    Image.new("RGB", (9 + number % 2, 8), (number % 256, number // 256, 7)).save(path, compress_level=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that can change no more without another time."""
    folder = tmp_path_factory.mktemp("made") / "many"
    folder.mkdir()
    for i in range(COUNT):
        paint(folder / f"{i:04d}.png", i)
    time.sleep(2.1)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same files by other names, some of which a test may replace."""
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "many"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def replace_by(path: Path, number: int) -> None:
    path.unlink()
    paint(path, number)


def list_images(folder: Path) -> ListedImages:
    images = spectral.load_images(folder, size=8, lazily=True, workers=0)
    assert isinstance(images, ListedImages)
    return images


def measure(images: Any, out: Path | None = None) -> pd.DataFrame:
    return spectral.measure(tiny(), images, out=out, **OPTIONS)


class TestListing:
    def test_nothing_but_the_first_image_is_read(self, made, folder):
        assert count_opened(lambda: list_images(folder), folder) == 1

    def test_few_are_read_at_once(self, folder):
        assert not isinstance(spectral.load_images(folder, size=8, limit=9, lazily=True), ListedImages)

    def test_it_is_the_same_set(self, folder):
        images, known = list_images(folder), spectral.load_images(folder, size=8)
        assert images.ids == known.ids
        assert images.listing != known.fingerprint == images.fingerprint
        assert images.skipped == known.skipped == []

    def test_it_changes_with_names_lengths_and_size(self, folder):
        first = list_images(folder)
        listings = {first.listing, first.resized(9).listing, first[1:].listing}
        (folder / "0007.png").unlink()
        Image.new("RGB", (30, 30)).save(folder / "0007.png")
        listings.add(list_images(folder).listing)
        (folder / "0007.png").rename(folder / "0007b.png")
        listings.add(list_images(folder).listing)
        assert len(listings) == 5

    def test_a_tar_is_listed_by_where_its_images_lie(self, made, tmp_path):
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for path in sorted(made.iterdir()):
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                tar.addfile(info, io.BytesIO(path.read_bytes()))
        images, known = list_images(tmp_path / "all.tar"), spectral.load_images(tmp_path / "all.tar", size=8)
        assert not images.book.seen.keys() - {images.ids[0]}
        assert images.fingerprint == known.fingerprint

    def test_what_was_read_is_remembered(self, made, folder):
        measure(list_images(folder))
        assert count_opened(lambda: spectral.load_images(folder, size=8), folder) == 0


class TestMeasurement:
    def test_the_table_is_that_of_a_set_that_was_read_before(self, folder, tmp_path):
        found = measure(list_images(folder), tmp_path / "run")
        known = measure(spectral.load_images(folder, size=8, workers=0))
        pd.testing.assert_frame_equal(found, known)
        again = spectral.read(tmp_path / "run")
        pd.testing.assert_frame_equal(again, known)
        for one in (found, again):
            assert one.attrs["provenance"]["images_fingerprint"] == known["images"].iloc[0].split("@")[1]
        pd.testing.assert_frame_equal(measure(list_images(folder), tmp_path / "run"), known)

    def test_going_on_under_the_same_circumstances_adds_no_part(self, folder, tmp_path):
        with pytest.warns(SpectralWarning, match="501 of 501 images are smaller than 9×9"):
            first, again = (measure(list_images(folder).resized(9), tmp_path / "run") for _ in range(2))
        assert first.attrs["provenance"] == again.attrs["provenance"]
        assert again.attrs["provenance"]["enlarged"] == COUNT
        assert "parts" not in again.attrs["provenance"]

    def test_workers_tell_what_they_have_read(self, folder):
        images = list_images(folder).with_loading(spectral.data.Loading(2))
        assert len(list(images.batches(200))) == 3
        assert len(images.book.seen) == COUNT

    def test_it_begins_before_the_last_image_is_read(self, folder):
        images, model, read = list_images(folder), tiny(), []
        model.register_forward_pre_hook(lambda *_: read.append(len(images.book.seen)))
        spectral.measure(model, images, **OPTIONS)
        assert read == [125, 250, 375, 500, COUNT]

    def test_broken_files_are_left_out_and_named(self, folder, tmp_path):
        for number in (0, 3, 200):
            (folder / f"{number:04d}.png").unlink()
            (folder / f"{number:04d}.png").write_bytes(b"\x89PNG no more")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = measure(spectral.load_images(folder, size=8, workers=0))
            images = list_images(folder)
        assert [name for name, _ in images.skipped] == ["0000.png"]
        with pytest.warns(SpectralWarning, match=r"skipped 3 broken image file\(s\): 0000\.png .*0200\.png"):
            found = measure(images, tmp_path / "run")
        pd.testing.assert_frame_equal(found, known)
        skipped = spectral.read(tmp_path / "run").attrs["provenance"]["skipped"]
        assert [name for name, _ in skipped] == ["0000.png", "0003.png", "0200.png"]

    def test_other_analyses_get_a_set_of_what_can_be_read(self, folder):
        (folder / "0300.png").unlink()
        (folder / "0300.png").write_bytes(b"")
        with pytest.warns(SpectralWarning, match="0300"):
            rows = spectral.measure_stability(tiny(), list_images(folder), batch_size=250, progress=False,
                                              preprocessing="none")  # fmt: skip
        assert rows["image"].nunique() == COUNT - 1


class TestChanges:
    def stop_after(self, folder: Path, out: Path, number: int) -> None:
        """Measure until an image comes that isn't as it was in this very run."""
        images, path = list_images(folder), folder / f"{number:04d}.png"
        images.items[number].key  # noqa: B018 - read once
        before = path.resolve()
        replace_by(path, 77)
        with pytest.raises(SpectralError, match=rf"image {path.name} of .* \(it has changed since it was"):
            measure(images, out)
        path.unlink()
        path.symlink_to(before)

    def test_a_finished_image_that_has_changed_is_refused(self, folder, tmp_path):
        self.stop_after(folder, tmp_path / "run", 400)
        kept = len(spectral.read(tmp_path / "run"))
        assert kept > 0
        replace_by(folder / "0003.png", 5)  # of the same length
        with pytest.raises(SpectralError, match=r"measurements of image '0003\.png' as it was before it cha"):
            measure(list_images(folder), tmp_path / "run")
        assert len(spectral.read(tmp_path / "run")) == kept

    def test_other_images_are_refused_though_they_are_as_many(self, folder, tmp_path):
        """Rows of images that aren't in the set would be in its table."""
        known = measure(list_images(folder), tmp_path / "run")
        (folder / "0003.png").rename(folder / "new.png")
        lacking = r"measurements of image '0003\.png', which the images lack now"
        with pytest.raises(SpectralError, match=lacking):
            measure(list_images(folder), tmp_path / "run")
        with pytest.raises(SpectralError, match=lacking):
            measure(spectral.load_images(folder, size=8, workers=0), tmp_path / "run")
        assert len(spectral.read(tmp_path / "run")) == len(known)

    def test_another_choice_of_as_many_images_is_refused(self, folder, tmp_path):
        for number in range(COUNT, COUNT + 10):
            paint(folder / f"{number:04d}.png", number)
        first, other = (
            spectral.load_images(folder, size=8, limit=COUNT, seed=seed, lazily=True, workers=0)
            for seed in (0, 1)
        )
        assert set(first.ids) != set(other.ids)
        measure(first, tmp_path / "run")
        with pytest.raises(SpectralError, match="which the images lack now"):
            measure(other, tmp_path / "run")

    def test_another_time_alone_is_no_change_and_what_is_left_may_change(self, made, folder, tmp_path):
        self.stop_after(folder, tmp_path / "run", 400)
        content = (folder / "0003.png").read_bytes()
        (folder / "0003.png").unlink()
        (folder / "0003.png").write_bytes(content)
        replace_by(folder / "0450.png", 6)
        table = measure(list_images(folder), tmp_path / "run")
        assert table.attrs["resumed"] == 375
        assert table["images"].iloc[0].endswith(spectral.load_images(folder, size=8).fingerprint)
        pd.testing.assert_frame_equal(table, measure(spectral.load_images(folder, size=8, workers=0)))

    def test_a_finished_sweep_of_images_that_have_changed_is_refused(self, folder, tmp_path):
        def sweep() -> pd.Series:
            table = spectral.sweep(["bundled/resnet8@random"], folder, ["avr"], taps=["input"], workers=0,
                                   out=tmp_path / "sweep", unit=COUNT, batch_size=128)  # fmt: skip
            return table.iloc[0]

        assert sweep()["state"] == "finished"
        again = sweep()
        assert (again["state"], again["images"]) == ("finished", COUNT)
        replace_by(folder / "0400.png", 6)
        changed = sweep()
        assert changed["state"] == "failed"
        assert "image '0400.png' as it was before" in changed["reason"]
        for path in list(folder.iterdir()):  # as many of other names
            path.rename(folder / f"b{path.name}")
        other = sweep()
        assert other["state"] == "failed"
        assert "which the images lack now" in other["reason"]

    def test_a_run_that_read_all_first_is_continued(self, folder, tmp_path):
        known = measure(spectral.load_images(folder, size=8, workers=0), tmp_path / "run")
        again = measure(list_images(folder), tmp_path / "run")
        assert again.attrs["resumed"] == COUNT
        pd.testing.assert_frame_equal(again, known)
        replace_by(folder / "0007.png", 9)
        with pytest.raises(SpectralError, match="images_fingerprint"):
            measure(list_images(folder), tmp_path / "run")

    def test_one_that_listed_is_continued_by_one_that_has_read_all(self, folder, tmp_path):
        self.stop_after(folder, tmp_path / "run", 400)
        known = spectral.load_images(folder, size=8, workers=0)
        with pytest.raises(SpectralError, match="image_count"):
            measure(known.take(COUNT - 1), tmp_path / "run")
        table = measure(known, tmp_path / "run")
        assert table.attrs["resumed"] == 375
        pd.testing.assert_frame_equal(table, measure(known))
        assert measure(list_images(folder), tmp_path / "run").attrs["resumed"] == COUNT
        for number in (3, 450):  # measured by the one and by the other
            before = (folder / f"{number:04d}.png").resolve()
            replace_by(folder / f"{number:04d}.png", 6)
            for load in (list_images, lambda path: spectral.load_images(path, size=8, workers=0)):
                with pytest.raises(SpectralError, match=rf"image '{number:04d}\.png' as it was before it ch"):
                    measure(load(folder), tmp_path / "run")
            (folder / f"{number:04d}.png").unlink()
            (folder / f"{number:04d}.png").symlink_to(before)

    def test_ranks_compare_a_few_images(self, folder):
        images = list_images(folder)
        known = sample_digests(images)
        assert known == sample_digests(list_images(folder))
        assert len(images.book.seen) == len(set(known)) == 8
        for path in list(folder.iterdir()):
            replace_by(path, int(path.stem) + 2)  # of the same length
        other = list_images(folder)
        assert other.listing == images.listing
        assert not set(sample_digests(other)) & set(known)

    def test_only_what_the_file_system_says_is_looked_at(self, made, folder, tmp_path):
        folder = shutil.copytree(made, tmp_path / "own")  # another test's files keep their times
        time.sleep(2.1)
        measure(list_images(folder), tmp_path / "run")
        again = list_images(folder)
        again.book.seen.clear()  # what is remembered beside the run has no say in it
        assert count_opened(lambda: measure(again, tmp_path / "run"), folder) <= 1
        for path in folder.iterdir():
            os.utime(path)
        assert measure(list_images(folder), tmp_path / "run").attrs["resumed"] == COUNT


class TestOthers:
    """Comparing and attributing read an image when its turn comes, as measuring does."""

    def classify(self, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        conv = torch.nn.Conv2d(3, 4, 3, 2, 1)
        return torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def compare(self, images: Any) -> pd.DataFrame:
        models = {"a": self.classify(0), "b": self.classify(1)}
        options = {"taps": ("input",), "batch_size": 125, "progress": False, "preprocessing": "none"}
        return compare_models(models, images, ("avr", "sis"), **options)

    def attribute(self, images: Any) -> pd.DataFrame:
        options: dict[str, Any] = {"batch_size": 125, "progress": False, "preprocessing": "none"}
        return attribute_instability(self.classify(0), images, **options)

    def test_they_begin_before_the_last_image_is_read(self, made, folder, tmp_path):
        (tmp_path / "net.py").write_text(
            "import sys, torch\n"
            "opened = sys.opened = set()\n"
            f"sys.addaudithook(lambda e, a: opened.add(str(a[0])) if e == 'open' and "
            f"str(a[0]).startswith({str(folder)!r}) else None)\n"
            "class Net(torch.nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        if x.device.type != 'meta' and x.shape[0] > 2 and not hasattr(sys, 'first_batch'):\n"
            "            sys.first_batch = len(opened)\n"
            "        return super().forward(x)\n"
            "def build():\n"
            "    return Net(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.ReLU(),\n"
            "               torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
            "def other():\n"
            "    return build()\n"
        )
        one, other = (f"{tmp_path / 'net.py'}:{name}" for name in ("build", "other"))
        rest = ["--images", str(folder), "--workers", "0", "--input-size", "8"]
        rest += ["--batch-size", "125", "--quiet"]
        commands = [["compare", one, other, *rest], ["attribute", one, *rest]]
        code = (
            "import sys\nfrom spectral.cli import main\n"
            f"for arguments in {commands!r}:\n"
            "    main(arguments, standalone_mode=False)\n"
            "    assert 0 < sys.first_batch <= 125, (arguments, sys.first_batch)\n"
            "    sys.opened.clear(), delattr(sys, 'first_batch')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("analyse", ["compare", "attribute"])
    def test_broken_files_are_left_out_as_of_a_set_that_was_read(self, analyse, folder):
        for number in (3, 200, COUNT - 1):  # the last is a batch of its own
            (folder / f"{number:04d}.png").unlink()
            (folder / f"{number:04d}.png").write_bytes(b"\x89PNG no more")
        run = getattr(self, analyse)
        with pytest.warns(SpectralWarning, match="skipped 3 broken"):
            found = run(list_images(folder).keep_decoded())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectralWarning)
            known = run(spectral.load_images(folder, size=8, workers=0))
        pd.testing.assert_frame_equal(found, known)
