"""What the axes of a tensor are: samples of image axes, of which each axis is made by factors.

Splitting rows (56) into (28, 2) gives the factors h:28 in steps of 2 and h:2 in steps of 1. Joining,
splitting, cutting and moving axes is arithmetic on factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache

IMAGE_AXES = ("t", "h", "w")  # time, rows, columns: the last axes of a video, image or signal batch
BATCH, CHANNEL, MIXED, LOST, JOINED = "b", "c", "s", "?", "+"
PLACES = frozenset({*IMAGE_AXES, MIXED})
Step = int | Fraction


@dataclass(frozen=True)
class Factor:
    """A part of a tensor axis: ``extent`` samples of the axis ``kind``, ``step`` samples of it apart.

    Attributes:
        kind: one of b, c, t, h, w; "s" for image axes that are mixed beyond recognition, "?" where nothing is
            known.
        extent: how many samples.
        step: how many samples of the image from one to the next.
        cut: number of the view that split it off.
        spectrum: of the frequencies of an axis, how many samples that had; 0 for samples.
        start: where its first sample lies in the image; those of all factors of a kind add up.
        folded: whether its samples were told to be channels: windows that space-to-depth has moved there.
        parts: of samples to which something was joined that is none (class tokens, registers, padding): their
            factors. ``extent`` counts all of it then.
        before: how many of what was joined stand in front of the samples.
        uneven: whether they are the samples of windows, and something did different things with them.
    """

    kind: str
    extent: int
    step: Step = 1
    cut: int = field(default=0, compare=False)
    spectrum: int = 0
    start: Step = field(default=0, compare=False)
    folded: bool = field(default=False, compare=False)
    parts: tuple[Factor, ...] = ()
    before: int = 0
    uneven: bool = field(default=False, compare=False)

    @property
    def spatial(self) -> bool:
        """Whether its samples are different places of the image."""
        return self.kind in PLACES and not self.folded

    @property
    def after(self) -> int:
        """How many of what was joined stand behind the samples."""
        return self.extent - self.before - extent_of(self.parts) if self.parts else 0


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: its factors, the slowest first. Iteration looks into those with something joined.

    What is asked of an axis at every operator is worked out once: most operators hand their axes on.

    Attributes:
        factors: all of them, with what was joined to them.
        each: those that there are without that.
        image: of these the samples of rows, columns or frames.
        kinds: of all of these.
        extent: how many entries it has.
        spatial: whether any of its factors is.

    Example:
        >>> [f.kind for f in Axis((Factor("b", 2), joined((Factor("h", 4, 4), Factor("w", 4)), 1, 0)))]
        ['b', 'h', 'w']
    """

    factors: tuple[Factor, ...]
    each: tuple[Factor, ...] = field(init=False, repr=False, compare=False)
    image: tuple[Factor, ...] = field(init=False, repr=False, compare=False)
    kinds: set[str] = field(init=False, repr=False, compare=False)
    extent: int = field(init=False, repr=False, compare=False)
    spatial: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        each = tuple(one for f in self.factors for one in f.parts or (f,))
        image = tuple(f for f in each if f.kind in IMAGE_AXES)
        known = {"each": each, "image": image, "kinds": {f.kind for f in each},
                 "extent": extent_of(self.factors), "spatial": any(f.spatial for f in each)}  # fmt: skip
        vars(self).update(known)  # past what makes it immutable

    def __iter__(self) -> Iterator[Factor]:
        return iter(self.each)

    @property
    def only(self) -> Factor | None:
        """Its factor, if it is but one and nothing was joined to it."""
        return self.factors[0] if len(self.factors) == 1 and not self.factors[0].parts else None

    @property
    def joined(self) -> Factor | None:
        """Its factor, if it is but one and something was joined to it."""
        return self.factors[0] if len(self.factors) == 1 and self.factors[0].parts else None


Labels = tuple[Axis, ...]


@lru_cache(maxsize=1 << 14, typed=True)
def single(kind: str, extent: int, step: Step = 1, cut: int = 0) -> Axis:
    """Return an axis of one factor."""
    return Axis((Factor(kind, extent, step, cut),))


def joined(factors: tuple[Factor, ...], before: int, after: int) -> Factor:
    """Return samples between so many entries that are none; the samples alone are no such factor."""
    return Factor(JOINED, before + extent_of(factors) + after, parts=factors, before=before)


def find_step(axis: Axis) -> tuple[str, Step] | None:
    """Tell of which image axis an axis has samples, and how far apart its entries are.

    Entries that a view has put between samples, copies or channels, are samples of a finer lattice. None
    where several image axes, or what isn't between the samples, are joined in it.

    Example:
        >>> repeated = Axis((Factor("h", 16, 4), Factor("?", 2)))
        >>> find_step(repeated), find_step(Axis((Factor("c", 8), Factor("h", 16, 4))))
        (('h', 2), None)
    """
    image = [f for f in axis.factors if f.kind in IMAGE_AXES and not f.folded and not f.spectrum]
    if not image or axis.factors[0] is not image[0] or len({f.kind for f in image}) > 1:
        return None
    if any(f.kind in (BATCH, MIXED, JOINED) for f in axis.factors):
        return None
    span = max(f.step * f.extent for f in image)
    return image[0].kind, exact(Fraction(span) / axis.extent)


def unknown(shape: Sequence[int]) -> Labels:
    """Return labels that say nothing."""
    return tuple(single(LOST, n) for n in shape)


def extent_of(factors: Sequence[Factor]) -> int:
    """Multiply extents."""
    return math.prod(f.extent for f in factors)


def all_factors(labels: Labels) -> list[Factor]:
    """Return the factors of all axes."""
    return [f for axis in labels for f in axis]


def mixed(axes: Sequence[Axis], extent: int) -> Axis:
    """Return the axis that is left where the samples of some axes can't be told apart any more."""
    return single(MIXED if any(axis.spatial for axis in axes) else LOST, extent)


def resample(axis: Axis, extent: int, step: Step) -> Axis:
    """Return an axis whose samples are ``step`` times as far apart."""
    only = axis.only
    if only is None:
        return mixed([axis], extent)
    return Axis((replace(only, extent=extent, step=exact(only.step * step)),))


def cut(axis: Axis, start: int, extent: int, step: int = 1) -> Axis:
    """Return entries start, start + step, … of an axis.

    Example:
        >>> places = Factor("h", 4, 4), Factor("w", 4)
        >>> tokens = Axis((joined(places, before=1, after=0),))
        >>> cut(tokens, 1, 16) == Axis(places)
        True
        >>> cut(tokens, 0, 1) == single("?", 1)
        True
        >>> cut(tokens, 0, 9) == Axis((joined((Factor("h", 2, 4), Factor("w", 4)), before=1, after=0),))
        True
    """
    whole = axis.joined
    parts = whole.parts if whole is not None else axis.factors
    count, offset = extent_of(parts), whole.before if whole is not None else 0
    places = [start - offset, start - offset + step * (extent - 1)] if extent else [0, -1]
    before = min(extent, max(0, -(places[0] // step)))  # entries in front of the first sample
    behind = min(extent - before, max(0, -((count - 1 - places[1]) // step)))
    inside = extent - before - behind
    if inside <= 0:
        return single(LOST, extent)
    first = places[0] + before * step
    if step == 1:
        factors = _cut_run(parts, first, inside)
    elif len(parts) == 1 and not parts[0].parts:
        f = parts[0]
        lies = f.start + first * f.step
        factors = (replace(f, extent=inside, step=exact(f.step * step), start=lies),)
    else:
        factors = _cut_blocks(parts, first, inside, step)
    return Axis((joined(factors, before, behind),) if before or behind else factors)


def cut_windows(whole: Factor, size: int, step: int, count: int, number: int) -> tuple[Axis, Axis]:
    """Return the axis of ``count`` windows of places, and that of the ``size`` samples in each.

    Args:
        whole: the axis that is cut.
        size: samples in a window.
        step: from one window to the next.
        count: windows.
        number: of the view that cuts them.

    Example:
        >>> windows, samples = cut_windows(Factor("h", 32), 2, 2, 16, number=1)
        >>> (windows.only.extent, windows.only.step), (samples.only.extent, samples.only.step)
        ((16, 2), (2, 1))
    """
    windows = replace(whole, extent=count, step=exact(whole.step * step), cut=number)
    return Axis((windows,)), Axis((replace(whole, extent=size, cut=number, start=0),))


def _cut_blocks(factors: tuple[Factor, ...], first: int, count: int, step: int) -> tuple[Factor, ...]:
    """Cut every so many-th entry out of an axis: the same of each block, else samples that are no lattice.

    Example:
        >>> windows = Factor("c", 8), Factor("h", 2, folded=True)
        >>> _cut_blocks(windows, 1, 8, 2) == (windows[0], Factor("h", 1, folded=True))
        True
    """
    border = next((i for i in range(1, len(factors)) if extent_of(factors[i:]) == step), None)
    if border is None or any(f.parts for f in factors):
        return mixed([Axis(factors)], count).factors
    outer, within = divmod(first, step)
    chosen = []
    for f in reversed(factors[border:]):
        within, place = divmod(within, f.extent)
        chosen.append(replace(f, extent=1, start=exact(f.start + place * f.step)))
    return (*_cut_run(factors[:border], outer, count), *reversed(chosen))


def _cut_run(factors: tuple[Factor, ...], first: int, count: int) -> tuple[Factor, ...]:
    """Cut neighbours out of an axis: whole blocks of a factor, else samples that are no lattice."""
    if count == extent_of(factors):
        return factors
    slowest, *inner = factors
    block = extent_of(inner)
    outer, within = divmod(first, block)
    start = exact(slowest.start + outer * slowest.step)
    if within == 0 and count % block == 0:
        return (replace(slowest, extent=count // block, start=start), *inner)
    if inner and within + count <= block:
        return (replace(slowest, extent=1, start=start), *_cut_run(tuple(inner), within, count))
    return mixed([Axis(factors)], count).factors


def join_along(axes: Sequence[Axis], extents: Sequence[int]) -> Axis:
    """Return several axes one behind the other; what holds no samples is joined to what does.

    Example:
        >>> tokens = Axis((Factor("h", 4, 4), Factor("w", 4)))
        >>> join_along([single("?", 1), tokens], [1, 16]).joined.before
        1
    """
    spatial = [i for i, axis in enumerate(axes) if axis.spatial]
    if not spatial:
        kinds = {f.kind for axis in axes for f in axis}
        kind = kinds.pop() if len(kinds) == 1 else CHANNEL if kinds <= {CHANNEL, LOST} else LOST
        return single(kind, sum(extents))
    first, last = spatial[0], spatial[-1]
    before, after = sum(extents[:first]), sum(extents[last + 1 :])
    if first == last:
        whole = axes[first].joined
        if whole is not None:
            return Axis((joined(whole.parts, whole.before + before, whole.after + after),))
        return Axis((joined(axes[first].factors, before, after),) if before or after else axes[first].factors)
    parts = [axis.only for axis in axes[first : last + 1]]
    head = parts[0]
    alike = head is not None and all(
        p is not None and (p.kind, p.step, p.spectrum) == (head.kind, head.step, head.spectrum) for p in parts
    )
    inside = sum(extents[first : last + 1])
    # Samples of several maps, such as those of a pyramid, are a list and no map.
    factor = replace(head, extent=inside) if alike and head is not None else Factor(MIXED, inside)
    return Axis((joined((factor,), before, after) if before or after else factor,))


def find_spacing(labels: Labels) -> dict[str, Step]:
    """Return how far apart the samples of each image axis are, where there is more than one.

    Example:
        >>> rows = Axis((Factor("h", 28, 2),)), Axis((Factor("h", 2, 1),))
        >>> find_spacing(rows), find_spacing(rows[:1])
        ({'h': 1}, {'h': 2})
    """
    spacing: dict[str, Step] = {}
    for f in (f for axis in labels for f in axis.image):
        if f.spatial and (f.extent > 1 or f.spectrum > 1):
            spacing[f.kind] = min(f.step, spacing.get(f.kind, f.step))
    return spacing


def find_origin(labels: Labels) -> dict[str, Step]:
    """Return where the first sample of each image axis lies.

    Example:
        >>> find_origin((cut(single("h", 32), 3, 8, 2),))
        {'h': 3}
    """
    origin: dict[str, Step] = {}
    for f in (f for axis in labels for f in axis.image):
        origin[f.kind] = exact(origin.get(f.kind, 0) + f.start)
    return origin


def move_origin(labels: Labels, kind: str, by: Step) -> Labels:
    """Say that all samples of an axis lie further on.

    Example:
        >>> find_origin(move_origin((single("h", 16, 2),), "h", 1))
        {'h': 1}
    """
    for position, axis in enumerate(labels):
        for i, f in enumerate(axis.factors):
            if f.kind == kind and not f.folded:
                factors = (*axis.factors[:i], replace(f, start=f.start + by), *axis.factors[i + 1 :])
                return (*labels[:position], Axis(factors), *labels[position + 1 :])
    return labels


def count_places(labels: Labels) -> int:
    """Count the samples of all image axes."""
    return math.prod(f.spectrum or f.extent for f in all_factors(labels) if f.spatial)


def loses_places(before: Labels, after: Labels) -> bool:
    """Whether samples of an image axis are gone: its lattice is coarser, or nothing is left of it.

    A crop has fewer samples as well, but no coarser lattice.

    Example:
        >>> rows = (single("h", 32),)
        >>> loses_places(rows, (single("h", 30),)), loses_places(rows, (single("h", 16, 2),))
        (False, True)
    """
    if before is after:
        return False
    old, new = find_spacing(before), find_spacing(after)
    if _is_mixed(before) or _is_mixed(after):
        return count_places(after) < count_places(before)
    return any(kind not in new or new[kind] > step for kind, step in old.items())


def _is_mixed(labels: Labels) -> bool:
    return any(f.kind == MIXED and f.extent > 1 for axis in labels if MIXED in axis.kinds for f in axis)


def unfold_windows(labels: Labels) -> Labels:
    """See windows that count as channels as windows again."""
    return tuple(Axis(tuple(replace(f, folded=False) for f in axis.factors)) for axis in labels)


def through_view(labels: Labels, before: Sequence[int], after: Sequence[int], number: int = 0) -> Labels:
    """Match runs of axes with equal products and deal their factors out anew.

    Args:
        labels: of the axes as they were.
        before: their extents.
        after: the extents of the axes that a view makes of them.
        number: of the view.

    Example:
        >>> rows, within = through_view((single("h", 56),), [56], [28, 2])
        >>> rows.only.step, within.only.step
        (2, 1)
    """
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
        result += _deal(labels[i:i_end], after[j:j_end], number)
        i, j = i_end, j_end
    return tuple(result)


def _deal(axes: Sequence[Axis], sizes: Sequence[int], number: int) -> list[Axis]:
    """Deal factors, slowest first, to axes of the given sizes; one is split where an axis ends inside it."""
    factors = [f for axis in axes for f in axis.factors]
    if len(sizes) == 1:
        return [_join(factors, sizes[0])]
    left = [f for f in factors if f.extent != 1]
    dealt: list[Axis] = []
    for size in sizes:
        taken: list[Factor] = []
        need = size
        while need > 1 and left:
            f = left[0]
            if need % f.extent == 0:
                taken.append(left.pop(0))
                need //= f.extent
            elif f.extent % need == 0 and not (f.spectrum or f.parts):
                inner = f.extent // need
                taken.append(replace(f, extent=need, step=f.step * inner, cut=number))
                left[0] = replace(f, extent=inner, cut=number, start=0)
                need = 1
            else:  # the border of the new axis falls inside a sample of the old one
                return [mixed(axes, n) for n in sizes]
        dealt.append(_join(taken, size))
    return dealt


def _join(factors: list[Factor], size: int) -> Axis:
    kept: list[Factor] = []
    for f in factors:
        if f.extent == 1:
            continue
        last = kept[-1] if kept else None
        if last is not None and _follows(last, f):
            kept[-1] = replace(last, extent=last.extent * f.extent, step=f.step, start=last.start + f.start)
        else:
            kept.append(f)
    return Axis(tuple(kept or factors[:1] or [Factor(LOST, size)]))


def _follows(outer: Factor, inner: Factor) -> bool:
    """Whether two neighbours are one factor that was split."""
    if (outer.kind, outer.folded) != (inner.kind, inner.folded) or outer.spectrum or inner.spectrum:
        return False
    return outer.kind in (CHANNEL, LOST) or outer.step == inner.step * inner.extent


def exact(step: Step) -> Step:
    """Return a whole number as an int.

    Example:
        >>> exact(Fraction(4, 2)), exact(Fraction(3, 2))
        (2, Fraction(3, 2))
    """
    return int(step) if step == int(step) else step
