"""Discovery: what is found, how it is named, and that the model is left alone."""

from __future__ import annotations

from collections.abc import Callable

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from networks import image, unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.architectures import ARCHITECTURES, build
from spectral.models.nula import NULA
from spectral.sites import Site, check_hookable, find_sites, get_stride_layers, pair_sites

Row = tuple[str, str, tuple[int, int], int, int]  # name, op, stride, rows in, rows out


def rows(sites: list[Site]) -> list[Row]:
    assert all(site.input_size[0] == site.input_size[1] for site in sites)
    return [(s.name, s.op, s.stride, s.input_size[0], s.output_size[0]) for s in sites]


def conv(name: str, entering: int, leaving: int, stride: int = 2) -> Row:
    return (name, "conv", (stride, stride), entering, leaving)


def pool(name: str, op: str, entering: int, leaving: int) -> Row:
    return (name, op, (2, 2), entering, leaving)


BUNDLED = {
    "resnet20": [
        conv("layer2.0.conv1", 32, 16), conv("layer2.0.shortcut.0", 32, 16),
        conv("layer3.0.conv1", 16, 8), conv("layer3.0.shortcut.0", 16, 8),
    ],
    "resnet20-a": [
        conv("layer2.0.conv1", 32, 16), pool("layer2.0.shortcut", "slice", 32, 16),
        conv("layer3.0.conv1", 16, 8), pool("layer3.0.shortcut", "slice", 16, 8),
    ],
    "resnet20-blurpool": [
        pool("layer2.0.pool", "blur_pool", 32, 16), pool("layer2.0.shortcut.0", "blur_pool", 32, 16),
        pool("layer3.0.pool", "blur_pool", 16, 8), pool("layer3.0.shortcut.0", "blur_pool", 16, 8),
    ],
    "nula": [
        pool("stage2.pool", "blur_pool", 32, 16), pool("stage2.shortcut.0", "blur_pool", 32, 16),
        pool("stage3.pool", "blur_pool", 16, 8), pool("stage3.shortcut.0", "blur_pool", 16, 8),
    ],
}  # fmt: skip
BUNDLED |= {name: BUNDLED["nula"] for name in ARCHITECTURES if name.startswith("nula-")}

RESNET18 = [
    conv("conv1", 224, 112), pool("maxpool", "max_pool", 112, 56),
    conv("layer2.0.conv1", 56, 28), conv("layer2.0.downsample.0", 56, 28),
    conv("layer3.0.conv1", 28, 14), conv("layer3.0.downsample.0", 28, 14),
    conv("layer4.0.conv1", 14, 7), conv("layer4.0.downsample.0", 14, 7),
]  # fmt: skip
TIMM = {
    "resnet18": RESNET18,
    "tf_efficientnet_b0": [
        conv("conv_stem", 224, 112), conv("blocks.1.0.conv_dw", 112, 56), conv("blocks.2.0.conv_dw", 56, 28),
        conv("blocks.3.0.conv_dw", 28, 14), conv("blocks.5.0.conv_dw", 14, 7),
    ],
    # The projections of a timm BlurPool ResNet keep their stride.
    "resnetblur18": [
        conv("conv1", 224, 112), pool("maxpool.1", "blur_pool", 112, 56),
        pool("layer2.0.aa", "blur_pool", 56, 28), conv("layer2.0.downsample.0", 56, 28),
        pool("layer3.0.aa", "blur_pool", 28, 14), conv("layer3.0.downsample.0", 28, 14),
        pool("layer4.0.aa", "blur_pool", 14, 7), conv("layer4.0.downsample.0", 14, 7),
    ],
    "vgg11": [
        pool(f"features.{i}", "max_pool", n, n // 2)
        for i, n in ((2, 224), (5, 112), (10, 56), (15, 28), (20, 14))
    ],
}  # fmt: skip
TORCHVISION = {
    "resnet18": RESNET18,
    "googlenet": [  # every pool has ceil_mode
        conv("conv1.conv", 224, 112),
        pool("maxpool1", "max_pool", 112, 56), pool("maxpool2", "max_pool", 56, 28),
        pool("maxpool3", "max_pool", 28, 14), pool("maxpool4", "max_pool", 14, 7),
    ],
    "densenet121": [
        conv("features.conv0", 224, 112), pool("features.pool0", "max_pool", 112, 56),
        pool("features.transition1.pool", "avg_pool", 56, 28),
        pool("features.transition2.pool", "avg_pool", 28, 14),
        pool("features.transition3.pool", "avg_pool", 14, 7),
    ],
}  # fmt: skip
ADOBE_RESNET18 = [
    conv("conv1", 224, 112), pool("maxpool.1", "blur_pool", 111, 56),
    pool("layer2.0.conv2.0", "blur_pool", 56, 28), pool("layer2.0.downsample.0", "blur_pool", 56, 28),
    pool("layer3.0.conv2.0", "blur_pool", 28, 14), pool("layer3.0.downsample.0", "blur_pool", 28, 14),
    pool("layer4.0.conv2.0", "blur_pool", 14, 7), pool("layer4.0.downsample.0", "blur_pool", 14, 7),
]  # fmt: skip


def build_timm(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, pretrained=False)


def build_torchvision(name: str) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return pytest.importorskip("torchvision").models.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_architectures(name):
    model = build(name)
    with unchanged(model):
        sites = find_sites(model, 32)
    assert rows(sites) == BUNDLED[name]
    assert all(site.measurable and site.reason is None for site in sites)


def test_every_bundled_architecture_has_its_list():
    assert set(BUNDLED) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    assert rows(find_sites(build_timm(name), 224)) == TIMM[name]


def test_timm_swin_has_its_patch_embedding_and_nothing_false():
    first, *others = find_sites(build_timm("swin_tiny_patch4_window7_224"), 224)
    assert rows([first]) == [conv("patch_embed.proj", 224, 56, stride=4)]
    assert {site.op for site in others} <= {"space_to_depth"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    assert rows(find_sites(build_torchvision(name), 224)) == TORCHVISION[name]


def test_adobe():
    module = pytest.importorskip("antialiased_cnns", reason="the non-commercial extra isn't installed")
    assert rows(find_sites(module.resnet18(pretrained=False), 224)) == ADOBE_RESNET18


def test_odd_sizes():
    sites = find_sites(build("resnet20-a"), (33, 30))
    assert [(s.input_size, s.output_size) for s in sites] == [((33, 30), (17, 15))] * 2 + [
        ((17, 15), (9, 8))
    ] * 2


@pytest.mark.parametrize("size", [1, 2, (1, 2)])
@pytest.mark.parametrize("name", BUNDLED)
def test_images_of_one_and_two_pixels(name, size):
    sites = find_sites(build(name), size)
    assert [site.name for site in sites] == [row[0] for row in BUNDLED[name]]
    assert {site.output_size for site in sites} == {(1, 1)}


def names_ops(sites: list[Site]) -> list[tuple[str, str, tuple[int, int]]]:
    return [(s.name, s.op, s.stride) for s in sites]


def test_functional_calls_are_named_by_kind_and_number():
    assert names_ops(find_sites(nets.FunctionalBlock(), 32)) == [
        (":conv0", "conv", (2, 2)), (":max_pool0", "max_pool", (2, 1)), (":avg_pool0", "avg_pool", (2, 2)),
    ]  # fmt: skip


def test_a_reused_module_has_a_name_per_call():
    sites = find_sites(nets.ReusedPool(), 64)
    assert [s.name for s in sites] == ["conv@0", "pool@0", "conv@1", "pool@1", "pool@2"]
    assert [s.key for s in sites] == [
        ("conv", 0, 0),
        ("pool", 0, 0),
        ("conv", 1, 0),
        ("pool", 1, 0),
        ("pool", 2, 0),
    ]
    assert [s.scale[0] for s in sites] == [1, 2, 4, 8, 16]


def test_kind_and_call_together():
    net = nn.Sequential()
    block = nets.FunctionalBlock()
    net.add_module("a", block)
    net.add_module("narrow", nn.Conv2d(4, 3, 1))
    net.add_module("b", block)  # the same module under a second name: the first one counts
    assert [s.name for s in find_sites(net, 64)] == [
        f"a:{kind}0@{call}" for call in (0, 1) for kind in ("conv", "max_pool", "avg_pool")
    ]


def test_nested_owners():
    assert names_ops(find_sites(nets.Nested(), 32)) == [
        ("block.body.0", "conv", (2, 2)), ("block", "slice", (2, 2)), ("block.project", "conv", (2, 2)),
        (":max_pool0", "max_pool", (2, 2)), ("head", "conv", (2, 2)),
    ]  # fmt: skip


def test_a_shared_module_goes_by_its_first_name():
    assert [s.name for s in find_sites(nets.SharedPool(), 32)] == [
        "first.pool@0", "first", "first.pool@1", "second"
    ]  # fmt: skip


def test_only_spatial_slices():
    (site,) = find_sites(nets.Slices(), 12)
    assert (site.op, site.stride, site.geometry.phase) == ("slice", (2, 3), (1, 0))
    assert (site.input_size, site.output_size) == ((12, 12), (6, 4))


def test_space_to_depth_loses_nothing():
    (site,) = find_sites(nets.Focus(), 16)
    assert (site.name, site.op, site.stride) == (":space_to_depth0", "space_to_depth", (2, 2))
    assert not site.measurable
    assert site.reason == "lossless: every phase is kept as a channel"


def test_space_to_depth_next_to_a_slice():
    sites = find_sites(nn.Sequential(nets.TwoSpaceToDepths()), 16)
    assert [(s.name, s.stride, s.measurable) for s in sites] == [
        ("0:slice0", (2, 2), True),
        ("0:space_to_depth0", (2, 1), False), ("0:space_to_depth1", (2, 1), False),
    ]  # fmt: skip


def test_slices_that_miss_a_phase_are_sites():
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2]

    sites = find_sites(Three(), 8)
    assert [(s.name, s.geometry.phase) for s in sites] == [
        (":slice0", (0, 0)), (":slice1", (1, 0)), (":slice2", (0, 1))
    ]  # fmt: skip


def test_an_adaptive_pool_with_unequal_windows_is_listed_with_the_reason():
    (site,) = find_sites(nn.Sequential(nn.AdaptiveAvgPool2d(3)), 7)
    assert (site.name, site.measurable) == ("0", False)
    assert site.reason == "adaptive pool from 7×7 to 3×3: its windows are unequal"


@pytest.mark.parametrize(
    ("cut", "stride", "phase", "output_size", "channels"),
    [
        (lambda x: x.permute(0, 2, 3, 1)[:, 1::2, ::3], (2, 3), (1, 0), (4, 3), 5),
        (lambda x: x.permute(0, 2, 3, 1)[:, :, 1::2], (1, 2), (0, 1), (8, 4), 5),
        (lambda x: x.permute(0, 2, 3, 1)[:, ::4], (4, 1), (0, 0), (2, 9), 5),
        (lambda x: x[0][:, ::2, 2::3], (2, 3), (0, 2), (4, 3), 5),
        (lambda x: x[0, 1][1::2, ::2], (2, 2), (1, 0), (4, 5), 1),
    ],
)
def test_rows_and_columns_elsewhere_are_listed_with_the_reason(cut, stride, phase, output_size, channels):
    class Cutting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cut(x) + 1

    (site,) = find_sites(nn.Sequential(Cutting()), (5, 8, 9))
    assert (site.op, site.stride, site.geometry.phase, site.measurable) == ("slice", stride, phase, False)
    assert (site.input_size, site.output_size, site.channels) == ((8, 9), output_size, channels)
    assert site.reason == "its rows and columns are not the last two of four axes"


ACCESS = [
    (nets.strided(), ["direct", "direct", "direct"]),
    (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")), ["wrapped"]),
    (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")), ["wrapped"]),
    (nn.Sequential(nets.PadsItself(3, 4, 3, 2)), ["wrapped"]),
    (nn.Sequential(nets.Standardised(3, 4, 3, 2)), ["wrapped"]),
    (nn.Sequential(nets.Blur(3)), ["wrapped"]),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, 2))), ["wrapped"]),
    (nn.Sequential(nets.PoolAfterLayers()), ["inner"]),
    (nn.Sequential(nn.LPPool2d(2, 2)), ["inner"]),
    (nets.FunctionalBlock(), ["inner", "inner", "inner"]),
]


@pytest.mark.parametrize(("model", "access"), ACCESS)
def test_how_a_hook_reaches_it(model, access):
    assert [site.access for site in find_sites(model, 16)] == access


def test_own_padding_is_not_part_of_what_enters():
    for layer in (
        nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"),
        nets.PadsItself(3, 4, 3, 2),
        nets.Blur(3),
    ):
        (site,) = find_sites(nn.Sequential(layer), (15, 14))
        assert site.input_size == (15, 14)
        assert site.output_size == (8, 7)


def test_blur_pools_are_told_from_convolutions():
    learned = nn.Conv2d(3, 3, 3, 2, groups=3)
    standardised = nets.Standardised(1, 1, 3, 2)
    found = find_sites(nn.Sequential(learned, nets.Blur(3), nn.Conv2d(3, 1, 1), standardised), 32)
    assert [site.op for site in found] == ["conv", "blur_pool", "conv"]


@pytest.mark.parametrize("make", [
    nets.ReusedPool, nets.FunctionalBlock, nets.Nested, nets.Slices, nets.Focus, nets.InPlace, nets.CeilPools,
    nets.SharedPool, nets.Squeezing, nets.PowerPool, nets.strided, nets.Raising, lambda: build("resnet20-a"),
])  # fmt: skip
def test_the_same_on_the_meta_device_and_on_data(make: Callable[[], nn.Module]):
    model = make()
    inside = nets.OnlyRealData(model)
    with unchanged(model), unchanged(inside):
        on_meta, on_data = find_sites(model, (64, 56)), find_sites(inside, (64, 56))
    named = {"": "body", **{name: f"body.{name}" for name, _ in model.named_modules() if name}}
    assert [(named[s.module], s.call, s.index, s.op, s.geometry, s.access) for s in on_meta] == [
        (s.module, s.call, s.index, s.op, s.geometry, s.access) for s in on_data
    ]
    assert [(s.input_size, s.output_size, s.channels, s.scale) for s in on_meta] == [
        (s.input_size, s.output_size, s.channels, s.scale) for s in on_data
    ]


@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_same_whatever_surrounds_the_call(surroundings):
    model = nn.Sequential(nets.Squeezing(), nets.Blur(3), nn.Conv2d(3, 4, 3, 2))
    alone = find_sites(model, 64)
    with surroundings():
        assert find_sites(model, 64) == alone
        assert find_sites(model, image(2, 3, 64, 64)) == alone


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_the_model_is_left_alone(training, real):
    model = nets.strided().train(training)
    model[1].train(not training)
    model[0].weight.requires_grad_(False)
    model = nets.OnlyRealData(model) if real else model
    with unchanged(model):
        assert len(find_sites(model, 32)) == 3


def test_what_a_forward_keeps_for_itself_is_forgotten():
    model = nets.Caching()
    with unchanged(model):
        find_sites(model, 16)
    assert model(image(1, 3, 16, 16)).shape == (1, 4, 7, 7)


def test_weight_norm_of_the_old_kind_keeps_its_weight():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Conv2d(3, 4, 3, 2))
    weight = layer.weight
    (site,) = find_sites(nn.Sequential(layer), 16)
    assert site.op == "conv"
    assert layer.weight is weight


def test_a_hook_that_was_there_stays():
    model, seen = nets.strided(), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    with unchanged(model):
        find_sites(model, 32)
    model(image())
    assert len(seen) >= 1
    handle.remove()


def test_examples():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    expected = find_sites(model, 16)
    for example in ((16, 16), (3, 16, 16), [3, 16, 16], torch.Size([16, 16]), image(5, 3, 16, 16)):
        assert find_sites(model, example) == expected
    assert find_sites(model, image(1, 3, 16, 16, dtype=torch.float64)) == expected
    assert find_sites(nn.Conv2d(1, 2, 3, 2), (1, 8, 10))[0].input_size == (8, 10)


def test_models_in_half_and_double_precision():
    for dtype in (torch.bfloat16, torch.float64):
        assert len(find_sites(nets.OnlyRealData(nets.strided()).to(dtype), 16)) == 3


def test_a_model_without_downsampling_has_no_sites():
    assert find_sites(nets.NoDownsampling(), 16) == []
    assert get_stride_layers(nets.NoDownsampling()) == []


def test_stride_layers_are_strided_convolution_modules():
    assert get_stride_layers(build("resnet20")) == [row[0] for row in BUNDLED["resnet20"]]
    assert get_stride_layers(build("resnet20-a")) == ["layer2.0.conv1", "layer3.0.conv1"]
    assert get_stride_layers(NULA(width=8)) == []
    assert get_stride_layers(nets.ReusedPool()) == ["conv"]
    assert get_stride_layers(nn.Sequential(nn.Conv2d(1, 1, 3, (1, 2)), nn.Conv1d(1, 1, 3, 2))) == ["0"]


@pytest.mark.parametrize("example", ["32", (3, 4, 5, 6), (), (0, 8), 0, -1, (8.0, 8.0), None, 3.5])
def test_what_is_no_size(example):
    with pytest.raises(SpectralError, match=r"expected a batch or a size N, \(H, W\) or \(C, H, W\), got"):
        find_sites(nets.strided(), example)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (0, 3, 8, 8), (1, 1, 3, 8, 8)])
def test_a_batch_of_another_rank(shape):
    with pytest.raises(SpectralError, match=r"expected an image batch \(B, C, H, W\), got shape"):
        find_sites(nets.strided(), torch.zeros(shape))


def test_an_integer_batch():
    with pytest.raises(
        SpectralError, match=r"expected floating-point images, got torch.uint8; use images.float\(\)"
    ):
        find_sites(nets.strided(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("depth", ["leaf", "block", "root"])
def test_a_forward_that_raises(depth):
    model = nets.Raising()
    model.break_at(depth)
    with (
        unchanged(model),
        pytest.raises(
            SpectralError,
            match=rf"Raising failed on an input of shape \(1, 3, 32, 32\): RuntimeError: the {depth} broke",
        ) as caught,
    ):
        find_sites(model, 32)
    assert isinstance(caught.value.__cause__, RuntimeError)
    model.break_at("")
    assert len(find_sites(model, 32)) == 4


def test_a_model_that_refuses_the_size():
    with pytest.raises(
        SpectralError, match=r"failed on an input of shape \(1, 3, 8, 8\): RuntimeError: .*channels"
    ):
        find_sites(nn.Sequential(nn.Conv2d(4, 4, 3, 2)), 8)


def test_a_model_that_takes_a_dictionary():
    model = nets.TwoInputs()
    with (
        unchanged(model),
        pytest.raises(SpectralError, match=r"of TwoInputs failed .*AttributeError"),
    ):
        find_sites(model, 8)


def test_an_interrupted_forward_leaves_nothing():
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), Interrupted())
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        find_sites(model, 8)


def test_an_error_that_the_model_handles_itself():
    class Fallback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fragile, self.after = nets.Raising(), nn.Conv2d(3, 3, 3, 2)
            self.fragile.break_at("leaf")

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.fragile(x)
            except RuntimeError:
                x = F.max_pool2d(x, 2)
            return self.after(x)

    assert [s.name for s in find_sites(Fallback(), 32)][-2:] == [":max_pool0", "after"]


def compiled_in_place() -> nn.Module:
    model = nets.strided()
    model.compile()
    return model


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda: torch.jit.script(nets.strided()), "pass the module it was scripted from"),
        (lambda: torch.jit.trace(nets.strided().eval(), image()), "pass the module it was scripted from"),
        (lambda: nn.Sequential(torch.jit.script(nets.strided())), "pass the module it was scripted from"),
        (lambda: torch.compile(nets.strided()), "pass model._orig_mod"),
        (lambda: nn.Sequential(torch.compile(nets.strided())), "put the ._orig_mod of '0' in its place"),
        (compiled_in_place, r"copy\.deepcopy\(model\)"),
        (lambda: nn.DataParallel(nets.strided()), "pass model.module"),
        (lambda: nn.Sequential(nn.DataParallel(nets.strided())), "put the .module of '0' in its place"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_models_in_which_hooks_never_fire(make, way_out):
    model = make()
    with pytest.raises(SpectralError, match=way_out) as caught:
        find_sites(model, 16)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpectralError, match=way_out):
        check_hookable(model)


def test_the_way_out_of_a_compiled_model_works():
    import copy

    assert len(find_sites(torch.compile(nets.strided())._orig_mod, 16)) == 3
    assert len(find_sites(copy.deepcopy(compiled_in_place()), 16)) == 3


@pytest.mark.parametrize("model", [lambda x: x, None, "resnet18", nn.Conv2d])
def test_what_is_no_module(model):
    with pytest.raises(SpectralError, match=r"expected a torch.nn.Module, got"):
        find_sites(model, 16)


def test_pairs_across_families():
    families = {
        "resnet20": build("resnet20"),
        "resnet20-blurpool": build("resnet20-blurpool"),
        "nula": NULA(8),
    }
    pairs = pair_sites({name: find_sites(model, 32) for name, model in families.items()})
    assert len(pairs) == 12
    labels = ["layer2.0.conv1", "layer2.0.shortcut.0", "layer3.0.conv1", "layer3.0.shortcut.0"]
    for name in families:
        assert [pairs[name, row[0]] for row in BUNDLED[name]] == list(enumerate(labels))


def test_pairs_of_odd_sizes_meet_at_like_resolution():
    adobe = pytest.importorskip("antialiased_cnns").resnet18(pretrained=False)
    pairs = pair_sites(
        {"strided": find_sites(build_torchvision("resnet18"), 224), "blur": find_sites(adobe, 224)}
    )
    # 112 and 111 rows in front of the stem's pool are one resolution.
    assert [pairs["blur", row[0]] for row in ADOBE_RESNET18] == [
        (i, row[0]) for i, row in enumerate(RESNET18)
    ]


def test_pairs_with_a_reference_and_a_site_it_lacks():
    sites = {"deep": find_sites(nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)]), 32)}
    sites["flat"] = find_sites(nets.Nested(), 32)  # three sites at 32 px, one at 16 and one at 8
    pairs = pair_sites(sites, reference="flat")
    assert [pairs["flat", s.name] for s in sites["flat"]] == [
        (0, "block.body.0"), (1, "block"), (2, "block.project"), (3, ":max_pool0"), (4, "head"),
    ]  # fmt: skip
    assert [pairs["deep", name] for name in "012"] == [(0, "block.body.0"), (3, ":max_pool0"), (4, "head")]
    assert pair_sites(sites)["flat", "block"] == (1, "block")
    with pytest.raises(SpectralError, match=r"no model 'flt'; nearest: 'flat'"):
        pair_sites(sites, reference="flt")


def test_pairs_of_nothing():
    assert pair_sites({}) == {}
    assert pair_sites({"flat": []}) == {}
