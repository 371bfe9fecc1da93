"""Files of a data set by the part of it that their names tell: for training, for validation, for a test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from spectral.errors import warn
from spectral.files.atomic import printable

# Names of parts of a data set; the first that a folder has is read.
_SPLITS = {
    name: number
    for number, names in enumerate((("test",), ("validation", "valid", "val", "dev"), ("train", "training")))
    for name in names
}
_TRAINING = _SPLITS["train"]


def choose_arrays(names: Sequence[str]) -> dict[str, str]:
    """Choose the arrays of one part of a data set, where all of a file's say by name which part is theirs.

    Args:
        names: of the arrays, as ``x_train`` or ``test_images``.

    Returns:
        Name without its part → name; all as they are where some are of no part, or all of one.

    Example:
        >>> choose_arrays(["x_train", "y_train", "x_test", "y_test"])
        {'x': 'x_test', 'y': 'y_test'}
        >>> choose_arrays(["images", "labels"])
        {'images': 'images', 'labels': 'labels'}
    """
    words = {name: re.split(r"[-_.]", name.lower()) for name in names}
    parts = {
        name: next((_SPLITS[word] for word in own if word in _SPLITS), None) for name, own in words.items()
    }
    known = [part for part in parts.values() if part is not None]
    if len(known) < len(names) or len(set(known)) < 2:
        return {name: name for name in names}
    chosen = [name for name in names if parts[name] == min(known)]
    return {"_".join(word for word in words[name] if word not in _SPLITS) or name: name for name in chosen}


def find_part(folder: Path, usable: Callable[[Path], bool]) -> Path | None:
    """Return the part of a data set that is read of a folder which has it in subfolders; None if it has none.

    That is the test images, else those for validation, beside those for training.

    Args:
        folder: of the data set.
        usable: whether a part is one that can be taken alone, as one in which images have classes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     for part in ("train", "val"):
        ...         Path(name, part).mkdir()
        ...     find_part(Path(name), Path.exists).name
        'val'
    """
    inside = map(folder.joinpath, os.listdir(folder)) if os.access(folder, os.R_OK | os.X_OK) else ()
    parts = {path: _SPLITS[path.name.lower()] for path in inside if _is_part(path)}
    trained = [path for path in parts if parts[path] == _TRAINING]
    others = sorted((path for path in parts if path not in trained), key=lambda path: (parts[path], path))
    return next((path for path in others if usable(path)), None) if trained else None


def are_parts(names: Iterable[str]) -> bool:
    """Whether folders are the parts of a data set for training and for something else, and nothing besides.

    Example:
        >>> are_parts(["train", "Test"]), are_parts(["train", "test", "bus"]), are_parts(["train"])
        (True, False, False)
    """
    parts = {_SPLITS.get(name.lower()) for name in names}
    return None not in parts and _TRAINING in parts and len(parts) > 1


def choose_members(names: Sequence[str]) -> tuple[set[str], str]:
    """Choose the files of one part of a data set, where the folder that each is in says which part is its.

    Args:
        names: of the files, with "/".

    Returns:
        Those that are read, and the folder's name; all and no name where not every one is in such a folder.

    Example:
        >>> choose_members(["data/train/a.png", "data/test/b.png"])
        ({'data/test/b.png'}, 'test')
    """
    folders = {name: next((x for x in name.split("/")[:-1] if x.lower() in _SPLITS), "") for name in names}
    if "" in folders.values() or not are_parts(folders.values()):
        return set(names), ""
    first = min(set(folders.values()), key=lambda x: (_SPLITS[x.lower()], x))
    return {name for name in names if folders[name] == first}, first


def _is_part(path: Path) -> bool:
    return path.name.lower() in _SPLITS and path.is_dir()


def choose_split(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Choose the files of one part of a data set, where all of a folder's say by name which part is theirs.

    That is the test images, else those for validation; of image folders test/ is read likewise.

    Args:
        folder: where they are.
        paths: the files, by names as they have on the Hub and among WebDataset's users:
            ``train-00000-of-00001.parquet``, ``val/000.tar``, ``imagenet-train-0007.tar``.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True):
        ...     chosen = choose_split(Path(), [Path("train-0.tar"), Path("val-0.tar"), Path("val-1.tar")])
        >>> [path.name for path in chosen]
        ['val-0.tar', 'val-1.tar']
    """
    words = [re.split(r"[-_./]", path.relative_to(folder).as_posix().lower()) for path in paths]
    splits = [next((_SPLITS[word] for word in own if word in _SPLITS), None) for own in words]
    parts = sorted({split for split in splits if split is not None})
    if None in splits or len(parts) < 2:
        return list(paths)
    chosen = [path for path, split in zip(paths, splits, strict=True) if split == parts[0]]
    warn(
        f"{printable(folder.name)}: {len(chosen)} of {len(paths)} files are read, as {chosen[0].name}, since "
        f"the others are other parts of the data; name files to read these"
    )
    return chosen
