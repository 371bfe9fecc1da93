"""A measurement from its first batch to its table: what is finished, which rank does what, what is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from spectral.data import ListedImages
from spectral.errors import SpectralError
from spectral.measurement.images import (
    describe_seen,
    is_listed,
    name_as_before,
    refuse_changed,
    sample_digests,
)
from spectral.measurement.run import Run
from spectral.network import undisturbed
from spectral.processes.ranks import Ranks, hold
from spectral.runs.folder import list_provenance
from spectral.runs.store import ShardStore
from spectral.runs.summary import describe_measurement
from spectral.sharing import compare_ranks
from spectral.table.attributes import share_facts
from spectral.table.lazy import gather
from spectral.table.rows import make_reasons, name_images

_VISIBLE = 120.0  # seconds within which a file that one host has written must show on another


def measure_run(run: Run, ranks: Ranks, *, batch_size: int, progress: bool, out: Path | None) -> pd.DataFrame:
    """Measure what isn't in the folder yet, and return all of the table.

    Args:
        run: what is measured.
        ranks: who shares the images. The rows are those of one process: the first rank measures the first
            batch, on which it is found out what can't be measured, and alone writes what couldn't be.
        batch_size: images per forward pass.
        progress: show a bar, on the first rank.
        out: folder for Parquet shards.

    Raises:
        SpectralError: if ranks see different images or networks, or one of them fails or ends; as `measure`.
    """
    if out is not None:
        with ranks.telling():
            name_as_before(run.images, out, run.config)
    batch_size = _compare(run, ranks, batch_size, out)
    with hold(out, ranks) if out is not None else nullcontext():
        return _Job(run, ranks, batch_size, out).measure(progress and ranks.first)


def _compare(run: Run, ranks: Ranks, batch_size: int, out: Path | None) -> int:
    """Make sure that all ranks measure the same, and return the first one's batch size."""
    if ranks.count == 1:
        return batch_size
    with ranks.telling():
        facts = {"written": out is not None, "some_images": sample_digests(run.images)}
    compare_ranks(ranks, {**run.config, **facts}, run.identity)
    return ranks.exchange(batch_size)[0]


def measure_part(run: Run, images: list[int], batch_size: int) -> pa.Table:
    """Return the rows of some images, and of what they show that can't be measured.

    Args:
        run: what is measured.
        images: their places in the set.
        batch_size: images per forward pass.
    """
    with undisturbed(run.model), torch.no_grad(), closing(run.measure_batches(images, batch_size)) as batches:
        tables = [rows for _, rows in batches]
    return pa.concat_tables(tables, promote_options="permissive") if tables else make_reasons(run.origin, {})


class _Job:
    """A run on its way into a table."""

    def __init__(self, run: Run, ranks: Ranks, batch_size: int, out: Path | None) -> None:
        self.run, self.ranks, self.batch_size = run, ranks, batch_size
        self.provenance = run.provenance(batch_size) | ({"ranks": ranks.count} if ranks.count > 1 else {})
        self.kept: list[pa.Table] = []
        self.store: ShardStore | None = None
        self.done: set[str] = set()
        if out is not None:
            self._open(out)

    def _open(self, out: Path) -> None:
        """Open the folder: the first rank looks what is there, the others join it."""
        run, ranks = self.run, self.ranks
        found: dict[str, Any] = {}
        with ranks.agreeing():
            if ranks.first:
                self.store = ShardStore(out, run.config, self.provenance, run.identity)
                refuse_changed(run.images, run.labels, self.store)
                found = {"done": self.store.finished_images(), "reasons": self.store.reasons(),
                         "measured": self.store.measured_sites(), "sites": self.store.known_sites(),
                         **self.store.invitation}  # fmt: skip
        found = ranks.exchange(found)[0]
        self.done = found["done"]
        if not ranks.first:
            self.store = ShardStore.join(out, found, f"r{ranks.rank:03d}")
        run.resume(found["reasons"], found["measured"], found["sites"])

    def measure(self, progress: bool) -> pd.DataFrame:
        """Measure what is left, and return all there is."""
        run, ranks, ids = self.run, self.ranks, self.run.images.ids
        left = [i for i, image in enumerate(ids) if image not in self.done]
        # What a site's first batch shows holds for all images, so one rank finds it out.
        alone = self.batch_size if ranks.count > 1 and not self.done else 0
        bar = tqdm(total=len(ids), initial=len(ids) - len(left), unit="image",
                   desc=f"measuring {run.name}", disable=not progress)  # fmt: skip
        with bar, undisturbed(run.model), torch.no_grad():
            if alone:
                with ranks.agreeing():
                    if ranks.first:
                        bar.update(self._measure_part(left[:alone]))
                run.follow(ranks.exchange(run.state)[:1])
            before = bar.n
            done = self._measure_part(ranks.split(left[alone:]), bar)
            for total in ranks.await_others(done):
                bar.update(before + total - bar.n)
        run.follow(ranks.exchange(run.state))
        concluded = self._conclude()
        with ranks.agreeing():
            self._keep(run.conclude())
        table = self._collect(concluded.get("images", ""))
        records = run.describe_sites()
        with ranks.agreeing():
            if self.store and ranks.first:
                self.store.finish(records, concluded)
        # For convenience alone, the table says all that is needed. Lists and dictionaries: pandas
        # compares attrs when it joins tables, and writes them to Parquet.
        parts = self.store.parts if self.store else ()
        table.attrs["sites"] = share_facts(records)
        table.attrs["provenance"] = share_facts(list_provenance(self.provenance, parts))
        table.attrs["resumed"] = len(ids) - len(left)
        return table

    def _measure_part(self, indices: list[int], bar: tqdm[Any] | None = None) -> int:
        """Measure some images, and return how many; with a bar, the other ranks are told of every batch."""
        done, before = 0, 0 if bar is None else bar.n
        # Closed at once, also after an error here: an unfinished generator would keep the hooks on the model.
        with closing(self.run.measure_batches(indices, self.batch_size)) as batches:
            for count, rows in batches:
                self._keep(rows)
                done += count
                if bar is not None:
                    bar.update(before + self.ranks.advance(done) - bar.n)
        return done

    def _conclude(self) -> dict[str, Any]:
        """Find out what is only known once all images have been read, where nobody had before."""
        run, ranks, images = self.run, self.ranks, self.run.images
        if not is_listed(run.config):
            return {}
        if isinstance(images, ListedImages):
            for book in ranks.exchange(images.book.found):
                images.learn(*book)
        found: dict[str, Any] = {}
        with ranks.agreeing():
            if ranks.first:
                own = run.conclude_images()
                found = {"images": f"{images.source}@{own['images_fingerprint']}", "provenance": own}
        found = ranks.exchange(found)[0]
        self.provenance |= found["provenance"]
        return found

    def _keep(self, rows: pa.Table) -> None:
        if not self.ranks.first:  # reasons are noted once
            rows = rows.filter(pc.equal(rows["reason"], ""))
        if len(rows) == 0:
            return
        if self.store:
            names = [name for name in pc.unique(rows["image"]).to_pylist() if name]
            seen = describe_seen(self.run.images, names, self.run.config)
            self.store.append(rows, seen, self.run.describe_news())
        else:
            self.kept.append(rows)

    def _collect(self, images: str) -> pd.DataFrame:
        """Return the rows of all ranks."""
        if self.store is None:
            every = [rows for part in self.ranks.exchange(self.kept) for rows in part]
            tables = [name_images(rows, images) for rows in every]
            return gather(lambda: tables, sum(map(len, tables)), len(self.run.images), describe_measurement)
        written = [name for names in self.ranks.exchange(self.store.written) for name in names]
        with self.ranks.agreeing():
            _await_files([self.store.folder / name for name in written])
            return self.store.read(images)


def _await_files(paths: Sequence[Path]) -> None:
    """Wait for files that other hosts have written: a shared disk may show them later."""
    deadline = time.monotonic() + _VISIBLE
    missing = [path for path in paths if not path.exists()]
    while missing and time.monotonic() < deadline:
        time.sleep(0.5)
        missing = [path for path in missing if not path.exists()]
    if missing:
        raise SpectralError(
            f"{missing[0]}, which another rank has written, doesn't show here; choose a folder on a disk "
            f"that all ranks share"
        )
