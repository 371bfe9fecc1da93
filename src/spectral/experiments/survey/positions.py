"""An account of its own of where a network loses samples: positions carried through one forward pass.

Every element of every tensor knows which place of the image it came from: the mean coordinate of what it was
computed from. An operator that leaves fewer distinct places than it was given has thinned the map out. This
knows nothing of the finder that it is the measure of: it has neither a list of operators that decimate, nor
axes, strides or views to follow, since a view shares its memory with what it is a view of, and so its places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from spectral.experiments.survey.places import Places, count_places, is_crop
from spectral.experiments.survey.rules import CUTS, KEEPING, REGIONS, RULES, SLIDING, Call, follow_pointwise

_SWEEP = 16  # tensors after which to forget those that are gone


@dataclass(frozen=True)
class Loss:
    """An operator that left fewer places of the image than it was given.

    Attributes:
        module: path of the innermost module that ran it.
        op: its name in torch.
        before: distinct coordinates per axis, of what entered.
        after: of what left.
        places: how many are left together, along whatever axes of the tensor they lie.
        certain: whether it must be told. What leaves one place of an axis may be a crop, or a stride; and of
            places that an enlarged map has several times none need be lost where it is made small again.
    """

    module: str
    op: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    certain: bool = True
    places: int = 0


@dataclass(frozen=True)
class _Kept:
    """The places of all that one memory holds, and a number that no other memory has had."""

    memory: StorageWeakRef
    places: Places
    number: int
    pairs: bool  # complex numbers, each of which has one place

    def of(self, x: Tensor) -> Places:
        """Return a place for each number that a tensor sees in the memory."""
        if self.pairs and not x.is_complex():
            return [c.repeat_interleave(2) for c in self.places]
        return [c[::2] for c in self.places] if x.is_complex() and not self.pairs else self.places


@dataclass
class _Cuts:
    """What has been cut out of one tensor: the places taken along each axis, losses of one sample."""

    taken: dict[int, set[int]] = field(default_factory=dict)
    losses: dict[int, list[Loss]] = field(default_factory=dict)


class PositionMode(TorchDispatchMode):
    """Carries places through every operator of a forward pass, and keeps the losses.

    A signal has a second coordinate, the frequency: that of a spectrum of its windows is an axis like time.

    Args:
        model: whose modules give the losses their paths.
        columns: whether of a product of two images the places of the second one count, not the first one's.

    Attributes:
        losses: in the order in which they happened.
        unknown: operators behind which the places are lost to this account.
    """

    def __init__(self, model: nn.Module, columns: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._columns = columns
        self.losses: list[Loss] = []
        self.unknown: dict[str, str] = {}
        self._model = model
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._running: list[str] = [""]
        self._places: dict[int, _Kept] = {}
        self._number = 0
        self._cuts: dict[tuple[Any, ...], _Cuts] = {}

    def mark(self, image: Tensor, channels: int = 1) -> None:
        """Give the elements of an input the places they have: all axes but the batch and the channels."""
        axes = [a for a in range(1, image.ndim) if a != channels or image.ndim < 3]
        grids = torch.meshgrid(
            *(torch.arange(image.shape[a], dtype=torch.float64) for a in axes), indexing="ij"
        )
        shape = [n if a in axes else 1 for a, n in enumerate(image.shape)]
        places = [grid.reshape(shape).expand(image.shape) for grid in grids]
        frequency = [torch.zeros(image.shape, dtype=torch.float64)] if len(axes) == 1 else []
        self._set(image, [*places, *frequency])

    @contextmanager
    def following(self) -> Iterator[None]:
        """Know which module runs; `with mode.following(), mode: model(x)`."""

        def enter(module: nn.Module, args: Any) -> None:
            self._running.append(self._names.get(id(module), self._running[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and then do to the places what it did to the values."""
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        known = [x for x in flat if isinstance(x, Tensor) and self.get(x) is not None]
        before = {id(x): self.get(x) for x in known}
        out = func(*args, **kwargs)
        if known and not isinstance(out, (bool, int, float)):
            self._follow(func, args, kwargs, out, known, before)
        return out

    def get(self, x: Tensor) -> Places | None:
        """Return the places of a tensor's elements."""
        if x.layout != torch.strided or x.device.type == "meta":
            return None
        kept = self._places.get(_storage(x))
        if kept is None or kept.memory.expired():
            return None
        view = [
            c.as_strided(x.shape, _strides_in(c, x), x.storage_offset() * c.stride(0))
            for c in kept.of(x)
            if _fits(x, c)
        ]
        return view or None

    def _set(self, x: Tensor, places: Places) -> None:
        present = self.get(x)
        if present is None:
            length = x.untyped_storage().nbytes() // x.element_size()
            empty = [torch.full((length,), math.nan, dtype=torch.float64) for _ in places]
            self._number += 1
            if self._number % _SWEEP == 0:  # what is gone takes as much memory as all activations together
                self._places = {key: kept for key, kept in self._places.items() if not kept.memory.expired()}
            memory = StorageWeakRef(x.untyped_storage())
            self._places[_storage(x)] = _Kept(memory, empty, self._number, x.is_complex())
            present = self.get(x)
        for own, new in zip(present or [], places, strict=False):
            if 0 not in own.stride():
                shared = _storage(own) == _storage(new)
                own.copy_((new.clone() if shared else new).expand(x.shape))

    def _follow(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any, known: list[Tensor],
        before: dict[int, Places | None],
    ) -> None:  # fmt: skip
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        outs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if not outs:
            return
        if any(_storage(outs[0]) == _storage(x) for x in known) and not func._schema.is_mutable:
            if name in CUTS:
                self._compare(name, self.get(known[0]), self.get(outs[0]))
                self._follow_cut(known[0], outs[0])
            return
        rule = RULES.get(name.rstrip("_") if name.endswith("_") else name)
        old = {id(x): p for x, p in ((x, before[id(x)]) for x in known) if p is not None}
        try:
            call = Call(func, name, args, kwargs, outs, known, old, self._columns)
            places, sources = (rule or follow_pointwise)(call)
        except Exception as error:
            self.unknown.setdefault(name, f"{type(error).__name__}: {str(error)[:80]}")
            return
        for x, found in zip(outs, places, strict=False):
            if found is not None:
                self._set(x, found)
        if rule is not None and places and places[0] is not None and name not in KEEPING:
            entering = [old[id(x)] for x in sources if id(x) in old]
            along = slice(1 if name.startswith("_fft") else None)  # of spectra of windows the time alone
            self._compare(
                name, None, places[0][along], [one[along] for one in entering],
                whole=_reads_whole_maps(call),
            )  # fmt: skip
        if name in SLIDING and sources and places[0] is not None:
            self._compare_samples(name, sources[0], outs[0], old[id(sources[0])], places[0])

    def _compare_samples(self, name: str, x: Tensor, y: Tensor, before: Places, after: Places) -> None:
        """Note how many samples there are of maps that have several of a place, or some of none.

        A map that was enlarged and is made small again may keep all of its places; what lies in the padding
        has none. How much a region is made smaller depends on its size.
        """
        if name in REGIONS:
            sizes = tuple(x.shape[-2:]), tuple(y.shape[-2:])
            self.losses.append(Loss(self._running[-1], name, *sizes, certain=False))
            return
        rank = min(_count_axes(before), x.ndim, y.ndim)
        sizes = tuple(x.shape[-rank:]), tuple(y.shape[-rank:])
        enlarged = count_places(before).places < math.prod(sizes[0])
        padded = count_places(after).places < math.prod(sizes[1])
        if (enlarged or padded) and math.prod(sizes[1]) < math.prod(sizes[0]):
            self.losses.append(Loss(self._running[-1], name, *sizes, certain=False))

    def _follow_cut(self, x: Tensor, part: Tensor) -> None:
        """Take back that single samples of an axis are losses, once all of its samples have been taken."""
        before, after = self.get(x), self.get(part)
        if before is None or after is None:
            return
        number = self._places[_storage(x)].number
        cuts = self._cuts.setdefault((number, x.storage_offset(), tuple(x.shape), x.stride()), _Cuts())
        whole, left = count_places(before), count_places(after)
        for axis, (n, m) in enumerate(zip(whole.sizes, left.sizes, strict=True)):
            if m == n:
                continue
            values = (after[axis][~after[axis].isnan()] * 64).round().long().unique().tolist()
            cuts.taken.setdefault(axis, set()).update(values)
            if m == 1 and self.losses and self.losses[-1].after == left.sizes:
                cuts.losses.setdefault(axis, []).append(self.losses[-1])
            if len(cuts.taken[axis]) >= n:
                alone = cuts.losses.pop(axis, [])
                self.losses[:] = [loss for loss in self.losses if all(loss is not one for one in alone)]

    def _compare(
        self, name: str, before: Places | None, after: Places | None,
        entering: Sequence[Places] = (), whole: bool = False,
    ) -> None:  # fmt: skip
        given = [before] if before is not None else list(entering)
        if not given or after is None:
            return
        least = min((count_places(places) for places in given if places), key=lambda c: -c.places)
        left = count_places(after)
        crop = is_crop(least, left)
        if left.places <= 1 or left.places >= least.places or (crop and not name.startswith("grid_sample")):
            return
        axes = [(n, m) for n, m in zip(least.sizes, left.sizes, strict=True) if m < n]
        # A signal has no frequencies, until it is transformed.
        near = whole or (name in ("slice", "narrow", "convolution") and all(m == 1 for _, m in axes))
        rank = 1 if len(least.sizes) == 2 and least.sizes[-1] == 1 and left.sizes[-1] == 1 else None
        self.losses.append(
            Loss(self._running[-1], name, least.sizes[:rank], left.sizes[:rank], not near and not crop,
                 left.places)
        )  # fmt: skip


def _reads_whole_maps(call: Call) -> bool:
    """Whether a convolution of stride 1 leaves one sample of each of its maps, wherever these lie."""
    if call.name not in ("convolution", "_convolution") or max(call.args[3]) > 1:
        return False
    x, y = call.args[0], call.outs[0]
    return bool(math.prod(y.shape[2:]) == 1 < math.prod(x.shape[2:]))


def _count_axes(places: Places) -> int:
    """Count axes along which there are places; a signal has no frequencies, until it is transformed."""
    alone = len(places) == 2 and count_places(places[1:]).places <= 1
    return 1 if alone else len(places)


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _strides_in(c: Tensor, x: Tensor) -> list[int]:
    """Distances in the memory of places, which may be every other one of it."""
    return [stride * c.stride(0) for stride in x.stride()]


def _fits(x: Tensor, c: Tensor) -> bool:
    reach = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    return bool(x.numel() == 0 or reach <= c.numel())
