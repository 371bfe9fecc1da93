"""One look for all figures: sizes, fonts, family colours, and the helpers that keep panels alike."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray

from spectral.files.atomic import GENERATOR

COLUMN_WIDTH, FULL_WIDTH = 3.5, 7.2  # inches: one and two columns of a journal page
SMALL, NORMAL, LARGE = 7.0, 7.5, 8.5  # points at final size
LEGEND_LINE = 100  # characters of three entries that fit in the full width
INK, GREY, PALE = "#222222", "#6e6e6e", "#f2f2f2"

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same glyphs on every machine
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "figure.titlesize": LARGE,
    "figure.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "patch.linewidth": 0.6,
    "image.composite_image": False,
    "path.simplify": True,
    "text.parse_math": False,  # layer names and reasons are text, whatever characters they have
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
}


def sign(kind: str, title: str) -> dict[str, str]:
    """Return what a figure's file says of itself: its title, and what wrote it.

    Args:
        kind: png, pdf or svg.
        title: of the figure.

    Example:
        >>> sorted(sign("png", "Levels"))
        ['Software', 'Title']
    """
    return {"Title": title, "Software" if kind == "png" else "Creator": GENERATOR}


def use_style() -> AbstractContextManager[None]:
    """Matplotlib's defaults and `STYLE`, whatever the caller has set, until the ``with`` block ends."""
    return matplotlib.style.context(["default", STYLE])


@dataclass(frozen=True)
class FamilyStyle:
    """How a family looks in every figure; each of the marks alone tells it from the others."""

    label: str
    colour: str
    marker: str
    line: LineStyleType
    hatch: str


# Okabe–Ito colours, three steps apart in lightness too.
FAMILIES = {
    "strided": FamilyStyle("strided", "#0072B2", "o", "-", ""),
    "blurpool": FamilyStyle("BlurPool", "#E69F00", "s", "--", "//////"),
    "nula": FamilyStyle("NULA", "#009E73", "^", "-.", "......"),
    "flc": FamilyStyle("FLC", "#882255", "D", (0, (3, 1, 1, 1, 1, 1)), "xxxxxx"),
}
TAP_LINES: dict[str, LineStyleType] = {"dense": "-", "input": (0, (2, 1.2))}
TAP_NAMES = {"input": "input tap: what enters the site", "dense": "dense tap: what the decimation sees"}
RHO_LABEL = "normalised radius ρ (1 = Nyquist)"
AVR_LABEL = "AVR (share of power)"
SIS_LABEL = "SIS (1 − cosine similarity)"


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#6e6e6e")  # Okabe–Ito
MARKS = "os^Dv<>PX*"
# Of networks: their numbers have no common divisor, so that pairs don't come twice.
_NETWORK_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222")
_NETWORK_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def choose_look(place: int) -> tuple[str, str]:
    """Return the colour and the marker of one of several networks.

    Example:
        >>> choose_look(0), choose_look(8)
        (('#0072B2', 'o'), ('#E69F00', 'o'))
    """
    return _NETWORK_COLOURS[place % len(_NETWORK_COLOURS)], _NETWORK_MARKERS[place % len(_NETWORK_MARKERS)]


def find_families(table: pd.DataFrame) -> list[str]:
    """Return the families of a table in their fixed order."""
    return [family for family in FAMILIES if family in set(table["family"])]


def mask_silent(rows: pd.DataFrame) -> pd.DataFrame:
    """Make the AVR of silent maps NaN: without power it is undefined, and the tables' 0 a convention."""
    return rows.assign(avr=rows["avr"].mask(rows["silent"].astype(bool)))


def find_layers(table: pd.DataFrame) -> list[str]:
    """Return the layers to compare in depth order: those of the first family, or shared by two others.

    A layer that only one other family has (a small network's second path at a resolution that the reference
    passes once) has nothing to stand beside; it is in the table, and a column of blanks here would make all
    others too small to read. The image itself is no layer.
    """
    sites = table[table["layer"] != "image"]
    families = sites.groupby("layer")["family"].agg(set)
    reference = next(iter(find_families(sites)), None)
    shown = [layer for layer, owners in families.items() if reference in owners or len(owners) > 1]
    layers = sites[sites["layer"].isin(shown)].groupby("layer")["layer_index"].min()
    return [str(layer) for layer in layers.sort_values(kind="stable").index]


def find_models(table: pd.DataFrame) -> dict[str, str]:
    """Return family → model, families in their fixed order."""
    models = table.drop_duplicates("family").set_index("family")["model"]
    return {family: str(models[family]) for family in find_families(table)}


def wrap_name(name: str, width: int = 12) -> str:
    """Break a module path at its separators so that no line is wider than needed.

    Example:
        >>> wrap_name("layer2.0.downsample.0").splitlines()
        ['layer2.0.', 'downsample.0']
    """
    lines = [""]
    for part in re.findall(r"[^.:@_]*[.:@_]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def parse_stride(stride: str) -> tuple[int, int]:
    """Read ``"2x2"`` as (rows, columns).

    Example:
        >>> parse_stride("2x1")
        (2, 1)
    """
    rows, columns = str(stride).split("x")
    return int(rows), int(columns)


def format_p(p: float, stars: object = "") -> str:
    """Write a p value as papers do, with its stars.

    Example:
        >>> format_p(0.0004, "***"), format_p(0.0321), format_p(float("nan"))
        ('p < 0.001 ***', 'p = 0.032', 'p: none')
    """
    if not math.isfinite(p):
        return "p: none"
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{text} {stars}" if isinstance(stars, str) and stars else text


def format_count(counts: pd.Series) -> str:
    """Write one n, or the range of several.

    Example:
        >>> format_count(pd.Series([7, 7])), format_count(pd.Series([7, 5]))
        ('n = 7', 'n = 5–7')
    """
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}" if low == high else f"n = {low}–{high}"


def format_units(rows: pd.DataFrame) -> str:
    """Write on how many units means and tests rest: clusters (photographs), and how many images these are.

    Example:
        >>> format_units(pd.DataFrame({"n": [70, 68], "n_clusters": [50, 50]}))
        'n = 50 photographs (68–70 images)'
        >>> format_units(pd.DataFrame({"n": [9], "n_clusters": [9]}))
        'n = 9 images'
    """
    known = rows[rows["n"].fillna(0) > 0] if (rows["n"].fillna(0) > 0).any() else rows
    images = format_count(known["n"]).removeprefix("n = ")
    if (known["n"] == known["n_clusters"]).all():
        return f"n = {images} images"
    return f"{format_count(known['n_clusters'])} photographs ({images} images)"


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Make a figure that draws to memory: no window, no pyplot."""
    fig = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(fig)
    return fig


def add_heading(fig: Figure, title: str, note: str) -> None:
    """Put the title above the figure, and below it what was counted."""
    fig.suptitle(f"{title}\n{note}", linespacing=1.35)


def add_legend(fig: Figure, handles: Sequence[Artist], columns: int | None = None) -> None:
    """Put the legend below all panels, where it covers no data; on one line if it fits."""
    one_line = sum(len(str(handle.get_label())) for handle in handles) <= LEGEND_LINE
    columns = columns or (len(handles) if one_line else 2)
    fig.legend(handles=handles, loc="outside lower center", ncols=columns)


def family_lines(models: dict[str, str]) -> list[Artist]:
    """Legend entries of families drawn as lines with markers."""
    return [
        Line2D([], [], color=s.colour, ls=s.line, marker=s.marker, label=f"{s.label} ({model})")
        for s, model in ((FAMILIES[family], model) for family, model in models.items())
    ]


def family_points(models: dict[str, str]) -> list[Artist]:
    """Legend entries of families drawn as markers."""
    return [
        Line2D([], [], color=s.colour, ls="", marker=s.marker, ms=5, label=f"{s.label} ({model})")
        for s, model in ((FAMILIES[family], model) for family, model in models.items())
    ]


def family_patches(models: dict[str, str]) -> list[Artist]:
    """Legend entries of families drawn as bars or areas."""
    return [
        Patch(facecolor=s.colour, edgecolor=INK, hatch=s.hatch, label=f"{s.label} ({model})")
        for s, model in ((FAMILIES[family], model) for family, model in models.items())
    ]


def blank_panel(ax: Axes, text: str = "no such site") -> None:
    """Turn a panel into a grey field that says why it is empty."""
    ax.set(xticks=[], yticks=[], facecolor=PALE)
    ax.spines[:].set_visible(False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY, fontsize=SMALL)


def mark_slot(ax: Axes, x: float, text: str = "no such site") -> None:
    """Say in grey, upwards from zero in the place of a bar, why there is none."""
    ax.annotate(
        text,
        (x, 0),
        (0, 3),
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="bottom",
        color=GREY,
        fontsize=SMALL,
    )


def list_missing(ax: Axes, families: Sequence[str]) -> None:
    """Name in grey, in the upper right of a panel of falling curves, the families it lacks."""
    if families:
        lines = [f"{FAMILIES[family].label}:\nno such site" for family in families]
        style: dict[str, Any] = {"ha": "right", "va": "top", "color": GREY, "fontsize": SMALL}
        ax.text(0.98, 0.98, "\n".join(lines), transform=ax.transAxes, **style)


def slot_offsets(n: int, width: float = 0.84) -> NDArray[np.float64]:
    """Positions of n neighbours around 0, filling ``width``."""
    return (np.arange(n) - (n - 1) / 2) * width / n


def set_layer_ticks(ax: Axes, layers: Sequence[str], panel_inches: float) -> None:
    """Write layer names under groups 0, 1, …; upright where they would run into each other."""
    names = [wrap_name(layer) for layer in layers]
    longest = max(len(line) for name in names for line in name.splitlines())
    fits = longest * 0.06 < panel_inches / len(layers)
    ax.set_xticks(range(len(layers)), names, rotation=0 if fits else 90)
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.tick_params(axis="x", length=0)


def separate_groups(ax: Axes, n: int) -> None:
    """Draw faint lines between groups 0 … n − 1."""
    for edge in range(n - 1):
        ax.axvline(edge + 0.5, color="#dddddd", lw=0.5, zorder=0)


def sqrt_ticks(limit: float) -> list[float]:
    """Round numbers from 0 to ``limit`` that stand well apart on a square-root axis.

    Example:
        >>> sqrt_ticks(0.2)
        [0.0, 0.02, 0.05, 0.1, 0.2]
    """
    decade = math.floor(math.log10(limit))
    candidates = [float(f"{digit}e{power}") for power in range(decade, decade - 3, -1) for digit in (5, 2, 1)]
    gap = 0.17 * math.sqrt(limit)
    ticks: list[float] = []
    for value in candidates:
        below = math.sqrt(ticks[-1]) - gap if ticks else math.sqrt(limit)
        if gap <= math.sqrt(value) <= below:
            ticks.append(value)
    return [0.0, *reversed(ticks)]


def use_sqrt_scale(ax: Axes, which: str, limit: float) -> None:
    """Give an axis that starts at 0 a square-root scale: zeros stay visible, the long tail shrinks."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    scale = ax.set_xscale if which == "x" else ax.set_yscale
    scale("function", functions=(_signed_sqrt, _signed_square))
    axis.set_major_locator(FixedLocator(sqrt_ticks(limit)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _signed_sqrt(x: NDArray[np.float64]) -> NDArray[np.float64]:
    root: NDArray[np.float64] = np.sign(x) * np.sqrt(np.abs(x))
    return root


def _signed_square(x: NDArray[np.float64]) -> NDArray[np.float64]:
    square: NDArray[np.float64] = np.sign(x) * np.square(x)
    return square
