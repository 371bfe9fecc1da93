"""A state dict under other names than a network's: matched by shapes and order, if there is but one way."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spectral.errors import SpectralWarning

_COUNTER = "num_batches_tracked"
_Tree = dict[str, Any]  # a name → what is below it, or a tensor's shape


def match_names(state: Mapping[str, Tensor], model: nn.Module, where: str) -> dict[str, Tensor]:
    """Give tensors the network's names where they have others, and warn that this was done.

    Modules are matched from the outside in, by the shapes of all that is below them. Several of the same
    shapes beside each other, such as two norms of a block, are taken in the order of their numbers, if their
    names differ in numbers alone. What a tensor is to its module (weight, running_mean) isn't renamed.

    Args:
        state: names and tensors.
        model: what they are for.
        where: where they come from, for the warning.

    Returns:
        The tensors under the network's names; as they came where the names are its own, or can't be matched
        without doubt.

    Example:
        >>> file = nn.ModuleDict({"norm": nn.BatchNorm2d(4), "dense": nn.Linear(4, 2)}).state_dict()
        >>> net = nn.ModuleDict({"fc": nn.Linear(4, 2), "bn": nn.BatchNorm2d(4)})
        >>> import warnings
        >>> with warnings.catch_warnings(record=True):
        ...     renamed = match_names(file, net, "file")
        >>> sorted(renamed)[:4]
        ['bn.bias', 'bn.num_batches_tracked', 'bn.running_mean', 'bn.running_var']
    """
    own = model.state_dict()
    names: dict[str, str] = {}
    if set(state) <= set(own) or not _match(_plant(state), _plant(own), "", "", names):
        return dict(state)
    names |= {
        f"{name.rpartition('.')[0]}.{_COUNTER}": f"{new.rpartition('.')[0]}.{_COUNTER}"
        for name, new in names.items()
    }
    old, new = next(pair for pair in names.items() if pair[0] != pair[1] and pair[0] in state)
    warnings.warn(
        f"{where}: its tensors have other names than this project's, such as {old!r} for {new!r}; they were "
        f"matched by shape and order, which is possible in one way only",
        SpectralWarning,
        stacklevel=3,
    )
    return {names[name]: tensor for name, tensor in state.items() if name in names}


def _plant(state: Mapping[str, Tensor]) -> _Tree:
    """Arrange a state dict's shapes as the tree that its names are."""
    tree: _Tree = {}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        if leaf == _COUNTER:
            continue
        here = tree
        for part in path:
            here = here.setdefault(part, {})
        here[leaf] = tuple(tensor.shape)
    return tree


def _match(theirs: _Tree, ours: _Tree, before: str, own: str, names: dict[str, str]) -> bool:
    """Match what is below two modules; False where there are none or several ways."""
    groups, own_groups = _group(theirs), _group(ours)
    if {key: len(group) for key, group in groups.items()} != {k: len(g) for k, g in own_groups.items()}:
        return False
    for key, group in groups.items():
        partners = own_groups[key]
        if len(group) > 1:
            if not (_are_numbered(group) and _are_numbered(partners)):
                return False
            group, partners = (sorted(one, key=_read_numbers) for one in (group, partners))
        for one, other in zip(group, partners, strict=True):
            if not isinstance(theirs[one], dict):
                names[before + one] = own + other
            elif not _match(theirs[one], ours[other], f"{before}{one}.", f"{own}{other}.", names):
                return False
    return True


def _group(tree: _Tree) -> dict[Any, list[str]]:
    """Put together what looks the same: a module by all that is below it, a tensor by name and shape."""
    groups: dict[Any, list[str]] = {}
    for name, below in tree.items():
        groups.setdefault(_describe(name, below), []).append(name)
    return groups


def _describe(name: str, below: Any) -> Any:
    """Return what tells a tensor or a module from others, its own name left out if it is a module."""
    if not isinstance(below, dict):
        return name, below
    return tuple(sorted((_describe(key, value) for key, value in below.items()), key=repr))


def _are_numbered(names: list[str]) -> bool:
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1


def _read_numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
