"""Power spectra of feature maps: the grid they live on, windows, and radial profiles."""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spectral.arguments.values import check_room
from spectral.errors import SpectralError
from spectral.numerics.cache import remember
from spectral.numerics.scaling import find_scale

Window = Literal["hann"]
Array = Tensor | npt.NDArray[np.floating]


def compute_power_spectrum(x: Array, window: Window | None = None, axes: int = 2) -> Tensor:
    """Power |DFT|² of a real map, averaged over channels, with the DC bin in the centre.

    Args:
        x: a map, a stack of channels, or a batch of stacks; half types are raised to float32.
        window: ``"hann"`` tapers each map first, since a map is not periodic and its border step leaks
            into every frequency; the window has unit mean square, so white noise keeps its power. It spreads
            the mean over neighbouring bins, which on small maps lie above a limit: for a share of power take
            the mean off first, as the metric ``avr_hann`` does.
        axes: how many of the last axes are spatial: 3 for video maps (…, T, H, W).

    Shape:
        (H, W) → (H, W); (C, H, W) → (H, W), mean over channels; (B, C, H, W) → (B, H, W), per image.

    Returns:
        The power, in the map's type; in float64 where the squares of a faint map would vanish in float32.

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
    maps = as_maps(x, "compute_power_spectrum", axes, leading=2)
    spatial = tuple(range(-axes, 0))
    if window is not None:
        if window != "hann":
            raise SpectralError(f"window must be None or 'hann', got {window!r}")
        maps = taper(maps, axes)
    power = _find_half_plane(maps, axes)
    if _vanishes(power, maps, axes):
        return compute_power_spectrum(maps.double(), window=None, axes=axes)
    if not torch.isfinite(power).all():
        raise SpectralError(
            "compute_power_spectrum: the map has NaN or infinite values (or overflows float32 when squared); "
            "check the weights and the input"
        )
    return _centre(power, maps.shape[-1], spatial)


def find_power(maps: Tensor, axes: int) -> Tensor:
    """`compute_power_spectrum` of maps that are known to be fit for it: nothing is read back from a device.

    Example:
        >>> find_power(torch.ones(3, 4, 4), 2).sum().item()
        256.0
    """
    return _centre(_find_half_plane(maps, axes), maps.shape[-1], tuple(range(-axes, 0)))


def taper(maps: Tensor, axes: int) -> Tensor:
    """Multiply maps by the Hann window of `compute_power_spectrum`.

    Example:
        >>> round(taper(torch.ones(64, 64), 2).square().mean().item(), 5)
        1.0
    """
    window: Tensor = remember(_hann_window, tuple(maps.shape[-axes:]), like=maps, dtype=maps.dtype)
    return maps * window


def _find_half_plane(maps: Tensor, axes: int) -> Tensor:
    real, imaginary = torch.view_as_real(torch.fft.rfftn(maps, dim=tuple(range(-axes, 0)))).unbind(-1)
    power = torch.addcmul(real.square(), imaginary, imaginary)  # a sum over pairs takes longer than the FFT
    return power.mean(dim=-axes - 1) if power.ndim > axes else power


def _centre(half: Tensor, width: int, spatial: tuple[int, ...]) -> Tensor:
    centred: Tensor = torch.fft.fftshift(_complete_half_plane(half, width, spatial), dim=spatial)
    return centred


def _vanishes(power: Tensor, maps: Tensor, axes: int) -> bool:
    """Whether the squares of a map that isn't silent are too small for float32.

    Raises:
        SpectralError: if they are so for float64.
    """
    faint = is_faint(power, axes)
    if not bool(faint.any()):
        return False
    loud = (maps.detach() != 0).any(-1).flatten(maps.ndim - axes).any(-1)
    faint &= loud.any(-1) if loud.ndim > faint.ndim else loud
    if bool(faint.any()) and power.dtype == torch.float64:
        raise SpectralError(
            "compute_power_spectrum: the map is so faint that its squares vanish; multiply it by a constant"
        )
    return bool(faint.any())


def is_faint(power: Tensor, axes: int) -> Tensor:
    """Which spectra are so small that squares of their map may have vanished; that of a silent map is too.

    Example:
        >>> is_faint(torch.tensor([[[1.0]], [[1e-36]]]), 2)
        tensor([False,  True])
    """
    limits = torch.finfo(power.dtype)
    return power.detach().amax(tuple(range(-axes, 0))) < limits.tiny / limits.eps


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
    ring, count = remember(_rings, tuple(power.shape[-2:]), like=power)
    scale = find_scale(power, (-2, -1))
    sums = power.new_zeros((*power.shape[:-2], len(count)))
    means: Tensor = sums.index_add(-1, ring, (power / scale).flatten(-2)) / count.to(power.dtype)
    return means * scale.squeeze(-1)


def radial_frequencies(size: tuple[int, int]) -> Tensor:
    """Normalised radius ρ of each ring of `compute_radial_profile` (1 = per-axis Nyquist), float64.

    Example:
        >>> radial_frequencies((8, 8))[:5]
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    check_room(size, "radial_frequencies: size")
    _, count = remember(_rings, tuple(size))
    return torch.arange(len(count), dtype=torch.float64) * 2 / min(size)


def log_power_spectrum(P: Array) -> Tensor:
    """log(1 + P): the study's compression for pictures of spectra.

    Example:
        >>> log_power_spectrum(torch.zeros(2, 2)).sum().item()
        0.0
    """
    power = as_maps(P, "log_power_spectrum")
    if bool((power.detach() < 0).any()):
        raise SpectralError("log_power_spectrum: power can't be negative; pass a power spectrum")
    return torch.log1p(power)


def frequency_grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Frequencies (f_u as a column, f_v as a row) of a DC-centred spectrum, in cycles per pixel, float64.

    Shape:
        (H, 1) and (1, W), values in [−0.5, 0.5).

    Example:
        >>> frequency_grid((1, 4))[1]
        tensor([[-0.5000, -0.2500,  0.0000,  0.2500]], dtype=torch.float64)
    """
    check_room(size, "frequency_grid: size")
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


def centred_indices(size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Signed bin numbers of a DC-centred spectrum along each axis, such as (H, 1) and (1, W), int64.

    Example:
        >>> centred_indices((3, 4))[1]
        tensor([[-2, -1,  0,  1]])
    """
    ones = [1] * len(size)
    return tuple(
        (torch.arange(n) - n // 2).view(*ones[:axis], n, *ones[axis + 1 :]) for axis, n in enumerate(size)
    )


def as_maps(x: Array, caller: str, axes: int = 2, leading: int | None = None) -> Tensor:
    """Check that ``x`` is a real floating-point map or a stack of maps, and raise half types to float32.

    Args:
        x: the map or maps.
        caller: named in errors.
        axes: spatial axes, the last ones.
        leading: how many axes (C, then B) may stand before them; any number if None.

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
    if x.ndim < axes or (leading is not None and x.ndim > axes + leading):
        grid = ", ".join(f"N{i + 1}" for i in range(axes)) if axes > 3 else "T, H, W"[-3 * axes + 2 :]
        wanted = f"(…, {grid})" if leading is None else f"({grid}), (C, {grid}) or (B, C, {grid})"
        raise SpectralError(f"{caller}: expected shape {wanted}, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise SpectralError(f"{caller}: the map is empty, got shape {tuple(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _complete_half_plane(half: Tensor, width: int, spatial: tuple[int, ...]) -> Tensor:
    """Fill in the columns that a real transform leaves out, from P(−u, −v) = P(u, v)."""
    rest = half[..., 1 : (width + 1) // 2].flip(spatial)
    for axis in spatial[:-1]:
        rest = rest.roll(1, axis)  # bin 0 is its own mirror image
    return torch.cat([half, rest], dim=-1)


def _hann_window(size: tuple[int, ...]) -> Tensor:
    # Half-sample offset: no zero at the border, so that a 1×1 map survives.
    axes = [torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n).square() for n in size]
    window = reduce(lambda window, axis: window[..., None] * axis, axes)
    return window / window.square().mean().sqrt()


def _rings(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    # The nudge decides a bin on the border of two rings alike on every platform.
    ring = (normalized_radius(size) * (min(size) / 2) + 0.5 - 1e-9).floor().long().flatten()
    return ring, ring.bincount()
