"""ImageNet-C's corruptions as perturbations: a thin adapter over the package imagecorruptions."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral.errors import SpectralError, check_choice

# The benchmark's fifteen, then the four that it holds back for validation.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
SEVERITIES = range(1, 6)
SMALLEST = 32  # pixels per side, the library's own limit
SEEDED = ("impulse_noise", "glass_blur")  # take a seed; the others draw from numpy's global generator


@dataclass(frozen=True)
class Corruption:
    """A corruption of ImageNet-C at one of its severities.

    Its constants (noise levels, blur radii, …) are ImageNet's at every image size: at 32 px this is *not*
    CIFAR-10-C, whose constants are others. Images go through 8 bits, as in the benchmark. What is drawn for
    an image depends on the seed and its number alone, not on the batch.

    Args:
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what is drawn.

    Shape:
        (B, 3, H, W) → (B, 3, H, W), H and W at least 32.

    Units:
        Pixels in [0, 1].

    Attributes:
        note: which benchmark the constants are of, for the tables.

    Raises:
        SpectralError: for an unknown kind or severity; when called, for smaller images or others than RGB, or
            if the package isn't installed.

    Source:
        D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019.

    Example:
        >>> half = torch.full((1, 3, 32, 32), 0.5)
        >>> Corruption("brightness", 1).name, Corruption("brightness", 1)(half).unique()
        ('brightness-1', tensor([0.6000]))
    """

    kind: str
    severity: int
    seed: int = 0

    note: ClassVar[str] = "ImageNet-C's constants at every size; at 32 px not CIFAR-10-C"

    def __post_init__(self) -> None:
        check_choice(self.kind, CORRUPTIONS, "kind", "Corruption")
        if self.severity not in SEVERITIES or self.seed < 0:
            raise SpectralError(
                f"Corruption: severity must be a whole number from 1 to 5 and seed ≥ 0, got severity = "
                f"{self.severity} and seed = {self.seed}"
            )

    @property
    def name(self) -> str:
        """``gaussian_noise-3``."""
        return f"{self.kind}-{self.severity}"

    def __call__(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Return the corrupted images; ``indices`` say which of a set they are, by default 0, 1, …"""
        self._check(images)
        library = _import_library()
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        numbers = range(len(pixels)) if indices is None else indices
        results = [self._corrupt(library, *pair) for pair in zip(pixels, numbers, strict=True)]
        corrupted = torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)
        return (corrupted.to(images.device, torch.float32) / 255).to(images.dtype)

    def _check(self, images: Tensor) -> None:
        rgb = images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point()
        if not rgb or min(images.shape[-2:]) < SMALLEST or len(images) == 0:
            raise SpectralError(
                f"{self.name}: expected floating-point RGB images (B, 3, H, W) of at least {SMALLEST}×"
                f"{SMALLEST} pixels, got {images.dtype} of shape {tuple(images.shape)}"
            )

    def _corrupt(self, library: Any, image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        """Corrupt one image (H, W, 3) with random numbers of its own."""
        own_seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        seed = {"seed": own_seed} if self.kind in SEEDED else {}
        with _seeded_numpy(own_seed):
            result: NDArray[np.uint8] = library.corrupt(
                image, corruption_name=self.kind, severity=self.severity, **seed
            )
        return result


def _import_library() -> Any:
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise SpectralError(
            "corruptions need the optional package imagecorruptions-imaug; install it with: pip install "
            "'spectral-aliasing[corruptions]'"
        ) from error


@contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and put it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
