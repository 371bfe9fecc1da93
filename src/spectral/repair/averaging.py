"""A weighted mean of networks of one structure: between a network and what it was tuned into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

from spectral.errors import SpectralError
from spectral.models.checkpoint import find_bounds, require_finite
from spectral.tracing.copying import copy_model

CALLER = "average_weights"
STEPS = 100  # of the power method, for singular values


def average_weights(models: Sequence[nn.Module], shares: Sequence[float] | None = None) -> nn.Module:
    """Return a network whose weights are the weighted mean of several networks' weights.

    Networks that were tuned from the same one mostly lie in one basin: on the way from the first to a tuned
    one, what was known is lost later than what is new is won. Statistics of norms are averaged like weights,
    and integers, such as counts of batches, and what isn't a tensor are the first network's. The singular
    vectors that a spectral norm keeps are those of the mean. Which shares are best only images tell: choose
    them on some that aren't scored.

    Args:
        models: networks with the same entries of the same shapes, such as a network and its tuned versions.
        shares: of each, ≥ 0; they are divided by their sum. All alike by default.

    Returns:
        A copy of the first network with the mean weights; the networks stay as they are.

    Raises:
        SpectralError: if there is no network, a share is negative or not finite, all are 0, or the networks'
            entries differ or aren't finite, or they are quantised.

    Source:
        M. Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (two networks), and Model soups,
        ICML 2022 (several).

    Example:
        >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.constant_(a.weight, 1.0), nn.init.constant_(b.weight, 5.0)
        >>> average_weights([a, b], [0.75, 0.25]).weight.item()
        2.0
    """
    if isinstance(models, nn.Module) or not isinstance(models, Iterable):
        raise SpectralError(f"{CALLER}: expected a list of networks, got {type(models).__name__}")
    models = list(models)
    states = [_find_state(model, i) for i, model in enumerate(models)]
    if not states:
        raise SpectralError(f"{CALLER}: expected at least one network, got none")
    parts = _normalise([1.0] * len(states) if shares is None else shares, len(states))
    for i, state in enumerate(states[1:], 1):
        _compare(states[0], state, i)
    mean = copy_model(models[0])
    with torch.no_grad():
        for name, entry in _list_tensors(mean).items():
            if all(torch.equal(state[name].to(entry.device), entry) for state in states[1:]):
                continue  # among them bounds and masks, which may be infinite
            if entry.is_floating_point() or entry.is_complex():
                wide = torch.promote_types(entry.dtype, torch.float64)
                own = [
                    part * state[name].to(entry.device, wide)
                    for part, state in zip(parts, states, strict=True)
                ]
                entry.copy_(sum(own[1:], own[0]))
        _settle_spectral_norms(mean, states[0])
    require_finite(mean.state_dict(), f"{CALLER}: the mean", find_bounds(mean))
    return mean


def _find_state(model: nn.Module, place: int) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        raise SpectralError(f"{CALLER}: expected networks, got {type(model).__name__} at place {place}")
    if any(hasattr(module, "_packed_params") for module in model.modules()):
        raise SpectralError(
            f"{CALLER}: network {place} is quantised: its weights are packed integers; average the float "
            f"networks and quantise the mean"
        )
    state = _list_tensors(model)
    require_finite(state, f"{CALLER}: network {place}", find_bounds(model))
    return state


def _list_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's entries that are tensors: what modules keep besides is the first network's."""
    return {name: entry for name, entry in model.state_dict().items() if isinstance(entry, Tensor)}


def _normalise(shares: Sequence[float], count: int) -> list[float]:
    try:
        shares = [float(share) for share in shares]
    except (TypeError, ValueError) as error:
        raise SpectralError(f"{CALLER}: shares must be a list of numbers, got {shares!r}") from error
    if len(shares) != count:
        raise SpectralError(f"{CALLER}: expected a share for each of {count} networks, got {len(shares)}")
    whole = sum(shares)
    if not (all(0 <= share < math.inf for share in shares) and 0 < whole < math.inf):
        raise SpectralError(f"{CALLER}: shares must be ≥ 0, finite and not all 0, got {shares}")
    return [share / whole for share in shares]


def _compare(first: dict[str, Tensor], other: dict[str, Tensor], place: int) -> None:
    """See that two networks have the same entries."""
    odd = sorted(first.keys() ^ other.keys())
    if odd:
        raise SpectralError(
            f"{CALLER}: {odd[0]!r} is in one of networks 0 and {place} only; all must be of one structure"
        )
    for name, entry in first.items():
        if entry.shape != other[name].shape:
            raise SpectralError(
                f"{CALLER}: {name!r} is of shape {tuple(entry.shape)} in network 0 and "
                f"{tuple(other[name].shape)} in network {place}; all must be of one structure"
            )
    for one, twin in _find_tied(first):
        if not torch.equal(other[one], other[twin]):
            raise SpectralError(
                f"{CALLER}: {one!r} and {twin!r} are one weight in network 0 and two in network {place}; all "
                f"must be of one structure"
            )


def _find_tied(state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the pairs of entries that are one, each with the first of its names."""
    first: dict[object, str] = {}
    places = {name: (x.device, x.data_ptr(), x.shape, x.stride()) for name, x in state.items() if x.numel()}
    return [(first[p], name) for name, p in places.items() if first.setdefault(p, name) != name]


def _settle_spectral_norms(mean: nn.Module, first: dict[str, Tensor]) -> None:
    """Find the largest singular value of each mean weight that a spectral norm divides by it.

    It keeps singular vectors of its weight as buffers, whose means belong to no weight; each pass in training
    mode brings them nearer.
    """
    moved = {name for name, x in _list_tensors(mean).items() if not torch.equal(x, first[name].to(x.device))}
    for path, module in mean.named_modules():
        own = path and f"{path}."
        for name, chain in module.parametrizations.items() if is_parametrized(module) else ():
            for i, norm in enumerate(chain):
                if isinstance(norm, _SpectralNorm) and f"{own}parametrizations.{name}.{i}._u" in moved:
                    before, norm.training = norm.training, True
                    _repeat(chain)
                    norm.training = before
        for hook in module._forward_pre_hooks.values():  # torch's older one
            if isinstance(hook, SpectralNorm) and f"{own}{hook.name}_u" in moved:
                _repeat(partial(hook.compute_weight, module, do_power_iteration=True))


def _repeat(step: Callable[[], object]) -> None:
    for _ in range(STEPS):
        step()
