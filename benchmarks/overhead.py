"""What measuring costs next to the forward pass it rides on, as ratios within one run.

    python benchmarks/overhead.py --model timm/resnet50@random --size 224 --batch-size 16

Every variant takes its turn in each round, so a busy machine slows all of them alike. ``naive`` keeps each
input and transforms it channel by channel in double-sided complex arithmetic after the pass, as the published
study does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn

from spectral.capture import Capture, Tap
from spectral.hooks import FeatureExtractor
from spectral.measurement import measure_capture
from spectral.metrics import compute_avr
from spectral.models import load_model
from spectral.network import evaluation_mode
from spectral.sites import Site, find_sites, get_stride_layers


def run_bare(model: nn.Module, images: Tensor) -> None:
    """Only the forward pass."""
    model(images)


def run_measured(
    model: nn.Module, images: Tensor, sites: list[Site], metrics: tuple[str, ...], taps: tuple[Tap, ...]
) -> None:
    """The forward pass with metrics computed inside the hooks."""

    def reduce(capture: Capture) -> None:
        measure_capture(capture, metrics, taps)

    tap: Tap = "dense" if "dense" in taps else "input"
    with FeatureExtractor(model, sites, tap=tap, reduce=reduce):
        model(images)


def run_dense(model: nn.Module, images: Tensor, sites: list[Site]) -> None:
    """The forward pass with nothing but the dense maps, computed inside the hooks."""

    def reduce(capture: Capture) -> None:
        for image in range(len(capture.input)):
            capture.dense(slice(image, image + 1))

    with FeatureExtractor(model, sites, tap="dense", reduce=reduce):
        model(images)


def run_naive(model: nn.Module, images: Tensor, sites: list[Site]) -> None:
    """Keep every input, then transform with fft2, square, average and shift."""
    with FeatureExtractor(model, sites) as extractor:
        model(images)
        for site in sites:
            spectrum = torch.fft.fftshift(torch.fft.fft2(extractor[site.name]), dim=(-2, -1))
            power = spectrum.abs().square().mean(1)
            compute_avr(power, site.stride)


@click.command()
@click.option("--model", "name", default="timm/resnet50@random", show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--channels-last", is_flag=True)
def main(name: str, size: int, batch_size: int, rounds: int, channels_last: bool) -> None:
    """Print the cost of measuring as ratios to the bare forward pass."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = load_model(name).to(memory_format=memory)
    images = torch.randn(batch_size, 3, size, size).to(memory_format=memory)
    sites = [site for site in find_sites(model, size) if site.measurable]
    convs = [site for site in sites if site.module in set(get_stride_layers(model))]
    variants: dict[str, Callable[[], None]] = {
        "bare forward": lambda: run_bare(model, images),
        f"AVR, input, {len(convs)} convs": lambda: run_measured(model, images, convs, ("avr",), ("input",)),
        f"AVR, input, {len(convs)} convs, naive": lambda: run_naive(model, images, convs),
        f"dense maps alone, {len(sites)} sites": lambda: run_dense(model, images, sites),
        f"AVR + AM, dense, {len(sites)} sites": lambda: run_measured(
            model, images, sites, ("avr", "am"), ("dense",)
        ),
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    with evaluation_mode(model), torch.no_grad():
        for round_number in range(rounds + 1):
            for variant, call in variants.items():
                start = time.perf_counter()
                call()
                if round_number:  # the first round warms up
                    times[variant].append(time.perf_counter() - start)
    bare = times["bare forward"]
    print(f"{name}, {size} px, batch {batch_size}, {torch.get_num_threads()} threads, {rounds} rounds")
    for variant, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, bare, strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"  {variant:36s} {statistics.median(ratios):5.2f} × bare  ({spread})")


if __name__ == "__main__":
    main()
