"""Shift consistency: closed forms, fills and offsets, and that batches change nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.models import load_model, model_info
from spectral.stability import PROTOCOLS, draw_shifts, find_crop_source, measure_consistency

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
            expected = {
                "circular": x[i].roll((down, right), (1, 2)),
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
    model.spectral_info = model_info(load_model("bundled/resnet20@random"))
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
        ({"pairs": 0}, "pairs must be ≥ 1, got 0"),
        ({"batch_size": 0}, "batch_size must be ≥ 1, got 0"),
        ({"seed": -1}, "seed must be ≥ 0, got -1"),
        ({"max_shift": -1}, "max_shift must be from 0 to 7 for these images, got -1"),
        ({"protocol": "crop", "max_shift": 2}, "max_shift must be from 0 to 1 for these images, got 2"),
        ({"protocol": "cifar-zeros", "max_shift": 8}, "max_shift must be from 0 to 7"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(SpectralError, match=sentence):
        measure_consistency(Seen(), pixels(2, 3, 8, 8), **options)


def test_bad_images_and_models():
    with pytest.raises(SpectralError, match=r"expected images of shape \(N, C, H, W\), got \(3, 8, 8\)"):
        measure_consistency(Seen(), pixels(3, 8, 8))
    with pytest.raises(SpectralError, match="there are no images"):
        measure_consistency(Seen(), torch.zeros(0, 3, 8, 8))
    with pytest.raises(SpectralError, match="expected a classifier"):
        measure_consistency(nn.Identity(), pixels(2, 3, 8, 8))
