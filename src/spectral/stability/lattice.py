"""The lattices of a network's maps: how many pixels apart their samples lie, and when all meet again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from spectral.network import SPATIAL
from spectral.sites import Site


def find_strides(sites: Sequence[Site], extents: Mapping[str, int]) -> dict[str, dict[str, Fraction]]:
    """Return how many pixels of the image apart the samples lie that leave each site, along each axis.

    The stride of the map that enters times the site's own. Which of the strides before it that map has is
    told by its size: without padding a map is smaller than the image over its stride, so the quotient of the
    two alone would be wrong (35 samples of 299 pixels have stride 8). Of what a site leaves that isn't
    regular, and of enlarged maps, nothing else is known.

    Args:
        sites: of `find_sites`, all of them, in the order in which they run.
        extents: the image's extent along each of its spatial axes.

    Example:
        >>> from torch import nn
        >>> from spectral.sites import find_sites
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 9), nn.MaxPool2d(4))  # 40 pixels, 32, 8
        >>> {name: str(own["w"]) for name, own in find_strides(find_sites(net, 40), {"w": 40}).items()}
        {'1': '4'}
    """
    return {site.name: own for site, own in _follow(sites, extents)}


def find_total_stride(sites: Sequence[Site], extents: Mapping[str, int]) -> tuple[dict[str, int], str]:
    """Return a network's total stride along each axis, or the reason why it has none.

    The least common multiple of the strides of all its maps (`find_strides`): the fewest pixels by which an
    image can move so that every lattice lies upon itself again.

    Args:
        sites: of `find_sites`, in the order in which they run.
        extents: the image's extent along each of its spatial axes.

    Example:
        >>> from torch import nn
        >>> from spectral.sites import find_sites
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3), nn.MaxPool2d((1, 2)))
        >>> find_total_stride(find_sites(net, (17, 17)), {"h": 17, "w": 17})
        ({'h': 2, 'w': 4}, '')
    """
    total = {axis: 1 for axis in SPATIAL if axis in extents}
    for site, own in _follow(sites, extents):
        if math.prod(site.output_size) == 1:
            continue
        if not _is_regular(site):
            return {}, f"the lattice behind {site.name!r} isn't known to be regular: {site.reason}"
        # A shift by a/b pixels b times over is one by whole ones.
        total |= {axis: math.lcm(total[axis], step.numerator) for axis, step in own.items()}
    return total, "" if max(total.values(), default=1) > 1 else "its maps have the image's own lattice"


def _follow(sites: Sequence[Site], extents: Mapping[str, int]) -> Iterator[tuple[Site, dict[str, Fraction]]]:
    """Yield each site with the stride of what leaves it, by those of the maps that came before it."""
    axes = [axis for axis in SPATIAL if axis in extents][::-1]
    reached = {axis: {Fraction(1)} for axis in axes}
    for site in sites:
        own = {}
        for axis, place in _pair_axes(site, axes, extents, reached):
            if _is_regular(site):
                pairs = len(axes) > 1 and len(site.scale) == len(site.stride)
                scale = site.scale[place] if pairs else extents[axis] / max(site.input_size[place], 1)
                own[axis] = _find_nearest(reached[axis], scale) * site.stride[place]
            else:
                own[axis] = Fraction(max(round(extents[axis] / max(site.output_size[place], 1)), 1))
        yield site, own
        if math.prod(site.output_size) > 1:  # a single sample is no lattice
            for axis, stride in own.items():
                reached[axis].add(stride)


def _pair_axes(
    site: Site, axes: Sequence[str], extents: Mapping[str, int], reached: Mapping[str, set[Fraction]]
) -> Iterator[tuple[str, int]]:
    """Yield each axis of the image, the last first, and which axis of a site's maps it is.

    Of a signal that is a map of several rows, such as electrodes, time may be any: the one that has as many
    samples as a map of it.
    """
    places = list(range(len(site.stride)))[::-1]
    if len(axes) == 1:
        places.sort(key=lambda place: min(
            abs(math.log(max(site.input_size[place], 1) * stride / extents[axes[0]]))
            for stride in reached[axes[0]]
        ))  # fmt: skip
    yield from zip(axes, places, strict=False)


def _find_nearest(reached: set[Fraction], scale: float) -> Fraction:
    """Return the stride of a map that is so many times smaller than the image, of those that were reached.

    One of them, or, where the map is exactly that much larger, a whole fraction of one: it was enlarged.
    """
    enlarged = {stride / times for stride in reached if (times := round(stride / scale)) >= 1}
    known = reached | {stride for stride in enlarged if math.isclose(stride, scale, rel_tol=1e-9)}
    return min(sorted(known), key=lambda stride: abs(math.log(stride / scale)))


def _is_regular(site: Site) -> bool:
    return site.measurable or site.lossless
