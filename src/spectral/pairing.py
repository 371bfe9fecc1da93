"""Which sites of several models are alike, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectral.errors import SpectralError, suggest
from spectral.sites import Site

SAME_NAME = "same site of a network and its converted twin"
HALF_WAY = 0.5  # of a halving, to the next resolution
_Slot = tuple[float, ...]


@dataclass(frozen=True)
class SitePair:
    """Two like sites, and why they are.

    Attributes:
        a: the reference's site.
        b: the other model's.
        why: the same resolution and order of execution, or the same site of a converted twin.
    """

    a: Site
    b: Site
    why: str


def match_sites(
    a: Sequence[Site],
    b: Sequence[Site],
    original_a: Mapping[str, str] | None = None,
    original_b: Mapping[str, str] | None = None,
) -> list[SitePair]:
    """Match the measurable sites of two models, each at most once, in the order of the first.

    Twins, a network and what it was converted to, or two conversions of one network, are matched by the
    names that their sites had before: those of one are among those of the other, at the same resolution.
    Other networks' sites are alike where they run at the same resolution and in the same order there.

    Args:
        a: all sites of the reference.
        b: all sites of the other model.
        original_a: what a's sites were called before it was converted, where that is something else.
        original_b: the same of b.

    Example:
        >>> from torch import nn
        >>> from spectral.sites import find_sites
        >>> one = find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 32)
        >>> two = find_sites(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)), 32)
        >>> [(pair.a.name, pair.b.name, pair.why) for pair in match_sites(one, two)]
        [('0', '1', 'same resolution (that of the image) and order (1st there)')]
    """
    names_a, names_b = (
        {(known or {}).get(site.name, site.name): site for site in sites}
        for sites, known in ((a, original_a), (b, original_b))
    )
    if _are_twins(names_a, names_b):
        pairs = [
            SitePair(site, names_b[name], SAME_NAME) for name, site in names_a.items() if name in names_b
        ]
        return [pair for pair in pairs if pair.a.measurable and pair.b.measurable]
    slots = find_slots([site for site in b if site.measurable])
    there = {slot: site for site, slot in zip((s for s in b if s.measurable), slots, strict=True)}
    own = [site for site in a if site.measurable]
    return [
        SitePair(site, there[slot], _say_slot(slot))
        for site, slot in zip(own, find_slots(own), strict=True)
        if slot in there
    ]


def pair_sites(
    models: Mapping[str, Sequence[Site]], reference: str | None = None
) -> dict[tuple[str, str], tuple[int, str]]:
    """Match like sites of several models: those at the same resolution, in the same order of execution.

    Args:
        models: sites per model name.
        reference: whose site names become the labels; the first model by default.

    Returns:
        (model, site name) → (position in depth, label). A site that the reference lacks keeps its own name,
        with its model's behind it where another label is the same: like sites share a label, others don't.

    Raises:
        SpectralError: if the reference isn't one of the models.

    Example:
        >>> from torch import nn
        >>> from spectral.sites import find_sites
        >>> a = find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 32)
        >>> pair_sites({"a": a, "b": a})[("b", "0")]
        (0, '0')
    """
    if reference is not None and reference not in models:
        raise SpectralError(f"pair_sites: there is no model {reference!r}{suggest(reference, models)}")
    slots = {model: dict(zip(find_slots(sites), sites, strict=True)) for model, sites in models.items()}
    keys = sorted({slot for sites in slots.values() for slot in sites})
    labels: dict[_Slot, str] = {}
    for model in sorted(models, key=lambda name: name != reference):
        for slot, site in slots[model].items():
            taken = site.name in labels.values()
            labels.setdefault(slot, f"{site.name} ({model})" if taken else site.name)
    return {
        (model, site.name): (keys.index(slot), labels[slot])
        for model, sites in slots.items()
        for slot, site in sites.items()
    }


def find_slots(sites: Sequence[Site]) -> list[_Slot]:
    """Return each site's resolution, in halvings per axis, and its place among those at that resolution."""
    seen: Counter[_Slot] = Counter()
    slots = []
    for site in sites:
        level = tuple(map(_find_level, site.scale))
        slots.append((*level, float(seen[level])))
        seen[level] += 1
    return slots


def _are_twins(a: Mapping[str, Site], b: Mapping[str, Site]) -> bool:
    shared = a.keys() & b.keys()
    same = all(_are_near(a[name].scale, b[name].scale) for name in shared)
    return same and bool(shared) and len(shared) == min(len(a), len(b))


def _are_near(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two scales are one resolution: a pool's dense map is a little smaller than what it pools."""
    return len(a) == len(b) and all(
        abs(math.log2(one / other)) < HALF_WAY for one, other in zip(a, b, strict=True)
    )


def _find_level(scale: float) -> float:
    """Halvings so far, to a quarter: odd sizes and valid padding move a scale a little off a power of 2."""
    return round(4 * math.log2(scale)) / 4


def _say_slot(slot: _Slot) -> str:
    *level, place = slot
    factors = [2**halvings for halvings in dict.fromkeys(level)]
    where = "×".join(f"1/{factor:.3g}" for factor in factors)
    resolution = "that of the image" if factors == [1] else f"{where} of the image's"
    number = int(place) + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number if number < 20 else number % 10, "th")
    return f"same resolution ({resolution}) and order ({number}{ending} there)"
