"""Every metric of what one site does to one batch, in pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spectral.bands import QUOTIENTS, BandStatistics, measure_bands
from spectral.capture import Capture, Tap
from spectral.metrics import compute_alias_categories, compute_avr
from spectral.operators import Size
from spectral.spectrum import compute_power_spectrum

AVR_METRICS = ("avr", "avr_separable", "avr_exclude_dc", "avr_hann")
ALIAS_METRICS = ("am", "am_relative", "alias_power_ratio")
CATEGORIES = ("nonaliased", "aliased", "tangled", "nopass")
DENSE_METRICS = (*ALIAS_METRICS, *CATEGORIES)
SITE_METRICS = (*AVR_METRICS, *DENSE_METRICS)
METRICS = (*SITE_METRICS, "sis")
DEFAULT_METRICS = ("avr", "am", "sis")

CHUNK_ELEMENTS = 2**22  # of one map at a time: 16 MiB in float32
IDENTITY_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}


def measure_capture(
    capture: Capture, metrics: Sequence[str], taps: Sequence[Tap]
) -> dict[tuple[str, str], Tensor]:
    """Compute every site metric of one capture, (tap, metric) → (B,), in pieces of bounded size."""
    avr = [metric for metric in metrics if metric in AVR_METRICS]
    asked: dict[Tap, list[str]] = {"dense": [m for m in metrics if m in DENSE_METRICS]}
    for tap in taps:
        asked[tap] = avr + asked.get(tap, [])
    # The dense map comes first: a site's output is then taken from it.
    return {
        (tap, metric): values
        for tap, names in asked.items()
        if names
        for metric, values in _measure_tap(capture, tap, names).items()
    }


def check_identity(capture: Capture) -> str | None:
    """Check dense[φ::s][:n] == output on the first image; the reason why not, or None."""
    output, decimation = capture.run()[:1], capture.decimation
    scale = float(output.abs().max())
    error = 0.0
    for channels in decimation.split_channels(_channels_at_once(capture)):
        kept = capture.decimate(decimation.dense(capture.size, slice(0, 1), channels))
        part = output[:, channels]
        if kept.shape != part.shape:
            return f"its dense map decimates to {tuple(kept.shape[2:])}, not to {tuple(part.shape[2:])}"
        error = max(error, float((kept - part).abs().max()))
    error = error / scale if scale else error
    tolerance = IDENTITY_TOLERANCE.get(output.dtype, 1e-4)
    # a NaN compares false: it is left to the metrics, which name it
    return f"its dense map misses its output by {error:.1e} of the maximum" if error > tolerance else None


def _measure_tap(capture: Capture, tap: Tap, metrics: list[str]) -> dict[str, Tensor]:
    """Measure the map at one tap, a few images and channels at a time."""
    geometry = capture.site.geometry
    phase, size = (geometry.phase, capture.size) if tap == "dense" else (None, None)
    bands = [metric for metric in metrics if metric in QUOTIENTS]
    parts: list[dict[str, Tensor]] = []
    whole: BandStatistics | None = None
    for images, pieces in _split(capture, tap):
        sums: dict[str, Tensor] = {}
        whole = None
        for channels in pieces:
            x = capture.dense(images, channels) if tap == "dense" else getattr(capture, tap)[images, channels]
            part = measure_bands(x, geometry.stride, phase, size, bands)
            whole = part if whole is None else whole + part
            for name, value in _sum_spectra(x, metrics, geometry.stride, phase, size).items():
                sums[name] = sums[name] + value if name in sums else value
        assert whole is not None
        parts.append({**{f"bands {name}": value for name, value in whole.sums.items()}, **sums})
    assert whole is not None
    joined = {name: capture.per_image(torch.cat([part[name] for part in parts])) for name in parts[0]}
    own = {name.removeprefix("bands "): v for name, v in joined.items() if name.startswith("bands ")}
    maps = whole.channels * len(capture.input) // len(own["power"])
    values = replace(whole, channels=maps, sums=own).values()
    if "avr_hann" in metrics:
        values["avr_hann"] = compute_avr(joined["hann"], geometry.stride)
    return values | {name: joined[name] / maps for name in CATEGORIES if name in metrics}


def _sum_spectra(
    x: Tensor, metrics: list[str], stride: Size, phase: Size | None, size: Size | None
) -> dict[str, Tensor]:
    """Sums over channels of what needs the full spectrum."""
    sums = {}
    if "avr_hann" in metrics:
        sums["hann"] = compute_power_spectrum(x, window="hann", axes=len(stride)) * x.shape[1]
    if set(metrics) & set(CATEGORIES):
        shares = compute_alias_categories(x, stride, phase or 0, size)
        sums |= {name: share.double() * x.shape[1] for name, share in shares.items()}
    return sums


def _channels_at_once(capture: Capture) -> int:
    """How many channels of one image's dense map make a piece of bounded size."""
    lattice = zip(capture.size, capture.site.stride, strict=True)
    return max(1, CHUNK_ELEMENTS // math.prod(n * s for n, s in lattice))


def _split(capture: Capture, tap: Tap) -> Iterator[tuple[slice, list[slice]]]:
    """Split a capture into runs of images, each with its runs of channels."""
    if tap == "dense":
        count, at_once = capture.decimation.channels, _channels_at_once(capture)
        pieces = list(capture.decimation.split_channels(at_once)) if at_once < count else [slice(0, count)]
    else:
        x = getattr(capture, tap)
        count, at_once = x.shape[1], max(1, CHUNK_ELEMENTS // x[0, 0].numel())
        pieces = [slice(start, start + at_once) for start in range(0, count, at_once)]
    step = max(1, at_once // count)
    for start in range(0, len(capture.input), step):
        yield slice(start, start + step), pieces
