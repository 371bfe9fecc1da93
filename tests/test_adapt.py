"""Whatever people keep images in: files, pictures, arrays, datasets and loaders, as sets of images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, features
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from spectral.cli import main
from spectral.data import ImageSet, adapt_images, load_images
from spectral.data.structures import join, pick
from spectral.errors import SpectralError, SpectralWarning


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def everything(images: Any, batch_size: int = 2) -> Any:
    """All images in one batch, as read in several."""
    parts = list(images.batches(batch_size))
    assert [i for indices, _ in parts for i in indices] == list(range(len(images)))
    return join([part for _, part in parts], [len(indices) for indices, _ in parts])


class Items(Dataset):
    """Gives what a function makes of a number."""

    def __init__(self, make: Any, count: int = 5) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


# Files -----------------------------------------------------------------------------------------------------


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(bytes_of(12, 10, 3, seed=seed)).save(path, **options)
    return path


KINDS = [".jfif", ".bmp", ".tif", ".webp", ".gif", ".ppm", ".tga"]
KINDS += [".avif"] if features.check("avif") else []
KINDS += [".jp2"] if features.check("jpg_2000") else []


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_pillow_reads(tmp_path, kind):
    path = save(tmp_path / f"picture{kind}", format="JPEG" if kind == ".jfif" else None)
    for source in (tmp_path, path, str(path), [path]):
        images = load_images(source)
        assert images.ids == [path.name]
        assert images[0].shape == (3, 12, 10)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_images(tmp_path)[0][:, 0, 0].tolist() == [1, 0, 0]


def test_files_patterns_and_folders_together(tmp_path):
    for i, name in enumerate(("a/1.png", "a/2.png", "b/3.jpg", "b/4.png")):
        save(tmp_path / name, seed=i)
    assert load_images(str(tmp_path / "*" / "*.png")).ids == ["a/1.png", "a/2.png", "b/4.png"]
    mixed = load_images([tmp_path / "a", tmp_path / "b" / "3.jpg", tmp_path / "a" / "1.png"])
    assert mixed.ids == ["a/1.png", "a/2.png", "b/3.jpg"]
    assert mixed.source == f"files:{tmp_path.name}"
    assert load_images(tmp_path / "a" / "1.png", size=6)[0].shape == (3, 6, 6)
    assert len(load_images(str(tmp_path / "**" / "*.png"), limit=2)) == 2
    assert mixed.fingerprint == load_images([tmp_path / "b" / "3.jpg", tmp_path / "a"]).fingerprint


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "no images asked for"), ("nowhere/*.png", r"no file matches 'nowhere/\*.png'"),
        ([], "no images among 0"),
        (["nowhere.png"], "no file 'nowhere.png'"), ("{}/notes.txt", "is no image that can be read here"),
        ("{}/signals.npz", "arrays are for `measure`"),
        (["{}/notes.txt", "{}/notes.txt"], r"there are 2 \.txt"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, source, sentence):
    for name in ("notes.txt", "signals.npz"):
        (tmp_path / name).write_text("no image")
    here = [s.format(tmp_path) for s in source] if isinstance(source, list) else source.format(tmp_path)
    with pytest.raises(SpectralError, match=sentence):
        load_images(here)


def test_kinds_left_out_are_counted_and_named(tmp_path):
    save(tmp_path / "a.png")
    for name in ("b.xcf", "c.XCF", "d.raw", "noending", "labels.csv"):
        (tmp_path / name).write_bytes(b"what Pillow doesn't read")
    with pytest.warns(
        SpectralWarning, match=r"left out 4 file\(s\) .*: 2 \.xcf, 1 without an ending, 1 \.raw$"
    ):
        images = load_images(tmp_path)
    assert images.ids == ["a.png"]
    assert dict(images.left_out) == {".xcf": 2, ".raw": 1, "": 1, ".csv": 1}
    (tmp_path / "a.png").unlink()
    with pytest.raises(SpectralError, match=r"no images in folder .*; there are 2 \.xcf, 1 "):
        load_images(tmp_path)


def test_images_that_are_enlarged_are_known(tmp_path):
    save(tmp_path / "small.png")
    Image.fromarray(bytes_of(40, 13, 3)).save(tmp_path / "tall.png")
    images = load_images(tmp_path, size=13)
    assert images.enlarged == ["small.png"]
    assert images.resized((50, 8)).enlarged == ["small.png", "tall.png"]
    assert images.resized((12, 10)).enlarged == []
    assert load_images(tmp_path).enlarged == []


# Pictures and arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "to_channels_first"),
    [
        ((4, 9, 8, 3), (0, 3, 1, 2)), ((4, 3, 9, 8), (0, 1, 2, 3)), ((4, 9, 8, 1), (0, 3, 1, 2)),
        ((4, 9, 8, 4), (0, 3, 1, 2)), ((4, 3, 9, 3), (0, 1, 2, 3)),
    ],
)  # fmt: skip
def test_arrays_of_pixels(shape, to_channels_first):
    pixels = bytes_of(*shape)
    images = adapt_images(pixels, "test")
    expected = pixels.transpose(to_channels_first) / np.float32(255)
    np.testing.assert_allclose(everything(images, 3).numpy(), expected, rtol=1e-6)
    assert images.size == expected.shape[2:]
    assert images.fingerprint != adapt_images(bytes_of(*shape, seed=1), "test").fingerprint


@pytest.mark.parametrize(
    ("shape", "made"),
    [((9, 8, 3), (1, 3, 9, 8)), ((3, 9, 8), (1, 3, 9, 8)), ((9, 8), (1, 1, 9, 8)), ((5, 9, 8), (5, 1, 9, 8))],
)
def test_one_array_or_gray_ones(shape, made):
    assert everything(adapt_images(bytes_of(*shape), "test")).shape == made


def test_arrays_of_numbers_are_taken_as_tensors():
    array = np.random.default_rng(0).normal(size=(2, 3, 9, 8))
    found = adapt_images(array, "test")
    assert torch.equal(found, torch.from_numpy(array))
    with pytest.raises(
        SpectralError, match=r"test: expected pixels of type uint8 or floating-point .* int64"
    ):
        adapt_images(np.zeros((2, 3, 4, 4), dtype=np.int64), "test")


def test_a_file_in_memory_is_read_without_a_word(tmp_path):
    for array in (bytes_of(2, 9, 8, 3), np.ones((2, 3, 9, 8), np.float32)):
        np.save(tmp_path / "a.npy", array)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            adapt_images(np.load(tmp_path / "a.npy", mmap_mode="r"), "test")


def test_pictures_become_a_set():
    gray, colour = Image.fromarray(bytes_of(9, 8)), Image.fromarray(bytes_of(9, 8, 3))
    images = adapt_images([gray, colour], "test")
    assert isinstance(images, ImageSet)
    batch = everything(images)
    np.testing.assert_allclose(batch[0, 1].numpy(), bytes_of(9, 8) / 255, rtol=1e-6)
    np.testing.assert_allclose(batch[1].numpy(), bytes_of(9, 8, 3).transpose(2, 0, 1) / 255, rtol=1e-6)
    assert len(adapt_images(colour, "test")) == 1
    assert adapt_images([bytes_of(9, 8, 3), bytes_of(5, 6)], "test").resized((4, 4))[1].shape == (3, 4, 4)


# Datasets and loaders --------------------------------------------------------------------------------------


def image_at(index: int) -> Tensor:
    return floats(3, 9, 8, seed=index)


ALL = torch.stack([image_at(i) for i in range(5)])


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda i: image_at(i), None), (lambda i: (image_at(i), i % 3), [0, 1, 2, 0, 1]),
        (lambda i: (image_at(i), np.int64(i % 3)), [0, 1, 2, 0, 1]),
        (lambda i: (image_at(i), torch.tensor(i % 3)), [0, 1, 2, 0, 1]),
    ],
)  # fmt: skip
def test_datasets_with_and_without_labels(make, labels):
    for source in (Items(make), DataLoader(Items(make), batch_size=3), DataLoader(Items(make), shuffle=True)):
        images = adapt_images(source, "test")
        assert torch.equal(everything(images), ALL)
        assert images.labels == (labels or [None] * 5)
        assert images.ids == ["0000", "0001", "0002", "0003", "0004"]
        (indices, batch), *_ = images.batches(2, indices=[4, 1])
        assert indices == [4, 1]
        assert torch.equal(batch, ALL[[4, 1]])


def test_dictionaries_keep_their_form():
    items = Items(lambda i: {"image": image_at(i), "mask": image_at(i)[0] > 0.5, "label": i})
    images = adapt_images(DataLoader(items), "test")
    batch = everything(images)
    assert sorted(batch) == ["image", "mask"]
    assert torch.equal(batch["image"], ALL)
    assert images.labels == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "make",
    [lambda p, i: p, lambda p, i: (p, i), lambda p, i: {"image": p, "label": i}, lambda p, i: (p, i, "name")],
)
def test_datasets_of_pictures_become_images(make):
    def read(i: int) -> Any:
        return make(Image.fromarray(bytes_of(9 + i, 8, 3, seed=i)), i)

    images = adapt_images(Items(read), "test")
    assert isinstance(images, ImageSet)
    np.testing.assert_allclose(
        images[2].numpy(), bytes_of(11, 8, 3, seed=2).transpose(2, 0, 1) / 255, rtol=1e-6
    )
    assert images.resized((20, 20)).enlarged == images.ids


def test_the_sampler_chooses():
    items = Items(lambda i: (image_at(i), i))
    images = adapt_images(DataLoader(items, sampler=SubsetRandomSampler([3, 1])), "test")
    assert sorted(images.labels) == [1, 3]
    assert adapt_images(Subset(items, [2, 4]), "test").labels == [2, 4]
    assert adapt_images(TensorDataset(ALL), "test").labels == [None] * 5
    some = {"batch_sampler": BatchSampler([0, 2, 4], 2, drop_last=False)}, {"sampler": [3, 1]}
    for choice, labels in zip(some, ([0, 2, 4], [3, 1]), strict=True):
        assert adapt_images(DataLoader(items, **choice), "test").labels == labels
    assert len(adapt_images(DataLoader(items, sampler=RandomSampler(items, num_samples=3)), "test")) == 3
    with pytest.warns(SpectralWarning, match="draws 2 different items in 4 draws; each counts once"):
        assert adapt_images(DataLoader(items, sampler=[3, 1, 3, 3]), "test").labels == [3, 1]


def test_a_collate_function_of_ones_own():
    loader = DataLoader(
        Items(image_at),
        collate_fn=lambda items: {"pixel_values": torch.stack(items), "label": torch.arange(len(items))},
    )
    assert list(next(iter(adapt_images(loader, "test").batches(2)))[1]) == ["pixel_values"]


def test_detectors_items_stay_lists():
    items = Items(lambda i: (floats(3, 9 + i, 8), {"boxes": floats(2, 4)}))
    loader = DataLoader(items, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    batch = next(iter(adapt_images(loader, "test").batches(2)))[1]
    assert [tuple(x.shape) for x in batch[0]] == [(3, 9, 8), (3, 10, 8)]


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((image_at(i), i) for i in range(5))


@pytest.mark.parametrize(
    "source",
    [
        lambda: DataLoader(Stream(), batch_size=2), lambda: ((ALL[i : i + 2], torch.arange(i, min(i + 2, 5)))
                                                             for i in (0, 2, 4)),
    ],
)  # fmt: skip
def test_what_can_be_read_once_is_kept(source):
    images = adapt_images(source(), "test")
    assert torch.equal(everything(images, 3), ALL)
    assert images.labels == [0, 1, 2, 3, 4]
    assert torch.equal(next(iter(images.batches(9, indices=[4, 0])))[1], ALL[[4, 0]])


class Alone(Stream):
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        yield from map(self.make, range(5))


def in_gray(i: int) -> np.ndarray:
    return np.full((9, 8, 3), i, np.uint8)


@pytest.mark.parametrize(
    "source",
    [Stream, lambda: Alone(image_at), lambda: (image_at(i) for i in range(5)),
     lambda: map(image_at, range(5)), lambda: ((image_at(i), i) for i in range(5))],
    ids=["labelled set", "set", "generator", "map", "labelled generator"],
)  # fmt: skip
def test_images_that_come_one_by_one(source):
    images = adapt_images(source(), "test")
    assert torch.equal(everything(images, 3), ALL)
    assert torch.equal(next(iter(images.batches(9, indices=[4, 0])))[1], ALL[[4, 0]])


@pytest.mark.parametrize("make", [in_gray, lambda i: Image.fromarray(in_gray(i)),
                                  lambda i: (Image.fromarray(in_gray(i)), i)])  # fmt: skip
def test_pictures_that_come_one_by_one(make):
    images = adapt_images(Alone(make), "test")
    assert torch.equal((255 * everything(images, 2))[:, 0, 0, 0].round(), torch.arange(5.0))


def test_an_empty_stream():
    with pytest.raises(SpectralError, match="test: there are no images"):
        adapt_images(iter(()), "test")


def test_items_of_several_sizes():
    images = adapt_images(Items(lambda i: floats(3, 9 + i, 8)), "test")
    with pytest.raises(SpectralError, match="the items of dataset:Items can't form a batch"):
        list(images.batches(2))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (5, "test: expected images from load_images, .* got int"), ([], "test: there are no images"),
        ([1, 2], "got a list without any"), ({"a": "text"}, "got a dict without any"),
        ({"train": Items(image_at), "test": Items(image_at)}, "without any; give one of its 'train', 'test'"),
        (Items(image_at, 0), "the dataset Items is empty"),
    ],
)  # fmt: skip
def test_what_holds_no_images(source, sentence):
    with pytest.raises(SpectralError, match=sentence):
        adapt_images(source, "test")


def test_the_fingerprint_changes_with_a_pixel():
    one = adapt_images(Items(image_at), "test").fingerprint
    assert adapt_images(Items(image_at), "test").fingerprint == one
    assert adapt_images(Items(lambda i: image_at(i) + (i == 3) * 1e-6), "test").fingerprint != one


# Structures ------------------------------------------------------------------------------------------------


def test_picking_and_joining_are_inverse():
    batch = {"x": ALL, "more": (torch.arange(5), [image_at(i) for i in range(5)], 2.5), "table": floats(3, 2)}
    parts = [pick(batch, [i], 5) for i in range(5)]
    assert parts[3]["more"][0].tolist() == [3]
    assert parts[3]["table"] is batch["table"]
    whole = join(parts, [1] * 5)
    assert torch.equal(whole["x"], ALL)
    assert len(whole["more"][1]) == 5
    assert whole["more"][2] == 2.5
    with pytest.raises(
        SpectralError, match=r"images of shapes \(3, 4, 4\) and \(3, 5, 4\) can't form a batch"
    ):
        join([floats(1, 3, 4, 4), floats(1, 3, 5, 4)], [1, 1])


def test_nothing_warns_of_what_is_fine(tmp_path):
    save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(tmp_path)
        adapt_images(Items(image_at), "test")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="spectral")


@pytest.mark.parametrize("given", ["a/1.png", "a/*.png", "a"])
def test_the_command_line_takes_files_and_patterns(tmp_path, given):
    for i in range(2):
        Image.fromarray(bytes_of(40, 36, 3, seed=i)).save(save(tmp_path / "a" / f"{i + 1}.png", seed=i))
    result = run("measure", "bundled/resnet8@random", "--images", str(tmp_path / given), "--metrics", "sis")
    assert result.exit_code == 0, result.output
    assert f"on {1 if given == 'a/1.png' else 2} images of" in result.stdout


def test_the_command_line_takes_several_and_refuses_none(tmp_path):
    paths = [str(save(tmp_path / name)) for name in ("1.png", "2.png")]
    both = run(
        "measure", "bundled/resnet8@random", "--images", paths[0], "--images", paths[1], "--metrics", "sis"
    )
    assert "on 2 images of files:" in both.stdout
    assert "2 of 2 images are smaller than 32×32 and are enlarged" in both.stderr
    nothing = run("measure", "bundled/resnet8@random", "--images", "")
    assert nothing.exit_code == 2
    assert "is empty; expected a name, a folder, files or a pattern" in nothing.stderr
