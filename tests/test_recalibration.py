"""Batch-norm statistics after surgery: exact where nothing changed, and where the right ones are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spectral.errors import SpectralError, SpectralWarning
from spectral.models import load_model
from spectral.repair.recalibration import recalibrate
from spectral.surgery import convert


def make_net() -> nn.Sequential:
    """Norms that see many photographs' statistics, and weights that feed one norm from another."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(60):
            net.train()(torch.randn(32, 3, 16, 16))
    return net.eval()


def statistics(net: nn.Module) -> list[torch.Tensor]:
    return [
        t for m in net.modules() if isinstance(m, nn.BatchNorm2d) for t in (m.running_mean, m.running_var)
    ]


def test_an_unaltered_network_keeps_its_statistics() -> None:
    net = make_net()
    same = recalibrate(convert(net, "strided", example=16), torch.randn(4, 3, 16, 16))
    for before, after in zip(statistics(net), statistics(same), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_a_change_that_is_known_is_found_whatever_images_are_drawn() -> None:
    net, images = make_net(), torch.randn(5, 3, 16, 16)
    louder = copy.deepcopy(net)
    with torch.no_grad():  # standard deviations times 3, means times 3 plus 0.5
        louder[0].weight.mul_(3)
        louder[0].bias.mul_(3).add_(0.5)
    repaired = recalibrate(louder, images, reference=net)
    # An affine change in front of a norm is undone by that norm but for its ε; nothing behind it changes.
    torch.testing.assert_close(repaired(images), net(images), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(louder(images), net(images), rtol=1e-2)


def test_repaired_statistics_are_those_of_a_large_set() -> None:
    net = make_net()
    smooth = convert(net, "blurpool", example=16)
    truth = copy.deepcopy(smooth)
    for norm in (m for m in truth.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(60):
            truth.train()(torch.randn(32, 3, 16, 16))
    truth.eval()
    repaired = recalibrate(smooth, torch.randn(24, 3, 16, 16))

    def distance(model: nn.Module) -> float:
        pairs = zip(statistics(model), statistics(truth), strict=True)
        return sum(float(((a - b) / (b.abs() + 0.1)).abs().mean()) for a, b in pairs)

    assert distance(repaired) < 0.35 * distance(smooth)
    assert smooth(torch.zeros(1, 3, 16, 16)).shape == repaired(torch.zeros(1, 3, 16, 16)).shape


def test_nothing_else_changes() -> None:
    net = make_net()
    smooth = convert(net, "flc", example=16).train()
    before = copy.deepcopy(smooth.state_dict())
    repaired = recalibrate(smooth, torch.randn(4, 3, 16, 16))
    after = repaired.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        name for name in before if "running" in name
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in smooth.state_dict().items())
    assert repaired.training
    assert all(not m._forward_pre_hooks for m in repaired.modules() if isinstance(m, nn.BatchNorm2d))
    x = torch.randn(6, 3, 16, 16)
    few, all_of_few = (
        recalibrate(smooth, x, limit=4).state_dict(),
        recalibrate(smooth, x[[0, 1, 3, 4]]).state_dict(),
    )
    assert all(torch.equal(few[name], tensor) for name, tensor in all_of_few.items())
    assert recalibrate(smooth, torch.randn(4, 3, 16, 16), inplace=True) is smooth


def test_images_come_in_any_form_and_are_normalised() -> None:
    smooth = convert(make_net(), "blurpool", example=16)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    ready = (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255).permute(0, 2, 3, 1)
    ready = ((ready - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).float()
    expected = recalibrate(smooth, ready).state_dict()
    pictures = [Image.fromarray(image) for image in pixels]
    for images in (pixels, pictures):
        got = recalibrate(smooth, images, preprocessing=(mean, std)).state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_bad_input_is_one_sentence() -> None:
    net = make_net()
    smooth = convert(net, "blurpool", example=16)
    with pytest.raises(SpectralError, match="has not been converted"):
        recalibrate(net, torch.randn(4, 3, 16, 16))
    with pytest.raises(SpectralError, match="limit"):
        recalibrate(smooth, torch.randn(4, 3, 16, 16), limit=1)
    with pytest.raises(SpectralError, match="at least 2 images, got 1"):
        recalibrate(smooth, torch.randn(1, 3, 16, 16))
    with pytest.raises(SpectralError, match=r"recalibrate: expected images .*, got a list without any"):
        recalibrate(smooth, [1, 2])
    with pytest.raises(SpectralError, match=r"'1' isn't finite"):
        recalibrate(smooth, torch.full((2, 3, 16, 16), torch.nan))
    with pytest.raises(SpectralError, match="pass the network that this one was made from"):
        recalibrate(smooth, torch.randn(4, 3, 16, 16), reference=nn.Conv2d(3, 4, 3))
    assert all(not m._forward_pre_hooks for m in smooth.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_network_without_norms_is_told_what_mends_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    smooth = convert(net, "blurpool", example=16)
    with pytest.warns(
        SpectralWarning, match=r"no batch norm .* nothing is changed; spectral.reconstruct fits"
    ):
        recalibrate(smooth, torch.rand(4, 3, 16, 16))


@pytest.mark.parametrize("change", [{"padding": "circular"}, {"activations": "alias-free"}])
def test_a_network_altered_without_a_layer_has_the_unaltered_one_beside_it(change) -> None:
    net = load_model("bundled/resnet20")
    altered = convert(net, None, example=(32, 32), **change)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = recalibrate(altered, images, reference=net)
    for name, value in recalibrate(altered, images).state_dict().items():
        torch.testing.assert_close(value, given.state_dict()[name])
    both = convert(altered, "flc", example=(32, 32))
    assert recalibrate(both, images) is not None


class Shared(nn.Module):
    """Has a norm that runs at two places, and perhaps one of a single place."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4) if single else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.second(self.norm(self.first(x)).relu())))


def test_a_norm_that_runs_at_two_places_is_named_as_such() -> None:
    """The network before the change is there: to ask for it helps nobody."""
    images = torch.randn(4, 3, 16, 16)
    said = "'norm' runs 2 times in one pass.*give each place a norm of its own"
    with pytest.raises(
        SpectralError, match=f"none of the 1 norms that run can be recalibrated: {said}"
    ) as error:
        recalibrate(convert(Shared(False).eval(), "blurpool", example=16), images)
    assert "made from" not in str(error.value)
    smooth = convert(Shared(True).eval(), "blurpool", example=16)
    with pytest.warns(SpectralWarning, match=f"1 of 2 norms keep their statistics: {said}"):
        repaired = recalibrate(smooth, images)
    assert not torch.equal(repaired.last.running_mean, smooth.last.running_mean)


class Padding(nn.Module):
    """Takes images in a list, as detectors do, and pads them to the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        assert isinstance(images, list)
        whole = images[0].new_zeros(len(images), 3, *(max(x.shape[axis] for x in images) for axis in (1, 2)))
        for x, room in zip(images, whole, strict=True):
            room[:, : x.shape[1], : x.shape[2]].copy_(x)
        return list(self.norm(self.first(whole)))


def test_images_of_several_sizes_are_not_padded_into_the_statistics() -> None:
    images = list(torch.randn(4, 3, 16, 16))
    smooth = convert(Padding().eval(), "blurpool", example=[images[0]])
    with pytest.warns(SpectralWarning, match=r"4 of 5 images have the size \(3, 16, 16\) of most"):
        repaired = recalibrate(smooth, [torch.randn(3, 40, 16), *images])
    alone = recalibrate(smooth, images)
    for one, other in zip(statistics(repaired), statistics(alone), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(SpectralError, match=r"1 of 2 images have the size .* at least 2 of one size"):
        recalibrate(smooth, [torch.randn(3, 40, 16), images[0]])
