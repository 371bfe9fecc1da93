"""Adversarial images to train on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral.training.images import Normalisation
from spectral.training.recipe import Recipe


def attack_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    dtype: torch.dtype | None = None,
    normalise: Normalisation = Normalisation(),
    *,
    noise: Tensor | None = None,
) -> Tensor:
    """Move a normalised batch within ±ε, so that the network's loss rises: FGSM or PGD from a random start.

    The start is drawn by torch, or is where ``noise`` in [0, 1] puts it. The network stays in training mode,
    as in Wong et al.; measuring is done with libraries' attacks instead.

    Shape:
        (B, C, H, W) → (B, C, H, W), normalised; every pixel stays within ε of its own, and in [0, 1].

    Source:
        E. Wong et al., Fast is better than free, ICLR 2020 (fgsm); A. Madry et al., Towards Deep Learning
        Models Resistant to Adversarial Attacks, ICLR 2018 (pgd).

    Example:
        >>> net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), torch.zeros(2, 3, 2, 2)
        >>> moved = attack_batch(net, x, torch.tensor([0, 1]), Recipe(attack="fgsm", epsilon=0.1))
        >>> bool((moved != x).any()), bool((moved - x).abs().max() <= 0.2 + 1e-6)
        (True, True)
    """
    default = 1.25 * recipe.epsilon if recipe.attack == "fgsm" else recipe.epsilon / 4
    size, step = (
        normalise.scale(images, pixels) for pixels in (recipe.epsilon, recipe.attack_step or default)
    )
    black, white = (normalise(torch.full_like(images[:1], pixel)) for pixel in (0.0, 1.0))
    low, high = torch.maximum(images - size, black), torch.minimum(images + size, white)
    moved = torch.lerp(low, high, torch.rand_like(images) if noise is None else noise)
    for _ in range(1 if recipe.attack == "fgsm" else recipe.attack_steps):
        moved.requires_grad_(True)
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(moved), labels, reduction="sum")  # its sign alone matters
        (slope,) = torch.autograd.grad(loss, moved)
        moved = torch.clamp(moved.detach() + step * slope.sign(), low, high)
    return moved
