"""What one site does to its maps, to look at: spectra before and after, the aliases, the worst channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.hooks.capture import Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.intake import Feed
from spectral.metrics.aliasing import split_aliases
from spectral.metrics.channels import compute_channel_alias_ratios
from spectral.metrics.spectrum import compute_power_spectrum, compute_radial_profile, radial_frequencies
from spectral.network import Take, undisturbed
from spectral.sites import Site, find_sites

CALLER = "inspect_sites"
WORST = 8  # channels that are listed
LARGEST = 128  # side of a spectrum or map that is kept; larger ones are averaged over squares
Array = npt.NDArray[np.float64]
PROFILE_COLUMNS = ["map", "rho", "power"]
CHANNEL_COLUMNS = ["channel", "alias_power_ratio", "power_share"]


@dataclass
class SiteDetail:
    """What is shown of one site; spectra are means over images and channels, DC in the middle.

    Attributes:
        site: its name.
        n: images.
        before: power spectrum of the dense map, which the decimation sees.
        after: of the decimated map.
        aliases: of the aliases in the decimated map.
        profile: the three over rings of equal radius: map, rho (1: the Nyquist frequency of the dense map,
            or, of the two others, of the decimated one), power.
        channels: the worst of them, as all else here of the dense map: channel, alias_power_ratio (median
            over images), power_share.
        maps: of the worst channel and the first image: dense, decimated, aliases.
    """

    site: str
    n: int = 0
    before: Array = field(default_factory=lambda: np.zeros((0, 0)))
    after: Array = field(default_factory=lambda: np.zeros((0, 0)))
    aliases: Array = field(default_factory=lambda: np.zeros((0, 0)))
    profile: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PROFILE_COLUMNS))
    channels: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CHANNEL_COLUMNS))
    maps: dict[str, Array] = field(default_factory=dict)


def inspect_sites(
    model: nn.Module,
    images: Any,
    *,
    sites: Sequence[Site] | None = None,
    batch_size: int = 4,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> dict[str, SiteDetail]:
    """Look at what each site of a network does to its maps.

    Args:
        model: the network.
        images: as for `spectral.measure`; a few are enough, a picture of a spectrum is a mean.
        sites: which; all measurable ones of the network by default. Those of videos have no picture.
        batch_size: images per forward pass.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A `SiteDetail` for each site that ran, by name.

    Units:
        Power in squared units of the map, per sample; ratios and shares none.

    Raises:
        SpectralError: for no images, or a model that can't be traced or fails on them.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = inspect_sites(net, torch.rand(2, 3, 16, 16))
        >>> found["0"].after.shape, len(found["0"].channels)
        ((7, 7), 4)
    """
    feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
    chosen = find_sites(model, feed.example) if sites is None else sites
    planar = [site for site in chosen if site.measurable and len(site.stride) == 2]
    sums = {site.name: _Sums(site) for site in planar}

    def reduce(capture: Capture) -> None:
        sums[capture.site.name].add(capture)

    with undisturbed(model), torch.no_grad(), FeatureExtractor(model, planar, tap="dense", reduce=reduce):
        for _, inputs in feed.batches(batch_size):
            feed.run(inputs)
    return {name: found.detail() for name, found in sums.items() if found.n}


class _Sums:
    """What adds up over batches for one site."""

    def __init__(self, site: Site) -> None:
        self.site, self.n, self.maps = site, 0, 0  # an image may have several maps
        self.spectra: dict[str, Tensor] = {}
        self.ratios: list[Tensor] = []
        self.power: Tensor | None = None
        self.first: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, capture: Capture) -> None:
        """Add the maps of one batch."""
        geometry = self.site.geometry
        dense = capture.dense().float()
        kept, aliases = split_aliases(dense, geometry.stride, geometry.phase, capture.size, CALLER)
        for name, maps in (("before", dense), ("after", kept), ("aliases", aliases)):
            spectrum = compute_power_spectrum(maps).double().sum(0).cpu() / maps[0, 0].numel()
            self.spectra[name] = self.spectra[name] + spectrum if name in self.spectra else spectrum
        ratios = compute_channel_alias_ratios(dense, geometry.stride, geometry.phase, capture.size)
        self.ratios.append(ratios.double().cpu())
        power = kept.double().square().mean((0, 2, 3)).cpu() * len(kept)
        self.power = power if self.power is None else self.power + power
        if self.first is None:
            self.first = tuple(maps[0].double().cpu() for maps in (dense, kept, aliases))  # type: ignore[assignment]
        self.n += len(capture.by_image(ratios))
        self.maps += len(dense)

    def detail(self) -> SiteDetail:
        """Return what all batches say."""
        assert self.power is not None
        assert self.first is not None
        spectra = {name: total / self.maps for name, total in self.spectra.items()}
        frames = []
        for name, spectrum in spectra.items():
            size = int(spectrum.shape[0]), int(spectrum.shape[1])
            radii, power = radial_frequencies(size), compute_radial_profile(spectrum)
            frames.append(pd.DataFrame({"map": name, "rho": radii.numpy(), "power": power.numpy()}))
        # torch's median is the lower of two in the middle
        medians = torch.cat(self.ratios).nanquantile(0.5, 0)
        ranked = medians.nan_to_num(-1).argsort(descending=True)[:WORST]
        channels = pd.DataFrame({
            "channel": ranked.numpy(), "alias_power_ratio": medians[ranked].numpy(),
            "power_share": (self.power[ranked] / self.power.sum()).numpy(),
        })  # fmt: skip
        worst = int(ranked[0])
        maps = {
            name: _shrink(maps[worst])
            for name, maps in zip(("dense", "decimated", "aliases"), self.first, strict=True)
        }
        return SiteDetail(
            self.site.name, self.n, **{name: _shrink(s) for name, s in spectra.items()},
            profile=pd.concat(frames, ignore_index=True), channels=channels.dropna(ignore_index=True),
            maps=maps,
        )  # fmt: skip


def _shrink(values: Tensor) -> Array:
    """Average over squares until no side is longer than `LARGEST`."""
    height, width = values.shape
    factor = -(-max(height, width) // LARGEST)
    if factor > 1:
        values = nn.functional.avg_pool2d(values[None], factor, ceil_mode=True)[0]
    shrunk: Array = values.numpy()
    return shrunk
