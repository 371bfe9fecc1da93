"""Inputs moved by whole samples along their spatial axes: up, down, left and right for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectral.network.inputs import Inputs

SPATIAL = ("t", "h", "w")  # time, rows, columns
CHANNELS = (1, 3, 4)  # of images as people store them, with channels last too

_BATCH = ("b", "c", "h", "w")
Kinds = tuple[str, ...]  # of each axis of a tensor: b, c, t, h, w, or ? for what is none of them


@dataclass(frozen=True)
class Move:
    """One sample along one spatial axis: ``kind`` is t, h or w, ``step`` −1 or 1."""

    kind: str
    step: int


def guess_kinds(x: Tensor, batched: bool = True) -> Kinds:
    """Tell the axes of an input by its shape alone.

    (B, T), (B, C, T), (B, C, H, W) and (B, C, T, H, W); with channels last, or behind time, where only that
    axis has as many samples as an image has channels. A signal's axis is called w, as a row of an image.

    Example:
        >>> import torch
        >>> guess_kinds(torch.zeros(2, 3, 32, 32)), guess_kinds(torch.zeros(2, 32, 32, 3))
        (('b', 'c', 'h', 'w'), ('b', 'h', 'w', 'c'))
    """
    batch = ("b",) if batched else ()
    rest = tuple(x.shape[len(batch) :])
    if len(rest) == 1:
        return (*batch, "w")
    if not 2 <= len(rest) <= 4:
        return ("?",) * x.ndim
    axes = SPATIAL[4 - len(rest) :]
    channel = 0
    if len(rest) > 2 and rest[0] not in CHANNELS:
        if rest[-1] in CHANNELS:
            channel = len(rest) - 1
        elif len(rest) == 4 and rest[1] in CHANNELS:
            channel = 1
    return (*batch, *axes[:channel], "c", *axes[channel:])


def guess_layout(inputs: Inputs) -> list[Kinds]:
    """Tell the axes of every tensor among the inputs by their shapes.

    Beside the image, what has its rows and columns is on the same lattice: a mask (B, H, W).
    """
    image = next(((x, batched) for x, batched in inputs.every_tensor() if x is inputs.image), None)
    if image is None:
        return [("?",) * x.ndim for x, _ in inputs.every_tensor()]
    kinds = guess_kinds(*image)
    places = [(kind, n) for kind, n in zip(kinds, image[0].shape, strict=True) if kind in SPATIAL]
    return [
        kinds if x is inputs.image else guess_kinds(x, False) if not batched else _match(x, places)
        for x, batched in inputs.every_tensor()
    ]


def _match(x: Tensor, places: Sequence[tuple[str, int]]) -> Kinds:
    """Find the image's spatial axes, in their order, at the end of another tensor or behind its batch."""
    count, extents = len(places), tuple(n for _, n in places)
    for start in (x.ndim - count, 1):
        if start > 0 and tuple(x.shape[start : start + count]) == extents:
            behind = x.ndim - start - count
            return ("b", *"?" * (start - 1), *(kind for kind, _ in places), *"?" * behind)
    return ("?",) * x.ndim


def spread_layout(layout: Sequence[Kinds], example: Inputs, inputs: Inputs) -> list[Kinds]:
    """Return the axes of every tensor of a batch, from those of an example.

    What has an entry for each image, as the list of images that a detector takes, may be longer than in the
    example: its last entry tells what the others are.

    Args:
        layout: the axes of every tensor of the example.
        example: of one image or more.
        inputs: nested in the same way.

    Example:
        >>> import torch
        >>> one, two = (Inputs(([torch.zeros(3, 8, 8)] * n,), {}, torch.zeros(1)) for n in (1, 2))
        >>> spread_layout([("c", "h", "w")], one, two)
        [('c', 'h', 'w'), ('c', 'h', 'w')]
    """
    known = {id(x): kinds for (x, _), kinds in zip(example.every_tensor(), layout, strict=True)}
    pairs = _pair_tensors((*example.args, example.kwargs), (*inputs.args, inputs.kwargs))
    return [known.get(id(one), ("?",) * x.ndim) for one, x in pairs]


def _pair_tensors(example: Any, value: Any) -> Iterator[tuple[Any, Tensor]]:
    """Yield each tensor with what stands in its place in an example, None where nothing does."""
    if isinstance(value, Tensor):
        yield example, value
    elif isinstance(value, tuple | list):
        ones = example if isinstance(example, tuple | list) and example else [None]
        for place, item in enumerate(value):
            yield from _pair_tensors(ones[min(place, len(ones) - 1)], item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _pair_tensors(example.get(key) if isinstance(example, dict) else None, item)


def list_moves(inputs: Inputs, layout: Sequence[Kinds] | None = None) -> list[Move]:
    """List the moves by one sample that the image has, one way and the other on each spatial axis.

    Example:
        >>> import torch
        >>> from spectral.network.inputs import read_example
        >>> [(m.kind, m.step) for m in list_moves(read_example(torch.zeros(1, 3, 8, 8)))]
        [('h', -1), ('h', 1), ('w', -1), ('w', 1)]
    """
    kinds = find_extents(inputs, guess_layout(inputs) if layout is None else layout)
    return [Move(kind, step) for kind in SPATIAL if kind in kinds for step in (-1, 1)]


def roll_inputs(inputs: Inputs, move: Move, layout: Sequence[Kinds] | None = None) -> Inputs:
    """Move an image circularly, and with it every other input on the same lattice, such as its mask.

    Args:
        inputs: what the model is called with.
        move: along which axis, and which way.
        layout: the axes of every tensor, by their shapes if None.

    Example:
        >>> import torch
        >>> from spectral.network.inputs import read_example
        >>> moved = roll_inputs(read_example({"x": torch.arange(4.).view(1, 1, 4)}), Move("w", 1))
        >>> moved.kwargs["x"].flatten().tolist()
        [3.0, 0.0, 1.0, 2.0]
    """
    known = guess_layout(inputs) if layout is None else layout
    extents = find_extents(inputs, known)
    rest = iter(known)

    def roll(x: Tensor, batched: bool) -> Tensor:
        kinds = next(rest)
        own = {kind: n for kind, n in zip(kinds, x.shape, strict=True) if kind in SPATIAL}
        return x.roll(move.step, kinds.index(move.kind)) if own == extents or not batched else x

    return inputs.map(roll)


def map_planes(
    inputs: Inputs, function: Callable[[Tensor], Tensor], layout: Sequence[Kinds] | None = None
) -> Inputs:
    """Replace the image, and every other input on its lattice, by what a function makes of its planes.

    Args:
        inputs: what the model is called with.
        function: of a tensor (…, H, W), the rows and columns last; a signal is one row.
        layout: the axes of every tensor, by their shapes if None.

    Example:
        >>> import torch
        >>> from spectral.network.inputs import read_example
        >>> halved = map_planes(read_example(torch.zeros(1, 8, 9, 3)), lambda x: x[..., ::2, :])
        >>> halved.image.shape
        torch.Size([1, 4, 9, 3])
    """
    known = guess_layout(inputs) if layout is None else layout
    extents = find_extents(inputs, known)
    rest = iter(known)

    def apply(x: Tensor, batched: bool) -> Tensor:
        kinds = next(rest)
        own = {kind: n for kind, n in zip(kinds, x.shape, strict=True) if kind in SPATIAL}
        if "w" not in own or (batched and own != extents):
            return x
        column = kinds.index("w")
        if "h" not in own:
            return function(x.movedim(column, -1).unsqueeze(-2)).squeeze(-2).movedim(-1, column)
        places = (kinds.index("h"), column)
        return function(x.movedim(places, (-2, -1))).movedim((-2, -1), places)

    return inputs.map(apply)


def arrange_image(x: Tensor, kinds: Kinds, back: bool = False) -> Tensor:
    """Return images as (B, C, H, W), whatever the order of their axes; rows and channels may be missing.

    Of videos, and where an axis isn't known, they are returned as they are.

    Args:
        x: images, or what they were arranged to.
        kinds: the axes that the images have.
        back: whether to undo it.

    Example:
        >>> import torch
        >>> arrange_image(torch.zeros(2, 8, 9, 3), ("b", "h", "w", "c")).shape
        torch.Size([2, 3, 8, 9])
        >>> arrange_image(torch.zeros(2, 1, 1, 9), ("b", "w"), back=True).shape
        torch.Size([2, 9])
    """
    if "b" not in kinds or "w" not in kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(_BATCH):
        return x
    present = [kind for kind in _BATCH if kind in kinds]
    missing = [place for place, kind in enumerate(_BATCH) if kind not in kinds]
    if back:
        for place in reversed(missing):
            x = x.squeeze(place)
        return x.permute([present.index(kind) for kind in kinds])
    x = x.permute([kinds.index(kind) for kind in present])
    for place in missing:
        x = x.unsqueeze(place)
    return x


def find_extents(inputs: Inputs, layout: Sequence[Kinds]) -> dict[str, int]:
    """Return the image's extent along each of its spatial axes, t, h and w.

    Example:
        >>> import torch
        >>> from spectral.network import make_inputs
        >>> inputs = make_inputs(torch.zeros(2, 3, 8, 9))
        >>> find_extents(inputs, guess_layout(inputs))
        {'h': 8, 'w': 9}
    """
    for (x, _), kinds in zip(inputs.every_tensor(), layout, strict=True):
        if x is inputs.image:
            return {kind: n for kind, n in zip(kinds, x.shape, strict=True) if kind in SPATIAL}
    return {}


def find_size(inputs: Inputs) -> tuple[int, int] | None:
    """Return height and width of the image as its shape tells them, of a signal 1 and its length.

    Example:
        >>> import torch
        >>> from spectral.network import make_inputs
        >>> [find_size(make_inputs(torch.zeros(2, *shape))) for shape in ((3, 8, 9), (1, 40))]
        [(8, 9), (1, 40)]
    """
    extents = find_extents(inputs, guess_layout(inputs))
    return (extents.get("h", 1), extents["w"]) if "w" in extents else None


def reflect(places: Tensor, size: int) -> Tensor:
    """Bring places along an axis of ``size`` samples back inside, mirrored at its first and last sample.

    Example:
        >>> import torch
        >>> reflect(torch.arange(-2, 5), 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(2 * (size - 1), 1)
    return (size - 1) - (places % period - (size - 1)).abs()
