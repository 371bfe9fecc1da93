"""How fast images are decoded ahead of the network, next to what so many processes could do at best.

    python benchmarks/decoding.py ../imagenet-val                   # 224 px, batches of 32
    python benchmarks/decoding.py photographs --size 384 --workers 8

The ideal is so many bare processes, started before the clock, each of which reads, decodes and resizes its
share of the same files and hands nothing over. What `spectral` does is timed with a reader that takes every
batch at once, as a network on a GPU would, from before its workers start. Both are medians over rounds in
which they take turns. On a machine that does other things too, the processors' time per image says more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spectral
from spectral.data import ImageSet

GOAL = 0.9


def decode_share(images: ImageSet, share: range, ready: Any, begin: Any, done: Any) -> None:
    """Decode some of the images as a bare process."""
    ready.put(1)
    begin.wait()
    for index in share:
        images[index]
    done.put(1)


def time_ideal(images: ImageSet, workers: int) -> float:
    """Return images per second of bare processes that share the images and hand nothing over."""
    context = multiprocessing.get_context("fork")
    ready, done, begin = context.Queue(), context.Queue(), context.Event()
    shares = [range(first, len(images), workers) for first in range(workers)]
    running = [context.Process(target=decode_share, args=(images, s, ready, begin, done)) for s in shares]
    for process in running:
        process.start()
    for _ in running:
        ready.get()
    start = time.perf_counter()
    begin.set()
    for _ in running:
        done.get()
    taken = time.perf_counter() - start
    for process in running:
        process.join()
    return len(images) / taken


def time_batches(images: ImageSet, batch_size: int) -> float:
    """Return images per second, the start of the workers included."""
    start = time.perf_counter()
    count = sum(len(indices) for indices, _ in images.batches(batch_size))
    return count / (time.perf_counter() - start)


def find_busy() -> float:
    """Return the seconds that processors have worked for this process and those it has started and ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", type=Path, help="a folder of photographs, such as ImageNet's validation images"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument(
        "--repeat", type=int, default=4, help="how often a small folder is gone through in a row"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    once = spectral.load_images(options.images, size=options.size, workers=options.workers)
    images = ImageSet(once.source, [*once.items] * options.repeat, once.size, loading=once.loading)
    calls: dict[str, Callable[[], float]] = {
        "ideal": lambda: time_ideal(images, options.workers),
        "spectral": lambda: time_batches(images, options.batch_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            before = find_busy()
            rates[name].append(call())
            busy[name].append((find_busy() - before) / len(images) * 1e3)
    print(f"{len(images)} images of {once.source} at {options.size} px, {options.workers} workers")
    for name, found in rates.items():
        used = statistics.median(busy[name])
        print(f"{name:10s} {statistics.median(found):8.1f} images per second, {used:.2f} ms busy per image")
    share = statistics.median(a / b for a, b in zip(rates["spectral"], rates["ideal"], strict=True))
    print(f"share of the ideal {share:.2f} (goal {GOAL:g})")


if __name__ == "__main__":
    main()
