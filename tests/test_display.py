"""What a notebook and a terminal show of a site list and a conversion report."""

from __future__ import annotations

import copy
from html.parser import HTMLParser

from torch import nn

import spectral


class Cells(HTMLParser):
    """Collects the text of a table's cells, and knows whether every tag was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in {"td", "th"}:
            self.rows[-1].append(data)


def read(html: str) -> list[list[str]]:
    cells = Cells()
    cells.feed(html)
    assert not cells.open
    return cells.rows


def net() -> nn.Module:
    odd = nn.Sequential()
    odd.add_module("a<b&c", nn.Conv2d(3, 4, 3, 2, 1))
    return nn.Sequential(odd, nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())


def test_a_site_list_is_a_table():
    sites = spectral.find_sites(net(), 16)
    header, first, second = read(sites._repr_html_())
    assert header == ["site", "op", "stride", "input", "output", "dense map"]
    assert first[:5] == ["0.a<b&c", "conv", "2×2", "16×16", "8×8"]
    assert second[-1].startswith("none: ")
    assert [line.split()[0] for line in str(sites).splitlines()] == ["site", "0.a<b&c", "2"]


def test_a_site_list_is_a_list():
    sites = spectral.find_sites(net(), 16)
    assert sites == list(sites)
    assert copy.copy(sites) == sites
    assert isinstance(copy.copy(sites), type(sites))
    assert str(spectral.find_sites(nn.Conv2d(3, 4, 3), 16)) == "no sites"
    assert spectral.find_sites(nn.Conv2d(3, 4, 3), 16) == []


def test_a_conversion_report_is_a_table():
    report = spectral.conversion_report(spectral.convert(net(), "flc", example=16))
    html = report._repr_html_()
    rows = read(html)
    assert rows[1][0] == "0.a<b&c"
    assert "FLCPool2d" in rows[1][-1]
    assert rows[2][-1].startswith("kept: ")
    for line in str(report).splitlines()[-2:]:
        assert f"<p>{line}</p>" in html
