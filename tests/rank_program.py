"""What each rank of a test's process group runs: every case of `test_ranks`, one after the other.

Called by torchrun as ``rank_program.py FOLDER``; what a rank found goes to FOLDER/RANK.json.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # its functions' defaults are the group that is there when it is first loaded
from dying import list_threads
from faults import full_disk
from networks import Falling
from torch import Tensor, nn

import spectral
from spectral.cli import main as spectral_command
from spectral.errors import SpectralError
from spectral.processes import ranks
from spectral.sweeping.models import name_folders
from spectral.training import STATE_NAME, LabelledImages, Recipe

SIZE = 16
NETWORK = f"{Path(__file__).parent / 'dying.py'}:build"
# Batches of one are the same on any number of ranks, to the last digit: a deviation magnifies rounding.
FEW = ["--images", "synthetic", "--limit", "4", "--batch-size", "1", "--workers", "0", "--quiet"]
SMALL = ["--size", "16", "--mean", "0,0,0", "--std", "1,1,1"]
COMMANDS = (
    ["attribute", NETWORK, *SMALL],
    ["budget", NETWORK, *SMALL],
    ["diagnose", NETWORK, *SMALL, "--methods", "flc", "--minutes", "1000"],
    ["study", "10", "--models", NETWORK],
)


class Fork(nn.Module):
    """Takes another way, over a site of its own, for bright images; fails on one whose pixels are all 9."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common = nn.Conv2d(3, 4, 3, 2, 1)
        self.dark, self.bright = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if (x == 9).flatten(1).all(1).any():
            raise RuntimeError("met a nine")
        way = self.bright if x.mean() > 1 else self.dark
        return self.head(way(self.common(x)).mean((2, 3)))


def plain(seed: int = 0) -> nn.Module:
    """Two sites and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip


def decoder() -> nn.Module:
    """A lattice that gets finer again."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3))


def wait_for(path: Path) -> None:
    """Wait until another rank has made a file."""
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)


class Laggard(nn.Module):
    """The first rank begins, and waits in its first unit until the second has one, where that is slow.

    SPECTRAL_TEST_QUEUE says where units are claimed: a network that a file is named for knows nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        queue = Path(os.environ["SPECTRAL_TEST_QUEUE"])
        if dist.get_rank():
            wait_for(queue / "begin.done")
            time.sleep(0.5 * (queue / "000001.json").exists())
        elif (queue / "000000.json").exists():
            wait_for(queue / "000001.json")
        return self.net(x)  # type: ignore[no-any-return]


def build_laggard() -> nn.Module:
    """Make it."""
    return Laggard()


def pictures(count: int, seed: int = 1) -> Tensor:
    """White noise."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def labelled(first: int) -> list[tuple[Tensor, int]]:
    """Four images, and numbers from the first on."""
    return [(x, first + number) for number, x in enumerate(pictures(4).sigmoid())]


def brightening(count: int) -> Tensor:
    """Dark images, and bright ones in the last third."""
    x = pictures(count)
    x[-(count // 3) :] += 4
    return x


def rows(table: Any) -> list[list[Any]]:
    """What a table says, as JSON holds it."""
    keys = ["model", "weights", "images", "image", "cluster", "site", "call", "op", "stride", "tap", "metric",
            "reason", "value"]  # fmt: skip
    return json.loads(table[keys].to_json(orient="values", double_precision=15))  # type: ignore[no-any-return]


def whole(table: Any) -> list[list[Any]]:
    """Every column of any table, as JSON holds it."""
    return json.loads(table.to_json(orient="values", double_precision=15))  # type: ignore[no-any-return]


def attempt(call: Callable[[], Any]) -> dict[str, Any]:
    """Call it, and say how it ended and how long that took."""
    begun = time.monotonic()
    try:
        table = call()
        found = {"rows": rows(table) if "tap" in table else whole(table)}
    except (SpectralError, spectral.BrokenJobError) as error:
        found = {"error": str(error), "kinds": [kind.__name__ for kind in type(error).__mro__]}
    return {**found, "seconds": time.monotonic() - begun}


def list_analyses(seed: int = 0) -> dict[str, Callable[[], Any]]:
    """Everything that looks at images one by one, on seven of them in batches of two."""
    options: dict[str, Any] = {"batch_size": 2, "progress": False}
    x = pictures(7)
    pixels = x.sigmoid()
    grey = {"preprocessing": (0.5, 0.5)}
    return {
        "stability": lambda: spectral.measure_stability(plain(), x, **options),
        "equivariance": lambda: spectral.measure_equivariance(plain(), x, **options),
        "attribution": lambda: spectral.attribute_instability(plain(), x, **options),
        "budget": lambda: spectral.measure_instability_budget(plain(), x, shifts="random", **options),
        "predictions": lambda: spectral.measure_predictions(
            plain(), pixels, ["decimate-2", "checkerboard-0.05"], **grey, **options
        ),
        "consistency": lambda: spectral.measure_consistency(plain(), x, "circular", pairs=2, batch_size=8),
        "worst shift": lambda: spectral.measure_worst_shift(plain(), x, 1, batch_size=18),
        "diagonal": lambda: spectral.measure_diagonal(plain(), x, 3, batch_size=6),
        "heatmap": lambda: spectral.measure_fourier_heatmap(plain(), pixels, radius=1, **grey, **options),
        "imaging": lambda: spectral.measure_imaging(decoder(), x, **options),
        "other weights": lambda: spectral.measure_stability(plain(seed), x, **options),
        "robustness": lambda: spectral.measure_robustness(plain(), pixels, ["pgd-3"], **grey, **options),
    }  # fmt: skip


class Clumsy(nn.Module):
    """Fails, in a way that nobody foresaw, on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if len(x) == 2 and dist.get_rank() == 1:
            raise MemoryError("no room")
        return self.net(x)  # type: ignore[no-any-return]


class Masked(nn.Sequential):
    """Lets no gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return super().forward(x.round())  # type: ignore[no-any-return]


class Rounding(nn.Sequential):
    """Rounds as the machine does that it is on: no two ranks' alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return super().forward(x) * (1 + 1e-4 * dist.get_rank())  # type: ignore[no-any-return]


class Learner(nn.Module):
    """Has a norm that knows whole batches, and can be told to fail in a step."""

    left: int | None = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if self.training and Learner.left is not None:
            Learner.left -= 1
            if Learner.left < 0:
                raise SpectralError("stopped in a step")
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def train(folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Train two epochs of three batches, the last of one image alone, or stop in a step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (17, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images, torch.arange(17) % 10, tuple("abcdefghij"), "random")
    recipe = Recipe(epochs=2, batch_size=8, precision="fp32", attack="pgd", attack_steps=2, ema=0.5)
    Learner.left = steps
    try:
        found = spectral.train("resnet20", data, data, folder, recipe, progress=False, start=Learner())
    except (SpectralError, spectral.BrokenJobError) as error:
        return {"error": str(error)}
    finally:
        Learner.left = None
    weights = {name: value.tolist() for name, value in found.pop("model").state_dict().items()}
    return {"weights": weights, "history": found["history"]}


def distil(folder: Path) -> dict[str, Any]:
    """Tune a converted network, all ranks into one folder; then go on from there, and with another seed."""
    smooth = spectral.convert(Rounding(plain()).eval(), "blurpool", example=SIZE)
    options: dict[str, Any] = {"steps": 2, "batch_size": 2, "progress": False, "out": folder}
    tuned = [spectral.distill(smooth, pictures(4), **options) for _ in range(2)]
    said = attempt(lambda: spectral.distill(smooth, pictures(4), seed=dist.get_rank(), **options))
    return {"tuned": [{name: x.tolist() for name, x in one.state_dict().items()} for one in tuned], **said}


def run_commands(folder: Path) -> None:
    """Run commands as torchrun starts them, one after the other in one process group."""
    for command in COMMANDS:
        spectral_command([*command, *FEW, "--out", str(folder / command[0])], standalone_mode=False)


def run_sweep(folder: Path) -> str:
    """Share a sweep of two units, of which the second rank's takes longer; return how it is said to be."""
    folder.mkdir(exist_ok=True)
    models, told, name = folder / "models.txt", folder / "told.json", f"{Path(__file__)}:build_laggard"
    queue = folder / "sweep" / next(iter(name_folders([name]).values())) / "_queue"
    os.environ["SPECTRAL_TEST_QUEUE"] = str(queue)
    if dist.get_rank() == 0:
        models.write_text(name)
    dist.barrier()
    images = ["--images", "synthetic", "--limit", "4", "--batch-size", "1", "--unit", "2", "--workers", "0"]
    options = ["--metrics", "avr", "--quiet", "--out", str(folder / "sweep"), "--json", str(told)]
    spectral_command(["sweep", str(models), *images, *options], standalone_mode=False)
    return str(json.loads(told.read_text())["rows"][0]["state"])


def fall(folder: Path) -> Any:
    """Measure until the last image, whose rank has found by then what it is alone to know of."""
    x = brightening(12)
    Falling.end = x[-1]
    try:
        return spectral.measure(Falling(), x, out=folder, batch_size=1, progress=False)
    finally:
        Falling.end = None


def come_late() -> None:
    """Measure when another rank does so long before."""
    usual, ranks.QUIET = ranks.QUIET, timedelta(seconds=1)
    time.sleep(3 * dist.get_rank())
    spectral.measure(plain(), pictures(2), progress=False)
    ranks.QUIET = usual


def refuse(*command: str) -> dict[str, Any]:
    """Run a command that can't be done as a user's shell does: it says so and exits."""
    try:
        spectral_command([*command])
    except SystemExit as end:
        return {"status": end.code}
    return {}


def main(folder: Path) -> None:
    """Run every case."""
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    options: dict[str, Any] = {"batch_size": 2, "progress": False}
    singly: dict[str, Any] = {"batch_size": 1, "progress": False}
    failing = pictures(12)
    failing[11] = 9
    cases: dict[str, Callable[[], Any]] = {
        "memory": lambda: spectral.measure(plain(), pictures(11), **options),
        "one process": lambda: spectral.measure(plain(), pictures(11), together=False, **options),
        "folder": lambda: spectral.measure(plain(), pictures(11), out=folder / "run", **options),
        "again": lambda: spectral.measure(plain(), pictures(11), out=folder / "run", **options),
        "fork": lambda: spectral.measure(Fork(), brightening(12), **singly),
        "fork in one process": lambda: spectral.measure(
            Fork(), brightening(12), together=False, **singly
        ),
        "late reason": lambda: spectral.measure(Falling(), brightening(12), **singly),
        "late reason in one process": lambda: spectral.measure(
            Falling(), brightening(12), together=False, **singly
        ),
        "falls": lambda: fall(folder / "falls"),
        "one image": lambda: spectral.measure(plain(), pictures(1), **options),
        "weights": lambda: spectral.measure(plain(rank == count - 1), pictures(4), **options),
        "images": lambda: spectral.measure(plain(), pictures(4, int(rank == count - 1)), **options),
        "argument": lambda: spectral.measure(plain(), pictures(4), ["avr" if rank else "avt"], **options),
        "other seed": lambda: spectral.measure_consistency(plain(), pictures(4), seed=rank),
        "other labels": lambda: spectral.measure_predictions(
            plain(), labelled(rank), "decimate-2", preprocessing=(0.5, 0.5), **options
        ),
        "other preparation": lambda: spectral.measure_stability(
            plain(), pictures(4).sigmoid(), preprocessing=(0.5, 0.5 + rank), **options
        ),
        "all wrong": lambda: spectral.measure(plain(), pictures(4), ["avt"], **options),
        "folders": lambda: spectral.measure(plain(), pictures(4), out=folder / f"own{rank}", **options),
        "taken": lambda: spectral.measure(plain(), pictures(4), out=folder / "taken", **options),
        "fails": lambda: spectral.measure(Fork(), failing, out=folder / "fails", **options),
        "wrapped": lambda: spectral.measure(
            nn.parallel.DistributedDataParallel(plain()), pictures(4), **options
        ),
        "other calls": lambda: (spectral.measure_stability if rank else spectral.measure)(
            plain(), pictures(4), **options
        ),
        "other calls, turned": lambda: (spectral.measure if rank else spectral.measure_stability)(
            plain(), pictures(4), **options
        ),
        "timed and measured": lambda: spectral.measure(plain(), pictures(4), **options) if rank else (
            spectral.measure_latency({"net": plain()}, {"net": pictures(1)}, 1)
        ),
        "none to compare": lambda: spectral.analysis.compare_models(
            {"a": plain(), "b": plain(1)}, None if rank else pictures(4), **options
        ),
        "none to mend": lambda: spectral.analysis.measure_fixes(
            plain(), None if rank else pictures(4), ("flc",), **options
        ),
        "images of a diagnosis": lambda: spectral.diagnose(plain(), pictures(4, rank), progress=False),
        "network to mend": lambda: spectral.analysis.measure_fixes(
            plain(rank), pictures(4), ("flc",), **options
        ),
        "masked": lambda: spectral.measure_robustness(
            Masked(plain()), pictures(4).sigmoid(), ["fgsm"], preprocessing=(0.5, 0.5), **options
        ),
        "after all": lambda: spectral.measure(plain(), pictures(3), **options),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: attempt(case) for name, case in cases.items()}
        found |= {name: attempt(case) for name, case in list_analyses(rank).items()}
        found["no room"] = attempt(lambda: spectral.measure_stability(Clumsy(), pictures(8), **options))
        if rank == 0:
            with spectral.alone():
                alone = list_analyses().items()
                found |= {f"{name} alone": attempt(case) for name, case in alone}
                found["training alone"] = train(folder / "train-alone")
        found["training"] = train(folder / "train")
        stopped = folder / "train-stopped"
        found["training stopped"] = train(stopped, steps=14)  # 9 passes are an epoch
        if rank == 0:
            with spectral.alone():
                assert (stopped / STATE_NAME).exists()
                found["training resumed"] = train(stopped)
        run_commands(folder / "commands")
        if rank == 0:  # reading is nothing that ranks share
            found["read"] = len(spectral.read_diagnosis(folder / "commands" / "diagnose").sites)
        found["distilling"] = distil(folder / "distilling")
        come_late()
        found["sweep"] = run_sweep(folder / "sweeping")
        found["refused command"] = refuse("measure", NETWORK, "--device", "cuda:77")
        with full_disk(1000):  # which the first rank alone meets, at the end
            found["no room for tables"] = refuse(
                "attribute", NETWORK, *SMALL, *FEW, "--out", str(folder / "full")
            )
    dist.destroy_process_group()
    gc.collect()  # the case's own DistributedDataParallel, which refers to itself, holds the group
    found["threads"] = list_threads()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
