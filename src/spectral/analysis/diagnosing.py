"""Where a network aliases, how much, whether it matters and what fixes it: every analysis, in one call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from spectral.analysis.details import inspect_sites
from spectral.analysis.diagnosis import (
    MEASUREMENTS,
    Diagnosis,
    join_sites,
    read_details,
    read_unstable,
    write_tables,
)
from spectral.analysis.examples import find_unstable_images
from spectral.analysis.fixes import DEFAULT_METHODS, LEFT_OUT, measure_fixes
from spectral.analysis.folder import Folder, describe_change
from spectral.analysis.pace import Deadline, time_budget, time_pass
from spectral.arguments import as_path, as_positive
from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.data import ImageSet
from spectral.data.subset import Subset, spread_over_clusters
from spectral.errors import SpectralError, SpectralWarning, StorageError
from spectral.identity import identify
from spectral.intake import Feed
from spectral.measurement import describe_sites, measure
from spectral.models import model_info
from spectral.network import Take
from spectral.ranks import find_ranks, hold, shared
from spectral.sites import find_sites
from spectral.stability import measure_stability, summarize_stability
from spectral.store import list_provenance
from spectral.summary import summarize_measurements
from spectral.surgery import check_methods, conversion_report, convert
from spectral.table import describe_environment

CALLER = "diagnose"
METRICS = ("alias_power_ratio", "avr")
DETAIL_IMAGES = 4
ON_CPU, ELSEWHERE = 4, 32  # images per forward pass
MINUTES = 2.0  # for the whole, on as many images as it is enough for
FIX_IMAGES = 6  # at least, if there are as many: what they leave no time for is left out
FIX_PASSES = 7  # of a variant, for each image: five for SIS, two for aliases
FIX_OVERHEAD = 30  # passes more, to make a variant, find its sites and time it
BUDGET_IMAGES = 2, 32  # at least, at most
BUDGET_SHARE = 0.45  # of the time that is left, the rest being for layers
BUDGET_FACTOR = 2


@shared
def diagnose(
    model: nn.Module,
    images: Any,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    fix_images: int | None = None,
    budget_images: int | None = None,
    minutes: float | None = MINUTES,
    batch_size: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    name: str | None = None,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> Diagnosis:
    """Say where a network aliases, how much, whether it matters, and what would fix it.

    Measures the alias power ratio and AVR at every site, SIS and what stands beside it, shows the images
    that are least stable, says which causes make it unstable, and tries anti-aliasing layers without training
    (`measure_fixes`). What can't be had of this network is left out and named with the reason.

    Args:
        model: the network.
        images: as for `spectral.measure`.
        methods: layers to try, as `spectral.convert` names them; the first is also tried at each site alone.
        fix_images: on how many images layers are tried, however long that takes; by default as many as
            ``minutes`` allow, at least 6.
        budget_images: on how many images the causes of the instability are told apart
            (`spectral.measure_instability_budget`), however long that takes; by default as many as
            ``minutes`` allow, 2 to 32, or none; 0 leaves it out.
        minutes: about how long the whole may take. What decides is how fast the network turns out to be:
            causes and layers are measured on fewer images, and what isn't reached is listed with the reason.
            ``facts["decided"]`` says what was decided, and the same folder continues with that. None sets no
            limit.
        batch_size: images per forward pass; by default 4 on a CPU, whose caches hold the maps of so many, and
            32 elsewhere.
        out: folder that keeps what is measured: the same call continues after an interruption.
        progress: show bars.
        name: what tables call the model.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Raises:
        SpectralError: for no images, an unknown layer, a model that can't be run on them, or an ``out`` that
            can't be written or holds something else; on every rank of a process group if one fails or ends.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> found = diagnose(net, torch.rand(3, 3, 16, 16), methods=("flc",), progress=False)
        >>> found.sites["name"].tolist(), found.fixes["site"].tolist()
        (['0'], ['all sites', '0'])
    """
    if not methods:
        raise SpectralError(f"{CALLER}: methods names no layer; name some, such as ('blurpool', 'flc')")
    check_methods(methods, f"{CALLER}: ")  # before a folder is claimed for them
    deadline = Deadline(None if minutes is None else as_positive(minutes, f"{CALLER}: minutes"))
    notes: list[str] = []
    with _collecting(notes):
        feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits, name=name)
        if isinstance(feed.images, ImageSet):
            feed.images = feed.images.keep_decoded()  # for all steps
    path = None if out is None else as_path(out, f"{CALLER}: out")
    with hold(path, find_ranks()) if path is not None else nullcontext():
        network = identify(model, feed.example)
        config = {
            "model": feed.name, "weights": network.weights, "structure": network.structure,
            "images": f"{feed.images.source}@{feed.images.fingerprint}", "image_count": len(feed.images),
            "image_size": list(feed.images.size) if feed.images.size else None,
            "preprocessing": feed.preparation.describe() if feed.normalises else None,
            "logits": feed.describe_logits(), "methods": list(methods), "fix_images": fix_images,
            "budget_images": budget_images, "minutes": deadline.minutes,
        }  # fmt: skip
        if batch_size is None:
            batch_size = ON_CPU if feed.device.type == "cpu" else ELSEWHERE
        now = {**describe_environment(), "device": str(feed.device), "batch_size": batch_size}
        folder = Folder(path, config, network, now)
        steps = _Steps(model, feed, folder, batch_size, progress, notes, deadline)
        found = Diagnosis({**config, **now})
        steps.measure_stability(found)
        steps.measure_sites(found)
        steps.show_unstable(found)
        steps.inspect(found)
        steps.measure_budget(found, budget_images)
        steps.try_fixes(found, methods, fix_images)
        return steps.finish(found)


class _Steps:
    """The steps of a diagnosis: each fills in its part, or a reason why there is none."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        folder: Folder,
        batch_size: int,
        progress: bool,
        notes: list[str],
        deadline: Deadline,
    ) -> None:
        self.model, self.feed, self.folder, self.progress, self.notes = model, feed, folder, progress, notes
        self.options: dict[str, Any] = {
            "preprocessing": feed.preparation if feed.normalises else None, "logits": feed.logits,
        }  # fmt: skip
        self.batches: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.deadline = deadline
        self.decided: dict[str, Any] = {}
        self.missing: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time a step; note why it can't be done where it can't."""
        start = time.perf_counter()
        with _collecting(self.notes):
            try:
                with find_ranks().agreeing():
                    yield
            except StorageError:
                raise
            except SpectralError as error:
                self.missing[what] = str(error)
        self.seconds[what] = round(time.perf_counter() - start, 2)

    def few(self, count: int) -> Subset:
        """Return some of the images, from as many photographs as possible."""
        return Subset(self.feed.images, spread_over_clusters(self.feed.images.clusters, count))

    def measure_stability(self, found: Diagnosis) -> None:
        """SIS, logit jitter and changed predictions."""
        with self.step("stability"):
            found.per_image = self.folder.table(
                "per_image",
                lambda: measure_stability(
                    self.model, self.feed.images, comb=False, **self.batches, **self.options
                ).assign(model=self.feed.name),
            )
            found.stability = self.folder.table("stability", lambda: summarize_stability(found.per_image))
            whole = found.stability
            self.missing |= {
                row["metric"]: row["reason"] for row in whole[whole["reason"] != ""].to_dict("records")
                if row["metric"] != "comb_contrast"  # which wasn't asked for
            }  # fmt: skip

    def measure_sites(self, found: Diagnosis) -> None:
        """Alias power ratio and AVR at every site."""
        out = None if self.folder.path is None else self.folder.path / MEASUREMENTS
        with self.step("aliasing at the sites"):
            sites = find_sites(self.model, self.feed.example)
            found.sites = pd.DataFrame(describe_sites(sites))
            table = measure(
                self.model, self.feed.images, METRICS, sites=sites, out=out, name=self.feed.name,
                **self.batches, **self.options,
            )  # fmt: skip
            found.sites = pd.DataFrame(table.attrs["sites"])
            found.summary = self.folder.table("summary", lambda: summarize_measurements(table))
        reasons = found.sites[~found.sites["measurable"].astype(bool)] if len(found.sites) else found.sites
        self.missing |= {f"site {row['name']}": str(row["reason"]) for row in reasons.to_dict("records")}

    def show_unstable(self, found: Diagnosis) -> None:
        """The least stable images."""
        if len(found.per_image):
            with self.step("least stable images"):
                found.unstable = read_unstable(
                    self.folder,
                    lambda: find_unstable_images(
                        self.model, self.feed.images, found.per_image, **self.options
                    ),
                )

    def inspect(self, found: Diagnosis) -> None:
        """Spectra and maps."""
        with self.step("spectra of the sites"):
            found.details = read_details(
                self.folder, lambda: inspect_sites(self.model, self.few(DETAIL_IMAGES), **self.options)
            )

    def measure_budget(self, found: Diagnosis, count: int | None) -> None:
        """Say what of the instability decimation, nonlinearities and borders cause."""
        if count == 0:
            return
        with self.step("instability budget"):
            decided = self.folder.record("decided_budget", lambda: self._afford_budget(count))
            self.decided["budget_images"] = decided["images"]
            if not decided["images"]:
                raise SpectralError(decided["reason"])
            few = self.few(decided["images"])
            options = {"factor": BUDGET_FACTOR, **self.batches, **self.options}
            found.budget = self.folder.table(
                "budget",
                lambda: summarize_instability_budget(
                    measure_instability_budget(self.model, few, **options)
                ).assign(model=self.feed.name),
            )

    def _afford_budget(self, count: int | None) -> dict[str, Any]:
        """Decide on how many images causes are told apart; none with the reason."""
        least, most = BUDGET_IMAGES
        if count is not None:
            return {"images": min(count, len(self.feed.images))}
        each = time_budget(self.feed, time_pass(self.feed), BUDGET_FACTOR)
        most = min(most, len(self.feed.images))
        allowed = self.deadline.allow(each, BUDGET_SHARE, most)
        if allowed >= min(least, most):
            return {"images": allowed}
        return {"images": 0, "reason": (
            f"left out, since an image takes about {each:.2g} s and the time that was left was enough for "
            f"{allowed} of {least}; {_describe_alone(self.model)} measures it alone, more minutes "
            f"or budget_images here"
        )}  # fmt: skip

    def try_fixes(self, found: Diagnosis, methods: Sequence[str], count: int | None) -> None:
        """Layers in place of the sites."""
        with self.step("what fixes it"):
            report = conversion_report(convert(self.model, methods[0], example=self.feed.example))
            self.missing |= {f"fix of {row.site}": str(row.reason) for row in report.rows if not row.replaced}
            if not report.replaced:
                raise SpectralError("no site can be replaced by a layer, for the reasons that are listed")
            variants = len(methods) + len(report.units)
            decided = self.folder.record("decided_fixes", lambda: self._afford_fixes(count, variants))
            self.decided["fix_images"] = decided["images"]
            found.fixes = self.folder.table(
                "fixes",
                lambda: measure_fixes(
                    self.model, self.few(decided["images"]), methods, store=self.folder.table,
                    stability=found.per_image if len(found.per_image) else None,
                    seconds=None if count is not None else self.deadline.left(),
                    **self.batches, **self.options,
                ).assign(model=self.feed.name),
            )  # fmt: skip
            late = found.fixes[found.fixes["reason"].str.startswith(LEFT_OUT)]
            if len(late):
                what = f"{len(late)} of {len(found.fixes)} layers and places"
                self.missing[what] = f"{late['reason'].iloc[0]}; more minutes here reach them"

    def _afford_fixes(self, count: int | None, variants: int) -> dict[str, Any]:
        """Decide on how many images layers are tried."""
        every = len(self.feed.images)
        if count is not None:
            return {"images": min(count, every)}
        plain = time_pass(self.feed)
        # The first have to be worth it; what they leave no time for is left out.
        passes = self.deadline.allow(variants * plain, most=FIX_OVERHEAD + FIX_PASSES * every)
        return {"images": min(max((passes - FIX_OVERHEAD) // FIX_PASSES, FIX_IMAGES), every)}

    def finish(self, found: Diagnosis) -> Diagnosis:
        """Join what belongs together, and write it down."""
        found.sites = join_sites(found)
        missing = [{"what": what, "reason": reason} for what, reason in self.missing.items()]
        found.missing = pd.DataFrame(missing, columns=["what", "reason"])
        made = self.folder.list_circumstances()
        changes = [describe_change(*pair) for pair in pairwise(made)]
        self.notes += [change for change in changes if change not in self.notes]
        first = {key: value for key, value in made[0].items() if key != "parts"}
        found.facts = list_provenance(found.facts | first, made)
        found.facts |= {"notes": self.notes, "seconds": self.seconds, "decided": self.decided}
        if self.folder.path is not None:
            found.facts = self.folder.record("facts", lambda: found.facts)
            find_ranks().once(lambda: write_tables(found, self.folder))
            self.folder.table("missing", lambda: found.missing)
            self.folder.table("sites", lambda: found.sites)
            self.folder.finish()
        return found


def _describe_alone(model: nn.Module) -> str:
    """Say how the causes of instability are told apart without the rest of a diagnosis."""
    known = model_info(model)
    if known is None:
        return "spectral.measure_instability_budget(model, images)"
    return f"`spectral budget {known.name} --limit 4`, with the same --images and weights,"


@contextmanager
def _collecting(notes: list[str]) -> Iterator[None]:
    """Let each warning of the steps out once, whichever of them says it, and note it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpectralWarning)
        yield
    for one in caught:
        text = str(one.message).partition(": ")[2] if issubclass(one.category, SpectralWarning) else ""
        if text and text not in notes:
            notes.append(text)
            warnings.warn(f"{CALLER}: {text}", SpectralWarning, stacklevel=4)
