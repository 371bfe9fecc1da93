"""Images brought to a network of another number of channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from spectral.network import CHANNELS, Call, make_inputs
from spectral.network.calls import CHANNELS_FIRST
from spectral.network.inputs import Inputs


def list_channel_calls(raw: Tensor) -> list[Call]:
    """List how images may be brought to a network of another number of channels.

    Example:
        >>> import torch
        >>> [call.note for call in list_channel_calls(torch.zeros(1, 3, 8, 8))]
        ['', 'images are passed in gray, as one channel']
    """
    if raw.shape[1] not in CHANNELS and raw.shape[-1] in CHANNELS:
        moved = [
            Call(partial(_build_moved, call.build), ", ".join(filter(None, (CHANNELS_FIRST, call.note))))
            for call in list_channel_calls(raw.movedim(-1, 1))
        ]
        return [moved[0], Call(make_inputs), *moved[1:]]
    calls, count = [Call(make_inputs)], raw.shape[1]
    if count == 4:
        calls.append(Call(lambda x: make_inputs(x[:, :3]), "images are passed without their fourth channel"))
    if count in (3, 4):
        calls.append(Call(lambda x: make_inputs(_to_gray(x)), "images are passed in gray, as one channel"))
    if count == 1:
        calls.append(
            Call(lambda x: make_inputs(x.repeat(1, 3, 1, 1)), "gray images are passed as three channels")
        )
    return calls


def _build_moved(build: Callable[[Tensor], Inputs], images: Tensor) -> Inputs:
    return build(images.movedim(-1, 1))


def _to_gray(images: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601, as Pillow's mode "L"."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images[:, :3] * weights).sum(1, keepdim=True)
