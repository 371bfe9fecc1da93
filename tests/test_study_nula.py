"""Phase 6: networks under perturbations, what its rows say, and what an operator's null space hides."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from figure_tables import make_tables
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from PIL import Image
from torch import nn

import spectral
from spectral import figures
from spectral.analysis import perturbations
from spectral.analysis.perturbations import CLEAN
from spectral.classes import CIFAR10_CLASSES
from spectral.errors import SpectralError
from spectral.figures import FIGURES, draw_figure
from spectral.models import load, load_model
from spectral.perturb import Checkerboard, Decimate, PerturbedImages, Resize, make_perturbation
from spectral.stats import compare_shares
from spectral.study import StudyOptions, phase6, run_study
from spectral.study.phase6 import TESTS, WHOLE
from spectral.table.schema import SIGNAL_METRICS

CHECKPOINTS = Path(spectral.__file__).parents[2] / "data" / "checkpoints"
BASE, OTHER = "bundled/nula-w32", "bundled/resnet20-blurpool"
IMAGES, LABELLED, SITE_IMAGES = 24, 20, 6  # of the samples the first 20 are labelled
RESAMPLINGS = ("resize-0.5", "resize-0.25", "decimate-2", "blur-decimate-2")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained checkpoints in the place of the bundled ones: a ResNet-20, which is quick, as the base."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for own, name in (("resnet20", "nula-w32"), ("resnet20-blurpool", "resnet20-blurpool")):
        for suffix in (".safetensors", ".json"):
            shutil.copy(CHECKPOINTS / f"{own}{suffix}", folder / f"{name}{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "CHECKPOINT_FOLDERS", (folder,))
        patch.setattr(phase6, "SUBSET", SITE_IMAGES)
        patch.setattr(figures, "draw_figure", partial(draw_figure, dpi=30))  # writing takes most of the time
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each class, whatever they show: samples, each five times, moved a little."""
    root = tmp_path_factory.mktemp("data") / "moved"
    images = spectral.load_images("samples", 32, LABELLED)
    for i in range(LABELLED):
        folder = root / CIFAR10_CLASSES[i % 10]
        folder.mkdir(parents=True, exist_ok=True)
        for shift in range(5):
            pixels = images[i].roll(shift, -1).permute(1, 2, 0) * 255
            Image.fromarray(pixels.round().byte().numpy()).save(folder / f"{i}-{shift}.png")
    return root


def options(out: Path, **changes: object) -> StudyOptions:
    given = {"limit": IMAGES, "out": out, "progress": False, **changes}  # of the samples
    return StudyOptions(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run_study([6], options(out))
    return out


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave away what takes most of a small run: sites, null spaces and figures."""
    monkeypatch.setattr(phase6, "measure_sites", lambda nula, name: [])
    monkeypatch.setattr(phase6, "tabulate_null_space", lambda nula: pd.DataFrame(columns=["model"]))
    monkeypatch.setattr(phase6.Nula, "draw", lambda *stems: None)


def read(results: Path, name: str = "phase6_nula") -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv")


def sample_pixels(count: int = IMAGES) -> torch.Tensor:
    images = spectral.load_images("samples", 32, count)
    return torch.stack([images[i] for i in range(count)])


def classify(name: str, test: str, pixels: torch.Tensor) -> torch.Tensor:
    """Probabilities of perturbed images, by hand: perturbed in [0, 1], then normalised."""
    model = load_model(name)
    with torch.no_grad():
        return model((make_perturbation(test)(pixels) - 0.5) / 0.5).double().softmax(1)


# Perturbed images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["clean", "resize-0.25", "checkerboard-0.05"])
def test_perturbed_images_are_the_images_perturbed(test):
    images = spectral.load_images("synthetic", (9, 12), 5)
    held = PerturbedImages(images, test)
    found = [(indices, batch) for indices, batch in held.batches(2, indices=[4, 0, 3])]
    assert [indices for indices, _ in found] == [[4, 0], [3]]
    expected = make_perturbation(test)(torch.stack([images[i] for i in (4, 0, 3)]))
    torch.testing.assert_close(torch.cat([batch for _, batch in found]), expected)
    assert (held.ids, held.labels, held.size, len(held)) == (images.ids, images.labels, (9, 12), 5)
    assert held.source == f"synthetic under {test}"


def test_perturbed_images_are_resized_before_they_are_perturbed():
    images = spectral.load_images("synthetic", 32, 2)
    (_, batch), *_ = PerturbedImages(images, Decimate(2)).resized((8, 8)).batches(2)
    small = images.resized((8, 8))
    torch.testing.assert_close(batch, Decimate(2)(torch.stack([small[0], small[1]])))


def test_a_fingerprint_changes_with_whatever_changes_a_pixel():
    images = spectral.load_images("synthetic", 16, 3)
    operators = [Decimate(2), Decimate(3), Resize(0.5), Resize(0.5, antialias=True), Checkerboard(0.05),
                 Checkerboard(0.05, "normalised"), Checkerboard(0.05, "normalised", std=0.25)]  # fmt: skip
    prints = [PerturbedImages(images, p).fingerprint for p in operators]
    prints.append(PerturbedImages(images.take(2), Decimate(2)).fingerprint)
    assert len(set(prints)) == len(operators) + 1
    assert PerturbedImages(images, "decimate-2").fingerprint == prints[0]
    with pytest.raises(SpectralError, match="unknown perturbation 'decimat-2'"):
        PerturbedImages(images, "decimat-2")


def test_measure_runs_on_perturbed_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = spectral.load_images("synthetic", 16, 3)
    found = spectral.measure(net, PerturbedImages(images, "decimate-2"), ("avr",), progress=False)
    pixels = Decimate(2)(torch.stack([images[i] for i in range(3)]))
    expected = spectral.measure(net, pixels, ("avr",), progress=False)
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-6)
    assert found.attrs["provenance"]["images"] == "synthetic under decimate-2"


# Accuracy and agreement -------------------------------------------------------------------------------


def test_rows_are_networks_and_perturbations_with_their_provenance(results):
    table = read(results)
    assert list(table.columns) == phase6.COLUMNS
    rows = list(table[["model", "perturbation"]].itertuples(index=False, name=None))
    assert rows == [(name, test) for name in (BASE, OTHER) for test in TESTS]
    written = json.loads((results / "tables" / "phase6_nula.json").read_text())
    assert dict(zip(table["model"], table["weights"], strict=True)) == written["weights"]
    assert len(written["images"].pop("labels")) == 16  # a digest of them
    assert written["images"] | {"fingerprint": ""} == {
        "source": "samples", "count": IMAGES, "labelled": LABELLED, "fingerprint": "",
    }  # fmt: skip
    assert (written["base"], written["subset"], written["perturbations"]) == (BASE, SITE_IMAGES, list(TESTS))
    units = table.drop_duplicates("perturbation").set_index("perturbation")
    boards = units.loc[units["unit"].notna(), ["unit", "amplitude"]]
    assert boards["unit"].tolist() == ["pixel", "pixel", "normalised", "normalised"]
    assert boards["amplitude"].tolist() == pytest.approx([0.03, 0.05, 0.015, 0.025])


@pytest.mark.parametrize("name", [BASE, OTHER])
def test_shares_are_those_of_a_direct_computation(results, name):
    pixels, rows = sample_pixels(), read(results).set_index(["model", "perturbation"])
    labels = torch.tensor(spectral.load_images("samples", 32, LABELLED).labels)
    clean = classify(name, CLEAN, pixels).argmax(1)
    accuracies, clusters = set(), np.array(spectral.load_images("samples", 32, IMAGES).clusters)
    for test in TESTS:
        confidence, found = classify(name, test, pixels).max(1)
        row = rows.loc[(name, test)]
        right = int((found[:LABELLED] == labels).sum())
        assert row["accuracy"] == pytest.approx(right / LABELLED)
        wilson = spectral.stats.count_share(right, LABELLED)
        assert (row["accuracy_ci_low"], row["accuracy_ci_high"]) == pytest.approx(
            (wilson.ci_low, wilson.ci_high)
        )
        same = pd.Series((found == clean).double().numpy()).groupby(clusters).mean()
        assert row["agreement"] == pytest.approx(same.mean())
        assert row["agreement_ci_low"] <= row["agreement"] <= row["agreement_ci_high"]
        assert row["confidence"] == pytest.approx(confidence.mean().item(), rel=1e-5)
        assert (row["n_labelled"], row["n"]) == (LABELLED, IMAGES)
        accuracies.add(right)
    assert len(accuracies) > 2  # or nothing was perturbed
    assert rows["n_clusters"].unique().tolist() == [len(set(clusters))]


def test_differences_are_paired_and_corrected_over_the_table(results):
    labels = torch.tensor(spectral.load_images("samples", 32, LABELLED).labels)
    pixels, rows = sample_pixels(LABELLED), read(results).set_index(["model", "perturbation"])
    right = {(name, test): classify(name, test, pixels).argmax(1) == labels
             for name in (BASE, OTHER) for test in TESTS}  # fmt: skip
    raw = []
    for test in TESTS:
        for name in (BASE, OTHER):
            change = right[name, test].double() - right[name, CLEAN].double()
            row = rows.loc[(name, test)]
            if test == CLEAN:
                assert np.isnan(row["delta_clean"])
            else:
                assert row["delta_clean"] == pytest.approx(change.mean().item())
                assert row["delta_clean_ci_low"] < row["delta_clean"] < row["delta_clean_ci_high"]
        ours, base = right[OTHER, test], right[BASE, test]
        assert rows.loc[(OTHER, test), "delta_base"] == pytest.approx(
            (ours.double() - base.double()).mean().item()
        )
        raw.append(compare_shares(ours, base).p)
    own, whole = rows.loc[OTHER], rows[["delta_base_p", "delta_clean_p"]].to_numpy().ravel()
    assert own["delta_base_p"].tolist() == pytest.approx(raw)
    known = ~np.isnan(whole)
    assert known.sum() == len(TESTS) + 2 * (len(TESTS) - 1)
    adjusted = rows[["delta_base_p_holm", "delta_clean_p_holm"]].to_numpy().ravel()
    assert adjusted[known].tolist() == pytest.approx(step_down(whole[known].tolist()))
    assert (own["base"] == BASE).all()
    assert rows.loc[BASE, ["base", "delta_base", "delta_base_p", "delta_base_p_holm"]].isna().all(axis=None)


def exact_mcnemar(gained: int, lost: int) -> float:
    """Both tails of a fair coin at least as unequal as this."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def step_down(raw: list[float]) -> list[float]:
    """Holm's correction from its definition: the largest of what the smaller ones were multiplied to."""
    order = sorted(range(len(raw)), key=raw.__getitem__)
    found = [0.0] * len(raw)
    for rank, i in enumerate(order):
        found[i] = min(1.0, max(raw[j] * (len(raw) - k) for k, j in enumerate(order[: rank + 1])))
    return found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_a_paired_difference_turns_with_its_sides_and_its_signs_are_mcnemars(pairs):
    a, b = np.array(pairs).T
    one, two = compare_shares(a, b), compare_shares(b, a)
    assert one.difference == pytest.approx(a.mean() - b.mean())
    assert one.wilcoxon_p == pytest.approx(exact_mcnemar(int((a & ~b).sum()), int((~a & b).sum())))
    assert -1 <= one.ci_low < one.ci_high <= 1
    assert one.ci_low <= one.difference <= one.ci_high
    assert (one.ci_low > 0 or one.ci_high < 0) == (one.p < 0.05)
    mirrored = (-two.difference, -two.ci_high, -two.ci_low, two.p)
    assert (one.difference, one.ci_low, one.ci_high, one.p) == pytest.approx(mirrored)


def test_intervals_of_paired_differences_cover_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        kind = rng.choice(4, size=60, p=[0.5, 0.25, 0.1, 0.15])  # both, a alone, b alone, neither
        found = compare_shares(kind < 2, (kind == 0) | (kind == 2))
        held += found.ci_low <= 0.15 <= found.ci_high
    assert 0.92 <= held / 400 <= 0.99


def test_classes_add_up_to_the_whole(results):
    classes, whole = read(results, "phase6_classes"), read(results)
    assert list(classes.columns) == phase6.CLASS_COLUMNS
    counts = classes.assign(right=classes["accuracy"] * classes["n_labelled"])
    sums = counts.groupby(["model", "perturbation"])[["right", "n_labelled"]].sum()
    own = whole.set_index(["model", "perturbation"]).sort_index()
    np.testing.assert_allclose(sums["right"], own["accuracy"] * LABELLED, rtol=1e-6)
    assert set(sums["n_labelled"]) == {LABELLED}
    names = classes.drop_duplicates("label").set_index("label")["class"]
    assert names.to_dict() == {label: CIFAR10_CLASSES[label] for label in names.index}
    assert set(names.index) == set(spectral.load_images("samples", 32, LABELLED).labels)
    alike = classes[(classes["model"] == BASE) & (classes["perturbation"] == "decimate-2")]
    labels = torch.tensor(spectral.load_images("samples", 32, LABELLED).labels)
    found = classify(BASE, "decimate-2", sample_pixels(LABELLED)).argmax(1)
    for label, accuracy in zip(alike["label"], alike["accuracy"], strict=True):
        assert accuracy == pytest.approx((found[labels == label] == label).double().mean().item())


# Sites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [CLEAN, "resize-0.25"])
def test_sites_are_those_of_a_measurement_of_the_perturbed_pixels(results, test, bundled):
    nula = phase6.Nula(options(results))
    assert len(nula.subset) == SITE_IMAGES
    (_, pixels), *_ = nula.subset.batches(SITE_IMAGES)
    model = load_model(OTHER)
    batch = (make_perturbation(test)(pixels) - 0.5) / 0.5
    metrics = (*phase6.METRICS, *SIGNAL_METRICS, "sis")
    table = spectral.measure(model, batch, metrics, taps=("dense", "signal"), progress=False)
    means = table.groupby(["site", "tap", "metric"])["value"].mean()
    rows = read(results, "phase6_sites")
    assert list(rows.columns) == phase6.SITE_COLUMNS
    own = rows[(rows["model"] == OTHER) & (rows["perturbation"] == test)].set_index("site")
    assert list(own.index) == [*(site.name for site in spectral.find_sites(model, 32)), WHOLE]
    for site in own.index.drop(WHOLE):
        assert (own.loc[site, "n"], own.loc[site, "n_signal"]) == (SITE_IMAGES, SITE_IMAGES)
        asked = [(metric, "dense") for metric in phase6.METRICS]
        for metric, tap in (*asked, *((metric, "signal") for metric in SIGNAL_METRICS[:2])):
            assert own.loc[site, metric] == pytest.approx(means[site, tap, metric], rel=1e-4)
            assert (
                own.loc[site, f"{metric}_ci_low"] < own.loc[site, metric] < own.loc[site, f"{metric}_ci_high"]
            )
    assert own.loc[WHOLE, "sis"] == pytest.approx(means["", "", "sis"], rel=1e-3)


def test_resizing_takes_aliases_away(results):
    """A strided network on images without high frequencies."""
    rows = read(results, "phase6_sites")
    first = rows[(rows["model"] == BASE) & (rows["site_index"] == 0)].set_index("perturbation")
    assert first.loc["resize-0.25", "avr"] < 0.7 * first.loc[CLEAN, "avr"]


def test_a_network_without_dense_maps_has_the_reason_in_the_table_and_its_sis(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(phase6, "TESTS", (CLEAN, "decimate-2"))
    nula = phase6.Nula(options(tmp_path, models=(f"{BASE}+space-to-depth",), limit=SITE_IMAGES))
    rows = phase6.measure_sites(nula, nula.base)
    assert {row["reason"].partition(":")[0] for row in rows if row["site"] != WHOLE} == {"lossless"}
    assert all(row["sis"] > 0 for row in rows if row["site"] == WHOLE)


def test_the_subset_holds_every_class(bundled, data, tmp_path):
    nula = phase6.Nula(options(tmp_path, data=str(data), limit=None))
    labels = nula.subset.labels
    assert len(labels) == len(set(labels)) == SITE_IMAGES


# Null spaces ------------------------------------------------------------------------------------------


def test_dimensions_are_those_of_the_operators(results):
    table = read(results, "phase6_null_space")
    assert list(table.columns) == phase6.NULL_COLUMNS
    assert list(zip(table["model"], table["operator"], strict=True)) == [
        (name, operator) for name in (BASE, OTHER) for operator in RESAMPLINGS
    ]
    kept = table["operator"].map({"resize-0.25": 64}).fillna(256).astype(int)
    for column in ("kept", "rank", "rank_svd"):
        assert table[column].tolist() == kept.tolist()
    assert table["null_dimension"].tolist() == (1024 - kept).tolist()
    # a checkerboard is all Nyquist, which a mean of neighbours kills; plain decimation keeps a quarter
    expected = table["operator"].map({"decimate-2": 0.75}).fillna(1.0)
    np.testing.assert_allclose(table["checkerboard_share"], expected, atol=1e-12)


@pytest.mark.parametrize("name", RESAMPLINGS)
def test_shares_of_images_are_those_of_a_projection_by_svd(results, bundled, name):
    nula = phase6.Nula(options(results))
    (_, pixels), *_ = nula.subset.batches(SITE_IMAGES)
    dense = make_perturbation(name).matrix((32, 32), "down")  # type: ignore[attr-defined]
    basis = torch.linalg.svd(dense, full_matrices=False).Vh  # rows span what D sees
    row = read(results, "phase6_null_space").set_index(["model", "operator"]).loc[(BASE, name)]
    for column, centre in (("null_share", 0), ("null_share_no_mean", 1)):
        flat = pixels.double().flatten(2)
        flat = flat - centre * flat.mean(-1, keepdim=True)
        shares = 1 - (flat @ basis.T).square().sum((1, 2)) / flat.square().sum((1, 2))
        assert row[column] == pytest.approx(shares.mean().item(), rel=1e-6)
        assert row[f"{column}_ci_low"] < row[column] < row[f"{column}_ci_high"]
    assert (row["n"], row["n_silent"]) == (SITE_IMAGES, 0)


def test_a_constant_image_has_no_power_without_its_mean():
    images = torch.cat([torch.full((1, 3, 8, 8), 0.7), torch.rand(2, 3, 8, 8)]).double()
    row = perturbations.describe_null_space(Decimate(2), images, list("abc"))
    assert row["n_silent"] == 1
    expected = perturbations.compute_null_share(
        Decimate(2), images[1:] - images[1:].mean((-2, -1), keepdim=True)
    )
    assert row["null_share_no_mean"] == pytest.approx(expected.mean().item())


def test_a_large_operator_is_described_without_its_matrix():
    """That of photographs of 224 px has five gigabytes."""
    row = perturbations.describe_null_space(Decimate(2), torch.rand(2, 3, 160, 160).double(), list("ab"))
    assert (row["kept"], row["rank"], row["rank_svd"]) == (6400, 6400, None)


def test_behind_the_operator_no_network_sees_its_null_space(results):
    table = read(results, "phase6_null_space")
    assert (table["logits_hidden"] < 1e-9 * table["logits_scale"]).all()
    assert (table["logits_seen"] > 0.1).all()
    assert set(table["n_checked"]) == {SITE_IMAGES}


def test_the_check_finds_what_is_not_in_the_null_space(bundled, monkeypatch):
    model, pixels = load_model(BASE), sample_pixels(4).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert perturbations.check_blindness(model, Resize(0.5), pixels, 0)["logits_hidden"] < 1e-9
    monkeypatch.setattr(Resize, "project_null", lambda self, images: images)
    assert perturbations.check_blindness(model, Resize(0.5), pixels, 0)["logits_hidden"] > 1e-2
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert next(model.parameters()).dtype == torch.float32


def test_what_is_annihilated_at_each_frequency_has_a_closed_form(results):
    """Means of two neighbours pass cos²(πf) per axis; every fourth pair of pixels half of that."""
    table = read(results, "fig26_null_space")
    assert len(table) == len(RESAMPLINGS) * 17 * 17
    assert set(table["f_u"]) == set(table["f_v"]) == set(np.arange(17) / 32)
    passed = np.cos(np.pi * table["f_u"]) ** 2 * np.cos(np.pi * table["f_v"]) ** 2
    expected = {"resize-0.5": 1 - passed, "resize-0.25": 1 - passed / 4, "decimate-2": 0.75 + 0 * passed}
    for operator, share in expected.items():
        own = table["operator"] == operator
        np.testing.assert_allclose(table.loc[own, "share"], share[own], atol=1e-8)
    blurred = table[table["operator"] == "blur-decimate-2"].set_index(["f_u", "f_v"])["share"]
    assert blurred[(0.0, 0.0)] < 0.03 < 0.99 < blurred[(0.5, 0.5)]  # borders


def test_frequencies_of_odd_and_oblong_images():
    table = perturbations.tabulate_null_frequencies((5, 8), phase6.find_resamplings())
    assert sorted(set(table["f_u"])) == pytest.approx([0, 0.2, 0.4])
    assert sorted(set(table["f_v"])) == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    # the shares of all 40 frequencies add up to the dimension of the null space
    weight = np.where(table["f_u"] > 0, 2, 1) * np.where((table["f_v"] > 0) & (table["f_v"] < 0.5), 2, 1)
    for operator, own in (table["share"] * weight).groupby(table["operator"]):
        assert own.sum() == pytest.approx(make_perturbation(operator).null_dimension((5, 8)))


# What is there, and what is said ----------------------------------------------------------------------


def test_missing_checkpoints_and_few_labels_are_said_first(bundled, tmp_path, capsys):
    phase6.Nula(options(tmp_path))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"2 networks under 9 perturbations, base {BASE}"
    command = "python experiments/train_zoo.py --data cifar10 --only"
    assert rest[:2] == [
        f"  left out  bundled/{name}: no such checkpoint; this trains it: {command} {name}"
        for name in ("nula-w32-robust", "resnet20")
    ]
    assert rest[2:] == [
        "  images    24 of samples, 0 skipped; 20 labelled",
        "  accuracies rest on 20 images: --data cifar10, or a folder per class, gives more",
    ]


def test_without_any_checkpoint_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "CHECKPOINT_FOLDERS", (tmp_path,))
    with pytest.raises(SpectralError, match=r"none of the checkpoints bundled/nula-w32, .* is there; train"):
        phase6.Nula(options(tmp_path))


def test_presets_name_the_networks_and_the_images(bundled):
    found, missing = phase6.find_networks(StudyOptions(preset="paper"))
    assert found == (BASE, "nula/robust", OTHER)
    assert missing == ("bundled/nula-w32-robust", "bundled/resnet20")
    asked = ("timm/resnet18", "nula/robust", "timm/resnet18")
    assert phase6.find_networks(StudyOptions(models=asked)) == (("timm/resnet18", "nula/robust"), ())
    assert phase6.IMAGES == {"bundled": "samples", "paper": "cifar10"}


@pytest.mark.usefixtures("brief")
def test_without_labels_there_is_agreement_alone(bundled, tmp_path, capsys):
    run_study([6], options(tmp_path, images="synthetic", limit=5))
    table = read(tmp_path)
    assert table["accuracy"].isna().all()
    assert table["delta_base"].isna().all()
    assert set(table["reason"]) == {"synthetic has no labels: --data takes images that have"}
    assert table["agreement"].notna().all()
    assert not (tmp_path / "tables" / "phase6_classes.csv").exists()
    said = capsys.readouterr().out
    assert "no accuracies without labels: --data cifar10" in said
    assert f"{BASE}: agreement lowest" in said
    own = table[(table["model"] == BASE) & (table["perturbation"] == "resize-0.25")].iloc[0]
    share = spectral.stats.count_share(round(5 * own["agreement"]), 5)  # no photographs: Wilson
    assert (own["agreement_ci_low"], own["agreement_ci_high"]) == pytest.approx((share.ci_low, share.ci_high))


@pytest.mark.usefixtures("brief")
def test_labels_of_other_classes_are_a_reason_and_none_a_sentence(bundled, tmp_path):
    data = tmp_path / "pets"
    for name in ("tabby", "poodle"):
        (data / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(data / name / "a.png")
    run_study([6], options(tmp_path / "out", data=str(data), limit=None))
    assert set(read(tmp_path / "out")["reason"]) == {
        "folder:pets: the network has 0 of the labels' 2 classes (not poodle, tabby)"
    }
    with pytest.raises(SpectralError, match="has no labels; expected cifar10, or a subfolder per class"):
        run_study([6], options(tmp_path / "other", data=str(data / "tabby"), limit=None))


@pytest.mark.usefixtures("brief")
def test_with_labelled_data_the_figure_shows_accuracies(bundled, data, tmp_path, monkeypatch):
    monkeypatch.setattr(phase6, "TESTS", (CLEAN, "decimate-2"))
    run_study([6], options(tmp_path, data=str(data), limit=None))
    table = read(tmp_path)
    assert table["n_labelled"].tolist() == [100] * 4
    draw_figure("fig23_nula_perturbations", tmp_path / "tables", tmp_path, dpi=40)
    fig = FIGURES["fig23_nula_perturbations"].plot({"phase6_nula": table})
    assert fig.axes[0].get_ylabel() == "accuracy (%)"
    assert "n = 100 labelled images" in fig.get_suptitle()


@pytest.mark.usefixtures("brief")
def test_limit_holds_for_samples_and_labelled_data(bundled, data, tmp_path, monkeypatch):
    monkeypatch.setattr(phase6, "TESTS", (CLEAN, "decimate-2"))
    run_study([6], options(tmp_path / "a", limit=3))
    assert set(read(tmp_path / "a")["n"]) == {3}
    run_study([6], options(tmp_path / "b", data=str(data), limit=30))
    assert set(read(tmp_path / "b")["n_labelled"]) == {30}
    classes = read(tmp_path / "b", "phase6_classes")
    assert set(classes["n_labelled"]) == {3}  # spread over the classes


def test_networks_of_other_sizes_are_refused(bundled, tmp_path):
    with pytest.raises(SpectralError, match=r"expected all of the size of .* \(32×32\), got .* \(224×224\)"):
        phase6.Nula(options(tmp_path, models=(BASE, "timm/resnet18@random")))


@pytest.mark.usefixtures("brief")
def test_a_second_run_predicts_nothing_anew(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(phase6, "TESTS", (CLEAN, "decimate-2"))
    run_study([6], options(tmp_path, limit=4))
    before = read(tmp_path)

    def never(*args: object, **kwargs: object) -> pd.DataFrame:
        raise AssertionError("predicted again")

    monkeypatch.setattr(phase6, "measure_predictions", never)
    run_study([6], options(tmp_path, limit=4))
    pd.testing.assert_frame_equal(read(tmp_path), before)
    with pytest.raises(SpectralError, match="measurements of a study with other images"):
        run_study([6], options(tmp_path, limit=5))
    monkeypatch.setattr(phase6, "TESTS", (CLEAN, "decimate-3"))
    with pytest.raises(AssertionError, match="predicted again"):
        run_study([6], options(tmp_path, limit=4))


# Figures ----------------------------------------------------------------------------------------------


def test_every_figure_is_drawn(results):
    stems = ("fig23_nula_perturbations", "fig24_nula_examples", "fig25_nula_checkerboard", "fig26_null_space")
    for stem in stems:
        for kind in ("png", "pdf"):
            assert (results / "figures" / f"{stem}.{kind}").stat().st_size > 1000
    fig = FIGURES["fig23_nula_perturbations"].plot({"phase6_nula": read(results)})
    assert fig.axes[0].get_ylabel() == "agreement with the own clean prediction (%)"
    assert f"n = {IMAGES} images, {LABELLED} labelled: agreement in place of accuracy" in fig.get_suptitle()
    assert "clean" not in [label.get_text() for label in fig.axes[0].get_xticklabels()]


def test_fig23_marks_are_the_accuracies_open_where_like_the_base():
    table = make_tables()["phase6_nula"]
    (ax,) = FIGURES["fig23_nula_perturbations"].plot({"phase6_nula": table}).axes
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    assert [mark.get_ydata()[0] for mark in marks] == pytest.approx(list(100 * table["accuracy"]))
    opened = [to_hex(mark.get_markerfacecolor()) == "#ffffff" for mark in marks]
    assert opened == (table["delta_base_p_holm"] >= 0.05).tolist()
    ends = np.array([c.get_segments()[0][:, 1] for c in ax.collections])
    np.testing.assert_allclose(ends, 100 * table[["accuracy_ci_low", "accuracy_ci_high"]])
    names = [label.get_text().replace("\n", "-") for label in ax.get_xticklabels()]
    assert names == list(dict.fromkeys(table["perturbation"]))


def test_fig24_and_fig25_show_the_tables_pixels():
    table = make_tables()["phase6_pixels"]
    examples = FIGURES["fig24_nula_examples"].plot({"phase6_pixels": table}).axes
    shown = [np.asarray(ax.images[0].get_array()) for ax in examples]
    assert [image.shape for image in shown] == [(8, 8, 3)] * 4
    own = table[table["panel"] == "decimate-2"]
    for _, row in own.sample(10, random_state=0).iterrows():
        assert shown[2][row["row"], row["column"]].tolist() == pytest.approx(
            row[["red", "green", "blue"]].tolist()
        )
    x, perturbed, delta = FIGURES["fig25_nula_checkerboard"].plot({"phase6_pixels": table}).axes
    np.testing.assert_array_equal(x.images[0].get_array(), shown[0])
    np.testing.assert_array_equal(perturbed.images[0].get_array(), shown[3])
    board = np.broadcast_to(1 - np.indices((8, 8)).sum(0)[..., None] % 2, (8, 8, 3))
    np.testing.assert_allclose(delta.images[0].get_array(), board, atol=1e-9)  # ±0.05 × 10 around 0.5


def test_an_incomplete_image_is_refused():
    table = make_tables()["phase6_pixels"].drop(index=70)
    with pytest.raises(SpectralError, match=r"one row for each of the 8×8 pixels of 'resize-0.25', got 63"):
        FIGURES["fig24_nula_examples"].plot({"phase6_pixels": table})


def test_fig26_maps_and_bars_are_the_tables():
    tables = {name: make_tables()[name] for name in ("fig26_null_space", "phase6_null_space")}
    first, second, _, bars = sorted(
        FIGURES["fig26_null_space"].plot(tables).axes, key=lambda ax: (bool(ax.patches), not ax.images)
    )
    shares = tables["fig26_null_space"]
    own = shares[shares["operator"] == "resize-0.5"].sort_values(["f_u", "f_v"])["share"]
    np.testing.assert_allclose(first.images[0].get_array(), own.to_numpy().reshape(5, 5))
    assert first.images[0].get_extent() == pytest.approx([-0.0625, 0.5625] * 2)
    assert second.get_title() == "decimate-2\ndim ker D = 48 of 64"
    facts = tables["phase6_null_space"].drop_duplicates("operator")
    columns = ["null_share", "null_share_no_mean", "checkerboard_share"]
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, facts[columns].to_numpy().T.ravel())


def test_operators_of_another_table_are_refused():
    tables = {name: make_tables()[name] for name in ("fig26_null_space", "phase6_null_space")}
    tables["fig26_null_space"] = tables["fig26_null_space"].assign(operator="resize-0.75")
    with pytest.raises(SpectralError, match="has none of the operators of 'fig26_null_space'"):
        FIGURES["fig26_null_space"].plot(tables)


def test_the_example_is_no_photograph_and_its_panels_are_the_perturbations():
    table = phase6.tabulate_pixels()
    image = spectral.make_dead_leaves_image(32, phase6.EXAMPLE_SEED).double().round(decimals=2)
    for test in phase6.EXAMPLES:
        own = table[table["panel"] == test].sort_values(["row", "column"])
        expected = make_perturbation(test)(image[None])[0].permute(1, 2, 0).reshape(-1, 3)
        np.testing.assert_allclose(own[["red", "green", "blue"]], expected, atol=5.1e-4)
    assert len(table.to_csv(index=False)) < 150_000
