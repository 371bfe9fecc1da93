"""Gradients that attacks see: kept from being rounded to 0, and missed where they are 0."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from spectral.errors import MaskedGradientError, warn
from spectral.perturb.evaluation import Classifier


class Logits(nn.Module):
    """The network from images in [0, 1] to float32 logits of their own memory, which attacks write into.

    Args:
        classifier: the network.
        whole: bring each image's gradient, where it enters the network, to a largest entry of ½ to 1. That
            alters no sign, and in half precision keeps small gradients from being rounded to 0. For attacks
            that use signs alone.
    """

    def __init__(self, classifier: Classifier, *, whole: bool = False) -> None:
        super().__init__()
        self.classify, self.whole = classifier.logits, whole
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        logits = self.classify(images).to(torch.float32, copy=True)
        if self.whole and logits.requires_grad:
            logits.register_hook(_enlarge)
        return logits


def _enlarge(gradient: Tensor) -> Tensor:
    """Divide each row by a power of 2, so that nothing is rounded; a row of zeros stays one."""
    largest = gradient.abs().amax(1, keepdim=True)
    power = largest / torch.frexp(largest).mantissa
    return gradient / torch.where(power > 0, power, torch.ones_like(power))


def find_masked(logits: nn.Module, images: Tensor, classes: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Tell the images at which a gradient attack stands still: its loss has a gradient of exactly 0.

    Args:
        logits: images in [0, 1] → logits.
        images: attacked images.
        classes: those that they are to leave.
        starts: where else the attack begins, each shaped as the images.

    Shape:
        (B, 3, H, W) → (B,), true where the gradient of the cross-entropy is 0 at the image and at all starts.
    """
    masked = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for start in (images, *starts):
        at = start.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(logits(at), classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, at)
        masked &= (gradient == 0).flatten(1).all(1)
    return masked


def withhold_masked(table: pd.DataFrame) -> pd.DataFrame:
    """Leave open whether images are robust that an attack couldn't attack, and say how many.

    Args:
        table: as `measure_robustness` gives it, and ``masked``, which is taken out.

    Raises:
        MaskedGradientError: if no attack attacked any image.
    """
    masked = table.pop("masked").astype(bool)
    if not masked.any():
        return table
    counts = [
        f"{name} {own.sum()} of {len(own)}"
        for name, own in masked.groupby(table["attack"], sort=False)
        if own.any()
    ]
    why = (
        "the gradient of the loss is exactly 0 there (the network hides its gradients, as a rounding in "
        "front of it or very large logits do)"
    )
    if masked.all():
        raise MaskedGradientError(
            f"measure_robustness: no image could be attacked: {why}; autoattack has a part that needs no "
            f"gradients"
        )
    warn(
        f"measure_robustness: images that couldn't be attacked: {', '.join(counts)}; {why}: 'robust' is "
        f"missing for them; autoattack has a part that needs no gradients"
    )
    known = {name: table[name].astype("boolean").mask(masked, pd.NA) for name in ("robust", "robust_correct")}
    return table.assign(**known)
