"""Distillation: a converted network comes nearer to its teacher, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
import weakref

import numpy as np
import pytest
import torch
from networks import image, unchanged
from torch import Tensor, nn

from spectral.data import load_images
from spectral.errors import SpectralError, SpectralWarning
from spectral.intake import Feed
from spectral.models import load_model
from spectral.network.inputs import read_example
from spectral.repair.distillation import STATE_NAME, distill
from spectral.repair.heldout import leave_out
from spectral.repair.views import Views
from spectral.surgery import convert, revert


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def make_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(30):
            net(image(16, 3, 32, 32))
        net.head.weight.mul_(20)
    return net.eval(), convert(net.eval(), "blurpool", example=32)


def divergence(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        p, q = teacher(x).double().softmax(-1), student(x).double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("layer_weight", [0.0, 1.0])
def test_a_student_comes_nearer_to_its_teacher(layer_weight: float) -> None:
    net, smooth = make_pair()
    images = image(24, 3, 32, 32)
    with unchanged(net), unchanged(smooth):
        tuned = distill(
            smooth, images, steps=60, batch_size=8, max_lr=5e-3, layer_weight=layer_weight, progress=False
        )
    assert divergence(tuned, net, images) < 0.5 * divergence(smooth, net, images)
    assert [m.training for m in tuned.modules()] == [m.training for m in smooth.modules()]
    for name, buffer in smooth.named_buffers():
        assert torch.equal(dict(tuned.named_buffers())[name], buffer), name  # statistics stay
    assert all(p.grad is None for p in tuned.parameters())
    assert type(tuned.stem[0].antialias) is type(smooth.stem[0].antialias)


def test_the_same_seed_gives_the_same_weights_and_frozen_ones_are_so_again() -> None:
    _, smooth = make_pair()
    smooth.train()
    smooth.head.weight.requires_grad_(False)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        distill(smooth, image(6, 3, 32, 32), steps=4, batch_size=4, seed=seed, held_out=0, progress=False)
        for seed in (1, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    other = distill(smooth, image(6, 3, 32, 32), steps=4, batch_size=4, seed=2, held_out=0, progress=False)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.training
    assert not first.head.weight.requires_grad
    assert first.head.bias.requires_grad


@pytest.mark.parametrize(("tune", "kernels"), [("norms", set()), ("filters", {"3.weight"})])
def test_what_is_tuned_can_be_chosen(tune: str, kernels: set[str]) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    smooth = convert(net, "blurpool", example=16)
    tuned = distill(smooth, image(6, 3, 16, 16), steps=2, batch_size=3, tune=tune, held_out=0, progress=False)
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, smooth.get_parameter(name))}
    assert moved == {"1.weight", "0.bias", "1.bias", "3.bias", "6.bias"} | kernels
    assert all(p.requires_grad for p in tuned.parameters())


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    net, _ = make_pair()
    same = convert(net, "strided", example=32)
    tuned = distill(same, image(8, 3, 32, 32), steps=1, held_out=0, progress=False)
    x = image(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), net(x), rtol=1e-3, atol=1e-3)


def read_seen(
    views: Views, masked: dict[str, Tensor], steps: int, held_out: float = 0
) -> list[tuple[Tensor, Tensor]]:
    """What the student sees in each step."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            if self.head.weight.requires_grad and torch.is_grad_enabled():
                seen.append((x.detach().clone(), mask.detach().clone()))
            return super().forward(x * mask)

    smooth = convert(Masked().eval(), "blurpool", example=read_example(masked))
    seen.clear()
    distill(smooth, masked, steps=steps, views=views, held_out=held_out, progress=False)
    return seen


def test_images_are_moved_and_mirrored_with_their_masks() -> None:
    torch.manual_seed(0)
    x = image(4, 3, 16, 16)
    x[:, 2] = torch.arange(16.0).view(16, 1)
    seen = read_seen(Views(zoom=1, mix=0), {"x": x, "mask": (x[:, :1] > 0).float()}, 3)
    assert len(seen) == 3
    downwards = {int(n) - 8 for moved, _ in seen for n in moved[:, 2, 8, 0]}
    assert {-2, 2} <= downwards <= {-2, -1, 0, 1, 2}  # an eighth either way
    for moved, where in seen:
        assert torch.equal((moved[:, :1] > 0).float(), where)
        assert not torch.equal(moved, x)
        assert set(np.unique(moved.numpy())) <= set(np.unique(x.numpy()))


def test_a_part_of_an_image_is_enlarged_between_its_samples() -> None:
    """A ramp stays one, of a slope between zoom and 1, but where its border reflects."""
    across = torch.arange(32.0).expand(32, 32)
    ramps, stripes = (
        torch.stack([across, across.T, across]).repeat(4, 1, 1, 1),
        (across % 2).expand(4, 1, 32, 32),
    )
    slopes, falls = [], []
    for moved, mask in read_seen(Views(zoom=0.5, mix=0), {"x": ramps, "mask": stripes}, 4):
        assert set(mask.unique().tolist()) == {0, 1}  # of a mask none lies between two samples
        assert moved[:, 0].diff(dim=1).abs().max() < 1e-4  # the rows stay alike
        assert moved[:, 1].diff(dim=1).median() > 0.4  # top stays top
        steps = moved[:, 0, 0].diff()
        slopes.append(steps.abs().median(-1).values)
        falls.append(steps.median(-1).values < 0)
    found = torch.cat(slopes)
    assert 0.5 - 1e-5 <= found.min() < found.max() <= 1 + 1e-5
    assert len(found.unique()) > 8  # each image has its own, in every step
    assert 0 < torch.cat(falls).sum() < 16


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_nothing() -> None:
    """A first step of Adam is as long as its rate, and none is much longer."""
    seen: list[Tensor] = []

    class Watched(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.head.weight.requires_grad and torch.is_grad_enabled():
                seen.append(self.head.bias.detach().clone())
            return super().forward(x)

    smooth = convert(Watched(), "blurpool", example=16).train()
    seen.clear()
    tuned = distill(
        smooth, image(4, 3, 16, 16), steps=20, max_lr=1e-3, held_out=0, layer_weight=0, progress=False
    )
    assert tuned.training
    assert torch.equal(tuned.stem[1].running_mean, smooth.stem[1].running_mean)  # type: ignore[index, union-attr]
    moves = torch.stack([*seen, tuned.head.bias.detach()]).diff(dim=0).abs().amax(1)  # type: ignore[union-attr]
    assert len(moves) == 20
    assert moves[0] == pytest.approx(5e-4, rel=0.01)
    assert moves.max() < 2e-3
    assert moves[-1] < 1e-4


def test_images_are_mixed_in_pairs_with_weights_that_add_up() -> None:
    flat = torch.tensor([0.0, 1.0, 10.0, 100.0]).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
    for mixed, _ in read_seen(Views(zoom=1, mix=0.5), {"x": flat, "mask": torch.ones(4, 1, 16, 16)}, 3):
        values = mixed[:, 0, 0, 0]
        assert torch.allclose(mixed, values.view(4, 1, 1, 1).expand_as(mixed))
        assert values.min() >= 0
        assert values.max() <= 100
        assert not set(values.tolist()) <= {0.0, 1.0, 10.0, 100.0}


@pytest.mark.parametrize("max_lr", [1e-3, 1.0])
def test_a_network_is_given_back_as_it_was_nearest_to_its_teacher(max_lr: float) -> None:
    """On images that it isn't trained on: a rate too high took it away, and nothing said so."""
    net, smooth = make_pair()
    images, found = image(20, 3, 32, 32), list[tuple[int, float]]()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tuned = distill(smooth, images, steps=10, batch_size=4, max_lr=max_lr, progress=False,
                        on_check=lambda *one: found.append(one))  # fmt: skip
    steps, divergences = zip(*found, strict=True)
    assert steps == (0, 3, 5, 8, 10)
    left_out = images[[2, 7, 12, 17]]
    assert divergences[0] == pytest.approx(divergence(smooth, net, left_out), rel=1e-4)
    assert min(divergences) == pytest.approx(divergence(tuned, net, left_out), rel=1e-4)
    kept = [w for w in said if "given back as it was: 10 step(s) bring it no nearer" in str(w.message)]
    assert bool(kept) == (max_lr == 1.0)
    for a, b in zip(tuned.parameters(), smooth.parameters(), strict=True):
        assert torch.equal(a, b) or not kept


def test_images_left_out_are_not_trained_on() -> None:
    flat = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 16, 16).clone()
    masks = torch.ones(10, 1, 16, 16)
    seen = read_seen(Views(zoom=1, mix=0), {"x": flat, "mask": masks}, 3, held_out=0.2)
    assert {float(v) for x, _ in seen for v in x.unique()} == {0, 1, 3, 4, 5, 6, 8, 9}


class Remembering(nn.BatchNorm2d):
    """Knows which of its outputs are still there."""

    given: list[weakref.ref[Tensor]]

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        self.given.append(weakref.ref(out))
        return out


def test_what_passes_while_it_is_judged_is_not_held() -> None:
    Remembering.given = []
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), Remembering(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    smooth = convert(net.eval(), "blurpool", example=16)
    left: list[int] = []

    def count(steps: int, found: float) -> None:
        left.append(sum(out() is not None for out in Remembering.given))

    images = image(20, 3, 16, 16)
    options = {"steps": 1, "batch_size": 1, "held_out": 0.5, "progress": False}
    distill(smooth, images, teacher=net, on_check=count, **options)
    assert len(Remembering.given) > 20
    assert left == [left[0]] * 2  # as many after a step as before any, though ten images were looked at
    assert left[0] <= 2


def test_photographs_are_left_out_as_a_whole() -> None:
    images = load_images("samples", size=32, limit=80)
    assert 2 < len(set(images.clusters)) < 80
    kept, left_out = leave_out(Feed(load_model("bundled/resnet8@random"), images, caller="test"), 0.3)
    assert sorted(kept + left_out) == list(range(80))
    assert not {images.clusters[i] for i in kept} & {images.clusters[i] for i in left_out}
    single = Feed(load_model("bundled/resnet8@random"), images.take(1), caller="test")
    with pytest.warns(SpectralWarning, match="of a single image none is left out"):
        assert leave_out(single, 0.3) == ([0], [])


def test_images_that_dont_fit_are_read_each_time(monkeypatch) -> None:
    _, smooth = make_pair()
    images = [
        np.asarray(x.permute(1, 2, 0).mul(40).add(128).clamp(0, 255).byte()) for x in image(5, 3, 32, 32)
    ]
    held = distill(
        smooth, images, steps=4, batch_size=2, progress=False, preprocessing=((0.5,) * 3, (0.5,) * 3)
    )
    monkeypatch.setattr("spectral.repair.distillation.HELD_BYTES", 0)
    read = distill(
        smooth, images, steps=4, batch_size=2, progress=False, preprocessing=((0.5,) * 3, (0.5,) * 3)
    )
    for a, b in zip(held.parameters(), read.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch) -> None:
    _, smooth = make_pair()
    monkeypatch.setattr("spectral.repair.distillation.KEPT_EVERY", 2)
    x = image(6, 3, 32, 32)
    whole = distill(smooth, x, steps=6, batch_size=4, progress=False)
    calls = 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        step = torch.optim.AdamW.step
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (stop(), step(self, *a, **k))[1])
        with pytest.raises(KeyboardInterrupt):
            distill(smooth, x, steps=6, batch_size=4, out=tmp_path, progress=False)
    found: list[int] = []
    resumed = distill(
        smooth,
        x,
        steps=6,
        batch_size=4,
        out=tmp_path,
        progress=False,
        on_check=lambda *one: found.append(one[0]),
    )
    assert found == [0, 2, 3, 5, 6]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(SpectralError, match="holds a run with max_lr"):
        distill(smooth, x, steps=6, batch_size=4, max_lr=1e-3, out=tmp_path, progress=False)
    with pytest.raises(SpectralError, match="holds a run with images"):
        distill(smooth, image(5, 3, 32, 32), steps=6, batch_size=4, out=tmp_path, progress=False)
    (tmp_path / STATE_NAME).write_bytes(b"cut")
    with pytest.raises(SpectralError, match="is damaged"):
        distill(smooth, x, steps=6, batch_size=4, out=tmp_path, progress=False)


def test_few_steps_too_are_kept_where_they_are_judged(tmp_path) -> None:
    _, smooth = make_pair()
    x = image(6, 3, 32, 32)

    def stop(steps: int, divergence: float) -> None:
        if steps == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(smooth, x, steps=8, batch_size=4, out=tmp_path, on_check=stop, progress=False)
    assert (tmp_path / STATE_NAME).exists()
    whole = distill(smooth, x, steps=8, batch_size=4, progress=False)
    resumed = distill(smooth, x, steps=8, batch_size=4, out=tmp_path, progress=False)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_run_is_not_continued_with_another_preprocessing(tmp_path) -> None:
    _, smooth = make_pair()
    images, mean, std = torch.rand(4, 3, 32, 32), (0.5,) * 3, (0.25,) * 3
    distill(smooth, images, steps=1, preprocessing=(mean, std), out=tmp_path, progress=False)
    with pytest.raises(SpectralError, match=r"holds a run with preprocessing = .*, not"):
        distill(smooth, images, steps=1, preprocessing=((0.1,) * 3, std), out=tmp_path, progress=False)


def test_bad_input_is_one_sentence() -> None:
    net, smooth = make_pair()
    images = image(4, 3, 32, 32)
    with pytest.raises(SpectralError, match="has not been converted"):
        distill(net, images, progress=False)
    with pytest.raises(SpectralError, match="steps"):
        distill(smooth, images, steps=0, progress=False)
    for zoom, mix in ((0, 0.5), (1.5, 0.5), (0.5, -1), (0.5, float("nan"))):
        with pytest.raises(SpectralError, match="zoom must be"):
            Views(zoom=zoom, mix=mix)
    with pytest.raises(SpectralError, match="held_out must be ≥ 0 and < 1, got 1"):
        distill(smooth, images, held_out=1, progress=False)
    with pytest.raises(SpectralError, match="max_lr must be > 0"):
        distill(smooth, images, max_lr=0, progress=False)
    with pytest.raises(SpectralError, match="tune must be one of all, filters, norms, got 'norm'"):
        distill(smooth, images, tune="norm", progress=False)
    with pytest.raises(SpectralError, match="no images"):
        distill(smooth, images[:0], progress=False)
    with pytest.raises(SpectralError, match=r"the loss of Net became nan|NaN or infinite"):
        distill(smooth, images, max_lr=1e30, steps=8, batch_size=2, progress=False)
    headless = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
    with pytest.raises(SpectralError, match="pass logits="):
        distill(convert(headless.eval(), "blurpool", example=32), images, progress=False)
    assert revert(smooth) is not smooth


def test_a_teacher_of_other_classes_is_refused() -> None:
    student, teacher = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)).eval()
        for classes in (5, 7)
    )
    with pytest.raises(SpectralError, match=r"scores of shape \(1, 5\), the teacher \(1, 7\); pass"):
        distill(student, torch.rand(2, 3, 8, 8), teacher=teacher, steps=1, progress=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_tuned_in_single(dtype: torch.dtype) -> None:
    """In half, AdamW's ε is 0 and steps of 2e-4 are lost beside a weight of 1."""
    _, smooth = make_pair()
    narrow, images = smooth.to(dtype), image(4, 3, 32, 32)
    with unchanged(narrow):
        tuned = distill(narrow, images, steps=3, batch_size=4, held_out=0, progress=False)
    wide = copy.deepcopy(narrow).float()
    expected = distill(wide, images, steps=3, batch_size=4, held_out=0, progress=False).to(dtype)
    changed = 0
    for (name, given), old in zip(tuned.state_dict().items(), narrow.state_dict().values(), strict=True):
        assert given.dtype == old.dtype, name
        torch.testing.assert_close(given, expected.state_dict()[name], msg=name)
        changed += not torch.equal(given, old)
    assert changed > 4


def test_scores_are_found_where_the_user_says() -> None:
    class Dense(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[..., None, None].expand(-1, -1, 2, 2)

    plain, _ = make_pair()
    smooth = convert(Dense(plain), "blurpool", example=32)
    images = image(4, 3, 32, 32)
    with pytest.raises(SpectralError, match="pass logits="):
        distill(smooth, images, steps=1, progress=False)
    tuned = distill(smooth, images, steps=2, logits=lambda maps: maps.mean((2, 3)), progress=False)
    expected = distill(convert(plain, "blurpool", example=32), images, steps=2, progress=False)
    for a, b in zip(tuned.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)
