"""What every protocol asks for first: the images at the network's size, ready for it, and its sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from spectral.errors import SpectralError, suggest
from spectral.measurement import Images, TensorImages
from spectral.sites import Site, find_sites

Size = tuple[int, int]
Prepare = Callable[[Tensor], Tensor]


def read_images(model: nn.Module, images: Tensor | Images, caller: str) -> tuple[Images, Prepare]:
    """Return the images at the network's size, and what makes a batch ready for it.

    Args:
        model: its ``spectral_info`` gives the size and the normalisation.
        images: from `load_images`, or a preprocessed tensor (N, C, H, W).
        caller: whose name errors begin with.

    Raises:
        SpectralError: for something else than images, or none.

    Example:
        >>> import torch
        >>> source, prepare = read_images(nn.Flatten(), torch.zeros(2, 3, 8, 8), "read_images")
        >>> source.size, len(source)
        ((8, 8), 2)
    """
    info = getattr(model, "spectral_info", None)
    parameter = next(iter(model.parameters()), None)

    def to_model(batch: Tensor) -> Tensor:
        return batch if parameter is None else batch.to(parameter.device, parameter.dtype)

    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise SpectralError(f"{caller}: expected images of shape (N, C, H, W), got {tuple(images.shape)}")
        source: Images = TensorImages(images)
        prepare: Prepare = to_model
    else:
        if not hasattr(images, "batches"):
            raise SpectralError(
                f"{caller}: expected images from load_images or a tensor (N, C, H, W), got "
                f"{type(images).__name__}"
            )
        source = images
        if source.size is None and info is not None:
            source = source.resized(info.preprocessing.size)
        scale: Any = info.preprocessing if info is not None else lambda batch: batch

        def prepare(batch: Tensor) -> Tensor:
            return to_model(scale(batch))

    if len(source) == 0:
        raise SpectralError(f"{caller}: there are no images")
    return source, prepare


def size_of(source: Images, caller: str) -> Size:
    """Return the one size of all images.

    Raises:
        SpectralError: if they differ in size.
    """
    if source.size is None:
        raise SpectralError(f"{caller}: the images differ in size; load them with size=")
    return source.size


def check_count(caller: str, **counts: int) -> None:
    """Refuse a number below 1.

    Raises:
        SpectralError: naming it.
    """
    for name, value in counts.items():
        if value < 1:
            raise SpectralError(f"{caller}: {name} must be ≥ 1, got {value}")


def choose_sites(
    model: nn.Module, example: Tensor | Size, asked: Sequence[Site | str] | None, caller: str
) -> list[Site]:
    """Return the sites asked for, by themselves or by name; all of the model's by default.

    Raises:
        SpectralError: for a site that the model doesn't have (the nearest are offered), or none at all.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
        >>> [site.op for site in choose_sites(net, (32, 32), ["1"], "choose_sites")]
        ['max_pool']
    """
    if isinstance(asked, str):
        raise SpectralError(f"{caller}: sites must be a list such as [{asked!r}], got the string {asked!r}")
    found = {site.name: site for site in find_sites(model, example)}
    names = list(found) if asked is None else [s if isinstance(s, str) else s.name for s in asked]
    for name in names:
        if name not in found:
            raise SpectralError(f"{caller}: {name_of(model)} has no site {name!r}{suggest(name, found)}")
    if not names:
        raise SpectralError(f"{caller}: {name_of(model)} has no site where resolution drops")
    return [found[name] for name in names]


def name_of(model: nn.Module) -> str:
    """Return what tables call a model: as it was loaded, else its class.

    Example:
        >>> name_of(nn.ReLU())
        'ReLU'
    """
    info = getattr(model, "spectral_info", None)
    return str(info.name) if info is not None else type(model).__name__
