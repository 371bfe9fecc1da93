"""Operators without data: what is made again is what torch makes, and what shares memory isn't made again."""

from __future__ import annotations

import pytest
import torch

from spectral.tracing.dataless import Dataless, run_operator
from spectral.tracing.tensors import TensorTable

aten = torch.ops.aten


def make(*size, dtype=torch.float32, memory=torch.contiguous_format):
    return torch.empty(size, dtype=dtype, device="meta", memory_format=memory)


def facts(out):
    outputs = out if isinstance(out, tuple) else (out,)
    return [(y.shape, y.stride(), y.dtype, y.untyped_storage().nbytes()) for y in outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("func", "others"),
    [
        (aten.gelu.default, ()),
        (aten.add.Tensor, (1,)),
        (aten.mean.dim, ([2, 3], True)),
        (aten.max_pool2d_with_indices.default, ([2, 2], [2, 2])),
        (aten.native_layer_norm.default, ([5], None, None, 1e-5)),
        (aten._to_copy.default, ()),
        (aten.constant_pad_nd.default, ([1, 1], 0.0)),
    ],
)
def test_what_is_made_again_is_what_torch_makes(func, others, dtype, memory):
    expected = facts(func(make(2, 3, 4, 5, dtype=dtype, memory=memory), *others))
    for _ in range(2):
        assert (
            facts(run_operator(func, (make(2, 3, 4, 5, dtype=dtype, memory=memory), *others), {})) == expected
        )


def test_numbers_of_another_type_and_another_default_give_another_dtype():
    x = make(3, dtype=torch.int64)
    for other, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
        for _ in range(2):
            assert run_operator(aten.add.Tensor, (x, other), {}).dtype == dtype
    torch.set_default_dtype(torch.float64)
    try:
        assert run_operator(aten.add.Tensor, (x, 1.0), {}).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_views_and_what_changes_in_place_keep_their_memory():
    for _ in range(2):
        x = make(2, 3)
        y = run_operator(aten.view.default, (x, [6]), {})
        assert y.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert run_operator(aten.relu_.default, (x,), {}) is x
        assert run_operator(aten.t_.default, (x,), {}).shape == (3, 2)
        assert x.shape == (3, 2)
        other = make(3, 2)
        run_operator(aten.set_.source_Tensor, (x, other), {})
        assert x.untyped_storage()._cdata == other.untyped_storage()._cdata


def test_an_error_is_torchs_each_time():
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"broadcast|must match"):
            run_operator(aten.add.Tensor, (make(2, 3), make(2, 4)), {})


def test_weights_drawn_without_data_are_as_they_are_without_this():
    with Dataless(), torch.device("meta"):
        layer = torch.nn.Linear(3, 4)
    assert layer.weight.is_meta
    assert layer.weight.shape == (4, 3)
    assert layer.weight.requires_grad


def test_a_table_tells_tensors_apart_and_lets_them_go():
    table, x, twin = TensorTable[int](), torch.ones(2), torch.ones(2)
    table[x], view = 1, x[:]
    assert (table.get(x), table.get(twin), view in table) == (1, None, False)
    assert table.setdefault(twin, 2) == table.setdefault(twin, 3) == table[twin] == 2
    assert [value for _, value in table.items()] == [1, 2]
    assert (table.pop(x), table.pop(x, 0), len(table)) == (1, 0, 1)
    with pytest.raises(KeyError):
        table[x]
    del twin
    assert not list(table)
