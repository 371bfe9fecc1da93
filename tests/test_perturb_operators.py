"""Linear perturbations: matrices, ranks, null spaces and the card's claims; and predictions under them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Pictures
from PIL import Image
from torch import Tensor, nn

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.layers import BlurPool2d
from spectral.models import load_model
from spectral.perturb import (
    NULA_TESTS,
    NULA_TRAINING,
    BlurDecimate,
    Checkerboard,
    Decimate,
    Identity,
    Resampling,
    Resize,
    choose_randomly,
    make_perturbation,
    measure_predictions,
)

OPERATORS: tuple[Resampling, ...] = (
    Resize(0.5), Resize(0.25), Resize(0.7), Resize(0.5, antialias=True), Decimate(2), Decimate(3),
    BlurDecimate(2), BlurDecimate(3),
)  # fmt: skip
EVERY = pytest.mark.parametrize("operator", OPERATORS, ids=lambda p: p.name)
SIZES = pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 11), (10, 5), (1, 4), (3, 1)])
any_operator = st.sampled_from(OPERATORS)
any_size = st.tuples(st.integers(1, 9), st.integers(1, 9))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# What each operator is ------------------------------------------------------------------------------------


@EVERY
@SIZES
@pytest.mark.parametrize("part", ["whole", "down"])
def test_the_matrix_is_the_call(operator, size, part):
    """Column k of the matrix is what becomes of the k-th unit image."""
    count = size[0] * size[1]
    units = torch.eye(count, dtype=torch.float64).view(count, 1, *size)
    expected = (operator(units) if part == "whole" else operator.down(units)).reshape(count, -1).T
    torch.testing.assert_close(operator.matrix(size, part), expected)


@SIZES
@pytest.mark.parametrize("scale", [0.5, 0.25, 0.7])
def test_resize_is_interpolation_down_then_up(size, scale):
    x = noise(2, 3, *size)
    small = [max(1, int(n * scale)) for n in size]
    down = F.interpolate(x, small, mode="bilinear")
    torch.testing.assert_close(Resize(scale).down(x), down)
    torch.testing.assert_close(Resize(scale)(x), F.interpolate(down, size, mode="bilinear"))


@SIZES
@pytest.mark.parametrize("scale", [0.5, 0.25, 0.7])
def test_antialiased_resize_shrinks_as_pil_does(size, scale):
    """PIL is the reference: torch's own antialiased resize is wrong where the small image is 1 pixel wide."""
    x = noise(*size)
    small = [max(1, int(n * scale)) for n in size]
    image = Image.fromarray(x.numpy().astype(np.float32))
    down = torch.from_numpy(np.array(image.resize(small[::-1], Image.Resampling.BILINEAR))).double()
    operator = Resize(scale, antialias=True)
    torch.testing.assert_close(operator.down(x), down, atol=1e-6, rtol=0)
    torch.testing.assert_close(operator(x), F.interpolate(down[None, None], size, mode="bilinear")[0, 0],
                               atol=1e-6, rtol=0)  # fmt: skip


@SIZES
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_decimation_is_a_slice_repeated(size, factor):
    x = noise(2, 3, *size)
    kept = x[..., ::factor, ::factor]
    repeated = kept.repeat_interleave(factor, -2).repeat_interleave(factor, -1)[..., : size[0], : size[1]]
    assert torch.equal(Decimate(factor).down(x), kept)
    assert torch.equal(Decimate(factor)(x), repeated)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 11), (1, 4), (2, 2)])
@pytest.mark.parametrize("factor", [2, 3])
def test_blur_decimation_is_a_reflecting_blur_pool_repeated(size, factor):
    x = noise(2, 3, *size)
    pool = BlurPool2d(3, kernel_size=3, stride=factor, padding_mode="reflect").double()
    torch.testing.assert_close(BlurDecimate(factor).down(x), pool(x))
    repeated = pool(x).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    torch.testing.assert_close(BlurDecimate(factor)(x), repeated[..., : size[0], : size[1]])


@given(operator=any_operator, size=any_size, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_operators_are_linear_and_keep_constants(operator, size, seed):
    x, y = noise(2, *size, seed=seed), noise(2, *size, seed=seed + 100)
    torch.testing.assert_close(operator(2 * x - 3 * y), 2 * operator(x) - 3 * operator(y))
    torch.testing.assert_close(operator(torch.full_like(x, 0.3)), torch.full_like(x, 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_keep_their_dtype(dtype):
    x = noise(1, 3, 6, 7, dtype=dtype)
    for operator in (*OPERATORS, Checkerboard(0.05)):
        found = operator(x)
        assert (found.dtype, found.shape) == (dtype, x.shape)
        torch.testing.assert_close(found, operator(x.double()).to(dtype), rtol=2e-2, atol=1e-2)


# Ranks and null spaces ------------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("factor", [2, 3])
def test_decimation_hides_all_but_the_kept_pixels(size, factor):
    kept = -(-size[0] // factor) * -(-size[1] // factor)
    assert Decimate(factor).rank(size) == kept
    assert Decimate(factor).null_dimension(size) == size[0] * size[1] - kept


@EVERY
@SIZES
def test_the_null_dimension_is_the_svds(operator, size):
    dense = operator.matrix(size, "down").numpy()
    values = np.linalg.svd(dense, compute_uv=False)
    hidden = size[0] * size[1] - int((values > 1e-10 * values[0]).sum())
    assert operator.null_dimension(size) == hidden
    assert operator.rank(size) + hidden == size[0] * size[1]


@EVERY
@SIZES
def test_the_projector_is_the_svds(operator, size):
    """I − V Vᵀ, with V the right singular vectors of the dense matrix of D."""
    count = size[0] * size[1]
    _, values, rows = torch.linalg.svd(operator.matrix(size, "down"))
    kept = rows[: int((values > 1e-10 * values[0]).sum())]
    expected = torch.eye(count, dtype=torch.float64) - kept.T @ kept
    units = torch.eye(count, dtype=torch.float64).view(count, 1, *size)
    found = operator.project_null(units).reshape(count, count).T
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@given(operator=any_operator, size=any_size, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_the_projection_is_idempotent_symmetric_and_annihilated(operator, size, seed):
    x, y = noise(1, *size, seed=seed), noise(1, *size, seed=seed + 100)
    hidden = operator.project_null(x)
    torch.testing.assert_close(operator.project_null(hidden), hidden, atol=1e-12, rtol=0)
    torch.testing.assert_close((hidden * y).sum(), (x * operator.project_null(y)).sum())
    assert operator.down(hidden).abs().max() < 1e-12
    assert operator(hidden).abs().max() < 1e-12


@EVERY
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_a_network_behind_the_operator_is_blind_to_its_null_space(operator, size):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    ).double()
    x, draw = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    hidden = operator.project_null(draw)
    seen = net(operator(x))
    assert hidden.abs().max() > 0.5  # it is no small change …
    assert (net(operator(x + draw)) - seen).abs().max() > 1e-3  # … and the network isn't blind to all
    torch.testing.assert_close(net(operator(x + hidden)), seen, atol=1e-10, rtol=0)


# The checkerboard -----------------------------------------------------------------------------------------


@SIZES
def test_the_checkerboard_is_minus_one_to_the_i_plus_j(size):
    expected = [[0.03 * (-1) ** (i + j) for j in range(size[1])] for i in range(size[0])]
    torch.testing.assert_close(Checkerboard(0.03).delta(size), torch.tensor(expected))
    x = noise(2, 3, *size)
    torch.testing.assert_close(Checkerboard(0.03)(x) - x, torch.tensor(expected).double().expand_as(x))


def test_normalised_units_are_those_behind_the_preprocessing():
    delta = Checkerboard(0.05, "normalised", std=0.25).delta((4, 4))
    torch.testing.assert_close(delta / 0.25, Checkerboard(0.05).delta((4, 4)))


@SIZES
def test_decimation_makes_the_checkerboard_a_constant(size):
    """S₂δ is ε everywhere, so the card's δ ∈ ker(S₂ − εI) can't mean that S₂ annihilates δ: it doesn't."""
    board = Checkerboard(0.05)
    delta = board.delta(size).double()[None]
    kept = Decimate(2).down(delta)
    torch.testing.assert_close(kept, torch.full_like(kept, 0.05), rtol=1e-6, atol=0)
    hidden = Decimate(2).project_null(delta)
    assert (hidden - delta).abs().max() == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (14, 4), (2, 2)])
def test_halving_even_sizes_annihilates_the_checkerboard(size):
    delta = Checkerboard(0.05).delta(size).double()[None]
    assert Resize(0.5).down(delta).abs().max() < 1e-12
    torch.testing.assert_close(Resize(0.5).project_null(delta), delta, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [5, 7, 9, 33])
def test_halving_odd_sizes_lets_some_of_the_checkerboard_through(n):
    """Small pixel k lies at (k + ½) n / m − ½, between two pixels of opposite signs, not in their middle."""
    m = n // 2
    place = (np.arange(m) + 0.5) * n / m - 0.5
    axis = (-1.0) ** np.floor(place) * (1 - 2 * (place - np.floor(place)))
    found = Resize(0.5).down(Checkerboard(0.05).delta((n, n)).double()[None])[0]
    np.testing.assert_allclose(found.numpy(), 0.05 * np.outer(axis, axis), atol=1e-8)
    assert found.abs().max() > 0.05 * (1 / (2 * m)) ** 2


# Names and errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator", [*OPERATORS, Checkerboard(0.03), Checkerboard(0.05, "normalised"), Identity()]
)
def test_a_name_makes_the_operator(operator):
    assert make_perturbation(operator.name) == operator


def test_the_cards_lists_are_known():
    assert [make_perturbation(name).name for name in (*NULA_TESTS, *NULA_TRAINING)] == [
        *NULA_TESTS, *NULA_TRAINING
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(1.0), "Resize: scale must be between 0 and 1, got 1.0"),
        (lambda: Decimate(1), "Decimate: the factor must be a whole number ≥ 2, got 1"),
        (lambda: BlurDecimate(2.5), "BlurDecimate: the factor must be a whole number ≥ 2, got 2.5"),  # type: ignore[arg-type]
        (lambda: Checkerboard(0), "Checkerboard: ε and std must be > 0, got ε = 0 and std = 0.5"),
        (lambda: Checkerboard(0.1, "volt"), "the unit must be pixel or normalised, got 'volt'"),  # type: ignore[arg-type]
        (lambda: make_perturbation("decimat-2"), "unknown perturbation 'decimat-2'; nearest: 'decimate-2'"),
        (lambda: make_perturbation("resize-half"), "'resize-half': expected a number at its end, got 'half'"),
        (lambda: make_perturbation("decimate-2.5"), "expected a whole number at its end, got '2.5'"),
        (lambda: make_perturbation("resize-nan"), "expected a number at its end, got 'nan'"),
        (lambda: Decimate(2)(torch.zeros(2, 2, dtype=torch.uint8)), "floating-point .*got torch.uint8"),
        (lambda: Resize(0.5)(torch.zeros(4)), r"floating-point images .*of shape \(4,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(make, message):
    with pytest.raises(SpectralError, match=message):
        make()


# Drawing --------------------------------------------------------------------------------------------------


def test_choosing_is_reproducible_and_every_image_gets_one_of_them():
    x = noise(64, 3, 6, 6).clamp(0, 1)
    offered = (Identity(), Decimate(2), Checkerboard(0.05))
    first, again, other = (
        choose_randomly(x, offered, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    results = torch.stack([p(x) for p in offered])
    fits = (results == first).flatten(2).all(-1)
    assert fits.any(0).all()
    assert (fits.sum(1) > 8).all()  # each drawn often
    with pytest.raises(SpectralError, match="at least one perturbation to draw from, got none"):
        choose_randomly(x, (), torch.Generator())


def test_a_random_resize_gives_each_image_a_scale_of_its_own():
    x = noise(200, 3, 32, 20).clamp(0, 1)
    operator = make_perturbation("resize-0.2:0.6")
    assert operator.name == "resize-0.2:0.6"
    resized = [Resize(k / 100)(x) for k in range(20, 61)]
    for result in (operator(x), choose_randomly(x, [operator], torch.Generator().manual_seed(3))):
        fits = torch.stack([(y - result).abs().flatten(1).amax(1) < 1e-6 for y in resized])
        assert fits.any(0).all()
        scales = fits.double().argmax(0) / 100 + 0.2
        assert 0.37 < scales.mean() < 0.43
        assert len(scales.unique()) > 8
    halves = torch.cat([operator(x[:100], range(100)), operator(x[100:], range(100, 200))])
    assert torch.equal(operator(x), halves)  # whatever the batches


def test_noise_is_white_each_images_own_and_within_the_pixels_range():
    x = torch.full((50, 3, 16, 16), 0.5)
    operator = make_perturbation("gaussian-0.05")
    assert operator.name == "gaussian-0.05"
    noise = operator(x) - x
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean().item()) < 0.001
    power = torch.fft.fft2(noise.double()).abs().square().mean((0, 1)) / (256 * 0.05**2)
    assert power.std() < 0.15
    assert power.mean() == pytest.approx(1, rel=0.02)
    assert len(noise.flatten(1)[:, 0].unique()) == 50
    assert torch.equal(operator(x[10:20], range(10, 20)), operator(x)[10:20])  # whatever the batches
    bright = operator(torch.ones(1, 3, 16, 16))
    assert bright.max() == 1
    assert 0.4 < (bright == 1).float().mean() < 0.6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gaussian-0", "standard deviation must be > 0, got 0"),
        ("resize-0.6:0.2", "scales must be between 0 and 1, the lower first, got 0.6, 0.2"),
        ("resize-0:0.5", "scales must be between 0 and 1"),
        ("resize-a:0.5", "expected a number at its end, got 'a'"),
    ],
)
def test_scales_that_are_none(name, message):
    with pytest.raises(SpectralError, match=message):
        make_perturbation(name)


# Predictions ----------------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Class 1 where the first pixel is brighter than one half, surer the brighter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0] - 0.5], 1)


def pictures(labels: list[int | None]) -> Pictures:
    """First pixels at 0.4, 0.48, 0.52, 0.6: a checkerboard of 0.05 lifts one over the threshold."""
    pixels = torch.full((4, 3, 4, 4), 0.1)
    pixels[:, :, 0, 0] = torch.tensor([0.4, 0.48, 0.52, 0.6])[:, None]
    return Pictures(pixels, labels)


def test_predictions_are_those_of_the_perturbed_images():
    table = measure_predictions(Brightness(), pictures([0, 0, 1, 0]), ["checkerboard-0.05", Decimate(2)])
    assert list(table.columns) == [
        "image", "cluster", "label", "perturbation", "prediction", "confidence", "clean_prediction", "agree",
        "correct",
    ]  # fmt: skip
    assert list(table["perturbation"].unique()) == ["clean", "checkerboard-0.05", "decimate-2"]
    assert (
        table.groupby("perturbation", sort=False)["image"].agg(list).tolist()
        == [["p0", "p1", "p2", "p3"]] * 3
    )
    found = dict(list(table.groupby("perturbation")))
    assert found["clean"]["prediction"].tolist() == [0, 0, 1, 1]
    assert found["checkerboard-0.05"]["prediction"].tolist() == [0, 1, 1, 1]
    assert found["checkerboard-0.05"]["agree"].tolist() == [True, False, True, True]
    assert found["checkerboard-0.05"]["correct"].tolist() == [True, False, True, False]
    assert found["decimate-2"]["agree"].all()  # it keeps the first pixel
    assert found["clean"]["clean_prediction"].tolist() == found["decimate-2"]["clean_prediction"].tolist()
    margins = np.array([0.05, 0.03, 0.07, 0.15])  # |first pixel + ε − ½|
    np.testing.assert_allclose(
        found["checkerboard-0.05"]["confidence"], 1 / (1 + np.exp(-margins)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "accuracy"), [([None] * 4, None), ([0, None, None, 0], 0.5), ([0, 0, 1, 1], 1.0)]
)
def test_accuracy_counts_labelled_images_alone(labels, accuracy):
    table = measure_predictions(Brightness(), pictures(labels), [], progress=False)
    assert table["correct"].isna().tolist() == [label is None for label in labels]
    assert table["label"].isna().tolist() == [label is None for label in labels]
    assert table["agree"].all()
    if accuracy is None:
        assert pd.isna(table["correct"].mean())
    else:
        assert table["correct"].mean() == accuracy


def test_clean_comes_first_and_once():
    table = measure_predictions(Brightness(), pictures([None] * 4), ["decimate-2", "clean"], progress=False)
    assert table["perturbation"].tolist() == ["clean"] * 4 + ["decimate-2"] * 4


def test_the_batch_size_changes_nothing():
    net, images = load_model("bundled/resnet20"), load_images("synthetic", 32, 7)
    one, many = (
        measure_predictions(net, images, ["resize-0.5", "checkerboard-0.05"], batch_size=n, progress=False)
        for n in (2, 7)
    )
    pd.testing.assert_frame_equal(one.drop(columns="confidence"), many.drop(columns="confidence"))
    np.testing.assert_allclose(one["confidence"], many["confidence"], rtol=1e-4)


def test_a_training_network_is_evaluated_and_left_training():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)).train()
    tables = [measure_predictions(net, pictures([None] * 4), [], progress=False) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)
    assert all(module.training for module in net.modules())


def test_predictions_need_images_a_classifier_and_different_perturbations():
    some = pictures([None] * 4)
    with pytest.raises(SpectralError, match="a perturbation is there twice in clean, decimate-2, decimate-2"):
        measure_predictions(Brightness(), some, ["decimate-2", Decimate(2)])
    with pytest.raises(SpectralError, match="there are no images"):
        measure_predictions(Brightness(), Pictures(torch.zeros(0, 3, 4, 4), []), [])
    with pytest.raises(SpectralError, match=r"expected a classifier with logits of shape \(\d, K ≥ 2\)"):
        measure_predictions(nn.Identity(), some, [], progress=False)


def test_one_perturbation_may_stand_alone():
    net, images = load_model("bundled/resnet8@random"), load_images("synthetic", 32, 2)
    listed = measure_predictions(net, images, ["decimate-2"], progress=False)
    for alone in ("decimate-2", Decimate(2)):
        pd.testing.assert_frame_equal(measure_predictions(net, images, alone, progress=False), listed)
