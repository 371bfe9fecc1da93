"""What measuring costs next to the forward passes that it rides on, as ratios within one run.

    python benchmarks/overhead.py --channels-last                  # whole calls of spectral.measure
    python benchmarks/overhead.py --channels-last --band-limited   # the worst case: what rounding leaves open
    python benchmarks/overhead.py --channels-last --inside         # inside the forward pass alone

With ``--out`` the table is written, overhead_whole.csv; what a run of another case wrote there stays.

A whole call is all of it but the loading of images: what the network is called with is found out, sites are
discovered, checked and measured, network and images are told from others, rows are made. Every variant takes
its turn in each round, so a busy machine slows all of them alike; the processor's time is told beside the
clock's. ``naive`` keeps each input and transforms it channel by channel in double-sided complex arithmetic
after the pass, as the published study does.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd
import torch
from torch import Tensor, nn

import spectral
from spectral.hooks.capture import Capture, Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import measure_capture
from spectral.metrics.aliasing import compute_avr
from spectral.network import evaluation_mode
from spectral.sites import Site, find_sites, get_stride_layers
from spectral.table.csv_files import write_csv

Variants = dict[str, Callable[[], object]]
BARE = "bare forward"
GOALS = {"AVR, input": 1.15, "AVR + AM, dense": 1.85}
WORST = 1.4  # of AVR at the inputs, where nearly every map is band-limited


def run_bare(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Only the forward passes."""
    for batch in images.split(batch_size):
        model(batch)


def list_whole(model: nn.Module, images: Tensor, batch_size: int) -> Variants:
    """Return whole calls of `spectral.measure`."""

    def call(metrics: tuple[str, ...], tap: Tap) -> Callable[[], object]:
        return lambda: spectral.measure(
            model, images, metrics, taps=(tap,), batch_size=batch_size, progress=False
        )

    return {"AVR, input": call(("avr",), "input"), "AVR + AM, dense": call(("avr", "am"), "dense")}


def list_inside(model: nn.Module, images: Tensor, batch_size: int) -> Variants:
    """Return forward passes with metrics computed inside the hooks, and with what is made of them."""
    size = tuple(images.shape[-2:])
    sites = [site for site in find_sites(model, size) if site.measurable]
    convs = [site for site in sites if site.module in set(get_stride_layers(model))]

    def run(sites: list[Site], reduce: Callable[[Capture], None], tap: Tap) -> None:
        with FeatureExtractor(model, sites, tap=tap, reduce=reduce):
            run_bare(model, images, batch_size)

    def measure(metrics: tuple[str, ...], tap: Tap) -> Callable[[Capture], None]:
        return lambda capture: _forget(measure_capture(capture, metrics, (tap,)))

    return {
        f"AVR, input, {len(convs)} convs": lambda: run(convs, measure(("avr",), "input"), "input"),
        f"AVR, input, {len(convs)} convs, naive": lambda: run_naive(model, images, batch_size, convs),
        f"dense maps alone, {len(sites)} sites": lambda: run(sites, _make_dense, "dense"),
        f"AVR + AM, dense, {len(sites)} sites": lambda: run(sites, measure(("avr", "am"), "dense"), "dense"),
    }


def run_naive(model: nn.Module, images: Tensor, batch_size: int, sites: list[Site]) -> None:
    """Keep every input, then transform with fft2, square, average and shift."""
    for batch in images.split(batch_size):
        with FeatureExtractor(model, sites) as extractor:
            model(batch)
            for site in sites:
                spectrum = torch.fft.fftshift(torch.fft.fft2(extractor[site.name]), dim=(-2, -1))
                compute_avr(spectrum.abs().square().mean(1), site.stride)


def _make_dense(capture: Capture) -> None:
    for image in range(len(capture.input)):
        capture.dense(slice(image, image + 1))


def _forget(values: object) -> None:
    """Measure, and keep nothing."""


def limit_bands(model: nn.Module, images: Tensor) -> Tensor:
    """Make every map of a ResNet band-limited: no nonlinearities, no borders, images of one low frequency.

    Args:
        model: is changed in place.
        images: of the wanted shape.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [n for n in reversed(module.padding) for _ in range(2)]  # type: ignore[misc]
    side = images.shape[-1]
    wave = torch.cos(2 * torch.pi * torch.arange(side) / side)
    return images[:, :, :1, :1] * (wave[:, None] + wave)


def time_variants(variants: Variants, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return, for each round behind the first, seconds of the processor and of the clock."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            busy, start = time.process_time(), time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append((time.process_time() - busy, time.perf_counter() - start))
    return times


def describe_machine() -> str:
    """Say what the numbers are of."""
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"


def tabulate(times: dict[str, list[tuple[float, float]]], facts: dict[str, object]) -> pd.DataFrame:
    """Return the ratios to the bare forward passes of the same round: the median, and the least and most."""
    rows = []
    for variant, taken in times.items():
        for at, clock in enumerate(("processor", "wall")):
            ratios = [a[at] / b[at] for a, b in zip(taken, times[BARE], strict=True)]
            seconds = statistics.median(one[at] for one in taken)
            rows.append({**facts, "variant": variant, "clock": clock, "seconds": round(seconds, 2),
                         "x_bare": round(statistics.median(ratios), 3), "least": round(min(ratios), 2),
                         "most": round(max(ratios), 2)})  # fmt: skip
    return pd.DataFrame(rows)


def write_case(table: pd.DataFrame, folder: Path) -> None:
    """Write the rows of one case in the place of earlier ones."""
    path = folder / "overhead_whole.csv"
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[~before["case"].isin(table["case"])], table], ignore_index=True)
    write_csv(table, path)


@click.command()
@click.option("--model", "name", default="timm/resnet50@random", show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--images", "count", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--channels-last", is_flag=True)
@click.option("--band-limited", is_flag=True, help="Nearly every map is band-limited: of a ResNet alone.")
@click.option("--inside", is_flag=True, help="What the hooks cost inside the forward pass, without the rest.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the table.")
def main(
    name: str, size: int, batch_size: int, count: int, rounds: int, channels_last: bool, band_limited: bool,
    inside: bool, out: Path | None,
) -> None:  # fmt: skip
    """Print the cost of measuring as ratios to the bare forward passes."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = spectral.load_model(name).to(memory_format=memory)
    images = torch.randn(count, 3, size, size)
    images = (limit_bands(model, images) if band_limited else images).to(memory_format=memory)
    listed = (list_inside if inside else list_whole)(model, images, batch_size)
    with evaluation_mode(model), torch.no_grad():
        times = time_variants({BARE: lambda: run_bare(model, images, batch_size), **listed}, rounds)
    case = "inside the forward pass" if inside else "whole call"
    layout = "channels_last" if channels_last else "contiguous"
    table = tabulate(times, {
        "machine": describe_machine(), "torch": torch.__version__, "model": name, "px": size,
        "n_images": count, "batch": batch_size, "rounds": rounds, "layout": layout,
        "case": f"{case}, band-limited maps" if band_limited else case,
    })  # fmt: skip
    goals = {} if inside else {"AVR, input": WORST} if band_limited else GOALS
    print(", ".join(f"{key} {value}" for key, value in table.iloc[0, :9].items()))
    for row in table.to_dict("records"):
        goal = f"  (goal {goals[row['variant']]})" if row["variant"] in goals else ""
        ratio = f"{row['x_bare']:6.3f} × bare ({row['least']}–{row['most']})"
        print(f"  {row['variant']:32s} {row['clock']:9s} {row['seconds']:7.2f} s, {ratio}{goal}")
    if out is not None:
        write_case(table, out)


if __name__ == "__main__":
    main()
