"""The picture of any table: which figures its columns allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectral.arguments.values import as_path
from spectral.errors import SpectralError, name_few, suggest
from spectral.figures.answers import ANSWERS
from spectral.figures.diagnosis import plot_fixes, plot_site_levels
from spectral.figures.spec import REGISTERED
from spectral.figures.style import COLOURS, FULL_WIDTH, MARKS, new_figure, sign, use_style
from spectral.figures.validation import drawn_of
from spectral.files.atomic import ensure_writable, replacing
from spectral.table.csv_files import require_commas
from spectral.table.schema import fill_words

KINDS = (".png", ".pdf", ".svg")
Plot = Callable[[pd.DataFrame], Figure]


@drawn_of("model", "site", "tap", "metric", "mean", "ci_low", "ci_high")
def plot_summary(table: pd.DataFrame) -> Figure:
    """Draw every metric of a summary of measurements, site by site, with 95 % intervals.

    Args:
        table: from `spectral.summarize_measurements`, of one model or several.

    Raises:
        SpectralError: if columns are absent, or nothing was measured at any site.
    """
    known = table[fill_words(table["site"]).ne("") & table["mean"].notna()]
    panels = list(known.groupby(["metric", "tap"], sort=False))
    if not panels:
        raise SpectralError("plot_summary: nothing was measured at any site")
    sites = list(dict.fromkeys(known["site"]))
    models = list(dict.fromkeys(known["model"]))
    with use_style():
        fig = new_figure(FULL_WIDTH, (0.75 + 0.2 * len(sites)) * len(panels))
        axes = np.atleast_1d(fig.subplots(len(panels), 1))
        for ax, ((metric, tap), block) in zip(axes, panels, strict=True):
            for number, model in enumerate(models):
                own = block[block["model"] == model]
                rows = np.array([sites.index(s) for s in own["site"]]) + 0.16 * (
                    number - (len(models) - 1) / 2
                )
                colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
                ax.hlines(rows, own["ci_low"], own["ci_high"], color=colour)
                ax.plot(own["mean"], rows, mark, color=colour, label=str(model))
            ax.set_yticks(range(len(sites)), sites)
            ax.invert_yaxis()
            ax.set_xlabel(f"{metric}, {tap} tap: mean and 95 % interval")
        if len(models) > 1:
            axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        fig.draw_without_rendering()
    return fig


def list_plots(table: pd.DataFrame) -> dict[str, Plot]:
    """Return the figures that a table's columns allow, by name.

    Example:
        >>> list(list_plots(pd.DataFrame(columns=["name", "level_db"])))
        ['site_levels']
    """
    columns = set(map(str, table.columns))
    found = {name: plot for name, (needed, plot) in _OWN.items() if columns.issuperset(needed)}
    for stem, spec in REGISTERED.items():
        if len(spec.tables) == 1 and columns.issuperset(spec.columns[spec.tables[0]]):
            found[stem] = lambda frame, s=spec: s.plot({s.tables[0]: frame})  # type: ignore[misc]
    return found


def plot_table(table: pd.DataFrame, name: str | None = None) -> tuple[str, Figure]:
    """Draw a table: the first figure that its columns allow, or the one that is asked for.

    Args:
        table: what an analysis or a command gave.
        name: of the figure.

    Returns:
        The figure's name and the figure.

    Raises:
        SpectralError: if the table allows no figure, not that one, or holds nothing to draw.
    """
    plots = list_plots(table)
    if not plots:
        require_commas(table, lambda problem: SpectralError(f"the table {problem}"))
        raise SpectralError(
            f"no figure is made of a table with the columns {name_few(table.columns, 6)}; "
            f"pass another that a command or an analysis wrote, such as summary.csv"
        )
    if name is None:
        name = next(iter(plots))
    if name not in plots:
        raise SpectralError(
            f"no figure {name!r} is made of this table{suggest(name, plots)}; it allows {', '.join(plots)}"
        )
    return name, plots[name](table)


def save_figure(drawn: Figure, path: str | Path, title: str = "", dpi: int = 300) -> Path:
    """Write a figure as .png, .pdf or .svg: all of it or nothing.

    Raises:
        SpectralError: for another ending, or a place that can't be written.
    """
    path = as_path(path, "save_figure: path")
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise SpectralError(f"{path}: a figure's name must end in {', '.join(KINDS)}")
    ensure_writable(path.parent)
    with use_style(), replacing(path) as temporary:
        drawn.savefig(temporary, format=kind[1:], dpi=dpi, metadata=sign(kind[1:], title))
    return path


_OWN: dict[str, tuple[tuple[str, ...], Plot]] = {
    "site_levels": (("name", "level_db"), plot_site_levels),
    "fixes": (("site", "method", "sis", "sis_original", "agreement", "front"), plot_fixes),
    "summary": (("model", "site", "tap", "metric", "mean", "ci_low", "ci_high", "n_silent"), plot_summary),
    **ANSWERS,
}
