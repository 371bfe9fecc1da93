"""Surgery: what a converted network computes, keeps and reports, and that it can be undone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import json
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import networks as nets
import pandas as pd
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import active_modes, count_hooks, image, unchanged
from torch import Tensor, fx, nn

from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import LAYERS, BlurPool2d, LPSPool2d
from spectral.models import load_model
from spectral.models.cifar import CifarResNet
from spectral.models.nula import NULA
from spectral.sites import find_sites
from spectral.surgery import METHODS, ConversionReport, conversion_report, convert, convert_alike, revert
from spectral.tracing.standin import needs_data

SEEN: list[tuple[int, ...]] = []  # by a hook, whose closure a copy of it would have of its own
QUICK = settings(max_examples=15)  # each converts four networks


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        return model(x)


def placements(model: nn.Module) -> dict[str, str | None]:
    return {row.site: row.placement for row in conversion_report(model).rows}


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.site: str(row.reason) for row in conversion_report(model).rows if not row.replaced}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-3)


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights as after training: where all are alike at first, a network may see nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.numel() > 1 and float(parameter.detach().std()) == 0:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            for tensor in (module.running_mean, module.bias):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def stem(**options: Any) -> nn.Sequential:
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, **options), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)
        )
    )


class Residual(nn.Module):
    """A block in torchvision's manner: one activation serves every place."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False, **options)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False, **options)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 4, 1, 2, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(self.relu(x - 0.1))))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class TestPlainDecimation:
    """With a plain decimation for a layer the network must compute what it did: surgery itself is right."""

    @QUICK
    @given(data=st.data())
    def test_any_convolution(self, data: st.DataObject) -> None:
        pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
        kernel, stride = data.draw(pair), data.draw(pair.filter(lambda s: max(s) > 1))
        padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
        mode = data.draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
        size = data.draw(st.tuples(st.integers(9, 21), st.integers(9, 21)))
        groups = data.draw(st.sampled_from([1, 2, 4]))
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 8, kernel, stride, padding, groups=groups, padding_mode=mode)
        net = nn.Sequential(conv, nn.Tanh())
        x = image(2, 4, *size)
        for placement in ("auto", "behind"):
            plain = convert(net, "strided", ["0"], placement, example=(4, 12, 12))
            close(outputs(plain, x), outputs(net, x), 1e-6)
        for method in ("blurpool", "flc"):
            smooth = convert(net, method, ["0"], example=(4, 12, 12))
            assert outputs(smooth, x).shape == outputs(net, x).shape

    @QUICK
    @given(data=st.data())
    def test_any_pool(self, data: st.DataObject) -> None:
        kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda s: max(s) > 1))
        padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
        ceil = data.draw(st.booleans())
        size = data.draw(st.tuples(st.integers(9, 21), st.integers(9, 21)))
        included = data.draw(st.booleans())
        for pool in (
            nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil),
            nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=included),
        ):
            x = image(2, 3, *size)
            close(outputs(convert(pool, "strided", example=15), x), outputs(pool, x), 1e-6)
            smooth = outputs(convert(pool, "blurpool", example=15), x)
            assert smooth.shape == outputs(pool, x).shape

    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 34)])
    @pytest.mark.parametrize(
        "net",
        [
            nets.ReusedPool, nets.FunctionalBlock, nets.SlicingShortcut, nets.Nested, nets.InPlace,
            nets.PoolAfterLayers, nets.CeilPools, nets.SharedPool, nets.Squeezing, nets.Keyword, Residual,
            nets.strided, stem, nets.Raising,
            lambda: nets.PadsItself(3, 4, 3, 2), lambda: nets.PadsItself(3, 4, 1, 2),
            lambda: nn.Sequential(nets.PadsItself(3, 4, (5, 2), 3), nn.BatchNorm2d(4), nn.SiLU()),
            lambda: nn.Sequential(nets.Standardised(3, 4, 3, 2, 1), nn.ReLU()),
            lambda: nets.OnlyRealData(stem()), lambda: nn.Conv2d(3, 4, 1, 2, padding=1),
            lambda: nets.Call(lambda m, x: torch.stack([F.max_pool2d(image, 2) for image in x])),
            lambda: nets.Call(lambda m, x: functools.reduce(lambda y, _: F.max_pool2d(y, 2), range(3), x)),
        ],
    )  # fmt: skip
    def test_awkward_networks(self, net: Callable[[], nn.Module], size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        model = trained(net())
        x = image(2, 3, *size).abs()
        expected = outputs(model, x.clone())
        plain = convert(model, "strided", example=(33, 33))
        assert all(row.replaced or row.op == "blur_pool" for row in conversion_report(plain).rows)
        close(outputs(plain, x.clone()), expected, 1e-5)
        smooth = convert(model, "blurpool", example=(33, 33))
        changed = outputs(smooth, x.clone())
        assert changed.shape == expected.shape
        assert float((changed - expected).abs().max()) > 1e-3
        assert torch.equal(outputs(revert(smooth), x.clone()), expected)

    def test_a_slice_stays_a_view_of_its_source(self) -> None:
        """What is written to either later shows in the other."""

        def forward(m: nn.Module, x: Tensor) -> Tensor:
            y = x.clone()
            kept = y[..., ::2, ::2]
            y.mul_(2)
            kept.add_(1)
            return kept * y.mean()

        model = nets.Call(forward)
        x = image(2, 3, 15, 16)
        assert torch.equal(convert(model, "strided", example=16)(x), model(x))

    def test_a_slice_with_an_offset(self) -> None:
        model = nets.Call(lambda m, x: x[:, :, 1::2, ::3] + x[..., 1::2, 0::3])
        x = image(2, 3, 15, 16)
        assert torch.equal(convert(model, "strided", example=16)(x), model(x))
        blur = BlurPool2d(3, stride=(2, 3))
        smooth = convert(model, "blurpool", example=16)
        assert len(conversion_report(smooth).replaced) == 2
        close(smooth(x), 2 * blur(x[:, :, 1:]))


class TestPlacement:
    @pytest.mark.parametrize(
        "act",
        [
            nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"),
            nn.Hardswish(), nn.Hardswish(inplace=True), nn.Mish(), nn.PReLU(4), nn.LeakyReLU(), nn.ELU(),
            nn.Softplus(), nn.Sigmoid(), nn.LogSigmoid(), nn.Threshold(0.1, 0.0),
            nets.Call(lambda m, x: x * F.relu6(x + 3) / 6),
        ],
        ids=repr,
    )  # fmt: skip
    def test_behind_the_activation(self, act: nn.Module) -> None:
        net, x = stem(), image(2, 3, 17, 20)
        net[2] = act
        smooth = convert(net, "blurpool", example=32)
        dense = F.conv2d(x, net[0].weight, net[0].bias, 1, 1)
        close(outputs(smooth, x), net[3](BlurPool2d(4)(act(net[1](dense)))))
        assert placements(smooth) == {"0": "behind 2"}

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize(
        "kind",
        [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish, nn.ELU, nn.CELU,
         nn.SELU, nn.LeakyReLU],
    )  # fmt: skip
    def test_whatever_torch_marks_its_operators_as(self, kind: type[nn.Module], inplace: bool) -> None:
        """Marks differ between versions and between an operator and the same in place."""
        net = stem()
        net[2] = kind(inplace=inplace)
        assert placements(convert(net, "flc", example=32)) == {"0": "behind 2"}
        (site,) = find_sites(net, 32)
        assert site.chain is not None
        assert len(site.chain.operators) == 2

    def test_behind_the_operator_when_asked(self) -> None:
        net, x = stem(), image(2, 3, 17, 20)
        smooth = convert(net, "flc", placement="behind", example=32)
        dense = F.conv2d(x, net[0].weight, net[0].bias, 1, 1)
        close(outputs(smooth, x), net[3](net[2](net[1](LAYERS["flc"](4, 2)(dense)))))
        assert placements(smooth) == {"0": "behind"}

    def test_an_activation_that_serves_other_maps_too(self) -> None:
        net, x = trained(Residual()), image(2, 3, 16, 18)
        smooth = convert(net, "blurpool", example=32)
        blur = BlurPool2d(4)
        y = F.conv2d(F.relu(x - 0.1), net.conv1.weight, None, 1, 1)
        y = net.bn2(net.conv2(blur(F.relu(net.bn1(y)))))
        short = net.shortcut[1](F.conv2d(BlurPool2d(3)(x), net.shortcut[0].weight))
        close(outputs(smooth, x), F.relu(y + short))
        assert placements(smooth) == {"conv1": "behind relu", "shortcut.0": "before"}

    def test_a_pointwise_convolution_commutes_with_a_linear_layer(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.Conv2d(4, 2, 3))
        for method in ("blurpool", "flc", "wavelet"):
            before, behind = (convert(net, method, placement=p, example=17) for p in ("auto", "behind"))
            x = image(2, 3, 17, 20)
            close(outputs(before, x), outputs(behind, x))
            cheap, dear = (conversion_report(m).cost.macs[1] for m in (before, behind))
            assert cheap < dear

    def test_an_activation_in_another_module(self) -> None:
        conv, act = nn.Sequential(nn.Conv2d(3, 4, 3, 2)), nn.Sequential(nn.Identity(), nn.Tanh())
        assert placements(convert(nn.Sequential(conv, act), "blurpool", example=32)) == {"0.0": "behind 1.1"}

    def test_activations_called_as_functions(self) -> None:
        net = trained(nets.Call(lambda m, x: F.gelu(m.norm(m.conv(x))) + 1, conv=nn.Conv2d(3, 4, 3, 2, 1),
                                norm=nn.BatchNorm2d(4)))  # fmt: skip
        x = image(2, 3, 16, 20)
        smooth = convert(net, "blurpool", example=32)
        dense = F.conv2d(x, net.conv.weight, net.conv.bias, 1, 1)
        close(outputs(smooth, x), BlurPool2d(4)(F.gelu(net.norm(dense))) + 1)
        assert placements(smooth) == {"conv": "behind the activation in the forward of the model"}

    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: m.act(y := m.conv(x)) + y,
            lambda m, x: m.act(m.conv(x) + 1),
            lambda m, x: [y := m.conv(x), m.act(y)],
            lambda m, x: m.act(F.max_pool2d(m.conv(x), 3, 1, 1)),
            lambda m, x: m.act(F.adaptive_avg_pool2d(m.conv(x), 4)),
            lambda m, x: m.gate(m.conv(x)),
            lambda m, x: m.gate(m.narrow(m.conv(x))),
            lambda m, x: F.relu(y := m.conv(x)) + F.silu(y),
            lambda m, x: m.act(m.narrow(m.conv(x))),
            lambda m, x: m.act(m.flat(m.conv(x))),
            lambda m, x: m.fuse(m.conv(x), x[:, :1, :4, :4]),
        ],
    )
    def test_a_dense_map_that_others_use_is_decimated_at_once(self, forward: Callable[..., Any]) -> None:
        """And only that: the first convolution's layer stays behind its activation."""
        gate = nets.Call(lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid())
        first = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU())
        net = nets.Call(lambda m, x: forward(m, m.first(x)), first=first, conv=nn.Conv2d(3, 4, 3, 2, 1),
                        act=nn.ReLU(), gate=gate, narrow=nn.Conv2d(4, 4, 1), flat=nn.Flatten(),
                        fuse=nets.Call(lambda m, x, y: F.relu(x + y)))  # fmt: skip
        smooth = convert(net, "strided", example=16)
        assert placements(smooth) == {"first.0": "behind first.1", "conv": "behind"}
        x = image(2, 3, 16, 16)
        for ours, theirs in zip(outputs(smooth, x), outputs(net, x), strict=True):
            close(ours, theirs)

    def test_an_activation_in_place_may_be_used_by_all(self) -> None:
        conv = nn.Conv2d(3, 4, 3, 2, 1)
        dense = F.relu(F.conv2d(image(), conv.weight, conv.bias, 1, 1))
        expected = BlurPool2d(4)(dense) + BlurPool2d(4)(dense).flip(-1)
        for act in (lambda m, y: F.relu(y, inplace=True), lambda m, y: m.relu(y)):
            net = nets.Call(lambda m, x, act=act: (y := act(m, m.conv(x))) + y.flip(-1), conv=conv,
                            relu=nn.ReLU(inplace=True))  # fmt: skip
            smooth = convert(net, "blurpool", example=16)
            assert str(placements(smooth)["conv"]).startswith("behind ")
            close(outputs(smooth, image()), expected)

    @pytest.mark.parametrize(
        ("norm", "placement"),
        [
            (nn.GroupNorm(2, 4), "behind"),
            (nn.InstanceNorm2d(4), "behind"),
            (nn.BatchNorm2d(4, track_running_stats=False), "behind"),
            (nn.LayerNorm([4, 8, 8]), "behind"),
            (torchvision.ops.misc.FrozenBatchNorm2d(4), "behind act"),
            (nn.Sequential(torchvision.ops.Permute([0, 2, 3, 1]), nn.LayerNorm(4),
                           torchvision.ops.Permute([0, 3, 1, 2])), "behind act"),
            (nn.Identity(), "behind act"),
            (nn.Dropout2d(), "behind act"),
        ],
    )  # fmt: skip
    def test_norms_that_average_over_the_map_get_the_decimated_one(
        self, norm: nn.Module, placement: str
    ) -> None:
        net = nn.Sequential()
        layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), norm, nn.ReLU()]
        for name, module in zip(("first", "relu", "conv", "norm", "act"), layers, strict=True):
            net.add_module(name, copy.deepcopy(module))
        plain = convert(trained(net), "strided", example=32)
        assert placements(plain) == {"first": "behind relu", "conv": placement}
        close(outputs(plain, image(2, 3, 32, 32)), outputs(net, image(2, 3, 32, 32)))

    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: [m.act(y := m.conv(x)) + torch.zeros(y.shape[2:])],
            lambda m, x: [m.act(y := m.conv(x)), torch.zeros(1, *y.shape[2:])],
        ],
    )
    def test_a_dense_map_whose_size_is_looked_at(self, forward: Callable[..., Any]) -> None:
        net = nets.Call(forward, conv=nn.Conv2d(3, 3, 3, 2, 1), act=nn.Sigmoid())
        smooth = convert(net, "strided", example=16)
        assert placements(smooth) == {"conv": "behind"}
        for ours, theirs in zip(outputs(smooth, image()), outputs(net, image()), strict=True):
            close(ours, theirs)

    @pytest.mark.parametrize("shortcut", ["A", "B"])
    def test_our_networks_become_their_published_variants(self, shortcut: str) -> None:
        net = trained(CifarResNet(8, shortcut=shortcut))
        published = CifarResNet(8, shortcut=shortcut, downsample="blurpool").eval()
        _load_in_order(published, net)
        x = image(2, 3, 32, 32)
        assert torch.equal(outputs(convert(net, "blurpool", example=32), x), outputs(published, x))

    def test_nula_becomes_the_published_one(self) -> None:
        net = trained(NULA(width=8, downsample="strided"))
        published = NULA(width=8).eval()
        _load_in_order(published, net)
        x = image(2, 3, 33, 32)
        assert torch.equal(outputs(convert(net, "blurpool", example=32), x), outputs(published, x))


def _load_in_order(model: nn.Module, source: nn.Module) -> None:
    """Load by position, leaving blur kernels out: the variants differ in the numbers of some modules."""
    names = [name for name in model.state_dict() if not name.endswith("kernel")]
    model.load_state_dict(dict(zip(names, source.state_dict().values(), strict=True)), strict=False)


def circular_resnet() -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    net.maxpool = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    return net.eval()


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_branches_keep_the_same_phase(method: str) -> None:
    net, x = circular_resnet(), image(2, 3, 32, 32)
    steady = convert(net, method, example=32)
    for shift in ((1, 0), (3, 5), (16, 1)):
        close(outputs(steady, x.roll(shift, (2, 3))), outputs(steady, x), 1e-5)
    moved = outputs(net, x.roll((1, 0), (2, 3)))
    assert float((moved - outputs(net, x)).abs().max()) > 1e-3
    copied = copy.deepcopy(steady)
    assert torch.equal(outputs(copied, x), outputs(steady, x))


@pytest.mark.parametrize("order", ["cs", "sc"])
def test_the_layer_that_runs_first_chooses(order: str) -> None:
    """Which need not be the one whose operator ran first."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = {name: {"c": m.conv, "s": m.shortcut}[name](x) for name in order}
        return (m.act(y["c"]) * y["s"]).mean((2, 3))

    conv = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")
    net = nets.Call(forward, conv=conv, shortcut=nn.Conv2d(3, 4, 1, 2), act=nn.ReLU())
    steady = convert(net, "aps", example=16)
    for seed in range(8):
        x = image(4, 3, 16, 16, seed=seed)
        close(outputs(steady, x.roll((1, 3), (2, 3))), outputs(steady, x))


def test_soft_choices_train_and_copy() -> None:
    model = convert(circular_resnet(), "lps", example=32).train()
    model(image(2, 3, 32, 32)).square().mean().backward()
    scorers = [p for name, p in model.named_parameters() if "scorer" in name and p.grad is not None]
    assert any(float(p.grad.abs().max()) > 0 for p in scorers if p.grad is not None)
    copy.deepcopy(model)  # although a choice with a graph is kept


class TestTheConvertedModel:
    def test_the_original_is_left_alone(self) -> None:
        net = trained(Residual())
        with unchanged(net):
            convert(net, "blurpool", example=32)

    def test_in_place(self) -> None:
        net, x = stem(), image()
        expected = outputs(convert(net, "blurpool", example=16), x)
        weight = net[0].weight
        assert convert(net, "blurpool", example=16, inplace=True) is net
        assert net[0].weight is weight
        assert torch.equal(outputs(net, x), expected)
        assert revert(net, inplace=True) is net
        assert net[0].stride == (2, 2)

    def test_names_and_attributes_stay(self) -> None:
        net = nn.Sequential(stem(), nn.MaxPool2d(2))
        smooth: Any = convert(net, "blurpool", example=32)
        assert isinstance(smooth[0][0], nn.Conv2d)
        assert (smooth[0][0].kernel_size, smooth[0][0].padding) == ((3, 3), (1, 1))
        assert set(smooth.state_dict()) - set(net.state_dict()) == {
            "0.0.antialias.kernel", "1.antialias.kernel"
        }  # fmt: skip
        for name, tensor in net.state_dict().items():
            assert torch.equal(smooth.state_dict()[name], tensor)

    @pytest.mark.parametrize("method", ["blurpool", "learned", "lps", "space-to-depth", "aps"])
    @pytest.mark.parametrize("build", [Residual, nets.FunctionalBlock, nets.Nested])
    def test_a_state_loads_into_the_same_conversion(
        self, method: str, build: Callable[[], nn.Module]
    ) -> None:
        first = convert(trained(build()), method, example=32).eval()
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        buffer.seek(0)
        second = convert(build(), method, example=32).eval()
        second.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(outputs(second, image(seed=5)), outputs(first, image(seed=5)))

    def test_the_originals_state_loads_too(self) -> None:
        net, other = trained(Residual(), 1), trained(Residual(), 2)
        smooth = convert(other, "blurpool", example=32)
        missing, unexpected = smooth.load_state_dict(net.state_dict(), strict=False)
        assert not unexpected
        assert all("antialias" in name for name in missing)
        assert torch.equal(outputs(smooth, image()), outputs(convert(net, "blurpool", example=32), image()))

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    @pytest.mark.parametrize("build", [Residual, nets.ReusedPool, nets.SlicingShortcut])
    def test_copies_work_on_their_own(
        self, build: Callable[[], nn.Module], again: Callable[[nn.Module], nn.Module]
    ) -> None:
        smooth = convert(trained(build()), "blurpool", example=32)
        expected = outputs(smooth, image(2, 3, 32, 32))
        copied = again(smooth)
        for tensor in (*smooth.parameters(), *smooth.buffers()):
            tensor.data.zero_()
        assert torch.equal(outputs(copied, image(2, 3, 32, 32)), expected)
        assert count_hooks(revert(copied)) == 0

    @pytest.mark.parametrize("build", [Residual, nets.Nested, nets.FunctionalBlock, nets.SlicingShortcut])
    def test_gradients(self, build: Callable[[], nn.Module]) -> None:
        """As numerical ones, in double precision, through layers, operators and the way to the activation."""
        torch.manual_seed(0)
        smooth = convert(trained(build()).double(), "blurpool", example=32)
        x = image(1, 3, 17, 18, dtype=torch.float64).requires_grad_()
        weight = next(p for p in smooth.parameters() if p.ndim == 4)
        out = smooth(x)
        assert out.dtype == torch.float64
        probe = torch.randn_like(out)
        (slope,) = torch.autograd.grad((out * probe).sum(), weight)
        step = 1e-6 * torch.randn_like(weight)
        with torch.no_grad():
            ups, downs = [], []
            for sign, results in ((1, ups), (-1, downs)):
                weight.data.add_(sign * step)
                results.append((smooth(x) * probe).sum())
                weight.data.sub_(sign * step)
        assert float((ups[0] - downs[0]) / 2) == pytest.approx(float((slope * step).sum()), rel=1e-4)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointing(self, reentrant: bool) -> None:
        net = nets.Checkpointed(reentrant)
        gradients = []
        for model in (net, convert(net, "strided", example=32)):
            x = image(2, 3, 32, 32).requires_grad_()
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            close(ours, theirs, 1e-4)

    def test_training_and_modes(self) -> None:
        net = Residual().train()
        smooth: Any = convert(net, "lps", example=32)
        assert all(module.training for module in smooth.modules())
        before = smooth.bn1.running_mean.clone()
        smooth(image())
        assert not torch.equal(smooth.bn1.running_mean, before)
        assert not any(module.training for module in smooth.eval().modules())

    @pytest.mark.parametrize("build", [Residual, nets.Nested])
    @pytest.mark.parametrize("method", ["blurpool", "flc", "aps"])
    def test_half_precision_and_memory_format(self, method: str, build: Callable[[], nn.Module]) -> None:
        smooth = convert(trained(build()), method, example=32)
        x = image(2, 3, 24, 28)
        expected = outputs(smooth, x)
        close(outputs(smooth.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)),
              expected)  # fmt: skip
        if method != "aps":  # a rounded norm may choose another phase
            with torch.autocast("cpu", torch.bfloat16):
                close(outputs(smooth, x).float(), expected, 0.05)

    def test_layers_get_the_type_and_device_of_the_weights(self) -> None:
        smooth = convert(Residual().to(torch.bfloat16), "lps", example=32)
        assert {p.dtype for p in smooth.parameters()} == {torch.bfloat16}
        quantised: Any = nets.Call(lambda m, x: m.pool(x), pool=nn.MaxPool2d(2))
        quantised.steps = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
        assert outputs(convert(quantised, "learned", example=32), image()).dtype == torch.float32
        meta = convert(Residual().to("meta"), "blurpool", example=32)
        assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}

    def test_modes_and_frames_end_with_an_exception(self) -> None:
        net = convert(nets.Raising(), "blurpool", example=64)
        for depth in ("leaf", "block", "root"):
            net.break_at(depth)  # type: ignore[operator]
            with pytest.raises(RuntimeError, match=f"the {depth} broke"):
                net(image(1, 3, 64, 64))
            assert active_modes() == 0
        net.break_at("")  # type: ignore[operator]
        assert outputs(net, image(1, 3, 64, 64)).shape == outputs(nets.Raising(), image(1, 3, 64, 64)).shape

    def test_compiled(self) -> None:
        smooth = convert(trained(Residual()), "blurpool", example=32)
        compiled = torch.compile(smooth, backend="eager", fullgraph=True)
        assert torch.equal(outputs(compiled, image()), outputs(smooth, image()))  # type: ignore[arg-type]

    def test_its_sites_can_be_measured(self) -> None:
        smooth = convert(trained(Residual()), "blurpool", example=32)
        sites = find_sites(smooth, 32)
        assert [(s.name, s.op) for s in sites] == [
            ("conv1.antialias", "blur_pool"), ("shortcut.0.antialias", "blur_pool")
        ]  # fmt: skip
        with FeatureExtractor(smooth, sites, tap="dense") as fx:
            smooth(image(1, 3, 32, 32))
            assert fx["conv1.antialias"].shape == (1, 4, 32, 32)

    def test_pools_of_maps_with_different_channels(self) -> None:
        """One pool for all of a network, as in every beginner's."""
        net = nets.Call(
            lambda m, x: m.pool(F.relu(m.b(m.pool(F.relu(m.a(x)))))),
            pool=nn.MaxPool2d(2), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 8, 3),
        )  # fmt: skip
        smooth: Any = convert(net, "blurpool", example=32)
        assert [layer.channels for layer in smooth.pool.antialias.values()] == [6, 8]
        close(outputs(convert(net, "strided", example=32), image()), outputs(net, image()))
        assert outputs(smooth, image()).shape == outputs(net, image()).shape
        # At this size its last call is a global pool, and no site.
        smooth = convert(net, "blurpool", example=10)
        assert len(conversion_report(smooth).rows) == 1
        close(outputs(convert(net, "strided", example=10), image()), outputs(net, image()))
        assert outputs(smooth, image()).shape == outputs(net, image()).shape

    @pytest.mark.parametrize(
        ("net", "shape"),
        [
            (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2),
                                   nn.AvgPool1d(3, 2, 1), nn.LPPool1d(2, 2)), (3, 64)),
            (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), nn.MaxPool1d(3, 2, ceil_mode=True),
                                   nn.AvgPool1d(3, 2, ceil_mode=True)), (3, 63)),
            (lambda: nn.Sequential(nn.Conv3d(3, 4, 3, (1, 2, 2), 1), nn.BatchNorm3d(4), nn.ReLU(),
                                   nn.MaxPool3d(2), nn.AvgPool3d((1, 2, 2)), nn.LPPool3d(2, 2)),
             (3, 8, 32, 32)),
            (lambda: nn.Sequential(nn.LPPool2d(2, 3, 2), nn.LPPool2d(3, 3, 2, ceil_mode=True)), (3, 33, 38)),
            (lambda: nets.Call(
                lambda m, x: F.avg_pool1d(F.relu(F.conv1d(F.max_pool1d(x, 2), m.w, None, 2)), 2)), (3, 64)),
            (lambda: nets.Call(lambda m, x: F.lp_pool2d(x, 2.0, 3, 2)[..., 1::2, :]), (3, 33, 32)),
            (lambda: nets.Call(lambda m, x: F.relu(F.conv3d(x, m.w[..., None, None], stride=2))[:, :, ::2]),
             (3, 8, 16, 16)),
            (lambda: nets.Call(lambda m, x: x.permute(0, 2, 3, 1)[:, ::2, 1::3].mean((1, 2))), (3, 16, 18)),
            (lambda: nets.Call(lambda m, x: torch.ops.aten.max_pool2d(x, [3, 3], [2, 1])), (3, 16, 18)),
        ],
    )  # fmt: skip
    def test_signals_videos_and_every_pool(
        self, net: Callable[[], nn.Module], shape: tuple[int, ...]
    ) -> None:
        torch.manual_seed(0)
        model = net()
        model.w = nn.Parameter(image(4, 3, 3))  # type: ignore[assignment]
        x = torch.rand(2, *shape)
        plain = convert(model.eval(), "strided", example=x)
        assert len(conversion_report(plain).replaced) == len(conversion_report(plain).rows)
        close(outputs(plain, x), outputs(model, x))
        smooth = convert(model, "blurpool", example=x)
        assert outputs(smooth, x).shape == outputs(model, x).shape
        assert float((outputs(smooth, x) - outputs(model, x)).abs().max()) > 1e-3
        assert torch.equal(outputs(revert(smooth), x), outputs(model, x))

    def test_a_site_that_cant_be_converted_keeps_no_other_from_it(self) -> None:
        first = nn.Conv2d(3, 4, 3, 2, 1, dtype=torch.complex64)
        net = nets.Call(lambda m, x: m.second(m.first(x.to(torch.complex64)).abs()), first=first,
                        second=nn.Conv2d(4, 4, 3, 2, 1))  # fmt: skip
        with unchanged(net):
            smooth = convert(net, "blurpool", example=32)
        assert placements(smooth)["second"] == "behind"
        assert "complex" in reasons(smooth)["first"]
        close(outputs(convert(net, "strided", example=32), image()), outputs(net, image()))

    @pytest.mark.parametrize(
        ("net", "reason"),
        [
            (nn.MaxPool2d(2, return_indices=True), "it also returns where its maxima are"),
            (nn.AdaptiveMaxPool2d(8), "its stride depends on the size of the image"),
            (nn.AdaptiveAvgPool2d(8), "its stride depends on the size of the image"),
            (nn.Unfold(3, stride=2), "it makes channels of its windows"),
            (nets.Call(lambda m, x: x.index_select(2, torch.arange(0, 32, 2))), "picks samples by their"),
            (nn.Sequential(nn.Conv2d(3, 4, 1), nets.Call(lambda m, x: x.unflatten(2, (-1, 2)).amax(3))),
             "a view has cut its windows"),
        ],
    )  # fmt: skip
    def test_the_reason_why_a_site_stays(self, net: nn.Module, reason: str) -> None:
        (found,) = reasons(convert(net, "blurpool", example=32)).values()
        assert re.search(reason, found), found


class TestOptions:
    def test_they_reach_the_layer_and_the_report(self) -> None:
        net = stem()
        smooth: Any = convert(net, "blurpool", example=16, kernel_size=5, padding_mode="circular")
        expected = convert(net, "blurpool-5", example=16)
        assert (smooth[0].antialias.kernel_size, smooth[0].antialias.padding_mode) == (5, "circular")
        assert torch.equal(smooth[0].antialias.kernel, expected[0].antialias.kernel)  # type: ignore[index, union-attr]
        report = conversion_report(smooth)
        assert report.steps == [
            {"method": "blurpool", "placement": "auto", "kernel_size": 5, "padding_mode": "circular",
             "where": ["0"]}
        ]  # fmt: skip
        again = convert_alike(net, ConversionReport.from_dict(json.loads(json.dumps(report.to_dict()))))
        assert torch.equal(outputs(again, image()), outputs(smooth, image()))

    def test_steps_with_other_options_stay_apart(self) -> None:
        net = nn.Sequential(stem(), nn.MaxPool2d(2))
        first = convert(net, "blurpool", "conv", example=32, kernel_size=5)
        second = convert(first, "blurpool", "max_pool", example=32, kernel_size=2)
        assert [step["kernel_size"] for step in conversion_report(second).steps] == [5, 2]
        again = convert_alike(net, conversion_report(second))
        assert torch.equal(outputs(again, image()), outputs(second, image()))

    @pytest.mark.parametrize(
        ("method", "options", "message"),
        [
            ("blurpool", {"kernel": 5}, "no option is called 'kernel'.*it takes kernel_size, padding_mode"),
            ("blurpool-3", {"kernel_size": 5}, "no option is called 'kernel_size'; it takes padding_mode"),
            ("blurpool", {"kernel_size": 9}, "kernel_size must be 1 to 7, got 9"),
            ("aps", {"padding_mode": "zeros"}, "no option is called 'padding_mode'"),
            ("wavelet", {"wavelet": "nothing"}, "nothing"),
        ],
    )
    def test_an_unknown_one_changes_nothing(self, method: str, options: dict[str, Any], message: str) -> None:
        net = stem()
        with unchanged(net), pytest.raises(SpectralError, match=message):
            convert(net, method, example=16, inplace=True, **options)


class TestRevert:
    def test_nothing_is_left(self) -> None:
        for build in (Residual, nets.Nested, nets.FunctionalBlock, nets.ReusedPool, circular_resnet):
            net = build()
            reverted = revert(convert(net, "aps", example=32))
            assert count_hooks(reverted) == 0
            assert repr(reverted) == repr(net)
            assert list(reverted.state_dict()) == list(net.state_dict())
            for (name, module), (_, old) in zip(reverted.named_modules(), net.named_modules(), strict=True):
                assert vars(module).keys() == vars(old).keys(), name
                assert getattr(module, "stride", None) == getattr(old, "stride", None)

    def test_what_is_called_like_a_layer_stays(self) -> None:
        net: Any = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
        net[0].antialias = nn.Identity()
        smooth = convert(net, "blurpool", example=32)
        assert "something called 'antialias' of its own" in reasons(smooth)["0"]
        assert hasattr(revert(smooth)[0], "antialias")

    def test_trained_weights_stay(self) -> None:
        net = Residual()
        smooth: Any = convert(net, "blurpool", example=32).train()
        optimizer = torch.optim.SGD(smooth.parameters(), 0.1)
        smooth(image()).square().mean().backward()
        optimizer.step()
        reverted: Any = revert(smooth)
        assert not torch.equal(reverted.conv1.weight, net.conv1.weight)
        assert torch.equal(reverted.conv1.weight, smooth.conv1.weight)
        assert reverted.conv1.stride == (2, 2)
        assert smooth.conv1.stride == (1, 1)

    def test_foreign_hooks_stay(self) -> None:
        net = stem()
        net[0].register_forward_hook(lambda module, args, output: SEEN.append(tuple(output.shape[2:])))
        outputs(revert(convert(net, "blurpool", example=16)), image())
        assert SEEN[-1] == (8, 8)

    def test_what_was_never_converted(self) -> None:
        with pytest.raises(SpectralError, match="has not been converted"):
            revert(stem())
        with pytest.raises(SpectralError, match="has not been converted"):
            conversion_report(stem())


class TestWhere:
    NET = nn.Sequential(stem(), nn.Conv2d(2, 2, 3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2))

    @pytest.mark.parametrize(
        ("where", "chosen"),
        [
            (None, ["0.0", "1", "2", "3"]),
            ("conv", ["0.0", "1"]),
            ("max_pool", ["2"]),
            (["1", "3"], ["1", "3"]),
            ("0.*", ["0.0"]),
            (["?"], ["1", "2", "3"]),
            (lambda site: site.scale[0] < 3, ["0.0", "1"]),
        ],
    )
    def test_choices(self, where: Any, chosen: list[str]) -> None:
        smooth = convert(self.NET, "blurpool", where, example=64)
        assert [row.site for row in conversion_report(smooth).replaced] == chosen
        assert set(reasons(smooth).values()) <= {"not chosen"}

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("0.9", r"matches no site; nearest: '0\.0'"),
            (["1", "nothing here"], "'nothing here' matches no site; see find_sites"),
            ("slice", "no site is of the kind 'slice'; the kinds here: avg_pool, conv, max_pool"),
            (lambda site: False, "chooses none of the 4 sites"),
        ],
    )
    def test_what_matches_nothing(self, where: Any, message: str) -> None:
        with pytest.raises(SpectralError, match=message):
            convert(self.NET, "blurpool", where, example=64)

    def test_patch_embeddings_must_be_named(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1))
        for where in (None, "conv"):
            smooth = convert(net, "blurpool", where, example=64)
            assert "its dense map costs 16 times as much" in reasons(smooth)["0"]
        close(outputs(convert(net, "strided", "0", example=64), image()), outputs(net, image()))
        assert "a patch embed" in reasons(convert(net[:1], "blurpool", example=64))["0"]
        with pytest.raises(SpectralError, match=r"nothing can be replaced in Sequential; '0': a patch embed"):
            convert(net[:1], "blurpool", "conv", example=64)

    def test_some_calls_of_a_module(self) -> None:
        with pytest.raises(SpectralError, match="'pool@0': its module runs several times: choose 'pool@1'"):
            convert(nets.ReusedPool(), "blurpool", ["pool@0", "pool@2"], example=64)
        smooth = convert(nets.ReusedPool(), "blurpool", ["pool"], example=64)
        assert list(reasons(smooth)) == ["conv@0", "conv@1"]

    def test_what_needs_no_layer(self) -> None:
        net = nn.Sequential(nets.Focus(), nets.Blur(4), nn.Conv2d(4, 4, 3, 2, 1))
        assert reasons(convert(net, "blurpool", example=64)) == {
            "0": "lossless: every sample is kept, as a channel", "1": "it is anti-aliased already"
        }  # fmt: skip

    def test_what_follows_the_size_of_the_image(self) -> None:
        net = nets.Call(lambda m, x: F.adaptive_avg_pool2d(F.interpolate(m.conv(x), scale_factor=0.5), 4),
                        conv=nn.Conv2d(3, 4, 3, 2, 1))  # fmt: skip
        stays = reasons(convert(net, "blurpool", example=32))
        assert set(stays.values()) == {"its stride depends on the size of the image"}
        assert len(stays) == 2

    def test_a_sequential_that_does_more_than_its_children(self) -> None:
        class Pooling(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return F.max_pool2d(super().forward(x), 2)

        net = nn.Sequential(Pooling(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()))
        smooth = convert(net, "blurpool", example=32)
        assert placements(smooth) == {"0.0": "behind 0.1", "0": "behind"}
        first = nn.Sequential(*list(smooth[0])[:2])  # type: ignore[arg-type]
        dense = F.max_pool2d(outputs(first, image()), 2, 1)
        close(outputs(smooth, image()), BlurPool2d(4)(dense))

    def test_pools_that_return_indices_stay(self) -> None:
        net = nets.Call(lambda m, x: m.conv(m.pool(x)[0]), pool=nn.MaxPool2d(2, return_indices=True),
                        conv=nn.Conv2d(3, 4, 3, 2, 1))  # fmt: skip
        smooth = convert(net, "blurpool", example=32)
        assert "returns where its maxima are" in reasons(smooth)["pool"]
        assert outputs(smooth, image()).shape == (2, 4, 4, 4)


class TestTwice:
    def test_other_sites_get_another_layer(self) -> None:
        net = nn.Sequential(stem(), nn.MaxPool2d(2))
        first = convert(net, "learned", "conv", example=32)
        first.get_submodule("0.0.antialias").logits.data.normal_()  # type: ignore[operator, union-attr]
        second = convert(first, "flc", example=32)
        report = conversion_report(second)
        assert [(row.site, row.method) for row in report.rows] == [("0.0", "learned"), ("1", "flc")]
        assert (report.method, report.placement) == ("learned+flc", "auto")
        expected = LAYERS["flc"](2, 2)(F.max_pool2d(outputs(first[0], image()), 2, 1))  # type: ignore[index]
        close(outputs(second, image()), expected)
        assert report.cost.macs[0] == conversion_report(first).cost.macs[0]
        assert torch.equal(outputs(revert(second), image()), outputs(net, image()))

    def test_each_says_for_itself_why_a_site_stays(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2))
        first = convert(net, "aps", "max_pool", example=32)
        assert reasons(first) == dict.fromkeys("01", "not chosen")
        assert reasons(convert(first, "flc", example=32)).keys() == {"0"}
        assert reasons(convert(first, "flc", example=32))["0"].startswith("a patch embedding")

    @pytest.mark.parametrize(
        ("where", "message"),
        [(None, "converted already; call revert first"), ("0", "site '0' is replaced already; call revert")],
    )
    @pytest.mark.parametrize("inplace", [True, False])
    def test_the_same_site_twice(self, where: Any, message: str, inplace: bool) -> None:
        smooth = convert(stem(), "blurpool", example=16)
        expected = outputs(smooth, image())
        with pytest.raises(SpectralError, match=message):
            convert(smooth, "flc", where, example=16, inplace=inplace)
        assert torch.equal(outputs(smooth, image()), expected)
        assert torch.equal(outputs(revert(smooth), image()), outputs(stem_like(smooth), image()))


def stem_like(smooth: nn.Module) -> nn.Module:
    net = stem()
    net.load_state_dict({k: v for k, v in smooth.state_dict().items() if "antialias" not in k})
    return net


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "blurpol"}, "convert: no method is called 'blurpol'; nearest: 'blurpool'"),
            ({"method": 3}, "convert: no method is called 3; choose one of strided, blurpool"),
            (
                {"method": "flc", "placement": "infront"},
                "no placement is called 'infront'; choose one of auto",
            ),
            ({"method": "flc", "example": None}, "Sequential doesn't say what size of images it takes"),
            ({"method": "flc", "example": "big"}, "expected a batch or a size"),
        ],
    )
    def test_one_sentence(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(SpectralError, match=message) as caught:
            convert(stem(), **{"example": 16, **arguments})
        assert "\n" not in str(caught.value)

    def test_models_without_hooks(self) -> None:
        compiled: Any = torch.compile(stem(), backend="eager")
        with pytest.raises(SpectralError, match="hooks never fire in a compiled model"):
            convert(compiled, "blurpool", example=16)
        with pytest.raises(SpectralError, match=r"expected a torch.nn.Module, got int"):
            convert(3, "blurpool", example=16)  # type: ignore[arg-type]

    def test_parts_of_converted_networks(self) -> None:
        smooth = convert(
            nn.Sequential(Residual(), nn.Conv2d(4, 3, 1), nets.FunctionalBlock()), "blurpool", example=64
        )
        for part in (nn.Sequential(smooth), smooth[0], smooth[2]):  # type: ignore[index]
            with pytest.raises(SpectralError, match="part of the model was converted on its own"):
                convert(part, "flc", example=64, inplace=True)
        assert len(conversion_report(smooth).replaced) == 5

    def test_nothing_to_convert(self) -> None:
        with pytest.raises(SpectralError, match="NoDownsampling has no site"):
            convert(nets.NoDownsampling(), "blurpool", example=16)

    def test_what_cant_be_copied(self) -> None:
        net = stem()
        net.kept = (i for i in range(2))  # type: ignore[assignment]
        with pytest.raises(SpectralError, match=r"can't be copied.*'kept'.*; pass inplace=True"):
            convert(net, "blurpool", example=16)
        convert(net, "blurpool", example=16, inplace=True)

    def test_a_failed_conversion_in_place_changes_nothing(self) -> None:
        net = stem()
        with unchanged(net), pytest.raises(SpectralError, match="failed on an input"):
            convert(net, "blurpool", example=(5, 16, 16), inplace=True)


class TestReport:
    def test_costs(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1))
        cost = conversion_report(convert(net, "blurpool", example=16)).cost
        rest = 4 * 4 * 8 * 8
        assert cost.parameters == (3 * 4 * 9 + 20, 3 * 4 * 9 + 20)
        assert cost.macs == (3 * 4 * 9 * 8 * 8 + rest, 3 * 4 * 9 * 16 * 16 + 4 * 9 * 8 * 8 + rest)
        # Filters in the frequency domain are matrix products over columns, then rows.
        cost = conversion_report(convert(net, "flc", example=16)).cost
        assert cost.macs[1] == 3 * 4 * 9 * 16 * 16 + 4 * (16 * 16 * 8 + 16 * 8 * 8) + rest
        cost = conversion_report(convert(net, "learned", example=16)).cost
        assert cost.parameters[1] == cost.parameters[0] + 4 * 9

    def test_latency_is_measured_when_asked(self) -> None:
        smooth = convert(stem(), "blurpool", example=16)
        report = conversion_report(smooth)
        assert report.cost.seconds is None
        assert "time per batch" not in str(report)
        cost = report.measure_latency(revert(smooth), smooth, image(), repeats=3)
        assert cost.seconds is not None
        assert min(cost.seconds) > 0
        assert "time per batch" in str(report)

    def test_a_row_per_site(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, (3, 4), (2, 4), 1), nn.Tanh())
        report = conversion_report(convert(net, "blurpool-5", example=64))
        table = report.to_frame()
        assert list(table["site"]) == ["0", "1"] == list(report.to_frame().site)
        assert list(table["replaced"]) == [False, True]
        assert table.loc[1, "layer"].startswith("BlurPool2d(8, kernel_size=5, stride=(2, 4)")
        assert isinstance(table, pd.DataFrame)
        lines = str(report).splitlines()
        assert lines[0] == "blurpool-5: 1 of 2 sites replaced"
        assert "kept: a patch embedding" in lines[2]
        assert lines[3].endswith("behind 2")

    def test_a_network_is_made_again_from_its_report(self) -> None:
        net = load_model("bundled/resnet20@random")
        smooth = convert(convert(net, "aps", "layer2.*"), "flc", ["layer3.*"], "behind")
        content = json.loads(json.dumps(conversion_report(smooth).to_dict()))
        report = ConversionReport.from_dict(content)
        assert report == conversion_report(smooth)
        assert report.source == "bundled/resnet20@random"
        assert report.example == (3, 32, 32)
        again = convert_alike(load_model(str(report.source)), report)
        x = image(2, 3, 32, 32)
        assert torch.equal(outputs(again, x), outputs(smooth, x))
        assert conversion_report(again).rows == report.rows

    @pytest.mark.parametrize(
        "altered",
        [
            {"example": "x"},
            {"example": [3, True, 16]},
            {"remedies": {"padding": ["x"]}},
            {"site": 5},
            {"replaced": None},
            {"options": "x"},
        ],
    )
    def test_a_report_with_something_of_another_kind(self, altered: dict[str, Any]) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()).eval()
        content = conversion_report(convert(net, "flc", example=16)).to_dict()
        whole = altered.keys() & content.keys()
        rows = content["rows"] if whole else [{**row, **altered} for row in content["rows"]]
        with pytest.raises(SpectralError, match="expected what to_dict gives"):
            ConversionReport.from_dict({**content, "rows": rows, **(altered if whole else {})})

    @pytest.mark.parametrize("content", [{}, {"rows": 3}, {"rows": [{"site": "a"}]}])
    def test_something_else_than_a_report(self, content: dict[str, Any]) -> None:
        with pytest.raises(SpectralError, match="expected what to_dict gives"):
            ConversionReport.from_dict(content)

    def test_every_layer_is_a_method(self) -> None:
        for method in METHODS:
            smooth = convert(stem(), method, example=16).eval()
            assert outputs(smooth, image(2, 3, 17, 18)).shape == (2, 2, 9, 9), method
            assert conversion_report(smooth).method == method

    def test_default_sizes(self) -> None:
        net = stem()
        net.pretrained_cfg = {"input_size": (3, 20, 24)}  # type: ignore[assignment]
        assert conversion_report(convert(net, "blurpool")).example == (3, 20, 24)
        info = load_model("bundled/resnet20@random").spectral_info
        one = dataclasses.replace(info.preprocessing, mean=(0.5,), std=(0.5,))  # for all channels
        net.spectral_info = dataclasses.replace(info, preprocessing=one)
        assert conversion_report(convert(net, "blurpool")).example == (3, *one.size)
        assert "altered" not in str(conversion_report(convert(net, "blurpool")))


# One of each way in which published classifiers decimate, where it can be said with a block or two per stage:
# `experiments/survey.py` converts hundreds. What transformers need is said as keywords.
TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}), "convnext_tiny": (64, {}), "densenet121": (64, {}), "googlenet": (64, {}),
    "inception_v3": (80, {}), "mobilenet_v2": (64, {}), "resnet18": (64, {}),
    "shufflenet_v2_x0_5": (64, {}), "squeezenet1_1": (64, {}), "swin_t": (64, {}),
}  # fmt: skip
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 1)}), "fastvit_t8": (64, {"layers": (1, 1, 1, 1)}),
    "ghostnet_100": (64, {}), "nf_regnet_b0": (64, {}), "poolformer_s12": (64, {}), "repvgg_a0": (64, {}),
    "resnet26d": (64, {"layers": (1, 1, 1, 1)}), "skresnet18": (64, {}),
    "tf_efficientnet_b0": (64, {}), "levit_128s": (64, {"img_size": 64, "depth": (1, 1, 1)}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 2}), "xcit_nano_12_p16_224": (64, {"depth": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "size", "options"), [
    *((f"torchvision/{name}", *row) for name, row in TORCHVISION.items()),
    *((f"timm/{name}", *row) for name, row in TIMM.items()),
])  # fmt: skip
def test_published_architectures(name: str, size: int, options: dict[str, Any]) -> None:
    """Decimated plainly they compute what they did; with a low-pass, something of the same size."""
    library, name = name.split("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make: Callable[..., nn.Module] = torchvision.models.get_model
        if library == "timm":
            make = timm.create_model
        net = trained(make(name, num_classes=10, **options))
    x = image(1, 3, size, size)
    named = ["*"] if name in ("swin_t", "vit_tiny_patch16_224", "xcit_nano_12_p16_224") else None
    expected = outputs(net, x)
    plain = convert(net, "strided", named, example=size)
    assert conversion_report(plain).replaced
    close(outputs(plain, x), expected, 1e-5)
    low_pass = convert(revert(plain, inplace=True), "flc", named, example=size, inplace=True)
    smooth = outputs(low_pass, x)
    assert smooth.shape == expected.shape
    assert bool(smooth.isfinite().all())
    assert float((smooth - expected).abs().max()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_random_numbers_are_left_alone_and_the_same_call_gives_the_same_weights(method: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    before = torch.get_rng_state()
    first, second = (convert(net, method, example=32).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Pooling(nn.Module):
    """Pools in a call of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("method", ["lps", "blurpool"])
def test_what_is_put_in_has_the_mode_of_its_owner(method: str, traced: bool, training: bool) -> None:
    net: nn.Module = fx.symbolic_trace(Pooling()) if traced else Pooling()
    net.train(training)
    modes = {name: module.training for name, module in convert(net, method, example=32).named_modules()}
    assert len(modes) > 4
    assert set(modes.values()) == {training}


def test_lps_scorers_are_kept_by_a_second_conversion() -> None:
    smooth = convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2)), "lps", ["0"], example=32)
    second: Any = convert(smooth, "blurpool", example=32)
    assert isinstance(second[0].antialias, LPSPool2d)
    assert torch.equal(second[0].antialias.scorer[0].weight, smooth[0].antialias.scorer[0].weight)  # type: ignore[index]


class Points(nn.Module):
    """Returns as many points of a map as are above its mean, image by image."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.body(one[None]) for one in x] if self.apart else self.body(x).split(1)
        return [y[y > y.mean()] for y in maps]


@pytest.mark.parametrize("apart", [False, True])
def test_a_network_that_returns_as_many_points_as_it_finds(apart):
    """How many there are is up to the map, which a layer changes; a loop over images runs it for each."""
    torch.manual_seed(0)
    net, x = Points(apart).eval(), torch.rand(2, 3, 32, 32)
    converted = convert(net, "blurpool", example=x)
    replaced = {row.op: row.replaced for row in conversion_report(converted).rows}
    assert replaced == {"conv": True, "max_pool": True, "index": False}
    assert [len(y) for y in converted(x)] != [len(y) for y in net(x)]
    runs = []
    for layer in (m for m in converted.modules() if type(m).__module__.startswith("spectral.layers")):
        layer.register_forward_hook(lambda *_: runs.append(1))
    converted(x)
    assert len(runs) == 2 * (2 if apart else 1)


def test_a_branch_that_did_not_run_is_named():
    """A flag switches it on later: it then decimates as it did, and the report has said so."""

    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.aux, self.on = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, (2, 1), 1), False
            self.flat = nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.flat(self.aux(y)) if self.on else y

    net = Flagged()
    smooth = convert(net, "blurpool", example=16)
    report = conversion_report(smooth)
    assert report.idle == {"aux": "2×1"}
    assert "not seen: aux, which decimates by 2×1, didn't run on the example" in str(report)
    assert ConversionReport.from_dict(json.loads(json.dumps(report.to_dict()))).idle == report.idle
    smooth.on = net.on = True
    assert smooth(image(1, 3, 16, 16)).shape == net(image(1, 3, 16, 16)).shape
    assert conversion_report(convert(net, "blurpool", example=16)).idle == {}


def test_what_fails_with_a_layer_is_not_tried_with_data(capsys):
    """It would take the memory of all the maps of the network, for an error that is known already."""

    class Checked(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = self[1](self[0](x))
            print(y.device.type)
            if y.shape[-1] != x.shape[-1] // 2:
                raise ValueError("a map of an unexpected size")
            return self[2](y)

    net = Checked(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
    smooth = convert(net, "blurpool", example=16)
    assert [row.placement for row in conversion_report(smooth).rows] == ["behind"]
    assert set(capsys.readouterr().out.split()) == {"meta"}
    assert not needs_data(smooth)
    with pytest.raises(SpectralError, match="failed on an input"):
        find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Linear(3, 3)), 16)


def test_hooks_of_a_convolution_get_a_map_of_the_size_they_got():
    """Observers, which `torch.ao` hangs on what it will quantise, and hooks that return something else."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    net[0].observer, seen = torch.ao.quantization.MinMaxObserver(), []

    def observe(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output.shape)
        return module.observer(output) + torch.ones(8, 8)

    net[0].register_forward_hook(observe)
    smooth = convert(net, "blurpool", example=16)
    assert placements(smooth) == {"0": "behind"}
    x = image(1, 3, 16, 16)
    plain = convert(nn.Sequential(*net), "strided", example=16)
    seen.clear()
    close(outputs(plain, x), outputs(net, x))
    assert smooth(x).shape == net(x).shape
    assert {tuple(shape) for shape in seen} == {(1, 4, 8, 8)}


def test_a_mask_picks_as_many_samples_as_a_layer_leaves():
    """As many of an image as of its negative, which doesn't tell that their number is up to the values."""

    class Loud(nn.Conv2d):
        def forward(self, x: Tensor) -> list[Tensor]:
            y = super().forward(x)
            loud = y[y.abs() > 0.5]
            return [loud, loud.sort().values[::2]]

    net = Loud(1, 1, 3, 2, bias=False).eval()
    net.weight.data.fill_(-1)[..., 1, 1] = 8
    x = image(1, 1, 33, 33)
    smooth = convert(net, "blurpool", where="conv", example=x)
    assert len(smooth(x)[0]) < len(net(x)[0]) == len(net(-x)[0])


class PaddedByStride(nn.Module):
    """Pads by the size of the image and the stride of what comes next, as TensorFlow does.

    Where the size is odd this is as much as without a stride, where it is even it is more.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm2d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        stride = self.layer.stride[0] if isinstance(self.layer.stride, tuple) else self.layer.stride
        before = [max(3 - (n % stride or stride), 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [side for total in before for side in (total // 2, total - total // 2)])
        return torch.relu(self.norm(self.layer(x)))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 3, 2), nn.AvgPool2d(3, 2)])
def test_padding_that_is_made_for_the_stride_stays_so_at_every_size(layer):
    net = PaddedByStride(layer)
    same, smooth = convert(net, "strided", example=33), convert(net, "flc", example=33)
    assert [row.replaced for row in conversion_report(smooth).rows] == [True]
    for size in (33, 32):
        x = image(1, 3, size, size)
        close(outputs(same, x), outputs(net, x))
        assert outputs(smooth, x).shape == outputs(net, x).shape
    assert find_sites(smooth, 32)[0].measurable
    close(outputs(revert(smooth), x), outputs(net, x))
