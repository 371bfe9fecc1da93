"""A network's answer to each frequency of a Fourier basis."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    COLUMN_WIDTH,
    FULL_WIDTH,
    SMALL,
    add_heading,
    format_count,
    format_units,
    new_figure,
    wrap_name,
)
from spectral.table.schema import with_bounds

NAME = "fourier_heatmap"
HEATMAP = "magma"
COLUMNS = 3  # panels of a row
OUTLINE = [Stroke(linewidth=1.8, foreground="black"), Normal()]  # a white line stays visible on bright cells


@figure(
    NAME,
    title="Fourier heatmap",
    caption=(
        "Share of images, each photograph counting once, that each network gets wrong, or, where not all "
        "images have labels, classifies otherwise than when clean, with the real Fourier basis image of one"
        " frequency added to every channel at L2 norm v in [0, 1] pixels, its sign drawn at random; DC in "
        "the centre. One half of the plane is measured and mirrored. Box: the Nyquist frequency after one "
        "stride of 2. Of the network's output: no tap."
    ),
    columns={
        NAME: (
            *("model", "height", "width", "i", "j", "f_u", "f_v"),
            *("norm", "n", "n_clusters", "n_labelled"),
            *with_bounds("error", "disagreement"),
        )
    },
)
def plot_fourier_heatmap(source: Source) -> Figure:
    """A panel per network, one colour scale."""
    rows = source.rows(NAME)
    labelled = bool((rows["n_labelled"] == rows["n"]).all())
    column = "error" if labelled else "disagreement"
    models = list(dict.fromkeys(rows["model"]))
    down = math.ceil(len(models) / COLUMNS)
    across = math.ceil(len(models) / down)  # 4 panels are 2 × 2
    width = COLUMN_WIDTH if across == 1 else FULL_WIDTH
    panel = min((width - 1.2) / across, 2.5)  # inches; the rest is labels and the colour bar
    fig = new_figure(width, down * (panel + 0.25) + 0.8, layout="compressed")
    axes = fig.subplots(down, across, squeeze=False)
    highest = 100 * float(rows[column].max()) or 1.0
    for ax, model in zip(axes.flat, models, strict=False):
        image = _show(ax, source, rows[rows["model"] == model], column, highest)
        ax.set_title(wrap_name(str(model), 28), fontsize=SMALL)
        ax.tick_params(labelleft=ax in axes[:, 0])
    for ax in axes.flat[len(models) :]:
        ax.set_axis_off()
    fig.supxlabel("horizontal frequency f_v (cycles per pixel)")
    fig.supylabel("vertical frequency f_u (cycles per pixel)")
    bar = fig.colorbar(image, ax=axes, aspect=25, pad=0.02)
    bar.set_label("error (%)" if labelled else "other class than clean (%)")
    norms = ", ".join(f"{norm:g}" for norm in rows["norm"].unique())
    low, high = (100 * rows[name] for name in with_bounds(column)[1:])
    note = f"v = {norms}; {format_units(rows)}{_say_labels(rows, labelled)}"
    margin = f"95 % intervals of cells: up to {(high - low).max():.2g} points wide"
    add_heading(fig, source.title, f"{note}\n{margin}")
    return fig


def _say_labels(rows: pd.DataFrame, labelled: bool) -> str:
    return "" if labelled else f", {format_count(rows['n_labelled']).removeprefix('n = ')} with labels"


def _show(ax: Axes, source: Source, own: pd.DataFrame, column: str, highest: float) -> AxesImage:
    """Draw one network's values, each in a cell around its frequency."""
    model = own["model"].iloc[0]
    f_u, f_v = np.sort(own["f_u"].unique()), np.sort(own["f_v"].unique())
    if len(own) != len(f_u) * len(f_v) or own.duplicated(["f_u", "f_v"]).any():
        raise source.error(
            NAME,
            f"should have one row for each of the {len(f_u)}×{len(f_v)} frequencies of {model!r}, "
            f"got {len(own)}",
        )
    values = 100 * own.sort_values(["f_u", "f_v"])[column].to_numpy().reshape(len(f_u), len(f_v))
    half_u, half_v = (
        (f[1] - f[0]) / 2 if len(f) > 1 else 0.5 / int(own[side].iloc[0])
        for f, side in ((f_u, "height"), (f_v, "width"))
    )
    extent = (f_v[0] - half_v, f_v[-1] + half_v, f_u[0] - half_u, f_u[-1] + half_u)
    image = ax.imshow(
        values, extent=extent, origin="lower", cmap=HEATMAP, vmin=0, vmax=highest, interpolation="none"
    )
    if extent[0] < -0.25 and extent[2] < -0.25:
        box = Rectangle((-0.25, -0.25), 0.5, 0.5, fill=False, edgecolor="white", linewidth=0.9)
        box.set_path_effects(OUTLINE)
        ax.add_patch(box)
        ax.set(xticks=[-0.5, -0.25, 0, 0.25], yticks=[-0.5, -0.25, 0, 0.25])
    return image
