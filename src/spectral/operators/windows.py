"""Windows that are kept whole as channels, and reductions over windows that a view has cut."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import torch
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
    rule = "the window at every sample"

    def read(self, a: Arguments) -> Decimation | None:
        """Read im2col; windows that lie side by side make it space-to-depth."""
        stride = as_tuple(a["stride"], 2)
        if max(stride) < 2:
            return None
        x = batched(a["self"], 2)
        g = Geometry(self.kind, stride, as_tuple(a["kernel_size"], 2), as_tuple(a["padding"], 2),
                     as_tuple(a["dilation"], 2))  # fmt: skip
        if max(Decimation(g, x).output_size) == 1:
            return None
        if g.kernel == g.stride and g.dilation == (1, 1):
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


class Reduction(Operator):
    """A reduction over axes that may hold the samples of windows, or a whole map."""

    family = "reduction"
    acts_on = "windows"

    def read(self, a: Arguments) -> Decimation | None:
        """Read which axes are reduced."""
        x, dims = a["self"], a["dim"]
        if x.ndim < 3 or not x.is_floating_point():
            return None
        axes = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        return Decimation(Geometry(self.kind, (0, 0), axes=tuple(axis % x.ndim for axis in axes)), x)

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Reduce the window that starts at each sample, one of its samples after the other.

        A mean over one axis that holds the windows adds up in this order; over several axes torch's order
        depends on the memory layout, and the last bits with it.
        """
        wide = x.float() if x.element_size() < 4 else x
        total: Tensor | None = None
        for offset in product(*map(range, d.geometry.kernel)):
            part = wide
            for axis, (start, extent) in enumerate(zip(offset, d.geometry.kernel, strict=True), start=2):
                part = part.narrow(axis, start, x.shape[axis] - extent + 1)
            total = part if total is None else self.join(total, part)
        assert total is not None
        return self.finish(total, math.prod(d.geometry.kernel)).to(x.dtype)

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Reduce one more sample of every window."""
        raise NotImplementedError

    def finish(self, total: Tensor, count: int) -> Tensor:
        """Make the result of so many samples."""
        return total

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout: a reduction as it runs doesn't say what its windows are."""
        return True


@register_operator
class WindowMax(Reduction):
    """The maximum over windows."""

    kind = "window_max"
    names = ("aten::amax", "aten::max.dim")
    rule = "the maximum over the window at every sample"

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Keep the larger sample."""
        return torch.maximum(total, part)


@register_operator
class WindowMean(Reduction):
    """The mean over windows."""

    kind = "window_mean"
    names = ("aten::mean.dim",)
    rule = "the mean over the window at every sample"

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Add one more sample."""
        return total + part

    def finish(self, total: Tensor, count: int) -> Tensor:
        """Divide the sum."""
        return total / count


@register_operator
class MatrixPool(Operator):
    """A product that sums over places, to fewer of them."""

    kind = "matmul_pool"
