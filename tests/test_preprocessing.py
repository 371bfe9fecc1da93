"""What images go through before a network sees them: as people give it, and as networks tell it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms as v1
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2

import spectral
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.models import Preprocessing, load_model
from spectral.models.info import IMAGENET
from spectral.models.preprocessing import explain_assumption, find_preparation, read_preparation

MEAN, STD = IMAGENET.mean, IMAGENET.std


class Places(list):
    """A list of a configuration, as omegaconf's: it has a ``get`` too, which takes a place."""

    def get(self, place: int) -> int:
        return self[place]


def pixels(height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def unit(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255))


def by_hand(image: np.ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalise one channel at a time, from bytes."""
    channels = [(image[..., c] / 255.0 - mean[c]) / std[c] for c in range(3)]
    return torch.from_numpy(np.stack(channels)[None].astype(np.float32))


class Processor:
    """What image processors of transformers have, and what they do, by their documentation."""

    def __init__(self, **settings: object) -> None:
        defaults = {
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True,
            "image_mean": list(MEAN), "image_std": list(STD), "size": {"height": 24, "width": 24},
        }  # fmt: skip
        vars(self).update(defaults | settings)

    def process(self, image: np.ndarray) -> Tensor:
        x = image.astype(np.float64)
        x = x[..., ::-1] if getattr(self, "do_flip_channel_order", False) else x
        x = x * self.rescale_factor if self.do_rescale else x
        x = x - 1 if getattr(self, "offset", False) else x
        x = (x - np.array(self.image_mean)) / np.array(self.image_std) if self.do_normalize else x
        return torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))


TIMM = timm.create_model("resnet18")
WEIGHTS = models.ResNet18_Weights.DEFAULT


@pytest.mark.parametrize(
    "asked",
    [
        (MEAN, STD), [list(MEAN), np.array(STD)], (torch.tensor(MEAN), torch.tensor(STD)),
        Preprocessing((24, 24), MEAN, STD), TIMM.pretrained_cfg, timm.get_pretrained_cfg("resnet18"),
        v1.Normalize(MEAN, STD), WEIGHTS, WEIGHTS.transforms, WEIGHTS.transforms(), "imagenet",
        v1.Compose([v1.Resize(28), v1.CenterCrop(24), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        v2.Compose([v2.Compose([v2.PILToTensor(), v2.ConvertImageDtype()]), v2.Normalize(MEAN, STD)]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32),
                    v2.Normalize([255 * m for m in MEAN], [255 * s for s in STD])]),
        create_transform(**resolve_data_config({}, model=TIMM)), Processor(),
        SimpleNamespace(image_processor=Processor()), vars(Processor()),
        partial(v1.Normalize, MEAN, STD),
        lambda x: (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1),
    ],
)  # fmt: skip
def test_every_form_normalises_alike(asked):
    image = pixels()
    torch.testing.assert_close(read_preparation(asked)(unit(image)), by_hand(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False}, {"do_rescale": False},
        {"do_normalize": False}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"do_flip_channel_order": True, "do_normalize": False}, {"rescale_factor": 1 / 127.5},
    ],
)  # fmt: skip
def test_image_processors_scale_as_they_say(settings):
    processor, image = Processor(**settings), pixels()
    torch.testing.assert_close(
        read_preparation(processor)(unit(image)), processor.process(image), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "asked",
    [
        v1.Compose([v1.Resize(24), v1.Grayscale(3), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        v1.Compose([v1.ToTensor(), v1.Lambda(lambda x: 2 * x - 1)]),
        v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD), v1.Normalize((0.1,) * 3, (2.0,) * 3)]),
        # pixels that stay 0 … 255, in integers or not, and functions that get them so
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]),
        v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Lambda(lambda x: x / 127.5 - 1)]),
        v1.Compose([v1.PILToTensor(), v1.Lambda(lambda x: x.float() / 255)]),
        v1.Compose([v1.PILToTensor(), v1.Lambda(lambda x: x.float() / 255), v1.Normalize(MEAN, STD)]),
        v2.Compose([v2.ToImage(), v2.Lambda(lambda x: x.flip(-1)), v2.ToDtype(torch.float32, scale=True)]),
        v2.Compose(
            [
                v2.ToImage(),
                v2.Lambda(lambda x: x.flip(-1)),
                v2.ToDtype(torch.float32),
                v2.Normalize([100.0] * 3, [50.0] * 3),
            ]
        ),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), v2.ToDtype(torch.float32, scale=True)]),
    ],
)
def test_further_steps_are_applied_as_they_are(asked):
    image = pixels()
    expected = torch.as_tensor(asked(Image.fromarray(image)))[None].float()
    torch.testing.assert_close(read_preparation(asked)(unit(image)), expected, rtol=1e-4, atol=1e-2)


def test_integers_that_stay_are_what_the_transforms_give():
    found = read_preparation(v2.Compose([v2.ToImage()]))(torch.ones(1, 3, 2, 2))
    assert found.unique().tolist() == pytest.approx([255.0])


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ((MEAN, STD), None),
        (TIMM.pretrained_cfg, (224, 224)), (WEIGHTS, (224, 224)), (Processor(), (24, 24)),
        (v1.Compose([v1.Resize(28), v1.CenterCrop((24, 20)), v1.ToTensor()]), (24, 20)),
        (Processor(crop_size={"height": 24, "width": 20}, do_center_crop=True), (24, 20)),
        (Processor(size={"shortest_edge": 30}, do_center_crop=False), (30, 30)),
    ],
)  # fmt: skip
def test_sizes(asked, size):
    assert read_preparation(asked).size == size


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (5, "preprocessing: expected .* got int"), ("cifar", "preprocessing: expected .* got 'cifar'"),
        ((MEAN,), r"expected \(mean, std\), got 1 items"), ((MEAN, (0, 1, 1)), "standard deviations above 0"),
        ((MEAN, STD[:2]), "as many means as standard deviations, got 3 and 2"),
        (("a", STD), "expected numbers"),
        ((MEAN, (float("nan"),) * 3), "expected numbers as std"),
        (v1.Compose([v1.RandomResizedCrop(24), v1.ToTensor()]), "RandomResizedCrop alters images at random"),
        (torch.zeros(3), "got Tensor"),
    ],
)  # fmt: skip
def test_bad_forms(asked, sentence):
    with pytest.raises(SpectralError, match=sentence):
        read_preparation(asked)


def test_a_function_that_fails():
    def fail(images: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(SpectralError, match=r"preprocessing= failed on images of shape .*KeyError"):
        read_preparation(fail)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(SpectralError, match="to a batch of as many, got int"):
        read_preparation(lambda images: 1)(torch.zeros(2, 3, 8, 8))


# What networks tell ----------------------------------------------------------------------------------------


def test_networks_that_tell(tmp_path):
    ours = load_model("bundled/resnet8@random")
    assert find_preparation(ours).mean == ours.spectral_info.preprocessing.mean
    assert find_preparation(TIMM).mean == TIMM.pretrained_cfg["mean"]
    assert find_preparation(TIMM).size == (224, 224)
    assert find_preparation(nn.DataParallel(TIMM)).mean == TIMM.pretrained_cfg["mean"]
    assert find_preparation(timm.create_model("vit_tiny_patch16_224", img_size=96)).size == (96, 96)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(vars(Processor(image_mean=[0.1] * 3))))
    theirs = nn.Flatten()
    theirs.config = SimpleNamespace(_name_or_path=str(tmp_path), image_size=24)
    assert find_preparation(theirs).mean == pytest.approx((0.1,) * 3)
    assert not any(find_preparation(net).assumed for net in (ours, TIMM, theirs))
    theirs.config = SimpleNamespace(image_size=Places([24, 32]))
    assert find_preparation(theirs).size == (24, 32)


def test_the_users_word_goes_first():
    assert find_preparation(TIMM, ((0.5,) * 3, (0.5,) * 3)).mean == (0.5,) * 3
    assert not find_preparation(TIMM, "none").changes_values


def test_a_network_that_normalises_itself():
    net = nn.Sequential(v1.Normalize(MEAN, STD), nn.Conv2d(3, 4, 3))
    found = find_preparation(net)
    assert not found.assumed
    assert not found.changes_values
    detector = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert not find_preparation(detector).assumed
    net.register_buffer("pixel_mean", torch.tensor([123.7, 116.3, 103.5]).view(3, 1, 1))
    net.register_buffer("pixel_std", torch.tensor([58.4, 57.1, 57.4]).view(3, 1, 1))
    assert not find_preparation(net).changes_values  # of two layers the first counts
    net[0] = nn.Identity()
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(find_preparation(net)(x), 255 * x)
    net[0] = v1.Normalize((0.0,) * 3, (255.0,) * 3)  # which nobody divides by where images are in [0, 1]
    torch.testing.assert_close(find_preparation(net)(x), 255 * x)


def test_what_is_assumed_is_said():
    net = models.resnet18(weights=None)
    found = find_preparation(net)
    assert found.assumed
    assert torch.equal(found(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))
    sentence = explain_assumption(net, "ResNet")
    assert sentence.startswith("images are passed to ResNet in [0, 1]")
    assert "preprocessing=" in sentence
    assert "preprocessing=model.0.pretrained_cfg (mean 0.485, 0.456, 0.406)" in explain_assumption(
        nn.Sequential(TIMM, nn.Flatten()), "net"
    )


def test_one_mean_is_for_all_channels():
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(read_preparation(((0.5,), (0.5,)))(x), (x - 0.5) / 0.5)
    torch.testing.assert_close(read_preparation((0.5, 0.5))(x), (x - 0.5) / 0.5)
    with pytest.raises(SpectralError, match="expected images of shape"):
        read_preparation((MEAN, STD))(x[:, :1])


# Image processors of transformers themselves --------------------------------------------------------------

PROCESSORS = (
    "BeitImageProcessor", "BitImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor",
    "DeiTImageProcessor", "EfficientNetImageProcessor", "LevitImageProcessor", "MobileNetV1ImageProcessor",
    "MobileNetV2ImageProcessor", "MobileViTImageProcessor", "PoolFormerImageProcessor",
    "SiglipImageProcessor", "ViTImageProcessor",
)  # fmt: skip
AS_IT_IS = {"do_resize": False, "do_center_crop": False}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"do_normalize": False}, {"image_mean": [0.1, 0.2, 0.3]}, {"image_std": [0.5, 0.25, 0.125]}],
)
def test_processors_do_what_is_read_of_them(name, settings, tmp_path):
    """The object, the file that it writes, and a file that leaves out what its class has by default."""
    processor = getattr(pytest.importorskip("transformers"), name)(**settings)
    image = pixels(8, 12)
    expected = processor(Image.fromarray(image), return_tensors="pt", **AS_IT_IS)["pixel_values"]
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    short = {"feature_extractor_type": name.replace("ImageProcessor", "FeatureExtractor"), **settings}
    for asked in (processor, written, short):
        torch.testing.assert_close(read_preparation(asked)(unit(image)), expected, rtol=1e-4, atol=1e-4)


def test_an_image_processor_within_another_tells_too(tmp_path):
    processor = pytest.importorskip("transformers").CLIPImageProcessor(image_std=[0.5, 0.25, 0.125])
    whole = {"image_processor": processor.to_dict(), "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    theirs = nn.Flatten()
    theirs.config = SimpleNamespace(_name_or_path=str(tmp_path))
    found = find_preparation(theirs)
    assert (found.std, found.size) == (pytest.approx((0.5, 0.25, 0.125)), (224, 224))
    assert found.mean == pytest.approx(tuple(processor.image_mean))


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"image_processor": 3}', "{}"])
def test_a_processor_s_file_of_nothing_known(content, tmp_path):
    (tmp_path / "processor_config.json").write_text(content)
    (tmp_path / "preprocessor_config.json").write_text(content)
    theirs = nn.Flatten()
    theirs.config = SimpleNamespace(_name_or_path=str(tmp_path))
    assert find_preparation(theirs).assumed


def test_a_network_of_timms_in_transformers_tells_as_timms_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125], "input_size": [3, 64, 48]}
    config = transformers.TimmWrapperConfig.from_dict({
        "architecture": "resnet18", "num_classes": 3, "pretrained_cfg": facts,
    })  # fmt: skip
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    net = load_model(str(tmp_path))
    found = find_preparation(net)
    assert (found.mean, found.std, found.size) == (tuple(facts["mean"]), tuple(facts["std"]), (64, 48))
    assert not found.assumed


def test_how_a_configuration_resizes_is_said_where_it_is_otherwise(tmp_path):
    """Predictions of a network's own pipeline are of other pixels: the crop and the filter are part of it."""
    Image.new("RGB", (90, 80), "teal").save(tmp_path / "a.png")
    net = timm.create_model("test_resnet").eval()
    facts = {**net.pretrained_cfg, "input_size": (3, 64, 64)}
    crop = v1.Compose([
        v1.Resize(72), v1.CenterCrop(64), v1.ToTensor(),
        v1.Normalize((0.5,) * 3, (0.5,) * 3),
    ])  # fmt: skip
    hub = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
    square, shortest = {"height": 64, "width": 64}, {"shortest_edge": 72}
    for asked, sentence in (
        ({**facts, "crop_pct": 0.9, "interpolation": "bilinear"}, "shorter side 0.9 are kept; bilinear"),
        ({**facts, "crop_pct": 1.0, "interpolation": "bicubic"}, ""),
        (crop, "the shorter side is resized to 72 px; bilinear"),
        ({**hub, "size": square, "resample": 2}, "both sides are resized, whatever their ratio; bilinear"),
        ({**hub, "size": shortest, "crop_size": square, "do_center_crop": True, "resample": 3}, "to 72 px"),
        ({**hub, "size": square, "crop_size": square, "do_center_crop": True, "resample": 3}, ""),
        ((0.5, 0.5), ""),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            images = tmp_path if not isinstance(asked, tuple) else spectral.load_images(tmp_path, size=64)
            Feed(net, images, caller="test", preprocessing=asked)
        found = [str(one.message) for one in said if "the configuration of" in str(one.message)]
        assert len(found) == bool(sentence), asked
        assert not sentence or sentence in found[0]
