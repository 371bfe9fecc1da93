"""Small networks, each with one habit that makes downsampling hard to find or to capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """White noise; (2, 3, 16, 16) by default."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (2, 3, 16, 16)), generator=generator).to(dtype)


def count_hooks(model: nn.Module) -> int:
    """How many hooks hang on a model, all kinds and all modules together, and what stands for a forward."""
    kinds = (
        "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
    )  # fmt: skip
    standing = sum("forward" in vars(module) for module in model.modules())
    return standing + sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


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


class Call(nn.Module):
    """A forward written as a function of the module and its inputs."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(self, *args, **kwargs)


def split(x: Tensor, size: int = 2) -> Tensor:
    """(B, C, H, W) → (B, C, H/s, s, W/s, s)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // size, size, w // size, size)


def join_phases(x: Tensor, axis: int) -> Tensor:
    """Space-to-depth by slices, joined along the axis of the channels."""
    rows, columns = (2, 3) if axis == 1 else (1, 2)
    phases = []
    for i in (0, 1):
        for j in (0, 1):
            cut = [slice(None)] * 4
            cut[rows], cut[columns] = slice(i, None, 2), slice(j, None, 2)
            phases.append(x[tuple(cut)])
    return torch.cat(phases, axis)


# Space-to-depth with windows of 2 × 2 of an image of 3 channels, in as many spellings as there are.
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
SPACE_TO_DEPTH: dict[str, Callable[[], nn.Module]] = {
    "view, channels first": lambda: Call(
        lambda m, x: m.project(split(x).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)), project=nn.Conv2d(12, 8, 1)
    ),
    "view, phases first": lambda: Call(
        lambda m, x: m.project(split(x).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)), project=nn.Conv2d(12, 8, 3)
    ),
    "view, channels last": lambda: Call(
        lambda m, x: m.project(split(x).permute(0, 2, 4, 3, 5, 1).flatten(3)), project=nn.Linear(12, 8)
    ),
    "view, tokens": lambda: Call(
        lambda m, x: m.project(split(x).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)),
        project=nn.Linear(12, 8),
    ),
    "Swin's, after channels last": lambda: Call(
        lambda m, x: m.project(
            split(x).permute(0, 2, 3, 4, 5, 1).permute(0, 1, 3, 4, 2, 5).contiguous().flatten(3)
        ),
        project=nn.Linear(12, 8),
    ),
    "Tensor.unfold": lambda: Call(
        lambda m, x: m.project(x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)),
        project=nn.Linear(12, 8),
    ),
    "einsum": lambda: _with_weight(lambda m, x: torch.einsum("bcipjq,cpqo->boij", split(x), m.weight)),
    "slices": lambda: Call(lambda m, x: m.project(join_phases(x, 1)), project=nn.Conv2d(12, 8, 1)),
    "slices of views": lambda: Call(
        lambda m, x: m.project(torch.cat([x.view_as(x)[:, :, i::2, j::2] for i, j in PHASES], 1)),
        project=nn.Conv2d(12, 8, 1),
    ),
    "slices, channels last": lambda: Call(
        lambda m, x: m.project(join_phases(x.permute(0, 2, 3, 1), 3)), project=nn.Linear(12, 8)
    ),
    "pixel_unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1)),
    "im2col": lambda: Call(
        lambda m, x: m.project(F.unfold(x, 2, stride=2).transpose(1, 2)), project=nn.Linear(12, 8)
    ),
}


def _with_weight(function: Callable[..., Any]) -> nn.Module:
    model = Call(function)
    model.weight = nn.Parameter(image(3, 2, 2, 8, seed=1))
    return model


def partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) → windows of tokens (B·n, size², C), as Swin does."""
    b, h, w, c = x.shape
    return x.view(b, h // size, size, w // size, size, c).transpose(2, 3).reshape(-1, size * size, c)


def unpartition(tokens: Tensor, size: int, h: int, w: int) -> Tensor:
    """Windows of tokens → (B, H, W, C)."""
    windows = tokens.view(-1, h // size, w // size, size, size, tokens.shape[-1])
    return windows.transpose(2, 3).reshape(-1, h, w, tokens.shape[-1])


class Attention(nn.Module):
    """Multi-head self-attention of tokens (B, N, C), written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1)
        return self.project((weights @ v).transpose(1, 2).reshape(b, n, c))


def _shifted_windows(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x).permute(0, 2, 3, 1)
    y = m.attention(partition(x.roll((-2, -2), (1, 2)), 4))
    return x + unpartition(y, 4, *x.shape[1:3]).roll((2, 2), (1, 2))


def _grid_attention(m: Any, x: Tensor) -> Tensor:
    """MaxViT's: attention among the samples that are H/4 and W/4 apart."""
    x = m.stem(x).permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    t = x.view(b, 4, h // 4, 4, w // 4, c).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, c)
    t = m.attention(t).view(b, h // 4, w // 4, 4, 4, c).permute(0, 3, 1, 4, 2, 5)
    return x + t.reshape(b, h, w, c)


def _unfolding_transformer(m: Any, x: Tensor) -> Tensor:
    """MobileViT's: attention among like places of all patches, then back."""
    x = m.stem(x)
    b, c, h, w = x.shape
    t = x.reshape(b * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(b, c, h * w // 4, 4).transpose(1, 3)
    t = m.attention(t.reshape(b * 4, h * w // 4, c)).contiguous().view(b, 4, h * w // 4, c).transpose(1, 3)
    return t.reshape(b * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(b, c, h, w)


def _rotary(m: Any, x: Tensor) -> Tensor:
    """Rotary embeddings: slices of the channels of tokens."""
    t = m.stem(x).flatten(2).transpose(1, 2)
    q, k, v = t.unflatten(-1, (2, 4)).transpose(1, 2), t.unsqueeze(1), t.unsqueeze(1)
    turned = torch.stack([-q[..., 1::2], q[..., ::2]], -1).reshape(q.shape)
    return (q + turned) @ k[..., ::2].transpose(-2, -1) @ v


def _channel_attention(m: Any, x: Tensor) -> Tensor:
    """Pools and a convolution over the channels, as in ECA."""
    x = m.stem(x)
    weights = F.max_pool1d(m.mix(x.mean((2, 3)).unsqueeze(1)), 2)
    return x * F.interpolate(weights, scale_factor=2.0).squeeze(1).sigmoid()[..., None, None]


def _token_pools_of_channels(m: Any, x: Tensor) -> Tensor:
    t = m.stem(x).flatten(2).transpose(1, 2)
    return F.max_pool1d(t, 2).mean(2)


def _resized_positions(m: Any, x: Tensor) -> Tensor:
    """A ViT's class token, and positions resized to the image."""
    x = m.stem(x)
    t = torch.cat([m.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    table = F.interpolate(m.table, size=x.shape[-2:], mode="bicubic").flatten(2).transpose(1, 2)
    table = table + F.avg_pool2d(m.table, 2).mean() + m.table[..., ::2, ::2].mean()
    t = t + torch.cat([m.token, table], 1)
    return m.attention(t)[:, 0]


def _relative_positions(m: Any, x: Tensor) -> Tensor:
    """Attention with positions added per row and per column, as in SAM."""
    x = m.stem(x)
    b, c, h, w = x.shape
    t = x.flatten(2).transpose(1, 2)
    rows = torch.einsum("bhwc,hkc->bhwk", t.view(b, h, w, c), m.rows[:h, :h])
    columns = torch.einsum("bhwc,wkc->bhwk", t.view(b, h, w, c), m.rows[:w, :w])
    weights = (t @ t.transpose(1, 2)).view(b, h, w, h, w) + rows[..., None] + columns[..., None, :]
    return weights.view(b, h * w, h * w).softmax(-1) @ t


def _sam() -> nn.Module:
    model = Call(_relative_positions, stem=_stem())
    model.rows = nn.Parameter(image(64, 64, 8))
    return model


def _vit() -> nn.Module:
    model = Call(_resized_positions, stem=nn.Conv2d(3, 8, 3, padding=1), attention=Attention(8))
    model.token = nn.Parameter(torch.zeros(1, 1, 8))
    model.table = nn.Parameter(image(1, 8, 64, 64))
    return model


def _stem() -> nn.Module:
    return nn.Conv2d(3, 8, 3, padding=1)


# Networks that reshape, slice and pool, and lose no resolution.
LOOKALIKES: dict[str, Callable[[], nn.Module]] = {
    "shifted windows": lambda: Call(_shifted_windows, stem=_stem(), attention=Attention(8)),
    "grid attention": lambda: Call(_grid_attention, stem=_stem(), attention=Attention(8)),
    "unfolding transformer": lambda: Call(_unfolding_transformer, stem=_stem(), attention=Attention(8)),
    "rotary embedding": lambda: Call(_rotary, stem=_stem()),
    "channel attention": lambda: Call(_channel_attention, stem=_stem(), mix=nn.Conv1d(1, 1, 3, padding=1)),
    "pool over channels": lambda: Call(_token_pools_of_channels, stem=_stem()),
    "resized positions": _vit,
    "relative positions": _sam,
    "channel slices": lambda: Call(
        lambda m, x: torch.cat([m.stem(x)[:, ::2], m.stem(x)[:, 1::2]], 1), stem=_stem()
    ),
    "channel shuffle": lambda: Call(
        lambda m, x: m.stem(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), stem=_stem()
    ),
    "token mixing": lambda: Call(
        lambda m, x: m.second(F.gelu(m.first(m.stem(x).flatten(2)))).sum(1),
        stem=_stem(), first=nn.Linear(768, 32), second=nn.Linear(32, 768),
    ),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)),
    "crops": lambda: Call(lambda m, x: m.stem(x)[:, :, 2:-2, 1:] + m.stem(x)[:, :, :-4, :-1], stem=_stem()),
    "halves": lambda: Call(lambda m, x: sum(m.stem(x).chunk(2, 2)), stem=_stem()),
}  # fmt: skip


def _hiera(m: Any, x: Tensor) -> Tensor:
    """Unroll windows of 2 × 2 to an axis of their own, pool over it, take the mean over the tokens."""
    x = m.stem(x)
    b, c, h, w = x.shape
    t = x.flatten(2).transpose(1, 2).view(b, h // 2, 2, w // 2, 2, c)
    t = t.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, c)
    t = (t + m.mlp(t)).view(b, 4, -1, c)
    return m.head(t.amax(1) if m.maximum else t.mean(1))


class Hiera(Call):
    """Pools over windows that a view has cut."""

    def __init__(self, maximum: bool) -> None:
        super().__init__(
            _hiera, stem=nn.Conv2d(3, 8, 3, padding=1), mlp=nn.Linear(8, 8), head=nn.Linear(8, 2)
        )
        self.maximum = maximum


class PooledHeads(nn.Module):
    """MViT's: queries pooled per head, with the heads after the images on the batch axis, or before."""

    def __init__(self, heads_first: bool) -> None:
        super().__init__()
        self.heads_first = heads_first
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.Conv2d(4, 4, 3, 2, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by 2."""
        x = self.stem(x)
        b, _, h, w = x.shape
        heads = x.unflatten(1, (2, 4))
        heads = heads.transpose(0, 1) if self.heads_first else heads
        y = self.pool(heads.reshape(2 * b, 4, h, w))
        y = y.unflatten(0, (2, b) if self.heads_first else (b, 2))
        return (y.transpose(0, 1) if self.heads_first else y).flatten(1, 2)


class Checkpointed(nn.Module):
    """Two blocks, the second computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.block = nn.Conv2d(3, 3, 3, 2, 1), FunctionalBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Downsample by (8, 4)."""
        return checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)


class Pictures:
    """A set of images with labels as given."""

    def __init__(self, pixels: Tensor, labels: list[int | None] | None = None) -> None:
        self.pixels, self.labels = pixels, labels or [None] * len(pixels)
        self.source, self.fingerprint = "here", "0"
        self.ids = [f"p{i}" for i in range(len(pixels))]
        self.size = (pixels.shape[-2], pixels.shape[-1])

    def batches(self, batch_size, *, indices=None):
        chosen = list(range(len(self.pixels)) if indices is None else indices)
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            yield part, self.pixels[part]

    def resized(self, size):
        raise AssertionError("these have a size")

    def __len__(self) -> int:
        return len(self.pixels)


class Falling(nn.Module):
    """Takes bright images over a pool whose windows are unequal; may be told on which image to fail."""

    end: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        if Falling.end is not None and torch.equal(x[-1], Falling.end):
            raise RuntimeError("fell")
        x, bright = self.common(x), x.mean() > 1
        return self.head((nn.functional.adaptive_avg_pool2d(x, 5) if bright else x).mean((2, 3)))  # type: ignore[no-any-return]
