"""A converted network learns from the one it was made from, on photographs without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from spectral.arguments.values import as_integer, as_path
from spectral.errors import SpectralError
from spectral.files.training_state import restore_state, store_state
from spectral.identity import find_structure
from spectral.intake import Feed, pick_inputs
from spectral.models.weights_id import hash_state
from spectral.network import Take, run_forward, undisturbed
from spectral.network.inputs import Inputs
from spectral.processes.ranks import Ranks, find_ranks, hold, take_weights
from spectral.processes.surroundings import kept_surroundings
from spectral.repair.heldout import Nearest, as_share, diverge, leave_out, require_same
from spectral.repair.views import Views, augment_images, seeded_generator
from spectral.surgery import conversion_report, revert
from spectral.tracing.copying import copy_model

CALLER = "distill"
STATE_NAME = "distillation-state.pt"
KEPT_EVERY = 50  # steps, and wherever it is judged
FITTED_LR = 1e-4  # for norms alone: of what is fitted, more or faster learns the images by heart
HELD_OUT = 0.2  # of the images, on which it is judged
CHECKS = 4  # how often, after the first time
HELD_BYTES = 2**29  # of images that are decoded once; more are decoded each time
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TUNED = ("all", "filters", "norms")
FULL = torch.float32.itemsize
_LEAST = 1e-30  # the power of a map that is none


def distill(
    model: nn.Module,
    images: Any,
    *,
    teacher: nn.Module | None = None,
    steps: int = 600,
    batch_size: int = 16,
    max_lr: float = 2e-4,
    layer_weight: float = 1.0,
    tune: str = "all",
    views: Views = Views(),
    held_out: float = HELD_OUT,
    seed: int = 0,
    preprocessing: Any = None,
    logits: Take | None = None,
    out: Path | str | None = None,
    on_check: Callable[[int, float], None] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Tune a converted network until it says what the unconverted one says; no labels are needed.

    Each image, mirrored or not, a part of it enlarged, and mixed with another, goes through both networks.
    The loss is the Kullback-Leibler divergence between their class probabilities, and ``layer_weight`` times
    the mean over their norms of ‖difference of the norms' outputs‖² / ‖the teacher's‖²: few images teach more
    by what the teacher does at every layer than by its verdict. Statistics of batch norms stay (of few images
    they would be worse, see `recalibrate`), as does dropout, off. A network in half precision is tuned in
    single and given back in its own.

    A network that already fits, as after `reconstruct`, may be taken away from its teacher by a few images.
    So some are left out, and the divergence of its class probabilities on these, as they are, is measured at
    the beginning, at the end and between: the network is given back as it was where that was least, and a
    warning says if this is the beginning.

    Args:
        model: what `convert` returned, `recalibrate` best called before.
        images: whatever holds some, as for `measure`.
        teacher: the network to learn from; by default the model with its layers taken out, which is the
            original only as long as nothing else was changed: give it for a recalibrated one.
        steps: how often the weights change; 600 of 16 images take EfficientNet-Lite0 half an hour on two
            cores and under a minute on a GPU.
        batch_size: images per step.
        max_lr: the highest learning rate of AdamW, in one cycle.
        layer_weight: of the norms' outputs; 0 for the predictions alone.
        tune: what is trained: ``"norms"``, their scales and shifts and all biases; ``"filters"``, these and
            the depthwise kernels; ``"all"``; whether they require a gradient or not. The fewer, the less a
            few images can be learnt by heart.
        views: what the images are turned into.
        held_out: the share of the images, of whole photographs where several are cut from one, on which it
            is judged, best the same that `reconstruct` left out; 0 for none, and the network as the last step
            leaves it.
        seed: of the order and the views.
        preprocessing: as for `measure`.
        logits: as for `measure`, for a network whose output holds its class scores somewhere else.
        out: folder for the state, from which the same call goes on after an interruption; none by default.
            In a process group of `torch.distributed` all ranks name the same one, where the first writes.
        on_check: called with the steps done and the mean divergence on the images left out.
        progress: show a bar.

    Returns:
        A tuned copy, its modes as they were.

    Units: nats, of the divergence.

    Raises:
        SpectralError: if the model isn't a converted one and no teacher is given, it is no classifier, the
            teacher has other classes, there are no images, a number is out of range, the loss isn't finite,
            or ``out`` holds another run, or not all ranks of a process group call this alike with one.

    Source:
        G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (predictions); A. Romero et al.,
        FitNets, ICLR 2015 (layers); L. Beyer et al., Knowledge distillation: A good teacher is patient and
        consistent, CVPR 2022 (both see one strong view, images are mixed).

    Example:
        >>> from spectral.surgery import convert
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...                     nn.Linear(4, 5))
        >>> smooth = convert(net.eval(), "blurpool", example=16)
        >>> tuned = distill(smooth, torch.rand(4, 3, 16, 16), steps=1, held_out=0, progress=False)
        >>> torch.equal(tuned[0].weight, smooth[0].weight)
        False
    """
    steps = as_integer(steps, f"{CALLER}: steps", least=1)
    batch_size = as_integer(batch_size, f"{CALLER}: batch_size", least=1)
    if not (0 < max_lr < math.inf and 0 <= layer_weight < math.inf):
        raise SpectralError(
            f"{CALLER}: max_lr must be > 0 and layer_weight ≥ 0, got {max_lr} and {layer_weight}"
        )
    if tune not in TUNED:
        raise SpectralError(f"{CALLER}: tune must be one of {', '.join(TUNED)}, got {tune!r}")
    held_out = as_share(held_out, CALLER)
    state = None if out is None else as_path(out, "distill: out") / STATE_NAME
    # Each rank learns on its own, the same from the same; what they share is the folder.
    ranks = Ranks() if state is None else find_ranks()
    with ranks.agreeing():
        if teacher is None:
            conversion_report(model)  # says so, if it wasn't converted
            teacher = revert(model)
        student, teacher = _widen(copy_model(model)), _widen(teacher)
        feed = Feed(student, images, caller=CALLER, preprocessing=preprocessing, logits=logits)
        feed.require_scores()
        run = {
            "model": hash_state(model.state_dict()), "structure": find_structure(model),
            "teacher": hash_state(teacher.state_dict()), "teacher_structure": find_structure(teacher),
            "images": feed.images.fingerprint, "steps": steps, "batch_size": batch_size,
            "max_lr": float(max_lr), "layer_weight": float(layer_weight), "tune": tune,
            "views": asdict(views), "seed": seed, "held_out": held_out,
            **({} if logits is None else {"logits": feed.describe_logits()}),
            "preprocessing": feed.describe_preparation(),
        }  # fmt: skip
    ranks.require_same(CALLER, run)
    trained = _choose_parameters(student, tune)
    with (
        hold(state.parent, ranks) if state else nullcontext(),
        ranks.telling(),
        kept_surroundings(),
        undisturbed(teacher),
        torch.enable_grad(),
        _tuning(student, trained),
    ):
        optimizer = torch.optim.AdamW(trained, max_lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step, steps))
        kept, left_out = leave_out(feed, held_out)
        nearest = Nearest(feed, teacher, left_out, batch_size, trained, on_check)
        parts = {"model": student, "optimizer": optimizer, "schedule": schedule, "nearest": nearest}
        with ranks.agreeing():
            first = restore_state(state, run, parts, feed.device, CALLER)[0] if state else 0
        if not first:
            nearest.check(0)
        times = {-(-steps * turn // CHECKS) for turn in range(1, CHECKS + 1)}
        bar = tqdm(
            total=steps, initial=first, desc=f"distilling {feed.name}", unit="step",
            disable=not (progress and ranks.first),
        )  # fmt: skip
        with bar:
            for step, batch in _draw_batches(feed, kept, range(first, steps), batch_size, views, seed):
                loss = _compute_loss(feed, teacher, batch, layer_weight)
                if not torch.isfinite(loss):
                    raise SpectralError(
                        f"{CALLER}: the loss of {feed.name} became {loss.item()}; lower max_lr (now {max_lr})"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if step + 1 in times:
                    nearest.check(step + 1)
                if state and ((step + 1) % KEPT_EVERY == 0 or step + 1 in times):
                    ranks.once(partial(store_state, state, run, parts, step + 1, []))
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
        nearest.restore()
        take_weights(student, ranks)
    given = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, x in (*student.named_parameters(), *student.named_buffers()):
        x.data = x.data.to(given[name].dtype)
    return student


def _widen(model: nn.Module) -> nn.Module:
    """Return a network in single precision if it has less: steps are lost between its numbers otherwise."""

    def narrow(x: Tensor) -> bool:
        return x.is_floating_point() and x.element_size() < FULL

    if not any(map(narrow, (*model.parameters(), *model.buffers()))):
        return model
    wide = copy_model(model)
    for x in filter(narrow, (*wide.parameters(), *wide.buffers())):
        x.data = x.data.float()
    return wide


@contextmanager
def _tuning(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let some parameters of a network in evaluation mode learn; all are as they were afterwards."""
    wanted = {p: p.requires_grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    model.eval().requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    yield
    for parameter, flag in wanted.items():
        parameter.grad = None
        parameter.requires_grad_(flag)
    for module, training in modes.items():
        module.training = training


def _choose_parameters(model: nn.Module, tune: str) -> list[nn.Parameter]:
    """Return the parameters that ``tune`` names, each once."""
    chosen: dict[nn.Parameter, None] = {}
    for module in model.modules():
        depthwise = isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels > 1
        whole = tune == "all" or isinstance(module, _NORMS) or (tune == "filters" and depthwise)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and (whole or name == "bias"):
                chosen[parameter] = None
    if not chosen:
        raise SpectralError(f"{CALLER}: tune={tune!r} chooses no parameter of this network; pass tune='all'")
    return list(chosen)


def _one_cycle(step: int, steps: int) -> float:
    """Rise for a tenth of the steps, then fall to nothing along half a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - rise) / max(1, steps - rise)))))


def _draw_batches(
    feed: Feed, chosen: Sequence[int], steps: range, batch_size: int, views: Views, seed: int
) -> Iterator[tuple[int, Inputs]]:
    """Yield (step, images), every image once before any comes again; drawn from the seed and the step."""
    each = -(-len(chosen) // batch_size)  # steps in which every image comes once
    held = _hold(feed)
    step = steps.start
    while step < steps.stop:
        turn, done = divmod(step, each)
        order = torch.randperm(len(chosen), generator=seeded_generator(seed, turn, 0)).tolist()
        rest = [chosen[i] for i in order[done * batch_size :]]
        if held is None:
            batches = (inputs for _, inputs in feed.batches(batch_size, indices=rest))
        else:
            parts = (rest[i : i + batch_size] for i in range(0, len(rest), batch_size))
            batches = (pick_inputs(held, part) for part in parts)
        for inputs in batches:
            yield (
                step,
                augment_images(
                    inputs, feed.layout_of(inputs), feed.extents, views, seeded_generator(seed, step, 1)
                ),
            )
            step += 1
            if step == steps.stop:
                return


def _hold(feed: Feed) -> Inputs | None:
    """Return all images, ready for the model, if they fit: each is seen many times."""
    one = sum(x.numel() * x.element_size() for x, _ in feed.example.every_tensor())
    return feed.load(range(len(feed.images))) if one * len(feed.images) <= HELD_BYTES else None


def _compute_loss(feed: Feed, teacher: nn.Module, batch: Inputs, layer_weight: float) -> Tensor:
    # Listening lasts one step: what passes while the network is judged isn't held.
    with _listen(teacher, feed.model) as pairs:
        with torch.no_grad():
            said = run_forward(teacher, batch, type(teacher).__name__)
            target = feed.scores(said, batch.count).probabilities()
        known = {path: list(seen) for path, seen in pairs.items()}
        for seen in pairs.values():
            seen.clear()
        given = feed.scores(feed.run(batch), batch.count).probabilities()
    loss = diverge(given, require_same(target, given, feed))
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
