"""Shift consistency: closed forms, fills and offsets, and that batches change nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.models import load_model, model_info
from spectral.stability import (
    PROTOCOLS,
    draw_shifts,
    find_crop_source,
    fourier_shift,
    measure_consistency,
    measure_diagonal,
    measure_worst_shift,
)

EVERY = pytest.mark.parametrize("protocol", PROTOCOLS)
SIZES = pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 13), (32, 20)])


class ColumnParity(nn.Module):
    """Class 0 where most of the image is in even columns, 1 where it is in odd ones."""

    def forward(self, x: Tensor) -> Tensor:
        columns = x.sum((1, 2))
        return torch.stack([columns[:, ::2].sum(1), columns[:, 1::2].sum(1)], 1)


class Seen(nn.Module):
    """Keeps what it is given; the class is whether the first pixel is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.clone())
        return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0]], 1)

    @property
    def views(self) -> Tensor:
        return torch.cat(self.batches)


def impulses(count: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Images of one bright pixel each, and its columns; 3 pixels away from the border."""
    rng = np.random.default_rng(seed)
    x = torch.zeros(count, 3, *size)
    columns = rng.integers(3, size[1] - 3, count)
    for i, column in enumerate(columns):
        x[i, :, rng.integers(3, size[0] - 3), column] = 1
    return x, columns


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repeat(table: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    return np.repeat(values, int(table["pair"].max()) + 1)


# Closed forms ---------------------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("protocol", ["circular", "cifar-zeros", "cifar-circular"])
def test_the_parity_of_an_impulse_follows_its_shift(protocol, size):
    x, columns = impulses(12, size)
    table = measure_consistency(ColumnParity(), x, protocol, pairs=3)
    columns = repeat(table, columns)
    for view in ("a", "b"):
        expected = (
            (columns + table[f"column_{view}"]) % size[1] % 2
        )  # wraps, at odd widths with the other parity
        assert (table[f"prediction_{view}"] == expected).all()
    assert (table["agree"] == (table["prediction_a"] == table["prediction_b"])).all()
    assert 0 < table["agree"].mean() < 1


def test_consistency_of_a_coin_is_one_half():
    """Even widths: a random roll leaves the parity with probability ½."""
    x, _ = impulses(1, (8, 8))
    table = measure_consistency(ColumnParity(), x, "circular", pairs=2000, batch_size=4000)
    assert table["agree"].mean() == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


@EVERY
@SIZES
def test_a_shift_invariant_network_has_1(protocol, size):
    """What depends on no position: under crops nothing but a constant does."""
    x = pixels(5, 3, *size)
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if PROTOCOLS[protocol].fill == "circular":
        assert measure_consistency(mean, x.double(), protocol, pairs=4)["agree"].all()
    flat = x.mean((2, 3), keepdim=True).expand_as(x).double()
    assert measure_consistency(mean, flat, protocol, pairs=4)["agree"].all()


def test_even_polyphase_selection_is_consistent_where_a_stride_is_not():
    """APS keeps the same samples after a circular shift; a plain stride keeps others."""
    x = pixels(40, 3, 16, 16).double()
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    aps = nn.Sequential(spectral.layers.APSPool2d(2), head)
    assert measure_consistency(aps, x, "circular", pairs=2)["agree"].all()
    strided = nn.Sequential(nn.MaxPool2d(1, 2), head)
    assert not measure_consistency(strided, x, "circular", pairs=2)["agree"].all()


# Views ----------------------------------------------------------------------------------------------------


@SIZES
def test_views_are_what_the_table_says(size):
    x = pixels(3, 3, *size)
    padded = F.pad(x, (3, 3, 3, 3))
    larger = F.interpolate(x, size=find_crop_source(size), mode="bilinear", align_corners=False)
    for protocol in PROTOCOLS:
        model = Seen()
        table = measure_consistency(model, x, protocol, pairs=2, batch_size=5)
        shifts = table[["row_a", "column_a", "row_b", "column_b"]].to_numpy().reshape(-1, 2)
        assert len(model.views) == 12
        for n, (view, (down, right)) in enumerate(zip(model.views, shifts, strict=True)):
            i = n // 4
            if protocol == "fractional":
                assert torch.equal(view, fourier_shift(x[i], (down, right)))
                continue
            expected = {
                "circular": x[i].roll((int(down), int(right)), (1, 2)),
                "none": larger[i, :, down : down + size[0], right : right + size[1]],
                "zeros": padded[i, :, 3 - down : 3 - down + size[0], 3 - right : 3 - right + size[1]],
            }[PROTOCOLS[protocol].fill]
            assert torch.equal(view, expected)
        assert set(table["fill"]) == {PROTOCOLS[protocol].fill}
        assert set(table["protocol"]) == {protocol}


@pytest.mark.parametrize(
    ("protocol", "options", "lowest", "highest"),
    [
        ("circular", {}, 0, 31),
        ("circular", {"max_shift": 2}, -2, 2),
        ("crop", {}, 0, 4),  # 37 pixels
        ("crop", {"max_shift": 5}, 0, 5),
        ("cifar-zeros", {}, -3, 3),
        ("cifar-circular", {"max_shift": 8}, -8, 8),
    ],
)
def test_shifts_reach_their_limits_and_no_further(protocol, options, lowest, highest):
    table = measure_consistency(Seen(), pixels(2, 3, 32, 32), protocol, pairs=400, **options)
    drawn = table[["row_a", "column_a", "row_b", "column_b"]]
    assert (drawn.min() == lowest).all()
    assert (drawn.max() == highest).all()


def test_the_published_crop_has_offsets_from_0_to_31():
    assert find_crop_source((224, 224)) == (256, 256)
    low, high = PROTOCOLS["crop"].limits((224, 224), None)
    assert (low, high) == ((0, 0), (31, 31))
    assert PROTOCOLS["crop"].limits((8, 16), None)[1] == (1, 1)  # small images are still shifted


def test_crops_of_images_are_read_at_the_larger_size():
    images = spectral.load_images("synthetic", size=64, limit=2).resized(14)
    model = Seen()
    table = measure_consistency(model, images, "crop")
    larger = images.resized(16)
    for n, (i, view) in enumerate([(0, "a"), (0, "b"), (1, "a"), (1, "b")]):
        row = table.iloc[i]
        top, left = row[f"row_{view}"], row[f"column_{view}"]
        assert torch.equal(model.views[n], larger[i][:, top : top + 14, left : left + 14])


# Seeds, batches, preprocessing ------------------------------------------------------------------------


@EVERY
def test_neither_batches_nor_other_images_change_an_image(protocol):
    x = pixels(7, 3, 16, 16)
    whole = measure_consistency(Seen(), x, protocol, pairs=2, batch_size=64)
    pd.testing.assert_frame_equal(measure_consistency(Seen(), x, protocol, pairs=2, batch_size=1), whole)
    some = measure_consistency(Seen(), x[:3], protocol, pairs=2)
    pd.testing.assert_frame_equal(some, whole.iloc[:6])
    fewer = measure_consistency(Seen(), x, protocol, pairs=1)
    assert fewer["row_a"].tolist() == whole[whole["pair"] == 0]["row_a"].tolist()
    other = measure_consistency(Seen(), x, protocol, pairs=2, seed=1)
    assert other["row_a"].tolist() != whole["row_a"].tolist()


def test_each_image_has_shifts_of_its_own():
    drawn = {tuple(draw_shifts((0, 0), (31, 31), 1, 0, i).ravel()) for i in range(20)}
    assert len(drawn) == 20


def test_images_are_normalised_for_the_network_and_zeros_are_black():
    model = Seen()
    model.spectral_info = model_info(load_model("bundled/resnet8@random"))
    images = spectral.load_images("synthetic", size=32, limit=3)
    batch = torch.stack([images[i] for i in range(3)])
    table = measure_consistency(model, images, "cifar-zeros", pairs=2)
    views = torch.stack([
        F.pad(batch[i], (3, 3, 3, 3))[:, 3 - row[f"row_{v}"] :, 3 - row[f"column_{v}"] :][:, :32, :32]
        for i in range(3) for _, row in table.iloc[2 * i : 2 * i + 2].iterrows() for v in "ab"
    ])  # fmt: skip
    assert torch.equal(model.views, model.spectral_info.preprocessing(views))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    x = pixels(3, 3, 8, 8)
    before = x.clone()
    first = measure_consistency(model, x, pairs=3)
    assert first["agree"].all()  # no dropout
    assert model.training
    assert torch.equal(x, before)


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protocol": "circula"}, "unknown protocol 'circula'; nearest: 'circular'.*values are circular"),
        ({"pairs": 0}, "pairs must be a whole number ≥ 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1, got 0"),
        ({"seed": -1}, "seed must be a whole number ≥ 0, got -1"),
        ({"max_shift": -1}, "max_shift must be from 0 to 7 for these images, got -1"),
        ({"protocol": "crop", "max_shift": 2}, "max_shift must be from 0 to 1 for these images, got 2"),
        ({"protocol": "cifar-zeros", "max_shift": 8}, "max_shift must be from 0 to 7"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(SpectralError, match=sentence):
        measure_consistency(Seen(), pixels(2, 3, 8, 8), **options)


def test_bad_images_and_models():
    with pytest.raises(SpectralError, match=r"expected images of shape \(B, C, H, W\), got \(3, 8, 8\)"):
        measure_consistency(Seen(), pixels(3, 8, 8))
    with pytest.raises(SpectralError, match="there are no images"):
        measure_consistency(Seen(), torch.zeros(0, 3, 8, 8))
    with pytest.raises(SpectralError, match="expected a classifier"):
        measure_consistency(nn.Identity(), pixels(2, 3, 8, 8))


# Fractional shifts ----------------------------------------------------------------------------------------


def test_fractional_shifts_are_real_numbers_within_a_pixel():
    table = measure_consistency(Seen(), pixels(2, 3, 16, 16), "fractional", pairs=400)
    drawn = table[["row_a", "column_a", "row_b", "column_b"]].to_numpy()
    assert (np.abs(drawn) < 1).all()
    assert drawn.min() < -0.98
    assert drawn.max() > 0.98
    assert (drawn != drawn.round()).all()
    wider = measure_consistency(Seen(), pixels(2, 3, 16, 16), "fractional", pairs=400, max_shift=4)
    assert wider["row_a"].abs().max() > 3.9


def test_a_network_of_tones_is_consistent_under_fractional_shifts():
    """The power of a tone doesn't move with it, its sign does."""
    columns = torch.arange(9, dtype=torch.float64)
    tones = torch.stack([torch.cos(2 * torch.pi * k * columns / 9 + k).expand(3, 9, 9) for k in (1, 2, 3, 4)])

    def classify(x: Tensor) -> Tensor:
        return torch.fft.rfft(x.mean((1, 2))).abs()[:, 1:]

    power = Function(classify)
    table = measure_consistency(power, tones, "fractional", pairs=20)
    assert table["agree"].all()
    assert table.groupby("image")["prediction_a"].first().tolist() == [0, 1, 2, 3]
    assert not measure_consistency(Seen(), tones, "fractional", pairs=20, max_shift=4)["agree"].all()


class Function(nn.Module):
    """A function of images as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# The worst of all shifts ----------------------------------------------------------------------------------


def all_shifts(r: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(-r, r + 1) for b in range(-r, r + 1) if (a, b) != (0, 0)]


@pytest.mark.parametrize("fill", ["circular", "zeros"])
@pytest.mark.parametrize(("size", "r"), [((8, 8), 1), ((7, 12), 2), ((9, 9), 3)])
def test_every_shift_is_tried_once_and_the_worst_one_is_named(fill, size, r):
    """One shift at a time, in the plainest way."""
    x = pixels(6, 3, *size)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4))
    table = measure_worst_shift(linear, x, r, fill=fill, batch_size=7)
    padded = F.pad(x, (r, r, r, r))
    assert set(table["n_shifts"]) == {(2 * r + 1) ** 2 - 1}
    assert 0 < table["n_changed"].mean() < table["n_shifts"].iloc[0]
    with torch.no_grad():
        clean = linear(x).argmax(1)
        margins, changed = {}, torch.zeros(6, dtype=torch.long)
        for down, right in all_shifts(r):
            view = x.roll((down, right), (2, 3))
            if fill == "zeros":
                view = padded[:, :, r - down :, r - right :][:, :, : size[0], : size[1]]
            p = linear(view).double().softmax(1)
            changed += p.argmax(1) != clean
            others = p.scatter(1, clean[:, None], -1).amax(1)
            margins[down, right] = p.gather(1, clean[:, None])[:, 0] - others
    for i, row in table.iterrows():
        worst = min(margins, key=lambda s, i=i: float(margins[s][i]))
        assert (row["worst_row"], row["worst_column"]) == worst
        assert row["worst_margin"] == pytest.approx(float(margins[worst][i]), abs=1e-6)
        assert row["n_changed"] == changed[i]
        assert row["stays"] == (changed[i] == 0)
        assert (row["worst_margin"] < 0) == (not row["stays"])
        assert row["prediction"] == clean[i]
        assert (row["worst_prediction"] == row["prediction"]) == row["stays"]


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_parity_of_an_impulse_changes_at_odd_column_shifts_alone(r):
    """Also those along one axis and the negative ones: (2 r + 1)(2 ⌈r/2⌉) shifts have an odd column."""
    x, columns = impulses(5, (10, 10))
    table = measure_worst_shift(ColumnParity(), x, r)
    assert set(table["n_changed"]) == {(2 * r + 1) * 2 * ((r + 1) // 2)}
    assert (table["worst_column"] % 2 == 1).all()
    assert table["prediction"].tolist() == (columns % 2).tolist()
    assert not table["stays"].any()
    assert (table["worst_row"] == -r).all()  # the first of equal ones


def test_a_shift_along_one_axis_is_enough_to_be_the_worst():
    """Only a shift of exactly (0, −1) brings the bright pixel to the corner that decides."""
    x = torch.zeros(1, 3, 8, 8)
    x[0, :, 0, 1] = 1
    corner = Function(lambda x: torch.stack([torch.full((len(x),), 0.5), x[:, 0, 0, 0]], 1))
    (row,) = measure_worst_shift(corner, x, 2).to_dict("records")
    assert (row["n_changed"], row["worst_row"], row["worst_column"]) == (1, 0, -1)
    assert row["worst_margin"] == pytest.approx(-np.tanh(0.25))  # of the logits ½ and 1


def test_accuracy_against_the_worst_shift_is_of_labelled_images_alone():
    """No shift moves the class of four flat images, 0, or keeps that of two impulses."""
    flat = (torch.arange(4.0) / 4).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    x, columns = impulses(2, (8, 8))
    labels = [0, 0, 1, None, int(columns[0] % 2), None]
    labelled = list(zip([*flat, *x], labels, strict=True))
    table = measure_worst_shift(ColumnParity().eval(), labelled, 1, preprocessing="none", progress=False)
    assert table["stays"].tolist() == [True] * 4 + [False] * 2
    assert table["correct"].tolist() == [True, True, False, pd.NA, True, pd.NA]
    assert table["stays_correct"].tolist() == [True, True, False, pd.NA, False, pd.NA]
    assert table["stays_correct"].mean() == 0.5


def test_a_shift_invariant_network_stays():
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    table = measure_worst_shift(mean, pixels(5, 3, 8, 8).double())
    assert table["stays"].all()
    assert (table["worst_margin"] > 0).all()


@pytest.mark.parametrize("measure", [measure_worst_shift, measure_diagonal])
def test_batches_change_nothing_and_images_are_normalised(measure):
    model = load_model("bundled/resnet8@random")
    images = spectral.load_images("synthetic", size=32, limit=3)
    number = 1 if measure is measure_worst_shift else 4
    whole = measure(model, images, number, batch_size=100)
    pd.testing.assert_frame_equal(measure(model, images, number, batch_size=5), whole, rtol=1e-4)
    assert whole["image"].unique().tolist() == images.ids
    prepared = model.spectral_info.preprocessing(torch.stack([images[i] for i in range(3)]))
    plain = measure(model, prepared, number)
    column = "worst_margin" if number == 1 else "confidence"
    np.testing.assert_allclose(whole[column], plain[column], rtol=1e-4)


# Along a diagonal -----------------------------------------------------------------------------------------


@SIZES
def test_the_diagonal_of_an_impulse_alternates(size):
    x, columns = impulses(4, size)
    table = measure_diagonal(ColumnParity(), x)
    assert len(table) == 4 * 33
    assert table["offset"].tolist() == [*range(33)] * 4
    moved = (np.repeat(columns, 33) + table["offset"]) % size[1] % 2
    assert (table["prediction"] == moved).all()
    first = np.repeat(columns % 2, 33)
    assert (table["changed"] == (moved != first)).all()
    sigmoid = 1 / (1 + np.exp(-3.0))  # three channels of one bright pixel
    np.testing.assert_allclose(table["confidence"], np.where(table["changed"], 1 - sigmoid, sigmoid))


def test_a_diagonal_ends_where_it_began_after_a_whole_turn():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    table = measure_diagonal(linear, pixels(2, 3, 32, 32)).set_index(["image", "offset"])["confidence"]
    np.testing.assert_allclose(table.xs(32, level=1), table.xs(0, level=1), rtol=1e-5)
    assert table.xs(1, level=1).tolist() != table.xs(0, level=1).tolist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: measure_worst_shift(Seen(), x, 0), r"max_shift must be from 1 to 7 .*, got 0"),
        (lambda x: measure_worst_shift(Seen(), x, 8), r"max_shift must be from 1 to 7 .*, got 8"),
        (lambda x: measure_worst_shift(Seen(), x, fill="zero"), "'zero'; nearest: 'zeros'.*are circular"),
        (lambda x: measure_worst_shift(Seen(), x, batch_size=0), "batch_size must be a whole number ≥ 1"),
        (lambda x: measure_worst_shift(Seen(), x[:0]), "measure_worst_shift: there are no images"),
        (lambda x: measure_worst_shift(nn.Identity(), x), "expected a classifier"),
        (lambda x: measure_diagonal(Seen(), x, steps=0), "steps must be a whole number ≥ 1, got 0"),
        (lambda x: measure_diagonal(Seen(), x[0]), r"images of shape \(B, C, H, W\), got"),
    ],
)  # fmt: skip
def test_bad_sweeps_are_one_sentence(call, sentence):
    with pytest.raises(SpectralError, match=sentence):
        call(pixels(2, 3, 8, 8))
