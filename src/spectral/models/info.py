"""What a source tells of its network: preprocessing, classes and the id of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.network import as_network


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images: their size, and each channel's mean and standard deviation.

    Without means nothing is known of the normalisation: the network itself may tell, else images stay as they
    are.

    Shape:
        (B, C, H, W) → (B, C, H, W), C being the number of means; likewise signals (B, C, T), videos
        (B, C, T, H, W) and (B, T, C, H, W), and channels that are last. Nothing is resized: `size` is what
        the network was trained at, and cropping to it is the caller's.

    Units:
        Images in [0, 1] → normalised values.

    Example:
        >>> scale = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> scale(torch.ones(1, 3, 2, 2)).unique()
        tensor([1.])
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the normalised images, with the input's dtype and device.

        Raises:
            SpectralError: if the images aren't a floating-point batch of so many channels.
        """
        axis = find_channels(images, len(self.mean))
        if axis is None:
            raise SpectralError(
                f"preprocessing: expected images of shape (B, {len(self.mean)}, H, W), got "
                f"{tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise SpectralError(
                f"preprocessing: expected floating-point images in [0, 1], got {images.dtype}; for 8-bit "
                f"images use images.float() / 255"
            )
        shape = [-1 if place == axis else 1 for place in range(images.ndim)]
        mean, std = (torch.tensor(x, dtype=images.dtype, device=images.device).view(shape)
                     for x in (self.mean, self.std))  # fmt: skip
        return (images - mean) / std


def find_channels(images: Tensor, count: int) -> int | None:
    """Return which axis of a batch has so many channels: the second, behind a video's time, or the last.

    Example:
        >>> find_channels(torch.zeros(2, 8, 3, 16, 16), 3), find_channels(torch.zeros(2, 4, 8, 8), 3)
        (2, None)
    """
    places = (1, 2, images.ndim - 1) if images.ndim == 5 else (1, images.ndim - 1)
    return next((axis for axis in places if images.ndim > 2 and images.shape[axis] == count), None)


@dataclass(frozen=True)
class ModelInfo:
    """Where a model and its weights come from, and what goes with them.

    Args:
        name: what `load_model` was asked for.
        family: ``"strided"``, ``"blurpool"`` or ``"nula"`` where it is known, else None.
        weights_id: `spectral.models.weights_id.hash_state` of the weights as loaded, computed once; for a
            name ending in ``@random`` it starts with ``random-0:``, 0 being the seed.
        preprocessing: turns images in [0, 1] into what the network expects.
        num_classes: outputs of the classifier; None where that isn't known, or it is none.
        classes: their names in order, where known.
        metadata: whatever else the source says: recipe, accuracy, hub repository, licence.
        files: all that it depends on besides installed packages, there or not: none of random weights; None
            where that isn't known, as of code of the user's own or of a hub, where others may be published.
    """

    name: str
    family: str | None
    weights_id: str
    preprocessing: Preprocessing
    num_classes: int | None
    classes: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] | None = None


IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR_NUM_CLASSES = 10


def model_info(model: nn.Module) -> ModelInfo | None:
    """Return what `load_model` recorded about a model, or None for a model from elsewhere.

    Args:
        model: the network itself, not its name.

    Raises:
        SpectralError: if it is no network.

    Example:
        >>> model_info(nn.Identity()) is None
        True
    """
    as_network(model, "model_info")  # nothing would fail: it would seem to be from elsewhere
    info = getattr(model, "spectral_info", None)
    return info if isinstance(info, ModelInfo) else None
