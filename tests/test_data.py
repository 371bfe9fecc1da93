from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.error
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spectral.classes import match_labels
from spectral.data import ImageItem, ImageSet, archives, load_images, load_labelled_arrays, samples, sources
from spectral.errors import SpectralError, SpectralWarning
from spectral.synthetic import make_dead_leaves_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, size: tuple[int, int] = (6, 4), colour: object = RED, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def save_noise(path: Path, seed: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def load_one(path: Path) -> torch.Tensor:
    images = load_images(path.parent)
    assert images.ids == [path.name]
    return images[0]


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    for name, count in {"ant": 20, "bee": 5, "cow": 10}.items():
        for i in range(count):
            save(tmp_path / "animals" / name / f"{i:02d}.png", (4, 4), (len(name), i, 0))
    return tmp_path / "animals"


class TestDecoding:
    def test_rgb_is_read_exactly(self, tmp_path):
        pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
        Image.fromarray(pixels).save(tmp_path / "a.png")
        image = load_one(tmp_path / "a.png")
        assert image.dtype == torch.float32
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, pixels, atol=1e-4)

    @pytest.mark.parametrize(
        "extension", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm", "gif", "JPG", "Png"]
    )
    def test_every_extension_is_read(self, tmp_path, extension):
        image = load_one(save(tmp_path / f"a.{extension}"))
        assert image.shape == (3, 4, 6)
        np.testing.assert_allclose(image.mean((1, 2)), [1, 0, 0], atol=0.03)

    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("L", 51, (51, 51, 51)),
            ("1", 1, (255, 255, 255)),
            ("LA", (51, 255), (51, 51, 51)),
            ("LA", (51, 0), (255, 255, 255)),
            ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
            ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
            ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ],
    )
    def test_gray_and_transparent_modes_become_rgb_over_white(self, tmp_path, mode, colour, expected):
        Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
        image = load_one(tmp_path / "a.png")
        np.testing.assert_allclose(image[:, 1, 1] * 255, expected, atol=1)

    def test_palette_with_and_without_transparency(self, tmp_path):
        for name in ("opaque", "clear"):
            (tmp_path / name).mkdir()
        paletted = Image.new("P", (2, 1))
        paletted.putpalette([*GREEN, *BLUE])
        paletted.putdata([0, 1])
        paletted.save(tmp_path / "opaque" / "a.png")
        paletted.save(tmp_path / "clear" / "a.png", transparency=1)
        assert load_one(tmp_path / "opaque" / "a.png")[:, 0].T.tolist() == [[0, 1, 0], [0, 0, 1]]
        assert load_one(tmp_path / "clear" / "a.png")[:, 0].T.tolist() == [[0, 1, 0], [1, 1, 1]]

    def test_cmyk_jpeg(self, tmp_path):
        Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
        np.testing.assert_allclose(load_one(tmp_path / "a.jpg").mean((1, 2)), [1, 0, 0], atol=0.02)

    @pytest.mark.parametrize("extension", ["png", "tif"])
    def test_sixteen_bits_are_not_truncated(self, tmp_path, extension):
        ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
        Image.fromarray(ramp).save(tmp_path / f"a.{extension}")
        image = load_one(tmp_path / f"a.{extension}")
        assert image.shape == (3, 64, 64)
        for channel in image:
            np.testing.assert_allclose(channel.numpy(), ramp / 65535, atol=1e-7)

    def test_sixteen_bits_survive_resizing(self, tmp_path):
        step = np.zeros((32, 32), np.uint16)
        step[:, 16:] = 65535
        Image.fromarray(step).save(tmp_path / "a.png")
        image = load_images(tmp_path, size=16)[0]
        # The cubic overshoots at the step; values stay in the range all the same.
        assert (image.min(), image.max()) == (0, 1)
        assert image[:, :, :4].max() < 0.01
        assert image[:, :, -4:].min() > 0.99

    def test_float_images_in_the_unit_range(self, tmp_path):
        values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
        Image.fromarray(values).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(load_one(tmp_path / "a.tif")[1].numpy(), values)

    @pytest.mark.parametrize(
        "values",
        [np.full((4, 4), 70000, np.int32), np.full((4, 4), 255, np.int32), np.full((4, 4), 1.5, np.float32)],
    )
    def test_values_without_a_known_white_are_skipped(self, tmp_path, values):
        Image.fromarray(values).save(tmp_path / "a.tif")
        save(tmp_path / "b.png")
        with pytest.warns(UserWarning, match="which of them is white is unknown"):
            assert load_images(tmp_path).ids == ["b.png"]

    @pytest.mark.parametrize("extension", ["jpg", "png"])
    def test_exif_orientation_is_honoured(self, tmp_path, extension):
        # Orientation 6: to be turned by 90° clockwise, so the left column becomes the top row.
        picture = Image.new("RGB", (32, 16), BLUE)
        picture.paste(RED, (0, 0, 16, 16))
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / f"a.{extension}", exif=exif)
        images = load_images(tmp_path)
        image = images[0]
        assert image.shape == (3, 32, 16)
        assert images.items[0].size == (32, 16)
        np.testing.assert_allclose(image[:, 4, 8], [1, 0, 0], atol=0.03)
        np.testing.assert_allclose(image[:, 28, 8], [0, 0, 1], atol=0.03)

    def test_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(load_one(tmp_path / "a.gif").mean((1, 2)), [0, 1, 0], atol=0.01)


class TestResizing:
    def test_centre_is_cropped_after_the_shorter_side_is_fitted(self, tmp_path):
        picture = Image.new("RGB", (80, 20), BLUE)
        picture.paste(GREEN, (30, 0, 50, 20))
        picture.save(tmp_path / "a.png")
        image = load_images(tmp_path, size=10)[0]
        assert image.shape == (3, 10, 10)
        np.testing.assert_allclose(image[:, 5, 5], [0, 1, 0], atol=0.01)
        np.testing.assert_allclose(image.mean((1, 2)), [0, 1, 0], atol=0.05)

    @pytest.mark.parametrize("size", [1, 7, (5, 9), (9, 5)])
    def test_any_size(self, tmp_path, size):
        save(tmp_path / "a.png", (13, 8))
        expected = (size, size) if isinstance(size, int) else size
        assert load_images(tmp_path, size=size)[0].shape == (3, *expected)

    def test_own_size_keeps_the_pixels(self, tmp_path):
        save_noise(tmp_path / "a.png", 1)
        assert torch.equal(load_images(tmp_path, size=32)[0], load_images(tmp_path)[0])

    def test_reduction_is_antialiased(self, tmp_path):
        board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
        Image.fromarray(board).save(tmp_path / "a.png")
        image = load_images(tmp_path, size=16)[0]
        # Away from the border, where the filter is cut off, the board averages to gray.
        np.testing.assert_allclose(image[:, 4:-4, 4:-4], 0.5, atol=0.02)

    def test_resized_shows_the_same_images(self, tmp_path):
        save(tmp_path / "a.png", (20, 10), GREEN)
        images = load_images(tmp_path, size=10)
        smaller = images.resized((3, 4))
        assert smaller.ids == images.ids
        assert smaller[0].shape == (3, 3, 4)
        assert images[0].shape == (3, 10, 10)
        assert smaller.fingerprint != images.fingerprint


class TestFolders:
    def test_flat_folder_has_no_labels(self, tmp_path):
        for name in ("b.png", "a.jpg"):
            save(tmp_path / "kittens" / name)
        images = load_images(tmp_path / "kittens")
        assert images.source == "folder:kittens"
        assert images.ids == ["a.jpg", "b.png"]
        assert images.labels == [None, None]
        assert images.classes is None
        assert not images.has_labels

    def test_subfolders_are_classes(self, class_folder):
        images = load_images(class_folder)
        assert len(images) == 35
        assert images.classes == ["ant", "bee", "cow"]
        assert images.labels == [0] * 20 + [1] * 5 + [2] * 10
        assert images.ids[20] == "bee/00.png"
        assert images.has_labels

    def test_a_name_that_begins_with_one_of_imagenets_classes_has_it(self, tmp_path):
        for name in (
            "n01440764_tench.png",
            "n01443537.png",
            "n0144353_short.png",
            "cat.png",
            "xn01440764.png",
        ):
            save(tmp_path / name)
        labels = {"cat.png": None, "n0144353_short.png": None, "n01440764_tench.png": 0, "n01443537.png": 1,
                  "xn01440764.png": None}  # fmt: skip
        for images in (load_images(tmp_path), load_images(sorted(tmp_path.iterdir()))):
            assert dict(zip(images.ids, images.labels, strict=True)) == labels
            assert images.classes == ["n01440764", "n01443537"]
        one = load_images(tmp_path / "n01440764_tench.png")
        assert (one.labels, one.classes) == ([0], ["n01440764"])
        network = SimpleNamespace(spectral_info=SimpleNamespace(classes=None, num_classes=1000))
        assert match_labels(network, one).renumber(one.labels) == [0]

    def test_class_is_the_first_level_however_deep(self, tmp_path):
        for name in ("x/1/a.png", "x/2/a.png", "y/a.png", "stray.png"):
            save(tmp_path / name)
        images = load_images(tmp_path)
        assert dict(zip(images.ids, images.labels, strict=True)) == {
            "x/1/a.png": 0,
            "x/2/a.png": 0,
            "y/a.png": 1,
            "stray.png": None,
        }

    def test_the_test_split_is_chosen(self, tmp_path):
        for name in ("train/x/1.png", "train/x/2.png", "test/x/3.png", "test/y/4.png"):
            save(tmp_path / "set" / name)
        images = load_images(tmp_path / "set")
        assert images.source == "folder:set/test"
        assert images.ids == ["x/3.png", "y/4.png"]
        assert images.classes == ["x", "y"]

    @pytest.mark.parametrize(
        ("names", "source", "ids"),
        [
            (("train/x/1.png", "val/x/2.png", "val/y/3.png"), "folder:set/val", ["x/2.png", "y/3.png"]),
            (("Train/x/1.png", "Test/x/2.png"), "folder:set/Test", ["x/2.png"]),
            (("train/x/1.png", "test/2.png", "valid/x/3.png"), "folder:set/valid", ["x/3.png"]),
            (("train/x/1.png", "test/2.png"), "folder:set/test", ["2.png"]),
            (("val/x/1.png", "bus/x/2.png"), "folder:set", ["bus/x/2.png", "val/x/1.png"]),
        ],
    )
    def test_the_part_for_validation_is_chosen_beside_one_for_training(self, tmp_path, names, source, ids):
        for name in names:
            save(tmp_path / "set" / name)
        images = load_images(tmp_path / "set")
        assert (images.source, images.ids) == (source, ids)

    def test_shards_beside_an_image_are_told(self, tmp_path):
        save(tmp_path / "set" / "preview.png")
        (tmp_path / "set" / "train-0.tar").touch()
        with pytest.warns(SpectralWarning, match="1 file.s. that may hold many images each, as train-0.tar"):
            assert load_images(tmp_path / "set").ids == ["preview.png"]

    def test_classes_named_train_and_test_stay_classes(self, tmp_path):
        for name in ("train/1.png", "test/2.png", "bus/3.png"):
            save(tmp_path / name)
        assert load_images(tmp_path).classes == ["bus", "test", "train"]

    def test_other_files_are_ignored(self, tmp_path):
        save(tmp_path / "a.png")
        (tmp_path / "README.txt").write_text("no image")
        (tmp_path / "._a.png").write_bytes(b"not an image either")
        save(tmp_path / ".cache" / "b.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = load_images(tmp_path)
        assert images.ids == ["a.png"]
        assert images.skipped == []

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        save(tmp_path / "elsewhere" / "a.png")
        folder = tmp_path / "set"
        folder.mkdir()
        try:
            (folder / "x").symlink_to(tmp_path / "elsewhere")
            (folder / "loop").symlink_to(folder)
        except OSError:
            pytest.skip("links can't be made here")
        assert load_images(folder).ids == ["x/a.png"]

    def test_a_folder_that_can_not_be_listed_is_refused(self, tmp_path, monkeypatch):
        """A class would be missing, and those behind it have other numbers."""
        for name in ("bus/1.png", "cat/2.png", "dog/3.png"):
            save(tmp_path / name)
        whole = os.scandir

        def refuse(path="."):
            if Path(path).name == "cat":  # as the system does, but for its administrator
                raise PermissionError(13, "Permission denied", str(path))
            return whole(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(SpectralError, match=r"cat' can't be listed \(Permission denied\), so what"):
            load_images(tmp_path)

    def test_broken_files_are_named_skipped_and_counted(self, tmp_path):
        save_noise(tmp_path / "good.png", 0)
        for name in ("cut.jpg", "cut.png"):
            content = save_noise(tmp_path / name, 0).read_bytes()
            (tmp_path / name).write_bytes(content[: len(content) // 2])
        (tmp_path / "text.png").write_text("I am not an image")
        (tmp_path / "empty.jpg").touch()
        with pytest.warns(UserWarning, match=r"skipped 4 broken image file\(s\): cut\.jpg \(.*truncated"):
            images = load_images(tmp_path)
        assert images.ids == ["good.png"]
        assert [name for name, _ in images.skipped] == ["cut.jpg", "cut.png", "empty.jpg", "text.png"]
        reasons = dict(images.skipped)
        assert "truncated" in reasons["cut.jpg"]
        assert "truncated" in reasons["cut.png"]
        assert reasons["text.png"] == "not an image"
        assert not any(str(tmp_path) in reason for reason in reasons.values())

    def test_unreadable_file_is_skipped(self, tmp_path):
        save(tmp_path / "a.png")
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
        with pytest.warns(UserWarning, match=r"gone\.png \(No such file or directory\)"):
            assert load_images(tmp_path).ids == ["a.png"]

    def test_limit_counts_good_images(self, tmp_path):
        for i in range(6):
            save(tmp_path / f"{i}.png")
        for i in range(0, 6, 2):
            (tmp_path / f"{i}.png").write_text("broken")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_images(tmp_path, limit=3).ids == ["1.png", "3.png", "5.png"]

    def test_limit_is_spread_over_classes(self, class_folder):
        images = load_images(class_folder, limit=12)
        assert [images.labels.count(label) for label in (0, 1, 2)] == [4, 4, 4]
        # The smallest class is used up; the others share the rest.
        images = load_images(class_folder, limit=19)
        assert [images.labels.count(label) for label in (0, 1, 2)] == [7, 5, 7]
        assert images.ids == sorted(images.ids)

    def test_limit_is_seeded(self, class_folder):
        first, again, other = (load_images(class_folder, limit=9, seed=seed).ids for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_smaller_limit_is_part_of_a_larger(self, class_folder):
        few, many = (set(load_images(class_folder, limit=limit).ids) for limit in (5, 14))
        assert few < many

    def test_limit_beyond_the_folder_gives_all(self, class_folder):
        assert load_images(class_folder, limit=1000).fingerprint == load_images(class_folder).fingerprint

    @pytest.mark.parametrize("limit", [0, -1, 2.5, True])
    def test_bad_limit(self, tmp_path, limit):
        with pytest.raises(SpectralError, match="the number of images must be a whole number ≥ 1"):
            load_images(tmp_path, limit=limit)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(SpectralError, match=r"no images in folder .*: expected files ending in .bmp"):
            load_images(tmp_path)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(SpectralError, match=r"no folder .*nowhere'; pass an existing folder"):
            load_images(tmp_path / "nowhere")

    def test_file_instead_of_folder(self, tmp_path):
        path = save(tmp_path / "a.png")
        with pytest.raises(SpectralError, match=r"expected a folder of images, got the file .*a\.png"):
            load_labelled_arrays(path)

    def test_nothing_but_broken_files(self, tmp_path):
        (tmp_path / "a.png").write_text("broken")
        with pytest.raises(SpectralError, match=r"none of the 1 image files .* 'a\.png': not an image"):
            load_images(tmp_path)

    def test_unknown_source_offers_the_nearest(self):
        with pytest.raises(SpectralError, match=r"unknown images 'sampels'.*nearest: 'samples'"):
            load_images("sampels")

    @pytest.mark.parametrize("size", [0, (3, -1), 2.5])
    def test_bad_size(self, size):
        with pytest.raises(SpectralError, match="size must be a whole number"):
            load_images("samples", size=size)

    def test_bad_seed(self):
        with pytest.raises(SpectralError, match="seed must be a whole number"):
            load_images("samples", seed=-1)


class TestFingerprint:
    def test_follows_the_bytes_not_the_place_or_the_time(self, tmp_path):
        save(tmp_path / "one" / "set" / "a.png")
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        os.utime(tmp_path / "two" / "set" / "a.png", (1, 1))
        fingerprint = load_images(tmp_path / "one" / "set").fingerprint
        assert len(fingerprint) == 16
        assert int(fingerprint, 16) >= 0
        assert load_images(tmp_path / "two" / "set").fingerprint == fingerprint
        save(tmp_path / "two" / "set" / "a.png", colour=GREEN)
        assert load_images(tmp_path / "two" / "set").fingerprint != fingerprint

    def test_changes_with_size_and_choice(self, class_folder):
        sets = [
            load_images(class_folder, **options) for options in ({}, {"size": 4}, {"limit": 9}, {"limit": 8})
        ]
        assert len({images.fingerprint for images in sets}) == 4

    def test_of_a_part_is_that_of_the_same_images_loaded_so(self):
        images = load_images("synthetic", size=8, limit=6)
        assert images[:4].fingerprint == load_images("synthetic", size=8, limit=4).fingerprint
        assert images[:4].fingerprint != images[1:5].fingerprint


class TestImageSet:
    @pytest.fixture
    def images(self) -> ImageSet:
        return load_images("synthetic", size=(6, 8), limit=7)

    def test_nothing_is_read_before_it_is_asked_for(self):
        opened = []

        def read(index: int) -> Image.Image:
            opened.append(index)
            return Image.new("RGB", (2, 2))

        items = [ImageItem(f"{i}", functools.partial(read, i), "", (2, 2)) for i in range(5)]
        images = ImageSet("here", items)
        assert (len(images), images.ids[4], len(images.fingerprint), opened) == (5, "4", 16, [])
        batches = images.batches(2)
        assert opened == []
        next(batches)
        assert opened == [0, 1]

    def test_indexing(self, images):
        assert torch.equal(images[-1], images[6])
        assert [image.shape for image in images] == [(3, 6, 8)] * 7
        with pytest.raises(IndexError):
            images[7]

    def test_slices_keep_everything_else(self, images):
        part = images[2:5]
        assert part.ids == images.ids[2:5]
        assert part.size == (6, 8)
        assert torch.equal(part[0], images[2])

    def test_take(self, images):
        assert images.take(3).ids == images.ids[:3]
        assert len(images.take(100)) == 7
        with pytest.raises(SpectralError, match="the number of images must be"):
            images.take(0)

    def test_batches_cover_all_once_in_order(self, images):
        batches = list(images.batches(3))
        assert [indices for indices, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
        assert torch.equal(torch.cat([batch for _, batch in batches]), torch.stack(list(images)))

    def test_batches_resume_and_choose(self, images):
        assert [indices for indices, _ in images.batches(3, start=5)] == [[5, 6]]
        assert list(images.batches(3, start=7)) == []
        chosen = list(images.batches(2, indices=[6, 0, 3], start=1))
        assert [indices for indices, _ in chosen] == [[0, 3]]
        assert torch.equal(chosen[0][1][1], images[3])

    def test_batch_size_must_be_positive(self, images):
        with pytest.raises(SpectralError, match="batch_size must be a whole number ≥ 1, got 0"):
            images.batches(0)

    def test_images_of_different_sizes_form_no_batch(self, tmp_path):
        save(tmp_path / "a.png", (6, 4))
        save(tmp_path / "b.png", (5, 4))
        images = load_images(tmp_path)
        assert [image.shape for image in images] == [(3, 4, 6), (3, 4, 5)]
        with pytest.raises(SpectralError, match=r"a\.png is 4×6, b\.png is 4×5.*load them with size="):
            images.batches(2)
        assert len(list(images.batches(2, indices=[1]))) == 1

    def test_image_that_vanished_is_named(self, tmp_path):
        path = save(tmp_path / "a.png")
        images = load_images(tmp_path)
        path.unlink()
        with pytest.raises(
            SpectralError, match=r"image a\.png of folder:.* can no longer be read \(No such file"
        ):
            images[0]

    def test_can_be_sent_to_another_process(self, class_folder):
        images = load_images(class_folder, size=3, limit=4)
        copy = pickle.loads(pickle.dumps(images))
        assert copy.fingerprint == images.fingerprint
        assert torch.equal(copy[2], images[2])

    def test_repr_is_short(self, images):
        assert repr(images) == "ImageSet('synthetic', 7 images, size=(6, 8))"


class TestSynthetic:
    def test_image_does_not_depend_on_the_limit(self):
        few, many = (load_images("synthetic", size=12, limit=limit, seed=3) for limit in (3, 9))
        assert torch.equal(few[2], many[2])
        assert few.ids == many.ids[:3]
        assert not torch.equal(few[1], few[2])

    def test_seed_matters_and_neighbouring_seeds_share_no_image(self):
        sets = [load_images("synthetic", size=12, limit=4, seed=seed) for seed in (0, 1)]
        assert len({image.numpy().tobytes() for images in sets for image in images}) == 8
        assert sets[0].fingerprint != sets[1].fingerprint

    def test_is_a_dead_leaves_image_in_eight_bits(self):
        image = load_images("synthetic", size=16, limit=1)[0]
        np.testing.assert_allclose(image, make_dead_leaves_image(16, 0), atol=0.5 / 255 + 1e-6)

    def test_defaults(self):
        images = load_images("synthetic")
        assert (len(images), images.size, images.has_labels) == (1000, (224, 224), False)


class TestSamples:
    @pytest.fixture(autouse=True)
    def need_photographs(self):
        if not all(find_spec(package) for package in ("skimage", "foolbox")):
            pytest.skip("the packages of the extra 'samples' are not installed")

    @pytest.mark.parametrize(("size", "at_least"), [(224, 200), (32, 1000)])
    def test_crops_are_many_and_different(self, size, at_least):
        images = load_images("samples", size=size)
        assert len(images) >= at_least
        assert len(set(images.ids)) == len(images)
        digests = set()
        for image in images:
            assert image.shape == (3, size, size)
            assert image.numpy().std() > 0.02
            digests.add(hashlib.sha256(image.numpy().tobytes()).digest())
        assert len(digests) >= at_least

    def test_share_of_each_photograph_is_even(self):
        images = load_images("samples", size=224, limit=250)
        crops = [
            name.split("-", 1)[1]
            for name, label in zip(images.ids, images.labels, strict=True)
            if label is None
        ]
        shares = [crops.count(name) for name in set(crops)]
        assert len(shares) >= 25
        assert max(shares) - min(shares) <= 1

    def test_labelled_cifar_images_come_first_and_whole(self):
        images = load_images("samples", size=32, limit=25)
        assert images.classes[3] == "cat"
        assert [label is not None for label in images.labels] == [True] * 20 + [False] * 5
        folder = Path(find_spec("foolbox").submodule_search_locations[0]) / "data"
        for i, path in enumerate(sorted(folder.glob("cifar10_*.png"))):
            assert images.ids[i] == f"samples/{i:04d}-{path.stem}"
            assert images.labels[i] == int(path.stem.rsplit("_", 1)[1])
            expected = np.array(Image.open(path).convert("RGB")) / np.float32(255)
            np.testing.assert_array_equal(images[i].permute(1, 2, 0), expected)

    def test_labelled_imagenet_images_come_first(self):
        images = load_images("samples", size=224, limit=22)
        assert images.classes is not None
        assert (len(images.classes), images.classes[243]) == (1000, "n02108422")  # bull mastiff
        assert images.ids[0] == "samples/0000-imagenet_00_243"
        assert images.labels[0] == 243
        assert images.labels[20:] == [None, None]

    def test_crop_does_not_depend_on_the_limit(self):
        few, many = (load_images("samples", size=(40, 60), limit=limit) for limit in (30, 70))
        assert few.ids == many.ids[:30]
        assert few[:30].fingerprint == many[:30].fingerprint
        assert torch.equal(few[29], many[29])

    def test_seed_moves_the_crops(self, monkeypatch):
        # A single photograph, so that the order of photographs has no part in it.
        monkeypatch.setattr(samples, "_PHOTOGRAPHS", {"sklearn": ("datasets/images/china.jpg",)})
        monkeypatch.setattr(samples, "_LABELLED_PACKAGE", "not_installed")
        first, again, other = (load_images("samples", size=48, limit=8, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first[5], again[5])
        assert first.fingerprint == again.fingerprint != other.fingerprint
        assert len({image.numpy().tobytes() for images in (first, other) for image in images}) == 16

    def test_crops_lie_in_their_photograph_and_are_not_enlarged(self):
        images = load_images("samples", size=(100, 150), limit=80)
        for item in images.items[20:]:
            crop = item.open()
            assert (crop.height, crop.width) == item.size
            assert crop.height >= 100
            assert crop.width >= 150

    def test_without_size_every_photograph_is_whole(self):
        images = load_images("samples")
        assert len(images) >= 25
        assert {image.shape[0] for image in images} == {3}
        assert images[0].shape[1:] == images.items[0].size
        stems = [name.split("-", 1)[1] for name in images.ids]
        assert len(set(stems)) == len(stems)

    def test_resized_shows_the_same_crops(self):
        large = load_images("samples", size=128, limit=30)
        small = large.resized(32)
        pooled = torch.nn.functional.adaptive_avg_pool2d(large[25], 32)
        assert (small[25] - pooled).abs().mean() < 0.02

    def test_size_beyond_every_photograph(self):
        with pytest.raises(SpectralError, match="no sample photograph is as large as 5000×5000"):
            load_images("samples", size=5000)

    def test_missing_packages_leave_the_rest(self, monkeypatch):
        everything = load_images("samples", size=64)
        monkeypatch.setattr(samples, "find_spec", lambda name: find_spec(name) if name == "sklearn" else None)
        images = load_images("samples", size=224)
        assert {name.split("-", 1)[1] for name in images.ids} == {"china", "flower"}
        assert len(images) == 240
        assert not images.has_labels
        assert load_images("samples", size=64).fingerprint != everything.fingerprint

    def test_no_package_at_all(self, monkeypatch):
        monkeypatch.setattr(samples, "find_spec", lambda name: None)
        with pytest.raises(SpectralError, match=r"pip install 'spectral-aliasing\[samples\]'"):
            load_images("samples", size=32)

    def test_packages_are_not_imported(self):
        code = (
            "import sys; from spectral.data import load_images; load_images('samples', size=32)[30]; "
            "heavy = {'skimage', 'foolbox', 'sklearn', 'matplotlib', 'torchvision'}; "
            "print(sorted(heavy & set(sys.modules)))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pack(folder: str, files: dict[str, bytes]) -> bytes:
    """Make a .tar.gz as the data sets are published, with a file that is not needed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {**files, "unlabeled_X.bin": b"not needed"}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, from the byte asked for on; ``cut`` ends the connection after so many bytes."""

    content = b""
    cut: int | None = None
    ranges = True
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server():
    Server.cut, Server.ranges, Server.requests = None, True, []
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class TestStl10:
    COUNT = 20

    @pytest.fixture
    def pixels(self):
        """Images as one looks at them: (N, height, width, 3)."""
        return np.random.default_rng(0).integers(0, 256, (self.COUNT, 96, 96, 3), dtype=np.uint8)

    @pytest.fixture
    def files(self, pixels) -> dict[str, bytes]:
        # The published layout: image after image, channel after channel, column after column; labels from 1.
        columns = [image[:, :, c].tobytes(order="F") for image in pixels for c in range(3)]
        labels = bytes(1 + i % 10 for i in range(self.COUNT))
        return {"test_X.bin": b"".join(columns), "test_y.bin": labels}

    @pytest.fixture
    def archive(self, files, server, monkeypatch) -> archives.Archive:
        Server.content = pack("stl10_binary", files)
        checksums = {name: md5(content) for name, content in files.items()}
        archive = archives.Archive(
            "stl10", f"{server}/stl10_binary.tar.gz", md5(Server.content), "stl10_binary", checksums
        )
        monkeypatch.setattr(archives, "stl10_archive", lambda: archive)
        return archive

    def test_is_downloaded_unpacked_and_read_upright(self, archive, pixels, tmp_path):
        images = load_images("stl10", root=tmp_path)
        assert (images.source, len(images), images.ids[7]) == ("stl10", self.COUNT, "stl10/test/0007")
        assert images.labels == [i % 10 for i in range(self.COUNT)]
        assert images.classes[0] == "airplane"
        assert images.classes[-1] == "truck"
        np.testing.assert_array_equal(images[7].permute(1, 2, 0), pixels[7] / np.float32(255))
        left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
        assert left == ["stl10_binary", "stl10_binary/test_X.bin", "stl10_binary/test_y.bin"]

    def test_is_downloaded_once(self, archive, tmp_path):
        load_images("stl10", root=tmp_path)
        load_images("stl10", root=tmp_path)
        assert len(Server.requests) == 1

    def test_is_enlarged_bilinearly_as_in_the_study(self, archive, pixels, tmp_path):
        image = load_images("stl10", size=224, root=tmp_path)[3]
        # Bilinear by hand: each output pixel's centre, in the input's coordinates, between two neighbours.
        position = np.clip((np.arange(224) + 0.5) * 96 / 224 - 0.5, 0, 95)
        below = np.minimum(position.astype(int), 94)
        share = position - below
        weights = np.zeros((224, 96))
        weights[np.arange(224), below], weights[np.arange(224), below + 1] = 1 - share, share
        expected = weights @ (pixels[3] / 255).transpose(2, 0, 1) @ weights.T
        np.testing.assert_allclose(image, expected, atol=1.5 / 255)

    def test_limit_is_spread_over_the_classes(self, archive, tmp_path):
        images = load_images("stl10", limit=10, root=tmp_path)
        assert sorted(images.labels) == list(range(10))
        assert images.ids == sorted(images.ids)

    def test_place_comes_from_the_environment(self, archive, tmp_path, monkeypatch):
        monkeypatch.setenv("SPECTRAL_DATA", str(tmp_path / "kept"))
        load_images("stl10")
        assert (tmp_path / "kept" / "stl10_binary" / "test_X.bin").exists()

    def test_place_is_data_by_default(self, archive, tmp_path, monkeypatch):
        monkeypatch.delenv("SPECTRAL_DATA", raising=False)
        monkeypatch.chdir(tmp_path)
        load_images("stl10")
        assert (tmp_path / "data" / "stl10_binary" / "test_X.bin").exists()

    def test_interrupted_download_goes_on(self, archive, tmp_path):
        Server.cut = 1000
        with pytest.raises(
            SpectralError, match=r"could not download stl10 \(the connection ended after 1000 of"
        ):
            load_images("stl10", root=tmp_path)
        assert not (tmp_path / "stl10_binary.tar.gz").exists()
        Server.cut = None
        assert len(load_images("stl10", root=tmp_path)) == self.COUNT
        assert Server.requests == [None, "bytes=1000-"]

    def test_server_that_cannot_go_on_starts_anew(self, archive, tmp_path):
        (tmp_path / "stl10_binary.tar.gz.part").write_bytes(b"the beginning of something else")
        Server.ranges = False
        assert len(load_images("stl10", root=tmp_path)) == self.COUNT

    def test_complete_part_needs_nothing_more(self, archive, tmp_path):
        (tmp_path / "stl10_binary.tar.gz.part").write_bytes(Server.content)
        assert len(load_images("stl10", root=tmp_path)) == self.COUNT

    def test_damaged_download_is_removed(self, archive, tmp_path):
        Server.content = b"something else entirely"
        with pytest.raises(SpectralError, match="not the published file"):
            load_images("stl10", root=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_damaged_file_is_replaced(self, archive, pixels, tmp_path):
        load_images("stl10", root=tmp_path)
        (tmp_path / "stl10_binary" / "test_y.bin").write_bytes(b"")
        assert load_images("stl10", root=tmp_path).labels[1] == 1

    def test_archive_put_there_by_hand_is_used_and_kept(self, archive, tmp_path):
        (tmp_path / "stl10_binary.tar.gz").write_bytes(Server.content)
        assert len(load_images("stl10", root=tmp_path)) == self.COUNT
        assert Server.requests == []
        assert (tmp_path / "stl10_binary.tar.gz").exists()

    def test_no_network(self, archive, tmp_path, monkeypatch):
        def refuse(url: str, offset: int) -> None:
            raise urllib.error.URLError("Name or service not known")

        monkeypatch.setattr(archives, "_open_url", refuse)
        with pytest.raises(SpectralError) as caught:
            load_images("stl10", root=tmp_path)
        message = str(caught.value)
        for part in (
            "could not download stl10 (Name or service not known)",
            "stl10_binary.tar.gz",
            str(tmp_path),
        ):
            assert part in message
        assert "'samples', 'synthetic' or a folder" in message
        assert "127.0.0.1" not in message

    def test_unusable_place(self, archive, tmp_path):
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(SpectralError, match=r"could not store stl10 in .*taken.*SPECTRAL_DATA"):
            load_images("stl10", root=tmp_path / "taken")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize(
    "target", ["/etc/hostname", "../../outside", "cifar-10-batches-py/test_batch", "other"]
)
def test_links_in_an_archive_lead_nowhere(kind, target, tmp_path, monkeypatch):
    """Out of the archive, to itself, and in a circle of two."""
    folder, buffer = "cifar-10-batches-py", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, to in ((f"{folder}/test_batch", target), ("other", f"{folder}/test_batch")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to
            tar.addfile(info)
    packed = buffer.getvalue()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(packed)
    archive = archives.Archive(
        "cifar10", "http://nowhere.invalid/cifar-10-python.tar.gz", md5(packed), folder,
        {name: md5(b"") for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))},
    )  # fmt: skip
    monkeypatch.setattr(archives, "cifar10_archive", lambda: archive)
    with pytest.raises(SpectralError, match=r"test_batch is missing in cifar-10-python\.tar\.gz"):
        load_images("cifar10", root=tmp_path)
    assert not (tmp_path / folder / "test_batch").exists()


class TestCifar10:
    @pytest.fixture
    def batches(self, tmp_path, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
        """The published layout: pickles of (N, 3072) bytes, channel after channel, row after row."""
        rng = np.random.default_rng(0)
        content, files = {}, {}
        for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
            pixels, labels = rng.integers(0, 256, (20, 3072), dtype=np.uint8), (np.arange(20) % 10).tolist()
            content[name] = pixels, labels
            files[name] = pickle.dumps({"data": pixels, "labels": labels}, protocol=2)
        packed = pack("cifar-10-batches-py", files)
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(packed)
        archive = archives.Archive(
            "cifar10",
            "http://nowhere.invalid/cifar-10-python.tar.gz",
            md5(packed),
            "cifar-10-batches-py",
            {name: md5(data) for name, data in files.items()},
        )
        monkeypatch.setattr(archives, "cifar10_archive", lambda: archive)
        return content

    def test_test_images(self, batches, tmp_path):
        images = load_images("cifar10", root=tmp_path)
        pixels, labels = batches["test_batch"]
        assert (images.source, len(images), images.ids[3]) == ("cifar10", 20, "cifar10/test/00003")
        assert images.labels == labels
        assert images.classes[9] == "truck"
        np.testing.assert_array_equal(images[3].flatten(), pixels[3] / np.float32(255))

    def test_training_images_in_the_order_of_the_batches(self, batches, tmp_path):
        images = load_images("cifar10-train", root=tmp_path)
        assert (images.source, len(images), images.ids[45]) == ("cifar10-train", 100, "cifar10/train/00045")
        np.testing.assert_array_equal(images[45].flatten(), batches["data_batch_3"][0][5] / np.float32(255))

    def test_damaged_pickle_is_never_opened(self, batches, tmp_path):
        load_images("cifar10", root=tmp_path)
        harmful = b"cposix\nsystem\n(S'exit 1'\ntR."
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(harmful)
        assert len(load_images("cifar10", root=tmp_path)) == 20
        assert (tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes() != harmful

    def test_arrays(self, batches, tmp_path):
        pixels, labels, classes = load_labelled_arrays(tmp_path, "train", source="cifar10")
        assert (pixels.shape, pixels.dtype) == ((100, 3, 32, 32), torch.uint8)
        assert (labels.shape, labels.dtype) == ((100,), torch.int64)
        np.testing.assert_array_equal(pixels[45].flatten(), batches["data_batch_3"][0][5])
        assert classes[0] == "airplane"

    def test_arrays_need_a_split(self, tmp_path):
        with pytest.raises(SpectralError, match="split of cifar10 must be 'train' or 'test', got None"):
            load_labelled_arrays(tmp_path, source="cifar10")


def test_published_archives_are_described():
    for archive in (archives.stl10_archive(), archives.cifar10_archive()):
        assert all(len(checksum) == 32 for checksum in (archive.md5, *archive.files.values()))
    assert set(archives.stl10_archive().files) == {"test_X.bin", "test_y.bin"}
    assert len(archives.cifar10_archive().files) == 6


class TestLabelledArrays:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        for split, count in (("train", 3), ("test", 2)):
            for label, name in enumerate(("ant", "bee")):
                for i in range(count):
                    save(tmp_path / split / name / f"{i}.png", (5, 4), (label, i, count))
        return tmp_path

    def test_pixels_and_labels_belong_together(self, tree):
        images, labels, classes = load_labelled_arrays(tree, "train")
        assert (images.shape, images.dtype, labels.dtype) == ((6, 3, 4, 5), torch.uint8, torch.int64)
        assert classes == ["ant", "bee"]
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images[:, :, 0, 0].tolist() == [[label, i, 3] for label in (0, 1) for i in range(3)]

    def test_folder_itself_without_a_split(self, tree):
        images, labels, _ = load_labelled_arrays(tree / "test")
        assert len(images) == len(labels) == 4

    def test_sixteen_bits_are_rounded_to_eight(self, tmp_path):
        (tmp_path / "x").mkdir()
        Image.fromarray(np.full((2, 2), 65535 // 2, np.uint16)).save(tmp_path / "x" / "a.png")
        assert load_labelled_arrays(tmp_path)[0].unique().tolist() == [127]

    def test_broken_files_are_left_out(self, tree):
        (tree / "train" / "ant" / "1.png").write_text("broken")
        with pytest.warns(UserWarning, match=r"skipped 1 broken image file\(s\): ant/1\.png \(not an"):
            images, labels, _ = load_labelled_arrays(tree, "train")
        assert labels.tolist() == [0, 0, 1, 1, 1]
        assert images[1, 1, 0, 0] == 2

    def test_missing_split(self, tree):
        with pytest.raises(SpectralError, match=r"no folder .*valid"):
            load_labelled_arrays(tree, "valid")

    def test_no_classes(self, tree):
        with pytest.raises(
            SpectralError, match=r"no labelled images in folder .*: expected one subfolder per class"
        ):
            load_labelled_arrays(tree / "test" / "ant")

    def test_different_sizes(self, tree):
        save(tree / "train" / "bee" / "9.png", (7, 7))
        with pytest.raises(SpectralError, match=r"must have one size, but 'bee/9\.png' .* is 7×7 and .* 4×5"):
            load_labelled_arrays(tree, "train")

    def test_only_broken_files(self, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a.png").write_text("broken")
        with pytest.raises(SpectralError, match=r"none of the 1 image files"):
            load_labelled_arrays(tmp_path)

    def test_unknown_source(self, tmp_path):
        with pytest.raises(
            SpectralError, match="expected source 'folder' with a root, or 'cifar10', got 'stl'"
        ):
            load_labelled_arrays(tmp_path, source="stl")


def test_every_named_source_is_offered():
    assert set(sources.SOURCES) == {"samples", "synthetic", "stl10", "cifar10", "cifar10-train"}


def test_crops_share_their_photograph_and_others_are_clusters_of_their_own():
    images = load_images("samples", size=32, limit=60)
    assert all(name.endswith(cluster) for name, cluster in zip(images.ids, images.clusters, strict=True))
    assert len(set(images.clusters)) < 60
    leaves = load_images("synthetic", size=8, limit=3)
    assert leaves.clusters == leaves.ids
