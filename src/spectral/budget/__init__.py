"""The instability budget: what causes a network's shift instability, source by source and place by place."""

from spectral.budget.game import VIEWS
from spectral.budget.measure import count_budget_passes, measure_instability_budget
from spectral.budget.schema import METRICS, TOTAL, UNEXPLAINED
from spectral.budget.summary import describe_shares, summarize_instability_budget

__all__ = [
    "METRICS",
    "TOTAL",
    "UNEXPLAINED",
    "VIEWS",
    "count_budget_passes",
    "describe_shares",
    "measure_instability_budget",
    "summarize_instability_budget",
]
