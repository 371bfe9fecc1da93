"""What a model is called with, as a user gives it: a batch, a size, or several arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral.arguments.values import are_integers
from spectral.errors import SpectralError


@dataclass(frozen=True)
class Inputs:
    """What a model is called with: positional and named arguments, and the first image among them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    image: Tensor

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, batch: int | None = None
    ) -> Inputs:
        """Return the inputs elsewhere, with image batches repeated to ``batch``."""

        def move(value: Tensor, batched: bool) -> Tensor:
            kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
            moved = value.to(device, kind)
            if batch is None or moved.ndim == 0 or len(moved) != 1:
                return moved
            return moved.expand(batch, *moved.shape[1:]).clone()

        return self.map(move)

    def map(self, function: Callable[[Tensor, bool], Tensor]) -> Inputs:
        """Return the inputs with each tensor replaced by what a function makes of it.

        Args:
            function: of a tensor and whether its first axis is the batch; an image in a list, alone or in a
                dictionary, as detectors take them, has none.

        Example:
            >>> halves = read_example({"image": torch.ones(1, 3, 8, 8), "scale": 2}).map(lambda x, _: x / 2)
            >>> halves.kwargs["image"].max(), halves.kwargs["scale"]
            (tensor(0.5000), 2)
        """
        images: list[Tensor] = []

        def replace_tensor(x: Tensor, batched: bool) -> Tensor:
            made = function(x, batched)
            if x is self.image:
                images.append(made)
            return made

        args = tuple(_visit(value, replace_tensor, several=False) for value in self.args)
        kwargs = {key: _visit(value, replace_tensor, several=False) for key, value in self.kwargs.items()}
        return Inputs(args, kwargs, images[-1] if images else self.image)

    def turn(self) -> Inputs:
        """Turn the values of images over: another image of the same size."""
        return self.map(lambda x, _: (x.max() + x.min() - x).flip(-1) if x.is_floating_point() else x)

    @property
    def count(self) -> int:
        """How many images there are."""
        alone = any(x is self.image for x, batched in self.every_tensor() if not batched)
        images = _find_list([*self.args, self.kwargs], self.image) if alone else None
        return len(self.image if images is None else images)

    def every_tensor(self) -> list[tuple[Tensor, bool]]:
        """Return all tensors, and whether each is a batch: detectors take lists of images."""
        found: list[tuple[Tensor, bool]] = []

        def keep(value: Tensor, batched: bool) -> Tensor:
            found.append((value, batched))
            return value

        self.map(keep)
        return found

    def tensors(self) -> list[tuple[Tensor, bool]]:
        """Return the tensors that may be maps, floating-point or 8-bit, and whether each is a batch."""
        return [
            (tensor, batched)
            for tensor, batched in self.every_tensor()
            if tensor.is_floating_point() or (tensor.dtype == torch.uint8 and tensor.ndim > 2)
        ]


def _visit(value: Any, function: Callable[[Tensor, bool], Tensor], several: bool) -> Any:
    # No closure: one that calls itself would keep the tensors alive until they are collected.
    if isinstance(value, Tensor):
        return function(value, not (several and value.ndim == 3))
    if isinstance(value, (tuple, list)):
        items = [_visit(item, function, several=True) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _visit(item, function, several) for key, item in value.items()}
    return value


def _find_list(value: Any, image: Tensor) -> Sequence[Any] | None:
    """Return the innermost list of which an entry is an image, or a dictionary with it."""
    if isinstance(value, dict):
        return next((found for v in value.values() if (found := _find_list(v, image)) is not None), None)
    if not isinstance(value, (tuple, list)):
        return None
    for item in value:
        if (found := _find_list(item, image)) is not None:
            return found
        if _has(item, image):
            return value
    return None


def _has(item: Any, image: Tensor) -> bool:
    return item is image or (isinstance(item, dict) and any(_has(value, image) for value in item.values()))


Example = Inputs | Tensor | np.ndarray[Any, Any] | int | Sequence[int] | Sequence[Tensor] | Mapping[str, Any]


def read_example(example: Example, channels: tuple[int, ...] = (3,), axes: int = 2) -> Inputs:
    """Read what a user gives as an example as the arguments of a forward pass.

    Args:
        example: a batch, a size, or arguments.
        channels: of an image of which only the size is given.
        axes: how many it then has besides.

    Raises:
        SpectralError: if it is neither a batch, a size, nor arguments with an image among them.
    """
    if isinstance(example, Inputs):
        return example
    if isinstance(example, Mapping):
        return _find_image((), dict(example))
    if isinstance(example, np.ndarray):
        example = _read_array(example)
    if isinstance(example, Tensor):
        pixels = example.dtype == torch.uint8
        if pixels and example.ndim == 3:  # one image: signals aren't of eight bits
            example = example[None]
        if example.ndim not in (2, 3, 4, 5) or example.numel() == 0:
            raise SpectralError(
                f"find_sites: expected a batch (B, C, H, W), (B, C, T) or (B, C, T, H, W), got shape "
                f"{tuple(example.shape)}"
            )
        if not example.is_floating_point() and not pixels:
            raise SpectralError(
                f"find_sites: expected floating-point or 8-bit images, got {example.dtype}; "
                f"use images.float()"
            )
        image = example[:1].detach()
        return Inputs((image,), {}, image)
    if isinstance(example, Sequence) and any(isinstance(item, (Tensor, Mapping, list)) for item in example):
        return _find_image((list(example),) if isinstance(example, list) else tuple(example), {})
    size: tuple[Any, ...] = tuple(example) if isinstance(example, Sequence) else (example,)
    size = tuple(map(int, size)) if are_integers(size) else size  # NumPy's too
    shape = (*channels, *size * axes) if len(size) == 1 else (*channels, *size) if len(size) == 2 else size
    if len(shape) not in (1 + axes, 3, 4) or any(not isinstance(n, int) or n < 1 for n in shape):
        got = shorten(repr(example), 60)
        raise SpectralError(f"find_sites: expected a batch or a size N, (H, W) or (C, H, W), got {got}")
    # Noise, not zeros: a detector that finds nothing in its image doesn't show what it does with boxes.
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    return Inputs((image,), {}, image)


def _read_array(array: np.ndarray[Any, Any]) -> Tensor:
    """Return an array as a tensor; pixels (H, W, C), one image or several, with their channels first."""
    if array.dtype.kind not in "fiub":
        raise SpectralError(f"find_sites: expected an array of pixels, got one of {array.dtype}")
    pixels = array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3) if pixels else array))


def _find_image(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    inputs = Inputs(args, kwargs, torch.empty(0))
    image = next((tensor for tensor, _ in inputs.tensors() if tensor.ndim > 1), None)
    if image is None:
        raise SpectralError(
            "there is no image among the inputs, a floating-point or 8-bit tensor of two axes or more; "
            "pass one"
        )
    return replace(inputs, image=image)
