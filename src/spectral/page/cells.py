"""Tables as a page shows them: headings with their units, cells with what they sort by."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectral.analysis.words import (
    NONE,
    NOTHING,
    format_count,
    format_db,
    format_interval,
    format_number,
    format_share,
)
from spectral.table.schema import to_decibels

LARGEST_DOWNLOAD = 400_000  # bytes of a table inside the page


@dataclass(frozen=True)
class Column:
    """A column of a shown table.

    Attributes:
        heading: what stands above it.
        key: what it is sorted by; a column of the table.
        write: a row → the cell's text.
        numeric: whether it is aligned and sorted as numbers.
        title: what it means, where the heading doesn't say.
    """

    heading: str
    key: str
    write: Callable[[Mapping[Any, Any]], str]
    numeric: bool = True
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and what it is sorted by."""

    text: str
    sort: str
    link: str = ""
    code: bool = False


@dataclass(frozen=True)
class View:
    """A table as it is shown."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Download:
    """A table as a file inside the page."""

    name: str
    rows: int
    address: str


def text(key: str) -> Callable[[Mapping[Any, Any]], str]:
    """Write a column as it is."""
    return lambda row: str(row[key]) if str(row.get(key, "")) not in ("", "nan", "<NA>", "None") else NOTHING


def size(key: str) -> Callable[[Mapping[Any, Any]], str]:
    """Write sides with a sign between them."""
    return lambda row: text(key)(row).replace("x", "×")


def number(key: str, write: Callable[[Any], str] = format_number) -> Callable[[Mapping[Any, Any]], str]:
    """Write a column of numbers."""
    return lambda row: write(row.get(key))


def format_ratio(value: Any) -> str:
    """Write a ratio of powers in dB."""
    return format_db(None if value is None else to_decibels(value))


def interval(key: str, write: Callable[[Any], str] = format_number) -> Callable[[Mapping[Any, Any]], str]:
    """Write a column of means with its interval."""
    return lambda row: format_interval(row, key, write)


def ratio(key: str) -> Callable[[Mapping[Any, Any]], str]:
    """Write a column of ratios of powers in dB, with its interval where it has one."""
    return interval(key, format_ratio)


def channels(key: str) -> Callable[[Mapping[Any, Any]], str]:
    """Write a column of channels' ratios, none where nothing folds: what they have there is a border's."""
    return lambda row: NONE if row.get("level_ratio") == 0 else ratio(key)(row)


def photographs(row: Mapping[Any, Any]) -> str:
    """Write of how many photographs a row's images are, where these are fewer."""
    clusters, images = row.get("n_clusters"), row.get("n")
    fewer = not pd.isna(clusters) and not pd.isna(images) and 0 < clusters < images
    return format_count(clusters) if fewer else NOTHING


def format_time(value: Any) -> str:
    """Write milliseconds."""
    return NOTHING if value is None or pd.isna(value) else f"{format_number(value)} ms"


def change(before: str, after: str, write: Callable[[Any], str] = format_number
           ) -> Callable[[Mapping[Any, Any]], str]:  # fmt: skip
    """Write what a quantity was and is."""

    def text(row: Mapping[Any, Any]) -> str:
        pair = [write(row.get(key)) for key in (before, after)]
        return NOTHING if set(pair) == {NOTHING} else " → ".join(pair)

    return text


QUANTITIES = {
    "sis": "SIS",
    "sis_circular": "SIS with circular borders",
    "logit_jitter": "logit jitter",
    "comb_contrast": "comb contrast",
    "changed": "shifts that change the prediction (share)",
}
PHOTOGRAPHS = Column(
    "photographs", "n_clusters", photographs,
    title="that these images are of, where fewer: the unit of means, intervals and tests",
)  # fmt: skip
SITES = (
    Column("site", "name", text("name"), False),
    Column("kind", "op", text("op"), False),
    Column("stride", "stride", size("stride"), False),
    Column("input", "input_size", size("input_size"), False),
    Column("output", "output_size", size("output_size"), False),
    Column("aliases, median channel", "channel_median", channels("channel_median"),
           title="power of the aliases over power of the decimated map, of the middle channel, without its "
           "mean and the jump at its borders, at the tap signal: mean over images, 95 % interval"),
    Column("90th percentile", "channel_p90", channels("channel_p90"),
           title="the same of the channel that nine in ten alias less than"),
    Column("white noise", "white_noise", number("white_noise", format_ratio),
           title="what that ratio is for white noise: a layer that does nothing against aliasing"),
    Column("all channels", "alias_power_ratio_signal", ratio("alias_power_ratio_signal"),
           title="the ratio of all channels together, means and borders included, at the tap signal"),
    Column("all channels, dense", "alias_power_ratio", ratio("alias_power_ratio"),
           title="the same at the tap dense, before what follows the site"),
    Column("AVR before", "avr_dense", number("avr_dense", lambda v: format_share(v)),
           title="share of the power before decimation that lies above the site's Nyquist limit"),
    Column("images", "n", number("n", format_count), title="that aren't silent there"),
    PHOTOGRAPHS,
    Column("not measured because", "reason", text("reason"), False),
)  # fmt: skip
STABILITY = (
    Column("quantity", "metric", lambda row: QUANTITIES.get(row["metric"], str(row["metric"])), False),
    Column("mean (95 % interval)", "mean", lambda row: format_interval(
        {"x": row["mean"], "x_ci_low": row["ci_low"], "x_ci_high": row["ci_high"]}, "x")),
    Column("median", "median", number("median")),
    Column("carried by a tenth", "top_tenth", number("top_tenth", format_share),
           title="share of the sum that the tenth of the photographs with the largest values has"),
    Column("goes with confidence", "confidence_rho", interval("confidence_rho"),
           title="Spearman's correlation with the confidence of the prediction"),
    Column("images", "n", number("n", format_count)),
    PHOTOGRAPHS,
    Column("not measured because", "reason", text("reason"), False),
)  # fmt: skip
BUDGET = (
    Column("cause", "source", text("source"), False),
    Column("of", "metric", lambda row: QUANTITIES.get(row["metric"], str(row["metric"])), False),
    Column("share (95 % interval)", "share", interval("share", format_share),
           title="Shapley value: what making this cause ideal takes off, on the average over all orders"),
    Column("alone", "first_in", number("first_in", format_share), title="what it takes off alone"),
    Column("after the others", "last_out", number("last_out", format_share),
           title="what it takes off where all other causes are ideal"),
    Column("predictions kept", "agreement", number("agreement", format_share),
           title="with this cause made ideal; unexplained: with all of them"),
    Column("images", "n", number("n", format_count)),
    PHOTOGRAPHS,
    Column("not known because", "reason", text("reason"), False),
)  # fmt: skip
LEFT = (
    Column("place", "site", text("site"), False),
    Column("cause", "source", text("source"), False),
    Column("why it can't be made ideal", "reason", text("reason"), False),
)  # fmt: skip
FIXES = (
    Column("at", "site", text("site"), False),
    Column("layer", "method", text("method"), False),
    Column("change of SIS", "delta_sis", interval("delta_sis"), title="negative: more stable"),
    Column("p (Holm)", "p_holm", number("p_holm"),
           title="paired test over photographs, corrected over rows"),
    Column("predictions kept", "agreement", interval("agreement", format_share)),
    Column("accuracy", "accuracy", change("accuracy_original", "accuracy", format_share),
           title="on images whose label is known"),
    Column("aliases", "level_db", change("level_db_original", "level_db", format_db),
           title="alias power ratio of the median channel, mean over these sites; at all sites: also over "
           "those left as they are"),
    Column("time per image", "latency_ms", change("latency_ms_original", "latency_ms",
                                                  format_time)),
    Column("10⁶ multiply–adds", "macs", change("macs_original", "macs",
                                               lambda v: format_number(None if pd.isna(v) else v / 1e6))),
    Column("images", "n", number("n", format_count)),
    PHOTOGRAPHS,
    Column("front", "front", lambda row: "yes" if row.get("front") else "", False,
           title="no other row has both less SIS and more predictions kept"),
    Column("line to copy", "line", text("line"), False),
    Column("not measured because", "reason", text("reason"), False),
)  # fmt: skip
CHANNELS = (
    Column("channel", "channel", number("channel", lambda v: f"{v:.0f}")),
    Column("aliases", "alias_power_ratio", number("alias_power_ratio", format_share),
           title="median over images of this channel's alias power ratio"),
    Column("share of the site's power", "power_share", number("power_share", format_share)),
)  # fmt: skip
MISSING = (
    Column("what", "what", text("what"), False),
    Column("reason", "reason", text("reason"), False),
)  # fmt: skip


def view(
    table: pd.DataFrame, caption: str, columns: Sequence[Column], links: Mapping[str, str] | None = None
) -> View:
    """Lay a table out for a page; columns that say nothing in any row are left out.

    Args:
        table: the rows.
        caption: what it shows.
        columns: what is shown of it.
        links: from the text of a row's first cell to where it leads.
    """
    records = table.to_dict("records")
    kept = [
        column
        for place, column in enumerate(columns)
        if place == 0 or any(column.write(row) not in ("", NOTHING) for row in records)
    ]
    rows = []
    for record in records:
        cells = [Cell(column.write(record), _sort_key(record.get(column.key), column.numeric),
                      code=column.key == "line") for column in kept]  # fmt: skip
        link = (links or {}).get(cells[0].text, "")
        rows.append([Cell(cells[0].text, cells[0].sort, link), *cells[1:]])
    return View(caption, kept, rows)


def _sort_key(value: Any, numeric: bool) -> str:
    """What a cell is sorted by; unknown values have none and come last."""
    if value is None or pd.isna(value):
        return ""
    return f"{float(value):.9g}" if numeric else str(value)


def make_downloads(tables: Mapping[str, pd.DataFrame], prefix: str = "") -> list[Download]:
    """Turn tables into files inside the page; one that is too large has no address."""
    found = []
    for name, table in tables.items():
        content = table.to_csv(index=False, float_format="%.9g").encode()
        encoded = base64.b64encode(content).decode() if len(content) <= LARGEST_DOWNLOAD else ""
        address = f"data:text/csv;charset=utf-8;base64,{encoded}" if encoded else ""
        found.append(Download(f"{prefix}{name}.csv", len(table), address))
    return found
