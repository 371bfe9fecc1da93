"""Corruptions: the library's own images, drawn from each image's own stream, and errors."""

from __future__ import annotations

import sys

import imagecorruptions
import numpy as np
import pytest
import torch
from torch import Tensor

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.models import load_model
from spectral.perturb import CORRUPTIONS, Corruption, measure_predictions

EVERY = pytest.mark.parametrize("kind", CORRUPTIONS)
DRAWING = (
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
    "elastic_transform", "speckle_noise", "spatter",
)  # fmt: skip
SMOOTH = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur")


def photo(count: int = 2, height: int = 32, width: int = 40) -> Tensor:
    """Coloured edges at 8 bits, on mid grey."""
    x = torch.full((count, 3, height, width), 102.0)
    x[:, 0, 8:20, 5:25] = 204
    x[:, 1, 12:, 16:] = 153
    x[:, 2, :, 30:] = 51
    return x / 255


def test_the_names_are_the_librarys():
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("all")


@EVERY
def test_images_change_and_keep_shape_dtype_and_range(kind):
    x = photo().double()
    for severity in (1, 5):
        found = Corruption(kind, severity)(x)
        assert (found.shape, found.dtype) == (x.shape, x.dtype)
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found - x).abs().max() > 0.02
    assert torch.equal(x, photo().double())


def test_closed_forms():
    """Contrast 0.4 about each channel's mean; brightness +0.3; noise of standard deviation 0.12."""
    x = photo(1)
    expected = (x - x.mean((-2, -1), keepdim=True)) * 0.4 + x.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(Corruption("contrast", 1)(x), expected, atol=1.01 / 255, rtol=0)
    grey = torch.full((1, 3, 33, 32), 0.4)
    torch.testing.assert_close(Corruption("brightness", 3)(grey), grey + 0.3, atol=1.01 / 255, rtol=0)
    noisy = Corruption("gaussian_noise", 2)(torch.full((1, 3, 256, 256), 128 / 255))
    assert noisy.std() == pytest.approx(0.12, rel=0.01)
    assert noisy.mean() == pytest.approx(127.5 / 255, abs=1e-3)  # the library cuts off fractions of 1/255


@pytest.mark.parametrize("kind", SMOOTH)
def test_constants_survive_blurs(kind):
    grey = torch.full((1, 3, 32, 35), 0.4)
    torch.testing.assert_close(Corruption(kind, 3)(grey), grey, atol=3 / 255, rtol=0)


def test_channels_and_axes_stay_in_their_places():
    """Only the upper left corner of the red channel is bright, before and after."""
    x = torch.zeros(1, 3, 32, 48)
    x[:, 0, :8, :16] = 1
    found = Corruption("jpeg_compression", 1)(x)
    bright = found[0, 0] > 0.5
    assert bright[:6, :14].all()
    assert not bright[10:].any()
    assert not bright[:, 18:].any()
    assert (found[:, 0] - found[:, 2])[:, :6, :14].min() > 0.5


# What is drawn --------------------------------------------------------------------------------------------


@EVERY
def test_what_an_image_gets_depends_on_its_number_alone(kind):
    corruption, x = Corruption(kind, 3), photo(3)
    together = corruption(x, [4, 9, 2])
    alone = torch.cat([corruption(x[i : i + 1], [n]) for i, n in ((2, 2), (0, 4), (1, 9))])
    assert torch.equal(together, alone[[1, 2, 0]])
    assert torch.equal(corruption(x), corruption(x, range(3)))


@pytest.mark.parametrize("kind", DRAWING)
def test_images_and_seeds_draw_differently(kind):
    first = Corruption(kind, 3)(photo(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, Corruption(kind, 3, seed=1)(photo(2)))


@EVERY
def test_numpys_own_random_numbers_stay_as_they_were(kind):
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    Corruption(kind, 1)(photo(1))
    assert (np.random.rand(3) == expected).all()


def test_numpys_random_numbers_are_restored_after_a_failure(monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(imagecorruptions, "corrupt", fail)
    before = np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError):
        Corruption("fog", 1)(photo(1))
    assert (np.random.get_state()[1] == before).all()


# In a measurement -----------------------------------------------------------------------------------------


def test_predictions_under_corruptions():
    net, images = load_model("bundled/resnet20"), load_images("synthetic", 32, 6)
    chosen = [Corruption("gaussian_noise", 3), Corruption("contrast", 5)]
    table, again = (
        measure_predictions(net, images, chosen, batch_size=size, progress=False) for size in (6, 4)
    )
    assert table["perturbation"].unique().tolist() == ["clean", "gaussian_noise-3", "contrast-5"]
    assert table["prediction"].tolist() == again["prediction"].tolist()
    assert not table["agree"].all()
    noisy = Corruption("gaussian_noise", 3)(torch.stack(list(images)))
    with torch.no_grad():
        expected = net.eval()(noisy * 2 - 1).argmax(1)
    assert table.loc[table["perturbation"] == "gaussian_noise-3", "prediction"].tolist() == expected.tolist()


def test_the_name_and_the_note_say_what_it_is():
    corruption = Corruption("glass_blur", 4)
    assert corruption.name == "glass_blur-4"
    assert "not CIFAR-10-C" in corruption.note
    assert repr(corruption) == "Corruption(kind='glass_blur', severity=4, seed=0)"


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gausian_noise", 1), "unknown kind 'gausian_noise'; nearest: 'gaussian_noise'"),
        (("fog", 0), "severity must be a whole number from 1 to 5 .*, got severity = 0"),
        (("fog", 2.5), "severity must be a whole number from 1 to 5 .*, got severity = 2.5"),
        (("fog", 1, -1), "seed ≥ 0, got severity = 1 and seed = -1"),
    ],
)
def test_unknown_corruptions_are_explained(arguments, message):
    with pytest.raises(SpectralError, match=message):
        Corruption(*arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photo(1, 31, 40), r"fog-1: .* at least 32×32 pixels, .*\(1, 3, 31, 40\)"),
        (photo(1)[:, :1], r"expected floating-point RGB images .*\(1, 1, 32, 40\)"),
        (photo(1)[0], r"expected floating-point RGB images .*\(3, 32, 40\)"),
        (photo(1).to(torch.uint8), "got torch.uint8"),
    ],
)
def test_unfit_images_are_explained(images, message):
    with pytest.raises(SpectralError, match=message):
        Corruption("fog", 1)(images)


def test_an_absent_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(
        SpectralError, match=r"imagecorruptions-imaug; install it with: pip install .*\[corruptions\]"
    ):
        Corruption("fog", 1)(photo(1))
