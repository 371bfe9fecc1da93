"""How images come to a model: one way for all that measures."""

from spectral.intake.feed import Feed
from spectral.intake.given import GivenImages, join_inputs, pick_inputs

__all__ = ["Feed", "GivenImages", "join_inputs", "pick_inputs"]
