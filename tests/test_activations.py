"""Alias-free activations: exact where a polynomial's harmonics fit, and convertible networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectral
from spectral.errors import SpectralError
from spectral.layers import AliasFreeActivation1d, AliasFreeActivation2d, AliasFreeActivation3d
from spectral.stability import fourier_shift


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def waves(size: int, highest: int) -> Tensor:
    """A picture with all frequencies up to one, and none above."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft2(torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator))
    keep = torch.fft.fftfreq(size, 1 / size).abs() <= highest
    spectrum = spectrum * (keep[:, None] & (torch.arange(size // 2 + 1) <= highest))
    return torch.fft.irfft2(spectrum, s=(size, size))


@pytest.mark.parametrize("size", [12, 13])
def test_a_square_loses_exactly_what_the_lattice_cannot_hold(size):
    """A square doubles frequencies: on a lattice twice as fine none folds, and it moves with the image."""
    x = waves(size, (size - 1) // 2)
    layer, plain = AliasFreeActivation2d(Square()), Square()
    for function, moves in ((layer, True), (plain, False)):
        moved = function(fourier_shift(x, (0.3, 0.5)))
        expected = fourier_shift(function(x), (0.3, 0.5))
        assert bool((moved - expected).abs().max() < 1e-9) == moves
    low = waves(size, (size - 1) // 4)
    torch.testing.assert_close(layer(low), low.square(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [AliasFreeActivation1d, AliasFreeActivation2d, AliasFreeActivation3d])
def test_every_rank_is_the_ideal_evaluation(kind):
    layer = kind(nn.ReLU(inplace=True))
    x = torch.randn(2, 3, *[6, 5, 4][: kind.axes], requires_grad=True)
    with spectral.idealize(nn.Sequential(nn.ReLU()), ["nonlinearity"]) as ideal:
        expected = ideal(x)
    made = layer(x)
    torch.testing.assert_close(made, expected)
    made.sum().backward()
    assert x.grad is not None


def test_filters_with_more_taps_come_nearer_to_the_ideal():
    x = waves(32, 12).float()
    ideal = AliasFreeActivation2d(nn.GELU())(x)
    distances = [
        float((AliasFreeActivation2d(nn.GELU(), taps=taps)(x) - ideal).square().mean())
        for taps in (2, 6, 12, 24)
    ]
    plain = float((F.gelu(x) - ideal).square().mean())
    assert distances == sorted(distances, reverse=True)
    assert plain > 3 * distances[2]
    constant = torch.full((1, 1, 7, 8), -0.4)
    for taps in (None, 6):
        torch.testing.assert_close(
            AliasFreeActivation2d(nn.GELU(), taps=taps)(constant), F.gelu(constant), atol=1e-6, rtol=0
        )  # fmt: skip


def test_a_layer_is_no_cause_of_instability():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), AliasFreeActivation2d(nn.ReLU()))
    assert [cause.source for cause in spectral.find_causes(net, 16)] == ["border"]


def test_bad_arguments_are_one_sentence():
    for options, message in (({"factor": 1}, "factor"), ({"taps": 5}, "even"), ({"taps": 0}, "taps")):
        with pytest.raises(SpectralError, match=message):
            AliasFreeActivation2d(nn.ReLU(), **options)
    with pytest.raises(SpectralError, match="expected an activation"):
        AliasFreeActivation2d(F.relu)
    with pytest.raises(SpectralError, match="expected floating-point maps"):
        AliasFreeActivation2d(nn.ReLU())(torch.zeros(3, 4))
