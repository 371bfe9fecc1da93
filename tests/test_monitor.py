"""Aliasing in training: numbers as those of `measure`, training as it was, and a penalty that is learnt."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from spectral.errors import SpectralError
from spectral.measurement import captures, measure
from spectral.models.architectures import build
from spectral.monitor import AliasingMonitor, AliasingPenalty
from spectral.sites import find_sites


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip


def train_step(
    net: nn.Module, x: Tensor, extra: AliasingPenalty | None = None, weight: float = 1.0
) -> Tensor:
    loss = F.cross_entropy(net(x), torch.arange(len(x)) % 2)
    if extra is not None:
        loss = loss + weight * extra.value()
    net.zero_grad()
    loss.backward()
    return loss.detach()


def test_values_are_those_of_measure():
    net, x = make().eval(), image(4, 3, 16, 16)
    metrics = ("avr", "am", "am_relative", "nonaliased")
    with AliasingMonitor(net, find_sites(net, 16), metrics, taps=("input", "dense")) as monitor:
        net(x)
    table = measure(net, x, metrics, progress=False)
    table = table[table["site"] != ""].query("metric != 'power'")
    expected = table.groupby(["site", "tap", "metric"])["value"].mean()
    found = {name: value for name, value in monitor.values().items() if not name.startswith("mean/")}
    assert len(found) == len(expected) == 10
    for (site, tap, metric), value in expected.items():
        assert found[f"{site}/{tap}/{metric}"] == pytest.approx(value, rel=1e-6)
    both = expected.xs(("dense", "am"), level=("tap", "metric")).mean()
    assert monitor.values()["mean/dense/am"] == pytest.approx(both, rel=1e-6)


@pytest.mark.parametrize(
    "metrics", [("avr", "am"), ("avr_exclude_dc",), ("alias_power_ratio_channel_median",)]
)
def test_batches_that_are_measured_in_pieces_have_the_values_of_the_whole(metrics, monkeypatch):
    net, x = make().eval(), image(7, 3, 16, 16)
    found = []
    for elements in (captures.CHUNK_ELEMENTS, 3 * 4 * 16 * 16):
        monkeypatch.setattr(captures, "CHUNK_ELEMENTS", elements)
        with AliasingMonitor(net, find_sites(net, 16), metrics) as monitor:
            net(x)
        found.append(monitor.values())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_training_is_the_same_with_a_monitor():
    x = image(4, 3, 16, 16)
    plain, watched = make(), make()
    sites = find_sites(watched, 16)
    with AliasingMonitor(watched, sites) as monitor:
        for net in (plain, watched):
            assert net.training
            for _ in range(2):
                train_step(net, x)
    assert monitor.values()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())


def test_only_every_other_pass_is_measured():
    net = make()
    with AliasingMonitor(net, find_sites(net, 16), ("avr",), every=2) as monitor:
        seen = []
        for seed in range(4):
            train_step(net, image(2, 3, 16, 16, seed=seed))
            seen.append(monitor.values()["0/dense/avr"])
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_silent_images_are_left_out_of_the_means():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1, bias=False))
    x = image(2, 1, 8, 8)
    with AliasingMonitor(net, find_sites(net, (1, 8, 8)), ("avr",)) as monitor:
        net(x[:1])
        alone = monitor.values()["0/dense/avr"]
        net(torch.cat([x[:1], torch.zeros(1, 1, 8, 8)]))
        assert monitor.values()["0/dense/avr"] == pytest.approx(alone, rel=1e-6)
        net(torch.zeros(1, 1, 8, 8))
        assert monitor.values()["0/dense/avr"] != monitor.values()["0/dense/avr"], "NaN, not 'no aliasing'"


@pytest.mark.parametrize("deferred", [None, True])
def test_a_batch_that_is_not_finite_does_not_end_the_training(deferred):
    """A scaled loss skips such steps; an error in the forward pass ended the run."""
    net = make()
    x = image(2, 3, 16, 16)
    with AliasingMonitor(net, find_sites(net, 16), deferred=deferred) as monitor:
        net(x)
        names = list(monitor.values())
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                net(torch.full_like(x, torch.inf))
            assert list(monitor.values()) == names
            assert all(math.isnan(value) for value in monitor.values().values())
        assert not caught, "said once"
        net(x)
        assert not any(math.isnan(value) for value in monitor.values().values())
    with (
        AliasingPenalty(net, find_sites(net, 16), deferred=deferred),
        pytest.raises(SpectralError, match=r"AliasingPenalty: site '0': .* NaN or infinite"),
    ):
        net(torch.full_like(x, torch.inf))


@pytest.mark.parametrize("deferred", [None, True])
def test_a_batch_of_no_images_has_no_numbers(deferred):
    """It ended the training."""
    net = make()
    sites = find_sites(net, 16)
    with (
        AliasingMonitor(net, sites, deferred=deferred) as monitor,
        AliasingPenalty(net, sites, deferred=deferred) as penalty,
    ):
        net(image(0, 3, 16, 16))
        assert monitor.values() == {}
        with pytest.raises(SpectralError, match="none of the sites ran"):
            penalty.value()


def test_a_site_called_mean_keeps_its_numbers():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.rest = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)

        def forward(self, x):
            return self.rest(self.mean(x))

    net = Encoder()
    with AliasingMonitor(net, find_sites(net, 16), ("avr",)) as monitor:
        net(image(2, 3, 16, 16))
        own, rest, mean = (monitor.values()[f"{name}/dense/avr"] for name in ("mean@0", "rest", "mean"))
    assert mean == pytest.approx((own + rest) / 2, rel=1e-6)
    assert own != pytest.approx(rest, rel=1e-3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_monitors_hang_on_no_network(again):
    """As an average of weights copies a network that holds its penalty."""
    net = make()
    with (
        AliasingMonitor(net, find_sites(net, 16)) as monitor,
        AliasingPenalty(net, find_sites(net, 16)) as penalty,
    ):
        net(image(2, 3, 16, 16))
        copied, other = again(monitor), again(penalty)
        before = monitor.values()
        net(image(2, 3, 16, 16, seed=1))
        assert copied.values() == before != monitor.values()
        assert not copied.enabled
        with pytest.raises(SpectralError, match="hasn't run"):
            other.value()
        copied.remove_hooks()
        assert monitor.enabled


def test_a_stride_that_was_set_since_is_refused():
    """The numbers were of neither stride."""
    for layer in (nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2)):
        net = nn.Sequential(layer)
        with AliasingMonitor(net, find_sites(net, 16)):
            net(image(2, 3, 16, 16))
            layer.stride = (4, 4)
            with pytest.raises(SpectralError, match="site '0' isn't what runs there; call find_sites"):
                net(image(2, 3, 16, 16))


def test_a_module_that_was_replaced_since_is_refused():
    """Its site vanished from the values without a word."""
    net = make()
    with AliasingMonitor(net, find_sites(net, 16)) as monitor:
        net(image(2, 3, 16, 16))
        before = net[0]
        net[0] = nn.Conv2d(3, 4, 3, 2, 1)
        with pytest.raises(SpectralError, match="module '0' isn't the one on which hooks were set"):
            net(image(2, 3, 16, 16))
        net[0] = nn.Sequential(before)  # wrapped, as by checkpointing: it still runs
        net(image(2, 3, 16, 16))
        assert {name.partition("/")[0] for name in monitor.values()} == {"0", "3", "mean"}


def test_a_graph_can_be_looked_at_while_a_monitor_hangs_on_it():
    net = torch.fx.symbolic_trace(make().eval())
    with AliasingMonitor(net, find_sites(net, 16)):
        assert [site.name for site in find_sites(net, 16)] == ["0", "3"]


@pytest.mark.parametrize("metric", ["am_relative", "am", "alias_power_ratio", "avr", "avr_separable"])
def test_the_penalty_has_the_gradient_of_its_value(metric):
    net = make().double()
    net[1] = nn.Identity()
    x = image(2, 3, 16, 16, dtype=torch.float64)
    with AliasingPenalty(net, find_sites(net, 16)[:1], metric) as penalty:
        net(x)
        penalty.value().backward()
        weight = net[0].weight
        direction = image(*weight.shape, seed=3, dtype=torch.float64)
        slope = float((weight.grad * direction).sum())
        values = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(weight.detach())
            with torch.no_grad():
                weight.add_(step * direction)
                net(x)
            values.append(float(sum(penalty._terms.values())))
            with torch.no_grad():
                weight.copy_(moved)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)
    assert abs(slope) > 1e-6


def test_the_penalty_brings_aliasing_down():
    torch.manual_seed(0)
    net, x = build("resnet20"), image(8, 3, 32, 32)
    sites = find_sites(net, 32)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    with AliasingPenalty(net, sites) as penalty:
        first = last = 0.0
        for _ in range(12):
            net(x)
            value = penalty.value()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            first, last = first or value.item(), value.item()
    assert last < 0.9 * first


class Checkpointed(nn.Module):
    """Recomputes its convolution in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.conv, self.reentrant = nn.Conv2d(3, 4, 3, 2, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Mean over places of a checkpointed convolution."""
        y = checkpoint(self.conv, x, use_reentrant=self.reentrant) if self.training else self.conv(x)
        return y.mean((2, 3))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_changes_nothing(reentrant):
    torch.manual_seed(0)
    net, x = Checkpointed(reentrant), image(2, 3, 8, 8).requires_grad_()
    with AliasingMonitor(net, find_sites(net, 8), ("avr",)) as monitor:
        out = net(x)
        before = monitor.values()
        out.sum().backward()
        assert monitor.values() == before


def test_a_penalty_under_reentrant_checkpointing_says_so():
    net = Checkpointed(reentrant=True)
    with AliasingPenalty(net, find_sites(net, 8)) as penalty:
        net(image(2, 3, 8, 8).requires_grad_())
        with pytest.raises(
            SpectralError, match=r"'conv' ran under reentrant checkpointing.*use_reentrant=False"
        ):
            penalty.value()
        with torch.no_grad():
            net.eval()(image(2, 3, 8, 8))
        with pytest.raises(SpectralError, match=r"kept no gradients; run it outside torch\.no_grad"):
            penalty.value()


class Mixed(Checkpointed):
    """Recomputes one site of two."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(reentrant)
        self.first, self.act = nn.Conv2d(3, 3, 3, 2, 1), nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        """Run one site as usual, the other checkpointed."""
        return super().forward(self.act(self.first(x)))


class CheckpointedFunctions(nn.Module):
    """Recomputes functional operators, one of which works in place."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.conv, self.reentrant = nn.Conv2d(3, 4, 3, 1, 1), reentrant

    def body(self, x: Tensor) -> Tensor:
        """Pool and decimate what a convolution gives."""
        return F.max_pool2d(self.conv(x).mul_(2), 2).exp()[:, :, ::2, ::2] + 1

    def forward(self, x: Tensor) -> Tensor:
        """Run the body, checkpointed in training."""
        y = checkpoint(self.body, x, use_reentrant=self.reentrant) if self.training else self.body(x)
        return y.mean((2, 3))


@pytest.mark.parametrize("net", [Checkpointed, Mixed, CheckpointedFunctions])
def test_the_penalty_under_checkpointing_has_the_usual_gradients(net):
    torch.manual_seed(0)
    model, x = net(reentrant=False), image(2, 3, 16, 16)
    sites, gradients = find_sites(model, 16), []
    for checkpointing in (True, False):
        model.train(checkpointing)
        with AliasingPenalty(model, sites) as penalty:
            for _ in range(2):
                model.zero_grad()
                (model(x).square().mean() + penalty.value()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointed_segments_of_a_sequential_are_one_pass():
    """The network's own forward isn't called: a function of torch calls its modules in turn."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Softplus(), nn.Conv2d(4, 4, 3, 2, 1), nn.AvgPool2d(2))
    sites, x, gradients = find_sites(net, 32), image(2, 3, 32, 32), []

    def segments(x: torch.Tensor) -> torch.Tensor:
        return checkpoint_sequential(net, 3, x, use_reentrant=False)

    with AliasingPenalty(net, sites) as penalty, AliasingMonitor(net, sites, ("avr",)) as monitor:
        for run in (net, segments, segments):
            net.zero_grad()
            out = run(x).mean()
            (out + penalty.value()).backward()
            gradients.append((monitor.values(), net[0].weight.grad.clone()))
    for values, gradient in gradients[1:]:
        assert values == pytest.approx(gradients[0][0])
        torch.testing.assert_close(gradient, gradients[0][1])


def test_a_penalty_of_which_a_part_has_no_graph_is_refused():
    model = Mixed(reentrant=True)
    with AliasingPenalty(model, find_sites(model, 16)) as penalty:
        model(image(2, 3, 16, 16))
        with pytest.raises(SpectralError, match="'conv' ran under reentrant checkpointing"):
            penalty.value()


def test_bad_input():
    net = make()
    sites = find_sites(net, 16)
    with pytest.raises(SpectralError, match="every must be ≥ 1, got 0"):
        AliasingMonitor(net, sites, every=0)
    with pytest.raises(SpectralError, match=r"unknown metric 'arv'.*avr"):
        AliasingMonitor(net, sites, ("arv",))
    with pytest.raises(SpectralError, match=r"unknown metric 'sis'"):
        AliasingPenalty(net, sites, "sis")
    with pytest.raises(SpectralError, match="there is no site that can be measured"):
        AliasingPenalty(net, [])
    with (
        AliasingPenalty(net, sites) as penalty,
        pytest.raises(SpectralError, match="hasn't run since the hooks were set"),
    ):
        penalty.value()
