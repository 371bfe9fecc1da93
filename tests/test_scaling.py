"""Ratios are free of scale: the same numbers over the whole floating-point range, or a sentence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.measurement import measure
from spectral.metrics.aliasing import (
    compute_alias_categories,
    compute_alias_metrics,
    compute_alias_power_ratio,
    compute_am,
    compute_avr,
)
from spectral.metrics.bands import measure_bands
from spectral.metrics.spectrum import compute_power_spectrum, compute_radial_profile, log_power_spectrum
from spectral.numerics.scaling import find_scale

MAPS = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
FLOAT = st.integers(-120, 125)
DOUBLE = st.integers(-1000, 1015)


def ratios(x: Tensor) -> Tensor:
    metrics = compute_alias_metrics(x)
    categories = compute_alias_categories(x)
    channels = spectral.compute_channel_alias_ratios(x).mean(-1)
    return torch.stack(
        [*(metrics[key].double() for key in ("am_relative", "alias_power_ratio")), *categories.values(),
         channels.double()]
    )  # fmt: skip


@settings(max_examples=25)
@given(FLOAT, DOUBLE)
def test_ratios_are_the_same_at_every_amplitude(single, double):
    # a power of two loses nothing: the same to the last bit is to be expected, and rounding is let by
    torch.testing.assert_close(ratios(MAPS * 2.0**single), ratios(MAPS), rtol=1e-6, atol=1e-9)
    exact = MAPS.double()
    torch.testing.assert_close(ratios(exact * 2.0**double), ratios(exact), rtol=1e-12, atol=1e-15)


@settings(max_examples=25)
@given(st.integers(-126, 120))
def test_am_is_linear_in_the_amplitude(exponent):
    for difference in ("complex", "magnitude"):
        whole = compute_am(MAPS, difference=difference).double()
        found = compute_am(MAPS * 2.0**exponent, difference=difference).double() / 2.0**exponent
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=0)


@settings(max_examples=25)
@given(st.integers(-120, 50))
def test_bands_and_avr_at_any_amplitude_whose_squares_fit(exponent):
    metrics = ("avr", "avr_separable", "am_relative", "alias_power_ratio")
    before = measure_bands(MAPS, (2, 2), metrics=metrics).values()
    found = measure_bands(MAPS * 2.0**exponent, (2, 2), metrics=metrics).values()
    for name in metrics:
        torch.testing.assert_close(found[name], before[name], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found["power"] / 4.0**exponent, before["power"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        compute_avr(compute_power_spectrum(MAPS * 2.0**exponent)).double(),
        compute_avr(compute_power_spectrum(MAPS)).double(), rtol=1e-5, atol=0,
    )  # fmt: skip


def test_a_faint_image_beside_a_loud_one_is_not_silent():
    both = torch.stack([MAPS[0], MAPS[1] * 1e-25])
    found = measure_bands(both, (2, 2), metrics=("avr", "alias_power_ratio")).values()
    alone = measure_bands(MAPS, (2, 2), metrics=("avr", "alias_power_ratio")).values()
    assert found["power"][1] > 0
    torch.testing.assert_close(found["avr"], alone["avr"], rtol=1e-5, atol=0)
    avr = compute_avr(compute_power_spectrum(both))
    torch.testing.assert_close(avr.double(), alone["avr"], rtol=1e-5, atol=0)


def test_weights_of_any_size_give_the_same_table():
    def net(factor: float) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False), nn.ReLU(), nn.AvgPool2d(2))
        with torch.no_grad():
            layers[0].weight.mul_(factor)
        return layers

    asked = ("avr", "avr_hann", "am_relative", "alias_power_ratio", "nonaliased")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tables = [measure(net(factor), x, asked, progress=False) for factor in (1.0, 2.0**-86)]
    for one in tables:
        assert (one.loc[one["metric"] == "power", "value"] > 0).all()
    first, second = (one.loc[one["metric"].isin(asked), "value"].to_numpy() for one in tables)
    torch.testing.assert_close(torch.tensor(first), torch.tensor(second), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_what_no_type_holds_is_refused(factor):
    x = MAPS.double() * factor
    for ask in (lambda: compute_power_spectrum(x), lambda: measure_bands(x, (2, 2))):
        with pytest.raises(SpectralError, match=r"faint|overflows"):
            ask()


def test_power_is_not_negative():
    P = compute_power_spectrum(MAPS)
    P[0, 0, 0] = -1
    for ask in (compute_avr, log_power_spectrum):
        with pytest.raises(SpectralError, match="power can't be negative"):
            ask(P)


def test_profiles_of_the_largest_powers():
    P = torch.full((64, 64), 3e38)
    assert torch.isfinite(compute_radial_profile(P)).all()
    assert float(compute_avr(P)) == pytest.approx(float(compute_avr(torch.ones(64, 64))), rel=1e-6)


def test_gradients_pass_through():
    x = (MAPS * 1e25).requires_grad_()
    (slope,) = torch.autograd.grad(compute_alias_power_ratio(x).sum(), x)
    y = MAPS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(compute_alias_power_ratio(y).sum(), y)
    torch.testing.assert_close(slope * 1e25, expected, rtol=1e-4, atol=1e-7)


def test_scales_are_powers_of_two_and_usual_sizes_are_left_alone():
    x = torch.tensor([1e-45, 1e-30, 1.0, 1e9, 3e38, 0.0, torch.inf])[:, None]
    scale = find_scale(x, (1,))[:, 0]
    assert scale[2:4].tolist() == [1, 1]
    assert scale[5:].tolist() == [1, 1]
    assert torch.frexp(scale).mantissa.unique().tolist() == [0.5]
    assert ((x[[0, 1, 4], 0] / scale[[0, 1, 4]]) >= 1).all()


@pytest.mark.parametrize("amplitude", [1e-30, 1e-22, 1e20, 1e30])
def test_equivariance_and_imaging_at_every_amplitude(amplitude):
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1, bias=False), nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False))
    x = MAPS.roll(1, 0)[:, :, :, :8]
    scaled = (x.double() * amplitude).float()
    for measured, columns in (
        (spectral.measure_equivariance, ["mse_ratio", "relative_error", "psnr_db"]),
        (spectral.measure_imaging, ["value"]),
    ):
        whole, found = (measured(net, images, progress=False)[columns] for images in (x, scaled))
        assert whole.notna().all(axis=None)
        torch.testing.assert_close(
            torch.tensor(found.to_numpy()), torch.tensor(whole.to_numpy()), rtol=1e-5, atol=1e-12
        )


def test_a_place_that_is_not_finite_is_named():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.Upsample(scale_factor=2))
    x = MAPS.clone()
    x[1, 0, 2, 2] = torch.nan
    with pytest.raises(SpectralError, match="'1' has NaN or infinite values"):
        spectral.measure_imaging(net, x, progress=False)
