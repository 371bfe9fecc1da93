"""How much sites alias, by the headline ratio, or by what was measured in its place."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from spectral.metrics.aliasing import FAINT
from spectral.table.schema import ALIAS_FREE, BOUNDS, POWER_RATIOS, name_decibels, to_decibels, with_bounds

POOLED, MEDIAN, NINETIETH, NOISE = POWER_RATIOS
POOLED_SIGNAL = f"{POOLED}_signal"
ABOVE = "avr_separable_exclude_dc"  # power above the limit, each channel's mean left out


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

LEVEL_MEANS = {
    ABOVE: ("dense", ABOVE), f"{ABOVE}_signal": ("signal", ABOVE),
    **{level.column: (level.tap, level.metric) for level in LEVELS[::-1]},  # counts are of the first
}  # fmt: skip
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

    That is the headline ratio, or what ``level_of`` names; 0 where nothing folds at its tap (`find_free`):
    what is left of the channels' ratios there comes from taking borders' jumps off maps that fold nothing.

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
    told = sites.reindex(columns=with_bounds(column)).astype(float).mul(~find_free(sites, "_signal"), axis=0)
    ratios = {f"level_ratio{end}": told[f"{column}{end}"] for end in BOUNDS}
    decibels = {name_decibels(name): values.map(to_decibels) for name, values in ratios.items()}
    return sites.assign(level_of=column, **ratios, **decibels)


def find_free(sites: pd.DataFrame, tap: str = "") -> pd.Series:
    """Say at which sites nothing folds, but for rounding.

    All channels together have no power in aliases there. Loud means would hide it: where it was measured,
    no power may lie above the limit without these either, and where that can't be told from rounding nothing
    is said to be free.

    Args:
        sites: with the columns of `LEVEL_MEANS` that were measured.
        tap: what stands behind the names of its columns; nothing behind those of the tap dense.

    Example:
        >>> quiet = {"alias_power_ratio": [1e-15, 1e-15], "avr_separable_exclude_dc": [1e-12, 0.3]}
        >>> find_free(pd.DataFrame(quiet)).tolist()
        [True, False]
    """
    folded, above = (sites.reindex(columns=with_bounds(f"{metric}{tap}")).astype(float).max(axis=1)
                     for metric in (POOLED, ABOVE))  # fmt: skip
    return (folded <= ALIAS_FREE) & ((above <= FAINT) | (f"{ABOVE}{tap}" not in sites))
