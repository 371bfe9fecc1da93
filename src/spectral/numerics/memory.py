"""How maps lie in memory: channels outermost or innermost."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

# Channels that oneDNN takes at once, at most (AVX-512). Where a strided 1×1 convolution has fewer, its
# gradients with channels innermost are wrong, or the process dies:
# https://github.com/uxlfoundation/oneDNN/issues/6035
_BLOCK = 16


def has_channels_last(x: Tensor, axes: int) -> bool:
    """Whether a batch of maps lies in memory with its channels innermost, and not also in the usual order.

    Example:
        >>> import torch
        >>> has_channels_last(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last), 2)
        True
    """
    return x.ndim == axes + 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def match_memory(y: Tensor, x: Tensor, axes: int) -> Tensor:
    """Return y without gaps in memory, its channels innermost where those of x are.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> match_memory(x[..., ::2, ::2], x, 2).stride()
        (12, 1, 6, 3)
    """
    return y.movedim(1, -1).contiguous().movedim(-1, 1) if has_channels_last(x, axes) else y.contiguous()


def move_for_training(model: Model, device: torch.device) -> Model:
    """Move a network to where it will learn, its channels innermost if that is safe there.

    With channels innermost it learns faster. Maps follow the weights, whatever the order of the images.

    Example:
        >>> import torch
        >>> cpu = torch.device("cpu")
        >>> move_for_training(nn.Conv2d(32, 8, 3), cpu).weight.stride()
        (288, 1, 96, 32)
        >>> narrow = nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.Conv2d(8, 8, 3))
        >>> move_for_training(narrow, cpu)[1].weight.stride()
        (72, 9, 3, 1)
    """
    safe = device.type != "cpu" or not any(_has_wrong_gradients(module) for module in model.modules())
    form = torch.channels_last if safe else torch.contiguous_format
    return model.to(device, memory_format=form)  # type: ignore[call-overload, no-any-return]


def _has_wrong_gradients(module: nn.Module) -> bool:
    """Whether oneDNN's gradients of this layer are wrong with channels innermost."""
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < _BLOCK
    )
