"""The surveyed libraries: which models each gives, and how they are built from configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spectral.errors import check_choice
from spectral.experiments.survey.checks import Built
from spectral.experiments.survey.libraries import audio, diffusers, medical, transformers, vision


@dataclass(frozen=True)
class Entry:
    """A model of a third-party library.

    Attributes:
        library: its name on PyPI.
        name: of the model.
        build: makes it, with random weights.
    """

    library: str
    name: str
    build: Callable[[], Built]


_LISTS: dict[str, Callable[[], Iterator[tuple[str, Callable[[], Built]]]]] = {
    "transformers": transformers.list_transformers,
    "diffusers": diffusers.list_diffusers,
    "segmentation-models-pytorch": vision.list_smp,
    "ultralytics": vision.list_ultralytics,
    "monai": medical.list_monai,
    "open_clip": vision.list_open_clip,
    "kornia": vision.list_kornia,
    "torchaudio": audio.list_torchaudio,
    "torchvision": vision.list_torchvision,
    "timm": vision.list_timm,
    "pytorchcv": vision.list_pytorchcv,
}
LIBRARIES = tuple(_LISTS)


def list_entries(libraries: Sequence[str] = LIBRARIES) -> list[Entry]:
    """List the models of the libraries; nothing is imported yet.

    Args:
        libraries: any of ``LIBRARIES``.

    Raises:
        SpectralError: for an unknown library.

    Example:
        >>> "ResNetModel" in [entry.name for entry in list_entries(["transformers"])]
        True
    """
    for library in libraries:
        check_choice(library, LIBRARIES, "library")
    return [Entry(library, name, build) for library in libraries for name, build in _LISTS[library]()]
