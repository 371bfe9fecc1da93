"""Discovery: what is found, how it is named, and that the model is left alone."""

from __future__ import annotations

from collections.abc import Callable

import networks as nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import image, unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.models.architectures import ARCHITECTURES, build
from spectral.models.nula import NULA
from spectral.pairing import pair_sites
from spectral.sites import (
    Site,
    check_hookable,
    find_global_pools,
    find_reductions,
    find_sites,
    get_stride_layers,
)
from spectral.stability import measure_stability

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
    "preact-resnet18": [
        site for layer, entering in ((2, 32), (3, 16), (4, 8))
        for site in (conv(f"layer{layer}.0.conv1", entering, entering // 2),
                     conv(f"layer{layer}.0.shortcut.0", entering, entering // 2))
    ],
    "wrn-28-10": [
        site for block, entering in ((2, 32), (3, 16))
        for site in (conv(f"block{block}.layer.0.conv1", entering, entering // 2),
                     conv(f"block{block}.layer.0.convShortcut", entering, entering // 2))
    ],
}  # fmt: skip
BUNDLED["resnet18"] = BUNDLED["preact-resnet18"]
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
    merging = [(f"layers.{i}.downsample", n) for i, n in ((1, 56), (2, 28), (3, 14))]
    assert rows(others) == [pool(name, "space_to_depth", n, n // 2) for name, n in merging]
    assert all(site.lossless for site in others)


def test_timm_hiera_pools_its_unrolled_tokens():
    stem, *pools = find_sites(build_timm("hiera_tiny_224"), 224)
    assert rows([stem]) == [conv("patch_embed.proj", 224, 56, stride=4)]
    assert rows(pools) == [
        pool(f"blocks.{i}{inner}", "window_max", n, n // 2)
        for i, n in ((1, 56), (3, 28), (10, 14)) for inner in ("", ".attn")
    ]  # fmt: skip
    assert all(site.measurable for site in pools)


def test_timm_mvit_has_heads_on_the_batch_axis():
    found = {site.name: site for site in find_sites(build_timm("mvitv2_tiny"), 224)}
    assert all(site.measurable for site in found.values())
    spreads = {name: site.spread for name, site in found.items() if ".attn." in name}
    assert spreads == {
        "stages.0.blocks.0.attn.pool_k": (1, 1), "stages.0.blocks.0.attn.pool_v": (1, 1),
        "stages.1.blocks.0.attn.pool_q": (1, 2), "stages.1.blocks.0.attn.pool_k": (1, 2),
        "stages.1.blocks.0.attn.pool_v": (1, 2), "stages.1.blocks.1.attn.pool_k": (1, 2),
        "stages.1.blocks.1.attn.pool_v": (1, 2), "stages.2.blocks.0.attn.pool_q": (1, 4),
        "stages.3.blocks.0.attn.pool_q": (1, 8),
    }  # fmt: skip


def test_timm_mobilevit_has_its_convolutions_only():
    names = ["stem.conv", *(f"stages.{i}.0.conv2_kxk.conv" for i in (1, 2, 3, 4))]
    assert [s.name for s in find_sites(build_timm("mobilevit_xxs"), 256)] == names


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
        (path, call, "operator", 0)
        for path, call in [("conv", 0), ("pool", 0), ("conv", 1), ("pool", 1), ("pool", 2)]
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
    tokens, site = find_sites(nets.Slices(), (12, 15))
    assert (tokens.op, tokens.stride, tokens.input_size) == ("slice", (0, 0), (12, 15))
    assert tokens.reason == "its rows and columns are not two axes of one tensor"
    assert (site.op, site.stride, site.geometry.phase) == ("slice", (2, 3), (1, 0))
    assert (site.input_size, site.output_size) == ((12, 15), (6, 5))


def test_space_to_depth_loses_nothing():
    (site,) = find_sites(nets.Focus(), 16)
    assert (site.name, site.op, site.stride) == (":space_to_depth0", "space_to_depth", (2, 2))
    assert not site.measurable
    assert site.lossless
    assert site.reason == "lossless: every sample is kept, as a channel"


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", nets.SPACE_TO_DEPTH)
def test_space_to_depth_in_any_spelling(name, real):
    model = nets.SPACE_TO_DEPTH[name]()
    with unchanged(model):
        (site,) = find_sites(nets.OnlyRealData(model) if real else model, (24, 32))
    assert (site.op, site.stride, site.kernel, site.channels) == ("space_to_depth", (2, 2), (2, 2), 3)
    assert (site.input_size, site.output_size) == ((24, 32), (12, 16))
    assert site.lossless
    assert not site.measurable


@pytest.mark.parametrize(
    ("name", "to_depth", "stride", "size"),
    [
        ("rows", lambda x: x.unflatten(2, (12, 2)).transpose(2, 3).flatten(1, 2), (2, 1), (12, 32)),
        ("columns", lambda x: x.unflatten(3, (8, 4)).permute(0, 1, 4, 2, 3).flatten(1, 2), (1, 4), (24, 8)),
        ("slices", lambda x: torch.cat([x[:, :, ::2], x[:, :, 1::2]], 1), (2, 1), (12, 32)),
        ("im2col", lambda x: F.unfold(x, (3, 1), stride=(3, 1)).unflatten(2, (8, 32)), (3, 1), (8, 32)),
        ("both", lambda x: F.pixel_unshuffle(x[..., :24], 3), (3, 3), (8, 8)),
        (
            "views",
            lambda x: x.unflatten(2, (8, 3)).unflatten(4, (8, 4)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3),
            (3, 4),
            (8, 8),
        ),
    ],
)
def test_space_to_depth_of_other_strides(name, to_depth, stride, size):
    net = nets.Call(lambda m, x: m.project(to_depth(x)), project=nn.LazyConv2d(4, 1))
    net(image(2, 3, 24, 32))
    (site,) = find_sites(net, (24, 32))
    assert (site.op, site.stride, site.kernel, site.channels) == ("space_to_depth", stride, stride, 3)
    assert site.output_size == size
    assert site.lossless


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", nets.LOOKALIKES)
def test_what_only_looks_like_downsampling(name, real):
    model = nets.LOOKALIKES[name]()
    assert find_sites(nets.OnlyRealData(model) if real else model, (24, 32)) == []


@pytest.mark.parametrize("maximum", [True, False])
@pytest.mark.parametrize("real", [False, True])
def test_pools_over_windows_that_a_view_has_cut(maximum, real):
    model = nets.Hiera(maximum)
    (site,) = find_sites(nets.OnlyRealData(model) if real else model, (24, 32))
    kind = "window_max" if maximum else "window_mean"
    assert (site.op, site.stride, site.kernel, site.channels) == (kind, (2, 2), (2, 2), 8)
    assert (site.input_size, site.output_size, site.family) == ((24, 32), (12, 16), "reduction")
    assert site.measurable
    assert site.rule == f"the {'maximum' if maximum else 'mean'} over the window at every sample"


@pytest.mark.parametrize(
    ("pool", "shape", "stride", "output_size"),
    [
        (lambda x: x.unfold(2, 2, 2).unfold(3, 4, 4).amax((-1, -2)), (3, 12, 16), (2, 4), (6, 4)),
        (lambda x: x.unflatten(2, (6, 2)).mean(3), (3, 12, 16), (2, 1), (6, 16)),
        (lambda x: x.unflatten(3, (4, 4)).unflatten(2, (1, 12)).amax((3, 5)), (3, 12, 16), (12, 4), (1, 4)),
        (lambda x: nets.partition(x.permute(0, 2, 3, 1), 4).amax(1), (3, 12, 16), (4, 4), (3, 4)),
        (
            lambda x: x.unflatten(4, (4, 4)).unflatten(2, (3, 2)).amax((3, 6)),
            (3, 6, 12, 16),
            (2, 1, 4),
            (3, 12, 4),
        ),
    ],
)
def test_pools_over_axes_that_a_view_has_split(pool, shape, stride, output_size):
    (site,) = find_sites(nets.Call(lambda m, x: pool(x * 1) + 1), shape)
    assert (site.stride, site.kernel, site.channels, site.measurable) == (stride, stride, 3, True)
    assert site.output_size == output_size
    assert site.input_size == tuple(n * s for n, s in zip(output_size, stride, strict=True))


@pytest.mark.parametrize(("size", "step", "rows"), [(3, 2, (13, 6)), (2, 3, (11, 4)), (5, 1, (13, 9))])
def test_pools_over_windows_that_overlap_or_skip_samples_say_why(size, step, rows):
    net = nets.Call(lambda m, x: x.unfold(2, size, step).unfold(3, size, step).amax((-1, -2)))
    found = find_sites(net, 13)
    if step == 1:
        assert found == []  # the resolution stays
        return
    (site,) = found
    assert (site.op, site.stride, site.kernel) == ("window_max", (step, step), (size, size))
    assert (site.input_size[0], site.output_size[0], site.channels) == (*rows, 3)
    assert site.reason is not None
    assert site.reason.startswith("the windows it pools are cut by a view that can't be followed")


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("real", [False, True])
def test_heads_on_the_batch_axis(heads_first, real):
    model = nets.PooledHeads(heads_first)
    (site,) = find_sites(nets.OnlyRealData(model) if real else model, (24, 32))
    assert site.spread == ((2, 1) if heads_first else (1, 2))
    assert (site.channels, site.stride, site.measurable) == (4, (2, 2), True)


def test_images_that_are_spread_in_another_way_say_why():
    """Maps of one image before and between the others: no single axis tells them apart."""

    def mixed(m: nn.Module, x: Tensor) -> Tensor:
        return F.max_pool2d(x.transpose(0, 1), 2) + 1  # the images are the channels now

    (site,) = find_sites(nets.Call(mixed), (24, 32))
    assert (site.op, site.measurable) == ("max_pool", False)
    assert site.reason == "its images don't lie along one axis"


GLOBAL: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean of tokens": lambda x: x.flatten(2).mean(-1),
    "mean, channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "maximum": lambda x: x.amax((2, 3), keepdim=True),
    "windows": lambda x: x.unflatten(2, (12, 2)).unflatten(4, (16, 2)).mean((2, 3, 4, 5)),
    "average pool": lambda x: F.avg_pool2d(x, (24, 32)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_global_pools(name):
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nets.Call(lambda m, x: GLOBAL[name](x) + 1))
    assert find_sites(model, (24, 32)) == []
    (pool,) = find_global_pools(model, (24, 32))
    assert (pool.op, pool.stride, pool.input_size, pool.channels) == ("global_pool", (24, 32), (24, 32), 5)
    assert (pool.output_size, pool.measurable, pool.reason) == ((1, 1), False, "a global pool")
    assert find_reductions(model, (24, 32)) == [pool]


def test_strips_leave_one_sample_of_an_axis():
    strips = nets.Call(lambda m, x: x * x.mean(3, keepdim=True) * x.amax(2, keepdim=True))
    found = find_global_pools(strips, (24, 32))
    assert [(s.stride, s.output_size) for s in found] == [((1, 32), (24, 1)), ((24, 1), (1, 32))]


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
    (site,) = find_sites(nn.Sequential(nn.AdaptiveAvgPool2d(3)), 8)
    assert (site.name, site.measurable) == ("0", False)
    assert site.reason == "adaptive pool from 8×8 to 3×3: its windows are unequal"


@pytest.mark.parametrize(
    ("cut", "stride", "phase", "output_size"),
    [
        (lambda x: x.permute(0, 2, 3, 1)[:, 1::2, ::3], (2, 3), (1, 0), (4, 3)),
        (lambda x: x.permute(0, 2, 3, 1)[:, :, 1::2], (1, 2), (0, 1), (8, 4)),
        (lambda x: x.permute(0, 2, 3, 1)[:, ::4], (4, 1), (0, 0), (2, 9)),
        (lambda x: x.permute(2, 0, 1, 3)[::4, ..., 2::3], (4, 3), (0, 2), (2, 3)),
        (lambda x: x.permute(0, 3, 1, 2)[:, 1::2], (1, 2), (0, 1), (8, 4)),
        (lambda x: x.unsqueeze(2)[..., ::2], (1, 2), (0, 0), (8, 5)),
        (lambda x: x[:, None, :, None].squeeze((1, 3))[..., ::2], (1, 2), (0, 0), (8, 5)),
        (
            lambda x: F.pad(torch.cat([x, x[:, :, :2]], 2).flatten(2), (-9, -9)).unflatten(2, (8, 9))[
                :, :, ::2
            ],
            (2, 1),
            (0, 0),
            (4, 9),
        ),
        (lambda x: x.flatten(2).unflatten(2, (8, 9))[..., ::2, :], (2, 1), (0, 0), (4, 9)),
        (lambda x: x.flatten(2).transpose(1, 2).unflatten(1, (8, 9))[:, :, ::2], (1, 2), (0, 0), (8, 5)),
    ],
)
def test_rows_and_columns_elsewhere(cut, stride, phase, output_size):
    (site,) = find_sites(nn.Sequential(nets.Call(lambda m, x: cut(x) + 1)), (5, 8, 9))
    assert (site.op, site.stride, site.geometry.phase, site.measurable) == ("slice", stride, phase, True)
    assert (site.input_size, site.output_size, site.channels) == ((8, 9), output_size, 5)


@pytest.mark.parametrize(
    ("cut", "stride", "phase", "output_size", "channels"),
    [
        (lambda x: x[0][:, ::2, 2::3], (2, 3), (0, 2), (4, 3), 5),
        (lambda x: x[0, 1][1::2, ::2], (2, 2), (1, 0), (4, 5), 1),
    ],
)
def test_slices_of_one_image_of_the_batch_say_why(cut, stride, phase, output_size, channels):
    (site,) = find_sites(nn.Sequential(nets.Call(lambda m, x: cut(x) + 1)), (5, 8, 9))
    assert (site.op, site.stride, site.geometry.phase, site.measurable) == ("slice", stride, phase, False)
    assert (site.input_size, site.output_size, site.channels) == ((8, 9), output_size, channels)
    assert site.reason == "its images don't lie along one axis"


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.flatten(2)[..., ::2],
        lambda x: x.flatten(2).transpose(1, 2)[:, 1::3],
        lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)[:, 3:][:, ::2],
        lambda x: torch.cat([x.flatten(2)[..., :1], x.flatten(2)], -1)[..., 1:][..., ::2],
        lambda x: x.flatten(2).flip(2)[..., ::2].mean(1),
        lambda x: (x.flatten(2).mT @ x.flatten(2) @ x.flatten(2).mT)[:, ::2],
    ],
)
def test_slices_of_tokens_say_why(cut):
    (site,) = find_sites(nn.Sequential(nets.Call(lambda m, x: cut(x) + 1)), (5, 8, 9))
    assert (site.op, site.stride, site.channels) == ("slice", (0, 0), 5)
    assert site.reason == "its rows and columns are not two axes of one tensor"


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
    (nn.Sequential(nets.Call(lambda m, x: F.max_pool2d(x[..., ::2, ::2], 2))), ["inner", "inner"]),
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
    lambda: nets.Hiera(True), lambda: nets.Hiera(False), lambda: nets.PooledHeads(True),
    lambda: nets.PooledHeads(False), *nets.SPACE_TO_DEPTH.values(),
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
    assert [(s.family, s.spread, s.layouts, s.reason) for s in on_meta] == [
        (s.family, s.spread, s.layouts, s.reason) for s in on_data
    ]


@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad])
def test_what_comes_behind_pixel_shuffle_has_its_stride(surroundings):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2), nn.MaxPool2d(2))
    with surroundings():
        (site,) = find_reductions(net.eval(), 16)
    assert (site.name, site.input_size, site.output_size) == ("2", (32, 32), (16, 16))


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
    for video in ((3, 4, 8, 10), image(2, 3, 4, 8, 10)):
        (site,) = find_sites(nn.Conv3d(3, 2, 3, (1, 2, 2)), video)
        assert (site.input_size, site.stride, site.scale) == ((4, 8, 10), (1, 2, 2), (1, 1, 1))


def test_signals():
    net = nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.MaxPool1d(2), nets.Call(lambda m, x: x[..., 1::2] + 1))
    found = find_sites(net, image(1, 2, 32))
    assert [(s.op, s.stride, s.input_size, s.output_size, s.channels) for s in found] == [
        ("conv", (1, 2), (1, 32), (1, 15), 2), ("max_pool", (1, 2), (1, 15), (1, 7), 4),
        ("slice", (1, 2), (1, 7), (1, 3), 4),
    ]  # fmt: skip


def test_several_inputs():
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.depth = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(1, 4, 3, 2)

        def forward(self, x: Tensor, depth: Tensor, gain: float = 1.0) -> dict[str, list[Tensor]]:
            return {"maps": [self.image(input=x) + self.depth(depth) * gain]}

    x, depth = image(1, 3, 16, 16), image(1, 1, 16, 16)
    expected = [("image", 3), ("depth", 1)]
    for example in (
        (x, depth),
        (x, depth, 2.0),
        {"x": x, "depth": depth},
        {"depth": depth, "x": x, "gain": 0},
    ):
        assert [(s.name, s.channels) for s in find_sites(Fused(), example)] == expected
    with pytest.raises(
        SpectralError, match=r"for several inputs pass a tuple of tensors, for named ones a dict"
    ):
        find_sites(Fused(), x)
    with pytest.raises(SpectralError, match=r"no image among the inputs"):
        find_sites(Fused(), {"x": torch.zeros(1, 3, dtype=torch.int64)})


def test_lists_and_dictionaries_as_one_argument():
    def detect(m: nn.Module, images: list[Tensor]) -> list[Tensor]:
        return [F.max_pool2d(m.conv(torch.stack([x[:, :16, :16] for x in images])), 2)]

    found = find_sites(nets.Call(detect, conv=nn.Conv2d(3, 4, 3, 2)), [image(3, 20, 24), image(3, 16, 30)])
    assert [(s.name, s.input_size) for s in found] == [("conv", (16, 16)), (":max_pool0", (7, 7))]
    halved = nets.Call(lambda m, images: [x[:, ::2, 1::2] + 1 for x in images])
    for site in find_sites(halved, [image(3, 20, 24), image(3, 16, 30)]):
        assert (site.stride, site.geometry.phase, site.channels) == ((2, 2), (0, 1), 3)
        assert site.reason == "its images don't lie along one axis"
    (site,) = find_sites(nets.TwoInputs(), ({"pixels": image(1, 3, 16, 16)},))
    assert (site.name, site.input_size) == ("conv", (16, 16))
    assert find_sites(nets.TwoInputs(), {"pixels": image(1, 3, 16, 16)}) == [site]


def test_a_module_that_sees_another_size_in_each_call():
    def pyramid(m: nn.Module, x: Tensor) -> list[Tensor]:
        return [m.conv(x), m.conv(F.interpolate(x, scale_factor=2)), m.conv(F.avg_pool2d(x, 3))]

    found = find_sites(nets.Call(pyramid, conv=nn.Conv2d(3, 4, 3, 2, 1)), 24)
    assert [(s.name, s.input_size[0]) for s in found] == [
        ("conv@0", 24), ("conv@1", 48), (":avg_pool0", 24), ("conv@2", 8)
    ]  # fmt: skip


def test_pools_that_return_indices():
    class Unpooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.unpool(*self.pool(x))

    (site,) = find_sites(Unpooling(), 16)
    assert (site.name, site.op, site.output_size) == ("pool", "max_pool", (8, 8))


def test_a_slice_of_columns_where_rows_and_time_are_mixed():
    net = nets.Call(lambda m, x: x.flatten(2, 3)[:, :, 1:][..., ::2] + 1)
    (site,) = find_sites(net, (3, 4, 6, 8))
    assert (site.stride, site.measurable) == ((1, 2), False)
    assert site.reason == "its rows and columns are not two axes of one tensor"


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing(reentrant):
    model = nets.Checkpointed(reentrant)
    assert [s.name for s in find_sites(model, 32)] == [
        "stem", "block:conv0", "block:max_pool0", "block:avg_pool0"
    ]  # fmt: skip


def test_constants_of_the_shape_of_an_image_are_not_the_image():
    def insert_zeros(m: nn.Module, x: Tensor) -> Tensor:
        wide = x.new_zeros(len(x), 3, 48, 64)
        wide[:, :, ::2, ::2] = x
        gates = torch.ones_like(x)[..., ::2].mean() + torch.zeros_like(x)[:, :, ::2].sum()
        return m.conv(wide) * gates

    (site,) = find_sites(nets.Call(insert_zeros, conv=nn.Conv2d(3, 4, 3, 2, 1)), (24, 32))
    assert (site.name, site.input_size) == ("conv", (48, 64))


def test_a_size_that_the_model_was_not_made_for():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 12, 2))
    model.pretrained_cfg = {"input_size": (3, 16, 12)}
    with pytest.raises(
        SpectralError, match=r"shape \(1, 3, 32, 32\): RuntimeError: .*; it was made for 16×12$"
    ):
        find_sites(model, 32)
    assert find_sites(model, (16, 12)) == []


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


@pytest.mark.parametrize(
    "example", ["32", (3, 4, 5, 6, 7), (), (0, 8), 0, -1, (8.0, 8.0), None, 3.5, object(), range(9)]
)
def test_what_is_no_size(example):
    with pytest.raises(
        SpectralError, match=r"expected a batch or a size N, \(H, W\) or \(C, H, W\), got .{,60}$"
    ):
        find_sites(nets.strided(), example)


def test_no_array_is_printed_in_an_error():
    with pytest.raises(SpectralError, match=r"^.{,140}$"):
        find_sites(nets.strided(), np.zeros((1, 3, 8, 8), dtype=object))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (8,), (), (1, 1, 1, 3, 8, 8)])
def test_a_batch_of_another_rank(shape):
    with pytest.raises(
        SpectralError, match=r"expected a batch \(B, C, H, W\), \(B, C, T\) or \(B, C, T, H, W\), got shape"
    ):
        find_sites(nets.strided(), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (1, 1, 3, 8, 8)])
def test_a_batch_that_the_model_does_not_take(shape):
    with pytest.raises(SpectralError, match=r"failed .*Error: .*; images come as a batch \(B, C, H, W\)$"):
        find_sites(nets.strided(), torch.zeros(shape))


def test_a_volume_that_is_too_small():
    """Its axes are those that the network takes, so that isn't what is wrong."""
    with pytest.raises(SpectralError, match=r"smaller than kernel size \(.*\)$"):
        find_sites(nn.Sequential(nn.Conv3d(1, 4, 3, 2), nn.AvgPool3d(7)), torch.zeros(1, 1, 8, 8, 8))


def test_an_integer_batch():
    with pytest.raises(
        SpectralError, match=r"expected floating-point or 8-bit images, got torch.int64; use images.float\(\)"
    ):
        find_sites(nets.strided(), torch.zeros(1, 3, 8, 8, dtype=torch.int64))


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
        find_sites(nn.Sequential(nn.Conv2d(4, 4, 3, 2)), (3, 8, 8))


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


def quantise(dynamic: bool) -> nn.Module:
    ao = torch.ao.quantization
    if dynamic:
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Linear(7, 2))
        return ao.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    net = nn.Sequential(ao.QuantStub(), nn.Conv2d(3, 4, 3, 2), nn.ReLU(), ao.DeQuantStub()).eval()
    net.qconfig = ao.get_default_qconfig(
        "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
    )
    prepared = ao.prepare(net)
    prepared(image())
    return ao.convert(prepared)


class Yielding(nn.Sequential):
    """Gives what each layer does, one after the other, when it is asked for."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, 2), nn.ReLU())

    def forward(self, x):
        for layer in self:
            x = layer(x)
            yield x


def compiled_in_place() -> nn.Module:
    model = nets.strided()
    model.compile()
    return model


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda: torch.jit.script(nets.strided()), "pass the module it was scripted from"),
        (lambda: torch.jit.trace(nets.strided().eval(), image()), "pass the module it was scripted from"),
        (
            lambda: nn.Sequential(torch.jit.script(nets.strided())),
            "put the module that '0' was scripted from",
        ),
        (Yielding, r"the forward of Yielding is a generator.* list\(model\(x\)\)"),
        (lambda: torch.compile(nets.strided()), "pass model._orig_mod"),
        (lambda: nn.Sequential(torch.compile(nets.strided())), "put the ._orig_mod of '0' in its place"),
        (compiled_in_place, r"copy\.deepcopy\(model\)"),
        (lambda: nn.DataParallel(nets.strided()), "pass model.module"),
        (lambda: nn.Sequential(nn.DataParallel(nets.strided())), "put the .module of '0' in its place"),
        (lambda: quantise(dynamic=True), "pass the float model it was made from"),
        (lambda: quantise(dynamic=False), "pass the float model it was made from"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*deprecated", "ignore:.*reduce_range")
def test_models_in_which_hooks_never_fire(make, way_out):
    model = make()
    with pytest.raises(SpectralError, match=way_out) as caught:
        find_sites(model, 16)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpectralError, match=way_out):
        check_hookable(model)


def test_a_network_that_is_yet_to_be_quantised_is_one_of_floats():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.sum = nn.Conv2d(3, 3, 3, 1, 1), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x):
            return self.sum.add(x, self.conv(x))[..., ::2, ::2]

    assert [site.stride for site in find_sites(Residual(), 16)] == [(2, 2)]


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


def test_weights_under_two_names_stay():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3))
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Twice()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(5):  # the order in which weights are swapped back changes from run to run
        assert len(find_sites(model, 16)) == 2
        for name, value in model.state_dict().items():
            assert value.device.type == "cpu"
            assert torch.equal(value, before[name])


class Batch(nn.Module):
    """Takes one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Downsample by 2."""
        return self.conv(batch["image"].float())


@pytest.mark.parametrize("size", [32, np.int64(32), (32, 32), (np.int32(32), 32)])
@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_a_size_alone_has_the_channels_that_the_model_takes(channels, size):
    (site,) = find_sites(nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 4, 3, 2)), size)
    assert (site.channels, site.input_size) == (channels, (32, 32))


def test_a_size_alone_of_signals():
    (site,) = find_sites(nn.Sequential(nn.Conv1d(7, 4, 3, 2)), 32)
    assert (site.channels, site.input_size) == (7, (1, 32))


def test_one_dictionary_as_the_only_argument():
    (site,) = find_sites(Batch(), {"image": image(1, 3, 16, 16)})
    assert site.module == "conv"
    assert find_sites(Batch(), ({"image": image(1, 3, 16, 16)},)) == [site]
    assert find_sites(Batch(), {"image": (255 * image(1, 3, 16, 16)).byte()}) == [site]


def test_a_sharded_model_is_refused_by_name():
    class FSDPModule:
        """Stands for torch's, which needs a group of processes."""

    class Sharded(FSDPModule, nn.Sequential):
        pass

    for look in find_sites, measure_stability:
        with pytest.raises(SpectralError, match="sharded by fully_shard"):
            look(Sharded(nn.Conv2d(3, 4, 3, 2)), image(2, 3, 32, 32))


PIXELS = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "example",
    [PIXELS, PIXELS[None], PIXELS.numpy(), PIXELS.permute(1, 2, 0).numpy(),
     PIXELS[None].permute(0, 2, 3, 1).numpy(), PIXELS[None].double().numpy() / 255],
    ids=["image", "batch", "array", "array of pixels", "arrays of pixels", "floating-point array"],
)  # fmt: skip
@pytest.mark.parametrize("scaled", [False, True])
def test_pixels_of_eight_bits_and_arrays_are_examples(example, scaled):
    """They are passed as they are to a network that scales them, and in [0, 1] to one that doesn't."""
    net = nn.Sequential(nets.Call(lambda m, x: x.float() / 255 if scaled else x.to(x.dtype)),
                        nn.Conv2d(3, 4, 3, 2))  # fmt: skip
    net = net.double() if not scaled and getattr(example, "dtype", None) == np.float64 else net
    (site,) = find_sites(net, example)
    assert (site.name, site.input_size) == ("1", (16, 24))


def test_compiled_and_sharded_forwards_are_told_by_what_they_are():
    """A forward under a decorator was told to remove hooks that it hadn't."""

    class Compiled(nn.Module):
        @torch.compile(backend="eager")
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2)

    class FullyShardedDataParallel(nn.Sequential):
        """As torch's, which needs a process group."""

    for net, why in (
        (nn.Sequential(Compiled()), "compiled forward of Compiled; take torch.compile off"),
        (
            FullyShardedDataParallel(nn.MaxPool2d(2)),
            "sharded by FullyShardedDataParallel.* before it is sharded",
        ),
    ):
        with pytest.raises(SpectralError, match=why):
            find_sites(net, 16)
