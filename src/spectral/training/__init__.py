"""One training loop for every bundled network, clean, perturbed or attacked: any device, resumable."""

from spectral.training.attack import attack_batch
from spectral.training.images import LabelledImages, Normalisation, augment, draw_batches, normalize
from spectral.training.loop import NUM_CLASSES, STATE_NAME, evaluate, train
from spectral.training.recipe import RECIPES, Recipe, find_recipe

__all__ = [
    "NUM_CLASSES",
    "RECIPES",
    "STATE_NAME",
    "LabelledImages",
    "Normalisation",
    "Recipe",
    "attack_batch",
    "augment",
    "draw_batches",
    "evaluate",
    "find_recipe",
    "normalize",
    "train",
]
