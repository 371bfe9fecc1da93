"""RobustBench's CIFAR-10 models that the aliasing metric's paper measures: facts about them, and their files.

Names, identifiers and normalisations are those of RobustBench's model zoo (Croce et al. 2021, MIT licence),
which isn't imported. There the normalisation is a part of the network; here it is preprocessing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from spectral.models.preact import PreActResNet18
from spectral.models.resnet18 import ResNet18
from spectral.models.wrn import WideResNet

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
LINF, L2 = "Linf", "L2"

_NONE: Normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_HALVES: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR10: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class Published:
    """A model of the zoo.

    Attributes:
        architecture: ours, whose state dict has its names and shapes.
        drive_id: of its file on Google Drive.
        normalisation: each channel's mean and standard deviation.
        threat: the zoo's norm of the attacks that it was trained against.
    """

    architecture: str
    drive_id: str
    normalisation: Normalisation = _NONE
    threat: str = LINF

    @property
    def url(self) -> str:
        """Where its file is fetched from."""
        return f"https://drive.usercontent.google.com/download?id={self.drive_id}&export=download&confirm=t"


MODELS = {
    "Carmon2019Unlabeled": Published("wrn-28-10", "15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"),
    "Wang2020Improving": Published("wrn-28-10", "1T939mU4kXYt5bbvM55aT4fLBvRhyzjiQ"),
    "Hendrycks2019Using": Published("wrn-28-10", "1-DcJsYw2dNEOyF9epks2QS7r9nqBDEsw", _HALVES),
    "Sehwag2020Hydra": Published("wrn-28-10", "1pi8GHwAVkxVH41hEnf0IAJb_7y-Q8a2Y"),
    "Rice2020Overfitting": Published("wrn-34-20", "1vC_Twazji7lBjeMQvAD9uEQxi9Nx2oG-", _CIFAR10),
    # the zoo has two of this name; that for L2 is the PreAct-ResNet-18
    "Rice2020Overfitting-L2": Published(
        "preact-resnet18-he", "1jo-31utiYNBVzLM0NxUEWz0teo3Z0xa7", _CIFAR10, L2
    ),
    "Sehwag2021Proxy_R18": Published("resnet18", "1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu"),
    "Wong2020Fast": Published("preact-resnet18", "1Re--_lf3jCEw9bnQqGkjw3J7v2tSZKrv", _CIFAR10),
    "Standard": Published("wrn-28-10", "1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
}


def find_file(name: str) -> Path:
    """Return where a model's file lies or belongs, in RobustBench's own layout.

    The folder is $SPECTRAL_DATA, or else data/ in the current folder, as for data sets.

    Example:
        >>> find_file("Standard").parts[-4:]
        ('models', 'cifar10', 'Linf', 'Standard.pt')
    """
    root = Path(os.environ.get("SPECTRAL_DATA", "data")).expanduser()
    threat = MODELS[name].threat
    return root / "models" / "cifar10" / threat / f"{name.removesuffix(f'-{threat}')}.pt"


def separate_state(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Normalisation | None]:
    """Take out of a checkpoint of the zoo what isn't the network: normalisation, and a stage that never runs.

    Three of its WRN-28-10 hold a ``sub_block1``, weights that no forward pass uses. Checkpoints for other
    networks than these stay as they are.

    Args:
        model: what the weights are for.
        state: names and tensors.

    Returns:
        The network's own tensors, and mean and standard deviation per channel where the file has them.

    Example:
        >>> import torch
        >>> content = {"mu": torch.zeros(1, 3, 1, 1), "sigma": torch.ones(1, 3, 1, 1)}
        >>> content["fc.bias"] = torch.zeros(2)
        >>> rest, normalisation = separate_state(WideResNet(10, 1, 2), content)
        >>> list(rest), normalisation
        (['fc.bias'], ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    """
    own = dict(state)
    if not isinstance(model, (WideResNet, PreActResNet18, ResNet18)):
        return own, None
    if isinstance(model, WideResNet):
        own = {name: tensor for name, tensor in own.items() if not name.startswith("sub_block1.")}
    for names in (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std")):
        if all(name in own and own[name].numel() == 3 for name in names) and own[names[1]].min() > 0:
            mean, std = (tuple(own.pop(name).double().flatten().tolist()) for name in names)
            return own, (mean, std)
    return own, None
