"""The headline alias power ratio: channel by channel, without the mean, and without what borders add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.metrics.aliasing import find_aliases, rounding_floor, split_aliases
from spectral.metrics.sampling import Stride, as_stride, find_lattices
from spectral.metrics.spectrum import Array, as_maps
from spectral.numerics.cache import remember
from spectral.numerics.lattice import Lattice
from spectral.numerics.matrices import highest_bin
from spectral.numerics.scaling import find_scale, sum_squares


def compute_channel_alias_ratios(
    dense: Array, stride: Stride = 2, phase: Stride = 0, size: tuple[int, ...] | None = None
) -> Tensor:
    """Power of the aliases over power of the decimated map, one ratio for each channel.

    Four things that the pooled ratio mixes in are kept out: a loud channel doesn't outweigh the others; the
    channel's mean, which decimation can't harm, is removed; of a map's two halves, the smooth part that only
    makes up for its unequal borders is left out (`split_border`); and the bin at the decimated lattice's
    Nyquist frequency, which has no partner at the other side of the spectrum, counts half, in the aliases as
    in the whole: L gives all of it to the aliases, although half of what lies there needn't be one.

    Args:
        dense: the map before decimation.
        stride: decimation factor, one or one per axis; an axis of stride 1 isn't cut, nothing folds there.
        phase: the first sample that is kept.
        size: samples that are kept on each axis; by default as many as there are.

    Shape:
        (B, C, H, W) → (B, C); (C, H, W) → (C,); more axes with more strides.

    Returns:
        The ratios, in the map's dtype, 0 … 1 for maps that fold exactly; NaN where a channel is constant.

    Raises:
        SpectralError: as `compute_am`.

    Source:
        METRICS: headline alias power ratio. L. Moisan, Periodic plus smooth image decomposition, JMIV 2011.

    Example:
        >>> places = (torch.arange(16.0) + 0.5) / 16
        >>> tones = [torch.cos(2 * torch.pi * k * places).expand(1, 16, 16) for k in (2, 6)]
        >>> [round(float(compute_channel_alias_ratios(5 + tone)), 3) for tone in tones]
        [0.0, 1.0]
    """
    steps = as_stride(stride, "compute_channel_alias_ratios")
    maps = as_maps(dense, "compute_channel_alias_ratios", len(steps), leading=2)
    periodic, silent = _remove_border(maps, len(steps))
    kept, aliases = split_aliases(periodic, steps, phase, size, "compute_channel_alias_ratios")
    return _divide_weighed(aliases, kept, steps, silent)


def find_channel_ratios(maps: Tensor, lattices: Sequence[Lattice]) -> tuple[Tensor, Tensor]:
    """`compute_channel_alias_ratios` of maps known to be fit for it: nothing is read back from a device.

    Returns:
        The ratios, and for each image whether it has aliases that are too faint for float32.

    Example:
        >>> tone = torch.cos(2 * torch.pi * 6 * (torch.arange(16.0) + 0.5) / 16).expand(1, 16, 16)
        >>> ratios, faint = find_channel_ratios(tone, [Lattice(16, 2, 0, 8)] * 2)
        >>> round(float(ratios), 3), bool(faint)
        (1.0, False)
    """
    steps = tuple(lattice.step for lattice in lattices)
    periodic, silent = _remove_border(maps, len(steps))
    kept, aliases, faint = find_aliases(periodic, lattices)
    return _divide_weighed(aliases, kept, steps, silent), faint


def _remove_border(maps: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Return maps of a usual size without their means and what makes up for their borders, and the silent."""
    maps = maps / find_scale(maps, tuple(range(-axes, 0)))
    centred, silent = _centre(maps, axes)
    return centred - _find_smooth(centred, axes), silent.flatten(-axes).squeeze(-1)


def _divide_weighed(aliases: Tensor, kept: Tensor, steps: Sequence[int], silent: Tensor) -> Tensor:
    """Return the ratio of each channel; NaN where it is constant."""
    whole = _weigh(kept, steps)
    silent = silent | (whole == 0)
    ratio = _weigh(aliases, steps) / torch.where(silent, torch.ones_like(whole), whole)
    return torch.where(silent, torch.full_like(ratio, torch.nan), ratio)


def remove_mean(maps: Tensor, axes: int = 2) -> Tensor:
    """Return maps less their means; exactly 0 where what is left is no more than a constant's rounding.

    Args:
        maps: any number of maps.
        axes: how many of the last axes are spatial.

    Example:
        >>> remove_mean(torch.tensor([[[0.1, 0.1, 0.1]], [[0.0, 3.0, 0.0]]]))
        tensor([[[ 0.,  0.,  0.]],
        <BLANKLINE>
                [[-1.,  2., -1.]]])
    """
    scale = find_scale(maps, tuple(range(-axes, 0)))
    return _centre(maps / scale, axes)[0] * scale


def _centre(maps: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """`remove_mean` of maps of a usual size; which of them are constant too, (…, 1, 1)."""
    spatial, pixels = tuple(range(-axes, 0)), math.prod(maps.shape[-axes:])
    mean = maps.mean(spatial, keepdim=True)
    centred = maps - mean
    # The mean itself is rounded, which shows where it is much larger than the rest.
    centred = centred - centred.mean(spatial, keepdim=True)
    rest = sum_squares(centred, spatial) / pixels
    # Σ x² = Σ (x − mean)² + n mean²: what both sides of the comparison share is left out.
    floor = rounding_floor(mean.square().flatten(-axes).squeeze(-1) + rest)
    silent = (rest <= floor)[(..., *[None] * axes)]
    return centred.masked_fill(silent, 0), silent


def split_border(maps: Tensor, axes: int = 2) -> tuple[Tensor, Tensor]:
    """Split maps into a part whose opposite borders meet, and a smooth one that carries their jumps.

    A map repeated periodically jumps at its borders, and a jump has power at all frequencies. The smooth part
    solves Poisson's equation with the jumps as its source and has no mean.

    Args:
        maps: any number of maps.
        axes: how many of the last axes are spatial.

    Shape:
        (…, H, W) → two of (…, H, W), whose sum is the map.

    Raises:
        SpectralError: if the map has fewer axes.

    Source:
        L. Moisan, Periodic plus smooth image decomposition, JMIV 39, 2011, equations 9 to 12.

    Example:
        >>> ramp = torch.arange(64.0).expand(64, 64)
        >>> periodic, smooth = split_border(ramp - ramp.mean())
        >>> bool(periodic.abs().max() < 0.05 * ramp.max()), bool(smooth.mean().abs() < 1e-4)
        (True, True)
    """
    if not 1 <= axes <= maps.ndim:
        raise SpectralError(f"split_border: axes must be from 1 to the map's {maps.ndim}, got {axes}")
    if not (maps.is_floating_point() or maps.is_complex()):
        maps = maps.to(torch.get_default_dtype())  # whole numbers and booleans, as elsewhere
    exact = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps  # which have no transform
    scale = find_scale(exact, tuple(range(-axes, 0)))
    smooth = (_find_smooth(exact / scale, axes) * scale).to(maps.dtype)
    return maps - smooth, smooth


def _find_smooth(maps: Tensor, axes: int) -> Tensor:
    """Solve Poisson's equation with the jumps at the borders as its source.

    A border misses its neighbour on the other side by the difference of the two, one way at the first sample
    and the other way at the last: along its axis the spectrum of a jump is a fixed one.
    """
    sizes, spatial = tuple(maps.shape[-axes:]), tuple(range(-axes, 0))
    spectrum: Tensor | None = None
    for axis in spatial:
        others = [other for other in spatial if other != axis]
        jump = maps.narrow(axis, sizes[axis] - 1, 1) - maps.narrow(axis, 0, 1)
        # Half of the spectrum is left out along the last axis.
        jump = torch.fft.fftn(jump, dim=others) if axis == -1 else torch.fft.rfftn(jump, dim=others)
        table = remember(_solve_jump, sizes, axis, like=maps, dtype=jump.dtype)
        spectrum = jump * table if spectrum is None else torch.addcmul(spectrum, jump, table)
    assert spectrum is not None
    smooth: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=spatial)
    return smooth


def _solve_jump(sizes: tuple[int, ...], axis: int) -> Tensor:
    """Half spectrum of the smooth part that a unit jump across the borders of one axis makes."""
    curvature = torch.zeros((), dtype=torch.float64)
    for own, n in zip(range(-len(sizes), 0), sizes, strict=True):
        angle = 2 * torch.pi * torch.arange(n if own != -1 else n // 2 + 1, dtype=torch.float64) / n
        curvature = curvature + (2 * torch.cos(angle) - 2).view(-1, *[1] * (-own - 1))
        if own == axis:
            jump = (1 - torch.polar(torch.ones_like(angle), angle)).view(-1, *[1] * (-own - 1))
    # The bin of frequency 0 is 0 over 0: the smooth part has no mean.
    curvature[(0,) * len(sizes)] = 1
    table = jump / curvature
    table[(0,) * len(sizes)] = 0
    return table


def find_white_noise_ratio(
    extents: Sequence[int], stride: Stride, phase: Stride = 0, size: tuple[int, ...] | None = None
) -> float:
    """Return the ratio of white noise on a periodic lattice: expected aliases over expected power.

    White noise has no structure that a filter in front could have removed, so this is the level of a layer
    that does nothing against aliasing on a lattice of this size. It grows on small maps, where the bin at
    the Nyquist frequency is a large part of the spectrum. Noise on a map with borders loses some of its high
    frequencies with them: `compute_channel_alias_ratios` gives it up to 0.3 dB less on maps of 6 to 32
    samples.

    Args:
        extents: samples of the dense map on each axis.
        stride: as for `compute_channel_alias_ratios`, also the next two.
        phase: the first sample that is kept.
        size: samples that are kept.

    Returns:
        The ratio; NaN for a single sample, which has nothing but its mean.

    Example:
        >>> [round(find_white_noise_ratio((n, n), 2), 3) for n in (4, 16, 256)]
        [1.0, 0.786, 0.752]
    """
    steps = as_stride(stride, "find_white_noise_ratio")
    lattices = find_lattices(extents, steps, phase, size, "find_white_noise_ratio")
    return _expect_ratio(tuple(lattices))


@lru_cache(maxsize=256)
def _expect_ratio(lattices: tuple[Lattice, ...]) -> float:
    whole = low = mean = 1.0
    for lattice in lattices:
        halved = _halves_nyquist(lattice.step, lattice.count)
        whole *= lattice.count - 0.5 * halved
        low *= _sum_low_pass(lattice, halved)
        mean *= lattice.count / lattice.extent  # its transform holds nothing at the Nyquist frequency
    return (whole - low) / (whole - mean) if whole > mean else math.nan


def _sum_low_pass(lattice: Lattice, halved: bool) -> float:
    """Expected weighted power of white noise of variance 1 that was low-passed and decimated, on one axis.

    Each bin that passes adds a 1/N to the power of every sample. What of it lies at the decimated lattice's
    Nyquist frequency is the same of the bins of +1, −1, … on the samples that are kept.
    """
    n, step, count = lattice.extent, lattice.step, lattice.count
    highest = int(highest_bin(n, step))
    power = count * min(2 * highest + 1, n) / n
    if halved:
        comb = torch.zeros(n, dtype=torch.float64)
        comb[::step][:count] = _alternate(comb[:count], -1)  # where it begins changes no power
        bins = torch.fft.fft(comb).abs().square()
        passing = bins[: highest + 1].sum() + (bins[-highest:].sum() if highest else 0)
        power -= 0.5 * float(passing) / (n * count)
    return power


def _weigh(maps: Tensor, steps: Sequence[int]) -> Tensor:
    """Sum squares over the spatial axes; the unpaired Nyquist bin of a decimated axis counts half."""
    spatial = tuple(range(-len(steps), 0))
    total = sum_squares(maps, spatial)
    weighted = [(1.0, maps)]  # by inclusion and exclusion: where two axes are at it a bin counts a quarter
    for axis, step in zip(spatial, steps, strict=True):
        n = maps.shape[axis]
        if _halves_nyquist(step, n):
            found = [
                (-0.5 * weight, (part * _alternate(part, axis)).sum(axis, keepdim=True) / math.sqrt(n))
                for weight, part in weighted
            ]
            total = total + sum(weight * part.square().sum(spatial) for weight, part in found)
            weighted += found
    return total


def _halves_nyquist(step: int, count: int) -> bool:
    return step > 1 and count % 2 == 0


def _alternate(like: Tensor, axis: int) -> Tensor:
    """+1, −1, +1, … along an axis."""
    n = like.shape[axis]
    signs = 1 - 2 * (torch.arange(n, device=like.device) % 2)
    return signs.to(like.dtype).view(-1, *[1] * (-axis - 1))
