"""The command ``spectral``: sites, measure, compare, attribute, convert, train, study.

Whatever needs torch is imported inside a command (names of `spectral` load when first used), so that
``spectral --help`` answers at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import spectral
from spectral.console import (
    NOTHING,
    SpectralCommand,
    SpectralGroup,
    format_columns,
    format_mean,
    format_rows,
)
from spectral.errors import SpectralError
from spectral.study import StudyOptions, run_study, study_options

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SpectralCommand", "main"]


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``224`` or ``224x160``, height first."""
    if value is None:
        return None
    sides = value.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{value!r} is no size; expected a side (224) or height x width (224x160)")
    return int(sides[0]), int(sides[-1])


def _parse_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Read ``a,b,c``."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


_PATH = click.Path(path_type=Path)
_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, …")
_architecture = click.option(
    "--architecture", metavar="NAME", help="What a weights file without a JSON beside it is for."
)
_size = click.option(
    "--size",
    callback=_parse_size,
    metavar="N|HxW",
    help="Image size; by default the one that the model was made for.",
)


@click.group(
    cls=SpectralGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(spectral.__version__, prog_name="spectral")
def main() -> None:
    """Find where a vision network aliases, measure how much, and whether it matters.

    MODEL is bundled/NAME, timm/NAME, torchvision/NAME, antialiased/NAME, robustbench/NAME or nula/robust (any
    of them with @random behind for random weights, which needs no download) or the path of a weights file.

    \b
    Example:
      spectral sites timm/resnet50@random
    """


@main.command()
@click.argument("model")
@_size
@_architecture
@click.option("--csv", "csv_path", type=_PATH, help="Write the table to this file.")
@click.option("--json", "json_path", type=_PATH, help="Write it as JSON to this file.")
def sites(
    model: str,
    size: tuple[int, int] | None,
    architecture: str | None,
    csv_path: Path | None,
    json_path: Path | None,
) -> None:
    """List the places where MODEL reduces spatial resolution.

    Strided convolutions, pools, blur pools, slices, resizes, windows and space-to-depth are found by one
    forward pass without data, in the order in which they run. The last column tells what a site's dense map
    is (what it would output with stride 1), which the measurements need, or why it has none.

    \b
    Example:
      spectral sites timm/resnet50@random --size 224
    """
    import pandas as pd

    from spectral.measurement import describe_sites
    from spectral.table import write_csv, write_json

    net = spectral.load_model(model, architecture=architecture)
    info = spectral.model_info(net)
    assert info is not None
    shape = size or info.preprocessing.size
    found = spectral.find_reductions(net, shape)
    records = describe_sites([site for site in found if site.op != "global_pool"])
    dense = sum(record["measurable"] for record in records)
    count = f"{len(records)} downsampling site{'' if len(records) == 1 else 's'}"
    pools = len(found) - len(records)
    click.echo(
        f"{model} at {_by(shape)}: {count}, {dense} with a dense map; {pools} global "
        f"pool{'' if pools == 1 else 's'} apart"
    )
    if records:
        header = ["name", "op", "kernel", "stride", "input", "output", "channels", "dense map"]
        click.echo(format_rows(header, [_site_cells(record) for record in records]))
    if csv_path:
        write_csv(pd.DataFrame(records), csv_path)
    if json_path:
        content = {"model": model, "weights": info.weights_id, "size": shape, "sites": records}
        write_json(content, json_path)


@main.command()
@click.argument("model")
@click.option("--images", default="samples", show_default=True, metavar="NAME|DIR",
              help="samples, synthetic, stl10, cifar10, or a folder of images.")  # fmt: skip
@_size
@click.option("--limit", type=click.IntRange(min=1), help="At most this many images.")
@click.option("--metrics", callback=_parse_names, default="avr,am,sis", show_default=True, metavar="A,B,…",
              help="Any of avr, avr_separable, avr_exclude_dc, avr_hann, am, am_relative, alias_power_ratio, "
              "nonaliased, aliased, tangled, nopass, sis.")  # fmt: skip
@click.option("--taps", callback=_parse_names, default="input,dense", show_default=True, metavar="A,B",
              help="Where AVR is taken: input, dense, output.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_device
@_architecture
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops and choices of images.")
@click.option(
    "--out", type=_PATH, metavar="DIR", help="Keep all values here; continues what was interrupted."
)
def measure(
    model: str,
    images: str,
    size: tuple[int, int] | None,
    limit: int | None,
    metrics: tuple[str, ...],
    taps: tuple[str, ...],
    batch_size: int,
    device: str,
    architecture: str | None,
    seed: int,
    out: Path | None,
) -> None:
    """Measure aliasing at every downsampling site of MODEL.

    Prints means over images with half their 95 % intervals; silent maps are left out of them. With --out, the
    folder gets measurements/ (the values of every image, as Parquet), summary.csv, sites.csv and
    provenance.json, and the same command continues after an interruption.

    \b
    Example:
      spectral measure bundled/resnet20 --limit 100 --out runs/resnet20
    """
    from spectral.table import ensure_writable

    if out:
        ensure_writable(out)
    net = spectral.load_model(model, architecture=architecture, device=device)
    info = spectral.model_info(net)
    assert info is not None
    pictures = spectral.load_images(images, size=size or info.preprocessing.size, limit=limit, seed=seed)
    random = " (random weights, not trained)" if model.endswith("@random") else ""
    skipped = f"; {len(pictures.skipped)} broken file(s) skipped" if pictures.skipped else ""
    click.echo(
        f"measuring {model}, weights {info.weights_id}{random}, on {len(pictures)} images of "
        f"{pictures.source} at {_by(pictures.size or info.preprocessing.size)}{skipped}"
    )
    table = spectral.measure(
        net,
        pictures,
        metrics,
        taps=taps,  # type: ignore[arg-type] # measure checks the names
        batch_size=batch_size,
        out=out / "measurements" if out else None,
    )
    # Crops of one photograph aren't independent images.
    groups = dict(zip(pictures.ids, pictures.groups, strict=True)) if pictures.groups else None
    summary = spectral.summarize_measurements(table, groups=groups, seed=seed)
    _print_summary(summary, metrics, len(pictures))
    if out:
        _write_measurements(table, summary, out, {"seed": seed, "limit": limit, "skipped": pictures.skipped})
        resumed = table.attrs["resumed"]
        earlier = f", {resumed} of {len(pictures)} images measured earlier" if resumed else ""
        click.echo(f"\nwritten to {out}{earlier}")


@main.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL...")
@click.option("--images", default="samples", show_default=True, metavar="NAME|DIR",
              help="samples, synthetic, stl10, cifar10, or a folder of images.")  # fmt: skip
@_size
@click.option("--limit", type=click.IntRange(min=2), help="At most this many images.")
@click.option("--metrics", callback=_parse_names, default="avr,am,sis", show_default=True, metavar="A,B,…",
              help="As for `spectral measure`.")  # fmt: skip
@click.option("--taps", callback=_parse_names, default="input,dense", show_default=True, metavar="A,B",
              help="Where AVR is taken: input, dense, output.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_device
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops, choices and intervals.")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for compare.csv, compare.png and all values.")
def compare(
    models: tuple[str, ...],
    images: str,
    size: tuple[int, int] | None,
    limit: int | None,
    metrics: tuple[str, ...],
    taps: tuple[str, ...],
    batch_size: int,
    device: str,
    seed: int,
    out: Path | None,
) -> None:
    """Compare models with the first of them, site by site, on the same images.

    Only like sites are compared: those at the same resolution in the same order. Each model sees the pictures
    at its own size. Prints both means, their difference with its 95 % interval and the paired test,
    Holm-corrected over the sites; then SIS and how often the models give the same class. With --out, the
    folder gets the table (compare.csv), a figure (compare.png) and measurements/, and the same command
    continues after an interruption.

    \b
    Example:
      spectral compare bundled/resnet20 bundled/resnet20-blurpool bundled/resnet20+flc --limit 100
    """
    from spectral.study.compare import compare_models, format_comparison
    from spectral.table import describe_environment, ensure_writable, write_csv

    if len(models) < 2:
        raise click.UsageError(f"expected at least 2 models to compare, got {len(models)}")
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise click.UsageError(f"{twice[0]} is named twice; compare different models")
    if out:
        ensure_writable(out)
    nets = {name: spectral.load_model(name, device=device) for name in models}
    infos = {name: spectral.model_info(net) for name, net in nets.items()}
    sizes = {name: size or info.preprocessing.size for name, info in infos.items() if info}
    first = spectral.load_images(images, size=sizes[models[0]], limit=limit, seed=seed)
    pictures = {name: first if own == first.size else first.resized(own) for name, own in sizes.items()}
    shown = ", ".join(f"{name} at {_by(own)}" for name, own in sizes.items())
    click.echo(f"comparing {shown} on {len(first)} images of {first.source}; the reference is {models[0]}")
    table = compare_models(
        nets,
        pictures,
        metrics,
        taps=taps,  # type: ignore[arg-type] # measure checks the names
        batch_size=batch_size,
        out=out / "measurements" if out else None,
        seed=seed,
    )
    click.echo(f"\n{format_comparison(table)}")
    if out:
        options = {"images": first.source, "fingerprint": first.fingerprint, "seed": seed, "limit": limit}
        weights = {name: info.weights_id for name, info in infos.items() if info}
        facts = {"models": weights, **options, **describe_environment(), "device": device}
        write_csv(table, out / "compare.csv", facts)
        spectral.figures.draw_figure("compare", out, out)
        click.echo(f"\nwritten to {out}")


@main.command()
@click.argument("model")
@click.option("--images", default="samples", show_default=True, metavar="NAME|DIR",
              help="samples, synthetic, stl10, cifar10, or a folder of images.")  # fmt: skip
@_size
@click.option("--limit", type=click.IntRange(min=2), help="At most this many images.")
@click.option("--method", default="ideal", show_default=True, metavar="NAME",
              help="What each site is replaced by; ideal leaves nothing that could alias.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_device
@_architecture
@click.option("--seed", type=int, default=0, show_default=True, help="Of crops, choices and intervals.")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder for attribute.csv and equivariance.csv.")
def attribute(
    model: str,
    images: str,
    size: tuple[int, int] | None,
    limit: int | None,
    method: str,
    batch_size: int,
    device: str,
    architecture: str | None,
    seed: int,
    out: Path | None,
) -> None:
    """Find which sites of MODEL make its predictions unstable under shifts.

    Each site is replaced by an anti-aliasing layer by itself, the weights kept as they are, and then all of
    them together. Prints the change of SIS on the same images with half its 95 % interval and its paired
    test, Holm-corrected over the sites; negative: the site was to blame. Beside it, how many predictions stay
    the same, and how much accuracy changes on images with labels. With --out, the folder gets that table
    (attribute.csv), and how far each site's output fails to move with the image (equivariance.csv).

    \b
    Example:
      spectral attribute bundled/resnet20 --limit 100 --out runs/attribute
    """
    from spectral.stability import attribute_instability
    from spectral.study.stability import format_attribution, summarize_attribution
    from spectral.table import ensure_writable

    if out:
        ensure_writable(out)
    net = spectral.load_model(model, architecture=architecture, device=device)
    info = spectral.model_info(net)
    assert info is not None
    pictures = spectral.load_images(images, size=size or info.preprocessing.size, limit=limit, seed=seed)
    click.echo(
        f"attributing {model}, weights {info.weights_id}, on {len(pictures)} images of {pictures.source} at "
        f"{_by(pictures.size or info.preprocessing.size)}; sites replaced by {method}"
    )
    rows = attribute_instability(net, pictures, method, batch_size=batch_size)
    if rows.empty:
        first = rows.attrs["sites"][0]
        raise SpectralError(f"no site of {model} can be replaced; {first['name']!r}: {first['reason']}")
    # Crops of one photograph aren't independent images.
    groups = dict(zip(pictures.ids, pictures.groups, strict=True)) if pictures.groups else None
    summary = summarize_attribution(rows, groups, seed)
    click.echo(f"\n{format_attribution(summary)}")
    if out:
        facts = {"model": model, "weights": info.weights_id, "method": method, "limit": limit}
        facts |= {"images": pictures.source, "fingerprint": pictures.fingerprint, "seed": seed}
        _write_attribution(net, pictures, summary, groups, facts | {"device": device}, batch_size, out)


@main.command()
@click.argument("architecture", required=False)
@click.option("--from", "start", metavar="MODEL", help="Fine-tune MODEL instead of training from scratch.")
@click.option("--method", metavar="NAME",
              help="With --from: convert MODEL first, as `spectral convert` does.")  # fmt: skip
@click.option("--data", required=True, metavar="DIR|cifar10",
              help="cifar10, or a folder with train/ and test/, a subfolder per class in each.")  # fmt: skip
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="Folder for the weights.")
@click.option("--data-id", help="What tables call the data; by default the folder's name.")
@click.option("--recipe", "recipe_name", default="clean", show_default=True, metavar="NAME",
              help="clean, nula-robust (each image through a random resampling), fast-fgsm and pgd (on "
              "adversarial images), or am-paper. What follows changes single values of it.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), help="Of clean 20 by default, 3 with --from.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Of clean 256 by default.")
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True),
              help="Of clean 0.2 by default, 0.02 with --from.")  # fmt: skip
@click.option("--schedule", type=click.Choice(["one-cycle", "step"]), help="Of the learning rate.")
@click.option("--perturb", metavar="A,B,…", help="Each image goes through one of these: clean, resize-0.5, "
              "decimate-2, blur-decimate-2, checkerboard-0.05, …; one named twice is drawn twice as often."
              )  # fmt: skip
@click.option("--attack", type=click.Choice(["fgsm", "pgd"]), help="Train on adversarial images.")
@click.option("--epsilon", type=click.FloatRange(min=0, min_open=True),
              help="Of the attack, in pixels of [0, 1]; 8/255 by default.")  # fmt: skip
@click.option("--attack-steps", type=click.IntRange(min=1), help="Of pgd, 10 by default.")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True),
              help="Keep an average of the weights with this decay, such as 0.999.")  # fmt: skip
@click.option("--seed", type=int, help="Of the weights, order and augmentation; 0 by default.")
@_device
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]),
              help="auto by default: bf16 where the device multiplies it.")  # fmt: skip
def train(
    architecture: str | None,
    start: str | None,
    method: str | None,
    data: str,
    out: Path,
    data_id: str | None,
    recipe_name: str,
    perturb: str | None,
    device: str,
    **changes: Any,
) -> None:
    """Train one of this project's architectures, or fine-tune a network.

    SGD, crops and flips; on clean images, on perturbed ones (NULA) or on adversarial ones. Writes
    DIR/ARCHITECTURE.safetensors (with -robust, -fgsm or -pgd behind the name where it was trained so) and,
    beside it, the recipe, the data id and the test accuracy as JSON; `spectral measure` takes the former as
    MODEL. After every epoch the state is kept, and the same command continues after an interruption.
    resnet20, resnet20-blurpool, nula-w32 and preact-resnet18 are among the architectures.

    With --from a trained network keeps its weights and is tuned on, after --method has put an anti-aliasing
    layer in the place of its strides; the file is then called after both.

    \b
    Example:
      spectral train resnet20-blurpool --data cifar10 --out runs/checkpoints
      spectral train --from bundled/resnet20 --method flc --data cifar10 --out runs/tuned
      spectral train nula --recipe nula-robust --data cifar10 --device cuda --out runs/nula
    """
    from spectral.study.tuning import load_labelled_sets, name_architecture, train_checkpoint
    from spectral.table import ensure_writable
    from spectral.training import find_recipe

    if (architecture is None) == (start is None):
        raise click.UsageError("name an ARCHITECTURE to train, or a network to tune with --from, not both")
    if method and start is None:
        raise click.UsageError("--method goes with --from MODEL")
    defaults = {"epochs": 3, "max_lr": 0.02} if start and recipe_name == "clean" else {}
    if perturb is not None:
        changes["perturb"] = tuple(part.strip() for part in perturb.split(","))
    given = {key: value for key, value in changes.items() if value is not None}
    plan = find_recipe(recipe_name, **{**defaults, **given})
    ensure_writable(out)
    # An unknown name or device should fail before the images are read.
    asked = (f"{start}+{method}" if method else start) or f"bundled/{architecture}@random"
    net = spectral.load_model(asked, device=device)
    sets = load_labelled_sets(data, data_id)
    name = architecture or name_architecture(net)
    trained = plan.attack or ("robust" if plan.perturb else "")
    parts = [Path(start).stem, method or ("" if trained else "tuned")] if start else [name]
    stem = "-".join(part for part in (*parts, trained) if part)
    click.echo(
        f"training {stem} on {len(sets[0].images)} images of {sets[0].data_id}, testing on "
        f"{len(sets[1].images)}"
    )
    path = out / f"{stem}.safetensors"
    result = train_checkpoint(path, name, sets, plan, device, start=net if start else None)
    click.echo(f"test accuracy {result['test_accuracy']:.2%}; weights in {path}")


@main.command()
@click.argument("model")
@click.option("--method", required=True, metavar="NAME", help="blurpool, flc, asap, aps, wavelet, …")
@click.option("--out", type=_PATH, required=True, metavar="FILE",
              help="Weights file, ending in .safetensors.")  # fmt: skip
@click.option("--where", "where", multiple=True, metavar="SITES",
              help="A kind (conv, max_pool, …), a site's name or a pattern; several times for several. "
              "All that can be replaced by default.")  # fmt: skip
@click.option("--placement", type=click.Choice(["auto", "behind"]), default="auto", show_default=True,
              help="Behind the activation where the block allows it, or right behind the operator."
              )  # fmt: skip
@_size
@_architecture
def convert(
    model: str,
    method: str,
    out: Path,
    where: tuple[str, ...],
    placement: str,
    size: tuple[int, int] | None,
    architecture: str | None,
) -> None:
    """Put an anti-aliasing layer in the place of MODEL's strides and pools.

    Trained weights are kept; what was replaced, and why the rest wasn't, is printed. FILE can be given as
    MODEL to every other command. MODEL+METHOD does the same without a file.

    \b
    Example:
      spectral convert bundled/resnet20 --method flc --out resnet20-flc.safetensors
    """
    from spectral.models.checkpoint import save_checkpoint
    from spectral.study.tuning import name_architecture

    net = spectral.load_model(model, architecture=architecture)
    info = spectral.model_info(net)
    assert info is not None
    chosen = None if not where else where[0] if len(where) == 1 else list(where)
    shape = size or info.preprocessing.size
    smooth = spectral.convert(net, method, chosen, placement, example=shape)
    report = spectral.conversion_report(smooth)
    click.echo(str(report))
    if not report.replaced:
        raise SpectralError(
            f"nothing was replaced in {model}, so nothing is written; choose sites with --where"
        )
    metadata = {
        "architecture": name_architecture(net, architecture), "family": info.family,
        "converted_from": info.name, "mean": info.preprocessing.mean, "std": info.preprocessing.std,
        "size": shape, "classes": info.classes, "conversion": report.to_dict(),
    }  # fmt: skip
    known = {key: value for key, value in metadata.items() if value is not None}
    path = save_checkpoint(smooth, out, known)
    click.echo(f"weights in {path}")


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=_PATH, metavar="IMAGE...")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True,
              help="How many classes per image.")  # fmt: skip
@click.option("--resize", is_flag=True,
              help="Bring images to the model's size: resize the shorter side, crop the centre.")  # fmt: skip
@_device
@_architecture
@click.option("--json", "json_path", type=_PATH, help="Write the labels and scores to this file.")
def classify(
    model: str,
    images: tuple[Path, ...],
    top_k: int,
    resize: bool,
    device: str,
    architecture: str | None,
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
    from spectral.table import ensure_writable, write_json

    if json_path:
        ensure_writable(json_path.parent)
    net = spectral.load_model(model, architecture=architecture, device=device)
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
        write_json({**content, "resize": resize, "images": found}, json_path)


@main.command()
@click.argument("phases", nargs=-1, type=int, metavar="[PHASE]...")
@study_options
def study(phases: Sequence[int], options: StudyOptions) -> None:
    """Run the study's phases: tables and figures.

    Phases 1 to 5 run by default: a strided network, one with BlurPool and NULA are compared on the same
    images. Phase 6 puts networks under NULA's perturbations, phase 7 compares anti-aliasing layers in one
    network, phase 8 surveys architectures, phase 9 sets aliasing against robustness; --models takes any
    number in 6, 8 and 9. What one phase measures the others read, and the same command continues after an
    interruption.

    \b
    Example:
      spectral study --limit 200 --out results
      spectral study 3 4
      spectral study 8 --models timm/resnet18@random,timm/vgg11_bn@random
    """
    run_study(phases, options)


def _site_cells(record: Mapping[str, Any]) -> list[str]:
    keys = ("name", "op", "kernel", "stride", "input_size", "output_size", "channels")
    return [*(str(record[key]) for key in keys), record["dense_map"] or f"none: {record['reason']}"]


def _print_summary(summary: pd.DataFrame, metrics: Sequence[str], images: int) -> None:
    """Print means at the sites, means of the whole model, and what could not be measured."""
    measured = summary[summary["reason"] == ""]
    at_sites, whole = measured[measured["site"] != ""], measured[measured["site"] == ""]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    silent: Counter[tuple[str, ...]] = Counter()
    for row in at_sites.to_dict("records"):
        place = tuple(str(row[key]) for key in ("site", "op", "stride", "tap"))
        rows.setdefault(place, {})[row["metric"]] = _format_row(row)
        silent[place] = max(silent[place], row["n_silent"])
    click.echo(f"\nmean over {images} images ± half its 95 % interval")
    if rows:
        metrics = [metric for metric in metrics if metric in set(at_sites["metric"])]
        extra = ["silent"] if any(silent.values()) else []
        cells = [
            [
                *place,
                *(str(silent[place]) for _ in extra),
                *(means.get(metric, NOTHING) for metric in metrics),
            ]
            for place, means in rows.items()
        ]
        header = ["site", "op", "stride", "tap", *extra]
        click.echo(format_columns([*header, *metrics], cells, len(header)))
    for row in whole.to_dict("records"):
        click.echo(f"whole model: {row['metric']} {_format_row(row)}")
    for row in summary[summary["reason"] != ""].to_dict("records"):
        click.echo(f"not measured: {row['site']} ({row['op']}): {row['reason']}")


def _format_row(row: Mapping[Hashable, Any]) -> str:
    return format_mean(row["mean"], row["ci_low"], row["ci_high"]) if row["n"] else "silent"


def _write_measurements(
    table: pd.DataFrame, summary: pd.DataFrame, out: Path, options: Mapping[str, Any]
) -> None:
    import pandas as pd

    from spectral.table import write_csv, write_json

    write_csv(summary, out / "summary.csv")
    write_csv(pd.DataFrame(table.attrs["sites"]), out / "sites.csv")
    write_json({**table.attrs["provenance"], **options}, out / "provenance.json")


def _write_attribution(
    net: Any,
    pictures: Any,
    summary: pd.DataFrame,
    groups: Mapping[str, str] | None,
    facts: Mapping[str, Any],
    batch_size: int,
    out: Path,
) -> None:
    """Write what was printed, and the equivariance of each site's output."""
    from spectral.stability import measure_equivariance
    from spectral.study.stability import summarize_equivariance
    from spectral.table import describe_environment, write_csv

    moved = measure_equivariance(net, pictures, batch_size=batch_size)
    tables = {"attribute": summary, "equivariance": summarize_equivariance(moved, groups, int(facts["seed"]))}
    for name, table in tables.items():
        table.insert(0, "model", facts["model"])
        write_csv(table, out / f"{name}.csv", {**facts, **describe_environment()})
    click.echo(f"\nwritten to {out}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
