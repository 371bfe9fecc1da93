"""APS, LPS and space-to-depth: the phases of a map, which one is kept, and exact equivariance to shifts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spectral.errors import SpectralError
from spectral.layers import APSPool2d, LPSPool2d, SpaceToDepth2d

STRIDES = [(2, 2), (3, 3), (4, 4), (2, 1), (1, 3)]


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def lps(channels: int = 3, stride: int | tuple[int, int] = 2, **options: float) -> LPSPool2d:
    torch.manual_seed(0)
    return LPSPool2d(channels, stride, **options).double().eval()


def components(x: np.ndarray, stride: tuple[int, int]) -> list[np.ndarray]:
    """Every component (C, n_h, n_w) of one image, sample by sample, wrapping around."""
    (s_h, s_w), (height, width) = stride, x.shape[-2:]
    n_h, n_w = -(-height // s_h), -(-width // s_w)
    parts = []
    for i, j in itertools.product(range(s_h), range(s_w)):
        part = np.zeros((x.shape[0], n_h, n_w))
        for m, n in itertools.product(range(n_h), range(n_w)):
            part[:, m, n] = x[:, (i + s_h * m) % height, (j + s_w * n) % width]
        parts.append(part)
    return parts


@pytest.mark.parametrize("p", [1, 2, 3.5, float("inf")])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 7), (8, 8), (9, 4), (10, 6)])
def test_aps_keeps_the_component_of_largest_norm(size, p):
    for stride in STRIDES:
        x = noise(4, 3, *size)
        layer = APSPool2d(stride, p)
        y, phases = layer(x).numpy(), layer.select(x)
        for image, kept, phase in zip(x.numpy(), y, phases, strict=True):
            parts = components(image, stride)
            norms = [np.linalg.norm(part.ravel(), p) for part in parts]
            assert np.array_equal(kept, parts[phase])
            assert norms[phase] == pytest.approx(max(norms), rel=1e-12)


def test_aps_on_even_squares_as_published():
    x = noise(8, 3, 8, 8)
    strongest = [max((i[:, a::2, b::2] for a in (0, 1) for b in (0, 1)), key=torch.norm) for i in x]
    assert torch.equal(APSPool2d()(x), torch.stack(strongest))
    assert len(set(APSPool2d().select(x).tolist())) > 1  # the choice is made per image


@pytest.mark.parametrize("build", [lambda s: APSPool2d(s), lambda s: APSPool2d(s, 1), lambda s: lps(3, s)])
@pytest.mark.parametrize("stride", STRIDES)
def test_a_circular_shift_shifts_the_output_and_nothing_else(build, stride):
    layer, x = build(stride), noise(2, 3, 12, 24)
    y = layer(x)
    for shift in [(1, 0), (0, 1), (0, -1), (2, 3), (-5, 7)]:
        moved = layer(x.roll(shift, dims=(-2, -1)))
        for image, other in zip(y, moved, strict=True):
            rolls = itertools.product(range(y.shape[-2]), range(y.shape[-1]))
            assert any(torch.equal(image.roll(roll, dims=(-2, -1)), other) for roll in rolls)


def test_plain_decimation_is_not_equivariant():
    # The check above can fail: it does for a fixed phase.
    x = noise(1, 1, 8, 8)
    y, moved = x[..., ::2, ::2], x.roll(1, -1)[..., ::2, ::2]
    rolls = itertools.product(range(4), range(4))
    assert not any(torch.equal(y.roll(roll, dims=(-2, -1)), moved) for roll in rolls)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [APSPool2d, lps])
def test_branches_can_share_the_choice(build, training):
    layer, x, y = build().train(training), noise(5, 3, 8, 10), noise(5, 3, 8, 10)
    phase = layer.select(x)
    other = APSPool2d()
    if not phase.is_floating_point():
        assert phase.shape == (5,)
        assert torch.equal(layer(x, phase), layer(x))
        expected = [components(i, (2, 2))[p] for i, p in zip(y.numpy(), phase, strict=True)]
        np.testing.assert_array_equal(other(y, phase).numpy(), np.stack(expected))
    torch.testing.assert_close(other(x + y, phase), layer(x, phase) + other(y, phase), rtol=0, atol=1e-12)
    assert other(y[0], phase[:1]).shape == (3, 4, 5)


@pytest.mark.parametrize(
    "phase",
    [torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int32), torch.zeros(5, 3), torch.zeros(5)],
)
def test_a_choice_for_other_maps_is_refused(phase):
    with pytest.raises(
        SpectralError, match=r"phase must be what select\(\) returns for 5 images and 4 phases"
    ):
        APSPool2d()(noise(5, 3, 8, 8), phase)


def test_lps_in_training_mixes_and_teaches_the_scorer():
    layer, x = lps(stride=(3, 2)).train(), noise(6, 3, 9, 10)
    weights = layer.select(x)
    assert weights.shape == (6, 6)
    torch.testing.assert_close(weights.sum(1), torch.ones(6).double())
    assert not torch.equal(weights, layer.select(x))  # noise is drawn per call
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        if name != "scorer.2.bias":  # the same for every component: cancels
            assert parameter.grad.abs().max() > 0, name
    mixed = sum(
        w * torch.from_numpy(c) for w, c in zip(weights[0], components(x[0].numpy(), (3, 2)), strict=True)
    )
    torch.testing.assert_close(layer(x, weights)[0], mixed, rtol=0, atol=1e-12)


def test_autocast_does_not_touch_the_scores():
    layer, x = lps().float().train(), noise(6, 3, 8, 8).float()
    torch.manual_seed(1)
    expected = layer.select(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.select(x), expected)


def test_lps_temperature():
    x = noise(64, 3, 4, 4)
    sharpness = [lps(temperature=t).train().select(x).amax(1).mean() for t in (0.01, 1.0, 100.0)]
    assert sharpness[0] > 0.98
    assert sharpness[2] < 0.3
    assert sharpness[0] > sharpness[1] > sharpness[2]


def test_lps_learns_which_component_to_keep():
    # The bright component is somewhere else in every image: only its content tells it.
    torch.manual_seed(0)
    layer = LPSPool2d(1, hidden=8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = torch.rand(64, 1, 8, 8)
    for k, image in enumerate(x):
        image[:, k % 2 :: 2, k // 2 % 2 :: 2] += 1
    for _ in range(60):
        optimizer.zero_grad()
        (-layer(x).mean()).backward()
        optimizer.step()
    assert torch.equal(layer.eval().select(x), APSPool2d().select(x))


def test_lps_shares_one_scorer():
    sizes = {sum(p.numel() for p in lps(3, stride).parameters()) for stride in STRIDES}
    assert len(sizes) == 1


def test_space_to_depth_loses_nothing():
    x = noise(2, 3, 6, 8)
    assert torch.equal(SpaceToDepth2d(3)(x), F.pixel_unshuffle(x, 2))
    assert torch.equal(F.pixel_shuffle(SpaceToDepth2d(3)(x), 2), x)
    y = SpaceToDepth2d(3, (3, 2))(x)
    assert y.shape == (2, 18, 2, 4)
    for c, i, j in itertools.product(range(3), range(3), range(2)):
        assert torch.equal(y[:, (c * 3 + i) * 2 + j], x[:, c, i::3, j::2])


def test_space_to_depth_repeats_the_last_sample_at_odd_sizes():
    x = noise(2, 3, 5, 7)
    assert torch.equal(SpaceToDepth2d(3)(x), F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2))


def test_space_to_depth_starts_as_an_average_pool():
    x = noise(2, 3, 6, 8)
    layer = SpaceToDepth2d(3, (3, 2), out_channels=3).double()
    # the weights were rounded to float32
    torch.testing.assert_close(layer(x), F.avg_pool2d(x, (3, 2)), rtol=0, atol=1e-6)
    assert layer.mix.weight.requires_grad
    assert SpaceToDepth2d(3, out_channels=5)(x.float()).shape == (2, 5, 3, 4)
