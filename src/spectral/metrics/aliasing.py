"""The definitions of AVR and AM: pure tensor functions, differentiable where the mathematics is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from spectral.errors import SpectralError
from spectral.metrics.sampling import Cutoff, Stride, as_stride, find_lattices, is_alias_free, violation_mask
from spectral.metrics.spectrum import Array, as_maps
from spectral.numerics.cache import remember
from spectral.numerics.lattice import Lattice, decimate, decimate_low_pass
from spectral.numerics.products import exact_products
from spectral.numerics.scaling import find_scale, sum_squares

# Aliases of a smaller share of the decimated power are computed in float64: rounding spreads over all bins,
# so that 1e-7 of each sample of a pure tone would be 1e-5 of its AM at 224 pixels.
FAINT = 1e-6

# Rounding adds the length of its own spectrum to every bin that is empty. Of aliases that lie in a smaller
# share of the bins (the participation ratio; white noise has 0.79), L1 is known to five digits only where it
# is so many times that.
LONE, CLEAR = 0.5, 1e5


def compute_avr(P: Array, stride: Stride = 2, cutoff: Cutoff = "radial", exclude_dc: bool = False) -> Tensor:
    """Alias Violation Ratio: the share of power above the Nyquist limit of a decimation by ``stride``.

    AVR = Σ_{ρ > 1/s} P / Σ P. A bin exactly on the limit is not a violation. A silent map gives 0.

    Args:
        P: DC-centred power, as `compute_power_spectrum` gives it.
        stride: decimation factor of the site, one for both axes or (s_h, s_w); a longer tuple has one for
            each of the last axes, (s_t, s_h, s_w) for video.
        cutoff: ``"radial"`` (published: the ellipse (2 s_h f_u)² + (2 s_w f_v)² > 1) or ``"separable"``
            (either axis above its own limit: the true support of a decimated lattice).
        exclude_dc: leave the DC bin out of the denominator; a constant map is then a silent one.

    Shape:
        (…, H, W) → (…), 0-dimensional for one map.

    Units:
        None; in [0, 1].

    Raises:
        SpectralError: for a stride < 1, an unknown cutoff, or P that is no floating-point map.

    Source:
        The spectral-aliasing study, with true frequencies at odd sizes.

    Example:
        >>> from spectral.metrics.spectrum import compute_power_spectrum
        >>> board = torch.ones(8, 8)
        >>> board[::2, ::2] = board[1::2, 1::2] = -1
        >>> float(compute_avr(compute_power_spectrum(board), stride=2))
        1.0
    """
    steps = as_stride(stride, "compute_avr")
    power = as_maps(P, "compute_avr", len(steps))
    if bool((power.detach() < 0).any()):
        raise SpectralError("compute_avr: power can't be negative; pass what compute_power_spectrum gives")
    share, total = _share_above(power, steps, cutoff, exclude_dc)
    if not torch.isfinite(total).all():
        raise SpectralError("compute_avr: the power has NaN or infinite values; check the map it came from")
    return share


def find_avr(power: Tensor, stride: tuple[int, ...], cutoff: Cutoff = "radial") -> Tensor:
    """`compute_avr` of power that is known to be fit for it: nothing is read back from a device.

    Example:
        >>> find_avr(torch.ones(4, 4), (2, 2), "separable")  # the bins −1, 0 and 1 of each axis aren't above
        tensor(0.4375)
    """
    return _share_above(power, stride, cutoff)[0]


def _share_above(
    power: Tensor, steps: tuple[int, ...], cutoff: Cutoff, exclude_dc: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the share of power above the limit, and all of it in float64."""
    spatial = tuple(range(-len(steps), 0))
    above = violation_mask(tuple(power.shape[-len(steps) :]), steps, cutoff, power)
    power = power / find_scale(power, spatial)
    # Float64 sums: the mask and its complement then add up to the whole, whatever the map's size.
    violating = (power * above).sum(spatial, dtype=torch.float64)
    total = power.sum(spatial, dtype=torch.float64)
    floor = torch.zeros_like(total)
    if exclude_dc:
        # Summed without the DC bin: total − DC would cancel all digits of a faint pattern on a bright ground.
        centre: tuple[Any, ...] = tuple(n // 2 for n in above.shape)
        is_dc = torch.zeros_like(above)
        is_dc[centre] = True
        total = power.masked_fill(is_dc, 0).sum(spatial, dtype=torch.float64)
        floor = rounding_floor(power[(..., *centre)].detach())
    return divide(violating, total, floor).to(power.dtype), total


def compute_am(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, ...] | None = None,
    difference: Literal["complex", "magnitude"] = "complex",
) -> Tensor:
    """Aliasing metric AM: L1 distance between a decimated map's spectrum and its alias-free counterpart.

    AM = mean over channels of Σ_{k,l} |F_s1 − F_s2|, with the alias-free map low-passed to |f| < 1/(2s) on
    each axis that is decimated (the new Nyquist bin is removed too). On an axis of stride 1 nothing folds.

    Args:
        dense: the dense map, which is what the decimation sees.
        stride: decimation factor, one for both axes or (s_h, s_w); a longer tuple has one for each of the
            last axes, (s_t, s_h, s_w) for video.
        phase: first sample kept, one for all axes or (φ_h, φ_w).
        size: samples kept (n_h, n_w); all that fit if None.
        difference: ``"complex"`` (equation 7) or ``"magnitude"``: Σ ||F_s1| − |F_s2||.

    Shape:
        (H, W) or (C, H, W) → (); (B, C, H, W) → (B,). With n strides the last n axes are spatial.

    Units:
        Units of the map: linear in amplitude. Grows with map size; compare like layers only.

    Raises:
        SpectralError: for a wrong rank or type, or a lattice that doesn't fit the map.

    Source:
        J. Grabinski et al., Aliasing coincides with CNNs vulnerability towards adversarial attacks, eq. 1–7.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) * 0.75).expand(8, 8)  # above the limit of 1/4
        >>> round(float(compute_am(tone, stride=2)), 5)
        1.0
    """
    if difference == "complex":
        return compute_alias_metrics(dense, stride, phase, size, "compute_am")["am"]
    if difference != "magnitude":
        raise SpectralError(f"compute_am: difference must be 'complex' or 'magnitude', got {difference!r}")
    kept, residual, scale, _ = _split_spectrum(dense, stride, phase, size, "compute_am")
    spatial = tuple(range(-len(as_stride(stride, "compute_am")), 0))
    change: Tensor = (
        torch.fft.fftn(kept - residual, dim=spatial).abs() - torch.fft.fftn(kept, dim=spatial).abs()
    )
    return _unscale(change.abs().mean(spatial).mean(-1), scale, "compute_am")


def compute_am_relative(
    dense: Array, stride: Stride = 2, phase: Stride = 0, size: tuple[int, ...] | None = None
) -> Tensor:
    """AM relative to the decimated map's own spectrum, Σ|F_s1 − F_s2| / Σ|F_s2|: free of scale.

    Arguments, shapes and errors as for `compute_am`; a silent map gives 0.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) * 0.75).expand(8, 8)
        >>> round(float(compute_am_relative(tone)), 5)
        1.0
    """
    caller = "compute_am_relative"
    kept, _, scale, distance = _split_spectrum(dense, stride, phase, size, caller)
    axes = len(as_stride(stride, caller))
    return divide(distance.sum(-1), spectrum_l1(kept, axes).sum(-1)).to(scale.dtype)


def compute_alias_power_ratio(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, ...] | None = None,
    db: bool = False,
) -> Tensor:
    """Power of the aliases over power of the decimated map, ‖decimate(d − L d)‖² / ‖decimate(d)‖².

    Comparable across layers, sizes and models. Arguments, shapes and errors as for `compute_am`; a silent
    map gives 0 (−∞ dB).

    Units:
        None, or decibels with ``db=True``.

    Example:
        >>> float(compute_alias_power_ratio(torch.ones(4, 4)))
        0.0
    """
    caller = "compute_alias_power_ratio"
    kept, residual, _ = _split_scaled(dense, stride, phase, size, caller)
    image = tuple(range(-len(as_stride(stride, caller)) - 1, 0))
    ratio = divide(residual.square().sum(image), kept.square().sum(image))
    return 10 * ratio.log10() if db else ratio


def compute_alias_metrics(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, ...] | None = None,
    caller: str = "compute_alias_metrics",
) -> dict[str, Tensor]:
    """AM, relative AM and alias power ratio from one split of the map: where all three are wanted.

    Arguments, shapes and errors as for `compute_am`.

    Example:
        >>> sorted(compute_alias_metrics(torch.ones(4, 4)))
        ['alias_power_ratio', 'am', 'am_relative']
    """
    kept, residual, scale, distance = _split_spectrum(dense, stride, phase, size, caller)
    axes = len(as_stride(stride, caller))
    image = tuple(range(-axes - 1, 0))
    ratios = {
        "am_relative": divide(distance.sum(-1), spectrum_l1(kept, axes).sum(-1)),
        "alias_power_ratio": divide(residual.square().sum(image), kept.square().sum(image)),
    }
    own = {name: ratio.to(scale.dtype) for name, ratio in ratios.items()}
    return {"am": _unscale(distance.mean(-1), scale, caller), **own}


def _split_spectrum(
    dense: Array, stride: Stride, phase: Stride, size: tuple[int, ...] | None, caller: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_split_scaled`, and L1 of each map's aliases: in float64 where rounding shows in one."""
    kept, residual, scale = _split_scaled(dense, stride, phase, size, caller)
    axes = len(as_stride(stride, caller))
    distance = spectrum_l1(residual, axes)
    power, whole = (sum_squares(x.detach(), tuple(range(-axes, 0))) for x in (residual, kept))
    found = distance.detach()
    lone = (found.square() < LONE * power) & is_unclear(found, whole)
    if kept.dtype == torch.float32 and bool(lone.any()):
        kept, residual, _ = _split_scaled(torch.as_tensor(dense).double(), stride, phase, size, caller)
        return kept, residual, scale, spectrum_l1(residual, axes)
    return kept, residual, scale, distance


def is_unclear(distance: Tensor, power: Tensor) -> Tensor:
    """Whether rounding may show in L1 of aliases whose spectrum is empty but for a few bins.

    Args:
        distance: Σ |DFT| / (number of samples), of any number of maps.
        power: Σ x² of the decimated map that they are part of.

    Example:
        >>> is_unclear(torch.tensor([1e-3, 1.0]), torch.tensor([1.0, 1.0]))
        tensor([ True, False])
    """
    return distance.square() < (CLEAR * torch.finfo(torch.float32).eps) ** 2 * power


def _split_scaled(
    dense: Array, stride: Stride, phase: Stride, size: tuple[int, ...] | None, caller: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a map that is brought to a usual size first; returns that size (…,) too."""
    steps = as_stride(stride, caller)
    maps = as_maps(dense, caller, len(steps), leading=2)
    maps = maps if maps.ndim > len(steps) else maps[None]
    image = tuple(range(-len(steps) - 1, 0))
    scale = find_scale(maps, image)
    kept, residual = split_aliases(maps / scale, stride, phase, size, caller)
    return kept, residual, scale.flatten(-len(steps) - 1).squeeze(-1)


def _unscale(value: Tensor, scale: Tensor, caller: str) -> Tensor:
    whole = (value * scale).to(scale.dtype)
    if not torch.isfinite(whole).all():
        advice = "scale the map down" if value.dtype == torch.float64 else "pass the map as float64"
        raise SpectralError(f"{caller}: the metric is too large for {value.dtype}; {advice}")
    return whole


def compute_alias_categories(
    dense: Array,
    stride: Stride = 2,
    phase: Stride = 0,
    size: tuple[int, ...] | None = None,
    threshold_db: float = 20.0,
) -> dict[str, Tensor]:
    """Share of a decimated map's bins that hold the right component, an alias, several components or none.

    Decimation folds Π s components of the dense map's spectrum onto each bin. A component passes if its
    contribution is larger than the largest amplitude of that channel's decimated spectrum, less
    ``threshold_db``. A bin is

    - ``nonaliased``: only the alias-free component passes: |f| < 1/(2s) on every axis with s > 1;
    - ``aliased``: only another one passes;
    - ``tangled``: more than one passes;
    - ``nopass``: none does, as everywhere in a silent channel.

    The four add up to 1 at every size and stride. (The published code decides each by its own rule: its
    categories overlap, and at odd sizes leave bins out.) A map that the lattice doesn't cover is cropped or
    extended by zeros to s·n samples from the first one kept on: folding is then exact.

    Args:
        dense: the dense map, which is what the decimation sees.
        stride: as for `compute_am`.
        phase: as for `compute_am`.
        size: as for `compute_am`.
        threshold_db: how far below the largest amplitude a component still passes.

    Shape:
        (H, W) or (C, H, W) → () for each category; (B, C, H, W) → (B,). With n strides the last n axes are
        spatial.

    Units:
        None; shares of bins, averaged over channels, float64.

    Raises:
        SpectralError: as `compute_am`, or for a threshold that is negative or no number.

    Source:
        A. H. Ribeiro and T. B. Schön, How convolutional neural networks deal with aliasing, ICASSP 2021.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) * 0.75).expand(8, 8)  # above the limit of 1/4
        >>> {name: float(share) for name, share in compute_alias_categories(tone).items()}
        {'nonaliased': 0.0, 'aliased': 0.125, 'tangled': 0.0, 'nopass': 0.875}
    """
    caller = "compute_alias_categories"
    if not threshold_db >= 0:
        raise SpectralError(f"{caller}: threshold_db must be ≥ 0, got {threshold_db}")
    steps = as_stride(stride, caller)
    maps = as_maps(dense, caller, len(steps), leading=2)
    maps = maps if maps.ndim > len(steps) else maps[None]
    lattices = find_lattices(maps.shape[maps.ndim - len(steps) :], steps, phase, size, caller)
    if not torch.isfinite(maps).all():
        raise SpectralError(f"{caller}: the map has NaN or infinite values; check the weights and the input")
    return find_categories(maps, lattices, threshold_db)


def find_categories(
    maps: Tensor, lattices: Sequence[Lattice], threshold_db: float = 20.0
) -> dict[str, Tensor]:
    """`compute_alias_categories` of maps known to be fit for it: nothing is read back from a device.

    Shape:
        (…, C, H, W) → (…), as many spatial axes as there are lattices.

    Example:
        >>> float(find_categories(torch.ones(1, 4, 4), [Lattice(4, 2, 0, 2)] * 2)["nopass"])
        0.75
    """
    steps = tuple(lattice.step for lattice in lattices)
    start, bins = maps.ndim - len(steps), tuple(range(-len(steps), 0))
    maps = maps / find_scale(maps, bins)
    count = tuple(lattice.count for lattice in lattices)
    lengths = tuple(s * n for s, n in zip(steps, count, strict=True))
    # A slice stops at the border.
    spans = [slice(x.first, x.first + n) for x, n in zip(lattices, lengths, strict=True)]
    covered = maps[(*[slice(None)] * start, *spans)]
    spectrum: Tensor = torch.fft.fftn(covered, s=lengths, dim=bins) / math.prod(steps)  # fills up with zeros
    largest = fold_spectrum(spectrum, count).sum(-1).abs().amax(bins, keepdim=True)[..., None]
    amplitude = spectrum.abs()
    # A real map's bins come in pairs, which rounding must not tell apart.
    amplitude = (amplitude + amplitude.flip(bins).roll([1] * len(bins), bins)) / 2
    passes = fold_spectrum(amplitude, count) > largest * 10 ** (-threshold_db / 20)
    number = passes.sum(-1)
    free = remember(is_alias_free, count, steps, like=passes)
    right = (passes & fold_spectrum(free, count)).any(-1)
    categories = {
        "nonaliased": (number == 1) & right,
        "aliased": (number == 1) & ~right,
        "tangled": number > 1,
        "nopass": number == 0,
    }
    return {name: chosen.double().mean((start - 1, *bins)) for name, chosen in categories.items()}


def split_aliases(
    dense: Array, stride: Stride, phase: Stride, size: tuple[int, ...] | None, caller: str = "split_aliases"
) -> tuple[Tensor, Tensor]:
    """Decimate a dense map and its high band: what the next layer gets, and the aliases in it.

    Shape:
        (H, W), (C, H, W) or (B, C, H, W) → two maps (…, C, n_h, n_w). With n strides the last n axes are
        spatial.
    """
    steps = as_stride(stride, caller)
    maps = as_maps(dense, caller, len(steps), leading=2)
    maps = maps if maps.ndim > len(steps) else maps[None]
    start = maps.ndim - len(steps)
    lattices = find_lattices(maps.shape[start:], steps, phase, size, caller)
    kept, residual, faint = find_aliases(maps, lattices)
    if not torch.isfinite(residual).all():
        raise SpectralError(f"{caller}: the map has NaN or infinite values; check the weights and the input")
    if faint.any():
        kept, residual = split_aliases(maps.double(), steps, phase, size, caller)
        return kept.float(), residual.float()
    return kept, residual


def find_aliases(maps: Tensor, lattices: Sequence[Lattice]) -> tuple[Tensor, Tensor, Tensor]:
    """`split_aliases` without looking at values: nothing is read back from a device.

    Returns:
        The decimated map, the aliases in it, and for each image whether they are too faint for float32.

    Example:
        >>> kept, aliases, faint = find_aliases(torch.ones(1, 4, 4), [Lattice(4, 2, 0, 2)] * 2)
        >>> bool(kept.min() == 1), bool(aliases.abs().max() < 1e-6), bool(faint)
        (True, True, True)
    """
    start = maps.ndim - len(lattices)
    kept = decimate(maps, start, lattices)
    with exact_products(maps.device):
        residual = kept - decimate_low_pass(maps, start, lattices)
    image = tuple(range(-len(lattices) - 1, 0))
    power, whole = (sum_squares(x.detach(), image) for x in (residual, kept))
    faint = (power < FAINT * whole) & (maps.dtype == torch.float32)
    return kept, residual, faint


def fold_spectrum(spectrum: Tensor, count: Sequence[int]) -> Tensor:
    """Group the bins of a dense map's spectrum, DC first, by the bin of the decimated map they fold onto.

    For a map of s·n samples, the mean over the last axis is the DFT of its decimation from sample 0 on.

    Shape:
        (…, s_h·n_h, s_w·n_w) → (…, n_h, n_w, s_h·s_w) with ``count`` (n_h, n_w).

    Example:
        >>> fold_spectrum(torch.arange(6), [3])  # bins k and k + 3 fold onto bin k
        tensor([[0, 3],
                [1, 4],
                [2, 5]])
    """
    start = spectrum.ndim - len(count)
    for axis, n in enumerate(count, start):
        spectrum = spectrum.unflatten(axis, (-1, n)).movedim(axis, -1)
    return spectrum.flatten(start + len(count))


def spectrum_l1(maps: Tensor, axes: int = 2) -> Tensor:
    """Σ |DFT| / (number of samples) of each map over its last axes, (…, n_h, n_w) → (…)."""
    spatial = tuple(range(-axes, 0))
    width = maps.shape[-1]
    magnitude: Tensor = torch.fft.rfftn(maps, dim=spatial).abs()
    # A real transform leaves out the mirrored columns: all but DC and, at even widths, Nyquist count twice.
    twice = magnitude[..., 1 : (width + 1) // 2].sum(spatial)
    return (magnitude.sum(spatial) + twice) / math.prod(maps.shape[-axes:])


def rounding_floor(dc: Tensor) -> Tensor:
    """Power, in float64, that the transform of a constant may leave at the other bins by rounding alone."""
    noise: float = (8 * torch.finfo(dc.dtype).eps) ** 2
    return noise * dc.double()


def divide(part: Tensor, whole: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Part over whole, 0 where the whole is no more than ``floor``."""
    silent = whole <= floor
    ratio = part / torch.where(silent, torch.ones_like(whole), whole)
    return torch.where(silent, torch.zeros_like(ratio), ratio)
