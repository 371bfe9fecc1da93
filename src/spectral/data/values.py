"""What a network is called with, from a file of arrays or from a function: passed on as it is."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from spectral.arguments.factories import explaining, find_needed, opened, split_factory
from spectral.data.bounds import MOST_UNFOLDED, check_values
from spectral.data.datasets import as_tensors, count_images, hash_values
from spectral.data.labels import LABEL_KEYS, Joined, Taken, number_names, refuse_labels, take_labels
from spectral.data.splits import choose_arrays
from spectral.data.structures import list_leaves, pick
from spectral.errors import SpectralError, warn

ARRAYS = (".npy", ".npz")
FORM = "a .npy or .npz file, or a function as my_data.py:load"


@dataclass(frozen=True)
class Values:
    """What a network is called with: tensors of all images, alone or nested as its forward takes them.

    Args:
        source: where they come from.
        content: a tensor, a tuple of several inputs, a list, or a dictionary of named ones.
        labels: of each, where known.
        classes: what they count, where they have names.

    Raises:
        SpectralError: if there is no tensor with an entry for each.

    Example:
        >>> import torch
        >>> pairs = Values("my_data.py:load", (torch.zeros(3, 1, 8, 8), torch.ones(3, 5)))
        >>> len(pairs), len(pairs.choose([0, 2]).content[1])
        (3, 2)
    """

    source: str
    content: Any
    labels: Sequence[int | None] = field(default=())
    classes: list[str] | None = None
    prepared = True

    def __len__(self) -> int:
        return count_images(self.content)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first input with most axes; of signals 1 and their length."""
        shape = max((tuple(x.shape) for x in list_leaves(self.content) if isinstance(x, Tensor)), key=len)
        return (shape[-2] if len(shape) > 3 else 1, shape[-1])

    @property
    def fingerprint(self) -> str:
        """Changes whenever a value does."""
        return hash_values(self.content)[:16]

    def choose(self, indices: Sequence[int]) -> Values:
        """Return some of them."""
        some = pick(self.content, list(indices), len(self))
        labels = [self.labels[i] for i in indices] if self.labels else ()
        return Values(self.source, some, labels, self.classes)


def names_values(source: object) -> bool:
    """Whether a name is one of a file of arrays, or of a function in the form in which one is run.

    Example:
        >>> names_values("pairs.npz"), names_values("my_data.py:load"), names_values("photos")
        (True, True, False)
    """
    if not isinstance(source, str | os.PathLike):
        return False
    named = isinstance(source, str) and split_factory(source) is not None and not Path(source).exists()
    return named or Path(source).suffix.lower() in ARRAYS


def find_example(images: Any) -> Any:
    """Return the first of what is passed on to a network as it is; None of images."""
    if isinstance(images, Values):
        return images.choose([0]).content
    if not getattr(images, "prepared", False):
        return None
    return next(iter(images.batches(1, indices=[0])))[1]


def read_values(source: str | os.PathLike[str]) -> tuple[Any, Joined, str]:
    """Read a file of arrays, or call a function: what it holds or gives, its labels, and where it is from.

    Several arrays of a .npz file are a network's named inputs, or its inputs in their order where they have
    no names; what is called ``label``, ``target``, ``y`` or such is labels, if it counts or names classes.
    Beside pixels it is left out with a warning if it doesn't, and other text always. Nothing that is pickled
    is read.

    Raises:
        SpectralError: if the file can't be read, or the function fails, needs arguments or gives nothing.
    """
    path = Path(source).expanduser()
    from_file = path.suffix.lower() in ARRAYS
    made = _read_arrays(path) if from_file else _call(str(source))
    try:
        check_values(made)
        if from_file:
            return *_name_inputs(made, f"file:{path.name}"), f"file:{path.name}"
        if not isinstance(made, Mapping):
            return made, Joined([]), str(source)
        taken = _take_labels(made, str(source))
        return as_tensors(taken.rest), _number(taken), str(source)
    except SpectralError as error:
        raise SpectralError(f"{source}: {error}") from error


def _read_arrays(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            return _read_members(file, path.stat().st_size) if zipped else _read_array(file)
    except FileNotFoundError as error:
        raise SpectralError(
            f"{path} can't be read as arrays: there is no such file; check the path"
        ) from error
    except Exception as error:  # a damaged file makes these readers raise nearly anything
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SpectralError(
            f"{path} can't be read as arrays ({why}); write it with numpy.save or numpy.savez"
        ) from error


def _read_members(file: IO[bytes], size: int) -> dict[str, Any]:
    """Read the arrays of a .npz file; not one of several of a name, and no gigabytes out of nothing."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unfolded = sum(member.file_size for member in members)
        if unfolded > MOST_UNFOLDED + 16 * size:
            raise ValueError(f"{size / 2**20:.1f} MiB that unfold to {unfolded / 2**20:.0f}")
        arrays: dict[str, Any] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"it has {name!r} twice")
            if name == member.filename:
                raise ValueError(f"{name!r} in it is no array")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # unfold unbounded
                raise ValueError(f"{name!r} in it is compressed as numpy never does")
            with archive.open(member) as stream:
                arrays[name] = _read_array(stream)
        return arrays


def _read_array(file: IO[bytes]) -> Any:
    found = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("more follows its first array")
    return found


def _name_inputs(found: Any, source: str) -> tuple[Any, Joined]:
    """Return the inputs among arrays, and their labels."""
    if not isinstance(found, Mapping):
        return found, Joined([])
    chosen = choose_arrays(list(found))
    if len(chosen) < len(found):
        warn(
            f"{source}: {', '.join(chosen.values())} are read, since the other arrays are of other parts of "
            f"the data"
        )
        found = {name: found[own] for name, own in chosen.items()}
    taken = _take_labels(found, source)
    inputs = as_tensors(taken.rest)
    if len(inputs) == 1:
        return found[next(iter(inputs))], _number(taken)  # an array: 8-bit pixels are seen as such
    unnamed = list(inputs) == [f"arr_{i}" for i in range(len(inputs))]
    return tuple(inputs.values()) if unnamed else inputs, _number(taken)


def _take_labels(found: Mapping[str, Any], source: str) -> Taken:
    """Take the labels out of named arrays; say which aren't, and leave out what can be no input either.

    That is text; and beside pixels of 8 bits, which no network is called with, what is called labels and
    isn't, or isn't those that are taken. Beside numbers these may be inputs: the network decides.
    """
    taken = take_labels(found)
    inputs = {name: value for name, value in found.items() if name not in LABEL_KEYS}
    pictured = any(_is_pixels(value) for value in inputs.values())
    rest = {}
    for name, value in taken.rest.items():
        one = take_labels({**inputs, name: value} if name in LABEL_KEYS else {})
        refused = bool(one.reason) and (pictured or not taken.labels)
        double = bool(one.labels and taken.labels) and pictured
        if refused:
            refuse_labels(source, one.where, one.reason)
        elif double:
            warn(f"{source}: {name!r} is left out, since the labels are those of {taken.where}")
        elif _is_text(value):
            warn(f"{source}: {name!r} is left out, since it is text, which is no input of a network")
        if not (double or (refused and pictured) or _is_text(value)):
            rest[name] = value
    return taken._replace(rest=rest)


def _number(taken: Taken) -> Joined:
    joined = number_names(taken.labels)
    return Joined([]) if isinstance(joined, str) else joined


def _is_pixels(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 2


def _is_text(value: Any) -> bool:
    if not isinstance(value, np.ndarray):
        return False
    objects = value.dtype.kind == "O" and value.size > 0
    return value.dtype.kind in "US" or (objects and all(isinstance(one, str) for one in value.flat))


def _call(asked: str) -> Any:
    with opened(asked) as found:
        made = found
        if callable(found) and not hasattr(found, "__len__"):
            if needed := find_needed(found):
                raise SpectralError(
                    f"{asked} needs arguments ({', '.join(needed)}), but is called without; give them "
                    f"defaults, or name a function that needs none"
                )
            with explaining(asked, "the function"):
                made = found()
    if made is None:
        raise SpectralError(f"{asked} gave None; expected tensors, arrays, images or a dataset")
    return made
