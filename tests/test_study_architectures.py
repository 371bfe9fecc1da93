"""The survey of architectures, the coverage of libraries and the penalty example, on small networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from click.testing import CliRunner
from figure_tables import make_tables
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from spectral.data import load_images
from spectral.errors import SpectralError
from spectral.experiments import coverage as coverage_module
from spectral.experiments import penalty as penalty_module
from spectral.experiments.coverage import select_entries, summarize_coverage, survey_coverage
from spectral.experiments.penalty import PenaltyRecipe, compare_penalty, describe_outcome, load_sample_crops
from spectral.figures import FIGURES
from spectral.figures.architectures import FLOOR, KINDS, MOST_PANELS, WEIGHTS
from spectral.measurement import measure
from spectral.models import load_model
from spectral.models.catalogue import build_untrained, list_catalogue, list_representatives
from spectral.sites import find_sites
from spectral.study import StudyOptions, run_study
from spectral.study.phase8 import MODEL_COLUMNS, SITE_COLUMNS, Survey, find_weights
from spectral.table.schema import SIGNAL_METRICS, with_bounds
from spectral.training import LabelledImages

DB = with_bounds("alias_power_db_channel_median")

SURVEY = ("bundled/resnet8@random", "bundled/resnet20-blurpool", "timm/no_such_net@random")


def options(out: Path, **changes: object) -> StudyOptions:
    given = {"models": SURVEY, "images": "synthetic", "limit": 4, "out": out, "progress": False, **changes}
    return StudyOptions(**given)  # type: ignore[arg-type]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a small survey's time."""
    monkeypatch.setattr(Survey, "draw", lambda self, *stems: None)


# Phase 8 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("survey")
    run_study([8], options(out))
    return out


def read(results: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv")


def test_survey_has_a_row_per_site_and_model_and_the_reason_of_what_failed(results):
    sites, models = read(results, "phase8_architectures"), read(results, "phase8_models")
    assert list(sites.columns) == SITE_COLUMNS
    assert list(models.columns) == MODEL_COLUMNS
    assert models["model"].tolist() == list(SURVEY)
    assert models["weights"].tolist() == ["random", "trained", "random"]
    assert models["sites"].tolist()[:2] == [4, 4]
    assert sites["measurable"].tolist()[:8] == [True] * 8
    assert "272474," in (results / "tables" / "phase8_models.csv").read_text()  # counts have no decimals
    assert sites.groupby("model").size().tolist() == [4, 4, 1]
    assert "timm has no 'no_such_net'" in models["reason"].iloc[2]
    assert sites.iloc[-1]["reason"] == models["reason"].iloc[2]
    assert sites["op"].tolist()[4:8] == ["blur_pool"] * 4
    assert sites["depth"].tolist()[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_survey_means_are_those_of_the_measurement(results):
    """Against a direct measurement, averaged here with numpy alone."""
    net = load_model(SURVEY[1])
    images = load_images("synthetic", size=224, limit=4).resized(32)
    metrics = ("avr", "am_relative", "alias_power_ratio", *SIGNAL_METRICS, "sis")
    table = measure(net, images, metrics, taps=("input", "dense", "signal"), progress=False)
    sites, models = read(results, "phase8_architectures"), read(results, "phase8_models")
    columns = {name: ("dense", name) for name in ("am_relative", "alias_power_ratio")}
    columns |= {f"avr_{tap}": (tap, "avr") for tap in ("input", "dense")}
    columns |= {name: ("signal", name) for name in SIGNAL_METRICS[:2]}
    for site in find_sites(net, 32):
        row = sites[(sites["model"] == SURVEY[1]) & (sites["site"] == site.name)].iloc[0]
        for column, (tap, metric) in columns.items():
            here = (table["site"] == site.name) & (table["tap"] == tap) & (table["metric"] == metric)
            assert row[column] == pytest.approx(table[here]["value"].mean(), rel=1e-5)
            assert row[f"{column}_ci_low"] < row[column] < row[f"{column}_ci_high"]
        assert row["alias_power_db"] == pytest.approx(10 * math.log10(row["alias_power_ratio"]))
        assert row[DB[0]] == pytest.approx(10 * math.log10(row[SIGNAL_METRICS[1]]))
        assert (row["n"], row["n_signal"], row["signal"]) == (4, 4, site.signal)
    model = models.set_index("model").loc[SURVEY[1]]
    ratios = table[(table["metric"] == "alias_power_ratio") & (table["tap"] == "dense")]
    mean = ratios.groupby("image")["value"].mean()
    assert model["alias_power_ratio"] == pytest.approx(mean.mean(), rel=1e-5)
    medians = table[(table["metric"] == SIGNAL_METRICS[1]) & (table["tap"] == "signal")]
    assert model[SIGNAL_METRICS[1]] == pytest.approx(medians["value"].mean(), rel=1e-5)
    half = 3.182446305 * mean.std() / 2  # Student's t at 3 degrees of freedom, n = 4: no skewness of so few
    assert model["alias_power_ratio_ci_high"] - model["alias_power_ratio"] == pytest.approx(half, rel=1e-4)
    assert model["sis"] == pytest.approx(table[table["metric"] == "sis"]["value"].mean(), rel=1e-5)
    assert model["parameters"] == sum(p.numel() for p in net.parameters())


def test_survey_draws_its_figures_and_tells_what_it_was_run_on(results):
    for stem in ("fig16_architectures_depth", "fig17_architectures_ranking"):
        assert (results / "figures" / f"{stem}.png").stat().st_size > 10_000
    provenance = json.loads((results / "tables" / "phase8_models.json").read_text())
    assert provenance["images"]["count"] == 4
    assert provenance["weights"][SURVEY[0]].startswith("random-0:")
    assert SURVEY[2] not in provenance["weights"]
    assert not (results / "provenance.json").exists()  # that of the study isn't this phase's to write


def test_survey_says_that_weights_are_random_and_takes_the_photograph_as_the_unit(
    tmp_path, capsys, no_figures
):
    run_study([8], options(tmp_path, models=SURVEY[:1], images="samples", limit=40))
    said = capsys.readouterr().out.splitlines()
    assert "1 of them with random weights: this is about structure, not about trained networks" in said[1]
    model = read(tmp_path, "phase8_models").iloc[0]
    assert model["n"] == 40
    assert model["n_clusters"] == len(set(load_images("samples", size=224, limit=40).clusters)) < 40


def test_survey_measures_nothing_twice_and_refuses_other_pictures(results, no_figures):
    shards = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    before = read(results, "phase8_models")
    run_study([8], options(results))
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")} == shards
    assert len(shards) == 2
    pd.testing.assert_frame_equal(read(results, "phase8_models"), before)
    with pytest.raises(SpectralError, match="measurements of a study with other images"):
        run_study([8], options(results, limit=3))


def test_survey_of_nothing_measurable_keeps_the_reasons(tmp_path):
    with pytest.raises(SpectralError, match="none of the models could be measured"):
        run_study([8], options(tmp_path, models=SURVEY[2:]))
    assert read(tmp_path, "phase8_models")["reason"].str.contains("no_such_net").all()


def test_survey_leaves_silent_maps_out_and_counts_them(tmp_path, no_figures):
    net = load_model(SURVEY[0])
    with torch.no_grad():
        net.layer2[0].conv1.weight.zero_()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.json").write_text('{"architecture": "resnet8"}')
    run_study([8], options(tmp_path, models=(str(tmp_path / "net.pt"),)))
    sites, model = read(tmp_path, "phase8_architectures"), read(tmp_path, "phase8_models").iloc[0]
    silent = sites[sites["site"] == "layer2.0.conv1"].iloc[0]
    assert (silent["n"], silent["n_silent"]) == (0, 4)
    assert math.isnan(silent["alias_power_ratio"])
    others = sites[sites["site"] != "layer2.0.conv1"]["alias_power_ratio"]
    assert model["alias_power_ratio"] == pytest.approx(others.mean(), rel=1e-5)
    assert model["weights"] == "trained"


def test_converted_networks_keep_where_their_weights_come_from():
    assert find_weights("timm/resnet18@random+flc") == "random"
    assert find_weights("timm/resnet18+flc") == "published"


# Its figures ----------------------------------------------------------------------------------------------


def plot(stem: str, tables: dict[str, pd.DataFrame]) -> Figure:
    return FIGURES[stem].plot({name: tables[name] for name in FIGURES[stem].tables})


def test_fig16_marks_are_the_tables_ratios_and_say_the_kind():
    tables = make_tables()
    fig = plot("fig16_architectures_depth", tables)
    table = tables["phase8_architectures"]
    assert [ax.get_title().splitlines()[0] for ax in fig.axes] == [
        "resnet18", "resnet18", "swin_tiny_patch4_window7_", "hiera_tiny_224", "vit_tiny_patch16_224",
        "resnet20", "away",
    ]  # fmt: skip
    assert "antialiased, random weights" in fig.axes[1].get_title()
    own = table[table["model"] == "antialiased/resnet18@random"]
    filled = [line for line in fig.axes[1].lines if line.get_markersize() == 4]
    assert [line.get_ydata()[0] for line in filled] == pytest.approx(list(own[DB[0]]))
    assert [line.get_marker() for line in filled] == [KINDS[op][1] for op in own["op"]]
    lines = [c for c in fig.axes[1].collections if isinstance(c, LineCollection)]
    ends = [tuple(line[:, 1]) for c in lines for line in c.get_segments()]
    assert ends == [pytest.approx(pair) for pair in own[DB[1:]].values]
    assert [text.get_text() for text in fig.axes[6].texts] == ["not measured"]


def test_fig16_tells_lossless_sites_from_those_without_a_dense_map():
    fig = plot("fig16_architectures_depth", make_tables())
    grey = [line for line in fig.axes[2].lines if line.get_marker() in ("s", "x")]
    assert [(line.get_marker(), line.get_xdata()[0]) for line in grey] == [("s", 0.5), ("x", 1.0)]
    said = [text.get_text() for text in fig.legends[0].get_texts()]
    assert {"lossless: nothing to measure", "no dense map"} <= set(said)


def test_fig16_keeps_what_has_no_aliases_at_all_in_the_picture():
    tables = make_tables()
    table = tables["phase8_architectures"].copy()
    table.loc[0, [*DB, "avr_dense"]] = [
        *(-math.inf,) * 3, 0.0,
    ]  # fmt: skip
    fig = plot("fig16_architectures_depth", {"phase8_architectures": table})
    low, _ = fig.axes[0].get_ylim()
    assert low >= FLOOR - 2
    assert all(np.isfinite(line.get_ydata()).all() for line in fig.axes[0].lines)
    fig.draw_without_rendering()


def test_fig16_says_when_it_shows_only_some_models():
    table = make_tables()["phase8_architectures"]
    one = table[table["model"] == "bundled/resnet20"]
    many = pd.concat([one.assign(model=f"bundled/net{i}") for i in range(MOST_PANELS + 3)])
    fig = plot("fig16_architectures_depth", {"phase8_architectures": many})
    assert len(fig.axes) == MOST_PANELS
    assert "the first 20 of 23 models" in fig.get_suptitle()
    assert fig.get_figheight() < 9


def test_fig17_ranks_trained_and_random_weights_apart():
    tables = make_tables()
    left, right = plot("fig17_architectures_ranking", tables).axes
    table = tables["phase8_models"].set_index("model")
    known = table[DB[0]].dropna().sort_values()
    random = table["weights"] == "random"
    ranked = [*known.index[~random[known.index]], *known.index[random[known.index]]]
    shown = [label.get_text() for label in left.get_yticklabels()][::-1]
    away = shown.index("timm/away")
    assert [*shown[:away], *shown[away + 1 :]] == [name.removesuffix("@random") for name in ranked]
    assert [text.get_text() for text in left.texts] == ["not measured"]
    dots = sorted(
        (line for line in left.lines if len(line.get_xdata()) == 1), key=lambda d: -d.get_ydata()[0]
    )
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(list(known[ranked]))
    assert [dot.get_marker() for dot in dots] == [WEIGHTS[kind][1] for kind in table["weights"][ranked]]
    (border,) = (line for line in left.lines if len(line.get_xdata()) == 2)
    assert border.get_ydata()[0] == random.sum() - 0.5
    assert right.get_xscale() == "log"
    sis = table["sis"][~random & (table["sis"] > 0)]
    shown_sis = [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    assert sorted(shown_sis) == pytest.approx(sorted(sis))


def test_fig17_draws_where_every_sis_is_zero():
    tables = make_tables()
    table = tables["phase8_models"].assign(sis=0.0, sis_ci_low=0.0, sis_ci_high=0.0)
    _, right = plot("fig17_architectures_ranking", {"phase8_models": table}).axes
    assert not [line for line in right.lines if len(line.get_xdata()) == 1]
    assert [text.get_text().strip() for text in right.texts] == ["0"] * int(
        (table["weights"] != "random").sum()
    )


def test_penalty_figure_shows_both_runs():
    tables = make_tables()
    left, right = plot("penalty", tables).axes
    table = tables["penalty"]
    for line, curve, run in zip(left.lines, right.lines, ("plain", "penalty"), strict=True):
        own = table[table["run"] == run]
        np.testing.assert_allclose(line.get_xydata(), own[["epoch", "am_relative"]])
        np.testing.assert_allclose(curve.get_ydata(), 100 * own["accuracy"])


# Coverage -------------------------------------------------------------------------------------------------


def test_every_module_of_timm_is_represented_by_few_small_models():
    every, chosen = list_catalogue(["timm"]), list_representatives(["timm"])
    modules = {name for name in timm.list_modules() if timm.list_models(module=name)}
    assert {entry.module for entry in chosen} == {entry.module for entry in every} == modules
    counts = pd.Series([entry.module for entry in chosen]).value_counts()
    available = pd.Series([entry.module for entry in every]).value_counts()
    assert counts.max() <= 4
    assert (counts >= np.minimum(available.loc[counts.index], 2)).all()
    assert len(set(chosen)) == len(chosen)
    assert not [entry.name for entry in chosen if "test_" in entry.name]


def test_torchvision_is_represented_by_task_and_without_quantised_models():
    modules = {entry.module for entry in list_representatives(["torchvision"])}
    assert {"resnet", "video.resnet", "segmentation.fcn", "detection.ssd"} <= modules
    assert not any("quantization" in module for module in modules)


def test_coverage_counts_the_sites_of_each_model_and_keeps_what_fails(monkeypatch):
    names = ["timm/vgg11", "timm/swin_tiny_patch4_window7_224", "antialiased/alexnet"]
    entries = select_entries(["timm", "antialiased"], names)

    def fail_for_one(name: str, device: str = "meta") -> object:
        if name.endswith("alexnet"):
            raise RuntimeError("no such op\nand more")
        return build_untrained(name, device)

    monkeypatch.setattr(coverage_module, "build_untrained", fail_for_one)
    table = survey_coverage(entries, progress=False).set_index("model")
    assert table.loc[names[0], ["sites", "measurable", "kinds"]].tolist() == [5, 5, "max_pool 5"]
    swin = table.loc[names[1]]
    assert (swin["sites"], swin["measurable"], swin["lossless"], swin["unmeasurable"]) == (4, 1, 3, 0)
    assert (swin["kinds"], swin["input_size"], swin["reasons"]) == (
        "space_to_depth 3; conv 1",
        "3x224x224",
        "",
    )
    assert table.loc[names[2], "error"] == "RuntimeError: no such op"
    assert "9 sites, 6 measurable, 3 lossless, 0 not measurable" in summarize_coverage(table.reset_index())
    assert summarize_coverage(table.reset_index()).endswith("1 failed: antialiased/alexnet")


def test_what_cannot_run_on_the_meta_device_runs_on_the_cpu():
    """torchvision's regnets compute their widths from tensors; a detector needs real boxes."""
    with pytest.raises(NotImplementedError):
        build_untrained("torchvision/regnet_y_400mf", "meta")
    names = ["torchvision/regnet_y_400mf", "torchvision/ssdlite320_mobilenet_v3_large"]
    table = survey_coverage(select_entries(["torchvision"], names), progress=False)
    assert table["error"].tolist() == ["", ""]
    assert table["input_size"].tolist() == ["3x224x224", "3x128x128"]
    assert (table["measurable"] > 5).all()


def test_coverage_sums_up_reasons_without_sizes():
    (entry,) = select_entries(["torchvision"], ["torchvision/alexnet"])
    row = coverage_module._count(find_sites(torch.nn.AdaptiveAvgPool2d(3), 8))
    assert row["reasons"] == "1 × adaptive pool: its windows are unequal"
    assert entry.module == "alexnet"


def test_coverage_script_writes_its_table_and_refuses_unknown_models(tmp_path):
    arguments = ["--models", "timm/vgg11", "--library", "timm", "--out", str(tmp_path), "--quiet"]
    run = CliRunner().invoke(coverage_module.main, arguments)
    assert run.exit_code == 0, run.output
    assert "1 model of 1 architecture modules: 5 sites" in run.output
    assert pd.read_csv(tmp_path / "tables" / "coverage.csv")["model"].tolist() == ["timm/vgg11"]
    assert "torch" in json.loads((tmp_path / "tables" / "coverage.json").read_text())["versions"]
    run = CliRunner().invoke(coverage_module.main, ["--models", "timm/vgg99", "--out", str(tmp_path)])
    assert run.exit_code == 2
    assert "unknown model 'timm/vgg99'; nearest" in run.output


# Penalty --------------------------------------------------------------------------------------------------


def noise_and_edges(n: int = 48) -> LabelledImages:
    """Two classes of images that a network can tell apart: smooth ramps and noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    ramp = torch.linspace(0, 255, 16).expand(n, 3, 16, 16)
    noise = 255 * torch.rand(n, 3, 16, 16, generator=generator)
    pixels = torch.where(labels[:, None, None, None] == 0, ramp, noise).to(torch.uint8)
    return LabelledImages(pixels, labels, ("ramp", "noise"), "made")


@pytest.fixture(scope="module")
def trained() -> pd.DataFrame:
    data = noise_and_edges()
    return compare_penalty(data, data, PenaltyRecipe(epochs=3, batch_size=16, weight=3.0), progress=False)


def test_both_runs_start_alike_and_the_penalty_lowers_the_aliases(trained):
    runs = {str(run): own.reset_index(drop=True) for run, own in trained.groupby("run")}
    assert list(trained["epoch"]) == [0, 1, 2, 3] * 2
    assert runs["plain"].loc[0, "am_relative"] == runs["penalty"].loc[0, "am_relative"]
    assert runs["plain"]["weight"].eq(0).all()
    assert runs["penalty"]["weight"].eq(3).all()
    assert runs["penalty"]["am_relative"].iloc[-1] < 0.9 * runs["plain"]["am_relative"].iloc[-1]
    assert (trained["accuracy_ci_low"] <= trained["accuracy"]).all()
    assert (trained["n"] == 48).all()


def test_the_outcome_is_worded_with_its_doubt(trained):
    said = describe_outcome(trained)
    assert said.endswith("this is one run of each")
    good = trained["run"].eq("penalty")
    apart = trained.assign(accuracy_ci_low=good * 0.7, accuracy_ci_high=0.3 + good * 0.7)
    assert "the intervals are apart" in describe_outcome(apart)
    same = pd.concat([trained[trained["run"] == "plain"].assign(run=run) for run in ("plain", "penalty")])
    assert "am_relative +0 %, accuracy +0.0 percentage points: the intervals overlap" in describe_outcome(
        same
    )


def test_both_runs_see_the_same_batches():
    """A penalty of next to no weight changes next to nothing."""
    data = noise_and_edges(32)
    table = compare_penalty(data, data, PenaltyRecipe(epochs=2, batch_size=16, weight=1e-12), progress=False)
    plain, penalty = (own.reset_index(drop=True) for _, own in table.groupby("run", sort=False))
    np.testing.assert_allclose(plain["loss"], penalty["loss"], rtol=1e-4)
    np.testing.assert_allclose(plain["am_relative"], penalty["am_relative"], rtol=1e-3)


@pytest.mark.parametrize("batch", [5, 500])
def test_the_measured_aliases_are_those_of_measure(batch, monkeypatch):
    monkeypatch.setattr(penalty_module, "EVALUATION_BATCH", batch)
    net = load_model("bundled/resnet20")
    data = noise_and_edges(12)
    found = penalty_module._evaluate(net, find_sites(net, 16), data, torch.device("cpu"))
    table = measure(net, data.images.float() / 127.5 - 1, ("am_relative",), progress=False)
    expected = table[table["metric"] == "am_relative"]["value"].mean()
    assert found["am_relative"] == pytest.approx(expected, rel=1e-4)


def test_crops_of_few_photographs_tell_no_more_of_accuracy_than_these():
    """The classes are two photographs: as many crops as one likes are two of them."""
    net, data = load_model("bundled/resnet20"), noise_and_edges(12)
    crops = replace(data, clusters=("ramp", "noise") * 6)
    alone, cut = (
        penalty_module._evaluate(net, find_sites(net, 16), own, torch.device("cpu")) for own in (data, crops)
    )
    assert (alone["n_clusters"], cut["n_clusters"]) == (12, 2)
    assert cut["accuracy"] == alone["accuracy"]
    widths = [own["accuracy_ci_high"] - own["accuracy_ci_low"] for own in (alone, cut)]
    assert widths[1] > 1.3 * widths[0]
    with pytest.raises(SpectralError, match="a cluster for each image, got 12 images and 1 clusters"):
        replace(data, clusters=("one",))


def test_crops_of_the_samples_are_split_within_each_photograph():
    train_set, test_set = load_sample_crops(crops=8)
    assert test_set.clusters == tuple(test_set.classes[i] for i in test_set.labels)
    assert train_set.classes == test_set.classes
    assert len(train_set.classes) == 10
    for data, each in ((train_set, 6), (test_set, 2)):
        assert data.images.dtype == torch.uint8
        assert data.labels.bincount().tolist() == [each] * 10
    apart = {image.numpy().tobytes() for image in train_set.images}
    assert not apart & {image.numpy().tobytes() for image in test_set.images}


def test_penalty_script_trains_on_a_folder(tmp_path):
    from PIL import Image

    data = noise_and_edges(16)
    for split in ("train", "test"):
        for index, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
            folder = tmp_path / "data" / split / data.classes[int(label)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    arguments = ["--data", tmp_path / "data", "--epochs", 1, "--batch-size", 8, "--out", tmp_path, "--quiet"]
    run = CliRunner().invoke(penalty_module.main, list(map(str, arguments)))
    assert run.exit_code == 0, run.output
    table = pd.read_csv(tmp_path / "tables" / "penalty.csv")
    assert table["run"].tolist() == ["plain", "plain", "penalty", "penalty"]
    assert (tmp_path / "figures" / "penalty.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "tables" / "penalty.json").read_text())["recipe"]["epochs"] == 1
