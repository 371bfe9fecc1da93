"""The same layers for signals, images and videos, and the axes that keep their samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from torch import nn

import spectral
from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import (
    LAYERS,
    STRIDED,
    BlurPool,
    BlurPool2d,
    Decimate2d,
    MaxBlurPool1d,
    MaxBlurPool3d,
    Pool,
    make_pool,
)
from spectral.layers.polyphase import split_phases
from spectral.metrics.aliasing import compute_am_relative

# One name per class.
CLASSES = [
    "strided",
    "blurpool",
    "learned",
    "flc",
    "asap",
    "ideal",
    "aps",
    "lps",
    "wavelet-db2",
    "space-to-depth",
]
LINEAR = [name for name in CLASSES if name not in ("aps", "lps")]
STRIDES = [(2,), (3,), (1,), (2, 2), (1, 2), (3, 1), (2, 2, 2), (1, 2, 2), (2, 1, 3), (1, 1, 2), (1, 1, 1)]


def make(name: str, stride: tuple[int, ...], channels: int = 2) -> Pool:
    torch.manual_seed(0)
    builder = STRIDED if name == "strided" else LAYERS[name]
    return builder(channels, stride, axes=len(stride)).double().eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", CLASSES)
def test_constants_and_sizes(name, stride):
    layer = make(name, stride)
    assert isinstance(layer, Pool)
    assert layer.stride == stride
    for size in ((1, 1, 1), (5, 7, 6), (8, 4, 9)):
        size = size[: len(stride)]
        level = torch.tensor([0.7, -2.0], dtype=torch.float64).view(2, *[1] * len(stride))
        y = layer(level.expand(3, 2, *size))
        small = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        assert y.shape == (3, 2, *small)
        torch.testing.assert_close(y, level.expand_as(y), rtol=3e-6, atol=3e-6)
        torch.testing.assert_close(layer(x=level.expand(2, *size)), y[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [stride for stride in STRIDES if 1 in stride])
@pytest.mark.parametrize("name", list(LAYERS))
def test_an_axis_that_keeps_its_samples_passes_every_frequency(name, stride):
    layer = make(name, stride)
    axis = stride.index(1)
    n, size = torch.arange(9, dtype=torch.float64), [6] * len(stride)
    size[axis] = 9
    for k in range(5):
        tone = torch.cos(2 * torch.pi * k * n / 9 + 0.3).view(
            [-1 if a == axis else 1 for a in range(len(stride))]
        )
        y = layer(tone.expand(1, 2, *size))
        torch.testing.assert_close(y, tone.expand_as(y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_without_decimation_a_map_stays_as_it_is(name):
    for axes in (1, 2, 3):
        x = noise(2, 2, *[5, 6, 3][:axes])
        torch.testing.assert_close(make(name, (1,) * axes)(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("name", LINEAR)
def test_a_video_with_its_frames_kept_is_pooled_frame_by_frame(name, step):
    x = noise(2, 2, 4, 7, 10)
    frames = make(name, (step, step))(x.transpose(1, 2).flatten(0, 1))
    video = make(name, (1, step, step))(x)
    torch.testing.assert_close(video.transpose(1, 2).flatten(0, 1), frames, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*LINEAR, "aps"])
def test_a_signal_is_a_map_of_one_row(name):
    x = noise(3, 2, 11)
    for step in (2, 4):
        rows = make(name, (1, step))(x[:, :, None])[:, :, 0]
        torch.testing.assert_close(make(name, (step,))(x), rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["aps", "lps"])
def test_an_image_is_a_video_of_one_frame(name):
    x = noise(5, 2, 7, 8)
    video, image = make(name, (1, 2, 2)), make(name, (2, 2))
    if name == "lps":  # a circular kernel sees the one frame three times
        weights = video.state_dict().items()
        image.load_state_dict({key: w.sum(2) if w.ndim == 5 else w for key, w in weights})
    torch.testing.assert_close(video(x[:, :, None])[:, :, 0], image(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "space-to-depth"])
def test_the_output_is_a_decimation_of_the_dense_map(name, stride):
    layer = make(name, stride)
    for size in ((6, 6, 6), (5, 7, 4)):
        x = noise(2, 2, *size[: len(stride)])
        steps = tuple(slice(None, None, s) for s in stride)
        torch.testing.assert_close(layer.dense(x)[(..., *steps)], layer(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.dense(x[0])[(..., *steps)], layer(x[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [(2,), (2, 3), (1, 2, 2), (2, 2, 3)])
@pytest.mark.parametrize("name", ["flc", "asap", "ideal"])
def test_nothing_is_left_that_could_alias(name, stride):
    dense = make(name, stride).dense(noise(2, 2, *[9, 8, 10][: len(stride)]))
    if len(stride) == 1:  # the metric has two axes or more
        dense, stride = dense[:, :, None], (1, *stride)
    assert compute_am_relative(dense, stride).max() < 1e-12


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_blurs_equal_the_reference_on_any_number_of_axes(mode):
    for kernel_size, stride in ((3, (2,)), (4, (3,)), (5, (2, 1, 2)), ((2, 3, 1), (1, 2, 2)), (7, (2, 2, 2))):
        x = noise(2, 3, *[3, 7, 4][: len(stride)])
        layer = LAYERS["blurpool"](
            3, stride, len(stride), kernel_size=kernel_size, padding_mode=mode
        ).double()
        assert isinstance(layer, BlurPool)
        expected = reference.blur_pool(x.numpy(), kernel_size, stride, mode)
        for layer.as_products in (False, True):
            np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-6)


def test_max_blur_of_signals_and_videos():
    for layer, size in (
        (MaxBlurPool1d(1, 3, 1, 2), (8,)),
        (MaxBlurPool3d(1, (1, 3, 2), 1, (1, 2, 2)), (2, 8, 6)),
    ):
        x = noise(1, 1, *size)
        pool = nn.MaxPool1d(3, 2, 1) if len(size) == 1 else nn.MaxPool3d((1, 3, 2), (1, 2, 2), (0, 1, 0))
        expected = pool(x)
        assert torch.equal(layer(x)[..., : expected.shape[-1]], expected)


def test_decimation_with_and_without_memory_of_its_own():
    x = noise(2, 3, 6, 8)
    view, copy = Decimate2d((2, 1), copy=False)(x), Decimate2d((2, 1))(x)
    x.zero_()
    assert view.abs().max() == 0
    assert copy.view(-1).abs().max() > 0
    with pytest.raises(SpectralError, match="Decimate2d: copy must be one of True, False, got None"):
        Decimate2d(copy=None)


@pytest.mark.parametrize("stride", [(3,), (2, 3), (2, 3, 2)])
def test_phases_are_numbered_with_the_last_axis_fastest(stride):
    x = noise(2, 3, *[6, 6, 4][: len(stride)])
    parts = split_phases(x, stride)
    for number, first in enumerate(np.ndindex(*stride)):
        steps = tuple(slice(f, None, s) for f, s in zip(first, stride, strict=True))
        assert torch.equal(parts[:, number], x[(..., *steps)])


@pytest.mark.parametrize("stride", [(3,), (2, 3, 2)])
def test_aps_follows_circular_shifts_of_signals_and_videos(stride):
    layer = make("aps", stride)
    x = noise(4, 2, *[6, 6, 4][: len(stride)])
    y = layer(x)
    dims = tuple(range(2, x.ndim))
    moved = layer(x.roll([1] * len(stride), dims))
    rolls = list(np.ndindex(*y.shape[2:]))
    for image, other in zip(y, moved, strict=True):
        assert any(torch.equal(image.roll(roll, tuple(d - 1 for d in dims)), other) for roll in rolls)


@pytest.mark.parametrize("name", ["flc", "asap", "ideal", "aps", "lps"])
def test_layers_of_videos_are_sites(name):
    x = noise(2, 2, 4, 8, 6)
    net = nn.Sequential(make(name, (1, 2, 2)))
    (site,) = spectral.find_sites(net, example=x)
    assert (site.measurable, site.stride, site.input_size) == (True, (1, 2, 2), (4, 8, 6))
    with FeatureExtractor(net, [site], tap="dense") as features, torch.no_grad():
        y = net(x)
        dense = features[site.name]
    torch.testing.assert_close(dense[..., ::2, ::2], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["flc", "asap", "ideal", "aps", "lps"])
def test_layers_of_signals_are_measured_as_maps_of_one_row(name):
    net, x = nn.Sequential(make(name, (2,))), noise(2, 2, 16)
    (site,) = spectral.find_sites(net, example=x)
    assert (site.measurable, site.stride, site.input_size) == (True, (1, 2), (1, 16))
    with FeatureExtractor(net, [site], tap="dense") as features, torch.no_grad():
        y = net(x)
        dense = features[site.name]
    torch.testing.assert_close(dense[..., ::2].squeeze(-2), y, rtol=0, atol=1e-12)
    table = spectral.measure(net, x, metrics=("avr",), progress=False)
    assert site.name in set(table["site"])
    own = table[(table["site"] == site.name) & (table["metric"] == "avr")]
    assert own["value"].notna().all()


class TestArguments:
    @pytest.mark.parametrize("name", list(LAYERS))
    def test_strides_of_another_number_of_axes(self, name):
        for axes, stride in ((1, (2, 2)), (3, (2, 2)), (2, (2,)), (1, 0), (3, (2, 2, "2"))):
            with pytest.raises(
                SpectralError, match=r"stride must be ≥ 1 on every axis, got .*; give a whole number"
            ):
                LAYERS[name](2, stride, axes)
        assert LAYERS[name](2, np.int64(2), 2).stride == (2, 2)
        assert LAYERS[name](2, [2, np.int32(3)], 2).stride == (2, 3)

    @pytest.mark.parametrize("axes", [0, 4, 2.5, "2", None, True])
    def test_axes(self, axes):
        with pytest.raises(SpectralError, match=f"flc: axes must be 1, 2 or 3, got {axes!r}"):
            make_pool("flc", 2, 2, axes)

    @pytest.mark.parametrize(
        ("name", "options", "sentence"),
        [
            (
                "blurpool",
                {"padding": "zeros"},
                "blurpool: no option is called 'padding'; nearest: 'padding_mode'; it takes kernel_size, pad",
            ),
            ("blurpool-5", {"kernel_size": 3}, "no option is called 'kernel_size'.*; it takes padding_mode"),
            ("wavelet-db2", {"wavelet": "haar"}, "wavelet-db2: no option is called 'wavelet'"),
            ("ideal", {"compat": "paper"}, "ideal: no option is called 'compat'; it takes none"),
            ("space-to-depth", {"out_channels": 3}, "space-to-depth: no option is called 'out_channels'"),
            ("flc", {"compat": "published"}, "FLCPool2d: compat must be one of None, paper, got 'published'"),
            ("learned", {"padding_mode": "same"}, "LearnedBlurPool2d: padding_mode must be one of"),
            ("aps", {"p": True}, "APSPool2d: p must be > 0, got True"),
            ("lps", {"temperature": "low"}, "LPSPool2d: temperature must be > 0, got 'low'"),
            ("lps", {"hidden": True}, "LPSPool2d: hidden must be ≥ 1, got True"),
        ],
    )  # fmt: skip
    def test_options(self, name, options, sentence):
        with pytest.raises(SpectralError, match=sentence):
            make_pool(name, 4, **options)

    def test_options_reach_the_layer(self):
        layer = make_pool("blurpool", 4, (1, 2, 2), axes=3, kernel_size=5, padding_mode="circular")
        assert (layer.kernel.shape[2:], layer.padding_mode) == ((1, 5, 5), "circular")
        assert make_pool("wavelet", 4, wavelet="db3").wavelet == "db3"
        assert make_pool("asap", 4, compat="paper").compat == "paper"
        assert make_pool("aps", 4, p=1).p == 1
        with pytest.raises(
            SpectralError, match="compat='paper' is defined for images at stride 2 only, got 1 axes"
        ):
            make_pool("flc", 4, axes=1, compat="paper")

    @pytest.mark.parametrize("name", CLASSES)
    def test_maps_of_another_rank(self, name):
        for axes, letters in ((1, "T"), (3, "T, H, W")):
            layer = make(name, (2,) * axes)
            for shape in ((8,) * axes, (1, 1, 2, *[8] * axes)):
                with pytest.raises(SpectralError, match=rf"expected \(B, [2C], {letters}\), got shape"):
                    layer(torch.ones(shape))
            with pytest.raises(SpectralError, match=r"the map is empty"):
                layer(torch.ones(1, 2, *[0] * axes))

    def test_one_base_class_and_its_contract(self):
        kinds = {name: make(name, (2, 2)).kind for name in CLASSES}
        assert kinds == {
            "strided": "plain", "blurpool": "blur", "learned": "blur", "flc": "low_pass", "asap": "low_pass",
            "ideal": "low_pass", "aps": "polyphase", "lps": "polyphase", "wavelet-db2": "blur",
            "space-to-depth": "space_to_depth",
        }  # fmt: skip
        with pytest.raises(SpectralError, match="SpaceToDepth2d: keeps all samples as channels"):
            make("space-to-depth", (2, 2)).dense(torch.ones(1, 2, 4, 4))

    def test_names_in_state_dicts_stay(self):
        # Checkpoints of networks with these layers were kept under them.
        expected = {
            "blurpool": ["kernel"], "learned": ["logits"], "wavelet-db2": ["kernel"],
            "space-to-depth": ["mix.weight"],
            "lps": [f"scorer.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias", "5.weight")],
        }  # fmt: skip
        for name in CLASSES:
            assert list(make(name, (2, 2)).state_dict()) == expected.get(name, []), name
        assert BlurPool2d(3).kernel.shape == (3, 1, 3, 3)
