"""A page of any results folder: its diagnosis, or its tables and figures with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

import spectral
from spectral.analysis import Diagnosis, is_diagnosis, read_diagnosis
from spectral.analysis.words import format_count, format_number
from spectral.arguments.values import as_path
from spectral.codebook import FIELDS, FILE, make_codebook
from spectral.errors import SpectralError
from spectral.figures import FIGURES, list_plots, plot_table, to_svg
from spectral.page.cells import Column, View, make_downloads, number, text, view
from spectral.page.render import make_environment, render_page, write_text
from spectral.runs.folder import find_run
from spectral.runs.lineage import read_result, verify_below

MOST_ROWS = 400  # of a table that are shown
TABLES, MEASUREMENTS = "tables", "measurements"


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Make one HTML file of a results folder.

    Args:
        folder: what `spectral.diagnose`, `spectral.measure` or a command (diagnose, measure, compare,
            attribute, budget, sweep, study) wrote. Of a run or a study that isn't finished the page shows
            what is there.
        path: the page; page.html in the folder by default.

    Raises:
        SpectralError: if there is no such folder, nothing in it that a page could show, a diagnosis that
            isn't finished, or something damaged.

    Example:
        >>> write_report("no/such/folder")
        Traceback (most recent call last):
        spectral.errors.SpectralError: there is no folder no/such/folder; pass what a command wrote with --out
    """
    folder = as_path(folder, "write_report: folder")
    if not folder.is_dir():
        raise SpectralError(f"there is no folder {folder}; pass what a command wrote with --out")
    target = folder / "page.html" if path is None else as_path(path, "write_report: path")
    diagnoses = [read_diagnosis(one) for one in _list_diagnoses(folder)]
    if diagnoses:
        return write_text(render_page(diagnoses), target)
    known = verify_below(folder)  # a page needs the tables alone; what they were made of is told if damaged
    files = _list_tables(folder)
    tables = {file.stem: _read(file, known) for file in files if file.name != FILE}
    if len(tables) < len(files):  # a codebook has no digest: what it says is known without it
        tables[Path(FILE).stem] = _explain(tables)
    measured = _read_measurements(folder)
    if measured is not None:
        return write_text(render_page([measured]), target)
    if not tables:
        raise SpectralError(
            f"{folder} holds no diagnosis, no measurements and no tables; pass what diagnose, measure, "
            f"compare, attribute, budget, sweep or study wrote with --out"
        )
    return write_text(_render_tables(folder, tables), target)


def _list_diagnoses(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and is_diagnosis(path))
    return [folder] if is_diagnosis(folder) else inside


def _list_tables(folder: Path) -> list[Path]:
    return sorted((folder / TABLES).glob("*.csv")) or sorted(folder.glob("*.csv"))


def _read(path: Path, known: dict[Path, str]) -> pd.DataFrame:
    try:
        return read_result(path, known)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except SpectralError:
        raise
    except (OSError, ValueError) as error:
        raise SpectralError(f"{path} can't be read ({next(iter(str(error).splitlines()))})") from error


def _explain(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    columns = [(name, str(column)) for name, table in tables.items() for column in table.columns]
    return pd.DataFrame(make_codebook(columns), columns=FIELDS)


def _read_measurements(folder: Path) -> Diagnosis | None:
    """Read a run of measure as a diagnosis that has no more than that; what is damaged is told."""
    if find_run(folder) is None:
        return None
    table = spectral.read(folder)
    if table["model"].nunique() != 1:
        return None
    facts = dict(table.attrs["provenance"])
    facts["notes"] = facts.get("notes", [])
    return spectral.analysis.from_measurements(table, facts)


def _render_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> str:
    page = make_environment().get_template("results.html")
    views = {name: view_table(name, table) for name, table in tables.items() if len(table.columns)}
    return page.render(
        name=folder.resolve().name, figures=list(_draw(tables)), tables=views,
        downloads=make_downloads(tables), version=spectral.__version__, most=MOST_ROWS,
        lengths={name: len(table) for name, table in tables.items()},
    )  # fmt: skip


def view_table(name: str, table: pd.DataFrame) -> View:
    """Show the first rows of any table, with its own headings."""
    return view(table.head(MOST_ROWS), name, [_show_column(table[name]) for name in table.columns])


def _show_column(values: pd.Series) -> Column:
    """Show a column of a table: words as they are, whole numbers with all digits, others with three."""
    name = str(values.name)
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        return Column(name, name, text(name), False)
    known = values.dropna().astype(float)
    return Column(name, name, number(name, format_count if (known % 1 == 0).all() else format_number))


def _draw(tables: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Draw every figure whose tables are all there, and of a table that is in none the first it allows."""
    drawn: set[str] = set()
    for stem, spec in FIGURES.items():
        if set(spec.tables) <= set(tables):
            drawn |= {*spec.tables}
            own = {name: tables[name] for name in spec.tables}
            yield _draw_one(stem, spec.title, spec.caption, lambda s=spec, t=own: s.plot(t))  # type: ignore[misc]
    for name, table in tables.items():
        if name not in drawn and list_plots(table):
            yield _draw_one(f"picture-{name}", name, "", lambda t=table: plot_table(t)[1])  # type: ignore[misc]


def _draw_one(stem: str, title: str, caption: str, plot: Callable[[], Any]) -> dict[str, Any]:
    """Draw a figure; one that can't be drawn says why."""
    entry = {"stem": stem, "title": title, "caption": caption, "svg": None, "reason": ""}
    try:
        entry["svg"] = Markup(to_svg(plot(), stem.replace("_", "-"), title))
    except SpectralError as error:
        entry["reason"] = str(error)
    return entry
