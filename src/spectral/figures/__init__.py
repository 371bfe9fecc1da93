"""Figures of the study, each drawn from its tables alone; no figure needs a model, a display or pyplot.

Example:
    >>> FIGURES["fig8_avr_distributions"].tables
    ('per_image', 'phase3_layerwise_avr_stats')
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from spectral.arguments.validation import guard_room
from spectral.arguments.values import as_path
from spectral.errors import NothingKnownError, SpectralError, suggest
from spectral.figures.answers import (
    plot_blame,
    plot_blame_summary,
    plot_budget_images,
    plot_classes,
    plot_diagonal,
    plot_folding,
    plot_frequency_sweep,
    plot_image_avr,
    plot_measurement,
    plot_models,
    plot_movement,
    plot_null_frequencies,
    plot_perturbed,
    plot_predictions,
    plot_profiles,
    plot_sensitivity,
    plot_spectra,
    plot_stability,
    plot_stability_summary,
)
from spectral.figures.architectures import (
    plot_architectures_depth,
    plot_architectures_ranking,
    plot_penalty,
)
from spectral.figures.budget import plot_causes, plot_instability_budget, plot_instability_budgets
from spectral.figures.comparisons import (
    plot_avr_comparison,
    plot_avr_distributions,
    plot_avr_intervention,
    plot_layerwise_avr_comparison,
    plot_layerwise_mean_avr,
)
from spectral.figures.correlation import (
    plot_avr_sis_scatter,
    plot_correlation_comparison,
    plot_sis_distributions,
)
from spectral.figures.diagnosis import plot_fixes, plot_site_detail, plot_site_levels
from spectral.figures.heatmap import plot_fourier_heatmap
from spectral.figures.inline import find_colour, to_picture, to_svg
from spectral.figures.layers import plot_layers_aliasing, plot_layers_pareto
from spectral.figures.networks import plot_compare
from spectral.figures.nula import (
    plot_nula_checkerboard,
    plot_nula_examples,
    plot_nula_perturbations,
    plot_null_space,
)
from spectral.figures.profiles import plot_radial_overlay, plot_radial_profiles, plot_radial_profiles_natural
from spectral.figures.relations import plot_avr_vs_frequency, plot_tradeoff
from spectral.figures.repair import plot_repair
from spectral.figures.robustness import plot_am_robustness, plot_attacks, plot_robustness_relations
from spectral.figures.spec import REGISTERED, TABLE_WRITERS, FigureSpec, Tables
from spectral.figures.spectra import plot_aliasing_folding, plot_layerwise_power_spectra
from spectral.figures.stability import plot_attribution, plot_diagonal_trace, plot_equivariance
from spectral.figures.style import sign, use_style
from spectral.figures.tables import list_plots, plot_summary, plot_table, save_figure
from spectral.figures.validation import holds_only_reasons
from spectral.files.atomic import replacing
from spectral.runs.lineage import read_result

__all__ = [
    "DPI",
    "FIGURES",
    "TABLE_WRITERS",
    "FigureSpec",
    "draw_all",
    "draw_and_say",
    "draw_figure",
    "draw_what_is_known",
    "find_colour",
    "holds_only_reasons",
    "list_plots",
    "plot_aliasing_folding",
    "plot_am_robustness",
    "plot_architectures_depth",
    "plot_architectures_ranking",
    "plot_attacks",
    "plot_attribution",
    "plot_avr_comparison",
    "plot_avr_distributions",
    "plot_avr_intervention",
    "plot_avr_sis_scatter",
    "plot_avr_vs_frequency",
    "plot_blame",
    "plot_blame_summary",
    "plot_budget_images",
    "plot_causes",
    "plot_classes",
    "plot_compare",
    "plot_correlation_comparison",
    "plot_diagonal",
    "plot_diagonal_trace",
    "plot_equivariance",
    "plot_fixes",
    "plot_folding",
    "plot_fourier_heatmap",
    "plot_frequency_sweep",
    "plot_image_avr",
    "plot_instability_budget",
    "plot_instability_budgets",
    "plot_layers_aliasing",
    "plot_layers_pareto",
    "plot_layerwise_avr_comparison",
    "plot_layerwise_mean_avr",
    "plot_layerwise_power_spectra",
    "plot_measurement",
    "plot_models",
    "plot_movement",
    "plot_nula_checkerboard",
    "plot_nula_examples",
    "plot_nula_perturbations",
    "plot_null_frequencies",
    "plot_null_space",
    "plot_penalty",
    "plot_perturbed",
    "plot_predictions",
    "plot_profiles",
    "plot_radial_overlay",
    "plot_radial_profiles",
    "plot_radial_profiles_natural",
    "plot_repair",
    "plot_robustness_relations",
    "plot_sensitivity",
    "plot_sis_distributions",
    "plot_site_detail",
    "plot_site_levels",
    "plot_spectra",
    "plot_stability",
    "plot_stability_summary",
    "plot_summary",
    "plot_table",
    "plot_tradeoff",
    "read_tables",
    "save_figure",
    "to_picture",
    "to_svg",
]

DPI = 300
_KINDS = ("png", "pdf")
_STUDY_ORDER = (
    "fig1_layerwise_power_spectra",
    "fig2_radial_profiles",
    "avr_comparison",
    "fig4_avr_vs_frequency",
    "fig5_layerwise_avr_comparison",
    "fig6_aliasing_folding",
    "fig7_layerwise_mean_avr",
    "fig8_avr_distributions",
    "fig9_radial_profiles_natural",
    "fig10_avr_sis_scatter",
    "fig11_correlation_comparison",
    "fig12_sis_distributions",
    "fig13_avr_intervention",
    "fig14_tradeoff",
    "fig15_radial_overlay",
)
# Drawn by scripts of their own, from tables that a run of the study doesn't write, or beside its figures.
_BEYOND = (
    "fig16_architectures_depth",
    "fig17_architectures_ranking",
    "fig18_layers_pareto",
    "fig19_layers_aliasing",
    "fig20_equivariance",
    "fig21_attribution",
    "fig22_diagonal_trace",
    "fig23_nula_perturbations",
    "fig24_nula_examples",
    "fig25_nula_checkerboard",
    "fig26_null_space",
    "fig27_am_robustness",
    "fig28_robustness_relations",
    "fig29_attacks",
    "fig30_budget",
    "fig31_causes",
    "fourier_heatmap",
    "penalty",
    "repair",
    "compare",
    "budget",
)
FIGURES: dict[str, FigureSpec] = {stem: REGISTERED[stem] for stem in (*_STUDY_ORDER, *_BEYOND)}


def read_tables(stem: str, tables_dir: str | Path) -> Tables:
    """Read the tables of one figure from ``<tables_dir>/<table>.csv``.

    Args:
        stem: a key of `FIGURES`.
        tables_dir: where the study's phases wrote their tables.

    Raises:
        SpectralError: for an unknown figure, or a table that is absent or unreadable.

    Example:
        >>> read_tables("fig7_layerwise_avr", "results/tables")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        spectral.errors.SpectralError: no figure 'fig7_layerwise_avr'; nearest: 'fig7_layerwise_mean_avr'...
    """
    if stem not in FIGURES:
        raise SpectralError(f"no figure {stem!r}{suggest(stem, FIGURES)}")
    tables, known = {}, dict[Path, str]()
    for name in FIGURES[stem].tables:
        path = Path(tables_dir) / f"{name}.csv"
        try:
            tables[name] = read_result(path, known)
        except (OSError, ValueError) as problem:
            missing = isinstance(problem, FileNotFoundError)
            state = "is not there" if missing else f"cannot be read ({str(problem).splitlines()[0]})"
            raise SpectralError(
                f"{stem}: table {str(path)!r} {state}; run {TABLE_WRITERS[name]}, which writes it"
            ) from problem
    return tables


def draw_figure(stem: str, tables_dir: str | Path, figures_dir: str | Path, dpi: int = DPI) -> list[Path]:
    """Draw one figure from its tables and write it as ``<stem>.png`` and ``<stem>.pdf``.

    The same tables give the same bytes, and an interrupted run leaves no half-written file.

    Args:
        stem: a key of `FIGURES`.
        tables_dir: folder with the tables; read only.
        figures_dir: folder for the figure; made if need be.
        dpi: resolution of the PNG.

    Returns:
        The paths written.

    Raises:
        SpectralError: for an unknown figure, a missing, empty or incomplete table, or a folder that
            cannot be written.
    """
    tables = read_tables(stem, tables_dir)
    spec = FIGURES[stem]
    drawn = spec.plot(tables)
    folder = Path(figures_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_save(drawn, folder / f"{stem}.{kind}", spec.title, dpi) for kind in _KINDS]
    except OSError as problem:
        raise SpectralError(
            f"{stem}: cannot write to {str(folder)!r} ({problem.strerror or problem}); choose another folder"
        ) from problem


def draw_what_is_known(stem: str, tables_dir: str | Path, figures_dir: str | Path) -> tuple[list[Path], str]:
    """Draw one figure as `draw_figure`, or say why there is nothing to draw.

    A figure of that name that was drawn of other tables goes.

    Returns:
        The paths written; and why there are none, else "".

    Raises:
        SpectralError: as `draw_figure`, but not where all that it would show is unknown.
    """
    try:
        return draw_figure(stem, tables_dir, figures_dir), ""
    except NothingKnownError as error:
        for kind in _KINDS:
            (Path(figures_dir) / f"{stem}.{kind}").unlink(missing_ok=True)
        return [], str(error).partition(": ")[2]


def draw_and_say(stem: str, tables_dir: str | Path, figures_dir: str | Path) -> str:
    """Draw one figure as `draw_what_is_known`, and return what is told of it: where it is, or why it isn't.

    Raises:
        SpectralError: as `draw_what_is_known`.
    """
    paths, why = draw_what_is_known(stem, tables_dir, figures_dir)
    return f"{paths[0]} (+ .pdf)" if paths else f"{stem} isn't drawn: {why}"


def draw_all(results_dir: str | Path, stems: Iterable[str] | None = None, dpi: int = DPI) -> list[Path]:
    """Draw figures from ``<results_dir>/tables`` into ``<results_dir>/figures``.

    Args:
        results_dir: a study's results.
        stems: keys of `FIGURES`; by default those of the study, in its order, and what else has its tables.
        dpi: resolution of the PNGs.

    Returns:
        The paths written.

    Raises:
        SpectralError: as `draw_figure`, at the first figure that cannot be drawn; earlier ones are kept.
    """
    results = as_path(results_dir, "draw_all: results_dir")
    if stems is None:
        there = {path.stem for path in (results / "tables").glob("*.csv")}
        stems = [stem for stem in FIGURES if stem in _STUDY_ORDER or there.issuperset(FIGURES[stem].tables)]
    return [
        path for stem in stems for path in draw_figure(stem, results / "tables", results / "figures", dpi)
    ]


def _save(drawn: Figure, path: Path, title: str, dpi: int) -> Path:
    """Write without dates, whole or not at all."""
    kind = path.suffix[1:]
    undated = {"CreationDate": None} if kind == "pdf" else {}
    with replacing(path) as temporary, use_style():
        drawn.savefig(temporary, format=kind, dpi=dpi, metadata={**sign(kind, title), **undated})
    return path


guard_room(globals())
