"""What a figure is: its tables and columns, its words, and the function that draws it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from spectral.errors import NothingKnownError, SpectralError
from spectral.figures.style import FAMILIES, use_style
from spectral.figures.validation import drawing, holds_only_reasons, validate_columns

Tables = Mapping[str, pd.DataFrame]
PlotFunction = Callable[[Tables], Figure]

TABLE_WRITERS = {
    "phase1_layerwise_avr": "experiments/phase1_feature_extraction.py",
    "fig1_layerwise_power_spectra": "experiments/phase1_feature_extraction.py",
    "fig2_radial_profiles": "experiments/phase1_feature_extraction.py",
    "phase2a_frequency_sweep": "experiments/phase2_synthetic.py",
    "phase2b_architecture_comparison": "experiments/phase2_synthetic.py",
    "fig6_aliasing_folding": "experiments/phase2_synthetic.py",
    "per_image": "experiments/phase3_natural_images.py",
    "phase3_layerwise_avr_stats": "experiments/phase3_natural_images.py",
    "fig9_radial_profiles_natural": "experiments/phase3_natural_images.py",
    "phase4_images": "experiments/phase4_shift_correlation.py",
    "phase4_confidence": "experiments/phase4_shift_correlation.py",
    "phase4_partial": "experiments/phase4_shift_correlation.py",
    "phase4_budget": "experiments/phase4_shift_correlation.py",
    "phase4_correlation": "experiments/phase4_shift_correlation.py",
    "phase4_equivariance": "experiments/phase4_shift_correlation.py",
    "phase4_attribution": "experiments/phase4_shift_correlation.py",
    "phase4_diagonal_trace": "experiments/phase4_shift_correlation.py",
    "phase5_tradeoff": "experiments/phase5_intervention.py",
    "fig15_radial_overlay": "experiments/phase5_intervention.py",
    "phase6_nula": "experiments/phase6_nula.py",
    "phase6_pixels": "experiments/phase6_nula.py",
    "phase6_null_space": "experiments/phase6_nula.py",
    "fig26_null_space": "experiments/phase6_nula.py",
    "phase7_layers": "experiments/phase7_layers.py",
    "phase8_architectures": "experiments/phase8_architectures.py",
    "phase8_models": "experiments/phase8_architectures.py",
    "phase9_networks": "experiments/phase9_robustness.py",
    "phase9_sites": "experiments/phase9_robustness.py",
    "phase9_correlation": "experiments/phase9_robustness.py",
    "phase10_budget": "experiments/phase10_budget.py",
    "fourier_heatmap": "experiments/fourier_heatmap.py",
    "penalty": "experiments/train_with_penalty.py",
    "repair": "experiments/repair.py",
    "compare": "spectral compare",
    "budget": "spectral budget",
}


@dataclass(frozen=True)
class FigureSpec:
    """One figure: file stem, title, caption, the columns it needs of each table, and its plot function."""

    stem: str
    title: str
    caption: str
    columns: Mapping[str, tuple[str, ...]]
    plot: PlotFunction

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables it reads, without ``.csv``."""
        return tuple(self.columns)


class Source:
    """The tables of one figure, checked; errors name the figure, the table and the script that writes it."""

    def __init__(
        self, stem: str, title: str, tables: Tables, columns: Mapping[str, tuple[str, ...]],
        optional: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.stem = stem
        self.title = title
        self._given, self._optional = tables, optional
        if all(name in tables and holds_only_reasons(tables[name]) for name in columns):
            empty = next((name for name in columns if tables[name].empty), None)
            raise NothingKnownError(
                f"{stem}: {', '.join(columns)} holds nothing but reasons" if empty is None
                else str(self.error(empty, "has no rows"))
            )  # fmt: skip
        self._tables = {name: self._admit(name, needed) for name, needed in columns.items()}

    def refuse(self, problem: str) -> SpectralError:
        """Make the sentence for tables of which this figure can't use one."""
        name = next(iter(self._tables))
        if len(self._tables) == 1:
            return self.error(name, problem)
        return self.error(name, f"or {', '.join(map(repr, list(self._tables)[1:]))} {problem}")

    def rows(self, table: str, known: Sequence[str] = (), **where: str) -> pd.DataFrame:
        """Return the rows of a table, at least one, with these values and without NaN in ``known``."""
        rows = self._tables[table]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        found = rows.dropna(subset=list(known))
        wanted = [f"{column} = {value!r}" for column, value in where.items()]
        if rows.empty:
            raise self.error(table, f"has no rows with {' and '.join(wanted)}")
        if found.empty:
            wanted += [f"a known {column}" for column in known]
            raise NothingKnownError(f"{self.stem}: table {table!r} has no rows with {' and '.join(wanted)}")
        return found

    def error(self, table: str, problem: str) -> SpectralError:
        """Make the sentence for a table that this figure cannot use."""
        return SpectralError(
            f"{self.stem}: table {table!r} {problem}; run {TABLE_WRITERS[table]}, which writes it"
        )

    def _admit(self, name: str, needed: Sequence[str]) -> pd.DataFrame:
        if name not in self._given:
            raise self.error(name, "is missing")
        table = validate_columns(self._given[name], needed, self._optional, partial(self.error, name))
        for column in ("family", "family_a", "family_b"):
            unknown = sorted(set(table[column].astype(str)) - set(FAMILIES)) if column in needed else []
            if unknown:
                known = ", ".join(FAMILIES)
                raise self.error(name, f"has an unknown family {unknown[0]!r} (known: {known})")
        if {"site", "family", "model"} <= set(needed):
            models = table.groupby("family")["model"].nunique()
            if (models > 1).any():
                raise self.error(name, f"has several models of family {models.idxmax()!r}, expected one")
        return table


REGISTERED: dict[str, FigureSpec] = {}


def figure(
    stem: str, title: str, caption: str, columns: Mapping[str, tuple[str, ...]],
    optional: tuple[str, ...] = (),
) -> Callable[[Callable[[Source], Figure]], PlotFunction]:  # fmt: skip
    """Register a function of checked tables as a figure, and turn it into a function of plain tables.

    The style applies while it draws and nowhere else, so that neither the caller's matplotlib settings
    change the figure nor the figure changes them.

    Args:
        stem: file name without suffix.
        title: a few words, printed in the figure.
        caption: what is shown, with tap and units, for the report.
        columns: table name → columns that must be there.
        optional: columns that are read where a table has them.
    """

    def register(draw: Callable[[Source], Figure]) -> PlotFunction:
        @functools.wraps(draw)
        def plot(tables: Tables) -> Figure:
            source = Source(stem, title, tables, columns, optional)
            with drawing(source.refuse), use_style():
                drawn = draw(source)
                drawn.draw_without_rendering()  # ticks take the style when they are first drawn
                drawn.set_layout_engine()  # it is settled: with an engine each writing draws once more
            return drawn

        REGISTERED[stem] = FigureSpec(stem, title, caption, columns, plot)
        return plot

    return register
