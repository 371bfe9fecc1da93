"""What the anti-aliased layers cost, as ratios to a common implementation within one run.

    python benchmarks/layers.py --batch-size 16

At the four resolutions of a ResNet50 on 224 px images. Spectral layers are compared with a plain
fft2 → crop → ifft2, all others with timm's BlurPool2d. Every layer takes its turn in each round, in a new
order (what follows a layer that needs much memory is slower); a ratio is the median over rounds.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import click
import torch
from timm.layers.blur_pool import BlurPool2d as TimmBlurPool2d
from torch import Tensor, nn

from spectral.layers import BlurPool2d, make_pool

SHAPES = ((64, 112), (256, 56), (512, 28), (1024, 14))
SPECTRAL = ("ideal", "flc", "asap")
SPATIAL = ("blurpool", "learned", "wavelet", "wavelet-db2", "aps", "lps", "space-to-depth")


def crop_spectrum(x: Tensor) -> Tensor:
    """Halve a map with complex transforms: the direct way to write a FrequencyLowCut pool."""
    first, last = x.shape[-1] // 4, 3 * x.shape[-1] // 4
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
    block = torch.fft.ifftshift(spectrum[..., first:last, first:last], dim=(-2, -1))
    pooled: Tensor = torch.fft.ifft2(block, norm="forward").real
    return pooled


def make_layers(channels: int) -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    """Return each variant with the name of the one that it is compared with."""
    layers: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "fft2, crop, ifft2": (crop_spectrum, "fft2, crop, ifft2"),
        "timm BlurPool2d": (TimmBlurPool2d(channels), "timm BlurPool2d"),
    }
    for names, baseline in ((SPECTRAL, "fft2, crop, ifft2"), (SPATIAL, "timm BlurPool2d")):
        layers |= {name: (make_pool(name, channels, 2).eval(), baseline) for name in names}
    products = BlurPool2d(channels)
    products.as_products = True
    return layers | {"blurpool, as products": (products, "timm BlurPool2d")}


def time_layers(
    layers: dict[str, tuple[Callable[[Tensor], Tensor], str]], x: Tensor, rounds: int, backward: bool
) -> dict[str, list[float]]:
    """Seconds per round of each variant; the first round warms up and isn't kept."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    for round_number in range(rounds + 1):
        for name in random.Random(round_number).sample(list(layers), len(layers)):
            layer = layers[name][0]
            start = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y = layer(x)
            if backward:
                y.sum().backward()
                x.grad = None
            if x.is_cuda:
                torch.cuda.synchronize()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return times


@click.command()
@click.option("--batch-size", default=16, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--channels-last", is_flag=True)
@click.option("--backward", is_flag=True, help="Time forward and backward passes together.")
@click.option("--device", default="cpu", show_default=True)
def main(batch_size: int, rounds: int, channels_last: bool, backward: bool, device: str) -> None:
    """Print the cost of each layer as a ratio to its baseline."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    ratios: dict[str, list[float]] = {}
    baselines: dict[str, str] = {}
    for channels, size in SHAPES:
        x = torch.randn(batch_size, channels, size, size, device=device).to(memory_format=memory)
        layers = make_layers(channels)
        for layer, _ in layers.values():
            if isinstance(layer, nn.Module):
                layer.to(device)
        times = time_layers(layers, x.requires_grad_(backward), rounds, backward)
        for name, (_, baseline) in layers.items():
            pairs = zip(times[name], times[baseline], strict=True)
            ratios.setdefault(name, []).append(statistics.median(a / b for a, b in pairs))
            baselines[name] = baseline
    print(f"batch {batch_size}, {torch.get_num_threads()} threads, {device}")
    print(" " * 24 + "".join(f"{f'{channels}×{size}²':>10s}" for channels, size in SHAPES))
    for name, values in ratios.items():
        print(f"  {name:22s}" + "".join(f"{ratio:10.2f}" for ratio in values) + f"   × {baselines[name]}")


if __name__ == "__main__":
    main()
