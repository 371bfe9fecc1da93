"""SIS and what stands beside it, on networks where the answer is known and against plain float64 code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import spectral
from spectral import stats
from spectral.analysis import summarize_attribution, summarize_equivariance
from spectral.errors import SpectralError
from spectral.metrics.instability import compute_logit_jitter, compute_logit_spread
from spectral.sites import find_sites
from spectral.stability import find_total_stride, measure_stability, summarize_stability

QUICK = settings(max_examples=15)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Small(nn.Sequential):
    def __init__(self) -> None:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *head)
        self.double()


class Comb(nn.Module):
    """Logits of a lattice of every fourth pixel: circular, so shifts by 4 change nothing at all."""

    def __init__(self, stride: int = 4, scale: float = 30.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride, bias=False).double()
        self.head = nn.Linear(8, 5).double()
        self.stride, self.scale = stride, scale

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(F.pad(x, (1, 1, 1, 1), mode="circular"))
        return self.head(maps.abs().mean((2, 3))) * self.scale


def seeded(make: type[nn.Module], *args: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make(*args)


def pooled(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def shifted_sis(model: nn.Module, x: Tensor, step: int) -> np.ndarray:
    """SIS by shifts of some pixels, from the definition."""
    with torch.no_grad():
        p = model(x).softmax(-1).numpy()
        total = np.zeros(len(x))
        for axis in (2, 3):
            for way in (-1, 1):
                q = model(x.roll(way * step, axis)).softmax(-1).numpy()
                cos = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
                total += (1 - cos) / 4
    return total


# Logit jitter ---------------------------------------------------------------------------------------------


def test_logit_jitter_is_its_definition():
    model, x = seeded(Comb), pixels(7, 3, 16, 16)
    table = measure_stability(model, x, batch_size=3, progress=False)
    with torch.no_grad():
        z = model(x).numpy()
        moved = [model(x.roll(way, axis)).numpy() for axis in (2, 3) for way in (-1, 1)]
    spread = np.mean([((row - z.mean(0)) ** 2).sum() for row in z])
    expected = np.mean([((m - z) ** 2).sum(1) for m in moved], axis=0) / spread
    np.testing.assert_allclose(table["logit_jitter"], expected, rtol=1e-9)
    np.testing.assert_allclose(table["sis"], shifted_sis(model, x, 1), rtol=1e-9)
    assert (table["logit_jitter"] > 0).all()


@QUICK
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_logit_jitter_knows_no_scale_and_no_offset(scale, offset, seed):
    z, moved = pixels(6, 4, seed=seed), [pixels(6, 4, seed=seed + i) for i in (1, 2)]
    expected = compute_logit_jitter(z, moved)
    found = compute_logit_jitter(z * scale + offset, [m * scale + offset for m in moved])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_logits_that_become_those_of_any_other_image_have_a_jitter_of_2():
    z = pixels(20000, 6)
    found = compute_logit_jitter(z, [z[torch.randperm(len(z), generator=torch.Generator().manual_seed(1))]])
    assert float(found.mean()) == pytest.approx(2, abs=0.05)


def test_equal_logits_have_no_spread_whatever_their_rounding():
    z = torch.full((9, 3), 1234.5678)
    assert float(compute_logit_spread(z)) == 0
    assert float(compute_logit_spread(z + 1e-4 * torch.arange(9.0)[:, None])) == 0  # float32's own steps
    assert float(compute_logit_spread(z.double() + 1e-4 * torch.arange(9.0)[:, None])) > 0
    assert compute_logit_jitter(z, [z]).isnan().all()


def test_confidence_moves_sis_and_leaves_the_jitter():
    sharp, soft = seeded(Comb), seeded(Comb)
    soft.scale = 3.0
    x = pixels(8, 3, 16, 16)
    a, b = (measure_stability(model, x, progress=False) for model in (sharp, soft))
    np.testing.assert_allclose(a["logit_jitter"], b["logit_jitter"], rtol=1e-9)
    assert a["sis"].mean() > 3 * b["sis"].mean()


@pytest.mark.parametrize("case", ["probabilities", "constant", "single"])
def test_a_network_without_logit_jitter_says_why(case):
    model = {
        "probabilities": nn.Sequential(seeded(Comb), nn.Softmax(-1)),
        "constant": nn.Sequential(pooled(nn.Conv2d(3, 4, 3, 2)), Zero()).double(),
        "single": seeded(Comb),
    }[case]
    table = measure_stability(model, pixels(1 if case == "single" else 4, 3, 16, 16), progress=False)
    assert table["logit_jitter"].isna().all()
    assert table["sis"].notna().all()
    said = {"probabilities": "holds probabilities", "constant": "all images", "single": "a single image"}
    assert table["logit_jitter_reason"].str.contains(said[case]).all()
    row = summarize_stability(table).set_index("metric").loc["logit_jitter"]
    assert row["n"] == 0
    assert said[case] in row["reason"]


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


# Comb contrast --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 4])
def test_comb_contrast_is_its_definition(stride):
    model, x = seeded(Comb, stride), pixels(5, 3, 16, 16)
    table = measure_stability(model, x, progress=False)
    before, at, after = (shifted_sis(model, x, stride + d) for d in (-1, 0, 1))
    np.testing.assert_allclose(table["comb_contrast"], (before + after) / 2 - at, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(table["sis_total_stride"], 0, atol=1e-20)
    assert (table["total_stride"] == f"{stride}x{stride}").all()
    assert (table["comb_contrast"] > 0).all()


class Border(nn.Module):
    """Its pool's lattice has no part in its predictions; content that leaves over the border has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 8, 1), nn.MaxPool2d(4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv(x)[..., 3:-3, 3:-3].mean((2, 3))
        return self.head(inside) * 20 + 0 * self.pool(x).sum((1, 2, 3))[:, None]


def test_borders_alone_have_no_comb_contrast():
    """White noise: as many new pixels come in with every step, so SIS grows evenly and its bend is 0."""
    model, x = seeded(Border).double(), pixels(200, 3, 32, 32)
    table = measure_stability(model, x, progress=False)
    before, at, after = (shifted_sis(model, x[:5], 4 + d) for d in (-1, 0, 1))  # one way isn't as the other
    np.testing.assert_allclose(table["comb_contrast"][:5], (before + after) / 2 - at, rtol=1e-8, atol=1e-15)
    assert table["sis_total_stride"].mean() > 2 * table["sis"].mean() > 0
    assert abs(table["comb_contrast"].mean()) < 0.02 * table["sis_total_stride"].mean()


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            8,
            "own lattice",
        ),
        (pooled(nn.Conv2d(3, 4, 4, 4)), 16, ""),
        (pooled(nn.Conv2d(3, 4, 4, 4, padding=2)), 5, "larger than 5×5"),
        (pooled(nn.AdaptiveAvgPool2d(5)), 8, "isn't known to be regular"),
    ],
)
def test_where_there_is_no_comb_contrast_the_table_says_why(model, size, said):
    table = measure_stability(model.double(), pixels(3, 3, size, size), progress=False)
    assert table["comb_contrast"].isna().all() == bool(said)
    assert table["comb_contrast_reason"].str.contains(said).all()


def test_comb_contrast_can_be_left_out():
    table = measure_stability(seeded(Comb), pixels(3, 3, 16, 16), comb=False, progress=False)
    assert (table["comb_contrast_reason"] == "comb=False").all()
    assert table["comb_contrast"].isna().all()


def test_only_axes_with_a_lattice_take_part():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, (1, 2), padding=1, padding_mode="circular")
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    table = measure_stability(model, pixels(4, 3, 12, 12), progress=False)
    assert (table["total_stride"] == "1x2").all()
    np.testing.assert_allclose(table["sis_total_stride"], 0, atol=1e-18)  # two columns; rows take no part
    np.testing.assert_allclose(table["comb_contrast"], 2 * table["sis"], rtol=1e-6)  # SIS has rows in it: 0


# The total stride -----------------------------------------------------------------------------------------


def total_stride(model: nn.Module, *size: int) -> tuple[dict[str, int], str]:
    axes = ("t", "h", "w")[3 - len(size) :]
    return find_total_stride(find_sites(model, torch.zeros(1, 3, *size)), dict(zip(axes, size, strict=True)))


def test_maps_without_padding_keep_their_stride():
    """As Inception does: 299 pixels become 35 samples, 8.5 times fewer, of a lattice of 8."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 4, 3, 2),
    )  # fmt: skip
    assert total_stride(model, 299, 299) == ({"h": 16, "w": 16}, "")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two, self.three = nn.AvgPool2d(2), nn.AvgPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x).mean((2, 3)) + self.three(x).mean((2, 3))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.again = nn.AvgPool2d(4), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(F.interpolate(self.down(x), scale_factor=4.0)).mean((2, 3))


@pytest.mark.parametrize(("model", "expected"), [(Branches(), 6), (Decoder(), 4)])
def test_the_total_stride_of_branches_and_decoders(model, expected):
    assert total_stride(model, 24, 24)[0] == {"h": expected, "w": expected}


def test_a_single_sample_has_no_lattice():
    """A convolution that leaves one place is a head: seven pixels, three samples, one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 3, 3, 2))
    assert [site.output_size for site in find_sites(model, torch.zeros(1, 3, 7, 7))] == [(3, 3), (1, 1)]
    assert total_stride(model, 7, 7)[0] == {"h": 2, "w": 2}
    both = Branches()
    both.two = nn.Sequential(model, nn.Upsample(scale_factor=7))  # one sample, before the other's two
    assert total_stride(both, 7, 7)[0] == {"h": 6, "w": 6}


def test_of_the_strides_before_a_map_the_one_that_explains_its_size_counts():
    """Ten pixels become, padded, four samples of a lattice of 4: 2.5 pixels each, nearer to 4 than to 1."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, 4, padding=2), nn.Conv2d(4, 4, 1, 2))
    assert total_stride(model, 10, 10) == ({"h": 8, "w": 8}, "")


def test_the_total_stride_of_videos():
    model = nn.Sequential(nn.Conv3d(3, 4, 3, (1, 2, 2), 1), nn.MaxPool3d(2))
    assert total_stride(model, 8, 16, 16)[0] == {"t": 2, "h": 4, "w": 4}


# Predictions and labels -----------------------------------------------------------------------------------


def test_predictions_are_the_network_s_own():
    model, x = seeded(Comb), pixels(6, 3, 16, 16)
    table = measure_stability(model, x, batch_size=4, progress=False)
    with torch.no_grad():
        p = model(x).softmax(-1)
        others = [model(x.roll(way, axis)).argmax(-1) for axis in (2, 3) for way in (-1, 1)]
    best = p.sort(-1, descending=True).values
    np.testing.assert_allclose(table["margin"], (best[:, 0] - best[:, 1]).numpy(), rtol=1e-9)
    with torch.no_grad():
        two = model(x).topk(2).values
    np.testing.assert_allclose(table["logit_margin"], (two[:, 0] - two[:, 1]).numpy(), rtol=1e-6)
    assert table["prediction"].tolist() == p.argmax(-1).tolist()
    assert table["n_changed"].tolist() == sum((o != p.argmax(-1)).int() for o in others).tolist()
    assert table["label"].isna().all()
    assert table["correct"].isna().all()


def test_batches_change_nothing_and_the_model_is_as_it_was():
    model, x = seeded(Comb).train(), pixels(7, 3, 16, 16)
    a, b = (measure_stability(model, x, batch_size=n, progress=False) for n in (2, 7))
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)
    assert model.training


def test_scores_are_taken_where_the_user_says():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = seeded(Comb)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.inner(x)}

    model, x = Named(), pixels(4, 3, 16, 16)
    a = measure_stability(model, x, logits=lambda out: out["scores"], progress=False)
    b = measure_stability(model.inner, x, progress=False)
    pd.testing.assert_frame_equal(a.drop(columns="model"), b.drop(columns="model"))
    with pytest.raises(SpectralError, match="logits="):
        measure_stability(model, x, progress=False)


def test_signals_are_shifted_along_time():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(2, 6, 5, 2), nn.ReLU())
    model = nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    table = measure_stability(model.double(), pixels(4, 2, 33), progress=False)
    assert (table["n_shifts"] == 2).all()
    assert (table["total_stride"] == "2").all()


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_electrodes_are_no_rows_of_an_image(turned):
    """As networks of EEG have them: signals become gray images, of which only time is slid over."""

    def turn(rows: int, columns: int) -> tuple[int, int]:
        return (columns, rows) if turned else (rows, columns)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 6)), Turned() if turned else nn.Identity(),
        nn.Conv2d(1, 4, turn(1, 9)), nn.Conv2d(4, 4, turn(6, 1)), nn.AvgPool2d(turn(1, 4)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    signals = pixels(4, 6, 64)
    table = measure_stability(model, signals, progress=False)
    assert (table["n_shifts"] == 2).all()
    assert (table["total_stride"] == "4").all()
    expected = spectral.compute_sis(model, signals, axes=(2,))
    np.testing.assert_allclose(table["sis"], expected, rtol=1e-6)


def test_time_between_other_axes_has_the_total_stride():
    """Signals as volumes of two hemispheres, time and three electrodes each."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3)), Turned(), nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 4, (1, 9, 1)),
        nn.AvgPool3d((1, 4, 1)), nn.ReLU(), nn.AvgPool3d((1, 2, 1)), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    signals = pixels(2, 6, 64)
    table = measure_stability(model, signals, progress=False)
    assert (table["n_shifts"] == 2).all()
    assert (table["total_stride"] == "8").all()


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 2.5}])
def test_bad_arguments_are_one_sentence(bad):
    with pytest.raises(SpectralError, match="measure_stability: batch_size"):
        measure_stability(seeded(Comb), pixels(2, 3, 16, 16), progress=False, **bad)


# Summaries ------------------------------------------------------------------------------------------------


def test_a_summary_is_of_clusters_and_tells_who_carries_it():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=60)
    table = measure_stability(seeded(Comb), pixels(60, 3, 8, 8), comb=False, progress=False)
    table = table.assign(sis=values, cluster=[f"{i // 3}" for i in range(60)])
    row = summarize_stability(table).set_index("metric").loc["sis"]
    means = values.reshape(20, 3).mean(1)
    assert row["n"] == 60
    assert row["n_clusters"] == 20
    assert row["mean"] == pytest.approx(means.mean())
    assert row["median"] == pytest.approx(np.median(means))
    assert row["top_tenth"] == pytest.approx(np.sort(means)[-2:].sum() / means.sum())
    confidence = table["confidence"].to_numpy().reshape(20, 3).mean(1)
    expected = pd.Series(means).corr(pd.Series(confidence), method="spearman")
    assert row["confidence_rho"] == pytest.approx(expected)
    assert row["confidence_rho_ci_low"] < expected < row["confidence_rho_ci_high"]


@QUICK
@example(values=[5e-324])
@given(values=st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
def test_the_top_tenth_has_a_tenth_or_more(values):
    found = stats.summarize(values).top_tenth
    if sum(values) == 0:
        assert math.isnan(found)
    else:
        assert 0.1 - 1e-9 <= found <= 1 + 1e-9
        whole = sorted(values * 10)[-len(values) :]  # ten of each: a tenth are as many as there were
        assert found == pytest.approx(sum(whole) / sum(values * 10), rel=1e-6)


def test_shares_of_what_may_be_negative_are_none():
    assert math.isnan(stats.summarize([1.0, -1.0, 3.0]).top_tenth)


def test_the_summary_of_measurements_has_medians_and_the_top_tenth():
    table = spectral.measure(seeded(Comb), pixels(10, 3, 16, 16), ("sis",), progress=False)
    row = spectral.summarize_measurements(table).set_index("metric").loc["sis"]
    values = table[table["metric"] == "sis"]["value"]
    assert row["median"] == pytest.approx(values.median())
    assert row["top_tenth"] == pytest.approx(values.max() / values.sum())


def test_a_summary_refuses_other_tables():
    with pytest.raises(SpectralError, match=r"expected a table from spectral\.measure_stability"):
        summarize_stability(pd.DataFrame({"model": ["a"]}))


@pytest.mark.parametrize(
    "column",
    ["image", "total_stride", "confidence", "n_changed", "sis_circular_reason", "comb_contrast_reason"],
)
def test_a_summary_names_the_column_that_a_table_lacks(column):
    table = measure_stability(seeded(Comb), pixels(3, 3, 16, 16), comb=False, circular=False, progress=False)
    with pytest.raises(SpectralError, match=rf"got one without the column '{column}'"):
        summarize_stability(table.drop(columns=column))


SUMMARIES = {
    spectral.measure_stability: spectral.summarize_stability,
    spectral.measure_instability_budget: spectral.summarize_instability_budget,
    spectral.measure_equivariance: summarize_equivariance,
    spectral.attribute_instability: summarize_attribution,
}
MANY = [spectral.measure_stability, spectral.measure_instability_budget]  # whose summaries take many models


@pytest.fixture(scope="module", params=SUMMARIES, ids=lambda function: function.__name__)
def of_two(request) -> tuple[Any, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """An analysis and its tables of two networks of one class, and of the second under a name of its own."""
    nets = [seeded(Small, seed=seed) for seed in (0, 1)]
    x = pixels(3, 3, 8, 8)
    tables = [request.param(net, x, progress=False) for net in nets]
    return request.param, *tables, request.param(nets[1], x, progress=False, name="second")


def test_two_networks_of_one_name_are_never_averaged(of_two):
    measure, first, second, named = of_two
    summarize = SUMMARIES[measure]
    with pytest.raises(SpectralError, match=r"the table has image '0000' twice for model 'Small'"):
        summarize(pd.concat([first, second]))
    assert set(named["model"]) == {"second"}
    both = pd.concat([first, named])
    if measure not in MANY:
        with pytest.raises(SpectralError, match=r"expected a table of one model, got 'Small' and 'second'"):
            summarize(both)
        return
    found = summarize(both)
    for name, own in (("Small", first), ("second", named)):
        expected = summarize(own)
        pd.testing.assert_frame_equal(
            found[found["model"] == name].reset_index(drop=True)[["metric", "n", "reason"]],
            expected[["metric", "n", "reason"]],
        )


def test_a_summary_is_the_same_of_a_table_from_a_file(of_two, tmp_path):
    measure, table, *_ = of_two
    table.to_csv(tmp_path / "table.csv", index=False)
    found = SUMMARIES[measure](pd.read_csv(tmp_path / "table.csv"))
    expected = SUMMARIES[measure](table)
    told = [c for c in found if not (measure is spectral.measure_instability_budget and c == "agreement")]
    pd.testing.assert_frame_equal(found[told], expected[told], check_dtype=False)


# Circular borders -----------------------------------------------------------------------------------------


class Zeros(nn.Module):
    """Strided and unstrided convolutions, a padded pool: zeros at every border, or the other side."""

    def __init__(self, mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 1, 1, padding_mode=mode).double()
        self.second = nn.Conv2d(6, 8, 3, 2, 1, padding_mode=mode).double()
        self.head = nn.Linear(8, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3))) * 30


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_sis_with_circular_borders_is_that_of_the_network_that_pads_so(size):
    model, closed, x = seeded(Zeros), seeded(Zeros, "circular"), pixels(7, 3, *size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = measure_stability(model, x, comb=False, batch_size=3, progress=False)
    np.testing.assert_allclose(table["sis_circular"], shifted_sis(closed, x, 1), rtol=1e-6)
    np.testing.assert_allclose(table["sis"], shifted_sis(model, x, 1), rtol=1e-9)
    assert (table["sis_circular"] < table["sis"]).any()
    assert (table["sis_circular_reason"] == "").all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    summary = summarize_stability(table).set_index("metric")
    assert summary.loc["sis_circular", "mean"] == pytest.approx(table["sis_circular"].mean())
    assert 0 < summary.loc["sis_circular", "top_tenth"] <= 1


def test_a_network_without_borders_has_one_sis():
    table = measure_stability(seeded(Comb), pixels(5, 3, 16, 16), comb=False, progress=False)
    np.testing.assert_allclose(table["sis_circular"], table["sis"], rtol=1e-9)


def test_sis_without_decimation_and_with_circular_borders_is_nothing():
    torch.manual_seed(0)
    model = pooled(nn.Conv2d(3, 8, 5, 1, 2, padding_mode="zeros")).double()
    table = measure_stability(model, 10 * pixels(5, 3, 12, 12), comb=False, progress=False)
    assert table["sis_circular"].max() < 1e-12 < table["sis"].min()


def test_circular_borders_that_are_not_asked_for_have_the_reason():
    table = measure_stability(seeded(Zeros), pixels(4, 3, 16, 16), comb=False, circular=False, progress=False)
    assert table["sis_circular"].isna().all()
    row = summarize_stability(table).set_index("metric").loc["sis_circular"]
    assert (row["n"], row["reason"]) == (0, "circular=False")


@pytest.mark.parametrize("changed", [0, 4])
def test_shifts_that_change_no_prediction_or_each_have_a_share_s_interval(changed):
    """Eight images without a change don't say that there is none: Wilson's interval of 0 and of 8 of 8."""
    names = [str(i) for i in range(8)]
    table = pd.DataFrame({"model": "net", "image": names, "cluster": names, "total_stride": "4x4"})
    table = table.assign(sis=0.1, sis_circular=0.0, logit_jitter=0.0, comb_contrast=0.0, n_shifts=4)
    table = table.assign(n_changed=changed, confidence=[0.5 + 0.01 * i for i in range(8)])
    row = spectral.summarize_stability(table).set_index("metric").loc["changed"]
    wilson = 1.959964**2 / (8 + 1.959964**2)
    expected = (0, wilson) if changed == 0 else (1 - wilson, 1)
    np.testing.assert_allclose((row["ci_low"], row["ci_high"]), expected, atol=1e-6)


def test_of_equal_scores_every_analysis_takes_the_first():
    """A network that has nothing to say doesn't change its mind."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    images = torch.rand(16, 3, 16, 16)
    table = measure_stability(net, images, progress=False)
    assert set(table["prediction"]) == {0}
    assert table["n_changed"].sum() == 0
    found = spectral.measure_predictions(net, images, [], preprocessing="none", progress=False)
    assert set(found["prediction"]) == {0}
    best = spectral.classify(net, Image.new("RGB", (16, 16)), top_k=3, preprocessing="none")
    assert [one["label"] for one in best] == ["LABEL_0", "LABEL_1", "LABEL_2"]
