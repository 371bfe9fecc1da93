"""The tap ``signal``: the dense map behind what commutes with decimation, and that nothing else moves it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Standardised
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

import spectral
from spectral.hooks.capture import Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.sites import Site, find_sites

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
QUICK = settings(max_examples=25)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(make())


def settle(model: nn.Module) -> nn.Module:
    """Give batch norms statistics as after training, none of them 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double().eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def capture(model: nn.Module, x: Tensor, tap: str = "signal") -> dict[str, Tensor]:
    sites = [site for site in find_sites(model, x) if site.measurable]
    with torch.no_grad(), FeatureExtractor(model, sites, tap=tap) as fx:
        model(x)
        return {site.name: fx[site.name] for site in sites}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """The same maps in the same order, within rounding of the largest."""
    assert len(a) == len(b) > 0
    for (name, one), (other, two) in zip(a.items(), b.items(), strict=True):
        assert one.shape == two.shape, (name, other)
        assert float((one - two).abs().max()) <= tolerance * float(one.abs().max()), (name, other)


def only(model: nn.Module, x: Tensor) -> Site:
    (site,) = find_sites(model, x)
    return site


NETWORKS = {
    "resnet20": (lambda: spectral.load_model("bundled/resnet20"), 32),
    "nula": (lambda: spectral.load_model("bundled/nula-w32"), 32),
    "resnet18": (lambda: torchvision.models.resnet18(), 64),
    "resnet50": (lambda: torchvision.models.resnet50(), 64),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(), 64),
    "efficientnet": (lambda: timm.create_model("efficientnet_lite0"), 64),
}


def load(name: str) -> tuple[nn.Module, Tensor]:
    make, size = NETWORKS[name]
    return seeded(make), noise(2, 3, size, size)


# What it is -----------------------------------------------------------------------------------------------

BEHIND = {  # site: the module whose output is the signal's, decimated
    "resnet20": {"layer2.0.conv1": "layer2.0.bn1+relu", "layer3.0.shortcut.0": "layer3.0.shortcut.1"},
    "resnet18": {"conv1": "relu", "layer2.0.downsample.0": "layer2.0.downsample.1"},
    "resnet50": {"layer2.0.conv2": "layer2.0.bn2+relu", "layer4.0.downsample.0": "layer4.0.downsample.1"},
    "mobilenet": {"features.0.0": "features.0", "features.4.block.1.0": "features.4.block.1"},
    "efficientnet": {"conv_stem": "bn1", "blocks.1.0.conv_dw": "blocks.1.0.bn2"},
}


@pytest.mark.parametrize("name", BEHIND)
def test_decimated_it_is_what_the_network_has_behind_the_chain(name):
    model, x = load(name)
    found, seen = capture(model, x), {}
    for path in {path.removesuffix("+relu") for path in BEHIND[name].values()}:
        hook = lambda m, args, out, path=path: seen.setdefault(path, out.clone())  # noqa: E731
        model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        model(x)
    for site, path in BEHIND[name].items():
        expected = seen[path.removesuffix("+relu")]
        expected = F.relu(expected) if path.endswith("+relu") else expected
        torch.testing.assert_close(found[site][..., ::2, ::2], expected, rtol=1e-9, atol=1e-10)


def test_it_is_the_stride_1_network_s_own_map():
    model, x = load("resnet18")
    found = capture(model, x)
    dense = copy.deepcopy(model)
    dense.conv1.stride = (1, 1)
    seen = []
    dense.relu.register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    with torch.no_grad():
        dense.relu(dense.bn1(dense.conv1(x)))
    torch.testing.assert_close(found["conv1"], seen[0], rtol=1e-9, atol=1e-10)


# What doesn't move it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "efficientnet", "mobilenet"])
def test_a_decimation_moved_through_the_chain_changes_nothing(name):
    model, x = load(name)
    moved = spectral.convert(model, "strided", example=x)
    with torch.no_grad():
        torch.testing.assert_close(moved(x), model(x))
    assert_same(capture(model, x), capture(moved, x))


@pytest.mark.parametrize("ceil", [False, True])
def test_moved_decimations_of_a_stem_leave_its_pool_s_signal(ceil):
    """As SqueezeNet's and GoogLeNet's: the first one's decimation stands before the pool, which is padded."""
    layers = (nn.Conv2d(3, 5, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=ceil), nn.Conv2d(5, 4, 1))
    model, x = seeded(lambda: nn.Sequential(*layers, nn.ReLU())), noise(2, 3, 25, 24)
    assert_same(capture(model, x), capture(spectral.convert(model, "strided", example=x), x))


def test_it_was_the_dense_map_that_moved():
    """What the invariance is worth: at ``dense`` the same numbers differ."""
    model, x = load("resnet20")
    networks = (model, spectral.convert(model, "strided"))
    one, two = (next(iter(capture(network, x, "dense").values())) for network in networks)
    assert float((one - two).abs().max()) > 0.1 * float(one.abs().max())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_folding_a_norm_changes_nothing(name):
    model, x = load(name)
    folded = copy.deepcopy(model)
    pairs = 0
    for module in list(folded.modules()):
        children = dict(module.named_children())
        names = list(children)
        for conv, norm in pairwise(names):
            if isinstance(children[conv], nn.Conv2d) and isinstance(children[norm], nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(children[conv], children[norm]))
                setattr(module, norm, nn.Identity())
                pairs += 1
    assert pairs > 3
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))
    assert_same(capture(model, x), capture(folded, x))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "efficientnet"])
def test_rescaling_channels_before_a_norm_changes_nothing(name):
    model, x = load(name)
    scaled = copy.deepcopy(model)
    modules = list(scaled.modules())
    for conv, norm in pairwise(modules):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            scale = torch.exp(noise(len(conv.weight)))
            with torch.no_grad():
                conv.weight *= scale.view(-1, 1, 1, 1)
                norm.running_mean *= scale
                # the norm adds its eps to the variance, so that has to scale with the rest
                norm.running_var.copy_((norm.running_var + norm.eps) * scale**2 - norm.eps)
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), model(x))
    assert_same(capture(model, x), capture(scaled, x), 1e-8)


class Ordered(nn.Module):
    """conv, norm, activation and decimation, in any order in which convolution is first."""

    def __init__(self, order: str, act: Callable[[Tensor], Tensor], stride: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1, bias=False), norm
        self.next, self.act, self.order, self.stride = nn.Conv2d(5, 4, 3), act, order, stride
        self.fused = nn.Conv2d(3, 5, 3, stride, 1, bias=False)
        self.fused.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        for step in self.order:
            if step == "c":
                x = self.conv(x)
            elif step == "s":
                x = self.fused(x)
            elif step == "n":
                x = self.norm(x)
            elif step == "a":
                x = self.act(x)
            else:
                x = x[:, :, :: self.stride, :: self.stride]
        return self.next(x).mean((2, 3))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def hard(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


class ChannelNorm(nn.Module):
    """A norm over channels by axes turned, as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WrittenNorm(nn.Module):
    """The same by arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def make_frozen() -> nn.Module:
    norm = FrozenBatchNorm2d(5)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.running_mean, -1, 1)
    return norm


ACTIVATIONS = {
    "relu": F.relu, "in place": lambda x: F.relu_(x), "silu": F.silu, "swish": swish, "hard": hard,
    "gelu": F.gelu, "leaky": lambda x: F.leaky_relu(x, 0.1),
    "prelu": lambda x: F.prelu(x, torch.full((5,), 0.2).to(x)),
    "none": lambda x: x, "softplus": F.softplus, "clamp": lambda x: x.clamp(-0.5, 0.5),
}  # fmt: skip
NORMS = {
    "batch": lambda: nn.BatchNorm2d(5), "layer": ChannelNorm, "written": WrittenNorm, "none": nn.Identity,
    "frozen": make_frozen,
}  # fmt: skip


@QUICK
@given(
    act=st.sampled_from(list(ACTIVATIONS)), norm=st.sampled_from(list(NORMS)),
    stride=st.sampled_from([2, 3, 4]), size=st.integers(13, 20),
)  # fmt: skip
def test_where_along_the_chain_samples_are_dropped_changes_nothing(act, norm, stride, size):
    first = seeded(lambda: Ordered("sna", ACTIVATIONS[act], stride, NORMS[norm]()))
    x = noise(2, 3, size, size + 1)
    expected = capture(first, x)
    with torch.no_grad():
        dense = ACTIVATIONS[act](first.norm(first.conv(x)))
    torch.testing.assert_close(next(iter(expected.values())), dense)
    for order in ("cdna", "cnda", "cnad"):
        other = copy.deepcopy(first)
        other.order = order
        torch.testing.assert_close(other(x), first(x))
        assert_same(expected, capture(other, x))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_and_activation_is_followed(act, norm):
    model = seeded(lambda: Ordered("sna", ACTIVATIONS[act], 2, NORMS[norm]()))
    x = noise(1, 3, 12, 12)
    with torch.no_grad():
        dense = ACTIVATIONS[act](model.norm(model.conv(x)))
    torch.testing.assert_close(capture(model, x)["fused"], dense)


def test_a_1x1_shortcut_is_one_site_wherever_its_decimation_stands():
    class Block(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.conv, self.short = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 1 if first else 2)
            self.norm, self.first = nn.BatchNorm2d(4), first

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            y = x[..., ::2, ::2] if self.first else x
            return (self.conv(x) + self.norm(self.short(y))).mean((2, 3))

    before, behind = seeded(lambda: Block(True)), seeded(lambda: Block(False))
    x = noise(2, 3, 12, 12)
    torch.testing.assert_close(before(x), behind(x))
    one, two = capture(before, x), capture(behind, x)
    torch.testing.assert_close(one[":slice0"], two["short"])
    assert one[":slice0"].shape == (2, 4, 12, 12)
    x = x.contiguous(
        memory_format=torch.channels_last
    )  # a layer of ours lays its map out alike, by turning axes
    moved = capture(spectral.convert(behind, "strided", example=x), x)
    torch.testing.assert_close(moved["short.antialias"], two["short"])


@pytest.mark.parametrize("conv", [nn.Conv2d, Standardised])
def test_a_pre_activation_shortcut_has_one_signal_also_with_weights_made_anew(conv):
    """A slice that keeps all of a map, as a converted convolution of its own class has, is no reader."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.down, self.conv = conv(3, 8, 1, 2), conv(3, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(x))
            return (self.down(x) + self.conv(x)).mean((2, 3))

    model, x = seeded(Block), noise(2, 3, 9, 12)
    twin = spectral.convert(model, "strided", example=x)
    torch.testing.assert_close(twin(x), model(x))
    assert_same(capture(model, x), capture(twin, x))


class Written(nn.Module):
    """A pool or a convolution, an activation that commutes with it and a decimation, written in four ways."""

    def __init__(self, kind: str, way: int, tail: int, shared: bool) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, 2, 1)
        self.tail, self.kind, self.way, self.shared = nn.Conv2d(6, 5, tail), kind, way, shared
        self.weight = nn.Parameter(torch.rand(6, 1, 2, 2) - 0.5)

    def reduce(self, x: Tensor, step: int) -> Tensor:
        if self.kind == "conv":
            return F.conv2d(x, self.weight, stride=step, groups=6)
        return F.max_pool2d(x, 3, step, 1) if self.kind == "max" else F.avg_pool2d(x, 2, step)

    def forward(self, x: Tensor) -> Tensor:
        found = x = F.relu(self.first(x))
        act = (lambda y: y) if self.kind == "avg" else F.hardtanh
        if self.way == 0:
            x = act(self.reduce(x, 2))
        elif self.way == 1:
            x = act(self.reduce(x, 1)[..., ::2, ::2])
        elif self.way == 2:
            x = act(self.reduce(x, 1))[..., ::2, ::2]
        else:
            x = self.reduce(act(x), 1)[..., ::2, ::2] if self.kind == "max" else act(self.reduce(x, 2))
        x = self.tail(x).mean((2, 3))
        return x + self.other(found).mean((2, 3)) if self.shared else x


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tail", [1, 3])
@pytest.mark.parametrize("kind", ["max", "avg", "conv"])
def test_a_pool_is_one_site_wherever_its_decimation_stands(kind, tail, shared):
    """Also before a 1×1 convolution, to which a decimation belongs only if nothing before could have it."""
    x = noise(2, 3, 13, 14)
    networks = [seeded(lambda way=way: Written(kind, way, tail, shared)) for way in range(4)]
    found = [{n: y for n, y in capture(network, x).items() if n != "other"} for network in networks]
    for network, maps in zip(networks[1:], found[1:], strict=True):
        torch.testing.assert_close(network(x), networks[0](x))
        assert_same(found[0], maps)


@pytest.mark.parametrize("shared", [False, True])
def test_a_pool_that_counts_what_its_windows_have_is_one_site_as_a_twin(shared):
    """As the shortcuts of timm's later ResNets: windows hang over the border, a 1×1 convolution follows."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            self.first, self.down, self.other = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1), nn.Conv2d(5, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            y = self.down(self.pool(x)).mean((2, 3))
            return y + self.other(x).mean((2, 3)) if shared else y

    model, x = seeded(Block), noise(2, 3, 13, 17)
    twin = spectral.convert(model, "strided", example=x)
    torch.testing.assert_close(twin(x), model(x))
    maps = capture(model, x)
    assert maps["pool"].shape[1] == (6 if shared else 5)
    assert_same(maps, capture(twin, x))


def test_a_decimation_behind_a_convolution_is_its_own_whatever_follows():
    convs = [seeded(lambda s=s: nn.Conv2d(3, 4, 3, s)) for s in (1, 2)]
    last, x = seeded(lambda: nn.Conv2d(4, 4, 1)), noise(2, 3, 13, 14)

    class Net(nn.Module):
        def __init__(self, strided: bool) -> None:
            super().__init__()
            self.conv, self.last, self.strided = convs[strided], last, strided

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.last(x if self.strided else x[..., ::2, ::2])

    assert_same(capture(Net(False), x), capture(Net(True), x))


class Laid(nn.Module):
    """A convolution with a stride, norm and activation: as a map, tokens, rows or with channels last."""

    def __init__(self, how: str, act: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.LayerNorm(6), nn.Conv2d(6, 4, 3)
        nn.init.normal_(self.norm.weight)
        self.how, self.act = how, act

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "slice":
            y = F.conv2d(x, self.conv.weight, self.conv.bias, 1, 1).permute(0, 2, 3, 1)[:, ::2, ::2]
            return self.last(self.act(self.norm(y)).permute(0, 3, 1, 2))
        y = self.conv(x)
        b, c, h, w = y.shape
        if self.how == "tokens":
            y = self.act(self.norm(y.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, (h, w))
        elif self.how == "rows":
            y = self.act(self.norm(y.permute(0, 2, 3, 1).reshape(-1, c))).view(b, h, w, c).permute(0, 3, 1, 2)
        else:
            y = self.act(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.last(y)


@pytest.mark.parametrize("act", [F.gelu, F.relu_])
@pytest.mark.parametrize("how", ["tokens", "rows", "slice"])
def test_a_map_written_as_tokens_rows_or_with_channels_last_is_one(how, act):
    """As Segformer and PVT of transformers, whose maps are tokens where timm's are maps."""
    x = noise(2, 3, 22, 30)
    a, b = (seeded(lambda own=own: Laid(own, act)) for own in ("map", how))
    with torch.no_grad():
        torch.testing.assert_close(a(x), b(x))
    assert_same(capture(a, x), capture(b, x))
    assert len(only(b, x[:1]).chain.operators) == 2


# Where the chain ends -------------------------------------------------------------------------------------


class Body(nn.Module):
    """A strided convolution, and what a function makes of its map."""

    def __init__(self, rest: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.rest = nn.Conv2d(3, 4, 3, 2, 1), rest
        self.places = nn.Parameter(torch.rand(1, 4, 8, 8))
        self.group, self.last = nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3)
        self.last2 = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.conv(x))


REST = {
    "residual": (lambda m, y: m.last(F.relu(y + m.conv.weight.mean() * y.flip(2))), "dense", "flip"),
    "both": (lambda m, y: m.last(F.relu(y)) + m.last2(y)[..., 1:-1, 1:-1], "dense", "convolution"),
    "places": (lambda m, y: m.last(F.relu(y + m.places)), "dense", "add"),
    "group": (lambda m, y: m.last(F.relu(m.group(y))), "dense", "native_group_norm"),
    "gate": (lambda m, y: m.last(F.relu(y) * F.relu(y).mean((2, 3), keepdim=True)), "dense", ""),
    "view": (lambda m, y: m.last(y.unflatten(1, (2, 2)).relu().flatten(1, 2)), "dense", "view"),
    "tokens": (lambda m, y: y.flatten(2).relu().mean(-1), "behind relu", ""),
    "overwritten": (lambda m, y: (F.relu_(y.permute(0, 2, 3, 1)), m.last(y * 2))[1], "dense", "mul"),
    "returned": (lambda m, y: F.relu(y) if y.requires_grad else (y, F.relu(y))[1], "behind relu", ""),
    "nothing": (lambda m, y: y, "dense", "the output"),
    "noise": (lambda m, y: m.last(F.relu(y + torch.rand(()))), "dense", "add"),
}


@pytest.mark.parametrize("case", REST)
def test_a_chain_ends_where_places_are_mixed_and_the_site_says_at_what(case):
    rest, start, reader = REST[case]
    site = only(seeded(lambda: Body(rest)), noise(1, 3, 16, 16))
    assert site.signal.startswith(start), site.signal
    assert reader in site.signal
    if site.chain is None:
        model = seeded(lambda: Body(rest))
        assert_same(capture(model, noise(1, 3, 16, 16)), capture(model, noise(1, 3, 16, 16), "dense"), 0)


def test_in_place_sums_with_other_maps_end_it():
    def rest(m: nn.Module, y: Tensor) -> Tensor:
        y = F.relu(y)
        y += F.avg_pool2d(y, 3, 1, 1)
        return m.last(F.gelu(y))

    assert only(seeded(lambda: Body(rest)), noise(1, 3, 16, 16)).signal == "behind relu"


def test_tokens_and_heads_have_a_reason():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64)
    assert only(vit, torch.rand(1, 3, 64, 64)).signal.startswith(
        "dense: no pointwise operator follows, but cat"
    )


# Weights, types, devices, pieces --------------------------------------------------------------------------


def test_it_follows_the_weights_as_they_are_now():
    model, x = load("resnet18")
    sites = [site for site in find_sites(model, x) if site.name == "conv1"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.bn1.bias += 1
        model.bn1.running_mean.zero_()
    with torch.no_grad(), FeatureExtractor(model, sites, tap="signal") as fx:
        model(x)
        found = fx["conv1"]
    torch.testing.assert_close(found[..., ::2, ::2], model.relu(model.bn1(model.conv1(x))))
    with torch.no_grad(), FeatureExtractor(twin, sites, tap="signal") as fx:
        twin(x)
        other = fx["conv1"]
    torch.testing.assert_close(other[..., ::2, ::2], twin.relu(twin.bn1(twin.conv1(x))))
    assert float((found - other).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["nula", "resnet18", "efficientnet"])
def test_pieces_of_images_and_channels_are_pieces_of_the_whole(name):
    model, x = load(name)
    sites = [site for site in find_sites(model, x) if site.measurable]
    seen = []

    def check(one: Capture) -> None:
        whole = one.signal()
        half = slice(0, one.decimation.channels // 2)
        if one.site.chain is None or not one.site.chain.mixes:
            part = one.follow(one.dense(slice(1, 2), half), half)
            torch.testing.assert_close(part, whole[1:2, half], rtol=1e-9, atol=1e-10)
        seen.append(one.site.name)

    with torch.no_grad(), FeatureExtractor(model, sites, tap="dense", reduce=check):
        model(x)
    assert seen == [site.name for site in sites]


class Spread(nn.Module):
    """A blur before a 1×1 convolution to more channels, and a weight for each of those."""

    def __init__(self) -> None:
        super().__init__()
        self.blur, self.mix = spectral.layers.BlurPool2d(4), nn.Conv2d(4, 8, 1)
        self.norm, self.gain = nn.BatchNorm2d(8), nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(self.blur(x)) * self.gain)


def test_weights_behind_more_channels_than_the_site_has_are_whole():
    """A norm given half of its weights read beyond their end: right by luck on a CPU, NaN on a GPU."""
    net, x = seeded(Spread), noise(2, 4, 12, 14)
    (site,) = find_sites(net, x)
    assert len(site.chain.operators) == 3
    (made,) = capture(net, x).values()
    assert_same({"": made[..., ::2, ::2]}, {"": net(x)})
    lengths = set()
    norm = torch.ops.aten.native_batch_norm.default

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is norm:
                lengths.add((args[0].shape[1], *(len(w) for w in args[1:5])))
            return func(*args, **kwargs or {})

    with Watch():
        spectral.measure(net, x, ("alias_power_ratio",), taps=("signal",), progress=False)
    assert lengths == {(8, 8, 8, 8, 8)}


def test_a_capture_changes_no_output_and_no_dense_map():
    model, x = load("resnet18")
    with torch.no_grad():
        before = model(x)
    sites = [site for site in find_sites(model, x) if site.measurable]
    maps = []

    def check(one: Capture) -> None:
        dense = one.dense()
        kept = dense.clone()
        one.follow(dense)  # its relu works in place
        maps.append(torch.equal(dense, kept))

    with torch.no_grad(), FeatureExtractor(model, sites, tap="dense", reduce=check, share_dense=False):
        after = model(x)
    assert torch.equal(before, after)
    assert maps == [True] * len(sites)


def test_gradients_go_through_it():
    model, x = load("resnet20")
    sites = find_sites(model, x)[:1]
    with FeatureExtractor(model, sites, tap="signal", detach=False) as fx:
        model(x)
        spectral.compute_channel_alias_ratios(fx[sites[0].name]).sum().backward()
    assert float(model.get_submodule("layer2.0.conv1").weight.grad.abs().max()) > 0
    assert float(model.get_submodule("layer2.0.bn1").bias.grad.abs().max()) > 0


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_videos(axes):
    conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
    model = seeded(lambda: nn.Sequential(conv(2, 4, 3, 2, 1), norm(4), nn.ReLU(), conv(4, 3, 3)))
    x = noise(2, 2, *[14] * axes)
    (found,) = capture(model, x).values()
    kept = found[(..., *[slice(None, None, 2)] * axes)] if axes == 3 else found[..., ::2]
    with torch.no_grad():
        expected = model[2](model[1](model[0](x)))
    torch.testing.assert_close(kept if axes == 3 else kept.squeeze(-2), expected)


@pytest.mark.parametrize("pool", [nn.AvgPool1d(2), nn.MaxPool1d(3, 2, 1)])
def test_a_pool_of_signals_has_the_signal_of_its_twin(pool):
    """It is one of images of a single row, which is taken away behind it."""
    net = nn.Sequential(nn.Conv1d(2, 4, 3), pool, nn.BatchNorm1d(4), nn.GELU(), nn.Conv1d(4, 3, 3))
    model, x = seeded(lambda: net), noise(2, 2, 19)
    assert only(model, x).signal == "behind native_batch_norm, gelu"
    assert_same(capture(model, x), capture(spectral.convert(model, "strided", example=x), x))


class Counting(nn.Module):
    """Counts the places where a map is positive, as networks do that threshold masks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x).relu() > 0).flatten(2).sum(2).double()


def test_a_comparison_has_no_spectrum():
    model, x = seeded(Counting), noise(1, 3, 16, 16)
    assert only(model, x).signal == "behind relu"
    table = spectral.measure(model, x, ("avr", "alias_power_ratio_channel_median"), progress=False)
    assert table["value"].notna().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())).to(dtype)
    x = noise(1, 3, 8, 8).to(dtype)
    (found,) = capture(model, x).values()
    with torch.no_grad():
        torch.testing.assert_close(found[..., ::2, ::2], model(x))


# In tables ------------------------------------------------------------------------------------------------


def test_headlines_are_of_the_signal_and_a_twin_has_the_same():
    model = spectral.load_model("bundled/resnet20")
    images = spectral.load_images("samples", size=32, limit=6)
    metrics = ("avr_separable_exclude_dc", "am_relative", "alias_power_ratio_channel_median",
               "alias_power_ratio_channel_p90")  # fmt: skip
    one, two = (
        spectral.measure(m, images, metrics, taps=("dense", "signal"), progress=False)
        for m in (model, spectral.convert(model, "strided"))
    )
    at = [table[table["tap"] == "signal"] for table in (one, two)]
    np.testing.assert_allclose(at[0]["value"], at[1]["value"], rtol=1e-5)
    assert set(at[0]["metric"]) == {*metrics, "power", "live_channels"}
    dense = [t[(t["tap"] == "dense") & (t["metric"] == metrics[0])]["value"].to_numpy() for t in (one, two)]
    assert np.abs(dense[0] - dense[1]).max() > 0.02
    assert next(site["signal"] for site in one.attrs["sites"]) == "behind native_batch_norm, relu"


def test_dead_channels_have_no_ratio_and_a_dead_map_is_silent():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    )
    with torch.no_grad():
        model[1].bias[1:] = -1e3
    table = spectral.measure(
        model, noise(3, 3, 16, 16), ("alias_power_ratio_channel_median",), progress=False
    )
    assert set(table[table["metric"] == "live_channels"]["value"]) == {1.0}
    with torch.no_grad():
        model[1].bias.fill_(-1e3)
    table = spectral.measure(
        model, noise(3, 3, 16, 16), ("alias_power_ratio_channel_median",), progress=False
    )
    summary = spectral.summarize_measurements(table).set_index("metric")
    row = summary.loc["alias_power_ratio_channel_median"]
    assert (row["n"], row["n_silent"], row["n_absent"]) == (0, 3, 0)
    assert np.isnan(row["mean"])


def test_a_summary_has_decibels():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    table = spectral.measure(
        model, noise(5, 3, 16, 16), ("alias_power_ratio_channel_median",), progress=False
    )
    row = spectral.summarize_measurements(table).set_index("metric").loc["alias_power_ratio_channel_median"]
    assert row["db"] == pytest.approx(10 * np.log10(row["mean"]))
    assert row["db_ci_low"] < row["db"] < row["db_ci_high"]


@pytest.mark.parametrize("size", [3, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_map_has_nothing_above_any_limit_and_is_silent_without_its_mean(size, dtype):
    """Half of the images are constant: they are counted, and take no part in means and tests."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, 2)).to(dtype)
    x = torch.rand(4, 1, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x[:2] = 0.7
    metrics = ("avr", "avr_hann", "avr_exclude_dc", "avr_separable_exclude_dc",
               "alias_power_ratio_channel_median")  # fmt: skip
    table = spectral.measure(model, x, metrics, taps=("input", "dense", "signal"), progress=False)
    constant = table[table["image"].isin(table["image"].unique()[:2])].set_index("metric")["value"]
    assert (constant[["avr", "avr_hann"]].abs() < 1e-12).all()
    assert constant[["avr_exclude_dc", "avr_separable_exclude_dc"]].isna().all()
    assert (constant["live_channels"] == 0).all()
    summary = spectral.summarize_measurements(table)
    counts = summary.set_index("metric")[["n", "n_silent"]]
    assert set(counts.loc[["avr", "avr_hann"]].itertuples(index=False, name=None)) == {(4, 0)}
    assert set(counts.loc[list(metrics[2:])].itertuples(index=False, name=None)) == {(2, 2)}
    varying = table[table["image"].isin(table["image"].unique()[2:])]
    alone = spectral.summarize_measurements(varying).set_index("metric").loc[list(metrics[2:]), "mean"]
    assert summary.set_index("metric").loc[list(metrics[2:]), "mean"].tolist() == alone.tolist()


def test_sites_with_their_chains_are_pickled():
    """As a data loader's workers and `torch.save` want it."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.GELU()))
    sites = find_sites(net, 16)
    again = pickle.loads(pickle.dumps(sites))
    x = torch.rand(2, 3, 16, 16, dtype=net[0].weight.dtype)
    found = []
    for (site,) in (sites, again):
        with FeatureExtractor(net, [site], tap="signal") as signal:
            net(x)
        found.append(signal[site.name])
    assert again == sites
    torch.testing.assert_close(*found, rtol=0, atol=0)
