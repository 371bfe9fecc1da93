"""Weighted means of networks: of weights as arithmetic says, of norms and integers as documented."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import image, unchanged
from torch import nn

from spectral.averaging import average_weights
from spectral.errors import SpectralError


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
