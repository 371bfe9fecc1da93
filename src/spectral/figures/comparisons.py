"""AVR side by side: known inputs, layers and families, and what a site's own filter takes away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    AVR_LABEL,
    FAMILIES,
    FULL_WIDTH,
    GREY,
    INK,
    SMALL,
    TAP_NAMES,
    add_heading,
    add_legend,
    family_patches,
    family_points,
    find_families,
    find_layers,
    find_models,
    format_p,
    format_units,
    mark_slot,
    mask_silent,
    new_figure,
    separate_groups,
    set_layer_ticks,
    slot_offsets,
)
from spectral.table.schema import with_bounds

GROUP = 0.84  # share of a group's width that its slots fill
INPUT_KINDS = {"checkerboard": "checker-\nboard", "constant": "constant", "natural": "natural"}
Values = Mapping[tuple[str, str], float]  # (family, layer) → value

_SITE = ("model", "family", "site", "layer", "layer_index", "tap")
_PAIRED = (
    *("layer", "layer_index", "tap", "family_a", "family_b", "model_a", "model_b", "n", "n_clusters"),
    *with_bounds("mean_a", "mean_b"),
)


@figure(
    "avr_comparison",
    title="AVR of known inputs, and what it becomes in the network (dense tap)",
    caption=(
        "Left: AVR of the input images themselves at stride 2; a ±1 checkerboard must give 1 and a constant "
        "image 0. Right: AVR at the dense tap of every site for the same three inputs. A silent map has no "
        "power at all."
    ),
    columns={"phase1_layerwise_avr": ("input_kind", *_SITE, "avr", "silent")},
)
def plot_avr_comparison(source: Source) -> Figure:
    """Bars of the three inputs' AVR at the image and, in a panel per input, at each layer."""
    table = source.rows("phase1_layerwise_avr")
    images = source.rows("phase1_layerwise_avr", layer="image").drop_duplicates("input_kind")
    sites = source.rows("phase1_layerwise_avr", tap="dense")
    sites = sites[sites["layer"] != "image"]
    families, layers = find_families(sites), find_layers(sites)
    top = float(sites["avr"].max()) or 1.0

    fig = new_figure(FULL_WIDTH, 4.7)
    mosaic: Any = [["image", kind] for kind in INPUT_KINDS]
    axes = fig.subplot_mosaic(mosaic, width_ratios=[1.25, 3.4])
    _draw_image_bars(axes["image"], images.set_index("input_kind")["avr"])
    for kind in INPUT_KINDS:
        ax, rows = axes[kind], sites[sites["input_kind"] == kind]
        silent = dict.fromkeys(by_site(rows[rows["silent"].astype(bool)], "avr"), "silent")
        draw_grouped_bars(ax, by_site(rows, "avr"), families, layers, notes=silent)
        ax.set(ylim=(0, 1.15 * top), ylabel=AVR_LABEL.replace(" (", "\n("))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.set_title(f"{kind} input, dense tap", loc="left")
        set_layer_ticks(ax, layers, 4.7)
        if kind != list(INPUT_KINDS)[-1]:
            ax.tick_params(labelbottom=False)
    add_legend(fig, family_patches(find_models(table)))
    add_heading(fig, source.title, "n = 1 image of each kind")
    return fig


@figure(
    "fig5_layerwise_avr_comparison",
    title="AVR per layer for a checkerboard image",
    caption=(
        "AVR at every site for a ±1 checkerboard image, at the input tap (what enters the site) and the "
        "dense tap (what its decimation sees, after the site's own filter). Dashed: AVR of the image itself."
    ),
    columns={"phase2b_architecture_comparison": (*_SITE, "avr")},
)
def plot_layerwise_avr_comparison(source: Source) -> Figure:
    """Grouped bars of checkerboard AVR per layer and family, a panel per tap."""
    table = source.rows("phase2b_architecture_comparison")
    image = table[table["layer"] == "image"]["avr"]
    sites = table[table["layer"] != "image"]
    families, layers = find_families(sites), find_layers(sites)
    fig, panels = _make_tap_panels(layers, 1.7)
    legend = family_patches(find_models(sites))
    for tap, ax in panels.items():
        rows = source.rows("phase2b_architecture_comparison", tap=tap)
        draw_grouped_bars(ax, by_site(rows, "avr"), families, layers)
        ax.set_ylim(0, 1.08)
        if not image.empty:
            ax.axhline(float(image.iloc[0]), color=GREY, ls=(0, (6, 2)), lw=0.8, zorder=1)
    if not image.empty:
        label = f"the image itself ({image.iloc[0]:.3f})"
        legend.append(Line2D([], [], color=GREY, ls=(0, (6, 2)), lw=0.8, label=label))
    add_legend(fig, legend, columns=2 if len(legend) > 3 else None)
    add_heading(fig, source.title, "n = 1 checkerboard image")
    return fig


@figure(
    "fig7_layerwise_mean_avr",
    title="Mean AVR per layer on natural images",
    caption=(
        "Mean over images of the per-image AVR at every site, at the input tap (the study's: what enters the "
        "site, for a blur site before its blur) and at the dense tap (what the decimation sees). Lines: 95 % "
        "intervals over photographs. Silent maps are left out of the means."
    ),
    columns={"phase3_layerwise_avr_stats": _PAIRED},
)
def plot_layerwise_mean_avr(source: Source) -> Figure:
    """Grouped bars of means with intervals per layer and family, a panel per tap."""
    means = unpair(source.rows("phase3_layerwise_avr_stats"))
    families, layers = find_families(means), find_layers(means)
    fig, panels = _make_tap_panels(layers, 1.75)
    for tap, ax in panels.items():
        rows = means[means["tap"] == tap]
        heights, low, high = (by_site(rows, column) for column in with_bounds("mean"))
        intervals = {key: (low[key], high[key]) for key in heights}
        draw_grouped_bars(ax, heights, families, layers, intervals=intervals)
        ax.set_ylim(0, 1.08 * float(means[with_bounds("mean")].max().max()) or 1.0)
    add_legend(fig, family_patches(find_models(means)))
    add_heading(fig, source.title, f"means with 95 % intervals, {format_units(means)}")
    return fig


@figure(
    "fig8_avr_distributions",
    title="Distribution of AVR over natural images",
    caption=(
        "Per-image AVR at every site, dense tap above and input tap below. Violins: kernel density from the "
        "smallest to the largest value; bar: quartiles; mark: median; silent maps left out. Numbers: "
        "Holm-corrected p of the paired t-test against the strided model on the same images "
        "(*** < 0.001, ** < 0.01, * < 0.05)."
    ),
    columns={
        "per_image": ("image", *_SITE, "avr", "silent"),
        "phase3_layerwise_avr_stats": (*_PAIRED, "p_holm", "significance"),
    },
)
def plot_avr_distributions(source: Source) -> Figure:
    """Violins per layer and family, a panel per tap, with the paired test's p against strided."""
    table = mask_silent(source.rows("per_image"))
    sites = table[table["layer"] != "image"]
    tests = source.rows("phase3_layerwise_avr_stats")
    families, layers = find_families(sites), find_layers(sites)
    fig, panels = _make_tap_panels(layers, 2.0, taps=("dense", "input"))
    for tap, ax in panels.items():
        rows = sites[sites["tap"] == tap]
        top = float(rows["avr"].max())
        top = top if top > 0 else 1.0  # also where nothing is known
        values = {
            (str(family), str(layer)): own.dropna().to_numpy()
            for (family, layer), own in rows.groupby(["family", "layer"])["avr"]
        }
        _draw_violins(ax, values, families, layers)
        ax.set_ylim(0, 1.6 * top)  # room for the p values above the highest violin
        ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 1.05 * top])
        _write_p_values(ax, tests[tests["tap"] == tap], families, layers)
    add_legend(fig, family_patches(find_models(sites)))
    add_heading(
        fig,
        source.title,
        f"{format_units(tests)}; numbers: Holm-corrected p of the paired test against strided",
    )
    return fig


@figure(
    "fig13_avr_intervention",
    title="What each site's own filter removes before it decimates",
    caption=(
        "Mean AVR over images at the input tap (open marker: what enters the site) and at the dense tap "
        "(filled marker: what its decimation sees). The line between them is what the site's own filter, a "
        "strided convolution's kernel or a blur, takes away or adds."
    ),
    columns={"phase3_layerwise_avr_stats": _PAIRED},
)
def plot_avr_intervention(source: Source) -> Figure:
    """Dumbbells from input to dense AVR, per layer and family."""
    means = unpair(source.rows("phase3_layerwise_avr_stats"))
    families, layers = find_families(means), find_layers(means)
    values = means.set_index(["family", "layer", "tap"])["mean"].to_dict()
    fig = new_figure(FULL_WIDTH, 3.1)
    ax = fig.subplots()
    for family, offset in zip(families, slot_offsets(len(families), GROUP), strict=True):
        style = FAMILIES[family]
        for index, layer in enumerate(layers):
            x = index + offset
            ends = [values.get((family, layer, tap), math.nan) for tap in ("input", "dense")]
            if all(math.isnan(end) for end in ends):
                mark_slot(ax, x)
                continue
            ax.plot([x, x], ends, color=style.colour, lw=2.2, solid_capstyle="butt", zorder=2)
            ax.plot(x, ends[0], marker=style.marker, ms=5, mfc="white", mec=style.colour, mew=1.2, zorder=3)
            ax.plot(x, ends[1], marker=style.marker, ms=5.5, mfc=style.colour, mec=INK, mew=0.6, zorder=4)
    separate_groups(ax, len(layers))
    set_layer_ticks(ax, layers, FULL_WIDTH - 0.6)
    ax.set(ylabel=AVR_LABEL, ylim=(0, 1.1 * float(means["mean"].max()) or 1.0))
    add_legend(fig, family_points(find_models(means)))
    count = format_units(means)
    add_heading(fig, source.title, f"mean over {count}; open marks: input tap, filled marks: dense tap")
    return fig


def unpair(stats: pd.DataFrame) -> pd.DataFrame:
    """Turn a table of paired comparisons into one row per family, layer and tap.

    A family that takes part in several comparisons keeps the one with the most images: each comparison
    leaves out the images that are silent in either model.

    Example:
        >>> pair = {"layer": "l", "layer_index": 0, "tap": "dense", "n": 9, "family_a": "strided",
        ...         "n_clusters": 9, "model_a": "a", "family_b": "nula", "model_b": "b"}
        >>> pair |= dict(zip(with_bounds("mean_a", "mean_b"), (0.3, 0.2, 0.4, 0.2, 0.1, 0.3)))
        >>> unpair(pd.DataFrame([pair]))[["family", "mean"]].values.tolist()
        [['strided', 0.3], ['nula', 0.2]]
    """
    shared, own = ["layer", "layer_index", "tap", "n", "n_clusters"], ["family", "model"]
    sides = [
        stats[[*shared, *(f"{name}_{side}" for name in own), *with_bounds(f"mean_{side}")]].set_axis(
            [*shared, *own, *with_bounds("mean")], axis=1
        )
        for side in ("a", "b")
    ]
    both = pd.concat(sides).sort_values("n", ascending=False, kind="stable")
    return both.drop_duplicates(["family", "layer", "tap"]).reset_index(drop=True)


def by_site(rows: pd.DataFrame, column: str) -> dict[tuple[str, str], float]:
    """Return (family, layer) → value of a column."""
    return dict(zip(zip(rows["family"], rows["layer"], strict=True), rows[column].astype(float), strict=True))


def draw_grouped_bars(
    ax: Axes,
    heights: Values,
    families: Sequence[str],
    layers: Sequence[str],
    intervals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Draw a group of bars per layer, a bar per family, and say why where there is none.

    Args:
        ax: the panel.
        heights: (family, layer) → bar; an absent key reads "no such site", NaN "no value".
        families: in slot order.
        layers: in group order.
        intervals: (family, layer) → lower and upper end of an error bar.
        notes: (family, layer) → text in place of a bar.
    """
    intervals, notes = intervals or {}, notes or {}
    width = GROUP / len(families)
    for family, offset in zip(families, slot_offsets(len(families), GROUP), strict=True):
        style = FAMILIES[family]
        for index, layer in enumerate(layers):
            key, x = (family, layer), index + offset
            if key not in heights:
                mark_slot(ax, x)
            elif key in notes or math.isnan(heights[key]):
                mark_slot(ax, x, notes.get(key, "no value"))
            else:
                ax.bar(x, heights[key], width * 0.94, color=style.colour, ec=INK, hatch=style.hatch)
                if key in intervals:
                    ax.vlines(x, *intervals[key], color=INK, lw=0.9, zorder=3)
    separate_groups(ax, len(layers))


def _make_tap_panels(
    layers: Sequence[str], height: float, taps: Sequence[str] = ("input", "dense")
) -> tuple[Figure, dict[str, Axes]]:
    """Two panels over the full width, one per tap; layer names below the lower one only."""
    fig = new_figure(FULL_WIDTH, 2 * height + 1.1)
    axes = dict(zip(taps, fig.subplots(2, 1), strict=True))
    for tap, ax in axes.items():
        ax.set_title(TAP_NAMES[tap], loc="left")
        ax.set_ylabel(AVR_LABEL)
        set_layer_ticks(ax, layers, FULL_WIDTH - 0.6)
    axes[taps[0]].tick_params(labelbottom=False)
    return fig, axes


def _draw_image_bars(ax: Axes, values: pd.Series) -> None:
    kinds = [kind for kind in INPUT_KINDS if kind in values.index]
    for x, kind in enumerate(kinds):
        ax.bar(x, values[kind], 0.7, color="#9a9a9a", ec=INK)
        ax.annotate(f"{values[kind]:.3f}", (x, values[kind]), (0, 2), textcoords="offset points", ha="center")
    ax.set_xticks(range(len(kinds)), [INPUT_KINDS[kind] for kind in kinds])
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.6, len(kinds) - 0.4), ylim=(0, 1.08), ylabel=AVR_LABEL)
    ax.set_title("the image itself")


def _draw_violins(
    ax: Axes,
    values: Mapping[tuple[str, str], NDArray[np.float64]],
    families: Sequence[str],
    layers: Sequence[str],
) -> None:
    width = GROUP / len(families)
    for family, offset in zip(families, slot_offsets(len(families), GROUP), strict=True):
        style = FAMILIES[family]
        for index, layer in enumerate(layers):
            x, sample = index + offset, values.get((family, layer))
            if sample is None or not len(sample):
                mark_slot(ax, x, "no such site" if sample is None else "silent")
                continue
            parts = ax.violinplot([sample], positions=[x], widths=width * 0.94, showextrema=False)
            for body in cast("list[PolyCollection]", parts["bodies"]):
                body.set(fc=style.colour, ec=INK, hatch=style.hatch, linewidth=0.5, alpha=1.0)
            low, median, high = np.percentile(sample, [25, 50, 75])
            ax.vlines(x, low, high, color=INK, lw=2.0, zorder=3)
            ax.plot(x, median, marker=style.marker, ms=3.2, mfc="white", mec=INK, mew=0.6, zorder=4)
    separate_groups(ax, len(layers))


def _write_p_values(ax: Axes, tests: pd.DataFrame, families: Sequence[str], layers: Sequence[str]) -> None:
    """Write the p of each test against strided above its family's violin."""
    offsets = dict(zip(families, slot_offsets(len(families), GROUP), strict=True))
    against = tests[(tests["family_a"] == "strided") | (tests["family_b"] == "strided")]
    for test in against.to_dict("records"):
        other = test["family_b"] if test["family_a"] == "strided" else test["family_a"]
        if other in offsets and test["layer"] in layers:
            text = format_p(float(test["p_holm"]), test["significance"]).removeprefix("p ").removeprefix("= ")
            ax.text(
                list(layers).index(test["layer"]) + offsets[other],
                0.98,
                text,
                transform=ax.get_xaxis_transform(),
                rotation=90,
                ha="center",
                va="top",
                fontsize=SMALL,
            )
