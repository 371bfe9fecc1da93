"""What the instability budget of three sources costs, as a ratio to one forward pass of the same images.

    python benchmarks/budget.py bundled/resnet20:64 timm/resnet50@random:16

Eight coalitions of five passes each are 40 forward passes; what is above that is what ideal operators cost,
what is below the same coalitions one by one (`idealize`) is what they share. Processor time, by which forward
passes of one process differ by half: each budget is compared with the median of those right before and behind
it. A network that takes more than a second is run once, and not one by one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

import spectral
from spectral.causes import SOURCES
from spectral.intake import Feed
from spectral.table.csv_files import describe_environment, write_csv


@click.command(help=__doc__)
@click.argument("cases", nargs=-1, metavar="[MODEL:IMAGES[:SIZE]]…")
@click.option("--images", default="samples", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--out", type=Path, default=Path("results"), show_default=True)
def main(cases: tuple[str, ...], images: str, rounds: int, out: Path) -> None:
    """Print the ratios, and write them; rows of other cases stay."""
    table = out / "tables" / "budget_cost.csv"
    rows = pd.DataFrame([_measure(case, images, rounds) for case in cases or ("bundled/resnet20:64",)])
    if table.exists():
        rows = pd.concat([rows, pd.read_csv(table)]).drop_duplicates(["model", "n", "height"])
    write_csv(rows, table, describe_environment())


def _measure(case: str, images: str, rounds: int) -> dict[str, Any]:
    """Compare one network's budget with its forward pass."""
    model, *numbers = case.split(":")
    limit, size = (*map(int, numbers), None, None)[:2]
    net = spectral.load_model(model)
    info = spectral.model_info(net)
    assert info is not None
    pictures = spectral.load_images(images, size=size or info.preprocessing.size, limit=limit)
    batch = Feed(net, pictures, caller="benchmark").load(list(range(len(pictures)))).image
    sets = [c for n in range(4) for c in itertools.combinations(SOURCES, n)]
    net.eval()
    before = _time_forwards(net, batch)
    quick = statistics.median(before) < 1
    seconds, ratios, apart = [], [], []
    for _ in range(rounds if quick else 1):
        seconds.append(_time(
            lambda: spectral.measure_instability_budget(
                net, pictures, factor=2, batch_size=len(pictures), progress=False
            )
        ))  # fmt: skip
        behind = _time_forwards(net, batch)
        forward = statistics.median(before + behind)
        ratios.append(seconds[-1] / forward)
        click.echo(f"forward {forward:.3f} s, budget {seconds[-1]:.2f} s: {ratios[-1]:.1f} forward passes")
        before = behind
        if quick:
            with torch.no_grad():
                alone = sum(_time(lambda c=c: _run(net, batch, c)) for c in sets)
            before = _time_forwards(net, batch)
            apart.append(alone / statistics.median(behind + before))
            click.echo(f"one by one {alone:.2f} s: {apart[-1]:.1f}")
    click.echo(f"{model} on {len(pictures)} images: median {statistics.median(ratios):.1f} forward passes")
    return {"model": model, "n": len(pictures), "height": batch.shape[-2], "rounds": len(ratios),
            "budget_passes": statistics.median(ratios),
            "separate_passes": statistics.median(apart) if apart else None,
            "seconds_busy": statistics.median(seconds)}  # fmt: skip


def _time_forwards(net: torch.nn.Module, batch: torch.Tensor) -> list[float]:
    """Time some forward passes, after one that warms up."""
    with torch.no_grad():
        net(batch)
        return [_time(lambda: net(batch)) for _ in range(9)]


def _run(net: torch.nn.Module, batch: torch.Tensor, sources: tuple[str, ...]) -> None:
    """Run what a coalition takes: the batch and its four shifts."""
    with spectral.idealize(net, sources) if sources else nullcontext():
        for view in (batch, *(batch.roll(s, a) for a in (-2, -1) for s in (-1, 1))):
            net(view.clone())


def _time(run: object) -> float:
    start = time.process_time()
    run()  # type: ignore[operator]
    return time.process_time() - start


if __name__ == "__main__":
    main()
