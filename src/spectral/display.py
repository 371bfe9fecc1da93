"""How rows of text look in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Rows = Iterable[Sequence[str]]


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


def to_html(rows: Rows, before: Iterable[str] = (), after: Iterable[str] = ()) -> str:
    """Write rows as an HTML table, the first as its header, with lines of text around it.

    Example:
        >>> to_html([("site",), ("a<b",)])
        '<table><thead><tr><th>site</th></tr></thead><tbody><tr><td>a&lt;b</td></tr></tbody></table>'
    """
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    above, below = ("".join(f"<p>{escape(line)}</p>" for line in text) for text in (before, after))
    return above + table + below
