"""What is summed of some channels of one map, and the metrics that these sums give for the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spectral.metrics.aliasing import find_avr, find_categories
from spectral.metrics.bands import QUOTIENTS, WITHOUT_MEAN, BandStatistics, measure_bands, sum_bands
from spectral.metrics.channels import (
    compute_channel_alias_ratios,
    find_channel_ratios,
    find_white_noise_ratio,
    remove_mean,
)
from spectral.metrics.sampling import find_lattices
from spectral.metrics.spectrum import Window, as_maps, compute_power_spectrum, find_power, is_faint, taper
from spectral.operators import Size

CATEGORIES = ("nonaliased", "aliased", "tangled", "nopass")
MEDIAN, NINETIETH, NOISE = (
    f"alias_power_ratio_{name}" for name in ("channel_median", "channel_p90", "white_noise")
)
CHANNEL_METRICS = (MEDIAN, NINETIETH, NOISE)
LIVE = "live_channels"  # comes with these

# How what rounding leaves open is settled: at once and image by image, for which the host waits for the
# device; not at all, it is only marked; or for good, in float64 and over the full spectrum.
Scheme = Literal["settled", "fast", "exact"]
OPEN = "open"  # comes with every tap where nothing is settled: 1 for an image of which something is doubtful


@dataclass(frozen=True)
class SpectrumMetric:
    """A metric of a map's whole power spectrum, the mean over channels, at any tap.

    Attributes:
        compute: from DC-centred power (B, H, W) and the site's stride to (B,). The power is finite, and on a
            GPU ``compute`` runs inside the model's forward: it should look at no values on the host.
        window: that tapers each map, after its mean was taken off; None for the map as it is.
    """

    compute: Callable[[Tensor, Size], Tensor]
    window: Window | None = None


SPECTRUM_METRICS = {
    "avr_hann": SpectrumMetric(find_avr, window="hann"),
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
        doubtful: images in which rounding shows (B,); none where it was settled at once.
    """

    bands: BandStatistics
    sums: dict[str, Tensor]
    ratios: Tensor | None
    extents: Size
    doubtful: Tensor

    def __add__(self, other: Piece) -> Piece:
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        ratios = None
        if self.ratios is not None and other.ratios is not None:
            ratios = torch.cat([self.ratios, other.ratios], 1)
        doubtful = self.doubtful | other.doubtful
        return Piece(self.bands + other.bands, sums, ratios, self.extents, doubtful)


def measure_piece(x: Tensor, lattice: Lattice, metrics: Sequence[str], scheme: Scheme = "settled") -> Piece:
    """Sum over the channels of a map what some metrics are made of.

    Args:
        x: the map.
        lattice: what its site keeps of it.
        metrics: which.
        scheme: when to settle what rounding leaves open.

    Shape:
        (B, C, H, W), as many spatial axes as the lattice has.
    """
    axes = len(lattice.stride)
    of_bands = [metric for metric in metrics if metric in QUOTIENTS]
    where = (lattice.stride, lattice.phase, lattice.size, of_bands)
    bands = measure_bands(x, *where) if scheme == "settled" else sum_bands(x, *where, scheme == "exact")
    maps = as_maps(x.double() if scheme == "exact" else x, "measure", axes, leading=2)
    sums, ratios, doubtful = {}, None, bands.doubtful
    for window in {SPECTRUM_METRICS[m].window for m in metrics if m in SPECTRUM_METRICS}:
        power, faint = _find_spectrum(maps, axes, window, scheme)
        sums[f"spectrum {window}"], doubtful = power * maps.shape[1], doubtful | faint
    lattices = find_lattices(maps.shape[2:], lattice.stride, lattice.phase or 0, lattice.size, "measure")
    if set(metrics) & set(CATEGORIES):
        shares = find_categories(maps, lattices)
        sums |= {name: share * maps.shape[1] for name, share in shares.items()}
    if set(metrics) & set(CHANNEL_METRICS):
        if scheme == "settled":
            ratios = compute_channel_alias_ratios(maps, lattice.stride, lattice.phase or 0, lattice.size)
        else:
            ratios, faint = find_channel_ratios(maps, lattices)
            doubtful = doubtful | faint
    return Piece(bands, sums, ratios, tuple(x.shape[2:]), doubtful)


def _find_spectrum(maps: Tensor, axes: int, window: Window | None, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the power of maps, under a window without their means, and where its squares may vanish."""
    maps = maps if window is None else remove_mean(maps, axes)
    if scheme == "settled":
        power = compute_power_spectrum(maps, window=window, axes=axes)
        return power, torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    power = find_power(maps if window is None else taper(maps, axes), axes)
    return power, is_faint(power, axes) & (scheme == "fast")


def evaluate_pieces(
    pieces: Sequence[Piece],
    lattice: Lattice,
    metrics: Sequence[str],
    per_image: Callable[[Tensor], Tensor],
    by_image: Callable[[Tensor], Tensor],
    scheme: Scheme = "settled",
) -> dict[str, Tensor]:
    """Return the metrics of whole maps, (B,) each, their ``power``, and `OPEN` where nothing was settled.

    Args:
        pieces: of some images each, all channels.
        lattice: as for `measure_piece`.
        metrics: which.
        per_image: adds up what was computed per map, where one image has several.
        by_image: the same of (maps, channels), side by side instead.
        scheme: as for `measure_piece`.
    """
    first = pieces[0]
    maps = sum(len(piece.bands.sums["power"]) for piece in pieces)
    bands, joined = (
        {name: per_image(torch.cat([part[name] for part in parts])) for name in parts[0]}
        for parts in ([piece.bands.sums for piece in pieces], [piece.sums for piece in pieces])
    )
    count = first.bands.channels * maps // len(bands["power"])
    whole = replace(first.bands, channels=count, sums=bands)
    values = whole.values()
    # A constant map has power and nothing but its mean: without that it is a silent one, and has no share.
    still = whole.constant & (values["power"] > 0)
    values |= {
        name: value.masked_fill(still, torch.nan) for name, value in values.items() if name in WITHOUT_MEAN
    }
    for name in (metric for metric in metrics if metric in SPECTRUM_METRICS):
        metric = SPECTRUM_METRICS[name]
        values[name] = metric.compute(joined[f"spectrum {metric.window}"] / count, lattice.stride)
    values |= {name: joined[name] / count for name in CATEGORIES if name in metrics}
    if first.ratios is not None:
        ratios = by_image(torch.cat([piece.ratios for piece in pieces if piece.ratios is not None]))
        values |= _summarize_channels(ratios.double(), first.extents, lattice, metrics)
    if scheme != "settled":
        doubts = per_image(torch.cat([piece.doubtful for piece in pieces]).double()) > 0
        values[OPEN] = (doubts | whole.broken).double()
    return values


def _summarize_channels(
    ratios: Tensor, extents: Size, lattice: Lattice, metrics: Sequence[str]
) -> dict[str, Tensor]:
    """Return median and 90th percentile over the channels that aren't constant, and how many these are."""
    noise = find_white_noise_ratio(extents, lattice.stride, lattice.phase or 0, lattice.size)
    found = {
        MEDIAN: _find_quantile(ratios, 0.5),
        NINETIETH: _find_quantile(ratios, 0.9),
        NOISE: torch.full_like(ratios[:, 0], noise),
    }
    live = (~ratios.isnan()).sum(-1).double()
    return {name: value for name, value in found.items() if name in metrics} | {LIVE: live}


def _find_quantile(values: Tensor, share: float) -> Tensor:
    """Quantile of each row without its NaN, as `torch.nanquantile`, which looks at values on the host."""
    ordered = values.sort(-1).values  # NaN come last
    place = ((~values.isnan()).sum(-1, keepdim=True) - 1).clamp(min=0).double() * share
    below, above = (ordered.gather(-1, end.long()) for end in (place.floor(), place.ceil()))
    return torch.lerp(below, above, place - place.floor()).squeeze(-1)
