"""Values of tensors that don't depend on the image, although the pass runs without data.

What is made of fixed numbers has a value even on the meta device: positions to pick samples from, the weights
of a blur. It is computed when it is asked for, from what it was made of.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from spectral.tracing.tensors import MemoryTable, TensorTable, memory_of

MOST_ENTRIES = 1 << 22
_DEEPEST = 40  # operators after which a value is computed before it is asked for


@dataclass
class _Recipe:
    """How a tensor was made: ``entry`` of what ``func`` returned for the arguments."""

    func: Any = None
    args: Any = ()
    kwargs: Any = None
    entry: int = 0
    value: Tensor | None = None
    lost: bool = False
    entries: int = 0

    def __post_init__(self) -> None:
        parts = tree_leaves((self.args, self.kwargs), is_leaf=_is_recipe)
        self.depth = 1 + max((one.depth for one in parts if _is_recipe(one)), default=-1)
        if self.depth > _DEEPEST:
            self.lost = self.entries > MOST_ENTRIES or _compute(self) is None
            self.args, self.kwargs, self.depth = (), None, 0


class _Place(NamedTuple):
    """Where the entries of a tensor lie in its memory."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Constants:
    """Tensors that were made of fixed numbers alone, and of what."""

    def __init__(self) -> None:
        self._recipes: TensorTable[_Recipe] = TensorTable()
        self._sharing: dict[int, list[weakref.ref[Tensor]]] = defaultdict(list)  # by their memory
        self._wholes: MemoryTable[_Recipe] = MemoryTable()  # what fills all of a memory

    def mark(self, standin: Tensor, value: Tensor) -> None:
        """Note what a tensor without data stands for."""
        if not value.is_meta:
            self._keep(standin, _Recipe(value=value.detach()))

    def note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Note how an operator made tensors of constants."""
        changes = func._schema.is_mutable
        given = {memory_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        args, kwargs = tree_map(self._refer, (tuple(args), kwargs))
        for entry, output in enumerate(outputs):
            if output.is_meta:
                recipe = _Recipe(func, args, kwargs, entry, entries=output.numel())
                if changes:
                    self._overwrite(output, recipe)
                elif memory_of(output) not in given and _fills_memory(output):
                    self._wholes[output] = recipe
                self._keep(output, recipe)

    def forget(self, x: Tensor) -> None:
        """Forget all tensors that share the memory of one that is overwritten."""
        self._wholes.pop(x)
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

    def find_zeros(self, x: Tensor) -> Tensor | None:
        """Return the tensor that another is a part of, if there is nothing but zeros in it."""
        for reference in self._sharing.get(memory_of(x), ()):
            other = reference()
            if other is not None and _fills_memory(other):
                value = self.value(other)
                return other if value is not None and not value.any() else None
        return None

    def _overwrite(self, x: Tensor, recipe: _Recipe) -> None:
        """Let what shares the memory of a tensor have the new values where they overlap."""
        place, whole, sharing = _place_of(x), self._wholes.get(x), self._sharing.get(memory_of(x), ())
        others = [other for reference in sharing if (other := reference()) is not None]
        self.forget(x)
        if whole is None or place is None:
            return
        whole = self._wholes[x] = _Recipe(_write, (whole, place, recipe), entries=whole.entries)
        for other in others:
            there = _place_of(other)
            if other is not x and there is not None:
                self._keep(other, _Recipe(_read, (whole, there), entries=other.numel()))

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


def _compute(recipe: _Recipe) -> Tensor | None:
    if recipe.value is None and not recipe.lost:
        recipe.lost = True
        func = recipe.func
        if isinstance(func, torch._ops.OpOverload) and not _is_certain(func):
            return None
        args, kwargs = tree_map(_resolve, (recipe.args, recipe.kwargs), is_leaf=_is_recipe)
        if any(leaf is _MISSING for leaf in tree_leaves((args, kwargs))):
            return None
        try:
            with torch.no_grad():
                made = func(*args, **(kwargs or {}))
        except Exception:  # what can't be computed has no value
            return None
        made = made[recipe.entry] if isinstance(made, (tuple, list)) else made
        recipe.value, recipe.lost = made, False
    return recipe.value


def _is_certain(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded not in func.tags and "empty" not in func._schema.name


def _fills_memory(x: Tensor) -> bool:
    place = _place_of(x)
    return place is not None and x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes


def _place_of(x: Tensor) -> _Place | None:
    if x.layout != torch.strided or x.is_quantized:
        return None
    return _Place(x.dtype, tuple(x.shape), x.stride(), int(x.storage_offset()))


def _write(whole: Tensor, place: _Place, value: Tensor) -> Tensor:
    _read(whole, place).copy_(value)
    return whole


def _read(whole: Tensor, place: _Place) -> Tensor:
    if whole.dtype != place.dtype:
        raise TypeError("a view of other numbers")
    return whole.as_strided(*place[1:])


_MISSING = object()


def _is_recipe(value: Any) -> bool:
    return isinstance(value, _Recipe)


def _resolve(value: Any) -> Any:
    if not isinstance(value, _Recipe):
        return value
    found = _compute(value)
    # a copy, since an operator may write into it
    return _MISSING if found is None else found.detach().to("cpu", copy=True)
