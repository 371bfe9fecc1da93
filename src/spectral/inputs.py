"""What a model is called with, as a user gives it: a batch, a size, or several arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from spectral.errors import SpectralError

Example = Tensor | int | Sequence[int] | Sequence[Tensor] | Mapping[str, Any]


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

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
                moved = value.to(device, kind)
                return moved.expand(batch, *moved.shape[1:]).clone() if batch and len(moved) == 1 else moved
            if isinstance(value, (tuple, list)):
                return type(value)(move(item) for item in value)
            return {key: move(item) for key, item in value.items()} if isinstance(value, dict) else value

        return Inputs(move(self.args), move(self.kwargs), move(self.image))

    def tensors(self) -> list[tuple[Tensor, bool]]:
        """Return the floating-point tensors, and whether each is a batch: detectors take lists of images."""
        found: list[tuple[Tensor, bool]] = []

        def visit(value: Any, several: bool) -> None:
            if isinstance(value, Tensor) and value.is_floating_point():
                found.append((value, not (several and value.ndim == 3)))
            elif isinstance(value, (list, tuple)):
                for item in value:
                    visit(item, several=True)
            elif isinstance(value, dict):
                for item in value.values():
                    visit(item, several=False)

        for value in (*self.args, *self.kwargs.values()):
            visit(value, several=False)
        return found


def read_example(example: Example) -> Inputs:
    """Read what a user gives as an example as the arguments of a forward pass.

    Raises:
        SpectralError: if it is neither a batch, a size, nor arguments with an image among them.
    """
    if isinstance(example, Mapping):
        return _find_image((), dict(example))
    if isinstance(example, Tensor):
        if example.ndim not in (2, 3, 4, 5) or example.numel() == 0:
            raise SpectralError(
                f"find_sites: expected a batch (B, C, H, W), (B, C, T) or (B, C, T, H, W), got shape "
                f"{tuple(example.shape)}"
            )
        if not example.is_floating_point():
            raise SpectralError(
                f"find_sites: expected floating-point images, got {example.dtype}; use images.float()"
            )
        image = example[:1].detach()
        return Inputs((image,), {}, image)
    if isinstance(example, Sequence) and any(isinstance(item, (Tensor, Mapping, list)) for item in example):
        return _find_image((list(example),) if isinstance(example, list) else tuple(example), {})
    size: tuple[Any, ...] = tuple(example) if isinstance(example, Sequence) else (example,)
    shape = (3, size[0], size[0]) if len(size) == 1 else (3, *size) if len(size) == 2 else size
    if len(shape) not in (3, 4) or any(not isinstance(n, int) or n < 1 for n in shape):
        got = shorten(repr(example), 60)
        raise SpectralError(f"find_sites: expected a batch or a size N, (H, W) or (C, H, W), got {got}")
    # Noise, not zeros: a detector that finds nothing in its image doesn't show what it does with boxes.
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    return Inputs((image,), {}, image)


def _find_image(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    inputs = Inputs(args, kwargs, torch.empty(0))
    image = next((tensor for tensor, _ in inputs.tensors() if tensor.ndim > 1), None)
    if image is None:
        raise SpectralError(
            "find_sites: there is no floating-point image among the inputs; pass one, such as torch.rand"
        )
    return replace(inputs, image=image)
