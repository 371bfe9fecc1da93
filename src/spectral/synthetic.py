"""Images whose spectrum is known in advance: constants, checkerboards, sinusoids, noise, dead leaves."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from spectral.arguments.values import check_room
from spectral.errors import SpectralError, suggest

Size = int | tuple[int, int]
Axis = Literal["x", "y", "diagonal"]

_AXES = ("x", "y", "diagonal")
# How often the average pixel of a dead-leaves image is painted over; exp(-8) of them show the ground.
_COVERAGE = 8.0


def as_size(size: Size) -> tuple[int, int]:
    """Return ``size`` as (height, width), or say what is wrong with it.

    Args:
        size: side of a square, or (height, width).

    Units: pixels.

    Raises:
        SpectralError: if a side is not a whole number of at least 1, or no machine here could hold it.

    Example:
        >>> as_size(32), as_size((3, 5))
        ((32, 32), (3, 5))
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    whole = all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s >= 1 for s in sides)
    if len(sides) != 2 or not whole:
        raise SpectralError(
            f"size must be a whole number ≥ 1 or a (height, width) pair of them, got {size!r}"
        )
    check_room(sides, "size")
    return int(sides[0]), int(sides[1])


def generator(seed: int) -> np.random.Generator:
    """Return numpy's random generator for a seed.

    Raises:
        SpectralError: if the seed is not a whole number of at least 0.

    Example:
        >>> generator(1).integers(1000, size=3).tolist() == generator(1).integers(1000, size=3).tolist()
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SpectralError(f"seed must be a whole number ≥ 0, got {seed!r}")
    return np.random.default_rng(int(seed))


def make_constant_image(size: Size, value: float = 0.5, channels: int = 3) -> torch.Tensor:
    """Make an image that has the same value everywhere: all its power is at DC.

    Args:
        size: side of a square, or (height, width).
        value: the value of every pixel.
        channels: number of identical channels.

    Shape: (channels, H, W), float32.

    Raises:
        SpectralError: if the size, the value or the number of channels is not usable.

    Example:
        >>> make_constant_image(2, value=0.25, channels=1).tolist()
        [[[0.25, 0.25], [0.25, 0.25]]]
    """
    _check_finite(value=value)
    return _repeat(np.full(as_size(size), value), channels)


def make_checkerboard_image(
    size: Size, channels: int = 3, amplitude: float = 0.5, mean: float = 0.5
) -> torch.Tensor:
    """Make the checkerboard of single pixels, ``mean + amplitude · (−1)^(i+j)``.

    Its alternating part is the highest frequency an image can hold: the corner of the spectrum, at
    normalised radius √2. With ``mean=0`` there is nothing else.

    Args:
        size: side of a square, or (height, width).
        channels: number of identical channels.
        amplitude: half the difference between the two values.
        mean: the middle between them.

    Shape: (channels, H, W), float32.

    Raises:
        SpectralError: if the size, a value or the number of channels is not usable.

    Example:
        >>> make_checkerboard_image((2, 3), channels=1).tolist()
        [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
    """
    _check_finite(amplitude=amplitude, mean=mean)
    height, width = as_size(size)
    parity = (np.arange(height)[:, None] + np.arange(width)) % 2
    return _repeat(float(mean) + float(amplitude) * (1 - 2 * parity), channels)


def make_sinusoidal_image(
    size: Size,
    frequency: float,
    axis: Axis = "x",
    channels: int = 3,
    phase: float = 0.0,
    amplitude: float = 0.5,
    mean: float = 0.5,
) -> torch.Tensor:
    """Make a plane cosine wave of one frequency.

    Args:
        size: side of a square, or (height, width).
        frequency: normalised radius ρ of the wave, in [0, 1], on the diagonal in [0, √2].
        axis: direction in which the wave varies: "x" (along a row), "y" (down a column) or "diagonal".
        channels: number of identical channels.
        phase: of the cosine at the top left pixel. At 0 the wave at ρ = 1 alternates between ± amplitude.
        amplitude: half the difference between crest and trough.
        mean: the middle between them.

    Shape: (channels, H, W), float32.

    Units: ``frequency`` is 1 at the per-axis Nyquist frequency, so it is twice the number of cycles per
        pixel: 0.5 repeats every 4 pixels. ``phase`` is in radians.

    Raises:
        SpectralError: if the frequency is not finite or beyond what the pixel grid can hold, if the axis is
            unknown, or if the size, a value or the number of channels is not usable.

    Example:
        >>> wave = make_sinusoidal_image((1, 4), frequency=0.5, channels=1, amplitude=1, mean=0)
        >>> wave.round().int().tolist()
        [[[1, 0, -1, 0]]]
    """
    _check_axis(axis)
    _check_finite(frequency=frequency, phase=phase, amplitude=amplitude, mean=mean)
    highest = math.sqrt(2) if axis == "diagonal" else 1.0
    if not 0 <= frequency <= highest * (1 + 1e-9):
        raise SpectralError(
            f"frequency must be a normalised radius between 0 and {highest:.4g} (the Nyquist frequency of "
            f"the axis {axis!r}), got {frequency}"
        )
    height, width = as_size(size)
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    distance = {"x": x + 0 * y, "y": y + 0 * x, "diagonal": (x + y) / math.sqrt(2)}[axis]
    wave = np.cos(math.pi * float(frequency) * distance + float(phase))
    return _repeat(float(mean) + float(amplitude) * wave, channels)


def exact_bin_frequencies(size: Size, axis: Axis = "x") -> list[float]:
    """List the frequencies at which a sinusoid falls on one bin of the DFT and leaks into no other.

    Args:
        size: side of a square, or (height, width).
        axis: direction of the wave, as in `make_sinusoidal_image`.

    Returns:
        The normalised radii 2k/N in (0, 1], ascending, where N is the number of samples along the axis. On
        the diagonal √2 · 2k/gcd(H, W), in (0, √2].

    Units: normalised radius, 1 at the per-axis Nyquist frequency.

    Raises:
        SpectralError: if the size or the axis is not usable.

    Example:
        >>> exact_bin_frequencies(8)
        [0.25, 0.5, 0.75, 1.0]
        >>> exact_bin_frequencies((8, 5), axis="y"), exact_bin_frequencies((8, 5), axis="x")
        ([0.25, 0.5, 0.75, 1.0], [0.4, 0.8])
    """
    _check_axis(axis)
    height, width = as_size(size)
    samples = {"x": width, "y": height, "diagonal": math.gcd(height, width)}[axis]
    scale = math.sqrt(2) if axis == "diagonal" else 1.0
    return [scale * 2 * k / samples for k in range(1, samples // 2 + 1)]


def make_white_noise_image(
    size: Size, seed: int, channels: int = 3, amplitude: float = 0.5, mean: float = 0.5
) -> torch.Tensor:
    """Make noise that is independent in every pixel and channel: the same expected power at all bins but DC.

    Args:
        size: side of a square, or (height, width).
        seed: the same seed gives the same image.
        channels: number of channels, each with its own noise.
        amplitude: values are uniform between ``mean − amplitude`` and ``mean + amplitude``.
        mean: the middle of the distribution. With 0 the expected power is the same at DC too.

    Shape: (channels, H, W), float32.

    Raises:
        SpectralError: if the size, the seed, a value or the number of channels is not usable.

    Example:
        >>> noise = make_white_noise_image(64, seed=1)
        >>> noise.shape, bool((noise >= 0).all() and (noise <= 1).all())
        (torch.Size([3, 64, 64]), True)
    """
    _check_finite(amplitude=amplitude, mean=mean)
    _check_channels(channels)
    noise = generator(seed).uniform(-1, 1, (channels, *as_size(size)))
    return torch.from_numpy((float(mean) + float(amplitude) * noise).astype(np.float32))


def make_dead_leaves_image(
    size: Size, seed: int, r_min: float = 1.0, r_max: float | None = None, channels: int = 3
) -> torch.Tensor:
    """Make a dead-leaves image: discs of all sizes that fall on, and hide, one another.

    Occlusion and scale invariance are what photographs and this model share; with radii distributed as r⁻³
    its power falls with frequency about as theirs does, as f⁻². Leaves have a random lightness and a weaker
    random tint, so channels are correlated as in a photograph. Edges are antialiased by averaging 2 × 2.

    Args:
        size: side of a square, or (height, width).
        seed: the same seed, size and radii give the same image.
        r_min: radius of the smallest leaf.
        r_max: radius of the largest, by default half the longer side.
        channels: number of channels.

    Shape: (channels, H, W), float32, in [0, 1].

    Units: radii in pixels.

    Raises:
        SpectralError: if the size, the seed, the radii or the number of channels is not usable.

    Source: G. Matheron's dead-leaves model; the radii of A. Lee, D. Mumford and J. Huang, "Occlusion models
        for natural images", IJCV 2001.

    Example:
        >>> make_dead_leaves_image((32, 48), seed=0).shape
        torch.Size([3, 32, 48])
    """
    height, width = as_size(size)
    _check_channels(channels)
    if r_max is None:
        r_max = max(2.0 * r_min, max(height, width) / 2)
    _check_finite(r_min=r_min, r_max=r_max)
    if not 0 < r_min < r_max:
        raise SpectralError(f"radii must satisfy 0 < r_min < r_max, got r_min={r_min} and r_max={r_max}")
    rng = generator(seed)
    y, x, radius = _scatter_leaves(rng, height, width, r_min, r_max)
    tint = 0.1 * rng.standard_normal((len(radius) + 1, channels)) if channels > 1 else 0.0
    colour = np.clip(rng.uniform(size=(len(radius) + 1, 1)) + tint, 0, 1)
    # Twice as fine, then averaged; the last colour is the ground under all leaves.
    top = _topmost_leaf(2 * y, 2 * x, 2 * radius, 2 * height, 2 * width)
    image = colour[top].reshape(height, 2, width, 2, channels).mean(axis=(1, 3))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


_Array = npt.NDArray[np.float64]


def _scatter_leaves(
    rng: np.random.Generator, height: int, width: int, r_min: float, r_max: float
) -> tuple[_Array, _Array, _Array]:
    """Draw centres and radii of the leaves that can touch the image, enough to cover it.

    A leaf of radius r touches the image if its centre is in a frame of (H + 2r) × (W + 2r), so among these
    leaves large ones are more frequent than r⁻³ says, by the area of that frame.
    """
    edges = np.geomspace(r_min, r_max, 513)
    r, dr = np.sqrt(edges[:-1] * edges[1:]), np.diff(edges)
    frequency = (height + 2 * r) * (width + 2 * r) * r**-3 * dr
    count = math.ceil(_COVERAGE * frequency.sum() / (math.pi * (dr / r).sum()))
    # The inverse of the cumulative distribution, interpolated, turns uniform numbers into radii.
    cumulative = np.concatenate([[0.0], np.cumsum(frequency)]) / frequency.sum()
    radius = np.interp(rng.uniform(size=count), cumulative, edges)
    y = rng.uniform(size=count) * (height + 2 * radius) - radius
    x = rng.uniform(size=count) * (width + 2 * radius) - radius
    return y, x, radius


def _topmost_leaf(y: _Array, x: _Array, radius: _Array, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return, for every pixel, the index of the last leaf that covers its centre; −1 where none does.

    Discs are cut into one span of pixels per row, all discs at once; spans stay in the order in which the
    leaves fall, so writing them in sequence leaves the topmost.
    """
    first, rows = _clipped_range(y - radius, y + radius, height)
    leaf = np.repeat(np.arange(len(radius)), rows)
    row = first[leaf] + _count_up(rows)
    half = np.sqrt(np.maximum(radius[leaf] ** 2 - (row + 0.5 - y[leaf]) ** 2, 0))
    start, length = _clipped_range(x[leaf] - half, x[leaf] + half, width)
    span = np.repeat(np.arange(len(leaf)), length)
    top = np.full(height * width, -1)
    top[row[span] * width + start[span] + _count_up(length)] = leaf[span]
    return top.reshape(height, width)


_Indices = npt.NDArray[np.int64]


def _clipped_range(low: _Array, high: _Array, limit: int) -> tuple[_Indices, _Indices]:
    """Return the first index and the number of pixel centres (i + ½) within [low, high] and the image."""
    first = np.clip(np.ceil(low - 0.5), 0, limit).astype(np.int64)
    end = np.clip(np.floor(high - 0.5) + 1, 0, limit).astype(np.int64)
    return first, np.maximum(end - first, 0)


def _count_up(lengths: _Indices) -> _Indices:
    """Return 0 … n − 1 for each n in ``lengths``, joined."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)


def _repeat(plane: npt.NDArray[np.generic], channels: int) -> torch.Tensor:
    _check_channels(channels)
    return torch.from_numpy(plane.astype(np.float32)).expand(channels, -1, -1).clone()


def _check_channels(channels: int) -> None:
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or channels < 1:
        raise SpectralError(f"channels must be a whole number ≥ 1, got {channels!r}")


def _check_axis(axis: str) -> None:
    if axis not in _AXES:
        raise SpectralError(
            f"axis must be one of {', '.join(_AXES)}, got {axis!r}{suggest(str(axis), _AXES)}"
        )


def _check_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise SpectralError(f"{name} must be a finite number, got {value}")
