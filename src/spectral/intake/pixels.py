"""The pixels among what a network is called with: their range, and those of eight bits brought to [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral.data.structures import list_leaves
from spectral.inputs import Inputs
from spectral.network import Call

WHITE = 255
AS_PIXELS = "the 8-bit {what} taken as pixels: divided by 255, then normalised as images are"
AS_IT_IS = "the 8-bit {what} passed as it is, since the network takes it so"


def holds_pixels(raw: Any) -> bool:
    """Whether the maps in a batch are of eight bits, all of them, so that its image is.

    Example:
        >>> holds_pixels({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "label": torch.zeros(1)})
        True
        >>> holds_pixels(torch.zeros(1, 3, 8, 8))
        False
    """
    if isinstance(raw, Inputs):
        return raw.image.dtype == torch.uint8
    maps = [leaf for leaf in list_leaves(raw) if isinstance(leaf, Tensor) and leaf.ndim > 2]
    return bool(maps) and all(leaf.dtype == torch.uint8 for leaf in maps)


def build_scaled(call: Call, raw: Any) -> Inputs:
    """Build the arguments of a forward pass with its image in [0, 1], where it is of eight bits.

    Example:
        >>> from spectral.network import make_inputs
        >>> batch = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
        >>> float(build_scaled(Call(make_inputs), batch).image.max())
        1.0
    """
    # Before it is built too: what makes it gray or moves its channels reads values in [0, 1].
    inputs = call.build(_scale(raw) if isinstance(raw, Tensor) else raw)
    image = inputs.image
    return inputs.map(lambda x, _: _scale(x) if x is image else x) if image.dtype == torch.uint8 else inputs


def _scale(x: Tensor) -> Tensor:
    return x.float() / WHITE if x.dtype == torch.uint8 else x


def find_range(image: Tensor) -> tuple[float, float]:
    """Return the least and the largest value of an image, 0 and 0 where it has no real ones.

    Example:
        >>> find_range(torch.tensor([[0.5, -1.0]]))
        (-1.0, 0.5)
    """
    if not image.is_floating_point() or image.numel() == 0 or image.device.type == "meta":
        return 0.0, 0.0
    low, high = torch.aminmax(image.detach().float())
    return float(low), float(high)
