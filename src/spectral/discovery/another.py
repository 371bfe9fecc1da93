"""What of a pass is up to the values of its image: loops over what a detector has found in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spectral.discovery.events import Event

_REASON = "how often it runs, or on maps of which size, is up to the values in the image"


def may_depend(events: Sequence[Event]) -> bool:
    """Whether any of what could be measured runs more than once: only loops are as long as values say."""
    return any(event.geometry.reason is None and _is_repeated(event) for event in events)


def mark_dependent(events: Sequence[Event], others: Sequence[Event]) -> None:
    """Say of what runs otherwise for another image that it can't be measured; what doesn't run there may be.

    Args:
        events: of one image.
        others: of another image of the same size.
    """
    found, elsewhere = _group(events), _group(others)
    for place, alike in found.items():
        if place in elsewhere and list(map(_describe, alike)) != list(map(_describe, elsewhere[place])):
            for event in alike:
                if event.geometry.reason is None and _is_repeated(event):
                    event.geometry = replace(event.geometry, reason=_REASON)


def _is_repeated(event: Event) -> bool:
    return max(event.place.calls[0], event.place.turns[0]) > 1


def _group(events: Sequence[Event]) -> dict[Any, list[Event]]:
    groups: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        groups[event.frame.path, event.family, event.place.outer, event.own].append(event)
    return groups


def _describe(event: Event) -> tuple[Any, ...]:
    return event.geometry.kind, event.geometry.stride, event.input_size, event.output_size
