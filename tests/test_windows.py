"""Windows that views cut: what is done to their samples before they are pooled, and images in a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral import FeatureExtractor, find_sites, measure

SIZE, CHANNELS = (8, 12), 4


class Net(nn.Module):
    """A convolution, any function of its map, and a layer that is learned."""

    def __init__(self, call: Callable[..., Tensor], learned: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.call, self.learned = nn.Conv2d(3, CHANNELS, 3, padding=1), call, learned

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.call(y).sigmoid() if self.learned is None else self.learned(self.call(y)).sigmoid()


def images() -> Tensor:
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def cut(x: Tensor) -> Tensor:
    return x.reshape(-1, CHANNELS, SIZE[0] // 2, 2, SIZE[1] // 2, 2)


def gather(x: Tensor) -> Tensor:
    return cut(x).permute(0, 1, 2, 4, 3, 5).flatten(4)


def four(x: Tensor) -> Tensor:
    return torch.tensor([0.1, 0.2, 0.3, 0.4], device=x.device)


def weigh_phases(x: Tensor) -> Tensor:
    return (F.pixel_unshuffle(x, 2).unflatten(1, (CHANNELS, 4)) * four(x).view(4, 1, 1)).sum(2)


UNEVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "weighted": lambda x: (cut(x) * four(x).view(2, 1, 2)).sum((3, 5)),
    "weighted phases": weigh_phases,
    "weighted after unfold": lambda x: (x.unfold(3, 2, 2) * four(x)[:2]).mean(-1),
    "offsets": lambda x: (cut(x) + four(x).view(2, 1, 2)).amax((3, 5)),
    "a soft maximum": lambda x: (gather(x) * gather(x).softmax(-1)).sum(-1),
    "by its own mean": lambda x: (cut(x) - cut(x).mean((3, 5), keepdim=True)).abs().amax((3, 5)),
    "turned round": lambda x: cut(x).flip(3)[:, :, :, 0, :, 0],
}


@pytest.mark.parametrize("name", UNEVEN)
def test_samples_that_were_told_apart_are_those_of_no_other_window(name: str) -> None:
    site = find_sites(Net(UNEVEN[name]), SIZE)[-1]
    assert not site.measurable
    assert "by their places" in site.reason


class Mixed(nn.Module):
    """Takes the first number that a matrix makes of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)[..., 0]


def test_what_a_matrix_makes_of_a_window_is_no_phase_of_it() -> None:
    (site,) = find_sites(Net(gather, Mixed()), SIZE)
    assert not site.measurable
    assert "by their places" in site.reason


def by_conv(x: Tensor, weights: list[float]) -> Tensor:
    """The independent one: a depthwise convolution at every place."""
    return F.conv2d(x, torch.tensor(weights).view(1, 1, 2, 2).repeat(CHANNELS, 1, 1, 1), groups=CHANNELS)


EVEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "one number": (lambda x: (cut(x) * torch.full((2, 1, 2), 0.4, device=x.device)).sum((3, 5)),
                   lambda x: by_conv(x, [0.4] * 4)),
    "a function of each": (lambda x: cut(x).relu().mean((3, 5)), lambda x: by_conv(x.relu(), [0.25] * 4)),
    "of each channel": (lambda x: (gather(x) * torch.arange(4, device=x.device).view(4, 1, 1, 1)).mean(4),
                        lambda x: by_conv(x * torch.arange(4).view(4, 1, 1), [0.25] * 4)),
    "by exponentials": (lambda x: cut(x).logsumexp((3, 5)), lambda x: by_conv(x.exp(), [1.0] * 4).log()),
}  # fmt: skip


@pytest.mark.parametrize("name", EVEN)
def test_what_is_done_to_all_samples_alike_leaves_a_map(name: str) -> None:
    call, dense = EVEN[name]
    net, x = Net(call), images()
    (site,) = find_sites(net, SIZE)
    assert site.measurable
    with FeatureExtractor(net, [site], tap="dense") as fx:
        net(x)
    torch.testing.assert_close(fx[site.name], dense(net.conv(x)).detach())


PRODUCTS: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module | None]] = {
    "einsum": (lambda x: torch.einsum("bchiwj,ij->bchw", cut(x), four(x).view(2, 2)), None),
    "einsum of columns": (
        lambda x: torch.einsum("bckl,k->bcl", F.unfold(x, 2, stride=2).view(-1, CHANNELS, 4, 24), four(x)),
        None,
    ),
    "tensordot": (lambda x: torch.tensordot(gather(x), four(x), 1), None),
    "learned": (gather, nn.Linear(4, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_window_that_a_matrix_sums_over_is_not_kept_as_channels(name: str) -> None:
    (site,) = find_sites(Net(*PRODUCTS[name]), SIZE)
    assert not site.lossless
    assert not site.measurable
    assert site.reason


@pytest.mark.parametrize("learned", [nn.Linear(4 * CHANNELS, 2), nn.Linear(4 * CHANNELS, 32)])
def test_a_window_with_all_its_channels_is(learned: nn.Module) -> None:
    (site,) = find_sites(Net(lambda x: cut(x).permute(0, 2, 4, 1, 3, 5).flatten(3), learned), SIZE)
    assert site.lossless


STACKED: dict[str, Callable[[Tensor], Tensor]] = {
    "images first": lambda x: F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, (-1, CHANNELS)),
    "channels first": lambda x: F.avg_pool2d(x.transpose(0, 1).flatten(0, 1), 2).unflatten(0, (CHANNELS, -1))
    .transpose(0, 1),
    "vmap": lambda x: torch.func.vmap(lambda one: F.avg_pool2d(one, 2))(x),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKED)
def test_images_without_a_batch_axis_stay_apart(name: str) -> None:
    net, x = Net(STACKED[name]), images()
    (site,) = find_sites(net, SIZE)
    with FeatureExtractor(net, [site], tap="dense") as fx:
        net(x)
    torch.testing.assert_close(fx[site.name], by_conv(net.conv(x), [0.25] * 4).detach())
    plain = Net(lambda x: F.avg_pool2d(x, 2))
    plain.conv = net.conv
    one, other = (measure(model, x, ["avr"], progress=False)["value"].to_numpy() for model in (net, plain))
    np.testing.assert_allclose(one, other, rtol=1e-5)
