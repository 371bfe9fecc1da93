"""Means with intervals, paired comparisons, dependence and cross-validated regression.

Rows that share a photograph are not independent: given ``clusters`` (one label per row, the photograph), each
cluster and not each crop is the unit. What the data do not determine is NaN with a ``reason``; what the
caller got wrong is a :class:`~spectral.errors.SpectralError`. Results are frozen dataclasses, and
``dataclasses.asdict`` makes a row of each. All intervals are 95 % intervals.
"""

from spectral.arguments.validation import guard_room
from spectral.stats.comparison import (
    PairedComparison,
    RelativeChange,
    Share,
    Summary,
    compare_paired,
    compare_shares,
    count_share,
    holm,
    relative_change,
    summarize,
    summarize_share,
)
from spectral.stats.dependence import Correlation, RankCorrelation, correlate, correlate_ranks
from spectral.stats.estimate import Mean, estimate_mean
from spectral.stats.regression import Regression, regress_cross_validated

__all__ = [
    "Correlation",
    "Mean",
    "PairedComparison",
    "RankCorrelation",
    "Regression",
    "RelativeChange",
    "Share",
    "Summary",
    "compare_paired",
    "compare_shares",
    "correlate",
    "correlate_ranks",
    "count_share",
    "estimate_mean",
    "holm",
    "regress_cross_validated",
    "relative_change",
    "summarize",
    "summarize_share",
]

guard_room(globals())
