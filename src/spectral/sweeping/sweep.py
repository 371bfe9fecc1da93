"""Measure several networks: a queue of (network, range of images) that any number of jobs work off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from spectral.arguments.values import as_integer, as_path
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.files.atomic import ensure_writable
from spectral.files.json_files import read_json, write_json
from spectral.files.sameness import refuse_other
from spectral.files.writers import claim, cooperate
from spectral.hooks.capture import Tap
from spectral.measurement import measure_part, measure_run, prepare_run
from spectral.measurement.images import describe_seen, name_as_before, refuse_changed
from spectral.measurement.run import Run
from spectral.models import load_model, model_info
from spectral.processes.ranks import Ranks
from spectral.runs.folder import LostImagesError, digest_run, holds_run, read_run
from spectral.runs.lineage import RUNS, find_older, list_runs
from spectral.runs.store import ShardStore
from spectral.runs.summary import SITES_TABLE, SUMMARY_FILE, summarize_measurements, write_summary
from spectral.sweeping.averages import average_sites, read_table
from spectral.sweeping.claims import Claims
from spectral.sweeping.models import name_folders
from spectral.table.csv_files import PROVENANCE, check_tables, refuse_other_tables, write_csvs
from spectral.table.rows import split_reasons
from spectral.table.schema import RUN_FILE, SITES_FILE, SWEEP_FILE, fill_words

QUEUE = "_queue"
TABLE = "networks.csv"
_WAY_OUT = "delete it and run the same command again"
USUAL = (224, 224)  # a network's size, where it isn't known
_POLL = 1.0  # seconds between looks at work that another job has to do first
_BEGIN, _END = "begin", "end"


def sweep(
    models: Sequence[str],
    images: Any = "samples",
    metrics: Sequence[str] | None = None,
    *,
    out: str | Path,
    taps: Sequence[Tap] = ("input", "dense"),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    unit: int = 256,
    device: str = "cpu",
    workers: int | None = None,
    load: Callable[[str], nn.Module] | None = None,
    report: Callable[[str], None] = lambda text: None,
    meet: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Measure several networks on the same images, beside any number of other jobs that do the same.

    The work is a queue of units, a network and a range of images each, claimed by files in ``out``: jobs that
    know nothing of one another, on any hosts that see the folder, call this with the same arguments, and no
    unit is measured by two of them. What a job that ended or died has left is taken over, by a job that runs
    (after 5 minutes without a sign of life, at once on the same host) or the next one. A job returns when
    nothing is left that it could take; the last one finishes the tables.

    Args:
        models: names as `spectral.load_model` takes them; more can be added later.
        images: what `spectral.load_images` takes; each network sees them at its own size.
        metrics: as for `spectral.measure`.
        out: folder that all jobs see. Each network gets one in it, OUT/NETWORK, as ``spectral measure --out``
            writes it: `spectral.read` and that command take it.
        taps: as for `spectral.measure`.
        limit: at most this many images.
        seed: of crops and choices of images.
        batch_size: images per forward pass.
        unit: images per unit; what a job that dies loses at most.
        device: of this job.
        workers: processes that decode images.
        load: loads a network in place of `spectral.load_model`.
        report: is told what is going on, a line at a time.
        meet: is called when nothing is left that this job could take; jobs that end together wait for one
            another there, so that the tables of each have the work of all.

    Returns:
        One row per network: its weights, folder, ``state`` (finished, failed, or unfinished and by whom it is
        being measured), numbers of images and sites, SIS with its interval, the mean over its sites of each
        metric's mean at each tap (``avr_input``, …) and the reason where it couldn't be measured. OUT has
        this table (networks.csv) and the summaries of all networks (summary.csv).

    Raises:
        SpectralError: for no models or images, an ``out`` of another sweep, or one in which files can't be
            claimed. A network that fails doesn't end the sweep.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = sweep(["bundled/resnet20@random"], "synthetic", ["sis"], out=folder, limit=4)
        >>> table[["model", "state", "images"]].values.tolist()
        [['bundled/resnet20@random', 'finished', 4]]
    """
    folders = name_folders(models)
    if not folders:
        raise SpectralError("sweep: there are no models; name at least one")
    folder = as_path(out, "sweep: out")
    plan = _Plan(
        folder, images, metrics, tuple(taps), limit, seed, workers,
        as_integer(batch_size, "sweep: batch_size", least=1), as_integer(unit, "sweep: unit", least=1),
        load or (lambda name: load_model(name, device=device)),
    )  # fmt: skip
    plan.agree(report)
    networks = [_Network(model, folder / name, plan) for model, name in folders.items()]
    _work(networks, report)
    meet()
    return _tabulate(networks, folder, report)


@dataclass(frozen=True)
class _Plan:
    """What all networks of a sweep share."""

    folder: Path
    images: Any
    metrics: Sequence[str] | None
    taps: tuple[Tap, ...]
    limit: int | None
    seed: int
    workers: int | None
    batch_size: int
    unit: int
    load: Callable[[str], nn.Module]
    _sets: dict[Any, ImageSet] = field(default_factory=dict)

    def pictures(self, size: Any = USUAL) -> ImageSet:
        """Return the images, at a network's size."""
        if size not in self._sets:
            self._sets[size] = load_images(self.images, size=size, limit=self.limit, seed=self.seed,
                                           workers=self.workers, lazily=True).keep_decoded()  # fmt: skip
        return self._sets[size]

    @cached_property
    def units(self) -> list[range]:
        """The images of each unit."""
        count = len(self.pictures())
        return [range(at, min(at + self.unit, count)) for at in range(0, count, self.unit)]

    def agree(self, report: Callable[[str], None]) -> None:
        """Make sure that the folder is of this sweep.

        Args:
            report: is told for whom it has to wait.

        Raises:
            SpectralError: if it is of another one, or can't be written.
        """
        ensure_writable(self.folder)
        first = self.pictures()
        own = {"images": first.source, "count": len(first), "seed": self.seed, "unit": self.unit,
               "metrics": sorted(self.metrics) if self.metrics else None,
               "taps": sorted(self.taps)}  # fmt: skip
        path = self.folder / SWEEP_FILE
        if holds_run(self.folder):  # whose tables have the names of a sweep's
            raise SpectralError(f"{self.folder} holds a measurement, not a sweep; choose another folder")
        with Claims(self.folder / QUEUE).waiting("options", report):
            if not os.path.lexists(path):
                tables = [self.folder / name for name in (TABLE, SUMMARY_FILE)]
                refuse_other_tables(tables, {}, self.folder / PROVENANCE)
                write_json(own, path, sealed=True)
            before = read_json(path, sealed=True, way_out=_WAY_OUT)
        for key, value in own.items():
            if before.get(key) != value:
                raise SpectralError(
                    f"{self.folder} holds a sweep with {key} = {before.get(key)}, not {value}; choose "
                    f"another folder or delete it"
                )


class _Network:
    """A network of a sweep, as the files say how far it is.

    Attributes:
        model: its name.
        folder: where its results are.
        failure: why this job can't measure it.
        seen: whether this job has compared it with what the folder holds.
        before: the mark of its end as this job found it.
    """

    def __init__(self, model: str, folder: Path, plan: _Plan) -> None:
        self.model, self.folder, self.plan = model, folder, plan
        self.claims = Claims(folder / QUEUE)
        self.failure = ""
        self.seen = False
        self.before = self.claims.look_at_mark(_END)

    @property
    def rows(self) -> Path:
        """The run's folder."""
        return self.folder / "measurements"

    @property
    def begun(self) -> bool:
        """Whether its run is there, and what can't be measured known."""
        return self.claims.is_done(_BEGIN) and (self.rows / RUN_FILE).exists()

    @property
    def finished(self) -> bool:
        """Whether all is measured and summarised."""
        there = all(path.exists() for path in (self.rows / SITES_FILE, self.folder / SUMMARY_FILE))
        return self.begun and self.claims.is_done(_END) and there

    @property
    def fresh(self) -> bool:
        """Whether a job has finished it, or found it unaltered, since this one began."""
        return self.finished and self.claims.look_at_mark(_END) != self.before

    def list_work(self) -> list[str]:
        """List what can be done now, if nobody else does it."""
        if not self.begun:
            return [_BEGIN]
        done = self.claims.list_done()
        left = [name for at in range(len(self.plan.units)) if (name := f"{at:06d}") not in done]
        return left or ([] if self.finished else [_END])

    def work(self) -> bool:
        """Do what nobody else does; say whether there was anything.

        Raises:
            SpectralError: if it can't be loaded or measured, or its folder is of something else.
        """
        net = self.plan.load(self.model)
        info = model_info(net)
        size = info.preprocessing.size if info is not None else USUAL
        run = prepare_run(net, self.plan.pictures(size), self.plan.metrics, taps=self.plan.taps)
        self.seen, did = True, False
        if not self.begun:
            with self.claims.take(_BEGIN) as mine:
                if not mine:
                    return False
                did = self.begin(run)
        name_as_before(run.images, self.rows, run.config)
        refuse_other(self.rows, read_run(self.rows), run.config, run.identity)
        if self.finished:
            with self.claims.take(_END) as mine:
                if mine:
                    did = self.check(run) or did
            return did
        store = self._join("look")
        refuse_changed(run.images, run.labels, store)
        done = store.finished_images()
        run.resume(store.reasons(), store.measured_sites(), store.known_sites())
        for at, images in enumerate(self.plan.units):
            name = f"{at:06d}"
            if not self.claims.is_done(name):
                with self.claims.take(name) as mine:
                    if mine and not self.claims.is_done(name):
                        self.measure(run, name, [i for i in images if run.images.ids[i] not in done])
                        did = True
        if self.list_work() == [_END]:
            with self.claims.take(_END) as mine:
                if mine and not self.finished:
                    self.end(run)
                    did = True
        return did

    def begin(self, run: Run) -> bool:
        """Open the run, and measure the first batch, which shows what can't be measured."""
        with claim(self.rows):
            store = ShardStore(self.rows, run.config, run.provenance(self.plan.batch_size), run.identity)
            if not store.finished_images():
                run.resume(store.reasons(), store.measured_sites(), store.known_sites())
                first = range(len(run.images))[: self.plan.batch_size]
                rows = measure_part(run, list(first), self.plan.batch_size)
                if len(rows):
                    seen = describe_seen(run.images, run.images.ids[: self.plan.batch_size], run.config)
                    store.append(rows, seen, run.describe_news())
        self.claims.mark(_BEGIN)
        return True

    def measure(self, run: Run, name: str, images: Sequence[int]) -> None:
        """Measure a unit into a shard that is the same whoever writes it."""
        with cooperate(self.rows):
            store = self._join(f"u{name}")
            if any(path.name.startswith(f"shard-u{name}-") for path in store.shards):
                # A job has died before it could say so.
                done = store.finished_images()
                images = [i for i in images if run.images.ids[i] not in done]
            # What can't be measured has its rows from whoever ends the run, once, whoever has found it.
            rows = split_reasons(measure_part(run, list(images), self.plan.batch_size))[0] if images else ()
            if len(rows):
                seen = describe_seen(run.images, [run.images.ids[i] for i in images], run.config)
                store.append(rows, seen, run.describe_news())
        self.claims.mark(name)

    def end(self, run: Run) -> None:
        """Complete the run, and summarise it as ``spectral measure`` does."""
        table = measure_run(run, Ranks(), batch_size=self.plan.batch_size, progress=False, out=self.rows)
        options = {"seed": self.plan.seed, "limit": self.plan.limit, "skipped": run.images.skipped,  # type: ignore[attr-defined]
                   RUNS: list_runs(self.rows, self.folder)}  # fmt: skip
        write_summary(summarize_measurements(table), table, self.folder, options)
        self.claims.mark(_END)

    def check(self, run: Run) -> bool:
        """See that a finished run is what was written; say whether a part of it was made again.

        Raises:
            SpectralError: if what was measured is damaged, or of images that have changed since.
        """
        refuse_changed(run.images, run.labels, self._join("look"))
        try:
            digest = digest_run(self.rows)
        except LostImagesError:
            digest = ""
        if self._has_tables(digest):
            self.claims.mark(_END)  # it is still that network
            return False
        self.end(run)
        return True

    def _has_tables(self, digest: str) -> bool:
        """Whether its tables are what was written, and of the measurements that are there."""
        try:
            check_tables(self.folder)
            beside = read_json(self.folder / PROVENANCE)
            return find_older(beside, self.folder, {self.rows: digest}) is None
        except SpectralError:
            return False

    def _join(self, writer: str) -> ShardStore:
        record = read_run(self.rows)
        return ShardStore.join(self.rows, {"run": record["run"], "parts": record["parts"]}, writer)

    def describe_wait(self) -> str:
        """Say who finds out what of it can be measured, if another job does."""
        owner = self.claims.list_taken().get(_BEGIN)
        return f"{self.model}: waits for {owner}, which finds out what can be measured" if owner else ""

    def describe(self) -> dict[str, Any]:
        """Return its row of the table."""
        row: dict[str, Any] = {"model": self.model, "folder": self.folder.name}
        if not self.failure and self.finished:
            try:
                summary, sites = (read_table(self.folder / name) for name in (SUMMARY_FILE, SITES_TABLE))
                return {**row, "state": "finished", **average_sites(summary, sites)}
            except SpectralError as error:
                self.failure = str(error)
        if self.failure:
            return {**row, "state": "failed", "reason": self.failure}
        owners = ", ".join(sorted(set(self.claims.list_taken().values())))
        return {**row, "state": f"measured by {owners}" if owners else "unfinished"}


def _work(networks: Sequence[_Network], report: Callable[[str], None]) -> None:
    """Do what nobody else does, as long as there is something."""
    said: set[str] = set()
    while True:
        did = False
        # First those that nobody works on, so that few jobs have to load each network.
        for network in sorted(networks, key=lambda one: len(one.claims.list_taken())):
            work = network.list_work()
            if (
                network.failure
                or network.fresh
                or (network.seen and set(work) <= set(network.claims.list_taken()))
            ):
                continue
            report(f"{network.model}: {'is compared' if not work else 'is measured'}")
            try:
                did = network.work() or did
            except (SpectralError, MemoryError, torch.OutOfMemoryError) as error:
                known = isinstance(error, SpectralError)
                network.failure = str(error) if known else "out of memory; try a smaller batch_size"
                report(f"{network.model}: failed: {network.failure}")
        if did:
            continue
        waiting = [one for one in networks if not one.failure and one.list_work() == [_BEGIN]]
        if not waiting:
            return
        for text in {one.describe_wait() for one in waiting} - said - {""}:
            report(text)
            said.add(text)
        time.sleep(_POLL)  # another job finds out what can be measured; then there is work for all


def _tabulate(networks: Sequence[_Network], folder: Path, report: Callable[[str], None]) -> pd.DataFrame:
    """Write the tables of the sweep so far, and return that of the networks."""
    first = ["model", "weights", "folder", "state", "images", "sites", "measurable", "sis", "sis_ci_low",
             "sis_ci_high"]  # fmt: skip
    with Claims(folder / QUEUE).waiting("tables", report):
        table = pd.DataFrame([network.describe() for network in networks])
        rest = [column for column in table.columns if column not in (*first, "reason")]
        table = table.reindex(columns=[*first, *rest, "reason"])
        table["reason"] = fill_words(table["reason"])
        for column in ("images", "sites", "measurable"):
            table[column] = table[column].astype("Int64")
        tables = {folder / TABLE: table}
        done = [read_table(network.folder / SUMMARY_FILE) for network in networks
                if network.finished and not network.failure]  # fmt: skip
        if done:
            tables[folder / SUMMARY_FILE] = pd.concat(done, ignore_index=True)
        write_csvs(tables, {RUNS: list_runs(folder, folder)}, folder / PROVENANCE)
    return table
