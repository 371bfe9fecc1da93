"""What moves with the image: the sites' outputs, the predictions, and the sites that are to blame."""

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

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FAMILIES,
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    SMALL,
    add_heading,
    add_legend,
    family_lines,
    family_points,
    find_families,
    find_layers,
    find_models,
    format_units,
    new_figure,
    separate_groups,
    set_layer_ticks,
    slot_offsets,
    wrap_name,
)
from spectral.table.schema import BOUNDS

KINDS = {"whole": "one pixel up, down, left or right", "sub-pixel": "half a pixel down or right"}
CEILING = 150.0  # dB; beyond it is the rounding of float32, or nothing
ALL_SITES = "all sites"
MOST_IMAGES, MOST_SITES = 4, 24
_SITE = ("model", "family", "site", "layer", "layer_index")


@figure(
    "fig20_equivariance",
    title="Equivariance of each site's output",
    caption=(
        "A site's output for a circularly shifted image against its output for the image itself, moved by "
        "the shift over the total stride (Fourier interpolation), at the output tap. Top: PSNR (dB) of the "
        "mean squared error over shifts and images, the peak being the range of each image's map; higher is "
        "more equivariant. Bottom: norm of the difference over norm of the map. Both with 95 % intervals. "
        "Half-pixel shifts of the image are Fourier shifts too. A convolution's output and a blur's are "
        "unlike signals: a smooth map has the smaller range."
    ),
    columns={
        "phase4_equivariance": (
            *(*_SITE, "kind", "n", "n_clusters", "psnr_db", "psnr_db_ci_low", "psnr_db_ci_high"),
            *("relative_error", "relative_error_ci_low", "relative_error_ci_high"),
        )
    },
)
def plot_equivariance(source: Source) -> Figure:
    """Points with intervals: PSNR and relative error per layer and family, a column per kind of shift."""
    table = source.rows("phase4_equivariance", known=["psnr_db"])
    families, layers = find_families(table), find_layers(table)
    capped = f"; {CEILING:.0f}: that or more" if (table["psnr_db"] >= CEILING).any() else ""
    decibels = ["psnr_db", "psnr_db_ci_low", "psnr_db_ci_high"]
    table = table.assign(**{name: table[name].clip(upper=CEILING) for name in decibels})
    fig = new_figure(FULL_WIDTH, 4.8)
    axes = fig.subplots(2, 2, sharey="row")
    offsets = dict(zip(families, slot_offsets(len(families), 0.6), strict=True))
    for (upper, lower), (kind, title) in zip(axes.T, KINDS.items(), strict=True):
        for row in table[(table["kind"] == kind) & table["layer"].isin(layers)].to_dict("records"):
            x = layers.index(row["layer"]) + offsets[row["family"]]
            _draw_point(upper, x, row, "psnr_db")
            _draw_point(lower, x, row, "relative_error", scale=100)
        upper.set_title(title)
        for ax in (upper, lower):
            set_layer_ticks(ax, layers, FULL_WIDTH / 2 - 0.4)
            separate_groups(ax, len(layers))
        upper.tick_params(labelbottom=False)
    axes[0, 0].set_ylabel(f"PSNR, output tap\n(dB{capped})")
    axes[1, 0].set_ylabel("relative error,\noutput tap (%)")
    axes[1, 0].set_ylim(bottom=0)
    add_legend(fig, family_points(find_models(table)))
    note = f"{format_units(table)}; lines: 95 % intervals"
    add_heading(fig, source.title, note)
    return fig


@figure(
    "fig21_attribution",
    title="Change of shift instability with one site at a time made alias-free",
    caption=(
        "Left: mean ΔSIS, SIS with an ideal low-pass in front of the site's decimation less SIS without, "
        "paired over images, with 95 % intervals; left of 0: the site makes predictions unstable. Stars: "
        "Holm-corrected p over all that a network's table shows (*** < 0.001, ** < 0.01, * < 0.05); none "
        "where fewer than 80 % of the predictions stay. Right: share of images whose predicted class stays "
        "what it was. The weights are the same, not trained with the filter. SIS and predictions are of the "
        "whole network and belong to no tap. Sites where nothing folds, or that can't be altered, are in the "
        "table with the reason. Open: all sites at once."
    ),
    columns={
        "phase4_attribution": (
            *(*_SITE, "n", "n_clusters", "delta_sis", "delta_sis_ci_low", "delta_sis_ci_high"),
            *("significance", "agreement", "agreement_ci_low", "agreement_ci_high"),
        )
    },
)
def plot_attribution(source: Source) -> Figure:
    """Dots with intervals: ΔSIS and agreement, a line per site and family."""
    rows = source.rows("phase4_attribution", known=["delta_sis"])
    families = find_families(rows)
    others = [f for f in find_families(source.rows("phase4_attribution")) if f not in families]
    rows = pd.concat([_order_sites(rows[rows["family"] == family]) for family in families])
    fig = new_figure(FULL_WIDTH, 0.3 * len(rows) + 1.35)
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    for y, row in zip(range(len(rows) - 1, -1, -1), rows.to_dict("records"), strict=True):
        _draw_dot(left, y, row, "delta_sis")
        _draw_dot(right, y, row, "agreement", scale=100)
        if isinstance(row["significance"], str) and row["significance"]:
            high = np.nanmax([row["delta_sis"], row["delta_sis_ci_high"]])
            style: dict[str, Any] = {"va": "center", "fontsize": SMALL, "textcoords": "offset points"}
            left.annotate(row["significance"], (high, y), (4, -1.5), **style)
    names = [wrap_name(str(site), 24) for site in rows["site"]]
    left.set_yticks(range(len(rows)), names[::-1])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.axvline(0, color=INK, lw=0.6, zorder=1)
    left.margins(x=0.12)
    left.set_xlabel(f"mean change of {SIS_LABEL}")
    left.set_ylabel("site (in the order in which they run)")
    right.set_xlabel("predictions that stay the same (%)")
    right.margins(x=0.1)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.tick_params(axis="y", length=0)
        for y in range(len(rows)):
            ax.axhline(y, color="#e4e4e4", lw=0.5, zorder=0)
    add_legend(fig, family_points(find_models(rows)))
    none = f"; nothing to replace in {' and '.join(FAMILIES[f].label for f in others)}" if others else ""
    note = f"{format_units(rows)}; 95 % intervals{none}"
    add_heading(fig, source.title, note)
    return fig


@figure(
    "fig22_diagonal_trace",
    title="Confidence along a diagonal shift",
    caption=(
        "Probability of the class that is predicted for the image itself, while the image is rolled down and "
        "right by one pixel on both axes at a time; a panel per image, marks where another class is "
        "predicted. A prediction is of the whole network and belongs to no tap. At 32 pixels the last offset "
        "is a whole turn."
    ),
    columns={"phase4_diagonal_trace": ("model", "family", "image", "offset", "confidence", "changed", "n")},
)
def plot_diagonal_trace(source: Source) -> Figure:
    """Lines of confidence over offset, marked where the class changes, a panel per image."""
    table = source.rows("phase4_diagonal_trace", known=["confidence"])
    images = list(dict.fromkeys(table["image"]))[:MOST_IMAGES]
    columns = min(2, len(images))
    lines = math.ceil(len(images) / columns)
    fig = new_figure(FULL_WIDTH, 1.55 * lines + 1.0)
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for place, ax in enumerate(axes.ravel()):
        if place >= len(images):
            ax.set_axis_off()
            continue
        own = table[table["image"] == images[place]]
        for family in find_families(own):
            _draw_trace(ax, own[own["family"] == family].sort_values("offset"), family)
        ax.set_title(str(images[place]))
        ax.set_ylim(-4, 104)
        if place + columns >= len(images):
            ax.set_xlabel("offset down and right (pixels)")
            ax.tick_params(labelbottom=True)
    fig.supylabel("probability of the unshifted image's class (%)")
    mark = Line2D([], [], ls="", marker="o", mfc="white", mec=INK, label="another class is predicted")
    handles: list[Artist] = [*_plain_lines(find_models(table)), mark]
    add_legend(fig, handles, columns=2)
    add_heading(fig, source.title, f"n = {len(images)} images, rolled; one line per network")
    return fig


def _draw_point(ax: Axes, x: float, row: Mapping[Hashable, Any], name: str, scale: float = 1.0) -> None:
    style = FAMILIES[row["family"]]
    mean, low, high = (scale * row[f"{name}{end}"] for end in BOUNDS)
    if math.isfinite(low + high):
        ax.vlines(x, low, high, color=INK, lw=0.9, zorder=2)
    ax.plot(x, mean, marker=style.marker, mfc=style.colour, mec=INK, mew=0.5, ms=4.5, ls="", zorder=3)


def _draw_dot(ax: Axes, y: float, row: Mapping[Hashable, Any], name: str, scale: float = 1.0) -> None:
    style = FAMILIES[row["family"]]
    mean, low, high = (scale * row[f"{name}{end}"] for end in BOUNDS)
    if math.isfinite(low + high):
        ax.hlines(y, low, high, color=GREY, lw=0.9, zorder=2)
    whole = row["site"] == ALL_SITES
    look: dict[str, Any] = {"mfc": "white", "mec": style.colour, "mew": 1, "ms": 6} if whole else {
        "mfc": style.colour, "mec": INK, "mew": 0.5, "ms": 4.5}  # fmt: skip
    ax.plot(mean, y, marker=style.marker, ls="", zorder=3, **look)


def _draw_trace(ax: Axes, own: pd.DataFrame, family: str) -> None:
    style = FAMILIES[family]
    ax.plot(own["offset"], 100 * own["confidence"], color=style.colour, ls=style.line, lw=1)
    changed = own[own["changed"].astype(bool)]
    ax.plot(changed["offset"], 100 * changed["confidence"], style.marker, mfc="white", mec=style.colour,
            mew=0.8, ms=3.5)  # fmt: skip


def _plain_lines(models: Mapping[str, str]) -> list[Artist]:
    lines = family_lines(dict(models))
    for line in lines:
        assert isinstance(line, Line2D)
        line.set_markerfacecolor("white")
    return lines


def _order_sites(rows: pd.DataFrame) -> pd.DataFrame:
    """A family's sites in depth order, all of them together last; the first ones of very many."""
    whole = rows["site"] == ALL_SITES
    single = rows[~whole].sort_values("layer_index", kind="stable").head(MOST_SITES)
    return pd.concat([single, rows[whole]])
