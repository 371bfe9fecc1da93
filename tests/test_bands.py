"""The fast pass against the definitions: same values, and sums that add."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import spectral.metrics.bands
from spectral.errors import SpectralError
from spectral.metrics.aliasing import compute_alias_metrics, compute_am_relative, compute_avr
from spectral.metrics.bands import QUOTIENTS, measure_bands
from spectral.metrics.spectrum import compute_power_spectrum

QUICK = settings(max_examples=40)
METRICS = tuple(QUOTIENTS)
# size, stride, phase
LATTICES = [
    ((8, 8), (2, 2), (0, 0)), ((8, 8), (2, 2), (1, 1)), ((7, 9), (2, 2), (0, 0)), ((7, 9), (2, 2), (1, 0)),
    ((14, 10), (2, 2), (0, 1)), ((33, 47), (2, 2), (0, 0)), ((56, 56), (2, 2), (0, 0)),
    ((12, 9), (3, 3), (2, 1)), ((16, 16), (4, 4), (0, 0)), ((15, 18), (4, 4), (1, 0)),
    ((8, 9), (2, 1), (0, 0)), ((9, 8), (1, 2), (0, 1)), ((7, 8), (1, 1), (0, 0)),
    ((32, 48), (16, 16), (0, 0)), ((33, 20), (16, 16), (5, 3)), ((5, 5), (7, 7), (4, 0)),
    ((1, 1), (2, 2), (0, 0)), ((1, 9), (1, 2), (0, 0)), ((2, 2), (2, 2), (1, 0)),
    ((4, 8, 6), (1, 2, 2), (0, 0, 0)), ((5, 7, 6), (2, 2, 2), (1, 0, 0)), ((4, 6, 9), (2, 3, 1), (0, 0, 0)),
    ((1, 6, 6), (1, 2, 2), (0, 0, 0)),
]  # fmt: skip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def board(*size: int) -> torch.Tensor:
    signs = [1 - 2 * (torch.arange(n, dtype=torch.float64) % 2) for n in size]
    return signs[0][:, None] * signs[1]


def defined(x: torch.Tensor, stride, phase=0, size=None) -> dict[str, torch.Tensor]:
    """All metrics by their definitions, in float64."""
    x = x.double()
    P = compute_power_spectrum(x, axes=len(stride))
    return {
        "power": x.square().flatten(1).mean(1),
        "avr": compute_avr(P, stride),
        "avr_separable": compute_avr(P, stride, "separable"),
        "avr_exclude_dc": compute_avr(P, stride, exclude_dc=True),
        "avr_separable_exclude_dc": compute_avr(P, stride, "separable", exclude_dc=True),
        **compute_alias_metrics(x, stride, phase, size),
    }


def assert_same(values, expected, rel, tiny=0.0):
    for name, value in values.items():
        assert value.dtype == torch.float64
        assert value.tolist() == pytest.approx(expected[name].tolist(), rel=rel, abs=tiny), name


class TestValues:
    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    @pytest.mark.parametrize("mean", [0, 1])
    def test_equal_the_definitions(self, size, stride, phase, mean):
        x = noise(2, 5, *size) + mean
        values = measure_bands(x, stride, phase, None, METRICS).values()
        assert set(values) == {"power", *METRICS}
        assert_same(values, defined(x, stride, phase), 1e-11, 1e-13)
        single = measure_bands(x.float(), stride, phase, None, METRICS).values()
        assert_same(single, defined(x.float(), stride, phase), 1e-5, 1e-7)

    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    def test_equal_the_reference(self, size, stride, phase):
        x = noise(2, 3, *size)
        values = measure_bands(x, stride, phase, None, METRICS).values()
        for b, image in enumerate(x.numpy()):
            kept, residual = reference.split_nd(image, stride, phase)
            axes = tuple(range(1, image.ndim))
            distance = np.abs(np.fft.fftn(residual, axes=axes)).sum()
            samples = math.prod(kept.shape[1:])
            expected = {
                "avr": reference.avr_nd(image, stride),
                "avr_separable": reference.avr_nd(image, stride, "separable"),
                "am": distance / (3 * samples),
                "am_relative": distance / np.abs(np.fft.fftn(kept, axes=axes)).sum(),
                "alias_power_ratio": (residual**2).sum() / (kept**2).sum(),
            }
            for name, value in expected.items():
                assert values[name][b].item() == pytest.approx(value, rel=1e-10, abs=1e-13), name

    @pytest.mark.parametrize(("side", "channels"), [(16, 2), (16, 6), (128, 6)])
    def test_faint_aliases_beside_loud_ones_have_their_digits_in_float32(self, side, channels):
        """Some in every bin, or in four bins alone."""
        places, white = torch.arange(side, dtype=torch.float64) / side, noise(channels, side, side)
        low, high = (
            torch.outer(*(torch.cos(2 * math.pi * k * places) for k in bins))
            for bins in ((1, 2), (side // 2 - 2, side // 2 - 1))
        )
        for aliases in (1e-5 * white, (5e-3 * high).expand_as(white)):
            x = torch.stack([low + aliases, white]).float()
            expected = defined(x, (2, 2))
            for wanted in (METRICS, ("am", "alias_power_ratio")):
                assert_same(measure_bands(x, (2, 2), metrics=wanted).values(), expected, 1e-5)
            assert_same({k: v.double() for k, v in compute_alias_metrics(x).items()}, expected, 1e-5)

    @QUICK
    @given(st.data())
    def test_equal_the_definitions_anywhere(self, data):
        size = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=3))
        stride = tuple(data.draw(st.integers(1, 6)) for _ in size)
        phase = tuple(data.draw(st.integers(0, min(s, n) - 1)) for s, n in zip(stride, size, strict=True))
        fits = [len(range(p, n, s)) for p, n, s in zip(phase, size, stride, strict=True)]
        count = tuple(data.draw(st.integers(max(1, n - 1), n)) for n in fits)
        x = noise(2, 2, *size, seed=data.draw(st.integers(0, 9))) + data.draw(st.sampled_from([0, 3]))
        values = measure_bands(x, stride, phase, count, METRICS).values()
        assert_same(values, defined(x, stride, phase, count), 1e-10, 1e-12)

    @pytest.mark.parametrize("size", [(2, 2), (4, 4), (6, 6), (14, 14), (12, 18)])
    def test_am_equals_equations_3_to_7(self, size):
        x = noise(1, 3, *size)
        am = measure_bands(x, (2, 2), metrics=("am",)).values()["am"]
        assert am.item() == pytest.approx(reference.am_paper(x[0].numpy()), rel=1e-11)

    def test_checkerboard_impulse_and_constant(self):
        n = 16
        impulse = torch.zeros(n, n, dtype=torch.float64)
        impulse[3, 5] = 2
        x = torch.stack([3 * board(n, n), impulse, torch.full((n, n), 0.3)])[:, None]
        values = measure_bands(x, (2, 2), metrics=METRICS).values()
        above = float(reference.violations((n, n), (2, 2), "radial").mean())
        assert values["avr"].tolist() == pytest.approx([1, above, 0], abs=1e-14)
        # 9 of 16 bins on each axis are at most 4 from DC: the limit itself is no violation
        assert values["avr_separable"].tolist() == pytest.approx([1, 1 - (9 / 16) ** 2, 0], abs=1e-14)
        assert values["avr_exclude_dc"].tolist() == pytest.approx([1, above * 256 / 255, 0], abs=1e-14)
        assert values["am"][0].item() == pytest.approx(3, rel=1e-12)
        # the impulse sits on samples that aren't kept: the output has only what the low-pass removed
        assert values["am_relative"].tolist() == pytest.approx([1, 0, 0], abs=1e-12)
        assert values["power"].tolist() == pytest.approx([9, 4 / 256, 0.09])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_silent_maps_give_zero(self, dtype):
        x = torch.zeros(2, 3, 8, 8, dtype=dtype)
        x[1, 1] = board(8, 8)
        values = measure_bands(x, (2, 2), metrics=METRICS).values()
        assert {name: value[0].item() for name, value in values.items()} == dict.fromkeys(values, 0)
        assert values["avr"][1].item() == pytest.approx(1)

    def test_white_noise_anchors(self):
        values = measure_bands(noise(1, 1, 512, 512), (2, 2), metrics=METRICS).values()
        assert values["avr"].item() == pytest.approx(1 - math.pi / 16, abs=0.01)
        assert values["avr_separable"].item() == pytest.approx(0.75, abs=0.01)
        assert values["alias_power_ratio"].item() == pytest.approx(0.75, abs=0.01)

    @pytest.mark.parametrize(
        ("size", "stride"),
        [((8, 8), (1, 2)), ((7, 10), (3, 1)), ((4, 6, 6), (1, 2, 2)), ((5, 6, 7), (2, 1, 3))],
    )
    def test_alias_power_of_white_noise_is_the_share_of_bins_cut(self, size, stride):
        # The mean over white noise is the mean over unit impulses: Π (2K + 1)/N over the decimated axes.
        impulses = torch.eye(math.prod(size), dtype=torch.float64).view(1, -1, *size)
        ratio = measure_bands(impulses, stride, metrics=("alias_power_ratio",)).values()["alias_power_ratio"]
        low = [(2 * ((n - 1) // (2 * s)) + 1) / n for n, s in zip(size, stride, strict=True) if s > 1]
        assert ratio.item() == pytest.approx(1 - math.prod(low), rel=1e-12)

    @pytest.mark.parametrize("faint", [1e-1, 1e-3, 1e-5])
    @pytest.mark.parametrize(
        ("channels", "size"), [(2, (56, 56)), (2, (33, 47)), (2, (224, 224)), (6, (56, 56)), (6, (33, 47))]
    )
    def test_small_avr_keeps_its_digits(self, channels, size, faint):
        """Few channels have their whole spectrum summed; of many, what is above is a difference."""
        smooth = torch.stack(
            [torch.from_numpy(reference.low_pass(noise(*size).numpy(), (4, 4))) for _ in range(channels)]
        )
        x = (smooth + faint * noise(channels, *size, seed=1))[None]
        x = x + torch.tensor([0.0, 2.0])[:, None, None, None]
        for dtype, rel in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            maps = x.to(dtype)
            expected = defined(maps, (2, 2))
            found = measure_bands(maps, (2, 2), metrics=("avr", "avr_separable", "avr_exclude_dc")).values()
            assert_same(found, expected, rel)
            assert min(found["avr"]) > 0

    @pytest.mark.parametrize("size", [(8, 8), (16, 9), (112, 112)])
    def test_faint_pattern_on_a_bright_ground(self, size):
        x = (100 + noise(1, 2, *size)).float()
        values = measure_bands(x, (2, 2), metrics=("avr_exclude_dc",)).values()
        assert values["avr_exclude_dc"].tolist() == pytest.approx(
            defined(x, (2, 2))["avr_exclude_dc"].tolist(), 1e-5
        )

    @pytest.mark.parametrize("stride", [(2, 2), (3, 3), (4, 4), (2, 1), (16, 16)])
    @pytest.mark.parametrize("size", [(224, 224), (112, 96), (57, 64), (33, 47), (14, 14)])
    def test_am_of_band_limited_float32_maps_is_rounding(self, size, stride):
        # white in its band, and a tone at its edge: all of the rounding lies where there is no signal
        edge = max(0, (size[1] - 1) // (2 * stride[1]))
        tone = torch.cos(2 * torch.pi * edge * torch.arange(size[1]).double() / size[1] + 0.3).expand(
            1, *size
        )
        white = torch.from_numpy(reference.low_pass(noise(1, *size).numpy(), stride))
        x = torch.stack([white, white + 1, tone]).float()
        for relative in (
            measure_bands(x, stride, metrics=("am_relative",)).values()["am_relative"],
            compute_am_relative(x, stride),
        ):
            assert relative.max().item() < 1e-6

    def test_jitter_of_a_constant_is_no_pattern(self):
        x = torch.full((1, 2, 8, 8), 0.7)
        x[..., 3, 5] = torch.nextafter(x[..., 3, 5], torch.tensor(1.0))
        assert compute_avr(compute_power_spectrum(x), exclude_dc=True).item() == 0
        assert measure_bands(x, (2, 2), metrics=("avr_exclude_dc",)).values()["avr_exclude_dc"].item() == 0


class Doubles(TorchDispatchMode):
    """Counts transforms in double precision."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._fft_r2c.default and args[0].dtype == torch.float64
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("share", "doubles"), [(1e-1, 0), (1e-3, 0), (1e-8, 1)])
@pytest.mark.parametrize("mean", [0, 30])
def test_double_precision_is_for_what_single_leaves_open(share, doubles, mean):
    """Most photographs are open to the fast sums in early maps, and hardly one to the full spectrum."""
    low = torch.cos(2 * torch.pi * torch.arange(32) / 32).expand(1, 16, 32, 32).double()
    x = ((mean**2 + 0.5) ** 0.5 * share**0.5 * board(32, 32) + low + mean).float()
    with Doubles() as counted:
        found = measure_bands(x, (2, 2), metrics=("avr",)).values()["avr"]
    assert counted.count == doubles
    assert float(found) == pytest.approx(float(defined(x, (2, 2))["avr"]), rel=1e-5)


def test_each_image_keeps_its_own_values_however_they_are_settled():
    """By the fast sums, the full spectrum, in double precision, and silent ones: in any order."""
    shares = torch.tensor([1e-8, 0.5, 1e-3, 0, 1e-3, 1e-8]).double()
    x = shares.sqrt()[:, None, None, None] * board(32, 32).expand(6, 16, 32, 32)
    tone = torch.cos(2 * torch.pi * torch.arange(32).double() / 32)
    x = (x + torch.tensor([1.0, 1, 1, 0, 1, 1])[:, None, None, None] * tone).float()
    for order in (range(6), (2, 0), (5, 4, 3, 2, 1, 0), (4, 5, 0, 2)):
        found = measure_bands(x[list(order)], (2, 2), metrics=("avr",)).values()["avr"]
        assert_same({"avr": found}, {"avr": defined(x[list(order)], (2, 2))["avr"]}, 1e-5)


class TestPieces:
    @pytest.mark.parametrize(
        ("size", "stride", "phase"), [((14, 14), (2, 2), (0, 0)), ((9, 11), (3, 2), (1, 0))]
    )
    def test_channels_add_and_images_stack(self, size, stride, phase):
        x = noise(3, 7, *size)
        x[0] = 1  # its small AVR is resolved in each piece
        whole = measure_bands(x, stride, phase, None, METRICS).values()
        pieces = [measure_bands(part, stride, phase, None, METRICS) for part in x.split([1, 4, 2], dim=1)]
        assert_same((pieces[0] + pieces[1] + pieces[2]).values(), whole, 1e-12, 1e-15)
        images = [measure_bands(part, stride, phase, None, METRICS).values() for part in x.split(2)]
        assert_same({name: torch.cat([i[name] for i in images]) for name in whole}, whole, 1e-12, 1e-15)

    @pytest.mark.parametrize("metrics", [("avr",), METRICS])
    def test_a_few_channels_add_to_many(self, metrics):
        """Of few the full spectrum is summed: pieces of a map end with what is left of its channels."""
        most = 2 * spectral.metrics.bands.FEW_CHANNELS
        x = noise(2, most + 1, 24, 24).float()
        many, few = (measure_bands(part, (2, 2), (0, 0), None, metrics) for part in x.split(most, dim=1))
        whole = measure_bands(x, (2, 2), (0, 0), None, metrics).values()
        assert_same((many + few).values(), whole, 1e-6, 1e-9)
        assert_same((few + many).values(), whole, 1e-6, 1e-9)

    @pytest.mark.parametrize("elements", [1, 150, 700, 2**20])
    @pytest.mark.parametrize("last", [False, True])
    def test_blocks_change_nothing(self, elements, last, monkeypatch):
        x = noise(3, 5, 10, 12)
        expected = measure_bands(x, (2, 2), metrics=METRICS).values()
        monkeypatch.setattr(spectral.metrics.bands, "CPU_BLOCK", elements)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        assert_same(measure_bands(x, (2, 2), metrics=METRICS).values(), expected, 1e-12)

    def test_only_pieces_of_one_map_add(self):
        one = measure_bands(noise(1, 2, 8, 8), (2, 2))
        for other in (
            measure_bands(noise(1, 2, 8, 10), (2, 2)),
            measure_bands(noise(1, 2, 8, 8), (2, 1)),
            measure_bands(noise(1, 2, 8, 8), (2, 2), metrics=("avr",)),
        ):
            with pytest.raises(SpectralError, match="only pieces of one map can be added"):
                one + other

    @pytest.mark.parametrize(
        "metrics", [(), ("avr",), ("avr_exclude_dc",), ("am",), ("alias_power_ratio", "avr")]
    )
    def test_only_what_is_asked_for(self, metrics):
        x = noise(2, 3, 9, 8)
        values = measure_bands(x, (2, 2), metrics=metrics).values()
        assert set(values) == {"power", *metrics}
        assert_same(values, defined(x, (2, 2)), 1e-11)


class TestPrecision:
    @pytest.mark.parametrize("memory", [torch.channels_last, "transposed", "strided"])
    def test_memory_format_does_not_matter(self, memory):
        x = noise(2, 6, 12, 12).float()
        expected = measure_bands(x, (2, 2), metrics=METRICS).values()
        if memory == "transposed":
            other = x.mT.contiguous().mT
        elif memory == "strided":
            other = x.repeat_interleave(2, 1)[:, ::2]
        else:
            other = x.contiguous(memory_format=memory)
        assert not other.is_contiguous()
        before = other.clone()
        assert_same(measure_bands(other, (2, 2), metrics=METRICS).values(), expected, 1e-6)
        assert torch.equal(other, before)

    def test_channels_last_3d(self):
        x = noise(2, 4, 3, 6, 8)
        last = x.contiguous(memory_format=torch.channels_last_3d)
        expected = measure_bands(x, (1, 2, 2), metrics=METRICS).values()
        assert_same(measure_bands(last, (1, 2, 2), metrics=METRICS).values(), expected, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_raised(self, dtype):
        x = noise(2, 3, 10, 8).to(dtype)
        values, raised = (measure_bands(t, (2, 2), metrics=METRICS).values() for t in (x, x.float()))
        assert all(torch.equal(values[name], raised[name]) for name in values)

    def test_autocast_does_not_round_it(self):
        x = noise(2, 3, 16, 16).float()
        expected = measure_bands(x, (2, 2), metrics=METRICS).values()
        with torch.autocast("cpu", torch.bfloat16):
            inside = measure_bands(x, (2, 2), metrics=METRICS).values()
        assert all(torch.equal(inside[name], expected[name]) for name in expected)

    def test_fast_products_are_switched_off_and_on_again(self):
        x = noise(2, 3, 64, 64).float()
        expected = measure_bands(x, (2, 2), metrics=METRICS).values()
        torch.set_float32_matmul_precision("medium")
        try:
            inside = measure_bands(x, (2, 2), metrics=METRICS).values()
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")
        assert_same(inside, expected, 1e-7)

    @pytest.mark.parametrize(("stride", "phase"), [((2, 2), (0, 0)), ((2, 1), (1, 0)), ((3, 2), (0, 1))])
    def test_gradients(self, stride, phase):
        x = noise(2, 2, 4, 6).requires_grad_()
        for metric in METRICS:
            assert torch.autograd.gradcheck(
                lambda t, m=metric: measure_bands(t, stride, phase, None, (m,)).values()[m],
                (x,),
                fast_mode=True,
            )

    def test_gradients_where_sums_are_resolved(self):
        smooth = torch.from_numpy(reference.low_pass(noise(1, 2, 8, 8).numpy(), (4, 4)))
        x = (smooth + 1e-3 * noise(1, 2, 8, 8, seed=1)).requires_grad_()
        for metric in ("avr", "avr_separable"):
            (fast,) = torch.autograd.grad(
                measure_bands(x, (2, 2), metrics=(metric,)).values()[metric].sum(), x
            )
            (slow,) = torch.autograd.grad(defined(x, (2, 2))[metric].sum(), x)
            torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-9)
        single = x.detach().float().requires_grad_()  # and where float32 is resolved in float64
        (fast,) = torch.autograd.grad(
            measure_bands(single, (2, 2), metrics=("avr", "am")).values()["avr"].sum(), single
        )
        assert fast.double() == pytest.approx(
            torch.autograd.grad(defined(x, (2, 2))["avr"].sum(), x)[0], abs=1e-5
        )

    def test_gradient_of_a_silent_or_band_limited_map_is_finite(self):
        for x in (torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)):
            x.requires_grad_()
            sum(
                value.sum() for value in measure_bands(x, (2, 2), metrics=METRICS).values().values()
            ).backward()
            assert torch.isfinite(x.grad).all()

    def test_matrices_cached_under_inference_mode_serve_gradients(self):
        x = noise(1, 1, 13, 21)  # a size no other test uses
        with torch.inference_mode():
            measure_bands(x, (2, 2), metrics=METRICS)
        x.requires_grad_()
        sum(value.sum() for value in measure_bands(x, (2, 2), metrics=METRICS).values().values()).backward()
        assert x.grad.abs().max().item() > 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("x", "options", "sentence"),
        [
            (torch.ones(3, 4, 4), {}, r"expected \(B, C\) and 2 spatial axes, got \(3, 4, 4\)"),
            (torch.ones(1, 1, 4, 4, 4), {}, r"expected \(B, C\) and 2 spatial axes"),
            (torch.ones(1, 1, 4, 4, dtype=torch.int32), {}, "expected a real floating-point map"),
            (torch.ones(1, 1, 4, 4), {"metrics": ("amm",)}, "unknown metric 'amm'; nearest: 'am'"),
            (torch.ones(1, 1, 4, 4), {"stride": (0, 2)}, "stride must be ≥ 1 on every axis"),
            (torch.ones(1, 1, 4, 4), {"size": (3, 3)}, "3 samples from 0 in steps of 2 don't fit a map of 4"),
            (
                torch.ones(1, 1, 4, 4),
                {"phase": (0, 4)},
                "0 samples from 4 in steps of 2 don't fit a map of 4",
            ),
            (torch.full((1, 1, 4, 4), math.nan), {}, "the map has NaN or infinite values"),
            (torch.full((1, 1, 4, 4), math.inf), {"metrics": ()}, "the map has NaN or infinite values"),
            (torch.full((1, 1, 4, 4), 1e30), {}, "overflows when squared"),
        ],
    )
    def test_is_refused(self, x, options, sentence):
        with pytest.raises(SpectralError, match=f"measure_bands: .*{sentence}"):
            measure_bands(x, **{"stride": (2, 2), **options})


@pytest.mark.parametrize("amplitude", [0.1, 2e-3])
def test_am_of_a_tone_that_aliases_alone_has_five_digits(amplitude):
    """All bins but a few are empty, and in float32 rounding would fill them."""
    place = 2 * math.pi * torch.arange(96, dtype=torch.float64) / 96
    low = (3 * place).cos()[:, None] * (5 * place).cos()
    maps = (1 + low + amplitude * (41 * place).cos()).float().expand(1, 2, 96, 96)
    kept, residual = reference.split(maps[0].double().numpy(), (2, 2))
    l1 = [np.abs(reference.dft(x)).sum() for x in (residual, kept)]
    expected = {"am": l1[0] / residual.size, "am_relative": l1[0] / l1[1]}
    bands = measure_bands(maps, (2, 2), metrics=tuple(expected)).values()
    direct = compute_alias_metrics(maps)
    for metric, value in expected.items():
        assert float(bands[metric]) == pytest.approx(value, rel=1e-5)
        assert float(direct[metric]) == pytest.approx(value, rel=1e-5)
        assert direct[metric].dtype == torch.float32
    assert float(compute_am_relative(maps)) == pytest.approx(expected["am_relative"], rel=1e-5)
