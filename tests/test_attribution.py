"""Attribution of instability to sites: networks where it is known, its statistics, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from click.testing import CliRunner, Result
from networks import ReusedPool, image, unchanged
from PIL import Image
from torch import Tensor, nn

import spectral
from spectral import cli
from spectral.analysis import summarize_attribution, summarize_equivariance
from spectral.cli.output import format_attribution
from spectral.errors import SpectralError, SpectralWarning
from spectral.measurement import TensorImages
from spectral.metrics.instability import compute_sis
from spectral.models import load_model
from spectral.stability import ALL_SITES, attribute_instability, measure_equivariance
from spectral.stats import estimate_mean

RANDOM = "bundled/resnet8@random"


class TwoBranches(nn.Module):
    """Means of every second pixel: of the image, which alias, and of its mean, which can't."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))  # its dtype is the network's
        self.guilty = nn.MaxPool2d(1, 2)
        self.innocent = nn.MaxPool2d(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.mean((2, 3), keepdim=True).expand_as(x)
        return self.gain * self.guilty(x).mean((2, 3)) + self.innocent(flat).mean((2, 3))


def attribute(model: nn.Module, images: object, **options: object) -> pd.DataFrame:
    return attribute_instability(model, images, progress=False, **options)  # type: ignore[arg-type]


def noise(*shape: int) -> Tensor:
    return image(*shape, dtype=torch.float64)


# Networks where it is known -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (6, 14), (12, 10)])
def test_the_site_that_aliases_is_blamed_for_all_of_it(size):
    """An alias-free map keeps its mean, which no shift changes: SIS becomes 0 where the stride fits."""
    x = noise(6, 3, *size)
    table = attribute(TwoBranches(), x).set_index(["site", "image"])
    original = compute_sis(TwoBranches(), x).numpy()
    assert original.min() > 1e-4
    for site in ("guilty", ALL_SITES):
        np.testing.assert_allclose(table.loc[site, "sis_original"], original, rtol=1e-9)
        np.testing.assert_allclose(table.loc[site, "delta_sis"], -original, rtol=1e-9)
        assert (table.loc[site, "prediction"] == x.mean((2, 3)).argmax(1).numpy()).all()
    np.testing.assert_allclose(table.loc["innocent", "delta_sis"], 0, atol=1e-12)
    assert table.loc["innocent", "agree"].all()
    assert not table.loc["guilty", "agree"].all()


@pytest.mark.parametrize("size", [(7, 9), (8, 13)])
def test_at_odd_sizes_most_of_it_goes(size):
    """The last sample and the first are neighbours there: the samples' mean is no longer that of all."""
    table = attribute(TwoBranches(), noise(8, 3, *size))
    means = table.groupby("site")[["sis_original", "sis"]].mean()
    assert 0 < means.loc["guilty", "sis"] < 0.2 * means.loc["guilty", "sis_original"]


def test_each_row_is_that_of_a_network_converted_by_hand():
    model = load_model(RANDOM).double()
    images = spectral.load_images("synthetic", size=32, limit=3)
    batch = model.spectral_info.preprocessing(torch.stack([images[i] for i in range(3)]).double())
    table = attribute(model, images)
    names = [site.name for site in spectral.find_sites(model, 32)]
    assert table["site"].unique().tolist() == [*names, ALL_SITES]
    assert table[table["site"] == names[0]]["image"].tolist() == images.ids
    for name in (names[1], ALL_SITES):
        own = table[table["site"] == name]
        chosen = None if name == ALL_SITES else [name]
        converted = spectral.convert(model, "ideal", chosen, placement="behind")
        np.testing.assert_allclose(own["sis"], compute_sis(converted, batch), rtol=1e-8)
        np.testing.assert_allclose(own["sis_original"], compute_sis(model, batch), rtol=1e-8)
        with torch.no_grad():
            before, after = model.eval()(batch).argmax(1), converted.eval()(batch).argmax(1)
        assert own["prediction_original"].tolist() == before.tolist()
        assert own["prediction"].tolist() == after.tolist()
        assert own["agree"].tolist() == (before == after).tolist()
    np.testing.assert_array_equal(table["delta_sis"], table["sis"] - table["sis_original"])


def test_a_layer_that_only_decimates_changes_nothing():
    table = attribute(TwoBranches(), noise(4, 3, 8, 8), method="strided")
    assert (table["delta_sis"] == 0).all()
    assert table["agree"].all()
    assert set(table["method"]) == {"strided"}


def test_a_blocks_convolution_and_its_shortcut_are_two_sites():
    table = attribute(load_model(RANDOM), image(2, 3, 32, 32))
    assert {"layer2.0.conv1", "layer2.0.shortcut.0"} < set(table["site"])


class Rerun(nn.Module):
    """One pool that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.pool(x)).mean((2, 3))


def test_calls_of_one_module_are_sites_and_by_a_layer_altered_together():
    x = noise(2, 3, 16, 16)
    table = attribute(Rerun(), x)
    assert table["site"].unique().tolist() == ["pool@0", "pool@1", ALL_SITES]
    table = attribute(Rerun(), x, method="flc")
    assert table["site"].unique().tolist() == ["pool@0, pool@1", ALL_SITES]
    single, whole = (table.loc[table["site"] == name, "sis"] for name in table["site"].unique())
    assert single.tolist() == whole.tolist()
    with pytest.raises(SpectralError, match="its module runs several times: choose 'pool@1' as well"):
        attribute(Rerun(), x, sites=["pool@0"], method="flc")


class Block(nn.Module):
    """A convolution and its shortcut, whose aliases take each other off, and a pool behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.short, self.pool = nn.MaxPool2d(1, 2), nn.MaxPool2d(1, 2), nn.MaxPool2d(1, 2)
        self.gain = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) - self.short(x) + x.mean((2, 3), keepdim=True)
        return self.gain * (y.mean((2, 3)) + self.pool(y).mean((2, 3)))


def test_a_block_and_the_last_out_bracket_a_site():
    """Either of two sites alone adds what the other no longer takes off; together they are without fault."""
    x = noise(6, 3, 8, 8)
    table = attribute(Block(), x).set_index("site")
    assert (table.loc["conv", "sis_original"] < 1e-12).all()
    assert (table.loc["conv", "block"] == "conv, short").all()
    assert (table.loc["conv", "delta_sis"] > 1e-4).all()
    assert (table.loc["conv", "delta_sis_block"].abs() < 1e-12).all()
    assert (table.loc["conv", "delta_sis_last_out"] < -1e-4).all()
    assert (table.loc["pool", "block"] == "").all()
    np.testing.assert_allclose(table.loc["pool", "delta_sis_block"], table.loc["pool", "delta_sis"])
    assert table.loc[ALL_SITES, ["delta_sis_block", "delta_sis_last_out"]].isna().all(axis=None)


def test_the_three_effects_are_those_of_networks_made_by_hand():
    model, x = load_model(RANDOM).double(), noise(3, 3, 32, 32)
    table = attribute(model, x).set_index("site")
    names = [site.name for site in spectral.find_sites(model, 32)]

    def sis(*chosen: str) -> np.ndarray:
        altered = spectral.convert(model, "ideal", list(chosen), placement="behind") if chosen else model
        return compute_sis(altered, x).numpy()

    own = table.loc["layer2.0.conv1"]
    block = sis("layer2.0.conv1", "layer2.0.shortcut.0") - sis()
    np.testing.assert_allclose(own["delta_sis_block"], block, atol=1e-12)
    others = [name for name in names if name != "layer2.0.conv1"]
    np.testing.assert_allclose(own["delta_sis_last_out"], sis(*names) - sis(*others), atol=1e-12)

    def same(*chosen: str) -> Tensor:
        altered = spectral.convert(model, "ideal", list(chosen), placement="behind")
        return altered(x).argmax(1) == model(x).argmax(1)

    assert (own["agree_block"] == same("layer2.0.conv1", "layer2.0.shortcut.0").double().numpy()).all()
    assert (own["agree_last_out"] == (same(*names) & same(*others)).double().numpy()).all()


@pytest.mark.parametrize("method", ["strided", "blurpool", "flc"])
def test_a_converted_network_can_be_attributed(method):
    converted = spectral.convert(load_model(RANDOM), method)
    table = attribute(converted, image(3, 3, 32, 32))
    if method == "flc":
        assert table.empty
        assert {record["reason"] for record in table.attrs["sites"]} == {
            "nothing folds there: it is free of aliases already"
        }
        return
    assert len(table["site"].unique()) == 5
    assert all(record["replaced"] for record in table.attrs["sites"])
    assert float(table["delta_sis"].abs().max()) > 1e-8


def test_chosen_sites_alone_are_replaced_and_listed():
    table = attribute(TwoBranches(), noise(2, 3, 8, 8), sites=["innocent"])
    assert table["site"].unique().tolist() == ["innocent", ALL_SITES]
    whole = table[table["site"] == ALL_SITES]
    np.testing.assert_allclose(whole["delta_sis"], 0, atol=1e-12)
    assert [record["name"] for record in table.attrs["sites"]] == ["innocent"]


def test_sites_that_stay_are_listed_with_the_reason():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.PixelUnshuffle(2), nn.ReLU()), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    table = attribute(net, image(2, 3, 16, 16))
    assert table["site"].unique().tolist() == ["0", ALL_SITES]
    reasons = {record["name"]: record["reason"] for record in table.attrs["sites"]}
    assert reasons["0"] is None
    assert "every sample is kept" in reasons["1.0"]


def test_a_network_with_nothing_to_alter_has_reasons_and_no_rows():
    net = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.warns(
        SpectralWarning, match=r"no site of Sequential can be altered; '0': .* every sample is"
    ):
        table = attribute(net, image(2, 3, 8, 8))
    assert table.empty
    assert all("every sample is kept" in record["reason"] for record in table.attrs["sites"])
    summary = summarize_attribution(table)
    assert (summary["n"] == 0).all()
    assert len(summary) == 1


def test_neither_batches_nor_other_images_change_an_image():
    model, x = load_model(RANDOM), image(5, 3, 32, 32)
    chosen = {"sites": ["layer2.0.conv1"]}
    whole = attribute(model, x, **chosen)
    pd.testing.assert_frame_equal(attribute(model, x, **chosen, batch_size=2), whole, rtol=1e-4, atol=1e-7)
    some = attribute(model, x[:2], **chosen)
    kept = whole[whole["image"].isin(some["image"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, kept, rtol=1e-4, atol=1e-7)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = image(2, 3, 16, 16)
    before = x.clone()
    with unchanged(net.train()):
        attribute(net, x)
    assert torch.equal(x, before)


# Labels ---------------------------------------------------------------------------------------------------


def test_labels_are_counted_where_they_are_known():
    x = noise(6, 3, 8, 8)
    images = TensorImages(x)
    images.labels = [*x.mean((2, 3)).argmax(1).tolist()[:4], None, None]
    table = attribute(TwoBranches(), images)
    guilty = table[table["site"] == "guilty"]
    assert guilty["correct"].tolist()[:4] == [1, 1, 1, 1]  # the alias-free network takes the means' largest
    assert guilty["label"].notna().sum() == 4
    assert guilty[["correct", "correct_original"]].isna().sum().tolist() == [2, 2]
    expected = (guilty["prediction_original"] == guilty["label"])[:4].astype(float)
    assert guilty["correct_original"].tolist()[:4] == expected.tolist()
    row = summarize_attribution(table).set_index("site").loc["guilty"]
    assert row["n_labelled"] == 4
    assert row["accuracy_change"] == pytest.approx(1 - expected.mean())


CLASSES = load_model("bundled/resnet20").spectral_info.classes


@pytest.mark.parametrize(
    ("names", "labels", "known"),
    [
        (CLASSES, [0, 1], [0, 1]),
        (CLASSES[::-1], [0, 1], [9, 8]),
        (["a", "b"], [0, 1], [None, None]),
        (None, [0, 9], [0, 9]),
        (None, [0, 10], [None, None]),  # an ImageNet label for a CIFAR network
    ],
)  # fmt: skip
def test_labels_count_the_networks_classes_by_name(names, labels, known):
    images = TensorImages(torch.rand(2, 3, 32, 32))
    images.labels, images.classes = labels, names
    table = attribute_instability(
        load_model("bundled/resnet20"), images, sites=["layer2.0.conv1"], progress=False
    )
    own = table[table["site"] == "layer2.0.conv1"]
    assert own["label"].astype(object).where(own["label"].notna(), None).tolist() == known


# Statistics -----------------------------------------------------------------------------------------------


def synthetic_rows(n: int = 30, sites: tuple[str, ...] = ("a", "b", "c", ALL_SITES)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frames = []
    for place, site in enumerate(sites):
        before = rng.uniform(0, 0.1, n)
        after = before + rng.normal(-0.01 * (place == 0), 0.01, n)
        agree = rng.uniform(size=n) < 0.9
        frames.append(pd.DataFrame({
            "model": "net", "site": site, "op": "conv", "method": "ideal", "block": "",
            "delta_sis_block": np.nan,
            "delta_sis_last_out": np.nan, "agree_block": 1.0, "agree_last_out": 1.0,
            "image": [f"i{k}" for k in range(n)], "cluster": [f"i{k}" for k in range(n)],
            "sis_original": before, "sis": after, "delta_sis": after - before, "agree": agree,
            "label": np.nan, "correct": np.nan, "correct_original": np.nan,
        }))  # fmt: skip
    table = pd.concat(frames, ignore_index=True)
    table.attrs["sites"] = [{"name": "d", "op": "slice", "replaced": False, "reason": "why not"}]
    return table


def test_delta_sis_has_one_estimator_and_holm_over_all_rows():
    table = synthetic_rows()
    found = summarize_attribution(table).set_index("site")
    raw = {}
    for site, own in table.groupby("site", sort=False):
        test, row = scipy.stats.ttest_rel(own["sis"], own["sis_original"]), found.loc[site]
        low, high = test.confidence_interval()
        assert (row["t"], row["n_clusters"]) == (pytest.approx(test.statistic), 30)
        assert row["p"] == pytest.approx(test.pvalue, rel=0.2)  # but for the skewness of 30 draws
        assert (row["delta_sis_ci_low"], row["delta_sis_ci_high"]) == pytest.approx((low, high), abs=2e-3)
        assert (row["delta_sis_ci_low"] > 0 or row["delta_sis_ci_high"] < 0) == (row["p"] < 0.05)
        assert row["agreement"] == pytest.approx(own["agree"].mean())
        raw[site] = row["p"]
    expected, largest = {}, 0.0
    for place, site in enumerate(sorted(raw, key=raw.get)):
        largest = max(largest, min(1.0, (4 - place) * raw[site]))
        expected[site] = largest
    assert found["p_holm"].dropna().to_dict() == pytest.approx(expected)
    assert found.loc["a", "significance"] in ("**", "***")
    assert found.loc["d", "reason"] == "why not"
    assert found.loc["d", "n"] == 0
    assert np.isnan(found.loc["d", "p_holm"])


def test_no_test_is_made_where_the_altered_network_is_another():
    table = synthetic_rows()
    own = table["site"] == "a"
    table.loc[own, "agree"] = np.arange(own.sum()) % 3 > 0
    row = summarize_attribution(table).set_index("site").loc["a"]
    kept = table[own & table["agree"].astype(bool)]["delta_sis"]
    assert np.isnan(row["p"])
    assert row["reason"] == "only 67% of the predictions stay: the altered network is another"
    assert (row["n_agreeing"], row["delta_sis_agreeing"]) == (20, pytest.approx(kept.mean()))
    assert row["delta_sis"] == pytest.approx(table[own]["delta_sis"].mean())


@pytest.mark.parametrize(
    ("effect", "where"), [("block", " in its block"), ("last_out", " with all others altered")]
)
def test_each_effect_is_tested_only_where_its_own_networks_predict_the_same(effect, where):
    table = synthetic_rows(sites=("a", "b"))
    table["delta_sis_block"], table["delta_sis_last_out"] = 2 * table["delta_sis"], -table["delta_sis"]
    table.loc[table["site"] == "a", f"agree_{effect}"] = np.arange(30) % 2
    found = summarize_attribution(table).set_index("site")
    row = found.loc["a"]
    assert row[f"{effect}_agreement"] == 0.5
    assert row["reason"] == f"only 50% of the predictions stay{where}: the altered network is another"
    assert found[["p", "block_p", "last_out_p"]].loc["a"].isna().to_dict() == {
        "p": False, "block_p": effect == "block", "last_out_p": effect == "last_out",
    }  # fmt: skip
    assert found.loc["a", "p_holm"] == pytest.approx(5 * row["p"])


def test_an_accuracy_that_stays_on_few_photographs_may_change_on_others():
    table = synthetic_rows(sites=("a",)).assign(label=0.0, correct=1.0, correct_original=1.0)
    row = summarize_attribution(table).set_index("site").loc["a"]
    assert row["accuracy_change"] == 0
    assert -0.2 < row["accuracy_change_ci_low"] < -0.05
    assert row["accuracy_change_ci_high"] == -row["accuracy_change_ci_low"]


def test_all_three_effects_are_tested_and_corrected_together():
    table = synthetic_rows(sites=("a", "b"))
    table["delta_sis_block"], table["delta_sis_last_out"] = 2 * table["delta_sis"], -table["delta_sis"]
    found = summarize_attribution(table).set_index("site")
    np.testing.assert_allclose(found["block_p"].dropna(), found["p"].dropna())
    np.testing.assert_allclose(found.loc["a", "delta_sis_block"], 2 * found.loc["a", "delta_sis"])
    assert found.loc["a", "last_out_p_holm"] == pytest.approx(6 * found.loc["a", "p"])


def test_crops_of_a_photograph_are_one_unit():
    table = synthetic_rows()
    table["cluster"] = table["image"].map({f"i{k}": f"p{k // 3}" for k in range(30)})
    row = summarize_attribution(table).set_index("site").loc["a"]
    own = table[table["site"] == "a"]
    means = own.groupby("cluster")["delta_sis"].mean()
    assert (row["n"], row["n_clusters"], row["df"]) == (30, 10, 9)
    found = estimate_mean(means.to_numpy())
    assert (row["t"], row["p"], row["delta_sis"]) == pytest.approx((found.t, found.p, means.mean()))


def test_one_unit_has_means_and_no_test():
    table = synthetic_rows(1)
    found = summarize_attribution(table).set_index("site")
    assert found.loc["a", "delta_sis"] == table["delta_sis"].iloc[0]
    assert np.isnan(found.loc["a", "p"])
    assert found.loc["a", "reason"] == "a test needs 2 clusters (photographs)"
    assert "not tested: a (conv): a test needs 2 clusters" in format_attribution(found.reset_index())


def test_equivariance_is_the_psnr_of_the_mean_error():
    x = noise(7, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).double()
    table = measure_equivariance(net, x, progress=False)
    found = summarize_equivariance(table).set_index(["site", "kind"])
    own = table[(table["site"] == "2") & (table["kind"] == "whole")]
    errors = own.groupby("image")["mse_ratio"].mean()
    row = found.loc["2", "whole"]
    assert (row["n"], row["shifts"], row["n_flat"]) == (7, 4, 0)
    assert row["psnr_db"] == pytest.approx(-10 * np.log10(errors.mean()))
    assert row["psnr_db_median"] == pytest.approx(np.median(-10 * np.log10(errors)))
    assert row["psnr_db_ci_low"] < row["psnr_db"] < row["psnr_db_ci_high"]
    crops = pd.concat([table, table[table["image"] == "0003"].assign(image="0003b")])
    again = summarize_equivariance(crops).set_index(["site", "kind"]).loc["2", "whole"]
    assert again["n"] == 8
    pd.testing.assert_series_equal(again.drop("n"), row.drop("n"))  # a photograph counts once
    assert row["relative_error"] == pytest.approx(own["relative_error"].mean())
    assert found.loc["2", "sub-pixel"]["shifts"] == 2


def test_exact_images_count_as_no_error_and_flat_ones_not_at_all():
    table = pd.DataFrame({
        "model": "net", "image": ["a", "b", "c"], "cluster": ["a", "b", "c"], "site": "s", "op": "conv",
        "stride": "2x2", "total_stride": "2x2", "kind": "whole", "row": 0.0, "column": 2.0,
        "mse_ratio": [0.0, 0.02, np.nan], "relative_error": [0.0, 0.3, np.nan],
    })  # fmt: skip
    table.attrs["sites"] = [{"name": "s", "op": "conv", "stride": "2x2", "reason": None}]
    (row,) = summarize_equivariance(table).to_dict("records")
    assert (row["n"], row["n_flat"]) == (2, 1)
    assert row["psnr_db"] == pytest.approx(20)  # of the mean error 0.01; a mean of dB would be infinite
    assert row["psnr_db_median"] == np.inf
    exact = table.assign(mse_ratio=0.0, relative_error=0.0)
    exact.attrs = table.attrs
    (row,) = summarize_equivariance(exact).to_dict("records")
    assert [row[f"psnr_db{end}"] for end in ("", "_ci_low", "_ci_high")] == [np.inf] * 3


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sites": ["guilt"]}, "TwoBranches has no site 'guilt'; nearest: 'guilty'"),
        ({"sites": "guilty"}, r"sites must be a list such as \['guilty'\]"),
        ({"method": "ideel"}, "no method is called 'ideel'; nearest: 'ideal'"),
        ({"batch_size": 0}, "attribute_instability: batch_size must be a whole number ≥ 1, got 0"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(SpectralError, match=sentence):
        attribute(TwoBranches(), noise(2, 3, 8, 8), **options)


def test_bad_images_and_models():
    with pytest.raises(
        SpectralError, match=r"attribute_instability: expected images of shape \(B, C, H, W\)"
    ):
        attribute(TwoBranches(), noise(3, 8, 8))
    with pytest.raises(SpectralError, match="there are no images"):
        attribute(TwoBranches(), noise(2, 3, 8, 8)[:0])
    with pytest.raises(SpectralError, match="Flatten has no site where resolution drops"):
        attribute(nn.Flatten(), noise(2, 3, 8, 8))
    with pytest.raises(SpectralError, match="expected a classifier"):
        attribute(ReusedPool(), image(2, 3, 64, 64))


# The command ----------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["attribute", *map(str, arguments)])


def test_the_command_prints_a_line_per_site_and_writes_both_tables(tmp_path):
    result = run(RANDOM, "--images", "synthetic", "--limit", "4", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    names = [site.name for site in spectral.find_sites(load_model(RANDOM), 32)]
    (header,) = [place for place, line in enumerate(lines) if line.startswith("site ")]
    assert lines[header].split()[:3] == ["site", "op", "ΔSIS"]
    assert "accuracy" not in lines[header]  # synthetic images have no labels
    assert [line.split()[0] for line in lines[header + 1 : header + 5]] == names
    assert lines[header + 5].startswith(ALL_SITES)
    table = pd.read_csv(tmp_path / "attribute.csv")
    assert table["site"].tolist() == [*names, ALL_SITES]
    assert f"{table['sis_original'].iloc[0]:.4g}; n = 4 images" in result.stdout
    moved = pd.read_csv(tmp_path / "equivariance.csv")
    assert moved["site"].unique().tolist() == names
    for name in ("attribute", "equivariance"):
        facts = json.loads((tmp_path / f"{name}.json").read_text())
        assert facts["weights"].startswith("random-0:")
        assert (facts["images"], facts["method"], facts["seed"]) == ("synthetic", "ideal", 0)
        assert facts["versions"]["torch"]
    for key, changed in (("method", ("--method", "flc")), ("model", ())):
        model = f"{RANDOM}+flc" if key == "model" else RANDOM
        other = run(model, "--images", "synthetic", "--limit", "4", "--out", tmp_path, *changed)
        assert other.exit_code == 2
        assert f"attribute.csv is of {key} = " in " ".join(other.stderr.split())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "attribute.csv"), table)


def test_the_command_counts_labels_and_takes_another_method(tmp_path):
    names = load_model("bundled/resnet20").spectral_info.classes
    rng = np.random.default_rng(0)
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    result = run("bundled/resnet20", "--images", tmp_path / "images", "--method", "blurpool")
    assert result.exit_code == 0, result.output
    assert "sites altered by blurpool" in result.stdout
    assert "Δaccuracy (n = 10)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bundled/resnet8-blurpool@random", "--method", "flc"], "'layer2.0.pool': it is anti-aliased"),
        ([RANDOM, "--method", "ideel"], "no method is called 'ideel'; nearest: 'ideal'"),
        (["bundled/resnet2@random"], "resnet20"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_sentence_and_code_2(arguments, sentence):
    result = run(*arguments, "--images", "synthetic", "--limit", "2")
    assert result.exit_code == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert sentence in error
    assert "Traceback" not in result.output


def test_the_help_has_a_description_and_an_example():
    result = run("--help")
    assert "Example:\n    spectral attribute bundled/resnet20" in result.output
    assert "--method" in result.output
