"""Attacks: closed forms on networks whose worst case is known, what they leave as it was, and errors."""

from __future__ import annotations

import logging
import sys

import foolbox
import numpy as np
import pandas as pd
import pytest
import torch
from networks import Pictures, unchanged
from torch import Tensor, nn

from spectral.errors import SpectralError, SpectralWarning
from spectral.perturb import ATTACKS, attacks, measure_robustness

EPSILON = 8 / 255
EVERY = pytest.mark.parametrize("attack", ATTACKS)


class Pair(nn.Module):
    """Linear, and in effect binary: the logits of eight of the ten classes are far below those of two."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(2, 60, generator=torch.Generator().manual_seed(0)) / 4
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(-(weights[0] - weights[1]).sum() / 2)  # no margin at grey

    def forward(self, x: Tensor) -> Tensor:
        two = x.flatten(1) @ self.weights.T
        return torch.cat([two[:, :1] + self.bias, two[:, 1:], two.new_full((len(x), 8), -40)], 1)


class FirstPixels(nn.Module):
    """The first pixels are the logits: a view of the images themselves."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        assert torch.isfinite(x).all()  # a library that writes −∞ into its logits would write it into these
        return x.flatten(1)[:, : self.classes]


class Ramp(nn.Module):
    """Flat below a mean of 0.5, so without gradients there; class 1 wins from a mean of 0.51 on."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        low = torch.full((len(x), 8), -1.0)
        return torch.cat([torch.full((len(x), 1), 0.01), torch.relu(mean - 0.5)[:, None], low], 1)


class Seen(nn.Module):
    """Keeps what it is given; the class is that of a linear network."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.detach().clone())
        return self.pair(x)


def uniform(*shape: int, low: float = 0.1, high: float = 0.9, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small_network(seed: int = 0, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


def measure(model: nn.Module, pixels: Tensor, attacks, **options) -> pd.DataFrame:
    return measure_robustness(model, Pictures(pixels), attacks, **{"progress": False, **options})


# Closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "pgd-10"])
def test_a_linear_network_is_robust_where_its_margin_exceeds_epsilon_times_the_l1_norm(attack):
    net = Pair()
    difference = (net.weights[0] - net.weights[1]).detach()
    # along the difference of the weights, at 0 to 2 times the margin that ε can overcome
    steps = torch.tensor([-1.9, -1.1, -0.9, -0.3, 0.2, 0.8, 0.95, 1.05, 1.3, 1.8])
    reach = EPSILON * difference.abs().sum()
    pixels = 0.5 + (steps * reach)[:, None] * difference / difference.square().sum()
    table = measure(net, pixels.view(-1, 3, 4, 5), attack)
    assert table["prediction"].tolist() == (steps < 0).long().tolist()
    assert table["robust"].tolist() == (steps.abs() > 1).tolist()
    assert table["adversarial"].tolist() == (steps < 0).logical_xor(steps.abs() < 1).long().tolist()
    np.testing.assert_allclose(table["distance"], EPSILON, rtol=1e-5)


@EVERY
def test_pixels_as_logits_are_robust_where_the_first_leads_by_two_epsilon(attack):
    """AutoAttack writes into logits, and these are the images; of 5 classes it targets every other one."""
    pixels = uniform(12, 3, 3, 3, high=0.5)
    lead = torch.linspace(0.2, 4, 12) * EPSILON
    flat = pixels.view(12, -1)
    flat[torch.arange(12), torch.arange(12) % 5] = flat[:, :5].amax(1) + lead
    before = pixels.clone()
    table = measure(FirstPixels(5), pixels, attack)
    two = flat[:, :5].topk(2).values
    assert table["prediction"].tolist() == flat[:, :5].argmax(1).tolist()
    moved = table["prediction"] != table["adversarial"]
    assert (table["adversarial"] == flat[:, :5].topk(2).indices[:, 1].numpy())[moved].all()
    assert table["robust"].tolist() == (two[:, 0] - two[:, 1] > 2 * EPSILON).tolist()
    assert 2 < table["robust"].sum() < 10
    assert table["distance"].max() <= EPSILON
    assert torch.equal(pixels, before)


def test_fgsm_is_one_step_along_the_sign_of_the_gradient_within_the_unit_interval():
    net, x = Seen(), uniform(6, 3, 4, 5, low=0, high=1)
    measure(net, x, "fgsm")
    leaf = x.clone().requires_grad_()
    logits = net.pair(leaf)
    nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    torch.testing.assert_close(net.batches[-1], (x + EPSILON * leaf.grad.sign()).clamp(0, 1))


def test_pgd_takes_steps_of_two_and_a_half_epsilon_over_n_from_a_random_start():
    net, x = Seen(), uniform(6, 3, 4, 5)
    measure(net, x, "pgd-10")
    start, second = net.batches[1:3]  # after the clean images
    assert (start - x).abs().max() == pytest.approx(EPSILON, rel=0.05)
    assert (start - x).mean().abs() < 0.1 * EPSILON
    moved = (second - start).abs()
    assert moved.max() == pytest.approx(0.25 * EPSILON, rel=1e-4)


def test_the_starts_depend_on_the_seed_and_the_image_alone():
    x = uniform(6, 3, 4, 5)
    nets = {(seed, size): Seen() for seed in (0, 1) for size in (2, 6)}
    for (seed, size), net in nets.items():
        measure(net, x, "pgd-1", seed=seed, batch_size=size)
    # per batch: clean, start, once more for the library's own check, and ours
    starts = {key: torch.cat(net.batches[1 :: len(net.batches) * key[1] // 6]) for key, net in nets.items()}
    assert torch.equal(starts[0, 2], starts[0, 6])
    drawn = (starts[0, 6] - x).flatten(1)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.6  # each image has its own
    assert not torch.equal(starts[0, 6], starts[1, 6])


# Networks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ordered() -> pd.DataFrame:
    return measure(small_network(), uniform(10, 3, 8, 8), ATTACKS, epsilon=0.02)


def test_stronger_attacks_leave_fewer_images_robust(ordered):
    left = ordered.groupby("attack")["robust"].sum()
    assert 0 < left["autoattack"] <= left["pgd-50"] <= left["fgsm"] < 10
    found = ordered.set_index(["attack", "image"])["robust"]
    assert (found["autoattack"] <= found["apgd-ce"]).all()  # its first part: what that moves, it moves
    assert left["autoattack"] < left["fgsm"]


def test_the_table_has_a_row_per_image_and_attack_in_the_order_asked_for(ordered):
    assert list(ordered.columns) == [
        "image", "cluster", "label", "attack", "epsilon", "prediction", "adversarial", "robust", "correct",
        "robust_correct", "distance",
    ]  # fmt: skip
    assert ordered["attack"].tolist() == [name for name in ATTACKS for _ in range(10)]
    assert ordered["image"].tolist() == [f"p{i}" for i in range(10)] * len(ATTACKS)
    assert (ordered["robust"] == (ordered["prediction"] == ordered["adversarial"])).all()
    assert ordered.groupby("image")["prediction"].nunique().eq(1).all()
    assert ordered["distance"].between(0, 0.02).all()
    assert ordered["epsilon"].eq(0.02).all()


def test_the_same_seed_gives_the_same_table():
    net, x = small_network(), uniform(8, 3, 8, 8)
    tables = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        tables.append(measure(net, x, ["pgd-5", "autoattack"], epsilon=0.2, batch_size=5))
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["adversarial"].nunique() > 1


def test_a_wrong_prediction_is_not_robust_whatever_the_attack_does():
    pixels = torch.zeros(5, 3, 2, 2)
    pixels[:, 0, 0, 0] = torch.tensor([0.5, 0.5, 0.5, 0.01, 0.01])  # class 0; the last two can be moved
    images = Pictures(pixels, [0, 3, None, 0, None])
    table = measure_robustness(FirstPixels(), images, ["fgsm"], progress=False)
    assert table["robust"].tolist() == [True, True, True, False, False]
    assert table["correct"].tolist() == [True, False, pd.NA, True, pd.NA]
    assert table["robust_correct"].tolist() == [True, False, pd.NA, False, pd.NA]
    assert table["robust_correct"].mean() == pytest.approx(1 / 3)
    assert str(table["label"].dtype) == "Int64"
    assert [str(table[name].dtype) for name in ("correct", "robust_correct")] == ["boolean"] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_have_gradients_where_the_caller_keeps_none(mode):
    net, pixels = small_network(), uniform(2, 3, 8, 8)
    with mode():
        found = measure(net, pixels, "fgsm")
    pd.testing.assert_frame_equal(found, measure(net, pixels, "fgsm"))


@pytest.mark.parametrize("attack", ["fgsm", "pgd-3", "autoattack"])
def test_the_network_and_the_random_numbers_stay_as_they_were(attack):
    net = small_network().train()
    net[0].weight.requires_grad_(False)
    net[1].eval()
    torch.manual_seed(7)
    np.random.seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    with unchanged(net):
        measure(net, uniform(2, 3, 8, 8), attack, epsilon=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@EVERY
def test_double_precision_networks_are_attacked(attack):
    net = small_network().double()
    table = measure(net, uniform(2, 3, 8, 8), attack, epsilon=0.5)
    assert not table["robust"].any()


def test_autoattack_is_quiet_and_leaves_tracers_and_loggers_alone(capfd, caplog):
    """The logits are a distribution, of which the library warns."""
    pixels = torch.zeros(2, 3, 3, 3)
    pixels.view(2, -1)[:, :10] = torch.linspace(0.05, 0.15, 10)

    def tracer(*arguments: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        measure(FirstPixels(), pixels, "autoattack", epsilon=0.9)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not logging.getLogger("auto-attack").disabled


# Bad input ------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Draws its class at random, evaluated or not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] + 10 * torch.randn(len(x), 10)


class Detached(nn.Module):
    """Has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :10]


SOME = uniform(4, 3, 4, 4)


@pytest.mark.parametrize(
    ("model", "pixels", "options", "message"),
    [
        (Pair(), SOME, {"attacks": ["fgms"]}, "unknown attack 'fgms'; nearest: 'fgsm'; expected fgsm, pgd-N"),
        (Pair(), SOME, {"attacks": ["pgd-0"]}, "unknown attack 'pgd-0'"),
        (Pair(), SOME, {"attacks": []}, "expected attacks, each once, got none"),
        (Pair(), SOME, {"attacks": ["fgsm", "fgsm"]}, "expected attacks, each once, got fgsm, fgsm"),
        (Pair(), SOME, {"epsilon": 0}, r"epsilon must be above 0 and at most 1 .*, got 0"),
        (Pair(), SOME, {"epsilon": 8}, r"epsilon must be above 0 and at most 1 .*, got 8"),
        (Pair(), SOME, {"epsilon": "8/255"}, r"epsilon must be above 0 and at most 1 .*, got '8/255'"),
        (Pair(), SOME, {"seed": -1}, "measure_robustness: seed must be a whole number ≥ 0, got -1"),
        (Pair(), SOME, {"seed": 1.5}, "measure_robustness: seed must be a whole number ≥ 0, got 1.5"),
        (Pair(), SOME[:0], {}, "there are no images"),
        (FirstPixels(), 2 * SOME, {}, r"expected images in \[0, 1\], got values from 0\.\d+ to 1\.\d+"),
        (nn.Identity(), SOME, {}, r"expected a classifier with logits of shape \(\d, K ≥ 2\)"),
        (FirstPixels(3), SOME, {"attacks": "autoattack"}, "a network of at least 4 classes, got 3; use fgsm"),
        (Restless(), SOME.repeat(8, 1, 1, 1), {}, "fgsm: the network gives an attacked image another class"),
        (Detached(), SOME, {}, r"fgsm failed on images 0 to 3 \(RuntimeError: element 0 of tensors does not"),
        (Detached(), SOME, {"attacks": "autoattack"}, r"autoattack failed on images 0 to 3 \(RuntimeError: "),
    ],
)
def test_bad_input_is_explained(model, pixels, options, message):
    with pytest.raises(SpectralError, match=message):
        measure(model, pixels, **{"attacks": "fgsm", **options})


@pytest.mark.parametrize(("attack", "package"), [("pgd-50", "foolbox"), ("autoattack", "pyautoattack")])
def test_an_absent_library_is_named_with_its_command(attack, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SpectralError, match=rf"package {package}; install it with: pip install '.*\[attacks\]'"
    ):
        measure(FirstPixels(), SOME, attack)


@pytest.mark.parametrize("shift", [2 * EPSILON, -0.2])
def test_an_image_outside_its_bounds_is_refused(shift, monkeypatch):
    class Wild:
        def __call__(self, network, images, classes, epsilons):
            return images, images + shift, torch.zeros(len(images), dtype=torch.bool)

    monkeypatch.setattr(foolbox.attacks, "LinfFastGradientAttack", Wild)
    with pytest.raises(
        SpectralError, match=r"fgsm returned an image outside its bounds \(distance 0\.\d+ with ε"
    ):
        measure(FirstPixels(), SOME, "fgsm", epsilon=EPSILON if shift > 0 else 1.0)


def test_a_failure_leaves_the_network_as_it_was():
    net = nn.Sequential(Pair(), nn.Dropout(0.5), Detached()).train()
    with unchanged(net), pytest.raises(SpectralError, match="fgsm failed"):
        measure(net, uniform(2, 3, 4, 5), "fgsm")


def start_at(start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attacks, "_draw_starts", lambda target: torch.full_like(target.images, start * target.epsilon)
    )


@pytest.mark.parametrize(
    ("pixel", "start"),
    [(0.505, -0.9), (0.495, 0.9)],
    ids=["only from the image itself", "only from the random start"],
)
def test_pgd_starts_from_the_image_and_from_a_random_place(pixel, start, monkeypatch):
    start_at(start, monkeypatch)
    images = Pictures(torch.full((2, 3, 4, 4), pixel))
    table = measure_robustness(Ramp(), images, "pgd-10", epsilon=0.03, progress=False)
    assert table["robust"].tolist() == [False] * 2


# Gradients that are 0 --------------------------------------------------------------------------------------


class Rounded(nn.Module):
    """A network that sees 8 bits: it gives no gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 255).round() / 255)


class Scaled(nn.Module):
    """The same classes at the same places, from logits so many times as large."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


@pytest.mark.parametrize("attack", ["fgsm", "pgd-3", "apgd-ce"])
@pytest.mark.parametrize("change", [Rounded, lambda net: Scaled(net, 1e6)], ids=["rounded", "scaled"])
def test_a_network_that_hides_its_gradients_from_every_attack_is_refused(attack, change):
    net = change(small_network())
    with unchanged(net), pytest.raises(SpectralError, match=r"no image could be attacked.*hides.*autoattack"):
        measure(net, uniform(5, 3, 8, 8), attack, batch_size=2)


def test_pgd_attacks_nothing_where_both_starts_are_flat(monkeypatch):
    start_at(-0.9, monkeypatch)
    with pytest.raises(SpectralError, match="no image could be attacked"):
        measure(Ramp(), torch.full((2, 3, 4, 4), 0.495), "pgd-10", epsilon=0.03)


def test_images_that_no_gradient_reaches_are_neither_robust_nor_not_and_are_counted():
    pixels = torch.full((5, 3, 4, 4), 0.495)  # flat
    pixels[3:] = 0.505  # moved to class 1
    images = Pictures(pixels, [0, 3, None, 0, 3])
    with pytest.warns(SpectralWarning, match=r"couldn't be attacked: fgsm 3 of 5; .*'robust' is missing"):
        table = measure_robustness(Ramp(), images, ["fgsm"], epsilon=0.03, batch_size=2, progress=False)
    assert table["robust"].tolist() == [pd.NA] * 3 + [False] * 2
    assert table["robust_correct"].tolist() == [pd.NA] * 3 + [False] * 2
    assert table["correct"].tolist() == [True, False, pd.NA, True, False]
    assert table["adversarial"].tolist() == [0, 0, 0, 1, 1]
    assert str(table["robust"].dtype) == "boolean"


def test_what_needs_no_gradients_is_kept_where_others_fail():
    net, x = Rounded(FirstPixels()), uniform(4, 3, 3, 3)
    with pytest.warns(SpectralWarning, match=r"couldn't be attacked: fgsm 4 of 4; the gradient"):
        table = measure(net, x, ["fgsm", "autoattack"], epsilon=0.9).set_index("attack")
    assert table.loc["fgsm", "robust"].isna().all()
    assert table.loc["autoattack", "robust"].tolist() == [False] * 4


class Above(nn.Module):
    """Class 0, at any brightness; class 1 is nearer where it is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full((len(x),), 2.0), x.mean((1, 2, 3))], 1)


@pytest.mark.parametrize("attack", ["fgsm", "apgd-ce"])
def test_an_image_that_was_attacked_in_vain_is_robust(attack):
    """Every step leads out of [0, 1], so that the image stays as it was although there is a gradient."""
    table = measure(Above(), torch.ones(2, 3, 4, 4), attack)
    assert table["distance"].tolist() == [0, 0]
    assert table["robust"].tolist() == [True, True]
    assert str(table["robust"].dtype) == "bool"


@pytest.mark.parametrize("attack", ["fgsm", "pgd-3", "apgd-ce"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_gradients_survive_the_precision_of_the_network(attack, dtype):
    """The gradient of the cross-entropy is some 1e-9 where the margin is 20: 0 in half precision."""
    net, x = Scaled(small_network(), 1), uniform(4, 3, 8, 8)
    with torch.no_grad():
        top = net.eval()(x).topk(2).values
        net.factor = float(30 / (top[:, 0] - top[:, 1]).min())
    table = measure(net.to(dtype), x, attack, epsilon=0.3)
    assert table["robust"].tolist() == [False] * 4


def test_enlarged_gradients_alter_no_attack():
    """They differ by powers of 2 alone: the images are the same to the bit."""
    net, x = Seen(), uniform(6, 3, 4, 5)
    measure(net, x, "pgd-2")
    leaf = net.batches[1].clone().requires_grad_()  # where the first step begins
    logits = net.pair(leaf)
    with torch.no_grad():
        classes = net.pair(x).argmax(1)
    nn.functional.cross_entropy(logits, classes, reduction="sum").backward()
    moved = leaf.detach() + 1.25 * EPSILON * leaf.grad.sign()
    expected = (x + (moved - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    assert torch.equal(net.batches[2], expected)
