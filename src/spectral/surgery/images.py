"""What `convert` does against images of the spectrum: a low-pass wherever a lattice gets finer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function

from spectral.causes import Upsampling
from spectral.causes.watching import FILTERS_IMAGES, KEEPS_LATTICE
from spectral.layers.filters import extend
from spectral.numerics.resampling import resample
from spectral.surgery.functionals import Keys, join_alike, run_instead
from spectral.tracing.tracker import paused

LOW_PASSES = ("ideal", "binomial")  # names for `convert`


@dataclass(frozen=True)
class LowPass:
    """A low-pass at the old Nyquist frequency, behind a function that makes a lattice finer.

    Attributes:
        kind: one of `LOW_PASSES`.
        axes: of the map.
        factor: how many times finer the lattice is along each.
        border: what a binomial filter meets at the border of the map.
    """

    kind: str
    axes: tuple[int, ...]
    factor: tuple[Fraction, ...]
    border: str

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the function, and low-pass what it gives."""
        return pass_images_low(func(*args, **kwargs), self)

    def run(self, y: Tensor) -> Tensor:
        """Low-pass a map."""
        with paused():  # what it consists of is no site and no cause
            for axis, ratio in zip(self.axes, self.factor, strict=True):
                if ratio > 1:
                    y = (
                        _pass_low(y, axis, ratio)
                        if self.kind == "ideal"
                        else _blur(y, axis, ratio, self.border)
                    )
            return y


def pass_images_low(y: Tensor, low_pass: LowPass) -> Tensor:
    """Low-pass a map: one function for all that watch or replace functions."""
    if has_torch_function((y,)):
        made: Tensor = handle_torch_function(pass_images_low, (y,), y, low_pass)
        return made
    return low_pass.run(y)


setattr(pass_images_low, KEEPS_LATTICE, True)
setattr(pass_images_low, FILTERS_IMAGES, True)


def filter_images(
    model: nn.Module, places: Sequence[Upsampling], keys: Keys, kind: str, border: str
) -> Mapping[str, str | None]:
    """Put a low-pass behind every place; of each place the reason why not, or None."""
    modules = dict(model.named_modules())
    reasons = {place.key: _find_obstacle(modules[place.module], place) for place in places}
    chosen = {
        place.key: LowPass(kind, place.axes, place.factor, border)
        for place in places if reasons[place.key] is None
    }  # fmt: skip
    reasons |= run_instead(modules, keys, chosen, join_alike)
    return {place.name: reasons[place.key] for place in places}


def _find_obstacle(module: nn.Module, place: Upsampling) -> str | None:
    if place.op == "write":
        return "its samples are written into a tensor, and nothing tells when that is whole"
    if isinstance(module, fx.GraphModule):
        return "it is a function of a traced graph, which has no code to run it in"
    return None


def _pass_low(y: Tensor, axis: int, ratio: Fraction) -> Tensor:
    """Keep the bins below the old lattice's Nyquist frequency."""
    extent = y.shape[axis]
    highest = math.ceil(Fraction(extent) / (2 * ratio)) - 1
    return resample(y, axis, extent, 0, highest)


def _blur(y: Tensor, axis: int, ratio: Fraction, border: str) -> Tensor:
    """Convolve with two boxes as long as the old lattice's steps: at a factor of 2 with 1 2 1."""
    box = np.ones(math.ceil(ratio))
    taps = torch.as_tensor(np.convolve(box, box) / box.sum() ** 2).to(y.device, y.dtype)
    reach = len(taps) // 2
    wide, extent = extend(y, axis, reach, reach, border), y.shape[axis]
    parts = [tap * wide.narrow(axis, i, extent) for i, tap in enumerate(taps)]
    return torch.stack(parts).sum(0)
