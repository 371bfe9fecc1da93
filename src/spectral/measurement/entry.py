"""Images × model × sites → a tidy table: what `spectral.measure` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from spectral.arguments.values import as_integer, as_path
from spectral.errors import SpectralError, check_choice, warn
from spectral.hooks.capture import TAPS, Tap
from spectral.identity import begin_weights_id
from spectral.intake import Feed
from spectral.measurement.captures import DEFAULT_METRICS, METRICS, SITE_METRICS
from spectral.measurement.job import measure_run
from spectral.measurement.run import Run
from spectral.processes.ranks import Ranks, find_ranks
from spectral.sites import Site, check_hookable


def measure(
    model: nn.Module,
    images: Any,
    metrics: Sequence[str] | None = None,
    *,
    sites: Sequence[Site | str] | None = None,
    taps: Sequence[Tap] = ("input", "dense"),
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: bool = True,
    name: str | None = None,
    preprocessing: Any = None,
    logits: Callable[[Any], Tensor] | None = None,
    workers: int | None = None,
    together: bool = True,
) -> pd.DataFrame:
    """Measure aliasing at every site of a model, image by image.

    Runs on the model's device in evaluation mode, without gradients; modes and hooks are restored whatever
    happens. Where a dense map is needed, each site is first checked on the first image: a site whose dense
    map doesn't reproduce its output is reported as not measurable, never measured.

    By default what can be measured is, and what can't is a row with the reason and a warning: a segmenter, a
    detector or an embedding has no SIS. What is asked for by name must be there.

    Args:
        model: the network.
        images: from `load_images`, or whatever else holds some: names, paths, PIL images, arrays of 8-bit
            pixels, a Dataset or a DataLoader. A tensor or an array (N, C, H, W) of numbers, of signals
            (N, C, T) or (N, T), of videos (N, C, T, H, W), or one image (C, H, W), is passed as it is:
            preprocessed already. So are a tuple of several inputs, a dictionary of named ones, or a list of
            images, and what a Dataset or a DataLoader of tensors gives, without its labels. Of 500 files and
            more none is read before its turn: those that are broken are left out then, with a warning.
        metrics: any of avr, avr_separable, the same without the mean (avr_exclude_dc,
            avr_separable_exclude_dc), avr_hann (at each tap); am, am_relative, alias_power_ratio, and the
            shares of frequencies nonaliased, aliased, tangled, nopass (of the dense map); the headlines
            alias_power_ratio_channel_median, alias_power_ratio_channel_p90, alias_power_ratio_white_noise
            (at the tap ``signal``, see `compute_channel_alias_ratios`; live_channels comes with them); sis
            (of the model). By default avr, am, the headlines and sis, as far as the model has them.
        sites: what to measure, as sites or their names; all of `find_sites` by default.
        taps: where AVR is taken: ``"input"``, ``"dense"``, ``"signal"`` (the dense map behind the pointwise
            operators that follow: of a norm and an activation it can't be told whether samples are dropped
            before or behind them, and no comparison should depend on it), ``"output"``. With ``"signal"``
            what is measured of the dense map is measured there too.
        batch_size: images per forward pass; changes no value beyond rounding, except of a network that works
            over whole batches, of which a warning tells.
        out: folder for Parquet shards. Memory then doesn't grow with the number of images, and the same call
            continues after an interruption; a folder of another configuration is refused.
        progress: show a bar.
        name: model name for the table; that of ``spectral_info`` or the class by default.
        preprocessing: what images in [0, 1] go through before the model sees them: (mean, std), a
            configuration of timm, torchvision transforms or weights, an image processor of transformers, a
            function, ``"imagenet"``, or ``"none"``. By default what the model itself tells; where it tells
            nothing images are passed in [0, 1], and a warning says so. With it, tensors are images in [0, 1]
            too.
        logits: a function from the model's output to class scores (B, K), where they aren't the output
            itself, its ``logits`` or ``out``, or the first of a tuple.
        workers: processes that decode images ahead of the network; by default as many as help, or as
            `load_images` was told. 0 decodes in the main process; values and order are the same.
        together: where a process group of `torch.distributed` is initialised, share the images among its
            ranks: each of them must call this with the same network, images and arguments (another device
            may differ), ``out`` on a disk that all see. Each writes its own shards, the first rank shows the
            bar and notes what can't be measured, and every rank gets the whole table, with the rows of one
            process. If a rank fails, all raise why; the same call, of any number of ranks, continues. With
            False, this process measures all on its own.

    Returns:
        Columns model, weights, images (source and fingerprint), image, cluster, site, call, op, stride, tap,
        metric, value, reason; one row per number. Images of one cluster, crops of one photograph, aren't
        independent: put your own names there if you know of more such. Site, stride and tap are empty for
        metrics of the whole model: sis, prediction, confidence and, where known, label. ``power`` (the map's
        mean square) comes with every tap: zero marks a silent map. A site that couldn't be measured has one
        row, without image and metric, with the reason; one that didn't run on every image has values for
        those on which it did. All of that survives ``concat``, CSV and Parquet. For convenience
        ``attrs["sites"]`` describes every site, ``attrs["provenance"]`` has what is needed to repeat the run,
        and ``attrs["resumed"]`` the number of images that were in ``out`` before.

    Raises:
        SpectralError: for unknown metrics, taps or sites, no images, a model without sites or whose forward
            raises, non-finite activations (naming the site), or an ``out`` that can't be written or holds
            something else; on every rank if one fails or ends, or they see different images or networks. What
            was written to ``out`` stays.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure(net, torch.rand(2, 3, 16, 16), metrics=("avr",), progress=False)
        >>> sorted(table["metric"].unique()), len(table)
        (['avr', 'confidence', 'power', 'prediction'], 12)
    """
    ranks = find_ranks() if together else Ranks()
    with ranks.telling():
        ranks.require_same("measure", {})  # what it is called with is compared by what that holds
        batch_size = as_integer(batch_size, "measure: batch_size", least=1)
        run = prepare_run(
            model, images, metrics, sites=sites, taps=taps, name=name, preprocessing=preprocessing,
            logits=logits, workers=workers, kept=out is not None or ranks.count > 1,
        )  # fmt: skip
        folder = None if out is None else as_path(out, "measure: out")
        return measure_run(run, ranks, batch_size=batch_size, progress=progress, out=folder)


def prepare_run(
    model: nn.Module,
    images: Any,
    metrics: Sequence[str] | None = None,
    *,
    sites: Sequence[Site | str] | None = None,
    taps: Sequence[Tap] = ("input", "dense"),
    name: str | None = None,
    preprocessing: Any = None,
    logits: Callable[[Any], Tensor] | None = None,
    workers: int | None = None,
    kept: bool = True,
) -> Run:
    """Check what is asked for, and find out what of it the network and the images have; as `measure`.

    Args:
        model: as for `measure`, and so are the others.
        images: of them.
        metrics: of them.
        sites: of them.
        taps: of them.
        name: of the model.
        preprocessing: of the images.
        logits: of the output.
        workers: of the images.
        kept: as for `Run`.
    """
    demanded = metrics is not None
    chosen = DEFAULT_METRICS if metrics is None else metrics
    _check_choice("metrics", chosen, METRICS)
    _check_choice("taps", taps, TAPS)
    check_hookable(model)
    weights = begin_weights_id(model)
    feed = Feed(model, images, caller="measure", preprocessing=preprocessing, logits=logits, name=name,
                workers=workers, lazily=True)  # fmt: skip
    run = Run(feed, chosen, tuple(taps), weights, demanded=demanded, kept=kept)
    wanted = set(run.metrics) & set(SITE_METRICS)
    found = run.find_sites(sites) if wanted or sites is not None else []
    if wanted and not any(site.measurable for site in found):
        why = f"; {found[0].name!r}: {found[0].reason}" if found else ""
        reason = f"no downsampling site that can be measured{why}"
        if demanded:
            raise SpectralError(f"{run.name} has {reason}; metrics=('sis',) needs none")
        run.missing |= dict.fromkeys(sorted(wanted), f"there is {reason}")
    run.sites = found if wanted else []
    for reason, absent in _group(run.missing).items():
        what = f"{run.name} is measured without {' and '.join(absent)}"
        warn(f"measure: {what}: {reason}")
    return run


def _group(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what has each reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _check_choice(what: str, asked: Sequence[str], allowed: Sequence[str]) -> None:
    if isinstance(asked, str):
        raise SpectralError(f"measure: {what} must be a list such as ({asked!r},), got the string {asked!r}")
    if not asked:
        raise SpectralError(f"measure: {what} is empty; allowed values are {', '.join(allowed)}")
    for one in asked:
        check_choice(one, allowed, what[:-1], "measure")
