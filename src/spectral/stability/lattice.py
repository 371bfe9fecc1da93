"""The lattice that a network's predictions rest on: by how many pixels an image moves to meet it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spectral.network import SPATIAL
from spectral.sites import Site


def find_total_stride(sites: Sequence[Site], extents: Mapping[str, int]) -> tuple[dict[str, int], str]:
    """Return a network's total stride along each axis, or the reason why it has none.

    A site's own lattice has the stride of the map that enters it times its own. Which of the strides before
    it that map has is told by its size: without padding a map is smaller than the image over its stride, so
    the quotient of the two alone would be wrong (35 samples of 299 pixels have stride 8). Where branches meet
    it is the least common multiple.

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
    axes = [axis for axis in SPATIAL if axis in extents]
    reached: dict[str, list[int]] = {axis: [1] for axis in axes}
    for site in sites:
        if math.prod(site.output_size) == 1:
            continue  # a single sample is no lattice
        if not (site.measurable or site.lossless):
            return {}, f"the lattice behind {site.name!r} isn't known to be regular: {site.reason}"
        for axis, step, scale in zip(axes[::-1], site.stride[::-1], site.scale[::-1], strict=False):
            entering = min(reached[axis], key=lambda total: abs(math.log(total / scale)))
            if entering * step not in reached[axis]:
                reached[axis].append(entering * step)
    total = {axis: math.lcm(*strides) for axis, strides in reached.items()}
    return total, "" if max(total.values(), default=1) > 1 else "its maps have the image's own lattice"
