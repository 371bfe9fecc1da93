"""The instability budget: closed forms, games with known values, and networks with one fault."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectral
from spectral import cli
from spectral.budget import count_budget_passes, describe_shares, measure_instability_budget
from spectral.budget.shapley import coalitions, draw_orders, share_out, split_player
from spectral.data.subset import Subset
from spectral.errors import SpectralError
from spectral.layers import APSPool2d, IdealLowPass2d
from spectral.study import StudyOptions, run_study

PLAYERS = "abc"


class Energy(nn.Module):
    """The power of each channel: by Parseval's theorem what aliases adds to it, and nothing else does."""

    def forward(self, x):
        return torch.linalg.vector_norm(x, dim=(2, 3))


def circular(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode="circular")


def classify(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*layers, Energy()).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.5)
            nn.init.normal_(module.bias, std=0.5)
    return net


def budget(net: nn.Module, size: int = 16, count: int = 6, **options):
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))
    return measure_instability_budget(net, images, progress=False, **options)


def shares(table, metric: str = "logit_jitter"):
    own = table[(table["metric"] == metric)].groupby(["source", "site"])["value"].mean()
    return own / own["total", ""]


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_values_are_those_of_all_orders(drawn):
    """Against the definition: the mean over all orders of what a player takes off when it joins."""
    worth = {s: np.array(v) for s, v in zip(coalitions(PLAYERS), drawn, strict=True)}
    parts = share_out(worth.__getitem__, PLAYERS)
    for player in PLAYERS:
        gains = []
        for order in itertools.permutations(PLAYERS):
            before = frozenset(order[: order.index(player)])
            gains.append(worth[before] - worth[before | {player}])
        assert float(parts[player].value) == pytest.approx(np.mean(gains), abs=1e-12)
        others = frozenset(PLAYERS) - {player}
        assert parts[player].first_in == worth[frozenset()] - worth[frozenset({player})]
        assert parts[player].last_out == worth[others] - worth[frozenset(PLAYERS)]
    total = sum(float(part.value) for part in parts.values())
    assert total == pytest.approx(drawn[0] - drawn[-1], abs=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_members_add_up_to_their_player_however_few_orders(seed, orders):
    rng = np.random.default_rng(seed)
    members = {"x": ["x1"], "y": ["y1", "y2", "y3", "y4"], "z": ["z1", "z2"]}
    known: dict[frozenset[str], np.ndarray] = {}

    def worth(s):
        if s not in known:
            known[s] = rng.normal(size=3)
        return known[s]

    def joined(players):
        return worth(frozenset(m for p in players for m in members[p]))

    whole = share_out(joined, list(members))
    found = split_player(worth, members, "y", orders, np.random.default_rng(0))
    np.testing.assert_allclose(sum(value for value, _ in found.values()), whole["y"].value, atol=1e-12)
    assert all((error > 0).all() for _, error in found.values())
    exact = split_player(worth, members, "z", orders, np.random.default_rng(0))
    assert all((error == 0).all() for _, error in exact.values())


def test_the_error_is_that_of_means_over_the_orders_drawn():
    """The k-th member of y to join takes off 2k + 1, with x and without: two means, half of each."""
    members = {"x": ["x1"], "y": ["y1", "y2", "y3", "y4"]}
    found = split_player(
        lambda s: np.array(-(len(s - {"x1"}) ** 2.0)), members, "y", 6, np.random.default_rng(5)
    )
    rng = np.random.default_rng(5)
    drawn = [draw_orders(4, 6, rng)[0] for _ in range(2)]
    for place, member in enumerate(members["y"]):
        gains = np.array([[2 * order.index(place) + 1 for order in orders] for orders in drawn])
        value, error = found[member]
        assert float(value) == pytest.approx(gains.mean())
        assert float(error) == pytest.approx(np.sqrt((gains.var(1, ddof=1) / 6 / 4).sum()))
    (alone,) = {float(error) for _, error in split_player(
        lambda s: np.array(-(len(s) ** 2.0)), {"y": ["a", "b"]}, "y", 9, rng).values()}  # fmt: skip
    assert alone == 0


def test_values_and_rest_add_up_to_each_image():
    net = classify(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    net = nn.Sequential(*net[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    table = budget(net, split=["decimation", "nonlinearity"])
    whole = table[(table["site"] == "") & (table["source"] != "total")]
    sums = whole.groupby(["metric", "image"])["share"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-12)
    for source in ("decimation", "nonlinearity"):
        own = table[table["source"] == source]
        split = own[own["site"] != ""].groupby(["metric", "image"])["value"].sum()
        np.testing.assert_allclose(split, own[own["site"] == ""].groupby(["metric", "image"])["value"].sum())
    assert len(table.attrs["coalitions"]) == 8
    assert table.attrs["coalitions"][0]["agreement"] == 1
    passes = [count_budget_passes(net, 16, split=split) for split in ([], ["decimation", "nonlinearity"])]
    assert passes[0] < table.attrs["passes"] <= passes[1]
    sis = spectral.compute_sis(net, torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)))
    total = table[(table["source"] == "total") & (table["metric"] == "sis")]["value"]
    np.testing.assert_allclose(total, sis, rtol=1e-5)


EQUIVARIANT = {
    "aps": lambda: classify(circular(3, 8), nn.ReLU(), APSPool2d(2), circular(8, 8), nn.ReLU(), APSPool2d(2)),
    "linear": lambda: classify(circular(3, 8), IdealLowPass2d(2), circular(8, 8), IdealLowPass2d(2)),
}


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_an_equivariant_network_has_a_budget_of_zero(name):
    table = budget(EQUIVARIANT[name]())
    assert table["value"].abs().max() < 1e-10
    assert table["share"].isna().all()


class Scores(nn.Module):
    """Class scores of some scale, a part of which is the same for all images."""

    def __init__(self, features: nn.Module, scale: float, offset: float) -> None:
        super().__init__()
        self.features, self.scale, self.offset = features, scale, offset

    def forward(self, x):
        y = self.features(x)
        shared = self.offset * torch.linspace(0, 1, y.shape[1], dtype=y.dtype, device=y.device)
        return self.scale * (y + shared[:, None, None]).mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("border", ["circular", "zeros"])
def test_rounding_has_no_causes_whatever_the_scale_of_the_logits(border, scale, dtype):
    """Images hardly differ in their logits, so that rounding is a large part of what there is of jitter."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 1, 1, padding_mode=border), nn.ReLU(), APSPool2d(2), circular(8, 8), nn.ReLU()
    net = Scores(nn.Sequential(*layers), scale, 100.0 if border == "circular" else 0.0).to(dtype).eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    table = measure_instability_budget(net, x, progress=False, factor=2, logits=lambda z: z)
    own = table[table["source"] == "total"].set_index("metric")
    jitter, known = own.loc["logit_jitter"], table["share"].notna()
    if border == "circular":
        assert jitter["value"].max() > (1e-10 if dtype == torch.float32 else 1e-29)
        assert not known.any()
        assert "no more than what rounding gives" in repr(table)
        rows = spectral.summarize_instability_budget(table).query("metric == 'logit_jitter'")
        assert rows["reason"].str.startswith("no more than what rounding gives").all()
    elif scale < 1e6:  # of a million, probabilities are 0 and 1
        assert known.all()
        assert "rounding" not in repr(table)
    else:
        assert known[table["metric"] == "logit_jitter"].all()


FAULTS = {
    "decimation": lambda: classify(circular(3, 8), IdealLowPass2d(2), circular(8, 8, 2), circular(8, 8)),
    "nonlinearity": lambda: classify(circular(3, 8), IdealLowPass2d(2), nn.GELU()),
    "border": lambda: classify(circular(3, 8), nn.Conv2d(8, 8, 3, 1, 1), circular(8, 8)),
}
PLACES = {"decimation": "2", "nonlinearity": "2", "border": "1"}


@pytest.mark.parametrize("source", FAULTS)
def test_the_only_fault_has_it_all(source):
    found = shares(budget(FAULTS[source](), split=[source]))
    assert found[source, ""] > 0.99
    assert found[source, PLACES[source]] > 0.99
    others = [value for (s, site), value in found.items() if s not in (source, "total") and not site]
    assert np.abs(others).max() < 0.01


@pytest.mark.parametrize(("stride", "size"), [(2, 16), (4, 16)])
def test_the_lattice_is_as_fine_as_what_is_left_asks_for(stride, size):
    """A pixel is 1/s of a sample behind a stride of s: a whole sample of a lattice s times finer."""
    table = budget(classify(circular(3, 4), IdealLowPass2d(stride), nn.ReLU()), size, 2)
    assert table.attrs["factor"] == stride
    assert shares(table)["unexplained", ""] == pytest.approx(0, abs=1e-4)


def test_no_finer_lattice_is_tried_where_one_helped_little():
    """What a map of positions leaves isn't the lattice's: 4 is tried beside 2, and 8 isn't."""
    torch.manual_seed(0)
    net = classify(circular(3, 6), IdealLowPass2d(2), nn.GELU(), Positions(6, 8))
    table, alone = budget(net, 16, 2), budget(net, 16, 2, factor=2)
    assert table.attrs["factor"] == 2
    pd.testing.assert_frame_equal(table, alone)
    views = count_budget_passes(net, 16) - count_budget_passes(net, 16, factor=2)
    assert table.attrs["passes"] - alone.attrs["passes"] == 5 < views


class Residual(nn.Module):
    """Writes into its maps, before and behind its stride, so that what a pass has computed doesn't stay."""

    def __init__(self):
        super().__init__()
        self.conv, self.down = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x):
        y = torch.relu_(self.conv(x))
        y += x
        z = self.down(y)
        y.mul_(2).sub_(1)  # behind the decimation, written into what was computed before it
        return z + nn.functional.avg_pool2d(y, 2)


class Positions(nn.Module):
    """Multiplies a map by one that doesn't move with it, and adds a moving average of its rows."""

    def __init__(self, channels: int = 6, size: int = 16):
        super().__init__()
        self.gain = nn.Parameter(1 + torch.rand(1, channels, size, size))

    def forward(self, x):
        return x * self.gain + nn.functional.avg_pool2d(x, (3, 1), 1, (1, 0))


class RowNorm(nn.Module):
    """Normalises rows as if they were channels: a map of its own for each row, which doesn't move with it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.norm.weight.data, self.norm.bias.data = torch.rand(16) + 0.5, torch.randn(16)

    def forward(self, x):
        return self.norm(nn.functional.gelu(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


BLOCKS = {
    "rows": RowNorm,
    "writes": Residual,
    "convolution": lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
    "norm": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 6, 1), nn.Hardswish()),
    "positions": Positions,
    "crop": lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.SiLU(inplace=True), nn.ZeroPad2d(1)),
    "pool": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(6), nn.Upsample(scale_factor=2)),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_what_coalitions_share_changes_none_of_them(block):
    """Each coalition's mean against a run of its own, image after image, with `idealize` alone.

    In double precision: what is left of the jitter is a thousandth of the logits.
    """
    block = BLOCKS[block]()
    net = classify(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), block, nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU()
    ).double()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    table = measure_instability_budget(net, x, progress=False, factor=2, batch_size=3)
    for record in table.attrs["coalitions"]:
        ideal = spectral.idealize(net, [s for s in record["ideal"].split("+") if s], factor=2)
        with torch.no_grad(), ideal:
            z = net(x)
            moved = [net(x.roll(step, axis)) for axis in (-2, -1) for step in (-1, 1)]
        jitter = spectral.compute_logit_jitter(z, moved).mean()
        assert record["logit_jitter"] == pytest.approx(float(jitter), rel=1e-5, abs=1e-9), record["ideal"]


class Convolutions(TorchDispatchMode):
    """Counts those that run; without data each is looked at once, in whichever test comes first."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default and not args[0].is_meta
        return func(*args, **(kwargs or {}))


def test_a_moved_view_computes_what_does_not_move_with_it_alone():
    """Of views that are whole moves of others: with circular borders, the maps that move by whole samples."""
    net = classify(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
                   nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU())  # fmt: skip
    counts = {}
    for shifts in ("half", "pixel"):
        with Convolutions() as counted:
            budget(net, factor=2, shifts=shifts)
        counts[shifts] = counted.count
    # The first convolution of the four moved views, of one network of each pair that parts behind it; the
    # second of two of them, which are each other's moved by two samples, of all four with circular borders.
    assert counts["half"] - counts["pixel"] == 2 * 4 + 4 * 2


@pytest.mark.parametrize("shifts", ["pixel", "half", "random", "crop"])
def test_every_kind_of_shift_closes(shifts):
    net = classify(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU())
    table = budget(net, size=18, shifts=shifts)
    found = shares(table)
    assert found.drop("total").sum() == pytest.approx(1)
    assert found["unexplained", ""] < 0.02
    assert ("content" in found) == (shifts == "crop")


@pytest.mark.parametrize("size", [12, 13])
def test_half_a_pixel_is_a_move_of_one_picture(size):
    """Moved by half a pixel a Nyquist bin is gone: of images with one it would be another picture's power."""
    assert budget(classify(circular(3, 6)), size=size, shifts="half")["value"].max() < 1e-9


def test_what_enters_a_window_is_content_and_no_cause():
    """Of a mean over the window, in closed form: the row that enters less the one that leaves."""
    net = nn.Sequential(circular(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(4, 3, 9, 12, generator=torch.Generator().manual_seed(3))
    table = measure_instability_budget(net, images, progress=False, shifts="crop")

    means = images[:, :, 1:-1, 1:-1].mean((2, 3))
    rows, columns = images[:, :, :, 1:-1].sum(3) / 70, images[:, :, 1:-1].sum(2) / 70
    moved = [rows[..., 0] - rows[..., -2], rows[..., -1] - rows[..., 1],
             columns[..., 0] - columns[..., -2], columns[..., -1] - columns[..., 1]]  # fmt: skip
    response = net[0].weight.detach().sum((2, 3))
    jump = sum((change @ response.T).square().sum(1) for change in moved) / 4
    z = means @ response.T
    expected = jump / (z - z.mean(0)).square().sum(1).mean()
    own = table[table["metric"] == "logit_jitter"].set_index("source")["value"]
    assert own["content"].to_numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert own["total"].to_numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert own["unexplained"].abs().max() < 1e-9


def test_features_have_jitter_where_there_are_no_scores():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)).eval()
    table = budget(net)
    assert set(table["metric"]) == {"logit_jitter"}
    assert shares(table)["unexplained", ""] < 0.02
    assert "jitter of its features" in repr(table)


@pytest.mark.parametrize("softmax", [True, False])
def test_jitter_of_probabilities_is_said_to_be_theirs(softmax):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([nn.Softmax(-1)] if softmax else [])]
    table = budget(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *head).eval())
    assert table.attrs["output"] == ("probabilities" if softmax else "logits")
    assert ("jitter of its probabilities" in repr(table)) == softmax


@pytest.mark.parametrize("case", ["one image", "no logits", "coarse type"])
def test_jitter_without_a_spread_is_not_known_and_said_to_be(case):
    torch.manual_seed(1)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ELU(), *head).eval()
    if case == "no logits":
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
    x = torch.randn(1 if case == "one image" else 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    dtype = torch.bfloat16 if case == "coarse type" else torch.float32
    table = measure_instability_budget(net.to(dtype), x.to(dtype), progress=False)
    own = table[(table["metric"] == "logit_jitter") & (table["source"] == "unexplained")]
    assert own["value"].isna().all()
    assert "images have no spread" in repr(table)
    summary = spectral.summarize_instability_budget(table).query("metric == 'logit_jitter'")
    assert (summary["reason"] != "").tolist() == summary["value"].isna().tolist()
    sis = spectral.summarize_instability_budget(table).set_index(["metric", "source"]).loc["sis", "share"]
    assert sis.isna().all() if case == "no logits" else sis.drop("total").sum() == pytest.approx(1)


def test_shares_without_intervals_say_why():
    """Of one photograph, or where the instability of one is all there is."""

    def write(values: list[float]) -> pd.DataFrame:
        images = [f"{i}" for i in range(len(values))]
        facts = {"model": "net", "metric": "sis", "site": "", "error": 0.0, "reason": ""}
        parts = {"total": 1.0, "decimation": 0.6, "unexplained": 0.4}
        return pd.concat([
            pd.DataFrame({**facts, "source": source, "image": images, "cluster": images, "share": part} |
                         dict.fromkeys(("value", "first_in", "last_out"), part * np.array(values)))
            for source, part in parts.items()
        ])  # fmt: skip

    for values, reason in (([1.0], "need two photographs"), ([0.0, 0.0, 1.0], "its mean may be 0")):
        summary = spectral.summarize_instability_budget(write(values))
        assert summary["share"].tolist() == pytest.approx([1, 0.6, 0.4])
        assert summary["share_ci_low"].isna().all()
        assert summary["reason"].str.contains(reason).all()
        assert reason in describe_shares(summary).text()
    known = spectral.summarize_instability_budget(write([1.0, 1.1, 1.2]))
    assert known["share_ci_low"].notna().all()
    assert (known["reason"] == "").all()


def test_a_flattened_map_is_named_and_unexplained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    table = budget(net)
    assert shares(table)["unexplained", ""] > 0.1
    (left,) = table[table["reason"] != ""].to_dict("records")
    assert (left["source"], left["site"]) == ("position", "3")


def test_bad_input_is_one_sentence_and_alters_nothing():
    net = classify(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()).train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    wrong = [
        ({"sources": ["decimations"]}, "unknown source 'decimations'; nearest: 'decimation'"),
        ({"sources": []}, "sources names none; allowed values are decimation, nonlinearity, border"),
        ({"sources": ["border"], "split": ["decimation"]}, "isn't among the sources"),
        ({"shifts": "pixels"}, "unknown shifts 'pixels'; nearest: 'pixel'"),
        ({"factor": 1}, "factor"),
        ({"orders": 0}, "orders"),
    ]
    for options, message in wrong:
        with pytest.raises(SpectralError, match=message):
            budget(net, **options)
    deep = classify(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)))
    with pytest.raises(SpectralError, match="smaller than the total stride"):
        budget(deep, size=8)
    with pytest.raises(SpectralError, match="nothing that could be made ideal"):
        budget(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())


def test_the_summary_has_shares_of_means():
    net = classify(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    table = budget(net, count=24)
    summary = spectral.summarize_instability_budget(table)
    means = table.groupby("source")["value"].mean()
    found = summary.set_index("source")
    for source in ("decimation", "nonlinearity", "border", "unexplained"):
        assert found.loc[source, "share"] == pytest.approx(means[source] / means["total"])
        assert (
            found.loc[source, "share_ci_low"]
            < found.loc[source, "share"]
            < found.loc[source, "share_ci_high"]
        )
        value, total = (table[table["source"] == s].set_index("image")["value"] for s in (source, "total"))
        for end in ("share_ci_low", "share_ci_high"):  # Fieller's: as doubtful as the level
            doubt = spectral.stats.compare_paired(value, found.loc[source, end] * total).p
            assert (
                doubt == pytest.approx(0.05, rel=1e-6) or source == "unexplained"
            )  # of which rounding is all
    with pytest.raises(SpectralError, match="without the column"):
        spectral.summarize_instability_budget(table.drop(columns="share"))


def test_the_summary_says_how_often_predictions_stay():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    with torch.no_grad():
        net[4].bias -= net(torch.randn(999, 3, 16, 16)).mean(0)  # no class is the likeliest
    table = budget(net, count=24, split=("decimation",))
    known = {record["ideal"]: record["agreement"] for record in table.attrs["coalitions"]}
    assert known[""] == 1
    assert len(set(known.values())) > 4
    found = (
        spectral.summarize_instability_budget(table).query("metric == 'sis'").set_index(["source", "site"])
    )
    expected = {**{source: known[source] for source in ("decimation", "nonlinearity", "border")},
                "total": 1, "unexplained": known["decimation+nonlinearity+border"]}  # fmt: skip
    assert {source: found.loc[(source, ""), "agreement"] for source in expected} == expected
    assert math.isnan(found.loc[("decimation", "0"), "agreement"])


def test_what_takes_nothing_off_has_a_share_of_0():
    """And not of −0, which a sum of nothing is less nothing else."""
    net = classify(nn.Conv2d(3, 8, 3, 2, 1, padding_mode="circular"))
    summary = spectral.summarize_instability_budget(budget(net))
    (share,) = summary.loc[summary["source"] == "border", "share"]
    assert math.copysign(1, share) * (1 + share) == 1.0


def test_one_photograph_has_shares_without_intervals():
    """However many images were cut from it."""
    images = spectral.load_images("samples", size=32, limit=64)
    chosen = [i for i, name in enumerate(images.clusters) if name == images.clusters[-1]][:3]
    assert len(chosen) > 1
    net = spectral.load_model("bundled/resnet8@random")
    table = measure_instability_budget(net, Subset(images, chosen), progress=False)
    summary = spectral.summarize_instability_budget(table)
    parts = summary[(summary["metric"] == "sis") & (summary["source"] != "total")]
    assert (set(parts["n"]), set(parts["n_clusters"])) == ({len(chosen)}, {1})
    assert parts["share"].sum() == pytest.approx(1)
    assert parts["share_ci_low"].isna().all()
    assert "unexplained" in repr(table)


def test_a_picture_of_many_places_has_all_of_their_share():
    sites = [f"layer{i}" for i in range(40)]
    own = {"model": "m", "metric": "sis", "n_clusters": 4, "share_ci_low": np.nan, "share_ci_high": np.nan,
           "first_in": np.nan, "last_out": np.nan, "agreement": np.nan}  # fmt: skip
    rows = [own | {"source": "nonlinearity", "site": site, "share": 2.0**-i} for i, site in enumerate(sites)]
    whole = [
        own | {"source": "nonlinearity", "share": 2 - 2.0**-39},
        own | {"source": "unexplained", "share": 0},
    ]
    table = pd.DataFrame([*whole, *rows])
    drawn = spectral.figures.plot_instability_budget({"budget": table})
    assert "n = 4 photographs, too few or too unlike for intervals" in drawn.get_suptitle()
    (ax,) = drawn.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["nonlinearity", *sites[:16], "24 smaller ones together", "unexplained"]
    dots = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"}
    assert sum(dots[i] for i in range(1, 18)) == pytest.approx(dots[0])
    known = table.assign(metric="logit_jitter", share_ci_low=-1.0, share_ci_high=3.0)
    both = spectral.figures.plot_instability_budget({"budget": pd.concat([table, known])})
    assert "95 % intervals, none of SIS" in both.get_suptitle()


def test_the_command_writes_tables_and_figure(tmp_path):
    arguments = ["bundled/resnet8@random", "--images", "synthetic", "--limit", "3"]
    out = ["--out", str(tmp_path)]
    result = CliRunner().invoke(cli.main, ["budget", *arguments, *out, "--split", "decimation"])
    assert result.exit_code == 0, result.output
    assert "unexplained" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {
        "budget.csv", "budget_images.csv", "budget_coalitions.csv", "budget.png"
    }  # fmt: skip
    wrong = CliRunner().invoke(cli.main, ["budget", *arguments, "--shifts", "pixels"])
    assert wrong.exit_code == 2
    assert "nearest: 'pixel'" in wrong.stderr
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for key, changed in (
        ("split", ()), ("fingerprint", ("--split", "decimation", "--seed", "1")),
        ("orders", ("--split", "decimation", "--orders", "3")),
    ):  # fmt: skip
        other = CliRunner().invoke(cli.main, ["budget", *arguments, *out, *changed])
        assert other.exit_code == 2
        assert f"budget.csv is of {key} = " in " ".join(other.stderr.split())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_network_without_instability_has_tables_with_the_reason_and_no_figure(tmp_path):
    np.save(tmp_path / "grey.npy", np.full((3, 3, 32, 32), 0.5, np.float32))
    (tmp_path / "budget.png").touch()  # of another network
    done = CliRunner().invoke(
        cli.main,
        ["budget", "bundled/resnet8@random", "--images", f"{tmp_path}/grey.npy", "--out", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    assert "no figure: table 'budget' has no rows with a known share" in done.stdout
    assert not (tmp_path / "budget.png").exists()
    table = pd.read_csv(tmp_path / "budget.csv", keep_default_na=False).query("metric == 'sis'")
    assert set(table["reason"]) == {"no more than what rounding gives, which has no causes: no shares"}


def test_phase_10_writes_budgets_and_coalitions(tmp_path):
    names = ("bundled/resnet8@random", "bundled/nula-w8@random")
    options = StudyOptions(models=names, images="synthetic", limit=3, out=tmp_path, progress=False)
    run_study([10], options)
    table = pd.read_csv(tmp_path / "tables" / "phase10_budget.csv", keep_default_na=False)
    assert set(table["model"]) == set(names)
    assert {"decimation", "nonlinearity", "border", "unexplained", "total"} <= set(table["source"])
    assert len(pd.read_csv(tmp_path / "tables" / "phase10_coalitions.csv")) == 16
    assert (tmp_path / "figures" / "fig30_budget.png").exists()


@pytest.mark.parametrize("extent", [15, 16])
def test_the_whole_of_a_circular_network_is_its_own_at_odd_sizes_too(extent):
    """Where the stride doesn't divide the map, the lattice is no periodic one: a border's doing."""
    net = classify(circular(3, 8, 2), nn.Tanh())
    found = shares(budget(net, extent, 4))
    x = torch.randn(4, 3, extent, extent, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        own = net(x).double()
        moved = [net(x.roll(t, axis)).double() for t in (1, -1) for axis in (-2, -1)]
    jumps = torch.stack([(z - own).square().sum(1) for z in moved]).mean()
    jitter = (jumps / (own - own.mean(0)).square().sum(1).mean()).item()
    total = budget(net, extent, 4).query("metric == 'logit_jitter' and source == 'total'")["value"].mean()
    assert total == pytest.approx(jitter, rel=1e-5)
    assert found["unexplained", ""] < 0.01
    assert (found["border", ""] > 0.1) == (extent % 2 == 1)
