"""What a training consists of: recipes, some of which have a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from spectral.errors import SpectralError, check_choice
from spectral.perturb import NULA_TRAINING, NULA_TRAINING_V1, make_perturbation


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
    check_choice(name, RECIPES, "recipe")
    return replace(RECIPES[name], **changes)
