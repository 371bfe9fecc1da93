"""What a notebook and a terminal show of a site list, a conversion report, a measurement, a budget."""

from __future__ import annotations

import copy
import pickle
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
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


def test_a_measurement_and_a_budget_are_shown_as_what_they_say_and_are_tables():
    torch.manual_seed(0)
    model = nn.Sequential(net()[0], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(3, 3, 16, 16)
    measured = spectral.measure(model, x, ("avr", "sis"), progress=False)
    budget = spectral.measure_instability_budget(model, x, progress=False)
    header, dense, entering = read(measured._repr_html_())
    assert header == ["site", "op", "stride", "tap", "avr"]
    assert dense[0] == entering[0] == "0.a<b&c"
    shown = dense[-1].split(" ± ")[0]
    mean = measured.query("metric == 'avr' and tap == 'dense'")["value"].mean()
    assert float(shown) == round(mean, len(shown) - 2)
    lines = repr(measured).splitlines()
    assert lines[0].startswith("Sequential, weights sha256:")
    assert any(line.startswith("whole model: sis") for line in lines)
    shares = {(row[0], row[1]): row[2] for row in read(budget._repr_html_())[1:]}
    summary = spectral.summarize_instability_budget(budget)
    whole = summary[(summary["source"] == "decimation") & (summary["metric"] == "sis")]
    assert shares["decimation", "sis"] == f"{100 * whole['share'].iloc[0]:.1f} %"
    for table in (measured, budget):
        plain = pickle.loads(pickle.dumps(table))
        for made in (plain, table.copy(), table[table["image"] == "0000"], table.rename(columns=str)):
            assert type(made) is pd.DataFrame
        pd.testing.assert_frame_equal(table, plain)
        pd.testing.assert_frame_equal(plain, table)
        assert plain.attrs == table.attrs
        del table["value"]  # nothing to sum up any more
        assert "columns]" in repr(table)


def test_what_was_not_measured_is_shown_with_its_reason_and_a_diagnosis_with_its_sentences():
    options = {"methods": ("flc",), "budget_images": 0, "progress": False}
    found = spectral.diagnose(nn.Sequential(net(), nn.Linear(36, 2)), torch.rand(3, 3, 16, 16), **options)
    shown = repr(found).splitlines()
    assert [row[0] for row in read(found._repr_html_())] == ["site", *found.sites["name"]]
    for sentence in spectral.analysis.write_headline(found):
        assert sentence in shown
    for row in found.missing.to_dict("records"):
        assert f"not measured: {row['what']}: {row['reason']}" in shown
    with pytest.warns(spectral.SpectralWarning, match="class scores"):
        measured = repr(spectral.measure(net(), torch.rand(3, 3, 16, 16), progress=False))
    assert "not measured: sis: its output isn't known to be class scores" in measured
    assert "pass logits=, a function from the output to class scores" in measured
    assert "not measured: 2 (" in measured
