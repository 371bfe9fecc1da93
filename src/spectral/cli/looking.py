"""Commands that look at a network: sites, classify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import spectral
from spectral.cli.options import (
    PATH,
    ModelOptions,
    RunOptions,
    checked_by,
    format_size,
    json_option,
    model_options,
    silent_option,
)
from spectral.cli.output import write_printed
from spectral.files.atomic import require_place
from spectral.table.display import format_rows
from spectral.terminal.console import SpectralCommand

if TYPE_CHECKING:
    from torch import nn

    from spectral.models.info import ModelInfo


@click.command(cls=SpectralCommand)
@click.argument("model")
@click.option("--images", metavar="NAME|FILE",
              help="Look for them with the first of these, as for `spectral measure`.")  # fmt: skip
@model_options
@click.option("--csv", "csv_path", type=PATH, callback=checked_by(require_place),
              help="Write the table to this file.")  # fmt: skip
@json_option
@silent_option
def sites(
    model: str,
    images: str | None,
    network: ModelOptions,
    csv_path: Path | None,
    json_path: Path | None,
) -> None:
    """List the places where MODEL reduces spatial resolution.

    Strided convolutions, pools, blur pools, slices, resizes, windows and space-to-depth are found by one
    forward pass without data, in the order in which they run. The last column tells what a site's dense map
    is (what it would output with stride 1), which the measurements need, or why it has none. Places where the
    lattice gets finer again are listed below.

    \b
    Example:
      spectral sites timm/resnet50@random --size 224
    """
    import pandas as pd

    from spectral.measurement import describe_sites
    from spectral.table.csv_files import refuse_foreign_csv, write_csv

    # Where resolution drops doesn't depend on weights: none are downloaded.
    published = model.startswith(("timm/", "torchvision/")) and not set("@+") & set(model)
    bare = published and network.weights is None
    named = f"{model}@random" if bare else model
    net, info, shape, example = _load_with_example(network, named, images)
    found = spectral.find_reductions(net, example)
    records = describe_sites([site for site in found if site.op != "global_pool"])
    dense = sum(record["measurable"] for record in records)
    count = f"{len(records)} downsampling site{'' if len(records) == 1 else 's'}"
    pools = len(found) - len(records)
    click.echo(
        f"{model} at {format_size(shape)}: {count}, {dense} with a dense map; {pools} global "
        f"pool{'' if pools == 1 else 's'} apart"
    )
    if records:
        header = ["name", "op", "kernel", "stride", "input", "output", "channels", "dense map"]
        click.echo(format_rows(header, [_site_cells(record) for record in records]))
    finer = spectral.find_upsampling(net, example)
    if finer:
        click.echo(f"the lattice gets finer at {len(finer)} place{'' if len(finer) == 1 else 's'}")
        rows = [
            (p.name, p.op, *("x".join(map(str, n)) for n in (p.factor, p.input_size, p.output_size)))
            for p in finer
        ]
        click.echo(format_rows(["name", "op", "factor", "input", "output"], rows))
    if csv_path:
        table = pd.DataFrame(records)
        refuse_foreign_csv(csv_path, table)
        write_csv(table, csv_path)
    if json_path:
        content = {"model": model, "weights": info.weights_id, "size": shape, "sites": records}
        write_printed(content, json_path)


@click.command(cls=SpectralCommand)
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True,
              help="How many classes per image.")  # fmt: skip
@click.option("--resize", is_flag=True,
              help="Bring images to the model's size: resize the shorter side, crop the centre.")  # fmt: skip
@model_options
@json_option
@silent_option
def classify(
    model: str,
    images: tuple[Path, ...],
    top_k: int,
    resize: bool,
    network: ModelOptions,
    json_path: Path | None,
) -> None:
    """Say what MODEL sees in each IMAGE: its most probable classes.

    Images are converted to RGB and normalised as the model was trained. One that hasn't the model's size is
    refused, unless --resize brings it there. Where the names of the classes aren't known, they are called
    LABEL_0, LABEL_1 and so on.

    \b
    Example:
      spectral classify nula/robust photo.png --top-k 3 --resize
    """
    from spectral.classification import classify as classify_image

    net = network.load(model)
    info = spectral.model_info(net)
    assert info is not None
    found = []
    for path in images:
        predictions = classify_image(net, path, top_k, resize)
        found.append({"image": str(path), "predictions": predictions})
        if len(images) > 1:
            click.echo(f"{path}:")
        for one in predictions:
            click.echo(f"{one['label']}: {one['score']:.2%}")
    if json_path:
        content = {"model": model, "weights": info.weights_id, "size": info.preprocessing.size}
        write_printed({**content, "resize": resize, "images": found}, json_path)


def _load_with_example(
    network: ModelOptions, model: str, images: str | None
) -> tuple[nn.Module, ModelInfo, tuple[int, int], Any]:
    """Load a network, and what it is run on: the first of some images, or the size that it was made for."""
    from spectral.intake import Feed

    if images is None:
        net = network.load(model)
        info = spectral.model_info(net)
        assert info is not None
        return net, info, info.preprocessing.size, info.preprocessing.size
    net, info, pictures = network.load_with_images(model, RunOptions(images, limit=1))
    return net, info, info.preprocessing.size, Feed(net, pictures, caller="sites").example


def _site_cells(record: Mapping[str, Any]) -> list[str]:
    keys = ("name", "op", "kernel", "stride", "input_size", "output_size", "channels")
    return [*(str(record[key]) for key in keys), record["dense_map"] or f"none: {record['reason']}"]
