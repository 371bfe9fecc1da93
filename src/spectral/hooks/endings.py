"""The outputs of sites that several operators make: what the last of them really gave.

The first operator shows what enters such a site; its output appears later in the same call, as one tensor or
as several that lie side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.operators import Decimation
from spectral.sites import Site
from spectral.tracing.places import Ending, Spot
from spectral.tracing.tracker import Frame

Ready = tuple[Site, Decimation, Tensor]


@dataclass
class _Call:
    """What has run of one call of an owner."""

    begun: list[tuple[Site, Decimation]] = field(default_factory=list)
    seen: dict[Spot, Tensor] = field(default_factory=dict)

    def collect(self) -> list[Ready]:
        """Take out the sites whose outputs are complete."""
        ready, left = list[Ready](), list[tuple[Site, Decimation]]()
        for site, decimation in self.begun:
            assert site.ending is not None
            if all(spot in self.seen for spot in site.ending.spots):
                ready.append((site, decimation, _put_together(site.ending, self.seen)))
            else:
                left.append((site, decimation))
        self.begun = left
        return ready


class Endings:
    """Puts the outputs together, call by call.

    Args:
        sites: any sites; those that one operator makes need nothing.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._spots: dict[str, set[Spot]] = defaultdict(set)
        for site in sites:
            if site.ending is not None:
                self._spots[site.module] |= set(site.ending.spots)
        self._names = {path: {spot.operator for spot in spots} for path, spots in self._spots.items()}
        self._calls: WeakKeyDictionary[Frame, _Call] = WeakKeyDictionary()  # a call may end in any way

    def __bool__(self) -> bool:
        return bool(self._names)

    def begin(self, frame: Frame, site: Site, decimation: Decimation) -> list[Ready]:
        """Note what enters a site; return it if its output is there already."""
        call = self._calls.setdefault(frame, _Call())
        call.begun.append((site, decimation))
        return call.collect()

    def follow(self, frame: Frame, name: str, out: Any, copy: Callable[[Tensor], Tensor]) -> list[Ready]:
        """Follow an operator that ran; return the sites whose outputs are complete with it.

        Args:
            frame: the innermost call.
            name: of the operator.
            out: what it returned.
            copy: makes a copy of a tensor, which may be written to later.
        """
        if name not in self._names.get(frame.path, ()):
            return []
        spot = frame.find_spot(name)
        call = self._calls.setdefault(frame, _Call())
        for entry, x in enumerate(x for x in tree_leaves(out) if isinstance(x, Tensor)):
            one = Spot(name, spot.own, spot.turn, entry)
            if one in self._spots[frame.path]:
                call.seen[one] = copy(x)
        return call.collect()

    def leave(self, frame: Frame) -> None:
        """Leave a call that has returned.

        Raises:
            SpectralError: if the output of a site didn't appear.
        """
        call = self._calls.pop(frame, None)
        if call is not None and call.begun:
            raise SpectralError(
                f"site {call.begun[0][0].name!r} began as it was found, but its output didn't appear where "
                f"it did then; call find_sites again for this input"
            )


def _put_together(ending: Ending, seen: dict[Spot, Tensor]) -> Tensor:
    tensors = [seen[spot] for spot in ending.spots]
    return tensors[0] if ending.axis is None else torch.stack(tensors, ending.axis)
