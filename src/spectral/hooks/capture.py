"""The tensors of one site in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spectral.operators import ALL, Decimation, Size
from spectral.sites import Site

Tap = Literal["input", "dense", "signal", "output"]
OF_DENSE_MAPS: tuple[Tap, ...] = ("dense", "signal")  # taps for which the dense map is computed
TAPS: tuple[Tap, ...] = ("input", "dense", "signal", "output")


class Capture:
    """The tensors of one site in one forward pass, alive while a ``reduce`` callback runs.

    All are maps (B, C, H, W), videos' (B, C, T, H, W). Where one image has several maps on the batch axis
    (attention heads, windows) B is larger than the number of images; `per_image` brings values back to it.

    Attributes:
        site: where it is.
        input: what enters the site.
        decimation: what ran, with all that it takes to compute its dense map.
        alone: whether all maps are of one image, however they came to lie along the batch axis (two frames
            that share an encoder, views, detected boxes).
    """

    def __init__(
        self,
        site: Site,
        entering: Tensor,
        decimation: Decimation,
        run: Callable[[slice], Tensor],
        size: Size,
        find_weight: Callable[[str], Tensor],
    ) -> None:
        self.site = site
        self.input = entering
        self.decimation = decimation
        self.size = size
        self.alone = False
        self._run, self._find_weight = run, find_weight
        self._output: Tensor | None = None
        self._kept: Tensor | None = None
        self._known: npt.NDArray[np.bool_] | None = None  # which images and channels of it have been computed

    @property
    def output(self) -> Tensor:
        """What leaves the site: kept from the dense map once all of that has been computed, else run."""
        if self._output is None:
            whole = self._known is not None and bool(self._known.all())
            self._output = self._kept if whole else self._run(ALL)
        assert self._output is not None
        return self._output

    def run(self, images: slice = ALL) -> Tensor:
        """Return what the operator itself gives of some images, whatever was computed before."""
        if self._output is None or self._output is self._kept:
            return self._run(images)
        return self._output[images]

    def dense(self, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Return the dense map, or that of some images and channels: dense[φ::s][:n] is the output."""
        dense = self.decimation.dense(self.size, images, channels)
        if self._output is None:
            self._keep(dense, images, channels)
        return dense

    def follow(self, dense: Tensor, channels: slice = ALL) -> Tensor:
        """Return what the pointwise chain behind the site makes of a dense map: the tap ``signal``.

        Args:
            dense: from `dense`; itself where no such operators follow.
            channels: which of its channels these are. A chain that mixes channels needs all of them.
        """
        chain = self.site.chain
        return dense if chain is None else chain.apply(dense, self._find_weight, channels)

    def signal(self) -> Tensor:
        """Return the dense map behind the pointwise operators that follow the site."""
        return self.follow(self.dense())

    def decimate(self, dense: Tensor) -> Tensor:
        """Return the samples of a dense map that the site keeps."""
        return self.decimation.decimate(dense, self.size)

    def per_image(self, values: Tensor) -> Tensor:
        """Add up what was computed per map of the batch axis, (B', …) → (B, …)."""
        before, after = self._find_spread(len(values))
        if before == after == 1:
            return values
        return values.reshape(before, -1, after, *values.shape[1:]).sum((0, 2))

    def by_image(self, values: Tensor) -> Tensor:
        """Put side by side what was computed per map and channel, (B', C) → (B, channels of all its maps)."""
        before, after = self._find_spread(len(values))
        return values.reshape(before, -1, after, values.shape[1]).permute(1, 0, 2, 3).flatten(1)

    def _find_spread(self, maps: int) -> tuple[int, int]:
        return (maps, 1) if self.alone and maps else self.site.spread

    def _keep(self, dense: Tensor, images: slice, channels: slice) -> None:
        """Collect the output piece by piece, so that a site isn't computed twice."""
        decimation = self.decimation
        if decimation.weight is None:
            return  # a pool costs less than a copy
        if self._kept is None or self._known is None:
            count = len(decimation.input), decimation.channels
            self._kept = torch.empty(
                *count,
                *self.size,
                dtype=dense.dtype,
                device=dense.device,
                memory_format=_memory_format(dense),
            )
            self._known = np.zeros(count, dtype=bool)
        self._kept[images, channels] = self.decimate(dense)
        self._known[images, channels] = True


def _memory_format(x: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.ndim)
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format
