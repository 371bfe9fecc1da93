"""One training recipe for every bundled network: SGD, one cycle, any device, resumable."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from spectral.errors import SpectralError
from spectral.layers import BlurPool2d
from spectral.metrics import evaluation_mode
from spectral.models import model_info
from spectral.models.architectures import build, family_of
from spectral.models.checkpoint import hash_state

MEAN = STD = (0.5, 0.5, 0.5)
NUM_CLASSES = 10
STATE_NAME = "training-state.pt"


@dataclass(frozen=True)
class Recipe:
    """What a training run consists of; equal recipes on equal data make comparable networks.

    ``precision="auto"`` takes bfloat16 autocast where the device multiplies it natively, else float32.
    """

    epochs: int = 20
    batch_size: int = 256
    max_lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    flip: bool = True
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_lr"):
            if not getattr(self, name) > 0:
                raise SpectralError(f"Recipe: {name} must be > 0, got {getattr(self, name)}")
        if self.crop_padding < 0:
            raise SpectralError(f"Recipe: crop_padding must be ≥ 0, got {self.crop_padding}")


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
    device = torch.device(device)
    if len(train_set.classes) > NUM_CLASSES:
        raise SpectralError(
            f"train: our architectures have {NUM_CLASSES} outputs, the data has "
            f"{len(train_set.classes)} classes"
        )
    torch.manual_seed(recipe.seed)
    fresh = build(architecture) if start is None else _copy_to_tune(start, train_set)
    model = fresh.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _use_products(model, device.type == "cpu")
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.max_lr, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )  # fmt: skip
    steps = -(-len(train_set.images) // recipe.batch_size)
    # torch divides by zero where the rise is exactly one step: a quarter of four.
    rise = 0.5 if recipe.epochs * steps == 4 else 0.25
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.max_lr, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=rise,
        cycle_momentum=False,
    )  # fmt: skip
    dtype = _autocast_dtype(recipe.precision, device)
    run = {"architecture": architecture, "data_id": train_set.data_id, "recipe": asdict(recipe),
           "precision": "bf16" if dtype else "fp32",
           **({} if start is None else {"start": hash_state(start.state_dict())})}  # fmt: skip
    state_path = Path(out) / STATE_NAME
    first_epoch, history = _restore(state_path, run, model, optimizer, schedule, device)
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    for epoch in range(first_epoch, recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout too depends on (seed, epoch) alone
        batches = tqdm(
            _epoch_batches(images, labels, recipe, epoch), total=steps, leave=False, disable=not progress,
            desc=f"{architecture} epoch {epoch + 1}/{recipe.epochs}",
        )  # fmt: skip
        mean_loss = _run_epoch(model, batches, optimizer, schedule, dtype)
        if not math.isfinite(mean_loss):
            raise SpectralError(
                f"train: the loss of {architecture} became {mean_loss} in epoch {epoch + 1}; lower max_lr "
                f"(now {recipe.max_lr})"
            )
        accuracy = evaluate(model, test_set, device)
        history.append({"epoch": epoch + 1, "loss": mean_loss, "test_accuracy": accuracy})
        if progress:
            tqdm.write(f"{architecture}: epoch {epoch + 1}, loss {mean_loss:.3f}, test {accuracy:.2%}")
        _store(state_path, run, model, optimizer, schedule, epoch + 1, history)
    _use_products(model, False)
    return {
        **run,
        "model": model.cpu().to(memory_format=torch.contiguous_format).eval(),
        "family": family_of(architecture),
        "mean": MEAN,
        "std": STD,
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
    info = model_info(start)
    if info is not None and (info.preprocessing.mean, info.preprocessing.std) != (MEAN, STD):
        raise SpectralError(
            f"train: {info.name} expects images with mean {info.preprocessing.mean} and std "
            f"{info.preprocessing.std}, training gives them with {MEAN[0]} and {STD[0]}; fine-tune one of "
            f"this project's networks"
        )
    with evaluation_mode(model), torch.no_grad():
        logits = model(normalize(data.images[:1]).to(next(model.parameters()).device))
    if logits.shape[-1] < len(data.classes):
        raise SpectralError(
            f"train: the network has {logits.shape[-1]} outputs, the data has {len(data.classes)} classes"
        )
    return model


def _run_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    dtype: torch.dtype | None,
) -> float:
    """One pass over the data; returns the mean loss, or the first that isn't finite, before it is learnt."""
    model.train()
    losses = []
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(images), labels)
        if not torch.isfinite(loss):
            return loss.item()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 images into what the networks are trained on: [−1, 1] floats.

    Example:
        >>> normalize(torch.tensor([[[[0, 255]]] * 3], dtype=torch.uint8))[0, 0]
        tensor([[-1.,  1.]])
    """
    mean = torch.tensor(MEAN, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, -1, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(model: nn.Module, data: LabelledImages, device: torch.device, batch_size: int = 500) -> float:
    """Return the share of correct predictions, in float32."""
    model.eval()
    correct = 0
    for start in range(0, len(data.images), batch_size):
        batch = normalize(data.images[start : start + batch_size].to(device))
        target = data.labels[start : start + batch_size].to(device)
        correct += int((model(batch).argmax(1) == target).sum())
    return correct / len(data.images)


def _epoch_batches(
    images: Tensor, labels: Tensor, recipe: Recipe, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle, shift by up to ``crop_padding`` pixels (reflected borders), flip; from (seed, epoch)."""
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(recipe.batch_size):
        pad = recipe.crop_padding
        shifts = torch.randint(0, 2 * pad + 1, (len(chosen), 2), generator=generator)
        flips = torch.rand(len(chosen), generator=generator) < 0.5
        index = chosen.to(images.device)
        batch = augment(images[index], shifts, flips if recipe.flip else torch.zeros_like(flips), pad)
        yield normalize(batch), labels[index]


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
    rows = _reflect(torch.arange(height)[None] + shifts[:, :1] - pad, height)
    columns = torch.arange(width)[None].expand(len(images), -1)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + shifts[:, 1:] - pad, width)
    which = torch.arange(len(images), device=device)[:, None, None]
    picked = images[which, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    return (size - 1) - (index % period - (size - 1)).abs()


def _use_products(model: nn.Module, enabled: bool) -> None:
    for module in model.modules():
        if isinstance(module, BlurPool2d):
            module.as_products = enabled


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported()
        else:
            native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def _store(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    history: list[dict[str, float]],
) -> None:
    """Write the state under another name first: a kill in the middle leaves the previous epoch intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.{random.getrandbits(32):08x}")
    state = {
        "run": run, "epoch": epoch, "history": history, "model": model.state_dict(),
        "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
    }  # fmt: skip
    torch.save(state, temporary)
    os.replace(temporary, path)


def _restore(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise SpectralError(f"train: {path} is damaged; delete it and train again") from error
    for key, value in run.items():
        if state["run"].get(key) != value:
            raise SpectralError(
                f"train: {path.parent} holds a run with {key} = {state['run'].get(key)}, not {value}; "
                f"choose another folder or delete it"
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["epoch"], state["history"]
