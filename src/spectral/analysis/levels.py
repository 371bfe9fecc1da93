"""How much sites alias, by the headline ratio, or by what was measured in its place."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from spectral.schema import ALIAS_FREE, BOUNDS, POWER_RATIOS, name_decibels, to_decibels, with_bounds

POOLED, MEDIAN, NINETIETH, NOISE = POWER_RATIOS
POOLED_SIGNAL = f"{POOLED}_signal"


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


LEVELS = (
    Level("channel_median", "signal", MEDIAN, "alias power ratio of the median channel",
          "the median channel's power"),
    Level(POOLED_SIGNAL, "signal", POOLED, "alias power ratio at the tap signal",
          "the power that it passes on at the tap signal", "the median channel's ratio wasn't asked for"),
    Level(POOLED, "dense", POOLED, "alias power ratio at the tap dense",
          "the power that it passes on at the tap dense",
          "measured at that tap alone, where it depends on how a network is written"),
)  # fmt: skip
"""The first of them that was measured is told: the headline, or what comes nearest to it."""

LEVEL_MEANS = {level.column: (level.tap, level.metric) for level in LEVELS[::-1]}  # counts are of the first
LEVEL_COLUMNS = ["level_of", *with_bounds("level_ratio", "level_db")]  # of `add_levels`


def find_level(sites: pd.DataFrame) -> Level:
    """Return the ratio by which sites are told: the headline unless only another was measured.

    Args:
        sites: from `add_levels`, or with the columns of those ratios that were measured, and their bounds.

    Example:
        >>> find_level(pd.DataFrame(dict.fromkeys(with_bounds("alias_power_ratio"), [0.2]))).tap
        'dense'
    """
    known = [*sites.get("level_of", pd.Series(dtype=object)).dropna()]
    if known:
        return next(level for level in LEVELS if level.column == known[0])
    return next((level for level in LEVELS if {*with_bounds(level.column)} <= {*sites}), LEVELS[0])


def add_levels(sites: pd.DataFrame, level: Level | None = None) -> pd.DataFrame:
    """Put beside each site how much it aliases, as it is told: ``level_ratio`` and ``level_db`` with bounds.

    That is the headline ratio, or what ``level_of`` names. Where no power at all is aliased at its tap it is
    0: what is left of the channels' ratios there comes from taking borders' jumps off maps that fold nothing.

    Args:
        sites: as for `find_level`.
        level: by which they are told; what `find_level` finds by default.

    Example:
        >>> one = {f"{name}{end}": [value] for end in BOUNDS
        ...        for name, value in {"channel_median": 0.004, "alias_power_ratio_signal": 1e-15}.items()}
        >>> add_levels(pd.DataFrame(one))[["level_ratio", "level_db"]].values.tolist()
        [[0.0, -100.0]]
    """
    # Without its bounds a ratio is of the images alone that are shown (diagnoses of earlier versions).
    shown = [one.column for one in LEVELS if {*with_bounds(one.column)} - {*sites}]
    sites = sites.drop(columns=shown, errors="ignore")
    column = (level or find_level(sites)).column
    free = sites.reindex(columns=with_bounds(POOLED_SIGNAL)).astype(float).max(axis=1) <= ALIAS_FREE
    told = sites.reindex(columns=with_bounds(column)).astype(float).mul(~free, axis=0)
    ratios = {f"level_ratio{end}": told[f"{column}{end}"] for end in BOUNDS}
    decibels = {name_decibels(name): values.map(to_decibels) for name, values in ratios.items()}
    return sites.assign(level_of=column, **ratios, **decibels)
