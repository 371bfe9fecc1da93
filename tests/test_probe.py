"""What a forward pass without data says of a model's inputs and outputs."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import unchanged
from torch import Tensor, nn
from torchvision import models

from spectral.errors import SpectralError
from spectral.network import make_inputs
from spectral.tracing.dataless import run_operator
from spectral.tracing.probe import probe

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Features of a convolution, and a linear layer behind them."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 8, 3, 2), nn.Linear(8, 6)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Unit(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


class ByHand(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / y.norm(dim=1, keepdim=True).clamp(min=1e-6)


class Cosine(Net):
    def forward(self, x: Tensor) -> Tensor:
        return 30 * F.linear(F.normalize(self.features(x)), F.normalize(self.fc.weight))


class EmbeddingNet(Net):
    pass


class Projected(Net):
    def __init__(self) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.visual_projection(super().forward(x).relu())


class Two(Net):
    """Two heads averaged, as of a distilled transformer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return (self.fc(y) + self.fc(y + 1)) / 2


class Declared(nn.Sequential):
    num_classes = 8


class Gated(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * y.sigmoid()


def resnet(**options: object) -> nn.Module:
    net = models.resnet18(weights=None)
    for name, value in options.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Net(), "classes"), (Cosine(), "classes"), (Two(), "classes"), (resnet(), "classes"),
        (nn.Sequential(Net(), nn.Softmax(-1)), "classes"), (nn.Sequential(Net(), nn.Dropout(0.5)), "classes"),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "classes"),
        (models.squeezenet1_1(weights=None), "classes"),
        (Declared(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "classes"),
        (timm.create_model("resnet18"), "classes"),
        (timm.create_model("deit_tiny_distilled_patch16_224", img_size=32), "classes"),
        (timm.create_model("resnet18", num_classes=0), "embedding"),
        (timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0), "embedding"),
        (resnet(fc=nn.Identity()), "embedding"), (Unit(), "embedding"), (ByHand(), "embedding"),
        (nn.Sequential(*list(resnet().children())[:-1], nn.Flatten()), "unknown"),
        (nn.Sequential(Net(), nn.BatchNorm1d(6)), "unknown"), (nn.Sequential(Net(), nn.ReLU()), "unknown"),
        (EmbeddingNet(), "unknown"), (Projected(), "unknown"), (Gated(), "unknown"),
        (nn.Sequential(Net(), nn.Sigmoid()), "unknown"),
        (Declared(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid()), "unknown"),
    ],
)  # fmt: skip
def test_scores_are_told_from_features(model, kind):
    with unchanged(model):
        head = probe(model, make_inputs(IMAGE)).head
    assert head is not None
    assert head.kind == kind, head.why


def test_the_users_function_decides():
    net = nn.Sequential(Net(), nn.ReLU())
    assert probe(net, make_inputs(IMAGE), chosen=True).head.kind == "classes"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Conv2d(3, 4, 3, 2), "is a map"), (nn.Sequential(Net(), nn.Linear(6, 1)), "one number per image"),
        (models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), "is a map"),
    ],
)  # fmt: skip
def test_what_has_no_scores(model, reason):
    found = probe(model.eval(), make_inputs(IMAGE))
    assert found.head is None
    assert reason in str(found.scores.reason)


class Last(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2) * 2 - 1)


class Spectrogram(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None])


class Electrodes(nn.Module):
    """Signals of six electrodes as gray images: a kernel along time, one over all electrodes."""

    def __init__(self, turned: bool = False, kernel: int = 6) -> None:
        super().__init__()
        self.dims = (3, 2) if turned else (2, 3)
        sizes = [(1, 9), (kernel, 1)]
        first, second = [size[::-1] for size in sizes] if turned else sizes
        self.time, self.space = nn.Conv2d(1, 4, first), nn.Conv2d(4, 5, second)
        self.mix = nn.Sequential(nn.AvgPool2d((2, 1) if turned else (1, 2)), nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.space(self.mix(self.time(x.reshape(-1, 1, 6, 40).permute(0, 1, *self.dims)))).mean((2, 3))


class Frames(nn.Module):
    """Channels behind time, which a convolution wants last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(40, 5, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).mean(2)


class Pieces(nn.Module):
    """Pieces of time that overlap, of channels behind it, as PatchTST's."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(-2, 8, 4).mean((2, 3))


class Unpooled(Net):
    """A map that is made small and large again, with the places of its largest samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))


class PerFrame(Net):
    """Frames of a video that are images of one batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


@pytest.mark.parametrize(
    ("model", "shape", "kinds"),
    [
        (Net(), (1, 3, 16, 12), "bchw"), (Last(), (1, 16, 12, 3), "bhwc"), (Last(7), (1, 16, 12, 7), "bhwc"),
        (Spectrogram(1), (1, 16, 30), "bhw"), (Frames(), (1, 30, 40), "bwc"), (Pieces(), (1, 30, 3), "bwc"),
        (Electrodes(), (1, 6, 40), "bcw"), (Electrodes(turned=True), (1, 6, 40), "bcw"),
        (Electrodes(kernel=3), (1, 6, 40), "bhw"), (Electrodes(), (1, 1, 6, 40), "bccw"),
        (nn.Sequential(nn.Conv2d(1, 4, (1, 7)), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Conv2d(4, 4, (7, 1))),
         (1, 1, 16, 12), "bchw"),
        (nn.Sequential(nn.Conv1d(2, 3, 5, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (1, 2, 30), "bcw"),
        (models.video.r3d_18(weights=None), (1, 3, 4, 16, 16), "bcthw"),
        (nn.Sequential(nn.Upsample(scale_factor=2), Net()), (1, 3, 16, 12), "bchw"),
        (Unpooled(), (1, 3, 16, 12), "bchw"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), (1, 3, 4, 4), "bchw"),
        (timm.create_model("mixer_s32_224", num_classes=5), (1, 3, 224, 224), "bchw"),
    ],
)  # fmt: skip
def test_axes_are_those_that_operators_slide_over(model, shape, kinds):
    layout = probe(model.eval(), make_inputs(torch.rand(shape))).layout
    assert ["".join(layout[0])] == [kinds]


def test_frames_of_a_video_move_as_images_do():
    layout = probe(PerFrame(), make_inputs(torch.rand(1, 4, 3, 16, 12))).layout
    assert layout[0][-2:] == ("h", "w")


def test_every_input_has_its_own_axes():
    class Both(Net):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return super().forward(image * F.avg_pool2d(mask, 3, 1, 1)[:, 0, None])

    layout = probe(Both(), make_inputs(torch.rand(1, 3, 16, 12), torch.rand(1, 1, 16, 12))).layout
    assert ["".join(kinds) for kinds in layout] == ["bchw", "bchw"]


def test_a_model_that_fails_says_why():
    with pytest.raises(SpectralError, match=r"forward of Net failed on an input of shape \(1, 4, 32, 32\)"):
        probe(Net(), make_inputs(torch.rand(1, 4, 32, 32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_batch_norm_without_data_is_as_torch_makes_it(dtype, memory):
    """Same shapes, strides and types as with data."""
    norm = nn.BatchNorm2d(3).eval()
    x = torch.ones(2, 3, 4, 5, dtype=dtype).to(memory_format=memory)
    func = torch.ops.aten.native_batch_norm.default
    weights = (norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var)

    def facts(arguments):
        made = run_operator(func, (*arguments, False, 0.1, 1e-5), {})
        return [(one.shape, one.stride(), one.dtype) for one in made]

    assert facts([y.to("meta") for y in (x, *weights)])[0] == facts((x, *weights))[0]
