"""How results look in a terminal and in a notebook: lines of text around an aligned or an HTML table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Rows = Iterable[Sequence[str]]
WIDTH = 100
NOTHING = "-"  # in a cell
EVEN = 0.5  # what the middle of an interval with ± may be off the mean by, as a share of half of it
INTERVALS = "± half its 95 % interval, or (both ends) of a lopsided one"


@dataclass(frozen=True)
class Card:
    """What is shown of a result: lines, a table, lines.

    Attributes:
        above: lines before the table.
        rows: the table, its header first; none where there is nothing to tabulate.
        below: lines behind it.
        fixed: how many columns are repeated where it is too wide for a terminal.

    Example:
        >>> print(Card(["one site"], [("site", "op"), ("conv1", "conv")], ["nothing is missing"]).text())
        one site
        site   op
        conv1  conv
        nothing is missing
    """

    above: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    below: Sequence[str] = ()
    fixed: int = 1

    def text(self) -> str:
        """Write it for a terminal."""
        table = [format_columns(self.rows[0], self.rows[1:], self.fixed)] if len(self.rows) > 1 else []
        return "\n".join([*self.above, *table, *self.below])

    def html(self) -> str:
        """Write it for a notebook."""
        return to_html(self.rows, self.above, self.below)


def align(rows: Rows) -> list[str]:
    """Align rows in columns; the first is the header.

    Example:
        >>> align([("site", "op"), ("conv1", "conv")])
        ['site   op', 'conv1  conv']
    """
    cells = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def format_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align text in columns under a header.

    Example:
        >>> print(format_rows(["site", "op"], [["layer2.0.conv1", "conv"]]))
        site            op
        layer2.0.conv1  conv
    """
    return "\n".join(align([header, *rows]))


def format_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], fixed: int, width: int = WIDTH
) -> str:
    """Align text in columns, in several tables below each other where one would be too wide.

    A table has no rows without any value; what has none at all stands in the first.

    Args:
        header: name of each column.
        rows: one cell per column.
        fixed: how many columns, from the left, every table repeats.
        width: characters that a line may have.

    Example:
        >>> print(format_columns(["site", "a", "b"], [["conv1", "1.5", "2.5"]], fixed=1, width=12))
        site   a
        conv1  1.5
        <BLANKLINE>
        site   b
        conv1  2.5
    """
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    groups: list[list[int]] = [[]]
    for column in range(fixed, len(header)):
        if groups[-1] and sum(widths[:fixed]) + sum(widths[c] for c in (*groups[-1], column)) > width + 2:
            groups.append([])
        groups[-1].append(column)
    tables = []
    for group in groups:
        chosen = [*range(fixed), *group]
        filled = [
            row for row in rows
            if any(row[c] != NOTHING for c in group)
            or (group is groups[0] and all(cell == NOTHING for cell in row[fixed:]))
        ]  # fmt: skip
        tables.append(format_rows([header[c] for c in chosen], [[row[c] for c in chosen] for row in filled]))
    return "\n\n".join(tables)


def format_mean(mean: float, ci_low: float, ci_high: float) -> str:
    """Write a mean and half its 95 % interval, to the interval's second digit.

    An interval that reaches farther on one side, as those of skewed values do, is written with both ends:
    with ± it would seem to hold what it leaves out.

    Example:
        >>> format_mean(0.43117, 0.42884, 0.43350), format_mean(1.5, float("nan"), float("nan"))
        ('0.4312 ± 0.0023', '1.5')
        >>> format_mean(0.00242, 0.000701, 0.00953)
        '0.0024 (0.00070 to 0.0095)'
    """
    half = (ci_high - ci_low) / 2
    if math.isnan(mean):
        return NOTHING
    if math.isnan(half):
        return f"{mean:.4g}"
    digits = 1 - math.floor(math.log10(half)) if half > 0 else 0
    off = abs((ci_high + ci_low) / 2 - mean)
    crosses = (ci_low < 0) != (mean - half < 0) or (ci_high > 0) != (mean + half > 0)
    if off > EVEN * half or crosses:
        value, low, high = (_write_digits(x, digits) for x in (mean, ci_low, ci_high))
        return f"{value} ({low} to {high})"
    if half == 0 or digits > 6:
        return f"{mean:.3g} ± {half:.2g}"
    return f"{mean:.{max(digits, 0)}f} ± {half:.{max(digits, 0)}f}"


def _write_digits(value: float, digits: int) -> str:
    """Write a number to so many digits behind the point, or to more, so that two aren't zeros."""
    needed = max(digits, 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:.{needed}f}" if needed <= 6 else f"{value:.2g}"


def write_share(share: float) -> str:
    """Write a share in per cent; what is neither nothing nor all isn't rounded to it.

    Example:
        >>> write_share(0.0931), write_share(-0.2), write_share(-1e-9), write_share(1)
        ('9.3 %', '−20.0 %', '0.00 %', '100 %')
        >>> write_share(2e-5), write_share(0.9996)
        ('< 0.01 %', '> 99.9 %')
    """
    percent = 100 * share
    digits = 0 if percent in (0, 100) else 1 if abs(percent) >= 1 else 2
    text = f"{percent:z.{digits}f} %".replace("-", "−")
    if percent > 0 and text == "0.00 %":
        return "< 0.01 %"
    return "> 99.9 %" if percent < 100 and text == "100.0 %" else text


def to_html(rows: Rows, before: Iterable[str] = (), after: Iterable[str] = ()) -> str:
    """Write rows as an HTML table, the first as its header, with lines of text around it.

    Example:
        >>> to_html([("site",), ("a<b",)])
        '<table><thead><tr><th>site</th></tr></thead><tbody><tr><td>a&lt;b</td></tr></tbody></table>'
    """
    above, below = ("".join(f"<p>{escape(line)}</p>" for line in text) for text in (before, after))
    cells = list(rows)
    if not cells:
        return above + below
    head = "".join(f"<th>{escape(cell)}</th>" for cell in cells[0])
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells[1:])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return above + table + below
