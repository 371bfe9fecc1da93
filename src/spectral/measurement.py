"""The one loop: images × model × sites → a tidy table. One forward for spectra, four more for SIS."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral.bands import QUOTIENTS, BandStatistics, measure_bands
from spectral.decimation import Size
from spectral.errors import SpectralError, suggest
from spectral.hooks import TAPS, Capture, FeatureExtractor, Tap
from spectral.metrics import (
    SHIFTS,
    compute_alias_categories,
    compute_avr,
    compute_instability,
    evaluation_mode,
    find_logits,
    predict_probabilities,
)
from spectral.models.checkpoint import hash_state
from spectral.sites import Site, check_hookable, find_sites
from spectral.spectrum import compute_power_spectrum
from spectral.table import Key, ShardStore, describe_environment, make_rows, to_frame

AVR_METRICS = ("avr", "avr_separable", "avr_exclude_dc", "avr_hann")
ALIAS_METRICS = ("am", "am_relative", "alias_power_ratio")
CATEGORIES = ("nonaliased", "aliased", "tangled", "nopass")
DENSE_METRICS = (*ALIAS_METRICS, *CATEGORIES)
SITE_METRICS = (*AVR_METRICS, *DENSE_METRICS)
METRICS = (*SITE_METRICS, "sis")

CHUNK_ELEMENTS = 2**22  # of one map at a time: 16 MiB in float32
IDENTITY_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}


class Images(Protocol):
    """What `measure` needs of a set of images; `spectral.load_images` returns one."""

    @property
    def source(self) -> str:
        """Where they come from."""

    @property
    def ids(self) -> Sequence[str]:
        """Names, all different."""

    @property
    def labels(self) -> Sequence[int | None]:
        """Class of each image where it is known."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a pixel does."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all images, None where they differ."""

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images at another size."""

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images (B, 3, H, W) in [0, 1])."""

    def __len__(self) -> int: ...


def measure(
    model: nn.Module,
    images: Tensor | Images,
    metrics: Sequence[str] = ("avr", "am", "sis"),
    *,
    sites: Sequence[Site | str] | None = None,
    taps: Sequence[Tap] = ("input", "dense"),
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: bool = True,
    name: str | None = None,
) -> pd.DataFrame:
    """Measure aliasing at every site of a model, image by image.

    Runs on the model's device in evaluation mode, without gradients; modes and hooks are restored whatever
    happens. Where a dense map is needed, each site is first checked on the first batch: a site whose dense
    map doesn't reproduce its output is reported as not measurable, never measured.

    Args:
        model: the network. Images from `load_images` are normalised by its ``spectral_info`` (see
            `load_model`); a model without one gets them in [0, 1].
        images: from `load_images`, or a tensor (N, C, H, W) that is already preprocessed; of signals
            (N, C, T) and videos (N, C, T, H, W) too.
        metrics: any of avr, avr_separable, avr_exclude_dc, avr_hann (at each tap); am, am_relative,
            alias_power_ratio, and the shares of frequencies nonaliased, aliased, tangled, nopass (of the
            dense map); sis (of the model).
        sites: what to measure, as sites or their names; all of `find_sites` by default.
        taps: where AVR is taken: ``"input"``, ``"dense"``, ``"output"``.
        batch_size: images per forward pass; changes no value beyond rounding.
        out: folder for Parquet shards. Memory then doesn't grow with the number of images, and the same call
            continues after an interruption; a folder of another configuration is refused.
        progress: show a bar.
        name: model name for the table; that of ``spectral_info`` or the class by default.

    Returns:
        Columns model, image, site, call, op, tap, metric, value; one row per number. Site and tap are empty
        for metrics of the whole model: sis, prediction, confidence and, where known, label. ``power`` (the
        map's mean square) comes with every tap: zero marks a silent map. ``attrs["sites"]`` lists every site
        with its stride and, if it wasn't measured, the reason; ``attrs["provenance"]`` has what is needed to
        repeat the run, ``attrs["resumed"]`` the number of images that were in ``out`` before.

    Raises:
        SpectralError: for unknown metrics, taps or sites, no images, a model without sites or whose forward
            raises, non-finite activations (naming the site), or an ``out`` that can't be written or holds
            something else. What was written to ``out`` stays.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> table = measure(net, torch.rand(2, 3, 16, 16), metrics=("avr",), progress=False)
        >>> sorted(table["metric"].unique()), len(table)
        (['avr', 'confidence', 'power', 'prediction'], 12)
    """
    _check_choice("metrics", metrics, METRICS)
    _check_choice("taps", taps, TAPS)
    if batch_size < 1:
        raise SpectralError(f"measure: batch_size must be ≥ 1, got {batch_size}")
    check_hookable(model)
    source = _as_images(images)
    info = getattr(model, "spectral_info", None)
    if source.size is None and info is not None:
        source = source.resized(info.preprocessing.size)
    run = _Run(model, source, tuple(metrics), tuple(taps), info, name)
    found = run.find_sites(sites)
    wanted = set(metrics) & set(SITE_METRICS)
    if wanted and not any(site.measurable for site in found):
        why = f"; {found[0].name!r}: {found[0].reason}" if found else ""
        raise SpectralError(
            f"{run.name} has no downsampling site that can be measured{why}; metrics=('sis',) needs none"
        )
    run.sites = found if wanted else []
    provenance = run.provenance(batch_size)
    store = ShardStore(Path(out), run.config, provenance) if out is not None else None
    done = store.finished_images() if store else set()
    left = [i for i, image in enumerate(source.ids) if image not in done]
    if store and done:
        run.failed, run.verified = store.unmeasured, True
    kept: list[pa.Table] = []
    batches = run.measure_batches(left, batch_size, progress)
    # Closed at once, also after an error here: an unfinished generator would keep the hooks on the model.
    with evaluation_mode(model), torch.no_grad(), closing(batches):
        for rows in batches:
            if store:
                store.append(rows, run.failed)
            else:
                kept.append(rows)
    table = store.read() if store else to_frame(kept)
    # Plain lists and dictionaries: pandas compares attrs when it joins tables, and writes them to Parquet.
    table.attrs["sites"] = describe_sites(run.sites, run.failed)
    table.attrs["provenance"] = provenance
    table.attrs["resumed"] = len(source) - len(left)
    return table


def describe_sites(sites: Sequence[Site], failed: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Describe sites as records for a table, with the reason where one can't be measured.

    Args:
        sites: from `find_sites`.
        failed: reasons found while measuring, by site name.

    Example:
        >>> describe_sites(find_sites(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), 9))[0]["output_size"]
        '4x4'
    """
    reasons = {site.name: site.reason or (failed or {}).get(site.name) for site in sites}
    return [
        {
            "name": site.name, "call": site.call, "op": site.op, "kernel": _by(site.kernel),
            "stride": _by(site.stride), "input_size": _by(site.input_size),
            "output_size": _by(site.output_size), "channels": site.channels,
            "measurable": reasons[site.name] is None, "dense_map": site.rule, "reason": reasons[site.name],
        }
        for site in sites
    ]  # fmt: skip


class TensorImages:
    """A tensor of preprocessed images, seen as a set of images."""

    source = "tensor"

    def __init__(self, images: Tensor) -> None:
        if images.ndim not in (3, 4, 5) or not images.is_floating_point():
            raise SpectralError(
                f"measure: expected floating-point images (N, C, H, W), signals (N, C, T) or videos "
                f"(N, C, T, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        self.images = images.detach()
        self.ids = [f"{i:04d}" for i in range(len(images))]
        self.labels: list[int | None] = [None] * len(images)
        self.size: tuple[int, int] = (images.shape[-2], images.shape[-1])

    @property
    def fingerprint(self) -> str:
        """Hash of shape, dtype and values."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.images.dtype)).encode())
        digest.update(self.images.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def resized(self, size: tuple[int, int]) -> TensorImages:
        """Return itself: a tensor is taken as it is."""
        return self

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices, images)."""
        chosen = list(range(len(self)) if indices is None else indices)
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            yield part, self.images[part]

    def __len__(self) -> int:
        return len(self.images)


class _Run:
    """One measurement in progress: what is measured, and the values of the batch that is running."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        metrics: tuple[str, ...],
        taps: tuple[Tap, ...],
        info: Any,
        name: str | None,
    ) -> None:
        self.model, self.images, self.metrics, self.taps, self.info = model, images, metrics, taps, info
        self.name = name or (info.name if info else type(model).__name__)
        self.sites: list[Site] = []
        self.failed: dict[str, str] = {}
        self.verified = False  # whether each site's dense map has been checked
        self.keys: list[Key] = []
        self._values: dict[Key, Tensor] = {}
        parameter = next(iter(model.parameters()), None)
        self.device = parameter.device if parameter is not None else torch.device("cpu")
        self.dtype = parameter.dtype if parameter is not None else torch.float32
        self._needs_dense = "dense" in taps or bool(set(metrics) & set(DENSE_METRICS))
        self._has_labels = any(label is not None for label in images.labels)

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return preprocessed images on the model's device."""
        (_, batch), *_ = self.images.batches(len(indices), indices=indices)
        return self._prepare(batch)

    def find_sites(self, asked: Sequence[Site | str] | None) -> list[Site]:
        """Return the sites asked for, all of the model's by default."""
        if asked is not None and not any(isinstance(site, str) for site in asked):
            return [site for site in asked if isinstance(site, Site)]
        found = find_sites(self.model, self.load([0]))
        names = {site.name: site for site in found}
        for site in asked or ():
            if isinstance(site, str) and site not in names:
                raise SpectralError(f"measure: {self.name} has no site {site!r}{suggest(site, names)}")
        return found if asked is None else [names[s] if isinstance(s, str) else s for s in asked]

    def measure_batches(
        self, indices: list[int], batch_size: int, progress: bool
    ) -> Generator[pa.Table, None, None]:
        """Yield the rows of one batch at a time."""
        measurable = [site for site in self.sites if site.measurable]
        bar = tqdm(total=len(self.images), initial=len(self.images) - len(indices), unit="image",
                   desc=f"measuring {self.name}", disable=not progress)  # fmt: skip
        tap: Tap = "dense" if self._needs_dense else "input"
        with bar, FeatureExtractor(self.model, measurable, tap=tap, reduce=self._reduce) as extractor:
            for chosen, raw in self.images.batches(batch_size, indices=indices):
                self._values = {}
                batch = self._prepare(raw)
                self._measure_model(batch, chosen, extractor)
                self.keys, self.verified = self.keys or list(self._values), True
                if not self.keys:
                    raise SpectralError(f"{self.name} has nothing to measure: {_list_reasons(self.failed)}")
                missing = [key for key in self.keys if key not in self._values]
                if missing:
                    raise SpectralError(
                        f"site {missing[0][0]!r} ran on earlier images and not on image "
                        f"{self.images.ids[chosen[0]]!r}; measure such a model without it (sites=…)"
                    )
                block = torch.stack([self._values[key].double().cpu() for key in self.keys], dim=1)
                yield make_rows(self.name, [self.images.ids[i] for i in chosen], self.keys, block.numpy())
                bar.update(len(chosen))

    def _prepare(self, batch: Tensor) -> Tensor:
        batch = batch.to(self.device, self.dtype if self.dtype.is_floating_point else torch.float32)
        if self.info is not None and not isinstance(self.images, TensorImages):
            batch = self.info.preprocessing(batch)
        return batch

    def _measure_model(self, batch: Tensor, chosen: list[int], extractor: FeatureExtractor) -> None:
        output = self._forward(batch)
        if "sis" not in self.metrics and find_logits(output, len(batch)) is None:
            return  # a detector or an embedding: its sites can be measured, its prediction can't
        probabilities = predict_probabilities(output, len(batch))
        confidence, prediction = probabilities.max(-1)
        self._put("prediction", prediction)
        self._put("confidence", confidence)
        if self._has_labels:
            labels = [self.images.labels[i] for i in chosen]
            self._put("label", torch.tensor([np.nan if y is None else y for y in labels]))
        if "sis" in self.metrics:
            with extractor.paused():
                shifted = [
                    predict_probabilities(self._forward(batch.roll(shift, (-2, -1))), len(batch))
                    for shift in SHIFTS
                ]
            self._put("sis", compute_instability(probabilities, shifted))

    def _forward(self, batch: Tensor) -> Any:
        try:
            return self.model(batch)
        except (SpectralError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model may raise anything
            raise SpectralError(
                f"the forward of {self.name} failed on images of shape {tuple(batch.shape)}: "
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
            ) from error

    def _put(self, metric: str, values: Tensor) -> None:
        self._values[("", 0, "", "", metric)] = values

    def _reduce(self, capture: Capture) -> None:
        site = capture.site
        if site.name in self.failed:
            return
        if self._needs_dense and not self.verified:
            try:
                reason = check_identity(capture)
            except SpectralError as error:  # a layer whose dense map doesn't exist as it is set
                reason = str(error)
            if reason:
                self.failed[site.name] = reason
                return
        try:
            found = measure_capture(capture, self.metrics, self.taps)
        except SpectralError as error:
            raise SpectralError(f"site {site.name!r}: {error}") from error
        for (tap, metric), values in found.items():
            self._values[(site.name, site.call, site.op, tap, metric)] = values

    @cached_property
    def config(self) -> dict[str, Any]:
        """What determines every value; two runs with equal configurations may share a folder."""
        scale = self.info.preprocessing if self.info and not isinstance(self.images, TensorImages) else None
        return {
            "model": self.name,
            "weights": self._weights_id(),
            "images": self.images.source,
            "images_fingerprint": self.images.fingerprint,
            "image_count": len(self.images),
            "image_size": list(self.images.size) if self.images.size else None,
            "preprocessing": {"mean": scale.mean, "std": scale.std} if scale else None,
            "metrics": sorted(self.metrics),
            "taps": sorted(self.taps),
            "sites": [f"{s.name} {s.op} {_by(s.kernel)} stride {_by(s.stride)}" for s in self.sites],
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def provenance(self, batch_size: int) -> dict[str, Any]:
        """All that a repetition needs: the configuration, versions and device."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {**self.config, "batch_size": batch_size, **describe_environment(), "device": device}

    def _weights_id(self) -> str:
        """Id of the weights as they are now: a model that was trained or altered keeps its old info."""
        now = hash_state(self.model.state_dict())
        recorded: str = self.info.weights_id if self.info else ""
        return recorded if recorded.endswith(now.partition(":")[2]) else now


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


def _as_images(images: Tensor | Images) -> Images:
    if isinstance(images, Tensor):
        images = TensorImages(images)
    elif not hasattr(images, "batches"):
        raise SpectralError(
            f"measure: expected images from load_images or a tensor (N, C, H, W), got {type(images).__name__}"
        )
    if len(images) == 0:
        raise SpectralError("measure: there are no images")
    return images


def _list_reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{site!r}: {reason}" for site, reason in failed.items()) or "its output isn't logits"


def _by(size: Size) -> str:
    return "x".join(map(str, size))


def _check_choice(what: str, asked: Sequence[str], allowed: Sequence[str]) -> None:
    if isinstance(asked, str):
        raise SpectralError(f"measure: {what} must be a list such as ({asked!r},), got the string {asked!r}")
    if not asked:
        raise SpectralError(f"measure: {what} is empty; allowed values are {', '.join(allowed)}")
    for one in asked:
        if one not in allowed:
            raise SpectralError(
                f"measure: unknown {what[:-1]} {one!r}{suggest(one, allowed)}; allowed values are "
                f"{', '.join(allowed)}"
            )
