"""Every metric of what one site does to one batch, in pieces of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from spectral.errors import NotFiniteError
from spectral.hooks.capture import OF_DENSE_MAPS, Capture, Tap
from spectral.identity import list_precision
from spectral.measurement.pieces import (
    CATEGORIES,
    CHANNEL_METRICS,
    SPECTRUM_METRICS,
    Lattice,
    Piece,
    Scheme,
    evaluate_pieces,
    measure_piece,
)

AVR_METRICS = ("avr", "avr_separable", "avr_exclude_dc", "avr_separable_exclude_dc", *SPECTRUM_METRICS)
ALIAS_METRICS = ("am", "am_relative", "alias_power_ratio")
DENSE_METRICS = (*ALIAS_METRICS, *CATEGORIES)
SITE_METRICS = (*AVR_METRICS, *DENSE_METRICS, *CHANNEL_METRICS)
METRICS = (*SITE_METRICS, "sis")
DEFAULT_METRICS = ("avr", "am", *CHANNEL_METRICS, "sis")

CHUNK_ELEMENTS = 2**22  # of one map at a time: 16 MiB in float32
PER_WEIGHT = 4  # for each weight, if that is more: a convolution lays these out anew for every piece
MOST = 4  # times as many at most
ON_DEVICE = 16  # times as many on a GPU, which small pieces leave idle
IDENTITY_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}


def choose_taps(metrics: Sequence[str], taps: Sequence[Tap]) -> dict[Tap, list[str]]:
    """Return which metrics are taken at which tap.

    AVR is taken wherever it is asked for. What says something of aliases is of the dense map, and where
    ``signal`` is among the taps of that too; what compares networks channel by channel, of ``signal`` alone.

    Example:
        >>> choose_taps(["avr", "am"], ["input", "signal"])
        {'dense': ['am'], 'signal': ['avr', 'am'], 'input': ['avr']}
    """
    avr = [metric for metric in metrics if metric in AVR_METRICS]
    dense = [metric for metric in metrics if metric in DENSE_METRICS]
    asked: dict[Tap, list[str]] = {"dense": list(dense), "signal": list(dense) if "signal" in taps else []}
    for tap in taps:
        asked[tap] = avr + asked.get(tap, [])
    asked["signal"] += [metric for metric in metrics if metric in CHANNEL_METRICS]
    return {tap: names for tap, names in asked.items() if names}


def measure_capture(
    capture: Capture, metrics: Sequence[str], taps: Sequence[Tap], scheme: Scheme = "settled"
) -> dict[tuple[str, str], Tensor]:
    """Compute every site metric of one capture, (tap, metric) → (B,), in pieces of bounded size.

    Args:
        capture: what one site did to one batch.
        metrics: any of `SITE_METRICS`.
        taps: where AVR is taken.
        scheme: settle what rounding leaves open at once, mark it (as the metric `OPEN`), or leave none open;
            only the first makes the host wait for the device.
    """
    asked = choose_taps(metrics, taps)
    behind = {tap: names for tap, names in asked.items() if tap in OF_DENSE_MAPS}
    # The dense map comes first: a site's output is then taken from it.
    groups = [behind] * bool(behind) + [{tap: names} for tap, names in asked.items() if tap not in behind]
    try:
        return {
            (tap, metric): values
            for group in groups
            for tap, found in _measure_taps(capture, group, scheme).items()
            for metric, values in found.items()
        }
    except NotFiniteError as error:
        if "input" in asked and _is_padded(capture):
            raise NotFiniteError(
                "its input has −∞, as a pad before a max pool has; let the pool pad (padding=), or leave the "
                "tap 'input' out"
            ) from error
        raise


def _is_padded(capture: Capture) -> bool:
    """Whether a max pool's input is finite but for the −∞ that a pad of its own puts around it."""
    x = capture.input
    return capture.site.operator == "max_pool" and bool((x.isfinite() | x.isneginf()).all())


def compare_identity(capture: Capture) -> str | Tensor:
    """Compare dense[φ::s][:n] with the output of the first image.

    Returns:
        Why there is nothing to compare; else the largest difference as a share of the output's maximum, and
        how large it may be: (2,) on the device, for `judge_identity`.
    """
    output, decimation = capture.run(slice(0, 1)), capture.decimation
    scale = output.abs().max().double()
    error = torch.zeros_like(scale)
    for channels in decimation.split_channels(_channels_at_once(capture)):
        kept = capture.decimate(decimation.dense(capture.size, slice(0, 1), channels))
        part = output[:, channels]
        if kept.shape != part.shape:
            return f"its dense map decimates to {tuple(kept.shape[2:])}, not to {tuple(part.shape[2:])}"
        error = torch.maximum(error, (kept - part).abs().max().double())
    error = error / torch.where(scale == 0, 1, scale)
    return torch.stack([error, torch.full_like(error, find_tolerance(output.dtype, output.device))])


def find_tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Return what share of the maximum rounding explains between a site's output and its dense map.

    They may come from different algorithms. In float32 it depends on what products are made of: a GPU's
    convolutions use TF32 unless that is switched off, which has the digits of float16.

    Example:
        >>> find_tolerance(torch.float32, torch.device("cpu"))
        0.0001
    """
    if dtype == torch.float32:
        known = list_precision(device)
        if known["float32_matmul"] == "medium":
            return IDENTITY_TOLERANCE[torch.bfloat16]
        if known["float32_matmul"] == "high" or known.get("cudnn_tf32") == "True":
            return IDENTITY_TOLERANCE[torch.float16]
    return IDENTITY_TOLERANCE.get(dtype, 1e-4)


def judge_identity(found: Tensor) -> str | None:
    """Say why a site's dense map isn't that of its output, or None, from what `compare_identity` found.

    Example:
        >>> judge_identity(torch.tensor([0.5, 1e-4]))
        'its dense map misses its output by 5.0e-01 of the maximum'
    """
    error, tolerance = found.tolist()
    # a NaN compares false: it is left to the metrics, which name it
    return f"its dense map misses its output by {error:.1e} of the maximum" if error > tolerance else None


def _measure_taps(
    capture: Capture, asked: Mapping[Tap, Sequence[str]], scheme: Scheme
) -> dict[Tap, dict[str, Tensor]]:
    """Measure the maps at one tap, or at those behind the site, a few images and channels at a time."""
    geometry = capture.site.geometry
    behind = not set(asked).isdisjoint(OF_DENSE_MAPS)
    lattice = Lattice(geometry.stride, geometry.phase, capture.size) if behind else Lattice(geometry.stride)
    pieces: dict[Tap, list[Piece]] = {tap: [] for tap in asked}
    for images, runs in _split(capture, tuple(asked)):
        whole: dict[Tap, Piece] = {}
        for channels in runs:
            for tap, x in _make_maps(capture, tuple(asked), images, channels):
                piece = measure_piece(x, lattice, asked[tap], scheme)
                whole[tap] = whole[tap] + piece if tap in whole else piece
        for tap, piece in whole.items():
            pieces[tap].append(piece)
    return {
        tap: evaluate_pieces(found, lattice, asked[tap], capture.per_image, capture.by_image, scheme)
        for tap, found in pieces.items()
    }


def _make_maps(
    capture: Capture, taps: Sequence[Tap], images: slice, channels: slice
) -> Iterator[tuple[Tap, Tensor]]:
    """Make the maps at some taps; those behind the site from one dense map."""
    if set(taps).isdisjoint(OF_DENSE_MAPS):
        yield from ((tap, getattr(capture, tap)[images, channels]) for tap in taps)
        return
    dense = capture.dense(images, channels)
    yield from ((tap, capture.follow(dense, channels) if tap == "signal" else dense) for tap in taps)


def _channels_at_once(capture: Capture) -> int:
    """How many channels of one image's dense map make a piece of bounded size."""
    lattice = zip(capture.size, capture.site.stride, strict=True)
    return max(1, _choose_chunk(capture) // math.prod(n * s for n, s in lattice))


def _choose_chunk(capture: Capture) -> int:
    chunk = CHUNK_ELEMENTS * (1 if capture.input.device.type == "cpu" else ON_DEVICE)
    weight = capture.decimation.weight
    return chunk if weight is None else min(max(chunk, PER_WEIGHT * weight.numel()), MOST * chunk)


def _split(capture: Capture, taps: Sequence[Tap]) -> Iterator[tuple[slice, list[slice]]]:
    """Split a capture into runs of images, each with its runs of channels."""
    chain = capture.site.chain
    if set(taps).isdisjoint(OF_DENSE_MAPS):
        x = getattr(capture, taps[0])
        count, at_once = x.shape[1], max(1, _choose_chunk(capture) // x[0, 0].numel())
        pieces = [slice(start, start + at_once) for start in range(0, count, at_once)]
    else:
        count, at_once = capture.decimation.channels, _channels_at_once(capture)
        apart = at_once < count and not ("signal" in taps and chain is not None and chain.mixes)
        pieces = list(capture.decimation.split_channels(at_once)) if apart else [slice(0, count)]
    step = max(1, at_once // count)
    for start in range(0, len(capture.input), step):
        yield slice(start, start + step), pieces
