"""Random networks of reducing operators against what a sample of the output depends on, found numerically."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import networks as nets
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spectral.sites import find_reductions

SIZE = 24
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
}


def is_coarser(centres: set[float]) -> bool:
    """Whether neighbouring samples are further apart than one sample of the input: a crop's are not."""
    ordered = sorted(centres)
    gaps = [b - a for a, b in pairwise(ordered)]
    return not gaps or sorted(gaps)[len(gaps) // 2] > 1.5


@given(names=st.lists(st.sampled_from(list(OPERATORS)), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
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
    x = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda x: operator(x).sum(1)[0], x).abs().sum((2, 3))
    depends = jacobian.flatten(0, 1) > 0
    for axis, n in ((2, size[0]), (1, size[1])):
        places = torch.arange(n).where(depends.any(axis), -1)
        middles = {(row.min() + row.max()).item() / 2 for row in (r[r >= 0] for r in places) if len(row)}
        if is_coarser(middles):
            return True
    return False
