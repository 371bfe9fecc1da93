"""``spectral compare``: like sites on the same images, paired tests, what is printed and written."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from click.testing import CliRunner, Result
from figure_tables import make_tables
from torch import Tensor, nn

import spectral
from spectral import cli
from spectral.analysis import compare_models, weigh_models
from spectral.cli.comparison import format_comparison
from spectral.errors import SpectralError
from spectral.figures import FIGURES
from spectral.models import load_model, model_info
from spectral.table.schema import with_bounds

A, B = "bundled/resnet8@random", "bundled/resnet8-blurpool@random"
NAMES = ("cat", "dog", "frog", "ship")
LOSSLESS = f"{A}+space-to-depth"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


def quick(*arguments: object) -> Result:
    return run(*arguments, "--images", "synthetic", "--limit", "6")


def fails(result: Result) -> str:
    """The one sentence that a bad argument ends with."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return error


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Three models compared, and the folder."""
    out = tmp_path_factory.mktemp("compare")
    names = (A, B, "bundled/nula-w8@random")
    return quick(*names, "--metrics", "avr,am,sis", "--batch-size", "4", "--out", out), out


def read(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "compare.csv", keep_default_na=True)


# What is written ------------------------------------------------------------------------------------------


def test_the_folder_has_table_figure_and_measurements(written):
    result, out = written
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.json", "compare.png", "compare.pdf", "measurements"
    }  # fmt: skip
    assert len(list((out / "measurements").iterdir())) == 3


def test_each_row_is_a_paired_comparison_of_the_same_images(written):
    """Against scipy, from measurements of each model by itself."""
    _, out = written
    table = read(out)
    images = spectral.load_images("synthetic", size=32, limit=6)
    own = {
        name: spectral.measure(
            load_model(name), images, ("avr", "am", "sis"), taps=("input", "dense", "signal"), progress=False
        ).set_index(["site", "tap", "metric"])["value"]
        for name in (A, B)
    }
    rows = table[(table["model_b"] == B) & table["difference"].notna()]
    assert len(rows) == 4 * 5 + 1  # AVR at three taps, AM at two
    for row in rows.fillna({"site_a": "", "site_b": "", "tap": ""}).to_dict("records"):
        a, b = (own[row[f"model_{s}"]].loc[(row[f"site_{s}"], row["tap"], row["metric"])] for s in "ab")
        a, b = np.asarray(a), np.asarray(b)
        assert (row["mean_a"], row["mean_b"]) == pytest.approx((a.mean(), b.mean()), rel=1e-4)
        test = scipy.stats.ttest_rel(b, a)
        interval = test.confidence_interval()
        assert row["difference"] == pytest.approx((b - a).mean(), rel=1e-3)
        width = interval.high - interval.low  # Student's, on each side or farther out
        assert row["difference_ci_low"] <= interval.low + 1e-2 * width
        assert row["difference_ci_high"] >= interval.high - 1e-2 * width
        assert (row["difference_ci_low"] > 0 or row["difference_ci_high"] < 0) == (row["p"] < 0.05)
        if (a == b).all():  # both shortcuts see the same map
            assert (row["t"], row["p"], row["effect_size"]) == (0, 1, 0)
        else:
            assert row["t"] == pytest.approx(test.statistic, rel=1e-2)
            assert row["p"] >= test.pvalue * 0.99
            assert row["effect_size"] == pytest.approx((b - a).mean() / (b - a).std(ddof=1), rel=1e-2)
        assert (row["n"], row["n_clusters"], row["df"]) == (6, 6, 5)


def test_p_is_corrected_over_everything_that_the_table_shows(written):
    _, out = written
    table = read(out).dropna(subset=["p"])
    raw = table[["p", "wilcoxon_p"]].to_numpy().ravel()
    adjusted = table[["p_holm", "wilcoxon_p_holm"]].to_numpy().ravel()
    steps = np.maximum.accumulate(np.sort(raw) * np.arange(len(raw), 0, -1))
    assert np.sort(adjusted) == pytest.approx(np.minimum(steps, 1), rel=1e-6)
    stars = table["significance"].fillna("").str.len()
    assert ((table["p_holm"] < 0.05) == (stars >= 1)).all()
    assert ((table["p_holm"] < 0.001) == (stars == 3)).all()


def test_metrics_by_default_are_free_of_scale_and_the_power_ratio_is_in_decibels(tmp_path):
    """A network whose maps are ten times as large is the same to all of them."""
    result = quick(A, f"{A}+flc", "--taps", "dense", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    table = read(tmp_path).dropna(subset=["layer"])
    assert set(table["metric"]) == {
        "avr", "avr_separable", "avr_separable_exclude_dc", "am_relative", "alias_power_db",
        "alias_power_db_channel_median", "alias_power_db_channel_p90",
    }  # fmt: skip
    assert (table[table["tap"] == "signal"]["metric"].str.contains("channel")).all()
    assert set(table["pairing"]) == {"same site of a network and its converted twin"}
    decibels = table[table["metric"] == "alias_power_db"]
    assert (decibels["mean_b"] == -100).all()  # what FLC leaves is rounding, and no −∞
    images = spectral.load_images("synthetic", size=32, limit=6)
    own = spectral.measure(load_model(A), images, ("alias_power_ratio",), progress=False)
    first = own[(own["site"] == decibels["site_a"].iloc[0]) & (own["metric"] == "alias_power_ratio")]
    assert decibels["mean_a"].iloc[0] == pytest.approx(10 * np.log10(first["value"]).mean(), rel=1e-6)
    model = load_model(A)
    louder = copy.deepcopy(model)
    for module in (louder.layer2[0].conv1, louder.layer2[0].shortcut[0]):
        module.weight.data *= 10
    found = compare_models({"a": model, "b": louder}, {"a": images, "b": images}, progress=False)
    at_site = found[found["site_a"] == "layer2.0.conv1"]
    assert np.abs(at_site["difference"].astype(float)).max() < 1e-4


def test_sites_are_in_order_and_named_after_the_reference(written):
    _, out = written
    table = read(out)
    block = table[(table["model_b"] == B) & (table["metric"] == "am") & (table["tap"] == "dense")]
    sites = [site.name for site in spectral.find_sites(load_model(A), 32)]
    assert block["layer"].tolist() == block["site_a"].tolist() == sites
    assert block["site_b"].tolist() == [site.name for site in spectral.find_sites(load_model(B), 32)]
    assert set(block["op_a"]) == {"conv"}
    assert set(block["op_b"]) == {"blur_pool"}
    metrics = table[table["model_b"] == B].dropna(subset=["layer"])[["metric", "tap"]].drop_duplicates()
    assert metrics.values.tolist() == [
        ["avr", "input"], ["avr", "dense"], ["avr", "signal"], ["am", "dense"], ["am", "signal"],
    ]  # fmt: skip


def test_agreement_is_the_share_of_equal_predictions(written):
    _, out = written
    table = read(out)
    images = spectral.load_images("synthetic", size=32, limit=6)
    batch = torch.stack([images[i] for i in range(6)])
    found = {}
    for name in (A, B):
        model = load_model(name)
        with torch.no_grad():
            found[name] = model(model_info(model).preprocessing(batch)).argmax(1)
    (row,) = table[(table["model_b"] == B) & (table["metric"] == "agreement")].to_dict("records")
    assert row["mean_b"] == pytest.approx((found[A] == found[B]).float().mean().item())
    assert np.isnan(row["mean_a"])


def test_the_same_command_continues_and_prints_the_same(written):
    result, out = written
    names = (A, B, "bundled/nula-w8@random")
    again = quick(*names, "--metrics", "avr,am,sis", "--batch-size", "2", "--out", out)
    assert again.exit_code == 0
    assert again.stdout == result.stdout


def test_the_table_of_other_models_or_another_reference_is_not_overwritten(written):
    _, out = written
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for names, key in (((A, B), "models"), ((B, A, "bundled/nula-w8@random"), "reference")):
        refused = fails(quick(*names, "--metrics", "avr,am,sis", "--out", out))
        assert f"compare.csv is of {key} = " in refused
        assert refused.endswith("choose another --out or delete it")
    (out / "measurements").rename(out.with_name("away"))  # which would refuse all of these too
    for option, key in ((("--metrics", "avr,sis"), "metrics"), (("--seed", "1"), "seed")):
        options = ("--metrics", "avr,am,sis", *option) if key == "seed" else option
        refused = fails(quick(A, B, "bundled/nula-w8@random", *options, "--out", out))
        assert f"compare.csv is of {key} = " in refused
    out.with_name("away").rename(out / "measurements")
    refused = fails(quick(A, B, "--out", out, "--json", out / "compare.json"))
    assert "compare.json says what the files beside it are, which would be lost; choose another" in refused
    (out / "compare.json").unlink()
    assert "stands there without compare.json" in fails(quick(A, B, "--metrics", "avr,am,sis", "--out", out))
    (out / "compare.json").write_bytes(before["compare.json"])
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


# What is printed ------------------------------------------------------------------------------------------


def test_says_first_what_is_compared_then_a_block_per_model(written):
    result, out = written
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"comparing {A} at 32×32, {B} at 32×32, bundled/nula-w8@random at 32×32 on 6 images of synthetic; "
        f"the reference is {A}"
    )
    assert lines[2:4] == [
        f"a: {A}, b: {B}",
        "means and difference b − a, each ± half its 95 % interval, or (both ends) of a lopsided one",
    ]
    assert sum(line.startswith(f"a: {A}, b: ") for line in lines) == 2
    assert sum(line.startswith("whole model: sis a ") for line in lines) == 2
    assert sum(line.startswith("same class for ") for line in lines) == 2
    assert lines[-1] == f"written to {out}"
    assert max(map(len, lines[1:-1])) <= 120
    header = lines.index("am, dense tap; n = 6 images of 6 clusters (photographs)") + 1
    assert re.split(r"\s{2,}", lines[header]) == [
        "site of a", "site of b", "a", "b", "difference", "p (Holm)", "effect d_z",
    ]  # fmt: skip
    row = read(out).query(f"model_b == '{B}' and metric == 'am'").iloc[0]
    cells = re.split(r"\s{2,}", lines[header + 1])
    assert cells[:2] == [row["site_a"], row["site_b"]]
    assert float(cells[2].split()[0]) == pytest.approx(row["mean_a"], rel=0.05)
    assert float(cells[4].split()[0]) == pytest.approx(row["difference"], rel=0.05)
    assert cells[6] == f"{row['effect_size']:.2f}"
    assert (
        "paired, same resolution (that of the image) and order (1st there): layer2.0.conv1 with layer2.0.pool"
        in lines
    )


def test_help_has_an_example_that_names_models_and_options_that_exist():
    result = run("--help")
    assert result.exit_code == 0
    assert "Example:\n    spectral compare bundled/resnet20 bundled/resnet20-blurpool" in result.output
    (example,) = re.findall(r"spectral compare (bundled.*)", result.output)
    assert example.split()[-2] == "--limit"


# Units, sizes, sites that can't be compared ------------------------------------------------------------


def test_crops_of_one_photograph_are_one_unit():
    images = spectral.load_images("samples", size=32, limit=70)
    models = {name: load_model(name) for name in (A, B)}
    table = compare_models(models, dict.fromkeys(models, images), ("avr",), ("dense",), progress=False)
    clusters = pd.Series(images.clusters, index=images.ids)
    row = table[table["metric"] == "avr"].iloc[0]
    assert (row["n"], row["n_clusters"]) == (70, clusters.nunique())
    assert row["n_clusters"] < 70
    values = {
        name: spectral.measure(model, images, ("avr",), taps=("dense",), progress=False).query(
            f"metric == 'avr' and site == '{site}'"
        ).set_index("image")["value"]
        for (name, model), site in zip(models.items(), (row["site_a"], row["site_b"]), strict=True)
    }  # fmt: skip
    between = (values[B] - values[A]).groupby(clusters).mean()
    found = spectral.stats.estimate_mean(between.to_numpy())
    wilcoxon = scipy.stats.wilcoxon(between, method="exact" if len(between) <= 50 else "auto").pvalue
    assert (row["t"], row["p"], row["difference"]) == pytest.approx((found.t, found.p, between.mean()))
    assert row["t"] == pytest.approx(scipy.stats.ttest_1samp(between, 0).statistic)
    assert row["wilcoxon_p"] == pytest.approx(wilcoxon)
    assert row["effect_size"] == pytest.approx(between.mean() / between.std())
    assert row["difference"] == pytest.approx(row["mean_b"] - row["mean_a"])
    assert f"n = 70 images of {row['n_clusters']} clusters" in format_comparison(table)


class Recorder(nn.Module):
    """A strided network that keeps what it is given."""

    def __init__(self, size: int, stride: int = 2, classes: int = 10, silent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seen: list[Tensor] = []
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride, 1), nn.ReLU(), nn.Conv2d(4, classes, 1, 2))
        if silent:
            self.body[0].bias.data.fill_(-100)
            self.body[2].bias.data.zero_()
        info = model_info(load_model(A))
        scale = dataclasses.replace(info.preprocessing, size=(size, size))
        self.spectral_info = dataclasses.replace(
            info, name=f"own-{size}", preprocessing=scale, num_classes=classes, weights_id=""
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            self.seen.append(x)
        return self.body(x).mean((2, 3))


@pytest.fixture
def use_models(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(**models: nn.Module) -> None:
        def load(name: str, *, input_size: tuple[int, int] | None = None, **options: object) -> nn.Module:
            model = models[name].eval()
            info = model.spectral_info
            scale = dataclasses.replace(info.preprocessing, size=input_size or info.preprocessing.size)
            model.spectral_info = dataclasses.replace(info, preprocessing=scale)
            return model

        monkeypatch.setattr(spectral, "load_model", load)

    return use


def test_each_model_sees_the_same_pictures_at_its_own_size(use_models):
    small, large = Recorder(16), Recorder(24)
    use_models(small=small, large=large)
    result = quick("small", "large", "--metrics", "avr")
    assert result.exit_code == 0, result.output
    assert "small at 16×16, large at 24×24" in result.stdout
    images = spectral.load_images("synthetic", size=16, limit=6)
    for model, size in ((small, 16), (large, 24)):
        assert {tuple(x.shape[2:]) for x in model.seen} == {(size, size)}
        first = model.spectral_info.preprocessing(images.resized(size)[0][None])
        assert any(torch.equal(x[:1], first) for x in model.seen)
    assert quick("small", "large", "--metrics", "avr", "--size", "20").exit_code == 0
    assert tuple(small.seen[-1].shape[2:]) == tuple(large.seen[-1].shape[2:]) == (20, 20)


def test_silent_maps_and_other_classes_are_said_not_tested():
    images = spectral.load_images("synthetic", size=16, limit=5)
    models = {"loud": Recorder(16), "mute": Recorder(16, classes=7, silent=True)}
    table = compare_models(models, dict.fromkeys(models, images), ("avr",), ("dense",), progress=False)
    first, second = table[table["metric"] == "avr"].to_dict("records")
    assert (first["n_silent_a"], first["n_silent_b"]) == (0, 0)  # a dense map before the rectifier
    assert (second["n_silent_a"], second["n_silent_b"]) == (0, 5)
    assert second["n"] == 0
    assert np.isnan(second["p"])
    assert second["reason"] == "a test needs 2 clusters where neither map is silent"
    text = format_comparison(table)
    assert "a test needs 2 clusters" in text
    assert "same class: not compared, their classes differ in number" in text


def test_sites_without_a_counterpart_are_rows_with_the_reason():
    torch.manual_seed(0)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    one = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *tail)
    two = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), *tail)
    images = spectral.load_images("synthetic", size=32, limit=3)
    models = {"one": one, "two": two}
    table = compare_models(models, dict.fromkeys(models, images), ("avr",), ("dense",), progress=False)
    rows = table[(table["reason"] != "") & (table["site_b"] != "")].set_index("site_b")
    assert rows.loc["1", "reason"] == "no like site in one"
    assert rows.loc["2", "reason"].startswith("adaptive pool")
    assert "not compared: 1 of b (max_pool): no like site in one" in format_comparison(table)


def classifier(count: int, classes: Sequence[str] | None = None) -> nn.Module:
    """A network that says nothing of its classes but, where they are given, their names."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, count))
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *head)
    if classes:
        net.classes = classes
    return net


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (classifier(3), classifier(10), "their classes differ in number"),
        (classifier(3), classifier(3), ""),
        (classifier(4, NAMES), classifier(3), "their classes differ in number"),
        (classifier(4, NAMES), classifier(4), "only one of them names its classes"),
    ],
)
def test_how_many_classes_a_network_has_is_told_by_its_output_if_it_says_nothing(first, second, reason):
    images = spectral.load_images("synthetic", size=32, limit=3)
    models = {"first": first, "second": second}
    known = {"preprocessing": "none", "progress": False}
    (row,) = (
        compare_models(models, images, ("sis",), **known).query("metric == 'agreement'").to_dict("records")
    )
    assert row["reason"] == reason
    assert np.isnan(row["mean_b"]) == (reason != "")
    measured = {name: spectral.measure(model, images, ("sis",), **known) for name, model in models.items()}
    stability = {name: spectral.measure_stability(model, images, **known) for name, model in models.items()}
    weighed = weigh_models(models, dict.fromkeys(models, images), measured, stability).iloc[1]
    assert np.isnan(weighed["agreement"]) == (reason != "")
    assert weighed.get("agreement_reason", "") == reason


def test_models_are_paired_on_the_images_that_their_sets_share():
    small, large = torch.rand(6, 3, 16, 16), torch.rand(4, 3, 24, 24)
    models = {"small": classifier(3), "large": classifier(3)}
    found = compare_models(models, {"small": small, "large": large}, ("sis",), progress=False)
    assert found["n"].tolist() == [4, 4]


def test_sets_that_share_no_image_are_refused():
    images = {"a": spectral.load_images("synthetic", size=16, limit=3), "b": torch.rand(3, 3, 16, 16)}
    models = {"a": classifier(3), "b": classifier(3)}
    with pytest.raises(SpectralError, match=r"the sets of a and b share no image .* the same pictures"):
        compare_models(models, images, ("sis",), progress=False, preprocessing="none")


@pytest.mark.parametrize("measured", [False, True])
def test_networks_of_different_images_are_not_weighed(measured):
    first, other = (spectral.load_images("synthetic", size=16, limit=n) for n in (3, 4))
    models = {"a": classifier(3), "b": classifier(3)}
    images = {"a": first, "b": first if measured else other}
    known = {name: spectral.measure(net, other if name == "b" else first, ("sis",), preprocessing="none",
                                    progress=False) for name, net in models.items()}  # fmt: skip
    with pytest.raises(
        SpectralError, match=r"of b must be of the same pictures in the same order .* 3 and 4"
    ):
        weigh_models(models, images, known if measured else None, progress=False)


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "expected at least 2 models to compare, got 0"),
        ((A,), "expected at least 2 models to compare, got 1"),
        ((A, B, A), f"{A} is named twice"),
        ((A, "bundled/resnet2@random"), "unknown architecture 'resnet2'"),
        ((A, B, "--metrics", "avrr"), "unknown metric 'avrr'; nearest: 'avr"),
        ((A, B, "--metrics", " , "), "metrics is empty"),
        ((A, B, "--taps", "inside"), "unknown tap 'inside'"),
        ((A, B, "--limit", "1"), "Invalid value for '--limit'"),
        ((A, B, "--out", "/dev/null/x"), "can't write to /dev/null/x"),
        ((A, LOSSLESS), "space-to-depth has no downsampling site .*lossless.*--metrics sis"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_code_2(arguments, sentence):
    images = [] if "--limit" in arguments else ["--limit", "4"]
    assert re.search(sentence, fails(run(*arguments, "--images", "synthetic", *images)))


def test_no_like_sites(use_models):
    early = Recorder(16)
    early.body = nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1))
    late = Recorder(16)  # its only site is at another resolution
    late.body = nn.Sequential(nn.AdaptiveAvgPool2d(11), nn.Conv2d(3, 10, 3, 2, 1))
    use_models(early=early, late=late)
    sentence = fails(quick("early", "late", "--metrics", "avr"))
    assert sentence == (
        "Error: compare: early and late have no like sites (same resolution, same order); --metrics sis "
        "compares the whole models"
    )
    whole = quick("early", "late", "--metrics", "sis")
    assert whole.exit_code == 0, whole.output
    assert "whole model: sis a " in whole.stdout


def test_a_lossless_network_is_compared_as_a_whole():
    result = quick(A, LOSSLESS, "--metrics", "sis")
    assert result.exit_code == 0, result.output
    assert "whole model: sis a " in result.stdout
    assert "like site" not in result.stdout


def test_sites_that_fewer_images_reach_are_counted_apart():
    """The head of a block says on how many images its rows are, not the least of them as if all were."""
    row = {
        "model_a": "a",
        "model_b": "b",
        "site_a": "s",
        "site_b": "s",
        "op_a": "conv",
        "op_b": "conv",
        "pairing": "same",
        "tap": "dense",
        "metric": "avr",
        "reason": "",
        "n_clusters": 5,
        "p_holm": 1.0,
        "significance": "",
        "effect_size": 0.1,
        **dict.fromkeys(with_bounds("mean_a", "mean_b", "difference"), 0.1),
    }
    some = {"n": 0, "n_clusters": None, "reason": "no image reached both sites"}
    rows = [{**row, "layer": "x", "n": 6}, {**row, "layer": "y", "n": 9}, {**row, "layer": "z", **some}]
    counts = {"n": "Int64", "n_clusters": "Int64"}
    said = format_comparison(pd.DataFrame(rows).astype(counts))
    assert "avr, dense tap; n = 6 to 9 images of 5 clusters (photographs)" in said
    said = format_comparison(pd.DataFrame(rows[2:]).astype(counts))
    assert "n = 0 images of 0 clusters" in said


# The figure -----------------------------------------------------------------------------------------------


def test_the_figure_has_a_mark_per_model_site_and_panel():
    table = make_tables()["compare"]
    fig = FIGURES["compare"].plot({"compare": table})
    reference = "#0072b2"
    at_sites = table.dropna(subset=["layer"]).drop_duplicates(["metric", "tap"])
    panels = [*zip(at_sites["metric"], at_sites["tap"], strict=True), ("sis", "")]
    assert len(panels) == 4
    for ax, (metric, tap) in zip(fig.axes, panels, strict=True):
        own = table[(table["metric"] == metric) & (table["tap"].fillna("") == tap)]
        means = {
            str(line.get_markerfacecolor()).lower(): [] for line in ax.lines if line.get_marker() != "None"
        }
        for line in ax.lines:
            if line.get_marker() != "None":
                means[str(line.get_markerfacecolor()).lower()].append(line.get_xdata()[0])
        layers = own.drop_duplicates("layer")
        assert sorted(means[reference]) == pytest.approx(sorted(layers["mean_a"]))
        others = [value for colour, values in means.items() if colour != reference for value in values]
        assert sorted(others) == pytest.approx(sorted(own["mean_b"]))
        stars = [text.get_text() for text in ax.texts]
        assert stars == ["***"] * int((own["significance"] == "***").sum())


def test_the_figure_of_whole_models_alone(tmp_path):
    assert quick(A, B, "--metrics", "sis", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "compare.png").stat().st_size > 5_000


def test_the_figure_says_in_which_unit_each_metric_is():
    table = make_tables()["compare"]
    shares = table[table["metric"] == "avr"]
    decibels = shares.assign(metric="alias_power_db", mean_a=-9.0, mean_b=-12.0)
    fig = FIGURES["compare"].plot({"compare": pd.concat([shares, decibels], ignore_index=True)})
    units = [ax.get_xlabel() for ax in fig.axes]
    assert units == ["avr\n(share), input tap", "alias_power_db\n(dB), input tap"]
