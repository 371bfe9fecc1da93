"""Peak memory of measuring: against a bare forward pass, and over many images against few (streaming).

python benchmarks/memory.py --few 200 --many 2000
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import click

PROGRAM = """
import resource, sys, spectral
model = spectral.load_model(sys.argv[1])
images = spectral.load_images("synthetic", size=32, limit=int(sys.argv[2]))
spectral.measure(model, images, out=sys.argv[3], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


# What a forward pass needs beside the model and the images, with and without AVR and AM at every dense map.
BATCH_PROGRAM = """
import resource, sys, torch, spectral
model = spectral.load_model(sys.argv[1])
images = torch.rand(int(sys.argv[2]), 3, 224, 224)
sites = [site for site in spectral.find_sites(model, 224) if site.measurable]
from spectral.hooks.extractor import FeatureExtractor
from spectral.measurement import measure_capture

with torch.no_grad():
    if sys.argv[3] == "bare":
        model(images)
    else:
        reduce = lambda capture: measure_capture(capture, ("avr", "am"), ("dense",))
        with FeatureExtractor(model, sites, tap="dense", reduce=reduce):
            model(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure_peak(model: str, count: int) -> float:
    """Peak resident memory in MiB of a fresh process that measures ``count`` images."""
    with tempfile.TemporaryDirectory() as folder:
        return run_alone(PROGRAM, model, str(count), folder)


def run_alone(program: str, *arguments: str) -> float:
    """Return the peak in MiB that a program prints."""
    command = [sys.executable, "-c", program, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output) / (1024 * 1024 if sys.platform == "darwin" else 1024)


@click.command()
@click.option("--model", default="bundled/resnet20-blurpool@random", show_default=True)
@click.option("--few", default=200, show_default=True)
@click.option("--many", default=2000, show_default=True)
@click.option("--large", default="timm/resnet50@random,timm/vit_base_patch32_224@random", show_default=True,
              help="Models of the second comparison.")  # fmt: skip
@click.option("--batch-size", default=16, show_default=True)
def main(model: str, few: int, many: int, large: str, batch_size: int) -> None:
    """Print both peaks and their ratio."""
    for name in large.split(","):
        bare = run_alone(BATCH_PROGRAM, name, str(batch_size), "bare")
        with_maps = run_alone(BATCH_PROGRAM, name, str(batch_size), "measured")
        print(f"{name}, batch {batch_size}: bare {bare:.0f} MiB, with AVR and AM at every dense map "
              f"{with_maps:.0f} MiB: {with_maps / bare:.3f} ×")  # fmt: skip
    if not many:
        return
    first, last = measure_peak(model, few), measure_peak(model, many)
    print(f"{model}: {first:.0f} MiB over {few} images, {last:.0f} MiB over {many}: {last / first:.3f} ×")


if __name__ == "__main__":
    main()
