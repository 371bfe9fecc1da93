"""Random networks of reducing operators against what a sample of the output depends on, found numerically."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import networks as nets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spectral.sites import find_reductions

SIZE = 20
Operator = Callable[[Tensor], Tensor]
# Each keeps (B, C, rows, columns). Whether it has a coarser lattice is for the gradients to say.
OPERATORS: dict[str, Operator] = {
    "convolution": lambda x: F.conv2d(x, torch.ones(2, 2, 3, 3, device=x.device), stride=2, padding=1),
    "convolution of rows": lambda x: F.conv2d(x, torch.ones(2, 2, 3, 1, device=x.device), stride=(2, 1)),
    "convolution that keeps": lambda x: F.conv2d(x, torch.ones(2, 2, 3, 3, device=x.device), padding=1),
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "smoothing": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "slice": lambda x: x[:, :, ::2],
    "slice of channels": lambda x: x[:, ::2].repeat(1, 2, 1, 1),
    "crop": lambda x: x[..., 1:-1],
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll(1, 2),
    "index": lambda x: x[..., torch.arange(0, x.shape[-1], 2)],
    "index_select": lambda x: x.index_select(2, torch.arange(1, x.shape[2], 2, device=x.device)),
    "select": lambda x: x[..., : x.shape[-1] // 2 * 2].unflatten(3, (-1, 2))[..., 1],
    "unbind": lambda x: torch.stack(x.unbind(2)[::2], 2),
    "unbind, all": lambda x: torch.stack(x.unbind(2), 2),
    "window sum": lambda x: x[:, :, : x.shape[2] // 2 * 2].unflatten(2, (-1, 2)).sum(3),
    "window deviation": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).var((-1, -2)),
    "phases added": lambda x: x[:, :, : x.shape[2] // 2 * 2 : 2] + x[:, :, 1::2],
    "transposed": lambda x: x.transpose(2, 3),
    "channels last": lambda x: x.permute(0, 2, 3, 1)[:, ::2].permute(0, 3, 1, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=0.5),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, x.shape[2:]),
    "pieces": lambda x: torch.cat(x.split(1, 2)[::2], 2),
    "pieces, all": lambda x: torch.cat([piece * 2 for piece in x.split(1, 3)], 3),
    "cuts of one": lambda x: torch.cat([x.narrow(3, i, 1) for i in range(0, x.shape[3], 3)], 3),
    "rows added two by two": lambda x: torch.stack(
        [x[:, :, i] + x[:, :, i + 1] for i in range(0, x.shape[2] - 1, 2)], 2
    ),
    "neighbours added": lambda x: torch.stack(
        [a + b for a, b in zip(x.unbind(3)[:-1], x.unbind(3)[1:], strict=True)], 3
    ),
    "unbound, the larger of two": lambda x: (
        lambda c: torch.stack([torch.maximum(a, b) for a, b in zip(c[::2], c[1::2], strict=True)], 2)
    )(even(x, 2).unbind(2)),
    "one of a window": lambda x: even(x, 3).unflatten(3, (-1, 2)).split(1, 4)[1].squeeze(4),
    "half of a window": lambda x: even(x, 2).unflatten(2, (-1, 2))[:, :, :, :1].squeeze(3),
    "unbound window": lambda x: even(x, 2).unflatten(2, (-1, 2)).unbind(3)[0],
    "window added": lambda x: sum(even(x, 3).unflatten(3, (-1, 2)).unbind(4)),
    "window norm": lambda x: even(x, 2).unflatten(2, (-1, 2)).norm(dim=3),
    "window maximum": lambda x: even(x, 2).unflatten(2, (-1, 2)).amax(3),
    "window median": lambda x: even(x, 2).unflatten(2, (-1, 2)).median(3)[0],
    "sorted window": lambda x: even(x, 2).unflatten(2, (-1, 2)).sort(3)[0][:, :, :, 0],
    "blocks": lambda x: even(x, 2).unflatten(2, (2, -1))[:, :, 1],
    "a phase of channels": lambda x: F.pixel_unshuffle(even(even(x, 2), 3), 2)[:, ::4],
    "phases kept by a convolution": lambda x: F.conv2d(
        F.pixel_unshuffle(even(even(x, 2), 3), 2), torch.ones(2, 8, 1, 1, device=x.device)
    ),
    "mean of phases": lambda x: F.pixel_unshuffle(even(even(x, 2), 3), 2).unflatten(1, (-1, 4)).mean(2),
    "product from the left": lambda x: torch.eye(x.shape[2], device=x.device)[::2] @ x,
    "bilinear": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "bilinear, smoothed": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "area": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "power pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3])),
    "volume": lambda x: F.conv3d(x[:, :, None], torch.ones(2, 2, 1, 2, 2, device=x.device), stride=(1, 2, 1))[
        :, :, 0
    ],
    "rows as signals": lambda x: (
        F.avg_pool1d(x.transpose(1, 2).flatten(0, 1), 2).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
    ),
    "strided view": lambda x: x.contiguous().as_strided(
        (len(x), 2, x.shape[2] // 2, x.shape[3]),
        (2 * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], 2 * x.shape[3], 1),
    ),
    "turned": lambda x: torch.rot90(x, 1, (2, 3)),
    "summed by index": lambda x: torch.zeros(
        len(x), 2, (x.shape[2] + 1) // 2, x.shape[3], device=x.device
    ).index_add(2, torch.arange(x.shape[2], device=x.device) // 2, x),
    "along": lambda x: x.cumsum(3),
    "differences": lambda x: x.diff(dim=2),
    "differences, every second": lambda x: x.diff(dim=3)[..., ::2],
    "kept by sorting channels": lambda x: x.sort(1)[0],
    "gated": lambda x: F.glu(x.repeat(1, 2, 1, 1), 1),
}


def even(x: Tensor, axis: int) -> Tensor:
    """Leave out the last of an odd number of samples."""
    return x.narrow(axis, 0, x.shape[axis] // 2 * 2)


def is_coarser(centres: set[float]) -> bool:
    """Whether neighbouring samples are further apart than one sample of the input: a crop's are not."""
    ordered = sorted(centres)
    gaps = [b - a for a, b in pairwise(ordered)]
    return not gaps or sorted(gaps)[len(gaps) // 2] > 1.5


@pytest.mark.parametrize("name", OPERATORS)
def test_an_event_for_each_operator_with_a_coarser_lattice_and_for_no_other(name):
    operator = OPERATORS[name]
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nets.Call(lambda m, x: operator(x) * 1.5)).eval()
    found = find_reductions(net, (2, SIZE, SIZE - 4))
    assert len(found) == loses_places(operator, (SIZE, SIZE - 4)), found


@given(names=st.lists(st.sampled_from(list(OPERATORS)), min_size=1, max_size=2))
@settings(max_examples=25)
def test_a_chain_has_an_event_for_each_operator_with_a_coarser_lattice(names):
    x = torch.rand(1, 2, SIZE, SIZE)
    modules, expected = [], []
    for name in names:
        operator = OPERATORS[name]
        expected.append(loses_places(operator, (x.shape[2], x.shape[3])))
        modules.append(nets.Call(lambda m, x, operator=operator: operator(x) * 1.5))
        x = operator(x)
    found = find_reductions(nn.Sequential(*modules), (2, SIZE, SIZE))
    events = [any(site.module == str(i) for site in found) for i in range(len(names))]
    assert events == expected, names


def loses_places(operator: Operator, size: tuple[int, int]) -> bool:
    """Whether the output's samples lie further apart than the input's, by what each depends on."""
    generator = torch.Generator().manual_seed(0)
    depends: Any = False
    for _ in range(4):  # the largest of a window is another one each time
        x = torch.randn(1, 2, *size, generator=generator)
        jacobian = (
            torch.autograd.functional.jacobian(lambda x: operator(x).sum(1)[0], x, vectorize=True)
            .abs()
            .sum((2, 3))
        )
        depends = depends | (jacobian > 0)
    return any(is_coarser(find_centres(depends.any(5 - axis))) for axis in (2, 3))


def find_centres(depends: Tensor) -> set[float]:
    """Of the output's two axes, take the one that an input axis has become: it has more centres."""
    return max((find_middles(depends.any(other)) for other in (0, 1)), key=len)


def find_middles(depends: Tensor) -> set[float]:
    places = torch.arange(depends.shape[1]).where(depends, -1)
    return {(row.min() + row.max()).item() / 2 for row in (r[r >= 0] for r in places) if len(row)}
