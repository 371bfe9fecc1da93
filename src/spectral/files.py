"""Files that are whole or not there and know when they are damaged, and folders with one writer at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from spectral.errors import SpectralError, StorageError

SEAL = f"sha256:{'0' * 64}"
"""What stands in a file where `seal` is to put the digest of all the rest."""

SETTLED = 2.0  # seconds after which a file that changes again gets another time

State = tuple[int, ...]  # of a file, see `look_at`

LOCK_FILE = "_lock"  # pandas and pyarrow pass over names that begin with _

_UNFIT = re.compile(r"[^\w.+@-]+")
_SEALED = re.compile(rb"sha256:[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.spectral-[0-9a-f]{12}-([0-9a-f]{8})-(\d+)-[0-9a-f]+\.partial")


def walk_files(root: str | Path, hidden: bool = False) -> Iterator[str]:
    """Find all files in a folder and below it, following links to folders but entering none twice.

    Args:
        root: an existing folder.
        hidden: whether names that begin with a dot count.

    Raises:
        SpectralError: if a folder can't be listed: what is in it would be missing without a word.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "bus").mkdir()
        ...     Path(folder, "bus", "1.png").touch()
        ...     Path(folder, ".hidden").touch()
        ...     [os.path.relpath(path, folder) for path in walk_files(folder)]
        ['bus/1.png']
    """

    def refuse(error: OSError) -> None:
        raise SpectralError(
            f"folder {str(error.filename)!r} can't be listed ({error.strerror}), so what is in it would be "
            f"missing; make it readable, or pass a folder without it"
        ) from error

    entered: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        entered.add(os.path.realpath(folder))
        subfolders[:] = sorted(
            name
            for name in subfolders
            if (hidden or not name.startswith("."))
            and os.path.realpath(os.path.join(folder, name)) not in entered
        )
        yield from (
            os.path.join(folder, name) for name in sorted(files) if hidden or not name.startswith(".")
        )


def seal(content: bytes) -> bytes:
    """Put the digest of a file's content where its only `SEAL` stands.

    Example:
        >>> whole = seal(f"1, 2, 3 {SEAL}".encode())
        >>> is_intact(whole), is_intact(whole.replace(b"2", b"3"))
        (True, False)
    """
    blank = SEAL.encode()
    if content.count(blank) != 1:
        raise ValueError("a file to be sealed has one place for the seal")
    return content.replace(blank, f"sha256:{hashlib.sha256(content).hexdigest()}".encode())


def is_intact(content: bytes) -> bool:
    """Whether a sealed file is what it was, to the last bit.

    Example:
        >>> is_intact(b"never sealed")
        False
    """
    # A digest of something else may stand in it, of weights for one; the seal is the one that fits.
    for found in set(_SEALED.findall(content)):
        if content.count(found) == 1:
            blank = content.replace(found, SEAL.encode())
            if f"sha256:{hashlib.sha256(blank).hexdigest()}".encode() == found:
                return True
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; what stands there afterwards takes the place of a file, whole.

    Where writing fails or is interrupted the file stays as it was, and nothing is left behind. What a killed
    process left is removed the next time that the same file is written.

    Raises:
        SpectralError: if it can't be written.
    """
    if not path.name:
        raise StorageError(f"{path} is a folder; name a file")
    _remove_orphans(path)
    temporary = _name_temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"{path} can't be written ({why}); make room, or choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: all of it or nothing.

    Raises:
        SpectralError: if it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def hash_file(path: Path) -> str:
    """Return the digest of a file: ``sha256:`` and 64 hexadecimal digits.

    Raises:
        SpectralError: if it can't be read.
    """
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise StorageError(f"{path} can't be read ({error.strerror}); check the path") from error


def look_at(path: Path, *place: int) -> State:
    """Return what the file system says of a file, and the place in it: as long as it is so, so are its bytes.

    The last is the time of the description, which the system alone sets.

    Raises:
        OSError: if there is no such file.
    """
    found = path.stat()
    return (*place, found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def is_settled(state: State, begun: float) -> bool:
    """Whether a file that changes from now on gets another state: one that has just changed may not.

    Args:
        state: from `look_at`, the times last.
        begun: when it was not looked at yet, in seconds.
    """
    return max(state[-2:]) < (begun - SETTLED) * 1e9


def append_seal(content: bytes, place: str = "") -> bytes:
    """Put the digest of a file's content behind it, for formats that pass over what follows.

    Args:
        content: of the file.
        place: where it belongs: another place's file isn't what was written there.

    Example:
        >>> split_seal(append_seal(b"state"))
        b'state'
        >>> split_seal(append_seal(b"state").replace(b"a", b"b")) is None
        True
        >>> split_seal(append_seal(b"state", "run 1"), "run 2") is None
        True
    """
    return content + f"sha256:{hashlib.sha256(place.encode() + content).hexdigest()}".encode()


def split_seal(content: bytes, place: str = "") -> bytes | None:
    """Return what `append_seal` was given; None where that isn't what was written there."""
    whole = content[: -len(SEAL)]
    return whole if append_seal(whole, place) == content else None


def ensure_writable(folder: Path) -> None:
    """Create a folder and check that files can be made in it.

    Raises:
        SpectralError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _name_temporary(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"can't write to {folder} ({why}); choose another output folder") from error


def require_writable(folder: Path) -> None:
    """Check that files can be made in a folder, and leave none behind that wasn't there.

    Raises:
        SpectralError: if not.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    ensure_writable(folder)
    for path in new:
        with suppress(OSError):  # another process may have written there meanwhile
            path.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers; only whoever has claimed the folder may.

    Files with other names are somebody else's, and stay; so do those of processes of this machine that run:
    what is made of a folder, as a page, is written beside those who have claimed it.
    """
    here = _digest(socket.gethostname())[:8]
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and not (found[1] == here and is_running(int(found[2]))):
            path.unlink(missing_ok=True)


def name_folder(model: str) -> str:
    """Make a folder's name of a model's: what a path can't hold, or begin and end with, is left out.

    Raises:
        SpectralError: if nothing is left.

    Example:
        >>> name_folder("bundled/resnet20@random+flc"), name_folder("./my_net.py:build")
        ('bundled-resnet20@random+flc', 'my_net.py-build')
    """
    name = _UNFIT.sub("-", model).strip("-.")
    if not name:
        raise StorageError(f"no folder can be named after the model {model!r}; rename it")
    return name


def find_folder(parent: Path, *parts: str) -> Path:
    """Return the folder of models' results: one that is there, also if an earlier version named it.

    Args:
        parent: what it lies in.
        parts: names of models, or words, that together name it.

    Example:
        >>> find_folder(Path("results"), "diagnosis", "timm/resnet18").name
        'diagnosis-timm-resnet18'
    """
    plain = [re.sub("@", "-", _UNFIT.sub("-", part)) for part in parts]  # as names were made before
    names = ["-".join(map(name_folder, parts)), "-".join(plain), "-".join(one.strip("-.") for one in plain)]
    return next((parent / name for name in names if (parent / name).exists()), parent / names[0])


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
    new = not folder.exists()
    ensure_writable(folder)
    path = folder / LOCK_FILE
    lock, process = _lock(folder), os.getpid()
    _HELD.add(lock)
    whole = False
    try:
        holder = _describe_self()
        lock.truncate(0)
        lock.write(holder.encode())
        os.fsync(lock.fileno())
        remove_leftovers(folder)
        if shared and os.name != "nt":
            _share(lock, folder)
        yield holder
        whole = True
    finally:
        # On Windows it goes with its handle. One that is shared is left to those who may still have it, and
        # a process that was forked inside ends without having claimed anything.
        if os.name != "nt" and (whole or not shared) and os.getpid() == process:
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
        _share(lock, folder)
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
            _share(lock, folder)
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # whoever had it has removed it since it was opened
            if os.fstat(lock.fileno()).st_size == 0:
                lock.write(_describe_self().encode())
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


def _lock(folder: Path) -> FileIO:
    try:
        lock = _open_lock(folder / LOCK_FILE)
    except OSError as error:
        raise _refuse_unlockable(folder, error) from error
    if lock is None:
        raise _refuse_taken(folder)
    return lock


def _share(lock: FileIO, folder: Path) -> None:
    """Let others have a lock too who only share it."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refuse_taken(folder) from error
    except OSError as error:
        raise _refuse_unlockable(folder, error) from error


def _refuse_taken(folder: Path) -> SpectralError:
    return StorageError(
        f"{folder} is being written by {_name_writer(folder / LOCK_FILE)}; wait for it to end, or choose "
        f"another folder"
    )


def _refuse_unlockable(folder: Path, error: OSError) -> SpectralError:
    why = error.strerror or str(error)
    return StorageError(
        f"{folder} can't be locked against other writers ({why}); choose a folder on another disk"
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


def _begin_name(path: Path) -> str:
    return f".spectral-{_digest(path.name)}-{_digest(socket.gethostname())[:8]}-"


def _name_temporary(path: Path) -> Path:
    """Name a file beside another that no other process or thread writes to; of any name, however long."""
    return path.with_name(f"{_begin_name(path)}{os.getpid()}-{threading.get_ident():x}.partial")


def _remove_orphans(path: Path) -> None:
    """Remove what processes of this machine that run no more had begun to write in place of a file."""
    name = _begin_name(path)
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(name):
                found = _TEMPORARY.fullmatch(entry.name)
                if found and not is_running(int(found[2])):
                    os.unlink(entry.path)


def is_running(process: int) -> bool:
    """Whether a process of this machine runs.

    Example:
        >>> is_running(os.getpid())
        True
    """
    if os.name == "nt":  # there a signal of 0 isn't a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError, IndexError):  # one that has ended keeps its number until its parent asks for it
        threads = list(Path(f"/proc/{process}/task").iterdir())
        # Its first thread may end before the others, which still hold its files and the locks on them.
        return not threads or any(_find_state(thread) != "Z" for thread in threads)
    return True


def _find_state(thread: Path) -> str:
    return (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def printable(name: str) -> str:
    """Return a file's name as text that can be written everywhere: bytes that are no UTF-8 as ``\\xff``.

    Example:
        >>> printable("caf\\udce9.png"), printable("café.png")
        ('caf\\\\xe9.png', 'café.png')
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
