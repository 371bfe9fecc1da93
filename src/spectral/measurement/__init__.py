"""Images × model × sites → a tidy table."""

from spectral.data import Images
from spectral.measurement.captures import (
    ALIAS_METRICS,
    AVR_METRICS,
    DEFAULT_METRICS,
    DENSE_METRICS,
    METRICS,
    SITE_METRICS,
    compare_identity,
    judge_identity,
    measure_capture,
)
from spectral.measurement.description import by, describe_sites
from spectral.measurement.entry import measure, prepare_run
from spectral.measurement.images import TensorImages, find_clusters, insert_clusters
from spectral.measurement.job import measure_part, measure_run
from spectral.measurement.pieces import CATEGORIES, CHANNEL_METRICS, OPEN

__all__ = [
    "ALIAS_METRICS",
    "AVR_METRICS",
    "CATEGORIES",
    "CHANNEL_METRICS",
    "DEFAULT_METRICS",
    "DENSE_METRICS",
    "METRICS",
    "OPEN",
    "SITE_METRICS",
    "Images",
    "TensorImages",
    "by",
    "compare_identity",
    "describe_sites",
    "find_clusters",
    "insert_clusters",
    "judge_identity",
    "measure",
    "measure_capture",
    "measure_part",
    "measure_run",
    "prepare_run",
]
