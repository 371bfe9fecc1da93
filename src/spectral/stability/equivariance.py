"""Layer-wise equivariance: whether a site's output moves with the image, by how much it misses if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.errors import SpectralError, warn
from spectral.hooks.capture import Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.intake import Feed
from spectral.measurement import by, describe_sites, insert_clusters
from spectral.network import map_planes, undisturbed
from spectral.network.inputs import Inputs
from spectral.numerics.scaling import find_scale
from spectral.processes.ranks import shared
from spectral.sharing import Sharing
from spectral.sites import Site, find_sites
from spectral.stability.lattice import find_strides
from spectral.stability.reading import Size, check_counts, find_size, pick_sites
from spectral.stability.shifts import Shift, check_shift, fourier_shift, is_whole
from spectral.table.attributes import share_facts

CALLER = "measure_equivariance"
Total = tuple[Fraction, Fraction]  # pixels of the image from one sample to the next, down and right
# One pixel up, down, left and right, as for SIS; half a pixel down and right.
SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right; (rows, columns)
EQUIVARIANCE_SHIFTS: tuple[Shift, ...] = (*SHIFTS, (0.5, 0.0), (0.0, 0.5))
VALUES = ("mse_ratio", "relative_error")
COLUMNS = [
    "model", "image", "cluster", "site", "call", "op", "stride", "total_stride", "row", "column", "kind",
    "psnr_db", *VALUES, "flat",
]  # fmt: skip


@shared
def measure_equivariance(
    model: nn.Module,
    images: Any,
    *,
    shifts: Sequence[Sequence[float]] = EQUIVARIANCE_SHIFTS,
    sites: Sequence[Site | str] | None = None,
    batch_size: int = 16,
    progress: bool = True,
    preprocessing: Any = None,
    name: str | None = None,
) -> pd.DataFrame:
    """Compare what leaves each site for a shifted image with what left it before, moved along.

    g(roll(x, t)) against g(x) moved by t/s, where s is the total stride: how many pixels apart the samples of
    the site's output lie. Without padding they don't go round the image, and what the roll brings over the
    border is part of the difference, as it is with zeros there. On an axis where t/s is a whole number the
    map is rolled, elsewhere `fourier_shift` moves it, which at even sizes scales the map's Nyquist bin by
    cos(πt/s). Images are shifted in the same way: whole pixels are rolled, others lose part of the image's
    own Nyquist bin.

    - ``mse_ratio``: the mean squared difference over peak², where the peak is the range of g(x): its largest
      value less its smallest, over all channels and samples.
    - ``psnr_db`` = −10 log₁₀ mse_ratio, +∞ where the two maps are equal. Rounding alone gives some 140 dB in
      float32. An infinity has no place in a mean: average ``mse_ratio`` and convert that, or take a median.
    - ``relative_error``: ‖g(roll(x, t)) − moved g(x)‖ / ‖moved g(x)‖.

    A flat map (range 0, such as a dead one's) has no PSNR; ``flat`` tells. What selects a polyphase component
    by content (`APSPool2d`) moves its samples by whole ones only: equal for shifts that s divides, not for
    others.

    Args:
        model: the network.
        images: as for `spectral.measure`. Of videos rows and columns are shifted, a signal is one row.
        shifts: pixels (down, right).
        sites: what to measure, as sites or their names; all that have an output map by default.
        batch_size: images per forward pass; one batch's maps of all sites are held at a time.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        name: of the model in the table; by default as it was loaded, else its class.

    Returns:
        A row per image, site and shift: model, image, cluster, site, call, op, stride (the site's),
        total_stride, row, column (the shift), kind (whole or sub-pixel), the values above and flat.
        ``attrs["sites"]`` lists every site and, if it wasn't measured, the reason. There are no rows if none
        of the model's sites can be compared.

    Units:
        Shifts in pixels of the network's input; psnr_db in decibels, the others none.

    Raises:
        SpectralError: for an unknown site, a bad shift, no images, a model without sites, non-finite
            activations (naming the site), or if no site that is asked for can be compared.

    Source:
        METRICS, layer-wise equivariance; the intermediate SIS that the spectral-aliasing study leaves open.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure_equivariance(net, torch.rand(2, 3, 16, 16), progress=False)
        >>> len(table), table["total_stride"].unique().tolist(), bool((table["psnr_db"] < 60).all())
        (12, ['2x2'], True)
    """
    (batch_size,) = check_counts(CALLER, batch_size=batch_size)
    moves = [check_shift(shift, CALLER) for shift in shifts]
    if not moves:
        raise SpectralError(f"{CALLER}: shifts is empty; pass at least one (down, right)")
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, name=name)
    size, source = find_size(feed), feed.images
    every = find_sites(model, feed.example)
    found = pick_sites(feed.name, every, sites, CALLER)
    reasons = {site.name: reason for site in found if (reason := find_obstacle(site, size))}
    chosen = [site for site in found if site.name not in reasons]
    if not chosen:
        first, reason = next(iter(reasons.items()))
        sentence = f"{CALLER}: no site of {feed.name} can be compared; {first!r}: {reason}"
        if sites is not None:
            raise SpectralError(sentence)
        warn(sentence)
    strides = find_strides(every, feed.extents)
    comparison = _Comparison(feed, moves, {site: _total_stride(strides[site.name]) for site in chosen})
    share = Sharing(feed, batch_size)

    def look() -> Iterator[pd.DataFrame]:
        for indices, inputs in share.read(feed.batches) if chosen else ():
            comparison.run(inputs)
            yield comparison.tabulate(indices, [source.ids[i] for i in indices])

    with (
        undisturbed(model),
        torch.no_grad(),
        share.bar(f"shifting {feed.name}", progress) as bar,
        FeatureExtractor(model, chosen, tap="output", reduce=comparison.reduce),
    ):
        frames = share.gather(look(), bar)
    nothing = pd.DataFrame(columns=["index", *[c for c in COLUMNS[1:] if c != "cluster"]])
    table = pd.concat(frames or [nothing]).sort_values("index", kind="stable", ignore_index=True)
    table.insert(0, "model", feed.name)
    table = insert_clusters(table, source)
    table.attrs["sites"] = share_facts(describe_sites(found, reasons))
    return table[COLUMNS]


def compare_moved(shifted: Tensor, reference: Tensor, move: Sequence[float]) -> dict[str, Tensor]:
    """Compare maps of shifted images with the maps of the images themselves, moved.

    Args:
        shifted: g(x shifted by t).
        reference: g(x).
        move: by how many samples of the map it should have moved, (down, right).

    Shape:
        (B, C, H, W) or (B, C, T, H, W) → (B,) for each value, float64.

    Returns:
        ``mse_ratio`` and ``relative_error`` as `measure_equivariance` defines them; NaN where there is no
        range, or no norm, to compare with.

    Example:
        >>> x = torch.rand(1, 2, 6, 5)
        >>> compare_moved(x.roll(1, -1), x, (0, 1))["mse_ratio"]
        tensor([0.], dtype=torch.float64)
    """
    scale = find_scale(reference, tuple(range(1, reference.ndim)))
    reference, shifted = reference / scale, shifted / scale  # whose squares neither vanish nor overflow
    moved = fourier_shift(reference, move)
    squares = (shifted - moved).square().flatten(1).sum(1, dtype=torch.float64)
    peak = reference.flatten(1).amax(1).double() - reference.flatten(1).amin(1).double()
    norm = moved.square().flatten(1).sum(1, dtype=torch.float64)
    nothing = torch.full_like(squares, torch.nan)
    return {
        "mse_ratio": torch.where(peak > 0, squares / reference[0].numel() / peak.square(), nothing),
        "relative_error": torch.where(norm > 0, (squares / norm).sqrt(), nothing),
    }


def find_obstacle(site: Site, image: Size) -> str | None:
    """Say why a shift of the image is none of the site's output; None if it is.

    Example:
        >>> from spectral.sites import find_sites
        >>> find_obstacle(find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), 9)[0], (9, 9))
        'its output of 5×5 is no whole fraction of the image (9×9), so no shift of the image is one of it'
    """
    if not site.measurable:
        return site.reason
    if site.spread != (1, 1):
        return "one image has several maps there, such as heads or windows"
    output = site.output_size[-2:]  # rows and columns of a video, which isn't shifted in time
    if len(output) != len(image) or any(n % m for n, m in zip(image, output, strict=True)):
        sizes = "×".join(map(str, output)), "×".join(map(str, image))
        return (
            f"its output of {sizes[0]} is no whole fraction of the image ({sizes[1]}), so no shift of the "
            f"image is one of it"
        )
    return None


class _Comparison:
    """The maps of one batch, and how those of its shifted versions differ from them."""

    def __init__(self, feed: Feed, moves: Sequence[Shift], totals: Mapping[Site, Total]) -> None:
        self.feed, self.moves, self.sites = feed, moves, list(totals)
        self.totals = {site.name: total for site, total in totals.items()}
        self.shift: Shift | None = None
        self.reference: dict[str, Tensor] = {}
        self.values: dict[tuple[str, Shift], dict[str, Tensor]] = {}

    def run(self, inputs: Inputs) -> None:
        """Compare every site's maps at every shift."""
        self.shift, self.reference, self.values = None, {}, {}
        layout = self.feed.layout_of(inputs)
        self.feed.run(inputs.map(lambda x, _: x.clone()))  # a model may work in place
        for shift in self.moves:
            self.shift = shift
            self.feed.run(map_planes(inputs, partial(_shift_planes, shift=shift), layout))
        for site, shift in product(self.sites, self.moves):
            if (site.name, shift) not in self.values:
                raise SpectralError(
                    f"{CALLER}: site {site.name!r} didn't run on every image; measure such a model without "
                    f"it (sites=…)"
                )

    def reduce(self, capture: Capture) -> None:
        """Keep a map, or compare it: inside the hook, so that shifted maps never stand beside each other."""
        name, output = capture.site.name, capture.output
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if not torch.isfinite(output).all():
            raise SpectralError(
                f"{CALLER}: site {name!r} has NaN or infinite values; check the weights and the input"
            )
        if self.shift is None:
            self.reference[name] = output.clone()
        elif name in self.reference:
            move = [float(t / s) for t, s in zip(self.shift, self.totals[name], strict=True)]
            self.values[name, self.shift] = compare_moved(output, self.reference[name], move)

    def tabulate(self, indices: list[int], ids: list[str]) -> pd.DataFrame:
        """Return the batch's rows."""
        frames = []
        for site, shift in product(self.sites, self.moves):
            total = by(self.totals[site.name])
            own = {name: value.cpu().numpy() for name, value in self.values[site.name, shift].items()}
            with np.errstate(divide="ignore"):
                decibels = -10 * np.log10(own["mse_ratio"])
            frames.append(pd.DataFrame({
                "index": indices, "image": ids, "site": site.name, "call": site.call, "op": site.op,
                "stride": by(site.stride), "total_stride": total, "row": shift[0], "column": shift[1],
                "kind": "whole" if is_whole(shift) else "sub-pixel", "psnr_db": decibels, **own,
                "flat": np.isnan(own["mse_ratio"]),
            }))  # fmt: skip
        return pd.concat(frames)


def _shift_planes(x: Tensor, shift: Shift) -> Tensor:
    if x.is_floating_point():
        return fourier_shift(x, shift)
    return x.roll((round(shift[0]), round(shift[1])), (-2, -1))  # a mask has no parts of a pixel


def _total_stride(own: Mapping[str, Fraction]) -> Total:
    return own.get("h", Fraction(1)), own.get("w", Fraction(1))
