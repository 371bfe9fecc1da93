"""Commands that make networks: train, convert."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import spectral
from spectral.cli.options import PATH, ModelOptions, RunOptions, json_option, model_options
from spectral.cli.output import write_printed
from spectral.errors import SpectralError
from spectral.processes.launch import choose_device, find_launch
from spectral.terminal.console import SpectralCommand, quiet_option, workers_option


def remedy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add to a command what can be changed of a network beside its decimations."""
    activations = click.option(
        "--activations", metavar="NAME",
        help="alias-free, alias-free-4, alias-free-filtered or alias-free-polynomial: activations on a finer "
        "lattice.",
    )  # fmt: skip
    padding = click.option(
        "--padding",
        metavar="NAME",
        help="circular, replicate or reflect: borders of maps instead of zeros; or partial.",
    )
    upsampling = click.option(
        "--upsampling", metavar="NAME", help="ideal or binomial: a low-pass wherever a lattice gets finer."
    )
    return activations(padding(upsampling(command)))


@click.command(cls=SpectralCommand, ranks="share")
@click.argument("named", required=False, metavar="[ARCHITECTURE]")
@click.option("--from", "start", metavar="MODEL", help="Fine-tune MODEL instead of training from scratch.")
@click.option("--method", metavar="NAME",
              help="Put this layer in the place of strides first, as `spectral convert` does.")  # fmt: skip
@remedy_options
@click.option("--data", required=True, metavar="DIR|cifar10",
              help="cifar10, or a folder with train/ and test/, a subfolder per class in each.")  # fmt: skip
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for the weights.")
@click.option("--data-id", help="What tables call the data; by default the folder's name.")
@click.option("--recipe", "recipe_name", default="clean", show_default=True, metavar="NAME",
              help="clean, nula-robust and nula-robust-v1 (each image through a random resampling), "
              "fast-fgsm and pgd (on adversarial images), or am-paper. What follows changes single values "
              "of it.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), help="Of clean 20 by default, 3 with --from.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Of clean 256 by default.")
@click.option("--max-lr", type=click.FloatRange(min=0, min_open=True),
              help="Of clean 0.2 by default, 0.02 with --from.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="Of clean sgd by default.")
@click.option("--schedule", type=click.Choice(["one-cycle", "step"]), help="Of the learning rate.")
@click.option("--warmup-epochs", type=click.IntRange(min=1),
              help="How long the rate of one-cycle rises; a quarter of the epochs by default.")  # fmt: skip
@click.option("--perturb", metavar="A,B,…", help="Each image goes through one of these: clean, resize-0.5, "
              "resize-0.2:0.6 (a scale per image), decimate-2, blur-decimate-2, checkerboard-0.05, …; one "
              "named twice is drawn twice as often.")  # fmt: skip
@click.option("--jitter", type=click.FloatRange(0, 1),
              help="First add uniform noise within ± so much to every pixel in [0, 1].")  # fmt: skip
@click.option("--attack", type=click.Choice(["fgsm", "pgd"]), help="Train on adversarial images.")
@click.option("--epsilon", type=click.FloatRange(min=0, min_open=True),
              help="Of the attack, in pixels of [0, 1]; 8/255 by default.")  # fmt: skip
@click.option("--attack-steps", type=click.IntRange(min=1), help="Of pgd, 10 by default.")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True),
              help="Keep an average of the weights with this decay, such as 0.999.")  # fmt: skip
@click.option("--seed", type=int, help="Of the weights, order and augmentation; 0 by default.")
@model_options
@quiet_option
@json_option
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]),
              help="auto by default: bf16 where the device multiplies it.")  # fmt: skip
def train(
    named: str | None,
    start: str | None,
    method: str | None,
    activations: str | None,
    padding: str | None,
    upsampling: str | None,
    data: str,
    out: Path,
    data_id: str | None,
    recipe_name: str,
    perturb: str | None,
    network: ModelOptions,
    quiet: bool,
    json_path: Path | None,
    **changes: Any,
) -> None:
    """Train one of this project's architectures, or fine-tune a network.

    SGD, crops and flips; on clean images, on perturbed ones (NULA) or on adversarial ones. Writes
    DIR/ARCHITECTURE.safetensors (with -robust, -fgsm or -pgd behind the name where it was trained so) and,
    beside it, the recipe, the data id and the test accuracy as JSON; `spectral measure` takes the former as
    MODEL. After every epoch the state is kept, and the same command continues after an interruption.
    resnet20, resnet20-blurpool, nula-w32 and preact-resnet18 are among the architectures.

    --method, --activations and --padding convert the network before it is trained; the file is called after
    them. With --from a trained network keeps its weights and is tuned on.

    \b
    Example:
      spectral train resnet20-blurpool --data cifar10 --out runs/checkpoints
      spectral train resnet20 --activations alias-free --padding circular --data cifar10 --out runs/steady
      spectral train --from bundled/resnet20 --method flc --data cifar10 --out runs/tuned
      spectral train nula --recipe nula-robust --data cifar10 --device cuda --out runs/nula
    """
    from spectral.files.atomic import ensure_writable
    from spectral.models.architectures import name_architecture
    from spectral.surgery import check_remedies
    from spectral.training import find_recipe
    from spectral.training.checkpoints import convert_fresh, load_labelled_sets, train_checkpoint

    if (named is None) == (start is None):
        raise click.UsageError("name an ARCHITECTURE to train, or a network to tune with --from, not both")
    defaults = {"epochs": 3, "max_lr": 0.02} if start and recipe_name == "clean" else {}
    if perturb is not None:
        changes["perturb"] = tuple(part.strip() for part in perturb.split(","))
    given = {key: value for key, value in changes.items() if value is not None}
    plan = find_recipe(recipe_name, **{**defaults, **given})
    ensure_writable(out)
    check_remedies(activations, padding, upsampling)
    # An unknown name or device should fail before the images are read.
    changed = [part for part in (method, activations, padding, upsampling and f"up-{upsampling}") if part]
    asked = "+".join([start or f"bundled/{named}@random", *changed])
    if start is None and network != ModelOptions(device=network.device):
        raise click.UsageError(
            "--weights, --classes, --input-size, --mean, --std and --architecture say what the network of "
            "--from is; without --from only --device"
        )
    net = network.load(asked)
    sets = load_labelled_sets(data, data_id)
    name = named or name_architecture(net)
    trained = plan.attack or ("robust" if plan.perturb else "")
    parts = [Path(start).stem, *(changed or ["" if trained else "tuned"])] if start else [name, *changed]
    stem = "-".join(part for part in (*parts, trained) if part)
    begin = net if start else convert_fresh(name, net, plan.seed) if changed else None
    click.echo(
        f"training {stem} on {len(sets[0].images)} images of {sets[0].data_id}, testing on "
        f"{len(sets[1].images)}"
    )
    path, device = out / f"{stem}.safetensors", choose_device(network.device)
    _refuse_json(json_path, path)
    result = train_checkpoint(path, name, sets, plan, device, start=begin, progress=not quiet)
    if json_path and find_launch().first:
        write_printed({"model": stem, "weights_file": str(path), **result}, json_path)
    click.echo(f"test accuracy {result['test_accuracy']:.2%}; weights in {path}")


def _refuse_json(json_path: Path | None, weights: Path) -> None:
    """Refuse to write JSON of one's own where that of a weights file stands, without which it can't be read.

    Raises:
        SpectralError: if it would.
    """
    beside = weights.with_suffix(".json")
    if json_path is not None and json_path.absolute() == beside.absolute():
        raise SpectralError(f"--json: {beside} is what describes the weights; choose another file")


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE: a Python value where it is one, text otherwise.

    Raises:
        SpectralError: if there is no name or no value.

    Example:
        >>> read_options(["kernel_size=5", "wavelet=db2", "ceil_mode=True"])
        {'kernel_size': 5, 'wavelet': 'db2', 'ceil_mode': True}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value:
            raise SpectralError(f"--option: expected NAME=VALUE, such as kernel_size=5, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


@click.command(cls=SpectralCommand)
@click.argument("model")
@click.option("--method", metavar="NAME", help="blurpool, flc, asap, aps, wavelet, …")
@remedy_options
@click.option("--out", type=PATH, required=True, metavar="FILE",
              help="Weights file, ending in .safetensors.")  # fmt: skip
@click.option("--where", "where", multiple=True, metavar="SITES",
              help="A kind (conv, max_pool, …), a site's name or a pattern; several times for several. "
              "All that can be replaced by default.")  # fmt: skip
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE",
              help="An option of the layer, such as kernel_size=5; several times for several.")  # fmt: skip
@click.option("--calibrate", metavar="IMAGES",
              help="Fit weights and norm statistics again on these images, no labels needed; or on inputs as "
              "they are: a .npy or .npz file, or my_data.py:load.")  # fmt: skip
@click.option("--distill", "steps", type=click.IntRange(min=1), metavar="STEPS",
              help="Then tune its norms on the same images for so many steps (40 are a good start), until it "
              "says what MODEL says; some are left out, and what does best on them is kept.")  # fmt: skip
@workers_option
@click.option("--placement", type=click.Choice(["auto", "behind"]), default="auto", show_default=True,
              help="Behind the activation where the block allows it, or right behind the operator."
              )  # fmt: skip
@model_options
@quiet_option
@json_option
def convert(
    model: str,
    method: str | None,
    activations: str | None,
    padding: str | None,
    upsampling: str | None,
    out: Path,
    where: tuple[str, ...],
    options: tuple[str, ...],
    calibrate: str | None,
    steps: int | None,
    workers: int | None,
    placement: str,
    network: ModelOptions,
    quiet: bool,
    json_path: Path | None,
) -> None:
    """Put an anti-aliasing layer in the place of MODEL's strides and pools, and mend activations and borders.

    Trained weights are kept; what was replaced, and why the rest wasn't, is printed. FILE can be given as
    MODEL to every other command; that of a network of your own with --architecture my_net.py:build beside it.
    MODEL+METHOD does the same without a file, and so does MODEL+METHOD+ACTIVATIONS+PADDING, any of them left
    out. What a conversion takes from a network's accuracy,
    --calibrate and --distill give back in part; an interrupted --distill goes on with the same command. A
    FILE that is there is written again by the same command, and refused by any other.

    \b
    Example:
      spectral convert bundled/resnet20 --method flc --out resnet20-flc.safetensors
      spectral convert timm/resnet50 --method blurpool --calibrate photos --out r50.safetensors
      spectral convert timm/resnet50 --method flc --calibrate photos --distill 40 --out r50.safetensors
      spectral convert my_net.py:build --method flc --calibrate signals.npz --out smooth.safetensors
      spectral convert bundled/resnet20 --activations alias-free --padding circular --out r20.safetensors
    """
    from spectral.data import find_example
    from spectral.files.training_state import remove_state
    from spectral.files.writers import claim_file
    from spectral.identity import identify_network
    from spectral.models.architectures import name_architecture
    from spectral.models.checkpoint import MADE, refuse_other_checkpoint, save_checkpoint
    from spectral.repair.distillation import FITTED_LR, HELD_OUT, STATE_NAME

    if out.suffix != ".safetensors":
        raise click.UsageError(f"--out: a weights file's name must end in .safetensors, got {str(out)!r}")
    if not (method or activations or padding or upsampling):
        raise click.UsageError(
            "nothing is asked for; give --method, --activations, --padding or --upsampling"
        )
    if steps is not None and calibrate is None:
        raise click.UsageError("--distill needs images: name them with --calibrate")
    out = out.expanduser()
    _refuse_json(json_path, out)
    click.get_current_context().with_resource(claim_file(out))
    if calibrate is None:
        net, pictures = network.load(model), None
    else:
        net, _, pictures = network.load_with_images(model, RunOptions(calibrate, workers=workers))
    info = spectral.model_info(net)
    assert info is not None
    made = {
        "model": info.name, **identify_network(net), "method": method, "activations": activations,
        "padding": padding, "upsampling": upsampling, "where": where, "options": options,
        "placement": placement, "distill": steps,
        "images": None if pictures is None else f"{pictures.source}@{pictures.fingerprint}",
    }  # fmt: skip
    refuse_other_checkpoint(out, made)
    chosen = None if not where else where[0] if len(where) == 1 else list(where)
    shape, given = info.preprocessing.size, find_example(pictures)
    smooth = spectral.convert(
        net, method, chosen, placement, example=shape if given is None else given, activations=activations,
        padding=padding, upsampling=upsampling, **read_options(options),
    )  # fmt: skip
    report = spectral.conversion_report(smooth)
    click.echo(str(report))
    if json_path:
        write_printed({"model": model, "weights": info.weights_id, **report.to_dict()}, json_path)
    if not report.changes:
        raise SpectralError(
            f"nothing was replaced in {model}, so nothing is written; choose sites with --where"
        )
    if calibrate is not None:
        held_out = HELD_OUT if steps is not None else 0  # what distillation is judged on nothing is fitted to
        smooth = spectral.reconstruct(smooth, pictures, held_out=held_out, inplace=True)
    state = out.parent / "training" / out.stem
    if steps is not None:
        found: list[tuple[int, float]] = []
        smooth = spectral.distill(
            smooth, pictures, teacher=net, steps=steps, max_lr=FITTED_LR, tune="norms", out=state,
            on_check=lambda *one: found.append(one), progress=not quiet,
        )  # fmt: skip
        if found:
            at, least = min(found, key=lambda one: one[1])
            click.echo(
                f"divergence from {model} on images left out: {found[0][1]:.3g} before, {found[-1][1]:.3g} "
                f"after {steps} steps; kept as after {at}, with {least:.3g}"
            )
    metadata = {
        "architecture": name_architecture(net), "family": info.family,
        "converted_from": info.name, "mean": info.preprocessing.mean, "std": info.preprocessing.std,
        "size": shape, "classes": info.classes, "num_classes": info.metadata.get("num_classes"),
        "conversion": report.to_dict(), MADE: made,
    }  # fmt: skip
    known = {key: value for key, value in metadata.items() if value is not None}
    path = save_checkpoint(smooth, out, known)
    if steps is not None:  # without, it is another command's, which goes on
        remove_state(state / STATE_NAME)  # the checkpoint takes its place
    click.echo(f"weights in {path}")
