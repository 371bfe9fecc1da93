"""AVR and AM of a large map in one pass: sums over its low band, which add over channels.

The definitions are in `spectral.metrics`; this is how a measurement gets their values at a fraction of the
cost. Only frequencies up to the limit are analysed, by thin products with cosines and sines: the power above
is the rest of the whole (Parseval), and the alias-free spectrum is the low band itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from spectral.errors import NotFiniteError, SpectralError, check_choice
from spectral.metrics.aliasing import FAINT, LONE, divide, is_unclear, rounding_floor
from spectral.metrics.lowband import (
    analyse,
    find_highest,
    fold_axis,
    list_complex_parts,
    select_bins,
    split_waves,
    weigh_below,
    weigh_magnitudes,
)
from spectral.metrics.sampling import as_stride, find_lattices
from spectral.metrics.spectrum import as_maps, find_power
from spectral.numerics.cache import remember
from spectral.numerics.lattice import Lattice, decimate
from spectral.numerics.products import exact_products
from spectral.numerics.scaling import sum_squares

# Metric → the sums that it is the quotient of; AM is a mean over channels instead.
QUOTIENTS = {
    "avr": ("above", "power"),
    "avr_separable": ("above_separable", "power"),
    "avr_exclude_dc": ("above", "varying"),
    "avr_separable_exclude_dc": ("above_separable", "varying"),
    "am": ("residual_l1",),
    "am_relative": ("residual_l1", "kept_l1"),
    "alias_power_ratio": ("residual_power", "kept_power"),
}
WITHOUT_MEAN = tuple(metric for metric, sums in QUOTIENTS.items() if sums[-1] == "varying")
DIFFERENCES = ("above", "above_separable", "varying")  # of the whole and of what lies below the limit
OF_DENSE_MAP = {"power", "above", "above_separable", "varying"}  # the other sums are of decimated maps

# Power above the limit is a difference, whole − low. In float32, rounding leaves an error of up to 1e-6 of a
# map's power, independent from map to map: 1e-6·√(Σ power²) in all. Where the difference is not so many times
# that root, the error would show in the fifth digit (ninth in float64).
SMALLEST_DIFFERENCE = {torch.float32: 0.1, torch.float64: 1e-5}

# A full spectrum costs more, and in float32 a share of power of so much is known to five digits from it.
# Early maps of photographs mostly need it; where there are few channels it is taken at once.
FEW_CHANNELS, SMALLEST_SHARE = 4, 1e-5

NOT_FINITE = (
    "measure_bands: the map has NaN or infinite values (or overflows when squared); "
    "check the weights and the input"
)
VANISHING = "measure_bands: the map is so faint that its squares vanish; multiply it by a constant"

# Maps are analysed in blocks of so many elements: on a CPU they stay in the cache, a GPU wants large ones.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**26


@dataclass(frozen=True)
class BandStatistics:
    """Sums over the channels of a map, per image; those of two pieces of the channels add up to the whole.

    Args:
        metrics: what `values` gives.
        channels: maps in the sums.
        pixels: samples of one dense map.
        samples: samples of one decimated map.
        sums: float64 tensors (B,) by name.
        doubtful: images in which rounding shows, (B,); none of those from `measure_bands`.
    """

    metrics: tuple[str, ...]
    channels: int
    pixels: int
    samples: int
    sums: dict[str, Tensor]
    doubtful: Tensor

    def __add__(self, other: BandStatistics) -> BandStatistics:
        mine, theirs = ((s.metrics, s.pixels, s.samples) for s in (self, other))
        if mine != theirs:
            raise SpectralError(
                f"BandStatistics: only pieces of one map can be added, got {mine} and {theirs}"
            )
        sums = _add(self.sums, other.sums)
        channels, doubtful = self.channels + other.channels, self.doubtful | other.doubtful
        return BandStatistics(self.metrics, channels, self.pixels, self.samples, sums, doubtful)

    @property
    def broken(self) -> Tensor:
        """Which images have NaN or infinite values, or values that overflow when squared, (B,)."""
        return ~torch.stack(list(self.sums.values())).isfinite().all(0)

    @property
    def constant(self) -> Tensor:
        """Which images have maps of nothing but their means, (B,); none where no metric asks for the rest."""
        if "varying" not in self.sums:
            return torch.zeros_like(self.sums["power"], dtype=torch.bool)
        return self.sums["varying"] <= self.sums["rounding"]

    def values(self) -> dict[str, Tensor]:
        """Return ``power`` (the map's mean square) and each metric, (B,), float64."""
        sums = self.sums
        values = {"power": sums["power"] / (self.channels * self.pixels)}
        for metric in self.metrics:
            part, *whole = (sums[name] for name in QUOTIENTS[metric])
            if metric == "am":
                values[metric] = part / (self.channels * self.samples)
            else:
                floor = sums["rounding"] if metric in WITHOUT_MEAN else 0.0
                values[metric] = divide(part, whole[0], floor)
        return values


def measure_bands(
    maps: Tensor,
    stride: tuple[int, ...],
    phase: tuple[int, ...] | None = None,
    size: tuple[int, ...] | None = None,
    metrics: Sequence[str] = ("avr", "am"),
) -> BandStatistics:
    """Sum what AVR and AM of a map are made of; `BandStatistics.values` gives the metrics themselves.

    Equal to `compute_avr` and `compute_alias_metrics` within rounding (relative 1e-5 in float32, 1e-9 in
    float64), as differentiable, and several times faster. Statistics of pieces of the channels add.

    Args:
        maps: real floating-point maps; half types are raised to float32.
        stride: decimation factor of each spatial axis.
        phase: first sample kept on each axis, 0 if None; only AM depends on it.
        size: samples kept on each axis, all that fit if None; only AM depends on it.
        metrics: any of avr, avr_separable, avr_exclude_dc, avr_separable_exclude_dc, am, am_relative,
            alias_power_ratio.

    Shape:
        (B, C, H, W) → (B,) for each value; as many spatial axes as there are strides.

    Raises:
        SpectralError: for a wrong rank or type, an unknown metric, a lattice that doesn't fit the map, or NaN
            and infinite values.

    Example:
        >>> board = torch.ones(1, 3, 8, 8)
        >>> board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
        >>> whole = measure_bands(board[:, :2], (2, 2)) + measure_bands(board[:, 2:], (2, 2))
        >>> {metric: round(float(value), 5) for metric, value in whole.values().items()}
        {'power': 1.0, 'avr': 1.0, 'am': 1.0}
    """
    analysis, maps = _prepare(maps, stride, phase, size, metrics)
    statistics = analysis.sum_maps(maps)
    if bool(statistics.broken.any()):
        raise NotFiniteError(NOT_FINITE)
    return analysis.resolve(maps, statistics)


def sum_bands(
    maps: Tensor,
    stride: tuple[int, ...],
    phase: tuple[int, ...] | None = None,
    size: tuple[int, ...] | None = None,
    metrics: Sequence[str] = ("avr", "am"),
    exact: bool = False,
) -> BandStatistics:
    """`measure_bands` that reads nothing back from a device: what it would settle or refuse is only marked.

    Args:
        maps: as for `measure_bands`, also the next four.
        stride: decimation factor of each spatial axis.
        phase: first sample kept on each axis.
        size: samples kept on each axis.
        metrics: what is wanted.
        exact: sum in float64 and over the full spectrum: only a map whose squares vanish there is doubtful.

    Example:
        >>> tone = torch.cos(torch.pi * torch.arange(8) / 4).expand(1, 1, 8, 8)  # nothing above the limit
        >>> [bool(sum_bands(tone, (2, 2), exact=exact).doubtful) for exact in (False, True)]
        [True, False]
    """
    analysis, maps = _prepare(maps, stride, phase, size, metrics, exact)
    if exact:  # converted and laid out in one pass
        maps = maps.to(torch.float64, memory_format=torch.contiguous_format)
    return analysis.sum_maps(maps)


def _prepare(
    maps: Tensor,
    stride: tuple[int, ...],
    phase: tuple[int, ...] | None,
    size: tuple[int, ...] | None,
    metrics: Sequence[str],
    exact: bool = False,
) -> tuple[_Analysis, Tensor]:
    stride = as_stride(stride, "measure_bands")
    maps = as_maps(maps, "measure_bands", len(stride))
    if maps.ndim != len(stride) + 2:
        raise SpectralError(
            f"measure_bands: expected (B, C) and {len(stride)} spatial axes, got {tuple(maps.shape)}"
        )
    for metric in metrics:
        check_choice(metric, QUOTIENTS, "metric", "measure_bands")
    lattices = find_lattices(maps.shape[2:], stride, phase or 0, size, "measure_bands")
    return _Analysis(maps, lattices, metrics, exact), maps


class _Analysis:
    """Matrices and weights for maps of one size. A band is laid out as cosines, then sines, on each axis."""

    def __init__(
        self,
        maps: Tensor,
        lattices: Sequence[Lattice],
        metrics: Sequence[str],
        exact: bool = False,
        full: bool = False,
    ) -> None:
        self.lattices, self.metrics, self.exact = lattices, metrics, exact
        self.dtype = maps.dtype
        self.names = {name for metric in metrics for name in QUOTIENTS[metric]}
        self.extents = tuple(lattice.extent for lattice in lattices)
        self.count = tuple(lattice.count for lattice in lattices)
        self.stride = tuple(lattice.step for lattice in lattices)
        self.wanted = [name for name in DIFFERENCES if name in self.names]
        self.highest = find_highest(self.extents, self.stride)
        # Sums over every bin cost more, and there is no difference in which rounding could show.
        self.full = full or exact or maps.shape[1] <= FEW_CHANNELS
        weigh = select_bins if self.full else weigh_below
        self.weights = {
            name: remember(weigh, name, self.extents, self.stride, like=maps) for name in self.wanted
        }
        self.has_aliases = not self.names <= OF_DENSE_MAP
        if self.has_aliases:
            self.half = tuple(n // 2 for n in self.count)
            self.bins = remember(weigh_magnitudes, self.count, like=maps)
            # Where the lattice covers the map, the alias-free spectrum is the low band, bin for bin.
            self.covers = all(lattice.covers and lattice.first == 0 for lattice in lattices)

    def sum_block(self, block: Tensor) -> dict[str, Tensor]:
        """All sums of a block of maps (b, c, *spatial), or (b, 1, *spatial, c)."""
        axes = len(self.lattices)
        powers = _sum_squares(block, axes)
        sums = {"power": powers.sum(1)}
        if self.names <= {"power"}:
            return sums
        if self.wanted and self.full:
            sums |= self.sum_full_spectrum(block)
        if self.full and not self.has_aliases:
            return sums
        low = analyse(block, self.extents, self.highest)
        if self.wanted and not self.full:
            low_power = sum_squares(low, _channel_axes(low, axes))
            for name, shares in self.weights.items():
                sums[name] = sums["power"] - (low_power * shares).flatten(1).sum(1)
            sums["squared_powers"] = powers.detach().square().sum(1)
            sums["rounding"] = self.find_rounding(low_power.flatten(1)[:, 0])
        if self.has_aliases:
            decimated = decimate(block, 2, self.lattices).contiguous()
            kept = analyse(decimated, self.count, self.half)
            sums |= self.sum_spectrum("residual", self.subtract_alias_free(kept, low), watched=True)
            if "kept_l1" in self.names:
                sums |= self.sum_spectrum("kept", kept)
            else:
                sums["kept_power"] = _sum_squares(decimated, axes).sum(1)
        return sums

    def subtract_alias_free(self, kept: Tensor, low: Tensor) -> Tensor:
        """Spectrum of the aliases: that of the decimated map without its alias-free part."""
        if not self.covers:
            for axis, lattice in enumerate(self.lattices, 2):
                low = fold_axis(low, axis, lattice)
            return kept - low
        residual, axes = kept.clone(), len(self.lattices)
        corner = [slice(None), slice(None)]
        for lattice in self.lattices:
            corner += [slice(None), slice(lattice.highest + 1)]  # what L keeps, of the cosines and the sines
        alias_free = split_waves(low, axes)[tuple(corner)] / math.prod(self.stride)
        split_waves(residual, axes)[tuple(corner)] -= alias_free
        return residual

    def sum_spectrum(self, name: str, band: Tensor, watched: bool = False) -> dict[str, Tensor]:
        """Σ |DFT| and Σ |DFT|² / (number of samples) of a block's decimated maps.

        Watched, also how much of the first is of a block whose bins are empty but for a few.
        """
        axes = len(self.lattices)
        squares = [torch.addcmul(a.square(), b, b) for a, b in list_complex_parts(band, axes)]
        magnitude = reduce(torch.add, (_sum_channels(_root(square), axes) for square in squares))
        power = sum(_sum_channels(square, axes) for square in squares)
        total = (magnitude * self.bins).flatten(1).sum(1)
        sums = {
            f"{name}_l1": total,
            f"{name}_power": (power * self.bins).flatten(1).sum(1) / math.prod(self.count),
        }
        if watched:
            own = total.detach()
            spread = math.prod(self.count) * (magnitude.square() * self.bins).flatten(1).sum(1).detach()
            sums["lone_l1"] = own.where(own.square() < LONE * spread, 0.0)
        return sums

    def sum_full_spectrum(self, block: Tensor) -> dict[str, Tensor]:
        """The sums that could be differences, from every bin of a block of maps (b, c, *spatial)."""
        power = find_power(block, axes=len(self.stride)) * (block.shape[1] / math.prod(self.extents))
        axes = tuple(range(1, power.ndim))
        sums = {name: (power * mask).sum(axes, dtype=torch.float64) for name, mask in self.weights.items()}
        centre: tuple[Any, ...] = (slice(None), *(n // 2 for n in self.extents))
        return sums | {"rounding": self.find_rounding(power[centre] * math.prod(self.extents))}

    def find_rounding(self, dc: Tensor) -> Tensor:
        """Power that a constant's transform leaves elsewhere by rounding, in the type that the maps had."""
        return rounding_floor(dc.detach().to(self.dtype)) / math.prod(self.extents)

    def sum_maps(self, maps: Tensor) -> BandStatistics:
        """Sum all blocks of maps, and mark the images in which rounding shows."""
        with exact_products(maps.device):
            laid_out = maps.contiguous() if self.full else _follow_memory(maps)
            parts = [reduce(_add, map(self.sum_block, blocks)) for blocks in _split_blocks(laid_out)]
        sums = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        pixels, samples = math.prod(self.extents), math.prod(self.count)
        doubtful = self.find_doubtful(maps, sums)
        for name in ("squared_powers", "lone_l1"):  # few channels lack squares, and are to be added to many
            sums.pop(name, None)
        return BandStatistics(tuple(self.metrics), maps.shape[1], pixels, samples, sums, doubtful)

    def find_doubtful(self, maps: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """Which images have sums in which rounding shows: of exact ones those whose squares vanish."""
        doubtful = _is_faint(maps, sums["power"])
        if self.exact:
            if self.dtype != torch.float64:  # of which no square vanishes in double precision
                return torch.zeros_like(doubtful)
            return doubtful & (maps.detach() != 0).flatten(1).any(1)
        for name in self.wanted:
            if not self.full:
                doubtful |= sums[name] < SMALLEST_DIFFERENCE[maps.dtype] * sums["squared_powers"].sqrt()
            elif maps.dtype == torch.float32:
                doubtful |= sums[name] < SMALLEST_SHARE * sums["power"]
        if self.has_aliases and maps.dtype == torch.float32:
            doubtful |= sums["residual_power"] < FAINT * sums["kept_power"]
            mean = sums["lone_l1"] / (maps.shape[1] * math.prod(self.count))
            unclear = is_unclear(mean, sums["kept_power"] / maps.shape[1])
            doubtful |= unclear & (sums["lone_l1"] > 0.5 * sums["residual_l1"])
        return doubtful

    def resolve(self, maps: Tensor, statistics: BandStatistics) -> BandStatistics:
        """Sum doubtful images again: over the full spectrum, and in float64 what is doubtful there too."""
        sums, doubtful = dict(statistics.sums), statistics.doubtful.nonzero().flatten()

        def put(places: Tensor, known: dict[str, Tensor]) -> None:
            for name in sums.keys() & known.keys():
                sums[name] = sums[name].index_put((places,), known[name])

        loud = sums["power"][doubtful] > 0
        if not bool(loud.all()):  # a silent map has nothing to settle, one whose squares vanish has
            loud |= (maps.detach()[doubtful] != 0).flatten(1).any(1)
        chosen = doubtful[loud]
        if self.wanted and not self.full:
            # The fast sums are near enough to tell of which images the full spectrum is enough.
            least = SMALLEST_SHARE * sums["power"][chosen]
            likely = torch.stack([sums[name][chosen] > least for name in self.wanted]).all(0)
            tried, left = chosen[likely], chosen[~likely]
            if len(tried):
                some = _take(maps, tried)
                full = _Analysis(some, self.lattices, self.metrics, full=True).sum_maps(some)
                put(tried[~full.doubtful], {name: x[~full.doubtful] for name, x in full.sums.items()})
                left = torch.cat([left, tried[full.doubtful]]).sort().values
            chosen = left
        if len(chosen):
            first = tuple(lattice.first for lattice in self.lattices)
            exact = sum_bands(_take(maps, chosen), self.stride, first, self.count, self.metrics, exact=True)
            if bool(exact.doubtful.any()):
                raise SpectralError(VANISHING)
            put(chosen, exact.sums)
        return replace(statistics, sums=sums, doubtful=torch.zeros_like(statistics.doubtful))


def _take(maps: Tensor, images: Tensor) -> Tensor:
    """Take some images, in their order; all of them without a copy."""
    return maps if len(images) == len(maps) else maps[images]


def _is_faint(maps: Tensor, power: Tensor) -> Tensor:
    """Which images have squares that vanish in their type, or are silent."""
    limits = torch.finfo(maps.dtype)
    return power.detach() < maps[0].numel() * limits.tiny / limits.eps


def _follow_memory(maps: Tensor) -> Tensor:
    """View (B, C, *spatial) as (B, 1, *spatial, C) where channels come last in memory: nothing is copied."""
    last = maps.movedim(1, -1)
    return last[:, None] if last.is_contiguous() and not maps.is_contiguous() else maps


def _split_blocks(maps: Tensor) -> Iterator[Sequence[Tensor]]:
    """Blocks of channels (b, c, …), for one group of images after the other."""
    size = _block_size(maps)
    pixels = math.prod(maps.shape[2:])
    for images in maps.split(max(1, size // (pixels * maps.shape[1]))):
        yield images.split(max(1, size // pixels), dim=1)


def _block_size(maps: Tensor) -> int:
    return CPU_BLOCK if maps.device.type == "cpu" else GPU_BLOCK


def _sum_squares(block: Tensor, axes: int) -> Tensor:
    """Σ x² of each map (b, c), float64: the float32 sum over one map is exact enough."""
    return sum_squares(block, tuple(range(2, 2 + axes))).flatten(1).double()


def _sum_channels(band: Tensor, axes: int) -> Tensor:
    """(b, c, *spatial) or (b, 1, *spatial, c) → (b, *spatial)."""
    return band.sum(_channel_axes(band, axes))


def _channel_axes(band: Tensor, axes: int) -> tuple[int, ...]:
    return (1, *range(2 + axes, band.ndim))


def _add(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + b[name] for name, value in a.items()}


def _root(squares: Tensor) -> Tensor:
    if not squares.requires_grad:
        return squares.sqrt()
    positive = squares > 0  # the slope at 0 is infinite; that of a magnitude is taken as 0
    return torch.where(positive, squares, 1).sqrt() * positive
