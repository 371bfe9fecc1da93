"""What every anti-aliased layer promises, over all of them: sizes, constants, dtypes, tracing, errors."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from spectral.errors import SpectralError
from spectral.layers import (
    LAYERS,
    STRIDED,
    APSPool2d,
    ASAPPool2d,
    FLCPool2d,
    IdealLowPass2d,
    LearnedBlurPool2d,
    LPSPool2d,
    MaxBlurPool1d,
    MaxBlurPool2d,
    MaxBlurPool3d,
    SpaceToDepth2d,
    WaveletPool2d,
    make_pool,
)
from spectral.numerics.cache import CACHE

MAX_BLUR = {1: MaxBlurPool1d, 2: MaxBlurPool2d, 3: MaxBlurPool3d}
MAKERS = {
    **LAYERS,
    "strided": STRIDED,
    "maxblurpool": lambda channels, stride, axes=2: MAX_BLUR[axes](channels, stride=stride),
}
NAMES = list(MAKERS)
# One name per class: for the slow checks.
CLASSES = [
    "strided",
    "blurpool",
    "maxblurpool",
    "learned",
    "flc",
    "asap",
    "ideal",
    "aps",
    "lps",
    "wavelet-db2",
    "space-to-depth",
]
SPECTRAL = ["flc", "asap", "ideal"]
FIXED_CHANNELS = [name for name in CLASSES if name not in (*SPECTRAL, "aps", "strided")]
SIZES = [(1, 1), (1, 7), (2, 2), (5, 7), (14, 14), (18, 10), (33, 47)]
STRIDES = [1, 2, 3, 4, (2, 1)]


def make(name: str, channels: int = 3, stride: int | tuple[int, int] = 2, axes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name](channels, stride, axes).eval()


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def expected_size(size, stride):
    s_h, s_w = stride if isinstance(stride, tuple) else (stride, stride)
    return math.ceil(size[0] / s_h), math.ceil(size[1] / s_w)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_stays_that_constant_at_every_size(name, training):
    for stride in STRIDES:
        layer = make(name, 3, stride).train(training)
        for size in SIZES:
            level = torch.tensor([0.7, -2.0, 0.0])[:, None, None]
            y = layer(level.expand(2, 3, *size))
            assert y.shape == (2, 3, *expected_size(size, stride))
            torch.testing.assert_close(y, level.expand_as(y), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", NAMES)
def test_images_and_ranks_stay_apart(name):
    layer, x = make(name).double(), noise(3, 3, 7, 10)
    y = layer(x)
    for image, expected in zip(x, y, strict=True):
        torch.testing.assert_close(layer(image[None])[0], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(image), expected, rtol=1e-12, atol=1e-12)
    assert layer(x[:0]).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("name", NAMES)
def test_size_may_change_between_calls(name):
    layer = make(name)
    sizes = [(8, 8), (9, 12), (12, 9), (3, 3), (8, 8)]
    for size in sizes:
        x = noise(2, 3, *size, dtype=torch.float32)
        assert torch.equal(layer(x), make(name)(x))
    other = make(name)
    other.load_state_dict(layer.state_dict(), strict=True)
    file = io.BytesIO()
    torch.save(copy.deepcopy(layer), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_follows_the_input(name, dtype):
    for size in [(1, 1), (6, 9)]:
        x = noise(2, 3, *size, dtype=dtype)
        layer = make(name)
        expected = copy.deepcopy(layer).double()(x.double())
        # learned weights of a 1×1 convolution follow the input's dtype by model.half(), as in torch
        y = (layer.to(dtype) if name in ("space-to-depth", "learned") else layer)(x)
        assert y.dtype == dtype
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    layer, x = make(name), noise(2, 3, 9, 8, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    if name in (*SPECTRAL, "aps", "lps", "strided"):  # no convolution on the way: nothing may be rounded
        assert y.dtype == torch.float32
        assert torch.equal(y, expected)
    else:
        assert y.dtype == torch.bfloat16  # as any convolution
        torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name):
    layer = make(name, 2).double()
    for size in [(5, 4), (1, 3)]:
        x = noise(1, 2, *size).requires_grad_()
        assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", CLASSES)
def test_channels_stay_last_in_memory(name, axes):
    layer = make(name, 3, axes=axes).double()
    for size in [(9, 6, 5), (8, 8, 8)]:
        x = noise(2, 3, *size[:axes])
        last = x.contiguous(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
        y, expected = layer(last), layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        assert y.movedim(1, -1).is_contiguous()
        assert expected.is_contiguous()
        assert y.is_contiguous(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)


@pytest.mark.parametrize("stride", [2, (1, 2)])
@pytest.mark.parametrize("name", CLASSES)
def test_what_follows_may_view_the_output(name, stride):
    x = noise(2, 3, 8, 9)
    for given in (x, x.mT.contiguous().mT, x[0]):
        y = make(name, 3, stride).double()(given)
        assert y.view(-1).shape == (y.numel(),)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_whatever_lies_between_the_samples(name):
    layer, x = make(name).double(), noise(2, 3, 9, 6)
    same = {
        "transposed": x.mT.contiguous().mT,
        "every second": x.repeat_interleave(2, -1)[..., ::2],
        "reversed batch": x.flip(0).contiguous()[[1, 0]],
        "channels apart": x.repeat_interleave(2, 1)[:, ::2],
        "inside a larger one": torch.nn.functional.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    }
    for what, given in same.items():
        torch.testing.assert_close(layer(given), layer(x), rtol=1e-12, atol=1e-12, msg=what)
    flat = x[:1, :1, :1].expand(2, 3, 9, 6)  # one row of memory for all
    torch.testing.assert_close(layer(flat), layer(flat.clone()), rtol=1e-12, atol=1e-12)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CLASSES)
def test_inference_tensors_and_layers(name):
    x = noise(2, 3, 9, 6)
    expected = make(name).double()(x)
    with torch.inference_mode():
        made, given = make(name).double(), x.clone()
        torch.testing.assert_close(made(given), expected)
    with torch.no_grad():
        torch.testing.assert_close(make(name).double()(given), expected)
        torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("name", CLASSES)
def test_vmap(name):
    layer, x = make(name).double(), noise(4, 2, 3, 9, 6)
    expected = torch.stack([layer(part) for part in x])
    torch.testing.assert_close(torch.vmap(layer)(x), expected, rtol=1e-12, atol=1e-12)
    moved = torch.vmap(layer, in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(moved, torch.stack([layer(p) for p in x.unbind(1)], 1), rtol=1e-12, atol=1e-12)
    single = torch.vmap(layer)(x[0])  # maps without a batch
    torch.testing.assert_close(single, layer(x[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*SPECTRAL, "blurpool", "aps", "wavelet-db2", "space-to-depth"])
def test_transforms_of_functions(name):
    layer, x, direction = make(name).double(), noise(1, 3, 6, 5), noise(1, 3, 6, 5).flip(-1)
    CACHE.clear()  # so that what is kept between calls is made within the transform
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    (gradient,) = torch.autograd.grad((layer(x.requires_grad_()) * tangent).sum(), x)
    torch.testing.assert_close((gradient * direction).sum(), tangent.square().sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_runs_on_the_meta_device(name):
    layer = make(name).to("meta")
    assert layer(torch.empty(2, 3, 21, 22, device="meta")).shape == (2, 3, 11, 11)


@pytest.mark.parametrize("name", SPECTRAL)
def test_what_is_kept_between_calls_serves_every_mode(name):
    layer, size = make(name), (23, 26)
    with FakeTensorMode():
        layer(torch.zeros(1, 3, *size))
    with torch.inference_mode():
        layer(torch.zeros(1, 3, *size))
    x = noise(1, 3, *size, dtype=torch.float32).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(3.0 * 12 * 13), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_compiles_as_one_graph_also_when_sizes_change(name):
    torch._dynamo.reset()
    layer = make(name)
    backend = "aot_eager" if name in ("flc", "aps") else "eager"
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for size in [(8, 9), (7, 12), (10, 4)]:  # the second size makes the graph's sizes symbolic
        x = noise(2, 3, *size, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-6, atol=1e-6)


PRODUCTS = [
    *((kind, {"compat": compat}) for kind in (FLCPool2d, ASAPPool2d) for compat in (None, "paper")),
    (IdealLowPass2d, {}),
]


@pytest.mark.parametrize(("kind", "options"), PRODUCTS)
def test_export_sees_real_products_of_fixed_size(kind, options):
    layer = kind(**options)
    x = noise(2, 3, 14, 10, dtype=torch.float32)
    program = torch.export.export(layer, (x,), strict=False)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("matmul" in name for name in names)
    assert not [name for name in names if "fft" in name or "complex" in name or "cos" in name]
    assert not any(torch.is_complex(tensor) for tensor in program.constants.values())
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("kind", [FLCPool2d, ASAPPool2d, IdealLowPass2d])
def test_exports_to_onnx_where_it_is_installed(kind, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = str(tmp_path / "layer.onnx")
    torch.onnx.export(kind(), (torch.zeros(1, 3, 14, 10),), path, dynamo=True)
    operations = {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMul" in operations
    assert not [name for name in operations if "DFT" in name.upper()]


@pytest.mark.parametrize("name", NAMES)
def test_bad_strides_and_maps(name):
    kind = type(make(name)).__name__
    for stride in (0, (2, 0), (2, 2, 2), 2.0, True, None):
        with pytest.raises(SpectralError, match=f"{kind}: stride must be ≥ 1 on every axis, got "):
            MAKERS[name](3, stride)
    layer = make(name)
    for x, sentence in (
        (torch.ones(1, 3, 8, 8, dtype=torch.int64), "expected a floating-point map, got torch.int64"),
        (torch.ones(1, 3, 8, 8, dtype=torch.complex64), "expected a floating-point map, got torch.complex64"),
        (torch.ones(8, 8), r"expected \(B, [3C], H, W\), got shape \(8, 8\)"),
        (torch.ones(1, 1, 3, 8, 8), r"expected \(B, [3C], H, W\), got shape \(1, 1, 3, 8, 8\)"),
        (torch.ones(1, 3, 0, 8), r"the map is empty, got shape \(1, 3, 0, 8\)"),
    ):
        with pytest.raises(SpectralError, match=f"{kind}: {sentence}"):
            layer(x)


@pytest.mark.parametrize("name", FIXED_CHANNELS)
def test_wrong_channels(name):
    with pytest.raises(SpectralError, match=r"channels must be ≥ 1, got 0"):
        MAKERS[name](0, 2)
    with pytest.raises(
        SpectralError, match=r"expected \(B, 3, H, W\), got shape \(1, 4, 8, 8\); build the layer"
    ):
        make(name)(torch.ones(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: LearnedBlurPool2d(3, 8), "LearnedBlurPool2d: kernel_size must be 1 to 7, got 8"),
        (lambda: LearnedBlurPool2d(3, padding_mode="same"), "LearnedBlurPool2d: padding_mode must be one of"),
        (lambda: MaxBlurPool2d(3, pool_size=0), "MaxBlurPool2d: pool_size must be 1 to 7, got 0"),
        (lambda: MaxBlurPool2d(3, kernel_size=8), "MaxBlurPool2d: kernel_size must be 1 to 7, got 8"),
        (lambda: WaveletPool2d(3, "db22x"), "WaveletPool2d: wavelet must be .* got 'db22x'; nearest: 'db22'"),
        (lambda: WaveletPool2d(3, "morl"), "WaveletPool2d: wavelet must be .* got 'morl'"),
        (lambda: FLCPool2d(compat="papers"), "FLCPool2d: compat must be one of None, paper, got 'papers'"),
        (lambda: FLCPool2d(3, compat="paper"), "FLCPool2d: compat='paper' is .* stride 2 only, got stride 3"),
        (lambda: ASAPPool2d((2, 1), "paper"), r"compat='paper' is .* stride 2 only, got stride \(2, 1\)"),
        (lambda: APSPool2d(p=0), "APSPool2d: p must be > 0, got 0"),
        (lambda: APSPool2d(p="2"), "APSPool2d: p must be > 0, got '2'"),
        (lambda: LPSPool2d(3, hidden=0), "LPSPool2d: hidden must be ≥ 1, got 0"),
        (lambda: LPSPool2d(3, temperature=0), "LPSPool2d: temperature must be > 0, got 0"),
        (lambda: SpaceToDepth2d(3, out_channels=0), "SpaceToDepth2d: out_channels must be ≥ 1, got 0"),
        (lambda: make_pool("blurpol", 3), "make_pool: no layer is called 'blurpol'; nearest: 'blurpool'"),
        (lambda: make_pool("zzz", 3), "make_pool: no layer is called 'zzz'; choose one of blurpool, "),
        (lambda: make_pool("flc", 3, 0), "FLCPool2d: stride must be ≥ 1 on every axis, got 0"),
    ],
)  # fmt: skip
def test_bad_arguments(build, sentence):
    with pytest.raises(SpectralError, match=sentence):
        build()


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_pool_is_built_by_its_name(name):
    layer = make_pool(name, 5, (2, 1))
    assert layer.stride == (2, 1)
    assert "stride=(2, 1)" in repr(layer)
    assert layer(torch.zeros(1, 5, 6, 6)).shape == (1, 5, 3, 6)


def test_names_mean_what_they_say():
    assert make_pool("blurpool", 2).kernel_size == 3
    assert [make_pool(f"blurpool-{k}", 2).kernel_size for k in range(1, 8)] == list(range(1, 8))
    assert make_pool("wavelet", 2).wavelet == "haar"
    assert make_pool("wavelet-bior3.3", 2).wavelet == "bior3.3"
    kinds = {
        "flc": FLCPool2d,
        "asap": ASAPPool2d,
        "ideal": IdealLowPass2d,
        "aps": APSPool2d,
        "lps": LPSPool2d,
    }
    assert {name: type(make_pool(name, 2)) for name in kinds} == kinds
