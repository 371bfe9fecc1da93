"""Networks of transformers, by their name on the Hugging Face hub or from a folder; an optional package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from spectral.errors import SpectralError
from spectral.models.fetching import fetch_from_hub, fetching
from spectral.models.info import ModelInfo, Preprocessing
from spectral.models.preprocessing import find_preparation
from spectral.models.sources.base import Loaded, Source

CONFIG = "config.json"
SIZE = (224, 224)  # where neither the configuration nor the image processor names one
_FALLBACK = "AutoModelForImageClassification"  # where a configuration doesn't say which class it is for


def is_folder(asked: str) -> bool:
    """Say whether a path is a folder that transformers wrote.

    Example:
        >>> is_folder("no/such/folder")
        False
    """
    return (Path(asked).expanduser() / CONFIG).is_file()


def open_transformers(name: str, pretrained: bool, classes: int | None = None) -> Loaded:
    """Open a network of the hub (ORG/NAME), or of a folder; no code of the repository runs.

    Raises:
        SpectralError: if transformers isn't installed, the hub has no such network or can't be reached, or
            the file lacks some of the network's weights.
    """
    if is_folder(name):
        _require_own(Path(name).expanduser())
    transformers = _import()
    folder = Path(name).expanduser()
    where = str(folder) if is_folder(name) else name
    shown = where if is_folder(name) else f"hf/{name}"
    with fetching(shown):
        if not is_folder(name):
            fetch_from_hub(name, CONFIG)  # says soon whether the hub answers
        head = {} if classes is None else {"num_labels": classes}
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **head)
        kind = getattr(transformers, next(iter(config.architectures or ()), _FALLBACK), None)
        kind = kind or getattr(transformers, _FALLBACK)
        if pretrained:
            model, loading = kind.from_pretrained(where, config=config, output_loading_info=True)
        else:
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
            model.config._name_or_path = where  # tells where its image processor's file is
    if pretrained:
        _require_complete(loading, shown)
    labels: Any = getattr(config, "id2label", None) or {}
    names = tuple(str(labels[i]) for i in sorted(labels))
    known = names if names and not names[0].startswith("LABEL_") else None
    count = len(names) if "Classification" in type(model).__name__ else None
    size = find_preparation(model).size or SIZE
    metadata = {"transformers": type(model).__name__} | ({} if is_folder(name) else {"hf_hub_id": name})
    return model, ModelInfo(name, None, "", Preprocessing(size, (), ()), count, known if count else None,
                            metadata)  # fmt: skip


def _require_own(folder: Path) -> None:
    """Refuse a folder whose configuration isn't of transformers, such as timm's, which looks alike."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise SpectralError(f"{folder / CONFIG} is no JSON ({error}); copy or download it again") from error
    if isinstance(config, dict) and "model_type" in config:
        return
    timm = isinstance(config, dict) and config.get("architecture")
    advice = f"architecture='timm/{timm}', as it says," if timm else "architecture="
    raise SpectralError(
        f"{folder}: its {CONFIG} names no model_type, so it isn't a folder of transformers; pass the weights "
        f"file in it with {advice} instead"
    )


def _require_complete(loading: Any, shown: str) -> None:
    """Refuse what transformers would fill with random numbers."""
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has other shapes of")):
        absent = sorted(map(str, loading.get(key) or ()))
        if absent:
            raise SpectralError(
                f"{shown}: the file {what} {len(absent)} of the network's weights, such as {absent[0]}; they "
                f"would be random numbers: give complete weights"
            )


def _import() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise SpectralError(
            "hf/… and transformers' folders need the optional package transformers; install it with: "
            "pip install 'spectral-aliasing[transformers]'"
        ) from error


TRANSFORMERS = Source(list, open_transformers)
