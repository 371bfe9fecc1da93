"""What is done to converted networks afterwards: layers still run, with equal outputs, or the pass raises."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import networks as nets
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import image
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.layers import BlurPool2d
from spectral.surgery import conversion_report, convert, revert


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        return model(x)


def settle_statistics(model: nn.Module) -> nn.Module:
    """Give batch norms the statistics of training, so that losing one would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


class Cifar(nn.Module):
    """A CIFAR ResNet's stem and block: slices for a shortcut, pools and activations called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 4."""
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.dropout(self.bn2(self.conv2(y)), 0.1, self.training)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.adaptive_avg_pool2d(F.relu(y + short), 1).flatten(1))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Sequential": plain,
    "CIFAR": Cifar,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=4),
    "timm resnet10t": lambda: timm.create_model("resnet10t", num_classes=4),
    "timm efficientnet": lambda: timm.create_model("tf_efficientnet_b0", num_classes=4),
}


@pytest.fixture(scope="module", params=NETWORKS)
def smooth(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    net = settle_statistics(NETWORKS[request.param]())
    converted = convert(net, "blurpool", example=32)
    assert conversion_report(converted).replaced
    assert not torch.equal(outputs(converted, image(2, 3, 32, 32)), outputs(net, image(2, 3, 32, 32)))
    return converted


def load(buffer: io.BytesIO) -> nn.Module:
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return load(buffer)


@pytest.mark.parametrize(
    "remake",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save, convert_sync_batchnorm],
    ids=["deepcopy", "pickle", "save", "timm's SyncBN"],
)  # fmt: skip
def test_copies_compute_the_same(smooth: nn.Module, remake: Callable[[nn.Module], nn.Module]) -> None:
    x = image(2, 3, 32, 32)
    again = remake(copy.deepcopy(smooth)).eval()
    torch.testing.assert_close(outputs(again, x), outputs(smooth, x))
    reverted = revert(again)
    assert nets.count_hooks(reverted) == 0
    assert not torch.equal(outputs(reverted, x), outputs(smooth, x))


def test_synchronised_batch_norms(smooth: nn.Module) -> None:
    """torch's conversion loses the activations of timm's norms: then there is no place for the layer."""
    x = image(2, 3, 32, 32)
    fused = any(type(m).__name__ == "BatchNormAct2d" for m in smooth.modules())
    again = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(smooth)).eval()
    if fused:
        with pytest.raises(SpectralError, match=r"layer of site .*call spectral.revert"):
            outputs(again, x)
    else:
        torch.testing.assert_close(outputs(again, x), outputs(smooth, x))


def stem() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return settle_statistics(net)


@pytest.mark.parametrize(("at", "new"), [(1, nn.GroupNorm(2, 4)), (1, nn.Identity()), (2, nn.GELU())])
def test_another_norm_or_activation(at: int, new: nn.Module) -> None:
    net = stem()
    smooth = convert(net, "blurpool", example=32)
    net[at] = smooth[at] = new
    dense = F.conv2d(image(), net[0].weight, net[0].bias, 1, 1)
    expected = net[3](BlurPool2d(4)(net[2](net[1](dense))))
    torch.testing.assert_close(outputs(smooth, image()), expected)


@pytest.mark.parametrize(
    ("at", "new"), [(0, nn.Conv2d(3, 4, 3, 1, 1)), (2, nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2)))]
)
def test_what_has_lost_its_layer_raises(at: int, new: nn.Module) -> None:
    smooth = convert(stem(), "blurpool", example=32)
    smooth[at] = new
    for run in (smooth, smooth.forward):
        with pytest.raises(SpectralError, match="site '0'"):
            run(image())
    assert revert(smooth)(image()).shape[1] == 2


def test_a_layer_that_was_deleted_raises() -> None:
    smooth: Any = convert(stem(), "blurpool", example=32)
    del smooth[0].antialias
    with pytest.raises(SpectralError, match="site '0' has lost its layer"):
        smooth(image())
    assert torch.equal(revert(smooth)(image()), stem()(image()))


@pytest.mark.parametrize("method", ["strided", "blurpool"])
def test_a_slice_of_a_sequential_answers_for_what_is_in_it(method: str) -> None:
    """Between a convolution and its activation there is the dense map, which nobody asked for."""
    net = stem()
    smooth = convert(net, method, example=32)
    for end in (1, 2):
        with pytest.raises(SpectralError, match="the layer of site '0'"):
            smooth[:end](image())
    part = smooth[:3]
    assert part(image()).shape == net[:3](image()).shape
    assert torch.equal(outputs(smooth[3:], outputs(part, image())), outputs(smooth, image()))


@pytest.mark.parametrize("probe", [lambda m: m[0], lambda m: nn.Sequential(*list(m)[:2])])
def test_a_module_called_alone_leaves_nothing_for_later_passes(probe: Callable[[Any], nn.Module]) -> None:
    smooth = convert(stem(), "blurpool", example=32)
    behind = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    other = convert(behind, "blurpool", example=32)  # its activation has the same name, its site another
    for model in (smooth, other):
        expected = outputs(model, image())
        outputs(probe(smooth), image())
        assert torch.equal(outputs(model, image()), expected)
    first, *others = smooth
    for _ in range(2):
        probe(smooth)(image())
    assert torch.equal(outputs(nn.Sequential(first, *others), image()), outputs(smooth, image()))


def test_an_activation_that_is_gone_raises() -> None:
    net = nets.Call(lambda m, x: F.relu(m.norm(m.conv(x))) if m.active else m.norm(m.conv(x)),
                    conv=nn.Conv2d(3, 4, 3, 2, 1), norm=nn.BatchNorm2d(4))  # fmt: skip
    net.active = True
    smooth = convert(net.eval(), "blurpool", example=32)
    expected = outputs(smooth, image())
    smooth.active = False
    with pytest.raises(SpectralError, match="the layer of site 'conv', BlurPool2d, did not run"):
        smooth(image())
    smooth.active = True
    assert torch.equal(outputs(smooth, image()), expected), "an error leaves nothing behind"


def test_functions_are_told_by_their_place_in_the_code() -> None:
    """In training another pool runs first, and dropout between a convolution and its activation."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.conv(x)
        if m.training:
            m.auxiliary = F.max_pool2d(torch.ones_like(h), 2)
            F.relu(m.auxiliary)
        h = F.relu(F.dropout(h, 0.0, m.training))
        return F.max_pool2d(h, 2)

    net = nets.Call(forward, conv=nn.Conv2d(3, 4, 3, 2, 1))
    smooth: Any = convert(net.eval(), "blurpool", example=32)
    expected = outputs(smooth, image())
    assert torch.equal(outputs(smooth.train(), image()), expected)
    assert torch.equal(smooth.auxiliary, torch.ones_like(smooth.auxiliary))


@pytest.mark.parametrize("head", [nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Tanh(), nn.Conv2d(4, 2, 3))])
@pytest.mark.parametrize(
    ("forward", "activation"),
    [
        (lambda m, h: (h, m.act(m.norm(h))), "behind act"),
        (lambda m, h: (g := m.norm(h), m.act(g)), "behind act"),
        (lambda m, h: (h, F.relu(F.dropout(m.norm(h), 0.1, m.training))), "behind the activation in"),
    ],
)
def test_heads_that_run_in_training_only(
    forward: Callable[..., Any], activation: str, head: nn.Module
) -> None:
    """What they read isn't left dense; where they read what the block returns, nothing changes."""

    def run(m: Any, x: Tensor) -> Tensor:
        maps = forward(m, m.conv(x))
        m.auxiliary = m.head(maps[m.reads]) if m.training else None
        return maps[1]

    net: Any = nets.Call(run, conv=nn.Conv2d(3, 4, 3, 2, 1), norm=nn.BatchNorm2d(4), act=nn.SiLU(), head=head)
    for net.reads, expected in ((0, "behind"), (1, activation)):
        smooth: Any = convert(net.eval(), "strided", example=32)
        assert conversion_report(smooth).rows[0].placement.startswith(expected)
        assert (conversion_report(smooth).rows[0].placement == "behind") == (net.reads == 0)
        for model in (net, smooth):
            torch.manual_seed(0)
            model.train()(image(2, 3, 32, 32))
        assert smooth.auxiliary.shape == net.auxiliary.shape
        if net.reads == 0:
            torch.testing.assert_close(smooth.auxiliary, net.auxiliary)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, h: (m.act(h), h) if m.training else (m.act(h),),
        lambda m, h: (m.act(g := m.norm(h)), g) if m.training else (m.act(m.norm(h)),),
        lambda m, h: (m.norm(h),) if m.training else (m.act(m.norm(h)),),
        lambda m, h: h.chunk(2, 1) if m.training else (m.act(h),),
    ],
)
def test_no_dense_map_is_returned_in_training(forward: Callable[..., Any]) -> None:
    net: Any = nets.Call(lambda m, x: forward(m, m.conv(x)), conv=nn.Conv2d(3, 4, 3, 2, 1),
                         norm=nn.BatchNorm2d(4), act=nn.SiLU())  # fmt: skip
    smooth: Any = convert(net.eval(), "strided", example=32)
    for training in (True, False):
        found = zip(smooth.train(training)(image()), net.train(training)(image()), strict=True)
        for ours, theirs in found:
            torch.testing.assert_close(ours, theirs)


def test_networks_that_must_run_once_first() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(SpectralError, match="shape from their first input; run it once, then convert it"):
        convert(net, "blurpool", example=16)
    net(image())
    assert conversion_report(convert(net, "blurpool", example=16)).rows[0].replaced


def test_the_report_says_how_often_each_layer_ran() -> None:
    smooth = convert(nets.ReusedPool(), "blurpool", example=32)
    report = conversion_report(smooth)
    ran: list[str] = []
    for name, module in smooth.named_modules():
        if name.endswith("antialias"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name.removesuffix(".antialias")))
    smooth(image(1, 3, 32, 32))
    assert "each layer ran exactly as often as its operator did before" in str(report)
    assert [row.runs for row in report.replaced] == [2, 3, 2, 3], (
        "the third pool is a global one, and no site"
    )
    assert [ran.count(name) for name in ("conv", "pool")] == [2, 3]


def test_an_operator_at_another_place_raises() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.training:
            return F.avg_pool2d(m.conv(x), 2)
        return F.avg_pool2d(m.conv(x), 2)

    net = nets.Call(forward, conv=nn.Conv2d(3, 4, 3, 1, 1))
    smooth = convert(net.eval(), "blurpool", example=32)
    smooth(image())
    with pytest.raises(SpectralError, match="the layer of site ':avg_pool0' did not run: its avg_pool2d"):
        smooth.train()(image())


def test_a_forward_called_directly() -> None:
    smooth = convert(settle_statistics(Cifar()), "blurpool", example=32)
    assert torch.equal(smooth.forward(image(2, 3, 32, 32)), smooth(image(2, 3, 32, 32)))
