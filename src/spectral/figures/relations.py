"""What goes with what: AVR and frequency, AVR and instability, instability and time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectral.figures.comparisons import by_site, draw_grouped_bars
from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    AVR_LABEL,
    COLUMN_WIDTH,
    FAMILIES,
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    SMALL,
    FamilyStyle,
    add_heading,
    add_legend,
    blank_panel,
    family_patches,
    family_points,
    find_families,
    find_layers,
    find_models,
    format_p,
    format_units,
    mask_silent,
    new_figure,
    set_layer_ticks,
    slot_offsets,
    use_sqrt_scale,
    wrap_name,
)
from spectral.schema import with_bounds

COEFFICIENTS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "distance_correlation": "distance correlation",
}
BINS = 40
SKEWED = 1.0  # sample skewness above which SIS gets a square-root axis

_SITE = ("model", "family", "site", "layer", "layer_index", "tap")
_COEFFICIENT_COLUMNS = tuple(with_bounds(*COEFFICIENTS))


@figure(
    "fig4_avr_vs_frequency",
    title="AVR of a sinusoid against its frequency",
    caption=(
        "AVR for single sinusoids: of the image itself (the metric's step at the new Nyquist frequency), at "
        "the input tap and at the dense tap of each family's first site. Lines: frequencies on exact DFT "
        "bins; marks: the study's ten frequencies, which leak into neighbouring bins."
    ),
    columns={"phase2a_frequency_sweep": (*_SITE, "grid", "frequency", "avr")},
)
def plot_avr_vs_frequency(source: Source) -> Figure:
    """AVR over input frequency, for the image and for both taps of the first sites."""
    table = source.rows("phase2a_frequency_sweep")
    image = source.rows("phase2a_frequency_sweep", site="image")
    sites = table[table["site"] != "image"]
    families = find_families(sites) if not sites.empty else []
    fig = new_figure(FULL_WIDTH, 3.0)
    axes = fig.subplots(1, 3, sharey=True)
    _draw_sweep(axes[0], image[image["family"] == find_families(image)[0]], None)
    titles = ("the image itself", "first site, input tap", "first site, dense tap")
    firsts: list[Artist] = []
    for family in families:
        own = sites[sites["family"] == family]
        own = own[own["layer"] == find_layers(own)[0]]
        for ax, tap in zip(axes[1:], ("input", "dense"), strict=True):
            _draw_sweep(ax, own[own["tap"] == tap], family)
        style, site = FAMILIES[family], own["site"].iloc[0]
        line = {"color": style.colour, "ls": style.line, "marker": style.marker}
        firsts.append(Line2D([], [], label=f"{style.label} ({site})", **line))  # type: ignore[arg-type]
    for ax, title in zip(axes, titles, strict=True):
        ax.axvline(0.5, color=GREY, lw=0.8, ls=(0, (6, 2)), zorder=1)
        ax.set(title=title, xlim=(0, 1.02), ylim=(-0.04, 1.06))
        ax.set_xlabel("frequency of the image (1 = Nyquist)")
    axes[0].set_ylabel(AVR_LABEL)
    nyquist = Line2D([], [], color=GREY, lw=0.8, ls=(0, (6, 2)), label="new Nyquist at stride 2")
    add_legend(fig, [*firsts, nyquist], columns=2)
    counts = image.drop_duplicates(["grid", "frequency"])["grid"].value_counts()
    exact, study = (counts.get(grid, 0) for grid in ("exact bin", "study"))
    note = f"n = {exact} frequencies on exact bins (lines) and {study} of the study (marks)"
    add_heading(fig, source.title, note)
    return fig


@figure(
    "fig10_avr_sis_scatter",
    title="AVR at the dense tap against shift instability",
    caption=(
        "One point per photograph, the mean of its crops: AVR at the site's dense tap and the model's SIS, "
        "on an axis of its own for each family. Line: least squares; r² and Holm-corrected p are Pearson's. "
        "Where SIS is skewed its axis is a square root, on which a straight line bends."
    ),
    columns={
        "per_image": ("image", "cluster", *_SITE, "avr", "sis", "silent"),
        "phase4_correlation": (*_SITE, "n", "n_clusters", "r2", "pearson_p_holm"),
    },
)
def plot_avr_sis_scatter(source: Source) -> Figure:
    """Scatter of SIS over AVR by photograph, a row per family and a column per layer."""
    images = mask_silent(source.rows("per_image", known=["sis"], tap="dense"))
    images = images[images["layer"] != "image"]
    points = images.groupby([*_SITE, "cluster"], sort=False)[["avr", "sis"]].mean().reset_index()
    tests = source.rows("phase4_correlation", tap="dense")
    fits = {(test["family"], test["layer"]): test for test in tests.to_dict("records")}
    families, layers = find_families(points), find_layers(points)
    skewed = bool(points.drop_duplicates(["family", "cluster"])["sis"].skew() > SKEWED)  # type: ignore[operator]
    limits = points.groupby("family")["sis"].max().replace(0.0, 1.0)

    fig = new_figure(FULL_WIDTH, 1.45 * len(families) + 0.95)
    axes = fig.subplots(len(families), len(layers), squeeze=False)
    for (i, j), ax in np.ndenumerate(axes):
        family, layer = families[i], layers[j]
        here = points[(points["family"] == family) & (points["layer"] == layer)]
        title = f"{wrap_name(layer)}\n" if i == 0 else ""
        if here["avr"].isna().all():
            blank_panel(ax, "no such site" if here.empty else "silent")
        else:
            _draw_scatter(ax, here.dropna(subset=["avr"]), family)
            limit = float(limits[family])  # a stable family would be a flat line on another's scale
            if skewed:
                use_sqrt_scale(ax, "y", limit)
            ax.set_ylim(-0.002 * limit if skewed else -0.03 * limit, 1.06 * limit)
            ax.tick_params(labelleft=j == 0)
            title += _describe_fit(fits.get((family, layer)))
        ax.set_title(title, fontsize=SMALL)
        if j == 0:
            ax.set_ylabel(FAMILIES[family].label, fontweight="bold")
    fig.supxlabel(f"{AVR_LABEL}, dense tap")
    fig.supylabel(SIS_LABEL + (", square-root scale" if skewed else ""))
    add_heading(
        fig,
        source.title,
        f"{format_units(tests)}; line: least squares; p: Pearson, Holm-corrected",
    )
    return fig


@figure(
    "fig11_correlation_comparison",
    title="Dependence between a layer's AVR and shift instability",
    caption=(
        "Pearson's, Spearman's and distance correlation between photographs' AVR and SIS, per layer and "
        "family, at the dense tap (left) and the input tap (right), with 95 % intervals. Stars: "
        "Holm-corrected p of Pearson's r (*** < 0.001, ** < 0.01, * < 0.05)."
    ),
    columns={"phase4_correlation": (*_SITE, "n", "n_clusters", *_COEFFICIENT_COLUMNS, "significance")},
)
def plot_correlation_comparison(source: Source) -> Figure:
    """Grouped bars with intervals: three coefficients by two taps, per layer and family."""
    table = source.rows("phase4_correlation")
    families, layers = find_families(table), find_layers(table)
    fig = new_figure(FULL_WIDTH, 6.2)
    axes = fig.subplots(len(COEFFICIENTS), 2, sharey="row")
    for i, (coefficient, label) in enumerate(COEFFICIENTS.items()):
        for j, tap in enumerate(("dense", "input")):
            ax, rows = axes[i, j], table[table["tap"] == tap]
            low, high = (by_site(rows, column) for column in with_bounds(coefficient)[1:])
            intervals = {key: (low[key], high[key]) for key in low}
            draw_grouped_bars(ax, by_site(rows, coefficient), families, layers, intervals=intervals)
            ax.axhline(0, color=INK, lw=0.6)
            ax.spines["bottom"].set_visible(False)
            if coefficient == "pearson":
                _write_stars(ax, rows, families, layers)
            set_layer_ticks(ax, layers, FULL_WIDTH / 2 - 0.4)
            ax.tick_params(labelbottom=i == len(COEFFICIENTS) - 1)
            if i == 0:
                ax.set_title(f"{tap} tap")
        axes[i, 0].set_ylabel(label)
    low, high = axes[0, 0].get_ylim()  # shared, so only now does it span both panels
    axes[0, 0].set_ylim(low, high + 0.12 * (high - low))  # room for the stars
    add_legend(fig, family_patches(find_models(table)))
    add_heading(
        fig,
        source.title,
        f"{format_units(table)}; lines: 95 % intervals; stars: Pearson, Holm-corrected p",
    )
    return fig


@figure(
    "fig12_sis_distributions",
    title="Distribution of shift instability",
    caption=(
        "Shift Instability Score (SIS) of every image under one-pixel circular shifts, per family; vertical "
        "lines: means over photographs. The axis is a square root, so that both the many small values and "
        "the tail show."
    ),
    columns={"per_image": ("image", "cluster", *_SITE, "sis")},
)
def plot_sis_distributions(source: Source) -> Figure:
    """Overlapping histograms of per-image SIS with the families' means."""
    scores = source.rows("per_image", known=["sis"]).drop_duplicates(["family", "image"])
    limit = float(scores["sis"].max()) or 1.0
    edges = (np.linspace(0, math.sqrt(limit), BINS + 1) ** 2).tolist()
    edges[-1] = limit  # the root's rounding must not lose the largest score
    fig = new_figure(COLUMN_WIDTH, 3.1)
    ax = fig.subplots()
    handles: list[Artist] = []
    for family in find_families(scores):
        own, style = scores[scores["family"] == family]["sis"], FAMILIES[family]
        ax.hist(own, edges, histtype="stepfilled", fc=style.colour, alpha=0.2)
        ax.hist(own, edges, histtype="step", ec=style.colour, ls=style.line, lw=1.2)
        by_photograph = own.groupby(scores.loc[own.index, "cluster"]).mean()
        ax.axvline(by_photograph.mean(), color=style.colour, ls=style.line, lw=1.2)
        label = f"{style.label}: mean {by_photograph.mean():.3g}, n = {len(by_photograph)}"
        handles.append(Line2D([], [], color=style.colour, ls=style.line, label=label))
    use_sqrt_scale(ax, "x", limit)
    ax.set(xlim=(0, limit), xlabel=f"{SIS_LABEL}, square-root scale", ylabel="images per bin")
    add_legend(fig, handles, columns=1)
    add_heading(fig, source.title, "one-pixel shifts of each image")
    return fig


@figure(
    "fig14_tradeoff",
    title="Shift instability against inference time",
    caption=(
        "Mean SIS with its 95 % interval against the median time per image with its quartiles, one mark per "
        "model. Boxes: change against the strided model and how often both predict the same class."
    ),
    columns={
        "phase5_tradeoff": (
            *("model", "family", "n", "n_clusters", *with_bounds("sis"), "sis_change_percent"),
            *("agreement", "accuracy", "n_labelled", "latency_ms", "latency_q25", "latency_q75"),
            *("latency_ratio", "batch_size", "device", "threads"),
        )
    },
)
def plot_tradeoff(source: Source) -> Figure:
    """Mean SIS over latency with intervals, a mark per model, and the changes in words."""
    table = source.rows("phase5_tradeoff")
    fig = new_figure(FULL_WIDTH, 3.1)
    ax, side = fig.subplots(1, 2, width_ratios=[2.6, 1])
    boxes = []
    for row in table.to_dict("records"):
        style = FAMILIES[row["family"]]
        x, y = row["sis"], row["latency_ms"]
        ax.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - row["sis_ci_low"])], [max(0.0, row["sis_ci_high"] - x)]],
            yerr=[[max(0.0, y - row["latency_q25"])], [max(0.0, row["latency_q75"] - y)]],
            fmt=style.marker,
            ms=6,
            mfc=style.colour,
            mec=INK,
            mew=0.6,
            ecolor=INK,
            elinewidth=0.9,
            capsize=2,
        )
        if row["family"] != "strided":
            boxes.append(f"{style.label} against strided\n{_describe_change(row)}")
    ax.set(xlabel=f"mean {SIS_LABEL}", ylabel="time per image (ms)")
    ax.margins(0.12)
    ax.set_xlim(left=-0.03 * ax.get_xlim()[1])  # a mark at SIS 0 stays whole
    ax.set_ylim(bottom=0)
    side.set_axis_off()
    frame = {"boxstyle": "round,pad=0.5", "facecolor": "#f7f7f7", "edgecolor": "#bbbbbb", "linewidth": 0.6}
    side.text(0, 0.98, "\n\n".join(boxes), va="top", linespacing=1.4, bbox=frame, transform=side.transAxes)
    add_legend(fig, family_points(find_models(table)))
    first = table.iloc[0]
    threads = f", {first['threads']:g} threads" if pd.notna(first["threads"]) else ""
    timing = f"timed on {first['device']}{threads}, batch {first['batch_size']:g}"
    add_heading(fig, source.title, f"{format_units(table)}; {timing}")
    return fig


def _draw_sweep(ax: Axes, rows: pd.DataFrame, family: str | None) -> None:
    """Exact bins as a line, the study's frequencies as marks."""
    style = FAMILIES[family] if family else FamilyStyle("image", INK, "D", "-", "")
    exact = rows[rows["grid"] == "exact bin"].sort_values("frequency")
    study = rows[rows["grid"] == "study"].sort_values("frequency")
    ax.plot(exact["frequency"], exact["avr"], color=style.colour, ls=style.line)
    ax.plot(study["frequency"], study["avr"], style.marker, color=style.colour, mec="white", mew=0.4, ms=4.5)


def _draw_scatter(ax: Axes, rows: pd.DataFrame, family: str) -> None:
    style = FAMILIES[family]
    ax.scatter(rows["avr"], rows["sis"], s=5, c=style.colour, marker=style.marker, alpha=0.4, lw=0)
    if rows["avr"].nunique() > 1:
        slope = rows["avr"].cov(rows["sis"]) / rows["avr"].var()
        x = np.linspace(rows["avr"].min(), rows["avr"].max(), 400)
        y = rows["sis"].mean() + slope * (x - rows["avr"].mean())
        ax.plot(x[y >= 0], y[y >= 0], color=INK, lw=1.2)  # SIS cannot be negative
    ax.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
    ax.ticklabel_format(axis="x", scilimits=(-3, 3))  # 0.0005 is too wide for a panel in eight


def _write_stars(ax: Axes, rows: pd.DataFrame, families: list[str], layers: list[str]) -> None:
    """Write Pearson's stars above its intervals."""
    offsets = dict(zip(families, slot_offsets(len(families)), strict=True))
    for row in rows.to_dict("records"):
        if isinstance(row["significance"], str):
            x, y = layers.index(row["layer"]) + offsets[row["family"]], max(0.0, row["pearson_ci_high"])
            style: dict[str, Any] = {"rotation": 90, "ha": "center", "fontsize": SMALL}
            ax.annotate(row["significance"], (x, y), (2, 1.5), textcoords="offset points", **style)


def _describe_fit(test: Mapping[Hashable, Any] | None) -> str:
    if test is None:
        return "not tested"
    if not math.isfinite(test["r2"]):
        return "undetermined"
    return f"r² = {test['r2']:.3f}\n{format_p(float(test['pearson_p_holm']))}"


def _describe_change(row: Mapping[Hashable, Any]) -> str:
    """The three numbers of a model's box."""
    sis, time = row["sis_change_percent"], 100 * (row["latency_ratio"] - 1)
    changes = f"ΔSIS {sis:+.1f} %\nΔtime {time:+.1f} %".replace("-", "−")
    text = f"{changes}\nagreement {100 * row['agreement']:.1f} %"
    if math.isnan(row["accuracy"]):
        return text
    return f"{text}\naccuracy {100 * row['accuracy']:.1f} % (n = {row['n_labelled']:.0f})"
