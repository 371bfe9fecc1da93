"""Phase 9: networks under attacks, their aliases, and what goes with what; figures from the tables alone."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from figure_tables import ATTACKED, LEVELS, make_tables
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import spectral
from spectral import figures
from spectral.analysis import robustness
from spectral.analysis.robustness import FREE, HEADLINE, MEAN_LEVEL, METRICS
from spectral.errors import MaskedGradientError, SpectralError
from spectral.figures import FIGURES, draw_figure
from spectral.figures.robustness import LAYERS, OTHER, OTHER_LAYER, TRAININGS
from spectral.figures.robustness import METRICS as SHOWN
from spectral.models import load, load_model
from spectral.models.architectures import build
from spectral.models.checkpoint import save_checkpoint
from spectral.perturb import attacks, corruptions
from spectral.stability import measure_consistency
from spectral.study import StudyOptions, phase9, run_study

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# A small zoo: architecture and recipe of each; "absent" has no checkpoint.
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "net": ("resnet8-w4", {"attack": None}),
    "net-flc": ("resnet8-w4-flc", {"attack": None}),
    "nula": ("nula-w4", {"perturb": ["decimate-2"]}),
    "net-fgsm": ("resnet8-w4", {"attack": "fgsm"}),
    "net-flc-fgsm": ("resnet8-w4-flc", {"attack": "fgsm"}),
}
ZOO = [*NETWORKS, "absent"]
# Stubbed attacks leave so many of the eight pictures, from the first: of plain networks, of attacked ones.
LEFT = {"fgsm": (2, 6), "pgd-50": (1, 5), "apgd-ce": (1, 5), "autoattack": (0, 4)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tiny"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / "0.png")
    return root


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Untrained networks in the place of the bundled ones."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number, (name, (architecture, recipe)) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        facts = {"architecture": architecture, "classes": CLASSES, "recipe": recipe, "data_id": "tiny",
                 "test_accuracy": 0.9 - 0.1 * number, "test_images": 200, "epochs": 3, "seed": 0}  # fmt: skip
        save_checkpoint(build(architecture), folder / f"{name}.safetensors", facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "CHECKPOINT_FOLDERS", (folder,))
        patch.setattr(phase9, "list_zoo", lambda scale: ZOO)
        patch.setattr(robustness, "RESAMPLES", 60)
        patch.setattr(figures, "draw_figure", partial(draw_figure, dpi=30))  # writing takes most of the time
        yield folder


def stub_attack(model: object, images: Any, chosen: list[str], **given: object) -> pd.DataFrame:
    """The contract of `measure_robustness`, with what is left known; the first picture is always wrong."""
    (attack,) = chosen
    name = spectral.model_info(model).name  # type: ignore[arg-type, union-attr]
    left = LEFT[attack][name.endswith("-fgsm")]
    n = len(images)
    robust = np.arange(n) < left
    known = np.array([label is not None for label in images.labels])
    correct = pd.array(np.arange(n) > 0, dtype="boolean")
    correct[~known] = pd.NA
    return pd.DataFrame({"image": images.ids, "attack": attack, "robust": robust, "correct": correct,
                         "robust_correct": correct & robust})  # fmt: skip


@pytest.fixture
def stubbed(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks that cost nothing, and no figures."""
    monkeypatch.setattr(phase9, "measure_robustness", stub_attack)
    monkeypatch.setattr(phase9.Robustness, "draw", lambda *stems: None)


def options(out: Path, **changes: object) -> StudyOptions:
    given = {"limit": 8, "out": out, "progress": False, **changes}
    return StudyOptions(**given)  # type: ignore[arg-type]


def read(results: Path, name: str = "phase9_networks") -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv")


@pytest.fixture(scope="module")
def results(bundled: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase9, "measure_robustness", stub_attack)
        run_study([9], options(out, data=str(data)))
    return out


# Networks ---------------------------------------------------------------------------------------------------


def test_rows_are_the_zoo_that_is_there_with_its_facts(results):
    table = read(results)
    assert table["model"].tolist() == [f"bundled/{name}" for name in NETWORKS]
    assert table["downsampling"].tolist() == ["strided", "flc", "blurpool", "strided", "flc"]
    assert table["training"].tolist() == ["standard", "standard", "robust", "fgsm", "fgsm"]
    assert table["architecture"].tolist() == [architecture for architecture, _ in NETWORKS.values()]
    assert table["test_accuracy"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    low, high = scipy.stats.binomtest(180, 200).proportion_ci(method="wilson")
    assert tuple(table.loc[0, ["test_accuracy_ci_low", "test_accuracy_ci_high"]]) == pytest.approx(
        (low, high)
    )
    assert (table["n"] == 8).all()
    assert (table["n_labelled"] == 8).all()


@pytest.mark.parametrize("attack", LEFT)
def test_robust_accuracy_and_agreement_are_shares_with_wilson_intervals(attack, results):
    table = read(results).set_index("model")
    for name in NETWORKS:
        row, left = table.loc[f"bundled/{name}"], LEFT[attack][name.endswith("-fgsm")]
        assert row["response"] == "robust accuracy"
        for kind, count in (("agreement", left), ("accuracy", max(left - 1, 0))):  # the first is wrong
            assert row[f"{attack}_{kind}"] == pytest.approx(count / 8)
            low, high = scipy.stats.binomtest(count, 8).proportion_ci(method="wilson")
            found = row[[f"{attack}_{kind}_ci_low", f"{attack}_{kind}_ci_high"]]
            assert tuple(found) == pytest.approx((low, high), abs=1e-8)
        assert row["clean_accuracy"] == pytest.approx(7 / 8)
    assert table["attacks_ordered"].all()


def test_aliases_are_means_over_sites_and_images(results, data):
    images = spectral.load_images(data, size=32, limit=8)
    table = spectral.measure(load_model("bundled/net"), images, (*METRICS, HEADLINE, "sis"), progress=False)
    row = read(results).set_index("model").loc["bundled/net"]
    sites = read(results, "phase9_sites").query("model == 'bundled/net'").set_index("site")
    for metric in FREE:
        tap = "signal" if metric == HEADLINE else "dense"
        own = table[(table["metric"] == metric) & (table["tap"] == tap)]
        assert row[metric] == pytest.approx(own["value"].mean(), rel=1e-5)
        assert row[f"{metric}_ci_low"] < row[metric] < row[f"{metric}_ci_high"]
        assert sites[metric].to_dict() == pytest.approx(
            own.groupby("site")["value"].mean().to_dict(), rel=1e-5
        )
    assert row["sis"] == pytest.approx(table.loc[table["metric"] == "sis", "value"].mean(), rel=1e-4)
    assert row["alias_power_db"] == pytest.approx(10 * math.log10(row["alias_power_ratio"]), rel=1e-6)
    assert sites["level"].tolist() == list(LEVELS)
    assert not sites["alias_free"].any()


def test_what_flc_leaves_is_called_free_of_aliases(results):
    sites = read(results, "phase9_sites")
    assert sites.groupby("model")["alias_free"].agg(["any", "all"]).loc["bundled/net-flc"].all()
    assert (sites.loc[sites["downsampling"] == "flc", "alias_power_ratio"] < 1e-10).all()


def test_corruptions_and_shifts_are_those_of_the_library(results, data):
    images = spectral.load_images(data, size=32, limit=8)
    model, row = load_model("bundled/nula"), read(results).set_index("model").loc["bundled/nula"]
    agree = measure_consistency(model, images, "cifar-circular", pairs=phase9.PAIRS)["agree"]
    assert row["consistency"] == pytest.approx(agree.mean())
    for kind in phase9.CORRUPTIONS:
        test = corruptions.Corruption(kind, 3)
        table = phase9.measure_predictions(model, images, [test], progress=False)
        own = table[table["perturbation"] == test.name]
        assert row[f"{kind}_agreement"] == pytest.approx(own["agree"].mean())
        assert row[f"{kind}_accuracy"] == pytest.approx(own["correct"].astype(float).mean())
    assert row["severity"] == 3
    assert "not CIFAR-10-C" in row["corruption_note"]


@pytest.mark.usefixtures("stubbed")
def test_without_the_corruptions_library_the_reason_stands_in_the_table(data, tmp_path, monkeypatch):
    def absent() -> None:
        raise SpectralError("corruptions need the optional package imagecorruptions-imaug")

    monkeypatch.setattr(corruptions, "_import_library", absent)
    run_study([9], options(tmp_path, data=str(data), models=("bundled/net",)))
    (row,) = read(tmp_path).to_dict("records")
    assert row["corruption_reason"].startswith("corruptions need the optional package")
    assert math.isnan(row["gaussian_noise_accuracy"])
    assert row["fgsm_accuracy"] == pytest.approx(1 / 8)


@pytest.mark.usefixtures("stubbed")
def test_attacks_out_of_order_are_said_and_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LEFT, "autoattack", (3, 4))  # more than PGD's one
    run_study([9], options(tmp_path, data=str(data), models=("bundled/net", "bundled/net-fgsm")))
    assert read(tmp_path)["attacks_ordered"].tolist() == [False, True]
    said = capsys.readouterr().out
    assert said.count("a stronger attack changed fewer predictions than a weaker one") == 1
    assert "bundled/net: a stronger attack" in said


@pytest.mark.usefixtures("stubbed")
def test_pictures_that_an_attack_could_not_attack_are_neither_robust_nor_not(
    data, tmp_path, monkeypatch, capsys
):
    """FGSM reaches the last six of eight, PGD none; the reason stands in the table."""

    def mask(model: Any, images: Any, chosen: list[str], **given: object) -> pd.DataFrame:
        if chosen == ["pgd-50"]:
            raise MaskedGradientError("no image could be attacked: it hides its gradients")
        table = stub_attack(model, images, chosen, **given)
        reached = pd.Series(np.arange(8) > 1 if chosen == ["fgsm"] else np.full(8, True))
        return table.assign(**{c: table[c].astype("boolean").where(reached)
                               for c in ("robust", "robust_correct")})  # fmt: skip

    monkeypatch.setattr(phase9, "measure_robustness", mask)
    chosen = options(tmp_path, data=str(data), models=("bundled/net-fgsm",))
    run_study([9], chosen)
    (row,) = read(tmp_path).to_dict("records")
    assert row["fgsm_agreement"] == row["fgsm_accuracy"] == pytest.approx(4 / 6)
    assert math.isnan(row["pgd-50_agreement"])
    assert row["apgd-ce_agreement"] == pytest.approx(5 / 8)
    assert row["attacks_ordered"]
    assert row["attack_reason"].startswith("fgsm: 2 of 8 images couldn't be attacked")
    assert "pgd-50: no image could be attacked" in row["attack_reason"]
    said = capsys.readouterr().out
    assert "pgd-50 unknown" in said
    assert "bundled/net-fgsm: fgsm: 2 of 8" in said
    (tmp_path / "drawn").mkdir()
    assert len(draw_figure("fig29_attacks", tmp_path / "tables", tmp_path / "drawn", dpi=30)) == 2


def test_a_network_of_which_an_attack_tells_nothing_is_left_out_of_its_correlation():
    values = {metric: [0.1, 0.2, 0.3, 0.4, 0.5] for metric in (*METRICS, HEADLINE)}
    sites = pd.DataFrame({"model": list("abcde"), "level": "step 1", "alias_free": False,
        "signal_alias_free": False, **values})  # fmt: skip
    networks = pd.DataFrame({"model": list("abcde"), "training": "standard", "clean_accuracy": 0.9,
        "test_accuracy": None, "response": "robust accuracy",
        "fgsm_accuracy": [0.4, 0.3, math.nan, 0.2, 0.1]})  # fmt: skip
    table = robustness.correlate_networks(networks, sites, attacks=["fgsm"])
    assert set(table["n_networks"]) == {4}
    np.testing.assert_allclose(table["spearman"], -1)


@pytest.mark.usefixtures("stubbed")
def test_the_whole_of_autoattack_sees_a_stated_part_spread_over_all(data, tmp_path, monkeypatch):
    seen: dict[str, list[str]] = {}

    def note(model: object, images: Any, chosen: list[str], **given: object) -> pd.DataFrame:
        seen[chosen[0]] = images.ids
        return stub_attack(model, images, chosen, **given)

    monkeypatch.setattr(phase9, "measure_robustness", note)
    run_study([9], options(tmp_path, data=str(data), models=("bundled/net-fgsm",), full_limit=3))
    assert seen["autoattack"] == seen["apgd-ce"][::3]
    (row,) = read(tmp_path).to_dict("records")
    assert (row["n"], row["n_labelled"], row["n_autoattack"]) == (8, 8, 3)
    # FGSM left 6 of 8, of these three pictures the first two: no more than the 3 that are left here
    assert row["autoattack_agreement"] == 1
    assert not row["attacks_ordered"]


@pytest.mark.usefixtures("stubbed")
def test_what_is_missing_and_the_command_that_trains_it_are_said(data, tmp_path, capsys):
    phase9.Robustness(options(tmp_path, data=str(data)))
    said = capsys.readouterr().out
    assert "left out  absent: no such checkpoints" in said
    assert "python experiments/train_zoo.py --data cifar10 --only absent" in said


# Pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stubbed")
def test_samples_without_enough_labels_are_scored_by_agreement(tmp_path, capsys):
    run_study([9], options(tmp_path, limit=24, models=("bundled/net", "bundled/net-fgsm")))
    assert "the response is agreement with the own clean prediction" in capsys.readouterr().out
    table = read(tmp_path)
    assert set(table["response"]) == {"robust agreement"}
    assert table["n_labelled"].tolist() == [20, 20]
    assert table["autoattack_agreement"].iloc[0] == 0
    assert table["autoattack_agreement"].iloc[1] > 0
    # nothing left in any photograph: an interval of the photographs' number, not of none
    n = int(table["n_clusters"].iloc[0])
    high = scipy.stats.binomtest(0, n).proportion_ci(method="wilson").high
    assert table["autoattack_agreement_ci_high"].iloc[0] == pytest.approx(high)
    assert set(read(tmp_path, "phase9_correlation")["response"]) <= {"robust agreement"}


@pytest.mark.usefixtures("stubbed")
def test_labels_that_networks_do_not_know_are_refused_or_left_away(tmp_path):
    folder = tmp_path / "pets"
    for name in ("tabby", "poodle"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (40 * i, 0, 90)).save(folder / name / f"{i}.png")
    with pytest.raises(
        SpectralError,
        match=r"labels of folder:pets count classes of bundled/net: .*not poodle, tabby.*; leave it out",
    ):
        phase9.Robustness(options(tmp_path / "a", data=str(folder)))
    with pytest.raises(SpectralError, match="has no labels; expected cifar10, or a subfolder per class"):
        phase9.Robustness(options(tmp_path / "b", data=str(folder / "tabby")))
    study = phase9.Robustness(options(tmp_path / "c", images=str(folder)))
    assert study.images.labels == [None] * 8
    assert not study.has_labels


def test_an_empty_zoo_says_how_to_train_it(monkeypatch):
    monkeypatch.setattr(phase9, "list_bundled", lambda: ["something"])
    with pytest.raises(
        SpectralError, match="none of the zoo's networks is there; this trains them: python exp"
    ):
        phase9.find_networks(StudyOptions())


# Resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stubbed")
def test_an_interrupted_run_goes_on_behind_the_last_attack(data, tmp_path, monkeypatch):
    calls: list[str] = []

    def count(model: object, images: object, chosen: list[str], **given: object) -> pd.DataFrame:
        calls.extend(chosen)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stub_attack(model, images, chosen, **given)

    monkeypatch.setattr(phase9, "measure_robustness", count)
    chosen = options(tmp_path, data=str(data), models=("bundled/net", "bundled/net-fgsm"))
    with pytest.raises(KeyboardInterrupt):
        run_study([9], chosen)
    run_study([9], chosen)
    every = [attack for attack, _ in phase9.TESTS.values()]
    assert calls == [*every[:3], *every[2:], *every]  # the third was interrupted
    before, done = read(tmp_path), len(calls)
    run_study([9], chosen)
    assert len(calls) == done
    pd.testing.assert_frame_equal(read(tmp_path), before)
    monkeypatch.setitem(phase9.TESTS, "fgsm", ("fgsm", 4 / 255))  # another ε, other numbers
    run_study([9], chosen)
    assert len(calls) == done + 2


@pytest.mark.usefixtures("stubbed")
def test_other_pictures_in_the_folder_are_refused(results, data):
    with pytest.raises(SpectralError, match="measurements of a study with other images"):
        run_study([9], options(results, data=str(data), limit=5))


# The real attacks -------------------------------------------------------------------------------------------


def test_two_networks_under_real_attacks(bundled, data, tmp_path, monkeypatch):
    """FGSM and PGD as they are; in the place of AutoAttack, which takes minutes, a short PGD."""

    def attack(model: Any, images: Any, chosen: list[str], **given: Any) -> pd.DataFrame:
        real = ["pgd-5" if name == "autoattack" else name for name in chosen]
        return attacks.measure_robustness(model, images, real, **given)

    monkeypatch.setattr(phase9, "measure_robustness", attack)
    run_study([9], options(tmp_path, data=str(data), limit=4, models=("bundled/net", "bundled/nula")))
    images = spectral.load_images(data, size=32, limit=4)
    table = read(tmp_path).set_index("model")
    for name in table.index:
        found = attacks.measure_robustness(load_model(name), images, ["fgsm", "pgd-50"], progress=False)
        means = found.groupby("attack")[["robust", "robust_correct", "correct"]].mean().astype(float)
        for column, kind in (("robust", "agreement"), ("robust_correct", "accuracy")):
            for own in ("fgsm", "pgd-50"):
                assert table.loc[name, f"{own}_{kind}"] == pytest.approx(means.loc[own, column])
        assert table.loc[name, "clean_accuracy"] == pytest.approx(means.loc["fgsm", "correct"])
    assert len(list((tmp_path / "figures").iterdir())) == 6
    assert set(read(tmp_path, "phase9_correlation")["reason"]) <= {"needs at least 4 networks, got 2"}


# Correlations -----------------------------------------------------------------------------------------------


def make_networks(n: int = 12, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Networks of which the last third is free of aliases; half are attacked in training."""
    rng = np.random.default_rng(seed)
    names = [f"net{i}" for i in range(n)]
    strength = rng.uniform(0, 1, n)
    networks = pd.DataFrame({
        "model": names, "training": ["standard", "fgsm"] * (n // 2), "response": "robust accuracy",
        "test_accuracy": rng.uniform(0.6, 0.9, n), "clean_accuracy": rng.uniform(0.6, 0.9, n),
        **{f"{attack}_accuracy": strength + 0.1 * rng.normal(size=n) for attack in phase9.TESTS},
    })  # fmt: skip
    rows = []
    for i, name in enumerate(names):
        for level in LEVELS:
            free = 3 * i >= 2 * n
            am = rng.uniform(0, 1e-6) if free else 2 - strength[i] + rng.normal()
            values = dict(zip(FREE, (am, am / 2, am / 3, am / 4), strict=True))
            flags = dict.fromkeys(FREE.values(), free)
            rows.append({"model": name, "site": level, "level": level, **values, **flags})
    return networks, pd.DataFrame(rows)


def test_correlations_are_scipys_with_rounding_tied_at_nothing():
    networks, sites = make_networks()
    table = robustness.correlate_networks(networks, sites)
    heard = sites.assign(am=sites["am"].where(~sites["alias_free"], 0.0))
    response = networks.set_index("model")["pgd-50_accuracy"]
    clean = networks.set_index("model")["test_accuracy"]
    for level in (*LEVELS, MEAN_LEVEL):
        own = heard if level == MEAN_LEVEL else heard[heard["level"] == level]
        am = own.groupby("model")["am"].mean().reindex(response.index)
        (row,) = table.query(
            "networks == 'all' and attack == 'pgd-50' and metric == 'am' and level == @level"
        ).to_dict("records")
        assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(am, response).statistic)
        inverse = np.linalg.inv(pd.DataFrame({"a": am, "r": response, "c": clean}).corr("spearman"))
        partial = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
        assert row["partial"] == pytest.approx(partial)
        assert (row["given"], row["n_networks"], row["n_alias_free"]) == ("test_accuracy", 12, 4)
        assert row["spearman_ci_low"] <= row["spearman"] <= row["spearman_ci_high"]


def test_correlations_cover_each_way_of_training_and_are_corrected_over_the_table():
    networks, sites = make_networks()
    table = robustness.correlate_networks(networks, sites)
    assert len(table) == 3 * len(phase9.TESTS) * len(FREE) * 5
    assert table.groupby("networks")["n_networks"].unique().map(list).to_dict() == {
        "all": [12], "standard": [6], "fgsm": [6],
    }  # fmt: skip
    raw, adjusted = (table[[f"spearman_p{end}", f"partial_p{end}"]].to_numpy() for end in ("", "_holm"))
    assert np.nanmin(adjusted) == pytest.approx(min(np.count_nonzero(~np.isnan(raw)) * np.nanmin(raw), 1))
    assert table["confounds"].str.contains("architectures").all()


def test_the_subsets_own_accuracy_is_given_where_checkpoints_tell_none():
    networks, sites = make_networks()
    networks.loc[3, "test_accuracy"] = np.nan
    table = robustness.correlate_networks(networks, sites)
    assert set(table.loc[table["networks"] == "all", "given"]) == {"clean_accuracy"}
    bare = networks.assign(test_accuracy=np.nan, clean_accuracy=np.nan)
    table = robustness.correlate_networks(bare, sites)
    assert table["partial"].isna().all()
    assert set(table["reason"]) == {"no clean accuracy is known to be given"}


def test_a_response_of_nothing_but_zeros_is_no_correlation():
    networks, sites = make_networks()
    table = robustness.correlate_networks(networks.assign(**{"fgsm_accuracy": 0.0}), sites)
    assert set(table.loc[table["attack"] == "fgsm", "reason"]) == {"y is constant"}
    assert table.loc[table["attack"] == "fgsm", "spearman"].isna().all()


# Pairs ------------------------------------------------------------------------------------------------------


def make_pairs(ratios: dict[str, float]) -> pd.DataFrame:
    """The attacked one has a given ratio of every metric at the first site, and its square at the second."""
    rows = []
    for number, (name, ratio) in enumerate(ratios.items()):
        for model, factor in ((name, 1.0), (f"{name}-fgsm", ratio)):
            for place, level in enumerate(LEVELS[:2]):
                values = dict.fromkeys(FREE, (1 + number) * factor ** (1 + place))
                flags = dict.fromkeys(FREE.values(), False)
                rows.append({"model": model, "site": level, "level": level, **values, **flags})
    return pd.DataFrame(rows)


def test_pairs_are_compared_by_log_ratios():
    ratios = {"a": 0.5, "b": 0.25, "c": 2.0}
    table = robustness.compare_pairs(make_pairs(ratios))
    logs = np.log(list(ratios.values()))
    rows = table[(table["metric"] == "am") & (table["pair"] == "all")].set_index("level")
    for level, factor in {LEVELS[0]: 1, LEVELS[1]: 2, MEAN_LEVEL: 1.5}.items():
        expected = factor * logs
        half = scipy.stats.t.ppf(0.975, 2) * expected.std(ddof=1) / math.sqrt(3)
        row = rows.loc[level]
        bounds = tuple(row[["log_ratio", "log_ratio_ci_low", "log_ratio_ci_high"]])
        assert bounds == pytest.approx((expected.mean(), expected.mean() - half, expected.mean() + half))
        assert row["ratio"] == pytest.approx(math.exp(expected.mean()))
        assert (row["n"], row["n_lower"], row["unit"]) == (3, 2, "pair")
        assert row["p"] == pytest.approx(scipy.stats.ttest_1samp(expected, 0).pvalue)
        assert row["p_holm"] == pytest.approx(min(12 * row["p"], 1))  # all twelve have one p, and no others
    single = table[(table["metric"] == "am") & (table["pair"] == "b")].iloc[0]
    assert (single["n"], single["unit"]) == (2, "site")
    assert math.isnan(single["p"])
    assert single["reason"] == "the sites of one pair are no sample: no interval"
    assert single["log_ratio"] == pytest.approx(1.5 * math.log(0.25))
    assert table["confounds"].str.contains("recipe").all()


def test_a_pair_is_made_with_the_control_where_there_is_one():
    sites = make_pairs({"a": 0.5, "b": 0.25})
    control = sites[sites["model"] == "a"].assign(model="a-control")
    control[list(FREE)] *= 2
    table = robustness.compare_pairs(pd.concat([sites, control]))
    whole = table[(table["metric"] == "am") & (table["level"] == MEAN_LEVEL)].set_index("pair")
    assert whole.loc["a", "log_ratio"] == pytest.approx(1.5 * math.log(0.5) - math.log(2))
    assert whole.loc["b", "log_ratio"] == pytest.approx(1.5 * math.log(0.25))
    assert whole["reference"].to_dict() == {"a": "control", "b": "start", "all": "both"}
    assert "attack alone, but" in whole.loc["a", "confounds"]
    assert whole.loc[["b", "all"], "confounds"].str.contains("recipe").all()


@pytest.mark.slow
def test_several_networks_at_a_time_give_the_tables_of_one_after_the_other(bundled, data, tmp_path):
    """Their processes have no stubs: they find the attacks' tables, kept, and measure the rest."""
    names = tuple(str(bundled / f"{name}.safetensors") for name in list(NETWORKS)[:2])
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase9.Robustness, "draw", lambda *stems: None)
        with pytest.MonkeyPatch.context() as stubs:
            stubs.setattr(phase9, "measure_robustness", stub_attack)
            run_study([9], options(one, models=names, data=str(data)))
        for path in one.rglob("robustness*"):
            (two / path.relative_to(one)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, two / path.relative_to(one))
        run_study([9], options(two, models=names, data=str(data), jobs=2))
    for name in ("phase9_networks", "phase9_sites"):
        pd.testing.assert_frame_equal(read(one, name), read(two, name), rtol=1e-5)


def test_sites_without_aliases_have_no_ratio_and_are_counted():
    sites = make_pairs({"a": 0.5, "b": 0.5})
    sites.loc[sites["model"] == "b-fgsm", ["alias_free", "signal_alias_free"]] = True
    table = robustness.compare_pairs(sites)
    row = table[(table["metric"] == "am") & (table["pair"] == "all")].iloc[0]
    assert (row["n"], row["n_alias_free"]) == (1, 1)
    assert row["reason"] == "one pair has no interval"
    assert math.isnan(row["log_ratio_ci_low"])
    assert row["log_ratio"] == pytest.approx(math.log(0.5))
    alone = table[table["pair"] == "b"]
    assert set(alone["reason"]) == {"free of aliases before or after: there is no ratio"}


def test_without_pairs_the_table_is_empty_and_has_its_columns():
    sites = make_pairs({"a": 0.5})
    table = robustness.compare_pairs(sites[sites["model"] == "a"])
    assert table.empty
    assert {"pair", "log_ratio", "p_holm", "confounds"} <= set(table.columns)


def test_the_study_makes_pairs_of_its_networks(results):
    table = read(results, "phase9_pairs")
    assert set(table["pair"]) == {"bundled/net", "bundled/net-flc", "all"}
    sites = read(results, "phase9_sites").set_index(["model", "level"])["am"]
    expected = [math.log(sites["bundled/net-fgsm", level] / sites["bundled/net", level]) for level in LEVELS]
    row = table[(table["pair"] == "bundled/net") & (table["metric"] == "am")].iloc[0]
    assert row["log_ratio"] == pytest.approx(np.mean(expected), rel=1e-5)
    published = table[table["metric"].isin(METRICS)]
    assert set(published.loc[published["pair"] == "bundled/net-flc", "n_alias_free"]) == {4}


# Figures ----------------------------------------------------------------------------------------------------


def plot(stem: str, tables: dict[str, pd.DataFrame]) -> Figure:
    return FIGURES[stem].plot({name: tables[name] for name in FIGURES[stem].tables})


def marks(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_marker() not in ("None", "", None)]


def test_the_study_draws_its_figures(results):
    names = {path.name for path in (results / "figures").iterdir()}
    stems = ("fig27_am_robustness", "fig28_robustness_relations", "fig29_attacks")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


def test_fig27_has_a_panel_per_layer_and_a_mark_per_network():
    tables = make_tables()
    fig = plot("fig27_am_robustness", tables)
    assert [ax.get_title() for ax in fig.axes] == list(LEVELS)
    networks = tables["phase9_networks"].set_index("model")
    for ax, level in zip(fig.axes, LEVELS, strict=True):
        own = tables["phase9_sites"][tables["phase9_sites"]["level"] == level]
        drawn = marks(ax)
        assert len(drawn) == len(ATTACKED)
        for mark, row in zip(drawn, own.to_dict("records"), strict=True):
            (x, y), network = mark.get_xydata()[0], networks.loc[row["model"]]
            assert y == pytest.approx(100 * network["autoattack_accuracy"])
            if not row["alias_free"]:
                assert x == pytest.approx(row["am"])
            colour = TRAININGS.get(network["training"], OTHER)[0]
            assert to_hex(mark.get_markerfacecolor()) == to_hex(colour)
            assert mark.get_marker() == LAYERS.get(network["downsampling"], OTHER_LAYER)
        # without aliases: at the axis' 0, left of all others
        free = own["alias_free"].tolist()
        places = [mark.get_xdata()[0] for mark in drawn]
        edge = {x for x, silent in zip(places, free, strict=True) if silent}
        assert len(edge) == 1
        assert max(edge) < min(x for x, silent in zip(places, free, strict=True) if not silent)
        assert ax.get_xticks()[0] == pytest.approx(edge.pop())
        assert ax.get_xticklabels()[0].get_text() == "0"


def test_fig27_joins_an_attacked_network_with_its_control():
    tables = make_tables()
    ax = plot("fig27_am_robustness", tables).axes[0]
    am = tables["phase9_sites"].query("level == @LEVELS[0]").set_index("model")["am"]
    share = 100 * tables["phase9_networks"].set_index("model")["autoattack_accuracy"]
    lines = [line.get_xydata() for line in ax.lines if line.get_marker() == "None"]

    def joined(*pair: str) -> bool:
        expected = np.column_stack([am[list(pair)], share[list(pair)]])
        return any(line.shape == (2, 2) and np.allclose(line, expected) for line in lines)

    assert joined("bundled/resnet20-control", "bundled/resnet20-fgsm")
    assert not joined("bundled/resnet20", "bundled/resnet20-fgsm")  # its control stands in


def test_fig28_shows_both_coefficients_and_their_intervals():
    tables = make_tables()
    fig = plot("fig28_robustness_relations", tables)
    found = tables["phase9_correlation"].query("networks == 'all'")
    for ax, metric in zip(fig.axes[2:], SHOWN, strict=True):
        own = found[found["metric"] == metric]
        values = [value for row in own.to_dict("records") for value in (row["spearman"], row["partial"])]
        drawn = [mark.get_xdata()[0] for mark in marks(ax)]
        assert drawn == pytest.approx([value for value in values if not math.isnan(value)])
    row = found[(found["metric"] == "am_relative") & (found["level"] == MEAN_LEVEL)].iloc[0]
    title = fig.axes[0].get_title()
    assert f"Spearman {row['spearman']:+.2f}".replace("-", "−") in title
    assert f"given clean accuracy {row['partial']:+.2f}".replace("-", "−") in title


def test_fig29_has_a_line_per_network_and_stars_what_is_out_of_order():
    tables = make_tables()
    fig = plot("fig29_attacks", tables)
    left, middle, right = fig.axes
    table = tables["phase9_networks"]
    names = [label.get_text() for label in left.get_yticklabels()][::-1]
    assert [name.endswith(" *") for name in names] == [not ordered for ordered in table["attacks_ordered"]]
    columns = [
        "clean_accuracy",
        "pgd-50-weak_accuracy",
        "fgsm_accuracy",
        "pgd-50_accuracy",
        "apgd-ce_accuracy",
        "autoattack_accuracy",
    ]
    drawn = [mark.get_xdata()[0] for mark in marks(left)]
    assert drawn == pytest.approx(list(100 * table[columns].to_numpy().ravel()))
    assert [m.get_xdata()[0] for m in marks(right)] == pytest.approx(list(100 * table["consistency"]))
    assert len(marks(middle)) == 3 * len(table)
    assert "1 with attacks out of order" in fig.get_suptitle()


def test_figures_of_agreement_say_so():
    tables = make_tables()
    networks = tables["phase9_networks"].assign(response="robust agreement")
    fig = plot("fig29_attacks", {"phase9_networks": networks})
    assert fig.axes[0].get_xlabel() == "robust agreement (%)"
    said = [text.get_text() for text in fig.legends[0].get_texts()]
    assert said[0] == "test accuracy of the checkpoint"
    drawn = [mark.get_xdata()[0] for mark in marks(fig.axes[0])]
    columns = [
        "test_accuracy",
        "pgd-50-weak_agreement",
        "fgsm_agreement",
        "pgd-50_agreement",
        "apgd-ce_agreement",
        "autoattack_agreement",
    ]
    assert drawn == pytest.approx(list(100 * networks[columns].to_numpy().ravel()))


def test_a_network_twice_is_refused():
    tables = make_tables()
    twice = pd.concat([tables["phase9_networks"]] * 2)
    with pytest.raises(SpectralError, match="table 'phase9_networks' has row 10 twice; run"):
        FIGURES["fig29_attacks"].plot({"phase9_networks": twice})


def test_no_script_is_taken_for_a_package() -> None:
    """Python looks beside a script first: what a library imports if it is there must not be found there."""
    folder = Path(__file__).parents[1] / "experiments"
    names = [path.stem for path in folder.glob("*.py")]
    assert "site_coverage" in names
    assert not {"coverage", *sys.stdlib_module_names} & set(names)
    assert not [name for name in names if importlib.util.find_spec(name)]
