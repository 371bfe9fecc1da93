"""One-dimensional spectra: power against normalised radius, a panel per layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FAMILIES,
    FULL_WIDTH,
    GREY,
    INK,
    RHO_LABEL,
    TAP_LINES,
    add_heading,
    add_legend,
    family_lines,
    find_families,
    find_layers,
    find_models,
    format_count,
    list_missing,
    new_figure,
    parse_stride,
    wrap_name,
)

POWER_LABEL = "power per bin (dB re. total)"
DEPTH = 90.0  # dB shown below the strongest ring, at most
COLUMNS = 4

_PROFILE = ("model", "family", "site", "layer", "layer_index", "stride", "tap", "rho", "power")


@figure(
    "fig2_radial_profiles",
    title="Radial power profiles of the layers' maps",
    caption=(
        "Mean power per bin on rings of equal normalised radius, in dB relative to the map's total power, "
        "for one natural image: what enters each site (input tap, dashed) and what its decimation sees "
        "(dense tap, solid). Vertical line: the new Nyquist frequency, ρ = 1/stride; power to its right can "
        "alias."
    ),
    columns={"fig2_radial_profiles": _PROFILE},
)
def plot_radial_profiles(source: Source) -> Figure:
    """Profiles of every family at both taps, a panel per layer."""
    rows = source.rows("fig2_radial_profiles")
    fig, panels = _make_panels(rows)
    for layer, ax in panels.items():
        here = rows[rows["layer"] == layer]
        for family in find_families(here):
            for tap, line in TAP_LINES.items():
                profile = here[(here["family"] == family) & (here["tap"] == tap)]
                _draw_profile(ax, profile, family, line, marked=tap == "dense")
        list_missing(ax, [f for f in find_families(rows) if f not in set(here["family"])])
    taps: list[Artist] = [
        Line2D([], [], color=INK, ls=line, label=f"{tap} tap") for tap, line in TAP_LINES.items()
    ]
    add_legend(fig, [*_family_handles(rows), _nyquist_handle(), *taps], columns=3)
    add_heading(fig, source.title, "n = 1 natural image, mean over channels")
    return fig


@figure(
    "fig9_radial_profiles_natural",
    title="Radial power profiles of the strided model (dense tap)",
    caption=(
        "Mean power per bin on rings of equal normalised radius at the dense tap of the strided reference "
        "model, in dB relative to the map's total power: one photograph (line), the mean over many (dashed) "
        "and their 10th to 90th percentile (band). Vertical line: the new Nyquist frequency, ρ = 1/stride."
    ),
    columns={"fig9_radial_profiles_natural": (*_PROFILE, "power_mean", "power_p10", "power_p90", "n_images")},
)
def plot_radial_profiles_natural(source: Source) -> Figure:
    """One photograph's profile over the band of many, a panel per layer of the strided model."""
    rows = source.rows("fig9_radial_profiles_natural", family="strided", tap="dense")
    style = FAMILIES["strided"]
    fig, panels = _make_panels(rows)
    for layer, ax in panels.items():
        here = rows[rows["layer"] == layer].sort_values("rho")
        low, high = (_to_db(here[column]) for column in ("power_p10", "power_p90"))
        ax.fill_between(here["rho"], low, high, color=style.colour, alpha=0.22, lw=0)
        ax.plot(here["rho"], _to_db(here["power_mean"]), color=INK, ls="--", lw=1.0)
        ax.plot(here["rho"], _to_db(here["power"]), color=style.colour)
    handles: list[Artist] = [
        Line2D([], [], color=style.colour, label="one photograph"),
        Line2D([], [], color=INK, ls="--", lw=1.0, label="mean of all"),
        Patch(color=style.colour, alpha=0.22, lw=0, label="10–90 % of all"),
        _nyquist_handle(),
    ]
    add_legend(fig, handles)
    model = find_models(rows)["strided"]
    add_heading(fig, source.title, f"{model}, {format_count(rows['n_images'])} images")
    return fig


@figure(
    "fig15_radial_overlay",
    title="Radial power profiles of the families (dense tap)",
    caption=(
        "Mean power per bin on rings of equal normalised radius at the dense tap (what the decimation sees), "
        "in dB relative to the map's total power, averaged over the images. Vertical line: the new Nyquist "
        "frequency, ρ = 1/stride; power to its right aliases."
    ),
    columns={"fig15_radial_overlay": (*_PROFILE, "n_images")},
)
def plot_radial_overlay(source: Source) -> Figure:
    """Mean profiles of the families over one another, a panel per layer."""
    rows = source.rows("fig15_radial_overlay", tap="dense")
    fig, panels = _make_panels(rows)
    for layer, ax in panels.items():
        here = rows[rows["layer"] == layer]
        for family in find_families(here):
            _draw_profile(ax, here[here["family"] == family], family, FAMILIES[family].line)
        list_missing(ax, [f for f in find_families(rows) if f not in set(here["family"])])
    add_legend(fig, [*family_lines(find_models(rows)), _nyquist_handle()], columns=2)
    add_heading(fig, source.title, f"mean over {format_count(rows['n_images'])} images")
    return fig


def _make_panels(rows: pd.DataFrame) -> tuple[Figure, Mapping[str, Axes]]:
    """A labelled panel per layer with its Nyquist line, four to a row."""
    layers = find_layers(rows)
    n_columns = min(COLUMNS, len(layers))
    n_rows = -(-len(layers) // n_columns)
    fig = new_figure(FULL_WIDTH, 1.6 * n_rows + 1.25)
    axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for index, ax in enumerate(axes.flat):
        if index >= len(layers):
            ax.remove()
            continue
        here = rows[rows["layer"] == layers[index]]
        ax.set_title(wrap_name(layers[index], 24))
        for stride in here["stride"].unique():
            for cutoff in {1 / s for s in parse_stride(stride)}:
                ax.axvline(cutoff, color=GREY, lw=0.8, ls=(0, (6, 2)), zorder=1)
        bottom = index + n_columns >= len(layers)  # the last row may be short
        ax.tick_params(labelbottom=bottom)
        if bottom:
            ax.set_xlabel(RHO_LABEL if n_columns < 4 else "radius ρ (1 = Nyquist)")
        if index % n_columns == 0:
            ax.set_ylabel(POWER_LABEL)
    axes[0, 0].set_xlim(0, np.sqrt(2))
    axes[0, 0].set_xticks([0, 0.5, 1.0])
    columns = [column for column in rows.columns if column.startswith("power")]
    peak = float(_to_db(rows[columns].max(axis=1)).max())
    weakest = float(np.nanmin([np.nanmin(_to_db(rows[column])) for column in columns]))
    axes[0, 0].set_ylim(max(weakest - 3, peak - DEPTH), peak + 3)
    return fig, {layer: axes.flat[index] for index, layer in enumerate(layers)}


def _draw_profile(
    ax: Axes, profile: pd.DataFrame, family: str, line: LineStyleType, marked: bool = True
) -> None:
    """Draw one profile, with a few markers that differ between families in shape and place."""
    if profile.empty:
        return
    style = FAMILIES[family]
    profile = profile.sort_values("rho")
    step = max(3, len(profile) // 5)
    start = list(FAMILIES).index(family) * step // len(FAMILIES)
    ax.plot(
        profile["rho"],
        _to_db(profile["power"]),
        color=style.colour,
        ls=line,
        marker=style.marker if marked else "",
        lw=1.2 if marked else 1.0,
        markevery=(start, step),
    )


def _to_db(power: pd.Series) -> NDArray[np.float64]:
    """Shares of power in dB; a gap where there is none."""
    values = power.to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(values > 0, 10 * np.log10(values), np.nan)


def _family_handles(rows: pd.DataFrame) -> list[Artist]:
    return [
        Line2D([], [], color=s.colour, marker=s.marker, label=f"{s.label} ({model})")
        for s, model in ((FAMILIES[family], model) for family, model in find_models(rows).items())
    ]


def _nyquist_handle() -> Line2D:
    return Line2D([], [], color=GREY, lw=0.8, ls=(0, (6, 2)), label="new Nyquist, ρ = 1/stride")
