"""Several networks over one set of images, by any number of jobs that share a folder."""

from spectral.sweeping.models import read_models
from spectral.sweeping.sweep import sweep

__all__ = ["read_models", "sweep"]
