"""Functions of the user's own, told by where they are: ``my_net.py:build``, ``package.module:build``.

Only what is named in this form is ever run; the path of a file alone runs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from spectral.errors import SpectralError, suggest

SUFFIX = ".py"


def split_factory(asked: str) -> tuple[str, str] | None:
    """Split the name of a factory into where it is and what it is called; None for any other name.

    Example:
        >>> split_factory("nets/my_net.py:build"), split_factory("package.module:Net.small")
        (('nets/my_net.py', 'build'), ('package.module', 'Net.small'))
        >>> split_factory("my_net.py"), split_factory("timm/resnet50")
        (None, None)
    """
    where, _, name = asked.rpartition(":")
    if not _is_dotted(name) or not (where.endswith(SUFFIX) or _is_dotted(where)):
        return None
    return where, name


@contextmanager
def opened(asked: str) -> Iterator[Any]:
    """Find what is named, and let what it imports be found while it is used.

    Args:
        asked: FILE.py:NAME or PACKAGE.MODULE:NAME. Modules beside the file, or in the current folder, can be
            imported as in a script.

    Raises:
        SpectralError: if there is no such file, module or name, or what runs raises.
    """
    found = split_factory(asked)
    assert found is not None
    where, name = found
    path = Path(where).expanduser()
    is_file = where.endswith(SUFFIX)
    if is_file and not path.is_file():
        raise SpectralError(f"{asked}: there is no file {where}; check the path")
    with _importable(path.resolve().parent if is_file else Path.cwd()):
        with explaining(asked, f"importing {where}"):
            module = _import_file(path) if is_file else importlib.import_module(where)
        yield _find(module, name, asked)


def find_needed(factory: Callable[..., Any], given: Collection[str] = ()) -> list[str]:
    """Return the arguments without which a function can't be called, but for those that are given.

    Example:
        >>> find_needed(lambda size, seed=0: None), find_needed(lambda size: None, ["size"])
        (['size'], [])
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters
            if p.default is p.empty and p.kind not in optional and p.name not in given]  # fmt: skip


@contextmanager
def explaining(asked: str, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises, or its exit, into one sentence that says where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        message = next(iter(str(error).splitlines()), "") or "no message"
        last = traceback.extract_tb(error.__traceback__)[-1]
        inside = isinstance(error, ModuleNotFoundError) or last.filename.startswith("<")
        where = "" if inside else f" (line {last.lineno} of {Path(last.filename).name})"
        raise SpectralError(f"{asked}: {what} raised {type(error).__name__}: {message}{where}") from error


def describe_kind(value: object) -> str:
    """Say what something is, in a sentence that expected something else."""
    return "None" if value is None else f"a {type(value).__name__}"


def _import_file(path: Path) -> ModuleType:
    """Run a file as a module under a name of its own, which no installed package has."""
    name = f"spectral_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # pickling, dataclasses and type hints look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _find(module: ModuleType, name: str, asked: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise SpectralError(f"{asked}: there is no {name!r} in it{suggest(name, offered)}")
        found = getattr(found, part)
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, as a script in it could."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
