"""What every protocol asks for first: images on their way to the network, its sites, whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError, suggest
from spectral.intake import Feed, join_inputs, pick_inputs
from spectral.network import map_planes
from spectral.network.inputs import Inputs
from spectral.sites import Site, find_sites

Size = tuple[int, int]


def find_size(feed: Feed) -> Size:
    """Return the height and width of all images; a signal is one row.

    Raises:
        SpectralError: if no axis of theirs is known to be spatial.

    Example:
        >>> find_size(Feed(nn.Flatten(), torch.zeros(2, 3, 8, 9), caller="find_size"))
        (8, 9)
    """
    if "w" not in feed.extents:
        raise SpectralError(f"{feed.caller}: none of the axes of the inputs is known to be spatial")
    return feed.extents.get("h", 1), feed.extents["w"]


def predict_views(
    feed: Feed,
    inputs: Inputs,
    views: Iterable[tuple[int, Callable[[Tensor], Tensor]]],
    batch_size: int,
) -> Tensor:
    """Return the probabilities (views, K) of altered images, float64, on the CPU.

    Args:
        feed: the images on their way to the network.
        inputs: a batch before it is normalised.
        views: for each view, which image of the batch, and what its planes (…, H, W) become.
        batch_size: views per forward pass.
    """
    made = (map_planes(pick_inputs(inputs, [image]), alter, feed.layout_of(inputs)) for image, alter in views)
    parts = [feed.predict(feed.prepare(join_inputs(group))).cpu() for group in _group(made, batch_size)]
    return torch.cat(parts)


def _group(items: Iterator[Inputs], size: int) -> Iterator[list[Inputs]]:
    while group := list(islice(items, size)):
        yield group


def check_counts(caller: str, **counts: Any) -> list[int]:
    """Return numbers of 1 or more as Python's.

    Raises:
        SpectralError: naming the first that is none.

    Example:
        >>> check_counts("example", pairs=2, batch_size=8)
        [2, 8]
    """
    return [as_integer(value, f"{caller}: {name}", least=1) for name, value in counts.items()]


def choose_sites(
    model: nn.Module, example: Inputs | Tensor | Size, asked: Sequence[Site | str] | None, caller: str
) -> list[Site]:
    """Return the sites asked for, by themselves or by name; all of the model's by default.

    Raises:
        SpectralError: for a site that the model doesn't have (the nearest are offered), or none at all.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
        >>> [site.op for site in choose_sites(net, (32, 32), ["1"], "choose_sites")]
        ['max_pool']
    """
    return pick_sites(name_of(model), find_sites(model, example), asked, caller)


def pick_sites(
    model: str, every: Sequence[Site], asked: Sequence[Site | str] | None, caller: str
) -> list[Site]:
    """Return the sites asked for of those that a model has, by themselves or by name; all by default.

    Raises:
        SpectralError: as `choose_sites`.
    """
    if isinstance(asked, str):
        raise SpectralError(f"{caller}: sites must be a list such as [{asked!r}], got the string {asked!r}")
    found = {site.name: site for site in every}
    names = list(found) if asked is None else [s if isinstance(s, str) else s.name for s in asked]
    for name in names:
        if name not in found:
            raise SpectralError(f"{caller}: {model} has no site {name!r}{suggest(name, found)}")
    if not names:
        raise SpectralError(f"{caller}: {model} has no site where resolution drops")
    return [found[name] for name in names]


def name_of(model: nn.Module) -> str:
    """Return what tables call a model: as it was loaded, else its class.

    Example:
        >>> name_of(nn.ReLU())
        'ReLU'
    """
    info = getattr(model, "spectral_info", None)
    return str(info.name) if info is not None else type(model).__name__
