"""How much sites alias, by the ratio that was measured: the pooled one, or what there is in its place."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from spectral.schema import BOUNDS, name_decibels, to_decibels

POOLED = "alias_power_ratio"


@dataclass(frozen=True)
class Level:
    """A ratio of powers that says how much a site aliases.

    Attributes:
        column: of `Diagnosis.sites`.
        tap: where it is measured.
        metric: as `spectral.measure` calls it.
        name: as pages call it.
        power: what it is a share of.
        note: what is to be known of it beside its value.
    """

    column: str
    tap: str
    metric: str
    name: str
    power: str
    note: str = ""

    def of(self, sites: pd.DataFrame) -> pd.DataFrame:
        """Return the sites with this ratio, its bounds and its decibels where the pooled one's are."""
        if self.column == POOLED:
            return sites
        bounds = {f"{POOLED}{end}": sites.get(f"{self.column}{end}") for end in BOUNDS}
        known = pd.DataFrame(bounds, index=sites.index).astype(float)
        decibels = {name_decibels(name): known[name].map(to_decibels) for name in bounds}
        return sites.assign(**known, **decibels)


LEVELS = (
    Level(POOLED, "dense", POOLED, "alias power ratio", "the power that it passes on"),
    Level(f"{POOLED}_signal", "signal", POOLED, "alias power ratio at the tap signal",
          "the power that it passes on at the tap signal",
          "that tap alone was measured, not the site's own output, the tap dense"),
    Level("channel_median", "signal", f"{POOLED}_channel_median", "alias power ratio of the median channel",
          "its median channel's power", "the pooled ratio wasn't asked for"),
)  # fmt: skip
"""The first of them that was measured is told."""


def find_level(sites: pd.DataFrame) -> Level:
    """Return the ratio by which sites are told: the pooled one unless only another was measured.

    Example:
        >>> find_level(pd.DataFrame({"alias_power_ratio": [None], "channel_median": [0.2]})).name
        'alias power ratio of the median channel'
    """
    there = (level for level in LEVELS if level.column in sites and sites[level.column].notna().any())
    return next(there, LEVELS[0])
