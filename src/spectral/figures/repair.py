"""A trained network after surgery: what each layer costs it, and what repair gives back."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    add_heading,
    add_legend,
    format_count,
    new_figure,
)
from spectral.table.schema import with_bounds

# State of the repair → marker, colour (Okabe–Ito) and how far from the method's line it is drawn.
STATES: dict[str, tuple[str, str, float]] = {
    "as converted": ("s", "#E69F00", -0.27),
    "recalibrated": ("^", "#56B4E9", -0.09),
    "reconstructed": ("D", "#009E73", 0.09),
    "distilled": ("o", "#0072B2", 0.27),
}
UNALTERED = "unaltered"


@figure(
    "repair",
    title="Anti-aliasing layers in a trained network: cost and repair",
    caption=(
        "A trained network, and the same with each layer in the place of its strides: as converted, with "
        "batch-norm statistics measured again, with weights fitted in closed form to the unaltered network's "
        "maps, and tuned on its outputs, without labels. Left: accuracy, each photograph scored by a network "
        "that wasn't repaired with it (agreement with the unaltered network where there are no labels). "
        "Middle: SIS. Right: consistency of two crops of a photograph, over those that both the network and "
        "the unaltered one get right. Means with 95 % intervals over photographs; dashed: the "
        "unaltered network. SIS is of the whole network and belongs to no tap; of a network that has "
        "become worse it says little, since it is of other predictions."
    ),
    columns={
        "repair": (
            *("model", "method", "repair", "n", "n_labelled", "n_tuned"),
            *with_bounds("accuracy", "agreement", "sis", "consistency_both"),
        )
    },
)
def plot_repair(source: Source) -> Figure:
    """Three panels, a line per method, a marker per state of repair."""
    rows = source.rows("repair")
    labelled = bool((rows["n_labelled"] > 0).any())
    panels = [
        ("accuracy" if labelled else "agreement", 100.0,
         "accuracy (%)" if labelled else "agreement with the unaltered (%)"),
        ("sis", 1.0, SIS_LABEL),
        ("consistency_both", 100.0, "crop consistency (%)"),
    ]  # fmt: skip
    methods = [name for name in rows["method"].drop_duplicates() if name != UNALTERED]
    fig = new_figure(FULL_WIDTH, 1.2 + 0.42 * max(2, len(methods)))
    axes = fig.subplots(1, 3, sharey=True)
    for ax, (column, scale, label) in zip(axes, panels, strict=True):
        _draw_panel(ax, rows, methods, column, scale)
        ax.set_xlabel(label)
    axes[0].set_yticks(range(len(methods)), [_name(method) for method in methods])
    axes[0].set_ylabel("layer (in the place of strides)")
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    present = [state for state in STATES if state in set(rows["repair"])]
    handles: list[Artist] = [
        Line2D([], [], ls="", marker=STATES[s][0], color=STATES[s][1], mec=INK, mew=0.4, label=s)
        for s in present
    ]
    handles.append(Line2D([], [], color=GREY, ls="--", lw=1, label=UNALTERED))
    add_legend(fig, handles)
    count = f"{format_count(rows['n'])} photographs, {format_count(rows['n_tuned'])} others for each repair"
    add_heading(fig, source.title, f"{rows['model'].iloc[0]}, {count}, 95 % intervals")
    return fig


def _name(method: str) -> str:
    """Name a layer, with how many sites were named where some were chosen."""
    layer, _, sites = method.partition("@")
    count = len(sites.split("+"))
    return f"{layer}, {count} site{'s'[: count > 1]}" if sites else layer


def _draw_panel(ax: Axes, rows: pd.DataFrame, methods: list[Any], column: str, scale: float) -> None:
    mean, low, high = with_bounds(column)
    for own in rows[rows["method"] == UNALTERED].to_dict("records"):
        ax.axvline(scale * own[mean], color=GREY, ls="--", lw=1, zorder=0)
        ax.axvspan(scale * own[low], scale * own[high], color=GREY, alpha=0.15, lw=0, zorder=0)
    for own in rows[rows["repair"].isin(STATES)].to_dict("records"):
        marker, colour, shift = STATES[own["repair"]]
        y = methods.index(own["method"]) + shift
        ax.hlines(y, scale * own[low], scale * own[high], color=colour, lw=1.2, zorder=1)
        ax.plot(scale * own[mean], y, marker, color=colour, mec=INK, mew=0.4, ms=4.5, zorder=2)
