"""Kinds of pictures that many tables have: estimates with intervals, values of images, lines, maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectral import stats
from spectral.errors import SpectralError
from spectral.figures.style import (
    COLOURS,
    FULL_WIDTH,
    GREY,
    MARKS,
    SMALL,
    format_units,
    new_figure,
    use_style,
)

DASHES = ("-", "--", ":", "-.")
LEAST_DB = -60.0  # of power that is drawn
ROW, HEAD = 0.2, 0.3  # inches
ACROSS, FEW = 3, 4  # panels beside each other: three at most, and more rows of them for few labels
SHARE = (0.0, 1.0)
NO_LIMITS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: a quantity, and what the axis calls it.

    Attributes:
        column: its values; of estimates, with the bounds of the interval in ``…_ci_low`` and ``…_ci_high``.
        label: quantity and unit.
        zero: whether nothing is at 0, and a line says so.
        limits: what a mean can't be beyond.
        scale: turns a value into what the axis shows, such as decibels: means are of the values.
    """

    column: str
    label: str
    zero: bool = False
    limits: tuple[float, float] = NO_LIMITS
    scale: Callable[[Any], Any] = lambda value: value


def require(table: pd.DataFrame, caller: str, columns: Iterable[str]) -> pd.DataFrame:
    """Return a table that has these columns and rows.

    Raises:
        SpectralError: if it hasn't.
    """
    absent = [column for column in columns if column not in table]
    if absent:
        raise SpectralError(f"{caller}: the table has no column {absent[0]!r}; it needs {', '.join(columns)}")
    if table.empty:
        raise SpectralError(f"{caller}: the table has no rows")
    return table


def draw_estimates(
    table: pd.DataFrame, caller: str, row: str, panels: Sequence[Panel], series: str = "model"
) -> Figure:
    """Draw estimates with their 95 % intervals: a row for each label, a panel for each quantity.

    Args:
        table: a row per label and, where there are several, per series.
        caller: whose name messages begin with.
        row: the column with the labels, in the order of the table.
        panels: the quantities; those of which the table knows none are left out.
        series: the column that colours tell apart, where the table has it.

    Raises:
        SpectralError: if the table has no such column, or no value.
    """
    shown = _choose_panels(table, caller, row, panels)
    known = table.dropna(subset=[p.column for p in shown], how="all")
    labels = list(dict.fromkeys(known[row].astype(str)))
    groups = _split(known, series if series != row else None)
    with use_style():
        fig, axes = _make_panels(len(shown), labels, ROW * max(1, 0.6 * len(groups)))
        for ax, panel in zip(axes, shown, strict=True):
            for number, (_, own) in enumerate(groups):
                at = _place(own[row], labels, number, len(groups))
                value = own[panel.column].astype(float)
                low, high = (
                    own.get(f"{panel.column}_ci_{end}", value).astype(float) for end in ("low", "high")
                )
                colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
                ax.hlines(at, low, high, color=colour, linewidth=1.5)
                ax.plot(value, at, mark, color=colour)
            _finish_rows(ax, panel, labels)
        bounded = any(f"{panel.column}_ci_low" in known for panel in shown)
        _add_note(fig, known, "bars: 95 % intervals" if bounded else "")
        _add_names(fig, axes[0], [name for name, _ in groups])
        fig.draw_without_rendering()
    return fig


def draw_images(
    table: pd.DataFrame, caller: str, row: str, panels: Sequence[Panel], series: str = "model"
) -> Figure:
    """Draw the values of images as dots, and over them their mean with its 95 % interval.

    Args:
        table: a row per image and label; ``cluster``, if it is there, says what each was cut from.
        caller: whose name messages begin with.
        row: the column with the labels, in the order of the table.
        panels: the quantities; flags are drawn as shares alone.
        series: the column that colours tell apart, where the table has it.

    Raises:
        SpectralError: if the table has no such column, no value, or two values of an image at one label.
    """
    shown = _choose_panels(table, caller, row, panels)
    known = table.dropna(subset=[p.column for p in shown], how="all")
    labels = list(dict.fromkeys(known[row].astype(str)))
    groups = _split(known, series if series != row else None)
    rng = np.random.default_rng(0)  # so that dots of equal values lie beside each other
    with use_style():
        fig, axes = _make_panels(len(shown), labels, 1.6 * ROW * max(1, 0.6 * len(groups)))
        for ax, panel in zip(axes, shown, strict=True):
            for number, (_, own) in enumerate(groups):
                for label, block in own.groupby(own[row].astype(str), sort=False):
                    at = float(_place([label], labels, number, len(groups))[0])
                    values = block.dropna(subset=[panel.column])
                    require_once(values, f"{caller}: at {label!r}")
                    _draw_values(ax, values, panel, at, number, rng)
            _finish_rows(ax, panel, labels)
        _add_note(fig, known, "dots: images; bars: 95 % intervals of means")
        _add_names(fig, axes[0], [name for name, _ in groups])
        fig.draw_without_rendering()
    return fig


def draw_lines(
    table: pd.DataFrame, caller: str, x: str, y: str, line: str, panel: str, labels: tuple[str, str],
    power: bool = False,
) -> Figure:  # fmt: skip
    """Draw one quantity over another: a line for each name, a panel for each kind.

    Args:
        table: several rows per name and kind; ``cluster``, if it is there, says what each image was cut from.
        caller: whose name messages begin with.
        x: column of the abscissa.
        y: of the ordinate; rows of equal x are averaged, each cluster counting once.
        line: the names.
        panel: the kinds.
        labels: of both axes.
        power: whether it is a power, and drawn in dB next to the largest of its line.

    Raises:
        SpectralError: if the table has no such column, or no value.
    """
    known = require(table, caller, [x, y, line, panel]).dropna(subset=[x, y])
    if known.empty:
        raise SpectralError(f"{caller}: no row of the table has values to draw")
    kinds, names = (list(dict.fromkeys(known[column].astype(str))) for column in (panel, line))
    with use_style():
        fig = new_figure(FULL_WIDTH, 2.5)
        axes = list(np.atleast_1d(fig.subplots(1, len(kinds), sharey=True)))
        for ax, kind in zip(axes, kinds, strict=True):
            for number, name in enumerate(names):
                own = known[(known[panel].astype(str) == kind) & (known[line].astype(str) == name)]
                if own.empty:
                    continue
                require_once(own, f"{caller}: in {name or kind!r}", x)
                units = own.groupby([x, "cluster"])[y].mean() if "cluster" in own else own.set_index(x)[y]
                mean = units.groupby(level=0).mean()
                dashes = DASHES[number // len(COLOURS) % len(DASHES)]
                ax.plot(mean.index, _to_decibels(mean, mean.max()) if power else mean, dashes,
                        color=COLOURS[number % len(COLOURS)])  # fmt: skip
            ax.set_title(kind if kind else names[0])
            ax.set_xlabel(labels[0])
        axes[0].set_ylabel(labels[1])
        if names != kinds:
            _add_names(fig, axes[0], names, mark=False)
        fig.draw_without_rendering()
    return fig


def draw_maps(
    table: pd.DataFrame, caller: str, value: str, panels: Sequence[str], label: str, peak: str | None = None
) -> Figure:
    """Draw values over the plane of frequencies, DC in the middle: a panel for each kind.

    Args:
        table: columns f_u and f_v (rows and columns, cycles per sample), the value, and those of the kinds.
        caller: whose name messages begin with.
        value: column with what is drawn.
        panels: columns that tell kinds apart, as far as the table has them.
        label: of the values, with their unit.
        peak: of powers, which are drawn in dB: next to the largest of each panel (``"own"``) or of all
            (``"common"``).

    Raises:
        SpectralError: if the table has no such column, or no value.
    """
    known = require(table, caller, ["f_u", "f_v", value]).dropna(subset=[value])
    if known.empty:
        raise SpectralError(f"{caller}: no row of the table has values to draw")
    kinds = [column for column in panels if column in known]
    blocks = list(known.groupby(kinds, sort=False)) if kinds else [((), known)]
    wide = min(4, len(blocks))
    high = -(-len(blocks) // wide)
    top = float(known[value].max()) or 1.0
    norm = Normalize(0, top) if peak is None else Normalize(LEAST_DB, 0)
    with use_style():
        fig = new_figure(FULL_WIDTH * (wide + 0.9) / 4.9, 0.55 + 1.6 * high)
        axes = fig.subplots(high, wide, squeeze=False)
        for ax, (kind, block) in zip(axes.ravel(), blocks, strict=False):
            grid = block.pivot_table(index="f_u", columns="f_v", values=value, aggfunc="mean")
            if peak is not None:
                grid = _to_decibels(grid, float(np.nanmax(grid.to_numpy())) if peak == "own" else top)
            edges = [*_edges(grid.columns.to_numpy(float)), *_edges(grid.index.to_numpy(float))[::-1]]
            ax.imshow(grid, norm=norm, cmap="cividis", interpolation="nearest", extent=edges)
            ax.set_title("\n".join(str(part).replace("_", " ") for part in kind))
        for ax in axes.ravel()[len(blocks) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("vertical frequency")
        for column in range(wide):
            last = (len(blocks) - 1 - column) // wide
            axes[last, column].set_xlabel("horizontal frequency")
        fig.colorbar(ScalarMappable(norm, "cividis"), ax=axes, label=label, shrink=0.9)
        fig.draw_without_rendering()
    return fig


def require_once(values: pd.DataFrame, where: str, *place: str) -> None:
    """Refuse two values of one image where one is drawn: those of several networks would be averaged.

    Args:
        values: rows of one label.
        where: who says so, and of which label.
        place: columns that tell an image's rows apart; pairs of shifts are counted.

    Raises:
        SpectralError: naming the first such image.
    """
    keys = [column for column in ("image", "pair", *place) if column in values]
    again = values.duplicated(keys) if "image" in keys else values.assign(again=False)["again"]
    if again.any():
        raise SpectralError(
            f"{where} the table has image {values[again].iloc[0]['image']!r} twice; where tables of several "
            f"networks, sizes or strengths are put together, a column 'model' must tell them apart"
        )


def _choose_panels(table: pd.DataFrame, caller: str, row: str, panels: Sequence[Panel]) -> list[Panel]:
    """Return the quantities that a table with a column of labels knows, of which there must be one."""
    require(table, caller, [row])
    shown = [p for p in panels if p.column in table and table[p.column].notna().any()]
    if not shown:
        raise SpectralError(f"{caller}: no row of the table has values to draw")
    return shown


def _split(table: pd.DataFrame, series: str | None) -> list[tuple[str, pd.DataFrame]]:
    if series is None or series not in table:
        return [("", table)]
    return [(str(name), own) for name, own in table.groupby(series, sort=False)]


def _place(values: Any, labels: Sequence[str], number: int, count: int) -> Any:
    """Return the heights of labels, those of several series beside each other."""
    spread = 0.6 * (number - (count - 1) / 2) / max(count, 1)
    return np.array([labels.index(str(value)) for value in values]) + spread


def _draw_values(ax: Axes, block: pd.DataFrame, panel: Panel, at: float, number: int, rng: Any) -> None:
    values = block[panel.column]
    if values.empty:
        return
    colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
    clusters = block.get("cluster")
    if panel.limits == SHARE:
        share = stats.summarize_share(values.astype(bool), clusters)
        low, mean, high = share.ci_low, share.share, share.ci_high
    else:
        numbers = values.astype(float)
        beside = at + rng.uniform(-0.18, 0.18, len(numbers))
        ax.plot(
            panel.scale(numbers),
            beside,
            "o",
            color=colour,
            alpha=0.4,
            markersize=2.2,
            markeredgewidth=0,
            zorder=1,
        )
        found = stats.summarize(numbers, None, clusters, *panel.limits)
        low, mean, high = (panel.scale(end) for end in (found.ci_low, found.mean, found.ci_high))
    ax.hlines([at], low, high, color=colour, linewidth=1.8)
    ax.plot([mean], [at], mark, color=colour, markeredgecolor="white", markeredgewidth=0.5, markersize=5)


def _make_panels(count: int, labels: Sequence[str], row: float) -> tuple[Figure, list[Axes]]:
    """Make panels beside each other, or below each other where the labels would leave them no width."""
    across = min(count, ACROSS) if count <= ACROSS or len(labels) <= FEW else 1
    down = -(-count // across)
    fig = new_figure(FULL_WIDTH, HEAD + (0.5 + row * len(labels)) * down)
    found = fig.subplots(down, across, sharey=True, squeeze=False).ravel()
    for ax in found[count:]:
        ax.set_visible(False)
    return fig, list(found[:count])


def _finish_rows(ax: Axes, panel: Panel, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlabel(panel.label)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    if panel.zero:
        ax.axvline(0, color=GREY, linestyle=":", linewidth=0.9, zorder=0)
    if panel.limits == SHARE:
        ax.set_xlim(-0.02, 1.02)


def _add_note(fig: Figure, table: pd.DataFrame, drawn: str) -> None:
    """Say above all panels what was counted, and what is drawn."""
    words = [drawn] if drawn else []
    if "image" in table:
        images = table["image"].nunique()
        clusters = table["cluster"].nunique() if "cluster" in table else images
        words.insert(0, format_units(pd.DataFrame({"n": [images], "n_clusters": [clusters]})))
    elif "n" in table and table["n"].fillna(0).gt(0).any():
        words.insert(0, format_units(table.assign(n_clusters=table.get("n_clusters", table["n"]))))
    if words:
        fig.suptitle("; ".join(words), fontsize=SMALL)


def _add_names(fig: Figure, ax: Axes, names: Sequence[str], mark: bool = True) -> None:
    """Say below all panels what colours stand for, where there is more than one."""
    if len(names) < 2 and mark:
        return
    handles = []
    for number, name in enumerate(names):
        style = MARKS[number % len(MARKS)] if mark else DASHES[number // len(COLOURS) % len(DASHES)]
        handles += ax.plot([], [], style, color=COLOURS[number % len(COLOURS)], label=name)
    longest = max(len(name) for name in names)
    fig.legend(handles=handles, loc="outside lower center", ncols=max(1, min(5, 110 // (longest + 6))))


def _to_decibels(power: Any, peak: float) -> Any:
    return 10 * np.log10(np.maximum(power / (peak or 1.0), 10 ** (LEAST_DB / 10)))


def _edges(middles: Any) -> tuple[float, float]:
    """Return where the first and the last of equally wide cells end."""
    step = min((b - a for a, b in pairwise(middles)), default=1.0)
    return float(middles[0] - step / 2), float(middles[-1] + step / 2)
