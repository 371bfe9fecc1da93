"""What is summed of some channels of one map, and the metrics that these sums give for the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spectral.bands import QUOTIENTS, BandStatistics, measure_bands
from spectral.channels import compute_channel_alias_ratios, find_white_noise_ratio, remove_mean
from spectral.metrics import compute_alias_categories, compute_avr
from spectral.operators import Size
from spectral.spectrum import as_maps, compute_power_spectrum

CATEGORIES = ("nonaliased", "aliased", "tangled", "nopass")
MEDIAN, NINETIETH, NOISE = (
    f"alias_power_ratio_{name}" for name in ("channel_median", "channel_p90", "white_noise")
)
CHANNEL_METRICS = (MEDIAN, NINETIETH, NOISE)
LIVE = "live_channels"  # comes with these


@dataclass(frozen=True)
class SpectrumMetric:
    """A metric of a map's whole power spectrum, the mean over channels, at any tap.

    Attributes:
        compute: from DC-centred power (B, H, W) and the site's stride to (B,).
        window: that tapers each map, after its mean was taken off; None for the map as it is.
    """

    compute: Callable[[Tensor, Size], Tensor]
    window: Literal["hann"] | None = None


SPECTRUM_METRICS = {
    "avr_hann": SpectrumMetric(compute_avr, window="hann"),
}


@dataclass(frozen=True)
class Lattice:
    """Which samples of a map its site keeps: all that the metrics of a map need to know of it."""

    stride: Size
    phase: Size | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Piece:
    """Sums over some channels of some images; those of other channels add to it.

    Attributes:
        bands: what AVR and AM are made of.
        sums: by name, of what needs the full spectrum; the images come first.
        ratios: one alias power ratio for each channel (B, C), where they are asked for.
        extents: samples of the map on each axis.
    """

    bands: BandStatistics
    sums: dict[str, Tensor]
    ratios: Tensor | None
    extents: Size

    def __add__(self, other: Piece) -> Piece:
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        ratios = None
        if self.ratios is not None and other.ratios is not None:
            ratios = torch.cat([self.ratios, other.ratios], 1)
        return Piece(self.bands + other.bands, sums, ratios, self.extents)


def measure_piece(x: Tensor, lattice: Lattice, metrics: Sequence[str]) -> Piece:
    """Sum over the channels of a map what some metrics are made of.

    Shape:
        (B, C, H, W), as many spatial axes as the lattice has.
    """
    stride, phase, axes = lattice.stride, lattice.phase, len(lattice.stride)
    bands = measure_bands(x, stride, phase, lattice.size, [m for m in metrics if m in QUOTIENTS])
    sums = {}
    for window in {SPECTRUM_METRICS[m].window for m in metrics if m in SPECTRUM_METRICS}:
        maps = as_maps(x, "measure", axes, leading=2)
        maps = maps if window is None else remove_mean(maps, axes)
        sums[f"spectrum {window}"] = compute_power_spectrum(maps, window=window, axes=axes) * x.shape[1]
    if set(metrics) & set(CATEGORIES):
        shares = compute_alias_categories(x, stride, phase or 0, lattice.size)
        sums |= {name: share.double() * x.shape[1] for name, share in shares.items()}
    ratios = None
    if set(metrics) & set(CHANNEL_METRICS):
        ratios = compute_channel_alias_ratios(x, stride, phase or 0, lattice.size)
    return Piece(bands, sums, ratios, tuple(x.shape[2:]))


def evaluate_pieces(
    pieces: Sequence[Piece],
    lattice: Lattice,
    metrics: Sequence[str],
    per_image: Callable[[Tensor], Tensor],
    by_image: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the metrics of whole maps, (B,) each, and their ``power``.

    Args:
        pieces: of some images each, all channels.
        lattice: as for `measure_piece`.
        metrics: which.
        per_image: adds up what was computed per map, where one image has several.
        by_image: the same of (maps, channels), side by side instead.
    """
    first = pieces[0]
    maps = sum(len(piece.bands.sums["power"]) for piece in pieces)
    bands, joined = (
        {name: per_image(torch.cat([part[name] for part in parts])) for name in parts[0]}
        for parts in ([piece.bands.sums for piece in pieces], [piece.sums for piece in pieces])
    )
    count = first.bands.channels * maps // len(bands["power"])
    values = replace(first.bands, channels=count, sums=bands).values()
    for name in (metric for metric in metrics if metric in SPECTRUM_METRICS):
        metric = SPECTRUM_METRICS[name]
        values[name] = metric.compute(joined[f"spectrum {metric.window}"] / count, lattice.stride)
    values |= {name: joined[name] / count for name in CATEGORIES if name in metrics}
    if first.ratios is not None:
        ratios = by_image(torch.cat([piece.ratios for piece in pieces if piece.ratios is not None]))
        values |= _summarize_channels(ratios.double(), first.extents, lattice, metrics)
    return values


def _summarize_channels(
    ratios: Tensor, extents: Size, lattice: Lattice, metrics: Sequence[str]
) -> dict[str, Tensor]:
    """Return median and 90th percentile over the channels that aren't constant, and how many these are."""
    noise = find_white_noise_ratio(extents, lattice.stride, lattice.phase or 0, lattice.size)
    found = {
        MEDIAN: ratios.nanquantile(0.5, -1),
        NINETIETH: ratios.nanquantile(0.9, -1),
        NOISE: torch.full_like(ratios[:, 0], noise),
    }
    live = (~ratios.isnan()).sum(-1).double()
    return {name: value for name, value in found.items() if name in metrics} | {LIVE: live}
