"""How images come to a model: what it gets, in numbers, and what is said of it."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.transforms as v1
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from spectral.budget import measure_instability_budget
from spectral.data import adapt_images, load_images
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed, GivenImages, join_inputs, pick_inputs
from spectral.measurement import measure
from spectral.models import load_model
from spectral.models.info import IMAGENET
from spectral.network import make_inputs
from spectral.numerics.precision import require_double
from spectral.perturb import measure_fourier_heatmap, measure_predictions
from spectral.repair.recalibration import recalibrate
from spectral.sharing import Sharing
from spectral.sites import find_sites
from spectral.stability import attribute_instability, measure_equivariance, measure_stability
from spectral.surgery import conversion_report, convert

MEAN, STD = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def net(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def fed(model: nn.Module, images: Any, **options: Any) -> tuple[Feed, Tensor, list[str]]:
    """A feed, the image that the model gets in two batches, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        feed = Feed(model, images, caller="test", **options)
        batches = list(feed.batches(2))
        assert feed.probe is not None
    said = [str(w.message) for w in caught if issubclass(w.category, SpectralWarning)]
    assert [i for indices, _ in batches for i in indices] == list(range(len(feed.images)))
    return feed, join_inputs([inputs for _, inputs in batches]).image, said


# What is passed as it is -----------------------------------------------------------------------------------


class Halves(nn.Module):
    """Takes 8-bit pixels and normalises them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.float() / 127.5 - 1)


@pytest.mark.parametrize(
    ("model", "shape", "got"),
    [
        (net(), (5, 3, 9, 8), (5, 3, 9, 8)), (net(), (3, 9, 8), (1, 3, 9, 8)),
        (net(1), (5, 9, 8), (5, 1, 9, 8)),
        (net(1), (9, 8), (1, 1, 9, 8)), (net(), (5, 9, 8, 3), (5, 3, 9, 8)),
        (nn.Conv1d(2, 4, 3, 2), (3, 2, 30), (3, 2, 30)),
        (nn.Conv3d(3, 4, 3, 2), (2, 3, 4, 9, 8), (2, 3, 4, 9, 8)),
    ],
)  # fmt: skip
def test_tensors_and_arrays_are_taken_as_they_are(model, shape, got):
    x = noise(*shape)
    for given in (x, x.numpy()):
        _, image, _ = fed(model, given)
        assert image.shape == got
        assert torch.equal(image.flatten().sort().values, x.flatten().sort().values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_they_get_the_models_type(dtype):
    x = noise(2, 3, 9, 8)
    _, image, _ = fed(net().to(dtype), x)
    assert torch.equal(image, x.to(dtype))
    _, image, _ = fed(nn.Flatten(), x.to(dtype))
    assert torch.equal(image, x.to(dtype))


def test_what_is_normalised_is_not_normalised_again():
    model = timm.create_model("resnet18")
    x = (noise(2, 3, 32, 32) - MEAN) / STD
    _, image, said = fed(model, x)
    assert torch.equal(image, x)
    assert said == []


def test_values_in_the_unit_interval_are_pointed_out():
    model, x = timm.create_model("resnet18"), noise(2, 3, 32, 32)
    _, image, said = fed(model, x)
    assert torch.equal(image, x)
    assert len(said) == 1
    assert "passed as they are; ResNet expects images normalised by mean 0.485, 0.456, 0.406" in said[0]
    _, image, said = fed(model, x, preprocessing=model.pretrained_cfg)
    torch.testing.assert_close(image, (x - MEAN) / STD)
    assert said == []
    assert fed(model, x, preprocessing="none")[2] == []
    assert fed(net(), x)[2] == []


def test_values_that_a_network_normalises_once_more_are_pointed_out():
    own = nn.Sequential(v1.Normalize(MEAN.flatten(), STD.flatten()), net())
    x = torch.rand(2, 3, 9, 8)
    for given, count in ((x, 0), (x * 2 - 1, 1), (x * 255, 1)):
        _, image, said = fed(own, given)
        assert torch.equal(image, given)
        assert ["normalises images itself (the network's own layer '0')" in one for one in said] == [
            True
        ] * count


def test_preprocessing_wants_images_in_the_unit_interval():
    with pytest.raises(SpectralError, match=r"test: expected images in \[0, 1\], .* from -1 to "):
        Feed(net(), 2 * noise(2, 3, 9, 8).round() - 1, caller="test", preprocessing="imagenet")


def test_eight_bits():
    x = torch.from_numpy(pixels(2, 3, 9, 8))
    feed, image, said = fed(Halves(), x)
    assert torch.equal(image, x)
    assert "passed as it is" in said[0]
    feed, image, said = fed(net(), x, preprocessing="imagenet")
    torch.testing.assert_close(image, (x / 255 - MEAN) / STD)
    feed, image, said = fed(net(), x)
    torch.testing.assert_close(image, x / 255)
    assert feed.normalises
    assert ["divided by 255" in said[0], "in [0, 1], since its normalisation isn't known" in said[1]] == [
        True,
        True,
    ]


class Items(Dataset):
    """Items made of images, each with a label."""

    def __init__(self, images: Tensor, make: Callable[[Tensor], Any]) -> None:
        self.images, self.make = images, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.images[index])


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "dataset": lambda x: TensorDataset(x, torch.arange(len(x))),
    "arrays": lambda x: Items(x, lambda one: (one.numpy(), 1)),
    "dictionaries": lambda x: Items(x, lambda one: {"image": one, "label": 1}),
    "loader": lambda x: DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=2),
    "batches": lambda x: iter(x.split(2)),
    "list": list,
    "dictionary": lambda x: {"pixel_values": x},
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_eight_bits_in_whatever_holds_them(holder):
    x, model = torch.from_numpy(pixels(4, 3, 9, 8)), timm.create_model("resnet18")
    expected = (x / 255 - MEAN) / STD
    for options in ({}, {"preprocessing": "imagenet"}, {"pixels": True}):
        feed, image, said = fed(model, HOLDERS[holder](x), **options)
        torch.testing.assert_close(image, expected)
        assert feed.normalises
        assert any("taken as pixels: divided by 255" in sentence for sentence in said)
        # By this a folder whose first rows an earlier version wrote, of 0 to 255, isn't continued.
        assert (feed.describe_preparation() or {})["divided_by"] == 255
        (_, first), *_ = feed.read_batches(4)
        torch.testing.assert_close(first.image, x / 255)
    if holder not in ("list", "dictionary", "dictionaries"):
        _, image, said = fed(Halves(), HOLDERS[holder](x))
        assert torch.equal(image, x)
        assert "passed as it is" in said[0]


def test_eight_bits_in_items_come_to_a_network_of_one_channel_in_gray():
    x = torch.from_numpy(pixels(4, 3, 9, 8))
    _, image, _ = fed(net(1), HOLDERS["dataset"](x))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(image, (x / 255 * weights).sum(1, keepdim=True))


@pytest.mark.parametrize("holder", HOLDERS)
def test_values_beyond_the_unit_interval_are_refused_wherever_they_are(holder):
    x, model = noise(4, 3, 32, 32), timm.create_model("resnet18")
    x[3] *= 255
    for options in ({"preprocessing": "imagenet"}, {"pixels": True}):
        with pytest.raises(SpectralError, match=r"test: expected images in \[0, 1\], .* to 25"):
            fed(model, HOLDERS[holder](x), **options)
    x[3] = float("nan")
    with pytest.raises(SpectralError, match="got values from nan to nan"):
        fed(model, HOLDERS[holder](x), pixels=True)


@pytest.mark.parametrize("holder", HOLDERS)
def test_values_in_the_unit_interval_are_pointed_out_wherever_they_are(holder):
    x, model = noise(4, 3, 32, 32), timm.create_model("resnet18")
    _, image, said = fed(model, HOLDERS[holder](x))
    assert torch.equal(image, x)
    assert sum("passed as they are; ResNet expects images normalised" in one for one in said) == 1
    assert not any("in [0, 1]" in one for one in fed(model, HOLDERS[holder]((x - MEAN) / STD))[2])
    assert not any("in [0, 1]" in one for one in fed(net(), HOLDERS[holder](x))[2])


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: x.transpose(0, 2, 3, 1), lambda x: x[:, 0], lambda x: x[:, :1]]
)
def test_arrays_of_pixels_in_a_list_are_as_in_one_array(make):
    x = make(pixels(3, 3, 9, 10))
    expected = x[:, None] if x.ndim == 3 else x if x.shape[-1] != 3 else x.transpose(0, 3, 1, 2)
    for given in (list(x), iter(x if x.ndim > 3 else x[..., None])):
        _, image, _ = fed(net(), given, pixels=True, preprocessing="none")
        torch.testing.assert_close(image, torch.from_numpy(expected / np.float32(255)).expand(3, 3, 9, 10))


@pytest.mark.parametrize("shape", [(5, 9, 10), (9, 10, 5), (0, 9, 3)])
def test_an_array_in_a_list_that_is_no_image_is_refused(shape):
    with pytest.raises(SpectralError, match=r"expected 8-bit images \(H, W\), .* got an array of shape"):
        Feed(net(), [pixels(*shape)], caller="test")


def test_three_planes_of_pixels_are_said_to_be_one_image():
    _, image, said = fed(net(1), pixels(3, 9, 10), preprocessing="none")
    assert len(image) == 1
    assert "taken as one image of 3 channels; add an axis" in said[0]
    assert len(fed(net(1), pixels(3, 1, 9, 10), preprocessing="none")[1]) == 3


def test_masked_pixels_are_refused():
    x = pixels(2, 9, 10, 3)
    with pytest.raises(SpectralError, match="test: the array has masked values; fill them"):
        Feed(net(), np.ma.masked_array(x, x > 250), caller="test")
    assert len(Feed(net(), np.ma.masked_array(x), caller="test").images) == 2


# Several inputs --------------------------------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.body(image.float() * mask)


class OfOneDictionary(Masked):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["image"], batch["mask"])


class OfList(nn.Module):
    """A detector: a list of images in, a list of dictionaries out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, 2)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert isinstance(images, list)
        return [{"boxes": self.body(x[None]).mean((2, 3))} for x in images]


def test_several_inputs_in_every_form():
    image, mask = noise(3, 3, 9, 8), (noise(3, 1, 9, 8) > 0.5).float()
    for model, given in (
        (Masked(), (image, mask)), (Masked(), {"image": image, "mask": mask}), (Masked(), [image, mask]),
        (OfOneDictionary(), {"image": image, "mask": mask}),
        (OfOneDictionary(), ({"image": image, "mask": mask},)),
        (Masked(), {"image": image.numpy(), "mask": mask.numpy()}),
        (Masked(), ((255 * image).to(torch.uint8), mask)),
    ):  # fmt: skip
        feed, got, _ = fed(model, given)
        assert got.shape == image.shape
        assert feed.extents == {"h": 9, "w": 8}
        (_, second), *_ = feed.batches(1, indices=[2])
        one = second.args[0] if isinstance(second.args[0] if second.args else None, dict) else second.kwargs
        found = list(one.values()) if one else list(second.args)
        assert torch.equal(found[1], mask[2:])


def test_normalising_touches_the_image_alone():
    image, mask = noise(3, 3, 9, 8), noise(3, 1, 9, 8)
    feed, got, _ = fed(Masked(), (image, mask), preprocessing="imagenet")
    torch.testing.assert_close(got, (image - MEAN) / STD)
    assert torch.equal(feed.load([0]).args[1], mask[:1])


def test_lists_of_images():
    pictures = [noise(3, 9, 8), noise(3, 7, 10)]
    feed = Feed(OfList(), pictures, caller="test")
    assert [x.shape for x in feed.load([1]).args[0]] == [(3, 7, 10)]
    assert len(feed.images) == 2
    _, image, _ = fed(net(), [noise(3, 9, 8), noise(3, 9, 8, seed=1)])
    assert image.shape == (2, 3, 9, 8)


class Padding(OfList):
    """A detector that makes one map of a list, as large as its largest image."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        size = [max(x.shape[axis] for x in images) for axis in (1, 2)]
        whole = images[0].new_zeros(len(images), 3, *size)
        for x, room in zip(images, whole, strict=True):
            room[:, : x.shape[1], : x.shape[2]].copy_(x)
        return [{"boxes": y.mean((1, 2))} for y in self.body(whole)]


def test_images_of_several_sizes_are_measured_alone_whatever_the_batch():
    net, pictures = Padding(), [noise(3, 9, 8), noise(3, 9, 8, seed=1), noise(3, 7, 12)]
    feed = Feed(net, pictures, caller="test")
    assert [indices for indices, _ in feed.batches(3)] == [[0, 1], [2]]
    several, one = (
        measure(net, pictures, ("avr",), batch_size=size, progress=False)["value"] for size in (3, 1)
    )
    torch.testing.assert_close(torch.tensor(several), torch.tensor(one), rtol=1e-5, atol=0)
    share = Sharing(feed, 3)
    with tqdm(total=3, file=io.StringIO()) as bar:
        found = share.gather(((bar.n, indices) for indices, _ in share.read(feed.batches)), bar)
    assert found == [(0, [0, 1]), (2, [2])]
    assert bar.n == 3


class Weighted(nn.Module):
    """Takes images one by one, each with a dictionary of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(net(), nn.Linear(4, 3))

    def forward(self, images: list[Tensor], notes: list[dict[str, Tensor]]) -> Tensor:
        return self.body(torch.stack([x * note["gain"] for x, note in zip(images, notes, strict=True)]))


class OfItems(Weighted):
    """Takes what detectron2's and SAM's do: a list of dictionaries."""

    def forward(self, items: list[dict[str, Tensor]]) -> Tensor:  # type: ignore[override]
        return super().forward([item["image"] for item in items], items)


NOTES = [{"gain": torch.tensor(gain), "boxes": torch.zeros(i, 4)} for i, gain in enumerate((0.5, 1.0, 0.2))]


@pytest.mark.parametrize("given", ["lists", "loader", "its batches", "dictionaries"])
def test_what_belongs_to_each_image_goes_with_it(given: str) -> None:
    x = noise(3, 3, 9, 8)
    torch.manual_seed(0)
    model: nn.Module = (OfItems if given == "dictionaries" else Weighted)().eval()
    pairs = list(zip(x, NOTES, strict=True))
    loader: Any = DataLoader(pairs, 2, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    images = {
        "lists": (list(x), NOTES), "loader": loader, "its batches": iter(loader),
        "dictionaries": [{"image": image, **note} for image, note in pairs],
    }[given]  # fmt: skip
    plain = torch.stack([image * note["gain"] for image, note in pairs])
    expected = measure(model.body, plain, ("avr", "sis"), batch_size=2, progress=False)
    table = measure(model, images, ("avr", "sis"), batch_size=2, progress=False)
    assert table["image"].tolist() == expected["image"].tolist()
    np.testing.assert_allclose(table["value"], expected["value"], rtol=1e-5)


def test_batches_that_come_as_lists_of_images_are_batches():
    x = noise(4, 3, 9, 8)
    for model in (net(), OfItems().body):
        for given in ([list(x[:2]), list(x[2:])], [(tuple(x[:2]), NOTES[:2]), (tuple(x[2:]), NOTES[1:])]):
            _, image, _ = fed(model, iter(given))
            assert torch.equal(image, x)


def test_dictionaries_of_a_network_that_takes_a_batch_are_collated():
    x = noise(2, 1, 9, 8)
    _, image, said = fed(net(1), [{"image": one, "name": "a"} for one in x])
    assert torch.equal(image, x)
    assert said == ["test: of each batch, 'image' is passed"]


@pytest.mark.parametrize(
    ("arrange", "give"),
    [
        (lambda x: x.permute(0, 3, 1, 2), lambda x: x.permute(0, 2, 3, 1)),
        (lambda x: x[:, None], lambda x: x[:, 0]),
    ],
    ids=["channels last", "no channels"],
)
def test_what_is_perturbed_are_rows_and_columns(arrange, give):
    """Where channels are last, rows were left as they are, and channels taken for columns."""

    class Arranged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(net(1), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(arrange(x))

    x, model = noise(3, 1, 9, 12), Arranged()
    looks: list[Callable[..., pd.DataFrame]] = [
        partial(measure_predictions, perturbations=["decimate-3", "checkerboard-0.05"]),
        partial(measure_fourier_heatmap, radius=1),
    ]
    for look in looks:
        tables = [
            look(one, given, preprocessing="none", progress=False).select_dtypes("number")
            for one, given in ((model.body, x), (model, give(x)))
        ]
        pd.testing.assert_frame_equal(*tables)


def test_videos_of_eight_bits():
    x = torch.from_numpy(pixels(2, 3, 4, 9, 8))
    body = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    for given in (x, x.numpy(), [(one, 1) for one in x]):
        _, image, said = fed(body, given)
        assert torch.equal(image, x.float() / 255)
        assert any("taken as pixels: divided by 255" in sentence for sentence in said)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 2, 3, 4, 1)])
def test_videos_are_normalised_wherever_their_channels_are(order):
    """As torchvision reads them: time first, and channels behind it or last."""
    x = torch.from_numpy(pixels(2, 3, 4, 9, 8))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    wanted = (x / 255 - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)
    body = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    turned = x.permute(order)
    for given in (turned, turned / 255, list(turned), [(one, 1) for one in turned]):
        _, image, said = fed(body, given, preprocessing=(mean, std))
        torch.testing.assert_close(image, wanted)
        assert any("are moved first" in one for one in said) == (order != (0, 1, 2, 3, 4))
    assert fed(body, (turned / 255)[0], preprocessing="none")[1].shape == (1, 3, 4, 9, 8)


# Sets of images --------------------------------------------------------------------------------------------


def test_images_are_normalised_as_the_network_tells():
    images = load_images("synthetic", 32, 3)
    raw = torch.stack(list(images))
    ours = load_model("bundled/resnet8@random")
    _, image, said = fed(ours, images)
    torch.testing.assert_close(image, (raw - 0.5) / 0.5)
    assert said == []
    theirs = timm.create_model("resnet18")
    bytes_of = (255 * raw.permute(0, 2, 3, 1)).round().to(torch.uint8).numpy()
    for source in (images, bytes_of):
        _, image, _ = fed(theirs, source)
        torch.testing.assert_close(image, (raw - MEAN) / STD, rtol=1e-4, atol=1e-4)


def test_an_assumption_is_said_once():
    _, image, said = fed(net(), load_images("synthetic", 32, 5))
    assert len(said) == 1
    assert said[0].startswith("test: images are passed to Sequential in [0, 1]")
    assert image.min() >= 0
    _, _, said = fed(net(), load_images("synthetic", 32, 5), preprocessing="none")
    assert said == []


def test_enlarged_images_are_counted():
    images = load_images("synthetic", 32, 4)
    pictures = [Image.fromarray(pixels(300, 230, 3)), Image.fromarray(pixels(20, 300, 3))]
    _, image, said = fed(timm.create_model("resnet18"), pictures)
    assert image.shape == (2, 3, 224, 224)
    assert "the configuration of ResNet says: of the resized shorter side 0.95 are kept" in said[0]
    assert said[1:] == [
        "test: 1 of 2 images are smaller than 224×224 and are enlarged, which lowers AVR: images/0001"
    ]
    # said wherever they are resized, also before they were given, as by a command; not of the network's size
    _, _, said = fed(timm.create_model("resnet18"), adapt_images(pictures, "test").resized((224, 224)))
    assert "of the resized shorter side 0.95 are kept" in said[0]
    assert fed(timm.create_model("resnet18"), [Image.fromarray(pixels(224, 224, 3))])[2] == []
    _, _, said = fed(load_model("bundled/resnet8@random"), images.resized((64, 64)))
    assert "4 of 4 images are smaller than 64×64" in said[0]
    assert said[0].endswith("synthetic/0000, synthetic/0001, synthetic/0002, …")


@pytest.mark.parametrize(("channels", "got"), [(1, 1), (3, 3)])
@pytest.mark.parametrize("shape", [(5, 9, 8), (3, 9, 8, 3), (3, 9, 8, 4), (3, 9, 8, 1)])
def test_pixels_get_the_networks_channels(channels, got, shape):
    array = pixels(*shape)
    _, image, said = fed(net(channels), array, preprocessing="none")
    assert image.shape == (shape[0], got, 9, 8)
    colours = array[..., None] if array.ndim == 3 else array
    if channels == colours.shape[-1]:
        np.testing.assert_allclose(image.numpy(), colours.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
        assert said == []
    elif channels == 1:
        luma = np.stack([np.asarray(Image.fromarray(c[..., :3]).convert("L")) for c in colours])
        np.testing.assert_allclose(image[:, 0].numpy(), luma / 255, atol=1 / 255)
        assert "in gray" in said[0]
    else:
        assert len(said) == 1


class Pictures(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels(9, 8, 3)), index


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(noise(3, 3, 9, 8), torch.arange(3)),
        DataLoader(TensorDataset(noise(3, 3, 9, 8), torch.arange(3))),
        [{"x": x, "label": i} for i, x in enumerate(noise(3, 3, 9, 8))],
    ],
)  # fmt: skip
def test_datasets_pass_what_they_give(source):
    class Listed(Dataset):
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> Any:
            return source[index]

    feed, image, said = fed(net(), Listed() if isinstance(source, list) else source)
    assert torch.equal(image, noise(3, 3, 9, 8))
    assert feed.images.labels == [0, 1, 2]
    assert said == (["test: of each batch, 'x' is passed"] if isinstance(source, list) else [])


def test_datasets_of_pictures_are_images():
    feed, image, said = fed(net(), Pictures())
    np.testing.assert_allclose(image[0].numpy(), pixels(9, 8, 3).transpose(2, 0, 1) / 255, rtol=1e-6)
    assert feed.images.labels == [0, 1, 2]
    assert ["the same as another" in one for one in said] == [False, True]


# What can't be brought to a model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "images", "sentence"),
    [
        (net(), torch.zeros(0, 3, 8, 8), "test: there are no images"),
        (net(), [], "test: there are no images"),
        (net(), noise(2, 5, 9, 8), r"forward of Sequential failed on an input of shape \(1, 5, 9, 8\)"),
        (net(), torch.arange(5), "there is no image among the inputs"),
        (net(), 3, "test: expected images from"),
        (net(7), pixels(2, 9, 8, 3), "forward of Sequential failed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(model, images, sentence):
    with pytest.raises(SpectralError, match=sentence):
        Feed(model, images, caller="test").probe  # noqa: B018


def test_fingerprints_and_slices():
    x, mask = noise(4, 3, 9, 8), noise(4, 1, 9, 8)
    given = GivenImages(make_inputs(x, mask))
    assert given.fingerprint != GivenImages(make_inputs(x, mask + 1)).fingerprint
    assert given.fingerprint == GivenImages(make_inputs(x.clone(), mask.clone())).fingerprint
    part = pick_inputs(given.inputs, [3, 1])
    assert torch.equal(part.args[1], mask[[3, 1]])
    assert part.image is part.args[0]


class TestPrecision:
    def test_a_device_without_float64_is_refused_in_one_sentence(self):
        """As Apple's GPUs, of which torch says so with a TypeError."""

        def make(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            if dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype\nas it isn't supported")
            return torch.empty(*size, dtype=dtype)

        with pytest.raises(SpectralError, match=r"^measure: the network is on 'mps', which .*\.cpu\(\)"):
            require_double(torch.device("mps"), "measure", make)

    @pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no Apple GPU here")
    def test_a_network_on_mps(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten()).to("mps")
        with pytest.raises(SpectralError, match="has no float64"):
            measure(net, torch.rand(2, 3, 8, 8), progress=False)


def test_a_model_without_values_is_refused():
    with pytest.raises(SpectralError, match="measure: Conv2d is on the device 'meta', where weights have no"):
        Feed(nn.Conv2d(3, 4, 3, 2, device="meta"), torch.rand(1, 3, 8, 8), caller="measure")


@pytest.mark.parametrize("look", [measure_stability, measure_equivariance, attribute_instability])
def test_a_scripted_model_is_refused_where_hooks_are_needed(look):
    with pytest.raises(SpectralError, match="pass the module it was scripted from"):
        look(torch.jit.script(net()), noise(2, 3, 16, 16), progress=False)


def test_a_scripted_model_predicts_as_its_module():
    plain = net().eval()
    tables = [
        measure_predictions(model, noise(2, 3, 16, 16), "resize-0.5", preprocessing="none",
                            progress=False)
        for model in (plain, torch.jit.script(plain))
    ]  # fmt: skip
    pd.testing.assert_frame_equal(*tables)


# What works over all images of a batch ---------------------------------------------------------------------


class Scaled(nn.Module):
    """Classifies, with one more step at its begin, between its layers, or at its end."""

    def __init__(
        self,
        first: Callable[[Tensor], Tensor] = torch.relu,
        then: Callable[[Tensor], Tensor] = torch.relu,
        last: Callable[[Tensor], Any] = nn.Identity(),  # noqa: B008 - it keeps nothing
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.then, self.last = first, then, last
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2), norm or nn.Identity(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.then(self.norm(self.conv(self.first(x))))
        return self.last(self.head(x.flatten(2).transpose(1, 2).mean(1)))


OVER_THE_BATCH = {
    "amax": lambda: Scaled(first=lambda x: x / x.amax((0, 1, 2, 3))),
    "max": lambda: Scaled(then=lambda x: x / x.max()),
    "mean": lambda: Scaled(then=lambda x: x - x.mean(0, keepdim=True)),
    "softmax": lambda: Scaled(last=lambda x: x.softmax(0)),
    "std": lambda: Scaled(then=lambda x: torch.cat([x, -x], 1)[:, :4] / x.permute(0, 2, 3, 1).std()),
    "native_batch_norm": lambda: Scaled(norm=nn.BatchNorm2d(4, track_running_stats=False)),
}
IMAGE_BY_IMAGE = {
    "own maximum": lambda: Scaled(first=lambda x: x / x.amax((1, 2, 3), keepdim=True)),
    "instance norm": lambda: Scaled(norm=nn.InstanceNorm2d(4)),
    "group norm": lambda: Scaled(norm=nn.GroupNorm(2, 4)),
    "batch norm": lambda: Scaled(norm=nn.BatchNorm2d(4)),
    "tokens first": lambda: Scaled(then=lambda x: x / x.permute(2, 0, 1, 3).amax(0)[:, :, None]),
    "axes of as many": lambda: Scaled(
        then=lambda x: x.unflatten(1, (2, 2)).transpose(0, 1).mean(0).repeat(1, 2, 1, 1)
    ),
    "standardised weights": lambda: Scaled(
        then=lambda x: F.conv2d(x, torch.ones(4, 4, 1, 1) / torch.ones(4, 4).mean())
    ),
    "a loss beside": lambda: Scaled(last=lambda x: (x, x.mean())),
}  # fmt: skip


def said_of(model: nn.Module, batch_size: int, seed: int = 0) -> tuple[list[str], list[float]]:
    """What is said of a measurement, and the values of the images."""
    x = noise(4, 3, 17, 17, seed=seed) * torch.linspace(0.1, 1, 4)[:, None, None, None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        table = measure(model.eval(), x, batch_size=batch_size, progress=False)
    values = table[table["metric"].isin(["avr", "am", "confidence"])]
    return [str(w.message) for w in caught if "of a batch" in str(w.message)], values["value"].tolist()


@pytest.mark.parametrize("name", OVER_THE_BATCH)
def test_what_works_over_the_batch_is_warned_of_once(name):
    said, together = said_of(OVER_THE_BATCH[name](), 2)
    assert said == [
        f"measure: Scaled works over all images of a batch ({name}), so that the values of each depend on "
        f"the others in it; batch_size=1 gives each image's own"
    ]
    said, alone = said_of(OVER_THE_BATCH[name](), 1)
    assert said == []
    assert together != pytest.approx(alone, rel=1e-3)


def branch(first: Callable[[Tensor], Any], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: second(x) if first(x) else x


BRANCHES = {
    "max": lambda: Scaled(first=branch(lambda x: x.max() > 1, lambda x: x / 255)),
    "mean": lambda: Scaled(then=branch(lambda x: x.mean().item() > 0, F.relu)),
    "a value": lambda: Scaled(first=branch(lambda x: x[0, 0, 0, 0] < 0, torch.square)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_a_number_of_the_batch_is_warned_of(name):
    said, _ = said_of(BRANCHES[name](), 2)
    assert [sentence.partition("(")[2].partition(")")[0] for sentence in said] == [f"a branch on {name}"]
    assert said_of(BRANCHES[name](), 1)[0] == []


def check(x: Tensor) -> Tensor:
    assert x.min() > -100
    assert x.isfinite().all()
    return x if x.abs().max().item() < 1e6 else x / x.abs().amax((1, 2, 3), keepdim=True)


def test_a_check_of_the_batch_is_no_branch():
    assert said_of(Scaled(first=check), 2)[0] == []


@pytest.mark.parametrize("name", IMAGE_BY_IMAGE)
def test_what_works_image_by_image_is_not(name):
    said, together = said_of(IMAGE_BY_IMAGE[name](), 2)
    assert said == []
    assert together == pytest.approx(said_of(IMAGE_BY_IMAGE[name](), 1)[1], rel=1e-3)


ORDINARY = (
    "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "efficientnet_b0",
    "mobilevit_xxs", "coatnet_pico_rw_224", "halonet26t", "nf_regnet_b0",
)  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_no_ordinary_network_is_said_to_work_over_the_batch(name):
    model = timm.create_model(name).eval()
    assert Feed(model, noise(1, *model.pretrained_cfg["input_size"]), caller="test").probe.mixed_by == ()


# What draws random numbers ---------------------------------------------------------------------------------


class Sometimes(nn.Module):
    """Draws a number to see whether it drops a layer, and never does in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand([])
        return x if self.training and drawn < 0.5 else x.relu()


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


AT_RANDOM = {
    "bernoulli": lambda: Scaled(then=lambda x: F.dropout(x, 0.5)),
    "randn_like": lambda: Scaled(then=lambda x: x + torch.randn_like(x)),
    "randn": lambda: Scaled(last=lambda x: {"logits": x + torch.randn(x.shape)}),
    "rand": lambda: Scaled(norm=nn.FractionalMaxPool2d(2, output_ratio=0.6)),
    "randperm": lambda: Scaled(first=lambda x: x[..., torch.randperm(x.shape[-1])]),
    "normal": lambda: Scaled(first=lambda x: torch.empty_like(x).normal_().add_(x)),
    "rrelu_with_noise": lambda: Scaled(then=lambda x: F.rrelu(x, training=True)),
}
THE_SAME_EACH_TIME = {
    "dropout in evaluation": lambda: Scaled(norm=nn.Dropout(0.5)),
    "nothing dropped": lambda: Scaled(then=lambda x: F.dropout(x, 0.0)),
    "attention": lambda: Scaled(then=lambda x: F.scaled_dot_product_attention(x, x, x)),
    "layers dropped in training": lambda: Scaled(norm=Sometimes()),
    "leaky": lambda: Scaled(norm=nn.RReLU()),
}  # fmt: skip


def draws_of(model: nn.Module, look: Callable[..., Any] = measure) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        look(model.eval(), noise(4, 3, 16, 16), batch_size=2, progress=False)
    return [str(w.message) for w in caught if "random numbers" in str(w.message)]


@pytest.mark.parametrize("name", AT_RANDOM)
def test_what_draws_random_numbers_is_warned_of_once(name):
    said = draws_of(AT_RANDOM[name]())
    assert len(said) == 1
    assert said[0].startswith(f"measure: Scaled draws random numbers in its forward ({name}), so that two")


@pytest.mark.parametrize("name", THE_SAME_EACH_TIME)
def test_what_draws_none_that_matter_is_not(name):
    assert draws_of(THE_SAME_EACH_TIME[name]()) == []


# What a forward keeps --------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Classifies, with a step that may keep something."""

    shared = 0

    def __init__(self, step: Callable[[Stateful, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.step = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5), step
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))
        self.register_buffer("running", torch.zeros(4))
        self.cache: Any = None
        self.count, self.seen, self.table, self.rng = 0, [], {"last": 0.0}, np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(self, self.conv(x).relu()).mean((2, 3)))


COUNTS = {"calls": 0}


def keeps_buffer(net: Stateful, x: Tensor) -> Tensor:
    net.mean.lerp_(x.mean((2, 3), keepdim=True)[:1], 0.1)
    return x - net.mean


def keeps_statistics(net: Stateful, x: Tensor) -> Tensor:
    """A norm writes them without counting it."""
    nn.functional.batch_norm(x, net.running, torch.ones(4), training=True)
    return x - net.running[:, None, None]


def keeps_first(net: Stateful, x: Tensor) -> Tensor:
    net.cache = x.amax((1, 2, 3)) if net.cache is None else net.cache
    return x / net.cache[0]


def keeps_count(net: Stateful, x: Tensor) -> Tensor:
    net.count += 1
    return x * (1 + net.count % 2)


def keeps_list(net: Stateful, x: Tensor) -> Tensor:
    net.seen.append(x[0].amax())
    return x - torch.stack(net.seen).mean()


def keeps_number(net: Stateful, x: Tensor) -> Tensor:
    net.table["last"] = 0.5 * net.table["last"] + 0.5 * x[0].amax().item()
    return x - net.table["last"]


def keeps_generator(net: Stateful, x: Tensor) -> Tensor:
    return x * net.rng.uniform(0.5, 1)


def keeps_in_class(net: Stateful, x: Tensor) -> Tensor:
    Stateful.shared += 1
    return x * Stateful.shared


def keeps_in_module(net: Stateful, x: Tensor) -> Tensor:
    COUNTS["calls"] += 1
    return x * COUNTS["calls"]


KEEPS = {
    "mean": keeps_buffer, "running": keeps_statistics, "cache": keeps_first, "count": keeps_count,
    "seen": keeps_list, "table.last": keeps_number, "rng": keeps_generator, "Stateful.shared": keeps_in_class,
    "COUNTS.calls": keeps_in_module,
}  # fmt: skip


def caches_grid(net: Stateful, x: Tensor) -> Tensor:
    net.cache = torch.linspace(0, 1, x.shape[-1]) if net.cache is None else net.cache
    return x * net.cache


def counts_only(net: Stateful, x: Tensor) -> Tensor:
    net.count += 1
    net.seen.append(x)
    return x


def drops_in_training(net: Stateful, x: Tensor) -> Tensor:
    return x * 0 if random.uniform(0, 1) < 0.5 and net.training else x


def drops_always(net: Stateful, x: Tensor) -> Tensor:
    return x * 0 if random.uniform(0, 1) < 0.5 else x


def told_of(model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        measure(model.eval(), noise(4, 3, 16, 16), ("sis",), batch_size=2, progress=False)
    return [str(w.message) for w in caught if "passes" in str(w.message)]


@pytest.mark.parametrize("name", KEEPS)
def test_what_a_forward_keeps_and_uses_is_named_once(name):
    (said,) = told_of(Stateful(KEEPS[name]))
    assert said.startswith(
        f"measure: the output of Stateful depends on what its forward has kept of earlier passes ({name}), so"
    )


@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
def test_ranges_that_an_observer_keeps_are_told_where_it_observes():
    """What quantisation-aware training puts behind each layer writes what torch counts no write of."""
    observer = torch.ao.quantization.FusedMovingAvgObsFakeQuantize(
        torch.ao.quantization.MovingAverageMinMaxObserver
    )
    net = nn.Sequential(
        observer, nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    net(2 * noise(1, 3, 16, 16))
    (said,) = told_of(net)
    assert "has kept of earlier passes (0.scale, 0.zero_point, 0.activation_post_process.min_val, …)" in said
    observer.disable_observer()
    assert told_of(net) == []


@pytest.mark.parametrize("step", [caches_grid, counts_only, drops_in_training])
def test_what_its_output_does_not_depend_on_is_not(step):
    assert told_of(Stateful(step)) == []


@pytest.mark.parametrize(
    ("step", "name"),
    [(drops_always, "random"), (lambda net, x: x * np.random.uniform(0.5, 1), "numpy.random")],
)
def test_numbers_that_numpy_and_python_draw_are_warned_of_as_those_of_torch(step, name):
    before = random.getstate(), np.random.get_state()[1].tobytes()
    assert Feed(Stateful(step).eval(), noise(1, 3, 16, 16), caller="test").probe.drawn_by == (name,)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before
    (said,) = told_of(Stateful(step))
    assert said.startswith(f"measure: Stateful draws random numbers in its forward ({name}), so that two")


@pytest.mark.parametrize(
    "look", [measure_stability, measure_equivariance, attribute_instability, measure_instability_budget]
)
def test_every_analysis_warns_of_random_numbers(look):
    still = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert draws_of(still, look) == []
    assert len(draws_of(nn.Sequential(still, Noisy()), look)) == 1


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.mean() > 0, lambda x: x[..., ::2], lambda x: x[..., 1::2], (x,))


@pytest.mark.parametrize("look", [find_sites, measure])
def test_what_torch_runs_where_nothing_can_follow_is_named(look):
    with pytest.raises(SpectralError, match="it calls cond, within which torch lets nothing be followed; wr"):
        look(Branching(), noise(1, 3, 16, 16))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_exported_for_one_size_of_batch_says_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(4, 3, 16, 16)
    program = torch.export.export(net.eval(), (x[:2],)).module()
    for look in measure, partial(recalibrate, reference=net):
        with pytest.raises(SpectralError, match="exported for inputs of that size alone"):
            look(program, x)
    values = measure(program, x, batch_size=2).value.dropna()
    assert np.allclose(values, measure(net, x).value.dropna(), rtol=1e-4)
    (row,) = conversion_report(convert(program, "blurpool", example=x[:2])).rows
    assert row.reason.endswith("convert the network before it is traced")


def test_torch_s_default_device_may_have_no_values():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten()), torch.rand(2, 3, 16, 16)
    with torch.device("meta"):
        with pytest.raises(SpectralError, match=r"default device is 'meta'.*set_default_device"):
            measure_stability(net, x)
        smooth = convert(net, "flc", example=16)
    assert torch.equal(smooth(x), convert(net, "flc", example=16)(x))
