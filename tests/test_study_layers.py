"""Phase 7: one network with every layer, what its rows say, and the checkpoints that are tuned for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from figure_tables import make_tables
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from PIL import Image

import spectral
from spectral import cli, figures
from spectral.errors import SpectralError
from spectral.experiments import tuning
from spectral.figures import FIGURES, draw_figure
from spectral.figures.layers import find_front
from spectral.models import load, load_model, model_info
from spectral.models.checkpoint import save_checkpoint
from spectral.stability import measure_consistency
from spectral.study import StudyOptions, networks, phase7, run_study
from spectral.table.schema import SIGNAL_METRICS, to_decibels
from spectral.training import Recipe
from spectral.training.checkpoints import load_labelled_sets

METHODS = ("strided", "blurpool", "lps", "space-to-depth")
TUNED = ("blurpool", "space-to-depth")
QUICK = Recipe(epochs=1, max_lr=0.01, batch_size=8, precision="fp32")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_data(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Path]:
    """A folder of checkpoints in the place of the bundled ones: a network, and two tuned from it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    facts = {"architecture": "resnet8", "family": "strided", "classes": CLASSES, "test_accuracy": 0.85,
             "test_images": 200, "data_id": "tiny"}  # fmt: skip
    save_checkpoint(load_model("bundled/resnet8@random"), folder / "resnet20.safetensors", facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "CHECKPOINT_FOLDERS", (folder,))
        patch.setattr(phase7, "LAYER_METHODS", METHODS)
        patch.setattr(phase7, "LATENCY_ROUNDS", 2)
        patch.setattr(figures, "draw_figure", partial(draw_figure, dpi=30))  # writing takes most of the time
        tuning.tune_layers("bundled/resnet20", TUNED, load_labelled_sets(str(data)), folder, QUICK)
        yield folder


def options(out: Path, **changes: object) -> StudyOptions:
    given = {"images": "synthetic", "limit": 6, "out": out, "progress": False, **changes}
    return StudyOptions(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run_study([7], options(out))
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures away, which take most of a small run."""
    monkeypatch.setattr(phase7.Layers, "draw", lambda *stems: None)


def read(results: Path, name: str = "phase7_layers") -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv", keep_default_na=True)


def row_of(results: Path, method: str, state: str) -> pd.Series:
    table = read(results).set_index(["method", "state"])
    return table.loc[(method, state)]


# Tuning -----------------------------------------------------------------------------------------------


def test_a_tuned_checkpoint_loads_converted_and_says_what_spectral_train_says(bundled, data, tmp_path):
    model = load_model("bundled/resnet20-tuned-blurpool")
    assert spectral.conversion_report(model).method == "blurpool"
    described = model_info(model).metadata
    command = ("train", "--from", "bundled/resnet20", "--method", "blurpool", "--data", str(data), "--out",
               str(tmp_path), "--epochs", "1", "--batch-size", "8", "--max-lr", "0.01")  # fmt: skip
    result = CliRunner().invoke(cli.main, [*command, "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    other = json.loads((tmp_path / "resnet20-blurpool.json").read_text())
    assert other == described  # the same weights, even
    assert (other["tuned_from"], other["data_id"]) == ("bundled/resnet20", "tiny")
    assert other["start"] != model_info(model).weights_id


def test_what_is_there_is_left_alone(bundled, data, capsys):
    path = bundled / "resnet20-tuned-blurpool.safetensors"
    before = path.stat().st_mtime_ns
    tuning.tune_layers("bundled/resnet20", TUNED, load_labelled_sets(str(data)), bundled, QUICK)
    assert path.stat().st_mtime_ns == before
    assert "there already; delete it" in capsys.readouterr().out
    assert not (bundled / "training").exists()


def test_unknown_layers_are_named_before_anything_is_trained(bundled, data, tmp_path):
    sets = load_labelled_sets(str(data))
    with pytest.raises(SpectralError, match="no layer is called 'blurpol'; nearest: 'blurpool'"):
        tuning.tune_layers("bundled/resnet20", ["flc", "blurpol"], sets, tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_layers_with_weights_of_their_own_start_from_the_same_ones():
    states = []
    for seed in (1, 2):  # whatever was drawn before
        torch.manual_seed(seed)
        states.append(load_model("bundled/resnet20@random+lps").state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_the_default_layers_exist():
    assert set(tuning.LAYER_METHODS) <= set(spectral.surgery.METHODS)
    assert (tuning.TUNING.epochs, tuning.TUNING.max_lr) == (1, 0.02)


# Rows -------------------------------------------------------------------------------------------------


def test_rows_are_the_original_every_layer_and_what_is_tuned(results):
    table = read(results)
    expected = [("original", "original")]
    for method in METHODS:
        expected += [(method, "converted"), *([(method, "tuned")] if method in TUNED else [])]
    assert list(table[["method", "state"]].itertuples(index=False, name=None)) == expected
    provenance = json.loads((results / "tables" / "phase7_layers.json").read_text())
    assert dict(zip(table["model"], table["weights"], strict=True)) == provenance["weights"]


def test_what_is_missing_and_the_command_that_makes_it_are_said(bundled, tmp_path, capsys):
    phase7.Layers(options(tmp_path))
    said = capsys.readouterr().out
    assert f"no tuned checkpoint of strided, lps; this makes them: {phase7.TRAIN_COMMAND}" in said


def test_aliases_are_means_over_the_networks_own_sites_and_images(results):
    images = spectral.load_images("synthetic", size=32, limit=6)
    model = load_model("bundled/resnet20-tuned-blurpool")
    metrics = (*phase7.METRICS, *SIGNAL_METRICS, "sis")
    found = spectral.measure(model, images, metrics, taps=("dense", "signal"), progress=False)
    table = found[found["tap"] != "signal"]
    row = row_of(results, "blurpool", "tuned")
    for metric in phase7.METRICS:
        values = table.loc[table["metric"] == metric, "value"]
        assert len(values) == 6 * 4
        assert row[metric] == pytest.approx(values.mean(), rel=1e-5)
        assert row[f"{metric}_ci_low"] < row[metric] < row[f"{metric}_ci_high"]
    assert row["sis"] == pytest.approx(table.loc[table["metric"] == "sis", "value"].mean(), rel=1e-4)
    assert row["alias_power_db"] == pytest.approx(to_decibels(row["alias_power_ratio"]))
    for metric in SIGNAL_METRICS:
        values = found.loc[(found["metric"] == metric) & (found["tap"] == "signal"), "value"]
        if metric in row:
            assert row[metric] == pytest.approx(values.mean(), rel=1e-5)
    assert row["alias_power_db_channel_median"] == pytest.approx(to_decibels(row[SIGNAL_METRICS[1]]))
    sites = read(results, "phase7_layers_sites")
    own = sites[(sites["method"] == "blurpool") & (sites["state"] == "tuned")]
    assert set(own["op"]) == {"blur_pool"}
    means = table[table["metric"] == "avr"].groupby("site", sort=False)["value"].mean()
    assert own.set_index("site")["avr"].to_dict() == pytest.approx(means.to_dict(), rel=1e-5)


def test_a_lossless_layer_has_no_aliases_and_says_why(results):
    for state in ("converted", "tuned"):
        row = row_of(results, "space-to-depth", state)
        assert np.isnan([row[m] for m in (*phase7.METRICS, "alias_power_db", *SIGNAL_METRICS[:2])]).all()
        assert row["aliasing_reason"].startswith("lossless")
        assert (row["sites"], row["measurable"]) == (4, 0)
        assert row["sis"] > 0
    sites = read(results, "phase7_layers_sites")
    own = sites[sites["method"] == "space-to-depth"]
    assert len(own) == 8
    assert own["reason"].str.startswith("lossless").all()


def test_a_plain_decimation_changes_the_cost_and_nothing_else(results):
    same = ["sis", "circular", "crop", "n_both_right"]
    original, converted = row_of(results, "original", "original"), row_of(results, "strided", "converted")
    assert list(original[same]) == pytest.approx(list(converted[same]), rel=1e-5)
    assert original["latency_ratio"] == original["macs_ratio"] == 1
    report = spectral.conversion_report(load_model("bundled/resnet20+strided"))
    assert (original["macs"], converted["macs"]) == report.cost.macs
    assert converted["macs_ratio"] == pytest.approx(report.cost.macs[1] / report.cost.macs[0])
    assert (original["parameters"], converted["parameters"]) == report.cost.parameters


def test_costs_are_those_of_the_layer_whatever_its_weights(results):
    table = read(results)
    costs = ["latency_ratio", "latency_ms", "macs", "parameters"]
    assert (table.groupby("method")[costs].nunique() == 1).all(axis=None)
    parameters = table.groupby("method")["parameters"].first()
    assert parameters["lps"] > parameters["blurpool"] == parameters["original"]


@pytest.mark.parametrize("protocol", phase7.PROTOCOLS)
def test_consistency_is_that_of_the_protocol(results, protocol):
    images = spectral.load_images("synthetic", size=32, limit=6)
    model = load_model("bundled/resnet20-tuned-space-to-depth")
    table = measure_consistency(model, images, protocol, pairs=phase7.PAIRS)
    assert row_of(results, "space-to-depth", "tuned")[protocol] == pytest.approx(table["agree"].mean())


# Accuracy ---------------------------------------------------------------------------------------------


def test_accuracies_are_the_checkpoints_own_or_none(results):
    original = row_of(results, "original", "original")
    assert (original["accuracy"], original["accuracy_n"]) == (0.85, 200)
    assert original["accuracy_ci_low"] == pytest.approx(0.794, abs=2e-3)  # Wilson, 170 of 200
    assert original["accuracy_source"] == "recorded with its checkpoint, tiny test images"
    tuned = row_of(results, "blurpool", "tuned")
    metadata = model_info(load_model("bundled/resnet20-tuned-blurpool")).metadata
    assert tuned["accuracy"] == pytest.approx(metadata["test_accuracy"])
    assert tuned["accuracy_n"] == 20
    for method in METHODS:
        converted = row_of(results, method, "converted")
        assert np.isnan(converted["accuracy"])
        assert "--data measures it" in converted["accuracy_reason"]


@pytest.mark.usefixtures("undrawn")
def test_with_data_every_network_is_tested(bundled, data, results, tmp_path, monkeypatch):
    monkeypatch.setattr(phase7, "LAYER_METHODS", ("blurpool",))
    run_study([7], options(tmp_path, data=str(data)))
    table = read(tmp_path)
    assert table["accuracy_n"].tolist() == [20, 20, 20]
    assert set(table["accuracy_source"]) == {"measured on folder:tiny/test"}
    images = spectral.load_images(data, size=32)
    batch = torch.stack([images[i] for i in range(len(images))])
    for row in table.to_dict("records"):
        model = load_model(row["model"])
        with torch.no_grad():
            found = model(model_info(model).preprocessing(batch)).argmax(1)
        assert row["accuracy"] == pytest.approx((found == torch.tensor(images.labels)).float().mean().item())


@pytest.mark.usefixtures("undrawn")
def test_data_with_other_classes_gives_a_reason_and_without_labels_a_sentence(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(phase7, "LAYER_METHODS", ())
    data = tmp_path / "pets"
    for name in ("tabby", "poodle"):
        (data / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(data / name / "a.png")
    run_study([7], options(tmp_path / "out", data=str(data)))
    (row,) = read(tmp_path / "out").to_dict("records")
    assert (
        row["accuracy_reason"]
        == "folder:pets: the network has 0 of the labels' 2 classes (not poodle, tabby)"
    )
    with pytest.raises(SpectralError, match="has no labels; expected cifar10"):
        run_study([7], options(tmp_path / "other", data=str(data / "tabby")))


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_both_get_right_are_counted(bundled, tmp_path, monkeypatch):
    """The sample photographs with labels; a network that is right by definition is right on all of them."""
    monkeypatch.setattr(phase7, "LAYER_METHODS", ("blurpool",))
    run_study([7], options(tmp_path, images="samples", limit=24))
    images = spectral.load_images("samples", size=32, limit=24)
    right = {}
    for name in ("bundled/resnet20", "bundled/resnet20-tuned-blurpool"):
        model = load_model(name)
        batch = torch.stack([images[i] for i in range(24)])
        with torch.no_grad():
            found = model(model_info(model).preprocessing(batch)).argmax(1).tolist()
        right[name] = {i for i in range(24) if found[i] == images.labels[i]}
    both = right["bundled/resnet20"] & right["bundled/resnet20-tuned-blurpool"]
    rows = read(tmp_path).set_index("model")
    assert rows.loc["bundled/resnet20", "n_both_right"] == len(right["bundled/resnet20"]) > 0
    assert rows.loc["bundled/resnet20-tuned-blurpool", "n_both_right"] == len(both)


# Resuming ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_measures_nothing_anew_and_gives_the_same_table(results, monkeypatch):
    before = read(results)

    def never(*args: object, **kwargs: object) -> pd.DataFrame:
        raise AssertionError("measured again")

    monkeypatch.setattr(networks, "measure_consistency", never)
    run_study([7], options(results))
    measured = [column for column in before.columns if not column.startswith("latency")]
    pd.testing.assert_frame_equal(read(results)[measured], before[measured])
    monkeypatch.setattr(phase7, "PAIRS", 1)  # other options, other numbers
    with pytest.raises(AssertionError, match="measured again"):
        run_study([7], options(results))


def test_other_pictures_in_the_folder_are_refused(results):
    with pytest.raises(SpectralError, match="measurements of a study with other images"):
        run_study([7], options(results, limit=5))


# Figures ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_holds_what_nothing_beats(points):
    cost, instability = zip(*points, strict=True)
    front = find_front(cost, instability)

    def beats(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return p != q and p[0] <= q[0] and p[1] <= q[1]

    best = {p for p in points if not any(beats(q, p) for q in points)}
    assert {points[i] for i in front} == best
    assert [points[i] for i in front] == sorted(best)


def test_fig18_places_every_network_and_names_every_layer_once():
    table = make_tables()["phase7_layers"]
    fig = FIGURES["fig18_layers_pareto"].plot({"phase7_layers": table})
    ax = fig.axes[0]
    marks = [line for line in ax.lines if line.get_marker() in {"*", "s", "o"}]
    np.testing.assert_allclose([m.get_xydata()[0] for m in marks], table[["latency_ratio", "sis"]])
    for mark, row in zip(marks, table.to_dict("records"), strict=True):
        assert (to_hex(mark.get_markerfacecolor()) == "#ffffff") == np.isnan(row["accuracy"])
        assert mark.get_marker() == {"original": "*", "converted": "s", "tuned": "o"}[row["state"]]
    names = [text.get_text() for text in ax.texts]
    assert sorted(names) == sorted({"as it is", *table["method"]} - {"original"})
    trained = table[table["state"] != "converted"].reset_index(drop=True)
    front = trained.iloc[find_front(trained["latency_ratio"].tolist(), trained["sis"].tolist())]
    stairs = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(stairs.get_xydata()[::2], front[["latency_ratio", "sis"]])
    assert set(stairs.get_ydata()) == set(front["sis"])


def test_fig18_without_accuracies_has_no_colour_bar():
    table = make_tables()["phase7_layers"].assign(accuracy=np.nan, accuracy_source=np.nan)
    fig = FIGURES["fig18_layers_pareto"].plot({"phase7_layers": table})
    assert len(fig.axes) == 1
    assert "accuracy: none known" in fig.get_suptitle()


def test_fig19_has_a_dot_per_value_and_a_floor():
    table = make_tables()["phase7_layers"]
    fig = FIGURES["fig19_layers_aliasing"].plot({"phase7_layers": table})
    left, right = fig.axes
    drawn = [line.get_xdata()[0] for line in left.lines if line.get_marker() in {"*", "s", "o"}]
    expected = table["alias_power_db_channel_median"].dropna().clip(lower=-40)
    assert drawn == pytest.approx(list(expected))
    assert "−40: that or less" in left.get_xlabel()
    assert [text.get_text() for text in left.texts] == ["lossless: nothing to measure"]
    drawn = [line.get_xdata()[0] for line in right.lines if line.get_marker() in {"*", "s", "o"}]
    assert drawn == pytest.approx(list(table["sis"]))
