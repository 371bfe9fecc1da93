"""Third-party survey: can networks that this package has never seen be looked at, measured and converted?

Models of transformers, diffusers, ultralytics and others (extra `survey`) are built from configuration, with
random weights and without downloads; each is checked in a process of its own, within a time limit. Of every
model: are its sites found, and are they complete and true (against an account of positions that shares
nothing with the finder); does `measure` work with its defaults; does `convert`; is the model what it was.
Rows are written one by one, and the same command continues after an interruption; with --again it checks
models once more that the table has.

Example: python experiments/survey.py --library monai --out results
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from tqdm import tqdm

from spectral.errors import SpectralError, suggest
from spectral.experiments.survey.checks import COLUMNS, Row, check_model
from spectral.experiments.survey.libraries import LIBRARIES, Entry, list_entries
from spectral.table.csv_files import describe_environment, write_csv
from spectral.terminal.console import FilePath, SpectralCommand, quiet_option, split_names

LIMIT = 300.0  # seconds that one model may take
NAME = "coverage_third_party"
PRELOADED = {
    "transformers": ("transformers.modeling_utils", "transformers.generation", "transformers.modeling_layers",
                     "transformers.models.llama.modeling_llama", "transformers.models.clip.modeling_clip"),
    "diffusers": ("diffusers.models.modeling_utils", "diffusers.models.unets.unet_2d"),
    "segmentation-models-pytorch": ("segmentation_models_pytorch",), "ultralytics": ("ultralytics.nn.tasks",),
    "monai": ("monai.networks.nets",), "open_clip": ("open_clip",), "kornia": ("kornia.feature",),
    "torchaudio": ("torchaudio.models",), "torchvision": ("torchvision.models",), "timm": ("timm",),
    "pytorchcv": ("pytorchcv.model_provider",),
}  # fmt: skip
TARGETS = {"found": 0.98, "complete and true": 0.98, "measured": 0.95, "converted": 1.0, "unaltered": 1.0}


def survey(
    entries: Sequence[Entry],
    path: Path,
    limit: float = LIMIT,
    progress: bool = True,
    again: bool = False,
) -> pd.DataFrame:
    """Check every model that the table doesn't have yet, and return the table.

    Args:
        entries: from `spectral.experiments.survey.libraries.list_entries`.
        path: CSV to which rows are added as they come.
        limit: seconds per model.
        progress: show a bar.
        again: check those that it has once more, each in place of its earlier row.
    """
    table = read_survey(path)
    preload(entries)
    known = set(zip(table["library"], table["model"], strict=True))
    facts = describe_environment()
    left = [entry for entry in entries if again or (entry.library, entry.name) not in known]
    with tqdm(left, unit="model", disable=not progress) as bar:
        for entry in bar:
            bar.set_postfix_str(f"{entry.library}/{entry.name}")
            row = check_apart(entry, limit)
            new = pd.DataFrame([row], columns=COLUMNS).astype(object)
            there = (table["library"] == entry.library) & (table["model"] == entry.name)
            place = int(there.to_numpy().argmax()) if there.any() else len(table)
            table = pd.concat([table[:place], new, table[place:][~there[place:]]], ignore_index=True)
            write_csv(table, path, facts)
    return table


def preload(entries: Sequence[Entry]) -> None:
    """Import what the children need, once."""
    for module in {module for entry in entries for module in PRELOADED.get(entry.library, ())}:
        importlib.import_module(module)


def read_survey(path: Path) -> pd.DataFrame:
    """Return the rows of an earlier run, none if there was none."""
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS, dtype=object)
    return pd.read_csv(path, comment="#", dtype=object, keep_default_na=False)


def check_apart(entry: Entry, limit: float) -> Row:
    """Check a model in a child process, so that whatever it does ends with it.

    Args:
        entry: the model.
        limit: seconds after which the child is ended; what it had found out is kept.
    """
    start = time.perf_counter()
    row: Row = {"library": entry.library, "model": entry.name}
    context: Any = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(entry, writer), daemon=True)
    child.start()
    writer.close()
    for part in _receive(reader, start + limit):
        _merge(row, part)
    if child.is_alive() and time.perf_counter() >= start + limit:
        child.kill()
        row["error"] = f"took more than {limit:.0f} s"
    child.join()
    if child.exitcode and "error" not in row:
        row["error"] = f"its process ended with code {child.exitcode}"
    return {**dict.fromkeys(COLUMNS, ""), **row, "seconds": round(time.perf_counter() - start, 1)}


def summarize_survey(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Count for each target how many models reach it, of how many for which it can be asked."""
    built = table[table["find"] != ""]
    found = built["find"] == "found"
    true = found & (built["missed"] == "") & (built["false"] == "")
    some = found & (pd.to_numeric(built["measurable"], errors="coerce") > 0)
    return {
        "found": (int(found.sum()), len(built)),
        "complete and true": (int(true.sum()), len(built)),
        "measured": (int((built["measure"] == "measured").sum()), len(built)),
        "converted": (int((some & (built["convert"] == "converted")).sum()), int(some.sum())),
        "unaltered": (int((built["altered"] == "").sum()), len(built)),
    }


def select(entries: Sequence[Entry], names: Sequence[str] | None) -> list[Entry]:
    """Return the entries of these names, all by default.

    Raises:
        SpectralError: for a name that none of the libraries has.
    """
    if names is None:
        return list(entries)
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            raise SpectralError(f"unknown model {name!r}{suggest(name, known)}")
    return [known[name] for name in names]


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--library", "libraries", multiple=True, type=click.Choice(LIBRARIES), default=LIBRARIES,
              help="May be given several times; all by default.")  # fmt: skip
@click.option("--models", help="These instead of all: ResNetModel,ViTModel.")
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help=f"Folder for tables/{NAME}.csv.")  # fmt: skip
@click.option("--limit", default=LIMIT, show_default=True, help="Seconds per model.")
@click.option("--again", is_flag=True, help="Check models that the table has once more.")
@quiet_option
def main(
    libraries: tuple[str, ...], models: str | None, out: Path, limit: float, again: bool, quiet: bool
) -> None:
    """Run the survey, write its table and say how far it is from its targets."""
    names = None if models is None else list(split_names(models, "--models"))
    entries = select(list_entries(libraries), names)
    click.echo(f"survey of {len(entries)} models of {', '.join(libraries)}, with random weights")
    path = out / "tables" / f"{NAME}.csv"
    table = survey(entries, path, limit, progress=not quiet, again=again)
    write_csv(table, path, describe_environment())
    click.echo(f"  {path}  ({len(table)} rows)")
    for what, (count, total) in summarize_survey(table).items():
        click.echo(
            f"  {what:18s} {count} of {total} ({count / max(total, 1):.1%}; target {TARGETS[what]:.0%})"
        )


def _work(entry: Entry, writer: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        for part in check_model(entry.build):
            writer.send(part)
    except Exception as error:  # the library's own: it can't be built or run
        text = " ".join(str(error).split())[:300]
        writer.send({"error": f"{type(error).__name__}: {text}"})
    writer.close()


def _receive(reader: Connection, deadline: float) -> Iterator[Row]:
    while reader.poll(max(0.0, deadline - time.perf_counter())):
        try:
            yield reader.recv()
        except EOFError:
            return


def _merge(row: Row, part: Mapping[str, Any]) -> None:
    """Take what a check found; what was altered is collected over all of them."""
    for key, value in part.items():
        if key == "altered":
            value = "; ".join(filter(None, [row.get(key, ""), value]))
        row[key] = value
