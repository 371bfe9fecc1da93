"""The headline alias power ratio: closed forms, invariances, and an independent reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.errors import SpectralError
from spectral.metrics.channels import compute_channel_alias_ratios, find_white_noise_ratio, split_border


@given(
    st.integers(3, 21), st.integers(3, 21), st.sampled_from([(2, 2), (3, 3), (2, 1), (1, 2), (4, 2)]),
    st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60)
def test_it_is_its_definition(height: int, width: int, stride: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((height, width)).cumsum(0).cumsum(1)
    found = compute_channel_alias_ratios(torch.from_numpy(x)[None], stride)
    assert float(found) == pytest.approx(reference.channel_alias_ratio(x, stride), rel=1e-7, abs=1e-9)


def test_a_phase_and_a_size_are_those_of_the_site() -> None:
    x = np.random.default_rng(0).standard_normal((12, 14))
    found = compute_channel_alias_ratios(torch.from_numpy(x)[None], 2, (1, 0))
    assert float(found) == pytest.approx(reference.channel_alias_ratio(x, (2, 2), (1, 0)), rel=1e-9)


@pytest.mark.parametrize("size", [16, 20, 18])
@pytest.mark.parametrize(("bin_", "expected"), [(1, 0.0), (3, 0.0), (6, 1.0), (7, 1.0)])
def test_a_tone_is_either_an_alias_or_not(size: int, bin_: int, expected: float) -> None:
    # Symmetric about its ends, so that its borders meet exactly. Nyquist lies between bins 3 and 6.
    row = torch.cos(2 * math.pi * bin_ / size * (torch.arange(size, dtype=torch.float64) + 0.5))
    tone = row.expand(1, size, size)
    _, smooth = split_border(tone)
    assert float(smooth.abs().max()) < 1e-12
    assert float(compute_channel_alias_ratios(tone)) == pytest.approx(expected, abs=1e-9)


def test_a_tone_at_the_new_nyquist_frequency_counts_half_in_both() -> None:
    places = torch.arange(16, dtype=torch.float64) + 0.5
    low, nyquist = (torch.cos(2 * math.pi * k / 16 * places).expand(1, 16, 16) for k in (2, 4))
    # Sampled from 0 in steps of 2 the tone at bin 4 of 16 is cos(π/4)·(−1)^j: mean square 1/2 as the other's.
    assert float(compute_channel_alias_ratios(low + nyquist)) == pytest.approx(0.25 / (0.5 + 0.25))


def test_a_tone_at_both_new_nyquist_frequencies_counts_a_quarter() -> None:
    places = torch.arange(8, dtype=torch.float64) + 0.5
    low, nyquist = (torch.cos(2 * math.pi * k / 8 * places) for k in (1, 2))
    ratio = compute_channel_alias_ratios((torch.outer(low, low) + torch.outer(nyquist, nyquist))[None])
    assert float(ratio) == pytest.approx(0.25 / (1 + 0.25))


def test_a_constant_that_rounding_has_spread_has_no_ratio() -> None:
    steps = torch.randint(0, 2, (1, 64, 64), generator=torch.Generator().manual_seed(0))
    maps = 1 + torch.finfo(torch.float32).eps * steps
    assert bool(compute_channel_alias_ratios(maps).isnan())
    assert not compute_channel_alias_ratios(1 + 100 * (maps - 1)).isnan()


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 999))
@settings(max_examples=30)
def test_scale_and_mean_do_not_matter(scale: float, offset: float, seed: int) -> None:
    x = torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    same = compute_channel_alias_ratios(scale * x + offset)
    torch.testing.assert_close(same, compute_channel_alias_ratios(x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-5])
def test_a_mean_much_larger_than_the_rest_costs_no_digits(share: float) -> None:
    noise = torch.randn(2, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    maps = 1.7 + share * noise
    expected = compute_channel_alias_ratios(maps.double())
    torch.testing.assert_close(compute_channel_alias_ratios(maps).double(), expected, rtol=1e-5, atol=0)


def test_loud_channels_do_not_outweigh_others_and_constant_ones_have_no_ratio() -> None:
    x = torch.randn(1, 3, 16, 16)
    x[:, 2] = 7
    alone = compute_channel_alias_ratios(x[:, :1])
    ratios = compute_channel_alias_ratios(x * torch.tensor([1.0, 1e4, 1.0]).view(3, 1, 1))
    torch.testing.assert_close(ratios[:, :1], alone)
    assert ratios.isnan().tolist() == [[False, False, True]]


def test_what_a_border_adds_is_no_alias() -> None:
    # A tone that folds nowhere, on a slope: repeated it is a sawtooth, whose jump has all frequencies.
    places = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    map_ = (torch.cos(2 * math.pi * 5 * places) + 4 * places).expand(1, 64, 64)
    assert float(compute_channel_alias_ratios(map_)) < 1e-4
    spectrum = torch.fft.fft2(map_ - map_.mean()).abs().square()[0]
    assert float(spectrum[0, 16:49].sum() / spectrum.sum()) > 1e-2  # with the border


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (1, 12), (5, 6, 7)])
def test_the_two_parts_add_up_and_the_smooth_one_solves_poissons_equation(shape: tuple[int, ...]) -> None:
    axes = len(shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    periodic, smooth = split_border(x, axes)
    torch.testing.assert_close(periodic + smooth, x)
    laplacian = sum(smooth.roll(d, a) - smooth for a in range(1, axes + 1) for d in (1, -1))
    expected = torch.zeros_like(x)
    for axis in range(1, axes + 1):
        n = x.shape[axis]
        if n > 1:
            jump = x.select(axis, n - 1) - x.select(axis, 0)
            expected.select(axis, 0).add_(jump)
            expected.select(axis, n - 1).sub_(jump)
    torch.testing.assert_close(laplacian, expected, rtol=0, atol=1e-10)
    assert float(smooth.mean().abs()) < 1e-12


@pytest.mark.parametrize("extents", [(4, 4), (16, 16), (15, 12), (9, 9), (14, 14)])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 3), (4, 4)])
def test_white_noise_lies_at_its_floor(extents: tuple[int, int], stride: tuple[int, int]) -> None:
    # By enumeration instead of by drawing: the expectation is a sum over impulses.
    floor = find_white_noise_ratio(extents, stride)
    alias = whole = 0.0
    for i, j in itertools.product(*map(range, extents)):
        x = np.zeros(extents)
        x[i, j] = 1
        x -= x.mean()
        spectrum = np.fft.fft2(x)
        for axis, (n, s) in enumerate(zip(extents, stride, strict=True)):
            cut = (np.abs(np.fft.fftfreq(n)) * 2 * s >= 1 - 1e-12) & (s > 1)
            spectrum = np.where(np.expand_dims(cut, 1 - axis), 0, spectrum)
        kept, low = (m[:: stride[0], :: stride[1]] for m in (x, np.fft.ifft2(spectrum).real))
        weights = np.ones(kept.shape)
        for axis, s in enumerate(stride):
            if s > 1 and kept.shape[axis] % 2 == 0:
                index = [slice(None)] * 2
                index[axis] = kept.shape[axis] // 2
                weights[tuple(index)] *= 0.5
        alias += float((weights * np.abs(np.fft.fft2(kept - low)) ** 2).sum())
        whole += float((weights * np.abs(np.fft.fft2(kept)) ** 2).sum())
    assert floor == pytest.approx(alias / whole, rel=1e-9)


@pytest.mark.parametrize("size", [8, 14, 32])
def test_noise_that_has_borders_lies_a_little_below_its_floor(size: int) -> None:
    maps = torch.randn(2000, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = 10 * np.log10(
        float(compute_channel_alias_ratios(maps).median()) / find_white_noise_ratio((size,) * 2, 2)
    )
    assert -0.3 < found < -0.05


def test_a_single_sample_has_no_noise() -> None:
    assert math.isnan(find_white_noise_ratio((1, 1), 2))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1e307), (torch.float64, 1e-300), (torch.float32, 1e37), (torch.float16, 1e3),
     (torch.bfloat16, 1e37)],
)  # fmt: skip
def test_the_two_parts_of_maps_of_any_size_and_type(dtype: torch.dtype, scale: float) -> None:
    x = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    periodic, smooth = split_border((x * scale).to(dtype))
    assert periodic.dtype == smooth.dtype == dtype
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(smooth.double() / scale, split_border(x)[1], atol=tolerance, rtol=0)
    torch.testing.assert_close((periodic.double() + smooth.double()) / scale, x, atol=tolerance, rtol=0)


def test_half_types_and_gradients() -> None:
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    compute_channel_alias_ratios(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    half = compute_channel_alias_ratios(x.detach().bfloat16())
    torch.testing.assert_close(half, compute_channel_alias_ratios(x.detach().bfloat16().float()))


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(SpectralError, match="stride must be ≥ 1"):
        compute_channel_alias_ratios(torch.zeros(1, 4, 4), 0)
    with pytest.raises(SpectralError, match="NaN or infinite"):
        compute_channel_alias_ratios(torch.full((1, 4, 4), torch.inf))


def test_the_level_of_white_noise_of_a_long_signal_needs_no_matrix():
    """Half of its power folds; the explicit matrix of this length would take 80 gigabytes."""
    assert find_white_noise_ratio((1, 100_000), (1, 2)) == pytest.approx(0.5, abs=1e-4)
    assert find_white_noise_ratio((1, 99_999), (1, 3)) == pytest.approx(2 / 3, abs=1e-4)
