"""Options that several commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path

import click


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``224`` or ``224x160``, height first."""
    if value is None:
        return None
    sides = value.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{value!r} is no size; expected a side (224) or height x width (224x160)")
    return int(sides[0]), int(sides[-1])


def parse_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Read ``a,b,c``."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


PATH = click.Path(path_type=Path)
images_option = click.option(
    "--images",
    default="samples",
    show_default=True,
    metavar="NAME|DIR",
    help="samples, synthetic, stl10, cifar10, or a folder of images.",
)
batch_size_option = click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, …")
architecture_option = click.option(
    "--architecture", metavar="NAME", help="What a weights file without a JSON beside it is for."
)
size_option = click.option(
    "--size",
    callback=parse_size,
    metavar="N|HxW",
    help="Image size; by default the one that the model was made for.",
)


def format_size(size: tuple[int, int]) -> str:
    """Write height × width."""
    return f"{size[0]}×{size[1]}"
