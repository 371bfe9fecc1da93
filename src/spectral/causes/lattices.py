"""Samples of dense maps on coarser lattices, low-passed before where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectral.numerics.matrices import highest_bin
from spectral.numerics.resampling import low_pass, resample


def pass_low(x: Tensor, axis: int, step: int) -> Tensor:
    """Low-pass an axis ideally for a decimation, and keep all samples.

    Example:
        >>> import torch
        >>> pass_low(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0, 2)
        tensor([2., 2., 2., 2.])
    """
    extent = x.shape[axis]
    return x if step == 1 else low_pass(x, axis, step, 0, 1, extent)


@dataclass(frozen=True)
class Sampling:
    """Which samples of a dense map are kept along one axis.

    Attributes:
        count: how many.
        stride: from one to the next.
        first: the first.
        spread: whether they lie evenly on the whole period instead, as far apart as that takes: where the
            stride doesn't divide the extent, no lattice is periodic otherwise.
        low_pass: whether what would fold is removed first.
    """

    count: int
    stride: int = 1
    first: int = 0
    spread: bool = False
    low_pass: bool = False

    def take(self, x: Tensor, axis: int) -> Tensor:
        """Return the samples of a map.

        Example:
            >>> import torch
            >>> Sampling(2, stride=2, low_pass=True).take(torch.tensor([3.0, 1.0, 3.0, 1.0]), 0)
            tensor([2., 2.])
        """
        extent = x.shape[axis]
        if self.moves(extent):
            cut = self.low_pass or self.stride == 1  # a crop has no decimation, so nothing may fold
            highest = (extent - 1) // 2
            if cut:
                highest = min(int(highest_bin(extent, self.stride)), highest, (self.count - 1) // 2)
            return resample(x, axis, self.count, self.first, highest, not cut)
        if self.low_pass and self.stride > 1:
            return low_pass(x, axis, self.stride, self.first, self.stride, self.count)
        end = self.first + self.stride * (self.count - 1) + 1
        if (self.first, end, self.stride) == (0, extent, 1):
            return x
        return x[(slice(None),) * (axis % x.ndim) + (slice(self.first, end, self.stride),)]

    def moves(self, extent: int) -> bool:
        """Whether the samples lie elsewhere than a slice would find them."""
        return self.spread and extent != self.stride * self.count
