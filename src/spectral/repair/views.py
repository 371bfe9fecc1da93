"""Views of images: mirrored, parts of them enlarged, mixed with one another, with all on their lattice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.network import Kinds, reflect
from spectral.network.inputs import Inputs


@dataclass(frozen=True)
class Views:
    """What each image is turned into, anew at every step; both networks see the same.

    Args:
        zoom: the least share of the image's extent along each axis that is cut out and enlarged to the
            whole; cut-outs are moved by what is left and an eighth of the extent. 1 for moves alone.
        mix: parameter of the beta distribution that the weights of two images are drawn from, of which each
            given one is the sum; 0 for images as they are.

    Raises:
        SpectralError: if a value is out of range.
    """

    zoom: float = 0.5
    mix: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.zoom <= 1 and 0 <= self.mix < math.inf):
            raise SpectralError(f"Views: zoom must be in (0, 1] and mix ≥ 0, got {self.zoom} and {self.mix}")


def augment_images(
    inputs: Inputs,
    layout: Sequence[Kinds],
    extents: Mapping[str, int],
    views: Views,
    generator: torch.Generator,
) -> Inputs:
    """Mirror each image of a batch or not, cut a part of it out, and all that lies on its lattice, and mix.

    Borders reflect. Between its samples an image is interpolated; of what else lies on its lattice, such as
    masks, the nearest is taken.

    Args:
        inputs: the batch, ready for the model.
        layout: the axes of each of its tensors.
        extents: of the lattice, by axis.
        views: what may be drawn.
        generator: draws it.
    """
    count = inputs.count
    drawn = {k: _draw_places(k, n, count, views.zoom, generator) for k, n in extents.items() if n > 1}
    weights = _draw_weights(count, views.mix, generator)
    partner = torch.randperm(count, generator=generator)
    image, rest = inputs.image, iter(layout)

    def change(x: Tensor, batched: bool) -> Tensor:
        kinds = next(rest)
        own = {kind: n for kind, n in zip(kinds, x.shape, strict=True) if kind in extents}
        if not batched:
            return x
        smooth = x is image and x.is_floating_point()
        if own == extents:
            for kind, places in drawn.items():
                x = _resample(x, kinds.index(kind), places.to(x.device), smooth)
        if weights is not None and x.is_floating_point():
            w = weights.to(x).view(-1, *(1,) * (x.ndim - 1))
            x = w * x + (1 - w) * x[partner.to(x.device)]
        return x

    return inputs.map(change)


def _draw_places(kind: str, n: int, count: int, zoom: float, generator: torch.Generator) -> Tensor:
    """Say for each image of a batch at which of its places along an axis to read it, (count, n)."""
    if kind == "t":
        return torch.arange(n, dtype=torch.float32).expand(count, -1)
    share = zoom + (1 - zoom) * torch.rand(count, 1, generator=generator)
    room = (n - share * n).round() + n // 8  # whole samples: a move alone interpolates nothing
    start = -(n // 8) + torch.floor(torch.rand(count, 1, generator=generator) * (room + n // 8 + 1))
    places = start + (torch.arange(n) + 0.5) * share - 0.5
    if kind == "w":
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        places = torch.where(mirrored, n - 1 - places, places)
    return places


def _draw_weights(count: int, mix: float, generator: torch.Generator) -> Tensor | None:
    """Draw from the beta distribution with both parameters ``mix``, by two gamma draws."""
    if not mix or count < 2:
        return None
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(mix, mix, count))


def _resample(x: Tensor, axis: int, places: Tensor, smooth: bool) -> Tensor:
    """Read each image of a batch at places along an axis, (B, n): between samples, or at the nearest."""
    shape = [len(x), *(1,) * (x.ndim - 1)]
    shape[axis] = n = x.shape[axis]

    def take(where: Tensor) -> Tensor:
        return torch.take_along_dim(x, reflect(where.long(), n).view(shape), axis)

    low = places.floor()
    if not smooth or torch.equal(low, places):
        return take(places.round())
    return torch.lerp(take(low), take(low + 1), (places - low).to(x.dtype).view(shape))


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a generator that the numbers determine, also for negative seeds."""
    text = ",".join(map(str, numbers)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))
