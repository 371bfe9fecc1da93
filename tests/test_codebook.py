"""The codebook: no column of any table is without a unit and a meaning."""

from __future__ import annotations

import importlib
import pkgutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spectral import analysis, experiments, study
from spectral.budget import schema as budget
from spectral.budget.summary import SUMMARY as BUDGET
from spectral.codebook import ENDINGS, ENTRIES, describe_column, list_columns, make_codebook
from spectral.errors import SpectralError
from spectral.figures import FIGURES
from spectral.figures.answers import ANSWERS
from spectral.runs.lineage import verify_below
from spectral.stability import attribution, equivariance, scores, summary
from spectral.table import schema

RESULTS = Path(__file__).parents[1] / "results" / "reference"
FOLDERS = sorted({path.parent for path in RESULTS.rglob("*.csv")})
WRITTEN: dict[str, Any] = {"measurement": schema.MEASUREMENT, "summary": schema.SUMMARY, "budget": BUDGET}
for _room in (study, experiments, analysis):
    for _, _name, is_package in pkgutil.iter_modules(_room.__path__):
        if not is_package:  # what it writes into its tables
            _module = importlib.import_module(f"{_room.__name__}.{_name}")
            WRITTEN |= {
                f"{_name}.{key}": value for key, value in vars(_module).items() if key.endswith("COLUMNS")
            }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: str(p.relative_to(RESULTS)))
def test_every_column_of_the_results_has_an_entry(folder):
    rows = make_codebook(list_columns(folder))
    assert rows
    missing = sorted({row["column"] for row in rows if not row["unit"]})
    assert not missing, missing


@pytest.mark.parametrize("table", WRITTEN)
def test_every_column_that_is_written_has_an_entry(table):
    for column in WRITTEN[table]:
        describe_column(column)


@pytest.mark.parametrize("figure", [*FIGURES, *ANSWERS])
def test_every_column_that_is_drawn_has_an_entry(figure):
    columns = ANSWERS[figure][0] if figure in ANSWERS else chain(*FIGURES[figure].columns.values())
    for column in columns:
        describe_column(column)


@pytest.mark.parametrize(
    "columns",
    [attribution.COLUMNS, equivariance.COLUMNS, scores.COLUMNS, summary.COLUMNS, budget.COLUMNS],
)
def test_every_column_of_an_analysis_has_an_entry(columns):
    for column in columns:
        describe_column(column)


def test_the_codebook_beside_the_results_is_that_of_these_tables():
    written = pd.read_csv(RESULTS / "tables/codebook.csv", keep_default_na=False)
    found = make_codebook(list_columns(RESULTS / "tables"))
    assert written.to_dict("records") == found, "run python -m spectral.codebook results/reference/tables"


def test_every_committed_table_is_what_was_written():
    verify_below(RESULTS)


def test_ranges_and_codebook_know_the_same_metrics():
    for metric in schema.RANGES:
        unit, _ = describe_column(metric)
        assert (unit == "share") <= (schema.RANGES[metric] == (0.0, 1.0) or metric.startswith("delta"))


def test_an_unknown_column_is_told():
    with pytest.raises(SpectralError, match="no column 'gloss'"):
        describe_column("gloss")
    assert make_codebook([("t", "gloss")])[0]["meaning"] == "not in the codebook"


@pytest.mark.parametrize(
    ("column", "unit", "meaning"),
    [
        ("latency_ms", "ms", "time per image, median over rounds"),
        ("latency_q25", "ms", "lower quartile over rounds: time per image"),
        ("alias_power_db_channel_median", "dB", "median over live channels"),
        ("last_out_agreement", "share", "images whose class stays with all other sites altered"),
    ],
)
def test_what_an_ending_says_of_other_columns_isnt_said_of_these(column, unit, meaning):
    found, words = describe_column(column)
    assert found == unit
    assert words.startswith(meaning)


def test_units_are_those_of_the_values():
    spectrum = pd.read_csv(RESULTS / "tables/fig1_layerwise_power_spectra.csv")
    assert describe_column("f_u")[0] == "cycles per sample"
    assert spectrum["f_u"].between(-0.5, 0.5, inclusive="left").all()
    profile = pd.read_csv(RESULTS / "tables/fig9_radial_profiles_natural.csv")
    for column in ("power_mean", "power_p10", "power_p90"):
        assert describe_column(column)[0] == "share"
        assert profile[column].between(0, 1).all()
    moved = pd.read_csv(RESULTS / "tables/phase4_equivariance.csv")
    assert np.allclose(moved["psnr_db"], -10 * np.log10(moved["mse_ratio"]), atol=1e-6)
    assert "of their mean error" in describe_column("psnr_db")[1]
    ratios = pd.read_csv(RESULTS / "tables/phase7_layers_sites.csv").query("alias_power_db > -90")
    assert np.allclose(ratios["alias_power_db"], 10 * np.log10(ratios["alias_power_ratio"]), atol=1e-6)
    assert "of their mean ratio" in describe_column("alias_power_db")[1]


def test_the_sign_of_a_difference_is_told_as_it_is():
    table = pd.read_csv(RESULTS / "tables/phase3_layerwise_avr_stats.csv")
    assert ((table["difference"] > 0) == (table["mean_a"] > table["mean_b"])).all()
    meaning = describe_column("difference")[1]
    assert "in phase3_layerwise_avr_stats a less b" in meaning
    assert "b less a" in meaning  # `compare_models`: tests/test_compare.py


def test_entries_are_sentences():
    for unit, meaning in ENTRIES.values():
        assert unit
        assert meaning
        assert not meaning.endswith(".")
    assert all(ending[0] in "_-" for ending in ENDINGS)
