"""Capture: the right tensors, nothing changed by looking, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import active_modes, count_hooks, image, unchanged
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint_sequential

from spectral.errors import SpectralError
from spectral.hooks.capture import Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import BlurPool2d
from spectral.models.architectures import build
from spectral.models.nula import NULA
from spectral.sites import Site, find_sites

SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "strided": nets.strided,
    "reused": nets.ReusedPool,
    "functional": nets.FunctionalBlock,
    "nested": nets.Nested,
    "slices": nets.Slices,
    "inplace": nets.InPlace,
    "after layers": nets.PoolAfterLayers,
    "ceil": nets.CeilPools,
    "shared": nets.SharedPool,
    "squeezing": nets.Squeezing,
    "power": nets.PowerPool,
    "keyword": nets.Keyword,
    "raising": nets.Raising,
    "control flow": lambda: nets.OnlyRealData(nets.strided()),
    "same": lambda: nn.Sequential(nets.PadsItself(3, 4, 3, 2)),
    "standardised": lambda: nn.Sequential(nets.Standardised(3, 4, 3, (3, 2))),
    "reflect": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")),
    "circular": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")),
    "blur": lambda: nn.Sequential(nn.ReLU(inplace=True), BlurPool2d(3, 4), nn.ReLU(inplace=True)),
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, 6)), nn.AdaptiveMaxPool2d(3)),
    "bilinear": lambda: nn.Sequential(nn.Upsample(scale_factor=(0.5, 1 / 3), mode="bilinear")),
    "unfold": lambda: nets.Call(lambda m, x: F.unfold(x, 3, stride=2).mean(2)),
    "windows": lambda: nets.Hiera(maximum=True),
    "split axes": lambda: nets.Call(lambda m, x: x.unfold(2, 2, 2).unfold(3, 3, 3).amax((-1, -2)) + 1),
    "split rows": lambda: nets.Call(lambda m, x: x.permute(0, 2, 3, 1).unflatten(1, (12, 4)).max(2)[0] + 1),
    "heads first": lambda: nets.PooledHeads(heads_first=True),
    "heads last": lambda: nets.PooledHeads(heads_first=False),
    "channels last": lambda: nets.Call(lambda m, x: x.permute(0, 2, 3, 1)[:, 1::2, ::3] + 1),
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=0.5, mode="nearest-exact")),
    "resnet20-a": lambda: build("resnet20-a"),
    "resnet20-blurpool": lambda: build("resnet20-blurpool"),
    "nula": lambda: NULA(width=8),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def find_measurable(model: nn.Module, x: Tensor) -> list[Site]:
    sites = [site for site in find_sites(model, x) if site.measurable]
    assert sites
    return sites


def decimate(dense: Tensor, site: Site) -> Tensor:
    cuts = [slice(p, None, s) for p, s in zip(site.geometry.phase, site.stride, strict=True)]
    return dense[(..., *cuts)][(..., *map(slice, site.output_size))]


def assert_relation(site: Site, dense: Tensor, output: Tensor) -> None:
    kept = decimate(dense, site)
    if site.geometry.kind in ("conv", "blur_pool") or (site.op == "resize" and max(site.kernel) > 1):
        tolerance = 2e-6 if output.dtype == torch.float32 else 2e-2
        assert (kept - output).abs().max() <= tolerance * dense.abs().max(), site.name
    else:
        assert torch.equal(kept, output), site.name


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("name", MODELS)
def test_every_site_everywhere(name, surroundings):
    """Sizes, identity and outputs, whatever the network does and whatever surrounds the call."""
    model, x = make(name), image(2, 3, 48, 60)
    sites = find_measurable(model, x)
    with SURROUNDINGS[surroundings]():
        expected = model(x.clone())
        taps: dict[str, dict[str, Tensor]] = {}
        for tap in ("input", "dense", "output"):
            with FeatureExtractor(model, sites, tap=tap) as fx:
                assert torch.equal(model(x.clone()), expected)
                taps[tap] = {site.name: fx[site.name] for site in sites}
            assert (count_hooks(model), active_modes()) == (0, 0)
    for site in sites:
        entering, dense, output = (taps[tap][site.name] for tap in ("input", "dense", "output"))
        assert (*entering.shape[1:],) == (site.channels, *site.input_size)
        assert output.shape[-2:] == site.output_size
        assert not any(t.requires_grad for t in (entering, dense, output))
        assert_relation(site, dense, output)


@pytest.mark.parametrize("name", MODELS)
def test_capture_with_the_graph_changes_nothing_either(name):
    model, x = make(name), image(2, 3, 48, 60).requires_grad_()
    sites = find_measurable(model, x)
    expected = model(x.clone())
    for tap in ("input", "dense", "output"):
        plain, graph = (FeatureExtractor(model, sites, tap=tap, detach=detach) for detach in (True, False))
        with plain:
            model(x.clone())
        with graph:
            assert torch.equal(model(x.clone()), expected)
        for site in sites:
            assert torch.equal(graph[site.name], plain[site.name]), (site.name, tap)
            assert graph[site.name].requires_grad
            (gradient,) = torch.autograd.grad(graph[site.name].sum(), x, retain_graph=True)
            assert gradient.abs().sum() > 0
    assert (count_hooks(model), active_modes()) == (0, 0)


def test_channels_last():
    for name in ("strided", "functional", "nested", "resnet20-blurpool"):
        model, x = make(name), image(2, 3, 32, 32)
        sites = find_sites(model, x)
        with torch.no_grad(), FeatureExtractor(model, sites, tap="dense") as usual:
            model(x)
        model = model.to(memory_format=torch.channels_last)
        y = x.contiguous(memory_format=torch.channels_last)
        expected = model(y)
        with torch.no_grad(), FeatureExtractor(model, sites, tap="dense") as fx:
            assert torch.equal(model(y), expected)
        for site in sites:
            torch.testing.assert_close(fx[site.name], usual[site.name], rtol=1e-4, atol=1e-5)


# What is captured, against tensors made by hand


def test_taps_of_a_convolution_by_hand():
    model, x = make("strided"), image(2, 3, 16, 16)
    sites = find_sites(model, x)
    weight, bias = model[0].weight, model[0].bias
    with torch.no_grad():
        y = F.relu(model[1](model[0](x)))
        expected = {
            "input": x,
            "dense": F.conv2d(x, weight, bias, 1, 1),
            "output": F.conv2d(x, weight, bias, 2, 1),
        }
        pooled = {"input": y, "dense": F.max_pool2d(y, 3, 1, 1), "output": F.max_pool2d(y, 3, 2, 1)}
        for tap in expected:
            with FeatureExtractor(model, sites, tap=tap) as fx:
                model(x)
            assert torch.equal(fx["0"], expected[tap])
            assert torch.equal(fx["3"], pooled[tap])


def test_taps_of_a_blur_pool_by_hand():
    """The input is what enters the module, before its own padding; the dense map comes after its blur."""
    blur = BlurPool2d(3, 3)
    model, x = nn.Sequential(blur), image(2, 3, 15, 16)
    taps = np_like([1.0, 2.0, 1.0])
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    dense = F.conv2d(padded, taps.expand(3, 1, 3, 3), groups=3)
    for tap, expected in (("input", x), ("dense", dense), ("output", dense[..., ::2, ::2])):
        with FeatureExtractor(model, find_sites(model, x), tap=tap) as fx:
            model(x)
        torch.testing.assert_close(fx["0"], expected, rtol=1e-6, atol=1e-6)


def np_like(row: list[float]) -> Tensor:
    """An outer product with unit sum."""
    taps = torch.tensor(row)
    return (taps[:, None] * taps / taps.sum() ** 2)[None, None]


def test_input_of_a_functional_pool_is_what_it_pools():
    """Not what enters the module that calls it, even where the shapes agree."""
    model, x = make("after layers"), image(2, 3, 16, 16)
    (site,) = find_sites(nn.Sequential(model), x)
    outer = nn.Sequential(model)
    with torch.no_grad(), FeatureExtractor(outer, [site], tap="input") as fx:
        outer(x)
        assert torch.equal(fx["0"], F.relu(model.conv(x)))


def test_slices_inside_a_block_with_strided_children():
    model, x = make("nested"), image(2, 3, 32, 32)
    sites = {site.name: site for site in find_sites(model, x)}
    stem = model.stem(x)
    block = model.block(stem)
    expected = {"block.body.0": stem, "block": stem, "block.project": stem, ":max_pool0": block,
                "head": F.max_pool2d(block, 2)}  # fmt: skip
    with torch.no_grad(), FeatureExtractor(model, sites.values()) as fx:
        model(x)
    assert fx.keys() == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(fx[name], tensor), name


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    "name", ["nested", "functional", "shared", "reused", "inplace", "squeezing", "raising"]
)
def test_one_site_alone_sees_what_it_sees_among_all(name, detach):
    """An operator's number doesn't depend on what else is watched."""
    model, x = make(name), image(2, 3, 64, 64)
    sites = find_sites(model, x)
    with FeatureExtractor(model, sites, detach=detach) as together:
        model(x)
    for site in sites:
        with FeatureExtractor(model, [site], detach=detach) as alone:
            model(x)
        assert torch.equal(alone[site.name], together[site.name]), site.name


def test_in_place_operators_after_the_site():
    model, x = make("inplace"), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    with torch.no_grad():
        convolved = F.conv2d(x, model.conv.weight, model.conv.bias, 2, 1)
        rectified = F.relu(-convolved)
        blurred = F.conv2d(rectified, model.blur.kernel, padding=1, groups=4)
        sliced = blurred[..., ::2, ::2] - 1
        by_hand = {
            "input": [x, rectified, sliced],
            "output": [convolved, blurred[..., ::2, ::2], sliced[..., ::2, 1::2]],
        }
        for tap, expected in by_hand.items():
            for detach in (True, False):
                with FeatureExtractor(model, sites, tap=tap, detach=detach) as fx:
                    model(x)
                for site, tensor in zip(sites, expected, strict=True):
                    torch.testing.assert_close(fx[site.name], tensor, rtol=1e-6, atol=1e-6)
        with FeatureExtractor(model, ["conv", "blur"], capture_input=False) as fx:
            model(x)
        assert torch.equal(fx["conv"], convolved)


def test_a_module_that_changes_its_input_before_its_operator():
    """What enters the site is then what enters the operator: the module's own input is gone by then."""

    class Greedy(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input.relu_(), self.weight, self.bias, self.stride)

    model, x = nn.Sequential(Greedy(3, 4, 3, 2)), image(2, 3, 8, 8)
    (site,) = find_sites(model, x)
    assert site.access == "inner"
    with torch.no_grad(), FeatureExtractor(model, [site]) as fx:
        model(x.clone())
    assert torch.equal(fx["0"], F.relu(x))


def test_captures_are_copies():
    model, x = make("strided"), image()
    kept = FeatureExtractor(model, ["0"])
    with kept:
        model(x)
        x.zero_()
    assert kept["0"].abs().sum() > 0


# Maps that are not (B, C, H, W) already


def test_taps_of_a_slice_of_channels_last_by_hand():
    def cut(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(x).permute(0, 2, 3, 1)[:, 1::2, ::3].contiguous().mul_(2)

    model, x = nets.Call(cut, conv=nn.Conv2d(3, 5, 1)), image(2, 3, 9, 14)
    (site,) = find_sites(model, x)
    assert site.measurable
    with torch.no_grad():
        maps = model.conv(x)
        for tap, expected in (("input", maps), ("dense", maps), ("output", maps[..., 1::2, ::3])):
            with FeatureExtractor(model, [site], tap=tap) as fx:
                model(x)
            assert torch.equal(fx[site.name], expected)


@pytest.mark.parametrize("size", [(12, 18), (11, 7)])
def test_a_layout_of_whole_axes_takes_other_sizes(size):
    model = nets.Call(lambda m, x: x.permute(2, 0, 3, 1)[::2, :, 1::3] + 1)
    (site,) = find_sites(model, (24, 32))
    x = image(2, 3, *size)
    with FeatureExtractor(model, [site], tap="output") as fx:
        model(x)
    assert torch.equal(fx[site.name], x[:, :, ::2, 1::3])


@pytest.mark.parametrize("maximum", [True, False])
def test_taps_of_pools_over_windows_by_hand(maximum):
    model, x = nets.Hiera(maximum), image(2, 3, 12, 18)
    (site,) = find_sites(model, x)
    with torch.no_grad():
        y = model.stem(x)
        y = y + model.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pool = F.max_pool2d if maximum else F.avg_pool2d
        for tap, expected in (("input", y), ("dense", pool(y, 2, 1)), ("output", pool(y, 2))):
            with FeatureExtractor(model, [site], tap=tap) as fx:
                model(x)
            torch.testing.assert_close(fx[site.name], expected, rtol=1e-5, atol=1e-6)


def test_a_layout_of_windows_refuses_other_sizes():
    model = nets.Hiera(maximum=True)
    (site,) = find_sites(model, (24, 32))
    told = pytest.raises(SpectralError, match="call find_sites again for this input")
    with unchanged(model), told, FeatureExtractor(model, [site]):
        model(image(2, 3, 12, 18))


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("heads_first", [True, False])
def test_values_per_head_come_back_to_their_images(heads_first, real):
    model, x = nets.PooledHeads(heads_first), image(3, 3, 12, 14)
    (site,) = find_sites(nets.OnlyRealData(model) if real else model, x[:1])
    site = replace(site, module="pool", name="pool")
    seen: list[Tensor] = []

    def reduce(capture: Capture) -> None:
        assert len(capture.input) == 6
        seen.append(capture.per_image(capture.dense().sum((1, 2, 3))))

    with torch.no_grad(), FeatureExtractor(model, [site], reduce=reduce, tap="dense") as fx:
        model(x)
        maps = model.stem(x)
        pool = model.pool
        halves = [F.conv2d(half, pool.weight, pool.bias, 1, 1, groups=4) for half in maps.chunk(2, 1)]
    assert fx.keys() == ["pool"]
    expected = sum(half.sum((1, 2, 3)) for half in halves)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_signals_and_videos_by_hand():
    signals = nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2))
    videos = nn.Sequential(nn.Conv3d(2, 4, 3, (1, 2, 2), 1), nn.MaxPool3d(3, 2, 1), nn.AvgPool3d((1, 2, 2)))
    for model, x, rank in ((signals, image(2, 2, 33), 1), (videos, image(2, 2, 4, 11, 14), 3)):
        pools = {1: (F.conv1d, F.max_pool1d, F.avg_pool1d), 3: (F.conv3d, F.max_pool3d, F.avg_pool3d)}[rank]
        with torch.no_grad():
            conv = model[0]
            maps = [x, model[0](x), model[:2](x)]
            dense = [
                pools[0](x, conv.weight, conv.bias, 1, 1), pools[1](maps[1], 3, 1, 1),
                pools[2](maps[2], model[2].kernel_size, 1),
            ]  # fmt: skip
            sites = find_sites(model, x)
            assert [site.name for site in sites] == ["0", "1", "2"]
            for tap, expected in (("input", maps), ("dense", dense)):
                with FeatureExtractor(model, sites, tap=tap) as fx:
                    model(x)
                for site, tensor in zip(sites, expected, strict=True):
                    tensor = tensor.unsqueeze(-2) if rank == 1 else tensor
                    torch.testing.assert_close(fx[site.name], tensor, rtol=1e-6, atol=1e-6)
            with FeatureExtractor(model, sites, tap="output") as fx:
                model(x)
            for site in sites:
                assert fx[site.name].shape[2:] == site.output_size
                assert fx[site.name].ndim == (5 if rank == 3 else 4)


def test_one_image_without_batch_axis():
    """What is captured is a batch of one."""
    model, x = make("strided"), image(3, 16, 16)
    model[1] = nn.Identity()  # batch norm wants a batch
    sites = find_sites(model, image(1, 3, 16, 16))
    with torch.no_grad():
        for tap in ("input", "dense", "output"):
            with FeatureExtractor(model, sites, tap=tap) as one:
                model(x)
            with FeatureExtractor(model, sites, tap=tap) as batch:
                model(x[None])
            for site in sites:
                torch.testing.assert_close(one[site.name], batch[site.name], rtol=1e-6, atol=1e-6)


@given(
    order=st.permutations([0, 1, 2, 3]), size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    starts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    tap=st.sampled_from(["dense", "output"]), inference=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_slices_of_any_layout(order, size, steps, starts, tap, inference):
    """The contract for a slice of rows and columns, wherever these stand among the axes."""
    assume(max(steps) > 1 and all(start < n for start, n in zip(starts, size, strict=True)))
    cut = [slice(None)] * 4
    cut[order.index(2)] = slice(starts[0] if steps[0] > 1 else None, None, steps[0])
    cut[order.index(3)] = slice(starts[1] if steps[1] > 1 else None, None, steps[1])
    model = nets.Call(lambda m, x: x.permute(order)[tuple(cut)] + 1)
    (site,) = find_sites(model, (3, *size))
    phase = tuple(start if step > 1 else 0 for start, step in zip(starts, steps, strict=True))
    assert (site.stride, site.geometry.phase, site.measurable) == (steps, phase, True)
    x = image(2, 3, *size)
    with torch.inference_mode(inference), FeatureExtractor(model, [site], tap=tap) as fx:
        model(x)
    kept = x[..., phase[0] :: steps[0], phase[1] :: steps[1]]
    assert torch.equal(fx[site.name], x if tap == "dense" else kept)
    assert kept.shape[2:] == site.output_size


@pytest.mark.parametrize("name", ["hiera_tiny_224", "mvitv2_tiny"])
def test_timm_networks_made_small(name):
    """The contract at every site, and values per image."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=4, img_size=64).eval()
    x = image(3, 3, 64, 64)
    sites = [site for site in find_sites(model, x) if site.measurable]
    assert len(sites) > 5
    seen: list[str] = []

    def reduce(capture: Capture) -> None:
        assert_relation(capture.site, capture.dense(), capture.run())
        assert capture.per_image(capture.input.sum((1, 2, 3))).shape == (3,)
        seen.append(capture.site.name)

    with torch.no_grad(), FeatureExtractor(model, sites, reduce=reduce):
        model(x)
    assert sorted(seen) == sorted(site.name for site in sites)


# Names and calls


def test_calls_by_module_name():
    model, x = make("reused"), image(2, 3, 64, 64)
    with FeatureExtractor(model, ["pool", "conv"]) as fx:
        model(x)
        assert [t.shape[-1] for t in fx.calls("pool")] == [32, 8, 4]
        assert torch.equal(fx.calls("conv")[0], x)
        assert len(fx.calls("conv")) == 2
        with pytest.raises(
            SpectralError, match=r"'pool' ran 3 times in one forward pass; read calls\('pool'\)\[k\]"
        ):
            fx["pool"]


def test_calls_by_site():
    model, x = make("reused"), image(2, 3, 64, 64)
    sites = {site.name: site for site in find_sites(model, x)}
    with torch.no_grad():
        first = model.conv(x)
        second = model.conv(F.max_pool2d(first, 2))
    expected = {"conv@0": x, "pool@0": first, "conv@1": F.max_pool2d(first, 2), "pool@1": second,
                "pool@2": F.max_pool2d(second, 2)}  # fmt: skip
    with FeatureExtractor(model, sites.values()) as fx:
        for _ in range(2):
            model(x)
        for name, tensor in expected.items():
            assert torch.equal(fx[name], tensor)
    with FeatureExtractor(model, [sites["pool@1"]]) as fx:
        model(x)
        assert torch.equal(fx["pool@1"], second)
        assert list(fx) == ["pool@1"]


def test_two_forwards_give_the_latest():
    for name in ("strided", "functional"):
        model = make(name)
        sites = find_sites(model, 32)
        a, b = image(2, 3, 32, 32, seed=1), image(3, 3, 32, 32, seed=2)
        with FeatureExtractor(model, [sites[0], ""]) as fx:
            model(a)
            model(b)
            assert torch.equal(fx[sites[0].name], b)
            assert len(fx.calls("")) == 1


def test_order_and_container_protocol():
    model = make("strided")
    sites = find_sites(model, 16)
    fx = FeatureExtractor(model, [sites[1], "0", "2"])
    assert fx.keys() == list(fx) == ["3", "0", "2"]
    assert len(fx) == 3
    assert "0" in fx
    assert "1" not in fx
    fx.remove_hooks()


@pytest.mark.parametrize("again", [["0", "0"], "site twice", "site and name"])
def test_the_same_twice_is_once(again):
    model = make("strided")
    (site, *_) = find_sites(model, 16)
    asked = {"site twice": [site, site], "site and name": [site, "0"]}.get(str(again), again)
    with FeatureExtractor(model, asked) as fx:
        model(image())
        assert fx["0"].shape == (2, 3, 16, 16)
        assert len(fx) == 1


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["layer2.0.conv"], r"no module 'layer2.0.conv'; nearest: .*'layer2.0.conv1'"),
        (["conv1", "zzzzzz"], r"no module 'zzzzzz'"),
        ("conv1", r"sites must be a list, got the string 'conv1'"),
        ([3], r"expected sites from find_sites or module names, got int"),
        (["layer2.0.shortcut:slice0"], r"'layer2.0.shortcut:slice0'.*pass the site that find_sites gives"),
        (["conv1@1"], r"'conv1@1'.*pass the site that find_sites gives"),
    ],
)
def test_names_are_strict(asked, sentence):
    model = build("resnet20-a")
    with pytest.raises(SpectralError, match=sentence):
        FeatureExtractor(model, asked)
    assert count_hooks(model) == 0


def test_misuse_is_told():
    model = make("strided")
    with FeatureExtractor(model, ["0", "3"]) as fx:
        with pytest.raises(
            SpectralError, match="nothing was captured at '0': the model hasn't run since the hooks"
        ):
            fx["0"]
        model(image())
        with pytest.raises(SpectralError, match=r"'30' isn't captured; nearest: '3'"):
            fx["30"]
    with pytest.raises(SpectralError, match="tap must be one of input, dense, signal, output, got 'folded'"):
        FeatureExtractor(model, ["0"], tap="folded")
    with pytest.raises(
        SpectralError, match="tap 'dense' needs a site from find_sites, got the module name '0'"
    ):
        FeatureExtractor(model, ["0"], tap="dense")
    with pytest.raises(SpectralError, match="reduce needs a site from find_sites, got the module name '0'"):
        FeatureExtractor(model, ["0"], reduce=print)
    assert count_hooks(model) == 0


def test_a_module_that_did_not_run():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Branches()
    with FeatureExtractor(model, ["unused"]) as fx:
        model(image())
        with pytest.raises(
            SpectralError, match="nothing was captured at 'unused': it didn't run in the latest"
        ):
            fx["unused"]


def test_an_unmeasurable_site_is_refused_with_the_reason():
    for model, reason in (
        (nets.Focus(), "lossless"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(7)), "windows are unequal"),
    ):
        (site,) = find_sites(model, 16)
        with pytest.raises(SpectralError, match=rf"site '.*' can't be measured: .*{reason}"):
            FeatureExtractor(model, [site])
        assert count_hooks(model) == 0


def test_sites_of_another_model_are_refused():
    (site,) = find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 16)
    for other in (
        nn.Sequential(nn.Conv2d(3, 4, 3, 4)),
        nn.Sequential(nn.Linear(3, 3)),
        nn.Sequential(nn.MaxPool2d(2)),
    ):
        with pytest.raises(
            SpectralError, match="site '0' isn't what runs there; call find_sites on this model"
        ):
            FeatureExtractor(other, [site])
        assert count_hooks(other) == 0


@pytest.mark.parametrize("detach", [True, False])
def test_a_site_that_runs_otherwise_at_another_size(detach):
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, x.shape[-1] // 8) + 1 if x.shape[-1] != 16 else F.avg_pool2d(x, 2) + 1

    model = nn.Sequential(Halves())
    sites = find_sites(model, 32)
    with FeatureExtractor(model, sites, detach=detach) as fx:
        with pytest.raises(SpectralError, match="call find_sites again for this input"):
            model(image(1, 3, 64, 64))
        assert active_modes() == 0
        model(image(1, 3, 16, 16))  # another operator, at another place
        with pytest.raises(SpectralError, match="'0': it didn't run in the latest forward pass"):
            fx["0"]
        model(image(1, 3, 32, 32))
        assert fx["0"].shape[-1] == 32


def test_a_pool_that_becomes_global_is_told_not_averaged():
    model = nn.Sequential(nets.Squeezing())
    sites = find_sites(model, 8)
    told = pytest.raises(SpectralError, match="call find_sites again for this input")
    with torch.no_grad(), FeatureExtractor(model, sites, tap="dense"), told:
        model(image(1, 3, 4, 4))


def test_no_sites_at_all():
    model = make("strided")
    with FeatureExtractor(model, []) as fx:
        model(image())
        assert (len(fx), fx.keys()) == (0, [])
    assert count_hooks(model) == 0


def test_a_module_without_a_plain_tensor():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    model = nn.Sequential(Pair())
    told = pytest.raises(SpectralError, match="'0' passes no plain tensor; capture a module inside it")
    with FeatureExtractor(model, ["0"], capture_input=False), told:
        model(image())
    assert count_hooks(model) == 0


# Inputs that are no lone tensor


def test_keyword_arguments():
    model, x = make("keyword"), image()
    (site,) = find_sites(model, x)
    for asked in ([site], ["conv"]):
        with FeatureExtractor(model, asked) as fx:
            model(pixels=x, gain=2.0)
            assert torch.equal(fx["conv"], 2 * x)
            model(x, gain=3.0)
            assert torch.equal(fx["conv"], 3 * x)


def test_dictionaries():
    model, x = nets.TwoInputs(), image()
    with FeatureExtractor(model, ["conv"]) as fx:
        model({"pixels": x})
        assert torch.equal(fx["conv"], x)
        model(pixels=x + 1)
        assert torch.equal(fx["conv"], x + 1)


# Nothing stays


def test_with_and_without_with():
    model = nets.Nested()
    sites = find_sites(model, 32)
    with unchanged(model):
        fx = FeatureExtractor(model, [*sites, "stem"])
        assert count_hooks(model) > 0
        model(image(1, 3, 32, 32))
        fx.remove_hooks()
        fx.remove_hooks()
        captured = fx["stem"].clone()
        model(image(1, 3, 32, 32, seed=9))
        assert torch.equal(fx["stem"], captured)
    with unchanged(model), FeatureExtractor(model, sites) as fx:
        model(image(1, 3, 32, 32))
    assert fx["head"].shape[0] == 1


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("depth", ["leaf", "block", "root"])
def test_a_forward_that_raises(depth, detach):
    model, x = nets.Raising(), image(2, 3, 64, 64)
    sites = find_sites(model, x)
    expected = {}
    with FeatureExtractor(model, sites) as fx:
        model(x)
        expected = {site.name: fx[site.name] for site in sites}
    with unchanged(model):
        with FeatureExtractor(model, sites, detach=detach) as fx:
            hooks = count_hooks(model)
            model.break_at(depth)
            with pytest.raises(RuntimeError, match=f"the {depth} broke"):
                model(x * 2)
            assert active_modes() == 0
            assert count_hooks(model) == hooks
            model.break_at("")
            for _ in range(2):  # within the same with block, capture goes on as if nothing had been
                model(x)
                for site in sites:
                    assert torch.equal(fx[site.name], expected[site.name]), site.name
        model.break_at(depth)
        with pytest.raises(RuntimeError), FeatureExtractor(model, sites, detach=detach):
            model(x)
        assert (count_hooks(model), active_modes()) == (0, 0)
        model.break_at("")
        model(x)


@pytest.mark.parametrize("detach", [True, False])
def test_an_error_that_the_model_handles_itself(detach):
    class Fallback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fragile, self.after = nets.Raising(), nn.Conv2d(3, 3, 3, 2)
            self.fragile.break_at("leaf")

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.fragile(x)
            except RuntimeError:
                x = F.max_pool2d(x + 1, 2)
            return self.after(x)

    model, x = Fallback(), image(2, 3, 64, 64)
    sites = find_sites(model, x)[-2:]
    with FeatureExtractor(model, sites, detach=detach) as fx:
        model(x)
        assert torch.equal(fx[":max_pool0"], x + 1)
        assert torch.equal(fx["after"], F.max_pool2d(x + 1, 2))
    assert active_modes() == 0


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", ["strided", "functional", "nested", "blur"])
def test_a_reduce_that_raises(name, detach):
    model, x = make(name), image(2, 3, 32, 32)

    def refuse(capture: Capture) -> None:
        raise ArithmeticError("no number")

    sites = find_sites(model, x)
    with (
        unchanged(model),
        pytest.raises(ArithmeticError),
        FeatureExtractor(model, sites, reduce=refuse, detach=detach),
    ):
        model(x)


def test_training_flags_and_statistics():
    model = nets.strided()
    model[4].eval()
    sites = find_sites(model, 16)
    twin = nets.strided()
    twin.load_state_dict(model.state_dict())
    twin[4].eval()
    flags = [module.training for module in model.modules()]
    with FeatureExtractor(model, sites, tap="dense"):
        model(image())
    twin(image())
    assert [module.training for module in model.modules()] == flags
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_paused_and_enabled():
    for name in ("strided", "functional"):
        model = make(name)
        sites = find_sites(model, 32)
        a, b = image(2, 3, 32, 32, seed=1), image(2, 3, 32, 32, seed=2)
        first = sites[0].name
        with FeatureExtractor(model, [*sites, ""]) as fx:
            model(a)
            with fx.paused():
                model(b)
                with fx.paused():
                    model(b)
                assert not fx.enabled
            assert torch.equal(fx[first], a)
            assert torch.equal(fx[""], a)
            fx.enabled = False
            model(b)
            assert torch.equal(fx[first], a)
            with pytest.raises(RuntimeError), fx.paused():
                raise RuntimeError
            assert not fx.enabled
            fx.enabled = True
            model(b)
            assert torch.equal(fx[first], b)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", ["strided", "functional", "nested", "inplace", "shared"])
def test_two_extractors_at_once(name, detach):
    """What one computes in its callback must not count as the model's operators for the other."""
    model, x = make(name), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    with FeatureExtractor(model, sites, tap="dense") as fx:
        model(x)
        expected = {site.name: fx[site.name] for site in sites}
    folded: dict[str, Tensor] = {}

    def fold(capture: Capture) -> None:
        with torch.no_grad():
            F.max_pool2d(capture.input, 2)
            folded[capture.site.name] = capture.dense()[..., ::2, ::2].clone()

    for order in (1, -1):
        folded.clear()
        made = [lambda: FeatureExtractor(model, sites, reduce=fold, detach=detach),
                lambda: FeatureExtractor(model, sites, tap="dense", detach=detach)][::order]  # fmt: skip
        with made[0]() as first, made[1]() as second:
            model(x)
            keeping = second if order == 1 else first
            for site in sites:
                assert torch.equal(keeping[site.name], expected[site.name])
                assert torch.equal(folded[site.name], expected[site.name][..., ::2, ::2])
        assert (count_hooks(model), active_modes()) == (0, 0)


def test_extractors_may_end_in_any_order():
    model, x = make("nested"), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    first, second = FeatureExtractor(model, sites), FeatureExtractor(model, sites[:2])
    first.remove_hooks()
    model(x)
    assert second[sites[0].name].shape[-1] == 32
    second.remove_hooks()
    assert count_hooks(model) == 0


# Reducing inside the hook


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", ["strided", "functional", "nested", "same", "reused", "power"])
def test_reduce(name, detach):
    model, x = make(name), image(4, 3, 64, 64)
    sites = find_sites(model, x)
    seen: list[str] = []

    def reduce(capture: Capture) -> None:
        assert capture.input.shape[-2:] == capture.site.input_size
        assert capture.output.shape[-2:] == capture.site.output_size
        whole, part = capture.dense(), capture.dense(slice(1, 3))
        assert part.shape[0] == 2
        torch.testing.assert_close(part, whole[1:3], rtol=1e-5, atol=1e-5)
        assert_relation(capture.site, whole, capture.output)
        assert (
            capture.input.requires_grad == capture.output.requires_grad == whole.requires_grad == (not detach)
        )
        seen.append(capture.site.name)

    with FeatureExtractor(model, sites, reduce=reduce, detach=detach) as fx:
        model(x.requires_grad_())
        with pytest.raises(SpectralError, match="reduce callback took"):
            fx[sites[0].name]
    assert seen == [site.name for site in sites]


@pytest.mark.parametrize("name", ["strided", "nested", "functional"])
@pytest.mark.parametrize("pausing", [True, False])
def test_a_reduce_may_run_the_model(name, pausing):
    """What runs inside the callback isn't captured, paused or not, and changes nothing outside."""
    model, x = make(name), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    seen: list[str] = []

    def reduce(capture: Capture) -> None:
        with fx.paused() if pausing else nullcontext():
            model(image(1, 3, 16, 16))
        seen.append(capture.site.name)

    with torch.no_grad():
        expected = model(x)
        with unchanged(model), FeatureExtractor(model, sites, reduce=reduce) as fx:
            assert torch.equal(model(x), expected)
    assert seen == [site.name for site in sites]
    assert active_modes() == 0


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", ["strided", "nested", "inplace"])
def test_a_reduce_may_stop_the_capture(name, detach):
    model, x = make(name), image(2, 3, 32, 32)
    sites = find_sites(model, x)
    seen: list[str] = []

    def once(capture: Capture) -> None:
        seen.append(capture.site.name)
        fx.enabled = False

    with unchanged(model), FeatureExtractor(model, sites, reduce=once, detach=detach) as fx:
        for _ in range(2):
            model(x)
            assert active_modes() == 0
        assert seen == [sites[0].name]
        fx.enabled = True
        model(x)
        assert seen == [sites[0].name] * 2

    def remove(capture: Capture) -> None:
        fx.remove_hooks()

    told = pytest.raises(SpectralError, match="can't run inside the reduce callback; set enabled = False")
    with unchanged(model), told, FeatureExtractor(model, sites, reduce=remove, detach=detach) as fx:
        model(x)


# The output taken from the dense map

CONVOLVING = [
    "strided", "functional", "nested", "same", "standardised", "reflect", "reused", "blur", "inplace",
    "resnet20-blurpool", "heads first", "control flow", "keyword",
]  # fmt: skip


class StridedConvolutions(TorchDispatchMode):
    """Counts convolutions that are run with a stride, and those without."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = self.dense = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            if max(args[3]) > 1:
                self.strided += 1
            else:
                self.dense += 1
        return func(*args, **(kwargs or {}))


def run_substituted(model: nn.Module, x: Tensor, reduce: Callable[[Capture], object]) -> Tensor:
    sites = [site for site in find_sites(model, x) if site.operator == "conv"]
    with FeatureExtractor(model, sites, tap="dense", reduce=lambda capture: void(reduce(capture))):
        out = model(x)
    assert (count_hooks(model), active_modes()) == (0, 0)
    return out


def void(value: object) -> None:
    pass


def piecewise(capture: Capture) -> None:
    for run in capture.decimation.split_channels(3):
        for start in range(len(capture.input)):
            capture.dense(slice(start, start + 1), run)


def backwards(capture: Capture) -> None:
    for run in reversed(list(capture.decimation.split_channels(2))):
        capture.dense(channels=run)


REDUCES: dict[str, Callable[[Capture], object]] = {
    "whole": lambda capture: capture.dense(),
    "pieces": piecewise,
    "backwards": backwards,
    "one image": lambda capture: capture.dense(slice(0, 1)),
    "one channel": lambda capture: capture.dense(channels=next(capture.decimation.split_channels(1))),
    "twice": lambda capture: (capture.dense(), capture.dense()),
    "the same piece twice": lambda capture: (capture.dense(slice(0, 1)), capture.dense(slice(0, 1))),
    "nothing": lambda capture: None,
    "output first": lambda capture: (capture.output, capture.dense()),
    "in place": lambda capture: capture.dense().zero_(),
    "run": lambda capture: (capture.dense(), capture.run()),
}


@pytest.mark.parametrize("level", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("how", REDUCES)
@pytest.mark.parametrize("name", CONVOLVING)
def test_the_output_is_taken_from_the_dense_map(name, how, level):
    model, x = make(name), image(2, 3, 48, 60)
    with level():
        expected = model(x.clone())
        got = run_substituted(model, x.clone(), REDUCES[how])
    assert got.shape == expected.shape
    assert got.stride() == expected.stride()
    if how in ("nothing", "output first", "one image", "one channel", "the same piece twice"):
        assert torch.equal(got, expected)  # a part of the dense map isn't enough
    else:
        # Rounding of a few layers, not of one.
        assert (got - expected).abs().max() <= 5e-6 * expected.abs().max()


def test_nothing_is_convolved_twice():
    model, x = make("strided"), image(2, 3, 32, 32)
    for how, strided, dense in (("whole", 0, 1), ("pieces", 0, 4), ("nothing", 1, 0), ("one image", 1, 1)):
        with torch.no_grad(), StridedConvolutions() as counts:
            sites = [site for site in find_sites(model, x) if site.name == "0"]
            counts.strided = counts.dense = 0
            with FeatureExtractor(model, sites, tap="dense", reduce=lambda c, how=how: void(REDUCES[how](c))):
                model(x)
        assert (counts.strided, counts.dense) == (strided, dense), how


def test_what_the_operator_itself_gives():
    model, x = make("strided"), image(2, 3, 32, 32)
    with torch.no_grad():
        expected = model[0](x)

        def reduce(capture: Capture) -> None:
            capture.dense()
            assert torch.equal(capture.run(), expected)
            assert torch.allclose(capture.run(slice(1, 2)), expected[1:], rtol=0, atol=1e-6)
            assert torch.equal(capture.output, capture.decimate(capture.dense()))
            assert capture.output.shape == expected.shape

        run_substituted(model[:1], x, reduce)


def test_where_a_gradient_is_needed_the_operator_runs():
    model, x = make("functional"), image(2, 3, 32, 32)
    expected = model(x)
    got = run_substituted(model, x, REDUCES["whole"])
    assert torch.equal(got, expected)
    wanted, taken = (torch.autograd.grad(out.sum(), model.weight)[0] for out in (expected, got))
    assert torch.equal(taken, wanted)
    sites = find_sites(model, x)
    for detach, level in ((True, torch.enable_grad), (False, torch.enable_grad), (False, torch.no_grad)):
        with (
            level(),
            StridedConvolutions() as counts,
            FeatureExtractor(model, sites, tap="dense", reduce=lambda c: void(c.dense()), detach=detach),
        ):
            assert torch.equal(model(x), expected)
        assert (counts.strided, counts.dense) == (1, 1)


@pytest.mark.parametrize("how", ["whole", "pieces"])
@pytest.mark.parametrize("name", ["strided", "functional", "blur", "inplace"])
def test_channels_last_is_kept_where_the_output_is_taken_from_the_dense_map(name, how):
    model = make(name).to(memory_format=torch.channels_last)
    x = image(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    outputs: dict[str, list[tuple[int, ...]]] = {"usual": [], how: []}
    sites = find_sites(model, x)
    with torch.no_grad():
        for run, strides in outputs.items():

            def keep(module: nn.Module, args: object, out: Tensor, strides=strides) -> None:
                strides.append(out.stride())

            after = [module.register_forward_hook(keep) for module in model.modules()]
            reduce = REDUCES["nothing" if run == "usual" else how]
            with FeatureExtractor(model, sites, tap="dense", reduce=lambda c, reduce=reduce: void(reduce(c))):
                model(x)
            for handle in after:
                handle.remove()
    assert outputs[how] == outputs["usual"]


@pytest.mark.parametrize("name", ["strided", "functional", "nested"])
def test_a_reduce_that_raises_instead_of_the_operator(name):
    model, x = make(name), image(2, 3, 32, 32)

    def refuse(capture: Capture) -> None:
        capture.dense()
        raise ArithmeticError("no number")

    with unchanged(model), torch.no_grad(), pytest.raises(ArithmeticError):
        run_substituted(model, x, refuse)
    with torch.no_grad():
        model(x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("tap", ["input", "dense", "output"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_is_captured_once(tap, reentrant):
    """The backward pass runs the block again: what was captured stays, gradients are the usual ones."""
    model, x = nets.Checkpointed(reentrant).train(), image(2, 3, 32, 32)
    sites = find_sites(model, x)

    def train() -> list[Tensor]:
        model.zero_grad()
        model(x).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = train()
    with FeatureExtractor(model, sites, tap=tap) as fx:
        for a, b in zip(train(), expected, strict=True):
            assert torch.equal(a, b)
        captured = {site.name: fx.calls(site.name) for site in sites}
    with FeatureExtractor(model, ["block"], capture_input=tap == "input") as by_name:
        train()
        assert len(by_name.calls("block")) == 1
    model.eval()
    with torch.no_grad(), FeatureExtractor(model, sites, tap=tap) as plain:
        model(x)
    for name, tensors in captured.items():
        assert len(tensors) == 1
        torch.testing.assert_close(tensors[0], plain[name], rtol=1e-6, atol=1e-6)
    seen: list[str] = []
    model.train()
    with FeatureExtractor(model, sites, tap=tap, reduce=lambda capture: seen.append(capture.site.name)):
        for a, b in zip(train(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert seen == [site.name for site in sites]


# Gradients, against computations written out by hand


def gradients(value: Tensor, model: nn.Module, x: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(value, [x, *model.parameters()], allow_unused=True, retain_graph=True))


def assert_same_gradients(
    model: nn.Module, sites: list[Site], by_hand: Callable[[Tensor], list[Tensor]]
) -> None:
    x = image(2, 3, 15, 16, seed=4).requires_grad_()
    with FeatureExtractor(model, sites, tap="dense", detach=False) as fx:
        model(x)
    for site, expected in zip(sites, by_hand(x), strict=True):
        torch.testing.assert_close(fx[site.name], expected, rtol=1e-5, atol=1e-5)
        got, wanted = (gradients(dense.square().mean(), model, x) for dense in (fx[site.name], expected))
        assert [g is None for g in got] == [g is None for g in wanted], site.name
        assert sum(g is not None for g in wanted) > 1
        for a, b in zip(got, wanted, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_of_direct_sites():
    model = make("strided")

    def by_hand(x: Tensor) -> list[Tensor]:
        y = F.relu(model[1](model[0](x)))
        z = F.max_pool2d(y, 3, 2, 1)
        return [
            F.conv2d(x, model[0].weight, model[0].bias, 1, 1),
            F.max_pool2d(y, 3, 1, 1),
            F.avg_pool2d(z, 2, 1),
        ]

    assert_same_gradients(model, find_sites(model, (15, 16)), by_hand)


def test_gradients_of_wrapped_sites():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), BlurPool2d(4, 3),
                          nets.PadsItself(4, 4, 3, 2), nets.Standardised(4, 2, 2, 2))  # fmt: skip

    def by_hand(x: Tensor) -> list[Tensor]:
        conv, _, _, same, standardised = model
        y = F.pad(F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1)), (1, 1, 1, 1), mode="reflect")
        blurred = F.conv2d(y, np_like([1.0, 2.0, 1.0]).expand(4, 1, 3, 3), groups=4)
        halved = blurred[..., ::2, ::2]  # 8 × 8: "same" padding adds one sample at the end
        dense = F.conv2d(F.pad(halved, (0, 1, 0, 1)), same.weight, same.bias)
        w = standardised.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return [blurred, dense, F.conv2d(dense[..., ::2, ::2], w, standardised.bias)]

    assert_same_gradients(model, find_sites(model, (15, 16)), by_hand)


def test_gradients_of_inner_sites():
    functional = nn.Sequential(nets.FunctionalBlock())

    def by_hand(x: Tensor) -> list[Tensor]:
        block = functional[0]
        y = F.relu(F.conv2d(x, block.weight, block.bias, 2, 1))
        z = F.max_pool2d(y, (2, 1)) + 1
        dense = F.conv2d(x, block.weight, block.bias, 1, 1)
        return [dense, F.max_pool2d(y, (2, 1), 1), F.avg_pool2d(z, 2, 1)]

    assert_same_gradients(functional, find_sites(functional, (15, 16)), by_hand)


def test_gradients_of_slices():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nets.SlicingShortcut())

    def by_hand(x: Tensor) -> list[Tensor]:
        return [model[0](x)]

    slices = [site for site in find_sites(model, (15, 16)) if site.op == "slice"]
    assert_same_gradients(model, slices, by_hand)


def test_gradients_of_what_a_functional_makes_of_its_argument():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nets.PowerPool())

    def by_hand(x: Tensor) -> list[Tensor]:
        y = model[0](x)
        y = y + y[0, ::2].mean()
        return [F.avg_pool2d(y * y, 2, 1)]

    assert_same_gradients(model, find_sites(model, (15, 16)), by_hand)


def test_gradients_reach_the_weights_under_autocast():
    model, x = nn.Sequential(nets.Blur(3), nets.FunctionalBlock()), image(2, 3, 32, 32)
    sites = [site for site in find_sites(model, x) if site.op == "conv"]
    with (
        torch.autocast("cpu", torch.bfloat16),
        FeatureExtractor(model, sites, tap="dense", detach=False) as fx,
    ):
        model(x)
    got = torch.autograd.grad(fx[sites[0].name].float().square().mean(), list(model.parameters()))
    block, blurred = model[1], F.conv2d(x, model[0].kernel, stride=2, padding=1, groups=3)
    dense = F.conv2d(blurred, block.weight, block.bias, 1, 1)
    wanted = torch.autograd.grad(dense.square().mean(), list(model.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(b.abs().max()))


def test_a_penalty_trains_through_every_tap():
    model, x = nets.SlicingShortcut(), image(2, 3, 16, 16)
    sites = find_sites(model, x)
    for tap in ("input", "dense", "output"):
        model.zero_grad()
        with FeatureExtractor(model, sites, tap=tap, detach=False) as fx:
            loss = model(x).square().mean() + sum(fx[site.name].square().mean() for site in sites)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("make_model", [nets.strided, nets.FunctionalBlock])
def test_a_captured_graph_is_only_kept_on_request(make_model):
    model = make_model()
    sites = find_sites(model, 32)
    with FeatureExtractor(model, sites, tap="dense") as fx:
        model(image(2, 3, 32, 32).requires_grad_())
    assert not any(fx[site.name].requires_grad for site in sites)


# Small maps and refusals


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet20-a", "resnet20-blurpool", "nula"])
def test_maps_of_a_few_pixels(name, size):
    model, x = make(name), image(2, 3, size, size)
    sites = find_sites(model, x)
    assert len(sites) == 4
    with torch.no_grad():
        dense, output = (FeatureExtractor(model, sites, tap=tap) for tap in ("dense", "output"))
        with dense, output:
            model(x)
    for site in sites:
        assert_relation(site, dense[site.name], output[site.name])


def test_models_in_which_hooks_never_fire():
    model = nets.strided()
    with pytest.raises(SpectralError, match=r"pass model\._orig_mod"):
        FeatureExtractor(torch.compile(model), ["0"])
    with pytest.raises(SpectralError, match=r"pass model\.module"):
        FeatureExtractor(nn.DataParallel(model), ["0"])
    assert count_hooks(model) == 0


class CheckpointedChain(nn.Module):
    """Segments of a chain that are run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.chain = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.Softplus(), nn.Conv2d(4, 4, 3, 2, 1), nn.Softplus()
        )
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.chain, 2, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("tap", ["dense", "output"])
def test_a_penalty_over_a_checkpointed_chain_has_its_gradient_or_says_why(tap):
    x = image(2, 3, 16, 16).requires_grad_()
    plain, kept, cut = CheckpointedChain(False), CheckpointedChain(False), CheckpointedChain(True)
    kept.load_state_dict(plain.state_dict())
    with FeatureExtractor(plain.chain, find_sites(plain.chain, 16), tap=tap, detach=False) as fx:
        plain.chain(x)
        sum(fx[name].square().mean() for name in fx).backward()
    with FeatureExtractor(kept, find_sites(kept, 16), tap=tap, detach=False) as fx:
        kept(x)
        sum(fx[name].square().mean() for name in fx).backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with FeatureExtractor(cut, find_sites(cut, 16), tap=tap, detach=False) as fx:
        cut(x)
        with pytest.raises(
            SpectralError, match=r"'chain\.0' ran under reentrant checkpointing.*use_reentrant=False"
        ):
            fx["chain.0"]
        assert fx["chain.2"].requires_grad  # torch runs the last segment plainly
