"""What measuring costs and keeps on a GPU: ratios to the bare forward, waits for the device, precision.

    python benchmarks/gpu.py --out found                                 # CUDA, ResNet-50, 256 images of 224
    python benchmarks/gpu.py --out found --device cpu --batch 4 --size 64 --rounds 2    # the same, to debug

Each part prints what it has found as soon as it has, and writes ``gpu_PART.csv``; a part that fails says so
and the others go on. Times are CUDA events (the clock on a CPU), medians over rounds in which every variant
takes its turn, after a warm-up. Random weights: nothing is fetched.
"""

from __future__ import annotations

import csv
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import spectral
from spectral.hooks.capture import Capture, Tap
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import CHANNEL_METRICS, DEFAULT_METRICS, SITE_METRICS, measure_capture
from spectral.measurement.pieces import Lattice, evaluate_pieces, measure_piece
from spectral.metrics.aliasing import compute_avr
from spectral.models import load_model
from spectral.network import evaluation_mode
from spectral.sites import Site, find_sites

WAITING = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "Memcpy HtoD",
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal",
)  # fmt: skip
Row = dict[str, Any]
SECONDS = 15  # of one layout, after which no further round begins


@dataclass
class Bench:
    """What all parts share."""

    name: str
    device: torch.device
    batch: int
    size: int
    rounds: int
    out: Path
    deadline: float
    rows: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device to wait for."""
        return self.device.type == "cuda"

    @property
    def is_late(self) -> bool:
        """Whether no more should be begun."""
        return time.perf_counter() > self.deadline

    def load(self, dtype: torch.dtype = torch.float32, channels_last: bool = True) -> nn.Module:
        """Return the same random network each time, in evaluation mode."""
        torch.manual_seed(0)
        memory = torch.channels_last if channels_last else torch.contiguous_format
        return load_model(self.name).eval().to(self.device, dtype).to(memory_format=memory)

    def make_images(self, count: int, channels_last: bool = True) -> Tensor:
        """Return noise whose spectrum falls as that of photographs does, roughly."""
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(min(count, 16), 3, self.size, self.size, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 4 + 0.25 * noise
        images = smooth.repeat(-(-count // len(smooth)), 1, 1, 1)[:count]
        # No two images alike, so that nothing is measured on a cached one.
        images = images * torch.linspace(0.5, 1.5, count).view(-1, 1, 1, 1)
        return images.to(memory_format=torch.channels_last) if channels_last else images

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, call: Callable[[], object]) -> float:
        """Return the milliseconds of a call, from its start to the end of its last kernel."""
        self.wait()
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))

    def tell(self, part: str, row: Row, quiet: bool = False) -> None:
        """Print a row now unless it is one of many, and keep it for the file and the table at the end."""
        self.rows.setdefault(part, []).append(row)
        if not quiet:
            told = "  ".join(f"{key} {_short(value)}" for key, value in row.items())
            print(f"  {part}: {told}", flush=True)
        found = self.rows[part]
        columns = list(dict.fromkeys(key for one in found for key in one))
        with (self.out / f"gpu_{part}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(found)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Let convolutions and products of float32 use TF32, or not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def measured(
    model: nn.Module, images: Tensor, sites: list[Site], metrics: tuple[str, ...], taps: tuple[Tap, ...]
) -> Callable[[], None]:
    """Return a forward pass with metrics computed inside the hooks, as `spectral.measure` does it there."""

    def reduce(capture: Capture) -> None:
        measure_capture(capture, metrics, taps, "settled" if images.device.type == "cpu" else "fast")

    dense = set(metrics) - {"avr"} or not set(taps) <= {"input", "output"}
    extractor = FeatureExtractor(model, sites, tap="dense" if dense else "input", reduce=reduce)
    extractor.enabled = False

    def run() -> None:
        extractor.enabled = True
        try:
            model(images)
        finally:
            extractor.enabled = False

    return run


def naive_on_device(model: nn.Module, images: Tensor, sites: list[Site]) -> Callable[[], None]:
    """Return the plain way on the device: keep every input, then fft2, square, average, shift."""

    def run() -> None:
        with FeatureExtractor(model, sites) as extractor:
            model(images)
            for site in sites:
                spectrum = torch.fft.fftshift(torch.fft.fft2(extractor[site.name]), dim=(-2, -1))
                compute_avr(spectrum.abs().square().mean(1), site.stride)

    return run


def study_on_host(model: nn.Module, images: Tensor, sites: list[Site]) -> Callable[[], None]:
    """Return the published study's way: maps copied to the host, float64 transforms map by map."""

    def run() -> None:
        with FeatureExtractor(model, sites) as extractor:
            model(images)
            for site in sites:
                for maps in extractor[site.name].cpu().numpy():
                    power = np.zeros(maps.shape[1:])
                    for one in maps.astype(np.float64):
                        power += np.abs(np.fft.fftshift(np.fft.fft2(one))) ** 2
                    compute_avr(torch.from_numpy(power / len(maps)), site.stride)

    return run


def time_ratios(bench: Bench) -> None:
    """Time every way of measuring next to the bare forward, for two memory formats and two precisions."""
    settings = (
        [(True, True), (False, True), (True, False)] if bench.on_gpu else [(True, False), (False, False)]
    )
    for channels_last, tf32 in settings:
        if bench.is_late:
            print("  ratios: no time left for more", flush=True)
            break
        model, images = bench.load(channels_last=channels_last), bench.make_images(bench.batch, channels_last)
        images = images.to(bench.device)
        sites = [site for site in find_sites(model, bench.size) if site.measurable]
        variants: dict[str, Callable[[], object]] = {
            "bare": partial(model, images),
            "avr input": measured(model, images, sites, ("avr",), ("input",)),
            "avr+am dense": measured(model, images, sites, ("avr", "am"), ("dense",)),
            "headlines": measured(model, images, sites, CHANNEL_METRICS, ("signal",)),
            "defaults": measured(model, images, sites, DEFAULT_METRICS[:-1], ("input", "dense")),
            "naive fft2, input": naive_on_device(model, images, sites),
        }
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        with evaluation_mode(model), torch.no_grad(), precision(tf32):
            start = time.perf_counter()
            for number in range(bench.rounds + 2):
                for variant, call in variants.items():
                    taken = bench.time(call)
                    if number > 1:  # the first two warm up
                        times[variant].append(taken)
                if number > 1 and time.perf_counter() - start > SECONDS:
                    break
        layout = ("channels_last" if channels_last else "contiguous") + (", tf32" if tf32 else ", fp32")
        for variant, found in times.items():
            ratios = [a / b for a, b in zip(found, times["bare"], strict=True)]
            bench.tell("ratios", {
                "layout": layout, "variant": variant, "ms": statistics.median(found),
                "x_bare": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            })  # fmt: skip


def count_waits(bench: Bench) -> None:
    """Count what makes the host wait for the device inside one forward, and where in the code it is."""
    model, images = bench.load(), bench.make_images(bench.batch).to(bench.device)
    sites = [site for site in find_sites(model, bench.size) if site.measurable]
    variants: dict[str, Callable[[], object]] = {
        "bare": partial(model, images),
        "avr input": measured(model, images, sites, ("avr",), ("input",)),
        "avr+am dense": measured(model, images, sites, ("avr", "am"), ("dense",)),
        "defaults": measured(model, images, sites, DEFAULT_METRICS[:-1], ("input", "dense")),
        "all site metrics": measured(model, images, sites, SITE_METRICS, ("input", "dense", "signal")),
    }
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_gpu
    with evaluation_mode(model), torch.no_grad():
        for variant, call in variants.items():
            call()
            bench.wait()
            with profile(activities=activities) as found:
                call()
            counts = _count_events(found)
            row: Row = {"variant": variant, "sites": len(sites)}
            row |= {name: counts.get(name, 0) for name in WAITING} | {"kernels": counts["kernels"]}
            bench.tell("waits", row)
            for place, count in _find_waits(call).most_common(12) if bench.on_gpu else ():
                bench.tell("waits_where", {"variant": variant, "count": count, "where": place})
            if variant == "defaults":
                key = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
                table = found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)
                (bench.out / "gpu_profile.txt").write_text(table)


def _count_events(found: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for event in found.events():
        counts[next((name for name in WAITING if event.name.startswith(name)), "other")] += 1
        counts["kernels"] += event.name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
    # What closes the profile itself waits once.
    counts["cudaDeviceSynchronize"] = max(0, counts["cudaDeviceSynchronize"] - 1)
    return counts


def _find_waits(call: Callable[[], object]) -> Counter[str]:
    """Return the places at which torch warns of a wait."""
    torch.cuda.synchronize()
    torch.set_warn_always(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
    return Counter(
        f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in caught if "synchron" in str(w.message)
    )


def time_whole(bench: Bench) -> None:
    """Time whole calls of `measure` on three batches, and the study's way on a few images, per image."""
    model = bench.load()
    count = 3 * bench.batch
    images = bench.make_images(count)
    few = bench.make_images(min(8, bench.batch)).to(bench.device)
    with evaluation_mode(model), torch.no_grad():
        sites = [site for site in find_sites(model, bench.size) if site.measurable]
        on_device = images[: bench.batch].to(bench.device)
        model(on_device)
        bare = bench.time(lambda: model(on_device)) / bench.batch
        bench.tell("whole", {"variant": "bare forward", "n_images": bench.batch, "ms_per_image": bare})
        study = bench.time(study_on_host(model, few, sites)) / len(few)
        bench.tell(
            "whole", {"variant": "the study's way, input", "n_images": len(few), "ms_per_image": study}
        )
    calls: dict[str, dict[str, Any]] = {
        "measure avr, input": {"metrics": ("avr",), "taps": ("input",)},
        "measure avr+am, dense": {"metrics": ("avr", "am"), "taps": ("dense",)},
        "measure defaults but sis": {"metrics": DEFAULT_METRICS[:-1]},
        "measure defaults": {},
    }
    for variant, options in calls.items():
        if bench.is_late:
            break

        def call(options: dict[str, Any] = options) -> None:
            spectral.measure(model, images, batch_size=bench.batch, progress=False, **options)

        if variant == "measure avr, input":
            call()  # warms up
        taken = bench.time(call) / count
        bench.tell("whole", {
            "variant": variant, "n_images": count, "ms_per_image": taken,
            "x_bare": taken / bare, "study_over_this": study / taken,
        })  # fmt: skip


def compare_precisions(bench: Bench) -> None:
    """Compare every metric in reduced precision with float64: of the same maps, and of the same network."""
    images = bench.make_images(min(4, bench.batch))
    reference = _tabulate(bench, bench.load(torch.float64), images.double(), tf32=False)
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        if tf32 and not bench.on_gpu:
            continue
        found = _tabulate(bench, bench.load(dtype), images.to(dtype), tf32)
        for (tap, metric), wide in reference.items():
            values = found.get((tap, metric))
            if values is None or values.shape != wide.shape:
                print(f"  precision: {name} has no {metric} at {tap}, or not of every image", flush=True)
                continue
            error = (values - wide).abs() / wide.abs().clamp(min=1e-3)
            bench.tell("precision", {
                "network in": name, "tap": tap, "metric": metric,
                "median": float(error.median()), "most": float(error.max()),
            }, quiet=True)  # fmt: skip
    _compare_arithmetic(bench, images)


def _tabulate(bench: Bench, model: nn.Module, images: Tensor, tf32: bool) -> dict[tuple[str, str], Tensor]:
    with precision(tf32), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = spectral.measure(
            model, images, DEFAULT_METRICS[:-1], taps=("input", "dense", "signal"), progress=False
        )
    rows = table[table["value"].notna() & table["metric"].isin(SITE_METRICS)]
    rows = rows.sort_values(["site", "image"])
    return {
        (str(tap), str(metric)): torch.from_numpy(own["value"].to_numpy(float, copy=True))
        for (tap, metric), own in rows.groupby(["tap", "metric"], observed=True)
    }


def _compare_arithmetic(bench: Bench, images: Tensor) -> None:
    """Metrics of one and the same map, as the device computes them and in float64: no network between."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        model = bench.load(dtype)
        worst: dict[tuple[str, str], float] = {}

        def reduce(capture: Capture, worst: dict[tuple[str, str], float] = worst) -> None:
            kept, same = capture.dense(), lambda v: v
            g, metrics = capture.site.geometry, (*SITE_METRICS,)
            lattice = Lattice(g.stride, g.phase, capture.size)
            values = [
                evaluate_pieces([measure_piece(x, lattice, metrics)], lattice, metrics, same, same)
                for x in (kept, kept.double().cpu())
            ]
            for metric, value in values[0].items():
                wide = values[1][metric].double()
                error = float(((value.double().cpu() - wide).abs() / wide.abs().clamp(min=1e-6)).max())
                key = ("dense", metric)
                worst[key] = max(worst.get(key, 0.0), error)

        sites = [site for site in find_sites(model, bench.size) if site.measurable]
        with torch.no_grad(), FeatureExtractor(model, sites, tap="dense", reduce=reduce):
            model(images.to(bench.device, dtype))
        for (tap, metric), error in worst.items():
            bench.tell("arithmetic", {"maps in": name, "tap": tap, "metric": metric, "most": error}, True)


PARTS: dict[str, Callable[[Bench], None]] = {
    "waits": count_waits,
    "ratios": time_ratios,
    "whole": time_whole,
    "precision": compare_precisions,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the CSV files.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--model", "name", default="timm/resnet50@random", show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--parts", default=",".join(PARTS), show_default=True)
@click.option("--limit", default=85.0, show_default=True, help="Seconds after which no part begins.")
def main(
    out: Path, device: str, name: str, batch: int, size: int, rounds: int, parts: str, limit: float
) -> None:
    """Run the parts one after the other and print a table of all they found."""
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(name, torch.device(device), batch, size, rounds, out, deadline=time.perf_counter() + limit)
    where = torch.cuda.get_device_name() if bench.on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{where}; torch {torch.__version__}; {name}, {size} px, batch {batch}, {rounds} rounds", flush=True
    )
    for part in parts.split(","):
        start = time.perf_counter()
        if bench.is_late:
            print(f"  {part}: no time left", flush=True)
            continue
        try:
            PARTS[part](bench)
        except Exception:  # what other parts find must not be lost
            print(f"  {part} FAILED\n{traceback.format_exc()}", flush=True)
        print(f"  {part} took {time.perf_counter() - start:.1f} s", flush=True)
        if bench.on_gpu:
            torch.cuda.empty_cache()
    _summarize(bench, where)


def _summarize(bench: Bench, where: str) -> None:
    print(f"\n{where}: {bench.name}, {bench.size} px, batch {bench.batch}")
    for row in bench.rows.get("ratios", []):
        print(f"  {row['layout']:22s} {row['variant']:20s} {row['ms']:9.2f} ms  {row['x_bare']:6.3f} × bare")
    for row in bench.rows.get("whole", []):
        ratios = "".join(f"  {row[key]:8.2f} {key}" for key in ("x_bare", "study_over_this") if key in row)
        print(f"  {row['variant']:30s} {row['ms_per_image']:9.3f} ms per image{ratios}")
    for part, column in (("precision", "network in"), ("arithmetic", "maps in")):
        for name in dict.fromkeys(row[column] for row in bench.rows.get(part, [])):
            own = [row for row in bench.rows[part] if row[column] == name]
            found = ", ".join(f"{row['metric']} ({row['tap']}) {row['most']:.1e}" for row in own)
            print(f"  largest relative error, {column} {name}: {found}")
    for row in bench.rows.get("waits", []):
        found = ", ".join(f"{row[name]} {name}" for name in WAITING if row[name])
        print(f"  waits, {row['variant']:20s} {row['kernels']} kernels; {found or 'none'}")


if __name__ == "__main__":
    main()
