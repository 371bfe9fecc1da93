"""Weighted means of networks: of weights as arithmetic says, of norms and integers as documented."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import image, unchanged
from torch import nn

from spectral.errors import SpectralError
from spectral.repair.averaging import average_weights


def make_nets(count: int) -> list[nn.Sequential]:
    torch.manual_seed(0)
    nets = []
    for _ in range(count):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        net(image(5, 3, 6, 6) * (1 + len(nets)))
        nets.append(net.eval())
    return nets


def test_a_linear_network_is_the_mean_of_its_parts() -> None:
    parts = [nn.Linear(5, 3) for _ in range(3)]
    x = image(7, 5)
    mean = average_weights(parts, [2, 1, 1])
    torch.testing.assert_close(mean(x), (2 * parts[0](x) + parts[1](x) + parts[2](x)) / 4)
    assert mean.weight.requires_grad


def test_every_entry_is_averaged_and_integers_are_the_firsts() -> None:
    a, b = make_nets(2)
    b[1].num_batches_tracked.fill_(9)
    with unchanged(a), unchanged(b):
        mean = average_weights([a, b]).state_dict()
    for name, value in a.state_dict().items():
        expected = (value + b.state_dict()[name]) / 2 if value.is_floating_point() else value
        torch.testing.assert_close(mean[name], expected)


@pytest.mark.parametrize("shares", [(1, 0), (3.5, 0.0)])
def test_a_whole_share_is_the_network_itself(shares: tuple[float, float]) -> None:
    a, b = make_nets(2)
    for whole, nets in ((a, [a, b]), (a, [a])):
        found = average_weights(nets, shares[: len(nets)]).state_dict()
        assert all(torch.equal(found[name], value) for name, value in whole.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_mean_under_a_spectral_norm_has_that_norm(norm: Callable[[nn.Module], nn.Module]) -> None:
    """Means of the networks' singular vectors gave a norm of 200 for 1."""
    parts = [norm(nn.Linear(6, 6)).train() for _ in range(2)]
    for part in parts:
        for _ in range(200):
            part(image(2, 6))
    mean = average_weights([part.eval() for part in parts])
    mean(image(2, 6))
    torch.testing.assert_close(torch.linalg.matrix_norm(mean.weight, 2).item(), 1.0, rtol=1e-3, atol=0)
    whole = average_weights(parts, [1, 0])
    assert all(torch.equal(x, parts[0].state_dict()[name]) for name, x in whole.state_dict().items())


def test_what_is_no_tensor_is_the_firsts() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": self.seen}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    parts = [Counting(2, 2), Counting(2, 2)]
    for i, part in enumerate(parts):
        part.seen = i
    mean = average_weights(parts)
    assert mean.seen == 0
    torch.testing.assert_close(mean.weight, (parts[0].weight + parts[1].weight) / 2)


class Tied(nn.Sequential):
    """Two layers with one weight, or with a weight each."""

    def __init__(self, tied: bool) -> None:
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3))
        if tied:
            self[1].weight = self[0].weight


def test_tied_weights_are_averaged_once_and_only_with_tied_ones() -> None:
    """A weight that is one in the first network was the mean of the layer that came last."""
    one, two = Tied(True), Tied(True)
    torch.testing.assert_close(average_weights([one, two])[1].weight, (one[0].weight + two[0].weight) / 2)
    with pytest.raises(SpectralError, match=r"'0.weight' and '1.weight' are one weight in network 0 and two"):
        average_weights([one, Tied(False)])
    apart = average_weights([Tied(False), one])
    assert not torch.equal(apart[0].weight, apart[1].weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per:UserWarning")
def test_quantised_networks_are_refused() -> None:
    parts = [
        torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}) for _ in "ab"
    ]
    with pytest.raises(SpectralError, match="network 0 is quantised"):
        average_weights(parts)


def test_bad_input_is_one_sentence() -> None:
    a, b = make_nets(2)
    narrow = copy.deepcopy(a)
    narrow[4] = nn.Linear(64, 3)
    broken = copy.deepcopy(a)
    broken[0].weight.data[0] = float("nan")
    for models, shares, message in (
        ([], None, "at least one network, got none"),
        (a, None, "a list of networks, got Sequential"),
        ([a, b], "ab", "a list of numbers, got 'ab'"),
        ([a, 3], None, "expected networks, got int at place 1"),
        ([a, b], [1], "a share for each of 2 networks, got 1"),
        ([a, b], [0, 0], "shares must be"),
        ([a, b], [2, -1], "shares must be"),
        ([a, b], [1, float("nan")], "shares must be"),
        ([a, narrow], None, "'4.weight' is of shape"),
        ([a, b[:4]], None, "'4.bias' is in one of networks 0 and 1 only"),
        ([a, broken], None, "network 1: the weights must be finite, but 0.weight"),
    ):
        with pytest.raises(SpectralError, match=message):
            average_weights(models, shares)
