"""Spectra of a network's maps, site by site: powers, radial profiles, AVR of known inputs, and folding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.errors import SpectralError
from spectral.hooks.capture import Capture, Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.metrics.aliasing import compute_alias_power_ratio, compute_avr, split_aliases
from spectral.metrics.spectrum import (
    compute_power_spectrum,
    compute_radial_profile,
    frequency_grid,
    radial_frequencies,
)
from spectral.network import evaluation_mode
from spectral.sites import Site, find_sites
from spectral.synthetic import exact_bin_frequencies, make_sinusoidal_image

TAPS: tuple[Tap, ...] = ("input", "dense")
# Ten equal steps from 0.1 to 0.9 of Nyquist; the published study prints them rounded.
STUDY_FREQUENCIES = tuple(np.linspace(0.1, 0.9, 10))
MOST_EXACT = 32  # exact bins that a sweep visits


def measure_image_avr(
    model: nn.Module, image: Tensor, sites: Sequence[Site] | None = None, taps: Sequence[Tap] = TAPS
) -> pd.DataFrame:
    """AVR of one image: of the network's input itself, and at every site.

    Args:
        model: the network.
        image: preprocessed, (1, C, H, W).
        sites: where; by default all that can be measured.
        taps: ``input`` or ``dense``, or both.

    Returns:
        A row for the image (``site`` is ``"image"``) and one per tap and site: site, op, stride, tap, height
        and width of the map, avr, and whether the map is silent.

    Units:
        AVR is a share of power, 0 to 1.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> measure_image_avr(net, torch.ones(1, 3, 8, 8))["avr"].iloc[0].item()
        0.0
    """
    rows = [{"site": "image", "op": "none", "stride": "2x2", "tap": "input", **_describe_map(image, 2)}]
    for site, tap, maps in _look(model, image, sites, taps):
        rows.append({**_name_site(site), "tap": tap, **_describe_map(maps, site.stride)})
    return pd.DataFrame(rows)


def measure_spectra(
    model: nn.Module, image: Tensor, sites: Sequence[Site] | None = None, taps: Sequence[Tap] = TAPS
) -> pd.DataFrame:
    """Power spectrum of one image's maps at every site: a row per site, tap and frequency bin.

    Args:
        model: the network.
        image: preprocessed, (1, C, H, W).
        sites: where; by default all that can be measured.
        taps: ``input`` or ``dense``, or both.

    Returns:
        Columns height, width, f_u and f_v (cycles per sample of the map, −0.5 to below 0.5), power (|DFT|²,
        mean over channels), site, op, stride, tap and avr.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> len(measure_spectra(net, torch.rand(1, 3, 8, 8), taps=["input"]))
        64
    """
    frames = []
    for site, tap, maps in _look(model, image, sites, taps):
        power = compute_power_spectrum(maps)[0]
        facts: dict[str, Any] = {
            **_name_site(site),
            "tap": tap,
            "avr": float(compute_avr(power, site.stride)),
        }
        frames.append(tabulate_spectrum(power).assign(**facts))
    return pd.concat(frames, ignore_index=True)


def measure_profiles(
    model: nn.Module, images: Tensor, sites: Sequence[Site] | None = None, tap: Tap = "dense"
) -> pd.DataFrame:
    """Radial profiles of a batch's maps at every site: a row per site, image and ring.

    Args:
        model: the network.
        images: preprocessed, (B, C, H, W).
        sites: where; by default all that can be measured.
        tap: ``input`` or ``dense``.

    Returns:
        Columns site, op, stride, tap, image_index, rho (units of Nyquist), power (mean share of the map's
        power in a bin of the ring; NaN of a silent map, which has none to share).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> measure_profiles(net, torch.rand(2, 3, 8, 8))["image_index"].unique().tolist()
        [0, 1]
    """
    frames = []

    def reduce(capture: Capture) -> None:
        # inside the hook: the maps of all sites of a large network don't fit beside each other
        power = compute_power_spectrum(capture.dense() if tap == "dense" else capture.input)
        total = power.sum((-2, -1), keepdim=True)
        profile = compute_radial_profile(power / torch.where(total > 0, total, torch.nan))
        facts = {**_name_site(capture.site), "tap": tap}
        rho = radial_frequencies((power.shape[-2], power.shape[-1])).numpy()
        for image, one in enumerate(profile.cpu().numpy()):
            frames.append(pd.DataFrame({**facts, "image_index": image, "rho": rho, "power": one}))

    own = _find(model, images.shape, sites)
    with evaluation_mode(model), torch.no_grad(), FeatureExtractor(model, own, reduce=reduce):
        model(images)
    return pd.concat(frames, ignore_index=True)


def summarize_profiles(profiles: pd.DataFrame) -> pd.DataFrame:
    """Profile of the first image beside mean and 10–90 % range over all, per site and ring; no silent maps.

    Args:
        profiles: from `measure_profiles`, one batch or several with ``image_index`` counted on.

    Example:
        >>> rows = {"site": "conv", "rho": 0.5, "image_index": [0, 1], "power": [0.2, 0.4]}
        >>> summarize_profiles(pd.DataFrame(rows))[["power", "power_mean", "n_images"]].iloc[0].tolist()
        [0.2, 0.30000000000000004, 2.0]
    """
    keys = [column for column in profiles.columns if column not in ("image_index", "power")]
    grouped = profiles.astype({"power": float}).groupby(keys, sort=False)["power"]
    spread = grouped.agg(power_mean="mean", power_p10=lambda p: p.quantile(0.1),
                         power_p90=lambda p: p.quantile(0.9), n_images="count").reset_index()  # fmt: skip
    single = profiles[profiles["image_index"] == 0].drop(columns="image_index")
    return single.merge(spread, on=keys)


def average_profiles(profiles: pd.DataFrame) -> pd.DataFrame:
    """Mean profile over images, per site and ring; silent maps are left out.

    Args:
        profiles: from `measure_profiles`, of any number of batches.

    Example:
        >>> rows = {"site": "conv", "rho": 0.5, "image_index": [0, 1], "power": [0.25, 0.75]}
        >>> average_profiles(pd.DataFrame(rows))["power"].tolist()
        [0.5]
    """
    keys = [column for column in profiles.columns if column not in ("image_index", "power")]
    grouped = profiles.groupby(keys, sort=False)["power"]
    return grouped.agg(power="mean", n_images="count").reset_index()


def sweep_frequencies(
    model: nn.Module, size: tuple[int, int], sites: Sequence[Site] | None = None
) -> pd.DataFrame:
    """AVR of horizontal sinusoids from DC to Nyquist: of the image itself, and at the network's first site.

    Args:
        model: the network; its input is the sinusoid between −1 and 1.
        size: height and width of the images.
        sites: the first of them is where; by default the first that can be measured.

    Returns:
        A row per frequency for the image and for each tap: grid (``exact bin``, or ``study`` for the
        published ten), frequency in units of Nyquist, site, op, stride, tap, avr.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> table = sweep_frequencies(net, (8, 8))
        >>> low = table.query("site == 'image' and grid == 'exact bin' and frequency <= 0.5")
        >>> round(low["avr"].max().item(), 9)
        0.0
    """
    rows: list[dict[str, Any]] = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first = _find(model, size, sites)[:1]
    for grid, frequency in list_frequencies(size):
        image = 2 * make_sinusoidal_image(size, frequency)[None].to(device) - 1
        shared = {"grid": grid, "frequency": frequency}
        avr = float(compute_avr(compute_power_spectrum(image)[0], 2))
        rows.append({**shared, "site": "image", "op": "none", "stride": "2x2", "tap": "input", "avr": avr})
        for site, tap, maps in _look(model, image, first, TAPS):
            avr = float(compute_avr(compute_power_spectrum(maps)[0], site.stride))
            rows.append({**shared, **_name_site(site), "tap": tap, "avr": avr})
    return pd.DataFrame(rows)


def list_frequencies(size: tuple[int, int]) -> Iterator[tuple[str, float]]:
    """Yield (grid, frequency in units of Nyquist): at most 32 exact bins, then the study's ten.

    Example:
        >>> [frequency for grid, frequency in list_frequencies((8, 8)) if grid == "exact bin"]
        [0.25, 0.5, 0.75, 1.0]
    """
    exact = [f for f in exact_bin_frequencies(size) if f <= 1]
    for frequency in exact[:: max(1, len(exact) // MOST_EXACT)]:
        yield "exact bin", float(frequency)
    for frequency in STUDY_FREQUENCIES:
        yield "study", float(frequency)


def measure_folding(model: nn.Module, image: Tensor, site: Site | None = None) -> pd.DataFrame:
    """Spectra before and after a decimation, of its output without aliases, and of the aliases alone.

    Args:
        model: the network.
        image: preprocessed, (1, C, H, W).
        site: where; by default the first that can be measured.

    Returns:
        A row per panel (dense, output, alias_free, aliases) and frequency bin: height, width, f_u and f_v
        (cycles per sample of the panel's own map), power, site, panel, stride_h, stride_w,
        alias_power_ratio.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> measure_folding(net, torch.rand(1, 3, 8, 8))["panel"].unique().tolist()
        ['dense', 'output', 'alias_free', 'aliases']
    """
    site = site or _find(model, image.shape, None)[0]
    _, _, dense = next(_look(model, image, [site], ["dense"]))
    kept, aliases = split_aliases(dense, site.stride, site.geometry.phase, site.output_size)
    ratio = float(compute_alias_power_ratio(dense, site.stride, site.geometry.phase, site.output_size))
    panels = {"dense": dense, "output": kept, "alias_free": kept - aliases, "aliases": aliases}
    frames = []
    for panel, maps in panels.items():
        facts: dict[str, Any] = {
            "site": site.name, "panel": panel, "stride_h": site.stride[0], "stride_w": site.stride[1],
            "alias_power_ratio": ratio,
        }  # fmt: skip
        frames.append(tabulate_spectrum(compute_power_spectrum(maps)[0]).assign(**facts))
    return pd.concat(frames, ignore_index=True)


def tabulate_spectrum(power: Tensor) -> pd.DataFrame:
    """One row per bin of a DC-centred spectrum (H, W).

    Example:
        >>> len(tabulate_spectrum(torch.ones(4, 6)))
        24
    """
    height, width = power.shape
    f_u, f_v = torch.broadcast_tensors(*frequency_grid((height, width)))
    return pd.DataFrame(
        {"height": height, "width": width, "f_u": f_u.flatten().numpy(), "f_v": f_v.flatten().numpy(),
         "power": power.cpu().flatten().numpy()}
    )  # fmt: skip


def _look(
    model: nn.Module, image: Tensor, sites: Sequence[Site] | None, taps: Sequence[Tap]
) -> Iterator[tuple[Site, Tap, Tensor]]:
    """Yield the maps of a batch at every site, tap by tap."""
    own = _find(model, image.shape, sites)
    for tap in taps:
        with evaluation_mode(model), torch.no_grad(), FeatureExtractor(model, own, tap=tap) as fx:
            model(image)
            captured = {site.name: fx[site.name] for site in own}
        yield from ((site, tap, captured[site.name]) for site in own)


def _find(model: nn.Module, size: tuple[int, ...], sites: Sequence[Site] | None) -> Sequence[Site]:
    found = find_sites(model, (size[-2], size[-1])) if sites is None else sites
    own = [site for site in found if site.measurable]
    if not own:
        raise SpectralError("the network has no downsampling site that can be measured")
    return own


def _name_site(site: Site) -> dict[str, str]:
    return {"site": site.name, "op": site.op, "stride": f"{site.stride[0]}x{site.stride[1]}"}


def _describe_map(maps: Tensor, stride: Any) -> dict[str, Any]:
    power = compute_power_spectrum(maps)[0]
    return {"height": power.shape[0], "width": power.shape[1], "avr": float(compute_avr(power, stride)),
            "silent": bool(power.sum() == 0)}  # fmt: skip
