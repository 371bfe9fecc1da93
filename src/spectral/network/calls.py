"""The ways in which a model may be called with what a user gives: the arguments of its forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from spectral.arguments.values import are_integers, is_integer
from spectral.errors import SpectralError, explain_failure
from spectral.network.inputs import Inputs, read_example
from spectral.network.moves import CHANNELS
from spectral.processes.interrupts import raise_kept

IMAGE_KEYS = (
    "pixel_values", "image", "images", "img", "imgs", "x", "input", "inputs", "data", "video", "audio",
    "waveform", "input_values", "input_features",
)  # fmt: skip
CHANNELS_FIRST = "its channels, which are last, are moved first"
SMALLEST_SIDE = 4  # an image is at least so high and wide, where it could be a signal


@dataclass(frozen=True)
class Call:
    """One way to pass a batch to a model.

    Attributes:
        build: what the user gave → the arguments.
        note: what was done to it, where that isn't plain.
        raw: whether it makes images in [0, 1], still to be normalised, of 8-bit pixels.
    """

    build: Callable[[Any], Inputs]
    note: str = ""
    raw: bool = False


def make_inputs(*args: Any, **kwargs: Any) -> Inputs:
    """Return the arguments of a forward pass, the image among them being the first that looks like one.

    Raises:
        SpectralError: if there is no tensor that could be an image or a signal.

    Example:
        >>> make_inputs(torch.zeros(1), mask=torch.zeros(2, 1, 8, 8)).image.shape
        torch.Size([2, 1, 8, 8])
    """
    inputs = Inputs(args, kwargs, torch.empty(0))
    tensors = [x for x, _ in inputs.every_tensor()]
    for least in (3, 2):
        for x in tensors:
            if x.ndim >= least and (x.is_floating_point() or x.is_complex() or x.dtype == torch.uint8):
                return Inputs(args, kwargs, x)
    raise SpectralError(
        "there is no image among the inputs, a floating-point or 8-bit tensor of two axes or more; pass one"
    )


def run_forward(model: Callable[..., Any], inputs: Inputs, name: str) -> Any:
    """Call a model.

    Args:
        model: what is called.
        inputs: with what.
        name: what messages call it.

    Raises:
        SpectralError: if its forward fails, naming the shape it was given.

    Example:
        >>> run_forward(lambda x: 1 / 0, make_inputs(torch.zeros(1, 1, 8)), "net")
        Traceback (most recent call last):
        spectral.errors.SpectralError: the forward of net failed on images of shape (1, 1, 8): Zero...
    """
    raise_kept()
    try:
        return model(*inputs.args, **inputs.kwargs)
    except (SpectralError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise anything
        raise SpectralError(
            f"the forward of {name} failed on images of shape {tuple(inputs.image.shape)}: "
            f"{explain_failure(error)}"
        ) from error


def list_calls(model: Any, example: Any) -> list[Call]:
    """List the ways in which a batch may be meant, the likeliest first.

    Args:
        model: whose forward's parameters, and whose first convolution, decide.
        example: a batch as the user gave it.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, sample): return sample["image"]
        >>> batch = {"image": torch.zeros(2, 3, 8, 8)}
        >>> [len(call.build(batch).args) for call in list_calls(Net(), batch)]
        [1, 1]
    """
    if isinstance(example, Mapping):
        return list(_list_dictionary_calls(model, example))
    if isinstance(example, Tensor):
        return list(_list_tensor_calls(model, example))
    if isinstance(example, tuple | list):
        return list(_list_sequence_calls(model, example))
    return [Call(make_inputs)]


def _list_sequence_calls(model: Any, example: Sequence[Any]) -> Iterator[Call]:
    """List what a tuple or a list may be: images one by one, as detectors take them, or several inputs."""
    whole = Call(make_inputs)
    axes, channels = find_first_convolution(model)
    axes = axes or 2
    tensors = [item for item in example if isinstance(item, Tensor)]
    listed = isinstance(example, list) and len(tensors) == len(example)
    if tensors and listed and _are_single(tensors, axes, channels):
        yield whole
        if can_be_stacked(tensors):
            for call in _list_tensor_calls(model, torch.stack(tensors[:1])):
                yield replace(call, build=partial(_build_stacked, call.build))
        own = tensors[0].ndim == 3 or tensors[0].ndim == axes + 1 == 2 or channels in tensors[0].shape[:1]
        if own and len(tensors) > 1:
            return
    if example and all(isinstance(item, Mapping) for item in example):
        yield from _list_calls_of_items(model, example)
        return
    if len(example) == 1:
        yield from _list_calls_of(model, example, 0, "")
    elif _binds(model, example, {}):
        yield Call(lambda batch: make_inputs(*batch))
    yield whole
    alike = len(tensors) == len(example) and len({tuple(x.shape[1:]) for x in tensors}) == 1
    batches = listed and alike and tensors[0].ndim in (4, axes + 2)
    place = next((i for i, one in enumerate(example) if _holds_tensors(one)), None)
    if place is None or len(example) == 1:
        return
    note = f"of each batch, {f'item {place + 1}' if place else 'the first item'} is passed"
    if batches:
        note += f"; where all {len(example)} are images to look at, join them by torch.cat"
    elif _may_be_labels(example):
        note += "; labels, as which the second isn't taken, are of a whole type"
    elif len(example) > 2 and isinstance(example[0], Tensor):
        note += "; a label is taken where it alone is beside the image"
    yield from _list_calls_of(model, example, place, note)


def _holds_tensors(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return isinstance(value, Tensor) or any(map(_holds_tensors, inner))


def _list_calls_of(model: Any, example: Any, key: Any, note: str) -> Iterator[Call]:
    """List the ways in which a part of a batch may be meant, where no more of it is passed."""
    for call in list_calls(model, example[key]):
        notes = ", ".join(one for one in (note, call.note.replace("of each batch", "of it")) if one)
        yield replace(call, build=partial(_build_part, call.build, key), note=notes)


def _build_part(build: Callable[[Any], Inputs], key: Any, batch: Any) -> Inputs:
    return build(batch[key])


def _are_single(tensors: Sequence[Tensor], axes: int, channels: int | None) -> bool:
    """Whether these may be images one by one: of the first convolution's axes, or (C, H, W) of another's."""
    if all(x.ndim == axes + 1 for x in tensors):
        return True
    signals = axes == 1 and all(x.ndim == 3 and x.shape[1] == channels for x in tensors)  # in batches
    return all(x.ndim == 3 for x in tensors) and not signals


def _list_calls_of_items(model: Any, items: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
    """List what dictionaries may be: several inputs, images one by one, or the items of a batch."""
    if _binds(model, items, {}):
        yield Call(lambda batch: make_inputs(*batch))
    yield Call(make_inputs)
    try:
        batch = default_collate(list(items))
    except (RuntimeError, TypeError, KeyError):  # of other shapes, or of what makes no batch
        return
    if isinstance(batch, Mapping):
        for call in _list_dictionary_calls(model, batch):
            yield replace(call, build=partial(_build_collated, call.build))


def _build_stacked(build: Callable[[Any], Inputs], images: Sequence[Any]) -> Inputs:
    return build(torch.stack(list(images)))


def _build_collated(build: Callable[[Any], Inputs], items: Sequence[Any]) -> Inputs:
    return build(default_collate(list(items)))


def can_be_stacked(values: Iterable[Any]) -> bool:
    """Whether these are tensors of one shape, which make a batch."""
    shapes = {tuple(x.shape) if isinstance(x, Tensor) else None for x in values}
    return len(shapes) == 1 and None not in shapes


def _may_be_labels(example: Sequence[Any]) -> bool:
    """Whether the second of a pair has a number or some for each image, of no whole type."""
    image, other = example[0], example[1] if len(example) == 2 else None
    if not isinstance(image, Tensor) or not isinstance(other, Tensor):
        return False
    each = other.ndim in (1, 2) and image.ndim > 2 and len(other) == len(image)
    return each and (other.is_floating_point() or other.dtype == torch.bool)


def list_inputs(model: Any, example: Any) -> list[Inputs]:
    """List the arguments that an example may stand for, the likeliest first.

    Pixels of eight bits are passed as they are, or in [0, 1]. Of a size alone, the channels are those of
    RGB, or what the model's first convolution takes; a dictionary holds named arguments, or is one.

    Args:
        model: whose forward's parameters, and whose first convolution, decide.
        example: as for `spectral.find_sites`.

    Raises:
        SpectralError: if it can't be an example.

    Example:
        >>> [tuple(inputs.image.shape) for inputs in list_inputs(nn.Conv2d(1, 4, 3), 32)]
        [(1, 3, 32, 32), (1, 1, 32, 32)]
    """
    if isinstance(example, Mapping):
        return [call.build(example) for call in list_calls(model, example)]
    plain = read_example(example)
    if plain.image.dtype == torch.uint8:  # as it is, for networks that scale their pixels themselves
        return [plain, plain.map(lambda x, _: x.float() / 255)]
    axes, channels = find_first_convolution(model)
    sizes = [example] if is_integer(example) else example if isinstance(example, list | tuple) else ()
    if channels is None or axes is None or not sizes or len(sizes) > 2 or not are_integers(sizes):
        return [plain]
    if (axes, channels) == (2, 3) or (axes == 1 and len(sizes) == 2) or axes == 3:
        return [plain]
    return [plain, read_example(example, (channels,), axes)]


def _list_dictionary_calls(model: Any, example: Mapping[str, Any]) -> Iterator[Call]:
    if _binds(model, (), example):
        yield Call(lambda batch: make_inputs(**batch))
    yield Call(lambda batch: make_inputs(batch if isinstance(batch, dict) else dict(batch)))
    key = find_image_key(example)
    if key is not None:
        yield from _list_calls_of(model, example, key, f"of each batch, {key!r} is passed")


def find_image_key(batch: Mapping[str, Any]) -> str | None:
    """Return the key of the image in a dictionary: by its name, or as the only tensor of three axes or more.

    Example:
        >>> find_image_key({"img": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8)})
        'img'
    """
    named = [key for key in IMAGE_KEYS if isinstance(batch.get(key), Tensor)]
    maps = [key for key, value in batch.items() if isinstance(value, Tensor) and value.ndim > 2]
    return named[0] if named else maps[0] if len(maps) == 1 else None


def _list_tensor_calls(model: Any, example: Tensor) -> Iterator[Call]:
    plain = Call(make_inputs)
    rank, channels = find_first_convolution(model)
    lacks_axis = rank is not None and example.ndim == rank + 1
    if lacks_axis and channels == 1:
        yield Call(lambda x: make_inputs(x[:, None]))  # images of one channel, or one
    elif lacks_axis and example.shape[0] == channels:
        yield Call(lambda x: make_inputs(x[None]))  # one image (C, H, W)
    if example.ndim == 2 and rank == 2:
        yield Call(lambda x: make_inputs(x[None, None]))
    yield plain
    last = example.ndim == 4 and example.shape[-1] in CHANNELS
    if last and rank == 2 and example.shape[1] != channels == example.shape[-1]:
        yield Call(lambda x: make_inputs(x.movedim(-1, 1)), CHANNELS_FIRST)
    if rank == 3 and example.ndim in (4, 5):
        yield from _list_video_calls(example, channels)


def _list_video_calls(videos: Tensor, channels: int | None) -> Iterator[Call]:
    """List how videos (B, T, C, H, W) and (B, T, H, W, C) come to a network that takes (B, C, T, H, W)."""
    front = videos.ndim - 4  # of one alone, without a batch's axis, as those of a file
    if videos.shape[front] == channels:
        return
    for axis, note in (
        (-3, "its channels, which are behind the time, are moved first"),
        (-1, CHANNELS_FIRST),
    ):
        if videos.shape[axis] == channels:
            yield Call(partial(_move_channels, axis, front), note)


def _move_channels(axis: int, front: int, videos: Tensor) -> Inputs:
    moved = videos.movedim(axis, front)
    return make_inputs(moved if front else moved[None])


def find_first_convolution(model: Any) -> tuple[int | None, int | None]:
    """Return the spatial axes and the input channels of a model's first convolution; None where it has none.

    Example:
        >>> find_first_convolution(nn.Sequential(nn.Conv3d(1, 4, 3)))
        (3, 1)
    """
    if isinstance(model, nn.Module):
        for module in model.modules():
            # Not its weight, which a parametrisation may compute anew, and count, each time it is read.
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            kernel = getattr(module, "kernel_size", None)
            rank = weight.ndim - 2 if weight is not None else len(kernel) if isinstance(kernel, tuple) else 0
            channels = getattr(module, "in_channels", None)
            if 1 <= rank <= 3 and isinstance(channels, int):
                return rank, channels
    return None, None


def require_clear(images: Tensor, model: Any, caller: str, advice: str = "") -> None:
    """Refuse a tensor of three axes that could be one image as well as signals.

    Raises:
        SpectralError: saying what to pass for each.
    """
    shape = tuple(images.shape)
    if len(shape) != 3 or find_first_convolution(model)[0] is not None:
        return
    if shape[0] in CHANNELS and min(shape[1:]) >= SMALLEST_SIDE:
        raise SpectralError(
            f"{caller}: expected images of shape (B, C, H, W), got {shape}, which could be one image "
            f"(C, H, W) or signals (B, C, T); pass images[None] for an image{advice}"
        )


def _binds(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a model's forward takes these arguments, as far as its signature says."""
    forward = model.forward if isinstance(model, nn.Module) else model
    if not all(isinstance(key, str) for key in kwargs):
        return False
    try:
        inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # built in: it has no signature
        return True
    return True
