"""Operators that take places together without a dense map: what they do is listed with the reason."""

from __future__ import annotations

from spectral.operators.base import Operator
from spectral.operators.registry import register_operator


@register_operator
class MatrixPool(Operator):
    """A product that sums over places, to fewer of them."""

    kind = "matmul_pool"


@register_operator
class Unrecognised(Operator):
    """Any operator that we don't know."""

    kind = "unrecognised"


@register_operator
class Arrival(Operator):
    """A map that comes from outside torch."""

    kind = "outside"


@register_operator
class Mask(Operator):
    """Samples picked out of all, whatever axis they are on."""

    kind = "mask"
    names = ("aten::take", "aten::masked_select")
    acts_on = "places"
    picks = True
    reason = "its samples are picked one by one, wherever they are"


@register_operator
class Ranking(Operator):
    """Samples picked by their rank."""

    kind = "topk"
    names = ("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue", "aten::mode", "torchvision::nms")
    acts_on = "places"
    picks = True
    reason = "its samples are picked by their value, wherever they are"


@register_operator
class Position(Operator):
    """The position of the largest or smallest sample."""

    kind = "argmax"
    names = ("aten::argmax", "aten::argmin")
    acts_on = "places"
    reason = "it gives the positions of samples, not the samples"


@register_operator
class Condition(Operator):
    """Whether any or all samples are so, and how many."""

    kind = "condition"
    names = ("aten::any", "aten::all", "aten::count_nonzero", "aten::nonzero")
    acts_on = "places"
    reason = "it tells which samples fulfil a condition, not the samples"


@register_operator
class Statistics(Operator):
    """Two statistics of the same samples at once."""

    kind = "statistics"
    names = ("aten::var_mean.correction", "aten::std_mean.correction", "aten::var_mean.dim",
             "aten::std_mean.dim", "aten::aminmax")  # fmt: skip
    acts_on = "places"
    reason = "it has two outputs, of which each would be a site"


@register_operator
class FractionalPool(Operator):
    """Max pooling by a fraction."""

    kind = "fractional_max_pool"
    names = ("aten::fractional_max_pool2d", "aten::fractional_max_pool3d")
    acts_on = "places"
    reason = "its windows are unequal, and drawn at random"


@register_operator
class ShortTimeTransform(Operator):
    """Spectra of windows."""

    kind = "stft"
    names = ("aten::stft",)
    acts_on = "places"
    reason = "its windows become spectra, of which each is a channel"
