"""Max and average pools, with a window and stride of their own or adaptive; and the global ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.operators.base import (
    Arguments,
    Decimation,
    Geometry,
    Operator,
    Size,
    as_tuple,
    batched,
    by,
    lift,
)
from spectral.operators.registry import register_operator

aten = torch.ops.aten


class Pool(Operator):
    """What both kinds of pools share: how their calls are read."""

    obstacle = None

    def read(self, a: Arguments) -> Decimation | None:
        """Read a pool; one window over the whole map makes it a global one."""
        if "output_size" in a:
            return self._read_adaptive(a)
        rank = a.rank
        kernel = as_tuple(a["kernel_size"], rank)
        stride = as_tuple(a["stride"], rank) if a["stride"] else kernel
        padding = as_tuple(a["padding"], rank)
        x = batched(a["self"], rank)
        whole = all(k >= n for k, n in zip(kernel, x.shape[2:], strict=True)) and not any(padding)
        if max(stride) < 2 and not (whole and max(kernel) > 1):
            return None
        geometry = Geometry(
            "global_pool" if whole else self.kind, stride, kernel, padding,
            as_tuple(a.get("dilation", 1), rank), (0,) * rank, ceil_mode=a["ceil_mode"],
            count_include_pad=a.get("count_include_pad", True), divisor=a.get("divisor_override"),
        )  # fmt: skip
        return lift(Decimation(geometry, x))

    def slides_over(self, a: Arguments) -> int | None:
        """Slide over the axes that the name tells."""
        return a.rank

    def find_obstacle(self, geometry: Geometry) -> str | None:
        """Refuse an adaptive pool: its stride is given by the image."""
        return "its stride depends on the size of the image" if geometry.adaptive else None

    def _read_adaptive(self, a: Arguments) -> Decimation | None:
        rank = a.rank
        x, size = batched(a["self"], rank), as_tuple(a["output_size"], rank)
        extent = tuple(x.shape[2:])
        if size == (1,) * rank:  # autograd's level shows a plain mean: neither level counts it
            return None
        if all(n >= m for n, m in zip(size, extent, strict=True)):
            return None
        zeros, ones = (0,) * rank, (1,) * rank
        windows = [_find_window(m, n) for n, m in zip(size, extent, strict=True)]
        if any(window is None for window in windows):
            reason = f"adaptive pool from {by(extent)} to {by(size)}: its windows are unequal"
            return lift(Decimation(Geometry(self.kind, zeros, ones, zeros, ones, zeros, reason=reason), x))
        kernel, stride = zip(*(window for window in windows if window is not None), strict=True)
        if max(stride) < 2:
            return None
        geometry = Geometry(self.kind, stride, kernel, zeros, ones, zeros, adaptive=self.kind == "avg_pool")
        return lift(Decimation(geometry, x))


@register_operator
class MaxPool(Pool):
    """The maximum over a window."""

    kind = "max_pool"
    names = (
        *(f"aten::max_pool{rank}d" for rank in (1, 2, 3)),
        *(f"aten::max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
        *(f"aten::adaptive_max_pool{rank}d" for rank in (1, 2, 3)),
    )
    rule = "the maximum over the window at every sample"
    modules = (nn.MaxPool2d, nn.MaxPool3d)
    functions = tuple(
        (getattr(home, name), getattr(aten, name).default)
        for home in (torch, F)
        for name in ("max_pool1d", "max_pool2d", "max_pool3d")
    )

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Pool with stride 1; what lies beyond the border is −∞."""
        g = d.geometry
        ends = [p + e for p, e in zip(g.padding, _ceil_extension(d, x, size), strict=True)]
        padded = pad(x, g.padding, ends, -torch.inf)
        pool = F.max_pool2d if len(g.kernel) == 2 else F.max_pool3d
        return pool(padded, g.kernel, 1, 0, g.dilation)


@register_operator
class AveragePool(Pool):
    """The mean over a window."""

    kind = "avg_pool"
    names = (
        *(f"aten::avg_pool{rank}d" for rank in (1, 2, 3)),
        *(f"aten::adaptive_avg_pool{rank}d" for rank in (1, 2, 3)),
        *(f"aten::_adaptive_avg_pool{rank}d" for rank in (1, 2, 3)),
    )
    rule = "the mean over the window at every sample"
    modules = (nn.AvgPool2d, nn.AvgPool3d)
    functions = tuple(
        (getattr(F, name), getattr(aten, name).default) for name in ("avg_pool1d", "avg_pool2d", "avg_pool3d")
    )

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Average with stride 1, rounding as the pool itself does."""
        g = d.geometry
        extension = _ceil_extension(d, x, size)
        if not any(extension) and not g.adaptive:
            return _average(x, g.kernel, g.padding, g.count_include_pad, g.divisor)
        # These take a sum and divide it: in half precision the sum would be rounded on its own.
        wide = x.float() if x.element_size() < 4 else x
        average = _average_adaptive(wide, g.kernel) if g.adaptive else _average_ragged(wide, g, extension)
        return average.to(x.dtype)


@register_operator
class GlobalPool(Operator):
    """A pool over a whole axis or map, whatever operator takes it: what is left is no lattice."""

    kind = "global_pool"


def _find_window(extent: int, count: int) -> tuple[int, int] | None:
    """Return window and stride of an adaptive pool along an axis; None if they aren't the same everywhere.

    Example:
        >>> _find_window(8, 4), _find_window(7, 3), _find_window(7, 6), _find_window(8, 3)
        ((2, 2), (3, 2), (2, 1), None)
    """
    starts = [i * extent // count for i in range(count)]
    windows = {-(-(i + 1) * extent // count) - start for i, start in enumerate(starts)}
    steps = {b - a for a, b in pairwise(starts)} or {extent}
    return (windows.pop(), steps.pop()) if len(windows) == len(steps) == 1 else None


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes by so many samples before and after."""
    if not any(before) and not any(after):
        return x
    pairs = [amount for b, a in zip(reversed(before), reversed(after), strict=True) for amount in (b, a)]
    return F.pad(x, pairs, value=value)


def _ceil_extension(d: Decimation, x: Tensor, output_size: Size) -> Size:
    """How far beyond the right padding the windows of a ``ceil_mode`` pool reach."""
    g = d.geometry
    axes = zip(output_size, g.stride, g.dilation, g.kernel, x.shape[2:], g.padding, strict=True)
    return tuple(
        max(0, (n - 1) * s + dilation * (k - 1) + 1 - extent - 2 * p) for n, s, dilation, k, extent, p in axes
    )


def _average(x: Tensor, kernel: Size, padding: Size | None, include: bool, divisor: int | None) -> Tensor:
    pool: Callable[..., Tensor] = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, kernel, 1, padding or 0, False, include, divisor)


def _average_adaptive(x: Tensor, kernel: Size) -> Tensor:
    """Average as adaptive pools do: axis by axis, which rounds differently."""
    total = _average(x, kernel, None, True, 1)
    for extent in kernel:
        total = total / extent
    return total


def _average_ragged(x: Tensor, g: Geometry, extension: Size) -> Tensor:
    """Average with ``ceil_mode``: samples beyond the padding count in neither the sum nor the divisor."""
    ends = [p + e for p, e in zip(g.padding, extension, strict=True)]
    total = _average(pad(x, g.padding, ends), g.kernel, None, True, 1)
    if g.divisor is not None:
        return total / g.divisor
    ones = x.new_ones((1, 1, *x.shape[2:]))  # reads sizes alone: the map has no other reader
    if g.count_include_pad:
        counted = pad(pad(ones, g.padding, g.padding, 1.0), (0,) * len(ends), extension)
    else:
        counted = pad(ones, g.padding, ends)
    return total / _average(counted, g.kernel, None, True, 1)
