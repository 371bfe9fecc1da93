"""What is left of axes that are summed over: reductions, products, attention, Fourier transforms."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import Tensor

from spectral.axes.calls import Call
from spectral.axes.labels import (
    CHANNEL,
    LOST,
    Axis,
    Labels,
    all_factors,
    exact,
    mixed,
    resample,
    single,
    unknown,
)
from spectral.operators import Arguments


def label_reduce(call: Call) -> list[Labels]:
    """Take the axes away, or leave one entry of each, that are reduced."""
    x = call.a["self"] if "self" in call.a else call.inputs[0]
    dims = call.a.get("dim")
    asked = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % x.ndim for d in asked} if x.ndim else set()
    found = []
    for y in call.outputs:
        if y.ndim == x.ndim:
            found.append(
                tuple(single(LOST, 1) if a in gone else axis for a, axis in enumerate(call.labels(x)))
            )
        else:
            kept = tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)
            found.append(kept if len(kept) == y.ndim else unknown(y.shape))
    return found


def label_product(call: Call) -> list[Labels]:
    """A matrix product: rows of the first factor, columns of the second."""
    a, y = call.a, call.outputs[0]
    first, second = find_factors(a)
    left, right = call.labels(first), call.labels(second)
    columns = single(CHANNEL, y.shape[-1]) if y.ndim else single(CHANNEL, 1)
    transposed = a.name == "aten::linear"
    if not transposed and call.known(second):
        columns = right[-1]
    elif first.shape[-1:] == y.shape[-1:] and left and all(f.spatial for f in left[-1]):
        columns = left[-1]  # places mixed with each other are still places
    if first.ndim >= 2 and first.ndim == y.ndim:
        batch = left[:-1] if call.known(first) else (*right[:-2], left[-2])
        return [(*batch, columns)]
    return [unknown(y.shape)]


def find_factors(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return both factors of a product, whatever the schema calls them."""
    for first, second in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other"),
                          ("input", "weight"), ("self", "vec")):  # fmt: skip
        if first in a and second in a:
            return a[first], a[second]
    raise KeyError(a.name)


def label_attend(call: Call) -> list[Labels]:
    """Fused attention: one output for each query."""
    query = call.a["query"]
    labels = call.labels(query) if call.known(query) else unknown(query.shape)
    value = call.labels(call.a["value"])[-1]
    return [(*labels[:-1], value) if y.ndim == query.ndim else labels[: y.ndim] for y in call.outputs]


def label_embed(call: Call) -> list[Labels]:
    """Look up vectors for integers."""
    return [(*call.labels(call.a["indices"]), single(CHANNEL, y.shape[-1])) for y in call.outputs]


def label_transform(call: Call) -> list[Labels]:
    """A Fourier transform and its inverse: samples become frequencies, and samples again.

    Of the samples inside windows the transform makes channels: a spectrum for each window.
    """
    x, y = call.a["self"], call.outputs[0]
    labels = list(call.labels(x))
    for dim in call.a["dim"]:
        axis, n = labels[dim], y.shape[dim]
        only = axis.only
        if only is None or not only.spatial:
            labels[dim] = mixed([axis], n) if axis.spatial else single(CHANNEL, n)
        elif only.spectrum:
            step = exact(only.step * Fraction(only.spectrum, n))
            labels[dim] = Axis((replace(only, extent=n, step=step, spectrum=0),))
        elif any(f.kind == only.kind and f.step > only.step for f in all_factors(call.labels(x))):
            labels[dim] = single(CHANNEL, n)
        else:
            labels[dim] = Axis((replace(only, extent=n, spectrum=only.extent),))
    return [tuple(labels)]


def label_short_time_transform(call: Call) -> list[Labels]:
    """stft where torch doesn't write it as views: (B, frequencies, frames)."""
    y, x = call.outputs[0], call.a["self"]
    old = call.labels(x)[-1]
    hop = int(call.a.get("hop_length") or call.a["n_fft"] // 4)
    frames = resample(old, y.shape[-1], hop)
    return [(*call.labels(x)[:-1], single(CHANNEL, y.shape[-2]), frames)]
