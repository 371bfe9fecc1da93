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


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Read ``a,b,c``."""
    if value is None:
        return None
    return tuple(name.strip() for name in value.split(",") if name.strip())


def parse_images(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | list[str]:
    """Read a name, a folder, a file or a pattern, or several of them."""
    if not all(value):
        raise click.BadParameter("is empty; expected a name, a folder, files or a pattern")
    return value[0] if len(value) == 1 else list(value)


PATH = click.Path(path_type=Path)
images_option = click.option(
    "--images",
    multiple=True,
    callback=parse_images,
    default=("samples",),
    show_default="samples",
    metavar="NAME|DIR|FILE",
    help="samples, synthetic, stl10, cifar10, a folder, a file or a quoted pattern; repeatable.",
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
