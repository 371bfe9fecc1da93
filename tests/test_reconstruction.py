"""Closed-form repair: exact where the right weights are known, nothing where nothing changed."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from networks import image, unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError, SpectralWarning
from spectral.repair.least_squares import BLOCK, Sums
from spectral.repair.recalibration import measure_moments, recalibrate
from spectral.repair.reconstruction import reconstruct
from spectral.surgery import convert


class Tokens(nn.Module):
    """A linear layer over the places of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).transpose(1, 2)).mean(1)  # type: ignore[no-any-return]


class Same(nn.Conv2d):
    """Pads by itself, unevenly, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 1, 0, 1))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 1, bias=False),
        nn.Conv2d(6, 6, 3, 2, padding=1, groups=6),
        nn.Conv2d(6, 4, (3, 2), padding=1, dilation=2, groups=2, padding_mode="circular"),
        Same(6, 4, 3, 2),
        Tokens(),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 3, bias=False)),
        nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    ],
    ids=["1x1", "depthwise", "grouped", "own padding", "tokens", "flat", "several"],
)
def test_altered_weights_are_found_again(layer: nn.Module) -> None:
    """With more places than unknowns, least squares have one solution: the reference's own weights."""
    torch.manual_seed(0)
    right = copy.deepcopy(layer).eval()
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        for parameter in wrong.parameters():
            if parameter.ndim != 1 or len(list(wrong.modules())) < 4:  # scales of norms stay
                parameter.add_(0.1 * torch.randn_like(parameter))
    images = image(120, 6, 6, 6)
    with unchanged(right), unchanged(wrong):
        fitted = reconstruct(wrong, images, reference=right, ridge=1e-9)
    x = image(5, 6, 6, 6)
    if isinstance(layer, nn.Sequential) and len(layer) == 2:
        x = images[:5]  # 216 unknowns, 120 images: what they show is reproduced, no more can be known
    with torch.no_grad():
        torch.testing.assert_close(fitted(x), right(x), rtol=1e-3, atol=1e-3)


def test_a_filter_gain_is_undone_behind_it() -> None:
    """Of waves of one frequency a binomial filter leaves (1 + cos 2πf) / 2: the next weights make it good."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1, 2, bias=False), nn.Conv2d(2, 3, 1, bias=False)).eval()
    frequency = 4 / 32
    phase = 2 * math.pi * (frequency * torch.arange(32.0) + torch.rand(20, 2, 1, 1))
    waves = torch.randn(20, 2, 1, 1) * phase.cos().expand(-1, -1, 32, -1)
    smooth = convert(net, "blurpool", example=(2, 32, 32), placement="behind", padding_mode="circular")
    fitted = reconstruct(smooth, waves, ridge=1e-9)
    gain = (1 + math.cos(2 * math.pi * frequency)) / 2
    torch.testing.assert_close(fitted[0].weight, net[0].weight)
    torch.testing.assert_close(fitted[1].weight, net[1].weight / gain, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(fitted(waves), net(waves), rtol=1e-3, atol=1e-3)


def make_net(first: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        first or nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    for _ in range(20):
        net(make_smooth(16))
    return net.eval()


def make_smooth(count: int) -> Tensor:
    return nn.functional.avg_pool2d(image(count, 3, 36, 36), 5, 1)


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_an_unaltered_network_keeps_every_bit() -> None:
    same = convert(make_net(), "strided", example=32)
    fitted = reconstruct(same, make_smooth(8))
    for name, value in same.state_dict().items():
        assert torch.equal(fitted.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [nn.Conv2d, Same])
def test_a_converted_network_comes_nearer_on_other_images(kind: type[nn.Conv2d]) -> None:
    """A convolution that pads by itself is converted as a function, within its own forward."""
    net, images = make_net(kind(3, 8, 3, 2, bias=False)), make_smooth(32)
    smooth = convert(net, "blurpool", example=32).train()
    with unchanged(smooth), torch.random.fork_rng():
        fitted = reconstruct(smooth, images)
    assert fitted.training
    assert count_hooks(fitted) == count_hooks(smooth)
    assert all(p.requires_grad for p in fitted.parameters())
    other = make_smooth(32)
    with torch.no_grad():
        wanted = net(other)
        errors = [float((m.eval()(other) - wanted).square().mean()) for m in (smooth, fitted)]
    assert errors[1] < 0.5 * errors[0]
    again = reconstruct(smooth, images, inplace=True)
    assert again is smooth
    for name, value in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_network_with_channels_innermost_gets_the_same_weights() -> None:
    smooth, images = convert(make_net(), "blurpool", example=32), make_smooth(16)
    inner = copy.deepcopy(smooth).to(memory_format=torch.channels_last)
    expected, found = (reconstruct(model, images).state_dict() for model in (smooth, inner))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_network_in_bfloat16_is_repaired() -> None:
    """Rounding of what a layer gives is no sign that something else than its weights makes it."""
    net, images = make_net().bfloat16(), make_smooth(32).bfloat16()
    smooth = convert(net, "blurpool", example=32)
    fitted = reconstruct(smooth, images)
    with torch.no_grad():
        errors = [float((m(images) - net(images)).float().square().mean()) for m in (smooth, fitted)]
    assert errors[1] < 0.5 * errors[0]
    assert not torch.equal(fitted[3].weight, smooth[3].weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_hook_makes_stay() -> None:
    """As those of torch's older weight norm, beside one parameter that is None."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, bias=False),
        nn.ReLU(),
        nn.utils.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.Conv2d(4, 5, 1),
    ).eval()
    smooth = convert(net, "blurpool", example=16)
    fitted = reconstruct(smooth, make_smooth(16)[..., ::2, ::2])
    now = fitted.state_dict()
    changed = {name for name, value in smooth.state_dict().items() if not torch.equal(now[name], value)}
    assert changed == {"3.weight", "3.bias"}


def test_channels_that_are_constant_or_silent_tell_nothing() -> None:
    right = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Conv2d(3, 4, 1)).eval()
    wrong = copy.deepcopy(right)
    images = image(20, 3, 8, 8)
    images[:, 1], images[:, 2] = 0.3, 0
    with torch.no_grad():
        wrong[0].weight.add_(0.1)
    fitted = reconstruct(wrong, images, reference=right)
    assert (fitted[0].weight - wrong[0].weight)[1:].abs().max() < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(fitted(images), right(images), rtol=1e-2, atol=1e-2)


def test_a_fit_to_noise_is_left_undone() -> None:
    """What the reference gives is unrelated to what enters: images left out gain nothing by any fit."""

    class Blind(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.randn_like(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    with torch.random.fork_rng():
        fitted = reconstruct(net, image(8, 3, 8, 8), reference=Blind(*copy.deepcopy(net)))
    assert (fitted[2].weight - net[2].weight).norm() < 0.5 * net[2].weight.norm()


def test_weights_that_are_no_plain_product_stay() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight / self.weight.norm()
            return nn.functional.conv2d(x, weight, self.bias)

    right = nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 4, 3)).eval()
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong[0].weight.mul_(1.5)
        wrong[1].weight.add_(0.1)
    fitted = reconstruct(wrong, image(20, 3, 8, 8), reference=right, ridge=1e-9)
    torch.testing.assert_close(fitted[0].weight, right[0].weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(fitted[1].weight, wrong[1].weight)


def test_weights_stay_where_a_phase_is_chosen() -> None:
    """Maps of another phase are of other places: nothing to fit to, and statistics are the same anywhere."""
    smooth, images = convert(make_net(), "aps", example=32), make_smooth(16)
    with pytest.warns(SpectralWarning, match="norms alone are moved"):
        fitted = reconstruct(smooth, images)
    expected = recalibrate(smooth, images)
    for name, value in fitted.state_dict().items():
        assert torch.equal(expected.state_dict()[name], value), name


def test_weights_that_others_use_too_stay() -> None:
    right = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    right[1].weight = right[0].weight
    nn.utils.parametrizations.orthogonal(right[2])
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong[0].weight.mul_(1.1)
    fitted = reconstruct(wrong, image(20, 4), reference=right)
    for layer in range(3):
        assert torch.equal(fitted[layer].weight, wrong[layer].weight), layer
    assert not torch.equal(fitted[3].weight, wrong[3].weight)


def test_bad_input_is_one_sentence() -> None:
    net = make_net()
    smooth = convert(net, "blurpool", example=32)
    with pytest.raises(SpectralError, match="has not been converted"):
        reconstruct(net, image(4, 3, 32, 32))
    for ridge in (0, -1, math.nan, math.inf):
        with pytest.raises(SpectralError, match="ridge must be > 0"):
            reconstruct(smooth, image(4, 3, 32, 32), ridge=ridge)
    with pytest.raises(SpectralError, match="none of the 3 convolutions and linear layers, such as '3'"):
        reconstruct(smooth, image(4, 3, 32, 32), reference=nn.Conv2d(3, 4, 3))
    with pytest.raises(SpectralError, match="views must be"):
        reconstruct(smooth, image(4, 3, 32, 32), views=0)
    with pytest.raises(SpectralError, match="at least 2 images, got 1"):
        reconstruct(smooth, image(1, 3, 32, 32))
    with pytest.raises(SpectralError, match=r"reconstruct: what '0' gives in the reference isn't finite"):
        reconstruct(smooth, torch.full((2, 3, 32, 32), torch.nan))


def test_views_of_one_image_are_left_out_together() -> None:
    """Every view of a single pixel is the same: nothing more is known, and the ridge must be as before."""

    class Unrelated(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((1e4 * x).sin())

    net = nn.Sequential(nn.Conv2d(12, 5, 1)).eval()
    pixels = image(18, 12, 1, 1)
    once, often = (
        reconstruct(net, pixels, reference=Unrelated(*copy.deepcopy(net)), views=views) for views in (1, 4)
    )
    torch.testing.assert_close(often[0].weight, once[0].weight, rtol=1e-4, atol=1e-5)


def test_few_images_tell_more_in_several_views() -> None:
    net, images = make_net(), make_smooth(4)
    smooth = convert(net, "blurpool", example=32)
    other = make_smooth(64)
    with torch.no_grad():
        wanted = net(other)
        once, often = (
            float((reconstruct(smooth, images, views=views)(other) - wanted).square().mean())
            for views in (1, 4)
        )
    assert often < once


@pytest.mark.parametrize("free", [False, True])
def test_sums_made_in_blocks_solve_what_all_places_ask(free: bool) -> None:
    """The ridge as rows of their own, as in any textbook, and solved by QR."""
    torch.manual_seed(0)
    design, missing, ridge = 3 + torch.randn(2 * BLOCK + 5, 2, 4), torch.randn(2 * BLOCK + 5, 6), 0.1
    change = Sums.of(design, missing, free).solve(ridge)
    for group in range(2):
        x, y = design[:, group].double(), missing[:, 3 * group : 3 * group + 3].double()
        scale = (x - x.mean(0) * free).square().sum(0).mean()
        rows = torch.cat([x, (ridge * scale).sqrt() * torch.eye(4)])
        if free:
            rows = torch.cat([rows, torch.cat([torch.ones(len(x), 1), torch.zeros(4, 1)])], 1)
        wanted = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(4, 3)]).double()).solution
        torch.testing.assert_close(change[group], wanted, rtol=1e-6, atol=1e-6)


def test_moments_are_those_of_all_places_in_double_precision() -> None:
    for x in (5 + image(7, 3, 9, 11), 5 + torch.randn(40, 3), (5 + image(7, 3, 9, 11)).half()):
        found = measure_moments(x, "norm", "test")
        values = x.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(found.mean, values.mean(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.variance, values.var(1, unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("repair", [recalibrate, reconstruct])
def test_a_repair_in_place_that_fails_leaves_the_model_as_it_was(repair: Callable[..., nn.Module]) -> None:
    """What enters the last norm is infinite in the model alone, when the first is already moved."""
    right = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Gain(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    wrong = copy.deepcopy(right.eval())
    with torch.no_grad():
        wrong[0].weight.mul_(2)
    wrong[2].gain = math.inf
    with unchanged(wrong), pytest.raises(SpectralError, match=r"what enters '[34]' isn't finite"):
        repair(wrong, image(8, 3, 8, 8), reference=right, inplace=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_image_that_is_not_finite_is_told_without_norms_too(value: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    smooth, images = convert(net, "blurpool", example=16), image(8, 3, 16, 16)
    images[3, 0, 0, 0] = value
    with pytest.raises(SpectralError, match="reconstruct: what '0' gives in the reference isn't finite"):
        reconstruct(smooth, images)


class ByName(nn.Module):
    """Calls its layers by the names of their arguments, and has a second input."""

    def __init__(self, net: nn.Sequential, named: bool) -> None:
        super().__init__()
        self.net, self.named = net, named

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        for layer in self.net:
            by_name = self.named and isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
            x = layer(input=x) if by_name else layer(x)
        return x * gain


@pytest.mark.parametrize("repair", [recalibrate, reconstruct])
def test_layers_called_by_name_and_several_inputs_are_repaired_alike(
    repair: Callable[..., nn.Module],
) -> None:
    net, images = make_net(), make_smooth(8)
    expected = repair(convert(net, "blurpool", example=32), images).state_dict()
    pair = {"x": images, "gain": torch.rand(8, 1)}
    for named in (False, True):
        smooth = convert(ByName(net, named).eval(), "blurpool", example={k: v[:1] for k, v in pair.items()})
        for name, value in repair(smooth, pair).state_dict().items():
            torch.testing.assert_close(value, expected[name.removeprefix("net.")], msg=name)


def test_signals_are_repaired() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv1d(2, 6, 5, 2), nn.ReLU(), nn.Conv1d(6, 4, 3)).eval()
    x, other = nn.functional.avg_pool1d(torch.randn(80, 2, 68), 5, 1).split(40)
    smooth = convert(net, "blurpool", example=x[:1])
    fitted = reconstruct(smooth, x)
    with torch.no_grad():
        errors = [float((m(other) - net(other)).square().mean()) for m in (smooth, fitted)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("repair", [recalibrate, reconstruct])
def test_a_limit_takes_images_of_all_parts_of_a_set(repair: Callable[..., nn.Module]) -> None:
    """Folders come class by class: the first 128 of 50,000 would be of three classes."""
    smooth, images = convert(make_net(), "blurpool", example=32), make_smooth(9)
    few, expected = repair(smooth, images, limit=4), repair(smooth, images[[0, 2, 4, 6]])
    for name, value in expected.state_dict().items():
        assert torch.equal(few.state_dict()[name], value), name


def test_a_repair_that_changes_no_weight_says_why() -> None:
    images = image(3, 3, 32, 32)
    last = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.warns(SpectralWarning, match="no convolution or linear layer .* runs behind what has chang"):
        reconstruct(convert(last, "blurpool", example=32), images)
    head = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    with pytest.warns(SpectralWarning, match=r"differ from .* \(1 were tried\) .* others of 2; give"):
        reconstruct(convert(head.eval(), "flc", example=32), torch.stack([images[0], -images[0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(convert(last, "strided", example=32), images)


class Gain(nn.Module):
    """Multiplies by a number, which no fit changes."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def test_images_left_out_take_no_part_in_a_fit() -> None:
    """So that what judges a distillation afterwards is new to the network."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    smooth, images = convert(net, "blurpool", example=16), image(20, 3, 16, 16)
    others = images.clone()
    others[[2, 7, 12, 17]] = 5 * torch.rand(4, 3, 16, 16)
    fitted, same = (reconstruct(smooth, x, held_out=0.2).state_dict() for x in (images, others))
    assert all(torch.equal(value, same[name]) for name, value in fitted.items())
    whole = reconstruct(smooth, others).state_dict()
    assert any(not torch.equal(value, whole[name]) for name, value in fitted.items())
    with pytest.raises(SpectralError, match="at least 2 images, got 1 beside 1 left out"):
        reconstruct(smooth, images[:2], held_out=0.2)
    with pytest.raises(SpectralError, match="held_out must be ≥ 0 and < 1, got -1"):
        reconstruct(smooth, images, held_out=-1)
