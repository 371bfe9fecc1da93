"""Strided convolutions, and the depthwise ones with fixed weights that blur."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectral.operators.base import (
    ALL,
    Arguments,
    Decimation,
    Geometry,
    Operator,
    Size,
    as_tuple,
    batched,
    lift,
)
from spectral.operators.registry import register_operator

aten = torch.ops.aten


class Convolving(Operator):
    """What convolves with stride 1."""

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Convolve with stride 1, the groups of these channels alone."""
        g, weight, bias, x = d.geometry, d.weight, d.bias, d.input[images]
        assert weight is not None
        groups = g.groups
        start, stop, _ = channels.indices(len(weight))
        if (start, stop) != (0, len(weight)):
            weight, bias = weight[start:stop], bias[start:stop] if bias is not None else None
            if groups > 1:
                each = d.channels // groups
                groups = (stop - start) // each
                entering = weight.shape[1]
                x = x[:, start // each * entering : (start // each + groups) * entering]
        # Not torch.convolution, which autocast doesn't know.
        convolve: Callable[..., Tensor] = torch.conv2d if len(g.kernel) == 2 else torch.conv3d
        return convolve(x, weight, bias, 1, g.padding, g.dilation, groups)

    def count_channels(self, d: Decimation) -> int:
        """Count the filters."""
        assert d.weight is not None
        return d.weight.shape[0]

    def find_unit(self, d: Decimation) -> int:
        """Return the channels of one group."""
        return self.count_channels(d) // d.geometry.groups if d.geometry.groups > 1 else 1


@register_operator
class Convolution(Convolving):
    """A strided convolution: the dense map has stride 1."""

    kind = "conv"
    names = (
        "aten::convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d", "torchvision::deform_conv2d",
    )  # fmt: skip
    rule = "the convolution with stride 1"
    makes_channels = True
    obstacle = None
    modules = (nn.Conv2d, nn.Conv3d)
    functions = (
        (torch.conv1d, aten.conv1d.default),
        (torch.conv2d, aten.conv2d.default),
        (torch.conv3d, aten.conv3d.default),
    )

    def read(self, a: Arguments) -> Decimation | None:
        """Read a convolution; a transposed one doesn't reduce the resolution."""
        if "offset" in a:
            return self._read_deformable(a)
        x, weight = a["input"], a["weight"]
        rank = weight.ndim - 2
        stride = as_tuple(a["stride"], rank)
        if a.get("transposed") or rank not in (1, 2, 3) or max(stride) < 2:
            return None
        kernel, dilation = tuple(weight.shape[2:]), as_tuple(a["dilation"], rank)
        # undecomposed conv2d; "same" isn't allowed with a stride
        padding = (0,) * rank if isinstance(a["padding"], str) else as_tuple(a["padding"], rank)
        geometry = Geometry(
            self.kind, stride, kernel, padding, dilation, (0,) * rank, groups=int(a["groups"])
        )
        return lift(Decimation(geometry, batched(x, rank), weight, a["bias"]))

    def slides_over(self, a: Arguments) -> int:
        """Slide over all axes that the kernel has."""
        return int(a["weight"].ndim - 2)

    def _read_deformable(self, a: Arguments) -> Decimation | None:
        stride = (int(a["stride_h"]), int(a["stride_w"]))
        if max(stride) < 2:
            return None
        reason = "a deformable convolution: its offsets exist only at the samples that are kept"
        return Decimation(
            Geometry(self.kind, stride, tuple(a["weight"].shape[2:]), reason=reason), a["input"], a["weight"]
        )


@register_operator
class BlurPool(Convolving):
    """A strided depthwise convolution with fixed weights."""

    kind = "blur_pool"
    rule = "the blur with stride 1"
    runs_as = "conv"
    obstacle = "it is anti-aliased already"
