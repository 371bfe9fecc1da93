"""What tables of the instability budget call things."""

from __future__ import annotations

METRICS = ("sis", "logit_jitter")
TOTAL, UNEXPLAINED = "total", "unexplained"
CONTENT = "content"
"""What enters a window over its border and what leaves it: another picture is no cause within a network."""
COLUMNS = [
    "model", "image", "cluster", "metric", "source", "site", "value", "share", "error", "first_in",
    "last_out", "reason",
]  # fmt: skip
