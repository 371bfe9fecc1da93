"""The images of a training: in memory, drawn from (seed, epoch), shifted, mirrored, perturbed, normalised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.models.weights_id import hash_state
from spectral.network import reflect
from spectral.perturb import choose_randomly, make_perturbation
from spectral.training.recipe import Recipe


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel by which a network wants its pixels: (pixel − mean) / std.

    Example:
        >>> Normalisation()(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0, 0, 0]
        tensor([-1.,  1.])
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (B, C, H, W)."""
        normalised = (pixels - self._spread(self.mean, pixels)) / self._spread(self.std, pixels)
        return normalised.contiguous()  # maps lie as the weights do, not as the pixels were read

    def scale(self, like: Tensor, pixels: float) -> Tensor:
        """How far ``pixels`` are in what the network gets, (C, 1, 1)."""
        return pixels / self._spread(self.std, like)

    def _spread(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).view(-1, 1, 1)


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, 3, H, W) uint8 and labels (N,) int64, in memory, with the id that tables will carry.

    ``clusters`` has the photograph that each was cut from, the unit of intervals; without it each is its own.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    data_id: str
    clusters: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            raise SpectralError(
                f"training data: expected as many labels as images, got {len(self.images)} images and "
                f"{len(self.labels)} labels"
            )
        if self.clusters is not None and len(self.clusters) != len(self.images):
            raise SpectralError(
                f"training data: expected a cluster for each image, got {len(self.images)} images and "
                f"{len(self.clusters)} clusters"
            )

    def digest(self) -> str:
        """Return the hash of all pixels and labels: the id is but a name."""
        return f"sha256:{hash_state({'images': self.images, 'labels': self.labels}).partition(':')[2]}"


def normalize(images: Tensor, normalise: Normalisation = Normalisation()) -> Tensor:
    """Turn uint8 images into what a network is trained on: [−1, 1] floats for those of this project.

    Example:
        >>> normalize(torch.tensor([[[[0, 255]]] * 3], dtype=torch.uint8))[0, 0]
        tensor([[-1.,  1.]])
    """
    return normalise(images.float() / 255)


def draw_batches(
    images: Tensor, labels: Tensor, recipe: Recipe, epoch: int, normalise: Normalisation = Normalisation()
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle, shift by up to ``crop_padding`` (reflected borders), flip, perturb; from (seed, epoch)."""
    perturbations = [make_perturbation(name) for name in recipe.perturb]
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(recipe.batch_size):
        pad = recipe.crop_padding
        shifts = torch.randint(0, 2 * pad + 1, (len(chosen), 2), generator=generator)
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        index = chosen.to(images.device)
        batch = augment(images[index], shifts, flips if recipe.flip else torch.zeros_like(flips), pad)
        pixels = batch.float() / 255
        if recipe.jitter:
            noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
            pixels = (pixels + recipe.jitter * (2 * noise - 1)).clamp(0, 1)
        if perturbations:
            pixels = choose_randomly(pixels, perturbations, generator)
        yield normalise(pixels), labels[index]


def augment(images: Tensor, shifts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Cut a window at ``shifts`` (B, 2) out of each reflect-padded image and mirror those in ``flips``.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> augment(x, torch.tensor([[1, 1]]), torch.tensor([True]), pad=1)[0, 0]
        tensor([[1., 0.],
                [3., 2.]])
    """
    height, width = images.shape[-2:]
    device = images.device
    rows = reflect(torch.arange(height)[None] + shifts[:, :1] - pad, height)
    columns = torch.arange(width)[None].expand(len(images), -1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    columns = reflect(columns + shifts[:, 1:] - pad, width)
    which = torch.arange(len(images), device=device)[:, None, None]
    picked = images[which, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return picked.permute(0, 3, 1, 2)
