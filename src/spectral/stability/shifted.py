"""What a network says of a batch of images under shifts, each asked for once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from spectral.intake import Feed
from spectral.metrics.instability import compute_instability
from spectral.network import Move, list_moves, roll_inputs
from spectral.network.inputs import Inputs


@dataclass(frozen=True)
class Prediction:
    """What the network says of one batch: scores as they are (B, K), and its probabilities in float64."""

    logits: Tensor
    probabilities: Tensor


class ShiftedPredictions:
    """Predictions of one batch under shifts.

    Args:
        feed: the images on their way to the network.
        inputs: of the batch, ready for the network.

    Attributes:
        still: what the network says of the batch as it is.
    """

    def __init__(self, feed: Feed, inputs: Inputs) -> None:
        self._feed, self._inputs, self._layout = feed, inputs, feed.layout_of(inputs)
        # A copy, since a model that works in place would hand altered images to the shifts.
        self.still = self._see(inputs.map(lambda x, _: x.clone()))
        self._moved: dict[tuple[str, int], Prediction] = {}

    def moved(self, kind: str, step: int) -> Prediction:
        """Return what the network says of the batch rolled along one axis."""
        key = kind, step % self._feed.extents[kind]
        if key not in self._moved:
            self._moved[key] = self._see(roll_inputs(self._inputs, Move(kind, step), self._layout))
        return self._moved[key]

    def nearest(self) -> list[Prediction]:
        """Return what it says under the one-pixel shifts of SIS."""
        return [self.moved(move.kind, move.step) for move in list_moves(self._inputs, self._layout)]

    def find_sis(self, steps: Mapping[str, int] | None = None) -> Tensor:
        """Compute SIS, or its like under shifts by so many pixels along some axes, one way and the other."""
        moved = self.nearest()
        if steps is not None:
            moved = [self.moved(kind, sign * step) for kind, step in steps.items() for sign in (-1, 1)]
        return compute_instability(self.still.probabilities, [one.probabilities for one in moved])

    def _see(self, inputs: Inputs) -> Prediction:
        scores = self._feed.scores(self._feed.run(inputs), inputs.count)
        probabilities = scores.probabilities()
        assert scores.values is not None
        return Prediction(scores.values, probabilities)
