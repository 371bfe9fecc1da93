"""Faults on purpose: kills, pairs of writers, flipped bits, interrupts, threads; a table of what went wrong.

A job (measure, study, compare, train, diagnose, report) runs in a forked process that is killed at a random
moment and started again, or beside a second that writes to the same folder; what it then gives is held
against a run that nothing happened to. Bits are flipped in finished folders; interrupts come at random
moments of calls that alter a model; threads measure and serve one model. A trial counts as a fault if
anything is lost, doubled, changed, left behind or refused without a sentence. ``--full`` are the counts that
must hold: 200 kills, 100 pairs of writers, 2000 bits, 1000 interrupts, 200 pairs of threads. After
``--minutes`` the table says what was done until then.

Example: python benchmarks/faults.py --full --jobs 14 --minutes 5 --out results
"""

from __future__ import annotations

import atexit
import faulthandler
import hashlib
import importlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
import torch
from torch import nn

import spectral
from spectral.analysis import compare_models, read_diagnosis
from spectral.data import ImageSet, load_images
from spectral.errors import SpectralError
from spectral.identity import find_structure
from spectral.models.weights_id import hash_state
from spectral.study import StudyOptions, run_study
from spectral.table.csv_files import describe_environment, write_csv
from spectral.table.schema import RUN_FILE
from spectral.training import LabelledImages, Recipe, train

FULL = {"kills": 200, "writers": 100, "bits": 2000, "interrupts": 1000, "threads": 200}
AT_ONCE = {"kills": 2, "writers": 2, "bits": 50, "interrupts": 25, "threads": 5}  # trials of one process
KEY = ["model", "image", "site", "tap", "metric"]
BEING_WRITTEN = "is being written by"
# What the jobs import when they first need it: loaded before the fork, it is loaded once.
LOADED = (
    "torch._dynamo", "scipy.stats", "scipy.ndimage", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf", "mpl_toolkits.axes_grid1", "jinja2", "spectral.page",
    "spectral.figures", "spectral.study.phase8",
)  # fmt: skip
LONGEST = 600  # seconds that a run may take before it counts as stuck
DIGESTED = (".parquet", ".json", ".npz", ".pt")
DIGESTING = ("measure", "train", "diagnose")  # jobs whose files all have a digest
COLUMNS = ["fault", "job", "trials", "faults", "seconds", "first"]

Result = Mapping[str, Any]


# Jobs: what can be killed and continued -------------------------------------------------------------------


def make_network(seed: int = 0) -> nn.Module:
    """Make a small classifier with two sites."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()  # fmt: skip


def make_images(count: int = 24, size: int = 32) -> torch.Tensor:
    """Make noise, the same each time."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def run_measure(out: Path | None = None, count: int = 24, model: nn.Module | None = None) -> Result:
    """Measure the network."""
    model = make_network() if model is None else model
    table = spectral.measure(
        model, make_images(count), ("avr", "am", "sis"), batch_size=2, out=out, progress=False
    )
    return {"rows": table[table["reason"] == ""].set_index(KEY)["value"].sort_index()}


def run_compare(out: Path) -> Result:
    """Compare two of them."""
    images = load_pictures()
    models = {"one": make_network(), "other": make_network(1)}
    table = compare_models(
        models, dict.fromkeys(models, images), ("avr", "am"), batch_size=2, out=out, progress=False
    )
    return {"table": table}


def run_survey(out: Path) -> Result:
    """Run a phase of the study on one of the bundled networks: tables and figures."""
    models = ("bundled/resnet20",)
    run_study(
        [8], StudyOptions(models=models, images="synthetic", limit=8, batch_size=1, out=out, progress=False)
    )
    return {path.name: pd.read_csv(path) for path in sorted((out / "tables").glob("*.csv"))}


def run_training(out: Path) -> Result:
    """Tune the network for some epochs."""
    pixels = (255 * make_images(32, 16)).to(torch.uint8)
    data = LabelledImages(pixels, torch.arange(32) % 10, tuple("abcdefghij"), "noise")
    recipe = Recipe(epochs=6, batch_size=8, max_lr=0.01, precision="fp32")
    found = train("resnet20", data, data, out, recipe, progress=False, start=make_network())
    return {"weights": hash_state(found["model"].state_dict()), "history": str(found["history"])}


def run_diagnosis(out: Path) -> Result:
    """Say where the network aliases, and make a page of it; what a clock says is left out."""
    found = spectral.diagnose(
        make_network(), make_images(6), methods=("flc",), fix_images=2, budget_images=2, batch_size=2,
        out=out, progress=False,
    )  # fmt: skip
    spectral.write_page(found, out / "page.html")
    return _list_tables(found)


def run_report(out: Path) -> Result:
    """Make a page of a folder that holds a diagnosis."""
    page = spectral.write_report(out).read_bytes()
    return {"page": hashlib.sha256(page).hexdigest(), **_list_tables(read_diagnosis(out))}


def read_everything(out: Path) -> Result:
    """Read all that a diagnosis has left."""
    spectral.read(out / "measurements")
    return _list_tables(read_diagnosis(out))


def _list_tables(found: spectral.Diagnosis) -> Result:
    timed = "latency|seconds"
    return {name: table.filter(regex=rf"^(?!.*({timed}))") for name, table in found.tables.items()}


JOBS: dict[str, Callable[[Path], Result]] = {
    "measure": run_measure, "study": run_survey, "compare": run_compare, "train": run_training,
    "diagnose": run_diagnosis, "report": run_report,
}  # fmt: skip
NEEDED = {"report": "diagnose"}  # whose folder a job begins with


def load_pictures() -> ImageSet:
    """Load eight small pictures."""
    return load_images("synthetic", size=32, limit=8)


def find_difference(found: Result, expected: Result) -> str:
    """Say what differs between two results of one job; empty where nothing does."""
    if set(found) != set(expected):
        return f"has {', '.join(sorted(found))}, not {', '.join(sorted(expected))}"
    for name, value in expected.items():
        other = found[name]
        try:
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(other, value, rtol=1e-3, atol=1e-7)
            elif isinstance(value, pd.Series):
                pd.testing.assert_series_equal(other, value, rtol=1e-5, atol=1e-8)
            elif other != value:
                return f"{name} is {str(other)[:80]}, not {str(value)[:80]}"
        except AssertionError as error:
            return f"{name} differs: {' '.join(str(error).split())[:200]}"
    return ""


def read_rows(out: Path) -> Result:
    """Read all that was measured below a folder, as a stranger would."""
    found = {}
    for path in sorted(out.rglob(RUN_FILE)):
        table = spectral.read(path.parent)
        measured = table[table["reason"] == ""].set_index(KEY)["value"].sort_index()
        found[str(path.parent.relative_to(out))] = measured
    return found


# Processes that are killed --------------------------------------------------------------------------------


class Child:
    """A forked process that does a job in a folder and leaves what came of it in a file.

    The process that forks has torch loaded and never computed with it: a fork is as good as a start.
    """

    def __init__(self, job: Callable[..., Any], *arguments: Any) -> None:
        handle, name = tempfile.mkstemp(prefix="faults-")
        os.close(handle)
        self.file = Path(name)
        self.process = os.fork()
        if self.process == 0:
            self._work(job, arguments)

    def _work(self, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            with open(os.devnull, "w") as nowhere, self.file.with_suffix(".stack").open("w") as stack:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(stack.fileno(), 2)
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            try:
                said: tuple[str, Any] = "done", job(*arguments)
            except SpectralError as error:
                said = "refused", str(error)
            except BaseException:
                said = "failed", traceback.format_exc(limit=-3)
            self.file.write_bytes(pickle.dumps(said))
        finally:
            os._exit(0)

    def kill(self) -> None:
        """End it, wherever it is."""
        os.kill(self.process, signal.SIGKILL)

    def wait(self) -> tuple[str, Any]:
        """Return done, refused, failed or killed, and its result or what it said."""
        deadline = time.monotonic() + LONGEST
        while os.waitpid(self.process, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.process, signal.SIGUSR1)  # it writes where it is
                time.sleep(1)
                self.kill()
                os.waitpid(self.process, 0)
                return "failed", f"stuck for {LONGEST} s: {self._clean()}"
            time.sleep(0.002)
        content = self.file.read_bytes()
        self._clean()
        return pickle.loads(content) if content else ("killed", None)

    def _clean(self) -> str:
        """Remove its files; return what it wrote to its standard error."""
        stack = self.file.with_suffix(".stack")
        said = stack.read_text() if stack.exists() else ""
        self.file.unlink()
        stack.unlink(missing_ok=True)
        return said


class Reference(NamedTuple):
    """What a job gives when nothing happens to it, and the folder that it leaves."""

    result: Result
    rows: Result
    seconds: float
    folder: Path


def make_reference(name: str) -> Reference:
    """Do a job undisturbed, in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = folder / "run"
    prepare(name, run)
    started = time.perf_counter()
    state, result = Child(JOBS[name], run).wait()
    seconds = time.perf_counter() - started
    if state != "done":
        raise SystemExit(f"{name} {state} undisturbed: {result}")
    return Reference(result, Child(read_rows, run).wait()[1], seconds, run)


REFERENCES: dict[str, Reference] = {}


def prepare(name: str, folder: Path) -> None:
    """Lay what a job begins with into its folder."""
    if name in NEEDED:
        shutil.copytree(REFERENCES[NEEDED[name]].folder, folder)


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for a trial."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder)


def finish(name: str, folder: Path) -> str:
    """Continue a job to its end and say what is wrong with what it gives and leaves."""
    state, result = Child(JOBS[name], folder).wait()
    if state != "done":
        return f"continuing it {state}: {result}"
    expected = REFERENCES[name]
    state, rows = Child(read_rows, folder).wait()
    if state != "done":
        return f"reading it {state}: {rows}"
    left = [path.name for path in folder.rglob("*") if path.suffix == ".partial" or path.name == "_lock"]
    difference = find_difference(result, expected.result) or find_difference(rows, expected.rows)
    return difference or (f"left behind: {', '.join(left)}" if left else "")


def kill(name: str, rng: random.Random) -> str:
    """Kill a job at a random moment, one to three times, and continue it."""
    with scratch() as folder:
        prepare(name, folder / "run")
        for _ in range(rng.choice((1, 1, 2, 3))):
            child = Child(JOBS[name], folder / "run")
            time.sleep(rng.uniform(0, 1.05 * REFERENCES[name].seconds))
            child.kill()
            state, said = child.wait()
            if state in ("refused", "failed"):
                return f"before it was killed it {state}: {said}"
        return finish(name, folder / "run")


def write_twice(name: str, rng: random.Random) -> str:
    """Start two writers on one folder, at once or while the first is busy."""
    with scratch() as folder:
        prepare(name, folder / "run")
        first = Child(JOBS[name], folder / "run")
        time.sleep(rng.choice((0.0, rng.uniform(0, REFERENCES[name].seconds))))
        second = Child(JOBS[name], folder / "run")
        outcomes = [first.wait(), second.wait()]
        if not any(state == "done" for state, _ in outcomes):
            return f"none of two finished: {outcomes}"
        for state, said in outcomes:
            if state == "done":
                if difference := find_difference(said, REFERENCES[name].result):
                    return f"one of two gives something else: {difference}"
            elif state != "refused" or BEING_WRITTEN not in said:
                return f"the other {state}: {said}"
        return finish(name, folder / "run")


def flip_bits(name: str, rng: random.Random, trials: int) -> list[str]:
    """Flip one bit of one file of a finished folder; only what is refused was noticed."""
    found = []
    with scratch() as folder:
        Child(JOBS[name], folder).wait()
        files = sorted(path for path in folder.rglob("*") if path.suffix in DIGESTED)
        read = {"measure": spectral.read, "diagnose": read_everything}.get(name, JOBS[name])
        for _ in range(trials):
            path = rng.choice(files)
            whole = bytearray(path.read_bytes())
            place = rng.randrange(8 * len(whole))
            flipped = bytes(whole[: place // 8]) + bytes([whole[place // 8] ^ 1 << place % 8])
            path.write_bytes(flipped + bytes(whole[place // 8 + 1 :]))
            state, said = Child(read, folder).wait()
            found.append("" if state == "refused" else f"bit {place} of {path.name}: {state}, {said}"[:300])
            path.write_bytes(bytes(whole))
    return found


# What alters a model for a while --------------------------------------------------------------------------


class Snapshot:
    """All that a call must leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.structure = find_structure(model)
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
        self.modes = self._count_modes()
        with torch.no_grad():
            self.output = model(make_images(1))

    def find_change(self) -> str:
        """Say what changed; empty where nothing did."""
        own = [
            hooks
            for module in self.model.modules()
            for name, hooks in vars(module).items()
            if name.endswith("_hooks") and hooks
        ]
        every = [
            hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global") and hooks
        ]
        if any(hasattr(hooks, "__len__") for hooks in (*own, *every)):
            return f"{len(own)} hooks of the model and {len(every)} of all modules are left"
        if self._count_modes() != self.modes:
            return f"modes were {self.modes} and are {self._count_modes()}"
        for name, value in self.model.state_dict().items():
            if value.device != self.weights[name].device or not torch.equal(value, self.weights[name]):
                return f"{name} changed or moved"
        if {name: sorted(vars(module)) for name, module in self.model.named_modules()} != self.attributes:
            return "modules have other attributes"
        if find_structure(self.model) != self.structure:
            return "its structure is another"
        with torch.no_grad():
            same = torch.equal(self.model(make_images(1)), self.output)
        return "" if same else "its output is another"

    @staticmethod
    def _count_modes() -> tuple[Any, ...]:
        stacks = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
        return (*stacks, torch.is_grad_enabled(), signal.getsignal(signal.SIGINT))


ALTERING: dict[str, Callable[[nn.Module, Path], Any]] = {
    "measure": lambda model, out: run_measure(out, 6, model),
    "find_sites": lambda model, _: spectral.find_sites(model, 32),
    "convert": lambda model, _: spectral.convert(model, "blurpool", example=(3, 32, 32)),
    "stability": lambda model, _: spectral.measure_stability(model, make_images(4), progress=False),
    "recalibrate": lambda model, _: spectral.recalibrate(
        spectral.convert(model, "flc", example=(3, 32, 32)), make_images(4)
    ),
}


def interrupt(name: str, rng: random.Random, trials: int) -> list[str]:
    """Interrupt a call at random moments; say what it left on the model or in the process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, call, found = make_network(), ALTERING[name], []
    before = Snapshot(model)
    with scratch() as folder:
        call(model, folder / "first")
        started = time.perf_counter()
        call(model, folder / "second")
        length = time.perf_counter() - started
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        for trial in range(trials):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, length))
                call(model, folder / f"{trial // 3}")  # some of them continue others
                signal.setitimer(signal.ITIMER_REAL, 0)
                found.append(before.find_change())
            except KeyboardInterrupt:
                found.append(before.find_change())
            except Exception:
                found.append(traceback.format_exc(limit=-3))
    return found


def share(name: str, rng: random.Random, trials: int) -> list[str]:
    """Measure one model in two threads while a third does something else with it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, images = make_network(), make_images(2)
    before, expected = Snapshot(model), run_measure(count=8)
    sites = [site.name for site in spectral.find_sites(model, 32)]

    def measure() -> str:
        return find_difference(run_measure(None, 8, model), expected)

    def serve() -> str:
        with torch.no_grad():
            right = before.model(images)
            return (
                "" if all(torch.equal(model(images), right) for _ in range(50)) else "serves something else"
            )

    def discover() -> str:
        return "" if [s.name for s in spectral.find_sites(model, 32)] == sites else "finds other sites"

    others = {"two measure, one serves": serve, "two measure, one discovers": discover}
    found = []
    for _ in range(trials):
        said: list[str] = []

        def work(job: Callable[[], str], said: list[str] = said) -> None:
            time.sleep(rng.uniform(0, 0.01))
            try:
                said.append(job())
            except Exception:
                said.append(traceback.format_exc(limit=-3))

        threads = [threading.Thread(target=work, args=(job,)) for job in (measure, measure, others[name])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST)
        stuck = "" if len(said) == len(threads) else "a thread is stuck"
        found.append(next(filter(None, said), "") or stuck or before.find_change())
    return found


# All together ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Some trials of one kind."""

    fault: str
    job: str
    trials: int
    seed: str


def work(task: Task) -> tuple[Task, list[str], float]:
    """Do the trials of a task; one sentence each, empty where nothing went wrong."""
    rng, started = random.Random(task.seed), time.perf_counter()
    try:
        if task.fault in ("kills", "writers"):
            trial = kill if task.fault == "kills" else write_twice
            found = [trial(task.job, rng) for _ in range(task.trials)]
        else:
            trials = {"bits": flip_bits, "interrupts": interrupt, "threads": share}[task.fault]
            found = trials(task.job, rng, task.trials)
    except BaseException:
        found = [traceback.format_exc(limit=-4)]
    return task, found, time.perf_counter() - started


def plan(counts: Mapping[str, int], seed: int, jobs: Sequence[str]) -> list[Task]:
    """Divide the trials into tasks, in an order in which each beginning has something of everything."""
    kinds = {
        "kills": jobs, "writers": jobs, "bits": [name for name in jobs if name in DIGESTING],
        "interrupts": list(ALTERING), "threads": ["two measure, one serves", "two measure, one discovers"],
    }  # fmt: skip
    tasks = []
    for fault, jobs in kinds.items():
        for place, job in enumerate(jobs):
            count = len(range(place, counts[fault], len(jobs)))
            for start in range(0, count, AT_ONCE[fault]):
                trials = min(AT_ONCE[fault], count - start)
                tasks.append((start / count, Task(fault, job, trials, f"{seed} {fault} {job} {start}")))
    return [task for _, task in sorted(tasks, key=lambda pair: pair[0])]


def tabulate(done: list[tuple[Task, list[str], float]]) -> pd.DataFrame:
    """One row per fault and job: trials, faults, seconds, and what the first fault was."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for task, found, seconds in done:
        row = rows.setdefault((task.fault, task.job), {
            "fault": task.fault, "job": task.job, "trials": 0, "faults": 0, "seconds": 0.0, "first": "",
        })  # fmt: skip
        row["trials"] += len(found)
        row["faults"] += sum(map(bool, found))
        row["seconds"] += seconds
        row["first"] = row["first"] or " ".join(next(filter(None, found), "").split())
    table = pd.DataFrame(rows.values(), columns=COLUMNS).round({"seconds": 1})
    return table.sort_values(["fault", "job"], ignore_index=True)


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="The counts that must hold; otherwise a fortieth of them.")
@click.option("--kills", type=click.IntRange(0), help="Kills, over all jobs.")
@click.option("--writers", type=click.IntRange(0), help="Pairs of writers.")
@click.option("--bits", type=click.IntRange(0), help="Flipped bits.")
@click.option("--interrupts", type=click.IntRange(0), help="Interrupted calls.")
@click.option("--threads", type=click.IntRange(0), help="Models shared by threads.")
@click.option("--job", "names", type=click.Choice(list(JOBS)), multiple=True, help="What to disturb; all.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes at once.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Results folder: writes OUT/tables/faults.csv.")
def main(
    full: bool,
    names: tuple[str, ...],
    jobs: int,
    minutes: float | None,
    seed: int,
    out: Path | None,
    **counts: int | None,
) -> None:
    """Count faults."""
    asked = {
        name: (number if full else -(-number // 40)) if counts[name] is None else int(counts[name] or 0)
        for name, number in FULL.items()
    }
    started = time.monotonic()
    for name in LOADED:
        importlib.import_module(name)
    tasks = plan(asked, seed, names or tuple(JOBS))
    disturbed = {task.job for task in tasks if task.fault in ("kills", "writers")}
    needed = disturbed | {NEEDED[name] for name in disturbed & set(NEEDED)}
    for name in filter(needed.__contains__, JOBS):
        REFERENCES[name] = make_reference(name)
        click.echo(f"{name}: {REFERENCES[name].seconds:.2f} s undisturbed")
    done: list[tuple[Task, list[str], float]] = []
    until = started + 60 * minutes if minutes else np.inf
    pool = multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1)
    try:
        results = pool.imap_unordered(work, tasks)
        for _ in tasks:
            left = until - time.monotonic()
            done.append(results.next(None if left == np.inf else max(left, 0.01)))
            for sentence in filter(None, done[-1][1]):
                click.echo(f"{done[-1][0].fault}, {done[-1][0].job}: {sentence}")
    except multiprocessing.TimeoutError:
        click.echo(f"stopped after {minutes:g} minutes with {len(done)} of {len(tasks)} tasks done")
    finally:
        pool.terminate()
        pool.join()
    table = tabulate(done)
    click.echo(table.drop(columns="first").to_string(index=False))
    click.echo(f"{table['faults'].sum()} faults in {time.monotonic() - started:.0f} s")
    if out is not None:
        facts = {**describe_environment(), "seed": seed, "asked": asked, "jobs": jobs}
        click.echo(str(write_csv(table, out / "tables" / "faults.csv", facts)))
    sys.exit(bool(table["faults"].sum()))


if __name__ == "__main__":
    main()
