"""Blur, wavelet and learned filters: independent computations, frequency responses, alias power."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d as TimmBlurPool2d

from spectral.layers import (
    LAYERS,
    WAVELETS,
    BlurPool2d,
    LearnedBlurPool2d,
    MaxBlurPool2d,
    WaveletPool2d,
    make_pool,
)
from spectral.metrics.aliasing import compute_alias_power_ratio

FILTERS = [name for name in LAYERS if name.startswith(("blurpool", "wavelet"))]
LOW_PASS = [*FILTERS, "learned", "flc", "asap", "ideal"]


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def dense_map(name: str, x: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    return make_pool(name, x.shape[1], stride).double().dense(x)


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (4, 4), (2, 1)])
@pytest.mark.parametrize("name", LOW_PASS)
def test_every_low_pass_lowers_the_alias_power(name, stride):
    x = noise(1, 64, 45, 60)  # many channels: the share of a single map scatters
    dense = dense_map(name, x, stride)
    layer = make_pool(name, 64, stride).double()
    torch.testing.assert_close(dense[..., :: stride[0], :: stride[1]], layer(x), rtol=0, atol=1e-12)
    before, after = compute_alias_power_ratio(x, stride), compute_alias_power_ratio(dense, stride)
    if name == "blurpool-1":  # no filter at all
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    else:  # a filter designed for stride 2 has little left to take away at 4
        assert after < {2: 0.67, 3: 0.98, 4: 0.9999}[stride[0]] * before


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (4, 4), (2, 1)])
def test_a_longer_binomial_leaves_less_to_alias(stride):
    x = noise(1, 64, 45, 60)
    ratios = [compute_alias_power_ratio(dense_map(f"blurpool-{k}", x, stride), stride) for k in range(1, 8)]
    assert all(a > b for a, b in itertools.pairwise(ratios))


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("build", [BlurPool2d, WaveletPool2d, LearnedBlurPool2d])
def test_circular_shifts_by_the_stride_shift_the_output(build, stride):
    layer = build(3, stride=stride, padding_mode="circular").double()
    x = noise(2, 3, 12, 18)
    y = layer(x.roll((stride[0], -2 * stride[1]), dims=(-2, -1)))
    torch.testing.assert_close(y, layer(x).roll((1, -2), dims=(-2, -1)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_blur_equals_timm_at_odd_kernels(kernel_size):
    for size in [(8, 8), (13, 10), (56, 28)]:
        x = noise(2, 4, *size).float()
        expected = TimmBlurPool2d(4, kernel_size, 2)(x)
        torch.testing.assert_close(BlurPool2d(4, kernel_size)(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_blur_as_products_in_every_type(dtype, memory_format):
    layer = BlurPool2d(3, 5, (2, 1))
    x = noise(2, 3, 9, 10).to(dtype).contiguous(memory_format=memory_format)
    expected = layer(x.double())
    layer.as_products = True
    tolerance = 4 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelet_is_the_ll_band_at_unit_gain(wavelet):
    x = noise(1, 2, 32, 48)
    # A wavelet's own DC gain is 2 over both axes.
    (ll, _) = pywt.dwt2(x.numpy(), wavelet, mode="periodization")
    y = WaveletPool2d(2, wavelet, padding_mode="circular")(x)
    np.testing.assert_allclose(y.numpy(), ll / 2, rtol=0, atol=1e-6)
    inside = WaveletPool2d(2, wavelet)(x)[..., 6:-6, 6:-6]  # away from the borders the mode doesn't matter
    torch.testing.assert_close(inside, y[..., 6:-6, 6:-6], rtol=0, atol=1e-12)


def test_wavelet_names_and_taps():
    assert torch.equal(WaveletPool2d(3).kernel, torch.full((3, 1, 2, 2), 0.25))
    assert torch.equal(WaveletPool2d(3, "db1").kernel, WaveletPool2d(3, "haar").kernel)
    for wavelet in WAVELETS:
        kernel = WaveletPool2d(1, wavelet).kernel
        assert kernel.sum().item() == pytest.approx(1, abs=2e-7)
        assert kernel.shape[-1] == len(pywt.Wavelet(wavelet).dec_lo)


@pytest.mark.parametrize("pool_size", range(1, 8))
def test_max_blur_is_the_maximum_of_each_window_then_the_blur(pool_size):
    before, after = (pool_size - 1) // 2, pool_size // 2
    for size in [(1, 1), (1, 7), (6, 5), (9, 12)]:
        x = noise(2, 3, *size) - 5  # negative throughout: a border of zeros would show
        peaks = torch.empty_like(x)
        for i, j in itertools.product(range(size[0]), range(size[1])):
            window = x[..., max(0, i - before) : i + after + 1, max(0, j - before) : j + after + 1]
            peaks[..., i, j] = window.amax((-2, -1))
        for stride in (2, (2, 1)):
            y = MaxBlurPool2d(3, pool_size, 5, stride, "replicate")(x)
            expected = BlurPool2d(3, 5, stride, "replicate")(peaks)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", range(1, 8))
def test_learned_blur_starts_as_the_binomial(kernel_size):
    x = noise(2, 3, 9, 10)
    for stride in (2, (3, 1)):
        learned = LearnedBlurPool2d(3, kernel_size, stride)
        torch.testing.assert_close(learned(x), BlurPool2d(3, kernel_size, stride)(x), rtol=0, atol=1e-6)
    assert list(learned.state_dict()) == ["logits"]


def gains(kernel: torch.Tensor) -> torch.Tensor:
    """|H| of each kernel (C, 1, k, k) over 16 × 16 frequencies; [.., 0, 0] is DC."""
    return torch.fft.fft2(kernel.detach().double()[:, 0], s=(16, 16)).abs()


def test_training_ruins_plain_taps_but_not_these():
    # A task that asks for a high-pass: reproduce the finest checkerboard, ignore the mean.
    torch.manual_seed(0)
    board = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)).expand(2, 1, 16, 16)
    plain = BlurPool2d(1).kernel.clone().requires_grad_()
    learned = LearnedBlurPool2d(1, (3, 3), stride=1)
    start = gains(plain)
    optimizer = torch.optim.Adam([plain, learned.logits], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        x = board + torch.randn(2, 1, 1, 1)
        for y in (F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), plain), learned(x)):
            (y - board).square().mean().backward()
        optimizer.step()
    assert not torch.equal(gains(learned.kernel), start)  # it was trained
    assert gains(plain)[0, 8, 8] > 2 * gains(plain)[0, 0, 0]  # no low-pass any more
    assert learned.kernel.min() >= 0
    assert gains(learned.kernel)[0, 0, 0].item() == pytest.approx(1, abs=1e-6)
    assert gains(learned.kernel).max() <= 1 + 1e-6


def test_learned_blur_keeps_its_promise_for_any_logits():
    layer = LearnedBlurPool2d(4, 5)
    with torch.no_grad():
        layer.logits.copy_(10 * noise(4, 1, 5, 5))
    assert layer.kernel.min() >= 0
    torch.testing.assert_close(gains(layer.kernel)[:, 0, 0], torch.ones(4).double(), rtol=0, atol=1e-6)
    assert gains(layer.kernel).max() <= 1 + 1e-6
    assert not torch.allclose(layer.kernel[0], layer.kernel[1])  # a filter per channel
    layer(noise(1, 4, 6, 6).float()).square().sum().backward()
    assert (layer.logits.grad.abs().sum((1, 2, 3)) > 0).all()
