"""Moving maps: by whole samples and, in the Fourier domain, by parts of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral.errors import SpectralError

Shift = tuple[float, float]  # pixels down and right; negative ones move up and left


def fourier_shift(x: Tensor, shift: Sequence[float]) -> Tensor:
    """Move maps circularly by any number of pixels: the band-limited periodic interpolation, resampled.

    The bin of frequency f gets the phase −2πfδ. At an even size the bin at Nyquist has no partner; it stands
    for cos(πn) and is multiplied by cos(πδ), the only real choice, so a real map stays real, half a pixel
    removes it, and moving there and back is the identity only without it. An axis that moves by whole pixels
    is rolled, without any rounding.

    Args:
        x: real maps; the last two axes are moved.
        shift: pixels (down, right).

    Shape:
        (…, H, W) → (…, H, W), of the same dtype; half types are transformed in float32.

    Units:
        Pixels of the map.

    Raises:
        SpectralError: for no floating-point maps, or a shift that isn't two finite numbers.

    Example:
        >>> x = torch.rand(1, 5, 8)
        >>> torch.equal(fourier_shift(x, (1, -2)), x.roll((1, -2), (-2, -1)))
        True
        >>> wave = torch.sin(2 * torch.pi * torch.arange(8) / 8).expand(1, 8)
        >>> bool((fourier_shift(wave, (0, 2.5)) - wave.roll(2, -1)).abs().max() > 0.1)
        True
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise SpectralError(f"fourier_shift: expected floating-point maps of shape (…, H, W), got {got}")
    down, right = check_shift(shift, "fourier_shift")
    return _shift_axis(_shift_axis(x, -2, down), -1, right)


def check_shift(shift: Sequence[float], caller: str) -> Shift:
    """Return a shift as two floats.

    Raises:
        SpectralError: if it isn't two finite numbers.

    Example:
        >>> check_shift((1, -0.5), "check_shift")
        (1.0, -0.5)
    """
    try:
        down, right = (float(part) for part in shift)
    except (TypeError, ValueError):
        down = right = math.nan
    if not (math.isfinite(down) and math.isfinite(right)):
        raise SpectralError(f"{caller}: a shift is two finite numbers (pixels down, right), got {shift!r}")
    return down, right


def shift_whole(x: Tensor, shift: Iterable[int], fill: str) -> Tensor:
    """Move maps by whole pixels (down, right), ``"circular"`` or with ``"zeros"`` behind them.

    Example:
        >>> x = torch.tensor([[[1, 2], [3, 4]]])
        >>> shift_whole(x, (0, 1), "circular").tolist(), shift_whole(x, (0, 1), "zeros").tolist()
        ([[[2, 1], [4, 3]]], [[[0, 1], [0, 3]]])
    """
    down, right = (int(step) for step in shift)
    if fill == "circular":
        return x.roll((down, right), (-2, -1))
    return F.pad(x, (right, -right, down, -down))  # a negative pad cuts off


def is_whole(shift: Shift) -> bool:
    """Whether a shift moves every sample onto another one.

    Example:
        >>> is_whole((1.0, -2.0)), is_whole((0.5, 0.0))
        (True, False)
    """
    return all(part.is_integer() for part in shift)


def _shift_axis(x: Tensor, axis: int, delta: float) -> Tensor:
    if delta.is_integer():
        return x.roll(int(delta), axis)
    size = x.shape[axis]
    # Whole turns are dropped in float64 first, so that a far shift costs no digits.
    turns = torch.arange(size // 2 + 1, dtype=torch.float64) * delta / size % 1
    gain = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    if size % 2 == 0:
        gain[-1] = math.cos(math.pi * delta)
    spectrum = torch.fft.rfft(x.to(torch.promote_types(x.dtype, torch.float32)), dim=axis)
    moved: Tensor = torch.fft.irfft(
        spectrum * gain.to(spectrum).view(-1, *[1] * (-1 - axis)), n=size, dim=axis
    )
    return moved.to(x.dtype)
