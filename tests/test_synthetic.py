from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from spectral import synthetic
from spectral.errors import SpectralError
from spectral.synthetic import (
    as_size,
    exact_bin_frequencies,
    make_checkerboard_image,
    make_constant_image,
    make_dead_leaves_image,
    make_sinusoidal_image,
    make_white_noise_image,
)

SIZES = [1, 2, 7, 8, (1, 5), (5, 1), (6, 9), (9, 6)]


def power(image: torch.Tensor) -> np.ndarray:
    """Power of the first channel, in numpy and float64."""
    return np.abs(np.fft.fft2(image[0].double().numpy())) ** 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        make_constant_image,
        make_checkerboard_image,
        lambda size, channels: make_sinusoidal_image(size, 0.3, "diagonal", channels),
        lambda size, channels: make_white_noise_image(size, 3, channels),
        lambda size, channels: make_dead_leaves_image(size, 3, channels=channels),
    ],
)
def test_images_are_float32_in_the_unit_range_at_any_size(make, size, channels):
    image = make(size, channels=channels)
    height, width = (size, size) if isinstance(size, int) else size
    assert image.shape == (channels, height, width)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert 0 <= image.min() <= image.max() <= 1


def test_channels_do_not_share_memory():
    image = make_constant_image(4)
    image[0] += 1
    assert image[1].max() == 0.5


@pytest.mark.parametrize("size", [5, (6, 9)])
def test_constant_has_its_power_at_dc_alone(size):
    spectrum = power(make_constant_image(size, value=0.25))
    height, width = as_size(size)
    assert spectrum[0, 0] == pytest.approx((0.25 * height * width) ** 2)
    spectrum[0, 0] = 0
    assert spectrum.max() < 1e-20


def test_checkerboard_has_its_power_in_the_corner_alone():
    spectrum = power(make_checkerboard_image((6, 8), amplitude=1, mean=0))
    assert spectrum[3, 4] == pytest.approx(48**2)
    spectrum[3, 4] = 0
    assert spectrum.max() < 1e-20


def test_checkerboard_alternates_at_odd_sizes():
    image = make_checkerboard_image((3, 5), amplitude=0.25, mean=0.5)[0]
    assert image[0, 0] == 0.75
    assert torch.equal(image[1:], 1 - image[:-1])
    assert torch.equal(image[:, 1:], 1 - image[:, :-1])


@pytest.mark.parametrize("size", [(8, 12), (9, 15), (32, 32)])
@pytest.mark.parametrize("axis", ["x", "y", "diagonal"])
def test_exact_bins_hold_all_the_power(size, axis):
    f_u, f_v = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :]
    radius = np.hypot(2 * f_u, 2 * f_v)
    frequencies = exact_bin_frequencies(size, axis)
    assert frequencies == sorted(frequencies)
    for frequency in frequencies:
        spectrum = power(make_sinusoidal_image(size, frequency, axis, amplitude=1, mean=0))
        occupied = spectrum > 1e-9 * spectrum.max()
        assert occupied.sum() <= 2
        np.testing.assert_allclose(radius[occupied], frequency, rtol=1e-12)
        rows, columns = np.nonzero(occupied)
        assert (axis == "x") == (set(rows) == {0})
        assert (axis == "y") == (set(columns) == {0})


def test_exact_bins_reach_from_the_lowest_to_nyquist():
    assert exact_bin_frequencies(10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert exact_bin_frequencies(5) == pytest.approx([0.4, 0.8])
    assert exact_bin_frequencies((4, 10), "y") == [0.5, 1.0]
    assert exact_bin_frequencies(4, "diagonal") == pytest.approx([math.sqrt(2) / 2, math.sqrt(2)])
    assert exact_bin_frequencies(1) == []


def test_frequency_counts_half_cycles_per_pixel():
    image = make_sinusoidal_image((1, 40), frequency=0.1, channels=1, amplitude=1, mean=0)[0, 0]
    assert image[0] == 1
    assert image[10] == pytest.approx(-1)
    assert image[20] == pytest.approx(1)


def test_phase_moves_the_wave():
    wave = make_sinusoidal_image(8, 0.5, phase=math.pi / 2, amplitude=1, mean=0)[0, 0]
    np.testing.assert_allclose(wave, [0, -1, 0, 1] * 2, atol=1e-6)


def test_sine_at_nyquist_is_the_checkerboard_on_the_diagonal():
    wave = make_sinusoidal_image(8, math.sqrt(2), "diagonal")
    torch.testing.assert_close(wave, make_checkerboard_image(8))


def test_white_noise_has_flat_power_and_the_variance_of_its_range():
    images = [make_white_noise_image(64, seed, amplitude=0.3, mean=0) for seed in range(8)]
    mean_power = np.mean([power(image) for image in images], axis=0) / 64**2
    assert mean_power.mean() == pytest.approx(0.3**2 / 3, rel=0.05)
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    low, high = mean_power[radius < 0.25].mean(), mean_power[radius >= 0.25].mean()
    assert low == pytest.approx(high, rel=0.1)


def test_noise_channels_are_independent():
    image = make_white_noise_image(128, 0)
    correlation = np.corrcoef(image.flatten(1).numpy())
    assert abs(correlation[0, 1]) < 5 / 128


@pytest.mark.parametrize("make", [make_white_noise_image, make_dead_leaves_image])
def test_seed_alone_decides(make):
    assert torch.equal(make((20, 30), 7), make((20, 30), 7))
    assert not torch.equal(make((20, 30), 7), make((20, 30), 8))


def test_dead_leaves_have_the_spectral_slope_of_photographs():
    size = 128
    window = np.outer(np.hanning(size), np.hanning(size))
    spectra = []
    for seed in range(10):
        gray = make_dead_leaves_image(size, seed).mean(0).double().numpy()
        spectra.append(np.abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2)
    spectrum = np.mean(spectra, axis=0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    edges = np.geomspace(3 / size, 0.45, 9)
    bands = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    slope, _ = np.polyfit(
        [np.log(frequency[band]).mean() for band in bands],
        [np.log(spectrum[band].mean()) for band in bands],
        deg=1,
    )
    assert 1.5 < -slope < 2.7


def test_dead_leaves_are_coloured_with_correlated_channels():
    correlations = [
        np.corrcoef(make_dead_leaves_image(64, seed).flatten(1).numpy())[0, 1] for seed in range(5)
    ]
    assert 0.5 < np.mean(correlations) < 0.99


def test_radii_follow_the_power_law():
    # Among leaves with their centre in the image: P(r > 2) = (2⁻² − R⁻²) / (1 − R⁻²) for radii in [1, R].
    y, x, radius = synthetic._scatter_leaves(np.random.default_rng(0), 200, 300, 1.0, 10.0)
    inside = (y >= 0) & (y < 200) & (x >= 0) & (x < 300)
    expected = (2**-2 - 10**-2) / (1 - 10**-2)
    error = math.sqrt(expected / inside.sum())
    assert (radius[inside] > 2).mean() == pytest.approx(expected, abs=4 * error)
    assert radius.min() >= 1
    assert radius.max() <= 10


def test_leaves_cover_the_image():
    leaves = synthetic._scatter_leaves(np.random.default_rng(1), 150, 150, 1.0, 75.0)
    bare = (synthetic._topmost_leaf(*leaves, 150, 150) < 0).mean()
    assert bare < 0.01


def test_topmost_leaf_agrees_with_painting_one_by_one():
    rng = np.random.default_rng(2)
    y, x, radius = rng.uniform(-5, 25, 60), rng.uniform(-5, 35, 60), rng.uniform(0.5, 8, 60)
    rows, columns = np.mgrid[:20, :30] + 0.5
    expected = np.full((20, 30), -1)
    for leaf in range(60):
        expected[(rows - y[leaf]) ** 2 + (columns - x[leaf]) ** 2 <= radius[leaf] ** 2] = leaf
    np.testing.assert_array_equal(synthetic._topmost_leaf(y, x, radius, 20, 30), expected)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "32", None, (3,), (3, 0), (1, 2, 3), (2.0, 2)])
def test_bad_sizes_are_refused(size):
    with pytest.raises(SpectralError, match="size must be a whole number ≥ 1"):
        make_constant_image(size)


@pytest.mark.parametrize("frequency", [math.nan, math.inf, -math.inf])
def test_frequency_must_be_finite(frequency):
    with pytest.raises(SpectralError, match="frequency must be a finite number"):
        make_sinusoidal_image(8, frequency)


@pytest.mark.parametrize(("frequency", "axis"), [(1.01, "x"), (-0.1, "y"), (1.5, "diagonal")])
def test_frequency_beyond_nyquist_would_alias(frequency, axis):
    with pytest.raises(SpectralError, match="frequency must be a normalised radius between 0 and"):
        make_sinusoidal_image(8, frequency, axis)


@pytest.mark.parametrize(
    "call", [lambda axis: make_sinusoidal_image(8, 0.5, axis), lambda axis: exact_bin_frequencies(8, axis)]
)
def test_unknown_axis_offers_the_nearest(call):
    with pytest.raises(
        SpectralError, match=r"axis must be one of x, y, diagonal, got 'diag'; nearest: 'diagonal'"
    ):
        call("diag")


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(SpectralError, match="seed must be a whole number"):
        make_white_noise_image(4, seed)


@pytest.mark.parametrize("channels", [0, 1.5])
def test_bad_channels_are_refused(channels):
    with pytest.raises(SpectralError, match="channels must be a whole number"):
        make_checkerboard_image(4, channels=channels)


def test_values_must_be_finite():
    with pytest.raises(SpectralError, match="value must be a finite number"):
        make_constant_image(4, value=math.nan)


@pytest.mark.parametrize(("r_min", "r_max"), [(0, 5), (5, 5), (6, 5), (-1, None)])
def test_radii_must_be_in_order(r_min, r_max):
    with pytest.raises(SpectralError, match="radii must satisfy"):
        make_dead_leaves_image(16, 0, r_min=r_min, r_max=r_max)
