"""The one loop: one forward per batch for spectra, four more for SIS."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral.capture import Capture, Tap
from spectral.errors import SpectralError, suggest
from spectral.hooks import FeatureExtractor
from spectral.measurement.captures import DENSE_METRICS, check_identity, measure_capture
from spectral.measurement.description import by
from spectral.measurement.images import Images, TensorImages, find_clusters
from spectral.metrics import SHIFTS, compute_instability, predict_probabilities
from spectral.models.checkpoint import hash_state
from spectral.network import find_logits
from spectral.sites import Site, find_sites
from spectral.table import Key, Origin, describe_environment, make_reasons, make_rows


class Run:
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
        self.verified: set[str] = set()  # sites whose dense map has been checked, or that have values
        self._written: set[str] = set()  # sites whose reason is in the rows
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
        clusters = find_clusters(self.images)
        with bar, FeatureExtractor(self.model, measurable, tap=tap, reduce=self._reduce) as extractor:
            for chosen, raw in self.images.batches(batch_size, indices=indices):
                self._values = {}
                batch = self._prepare(raw)
                self._measure_model(batch, chosen, extractor)
                if not self._values:
                    raise SpectralError(f"{self.name} has nothing to measure: {_list_reasons(self.failed)}")
                keys = list(self._values)
                block = torch.stack([self._values[key].double().cpu() for key in keys], dim=1)
                ids, own = ([names[i] for i in chosen] for names in (self.images.ids, clusters))
                rows = make_rows(self.origin, ids, own, keys, block.numpy())
                yield pa.concat_tables([self._list_reasons(), rows], promote_options="permissive")
                bar.update(len(chosen))
        for site in measurable:
            if site.name not in self.verified:
                self.failed.setdefault(site.name, "it didn't run on any of the images")
        if last := self._list_reasons():
            yield last

    def resume(self, reasons: Mapping[Key, str], measured: set[str]) -> None:
        """Go on behind what an earlier run has written: reasons by key, and the sites that have values."""
        self.failed = {key.site: reason for key, reason in reasons.items() if key.site}
        self._written, self.verified = set(self.failed), set(measured)

    @cached_property
    def origin(self) -> Origin:
        """What the values are of."""
        images = f"{self.config['images']}@{self.config['images_fingerprint']}"
        return Origin(self.name, self.config["weights"], images)

    def _list_reasons(self) -> pa.Table:
        """Rows of the sites that can't be measured, each once, as soon as that is known."""
        known = {site.name: site.reason or self.failed.get(site.name) for site in self.sites}
        new = [site for site in self.sites if known[site.name] and site.name not in self._written]
        self._written |= {site.name for site in new}
        return make_reasons(
            self.origin,
            {Key("", s.name, s.call, s.op, by(s.stride)): str(known[s.name]) for s in new},
        )

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
        self._values[Key(metric)] = values

    def _reduce(self, capture: Capture) -> None:
        site = capture.site
        if site.name in self.failed:
            return
        if self._needs_dense and site.name not in self.verified:
            try:
                reason = check_identity(capture)
            except SpectralError as error:  # a layer whose dense map doesn't exist as it is set
                reason = str(error)
            if reason:
                self.failed[site.name] = reason
                return
        self.verified.add(site.name)
        try:
            found = measure_capture(capture, self.metrics, self.taps)
        except SpectralError as error:
            raise SpectralError(f"site {site.name!r}: {error}") from error
        for (tap, metric), values in found.items():
            self._values[Key(metric, site.name, site.call, site.op, by(site.stride), tap)] = values

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
            "sites": [f"{s.name} {s.op} {by(s.kernel)} stride {by(s.stride)}" for s in self.sites],
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


def _list_reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{site!r}: {reason}" for site, reason in failed.items()) or "its output isn't logits"
