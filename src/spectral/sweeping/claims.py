"""Pieces of work that jobs claim by files in a folder which all see: no server, and no lock that can be lost.

A claim is a file that only one process can create. Its owner touches it while it works; a claim whose process
is gone, or that nobody has touched for long, is taken over. Should two ever have the same piece, each writes
the same file whole, so that nothing is doubled.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spectral.errors import SpectralError, StorageError
from spectral.files.atomic import State, ensure_writable, is_running, look_at, name_machine

HEARTBEAT, STALE = 20.0, 300.0
"""Seconds between the signs of life of a claim, and after how many without one it counts as left behind."""


class Claims:
    """Claims in a folder.

    Args:
        folder: created if it doesn't exist.

    Raises:
        SpectralError: if files in it can't be claimed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, other = Claims(Path(folder)), Claims(Path(folder))
        ...     with one.take("a") as first, other.take("a") as second, other.take("b") as third:
        ...         first, second, third
        (True, False, True)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ensure_writable(folder)
        self._require_exclusive()

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Have a piece of work until the end of the block, unless another process has it; say whether."""
        path = self.folder / f"{name}.json"
        text = _describe_self()
        if not self._create(path, text) and not (self._take_over(path) and self._create(path, text)):
            yield False
            return
        done = threading.Event()
        beat = threading.Thread(target=_touch, args=(path, done), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            done.set()
            with suppress(OSError):
                # Else it was taken over, from one that slept for long.
                if path.read_text(encoding="utf-8") == text:
                    path.unlink(missing_ok=True)

    @contextmanager
    def waiting(self, name: str, report: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Have a short piece of work, after whoever has it now, and report for whom it waits."""
        said = before = ""
        while True:
            with self.take(name) as mine:
                if mine:
                    yield
                    return
            owner = self.list_taken().get(name, "")
            if owner == before != said:  # for more than a moment
                report(f"waits for {owner}, which has {self.folder / name}.json")
                said = owner
            before = owner
            time.sleep(0.2)

    def list_taken(self) -> dict[str, str]:
        """Say by whom each piece of work is taken that somebody is at."""
        claims = list(self.folder.glob("*.json"))
        now = self.now() if claims else 0.0
        paths = [path for path in claims if not self._is_stale(path, now)]
        return {path.stem: self._name_owner(path) for path in paths}

    def is_done(self, name: str) -> bool:
        """Whether a piece of work is marked as done."""
        return self._mark(name).exists()

    def list_done(self) -> set[str]:
        """List the pieces of work that are marked as done."""
        return {path.stem for path in self.folder.glob("*.done")}

    def mark(self, name: str) -> None:
        """Mark a piece of work as done."""
        self._mark(name).touch()

    def look_at_mark(self, name: str) -> State | None:
        """Return the state of a piece of work's mark, another one whenever it is marked; None without one.

        It is no time to compare with others: clocks are set back.
        """
        try:
            return look_at(self._mark(name))
        except OSError:
            return None

    def _mark(self, name: str) -> Path:
        return self.folder / f"{name}.done"

    def _require_exclusive(self) -> None:
        probe = self.folder / f".probe-{uuid.uuid4().hex}"  # by its name no claim
        try:
            twice = self._create(probe, "") and self._create(probe, "")
            os.replace(probe, probe.with_suffix(".moved"))
            probe.with_suffix(".moved").unlink()
        except OSError as error:
            raise SpectralError(
                f"{self.folder} can't hold claims ({error.strerror or error}); choose a folder on another "
                f"disk"
            ) from error
        if twice:
            raise SpectralError(
                f"in {self.folder} two processes can create the same file, so that none can claim its work; "
                f"choose a folder on another disk"
            )

    @staticmethod
    def _create(path: Path, text: str) -> bool:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "w", encoding="utf-8") as opened:
                opened.write(text)
        except BaseException as error:
            path.unlink(missing_ok=True)  # without a name in it nobody could take it over for long
            if not isinstance(error, OSError):
                raise
            why = error.strerror or str(error)
            raise StorageError(
                f"{path} can't be written ({why}); make room, or choose another place"
            ) from error
        return True

    def _take_over(self, path: Path) -> bool:
        """Take a claim away that was left behind; only one process can."""
        if not self._is_stale(path, self.now()):
            return False
        away = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.stale")
        try:
            os.rename(path, away)
        except OSError:
            return False  # another process has
        away.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path, now: float) -> bool:
        try:
            age = now - path.stat().st_mtime
            owner = json.loads(path.read_text(encoding="utf-8"))
            gone = owner["machine"] == name_machine() and not is_running(int(owner["process"]))
        except FileNotFoundError:
            return False  # it has just ended
        except (OSError, ValueError, KeyError, TypeError):
            gone = False  # it is being written
        return gone or abs(age) > STALE  # nobody who is at work gives it a time that is still to come

    def now(self) -> float:
        """What the disk's own clock says, which hosts needn't agree with."""
        clock = self.folder / f".clock-{uuid.uuid4().hex}"
        clock.touch()
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)

    @staticmethod
    def _name_owner(path: Path) -> str:
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
            return f"process {owner['process']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _describe_self() -> str:
    return json.dumps({"host": socket.gethostname(), "machine": name_machine(), "process": os.getpid(),
                       "claim": uuid.uuid4().hex})  # fmt: skip


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)
