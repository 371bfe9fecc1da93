"""Commands that measure networks on images: measure, compare, attribute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

import spectral
from spectral.cli.finished import Answer
from spectral.cli.options import (
    ModelOptions,
    RunOptions,
    batch_size_option,
    describe_images,
    format_size,
    images_option,
    parse_names,
    run_options,
)
from spectral.cli.output import draw, write_rows
from spectral.errors import SpectralError
from spectral.processes.launch import find_launch
from spectral.table.schema import SCALE_FREE
from spectral.terminal.console import SpectralCommand, hold_folder

ATTRIBUTION, EQUIVARIANCE, COMPARISON = "attribute.csv", "equivariance.csv", "compare.csv"


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("model")
@images_option
@click.option("--limit", type=click.IntRange(min=1), help="At most this many images.")
@click.option("--metrics", callback=parse_names, metavar="A,B,…",
              show_default="avr, am, the headlines and sis where there are",
              help="Any of avr, avr_separable, avr_exclude_dc, avr_separable_exclude_dc, avr_hann, am, "
              "am_relative, alias_power_ratio, alias_power_ratio_channel_median, …_channel_p90, "
              "…_white_noise (the headlines), nonaliased, aliased, tangled, nopass, sis.")  # fmt: skip
@click.option("--taps", callback=parse_names, default="input,dense", show_default=True, metavar="A,B",
              help="Where AVR is taken: input, dense, signal, output.")  # fmt: skip
@batch_size_option
@run_options(
    seed="Of crops and choices of images.", out="Keep all values here; continues what was interrupted."
)
def measure(
    model: str,
    metrics: tuple[str, ...] | None,
    taps: tuple[str, ...],
    batch_size: int,
    network: ModelOptions,
    run: RunOptions,
) -> None:
    """Measure aliasing at every downsampling site of MODEL.

    Prints means over images with half their 95 % intervals, or both ends of lopsided ones; silent maps are
    left out of them. With --out, the folder gets measurements/ (the values of every image, as Parquet),
    summary.csv, sites.csv and provenance.json, and the same command continues after an interruption.

    \b
    Example:
      spectral measure bundled/resnet20 --limit 100 --out runs/resnet20
    """
    out = run.out
    if out:
        hold_folder(out)
    answer = Answer(out, run.images)
    if answer.repeat():
        return
    from spectral.runs.folder import holds_run
    from spectral.runs.summary import SITES_TABLE, SUMMARY_FILE
    from spectral.table.csv_files import PROVENANCE, refuse_other_tables

    net, info, pictures = network.load_with_images(model, run, lazily=True)
    answer.depend_on(model, info)
    random = " (random weights, not trained)" if model.endswith("@random") else ""
    broken = _list_skipped(pictures)
    skipped = f"; {len(broken)} broken file(s) skipped" if broken else ""
    if out and not holds_run(out / "measurements"):  # which says what its tables are of
        asked = {"model": info.name, "weights": info.weights_id, "images": pictures.source, "seed": run.seed,
                 "limit": run.limit, "taps": sorted(set(taps)),
                 **({"metrics": sorted(set(metrics))} if metrics else {})}  # fmt: skip
        refuse_other_tables([out / SUMMARY_FILE, out / SITES_TABLE], asked, out / PROVENANCE)
    answer.say(
        f"measuring {model}, weights {info.weights_id}{random}, on {describe_images(pictures)}{skipped}"
    )
    table = spectral.measure(
        net,
        pictures,
        metrics,
        taps=taps,  # type: ignore[arg-type] # measure checks the names
        batch_size=batch_size,
        progress=not run.quiet,
        out=out / "measurements" if out else None,
    )
    if not find_launch().first:
        return  # the first rank writes for all
    from spectral.measurement import DEFAULT_METRICS
    from spectral.runs.lineage import RUNS, list_runs
    from spectral.runs.summary import describe_summary, write_summary

    summary = spectral.summarize_measurements(table)
    answer.say(f"\n{describe_summary(summary, list(metrics or DEFAULT_METRICS)).text()}")
    wrote: list[Path] = []
    if out:
        runs = {RUNS: list_runs(out / "measurements", out)}
        facts = {"seed": run.seed, "limit": run.limit, "skipped": _list_skipped(pictures), **runs}
        wrote += [out / "measurements", *write_summary(summary, table, out, facts)]
        readable = pictures.readable() if isinstance(pictures, spectral.ImageSet) else pictures
        answer.say(
            f"\nwritten to {out}{_say_earlier(table.attrs['resumed'], pictures)}",
            again=f"\nwritten to {out}{_say_earlier(len(readable), pictures)}",
        )
    if run.json_path:  # last, to see what was written
        about = {"model": model, "weights": info.weights_id, "seed": run.seed, **_name_images(pictures)}
        write_rows(summary, run.json_path, about)
    answer.keep(*wrote, run.json_path)


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("models", nargs=-1, metavar="MODEL MODEL...")
@images_option
@click.option("--limit", type=click.IntRange(min=2), help="At most this many images.")
@click.option("--metrics", callback=parse_names, default=",".join(SCALE_FREE), show_default=True,
              metavar="A,B,…",
              help="As for `spectral measure`; ratios of powers are compared in dB.")  # fmt: skip
@click.option("--taps", callback=parse_names, default="input,dense,signal", show_default=True, metavar="A,B",
              help="Where AVR is taken: input, dense, signal, output.")  # fmt: skip
@batch_size_option
@run_options(
    seed="Of crops, choices and intervals.", out="Folder for compare.csv, compare.png and all values."
)
def compare(
    models: tuple[str, ...],
    metrics: tuple[str, ...],
    taps: tuple[str, ...],
    batch_size: int,
    network: ModelOptions,
    run: RunOptions,
) -> None:
    """Compare models with the first of them, site by site, on the same images.

    Only like sites are compared, each once: those at the same resolution in the same order, or the same sites
    of a network and its converted twin. Each model sees the pictures at its own size. Prints both sites, both
    means, their difference with its 95 % interval and the paired test, Holm-corrected over the whole table;
    then why they were paired, SIS and how often the models give the same class. With --out, the
    folder gets the table (compare.csv), a figure (compare.png) and measurements/, and the same command
    continues after an interruption.

    \b
    Example:
      spectral compare bundled/resnet20 bundled/resnet20-blurpool bundled/resnet20+flc --limit 100
    """
    if len(models) < 2:
        raise click.UsageError(f"expected at least 2 models to compare, got {len(models)}")
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise click.UsageError(f"{twice[0]} is named twice; compare different models")
    out = run.out
    if out:
        hold_folder(out, run.images)
    if network.weights is not None:
        raise click.UsageError("--weights is for one model; with several name each one's file as MODEL@FILE")
    answer = Answer(out, run.images)
    if answer.repeat():
        return
    from spectral.analysis import compare_models
    from spectral.cli.comparison import format_comparison
    from spectral.runs.lineage import RUNS, list_runs
    from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csvs

    nets, pictures = network.load_all(models, run, lazily=True)
    infos = {name: spectral.model_info(net) for name, net in nets.items()}
    for name, info in infos.items():
        answer.depend_on(name, info)
    first = pictures[models[0]]
    compared = {
        "reference": models[0], "models": {name: info.weights_id for name, info in infos.items() if info},
        "images": first.source, "seed": run.seed, "limit": run.limit, "metrics": sorted(metrics),
        "taps": sorted(taps),
    }  # fmt: skip
    if out:
        refuse_other_tables([out / COMPARISON], compared)
    sizes = {name: f" at {format_size(own.size)}" if own.size else "" for name, own in pictures.items()}
    shown = ", ".join(f"{name}{size}" for name, size in sizes.items())
    answer.say(f"comparing {shown} on {len(first)} images of {first.source}; the reference is {models[0]}")
    table = compare_models(
        nets,
        pictures,
        metrics,
        taps=taps,  # type: ignore[arg-type] # measure checks the names
        batch_size=batch_size,
        progress=not run.quiet,
        out=out / "measurements" if out else None,
    )
    if not find_launch().first:
        return  # the first rank writes for all
    answer.say(f"\n{format_comparison(table)}")
    wrote: list[Path] = []
    if out:
        compared["fingerprint"] = first.fingerprint  # known now that all of them have been read
        refuse_other_tables([out / COMPARISON], compared)
        runs = {RUNS: list_runs(out / "measurements", out)}
        facts = {**compared, **describe_environment(), "device": network.device, **runs}
        tables = write_csvs({out / COMPARISON: table}, facts)
        drawn, said = draw("compare", out)
        answer.say(said)
        wrote += [out / "measurements", *tables, *drawn]
    if run.json_path:
        write_rows(table, run.json_path, {"models": list(models), **_name_images(first), "seed": run.seed})
    answer.keep(*wrote, run.json_path)


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("model")
@images_option
@click.option("--limit", type=click.IntRange(min=2), help="At most this many images.")
@click.option("--method", default="ideal", show_default=True, metavar="NAME",
              help="How sites are altered; ideal takes away what would fold, and nothing else.")  # fmt: skip
@batch_size_option
@run_options(seed="Of crops, choices and intervals.", out="Folder for attribute.csv and equivariance.csv.")
def attribute(
    model: str,
    method: str,
    batch_size: int,
    network: ModelOptions,
    run: RunOptions,
) -> None:
    """Find which sites of MODEL make its predictions unstable under shifts.

    Of each site's own dense map what would fold is taken away before it is decimated, the weights kept as
    they are: of one site alone, of all that decimate alike in its block, and of it last, when all others are
    altered. Prints the change of SIS on the same images with half its 95 % interval (both ends of a lopsided
    one) and its paired test, Holm-corrected over the table; negative: the site was to blame. Beside it, how
    many predictions stay the same (where too few do, no test is made), and how much accuracy changes on
    images with labels. With --out, the folder gets that table (attribute.csv), and how far each site's output
    fails to move with the image (equivariance.csv).

    \b
    Example:
      spectral attribute bundled/resnet20 --limit 100 --out runs/attribute
    """
    out = run.out
    if out:
        hold_folder(out)
    answer = Answer(out, run.images)
    if answer.repeat():
        return
    from spectral.analysis import summarize_attribution, summarize_equivariance
    from spectral.cli.output import format_attribution
    from spectral.identity import identify_network
    from spectral.stability import attribute_instability, measure_equivariance
    from spectral.table.csv_files import describe_environment, refuse_other_tables, write_csvs

    net, info, pictures = network.load_with_images(model, run, lazily=True)
    answer.depend_on(model, info)
    facts = {"model": info.name, **identify_network(net), "method": method, "limit": run.limit,
             "images": pictures.source, "seed": run.seed}  # fmt: skip
    places = [out / ATTRIBUTION, out / EQUIVARIANCE] if out else []
    refuse_other_tables(places, facts)
    answer.say(
        f"attributing {model}, weights {info.weights_id}, on {describe_images(pictures)}; sites altered by "
        f"{method}"
    )
    rows = attribute_instability(net, pictures, method, batch_size=batch_size, progress=not run.quiet)
    if rows.empty:
        first = rows.attrs["sites"][0]
        raise SpectralError(f"no site of {model} can be altered; {first['name']!r}: {first['reason']}")
    moved = (
        measure_equivariance(net, pictures, batch_size=batch_size, progress=not run.quiet) if out else None
    )
    if not find_launch().first:
        return  # the first rank writes for all
    summary = summarize_attribution(rows)
    answer.say(f"\n{format_attribution(summary)}")
    wrote: list[Path] = []
    if moved is not None:
        facts["fingerprint"] = pictures.fingerprint  # known now that all of them have been read
        refuse_other_tables(places, facts)
        tables = dict(zip(places, (summary, summarize_equivariance(moved)), strict=True))
        for table in tables.values():
            table.insert(0, "model", info.name)
        wrote += write_csvs(tables, {**facts, **describe_environment(), "device": network.device})
        answer.say(f"\nwritten to {out}")
    if run.json_path:
        about = {"model": model, "weights": info.weights_id, "method": method, **_name_images(pictures)}
        write_rows(summary, run.json_path, {**about, "seed": run.seed})
    answer.keep(*wrote, run.json_path)


def _say_earlier(count: int, images: Any) -> str:
    return f", {count} of {len(images)} images measured earlier" if count else ""


def _name_images(images: Any) -> dict[str, Any]:
    """Say which images a result is of: those that could be read."""
    if isinstance(images, spectral.ImageSet):
        images = images.readable()
    return {"images": images.source, "fingerprint": images.fingerprint, "count": len(images)}


def _list_skipped(images: Any) -> list[tuple[str, str]]:
    """List the files that could not be read, as far as that is known by now."""
    return list(images.readable().skipped) if isinstance(images, spectral.ImageSet) else []
