"""What the instability budget of three sources costs, as a ratio to one forward pass of the same images.

    python benchmarks/budget.py --model bundled/resnet20 --limit 64

Eight coalitions of five passes each are 40 forward passes; what is above that is what ideal operators cost,
what is below the same coalitions one by one (`idealize`) is what they share. Processor time; a busy machine
shares its caches too, so compare the two ratios of one run.
"""

from __future__ import annotations

import itertools
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import click
import pandas as pd
import torch

import spectral
from spectral.causes import SOURCES
from spectral.intake import Feed
from spectral.table import describe_environment, write_csv


@click.command(help=__doc__)
@click.option("--model", default="bundled/resnet20", show_default=True)
@click.option("--images", default="samples", show_default=True)
@click.option("--limit", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--size", type=int, help="By default the one that the model was made for.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--out", type=Path, default=Path("results"), show_default=True)
def main(model: str, images: str, limit: int, size: int | None, rounds: int, out: Path) -> None:
    """Print the ratio, and write it."""
    net = spectral.load_model(model)
    info = spectral.model_info(net)
    assert info is not None
    pictures = spectral.load_images(images, size=size or info.preprocessing.size, limit=limit)
    batch = Feed(net, pictures, caller="benchmark").load(list(range(len(pictures)))).image
    sets = [c for n in range(4) for c in itertools.combinations(SOURCES, n)]
    ratios, apart = [], []
    for _ in range(rounds):
        net.eval()
        with torch.no_grad():
            net(batch)
            forward = min(_time(lambda: net(batch)) for _ in range(3))
        budget = _time(
            lambda: spectral.measure_instability_budget(
                net, pictures, factor=2, batch_size=len(pictures), progress=False
            )
        )
        with torch.no_grad():
            alone = sum(_time(lambda c=c: _run(net, batch, c)) for c in sets)
        ratios.append(budget / forward)
        apart.append(alone / forward)
        click.echo(f"forward {1e3 * forward:.0f} ms, budget {budget:.2f} s: {ratios[-1]:.1f} forward passes, "
                   f"one by one {apart[-1]:.1f}")  # fmt: skip
    own, other = statistics.median(ratios), statistics.median(apart)
    click.echo(f"{model} on {len(pictures)} images: median {own:.1f} forward passes, one by one {other:.1f}")
    row = {"model": model, "n": len(pictures), "height": batch.shape[-2], "rounds": rounds,
           "budget_passes": own, "separate_passes": other}  # fmt: skip
    write_csv(pd.DataFrame([row]), out / "tables" / "budget_cost.csv", describe_environment())


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
