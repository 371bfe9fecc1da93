"""What views, joins, pads and windows do to axes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import Tensor

from spectral.axes.calls import Call, align, replaced
from spectral.axes.labels import (
    CHANNEL,
    IMAGE_AXES,
    LOST,
    MIXED,
    Axis,
    Factor,
    Labels,
    cut,
    cut_windows,
    exact,
    join_along,
    mixed,
    resample,
    single,
    through_view,
    unknown,
)


def label_view(call: Call) -> list[Labels]:
    """Deal the factors of axes out anew."""
    x = call.a["self"]
    return [through_view(call.labels(x), tuple(x.shape), tuple(y.shape), call.number) for y in call.outputs]


def label_permute(call: Call) -> list[Labels]:
    """Put axes in another order."""
    labels = call.labels(call.a["self"])
    return [tuple(labels[axis] for axis in call.a["dims"])]


def label_transpose(call: Call) -> list[Labels]:
    """Swap two axes."""
    labels = list(call.labels(call.a["self"]))
    first, second = call.a.get("dim0", 0), call.a.get("dim1", -1)
    if len(labels) > 1:
        labels[first], labels[second] = labels[second], labels[first]
    return [tuple(labels)]


def label_unsqueeze(call: Call) -> list[Labels]:
    """Put an axis of one entry between others."""
    labels, axis = call.labels(call.a["self"]), call.a["dim"] % call.outputs[0].ndim
    return [(*labels[:axis], single(LOST, 1), *labels[axis:])]


def label_squeeze(call: Call) -> list[Labels]:
    """Take axes of one entry away."""
    x, y = call.a["self"], call.outputs[0]
    dims = call.a.get("dim")
    asked = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % x.ndim for d in asked if x.ndim and x.shape[d] == 1}
    if x.ndim == y.ndim and gone:  # in place: x is the result already
        return [call.labels(x)]
    return [tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)]


def label_expand(call: Call) -> list[Labels]:
    """Repeat samples: an axis of one sample, or new ones in front, hold no places."""
    return [align(call, y) for y in call.outputs]


def label_cat(call: Call) -> list[Labels]:
    """Join tensors along an axis."""
    tensors = [t for t in call.a["tensors"] if t.numel() or t.ndim > 1]
    if not any(map(call.known, tensors)):
        return [unknown(call.outputs[0].shape)]  # of the image there is nothing in it: no detections
    y, axis = call.outputs[0], call.a.get("dim", 0) % call.outputs[0].ndim
    first = next(t for t in tensors if call.known(t))
    old = [call.labels(t)[axis] if call.known(t) else single(LOST, t.shape[axis]) for t in tensors]
    if y.ndim == 2 and any(own.only is not None and own.only.kind == CHANNEL for own in old):
        # Beside channels, the numbers of an input that has no others are features, and no signal.
        old = [single(CHANNEL, own.extent) if own.only and own.only.spatial else own for own in old]
    joined = join_along(old, [t.shape[axis] for t in tensors])
    return [replaced(call.labels(first), axis, joined) if first.ndim == y.ndim else align(call, y)]


def label_stack(call: Call) -> list[Labels]:
    """Join tensors along a new axis."""
    y, axis = call.outputs[0], call.a.get("dim", 0) % call.outputs[0].ndim
    labels = call.labels(next(t for t in call.a["tensors"] if call.known(t)))
    return [(*labels[:axis], single(LOST, y.shape[axis]), *labels[axis:])]


def label_unfold(call: Call) -> list[Labels]:
    """x.unfold(axis, size, step): windows stay on the axis, their samples go to a new last one."""
    x, axis = call.a["self"], call.a["dimension"] % call.a["self"].ndim
    size, step, y = call.a["size"], call.a["step"], call.outputs[0]
    old = call.labels(x)[axis]
    only = old.only
    if only is None:
        return [(*replaced(call.labels(x), axis, mixed([old], y.shape[axis])), mixed([old], size))]
    outer, inner = cut_windows(only, size, step, y.shape[axis], call.number)
    return [(*replaced(call.labels(x), axis, outer), inner)]


def label_im2col(call: Call) -> list[Labels]:
    """unfold(x, kernel, dilation, padding, stride): channels with their windows, then positions."""
    labels, y, sizes = call.labels(call.a["self"]), call.outputs[0], call.a["self"].shape[-2:]
    kernel, dilation, stride = (list(call.a[name]) for name in ("kernel_size", "dilation", "stride"))
    axes = [axis.only for axis in labels[-2:]]
    if not all(f is not None and f.kind in IMAGE_AXES for f in axes):
        return [(*labels[:-3], single(CHANNEL, y.shape[-2]), single(MIXED, y.shape[-1]))]
    image = [f for f in axes if f is not None]
    numbers = zip(sizes, kernel, dilation, call.a["padding"], stride, strict=True)
    counts = [(n + 2 * padding - d * (k - 1) - 1) // s + 1 for n, k, d, padding, s in numbers]
    outer = [Factor(f.kind, n, exact(f.step * s), call.number)
             for f, n, s in zip(image, counts, stride, strict=True)]  # fmt: skip
    if kernel == stride and dilation == [1, 1]:
        inner = [Factor(f.kind, k, f.step, call.number, folded=True)
                 for f, k in zip(image, kernel, strict=True)]  # fmt: skip
        return [(*labels[:-3], Axis((*labels[-3].factors, *inner)), Axis(tuple(outer)))]
    return [(*labels[:-3], single(CHANNEL, y.shape[-2]), Axis(tuple(outer)))]


def label_pixel_unshuffle(call: Call) -> list[Labels]:
    """Windows become channels: behind each channel its rows, then its columns."""
    labels, r, y = call.labels(call.a["self"]), int(call.a["downscale_factor"]), call.outputs[0]
    axes = [axis.only for axis in labels[-2:]]
    if not all(f is not None and f.kind in IMAGE_AXES for f in axes):
        return [(*labels[:-3], single(CHANNEL, y.shape[-3]), *(mixed([a], n) for a, n in
                zip(labels[-2:], y.shape[-2:], strict=True)))]  # fmt: skip
    image = [f for f in axes if f is not None]
    inner = [Factor(f.kind, r, f.step, call.number, folded=True) for f in image]
    outer = [Axis((Factor(f.kind, f.extent // r, f.step * r, call.number),)) for f in image]
    return [(*labels[:-3], Axis((*labels[-3].factors, *inner)), *outer)]


def label_pixel_shuffle(call: Call) -> list[Labels]:
    """Channels become places between those that there are: a finer lattice."""
    x, y = call.a["self"], call.outputs[0]
    return [(*call.labels(x)[:-3], single(CHANNEL, y.shape[-3]), *_make_finer(call, x, y))]


def label_unpool(call: Call) -> list[Labels]:
    """Samples are put between others that are 0."""
    x, y = call.a["self"], call.outputs[0]
    axes = _make_finer(call, x, y)
    return [(*call.labels(x)[: -len(axes)], *axes)]


def _make_finer(call: Call, x: Tensor, y: Tensor) -> list[Axis]:
    """Return the last two axes of a map as those of a finer one over the same extent."""
    sizes = zip(call.labels(x)[-2:], x.shape[-2:], y.shape[-2:], strict=True)
    return [resample(axis, n, Fraction(m, n)) for axis, m, n in sizes]


def label_pad(call: Call) -> list[Labels]:
    """Samples are added at the ends of the last axes, or taken away."""
    pads, x = list(call.a.get("pad", call.a.get("padding"))), call.a["self"]
    labels = list(call.labels(x))
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        axis = labels[-1 - i]
        if axis.only is not None:
            start = axis.only.start - before * axis.only.step
            labels[-1 - i] = Axis((replace(axis.only, extent=axis.extent + before + after, start=start),))
        else:
            kept = cut(axis, max(-before, 0), axis.extent + min(before, 0) + min(after, 0))
            added = [single(LOST, max(before, 0)), kept, single(LOST, max(after, 0))]
            labels[-1 - i] = join_along(added, [one.extent for one in added])
    return [tuple(labels)]


def label_as_strided(call: Call) -> list[Labels]:
    """Take samples by their distance in memory: each axis steps along the source axis that it divides by."""
    x = call.a["self"]
    labels = call.labels(x)
    order = sorted((a for a in range(x.ndim) if x.shape[a] > 1), key=lambda a: -x.stride(a))
    offset = (call.a["storage_offset"] if call.a["storage_offset"] is not None else x.storage_offset()
              ) - x.storage_offset()  # fmt: skip
    for a in order:
        place, offset = divmod(offset, x.stride(a)) if x.stride(a) else (0, offset)
        only = labels[a].only
        if only is not None and place:
            labels = replaced(labels, a, Axis((replace(only, start=only.start + place * only.step),)))
    found: list[Axis] = []
    used: set[int] = set()
    for n, distance in zip(call.a["size"], call.a["stride"], strict=True):
        axis = next((a for a in order if x.stride(a) and distance >= x.stride(a)), None)
        if n == 1 or axis is None:
            found.append(single(LOST, n))
            continue
        step, rest = divmod(distance, x.stride(axis))
        only = labels[axis].only
        if rest or only is None:
            found.append(labels[axis] if step == 1 and n == labels[axis].extent else mixed([labels[axis]], n))
        else:
            start = 0 if axis in used else only.start  # those of all factors of a kind add up
            found.append(
                Axis((replace(only, extent=n, step=only.step * step, cut=call.number, start=start),))
            )
            used.add(axis)
    return [tuple(found)]


def label_view_as_real(call: Call) -> list[Labels]:
    """Put real and imaginary part on a new last axis."""
    return [(*call.labels(call.a["self"]), single(LOST, 2))]


def label_view_as_complex(call: Call) -> list[Labels]:
    """Take real and imaginary part together."""
    return [call.labels(call.a["self"])[:-1]]


def label_diagonal(call: Call) -> list[Labels]:
    """Keep the diagonal of two axes, which mixes them."""
    x = call.a["self"]
    gone = {call.a["dim1"] % x.ndim, call.a["dim2"] % x.ndim}
    axes = [axis for a, axis in enumerate(call.labels(x)) if a in gone]
    kept = tuple(axis for a, axis in enumerate(call.labels(x)) if a not in gone)
    return [(*kept, mixed(axes, call.outputs[0].shape[-1]))]


def label_overlay(call: Call) -> list[Labels]:
    """unfold_backward: windows of an axis are laid over each other again, a step apart."""
    x, axis = call.a["grad_in"], call.a["dim"]
    labels, y = call.labels(x)[:-1], call.outputs[0]
    frames = labels[axis].only
    if frames is None or frames.kind not in IMAGE_AXES:
        return [replaced(labels, axis, mixed([labels[axis]], y.shape[axis]))]
    step = exact(Fraction(frames.step) / call.a["step"])
    return [replaced(labels, axis, Axis((replace(frames, extent=y.shape[axis], step=step),)))]


def label_fold(call: Call) -> list[Labels]:
    """col2im: rows and columns are there again."""
    labels, y = call.labels(call.a["self"]), call.outputs[0]
    kinds = IMAGE_AXES[-2:]
    image = [single(kind, n) for kind, n in zip(kinds, y.shape[-2:], strict=True)]
    return [(*labels[:-2], single(CHANNEL, y.shape[-3]), *image)]
