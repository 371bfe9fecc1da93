"""SIS of a network whose borders are circular: what is left of the instability where nothing enters a map."""

from __future__ import annotations

from torch import Tensor

from spectral.causes import idealize
from spectral.errors import SpectralError
from spectral.intake import Feed
from spectral.network.inputs import Inputs
from spectral.stability.shifted import ShiftedPredictions


class CircularBorders:
    """A network that pads every map with its own other side, for as long as it is asked something.

    Args:
        feed: the images on their way to the network.

    Attributes:
        reason: why its borders can't all be circular; empty where they can.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._ideal = idealize(feed.model, ("border",))
        self.reason = ""

    def find_sis(self, inputs: Inputs) -> Tensor | None:
        """Compute SIS of a batch; None where the borders can't be circular."""
        if self.reason:
            return None
        try:
            with self._ideal:
                sis = ShiftedPredictions(self._feed, inputs).find_sis()
        except SpectralError as error:
            self.reason = f"its borders can't be found: {error}"
            return None
        left = next((cause for cause in self._ideal.left if cause.source == "border"), None)
        if left is not None:
            self.reason = f"a border can't be circular: {left.name!r}: {left.reason}"
            return None
        return sis
