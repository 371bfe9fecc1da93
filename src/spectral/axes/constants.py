"""Values of tensors that don't depend on the image, although the pass runs without data.

What is made of fixed numbers has a value even on the meta device: positions to pick samples from, the weights
of a blur. It is computed when it is asked for, from what it was made of.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

MOST_ENTRIES = 1 << 22


@dataclass
class _Recipe:
    """How a tensor was made: ``entry`` of what ``func`` returned for the arguments."""

    func: Any = None
    args: Any = ()
    kwargs: Any = None
    entry: int = 0
    value: Tensor | None = None
    lost: bool = False


class Constants:
    """Tensors that were made of fixed numbers alone, and of what."""

    def __init__(self) -> None:
        self._recipes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._sharing: dict[int, list[weakref.ref[Tensor]]] = defaultdict(list)  # by their memory

    def mark(self, standin: Tensor, value: Tensor) -> None:
        """Note what a tensor without data stands for."""
        if not value.is_meta:
            self._keep(standin, _Recipe(value=value.detach()))

    def note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Note how an operator made tensors of constants."""
        changes = func._schema.is_mutable
        args, kwargs = tree_map(self._refer, (tuple(args), kwargs))
        for entry, output in enumerate(outputs):
            if output.is_meta:
                if changes:
                    self.forget(output)
                self._keep(output, _Recipe(func, args, kwargs, entry))

    def forget(self, x: Tensor) -> None:
        """Forget all tensors that share the memory of one that is overwritten."""
        for reference in self._sharing.pop(memory_of(x), ()):
            other = reference()
            if other is not None:
                self._recipes.pop(other, None)

    def value(self, x: Tensor) -> Tensor | None:
        """Return the value of a tensor; None if it is too large or not made of fixed numbers."""
        if not x.is_meta:
            return x
        recipe = self._recipes.get(x)
        return None if recipe is None or x.numel() > MOST_ENTRIES else _compute(recipe)

    def _keep(self, x: Tensor, recipe: _Recipe) -> None:
        self._recipes[x] = recipe
        self._sharing[memory_of(x)].append(weakref.ref(x))

    def _refer(self, value: Any) -> Any:
        """Put a tensor's recipe in its place: what overwrites the tensor later doesn't change it."""
        if not isinstance(value, Tensor):
            return torch.device("cpu") if value == torch.device("meta") else value
        if not value.is_meta:
            return _Recipe(value=value)
        return self._recipes.get(value) or _Recipe(lost=True)


def memory_of(x: Tensor) -> int:
    """Return a number that is the same for all views of one tensor."""
    try:
        return int(x.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors, lazy ones and some others
        return id(x)


def _compute(recipe: _Recipe) -> Tensor | None:
    if recipe.value is None and not recipe.lost:
        recipe.lost = True
        func = recipe.func
        if torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name:
            return None
        args, kwargs = tree_map(_resolve, (recipe.args, recipe.kwargs), is_leaf=_is_recipe)
        if any(leaf is _MISSING for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
            return None
        try:
            with torch.no_grad():
                made = func(*args, **kwargs)
        except Exception:  # what can't be computed has no value
            return None
        made = made[recipe.entry] if isinstance(made, (tuple, list)) else made
        recipe.value, recipe.lost = made, False
    return recipe.value


_MISSING = object()


def _is_recipe(value: Any) -> bool:
    return isinstance(value, _Recipe)


def _resolve(value: Any) -> Any:
    if not isinstance(value, _Recipe):
        return value
    found = _compute(value)
    # a copy, since an operator may write into it
    return _MISSING if found is None else found.detach().to("cpu", copy=True)
