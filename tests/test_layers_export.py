"""Traced and exported layers give what the layers give, at the size that was seen and at others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spectral
from spectral.layers import (
    LAYERS,
    STRIDED,
    AliasFreeActivation2d,
    FLCPool2d,
    MaxBlurPool1d,
    MaxBlurPool2d,
    MaxBlurPool3d,
    PolynomialActivation,
)

CLASSES = [
    "strided", "blurpool", "learned", "maxblurpool", "flc", "asap", "ideal", "aps", "lps", "wavelet-db2",
    "space-to-depth", "flc-paper",
]  # fmt: skip
SPECTRAL = ["flc", "asap", "ideal"]
MAX_BLUR = (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)
# The first is what the exporter sees; others are odd where it is even, larger, smaller, of one image.
SIZES = [(2, 3, 12, 10, 8), (2, 3, 9, 13, 7), (1, 3, 16, 8, 6)]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def make(name: str, axes: int = 2, stride: int | tuple[int, ...] = 2) -> nn.Module:
    torch.manual_seed(0)
    if name == "maxblurpool":
        return MAX_BLUR[axes - 1](3, stride=stride).eval()
    if name == "flc-paper":
        return FLCPool2d(stride, compat="paper").eval()
    return (STRIDED if name == "strided" else LAYERS[name])(3, stride, axes).eval()


def maps(axes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size[: 2 + axes], generator=generator) for size in SIZES]


def assert_same(found: Callable[[Tensor], Tensor], layer: nn.Module, inputs: list[Tensor]) -> None:
    for x in inputs:
        with torch.no_grad():
            torch.testing.assert_close(found(x), layer(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "axes"),
    [(name, axes) for name in CLASSES for axes in (1, 2, 3) if name != "flc-paper" or axes == 2],
)
def test_jit_trace(name, axes):
    layer, inputs = make(name, axes), maps(axes)
    assert_same(torch.jit.trace(layer, inputs[0], check_trace=False), layer, inputs)


@pytest.mark.parametrize("stride", [(1, 2), (3, 2)])
@pytest.mark.parametrize("name", SPECTRAL)
def test_jit_trace_of_other_strides(name, stride):
    layer, inputs = make(name, 2, stride), maps(2)
    assert_same(torch.jit.trace(layer, inputs[0], check_trace=False), layer, inputs)


@pytest.mark.parametrize("name", [*SPECTRAL, "aps", "lps", "space-to-depth"])
def test_tracing_these_says_nothing(name):
    # The others pad by torch's own functions, which warn.
    layer, inputs = make(name), maps(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(layer, inputs[0], check_trace=False)
    assert not [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        *((name, 2) for name in CLASSES),
        ("maxblurpool", 1),
        ("ideal", 1),
        ("aps", 1),
        ("asap", 3),
        ("blurpool", 3),
    ],
)
def test_torch_export_with_dynamic_sizes(name, axes):
    layer, inputs = make(name, axes), maps(axes)
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in range(2 + axes) if axis != 1}
    program = torch.export.export(layer, (inputs[0],), dynamic_shapes=(dynamic,))
    assert_same(program.module(), layer, inputs)


PROVES_PRODUCTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in ("flc", "asap", "ideal") and not PROVES_PRODUCTS,
                reason="torch.export before 2.14 wants another range for a product over an axis",
            ),
        )
        for name in CLASSES
        if name != "flc-paper"
    ],
)
def test_torch_export_with_a_range_of_sizes(name):
    layer, inputs = make(name), maps(2)
    sizes = {axis: torch.export.Dim(f"n{axis}", min=8, max=512) for axis in (2, 3)}
    program = torch.export.export(layer, (inputs[0],), dynamic_shapes=(sizes,))
    assert_same(program.module(), layer, [x for x in inputs if len(x) == 2])


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options)
    (name,) = [entry.name for entry in session.get_inputs()]
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize(("name", "axes"), [*((name, 2) for name in CLASSES), ("ideal", 1), ("asap", 3)])
def test_onnx_by_torchscript_with_dynamic_sizes(name, axes, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    layer, inputs = make(name, axes), maps(axes)
    names = {axis: f"n{axis}" for axis in range(2 + axes) if axis != 1}
    torch.onnx.export(
        layer,
        (inputs[0],),
        tmp_path / "layer.onnx",
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": names},
    )
    assert_same(run_onnx(tmp_path / "layer.onnx"), layer, inputs)


@pytest.mark.parametrize(("name", "axes"), [("blurpool", 2), ("ideal", 2), ("asap", 1), ("aps", 2)])
def test_onnx_by_dynamo_with_dynamic_sizes(name, axes, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    layer, inputs = make(name, axes), maps(axes)
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in range(2 + axes) if axis != 1}
    torch.onnx.export(
        layer, (inputs[0],), tmp_path / "layer.onnx", dynamo=True, dynamic_shapes=(dynamic,), verbose=False
    )
    assert_same(run_onnx(tmp_path / "layer.onnx"), layer, inputs)


@pytest.mark.parametrize(
    "layer",
    [
        AliasFreeActivation2d(nn.ReLU()),
        AliasFreeActivation2d(PolynomialActivation(nn.GELU(), degree=3), taps=6),
    ],
    ids=["ideal", "filtered"],
)
def test_activations_on_finer_lattices_with_dynamic_sizes(layer, tmp_path):
    inputs = [torch.randn(2, 3, 12, 10), torch.randn(3, 3, 9, 13), torch.randn(2, 3, 16, 8)]
    assert_same(torch.jit.trace(layer, inputs[0], check_trace=False), layer, inputs)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(layer, (inputs[0],), dynamic_shapes=(dynamic,))
    assert_same(program.module(), layer, inputs)
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.onnx.export(program, (), tmp_path / "open.onnx", dynamo=True, verbose=False)
    assert_same(run_onnx(tmp_path / "open.onnx"), layer, inputs)
    torch.onnx.export(layer, (inputs[0],), tmp_path / "one.onnx", dynamo=False)
    assert_same(run_onnx(tmp_path / "one.onnx"), layer, inputs[:1])


@pytest.mark.parametrize("method", ["flc", "asap", "ideal", "blurpool"])
def test_converted_networks_are_traced(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    net = spectral.convert(net, method, example=32).eval()
    x = torch.randn(2, 3, 32, 32)
    assert_same(torch.jit.trace(net, x, check_trace=False), net, [x])


def test_what_a_trace_fixes_is_refused_elsewhere():
    # Borders by torch's own padding need maps larger than the pad: a traced layer says so, without numbers.
    traced = torch.jit.trace(make("blurpool"), maps(2)[0], check_trace=False)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        traced(torch.ones(1, 3, 1, 1))
    with pytest.raises(spectral.SpectralError, match=r"expected \(B, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        torch.jit.trace(make("blurpool"), torch.ones(1, 4, 8, 8), check_trace=False)
