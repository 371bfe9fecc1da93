"""Answers about one network: (model, images) → tables; each function is one line in a notebook."""

from spectral.analysis.details import SiteDetail, inspect_sites
from spectral.analysis.diagnosis import Diagnosis, diagnose, from_measurements, is_diagnosis, read_diagnosis
from spectral.analysis.effects import summarize_attribution, summarize_equivariance
from spectral.analysis.examples import UnstableImages, find_unstable_images
from spectral.analysis.fixes import ALL_SITES, measure_fixes

__all__ = [
    "ALL_SITES",
    "Diagnosis",
    "SiteDetail",
    "UnstableImages",
    "diagnose",
    "find_unstable_images",
    "from_measurements",
    "inspect_sites",
    "is_diagnosis",
    "measure_fixes",
    "read_diagnosis",
    "summarize_attribution",
    "summarize_equivariance",
]
