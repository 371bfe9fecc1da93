"""The folder of an analysis: its parts, each whole or not there, so that the same call continues."""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from spectral.errors import SpectralError, StorageError, warn
from spectral.files.atomic import append_seal, ensure_writable, split_seal, write_whole
from spectral.files.json_files import read_json, write_json
from spectral.identity import Identity
from spectral.processes.ranks import find_ranks

T = TypeVar("T")
RUN_FILE = "diagnosis.json"
PARTS = "parts"
_DECIDED = "decided"  # under what a run's file has what was decided for all its parts
_CONCLUSIONS = ("facts.json", "missing.parquet", "sites.parquet")  # what is made of all other parts
_KINDS = (".parquet", ".npz", ".json")
_WAY_OUT = "delete it and run the same command again"


class Folder:
    """Keeps tables, records and arrays by name; without a path it keeps nothing and computes everything.

    All ranks of a process group compute a part, and have what the first rank did, which alone reads and
    writes. Every part carries a digest of itself, of the run and of its name: one that is damaged or altered,
    of another run or of another part is refused when the folder is opened, be it read later or not. Whoever
    writes must have claimed the folder (`spectral.files.writers.claim`).

    Args:
        path: where to; made if need be.
        config: what determines the parts; a folder with another one is refused. None to read alone.
        network: what tells the network from others.
        circumstances: what may differ where it is continued (versions, device); noted for each part.

    Raises:
        SpectralError: if the folder can't be written, holds an analysis of something else, or what it says
            of itself is damaged.
    """

    def __init__(
        self,
        path: Path | None,
        config: Mapping[str, Any] | None = None,
        network: Identity | None = None,
        circumstances: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.run = path and path.absolute(), ""
        self._now: dict[str, Any] = json.loads(json.dumps(circumstances or {}))
        if path is not None and config is not None:
            described = json.loads(json.dumps(config))
            self.run = find_ranks().once(lambda: self._claim(path / RUN_FILE, described, network))
        elif path is not None and os.path.lexists(path / RUN_FILE):
            self.run = _read_run(path / RUN_FILE)["run"]
        self._reads = config is None
        if path is not None and self.run:
            find_ranks().once(lambda: self._check(path))

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table: as it is kept, else computed and kept."""

        def write(table: pd.DataFrame, path: Path) -> None:
            content = io.BytesIO()
            table.to_parquet(content)
            self._write(path, content)

        return self._keep(name, "parquet", lambda path: pd.read_parquet(self._read(path)), compute, write)

    def record(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a record that JSON can hold: as it is kept, else computed and kept."""

        def write(found: dict[str, Any], path: Path) -> None:
            write_json({"place": self._name(path), "record": found}, path, sealed=True)

        return self._keep(name, "json", self._read_record, compute, write)

    def arrays(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return arrays by key: as they are kept, else computed and kept."""

        def read(path: Path) -> dict[str, Any]:
            with np.load(self._read(path)) as file:
                return {key: file[key] for key in file.files}

        def write(arrays: dict[str, Any], path: Path) -> None:
            content = io.BytesIO()
            np.savez_compressed(content, **arrays)
            self._write(path, content)

        return self._keep(name, "npz", read, lambda: dict(compute()), write)

    def decide(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was decided once for all runs of the folder, such as by the time that there was.

        Nobody can find it out again, and parts were made by it: it is kept with what the run is.
        """
        path, ranks = self.path, find_ranks()
        earlier = self._place(f"decided_{name}", "json")  # where versions before kept it

        def look() -> dict[str, Any] | None:
            if path is None or earlier is None:
                return None
            known = _read_run(path / RUN_FILE).get(_DECIDED, {}).get(name)
            return self._read_record(earlier) if known is None and os.path.lexists(earlier) else known

        kept = ranks.once(look)
        if kept is not None:
            return kept
        found = compute()

        def keep() -> dict[str, Any]:
            if path is not None:
                known = _read_run(path / RUN_FILE)
                decided = {**known.get(_DECIDED, {}), name: found}
                write_json({**known, _DECIDED: decided}, path / RUN_FILE, sealed=True)
            return found

        return ranks.once(keep)

    def list_circumstances(self) -> list[dict[str, Any]]:
        """Return the circumstances under which it was made so far, each with the names of its ``parts``."""
        path = self.path
        if path is None or not self.run:
            return [self._now]
        return find_ranks().once(lambda: _attribute_parts(path, _read_run(path / RUN_FILE)))

    def finish(self) -> None:
        """Note which parts there are, now that all are: one that goes is missed from then on."""
        if self.path is not None and not self._reads:
            path = self.path
            find_ranks().once(lambda: self._note_parts(path))

    def _note_parts(self, path: Path) -> None:
        known = _read_run(path / RUN_FILE)
        parts = [part.name for part in _list_parts(path)]
        if known.get("parts") != parts:
            write_json({**known, "parts": parts}, path / RUN_FILE, sealed=True)

    def _keep(
        self,
        name: str,
        suffix: str,
        read: Callable[[Path], T],
        compute: Callable[[], T],
        write: Callable[[T, Path], object],
    ) -> T:
        """Return a part: as it is kept, else computed and, by whoever may write, kept."""
        path, ranks = self._place(name, suffix), find_ranks()
        kept = ranks.once(lambda: read(path) if path is not None and os.path.lexists(path) else None)
        if kept is not None:
            return kept
        found = compute()

        def keep() -> T:
            if path is not None and not self._reads:
                if path.name not in _CONCLUSIONS:
                    for name in _CONCLUSIONS:  # they would be of parts that are no more
                        (path.parent / name).unlink(missing_ok=True)
                self._note_circumstances(path)
                write(found, path)
            return found

        return ranks.once(keep)

    def _note_circumstances(self, part: Path) -> None:
        """Before a part is written, note under which circumstances, where they are others than before."""
        folder = part.parent.parent
        known = _read_run(folder / RUN_FILE)
        made = _attribute_parts(folder, known)
        if change := describe_change(made[-1], self._now):
            warn(f"{folder}: {change}")
            made.append(self._now)
        for one in made[:-1]:  # where one was gone, it is made again
            one["parts"] = [name for name in one["parts"] if name != part.name]
        made[-1] = self._now  # its parts are all others
        if made != known.get("made"):
            write_json({**known, "made": made}, folder / RUN_FILE, sealed=True)

    def _place(self, name: str, suffix: str) -> Path | None:
        """Return a part's file; a name that is no file name is hashed."""
        if self.path is None:
            return None
        plain = name.replace("_", "").isascii() and name.replace("_", "").isalnum()
        stem = name if plain else hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        return self.path / PARTS / f"{stem}.{suffix}"

    def _name(self, path: Path) -> str:
        return f"{self.run} {path.name}"

    def _check(self, folder: Path) -> None:
        """Compare every part with its seal, those that no other call reads among them.

        Raises:
            SpectralError: for the first that is damaged, or belongs somewhere else, or that is gone where it
                can't be made again.
        """
        for name in _read_run(folder / RUN_FILE).get("parts", ()):
            path = folder / PARTS / name
            if not os.path.lexists(path):
                if self._reads:
                    raise StorageError(
                        f"{path} is gone, so the diagnosis isn't finished any more; run the same command "
                        f"again to continue it"
                    )
                warn(f"{path} is gone; it is made again where it is needed")
        for path in _list_parts(folder):
            read = self._read_record if path.suffix == ".json" else self._read
            read(path)

    def _read_record(self, path: Path) -> dict[str, Any]:
        kept = read_json(path, sealed=True, way_out=_WAY_OUT)
        if kept.get("place") != self._name(path):
            raise _refuse(path)
        return dict(kept["record"])

    def _read(self, path: Path) -> io.BytesIO:
        """Read a sealed part.

        Raises:
            SpectralError: if it is damaged, or belongs somewhere else.
        """
        try:
            whole = split_seal(path.read_bytes(), self._name(path))
        except OSError as error:
            raise StorageError(f"{path} can't be read ({error.strerror}); {_WAY_OUT}") from error
        if whole is None:
            raise _refuse(path)
        return io.BytesIO(whole)

    def _write(self, path: Path, content: io.BytesIO) -> None:
        write_whole(path, append_seal(content.getvalue(), self._name(path)))

    def _claim(self, path: Path, config: dict[str, Any], network: Identity | None) -> str:
        """Return the id of the run, after making sure that it is the same."""
        ensure_writable(path.parent / PARTS)
        if not os.path.lexists(path):
            if kept := _list_parts(path.parent):
                raise StorageError(
                    f"{kept[0]} is of a diagnosis of which nobody knows what it was, without {RUN_FILE}; put "
                    f"that back, or choose another folder"
                )
            described = network.describe() if network is not None else {}
            run = uuid.uuid4().hex
            record = {"run": run, "config": config, "network": described, "made": [self._now]}
            write_json(record, path, sealed=True)
            return run
        known = _read_run(path)
        before = known["config"]
        for key in {**before, **config}:
            if before.get(key) != config.get(key):
                raise SpectralError(
                    f"{path.parent} holds a diagnosis with {key} = {before.get(key)!r}, not "
                    f"{config.get(key)!r}; choose another folder or delete it"
                )
        other = network.find_difference(known["network"]) if network is not None else None
        if other:
            raise SpectralError(
                f"{path.parent} holds a diagnosis of another network: {other}; choose another folder or "
                f"delete it"
            )
        return str(known["run"])


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say under which other circumstances something was continued; empty where they are the same.

    Example:
        >>> describe_change({"device": "cpu", "versions": {"torch": "2.6"}}, {"versions": {"torch": "2.7"}})
        "continued with device unknown (before: cpu), torch 2.7 (before: 2.6); facts['parts'] says which ..."
    """
    flat = [{**one, "parts": None, "versions": None, **one.get("versions", {})} for one in (before, now)]
    changed = [
        f"{key} {flat[1].get(key, 'unknown')} (before: {flat[0].get(key, 'unknown')})"
        for key in dict.fromkeys((*flat[0], *flat[1])) if flat[0].get(key) != flat[1].get(key)
    ]  # fmt: skip
    said = ", ".join(changed)
    return f"continued with {said}; facts['parts'] says which parts are of which" if changed else ""


def _attribute_parts(folder: Path, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a run's circumstances, each with the names of its parts: of the last, all that no other has."""
    made = [dict(one) for one in known.get("made", [{}])]  # an earlier version didn't note any
    earlier = {name for one in made[:-1] for name in one["parts"]}
    made[-1]["parts"] = [part.name for part in _list_parts(folder) if part.name not in earlier]
    return made


def _list_parts(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / PARTS).glob("*") if path.suffix in _KINDS)


def _read_run(path: Path) -> dict[str, Any]:
    known = read_json(path, sealed=True, way_out="delete its folder and diagnose again")
    if not {"run", "config", "network"} <= set(known):
        raise StorageError(f"{path} isn't what this version writes; delete its folder and diagnose again")
    return known


def _refuse(path: Path) -> SpectralError:
    return StorageError(f"{path} isn't what was written there; {_WAY_OUT}")
