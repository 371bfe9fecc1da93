"""The causes of shift instability made ideal, against brute-force references and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import spectral
from spectral.causes import SOURCES, Cause, find_causes, find_upsampling, idealize
from spectral.errors import SpectralError


def pad_spectrum(x: Tensor, axis: int, factor: int) -> Tensor:
    """Interpolate one axis by zero-padding its FFT; the Nyquist bin of an even size is split in two."""
    n = x.shape[axis]
    spectrum = torch.fft.fft(x, dim=axis)
    fine = spectrum.new_zeros([factor * n if a == axis else m for a, m in enumerate(x.shape)])
    for k in range(-(n // 2), (n + 1) // 2):
        bin_ = spectrum.select(axis, k % n)
        if 2 * k == -n:
            fine.select(axis, k % (factor * n)).add_(bin_ / 2)
            fine.select(axis, -k).add_(bin_ / 2)
        else:
            fine.select(axis, k % (factor * n)).add_(bin_)
    return torch.fft.ifft(fine, dim=axis).real * factor


def cut_spectrum(x: Tensor, axis: int, factor: int) -> Tensor:
    """Go back to the coarse lattice with the bins below its Nyquist frequency."""
    n = x.shape[axis] // factor
    spectrum = torch.fft.fft(x, dim=axis)
    coarse = spectrum.new_zeros([n if a == axis else m for a, m in enumerate(x.shape)])
    for k in range(-((n - 1) // 2), (n - 1) // 2 + 1):
        coarse.select(axis, k % n).add_(spectrum.select(axis, k % (factor * n)))
    return torch.fft.ifft(coarse, dim=axis).real / factor


def evaluate_by_fft(function, maps: list[Tensor], axes: tuple[int, int], factor: int) -> Tensor:
    fine = [m.double() for m in maps]
    for axis in axes:
        fine = [pad_spectrum(m, axis, factor) for m in fine]
    y = function(*fine)
    for axis in axes:
        y = cut_spectrum(y, axis, factor)
    return y


def low_pass_by_fft(x: Tensor, axis: int, step: int) -> Tensor:
    n = x.shape[axis]
    spectrum = torch.fft.fft(x.double(), dim=axis)
    kept = torch.tensor([2 * step * min(k, n - k) < n for k in range(n)])
    shape = [n if a == axis else 1 for a in range(x.ndim)]
    return torch.fft.ifft(spectrum * kept.view(shape), dim=axis).real


class Silu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Gate(nn.Module):
    """Squeeze and excitation: the gate is no map, the product with it linear in the map."""

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class LastNorm(nn.Module):
    """A norm over channels of a map with its channels last, as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Body(nn.Module):
    """One operator, a layer or a function, between a map and its mean: it is on a map of the image."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


POINTWISE = {
    "relu": (nn.ReLU(), F.relu),
    "relu in place": (nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), F.relu),
    "gelu": (nn.GELU(), F.gelu),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "norm": (LastNorm(), lambda x: F.layer_norm(x.movedim(1, -1), (3,)).movedim(-1, 1)),
    "mean square of channels": (  # writes into its own sums
        nn.Sequential(Body(lambda x: F.rms_norm(x.movedim(1, -1), (3,)).movedim(-1, 1))),
        lambda x: F.rms_norm(x.movedim(1, -1), (3,)).movedim(-1, 1),
    ),
    "sort of channels": (Body(lambda x: x.sort(1)[0]), lambda x: x.sort(1)[0]),
    "unit vectors": (Body(F.normalize), F.normalize),
    "square": (Body(nn.Identity()), None),
}


@pytest.mark.parametrize("name", [name for name in POINTWISE if POINTWISE[name][1]])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (1, 4), (1, 20), (14, 13)])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_nonlinearity_is_evaluated_as_fft_interpolation_does_it(name, size, factor):
    module, function = POINTWISE[name]
    x = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module = module.double()
    with idealize(module, ["nonlinearity"], factor=factor) as ideal:
        made = module(x.clone())
    assert [cause.source for cause in ideal.causes] == ["nonlinearity"]
    torch.testing.assert_close(made, evaluate_by_fft(function, [x], (2, 3), factor), atol=1e-10, rtol=0)
    assert (made - function(x)).abs().max() > 1e-3


def test_single_precision_stays_within_the_goal():
    x = torch.randn(2, 4, 32, 30)
    with idealize(nn.GELU(), ["nonlinearity"]) as ideal:
        made = ideal(x)
    assert (made - evaluate_by_fft(F.gelu, [x], (2, 3), 2)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "channels", "size"), [("relu in place", 4200, (17, 16)), ("norm", 3, (150, 149))]
)
def test_maps_larger_than_what_is_worked_on_at_once_are_whole(name, channels, size):
    """An image whose finer lattice is larger than what is held at once, and its gradient."""
    module, function = POINTWISE[name]
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with idealize(module.double(), ["nonlinearity"]) as ideal:
        made = ideal(own * 1)
    expected = evaluate_by_fft(function, [reference], (2, 3), 2)
    torch.testing.assert_close(made, expected, atol=1e-10, rtol=0)
    for y in (made, expected):
        (y * weights).sum().backward()
    torch.testing.assert_close(own.grad, reference.grad, atol=1e-9, rtol=0)


@pytest.mark.parametrize("function", [F.relu, torch.relu, F.gelu])
def test_blocks_that_are_written_over_are_whole(function):
    """More images than are worked on at once, without gradients: then memory is used again."""
    x = torch.randn(9, 150, 14, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = x.clone()
    with torch.no_grad(), idealize(Body(function), ["nonlinearity"]) as ideal:
        made = ideal(x)
        again = ideal(x)
    assert torch.equal(x, before)
    assert torch.equal(made, again)
    torch.testing.assert_close(made, evaluate_by_fft(function, [x], (2, 3), 2), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(8, 6), (9, 14)])
def test_the_maximum_of_a_whole_map_is_that_of_its_finer_lattice(size):
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fine = pad_spectrum(pad_spectrum(x, 2, 4), 3, 4)
    for head in (nn.AdaptiveMaxPool2d(1), Body(lambda x: x.amax((2, 3)))):
        with idealize(nn.Sequential(head, nn.Flatten()), ["nonlinearity"], factor=4) as ideal:
            made = ideal(x)
        assert [cause.source for cause in ideal.causes] == ["nonlinearity"]
        torch.testing.assert_close(made, fine.amax((2, 3)), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(8, 6), (9, 14)])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("function", [
    lambda x, axis: x.amax(axis), lambda x, axis: x.amin(axis, keepdim=True),
    lambda x, axis: torch.max(x, axis).values, lambda x, axis: x.min(axis)[0],
], ids=["amax", "amin", "max", "min"])  # fmt: skip
def test_an_extreme_along_one_axis_is_that_of_its_finer_lattice(function, axis, size):
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with idealize(Body(lambda x: function(x, axis)), ["nonlinearity"], factor=4) as ideal:
        made = ideal(x)
    assert [(cause.source, cause.reason) for cause in (*ideal.causes, *ideal.left)] == [
        ("nonlinearity", None)
    ]
    fine = function(pad_spectrum(pad_spectrum(x, 2, 4), 3, 4), axis)
    kept = cut_spectrum(fine, 5 - axis if fine.ndim == 4 else 2, 4)  # the axis that is left
    torch.testing.assert_close(made, kept, atol=1e-10, rtol=0)


@pytest.mark.parametrize("function", [
    lambda x: x * x.max(), lambda x: x * x.amax((0, 1, 2, 3), keepdim=True), lambda x: x.softmax(0),
    lambda x: x / x.norm(), lambda x: x / x.std(0, keepdim=True),
])  # fmt: skip
def test_what_works_over_the_images_of_a_batch_is_left_as_it_is(function):
    """Blocks of a batch would each have an extreme of their own."""
    causes = find_causes(Body(function), (3, 8, 6))
    assert "works over all images of a batch" in str(causes[0].reason)


def test_parts_of_what_a_function_returns_keep_their_names():
    def attend(x):
        found = torch.max(x, 1, keepdim=True)
        return x * torch.sigmoid(found.values) + found.indices * 0

    x = torch.randn(2, 3, 8, 6)
    with idealize(Body(attend), ["nonlinearity"]) as ideal:
        assert ideal(x).shape == x.shape
    assert [cause.op for cause in ideal.causes] == ["max", "sigmoid", "mul"]


def test_places_of_extremes_are_samples_of_the_map():
    x = torch.randn(2, 3, 8, 6)
    with idealize(Body(lambda x: x.max(3).indices), ["nonlinearity"]) as ideal:
        at = ideal(x)
    assert int(at.max()) < 6
    with idealize(
        Body(lambda x: sum(F.adaptive_max_pool2d(x, 1, return_indices=True))), ["nonlinearity"]
    ) as ideal:
        ideal(x)
    assert [cause.reason for cause in ideal.left] == ["the positions of its maxima are asked for"]


@pytest.mark.parametrize(("function", "keeps"), [
    (lambda x: x.std((2, 3)), True), (lambda x: torch.linalg.vector_norm(x, dim=(2, 3)), True),
    (lambda x: x.std(3), False), (lambda x: torch.linalg.vector_norm(x, dim=2), False),
    (lambda x: torch.linalg.vector_norm(x, torch.inf, dim=(2, 3)), False),
    (lambda x: torch.linalg.vector_norm(x, 1, dim=(2, 3)), False),
    (lambda x: torch.linalg.vector_norm(x, 0, dim=(2, 3)), False),
])  # fmt: skip
def test_only_moments_of_second_order_of_a_whole_map_are_invariant(function, keeps):
    causes = find_causes(Body(lambda x: function(x) + x.mean((2, 3)).sum() * 0), (3, 8, 6))
    assert [cause.source for cause in causes] == ([] if keeps else ["nonlinearity"])
    assert keeps or "along rows or columns" in str(causes[0].reason)


def test_a_product_of_a_map_with_the_means_of_its_rows():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with idealize(Body(lambda x: x * x.mean(3, keepdim=True)), ["nonlinearity"]) as ideal:
        made = ideal(x)
    assert [cause.op for cause in ideal.causes] == ["mul"]
    means = x.mean(3, keepdim=True).expand_as(x)
    expected = evaluate_by_fft(torch.mul, [x, means], (2, 3), 2)
    torch.testing.assert_close(made, expected, atol=1e-10, rtol=0)


def test_a_product_of_maps_is_a_nonlinearity_and_one_with_a_gate_is_none():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    with idealize(Silu(), ["nonlinearity"]) as ideal:
        made = ideal(x)
    assert [cause.op for cause in ideal.causes] == ["sigmoid", "mul"]
    gate = evaluate_by_fft(torch.sigmoid, [x], (2, 3), 2)
    torch.testing.assert_close(
        made, evaluate_by_fft(torch.mul, [x, gate], (2, 3), 2), atol=1e-10, rtol=0
    )  # fmt: skip
    assert find_causes(Gate(), torch.rand(1, 3, 8, 8)) == []


@pytest.mark.parametrize("size", [8, 9])
def test_gradients_are_those_of_what_is_computed(size):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.GELU(), nn.MaxPool2d(3, 1, 1)).double()
    x = torch.randn(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    with idealize(net):
        assert torch.autograd.gradcheck(net, x, eps=1e-6, atol=1e-6)
        net(x).sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_convolution_with_a_circular_border_is_torchs_own(stride, dilation):
    own = nn.Conv2d(2, 3, 3, stride, dilation, dilation, padding_mode="circular").double()
    plain = nn.Conv2d(2, 3, 3, stride, dilation, dilation).double()
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    with idealize(plain, ["border"]) as ideal:
        torch.testing.assert_close(plain(x), own(x))
        assert [cause.source for cause in ideal.causes] == ["border"]
    assert [cause.source for cause in find_causes(own, torch.rand(1, 2, 12, 12))].count("border") <= 1


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("size", [8, 12])
def test_decimation_low_passes_the_dense_map_at_the_site(circular, size):
    net = nn.Conv2d(2, 3, 3, 2, 1, padding_mode="circular" if circular else "zeros").double()
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    dense = F.conv2d(
        F.pad(x, (1, 1, 1, 1), mode="circular" if circular else "constant"), net.weight, net.bias
    )  # fmt: skip
    low = low_pass_by_fft(low_pass_by_fft(dense, 2, 2), 3, 2)
    with idealize(net, ["decimation"]):
        torch.testing.assert_close(net(x), low[..., ::2, ::2], atol=1e-10, rtol=0)
    with idealize(nn.AvgPool2d(2), ["decimation"]) as ideal:
        pooled = F.avg_pool2d(x, 2, 1)
        low = low_pass_by_fft(low_pass_by_fft(pooled, 2, 2), 3, 2)
        torch.testing.assert_close(ideal(x), low[..., ::2, ::2], atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(8, 12), (9, 12)])
@pytest.mark.parametrize("sources", [["decimation"], ["decimation", "border"]])
def test_a_convolution_of_single_samples_low_passes_its_dense_map_too(size, sources):
    net = nn.Conv2d(4, 6, 1, (2, 3), groups=2).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = F.conv2d(x, net.weight, net.bias, groups=2)
    with idealize(net, sources) as ideal:
        made = ideal(x)
    with idealize(Slice(), sources) as ideal:  # the same lattice of the dense map
        torch.testing.assert_close(made, ideal(dense), atol=1e-10, rtol=0)
    if size == (8, 12):
        low = low_pass_by_fft(low_pass_by_fft(dense, 2, 2), 3, 3)
        torch.testing.assert_close(made, low[..., ::2, ::3], atol=1e-10, rtol=0)


class Slice(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::3]


class Slices(nn.Module):
    def forward(self, x):
        return x[:, :, 1::2, ::2]


class Padded(nn.Module):
    """A pad and a convolution without one, as TensorFlow's SAME at an even size."""

    def __init__(self, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


# Strided operators of every kind; with ideal sources each moves with the image, at any size.
STRIDED = {
    "conv": lambda: nn.Conv2d(3, 4, 3, 2, 1),
    "even kernel": lambda: nn.Conv2d(3, 4, 4, 2, 1),
    "no padding": lambda: nn.Conv2d(3, 4, 3, 2),
    "pointwise": lambda: nn.Conv2d(3, 4, 1, 2),
    "max": lambda: nn.MaxPool2d(3, 2, 1),
    "max 2": lambda: nn.MaxPool2d(2),
    "max ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "mean": lambda: nn.AvgPool2d(2),
    "mean 3": lambda: nn.AvgPool2d(3, 2, 1),
    "slice": Slices,
    "pad": Padded,
    "adaptive": lambda: nn.AdaptiveAvgPool2d(4),
    "crop": lambda: nn.ZeroPad2d(-1),
    "valid": lambda: nn.Conv2d(3, 4, 3),
}


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize("size", [12, 13])
def test_an_ideal_operator_moves_with_the_image(name, size):
    """Against a translation of the image by a fraction of it: the output moves by the same fraction."""
    torch.manual_seed(0)
    if name == "adaptive" and size == 13:
        assert "unequal" in str(find_causes(STRIDED[name](), size)[0].reason)
        return
    net = STRIDED[name]().double().eval()
    waves = torch.randn(1, 3, 5, 5, dtype=torch.float64)

    def sample(n: int, moved: float) -> Tensor:
        """The same band-limited picture on n samples, moved by a part of its period."""
        spectrum = torch.fft.fft2(waves)
        k = torch.tensor([0, 1, 2, -2, -1], dtype=torch.float64)
        places = torch.arange(n, dtype=torch.float64) / n - moved
        basis = torch.exp(2j * torch.pi * places[:, None] * k)
        return torch.einsum("hk,bckl,wl->bchw", basis, spectrum, basis).real / 25

    linear = name not in ("max", "max 2", "max ceil")
    with idealize(net) as ideal:
        still, moved = ideal(sample(size, 0.0)), ideal(sample(size, 0.3))
    assert still.shape == net(sample(size, 0.0)).shape
    rows, columns = (
        torch.exp(-0.6j * torch.pi * torch.fft.fftfreq(n, 1 / n, dtype=torch.float64))
        for n in still.shape[-2:]
    )
    expected = torch.fft.ifft2(torch.fft.fft2(still) * rows[:, None] * columns).real
    scale = still.abs().max()
    # A maximum on a lattice twice as fine is only nearly that of the continuous picture.
    assert (moved - expected).abs().max() < (1e-8 if linear else 0.1) * scale


def test_sis_of_resnet20_vanishes_with_all_three(images32):
    net = spectral.load_model("bundled/resnet20")
    values = {}
    for count in range(4):
        for sources in itertools.combinations(SOURCES, count):
            with idealize(net, sources):
                values[sources] = float(spectral.compute_sis(net, images32).mean())
    plain = float(spectral.compute_sis(net, images32).mean())
    assert values[()] == pytest.approx(plain, rel=1e-6)
    assert values[SOURCES] < 0.02 * plain
    assert all(values[s] > 0.1 * plain for s in values if len(s) < 3)


@pytest.fixture(scope="module")
def images32():
    net = spectral.load_model("bundled/resnet20")
    pictures = spectral.load_images("samples", size=32, limit=32)
    from spectral.intake import Feed

    return Feed(net, pictures, caller="test").load(list(range(32))).image


def test_the_model_is_what_it_was(images32):
    net = spectral.load_model("bundled/resnet20").train()
    before = {name: (id(m), dict(vars(m))) for name, m in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with idealize(net.eval()) as ideal:
        made = net(images32)
    net.train()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {name: (id(m), dict(vars(m))) for name, m in net.named_modules()} == before
    net.eval()
    assert torch.equal(ideal(images32), made)
    assert not torch.equal(net(images32), made)


def test_where_chooses_places():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    x = torch.rand(1, 3, 16, 16)
    with idealize(net, where="0") as ideal:
        net(x)
    assert {cause.name for cause in ideal.causes} == {"0"}
    with idealize(net, where=lambda cause: cause.op == "relu") as ideal:
        net(x)
    assert ideal.causes == [Cause("nonlinearity", "1", "relu"), Cause("nonlinearity", "3", "relu")]


def test_bad_input_is_one_sentence():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    with pytest.raises(SpectralError, match="unknown source 'borders'; nearest: 'border'"):
        idealize(net, ["borders"])
    with pytest.raises(SpectralError, match="position"):
        idealize(net, ["position"])
    with pytest.raises(SpectralError, match="factor"):
        idealize(net, factor=1)
    with pytest.raises(SpectralError, match="called 'conv7'"), idealize(net, where="conv7"):
        net(torch.rand(1, 3, 8, 8))
    assert not vars(net[0]).get("forward")


def test_what_cannot_be_made_ideal_is_listed_with_the_reason():
    (flat,) = find_causes(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 8)
    assert flat.source == "position"
    assert "flattened" in flat.reason


ONCE = {  # layers, and what each is said to be: one cause
    "rrelu": (nn.RReLU(), ("nonlinearity", None)),
    "lp pool": (nn.LPPool2d(2, 2), ("nonlinearity", "it decimates within one function")),
    "unshuffle": (nn.PixelUnshuffle(2), ("position", "every phase becomes a channel of its own")),
    "norm of the map": (nn.LayerNorm([4, 16, 16]), ("position", "a norm with weights for each place")),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_layer_is_named_once_as_what_it_is(name):
    layer, expected = ONCE[name]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    (cause,) = find_causes(net, 16)
    assert (cause.source, cause.reason) == expected


ALONG = {  # functions, and what is said of each; None where each place is worked on alone
    "sort of channels": (lambda x: x.sort(1)[0], None),
    "largest channels": (lambda x: x.topk(2, 1)[0], None),
    "sort of a row": (lambda x: x.sort(-1)[0], "along rows or columns"),
    "sum along a column": (lambda x: x.cumsum(2), "along rows or columns"),
    "chosen by a mask": (lambda x: x * (x > 0.5), "mul is given no real numbers"),
    "chosen by an index": (lambda x: x.gather(1, x.max(1, keepdim=True)[1]), "gather is given no real"),
    "narrowed": (lambda x: x.narrow(2, 1, 5), "cuts rows or columns off"),
    "halved": (lambda x: x.chunk(2, -1)[0], "cuts rows or columns off"),
    "joined": (lambda x: torch.cat([x, x], 2).tanh(), "joined along a spatial axis"),
    "row by row": (lambda x: torch.stack([row.tanh() for row in x.unbind(2)], 2), "one by one"),
}


@pytest.mark.parametrize("name", ALONG)
def test_along_which_axis_a_function_works_is_seen(name):
    """Along channels it has a finer lattice; along rows it has none, and neither have whole numbers."""
    function, reason = ALONG[name]
    causes = find_causes(nn.Sequential(Body(function), nn.AdaptiveAvgPool2d(1)), 8)
    reasons = [cause.reason for cause in causes]
    said = [why for why in reasons if why is not None]
    assert any(reason in why for why in said) if reason else (reasons and not said)


def test_whole_numbers_beside_a_map_are_those_at_its_own_samples():
    """Which channel is the largest, asked on the finer lattice, is still told of the coarse one's places."""
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(Body(lambda x: x.max(1)[1].to(x.dtype)))
    with idealize(net) as ideal:
        assert torch.equal(ideal(x), x.argmax(1).float())
    assert [cause.op for cause in ideal.causes] == ["max"]


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 33),
    "convnext": (lambda: timm.create_model("convnext_atto", pretrained=False), 66),
    "efficientnet": (lambda: timm.create_model("efficientnet_lite0", pretrained=False), 48),
    "flc": (lambda: spectral.load_model("bundled/resnet20+flc"), 33),
    "blurpool": (lambda: spectral.load_model("bundled/resnet20-blurpool"), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_causes_of_real_networks_close(name):
    """What is left with all of them ideal is next to nothing, at even and odd sizes."""
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    net = build().eval()
    x = F.interpolate(torch.randn(6, 3, 9, 9), size=(size, size), mode="bicubic")

    def jitter(model) -> float:
        with torch.no_grad():
            z = model(x)
            moved = [model(x.roll(step, axis)) for axis in (-1, -2) for step in (-1, 1)]
        return float(spectral.compute_logit_jitter(z, moved).mean())

    plain = jitter(net)
    with idealize(net) as ideal:
        assert jitter(net) < 0.02 * plain
    assert ideal.left == []


def test_what_a_transformer_keeps_is_named():
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=1)
    left = [cause for cause in find_causes(net, 32) if cause.reason is not None]
    assert "position" in {cause.source for cause in left}
    assert any("attention" in str(cause.reason) for cause in left)
    assert [c.source for c in find_causes(net, 32) if c.reason is None] == ["decimation", "border"]


class Turning(nn.Module):
    """Takes another way through its functions where a counter says so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.turned = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.turned:
            y = F.gelu(y) if self.extra is None else self.extra(y)
        return torch.relu(y).mean((2, 3))

    extra: Any = None


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (None, "gelu"),
        (lambda y: y * y, "mul"),
        (lambda y: torch.relu(torch.relu(y)), "relu"),
        (lambda y: F.avg_pool2d(y, 3, 1), "avg_pool2d"),
    ],
)
def test_what_runs_on_another_way_than_the_planned_one_is_refused(extra, name):
    net, x = Turning().eval(), torch.rand(2, 3, 8, 8)
    with spectral.idealize(net) as ideal:
        before = ideal(x)
        net.turned, net.extra = True, extra
        with pytest.raises(
            SpectralError, match=f"{name} runs in the model on this input and didn't when the pass"
        ):
            net(x)
        net.extra = lambda y: 2 * y.flatten(2).unflatten(2, (8, 8)) - 1  # linear, the same at every place
        net(x)
        net.turned = False
        assert torch.equal(net(x), before)


def test_networks_with_every_remedy_have_no_cause_left_but_their_rest():
    net = spectral.load_model("bundled/resnet8@random+flc+alias-free+circular")
    x = torch.rand(2, 3, 32, 32)
    assert spectral.find_causes(net, 32) == []
    assert [site.op for site in spectral.find_sites(net, 32)] == ["low_pass"] * 4
    with torch.no_grad(), spectral.idealize(net) as ideal:
        torch.testing.assert_close(ideal(x), net(x))
    table = spectral.measure_instability_budget(net, x, progress=False)
    shares = table.groupby("source")["value"].sum()
    assert shares["unexplained"] == pytest.approx(shares["total"])
    left = spectral.load_model("bundled/resnet8@random+alias-free")
    assert {cause.source for cause in spectral.find_causes(left, 32)} == {"decimation", "border"}


class ChannelsLast(nn.Module):
    """Takes images (B, H, W, C), and turns them round first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.permute(0, 3, 1, 2))


def test_images_with_their_channels_last_have_the_same_causes():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(3, 2, 1),
    ).eval()
    x = torch.rand(2, 3, 16, 24)
    turned, last = x.permute(0, 2, 3, 1).contiguous(), ChannelsLast(net)
    causes, found = find_causes(net, x[:1]), find_causes(last, turned[:1])
    assert [(c.source, c.op, c.reason) for c in found] == [(c.source, c.op, c.reason) for c in causes]
    with torch.no_grad(), idealize(net) as one:
        ideal = one(x)
    with torch.no_grad(), idealize(last) as other:
        assert torch.allclose(other(turned), ideal, atol=1e-6)
    assert [up.factor for up in find_upsampling(last, turned[:1])] == [
        up.factor for up in find_upsampling(net, x[:1])
    ]
