"""Two-dimensional spectra: the layers' power, and where the folded part of it lands."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse, Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FAMILIES,
    FULL_WIDTH,
    SMALL,
    add_heading,
    blank_panel,
    find_families,
    find_layers,
    new_figure,
    parse_stride,
    wrap_name,
)

Matrix = NDArray[np.float64]
HEATMAP = "magma"  # perceptually uniform, and prints to grey in the same order
OUTLINE = [Stroke(linewidth=1.8, foreground="black"), Normal()]  # white lines stay visible on bright bins
FLOOR_LIMITS = (-90.0, -30.0)  # dB
FOLDING_PANELS = {
    "dense": "dense map",
    "output": "output (decimated)",
    "alias_free": "alias-free output",
    "aliases": "the aliases",
}

_SPECTRUM = ("model", "family", "site", "height", "width", "f_u", "f_v", "power")


@figure(
    "fig1_layerwise_power_spectra",
    title="Power spectra of the layers' maps (dense tap)",
    caption=(
        "Power spectrum of what each site's decimation sees (dense tap, mean over channels) for one natural "
        "image, DC in the centre, in dB relative to the panel's own maximum. Dashed: the new Nyquist "
        "frequency, ρ = 1/stride; the share of power outside it is the AVR above each panel."
    ),
    columns={"fig1_layerwise_power_spectra": (*_SPECTRUM, "layer", "layer_index", "stride", "tap", "avr")},
)
def plot_layerwise_power_spectra(source: Source) -> Figure:
    """Heatmaps of log power, a row per family and a column per layer, with the cutoff ellipse."""
    name = "fig1_layerwise_power_spectra"
    rows = source.rows(name, tap="dense")
    families, layers = find_families(rows), find_layers(rows)
    spectra = {
        (str(family), str(layer)): (_to_db(read_spectrum(source, name, bins)), bins.iloc[0])
        for (family, layer), bins in rows.groupby(["family", "layer"], sort=False)
    }
    floor = _choose_floor([db for db, _ in spectra.values()])

    panel = (FULL_WIDTH - 1.4) / max(len(layers), 4)  # inches; the rest is labels and the colour bar
    fig = new_figure(FULL_WIDTH, len(families) * (panel + 0.25) + 0.8, layout="compressed")
    axes = fig.subplots(len(families), len(layers), squeeze=False)
    for (i, j), ax in np.ndenumerate(axes):
        title = f"{wrap_name(layers[j])}\n" if i == 0 else ""
        if (families[i], layers[j]) in spectra:
            db, first = spectra[families[i], layers[j]]
            image = _show_heatmap(ax, db, floor)
            _draw_cutoff(ax, parse_stride(first["stride"]))
            title += f"AVR {first['avr']:.3f}" if np.isfinite(db).any() else "silent map"
        else:
            blank_panel(ax)
            ax.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), aspect="equal")
        ax.set_title(title, fontsize=SMALL)
        below = families[i + 1] if i + 1 < len(families) else None
        ax.tick_params(labelbottom=(below, layers[j]) not in spectra)
        if j == 0:
            ax.set_ylabel(FAMILIES[families[i]].label, fontweight="bold")
        else:
            ax.tick_params(labelleft=False)
    fig.supxlabel("horizontal frequency f_v (cycles per pixel)")
    fig.supylabel("vertical frequency f_u (cycles per pixel)")
    bar = fig.colorbar(image, ax=axes, extend="min", shrink=0.8, aspect=30, pad=0.015)
    bar.set_label("power (dB re. panel maximum)")
    add_heading(fig, source.title, "n = 1 natural image, mean over channels; dashed: ρ = 1/stride")
    return fig


@figure(
    "fig6_aliasing_folding",
    title="Where decimation folds the power to",
    caption=(
        "One site per family, one natural image. From left to right: the dense map's spectrum with the new "
        "Nyquist box; the real output's; the output's had everything outside the box been removed first (its "
        "own Nyquist bins are zero then); and the difference, the aliases, where they land. Power per "
        "sample, |DFT|²/(H·W)², so that maps of both sizes compare; each row in dB re. its own maximum."
    ),
    columns={"fig6_aliasing_folding": (*_SPECTRUM, "panel", "stride_h", "stride_w", "alias_power_ratio")},
)
def plot_aliasing_folding(source: Source) -> Figure:
    """Four spectra per family: dense, output, alias-free, aliases; one dB scale per row."""
    name = "fig6_aliasing_folding"
    rows = source.rows(name)
    families = find_families(rows)
    fig = new_figure(FULL_WIDTH, 1.52 * len(families) + 1.0, layout="compressed")
    axes = fig.subplots(len(families), len(FOLDING_PANELS), squeeze=False)
    for line, family in zip(axes, families, strict=True):
        own = rows[rows["family"] == family]
        own = own[own["site"] == own["site"].iloc[0]]
        _draw_folding_row(source, name, fig, line, own)
        line[0].set_ylabel(
            f"{FAMILIES[family].label}\n{wrap_name(own['site'].iloc[0], 16)}", fontweight="bold"
        )
    for ax in axes[:-1].flat:
        ax.tick_params(labelbottom=False)
    for ax in axes[:, 1:].flat:
        ax.tick_params(labelleft=False)
    for ax, title in zip(axes[0], FOLDING_PANELS.values(), strict=True):
        ax.set_title(f"{title}\n{ax.get_title()}", fontsize=SMALL)
    fig.supxlabel("horizontal frequency f_v (cycles per pixel of each map)")
    fig.supylabel("vertical frequency f_u (cycles per pixel of each map)")
    add_heading(
        fig,
        source.title,
        "n = 1 natural image, dense tap and output; box: new Nyquist; ratio: aliases / output power",
    )
    return fig


def _draw_folding_row(
    source: Source, name: str, fig: Figure, line: NDArray[np.object_], own: pd.DataFrame
) -> None:
    panels: dict[str, Matrix] = {}
    for panel in FOLDING_PANELS:
        bins = own[own["panel"] == panel]
        if not bins.empty:
            size = float(bins["height"].iloc[0] * bins["width"].iloc[0])
            panels[panel] = read_spectrum(source, name, bins) / size**2
    peak = max(float(power.max()) for power in panels.values())
    decibels = {panel: _to_db(power, peak) for panel, power in panels.items()}
    # the alias-free map has no power at all in its new Nyquist bins: that must not set the scale
    floor = _choose_floor([db for panel, db in decibels.items() if panel != "alias_free"])
    stride = (int(own["stride_h"].iloc[0]), int(own["stride_w"].iloc[0]))
    for ax, panel in zip(line, FOLDING_PANELS, strict=True):
        if panel not in panels:
            blank_panel(ax, "not measured")
            continue
        image = _show_heatmap(ax, decibels[panel], floor)
        h, w = panels[panel].shape
        ax.set_title(f"{h}×{w} bins", fontsize=SMALL)
    if "dense" in panels:
        box = Rectangle((-0.5 / stride[1], -0.5 / stride[0]), 1 / stride[1], 1 / stride[0])
        box.set(fill=False, edgecolor="white", linewidth=1.0, path_effects=OUTLINE)
        line[0].add_patch(box)
    if "aliases" in panels:
        line[-1].set_title(_describe_ratio(float(own["alias_power_ratio"].iloc[0])), fontsize=SMALL)
    bar = fig.colorbar(image, ax=line, extend="min", aspect=14, pad=0.015)
    bar.set_label("power (dB re.\nrow maximum)")


def _describe_ratio(ratio: float) -> str:
    decibels = f"{10 * math.log10(ratio):.1f}".replace("-", "−") if ratio > 0 else "−∞"
    return f"ratio {ratio:.2g} ({decibels} dB)"


def read_spectrum(source: Source, table: str, bins: pd.DataFrame) -> Matrix:
    """Arrange one row per bin as a matrix, f_u down and f_v across, both ascending."""
    height, width = int(bins["height"].iloc[0]), int(bins["width"].iloc[0])
    if len(bins) != height * width or bins.duplicated(["f_u", "f_v"]).any():
        site = bins["site"].iloc[0]
        raise source.error(
            table, f"should have one row for each of the {height}×{width} bins of {site!r}, got {len(bins)}"
        )
    ordered = bins.sort_values(["f_u", "f_v"])["power"]
    matrix: Matrix = ordered.to_numpy(dtype=np.float64).reshape(height, width)
    return matrix


def _to_db(power: Matrix, reference: float | None = None) -> Matrix:
    """Power in dB re. its maximum or a reference; −∞ where there is none, all −∞ for a silent map."""
    reference = float(power.max()) if reference is None else reference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(power > 0, 10 * np.log10(power / reference), -np.inf)


def _choose_floor(maps: list[Matrix]) -> float:
    """Lower end of a shared dB scale: the weakest panel's 5th percentile, in tens."""
    lows = [float(np.percentile(db[np.isfinite(db)], 5)) for db in maps if np.isfinite(db).any()]
    return float(np.clip(10 * math.floor(min(lows, default=0.0) / 10), *FLOOR_LIMITS))


def _show_heatmap(ax: Axes, db: Matrix, floor: float) -> AxesImage:
    h, w = db.shape
    centre_u, centre_v = h // 2, w // 2  # bin k is at (k − centre)/n, and as wide as 1/n
    extent = (
        -(centre_v + 0.5) / w,
        (w - centre_v - 0.5) / w,
        -(centre_u + 0.5) / h,
        (h - centre_u - 0.5) / h,
    )
    image = ax.imshow(
        np.maximum(db, floor - 1),
        extent=extent,
        origin="lower",
        cmap=HEATMAP,
        vmin=floor,
        vmax=0.0,
        interpolation="none",
    )
    ax.set(xticks=[-0.25, 0.25], yticks=[-0.25, 0.25])
    return image


def _draw_cutoff(ax: Axes, stride: tuple[int, int]) -> None:
    cutoff: Patch = Ellipse((0, 0), 1 / stride[1], 1 / stride[0])
    cutoff.set(fill=False, edgecolor="white", linewidth=0.9, linestyle=(0, (4, 2)), path_effects=OUTLINE)
    ax.add_patch(cutoff)
