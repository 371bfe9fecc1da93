"""What AM costs against plain FFTs, size by size: first call, later calls, and bytes kept.

Each line times both ways in turn, several times over, so that a busy machine slows down both; the smallest
time of each is compared. "Plain FFT" is the definition: transform, zero the high bins, transform back,
decimate, transform again.

python benchmarks/sizes.py --size 56 --size 1024
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from spectral.metrics.aliasing import compute_alias_metrics
from spectral.metrics.bands import measure_bands
from spectral.numerics.cache import CACHE

METRICS = ("am", "am_relative", "alias_power_ratio")
SIZES = (56, 112, 224, 512, 1021, 1023, 1024, 2048)


def measure_by_fft(maps: Tensor, step: int) -> dict[str, Tensor]:
    """AM, relative AM and alias power ratio of maps (C, N, N), from the definitions and plain transforms."""
    size = maps.shape[-1]
    index = torch.arange(size)
    low = 2 * step * torch.minimum(index, size - index) < size
    alias_free = torch.fft.ifft2(torch.fft.fft2(maps) * (low[:, None] & low)).real[..., ::step, ::step]
    kept = maps[..., ::step, ::step]
    residual = kept - alias_free
    bins = kept.shape[-1] ** 2
    distance, whole = (torch.fft.fft2(x).abs().sum((-2, -1)) / bins for x in (residual, kept))
    return {
        "am": distance.mean(),
        "am_relative": distance.sum() / whole.sum(),
        "alias_power_ratio": residual.square().sum() / kept.square().sum(),
    }


def time_once(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


@click.command()
@click.option("--size", "sizes", multiple=True, default=SIZES, show_default=True, help="Samples per axis.")
@click.option("--stride", default=2, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--pixels", default=2**20, show_default=True, help="So many samples in all, in channels.")
def main(sizes: tuple[int, ...], stride: int, rounds: int, pixels: int) -> None:
    """Print milliseconds and ratios."""
    torch.set_num_threads(1)
    print("  size  maps   FFT ms  metrics ms  ratio   bands ms  ratio   first call ms  ratio   kept MiB")
    for size in sizes:
        channels = max(1, pixels // size**2)
        maps = torch.randn(channels, size, size, generator=torch.Generator().manual_seed(0))
        calls: list[Callable[[], object]] = [
            lambda x=maps: measure_by_fft(x, stride),  # type: ignore[misc]
            lambda x=maps: compute_alias_metrics(x, stride),  # type: ignore[misc]
            lambda x=maps: measure_bands(x[None], (stride, stride), metrics=METRICS),  # type: ignore[misc]
        ]
        calls[0]()
        first = []
        for _ in range(3):
            CACHE.clear()
            first.append(time_once(calls[1]))
        plain, metrics, bands = (
            min(times) for times in zip(*([time_once(c) for c in calls] for _ in range(rounds)), strict=True)
        )
        print(
            f"{size:6d} {channels:5d} {plain:8.1f} {metrics:11.1f} {metrics / plain:6.2f} {bands:10.1f} "
            f"{bands / plain:6.2f} {min(first):15.1f} {min(first) / plain:6.2f} {CACHE.nbytes / 2**20:10.1f}"
        )


if __name__ == "__main__":
    main()
