"""Many architectures beside each other, and one network trained with and without a penalty on aliasing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    SMALL,
    add_heading,
    add_legend,
    blank_panel,
    format_count,
    new_figure,
    wrap_name,
)
from spectral.table.schema import with_bounds

COLUMNS, MOST_PANELS, MOST_ROWS = 4, 20, 32  # what fits a page
FLOOR = -40.0  # dB; below it is as good as nothing
ZERO = "0 "  # in place of a mark on a logarithmic axis
STRIP = 4.5  # height of the strip for what has no value, in dB

# Kind of operator → colour (Okabe–Ito), marker, label; each tells the kinds apart without the other.
KINDS = {
    "conv": ("#0072B2", "o", "convolution"),
    "blur_pool": ("#E69F00", "s", "blur pool"),
    "max_pool": ("#D55E00", "^", "max pool"),
    "avg_pool": ("#009E73", "v", "average pool"),
    "window": ("#CC79A7", "D", "pool over token windows"),
    "other": ("#56B4E9", "P", "slice, resize or unfold"),
}
WEIGHTS = {
    "random": ("white", "o", "random weights"),
    "trained": ("#E69F00", "s", "trained weights"),
    "published": ("#0072B2", "^", "published weights"),
}
RUNS = {"plain": ("#0072B2", "o", "-"), "penalty": ("#E69F00", "s", "--")}

_DB = with_bounds("alias_power_db_channel_median")


@figure(
    "fig16_architectures_depth",
    title="Aliases along the depth of each architecture",
    caption=(
        "Power of the aliases over power of the decimated map, median over channels, in dB, at the tap "
        "signal of every site of each model, from its first (0) to its last (1): mean over images with its "
        "95 % interval. In the grey strip below the "
        "axis, which has no values: sites that lose nothing, and sites without a dense map. Random weights "
        "show the structure of an architecture, not a trained network."
    ),
    columns={
        "phase8_architectures": (
            *("model", "weights", "depth", "op", "n", "reason"),
            *_DB,
        )
    },
)
def plot_architectures_depth(source: Source) -> Figure:
    """A panel per model: alias power ratio at each site, the kind of site by its mark."""
    rows = source.rows("phase8_architectures")
    models = list(rows["model"].unique())
    shown = models[:MOST_PANELS]
    n_columns = min(COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    fig = new_figure(FULL_WIDTH, min(1.45 * n_rows + 1.3, 8.9))
    axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    bottom = _find_bottom(rows)
    for index, ax in enumerate(axes.flat):
        if index >= len(shown):
            ax.remove()
            continue
        own = rows[rows["model"] == shown[index]]
        ax.set_title(_name(own.iloc[0]))
        if index + n_columns >= len(shown):
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("relative depth (first to last)")
        if index % n_columns == 0:
            ax.set_ylabel("alias power ratio (dB)")
        _draw_sites(ax, own, bottom)
    strip = (
        STRIP if rows["depth"].notna().any() and rows.loc[rows["depth"].notna(), _DB[0]].isna().any() else 0
    )
    axes[0, 0].set(xlim=(-0.08, 1.08), xticks=[0, 0.5, 1], ylim=(bottom - 2 - strip, 1.5))
    axes[0, 0].set_yticks(range(int(bottom), 1, 10))
    add_legend(fig, _depth_legend(rows[rows["model"].isin(shown)]), columns=3)
    some = f"; the first {MOST_PANELS} of {len(models)} models" if len(models) > MOST_PANELS else ""
    add_heading(fig, source.title, f"mean over {_count(rows)} images; {_say_weights(rows)}{some}")
    return fig


@figure(
    "fig17_architectures_ranking",
    title="Architectures ranked by their aliases",
    caption=(
        "Left: power of the aliases over power of the decimated map, median over channels, at the tap "
        "signal, mean over a model's sites and over images, in dB. Right: shift instability of the whole "
        "model. Both with 95 % intervals; each model sees the pictures at its own size. Trained networks and "
        "random weights are ranked apart: with the latter the left shows the structure of an architecture, "
        "and SIS, which then depends on how the last layer is initialised, isn't shown."
    ),
    columns={
        "phase8_models": ("model", "weights", "n", "sis", "sis_ci_low", "sis_ci_high", "reason", *_DB),
    },
)
def plot_architectures_ranking(source: Source) -> Figure:
    """Dots with intervals: alias power ratio and SIS of each model, sorted by the former."""
    rows = source.rows("phase8_models").sort_values(_DB[0], na_position="last", kind="stable")
    rows = rows.sort_values("weights", key=lambda kind: kind == "random", kind="stable")
    shown = rows.iloc[:MOST_ROWS].iloc[::-1].reset_index(drop=True)
    fig = new_figure(FULL_WIDTH, 0.19 * len(shown) + 1.5)
    left, right = fig.subplots(1, 2, sharey=True)
    for place, row in shown.iterrows():
        _draw_dot(left, int(str(place)), row, _DB)
        if row["weights"] != "random":
            _draw_dot(right, int(str(place)), row, ("sis", "sis_ci_low", "sis_ci_high"))
    n_random = int((shown["weights"] == "random").sum())
    left.set_yticks(range(len(shown)), [str(name).replace("@random", "") for name in shown["model"]])
    left.set(ylim=(-0.6, len(shown) - 0.4), xlabel="median alias power ratio (dB)")
    left.set_ylabel("model (least aliasing at the top)")
    left.xaxis.set_major_locator(MaxNLocator(5))
    _use_log_scale(right, shown["sis"][shown["weights"] != "random"])
    right.set_xlabel(SIS_LABEL)
    for ax in (left, right):
        ax.hlines(
            range(len(shown)), 0, 1, transform=ax.get_yaxis_transform(), color="#e4e4e4", lw=0.5, zorder=0
        )
        ax.tick_params(axis="y", length=0)
        if 0 < n_random < len(shown):
            ax.axhline(n_random - 0.5, color=INK, lw=0.8)
    present = [key for key in WEIGHTS if key in set(shown["weights"])]
    add_legend(fig, [_weights_handle(key) for key in present])
    some = f"; the first {MOST_ROWS} of {len(rows)} models" if len(rows) > MOST_ROWS else ""
    apart = "; random weights apart" if "random" in present else ""
    add_heading(fig, source.title, f"mean over {_count(rows)} images with 95 % interval{apart}{some}")
    return fig


@figure(
    "penalty",
    title="Training with a penalty on aliasing",
    caption=(
        "One network trained twice from the same seed on the same batches, without and with the mean of "
        "am_relative over sites and images (at the dense tap) added to its loss. Left: am_relative of the "
        "test images after each epoch. Right: accuracy on them, with 95 % Wilson intervals that take the "
        "images as independent. One run of each: a difference within the intervals is none."
    ),
    columns={
        "penalty": (
            "run",
            "weight",
            "epoch",
            "am_relative",
            "accuracy",
            "accuracy_ci_low",
            "accuracy_ci_high",
            "n",
        )
    },
)
def plot_penalty(source: Source) -> Figure:
    """Two panels: am_relative and accuracy after each epoch, both runs."""
    rows = source.rows("penalty")
    fig = new_figure(FULL_WIDTH, 2.7)
    left, right = fig.subplots(1, 2)
    handles: list[Artist] = []
    for run, (colour, marker, line) in RUNS.items():
        own = rows[rows["run"] == run].sort_values("epoch")
        if own.empty:
            continue
        left.plot(own["epoch"], own["am_relative"], color=colour, marker=marker, ls=line)
        right.plot(own["epoch"], 100 * own["accuracy"], color=colour, marker=marker, ls=line)
        right.vlines(
            own["epoch"], 100 * own["accuracy_ci_low"], 100 * own["accuracy_ci_high"], color=colour, lw=0.8
        )
        label = "without penalty" if run == "plain" else f"penalty, weight {own['weight'].iloc[0]:g}"
        handles.append(Line2D([], [], color=colour, marker=marker, ls=line, label=label))
    left.set(xlabel="epoch (passes over the data)", ylabel="am_relative, dense tap (ratio)")
    left.set_ylim(0, 1.08 * float(rows["am_relative"].max()) or 1.0)
    right.set(xlabel="epoch (passes over the data)", ylabel="accuracy on test images (%)")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    add_legend(fig, handles)
    add_heading(fig, source.title, f"{format_count(rows['n'])} test images after each epoch, one run of each")
    return fig


def _draw_sites(ax: Axes, own: pd.DataFrame, bottom: float) -> None:
    """Draw one model's sites; those that can't be measured as grey marks at the bottom."""
    if own["depth"].isna().all():
        blank_panel(ax, "not measured")
        return
    measured, missing = own[own[_DB[0]].notna()], own[own[_DB[0]].isna()]
    ax.plot(measured["depth"], measured[_DB[0]].clip(lower=bottom), color=GREY, lw=0.7, zorder=1)
    for site in measured.to_dict("records"):
        colour, marker, _ = KINDS[_kind(str(site["op"]))]
        mean, low, high = (max(float(site[key]), bottom) for key in _DB)
        ax.vlines(site["depth"], low, high, color=INK, lw=0.8, zorder=4)
        ax.plot(site["depth"], mean, marker=marker, ms=4, mfc=colour, mec=INK, mew=0.4, zorder=5)
    if len(missing):
        ax.axhspan(bottom - 2 - STRIP, bottom - 2, color="#eeeeee", lw=0, zorder=0)
    for site in missing.to_dict("records"):
        marker = _missing_marker(site["reason"])
        ax.plot(site["depth"], bottom - 2 - STRIP / 2, color=GREY, mfc="white", ls="", ms=4, marker=marker)


def _draw_dot(ax: Axes, y: int, row: pd.Series, columns: Sequence[str]) -> None:
    """Draw a mean with its interval, or say why there is none."""
    mean, low, high = (float(row[name]) for name in columns)
    if math.isnan(mean):
        ax.text(
            0.02,
            y,
            "not measured",
            transform=ax.get_yaxis_transform(),
            va="center",
            color=GREY,
            fontsize=SMALL,
        )
        return
    if mean == 0 and columns[0] == "sis":
        ax.text(0.02, y, ZERO, transform=ax.get_yaxis_transform(), va="center", color=GREY, fontsize=SMALL)
        return
    fill, marker, _ = WEIGHTS[str(row["weights"])]
    if math.isfinite(low + high):
        ax.hlines(y, low, high, color=INK, lw=0.9, zorder=2)
    ax.plot(mean, y, marker=marker, ms=4.5, mfc=fill, mec=INK, mew=0.7, zorder=3)


def _use_log_scale(ax: Axes, values: pd.Series) -> None:
    """Give the x axis powers of ten, and room at its left for what is zero."""
    positive = values[values > 0]
    if positive.empty:
        ax.set(xlim=(0, 1), xticks=[0])
        return
    low = 10 ** math.floor(math.log10(float(positive.min())) - 0.3)
    high = 10 ** math.ceil(math.log10(float(positive.max())))
    room = (high / low) ** 0.12
    ax.set_xscale("log")
    ax.set_xlim(low / room, high * room**0.3)
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _power_of_ten(x)))


def _power_of_ten(x: float) -> str:
    """Write 10⁻³ without mathematical typesetting, which the style turns off.

    Example:
        >>> _power_of_ten(0.001)
        '10⁻³'
    """
    digits = str(round(math.log10(x))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"


def _depth_legend(rows: pd.DataFrame) -> list[Artist]:
    """What the marks mean, of the kinds that are there."""
    measured = rows[rows[_DB[0]].notna()]
    missing = rows[rows[_DB[0]].isna() & rows["depth"].notna()]
    found = {_kind(str(op)) for op in measured["op"]}
    handles: list[Artist] = [
        Line2D([], [], ls="", marker=marker, color=colour, mec=INK, mew=0.4, ms=5, label=label)
        for kind, (colour, marker, label) in KINDS.items()
        if kind in found
    ]
    said = {"s": "lossless: nothing to measure", "x": "no dense map"}
    for marker in {_missing_marker(reason): None for reason in missing["reason"]}:
        handles.append(
            Line2D([], [], ls="", marker=marker, color=GREY, mfc="white", ms=4, label=said[marker])
        )
    return handles


def _weights_handle(key: str) -> Line2D:
    fill, marker, label = WEIGHTS[key]
    return Line2D([], [], ls="", marker=marker, mfc=fill, mec=INK, mew=0.7, ms=5, label=label)


def _missing_marker(reason: object) -> str:
    return "s" if str(reason).startswith("lossless") else "x"


def _kind(op: str) -> str:
    if op.startswith("window"):
        return "window"
    return op if op in KINDS else "other"


def _name(row: pd.Series) -> str:
    """A panel's title: the model's name, and below it the library and what weights it has."""
    library, _, name = str(row["model"]).replace("@random", "").rpartition("/")
    return f"{wrap_name(name, 26)}\n{library}, {row['weights']} weights"


def _say_weights(rows: pd.DataFrame) -> str:
    counts = rows.drop_duplicates("model")["weights"].value_counts()
    return ", ".join(f"{counts[key]} with {key} weights" for key in WEIGHTS if key in counts)


def _count(rows: pd.DataFrame) -> str:
    counts = rows["n"].dropna()
    return format_count(counts[counts > 0]) if (counts > 0).any() else "n = 0"


def _find_bottom(rows: pd.DataFrame) -> float:
    """The lowest value to show, a multiple of 5 dB."""
    known = rows[_DB[0]].dropna()
    finite = known[known > -math.inf]
    return max(5 * math.floor((float(finite.min()) if len(finite) else FLOOR) / 5), FLOOR)
