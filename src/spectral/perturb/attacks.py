"""Adversarial attacks of maintained libraries, on a network as a function of images in [0, 1]."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from spectral.arguments.values import as_integer, as_list
from spectral.errors import SpectralError, suggest
from spectral.intake import Feed
from spectral.measurement import insert_clusters
from spectral.network import Take, undisturbed
from spectral.perturb.evaluation import Classifier
from spectral.perturb.masking import Logits, find_masked, withhold_masked
from spectral.processes.ranks import shared
from spectral.sharing import Sharing

ATTACKS = ("fgsm", "pgd-50", "apgd-ce", "autoattack")
# Parts of AutoAttack that stand alone: its first, which costs about what pgd-100 does.
PARTS = ("apgd-ce",)
TOLERANCE = 1e-6  # of float32 pixels: x + ε − x isn't quite ε
CLOSE = 1e-3  # probabilities nearer than this may change their order with the batch
FEWEST_CLASSES = 4  # AutoAttack's targeted loss compares the best class with the third and the fourth


@shared
def measure_robustness(
    model: nn.Module,
    images: Any,
    attacks: str | Sequence[str] = ("fgsm", "pgd-50", "autoattack"),
    *,
    epsilon: float = 8 / 255,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    preprocessing: Any = None,
    logits: Take | None = None,
) -> pd.DataFrame:
    """Attack every image, so that the network leaves the class that it gives the clean image.

    Each attack is untargeted, in L∞, knows the weights, and runs against the network's own clean prediction.
    Where that is right this is the attack on the label; where it is wrong, no attack makes it right. So
    robust accuracy is the mean of ``robust_correct`` over labelled images, and ``robust`` is known without
    labels.

    - ``"fgsm"``: foolbox, one step of ε along the sign of the gradient, from the image itself.
    - ``"pgd-N"``: foolbox, N steps of 2.5 ε / N, from a random start, which the seed and the image's number
      alone determine, and from the image itself: an image is robust if both fail.
    - ``"apgd-ce"``: the first and cheapest part of AutoAttack alone, from its one random start.
    - ``"autoattack"``: pyautoattack, the standard version: APGD-CE, APGD-T, FAB-T and Square, each on what
      those before it left robust. Its draws depend on the batch too. Networks of fewer than 10 classes
      have each other class as a target.

    Args:
        model: classifier.
        images: as for `spectral.measure`, in [0, 1], tensors too; they are normalised after they were
            attacked.
        attacks: names from `ATTACKS`, and ``"pgd-N"`` for any N; one, or several.
        epsilon: the largest change of a pixel.
        batch_size: images per forward pass.
        seed: of the random starts and of what AutoAttack draws.
        progress: show a bar.
        preprocessing: as for `spectral.measure`.
        logits: as for `spectral.measure`.

    Returns:
        A row per image and attack: image, cluster, label (missing where unknown), attack, epsilon,
        prediction (of the clean image), adversarial (the class under attack), robust (both are the same),
        correct (the clean prediction is the label) and robust_correct (correct and robust), both missing
        where the label is unknown, and distance, the largest change of a pixel. ``robust`` and
        ``robust_correct`` are missing too, with a warning that counts them, for images that fgsm, pgd-N or
        apgd-ce couldn't attack, because the gradient of their loss, the cross-entropy, is exactly 0 there.

    Units:
        epsilon and distance: pixels in [0, 1].

    Raises:
        SpectralError: for an unknown attack or one that is there twice, an ε outside (0, 1], no images, a
            library that isn't installed, a network that is no classifier, has too few classes for the attack,
            hides its gradients from all attacks at all images, or answers differently when asked twice.

    Source:
        I. Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015 (FGSM); A. Madry et
        al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018 (PGD); F. Croce and
        M. Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks, ICML 2020 (AutoAttack).

    Example:
        >>> from spectral import load_images, load_model
        >>> net, pictures = load_model("bundled/resnet20@random"), load_images("synthetic", 32, 2)
        >>> table = measure_robustness(net, pictures, ["fgsm", "pgd-3"], progress=False)
        >>> table[["image", "attack"]].values.tolist()[1:3]
        [['synthetic/0001', 'fgsm'], ['synthetic/0000', 'pgd-3']]
    """
    chosen = as_list(attacks)
    batch_size = as_integer(batch_size, "measure_robustness: batch_size", least=1)
    _check_request(chosen, epsilon)
    seed = as_integer(seed, "measure_robustness: seed", least=0)
    attackers = {name: _find_attacker(name) for name in chosen}
    feed = Feed(model, images, caller="measure_robustness", preprocessing=preprocessing, logits=logits,
                pixels=True)  # fmt: skip
    classifier = Classifier(model, feed)
    images = classifier.images
    labels = feed.number_labels(images.labels)
    share = Sharing(feed, batch_size)

    def look() -> Iterator[pd.DataFrame]:
        for indices, batch in share.read(classifier.batches):
            facts = {
                "image": [images.ids[i] for i in indices],
                "label": pd.array([labels[i] for i in indices], dtype="Int64"),
            }
            target = _find_target(classifier, batch, indices, epsilon, seed)
            found = {name: _attack(name, attacker, target) for name, attacker in attackers.items()}
            yield pd.concat(
                [
                    pd.DataFrame({**facts, "attack": name, "epsilon": epsilon, **own})
                    for name, own in found.items()
                ]
            )

    # AutoAttack seeds torch's random numbers for all
    with (
        undisturbed(model), _frozen(model), torch.enable_grad(),
        share.bar("attacking", progress, leave=False) as bar,
    ):  # fmt: skip
        frames = share.gather(look(), bar)
    table = insert_clusters(pd.concat(frames, ignore_index=True), images)
    correct = table["prediction"] == table["label"]  # missing where the label is
    table.insert(8, "correct", correct)
    table.insert(9, "robust_correct", (correct & table["robust"]).mask(correct.isna()))
    table = withhold_masked(table)
    order = {name: i for i, name in enumerate(chosen)}
    return table.sort_values("attack", key=lambda c: c.map(order), kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Target:
    """What an attack gets: the network as a module, a batch in [0, 1] and the classes it is to leave."""

    classifier: Classifier
    logits: nn.Module
    signed: nn.Module  # the same, for attacks that use the signs of gradients alone
    images: Tensor
    classes: Tensor
    class_count: int
    indices: list[int]
    epsilon: float
    seed: int


@dataclass(frozen=True)
class _Attacker:
    """An attack: ``run`` returns its images, and for each whether the network left the class.

    One that sees nothing but gradients stands still where they are 0, at the image and at its random start.
    """

    run: Callable[[_Target], tuple[Tensor, Tensor]]
    gradients_alone: bool
    random_start: bool


def _check_request(attacks: Sequence[str], epsilon: float) -> None:
    for name in attacks:
        if name not in ATTACKS and not re.fullmatch(r"pgd-[1-9]\d*", name):
            raise SpectralError(
                f"measure_robustness: unknown attack {name!r}{suggest(name, ATTACKS)}; expected fgsm, pgd-N "
                f"with N steps, apgd-ce, or autoattack"
            )
    if not attacks or len(set(attacks)) < len(attacks):
        raise SpectralError(
            f"measure_robustness: expected attacks, each once, got {', '.join(attacks) or 'none'}"
        )
    if not (isinstance(epsilon, Real) and 0 < epsilon <= 1):
        raise SpectralError(
            f"measure_robustness: epsilon must be above 0 and at most 1 (pixels are in [0, 1]), got "
            f"{epsilon!r}"
        )


def _find_attacker(name: str) -> _Attacker:
    """Return the attack of a name; a library that is absent is missed here, before the first image."""
    if name == "autoattack" or name in PARTS:
        return _make_autoattack(_import_library("pyautoattack"), [name] if name in PARTS else None)
    steps = None if name == "fgsm" else int(name.removeprefix("pgd-"))
    return _make_gradient_attack(_import_library("foolbox"), steps)


def _import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SpectralError(
            f"attacks need the optional package {name}; install it with: pip install "
            f"'spectral-aliasing[attacks]'"
        ) from error


def _make_gradient_attack(foolbox: Any, steps: int | None) -> _Attacker:
    """FGSM, or PGD with so many steps."""

    def attack(target: _Target) -> tuple[Tensor, Tensor]:
        network = foolbox.PyTorchModel(target.signed, bounds=(0, 1), device=target.images.device)

        def run(method: Any) -> tuple[Tensor, Tensor]:
            _, images, left = method(network, target.images, target.classes, epsilons=target.epsilon)
            return images, left

        if steps is None:
            return run(foolbox.attacks.LinfFastGradientAttack())
        make = partial(
            foolbox.attacks.LinfProjectedGradientDescentAttack, rel_stepsize=2.5 / steps, steps=steps
        )
        method = make(random_start=True)
        # foolbox draws the starts of a batch in one go: with another batch size an image had another
        method.get_random_start = lambda x, epsilon: x + _draw_starts(target)
        images, left = run(method)
        others, also = run(make(random_start=False))
        return torch.where(left[:, None, None, None], images, others), left | also

    return _Attacker(attack, gradients_alone=True, random_start=steps is not None)


def _make_autoattack(pyautoattack: Any, parts: list[str] | None) -> _Attacker:
    """AutoAttack's standard version, or some of its parts."""

    def attack(target: _Target) -> tuple[Tensor, Tensor]:
        if parts is None and target.class_count < FEWEST_CLASSES:
            raise SpectralError(
                f"autoattack: its targeted loss needs a network of at least {FEWEST_CLASSES} classes, got "
                f"{target.class_count}; use fgsm, pgd-50 or apgd-ce"
            )
        with _quiet():
            ensemble = pyautoattack.AutoAttack(
                target.logits, eps=target.epsilon, seed=target.seed, device=target.images.device
            )
            ensemble.apgd.model = ensemble.apgd_targeted.model = target.signed  # FAB weighs its gradients
            ensemble.attacks_to_run = parts or ensemble.attacks_to_run  # with the standard version's settings
            for part in (ensemble.apgd_targeted, ensemble.fab):
                part.n_target_classes = min(part.n_target_classes, target.class_count - 1)
            images, classes = ensemble.run_standard_evaluation(
                target.images, target.classes, batch_size=len(target.images)
            )
        return images, classes != target.classes

    return _Attacker(attack, gradients_alone=parts is not None, random_start=True)


def _find_target(
    classifier: Classifier, batch: Tensor, indices: list[int], epsilon: float, seed: int
) -> _Target:
    """Classify a clean batch."""
    if not (batch.min() >= 0 and batch.max() <= 1):
        raise SpectralError(
            f"measure_robustness: expected images in [0, 1], got values from {batch.min():g} to "
            f"{batch.max():g}; attacks bound pixels, so give images that aren't normalised"
        )
    images = batch.float() if classifier.like is None else batch.to(classifier.like.device, torch.float32)
    with torch.no_grad():
        probabilities = classifier(images)
    classes = probabilities.argmax(-1)
    networks = Logits(classifier), Logits(classifier, whole=True)
    return _Target(classifier, *networks, images, classes, probabilities.shape[1], indices, epsilon, seed)


def _attack(name: str, attacker: _Attacker, target: _Target) -> dict[str, Any]:
    """Run an attack on a batch and check what it returns."""
    try:
        images, left = attacker.run(target)
    except SpectralError:
        raise
    except Exception as error:  # whatever a library meets inside a network of any kind
        reason = next(iter(str(error).splitlines()), "") or "no message"
        raise SpectralError(
            f"{name} failed on images {target.indices[0]} to {target.indices[-1]} "
            f"({type(error).__name__}: {reason})"
        ) from error
    distance = (images - target.images).abs().flatten(1).amax(1)
    inside = (distance <= target.epsilon + TOLERANCE).all() and (images - 0.5).abs().max() <= 0.5 + TOLERANCE
    if not inside:
        raise SpectralError(
            f"{name} returned an image outside its bounds (distance {distance.max():g} with ε = "
            f"{target.epsilon:g}, pixels from {images.min():g} to {images.max():g})"
        )
    found = _classify_again(name, target, images, left)
    return {
        "prediction": target.classes.cpu().numpy(),
        "adversarial": found.cpu().numpy(),
        "robust": (found == target.classes).cpu().numpy(),
        "distance": distance.double().clamp(max=target.epsilon).cpu().numpy(),
        "masked": _find_masked(attacker, target, (found == target.classes) & (distance == 0)).cpu().numpy(),
    }


def _find_masked(attacker: _Attacker, target: _Target, still: Tensor) -> Tensor:
    """Tell which of the images that an attack left as they were it couldn't attack."""
    masked = torch.zeros_like(still)
    if attacker.gradients_alone and still.any():
        images = target.images[still]
        starts = [(target.images + _draw_starts(target)).clamp(0, 1)[still]] if attacker.random_start else []
        masked[still] = find_masked(target.signed, images, target.classes[still], starts)
    return masked


def _classify_again(name: str, target: _Target, images: Tensor, left: Tensor) -> Tensor:
    """Return the classes of attacked images, and refuse those that the attack saw otherwise."""
    with torch.no_grad():
        probabilities = target.classifier(images)
    found, own = probabilities.argmax(-1), target.classes[:, None]
    margin = (probabilities.scatter(1, own, -1.0).amax(-1) - probabilities.gather(1, own)[:, 0]).abs()
    if ((left != (found != target.classes)) & (margin > CLOSE)).any():
        raise SpectralError(
            f"{name}: the network gives an attacked image another class when asked again; attacks need one "
            f"that draws nothing at random"
        )
    return found


def _draw_starts(target: _Target) -> Tensor:
    """Draw δ from [−ε, ε) for every pixel, each image from its own stream."""
    shape = tuple(target.images.shape[1:])
    draws = [np.random.default_rng([target.seed, i]).uniform(-1, 1, shape) for i in target.indices]
    return target.epsilon * torch.from_numpy(np.stack(draws)).to(target.images)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of the weights: the libraries call backward, which would add to them."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence AutoAttack's advice on defences, and keep the tracer (of a debugger) that it switches off."""
    logger, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
        sys.settrace(tracer)
