"""The config.json that timm writes beside weights: which network it is, and how its images are normalised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral.errors import SpectralError

NAME = "config.json"
STEMS = ("model", "pytorch_model")  # of the files that timm writes beside it
# Arguments of timm's own that a file may set, and that alter what the network computes.
ARGUMENTS = ("num_classes", "in_chans", "global_pool", "img_size")
_WITHOUT_EFFECT = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pretrained")


def find_config(path: Path) -> Path:
    """Return where timm's configuration of a weights file lies, there or not."""
    return path.with_name(NAME)


def read_config(path: Path) -> dict[str, Any]:
    """Return what timm's config.json beside a weights file tells, in this project's own words for it.

    That is ``architecture``, ``num_classes``, ``classes``, ``mean``, ``std`` and ``size`` as in the JSON of
    the same stem, and ``arguments`` of timm's; nothing where there is none, or one of another library.

    Args:
        path: of the weights.

    Raises:
        SpectralError: if it can't be read, or wants a network that its name alone doesn't tell.
    """
    file = find_config(path)
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SpectralError(f"{file} is no JSON ({error}); copy or download it again") from error
    if not isinstance(config, Mapping) or "model_type" in config:
        return {}
    name, facts = config.get("architecture"), config.get("pretrained_cfg", config)
    if not isinstance(name, str) or not isinstance(facts, Mapping):
        return {}
    arguments = config.get("model_args", {})
    others = sorted(set(arguments) - {*ARGUMENTS, *_WITHOUT_EFFECT}) if isinstance(arguments, Mapping) else []
    if others:
        raise SpectralError(
            f"{file} builds its network with {others[0]}={arguments[others[0]]!r:.60}, which the name "
            f"timm/{name} doesn't tell; build it in a function of your own, as my_net.py:build@{path.name}"
        )
    told = {
        "architecture": f"timm/{name}",
        "num_classes": config.get("num_classes", facts.get("num_classes")),
        "classes": _read_classes(config.get("label_names", facts.get("label_names"))),
        "mean": facts.get("mean"),
        "std": facts.get("std"),
        "size": _read_size(arguments.get("img_size") or facts.get("input_size")),
        "arguments": {key: arguments[key] for key in ARGUMENTS[1:] if arguments.get(key) is not None},
    }
    return {key: value for key, value in told.items() if value is not None}


def _read_classes(names: Any) -> list[str] | None:
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _read_size(size: Any) -> Any:
    """Read a side, (height, width) or (channels, height, width)."""
    return [size, size] if isinstance(size, int) else size[-2:] if isinstance(size, list) else size
