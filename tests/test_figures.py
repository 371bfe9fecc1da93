"""Figures: drawn from their tables alone, showing the tables' numbers, legible, and the same every time."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figure_tables import CIFAR, CIFAR_LAYERS, MODELS, RESNET50_LAYERS, Shape, make_tables
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.text import Text
from PIL import Image

import spectral.figures
from spectral.errors import NothingKnownError, SpectralError
from spectral.figures import (
    DPI,
    FIGURES,
    TABLE_WRITERS,
    draw_all,
    draw_figure,
    draw_what_is_known,
    read_tables,
)
from spectral.figures.style import FAMILIES, find_layers, use_style

HEATMAPS = {
    "fig1_layerwise_power_spectra", "fig6_aliasing_folding", "fig24_nula_examples", "fig25_nula_checkerboard",
    "fig26_null_space", "fourier_heatmap",
}  # fmt: skip
SHAPES = {"4 layers": CIFAR, "8 layers": Shape(RESNET50_LAYERS, (56, 56, 28, 28, 14, 14, 8, 8), 50, 4)}
TWO_LAYERS = Shape(CIFAR_LAYERS[:2], (32, 32), 12, 1)
WHOLE_STUDY = {"per_image", "phase3_layerwise_avr_stats", "phase4_correlation", "phase5_tradeoff"}
STEMS = pytest.mark.parametrize("stem", FIGURES)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return make_tables()


@pytest.fixture(scope="module")
def results(tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    (folder / "tables").mkdir()
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def drawn(results, tmp_path_factory) -> Callable[[str], Figure]:
    """Each figure, drawn once from files of its own tables, without a warning: to look at, not to change."""

    @functools.cache
    def draw(stem: str) -> Figure:
        own = tmp_path_factory.mktemp("own")
        for name in FIGURES[stem].tables:
            (own / f"{name}.csv").symlink_to(results / "tables" / f"{name}.csv")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return FIGURES[stem].plot(read_tables(stem, own))

    return draw


@pytest.fixture(scope="module")
def two_layers() -> dict[str, pd.DataFrame]:
    """Tables of which figures are small, for what doesn't depend on how many layers there are."""
    return make_tables(TWO_LAYERS)


@pytest.fixture(scope="module")
def many_layers() -> dict[str, pd.DataFrame]:
    """Eight layers, and models with long names."""
    long_names = {name: f"{name}-finetuned@0123abcd" for name in MODELS.values()}
    return {name: table.replace(long_names) for name, table in make_tables(SHAPES["8 layers"]).items()}


def plot(stem: str, tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw from the figure's own tables and no others."""
    return FIGURES[stem].plot({name: tables[name] for name in FIGURES[stem].tables})


def data_axes(fig: Figure) -> list[Axes]:
    """Panels, without colour bars."""
    return [ax for ax in fig.axes if ax.get_label() != "<colorbar>" and ax.axison]


def texts_of(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_visible()]


def panel(fig: Figure, title: str) -> Axes:
    (found,) = [
        ax for ax in data_axes(fig) if title in ax.get_title() + ax.get_title(loc="left") + ax.get_ylabel()
    ]
    return found


def bars(ax: Axes, family: str) -> list[Rectangle]:
    colour = FAMILIES[family].colour.lower()
    return [bar for bar in ax.patches if isinstance(bar, Rectangle) and to_hex(bar.get_facecolor()) == colour]


# Every figure -----------------------------------------------------------------------------------------


def test_there_are_the_fifteen_figures_of_the_study_in_its_order():
    numbers = [re.match(r"fig(\d+)_", stem) for stem in list(FIGURES)[:15]]
    assert [int(n[1]) if n else 3 for n in numbers] == list(range(1, 16))
    assert list(FIGURES)[2] == "avr_comparison"


@STEMS
def test_specs_name_known_tables_and_captions_say_the_tap(stem):
    spec = FIGURES[stem]
    assert set(spec.tables) <= set(TABLE_WRITERS)
    assert spec.caption.endswith(".")
    if stem not in ("fig12_sis_distributions", "fig14_tradeoff"):  # whole-model numbers have no tap
        assert re.search(r"\btap\b|dense map", spec.caption)


@STEMS
def test_each_is_a_picture_of_vectors_but_for_its_heatmaps(stem, drawn):
    fig = drawn(stem)
    png = io.BytesIO()
    with warnings.catch_warnings(), use_style():
        warnings.simplefilter("error")
        fig.savefig(png, format="png", dpi="figure")  # at its own resolution, which moves no label
    with Image.open(png) as image:
        assert len(image.convert("L").getcolors()) > 10
    pixels = fig.findobj(lambda artist: isinstance(artist, AxesImage) or bool(artist.get_rasterized()))
    assert bool(pixels) == (stem in HEATMAPS)


@pytest.mark.parametrize("stem", ["fig25_nula_checkerboard", "fig14_tradeoff"])
def test_is_written_without_warnings_as_undated_png_and_vector_pdf(stem, results, tmp_path):
    """One with a heatmap and one without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png, pdf = draw_figure(stem, results / "tables", tmp_path / "figures", dpi=60)
    assert [path.name for path in (png, pdf)] == [f"{stem}.png", f"{stem}.pdf"]
    assert sorted(png.parent.iterdir()) == sorted([png, pdf])
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert (b"/Subtype /Image" in content) == (stem in HEATMAPS)
    assert b"CreationDate" not in content
    assert b"/FontFile2" in content  # editable text
    with Image.open(png) as image:
        assert len(image.convert("L").getcolors()) > 10


@STEMS
@pytest.mark.parametrize("shape", SHAPES)
def test_text_is_legible(stem, shape, drawn, many_layers):
    """Nothing runs out of the figure or over other text, and all is 7 to 9 points."""
    fig = drawn(stem) if shape == "4 layers" else plot(stem, many_layers)
    boxes = [(text, text.get_window_extent()) for text in drawn_texts(fig)]
    assert len(boxes) > 8
    assert {text.get_fontsize() for text, _ in boxes} <= {7.0, 7.5, 8.5}
    places = np.array([[*box.min, *box.max] for _, box in boxes])
    names = [text.get_text() for text, _ in boxes]
    room = np.array([*fig.bbox.padded(1).min, *fig.bbox.padded(1).max])
    inside = (places[:, :2] >= room[:2]).all(1) & (places[:, 2:] <= room[2:]).all(1)
    assert [name for name, fits in zip(names, inside, strict=True) if not fits] == []
    low, high = places[:, :2] + 1, places[:, 2:] - 1  # touching is no clash
    over = ((low[:, None] <= high) & (low <= high[:, None])).all(2)
    clashes = [(names[i], names[j]) for i, j in np.argwhere(np.triu(over, 1))]
    assert clashes == []
    assert fig.get_figwidth() in (3.5, 7.2)
    assert fig.get_figheight() < 9


def drawn_texts(fig: Figure) -> list[Text]:
    """Texts that are drawn: matplotlib keeps ticks beyond the axis limits that are not."""
    legends = [text for legend in fig.legends for text in legend.get_texts()]
    texts = [*fig.texts, *legends]
    for ax in fig.axes:
        if ax.axison:
            texts += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                inside = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                texts += [label for tick in inside for label in (tick.label1, tick.label2)]
        texts += ax.texts
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@STEMS
def test_axes_have_labels_and_the_count_is_stated(stem, drawn):
    fig = drawn(stem)
    axes = data_axes(fig)
    rows = {ax.get_subplotspec().rowspan.start for ax in axes}
    for row in rows:
        in_row = [ax for ax in axes if ax.get_subplotspec().rowspan.start == row]
        assert fig.get_supylabel() or any(ax.get_ylabel() for ax in in_row)
    numeric = [ax for ax in axes if not any(re.search("[a-z]", t.get_text()) for t in ax.get_xticklabels())]
    bottom = [ax for ax in numeric if ax.get_subplotspec().rowspan.stop == max(rows) + 1]
    assert all(fig.get_supxlabel() or ax.get_xlabel() for ax in bottom)
    labels = [fig.get_supxlabel(), fig.get_supylabel()]
    labels += [text for ax in fig.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    unit = r"\(.+\)|correlation|images per bin|^(strided|BlurPool|NULA)|^$"
    assert all(re.search(unit, label, re.DOTALL) for label in labels)
    assert "n = " in " ".join(texts_of(fig))


@STEMS
def test_a_family_without_a_site_is_named(stem, drawn):
    """NULA lacks the fourth layer in these tables."""
    whole_model = {"fig4_avr_vs_frequency", "fig6_aliasing_folding", "fig12_sis_distributions"}
    only_strided = {"fig9_radial_profiles_natural"}
    said = sum("no such site" in text for text in texts_of(drawn(stem)))
    panels = {"fig5": 2, "fig7": 2, "fig8": 2, "avr_": 3, "fig11": 10}
    expected = next((n for start, n in panels.items() if stem.startswith(start)), 1)
    no_families = {"fig14_tradeoff", *list(FIGURES)[15:]}
    if stem in whole_model | only_strided | no_families:
        expected = 0
    assert said == expected


@STEMS
def test_draws_without_one_of_the_families(stem, two_layers):
    fewer = {}
    for name in FIGURES[stem].tables:
        table = two_layers[name]
        keep = np.ones(len(table), dtype=bool)
        for column in {"family", "family_a", "family_b"} & set(table.columns):
            keep &= (table[column] != "nula").to_numpy()
        fewer[name] = table[keep]
    said = " ".join(texts_of(plot(stem, fewer)))
    assert "NULA" not in said
    assert "no such site" not in said


def test_one_image_is_enough():
    """--limit 1: no variance, no correlation, no interval."""
    one = make_tables(replace(TWO_LAYERS, n_images=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stem in [stem for stem, spec in FIGURES.items() if set(spec.tables) & WHOLE_STUDY]:
            said = texts_of(plot(stem, one))
            if stem.startswith("fig10"):
                assert sum("undetermined" in text for text in said) == 2 + 2 + 1
            if stem.startswith("fig11"):
                assert said.count("no value") == 5 * 2 * (2 + 2 + 1)


def test_png_has_300_dpi(results, tmp_path):
    png, _ = draw_figure("fig12_sis_distributions", results / "tables", tmp_path)
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert image.width == 3.5 * 300
    assert DPI == 300


# The same every time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["fig25_nula_checkerboard", "fig14_tradeoff"])
def test_same_tables_give_the_same_bytes(stem, results, tmp_path, monkeypatch):
    first = draw_figure(stem, results / "tables", tmp_path / "a", dpi=50)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # another day, as far as matplotlib's writers can tell
    second = draw_figure(stem, results / "tables", tmp_path / "b", dpi=50)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_neither_takes_nor_changes_the_callers_settings(results, tmp_path):
    expected = draw_figure("fig14_tradeoff", results / "tables", tmp_path / "a", dpi=50)
    with matplotlib.rc_context({"axes.grid": True, "font.size": 20, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        drawn = draw_figure("fig14_tradeoff", results / "tables", tmp_path / "b", dpi=50)
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in expected]


def test_a_figure_keeps_its_style_when_the_caller_saves_it(drawn):
    fig = drawn("fig10_avr_sis_scatter")
    sizes = {label.get_fontsize() for ax in fig.axes for label in ax.get_xticklabels()}
    assert sizes == {7.0}


def test_an_interrupted_write_leaves_the_old_figure_and_no_fragment(results, tmp_path, monkeypatch):
    png, _ = draw_figure("fig14_tradeoff", results / "tables", tmp_path, dpi=50)
    before = png.read_bytes()

    def stop_midway(self: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        draw_figure("fig14_tradeoff", results / "tables", tmp_path, dpi=50)
    assert png.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_imports_neither_torch_nor_pyplot():
    for path in Path(spectral.figures.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"torch", "seaborn", "scipy"}
                assert name != "matplotlib.pyplot"


# What is drawn is what the table says -------------------------------------------------------------------


def test_fig1_shows_decibels_of_each_panel_and_its_cutoff(tables, drawn):
    fig = drawn("fig1_layerwise_power_spectra")
    table = tables["fig1_layerwise_power_spectra"]
    own = table[
        (table["family"] == "blurpool") & (table["layer"] == "layer3.0.conv1") & (table["tap"] == "dense")
    ]
    ax = data_axes(fig)[4 + 2]  # second row, third column
    shown, (low, _) = np.asarray(ax.images[0].get_array()), ax.images[0].get_clim()
    peak = own["power"].max()
    for _, row in own.sample(20, random_state=0).iterrows():
        i, j = round(row["f_u"] * 16) + 8, round(row["f_v"] * 16) + 8  # 16 bins, DC at index 8
        assert max(shown[i, j], low) == pytest.approx(max(10 * np.log10(row["power"] / peak), low))
    assert ax.images[0].get_extent() == pytest.approx([-0.53125, 0.46875] * 2)
    assert ax.get_title() == f"AVR {own['avr'].iloc[0]:.3f}"
    (cutoff,) = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    assert (cutoff.width / 2, cutoff.height / 2) == (0.25, 0.25)  # ρ = 1/2 is 0.25 cycles per pixel
    assert len({image.get_clim() for a in data_axes(fig) for image in a.images}) == 1


def test_fig1_ellipse_follows_unequal_strides(two_layers):
    table = two_layers["fig1_layerwise_power_spectra"].assign(stride="4x2")
    fig = plot("fig1_layerwise_power_spectra", {"fig1_layerwise_power_spectra": table})
    (cutoff,) = [patch for patch in fig.axes[0].patches if isinstance(patch, Ellipse)]
    assert (cutoff.height / 2, cutoff.width / 2) == (0.125, 0.25)  # rows are vertical


def test_fig1_says_a_map_is_silent(two_layers):
    table = two_layers["fig1_layerwise_power_spectra"].copy()
    table.loc[(table["family"] == "nula") & (table["layer_index"] == 0), "power"] = 0.0
    fig = plot("fig1_layerwise_power_spectra", {"fig1_layerwise_power_spectra": table})
    assert [ax.get_title() for ax in data_axes(fig)].count("silent map") == 1


@pytest.mark.parametrize(
    ("stem", "family", "tap"),
    [("fig2_radial_profiles", "nula", "input"), ("fig15_radial_overlay", "blurpool", "dense")],
)
def test_radial_profiles_are_the_tables_in_decibels(stem, family, tap, tables, drawn):
    ax = panel(drawn(stem), "layer2.0.shortcut.0")
    table = tables[stem]
    own = table[
        (table["family"] == family) & (table["layer"] == "layer2.0.shortcut.0") & (table["tap"] == tap)
    ]
    colour = FAMILIES[family].colour
    lines = [line for line in ax.lines if line.get_color() == colour]
    assert len(lines) == (2 if stem.startswith("fig2") else 1)
    line = lines[1 if tap == "input" else 0]
    np.testing.assert_allclose(line.get_xdata(), own["rho"])
    np.testing.assert_allclose(line.get_ydata(), 10 * np.log10(own["power"]))
    assert [0.5, 0.5] in [list(line.get_xdata()) for line in ax.lines]  # the new Nyquist at stride 2


def test_fig2_tells_the_taps_by_their_lines(drawn):
    ax = panel(drawn("fig2_radial_profiles"), "layer2.0.conv1")
    styles = {line.get_linestyle() for line in ax.lines if line.get_color() == FAMILIES["nula"].colour}
    assert styles == {"-", "--"}


def test_fig9_band_is_the_tenth_to_ninetieth_percentile(tables, drawn):
    ax = panel(drawn("fig9_radial_profiles_natural"), "layer3.0.conv1")
    table = tables["fig9_radial_profiles_natural"]
    own = table[table["layer"] == "layer3.0.conv1"]
    corners = ax.collections[0].get_paths()[0].vertices
    at_first = corners[np.isclose(corners[:, 0], own["rho"].iloc[0]), 1]
    assert at_first.min() == pytest.approx(10 * np.log10(own["power_p10"].iloc[0]))
    assert at_first.max() == pytest.approx(10 * np.log10(own["power_p90"].iloc[0]))
    single = [line for line in ax.lines if line.get_color() == FAMILIES["strided"].colour]
    np.testing.assert_allclose(single[0].get_ydata(), 10 * np.log10(own["power"]))


def test_avr_comparison_labels_the_images_and_marks_silent_maps(drawn):
    fig = drawn("avr_comparison")
    image = panel(fig, "the image itself")
    assert [text.get_text() for text in image.texts] == ["1.000", "0.000", "0.021"]
    assert [label.get_text() for label in image.get_xticklabels()] == [
        "checker-\nboard",
        "constant",
        "natural",
    ]
    assert [bar.get_height() for bar in image.patches] == [1.0, 0.0, 0.021]
    checkerboard = panel(fig, "checkerboard input")
    assert [text.get_text() for text in checkerboard.texts].count("silent") == 1
    assert len(bars(checkerboard, "blurpool")) == 3


def test_fig4_image_panel_is_the_metrics_step(drawn):
    fig = drawn("fig4_avr_vs_frequency")
    exact, study, nyquist = panel(fig, "the image itself").lines
    assert len(exact.get_xdata()) == 16
    assert study.get_linestyle() == "None"
    np.testing.assert_array_equal(study.get_ydata() > 0.5, study.get_xdata() > 0.5)
    assert list(nyquist.get_xdata()) == [0.5, 0.5]
    for title in ("input tap", "dense tap"):
        assert len(panel(fig, title).lines) == 2 * 3 + 1


def test_fig5_bars_are_the_checkerboard_avr(tables, drawn):
    fig = drawn("fig5_layerwise_avr_comparison")
    table = tables["phase2b_architecture_comparison"]
    for tap in ("input", "dense"):
        for family in FAMILIES:
            own = table[(table["family"] == family) & (table["tap"] == tap) & (table["layer"] != "image")]
            heights = [bar.get_height() for bar in bars(panel(fig, f"{tap} tap"), family)]
            assert heights == pytest.approx(list(own.sort_values("layer_index")["avr"]))


def test_fig6_panels_share_a_scale_per_sample(tables, drawn):
    fig = drawn("fig6_aliasing_folding")
    table = tables["fig6_aliasing_folding"]
    own = table[table["family"] == "strided"]
    peak = (own["power"] / (own["height"] * own["width"]) ** 2).max()
    dense, output, _, aliases = data_axes(fig)[:4]
    for ax, name in ((dense, "dense"), (output, "output"), (aliases, "aliases")):
        rows = own[own["panel"] == name]
        strongest = rows["power"].max() / (rows["height"].iloc[0] * rows["width"].iloc[0]) ** 2
        assert ax.images[0].get_array().max() == pytest.approx(10 * np.log10(strongest / peak))
    assert len({ax.images[0].get_clim() for ax in (dense, output, aliases)}) == 1
    (box,) = [patch for patch in dense.patches if isinstance(patch, Rectangle)]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (-0.25, -0.25, 0.5, 0.5)
    ratio = own["alias_power_ratio"].iloc[0]
    assert f"ratio {ratio:.2g} (−{-10 * np.log10(ratio):.1f} dB)" in aliases.get_title()


def test_fig7_bars_are_means_and_lines_their_intervals(tables, drawn):
    fig = drawn("fig7_layerwise_mean_avr")
    stats = tables["phase3_layerwise_avr_stats"]
    for tap in ("input", "dense"):
        ax = panel(fig, f"{tap} tap")
        for family, other in (("strided", "blurpool"), ("blurpool", "blurpool"), ("nula", "nula")):
            own = stats[(stats["tap"] == tap) & (stats["family_b"] == other)].sort_values("layer_index")
            side = "a" if family == "strided" else "b"
            drawn = bars(ax, family)
            assert [bar.get_height() for bar in drawn] == pytest.approx(list(own[f"mean_{side}"]))
            bounds = own[[f"mean_{side}_ci_low", f"mean_{side}_ci_high"]].itertuples(index=False)
            for bar, interval in zip(drawn, bounds, strict=True):
                assert error_at(ax, bar) == pytest.approx(tuple(interval))


def error_at(ax: Axes, bar: Rectangle) -> tuple[float, float]:
    """Ends of the error bar over the middle of a bar."""
    middle = bar.get_x() + bar.get_width() / 2
    lines = [line for c in ax.collections if isinstance(c, LineCollection) for line in c.get_segments()]
    (line,) = [line for line in lines if np.isclose(line[0, 0], middle)]
    return line[0, 1], line[1, 1]


def test_fig7_keeps_the_comparison_with_the_most_images(tables):
    stats = tables["phase3_layerwise_avr_stats"].copy()
    nula = stats["family_b"] == "nula"
    stats.loc[nula, ["n", "n_clusters", "mean_a"]] = [5, 3, 0.9]
    fig = plot("fig7_layerwise_mean_avr", {"phase3_layerwise_avr_stats": stats})
    assert max(bar.get_height() for bar in bars(panel(fig, "dense tap"), "strided")) < 0.9
    assert any("n = 3–12 photographs (5–40 images)" in text for text in texts_of(fig))


def test_fig8_has_a_violin_per_site_its_median_and_the_p_against_strided(tables, drawn):
    fig = drawn("fig8_avr_distributions")
    stats, images = tables["phase3_layerwise_avr_stats"], tables["per_image"]
    for tap in ("dense", "input"):
        ax = panel(fig, f"{tap} tap")
        assert sum(isinstance(c, PolyCollection) for c in ax.collections) == 4 + 4 + 3
        own = images[(images["tap"] == tap) & (images["family"] == "nula")]
        medians = own.groupby("layer_index")["avr"].median()
        marks = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "^"]
        assert marks == pytest.approx(list(medians))
        said = [text.get_text() for text in ax.texts if "site" not in text.get_text()]
        tests = stats[stats["tap"] == tap]
        expected = [
            ("< 0.001" if p < 0.001 else f"{p:.3f}") + (f" {stars}" if stars else "")
            for p, stars in zip(tests["p_holm"], tests["significance"], strict=True)
        ]
        assert sorted(said) == sorted(expected)


def test_without_a_test_no_difference_from_the_base_is_drawn(tables):
    """Of one photograph there is no p: such marks are open, the base's own are not."""
    name = "phase6_nula"
    table = tables[name].assign(delta_base_p_holm=np.nan)
    fig = plot("fig23_nula_perturbations", {**tables, name: table})
    marks = [line for line in fig.axes[0].lines if line.get_marker() not in ("None", "")]
    opened = [line.get_markerfacecolor() == "white" for line in marks]
    known = table[table["accuracy"].notna()]
    assert opened == known["base"].notna().tolist()  # the base has none
    assert any("open: no significant difference" in text for text in texts_of(fig))


def test_silent_maps_are_left_out_and_a_silent_site_is_not_a_missing_one(tables):
    """Silent maps have AVR 0 by convention; it must not enter distributions and fits."""
    images = tables["per_image"].copy()
    some = (images["family"] == "nula") & (images["image"] == "photo0007.png")
    all_of_one = (images["family"] == "blurpool") & (images["layer_index"] == 1)
    images.loc[some | all_of_one, ["avr", "silent"]] = [0.0, True]
    violins = plot("fig8_avr_distributions", {**tables, "per_image": images})
    assert texts_of(violins).count("silent") == 2  # both taps
    assert any("n = 12 photographs (40 images)" in text for text in texts_of(violins))  # what was tested
    assert all(ax.collections[0].get_paths()[0].vertices[:, 1].min() > 0 for ax in data_axes(violins))
    scatter = plot("fig10_avr_sis_scatter", {**tables, "per_image": images})
    assert texts_of(scatter).count("silent") == 1
    clouds = [c for ax in data_axes(scatter)[11:14] for c in ax.collections]
    loud = images[(images["family"] == "nula") & (images["tap"] == "dense") & ~images["silent"].astype(bool)]
    for cloud, (_, own) in zip(clouds, loud.groupby("layer_index"), strict=True):
        assert sorted(cloud.get_offsets()[:, 0]) == pytest.approx(
            sorted(own.groupby("cluster")["avr"].mean())
        )


def test_fig10_points_are_the_photographs_and_the_numbers_the_correlations(tables, drawn):
    fig = drawn("fig10_avr_sis_scatter")
    images, tests = tables["per_image"], tables["phase4_correlation"]
    ax = data_axes(fig)[5 + 2]  # second row, second layer
    where = {"family": "blurpool", "layer": "layer2.0.shortcut.0", "tap": "dense"}
    own = images[(images[list(where)] == pd.Series(where)).all(axis=1)]
    test = tests[(tests[list(where)] == pd.Series(where)).all(axis=1)].iloc[0]
    (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    own = own.groupby("cluster", sort=False)[["avr", "sis"]].mean()
    np.testing.assert_allclose(points.get_offsets(), own)
    assert f"r² = {test['r2']:.3f}\np = {test['pearson_p_holm']:.3f}" in ax.get_title()
    slope, intercept = np.polyfit(own["avr"], own["sis"], 1)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, intercept + slope * x, atol=1e-12)


def test_fig10_shows_what_the_margin_explains_before_what_avr_does(tables, drawn):
    ax = data_axes(drawn("fig10_avr_sis_scatter"))[5]
    assert ax.get_title() == "R² = 0.910\nof log SIS"
    own = tables["phase4_images"].query("family == 'blurpool'").groupby("cluster", sort=False)
    (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(points.get_offsets(), own[["logit_margin", "sis"]].mean())
    assert not ax.lines  # a line through SIS itself would mislead: it is log SIS that is linear


def test_fig10_takes_a_root_scale_only_where_sis_is_skewed(two_layers, drawn):
    images = two_layers["per_image"].copy()
    images["sis"] = images.groupby(["family", "site", "tap"]).cumcount() / 100
    even = plot("fig10_avr_sis_scatter", {**two_layers, "per_image": images})
    assert data_axes(even)[0].get_yscale() == "linear"
    assert data_axes(drawn("fig10_avr_sis_scatter"))[0].get_yscale() == "function"  # as it is, skewed


@pytest.mark.parametrize("row", range(5))
def test_fig11_bars_and_intervals_are_the_tables(row, tables, drawn):
    axes = data_axes(drawn("fig11_correlation_comparison"))
    coefficient = ["spearman_given_margin"] * 2 + ["pearson", "spearman", "distance_correlation"]
    coefficient = coefficient[row]
    table = tables["phase4_partial" if row < 2 else "phase4_correlation"]
    if row < 2:
        table = table[table["response"] == ["sis", "logit_jitter"][row]]
    for column, tap in enumerate(("dense", "signal" if row < 2 else "input")):
        own = table[(table["tap"] == tap) & (table["family"] == "blurpool")].sort_values("layer_index")
        ax = axes[2 * row + column]
        drawn = bars(ax, "blurpool")
        assert [bar.get_height() for bar in drawn] == pytest.approx(list(own[coefficient]))
        for bar, low, high in zip(
            drawn, own[f"{coefficient}_ci_low"], own[f"{coefficient}_ci_high"], strict=True
        ):
            assert error_at(ax, bar) == pytest.approx((low, high))
        assert ax.get_ylim()[0] < own[f"{coefficient}_ci_low"].min()
        assert ax.get_ylim()[1] > table[f"{coefficient}_ci_high"].max()
        stars = [text.get_text() for text in ax.texts if set(text.get_text()) == {"*"}]
        assert stars == ([s for s in table[table["tap"] == tap]["significance"] if s] if row < 3 else [])


def test_fig12_counts_every_image_once_and_marks_the_means(tables):
    images = tables["per_image"].copy()
    images.loc[images["image"] == "photo0000.png", "sis"] = 0.0
    fig = plot("fig12_sis_distributions", {**tables, "per_image": images})
    ax, below = data_axes(fig)
    outlines = [patch for patch in ax.patches if not patch.get_fill()]
    assert len(outlines) == 3
    scores = images.drop_duplicates(["family", "image"])
    shown = {family: FAMILIES[family] for family in FAMILIES if family in set(images["family"])}
    for patch, line, (family, style) in zip(outlines, ax.lines, shown.items(), strict=True):
        edges, heights = patch.get_xy()[1:-1:2, 0], patch.get_xy()[1:-1:2, 1]
        assert len(edges) == 40
        assert heights.sum() == 40
        means = scores[scores["family"] == family].groupby("cluster")["sis"].mean()
        assert line.get_xdata()[0] == pytest.approx(means.mean())
        moved = tables["phase4_images"].query("family == @family").groupby("cluster")["logit_jitter"].mean()
        said = f"{style.label}: mean {means.mean():.3g}, n = 12; jitter {moved.mean():.3g}"
        assert said in texts_of(fig)
    outlines = [patch for patch in below.patches if not patch.get_fill()]
    assert [patch.get_xy()[1:-1:2, 1].sum() for patch in outlines] == [40] * 3


def test_fig13_dumbbells_run_from_input_to_dense(tables, drawn):
    (ax,) = data_axes(drawn("fig13_avr_intervention"))
    stats = tables["phase3_layerwise_avr_stats"]
    own = stats[stats["family_b"] == "nula"].pivot(index="layer_index", columns="tap", values="mean_b")
    colour = FAMILIES["nula"].colour
    bars_drawn = [line for line in ax.lines if line.get_color() == colour and len(line.get_ydata()) == 2]
    np.testing.assert_allclose([line.get_ydata() for line in bars_drawn], own[["input", "dense"]])
    filled = [line for line in ax.lines if line.get_markerfacecolor() == colour and line.get_marker() == "^"]
    np.testing.assert_allclose(
        [line.get_ydata()[0] for line in filled if len(line.get_ydata()) == 1], own["dense"]
    )


def test_fig14_places_the_models_and_words_the_changes(tables, drawn):
    fig = drawn("fig14_tradeoff")
    table = tables["phase5_tradeoff"].set_index("family")
    ax = data_axes(fig)[0]
    marks = [line.get_xydata()[0] for line in ax.lines if line.get_marker() in {"o", "s", "^"}]
    np.testing.assert_allclose(marks, table[["sis", "latency_ms"]])
    (box,) = [text for text in texts_of(fig) if "BlurPool against strided" in text]
    change = table.loc["blurpool", "sis_change_percent"]
    assert f"ΔSIS −{-change:.1f} % (−{3 - change:.1f} to −{-3 - change:.1f})\nΔtime +19.0 %\n" in box
    assert "\nagreement 65.4 % (60.0 to 70.0)\naccuracy 84.0 % (80.0 to 88.0), n = 40" in box
    assert any(
        "n = 12 photographs (40 images); timed on cpu, 2 threads, batch 32" in text for text in texts_of(fig)
    )


def test_fig14_is_silent_about_accuracy_without_labels(tables):
    table = tables["phase5_tradeoff"].assign(accuracy=np.nan)
    assert "accuracy" not in " ".join(texts_of(plot("fig14_tradeoff", {"phase5_tradeoff": table})))


def marks(ax: Axes, family: str) -> list[tuple[float, float]]:
    """Places of a family's single marks, filled or open."""
    own = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "")]
    colour = FAMILIES[family].colour.lower()
    chosen = [line for line in own if colour in (to_hex(line.get_mfc()), to_hex(line.get_mec()))]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in chosen]


def spans(ax: Axes) -> list[np.ndarray]:
    """Corners of the intervals, as matplotlib keeps them: two rows (x, y)."""
    return [
        path.vertices for found in ax.collections if isinstance(found, LineCollection)
        for path in found.get_paths()
    ]  # fmt: skip


@pytest.mark.parametrize(("row", "name", "scale"), [(0, "psnr_db", 1), (1, "relative_error", 100)])
@pytest.mark.parametrize(("column", "kind"), [(0, "whole"), (1, "sub-pixel")])
def test_fig20_points_and_intervals_are_the_tables(row, name, scale, column, kind, tables, drawn):
    ax = data_axes(drawn("fig20_equivariance"))[2 * row + column]
    table = tables["phase4_equivariance"]
    for family in ("strided", "blurpool"):
        own = table[(table["family"] == family) & (table["kind"] == kind)].sort_values("layer_index")
        found = sorted(marks(ax, family))
        assert [round(x) for x, _ in found] == [0, 1, 2, 3]
        np.testing.assert_allclose([y for _, y in found], scale * own[name])
        ends = [span[:, 1] for span in spans(ax) for x, _ in found if span[0, 0] == x]
        bounds = scale * own[[f"{name}_ci_low", f"{name}_ci_high"]].to_numpy()
        np.testing.assert_allclose(sorted(map(tuple, ends)), sorted(map(tuple, bounds)))


def test_fig20_says_where_it_cuts_an_exact_network(tables, drawn):
    fig = drawn("fig20_equivariance")
    assert data_axes(fig)[0].get_ylabel() == "PSNR, output tap\n(dB; 150: that or more)"
    assert {y for _, y in marks(data_axes(fig)[0], "nula")} == {150.0}
    table = tables["phase4_equivariance"]
    finite = plot("fig20_equivariance", {"phase4_equivariance": table[table["family"] != "nula"]})
    assert data_axes(finite)[0].get_ylabel() == "PSNR, output tap\n(dB)"


def test_fig21_has_a_line_per_site_in_order_and_all_of_them_last(tables, drawn):
    fig = drawn("fig21_attribution")
    left, right = data_axes(fig)
    table = tables["phase4_attribution"].dropna(subset=["delta_sis"])
    names = [label.get_text().replace("\n", "") for label in left.get_yticklabels()]
    assert names == [*table["site"]][::-1]
    assert names[0] == "all sites"
    for ax, name, scale in ((left, "delta_sis", 1), (right, "agreement", 100)):
        found = {y: x for x, y in marks(ax, "strided")}
        values = [found[y] for y in range(len(table) - 1, -1, -1)]
        np.testing.assert_allclose(values, scale * table[name])
        bounds = scale * table[[f"{name}_ci_low", f"{name}_ci_high"]].to_numpy()
        np.testing.assert_allclose([span[:, 0] for span in spans(ax)], bounds)
    assert [text.get_text() for text in left.texts] == ["**"] * 4
    assert "nothing to replace in BlurPool and NULA" in " ".join(texts_of(fig))


def test_fig22_lines_are_the_confidences_and_marks_the_changes(tables, drawn):
    table = tables["phase4_diagonal_trace"]
    axes = data_axes(drawn("fig22_diagonal_trace"))
    assert len(axes) == 4
    for ax in axes:
        own = table[table["image"] == ax.get_title()]
        for family in MODELS:
            here = own[own["family"] == family]
            style = FAMILIES[family]
            (line,) = [x for x in ax.lines if x.get_color() == style.colour and x.get_marker() == "None"]
            np.testing.assert_allclose(line.get_ydata(), 100 * here["confidence"])
            (marked,) = [x for x in ax.lines if x.get_marker() == style.marker]
            assert list(marked.get_xdata()) == here.loc[here["changed"], "offset"].tolist()


def test_families_keep_their_colour_and_differ_without_it():
    for looks in zip(*((s.colour, s.marker, s.line, s.hatch) for s in FAMILIES.values()), strict=True):
        assert len(set(looks)) == len(FAMILIES)
    # sRGB → relative luminance: in a grey print they still differ
    lights = []
    for style in FAMILIES.values():
        rgb = np.array(matplotlib.colors.to_rgb(style.colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    assert min(b / a for a, b in itertools.pairwise(sorted(lights))) > 1.3


# Bad input ------------------------------------------------------------------------------------------------


def test_unknown_figure_offers_the_nearest(tmp_path):
    with pytest.raises(SpectralError, match=r"no figure 'fig7'.*'fig7_layerwise_mean_avr'|no figure 'fig7'$"):
        draw_figure("fig7", tmp_path, tmp_path)
    with pytest.raises(SpectralError, match="nearest: 'fig14_tradeoff'"):
        draw_all(tmp_path, ["fig14_tradeof"])


def test_missing_table_names_figure_table_and_script(tmp_path):
    expected = (
        r"^fig10_avr_sis_scatter: table '.*per_image.csv' is not there; "
        r"run experiments/phase3_natural_images.py, which writes it$"
    )
    with pytest.raises(SpectralError, match=expected):
        draw_figure("fig10_avr_sis_scatter", tmp_path, tmp_path)
    with pytest.raises(SpectralError, match=r"^fig14_tradeoff: table 'phase5_tradeoff' is missing; run exp"):
        FIGURES["fig14_tradeoff"].plot({})


@STEMS
def test_missing_column_is_named(stem, tables):
    for name in FIGURES[stem].tables:
        for column in FIGURES[stem].columns[name]:
            broken = {**tables, name: tables[name].drop(columns=column)}
            expected = f"^{stem}: table '{name}' has no column '{column}'.*run {TABLE_WRITERS[name]}"
            with pytest.raises(SpectralError, match=expected):
                FIGURES[stem].plot(broken)


@STEMS
def test_empty_table_is_named(stem, tables, tmp_path):
    (tmp_path / "tables").mkdir()
    for name in FIGURES[stem].tables:
        tables[name].iloc[:0].to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    with pytest.raises(
        SpectralError, match=rf"^{stem}: table '{FIGURES[stem].tables[0]}' has no rows; run (exp|spectral)"
    ):
        draw_figure(stem, tmp_path / "tables", tmp_path)


def test_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "phase5_tradeoff.csv").touch()
    with pytest.raises(
        SpectralError, match=r"^fig14_tradeoff: table '.*' cannot be read \(.* is empty; write"
    ):
        draw_figure("fig14_tradeoff", tmp_path, tmp_path)


def test_tap_without_rows_is_named(tables):
    table = tables["fig15_radial_overlay"].assign(tap="input")
    with pytest.raises(SpectralError, match="'fig15_radial_overlay' has no rows with tap = 'dense'; run exp"):
        FIGURES["fig15_radial_overlay"].plot({"fig15_radial_overlay": table})


def test_all_unknown_values_are_named(tables):
    images = tables["per_image"].assign(sis=np.nan)
    with pytest.raises(NothingKnownError, match=r"table 'per_image' has no rows with a known sis$"):
        FIGURES["fig12_sis_distributions"].plot({**tables, "per_image": images})


def test_a_figure_of_which_nothing_is_known_is_none(tables, tmp_path):
    for name in FIGURES["fig12_sis_distributions"].tables:
        tables[name].assign(sis=np.nan).to_csv(tmp_path / f"{name}.csv", index=False)
    for kind in ("png", "pdf"):
        (tmp_path / f"fig12_sis_distributions.{kind}").touch()  # of other tables
    drawn, why = draw_what_is_known("fig12_sis_distributions", tmp_path, tmp_path)
    assert (drawn, why) == ([], "table 'per_image' has no rows with a known sis")
    assert not list(tmp_path.glob("*.p*"))


def test_two_models_of_a_family_are_refused(tables):
    images = tables["per_image"].copy()
    images.loc[images["layer_index"] == 0, "model"] = "timm/resnet50"
    with pytest.raises(
        SpectralError, match="'per_image' has several models of family 'blurpool', expected one"
    ):
        FIGURES["fig12_sis_distributions"].plot({**tables, "per_image": images})


def test_unknown_family_is_named(tables):
    table = tables["phase5_tradeoff"].assign(family="wavelet")
    with pytest.raises(
        SpectralError, match=r"^fig14_tradeoff: table .* has an unknown family 'wavelet' \(known: strided"
    ):
        FIGURES["fig14_tradeoff"].plot({"phase5_tradeoff": table})


def test_incomplete_spectrum_is_refused(tables):
    table = tables["fig1_layerwise_power_spectra"].drop(index=5000)
    with pytest.raises(
        SpectralError, match=r"one row for each of the \d+×\d+ bins of '.*', got \d+; run exp"
    ):
        FIGURES["fig1_layerwise_power_spectra"].plot({"fig1_layerwise_power_spectra": table})


def test_unwritable_folder_is_named(results, tmp_path):
    (tmp_path / "figures").touch()
    with pytest.raises(
        SpectralError, match=r"^fig14_tradeoff: cannot write to '.*figures' \(.*\); choose another"
    ):
        draw_figure("fig14_tradeoff", results / "tables", tmp_path / "figures")


def test_draw_all_draws_what_is_asked_for(results):
    stems = ["fig14_tradeoff", "fig12_sis_distributions"]
    paths = draw_all(results, stems, dpi=40)
    assert [path.relative_to(results).as_posix() for path in paths] == [
        f"figures/{stem}.{kind}" for stem in stems for kind in ("png", "pdf")
    ]


def test_a_site_without_a_counterpart_takes_no_column(tables):
    rows = tables["phase2b_architecture_comparison"]
    alone = rows[rows["family"] == "nula"].iloc[:1].assign(layer="stage2.lonely", layer_index=99)
    assert "stage2.lonely" not in find_layers(pd.concat([rows, alone]))
    assert find_layers(pd.concat([rows, alone])) == find_layers(rows)
    reference = alone.assign(family="strided")
    assert find_layers(pd.concat([rows, reference]))[-1] == "stage2.lonely"
