"""Coverage: the downsampling sites found in the architectures of timm, torchvision and antialiased_cnns.

A few small models of every architecture module, without weights and mostly without data; a model that can't
be built or traced is a row with the error. Writes tables/coverage.csv.

Example: python experiments/site_coverage.py --library timm --out results
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd
from tqdm import tqdm

from spectral.errors import SpectralError, suggest
from spectral.models.catalogue import (
    LIBRARIES,
    Entry,
    Example,
    build_untrained,
    list_catalogue,
    list_representatives,
)
from spectral.sites import Site, find_reductions
from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csv
from spectral.terminal.console import FilePath, SpectralCommand, quiet_option, split_names

COLUMNS = ["library", "module", "model", "input_size", "sites", "measurable", "lossless", "unmeasurable",
           "reasons", "kinds", "global_pools", "seconds", "error"]  # fmt: skip


def survey_coverage(entries: Sequence[Entry], progress: bool = True) -> pd.DataFrame:
    """Find the sites of every model: one row each, whether it works or not.

    Args:
        entries: from `spectral.models.catalogue`.
        progress: show a bar.

    Example:
        >>> table = survey_coverage([Entry("timm", "vgg", "timm/vgg11")], progress=False)
        >>> table[["sites", "kinds", "global_pools"]].values.tolist()
        [[5, 'max_pool 5', 0]]
    """
    bar = tqdm(entries, unit="model", disable=not progress)
    return pd.DataFrame([describe_coverage(entry) for entry in bar], columns=COLUMNS)


def describe_coverage(entry: Entry) -> dict[str, Any]:
    """Describe the sites of one model, or why they can't be found."""
    row: dict[str, Any] = {"library": entry.library, "module": entry.module, "model": entry.name, "error": ""}
    start = time.process_time()  # the clock also counts whatever else the machine does
    try:
        sites, example = _discover(entry.name)
        row |= {"input_size": _format_size(example), **_count(sites)}
    except Exception as error:  # whatever a library's model raises is a result
        row["error"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
    return {**row, "seconds": time.process_time() - start}


def select_entries(libraries: Sequence[str], names: Sequence[str] | None) -> list[Entry]:
    """Return the models asked for by name, or else the representatives of the libraries.

    Raises:
        SpectralError: for a name that the libraries don't have.

    Example:
        >>> select_entries(["timm"], ["timm/vgg99"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        spectral.errors.SpectralError: unknown model 'timm/vgg99'; nearest: 'timm/vgg19', ...
    """
    if names is None:
        return list_representatives(libraries)
    known = {entry.name: entry for entry in list_catalogue(libraries)}
    for name in names:
        if name not in known:
            hint = suggest(name, known) or "; expected LIBRARY/NAME, such as timm/vgg11"
            raise SpectralError(f"unknown model {name!r}{hint}")
    return [known[name] for name in names]


def summarize_coverage(table: pd.DataFrame) -> str:
    """Say in one line what was found, and in one more what failed.

    Example:
        >>> summarize_coverage(survey_coverage([Entry("timm", "vgg", "timm/vgg11")], progress=False))[:44]
        '1 model of 1 architecture modules: 5 sites, '
    """
    done = table[table["error"] == ""]
    counts = [int(done[name].sum()) for name in ("sites", "measurable", "lossless", "unmeasurable")]
    modules = len(table[["library", "module"]].drop_duplicates())
    text = (
        f"{len(table)} model{'' if len(table) == 1 else 's'} of {modules} architecture modules: {counts[0]} "
        f"sites, {counts[1]} measurable, {counts[2]} lossless, {counts[3]} not measurable, in "
        f"{table['seconds'].sum():.0f} s"
    )
    failed = table.loc[table["error"] != "", "model"]
    return f"{text}; {len(failed)} failed" + (f": {', '.join(failed)}" if len(failed) else "")


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--library", "libraries", multiple=True, type=click.Choice(LIBRARIES), default=LIBRARIES,
              show_default=True, help="May be given several times.")  # fmt: skip
@click.option("--models", help="These instead of the representatives: timm/resnet18,torchvision/r3d_18.")
@click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
              help="Folder for tables/coverage.csv.")  # fmt: skip
@quiet_option
def main(libraries: tuple[str, ...], models: str | None, out: Path, quiet: bool) -> None:
    """Run the survey and write its table."""
    names = None if models is None else list(split_names(models, "--models"))
    entries = select_entries(libraries, names)
    path = out / "tables" / "coverage.csv"
    chosen = {"libraries": list(libraries), "models": names or "representatives"}
    refuse_other_tables([path], chosen)
    click.echo(f"coverage of {len(entries)} models of {', '.join(libraries)}, without weights")
    table = survey_coverage(entries, progress=not quiet)
    write_csv(table, path, {**chosen, **describe_environment()})
    click.echo(f"  {path}  ({len(table)} rows)\n{summarize_coverage(table)}")


def _discover(name: str) -> tuple[list[Site], Example]:
    """Find sites and global pools on the meta device, else on the CPU with random weights."""
    try:
        model, example = build_untrained(name, "meta")
        return find_reductions(model, example), example
    except Exception:  # what needs real tensors: boxes, control flow on values; the CPU decides
        model, example = build_untrained(name, "cpu")
        return find_reductions(model, example), example


def _count(found: Sequence[Site]) -> dict[str, Any]:
    sites = [site for site in found if site.op != "global_pool"]
    lossless = sum(site.lossless for site in sites)
    measurable = sum(site.measurable for site in sites)
    unmeasurable = [site for site in sites if not site.measurable and not site.lossless]
    # without sizes: a detector resizes to as many as it sees boxes
    reasons = Counter(
        re.sub(r"( from)? \d[\d×]* to \d[\d×]*", "", site.reason or "") for site in unmeasurable
    )
    kinds = Counter(site.op for site in sites)
    return {
        "sites": len(sites), "measurable": measurable, "lossless": lossless,
        "unmeasurable": len(unmeasurable),
        "reasons": "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common()),
        "kinds": "; ".join(f"{kind} {n}" for kind, n in kinds.most_common()),
        "global_pools": len(found) - len(sites),
    }  # fmt: skip


def _format_size(example: Example) -> str:
    return "x".join(map(str, example[0].shape if isinstance(example, list) else example))
