"""Power spectra of feature maps: the grid they live on, windows, and radial profiles."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spectral.errors import SpectralError

Window = Literal["hann"]
Array = Tensor | npt.NDArray[np.floating]


def compute_power_spectrum(x: Array, window: Window | None = None) -> Tensor:
    """Power |DFT|² of a real map, averaged over channels, with the DC bin in the centre.

    Args:
        x: a map, a stack of channels, or a batch of stacks; half types are raised to float32.
        window: ``"hann"`` tapers each map first, since a map is not periodic and its border step leaks
            into every frequency; the window has unit mean square, so white noise keeps its power.

    Shape:
        (H, W) → (H, W); (C, H, W) → (H, W), mean over channels; (B, C, H, W) → (B, H, W), per image.

    Units:
        Squared units of the map; by Parseval, P.sum() = H·W·Σ x² for one channel.

    Raises:
        SpectralError: for a wrong rank, an integer or complex type, an empty map, or NaN and infinite values.

    Source:
        The P(u, v) of the spectral-aliasing study, before its AVR.

    Example:
        >>> P = compute_power_spectrum(torch.ones(3, 4, 4))
        >>> P[2, 2].item(), P.sum().item()
        (256.0, 256.0)
    """
    maps = as_maps(x, "compute_power_spectrum", ranks=(2, 3, 4))
    if window is not None:
        maps = maps * _hann_window(tuple(maps.shape[-2:]), window).to(maps)
    half = torch.view_as_real(torch.fft.rfft2(maps))
    power: Tensor = torch.linalg.vecdot(half, half)  # one pass, no squared copy of the spectrum
    if power.ndim > 2:
        power = power.mean(dim=-3)
    if not torch.isfinite(power).all():
        raise SpectralError(
            "compute_power_spectrum: the map has NaN or infinite values (or overflows float32 when squared); "
            "check the weights and the input"
        )
    centred: Tensor = torch.fft.fftshift(_complete_half_plane(power, maps.shape[-1]), dim=(-2, -1))
    return centred


def compute_radial_profile(P: Array) -> Tensor:
    """Mean power over rings of equal normalised radius ρ, one bin of the shorter axis wide.

    Args:
        P: DC-centred power, as `compute_power_spectrum` gives it.

    Shape:
        (…, H, W) → (…, R); ring r is centred on ``radial_frequencies((H, W))[r]``.

    Units:
        Those of P.

    Raises:
        SpectralError: if P has fewer than two axes or an integer type.

    Source:
        The radial profiles of the spectral-aliasing study; ρ as in `normalized_radius`.

    Example:
        >>> P = compute_power_spectrum(torch.ones(8, 8))
        >>> compute_radial_profile(P)
        tensor([4096.,    0.,    0.,    0.,    0.,    0.,    0.])
    """
    power = as_maps(P, "compute_radial_profile")
    ring, count = _rings(tuple(power.shape[-2:]))
    ring, count = ring.to(power.device), count.to(power)
    sums = power.new_zeros((*power.shape[:-2], len(count)))
    return sums.index_add(-1, ring, power.flatten(-2)) / count


def radial_frequencies(size: tuple[int, int]) -> Tensor:
    """Normalised radius ρ of each ring of `compute_radial_profile` (1 = per-axis Nyquist), float64.

    Example:
        >>> radial_frequencies((8, 8))[:5]
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    _, count = _rings(size)
    return torch.arange(len(count), dtype=torch.float64) * 2 / min(size)


def log_power_spectrum(P: Array) -> Tensor:
    """log(1 + P): the study's compression for pictures of spectra.

    Example:
        >>> log_power_spectrum(torch.zeros(2, 2)).sum().item()
        0.0
    """
    return torch.log1p(as_maps(P, "log_power_spectrum"))


def frequency_grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Frequencies (f_u as a column, f_v as a row) of a DC-centred spectrum, in cycles per pixel, float64.

    Shape:
        (H, 1) and (1, W), values in [−0.5, 0.5).

    Example:
        >>> frequency_grid((1, 4))[1]
        tensor([[-0.5000, -0.2500,  0.0000,  0.2500]], dtype=torch.float64)
    """
    k, l = centred_indices(size)  # noqa: E741 - (k, l) are the bins' usual names
    return k.double() / size[0], l.double() / size[1]


def normalized_radius(size: tuple[int, int]) -> Tensor:
    """Normalised radius ρ = √((2 f_u)² + (2 f_v)²) of a DC-centred spectrum: 1 at Nyquist, √2 in the corners.

    Shape:
        (H, W), float64.

    Example:
        >>> normalized_radius((4, 4))[2]
        tensor([1.0000, 0.5000, 0.0000, 0.5000], dtype=torch.float64)
    """
    f_u, f_v = frequency_grid(size)
    return ((2 * f_u) ** 2 + (2 * f_v) ** 2).sqrt()


def centred_indices(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Signed bin numbers of a DC-centred spectrum, (H, 1) and (1, W), int64.

    Example:
        >>> centred_indices((3, 4))[1]
        tensor([[-2, -1,  0,  1]])
    """
    height, width = size
    k = torch.arange(height) - height // 2
    l = torch.arange(width) - width // 2  # noqa: E741
    return k[:, None], l[None, :]


def as_maps(x: Array, caller: str, ranks: tuple[int, ...] | None = None) -> Tensor:
    """Check that ``x`` is a real floating-point map or a stack of maps, and raise half types to float32.

    Raises:
        SpectralError: naming ``caller``, what came and what to do.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:  # torch has no wider float
            raise SpectralError(
                f"{caller}: expected a real floating-point map, got {x.dtype}; use x.astype(np.float32)"
            )
        # Read-only and byte-swapped arrays, as files give them, are copied.
        x = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(x, Tensor):
        raise SpectralError(f"{caller}: expected a torch tensor or a numpy array, got {type(x).__name__}")
    if not x.is_floating_point():
        raise SpectralError(f"{caller}: expected a real floating-point map, got {x.dtype}; use x.float()")
    if x.ndim < 2 or (ranks and x.ndim not in ranks):
        wanted = "(H, W), (C, H, W) or (B, C, H, W)" if ranks else "(…, H, W)"
        raise SpectralError(f"{caller}: expected shape {wanted}, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise SpectralError(f"{caller}: the map is empty, got shape {tuple(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _complete_half_plane(half: Tensor, width: int) -> Tensor:
    """Fill in the columns that a real transform leaves out, from P(−u, −v) = P(u, v)."""
    mirrored = half[..., 1 : (width + 1) // 2].flip(-1)
    rest = torch.cat([mirrored[..., :1, :], mirrored[..., 1:, :].flip(-2)], dim=-2)
    return torch.cat([half, rest], dim=-1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached tensor may enter an autograd graph later
def _hann_window(size: tuple[int, int], window: str) -> Tensor:
    if window != "hann":
        raise SpectralError(f"window must be None or 'hann', got {window!r}")
    # Half-sample offset: no zero at the border, so that a 1×1 map survives.
    axes = [torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n).square() for n in size]
    taper = axes[0][:, None] * axes[1]
    return taper / taper.square().mean().sqrt()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rings(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    # The nudge decides a bin on the border of two rings alike on every platform.
    ring = (normalized_radius(size) * (min(size) / 2) + 0.5 - 1e-9).floor().long().flatten()
    return ring, ring.bincount().double()
