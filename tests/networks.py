"""Small networks, each with one habit that makes downsampling hard to find or to capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """White noise; (2, 3, 16, 16) by default."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (2, 3, 16, 16)), generator=generator).to(dtype)


def count_hooks(model: nn.Module) -> int:
    """How many hooks hang on a model, all kinds and all modules together."""
    kinds = (
        "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
    )  # fmt: skip
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def active_modes() -> int:
    """How many torch modes are on this thread's stacks."""
    return len(_get_current_dispatch_mode_stack()) + len(_get_current_function_mode_stack())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that a model has the same tensors, values, attributes, modes and hooks afterwards."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = {name: module.training for name, module in model.named_modules()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks, modes = count_hooks(model), active_modes()
    yield
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(tensors)
    for name, tensor in after.items():
        assert tensor is tensors[name], name
        assert tensor.device == values[name].device
        assert tensor.requires_grad == tensors[name].requires_grad
        assert tensor.grad is None
        assert torch.equal(tensor.detach(), values[name]), name
    assert {name: module.training for name, module in model.named_modules()} == flags
    for name, module in model.named_modules():
        assert list(vars(module)) == list(attributes[name])
        assert all(vars(module)[key] is value for key, value in attributes[name].items()), name
    assert (count_hooks(model), active_modes()) == (hooks, modes)


class ReusedPool(nn.Module):
    """One max pool that runs three times, one conv that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 32."""
        x = self.pool(self.conv(x))
        return self.pool(self.pool(self.conv(x)))


class FunctionalBlock(nn.Module):
    """A strided convolution, a max and an average pool, all functional, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(image(4, 3, 3, 3, seed=1))
        self.bias = nn.Parameter(image(4, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by (2, 2), (2, 1) and 2."""
        x = F.conv2d(x, weight=self.weight, bias=self.bias, stride=2, padding=1)
        x = F.max_pool2d(F.relu(x), (2, 1))
        return F.avg_pool2d(x + 1, 2)


class SlicingShortcut(nn.Module):
    """A residual block with its own step-2 slice, around children with strided convolutions and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 3, 1)
        )
        self.project = nn.Conv2d(3, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 2."""
        return self.body(x) + x[:, :, ::2, ::2] + self.project(x)


class Nested(nn.Module):
    """A block with its own slice inside a network with its own functional pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.block = SlicingShortcut()
        self.head = nn.Conv2d(3, 5, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 8."""
        return self.head(F.max_pool2d(self.block(self.stem(x)), 2))


class Slices(nn.Module):
    """Spatial slices that keep one phase, with an offset, next to slices that aren't spatial."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep rows 1, 3, … and columns 0, 3, …"""
        channels = x[:, ::2]
        batch = torch.cat([x, x])[::2]
        tokens = x.flatten(2).transpose(1, 2)
        even, odd = tokens[..., ::2], tokens[..., 1::2]
        mixed = tokens @ torch.ones_like(x[0, :, 0, :3])
        heads = mixed.unflatten(-1, (1, 3)).transpose(1, 2)
        rotated = torch.cat([-even, odd], -1).mean() + tokens[:, ::2].mean()
        rotated = rotated + mixed[..., ::2].mean() + heads[..., ::2].mean()
        return (batch + channels.mean() + rotated)[:, :, 1::2, ::3]


class Focus(nn.Module):
    """Space-to-depth as four slices, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep every phase as channels."""
        phases = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(phases, 1))


class TwoSpaceToDepths(nn.Module):
    """A lone slice, then two space-to-depth steps along rows, all in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by (8, 2)."""
        x = x[:, :, ::2, ::2].clone()
        x = torch.cat([x[:, :, ::2], x[:, :, 1::2]], 1)
        return torch.cat([x[:, :, ::2], x[:, :, 1::2]], 1)


class InPlace(nn.Module):
    """In-place operators before, between and after sites of every access."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.blur = Blur(4)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 8."""
        x = torch.relu_(self.conv(x * 1.0).neg_())
        x = self.blur(x).sub_(1)
        y = x[:, :, ::2, 1::2]
        x.mul_(0)
        return y.add_(3)


class Blur(nn.Module):
    """Zero padding, then a depthwise box filter from a buffer, with stride 2."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((channels, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        """Blur and decimate."""
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.kernel, stride=2, groups=x.shape[1])


class PoolAfterLayers(nn.Module):
    """Returns a functional pool of what its children made, with as many channels as it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 2."""
        return F.max_pool2d(F.relu(self.conv(x)), 2)


class PadsItself(nn.Conv2d):
    """A strided convolution with "same" padding that depends on the size of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad so that the output has ⌈N / s⌉ samples, more of it at the end."""
        pads: list[int] = []
        for n, k, s in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A strided convolution whose weight is made in each forward."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with zero-mean, unit-variance filters."""
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) / std, self.bias, self.stride, self.padding)


class CeilPools(nn.Sequential):
    """Max and average pools whose last window hangs over the border."""

    def __init__(self) -> None:
        super().__init__(
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        )


class Raising(nn.Module):
    """Raises at a chosen depth: "leaf", "block", "root" or "" (never)."""

    class Leaf(nn.Module):
        """A functional site that can fail before or after it ran."""

        def __init__(self) -> None:
            super().__init__()
            self.fail = False

        def forward(self, x: Tensor) -> Tensor:
            """Downsample by 2."""
            x = x[:, :, ::2, ::2]
            if self.fail:
                raise RuntimeError("the leaf broke")
            return x + 1

    class Block(nn.Module):
        """A functional site, then a leaf."""

        def __init__(self) -> None:
            super().__init__()
            self.fail = False
            self.conv = nn.Conv2d(3, 3, 3, 2, 1)
            self.leaf = Raising.Leaf()

        def forward(self, x: Tensor) -> Tensor:
            """Downsample by 8."""
            x = self.leaf(F.max_pool2d(self.conv(x), 2))
            if self.fail:
                raise RuntimeError("the block broke")
            return x

    def __init__(self) -> None:
        super().__init__()
        self.fail = False
        self.block = Raising.Block()

    def break_at(self, depth: str) -> None:
        """Choose where the next forward raises."""
        self.fail, self.block.fail, self.block.leaf.fail = depth == "root", depth == "block", depth == "leaf"

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 16."""
        x = F.avg_pool2d(self.block(x), 2)
        if self.fail:
            raise RuntimeError("the root broke")
        return x


class OnlyRealData(nn.Module):
    """Control flow on values: can't run on the meta device."""

    steps: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Run the body; count how often."""
        self.steps += 1
        return self.body(x) if float(x.detach().sum()) > -1e9 else x


class Caching(nn.Module):
    """Keeps a tensor from its first forward in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.ramp: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 2."""
        x = self.conv(x)
        if self.ramp is None:
            self.ramp = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
        return x + self.ramp


class SharedPool(nn.Module):
    """Two blocks that both own one and the same pool, and have a functional site of their own."""

    class Block(nn.Module):
        """A shared pool, then a functional one."""

        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, x: Tensor) -> Tensor:
            """Downsample by 4."""
            return F.avg_pool2d(self.pool(x) + 1, 2) + 1

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.first, self.second = SharedPool.Block(pool), SharedPool.Block(pool)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 16."""
        return self.second(self.first(x))


class Squeezing(nn.Module):
    """A functional global pool before two sites of the same module."""

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 4."""
        x = x * F.adaptive_avg_pool2d(x, 1).sigmoid()
        return F.max_pool2d(x[:, :, ::2, ::2] + 1, 2)


class PowerPool(nn.Module):
    """A functional that pools something else than its argument, after an indexing that isn't a site."""

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 2."""
        return F.lp_pool2d(x + x[0, ::2].mean(), 2.0, 2)


class TwoInputs(nn.Module):
    """Takes a dictionary, or keywords, but no lone tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, batch: dict[str, Tensor] | None = None, *, pixels: Tensor | None = None) -> Tensor:
        """Convolve the pixels."""
        x = batch.get("pixels") if batch is not None else pixels
        return self.conv(input=x)


class Keyword(nn.Module):
    """Passes tensors on by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, pixels: Tensor, gain: float = 1.0) -> Tensor:
        """Convolve the pixels."""
        return self.conv(input=pixels * gain)


class NoDownsampling(nn.Module):
    """Convolutions with stride 1 and global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits."""
        return self.fc(self.pool(self.conv(x)).flatten(1))


def strided(**options: Any) -> nn.Sequential:
    """A module of each direct kind, with batch norm, dropout and an in-place ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, **options),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(0.5),
        nn.AvgPool2d(2, (2, 1)),
    )
