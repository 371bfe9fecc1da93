"""The one loop: one forward per batch for spectra, four more for SIS."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from spectral.errors import SpectralError, suggest
from spectral.hooks.capture import Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.identity import Identity, Stillness, identify
from spectral.intake import Feed
from spectral.measurement.description import by, describe_sites, note_failures
from spectral.measurement.images import find_clusters, identify_images, is_listed
from spectral.measurement.meter import Batch, Meter
from spectral.network.inputs import Inputs
from spectral.network.outputs import ADVICE
from spectral.processes.interrupts import raise_kept, undivided
from spectral.sites import Site, find_sites, watch_sites
from spectral.table.csv_files import describe_environment
from spectral.table.rows import Key, Origin, make_reasons, make_rows
from spectral.tracing.standin import needs_data


@dataclass(frozen=True)
class State:
    """What some images have shown of a network.

    Attributes:
        failed: why sites can't be measured.
        verified: sites that can be.
        sites: what is known of each, as `describe_sites` writes it.
    """

    failed: dict[str, str]
    verified: set[str]
    sites: list[dict[str, Any]]


class Run:
    """One measurement in progress: what is measured, and the values of the batch that is running.

    Attributes:
        feed: the images on their way to the model.
        metrics: what is measured.
        missing: metrics of the whole model that can't be, with the reasons.

    Args:
        feed: the images on their way to the model.
        metrics: what is to be measured, as far as the model has it.
        taps: where.
        weights: id of the model's.
        demanded: whether the metrics were asked for by name.
        kept: whether what is found is kept beside which network it is of, or compared with others' rows.
        deferred: as for `Meter`.
    """

    def __init__(
        self,
        feed: Feed,
        metrics: Sequence[str],
        taps: tuple[Tap, ...],
        weights: Future[str],
        *,
        demanded: bool,
        kept: bool = True,
        deferred: bool | None = None,
    ) -> None:
        self._kept, self._weights = kept, weights
        self.feed, self.model, self.images, self.taps = feed, feed.model, feed.images, taps
        _require_names(self.images.ids)
        self.missing: dict[str, str] = {}
        self._demanded = demanded
        self.metrics = self._choose_metrics(metrics, demanded)
        self.sites: list[Site] = []
        self._written: set[Key] = set()  # what has its reason in the rows
        self._stillness = Stillness()
        self._known: dict[str, dict[str, Any]] = {}  # what is known of sites, also of those others have found
        self._late: set[str] = set()  # names of sites that the first image doesn't reach
        self._noted: dict[str, dict[str, Any]] = {}  # what shards say of sites
        self._varies = False  # whether other images may reach other sites
        self._predicts = "sis" in self.metrics or not feed.probe.find_obstacle()[0]
        self._matching = feed.matching
        self._labels = self._matching.renumber(self.images.labels)
        self._meter = Meter(
            feed,
            self.metrics,
            taps,
            predicts=self._predicts,
            list_labels=self._list_labels if self._matching.index else None,
            deferred=deferred,
        )

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self.feed.name

    @property
    def failed(self) -> dict[str, str]:
        """By site, why it can't be measured."""
        return self._meter.failed

    @property
    def verified(self) -> set[str]:
        """Sites whose dense map has been checked, or that have values."""
        return self._meter.verified

    def _choose_metrics(self, asked: Sequence[str], demanded: bool) -> tuple[str, ...]:
        """Return the metrics that the model has; what was asked for by name must be among them."""
        if "sis" not in asked:
            return tuple(asked)
        reason, _ = self.feed.probe.find_obstacle()
        if demanded:
            self.feed.require_scores()
        elif reason:
            self.missing["sis"] = f"{reason}; {ADVICE}"
        if not self.feed.extents:
            self.missing["sis"] = "none of its inputs' axes is known to be spatial"
        if demanded and "sis" in self.missing:
            raise SpectralError(f"measure: {self.name} has no sis: {self.missing['sis']}")
        return tuple(metric for metric in asked if metric not in self.missing)

    def find_sites(self, asked: Sequence[Site | str] | None) -> list[Site]:
        """Return the sites asked for, all of the model's by default."""
        if asked is not None and not any(isinstance(site, str) for site in asked):
            return [site for site in asked if isinstance(site, Site)]
        found = watch_sites(self.model, self.feed.example, self._stillness.watching)
        self._varies = asked is None and needs_data(self.model)
        names = {site.name: site for site in found}
        for site in asked or ():
            if isinstance(site, str) and site not in names:
                raise SpectralError(f"measure: {self.name} has no site {site!r}{suggest(site, names)}")
        return found if asked is None else [names[s] if isinstance(s, str) else s for s in asked]

    def measure_batches(
        self, indices: list[int], batch_size: int
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Yield how many images a batch has, and its rows."""
        clusters = find_clusters(self.images)
        with ExitStack() as listening:
            for batch in self._run_ahead(self._run_batches(indices, batch_size, listening)):
                keys, block = self._meter.settle(batch, self._extractor)
                ids, own = ([names[i] for i in batch.chosen] for names in (self.images.ids, clusters))
                rows = make_rows(self.origin, ids, own, keys, block)
                yield (
                    len(batch.chosen),
                    pa.concat_tables([self._list_reasons(), rows], promote_options="permissive"),
                )

    def conclude(self) -> pa.Table:
        """Return the rows of what couldn't be measured and wasn't said yet, when all images are through.

        Raises:
            SpectralError: if nothing of what was asked for could be.
        """
        for site in self.describe_sites():
            if site["measurable"] and site["name"] not in self.verified:
                self.failed.setdefault(site["name"], "it didn't run on any of the images")
        if self._demanded and self._is_hopeless():
            raise SpectralError(f"{self.name} has nothing to measure: {_join(self.failed)}")
        return self._list_reasons()

    def _run_batches(self, indices: list[int], batch_size: int, listening: ExitStack) -> Iterator[Batch]:
        """Run the model on one batch after the other."""
        versions = _list_versions(self.model)
        self._extractor = listening.enter_context(self._listen())
        for chosen, inputs in self.feed.batches(batch_size, indices=indices):
            raise_kept()
            if self._find_late_sites(inputs):
                listening.close()
                self._extractor = listening.enter_context(self._listen())
            batch = self._meter.measure(inputs, chosen, self._extractor)
            if (now := _list_versions(self.model)) != versions:
                if len(now) > len(versions):
                    raise SpectralError(
                        f"measure: {self.name} makes some of its weights in its first forward pass; run it "
                        f"once, then measure it"
                    )
                raise SpectralError(
                    f"measure: the weights of {self.name} changed while they were measured, as by "
                    f"another thread that trains; measure a copy"
                )
            if batch.keys:
                yield batch
            elif self._is_hopeless():
                break  # else nothing of it ran on these images

    def _run_ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand over each batch once the next is with the device: its values have arrived by then."""
        waiting: Batch | None = None
        try:
            for batch in batches:
                ready, waiting = (waiting, batch) if self._meter.deferred else (batch, None)
                if ready is not None:
                    yield ready
        except SpectralError:
            if waiting is not None:
                yield waiting
            raise
        if waiting is not None:
            yield waiting

    @property
    def _measurable(self) -> list[Site]:
        return [site for site in self.sites if site.measurable]

    @undivided
    def _listen(self) -> FeatureExtractor:
        tap: Tap = "dense" if self._meter.needs_dense else "input"
        return FeatureExtractor(self.model, self._measurable, tap=tap, reduce=self._meter.reduce)

    def _is_hopeless(self) -> bool:
        """Whether no image can have a value: there is no prediction, and each site has failed."""
        return not self._predicts and all(site.name in self.failed for site in self._measurable)

    def _find_late_sites(self, inputs: Inputs) -> bool:
        """Look for sites that the first image didn't reach, where the way of a pass depends on the image."""
        if not self._varies:
            return False
        known = {site.name for site in self.sites}
        with suppress(SpectralError):  # if the model can't run on this batch, the measurement will say so
            late = [site for site in find_sites(self.model, inputs) if site.name not in known]
            self.sites = [*self.sites, *late]
            self._late.update(site.name for site in late)
            return any(site.measurable for site in late)
        return False

    def resume(
        self, reasons: Mapping[Key, str], measured: set[str], sites: Mapping[str, dict[str, Any]]
    ) -> None:
        """Go on behind what an earlier run has written.

        Args:
            reasons: why what has a row without a value couldn't be measured.
            measured: names of the sites that have values.
            sites: what is noted of sites beside the rows, by name.
        """
        self.describe_sites()  # the model's own come first
        for name, site in sites.items():
            self._known.setdefault(name, site)
        self._noted = dict(sites)
        self.failed.update({name: site["reason"] for name, site in sites.items() if site["reason"]})
        self.failed.update({key.site: reason for key, reason in reasons.items() if key.site})
        self.verified.update(measured)
        self._written = set(reasons)

    @property
    def state(self) -> State:
        """What the images so far have shown of the network."""
        return State(dict(self.failed), set(self.verified), self.describe_sites())

    def follow(self, states: Sequence[State]) -> None:
        """Take over what the images of all have shown, in their order: the same on every rank."""
        failed: dict[str, str] = {}
        self._known = {}
        for state in states:
            for site in state.sites:
                self._known.setdefault(site["name"], site)
            failed = {**state.failed, **failed}
            self.verified.update(state.verified)
        self.failed.update(failed)

    def describe_sites(self) -> list[dict[str, Any]]:
        """Describe the sites that the images so far have shown, in the order in which they were found."""
        for site in self.sites:
            if site.name not in self._known:
                self._known[site.name] = describe_sites([site])[0]
        return note_failures(self._known.values(), self.failed)

    def describe_news(self) -> list[dict[str, Any]]:
        """Describe what of the sites only some images show, as far as that isn't noted beside the rows yet.

        With that a run goes on which ends before all that its images have shown is put together.
        """
        new = [
            site
            for site in self.describe_sites()
            if (site["name"] in self._late or site["name"] in self.failed)
            and site != self._noted.get(site["name"])
        ]
        self._noted |= {site["name"]: site for site in new}
        return new

    @cached_property
    def origin(self) -> Origin:
        """What the values are of."""
        images = f"{self.config['images']}@{self.config['images_fingerprint']}"
        return Origin(self.name, self.config["weights"], images)

    def _list_reasons(self) -> pa.Table:
        """Rows of what can't be measured, each once, as soon as that is known."""
        labelled = any(label is not None for label in self.images.labels)
        reasons = {Key(metric): reason for metric, reason in self.missing.items()}
        reasons[Key("label")] = self._matching.reason if labelled and self._predicts else ""
        for site in self.describe_sites():
            key = Key("", site["name"], site["call"], site["op"], site["stride"])
            reasons[key] = site["reason"] or ""
        new = {key: why for key, why in reasons.items() if why and key not in self._written}
        self._written |= set(new)
        return make_reasons(self.origin, new)

    @property
    def labels(self) -> dict[str, int]:
        """Class of each image that has one in the rows, in the network's numbering."""
        told = self._labels if self._predicts and self._matching.index else ()
        return {
            image: label for image, label in zip(self.images.ids, told, strict=False) if label is not None
        }

    def _list_labels(self, chosen: Sequence[int]) -> list[float]:
        labels = [self._labels[i] for i in chosen]
        return [np.nan if label is None else label for label in labels]

    @cached_property
    def identity(self) -> Identity:
        """Which network it is, as it is now."""
        # A pass without data may change less than one of images does: it counts for what is kept.
        still = self._stillness.known and not self._kept
        return identify(self.model, self.feed.example, still=still, weights=self._weights)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What determines every value; two runs with equal configurations may share a folder."""
        return {
            "model": self.name,
            "weights": self.identity.weights,
            "structure": self.identity.structure,
            "images": self.images.source,
            "images_fingerprint": identify_images(self.images),
            "image_count": len(self.images),
            "image_size": list(self.images.size) if self.images.size else None,
            "preprocessing": self.feed.describe_preparation(),
            "logits": self.feed.describe_logits(),
            "metrics": sorted(self.metrics),
            "taps": sorted(self.taps),
            "sites": [f"{s.name} {s.op} {by(s.kernel)} stride {by(s.stride)}" for s in self.sites],
            "dtype": str(self.feed.image_type).removeprefix("torch."),
        }

    def provenance(self, batch_size: int) -> dict[str, Any]:
        """All that a repetition needs: the configuration, what was assumed, versions and device."""
        device = self.feed.device
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        known = self.feed.preparation.origin if self.feed.normalises else "passed as given"
        facts = {"preprocessing_from": known, **self._describe_images(), "not_measured": dict(self.missing)}
        if is_listed(self.config):
            del facts["enlarged"]  # what is known of it now depends on what was read before
        return {**self.config, **facts, "batch_size": batch_size, **describe_environment(), "device": named}

    def _describe_images(self) -> dict[str, Any]:
        return {"notes": list(self.feed.notes), "enlarged": len(self.feed.enlarged)}

    def conclude_images(self) -> dict[str, Any]:
        """Return what of the provenance is only known when all images have been read."""
        self.feed.conclude()
        skipped = list(getattr(self.images, "skipped", ()))
        return {"images_fingerprint": self.images.fingerprint, **self._describe_images(), "skipped": skipped}


def _list_versions(model: nn.Module) -> list[tuple[int, int]]:
    """Return where each weight is and how often it was written to."""
    return [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]


def _require_names(ids: Sequence[str]) -> None:
    """Make sure that each image has a name of its own, which tables can hold.

    Raises:
        SpectralError: naming one that hasn't.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise SpectralError(f"measure: two images are called {name!r}; give each a name of its own")
        if not isinstance(name, str) or not name or _is_broken(name):
            raise SpectralError(f"measure: an image's name must be text, in UTF-8, got {name!r}")
        seen.add(name)


def _is_broken(text: str) -> bool:
    return text.encode("utf-8", "ignore").decode() != text


def _join(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{site!r}: {reason}" for site, reason in failed.items()) or "its output isn't logits"
