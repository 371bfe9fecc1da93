"""How images come to a model: one way for all that measures."""

from spectral.intake.feed import Feed
from spectral.intake.given import GivenImages, join_inputs, pick_alike, pick_inputs
from spectral.intake.recipient import Recipient

__all__ = ["Feed", "GivenImages", "Recipient", "join_inputs", "pick_alike", "pick_inputs"]
