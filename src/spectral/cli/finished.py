"""Finished work, recognised by files alone: before torch is loaded, which takes longer than all that is left.

At the end of a command what it said is noted, beside what that depends on: every argument, what is installed,
the state of every file that was read, those of all code that was loaded among them, and the digest of every
file that was written. A file's state is its size, its place on the disk, its time and the time of its
description, which the system alone sets. Where all of that is as it was, the same is said again instead of
being found out again. Whatever can't be told from files alone has no note: code of the user's own, weights of
a hub, other devices than the CPU, several processes.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import spectral
from spectral.arguments.factories import split_factory
from spectral.errors import LostRowsWarning, SpectralError, StorageError
from spectral.files.atomic import State, hash_file, is_settled, look_at, walk_files
from spectral.files.json_files import read_json, write_json
from spectral.files.writers import LOCK_FILE
from spectral.processes.launch import find_launch
from spectral.terminal.console import list_warnings, show_again

if TYPE_CHECKING:
    from spectral.models.info import ModelInfo

NOTE = "_finished.json"  # pandas and pyarrow pass over names that begin with _
_PACKAGE = Path(spectral.__file__).parent
_WITHOUT_EFFECT = ("quiet", "workers", "jobs")  # arguments that no number depends on
_INSTALLED_IMAGES = ("samples", "synthetic")  # of installed packages, or drawn
_DISTRIBUTIONS = (".dist-info", ".egg-info", ".egg-link", ".pth")
_PLACES = ("HOME", "SPECTRAL_DATA", "TORCH_HOME", "XDG_CACHE_HOME")  # variables that say where files are


class Answer:
    """What the running command says and writes; where it has done so before and nothing has changed, again.

    Args:
        out: the folder that the command writes to, which it has claimed; None for none.
        images: as they are named.
        read: other files that the command reads, besides those of its networks.
    """

    def __init__(self, out: Path | None, images: str | Sequence[str], read: Sequence[Path] = ()) -> None:
        context = click.get_current_context()
        given = {name: value for name, value in context.params.items() if name not in _WITHOUT_EFFECT}
        self._out, self._images, self._read = out, images, read
        self._asked = {"command": context.info_name, **given}
        self._said: list[str] = []
        self._network: dict[str, Any] | None = {}
        alone = out is not None and given["device"] == "cpu" and can_recall()
        self._before = self._look() if alone else None

    def _look(self) -> Inputs | None:
        return look_at_inputs(self._asked, self._images, self._read)

    def repeat(self) -> bool:
        """Say it again, where it was said before and all is as it was then; return whether it is."""
        found = recall(self._out, self._before) if self._out and self._before else None
        if found is None:
            return False
        for sentence in found.warned:
            show_again(sentence)
        for text in found.said:
            click.echo(text)
        return True

    def say(self, text: str, again: str | None = None) -> None:
        """Print something.

        Args:
            text: what is to be printed.
            again: what is printed in its place when the command is run again, if that isn't the same.
        """
        click.echo(text)
        self.note(text if again is None else again)

    def note(self, again: str) -> None:
        """Let something be printed when the command is run again, that it has told in other words."""
        self._said.append(again)

    def depend_on(self, name: str, info: ModelInfo | None) -> None:
        """Depend on a network that has just been loaded; a file or folder of its name would be another."""
        self.depend_on_files(name, None if info is None else info.files)

    def depend_on_files(self, name: str, given: Sequence[Path] | None) -> None:
        """Depend on the files of a network, as `ModelInfo.files` has them, as on the network."""
        own = None if given is None else [*given, Path(split_name(name))]
        files = look_at_files(own)
        known = self._network is not None and files is not None
        self._network = {**self._network, **files} if known else None  # type: ignore[dict-item]

    def keep(self, *wrote: Path | None) -> None:
        """Note that it is finished.

        Args:
            wrote: files and folders that hold the result; None for one that wasn't asked for.
        """
        warned = list_warnings()
        if self._out and self._before and not any(issubclass(kind, LostRowsWarning) for kind, _ in warned):
            said = Said(self._said, [text for _, text in warned])
            written = [path for path in wrote if path is not None]
            note_finished(self._out, self._before, self._look(), self._network, said, written)


@dataclass(frozen=True)
class Said:
    """What a finished command told.

    Attributes:
        said: what it printed.
        warned: what it warned of.
    """

    said: list[str]
    warned: list[str]


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


def look_at_inputs(
    asked: Mapping[str, Any], images: str | Sequence[str], read: Sequence[Path] = ()
) -> Inputs | None:
    """Look what a command's result depends on; None where files alone don't tell.

    Args:
        asked: the command's arguments, so far as they decide on its result.
        images: as they are named.
        read: other files that it is made of.

    Example:
        >>> look_at_inputs({"model": "bundled/resnet20"}, "my_data.py:load") is None
        True
    """
    begun, newest, digest = time.time(), 0, hashlib.sha256()
    try:
        states = [*_look_at_images(images), *((str(path), look_at(path)) for path in read)]
        for name, state in states:
            digest.update(repr((name, state)).encode("utf-8", "surrogatepass"))
            newest = max((newest, *state[-2:]))
    except (OSError, SpectralError, _Unclear):
        return None
    installed, edited = _look_at_installed()
    circumstances = {
        "asked": _jsonable(asked),
        "images": _jsonable(images),
        "files": digest.hexdigest(),
        "folder": os.getcwd(),
        "places": {name: os.environ.get(name) for name in _PLACES},
        "installed": installed,
        "version": spectral.__version__,
        "python": platform.python_version(),
        "machine": [platform.machine(), platform.system(), os.cpu_count()],
    }
    return Inputs(circumstances, max(newest, edited), begun)


def can_recall() -> bool:
    """Whether a command may do without torch: alone, in a process in which nobody can have set it up.

    Example:
        >>> import torch
        >>> can_recall()
        False
    """
    return "torch" not in sys.modules and find_launch().count == 1


def recall(out: Path, inputs: Inputs) -> Said | None:
    """Return what a finished command told, after verifying its files; None where anything isn't as it was.

    Args:
        out: what the command was told; it has been claimed.
        inputs: as they are now.

    Example:
        >>> recall(Path("no/such/folder"), Inputs({}, 0, 0.0)) is None
        True
    """
    path = out / NOTE
    if not path.is_file():
        return None
    try:
        note = read_json(path, sealed=True)
        if note["circumstances"] != inputs.circumstances or not _are_as_before(note["network"]):
            return None
        if look_at_code(note["code"]["roots"], note["code"]["files"]) != note["code"]:
            return None
        if _digest_written(map(Path, note["written"])) != note["digests"]:
            return None
        return Said(note["said"], note["warned"])
    except (SpectralError, KeyError):  # the usual way says what it is, or makes it anew
        return None


def look_at_files(files: Iterable[Path] | None) -> dict[str, Any] | None:
    """Return the state of each file by its path, as JSON can hold it; of one that isn't there, None.

    Example:
        >>> look_at_files([Path("/no/such/file")])
        {'/no/such/file': None}
    """
    return None if files is None else {os.path.abspath(file): _jsonable(_look(file)) for file in files}


def note_finished(
    out: Path, before: Inputs, now: Inputs | None, network: Mapping[str, Any] | None, said: Said,
    wrote: Sequence[Path],
) -> bool:  # fmt: skip
    """Note what a finished command depends on, where that is known and there is room; return whether it is.

    Args:
        out: what the command was told; it has been claimed.
        before: what there was when the command began.
        now: what there is at its end.
        network: the files that the networks depend on, as they were when these had been loaded; None where
            that isn't known.
        said: what the command told.
        wrote: files and folders that it wrote.
    """
    (out / NOTE).unlink(missing_ok=True)
    if network is None or now is None or now.circumstances != before.circumstances:
        return False
    code = look_at_code()
    if not _are_as_before(network) or code is None:
        return False
    newest = max([before.newest, code["newest"], *(max(state[-2:]) for state in network.values() if state)])
    if not is_settled((newest, newest), before.begun):  # it may have changed since, and nobody could tell
        return False
    note = {
        "circumstances": before.circumstances,
        "network": network,
        "code": code,
        "written": [str(path) for path in wrote],
        "digests": _digest_written(wrote),
        "said": said.said,
        "warned": said.warned,
    }
    with suppress(StorageError):  # on a full disk: what the command wrote is there, and it is found out again
        write_json(note, out / NOTE, sealed=True)
        return True
    return False


def _digest_written(wrote: Iterable[Path]) -> dict[str, str]:
    """Return the digest of each file and of those in each folder, but for the note of who writes there."""
    files = [file for path in wrote for file in (map(Path, walk_files(path)) if path.is_dir() else [path])]
    return {str(file): hash_file(file) for file in files if file.name not in (LOCK_FILE, NOTE)}


class _Unclear(Exception):  # noqa: N818 - it is caught and never seen
    """Files alone don't tell what images these are."""


def look_at_code(
    roots: Iterable[str] | None = None, files: Iterable[str] | None = None
) -> dict[str, Any] | None:
    """Return where packages are found and what the states of their files are; None where that can't be told.

    Args:
        roots: names of packages, by default all that are loaded.
        files: of code, by default all that is loaded but for this package's own, which `look_at_inputs` sees.

    Example:
        >>> found = look_at_code(["spectral"], [spectral.__file__])
        >>> found["files"] == [spectral.__file__]
        True
    """
    if roots is None or files is None:
        loaded = {name: module for name, module in list(sys.modules.items()) if name != "__main__"}
        roots = {name.partition(".")[0] for name in loaded}
        found_files = (getattr(module, "__file__", None) for module in loaded.values())
        files = {
            file for file in found_files
            if isinstance(file, str) and not file.startswith(f"{_PACKAGE}{os.sep}")
        }  # fmt: skip
    try:
        found = {name: PathFinder.find_spec(name) for name in sorted(roots)}
    except (ImportError, OSError, ValueError):  # of a broken package
        return None
    named = sorted(files)
    states = [_look(file) for file in named]
    return {
        "roots": {name: _jsonable(spec and (spec.origin, list(spec.submodule_search_locations or ())))
                  for name, spec in found.items()},
        "files": named,
        "newest": max((max(state[-2:]) for state in states if state), default=0),
        "states": hashlib.sha256(repr(states).encode()).hexdigest(),
    }  # fmt: skip


def split_name(name: str) -> str:
    """Return what of a network's name may be a path.

    Example:
        >>> split_name("timm/resnet18@random+flc")
        'timm/resnet18'
    """
    return name.partition("@")[0].partition("+")[0]


def _look_at_images(images: str | Sequence[str]) -> Iterator[tuple[str, State]]:
    for one in [images] if isinstance(images, str) else images:
        if images in _INSTALLED_IMAGES:  # among others it is a path
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


def _look_at_installed() -> tuple[str, int]:
    """Return what differs wherever another version of anything is installed, or this package is edited.

    Beside it the latest time of a file of this package.
    """
    found = [one for one in _walk(_PACKAGE) if not one[0].endswith(".pyc")]
    newest = max(max(state[-2:]) for _, state in found if state)
    for entry in sorted({os.path.realpath(place) for place in sys.path if place}):
        if os.path.isdir(entry):
            with os.scandir(entry) as files:
                found += sorted(
                    (file.path, look_at(Path(file.path)))
                    for file in files
                    if file.name.endswith(_DISTRIBUTIONS)
                )
    return hashlib.sha256(repr(found).encode("utf-8", "surrogatepass")).hexdigest(), newest


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
