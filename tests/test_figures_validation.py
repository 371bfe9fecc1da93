"""Whatever was done to a table by hand: a figure of it, or one sentence that says which column is wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from figure_tables import make_tables
from matplotlib.figure import Figure

from spectral import figures
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.figures import FIGURES, plot_table
from spectral.figures.answers import ANSWERS
from spectral.figures.validation import validate_columns
from spectral.table.schema import WORDS

STEMS = pytest.mark.parametrize("stem", FIGURES)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {name: read_again(table) for name, table in make_tables().items()}


def read_again(table: pd.DataFrame) -> pd.DataFrame:
    file = io.StringIO()
    table.to_csv(file, index=False)
    file.seek(0)
    return pd.read_csv(file)


def list_needed(stem: str) -> Iterator[tuple[str, str]]:
    for name, columns in FIGURES[stem].columns.items():
        yield from ((name, column) for column in columns)


def draw(plot: Any, tables: Any) -> str:
    """Draw a figure; return whose sentence says why there is none."""
    try:
        drawn = plot(tables)
    except SpectralError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a figure is as good
        return str(error).partition(": ")[0]
    assert isinstance(drawn, Figure)
    return ""


@STEMS
def test_words_among_numbers_are_named(stem, tables):
    for name, column in list_needed(stem):
        if column in WORDS:
            continue
        for values in (["many"] * len(tables[name]), [*tables[name][column].astype(object)[:-1], "many"]):
            edited = {**tables, name: tables[name].assign(**{column: values})}
            expected = (
                f"^{stem}: table '{name}' has 'many' in its column '{column}', which holds numbers; run "
            )
            with pytest.raises(SpectralError, match=expected):
                FIGURES[stem].plot(edited)


@STEMS
def test_a_row_that_is_there_twice_is_named(stem, tables):
    name = FIGURES[stem].tables[0]
    edited = {**tables, name: pd.concat([tables[name], tables[name].iloc[[1]]])}
    with pytest.raises(
        SpectralError, match=f"^{stem}: table '{name}' has row {len(tables[name]) + 1} twice; run"
    ):
        FIGURES[stem].plot(edited)


@pytest.mark.parametrize(
    ("stem", "table", "change"),
    [
        ("fig2_radial_profiles", "fig2_radial_profiles", {"layer": np.nan}),
        ("fig5_layerwise_avr_comparison", "phase2b_architecture_comparison", {"stride": 2}),
        ("fig6_aliasing_folding", "fig6_aliasing_folding", {"height": np.nan}),
        ("fig6_aliasing_folding", "fig6_aliasing_folding", {"panel": "another"}),
        ("budget", "budget", {"model": 7}),
        ("budget", "budget", {"source": "another"}),
        ("fig14_tradeoff", "phase5_tradeoff", {"n_clusters": np.inf}),
    ],
)
def test_what_belongs_to_nothing_is_a_figure_or_a_sentence(stem, table, change, tables):
    edited = {**tables, table: tables[table].assign(**change)}
    assert draw(FIGURES[stem].plot, edited) in ("", stem)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_picture_of_any_table_looks_at_it_first(name):
    columns, plot = ANSWERS[name]
    given = {
        column: ["a", "b", "c"] if column in WORDS else [0.0, 0.25, 0.5] for column in (*columns, "mine")
    }
    for column in columns:
        if column not in WORDS:
            for values in (["many", "few", "none"], [0.0, 0.25, "many"]):
                assert draw(plot, pd.DataFrame({**given, column: values})) in (
                    "",
                    plot.__name__,
                )
        assert draw(plot, pd.DataFrame(given).drop(columns=column)) in ("", plot.__name__)
    with pytest.raises(SpectralError, match=f"^{plot.__name__}: expected a table, got dict"):
        plot(given)


def test_names_that_a_file_takes_for_numbers_stay_names():
    table = read_again(pd.DataFrame({"model": ["1", "2"], "site": ["0", ""], "sis": [0.1, 0.2]}))
    found = validate_columns(table, ["model", "site", "sis"])
    assert found["model"].tolist() == ["1", "2"]
    assert found["site"].tolist()[0] == "0"
    assert pd.isna(found["site"].iloc[1])


def test_columns_that_a_spreadsheet_has_parted_by_other_marks_are_told(tables):
    for mark in (";", "\t"):
        table = pd.read_csv(io.StringIO(tables["budget"].to_csv(index=False, sep=mark, decimal=".")))
        with pytest.raises(SpectralError, match=r"the table has .* between its columns; write it with"):
            plot_table(table)
        with pytest.raises(SpectralError, match="between its columns"):
            validate_columns(table, ["sis"])


def test_columns_that_nobody_reads_may_hold_anything(tables):
    noted = tables["budget"].assign(note="mine", error="words")
    assert isinstance(FIGURES["budget"].plot({"budget": noted}), Figure)
    name, _ = plot_table(noted)
    assert name == "budget"


def test_a_function_takes_its_table_by_name_too():
    table = pd.DataFrame({"name": ["a"], "level_db": [-6.0]})
    assert isinstance(figures.plot_site_levels(sites=table), Figure)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda t: t.assign(share="many"), "has 'many' in its column 'share', which holds numbers"),
        (lambda t: pd.concat([t, t]), "twice"),
        (lambda t: t.iloc[:0], "has no rows"),
        (lambda t: t.drop(columns="share"), "no figure is made of a table with the columns model"),
    ],
)
def test_the_command_says_it_in_one_line(edit, expected, tables, tmp_path):
    path = tmp_path / "budget.csv"
    edit(tables["budget"]).to_csv(path, index=False)
    run = CliRunner().invoke(main, ["plot", str(path)])
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)
    assert expected in run.stderr
    assert not list(tmp_path.glob("*.png"))
