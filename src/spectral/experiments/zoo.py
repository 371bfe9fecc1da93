"""Train the zoo: networks alike but for their downsampling and their training, plain or adversarial.

What phase 9 compares. The small ones come with this project and train on a CPU; the full ones have the
published sizes and want a GPU. What starts from another network comes after it. A checkpoint that is there
is left alone, and the same command continues after an interruption.

Example: python experiments/train_zoo.py --data cifar10 --only resnet20,resnet20-fgsm --out data/checkpoints
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import click
from torch import nn

from spectral.analysis.robustness import ATTACKED, CONTROL
from spectral.errors import SpectralError, suggest
from spectral.experiments.tuning import TUNING, ensure_checkpoint, name_tuned
from spectral.files.atomic import ensure_writable
from spectral.models import list_bundled, load_model, model_info
from spectral.surgery import convert
from spectral.terminal.console import FilePath, SpectralCommand, device_option, split_names
from spectral.training import RECIPES, Recipe
from spectral.training.checkpoints import LabelledSets, load_labelled_sets

Scale = Literal["small", "full"]
SCALES: tuple[Scale, ...] = ("small", "full")
# What the bundled network was trained under; `nula-robust` follows the authors' later card.
NULA_FIRST = Recipe(perturb=("clean", "clean", "resize-0.5", "resize-0.25", "decimate-2", "blur-decimate-2"))
ADVERSARIAL = Recipe(epochs=4, max_lr=0.1, attack="fgsm")
UNATTACKED = replace(ADVERSARIAL, attack=None)


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        architecture: a name from `spectral.models.architectures`.
        recipe: how it is trained.
        start: the network of the zoo that it is tuned from; None for fresh weights.
        method: the layer that the start is converted to.
        note: what it is in the zoo for.
        scale: small networks come with this project; full ones have their published sizes.
    """

    architecture: str
    recipe: Recipe
    start: str | None = None
    method: str | None = None
    note: str = ""
    scale: Scale = "small"


def _list_small() -> dict[str, Entry]:
    zoo = {
        "resnet20": Entry("resnet20", RECIPES["clean"], note="strided"),
        "resnet20-blurpool": Entry("resnet20-blurpool", RECIPES["clean"], note="the same, anti-aliased"),
        "nula-w32": Entry("nula-w32", RECIPES["clean"], note="a quarter of NULA's published width"),
        "nula-w32-robust": Entry("nula-w32", NULA_FIRST, note="on resampled images, as its first card"),
    }
    for method in ("strided", "blurpool", "flc", "asap", "wavelet", "aps"):
        name = name_tuned("resnet20", method)
        zoo[name] = Entry("resnet20", TUNING, "resnet20", method, "one network, another layer")
    tuned = (name_tuned("resnet20", method) for method in ("flc", "asap", "wavelet", "aps"))
    for start in ("resnet20", "resnet20-blurpool", "nula-w32", *tuned):
        architecture = zoo[start].architecture
        zoo[start + ATTACKED] = Entry(architecture, ADVERSARIAL, start, note="the same, attacked")
        zoo[start + CONTROL] = Entry(architecture, UNATTACKED, start, note="as long without attacks")
    return zoo


def _list_full() -> dict[str, Entry]:
    def entry(architecture: str, recipe: str, note: str) -> Entry:
        return Entry(architecture, replace(RECIPES[recipe], precision="bf16"), note=note, scale="full")

    zoo = {
        "nula": entry("nula", "clean", "the card's base network"),
        "nula-robust": entry("nula", "nula-robust", "the card's robust network"),
    }
    for network, layer in product(("preact-resnet18", "wrn-28-10"), ("strided", "blurpool", "flc")):
        name = network if layer == "strided" else f"{network}-{layer}"
        zoo[name] = entry(name, "am-paper", "as the aliasing metric's paper trains its baselines")
        zoo[name + ATTACKED] = entry(name, "fast-fgsm", "the same, attacked from the start")
    return zoo


ZOO: dict[str, Entry] = {**_list_small(), **_list_full()}
"""Name → network, starts before what is tuned from them."""


def list_zoo(scale: Scale) -> list[str]:
    """Return the names of the networks of a scale, in the order in which they can be trained.

    Example:
        >>> list_zoo("full")[:4]
        ['nula', 'nula-robust', 'preact-resnet18', 'preact-resnet18-fgsm']
    """
    return [name for name, entry in ZOO.items() if entry.scale == scale]


def plan_training(names: Iterable[str], there: Iterable[str] = ()) -> list[str]:
    """Put networks into an order in which starts come first, with the starts that are missing.

    Args:
        names: keys of `ZOO`.
        there: networks that need no training to be started from.

    Raises:
        SpectralError: for an unknown name, or none.

    Example:
        >>> plan_training(["resnet20-tuned-flc-fgsm"])
        ['resnet20', 'resnet20-tuned-flc', 'resnet20-tuned-flc-fgsm']
    """
    wanted, available = set(names), set(there)
    if not wanted:
        raise SpectralError("the zoo: expected names of networks, got none")
    unknown = sorted(wanted - set(ZOO))
    if unknown:
        near = suggest(unknown[0], ZOO) or f"; choose from {', '.join(ZOO)}"
        raise SpectralError(f"no network of the zoo is called {unknown[0]!r}{near}")
    for name in reversed(ZOO):
        start = ZOO[name].start
        if name in wanted and start and name not in available and start not in available:
            wanted.add(start)
    return [name for name in ZOO if name in wanted]


def train_zoo(names: Iterable[str], sets: LabelledSets, out: Path, device: str = "cpu") -> list[Path]:
    """Train networks of the zoo that aren't there yet, and the starts they need.

    Args:
        names: keys of `ZOO`.
        sets: train and test images.
        out: folder for the checkpoints; a start that isn't in it is the bundled one.
        device: where to train.

    Returns:
        The checkpoints, old and new.

    Raises:
        SpectralError: for an unknown name, before anything is trained; else as `train_checkpoint`.
    """
    trained = {path.stem for path in out.glob("*.safetensors")}
    paths = []
    for name in plan_training(names, {*trained, *list_bundled()}):
        entry, path = ZOO[name], out / f"{name}.safetensors"
        paths.append(path)
        start = partial(load_start, entry, out, device) if entry.start else None
        ensure_checkpoint(path, entry.architecture, sets, entry.recipe, device, start)
    return paths


def load_start(entry: Entry, out: Path, device: str = "cpu") -> nn.Module:
    """Load what an entry is tuned from, converted to its layer: out of a folder, else the bundled network."""
    path, name = out / f"{entry.start}.safetensors", f"bundled/{entry.start}"
    model = load_model(path if path.exists() else name, device=device)
    info = model_info(model)
    assert info is not None
    model.spectral_info = replace(info, name=name)  # type: ignore[assignment] # a path means nothing elsewhere
    return convert(model, entry.method) if entry.method else model


@click.command(cls=SpectralCommand, help=__doc__)
@click.option("--data", required=True, metavar="cifar10|DIR",
              help="A folder has train/ and test/, a subfolder per class in each.")  # fmt: skip
@click.option("--data-id", help="What tables call the data; by default the folder's name.")
@click.option("--only", metavar="A,B,…", help="These networks, of any scale, and the starts they need.")
@click.option("--scale", type=click.Choice(SCALES), default="small", show_default=True,
              help="Which networks, without --only.")  # fmt: skip
@device_option
@click.option("--out", type=FilePath(), default=Path("data/checkpoints"), show_default=True,
              help="Folder for the checkpoints.")  # fmt: skip
def main(data: str, data_id: str | None, only: str | None, scale: Scale, device: str, out: Path) -> None:
    """Train the zoo."""
    names = list_zoo(scale) if only is None else list(split_names(only, "--only"))
    plan_training(names)  # says what is wrong before the data are read
    ensure_writable(out)
    sets = load_labelled_sets(data, data_id)
    click.echo(f"training on {len(sets[0].images)} images of {sets[0].data_id}")
    train_zoo(names, sets, out, device)
