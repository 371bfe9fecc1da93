"""The list of networks that a sweep is of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spectral.arguments.values import as_path
from spectral.errors import SpectralError
from spectral.files.atomic import name_folder


def read_models(path: str | Path) -> dict[str, int]:
    """Read a file with one network per line, as `spectral.load_model` takes them; ``#`` begins a comment.

    Returns:
        The line of each.

    Raises:
        SpectralError: naming the file and the line that isn't one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "models.txt")
        ...     _ = file.write_text("# ours\\nbundled/resnet20\\n\\nbundled/resnet20+flc  # converted\\n")
        ...     read_models(file)
        {'bundled/resnet20': 2, 'bundled/resnet20+flc': 4}
    """
    file = as_path(path, "read_models: path")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it isn't text in UTF-8"
        raise SpectralError(f"{file} can't be read as a list of models ({why}); give one per line") from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not name:
            continue
        if not name.isprintable() or re.search(r"\s{2,}|\t", name):
            raise SpectralError(f"{file}, line {number}: {name!r} is no model; give one per line")
        if name in found:
            raise SpectralError(f"{file}, line {number}: {name} stands in line {found[name]} already")
        found[name] = number
    if not found:
        raise SpectralError(f"{file} names no models; give one per line, such as bundled/resnet20")
    return found


def name_folders(models: Sequence[str]) -> dict[str, str]:
    """Return the name of each network's folder.

    Raises:
        SpectralError: if two would have the same.

    Example:
        >>> name_folders(["timm/resnet18", "my_net.py:build"])
        {'timm/resnet18': 'timm-resnet18', 'my_net.py:build': 'my_net.py-build'}
    """
    folders: dict[str, str] = {}
    for model in models:
        name = name_folder(model)
        twin = next((one for one, other in folders.items() if other.lower() == name.lower()), None)
        if twin is not None:
            raise SpectralError(f"sweep: {twin} and {model} would share the folder {name}; rename a file")
        folders[model] = name
    return folders
