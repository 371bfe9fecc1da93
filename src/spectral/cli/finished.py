"""Finished work, recognised by files alone: before torch is loaded, which takes longer than all that is left.

At the end of a run it is noted what its result depends on: the command as it was given, what is installed,
and the state of every file that was read. A file's state is its size, its place on the disk, its time and the
time of its description, which the system alone sets. Where all of that is as it was, the result is read
instead of being found out again. Whatever can't be told from files alone has no note: code of the user's own,
weights of a hub, other devices than the CPU, several processes. What the run warned of is said again.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spectral
from spectral.errors import SpectralError
from spectral.factories import split_factory
from spectral.files import State, is_settled, look_at, walk_files
from spectral.launch import find_launch

if TYPE_CHECKING:
    import pandas as pd

NOTE = "_inputs.json"  # beside a run's shards; pandas and pyarrow pass over names that begin with _
_INSTALLED_IMAGES = ("samples", "synthetic")  # of installed packages, or drawn
_DISTRIBUTIONS = (".dist-info", ".egg-info", ".egg-link", ".pth")
_PLACES = ("HOME", "SPECTRAL_DATA", "TORCH_HOME", "XDG_CACHE_HOME")  # variables that say where files are


@dataclass(frozen=True)
class Outcome:
    """What a measurement came to: all that is printed and written of it.

    Attributes:
        said: the line that says what is measured.
        metrics: that are shown, in this order.
        images: how many there are.
        finished: how many of them could be read.
        facts: what the result is of.
        skipped: files that could not be read.
        warned: what was warned of.
        table: as `spectral.measure` gives it.
    """

    said: str
    metrics: list[str]
    images: int
    finished: int
    facts: dict[str, Any]
    skipped: list[tuple[str, str]]
    warned: list[str]
    table: pd.DataFrame


@dataclass(frozen=True)
class Inputs:
    """What a command's result depends on, besides the files of its network.

    Attributes:
        circumstances: as JSON can hold it; equal where nothing has changed.
        newest: the latest time of any file.
        begun: when they were looked at, in seconds.
    """

    circumstances: dict[str, Any]
    newest: int
    begun: float


def look_at_inputs(asked: Mapping[str, Any], images: str | Sequence[str]) -> Inputs | None:
    """Look what a command's result depends on; None where files alone don't tell.

    Args:
        asked: the command's arguments, so far as they decide on its result.
        images: as they are named.

    Example:
        >>> look_at_inputs({"model": "bundled/resnet20"}, "my_data.py:load") is None
        True
    """
    begun, newest, digest = time.time(), 0, hashlib.sha256()
    try:
        for name, state in _look_at_images([images] if isinstance(images, str) else images):
            digest.update(repr((name, state)).encode("utf-8", "surrogatepass"))
            newest = max((newest, *state[-2:]))
    except (OSError, SpectralError, _Unclear):
        return None
    circumstances = {
        "asked": _jsonable(asked),
        "images": _jsonable(images),
        "files": digest.hexdigest(),
        "folder": os.getcwd(),
        "places": {name: os.environ.get(name) for name in _PLACES},
        "installed": _digest_installed(),
        "version": spectral.__version__,
        "python": platform.python_version(),
        "machine": [platform.machine(), platform.system(), os.cpu_count()],
    }
    return Inputs(circumstances, newest, begun)


def can_recall() -> bool:
    """Whether a command may do without torch: alone, in a process in which nobody can have set it up.

    Example:
        >>> import torch
        >>> can_recall()
        False
    """
    return "torch" not in sys.modules and find_launch().count == 1


def recall(out: Path, inputs: Inputs) -> Outcome | None:
    """Return what a finished run came to, after verifying its files; None where anything isn't as it was.

    Args:
        out: what the command was told; it has been claimed.
        inputs: as they are now.

    Example:
        >>> recall(Path("no/such/folder"), Inputs({}, 0, 0.0)) is None
        True
    """
    folder = out / "measurements"
    if not (folder / NOTE).is_file():
        return None
    from spectral.lineage import list_runs
    from spectral.store import read
    from spectral.table import read_json

    try:
        note = read_json(folder / NOTE, sealed=True)
        if note["circumstances"] != inputs.circumstances or not _are_as_before(note["network"]):
            return None
        if list_runs(folder, out) != note["runs"]:
            return None
        table = read(folder)
    except (SpectralError, KeyError):  # the usual way says what it is, or makes it anew
        return None
    sites = [dict(pairs) for pairs in note["sites"]]
    table.attrs.update(sites=sites, provenance=note["provenance"], resumed=note["finished"])
    skipped = [(name, why) for name, why in note["skipped"]]
    return Outcome(
        note["said"], note["metrics"], note["images"], note["finished"], note["facts"], skipped,
        note["warned"], table,
    )  # fmt: skip


def look_at_files(files: Iterable[Path] | None) -> dict[str, Any] | None:
    """Return the state of each file by its path, as JSON can hold it; of one that isn't there, None.

    Example:
        >>> look_at_files([Path("/no/such/file")])
        {'/no/such/file': None}
    """
    return None if files is None else {os.path.abspath(file): _jsonable(_look(file)) for file in files}


def note_finished(
    out: Path, before: Inputs, now: Inputs | None, network: Mapping[str, Any] | None, found: Outcome
) -> bool:
    """Note what a finished run depends on, where that is known, and return whether it is.

    Args:
        out: what the command was told; it has been claimed.
        before: what there was when the command began.
        now: what there is at its end.
        network: the files that the network depends on, as they were when it had been loaded; None where
            that isn't known.
        found: what the run came to.

    Raises:
        SpectralError: if it can't be written.
    """
    from spectral.lineage import list_runs
    from spectral.table import write_json

    folder = out / "measurements"
    (folder / NOTE).unlink(missing_ok=True)
    if network is None or now is None or now.circumstances != before.circumstances:
        return False
    if not _are_as_before(network):
        return False
    newest = max([before.newest, *(max(state[-2:]) for state in network.values() if state)])
    if not is_settled((newest, newest), before.begun):  # it may have changed since, and nobody could tell
        return False
    note = {
        "circumstances": before.circumstances,
        "network": network,
        "runs": list_runs(folder, out),
        "sites": [list(site.items()) for site in found.table.attrs["sites"]],  # their order is the columns'
        "provenance": found.table.attrs["provenance"],
        "said": found.said,
        "metrics": found.metrics,
        "images": found.images,
        "finished": found.finished,
        "facts": found.facts,
        "skipped": found.skipped,
        "warned": found.warned,
    }
    write_json(note, folder / NOTE, sealed=True)
    return True


class _Unclear(Exception):  # noqa: N818 - it is caught and never seen
    """Files alone don't tell what images these are."""


def _look_at_images(named: Sequence[str]) -> Iterator[tuple[str, State]]:
    for one in named:
        if one in _INSTALLED_IMAGES:
            continue
        path = Path(one).expanduser()
        if split_factory(one) is not None and not path.exists():
            raise _Unclear
        found = [path]
        if not path.exists():
            if not glob.has_magic(str(path)):
                raise _Unclear
            found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        for file in found:
            yield from _walk(file)


def _walk(path: Path) -> Iterator[tuple[str, State]]:
    """Look at a file, or at all files in a folder and below it, whatever their kinds."""
    if not path.is_dir():
        yield os.path.abspath(path), look_at(path)
    else:
        yield from ((own, _look(own) or ()) for own in walk_files(path, hidden=True))


def _look(path: str | Path) -> State | None:
    """Return the state of a file or folder, None where there is none."""
    try:
        return look_at(Path(path))
    except OSError:
        return None


def _are_as_before(network: Mapping[str, Any]) -> bool:
    return look_at_files(map(Path, network)) == network


def _digest_installed() -> str:
    """Return what differs wherever another version of anything is installed, or this package is edited."""
    found = [one for one in _walk(Path(spectral.__file__).parent) if not one[0].endswith(".pyc")]
    for entry in sorted({os.path.realpath(place) for place in sys.path if place}):
        if os.path.isdir(entry):
            with os.scandir(entry) as files:
                found += sorted(
                    (file.path, look_at(Path(file.path)))
                    for file in files
                    if file.name.endswith(_DISTRIBUTIONS)
                )
    return hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest()


def _jsonable(value: Any) -> Any:
    """Return a value as it comes back from JSON; what JSON has no form for as text.

    Example:
        >>> _jsonable({"size": (2, 3), "out": Path("run")})
        {'size': [2, 3], 'out': 'run'}
    """
    if isinstance(value, Mapping):
        return {str(key): _jsonable(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(own) for own in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
