"""Commands that answer on a page: diagnose, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import spectral
from spectral.cli.finished import Answer
from spectral.cli.options import (
    PATH,
    ModelOptions,
    RunOptions,
    describe_images,
    images_option,
    parse_names,
    run_options,
    silent_option,
)
from spectral.cli.output import write_rows
from spectral.errors import SpectralError, StorageError
from spectral.files.atomic import find_folder
from spectral.processes.launch import find_launch
from spectral.terminal.console import SpectralCommand, hold_folder

if TYPE_CHECKING:
    from spectral.analysis import Diagnosis

PAGE = "page.html"


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@images_option
@click.option("--limit", type=click.IntRange(min=1), default=64, show_default=True,
              help="At most this many images.")  # fmt: skip
@click.option("--methods", callback=parse_names, default="blurpool,flc,aps", show_default=True,
              metavar="A,B,…",
              help="Layers to try in the place of all sites; the first also at each site alone.")  # fmt: skip
@click.option("--fix-images", type=click.IntRange(min=1), metavar="N",
              help="On how many images layers are tried, however long it takes; by default as many as "
              "--minutes allow, 6 if they allow one layer on as many.")  # fmt: skip
@click.option("--budget-images", type=click.IntRange(min=0), metavar="N",
              help="On how many images the causes of instability are told apart, however long it takes; by "
              "default 2 to 32, as many as --minutes allow, or none; 0 leaves it out.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=2, show_default=True,
              metavar="N", help="About how long each MODEL may take: sites, stability, causes and layers are "
              "measured on as many images as that is enough for; what isn't reached is listed.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N",
              help="Images per forward pass; by default 4 on a CPU, 32 elsewhere.")  # fmt: skip
@run_options(
    seed="Of crops and choices of images.",
    out="Folder for page.html, tables and all values; diagnosis-MODEL by default.",
)
def diagnose(
    models: tuple[str, ...],
    methods: tuple[str, ...],
    fix_images: int | None,
    budget_images: int | None,
    minutes: float,
    batch_size: int | None,
    network: ModelOptions,
    run: RunOptions,
) -> None:
    """Say where MODEL aliases, how much, whether it matters and what fixes it: one page.

    Measures aliasing at every downsampling site and how predictions answer to shifts by one pixel, shows the
    images that are least stable, tells the causes apart, and tries anti-aliasing layers without training.
    Writes one HTML file that opens from disk, and the tables beside it; the same command continues after an
    interruption. Several models share a page.

    \b
    Example:
      spectral diagnose my_net.py:build --weights my.pt --images my-photographs --out found
    """
    from spectral.files.atomic import refuse_foreign, require_writable

    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise click.UsageError(f"{twice[0]} is named twice; diagnose different models")
    if not methods:
        raise click.UsageError("--methods names no layer; expected A,B,…, such as blurpool,flc")
    if len(models) > 1 and network.weights is not None:
        raise click.UsageError("--weights is for one model; with several name each one's file as MODEL@FILE")
    folder = run.out or find_folder(Path(), "diagnosis", *models)
    if len(models) > 1:
        hold_folder(folder)
    else:
        require_writable(folder)  # diagnose holds it
    with _claimed(folder, models):
        answer = Answer(folder, run.images)
        if answer.repeat():
            return
    from spectral.analysis import is_diagnosis
    from spectral.surgery import check_methods

    places = [folder, *(find_folder(folder, model) for model in models)]
    if not any(map(is_diagnosis, places)):  # whose page it is
        refuse_foreign(folder / PAGE)
    check_methods(methods, "--methods: ")  # before images are looked for
    found = []
    for model in models:
        own = folder if len(models) == 1 else find_folder(folder, model)
        found.append(
            _diagnose(answer, model, network, run, out=own, methods=methods, fix_images=fix_images,
                      budget_images=budget_images, minutes=minutes, batch_size=batch_size)
        )  # fmt: skip
    if not find_launch().first:
        return  # the first rank writes for all
    page = spectral.write_page(found, folder / PAGE)
    if run.json_path:
        sites = [one.sites.assign(model=one.facts["model"]) for one in found]
        import pandas as pd

        write_rows(pd.concat(sites, ignore_index=True), run.json_path, {"models": list(models)})
    answer.say(f"\n{_tell_page(page)}; tables beside it")
    # Who has claimed it since is at the same, and notes it: here all is written and told.
    with suppress(StorageError), _claimed(folder, models):
        answer.keep(folder, run.json_path)


@click.command(cls=SpectralCommand)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--out", type=PATH, metavar="FILE", help="The page; DIR/page.html by default.")
@silent_option
def report(folder: Path, out: Path | None) -> None:
    """Make a page of what lies in DIR.

    DIR is what `spectral diagnose`, `measure`, `compare`, `attribute`, `budget`, `sweep` or `study` wrote:
    findings in words where there is a diagnosis or a measurement, else its tables and figures with their
    captions, finished or not.

    \b
    Example:
      spectral report results
    """
    from spectral.files.atomic import refuse_foreign

    page = out or folder / PAGE
    if folder.is_dir():  # else that is what is wrong
        refuse_foreign(page)
    path = spectral.write_report(folder, page)
    click.echo(_tell_page(path))


@click.command(cls=SpectralCommand)
@click.argument("table", type=PATH)
@click.option("--figure", metavar="NAME", help="Which picture, where several can be made of TABLE.")
@click.option("--out", type=PATH, metavar="FILE",
              help="A .png, .pdf or .svg file; TABLE's own name with .png by default.")  # fmt: skip
@silent_option
def plot(table: Path, figure: str | None, out: Path | None) -> None:
    """Draw the picture of a TABLE: a CSV file that a command wrote, or the folder of `spectral measure`.

    What can be drawn is told by the table's columns.

    \b
    Example:
      spectral plot run/summary.csv --out levels.pdf
    """
    from spectral.files.atomic import refuse_foreign
    from spectral.runs.lineage import read_result

    if out is None:  # a folder's name has no suffix ("run-0.5"), and may be "."
        out = table.parent / f"{table.resolve().name}.png" if table.is_dir() else table.with_suffix(".png")
    refuse_foreign(out)
    if table.is_dir():
        frame = spectral.summarize_measurements(spectral.read(table))
    else:
        try:
            frame = read_result(table)
        except SpectralError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
            raise SpectralError(
                f"{table} can't be read as a table ({why}); pass a CSV file that a command wrote, or the "
                f"folder of `spectral measure`"
            ) from error
    name, drawn = spectral.figures.plot_table(frame, figure)
    path = spectral.figures.save_figure(drawn, out, name)
    click.echo(f"{name}: {path}")


def _tell_page(path: Path) -> str:
    size = path.stat().st_size
    return f"page: {path}, {f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.0f} kB'}"


def _claimed(folder: Path, models: Sequence[str]) -> AbstractContextManager[Any]:
    """Claim a folder, where it isn't held: that of one model `spectral.diagnose` holds, from its start on."""
    from spectral.files.writers import claim

    return claim(folder) if len(models) == 1 and find_launch().count == 1 else nullcontext()


def _diagnose(
    answer: Answer, model: str, network: ModelOptions, run: RunOptions, **options: Any
) -> Diagnosis:
    from spectral.analysis import write_headline

    net, info, pictures = network.load_with_images(model, run)
    answer.depend_on(model, info)
    answer.say(f"diagnosing {info.name}, weights {info.weights_id}, on {describe_images(pictures)}")
    found: Diagnosis = spectral.diagnose(net, pictures, progress=not run.quiet, **options)
    answer.say("")
    for sentence in write_headline(found):
        answer.say(f"- {sentence}")
    for row in found.missing.to_dict("records"):
        answer.say(f"not measured: {row['what']}: {row['reason']}")
    return found
