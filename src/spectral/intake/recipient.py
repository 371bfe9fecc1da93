"""The network that images are brought to, as far as it is known before there are any."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spectral.data import FEW
from spectral.errors import SpectralError
from spectral.intake.channels import list_channel_calls
from spectral.intake.given import pick_inputs
from spectral.intake.pixels import build_scaled, holds_pixels
from spectral.models import model_info
from spectral.models.preprocessing import find_preparation
from spectral.network import Call, as_network, check_whole, find_first_convolution, list_calls
from spectral.network.inputs import Inputs
from spectral.numerics.precision import require_double
from spectral.tracing.probe import is_taken


class Recipient:
    """The network that images are brought to: where it is, what they go through, which ways in it takes.

    Args:
        model: the network.
        caller: whose name messages begin with.
        preprocessing: what images in [0, 1] go through, see `find_preparation`.
        pixels: whether the caller works on images in [0, 1].
        name: what tables call the model; by default what `load_model` recorded, or its class.

    Raises:
        SpectralError: if it is none, or none that can run here.

    Attributes:
        preparation: what images go through.
        normalises: whether they are images in [0, 1], which still go through it.

    Example:
        >>> batches = [torch.zeros(FEW, channels, 40) for channels in (1, 2)]
        >>> Recipient(nn.Conv1d(2, 4, 3), caller="example").choose_readings(batches, every=True)
        [1]
    """

    def __init__(
        self, model: nn.Module, *, caller: str, preprocessing: Any = None, pixels: bool = False,
        name: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.caller = as_network(model, caller), caller
        info = model_info(model)
        self.name = name or (info.name if info is not None else type(model).__name__)
        self.preparation = find_preparation(model, preprocessing)
        if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
            raise SpectralError(
                f"{caller}: {self.name} has layers that get their shape from their first input; run it once"
            )
        check_whole(model)
        if torch.get_default_device().type == "meta":
            raise SpectralError(
                f"{caller}: torch's default device is 'meta', where what is made has no values; call "
                f"torch.set_default_device('cpu') first"
            )
        self.device, self.dtype = _find_place(model)
        if self.device.type == "meta":
            raise SpectralError(
                f"{caller}: {self.name} is on the device 'meta', where weights have no values"
            )
        require_double(self.device, caller)
        self.normalises = pixels or preprocessing is not None
        self._axes = find_first_convolution(model)[0]

    def prepare(self, inputs: Inputs) -> Inputs:
        """Normalise images that aren't yet, and bring them to the model's device and type."""
        if self.normalises:
            precise = torch.promote_types(self.dtype or torch.float32, torch.float32)
            image = inputs.image
            inputs = inputs.map(lambda x, _: self.preparation(self._move(x, precise)) if x is image else x)
        return inputs.to(self.device, self.dtype)

    def _move(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        # A GPU fetches pinned memory by itself; towards the CPU what isn't waited for isn't there yet.
        return image.to(self.device, dtype, non_blocking=self.device.type == "cuda")

    def choose_readings(self, batches: Sequence[Any], every: bool) -> list[int]:
        """Return which of several batches the network takes, on stand-ins where it takes any there.

        Args:
            batches: of `FEW` images, had in one way or the other of what the user gave.
            every: whether all are tried, not just until one is taken.
        """
        ways = [self.list_calls(raw, holds_pixels(raw)) for raw in batches]
        for data in (False, True):
            some = (
                i for i, raw in enumerate(batches) if any(self._takes(call, raw, data) for call in ways[i])
            )
            if taken := list(islice(some, None if every else 1)):
                return taken
        return []

    def _takes(self, call: Call, raw: Any, data: bool) -> bool:
        """Whether a copy of the network can be called so, with all images of a batch as such.

        Args:
            call: the way.
            raw: the batch.
            data: whether it runs on real data, as a few can only, and then on two of the images.
        """
        with suppress(Exception):  # a way that isn't meant may fail anywhere
            inputs = self.prepare(build_scaled(call, raw))
            some = pick_inputs(inputs, [0, 1]) if data else inputs
            return inputs.count == FEW and is_taken(self.model, some, data)
        return False

    def list_calls(self, raw: Any, pixels: bool = False) -> list[Call]:
        """List in which ways a batch may be passed; of ``pixels`` as many channels as the network takes."""
        if (
            isinstance(raw, Tensor)
            and (self.normalises or pixels)
            and raw.ndim == 4
            and self._axes in (None, 2)
        ):
            return list_channel_calls(raw)
        return list_calls(self.model, raw)


def _find_place(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Return the device of a model's first tensor and its first real type, None where it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    return device, next((x.dtype for x in tensors if x.is_floating_point()), None)
