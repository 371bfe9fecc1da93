"""Anti-aliased layers of this package that know their own dense map."""

from __future__ import annotations

from torch import Tensor

from spectral.operators.base import ALL, Decimation, Operator, Size
from spectral.operators.registry import register_operator


class OwnDense(Operator):
    """A layer with a ``dense`` of its own."""

    family = "layer"
    obstacle = "it is anti-aliased already"

    def dense(self, d: Decimation, size: Size, images: slice = ALL, channels: slice = ALL) -> Tensor:
        """Ask the layer for all of it: it may look at all channels."""
        assert d.layer is not None
        return d.layer(d.input)[images, channels]

    def find_unit(self, d: Decimation) -> int:
        """Return all channels."""
        return self.count_channels(d)


@register_operator
class LowPass(OwnDense):
    """A low-pass, then decimation."""

    kind = "low_pass"
    rule = "the low-passed map"


@register_operator
class Polyphase(OwnDense):
    """Decimation at a phase that depends on the map."""

    kind = "polyphase"
    rule = "the map itself, moved so that the samples kept come first"
