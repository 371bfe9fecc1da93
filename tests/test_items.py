"""Every form in which people keep images with their labels gives the network the same pixels and labels."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import spectral
from spectral.cli import main
from spectral.data import open_images
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed

LABELS = [3, 1, 2, 0, 5]
PIXELS = np.stack([np.full((16, 20, 3), (40 * label, 7, 255), np.uint8) for label in LABELS])
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]
TENSORS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255


class Listed(Dataset):
    """Items of a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Streamed(IterableDataset):
    """Items of a list, one after the other."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def make_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def encode(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def read(images, preprocessing="none"):
    """Return what the network gets, the labels, and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", SpectralWarning)
        feed = Feed(make_net(), images, caller="test", preprocessing=preprocessing)
        found = torch.cat([inputs.image for _, inputs in feed.batches(2)])
    return found, list(feed.images.labels), [str(one.message) for one in said]


PAIRS = list(zip(PICTURES, LABELS, strict=True))
TWICE = torch.cat([TENSORS, TENSORS[1:2]])
TENSOR_PAIRS = list(zip(TENSORS, LABELS, strict=True))
BATCHES = [(TENSORS[i : i + 3], torch.tensor(LABELS[i : i + 3])) for i in (0, 3)]
PICTURE_BATCHES = [
    {"image": PICTURES[i : i + 2], "label": LABELS[i : i + 2]} for i in (0, 2, 4)
]  # of .iter(2)
HUB = [{"image": {"bytes": encode(p), "path": None}, "label": label} for p, label in PAIRS]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PAIRS,
        lambda: [{"image": picture, "label": label} for picture, label in PAIRS],
        lambda: list(zip(TENSORS, LABELS, strict=True)),
        lambda: {"image": PIXELS, "label": np.array(LABELS)},
        lambda: {"image": list(PIXELS), "label": LABELS},
        lambda: {"image": PICTURES, "label": LABELS, "path": list("abcde")},
        lambda: (PIXELS, LABELS),
        lambda: (torch.from_numpy(PIXELS), torch.tensor(LABELS)),
        lambda: Listed(list(zip(PIXELS, LABELS, strict=True))),
        lambda: Listed([{"image": p, "label": label} for p, label in zip(PIXELS, LABELS, strict=True)]),
        lambda: Listed([(torch.from_numpy(p), n) for p, n in zip(PIXELS, LABELS, strict=True)]),
        lambda: Listed(HUB),
        lambda: Listed([{"jpg": item["image"]["bytes"], "cls": item["label"]} for item in HUB]),
        lambda: Listed([(picture, label, f"{label}.png") for picture, label in PAIRS]),
        lambda: Listed([(picture, f"{label}.png", label) for picture, label in PAIRS]),
        lambda: Listed([(x, n, f"{n}.png") for x, n in zip(TENSORS, LABELS, strict=True)]),
        lambda: Streamed([(x, f"{n}.png", n) for x, n in zip(TENSORS, LABELS, strict=True)]),
        lambda: DataLoader(Streamed([(*b, list("abcde")[: len(b[1])]) for b in BATCHES]), batch_size=None),
        lambda: DataLoader(Listed(PAIRS), batch_size=None),
        lambda: DataLoader(Listed(list(zip(TENSORS, LABELS, strict=True))), batch_size=None),
        lambda: DataLoader(Streamed(list(zip(TENSORS, LABELS, strict=True))), batch_size=None),
        lambda: DataLoader(Streamed(list(zip(PIXELS, LABELS, strict=True))), batch_size=None),
        lambda: DataLoader(Streamed(BATCHES), batch_size=None),
        lambda: Streamed(HUB),
        lambda: Streamed(PICTURE_BATCHES),
        lambda: PICTURE_BATCHES,
        lambda: Streamed([tuple(batch.values()) for batch in PICTURE_BATCHES]),
        lambda: DataLoader(Streamed(PAIRS), 2, collate_fn=lambda items: tuple(zip(*items, strict=True))),
        lambda: DataLoader(Streamed(PAIRS), 2, collate_fn=list),
        lambda: DataLoader(Listed(TENSOR_PAIRS), 2, collate_fn=list),
        lambda: DataLoader(Streamed(TENSOR_PAIRS), 2, collate_fn=list),
        lambda: DataLoader(Listed(PAIRS), 2, collate_fn=list),
        lambda: DataLoader(Listed(TENSOR_PAIRS), 2, collate_fn=lambda items: tuple(zip(*items, strict=True))),
        lambda: list(DataLoader(Listed(TENSOR_PAIRS), 2)),
        lambda: tuple(TENSOR_PAIRS),
        lambda: tuple(PAIRS),
    ],
)  # fmt: skip
def test_pixels_and_labels_are_what_was_given(make):
    found, labels, said = read(make())
    torch.testing.assert_close(found, TENSORS)
    assert labels == LABELS
    assert said == []


def test_an_image_of_the_hub_may_lie_in_a_file(tmp_path):
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    items = [
        {"image": {"bytes": None, "path": f"{tmp_path}/{i}.png"}, "label": n} for i, n in enumerate(LABELS)
    ]
    found, labels, _ = read(Listed(items))
    torch.testing.assert_close(found, TENSORS)
    assert labels == LABELS
    items[3]["image"]["path"] = f"{tmp_path}/gone.png"
    with pytest.raises(SpectralError, match=r"item 3 of Listed: an encoded image .* No such file"):
        read(Listed(items))


def test_which_of_several_numbers_is_the_label_is_not_guessed():
    _, labels, said = read(Listed([(picture, label, i) for i, (picture, label) in enumerate(PAIRS)]))
    assert labels == [None] * 5
    assert len(said) == 1
    assert "it is 2 numbers, and which of them is the label isn't known" in said[0]
    _, labels, said = read(Listed([(x, n, i) for i, (x, n) in enumerate(zip(TENSORS, LABELS, strict=True))]))
    assert labels == [None] * 5
    assert "a label is taken where it alone is beside the image" in said[0]


@pytest.mark.parametrize("targets", [[(0, 1), (2, 1), (1, 2), (1, 0), (3, 4)], [1, 0.5, 2, 0, 3]])
@pytest.mark.parametrize("images", [PICTURES, TENSORS])
def test_what_is_a_label_in_some_items_alone_is_none(targets, images):
    """Of two numbers each, (0, 1) looks like one of two classes, one-hot."""
    _, labels, said = read(Listed(list(zip(images, targets, strict=True))))
    assert labels == [None] * 5
    assert "the second of each pair isn't taken as labels" in said[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: (image, label),
        lambda image, label: {"image": image, "label": label},
        lambda image, label: {"image": image} if label is None else {"image": image, "label": label},
        lambda image, label: (image, label, "a.png"),
    ],
)
@pytest.mark.parametrize("wrap", [list, Listed, Streamed])
@pytest.mark.parametrize("missing", [0, 2])
def test_images_without_a_label_among_others_with_one(make, wrap, missing):
    labels = [None if i == missing else label for i, label in enumerate(LABELS)]
    for images in (TENSORS, PICTURES):
        found, read_labels, _ = read(wrap([make(x, label) for x, label in zip(images, labels, strict=True)]))
        torch.testing.assert_close(found, TENSORS)
        assert read_labels == labels


@pytest.mark.parametrize("item", [(TENSORS[1], 1), {"image": TENSORS[1], "label": torch.tensor(1)}])
def test_an_item_of_a_dataset_is_one_image(item):
    found, labels, _ = read(item)
    torch.testing.assert_close(found, TENSORS[1:2])
    assert labels == [1]


BOXES = [{"annotation": {"object": [{"name": "cat"}] * count}} for count in (1, 3, 0, 2, 5)]  # VOC's
COCO = [[{"bbox": [1.0, 2, 3, 4], "category_id": 5}] * count for count in (1, 3, 0, 2, 5)]


@pytest.mark.parametrize("targets", [BOXES, COCO])
@pytest.mark.parametrize("collate", [None, lambda items: tuple(zip(*items, strict=True))])
def test_what_belongs_to_boxes_is_no_part_of_the_image(targets, collate):
    """Which no batch of torch holds: as many of it as there are in each image."""
    items = list(zip(TENSORS, targets, strict=True))
    for images in (DataLoader(Listed(items), 2, collate_fn=collate), items):
        found, labels, said = read(images)
        torch.testing.assert_close(found, TENSORS)
        assert labels == [None] * 5
        assert said == ["test: of each batch, the first item is passed"]


def test_files_in_whatever_holds_their_names(tmp_path):
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.iterdir())
    names = list(map(str, paths))
    for source in (tmp_path.glob("*.png"), iter(paths), set(names), np.array(names), pd.Series(names)):
        found, _, _ = read(source)
        torch.testing.assert_close(found, TENSORS)


@pytest.mark.parametrize(
    "wrap", [lambda one: one, lambda one: [PICTURES[0], one], lambda one: Listed([(one, 1)])]
)
def test_a_picture_of_a_broken_file_is_refused_by_its_name(wrap, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.effect_noise((64, 64), 9))[:900])
    with (
        Image.open(tmp_path / "a.png") as broken,
        pytest.raises(SpectralError, match=r"image .*000[01] can't be read \(.*truncated.*; leave it out"),
    ):
        read(wrap(broken))


def test_batches_in_a_list_are_joined_where_they_can_be_nothing_else():
    found, _, _ = read([TENSORS[:3], TENSORS[3:]])
    torch.testing.assert_close(found, TENSORS)
    found, _, said = read([TENSORS[:2], TENSORS[2:4]])  # as (image, its target)
    torch.testing.assert_close(found, TENSORS[:2])
    assert "where all 2 are images to look at, join them by torch.cat" in said[0]


class Tokens(nn.Module):
    """Goes over (B, T, F), and over (T, F) without a batch too."""

    def __init__(self):
        super().__init__()
        self.walk, self.head = nn.LSTM(9, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.walk(x)[0].mean(1))


NETS = {
    "stereo": (nn.Conv1d(2, 4, 3), (2, 40)),
    "two channels": (nn.Conv2d(2, 4, 3), (2, 9, 8)),
    "video": (nn.Conv3d(3, 4, 3, padding=1), (3, 6, 9, 8)),
    "tokens": (Tokens(), (12, 9)),
    "digits": (nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), (9, 8)),
}
UNLABELLED = {
    "one by one": iter,
    "dictionaries": lambda x: ({"image": one} for one in x),
    "with keys": lambda x: ((f"{i}.png", one) for i, one in enumerate(x)),
    "batches": lambda x: iter(x.split(3)),
    "arrays": lambda x: (part.numpy() for part in x.split(3)),
    "list of dictionaries": lambda x: [{"image": part} for part in x.split(2)],
    "loader": lambda x: iter(DataLoader(TensorDataset(x), 2)),
    "batches of one": lambda x: iter(DataLoader(TensorDataset(x), 1)),
    "list of a loader's": lambda x: list(DataLoader(TensorDataset(x), 3)),
    "lists": lambda x: DataLoader(Streamed(list(x)), 2, collate_fn=list),
    "lists of items": lambda x: DataLoader(list(x), 2, collate_fn=list),
}
LABELLED = {
    "pairs": lambda x, y: zip(x, y.tolist(), strict=True),
    "one-hot": lambda x, y: list(zip(x, nn.functional.one_hot(y), strict=True)),
    "labels of one": lambda x, y: zip(x, y[:, None], strict=True),
    "batches": lambda x, y: iter(DataLoader(TensorDataset(x, y), 3)),
    "batches with keys": lambda x, y: (
        {"__key__": [f"{n}.png" for n in part.tolist()], "x": x[part], "cls": y[part]}
        for part in torch.arange(5).split(3)
    ),
    "batches of one": lambda x, y: list(DataLoader(TensorDataset(x, y), 1)),
    "zipped": lambda x, y: iter(DataLoader(TensorDataset(x, y), 2, collate_fn=lambda z: tuple(zip(*z)))),  # noqa: B905
    "items": lambda x, y: DataLoader(Streamed(list(zip(x, y, strict=True))), 2, collate_fn=list),
}  # fmt: skip


@pytest.mark.parametrize("form", [*UNLABELLED, *(f"labelled {name}" for name in LABELLED)])
@pytest.mark.parametrize("name", NETS)
def test_what_one_by_one_means_the_network_tells(name, form):
    """Signals, images of two channels, videos, sequences and images without channels; items or batches."""
    net, shape = NETS[name]
    x, y = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor(LABELS)
    given = LABELLED[form.removeprefix("labelled ")](x, y) if form not in UNLABELLED else UNLABELLED[form](x)
    feed = Feed(net, given, caller="test")
    torch.testing.assert_close(torch.cat([inputs.image for _, inputs in feed.batches(2)]), x)
    assert feed.images.labels == (LABELS if form not in UNLABELLED else [None] * 5)


def test_what_may_be_an_input_or_a_batch_is_refused():
    net = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        SpectralError, match=r"test: what comes one by one, of shape \(2, 40\), may be one .*"
    ):
        Feed(net, iter(torch.rand(4, 40).split(2)), caller="test")
    assert len(Feed(net, load(torch.rand(5, 40)), caller="test").images) == 5
    assert len(Feed(net, iter(load(torch.rand(5, 40))), caller="test").images) == 5


def test_what_a_function_gives_the_commands_read_as_the_network_takes_it(tmp_path, monkeypatch):
    """Without a network what its shape doesn't tell is asked for."""
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net(conv, norm):\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(conv, norm(1), nn.Flatten(), nn.Linear(4, 3))\n"
        "signal = lambda: net(nn.Conv1d(2, 4, 3, 2), nn.AdaptiveAvgPool1d)\n"
        "video = lambda: net(nn.Conv3d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool3d)\n"
        "drawn = lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(1))\n"
        "signals = lambda: iter(drawn(4, 2, 40))\n"
        "loaded = lambda: iter([[x] for x in drawn(4, 2, 40).split(2)])\n"
        "videos = lambda: iter(drawn(4, 3, 6, 9, 8).transpose(1, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SpectralError, match=r"of shape \(2, 40\), may be one input or a batch of 2; join all"
    ):
        open_images("own.py:signals")
    videos, signals = (4, 3, 6, 9, 8), (4, 2, 40)
    for name, given, shape in (
        ("signal", "signals", signals), ("signal+flc", "loaded", signals), ("video", "videos", videos),
    ):  # fmt: skip
        options = ["--images", f"own.py:{given}", "--metrics", "avr,sis", "--out", given, "--quiet"]
        ran = CliRunner().invoke(main, ["measure", f"own.py:{name}", *options])
        assert ran.exit_code == 0, ran.output
        assert "doesn't say what size" not in ran.output
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        net = spectral.load_model(f"own.py:{name}", example=drawn[:1])
        expected = spectral.measure(net, drawn, ["avr", "sis"], progress=False)
        found = spectral.read(f"{given}/measurements")
        assert len(found) == len(expected) > 8
        np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-5)


def test_a_batch_that_has_lost_an_axis_is_refused():
    with pytest.raises(SpectralError, match="batch 1 has 3 axes, batch 0 has 4; give each as many"):
        Feed(nn.Conv2d(3, 4, 3), iter([TENSORS[:4], TENSORS[4]]), caller="test")


def test_pixels_with_channels_last_lose_their_fourth_as_with_channels_first():
    pixels = torch.from_numpy(np.concatenate([PIXELS, PIXELS[..., :1]], -1))
    for given in (pixels.permute(0, 3, 1, 2), pixels):
        found, _, said = read(iter(given.split(2)))
        torch.testing.assert_close(found, TENSORS)
        assert any("without their fourth channel" in one for one in said)


def test_trying_leaves_the_network_as_it_was():
    seen = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    net.register_forward_hook(lambda *_: seen.append(1))
    before, drawn = {key: x.clone() for key, x in net.state_dict().items()}, torch.get_rng_state()
    Feed(net, iter(TENSORS.split(2)), caller="test")
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert net.training
    assert all(module.training for module in net)


@pytest.mark.parametrize("make", [
    lambda x: {"image": x}, lambda x: (x, torch.rand(5)), lambda x: iter([(x, torch.rand(5))]),
    lambda x: Listed([{"image": one, "name": "a"} for one in x]), lambda x: [x],
])  # fmt: skip
@pytest.mark.parametrize("arrange", [lambda x: x[:, 0], lambda x: x.permute(0, 2, 3, 1)])
def test_an_image_among_others_is_arranged_as_one_alone(make, arrange):
    """Without channels a network of convolutions alone took it, as one image of as many channels."""
    x = torch.rand(5, 1, 9, 8)
    feed = Feed(nn.Conv2d(1, 4, 3), make(arrange(x)), caller="test")
    torch.testing.assert_close(torch.cat([inputs.image for _, inputs in feed.batches(2)]), x)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("wrap", [list, iter, Listed, lambda items: Listed([(x,) for x in items]),
                                  lambda items: ((x, 1) for x in items)])  # fmt: skip
def test_what_is_one_image_the_network_tells(axes, wrap):
    """Signals (C, T), images and volumes (C, T, H, W), with and without an axis for their channel."""
    net = nn.Sequential((nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](1, 4, 3), nn.Flatten(2))
    whole = torch.rand(5, 1, *(8, 9, 10)[:axes])
    for items in (list(whole), list(whole[:, 0])):
        if items[0].ndim == axes and wrap is list:
            continue  # may be several inputs
        feed = Feed(net, wrap(items), caller="test")
        batches = [inputs.image for _, inputs in feed.batches(2)]
        torch.testing.assert_close(torch.cat(batches), whole)


class Apart(nn.Module):
    """An image's network of which another branch has the first convolution in order."""

    def __init__(self, stem):
        super().__init__()
        self.stem, self.net = stem, make_net()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("stem", [nn.Conv1d(7, 4, 3), nn.Conv3d(3, 4, 1), nn.Conv2d(1, 4, 3)])
@pytest.mark.parametrize(("wrap", "labels"), [
    (list, False), (lambda x: list(x.numpy()), False), (iter, False),
    (lambda x: zip(x, LABELS, strict=True), True), (lambda x: list(zip(x, LABELS, strict=True)), True),
    (lambda x: iter(load(x)), True), (lambda x: list(load(x)), True), (lambda x: list(load(x, 1)), True),
    (lambda x: map(tuple, load(x)), True), (lambda x: load(x, None), True),
])  # fmt: skip
def test_the_first_convolution_may_not_be_the_images(stem, wrap, labels):
    feed = Feed(Apart(stem), wrap(TENSORS), caller="test")
    torch.testing.assert_close(torch.cat([inputs.image for _, inputs in feed.batches(2)]), TENSORS)
    assert feed.images.labels == (LABELS if labels else [None] * 5)


def load(images, batch_size=2):
    return DataLoader(TensorDataset(images, torch.tensor(LABELS)), batch_size)


@pytest.mark.parametrize("wrap", [iter, list])
def test_batches_to_which_the_network_adds_an_axis(wrap):
    """Spectrograms (B, T, F) with a label each."""
    net = nn.Sequential(nn.Unflatten(1, (1, 16)), nn.Conv2d(1, 4, 3), nn.Flatten(1))
    feed = Feed(net, wrap(load(TENSORS[:, 0], 4)), caller="test")
    torch.testing.assert_close(torch.cat([inputs.image for _, inputs in feed.batches(2)]), TENSORS[:, 0])
    assert feed.images.labels == LABELS


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"image": x}])
def test_floats_with_channels_last(wrap):
    found, _, said = read(wrap(TENSORS.permute(0, 2, 3, 1)))
    torch.testing.assert_close(found, TENSORS)
    assert "its channels, which are last, are moved first" in said[0]


def test_floats_of_pixels_are_told_from_normalised_images():
    """Where a normalisation is known: of others nothing is, and they may be what the network takes."""
    net = make_net()
    _, _, said = read(TENSORS * 255, preprocessing=None)
    assert said == []
    net.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 16, 20)}
    for images, count in ((TENSORS * 255, 1), (Listed(list(TENSORS * 255)), 1), (TENSORS * 4 - 2, 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", SpectralWarning)
            spectral.measure_stability(net, images, progress=False)
        wrong = [one for one in said if "pixels of 0 … 255 divided by 255" in str(one.message)]
        assert len(wrong) == count


@pytest.mark.parametrize(
    "make",
    [
        lambda: [*PICTURES, PICTURES[1]],
        lambda: Listed([*PAIRS, PAIRS[1]]),
        lambda: Subset(Listed(list(zip(TENSORS, LABELS, strict=True))), [0, 1, 2, 3, 4, 1]),
        lambda: TWICE,
        lambda: list(TWICE),
        lambda: np.concatenate([PIXELS, PIXELS[1:2]]),
        lambda: iter(TWICE.split(4)),
    ],
)
def test_images_that_are_there_twice_are_told(make):
    found, _, said = read(make())
    assert len(found) == 6
    assert ["1 of 6 images are the same as another" in one for one in said] == [True]


@pytest.mark.parametrize("place", [(1, 1), (63, 62), (40, 7)])
def test_images_that_differ_in_one_sample_are_not_the_same(place):
    images = torch.rand(1, 3, 64, 64).div(2).repeat(3, 1, 1, 1)
    images[(2, 0, *place)] += 0.5
    *_, said = read(images)
    assert ["1 of 3 images are the same as another" in one for one in said] == [True]


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_arrays_of_the_test_images_are_read_of_a_file_that_has_others(names, tmp_path):
    """As keras and MedMNIST keep them."""
    other = {"train": np.zeros_like(PIXELS[:2]), "val": PIXELS[:1], "test": PIXELS}
    labels = {"train": [0, 0], "val": [[3]], "test": np.array(LABELS)[:, None]}
    held = {names[0].format(part): other[part] for part in other}
    np.savez(tmp_path / "set.npz", **held, **{names[1].format(part): labels[part] for part in labels})
    found, read_labels, said = read(tmp_path / "set.npz")
    torch.testing.assert_close(found, TENSORS)
    assert read_labels == LABELS
    assert "are read, since the other arrays are of other parts of the data" in said[0]


@pytest.mark.parametrize(
    "last", [{"image": PICTURES[:2], "label": [1]}, {"image": PICTURES[:2], "label": "ab"}, None]
)
def test_a_batch_that_is_none_of_pictures_as_the_others_are_is_refused(last):
    """Its pictures would be missing without a word."""
    with pytest.raises(SpectralError, match="batch 3 is no batch of pictures"):
        read(Streamed([*PICTURE_BATCHES, last]))
