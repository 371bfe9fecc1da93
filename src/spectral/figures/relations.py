"""What goes with what: AVR and frequency, instability and time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    AVR_LABEL,
    FAMILIES,
    FULL_WIDTH,
    GREY,
    INK,
    SIS_LABEL,
    FamilyStyle,
    add_heading,
    add_legend,
    family_points,
    find_families,
    find_layers,
    find_models,
    format_units,
    new_figure,
)
from spectral.table.schema import with_bounds

_SITE = ("model", "family", "site", "layer", "layer_index", "tap")


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
    "fig14_tradeoff",
    title="Shift instability against inference time",
    caption=(
        "Mean SIS with its 95 % interval against the median time per image with its quartiles, one mark per "
        "model. Boxes, with 95 % intervals: change against the strided model, how often both predict the "
        "same class, and the model's accuracy on n images with labels."
    ),
    columns={
        "phase5_tradeoff": (
            *("model", "family", "n", "n_clusters", "n_labelled"),
            *with_bounds("sis", "sis_change_percent", "agreement", "accuracy"),
            *("latency_ms", "latency_q25", "latency_q75", "latency_ratio", "batch_size", "device", "threads"),
        )
    },
)
def plot_tradeoff(source: Source) -> Figure:
    """Mean SIS over latency with intervals, a mark per model, and the changes in words."""
    table = source.rows("phase5_tradeoff")
    fig = new_figure(FULL_WIDTH, 3.1)
    ax, side = fig.subplots(1, 2, width_ratios=[1.7, 1])
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


def _describe_change(row: Mapping[Hashable, Any]) -> str:
    """What a model's box says: each number but the time with its interval."""
    time = 100 * (row["latency_ratio"] - 1)
    lines = [
        f"ΔSIS {_write(row, 'sis_change_percent', '+z.1f')}",
        f"Δtime {time:+z.1f} %",
        f"agreement {_write(row, 'agreement', '.1f', 100)}",
    ]
    if not math.isnan(row["accuracy"]):
        lines.append(f"accuracy {_write(row, 'accuracy', '.1f', 100)}, n = {row['n_labelled']:.0f}")
    return "\n".join(lines).replace("-", "−")


def _write(row: Mapping[Hashable, Any], name: str, form: str, scale: float = 1.0) -> str:
    """Write per cent with an interval, where there is one."""
    value, low, high = (f"{scale * row[column]:{form}}" for column in with_bounds(name))
    return f"{value} %" if math.isnan(row[f"{name}_ci_low"]) else f"{value} % ({low} to {high})"
