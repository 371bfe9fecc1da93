"""What trust costs: the share of a run's time that goes into telling the network and its files from others.

    python benchmarks/identity.py --model timm/resnet50@random --images 64 --size 224

One run of ``measure`` into a folder, under Python's profiler. Counted are all calls that `measure` could do
without if nobody ever changed a network, an image or a file: the network's identity with its probe, the
images' digests, the identity of the dense map with the output, and the seals of files with what reads them
back. A call within another of these is counted once. The profiler slows Python's own steps, of which checks
have more than passes: what it prints is, if anything, too much.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import torch

import spectral
from spectral import files, identity, store
from spectral.measurement import captures

CHECKS: dict[str, tuple[Callable[..., Any], ...]] = {
    "identity of the network": (
        identity.identify,
        identity.find_structure,
        identity.find_weights_id,
        identity.Identity.describe,
        identity.Identity.find_difference,
    ),
    "dense map against output": (
        captures.compare_identity,
        captures.judge_identity,
    ),
    "seals and folders": (
        store.ShardStore.__init__,
        store.ShardStore._look,
        files.seal,
        files.is_intact,
        files.ensure_writable,
    ),
}


@click.command(help=__doc__)
@click.option("--model", default="timm/resnet50@random", show_default=True)
@click.option("--images", "count", default=64, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
def main(model: str, count: int, size: int, batch_size: int) -> None:
    """Print the share of each kind of check."""
    net = spectral.load_model(model)
    x = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        profile.enable()
        spectral.measure(net, x, batch_size=batch_size, out=folder, progress=False)
        profile.disable()
        whole = time.perf_counter() - started
    stats: Any = pstats.Stats(profile)
    spent = {
        kind: sum(find_seconds(stats.stats, function, functions) for function in functions)
        for kind, functions in CHECKS.items()
    }
    for kind, seconds in spent.items():
        click.echo(f"{kind:26s} {seconds:8.3f} s  {seconds / whole:7.2%}")
    total = sum(spent.values())
    click.echo(f"{'all':26s} {total:8.3f} s  {total / whole:7.2%} of {whole:.1f} s")


def find_seconds(
    stats: dict[Any, Any], function: Callable[..., Any], others: tuple[Callable[..., Any], ...]
) -> float:
    """Return the time spent in a function, calls from others of its kind left out."""
    key = name_code(function)
    if key not in stats:
        return 0.0
    _, _, _, cumulative, callers = stats[key]
    inside = sum(callers[name_code(other)][3] for other in others if name_code(other) in callers)
    return float(cumulative - inside)


def name_code(function: Callable[..., Any]) -> tuple[str, int, str]:
    """Return what the profiler calls a function."""
    code = getattr(function, "__wrapped__", function).__code__
    return code.co_filename, code.co_firstlineno, code.co_name


if __name__ == "__main__":
    main()
