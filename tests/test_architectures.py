"""Our own networks: sizes counted by hand, where they downsample, and what anti-aliasing replaces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spectral.errors import SpectralError
from spectral.layers import BlurPool2d
from spectral.models import cifar
from spectral.models.architectures import ARCHITECTURES, build, family_of
from spectral.models.cifar import BasicBlock, CifarResNet, OptionAShortcut, pool_factory
from spectral.models.nula import NULA, SqueezeExcitation, Stage


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def sizes_of(model: nn.Module, names: list[str], size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Map sizes that leave the named modules."""
    seen: dict[str, tuple[int, ...]] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: tuple(output.shape[1:])})
        )
        for name in names
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size))
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


def randomize(model: nn.Module) -> nn.Module:
    """Give batch norm statistics and weights that are no identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def resnet20_parameters(width: int = 16) -> int:
    """Section 4.2 of the paper: 3×3 convolutions without bias, batch norm, one linear layer."""
    total = 3 * width * 9 + 2 * width
    previous = width
    for channels in (width, 2 * width, 4 * width):
        total += previous * channels * 9 + 5 * channels * channels * 9 + 6 * 2 * channels
        previous = channels
    return total + previous * 10 + 10


@pytest.mark.parametrize(
    ("block", "activation"),
    [
        (BasicBlock(4, 6, 2, "B", BlurPool2d), nn.functional.relu),
        (Stage(4, 6, halve=True, downsample="blurpool"), nn.functional.silu),
    ],
)
def test_the_blur_follows_the_first_activation(block, activation):
    randomize(block)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    y = block.pool(activation(block.bn1(block.conv1(x))))
    y = getattr(block, "se", nn.Identity())(block.bn2(block.conv2(y)))
    blur, project, norm = block.shortcut
    assert isinstance(blur, BlurPool2d)
    torch.testing.assert_close(block(x), activation(y + norm(project(blur(x)))), rtol=1e-12, atol=1e-13)


class TestCifarResNet:
    def test_parameter_count(self):
        assert resnet20_parameters() == 269_722  # the published 0.27 M
        assert parameters(build("resnet20-a")) == 269_722
        projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
        assert parameters(build("resnet20")) == 269_722 + projections
        assert parameters(build("resnet20-blurpool")) == 269_722 + projections  # the blur learns nothing

    @pytest.mark.parametrize(("depth", "convolutions"), [(8, 7), (20, 19), (32, 31)])
    def test_depth_counts_weighted_layers(self, depth, convolutions):
        model = CifarResNet(depth, width=2, shortcut="A")
        assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions

    @pytest.mark.parametrize("name", ["resnet20", "resnet20-a", "resnet20-blurpool"])
    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 5), (1, 1)])
    def test_sizes_halve_twice_rounding_up(self, name, size):
        h, w = size
        expected = [
            (16, h, w),
            (32, math.ceil(h / 2), math.ceil(w / 2)),
            (64, math.ceil(h / 4), math.ceil(w / 4)),
        ]
        assert sizes_of(build(name), ["layer1", "layer2", "layer3"], size) == expected

    def test_strides_are_where_the_paper_has_them(self):
        strided = {
            n: m.stride
            for n, m in build("resnet20").named_modules()
            if isinstance(m, nn.Conv2d) and m.stride != (1, 1)
        }
        places = ["layer2.0.conv1", "layer2.0.shortcut.0", "layer3.0.conv1", "layer3.0.shortcut.0"]
        assert strided == dict.fromkeys(places, (2, 2))

    def test_blurpool_replaces_every_stride(self):
        model = build("resnet20-blurpool")
        assert all(m.stride == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))
        blurs = {n: (m.channels, m.stride) for n, m in model.named_modules() if isinstance(m, BlurPool2d)}
        assert blurs == {
            "layer2.0.pool": (32, (2, 2)), "layer2.0.shortcut.0": (16, (2, 2)),
            "layer3.0.pool": (64, (2, 2)), "layer3.0.shortcut.0": (32, (2, 2)),
        }  # fmt: skip

    @pytest.mark.parametrize("shortcut", ["A", "B"])
    @pytest.mark.parametrize("size", [(16, 16), (15, 18)])
    def test_with_a_one_tap_blur_it_is_the_strided_network(self, shortcut, size, monkeypatch):
        # conv at stride 1 → batch norm → ReLU → keep every second sample is the strided convolution exactly.
        strided = randomize(CifarResNet(8, 4, shortcut=shortcut))
        monkeypatch.setitem(cifar.POOLS, "blurpool", lambda channels: BlurPool2d(channels, kernel_size=1))
        pooled = CifarResNet(8, 4, shortcut=shortcut, downsample="blurpool").double().eval()
        names = iter(strided.state_dict().values())
        weights = {k: next(names) for k in pooled.state_dict() if not k.endswith("kernel")}
        assert next(names, None) is None
        pooled.load_state_dict(weights, strict=False)
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(pooled(x), strided(x), rtol=1e-11, atol=1e-12)

    def test_option_a_slices_and_pads_channels_with_zeros(self):
        x = torch.randn(2, 4, 7, 6)
        y = OptionAShortcut(4, 10, None)(x)
        assert y.shape == (2, 10, 4, 3)
        assert torch.equal(y[:, 3:7], x[:, :, ::2, ::2])
        assert y[:, :3].abs().max() == y[:, 7:].abs().max() == 0

    def test_option_a_blurs_before_it_slices(self):
        x = torch.randn(2, 4, 7, 6)
        y = OptionAShortcut(4, 8, BlurPool2d)(x)
        assert torch.equal(y[:, 2:6], BlurPool2d(4)(x))

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"depth": 18}, r"depth must be 6n \+ 2 \(8, 14, 20, …\), got 18"),
            ({"depth": 2}, r"depth must be 6n \+ 2 \(8, 14, 20, …\), got 2"),
            ({"shortcut": "C"}, "shortcut must be 'A' or 'B', got 'C'"),
            ({"downsample": "blur"}, "downsample must be one of strided, blurpool, got 'blur'"),
        ],
    )
    def test_bad_arguments(self, arguments, sentence):
        with pytest.raises(SpectralError, match=sentence):
            CifarResNet(**arguments)


class TestNula:
    def test_size_on_the_card(self):
        # Stem 128, stages 128, 256 and 512 with squeeze-excitation, head 512 → 512 → 10; batch norm keeps
        # weight, bias, mean, variance and a counter; blurs keep a 3×3 kernel per channel.
        def bn(c):
            return 4 * c + 1

        def stage(a, b, halve):
            total = 9 * a * b + bn(b) + 9 * b * b + bn(b)
            total += (b * (b // 16) + b // 16) + ((b // 16) * b + b)
            if a != b:
                total += a * b + bn(b)
            return total + (9 * (a + b) if halve else 0)

        expected = 3 * 128 * 9 + bn(128)
        expected += stage(128, 128, False) + stage(128, 256, True) + stage(256, 512, True)
        expected += (512 * 512 + 512) + (512 * 10 + 10)
        elements = sum(value.numel() for value in build("nula").state_dict().values())
        assert elements == expected
        assert round(elements / 1e6, 2) == 5.22

    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1)])
    def test_sizes(self, size):
        h, w = size
        half, quarter = (math.ceil(h / 2), math.ceil(w / 2)), (math.ceil(h / 4), math.ceil(w / 4))
        expected = [(8, h, w), (8, h, w), (16, *half), (32, *quarter)]
        assert sizes_of(NULA(width=8), ["stem", "stage1", "stage2", "stage3"], size) == expected

    @pytest.mark.parametrize("name", ["nula", "nula-w32"])
    def test_no_stride_but_the_blurs(self, name):
        model = build(name)
        assert all(m.stride == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))
        blurs = [n for n, m in model.named_modules() if isinstance(m, BlurPool2d)]
        assert blurs == ["stage2.pool", "stage2.shortcut.0", "stage3.pool", "stage3.shortcut.0"]

    def test_with_a_one_tap_blur_it_is_the_strided_network(self, monkeypatch):
        strided = randomize(NULA(width=4, downsample="strided"))
        monkeypatch.setitem(cifar.POOLS, "blurpool", lambda channels: BlurPool2d(channels, kernel_size=1))
        pooled = NULA(width=4).double().eval()
        values = iter(strided.state_dict().values())
        weights = {k: next(values) for k in pooled.state_dict() if not k.endswith("kernel")}
        pooled.load_state_dict(weights, strict=False)
        x = torch.randn(2, 3, 15, 16, dtype=torch.float64)
        torch.testing.assert_close(pooled(x), strided(x), rtol=1e-11, atol=1e-12)

    def test_squeeze_excitation(self):
        torch.manual_seed(0)
        layer = SqueezeExcitation(32).double()
        assert layer.reduce.weight.shape == (2, 32)
        x = torch.randn(3, 32, 4, 5, dtype=torch.float64)
        hidden = x.sum((2, 3)) / 20 @ layer.reduce.weight.T + layer.reduce.bias
        hidden = hidden / (1 + torch.exp(-hidden))
        scale = 1 / (1 + torch.exp(-(hidden @ layer.expand.weight.T + layer.expand.bias)))
        torch.testing.assert_close(layer(x), x * scale.view(3, 32, 1, 1), rtol=1e-12, atol=1e-13)

    def test_head_has_the_dropout_of_the_card(self):
        (dropout,) = [m for m in NULA(width=4).modules() if isinstance(m, nn.Dropout)]
        assert dropout.p == 0.3

    def test_bad_width(self):
        with pytest.raises(SpectralError, match="NULA: width must be ≥ 1, got 0"):
            NULA(width=0)


class TestNames:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_name_builds_and_answers(self, name):
        with torch.no_grad():
            assert build(name).eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)

    def test_families(self):
        expected = {
            "resnet20": "strided", "resnet20-a": "strided", "resnet20-blurpool": "blurpool",
            "nula": "nula", "nula-w32": "nula",
        }  # fmt: skip
        assert {name: family_of(name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("resnet-20", "resnet20"), ("nulla", "nula"), ("resnet20blurpool", "resnet20-blurpool")],
    )
    def test_unknown_names_offer_the_nearest(self, name, nearest):
        with pytest.raises(
            SpectralError, match=f"unknown architecture '{name}'; nearest: '{nearest}'.*available: resnet20"
        ):
            build(name)

    def test_a_name_like_none_offers_all(self):
        with pytest.raises(SpectralError, match="unknown architecture 'zzz'; available: resnet20, "):
            build("zzz")

    def test_pool_factory(self):
        assert pool_factory("strided") is None
        assert isinstance(pool_factory("blurpool")(3), BlurPool2d)
