"""Reductions over windows that a view has cut, or over a whole map."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral.operators.base import Arguments, Decimation, Geometry, Operator, Size
from spectral.operators.registry import register_operator


class Reduction(Operator):
    """A reduction over axes that may hold the samples of windows, or a whole map.

    Attributes:
        keeps: arguments on which the result depends, with what stands for them if they are missing.
        compute: the same reduction of a tensor over its last axis.
    """

    acts_on = "windows"
    obstacle = "a view has cut its windows, there is no stride that could be taken off"
    keeps: ClassVar[Mapping[str, Any]] = {}
    compute: ClassVar[Callable[..., Tensor]]

    def read(self, a: Arguments) -> Decimation | None:
        """Read which axes are reduced."""
        x, dims = a["self"], a.get("dim")
        if x.ndim < 2 or not x.is_floating_point():
            return None
        axes = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        geometry = Geometry(self.kind, (0, 0), axes=tuple(axis % x.ndim for axis in axes))
        options = {name: a.get(name, default) for name, default in self.keeps.items()}
        return Decimation(geometry, x, options=options)

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Reduce the window that starts at each sample."""
        samples = [x]
        for axis, extent in enumerate(d.geometry.kernel, start=2):
            n = x.shape[axis] - extent + 1
            samples = [s.narrow(axis, start, n) for s in samples for start in range(extent)]
        return type(self).compute(torch.stack(samples, -1), **d.options)

    def agrees(self, ran: Geometry, found: Geometry) -> bool:
        """Trust the layout: a reduction as it runs doesn't say what its windows are."""
        return True


class Accumulation(Reduction):
    """A reduction that takes one sample of every window after the other, without a copy of the windows."""

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
        return total + part

    def finish(self, total: Tensor, count: int) -> Tensor:
        """Make the result of so many samples."""
        return total


@register_operator
class WindowMax(Accumulation):
    """The maximum over windows."""

    kind = "window_max"
    family = "reduction"
    names = ("aten::amax", "aten::max.dim")
    rule = "the maximum over the window at every sample"

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Keep the larger sample."""
        return torch.maximum(total, part)


@register_operator
class WindowMin(Accumulation):
    """The minimum over windows."""

    kind = "window_min"
    family = "window_min"
    names = ("aten::amin", "aten::min.dim")
    rule = "the minimum over the window at every sample"

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Keep the smaller sample."""
        return torch.minimum(total, part)


@register_operator
class WindowMean(Accumulation):
    """The mean over windows."""

    kind = "window_mean"
    family = "reduction"
    names = ("aten::mean.dim",)
    rule = "the mean over the window at every sample"

    def finish(self, total: Tensor, count: int) -> Tensor:
        """Divide the sum."""
        return total / count


@register_operator
class WindowSum(Accumulation):
    """The sum over windows."""

    kind = "window_sum"
    family = "window_sum"
    names = ("aten::sum.dim_IntList",)
    rule = "the sum over the window at every sample"


@register_operator
class WindowBlend(Accumulation):
    """A weighted sum over windows, as arithmetic of slices makes it."""

    kind = "window_blend"
    rule = "the weighted sum over the window at every sample"

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Add up the samples of the window that starts at each sample, by their weights."""
        wide = x.float() if x.element_size() < 4 else x
        total: Tensor | None = None
        offsets = product(*map(range, d.geometry.kernel))
        for offset, weight in zip(offsets, d.geometry.weights, strict=True):
            part = wide
            for axis, (start, extent) in enumerate(zip(offset, d.geometry.kernel, strict=True), start=2):
                part = part.narrow(axis, start, x.shape[axis] - extent + 1)
            total = part * weight if total is None else total + part * weight
        assert total is not None
        return total.to(x.dtype)


@register_operator
class WindowProduct(Reduction):
    """The product over windows."""

    kind = "window_product"
    family = "window_product"
    names = ("aten::prod.dim_int",)
    rule = "the product over the window at every sample"
    compute = staticmethod(lambda x: x.prod(-1))


@register_operator
class WindowLogSumExp(Reduction):
    """The logarithm of the summed exponentials over windows: a soft maximum."""

    kind = "window_logsumexp"
    family = "window_logsumexp"
    names = ("aten::logsumexp",)
    rule = "the logarithm of the summed exponentials over the window at every sample"
    compute = staticmethod(lambda x: x.logsumexp(-1))


@register_operator
class WindowNorm(Reduction):
    """The norm over windows."""

    kind = "window_norm"
    family = "window_norm"
    names = ("aten::linalg_vector_norm", "aten::norm.ScalarOpt_dim")
    rule = "the norm over the window at every sample"
    keeps: ClassVar[Mapping[str, Any]] = {"ord": None, "p": None}
    compute = staticmethod(lambda x, ord, p: torch.linalg.vector_norm(x, _first(ord, p, 2), -1))


@register_operator
class WindowMedian(Reduction):
    """The median over windows, the lower of two."""

    kind = "window_median"
    family = "window_median"
    names = ("aten::median.dim", "aten::nanmedian.dim")
    rule = "the median over the window at every sample"
    compute = staticmethod(lambda x: x.median(-1)[0])


@register_operator
class WindowStd(Reduction):
    """The standard deviation over windows."""

    kind = "window_std"
    family = "window_std"
    names = ("aten::std.correction", "aten::std.dim")
    rule = "the standard deviation over the window at every sample"
    keeps: ClassVar[Mapping[str, Any]] = {"correction": None, "unbiased": True}
    compute = staticmethod(lambda x, **how: x.std(-1, correction=_correction(**how)))


@register_operator
class WindowVariance(Reduction):
    """The variance over windows."""

    kind = "window_var"
    family = "window_var"
    names = ("aten::var.correction", "aten::var.dim")
    rule = "the variance over the window at every sample"
    keeps: ClassVar[Mapping[str, Any]] = {"correction": None, "unbiased": True}
    compute = staticmethod(lambda x, **how: x.var(-1, correction=_correction(**how)))


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _correction(correction: float | None, unbiased: bool) -> float:
    return correction if correction is not None else float(unbiased)
