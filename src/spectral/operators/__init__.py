"""Operators that reduce resolution: one class per kind, which everything else asks."""

# Importing the kinds registers them.
from spectral.operators import convolution, own, pools, resize, slices, windows
from spectral.operators.base import (
    ALL,
    KINDS,
    LOSSLESS,
    Arguments,
    Decimation,
    Family,
    Geometry,
    Operator,
    Size,
    operator_of,
)
from spectral.operators.registry import (
    find_function,
    find_plain_operator,
    find_sliding,
    list_replaceable_kinds,
    parse,
    register_operator,
)
from spectral.operators.slices import merge_slices

__all__ = [
    "ALL",
    "KINDS",
    "LOSSLESS",
    "Arguments",
    "Decimation",
    "Family",
    "Geometry",
    "Operator",
    "Size",
    "convolution",
    "find_function",
    "find_plain_operator",
    "find_sliding",
    "list_replaceable_kinds",
    "merge_slices",
    "operator_of",
    "own",
    "parse",
    "pools",
    "register_operator",
    "resize",
    "slices",
    "windows",
]
