"""What moves a network's answer when its image moves: the causes, each at one place of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from spectral.errors import SpectralError, suggest

Source = Literal["decimation", "nonlinearity", "border", "position"]

SOURCES: tuple[Source, ...] = ("decimation", "nonlinearity", "border")
"""Sources that can be made ideal; ``position`` can't."""


@dataclass(frozen=True)
class Cause:
    """One operator that isn't equivariant to shifts, and why not.

    Attributes:
        source: ``decimation``, ``nonlinearity``, ``border`` or ``position``.
        name: of the place: the site's as `find_sites` gives it; else the module's path, with ``:function#``
            where a module calls several functions and ``@call`` where it runs more than once.
        op: the function that is called.
        reason: why it can't be made ideal, None if it can.
    """

    source: Source
    name: str
    op: str
    reason: str | None = None


Where = str | Sequence[str] | Callable[[Cause], bool] | None


def check_sources(sources: Iterable[str], caller: str) -> tuple[Source, ...]:
    """Return sources in their order, each once.

    Raises:
        SpectralError: for one that is unknown, or that can't be made ideal.

    Example:
        >>> check_sources(["border", "decimation"], "example")
        ('decimation', 'border')
    """
    asked = [sources] if isinstance(sources, str) else list(sources)
    for source in asked:
        if source not in SOURCES:
            why = ": a network's sense of position can't be made ideal" if source == "position" else ""
            raise SpectralError(
                f"{caller}: unknown source {source!r}{why}{suggest(str(source), SOURCES)}; allowed values "
                f"are {', '.join(SOURCES)}"
            )
    return tuple(source for source in SOURCES if source in asked)


def choose_causes(
    causes: Sequence[Cause], sources: Sequence[Source], where: Where, caller: str
) -> list[Cause]:
    """Choose the causes of some sources at some places.

    Args:
        causes: all that a pass has.
        sources: which kinds.
        where: None for everywhere, names or patterns (``"layer1.*"``), one or several; or a function.
        caller: whose name messages begin with.

    Raises:
        SpectralError: for a name that no cause has.

    Example:
        >>> every = [Cause("border", "conv1", "conv2d"), Cause("nonlinearity", "relu", "relu")]
        >>> [cause.name for cause in choose_causes(every, SOURCES, "conv*", "example")]
        ['conv1']
    """
    if callable(where):
        return [cause for cause in causes if cause.source in sources and where(cause)]
    patterns = None if where is None else [where] if isinstance(where, str) else list(where)
    for pattern in patterns or ():
        if not any(fnmatchcase(cause.name, pattern) for cause in causes):
            near = suggest(str(pattern), {cause.name for cause in causes})
            raise SpectralError(f"{caller}: nothing that isn't shift-equivariant is called {pattern!r}{near}")
    return [
        cause
        for cause in causes
        if cause.source in sources
        and (patterns is None or any(fnmatchcase(cause.name, pattern) for pattern in patterns))
    ]
