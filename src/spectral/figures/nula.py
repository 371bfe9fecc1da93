"""Networks under perturbations of the sampling: what they still see, the perturbations, and null spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from spectral.figures.spec import Source, figure
from spectral.figures.style import (
    FULL_WIDTH,
    GREY,
    INK,
    SMALL,
    add_heading,
    add_legend,
    choose_look,
    format_units,
    new_figure,
    separate_groups,
    slot_offsets,
)
from spectral.table.schema import with_bounds

FEW_LABELS = 100  # with fewer labelled images an accuracy says little
ALPHA = 0.05
AMPLIFICATION = 10
CHECKERBOARD = "checkerboard-0.05"
# Panel of the table of pixels → its words.
EXAMPLES = {
    "clean": "clean",
    "resize-0.25": "bilinear resize ×0.25\n(to 8×8 and back)",
    "decimate-2": "hard decimation\n(every 2nd pixel)",
    CHECKERBOARD: "checkerboard\nε = 0.05 of [0, 1]",
}
SHARES = {
    "null_share": ("the images", "#0072B2", ""),
    "null_share_no_mean": ("the images without their mean", "#E69F00", "//////"),
    "checkerboard_share": ("a checkerboard", "#009E73", "......"),
}
HEATMAP = "cividis"
NAME_WIDTH = 13

_ACCURACY = ("accuracy", "accuracy_ci_low", "accuracy_ci_high")
_AGREEMENT = ("agreement", "agreement_ci_low", "agreement_ci_high")
_PIXELS = ("panel", "row", "column", "red", "green", "blue")


@figure(
    "fig23_nula_perturbations",
    title="Networks under perturbations of the sampling",
    caption=(
        "Share of labelled images that each network classifies correctly, clean and under each perturbation, "
        "with 95 % intervals; where fewer than 100 images have labels, the share of all images that keep the "
        "network's own clean prediction. Open marks: no significant difference from the base under the same "
        "perturbation (paired test over photographs, Holm-corrected, p ≥ 0.05, or too few for one). ε of a "
        "checkerboard is of images in [0, 1], or of what the network gets where the name says normalised. Of "
        "the network's output: no tap."
    ),
    columns={
        "phase6_nula": (
            *("model", "perturbation", "n_labelled", "base", "delta_base_p_holm", "n", "n_clusters"),
            *(*_ACCURACY, *_AGREEMENT),
        )
    },
)
def plot_nula_perturbations(source: Source) -> Figure:
    """A group per perturbation, a mark with its interval per network."""
    rows = source.rows("phase6_nula")
    labelled = rows["n_labelled"].fillna(0).max() >= FEW_LABELS
    columns = _ACCURACY if labelled else _AGREEMENT
    rows = source.rows("phase6_nula", known=[columns[0]])
    rows = rows if labelled else rows[rows["perturbation"] != "clean"]  # that agrees by definition
    tests, models = list(dict.fromkeys(rows["perturbation"])), list(dict.fromkeys(rows["model"]))
    fig = new_figure(FULL_WIDTH, 3.4 + 0.14 * len(models))
    ax = fig.subplots()
    offsets = slot_offsets(len(models), 0.7)
    base = next(iter(rows["base"].dropna()), models[0])
    # without a test, as of one photograph, there is no significant difference either
    alike = rows["model"].ne(base) & ~rows["delta_base_p_holm"].lt(ALPHA) & labelled
    for row, like_base in zip(rows.to_dict("records"), alike, strict=True):
        place = models.index(row["model"])
        x = tests.index(row["perturbation"]) + offsets[place]
        mean, low, high = (100 * row[column] for column in columns)
        ax.vlines(x, low, high, color=GREY, lw=0.9, zorder=2)
        ax.plot(x, mean, zorder=3, **_mark(place, open_mark=like_base))
    ax.set_xticks(range(len(tests)), [_wrap(test) for test in tests])
    ax.set(xlim=(-0.5, len(tests) - 0.5), ylim=(0, 102))
    ax.tick_params(axis="x", length=0)
    ax.yaxis.grid(True, color="#e4e4e4", lw=0.5)
    ax.set_axisbelow(True)
    separate_groups(ax, len(tests))
    ax.set_xlabel("perturbation (the number: its scale, factor or ε)")
    ax.set_ylabel("accuracy (%)" if labelled else "agreement with the own clean prediction (%)")
    handles: list[Artist] = [
        Line2D([], [], label=name + (" (base)" if name == base else ""), **_mark(i))
        for i, name in enumerate(models)
    ]
    if alike.any():
        handles.append(
            Line2D([], [], label="open: no significant difference from base", **_mark(-1, open_mark=True))
        )
    add_legend(fig, handles, columns=2)
    of_labels = rows.assign(n=rows["n_labelled"], n_clusters=rows[["n_labelled", "n_clusters"]].min(axis=1))
    counts = format_units(of_labels).replace("images", "labelled images") if labelled else _say_few(rows)
    add_heading(fig, source.title, f"{counts}, 95 % intervals")
    return fig


@figure(
    "fig24_nula_examples",
    title="What the perturbations do to an image",
    caption=(
        "One dead-leaves image of 32×32 pixels: clean, resized bilinearly to 8×8 and back, reduced to every "
        "second pixel with these repeated, and with a checkerboard of ε = 0.05 added. What leaves [0, 1] is "
        "clipped for display. Of the image: no tap."
    ),
    columns={"phase6_pixels": _PIXELS},
)
def plot_nula_examples(source: Source) -> Figure:
    """Four images beside each other."""
    panels = {words: read_pixels(source, name) for name, words in EXAMPLES.items()}
    return _show_images(source, panels, "n = 1 dead-leaves image of 32×32 pixels")


@figure(
    "fig25_nula_checkerboard",
    title="A checkerboard of ε = 0.05",
    caption=(
        "The clean image x, the perturbed image x + δ with δ[i, j] = ε·(−1)^(i + j) and ε = 0.05 of pixels "
        "in [0, 1], and δ itself around mid-grey, ten times as strong. Of the image: no tap."
    ),
    columns={"phase6_pixels": _PIXELS},
)
def plot_nula_checkerboard(source: Source) -> Figure:
    """Image, perturbed image, and their difference amplified."""
    clean, perturbed = read_pixels(source, "clean"), read_pixels(source, CHECKERBOARD)
    delta = perturbed - clean
    panels = {
        "x": clean,
        "x + δ": perturbed,
        f"δ × {AMPLIFICATION}, around grey": 0.5 + AMPLIFICATION * delta,
    }
    largest = f"largest |δ| = {np.abs(delta).max():.3g} of [0, 1]"
    return _show_images(source, panels, f"n = 1 dead-leaves image; {largest}")


@figure(
    "fig26_null_space",
    title="What downsampling operators annihilate: the null space of D",
    caption=(
        "Above: share of the power of each Fourier basis image that lies in the null space of an operator's "
        "downsampling D, and that nothing behind D can see; both frequencies from 0 to Nyquist, the others "
        "mirror these. Below: the same share of the images' power, with and without their mean (with 95 % "
        "intervals), and of a checkerboard's. Of the image: no tap."
    ),
    columns={
        "fig26_null_space": ("operator", "f_u", "f_v", "share"),
        "phase6_null_space": (
            *("operator", "pixels", "null_dimension", "n", "n_clusters", "checkerboard_share"),
            *with_bounds(*list(SHARES)[:2]),
        ),
    },
)
def plot_null_space(source: Source) -> Figure:
    """A map of the annihilated share per operator, and bars of the images' and the checkerboard's."""
    maps = source.rows("fig26_null_space")
    facts = source.rows("phase6_null_space").drop_duplicates("operator").set_index("operator")
    operators = [name for name in dict.fromkeys(maps["operator"]) if name in facts.index]
    if not operators:
        raise source.error("phase6_null_space", "has none of the operators of 'fig26_null_space'")
    fig = new_figure(FULL_WIDTH, 4.6)
    grid = fig.add_gridspec(2, len(operators), height_ratios=(1.15, 1))
    axes = [fig.add_subplot(grid[0, i]) for i in range(len(operators))]
    for ax, name in zip(axes, operators, strict=True):
        image = _show_frequencies(ax, maps[maps["operator"] == name])
        gone, of = int(facts.loc[name, "null_dimension"]), int(facts.loc[name, "pixels"])
        ax.set_title(f"{name}\ndim ker D = {gone} of {of}", fontsize=SMALL)
        ax.set_xlabel("f_v (cycles per pixel)")
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].set_ylabel("f_u (cycles per pixel)")
    bar = fig.colorbar(image, ax=axes, pad=0.015, aspect=18)
    bar.set_label("share of power in ker D (ratio)")
    _draw_shares(fig.add_subplot(grid[1, :]), facts.loc[operators])
    handles: list[Artist] = [
        Patch(facecolor=colour, edgecolor=INK, hatch=hatch, label=label)
        for label, colour, hatch in SHARES.values()
    ]
    add_legend(fig, handles)
    size = f"{len(set(maps['f_u'])) * 2 - 2}×{len(set(maps['f_v'])) * 2 - 2}"
    add_heading(fig, source.title, f"one channel of {size} pixels; {format_units(facts)}, 95 % intervals")
    return fig


def read_pixels(source: Source, panel: str) -> NDArray[np.float64]:
    """Arrange one row per pixel as an image (H, W, 3)."""
    rows = source.rows("phase6_pixels", panel=panel)
    height, width = int(rows["row"].max()) + 1, int(rows["column"].max()) + 1
    if len(rows) != height * width or rows.duplicated(["row", "column"]).any():
        raise source.error(
            "phase6_pixels",
            f"should have one row for each of the {height}×{width} pixels of {panel!r}, got {len(rows)}",
        )
    ordered = rows.sort_values(["row", "column"])[["red", "green", "blue"]]
    return ordered.to_numpy(dtype=np.float64).reshape(height, width, 3)


def _show_images(source: Source, panels: dict[str, NDArray[np.float64]], note: str) -> Figure:
    fig = new_figure(FULL_WIDTH, 1.03 + 6.3 / len(panels))
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, pixels) in zip(axes, panels.items(), strict=True):
        height, width = pixels.shape[:2]
        ax.imshow(np.clip(pixels, 0, 1), interpolation="none", extent=(0, width, height, 0))
        ax.set(xticks=[0, width // 2, width], yticks=[0, height // 2, height])
        ax.set_title(title)
        ax.set_xlabel("column (pixels)")
    axes[0].set_ylabel("row (pixels)")
    add_heading(fig, source.title, note)
    return fig


def _show_frequencies(ax: Axes, bins: pd.DataFrame) -> AxesImage:
    table = bins.pivot(index="f_u", columns="f_v", values="share")
    half_u, half_v = (0.25 / (len(axis) - 1) for axis in (table.index, table.columns))  # half a bin
    image = ax.imshow(
        table.to_numpy(),
        extent=(-half_v, 0.5 + half_v, -half_u, 0.5 + half_u),
        origin="lower", cmap=HEATMAP, vmin=0, vmax=1, interpolation="none",
    )  # fmt: skip
    ax.set(xticks=[0, 0.25, 0.5], yticks=[0, 0.25, 0.5])
    return image


def _draw_shares(ax: Axes, facts: pd.DataFrame) -> None:
    width = 0.76 / len(SHARES)
    for (name, (_, colour, hatch)), offset in zip(
        SHARES.items(), slot_offsets(len(SHARES), 0.76), strict=True
    ):
        x = np.arange(len(facts)) + offset
        ax.bar(x, facts[name], width * 0.92, color=colour, edgecolor=INK, hatch=hatch, lw=0.6, zorder=2)
        if f"{name}_ci_low" in facts:
            ax.vlines(x, facts[f"{name}_ci_low"], facts[f"{name}_ci_high"], color=INK, lw=1.0, zorder=3)
        for at, value in zip(x, facts[name], strict=True):
            ax.annotate(_write_share(value), (at, max(value, 0)), (0, 6), textcoords="offset points",
                        ha="center", fontsize=SMALL)  # fmt: skip
    ax.set_xticks(range(len(facts)), list(facts.index))
    ax.set(xlim=(-0.5, len(facts) - 0.5), ylim=(0, 1.19), yticks=[0, 0.5, 1])
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("share of power in ker D (ratio)")
    separate_groups(ax, len(facts))


def _write_share(value: float) -> str:
    return f"{100 * value:z.1f} %" if round(100 * value, 1) % 1 else f"{value:z.0%}".replace("%", " %")


def _mark(place: int, open_mark: bool = False) -> dict[str, Any]:
    """Look of one network; of an unnamed one for place −1."""
    colour, marker = (GREY, "o") if place < 0 else choose_look(place)
    return {
        "marker": marker,
        "mfc": "white" if open_mark else colour,
        "mec": colour,
        "mew": 0.9,
        "ms": 5,
        "ls": "",
    }


def _wrap(name: str) -> str:
    """Break a perturbation's name at its hyphens so that it fits its group."""
    first, *parts = name.split("-")
    joined = [first]
    for part in parts:
        if len(joined[-1]) + 1 + len(part) > NAME_WIDTH - 2:
            joined.append(part)
        else:
            joined[-1] += f"-{part}"
    return "\n".join(joined)


def _say_few(rows: pd.DataFrame) -> str:
    few = int(rows["n_labelled"].fillna(0).max())
    return f"{format_units(rows)}, {few or 'none'} labelled: agreement in place of accuracy"
