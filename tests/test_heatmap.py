"""Fourier heatmaps: the basis, a network whose answer to every frequency is known, the figure, the script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from spectral import stats
from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.experiments.heatmap import main
from spectral.figures import FIGURES
from spectral.models import load_model
from spectral.perturb import FourierBasis, measure_fourier_heatmap, measure_predictions
from spectral.perturb.heatmap import list_bins

SIZES = pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (9, 4), (1, 4), (1, 1)])


class Grey:
    """Mid-grey images of one size, labelled as given."""

    def __init__(self, size: tuple[int, int], labels: list[int | None]) -> None:
        self.size, self.labels = size, labels
        self.source, self.fingerprint = "grey", "0"
        self.ids = [f"g{i}" for i in range(len(labels))]

    def batches(self, batch_size, *, indices=None):
        for start in range(0, len(self), batch_size):
            part = list(range(len(self)))[start : start + batch_size]
            yield part, torch.full((len(part), 3, *self.size), 0.5)

    def resized(self, size):
        raise AssertionError("these have a size")

    def __len__(self) -> int:
        return len(self.labels)


class Tuned(nn.Module):
    """Class 1 where the first channel has more than ``threshold`` of one basis image; blind to all else."""

    def __init__(self, basis: Tensor, threshold: float) -> None:
        super().__init__()
        self.basis, self.threshold = basis, threshold

    def forward(self, x: Tensor) -> Tensor:
        found = (x[:, 0] * self.basis).sum((-2, -1))
        return torch.stack([torch.zeros_like(found), found - self.threshold], 1)


def mirror(pair: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The bin of the conjugate, on the grid of `fftfreq`."""
    (i, n), (j, m) = zip(pair, size, strict=True)
    return tuple(int(np.round(np.fft.fftfreq(k)[-v % k] * k)) for v, k in ((i, n), (j, m)))  # type: ignore[return-value]


# The basis ------------------------------------------------------------------------------------------------


@SIZES
def test_the_grid_is_the_centred_one_of_the_dft(size):
    expected = [np.round(np.fft.fftshift(np.fft.fftfreq(n)) * n).astype(int).tolist() for n in size]
    assert list_bins(size) == [(i, j) for i in expected[0] for j in expected[1]]


@SIZES
def test_basis_images_are_real_orthonormal_and_in_two_bins(size):
    half = [pair for pair in list_bins(size) if mirror(pair, size) <= pair]
    images = torch.stack([FourierBasis(*pair).image(size) for pair in half]).double()
    gram = images.flatten(1) @ images.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(len(half)).double(), atol=1e-6, rtol=0)
    for pair, image in zip(half, images, strict=True):
        power = torch.fft.fft2(image).abs().square()
        bins = {(i % size[0], j % size[1]) for i, j in (pair, mirror(pair, size))}
        inside = sum(float(power[place]) for place in bins)
        assert inside == pytest.approx(size[0] * size[1], rel=1e-6)
        assert float(power.sum()) == pytest.approx(inside, rel=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-20, 20), st.integers(-20, 20))
def test_conjugate_frequencies_have_the_same_image(height, width, i, j):
    image = FourierBasis(i, j).image((height, width))
    assert torch.equal(image, FourierBasis(-i, -j).image((height, width)))
    assert torch.equal(image, FourierBasis(i + height, j - width).image((height, width)))
    assert float(image.norm()) == pytest.approx(1, rel=1e-5)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_channel_gets_the_image_at_its_norm_with_a_sign_of_its_own(size, dtype):
    x = torch.zeros(64, 3, *size, dtype=dtype)
    basis = FourierBasis(1, 2, norm=2.5, seed=3)
    added = basis(x)
    assert added.dtype == dtype
    signs = (added * basis.image(size)).sum((-2, -1)) / 2.5
    torch.testing.assert_close(signs.abs(), torch.ones(64, 3, dtype=dtype))
    torch.testing.assert_close(added, 2.5 * signs.round()[..., None, None] * basis.image(size).to(dtype))
    patterns = {tuple(row) for row in signs.round().int().tolist()}
    assert len(patterns) == 8  # channels are independent of each other
    assert 64 < (signs > 0).sum() < 128


def test_signs_depend_on_seed_number_and_frequency_alone():
    x = torch.zeros(40, 3, 5, 6)
    basis = FourierBasis(1, 2)
    together = basis(x)
    assert torch.equal(together[[7, 3]], basis(x[:2], [7, 3]))
    assert torch.equal(FourierBasis(1, 2, norm=8.0)(x), 2 * together)
    assert not torch.equal(FourierBasis(1, 2, seed=1)(x), together)
    first = [FourierBasis(*pair)(x)[..., 0, 0].sign() for pair in ((1, 2), (1, 1), (2, 2))]
    assert not torch.equal(first[0], first[1])  # U is positive there, for every frequency
    assert not torch.equal(first[0], first[2])


def test_images_under_a_basis_image_can_be_predicted():
    net, images = load_model("bundled/resnet8@random"), load_images("synthetic", 32, 3)
    table = measure_predictions(net, images, [FourierBasis(0, 15, norm=8.0)], progress=False)
    assert table["perturbation"].unique().tolist() == ["clean", "fourier-(0,15)-8"]


# The heatmap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1.0, -1.0])
@pytest.mark.parametrize(
    ("size", "pair"), [((8, 8), (1, 3)), ((7, 9), (-2, 1)), ((6, 5), (-3, 1)), ((4, 6), (0, -3))]
)
def test_only_the_frequency_that_a_network_sees_moves_it(size, pair, threshold):
    """It flips where the sign drawn for its channel is that of the threshold; elsewhere nothing changes."""
    net, labels = Tuned(FourierBasis(*pair).image(size), threshold), [0] * 20 + [1] * 5 + [None] * 15
    table = measure_fourier_heatmap(net, Grey(size, labels), norm=2.0, progress=False)
    assert list(zip(table["i"], table["j"], strict=True)) == list_bins(size)
    seen = np.array([bins in (pair, mirror(pair, size)) for bins in list_bins(size)])
    assert seen.sum() == len({pair, mirror(pair, size)})
    assert ((table["disagreement"] > 0) == seen).all()
    measured = max(pair, mirror(pair, size))
    found = net(FourierBasis(*measured, norm=2.0)(torch.zeros(40, 3, *size))).argmax(1)
    clean = int(threshold < 0)
    flipped = (found != clean).sum().item()
    assert 5 < flipped < 35
    assert table["disagreement"].tolist() == pytest.approx(list(np.where(seen, flipped / 40, 0)))
    wrong = (found[:20] != 0).sum().item() + (found[20:25] != 1).sum().item()
    clean_error = 0.8 if clean else 0.2
    assert table["error"].tolist() == pytest.approx(list(np.where(seen, wrong / 25, clean_error)))
    facts = table[["height", "width", "norm", "n", "n_labelled", "clean_error"]].drop_duplicates()
    assert facts.values.tolist() == [[*size, 2.0, 40, 25, clean_error]]


def test_a_photograph_counts_once_however_many_images_it_has():
    size, pair = (4, 4), (0, 1)
    images = Grey(size, [0] * 40)
    changed = Tuned(FourierBasis(*pair).image(size), 1.0)(FourierBasis(*pair, norm=2.0)(
        torch.zeros(40, 3, *size))).argmax(1).tolist()  # fmt: skip
    images.clusters = ["moved" if flag else f"still {i}" for i, flag in enumerate(changed)]
    table = measure_fourier_heatmap(Tuned(FourierBasis(*pair).image(size), 1.0), images, 2.0, progress=False)
    row = table.set_index(["i", "j"]).loc[pair]
    photographs = 40 - sum(changed) + 1
    assert 5 < sum(changed) < 35
    assert (row["n"], row["n_clusters"]) == (40, photographs)
    assert row["disagreement"] == row["error"] == pytest.approx(1 / photographs)
    bounds = [row[f"{name}{end}"] for name in ("disagreement", "error") for end in ("_ci_low", "_ci_high")]
    share = stats.count_share(1, photographs)
    assert bounds == pytest.approx([share.ci_low, share.ci_high] * 2, abs=0.02)
    said = FIGURES["fourier_heatmap"].plot({"fourier_heatmap": table.assign(model="net")}).get_suptitle()
    assert f"n = {photographs} photographs (40 images)" in said
    wide = max(table["error_ci_high"] - table["error_ci_low"])
    assert f"95 % intervals of cells: up to {100 * wide:.2g} points wide" in said


def test_frequencies_are_those_of_the_dft():
    table = measure_fourier_heatmap(Tuned(torch.ones(7, 6), 1), Grey((7, 6), [None]), progress=False)
    np.testing.assert_allclose(table["f_u"].unique(), np.fft.fftshift(np.fft.fftfreq(7)))
    np.testing.assert_allclose(table["f_v"].unique(), np.fft.fftshift(np.fft.fftfreq(6)))
    assert table[["error", "clean_error"]].isna().all(axis=None)
    assert (table["n_labelled"] == 0).all()


def test_radius_and_stride_choose_frequencies_and_change_no_value():
    net, images = load_model("bundled/resnet8@random"), load_images("synthetic", 32, 3)
    near = measure_fourier_heatmap(net, images, 8.0, 3, progress=False)
    coarse = measure_fourier_heatmap(net, images, 8.0, 3, stride=3, progress=False)
    assert near["i"].unique().tolist() == list(range(-3, 4))
    assert coarse[["i", "j"]].values.tolist() == [[i, j] for i in (-3, 0, 3) for j in (-3, 0, 3)]
    kept = near[near["i"].isin([-3, 0, 3]) & near["j"].isin([-3, 0, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, coarse)
    turned = near.iloc[::-1]  # conjugates
    assert turned["disagreement"].tolist() == near["disagreement"].tolist()


def test_the_batch_size_changes_nothing_and_the_network_stays_in_training():
    net, images = load_model("bundled/resnet8@random").train(), load_images("synthetic", 32, 5)
    tables = [
        measure_fourier_heatmap(net, images, 8.0, 1, batch_size=size, progress=False) for size in (2, 5)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride must be a whole number ≥ 1, got 0"),
        ({"radius": -1}, "radius must be a whole number ≥ 0, got -1"),
        ({"norm": 0.0}, "FourierBasis: norm must be > 0 and seed ≥ 0, got norm = 0.0"),
        ({"seed": -1}, "measure_fourier_heatmap: seed must be a whole number ≥ 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_explained(options, message):
    with pytest.raises(SpectralError, match=message):
        measure_fourier_heatmap(Tuned(torch.ones(4, 4), 1), Grey((4, 4), [None] * 2), **options)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_unfit_images_are_explained():
    with pytest.raises(SpectralError, match="there are no images"):
        measure_fourier_heatmap(Tuned(torch.ones(4, 4), 1), Grey((4, 4), []))
    with pytest.raises(SpectralError, match=r"images of samples differ in size .*; load them with size="):
        measure_fourier_heatmap(Mean(), load_images("samples", limit=12))
    pictures = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    for some in (pictures, pictures[:1]):  # which have one size, though nobody said so
        table = measure_fourier_heatmap(Mean(), some, radius=1, preprocessing="none", logits=lambda y: y)
        assert table[["height", "width", "n"]].drop_duplicates().to_numpy().tolist() == [[4, 6, len(some)]]
    with pytest.raises(SpectralError, match=r"fourier-\(1,2\)-4: expected .* of shape \(4, 4\)"):
        FourierBasis(1, 2)(torch.zeros(4, 4))


# Figure and script ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "stride"), [((6, 6), 1), ((7, 9), 1), ((12, 8), 2)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_figure_shows_the_values_at_their_frequencies(size, stride, labelled):
    net = Tuned(FourierBasis(2, 2).image(size), threshold=1.0)
    images = Grey(size, [0] * 10 if labelled else [None] * 9 + [0])
    table = measure_fourier_heatmap(net, images, norm=2.0, stride=stride, progress=False)
    table.insert(0, "model", "tuned")
    fig = FIGURES["fourier_heatmap"].plot({"fourier_heatmap": table})
    (image,) = fig.axes[0].images
    shown = image.get_array()
    column = "error" if labelled else "disagreement"
    np.testing.assert_allclose(shown.ravel(), 100 * table[column])
    left, right, bottom, top = image.get_extent()
    rows, columns = shown.shape
    place = np.argwhere(shown == shown.max())[-1]  # (2, 2), the later of both conjugates
    assert bottom + (place[0] + 0.5) * (top - bottom) / rows == pytest.approx(2 / size[0])
    assert left + (place[1] + 0.5) * (right - left) / columns == pytest.approx(2 / size[1])
    assert image.origin == "lower"
    said = " ".join(text.get_text() for text in fig.findobj(lambda artist: hasattr(artist, "get_text")))
    assert ("labels" in said) == (not labelled)


def test_the_figure_refuses_an_incomplete_grid():
    table = measure_fourier_heatmap(Tuned(torch.ones(4, 4), 1), Grey((4, 4), [None]), progress=False)
    table.insert(0, "model", "tuned")
    with pytest.raises(SpectralError, match=r"one row for each of the 4×4 frequencies of 'tuned', got 15"):
        FIGURES["fourier_heatmap"].plot({"fourier_heatmap": table.drop(index=3)})


def test_the_script_writes_table_provenance_and_figure(tmp_path: Path):
    command = ["bundled/resnet8@random", "--images", "synthetic", "--limit", "3", "--radius", "2", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--stride", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "tables" / "fourier_heatmap.csv")
    net, images = load_model("bundled/resnet8@random"), load_images("synthetic", 32, 3)
    expected = measure_fourier_heatmap(net, images, radius=2, stride=2, progress=False)
    assert table["model"].unique().tolist() == ["bundled/resnet8@random"]
    np.testing.assert_allclose(table["disagreement"], expected["disagreement"], atol=1e-8)
    written = json.loads((tmp_path / "tables" / "fourier_heatmap.json").read_text())
    assert (written["norm"], written["stride"], written["models"]["bundled/resnet8@random"]["count"]) == (
        4.0,
        2,
        3,
    )
    assert (tmp_path / "figures" / "fourier_heatmap.png").stat().st_size > 0
    other = CliRunner().invoke(main, [*command, "--stride", "1", "--out", str(tmp_path)])
    assert (other.exit_code, "fourier_heatmap.csv is of stride = 2, not 1; choose" in other.output) == (
        2,
        True,
    )
    assert pd.read_csv(tmp_path / "tables" / "fourier_heatmap.csv").equals(table)


def test_labels_of_other_classes_count_for_nothing(tmp_path: Path):
    for name in ("ant", "bee"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red" if name == "ant" else "blue").save(
            tmp_path / "pictures" / name / "a.png"
        )
    command = ["bundled/resnet8@random", "--images", str(tmp_path / "pictures"), "--radius", "0", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "labels" in result.output
    assert (pd.read_csv(tmp_path / "tables" / "fourier_heatmap.csv")["n_labelled"] == 0).all()


def test_the_script_explains_bad_arguments(tmp_path: Path):
    result = CliRunner().invoke(main, ["bundled/resnet21", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "nearest: 'resnet20'" in result.output
    assert CliRunner().invoke(main, ["--norm", "0", "bundled/resnet20"]).exit_code == 2
    assert CliRunner().invoke(main, []).exit_code == 2
