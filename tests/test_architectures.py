"""Our own networks: sizes counted by hand, where they downsample, and what anti-aliasing replaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers import LAYERS, ASAPPool2d, BlurPool2d, FLCPool2d, LPSPool2d, WaveletPool2d
from spectral.models.architectures import ARCHITECTURES, build, family_of
from spectral.models.cifar import BasicBlock, CifarResNet, OptionAShortcut
from spectral.models.nula import NULA, SqueezeExcitation, Stage
from spectral.models.pooling import pool_factory
from spectral.models.preact import PreActBlock, PreActResNet18
from spectral.models.resnet18 import ResNet18
from spectral.models.wrn import WideBlock, WideResNet
from spectral.sites import find_sites
from spectral.surgery import convert

# Small networks of every kind, by the name of what halves their maps.
SMALL: dict[str, Callable[[str], nn.Module]] = {
    "resnet": lambda downsample: CifarResNet(8, 4, downsample=downsample),
    "resnet-a": lambda downsample: CifarResNet(8, 4, shortcut="A", downsample=downsample),
    "nula": lambda downsample: NULA(4, downsample=downsample),
    "preact": lambda downsample: PreActResNet18(4, downsample=downsample),
    "wrn": lambda downsample: WideResNet(10, 2, 4, downsample=downsample),
}


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


def resnet_parameters(depth: int = 20, width: int = 16) -> int:
    """Section 4.2 of the paper: 3×3 convolutions without bias, batch norm, one linear layer."""
    total = 3 * width * 9 + 2 * width
    previous, layers = width, (depth - 2) // 3
    for channels in (width, 2 * width, 4 * width):
        total += previous * channels * 9 + (layers - 1) * channels * channels * 9 + layers * 2 * channels
        previous = channels
    return total + previous * 10 + 10


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    kept = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in kept}, f"{name}.num_batches_tracked": ()}


def block_shapes(name: str, entering: int, leaving: int, projection: str) -> dict[str, tuple[int, ...]]:
    """A pre-activation block as RobustBench names it; a projection only where channels change."""
    shapes = {
        **norm_shapes(f"{name}.bn1", entering), f"{name}.conv1.weight": (leaving, entering, 3, 3),
        **norm_shapes(f"{name}.bn2", leaving), f"{name}.conv2.weight": (leaving, leaving, 3, 3),
    }  # fmt: skip
    return (
        {**shapes, f"{name}.{projection}.weight": (leaving, entering, 1, 1)}
        if entering != leaving
        else shapes
    )


def use_state(state: dict[str, Tensor]) -> tuple[Callable[..., Tensor], Callable[[str, Tensor], Tensor]]:
    """The reference's two operations, by names in a state dict: a convolution, a normalised activation."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def activate(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{part}"].view(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / torch.sqrt(var + 1e-5) * scale + shift).clamp(min=0)

    return conv, activate


def weights_without_buffers_of_pools(pooled: nn.Module, strided: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Pair the strided network's values with the pooled one's names, in order; pools have kernels besides."""
    names = [name for name in pooled.state_dict() if not name.endswith("kernel")]
    return zip(names, strided.state_dict().values(), strict=True)


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


@pytest.mark.parametrize("block", [PreActBlock, WideBlock])
def test_the_blur_of_a_pre_activation_block_follows_the_second_activation(block):
    halving = randomize(block(4, 6, 2, BlurPool2d))
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    activated = F.relu(halving.bn1(x))
    y = halving.conv2(halving.pool(F.relu(halving.bn2(halving.conv1(activated)))))
    blur, project = halving.shortcut if block is PreActBlock else halving.convShortcut
    assert isinstance(blur, BlurPool2d)
    source = x if block is PreActBlock else activated
    torch.testing.assert_close(halving(x), y + project(blur(source)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_with_a_one_tap_blur_it_is_the_strided_network(kind, size):
    # conv at stride 1 → norm → activation → keep every second sample is the strided convolution exactly.
    strided = randomize(SMALL[kind]("strided"))
    pooled = SMALL[kind]("blurpool-1").double().eval()
    pooled.load_state_dict(dict(weights_without_buffers_of_pools(pooled, strided)), strict=False)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pooled(x), strided(x), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["resnet", "nula", "preact", "wrn"])
def test_layers_stand_where_conversion_puts_them(kind):
    strided = randomize(SMALL[kind]("strided"))
    built = SMALL[kind]("flc").double().eval()
    built.load_state_dict(dict(weights_without_buffers_of_pools(built, strided)))
    x = torch.randn(2, 3, 18, 13, dtype=torch.float64)
    expected = convert(strided, "flc", example=(18, 13))(x)
    assert (expected - strided(x)).abs().max() > 1e-6  # of weights that differ in every order of tests
    torch.testing.assert_close(built(x), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("downsample", LAYERS)
def test_every_layer_takes_the_place_of_every_stride(kind, downsample):
    model = SMALL[kind](downsample).eval()
    assert all(m.stride == (1, 1) for m in model.modules() if type(m) is nn.Conv2d)
    stages = [name for name, _ in model.named_children() if name[:-1] in ("layer", "stage", "block")]
    halvings = 3 if kind == "preact" else 2
    expected = [(math.ceil(19 / 2**i), math.ceil(14 / 2**i)) for i in (0, 1, 2, 3)[: halvings + 1]]
    assert [size[1:] for size in sizes_of(model, stages, (19, 14))] == expected
    logits = model(torch.rand(2, 3, 19, 14))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("downsample", ["strided", "blurpool", "flc"])
def test_every_halving_is_a_site_that_can_be_measured(kind, downsample):
    sites = find_sites(SMALL[kind](downsample), 32)
    assert len(sites) == (6 if kind == "preact" else 4)
    assert all(site.measurable and site.stride == (2, 2) for site in sites)
    assert sorted({site.input_size for site in sites}, reverse=True) == (
        [(32, 32), (16, 16), (8, 8)] if kind == "preact" else [(32, 32), (16, 16)]
    )


class TestCifarResNet:
    @pytest.mark.parametrize(
        ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
    )
    def test_option_a_has_the_published_parameters(self, depth, count):
        assert count == resnet_parameters(depth)
        assert parameters(build(f"resnet{depth}-a")) == count
        assert parameters(build(f"resnet{depth}")) == count + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)

    def test_parameter_count(self):
        assert resnet_parameters() == 269_722  # the published 0.27 M
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
            (
                {"downsample": "blur"},
                r"downsample must be 'strided' or a name in .*, got 'blur'; nearest: 'blurpool",
            ),
            ({"downsample": "zzz"}, "got 'zzz'; choose one of strided, blurpool, .*, space-to-depth"),
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


class TestPreActResNet18:
    def test_state_dict_is_that_of_the_published_checkpoint(self):
        expected = {"conv1.weight": (64, 3, 3, 3)}
        channels = 64
        for stage in range(1, 5):
            for block in range(2):
                leaving = 64 * 2 ** (stage - 1)
                expected |= block_shapes(f"layer{stage}.{block}", channels, leaving, "shortcut.0")
                channels = leaving
        expected |= {"linear.weight": (10, 512), "linear.bias": (10,)}
        with torch.device("meta"):
            model = build("preact-resnet18")
        assert shapes_of(model) == expected
        assert parameters(model) == 11_171_146

    @pytest.mark.parametrize(("size", "variant"), [((32, 32), None), ((13, 18), None), ((13, 18), "he")])
    def test_forward_is_the_definition(self, size, variant):
        model = randomize(PreActResNet18(3, variant=variant))
        x = images = torch.randn(2, 3, *size, dtype=torch.float64)
        conv, activate = use_state(model.state_dict())
        x = conv("conv1", x)
        for name in (f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)):
            stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
            activated = activate(f"{name}.bn1", x)
            y = conv(f"{name}.conv1", activated, stride)
            y = conv(f"{name}.conv2", activate(f"{name}.bn2", y))
            source = activated if variant else x
            x = y + (conv(f"{name}.shortcut.0", source, 2) if stride == 2 else x)
        x = activate("bn", x) if variant else x
        logits = x.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
        torch.testing.assert_close(model(images), logits, rtol=1e-10, atol=1e-11)

    def test_bad_width_and_variant(self):
        with pytest.raises(SpectralError, match="PreActResNet18: width must be ≥ 1, got 0"):
            PreActResNet18(width=0)
        with pytest.raises(SpectralError, match="variant must be None or 'he', got 'she'"):
            PreActResNet18(variant="she")


class TestResNet18:
    def test_it_has_the_published_number_of_parameters(self):
        with torch.device("meta"):
            assert parameters(build("resnet18")) == 11_173_962

    def test_forward_is_the_definition(self):
        model = randomize(ResNet18(3))
        x = images = torch.randn(2, 3, 13, 18, dtype=torch.float64)
        conv, activate = use_state(model.state_dict())
        state = model.state_dict()

        def norm(name, x):
            values = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            return F.batch_norm(x, *values)

        x = activate("bn1", conv("conv1", x))
        for name in (f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)):
            stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
            y = activate(f"{name}.bn1", conv(f"{name}.conv1", x, stride))
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
            short = norm(f"{name}.shortcut.1", conv(f"{name}.shortcut.0", x, 2)) if stride == 2 else x
            x = F.relu(y + short)
        logits = x.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
        torch.testing.assert_close(model(images), logits, rtol=1e-10, atol=1e-11)

    def test_bad_width(self):
        with pytest.raises(SpectralError, match="ResNet18: width must be ≥ 1, got 0"):
            ResNet18(width=0)


class TestWideResNet:
    @pytest.mark.parametrize(
        ("depth", "widen", "million"),  # as in the paper's table, but for the last
        [(28, 10, 36.5), (40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2), (34, 20, 184.5)],
    )
    def test_state_dict_is_that_of_the_published_checkpoints(self, depth, widen, million):
        expected = {"conv1.weight": (16, 3, 3, 3)}
        channels = 16
        for stage in range(1, 4):
            for block in range((depth - 4) // 6):
                leaving = 16 * widen * 2 ** (stage - 1)
                expected |= block_shapes(f"block{stage}.layer.{block}", channels, leaving, "convShortcut")
                channels = leaving
        expected |= norm_shapes("bn1", channels) | {"fc.weight": (10, channels), "fc.bias": (10,)}
        with torch.device("meta"):
            model = build(f"wrn-{depth}-{widen}")
        assert shapes_of(model) == expected
        assert round(parameters(model) / 1e6, 1) == million

    @pytest.mark.parametrize("size", [(32, 32), (13, 18)])
    @pytest.mark.parametrize("widen", [1, 3])  # 1: the first stage keeps the channels and has no projection
    def test_forward_is_the_definition(self, widen, size):
        model = randomize(WideResNet(16, widen, 4))
        state = model.state_dict()
        x = images = torch.randn(2, 3, *size, dtype=torch.float64)
        conv, activate = use_state(state)
        x = conv("conv1", x)
        for name in (f"block{stage}.layer.{block}" for stage in range(1, 4) for block in range(2)):
            stride = 2 if name in ("block2.layer.0", "block3.layer.0") else 1
            first = activate(f"{name}.bn1", x)
            y = conv(f"{name}.conv2", activate(f"{name}.bn2", conv(f"{name}.conv1", first, stride)))
            project = f"{name}.convShortcut"
            x = y + (conv(project, first, stride) if f"{project}.weight" in state else x)
        logits = activate("bn1", x).mean((2, 3)) @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model(images), logits, rtol=1e-10, atol=1e-11)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"depth": 27}, r"depth must be 6n \+ 4 \(10, 16, 22, …\), got 27"),
            ({"depth": 4}, r"depth must be 6n \+ 4 .* got 4"),
            ({"widen": 0}, "widen and width must be ≥ 1, got 0 and 16"),
            ({"width": -1}, "widen and width must be ≥ 1, got 10 and -1"),
        ],
    )
    def test_bad_arguments(self, arguments, sentence):
        with pytest.raises(SpectralError, match=sentence):
            WideResNet(**arguments)


class TestNames:
    @pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "wrn-28-10"])
    def test_every_example_builds_and_answers(self, name):
        with torch.no_grad():
            assert build(name).eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)

    @pytest.mark.parametrize(
        ("name", "same"),
        [
            ("resnet32", lambda: CifarResNet(32)),
            ("resnet56-a", lambda: CifarResNet(56, shortcut="A")),
            ("resnet20-a-w8-wavelet-db2", lambda: CifarResNet(20, 8, shortcut="A", downsample="wavelet-db2")),
            ("resnet20-strided", lambda: CifarResNet(20)),
            ("resnet20-lps", lambda: CifarResNet(20, downsample="lps")),
            ("nula", NULA),
            ("nula-w32", lambda: NULA(32)),
            ("nula-w32-strided", lambda: NULA(32, downsample="strided")),
            ("preact-resnet18-w16", lambda: PreActResNet18(16)),
            ("wrn-16-4", lambda: WideResNet(16, 4)),
            ("wrn-16-4-w8-blurpool-5", lambda: WideResNet(16, 4, 8, downsample="blurpool-5")),
            ("wrn-28-10-space-to-depth", lambda: WideResNet(28, 10, downsample="space-to-depth")),
        ],
    )
    def test_a_name_says_what_is_built(self, name, same):
        with torch.device("meta"):
            model, expected = build(name), same()
        assert type(model) is type(expected)
        assert shapes_of(model) == shapes_of(expected)
        layers, expected_layers = ([(n, str(m)) for n, m in one.named_modules()] for one in (model, expected))
        assert layers == expected_layers

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("resnet20-blurpool", BlurPool2d), ("resnet20-flc", FLCPool2d), ("wrn-10-1-asap", ASAPPool2d),
            ("nula-w4-lps", LPSPool2d), ("preact-resnet18-w4-wavelet-db2", WaveletPool2d),
        ],
    )  # fmt: skip
    def test_the_layer_is_there_on_both_paths(self, name, layer):
        count = sum(isinstance(module, layer) for module in build(name).modules())
        assert count == (6 if name.startswith("preact") else 4)

    def test_families(self):
        expected = {
            "resnet20": "strided", "resnet20-a": "strided", "resnet56-a-strided": "strided",
            "preact-resnet18-w16": "strided", "wrn-28-10": "strided",
            "resnet20-blurpool": "blurpool", "wrn-28-10-blurpool-5": "blurpool",
            "resnet20-a-blurpool": "blurpool",
            "nula": "nula", "nula-w32": "nula", "nula-w32-strided": "nula", "nula-flc": "nula",
            "resnet20-flc": None, "wrn-28-10-asap": None, "resnet20-learned": None, "timm/resnet50": None,
        }  # fmt: skip
        assert {name: family_of(name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("resnet-20", "resnet20"), ("nulla", "nula"), ("resnet20blurpool", "resnet20-blurpool"),
            ("preact-resnet-18", "preact-resnet18"), ("wrn-28", "wrn-28-10"), ("WRN-28-10", "wrn-28-10"),
        ],
    )  # fmt: skip
    def test_unknown_names_offer_the_nearest_and_examples(self, name, nearest):
        with pytest.raises(
            SpectralError,
            match=rf"unknown architecture '{name}'; nearest: '{nearest}'.* such as resnet20.*-wN",
        ):
            build(name)

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("resnet21", r"; nearest: 'resnet20'.*depth must be 6n \+ 2 .* got 21"),
            ("wrn-27-10", r"; nearest: 'wrn-28-10'.*depth must be 6n \+ 4 .* got 27"),
            ("resnet20-blurpol", r"; nearest: 'resnet20-blurpool'.* got 'blurpol'; nearest: 'blurpool'"),
            ("wrn-28-10-asp", r"; nearest: 'wrn-28-10'.* got 'asp'; nearest: 'asap'"),
            ("nula-w0", r".* got 'w0'; choose one of strided, "),
            ("nula-w", r".* got 'w'; choose one of strided, "),
        ],
    )
    def test_known_networks_say_what_is_wrong(self, name, sentence):
        with pytest.raises(SpectralError, match=f"unknown architecture '{name}'{sentence}"):
            build(name)

    @pytest.mark.parametrize("name", ["zzz", "", "resnet020", "wrn-028-10"])
    def test_a_name_like_none_gives_examples(self, name):
        with pytest.raises(
            SpectralError, match=f"unknown architecture '{name}'.*expected a name such as resnet20, "
        ):
            build(name)

    def test_pool_factory(self):
        assert pool_factory("strided") is None
        assert isinstance(pool_factory("blurpool")(3), BlurPool2d)
