"""Maps brought to a size at which squares and transforms neither overflow nor vanish."""

from __future__ import annotations

import torch
from torch import Tensor

USUAL = 40  # powers of two between whose inverse and itself nothing is scaled: squares of sums fit float32


def find_scale(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Find a power of two near the largest magnitude; 1 where it is of a usual size, 0 or not finite.

    Dividing by a power of two loses nothing: a ratio is that of the unscaled maps, bit for bit.

    Shape:
        The axes ``dims`` become 1.

    Example:
        >>> x = torch.tensor([[3e30, 1.0], [0.0, 0.0], [1.0, 2.0], [1e-30, 0.0]])
        >>> scaled = x / find_scale(x, (1,))
        >>> [round(float(v), 2) for v in scaled.amax(1)]
        [1.18, 0.0, 2.0, 1.27]
    """
    fixed = x.detach()
    peak = torch.maximum(fixed.amax(dims, keepdim=True), -fixed.amin(dims, keepdim=True))  # copies nothing
    exponent = torch.frexp(peak).exponent - 1
    plain = (exponent.abs() <= USUAL) | (peak == 0) | ~torch.isfinite(peak)
    return torch.where(plain, torch.ones_like(peak), torch.exp2(exponent.double()).to(peak.dtype))


def sum_squares(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum squares over some axes.

    Example:
        >>> sum_squares(torch.tensor([[3.0, 4.0]]), (1,))
        tensor([25.])
    """
    if x.device.type == "cpu":
        return x.square().sum(dims)  # a norm adds up one by one there, which loses digits of large maps
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims)
    return norm.square()  # without a squared copy of x
