"""Operators that reduce resolution: one class per kind, which everything else asks."""

# Importing the kinds registers them.
from spectral.operators import convolution, fourier, own, places, pools, reductions, resize, slices, windows
from spectral.operators.base import (
    ALL,
    KINDS,
    LOSSLESS,
    Arguments,
    Band,
    Decimation,
    Geometry,
    Mask,
    Operator,
    Size,
    Spectrum,
    operator_of,
)
from spectral.operators.facts import Facts, tell_facts
from spectral.operators.pointwise import is_pointwise
from spectral.operators.registry import (
    find_function,
    find_plain_operator,
    find_reader,
    find_sliding,
    list_replaceable_kinds,
    name_arguments,
    operator_name,
    parse,
    register_operator,
)
from spectral.operators.slices import merge_slices

__all__ = [
    "ALL",
    "KINDS",
    "LOSSLESS",
    "Arguments",
    "Band",
    "Decimation",
    "Facts",
    "Geometry",
    "Mask",
    "Operator",
    "Size",
    "Spectrum",
    "convolution",
    "find_function",
    "find_plain_operator",
    "find_reader",
    "find_sliding",
    "fourier",
    "is_pointwise",
    "list_replaceable_kinds",
    "merge_slices",
    "name_arguments",
    "operator_name",
    "operator_of",
    "own",
    "parse",
    "places",
    "pools",
    "reductions",
    "register_operator",
    "resize",
    "slices",
    "tell_facts",
    "windows",
]
