"""Options that several commands share, and how they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import spectral
from spectral.errors import SpectralError
from spectral.files.atomic import refuse_foreign
from spectral.processes.launch import choose_device
from spectral.terminal.console import FilePath, device_option, quiet_option, workers_option

if TYPE_CHECKING:
    from torch import nn

    from spectral.models.info import ModelInfo


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``224`` or ``224x160``, height first."""
    if value is None:
        return None
    sides = value.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{value!r} is no size; expected a side (224) or height x width (224x160)")
    return int(sides[0]), int(sides[-1])


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read ``0.485,0.456,0.406``."""
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is no list of numbers; expected one per channel, as 0.485,0.456,0.406"
        ) from error


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Read ``a,b,c``, each once."""
    if value is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


def parse_images(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | list[str]:
    """Read a name, a folder, a file or a pattern, or several of them."""
    if not all(value):
        raise click.BadParameter("is empty; expected a name, a folder, files or a pattern")
    return value[0] if len(value) == 1 else list(value)


def checked_by(refuse: Callable[[Path], None]) -> Callable[..., Path | None]:
    """Make a callback of what refuses a file that can't be written, before anything is computed for it."""

    def check(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        try:
            if value is not None:
                refuse(value)
        except SpectralError as error:
            raise click.BadParameter(str(error)) from error
        return value

    return check


PATH = FilePath()
_choose_images = functools.partial(
    click.option, "--images", multiple=True, callback=parse_images, default=("samples",),
    show_default="samples", metavar="NAME|DIR|FILE",
)  # fmt: skip
_PICTURES = (
    "samples, synthetic, stl10, cifar10, a folder, a file (.tar and .parquet too) or a quoted pattern, "
    "repeatable"
)
pictures_option = _choose_images(help=f"{_PICTURES}.")  # of networks that each see them at their own size
images_option = _choose_images(
    help=f"{_PICTURES}; or inputs as they are (signals, volumes, several): a .npy or .npz file, or "
    "my_data.py:load."
)
batch_size_option = click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
# For commands that show none: the word is understood everywhere, so that a script may always give it.
silent_option = click.option("--quiet", is_flag=True, expose_value=False,
                             help="No progress bars; this command has none.")  # fmt: skip
json_option = click.option(
    "--json", "json_path", type=PATH, metavar="FILE", callback=checked_by(refuse_foreign),
    help="Write what is printed as JSON to this file.",
)  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """Over which images a command runs its networks, and where it tells and writes what it finds."""

    images: str | list[str]
    limit: int | None = None
    seed: int = 0
    workers: int | None = None
    quiet: bool = False
    json_path: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class ModelOptions:
    """What a command is told of the network that MODEL names; None leaves what is known of it."""

    architecture: str | None = None
    weights: Path | None = None
    classes: int | None = None
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    device: str = "cpu"

    def load(self, name: str, example: Any = None) -> nn.Module:
        """Load the network, converted on an example where it is to be."""
        return spectral.load_model(
            name, architecture=self.architecture, weights=self.weights, classes=self.classes,
            input_size=self.input_size, mean=self.mean, std=self.std,
            device=choose_device(self.device), example=example,
        )  # fmt: skip

    def load_with_images(
        self, name: str, run: RunOptions, lazily: bool = False
    ) -> tuple[nn.Module, ModelInfo, Any]:
        """Load the network, what is known of it, and images of its size or values as they are."""
        nets, found = self.load_all([name], run, lazily)
        info, pictures = spectral.model_info(nets[name]), found[name]
        assert info is not None
        if pictures.size and 0 not in pictures.size:
            info = replace(info, preprocessing=replace(info.preprocessing, size=pictures.size))
        return nets[name], info, pictures

    def load_all(
        self, names: Sequence[str], run: RunOptions, lazily: bool = False
    ) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        """Load networks, and for each the same images at its own size, or values as they are.

        Raises:
            SpectralError: for a network or images that can't be had, or an option that says how to alter what
                is passed on as it is.
        """
        from spectral.data import ImageSet, find_example, names_values, open_images
        from spectral.intake import Recipient

        first: Any = None

        def read(net: nn.Module, size: tuple[int, int] | None = None) -> Any:
            """Read the images when a network is there to try them on; give one of those not brought to it."""
            nonlocal first
            if first is None:
                choose = Recipient(net, caller="images").choose_readings
                first = open_images(run.images, size, run.limit, run.seed, run.workers, lazily, choose)
            if isinstance(first, ImageSet):
                return None
            self._require_unaltered(first, run.images)
            example = find_example(first)
            return first.size if example is None else example

        values = names_values(run.images)
        nets = {name: self.load(name, read if values else None) for name in names}
        sizes = {
            name: info.preprocessing.size for name, net in nets.items() if (info := spectral.model_info(net))
        }
        read(nets[names[0]], None if values else sizes[names[0]])
        if isinstance(first, ImageSet) and len(names) > 1:
            first = first.keep_decoded()  # for all networks of one size
        return nets, {
            name: first.resized(size) if isinstance(first, ImageSet) and size != first.size else first
            for name, size in sizes.items()
        }

    def _require_unaltered(self, pictures: Any, source: str | list[str]) -> None:
        """Refuse options that say how to alter what is passed on as it is."""
        altering: dict[str, Any] = {"--input-size": self.input_size}
        if is_passed_on(pictures):
            altering |= {"--mean": self.mean, "--std": self.std}
        for option, value in altering.items():
            if value is not None:
                raise SpectralError(
                    f"{option} is for images that are brought to a network; what {source} holds is passed "
                    f"on as it is: leave {option} out, or do it there"
                )


def gather(
    name: str, kind: type, *options: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command receive the options that are fields of a dataclass as one object, after adding some."""

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(kind)}
            return command(**{name: kind(**own)}, **given)

        gathered: Callable[..., Any] = wrapper
        for option in reversed(options):
            gathered = option(gathered)
        return gathered

    return wrap


model_options = gather(  # what can be said of a network
    "network", ModelOptions,
    click.option("--weights", type=PATH, metavar="FILE",
                 help="Weights for MODEL in place of its own, as MODEL@FILE."),
    click.option("--classes", type=click.IntRange(min=1), metavar="N",
                 help="Outputs of a fine-tuned head, with --weights."),
    click.option("--input-size", "--size", "input_size", callback=parse_size, metavar="N|HxW",
                 help="Image size; by default the one that the model was made for."),
    click.option("--mean", callback=parse_numbers, metavar="A,B,C",
                 help="What images in [0, 1] are normalised with, per channel, where MODEL doesn't say."),
    click.option("--std", callback=parse_numbers, metavar="A,B,C", help="As --mean."),
    click.option("--architecture", metavar="NAME",
                 help="What a weights file without a JSON beside it is for."),
    device_option,
)  # fmt: skip


def run_options(seed: str, out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add to a command how it runs and where it writes; it receives `ModelOptions` and `RunOptions`.

    Args:
        seed: help on what it is of.
        out: help on what the folder is for.
    """
    return gather(
        "run", RunOptions, workers_option, model_options, quiet_option, json_option,
        click.option("--seed", type=int, default=0, show_default=True, help=seed),
        click.option("--out", type=PATH, metavar="DIR", help=out),
    )  # fmt: skip


def describe_images(pictures: Any) -> str:
    """Say how many images of what are used, and at which size."""
    size = pictures.size
    at = f" at {format_size(size)}" if size and 0 not in size else ""
    return f"{len(pictures)} {'inputs' if is_passed_on(pictures) else 'images'} of {pictures.source}{at}"


def is_passed_on(pictures: Any) -> bool:
    """Whether they are what a network is called with, as it is."""
    return bool(getattr(pictures, "prepared", False))


def format_size(size: tuple[int, int]) -> str:
    """Write height × width."""
    return f"{size[0]}×{size[1]}"
