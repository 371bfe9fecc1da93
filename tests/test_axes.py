"""What is known of a tensor ends with it."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectral.axes import AxisTracker, Call


class Reading(TorchDispatchMode):
    """Hands every operator to a tracker."""

    def __init__(self, axes: AxisTracker) -> None:
        super().__init__()
        self.axes = axes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        call = Call(func, args, kwargs or {}, out)
        if self.axes.read(call, slides=False):
            self.axes.label(call, None)
        return out


def test_a_later_tensor_is_not_taken_for_one_that_was_filled_with_the_image():
    """Without data, memory that is let go of is the next tensor's, with its number."""
    axes = AxisTracker(lambda x: None, lambda x, before: None)
    image = torch.zeros(1, 3, 8, 6, device="meta")
    axes.mark_image(image)
    with Reading(axes):
        target = torch.zeros(1, 3, 8, 6, device="meta")
        target.copy_(image)
        assert axes.comes_from_image(target)
        assert axes.comes_from_image(target[:, 1:])
        del target
        later = [torch.ones(1, 3, 8, 6, device="meta") for _ in range(50)]
    assert not any(map(axes.comes_from_image, later))
