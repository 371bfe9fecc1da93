"""Figures of one network's diagnosis, from its tables: levels per site, what a site does, what fixes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spectral.errors import SpectralError
from spectral.figures.style import COLOURS, FULL_WIDTH, GREY, INK, MARKS, SMALL, new_figure, use_style
from spectral.figures.validation import drawn_of
from spectral.table.schema import with_bounds

DECADES = 6  # of power that a spectrum shows
LIMIT_DB = -20.0  # 1 % of the power
LINES = {"before": ("#0072B2", "-"), "after": ("#E69F00", "--"), "aliases": ("#D55E00", ":")}
TITLES = {"before": "before decimation", "after": "after it", "aliases": "its aliases"}
LABELLED = 12  # points that bear a name


@drawn_of("name", "level_db", optional=with_bounds("level_db")[1:])
def plot_site_levels(sites: pd.DataFrame, name: str = "alias power ratio") -> Figure:
    """Draw the alias power ratio of each site in the order in which they run, with 95 % intervals.

    Args:
        sites: columns name, level_db, level_db_ci_low, level_db_ci_high; `Diagnosis.sites` is one.
        name: of the ratio.

    Raises:
        SpectralError: if columns are absent, or no site has a value.
    """
    known = _known(sites, "plot_site_levels", "level_db")
    values = known["level_db"].clip(lower=-100)
    with use_style():
        fig = new_figure(FULL_WIDTH, 0.6 + 0.19 * len(known))
        ax = fig.subplots()
        rows = np.arange(len(known))
        low, high = (known.get(name, 0 * values + np.nan) for name in with_bounds("level_db")[1:])
        # Of one photograph there is none; one that reaches to no aliases at all has no lower bound in dB.
        low = low.fillna(-100).clip(lower=-100).where(high.notna())
        ax.hlines(rows, np.minimum(low, values), np.maximum(high, values), color=COLOURS[0], linewidth=1.6)
        ax.plot(values, rows, "o", color=COLOURS[0])
        left = max(-60.0, min(float(values.min()), LIMIT_DB) - 3)
        ax.set_xlim(left, max(1.0, float(values.max()) + 1))
        ax.axvline(LIMIT_DB, color=GREY, linestyle=":", linewidth=0.9)
        ax.set_yticks(rows, list(known["name"]))
        ax.invert_yaxis()
        ax.set_xlabel(f"{name} (dB), 95 % interval; dotted: 1 % of the power")
        fig.draw_without_rendering()
    return fig


def plot_site_detail(spectra: Mapping[str, NDArray[Any]], profile: pd.DataFrame) -> Figure:
    """Draw the power spectra of a site's maps before and after decimation and of its aliases.

    Args:
        spectra: before, after, aliases; DC in the middle.
        profile: columns map, rho, power.
    """
    with use_style():
        fig = new_figure(FULL_WIDTH, 1.75)
        axes = fig.subplots(1, 4, width_ratios=(1, 1, 1, 1.55))
        peak = max((float(s.max()) for s in spectra.values() if s.size), default=0.0) or 1.0
        for ax, (name, title) in zip(axes, TITLES.items(), strict=False):
            _draw_spectrum(ax, spectra[name], title, peak)
        ax = axes[3]
        for name, title in TITLES.items():
            own = profile[(profile["map"] == name) & (profile["power"] > 0) & (profile["rho"] <= 1)]
            colour, line = LINES[name]
            ax.plot(own["rho"], 10 * np.log10(own["power"] / peak), line, color=colour, label=title)
        ax.set_ylim(-10 * DECADES, 3)
        ax.set_xlabel("radius (1 = own Nyquist frequency)")
        ax.set_ylabel("power (dB)")
        ax.legend(loc="upper right")
        fig.draw_without_rendering()
    return fig


@drawn_of("site", "method", "sis", "sis_original", "agreement", "front")
def plot_fixes(fixes: pd.DataFrame) -> Figure:
    """Draw what layers do to a network without training: instability against predictions kept.

    Args:
        fixes: columns site, method, sis, sis_original, agreement, front; `spectral.analysis.measure_fixes`
            gives it.

    Raises:
        SpectralError: if columns are absent, or no row has SIS.
    """
    known = _known(fixes, "plot_fixes", "sis", "sis_original", "agreement")
    with use_style():
        fig = new_figure(FULL_WIDTH, 3.0)
        ax = fig.subplots()
        start = float(known["sis_original"].mean())
        ax.axhline(start, color=GREY, linestyle=":", linewidth=0.9)
        ax.plot([100], [start], marker="*", color=INK, markersize=9, linestyle="none", label="as it is")
        for number, (method, own) in enumerate(known.groupby("method", sort=False)):
            whole = own["site"] == "all sites"
            style: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKS[number % len(MARKS)],
            }
            for part, filled in ((own[whole], True), (own[~whole], False)):
                ax.plot(
                    100 * part["agreement"].astype(float), part["sis"].astype(float), linestyle="none",
                    fillstyle="full" if filled else "none", markersize=7 if filled else 5,
                    label=f"{method}, {'all sites' if filled else 'one site'}" if len(part) else None,
                    **style,
                )  # fmt: skip
        front = known[known["front"].astype(bool)].sort_values("agreement")
        ax.plot(100 * front["agreement"].astype(float), front["sis"].astype(float), color=GREY, linewidth=0.8,
                zorder=0, label="front" if len(front) > 1 else None)  # fmt: skip
        for row in front.head(LABELLED).to_dict("records"):
            ax.annotate(str(row["site"]), (100 * row["agreement"], row["sis"]), xytext=(4, 4),
                        textcoords="offset points", fontsize=SMALL, color=INK)  # fmt: skip
        ax.set_xlabel("predictions that stay the same (%)")
        ax.set_ylabel("SIS (lower is more stable)")
        ax.margins(0.06, 0.12)
        ax.set_xlim(right=min(ax.get_xlim()[1], 102))  # there are no more than all predictions
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        fig.draw_without_rendering()
    return fig


def _draw_spectrum(ax: Axes, power: NDArray[Any], title: str, peak: float) -> None:
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if power.size:
        floor = peak * 10.0**-DECADES
        ax.imshow(
            np.maximum(power, floor), norm=LogNorm(floor, peak), cmap="cividis", interpolation="nearest"
        )


def _known(table: pd.DataFrame, caller: str, *columns: str) -> pd.DataFrame:
    known = table.dropna(subset=list(columns))
    if known.empty:
        raise SpectralError(f"{caller}: no row of the table has values to draw")
    return known.reset_index(drop=True)
