"""The command ``spectral``; its commands are in modules by what they do: look, measure, make.

Whatever needs torch is imported inside a command (names of `spectral` load when first used), so that
``spectral --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import spectral
from spectral.cli.budget import budget
from spectral.cli.diagnosing import diagnose, plot, report
from spectral.cli.finished import Answer
from spectral.cli.listing import list_names
from spectral.cli.looking import classify, sites
from spectral.cli.making import convert, train
from spectral.cli.measuring import attribute, compare, measure
from spectral.cli.sweeping import sweep
from spectral.processes.launch import find_launch
from spectral.study import StudyOptions, study_options
from spectral.terminal.console import SpectralCommand, SpectralGroup, hold_folder

KEPT = ("tables", "figures", "measurements", "provenance.json")  # in a study's folder

__all__ = ["SpectralCommand", "main"]


@click.group(
    cls=SpectralGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(spectral.__version__, prog_name="spectral")
def main() -> None:
    """Find where a vision network aliases, measure how much, and whether it matters.

    MODEL is your own (my_net.py:build or package.module:build, a function that is run), timm/NAME,
    torchvision/NAME, hf/ORG/NAME or a folder of transformers, bundled/NAME, antialiased/NAME,
    robustbench/NAME, nula/robust, or the path of a weights file. @FILE behind it puts the weights of a file
    into it, @random random ones, which needs no download.

    \b
    Example:
      spectral sites timm/resnet50@random
    """


@main.command(cls=SpectralCommand, ranks="share")
@click.argument("phases", nargs=-1, type=int, metavar="[PHASE]...")
@study_options
def study(phases: Sequence[int], options: StudyOptions) -> None:
    """Run the study's phases: tables and figures.

    Phases 1 to 5 run by default: a strided network, one with BlurPool and NULA are compared on the same
    images. Phase 6 puts networks under NULA's perturbations, phase 7 compares anti-aliasing layers in one
    network, phase 8 surveys architectures, phase 9 sets aliasing against robustness, phase 10
    shares instability among its causes; --models takes any number in 6, 8, 9 and 10. What one phase measures
    the others read, and the same command continues after an interruption.

    \b
    Example:
      spectral study --limit 200 --out results
      spectral study 3 4
      spectral study 8 --models timm/resnet18@random,timm/vgg11_bn@random
    """
    from spectral.study.entry import choose_phases

    chosen, out = choose_phases(phases, options), Path(options.out)
    hold_folder(out, options.image_sources)
    # Where --data is, files alone don't tell which images of it are used.
    answer = Answer(out if options.data is None else None, options.image_source)
    if answer.repeat():
        return
    from spectral.study.runner import run_phases

    outcome = run_phases(chosen, options)
    if not find_launch().first:
        return
    for name, files in outcome.files.items():
        answer.depend_on_files(name, files)
    kept = [out / part for part in KEPT if (out / part).exists()]
    nothing = f"nothing has changed since: tables and figures are in {out}"
    answer.note("\n".join([nothing, *outcome.said]))
    answer.keep(*kept)


for command in (
    diagnose,
    sites,
    measure,
    compare,
    attribute,
    sweep,
    budget,
    report,
    plot,
    list_names,
    classify,
    convert,
    train,
):
    main.add_command(command)
