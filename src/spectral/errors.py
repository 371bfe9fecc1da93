"""The one exception and the one warning users see, and the 'did you mean' that goes with the exception."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parent)


class SpectralError(ValueError):
    """Bad input or an impossible request, explained in one sentence.

    The sentence says what was expected, what came instead and what to do. The command line prints it and
    exits with code 2; in a notebook it is an ordinary ``ValueError``.
    """


class ForwardError(SpectralError):
    """A network's own forward fails on what it is called with."""


class NotFiniteError(SpectralError):
    """A map has values that aren't finite, or overflow when squared."""


class StorageError(SpectralError):
    """A file or folder that can't be written or read, or isn't what was written.

    It says nothing about a network: an analysis that notes why a part can't be had lets it through.
    """


class NothingKnownError(SpectralError):
    """A figure's tables are whole, but what it shows is unknown in all rows, for reasons that stand there."""


class BrokenJobError(RuntimeError):
    """What no rank of a job can go on after: another ended, or failed in a way that nobody foresaw.

    No `SpectralError`, which an analysis may note as the reason why a part can't be had, and go on.

    Attributes:
        rank: which failed without the others knowing, if it is this one.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class LostRankError(BrokenJobError):
    """Another rank ended, or doesn't answer: perhaps the first, which speaks for all."""


class MaskedGradientError(SpectralError):
    """No image could be attacked, because the network gives no gradient."""


class SpectralWarning(UserWarning):
    """What a user must know to read a result: an assumption that was made, something left out and why.

    Each is one sentence. The command line prints it as one line on stderr, every time.
    """


class LostRowsWarning(SpectralWarning):
    """Rows of a run are gone and are measured again: what the same call doesn't warn of the next time."""


def explain_failure(error: Exception) -> str:
    """Say in one line what a network's forward has raised, and what to do where that isn't said.

    Example:
        >>> explain_failure(RuntimeError("mat1 and mat2 don't fit"))
        "RuntimeError: mat1 and mat2 don't fit"
    """
    first = next(iter(str(error).splitlines()), "no message")
    hint = ""
    calls = re.match(r"There was no rule registered for HigherOrderOperator (\w+)", first)
    if calls:  # the rest tells whoever writes a dispatch mode what to do
        first = f"it calls {calls[1]}, within which torch lets nothing be followed"
        hint = "; write cond as if, map as a loop, flex_attention as scaled_dot_product_attention"
    if first.startswith("Guard failed"):  # of what torch.export has made
        hint = (
            "; it was exported for inputs of that size alone: give such ones (batch_size=, and images "
            "that fill each batch), or export it with dynamic_shapes="
        )
    return f"{type(error).__name__}: {first}{hint}"


def check_choice(value: Any, allowed: Iterable[str], what: str, caller: str = "") -> None:
    """Make sure that a value is one of the names that are allowed.

    Args:
        value: what was given.
        allowed: all that will do.
        what: what it is, for the message.
        caller: whose name the message begins with.

    Raises:
        SpectralError: naming the nearest ones and all.

    Example:
        >>> check_choice("zero", ("zeros", "circular"), "fill", "shift")
        Traceback (most recent call last):
        spectral.errors.SpectralError: shift: unknown fill 'zero'; nearest: 'zeros'; allowed values are ...
    """
    names = list(allowed)
    if not (isinstance(value, str) and value in names):
        begin = f"{caller}: " if caller else ""
        raise SpectralError(
            f"{begin}unknown {what} {value!r}{suggest(str(value), names)}; allowed values are "
            f"{', '.join(names)}"
        )


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ``"; nearest: 'a', 'b'"`` for a misspelt name, or an empty string when nothing is near.

    Example:
        >>> suggest("layer1.conv", ["layer1.conv1", "fc"])
        "; nearest: 'layer1.conv1'"
        >>> suggest("zzz", ["layer1.conv1"])
        ''
    """
    near = difflib.get_close_matches(name, list(options), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(repr(n) for n in near)}" if near else ""


def name_few(names: Iterable[object], most: int = 3) -> str:
    """List the first names, and say that there are more.

    Example:
        >>> name_few(["a", "b", "c", "d"])
        'a, b, c, …'
    """
    listed = [str(name) for name in names]
    return ", ".join([*listed[:most], "…"] if len(listed) > most else listed)


def warn(message: str) -> None:
    """Warn whoever called this package, at the line that did, however deep the call is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, SpectralWarning, stacklevel=level)
