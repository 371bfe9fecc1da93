"""The instability budget: what causes a network's shift instability, source by source and place by place."""

from spectral.budget.measure import METRICS, TOTAL, UNEXPLAINED, measure_instability_budget
from spectral.budget.summary import summarize_instability_budget

__all__ = [
    "METRICS",
    "TOTAL",
    "UNEXPLAINED",
    "measure_instability_budget",
    "summarize_instability_budget",
]
