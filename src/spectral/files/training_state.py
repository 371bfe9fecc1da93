"""The state of a training, written so that the same call goes on after an interruption."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from spectral.errors import SpectralError
from spectral.files.atomic import append_seal, split_seal, write_whole
from spectral.files.sameness import pick_differing


def store_state(
    path: Path, run: Mapping[str, Any], parts: Mapping[str, Any], done: int, history: list[dict[str, float]]
) -> None:
    """Write the state, whole or not at all, with its digest: a kill leaves the one before intact.

    Args:
        path: the file.
        run: what tells this training from others.
        parts: what has a ``state_dict``: network, optimiser, schedule.
        done: epochs or steps that are behind it.
        history: what was learnt on the way.
    """
    content = io.BytesIO()
    state = {"run": dict(run), "epoch": done, "history": history}
    torch.save({**state, **{name: part.state_dict() for name, part in parts.items()}}, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, append_seal(content.getvalue()))


def restore_state(
    path: Path, run: Mapping[str, Any], parts: Mapping[str, Any], device: torch.device, caller: str
) -> tuple[int, list[dict[str, float]]]:
    """Put every part where `store_state` left it, if it did; returns what is done, and the history.

    Raises:
        SpectralError: if the file is damaged or of another run.
    """
    if not os.path.lexists(path):
        return 0, []
    try:
        content, why = split_seal(path.read_bytes()), ""
    except OSError as error:
        content, why = None, f" ({error.strerror})"
    if content is None:
        raise SpectralError(f"{caller}: {path} is damaged{why}; delete it and start again")
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    before = state["run"]
    for key in {**before, **run}:  # what only one of them has tells them apart too
        was, now = before.get(key), run.get(key)
        if was != now:
            was, now = pick_differing(was, now)
            raise SpectralError(
                f"{caller}: {path.parent} holds a run with {key} = {was}, not {now}; choose another folder "
                f"or delete it"
            )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["epoch"], state["history"]


def remove_state(path: Path) -> None:
    """Remove the state of a finished training, and its folders where nothing else is in them."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody's files, or another training that is going on
        path.parent.rmdir()
        path.parent.parent.rmdir()
