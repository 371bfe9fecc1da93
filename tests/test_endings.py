"""Sites that several operators make: their output is what the last of them gave, so a wrong rule shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectral import FeatureExtractor, find_sites, measure, register_operator
from spectral.errors import SpectralError
from spectral.operators.reductions import WindowMean
from spectral.sites import Site

SIZE, CHANNELS = (8, 12), 5


class Net(nn.Module):
    """A convolution, then any function of the map."""

    def __init__(self, call: Callable[[Tensor], Tensor], whole: bool = True) -> None:
        super().__init__()
        self.conv, self.call, self.whole = nn.Conv2d(3, CHANNELS, 3, padding=1), call, whole
        torch.manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.conv(x))
        return y.sigmoid() if self.whole else y


def add_halves(x: Tensor) -> Tensor:
    return (x[..., ::2] + x[..., 1::2]) / 2


def add_rows(x: Tensor) -> Tensor:
    return (x[:, ::2] + x[:, 1::2]) / 2


def add_in_place(x: Tensor) -> Tensor:
    """Writes over the slice, and so over the map that it is of."""
    y = x[..., ::2]
    y += x[..., 1::2]
    return y / 2


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "halves": add_halves,
    "three by two": lambda x: sum(x[..., i::2, j::3] for i in (0, 1) for j in (0, 1, 2)) / 6,
    "by powers": lambda x: x[..., ::2].mul(0.5).add(x[..., 1::2], alpha=0.5),
    "tokens": lambda x: add_rows(x.flatten(2).transpose(1, 2).unflatten(1, SIZE)),
    "largest rows": lambda x: torch.fmax(x[:, :, ::2], x[:, :, 1::2]),
    "unbind": lambda x: torch.stack(x.unbind(2)[1::3], 2),
    "selected": lambda x: torch.stack([x[..., i] for i in (0, 4, 8)], -1),
    "windows of windows": lambda x: x.unflatten(3, (-1, 3)).sum(4).unflatten(2, (-1, 2)).sum(3),
}  # fmt: skip


def photos(n: int = 2) -> Tensor:
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def capture(net: nn.Module, site: Site, tap: str, x: Tensor) -> Tensor:
    with FeatureExtractor(net, [site], tap=tap) as fx:
        net(x)
    return fx[site.name]


def reference(net: Net, x: Tensor) -> Tensor:
    y = net.call(net.conv(x).detach())
    return y if y.shape[1] == CHANNELS else y.movedim(-1, 1)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_the_output_is_that_of_the_last_operator(name: str, inference: bool) -> None:
    net, x = Net(CALLS[name]), photos()
    (site,) = find_sites(net, SIZE)
    assert site.measurable
    with torch.inference_mode(inference):
        out, dense = (capture(net, site, tap, x) for tap in ("output", "dense"))
    torch.testing.assert_close(out, reference(net, x), rtol=1e-6, atol=1e-6)
    (p, q), (s, t), (n, m) = site.geometry.phase, site.stride, site.output_size
    torch.testing.assert_close(dense[..., p::s, q::t][..., :n, :m], out, rtol=1e-5, atol=1e-6)


def test_a_wrong_rule_is_refused() -> None:
    """Whether it is the operator that is wrong or what was found."""

    @register_operator
    class Wrong(WindowMean):
        kind, names, family = "wrong_mean", (), "wrong"

        def make_dense(self, d, x, size):
            return super().make_dense(d, x, size) * 1.01

    net, x = Net(add_halves), photos()
    (site,) = find_sites(net, SIZE)
    geometry = site.geometry
    wrong = [
        replace(site, op="wrong_mean", geometry=replace(geometry, kind="wrong_mean")),
        replace(site, op="window_blend", geometry=replace(geometry, kind="window_blend", weights=(0.7, 0.3))),
    ]
    table = measure(net, x, ["avr"], sites=[site], progress=False)
    assert (table["metric"] == "avr").sum() == 2 * len(x)  # at two taps
    for one in wrong:
        with pytest.raises(SpectralError, match="misses its output"):
            measure(net, x, ["avr"], sites=[one], progress=False)


def test_another_place_is_refused() -> None:
    """A flag changes what is made of the slices; the first of them runs as it was found."""

    class Switched(Net):
        mean = True

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            a, b = x[..., ::2], x[..., 1::2]
            if self.mean:
                return (a + b) / 2
            return a - b

    net = Switched(add_halves)
    (site,) = find_sites(net, SIZE)
    net.mean = False
    with FeatureExtractor(net, [site], tap="output"), pytest.raises(SpectralError, match="didn't appear"):
        net(photos())


def test_what_is_joined_in_another_module_is_listed() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[..., ::2], x[..., 1::2]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = Halves()

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.halves(x)
            return a + b

    (site,) = find_sites(Outer(), SIZE)
    assert not site.measurable
    assert "joined by arithmetic" in site.reason


def test_what_enters_may_be_written_over() -> None:
    net, x = Net(add_in_place), photos()
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.measurable) == ("window_mean", True)
    out, dense = (capture(net, site, tap, x) for tap in ("output", "dense"))
    assert torch.equal(out, reference(net, x))
    torch.testing.assert_close(dense[..., ::2], out)


@pytest.mark.parametrize("saved", [False, True])
def test_a_penalty_has_a_gradient(saved: bool) -> None:
    net, x = Net(add_halves), photos()
    if saved:
        net.call = lambda y: checkpoint(add_halves, y, use_reentrant=False)
    (site,) = find_sites(net, SIZE)
    gradients = []
    for tap in ("output", "dense"):
        net.zero_grad()
        with FeatureExtractor(net, [site], tap=tap, detach=False) as fx:
            net(x)
            fx[site.name][..., :: 2 if tap == "dense" else 1].square().mean().backward()
        gradients.append(net.conv.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    plain = net.conv.weight
    net.zero_grad()
    add_halves(net.conv(x)).square().mean().backward()
    torch.testing.assert_close(plain.grad, gradients[0])


def test_each_call_of_a_module_has_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = Pool()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.pool(x), self.pool(x * 2)

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[..., ::2] + x[..., 1::2]) / 2

    net, x = Twice(), photos()
    sites = find_sites(net, SIZE)
    with FeatureExtractor(net, sites, tap="output") as fx:
        first, second = net(x)
    assert [torch.equal(fx[s.name], y) for s, y in zip(sites, (first, second), strict=True)] == [True, True]
