"""Partial convolution: windows over the border count what is there, instead of zeros that aren't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from spectral.causes.watching import CONVOLUTIONS, KEEPS_LATTICE, MEANS, RENORMALISES
from spectral.causes.windows import Window, name_parameters, read_windows
from spectral.surgery.frames import frame_of
from spectral.surgery.rewriting import Function
from spectral.tracing.tracker import paused


@dataclass(frozen=True)
class PartialBorder:
    """Runs a convolution or average pool that pads with zeros; windows that reach over the border count more.

    Where of a window's K places v lie on the map, what it makes counts K / v times; the bias counts once.

    Source:
        G. Liu et al., Partial Convolution based Padding, 2018; Image Inpainting for Irregular Holes Using
        Partial Convolutions, ECCV 2018.
    """

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the function."""
        name = func.__name__
        a = name_parameters(name[:-2].rstrip("_"), args, kwargs)
        if name in MEANS and not a.get("divisor_override"):
            return func(**{**a, "count_include_pad": False})  # of which it is the definition
        windows = read_windows(name, a)
        y = func(*args, **kwargs)
        return renormalise_border(y, a["input"].shape[-len(windows) :], windows, a.get("bias"))


def renormalise_border(
    y: Tensor, extents: Sequence[int], windows: Sequence[Window], bias: Tensor | None
) -> Tensor:
    """Weigh what windows made of a map that was padded with zeros by how much of each lies on the map.

    Args:
        y: what they made.
        extents: of the map, along the axes over which they slide: the last ones.
        windows: along each.
        bias: that was added to each channel.

    Example:
        >>> x = torch.full((1, 1, 4), 3.0)
        >>> box = torch.nn.functional.conv1d(x, torch.full((1, 1, 3), 1 / 3), padding=1)
        >>> renormalise_border(box, [4], [Window(3, 1, 1, 1)], None)
        tensor([[[3., 3., 3., 3.]]])
    """
    if has_torch_function((y,)):
        made: Tensor = handle_torch_function(renormalise_border, (y,), y, extents, windows, bias)
        return made
    with paused():  # what it consists of is no cause
        rank = len(windows)
        share = y.new_ones(())
        for i, (extent, window) in enumerate(zip(extents, windows, strict=True)):
            first = torch.arange(y.shape[i - rank], device=y.device) * window.stride - window.padding
            place = first[:, None] + window.dilation * torch.arange(window.size, device=y.device)
            inside = ((place >= 0) & (place < extent)).sum(1)
            weight = (window.size / inside.clamp_min(1)).to(y.dtype)  # a window beside the map found nothing
            share = share * weight.view(-1, *[1] * (rank - 1 - i))
        if bias is None:
            return y * share
        constant = bias.to(y.dtype).view(-1, *[1] * rank)
        return (y - constant) * share + constant


setattr(renormalise_border, KEEPS_LATTICE, True)
setattr(renormalise_border, RENORMALISES, True)


def weigh_border(module: nn.Module, name: str, steps: Any) -> str | None:
    """Weigh up the windows of one call from now on, or say why not."""
    if name not in (*CONVOLUTIONS, *MEANS):
        return "it takes a maximum, of what is there already"
    frame_of(module).activations[Function(name, steps)] = PartialBorder()
    return None
