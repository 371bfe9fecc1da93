"""One training loop for every bundled network, clean, perturbed or attacked: any device, resumable."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from spectral.errors import SpectralError, suggest
from spectral.files import claim
from spectral.identity import find_structure
from spectral.layers import BlurPool
from spectral.models import model_info
from spectral.models.architectures import build, family_of
from spectral.models.checkpoint import hash_state
from spectral.network import evaluation_mode, reflect
from spectral.perturb import NULA_TRAINING, NULA_TRAINING_V1, choose_randomly, make_perturbation
from spectral.training_state import restore_state, store_state

NUM_CLASSES = 10
STATE_NAME = "training-state.pt"


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel by which a network wants its pixels: (pixel − mean) / std.

    Example:
        >>> Normalisation()(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0, 0, 0]
        tensor([-1.,  1.])
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (B, C, H, W)."""
        normalised = (pixels - self._spread(self.mean, pixels)) / self._spread(self.std, pixels)
        return normalised.contiguous(memory_format=torch.channels_last)

    def scale(self, like: Tensor, pixels: float) -> Tensor:
        """How far ``pixels`` are in what the network gets, (C, 1, 1)."""
        return pixels / self._spread(self.std, like)

    def _spread(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).view(-1, 1, 1)


@dataclass(frozen=True)
class Recipe:
    """What a training run consists of; equal recipes on equal data make comparable networks.

    Args:
        epochs: passes over the data.
        batch_size: images per step.
        max_lr: the highest learning rate.
        optimizer: ``"sgd"`` or ``"adamw"``.
        schedule: ``"one-cycle"``, or ``"step"``: a tenth after one half and again after three quarters.
        warmup_epochs: how long the rate of one cycle rises; a quarter of the epochs by default.
        momentum: of SGD, Nesterov's.
        weight_decay: of all parameters.
        crop_padding: images are shifted by up to so many pixels.
        flip: mirror half of the images.
        perturb: names of `spectral.perturb.make_perturbation`; each image goes through one of them, drawn
            anew in every epoch. A name that stands twice is drawn twice as often.
        jitter: add uniform noise within ± so much to every pixel in [0, 1] first.
        attack: train on adversarial images: ``"fgsm"``, one step from a random start, or ``"pgd"``.
        epsilon: largest change of a pixel in [0, 1] by the attack.
        attack_step: of the attack's step, in pixels; 1.25 ε and ε / 4 by default.
        attack_steps: of pgd.
        ema: decay per step of an average of the weights, which is then tested and returned; 0 for none.
        precision: ``"auto"`` takes bfloat16 autocast where the device multiplies it natively, else float32.
        seed: of the weights, the order and all that is drawn.

    Raises:
        SpectralError: if a value is out of range.
    """

    epochs: int = 20
    batch_size: int = 256
    max_lr: float = 0.2
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["one-cycle", "step"] = "one-cycle"
    warmup_epochs: int | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    flip: bool = True
    perturb: tuple[str, ...] = ()
    jitter: float = 0.0
    attack: Literal["fgsm", "pgd"] | None = None
    epsilon: float = 8 / 255
    attack_step: float | None = None
    attack_steps: int = 10
    ema: float = 0.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_lr", "epsilon", "attack_steps"):
            if not getattr(self, name) > 0:
                raise SpectralError(f"Recipe: {name} must be > 0, got {getattr(self, name)}")
        if self.attack_step is not None and not self.attack_step > 0:
            raise SpectralError(f"Recipe: attack_step must be > 0, got {self.attack_step}")
        if not 0 <= self.ema < 1:
            raise SpectralError(f"Recipe: ema must be from 0 to below 1, got {self.ema}")
        if not 0 <= self.jitter <= 1:
            raise SpectralError(f"Recipe: jitter must be from 0 to 1, got {self.jitter}")
        if self.warmup_epochs is not None and not 0 < self.warmup_epochs < self.epochs:
            raise SpectralError(
                f"Recipe: warmup_epochs must be from 1 to below epochs = {self.epochs}, got "
                f"{self.warmup_epochs}"
            )
        choices = {
            "optimizer": ("sgd", "adamw"), "schedule": ("one-cycle", "step"), "attack": (None, "fgsm", "pgd"),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SpectralError(f"Recipe: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in self.perturb:
            make_perturbation(name)
        if not abs(self.seed) < 2**40:
            raise SpectralError(f"Recipe: seed must be smaller than 2^40, got {self.seed}")
        if self.crop_padding < 0:
            raise SpectralError(f"Recipe: crop_padding must be ≥ 0, got {self.crop_padding}")


# Recipes with a name. NULA's cards name rates, operators and shares (v1 is v0 tuned further), not the
# optimiser, the number of epochs, nor how many images stay clean: AdamW, 20 and 10 epochs, a third are ours.
RECIPES: dict[str, Recipe] = {
    "clean": Recipe(),
    "nula-robust": Recipe(optimizer="adamw", max_lr=1e-3, perturb=NULA_TRAINING),
    "nula-robust-v1": Recipe(
        epochs=10, optimizer="adamw", max_lr=5e-5, warmup_epochs=2, perturb=NULA_TRAINING_V1, jitter=0.05
    ),
    "fast-fgsm": Recipe(epochs=15, attack="fgsm"),  # Wong et al. 2020
    "pgd": Recipe(epochs=30, attack="pgd"),
    # Appendix of Grabinski et al., Aliasing coincides with CNNs vulnerability towards adversarial attacks
    "am-paper": Recipe(epochs=200, batch_size=512, max_lr=0.1, schedule="step"),
}


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe of `RECIPES`, with some of its values changed.

    Raises:
        SpectralError: if the name is unknown or a value out of range.

    Example:
        >>> find_recipe("fast-fgsm", epochs=4).attack
        'fgsm'
    """
    if name not in RECIPES:
        raise SpectralError(
            f"unknown recipe {name!r}{suggest(name, RECIPES)}; available: {', '.join(RECIPES)}"
        )
    return replace(RECIPES[name], **changes)


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, 3, H, W) uint8 and labels (N,) int64, in memory, with the id that tables will carry."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    data_id: str

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            raise SpectralError(
                f"training data: expected as many labels as images, got {len(self.images)} images and "
                f"{len(self.labels)} labels"
            )

    def digest(self) -> str:
        """Return the hash of all pixels and labels: the id is but a name."""
        return f"sha256:{hash_state({'images': self.images, 'labels': self.labels}).partition(':')[2]}"


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

    Args:
        architecture: a name from `spectral.models.architectures`.
        train_set: images to train on.
        test_set: images for the accuracy that is reported; it chooses nothing.
        out: folder for the resumable state.
        recipe: the hyper-parameters.
        device: where to train.
        progress: show a bar per epoch.
        start: fine-tune a copy of this network instead of fresh weights: one that was loaded, or converted by
            `spectral.convert`; ``architecture`` is then what the original is called.

    Raises:
        SpectralError: if ``out`` holds the state of another run or a damaged one, the data has more than ten
            classes or more than the network has outputs, or the loss stops being finite.
    """
    with claim(Path(out)):
        return _train(
            architecture, train_set, test_set, Path(out), recipe, torch.device(device), progress, start
        )


def _train(
    architecture: str,
    train_set: LabelledImages,
    test_set: LabelledImages,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    progress: bool,
    start: nn.Module | None,
) -> dict[str, Any]:
    """Train in a folder that nobody else writes to."""
    if len(train_set.classes) > NUM_CLASSES:
        raise SpectralError(
            f"train: our architectures have {NUM_CLASSES} outputs, the data has "
            f"{len(train_set.classes)} classes"
        )
    torch.manual_seed(recipe.seed)
    fresh = build(architecture) if start is None else _copy_to_tune(start, train_set)
    normalise = _find_normalisation(start)
    model = fresh.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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
                                        "start_structure": find_structure(start)})}  # fmt: skip
    state_path = out / STATE_NAME
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if average is not None:
        parts["average"] = average
    first_epoch, history = restore_state(state_path, run, parts, device, "train")
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    tested: nn.Module = model if average is None else average.module
    for epoch in range(first_epoch, recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout too depends on (seed, epoch) alone
        batches = tqdm(
            _epoch_batches(images, labels, recipe, epoch, normalise),
            total=steps, leave=False, disable=not progress,
            desc=f"{architecture} epoch {epoch + 1}/{recipe.epochs}",
        )  # fmt: skip
        mean_loss = _run_epoch(model, batches, optimizer, schedule, dtype, recipe, normalise, average)
        if not math.isfinite(mean_loss):
            raise SpectralError(
                f"train: the loss of {architecture} became {mean_loss} in epoch {epoch + 1}; lower max_lr "
                f"(now {recipe.max_lr})"
            )
        accuracy = evaluate(tested, test_set, device, normalise)
        history.append({"epoch": epoch + 1, "loss": mean_loss, "test_accuracy": accuracy})
        if progress:
            tqdm.write(f"{architecture}: epoch {epoch + 1}, loss {mean_loss:.3f}, test {accuracy:.2%}")
        store_state(state_path, run, parts, epoch + 1, history)
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


def _copy_to_tune(start: nn.Module, data: LabelledImages) -> nn.Module:
    """Copy a network to fine-tune, if it is one for such images."""
    model = copy.deepcopy(start).requires_grad_(True)
    with evaluation_mode(model), torch.no_grad():
        images = normalize(data.images[:1], _find_normalisation(start))
        logits = model(images.to(next(model.parameters()).device))
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
    info = None if start is None else model_info(start)
    if info is None:
        return Normalisation()
    if not info.preprocessing.mean:
        return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Normalisation(tuple(info.preprocessing.mean), tuple(info.preprocessing.std))


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.max_lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), recipe.max_lr, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )  # fmt: skip


def _run_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    dtype: torch.dtype | None,
    recipe: Recipe,
    normalise: Normalisation,
    average: AveragedModel | None,
) -> float:
    """One pass over the data; returns the mean loss, or the first that isn't finite, before it is learnt."""
    model.train()
    losses = []
    for images, labels in batches:
        if recipe.attack:
            images = attack_batch(model, images, labels, recipe, dtype, normalise)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(images), labels)
        if not torch.isfinite(loss):
            return loss.item()
        loss.backward()
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(model)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def attack_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    dtype: torch.dtype | None = None,
    normalise: Normalisation = Normalisation(),
) -> Tensor:
    """Move a normalised batch within ±ε, so that the network's loss rises: FGSM or PGD from a random start.

    The network stays in training mode, as in Wong et al.; measuring is done with libraries' attacks instead.

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
    moved = torch.lerp(low, high, torch.rand_like(images))
    for _ in range(1 if recipe.attack == "fgsm" else recipe.attack_steps):
        moved.requires_grad_(True)
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(moved), labels)
        (slope,) = torch.autograd.grad(loss, moved)
        moved = torch.clamp(moved.detach() + step * slope.sign(), low, high)
    return moved


def normalize(images: Tensor, normalise: Normalisation = Normalisation()) -> Tensor:
    """Turn uint8 images into what a network is trained on: [−1, 1] floats for those of this project.

    Example:
        >>> normalize(torch.tensor([[[[0, 255]]] * 3], dtype=torch.uint8))[0, 0]
        tensor([[-1.,  1.]])
    """
    return normalise(images.float() / 255)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    device: torch.device,
    normalise: Normalisation = Normalisation(),
    batch_size: int = 500,
) -> float:
    """Return the share of correct predictions, in float32."""
    model.eval()
    correct = 0
    for start in range(0, len(data.images), batch_size):
        batch = normalize(data.images[start : start + batch_size].to(device), normalise)
        target = data.labels[start : start + batch_size].to(device)
        correct += int((model(batch).argmax(1) == target).sum())
    return correct / len(data.images)


def _epoch_batches(
    images: Tensor, labels: Tensor, recipe: Recipe, epoch: int, normalise: Normalisation = Normalisation()
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle, shift by up to ``crop_padding`` (reflected borders), flip, perturb; from (seed, epoch)."""
    perturbations = [make_perturbation(name) for name in recipe.perturb]
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(recipe.batch_size):
        pad = recipe.crop_padding
        shifts = torch.randint(0, 2 * pad + 1, (len(chosen), 2), generator=generator)
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        index = chosen.to(images.device)
        batch = augment(images[index], shifts, flips if recipe.flip else torch.zeros_like(flips), pad)
        pixels = batch.float() / 255
        if recipe.jitter:
            noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
            pixels = (pixels + recipe.jitter * (2 * noise - 1)).clamp(0, 1)
        if perturbations:
            pixels = choose_randomly(pixels, perturbations, generator)
        yield normalise(pixels), labels[index]


def augment(images: Tensor, shifts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Cut a window at ``shifts`` (B, 2) out of each reflect-padded image and mirror those in ``flips``.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> augment(x, torch.tensor([[1, 1]]), torch.tensor([True]), pad=1)[0, 0]
        tensor([[1., 0.],
                [3., 2.]])
    """
    height, width = images.shape[-2:]
    device = images.device
    rows = reflect(torch.arange(height)[None] + shifts[:, :1] - pad, height)
    columns = torch.arange(width)[None].expand(len(images), -1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    columns = reflect(columns + shifts[:, 1:] - pad, width)
    which = torch.arange(len(images), device=device)[:, None, None]
    picked = images[which, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return picked.permute(0, 3, 1, 2)


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
