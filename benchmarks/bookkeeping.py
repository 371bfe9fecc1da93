"""What keeping and summarising measurements costs, the network's numbers made up: time per image, and memory.

    python benchmarks/bookkeeping.py                                # 100,000 images of 100 numbers
    python benchmarks/bookkeeping.py --images 1000000 --numbers 100 --folder /data/scratch

Batches of random numbers are appended to a run's folder as `spectral.measure` appends them; then the run is
opened again, as by the same command, what is finished is listed, and the table is read and summarised as its
end does. The peak is that of the whole process, Python and its libraries included. With ``--out`` a table is
written, bookkeeping.csv.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral.runs.folder import read
from spectral.runs.store import ShardStore
from spectral.runs.summary import summarize_measurements
from spectral.table.csv_files import describe_environment, write_csv
from spectral.table.rows import Key, Origin, make_rows

GOAL_MS, GOAL_MB, GOAL_LISTING = 1.0, 600, 1.0
METRICS = ("avr", "power", "am", "alias_power_ratio", "live_channels")


def list_keys(numbers: int) -> list[Key]:
    """Name so many numbers of an image, as of the sites of a network."""
    keys = [Key("sis"), Key("confidence"), Key("prediction")]
    for site in range(numbers):
        for tap in ("input", "dense"):
            keys += [Key(metric, f"layer{site}.conv", 0, "conv", "2x2", tap) for metric in METRICS]
    return keys[:numbers]


@contextmanager
def timed(what: str, images: int, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Tell how long the block takes, how long the processor works in it, and the peak of memory after it."""
    start, busy = time.perf_counter(), time.process_time()
    yield
    taken, busy = time.perf_counter() - start, time.process_time() - busy
    print(
        f"{what:24s} {taken:8.2f} s ({busy:.2f} s busy), {busy / images * 1e3:.4f} ms busy per image, "
        f"peak {peak():.0f} MB",
        flush=True,
    )
    rows.append({
        "what": what, "seconds": round(taken, 2), "seconds_busy": round(busy, 2),
        "ms_busy_per_image": round(busy / images * 1e3, 4), "peak_mb": round(peak()),
    })  # fmt: skip


def peak() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--numbers", type=int, default=100, help="per image")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--folder", type=Path, help="where the run's folder is made; the system's own by default"
    )
    parser.add_argument("--out", type=Path, help="folder of the table, such as results/reference/tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = run(Path(folder), options.images, options.numbers, options.batch_size)
    if options.out is not None:
        facts = {"n_images": options.images, "numbers": options.numbers, "batch_size": options.batch_size}
        write_csv(pd.DataFrame(rows).assign(**facts), options.out / "bookkeeping.csv", describe_environment())


def run(folder: Path, images: int, numbers: int, batch_size: int) -> list[dict[str, Any]]:
    """Append, list, read, summarise; returns what each took."""
    rows: list[dict[str, Any]] = []
    keys, origin = list_keys(numbers), Origin("net", f"sha256:{'0' * 16}", f"folder:made-up@{'0' * 16}")
    rng, config = np.random.default_rng(0), {"model": "net"}
    print(f"{images} images × {len(keys)} numbers, batches of {batch_size}; before all: peak {peak():.0f} MB")
    begun, worked = time.perf_counter(), time.process_time()
    with timed("appending", images, rows):
        store = ShardStore(folder, config)
        for start in range(0, images, batch_size):
            ids = [
                f"n{i // 1000:08d}/ILSVRC2012_val_{i:08d}.JPEG"
                for i in range(start, min(start + batch_size, images))
            ]
            store.append(make_rows(origin, ids, ids, keys, rng.random((len(ids), len(keys)))))
        del store
    shards = sorted(folder.glob("shard-*"))
    print(f"{len(shards)} shards, {sum(path.stat().st_size for path in shards) / 1e6:.0f} MB")
    before = time.process_time()
    with timed("listing what is finished", images, rows):
        assert len(ShardStore(folder, config).finished_images()) == images
    listing = time.process_time() - before
    with timed("reading, rows unread", images, rows):
        table = read(folder)
    with timed("summary", images, rows):
        summary = summarize_measurements(table)
    assert (summary["n"] == images).all()
    taken, busy = (1e3 * x / images for x in (time.perf_counter() - begun, time.process_time() - worked))
    print(
        f"all: {taken:.3f} ms per image, {busy:.3f} busy (goal {GOAL_MS:g}); peak {peak():.0f} MB "
        f"(goal {GOAL_MB})"
    )
    print(f"listing 50,000 images: {listing / images * 50_000:.2f} s busy (goal {GOAL_LISTING:g})")
    return rows


if __name__ == "__main__":
    main()
