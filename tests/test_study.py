"""The five phases end to end, on few images and small networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from spectral.analysis import STUDY_FREQUENCIES
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.figures import FIGURES, draw_figure
from spectral.metrics.aliasing import compute_avr
from spectral.models import load_model, model_info
from spectral.models.weights_id import hash_state
from spectral.repair.reconstruction import reconstruct
from spectral.sites import find_sites
from spectral.study import StudyOptions, run_study
from spectral.study.families import Study

# With the sites of the bundled networks, and a block and channels where those have more of the same.
MODELS = ("bundled/resnet8@random", "bundled/resnet8-blurpool@random", "bundled/nula-w8@random")
IMAGES = 20  # the fewest that give every statistic a value: four clusters for each of five folds
STUDY_TABLES = (
    "phase1_layerwise_avr", "phase2a_frequency_sweep", "phase2b_architecture_comparison",
    "phase3_layerwise_avr_stats", "phase4_correlation", "phase5_tradeoff",
)  # fmt: skip


def options(out: Path, **changes: object) -> StudyOptions:
    given = {"models": MODELS, "images": "synthetic", "limit": IMAGES, "out": out, "progress": False}
    return StudyOptions(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(made_once: Callable[..., Path]) -> Path:
    return made_once("study", lambda out: run_study([], options(out)))


def read(results: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(results / "tables" / f"{name}.csv")


def test_all_tables_and_figures_are_there_with_provenance(results):
    for name in STUDY_TABLES:
        assert len(read(results, name)) > 0
        provenance = json.loads((results / "tables" / f"{name}.json").read_text())
        assert provenance["models"]["strided"]["weights"].startswith("random-0:")
        assert provenance["images"]["count"] == IMAGES
    for stem in list(FIGURES)[:15]:
        assert (results / "figures" / f"{stem}.png").stat().st_size > 10_000
        assert (results / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((results / "provenance.json").read_text())["seed"] == 0


def test_figures_rebuild_from_tables_alone(results, tmp_path):
    for stem in ("fig7_layerwise_mean_avr", "fig14_tradeoff"):
        path, _ = draw_figure(stem, results / "tables", tmp_path)
        assert path.read_bytes() == (results / "figures" / f"{stem}.png").read_bytes()


def test_known_inputs_give_known_answers(results):
    table = read(results, "phase1_layerwise_avr")
    image = table[table["site"] == "image"].set_index(["input_kind", "family"])["avr"]
    for family in ("strided", "blurpool", "nula"):
        assert image["checkerboard", family] == pytest.approx(1.0, abs=1e-6)
        assert image["constant", family] == pytest.approx(0.0, abs=1e-6)
        assert 0 < image["natural", family] < 0.5


def test_frequency_sweep_steps_at_nyquist(results):
    table = read(results, "phase2a_frequency_sweep")
    exact = table[(table["site"] == "image") & (table["grid"] == "exact bin")]
    assert (exact.loc[exact["frequency"] <= 0.5, "avr"] < 1e-6).all()
    assert (exact.loc[exact["frequency"] > 0.5, "avr"] > 1 - 1e-6).all()
    ten = table[(table["site"] == "image") & (table["grid"] == "study") & (table["family"] == "nula")]
    assert ten["frequency"].tolist() == pytest.approx(list(STUDY_FREQUENCIES))
    assert set(table["tap"]) == {"input", "dense"}


def test_folded_spectra_add_up(results):
    """Decimation is linear: what leaves the site is the alias-free part plus the aliases."""
    table = read(results, "fig6_aliasing_folding")
    for _, block in table.groupby("family"):
        power = block.groupby("panel")["power"].sum()
        size = block.groupby("panel")[["height", "width"]].first().prod(axis=1)
        ratio = block["alias_power_ratio"].iloc[0]
        assert power["aliases"] / power["output"] == pytest.approx(ratio, rel=1e-3)
        assert size["dense"] == 4 * size["output"]


def test_paired_statistics_match_the_images(results):
    images = read(results, "per_image")
    stats = read(results, "phase3_layerwise_avr_stats")
    assert set(stats["tap"]) == {"input", "dense"}
    row = stats[(stats["tap"] == "dense") & (stats["family_b"] == "blurpool")].iloc[0]
    chosen = images[(images["tap"] == "dense") & (images["layer"] == row["layer"])]
    means = chosen.groupby("family")["avr"].mean()
    assert row["mean_a"] == pytest.approx(means["strided"], rel=1e-6)
    assert row["mean_b"] == pytest.approx(means["blurpool"], rel=1e-6)
    assert (stats["p_holm"] >= stats["p"] - 1e-15).all()
    assert stats.groupby(["tap", "family_a", "family_b"]).size().eq(4).all()


def test_per_image_table_matches_a_direct_measurement(results):
    import spectral

    model = load_model(MODELS[1])
    images = spectral.load_images("synthetic", size=32, limit=IMAGES)
    batch = model.spectral_info.preprocessing(torch.stack([images[i] for i in range(2)]))
    sites = find_sites(model, 32)
    with spectral.FeatureExtractor(model, sites, tap="dense") as fx, torch.no_grad():
        model(batch)
        expected = compute_avr(spectral.compute_power_spectrum(fx[sites[2].name]), 2)
    table = read(results, "per_image")
    at_site = (table["family"] == "blurpool") & (table["site"] == sites[2].name)
    rows = table[at_site & (table["tap"] == "dense")]
    found = rows.set_index("image")["avr"].loc[images.ids[:2]]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_correlations_carry_intervals(results):
    table = read(results, "phase4_correlation")
    for name in ("pearson", "spearman", "distance_correlation"):
        assert (table[f"{name}_ci_low"] <= table[name] + 1e-9).all()
        assert (table[f"{name}_ci_high"] >= table[name] - 1e-9).all()
    assert set(read(results, "phase4_regression")["estimator"]) == {"ridge", "forest", "best single layer"}


def test_equivariance_and_attribution_match_a_direct_measurement(results):
    import spectral
    from spectral.stability import ALL_SITES, attribute_instability, measure_equivariance

    model, images = load_model(MODELS[0]), spectral.load_images("synthetic", size=32, limit=IMAGES)
    moved = read(results, "phase4_equivariance")
    assert set(moved["family"]) == {"strided", "blurpool", "nula"}
    assert (moved["n"] == IMAGES).all()
    row = moved[(moved["family"] == "strided") & (moved["kind"] == "whole")].iloc[1]
    direct = measure_equivariance(model, images, sites=[row["site"]], progress=False)
    whole = direct[direct["kind"] == "whole"]
    assert row["psnr_db"] == pytest.approx(-10 * np.log10(whole["mse_ratio"].mean()), abs=1e-3)
    assert row["psnr_db_ci_low"] < row["psnr_db"] < row["psnr_db_ci_high"]

    blamed = read(results, "phase4_attribution").set_index("site")
    assert set(blamed.loc[ALL_SITES, "family"]) == {"strided", "blurpool", "nula"}
    direct = attribute_instability(model, images, sites=[row["site"]], progress=False)
    own = direct[direct["site"] == row["site"]]
    strided = blamed[blamed["family"] == "strided"]
    assert strided.loc[row["site"], "delta_sis"] == pytest.approx(own["delta_sis"].mean(), rel=1e-3, abs=1e-9)
    assert strided.loc[row["site"], "agreement"] == pytest.approx(own["agree"].mean())
    tested = strided[strided["p"].notna()]
    assert (tested["p_holm"] >= tested["p"]).all()

    trace = read(results, "phase4_diagonal_trace")
    offsets = trace.groupby(["family", "image"])["offset"]
    assert len(offsets) == 3 * 4
    assert all(list(own) == list(range(33)) for _, own in offsets)
    for stem in ("fig20_equivariance", "fig21_attribution", "fig22_diagonal_trace", "fig31_causes"):
        assert (results / "figures" / f"{stem}.png").stat().st_size > 10_000


def test_what_stands_beside_sis_is_what_it_is_by_itself(results):
    import spectral

    table = read(results, "phase4_stability")
    assert set(table["family"]) == {"strided", "blurpool", "nula"}
    images = spectral.load_images("synthetic", size=32, limit=IMAGES)
    own = spectral.measure_stability(load_model(MODELS[0]), images, progress=False)
    expected = spectral.summarize_stability(own).set_index("metric")
    found = table[table["family"] == "strided"].set_index("metric")
    for metric in ("sis", "logit_jitter", "comb_contrast"):
        for column in ("mean", "ci_low", "median"):
            assert found.loc[metric, column] == pytest.approx(expected.loc[metric, column], rel=1e-4)
    weighed = read(results, "phase5_tradeoff").set_index("family").loc["strided"]
    assert weighed["logit_jitter"] == pytest.approx(expected.loc["logit_jitter", "mean"], rel=1e-4)
    partial = read(results, "phase4_correlation")
    assert partial["spearman_given_confidence"].dropna().between(-1, 1).all()
    assert partial["spearman_given_confidence"].notna().any()
    listed = read(results, "phase4_images").query("family == 'strided'").set_index("image")
    for column in ("sis", "logit_jitter", "logit_margin"):
        np.testing.assert_allclose(listed.loc[own["image"], column], own[column], rtol=1e-6)


def test_correlations_given_the_margin_are_those_of_residual_ranks(results):
    """An independent reference: Pearson's of the residuals of ranks after a straight line in the margin's."""
    from scipy.stats import linregress, rankdata

    table = read(results, "phase4_partial")
    assert set(table["response"]) == {"sis", "logit_jitter"}
    assert set(table["predictor"]) == {"avr", "alias_power_ratio_channel_median"}
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()
    row = table.query("family == 'strided' and response == 'logit_jitter' and predictor == 'avr'").iloc[0]
    images = read(results, "per_image").query("tap == 'dense' and family == 'strided' and site == @row.site")
    known = read(results, "phase4_images").query("family == 'strided'")[
        ["image", "logit_jitter", "logit_margin"]
    ]
    means = images.merge(known, on="image").groupby("cluster")[["avr", "logit_jitter", "logit_margin"]].mean()
    x, y, given = (rankdata(means[column]) for column in means)
    residuals = [own - linregress(given, own).slope * given for own in (x, y)]
    assert row["spearman_given_margin"] == pytest.approx(np.corrcoef(residuals)[0, 1], abs=1e-6)
    assert row["spearman"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_confidence_explains_what_it_is_asked_to(results):
    table = read(results, "phase4_confidence").set_index(["family", "response", "predictors"])
    for family in ("strided", "blurpool", "nula"):
        for response in ("log sis", "log logit_jitter"):
            assert set(table.loc[(family, response)].index) == {"logit margin", "AVR of all layers", "both"}
    assert (table["r2"] <= 1).all()
    assert table.loc[("strided", "log sis", "logit margin"), "n_clusters"] == IMAGES


def test_causes_add_up_in_every_family(results):
    table = read(results, "phase4_budget")
    shares = table[table["source"] != "total"].groupby(["family", "metric"])["share"].sum()
    assert len(shares) == 6
    assert shares.to_numpy() == pytest.approx(1, abs=1e-6)


def test_families_are_compared_at_the_signal(results):
    table = read(results, "phase3_signal")
    assert set(table["metric"]) == {
        "avr_separable_exclude_dc", "alias_power_ratio_channel_median", "alias_power_ratio_channel_p90",
    }  # fmt: skip
    decibels = table[table["unit"] == "dB"]
    assert (decibels["mean"] < 3).all()
    assert decibels["white_noise"].between(-1.5, 0).all()
    assert table[table["family"] == "strided"]["p"].isna().all()
    assert table[table["family"] != "strided"]["p"].notna().all()


def test_tradeoff_has_all_families_and_no_invented_accuracy(results):
    table = read(results, "phase5_tradeoff")
    assert table["family"].tolist() == ["strided", "blurpool", "nula"]
    assert (table["n_labelled"] == 0).all()
    assert table["accuracy"].isna().all()
    assert table["latency_ratio"].iloc[0] == 1
    assert (table["latency_q25"] <= table["latency_ms"]).all()


def test_another_configuration_is_refused(results):
    with pytest.raises(SpectralError, match="measurements of a study with other images"):
        run_study([1], options(results, limit=IMAGES // 2))


def test_a_table_of_another_configuration_is_not_taken_for_ones_own(results, tmp_path):
    shutil.copytree(results / "tables", tmp_path / "tables")
    assert Study(options(results)).has_table("phase3_layerwise_avr_stats")
    assert not Study(options(tmp_path, limit=4)).has_table("phase3_layerwise_avr_stats")
    assert not Study(options(results)).has_table("phase9")


def test_what_a_phase_made_on_the_way_is_made_again_where_it_is_gone(results, tmp_path):
    """Phase 5 draws a table of phase 3, which is made of one that it doesn't read itself."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tables" / "per_image.csv").unlink()
    run_study([5], options(tmp_path))
    pd.testing.assert_frame_equal(read(tmp_path, "per_image"), read(results, "per_image"))


def test_conversions_of_the_imagenet_preset_are_repaired_on_photographs_apart(tmp_path):
    models = tuple(f"bundled/resnet8@random{layer}" for layer in ("", "+blurpool", "+flc"))
    chosen = options(tmp_path, preset="imagenet", models=models, images="samples", limit=30)
    study = Study(chosen)
    strided, *converted = study.names.values()
    assert list(study.names) == ["strided", "blurpool", "flc"]
    assert strided == models[0]
    assert converted == [f"{name} repaired" for name in models[1:]]
    measured, apart = study.images("strided"), study.spare
    assert not set(measured.clusters) & set(apart.clusters)
    assert len(measured) + len(apart) == 30
    assert all(label is None for label in apart.labels)  # what has a label tells accuracy
    expected = reconstruct(load_model(models[2]), apart)
    found = study.models["flc"]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert study.info("flc").weights_id == hash_state(found.state_dict())
    assert study.info("flc").weights_id != model_info(load_model(models[2])).weights_id
    assert study.config()["repaired"]["count"] == len(apart)
    run_study([5], chosen)  # alone: it makes what it needs of the phases before
    stats = read(tmp_path, "phase3_layerwise_avr_stats")
    assert stats.groupby(["tap", "family_a", "family_b"]).size().to_list() == [4] * 6
    assert read(tmp_path, "per_image").groupby("layer")["family"].nunique().eq(3).all()
    table = read(tmp_path, "phase5_tradeoff")
    assert table["family"].tolist() == ["strided", "blurpool", "flc"]
    assert table["agreement"].iloc[1:].between(0.5, 1).all()
    for stem in ("fig13_avr_intervention", "fig14_tradeoff"):
        assert (tmp_path / "figures" / f"{stem}.png").exists()


def test_a_preset_that_repairs_needs_photographs_to_spare(tmp_path):
    models = ("bundled/resnet20", "bundled/resnet20+flc")
    with pytest.raises(
        SpectralError, match=r"resnet20\+flc can't be repaired: .* at least 2 images .* are 1; give"
    ):
        Study(options(tmp_path, preset="imagenet", models=models, limit=5))


def test_the_preset_of_published_networks_puts_none_of_its_own_under_their_name() -> None:
    options = StudyOptions(preset="paper")
    assert list(options.families) == ["strided", "blurpool", "nula"]
    assert not [name for name in options.families.values() if name.startswith("bundled/")]
    chosen = ("timm/resnet50", "antialiased/resnet50", "bundled/nula-w32")
    assert tuple(StudyOptions(preset="paper", models=chosen).families.values()) == chosen


def test_unknown_phase_and_too_few_models(tmp_path):
    with pytest.raises(SpectralError, match="unknown phase 11"):
        run_study([11], options(tmp_path))
    with pytest.raises(SpectralError, match="compares 2 or 3 different models"):
        run_study([1], options(tmp_path, models=("bundled/resnet20@random",)))
    with pytest.raises(SpectralError, match="a study of no models has no results"):
        options(tmp_path, models=())


def test_a_list_that_names_nothing_is_not_the_preset_s(tmp_path):
    run = CliRunner().invoke(main, ["study", "8", "--models", " ,", "--out", str(tmp_path)])
    assert (run.exit_code, run.stderr.startswith("Error: --models names nothing, got ' ,'; name some")) == (
        2,
        True,
    )


@pytest.mark.parametrize("option", ["images", "data"])
def test_images_that_are_not_named_are_not_the_preset_s(option, tmp_path):
    with pytest.raises(SpectralError, match=f"--{option} names nothing, got ''"):
        options(tmp_path, **{option: ""})


@pytest.mark.parametrize("later", [6, 7])
def test_what_a_later_phase_lacks_is_told_before_the_first_begins(later, tmp_path):
    with pytest.raises(SpectralError, match="unknown images 'no such'"):
        run_study([1, later], options(tmp_path, data="no such", limit=2))
    assert not (tmp_path / "tables").exists()
