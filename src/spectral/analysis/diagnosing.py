"""Where a network aliases, how much, whether it matters and what fixes it: every analysis, in one call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    list_reasons,
    read_details,
    read_unstable,
    refuse_other_diagnosis,
    write_tables,
)
from spectral.analysis.examples import find_unstable_images
from spectral.analysis.fixes import DEFAULT_METHODS, LEFT_OUT, measure_fixes
from spectral.analysis.folder import Folder, describe_change
from spectral.analysis.levels import ABOVE, MEDIAN, NINETIETH, NOISE, POOLED
from spectral.analysis.pace import Deadline, Step, Stopwatch
from spectral.arguments.values import as_list, as_path, as_positive
from spectral.budget import measure_instability_budget, summarize_instability_budget
from spectral.data import Images, ImageSet, digest_labels
from spectral.data.subset import Subset, spread_over_clusters
from spectral.errors import SpectralError, SpectralWarning, StorageError
from spectral.hooks.capture import Tap
from spectral.identity import identify
from spectral.intake import Feed
from spectral.measurement import describe_sites, measure
from spectral.models import model_info
from spectral.network import Take
from spectral.processes.ranks import find_ranks, hold, shared
from spectral.runs.folder import list_provenance
from spectral.runs.summary import summarize_measurements
from spectral.sharing import compare_feeds
from spectral.sites import check_hookable, find_sites
from spectral.stability import measure_stability, summarize_stability
from spectral.surgery import check_methods, conversion_report, convert
from spectral.table.csv_files import describe_environment

CALLER = "diagnose"
METRICS = (MEDIAN, NINETIETH, NOISE, POOLED, "avr", ABOVE)
TAPS: tuple[Tap, ...] = ("input", "dense", "signal")
DETAIL_IMAGES = 4
ON_CPU, ELSEWHERE = 4, 32  # images per forward pass
MINUTES = 2.0  # for the whole, on as many images as it is enough for
SITES = Step(0.3, least=2, insists=True)
STABILITY = Step(0.4, least=2, insists=True)
CIRCULAR_SHARE = 0.2  # what SIS with circular borders may take: budgets tell of borders too
CAUSES = Step(0.3, least=2)
MOST_BUDGET_IMAGES = 32
FIX_IMAGES = 6  # that are worth more than another layer is
FEWEST_FIX_IMAGES = 2  # on which one is tried at all
FIX_PASSES = 8  # of a variant, for each image: five for SIS, three for aliases
FIX_OVERHEAD = 30  # passes more, to make a variant, find its sites and time it
BUDGET_FACTOR = 2
NO_CIRCULAR = (
    "left out, since it takes as long as SIS; spectral.measure_stability(model, images) measures it, or more "
    "minutes here"
)


@shared
def diagnose(
    model: nn.Module,
    images: Any,
    *,
    methods: str | Sequence[str] = DEFAULT_METHODS,
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

    Measures the alias power ratios and AVR at every site, SIS and what stands beside it, shows the images
    that are least stable, says which causes make it unstable, and tries anti-aliasing layers without training
    (`measure_fixes`). What can't be had of this network is left out and named with the reason.

    Args:
        model: the network.
        images: as for `spectral.measure`.
        methods: layers to try, as `spectral.convert` names them; the first is also tried at each site alone.
        fix_images: on how many images layers are tried, however long that takes; by default as many as
            ``minutes`` allow, 6 if they allow one layer on as many; those come first that are at all sites,
            then single sites, the loudest first.
        budget_images: on how many images the causes of the instability are told apart
            (`spectral.measure_instability_budget`), however long that takes; by default as many as
            ``minutes`` allow, 2 to 32, or none; 0 leaves it out.
        minutes: about how long the whole may take. What decides is how fast the network turns out to be:
            sites, stability, causes and layers are measured on fewer images, the first two on 2 at least, and
            what isn't reached is listed with the reason and the call that does it. ``facts["decided"]``
            says what was decided, and the same folder continues with that. None sets no limit.
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
    methods = as_list(methods)
    if not methods:
        raise SpectralError(f"{CALLER}: methods names no layer; name some, such as ('blurpool', 'flc')")
    check_methods(methods, f"{CALLER}: ")  # before a folder is claimed for them
    check_hookable(model)  # else no part could be had
    deadline = Deadline(None if minutes is None else as_positive(minutes, f"{CALLER}: minutes"))
    notes: list[str] = []
    with _collecting(notes):
        feed = Feed(model, images, caller=CALLER, preprocessing=preprocessing, logits=logits, name=name)
        if isinstance(feed.images, ImageSet):
            feed.images = feed.images.keep_decoded()  # for all steps
    compare_feeds(feed)
    path = None if out is None else as_path(out, f"{CALLER}: out")
    with hold(path, find_ranks()) if path is not None else nullcontext():
        network = identify(model, feed.example)
        config = {
            "model": feed.name, "weights": network.weights, "structure": network.structure,
            "images": f"{feed.images.source}@{feed.images.fingerprint}", "image_count": len(feed.images),
            "labels": digest_labels(feed.matching.renumber(feed.images.labels)),
            "image_size": list(feed.images.size) if feed.images.size else None,
            "preprocessing": feed.describe_preparation(),
            "logits": feed.describe_logits(), "metrics": list(METRICS),
            "methods": list(methods), "fix_images": fix_images, "budget_images": budget_images,
            "minutes": deadline.minutes,
        }  # fmt: skip
        if batch_size is None:
            batch_size = ON_CPU if feed.device.type == "cpu" else ELSEWHERE
        now = {**describe_environment(), "device": str(feed.device), "batch_size": batch_size}
        if path is not None:
            find_ranks().once(lambda: refuse_other_diagnosis(path, config))
        folder = Folder(path, config, network, now)
        steps = _Steps(model, feed, folder, batch_size, progress, notes, deadline)
        found = Diagnosis({**config, **now})
        steps.measure_sites(found)
        steps.measure_stability(found)
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
        self.deadline, self.watch = deadline, Stopwatch(feed, batch_size)
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

    def some(self, count: int) -> Images:
        """Return so many of the images, which may be all."""
        return self.feed.images if count >= len(self.feed.images) else self.few(count)

    def few(self, count: int) -> Subset:
        """Return some of the images, from as many photographs as possible."""
        return Subset(self.feed.images, spread_over_clusters(self.feed.images.clusters, count))

    def decide(
        self, what: str, step: Step, asked: int | None, each: Callable[[], float], most: int | None = None
    ) -> dict[str, Any]:
        """Decide on how many images a step is done, once for all runs of a folder.

        Returns:
            images and, where these aren't all, each (the seconds that one takes) and until (the minutes that
            would be enough).
        """

        def plan() -> dict[str, Any]:
            every = len(self.feed.images)
            enough = every if most is None else min(most, every)
            if asked is not None:
                return {"images": min(asked, every)}
            if self.deadline.minutes is None:
                return {"images": enough}
            seconds = each()
            count = step.plan(self.deadline, seconds, enough)
            if count == enough:
                return {"images": count}
            until = self.deadline.extend((enough - count) * seconds)
            return {"images": count, "each": seconds, "until": until}

        decided = self.folder.decide(what, plan)
        self.decided[f"{what}_images"] = decided["images"]
        return decided

    def note_few(self, what: str, decided: Mapping[str, Any], alone: str) -> None:
        """Say on how many images a step was done, where time was short, and how it is done on all."""
        count, every = decided["images"], len(self.feed.images)
        if decided.get("until"):
            self.missing[f"{what} of {every - count} of {every} images"] = (
                f"left out, since an image takes about {decided['each']:.2g} s; {alone} measures all, or "
                f"here {self._ask(decided['until'])}"
            )

    def _ask(self, minutes: int) -> str:
        return f"`--minutes {minutes}`" if model_info(self.model) else f"minutes={minutes}"

    def measure_sites(self, found: Diagnosis) -> None:
        """Alias power ratio and AVR at every site."""
        out = None if self.folder.path is None else self.folder.path / MEASUREMENTS
        with self.step("aliasing at the sites"):
            sites = find_sites(self.model, self.feed.example)
            found.sites = pd.DataFrame(describe_sites(sites))
            decided = self.decide(
                "site", SITES, None, lambda: self.watch.sites(sites, METRICS, TAPS) + self.watch.reading
            )
            table = measure(
                self.model, self.some(decided["images"]), METRICS, sites=sites, taps=TAPS, out=out,
                name=self.feed.name, **self.batches, **self.options,
            )  # fmt: skip
            found.sites = pd.DataFrame(table.attrs["sites"])
            found.summary = self.folder.table("summary", lambda: summarize_measurements(table))
            self.note_few("aliasing at the sites", decided, _call("measure", self.model))

    def measure_stability(self, found: Diagnosis) -> None:
        """SIS, logit jitter and changed predictions."""
        with self.step("stability"):
            self.feed.require_scores()
            decided = self.decide("stability", STABILITY, None, lambda: self.watch.views)
            count = decided["images"]
            circular = self.folder.decide("circular", lambda: {
                "there": self.deadline.minutes is None
                or self.deadline.allow(2 * self.watch.views, CIRCULAR_SHARE, count) == count
            })["there"]  # fmt: skip
            found.per_image = self.folder.table(
                "per_image",
                lambda: measure_stability(
                    self.model, self.some(count), comb=False, circular=circular,
                    **self.batches, **self.options,
                ).assign(model=self.feed.name),
            )  # fmt: skip
            found.stability = self.folder.table("stability", lambda: _summarize(found.per_image, circular))
            whole = found.stability
            self.missing |= {
                row["metric"]: row["reason"] for row in whole[whole["reason"] != ""].to_dict("records")
                if row["metric"] != "comb_contrast"  # which wasn't asked for
            }  # fmt: skip
            self.note_few("stability", decided, "spectral.measure_stability(model, images)")

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
            decided = self.decide(
                "budget", CAUSES, count, lambda: self.watch.causes(BUDGET_FACTOR), MOST_BUDGET_IMAGES
            )
            if not decided["images"]:
                raise SpectralError(
                    f"left out, since an image takes about {decided['each']:.2g} s and the time that was "
                    f"left wasn't enough for {CAUSES.least}; {_call('budget', self.model)} measures it "
                    f"alone, or here budget_images={CAUSES.least} or {self._ask(decided['until'])}"
                )
            few = self.few(decided["images"])
            options = {"factor": BUDGET_FACTOR, **self.batches, **self.options}
            found.budget = self.folder.table(
                "budget",
                lambda: summarize_instability_budget(
                    measure_instability_budget(self.model, few, **options)
                ).assign(model=self.feed.name),
            )

    def try_fixes(self, found: Diagnosis, methods: Sequence[str], count: int | None) -> None:
        """Layers in place of the sites."""
        with self.step("what fixes it"):
            report = conversion_report(convert(self.model, methods[0], example=self.feed.example))
            self.missing |= {f"fix of {row.site}": str(row.reason) for row in report.rows if not row.replaced}
            if not report.replaced:
                raise SpectralError("no site can be replaced by a layer, for the reasons that are listed")
            variants = len(methods) + len(report.units)
            decided = self.folder.decide("fix", lambda: self._plan_fixes(count, variants))
            self.decided["fix_images"] = decided["images"]
            if not decided["images"]:
                raise SpectralError(
                    f"left out, since a layer takes about {decided['each']:.2g} s; "
                    f"spectral.analysis.measure_fixes(model, images) tries them, or here "
                    f"fix_images={FIX_IMAGES} or {self._ask(decided['until'])}"
                )
            few, known = self.few(decided["images"]), found.per_image
            covered = len(known) > 0 and set(few.ids) <= set(known["image"])
            found.fixes = self.folder.table(
                "fixes",
                lambda: measure_fixes(
                    self.model, few, methods, store=self.folder.table, stability=known if covered else None,
                    seconds=None if count is not None else self.deadline.left(),
                    **self.batches, **self.options,
                ).assign(model=self.feed.name),
            )  # fmt: skip
            late = found.fixes[found.fixes["reason"].str.startswith(LEFT_OUT)]
            if len(late):
                more = self.deadline.extend(len(late) * decided["each"])
                self.missing[f"{len(late)} of {len(found.fixes)} layers and places"] = (
                    f"{late['reason'].iloc[0]}; {self._ask(more)} reaches them, or "
                    f"spectral.analysis.measure_fixes(model, images)"
                )

    def _plan_fixes(self, count: int | None, variants: int) -> dict[str, Any]:
        """Decide on how many images layers are tried: all layers, or else so few that one is worth it."""
        every = len(self.feed.images)
        if count is not None or self.deadline.minutes is None:
            return {"images": min(count or every, every), "each": 0.0}
        image = FIX_PASSES * self.watch.plain
        overhead = FIX_OVERHEAD * self.watch.plain
        rest = self.deadline.left() / variants - overhead
        images = min(max(int(rest / image), FIX_IMAGES), every)
        if overhead + images * image > self.deadline.left():  # not even one
            images = int((self.deadline.left() - overhead) / image)
            images = images if images >= FEWEST_FIX_IMAGES else 0
        each = overhead + (images or FIX_IMAGES) * image
        return {"images": images, "each": each, "until": self.deadline.extend(variants * each)}

    def finish(self, found: Diagnosis) -> Diagnosis:
        """Join what belongs together, and write it down."""
        found.sites = join_sites(found)
        self.missing |= list_reasons(found.sites)
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


def _summarize(per_image: pd.DataFrame, circular: bool) -> pd.DataFrame:
    found = summarize_stability(per_image)
    if not circular:  # a choice made here: the caller knows of no such keyword
        found.loc[found["metric"] == "sis_circular", "reason"] = NO_CIRCULAR
    return found


def _call(command: str, model: nn.Module) -> str:
    """Say how something is measured without the rest of a diagnosis."""
    known, function = model_info(model), {"budget": "measure_instability_budget"}.get(command, command)
    if known is None:
        return f"spectral.{function}(model, images)"
    limit = " --limit 4" if command == "budget" else ""
    return f"`spectral {command} {known.name}{limit}`, with the same --images and weights,"


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
