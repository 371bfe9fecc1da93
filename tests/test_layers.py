"""BlurPool2d against an independent computation, its exact constants and its frequency response."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.errors import SpectralError
from spectral.layers import BlurPool2d

QUICK = settings(max_examples=40)
MODES = ["zeros", "reflect", "replicate", "circular"]
KERNELS = range(1, 8)
BINOMIAL = {
    1: [1], 2: [1, 1], 3: [1, 2, 1], 4: [1, 3, 3, 1], 5: [1, 4, 6, 4, 1], 6: [1, 5, 10, 10, 5, 1],
    7: [1, 6, 15, 20, 15, 6, 1],
}  # fmt: skip


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel_size", KERNELS)
def test_equals_the_reference(mode, kernel_size):
    sizes = [(1, 1), (1, 5), (2, 2), (3, 2), (7, 9), (8, 8)]
    for size, stride in itertools.product(sizes, [1, 2, 3, (2, 1)]):
        x = noise(2, 3, *size)
        pair = stride if isinstance(stride, tuple) else (stride, stride)
        expected = reference.blur_pool(x, kernel_size, pair, mode)
        layer = BlurPool2d(3, kernel_size, stride, mode)
        y = layer(torch.from_numpy(x))
        assert y.shape[-2:] == (math.ceil(size[0] / pair[0]), math.ceil(size[1] / pair[1]))
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(layer(torch.from_numpy(x[0])).numpy(), expected[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(layer(torch.from_numpy(x).float()).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("as_products", [False, True])
@QUICK
@given(
    st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12),
    st.sampled_from(MODES),
)  # fmt: skip
def test_any_combination_equals_the_reference(as_products, kernel_size, s_h, s_w, height, width, mode):
    x = noise(1, 2, height, width)
    layer = BlurPool2d(2, kernel_size, (s_h, s_w), mode)
    layer.as_products = as_products
    y = layer(torch.from_numpy(x))
    np.testing.assert_allclose(
        y.numpy(), reference.blur_pool(x, kernel_size, (s_h, s_w), mode), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel_size", KERNELS)
def test_a_constant_stays_that_constant(mode, kernel_size):
    for size, stride in itertools.product([(1, 1), (2, 3), (7, 6), (9, 9)], [1, 2, 3]):
        y = BlurPool2d(1, (kernel_size, kernel_size), stride, mode)(torch.full((1, 1, *size), 0.75))
        assert torch.equal(y, torch.full_like(y, 0.75))


@pytest.mark.parametrize("kernel_size", range(2, 8))
def test_zero_padding_darkens_the_border_only(kernel_size):
    y = BlurPool2d(1, kernel_size, 2, "zeros").dense(torch.ones(1, 1, 16, 16))[0, 0]
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    inside = y[before : 16 - after, before : 16 - after]
    assert torch.equal(inside, torch.ones_like(inside))
    assert (y == 1).sum() == inside.numel()
    assert y.max() == 1


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_state_is_one_exact_kernel(kernel_size):
    layer = BlurPool2d(3, kernel_size)
    assert list(layer.state_dict()) == ["kernel"]
    assert list(layer.parameters()) == []
    taps = torch.tensor(BINOMIAL[kernel_size], dtype=torch.float64) / 2 ** (kernel_size - 1)
    expected = (taps[:, None] * taps).expand(3, 1, kernel_size, kernel_size)
    assert torch.equal(layer.kernel.double(), expected)
    # Binomials over a power of two are exact in every float type, so casting a model changes nothing.
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(copy.deepcopy(layer).to(dtype).kernel.double(), expected)
    other = BlurPool2d(3, kernel_size, padding_mode="zeros", stride=3)
    other.load_state_dict(layer.state_dict(), strict=True)


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_gain_falls_as_a_power_of_the_cosine(kernel_size):
    # Each factor [½, ½] has gain |cos(πf)|; along a circle of 16 samples a tone keeps its shape.
    n = torch.arange(16, dtype=torch.float64)
    layer = BlurPool2d(1, (kernel_size, kernel_size), 1, "circular")
    for k in range(9):
        x = torch.cos(2 * torch.pi * k * n / 16).expand(1, 1, 16, 16)
        gain = torch.fft.fft(layer(x)[0, 0, 0])[k].abs() / torch.fft.fft(x[0, 0, 0])[k].abs()
        assert gain.item() == pytest.approx(abs(math.cos(math.pi * k / 16)) ** (kernel_size - 1), abs=1e-14)


def test_gain_at_the_new_nyquist_frequency_as_documented():
    for kernel_size, gain in ((2, 0.707), (3, 0.5), (4, 0.354), (5, 0.25)):
        assert math.cos(math.pi / 4) ** (kernel_size - 1) == pytest.approx(gain, abs=5e-4)


def test_checkerboard_vanishes():
    y, x = torch.arange(8)[:, None], torch.arange(8)[None]
    board = (1.0 - 2 * ((x + y) % 2)).expand(1, 2, 8, 8)
    for mode in ("reflect", "circular"):
        for kernel_size in (3, 5, 7) if mode == "reflect" else range(2, 8):
            assert BlurPool2d(2, kernel_size, 2, mode)(board).abs().max() == 0


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_sample_zero_stays_on_the_grid(kernel_size):
    # Stride s keeps samples 0, s, 2s, … of the same layer with stride 1.
    x = torch.from_numpy(noise(2, 3, 9, 10))
    for mode in MODES:
        dense = BlurPool2d(3, (kernel_size, kernel_size), 1, mode)(x)
        torch.testing.assert_close(
            BlurPool2d(3, kernel_size, 2, mode).dense(x), dense, rtol=1e-13, atol=1e-14
        )
        strided = BlurPool2d(3, kernel_size, (3, 2), mode)(x)
        torch.testing.assert_close(strided, dense[..., ::3, ::2], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_dtype_follows_the_input(dtype, mode):
    for shape in [(2, 3, 8, 8), (3, 8, 7), (1, 3, 1, 1), (3, 2, 2)]:
        check_dtype(torch.from_numpy(noise(*shape)).to(dtype), mode)


def check_dtype(x, mode):
    dtype = x.dtype
    y = BlurPool2d(3, 5, 2, mode)(x)
    assert y.dtype == dtype
    expected = reference.blur_pool(x.double().numpy(), 5, (2, 2), mode)
    np.testing.assert_allclose(y.double().numpy(), expected, atol=8 * torch.finfo(dtype).eps)


def test_channels_do_not_mix_and_batches_stay_apart():
    x = torch.zeros(2, 3, 8, 8)
    x[1, 2] = 1
    y = BlurPool2d(3)(x)
    assert torch.equal(y[1, 2], torch.ones(4, 4))
    assert y.sum() == 16


def test_empty_batch():
    assert BlurPool2d(3)(torch.zeros(0, 3, 5, 5)).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("mode", MODES)
def test_gradient(mode):
    x = torch.from_numpy(noise(1, 1, 2, 5)).requires_grad_()  # two rows: the pad is larger than the map
    assert torch.autograd.gradcheck(BlurPool2d(1, 5, 2, mode).double(), (x,))


@pytest.mark.parametrize("mode", MODES)
def test_products_give_the_same_map_and_gradient(mode):
    for size in ((1, 1), (2, 3), (9, 10)):  # the pad of a 5-tap kernel is larger than the first two
        layer = BlurPool2d(3, (5, 2), (2, 1), mode)
        with torch.inference_mode():  # what is cached here must serve gradients below
            layer.as_products = True
            layer(torch.from_numpy(noise(2, 3, *size)).float())
        answers = []
        for layer.as_products in (False, True):
            x = torch.from_numpy(noise(2, 3, *size)).float().requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            answers.append((y.detach(), x.grad, layer(x.detach()[0]).detach()))
        for direct, product in zip(*answers, strict=True):
            torch.testing.assert_close(product, direct, rtol=1e-5, atol=1e-6)


def test_channels_last_gives_the_same():
    x = torch.from_numpy(noise(2, 4, 9, 9))
    layer = BlurPool2d(4)
    torch.testing.assert_close(
        layer(x.contiguous(memory_format=torch.channels_last)), layer(x), rtol=1e-13, atol=1e-14
    )


def test_equals_the_published_layer_where_it_is_installed():
    published = pytest.importorskip("antialiased_cnns", reason="the `antialiased` extra is not installed")
    x = torch.from_numpy(noise(1, 4, 12, 13)).float()
    names = {"reflect": "reflect", "replicate": "replicate", "zeros": "zero"}
    for kernel_size in KERNELS:
        for mode, name in names.items():
            theirs = published.BlurPool(4, pad_type=name, filt_size=kernel_size, stride=2)
            torch.testing.assert_close(
                BlurPool2d(4, kernel_size, 2, mode)(x), theirs(x), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("mode", MODES)
def test_one_size_for_each_axis(mode):
    x = noise(1, 2, 9, 10)
    for sizes, stride in (((3, 2), (2, 1)), ((1, 5), (2, 2)), ((4, 3), (1, 1))):
        y = BlurPool2d(2, sizes, stride, mode)(torch.from_numpy(x))
        expected = reference.blur_pool(x, sizes, stride, mode)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_repr_names_the_arguments():
    assert "8, kernel_size=5, stride=(2, 1), padding_mode='zeros'" in repr(BlurPool2d(8, 5, (2, 1), "zeros"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"channels": 0}, "channels must be ≥ 1, got 0"),
        ({"kernel_size": 0}, "kernel_size must be 1 to 7, got 0; give a whole number or 2 of them"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be 1 to 7, got \(3, 0\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be 1 to 7, got \(3, 3, 3\)"),
        ({"kernel_size": True}, "kernel_size must be 1 to 7, got True"),
        ({"kernel_size": 8}, "kernel_size must be 1 to 7, got 8"),
        ({"kernel_size": 3.0}, "kernel_size must be 1 to 7, got 3.0"),
        ({"stride": 0}, "stride must be ≥ 1 on every axis, got 0"),
        ({"stride": (2, 0)}, r"stride must be ≥ 1 on every axis, got \(2, 0\)"),
        ({"stride": (2, 2, 2)}, r"stride must be ≥ 1 on every axis, got \(2, 2, 2\)"),
        ({"stride": 2.0}, "stride must be ≥ 1 on every axis, got 2.0"),
        ({"stride": None}, "stride must be ≥ 1 on every axis, got None"),
        (
            {"padding_mode": "same"},
            "padding_mode must be one of zeros, reflect, replicate, circular, got 'same'",
        ),
        ({"padding_mode": None}, "padding_mode must be one of zeros, reflect, replicate, circular, got None"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(SpectralError, match=f"BlurPool2d: {sentence}"):
        BlurPool2d(**{"channels": 3, **arguments})


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (
            torch.ones(1, 4, 8, 8),
            r"expected \(B, 3, H, W\), got shape \(1, 4, 8, 8\); build the layer with the channels",
        ),
        (torch.ones(8, 8), r"got shape \(8, 8\)"),
        (torch.ones(1, 1, 3, 8, 8), r"got shape \(1, 1, 3, 8, 8\)"),
        (torch.ones(1, 3, 8, 8, dtype=torch.int64), "expected a floating-point map, got torch.int64"),
        (torch.ones(1, 3, 8, 0), r"the map is empty, got shape \(1, 3, 8, 0\)"),
    ],
)
def test_bad_input(x, sentence):
    with pytest.raises(SpectralError, match=f"BlurPool2d: .*{sentence}"):
        BlurPool2d(3)(x)
