"""What images in [0, 1] go through: its numbers, and how they are read from what has them in any form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from spectral.errors import SpectralError
from spectral.models.info import Preprocessing, find_channels

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preparation:
    """What a network's images go through, and how that is known.

    Attributes:
        origin: where it is from, in words.
        size: (height, width) the network was made for, None where that isn't known.
        mean: of each channel, or one for all of them; empty where nothing is normalised.
        std: as ``mean``.
        bgr: whether the network wants blue first.
        function: what the user gave, in place of all these.
        assumed: whether nothing is known, so that images are passed as they are.
        resizing: how images are to be brought to the size, where that is otherwise than here, in words.

    Example:
        >>> import torch
        >>> halve = Preparation("an example", mean=(0.0,), std=(2.0,))
        >>> halve(torch.ones(1, 3, 2, 2)).unique()
        tensor([0.5000])
    """

    origin: str
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bgr: bool = False
    function: Function | None = None
    assumed: bool = False
    resizing: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W), signals or videos in [0, 1] as the network expects them.

        Raises:
            SpectralError: if they have another number of channels, or the user's function fails on them.
        """
        if self.function is not None:
            return self._apply(self.function, images)
        images = images.flip(find_channels(images, 3) or 1) if self.bgr else images
        if not self.mean:
            return images
        count = images.shape[1] if len(self.mean) == 1 else 1
        return Preprocessing(self.size or (1, 1), self.mean * count, self.std * count)(images)

    @property
    def changes_values(self) -> bool:
        """Whether images come out other than they went in."""
        normalises = any(self.mean) or any(s != 1 for s in self.std)
        return self.bgr or self.function is not None or normalises

    @property
    def largest(self) -> float:
        """The largest magnitude that black or white comes to in any channel."""
        pairs = zip(self.mean, self.std, strict=True)
        return max((max(abs(m), abs(1 - m)) / s for m, s in pairs), default=1.0)

    def describe(self) -> dict[str, Any] | None:
        """Return what determines the values, for a table's account; None where images stay as they are."""
        if self.function is not None:
            return {"function": getattr(self.function, "__qualname__", type(self.function).__name__)}
        if not self.changes_values:
            return None
        return {"mean": list(self.mean), "std": list(self.std)} | ({"bgr": True} if self.bgr else {})

    def _apply(self, function: Function, images: Tensor) -> Tensor:
        try:
            made = function(images)
        except Exception as error:  # the user's function may raise anything
            what = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            raise SpectralError(
                f"preprocessing= failed on images of shape {tuple(images.shape)}: {what}"
            ) from error
        if not isinstance(made, Tensor) or len(made) != len(images):
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise SpectralError(
                f"preprocessing=: expected a function from images (B, C, H, W) in [0, 1] to a batch of as "
                f"many, got {got} for {tuple(images.shape)}"
            )
        return made


def normalise(origin: str, mean: Any, std: Any, size: tuple[int, int] | None) -> Preparation:
    """Make what normalises by these numbers, in whatever form: one for all channels, or one for each.

    Raises:
        SpectralError: if they are no finite numbers, of different counts, or deviations that aren't above 0.

    Example:
        >>> normalise("an example", 0.5, [0.25, 0.5, 0.25], None).mean
        (0.5, 0.5, 0.5)
    """
    means, stds = _read_numbers(mean, "mean"), _read_numbers(std, "std")
    if len(means) != len(stds):
        if 1 not in (len(means), len(stds)):
            raise SpectralError(
                f"preprocessing: expected as many means as standard deviations, got {len(means)} and "
                f"{len(stds)}"
            )
        count = max(len(means), len(stds))
        means, stds = means * (count // len(means)), stds * (count // len(stds))
    if min(stds) <= 0:
        raise SpectralError(f"preprocessing: expected standard deviations above 0, got {list(stds)}")
    return Preparation(origin, size, means, stds)


def _read_numbers(values: Any, what: str) -> tuple[float, ...]:
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
        numbers = tuple(float(v) for v in array.ravel())
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise SpectralError(f"preprocessing: expected numbers as {what}, got {values!r}")
    return numbers


def read_size(size: Any) -> tuple[int, int] | None:
    """Read 224, [224], (224, 224), {"height": 224, "width": 224} or {"shortest_edge": 224}.

    Example:
        >>> read_size([224]), read_size({"height": 24, "width": 32}), read_size("large")
        ((224, 224), (24, 32), None)
    """
    listed = isinstance(size, Sequence)  # lists of some configurations have a `get` too, which takes a place
    if isinstance(size, Mapping) or (hasattr(size, "get") and not listed):
        height = size.get("height") or size.get("shortest_edge")
        size = (height, size.get("width") or height)
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    sides = sides * 2 if len(sides) == 1 else sides
    whole = len(sides) == 2 and all(isinstance(n, int) and n > 0 for n in sides)
    return (int(sides[0]), int(sides[1])) if whole else None


def read_key(holder: Any, name: str) -> Any:
    """Return a key of a dictionary or an attribute of anything else, None where there is none.

    Example:
        >>> read_key({"mean": 0.5}, "mean"), read_key(3j, "imag"), read_key(None, "std")
        (0.5, 3.0, None)
    """
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
