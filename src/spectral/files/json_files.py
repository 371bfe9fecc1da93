"""JSON files that are whole or not there, and know when they are damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral.errors import StorageError
from spectral.files.atomic import SEAL, is_intact, seal, write_whole


def write_json(content: Mapping[str, Any], path: Path, *, sealed: bool = False) -> None:
    """Write JSON, whole or not at all.

    Args:
        content: what JSON can hold.
        path: where to.
        sealed: with a digest of all of it, which `read_json` checks.

    Raises:
        SpectralError: if it can't be written.
    """
    whole = {**content, "seal": SEAL} if sealed else content
    text = f"{json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False)}\n"
    data = text.encode("utf-8", "backslashreplace")  # in JSON too, a half of a pair is written so
    write_whole(path, seal(data) if sealed else data)


def read_json(
    path: Path, *, sealed: bool = False, way_out: str = "delete its folder and measure again"
) -> dict[str, Any]:
    """Read JSON.

    Args:
        path: of the file.
        sealed: whether it must have been written with its digest; one that is there must fit anyway.
        way_out: what to do where it is damaged, for the message.

    Raises:
        SpectralError: if the file is damaged.
    """
    try:
        data = path.read_bytes()
        content = json.loads(data.decode())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
        if sealed and "seal" not in content:
            raise ValueError("it was altered, or an earlier version wrote it, without a digest")
        if "seal" in content and not is_intact(data):
            raise ValueError("it isn't what was written")
    except (OSError, ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else _say(error)
        raise StorageError(f"{path} can't be read ({why}); {way_out}") from error
    content.pop("seal", None)
    return content


def _say(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
