"""The pixels among what a network is called with: their range, and those of eight bits brought to [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral.data.structures import list_leaves
from spectral.models.preparation import Preparation
from spectral.network import Call
from spectral.network.inputs import Inputs

WHITE = 255
SLACK = 0.25  # that filters may go beyond black and white
FAR = 2  # times what an image comes to at most, from which on values are likely not normalised
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


def describe_range(image: Tensor, known: Preparation, name: str) -> list[str]:
    """Say where values that are passed as they are, are likely not what a network expects.

    Args:
        image: the values.
        known: what is known of how the network's images are normalised.
        name: of the network.

    Example:
        >>> describe_range(torch.tensor([[0.0, 0.5]]), Preparation("its layer", None), "net")
        []
    """
    low, high = find_range(image)
    passed = f"the values are from {low:.3g} to {high:.3g} and passed as they are"
    if not known.mean:
        if known.assumed or known.function or -SLACK <= low <= high <= 1 + SLACK:
            return []
        return [f"{passed}, but {name} normalises images itself ({known.origin}): give them in [0, 1]"]
    mean = ", ".join(f"{m:.3g}" for m in known.mean)
    expected = (
        f"{name} expects images normalised by mean {mean} ({known.origin}): pass preprocessing= if they "
        f"aren't yet"
    )
    if 0 <= low < high <= 1 and known.changes_values:
        return [f"the values are in [0, 1] and passed as they are; {expected}"]
    if max(-low, high) > FAR * known.largest:
        return [f"{passed}; {expected}, as images in [0, 1] (pixels of 0 … 255 divided by 255)"]
    return []
