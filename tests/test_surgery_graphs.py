"""Traced graphs: functions that decimate are replaced in the graph, which everything can still follow."""

# Annotations are no strings here: torch 2.10 can't pickle graphs that have some.
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import image
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import spectral
from spectral import conversion_report, convert, revert
from spectral.sites import find_sites


class Functions(nn.Module):
    """Every site but the first is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 3, 2, 1)
        x = F.conv2d(x, self.weight, stride=2, padding=1).relu()
        x = F.avg_pool2d(input=x, kernel_size=2, ceil_mode=True)
        x = x[:, :, ::2, 1::2]
        return self.head(x.mean((2, 3)))


class Around(nn.Module):
    """A graph among other modules."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.stem, self.graph = nn.Conv2d(3, 3, 3, 2, 1), graph

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(self.stem(x))


@pytest.fixture
def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Functions().eval())


X = image(2, 3, 48, 48)


def test_every_function_is_replaced_and_put_back(graph):
    expected, code = graph(X), graph.code
    smooth = convert(graph, "strided", example=48)
    assert len(conversion_report(smooth).replaced) == len(find_sites(graph, 48)) == 4
    torch.testing.assert_close(smooth(X), expected)
    assert graph.code == code
    assert list(smooth.state_dict()) == list(graph.state_dict())
    back = revert(smooth)
    assert torch.equal(back(X), expected)
    assert [node.target for node in back.graph.nodes] == [node.target for node in graph.graph.nodes]


def test_a_layer_before_a_function():
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(input=F.conv2d(x, self.weight, stride=2), weight=self.weight, stride=2)

    net = Pointwise()
    graph = fx.symbolic_trace(net)
    ours, theirs = convert(graph, "blurpool", example=48), convert(net, "blurpool", example=48)
    assert [row.placement for row in conversion_report(ours).rows] == ["before"] * 2
    torch.testing.assert_close(ours(X), theirs(X))
    back = revert(ours)
    assert torch.equal(back(X), net(X))
    assert [node.target for node in back.graph.nodes] == [node.target for node in graph.graph.nodes]


@pytest.mark.parametrize("method", ["blurpool", "aps", "flc"])
def test_it_does_what_the_converted_network_does_whose_graph_it_is(method):
    torch.manual_seed(0)
    net = Functions().eval()
    ours = convert(fx.symbolic_trace(net), method, example=48, placement="behind")
    theirs = convert(net, method, example=48, placement="behind")
    torch.testing.assert_close(ours.eval()(X), theirs.eval()(X))


@pytest.mark.parametrize(
    "survive",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: torch.compile(net, backend="eager", fullgraph=True),
        lambda net: torch.export.export(net, (X,), strict=True).module(),
        lambda net: torch.jit.trace(net, X, check_trace=False),
        lambda net: torch.optim.swa_utils.AveragedModel(net),
        lambda net: net.to(memory_format=torch.channels_last),
    ],
    ids=["copy", "pickle", "compiled whole", "strict export", "jit", "averaged", "channels last"],
)
def test_it_survives(graph, survive):
    smooth = convert(graph, "blurpool", example=48).eval()
    expected = smooth(X)
    torch.testing.assert_close(survive(smooth)(X), expected)


def test_a_graph_inside_a_network(graph):
    net = Around(graph).eval()
    smooth = convert(net, "blurpool", example=96).eval()
    assert len(conversion_report(smooth).replaced) == 5
    x = image(1, 3, 96, 96)
    assert torch.equal(copy.deepcopy(smooth)(x), smooth(x))
    assert torch.equal(revert(smooth)(x), net(x))
    again = convert(revert(smooth), "strided", example=96).eval()
    torch.testing.assert_close(again(x), net(x))


def test_a_graph_of_operators_says_why_they_stay():
    with torch.no_grad():
        net = make_fx(Functions().eval(), tracing_mode="real")(X)
    report = conversion_report(convert(net, "blurpool", example=X))
    assert {row.reason for row in report.rows} == {
        "it is no plain function of its traced graph; convert the network before it is traced",
        "it also returns where its maxima are, which a layer can't",
    }


def test_tracing_again_leaves_its_layers_alone(graph):
    smooth = convert(graph, "blurpool", example=48).eval()
    with pytest.raises(spectral.SpectralError, match=r"look into BlurPool2d: make it a leaf"):
        fx.symbolic_trace(smooth)

    class Leaving(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, path: str) -> bool:
            return super().is_leaf_module(module, path) or "spectral" in type(module).__module__

    again = fx.GraphModule(smooth, Leaving().trace(smooth))
    assert torch.equal(again(X), smooth(X))


def test_what_can_not_be_compiled_whole_says_what_can():
    smooth = convert(Functions().eval(), "blurpool", example=48).eval()
    torch.compiler.reset()  # what broke a graph in another test is skipped from then on, without a word
    with pytest.raises(Exception, match="trace the original network"):
        torch.compile(smooth, backend="eager", fullgraph=True)(X)
    graph = convert(fx.symbolic_trace(Functions().eval()), "blurpool", example=48)
    assert spectral.conversion_report(graph).replaced
