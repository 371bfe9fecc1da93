"""What the instability budget of three sources costs, as a ratio to one forward pass of the same images.

    python benchmarks/budget.py --model bundled/resnet20 --limit 64

Eight coalitions of five passes each are 40 forward passes; what is above that is the cost of ideal operators.
Processor time, so that a busy machine changes little.
"""

from __future__ import annotations

import statistics
import time

import click
import torch

import spectral
from spectral.intake import Feed


@click.command(help=__doc__)
@click.option("--model", default="bundled/resnet20", show_default=True)
@click.option("--images", default="samples", show_default=True)
@click.option("--limit", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--size", type=int, help="By default the one that the model was made for.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(model: str, images: str, limit: int, size: int | None, rounds: int) -> None:
    """Print the ratio."""
    net = spectral.load_model(model)
    info = spectral.model_info(net)
    assert info is not None
    pictures = spectral.load_images(images, size=size or info.preprocessing.size, limit=limit)
    batch = Feed(net, pictures, caller="benchmark").load(list(range(len(pictures)))).image
    ratios = []
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
        ratios.append(budget / forward)
        click.echo(f"forward {1e3 * forward:.0f} ms, budget {budget:.2f} s: {ratios[-1]:.1f} forward passes")
    click.echo(f"{model} on {len(pictures)} images: median {statistics.median(ratios):.1f} forward passes")


def _time(run: object) -> float:
    start = time.process_time()
    run()  # type: ignore[operator]
    return time.process_time() - start


if __name__ == "__main__":
    main()
