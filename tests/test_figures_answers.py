"""Every analysis of a network that is named nowhere has a table, and every table its picture."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import spectral
from spectral import analysis, figures
from spectral.errors import SpectralError
from spectral.figures import list_plots, plot_table

SIZE = 16


class Foreign(nn.Module):
    """A network of somebody else: a branch, a pool, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.pool(self.stem(x).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def tables():
    """What each analysis gives, by the picture that is made of it."""
    torch.manual_seed(0)
    net = Foreign().eval()
    smooth = spectral.convert(net, "blurpool", example=SIZE)
    x = torch.rand(6, 3, SIZE, SIZE)
    images = spectral.load_images("synthetic", size=SIZE, limit=6)
    quiet = {"progress": False}
    ready = {"preprocessing": "none", **quiet}
    measured = spectral.measure(net, x, **quiet)
    stability = spectral.measure_stability(net, x, **quiet)
    blame = spectral.attribute_instability(net, x, **quiet)
    moved = spectral.measure_equivariance(net, x, **quiet)
    budget = spectral.measure_instability_budget(net, x[:3], **quiet)
    seen = spectral.measure_predictions(net, images, ["resize-0.5", "checkerboard-0.05"], **ready)
    labelled = seen.assign(label=pd.array([1] * len(seen)), correct=seen["prediction"] == 1)
    profiles = analysis.measure_profiles(net, x)
    return {
        "measurement": measured,
        "summary": spectral.summarize_measurements(measured),
        "stability": stability,
        "stability_summary": spectral.summarize_stability(stability),
        "blame": blame,
        "blame_summary": analysis.summarize_attribution(blame),
        "movement": moved,
        "movement ": analysis.summarize_equivariance(moved),
        "budget_images": budget,
        "budget": spectral.summarize_instability_budget(budget),
        "fixes": spectral.measure_fixes(net, x, ("flc",), **quiet),
        "predictions": seen,
        "perturbed": analysis.compare_perturbed({"a": seen, "b": labelled}),
        "classes": analysis.compare_classes({"b": labelled}, {}),
        "robustness": spectral.measure_robustness(net, images, ["fgsm"], epsilon=8 / 255, **ready),
        "consistency": spectral.measure_consistency(net, images, preprocessing="none"),
        "worst_shift": spectral.measure_worst_shift(net, images, max_shift=1, preprocessing="none"),
        "diagonal": spectral.measure_diagonal(net, images, preprocessing="none"),
        "models": analysis.weigh_models(
            {"a": net, "b": smooth}, {"a": images, "b": images}, **quiet
        ),
        "compare": analysis.compare_models({"a": net, "b": smooth}, {"a": images, "b": images}, **quiet),
        "spectra": analysis.measure_spectra(net, x[:1]),
        "folding": analysis.measure_folding(net, x[:1]),
        "profiles": profiles,
        "profiles ": analysis.summarize_profiles(profiles),
        "image_avr": analysis.measure_image_avr(net, x[:1]),
        "frequency_sweep": analysis.sweep_frequencies(net, (SIZE, SIZE)),
        "null_frequencies": analysis.tabulate_null_frequencies(
            (SIZE, SIZE), [spectral.make_perturbation("resize-0.5")]
        ),
    }  # fmt: skip


def test_every_table_has_its_picture_fresh_and_from_a_file(tables, tmp_path):
    for name, table in tables.items():
        drawn, figure = plot_table(table)
        assert drawn == name.strip()
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert any(ax.get_xlabel() for ax in shown), name
        assert all(len(ax.lines) + len(ax.collections) + len(ax.images) for ax in shown), name
        assert not any("$" in text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text"))), (
            name
        )
        table.to_csv(tmp_path / "table.csv", index=False)
        assert plot_table(pd.read_csv(tmp_path / "table.csv"))[0] == name.strip()


def test_each_has_a_function_beside_it():
    for columns, plot in figures.answers.ANSWERS.values():
        plot = getattr(figures, plot.__name__)
        for wrong in (pd.DataFrame({"a": [1]}), pd.DataFrame(columns=list(columns))):
            with pytest.raises(SpectralError, match=r"no column|no rows|no row|nothing"):
                plot(wrong)


def _read_marks(ax):
    """The places of the large marks: estimates, not images."""
    return [
        (float(x), float(y))
        for line in ax.lines
        if line.get_marker() != "None" and line.get_markersize() > 3
        for x, y in line.get_xydata()
    ]


def test_what_is_drawn_is_what_the_table_says(tables):
    summary = tables["blame_summary"].dropna(subset=["delta_sis"])
    ax = figures.plot_blame_summary(summary).axes[0]
    marks = _read_marks(ax)
    assert [x for x, _ in marks] == pytest.approx(summary["delta_sis"].tolist())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert [names[round(y)] for _, y in marks] == summary["site"].tolist()
    ends = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert np.allclose(ends, summary[["delta_sis_ci_low", "delta_sis_ci_high"]])

    seen = tables["predictions"]
    ax = figures.plot_predictions(seen).axes[0]
    shares = seen.groupby("perturbation", sort=False)["agree"].mean()
    assert [x for x, _ in _read_marks(ax)] == pytest.approx(shares.tolist())

    spectra = tables["spectra"]
    first = spectra[(spectra["site"] == "stem") & (spectra["tap"] == "dense")]
    panel = next(a for a in figures.plot_spectra(spectra).axes if a.get_title() == "stem\ndense")
    grid = first.pivot(index="f_u", columns="f_v", values="power")
    decibels = np.maximum(10 * np.log10(grid / grid.to_numpy().max()), -60)
    assert np.allclose(panel.images[0].get_array(), decibels, atol=1e-4)

    panels = figures.plot_models(tables["models"]).axes
    assert "time per image (ms)" in {
        text for ax in panels for text in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title())
    }


def test_movement_is_drawn_as_the_mean_error_that_its_summary_has(tables):
    """Errors are averaged and then written in dB, also exact ones (+∞ dB), and crops by photograph."""
    moved = tables["movement"]
    crops = pd.concat(
        [moved, moved[moved["image"].isin(["0000", "0001"])].assign(image=lambda t: t["image"] + "b")]
    )
    exact = moved.assign(psnr_db=moved["psnr_db"].where(moved["image"] != "0002", np.inf),
                         mse_ratio=moved["mse_ratio"].where(moved["image"] != "0002", 0.0))  # fmt: skip
    for table in (moved, crops, exact):
        summary = analysis.summarize_equivariance(table)
        drawn, own = (figures.plot_movement(one) for one in (table, summary))
        for one, other in zip(drawn.axes, own.axes, strict=True):
            marks, expected = (sorted(x for x, _ in _read_marks(ax)) for ax in (one, other))
            assert marks == pytest.approx(expected)
    ends = [line.get_segments()[0][:, 0] for line in drawn.axes[0].collections]
    bounds = summary[["psnr_db_ci_low", "psnr_db_ci_high"]].clip(upper=150)
    assert np.allclose(np.sort(np.ravel(ends)), np.sort(np.ravel(bounds)))


def test_tables_of_several_networks_are_kept_apart_or_refused(tables):
    """Two values of an image under one name were one network's: a mean of both, and n of one."""
    for name in ("movement", "budget_images", "stability"):
        one = tables[name].assign(model="a")
        many = pd.concat([one, one.assign(model="b")])
        single, double = (plot_table(table)[1].axes[0] for table in (one, many))
        assert len(_read_marks(double)) == 2 * len(_read_marks(single))
    for name, column in (
        ("predictions", "confidence"),
        ("robustness", "distance"),
        ("diagonal", "confidence"),
    ):
        one = tables[name].assign(other=0)
        with pytest.raises(
            SpectralError, match=r"the table has image 'synthetic/0000' twice; .*a column 'model'"
        ):
            plot_table(pd.concat([one, one.assign(other=1)]))
        assert column in one


def test_a_figure_says_the_n_of_its_intervals():
    rows = pd.DataFrame(
        {"model": "a", "image": list("abcd"), "cluster": list("aabc"), "sis": [0.1, 0.2, 0.3, np.nan]}
    )
    assert figures.plot_stability(rows).get_suptitle().startswith("n = 2 photographs (3 images); ")
    means = {"model": ["a"], "perturbation": "x", "agreement": 0.5, "n": 40, "n_clusters": 10}
    assert figures.plot_perturbed(pd.DataFrame(means)).get_suptitle() == "n = 10 photographs (40 images)"


def test_a_line_counts_each_photograph_once():
    rows = {"image": list("abc"), "cluster": list("aab"), "offset": 0, "confidence": [0.0, 0.2, 0.5]}
    (line,) = figures.plot_diagonal(pd.DataFrame(rows)).axes[0].lines
    assert line.get_ydata().tolist() == pytest.approx([0.3])


def test_shares_of_few_images_have_an_interval_though_all_agree():
    rows = {"image": list("abcd"), "cluster": list("abcd"), "perturbation": "x", "agree": True}
    ax = figures.plot_predictions(pd.DataFrame(rows)).axes[0]
    ((low, _), (high, _)) = ax.collections[0].get_segments()[0]
    z = 1.959963984540054
    assert (low, high) == pytest.approx((4 / (4 + z * z), 1.0))  # Wilson's


def test_without_labels_networks_are_compared_by_what_stays(tables):
    table = tables["perturbed"]
    own = table[table["model"] == "a"]
    assert own["reason"].eq("none of these images has a label").all()
    assert own["agreement"].notna().all()
    assert table[table["model"] == "b"]["accuracy"].notna().all()
    with pytest.raises(SpectralError, match="no column 'perturbation'; expected one of"):
        analysis.compare_perturbed({"a": tables["stability"]})
    assert not math.isnan(tables["classes"]["accuracy"].iloc[0])
    assert list_plots(pd.DataFrame({"unknown": [1]})) == {}


@pytest.fixture(scope="module")
def runs():
    """What `measure` and `measure_stability` give of two networks named nowhere, put together."""
    torch.manual_seed(0)
    net = Foreign().eval()
    x = torch.rand(20, 3, SIZE, SIZE)
    nets = {"net": net, "smooth": spectral.convert(net, "blurpool", example=SIZE)}
    quiet = {"progress": False}
    measured = [spectral.measure(m, x, **quiet).assign(model=name) for name, m in nets.items()]
    stability = [spectral.measure_stability(m, x, **quiet).assign(model=name) for name, m in nets.items()]
    layers = spectral.pair_sites({name: spectral.find_sites(m, SIZE) for name, m in nets.items()})
    return pd.concat(measured), pd.concat(stability), layers


def test_analyses_over_sites_take_what_measure_gives(runs):
    """One line each: networks are the families, sites the layers, and numbers those of the long table."""
    measured, stability, layers = runs
    wide = analysis.lay_out_sites(measured, layers=layers)
    assert len(wide) == 20 * 2 * 2 * 2  # images, networks, sites, taps
    one = wide[(wide["family"] == "smooth") & (wide["layer"] == "stem") & (wide["tap"] == "dense")].iloc[3]
    long = measured[(measured["model"] == "smooth") & (measured["image"] == one["image"])]
    at = long[(long["site"] == "stem.antialias") & (long["tap"] == "dense")].set_index("metric")["value"]
    assert one[["avr", "am", "power"]].tolist() == at[["avr", "am", "power"]].tolist()
    assert one["sis"] == long[long["metric"] == "sis"]["value"].item()

    paired = analysis.compare_families(wide)
    assert set(paired["layer"]) == {"stem"}  # behind the blurred pool the lattice is another
    avr = wide[(wide["layer"] == "stem") & (wide["tap"] == "dense")].groupby("family")["avr"].mean()
    row = paired[(paired["layer"] == "stem") & (paired["tap"] == "dense")].iloc[0]
    assert row["difference"] == pytest.approx(avr["net"] - avr["smooth"], abs=1e-12)
    signals = analysis.compare_signals(measured)
    assert signals["p"].isna().all()  # their sites have other names
    signals = analysis.compare_signals(analysis.lay_out_sites(measured, ("signal",), layers))
    assert signals[signals["layer"] == "stem"]["p"].notna().sum() == 2
    assert set(signals["metric"]) == {
        "alias_power_ratio_channel_median", "alias_power_ratio_channel_p90"
    }  # fmt: skip
    found = analysis.correlate_layers(measured[measured["tap"] != "input"])
    assert found["family"].tolist() == ["net", "net", "smooth", "smooth"]
    assert found["pearson"].notna().all()
    scores, _ = analysis.regress_layers(measured)
    assert set(scores["family"]) == {"net", "smooth"}
    assert set(analysis.regress_confidence(measured, stability)["predictors"]) == {
        "logit margin", "AVR of all layers", "both"
    }  # fmt: skip
    partial = analysis.correlate_given_margin(measured, measured, stability)
    assert set(partial["tap"]) == {"dense", "signal"}


@pytest.mark.parametrize("least", [0.0, 1e-15])
def test_aliases_that_are_rounding_count_as_none_in_every_comparison(least):
    """What is below −100 dB is nothing to test; aliases of 0 have no number in dB at all."""
    place = {"site": "c", "layer": "c", "layer_index": 0, "power": 1.0, "alias_power_ratio_white_noise": 0.75}
    rows = [
        {**place, "model": name, "family": name, "image": str(i), "cluster": str(i),
         "alias_power_ratio_channel_median": level * (1 + i)}
        for name, level in (("strided", 0.01), ("ideal", least), ("flc", 1e-14)) for i in range(8)
    ]  # fmt: skip
    found = analysis.compare_signals(pd.DataFrame(rows)).set_index("family")
    own = found["mean_ci_low"], found["mean"], found["mean_ci_high"]
    assert [column["ideal"] for column in own] == [column["flc"] for column in own] == [-100.0] * 3
    decibels = 10 * np.log10(0.01 * np.arange(1, 9))
    assert found.loc["ideal", "difference"] == pytest.approx(-100 - decibels.mean())
    among_those = pd.DataFrame([row for row in rows if row["model"] != "strided"])
    assert analysis.compare_signals(among_those)["p"].dropna().tolist() == [1.0]


def test_a_silent_map_has_no_profile_and_takes_no_part_in_means():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.ReLU())
    x = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    loud, some = (analysis.measure_profiles(net, images) for images in (x[:3], torch.cat([x[:3], 0 * x[3:]])))
    assert some.loc[some["image_index"] == 3, "power"].isna().all()
    for summarize in (analysis.average_profiles, analysis.summarize_profiles):
        pd.testing.assert_frame_equal(summarize(some), summarize(loud))
    assert figures.plot_profiles(some).axes[0].lines


def test_a_sweep_is_drawn_over_the_unit_that_its_frequencies_have():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU())
    table = analysis.sweep_frequencies(net, (SIZE, SIZE))
    assert table["frequency"].max() == 1.0  # ±1 from pixel to pixel: half a cycle per pixel
    assert all(ax.get_xlabel().endswith("(1 = Nyquist)") for ax in figures.plot_frequency_sweep(table).axes)


def test_analyses_over_sites_refuse_what_they_cannot_read(runs):
    measured, stability, _ = runs
    for analyse in (analysis.compare_families, analysis.compare_signals, analysis.correlate_layers):
        with pytest.raises(SpectralError, match=rf"{analyse.__name__}: the table has no column 'image'"):
            analyse(pd.DataFrame({"avr": [0.1]}))
    with pytest.raises(SpectralError, match="two runs are called 'a'"):
        analysis.lay_out_sites(
            pd.concat([measured.assign(model="a"), measured.assign(model="a", weights="b")])
        )
    with pytest.raises(SpectralError, match="no layer is common to two of the families net, smooth"):
        analysis.compare_families(measured)
    with pytest.raises(SpectralError, match="regress_confidence: the table has no column 'family'"):
        analysis.regress_confidence(measured, stability.drop(columns="model"))
    with pytest.raises(SpectralError, match="correlate_layers: the table has no column 'avr'"):
        analysis.correlate_layers(measured[measured["metric"] != "avr"])


def edit_by_hand(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What files and spreadsheets make of a table, by what is told of it; nothing of a CSV."""
    number = next(name for name in ("value", "sis", "mse_ratio", "confidence") if name in table)
    file = io.StringIO()
    table.to_csv(file, index=False)
    comma = table[number].map(lambda value: str(value).replace(".", ",")).astype(object)
    return {
        "": pd.read_csv(io.StringIO(file.getvalue())),
        "which holds numbers": table.assign(**{number: comma}),
        "no cluster of image": table.assign(cluster=np.nan),
        "twice": pd.concat([table, table.tail(1)]),
    }


@pytest.mark.parametrize("name", ["measurement", "families", "stability", "movement", "blame", "perturbed"])
def test_tables_from_files_give_the_same_and_what_was_altered_is_told(tables, name):
    """Of a CSV nothing was found, or with the wrong reason; others ended in errors of pandas."""
    measured = tables["measurement"]
    table, analyse = {
        "measurement": (measured, spectral.summarize_measurements),
        "families": (pd.concat([measured.assign(model=m) for m in "ab"]), analysis.compare_families),
        "stability": (tables["stability"], spectral.summarize_stability),
        "movement": (tables["movement"], analysis.summarize_equivariance),
        "blame": (tables["blame"], analysis.summarize_attribution),
        "perturbed": (tables["predictions"], lambda t: analysis.compare_perturbed({"a": t, "b": t})),
    }[name]
    for problem, edited in edit_by_hand(table).items():
        if problem:
            said = "two runs are called" if (problem, name) == ("twice", "families") else problem
            with pytest.raises(SpectralError, match=said):
                analyse(edited)
        else:
            pd.testing.assert_frame_equal(analyse(edited), analyse(table), check_dtype=False, rtol=1e-6)


def test_tables_of_other_images_are_not_joined(tables, runs):
    """Positions would pair them, or nothing at all."""
    measured, stability, _ = runs
    for analyse in (
        lambda other: analysis.regress_confidence(measured, other),
        lambda other: analysis.correlate_given_margin(measured, measured, other),
    ):
        with pytest.raises(SpectralError, match="have no image in common"):
            analyse(stability.assign(image=stability["image"].astype(int)))
    seen = tables["predictions"].assign(correct=True)
    with pytest.raises(SpectralError, match="'a' and 'b' aren't on the same images"):
        analysis.compare_perturbed({"a": seen, "b": seen.assign(image=seen["image"] + "b")})


def test_layers_of_one_name_are_compared_wherever_they_come(runs):
    """In a network with one more before them, or in a table in another order, nothing was compared."""
    measured, _, _ = runs
    net = measured[measured["model"] == "net"]
    more = net[net["site"] == "stem"].assign(site="before", model="deep")
    both = pd.concat([net, more, net.assign(model="deep")])
    paired = analysis.compare_families(both)
    assert set(paired["layer"]) == {"stem", "pool"}
    signals = analysis.compare_signals(both[both["tap"] == "signal"])
    assert signals[signals["family"] == "deep"].set_index("layer")["p"].notna().to_dict() == {
        "before": False, "stem": True, "pool": True
    }  # fmt: skip


def test_one_photograph_is_compared_without_a_test(runs):
    measured, _, _ = runs
    one = measured[measured["image"] == "0000"]
    found = analysis.compare_families(pd.concat([one[one["model"] == "net"].assign(model=m) for m in "ab"]))
    assert found["p"].isna().all()
    assert found["reason"].eq("a test needs 2 clusters where neither map is silent").all()
