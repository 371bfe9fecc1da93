"""What earlier runs found out about the files of large folders, so that nobody reads all to list them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

from spectral.data.decode import CheckedFile
from spectral.errors import SpectralError
from spectral.files.atomic import append_seal, is_settled, look_at, split_seal, write_whole

FEWEST_FILES = 500  # of a folder that is worth it
MOST_FOLDERS = 64  # that are remembered
_CACHE = "SPECTRAL_CACHE"


class KnownFiles:
    """Digests and sizes of a folder's files, believed as long as the file system says that none has changed.

    A file has changed if its size, its place on the disk, its time or the time of its description differ; the
    last is set by the system alone. Its bytes are compared with the digest again whenever they are read. What
    is remembered lies in $SPECTRAL_CACHE, by default ~/.cache/spectral; a damaged file of it is passed over.

    Args:
        root: the folder.
        count: how many files there are; of few nothing is remembered.

    Example:
        >>> KnownFiles(Path("photographs"), count=3).find("cat.png") is None
        True
    """

    def __init__(self, root: Path, count: int) -> None:
        self._root = root
        self._begun = time.time()
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = _find_cache() / f"{name}.json" if count >= FEWEST_FILES else None
        self._entries: dict[str, Any] = {}
        self._before = 0
        if self._path is not None:
            self._entries = _read(self._path)
            self._before = len(self._entries)

    def find(self, name: str) -> CheckedFile | None:
        """Return what is known of a file, None if that is nothing, or it has changed."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        with suppress(OSError, ValueError, TypeError):
            state, digest, height, width = entry
            if tuple(state) == look_at(self._root / name):
                return CheckedFile(str(digest), (int(height), int(width)))
        return None

    def note(self, found: Iterable[tuple[str, CheckedFile]]) -> None:
        """Remember what was found out of files; it's no harm if that can't be kept."""
        if self._path is None:
            return
        new: dict[str, Any] = {}
        for name, (digest, size) in found:
            with suppress(OSError):
                state = look_at(self._root / name)
                if is_settled(state, self._begun):
                    new[name] = [list(state), digest, *size]
        if any(self._entries.get(name) != entry for name, entry in new.items()):
            content = {"pillow": PIL.__version__, "files": {**self._entries, **new}}
            with suppress(OSError, SpectralError, ValueError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, append_seal(json.dumps(content).encode()))
                _forget_old(self._path.parent)


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(split_seal(path.read_bytes()) or b"{}")
        os.utime(path)  # it was of use
        # Another version may be able to read what this one can't.
        if content.get("pillow") == PIL.__version__:
            return dict(content["files"])
    return {}


def _forget_old(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[MOST_FOLDERS:]:
        path.unlink(missing_ok=True)


def _find_cache() -> Path:
    given = os.environ.get(_CACHE)
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spectral"
    return base.expanduser() / "images"
