"""A converted network learns from the one it was made from, on photographs without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from spectral.arguments import as_integer
from spectral.copying import copy_model
from spectral.errors import SpectralError
from spectral.inputs import Inputs
from spectral.intake import Feed
from spectral.network import Kinds, reflect, undisturbed
from spectral.surgery import conversion_report, revert
from spectral.surroundings import kept_surroundings

CALLER = "distill"
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
_LEAST = 1e-30  # a probability that rounds to nothing, and the power of a map that is none


def distill(
    model: nn.Module,
    images: Any,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 10,
    batch_size: int = 16,
    max_lr: float = 5e-5,
    layer_weight: float = 1.0,
    seed: int = 0,
    preprocessing: Any = None,
    progress: bool = True,
) -> nn.Module:
    """Tune a converted network until it says what the unconverted one says; no labels are needed.

    Each image, mirrored or not and moved by up to an eighth of its size, goes through both networks. The loss
    is the Kullback-Leibler divergence between their class probabilities, and ``layer_weight`` times the
    mean over their norms of ‖difference of the norms' outputs‖² / ‖the teacher's‖²: few images teach more by
    what the teacher does at every layer than by its verdict. Statistics of batch norms stay (of few images
    they would be worse, see `recalibrate`), as does dropout, off.

    Args:
        model: what `convert` returned, `recalibrate` best called before.
        images: whatever holds some, as for `measure`.
        teacher: the network to learn from; by default the model with its layers taken out, which is the
            original only as long as nothing else was changed: give it for a recalibrated one.
        epochs: passes over the images.
        batch_size: images per step.
        max_lr: the highest learning rate of AdamW, in one cycle.
        layer_weight: of the norms' outputs; 0 for the predictions alone.
        seed: of the order and augmentation.
        preprocessing: as for `measure`.
        progress: show a bar.

    Returns:
        A tuned copy, its modes as they were.

    Raises:
        SpectralError: if the model isn't a converted one and no teacher is given, it is no classifier, there
            are no images, a number is out of range or the loss isn't finite.

    Source:
        G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (predictions); A. Romero et al.,
        FitNets, ICLR 2015 (layers).

    Example:
        >>> from spectral.surgery import convert
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...                     nn.Linear(4, 5))
        >>> smooth = convert(net.eval(), "blurpool", example=16)
        >>> tuned = distill(smooth, torch.rand(4, 3, 16, 16), epochs=1, progress=False)
        >>> torch.equal(tuned[0].weight, smooth[0].weight)
        False
    """
    epochs = as_integer(epochs, f"{CALLER}: epochs", least=1)
    batch_size = as_integer(batch_size, f"{CALLER}: batch_size", least=1)
    if not (max_lr > 0 and layer_weight >= 0):
        raise SpectralError(
            f"{CALLER}: max_lr must be > 0 and layer_weight ≥ 0, got {max_lr} and {layer_weight}"
        )
    if teacher is None:
        conversion_report(model)  # says so, if it wasn't converted
        teacher = revert(model)
    student = copy_model(model)
    feed = Feed(student, images, caller=CALLER, preprocessing=preprocessing)
    feed.require_scores()
    steps = epochs * -(-len(feed.images) // batch_size)
    trained = [p for p in student.parameters() if p.is_floating_point()]
    wanted = [p.requires_grad for p in trained]
    modes = {module: module.training for module in student.modules()}
    with kept_surroundings(), undisturbed(teacher), torch.enable_grad():
        student.eval()
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, max_lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step, steps))
        bar = tqdm(total=steps, desc=f"distilling {feed.name}", unit="step", disable=not progress)
        with bar, _listen(teacher, student) as pairs:
            for batch in _draw_batches(feed, epochs, batch_size, seed):
                loss = _compute_loss(feed, teacher, batch, pairs, layer_weight)
                if not torch.isfinite(loss):
                    raise SpectralError(
                        f"{CALLER}: the loss of {feed.name} became {loss.item()}; lower max_lr (now {max_lr})"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    for parameter, flag in zip(trained, wanted, strict=True):
        parameter.grad = None
        parameter.requires_grad_(flag)
    for module, training in modes.items():
        module.training = training
    return student


def _one_cycle(step: int, steps: int) -> float:
    """Rise for a tenth of the steps, then fall to nothing along half a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - rise) / max(1, steps - rise)))))


def _draw_batches(feed: Feed, epochs: int, batch_size: int, seed: int) -> Iterator[Inputs]:
    """Yield every image once per epoch, in an order and under changes drawn from (seed, epoch)."""
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(feed.images), generator=generator).tolist()
        for _, inputs in feed.batches(batch_size, indices=order):
            yield _augment(inputs, feed.layout_of(inputs), feed.extents, generator)


def _augment(
    inputs: Inputs, layout: Sequence[Kinds], extents: Mapping[str, int], generator: torch.Generator
) -> Inputs:
    """Mirror each image of a batch or not, and move it, and all that lies on its lattice; borders reflect."""
    drawn = {kind: _draw_places(kind, n, inputs.count, generator) for kind, n in extents.items() if n > 1}
    rest = iter(layout)

    def move(x: Tensor, batched: bool) -> Tensor:
        kinds = next(rest)
        own = {kind: n for kind, n in zip(kinds, x.shape, strict=True) if kind in extents}
        if own != extents or not batched:
            return x
        for kind, places in drawn.items():
            axis = kinds.index(kind)
            shape = [len(x), *(1,) * (x.ndim - 1)]
            shape[axis] = x.shape[axis]
            x = torch.take_along_dim(x, places.view(shape).to(x.device), axis)
        return x

    return inputs.map(move)


def _draw_places(kind: str, n: int, count: int, generator: torch.Generator) -> Tensor:
    """Say for each image of a batch which of its samples along an axis come where, (count, n)."""
    reach = 0 if kind == "t" else n // 8
    places = torch.arange(n) + torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    if kind == "w":
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        places = torch.where(mirrored, n - 1 - places, places)
    return reflect(places, n)


def _compute_loss(
    feed: Feed, teacher: nn.Module, batch: Inputs, pairs: dict[str, list[Tensor]], layer_weight: float
) -> Tensor:
    for seen in pairs.values():
        seen.clear()
    with torch.no_grad():
        target = feed.scores(teacher(*batch.args, **batch.kwargs), batch.count).probabilities()
    known = {path: list(seen) for path, seen in pairs.items()}
    for seen in pairs.values():
        seen.clear()
    given = feed.scores(feed.run(batch), batch.count).probabilities()
    loss = F.kl_div(given.clamp_min(_LEAST).log(), target, reduction="batchmean")
    if not layer_weight:
        return loss
    errors = [
        (own - other).square().mean() / other.square().mean().clamp_min(_LEAST)
        for path, seen in pairs.items()
        for own, other in zip(seen, known[path], strict=False)
        if own.shape == other.shape
    ]
    return loss + layer_weight * torch.stack(errors).mean() if errors else loss


@contextmanager
def _listen(teacher: nn.Module, student: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what leaves the norms that both networks have, under their paths."""
    others = dict(teacher.named_modules())
    pairs: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for path, module in student.named_modules():
            other = others.get(path)
            if isinstance(module, _NORMS) and other is not None and type(other) is type(module):
                seen = pairs.setdefault(path, [])
                for side in (module, other):
                    handle = side.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
                    stack.callback(handle.remove)
        yield pairs
