"""The command that measures several networks, beside others that do the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import spectral
from spectral.cli.finished import Answer
from spectral.cli.options import (
    PATH,
    RunOptions,
    batch_size_option,
    gather,
    json_option,
    parse_names,
    pictures_option,
)
from spectral.cli.output import write_rows
from spectral.errors import SpectralError
from spectral.processes.launch import choose_device, find_launch
from spectral.table.display import NOTHING, format_columns, format_mean
from spectral.terminal.console import (
    SpectralCommand,
    await_others,
    device_option,
    quiet_option,
    workers_option,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


@click.command(cls=SpectralCommand, ranks="apart")
@click.argument("models", type=PATH, metavar="MODELS.txt")
@pictures_option
@click.option("--limit", type=click.IntRange(min=1), help="At most this many images.")
@click.option("--metrics", callback=parse_names, metavar="A,B,…", help="As for `spectral measure`.")
@click.option("--taps", callback=parse_names, default="input,dense", show_default=True, metavar="A,B",
              help="As for `spectral measure`.")  # fmt: skip
@batch_size_option
@click.option("--unit", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
              help="Images that a job claims at once; what one that dies loses at most.")  # fmt: skip
@device_option
@workers_option
@quiet_option
@json_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops and choices of images.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder that all jobs see.")
@gather("run", RunOptions)
def sweep(
    models: Path,
    metrics: tuple[str, ...] | None,
    taps: tuple[str, ...],
    batch_size: int,
    unit: int,
    device: str,
    run: RunOptions,
) -> None:
    """Measure the networks that MODELS.txt lists, one per line, on the same images.

    Start it as often as you like on one folder, from any hosts that see it: jobs share the work, network by
    network and range by range of the images, by files that only one can create, without a server. What a job
    that ended has left the others take over. A line is what `spectral measure` takes as MODEL; # begins a
    comment. Each network gets a folder in DIR as `spectral measure --out` writes it; DIR gets networks.csv (a
    row per network) and summary.csv.

    \b
    Example:
      spectral sweep models.txt --images photos --out runs/sweep
    """
    out = run.out
    assert out is not None  # it is required
    answer = Answer(out, run.images, [models])
    if answer.repeat():
        return
    lines = spectral.sweeping.read_models(models)
    loaded = set()

    def load(name: str) -> nn.Module:
        net = spectral.load_model(name, device=choose_device(device))
        answer.depend_on(name, spectral.model_info(net))
        loaded.add(name)
        return net

    table = spectral.sweep(
        list(lines), run.images, metrics, out=out, taps=taps,  # type: ignore[arg-type] # measure checks the names
        limit=run.limit, seed=run.seed, batch_size=batch_size, unit=unit, workers=run.workers, load=load,
        report=(lambda text: None) if run.quiet else click.echo, meet=await_others,
    )  # fmt: skip
    if not find_launch().first:
        return  # the first rank speaks for all
    answer.say(f"\n{format_sweep(table)}", again=format_sweep(table))
    if run.json_path:
        write_rows(table, run.json_path, {"models": list(lines), "seed": run.seed, "limit": run.limit})
    left = table[~table["state"].isin(["finished", "failed"])]
    if len(left):
        click.echo(f"\n{len(left)} not finished yet; other jobs are at it, or this command again continues")
    answer.say(f"written to {out}")
    failed = table[table["state"] == "failed"].to_dict("records")
    if failed:
        reasons = "; ".join(
            f"{models}, line {lines[row['model']]}: {row['model']}: {row['reason']}" for row in failed
        )
        raise SpectralError(f"{len(failed)} of {len(table)} networks failed: {reasons}")
    if not len(left) and loaded == set(lines):  # of one that another job has loaded, its files aren't known
        from spectral.runs.summary import SITES_TABLE, SUMMARY_FILE
        from spectral.sweeping.sweep import TABLE
        from spectral.table.csv_files import PROVENANCE

        folders = [out, *(out / folder for folder in table["folder"])]
        names = (TABLE, SUMMARY_FILE, SITES_TABLE, PROVENANCE)
        tables = [path for folder in folders for name in names if (path := folder / name).exists()]
        answer.keep(*tables, *(folder / "measurements" for folder in folders[1:]), run.json_path)


def format_sweep(table: pd.DataFrame) -> str:
    """Write what `spectral.sweep` returned as lines."""
    columns = list(table.columns)
    values = columns[columns.index("sis_ci_high") + 1 : -1]
    cells = [
        [
            str(row["model"]), str(row["state"]), f"{_count(row['measurable'])}/{_count(row['sites'])}",
            format_mean(row["sis"], row["sis_ci_low"], row["sis_ci_high"]),
            *(NOTHING if row[name] != row[name] else f"{row[name]:.4g}" for name in values),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    header = ["model", "state", "sites", "sis", *(str(name) for name in values)]
    return format_columns(header, cells, 3)


def _count(value: object) -> str:
    return NOTHING if value is None or value != value or str(value) == "<NA>" else str(value)
