"""The training recipe: augmentation, resuming bit for bit, refusals, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

import spectral
from spectral.errors import SpectralError, SpectralWarning
from spectral.models import load_model
from spectral.models.architectures import build
from spectral.numerics.memory import move_for_training
from spectral.perturb import Decimate, make_perturbation
from spectral.training import (
    RECIPES,
    STATE_NAME,
    LabelledImages,
    Normalisation,
    Recipe,
    attack_batch,
    augment,
    evaluate,
    find_recipe,
    normalize,
    train,
)
from spectral.training import loop as training

QUICK = settings(max_examples=40)
CLASSES = tuple("abcdefghij")
SHORT = Recipe(epochs=3, batch_size=8, precision="fp32", seed=3)


def random_set(count: int = 16, size: int = 8, data_id: str = "random") -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(count) % 10, CLASSES, data_id)


def two_colours(count: int = 64, size: int = 8) -> LabelledImages:
    """Red images are class 0, blue ones class 1, all a little noisy."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    images[labels == 0, 0] += 180
    images[labels == 1, 2] += 180
    return LabelledImages(images, labels, CLASSES, "two colours")


class Tiny(nn.Module):
    """Trains in milliseconds and has what a resume must carry: statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training, "build", lambda name: Tiny())


def run(architecture, data, out, recipe=SHORT, **options):
    return train(architecture, data, options.pop("test_set", data), out, recipe, progress=False, **options)


def assert_same(a, b):
    assert a["history"] == b["history"]
    theirs = b["model"].state_dict()
    for name, value in a["model"].state_dict().items():
        assert torch.equal(value, theirs[name]), name


class KilledError(RuntimeError):
    """Stands for the process's end."""


class TestResume:
    @pytest.mark.parametrize("architecture", ["resnet20", "nula-w32"])
    def test_equals_the_uninterrupted_run_bit_for_bit(self, architecture, tmp_path, monkeypatch):
        data, recipe = random_set(), Recipe(epochs=2, batch_size=8, precision="fp32")
        whole = run(architecture, data, tmp_path / "whole", recipe)
        self.kill_in_epoch(2, monkeypatch)
        with pytest.raises(KilledError):
            run(architecture, data, tmp_path / "broken", recipe)
        monkeypatch.undo()
        torch.manual_seed(12345)  # a fresh process is in some other random state
        resumed = run(architecture, data, tmp_path / "broken", recipe)
        assert [row["epoch"] for row in resumed["history"]] == [1, 2]
        assert_same(resumed, whole)

    @staticmethod
    def kill_in_epoch(number, monkeypatch):
        """Die after the epoch's optimiser steps, before its state is stored."""
        count = iter(range(1, 100))

        def dying(*args, **given):
            if next(count) == number:
                raise KilledError
            return evaluate(*args, **given)

        monkeypatch.setattr(training, "evaluate", dying)

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"perturb": ("clean", "decimate-2", "checkerboard-0.05")},
            {"attack": "fgsm"},
            {"attack": "pgd", "attack_steps": 2, "schedule": "step"},
            {"ema": 0.9},
        ],
        ids=["clean", "perturbed", "fgsm", "pgd", "averaged"],
    )
    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_after_a_kill_in_any_epoch(self, epoch, changes, tiny, tmp_path, monkeypatch):
        recipe = dataclasses.replace(SHORT, **changes)
        whole = run("resnet20", random_set(), tmp_path / "whole", recipe)
        with monkeypatch.context() as patch:
            self.kill_in_epoch(epoch, patch)
            with pytest.raises(KilledError):
                run("resnet20", random_set(), tmp_path / "broken", recipe)
        assert (tmp_path / "broken" / STATE_NAME).exists() == (epoch > 1)
        assert_same(run("resnet20", random_set(), tmp_path / "broken", recipe), whole)

    def test_after_a_kill_while_the_state_is_written(self, tiny, tmp_path, monkeypatch):
        whole = run("resnet20", random_set(), tmp_path / "whole")
        replace, count = os.replace, iter(range(1, 100))

        def dying(source, target):
            if next(count) == 2:
                raise KilledError
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            with pytest.raises(KilledError):
                run("resnet20", random_set(), tmp_path / "broken")
        state = torch.load(tmp_path / "broken" / STATE_NAME, weights_only=True)
        assert state["epoch"] == 1
        assert_same(run("resnet20", random_set(), tmp_path / "broken"), whole)

    def test_a_finished_run_trains_no_more(self, tiny, tmp_path, monkeypatch):
        whole = run("resnet20", random_set(), tmp_path)

        def refuse(*args):
            raise AssertionError("trained again")

        monkeypatch.setattr(training, "draw_batches", refuse)
        assert_same(run("resnet20", random_set(), tmp_path), whole)

    def test_same_seed_same_network_and_another_seed_another(self, tiny, tmp_path):
        a = run("resnet20", random_set(), tmp_path / "a")
        torch.rand(7)
        assert_same(run("resnet20", random_set(), tmp_path / "b"), a)
        other = run(
            "resnet20", random_set(), tmp_path / "c", Recipe(epochs=3, batch_size=8, precision="fp32", seed=4)
        )
        assert not torch.equal(other["model"].fc.weight, a["model"].fc.weight)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"recipe": replace(SHORT, epochs=4)}, "a run with recipe = {'epochs': 3}, not {'epochs': 4};"),
            ({"recipe": replace(SHORT, seed=4)}, "a run with recipe = {'seed': 3}, not {'seed': 4};"),
            ({"architecture": "nula"}, "a run with architecture = resnet20, not nula"),
            ({"data": random_set(data_id="other")}, "a run with data_id = random, not other"),
        ],
    )
    def test_refuses_another_run_in_the_same_folder(self, change, sentence, tiny, tmp_path):
        first = {"architecture": "resnet20", "data": random_set(), "out": tmp_path}
        run(**first)
        before = (tmp_path / STATE_NAME).read_bytes()
        with pytest.raises(SpectralError, match=f"train: .*{sentence}.*choose another folder or delete it"):
            run(**{**first, **change})
        assert (tmp_path / STATE_NAME).read_bytes() == before


class TestLearning:
    def test_learns_two_colours(self, tmp_path):
        data = two_colours()
        result = run(
            "resnet20", data, tmp_path, Recipe(epochs=4, batch_size=16, max_lr=0.05, precision="fp32")
        )
        losses = [row["loss"] for row in result["history"]]
        assert losses[-1] < 0.1 * losses[0]
        assert result["test_accuracy"] == result["history"][-1]["test_accuracy"] == 1.0

    def test_the_test_set_chooses_nothing(self, tiny, tmp_path):
        a = run("resnet20", random_set(), tmp_path / "a")
        b = run("resnet20", random_set(), tmp_path / "b", test_set=two_colours())
        for name, value in a["model"].state_dict().items():
            assert torch.equal(value, b["model"].state_dict()[name])

    def test_a_loss_that_is_not_finite_stops_with_a_sentence(self, tiny, tmp_path):
        run("resnet20", random_set(), tmp_path / "good")
        recipe = Recipe(epochs=3, batch_size=8, max_lr=1e38, precision="fp32")
        with pytest.raises(
            SpectralError, match=r"train: the loss of resnet20 became (nan|inf).*lower max_lr \(now 1e\+38\)"
        ):
            run("resnet20", random_set(), tmp_path / "bad", recipe)

    def test_metadata_is_json_and_the_model_is_ready(self, tiny, tmp_path):
        result = run("resnet20", random_set(size=10), tmp_path)
        model = result.pop("model")
        assert not any(module.training for module in model.modules())
        assert all(p.device.type == "cpu" and p.is_contiguous() for p in model.parameters())
        described = json.loads(json.dumps(result))
        assert described["architecture"] == "resnet20"
        assert described["family"] == "strided"
        assert described["size"] == [10, 10]
        assert described["classes"] == list(CLASSES)
        assert (described["epochs"], described["seed"], described["precision"]) == (3, 3, "fp32")
        assert described["recipe"]["batch_size"] == 8
        assert described["test_images"] == 16
        assert len(described["history"]) == 3

    def test_bf16_multiplies_in_half_and_keeps_float32_weights(self, tiny, tmp_path):
        result = run(
            "resnet20",
            random_set(),
            tmp_path / "half",
            Recipe(epochs=1, batch_size=8, precision="bf16", seed=3),
        )
        exact = run(
            "resnet20",
            random_set(),
            tmp_path / "full",
            Recipe(epochs=1, batch_size=8, precision="fp32", seed=3),
        )
        assert result["precision"] == "bf16"
        weight = result["model"].fc.weight
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, exact["model"].fc.weight)
        torch.testing.assert_close(weight, exact["model"].fc.weight, rtol=0, atol=0.02)

    @pytest.mark.parametrize(
        ("count", "batch_size", "epochs"), [(16, 8, 2), (16, 4, 1), (16, 16, 4), (16, 16, 1), (17, 8, 1)]
    )
    def test_very_short_schedules(self, count, batch_size, epochs, tiny, tmp_path):
        result = run(
            "resnet20",
            random_set(count),
            tmp_path,
            Recipe(epochs=epochs, batch_size=batch_size, precision="fp32"),
        )
        assert len(result["history"]) == epochs

    def test_without_momentum(self, tiny, tmp_path):
        assert (
            len(
                run("resnet20", random_set(), tmp_path, Recipe(epochs=1, batch_size=8, momentum=0))["history"]
            )
            == 1
        )

    def test_the_rate_rises_to_its_maximum_and_falls(self, tiny, tmp_path, monkeypatch):
        rates = []
        step = torch.optim.SGD.step

        def recording(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return step(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.SGD, "step", recording)
        run("resnet20", random_set(), tmp_path, Recipe(epochs=10, batch_size=8, max_lr=0.1, precision="fp32"))
        peak = rates.index(max(rates))
        assert len(rates) == 20
        assert max(rates) == pytest.approx(0.1)
        assert peak == 4  # a quarter of twenty steps, counted from the first
        assert rates[:peak] == sorted(rates[:peak])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 1e-5

    def test_unknown_architecture(self, tmp_path):
        with pytest.raises(SpectralError, match="unknown architecture 'resnet2'; nearest: 'resnet20'"):
            run("resnet2", random_set(), tmp_path)

    def test_evaluate_counts_correct_answers_over_all_batches(self):
        data = random_set(23)

        class Oracle(nn.Module):
            """Right for the first 20 images, wrong for the last three."""

            def __init__(self) -> None:
                super().__init__()
                self.seen = 0

            def forward(self, x):
                assert not self.training
                answer = torch.arange(self.seen, self.seen + len(x))
                self.seen += len(x)
                return nn.functional.one_hot((answer + (answer >= 20)) % 10, 10).float()

        assert evaluate(Oracle(), data, torch.device("cpu"), batch_size=5) == pytest.approx(20 / 23)

    def test_evaluation_sees_normalized_images(self):
        class Probe(nn.Module):
            def forward(self, x):
                torch.testing.assert_close(x, (data.images.float() / 255 - 0.5) / 0.5)
                return torch.zeros(len(x), 10)

        data = random_set()
        assert evaluate(Probe(), data, torch.device("cpu")) == pytest.approx(
            2 / 16
        )  # labels 0: images 0 and 10


class TestPerturbed:
    def test_each_image_goes_through_one_of_them_and_all_come_up(self):
        data = random_set(64)
        recipe = Recipe(perturb=("clean", "decimate-2"), crop_padding=0, flip=False, batch_size=64)
        images = normalize(data.images)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        ((batch, labels),) = training.draw_batches(data.images, data.labels, recipe, 0)
        torch.testing.assert_close(labels, data.labels[order])
        clean = (batch - images[order]).abs().amax((1, 2, 3)) < 1e-6
        decimated = (batch - Decimate(2)(images[order])).abs().amax((1, 2, 3)) < 1e-6
        assert (clean ^ decimated).all()
        assert 16 <= clean.sum() <= 48

    def test_a_name_that_stands_twice_is_drawn_twice_as_often(self):
        data = random_set(600)
        recipe = Recipe(perturb=("clean", "clean", "decimate-2"), crop_padding=0, flip=False, batch_size=600)
        ((batch, _),) = training.draw_batches(data.images, data.labels, recipe, 0)
        decimated = (batch - Decimate(2)(batch)).abs().amax((1, 2, 3)) < 1e-6
        assert 160 < decimated.sum() < 240

    def test_the_draw_depends_on_the_epoch(self):
        data, recipe = random_set(), Recipe(perturb=("clean", "decimate-2"), crop_padding=0, flip=False)
        first, second = (
            next(training.draw_batches(data.images, data.labels, recipe, epoch)) for epoch in (0, 1)
        )
        places = [batch[labels.argsort()] for batch, labels in (first, second)]
        assert not torch.equal(*places)

    @pytest.mark.parametrize(
        ("name", "rate", "shares"),
        [
            ("nula-robust", 1e-3, {"resize-0.2:0.6": 1 / 3, "decimate-2": 1 / 3, "blur-decimate-2": 1 / 3}),
            ("nula-robust-v1", 5e-5, {"resize-0.2:0.45": 0.5, "decimate-2": 0.3, "blur-decimate-2": 0.2}),
        ],
    )
    def test_the_cards_name_the_robust_recipes(self, name, rate, shares):
        recipe = RECIPES[name]
        names = Counter(make_perturbation(name).name for name in recipe.perturb)
        altered = len(recipe.perturb) - names.pop("clean")
        assert {kind: count / altered for kind, count in names.items()} == pytest.approx(shares)
        assert altered / len(recipe.perturb) == pytest.approx(2 / 3)
        assert recipe.max_lr == rate
        assert (recipe.jitter, recipe.warmup_epochs) == ((0.05, 2) if name.endswith("v1") else (0, None))

    def test_jitter_moves_each_pixel_within_its_bound_and_comes_first(self):
        data = replace(random_set(64), images=torch.full((64, 3, 8, 8), 128, dtype=torch.uint8))
        recipe = Recipe(jitter=0.05, crop_padding=0, flip=False)
        (batch, _), *_ = training.draw_batches(data.images, data.labels, recipe, 0)
        moved = batch / 2 + 0.5 - 128 / 255
        assert moved.abs().max() <= 0.05 + 1e-6
        assert moved.std() == pytest.approx(0.05 / 3**0.5, rel=0.05)
        both = replace(recipe, perturb=("decimate-2",))
        (batch, _), *_ = training.draw_batches(data.images, data.labels, both, 0)
        torch.testing.assert_close(batch, Decimate(2)(batch))  # noise after it would be seen


class TestAttacked:
    @staticmethod
    def linear(seed=0):
        """Logits ±w·x for classes 0 and 1: the worst change of a pixel is known."""
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        with torch.no_grad():
            net[1].weight[1] = -net[1].weight[0]
        return net

    @pytest.mark.parametrize("attack", ["fgsm", "pgd"])
    def test_finds_the_optimum_of_a_linear_network(self, attack):
        net, epsilon = self.linear(), 0.03
        images, labels = torch.rand(6, 3, 4, 4) - 0.5, torch.tensor([0, 1] * 3)
        recipe = Recipe(attack=attack, epsilon=epsilon, attack_step=2 * epsilon)
        moved = attack_batch(net, images, labels, recipe)
        sign = net[1].weight[0].detach().sign().view(1, 3, 4, 4)
        away = torch.where(labels.view(-1, 1, 1, 1) == 0, -sign, sign)
        torch.testing.assert_close(moved, images + 2 * epsilon * away)

    @QUICK
    @given(st.floats(0.001, 0.3), st.sampled_from(["fgsm", "pgd"]), st.integers(0, 1000))
    def test_stays_within_epsilon_and_within_the_pixels_range(self, epsilon, attack, seed):
        torch.manual_seed(seed)
        images = torch.rand(4, 3, 4, 4) * 2 - 1
        moved = attack_batch(self.linear(seed), images, torch.tensor([0, 1, 0, 1]),
                             Recipe(attack=attack, epsilon=epsilon, attack_steps=3))  # fmt: skip
        assert (moved - images).abs().max() <= 2 * epsilon + 1e-6
        assert moved.abs().max() <= 1

    def test_another_normalisation_attacks_the_same_pixels(self):
        other = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
        pixels, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 0, 1])
        recipe = Recipe(attack="pgd", epsilon=0.03)
        net = self.linear()
        std = torch.tensor(other.std).view(3, 1, 1)
        twin = copy.deepcopy(net)  # the same function of the pixels
        with torch.no_grad():
            twin[1].weight.mul_((std / 0.5).expand(3, 4, 4).flatten())
        moved = []
        for network, normalise in ((net, Normalisation()), (twin, other)):
            torch.manual_seed(1)
            x = attack_batch(network, normalise(pixels), labels, recipe, normalise=normalise)
            moved.append(x * torch.tensor(normalise.std).view(3, 1, 1))
        means = [torch.tensor(n.mean).view(3, 1, 1) for n in (Normalisation(), other)]
        torch.testing.assert_close(moved[0] + means[0], moved[1] + means[1])

    def test_more_steps_raise_the_loss_more(self):
        torch.manual_seed(0)
        net = build("resnet20").eval()
        images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
        losses = []
        for recipe in (Recipe(attack="fgsm"), Recipe(attack="pgd", attack_steps=10)):
            torch.manual_seed(1)
            moved = attack_batch(net, images, labels, recipe)
            losses.append(nn.functional.cross_entropy(net(moved), labels).item())
        assert nn.functional.cross_entropy(net(images), labels).item() < losses[0] < losses[1]

    def test_leaves_no_gradients_on_the_weights(self):
        net = self.linear()
        attack_batch(net, torch.zeros(1, 3, 4, 4), torch.tensor([0]), Recipe(attack="pgd"))
        assert all(p.grad is None and p.requires_grad for p in net.parameters())


class TestAverage:
    def test_what_is_tested_and_returned_is_the_average(self, tiny, tmp_path, monkeypatch):
        tested = []
        monkeypatch.setattr(training, "evaluate", lambda model, *args, **given: tested.append(model) or 0.5)
        plain = run("resnet20", random_set(), tmp_path / "plain")["model"].fc.weight
        recipe = dataclasses.replace(SHORT, ema=0.99)
        result = run("resnet20", random_set(), tmp_path / "average", recipe)
        torch.manual_seed(SHORT.seed)
        start = Tiny().fc.weight
        averaged = result["model"].fc.weight
        assert tested[-1] is result["model"]
        assert 0 < (averaged - start).norm() < 0.2 * (plain - start).norm()  # 6 steps of 0.99


class TestSchedules:
    def test_steps_fall_to_a_tenth_at_one_half_and_at_three_quarters(self, tiny, tmp_path, monkeypatch):
        rates = []
        step = torch.optim.SGD.step
        monkeypatch.setattr(
            torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)
        )
        run("resnet20", random_set(), tmp_path, Recipe(epochs=4, batch_size=8, max_lr=0.1, schedule="step"))
        assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)

    @pytest.mark.parametrize("warmup", [None, 1, 2])
    def test_the_rate_rises_for_the_epochs_of_warm_up(self, warmup, tiny, tmp_path, monkeypatch):
        rates = []
        step = torch.optim.AdamW.step
        monkeypatch.setattr(
            torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)
        )
        recipe = Recipe(epochs=8, batch_size=4, optimizer="adamw", warmup_epochs=warmup, max_lr=0.1)
        run("resnet20", random_set(), tmp_path, recipe)
        assert max(rates) == pytest.approx(0.1)
        assert rates.index(max(rates)) == 4 * (warmup or 2) - 1

    def test_the_papers_recipe(self):
        recipe = find_recipe("am-paper")
        assert (recipe.epochs, recipe.batch_size, recipe.max_lr) == (200, 512, 0.1)
        assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.9, 5e-4, "step")

    def test_an_unknown_recipe(self):
        with pytest.raises(SpectralError, match="unknown recipe 'fast-fgms'; nearest: 'fast-fgsm'"):
            find_recipe("fast-fgms")


class TestBatches:
    @QUICK
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.booleans(), st.integers(0, 99))
    def test_augment_equals_pad_crop_mirror(self, height, width, pad, flip, seed):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        dy, dx = (int(v) for v in rng.integers(0, 2 * pad + 1, 2))
        padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)], mode="reflect")
        window = padded[:, dy : dy + height, dx : dx + width]
        expected = Image.fromarray(np.ascontiguousarray(window.transpose(1, 2, 0)))
        expected = np.asarray(ImageOps.mirror(expected) if flip else expected).transpose(2, 0, 1)
        got = augment(torch.from_numpy(image)[None], torch.tensor([[dy, dx]]), torch.tensor([flip]), pad)
        np.testing.assert_array_equal(got[0].numpy(), expected)
        assert got.dtype == torch.uint8

    def test_each_image_has_its_own_shift(self):
        images = random_set(3).images
        shifts, flips = torch.tensor([[0, 2], [1, 1], [2, 0]]), torch.tensor([True, False, True])
        together = augment(images, shifts, flips, 1)
        assert torch.equal(together[1], images[1])  # shift = pad, no mirror: the image itself
        for i in range(3):
            assert torch.equal(
                together[i : i + 1], augment(images[i : i + 1], shifts[i : i + 1], flips[i : i + 1], 1)
            )

    def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(self):
        data = random_set(20)
        labels = torch.arange(20)
        recipe = Recipe(batch_size=8, crop_padding=0, flip=False)
        orders = []
        for epoch in (0, 0, 1):
            batches = list(training.draw_batches(data.images, labels, recipe, epoch))
            assert [len(x) for x, _ in batches] == [8, 8, 4]
            order = torch.cat([target for _, target in batches])
            assert sorted(order.tolist()) == list(range(20))
            assert torch.equal(torch.cat([x for x, _ in batches]), normalize(data.images[order]))
            orders.append(order)
        assert torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], orders[2])

    def test_crops_and_mirrors_vary_within_an_epoch(self):
        image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 3, 8, 8)
        recipe = Recipe(batch_size=200, crop_padding=1)
        ((batch, _),) = training.draw_batches(image, torch.zeros(200), recipe, 0)
        assert (
            len(batch.flatten(1).unique(dim=0)) == 3 * 3 * 2
        )  # every shift of every orientation, seen once at least

    def test_normalize(self):
        x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
        assert normalize(x).flatten().tolist() == pytest.approx([-1, -0.6, 1])


class TestBadInput:
    @pytest.mark.parametrize(
        ("field", "value", "sentence"),
        [
            ("epochs", 0, "epochs must be > 0, got 0"),
            ("batch_size", 0, "batch_size must be > 0, got 0"),
            ("max_lr", -1.0, "max_lr must be > 0, got -1.0"),
            ("max_lr", float("nan"), "max_lr must be > 0, got nan"),
            ("crop_padding", -1, "crop_padding must be ≥ 0, got -1"),
        ],
    )
    def test_recipe(self, field, value, sentence):
        with pytest.raises(SpectralError, match=f"Recipe: {sentence}"):
            Recipe(**{field: value})

    @pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2), (2, 3)])
    def test_labels_and_images_must_match(self, images, labels):
        sentence = f"expected as many labels as images, got {images} images and {labels} labels"
        with pytest.raises(SpectralError, match=sentence):
            LabelledImages(torch.zeros(images, 3, 4, 4, dtype=torch.uint8), torch.zeros(labels), CLASSES, "x")


def test_our_architectures_train_from_their_names():
    assert build("resnet20") is not build("resnet20")


def test_a_damaged_state_and_too_many_classes_are_one_sentence(tiny, tmp_path):
    data = random_set()
    run("tiny", data, tmp_path)
    state = tmp_path / STATE_NAME
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(SpectralError, match=r"damaged; delete it and start again"):
        run("tiny", data, tmp_path)
    eleven = LabelledImages(data.images, data.labels, tuple("abcdefghijk"), "eleven")
    with pytest.raises(SpectralError, match="have 10 outputs, the data has 11 classes"):
        run("tiny", eleven, tmp_path / "other")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_is_the_same_wherever_it_is_called(mode, tiny, tmp_path):
    data = random_set()
    usual = run("tiny", data, tmp_path / "a")["model"].state_dict()
    with mode():
        found = run("tiny", data, tmp_path / "b")["model"].state_dict()
    assert all(torch.equal(value, usual[name]) for name, value in found.items())


def test_a_network_whose_normalisation_is_unknown_is_tuned_on_pixels(tmp_path):
    """And not on nothing: its own file says no mean."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    model = load_model(f"{tmp_path / 'net.py'}:build")
    with pytest.warns(SpectralWarning, match=r"images are passed to Sequential in \[0, 1\]"):
        found = train("own", random_set(), random_set(), tmp_path / "out", SHORT, progress=False, start=model)
    assert (found["mean"], found["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_network_of_ones_own_is_tuned_on_what_it_says_itself(tmp_path):
    model = build("resnet8-w4")
    model.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2,) * 3, "input_size": (3, 32, 32)}
    found = train("own", random_set(), random_set(), tmp_path / "a", SHORT, progress=False, start=model)
    assert (found["mean"], found["std"]) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    model.pretrained_cfg = None
    with pytest.warns(SpectralWarning, match="its normalisation isn't known"):
        found = train("own", random_set(), random_set(), tmp_path / "b", SHORT, progress=False, start=model)
    assert (found["mean"], found["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_tuning_is_not_continued_with_another_normalisation(tmp_path):
    """Finished or not: weights that were trained with one were called trained with the other."""

    def tune(mean: float) -> dict[str, object]:
        model = load_model("bundled/resnet8@random", mean=(mean,) * 3, std=(0.25,) * 3)
        return train("resnet20", data, data, tmp_path, SHORT, progress=False, start=model)

    data = random_set(size=32)
    tune(0.5)
    with pytest.raises(SpectralError, match=r"holds a run with normalisation = .*0\.5.*, not .*0\.1"):
        tune(0.1)


def test_random_numbers_are_left_as_they_were(tiny, tmp_path):
    """Behind each training with one seed, whoever called it drew the same numbers."""
    before = torch.get_rng_state()
    run("tiny", random_set(), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tuned_first", [True, False])
def test_a_tuning_and_a_training_from_fresh_weights_do_not_continue_each_other(tuned_first, tmp_path):
    """Both may be called the same: the tuned weights were given back as those of a fresh training."""
    starts = [build("resnet8-w4"), None] if tuned_first else [None, build("resnet8-w4")]
    run("resnet8-w4", random_set(), tmp_path, start=starts[0])
    with pytest.raises(SpectralError, match="holds a run with start = "):
        run("resnet8-w4", random_set(), tmp_path, start=starts[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_is_tuned_in_single(dtype, tmp_path):
    model = build("resnet8-w4").to(dtype)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 32, 32)}
    found = train("own", random_set(), random_set(), tmp_path / "a", SHORT, progress=False, start=model)
    single = copy.deepcopy(model).float()
    expected = train("own", random_set(), random_set(), tmp_path / "b", SHORT, progress=False, start=single)
    assert found["history"] == expected["history"]
    assert {weight.dtype for weight in found["model"].parameters()} == {torch.float32}
    assert next(model.parameters()).dtype == dtype


class Dictionary(nn.Module):
    """Gives its scores as networks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.net(x)}


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Dictionary(), r"expected class scores \(B, classes\) from Dictionary, it gives dict of logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), r"fails on an image of \(1, 3, 8, 8\): .*shapes"),
        (
            nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
            "no weights to tune, or none before it has run once",
        ),
        (nn.Flatten(), "no weights to tune"),
    ],
    ids=["dictionary", "size", "lazy", "empty"],
)
@pytest.mark.filterwarnings("ignore::spectral.errors.SpectralWarning")
def test_a_network_that_such_images_cant_tune_is_one_sentence(start, message, tmp_path):
    with pytest.raises(SpectralError, match=message):
        train("own", random_set(), random_set(), tmp_path, SHORT, progress=False, start=start)


def test_images_to_test_on_are_of_the_size_of_those_to_train_on(tmp_path):
    """A network that takes any size was tested on another scale than it was trained on, without a word."""
    with pytest.raises(SpectralError, match=r"of \(3, 8, 8\), those to test on of \(3, 12, 12\)"):
        train("resnet8-w4", random_set(), random_set(size=12), tmp_path, SHORT, progress=False)


def test_a_tuned_network_keeps_the_numbers_of_its_classes(tmp_path):
    """Three of its ten classes are in the data, in another order."""
    base = load_model("bundled/resnet20")
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    names = spectral.model_info(base).classes
    assert names is not None
    numbers = torch.tensor([names.index(name) for name in ("ship", "cat", "dog")])
    own = LabelledImages(images, torch.tensor([0, 1, 2, 0, 1, 2]), ("ship", "cat", "dog"), "three")
    same = LabelledImages(images, numbers[own.labels], names, "three")
    still = Recipe(epochs=1, batch_size=6, max_lr=1e-9, precision="fp32")
    found = train("own", own, own, tmp_path / "own", still, progress=False, start=base)
    expected = train("own", same, same, tmp_path / "same", still, progress=False, start=base)
    assert found["classes"] == list(names)
    assert found["history"] == expected["history"]
    other = replace(own, classes=("ship", "cat", "unicorn"))
    with pytest.warns(SpectralWarning, match=r"\(not unicorn\), so its outputs get new meanings"):
        found = train("own", other, other, tmp_path / "other", still, progress=False, start=base)
    assert found["classes"] == ["ship", "cat", "unicorn"]


@pytest.mark.parametrize("architecture", ["resnet8-w4", "resnet8-w12", "resnet8-w32"])
def test_gradients_of_narrow_networks_are_right(architecture):
    # with channels innermost, oneDNN's are wrong where a strided 1×1 convolution has few channels
    torch.manual_seed(0)
    exact = build(architecture).double()
    model = move_for_training(copy.deepcopy(exact).float(), torch.device("cpu"))
    pixels = torch.rand(8, 16, 16, 3, dtype=torch.float64)  # as they are read: colours innermost
    images = Normalisation()(pixels.movedim(-1, 1))
    exact(images).square().sum().backward()
    model(images.float()).square().sum().backward()
    for (name, own), right in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (own.grad - right.grad).abs().max() / right.grad.abs().max().clamp(min=1e-6)
        assert error < 1e-3, name


def test_wide_networks_learn_with_their_channels_innermost():
    wide = move_for_training(build("resnet8-w16"), torch.device("cpu"))
    windows = [weight for weight in wide.parameters() if weight.shape[2:] == (3, 3)]
    assert windows
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in windows)
