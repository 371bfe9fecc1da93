"""Arguments as people pass them: numbers of any kind, and paths."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

from spectral.errors import SpectralError

MOST_SAMPLES = 2**28  # of one map: 2 GiB in float64


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number: Python's, NumPy's, or a tensor or array of one; True isn't.

    Example:
        >>> import numpy as np
        >>> is_integer(np.int64(2)), is_integer(2.0), is_integer(True)
        (True, False, False)
    """
    try:
        operator.index(value)
    except TypeError:
        return False
    # bool is a whole number to Python, NumPy's and torch's to operator.index: as a count each is a mistake
    return not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", ""))


def as_integer(value: Any, what: str, least: int | None = None) -> int:
    """Return a whole number as Python's.

    Args:
        value: what was given.
        what: what it is, for the message, as in ``"measure: batch_size"``.
        least: the smallest that will do.

    Raises:
        SpectralError: if it is none, or too small.

    Example:
        >>> import numpy as np
        >>> as_integer(np.int64(8), "batch_size", least=1)
        8
        >>> as_integer(0.5, "batch_size", least=1)
        Traceback (most recent call last):
        spectral.errors.SpectralError: batch_size must be a whole number ≥ 1, got 0.5
    """
    if is_integer(value) and (least is None or operator.index(value) >= least):
        return operator.index(value)
    bound = "" if least is None else f" ≥ {least}"
    raise SpectralError(f"{what} must be a whole number{bound}, got {value!r}")


def as_positive(value: Any, what: str) -> float:
    """Return a finite number above 0 as Python's.

    Raises:
        SpectralError: if it is none.

    Example:
        >>> as_positive(2, "minutes")
        2.0
        >>> as_positive(0, "minutes")
        Traceback (most recent call last):
        spectral.errors.SpectralError: minutes must be a finite number above 0, got 0
    """
    if isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf:
        return float(value)
    raise SpectralError(f"{what} must be a finite number above 0, got {value!r}")


def are_integers(values: Iterable[Any]) -> bool:
    """Whether all values are whole numbers.

    Example:
        >>> are_integers((1, 2)), are_integers((1, 2.5))
        (True, False)
    """
    return all(map(is_integer, values))


def as_list(value: Any) -> list[Any]:
    """Return what may be one or several, a text being one, as a list.

    Example:
        >>> as_list("avr"), as_list(("avr", "am")), as_list(2)
        (['avr'], ['avr', 'am'], [2])
    """
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return list(value) if several else [value]


def check_room(extents: Iterable[int], what: str) -> None:
    """Refuse sizes of maps that no machine here could hold.

    Raises:
        SpectralError: for more than 2²⁸ samples.

    Example:
        >>> check_room((10**9, 10**9), "make_image: size")
        Traceback (most recent call last):
        spectral.errors.SpectralError: make_image: size of 1000000000×1000000000 is too large; at most ...
    """
    sides = [max(int(n), 1) for n in extents]
    if math.prod(sides) > MOST_SAMPLES:
        size = "×".join(map(str, sides))
        raise SpectralError(f"{what} of {size} is too large; at most {MOST_SAMPLES} samples")


def as_path(value: Any, what: str) -> Path:
    """Return a path as Python's, with ``~`` opened.

    Raises:
        SpectralError: if it is none, or names nothing.

    Example:
        >>> as_path("a/b", "out").name
        'b'
        >>> as_path("", "out")
        Traceback (most recent call last):
        spectral.errors.SpectralError: out must name a file or folder, got ''; '.' is the current folder
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise SpectralError(f"{what} must be a path, got {type(value).__name__}")
    text = os.fspath(value)
    if not text.strip() or "\0" in text:
        raise SpectralError(f"{what} must name a file or folder, got {text!r}; '.' is the current folder")
    return Path(text).expanduser()
