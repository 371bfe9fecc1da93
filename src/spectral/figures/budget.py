"""The instability budget: each cause's share, and what fixing it first or last would take off."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectral.figures.spec import Source, figure
from spectral.figures.style import FULL_WIDTH, GREY, INK, PALE, add_heading, add_legend, new_figure

SOURCES = ("decimation", "nonlinearity", "border", "content", "unexplained")
COLOURS = dict(zip(SOURCES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#999999"), strict=True))
LEFT = ("content", "unexplained")  # what nothing takes off, first or last
METRICS = {"sis": "SIS", "logit_jitter": "logit jitter"}
MOST_PLACES = 16
SMALLER = "smaller ones together"


CAPTION = (
    "Shapley shares of the shift instability (SIS; logit jitter) of decimation, nonlinearities and "
    "borders, and what stays with all of them ideal, means over photographs with 95 % intervals; pale: "
    "from what a source takes off when it alone is made ideal (decimation: the dense map is low-passed "
    "before) to what it takes off last. Sites and "
    "activations below, where the budget was split. Idealising alters what a network computes: the share "
    "of predictions that stay is in the heading."
)
COLUMNS = (
    "model", "metric", "source", "site", "n_clusters", "share", "share_ci_low", "share_ci_high", "first_in",
    "last_out", "agreement",
)  # fmt: skip


@figure(stem="budget", title="Instability budget", caption=CAPTION, columns={"budget": COLUMNS})
def plot_instability_budget(source: Source) -> Figure:
    """One network's budget, as `spectral budget` writes it."""
    return _draw(source, "budget")


@figure(
    stem="fig30_budget", title="Instability budgets", caption=CAPTION, columns={"phase10_budget": COLUMNS}
)
def plot_instability_budgets(source: Source) -> Figure:
    """Several networks' budgets, as phase 10 writes them."""
    return _draw(source, "phase10_budget")


@figure(
    stem="fig31_causes", title="What causes the families' instability", caption=CAPTION,
    columns={"phase4_budget": COLUMNS},
)  # fmt: skip
def plot_causes(source: Source) -> Figure:
    """The budgets of the study's families, as phase 4 writes them."""
    return _draw(source, "phase4_budget")


def _draw(source: Source, name: str) -> Figure:
    """Dot plot: a column per metric, a line per model and source, and below one per place."""
    table = source.rows(name, known=["share"]).astype({"site": object}).fillna({"site": ""})
    table = _join_smaller(table)
    metrics = [metric for metric in METRICS if (table["metric"] == metric).any()]
    lines = _list_lines(table)
    fig = new_figure(FULL_WIDTH, min(0.19 * len(lines) + 1.2, 8.9))
    axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for metric, ax in zip(metrics, axes, strict=True):
        own = table[table["metric"] == metric]
        for y, (model, name, site) in enumerate(lines):
            found = own[(own["model"] == model) & (own["source"] == name) & (own["site"] == site)]
            for row in found.to_dict("records"):
                _draw_part(ax, y, row)
        ax.axvline(0, color=GREY, lw=0.6, zorder=0)
        ax.set_xlabel(f"part of {METRICS[metric]} (share)")
        ax.set_ylim(len(lines) - 0.4, -0.6)
    fig.supylabel("cause (and its places)")
    models = list(dict.fromkeys(model for model, *_ in lines))
    axes[0].set_yticks(range(len(lines)), [_name_line(line, len(models) > 1) for line in lines])
    shown = [s for s in SOURCES if s in set(table["source"])]
    marks = [Line2D([], [], ls="", marker="o", mfc=COLOURS[s], mec=INK, mew=0.5, label=s) for s in shown]
    add_legend(fig, [*marks, Line2D([], [], color=PALE, lw=6, label="first … last")], columns=len(shown) + 1)
    add_heading(fig, source.title, _describe(table))
    return fig


def _list_lines(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """List models, sources and places, the largest places first."""
    lines = []
    for model in dict.fromkeys(table["model"]):
        own = table[table["model"] == model]
        for name in SOURCES:
            rows = own[own["source"] == name]
            places = _order_places(rows)
            if not rows.empty:
                lines += [(model, name, ""), *((model, name, s) for s in places)]
    return lines


def _order_places(rows: pd.DataFrame) -> list[str]:
    """Return one source's places, the largest first and what many share last."""
    shares = rows[rows["site"] != ""].groupby("site")["share"].mean().sort_values(ascending=False)
    return sorted(map(str, shares.index), key=lambda site: site.endswith(SMALLER))


def _join_smaller(table: pd.DataFrame) -> pd.DataFrame:
    """Put places beyond the largest into one row, with what they share: a picture has room for some only."""
    parts = []
    for _, rows in table.groupby(["model", "source"], sort=False):
        small = rows["site"].isin(_order_places(rows)[MOST_PLACES:])
        parts.append(rows[~small])
        for _, own in rows[small].groupby("metric", sort=False):
            parts.append(own.head(1)[["model", "metric", "source"]].assign(
                site=f"{len(own)} {SMALLER}", share=own["share"].sum()
            ))  # fmt: skip
    return pd.concat(parts, ignore_index=True).fillna({"site": ""})


def _name_line(line: tuple[str, str, str], several: bool) -> str:
    model, name, site = line
    return site if site else f"{model.removeprefix('bundled/')}: {name}" if several else name


def _draw_part(ax: Axes, y: float, row: Mapping[Hashable, Any]) -> None:
    place = bool(row["site"])
    if math.isfinite(row["first_in"] + row["last_out"]) and row["source"] not in LEFT:
        ax.plot([row["first_in"], row["last_out"]], [y, y], color=PALE, lw=6, solid_capstyle="butt", zorder=1)
    if math.isfinite(row["share_ci_low"] + row["share_ci_high"]):
        ax.hlines(y, row["share_ci_low"], row["share_ci_high"], color=INK, lw=0.9, zorder=2)
    ax.plot(row["share"], y, marker="o", mfc=COLOURS[row["source"]], mec=INK, mew=0.5,
            ms=3 if place else 5, ls="", zorder=3)  # fmt: skip


def _say_intervals(table: pd.DataFrame) -> str:
    """Say which shares have intervals: those of a mean that may be 0 have none."""
    bounded = table["share_ci_low"].notna().groupby(table["metric"]).any()
    without = [name for metric, name in METRICS.items() if not bounded.get(metric, True)]
    if without and not bounded.any():
        return "too few or too unlike for intervals"
    return "95 % intervals" + (f", none of {' and '.join(without)}" if without else "")


def _describe(table: pd.DataFrame) -> str:
    rest = table[table["source"] == "unexplained"]
    kept = rest["agreement"].dropna()
    counts = " to ".join(
        dict.fromkeys(str(int(n)) for n in (rest["n_clusters"].min(), rest["n_clusters"].max()))
    )
    words = [f"n = {counts} photographs, {_say_intervals(table)}"]
    if not kept.empty:
        shown = " to ".join(dict.fromkeys(f"{100 * v:.0f}" for v in (kept.min(), kept.max())))
        words.append(f"with all ideal {shown} % of the predictions stay")
    return "; ".join(words)
