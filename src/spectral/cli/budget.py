"""The command that shares a network's shift instability among its causes."""

from __future__ import annotations

from pathlib import Path

import click

import spectral
from spectral.cli.finished import Answer
from spectral.cli.options import (
    ModelOptions,
    RunOptions,
    batch_size_option,
    describe_images,
    images_option,
    parse_names,
    run_options,
)
from spectral.cli.output import draw, write_rows
from spectral.processes.launch import find_launch
from spectral.terminal.console import SpectralCommand, hold_folder

TABLE, IMAGES, COALITIONS = "budget.csv", "budget_images.csv", "budget_coalitions.csv"


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("model")
@images_option
@click.option("--limit", type=click.IntRange(min=2), default=64, show_default=True,
              help="At most this many images.")  # fmt: skip
@click.option("--split", callback=parse_names, default="", metavar="A,B,…",
              help="Share the values of decimation, nonlinearity or border among their places.")  # fmt: skip
@click.option("--orders", type=click.IntRange(min=1), default=2, show_default=True,
              help="Orders sampled for that.")  # fmt: skip
@click.option("--shifts", default="pixel", show_default=True, metavar="NAME",
              help="pixel, half, random (up to the total stride) or crop.")  # fmt: skip
@click.option(
    "--factor", type=int, help="How much finer the lattice of nonlinearities is; 2, 4 or 8 by itself."
)
@batch_size_option
@run_options(
    seed="Of crops, orders and shifts.",
    out="Folder for budget.csv, budget.png, all values and the coalitions.",
)
def budget(
    model: str,
    split: tuple[str, ...],
    orders: int,
    shifts: str,
    factor: int | None,
    batch_size: int,
    network: ModelOptions,
    run: RunOptions,
) -> None:
    """Share MODEL's shift instability among decimation, nonlinearities and borders.

    Each set of them is made ideal and what is left measured. Prints Shapley shares of SIS and of the logit
    jitter with 95 % intervals, what a source takes off alone (first) and after all else (last), and how often
    the prediction stays with it ideal; then what stays unexplained and what can't be made ideal.

    \b
    Example:
      spectral budget bundled/resnet20 --limit 64 --split decimation --out runs/budget
    """
    out = run.out
    if out:
        hold_folder(out, run.images)
    answer = Answer(out, run.images)
    if answer.repeat():
        return
    from spectral.budget import describe_shares
    from spectral.identity import identify_network
    from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csvs

    net, info, pictures = network.load_with_images(model, run)
    answer.depend_on(model, info)
    facts = {"model": info.name, **identify_network(net), "images": pictures.source,
             "fingerprint": pictures.fingerprint, "seed": run.seed, "shifts": shifts, "split": split,
             "orders": orders}  # fmt: skip
    places = [out / name for name in (TABLE, IMAGES, COALITIONS)] if out else []
    refuse_other_tables(places, facts if factor is None else {**facts, "factor": factor})
    answer.say(
        f"budget of {model}, weights {info.weights_id}, on {describe_images(pictures)}; shifts: {shifts}"
    )
    table = spectral.measure_instability_budget(
        net, pictures, split=split, orders=orders, shifts=shifts, factor=factor, seed=run.seed,
        batch_size=batch_size, progress=not run.quiet,
    )  # fmt: skip
    if not find_launch().first:
        return  # the first rank writes for all
    summary = spectral.summarize_instability_budget(table)
    answer.say(f"\n{describe_shares(summary).text()}")
    wrote: list[Path] = []
    if out:
        import pandas as pd

        facts |= {"limit": run.limit, "factor": table.attrs["factor"], **describe_environment(),
                  "device": network.device}  # fmt: skip
        tables = (summary, table, pd.DataFrame(table.attrs["coalitions"]))
        written = write_csvs(dict(zip(places, tables, strict=True)), facts)
        drawn, said = draw("budget", out)
        answer.say(said)
        wrote += [*written, *drawn]
    if run.json_path:
        about = {"model": model, "weights": info.weights_id, "images": pictures.source, "shifts": shifts}
        write_rows(summary, run.json_path, {**about, "seed": run.seed})
    answer.keep(*wrote, run.json_path)
