"""What tables of the instability budget call things."""

from __future__ import annotations

METRICS = ("sis", "logit_jitter")
TOTAL, UNEXPLAINED = "total", "unexplained"
COLUMNS = [
    "model", "image", "cluster", "metric", "source", "site", "value", "share", "error", "first_in",
    "last_out", "reason",
]  # fmt: skip
ROUNDING = 1e-10  # an instability below it is none, and has no shares
