"""Lets functions that modules call run in another way: those calls of them, and no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from spectral.causes.watching import Key
from spectral.surgery.frames import frame_of
from spectral.surgery.rewriting import Function, Run

Shapes = Sequence[tuple[int, ...]]
Keys = Mapping[Key, Shapes]  # every call of a pass, with the shapes of the tensors that it was given
Chosen = TypeVar("Chosen", bound=Run)
Join = Callable[[Sequence[tuple[Shapes, Chosen | None]]], Chosen | None]

_UNTOLD = "other calls at its place in the code, with other axes, sizes or options, can't be told from it"


def run_instead(
    modules: Mapping[str, nn.Module], keys: Keys, chosen: Mapping[Key, Chosen], join: Join[Chosen]
) -> dict[Key, str]:
    """Let functions run in another way from now on, all calls at a place of the code or some repeats of them.

    A frame tells a call by its place in the code and by how often its module's forward has been there. That
    doesn't tell the calls of a module that runs several times, and knows no repeats that a pass hasn't shown:
    so all calls of a place are taken together where they can be.

    Args:
        modules: of the network, by their paths.
        keys: all calls, among them those that stay as they are.
        chosen: what runs instead of which.
        join: makes of calls that aren't told apart, and what each was to run, one thing that does right by
            all; None if there is none.

    Returns:
        Of each chosen call that stays nevertheless, the reason.
    """
    places: dict[tuple[str, Function], list[Key]] = defaultdict(list)
    for key in keys:
        path, _, name, steps, _ = key
        places[path, Function(name, steps)].append(key)
    left: dict[Key, str] = {}
    for (path, function), own in places.items():
        if not any(key in chosen for key in own):
            continue
        run: Chosen | dict[int, Chosen] | None = join([(keys[key], chosen.get(key)) for key in own])
        if run is None:
            repeats: dict[int, list[Key]] = defaultdict(list)
            for key in own:
                repeats[key[-1]].append(key)
            run = {}
            for repeat, some in repeats.items():
                joined = join([(keys[key], chosen.get(key)) for key in some])
                if joined is not None:
                    run[repeat] = joined
                else:
                    left |= dict.fromkeys((key for key in some if key in chosen), _UNTOLD)
        if run != {}:
            frame_of(modules[path]).activations[function] = run
    return left


def join_alike(calls: Sequence[tuple[Shapes, Chosen | None]]) -> Chosen | None:
    """Return what all calls are to run, None where they differ."""
    first = calls[0][1]
    return first if all(run == first for _, run in calls) else None
