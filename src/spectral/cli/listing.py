"""The command that lists what names there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from spectral.cli.options import json_option, silent_option
from spectral.cli.output import write_rows
from spectral.errors import SpectralError
from spectral.table.display import format_rows
from spectral.terminal.console import SpectralCommand

Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


@click.command("list", cls=SpectralCommand)
@click.argument("what", type=click.Choice(["models", "layers", "metrics", "perturbations"]))
@click.argument("words", nargs=-1, metavar="[WORD]...")
@json_option
@silent_option
def list_names(what: str, words: tuple[str, ...], json_path: Path | None) -> None:
    """List the names that commands take: of models, layers, metrics or perturbations.

    With WORDs, those that hold all of them. Models are those of installed libraries; a source that isn't
    installed says what it needs. Your own networks are my_net.py:build, package.module:build and hf/ORG/NAME.

    \b
    Example:
      spectral list models resnet50
    """
    header, rows = LISTS[what]()
    chosen = [row for row in rows if all(word.lower() in " ".join(row).lower() for word in words)]
    if not chosen:
        raise SpectralError(f"none of the {len(rows)} {what} holds {' and '.join(map(repr, words))}")
    click.echo(format_rows(header, chosen))
    if json_path:
        import pandas as pd

        write_rows(pd.DataFrame(chosen, columns=list(header)), json_path, {"list": what})


def _list_models() -> Rows:
    from spectral.models import list_models

    return ("name",), [(name,) for name in list_models()]


def _list_layers() -> Rows:
    from spectral.surgery import METHODS

    # What a layer does is said by the class that its forms for one, two and three axes have in common.
    rows = [(name, _first_line(type(make(8, 2)).__base__)) for name, make in METHODS.items()]
    return ("name", "what it does"), rows


def _list_metrics() -> Rows:
    from spectral.measurement import CHANNEL_METRICS, DENSE_METRICS, METRICS
    from spectral.table.schema import RANGES

    taps = dict.fromkeys(DENSE_METRICS, "dense, signal") | dict.fromkeys(CHANNEL_METRICS, "signal")
    rows = []
    for name in METRICS:
        low, high = RANGES[name]
        where = "none: of the whole model" if name == "sis" else taps.get(name, "every")
        rows.append((name, where, f"{low:g} … {high:g}" if high < math.inf else f"≥ {low:g}"))
    return ("name", "tap", "range"), rows


def _list_perturbations() -> Rows:
    from spectral.perturb import ATTACKS, CORRUPTIONS, NULA_TESTS, NULA_TRAINING, make_perturbation

    others = "checkerboard-0.05-normalised", "gaussian-0.05", "resize-0.5-antialias"
    names = dict.fromkeys((*NULA_TESTS, *NULA_TRAINING, *others))
    rows = [(name, _first_line(type(make_perturbation(name)))) for name in names]
    rows += [(f"{name}-N", "ImageNet-C's, N from 1 to 5; extra corruptions") for name in CORRUPTIONS]
    rows += [(name, "an attack; extra attacks") for name in ATTACKS]
    return ("name", "what it does"), rows


def _first_line(made: object) -> str:
    return next(iter((getattr(made, "__doc__", None) or "").splitlines()), "")


LISTS: dict[str, Callable[[], Rows]] = {
    "models": _list_models,
    "layers": _list_layers,
    "metrics": _list_metrics,
    "perturbations": _list_perturbations,
}
