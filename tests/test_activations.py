"""Alias-free activations: exact where a polynomial's harmonics fit, and convertible networks."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import spectral
from spectral.errors import SpectralError
from spectral.layers import (
    AliasFreeActivation1d,
    AliasFreeActivation2d,
    AliasFreeActivation3d,
    PolynomialActivation,
)
from spectral.stability import fourier_shift
from spectral.surgery import ConversionReport


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


@pytest.mark.parametrize(
    ("degree", "factor", "moves"), [(2, 2, True), (3, 2, True), (5, 3, True), (4, 2, False)]
)
def test_a_polynomial_needs_a_lattice_so_many_times_finer(degree, factor, moves):
    """Degree d makes frequencies up to d times the largest: r ≥ (d + 1) / 2 keeps all off the old band."""
    x = waves(9, 4)
    layer = AliasFreeActivation2d(PolynomialActivation(nn.GELU(), degree).double(), factor)
    error = layer(fourier_shift(x, (0.3, 0.5))) - fourier_shift(layer(x), (0.3, 0.5))
    assert bool(error.abs().max() < 1e-9) == moves


def test_a_polynomial_begins_as_the_nearest_to_its_activation():
    """Hermite's expansion of a ReLU in closed form: 1/√(2π) + x/2 + (x² − 1)/(2√(2π))."""
    layer, x = PolynomialActivation(nn.ReLU(), 2), torch.linspace(-2, 2, 9)
    root = (2 * torch.pi) ** 0.5
    torch.testing.assert_close(layer(x), 1 / root + x / 2 + (x**2 - 1) / (2 * root), atol=1e-4, rtol=0)
    layer(x).sum().backward()
    assert layer.coefficients.grad is not None
    for wrong, message in ((nn.Softmax(0), "each number alone"), (F.relu, "expected an activation")):
        with pytest.raises(SpectralError, match=message):
            PolynomialActivation(wrong)
    with pytest.raises(SpectralError, match="degree"):
        PolynomialActivation(nn.ReLU(), 9)


def test_a_network_of_polynomials_moves_with_its_image_by_any_amount():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    smooth = spectral.convert(
        net, "ideal", example=18, activations="alias-free-polynomial", padding="circular"
    )
    net, smooth, x = net.double(), smooth.double(), waves(18, 8)
    with torch.no_grad():
        for shift in ((1.0, 0.0), (0.3, 0.5)):
            moved = fourier_shift(x, shift)
            assert (smooth(moved) - smooth(x)).abs().max() < 1e-9
            assert (net(moved) - net(x)).abs().max() > 1e-4
    assert not spectral.conversion_report(smooth).to_dict()["remedies"]["left"]


def test_a_polynomial_stands_for_the_function_as_it_is_called():
    """With the options of a call, and wherever one module is used several times."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.act = nn.LeakyReLU(0.4, inplace=True)

        def forward(self, x):
            x = self.act(self.second(self.act(self.first(x))))
            return F.hardtanh(x, 0.0, max_val=6.0)

    class Apart(Net):
        def __init__(self):
            super().__init__()
            self.again, self.last = nn.LeakyReLU(0.4), nn.Hardtanh(0.0, 6.0)

        def forward(self, x):
            return self.last(self.again(self.second(self.act(self.first(x)))))

    net, apart = Net().eval(), Apart().eval()
    apart.load_state_dict(net.state_dict())
    shared, single = (
        spectral.convert(model, None, activations="alias-free-polynomial", example=16)
        for model in (net, apart)
    )
    assert not spectral.conversion_report(shared).remedies.left
    x = torch.rand(1, 3, 17, 16)
    torch.testing.assert_close(shared(x), single(x))


@pytest.mark.parametrize("second", ["vectors", "tokens", "one place", "channels last"])
def test_one_activation_of_maps_and_of_other_tensors(second):
    """It was evaluated on a finer lattice everywhere, along axes that were none of the image's."""
    turn = {
        "vectors": lambda x: x.mean((2, 3)),
        "tokens": lambda x: x.flatten(2).transpose(1, 2),
        "one place": lambda x: x.mean((2, 3), keepdim=True),
        "channels last": lambda x: x.permute(0, 2, 3, 1),
    }[second]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3, 2), nn.GELU()

        def forward(self, x):
            return self.act(turn(self.act(self.conv(x)))).flatten(1).mean(1)

    net, x = Net().eval(), torch.randn(2, 3, 17, 18)
    smooth = spectral.convert(net, None, activations="alias-free", example=16)
    remedies = spectral.conversion_report(smooth).remedies
    if second == "channels last":  # nothing tells it from a map with its channels first
        assert (len(remedies.altered), len(remedies.left)) == (0, 2)
        torch.testing.assert_close(smooth(x), net(x))
    else:
        assert len(remedies.altered) == 1
        maps = AliasFreeActivation2d(nn.GELU())(net.conv(x))
        torch.testing.assert_close(smooth(x), F.gelu(turn(maps)).flatten(1).mean(1))


def test_calls_of_one_loop_are_told_apart():
    """The low-pass behind the first that is enlarged filtered all of them, those of the full size too."""
    slopes, remedies = (1.0, 0.5, 0.2), {"upsampling": "ideal", "activations": "alias-free-polynomial"}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, step, 1) for step in (1, 2, 2))

        def forward(self, x):
            size, maps = x.shape[-2:], []
            for conv, slope in zip(self.convs, slopes, strict=True):
                x = F.leaky_relu(conv(x), slope)
                maps.append(x)
            return torch.cat([F.interpolate(y, size=size) for y in maps], 1)

    net, x = Net().eval(), torch.randn(1, 3, 16, 24)
    smooth = spectral.convert(net, None, example=16, **remedies)
    report = spectral.conversion_report(smooth).remedies
    assert (len(report.altered), report.left) == (5, ())
    for i, made in enumerate(smooth(x).chunk(3, 1)):
        alone = nn.Sequential(net.convs[i], nn.LeakyReLU(slopes[i]), nn.Upsample(scale_factor=2**i)).eval()
        alone = spectral.convert(alone, None, example=16, **remedies)
        torch.testing.assert_close(made, alone(x))
        x = alone[:2](x)


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


def pool_network() -> nn.Module:
    """Modules and functions, a padded pool, and one activation that runs twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.act = nn.ReLU(inplace=True)
            self.pool = nn.MaxPool2d(3, 1, 1)
            self.conv = nn.Conv2d(8, 8, 3, 2, 1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.act(self.stem(x)))
            x = F.silu(self.act(self.conv(x)))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("make", [pool_network, lambda: spectral.load_model("bundled/resnet20")])
def test_converted_activations_and_borders_are_the_ideal_ones(make):
    net, x = make(), torch.randn(2, 3, 32, 32)
    flc = spectral.convert(net, "flc", example=32)
    both = spectral.convert(net, "flc", example=32, activations="alias-free", padding="circular")
    ops = {"relu", "silu"}

    def chosen(cause: spectral.Cause) -> bool:
        return cause.source == "border" or cause.op in ops

    with torch.no_grad(), spectral.idealize(flc, ["nonlinearity", "border"], chosen) as ideal:
        expected = ideal(x)
    with torch.no_grad():
        torch.testing.assert_close(both(x), expected)
        assert not torch.allclose(both(x), flc(x))
        assert torch.equal(copy.deepcopy(both)(x), both(x))
        if make is not pool_network:  # a local class can't be pickled
            assert torch.equal(pickle.loads(pickle.dumps(both))(x), both(x))
        assert torch.equal(spectral.revert(both)(x), net(x))
        again = ConversionReport.from_dict(json.loads(json.dumps(spectral.conversion_report(both).to_dict())))
        torch.testing.assert_close(spectral.convert_alike(net, again)(x), both(x))
    assert set(both.state_dict()) == set(flc.state_dict())
    remaining = {cause.source for cause in spectral.find_causes(both, 32) if cause.op not in ("max_pool2d",)}
    assert "border" not in remaining


class Padded(nn.Module):
    """A convolution as module and one as function, dilated and strided, and an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=3)  # some of whose windows lie beside the map
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.weight = nn.Parameter(torch.randn(5, 6, 3, 3))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.pool(self.first(x).relu()), self.weight, None, 2, 2, 2)
        return self.head(x.mean((2, 3)))


def convolve_partially(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: int) -> Tensor:
    """Liu's definition: the sum over what is on the map, times all places over those on the map."""
    ones = torch.ones_like(x[:1, :1])
    counted = F.conv2d(ones, torch.ones_like(weight[:1, :1]), None, *geometry)
    found = F.conv2d(x, weight, None, *geometry) * (weight[0, 0].numel() / counted.clamp(min=1))
    return found if bias is None else found + bias[:, None, None]


def test_partial_convolution_is_as_defined_and_has_no_border_once_that_is_ideal():
    torch.manual_seed(0)
    net, x = Padded().eval(), torch.randn(2, 3, 17, 18)
    partial = spectral.convert(net, None, example=(17, 18), padding="partial")
    with torch.no_grad():
        y = convolve_partially(x, net.first.weight, net.first.bias, 1, 3).relu()
        y = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
        y = convolve_partially(y, net.weight, None, 2, 2, 2)
        expected = net.head(y.mean((2, 3)))
        torch.testing.assert_close(partial(x), expected)
        assert not torch.allclose(net(x), expected)
        assert "verified" not in str(spectral.conversion_report(partial))  # no layer was put in
        with spectral.idealize(net, ["border"]) as ideal:
            closed = ideal(x)
        with spectral.idealize(partial, ["border"]) as ideal:
            torch.testing.assert_close(ideal(x), closed)
        torch.testing.assert_close(spectral.revert(partial)(x), net(x))
        assert torch.equal(copy.deepcopy(partial)(x), partial(x))
    layers = {"method": "flc", "activations": "alias-free"}
    all_of_it = spectral.convert(net, example=(17, 18), padding="partial", **layers)
    assert torch.isfinite(all_of_it(x)).all()


def test_partial_convolution_keeps_constants_where_its_weights_are_equal():
    """A pool of ``ceil_mode`` divides by fewer where its last window ends beyond what is padded."""
    pools = nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1, 1, divisor_override=2)
    net = nn.Sequential(nn.Conv2d(1, 1, 5, 1, 2), nn.AvgPool2d(3, 1, 1), *pools).requires_grad_(False)
    net[0].weight.fill_(1 / 25)
    net[0].bias.fill_(0.5)
    same = spectral.convert(net, None, example=torch.zeros(1, 1, 9, 8), padding="partial")
    torch.testing.assert_close(same(torch.full((1, 1, 9, 8), 2.0)), torch.full((1, 1, 6, 6), 5.0))


@pytest.mark.parametrize("shape", [(2, 3, 12, 13), (3, 8, 9), (1, 1, 1500, 750)])
def test_an_activation_that_writes_leaves_what_it_is_given(shape):
    layer = AliasFreeActivation2d(nn.ReLU(inplace=True))
    x = torch.randn(shape)
    before, x_grad = x.clone(), x.clone().requires_grad_()
    with torch.no_grad():
        made = layer(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(layer(x_grad), made, atol=1e-5, rtol=0)


def test_transforms_of_functions_are_followed_where_no_gradient_is():
    layer = AliasFreeActivation2d(nn.Tanh())
    x, tangent = torch.randn(4, 3, 8, 7), torch.randn(4, 3, 8, 7)
    value, change = torch.func.jvp(layer, (x,), (tangent,))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], value)
        for made, slope in (torch.func.jvp(layer, (x,), (tangent,)), _push(layer, x, tangent)):
            torch.testing.assert_close(made, value)
            torch.testing.assert_close(slope, change)


def test_a_graph_keeps_its_number_of_images_open():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), AliasFreeActivation2d(nn.GELU())).eval()
    open_ = torch.export.export(
        net, (torch.randn(2, 3, 10, 9),), dynamic_shapes=({0: torch.export.Dim("b")},)
    ).module()
    for count in (1, 7, 20_000):  # of the last a finer lattice is larger than what is held at once
        x = torch.randn(count, 3, 10, 9)
        torch.testing.assert_close(open_(x), net(x))


def _push(layer, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))


@pytest.mark.parametrize("taps", [None, 8])
def test_no_image_gives_none(taps):
    assert AliasFreeActivation2d(nn.ReLU(), taps=taps)(torch.zeros(0, 3, 8, 16)).shape == (0, 3, 8, 16)


def test_what_is_converted_later_keeps_what_was_asked_for():
    net, x = pool_network(), torch.randn(1, 3, 32, 32)
    first = spectral.convert(net, "flc", "stem", example=32, activations="alias-free-filtered")
    second = spectral.convert(first, "blurpool", ["conv*"], example=32)
    assert spectral.conversion_report(second).remedies.activations == "alias-free-filtered"
    with pytest.raises(SpectralError, match="padding can't be 'circle'"):
        spectral.convert(net, "flc", example=32, padding="circle")
    with pytest.raises(SpectralError, match="nearest: 'alias-free'"):
        spectral.convert(net, "flc", example=32, activations="alias_free")
    before = first(x)
    with pytest.raises(SpectralError):
        spectral.convert(first, "blurpool", "no such site", example=32, inplace=True)
    assert torch.equal(first(x), before)
