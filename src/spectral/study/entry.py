"""How a study is begun: by a call, or by the script of a phase."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import click

from spectral.errors import SpectralError
from spectral.files.atomic import require_apart
from spectral.study.declaration import list_phases
from spectral.study.options import PRESETS, StudyOptions, study_options
from spectral.terminal.console import SpectralCommand


def run_study(phases: Sequence[int], options: StudyOptions) -> None:
    """Run phases in order; what one measures, the others read.

    Raises:
        SpectralError: for an unknown phase, or whatever a phase meets.
    """
    from spectral.processes.ranks import find_ranks, hold
    from spectral.study.runner import run_phases

    chosen = choose_phases(phases, options)
    require_apart(Path(options.out), options.image_sources)
    with hold(Path(options.out), find_ranks()):
        run_phases(chosen, options)


def choose_phases(phases: Sequence[int], options: StudyOptions) -> list[int]:
    """Return the phases that were asked for, or those of the preset.

    Raises:
        SpectralError: if there is none of such a number.

    Example:
        >>> choose_phases([], StudyOptions(preset="imagenet"))
        [3, 5]
        >>> choose_phases([12], StudyOptions())
        Traceback (most recent call last):
        spectral.errors.SpectralError: unknown phase 12; available: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
    """
    chosen, known = list(phases or PRESETS[options.preset].phases), list_phases()
    for number in chosen:
        if number not in known:
            raise SpectralError(f"unknown phase {number}; available: {', '.join(map(str, known))}")
    return chosen


def run_phase_script(phase: int) -> None:
    """Entry point of ``experiments/phaseN_….py``: the shared options, then that phase."""
    module = importlib.import_module(list_phases()[phase])

    @click.command(cls=SpectralCommand, ranks="share", help=module.__doc__)
    @study_options
    def script(options: StudyOptions) -> None:
        run_study([phase], options)

    script()
