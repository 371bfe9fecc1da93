"""Files that are whole or not there and know when they are damaged, and the names of folders."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from spectral.errors import SpectralError, StorageError

SEAL = f"sha256:{'0' * 64}"
"""What stands in a file where `seal` is to put the digest of all the rest."""

GENERATOR = "spectral-aliasing, https://pypi.org/project/spectral-aliasing"
"""What pictures, pages and printed JSON name as the program that wrote them."""

SETTLED = 2.0  # seconds after which a file that changes again gets another time

State = tuple[int, ...]  # of a file, see `look_at`

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

    Where writing fails or is interrupted the file stays as it was, and nothing is left behind; nor is it lost
    if the machine ends. Of a link the file that it leads to is replaced. What a killed process left is
    removed the next time that the same file is written.

    Raises:
        SpectralError: if it can't be written.
    """
    _require_file(path)
    target = Path(os.path.realpath(path))  # a link stays one
    _remove_orphans(target)
    temporary = _name_temporary(target)
    try:
        yield temporary
        if target.exists():
            sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"{path} can't be written ({why}); make room, or choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_foreign(*paths: Path, mark: str = GENERATOR) -> None:
    """Refuse to write where a file stands that wasn't written for the same: it would be lost.

    Args:
        paths: the files; a blank one holds nothing that could be lost.
        mark: what stands in all that may be written again.

    Raises:
        SpectralError: if one is another's, or as `require_place`.

    Example:
        >>> refuse_foreign(Path(__file__))
        >>> refuse_foreign(Path(__file__), mark="a mark of " + "others")
        Traceback (most recent call last):
        spectral.errors.StorageError: ... wasn't written by this command and would be lost; choose another ...
    """
    require_place(*paths)
    for path in paths:
        content = b""
        with suppress(OSError):  # whoever writes there says why that can't be done
            content = path.read_bytes() if path.is_file() else b""
        if is_intact(content):
            raise StorageError(
                f"{path} says what the files beside it are, which would be lost; choose another"
            )
        if content.strip() and mark.encode() not in content:
            raise StorageError(
                f"{path} wasn't written by this command and would be lost; choose another file or delete it"
            )


def require_place(*paths: Path) -> None:
    """Check that files can be written, before anything is computed for them; nothing is left there.

    Raises:
        SpectralError: if one is a folder or a device, its name is too long, or its folder can't be written.

    Example:
        >>> require_place(Path(__file__).parent)
        Traceback (most recent call last):
        spectral.errors.StorageError: ...files is a folder, and a file is to be written there; ...
    """
    for path in paths:
        _require_file(path)
    for folder in dict.fromkeys(path.parent for path in paths):
        require_writable(folder)


def _require_file(path: Path) -> None:
    """Refuse what is no file: of a device who has the right to would put a file in its place."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # whoever writes there says why, if that can't be done
    except OSError as error:  # such as a name that is too long
        why = error.strerror or str(error)
        raise StorageError(f"{path} can't be written ({why}); choose another place") from error
    if stat.S_ISDIR(mode):
        raise StorageError(
            f"{path} is a folder, and a file is to be written there; choose another place, or delete it"
        )
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path} is a device or a pipe; name a file")


def sync(path: Path) -> None:
    """Have a file on the disk itself before what it takes the place of goes: names may get there first.

    Raises:
        OSError: if there is no room after all.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     sync(Path(file.name))
    """
    with path.open("r+b") as file:
        os.fsync(file.fileno())


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
    except OSError as error:
        raise _refuse_folder(folder, error) from error
    require_writable(folder)


def require_writable(folder: Path) -> None:
    """Check that files can be made in a folder, or where it would be made, and leave nothing behind.

    Raises:
        SpectralError: if not.
    """
    try:
        probe = next(filter(_is_there, (folder, *folder.parents)), folder) / "probe"
        _remove_orphans(probe)
        probe = _name_temporary(probe)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _refuse_folder(folder, error) from error


def _is_there(path: Path) -> bool:
    """Whether there is something, a broken link too; a name that can't be one raises."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()
        return True
    return False


def _refuse_folder(folder: Path, error: OSError) -> StorageError:
    why = error.strerror or str(error)
    return StorageError(f"can't write to {folder} ({why}); choose another output folder")


def require_apart(folder: Path, images: str | Sequence[str]) -> None:
    """Refuse a folder for pictures that lies among images: the next run would take these for images too.

    Args:
        folder: where pictures are drawn, or in folders below.
        images: as they are named: folders and patterns hold whatever comes to them, nothing else does.

    Raises:
        SpectralError: if it does.

    Example:
        >>> require_apart(Path("photos/budget"), "photos/*.png")
        >>> require_apart(Path("photos/budget"), ["samples", "photos/**/*.png"])
        Traceback (most recent call last):
        spectral.errors.StorageError: photos/budget lies among the images of photos/**/*.png, so that ...
    """
    own = Path(os.path.realpath(folder)).parts
    for one in [images] if isinstance(images, str) else images:
        if "\0" in one:  # no path: whoever opens it says so
            continue
        path = Path(one).expanduser()
        base = Path(os.path.realpath(path)).parts
        pattern: tuple[str, ...] = ("**", "*")
        if not path.is_dir():
            if path.exists() or not glob.has_magic(str(path)):
                continue
            fixed = tuple(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            base = Path(os.path.realpath(Path(*fixed))).parts
            pattern = (*path.parts[len(fixed) :], *(["*"] if path.name == "**" else []))
        below = own[len(base) :]
        inner = [(*below, "figure.png"), (*below, "figures", "figure.png")]
        if own[: len(base)] == base and any(_fits(parts, pattern) for parts in inner):
            raise StorageError(
                f"{folder} lies among the images of {one}, so that what is drawn there would be taken for "
                f"images the next time; choose a folder outside"
            )


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, in its parts, is one of a pattern: ``**`` stands for any number that isn't hidden."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (not parts[0].startswith(".") and _fits(parts[1:], pattern))
    # Of a name an ending alone counts: how figures will be called isn't known.
    last = len(pattern) == 1
    name, wanted = (parts[0], f"*{Path(pattern[0]).suffix}") if last else (parts[0], pattern[0])
    return fnmatchcase(name, wanted) and _fits(parts[1:], pattern[1:])


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writers; only whoever has claimed the folder may.

    Files with other names are somebody else's, and stay; so do those of processes of this machine that run:
    what is made of a folder, as a page, is written beside those who have claimed it.
    """
    here = _digest(name_machine())[:8]
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


def _begin_name(path: Path) -> str:
    return f".spectral-{_digest(path.name)}-{_digest(name_machine())[:8]}-"


def name_lock(path: Path) -> Path:
    """Name the file beside another that whoever writes that one has locked; of any name, however long.

    Example:
        >>> name_lock(Path("net.safetensors")).suffix
        '.lock'
    """
    return path.with_name(f".spectral-{_digest(path.name)}.lock")


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


def name_machine() -> str:
    """Name what numbers processes: a host, or a container that has its name and numbers of its own.

    Example:
        >>> name_machine().startswith(socket.gethostname())
        True
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


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
