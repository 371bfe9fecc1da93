"""Labels in whichever form they come: taken where they count classes, and a sentence where they don't."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_packed import encode, write_tar
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import spectral
from spectral.data.adapt import adapt_images, open_images
from spectral.data.datasets import read_iterable
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
TENSORS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
WHOLE = [1, 0, 2, 3]
FORMS: dict[str, Any] = {
    "whole": np.array(WHOLE), "unsigned": np.array(WHOLE, np.uint64), "floats": np.array([1.0, 0, 2, 3]),
    "halves": np.array([1.0, 0, 2, 3], np.float16), "a column": np.array(WHOLE)[:, None],
    "a column of floats": np.array([[1.0], [0], [2], [3]]), "a row": np.array(WHOLE)[None],
    "one-hot": np.eye(5, dtype=np.int64)[WHOLE], "one-hot floats": np.eye(5, dtype=np.float32)[WHOLE],
    "text": np.array(list("1023")), "bytes": np.array([b"1", b"0", b"2", b"3"]),
}  # fmt: skip
NO_LABELS: dict[str, tuple[Any, str]] = {
    "fractions": (np.array([1.0, 0, 2.5, 3]), r"2\.5 is among them"),
    "infinite": (np.array([1.0, 0, np.inf, 3]), "inf is among them"),
    "all missing": (np.full(4, np.nan), "no number is among them"),
    "names among numbers": (np.array(["cat", "1", "cow", "cat"]), "'cat' is among them"),
    "captions": (np.array(["a cat\non a mat", "dog", "cow", "cat"]), r"'a cat\\non a mat' is among them"),
    "true or false": (np.array([True, False, True, True]), "True is among them"),
    "soft": (np.full((4, 5), 0.2), "there are 5 of them for each image"),
    "several classes": (np.ones((4, 5), np.int64), "there are 5 of them for each image"),
}


class Items:
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < 4:
            raise IndexError(index)
        return self.make(index)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def each(values: Any) -> Any:
    return values[0] if values.shape[0] == 1 else values


@pytest.fixture(autouse=True)
def _no_other_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectralWarning)
        yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("images", [PIXELS, TENSORS.numpy()], ids=["pixels", "numbers"])
def test_a_file_of_arrays(form: str, images: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=FORMS[form])
    assert open_images(tmp_path / "a.npz").labels == WHOLE


@pytest.mark.parametrize("case", NO_LABELS)
def test_a_file_of_arrays_says_what_is_no_label(case: str, tmp_path: Path) -> None:
    values, reason = NO_LABELS[case]
    np.savez(tmp_path / "a.npz", images=TENSORS.numpy(), labels=values)
    with pytest.warns(SpectralWarning, match=f"file:a.npz: 'labels' isn't taken as labels, since {reason}"):
        found = open_images(tmp_path / "a.npz")
    assert list(found.labels) == []


@pytest.mark.parametrize("case", NO_LABELS)
def test_labels_that_are_refused_are_no_inputs(case: str, tmp_path: Path) -> None:
    values, reason = NO_LABELS[case]
    for images in (PIXELS, TENSORS.numpy()):
        np.savez(tmp_path / "a.npz", images=images, labels=values)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            table = spectral.measure(network(), tmp_path / "a.npz", ["sis"], preprocessing="none")
        why = f"'labels' isn't taken as labels, since {reason}"
        assert any(re.search(why, str(one.message)) for one in said)
        assert table.loc[table["metric"] == "sis", "value"].notna().sum() == 4


def test_the_layout_of_lossless_pictures_is_read_and_its_text_left_out(tmp_path: Path) -> None:
    files = np.array([f"{i}.jpg" for i in range(4)])
    for images in (PIXELS, TENSORS.numpy()):
        np.savez(tmp_path / "a.npz", images=images, labels=np.array(WHOLE), jpeg_files=files)
        with pytest.warns(SpectralWarning, match="file:a.npz: 'jpeg_files' is left out, since it is text"):
            found = open_images(tmp_path / "a.npz")
        assert (found.labels, len(found)) == (WHOLE, 4)
        assert not isinstance(getattr(found, "content", None), dict)


def test_one_of_two_kinds_of_labels_is_taken_and_the_other_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, fine_label=np.array([7, 7, 7, 7]), label=np.array(WHOLE))
    with pytest.warns(
        SpectralWarning, match="'fine_label' is left out, since the labels are those of 'label'"
    ):
        found = open_images(tmp_path / "a.npz")
    assert (found.labels, len(found)) == (WHOLE, 4)
    soft = np.full((4, 5), 0.2)
    np.savez(tmp_path / "a.npz", images=PIXELS, label=np.array(WHOLE), targets=soft)
    with pytest.warns(SpectralWarning, match="'targets' isn't taken as labels, since there are 5 of them"):
        assert open_images(tmp_path / "a.npz").labels == WHOLE


class Conditional(nn.Module):
    """Is called with an image and with features, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = network(), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(x) + self.other(y)
        return scores


def test_beside_numbers_what_is_no_label_may_be_an_input(tmp_path: Path) -> None:
    y = np.random.default_rng(1).random((4, 5), np.float32)
    np.savez(tmp_path / "a.npz", x=TENSORS.numpy(), y=y)
    with pytest.warns(SpectralWarning, match="'y' isn't taken as labels"):
        table = spectral.measure(Conditional().eval(), tmp_path / "a.npz", ["sis"], preprocessing="none")
    assert table.loc[table["metric"] == "sis", "value"].notna().sum() == 4


def test_features_beside_labels_stay_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=TENSORS.numpy(), y=np.full((4, 5), 0.2), label=np.array(WHOLE))
    found = open_images(tmp_path / "a.npz")
    assert (sorted(found.content), found.labels) == (["x", "y"], WHOLE)


def test_what_is_missing_has_no_label_and_a_wrong_number_of_them_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([1, np.nan, 2, 3]))
    assert open_images(tmp_path / "a.npz").labels == [1, None, 2, 3]
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([[1.0], [2.0]]))
    with pytest.raises(SpectralError, match="2 labels of 4 inputs"):
        open_images(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=PIXELS[:1], labels=np.array([1, 0]))  # not one-hot of one image
    with pytest.raises(SpectralError, match="2 labels of 1 inputs"):
        open_images(tmp_path / "a.npz")


def test_maps_and_inputs_of_other_names_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=TENSORS.numpy(), y=TENSORS.numpy(), scale=np.ones(4))
    found = open_images(tmp_path / "a.npz")
    assert (sorted(found.content), list(found.labels)) == (["scale", "x", "y"], [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("key", ["label", "targets", "cls"])
def test_items_and_batches_with_a_name(form: str, picture: bool, key: str) -> None:
    values = FORMS[form].reshape(4, -1)

    def make(i: int) -> Any:
        label = each(values[i])
        label = label.item() if values.dtype.kind in "USu" else label  # torch collates no other
        return {"image": Image.fromarray(PIXELS[i]) if picture else TENSORS[i], key: label}

    images = adapt_images(Items(make), "test")
    assert images.labels == WHOLE
    assert len(next(iter(images.batches(4)))[0]) == 4
    if not picture and values.dtype.kind not in "USu":
        given = ({"image": TENSORS[i : i + 2], key: torch.from_numpy(values[i : i + 2])} for i in (0, 2))
        assert adapt_images(given, "test").labels == WHOLE


@pytest.mark.parametrize("form", ["whole", "a column", "one-hot"])
def test_pairs_of_whole_numbers(form: str) -> None:
    """One-hot items had their first number taken, which is none of the class."""
    values = torch.from_numpy(FORMS[form])
    pairs = TensorDataset(TENSORS, values)
    batches = [(TENSORS[:3], values[:3]), (TENSORS[3:], values[3:])]
    for source in (pairs, DataLoader(pairs, 3), iter(batches)):
        images = adapt_images(source, "test")
        assert images.labels == WHOLE
        assert torch.equal(torch.cat([x for _, x in images.batches(2)]), TENSORS)
    with pytest.warns(SpectralWarning, match="the first item is passed$"):
        assert Feed(network(), (TENSORS, values), caller="test").images.labels == WHOLE


def test_tokens_beside_images_are_an_input() -> None:
    tokens = torch.tensor([[5, 1, 0], [5, 2, 0], [6, 1, 7], [5, 5, 5]])
    images = adapt_images(TensorDataset(TENSORS, tokens), "test")
    assert images.labels == [None] * 4
    assert torch.equal(next(iter(images.batches(4)))[1][1], tokens)


@pytest.mark.parametrize("values", [torch.tensor([1.0, 0, 2, 3]), torch.tensor([1.0, 0, 2.5, 3])])
def test_floats_beside_tensors_may_be_an_input_and_beside_pictures_are_labels(values: torch.Tensor) -> None:
    pairs = TensorDataset(TENSORS, values)
    assert adapt_images(pairs, "test").labels == [None] * 4
    with pytest.warns(SpectralWarning, match="labels, as which the second isn't taken, are of a whole type"):
        assert Feed(network(), pairs, caller="test").images.labels == [None] * 4
    pictures = Items(lambda i: (Image.fromarray(PIXELS[i]), values[i]))
    if bool((values == values.round()).all()):
        assert adapt_images(pictures, "test").labels == WHOLE
    else:
        with pytest.warns(
            SpectralWarning, match=r"the second of each pair isn't taken .* 2\.5 is among them"
        ):
            assert adapt_images(pictures, "test").labels == [None] * 4


@pytest.mark.parametrize("picture", [False, True])
def test_some_whole_numbers_among_others_are_no_labels(picture: bool) -> None:
    """What isn't taken is passed on, and told apart by its values."""

    def give(last: float) -> Items:
        values = [1.0, 2.0, 3.0, last]
        return Items(lambda i: {"image": Image.fromarray(PIXELS[i]) if picture else TENSORS[i],
                                "label": values[i]})  # fmt: skip

    with pytest.warns(SpectralWarning, match=r"dataset:Items: 'label' isn't taken as labels, since 3\.5"):
        images = adapt_images(give(3.5), "test")
    assert images.labels == [None] * 4
    if not picture:
        assert next(iter(images.batches(4)))[1]["label"].tolist() == [1, 2, 3, 3.5]
        with pytest.warns(SpectralWarning, match=r"4\.5"):
            assert adapt_images(give(4.5), "test").fingerprint != images.fingerprint


def test_batches_with_fewer_labels_than_images() -> None:
    batches = [{"image": TENSORS[:2], "label": [1, 2]}, {"image": TENSORS[2:], "label": torch.tensor([3])}]
    with pytest.warns(SpectralWarning, match="list: 'label' isn't taken as labels, since there are 1 of 2"):
        assert read_iterable(batches).labels == [None] * 4


def test_a_dictionary_of_which_the_network_takes_a_part() -> None:
    with pytest.warns(SpectralWarning, match="of each batch, 'x' is passed"):
        feed = Feed(network(), {"x": TENSORS, "label": np.array([[1.0], [0], [2], [3]])}, caller="test")
    assert feed.images.labels == WHOLE


COLUMNS = {
    "floats": (pa.array([1.0, 0, 2, 3]), [1, 0, 2, 3]),
    "missing": (pa.array([1.0, None, 2, -1]), [1, None, 2, None]),
    "fractions": (pa.array([1.0, 0, 2.5, 3]), r"'label' isn't taken as labels, since 2\.5"),
    "text": (pa.array(list("1023")), WHOLE),
    "names among numbers": (pa.array(["cat", "0", "1", "2"]), "'label' isn't taken as labels, since 'cat'"),
    "flags": (pa.array([True, False, True, True]), "since it is of type bool"),
    "lists": (pa.array([[0, 1], [1, 0], [0, 1], [1, 0]]), "since it is of type list"),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_of_parquet(case: str, tmp_path: Path) -> None:
    column, expected = COLUMNS[case]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [encode(i) for i in range(4)], "label": column}), path)
    if isinstance(expected, list):
        assert spectral.load_images(path).labels == expected
        return
    with pytest.warns(SpectralWarning, match=f"a.parquet: .*{expected}"):
        assert spectral.load_images(path).labels == [None] * 4
    table = pa.table({"image": [encode(i) for i in range(4)], "label": column, "fine_label": WHOLE})
    pq.write_table(table, path)
    assert spectral.load_images(path).labels == WHOLE  # the column that has numbers


TAGS = {
    "text": ("cls", ["1", " 0\n", "2.0", "+3"], WHOLE), "floats": ("json", [1.0, 0.0, 2.0, 3.0], WHOLE),
    "digits": ("json", ["1", "0", "2", "3"], WHOLE), "one-hot": ("json", np.eye(5)[WHOLE].tolist(), WHOLE),
    "names among numbers": ("cls", ["3", "dog", "1", "2"], "what is beside .* since 'dog' is among them"),
    "fractions": ("json", [1.0, 0.0, 2.5, 3.0], r"what 2\.json has isn't taken as labels, since 2\.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAGS)
def test_labels_in_a_tar(case: str, tmp_path: Path) -> None:
    ending, values, expected = TAGS[case]
    files = {f"{i}.png": encode(i, "PNG") for i in range(4)}
    for i, value in enumerate(values):
        files[f"{i}.{ending}"] = (value if ending == "cls" else json.dumps({"label": value})).encode()
    path = write_tar(tmp_path / "a.tar", files)
    if isinstance(expected, list):
        assert spectral.load_images(path).labels == expected
        return
    with pytest.warns(SpectralWarning, match=f"a.tar: {expected}"):
        assert spectral.load_images(path).labels == [None] * 4


def test_labels_that_were_read_count_in_a_measurement(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=TENSORS.numpy(), labels=np.array([[1.0], [0], [2], [3]]))
    table = spectral.measure(network(), tmp_path / "a.npz", progress=False)
    assert table.query("metric == 'label'").sort_values("image")["value"].tolist() == WHOLE


NAMES = ["dog", "", "cow", "dog"]
HUB = {"info": {"features": {"label": {"dtype": "string", "_type": "Value"}}}}


def parquet_of(labels: Any, path: Path) -> Path:
    table = pa.table({"image": [encode(i, "PNG") for i in range(4)], "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(HUB)}), path)
    return path


@pytest.mark.parametrize(
    "form",
    [
        "items",
        "list",
        "pictures",
        "batches",
        "arrays",
        "function",
        "file",
        "tar",
        "facts",
        "column",
        "repeated",
    ],
)
def test_names_are_classes_in_whichever_form(form: str, tmp_path: Path) -> None:
    """As folders of these names are: matched to the network's own names."""
    path = tmp_path / "a.npz"
    tags = {f"{i}.cls": name.encode() for i, name in enumerate(NAMES)}
    facts = {f"{i}.json": json.dumps({"label": name or None}).encode() for i, name in enumerate(NAMES)}
    pictures = {f"{i}.png": encode(i, "PNG") for i in range(4)}
    column: Any = pa.array([name or None for name in NAMES])
    np.savez(path, images=TENSORS.numpy(), labels=np.array(NAMES))
    images = {
        "items": lambda: Items(lambda i: {"image": TENSORS[i], "label": NAMES[i]}),
        "list": lambda: [{"image": x, "label": name} for x, name in zip(TENSORS, NAMES, strict=True)],
        "pictures": lambda: Items(lambda i: {"image": Image.fromarray(PIXELS[i]), "label": NAMES[i]}),
        "batches": lambda: iter([{"x": TENSORS[:2], "y": NAMES[:2]}, {"x": TENSORS[2:], "y": NAMES[2:]}]),
        "arrays": lambda: {"image": PIXELS, "label": NAMES},
        "function": lambda: {"x": TENSORS, "label": np.array(NAMES)},
        "file": lambda: path,
        "tar": lambda: write_tar(tmp_path / "a.tar", pictures | tags),
        "facts": lambda: write_tar(tmp_path / "a.tar", pictures | facts),
        "column": lambda: parquet_of(column, tmp_path / "a.parquet"),
        "repeated": lambda: parquet_of(column.dictionary_encode(), tmp_path / "a.parquet"),
    }[form]()  # fmt: skip
    model = network()
    model.classes = ["frog", "dog", "cat", "cow", "ship"]  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "test: of each batch")
        feed = Feed(model, images, caller="test", preprocessing="none")
    assert (feed.images.labels, getattr(feed.images, "classes", None)) == ([1, None, 0, 1], ["cow", "dog"])
    assert feed.number_labels(feed.images.labels) == [1, None, 3, 1]


def test_names_mean_nothing_to_a_network_without() -> None:
    pictures = Items(lambda i: {"image": Image.fromarray(PIXELS[i]), "label": NAMES[i]})
    feed = Feed(network(), pictures, caller="test", preprocessing="none")
    with pytest.warns(
        SpectralWarning, match="the network doesn't name its classes, and the labels have names"
    ):
        assert feed.number_labels(feed.images.labels) == [None] * 4


@pytest.mark.parametrize("picture", [False, True])
def test_a_key_in_front_of_an_image_is_no_label(picture: bool) -> None:
    """As webdataset's ``to_tuple("__key__", "jpg", "cls")`` gives them, one by one or in batches."""
    items = [(f"a/{i}", Image.fromarray(PIXELS[i]) if picture else TENSORS[i], WHOLE[i]) for i in range(4)]
    batch = (["a/0", "a/1", "a/2", "a/3"], TENSORS, torch.tensor(WHOLE))
    for images in (iter(items), Items(items.__getitem__), iter([batch])):
        assert adapt_images(images, "test").labels == WHOLE


def test_the_hub_writes_minus_one_for_no_label(tmp_path: Path) -> None:
    rows: Any = Items(lambda i: {"image": Image.fromarray(PIXELS[i]), "label": [1, -1, 2, 3][i]})
    rows.features = {"label": object()}
    assert adapt_images(rows, "test").labels == [1, None, 2, 3]
    assert spectral.load_images(parquet_of([1, -1, 2, 3], tmp_path / "a.parquet")).labels == [1, None, 2, 3]


def test_the_only_column_of_the_hub_s_that_counts_classes_is_the_labels(tmp_path: Path) -> None:
    """Whatever its name; of several it isn't known which."""
    told = SimpleNamespace(names=["a", "b", "c", "d"], dtype="int64")
    for picture in (True, False):
        items = [Image.fromarray(p) for p in PIXELS] if picture else list(TENSORS)
        rows: Any = Items(lambda i, x=items: {"image": x[i], "breed": WHOLE[i], "age": i})
        rows.features = {"image": object(), "breed": told, "age": object()}
        for dataset in (rows, Subset(rows, range(4)), DataLoader(rows, batch_size=3)):
            images = adapt_images(dataset, "test")
            assert (images.labels, images.classes) == (WHOLE, told.names)
        rows.features["age"] = told
        with pytest.warns(SpectralWarning, match="'breed', 'age' count classes, and which of them are the"):
            assert adapt_images(rows, "test").labels == [None] * 4
    table = pa.table({"image": [encode(i) for i in range(4)], "breed": WHOLE})
    facts = {"info": {"features": {"breed": {"names": told.names}, "image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(facts)}), tmp_path / "a.parquet")
    images = spectral.load_images(tmp_path / "a.parquet")
    assert (images.labels, images.classes) == (WHOLE, told.names)
