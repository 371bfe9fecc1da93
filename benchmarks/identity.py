"""What trust costs: the share of a run's time that goes into telling networks, images and files from others.

One run of ``measure`` over image files into a folder, from listing the files to the table that is read back.
Counted is the CPU time of all that it could do without if nobody ever changed a network, an image or a file,
interrupted a run, or shared a folder or a model: the network's identity with its probe; the images' digests,
when they are listed, when they are decoded, and of the set, with the first reading that finds broken ones;
the identity of each dense map with the output; the seals of files with the verification of what is read back;
the locks of folders and models with what puts models back. Each is counted from outside, with all that it
calls, and once where one is within another. Clocks are read at these calls alone, so that nothing else is
slowed. The whole is the CPU time of the same run: the ratio holds on a busy machine too.

Example: OMP_NUM_THREADS=1 python benchmarks/identity.py --model timm/resnet50@random --out results
"""

from __future__ import annotations

import functools
import importlib
import inspect
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image

import spectral
from spectral.data import load_images
from spectral.table.csv_files import describe_environment, write_csv

CHECKS = {
    "network identity and probe": (
        "measurement.run:identify", "measurement.run:_list_versions", "identity:Identity.describe",
        "identity:Identity.find_difference",
    ),
    "image digests and first reading": (
        "data.decode:digest_bytes", "data.listed:digest_bytes", "data.decode:inspect_image",
        "data.imageset:ImageSet.fingerprint",
        "intake.given:GivenImages.fingerprint", "measurement.run:_require_names",
    ),
    "identity of dense maps": ("measurement.meter:compare_identity", "measurement.meter:judge_identity"),
    "seals and verification": (
        "shards:seal", "shards:is_intact", "shards:read_shards", "table:seal", "table:is_intact",
        "store:ShardStore._claim", "store:ShardStore._look", "sameness:refuse_other",
    ),
    "locks and putting back": (
        "ranks:claim", "store:ensure_writable", "measurement.job:undisturbed", "standin:alone",
        "standin:kept_surroundings", "standin:kept_reach", "network.mode:ThreadGuard.__call__",
        "measurement.run:raise_kept", "intake.feed:raise_kept",
    ),
}  # fmt: skip
"""What is counted, by kind: where it is called from, so that others who call it in passing don't count."""


class Stopwatch:
    """Adds up the CPU time of calls, by kind; a call within another one is part of that."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CHECKS, 0.0)
        self.calls = dict.fromkeys(CHECKS, 0)
        self._local = threading.local()  # files are listed by several threads
        self._adding = threading.Lock()

    @contextmanager
    def running(self, kind: str) -> Iterator[None]:
        """Count what happens until the end of the block."""
        if getattr(self._local, "busy", False):
            yield
            return
        self._local.busy, started = True, time.thread_time()
        try:
            yield
        finally:
            with self._adding:
                self.seconds[kind] += time.thread_time() - started
            self._local.busy = False

    def watch(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are counted; of contexts and generators, each step."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self._adding:
                self.calls[kind] += 1
            with self.running(kind):
                found = function(*args, **kwargs)
            if isinstance(found, AbstractContextManager):
                return _Watched(found, functools.partial(self.running, kind))
            return self._step(kind, found) if inspect.isgenerator(found) else found

        return counted

    def _step(self, kind: str, steps: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.running(kind):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item


class _Watched(AbstractContextManager[Any]):
    """A context of which entering and leaving are counted, and nothing between."""

    def __init__(
        self, context: AbstractContextManager[Any], running: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._context, self._running = context, running

    def __enter__(self) -> Any:
        with self._running():
            return self._context.__enter__()

    def __exit__(self, *exception: Any) -> Any:
        with self._running():
            return self._context.__exit__(*exception)


@contextmanager
def watching(stopwatch: Stopwatch) -> Iterator[None]:
    """Count all checks until the end of the block."""
    with ExitStack() as held:
        for kind, places in CHECKS.items():
            for place in places:
                module, _, path = place.partition(":")
                owner: Any = importlib.import_module(f"spectral.{module}")
                *classes, name = path.split(".")
                for one in classes:
                    owner = getattr(owner, one)
                found = inspect.getattr_static(owner, name)
                if isinstance(found, (property, functools.cached_property)):
                    get = found.fget if isinstance(found, property) else found.func
                    assert get is not None
                    watched: Any = property(stopwatch.watch(kind, get))
                else:
                    watched = stopwatch.watch(kind, found)
                held.enter_context(mock.patch.object(owner, name, watched))
        yield


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEG files with the spectrum of photographs, of the size of ImageNet's."""
    rng = np.random.default_rng(0)
    height, width = size
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    radius[0, 0] = np.inf
    for index in range(count):
        phase = np.exp(2j * np.pi * rng.random((3, *radius.shape)))
        pixels = np.fft.irfft2(phase / radius, s=size)
        pixels = np.clip(127 + 45 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index:04d}.jpg", quality=95)


def measure_costs(model: str, count: int, size: int, batch_size: int) -> pd.DataFrame:
    """Return a row for each kind of check, and one for the run."""
    torch.set_num_threads(1)  # a check's own thread does all of its work
    net, stopwatch = spectral.load_model(model), Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photographs").mkdir()
        write_photographs(folder / "photographs", count, (375, 500))
        spectral.measure(net, torch.rand(2, 3, size, size), progress=False)  # what is loaded once
        with watching(stopwatch):
            started = time.process_time()
            # Decoded here and not by workers, whose time this process can't tell.
            images = load_images(folder / "photographs", size=size, workers=0)
            spectral.measure(net, images, batch_size=batch_size, out=folder / "run", progress=False)
            whole = time.process_time() - started
    kinds = [*CHECKS, "all checks", "whole run"]
    seconds = [*stopwatch.seconds.values(), sum(stopwatch.seconds.values()), whole]
    calls = [*stopwatch.calls.values(), sum(stopwatch.calls.values()), 1]
    table = pd.DataFrame({"check": kinds, "calls": calls, "cpu_seconds": seconds})
    return table.assign(share=table["cpu_seconds"] / whole).round({"cpu_seconds": 4, "share": 6})


@click.command(help=__doc__)
@click.option("--model", default="timm/resnet50@random", show_default=True)
@click.option("--images", "count", type=click.IntRange(1), default=64, show_default=True)
@click.option("--size", type=click.IntRange(1), default=224, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Results folder: writes OUT/tables/identity.csv."
)
def main(model: str, count: int, size: int, batch_size: int, out: Path | None) -> None:
    """Print the share of each kind of check."""
    table = measure_costs(model, count, size, batch_size)
    click.echo(table.to_string(index=False))
    if out is not None:
        facts = {
            **describe_environment(), "model": model, "images": count, "size": size,
            "batch_size": batch_size, "threads": torch.get_num_threads(),
        }  # fmt: skip
        click.echo(str(write_csv(table, out / "tables" / "identity.csv", facts)))


if __name__ == "__main__":
    main()
