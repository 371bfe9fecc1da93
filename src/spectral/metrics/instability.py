"""How far what a network says moves when its input does: SIS, logit jitter and the comb contrast.

Pure functions of predictions, and `compute_sis`, which runs the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral.arguments.values import are_integers
from spectral.errors import SpectralError
from spectral.network import (
    SPATIAL,
    Call,
    Kinds,
    guess_layout,
    list_calls,
    list_moves,
    make_inputs,
    read_scores,
    require_clear,
    roll_inputs,
    undisturbed,
)
from spectral.network.inputs import Inputs
from spectral.numerics.scaling import find_scale


def compute_sis(
    model: Callable[..., Any],
    images: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    axes: Sequence[int] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """Shift Instability Score: how far the predicted distribution moves under one-pixel circular shifts.

    SIS(x) = mean over d of 1 − cos(p(x), p(roll(x, d))) with p = softmax(logits); d is one sample one way or
    the other along each spatial axis: up, down, left and right for images, 1/2 and 1/6 of the sum for signals
    and videos. The model runs once more than there are shifts, in evaluation mode, without gradients; its
    modules' training flags are restored.

    Args:
        model: maps images to logits (B, K); ``.logits``, ``["logits"]``, ``["out"]`` and the first of a
            tuple are understood. Rows that are distributions already, behind a softmax, are taken as p.
        images: a batch, preprocessed as the model expects; a tuple for several inputs, a dictionary for named
            ones. What lies on the image's lattice, such as its mask, is shifted with it.
        axes: which axes of a tensor are spatial, where its shape doesn't tell.
        logits: a function from the model's output to the logits, where they are elsewhere.

    Shape:
        (B, C, H, W), (B, H, W, C) with 1, 3 or 4 channels, (B, C, T, H, W), (B, C, T) or (B, T) → (B,),
        float64. (C, H, W) is one image for a model whose first convolution is one over images.

    Units:
        None; 0 for a shift-invariant model, at most 1.

    Raises:
        SpectralError: for no images, a shape that could be several things, or a model whose output has no
            (B, K ≥ 2) logits.

    Source:
        The spectral-aliasing study.

    Example:
        >>> invariant = lambda x: x.mean((2, 3))
        >>> compute_sis(invariant, torch.rand(2, 3, 8, 8)).max().item() < 1e-12
        True
    """
    if isinstance(images, Tensor):
        if axes is None:
            require_clear(images, model, "compute_sis", ", axes=(-1,) for signals")
        calls = list_calls(model, images) if axes is None else [Call(make_inputs)]
    elif isinstance(images, Sequence | Mapping) and not isinstance(images, str):
        calls = list_calls(model, images)
    else:
        raise SpectralError(
            f"compute_sis: expected images of shape (B, C, H, W), got {type(images).__name__}; pass a "
            f"tensor, a tuple of several inputs, or a dictionary of named ones"
        )
    with undisturbed(model), torch.no_grad():
        inputs, output = _call_first(model, images, calls)
        layout = guess_layout(inputs) if axes is None else [_name_axes(inputs.image, axes)]
        reference = read_scores(output, inputs.count, logits).probabilities()
        shifted = []
        for move in list_moves(inputs, layout):
            moved = roll_inputs(inputs, move, layout)
            scores = read_scores(model(*moved.args, **moved.kwargs), inputs.count, logits)
            shifted.append(scores.probabilities())
    if not shifted:
        raise SpectralError(
            f"compute_sis: inputs of shape {tuple(inputs.image.shape)} have no known spatial axis; pass axes="
        )
    return compute_instability(reference, shifted)


def _call_first(model: Callable[..., Any], images: Any, calls: Sequence[Call]) -> tuple[Inputs, Any]:
    """Call a model in the first of several ways that it takes.

    Raises:
        SpectralError: if it takes none.
    """
    failure: Exception | None = None
    for call in calls:
        inputs = call.build(images)
        # A copy, since a model that works in place would hand altered images to the shifts.
        copy = inputs.map(lambda x, batched: x.clone())
        try:
            return inputs, model(*copy.args, **copy.kwargs)
        except Exception as error:  # a model may raise anything
            failure = failure or error
    assert failure is not None
    if isinstance(failure, SpectralError):
        raise failure
    why = next(iter(str(failure).splitlines()), "")[:200]
    raise SpectralError(
        f"compute_sis: {getattr(model, '__name__', type(model).__name__)} fails on these images "
        f"({type(failure).__name__}: {why}); pass images that it takes"
    ) from failure


def _name_axes(x: Tensor, axes: Sequence[int]) -> Kinds:
    """Call the axes given t, h and w, so that the last is w."""
    known = are_integers(axes) and all(-x.ndim <= axis < x.ndim for axis in axes)
    chosen = sorted({int(axis) % x.ndim for axis in axes}) if known else []
    if not 1 <= len(chosen) <= len(SPATIAL):
        raise SpectralError(
            f"compute_sis: axes must be one to {len(SPATIAL)} axes of a tensor of shape {tuple(x.shape)}, "
            f"got {tuple(axes)}"
        )
    names = dict(zip(chosen, SPATIAL[-len(chosen) :], strict=True))
    return tuple(names.get(axis, "?") for axis in range(x.ndim))


def compute_instability(reference: Tensor, shifted: list[Tensor]) -> Tensor:
    """Mean cosine distance (B,) between distributions (B, K) and those of the shifted images.

    1 − cos is taken as ½‖p̂ − q̂‖² of unit vectors: equal distributions give 0, not rounding noise.

    Raises:
        SpectralError: if there are none, or shapes differ.

    Example:
        >>> p = torch.tensor([[1.0, 0.0]])
        >>> compute_instability(p, [p, torch.tensor([[0.0, 1.0]])])
        tensor([0.5000], dtype=torch.float64)
    """
    shapes = [tuple(p.shape) for p in (reference, *shifted)]
    if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise SpectralError(
            f"compute_instability: expected distributions (B, K), one and at least one shifted, all of one "
            f"shape, got {', '.join(map(str, shapes[:3]))}"
        )
    unit = _normalize(reference)
    return torch.stack([(unit - _normalize(p)).square().sum(-1) / 2 for p in shifted]).mean(0)


def _normalize(p: Tensor) -> Tensor:
    """Divide each row by its norm, of whatever size that is."""
    rows = p.double()
    return torch.nn.functional.normalize(rows / find_scale(rows, (-1,)), dim=-1)


def compute_logit_jitter(
    reference: Tensor, shifted: Sequence[Tensor], spread: Tensor | float | None = None
) -> Tensor:
    """Logit jitter (B,): how far logits move under one-pixel shifts, over how far apart images lie.

    J(x) = mean over d of ‖z(x_d) − z(x)‖² / Var, Var = mean over images of ‖z(x) − z̄‖² of the same network.
    Unlike SIS it has no softmax in it: neither the logits' scale nor how near an image lies to a decision
    boundary changes it.

    Args:
        reference: logits of the images.
        shifted: logits of their shifted versions, one (B, K) for each shift.
        spread: Var, from `compute_logit_spread` of all images where these are only some; by default theirs.

    Shape:
        (B, K) and any number of (B, K) → (B,), float64; NaN where the spread is 0.

    Units:
        None; ≥ 0, and 2 where a shifted image's logits are those of any other image.

    Raises:
        SpectralError: if there is no shift, shapes differ, or the spread isn't one number.

    Source:
        METRICS: instability budget.

    Example:
        >>> z = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> compute_logit_jitter(z, [z, z + torch.tensor([1.0, 1.0])])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if not shifted:
        raise SpectralError(
            "compute_logit_jitter: there are no shifted logits; pass those of one shift or more"
        )
    whole = (
        compute_logit_spread(reference) if spread is None else torch.as_tensor(spread, dtype=torch.float64)
    )
    shapes = [tuple(z.shape) for z in (reference, *shifted)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or whole.numel() != 1:
        raise SpectralError(
            f"compute_logit_jitter: expected logits (B, K), all of one shape, and one spread, got "
            f"{', '.join(map(str, shapes[:3]))} and a spread of shape {tuple(whole.shape)}"
        )
    whole = whole.reshape(())
    z = reference.double()
    scale = torch.sqrt(torch.where(whole > 0, whole, torch.nan)).to(z)
    return torch.stack([((other.double() - z) / scale).square().sum(-1) for other in shifted]).mean(0)


def compute_logit_spread(logits: Tensor) -> Tensor:
    """Mean over images of ‖z(x) − z̄‖², in float64: what `compute_logit_jitter` is relative to.

    Exactly 0 where the images' logits are the same up to rounding.

    Shape:
        (B, K) → ().

    Raises:
        SpectralError: for another shape, values that are no real numbers, or some whose squares float64 can't
            hold.

    Example:
        >>> compute_logit_spread(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor(2., dtype=torch.float64)
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise SpectralError(
            f"compute_logit_spread: expected logits (B, K) of a floating type, got shape "
            f"{tuple(logits.shape)} of {str(logits.dtype).removeprefix('torch.')}"
        )
    z = logits.double()
    scale = find_scale(z, (0, 1)).reshape(())
    z = z / scale
    found = (z - z.mean(0)).square().sum(-1).mean()
    rounding: float = (8 * torch.finfo(logits.dtype).eps) ** 2
    found = torch.where(found <= rounding * z.square().sum(-1).mean(), torch.zeros_like(found), found)
    whole: Tensor = found * scale * scale
    if bool(torch.isfinite(found) & ~torch.isfinite(whole) | (whole == 0) & (found > 0)):
        raise SpectralError(
            f"compute_logit_spread: logits of a size of {float(scale):.0e} can't be squared in float64; "
            f"scale them"
        )
    return whole
