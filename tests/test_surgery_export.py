"""Converted networks wrapped, averaged, traced, compiled, exported: equal outputs, or one clear sentence."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import onnxruntime
import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from networks import Call, image
from test_surgery_survival import Cifar, outputs, settle_statistics
from timm.utils import ModelEmaV3
from torch import Tensor, fx, nn
from torch.ao.quantization import fuse_modules
from torch.export import Dim
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor

from spectral.errors import SpectralError
from spectral.surgery import conversion_report, convert, revert

METHODS = ["blurpool", "flc", "aps", "strided"]
Run = Callable[[Tensor], Tensor]


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)


def same_padding() -> nn.Module:
    """Norms that activate, and convolutions padded by the size of their input."""
    return timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=4)


NETWORKS = {"Sequential": plain, "CIFAR": Cifar, "torchvision": resnet, "timm": same_padding}


def make(network: str, method: str) -> nn.Module:
    torch.manual_seed(0)
    net = settle_statistics(NETWORKS[network]())
    smooth = convert(net, method, example=64)
    assert conversion_report(smooth).replaced
    return smooth


@pytest.fixture(scope="module", params=[(n, m) for n in NETWORKS for m in METHODS], ids="-".join)
def smooth(request: pytest.FixtureRequest) -> nn.Module:
    return make(*request.param)


X, TALL = image(2, 3, 64, 64), image(2, 3, 96, 64, seed=1)


def check(again: Run, smooth: nn.Module, *batches: Tensor) -> None:
    """Compare outputs, by the scale of the largest."""
    for x in batches:
        expected = outputs(smooth, x)
        with torch.no_grad():
            found = again(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def in_channels_last(model: nn.Module) -> Run:
    model = model.to(memory_format=torch.channels_last)
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


def averaged(model: nn.Module) -> nn.Module:
    average = AveragedModel(model)
    average.update_parameters(model)
    return average.eval()


def in_ema(model: nn.Module) -> nn.Module:
    ema = ModelEmaV3(model)
    ema.update(model)
    return ema


@pytest.mark.parametrize("wrap", [in_channels_last, averaged, in_ema])
def test_wrapped(smooth: nn.Module, wrap: Callable[[nn.Module], Run]) -> None:
    check(wrap(copy.deepcopy(smooth)), smooth, X, TALL)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_in_ddp(process_group: None, network: str, method: str) -> None:
    """The same loss and gradients, in training."""
    smooth = make(network, method)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(smooth))
    check(wrapped, smooth, X)
    for model in (smooth, wrapped):
        torch.manual_seed(0)  # of dropout
        model.train()(X).square().sum().backward()
    for ours, theirs in zip(wrapped.module.parameters(), smooth.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_layers_that_share_a_phase_learn_by_the_one_that_chooses_it(process_group: None) -> None:
    """DDP waits for a gradient of everything that wants one, and raises in the second step."""
    smooth = convert(resnet(), "lps", example=32).train()
    again = convert(convert(resnet(), "lps", where="layer2.0.conv1", example=32), "lps", example=32)
    wants = {name for name, weight in smooth.named_parameters() if weight.requires_grad}
    assert "layer2.0.conv1.antialias.scorer.5.weight" in wants
    assert "layer2.0.downsample.0.antialias.scorer.5.weight" not in wants
    assert wants == {name for name, weight in again.named_parameters() if weight.requires_grad}
    wrapped = nn.parallel.DistributedDataParallel(smooth)
    for _ in range(2):
        wrapped(X).square().sum().backward()
    assert all(weight.grad is not None for weight in smooth.parameters() if weight.requires_grad)


def trace(model: nn.Module) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch has to say about tracing in general
        return torch.jit.trace(model, X)


def run_onnx(model: nn.Module, **options: Any) -> Run:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if options["dynamo"]:
            torch.onnx.export(model, (X,), input_names=["x"], verbose=False, **options).save(buffer)
        else:
            torch.onnx.export(model, (X,), buffer, input_names=["x"], **options)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def test_traced(smooth: nn.Module) -> None:
    check(trace(copy.deepcopy(smooth)), smooth, X, TALL)


def test_traced_where_one_pool_has_maps_of_several_channel_counts() -> None:
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(pool, nn.Conv2d(3, 5, 3), pool, nn.Flatten()).eval()
    smooth = convert(net, "blurpool", example=32)
    check(trace(copy.deepcopy(smooth)), smooth, X, TALL)


def test_onnx_by_tracing(smooth: nn.Module) -> None:
    exported = run_onnx(copy.deepcopy(smooth), dynamo=False, dynamic_axes={"x": {2: "height", 3: "width"}})
    check(exported, smooth, X, TALL)


def test_revert_after_wrapping() -> None:
    smooth = make("CIFAR", "flc")
    check(revert(averaged(smooth).module), revert(smooth), X)
    assert not torch.equal(outputs(smooth, X), outputs(revert(smooth), X))


@pytest.mark.parametrize("method", METHODS)
def test_fused(method: str) -> None:
    smooth = make("Sequential", method)
    fused = fuse_modules(copy.deepcopy(smooth), [["0", "1", "2"]])
    assert not isinstance(fused[0], nn.Conv2d)
    check(fused, smooth, X, TALL)


@pytest.mark.parametrize("behind", ["act", "norm"])
def test_fused_behind_a_layer(behind: str) -> None:
    """It stands before a pointwise convolution, whose hooks are hung on what that is fused into."""
    net = Call(lambda m, x: m.act(m.norm(m.conv(x))) - m.act(m.norm(m.conv(x.flip(-1)))),
               conv=nn.Conv2d(3, 4, 1, 2), norm=nn.BatchNorm2d(4), act=nn.Tanh())  # fmt: skip
    if behind == "act":
        net.norm, net.act = nn.Identity(), nn.ReLU()
    smooth = convert(net.eval(), "blurpool", example=16)
    assert {row.placement for row in conversion_report(smooth).rows} == {"before"}
    check(fuse_modules(copy.deepcopy(smooth), [["conv", behind]]), smooth, X, TALL)


def test_a_trace_that_would_look_into_an_activation_raises() -> None:
    act = Call(lambda m, x: x.relu())
    smooth = convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2), act), "blurpool", example=16)
    assert conversion_report(smooth).rows[0].placement == "behind 1"
    with pytest.raises(SpectralError, match="symbolic tracing would look into 0 or 1 of Sequential"):
        fx.symbolic_trace(smooth)


@pytest.mark.parametrize("method", METHODS)
def test_view_behind_a_layer(method: str) -> None:
    """A pool's output is contiguous, and so is a layer's."""
    net = Call(lambda m, x: m.pool(m.conv(x)).view(len(x), -1), conv=nn.Conv2d(3, 4, 3, 2, 1),
               pool=nn.MaxPool2d(2))  # fmt: skip
    smooth = convert(net, method, example=16)
    assert outputs(smooth, image()).shape == outputs(net, image()).shape
    if method == "strided":
        torch.testing.assert_close(outputs(smooth, image()), outputs(net, image()))


@pytest.mark.parametrize("method", METHODS)
def test_traced_graphs_are_converted_and_reverted(method: str) -> None:
    net = settle_statistics(resnet())
    expected = convert(net, method, example=64)
    for graph in (fx.symbolic_trace(net), create_feature_extractor(net, {"fc": "fc"})):
        smooth = convert(graph, method, example=64)
        for model, same in ((smooth, expected), (revert(smooth), net)):
            found: Any = outputs(model, X)
            torch.testing.assert_close(found["fc"] if isinstance(found, dict) else found, outputs(same, X))


@pytest.mark.parametrize("network", NETWORKS)
def test_symbolic_tracing_keeps_all_layers_or_says_so(network: str) -> None:
    smooth = make(network, "blurpool")
    if network in ("CIFAR", "timm"):
        with pytest.raises(SpectralError, match="trace the original network and convert that graph"):
            fx.symbolic_trace(smooth)
    else:
        check(fx.symbolic_trace(smooth), smooth, X, TALL)


SOME = [("CIFAR", "aps"), ("CIFAR", "blurpool"), ("Sequential", "flc")]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("network", "method"), SOME)
def test_compiled(network: str, method: str, backend: str) -> None:
    smooth = make(network, method)
    torch._dynamo.reset()
    check(torch.compile(copy.deepcopy(smooth), backend=backend), smooth, X)


@pytest.mark.parametrize(("network", "method"), SOME)
def test_exported(network: str, method: str) -> None:
    smooth = make(network, method)
    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    program = torch.export.export(copy.deepcopy(smooth), (X,), dynamic_shapes=(sizes,), strict=False)
    check(program.module(), smooth, X, TALL)


@pytest.mark.parametrize(("network", "method"), SOME[:1])
def test_onnx_by_export(network: str, method: str) -> None:
    smooth = make(network, method)
    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    check(run_onnx(copy.deepcopy(smooth), dynamo=True, dynamic_shapes=(sizes,)), smooth, X, TALL)
