"""Batch-norm statistics measured again after surgery: what the new layers change, and only that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spectral.arguments.values import as_integer
from spectral.errors import SpectralError, SpectralWarning, warn
from spectral.intake import Feed, pick_alike
from spectral.network import run_forward, undisturbed
from spectral.network.inputs import Inputs
from spectral.repair.heldout import leave_out
from spectral.surgery import conversion_report, convert, revert
from spectral.tracing.copying import copy_model

LIMIT = 128  # images that stand in one batch


def recalibrate(
    model: nn.Module,
    images: Any,
    *,
    reference: nn.Module | None = None,
    limit: int = LIMIT,
    inplace: bool = False,
    preprocessing: Any = None,
) -> nn.Module:
    """Measure a converted network's batch-norm statistics again, without labels.

    A layer behind a stride changes what the following norms see, and their statistics, which were kept in
    training, no longer fit. Statistics of a few images instead are worse than those of a whole training set:
    a network that nothing was done to loses by it. So both networks, with and without the layers, see the
    same images, and each norm gets the old statistics, moved by what the layers did: the variance by the
    ratio of the two variances, the mean so that it lies as many standard deviations from these images' as
    before. Which images were drawn cancels out, and an unaltered network keeps its statistics exactly.

    The norms are set in the order in which they run, each on the maps that the norms before it, already set,
    let through. Weights stay.

    Args:
        model: what `convert` returned, or another network that has changed.
        images: whatever holds some, as for `measure`: names, folders, Datasets, tensors that are preprocessed
            (N, C, H, W); no labels are needed.
        reference: the network before the change, whose statistics fit; by default the model with
            plain decimation in place of its layers, which computes what it did before the conversion.
        limit: how many images are used at most, spread evenly over all, in one batch.
        inplace: change the model itself instead of a copy.
        preprocessing: what images in [0, 1] go through, as for `measure`.

    Returns:
        The network with its new statistics, its modes as they were.

    Raises:
        SpectralError: if the model isn't a converted one and no reference is given, the reference has other
            norms, there are fewer than two images, or a map isn't finite.

    Source:
        The statistics are those of S. Ioffe and C. Szegedy, Batch Normalization, 2015; measuring the change
        on pairs rather than the value is the control variate of any textbook on Monte Carlo methods.

    Example:
        >>> from spectral.surgery import convert
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        >>> smooth = convert(net.eval(), "blurpool", example=16)
        >>> repaired = recalibrate(smooth, torch.rand(8, 3, 16, 16))
        >>> torch.equal(repaired[3].running_var, smooth[3].running_var)
        False
    """
    limit = as_integer(limit, "recalibrate: limit", least=2)
    feed = Feed(model, images, caller="recalibrate", preprocessing=preprocessing)
    batch, before = load_pair(feed, reference, limit)
    work = model if inplace else copy_model(model)
    with torch.no_grad(), undisturbed(before), undisturbed(work), kept_on_failure(work):
        fitting = _watch(before, batch, lambda path, norm, seen: None)
        known = {path: seen[0] for path, seen in fitting.items() if len(seen) == 1}

        def move(path: str, norm: _BatchNorm, seen: Moments) -> None:
            if path in known:
                move_statistics(norm, known[path], seen)

        ran = _watch(work, batch, move)
    if not ran:
        warnings.warn(
            f"recalibrate: no batch norm with statistics runs in {feed.name}, nothing is changed; "
            f"spectral.reconstruct fits weights",
            SpectralWarning,
            stacklevel=2,
        )
    left = {path: len(fitting.get(path, ())) for path in ran if path not in known}
    if left:
        why = _explain_left(left)
        if len(left) == len(ran):
            raise SpectralError(
                f"recalibrate: none of the {len(ran)} norms that run can be recalibrated: {why}"
            )
        warnings.warn(
            f"recalibrate: {len(left)} of {len(ran)} norms keep their statistics: {why}",
            SpectralWarning,
            stacklevel=2,
        )
    return work


def _explain_left(left: Mapping[str, int]) -> str:
    """Say of norms, which run so often in the reference, why their statistics stay."""
    several = [path for path, count in left.items() if count]
    if not several:
        path = next(iter(left))
        return f"{path!r} doesn't run in the reference; pass the network that this one was made from"
    path = several[0]
    return (
        f"{path!r} runs {left[path]} times in one pass, and has one mean and variance for all of them; give "
        f"each place a norm of its own"
    )


@contextmanager
def kept_on_failure(model: nn.Module) -> Iterator[None]:
    """Put a model's parameters and buffers back if what is done to them fails.

    Example:
        >>> from contextlib import suppress
        >>> layer = nn.BatchNorm1d(2)
        >>> with suppress(ZeroDivisionError), kept_on_failure(layer):
        ...     _ = layer.running_mean.add_(1)
        ...     _ = 1 / 0
        >>> layer.running_mean
        tensor([0., 0.])
    """
    tensors = [*model.parameters(), *model.buffers()]
    before = [x.detach().clone() for x in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for x, old in zip(tensors, before, strict=True):
                x.copy_(old)
        raise


def load_pair(
    feed: Feed, reference: nn.Module | None, limit: int, held_out: float = 0
) -> tuple[Inputs, nn.Module]:
    """Return the images that a network is repaired on, in one batch, and the network before the change.

    Args:
        feed: images on their way to the network.
        reference: the network before; by default the one with plain decimation instead.
        limit: how many images at most, spread evenly: folders come class by class.
        held_out: the share that is left out, as `spectral.distill` leaves it out.

    Raises:
        SpectralError: for fewer than two images, or without a reference if the network isn't a converted one.
    """
    there, left_out = leave_out(feed, held_out)
    count = min(len(there), limit)
    if count < 2:
        beside = f" beside {len(left_out)} left out" if left_out else ""
        raise SpectralError(f"{feed.caller}: needs at least 2 images, got {count}{beside}")
    loaded = feed.load([there[i * len(there) // count] for i in range(count)])
    batch = pick_alike(loaded)
    if batch.count < max(loaded.count, 2):
        size = tuple(batch.image.shape)
        said = (
            f"{feed.caller}: {batch.count} of {count} images have the size {size} of most, and one pass needs"
        )
        if batch.count < 2:
            raise SpectralError(f"{said} at least 2 of one size; give some")
        warn(f"{said} one size; the others are left out")
    return batch, _make_twin(feed.model, feed.example) if reference is None else reference


def find_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer is called with first, by place or by name.

    Example:
        >>> find_input((1, 2), {}), find_input((), {"input": 3})
        (1, 3)
    """
    return next(iter((*args, *kwargs.values())))


def _make_twin(model: nn.Module, example: Inputs) -> nn.Module:
    """Return the unaltered network, whose norms see the same dense maps where a layer comes behind them.

    Args:
        model: what `convert` returned.
        example: what it is called with; a conversion knows the shape of one image alone.
    """
    report = conversion_report(model)
    twin = revert(model)
    for step in (step for step in report.steps if step["method"] is not None):  # else none puts a layer in
        twin = convert(twin, "strided", where=step["where"], placement=step["placement"], example=example)
    return twin


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel over images and places, in float64."""

    mean: Tensor
    variance: Tensor


def measure_moments(x: Tensor, path: str, caller: str) -> Moments:
    """Measure what enters the norm at a path.

    Raises:
        SpectralError: if it isn't finite.
    """
    maps = x.detach().unsqueeze(-1).flatten(2)
    # Each image's own in the maps' precision, those of all in float64: no second copy of the maps is made.
    single = maps if maps.shape[2] > 1 and maps.dtype in (torch.float32, torch.float64) else maps.double()
    own, means = torch.var_mean(single, 2, unbiased=False)
    between, mean = torch.var_mean(means.double(), 0, unbiased=False)
    variance = own.double().mean(0) + between
    if not bool(variance.isfinite().all()):
        raise SpectralError(f"{caller}: what enters {path!r} isn't finite on these images")
    return Moments(mean, variance)


def _watch(
    model: nn.Module, batch: Inputs, on_norm: Callable[[str, _BatchNorm, Moments], None]
) -> dict[str, list[Moments]]:
    """Run a model on one batch; measure what enters each norm that keeps statistics, before it runs."""
    found: dict[str, list[Moments]] = {}

    def hook(path: str, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = measure_moments(find_input(args, kwargs), path, "recalibrate")
        found.setdefault(path, []).append(seen)
        if len(found[path]) == 1:
            on_norm(path, norm, seen)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                handle = module.register_forward_pre_hook(partial(hook, path), with_kwargs=True)
                stack.callback(handle.remove)
        run_forward(model, batch, type(model).__name__)
    return found


def move_statistics(norm: _BatchNorm, fitting: Moments, seen: Moments) -> None:
    """Move a norm's statistics by what changed between two networks on the same images."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    # A channel that is silent in both networks has no ratio: the norm's own ε, which it adds to its variance.
    ratio = (seen.variance + norm.eps) / (fitting.variance + norm.eps)
    norm.running_mean.copy_(seen.mean + (mean - fitting.mean) * ratio.sqrt())
    norm.running_var.copy_((variance + norm.eps) * ratio - norm.eps).clamp_(min=0)
