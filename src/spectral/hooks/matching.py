"""Which of the sites that were found runs now, on other data and perhaps in training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spectral.errors import SpectralError
from spectral.sites import Site
from spectral.tracing.places import Steps, are_alike
from spectral.tracing.tracker import Frame, Tracker


@dataclass(frozen=True)
class _Match:
    """What was taken for a site; by its place in the code or only by its number, for the call and in it."""

    site: Site
    where: tuple[int, str, Steps, int]  # the call: its number, module and place; the operator's number in it
    turns: Callable[
        [], tuple[int, int]
    ]  # operators of its family in the call by now, at its place and in all
    placed: tuple[bool, bool]


class Roll:
    """The sites of one forward pass, as they are met.

    A site is told by the place in the code from which its owner was called and its operator ran. A call from
    another place counts only as long as none came from the site's own: gradient checkpointing calls modules
    from elsewhere in training. An operator must at least be called in the same line of the same function.

    Args:
        sites: what was found, by owner.
        tracker: follows the pass.
    """

    def __init__(self, sites: Mapping[str, Sequence[Site]], tracker: Tracker) -> None:
        self._sites = sites
        self._tracker = tracker
        self._met: dict[str, _Match] = {}

    def enter(self, frame: Frame) -> None:
        """Note the call of an owner."""
        if frame.path in self._sites:
            self._tracker.locate(frame)

    def find(
        self, frame: Frame, family: str, index: int = 0, own: Steps | None = None, turn: int = 0
    ) -> Site | None:
        """Return the site that runs now, if it is one, and nothing surer has been taken for it before.

        Args:
            frame: the call of its owner.
            family: what its operator is counted with.
            index: which of these it is in the call.
            own: the steps from the owner's forward to it; None where the owner is nothing but its operator.
            turn: which of those at this place it is.
        """
        best, nearest = (False, False), -1
        for site in self._sites.get(frame.path, ()):
            place = site.place
            here = are_alike(place.outer, frame.outer) and place.call == frame.turn
            at_place = own is None or (place.own == own and place.turn == turn)
            counts = site.index == index and (own is None or place.own[-1:] == own[-1:])
            possible = site.family == family and (here or site.call == frame.call) and (at_place or counts)
            # Of two places that end alike, as those of a forward that calls itself, the one as far in.
            near = sys.maxsize - abs(len(place.outer) - len(frame.outer)) if here else 0
            if possible and (here, at_place, near) > (*best, nearest):
                best, nearest, found = (here, at_place), near, site
        if nearest < 0:
            return None
        met, where = self._met.get(found.name), (frame.call, frame.path, frame.outer, index)
        if met is not None and met.where != where and met.placed >= best:
            return None
        turns, counted = frame.turns, frame.counts  # not the frame, which holds what the module was given
        at = family, own or ()
        self._met[found.name] = _Match(found, where, lambda: (turns[at] or 1, counted[family] or 1), best)
        return found

    def check(self, whole: bool) -> None:
        """Check at the end of a pass that all that was met is what was found.

        Args:
            whole: whether the whole model has run; a part of it may call a module less often.

        Raises:
            SpectralError: naming a site of which that can't be told.
        """
        for match in self._met.values():
            _, path, outer, _ = match.where
            calls = self._tracker.places[path, outer], self._tracker.calls[path]
            alike = [other.placed for other in self._met.values() if other.where[1] == path]
            place = match.site.place
            for level, (ran, found) in enumerate(((calls, place.calls), (match.turns(), place.turns))):
                placed = match.placed[level]
                n, expected = (ran[0], found[0]) if placed else (ran[1], found[1])
                surer = not placed and any(other[level] for other in alike)
                if n > expected or (whole and n < expected) or surer:
                    raise SpectralError(_explain(match.site, n, expected))


def _explain(site: Site, ran: int, found: int) -> str:
    steps = site.place.own or site.place.outer
    where = f" (line {steps[-1][1] + 1} of {steps[-1][0]})" if steps else ""
    what = f"ran {ran} times in this pass, not {found}" if ran != found else "ran at another place, too"
    return (
        f"which operator is site {site.name!r}{where} can't be told: it {what}; leave the site out, or call "
        f"find_sites again for this input"
    )
