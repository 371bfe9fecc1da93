"""Networks side by side at like sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    INK,
    SIS_LABEL,
    SMALL,
    add_heading,
    add_legend,
    choose_look,
    format_units,
    new_figure,
    wrap_name,
)
from spectral.table.schema import UNITS, fill_words, with_bounds

MOST_LAYERS, MOST_COLUMNS = 28, 3
WHOLE = "whole model"
METRIC_LABELS = {
    "sis": SIS_LABEL,
    "am": "AM (amplitude)",
    "am_relative": "am_relative (ratio)",
    "alias_power_ratio": "alias power ratio (ratio)",
}


@figure(
    "compare",
    title="Like sites of the models side by side",
    caption=(
        "Means over photographs with 95 % intervals at like sites (same resolution and order, or the same "
        "site of a converted twin) of every model, the reference first; a panel per metric and tap, and the "
        "whole models' SIS where it was measured. Stars: paired test against the reference, Holm-corrected "
        "over the table (*** < 0.001, ** < 0.01, * < 0.05)."
    ),
    columns={
        "compare": (
            *("model_a", "model_b", "layer", "layer_index", "tap", "metric", "n", "n_clusters"),
            "significance",
            *with_bounds("mean_a", "mean_b"),
        )
    },
)
def plot_compare(source: Source) -> Figure:
    """Dot plot: a panel per metric and tap, a line per like site, a mark per model."""
    rows = source.rows("compare", known=["mean_a", "mean_b"])
    models = [rows["model_a"].iloc[0], *dict.fromkeys(rows["model_b"])]
    panels = [(str(m), "" if pd.isna(t) else str(t)) for m, t in
              rows[["metric", "tap"]].drop_duplicates().itertuples(index=False)]  # fmt: skip
    at_sites = rows[rows["layer"].notna() & (rows["layer"] != "")].sort_values("layer_index", kind="stable")
    layers = [str(layer) for layer in dict.fromkeys(at_sites["layer"])][:MOST_LAYERS] or [WHOLE]
    taps = fill_words(rows["tap"])
    rows_of = {key: rows[(rows["metric"] == key[0]) & (taps == key[1])] for key in panels}
    fig, axes = _make_panels(panels, len(layers), len(models))
    for (metric, tap), ax in axes.items():
        _draw_models(ax, rows_of[metric, tap], models, layers if tap else [WHOLE])
        ax.set_xlabel(_label_panel(metric, tap) if tap else _label_metric(metric))
        ax.tick_params(labelleft=ax.get_subplotspec().colspan.start == 0)  # type: ignore[union-attr]
    fig.supylabel("like sites (in the order in which they run)")
    looks = [choose_look(place) for place in range(len(models))]
    add_legend(fig, [
        Line2D([], [], ls="", marker=marker, mfc=colour, mec=INK, mew=0.5, label=name)
        for name, (colour, marker) in zip(models, looks, strict=True)
    ], columns=1 if max(map(len, models)) > 40 else 2)  # fmt: skip
    some = f"; the first {MOST_LAYERS} sites" if len(set(at_sites["layer"])) > MOST_LAYERS else ""
    note = f"{format_units(rows)}, 95 % intervals; stars: paired, Holm-corrected{some}"
    add_heading(fig, source.title, note)
    return fig


def _label_metric(metric: str) -> str:
    """Name a metric with its unit."""
    unit = UNITS.get(metric)
    return METRIC_LABELS.get(metric) or (f"{metric} ({unit})" if unit else metric)


def _label_panel(metric: str, tap: str) -> str:
    """Name a metric above its unit and tap: the longest names are as wide as a panel."""
    name, _, unit = _label_metric(metric).partition(" (")
    return f"{name}\n{f'({unit}, ' if unit else ''}{tap} tap"


def _make_panels(
    keys: Sequence[tuple[str, str]], n_layers: int, n_models: int
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Make a panel per metric and tap, side by side; those of the whole model below, over the full width."""
    at_sites, whole = [key for key in keys if key[1]], [key for key in keys if not key[1]]
    columns = max(1, min(len(at_sites), MOST_COLUMNS))
    n_rows = -(-len(at_sites) // columns)
    lines = [max(0.14 * n_models, 0.26) * n for n in [n_layers] * n_rows + [1] * len(whole)]
    height = sum(lines) + 0.72 * len(lines) + 0.12 * n_models + 0.7
    fig = new_figure(FULL_WIDTH, min(height, 8.9))
    grid = fig.add_gridspec(len(lines), columns, height_ratios=lines)
    panels = {key: fig.add_subplot(grid[i // columns, i % columns]) for i, key in enumerate(at_sites)}
    return fig, panels | {key: fig.add_subplot(grid[n_rows + i, :]) for i, key in enumerate(whole)}


def _draw_models(ax: Axes, rows: pd.DataFrame, models: Sequence[str], layers: Sequence[str]) -> None:
    """Draw one panel: the reference's mean from the first pair, the others' from their own."""
    places = {layer: len(layers) - 1 - i for i, layer in enumerate(layers)}
    offsets = 0.62 * (0.5 - (np.arange(len(models)) + 0.5) / len(models))
    named = rows.assign(layer=fill_words(rows["layer"]))
    for layer, here in named.groupby("layer", sort=False):
        y = places.get(str(layer) or WHOLE)
        if y is None:
            continue
        sides = [(here.iloc[0], "a"), *((row, "b") for _, row in here.iterrows())]
        for row, side in sides:
            place = models.index(row[f"model_{side}"])
            colour, marker = choose_look(place)
            level = y + offsets[place]
            ax.hlines(
                level, row[f"mean_{side}_ci_low"], row[f"mean_{side}_ci_high"], color=INK, lw=0.8, zorder=2
            )
            ax.plot(row[f"mean_{side}"], level, marker=marker, mfc=colour, mec=INK, mew=0.5, ms=4.5, zorder=3)
            if side == "b" and isinstance(row["significance"], str) and row["significance"]:
                right = max(row[f"mean_{side}"], row[f"mean_{side}_ci_high"])
                style: dict[str, Any] = {"va": "center", "fontsize": SMALL, "textcoords": "offset points"}
                ax.annotate(row["significance"], (right, level), (4, -1.5), **style)
    ax.set_yticks(range(len(layers)), [wrap_name(layer, 22) for layer in reversed(layers)])
    ax.set_ylim(-0.6, len(layers) - 0.4)
    ax.tick_params(axis="y", length=0)
    low, high = ax.get_xlim()
    ax.set_xlim(min(0.0, low), high + 0.18 * (high - low))  # room for the stars
    ax.xaxis.set_major_locator(MaxNLocator(4))
    for edge in range(len(layers) - 1):
        ax.axhline(edge + 0.5, color="#e4e4e4", lw=0.5, zorder=0)
