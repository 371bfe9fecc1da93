"""The contract of a site: dense[φ::s][:n] is the output, for every operator kind and any configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import image
from torch import Tensor, nn

from spectral.decimation import Decimation, Geometry, parse
from spectral.recorder import Frame, Recorder

SETTINGS = settings(max_examples=120, deadline=None, database=None, derandomize=True)
FEW = settings(SETTINGS, max_examples=40)
LEVELS = {"decomposed": torch.no_grad, "undecomposed": torch.inference_mode}
aten = torch.ops.aten

levels = st.sampled_from(list(LEVELS))
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
small = st.tuples(st.integers(1, 6), st.integers(1, 6))
kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
strides = st.one_of(
    st.sampled_from([(2, 1), (1, 2), (3, 2), (2, 2), (4, 4)]), st.tuples(st.integers(1, 5), st.integers(1, 5))
)
dilations = st.tuples(st.integers(1, 3), st.integers(1, 3))
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


def record(call: Callable[[], Any], level: str = "decomposed") -> list[tuple[Decimation, Tensor]]:
    """All decimations that a call runs, with their outputs."""
    found: list[tuple[Decimation, Tensor]] = []
    recorder = Recorder(lambda frame, index, decimation, output: found.append((decimation, output)))
    recorder.frames.append(Frame("m", nn.Identity(), 0, ()))
    with LEVELS[level](), recorder:
        call()
        recorder.flush()
    return found


def record_one(call: Callable[[], Any], level: str = "decomposed") -> tuple[Decimation, Tensor]:
    found = record(call, level)
    assert len(found) == 1
    return found[0]


def decimate(dense: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    (s_h, s_w), (p_h, p_w) = geometry.stride, geometry.phase
    return dense[..., p_h::s_h, p_w::s_w][..., : size[0], : size[1]]


def assert_identity(decimation: Decimation, output: Tensor, expected: Tensor) -> None:
    assert torch.equal(output, expected), "the recorded output is not the operator's"
    size = (output.shape[-2], output.shape[-1])
    dense = decimation.dense(size)
    kept = decimate(dense, decimation.geometry, size)
    assert kept.shape == output.shape
    if decimation.geometry.kind == "conv":
        assert (kept - output).abs().max() <= 2e-6 * dense.abs().max()
    else:
        assert torch.equal(kept, output)


def sliding(x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Every sample of each stride-1 window, in a new first axis: from shifted copies, no pooling operator."""
    views = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            views.append(x[..., top : top + size[0], left : left + size[1]])
    return torch.stack(views)


def surround(x: Tensor, padding: tuple[int, int], beyond: int, value: float) -> Tensor:
    """Pad by ``padding`` on the left and by ``padding + beyond`` on the right."""
    (p_h, p_w), (h, w) = padding, x.shape[-2:]
    wide = x.new_full((*x.shape[:-2], h + 2 * p_h + beyond, w + 2 * p_w + beyond), value)
    wide[..., p_h : p_h + h, p_w : p_w + w] = x
    return wide


@given(
    size=sizes, kernel=kernels, stride=strides, dilation=dilations, bias=st.booleans(), layout=formats,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), groups=st.sampled_from([1, 2, 4]), level=levels,
)  # fmt: skip
@SETTINGS
def test_convolution(size, kernel, stride, dilation, padding, groups, bias, layout, level):
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(max(stride) > 1 and all(n + 2 * p >= r for n, p, r in zip(size, padding, reach, strict=True)))
    x = image(2, 4, *size).contiguous(memory_format=layout)
    w, b = image(8, 4 // groups, *kernel, seed=1), image(8, seed=2) if bias else None
    expected = F.conv2d(x, w, b, stride, padding, dilation, groups)
    decimation, output = record_one(lambda: F.conv2d(x, w, b, stride, padding, dilation, groups), level)
    g = decimation.geometry
    assert (g.kind, g.stride, g.kernel, g.padding, g.dilation) == ("conv", stride, kernel, padding, dilation)
    assert_identity(decimation, output, expected)

    # The whole dense map, phases that the stride drops included, from the definition in float64.
    wide = surround(x.double(), padding, 0, 0.0)
    n = (wide.shape[-2] - reach[0] + 1, wide.shape[-1] - reach[1] + 1)
    windows = sliding(wide, kernel, dilation, n).unflatten(2, (groups, 4 // groups))
    taps = w.double().unflatten(0, (groups, 8 // groups)).flatten(-2)
    dense = torch.einsum("kbgihw,goik->bgohw", windows, taps).flatten(1, 2)
    dense = dense + (b.double()[:, None, None] if b is not None else 0)
    got = decimation.dense((output.shape[-2], output.shape[-1]))
    assert got.shape == dense.shape
    assert (got - dense).abs().max() <= 2e-6 * dense.abs().max()


pools = {
    "size": sizes, "kernel": kernels, "stride": strides, "ceil": st.booleans(), "layout": formats,
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)), "level": levels,
}  # fmt: skip


def assume_valid_pool(size, kernel, stride, padding, dilation=(1, 1)):
    assume(max(stride) > 1 and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    for n, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(n + 2 * p >= d * (k - 1) + 1)
    # One window over the whole map is a global pool, which is no lattice.
    assume(padding != (0, 0) or any(k < n for k, n in zip(kernel, size, strict=True)))


@given(**pools, dilation=dilations)
@SETTINGS
def test_max_pool(size, kernel, stride, padding, dilation, ceil, layout, level):
    assume_valid_pool(size, kernel, stride, padding, dilation)
    x = image(2, 3, *size).contiguous(memory_format=layout)
    decimation, output = record_one(lambda: F.max_pool2d(x, kernel, stride, padding, dilation, ceil), level)
    assert_identity(decimation, output, F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
    n = [(m - 1) * s + 1 for m, s in zip(output.shape[-2:], stride, strict=True)]
    windows = sliding(surround(x, padding, 60, -torch.inf), kernel, dilation, (n[0], n[1]))
    dense = decimation.dense((output.shape[-2], output.shape[-1]))
    assert torch.equal(dense[..., : n[0], : n[1]], windows.amax(0))


@given(**pools, count_pad=st.booleans(), divisor=st.sampled_from([None, None, 1, 3, 7]))
@SETTINGS
def test_average_pool(size, kernel, stride, padding, ceil, layout, level, count_pad, divisor):
    assume_valid_pool(size, kernel, stride, padding)
    x = image(2, 3, *size).contiguous(memory_format=layout)
    arguments = (kernel, stride, padding, ceil, count_pad, divisor)
    decimation, output = record_one(lambda: F.avg_pool2d(x, *arguments), level)
    assert_identity(decimation, output, F.avg_pool2d(x, *arguments))

    n = [(m - 1) * s + 1 for m, s in zip(output.shape[-2:], stride, strict=True)]
    total = sliding(surround(x.double(), padding, 20, 0.0), kernel, (1, 1), (n[0], n[1])).sum(0)
    if divisor is None:
        real = torch.ones(1, 1, *size, dtype=torch.double)
        if count_pad:  # the pool's own padding counts, what ceil_mode adds beyond it never does
            real = surround(real, padding, 0, 1.0)
            counted = sliding(surround(real, (0, 0), 20, 0.0), kernel, (1, 1), (n[0], n[1])).sum(0)
        else:
            counted = sliding(surround(real, padding, 20, 0.0), kernel, (1, 1), (n[0], n[1])).sum(0)
        expected = total / counted
    else:
        expected = total / divisor
    dense = decimation.dense((output.shape[-2], output.shape[-1]))
    torch.testing.assert_close(dense[..., : n[0], : n[1]].double(), expected, atol=2e-6, rtol=0)


@given(**pools, count_pad=st.booleans(), divisor=st.sampled_from([None, 3]), average=st.booleans())
@FEW
def test_pools_in_half_precision(
    size, kernel, stride, padding, ceil, layout, level, count_pad, divisor, average
):
    assume_valid_pool(size, kernel, stride, padding)
    x = image(2, 3, *size, dtype=torch.bfloat16).contiguous(memory_format=layout)

    def pool() -> Tensor:
        if average:
            return F.avg_pool2d(x, kernel, stride, padding, ceil, count_pad, divisor)
        return F.max_pool2d(x, kernel, stride, padding, 1, ceil)

    decimation, output = record_one(pool, level)
    assert output.dtype == torch.bfloat16
    assert_identity(decimation, output, pool())


@given(
    out=small, factor=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    average=st.booleans(), layout=formats, half=st.booleans(), level=levels,
)  # fmt: skip
@SETTINGS
def test_adaptive_pool_with_equal_windows(out, factor, average, layout, half, level):
    assume(max(factor) > 1 and out != (1, 1))
    x = image(2, 3, out[0] * factor[0], out[1] * factor[1], dtype=torch.bfloat16 if half else torch.float32)
    x = x.contiguous(memory_format=layout)
    pool = F.adaptive_avg_pool2d if average else F.adaptive_max_pool2d
    decimation, output = record_one(lambda: pool(x, out), level)
    assert decimation.geometry.stride == decimation.geometry.kernel == factor
    assert decimation.geometry.reason is None
    assert_identity(decimation, output, pool(x, out))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
def test_adaptive_pool_with_unequal_windows_says_why(pool, level):
    decimation, _ = record_one(lambda: pool(image(1, 2, 7, 6), (3, 3)), level)
    assert decimation.geometry.reason == "adaptive pool from 7×6 to 3×3: its windows are unequal"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
def test_adaptive_pool_that_keeps_the_size_or_is_global_is_no_decimation(pool, level):
    assert record(lambda: (pool(image(1, 2, 6, 6), 6), pool(image(1, 2, 6, 6), 1)), level) == []


bounds = st.one_of(st.none(), st.integers(-20, 20))
cuts = st.tuples(bounds, bounds, st.integers(1, 4))


@given(size=sizes, rows=cuts, columns=cuts, level=levels)
@settings(SETTINGS, max_examples=200)
def test_slices(size, rows, columns, level):
    steps = (rows[2], columns[2])
    assume(max(steps) > 1)
    x = image(2, 3, *size)
    expected = x[:, :, slice(*rows), slice(*columns)]
    found = record(lambda: x[:, :, slice(*rows), slice(*columns)], level)
    assert len(found) == 1, "rows and columns of one indexing are one decimation"
    decimation, output = found[0]
    assert decimation.geometry.stride == steps
    kept = decimate(
        decimation.dense((output.shape[-2], output.shape[-1])), decimation.geometry, output.shape[-2:]
    )
    if steps[1] == 1:  # a cut of the columns without a step is a crop, which isn't the site's
        kept, output = kept[..., slice(*columns)], output[..., slice(*columns)]
    assert torch.equal(kept, output)
    assert torch.equal(output, expected)


def test_slices_of_two_indexings_with_something_between_are_two():
    x = image(1, 1, 8, 8)
    found = record(lambda: (x[:, :, ::2] + 1)[..., ::2])
    assert [d.geometry.stride for d, _ in found] == [(2, 1), (1, 2)]


def test_slices_of_one_axis_are_never_joined():
    x = image(1, 1, 16, 8)
    found = record(lambda: x[:, :, ::2][:, :, 1::2])
    assert [(d.geometry.stride, d.geometry.phase) for d, _ in found] == [((2, 1), (0, 0)), ((2, 1), (1, 0))]


def test_a_slice_is_reported_before_its_source_changes():
    x, seen = image(1, 1, 8, 8), []
    recorder = Recorder(lambda frame, index, decimation, output: seen.append(decimation.input.clone()))
    recorder.frames.append(Frame("m", nn.Identity(), 0, ()))
    before = x.clone()
    with recorder:
        y = x[:, :, ::2, ::2]
        y.zero_()
    assert torch.equal(seen[0], before)


@given(
    out=small, factor=small,
    mode=st.sampled_from(["nearest", "nearest-exact"]), level=levels,
    by_factor=st.booleans(),
)  # fmt: skip
@SETTINGS
def test_nearest_resize_by_an_integer(out, factor, mode, level, by_factor):
    assume(max(factor) > 1)
    x = image(2, 3, out[0] * factor[0], out[1] * factor[1])
    how = {"scale_factor": (1 / factor[0], 1 / factor[1])} if by_factor else {"size": out}
    expected = F.interpolate(x, mode=mode, **how)
    assume(expected.shape[-2:] == out)  # 1/s can round so that ⌊N/s⌋ is one less
    decimation, output = record_one(lambda: F.interpolate(x, mode=mode, **how), level)
    assert decimation.geometry.stride == factor
    assert_identity(decimation, output, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"size": (4, 5), "mode": "nearest"}, "nearest resize 9×9 to 4×5: a factor that is no integer"),
        (
            {"scale_factor": 0.3334, "mode": "nearest"},
            "nearest resize 9×9 to 3×3: a factor that is no integer",
        ),
        ({"size": (4, 18), "mode": "nearest"}, "nearest resize 9×9 to 4×18: a factor that is no integer"),
        ({"size": (3, 3), "mode": "bilinear"}, "bilinear resize 9×9 to 3×3: filtered resizing"),
        ({"size": (3, 3), "mode": "bicubic"}, "bicubic resize 9×9 to 3×3: filtered resizing"),
        (
            {"size": (3, 3), "mode": "bilinear", "antialias": True},
            "antialiased bilinear resize 9×9 to 3×3: filtered resizing",
        ),
    ],
)
def test_other_resizing_says_why(how, reason, level):
    decimation, _ = record_one(lambda: F.interpolate(image(1, 2, 9, 9), **how), level)
    assert decimation.geometry.reason == reason


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.conv2d(x, image(2, 2, 3, 3)),
        lambda x: F.conv2d(x, image(2, 2, 3, 3), padding="same"),
        lambda x: F.conv_transpose2d(x, image(2, 2, 3, 3), stride=2),
        lambda x: F.conv1d(x[0], image(2, 6, 3), stride=2),
        lambda x: F.conv3d(x[None], image(2, 1, 1, 3, 3), stride=2),
        lambda x: F.max_pool2d(x, 3, 1),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: x[:, :, 2:5, :4],
        lambda x: torch.arange(8).reshape(2, 4)[:, ::2],
        lambda x: torch.arange(8.0)[::2],
        lambda x: x.relu() + x.mean(),
    ],
)
def test_what_keeps_the_resolution_is_no_decimation(call, level):
    assert record(lambda: call(image(1, 2, 6, 6)), level) == []


@pytest.mark.parametrize("level", LEVELS)
def test_valid_padding_is_zero_padding(level):
    x, w = image(1, 2, 7, 7), image(2, 2, 3, 3, seed=1)
    decimation, output = record_one(lambda: F.conv2d(x, w, stride=2, padding="valid"), level)
    assert decimation.geometry.padding == (0, 0)
    assert_identity(decimation, output, F.conv2d(x, w, stride=2))


@pytest.mark.parametrize("level", LEVELS)
def test_an_image_without_batch_axis(level):
    x, w = image(2, 7, 9), image(2, 2, 3, 3, seed=1)
    for call in (lambda: F.conv2d(x, w, stride=2), lambda: F.max_pool2d(x, 2), lambda: F.avg_pool2d(x, 2)):
        decimation, output = record_one(call, level)
        kept = decimate(decimation.dense(output.shape[-2:]), decimation.geometry, output.shape[-2:])
        torch.testing.assert_close(kept.reshape(call().shape), call(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry("conv", (2, 2), (3, 3), (1, 1)),
        Geometry("max_pool", (2, 2), (3, 3), (1, 1)),
        Geometry("avg_pool", (2, 2), (3, 3), (1, 1)),
        Geometry("avg_pool", (2, 2), (3, 3), (1, 1), ceil_mode=True, count_include_pad=False),
        Geometry("slice", (2, 2), phase=(1, 0)),
    ],
)
def test_a_part_of_the_batch_is_that_part_of_the_dense_map(geometry):
    decimation = Decimation(geometry, image(5, 3, 8, 8), image(4, 3, 3, 3, seed=1))
    whole, part = decimation.dense((4, 4)), decimation.dense((4, 4), slice(1, 4))
    assert whole.shape[0] == 5
    torch.testing.assert_close(part, whole[1:4], rtol=2e-6, atol=2e-6)


def test_a_dense_map_follows_its_geometry():
    """The helper can fail: a wrong phase or padding breaks the identity."""
    x = image(1, 2, 8, 8)
    decimation, output = record_one(lambda: F.max_pool2d(x, 3, 2, 1))
    for wrong in ({"phase": (1, 0)}, {"kernel": (2, 3)}):
        other = replace(decimation, geometry=replace(decimation.geometry, **wrong))
        kept = decimate(other.dense((4, 4)), other.geometry, (4, 4))
        assert kept.shape != output.shape or not torch.equal(kept, output)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (2, 1)])
@pytest.mark.parametrize("level", LEVELS)
def test_maps_of_one_and_two_pixels(size, level):
    x, w = image(2, 3, *size), image(3, 3, 3, 3, seed=1)
    for call in (lambda: F.conv2d(x, w, stride=2, padding=1), lambda: F.max_pool2d(x, 3, 2, 1)):
        decimation, output = record_one(call, level)
        assert_identity(decimation, output, call())


def test_a_pool_over_the_whole_map_is_global():
    x = image(1, 2, 4, 4)
    assert record_one(lambda: F.avg_pool2d(x, 4))[0].geometry.kind == "global_pool"
    assert record_one(lambda: F.max_pool2d(x, (4, 2)))[0].geometry.kind == "max_pool"


def test_operators_of_both_levels_are_read_alike():
    conv = (torch.zeros(1, 2, 8, 8), torch.zeros(3, 2, 3, 3), None, [2, 2], [1, 1], [1, 1])
    high = parse(aten.conv2d.default, (*conv, 1), {})
    low = parse(aten.convolution.default, (*conv, False, [0, 0], 1), {})
    assert high is not None
    assert low is not None
    assert high.geometry == low.geometry == Geometry("conv", (2, 2), (3, 3), (1, 1))
