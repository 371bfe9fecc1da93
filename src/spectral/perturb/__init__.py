"""What is done to images before a network sees them: resampling, corruptions, attacks, Fourier basis."""

from spectral.perturb.evaluation import measure_predictions
from spectral.perturb.operators import (
    NULA_TESTS,
    NULA_TRAINING,
    BlurDecimate,
    Checkerboard,
    Decimate,
    Identity,
    Perturbation,
    Resampling,
    Resize,
    choose_randomly,
    make_perturbation,
)

__all__ = [
    "NULA_TESTS",
    "NULA_TRAINING",
    "BlurDecimate",
    "Checkerboard",
    "Decimate",
    "Identity",
    "Perturbation",
    "Resampling",
    "Resize",
    "choose_randomly",
    "make_perturbation",
    "measure_predictions",
]
