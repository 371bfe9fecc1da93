"""Nothing that loses places is missed, and nothing is called what it isn't: one spelling after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from networks import image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectral.errors import SpectralError
from spectral.hooks.extractor import FeatureExtractor
from spectral.layers import FLCPool2d, IdealLowPass2d
from spectral.network import make_inputs
from spectral.sites import Site, find_global_pools, find_reductions, find_sites
from spectral.surgery import conversion_report, convert
from spectral.tracing.standin import run_on_standins

Call = Callable[..., Any]
SIZE = (16, 24)


def net_of(call: Call, **children: nn.Module) -> nn.Module:
    """A convolution that keeps the size, then the call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nets.Call(lambda m, x: call(x), **children)).eval()


def every_second(x: Tensor, start: int = 0) -> Tensor:
    return torch.arange(start, x.shape[2], 2, device=x.device)


def split_rows(x: Tensor) -> Tensor:
    return x.unflatten(2, (-1, 2))


# The sample itself is kept: (stride, phase).
PICKS: dict[str, tuple[Call, tuple[int, int], tuple[int, int]]] = {
    "index_select": (lambda x: x.index_select(2, every_second(x)), (2, 1), (0, 0)),
    "arange": (lambda x: x[:, :, every_second(x, 1)], (2, 1), (1, 0)),
    "arange on the CPU": (lambda x: x[:, :, torch.arange(1, 16, 2)], (2, 1), (1, 0)),
    "list": (lambda x: x[:, :, :, [2, 5, 8, 11, 14, 17, 20, 23]], (1, 3), (0, 2)),
    "two indices": (lambda x: x[:, :, every_second(x)[:, None], torch.arange(1, 24, 4)], (2, 4), (0, 1)),
    "fixed mask": (lambda x: x[:, :, torch.arange(16) % 2 == 1], (2, 1), (1, 0)),
    "gather": (
        lambda x: x.gather(2, every_second(x)[:, None].expand(*x.shape[:2], -1, x.shape[3])), (2, 1), (0, 0)
    ),
    "take_along_dim": (
        lambda x: x.take_along_dim(every_second(x, 1)[None, None, :, None], 2), (2, 1), (1, 0)
    ),
    "view and select": (lambda x: split_rows(x)[:, :, :, 1], (2, 1), (1, 0)),
    "view and two selects": (lambda x: split_rows(x).unflatten(4, (-1, 3))[:, :, :, 0, :, 2], (2, 3), (0, 2)),
    "channels last": (lambda x: x.permute(0, 2, 3, 1).unflatten(1, (-1, 2))[:, :, 1], (2, 1), (1, 0)),
    "as_strided": (
        lambda x: x.contiguous().as_strided((len(x), 4, 8, 8), (1536, 384, 48, 3), 24), (2, 3), (1, 0)
    ),
    "a phase of space-to-depth": (
        lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))[:, :, 2], (2, 2), (1, 0)
    ),
    "every fourth channel of pixel_unshuffle, by an index": (
        lambda x: F.pixel_unshuffle(x, 2)[:, torch.arange(3, 16, 4)], (2, 2), (1, 1)
    ),
    "every fourth channel of pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2)[:, 1::4], (2, 2), (0, 1)),
    "every second channel of pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2)[:, ::2], (1, 2), (0, 0)),
    "after a sum along": (lambda x: x.cumsum(3)[..., ::2], (1, 2), (0, 0)),
    "after a roll": (lambda x: x.roll(1, 2)[:, :, 1::2], (2, 1), (1, 0)),
    "after circular padding": (lambda x: F.pad(x, (1, 1, 0, 0), mode="circular")[..., ::2], (1, 2), (0, 0)),
    "after a stack of all rows": (lambda x: torch.stack(x.unbind(2), 2)[:, :, ::2], (2, 1), (0, 0)),
}  # fmt: skip
# The result of a reduction over a window: (op, window).
POOLS: dict[str, tuple[Call, str, tuple[int, int]]] = {
    "sum": (lambda x: split_rows(x).sum(3) / 2, "window_sum", (2, 1)),
    "amin": (lambda x: split_rows(x).amin(3), "window_min", (2, 1)),
    "min": (lambda x: split_rows(x).min(3)[0], "window_min", (2, 1)),
    "median": (lambda x: split_rows(x).median(3)[0], "window_median", (2, 1)),
    "prod": (lambda x: split_rows(x).prod(3), "window_product", (2, 1)),
    "logsumexp": (lambda x: split_rows(x).logsumexp(3), "window_logsumexp", (2, 1)),
    "norm": (lambda x: split_rows(x).norm(p=3, dim=3), "window_norm", (2, 1)),
    "std": (lambda x: x.unfold(2, 2, 2).unfold(3, 3, 3).std((-1, -2)), "window_std", (2, 3)),
    "biased variance": (
        lambda x: x.unfold(2, 2, 2).unfold(3, 3, 3).var((-1, -2), correction=0), "window_var", (2, 3)
    ),
    "mean of a stack of phases": (
        lambda x: torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0),
        "window_mean", (2, 2),
    ),
    "maximum of a stack of phases": (
        lambda x: torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0),
        "window_max", (2, 2),
    ),
    "mean of a stack of parts": (
        lambda x: torch.stack(x.tensor_split(8, 2), 2).mean(3), "window_mean", (2, 1)
    ),
    "maximum of a stack of slices": (
        lambda x: torch.stack([x[..., i : i + 3] for i in range(0, 24, 3)], 3).amax(4), "window_max", (1, 3)
    ),
    "mean of pixel_unshuffle": (
        lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).mean(2), "window_mean", (2, 2)
    ),
    "mean of half of the windows of pixel_unshuffle": (
        lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (-1, 2)).mean(2), "window_mean", (1, 2)
    ),
    "mean of im2col": (
        lambda x: F.unfold(x, 2, stride=2).unflatten(1, (-1, 4)).unflatten(-1, (8, 12)).mean(2),
        "window_mean", (2, 2),
    ),
    "tokens behind a class token": (
        lambda x: tokens(x)[:, 1:].unflatten(1, (4, 4, 6, 4)).amax((2, 4)), "window_max", (4, 4)
    ),
    "tokens behind two registers, before one": (
        lambda x: torch.cat([tokens(tokens(x), 2), tokens(x)[:, :1]], 1)[:, 3:-1].unflatten(1, (8, 2, 24))
        .amax(2), "window_max", (2, 1),
    ),
}  # fmt: skip
# What is no lattice any more, or has no dense map: (op, start of the reason).
REASONS: dict[str, tuple[Call, str, str]] = {
    "one row": (lambda x: x[:, :, 3], "select", "one of its 16 rows is kept"),
    "one column of channels-last": (lambda x: x.permute(0, 2, 3, 1)[:, :, -1], "select", "one of its 24 col"),
    "irregular index": (lambda x: x[:, :, [0, 3, 4, 6]], "index", "its samples are picked at positions"),
    "index of the data": (lambda x: x[:, :, x[0, 0].mean(1).argsort()[:8]], "index", "its samples are"),
    "mask of the data": (lambda x: x[:, :, x[0, 0].mean(1) > 0], "index", "its samples are picked at pos"),
    "mask of all": (lambda x: x[x > 0], "index", "its samples are picked"),
    "masked_select": (lambda x: x.masked_select(x > 0), "mask", "its samples are picked one by one"),
    "gather by the data": (lambda x: x.gather(2, x.argsort(2)[:, :, :8]), "gather", "its samples are picked"),
    "the largest of each window": (
        lambda x: (lambda w: w.gather(3, w.detach().cos().argsort(3)[:, :, :, :1])[:, :, :, 0])(
            x.unflatten(2, (8, 2))
        ), "gather", "its samples are picked",
    ),
    "another phase for each image": (
        lambda x: (lambda p: p[torch.arange(len(x)), p.flatten(2).norm(dim=2).argmax(1)])(
            torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        ), "index", "its samples are picked",
    ),
    "topk": (lambda x: x.topk(12, 3)[0], "topk", "its samples are picked by their value"),
    "slice of sorted": (lambda x: x.sort(3)[0][..., ::2], "slice", "its rows and columns are not two axes"),
    "argmax of windows": (lambda x: split_rows(x).argmax(3), "argmax", "it gives the positions of samples"),
    "fractional pool": (
        lambda x: F.fractional_max_pool2d(x, 2, output_size=8), "fractional_max_pool", "its windows are uneq"
    ),
    "product along the rows": (
        lambda x: torch.einsum("bchw,hk->bckw", x, torch.ones(16, 8, device=x.device)), "matmul_pool", "a poo"
    ),
    "matrix from the left": (lambda x: torch.ones(8, 16, device=x.device) @ x, "matmul_pool", "a pool writ"),
    # torch asks first whether there are NaNs, by another operator in each version.
    "quantile": (lambda x: split_rows(x).quantile(0.5, 3), "topk", "its samples are picked by"),
    "complex slice": (lambda x: torch.complex(x, x)[..., ::2].abs(), "slice", "its map is complex"),
    "slice of integers": (lambda x: (x > 0).int()[:, :, ::2], "unrecognised", "its samples are no floating-"),
    "rows added up": (
        lambda x: x.new_zeros(*x.shape[:2], 8, 24).index_add_(2, torch.arange(16) // 2, x),
        "unrecognised", "unrecognised operator aten::index_add_",
    ),
    "rows put on each other": (
        lambda x: x.new_zeros(*x.shape[:2], 8, 24).movedim(2, 0).index_put_(
            (torch.arange(16) // 2,), x.movedim(2, 0), accumulate=True
        ).movedim(0, 2), "unrecognised", "unrecognised operator aten::index_put_",
    ),
    "diagonal": (lambda x: x[..., :16].diagonal(dim1=2, dim2=3), "unrecognised", "unrecognised operator a"),
    "maximum of one phase and twice another": (
        lambda x: torch.maximum(x[..., ::2] * 2, x[..., 1::2]), "window_max", "a pool written as slices"
    ),
    "maximum of sums": (
        lambda x: torch.maximum(x[..., ::4] + x[..., 1::4], torch.maximum(x[..., 2::4], x[..., 3::4])),
        "window_max", "a pool written as slices",
    ),
    "sum of activated phases": (
        lambda x: x[..., ::2].relu() + x[..., 1::2].relu(), "window_blend", "a pool written as slices"
    ),
    "two sums of the same phases": (
        lambda x: torch.cat([x[..., ::2] + x[..., 1::2], x[..., ::2] * 2 + x[..., 1::2] * 2], 1),
        "window_mean", "a pool written as slices",
    ),
    "half of a window": (
        lambda x: split_rows(x)[:, :, :, 1:].squeeze(3), "select", "a part of windows that a view has cut"
    ),
    "half of a window, by split": (
        lambda x: split_rows(x).split(1, 3)[0].squeeze(3), "select", "a part of windows that a view has cut"
    ),
    "one of the unbound windows": (
        lambda x: split_rows(x).unbind(3)[1], "select", "a part of windows that a view has cut"
    ),
    "sum of both halves of a window": (
        lambda x: sum(split_rows(x).split(1, 3)).squeeze(3), "window_mean", "a pool written as slices"
    ),
    "larger of the unbound windows": (
        lambda x: torch.maximum(*split_rows(x).unbind(3)), "window_max", "a pool written as slices"
    ),
    "the smaller of each sorted window": (
        lambda x: split_rows(x).sort(3)[0][:, :, :, 0], "topk", "its samples are picked by their value"
    ),
    "every second piece": (
        lambda x: torch.cat(x.split(1, 2)[::2], 2), "select", "its rows are cut out one by one, 2 apart"
    ),
    "every second cut": (
        lambda x: torch.cat([x[..., i : i + 1] for i in range(0, 24, 3)], 3),
        "select", "its columns are cut out one by one, 3 apart",
    ),
    "every second block": (
        lambda x: torch.cat(x.split(2, 2)[::2], 2), "select", "blocks of its rows are cut out"
    ),
    "rows added two by two": (
        lambda x: torch.stack([x[:, :, i] + x[:, :, i + 1] for i in range(0, 16, 2)], 2),
        "window_blend", "its rows are taken one by one and joined by arithmetic",
    ),
    "unbound columns, the larger of two": (
        lambda x: (lambda c: torch.stack([torch.maximum(a, b) for a, b in zip(c[::2], c[1::2], strict=True)],
                                         3))(x.unbind(3)),
        "window_max", "its columns are taken one by one and joined by arithmetic",
    ),
    "pieces added two by two": (
        lambda x: (lambda c: torch.cat([a + 2 * b for a, b in zip(c[::2], c[1::2], strict=True)], 2))(
            x.split(1, 2)
        ), "window_blend", "its rows are taken one by one and joined by arithmetic",
    ),
    "the first channels of phases by a view": (
        lambda x: phases_first(x)[:, :4], "select", "a phase of windows that are channels"
    ),
    "one of the unbound phases": (
        lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)[3], "select", "a phase of windows"
    ),
    "sum of unbound phases": (
        lambda x: sum(F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)),
        "window_mean", "a pool written as slices",
    ),
    "sum of the parts of phases by a view": (
        lambda x: sum(phases_first(x).chunk(4, 1)), "window_mean", "a pool written as slices"
    ),
    "maximum of phases by a view": (
        lambda x: (lambda a, b, c, d: torch.maximum(torch.maximum(a, b), torch.maximum(c, d)))(
            *phases_first(x).split(4, 1)
        ), "window_max", "a pool written as slices",
    ),
    "the largest of a pyramid's places": (
        lambda x: torch.cat([x.flatten(2), F.interpolate(x, scale_factor=2).flatten(2)], 2).topk(9, 2)[0],
        "topk", "its samples are picked by their value",
    ),
    "sampled at fewer computed places": (
        lambda x: F.grid_sample(
            x, torch.linspace(-1, 1, 12, device=x.device).expand(len(x), 6, 2, 12).movedim(2, 3).sin(),
            align_corners=False,
        ).unflatten(3, (3, 4)).sum(4), "grid_sample", "sampled at computed positions",
    ),
    "two of the Haar bands": (
        lambda x: torch.cat(bands(x)[:2], 1), "window_mean", "a pool written as slices"
    ),
    "sum of phases, joined with itself": (
        lambda x: (lambda y: torch.cat([y, y * 2], 1))(x[:, :, ::2] - x[:, :, 1::2]),
        "window_blend", "a pool written as slices",
    ),
}  # fmt: skip
# Several operators that make one site together, and what they give is known: (op, stride, phase).
JOINED: dict[str, tuple[Call, str, tuple[int, int], tuple[int, int]]] = {
    "unbind": (lambda x: torch.stack(x.unbind(3)[1::2], 3), "select", (1, 2), (0, 1)),
    "a loop": (lambda x: torch.stack([x[:, :, i] for i in range(0, 16, 4)], 2), "select", (4, 1), (0, 0)),
    "sum of phases": (
        lambda x: (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4,
        "window_mean", (2, 2), (0, 0),
    ),
    "maximum of phases": (
        lambda x: torch.maximum(torch.maximum(x[..., ::2, ::2], x[..., 1::2, ::2]),
                                torch.maximum(x[..., ::2, 1::2], x[..., 1::2, 1::2])),
        "window_max", (2, 2), (0, 0),
    ),
    "minimum of halved phases": (
        lambda x: torch.minimum(x[..., ::2] / 2, x[..., 1::2] / 2) * 2, "window_min", (1, 2), (0, 0)
    ),
    "a binomial filter": (
        lambda x: (x[:, :, ::4] + 3 * x[:, :, 1::4] + 3 * x[:, :, 2::4] + x[:, :, 3::4]) / 8,
        "window_blend", (4, 1), (0, 0),
    ),
    "written over a copy": (
        lambda x: x[..., ::2].clone().sub_(x[..., 1::2], alpha=2).mul_(0.5), "window_blend", (1, 2), (0, 0)
    ),
    "means of rows, then of columns": (
        lambda x: x.unfold(2, 2, 2).mean(-1).unfold(3, 3, 3).mean(-1), "window_mean", (2, 3), (0, 0)
    ),
    "maxima of columns, then of rows": (
        lambda x: x.unflatten(3, (12, 2)).amax(4).unflatten(2, (4, 4)).amax(3), "window_max", (4, 2), (0, 0)
    ),
    "phases of channels last": (
        lambda x: (lambda y: (y[:, ::2] + y[:, 1::2]) / 2)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        "window_mean", (2, 1), (0, 0),
    ),
    "Fourier crop": (
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x)[..., :7], s=(16, 12)), "fourier_crop", (1, 2), (0, 0)
    ),
    "Fourier crop as FLC does it": (
        lambda x: torch.fft.ifft2(
            torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft2(x), (2, 3))[:, :, 4:12, 6:18], (2, 3))
        ).real, "fourier_crop", (2, 2), (0, 0),
    ),
    "approximation of a Haar transform": (
        lambda x: LOSSLESS["Haar transform"](x)[:, :4], "window_blend", (2, 2), (0, 0)
    ),
}  # fmt: skip
LOOP = "its windows are cut and reduced one by one"
# Windows cut, reduced and joined by Python: (op, stride, window, output).
LOOPS: dict[str, tuple[Call, str, tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "stack of slices": (
        lambda x: torch.stack([x[:, :, 2 * i : 2 * i + 2].amax(2) for i in range(8)], 2),
        "window_max", (2, 1), (2, 1), (8, 24),
    ),
    "cat of parts": (
        lambda x: torch.cat([part.mean(2, keepdim=True) for part in x.split(2, 2)], 2),
        "window_mean", (2, 1), (2, 1), (8, 24),
    ),
    "activated": (
        lambda x: torch.cat([part.relu().logsumexp(3, keepdim=True) * 2 for part in x.chunk(8, 3)], 3),
        "window_logsumexp", (1, 3), (1, 3), (16, 8),
    ),
    "rows and columns": (
        lambda x: torch.stack([
            torch.stack([x[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].amax((2, 3)) for j in range(8)], 2)
            for i in range(8)
        ], 2), "window_max", (2, 3), (2, 3), (8, 8),
    ),
    "windows that overlap": (
        lambda x: torch.stack([x[:, :, 2 * i : 2 * i + 3].sum(2) for i in range(7)], 2),
        "window_sum", (2, 1), (3, 1), (7, 24),
    ),
    "pools of parts": (
        lambda x: torch.cat([F.max_pool2d(part, (4, 24)) for part in x.split(4, 2)], 2),
        "window_max", (4, 24), (4, 24), (4, 1),
    ),
    "parts that become channels": (
        lambda x: torch.cat([part.mean((2, 3)) for part in x.split(8, 2)], 1),
        "window_mean", (8, 24), (8, 24), (2, 1),
    ),
    "unequal": (
        lambda x: torch.cat([part.amax(2, keepdim=True) for part in x.split([2, 4, 6, 4], 2)], 2),
        "window_max", (0, 0), (1, 1), (4, 24),
    ),
}  # fmt: skip
LOSSLESS: dict[str, Call] = {
    "cat of phases": lambda x: torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1),
    "cat of cats": lambda x: torch.cat(
        [torch.cat([x[..., i::2, ::2], x[..., i::2, 1::2]], 1) for i in (0, 1)], 1
    ),
    "cat of activated phases": lambda x: torch.cat(
        [F.relu(x[..., i::2, j::2] * 2) for i in (0, 1) for j in (0, 1)], 1
    ),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "parts of pixel_unshuffle, joined again": lambda x: torch.cat(
        [part.relu() for part in F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)], 1
    ),
    "parts of phases by a view, joined again": lambda x: torch.cat(
        [part.relu() for part in phases_first(x).chunk(4, 1)], 1
    ),
    "halves of the channels": lambda x: F.pixel_unshuffle(x, 2).chunk(2, 1)[0],
    "Haar transform": lambda x: haar(
        x[..., ::2, ::2] / 2, x[..., 1::2, ::2] / 2, x[..., ::2, 1::2] / 2, x[..., 1::2, 1::2] / 2
    ),
    "Haar transform, in two parts": lambda x: (lambda y: torch.cat([y[:, :4] * 2, y[:, 4:].relu()], 1))(
        LOSSLESS["Haar transform"](x)
    ),
    "Haar bands, returned apart": lambda x: bands(x),
    "Haar bands, the approximation apart": lambda x: (lambda low, *high: (F.relu(low), torch.cat(high, 1)))(
        *bands(x)
    ),
    "Haar transform, rows first": lambda x: haar(
        *[r[..., i::2] / 2 for i in (0, 1) for r in (x[:, :, ::2] / 2, x[:, :, 1::2] / 2)]
    ),
}


def phases_first(x: Tensor) -> Tensor:
    """Space-to-depth by a view: all channels of the first phase, then those of the next."""
    return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def plus_one(x: Tensor | tuple[Tensor, ...]) -> Any:
    return tuple(map(plus_one, x)) if isinstance(x, tuple) else x + 1


def bands(x: Tensor) -> tuple[Tensor, ...]:
    """Average and differences of rows and columns, as tensors of their own."""
    a, b, c, d = (x[..., i::2, j::2] / 2 for j in (0, 1) for i in (0, 1))
    return a + b + c + d, -a - b + c + d, -a + b - c + d, a - b - c + d


def haar(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([a + b + c + d, -a - b + c + d, -a + b - c + d, a - b - c + d], 1)


def tokens(x: Tensor, count: int = 1) -> Tensor:
    """(B, C, H, W) or (B, N, C) → tokens, with others in front that are no samples."""
    x = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
    return torch.cat([torch.zeros(len(x), count, x.shape[2], device=x.device), x], 1)


def windows(x: Tensor) -> Tensor:
    """(B, C, H, W) → the 4 × 4 samples of each window, as an image of its own (B·N, 16, C)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)


def written_to(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :, 1::2].zero_()
    y[..., ::2] = 0.5
    y[:, :, ::2] *= 2
    y[..., 1::2].mul_(2).add_(1)
    return y


# Fewer samples perhaps, but no coarser lattice.
NOTHING: dict[str, Call] = {
    "crop": lambda x: x[:, :, 2:-2, 3:],
    "halves": lambda x: sum(x.chunk(2, 2)),
    "tensor_split": lambda x: x.tensor_split(4, 2)[0],
    "block of a view": lambda x: x.unflatten(2, (2, 8))[:, :, 1],
    "crop of rows taken one by one": lambda x: torch.stack([x[:, :, i] for i in range(4, 12)], 2),
    "rows one by one": lambda x: torch.stack([row * 2 for row in x.unbind(2)], 2),
    "neighbours in another order": lambda x: x[:, :, [2, 1, 0, 1, 2, 3]],
    "gated halves": lambda x: F.glu(x, 3),
    "all pieces": lambda x: torch.cat([piece * 2 for piece in x.split(1, 2)], 2),
    "rolled by pieces": lambda x: torch.cat([x[:, :, 4:], x[:, :, :4]], 2),
    "both borders": lambda x: torch.cat([x[:, :, :2], x[:, :, -2:]], 2),
    "sums of neighbours, one by one": lambda x: torch.stack(
        [a + b for a, b in zip(x.unbind(2), x.unbind(2)[1:], strict=False)], 2
    ),
    "sums of halves": lambda x: x[:, :, :8] + x[:, :, 8:],
    "differences": lambda x: x.diff(dim=2),
    "written to": written_to,
    "only its shape": lambda x: x + torch.ones_like(x[:, :, ::2]).sum(),
    "class token": lambda x: tokens(x)[:, 0],
    "class token of im2col": lambda x: tokens(F.unfold(x, 3, padding=1, stride=1).transpose(1, 2))[:, 0],
    "class token of shuffled places": lambda x: tokens(tokens(x)[:, torch.randperm(385)])[:, 0],
    "register of each window": lambda x: tokens(windows(x))[:, 0],
    "registers of each window": lambda x: tokens(windows(x), 2)[:, :2],
    "registers of each window, by index": lambda x: tokens(windows(x), 2)[:, [0, 1]],
    "registers and windows": lambda x: tokens(windows(x), 16).split(16, 1)[0],
    "im2col at every sample": lambda x: F.unfold(x, 3, padding=1),
    "im2col at every sample inside": lambda x: F.unfold(x, 3, dilation=2),
    "low-pass by Fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5),
    "upsampling by Fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(32, 48)),
    "channels picked": lambda x: x[:, [0, 2]],
    "mean over all channels after space-to-depth": lambda x: x + x.mean(1, keepdim=True),
}  # fmt: skip


def rows(found: list[Site]) -> list[tuple[Any, ...]]:
    return [(s.op, s.stride, s.geometry.phase, s.measurable) for s in found]


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", PICKS)
def test_picks_at_equal_distances(name, real):
    call, stride, phase = PICKS[name]
    (site,) = find_sites(both(net_of(lambda x: call(x) + 1), real), SIZE)
    assert (site.stride, site.geometry.phase, site.measurable) == (stride, phase, True)
    assert site.rule is not None
    assert site.rule.startswith("the map itself")
    assert site.channels == 4
    if name != "after circular padding":
        assert site.input_size == SIZE
    check_identity(net_of(lambda x: call(x) + 1), site)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_reductions_over_windows(name, real):
    call, op, window = POOLS[name]
    (site,) = find_sites(both(net_of(lambda x: call(x) + 1), real), SIZE)
    assert (site.op, site.stride, site.kernel, site.measurable) == (op, window, window, True)
    assert site.input_size == SIZE
    check_identity(net_of(lambda x: call(x) + 1), site)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", REASONS)
def test_what_has_no_dense_map_says_why(name, real):
    call, op, reason = REASONS[name]
    found = find_sites(both(net_of(lambda x: call(x) + 1), real), SIZE)
    site, *others = [site for site in found if name != "quantile" or site.op != "condition"]
    assert (site.op, site.measurable) == (op, False)
    assert site.reason is not None
    assert site.reason.startswith(reason)
    assert others == [] or name in ("index of the data", "mask of the data")


@pytest.mark.parametrize("name", JOINED)
def test_several_operators_that_make_one_site(name):
    """What they give is the decimated dense map, also behind an activation that follows."""
    call, op, stride, phase = JOINED[name]
    net = net_of(lambda x: call(x).sigmoid())
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.stride, site.geometry.phase, site.measurable) == (op, stride, phase, True)
    assert site.signal == "dense: several operators make its output"
    assert [s.geometry for s in find_sites(both(net, real=True), SIZE)] == [site.geometry]
    x = image(2, 3, *SIZE)
    with FeatureExtractor(net, [site], tap="dense") as dense:
        net(x)
    left = dense[site.name][..., phase[0] :: stride[0], phase[1] :: stride[1]]
    torch.testing.assert_close(left, call(net[0](x)))
    check_identity(net, site)


def test_means_of_rows_that_are_used_are_a_site_of_their_own():
    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.unfold(2, 2, 2).mean(-1)
        return rows.unfold(3, 2, 2).mean(-1), rows + 1

    assert [site.stride for site in find_sites(net_of(block), SIZE)] == [(2, 1), (1, 2)]


@pytest.mark.parametrize("whole", [False, True])
def test_sums_of_slices_that_are_sliced_again_are_used(whole):
    def split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        even, odd = (x[(slice(None),) * axis + (slice(i, None, 2),)] for i in (0, 1))
        return (even + odd) / 2, (even - odd) / 2

    def transform(x: Tensor) -> Tensor:
        low, high = split(x, 2)
        return torch.cat([*split(low, 3), *split(high, 3)], 1) if whole else split(low, 3)[0]

    sites = find_sites(net_of(transform), SIZE)
    op = "space_to_depth" if whole else "window_mean"
    assert [(site.op, site.stride) for site in sites] == [(op, (2, 1)), (op, (1, 2))] + whole * [(op, (1, 2))]
    assert all(site.lossless if whole else site.measurable for site in sites)


def test_what_several_operators_make_is_that_of_one_size_and_is_not_replaced():
    net = nn.Sequential(net_of(JOINED["sum of phases"][0]), nn.MaxPool2d(2))
    site, _ = find_sites(net, SIZE)
    with (
        FeatureExtractor(net, [site], tap="dense"),
        pytest.raises(SpectralError, match=r"was found on maps of .* call find_sites again"),
    ):
        net(image(2, 3, 16, 8))
    rows = conversion_report(convert(net, "blurpool", example=SIZE)).rows
    assert [row.reason for row in rows if not row.replaced] == [
        "several operators make it, of which none could be replaced: write it as one"
    ]


def test_the_gradient_of_what_several_operators_make():
    net = net_of(lambda x: (x[..., ::2] - x[..., 1::2]) / 2)
    (site,) = find_sites(net, SIZE)
    with FeatureExtractor(net, [site], tap="output", detach=False) as out:
        y = net(image(2, 3, *SIZE))
    grads = [
        torch.autograd.grad(z.square().sum(), net[0].weight, retain_graph=True)[0]
        for z in (y, out[site.name])
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("name", "stride", "left"),
    [("Fourier crop", (1, 2), (16, 12)), ("Fourier crop as FLC does it", (2, 2), (8, 12))],
)
def test_a_fourier_crop_enters_as_a_map(name, stride, left):
    (site,) = find_sites(net_of(lambda x: JOINED[name][0](x) + 1), SIZE)
    assert (site.stride, site.input_size, site.output_size) == (stride, SIZE, left)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_windows_that_python_cuts_and_joins_are_a_pool(name, real):
    call, op, stride, window, left = LOOPS[name]
    net = both(net_of(lambda x: call(x) + 1), real)
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.stride, site.kernel, site.measurable) == (op, stride, window, False)
    assert site.reason is not None
    assert site.reason.startswith(LOOP)
    assert (site.input_size, site.output_size) == (SIZE, left)
    assert find_global_pools(net, SIZE) == []


@pytest.mark.parametrize("real", [False, True])
def test_what_comes_behind_a_loop_is_seen(real):
    net = net_of(lambda x: torch.cat([part.mean(2, keepdim=True) for part in x.split(2, 2)], 2)[:, :, ::2])
    loop, behind = find_sites(both(net, real), SIZE)
    assert (loop.stride, behind.stride, behind.input_size, behind.measurable) == (
        (2, 1),
        (2, 1),
        (8, 24),
        True,
    )


@pytest.mark.parametrize("real", [False, True])
def test_a_loop_over_every_sample_is_no_decimation(real):
    net = net_of(lambda x: torch.stack([x[:, :, i : i + 3].amax(2) for i in range(14)], 2))
    assert find_reductions(both(net, real), SIZE) == []
    gates = net_of(lambda x: torch.cat([part * part.mean((2, 3), keepdim=True) for part in x.chunk(2, 2)], 2))
    assert find_sites(gates, SIZE) == []
    assert len(find_global_pools(gates, SIZE)) == 2


def test_nothing_that_was_detected_is_joined_with_what_is_fixed():
    net = net_of(lambda x: torch.cat([x.flatten()[:0], torch.ones(3, device=x.device)]))
    assert find_sites(net, SIZE) == []


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_where_the_phases_stay_apart(name):
    (site,) = find_sites(net_of(lambda x: plus_one(LOSSLESS[name](x))), SIZE)
    assert (site.op, site.stride, site.lossless) == ("space_to_depth", (2, 2), True)
    assert (site.input_size, site.output_size) == (SIZE, (8, 12))


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", NOTHING)
def test_a_crop_is_no_decimation(name, real):
    assert find_sites(both(net_of(lambda x: NOTHING[name](x) + 1), real), SIZE) == []


def both(net: nn.Module, real: bool) -> nn.Module:
    return nets.OnlyRealData(net) if real else net


def check_identity(net: nn.Module, found: Site) -> None:
    """dense[φ::s][:n] is what the site gives, to rounding."""
    (site,) = find_sites(net, SIZE)
    assert (site.op, site.stride) == (found.op, found.stride)
    x = image(2, 3, *SIZE)
    with (
        FeatureExtractor(net, [site], tap="dense") as dense,
        FeatureExtractor(net, [site], tap="output") as out,
    ):
        net(x)
    cuts = [slice(p, None, s) for p, s in zip(site.geometry.phase, site.stride, strict=True)]
    kept = dense[site.name][(..., *cuts)][(..., *map(slice, site.output_size))]
    assert kept.shape[-2:] == site.output_size
    torch.testing.assert_close(kept, out[site.name], rtol=1e-5, atol=1e-6)


def test_a_slice_that_is_used_by_itself_too_stays():
    """The mean of the phases next to the first of them: both would be lost if they were one."""

    def block(x: Tensor) -> Tensor:
        a, b = x[:, :, ::2], x[:, :, 1::2]
        return torch.cat([(a + b) / 2, F.conv2d(a, torch.ones(4, 4, 1, 1, device=a.device))], 1)

    assert rows(find_sites(net_of(block), SIZE)) == [
        ("slice", (2, 1), (0, 0), True), ("slice", (2, 1), (1, 0), True)
    ]  # fmt: skip


def test_a_linear_layer_along_the_columns():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 24))
    (site,) = find_sites(net, SIZE)
    assert (site.name, site.op, site.measurable) == ("1", "matmul_pool", False)
    assert (site.input_size, site.output_size) == ((16, 24), (16, 12))
    assert site.reason == "a matrix along one of its axes: what is left of that axis is no lattice"
    wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))
    assert [(s.name, s.output_size) for s in find_sites(wide, SIZE)] == [("1", (16, 48))]
    signal = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Linear(32, 8))
    assert [s.output_size for s in find_sites(signal, image(1, 2, 32))] == [(1, 8)]


def test_a_linear_layer_over_all_places_is_no_lattice():
    """An MLP mixer's, with fewer places in between: apart from the sites, and with its reason."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2), nn.Linear(384, 32), nn.Linear(32, 384))
    assert find_sites(net, SIZE) == []
    (pool,) = find_global_pools(net, SIZE)
    assert (pool.name, pool.input_size) == ("2", SIZE)
    assert pool.reason == "a matrix over all its places: what is left is no lattice"


def test_one_complex_convolution_is_one_site():
    net = nn.Sequential(
        nets.Call(lambda m, x: torch.complex(x, -x)), nn.Conv2d(3, 4, 3, 2, dtype=torch.complex64),
        nets.Call(lambda m, x: x.abs()), nn.Conv2d(4, 2, 3, 2),
    )  # fmt: skip
    first, second = find_sites(net, 32)
    assert (first.name, first.op, first.stride, first.measurable) == ("1", "conv", (2, 2), False)
    assert first.reason == "a complex convolution, and the metrics are those of real maps"
    assert (second.name, second.measurable) == ("3", True)


KERNELS: dict[str, tuple[list[list[float]], str]] = {
    "box": ([[1, 1], [1, 1]], "blur_pool"),
    "binomial": ([[1, 2, 1], [2, 4, 2], [1, 2, 1]], "blur_pool"),
    "identity": ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], "conv"),
    "Laplacian": ([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], "conv"),
    "difference": ([[1, -1]], "conv"),
    "along the rows only": ([[1], [1]], "conv"),
    "hardly a filter": ([[0, 1, 0], [1, 20, 1], [0, 1, 0]], "conv"),
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_blur_is_a_low_pass(name, real):
    weights, op = KERNELS[name]

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.tensor(weights, dtype=torch.float32))

        def forward(self, x: Tensor) -> Tensor:
            kernel = self.kernel / self.kernel.abs().sum()
            return F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), stride=2, groups=x.shape[1])

    (site,) = find_sites(both(nn.Sequential(Fixed()), real), SIZE)
    assert site.op == op


def test_the_trail_goes_on_behind_integers_and_numpy():
    def look(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        x = m.first(x.float() / 255) * mask
        return m.second(x)[:, :, ::2]

    net = nets.Call(look, first=nn.Conv2d(3, 4, 3, 2, 1), second=nn.Conv2d(4, 4, 3, 2, 1))
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    expected = [("first", "conv"), ("", "slice"), ("second", "conv")]
    found = find_sites(net, (pixels, torch.ones(1, 1, 16, 16)))
    assert sorted((s.module, s.op) for s in found) == sorted(expected)

    def around(m: Any, x: Tensor) -> Tensor:
        y = m.first(x).detach().cpu().numpy()
        return m.second(torch.from_numpy(y * 2)[:, :, ::2] + 1)

    outside = nets.Call(around, first=nn.Conv2d(3, 4, 3, 2, 1), second=nn.Conv2d(4, 4, 3, 2, 1))
    assert [(s.op, s.input_size) for s in find_sites(outside, 32)] == [
        ("conv", (32, 32)), ("slice", (16, 16)), ("conv", (8, 16))
    ]  # fmt: skip


def test_a_map_that_was_made_smaller_outside_torch_is_reported():
    def around(m: Any, x: Tensor) -> Tensor:
        return m.second(torch.from_numpy(m.first(x).detach().numpy()[:, :, ::2, ::2].copy()))

    net = nets.Call(around, first=nn.Conv2d(3, 4, 3, 1, 1), second=nn.Conv2d(4, 4, 3, 2, 1))
    outside, conv = find_sites(net, 32)
    assert (outside.op, outside.input_size, outside.output_size) == ("outside", (32, 32), (16, 16))
    assert (
        outside.reason
        == "a smaller map that no torch operator made (NumPy?): what was done to it can't be seen"
    )
    assert (conv.op, conv.input_size) == ("conv", (16, 16))


def test_a_single_sample_of_a_video_is_no_lattice():
    (site,) = find_sites(nn.Sequential(nn.Conv3d(3, 4, 4, 4)), (3, 4, 4, 4))
    assert (site.measurable, site.reason) == (False, "a single sample is left, which is no lattice")


STATISTICS: dict[str, Call] = {
    "sum": lambda x: x.sum((2, 3)),
    "std": lambda x: x.std((2, 3)),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "logsumexp": lambda x: x.flatten(2).logsumexp(-1),
    "median": lambda x: x.flatten(2).median(-1)[0],
    "whole window with stride 1": lambda x: F.avg_pool2d(x, SIZE, 1),
    "mean and class token": lambda x: tokens(x).mean(1),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_global_pools_of_every_kind(name):
    net = net_of(lambda x: STATISTICS[name](x) + 1)
    assert find_sites(net, SIZE) == []
    (pool,) = find_reductions(net, SIZE)
    assert (pool.op, pool.input_size, pool.reason) == ("global_pool", SIZE, "a global pool")


class LooksLikeOurs(nn.Module):
    """Not a layer of ours, although it has the attributes that these have."""

    kind, stride = "low_pass", (2, 2)

    def dense(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)


def test_a_layer_of_ours_is_known_by_its_class():
    (site,) = find_sites(nn.Sequential(LooksLikeOurs()), 16)
    assert (site.op, site.family) == ("max_pool", "operator")
    for call in (lambda m, x: m.pool(x), lambda m, x: m.pool(x=x)):
        (site,) = find_sites(nets.Call(call, pool=IdealLowPass2d(2)), 16)
        assert (site.name, site.op, site.family) == ("pool", "low_pass", "layer")
    (site,) = find_sites(nn.Sequential(FLCPool2d(compat="paper")), 16)
    assert (site.op, site.measurable) == ("low_pass", False)
    assert site.reason == "compat='paper' crops the spectrum: it has no map before decimation"


@pytest.mark.parametrize("channels", [1, 6])
def test_a_short_time_fourier_transform(channels):
    """Its frequencies are no axis of the signals: their channels (microphones, electrodes) stay channels."""

    def spectrogram(m: Any, x: Tensor) -> Tensor:
        window = torch.hann_window(64, device=x.device)
        power = torch.stft(x.flatten(0, 1), 64, 16, window=window, return_complex=True).abs().square()
        return m.conv(power.unflatten(0, x.shape[:2]))

    net = nets.Call(spectrogram, conv=nn.Conv2d(channels, 4, 3, (2, 1)))
    found = find_sites(net, image(1, channels, 1024))
    assert found[0].input_size == (1, 1024 + 64)
    assert [(s.op, s.stride, s.kernel, s.output_size) for s in found] == [
        ("stft", (1, 16), (1, 64), (1, 65)), ("conv", (2, 1), (3, 3), (16, 63))
    ]  # fmt: skip


def test_an_inverse_transform_lays_windows_over_each_other():
    """Frequencies that a convolution slides over are an axis, and samples again in the end."""

    def forward(m: Any, x: Tensor) -> Tensor:
        window = torch.hann_window(64, device=x.device)
        spectra = torch.stft(x.flatten(1), 64, 16, window=window, return_complex=True)
        mask = m.conv(torch.view_as_real(spectra).movedim(3, 1)).sigmoid()
        masked = (mask * torch.view_as_real(spectra).movedim(3, 1)).movedim(1, 3).contiguous()
        return torch.istft(torch.view_as_complex(masked), 64, 16, window=window).unsqueeze(1)[..., ::2]

    found = find_sites(nets.Call(forward, conv=nn.Conv2d(2, 2, 3, padding=1)), image(1, 1, 1024))
    assert [(s.op, s.stride, s.output_size) for s in found] == [
        ("stft", (1, 16), (1, 65)), ("slice", (1, 2), (1, 512))
    ]  # fmt: skip


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_takes_a_sequence_for_a_sequence(kind, real):
    """Its steps are no phases that are taken by themselves, also where windows are the sequences."""

    def forward(m: Any, x: Tensor) -> Tensor:
        windows = x.unflatten(2, (8, 4)).permute(0, 2, 3, 1).flatten(0, 1)
        steps = m.rnn(windows)[0].unflatten(0, (-1, 8)).flatten(1, 2).transpose(1, 2)
        return steps[..., ::2] + 1

    net = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nets.Call(forward, rnn=kind(4, 5, batch_first=True)))
    (site,) = find_sites(both(net, real), image(1, 2, 32))
    assert (site.op, site.stride, site.input_size) == ("slice", (1, 2), (1, 32))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("first", [False, True])
def test_a_recurrent_layer_without_data_takes_one_step_for_all(kind, first):
    counted: list[int] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted[-1] += 1
            return func(*args, **(kwargs or {}))

    def watch(model: Any, inputs: Any, weights: Any, forward: Any) -> Any:
        counted.append(0)
        with Counting():
            return forward()

    net = kind(4, 5, 2, batch_first=first, bidirectional=True)
    for steps in (2, 90):
        x = torch.rand(3, steps, 4) if first else torch.rand(steps, 3, 4)
        seen = run_on_standins(net, make_inputs(x), watch, batch=None)
        found, expected = ([y.shape for y in tree_leaves(output)] for output in (seen, net(x)))
        assert found == expected
    assert counted[1] == counted[0]


class Frames(nn.Module):
    """Takes videos (B, T, C, H, W) frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patches(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return maps[:, ::2]


class Last(nn.Module):
    """Takes images (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y[:, ::2, 1::2] * y.mean((1, 2), keepdim=True)


class Rows(nn.Module):
    """Takes signals (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)[:, ::3]


class Cut(nn.Module):
    """Cuts signals (B, T, C) into pieces, as PatchTST."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(1, 5, 5).mean(-1)


class Warped(nn.Module):
    """A table of its own is sampled before the image, which has its channels last, is slid over."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(1, 3, 8, 8))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        tables = self.table.expand(len(x), -1, -1, -1)
        warped = F.grid_sample(tables, x[..., :2].cos(), align_corners=False)
        return self.conv(x.permute(0, 3, 1, 2) + warped)[:, :, ::2]


@pytest.mark.parametrize("real", [False, True])
def test_a_table_that_is_sampled_first_says_nothing_of_the_image(real):
    (site,) = find_sites(both(Warped(), real), torch.rand(1, 16, 24, 3))
    assert (site.op, site.stride, site.input_size, site.measurable) == ("slice", (2, 1), SIZE, True)


@pytest.mark.parametrize("real", [False, True])
def test_images_whose_axes_are_in_another_order(real):
    """What is slid over first are places, what a convolution sums over are channels."""
    (pool,) = find_global_pools(both(Last(), real), torch.rand(1, 16, 24, 3))
    assert pool.input_size == SIZE
    (site,) = find_sites(both(Last(), real), torch.rand(1, 16, 24, 3))
    assert (site.op, site.stride, site.geometry.phase, site.measurable) == ("slice", (2, 2), (0, 1), True)
    assert (site.input_size, site.channels) == (SIZE, 4)
    patches, time = find_sites(both(Frames(), real), torch.rand(1, 6, 3, 16, 24))
    assert (patches.stride, patches.input_size, patches.output_size) == ((4, 4), SIZE, (4, 6))
    assert (time.stride, time.input_size, time.output_size) == ((2, 1, 1), (6, 4, 6), (3, 4, 6))
    conv, every_third = find_sites(both(Rows(), real), torch.rand(1, 31, 3))
    assert (conv.stride, conv.output_size) == ((1, 2), (1, 15))
    assert (every_third.stride, every_third.output_size) == ((1, 3), (1, 5))
    (pieces,) = find_sites(both(Cut(), real), torch.rand(1, 31, 3))
    assert (pieces.stride, pieces.input_size, pieces.measurable) == ((1, 5), (1, 30), True)


def test_a_network_whose_weights_get_their_shape_later():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LazyConv2d(4, 1))
    assert [site.name for site in find_sites(net, torch.rand(1, 3, 16, 16))] == ["0"]


def test_features_beside_a_map_s_channels_are_no_signal():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 + 4, 5)

        def forward(self, x: Tensor, v: Tensor) -> Tensor:
            return self.head(torch.cat([F.relu(self.conv(x)).mean((2, 3)), v], 1))

    example = (torch.zeros(2, 3, 16, 16), torch.zeros(2, 4))
    assert [site.name for site in find_sites(Two(), example=example)] == ["conv"]
