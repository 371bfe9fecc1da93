"""Which axes of a tensor are image rows and columns, followed through views, permutations and slices."""

from spectral.axes.calls import Call, is_lattice, tensors_of
from spectral.axes.labels import (
    BATCH,
    CHANNEL,
    IMAGE_AXES,
    LOST,
    MIXED,
    Axis,
    Factor,
    Labels,
    all_factors,
    count_places,
    exact,
    extent_of,
    find_origin,
    find_spacing,
    find_step,
    loses_places,
    resample,
    single,
    unfold_windows,
)
from spectral.axes.layout import Layout, find_layout, make_plain
from spectral.axes.picks import drop_entry
from spectral.axes.rules import ATTENTION, CROPS, JOINS, OVERLAYS, PRODUCTS
from spectral.axes.tracker import FILLS, SIZES, AxisTracker, Order
from spectral.axes.windows import Window
from spectral.operators import operator_name
from spectral.tracing.tensors import memory_of

__all__ = [
    "ATTENTION",
    "BATCH",
    "CHANNEL",
    "CROPS",
    "FILLS",
    "IMAGE_AXES",
    "JOINS",
    "LOST",
    "MIXED",
    "OVERLAYS",
    "PRODUCTS",
    "SIZES",
    "Axis",
    "AxisTracker",
    "Call",
    "Factor",
    "Labels",
    "Layout",
    "Order",
    "Window",
    "all_factors",
    "count_places",
    "drop_entry",
    "exact",
    "extent_of",
    "find_layout",
    "find_origin",
    "find_spacing",
    "find_step",
    "is_lattice",
    "loses_places",
    "make_plain",
    "memory_of",
    "operator_name",
    "resample",
    "single",
    "tensors_of",
    "unfold_windows",
]
