"""Windows that are kept whole as channels."""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from spectral.operators.base import (
    LOSSLESS,
    Arguments,
    Decimation,
    Geometry,
    Operator,
    Size,
    as_tuple,
    batched,
)
from spectral.operators.registry import register_operator


class Windows(Operator):
    """What keeps whole windows: they are moved to the channels."""

    def arrange(self, d: Decimation, output: Tensor) -> Tensor:
        """Return im2col's columns as a batch of maps."""
        if output.ndim < 4:
            output = output if output.ndim == 3 else output[None]
            return output.reshape(*output.shape[:2], *d.output_size)
        return super().arrange(d, output)


@register_operator
class Unfold(Windows):
    """im2col with a stride: the window at every sample, as channels."""

    kind = "unfold"
    names = ("aten::im2col",)
    obstacle = "it makes channels of its windows, which a layer would have to keep apart"
    rule = "the window at every sample"

    def read(self, a: Arguments) -> Decimation | None:
        """Read im2col; windows that lie side by side make it space-to-depth, and so does a single one."""
        x = batched(a["self"], 2)
        g = Geometry(self.kind, as_tuple(a["stride"], 2), as_tuple(a["kernel_size"], 2),
                     as_tuple(a["padding"], 2), as_tuple(a["dilation"], 2))  # fmt: skip
        whole = g.dilation == (1, 1)
        if max(Decimation(g, x).output_size) == 1:
            if not whole:
                return None
            g = replace(g, stride=g.kernel)
        if max(g.stride) < 2:
            return None
        if g.kernel == g.stride and whole:
            g = replace(g, kind="space_to_depth", reason=LOSSLESS)
        return Decimation(g, x)

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Unfold with stride 1."""
        g = d.geometry
        columns = F.unfold(x, g.kernel, g.dilation, g.padding, 1)
        sizes = zip(x.shape[-2:], g.padding, g.dilation, g.kernel, strict=True)
        extents = (n + 2 * p - dilation * (k - 1) for n, p, dilation, k in sizes)
        return columns.reshape(*columns.shape[:2], *extents)

    def count_channels(self, d: Decimation) -> int:
        """Count the samples of all windows."""
        return d.input.shape[1] * math.prod(d.geometry.kernel)

    def find_unit(self, d: Decimation) -> int:
        """Return the samples of one window."""
        return math.prod(d.geometry.kernel)


@register_operator
class SpaceToDepth(Windows):
    """Windows side by side, every phase a channel, in any spelling: nothing is lost."""

    kind = "space_to_depth"
    names = ("aten::pixel_unshuffle",)

    def read(self, a: Arguments) -> Decimation | None:
        """Read pixel_unshuffle where torch doesn't write it as views."""
        factor = (int(a["downscale_factor"]),) * 2
        return Decimation(Geometry(self.kind, factor, factor, reason=LOSSLESS), batched(a["self"], 2))
