"""Means with intervals, paired comparisons, dependence and cross-validated regression.

Rows that share a photograph are not independent: given ``groups`` (one label per row, the photograph), the
photograph and not the crop is the unit. What the data do not determine is NaN with a ``reason``; what the
caller got wrong is a :class:`~spectral.errors.SpectralError`. Results are frozen dataclasses, and
``dataclasses.asdict`` makes a row of each. All intervals are 95 % intervals.
"""

from spectral.stats.comparison import (
    Interval,
    PairedComparison,
    Proportion,
    RelativeChange,
    Summary,
    bootstrap_interval,
    cluster_bootstrap_interval,
    compare_paired,
    holm,
    proportion_interval,
    relative_change,
    summarize,
)
from spectral.stats.dependence import Correlation, RankCorrelation, correlate, correlate_ranks
from spectral.stats.regression import Regression, regress_cross_validated

__all__ = [
    "Correlation",
    "Interval",
    "PairedComparison",
    "Proportion",
    "RankCorrelation",
    "Regression",
    "RelativeChange",
    "Summary",
    "bootstrap_interval",
    "cluster_bootstrap_interval",
    "compare_paired",
    "correlate",
    "correlate_ranks",
    "holm",
    "proportion_interval",
    "regress_cross_validated",
    "relative_change",
    "summarize",
]
