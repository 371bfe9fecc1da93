"""Ideal low-pass, FLC and ASAP against transforms written out here, and the absence of aliases."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.errors import SpectralError
from spectral.layers import ASAPPool2d, FLCPool2d, IdealLowPass2d
from spectral.metrics.aliasing import compute_am_relative

QUICK = settings(max_examples=30)
SIZES = [(1, 1), (1, 7), (2, 2), (5, 7), (14, 14), (18, 10), (33, 47), (16, 24)]
STRIDES = [(1, 1), (2, 2), (3, 3), (4, 4), (2, 1)]
KINDS = [IdealLowPass2d, FLCPool2d, ASAPPool2d]


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def window(size: int) -> np.ndarray:
    """A Hamming window along the bins of an unshifted DFT, 1 at DC."""
    return 0.54 + 0.46 * np.cos(2 * np.pi * np.arange(size) / size)


def pool_by_definition(kind: type, x: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    low = reference.low_pass(x, stride)
    if kind is ASAPPool2d:
        gain = np.outer(
            *(window(n) if s > 1 else np.ones(n) for n, s in zip(x.shape[-2:], stride, strict=True))
        )
        low = reference.idft(reference.dft(low) * gain)
    return low[..., :: stride[0], :: stride[1]]


def crop_as_published(x: torch.Tensor, hamming: bool = False) -> torch.Tensor:
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
    if hamming:
        spectrum = spectrum * torch.from_numpy(np.sqrt(np.outer(np.hamming(height), np.hamming(width))))
    block = spectrum[..., int(height / 4) : int(height / 4 * 3), int(width / 4) : int(width / 4 * 3)]
    return torch.fft.ifft2(torch.fft.ifftshift(block, dim=(-2, -1)), norm="forward").real


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.integers(1, 5))
def test_equals_the_definition(kind, height, width, s_h, s_w):
    x = noise(2, height, width)
    expected = pool_by_definition(kind, x.numpy(), (s_h, s_w))
    np.testing.assert_allclose(kind((s_h, s_w))(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition_at_the_sizes_of_networks(kind):
    for size in [(112, 112), (56, 28), (33, 47)]:
        x = noise(1, *size)
        expected = pool_by_definition(kind, x.numpy(), (2, 2))
        np.testing.assert_allclose(kind()(x).numpy(), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(kind()(x.float()).numpy(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_types_are_rounded_once_at_the_end(kind, dtype):
    x = noise(2, 3, 28, 33).to(dtype)
    assert torch.equal(kind()(x), kind()(x.float()).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_that_could_alias(kind):
    for stride in STRIDES:
        for size in SIZES:
            layer, x = kind(stride), noise(2, 3, *size)
            dense = layer.dense(x)
            assert dense.shape == x.shape
            torch.testing.assert_close(dense[..., :: stride[0], :: stride[1]], layer(x), rtol=0, atol=1e-13)
            assert compute_am_relative(dense, stride).max() < 1e-12
            assert compute_am_relative(layer.dense(x.float()), stride).max() < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_tones_pass_below_the_new_nyquist_frequency_only(kind):
    n = torch.arange(24, dtype=torch.float64)
    for step in (2, 3, 4):
        for k in range(13):
            tone = torch.cos(2 * torch.pi * k * n / 24 + 0.3)
            y = kind((step, step))(tone.expand(1, 24, 24).mT)[0, :, 0]
            gain = float(2 * step * k < 24)
            gain *= window(24)[k] if kind is ASAPPool2d else 1.0
            torch.testing.assert_close(y, gain * tone[::step], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_shifts_by_the_stride_shift_the_output(kind):
    for stride in ((2, 2), (3, 3), (2, 1)):
        layer, x = kind(stride), noise(2, 3, 12, 18)
        y = layer(x.roll((stride[0], -2 * stride[1]), dims=(-2, -1)))
        torch.testing.assert_close(y, layer(x).roll((1, -2), dims=(-2, -1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("compat", [None, "paper"])
def test_flc_is_the_ideal_low_pass_up_to_the_unpaired_nyquist_bin(compat):
    for size in [(4, 4), (8, 12), (32, 16)]:
        x = noise(2, 3, *size)
        if compat:  # without power at the new Nyquist frequency the published crop is right at N ≡ 0 mod 4
            x = torch.from_numpy(reference.low_pass(x.numpy(), (2, 2)))
        torch.testing.assert_close(FLCPool2d(compat=compat)(x), IdealLowPass2d()(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("height", range(2, 20))
def test_compat_is_the_published_computation(height):
    for width in (2, 5, 8, 14, 47):
        x = noise(2, 3, height, width)
        for dtype, atol in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
            y = FLCPool2d(compat="paper")(x.to(dtype))
            torch.testing.assert_close(y.double(), crop_as_published(x), rtol=0, atol=atol)
            y = ASAPPool2d(compat="paper")(x.to(dtype))
            torch.testing.assert_close(y.double(), crop_as_published(x, True).mT, rtol=0, atol=10 * atol)


def test_what_the_published_layers_do_to_a_constant():
    # N ≡ 2 mod 4: DC lands in bin 1 on both axes, a cosine of zero mean.
    y = FLCPool2d(compat="paper")(torch.ones(1, 14, 14, dtype=torch.float64))[0]
    m = torch.arange(7, dtype=torch.float64)
    torch.testing.assert_close(y, torch.cos(2 * torch.pi * (m[:, None] + m) / 7), rtol=0, atol=1e-13)
    for size, gain in ((4, 0.77), (32, 0.998)):
        y = ASAPPool2d(compat="paper")(torch.ones(1, size, size))
        torch.testing.assert_close(y, torch.full_like(y, gain), rtol=0, atol=5e-4)


def test_compat_names_its_limits():
    for kind in (FLCPool2d, ASAPPool2d):
        layer = kind(compat="paper")
        assert "compat='paper'" in repr(layer)
        with pytest.raises(
            SpectralError, match=f"{kind.__name__}: compat='paper' leaves nothing of a side of 1"
        ):
            layer(torch.ones(1, 1, 8))
        with pytest.raises(
            SpectralError, match=f"{kind.__name__}: compat='paper' has no map before decimation"
        ):
            layer.dense(torch.ones(1, 8, 8))


def test_asap_rings_less_than_flc():
    edge = torch.zeros(1, 64, 64)
    edge[..., 32:] = 1
    overshoot = {kind: kind()(edge).max().item() - 1 for kind in (FLCPool2d, ASAPPool2d)}
    assert overshoot[FLCPool2d] > 0.05
    assert overshoot[ASAPPool2d] < 0.75 * overshoot[FLCPool2d]
