"""A model as a function: what it is called with, how its inputs move, and where its class scores are."""

from __future__ import annotations

import math
import re
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from spectral.arguments.values import as_integer, is_integer
from spectral.errors import SpectralError
from spectral.latency import count_macs
from spectral.metrics.instability import compute_sis
from spectral.network import (
    evaluation_mode,
    guess_kinds,
    guess_layout,
    list_calls,
    list_moves,
    make_inputs,
    read_scores,
    roll_inputs,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def distance(p: Tensor, q: Tensor) -> Tensor:
    """1 − cos of two distributions, by the textbook."""
    p, q = p.double(), q.double()
    return 1 - (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))


# Whole numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_whole_numbers_of_any_kind(value):
    assert is_integer(value)
    assert as_integer(value, "n", least=1) == 2
    assert type(as_integer(value, "n")) is int


@pytest.mark.parametrize("value", [2.0, True, np.bool_(True), torch.tensor(True), "2", None, math.nan, (2,)])
def test_what_is_no_whole_number(value):
    assert not is_integer(value)
    with pytest.raises(SpectralError, match="n must be a whole number ≥ 1, got"):
        as_integer(value, "n", least=1)


# Axes and moves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        ((2, 100), "bw"), ((2, 7, 100), "bcw"), ((2, 3, 8, 9), "bchw"), ((2, 8, 9, 3), "bhwc"),
        ((2, 1, 8, 9), "bchw"), ((2, 8, 9, 1), "bhwc"), ((2, 64, 8, 9), "bchw"), ((2, 3, 8, 3), "bchw"),
        ((2, 3, 4, 8, 9), "bcthw"), ((2, 5, 8, 9, 3), "bthwc"), ((2, 5, 3, 8, 9), "btchw"), ((5,), "b?"[1:]),
    ],
)  # fmt: skip
def test_axes_are_told_by_shape(shape, kinds):
    assert "".join(guess_kinds(torch.zeros(shape))) == kinds


def test_what_is_on_the_lattice_moves_along():
    x, mask, gate, small = noise(2, 3, 8, 6), noise(2, 8, 6), noise(2, 5), noise(2, 1, 4, 3)
    inputs = make_inputs(x, {"mask": mask, "gate": gate}, small=small)
    (up, *_), layout = list_moves(inputs), guess_layout(inputs)
    moved = roll_inputs(inputs, up, layout)
    assert torch.equal(moved.args[0], x.roll(-1, 2))
    assert torch.equal(moved.args[1]["mask"], mask.roll(-1, 1))
    assert moved.args[1]["gate"] is gate
    assert moved.kwargs["small"] is small
    assert moved.image is moved.args[0]
    assert torch.equal(x, noise(2, 3, 8, 6))


def test_images_in_a_list_move_each_on_its_own_lattice():
    pictures = [noise(3, 8, 6), noise(3, 5, 9, seed=1)]
    inputs = make_inputs(pictures)
    right = list_moves(inputs)[-1]
    moved = roll_inputs(inputs, right).args[0]
    assert all(torch.equal(m, x.roll(1, -1)) for m, x in zip(moved, pictures, strict=True))
    assert inputs.count == 2


class Mean(nn.Module):
    """A circular convolution and a mean over all places: shift-invariant exactly."""

    def __init__(self, rank: int, channels_last: bool = False) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = kind(3, 5, 3, padding=1, padding_mode="circular").double()
        self.last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1) if self.last else x
        return 20 * self.conv(x).relu().flatten(2).mean(2)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Mean(1), (2, 3, 32)),  # .017 to .034 when channels were rolled too
        (Mean(1), (3, 3, 32)),
        (Mean(2), (2, 3, 9, 8)),
        (Mean(2, channels_last=True), (2, 9, 8, 3)),
        (Mean(3), (2, 3, 4, 6, 5)),
        (Mean(3, channels_last=True), (2, 5, 6, 5, 3)),
    ],
)
def test_what_is_invariant_has_no_instability(model, shape):
    x = noise(*shape).double()
    assert compute_sis(model, x).max().item() < 1e-24


class Strided(nn.Module):
    """Not invariant: every second sample of each axis, weighted."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            x = x.index_select(axis, torch.arange(0, x.shape[axis], 2))
        return 9 * x.flatten(1)[:, :6]


@pytest.mark.parametrize(
    ("shape", "spatial"),
    [((2, 12), (1,)), ((2, 5, 12), (2,)), ((2, 3, 8, 6), (2, 3)), ((2, 8, 6, 3), (1, 2)),
     ((2, 3, 4, 8, 6), (2, 3, 4))],
)  # fmt: skip
def test_shifts_follow_the_spatial_axes(shape, spatial):
    model, x = Strided(*spatial), noise(*shape)
    p = model(x).double().softmax(-1)
    expected = torch.stack(
        [distance(p, model(x.roll(step, axis)).double().softmax(-1)) for axis in spatial for step in (1, -1)]
    ).mean(0)
    assert expected.min() > 1e-4
    torch.testing.assert_close(compute_sis(model, x), expected, rtol=1e-9, atol=0)


def test_axes_by_hand():
    x, model = noise(2, 7, 6, 5), Strided(1, 2)
    p = model(x).double().softmax(-1)
    expected = torch.stack(
        [distance(p, model(x.roll(s, a)).double().softmax(-1)) for a in (1, 2) for s in (1, -1)]
    )
    torch.testing.assert_close(compute_sis(model, x, axes=(1, -2)), expected.mean(0), rtol=1e-9, atol=0)
    with pytest.raises(
        SpectralError, match=r"axes must be one to 3 axes of a tensor of shape .*, got \(7,\)"
    ):
        compute_sis(model, x, axes=(7,))


# Calls -----------------------------------------------------------------------------------------------------


class TakesDictionary(nn.Module):
    def forward(self, sample: dict[str, Tensor]) -> Tensor:
        return sample["image"].mean((2, 3))


class TakesNames(nn.Module):
    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        return (image if mask is None else image * mask).mean((2, 3))


class TakesTwo(nn.Module):
    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return image.mean((2, 3)) * scale


def test_a_dictionary_is_one_argument_or_named_ones():
    x = noise(2, 3, 8, 8)
    assert compute_sis(TakesDictionary(), {"image": x}).max() < 1e-14
    assert compute_sis(TakesDictionary(), ({"image": x},)).max() < 1e-14
    assert compute_sis(TakesNames(), {"image": x, "mask": x > 0.5}).max() < 1e-14
    assert compute_sis(TakesTwo(), (x, torch.tensor([[2.0], [3.0]]))).max() < 1e-14


def test_three_axes_are_one_image_for_a_network_of_images():
    x = noise(3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.testing.assert_close(compute_sis(net, x), compute_sis(net, x[None]))
    with pytest.raises(SpectralError, match=r"could be one image \(C, H, W\) or signals"):
        compute_sis(lambda x: x.mean(2), x)
    assert compute_sis(lambda x: x.mean(2), x, axes=(-1,)).shape == (3,)


def test_one_channel_images_get_their_axis():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = noise(5, 8, 8)
    torch.testing.assert_close(compute_sis(net, x), compute_sis(net, x[:, None]))


def test_channels_last_for_a_network_of_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = noise(2, 8, 9, 3)
    torch.testing.assert_close(compute_sis(net, x), compute_sis(net, x.movedim(-1, 1)))


def test_no_image_among_the_inputs():
    with pytest.raises(SpectralError, match="there is no image among the inputs"):
        list_calls(TakesTwo(), (torch.arange(3), 2.0))[0].build((torch.arange(3), 2.0))


# Scores ----------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "logits features")


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda y: y, "output"), (lambda y: (y, None), "output[0]"), (lambda y: [y], "output[0]"),
        (lambda y: {"logits": y, "loss": None}, 'output["logits"]'), (lambda y: {"out": y}, 'output["out"]'),
        (lambda y: SimpleNamespace(logits=y), "output.logits"), (lambda y: Pair(y, None), "output.logits"),
        (lambda y: ({"logits": y},), 'output[0]["logits"]'),
    ],
)  # fmt: skip
def test_where_scores_are(wrap, where):
    y = noise(2, 5)
    found = read_scores(wrap(y), 2)
    assert found.values is y
    assert found.where == where


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (noise(2, 5, 4, 4), "is a map"), (noise(2, 7, 5), "is a map"),
        (noise(2, 1), "one number per image"),
        (noise(5), "has not one row of class"), (noise(3, 5), "has not one row"), (None, "has no logits"),
        ({"out": noise(2, 21, 8, 8)}, r'its output\["out"\] \(2, 21, 8, 8\) is a map'),
        ([{"boxes": noise(3, 4)}], "has no logits"), ({"hidden_state": noise(2, 5)}, "hidden_state"),
        (torch.ones(2, 5, dtype=torch.long), "int64"), ("text", "has no logits"), ((), "has no logits"),
    ],
)  # fmt: skip
def test_why_there_are_none(output, reason):
    found = read_scores(output, 2)
    assert found.values is None
    with pytest.raises(SpectralError, match=r"expected a classifier with logits of shape \(2, K ≥ 2\), got"):
        found.probabilities()
    assert re.search(reason, found.reason)


def test_the_users_own_function():
    y = noise(2, 5)
    assert read_scores({"main": y}, 2, lambda output: output["main"]).values is y
    with pytest.raises(SpectralError, match="logits= failed on dict of main: KeyError"):
        read_scores({"main": y}, 2, lambda output: output["other"])
    with pytest.raises(SpectralError, match="which is a map"):
        read_scores(y, 2, lambda output: output[:, :, None]).probabilities()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_probabilities_are_not_squashed_again(dtype):
    z = 3 * noise(4, 6).double()
    for make in (lambda z: z, lambda z: z.softmax(-1), lambda z: z.log_softmax(-1)):
        found = read_scores(make(z).to(dtype), 4).probabilities()
        torch.testing.assert_close(
            found, z.softmax(-1), rtol=5e-3 if dtype == torch.float16 else 1e-5, atol=0
        )
    assert not read_scores(z, 4).are_probabilities


# Modes -----------------------------------------------------------------------------------------------------


class Merging(nn.Linear):
    """Merges an adapter into its weights when it is told to evaluate, as LoRA layers do."""

    def train(self, mode: bool = True) -> nn.Module:
        if not mode:
            self.weight.data += 1
        return super().train(mode)


def test_what_a_change_of_mode_does_to_weights_is_undone():
    model = nn.Sequential(Merging(2, 2), nn.Dropout()).train()
    model[1].training = False
    before = model[0].weight.detach().clone()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        torch.testing.assert_close(model[0].weight, before + 1)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(model[0].weight, before)


def test_sis_of_a_model_that_ends_in_softmax():
    x = noise(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.testing.assert_close(
        compute_sis(nn.Sequential(net, nn.Softmax(-1)), x), compute_sis(net, x), rtol=1e-5, atol=1e-15
    )
    assert compute_sis(lambda x: F.softmax(x.mean((2, 3)), -1), x).shape == (2,)


def test_fused_attention_and_recurrent_layers_are_counted():
    """In evaluation each is one operator, which counted as no arithmetic at all."""
    x = torch.zeros(2, 10, 16)
    attention = 2 * (4 * 10 * 16 * 16 + 2 * 10 * 10 * 16)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    assert count_macs(encoder, x) == attention + 2 * 10 * 2 * 16 * 32
    assert count_macs(encoder.self_attn, x, x, x) == attention
    assert count_macs(nn.LSTM(16, 8, 2, bidirectional=True), x) == 2 * 10 * 2 * 32 * (16 + 8) * 2
    assert torch.backends.mha.get_fastpath_enabled() == before


class Calls(nn.Module):
    """A function, as a network of several inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


PRODUCTS = {  # each is one operator of its own
    "bilinear": (F.bilinear, [(4, 6), (4, 5), (7, 6, 5)], 4 * 7 * 6 * 5),
    "mv": (torch.mv, [(3, 4), (4,)], 3 * 4),
    "addmv": (torch.addmv, [(3,), (3, 4), (4,)], 3 * 4),
    "dot": (torch.dot, [(4,), (4,)], 4),
    "addbmm": (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "tbc": (torch.conv_tbc, [(9, 2, 3), (4, 3, 5), (5,)], 6 * 2 * 5 * 4 * 3),
    "deformed": (deform_conv2d, [(2, 3, 7, 8), (2, 18, 5, 6), (4, 3, 3, 3)], 2 * 5 * 6 * 4 * 27),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_torch_counts_as_none_are_counted(name):
    function, shapes, expected = PRODUCTS[name]
    assert count_macs(Calls(function), *map(torch.zeros, shapes)) == expected
