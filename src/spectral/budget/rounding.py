"""What rounding alone can give of an instability: nothing below it has shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral.budget.shapley import Values
from spectral.metrics.instability import compute_logit_spread

STEPS = 4  # units in the last place, of the largest logit; 0.5 is what networks of 8 to 20 layers reach


def bound_rounding(
    scores: Tensor, probabilities: Tensor, dtypes: Sequence[torch.dtype], are_probabilities: bool = False
) -> Values:
    """Bound the instability that rounding alone gives an equivariant network: (metrics, images).

    Logits of a size m have errors δ of some ε·m, with ε that of the coarsest type. In the jitter they are
    ‖δ‖² / Var; in SIS, of unit vectors q along the probabilities, ½‖(1 − qqᵀ) diag(q) δ‖². Both are relative
    to the logits: their scale changes nothing but what it changes of the instability itself.

    Args:
        scores: logits of the images, (B, K), or features where there are none.
        probabilities: of the images, in float64; NaN without class scores.
        dtypes: in which the network computes.
        are_probabilities: whether the scores are the probabilities themselves: they have errors relative to
            themselves, not to their logarithms.

    Example:
        >>> z = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> bool(bound_rounding(z, z.double().softmax(-1), [z.dtype]).max() < 1e-9)
        True
    """
    unit = STEPS * max(torch.finfo(dtype).eps for dtype in (scores.dtype, *dtypes))
    z = scores.double()
    size = z.abs().amax(-1)
    jitter = z.shape[-1] * (unit * size / compute_logit_spread(scores).sqrt()).square()
    q = torch.nn.functional.normalize(probabilities, dim=-1).square()
    errors = unit * (torch.ones_like(size) if are_probabilities else size)
    sis = errors.square() * (q * (1 - q)).sum(-1) / 2 + (STEPS * torch.finfo(torch.float64).eps) ** 2
    return torch.stack([sis, jitter]).numpy()
