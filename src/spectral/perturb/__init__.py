"""What is done to images before a network sees them: resampling, corruptions, attacks, Fourier basis."""

from spectral.arguments.validation import guard_room
from spectral.perturb.attacks import ATTACKS, measure_robustness
from spectral.perturb.corruptions import CORRUPTIONS, Corruption
from spectral.perturb.evaluation import PerturbedImages, measure_predictions
from spectral.perturb.heatmap import FourierBasis, measure_fourier_heatmap
from spectral.perturb.operators import (
    NULA_TESTS,
    NULA_TRAINING,
    NULA_TRAINING_V1,
    BlurDecimate,
    Checkerboard,
    Decimate,
    GaussianNoise,
    Identity,
    Perturbation,
    RandomResize,
    Resampling,
    Resize,
    choose_randomly,
    make_perturbation,
)

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "NULA_TESTS",
    "NULA_TRAINING",
    "NULA_TRAINING_V1",
    "BlurDecimate",
    "Checkerboard",
    "Corruption",
    "Decimate",
    "FourierBasis",
    "GaussianNoise",
    "Identity",
    "Perturbation",
    "PerturbedImages",
    "RandomResize",
    "Resampling",
    "Resize",
    "choose_randomly",
    "make_perturbation",
    "measure_fourier_heatmap",
    "measure_predictions",
    "measure_robustness",
]

guard_room(globals())
