"""How maps lie in memory: channels outermost or innermost."""

from __future__ import annotations

from torch import Tensor


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
