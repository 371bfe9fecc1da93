"""Units of a phase one after the other, or several at a time, each in a process that ends with its parent."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from spectral.errors import SpectralError
from spectral.processes.ranks import find_ranks
from spectral.study.declaration import Phase
from spectral.study.results import Results

Measured = tuple[str, Mapping[str, Any]]


def work_through(phase: Phase, results: Results, names: Sequence[str]) -> Iterator[Measured]:
    """Measure every unit of a phase, as many at a time as ``--jobs`` says, and yield them in their order.

    Raises:
        SpectralError: if what is kept of two would lie in one folder, whatever one of them raises, if a
            process is killed, or if jobs are asked for under torchrun.
    """
    assert phase.units is not None
    _require_apart(results, names)
    jobs = min(results.options.jobs, len(names))
    if jobs > 1 and find_ranks().count > 1:
        raise SpectralError("--jobs starts processes where torchrun has started some; use one or the other")
    if jobs <= 1:
        yield from ((name, phase.units.measure(results, name)) for name in names)
        return
    # CUDA can't be forked; each process looks at the networks and pictures once
    opening = partial(_open, phase.inputs, dataclasses.replace(results.options, progress=False))
    with ProcessPoolExecutor(jobs, get_context("spawn"), opening) as pool:
        try:
            found = pool.map(partial(_measure, phase.units.measure), names)
            for name, (measured, identities, files) in zip(names, found, strict=True):
                results.identities |= identities
                results.files |= files
                yield name, measured
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, BrokenProcessPool):
                raise
            raise SpectralError(
                "a process of --jobs was killed from outside, as a system does that is out of memory; the "
                "same command goes on from what is finished, with fewer --jobs in less memory"
            ) from error


def _require_apart(results: Results, names: Sequence[str]) -> None:
    """Refuse names that come to one folder, such as a/net.pt and a-net.pt: each would lose the other's."""
    kept: dict[Path, str] = {}
    for name in names:
        other = kept.setdefault(results.measurement_folder(name), name)
        if other != name:
            raise SpectralError(
                f"{other!r} and {name!r} would be kept in one folder, "
                f"{results.measurement_folder(name).name!r}; rename one of them"
            )


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that came about.

    What is half written then is a temporary file, which the next run removes.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for_end, args=(parent.sentinel,), daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


_OPENED: list[Results] = []  # in a process of the pool, its own


def _open(inputs: Any, options: Any) -> None:
    end_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    with redirect_stdout(None):
        _OPENED.append(inputs(options))


def _measure(
    measure: Any, name: str
) -> tuple[Mapping[str, Any], dict[str, dict[str, str]], dict[str, tuple[Path, ...] | None]]:
    results = _OPENED[0]
    return measure(results, name), results.identities, results.files
