"""The edge of the public surface: what an argument may be is said once, by its annotation.

A call with good arguments goes straight through. Where one fails with an error that isn't ours, the arguments
are held against the annotations, and the first that doesn't fit is named in one sentence; so is a tensor or a
number that nothing here can work with. Where all arguments are what they may be, none of them is blamed: the
error stays what it is, with a note that says whose code raised it. An error of ours must never look like one
of the caller's.
"""

from __future__ import annotations

import errno
import functools
import inspect
import math
import os
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar, Union

import numpy as np

from spectral.arguments.values import is_integer
from spectral.errors import BrokenJobError, SpectralError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

LONGEST = 1000  # of a sentence
LARGE = 2**16  # a number of samples that may be too many
MOST_ELEMENTS = 2**31  # of a tensor, also of one that repeats its few in memory
_BUILTINS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None",
    np.ndarray: "an array",
}  # fmt: skip
_GUARDED: dict[int, Any] = {}
_MARK = "_spectral_guarded"


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor; where nobody has loaded torch there are none, and it stays unloaded."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def guard(value: T) -> T:
    """Return a function, or a class, whose calls end in one sentence where an argument is unfit.

    Example:
        >>> def half(size: int) -> float:
        ...     return size.bit_length() / 2
        >>> guard(half)(3)
        1.0
        >>> guard(half)("3")
        Traceback (most recent call last):
        spectral.errors.SpectralError: half: size must be a whole number, got the text '3'
    """
    if inspect.isclass(value) and not issubclass(value, BaseException):
        if "__init__" in vars(value) and not hasattr(value.__init__, "__wrapped__"):
            setattr(value, "__init__", _wrap(value.__init__, value.__name__))  # noqa: B010 - mypy forbids the other
        return value
    if not isinstance(value, types.FunctionType) or hasattr(value, _MARK):
        return value
    if id(value) not in _GUARDED:
        guarded = _GUARDED[id(value)] = _wrap(value, value.__name__)
        setattr(guarded, _MARK, True)
    return _GUARDED[id(value)]  # type: ignore[no-any-return]


def guard_room(names: dict[str, Any]) -> None:
    """Guard what a room has that is public as a whole: ``guard_room(globals())`` at its end."""
    for name in names["__all__"]:
        if not getattr(names[name], "_is_protocol", False):
            names[name] = guard(names[name])


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def _wrap(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments  # Python's own rules: a TypeError
        for key, value in given.items():
            if reason := _find_endless(key, value):
                raise SpectralError(f"{name}: {key} {reason}")
        try:
            with _leave_inference_mode():
                return function(*args, **kwargs)
        except SpectralError as error:
            sentence = str(error)
            if "\n" in sentence or len(sentence) > LONGEST:  # what was given was written into it
                raise type(error)(shorten(sentence, LONGEST, placeholder=" …")) from error
            raise
        except BrokenJobError:  # of another process, or known to all of them: no defect of this call
            raise
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in _DISK
            if full or type(error).__name__ == "OutOfMemoryError":  # torch's; no argument's fault
                raise
            reason = _find_reason(function, given, error)
            if reason is None:
                _add_origin(error, name)
                raise
            raise SpectralError(f"{name}: {reason}") from error

    return wrapper


def _leave_inference_mode() -> AbstractContextManager[object]:
    """Return a context without torch's inference mode: what is made in it can't be trained or altered later.

    Gradients stay off in it, as the caller had them.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_inference_mode_enabled():
        return nullcontext()
    modes = ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.no_grad())
    return modes


def _find_endless(name: str, value: Any) -> str | None:
    """Say what nothing could be done with in reasonable time: it is not even tried."""
    if _is_tensor(value) and value.numel() > MOST_ELEMENTS and str(value.layout) == "torch.strided":
        few = value.device.type != "meta" and value.untyped_storage().nbytes() < value.numel()
        return (
            f"has a tensor that repeats few values {value.numel():.2g} times; pass it whole" if few else None
        )
    numbers = value if isinstance(value, (tuple, list)) and len(value) < 9 else (value,)
    large = next((v for v in numbers if is_integer(v) and abs(int(v)) > MOST_ELEMENTS), None)
    return None if large is None or name == "seed" else f"must be within ±2³¹, got {_show(large)}"


def _find_reason(function: Callable[..., Any], given: Mapping[str, Any], error: Exception) -> str | None:
    """Say which argument is unfit, by its type or by what it is; None if that can't be said of any."""
    for key, value in given.items():
        try:
            fault = find_fault(value, _read_hint(function, key))
        except Exception as own:  # of a class of the caller's, which can't even be looked at
            fault = f"is a {type(value).__name__} that raises {type(own).__name__} when it is looked at"
        if fault:
            return f"{key} {fault}"
    owner = _find_last_owner(error)
    for key, value in given.items():
        if owner is not None and any(part is owner for part in _walk(value)):
            return f"{key} has a {type(owner).__name__} that raises {type(error).__name__} when it is used"
        if "requires grad" in str(error) and any(_needs_gradients(part) for part in _walk(value)):
            return f"{key} has a tensor that requires gradients; pass x.detach()"
    if isinstance(error, (MemoryError, OverflowError)) or any(word in str(error) for word in _NO_ROOM):
        for key, value in given.items():
            large = next((p for p in _walk(value) if is_integer(p) and abs(int(p)) >= LARGE), None)
            if large is not None:
                return f"{key} = {int(large)} is too large"
    return None


def _needs_gradients(value: Any) -> bool:
    return _is_tensor(value) and value.requires_grad


def _find_last_owner(error: Exception) -> Any:
    """Return whose method has raised an error, if it is neither ours nor a library's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code.co_filename.startswith((_OWN, *_LIBRARIES)):
        return None
    return frames[-1].f_locals.get("self")


_NO_ROOM = ("can't allocate", "Unable to allocate", "Storage size calculation overflowed", "out of memory")


def _add_origin(error: Exception, name: str) -> None:
    """Note on an error who raised it: a defect of this package is to be reported, another's isn't."""
    if any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
        return
    frames = traceback.extract_tb(error.__traceback__)
    # Libraries raise what they are asked for: the last who asked is who matters.
    asking = [frame.filename for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if not asking or asking[-1].startswith(_OWN):
        error.add_note(f"{_NOTE}{name} was given what it takes, so this is a defect of it; please report it")
    else:
        error.add_note(f"{_NOTE}raised by {asking[-1]}, which {name} has called")


_NOTE = "spectral: "
_OWN = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = (
    *{f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib")}, "<", __file__,
)  # fmt: skip


def find_fault(value: Any, hint: Any) -> str | None:
    """Say why a value isn't what an annotation asks for, or can't be worked with; None if it is fine.

    Example:
        >>> find_fault(2.5, int), find_fault(np.int64(3), int), find_fault(math.nan, float)
        ('must be a whole number, got 2.5', None, 'must be finite, got nan')
        >>> import torch
        >>> find_fault(torch.zeros(2, device="meta"), torch.Tensor)
        'has a tensor without data (on the meta device); pass one with values'
    """
    if not fits(value, hint):
        return f"must be {describe(hint)}, got {_show(value)}"
    if _is_deep(value):
        return "is nested too deeply"
    return next((reason for part in _walk(value) if (reason := _find_oddity(part))), None)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation asks for; where that can't be told, it is taken as such.

    Example:
        >>> from collections.abc import Sequence
        >>> fits(["a"], Sequence[str]), fits("a", Sequence[str]), fits(None, int | None)
        (True, False, True)
    """
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) for one in arguments)
    if hint is int:
        return is_integer(value)
    if hint is float:
        return _is_number(value)
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if hint is None or hint is type(None):
        return value is None
    if (isinstance(origin, type) and origin.__module__ == "collections.abc") or origin in (list, tuple, dict):
        return _fits_container(value, origin, arguments)
    if isinstance(origin, type) and issubclass(origin, os.PathLike):
        return isinstance(value, origin)
    if isinstance(hint, type):
        return _has_all(value, hint) if getattr(hint, "_is_protocol", False) else isinstance(value, hint)
    return True


def _has_all(value: Any, protocol: type) -> bool:
    """Whether a value has what a protocol asks for, by name."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return all(hasattr(value, name) for name in names if not name.startswith("_"))


def describe(hint: Any) -> str:
    """Name what an annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is Callable:
        return "a function"
    if isinstance(origin, type):
        inner = [describe(one) for one in arguments if one not in (Ellipsis, Any)]
        kinds: dict[Any, str] = {dict: "a dictionary", Mapping: "a dictionary", tuple: "a tuple"}
        return f"{kinds.get(origin, 'a list')} of {' and '.join(dict.fromkeys(inner))}" if inner else "a list"
    if getattr(hint, "__name__", "") == "Tensor":
        return "a tensor"
    return _BUILTINS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _fits_container(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if origin is Callable:
        return callable(value)
    if isinstance(value, (str, bytes)) or not isinstance(value, origin):
        return False
    if (_is_tensor(value) or isinstance(value, np.ndarray)) and value.ndim == 0:  # nothing is in it
        return False
    if isinstance(value, Mapping):
        pairs = arguments if len(arguments) == 2 else (Any, Any)
        return all(fits(k, pairs[0]) and fits(v, pairs[1]) for k, v in value.items())
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if not isinstance(value, Collection):  # to look would use it up
        return True
    return not arguments or all(fits(item, arguments[0]) for item in value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    if _is_tensor(value):
        return value.ndim == 0 and not value.is_complex() and str(value.dtype) != "torch.bool"
    return isinstance(value, (int, float, np.integer, np.floating))


def _is_deep(value: Any) -> bool:
    for _ in range(100):
        if not isinstance(value, (list, tuple, Mapping)) or not value:
            return False
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return True


def _walk(value: Any, depth: int = 3) -> Iterator[Any]:
    yield value
    if depth and isinstance(value, (list, tuple, set, frozenset, Mapping)):
        items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for item in items:
            yield from _walk(item, depth - 1)


def _find_oddity(value: Any) -> str | None:
    """Say what is odd about a tensor, an array or a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, got {value}"
    if isinstance(value, str) and len(value) > 2000:
        return f"is a text of {len(value)} characters, which is too long"
    if isinstance(value, (str, os.PathLike)) and "\0" in os.fspath(value):
        return "has a zero byte in it"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiub":
        return f"has an array of {value.dtype}; pass numbers"
    return _find_odd_tensor(value) if _is_tensor(value) else None


def _find_odd_tensor(value: Tensor) -> str | None:
    if value.device.type == "meta":
        return "has a tensor without data (on the meta device); pass one with values"
    if str(value.layout) != "torch.strided":
        return f"has a {str(value.layout).removeprefix('torch.')} tensor; pass x.to_dense()"
    if value.is_quantized:
        return "has a quantised tensor; pass x.dequantize()"
    if value.is_nested:
        return "has a nested tensor; pass x.to_padded_tensor(0.0)"
    if value.is_complex():
        return "has a complex tensor; pass its real part or its magnitude"
    if value.is_floating_point() and value.element_size() == 1:
        return f"has a tensor of {str(value.dtype).removeprefix('torch.')}; pass x.float()"
    if value.numel() > MOST_ELEMENTS:
        return f"has a tensor of {value.numel():.2g} elements, which is too large"
    if value.numel() == 0:
        return f"has an empty tensor, of shape {tuple(value.shape)}"
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return "has a tensor with NaN or infinite values"
    return None


def _read_hint(function: Callable[..., Any], name: str) -> Any:
    """Return an argument's annotation, Any where there is none that can be read."""
    function = inspect.unwrap(function)
    hint = getattr(function, "__annotations__", {}).get(name, Any)
    if isinstance(hint, str):
        try:
            hint = eval(hint, getattr(function, "__globals__", {}))  # our own source
        except Exception:  # a name that only type checkers import
            return Any
    return hint


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)[:40]
    if _is_tensor(value) or isinstance(value, np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
