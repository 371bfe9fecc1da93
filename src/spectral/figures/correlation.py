"""What goes with instability: how certain a prediction is, and what AVR has to do with it."""

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
    INK,
    SIS_LABEL,
    SMALL,
    add_heading,
    add_legend,
    blank_panel,
    family_patches,
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
from spectral.table.schema import with_bounds

COEFFICIENTS = {
    "pearson": "Pearson\ncorrelation, SIS",
    "spearman": "Spearman\ncorrelation, SIS",
    "distance_correlation": "distance\ncorrelation, SIS",
}
RESPONSES = {
    "sis": "rank correlation\ngiven margin, SIS",
    "logit_jitter": "rank correlation\ngiven margin, jitter",
}
PREDICTORS = {"avr": "AVR, dense tap", "alias_power_ratio_channel_median": "alias power ratio, signal tap"}
JITTER_LABEL = "logit jitter (over the logits' spread)"
BINS = 40
CROWDED = 7  # panels beside each other, above which their numbers stand upright and names are broken more
SKEWED = 1.0  # sample skewness above which SIS gets a square-root axis

_SITE = ("model", "family", "site", "layer", "layer_index", "tap")
_PARTIAL = "spearman_given_margin"


@figure(
    "fig10_avr_sis_scatter",
    title="Shift instability against the logit margin, and against AVR at the dense tap",
    caption=(
        "One point per photograph, the mean of its crops. Left: SIS against the logit margin, largest logit "
        "less the second; R²: of log SIS on photographs that a line in the margin hasn't seen. Right of it: "
        "SIS against AVR at each site's dense tap. Line: least squares; r² and Holm-corrected p are "
        "Pearson's, as the study reports them. Each family has an axis of its own; where SIS is skewed it is "
        "a square root, on which a straight line bends."
    ),
    columns={
        "per_image": ("image", "cluster", *_SITE, "avr", "sis", "silent"),
        "phase4_images": ("image", "cluster", "model", "family", "sis", "logit_margin"),
        "phase4_confidence": ("family", "response", "predictors", "r2"),
        "phase4_correlation": (*_SITE, "n", "n_clusters", "r2", "pearson_p_holm"),
    },
)
def plot_avr_sis_scatter(source: Source) -> Figure:
    """Scatter of SIS by photograph, a row per family: over the logit margin, then over AVR of each layer."""
    images = mask_silent(source.rows("per_image", known=["sis"], tap="dense"))
    images = images[images["layer"] != "image"]
    points = images.groupby([*_SITE, "cluster"], sort=False)[["avr", "sis"]].mean().reset_index()
    margins = source.rows("phase4_images", known=["sis", "logit_margin"])
    margins = margins.groupby(["family", "cluster"], sort=False)[["logit_margin", "sis"]].mean().reset_index()
    tests = source.rows("phase4_correlation", tap="dense")
    fits = {(test["family"], test["layer"]): test for test in tests.to_dict("records")}
    families, layers = find_families(points), find_layers(points)
    skewed = bool(points.drop_duplicates(["family", "cluster"])["sis"].skew() > SKEWED)  # type: ignore[operator]
    limits = pd.concat([points, margins]).groupby("family")["sis"].max().replace(0.0, 1.0)

    crowded = 1 + len(layers) > CROWDED
    fig = new_figure(FULL_WIDTH, 1.45 * len(families) + 0.95)
    axes = fig.subplots(len(families), 1 + len(layers), squeeze=False)
    for i, family in enumerate(families):
        own = margins[margins["family"] == family]
        title = "logit margin\n" if i == 0 else ""
        panels = [(own.rename(columns={"logit_margin": "x"}), title + _describe_margin(source, family))]
        for layer in layers:
            here = points[(points["family"] == family) & (points["layer"] == layer)]
            title = f"{wrap_name(layer, 11 if crowded else 12)}\n" if i == 0 else ""
            silent = here["avr"].isna().all()
            title += "" if silent else _describe_fit(fits.get((family, layer)))
            panels.append((here.rename(columns={"avr": "x"}), title))
        for j, (ax, (rows, title)) in enumerate(zip(axes[i], panels, strict=True)):
            ax.set_title(title, fontsize=SMALL)
            if rows["x"].isna().all():
                blank_panel(ax, "no such site" if rows.empty else "silent")
                continue
            _draw_scatter(ax, rows.dropna(subset=["x"]), family, line=j > 0)
            limit = float(limits[family])  # a stable family would be a flat line on another's scale
            if skewed:
                use_sqrt_scale(ax, "y", limit)
            ax.set_ylim(-0.002 * limit if skewed else -0.03 * limit, 1.06 * limit)
            ax.tick_params(labelleft=j == 0)
            ax.tick_params(axis="x", labelrotation=90 if crowded else 0)
        axes[i, 0].set_ylabel(FAMILIES[family].label, fontweight="bold")
    fig.supxlabel(f"logit margin, then {AVR_LABEL}, dense tap")
    fig.supylabel(SIS_LABEL + (", square-root scale" if skewed else ""))
    add_heading(
        fig,
        source.title,
        f"{format_units(tests)}; line: least squares; p: Pearson, Holm-corrected",
    )
    return fig


@figure(
    "fig11_correlation_comparison",
    title="Dependence between a layer's aliasing and shift instability",
    caption=(
        "Upper two rows: Spearman's correlation of photographs' aliasing with SIS and with logit jitter, the "
        "logit margin held fixed, of AVR at the dense tap (left) and of the median channel's alias power "
        "ratio at the tap signal (right). Lower three rows: as the study reports it, Pearson's, Spearman's "
        "and distance correlation between AVR and SIS, at the dense tap (left) and the input tap (right). "
        "Per layer and family, with 95 % intervals. Stars: Holm-corrected p, each table of its own; below, "
        "of Pearson's r (*** < 0.001, ** < 0.01, * < 0.05)."
    ),
    columns={
        "phase4_partial": (*_SITE, "predictor", "response", *with_bounds(_PARTIAL), "significance"),
        "phase4_correlation": (*_SITE, "n", "n_clusters", *with_bounds(*COEFFICIENTS), "significance"),
    },
)
def plot_correlation_comparison(source: Source) -> Figure:
    """Grouped bars with intervals: given the margin, then as published; two taps, per layer and family."""
    table, partial = source.rows("phase4_correlation"), source.rows("phase4_partial")
    families, layers = find_families(table), find_layers(table)
    taps = {tap: table[table["tap"] == tap] for tap in ("dense", "input")}
    rows = [
        (label, _PARTIAL, True, [partial[(partial["response"] == response) & (partial["predictor"] == name)]
                                 for name in PREDICTORS])
        for response, label in RESPONSES.items()
    ]  # fmt: skip
    rows += [(label, name, name == "pearson", list(taps.values())) for name, label in COEFFICIENTS.items()]
    fig = new_figure(FULL_WIDTH, 8.6)
    axes = fig.subplots(len(rows), 2, sharey="row")
    for pair, (label, coefficient, starred, blocks) in zip(axes, rows, strict=True):
        for ax, own in zip(pair, blocks, strict=True):
            _draw_coefficients(ax, own, coefficient, families, layers)
            if starred:
                _write_stars(ax, own, f"{coefficient}_ci_high", families, layers)
            ax.tick_params(labelbottom=ax is axes[-1, 0] or ax is axes[-1, 1])
        pair[0].set_ylabel(label)
        if starred:
            low, high = pair[0].get_ylim()  # shared, so only now does it span both panels
            pair[0].set_ylim(low, high + 0.15 * (high - low))  # room for the stars
    for ax, title in zip((*axes[0], *axes[len(RESPONSES)]), (*PREDICTORS.values(), *_PUBLISHED), strict=True):
        ax.set_title(title)
    add_legend(fig, family_patches(find_models(table)))
    add_heading(
        fig,
        source.title,
        f"{format_units(table)}; lines: 95 % intervals; stars: Holm-corrected p",
    )
    return fig


@figure(
    "fig12_sis_distributions",
    title="Distribution of shift instability",
    caption=(
        "Shift Instability Score (SIS) of every image under one-pixel circular shifts, per family, and below "
        "it the logit jitter of the first of them, which knows neither the softmax nor the logits' scale; "
        "vertical lines: means over photographs. The axes are square roots, so that both the many small "
        "values and the tail show."
    ),
    columns={
        "per_image": ("image", "cluster", *_SITE, "sis"),
        "phase4_images": ("image", "cluster", "model", "family", "logit_jitter"),
    },
)
def plot_sis_distributions(source: Source) -> Figure:
    """Overlapping histograms of per-image SIS and logit jitter with the families' means."""
    scores = source.rows("per_image", known=["sis"]).drop_duplicates(["family", "image"])
    jitters = source.rows("phase4_images")
    fig = new_figure(COLUMN_WIDTH, 5.0)
    above, below = fig.subplots(2, 1)
    means = _draw_distributions(above, scores, "sis", SIS_LABEL)
    moved = _draw_distributions(below, jitters.dropna(subset=["logit_jitter"]), "logit_jitter", JITTER_LABEL)
    handles: list[Artist] = []
    for family, own in means.items():
        style = FAMILIES[family]
        label = f"{style.label}: mean {own.mean():.3g}, n = {len(own)}"
        label += f"; jitter {moved[family].mean():.3g}" if family in moved else "; no jitter"
        handles.append(Line2D([], [], color=style.colour, ls=style.line, label=label))
    add_legend(fig, handles, columns=1)
    add_heading(fig, source.title, "one-pixel shifts of each image")
    return fig


_PUBLISHED = ("as published: AVR, dense tap", "as published: AVR, input tap")


def _draw_distributions(ax: Axes, rows: pd.DataFrame, column: str, label: str) -> dict[str, pd.Series]:
    """Draw a histogram per family, and return the families' photographs' means."""
    means = {}
    limit = float(rows[column].max() if len(rows) else 1) or 1.0
    edges = (np.linspace(0, math.sqrt(limit), BINS + 1) ** 2).tolist()
    edges[-1] = limit  # the root's rounding must not lose the largest score
    for family in find_families(rows):
        own, style = rows[rows["family"] == family][column], FAMILIES[family]
        ax.hist(own, edges, histtype="stepfilled", fc=style.colour, alpha=0.2)
        ax.hist(own, edges, histtype="step", ec=style.colour, ls=style.line, lw=1.2)
        means[family] = own.groupby(rows.loc[own.index, "cluster"]).mean()
        ax.axvline(means[family].mean(), color=style.colour, ls=style.line, lw=1.2)
    use_sqrt_scale(ax, "x", limit)
    ax.set(xlim=(0, limit), xlabel=f"{label}, square-root scale", ylabel="images per bin")
    return means


def _draw_coefficients(
    ax: Axes, rows: pd.DataFrame, coefficient: str, families: list[str], layers: list[str]
) -> None:
    low, high = (by_site(rows, column) for column in with_bounds(coefficient)[1:])
    intervals = {key: (low[key], high[key]) for key in low}
    draw_grouped_bars(ax, by_site(rows, coefficient), families, layers, intervals=intervals)
    ax.axhline(0, color=INK, lw=0.6)
    ax.spines["bottom"].set_visible(False)
    set_layer_ticks(ax, layers, FULL_WIDTH / 2 - 0.4)


def _draw_scatter(ax: Axes, rows: pd.DataFrame, family: str, line: bool) -> None:
    style = FAMILIES[family]
    ax.scatter(rows["x"], rows["sis"], s=5, c=style.colour, marker=style.marker, alpha=0.4, lw=0)
    if line and rows["x"].nunique() > 1:
        slope = rows["x"].cov(rows["sis"]) / rows["x"].var()
        x = np.linspace(rows["x"].min(), rows["x"].max(), 400)
        y = rows["sis"].mean() + slope * (x - rows["x"].mean())
        ax.plot(x[y >= 0], y[y >= 0], color=INK, lw=1.2)  # SIS cannot be negative
    ax.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
    ax.ticklabel_format(axis="x", scilimits=(-3, 3))  # 0.0005 is too wide for a panel in eight


def _write_stars(ax: Axes, rows: pd.DataFrame, top: str, families: list[str], layers: list[str]) -> None:
    """Write stars above intervals."""
    offsets = dict(zip(families, slot_offsets(len(families)), strict=True))
    for row in rows.to_dict("records"):
        if isinstance(row["significance"], str):
            x, y = layers.index(row["layer"]) + offsets[row["family"]], max(0.0, row[top])
            style: dict[str, Any] = {"rotation": 90, "ha": "center", "fontsize": SMALL}
            ax.annotate(row["significance"], (x, y), (2, 1.5), textcoords="offset points", **style)


def _describe_fit(test: Mapping[Hashable, Any] | None) -> str:
    if test is None:
        return "not tested"
    if not math.isfinite(test["r2"]):
        return "undetermined"
    return f"r² = {test['r2']:.3f}\n{format_p(float(test['pearson_p_holm']))}"


def _describe_margin(source: Source, family: str) -> str:
    found = source.rows("phase4_confidence", response="log sis", predictors="logit margin")
    r2 = [float(value) for value in found[found["family"] == family]["r2"] if math.isfinite(value)]
    return f"R² = {r2[0]:.3f}\nof log SIS" if r2 else "not fitted"
