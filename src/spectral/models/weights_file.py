"""A weights file and the JSON beside it: its network, and what they say of its images and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spectral.arguments.factories import split_factory
from spectral.arguments.values import MOST_SAMPLES
from spectral.errors import SpectralError
from spectral.models.architectures import ARCHITECTURES
from spectral.models.checkpoint import is_index, list_parts, load_state, read_metadata
from spectral.models.info import ModelInfo, Preprocessing
from spectral.models.sources import LIBRARY_STEMS, UNKNOWN, find_config, read_config
from spectral.models.weights_id import hash_state

_LARGEST = 1e38  # of a mean, and of the inverse of a standard deviation: float32 holds no more


@dataclass(frozen=True)
class WeightsFile:
    """Weights as they were read, and what the JSON beside them says.

    Attributes:
        path: of the file.
        architecture: the network that they are for, as `load_model` names it.
        state: its tensors by name.
        arguments: what timm builds the network with, where its config.json says so.
        metadata: what else the JSON says.
    """

    path: Path
    architecture: str
    state: dict[str, Tensor]
    arguments: Any
    metadata: Mapping[str, Any]

    @property
    def count(self) -> Any:
        """Outputs of the head, where the JSON says how many."""
        return self.metadata.get("num_classes")

    def convert(self, model: nn.Module, example: Any) -> nn.Module:
        """Convert an untrained network as the one was that the weights are of; without conversion, leave it.

        Args:
            model: of the architecture.
            example: what to look for its sites with.

        Raises:
            SpectralError: if what the JSON says of the conversion can't be done.
        """
        if "conversion" not in self.metadata:
            return model
        from spectral.surgery import ConversionReport, convert_alike

        return convert_alike(model, ConversionReport.from_dict(self.metadata["conversion"]), example)

    def describe(self, info: ModelInfo) -> ModelInfo:
        """Put what the JSON says in the place of what the architecture says.

        Args:
            info: of the architecture.

        Raises:
            SpectralError: if family, classes, size, mean or std are none.
        """
        family = self.metadata.get("family", info.family)
        if not isinstance(family, str | None):
            raise SpectralError(
                f"{self.path.with_suffix('.json')}: expected family as a text, got {family!r}"
            )
        return replace(
            info,
            family=family,
            preprocessing=_read_preprocessing(self.metadata, info.preprocessing, self.path),
            classes=_read_classes(self.metadata, info, self.path),
            metadata={**self.metadata, "architecture": self.architecture},
        )

    def list_files(self) -> tuple[Path, ...]:
        """List what a network of the file depends on, there or not."""
        path = self.path
        beside = (find_config(path),) if path.stem in LIBRARY_STEMS else ()
        parts = list_parts(path) if is_index(path) else ()
        return path, path.with_suffix(".json"), *beside, *parts


def read_weights_file(path: Path, architecture: str | None = None) -> WeightsFile:
    """Read weights with what lies beside them.

    Args:
        path: of the file, or of the index of several.
        architecture: the network that they are for; by default what the JSON beside them says.

    Raises:
        SpectralError: if that isn't known, is code that nobody named, or is another than what the JSON says;
            if the weights are damaged or unsafe, or others than those that the JSON describes.

    Example:
        >>> read_weights_file(Path("none.safetensors"))
        Traceback (most recent call last):
        spectral.errors.SpectralError: none.safetensors: there is no such weights file; check the path
    """
    if path.is_dir():
        raise SpectralError(f"{path} is a folder; name a weights file in it")
    metadata = read_metadata(path) or _read_library_config(path, architecture)
    state = load_state(path)
    described = metadata.get("architecture")
    if architecture is None and described is None:
        raise SpectralError(
            f"{path}: weights alone don't say which network they are for; pass architecture=, such as "
            f"{', '.join(ARCHITECTURES)}, or a library's such as 'timm/resnet50'"
        )
    if architecture is None and split_factory(str(described)) is not None:
        raise SpectralError(
            f"{path}: the JSON beside it says it is of {described!r}, which is code and isn't run unless you "
            f"name it: pass architecture={described!r} (--architecture)"
        )
    if None not in (architecture, described) and not _is_same(str(architecture), str(described)):
        raise SpectralError(
            f"{path}: the JSON beside it says {described!r}, but architecture={architecture!r} was asked "
            f"for; leave architecture out or move the JSON away"
        )
    if metadata.get("weights_id") not in (None, hash_state(state)):
        raise SpectralError(
            f"{path}: the JSON beside it describes other weights; restore both from one source"
        )
    arguments = metadata.pop("arguments", None)
    return WeightsFile(path, str(architecture or described), state, arguments, metadata)


def _read_library_config(path: Path, architecture: str | None) -> dict[str, Any]:
    """Read timm's config.json beside weights that timm wrote, where they are for a network of timm's."""
    if path.stem not in LIBRARY_STEMS or not (architecture or "timm/").startswith("timm/"):
        return {}
    return read_config(path)


def _is_same(architecture: str, described: str) -> bool:
    """Say whether two names are of one network: a file's own may be written in several ways."""
    both = split_factory(architecture), split_factory(described)
    if both[0] is not None and both[1] is not None:
        return both[0][1] == both[1][1]
    if architecture.startswith("timm/") and "." not in described:  # without the tag of published weights
        architecture = architecture.partition(".")[0]
    return architecture.removeprefix("bundled/") == described.removeprefix("bundled/")


def _read_classes(metadata: Mapping[str, Any], info: ModelInfo, path: Path) -> tuple[str, ...] | None:
    names = metadata.get("classes")
    if names is None:
        return info.classes
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpectralError(f"{path.with_suffix('.json')}: expected classes as a list of their names")
    # Fewer where it was trained on the first of its outputs.
    if info.num_classes is not None and len(names) > info.num_classes:
        raise SpectralError(
            f"{path.with_suffix('.json')}: names {len(names)} classes of a network that has "
            f"{info.num_classes}"
        )
    return tuple(names)


def _read_preprocessing(metadata: Mapping[str, Any], default: Preprocessing, path: Path) -> Preprocessing:
    try:
        height, width = _read_numbers(metadata, "size", default.size)
        mean, std = (_read_numbers(metadata, key, getattr(default, key)) for key in ("mean", "std"))
        known = "size" in metadata or default.size != UNKNOWN.size
        if (
            not all(abs(value) <= _LARGEST for value in (*mean, *std))
            or len(mean) != len(std)
            or min((*std, 1)) < 1 / _LARGEST
            or (known and not all(n == int(n) and n > 0 for n in (height, width)))
            or (known and height * width > MOST_SAMPLES)
        ):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise SpectralError(
            f"{path.with_suffix('.json')}: expected size as [height, width] and mean and std as one number "
            f"per channel, std above 0, got {[metadata.get(key) for key in ('size', 'mean', 'std')]}"
        ) from error
    return Preprocessing((int(height), int(width)), mean, std)


def _read_numbers(metadata: Mapping[str, Any], key: str, default: Sequence[float]) -> tuple[float, ...]:
    values = metadata.get(key, default)
    if not isinstance(values, (list, tuple)) or any(isinstance(v, (bool, str)) for v in values):
        raise TypeError
    return tuple(float(value) for value in values)
