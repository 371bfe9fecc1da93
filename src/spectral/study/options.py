"""What a study is run on, and the command-line options that `spectral study` and every phase script share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spectral.errors import SpectralError, check_choice
from spectral.processes.launch import choose_device
from spectral.terminal.console import FilePath, device_option, quiet_option, split_names, workers_option

FAMILIES = ("strided", "blurpool", "nula")
DEFAULT_PHASES = (1, 2, 3, 4, 5)  # the study itself; the others take minutes of their own
IMAGENET_LIMIT = 60  # photographs and crops at 224 px: a third of the photographs goes into the repair


@dataclass(frozen=True)
class Preset:
    """Models of several families and the images they see.

    Attributes:
        models: one of each family; the first is what the others are compared with.
        images: as `load_images` takes them.
        limit: how many of them, None for all.
        note: what it is, in a sentence.
        families: what the models are called in tables and figures.
        repaired: whether converted models are fitted to the unconverted one again (`reconstruct`), on
            photographs that nothing is then measured on.
        phases: those that run where none are asked for.
    """

    models: tuple[str, ...]
    images: str
    limit: int | None
    note: str
    families: tuple[str, ...] = FAMILIES
    repaired: bool = False
    phases: tuple[int, ...] = DEFAULT_PHASES


PRESETS = {
    "bundled": Preset(
        models=("bundled/resnet20", "bundled/resnet20-blurpool", "bundled/nula-w32"),
        images="samples",
        limit=None,
        note="small networks that come with this project, on photographs inside installed packages; "
        "nothing is downloaded",
    ),
    "imagenet": Preset(
        models=(
            "packaged/efficientnet-lite0",
            "packaged/efficientnet-lite0+blurpool",
            "packaged/efficientnet-lite0+flc",
        ),
        images="samples",
        limit=IMAGENET_LIMIT,
        note="a network trained on ImageNet and two conversions of it, repaired, at 224 px, on photographs "
        "inside installed packages; nothing is downloaded",
        families=("strided", "blurpool", "flc"),
        repaired=True,
        phases=(3, 5),
    ),
    "paper": Preset(
        models=("timm/resnet50", "antialiased/resnet50", "nula/robust"),
        images="stl10",
        limit=1000,
        note="published checkpoints, NULA's at its own 32 px, on STL-10 test images, downloaded if need be; "
        "what can't be had is refused, not replaced: --models takes others",
    ),
}


@dataclass(frozen=True)
class StudyOptions:
    """Options of one study; None takes the preset's value."""

    preset: str = "bundled"
    models: tuple[str, ...] | None = None
    images: str | None = None
    limit: int | None = None
    out: Path = Path("results")
    batch_size: int = 32
    seed: int = 0
    device: str = "cpu"
    progress: bool = True
    data: str | None = None
    workers: int | None = None
    jobs: int = 1
    full_limit: int = 256

    def __post_init__(self) -> None:
        check_choice(self.preset, PRESETS, "preset")
        if self.models is not None and not self.models:
            raise SpectralError("a study of no models has no results; name some, or leave models out")
        for option, source in (("images", self.images), ("data", self.data)):
            if source == "":  # of a variable that isn't set: the preset's images are others
                raise SpectralError(f"--{option} names nothing, got ''; name images, or leave it out")

    @property
    def families(self) -> dict[str, str]:
        """Family → model, for the phases that compare families, as if each stood in its family's place.

        Raises:
            SpectralError: if there are fewer than 2 models, more than 3, or one twice.
        """
        families = PRESETS[self.preset].families
        names = self.models or PRESETS[self.preset].models
        if not 2 <= len(names) <= len(families) or len(set(names)) < len(names):
            raise SpectralError(
                f"a study compares 2 or 3 different models ({', '.join(families)}), got {', '.join(names)}"
            )
        return dict(zip(families, names, strict=False))

    @property
    def image_source(self) -> str:
        """What `load_images` is asked for."""
        return self.images or PRESETS[self.preset].images

    @property
    def image_sources(self) -> list[str]:
        """All that `load_images` is asked for."""
        return [source for source in (self.image_source, self.data) if source]

    @property
    def image_limit(self) -> int | None:
        """How many images, None for all."""
        if self.limit is not None or self.images is not None:
            return self.limit
        return PRESETS[self.preset].limit


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a click command; it receives one `StudyOptions`."""

    @click.option("--preset", type=click.Choice(list(PRESETS)), default="bundled", show_default=True,
                  help="Models and images that belong together.")  # fmt: skip
    @click.option("--models", help="Models of the preset's families (strided, blurpool, nula; imagenet: "
                  "strided, blurpool, flc) instead of its own, in this order where it isn't known which is "
                  "which; any number of them from phase 6.")  # fmt: skip
    @click.option("--images", help="samples, synthetic, stl10, cifar10 or a folder, instead of the preset's.")
    @click.option("--limit", type=click.IntRange(min=2), help="At most this many images.")
    @click.option("--out", type=FilePath(), default=Path("results"), show_default=True,
                  help="Folder for tables, figures and measurements.")  # fmt: skip
    @click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
    @click.option("--seed", type=int, default=0, show_default=True, help="Of crops and resampling.")
    @device_option
    @click.option(
        "--data", metavar="cifar10|DIR", help="Labelled test images for the accuracies of phases 6, 7 and 9."
    )
    @workers_option
    @click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True,
                  help="So many networks at a time, each in its own process (from phase 6).")  # fmt: skip
    @click.option("--full-limit", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
                  help="Images that AutoAttack's later parts see at most, in phase 9.")  # fmt: skip
    @quiet_option
    @functools.wraps(command)
    def wrapper(*args: Any, models: str | None, quiet: bool, **given: Any) -> Any:
        kept = (
            "preset", "images", "limit", "out", "batch_size", "seed", "device", "data", "workers", "jobs",
            "full_limit",
        )  # fmt: skip
        shared = {key: given.pop(key) for key in kept}
        shared["device"] = choose_device(shared["device"])
        chosen = None if models is None else split_names(models, "--models")
        return command(*args, options=StudyOptions(models=chosen, progress=not quiet, **shared), **given)

    return wrapper
