"""Peak memory of `measure` over few and over many images: streaming must keep it flat.

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


def measure_peak(model: str, count: int) -> float:
    """Peak resident memory in MiB of a fresh process that measures ``count`` images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, model, str(count), folder]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output) / (1024 * 1024 if sys.platform == "darwin" else 1024)


@click.command()
@click.option("--model", default="bundled/resnet20-blurpool@random", show_default=True)
@click.option("--few", default=200, show_default=True)
@click.option("--many", default=2000, show_default=True)
def main(model: str, few: int, many: int) -> None:
    """Print both peaks and their ratio."""
    small, large = measure_peak(model, few), measure_peak(model, many)
    print(f"{model}: {small:.0f} MiB over {few} images, {large:.0f} MiB over {many}: {large / small:.3f} ×")


if __name__ == "__main__":
    main()
