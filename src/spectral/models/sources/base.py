"""What a source of networks is: a prefix of names, and how one of them is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from spectral.errors import SpectralError, suggest
from spectral.models import robustbench
from spectral.models.checkpoint import load_into, strip_wrappers
from spectral.models.info import ModelInfo

Loaded = tuple[nn.Module, ModelInfo]


State = Mapping[str, Tensor]


def keep_names(state: State, model: nn.Module, where: str) -> State:
    """Take published files to have the network's own names."""
    return state


@dataclass(frozen=True)
class Source:
    """A prefix: what it offers, how to open one of them, and how its published files name their tensors.

    Attributes:
        names: of what it offers.
        open: (name, whether with its weights, number of classes or None for its own) → the network; only
            without weights it is asked for another number of classes.
        rename: (state as a published file has it, without wrappers, network, where it comes from) → the same
            under the network's names; one that has these already stays as it is.
    """

    names: Callable[[], list[str]]
    open: Callable[[str, bool, int | None], Loaded]
    rename: Callable[[State, nn.Module, str], State] = keep_names

    def fill(self, loaded: Loaded, state: State, where: str) -> Loaded:
        """Load weights as their authors published them, or as this package writes them.

        They may be inside wrappers, with the normalisation beside them.

        Raises:
            SpectralError: if names or shapes differ from the network's.
        """
        model, info = loaded
        state = self.rename(strip_wrappers(state, model), model, where)
        state, normalisation = robustbench.separate_state(model, state)
        load_into(model, strip_wrappers(state, model), where)
        mean, std = normalisation or (info.preprocessing.mean, info.preprocessing.std)
        return model, replace(info, preprocessing=replace(info.preprocessing, mean=mean, std=std))


def require_name(source: str, name: str, known: Sequence[str]) -> None:
    """Check that a source has a name.

    Raises:
        SpectralError: naming the nearest ones.
    """
    if name not in known:
        near = suggest(name, known)
        listed = f"available: {', '.join(known)}" if len(known) <= 20 else "`spectral list models` names all"
        raise SpectralError(
            f"unknown model '{source}/{name}': {source} has no {name!r}{near or f'; {listed}'}"
        )


def name_classes(info: ModelInfo, classes: int | None) -> ModelInfo:
    """Return what is known of a network whose head is for another number of classes: not what they are.

    Example:
        >>> from spectral.models.info import CIFAR
        >>> pets = ModelInfo("net", None, "", CIFAR, 2, ("cat", "dog"))
        >>> name_classes(pets, 3).classes is None, name_classes(pets, 2).classes
        (True, ('cat', 'dog'))
    """
    if classes is None or classes == info.num_classes:
        return info
    return replace(info, num_classes=classes, classes=None)
