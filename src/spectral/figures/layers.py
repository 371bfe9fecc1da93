"""One network with each anti-aliasing layer: what it buys and costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    SMALL,
    add_heading,
    add_legend,
    format_units,
    new_figure,
)
from spectral.table.schema import with_bounds

# State → marker and label.
STATES = {
    "original": ("*", "the network as it is"),
    "converted": ("s", "with the layer, not trained since"),
    "tuned": ("o", "tuned with the layer"),
}
TRAINED = ("original", "tuned")
UNKNOWN = "white"  # in place of a colour
FAINT = "#b8b8b8"
_DB = with_bounds("alias_power_db_channel_median")
_SIS = ("sis", "sis_ci_low", "sis_ci_high")
# Where a label may stand: nearer places first, then to the right, left, above and below.
PLACES = [
    (radius * math.cos(angle), radius * math.sin(angle))
    for radius in (7, 11, 16, 23, 32, 42, 54, 68)
    for angle in np.radians([0, 180, 30, 150, -30, 210, 60, 120, -60, 240, 90, -90])
]
LEAD_PIXELS = 16
FLOOR = -40.0  # dB; below it is as good as nothing


@figure(
    "fig18_layers_pareto",
    title="Shift instability against cost, one network with each anti-aliasing layer",
    caption=(
        "Mean SIS with its 95 % interval against the time of a forward pass as a ratio to the network as it "
        "is (median over interleaved rounds). Squares: the layer put in, not trained since; circles: tuned "
        "with it; colour: test accuracy, white where none is known. Line: the Pareto front of the original "
        "and the tuned networks; none of them is both cheaper and more stable. SIS is of the whole network "
        "and belongs to no tap. What isn't trained can be stable because it always answers the same."
    ),
    columns={
        "phase7_layers": (
            *("method", "state", "n", "n_clusters", "latency_ratio", "accuracy", "accuracy_source"),
            "latency_batch",
            *("device", *_SIS),
        )
    },
)
def plot_layers_pareto(source: Source) -> Figure:
    """Points with intervals, coloured by accuracy, each method named once, and the Pareto front."""
    rows = source.rows("phase7_layers", known=["sis", "latency_ratio"])
    fig = new_figure(FULL_WIDTH, 4.9)
    ax = fig.subplots()
    scale, colours = _scale_accuracy(rows["accuracy"]), colormaps["cividis"]
    ax.plot(*zip(*_find_stairs(rows), strict=True), color=INK, lw=1, ls=(0, (4, 2)), zorder=1)
    for _, own in rows.groupby("method", sort=False):  # from converted to tuned
        ax.plot(own["latency_ratio"], own["sis"], color=FAINT, lw=0.9, zorder=0)
    for row in rows.to_dict("records"):
        x, marker = row["latency_ratio"], STATES[row["state"]][0]
        ax.vlines(x, row["sis_ci_low"], row["sis_ci_high"], color=FAINT, lw=0.6, zorder=0)
        fill = UNKNOWN if math.isnan(row["accuracy"]) else colours(scale(row["accuracy"] * 100))
        size = 10 if marker == "*" else 6
        ax.plot(x, row["sis"], marker, mfc=fill, mec=INK, mew=0.6, ms=size, ls="", zorder=4)
    ax.margins(x=0.1, y=0.08)
    ax.set(xlabel="time of a forward pass (ratio to the network as it is)", ylabel=f"mean {SIS_LABEL}")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    if rows["accuracy"].notna().any():
        _add_accuracy_bar(fig, ax, scale, colours)
    present = [state for state in STATES if state in set(rows["state"])]
    handles: list[Artist] = [_state_handle(state) for state in present]
    handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (4, 2)), label="Pareto front of trained networks"))
    add_legend(fig, handles)
    first = rows.iloc[0]
    count = f"{format_units(rows)}, 95 % intervals"
    timing = f"timed on {first['device']}, batch {first['latency_batch']:g}"
    add_heading(fig, source.title, f"{count}; {timing}\naccuracy: {_say_accuracy(rows)}")
    _place_labels(fig, ax, rows)
    return fig


@figure(
    "fig19_layers_aliasing",
    title="Aliases and shift instability of each layer",
    caption=(
        "Left: power of the aliases over power of the decimated map, median over channels, mean over the "
        "network's sites and over images, in dB, at the tap signal of the sites that the network has with "
        "the layer. Right: SIS of the "
        "whole network. Both with 95 % intervals; open: the layer put in and not trained since; filled: "
        "tuned with it. A layer that keeps every sample as a channel has no aliases to measure."
    ),
    columns={"phase7_layers": ("method", "state", "n", "n_clusters", "aliasing_reason", *_DB, *_SIS)},
)
def plot_layers_aliasing(source: Source) -> Figure:
    """Dots with intervals: alias power ratio and SIS per method, converted and tuned."""
    rows = source.rows("phase7_layers")
    methods = list(dict.fromkeys(rows["method"]))
    fig = new_figure(FULL_WIDTH, 0.26 * len(methods) + 1.5)
    left, right = fig.subplots(1, 2, sharey=True)
    for row in rows.to_dict("records"):
        aside = {"converted": 0.16, "tuned": -0.16}.get(row["state"], 0.0)
        y = len(methods) - 1 - methods.index(row["method"]) + aside
        for ax, columns in ((left, _DB), (right, _SIS)):
            _draw_dot(ax, y, row["state"], [float(np.maximum(row[name], FLOOR)) for name in columns])
    for method, own in rows.groupby("method", sort=False):
        if own[_DB[0]].isna().all():
            reason = str(own["aliasing_reason"].iloc[0]).partition(":")[0]
            _write_reason(left, len(methods) - 1 - methods.index(str(method)), reason)
    left.set_yticks(range(len(methods)), [_say_method(method) for method in reversed(methods)])
    floor = f"; {FLOOR:.0f}: that or less".replace("-", "−") if (rows[_DB[0]] < FLOOR).any() else ""
    left.set_xlabel(f"median alias power ratio, signal tap (dB{floor})")
    left.set_ylim(-0.6, len(methods) - 0.4)
    left.set_ylabel("layer (in the place of each stride)")
    right.set_xlabel(f"mean {SIS_LABEL}")
    right.set_xlim(left=0)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.hlines(
            range(len(methods)), 0, 1, transform=ax.get_yaxis_transform(), color="#e4e4e4", lw=0.5, zorder=0
        )
        ax.tick_params(axis="y", length=0)
    add_legend(fig, [_dot_handle(state) for state in STATES if state in set(rows["state"])])
    add_heading(fig, source.title, f"mean over {format_units(rows)} with 95 % interval")
    return fig


def find_front(cost: Sequence[float], instability: Sequence[float]) -> list[int]:
    """Positions, from cheap to dear, of the points than which no other is both cheaper and more stable.

    Example:
        >>> find_front([1.0, 2.0, 3.0, 1.5], [0.4, 0.2, 0.3, 0.4])
        [0, 1]
    """
    front: list[int] = []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], instability[i])):
        if not front or instability[i] < instability[front[-1]]:
            front.append(i)
    return front


def _find_stairs(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """Corners of the front of the trained networks: below it is none of them."""
    trained = rows[rows["state"].isin(TRAINED)]
    cost, sis = trained["latency_ratio"].tolist(), trained["sis"].tolist()
    front = [(cost[i], sis[i]) for i in find_front(cost, sis)]
    corners = [(right[0], left[1]) for left, right in itertools.pairwise(front)]
    return [point for pair in itertools.zip_longest(front, corners) for point in pair if point]


def _scale_accuracy(accuracy: pd.Series) -> Normalize:
    known = 100 * accuracy.dropna()
    if known.empty:
        return Normalize(0, 100)
    low, high = math.floor(known.min()), math.ceil(known.max())
    return Normalize(low, max(high, low + 1))


def _add_accuracy_bar(fig: Figure, ax: Axes, scale: Normalize, colours: Colormap) -> None:
    bar = fig.colorbar(ScalarMappable(scale, colours), ax=ax, pad=0.015, aspect=30)
    bar.solids.set_rasterized(False)  # type: ignore[union-attr] # a vector figure stays one
    bar.solids.set_edgecolor("face")  # type: ignore[union-attr] # or viewers show seams
    bar.set_label("test accuracy (%)")
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()


def _say_accuracy(rows: pd.DataFrame) -> str:
    sources = rows["accuracy_source"].dropna().unique()
    return str(sources[0]) if len(sources) == 1 else "none known" if len(sources) == 0 else "see the table"


def _say_method(method: str) -> str:
    return "none (as it is)" if method == "original" else method


def _place_labels(fig: Figure, ax: Axes, rows: pd.DataFrame) -> None:
    """Name each method beside its trained mark, where there is room for it."""
    fig.draw_without_rendering()  # the layout must be settled first, and must not change again
    fig.set_layout_engine("none")
    points = ax.transData.transform(rows[["latency_ratio", "sis"]].to_numpy())
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    steps = ax.transData.transform(_find_stairs(rows))
    taken += [Bbox([start, end]).padded(2) for start, end in itertools.pairwise(steps)]
    order = {"original": 0, "tuned": 1, "converted": 2}
    marks = rows.assign(order=rows["state"].map(order)).sort_values("order", kind="stable")
    for row in marks.drop_duplicates("method").to_dict("records"):
        text = "as it is" if row["method"] == "original" else row["method"]
        xy = (row["latency_ratio"], row["sis"])
        label = ax.annotate(text, xy, PLACES[0], textcoords="offset points", va="center", fontsize=SMALL)
        box = _move_free(fig, ax, label, taken)
        taken.append(box)
        _lead_to(ax, xy, box)


def _move_free(fig: Figure, ax: Axes, label: Annotation, taken: Sequence[Bbox]) -> Bbox:
    """Move a label to the nearest place where it covers nothing; return where it then is."""
    found: list[tuple[float, int, Bbox]] = []
    for place in range(len(PLACES)):
        box = _put(fig, label, place)
        inside = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
        crowd = sum(_overlap(box.padded(1.5), other) for other in taken) + 1e4 * (not inside)
        found.append((crowd, place, box))
        if crowd == 0:
            break
    return _put(fig, label, min(found, key=lambda entry: entry[:2])[1])


def _put(fig: Figure, label: Annotation, place: int) -> Bbox:
    dx, dy = PLACES[place]
    label.set_position((dx, dy))
    label.set_horizontalalignment("left" if dx > 1 else "right" if dx < -1 else "center")
    return label.get_window_extent(fig.canvas.get_renderer())  # type: ignore[attr-defined]


def _lead_to(ax: Axes, xy: tuple[float, float], box: Bbox) -> None:
    """Draw a line from a mark to its label, where that stands apart."""
    x, y = ax.transData.transform(xy)
    near = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
    if math.hypot(near[0] - x, near[1] - y) > LEAD_PIXELS:
        (to_x, to_y) = ax.transData.inverted().transform(near)
        ax.plot([xy[0], to_x], [xy[1], to_y], color=GREY, lw=0.5, zorder=2, scalex=False, scaley=False)


def _overlap(a: Bbox, b: Bbox) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _state_handle(state: str) -> Line2D:
    marker, label = STATES[state]
    size = 9 if marker == "*" else 5
    return Line2D([], [], ls="", marker=marker, mfc="#cccccc", mec=INK, mew=0.6, ms=size, label=label)


def _dot_style(state: str) -> dict[str, Any]:
    fill = {"converted": "white", "tuned": "#0072B2", "original": INK}[state]
    marker = STATES[state][0]
    return {"marker": marker, "mfc": fill, "mec": INK, "mew": 0.6, "ms": 8 if marker == "*" else 4.5}


def _dot_handle(state: str) -> Line2D:
    return Line2D([], [], ls="", label=STATES[state][1], **_dot_style(state))


def _draw_dot(ax: Axes, y: float, state: str, values: Sequence[float]) -> None:
    """Draw a mean with its interval, if there is one."""
    mean, low, high = values
    if not math.isfinite(mean):
        return
    if math.isfinite(low + high):
        ax.hlines(y, low, high, color=GREY, lw=0.9, zorder=2)
    ax.plot(mean, y, ls="", zorder=3, **_dot_style(state))


def _write_reason(ax: Axes, y: float, reason: str) -> None:
    style: dict[str, Any] = {"va": "center", "color": GREY, "fontsize": SMALL}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(0.02, y, f"{reason}: nothing to measure", transform=ax.get_yaxis_transform(), **style)
