"""Layer-wise equivariance: sub-pixel shifts from their definition, and networks whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ReusedPool, image, unchanged
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError, SpectralWarning
from spectral.models import load_model
from spectral.stability import EQUIVARIANCE_SHIFTS, compare_moved, fourier_shift, measure_equivariance

SIZES = pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (1, 4), (13, 10)])
EXACT = 200  # dB; what float64 leaves
ONE_PIXEL = ((-1, 0), (1, 0), (0, -1), (0, 1))


def interpolation_matrix(size: int, delta: float) -> np.ndarray:
    """Row n: the samples' weights at n − δ, summed from cosines; the unpaired one keeps its even part."""
    offset = np.arange(size)[:, None] - np.arange(size)
    rows = np.ones((size, size)) / size
    for k in range(1, (size - 1) // 2 + 1):
        rows += 2 / size * np.cos(2 * np.pi * k * (offset - delta) / size)
    if size % 2 == 0:
        rows += np.cos(np.pi * delta) * np.cos(np.pi * offset) / size
    return rows


def band_limit(x: Tensor, stride: int) -> Tensor:
    """Zero every frequency that a decimation could fold, on either axis."""
    spectrum = torch.fft.fft2(x)
    for axis in (-2, -1):
        f = torch.fft.fftfreq(x.shape[axis], dtype=torch.float64).abs()
        spectrum = spectrum * (2 * stride * f < 1).view(-1, *[1] * (-1 - axis))
    return torch.fft.ifft2(spectrum).real


def circular_conv(stride: int | tuple[int, int] = 1, inside: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inside, 4, 3, stride, 1, padding_mode="circular").double()


class Decimate(nn.Module):
    """Every second sample, by a slice."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


def measure(model: nn.Module, x: Tensor, **options: object) -> pd.DataFrame:
    return measure_equivariance(model, x, progress=False, **options)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return image(*shape, seed=seed, dtype=torch.float64)


# Fourier shifts -------------------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("shift", [(0.5, 0.0), (-0.25, 1.75), (3.3, -7.9), (2.0, 0.5)])
def test_a_shift_is_the_trigonometric_interpolation(size, shift):
    x = noise(2, 3, *size)
    rows, columns = (interpolation_matrix(n, d) for n, d in zip(size, shift, strict=True))
    expected = np.einsum("am,bcmn,dn->bcad", rows, x.numpy(), columns)
    np.testing.assert_allclose(fourier_shift(x, shift).numpy(), expected, atol=1e-12)


@SIZES
@settings(max_examples=25)
@given(down=st.integers(-30, 30), right=st.integers(-30, 30))
def test_whole_shifts_are_rolls_and_nearby_ones_approach_them(size, down, right):
    x = noise(2, *size)
    rolled = x.roll((down, right), (-2, -1))
    assert torch.equal(fourier_shift(x, (down, right)), rolled)
    near = fourier_shift(x, (down + 1e-9, right - 1e-9))  # through the transform, not the roll
    torch.testing.assert_close(near, rolled, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [8, 9, 14, 15])
@settings(max_examples=25)
@given(delta=st.floats(-20, 20), angle=st.floats(0, 6.28))
def test_a_tone_moves_as_its_formula_says(n, delta, angle):
    samples = torch.arange(n, dtype=torch.float64)
    for k in range((n + 1) // 2):  # all but the Nyquist bin
        wave = torch.cos(2 * math.pi * k * samples / n + angle).expand(3, n)
        expected = torch.cos(2 * math.pi * k * (samples - delta) / n + angle).expand(3, n)
        torch.testing.assert_close(fourier_shift(wave, (0, delta)), expected, atol=1e-9, rtol=0)


@settings(max_examples=25)
@given(a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_shifts_add_up_and_keep_the_power_at_odd_sizes(a, b):
    x = noise(2, 7, 9)
    twice = fourier_shift(fourier_shift(x, (a, b)), (b, a))
    torch.testing.assert_close(twice, fourier_shift(x, (a + b, a + b)), atol=1e-10, rtol=0)
    assert float(twice.square().sum()) == pytest.approx(float(x.square().sum()))


@pytest.mark.parametrize("delta", [0.5, 0.25, 1.3])
def test_the_unpaired_nyquist_bin_is_scaled_by_a_cosine(delta):
    stripes = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4).expand(6, 8)
    torch.testing.assert_close(fourier_shift(stripes, (0, delta)), math.cos(math.pi * delta) * stripes)
    torch.testing.assert_close(fourier_shift(stripes, (delta, 0)), stripes)  # constant along that axis


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_stay_and_halves_lose_only_their_own_rounding(dtype):
    x = noise(2, 6, 7)
    moved = fourier_shift(x.to(dtype), (0.5, -0.25))
    assert moved.dtype == dtype
    error = (moved.double() - fourier_shift(x.to(dtype).double(), (0.5, -0.25))).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shift", [(1,), (1, 2, 3), (float("nan"), 0), (0, float("inf")), ("a", 0), 1])
def test_a_bad_shift_is_named(shift):
    with pytest.raises(SpectralError, match=r"fourier_shift: a shift is two finite numbers .*, got "):
        fourier_shift(torch.zeros(4, 4), shift)


def test_maps_must_be_floating_point():
    with pytest.raises(
        SpectralError, match=r"expected floating-point maps of shape .*got torch.int64 \(4, 4\)"
    ):
        fourier_shift(torch.zeros(4, 4, dtype=torch.long), (0, 1))
    with pytest.raises(SpectralError, match=r"got torch.float32 \(4,\)"):
        fourier_shift(torch.zeros(4), (0, 1))


# PSNR -----------------------------------------------------------------------------------------------------


@SIZES
def test_psnr_of_one_wrong_sample(size):
    reference = torch.zeros(1, 2, *size)
    reference[0, 0, 0, 0], reference[0, 1, -1, -1] = 3, -1  # range 4
    shifted = reference.clone()
    shifted[0, 1, 0, 0] += 2
    found = compare_moved(shifted, reference, (0, 0))
    count = 2 * size[0] * size[1]
    assert found["mse_ratio"].item() == pytest.approx(4 / count / 16)
    assert found["relative_error"].item() == pytest.approx(2 / 10**0.5)


def test_each_image_has_its_own_peak():
    x = noise(3, 2, 8, 8) * torch.tensor([1.0, 10.0, 0.01]).view(3, 1, 1, 1)
    found = compare_moved(x * 1.1, x, (0, 0))
    alone = compare_moved(x[1:2] * 1.1, x[1:2], (0, 0))
    assert found["mse_ratio"][1].item() == alone["mse_ratio"].item()
    torch.testing.assert_close(found["relative_error"], torch.full((3,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_plain_decimation_of_stripes_has_0_db_across_and_no_error_along(size):
    """Every second sample of ±1 stripes is +1, one pixel further −1; a slow wave of range 2 is the peak."""
    stripes = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(size[1] // 2)
    wave = torch.cos(2 * math.pi * torch.arange(size[1], dtype=torch.float64) / size[1])
    x = (stripes + wave).expand(1, 1, *size)
    table = measure(Decimate(), x, shifts=ONE_PIXEL).set_index(["row", "column"])["psnr_db"]
    assert table[0, 1] == pytest.approx(0, abs=1e-9)
    assert table[0, -1] == pytest.approx(0, abs=1e-9)
    assert table[1, 0] > EXACT
    assert table[-1, 0] > EXACT


def test_relative_error_and_psnr_are_the_ones_of_the_maps():
    """An independent computation from the captured maps, each site and shift."""
    x = noise(3, 3, 16, 24)
    net = nn.Sequential(circular_conv(2), nn.ReLU(), nn.MaxPool2d(2)).double()
    table = measure(net, x).set_index(["image", "site", "row", "column"])
    with torch.no_grad():
        for down, right in EQUIVARIANCE_SHIFTS:
            before, after = x, fourier_shift(x, (down, right))
            for site, total, layers in (("0", 2, net[:1]), ("2", 4, net)):
                a, b = layers(after).numpy(), layers(before).numpy()
                rows, columns = (interpolation_matrix(n, t / total) for n, t in
                                 zip(a.shape[2:], (down, right), strict=True))  # fmt: skip
                moved = np.einsum("am,bcmn,dn->bcad", rows, b, columns)
                for i in range(3):
                    row = table.loc[f"{i:04d}", site, down, right]
                    mse = ((a[i] - moved[i]) ** 2).mean()
                    assert row["psnr_db"] == pytest.approx(10 * np.log10(np.ptp(b[i]) ** 2 / mse), abs=1e-6)
                    norm = np.linalg.norm(moved[i])
                    assert row["relative_error"] == pytest.approx(np.linalg.norm(a[i] - moved[i]) / norm)


# Networks whose answer is known ---------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [(12, 12), (18, 24), (30, 18)])
def test_a_strided_convolution_is_equivariant_on_band_limited_images_alone(stride, size):
    x = noise(2, 3, *size)
    exact = measure(circular_conv(stride), band_limit(x, stride))
    assert (exact["psnr_db"] > EXACT).all()
    aliased = measure(circular_conv(stride), x)
    assert (aliased["psnr_db"] < 40).all()


@pytest.mark.parametrize("size", [(12, 12), (14, 20)])
def test_shifts_that_the_stride_divides_lose_nothing(size):
    x = noise(2, 3, *size)
    exact = measure(Decimate(), x, shifts=[(2, 0), (0, -2), (4, -6)])
    assert (exact["psnr_db"] == np.inf).all()
    assert (exact["mse_ratio"] == 0).all()
    after_conv = measure(nn.Sequential(circular_conv(), Decimate()), x, shifts=[(2, 0), (0, -4)])
    assert (after_conv["psnr_db"] > EXACT).all()


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (18, 14)])
@pytest.mark.parametrize("layer", [spectral.layers.IdealLowPass2d, spectral.layers.FLCPool2d])
def test_filters_that_leave_no_aliases_are_equivariant(layer, size):
    net = nn.Sequential(circular_conv(), layer(stride=2)).double()
    x = noise(2, 3, *size)
    assert (measure(net, x, shifts=ONE_PIXEL)["psnr_db"] > EXACT).all()
    blurred = nn.Sequential(circular_conv(), spectral.layers.BlurPool2d(4, padding_mode="circular")).double()
    found = measure(blurred, x, shifts=ONE_PIXEL)["psnr_db"]
    plain = measure(circular_conv(2), x, shifts=ONE_PIXEL)["psnr_db"]
    assert plain.mean() < found.mean() < EXACT  # less of it, not none


def test_adaptive_polyphase_sampling_moves_by_whole_samples():
    net = nn.Sequential(circular_conv(), nn.ReLU(), spectral.layers.APSPool2d(2)).double()
    x = noise(3, 3, 16, 12)
    assert (measure(net, x, shifts=[(2, 0), (-4, 2)])["psnr_db"] > EXACT).all()
    assert (measure(net, x, shifts=ONE_PIXEL)["psnr_db"] < 40).all()  # by 0 or 1, never by ½
    with torch.no_grad():
        before, after = net(x), net(x.roll(1, -1))
    errors = torch.stack([(after - before.roll(k, -1)).abs().amax((1, 2, 3)) for k in (0, 1)])
    assert (errors.amin(0) < 1e-12).all()


def test_each_axis_has_its_own_stride_and_each_site_all_before_it():
    net = nn.Sequential(circular_conv((2, 1)), circular_conv((2, 4), inside=4))
    table = measure(net, band_limit(noise(1, 3, 32, 32), 8), shifts=[(1, 1), (0.5, -3)])
    assert table.groupby("site")["total_stride"].first().to_dict() == {"0": "2x1", "1": "4x4"}
    assert table.groupby("site")["stride"].first().to_dict() == {"0": "2x1", "1": "2x4"}
    assert (table["psnr_db"] > EXACT).all()


class Enlarged(nn.Module):
    """Two samples in the place of each, and then every fourth: every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2.0)[..., ::4, ::4]


class Decoder(nn.Module):
    """Patches of 4 pixels, their map twice as large, and then every second sample: every fourth pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.patches(x), scale_factor=2.0)[..., ::2, ::2]


def halvings(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(count)))


@pytest.mark.parametrize(
    ("net", "size", "totals"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.MaxPool2d(4)), 40, ["4x4"]),
        (
            nn.Sequential(nn.Conv2d(3, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 9, 5), nn.MaxPool2d(2)),
            28,
            ["4x4"],
        ),
        (halvings(5), 48, ["2x2", "4x4", "8x8", "16x16", "32x32"]),
        (Enlarged(), 16, ["2x2"]),
        (Decoder(), 16, ["4x4", "4x4"]),
    ],
)
def test_the_total_stride_is_that_of_the_lattice_whatever_the_size(net, size, totals):
    found = measure(net, image(1, 3, size, size), shifts=[(1, 0)])
    assert found["total_stride"].tolist() == totals


def test_a_map_without_padding_moves_by_its_lattice():
    """What is far from the border moves by one sample of the pool where the image moves by four pixels."""
    x = torch.zeros(2, 1, 40, 40, dtype=torch.float64)
    x[..., 16:24, 16:24] = noise(2, 1, 8, 8)
    conv = nn.Conv2d(1, 4, 9, bias=False).double()
    with torch.no_grad():
        conv.weight[..., :3], conv.weight[..., 6:] = 0, 0
        conv.weight[..., :3, :], conv.weight[..., 6:, :] = 0, 0
    for chosen in (None, ["1"]):
        found = measure(nn.Sequential(conv, nn.MaxPool2d(4)), x, shifts=[(4, 0), (0, -4)], sites=chosen)
        assert (found["relative_error"] == 0).all()


# Tables ---------------------------------------------------------------------------------------------------


class Arranged(nn.Module):
    """A network that arranges what it takes as (B, C, H, W) itself."""

    def __init__(self, arrange: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.arrange = arrange
        self.body = nn.Sequential(circular_conv(2, 1), nn.ReLU(), nn.MaxPool2d((1, 2)))

    def forward(self, x: Any) -> Tensor:
        return self.body(self.arrange(x))


@pytest.mark.parametrize(
    ("arrange", "give"),
    [
        (torch.stack, list), (lambda x: x.permute(0, 3, 1, 2), lambda x: x.permute(0, 2, 3, 1)),
        (lambda x: x[:, None], lambda x: x[:, 0]),
    ],
    ids=["a list of images", "channels last", "no channels"],
)  # fmt: skip
def test_the_image_is_as_large_in_whichever_form_a_network_takes_it(arrange, give):
    """Total strides were told by the last axes of (B, C, H, W), which other forms don't have there."""
    x = torch.rand(2, 1, 16, 24, dtype=torch.float64)
    expected, table = measure(Arranged(lambda x: x), x), measure(Arranged(arrange), give(x))
    assert table["total_stride"].unique().tolist() == ["2x2", "2x4"]
    np.testing.assert_allclose(table["psnr_db"], expected["psnr_db"])
    scales = [site.scale for site in spectral.find_sites(Arranged(arrange), give(x))]
    assert scales == [(1, 1), (2, 2)]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = circular_conv(2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.conv(x * mask)


def test_a_mask_moves_with_its_image():
    mask = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    table = measure(Masked(), (noise(2, 3, 16, 24), mask), shifts=[(2, 0), (0, -4), (6, 2)])
    assert (table["relative_error"] < 1e-12).all()


def test_a_row_per_image_site_and_shift_in_order():
    table = measure(nn.Sequential(circular_conv(2), nn.ReLU(), nn.MaxPool2d(2)), noise(5, 3, 16, 16))
    assert len(table) == 5 * 2 * len(EQUIVARIANCE_SHIFTS)
    assert table["image"].tolist() == sorted(table["image"])
    assert table["kind"].value_counts().to_dict() == {"whole": 40, "sub-pixel": 20}
    assert set(table["model"]) == {"Sequential"}
    assert [record["name"] for record in table.attrs["sites"]] == ["0", "2"]


def test_neither_batches_nor_other_images_change_an_image():
    net = nn.Sequential(circular_conv(2), nn.ReLU(), nn.MaxPool2d(2))
    x = noise(5, 3, 16, 16)
    whole = measure(net, x, batch_size=5)
    pd.testing.assert_frame_equal(measure(net, x, batch_size=2), whole, rtol=1e-6)
    pd.testing.assert_frame_equal(measure(net, x[:2]), whole.iloc[:24], rtol=1e-6)


def test_flat_maps_are_told_apart_from_exact_ones():
    dead = nn.Sequential(circular_conv(2), nn.ReLU(), nn.MaxPool2d(2))
    nn.init.zeros_(dead[0].weight)
    nn.init.zeros_(dead[0].bias)
    x = noise(2, 3, 8, 8)
    table = measure(dead, x)
    assert table["flat"].all()
    assert table["psnr_db"].isna().all()
    assert not measure(Decimate(), x, shifts=[(2, 2)])["flat"].any()


def test_sites_without_a_shift_of_their_own_are_listed_with_the_reason():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d((3, 2), 2), nn.PixelUnshuffle(2))
    table = measure(net, image(2, 3, 18, 24))
    assert set(table["site"]) == {"0"}
    reasons = {record["name"]: record["reason"] for record in table.attrs["sites"]}
    assert reasons["0"] is None
    assert reasons["1"].startswith("its output of 4×6 is no whole fraction of the image (18×24)")
    assert "every sample is kept" in reasons["2"]


def test_a_network_without_a_site_to_compare_says_so():
    with pytest.warns(
        SpectralWarning, match=r"no site of Sequential can be compared; '0': its output of 7×7 is"
    ):
        assert measure(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), image(2, 3, 16, 16)).empty


def test_calls_of_one_module_are_sites_of_their_own():
    table = measure(ReusedPool(), image(1, 3, 64, 64))
    strides = table.groupby("site")["total_stride"].first()
    assert sorted(strides) == ["16x16", "2x2", "32x32", "4x4", "8x8"]


def test_images_are_normalised_as_measure_does_it():
    model = load_model("bundled/resnet8@random")
    images = spectral.load_images("synthetic", size=32, limit=3)
    batch = model.spectral_info.preprocessing(torch.stack([images[i] for i in range(3)]))
    chosen = {"sites": ["layer2.0.conv1"], "shifts": [(0, 1), (0.5, 0)]}
    named = measure(model, images, **chosen)
    assert named["image"].unique().tolist() == images.ids
    plain = measure(model, batch, **chosen)
    np.testing.assert_allclose(named["mse_ratio"], plain["mse_ratio"], rtol=1e-6)


def test_the_model_is_left_as_it_was_and_half_precision_works():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    x = image(2, 3, 16, 16)
    before = x.clone()
    with unchanged(net.train()):
        first = measure(net, x)
    assert torch.equal(x, before)
    pd.testing.assert_frame_equal(measure(net.eval(), x), first)  # no dropout either time
    half = measure(net.bfloat16(), x.bfloat16(), shifts=[(0, 1)])
    assert half["psnr_db"].between(0, 60).all()


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sites": ["0.conv"]}, "Sequential has no site '0.conv'"),
        ({"sites": "0"}, r"sites must be a list such as \['0'\], got the string '0'"),
        ({"shifts": []}, "shifts is empty"),
        ({"shifts": [(0, float("nan"))]}, "a shift is two finite numbers"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1, got 0"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(SpectralError, match=sentence):
        measure(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), image(1, 3, 8, 8), **options)


def test_bad_images_and_models():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    pd.testing.assert_frame_equal(measure(net, image(3, 8, 8)), measure(net, image(3, 8, 8)[None]))
    with pytest.raises(SpectralError, match=r"measure_equivariance: expected images from .* got a list"):
        measure(net, [1])
    with pytest.raises(SpectralError, match="there are no images"):
        measure(net, torch.zeros(0, 3, 8, 8))
    with pytest.raises(SpectralError, match="Conv2d has no site where resolution drops"):
        measure(nn.Conv2d(3, 4, 3), image(1, 3, 8, 8))
    assert measure(net, image(1, 3, 9, 9)).empty  # the reasons are in attrs: a survey goes on
    with pytest.raises(SpectralError, match="no site of Sequential can be compared; '0': its output of 5×5"):
        measure(net, image(1, 3, 9, 9), sites=["0"])
    with pytest.raises(SpectralError, match="site '0' has NaN or infinite values"):
        measure(net, torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(SpectralError, match="differ in size"):
        measure(net, spectral.load_images("samples", limit=12))
