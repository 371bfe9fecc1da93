"""Which axes of a tensor are image rows and columns, followed through views, permutations and slices.

An operator's name doesn't tell whether it loses resolution: a step-2 slice is usually not spatial (rotary
embeddings, boxes, channels), and space-to-depth or window pooling are a view and something harmless. What
tells is where the samples of the image's axes have gone, so each tensor axis is described by the factors that
it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectral.operators import find_sliding

IMAGE_AXES = ("t", "h", "w")  # time, rows, columns: the last axes of a video, image or signal batch
BATCH, CHANNEL, LOST = "b", "c", "?"


@dataclass(frozen=True)
class Factor:
    """A part of a tensor axis: ``extent`` samples of the axis ``kind``, ``step`` samples of it apart.

    Splitting rows (56) into (28, 2) gives the factors h:28 in steps of 2 and h:2 in steps of 1. ``kind`` is
    one of b, c, t, h, w; "s" for image axes that are mixed beyond recognition, "?" where nothing is known.
    ``cut`` numbers the view that split it off.
    """

    kind: str
    extent: int
    step: int = 1
    cut: int = field(default=0, compare=False)

    @property
    def spatial(self) -> bool:
        """Whether its samples are different places of the image."""
        return self.kind in (*IMAGE_AXES, "s")


@dataclass(frozen=True)
class Window:
    """How an image axis was cut: samples per window, from one to the next, windows, and by which view."""

    kind: str
    size: int
    stride: int
    count: int
    cut: int


Axis = tuple[Factor, ...]
Labels = tuple[Axis, ...]

_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "view_copy"}
_PRODUCTS = {"mm", "bmm", "matmul", "addmm", "baddbmm", "linear"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "var", "std", "argmax", "prod"}
_CONSTANTS = {
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full",
}  # fmt: skip
_FILLED_IN_PLACE = {"copy_", "index_put_", "scatter_", "index_copy_", "_index_put_impl_"}


class AxisTracker:
    """Labels of the tensors seen so far: mark the image, then follow every operator.

    Only what has been computed from the image has labels.
    """

    def __init__(self) -> None:
        self.cuts = 0  # views so far
        self._unfolded: set[int] = set()  # those that im2col made: one site, however often they are joined
        self._labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._learned: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._filled: set[int] = set()

    def mark_image(self, x: Tensor, batched: bool = True) -> None:
        """Label an input: (B, W), (B, C, W), (B, C, H, W) or (B, C, T, H, W); unbatched (C, H, W)."""
        leading = [BATCH, CHANNEL] if batched and x.ndim > 2 else [BATCH] if batched else [CHANNEL]
        kinds = [*leading, *IMAGE_AXES[-(x.ndim - len(leading)) :]]
        self._labels[x] = tuple((Factor(kind, n),) for kind, n in zip(kinds, x.shape, strict=True))

    def mark_learned(self, weights: Sequence[Tensor]) -> None:
        """Note the parameters."""
        for weight in weights:
            self._learned[weight] = True

    def comes_from_weights(self, x: Tensor) -> bool:
        """Whether a tensor is a parameter or was computed from parameters and not from the image."""
        return x in self._learned

    def mark_decimated(self, x: Tensor, output: Tensor) -> None:
        """Label what a layer made of maps (B, C, H, W), whatever operators it used."""
        self._labels[output] = self._through_lattice(x, output, 2)

    def labels(self, x: Tensor) -> Labels:
        """Return the labels of a tensor; all "?" where nothing is known."""
        known = self._labels.get(x)
        return known if known is not None and len(known) == x.ndim else _unknown(x.shape)

    def comes_from_image(self, x: Tensor) -> bool:
        """Whether a tensor was computed from the image; parameters and tables of positions are not."""
        return x in self._labels or _storage(x) in self._filled

    def follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        """Derive the labels of an operator's outputs from its inputs'; tell whether it reads the image."""
        name = operator_name(func)
        inputs = [t for t in _flatten((*args, *kwargs.values())) if isinstance(t, Tensor)]
        if name in _CONSTANTS or not any(self.comes_from_image(t) for t in inputs):
            if any(self.comes_from_weights(t) for t in inputs):
                self.mark_learned([t for t in _flatten((out,)) if isinstance(t, Tensor)])
            return False
        if name in _FILLED_IN_PLACE and not self.comes_from_image(inputs[0]):
            self._filled.add(_storage(inputs[0]))  # a view of a larger tensor: its other views read it too
        for result in (t for t in _flatten((out,)) if isinstance(t, Tensor)):
            sliding = find_sliding(func, args, kwargs)
            if sliding is not None:
                operator, count = sliding
                labels = self._through_lattice(inputs[0], result, count, operator.makes_channels)
            else:
                labels = self._derive(name, list(args), kwargs, inputs, result)
            self._labels[result] = tuple(
                axis if math.prod(f.extent for f in axis) == n else (Factor(LOST, n),)
                for axis, n in zip(labels, result.shape, strict=True)
            )
        return True

    def collect_channels(self, x: Tensor, contracted: int | None = None) -> list[Window]:
        """Find windows of image samples that have become channels: by a view, or as factors of a product.

        The tensor then counts as one of coarser rows and columns, so the next view doesn't find them again.

        Args:
            x: the tensor.
            contracted: the axis over which a learned product is about to sum; else any that holds channels.

        Returns:
            The windows of each image axis that lost samples to the channels.
        """
        labels = self.labels(x)
        if contracted is not None:
            axes = [contracted % x.ndim]
        else:  # on the first axis stand images, with their windows
            axes = [a for a, axis in enumerate(labels) if a and _holds_channels(axis)]
        for position in axes:
            moved = [f for f in labels[position] if f.kind in IMAGE_AXES]
            others = labels[:position] + labels[position + 1 :]
            found = _find_windows(moved, others)
            if found and not {w.cut for w in found} <= self._unfolded:
                channels = ((Factor(CHANNEL, x.shape[position]),),)
                self._labels[x] = labels[:position] + channels + labels[position + 1 :]
                return found
        return []

    def find_contraction(self, func: Any, args: Sequence[Any]) -> tuple[Tensor, int, Tensor] | None:
        """Return the image tensor in a product with another, the axis summed over, and the other factor."""
        name = operator_name(func)
        sliding = find_sliding(func, args, {})
        if sliding is not None and sliding[0].makes_channels:
            return (args[0], 1 - len(args[1].shape), args[1]) if args[0].ndim == args[1].ndim else None
        if name not in _PRODUCTS:
            return None
        first, second = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
        known = self.comes_from_image(first), self.comes_from_image(second)
        if known == (True, False):
            return first, -1, second
        return (second, -2, first) if known == (False, True) and second.ndim > 1 else None

    def _derive(
        self, name: str, args: list[Any], kwargs: dict[str, Any], inputs: list[Tensor], result: Tensor
    ) -> Labels:
        source = next(t for t in inputs if self.comes_from_image(t))
        labels = self.labels(source)
        axis = args[1] if len(args) > 1 and isinstance(args[1], int) else 0
        if name in _VIEWS:
            self.cuts += 1
            return _through_view(labels, tuple(source.shape), tuple(result.shape), self.cuts)
        if name == "permute":
            return tuple(labels[a] for a in args[1])
        if name in ("transpose", "t", "transpose_", "swapaxes"):
            return _swap(labels, *((args[1], args[2]) if len(args) > 2 else (0, 1)))
        if name in ("select", "unbind") and result.ndim == source.ndim - 1:
            axis %= source.ndim
            return labels[:axis] + labels[axis + 1 :]
        if name in ("unsqueeze", "stack") and result.ndim == source.ndim + 1:
            axis %= result.ndim
            return (*labels[:axis], (Factor(LOST, result.shape[axis]),), *labels[axis:])
        if name == "squeeze":
            return _squeeze(labels, source, result)
        if name == "unfold" and result.ndim == source.ndim + 1:
            self.cuts += 1
            return _through_unfold(labels, args, result, self.cuts)
        if name == "im2col":
            self.cuts += 1
            self._unfolded.add(self.cuts)
            return _through_im2col(labels, args, result, self.cuts)
        if name in _REDUCTIONS and len(args) > 1 and not isinstance(args[1], Tensor):
            return _through_reduction(labels, args[1], source, result)
        if name in _PRODUCTS and len(inputs) > 1:
            return self._through_product(name, inputs, result)
        return self._align(inputs, result)

    def _through_lattice(self, x: Tensor, result: Tensor, count: int, makes_channels: bool = False) -> Labels:
        """Label a convolution's or pool's output: the last axes are image axes, whatever they were before."""
        labels = list(self.labels(x))
        before, after = x.shape[x.ndim - count :], result.shape[result.ndim - count :]
        axes: list[Axis] = []
        # Of two axes that an operator slides over none holds channels; the axis of a signal may.
        trusted = (*IMAGE_AXES, CHANNEL) if count == 1 or before[0] == 1 else IMAGE_AXES
        for position in range(count):
            old, n = labels[x.ndim - count + position], after[position]
            if n == before[position] and all(f.spatial for f in old):
                axes.append(old)
            elif len(old) == 1 and old[0].kind in trusted:
                step = old[0].step * max(1, round(before[position] / n))
                axes.append((Factor(old[0].kind, n, step, old[0].cut),))
            else:
                axes.append((Factor(IMAGE_AXES[3 - count + position], n),))
        leading = list(labels[: x.ndim - count])
        if len(leading) != result.ndim - count:
            leading = [(Factor(LOST, n),) for n in result.shape[: result.ndim - count]]
        made = result.shape[result.ndim - count - 1]
        mixed = all(f.spatial for f in leading[-1]) and _extent(leading[-1]) == made
        if makes_channels and not mixed:
            leading[-1] = (Factor(CHANNEL, made),)
        return (*leading, *axes)

    def _through_product(self, name: str, inputs: list[Tensor], result: Tensor) -> Labels:
        """Label a matrix product: rows of the first factor, columns of the second."""
        first, second = inputs[-2:] if name in ("addmm", "baddbmm") else inputs[:2]
        left, right = self.labels(first), self.labels(second)
        columns: Axis = (Factor(CHANNEL, result.shape[-1]),) if result.ndim else ()
        if name != "linear" and self.comes_from_image(second):
            columns = right[-1]
        elif first.shape[-1:] == result.shape[-1:] and all(f.spatial for f in left[-1]):
            columns = left[-1]  # places mixed with each other are still places
        if first.ndim >= 2 and first.ndim == result.ndim:
            batch = left[:-1] if self.comes_from_image(first) else (*right[:-2], left[-2])
            return (*batch, columns)
        return _unknown(result.shape)

    def _align(self, inputs: list[Tensor], result: Tensor) -> Labels:
        """Label what is computed sample by sample: axes correspond from the last, an extent of 1 to any."""
        labels: list[Axis] = list(_unknown(result.shape))
        for x in (t for t in inputs if self.comes_from_image(t) and t.ndim <= result.ndim):
            for offset, axis in enumerate(reversed(self.labels(x)), start=1):
                n = result.shape[-offset]
                if x.shape[-offset] == n:
                    if labels[-offset][0:1] == (Factor(LOST, n),) and axis:
                        labels[-offset] = axis
                elif x.ndim == result.ndim and labels[-offset] == (Factor(LOST, n),):
                    labels[-offset] = _resized(axis, n)
        return tuple(labels)


@dataclass(frozen=True)
class Layout:
    """How a tensor is a batch of maps: its axes split into factors, and their order in (B, C, H, W).

    ``shape`` has −1 where the batch is. A tensor whose axes are whole (no factors) may change its size.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    size: tuple[int, ...]
    whole: bool

    def arrange(self, x: Tensor) -> Tensor:
        """Return the tensor as maps (B, C, H, W); a signal's have one row.

        Raises:
            RuntimeError: if the tensor can't be split like the one the layout was made for.
        """
        maps = (x if self.whole else x.reshape(self.shape)).permute(self.order)
        size = maps.shape[-len(self.size) :] if self.whole else self.size
        maps = maps.reshape(len(maps), -1, *size)
        return maps if maps.ndim > 3 else maps.unsqueeze(-2)


def find_layout(labels: Labels) -> Layout | None:
    """Find the order of a tensor's factors that makes maps of it; None if rows or columns can't be told.

    Example:
        >>> import torch
        >>> nhwc = ((Factor("b", 2),), (Factor("h", 8),), (Factor("w", 6),), (Factor("c", 3),))
        >>> find_layout(nhwc).arrange(torch.zeros(2, 8, 6, 3)).shape
        torch.Size([2, 3, 8, 6])
    """
    factors = [f for axis in labels for f in axis]
    kinds = {f.kind for f in factors}
    if "w" not in kinds or "s" in kinds or sum(f.kind == BATCH for f in factors) != 1:
        return None
    numbers = range(len(factors))
    batch = next(i for i in numbers if factors[i].kind == BATCH)
    axes = [kind for kind in IMAGE_AXES if kind in kinds]
    spatial = [
        sorted((i for i in numbers if factors[i].kind == a), key=lambda i: -factors[i].step) for a in axes
    ]
    for run in spatial:
        if any(factors[i].step != factors[j].step * factors[j].extent for i, j in pairwise(run)):
            return None  # windows that overlap, or samples left out between them
    other = [i for i in numbers if i != batch and not factors[i].spatial]
    return Layout(
        shape=tuple(-1 if i == batch else factors[i].extent for i in numbers),
        order=(batch, *other, *(i for run in spatial for i in run)),
        size=tuple(_extent([factors[i] for i in run]) for run in spatial),
        whole=all(len(parts) == 1 for parts in (*labels, *spatial)),
    )


def operator_name(func: Any) -> str:
    """Return the name of an operator without namespace and overload.

    Example:
        >>> import torch
        >>> operator_name(torch.ops.aten.slice.Tensor)
        'slice'
    """
    return str(func._schema.name).split("::")[-1]


def _unknown(shape: Sequence[int]) -> Labels:
    return tuple((Factor(LOST, n),) for n in shape)


def _resized(axis: Axis, extent: int) -> Axis:
    """Label an axis that was cropped, padded, sliced or joined."""
    spatial = [f for f in axis if f.spatial]
    if len(axis) == 1:
        step = axis[0].step * max(1, round(axis[0].extent / max(extent, 1)))
        return (Factor(axis[0].kind, extent, step),)
    return (Factor("s" if spatial else LOST, extent),)


def _swap(labels: Labels, first: int, second: int) -> Labels:
    swapped = list(labels)
    if swapped:
        swapped[first], swapped[second] = labels[second], labels[first]
    return tuple(swapped)


def _squeeze(labels: Labels, x: Tensor, result: Tensor) -> Labels:
    kept = [axis for axis, n in zip(labels, x.shape, strict=True) if n != 1]
    if len(kept) == result.ndim:
        return tuple(kept)
    return labels if result.ndim == x.ndim else _through_view(labels, tuple(x.shape), tuple(result.shape))


def _through_unfold(labels: Labels, args: list[Any], result: Tensor, cut: int) -> Labels:
    """Label ``x.unfold(axis, size, step)``: windows stay on the axis, their samples go to a new last one."""
    axis, size, step = args[1] % len(labels), args[2], args[3]
    old = labels[axis]
    kept = list(labels)
    if len(old) != 1:
        kept[axis], inside = _resized(old, result.shape[axis]), (Factor("s", size),)
    else:
        kept[axis] = (Factor(old[0].kind, result.shape[axis], old[0].step * step, cut),)
        inside = (Factor(old[0].kind, size, old[0].step, cut),)
    return (*kept, inside)


def _through_im2col(labels: Labels, args: list[Any], result: Tensor, cut: int) -> Labels:
    """Label ``unfold(x, kernel, dilation, padding, stride)``: channels with their windows, then positions."""
    kernel, stride = args[1], args[4]
    axes = [axis[0] for axis in labels[-2:] if len(axis) == 1 and axis[0].kind in IMAGE_AXES]
    if len(axes) < 2 or list(kernel) != list(stride):
        return (*labels[:-3], (Factor(CHANNEL, result.shape[-2]),), (Factor("s", result.shape[-1]),))
    inner = tuple(Factor(f.kind, k, f.step, cut) for f, k in zip(axes, kernel, strict=True))
    outer = tuple(Factor(f.kind, f.extent // k, f.step * k, cut) for f, k in zip(axes, kernel, strict=True))
    return (*labels[:-3], (*labels[-3], *inner), outer)


def _through_reduction(labels: Labels, dims: Any, x: Tensor, result: Tensor) -> Labels:
    reduced = {
        d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim)) if isinstance(d, int)
    }
    if result.ndim == x.ndim:
        return tuple((Factor(LOST, 1),) if a in reduced else axis for a, axis in enumerate(labels))
    kept = tuple(axis for a, axis in enumerate(labels) if a not in reduced)
    return kept if len(kept) == result.ndim else _unknown(result.shape)


def _through_view(labels: Labels, before: tuple[int, ...], after: tuple[int, ...], cut: int = 0) -> Labels:
    """Match runs of axes with equal products and deal their factors out anew."""
    result: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i_end, j_end = min(i + 1, len(before)), min(j + 1, len(after))
        left, right = math.prod(before[i:i_end]), math.prod(after[j:j_end])
        while left != right and (i_end < len(before) or j_end < len(after)):
            if (left < right and i_end < len(before)) or j_end == len(after):
                left *= before[i_end]
                i_end += 1
            else:
                right *= after[j_end]
                j_end += 1
        result += _deal([f for axis in labels[i:i_end] for f in axis], after[j:j_end], cut)
        i, j = i_end, j_end
    return tuple(result)


def _deal(factors: list[Factor], sizes: Sequence[int], cut: int) -> list[Axis]:
    """Deal factors, slowest first, to axes of the given sizes; one is split where an axis ends inside it."""
    if len(sizes) == 1:
        return [_join(factors, sizes[0])]
    left = [f for f in factors if f.extent != 1]
    axes: list[Axis] = []
    for size in sizes:
        taken: list[Factor] = []
        need = size
        while need > 1 and left:
            f = left[0]
            if need % f.extent == 0:
                taken.append(left.pop(0))
                need //= f.extent
            elif f.extent % need == 0:
                inner = f.extent // need
                taken.append(replace(f, extent=need, step=f.step * inner, cut=cut))
                left[0] = replace(f, extent=inner, cut=cut)
                need = 1
            else:  # the border of the new axis falls inside a sample of the old one
                mixed = "s" if any(f.spatial for f in factors) else LOST
                return [(Factor(mixed, n),) for n in sizes]
        axes.append(_join(taken, size))
    return axes


def _join(factors: list[Factor], size: int) -> Axis:
    joined: list[Factor] = []
    for f in factors:
        if f.extent == 1:
            continue
        last = joined[-1] if joined else None
        follows = last is not None and last.kind == f.kind and (
            f.kind in (CHANNEL, LOST) or last.step == f.step * f.extent
        )  # fmt: skip
        if follows and last is not None:
            joined[-1] = Factor(f.kind, last.extent * f.extent, f.step, f.cut)
        else:
            joined.append(f)
    if not joined:
        joined = factors[:1] or [Factor(LOST, size)]
    return tuple(joined)


def _holds_channels(axis: Axis) -> bool:
    kinds = {f.kind for f in axis}
    return bool(kinds & {CHANNEL, LOST}) and BATCH not in kinds


def _find_windows(moved: list[Factor], others: Labels) -> list[Window]:
    """Match the samples inside windows with the windows on other axes; nothing unless all of them fit."""
    rest = [f for axis in others for f in axis]
    found = []
    for kind in IMAGE_AXES:
        inner = [f for f in moved if f.kind == kind]
        outer = [f for f in rest if f.kind == kind and all(f.step > g.step for g in inner)]
        if inner and outer:
            stride = min(f.step for f in outer) // min(f.step for f in inner)
            found.append(Window(kind, _extent(inner), stride, _extent(outer), max(f.cut for f in inner)))
    kinds = {f.kind for f in moved}
    # Where only rows (or columns) became channels the others are an axis as they were; otherwise the view
    # belongs to something else, such as relative positions in attention.
    alone = {axis[0].kind for axis in others if len(axis) == 1}
    left = {f.kind for f in rest if f.kind in IMAGE_AXES} - kinds
    return found if len(found) == len(kinds) and left <= alone else []


def _extent(factors: Sequence[Factor]) -> int:
    return math.prod(f.extent for f in factors)


def _storage(x: Tensor) -> int:
    """Return a number that is the same for all views of one tensor."""
    try:
        return int(x.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors and some subclasses have none
        return id(x)


def _flatten(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        flat += _flatten(value) if isinstance(value, (tuple, list)) else [value]
    return flat
