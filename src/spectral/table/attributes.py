"""What a table says of itself, in its ``attrs``: the tables that are made from it share it.

pandas copies ``attrs`` deeply whenever it takes a row, a column or a part of a table. Of a network with sixty
sites that is more work than the step itself.
"""

from __future__ import annotations

from typing import Any


def share_facts(value: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """Return a list or dictionary that is equal, and that a deep copy takes as it is.

    Args:
        value: what no one alters; whoever wants to, makes a ``list`` or ``dict`` of it first.

    Example:
        >>> import copy
        >>> sites = share_facts([{"name": "conv1"}])
        >>> sites == [{"name": "conv1"}], copy.deepcopy({"sites": sites})["sites"] is sites
        (True, True)
    """
    return _SharedList(value) if isinstance(value, list) else _SharedDict(value)


class _SharedList(list[Any]):
    def __deepcopy__(self, memo: object) -> _SharedList:
        return self


class _SharedDict(dict[str, Any]):
    def __deepcopy__(self, memo: object) -> _SharedDict:
        return self
