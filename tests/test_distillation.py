"""Distillation: a converted network comes nearer to its teacher, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import image, unchanged
from torch import Tensor, nn

from spectral.distillation import distill
from spectral.errors import SpectralError
from spectral.inputs import read_example
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
            smooth, images, epochs=15, batch_size=8, max_lr=5e-3, layer_weight=layer_weight, progress=False
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
        distill(smooth, image(6, 3, 32, 32), epochs=2, batch_size=4, seed=seed, progress=False)
        for seed in (1, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    other = distill(smooth, image(6, 3, 32, 32), epochs=2, batch_size=4, seed=2, progress=False)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.training
    assert not first.head.weight.requires_grad
    assert first.head.bias.requires_grad


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    net, _ = make_pair()
    same = convert(net, "strided", example=32)
    tuned = distill(same, image(8, 3, 32, 32), epochs=1, progress=False)
    x = image(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), net(x), rtol=1e-3, atol=1e-3)


def test_images_are_moved_and_mirrored_with_their_masks() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            if self.head.weight.requires_grad and torch.is_grad_enabled():
                seen.append((x.detach().clone(), mask.detach().clone()))
            return super().forward(x * mask)

    torch.manual_seed(0)
    x = image(4, 3, 16, 16)
    mask = (x[:, :1] > 0).float()
    masked = {"x": x, "mask": mask}
    net = Masked().eval()
    smooth = convert(net, "blurpool", example=read_example(masked))
    seen.clear()
    distill(smooth, masked, epochs=3, progress=False)
    assert len(seen) == 3
    for moved, where in seen:
        assert torch.equal((moved[:, :1] > 0).float(), where)
        assert not torch.equal(moved, x)
        assert set(np.unique(moved.numpy())) <= set(np.unique(x.numpy()))


def test_bad_input_is_one_sentence() -> None:
    net, smooth = make_pair()
    images = image(4, 3, 32, 32)
    with pytest.raises(SpectralError, match="has not been converted"):
        distill(net, images, progress=False)
    with pytest.raises(SpectralError, match="epochs"):
        distill(smooth, images, epochs=0, progress=False)
    with pytest.raises(SpectralError, match="max_lr must be > 0"):
        distill(smooth, images, max_lr=0, progress=False)
    with pytest.raises(SpectralError, match="no images"):
        distill(smooth, images[:0], progress=False)
    with pytest.raises(SpectralError, match=r"the loss of Net became nan|NaN or infinite"):
        distill(smooth, images, max_lr=1e30, epochs=4, batch_size=2, progress=False)
    headless = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
    with pytest.raises(SpectralError, match="pass logits="):
        distill(convert(headless.eval(), "blurpool", example=32), images, progress=False)
    assert revert(smooth) is not smooth
