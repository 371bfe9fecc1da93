"""One training loop for every bundled network, clean, perturbed or attacked, on one process or several."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from spectral.arguments.values import as_path
from spectral.classes import find_classes, match_names
from spectral.errors import SpectralError, warn
from spectral.files.training_state import restore_state, store_state
from spectral.identity import find_structure
from spectral.layers import BlurPool
from spectral.models.architectures import build, family_of
from spectral.models.preprocessing import explain_assumption, find_preparation
from spectral.models.weights_id import hash_state
from spectral.network import evaluation_mode
from spectral.network.outputs import describe_output
from spectral.numerics.memory import move_for_training
from spectral.processes.ranks import Ranks, find_ranks, hold, shared
from spectral.processes.surroundings import kept_surroundings
from spectral.training.attack import attack_batch
from spectral.training.images import LabelledImages, Normalisation, draw_batches, normalize
from spectral.training.recipe import Recipe
from spectral.training.replicas import Replicas

NUM_CLASSES = 10
STATE_NAME = "training-state.pt"


@shared
@torch.inference_mode(False)
@torch.enable_grad()
def train(
    architecture: str,
    train_set: LabelledImages,
    test_set: LabelledImages,
    out: Path,
    recipe: Recipe = Recipe(),
    device: str | torch.device = "cpu",
    progress: bool = True,
    *,
    start: nn.Module | None = None,
) -> dict[str, Any]:
    """Train one of our architectures and return its weights' metadata, with the model under ``"model"``.

    After every epoch the full state (weights, optimiser, schedule, recipe) goes to ``out``; the same call
    resumes there after an interruption. Augmentation and order are drawn from (seed, epoch), so an
    interrupted run sees exactly the batches that an uninterrupted one sees.

    In a process group of `torch.distributed` all ranks call this: each learns from its part of every batch,
    the first writes the state, and any other number of ranks goes on from it. The batches, gradients and norm
    statistics are those of one process (`Replicas`).

    Args:
        architecture: a name from `spectral.models.architectures`.
        train_set: images to train on.
        test_set: images for the accuracy that is reported; it chooses nothing.
        out: folder for the resumable state.
        recipe: the hyper-parameters.
        device: where to train.
        progress: show a bar per epoch.
        start: fine-tune a copy of this network, in single precision, instead of fresh weights: one that was
            loaded, or converted by `spectral.convert`; ``architecture`` is then what the original is called.

    Raises:
        SpectralError: if ``out`` holds the state of another run or a damaged one, the data has more than ten
            classes or more than the network has outputs, its two parts are of different sizes, the network
            doesn't take such images or gives no class scores, ranks see different data, or the loss stops
            being finite.
        BrokenJobError: if a rank ends, or fails as nobody foresaw.
    """
    ranks = find_ranks()
    folder = as_path(out, "train: out")
    with hold(folder, ranks), kept_surroundings():  # all that is drawn is drawn from the recipe's seed
        return _train(
            architecture, train_set, test_set, folder, recipe, torch.device(device),
            progress and ranks.first, start, ranks,
        )  # fmt: skip


def _train(
    architecture: str,
    train_set: LabelledImages,
    test_set: LabelledImages,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    progress: bool,
    start: nn.Module | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Train in a folder that nobody else writes to."""
    sizes = [tuple(part.images.shape[1:]) for part in (train_set, test_set)]
    if sizes[0] != sizes[1]:
        raise SpectralError(
            f"train: images to train on are of {sizes[0]}, those to test on of {sizes[1]}; resize one of them"
        )
    if len(train_set.classes) > NUM_CLASSES:
        raise SpectralError(
            f"train: our architectures have {NUM_CLASSES} outputs, the data has "
            f"{len(train_set.classes)} classes"
        )
    torch.manual_seed(recipe.seed)
    normalise = _find_normalisation(start)
    if start is None:
        fresh = build(architecture)
    else:
        train_set, test_set = _number_as(start, train_set, test_set)
        fresh = _copy_to_tune(start, train_set, normalise)
    model = move_for_training(fresh, device)
    _use_products(model, device.type == "cpu")
    optimizer = _make_optimizer(model, recipe)
    steps = -(-len(train_set.images) // recipe.batch_size)
    schedule = _make_schedule(optimizer, recipe, steps)
    average = None
    if recipe.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
    dtype = _autocast_dtype(recipe.precision, device)
    run = {"architecture": architecture, "data_id": train_set.data_id, "recipe": asdict(recipe),
           "precision": "bf16" if dtype else "fp32", "train_images": train_set.digest(),
           "test_images": test_set.digest(),
           **({} if start is None else {"start": hash_state(start.state_dict()),
                                        "start_structure": find_structure(start),
                                        "normalisation": asdict(normalise)})}  # fmt: skip
    ranks.require_same("train", run)
    state_path = out / STATE_NAME
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if average is not None:
        parts["average"] = average
    with ranks.agreeing():
        first_epoch, history = restore_state(state_path, run, parts, device, "train")
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    tested: nn.Module = model if average is None else average.module
    replicas = Replicas(ranks, device)
    with replicas.learning(model, normalize(images[:1], normalise)) as learner:
        course = _Course(model, learner, replicas, optimizer, schedule, dtype, recipe, normalise, average)
        for epoch in range(first_epoch, recipe.epochs):
            drawn = recipe.seed * 100_003 + epoch
            # Dropout too depends on (seed, epoch) alone, and on the rank, whose images are others.
            torch.manual_seed(drawn + ranks.rank * 1_000_000_007)
            batches = tqdm(
                draw_batches(images, labels, recipe, epoch, normalise),
                total=steps, leave=False, disable=not progress,
                desc=f"{architecture} epoch {epoch + 1}/{recipe.epochs}",
            )  # fmt: skip
            mean_loss = course.run_epoch(batches, torch.Generator(device).manual_seed(drawn))
            if not math.isfinite(mean_loss):
                raise SpectralError(
                    f"train: the loss of {architecture} became {mean_loss} in epoch {epoch + 1}; lower "
                    f"max_lr (now {recipe.max_lr})"
                )
            accuracy = evaluate(tested, test_set, device, normalise, ranks=ranks)
            history.append({"epoch": epoch + 1, "loss": mean_loss, "test_accuracy": accuracy})
            if progress:
                tqdm.write(f"{architecture}: epoch {epoch + 1}, loss {mean_loss:.3f}, test {accuracy:.2%}")
            ranks.once(partial(store_state, state_path, run, parts, epoch + 1, history))
    _use_products(tested, False)
    return {
        **run,
        "model": tested.cpu().to(memory_format=torch.contiguous_format).eval(),
        "family": family_of(architecture),
        "mean": normalise.mean,
        "std": normalise.std,
        "size": list(train_set.images.shape[-2:]),
        "classes": list(train_set.classes),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "device": device.type,
        "test_accuracy": history[-1]["test_accuracy"],
        "test_images": len(test_set.images),
        "history": history,
    }


def _number_as(
    start: nn.Module, data: LabelledImages, test: LabelledImages
) -> tuple[LabelledImages, LabelledImages]:
    """Give labels the numbers that a network has for these classes: its outputs mean what they did."""
    names = find_classes(start)
    if names is None or names == tuple(data.classes):
        return data, test
    found = match_names(data.classes, names)
    if found.reason:
        warn(
            f"train: {found.reason}, so its outputs get new meanings: the first was {names[0]!r} and becomes "
            f"{data.classes[0]!r}"
        )
        return data, test
    numbers = torch.tensor([found.index[label] for label in range(len(data.classes))])
    known, other = (replace(part, labels=numbers[part.labels], classes=names) for part in (data, test))
    return known, other


def _copy_to_tune(start: nn.Module, data: LabelledImages, normalise: Normalisation) -> nn.Module:
    """Copy a network to fine-tune, if it is one for such images."""
    device = next((weight.device for weight in start.parameters()), None)
    if device is None or any(is_lazy(weight) for weight in start.parameters()):
        raise SpectralError(
            f"train: {type(start).__name__} has no weights to tune, or none before it has run once"
        )
    model = copy.deepcopy(start).float().requires_grad_(True)
    image = normalize(data.images[:1], normalise).to(device)
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SpectralError(
            f"train: {type(start).__name__} fails on an image of {tuple(image.shape)}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise SpectralError(
            f"train: expected class scores (B, classes) from {type(start).__name__}, it gives "
            f"{describe_output(logits)}; wrap it in a module that returns them"
        )
    outputs, classes = logits.shape[-1], len(data.classes)
    if not classes <= outputs <= max(classes, NUM_CLASSES):
        raise SpectralError(
            f"train: the network has {outputs} outputs, the data has {classes} classes; give it a head for "
            f"them"
        )
    return model


def _find_normalisation(start: nn.Module | None) -> Normalisation:
    """Return what a network that is tuned wants, or what those of this project are trained on.

    One whose normalisation isn't known gets pixels in [0, 1], as everywhere.
    """
    if start is None:
        return Normalisation()
    found = find_preparation(start)
    if found.assumed:
        warn(f"train: {explain_assumption(start, type(start).__name__)}")
    if found.function is not None or found.bgr:
        raise SpectralError(
            f"train: what images go through before this {type(start).__name__} ({found.origin}) isn't a mean "
            f"and a standard deviation; put it into the network's forward"
        )
    mean, std = found.mean or (0.0,), found.std or (1.0,)
    channels = 3 if len(mean) == 1 else 1
    return Normalisation(mean * channels, std * channels)


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.max_lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), recipe.max_lr, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )  # fmt: skip


@dataclass
class _Course:
    """What a network learns by, step after step."""

    model: nn.Module
    learner: nn.Module
    """The same network, together with its copies."""
    replicas: Replicas
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    dtype: torch.dtype | None
    recipe: Recipe
    normalise: Normalisation
    average: AveragedModel | None

    def run_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], chance: torch.Generator) -> float:
        """Pass over the data once; returns the mean loss, or the first that isn't finite, not learnt."""
        self.learner.train()
        losses = []
        for images, labels in batches:
            loss = self._find_loss(images, labels, chance)
            whole = self.replicas.average(loss)
            if not torch.isfinite(whole):
                return whole.item()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            losses.append(whole)
        return float(torch.stack(losses).mean())

    def _find_loss(self, images: Tensor, labels: Tensor, chance: torch.Generator) -> Tensor:
        """Compute this rank's share of the loss of a batch, on which the images are attacked first."""
        part, dtype = self.replicas.part, self.dtype or torch.bfloat16
        own, wanted = part(images), part(labels)
        if self.recipe.attack:
            noise = torch.rand(images.shape, generator=chance, device=images.device)
            own = attack_batch(
                self.model, own, wanted, self.recipe, self.dtype, self.normalise, noise=part(noise)
            )
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype, enabled=self.dtype is not None):
            return self.replicas.mean_loss(self.learner(own), wanted, len(images))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    device: torch.device,
    normalise: Normalisation = Normalisation(),
    batch_size: int = 500,
    ranks: Ranks | None = None,
) -> float:
    """Return the share of correct predictions, in float32; ranks share the batches."""
    model.eval()
    correct, ranks = 0, ranks or Ranks()
    for start in ranks.split(range(0, len(data.images), batch_size)):
        batch = normalize(data.images[start : start + batch_size].to(device), normalise)
        target = data.labels[start : start + batch_size].to(device)
        correct += int((model(batch).argmax(1) == target).sum())
    return sum(ranks.exchange(correct)) / len(data.images)


def _make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning rate's course over all steps of all epochs."""
    if recipe.schedule == "step":
        turns = [recipe.epochs * steps // 2, recipe.epochs * steps * 3 // 4]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, turns)
    rise = 0.25 if recipe.warmup_epochs is None else recipe.warmup_epochs / recipe.epochs
    if recipe.epochs * steps * rise == 1:  # torch divides by zero where the rise is exactly one step
        rise = 2 / (recipe.epochs * steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.max_lr, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=rise,
        cycle_momentum=False,
    )  # fmt: skip


def _use_products(model: nn.Module, enabled: bool) -> None:
    for module in model.modules():
        if isinstance(module, BlurPool):
            module.as_products = enabled


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported()
        else:
            native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
