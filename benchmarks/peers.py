"""The same numbers as others get them, and the same layers as others write them, side by side in one run.

    python benchmarks/peers.py --size 96 --batch 4                        # a CPU, minutes
    python benchmarks/peers.py --device cuda --size 224 --batch 256       # a GPU

Each peer is run as its authors do it: the published study's float64 transforms of every map in NumPy,
``fft2`` on the device, the same with states of torchmetrics, Adobe's BlurPool (antialiased-cnns), timm's, and
FFT pooling by cutting the middle out of a spectrum. Variants take their turn in every round; a row has the
peer's median time, ours, and how far its numbers are from ours. On a CPU times are of the processor, all
threads together: others on the machine don't show. Random weights and images: nothing is fetched.
"""

from __future__ import annotations

import csv
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import antialiased_cnns
import click
import numpy as np
import torch
from timm.layers.blur_pool import BlurPool2d as BlurPool2dOfTimm
from torch import Tensor, nn

from spectral.hooks.capture import Capture
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import BlurPool2d, FLCPool2d
from spectral.measurement import measure_capture
from spectral.metrics.aliasing import compute_avr
from spectral.models import load_model
from spectral.network import evaluation_mode
from spectral.sites import Site, find_sites

TABLE = Path(__file__).parents[1] / "results" / "tables" / "peers.csv"
Values = dict[str, Tensor]  # AVR (B,) by site
Row = dict[str, Any]


def measure_ours(model: nn.Module, images: Tensor, sites: list[Site]) -> Values:
    """AVR inside the hooks, as `spectral.measure` takes it."""
    values: Values = {}
    scheme = "settled" if images.device.type == "cpu" else "fast"

    def reduce(capture: Capture) -> None:
        found = measure_capture(capture, ("avr",), ("input",), scheme)  # type: ignore[arg-type]
        values[capture.site.name] = found["input", "avr"]

    with FeatureExtractor(model, sites, tap="input", reduce=reduce):
        model(images)
    return values


def _study_avr(maps: np.ndarray[Any, Any], stride: int) -> float:
    """AVR as the published study computes it of the maps of one image."""
    power = np.zeros(maps.shape[1:])
    for one in maps:
        power += np.abs(np.fft.fftshift(np.fft.fft2(one.astype(np.float64)))) ** 2
    power /= len(maps)
    rows, columns = (np.fft.fftshift(np.fft.fftfreq(n)) * 2 for n in power.shape)
    radius = np.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
    return float(power[radius > 1 / stride + 1e-12].sum() / (power.sum() + 1e-12))


def measure_as_study(model: nn.Module, images: Tensor, sites: list[Site]) -> Values:
    """Keep every input, copy it to the host, transform it there map by map."""
    with FeatureExtractor(model, sites) as kept:
        model(images)
    return {
        site.name: torch.tensor([_study_avr(maps, site.stride[0]) for maps in kept[site.name].cpu().numpy()])
        for site in sites
    }


def measure_by_fft2(model: nn.Module, images: Tensor, sites: list[Site]) -> Values:
    """Keep every input, transform it on the device in both halves of the spectrum."""
    with FeatureExtractor(model, sites) as kept:
        model(images)
    powers = {
        site.name: torch.fft.fftshift(torch.fft.fft2(kept[site.name]), dim=(-2, -1)).abs().square().mean(1)
        for site in sites
    }
    return {site.name: compute_avr(powers[site.name], site.stride) for site in sites}


def measure_with_states(model: nn.Module, images: Tensor, sites: list[Site]) -> Values:
    """The same, accumulated by one metric of torchmetrics per site: of it only the mean is left."""
    from torchmetrics import MeanMetric

    found = measure_by_fft2(model, images, sites)
    states = {name: MeanMetric().to(images.device) for name in found}
    for name, values in found.items():
        states[name].update(values)
    return {name: state.compute()[None] for name, state in states.items()}


def pool_by_fft(x: Tensor) -> Tensor:
    """Low-pass and decimate by 2 as in the published code: cut the middle out of a shifted spectrum."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), dim=(-2, -1))
    height, width = x.shape[-2:]
    low = spectrum[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    pooled: Tensor = torch.fft.ifft2(torch.fft.ifftshift(low, dim=(-2, -1)), norm="forward").real
    return pooled


def take_turns(
    calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Return the median milliseconds of each call; in every round each takes its turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for number in range(rounds + 1):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = clock()
            for _ in range(repeats):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append((clock() - start) * 1e3 / repeats)
    return {name: statistics.median(found) for name, found in times.items()}


def compare_measurements(name: str, images: Tensor, rounds: int, few: int) -> Iterator[Row]:
    """AVR of everything that enters a site, of one batch; the host's way on a few images, per image."""
    memory = torch.channels_last
    model = load_model(name).to(images.device).to(memory_format=memory).eval()
    images = images.to(memory_format=memory)
    ways: dict[str, tuple[Callable[..., Values], Tensor]] = {
        "bare forward": (lambda model, images, sites: model(images), images),
        "this": (measure_ours, images),
        "fft2 on the device": (measure_by_fft2, images),
        "the study: NumPy float64, map by map": (measure_as_study, images[:few]),
    }
    if importlib.util.find_spec("torchmetrics") is not None:
        ways["torchmetrics.MeanMetric over fft2"] = (measure_with_states, images)
    with evaluation_mode(model), torch.no_grad():
        size = (images.shape[-2], images.shape[-1])
        sites = [site for site in find_sites(model, size) if site.measurable]
        calls: dict[str, Callable[[], Any]] = {
            way: partial(call, model, x, sites) for way, (call, x) in ways.items()
        }
        times = take_turns(calls, images.device, rounds)
        ours = measure_ours(model, images, sites)
        each = {way: times[way] / len(x) for way, (_, x) in ways.items()}
        for way, (call, x) in ways.items():
            row = {"what": f"AVR, {len(sites)} inputs of {name}", "way": way, "ms_per_image": each[way]}
            row |= {"ours_ms_per_image": each["this"], "x_ours": each[way] / each["this"]}
            row["x_bare"] = each[way] / each["bare forward"]
            if way not in ("bare forward", "this"):
                row["largest_difference"] = _compare(call(model, x, sites), ours)
            yield row


def _compare(theirs: Values, ours: Values) -> float:
    differences = []
    for name, values in theirs.items():
        own = ours[name].double().cpu()
        own = own.mean()[None] if len(values) == 1 != len(own) else own[: len(values)]
        differences.append(float((values.double().cpu() - own).abs().max()))
    return max(differences)


def compare_layers(device: torch.device, batch: int, size: int, rounds: int) -> Iterator[Row]:
    """Layers that low-pass and decimate by 2, on 64 channels of noise."""
    x = torch.randn(batch, 64, size // 2, size // 2, generator=torch.Generator().manual_seed(0)).to(device)
    blur3, blur4 = BlurPool2d(64, 3).to(device), BlurPool2d(64, 4).to(device)
    flc = FLCPool2d(2, compat="paper").to(device)
    pairs: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "BlurPool of antialiased-cnns, 3 taps": (_adobe(3).to(device), blur3),
        "BlurPool of antialiased-cnns, 4 taps": (_adobe(4).to(device), blur4),
        "BlurPool2d of timm, 3 taps": (_timm(3).to(device), blur3),
        "BlurPool2d of timm, 4 taps": (_timm(4).to(device), blur4),
        "FFT pooling: cut a shifted spectrum": (pool_by_fft, flc),
    }
    with torch.no_grad():
        for way, (theirs, ours) in pairs.items():
            times = take_turns(
                {"theirs": partial(theirs, x), "ours": partial(ours, x)}, device, rounds, repeats=20
            )
            a, b = theirs(x), ours(x)
            row: Row = {"what": f"layer, 64 channels of {size // 2}²", "way": way}
            row |= {"ms_per_image": times["theirs"] / batch, "ours_ms_per_image": times["ours"] / batch}
            row["x_ours"] = times["theirs"] / times["ours"]
            row["largest_difference"] = float((a - b).abs().max()) if a.shape == b.shape else "other size"
            yield row


def _adobe(taps: int) -> nn.Module:
    module: nn.Module = antialiased_cnns.BlurPool(64, filt_size=taps, stride=2)
    return module


def _timm(taps: int) -> nn.Module:
    module: nn.Module = BlurPool2dOfTimm(64, taps)
    return module


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--model", "name", default="timm/resnet50@random", show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--size", default=96, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=TABLE, show_default=True)
def main(device: str, name: str, batch: int, size: int, rounds: int, out: Path) -> None:
    """Print one row per peer and write them as CSV, with the machine's name; other machines' rows stay."""
    place = torch.device(device)
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if place.type == "cuda":
        machine = torch.cuda.get_device_name(place)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, size, size, generator=generator)
    images = (torch.nn.functional.avg_pool2d(images, 5, 1, 2) * 4 + images / 4).to(place)
    common = {"machine": machine, "torch": torch.__version__, "px": size, "batch": batch, "rounds": rounds}
    rows = []
    for source in (
        compare_measurements(name, images, rounds, min(batch, 4)), compare_layers(place, batch, size, rounds)
    ):  # fmt: skip
        for row in source:
            rows.append({**common, **row})
            told = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
            print(f"{row['what']}: {row['way']}: {told}", flush=True)
    _write(out, rows, machine)


def _write(out: Path, rows: list[Row], machine: str) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if out.exists():
        with out.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["machine"] != machine] + rows
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
