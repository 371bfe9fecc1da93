"""Which processes write to a folder, or a file: one at a time, or several that know of one another."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from spectral.errors import SpectralError, StorageError
from spectral.files.atomic import ensure_writable, name_lock, remove_leftovers

LOCK_FILE = "_lock"  # pandas and pyarrow pass over names that begin with _


@contextmanager
def claim(folder: Path, *, shared: bool = False) -> Iterator[str]:
    """Be the only one who writes to a folder, among all processes and threads, until the end of the block.

    The operating system gives the lock up when its holder ends, however that comes about: a lock of a killed
    process is taken over.

    Args:
        folder: created if it doesn't exist.
        shared: let those in with whom what is yielded is shared, see `join_claim`; all others stay out until
            the last of them has ended.

    Raises:
        SpectralError: if somebody else has it, naming who, or it can't be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, claim(Path(folder)):
        ...     try:
        ...         with claim(Path(folder)):
        ...             pass
        ...     except SpectralError as error:
        ...         print("is being written" in str(error))
        True
    """
    folder = Path(folder).absolute()  # whoever runs inside may change the current folder
    with _held(folder / LOCK_FILE, folder, shared) as holder:
        remove_leftovers(folder)
        yield holder


@contextmanager
def claim_file(path: Path) -> Iterator[None]:
    """Be the only one who writes a file, and what stands beside it, until the end of the block; see `claim`.

    Raises:
        SpectralError: if somebody else has it, naming who, or its folder can't be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "net.safetensors"
        ...     with claim_file(path):
        ...         try:
        ...             with claim_file(path):
        ...                 pass
        ...         except SpectralError as error:
        ...             print("net.safetensors is being written" in str(error))
        ...     list(path.parent.iterdir())
        True
        []
    """
    path = Path(path).absolute()
    with _held(name_lock(path), path):
        yield


@contextmanager
def _held(path: Path, what: Path, shared: bool = False) -> Iterator[str]:
    """Hold a lock, a file of this path, until the end of the block; ``what`` is what it is of."""
    folder = path.parent
    new = not folder.exists()
    ensure_writable(folder)
    lock, process = _lock(path, what), os.getpid()
    _HELD.add(lock)
    others = False  # who may have it too
    try:
        holder = _describe_self()
        _sign(lock, holder, folder)
        if shared and os.name != "nt":
            _share(lock, path, what)
        others = shared
        yield holder
        others = False
    finally:
        # On Windows it goes with its handle. One that is shared is left to those who may still have it, and
        # a process that was forked inside ends without having claimed anything.
        if os.name != "nt" and not others and os.getpid() == process:
            path.unlink(missing_ok=True)
        lock.close()
        if new and os.getpid() == process:  # what failed before it wrote anything leaves nothing
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def join_claim(folder: Path, holder: str) -> Iterator[None]:
    """Write to a folder beside the process that has claimed it, until the end of the block.

    Args:
        folder: as this process sees it.
        holder: what `claim` gave that process.

    Raises:
        SpectralError: if it isn't that folder, or can't be written to.
    """
    folder = Path(folder).absolute()  # whoever runs inside may change the current folder
    ensure_writable(folder)
    path = folder / LOCK_FILE
    try:
        same = path.read_text(encoding="utf-8") == holder
    except OSError:
        same = False
    if not same:
        raise StorageError(
            f"{folder} on {socket.gethostname()} isn't the folder that rank 0 writes to, on "
            f"{json.loads(holder)['host']}; choose one on a disk that all ranks share"
        )
    if os.name == "nt":
        yield
        return
    lock = FileIO(path, "a+")
    try:
        _share(lock, path, folder)
        yield
    finally:
        lock.close()


@contextmanager
def cooperate(folder: Path) -> Iterator[None]:
    """Write to a folder beside others that do so too, until the end of the block; nobody can claim it.

    Raises:
        SpectralError: if somebody has claimed it, naming who, or it can't be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with cooperate(Path(folder)), cooperate(Path(folder)):
        ...         try:
        ...             with claim(Path(folder)):
        ...                 pass
        ...         except SpectralError as error:
        ...             print("is being written" in str(error))
        True
    """
    folder = Path(folder).absolute()  # whoever runs inside may change the current folder
    ensure_writable(folder)
    if os.name == "nt":  # there a lock has one owner
        yield
        return
    path = folder / LOCK_FILE
    while True:
        lock = FileIO(path, "a+")
        try:
            _share(lock, path, folder)
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # whoever had it has removed it since it was opened
            if os.fstat(lock.fileno()).st_size == 0:
                _sign(lock, _describe_self(), folder)
            yield
            return
        finally:
            lock.close()


def _let_go() -> None:
    """Close in a process that was just forked what it inherited: a lock ends with whoever took it."""
    for lock in list(_HELD):
        lock.close()


_HELD: WeakSet[FileIO] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _describe_self() -> str:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": started,
                       "claim": uuid.uuid4().hex})  # fmt: skip


def _lock(path: Path, what: Path) -> FileIO:
    try:
        lock = _open_lock(path)
    except OSError as error:
        raise _refuse_unlockable(what, error) from error
    if lock is None:
        raise _refuse_taken(path, what)
    return lock


def _sign(lock: FileIO, holder: str, folder: Path) -> None:
    """Write into a lock who has it."""
    try:
        lock.truncate(0)
        rest = memoryview(holder.encode())
        while rest:  # of a disk that is nearly full the first write takes a part
            rest = rest[lock.write(rest) :]
        os.fsync(lock.fileno())
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"can't write to {folder} ({why}); make room, or choose another place") from error


def _share(lock: FileIO, path: Path, what: Path) -> None:
    """Let others have a lock too who only share it."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refuse_taken(path, what) from error
    except OSError as error:
        raise _refuse_unlockable(what, error) from error


def _refuse_taken(path: Path, what: Path) -> SpectralError:
    kind = "folder" if path.parent == what else "file"
    return StorageError(
        f"{what} is being written by {_name_writer(path)}; wait for it to end, or choose another {kind}"
    )


def _refuse_unlockable(what: Path, error: OSError) -> SpectralError:
    why = error.strerror or str(error)
    return StorageError(
        f"{what} can't be locked against other writers ({why}); choose a place on another disk"
    )


def _open_lock(path: Path) -> FileIO | None:
    """Open a file that only one can have locked; None if somebody has.

    The lock ends with the object, so that an interrupt leaves none behind.
    """
    if os.name == "nt":
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_TEMPORARY", 0)
        try:
            return FileIO(path, "r+", opener=lambda name, _: os.open(name, flags))
        except FileExistsError:
            return None
    import fcntl

    while True:
        lock = FileIO(path, "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        # Whoever had it may have removed it since it was opened: a lock on that keeps nobody out.
        if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            return lock


def _name_writer(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or just ended
        return "another process"
