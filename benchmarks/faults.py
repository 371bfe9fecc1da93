"""Faults on purpose: kills, two writers, flipped bits, interrupts and threads; prints what went unnoticed.

``python benchmarks/faults.py --trials 5`` takes about a minute; the figures that must hold are for 200 kills,
100 pairs of writers, 2000 bits, 1000 interrupts and 200 pairs of threads (``--full``).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import nn

import spectral
from spectral.errors import SpectralError

FULL = {"kills": 200, "writers": 100, "bits": 2000, "interrupts": 1000, "threads": 200}
KEY = ["image", "site", "tap", "metric"]
JOB = """
import sys, torch, warnings; warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2]); import faults
faults.run(faults.make_network(), sys.argv[1])
"""


def make_network(seed: int = 0) -> nn.Module:
    """Make a small classifier with two sites."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()  # fmt: skip


def run(model: nn.Module, out: str | Path | None = None, count: int = 24) -> pd.DataFrame:
    """Measure it."""
    x = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return spectral.measure(model, x, ("avr", "am", "sis"), batch_size=2, out=out, progress=False)


def is_same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether two tables have the same rows, in any order, with values within rounding."""
    left, right = (t[t["reason"] == ""].set_index(KEY)["value"].sort_index() for t in (a, b))
    return left.index.equals(right.index) and bool(((left - right).abs() <= 1e-6 * right.abs() + 1e-9).all())


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start a measurement in a process of its own."""
    here = str(Path(__file__).parent)
    return subprocess.Popen([sys.executable, "-c", JOB, str(out), here], stderr=subprocess.PIPE)


def count_kills(trials: int, rng: random.Random) -> int:
    """Kill a measurement at a random moment and resume it; count tables that differ."""
    model, wrong = make_network(), 0
    whole = run(model)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            process = start(Path(folder) / "run")
            deadline = time.monotonic() + 60
            while not (Path(folder) / "run" / "_run.json").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            process.communicate()
            wrong += not is_same(run(model, Path(folder) / "run"), whole)
            wrong += bool([*Path(folder).rglob("*.partial")])
    return wrong


def count_writers(trials: int, rng: random.Random) -> int:
    """Start two writers on one folder; count folders that differ, and failures without a sentence."""
    model, wrong = make_network(), 0
    whole = run(model)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            both = [start(Path(folder) / "run")]
            time.sleep(rng.uniform(0, 0.5))
            both.append(start(Path(folder) / "run"))
            errors = [process.communicate()[1].decode() for process in both]
            failed = [e for p, e in zip(both, errors, strict=True) if p.returncode]
            wrong += any("is being written by" not in error for error in failed) or len(failed) > 1
            wrong += not is_same(run(model, Path(folder) / "run"), whole)
    return wrong


def count_bits(trials: int, rng: random.Random) -> int:
    """Flip one bit of one file of a run's folder; count those that reading doesn't notice."""
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        run(make_network(), folder)
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
        for _ in range(trials):
            path = rng.choice(files)
            whole = path.read_bytes()
            at = rng.randrange(8 * len(whole))
            path.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
            try:
                spectral.read(folder)
                unnoticed += 1
            except SpectralError:
                pass
            path.write_bytes(whole)
    return unnoticed


def count_interrupts(trials: int, rng: random.Random) -> int:
    """Interrupt measuring, discovery and conversion at random; count models and modes that changed."""
    model, left = make_network(), 0
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    jobs: list[Callable[[], Any]] = [
        lambda: run(model, count=8),
        lambda: spectral.find_sites(model, 32),
        lambda: spectral.convert(model, "blurpool", example=(3, 32, 32)),
    ]
    lengths = []
    for job in jobs:
        started = time.perf_counter()
        job()
        lengths.append(time.perf_counter() - started)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    for _ in range(trials):
        number = rng.randrange(len(jobs))
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, lengths[number]))
            jobs[number]()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
        same = all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        kept = all(list(vars(module)) == attributes[name] for name, module in model.named_modules())
        left += bool(hooks or modes or not same or not kept)
    return left


def count_threads(trials: int, rng: random.Random) -> int:
    """Measure one model in two threads while a third serves it; count tables and outputs that differ."""
    model, wrong = make_network(), 0
    whole, x = run(model, count=8), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        right = model(x)
    for _ in range(trials):
        found: list[bool] = []

        def measure(found: list[bool] = found) -> None:
            found.append(is_same(run(model, count=8), whole))

        def serve(found: list[bool] = found) -> None:
            with torch.no_grad():
                found.append(all(torch.equal(model(x), right) for _ in range(50)))

        threads = [threading.Thread(target=job) for job in (measure, measure, serve)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong += len(found) != len(threads) or not all(found)
    return wrong


@click.command(help=__doc__)
@click.option("--trials", type=click.IntRange(min=1), default=5, show_default=True, help="Of each fault.")
@click.option("--full", is_flag=True, help="The numbers that must hold.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(trials: int, full: bool, seed: int) -> None:
    """Count faults that went unnoticed."""
    counts = {"kills": count_kills, "writers": count_writers, "bits": count_bits,
              "interrupts": count_interrupts, "threads": count_threads}  # fmt: skip
    for name, count in counts.items():
        number = FULL[name] if full else trials * (20 if name == "bits" else 4 if name == "interrupts" else 1)
        started = time.perf_counter()
        faults = count(number, random.Random(f"{seed} {name}"))
        click.echo(f"{name:10s} {number:5d} trials, {faults} faults, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
