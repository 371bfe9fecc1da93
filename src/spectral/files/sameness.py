"""Whether a measurement is the same as an earlier one, so that it may continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from spectral.errors import StorageError


class Network(Protocol):
    """What tells a network from others: `spectral.identity.Identity`."""

    def describe(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""

    def find_difference(self, before: Mapping[str, Any]) -> str | None:
        """Say what is different from a network that was described before."""


def find_difference(
    before: Mapping[str, Any], config: Mapping[str, Any], network: Network | None
) -> str | None:
    """Say in what a measurement differs from an earlier one; None where it is the same.

    Args:
        before: of the earlier one, its ``config`` and its ``network``.
        config: what determines the values now.
        network: which network it is now.

    Example:
        >>> find_difference({"config": {"images": "a"}}, {"images": "b"}, None)
        'with images = "a", not "b"'
    """
    earlier = before["config"]
    differing = [key for key in {**earlier, **config} if earlier.get(key) != config.get(key)]
    if network is not None and (not differing or differing[0] == "structure"):
        difference = network.find_difference(before["network"])
        if difference is not None:
            return f"of another network: {difference}"
    if not differing:
        return None
    key = differing[0]
    return f"with {key} = {write_short(earlier.get(key))}, not {write_short(config.get(key))}"


def pick_differing(before: Any, now: Any) -> tuple[Any, Any]:
    """Return of two dictionaries, such as recipes, the entries that differ; anything else as it is.

    Example:
        >>> pick_differing({"epochs": 2, "seed": 0}, {"epochs": 2, "seed": 1})
        ({'seed': 0}, {'seed': 1})
    """
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before, now
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: before.get(name) for name in changed}, {name: now.get(name) for name in changed}


def refuse_other(
    folder: Path, before: Mapping[str, Any], config: Mapping[str, Any], network: Network | None
) -> None:
    """Make sure that a folder's measurements are the same that are to be continued.

    Raises:
        SpectralError: saying in what they differ, see `find_difference`.
    """
    difference = find_difference(before, config, network)
    if difference is not None:
        raise StorageError(f"{folder} holds measurements {difference}; choose another folder or delete it")


def write_short(value: Any) -> str:
    """Write a value as JSON, at most 80 characters of it.

    Example:
        >>> write_short(["a", None])
        '["a", null]'
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
