"""The contract of a site: dense[φ::s][:n] is the output, for every operator kind and any configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import image
from torch import Tensor, nn

from spectral.operators import LOSSLESS, Decimation, Geometry, parse
from spectral.tracing.recorder import Frame, Operation, Recorder

SETTINGS = settings(max_examples=120)
FEW = settings(SETTINGS, max_examples=40)
LEVELS = {"decomposed": torch.no_grad, "undecomposed": torch.inference_mode}
# Rounding of a convolution, relative to the map's maximum.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
aten = torch.ops.aten

Size = tuple[int, ...]

levels = st.sampled_from(list(LEVELS))
ranks = st.sampled_from([2, 2, 1, 3])
dtypes = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
small = st.tuples(st.integers(1, 6), st.integers(1, 6))
last = st.booleans()  # whether channels are last in memory


def per_axis(rank: int, low: int, high: int) -> st.SearchStrategy[Size]:
    """A number for each axis; of videos smaller ones."""
    return st.tuples(*[st.integers(low, high)] * rank)


def extents(rank: int) -> st.SearchStrategy[Size]:
    return per_axis(rank, 1, {1: 30, 2: 14, 3: 7}[rank])


def strides(rank: int) -> st.SearchStrategy[Size]:
    usual = {1: [(2,), (4,)], 2: [(2, 1), (1, 2), (2, 2), (4, 4)], 3: [(1, 2, 2), (2, 2, 2)]}[rank]
    return st.one_of(st.sampled_from(usual), per_axis(rank, 1, 5))


def record(call: Callable[[], Any], level: str = "decomposed") -> list[tuple[Decimation, Tensor]]:
    """All decimations that a call runs, with their outputs as maps."""
    found: list[Operation] = []
    recorder = Recorder([Frame("m", nn.Identity(), 0, (), {})], found.append)
    with LEVELS[level](), recorder.listening():
        call()
        recorder.flush()
    maps = [
        e.output if "window" in e.decimation.geometry.kind else e.decimation.arrange(e.output) for e in found
    ]
    return list(zip([each.decimation for each in found], maps, strict=True))


def record_one(call: Callable[[], Any], level: str = "decomposed") -> tuple[Decimation, Tensor]:
    found = record(call, level)
    assert len(found) == 1
    return found[0]


def lay_out(x: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if channels_last and x.ndim in formats else x


def lift(values: Sequence[int], one: int = 1) -> Size:
    """A signal is a map of one row."""
    return (one, *values) if len(values) == 1 else tuple(values)


def as_maps(x: Tensor) -> Tensor:
    return x.unsqueeze(-2) if x.ndim == 3 else x


def decimate(dense: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    cuts = [slice(p, None, s) for p, s in zip(geometry.phase, geometry.stride, strict=True)]
    kept = dense[(..., *cuts)]
    return kept[(..., *[slice(n) for n in size])]


def assert_identity(decimation: Decimation, output: Tensor, expected: Tensor) -> Tensor:
    """The contract; the dense map for more checks."""
    assert torch.equal(output, as_maps(expected)), "the recorded output is not the operator's"
    g = decimation.geometry
    assert g.reason is None
    size = tuple(output.shape[2:])
    dense = decimation.dense(size)
    kept = decimate(dense, g, size)
    assert kept.shape == output.shape
    assert dense.dtype == output.dtype
    assert dense.shape[1] == decimation.channels
    if g.kind == "conv" or (g.kind == "resize" and max(g.kernel) > 1):
        assert_close(kept, output, dense)
    else:
        assert torch.equal(kept, output)
    assert_pieces(decimation, size, dense)
    return dense


def assert_close(got: Tensor, expected: Tensor, dense: Tensor) -> None:
    most = TOLERANCE[dense.dtype] * dense.abs().nan_to_num(posinf=0).max()
    near = (got.double() - expected.double()).abs() <= most
    assert (near | (got == expected)).all()  # a pool of nothing but padding is −∞


def assert_pieces(decimation: Decimation, size: Size, dense: Tensor) -> None:
    """Any images and any run of channels that can be computed alone are that part of the whole."""
    exact = decimation.geometry.kind != "conv"
    for most in (1, 3):
        runs = list(decimation.split_channels(most))
        assert [(r.start, r.stop) for r in runs] == list(
            zip(
                [0, *[r.stop for r in runs[:-1]]], [*[r.stop for r in runs[:-1]], dense.shape[1]], strict=True
            )
        )
        for images in (slice(None), slice(1, 2)):
            whole = torch.cat([decimation.dense(size, images, run) for run in runs], 1)
            assert whole.shape == dense[images].shape
            assert torch.equal(whole, dense[images]) or not exact
            assert_close(whole, dense[images], dense)


def sliding(x: Tensor, kernel: Size, dilation: Size, size: Size) -> Tensor:
    """Every sample of each stride-1 window, in a new first axis: from shifted copies, no pooling operator."""
    views = []
    for tap in product(*map(range, kernel)):
        cuts = [slice(i * d, i * d + n) for i, d, n in zip(tap, dilation, size, strict=True)]
        views.append(x[(..., *cuts)])
    return torch.stack(views)


def surround(x: Tensor, padding: Size, beyond: int, value: float) -> Tensor:
    """Pad by ``padding`` on the left and by ``padding + beyond`` on the right."""
    extent = x.shape[x.ndim - len(padding) :]
    leading = x.shape[: x.ndim - len(padding)]
    wide = x.new_full((*leading, *(n + 2 * p + beyond for n, p in zip(extent, padding, strict=True))), value)
    wide[(..., *[slice(p, p + n) for n, p in zip(extent, padding, strict=True)])] = x
    return wide


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@given(data=st.data(), rank=ranks, bias=st.booleans(), groups=st.sampled_from([1, 2, 4]), level=levels,
       channels_last=last, dtype=dtypes)  # fmt: skip
@SETTINGS
def test_convolution(data, rank, groups, bias, channels_last, level, dtype):
    size, stride = data.draw(extents(rank)), data.draw(strides(rank))
    kernel, dilation = data.draw(per_axis(rank, 1, 4)), data.draw(per_axis(rank, 1, 3))
    padding = data.draw(per_axis(rank, 0, 3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(max(stride) > 1 and all(n + 2 * p >= r for n, p, r in zip(size, padding, reach, strict=True)))
    x = lay_out(image(2, 4, *size, dtype=dtype), channels_last)
    w = image(8, 4 // groups, *kernel, seed=1, dtype=dtype)
    b = image(8, seed=2, dtype=dtype) if bias else None

    def convolve() -> Tensor:
        crashes = rank == 3 and torch.__version__.startswith("2.10.")
        with torch.backends.mkldnn.flags(enabled=False) if crashes else nullcontext():
            # There oneDNN follows a null pointer in some volumes (brgemm_convolution_fwd_t::perform_outwork).
            return CONVOLUTIONS[rank](x, w, b, stride, padding, dilation, groups)

    decimation, output = record_one(convolve, level)
    g = decimation.geometry
    assert (g.kind, g.stride, g.kernel) == ("conv", lift(stride), lift(kernel))
    assert (g.padding, g.dilation, g.groups) == (lift(padding, 0), lift(dilation), groups)
    got = assert_identity(decimation, output, convolve())

    # The whole dense map, phases that the stride drops included, from the definition in float64.
    wide = surround(x.double(), padding, 0, 0.0)
    n = tuple(m - r + 1 for m, r in zip(wide.shape[2:], reach, strict=True))
    windows = sliding(wide, kernel, dilation, n).unflatten(2, (groups, 4 // groups))
    taps = w.double().unflatten(0, (groups, 8 // groups)).flatten(3)
    dense = torch.einsum("kbgi...,goik->bgo...", windows, taps).flatten(1, 2)
    dense = dense + (b.double().reshape(-1, *[1] * rank) if b is not None else 0)
    assert got.shape == as_maps(dense).shape
    assert_close(got, as_maps(dense), got)


@given(size=sizes, kernel=st.integers(1, 5), stride=st.integers(2, 4), level=levels)
@FEW
def test_convolution_with_padding_for_the_same_size(size, kernel, stride, level):
    """ "Same" padding, computed at run time and uneven: the operator sees the padded tensor."""
    totals = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in size]
    assume(all(n + t >= kernel for n, t in zip(size, totals, strict=True)))
    x, w = image(2, 3, *size), image(4, 3, kernel, kernel, seed=1)
    ends = [part for t in reversed(totals) for part in (t // 2, t - t // 2)]
    decimation, output = record_one(lambda: F.conv2d(F.pad(x, ends), w, stride=stride), level)
    assert output.shape[2:] == tuple(math.ceil(n / stride) for n in size)
    assert_identity(decimation, output, F.conv2d(F.pad(x, ends), w, stride=stride))


def draw_pool(data: st.DataObject, rank: int, dilated: bool = False) -> tuple[Size, Size, Size, Size, Size]:
    """Size, kernel, stride, padding and dilation of a valid pool."""
    size, stride = data.draw(extents(rank)), data.draw(strides(rank))
    kernel, padding = data.draw(per_axis(rank, 1, 4)), data.draw(per_axis(rank, 0, 2))
    dilation = data.draw(per_axis(rank, 1, 3)) if dilated else (1,) * rank
    assume(max(stride) > 1 and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    for n, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(n + 2 * p >= d * (k - 1) + 1)
    # One window over the whole map is a global pool, which is no lattice.
    assume(any(padding) or any(k < n for k, n in zip(kernel, size, strict=True)))
    return size, kernel, stride, padding, dilation


@given(data=st.data(), rank=ranks, ceil=st.booleans(), level=levels, channels_last=last, dtype=dtypes)
@SETTINGS
def test_max_pool(data, rank, ceil, channels_last, level, dtype):
    size, kernel, stride, padding, dilation = draw_pool(data, rank, dilated=True)
    x = lay_out(image(2, 3, *size, dtype=dtype), channels_last)

    def pool() -> Tensor:
        return MAX_POOLS[rank](x, kernel, stride, padding, dilation, ceil)

    decimation, output = record_one(pool, level)
    got = assert_identity(decimation, output, pool())
    n = tuple((m - 1) * s + 1 for m, s in zip(pool().shape[2:], stride, strict=True))
    windows = sliding(surround(x, padding, 60, -torch.inf), kernel, dilation, n)
    assert torch.equal(got[(..., *map(slice, lift(n)))], as_maps(windows.amax(0)))


@given(data=st.data(), rank=ranks, ceil=st.booleans(), level=levels, channels_last=last, dtype=dtypes,
       count_pad=st.booleans(), divisor=st.sampled_from([None, None, 1, 3, 7]))  # fmt: skip
@SETTINGS
def test_average_pool(data, rank, ceil, channels_last, level, count_pad, divisor, dtype):
    size, kernel, stride, padding, _ = draw_pool(data, rank)
    if rank == 3:  # torch itself refuses these
        assume(dtype != torch.bfloat16 and all(k <= n for k, n in zip(kernel, size, strict=True)))
    x = lay_out(image(2, 3, *size, dtype=dtype), channels_last)
    divisor = divisor if rank > 1 else None

    def pool() -> Tensor:
        options = (divisor,) if rank > 1 else ()
        return AVERAGE_POOLS[rank](x, kernel, stride, padding, ceil, count_pad, *options)

    decimation, output = record_one(pool, level)
    got = assert_identity(decimation, output, pool())
    ones = (1,) * rank
    n = tuple((m - 1) * s + 1 for m, s in zip(pool().shape[2:], stride, strict=True))
    total = sliding(surround(x.double(), padding, 20, 0.0), kernel, ones, n).sum(0)
    real = torch.ones(1, 1, *size, dtype=torch.double)
    if count_pad:  # the pool's own padding counts, what ceil_mode adds beyond it never does
        real = surround(real, padding, 0, 1.0)
    wide = surround(real, (0,) * rank if count_pad else padding, 20, 0.0)
    expected = total / (divisor or sliding(wide, kernel, ones, n).sum(0))
    assert_close(got[(..., *map(slice, lift(n)))], as_maps(expected), got)


@given(data=st.data(), rank=ranks, average=st.booleans(), channels_last=last, level=levels, dtype=dtypes)
@SETTINGS
def test_adaptive_pool_with_equal_windows(data, rank, average, channels_last, level, dtype):
    out, factor = data.draw(per_axis(rank, 1, 5)), data.draw(per_axis(rank, 1, 4 if rank == 3 else 7))
    assume(max(factor) > 1 and any(n > 1 and f > 1 for n, f in zip(out, factor, strict=True)))
    size = [n * f for n, f in zip(out, factor, strict=True)]
    x = lay_out(image(2, 3, *size, dtype=dtype), channels_last)
    pool = getattr(F, f"adaptive_{'avg' if average else 'max'}_pool{rank}d")
    assume(dtype != torch.bfloat16 or not average or rank < 3)  # its sum is itself rounded to bfloat16
    decimation, output = record_one(lambda: pool(x, out), level)
    assert decimation.geometry.stride == decimation.geometry.kernel == lift(factor)
    assert_identity(decimation, output, pool(x, out))


@pytest.mark.parametrize(
    ("size", "out", "kernel", "stride"),
    [(7, 3, 3, 2), (5, 2, 3, 2), (10, 3, 4, 3), (9, 4, 3, 2)],
)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("average", [False, True])
def test_adaptive_pool_with_equal_windows_that_overlap(size, out, kernel, stride, average, level):
    """floor(i·n/m) and ceil((i + 1)·n/m) may be equally far apart although m doesn't divide n."""
    x = image(2, 3, size, 2 * size)
    pool = F.adaptive_avg_pool2d if average else F.adaptive_max_pool2d
    decimation, output = record_one(lambda: pool(x, (out, size)), level)
    assert (decimation.geometry.kernel, decimation.geometry.stride) == ((kernel, 2), (stride, 2))
    assert_identity(decimation, output, pool(x, (out, size)))


@pytest.mark.parametrize("level", LEVELS)
def test_adaptive_pool_that_only_crops_is_no_decimation(level):
    """7 to 6 samples: windows of two, one sample apart."""
    assert record(lambda: F.adaptive_avg_pool2d(image(1, 2, 7, 7), 6), level) == []
    assert torch.equal(F.adaptive_max_pool2d(x := image(1, 2, 7, 7), 6), F.max_pool2d(x, 2, 1))


ADAPTIVE = [getattr(F, f"adaptive_{kind}_pool{rank}d") for rank in (1, 2, 3) for kind in ("avg", "max")]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", ADAPTIVE)
def test_adaptive_pool_with_unequal_windows_says_why(pool, level):
    rank = int(pool.__name__[-2])
    decimation, _ = record_one(lambda: pool(image(1, 2, *(8, 6, 9)[:rank]), (3,) * rank), level)
    by = {1: ("8 to 3", "1×8 to 1×3"), 2: ("8×6 to 3×3",), 3: ("8×6×9 to 3×3×3",)}[rank]  # torch may lift
    assert decimation.geometry.reason in [
        f"adaptive pool from {sizes}: its windows are unequal" for sizes in by
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", ADAPTIVE)
def test_adaptive_pool_that_keeps_the_size_or_is_global_is_no_decimation(pool, level):
    x = image(1, 2, *[6] * int(pool.__name__[-2]))
    assert [d for d, _ in record(lambda: (pool(x, 6), pool(x, 1)), level) if "window" not in d.geometry.kind
            ] == []  # fmt: skip


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
    g = decimation.geometry
    assert dict(zip(g.axes, g.stride, strict=True)) == {
        a: s for a, s in zip((2, 3), steps, strict=True) if s > 1
    }
    kept = decimation.input
    for axis, step, phase in zip(g.axes, g.stride, g.phase, strict=True):
        kept = kept.movedim(axis, 0)[phase::step][: expected.shape[axis]].movedim(0, axis)
    if steps[1] == 1:  # a cut of the columns without a step is a crop, which isn't the site's
        kept, output = kept[..., slice(*columns)], output[..., slice(*columns)]
    assert torch.equal(kept, output)
    assert torch.equal(output, expected)


def cut_of(decimation: Decimation) -> tuple[Size, Size, Size]:
    return decimation.geometry.axes, decimation.geometry.stride, decimation.geometry.phase


def test_slices_of_two_indexings_with_something_between_are_two():
    x = image(1, 1, 8, 8)
    found = record(lambda: (x[:, :, ::2] + 1)[..., ::2])
    assert [cut_of(d) for d, _ in found] == [((2,), (2,), (0,)), ((3,), (2,), (0,))]


def test_slices_of_one_axis_are_never_joined():
    x = image(1, 1, 16, 8)
    found = record(lambda: x[:, :, ::2][:, :, 1::2])
    assert [cut_of(d) for d, _ in found] == [((2,), (2,), (0,)), ((2,), (2,), (1,))]


def test_a_slice_is_reported_before_its_source_changes():
    x, seen = image(1, 1, 8, 8), []
    frames = [Frame("m", nn.Identity(), 0, (), {})]
    recorder = Recorder(frames, lambda operation: seen.append(operation.decimation.input.clone()))
    before = x.clone()
    with recorder.listening():
        y = x[:, :, ::2, ::2]
        y.zero_()
    assert torch.equal(seen[0], before)


@given(data=st.data(), rank=ranks, exact=st.booleans(), by_factor=st.booleans(), level=levels, dtype=dtypes)
@SETTINGS
def test_nearest_resize_by_an_integer(data, rank, exact, level, by_factor, dtype):
    out, factor = data.draw(per_axis(rank, 1, 5)), data.draw(per_axis(rank, 1, 4 if rank == 3 else 6))
    assume(max(factor) > 1)
    x = image(2, 3, *[n * f for n, f in zip(out, factor, strict=True)], dtype=dtype)
    how: dict[str, Any] = {"scale_factor": [1 / f for f in factor]} if by_factor else {"size": out}
    how["mode"] = "nearest-exact" if exact else "nearest"
    expected = F.interpolate(x, **how)
    assume(expected.shape[2:] == out)  # 1/s can round so that ⌊N/s⌋ is one less
    decimation, output = record_one(lambda: F.interpolate(x, **how), level)
    assert decimation.geometry.stride == lift(factor)
    assert_identity(decimation, output, expected)


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@given(data=st.data(), rank=ranks, by_factor=st.booleans(), level=levels, dtype=dtypes, channels_last=last)
@SETTINGS
def test_linear_resize_by_an_integer(data, rank, level, by_factor, dtype, channels_last):
    """Odd, even, and of both kinds: the middle of a block is a sample, or lies between two."""
    out, factor = data.draw(per_axis(rank, 1, 5)), data.draw(per_axis(rank, 1, 4 if rank == 3 else 6))
    assume(max(factor) > 1)
    x = lay_out(image(2, 3, *[n * f for n, f in zip(out, factor, strict=True)], dtype=dtype), channels_last)
    how: dict[str, Any] = {"scale_factor": [1 / f for f in factor]} if by_factor else {"size": out}
    how["mode"] = LINEAR[rank]
    expected = F.interpolate(x, **how)
    assume(expected.shape[2:] == out)
    decimation, output = record_one(lambda: F.interpolate(x, **how), level)
    g = decimation.geometry
    assert g.stride == lift(factor)
    assert g.phase == tuple((s - 1) // 2 for s in g.stride)
    dense = assert_identity(decimation, output, expected)
    mean = as_maps(x.double())
    for axis, s in enumerate(g.stride, start=2):
        n = mean.shape[axis] - 1
        mean = mean if s % 2 else (mean.narrow(axis, 0, n) + mean.narrow(axis, 1, n)) / 2
    assert_close(dense, mean, dense)
    assert dtype != torch.bfloat16 or torch.equal(dense, mean.to(dtype)), "rounded more than once"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_factor_that_is_given_may_leave_samples_over(mode, factor, level):
    x = image(2, 3, 4 * factor + 1, 5 * factor - 1)
    how: dict[str, Any] = {"scale_factor": 1 / factor, "mode": mode}
    decimation, output = record_one(lambda: F.interpolate(x, **how), level)
    assert decimation.geometry.stride == (factor, factor)
    assert_identity(decimation, output, F.interpolate(x, **how))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("how", "stride", "phase"),
    [
        ({"size": (3, 5), "mode": "bilinear", "align_corners": True}, (4, 2), 0),
        ({"size": (9, 1), "mode": "bilinear", "align_corners": True}, (1, 9), 0),
        ({"scale_factor": 0.34, "mode": "bicubic", "align_corners": True}, (4, 4), 0),
        ({"size": (3, 3), "mode": "bicubic"}, (3, 3), 1),
    ],
)
def test_samples_that_a_resize_falls_on_are_kept(how, stride, phase, level):
    x = image(1, 2, 9, 9)
    decimation, output = record_one(lambda: F.interpolate(x, **how), level)
    assert (decimation.geometry.stride, decimation.geometry.phase) == (stride, (phase, phase))
    assert torch.equal(assert_identity(decimation, output, F.interpolate(x, **how)), x)


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
        ({"size": (4, 3), "mode": "bilinear"}, "linear resize 9×9 to 4×3: a factor that is no integer"),
        (
            {"size": (4, 3), "mode": "bilinear", "align_corners": True},
            "linear resize 9×9 to 4×3: its corners are aligned, the factor is no integer",
        ),
        ({"scale_factor": 0.25, "mode": "bicubic"}, "bicubic resize 9×9 to 2×2: filtered resizing"),
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
@pytest.mark.parametrize("stride", [1, 3])
def test_one_window_keeps_all_its_samples(stride, level):
    decimation, _ = record_one(lambda: F.unfold(image(1, 2, 4, 6), (4, 5), stride=(1, 2 * stride)), level)
    g = decimation.geometry
    assert (g.kind, g.stride, g.reason) == ("space_to_depth", (4, 5), LOSSLESS)


@given(data=st.data(), size=sizes, level=levels, dtype=dtypes)
@SETTINGS
def test_unfold(data, size, level, dtype):
    kernel, stride = data.draw(per_axis(2, 1, 4)), data.draw(per_axis(2, 1, 4))
    padding, dilation = data.draw(per_axis(2, 0, 2)), data.draw(per_axis(2, 1, 3))
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    dense_size = tuple(n + 2 * p - r + 1 for n, p, r in zip(size, padding, reach, strict=True))
    out = tuple((n - 1) // s + 1 for n, s in zip(dense_size, stride, strict=True))
    assume(max(stride) > 1 and min(dense_size) > 0 and max(out) > 1)
    x = image(2, 3, *size, dtype=dtype)
    decimation, output = record_one(lambda: F.unfold(x, kernel, dilation, padding, stride), level)
    expected = F.unfold(x, kernel, dilation, padding, stride).unflatten(-1, out)
    if kernel == stride and dilation == (1, 1):
        assert (decimation.geometry.kind, decimation.geometry.reason) == ("space_to_depth", LOSSLESS)
        assert torch.equal(output, expected)
        return
    dense = assert_identity(decimation, output, expected)
    windows = sliding(surround(x, padding, 0, 0.0), kernel, dilation, dense_size)
    assert torch.equal(dense, windows.permute(1, 2, 0, 3, 4).flatten(1, 2))


@pytest.mark.parametrize("level", LEVELS)
def test_pixel_unshuffle_loses_nothing(level):
    decimation, output = record_one(lambda: F.pixel_unshuffle(image(2, 3, 6, 9), 3), level)
    g = decimation.geometry
    assert (g.kind, g.stride, g.kernel, g.reason) == ("space_to_depth", (3, 3), (3, 3), LOSSLESS)
    assert output.shape == (2, 27, 2, 3)


@given(data=st.data(), rank=ranks, level=levels, dtype=dtypes, maximum=st.booleans(), joined=st.booleans())
@SETTINGS
def test_windows_of_a_view(data, rank, level, dtype, maximum, joined):
    """A maximum or mean over windows that a view has cut: what discovery makes of such a reduction."""
    out, window = data.draw(per_axis(rank, 1, 4)), data.draw(per_axis(rank, 1, 3))
    assume(max(window) > 1)
    x = image(2, 3, *[n * k for n, k in zip(out, window, strict=True)], dtype=dtype)
    split = x.reshape(2, 3, *[m for pair in zip(out, window, strict=True) for m in pair])
    axes = tuple(range(3, 3 + 2 * rank, 2))
    if joined:  # the samples of a window on an axis of their own, before the windows and channels
        split = split.permute(0, *axes, *range(2, 2 + 2 * rank, 2), 1).flatten(1, rank).contiguous()
        axes = (1,)

    def reduce() -> Tensor:
        return split.amax(axes) if maximum else split.mean(axes)

    decimation, _ = record_one(reduce, level)
    kind = "window_max" if maximum else "window_mean"
    assert (decimation.geometry.kind, decimation.geometry.axes) == (kind, axes)
    output = as_maps(reduce().movedim(-1, 1) if joined else reduce())
    zeros = (0,) * len(lift(window))
    placed = Decimation(Geometry(kind, lift(window), lift(window), zeros, phase=zeros), as_maps(x))
    if maximum or (joined and math.prod(window) <= 4):
        assert_identity(placed, output, output)
    dense = placed.dense(tuple(output.shape[2:]))
    assert_close(decimate(dense, placed.geometry, output.shape[2:]), output, dense)
    windows = sliding(as_maps(x).double(), lift(window), lift([1] * rank), tuple(dense.shape[2:]))
    assert_close(dense, windows.amax(0) if maximum else windows.mean(0), dense)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.conv2d(x, image(2, 2, 3, 3)),
        lambda x: F.conv2d(x, image(2, 2, 3, 3), padding="same"),
        lambda x: F.conv_transpose2d(x, image(2, 2, 3, 3), stride=2),
        lambda x: F.conv_transpose1d(x[0], image(6, 2, 3), stride=2),
        lambda x: F.conv1d(x[0], image(2, 6, 3)),
        lambda x: F.conv3d(x[None], image(2, 1, 1, 3, 3)),
        lambda x: F.max_pool2d(x, 3, 1),
        lambda x: F.unfold(x, 3),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.grid_sample(x, torch.zeros(1, 6, 6, 2), align_corners=False),
        lambda x: F.pixel_shuffle(x.expand(4, 2, 6, 6).reshape(1, 8, 6, 6), 2),
        lambda x: x[:, :, 2:5, :4],
        lambda x: torch.arange(8).reshape(2, 4)[:, ::2],
        lambda x: torch.arange(8.0)[::2],
        lambda x: x.relu() + x.mean(),
    ],
)
def test_what_keeps_the_resolution_is_no_decimation(call, level):
    assert record(lambda: call(image(1, 2, 6, 6)), level) == []


@pytest.mark.parametrize("level", LEVELS)
def test_sampling_at_computed_positions_says_why(level):
    grid = image(1, 3, 3, 2)
    decimation, _ = record_one(lambda: F.grid_sample(image(1, 2, 6, 6), grid, align_corners=False), level)
    assert decimation.geometry.kind == "grid_sample"
    assert decimation.geometry.reason == "sampled at computed positions, which are no lattice"


@pytest.mark.parametrize("level", LEVELS)
def test_operators_of_detectors_say_why(level):
    ops = pytest.importorskip("torchvision").ops
    x, boxes = image(1, 2, 16, 16), torch.tensor([[0.0, 0.0, 0.0, 9.0, 9.0]])
    for call, kind in (
        (lambda: ops.roi_align(x, boxes, 3), "roi_pool"),
        (lambda: ops.roi_pool(x, boxes, 3), "roi_pool"),
        (lambda: ops.ps_roi_align(image(1, 9, 16, 16), boxes, 3), "roi_pool"),
        (
            lambda: ops.deform_conv2d(x, torch.zeros(1, 18, 7, 7), image(2, 2, 3, 3), stride=2),
            "conv",
        ),
    ):
        decimation, _ = record_one(call, level)
        assert decimation.geometry.kind == kind
        assert decimation.geometry.reason
    assert record(lambda: ops.deform_conv2d(x, torch.zeros(1, 18, 14, 14), image(2, 2, 3, 3)), level) == []


@pytest.mark.parametrize("level", LEVELS)
def test_valid_padding_is_zero_padding(level):
    x, w = image(2, 2, 7, 7), image(2, 2, 3, 3, seed=1)
    decimation, output = record_one(lambda: F.conv2d(x, w, stride=2, padding="valid"), level)
    assert decimation.geometry.padding == (0, 0)
    assert_identity(decimation, output, F.conv2d(x, w, stride=2))


UNBATCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: F.conv2d(x, image(4, 2, 3, 3, seed=1), stride=2),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x[..., :4], (x.shape[-2], 2)),
    "unfold": lambda x: F.unfold(x, 3, stride=2).unflatten(-1, [(n - 3) // 2 + 1 for n in x.shape[-2:]]),
    "conv1d": lambda x: F.conv1d(x[0], image(4, x.shape[-2], 3, seed=1), stride=2),
    "max_pool1d": lambda x: F.max_pool1d(x[0], 2),
    "conv3d": lambda x: F.conv3d(x[None], image(4, 1, 1, 2, 2, seed=1), stride=(1, 2, 1)),
}


@pytest.mark.parametrize("size", [(7, 10), (7, 5), (5, 5)])
@pytest.mark.parametrize("name", UNBATCHED)
@pytest.mark.parametrize("level", LEVELS)
def test_one_image_without_batch_axis_is_a_batch_of_one(name, level, size):
    call, x = UNBATCHED[name], image(2, *size)
    decimation, output = record_one(lambda: call(x), level)
    assert output.ndim == decimation.input.ndim
    assert len(output) == 1
    assert torch.equal(output.flatten(), call(x).flatten())
    out = tuple(output.shape[2:])
    kept = decimate(decimation.dense(out), decimation.geometry, out)
    assert_close(kept, output, kept)


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
    assert record_one(lambda: F.avg_pool1d(x[0], 4))[0].geometry.kind == "global_pool"
    assert record_one(lambda: F.adaptive_avg_pool2d(x, (4, 1)))[0].geometry.kernel == (1, 4)


def test_operators_of_both_levels_are_read_alike():
    conv = (torch.zeros(1, 2, 8, 8), torch.zeros(3, 2, 3, 3), None, [2, 2], [1, 1], [1, 1])
    high = parse(aten.conv2d.default, (*conv, 1), {})
    low = parse(aten.convolution.default, (*conv, False, [0, 0], 1), {})
    assert high is not None
    assert low is not None
    assert high.geometry == low.geometry == Geometry("conv", (2, 2), (3, 3), (1, 1))
