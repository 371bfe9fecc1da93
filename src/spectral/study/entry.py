"""How a study is begun: by a call, or by the script of a phase."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import click

from spectral.console import SpectralCommand
from spectral.study.options import PRESETS, StudyOptions, study_options


def run_study(phases: Sequence[int], options: StudyOptions) -> None:
    """Run phases in order; what one measures, the others read.

    Raises:
        SpectralError: for an unknown phase, or whatever a phase meets.
    """
    from spectral.ranks import find_ranks, hold
    from spectral.study.declaration import read_phase
    from spectral.study.runner import run_phases

    chosen = list(phases or PRESETS[options.preset].phases)
    for number in chosen:
        read_phase(number)
    with hold(Path(options.out), find_ranks()):
        run_phases(chosen, options)


def run_phase_script(phase: int) -> None:
    """Entry point of ``experiments/phaseN_….py``: the shared options, then that phase."""

    from spectral.study.declaration import list_phases

    module = importlib.import_module(list_phases()[phase])

    @click.command(cls=SpectralCommand, ranks="share", help=module.__doc__)
    @study_options
    def script(options: StudyOptions) -> None:
        run_study([phase], options)

    script()
