"""Resizing to fewer samples, and sampling at computed positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectral.operators.base import Arguments, Decimation, Geometry, Operator, Size, as_tuple, by, lift
from spectral.operators.registry import register_operator

_SCALES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}
_RULES = {
    **{f"aten::upsample_nearest{rank}d": "nearest" for rank in (1, 2, 3)},
    **{f"aten::_upsample_nearest_exact{rank}d": "nearest-exact" for rank in (1, 2, 3)},
    "aten::upsample_linear1d": "linear",
    "aten::upsample_bilinear2d": "linear",
    "aten::upsample_trilinear3d": "linear",
    "aten::_upsample_bilinear2d_aa": "antialiased bilinear",
    "aten::upsample_bicubic2d": "bicubic",
    "aten::_upsample_bicubic2d_aa": "antialiased bicubic",
}


@register_operator
class Resize(Operator):
    """Interpolation to fewer samples; by a whole factor it keeps samples, or means of two neighbours."""

    kind = "resize"
    names = tuple(_RULES)
    rule = "the map itself"
    obstacle = "its stride depends on the size of the image"

    def read(self, a: Arguments) -> Decimation | None:
        """Read a resize in any of torch's spellings, by size or by factor."""
        rule, rank = _RULES[a.name], a.rank
        x = a.get("self", a.get("input"))
        assert isinstance(x, Tensor)
        extent = tuple(x.shape[2:])
        given = a.get("scale_factors") or [a.get(key) for key in _SCALES[rank]]
        factors: list[float | None] = list(given)
        if a.get("output_size") is not None:
            size = as_tuple(a["output_size"], rank)
        else:
            size = tuple(int(n * (f or 1)) for n, f in zip(extent, factors, strict=True))
        if all(n >= m for n, m in zip(size, extent, strict=True)):
            return None
        aligned = bool(a.get("align_corners"))
        used = [_find_factor(*axis, aligned) for axis in zip(factors, size, extent, strict=True)]
        stride = tuple(max(round(factor), 1) for factor in used)
        exact = used == list(stride)
        geometry = self._place(rule, stride, aligned) if exact else None
        if geometry is None:
            why = "its corners are aligned, the factor" if aligned else "a factor that"
            why = "filtered resizing" if exact else f"{why} is no integer"
            reason = f"{rule} resize {by(extent)} to {by(size)}: {why}"
            geometry = Geometry(self.kind, (0,) * rank, (1,) * rank, phase=(0,) * rank, reason=reason)
        return lift(Decimation(geometry, x))

    def slides_over(self, a: Arguments) -> int | None:
        """Slide over the axes that the name tells."""
        return a.rank

    def make_dense(self, d: Decimation, x: Tensor, size: Size) -> Tensor:
        """Average each sample and the next where the kernel has two, which lie between the samples kept."""
        return _average_neighbours(x, d.geometry.kernel)

    def describe(self, geometry: Geometry) -> str:
        """Say between how many samples the ones that are kept lie."""
        window = " × ".join(map(str, geometry.kernel))
        return f"the mean of {window} neighbours" if max(geometry.kernel) > 1 else self.rule

    def _place(self, rule: str, stride: Size, align_corners: bool) -> Geometry | None:
        """Find where the samples of a resize by whole factors lie; None if it has no dense map."""
        plain = Geometry(self.kind, stride, (1,) * len(stride), phase=(0,) * len(stride))
        if rule == "nearest" or align_corners:
            return plain
        if rule == "nearest-exact":
            return replace(plain, phase=tuple(s // 2 for s in stride))
        if rule != "linear" and not (rule == "bicubic" and all(s % 2 for s in stride)):
            return None
        # The middle of an odd block is a sample, that of an even block lies between the inner two.
        return replace(
            plain, kernel=tuple(2 - s % 2 for s in stride), phase=tuple((s - 1) // 2 for s in stride)
        )


@register_operator
class GridSample(Operator):
    """Sampling at computed positions."""

    kind = "grid_sample"
    scatters = True
    names = ("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")

    def read(self, a: Arguments) -> Decimation | None:
        """Read a sampling at fewer positions than there are samples."""
        x, grid = a["input"], a["grid"]
        if grid[..., 0][0].numel() >= x[0, 0].numel():
            return None
        reason = "sampled at computed positions, which are no lattice"
        return Decimation(Geometry(self.kind, (0, 0), reason=reason), x)

    def slides_over(self, a: Arguments) -> int | None:
        """Sample rows and columns, or those of a video."""
        return int(a["input"].ndim - 2)


@register_operator
class RegionPool(Operator):
    """Pooling of regions of interest."""

    kind = "roi_pool"
    names = ("torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align",
             "torchvision::ps_roi_pool")  # fmt: skip

    def read(self, a: Arguments) -> Decimation | None:
        """Read any call: boxes are of any size."""
        reason = "regions of interest: each box is resampled by its own factor"
        return Decimation(Geometry(self.kind, (0, 0), reason=reason), a["input"])

    def slides_over(self, a: Arguments) -> int | None:
        """Sample rows and columns."""
        return 2


def _find_factor(given: float | None, size: int, extent: int, aligned: bool) -> float:
    """Return by what factor an axis is resized; with aligned corners how far apart the samples kept lie."""
    if aligned:  # whatever factor was given, first and last sample stay; of a single one it is the first
        return extent / size if min(size, extent) == 1 else (extent - 1) / (size - 1)
    # A factor that was given is the one that is used, in single precision, whatever the sizes say: what it
    # leaves over at the end isn't looked at.
    return torch.tensor(1 / given).item() if given else extent / max(size, 1)


def _average_neighbours(x: Tensor, kernel: Size) -> Tensor:
    """Mean of each sample and the next where the kernel has two.

    Equal to what a linear resize gives to rounding: torch has several orders, by size and threads.
    """
    if max(kernel) == 1:
        return x
    wide = x.float() if x.element_size() < 4 else x
    for axis, size in reversed(list(enumerate(kernel, start=2))):
        if size == 2:
            n = wide.shape[axis] - 1
            wide = 0.5 * wide.narrow(axis, 0, n) + 0.5 * wide.narrow(axis, 1, n)
    return wide.to(x.dtype)
