"""Networks of the user's own, built by what is named: ``my_net.py:build``, ``package.module:build``.

Only what is named in this form is ever run; the path of a file alone runs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectral.errors import SpectralError, suggest
from spectral.models.info import ModelInfo, Preprocessing, model_info
from spectral.models.preprocessing import find_preparation
from spectral.models.sources.base import Loaded

FORM = "my_net.py:build or package.module:build"
SUFFIX = ".py"
UNKNOWN = Preprocessing((0, 0), (), ())
"""What a network without a word about its images has, until someone says more."""
_CLASSES = ("num_classes", "classes", "n_classes", "num_labels")  # what factories call the number of classes


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


def open_own(asked: str, classes: int | None = None) -> Loaded:
    """Run a factory: a function without arguments, a class, or a network that is there already.

    Args:
        asked: FILE.py:NAME or PACKAGE.MODULE:NAME. Modules beside the file, or in the current folder, can be
            imported as in a script.
        classes: goes to its parameter ``num_classes``.

    Raises:
        SpectralError: if there is no such file, module or name, what runs raises, it needs arguments, or what
            comes back isn't a network.
    """
    found = split_factory(asked)
    assert found is not None
    where, name = found
    path = Path(where).expanduser()
    is_file = where.endswith(SUFFIX)
    if is_file and not path.is_file():
        raise SpectralError(f"{asked}: there is no file {where}; check the path")
    with _importable(path.resolve().parent if is_file else Path.cwd()):
        with _explaining(asked, f"importing {where}"):
            module = _import_file(path) if is_file else importlib.import_module(where)
        model = _build(_find(module, name, asked), asked, classes)
    if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
        raise SpectralError(
            f"{asked}: the network has layers that get their shape from their first input; run it once on an "
            f"image inside {name}"
        )
    if any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        raise SpectralError(f"{asked}: the network is on the meta device and has no weights; build it on cpu")
    count = classes or next((n for n in (getattr(model, a, None) for a in _CLASSES) if _is_count(n)), None)
    info = model_info(model)  # of a network that the factory itself got from load_model
    if info is not None:
        return model, replace(info, name=asked)
    size = find_preparation(model).size or UNKNOWN.size
    return model, ModelInfo(asked, None, "", Preprocessing(size, (), ()), count)


def _build(factory: Any, asked: str, classes: int | None) -> nn.Module:
    """Call a factory, or take the network that it is."""
    if isinstance(factory, nn.Module):
        if classes is not None:
            raise SpectralError(
                f"{asked} is a network and no function, so classes={classes} can't be given to it; leave "
                f"classes out, or name a function with a parameter num_classes"
            )
        return factory
    if not callable(factory):
        raise SpectralError(
            f"{asked} is {_kind(factory)}; expected a function that builds a network, a class or a network"
        )
    options = _choose_options(factory, asked, classes)
    with _explaining(asked, "the factory"):
        made = factory(**options)
    if not isinstance(made, nn.Module):
        raise SpectralError(f"{asked} returned {_kind(made)}; expected a torch.nn.Module")
    return made


def _choose_options(factory: Callable[..., Any], asked: str, classes: int | None) -> dict[str, Any]:
    """Return what a factory is called with: nothing, or the number of classes."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = {}
    known = next((name for name in _CLASSES if name in parameters), None)
    if known is None and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = _CLASSES[0]
    if classes is not None and known is None:
        raise SpectralError(
            f"{asked}: classes={classes} goes to a parameter num_classes, which the factory doesn't have; "
            f"add it, or leave classes out"
        )
    options = {} if classes is None or known is None else {known: classes}
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values()
              if p.default is p.empty and p.kind not in optional and p.name not in options]  # fmt: skip
    if needed:
        hint = "pass classes (--classes N), or " if needed == [known] else ""
        raise SpectralError(
            f"{asked} needs arguments ({', '.join(needed)}), but is called without; {hint}give them "
            f"defaults, or name a function that needs none"
        )
    return options


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


@contextmanager
def _explaining(asked: str, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises, or its exit, into one sentence that says where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        message = next(iter(str(error).splitlines()), "") or "no message"
        last = traceback.extract_tb(error.__traceback__)[-1]
        inside = isinstance(error, ModuleNotFoundError) or last.filename.startswith("<")
        where = "" if inside else f" (line {last.lineno} of {Path(last.filename).name})"
        raise SpectralError(f"{asked}: {what} raised {type(error).__name__}: {message}{where}") from error


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
