"""Whether the way that a forward takes with an image depends on those beside it in the batch.

Python that branches on a number of the whole batch, as ``if x.max() > 1: x = x / 255``, does so; one that
only checks, as ``assert x.isfinite().all()``, doesn't. What was read is seen in a pass that is made anyway;
which of both it is shows in passes on real data, which are made only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.network.inputs import Inputs
from spectral.tracing.standin import run_on_copy
from spectral.tracing.stateful import agree

# What the image beside is, as a multiple of the one that is looked at: extrema, means and spreads move.
_BESIDE = (16.0, -16.0)
_ROUNDING = 1e-3  # of the largest value: kernels for one image and for two round differently


def depends_on_others(model: nn.Module, inputs: Inputs) -> bool:
    """Whether what a model returns for an image is another with another image beside it.

    Copies of the model run, each once. Where one fails on two images, or returns nothing that has one entry
    for each, nothing is known, and the answer is no.

    Args:
        model: any module.
        inputs: of one image.

    Example:
        >>> from spectral.network import make_inputs
        >>> class Net(nn.Module):
        ...     def forward(self, x): return x / 255 if x.max() > 1 else x
        >>> one = make_inputs(torch.rand(1, 3, 8, 8))
        >>> depends_on_others(Net(), one), depends_on_others(nn.ReLU(), one)
        (True, False)
    """
    if inputs.count != 1 or not inputs.image.is_floating_point():
        return False
    if not all(batched for _, batched in inputs.every_tensor()):
        return False
    with suppress(SpectralError):
        alone = _run(model, inputs)
        for factor in _BESIDE:
            with suppress(SpectralError):  # a check may well fail on such an image
                if _differ(alone, _run(model, _put_beside(inputs, factor))):
                    return True
    return False


def _put_beside(inputs: Inputs, factor: float) -> Inputs:
    def join(x: Tensor, _: bool) -> Tensor:
        if x.ndim == 0 or len(x) != 1:
            return x
        return torch.cat([x * factor if x is inputs.image else x, x])  # behind, for branches on the first

    return inputs.map(join)


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    def watch(running: nn.Module, own: Inputs, *_: Any) -> list[Tensor]:
        output = running(*own.args, **own.kwargs)
        return [x.detach().clone() for x in tree_leaves(output) if isinstance(x, Tensor) and x.ndim]

    return run_on_copy(model, inputs, watch)


def _differ(alone: Sequence[Tensor], together: Sequence[Tensor]) -> bool:
    if len(alone) != len(together):
        return False
    pairs = [(x, y) for x, y in zip(alone, together, strict=True) if len(x) == 1 and len(y) == 2]
    return any(x.shape[1:] != y.shape[1:] or not agree(x, y[1:], _ROUNDING) for x, y in pairs)
