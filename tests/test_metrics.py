"""AVR, AM and SIS against closed forms, exact fractions and the papers' own equations."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral.errors import SpectralError
from spectral.metrics.aliasing import (
    compute_alias_categories,
    compute_alias_metrics,
    compute_alias_power_ratio,
    compute_am,
    compute_am_relative,
    compute_avr,
    fold_spectrum,
    split_aliases,
)
from spectral.metrics.instability import (
    compute_instability,
    compute_logit_jitter,
    compute_logit_spread,
    compute_sis,
)
from spectral.metrics.sampling import violation_mask
from spectral.metrics.spectrum import compute_power_spectrum
from spectral.network import evaluation_mode
from spectral.numerics.products import exact_products

QUICK = settings(max_examples=15)
SIZES = [(1, 1), (2, 2), (1, 7), (16, 1), (7, 9), (8, 8), (14, 14), (20, 12), (33, 47)]
STRIDES = [(1, 1), (2, 2), (3, 3), (4, 4), (2, 1), (1, 3), (2, 4)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tone(size: tuple[int, int], k: int, l: int, angle: float = 0.3) -> torch.Tensor:  # noqa: E741
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    turns = (k * y % size[0]).double() / size[0] + (l * x % size[1]).double() / size[1]
    return torch.cos(2 * torch.pi * turns + angle)


def checkerboard(size: tuple[int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    return (1 - 2 * ((x + y) % 2)).to(dtype)


def avr_of(x, stride=2, **options) -> float:
    return compute_avr(compute_power_spectrum(x), stride, **options).item()


class TestAvr:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("cutoff", ["radial", "separable"])
    def test_equals_exact_loops(self, size, cutoff):
        P = noise(*size) ** 2
        for stride in STRIDES:
            for exclude_dc in (False, True):
                options = {"cutoff": cutoff, "exclude_dc": exclude_dc}
                expected = reference.avr(P, stride, **options)
                assert compute_avr(P, stride, **options).item() == pytest.approx(expected, rel=1e-12)
                single = compute_avr(P.astype(np.float32), stride, **options)
                assert single.dtype == torch.float32
                assert single.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("size", [(7, 9), (14, 14), (33, 47), (56, 56)])
    @pytest.mark.parametrize("mean", [0, 10])
    def test_from_the_map_on_in_both_precisions(self, size, mean):
        x = noise(3, *size) + mean
        expected = reference.avr(reference.power_spectrum(x), (2, 2))
        assert avr_of(x) == pytest.approx(expected, rel=1e-12)
        assert avr_of(x.astype(np.float32)) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("size", [(2, 2), (8, 14), (28, 28), (32, 32), (56, 56), (112, 112), (224, 224)])
    def test_equals_the_study_at_even_sizes(self, size):
        P = compute_power_spectrum(noise(3, *size))
        for stride in (1, 2, 4):
            assert compute_avr(P, stride).item() == pytest.approx(
                reference.avr_study(P.numpy(), stride), abs=1e-9
            )

    @pytest.mark.parametrize("cutoff", ["radial", "separable"])
    @pytest.mark.parametrize("stride", [*STRIDES, (7, 7), (40, 40)])
    def test_mask_is_decided_in_fractions(self, cutoff, stride):
        for size in [(1, 1), (1, 8), (5, 5), (12, 20), (20, 20), (21, 14)]:
            expected = [
                [reference.is_violation(u, v, size, stride, cutoff) for v in range(size[1])]
                for u in range(size[0])
            ]
            assert violation_mask(size, stride, cutoff).tolist() == expected

    def test_mask_of_a_global_stride_does_not_overflow(self):
        # Every bin but DC is above a limit of half a bin; squared, the numbers here pass 2⁶³.
        assert violation_mask((2048, 2048), (2048, 2048)).sum().item() == 2048**2 - 1

    @pytest.mark.parametrize(("h", "w"), SIZES)
    def test_constant_is_zero(self, h, w):
        assert avr_of(torch.full((h, w), 0.1, dtype=torch.float64)) == pytest.approx(0, abs=1e-28)
        assert avr_of(torch.full((h, w), 0.1)) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("size", [(2, 2), (6, 6), (8, 10), (14, 14), (56, 56), (224, 224)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("cutoff", ["radial", "separable"])
    def test_checkerboard_is_exactly_one(self, size, dtype, cutoff):
        assert avr_of(checkerboard(size, dtype), cutoff=cutoff) == 1.0

    @pytest.mark.parametrize(
        ("size", "stride", "k", "l", "expected"),
        [
            # limit N/(2s) bins: below, on and above it along each axis and the diagonal
            ((16, 16), 2, 3, 0, 0), ((16, 16), 2, 4, 0, 0), ((16, 16), 2, 5, 0, 1),
            ((16, 16), 2, 0, 4, 0), ((16, 16), 2, 0, 5, 1), ((16, 16), 2, 2, 3, 0), ((16, 16), 2, 3, 3, 1),
            ((8, 8), 2, 2, 0, 0), ((8, 8), 2, 0, 2, 0), ((8, 8), 2, 2, 1, 1),
            # Pythagorean bins lie exactly on the circle of radius 5 or 13
            ((20, 20), 2, 3, 4, 0), ((20, 20), 2, -4, 3, 0), ((20, 20), 2, 4, 4, 1), ((30, 30), 3, 3, -4, 0),
            ((40, 40), 4, 4, 3, 0), ((52, 52), 2, 5, 12, 0), ((52, 52), 2, 12, 5, 0), ((52, 52), 2, 6, 12, 1),
            # and on an ellipse where the sides or the strides differ
            ((20, 40), 2, 3, 8, 0), ((20, 40), 2, 4, 7, 1),
            ((20, 40), (2, 4), 3, 4, 0), ((20, 40), (2, 4), 4, 4, 1),
            ((7, 9), 2, 1, 1, 0), ((7, 9), 2, 2, 0, 1), ((7, 9), 2, 0, 2, 0), ((7, 9), 2, 0, 3, 1),
            ((16, 16), (2, 1), 0, 7, 0), ((16, 16), (2, 1), 5, 0, 1), ((16, 16), (1, 2), 5, 0, 0),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_tone_on_a_bin_is_zero_or_one(self, size, stride, k, l, expected, dtype):  # noqa: E741
        tolerance = 1e-12 if dtype == torch.float32 else 1e-25  # squared rounding of the transform
        assert avr_of(tone(size, k, l).to(dtype), stride) == pytest.approx(
            expected, abs=max(tolerance, 1e-15 * expected)
        )

    def test_separable_keeps_the_square_that_radial_cuts(self):
        x = tone((16, 16), 3, 3)
        assert avr_of(x) == pytest.approx(1)
        assert avr_of(x, cutoff="separable") == pytest.approx(0, abs=1e-25)
        assert avr_of(tone((16, 16), 4, 4), cutoff="separable") == pytest.approx(
            0, abs=1e-25
        )  # the corner, on both
        assert avr_of(tone((16, 16), 1, 5), cutoff="separable") == pytest.approx(1)
        assert avr_of(tone((16, 16), 1, 5), (2, 1), cutoff="separable") == pytest.approx(0, abs=1e-25)

    @pytest.mark.parametrize(("cutoff", "limit"), [("radial", 1 - math.pi / 16), ("separable", 0.75)])
    def test_white_noise_anchor(self, cutoff, limit):
        # For white Gaussian noise each bin brings one degree of freedom, so AVR ~ Beta(a/2, b/2) with a bins
        # above and b below the limit: exact at any size. The share a/(a + b) approaches the anchor, since the
        # lattice points of a disc of radius r miss its area by under π(√2 r + ½).
        n = 512
        above = int(violation_mask((n, n), (2, 2), cutoff).sum())
        low, high = scipy.stats.beta.interval(1 - 1e-9, above / 2, (n * n - above) / 2)
        assert low < avr_of(noise(n, n), cutoff=cutoff) < high
        assert high - low < 0.02
        assert above / n**2 == pytest.approx(limit, abs=math.pi * (math.sqrt(2) * n / 4 + 0.5) / n**2)

    def test_white_noise_distribution(self):
        size = (14, 17)
        above = int(violation_mask(size, (2, 2)).sum())
        values = compute_avr(compute_power_spectrum(noise(400, 1, *size)))
        law = scipy.stats.beta(above / 2, (size[0] * size[1] - above) / 2)
        assert scipy.stats.kstest(values.numpy(), law.cdf).pvalue > 1e-4

    @pytest.mark.parametrize(("size", "stride"), [((16, 16), (2, 2)), ((15, 22), (3, 2)), ((12, 12), (2, 1))])
    def test_band_limited_map_is_zero(self, size, stride):
        x = reference.low_pass(noise(*size), stride)
        assert avr_of(x, stride, cutoff="separable") == pytest.approx(0, abs=1e-25)
        quarter = reference.low_pass(
            noise(*size), (2 * stride[0], 2 * stride[1])
        )  # √2/2 < 1: inside the ellipse
        assert avr_of(quarter, stride) == pytest.approx(0, abs=1e-25)

    def test_ramp_leaks_without_a_window(self):
        # A ramp of N samples, repeated, has power ∝ 1/sin²(πk/N); without DC it sums to (N² − 1)/12.
        n = 64
        x = torch.arange(n, dtype=torch.float64).expand(n, n)
        closed_form = sum(1 / (4 * math.sin(math.pi * k / n) ** 2) for k in range(n) if min(k, n - k) > n / 4)
        closed_form /= (n**2 - 1) / 12
        assert closed_form == pytest.approx(0.03, abs=0.005)
        assert avr_of(x, exclude_dc=True) == pytest.approx(closed_form, rel=1e-10)
        assert avr_of(x - x.mean()) == pytest.approx(closed_form, rel=1e-10)
        windowed = compute_avr(compute_power_spectrum(x - x.mean(), window="hann")).item()
        assert windowed < closed_form / 1000

    @QUICK
    @given(
        st.integers(1, 12),
        st.integers(1, 12),
        st.integers(-13, 13),
        st.integers(-13, 13),
        st.floats(1e-6, 1e6),
    )
    def test_invariant_under_roll_and_scale(self, height, width, dy, dx, gain):
        x = torch.from_numpy(noise(3, height, width))
        for cutoff in ("radial", "separable"):
            value = avr_of(x, cutoff=cutoff)
            assert avr_of(x.roll((dy, dx), (1, 2)), cutoff=cutoff) == pytest.approx(
                value, rel=1e-11, abs=1e-13
            )
            assert avr_of(-gain * x, cutoff=cutoff) == pytest.approx(value, rel=1e-11, abs=1e-13)

    @QUICK
    @given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 5), st.integers(1, 5), st.integers(0, 50))
    def test_bounded_monotonic_and_transposable(self, height, width, s_h, s_w, seed):
        P = compute_power_spectrum(noise(height, width, seed=seed))
        radial = compute_avr(P, (s_h, s_w)).item()
        separable = compute_avr(P, (s_h, s_w), cutoff="separable").item()
        assert 0 <= separable <= radial <= 1  # the ellipse lies within the rectangle
        assert radial <= compute_avr(P, (s_h + 1, s_w)).item() + 1e-15
        assert compute_avr(P.T, (s_w, s_h)).item() == pytest.approx(radial, rel=1e-12)

    @pytest.mark.parametrize("faint", [1e-2, 1e-5, 1e-8])
    def test_exclude_dc_sees_a_faint_pattern_on_a_bright_ground(self, faint):
        x = 1 + faint * (checkerboard((8, 8)) + tone((8, 8), 1, 0, angle=0))  # powers 1 and ½
        assert avr_of(x, exclude_dc=True) == pytest.approx(2 / 3, rel=1e-6)

    @pytest.mark.parametrize("size", [(7, 9), (14, 14), (33, 47), (53, 53), (61, 61), (224, 224)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_exclude_dc_takes_no_share_of_a_constants_rounding(self, size, dtype):
        for value in (0.1, 123.456):
            assert avr_of(torch.full(size, value, dtype=dtype), exclude_dc=True) == 0

    def test_exclude_dc_from_power_itself(self):
        P = torch.tensor([[0.0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 100, 1], [0, 0, 0, 0]])
        assert compute_avr(P, 2).item() == pytest.approx(3 / 104)
        assert compute_avr(P, 2, exclude_dc=True).item() == pytest.approx(3 / 4)
        P[2, 2] = 0
        assert compute_avr(P, 2, exclude_dc=True).item() == pytest.approx(3 / 4)

    def test_silent_maps_are_zero_and_spoil_nothing(self):
        x = torch.zeros(3, 2, 6, 6, dtype=torch.float64)
        x[1] = checkerboard((6, 6))
        P = compute_power_spectrum(x.requires_grad_())
        for exclude_dc in (False, True):
            avr = compute_avr(P, exclude_dc=exclude_dc)
            assert avr.tolist() == [0, 1, 0]
            avr.sum().backward(retain_graph=True)
            assert torch.isfinite(x.grad).all()

    def test_shapes(self):
        assert compute_avr(torch.rand(5, 6)).shape == ()
        assert compute_avr(torch.rand(2, 5, 6)).shape == (2,)
        P = torch.rand(2, 3, 5, 6, dtype=torch.float64)
        assert compute_avr(P).shape == (2, 3)
        assert compute_avr(P)[1, 2].item() == pytest.approx(compute_avr(P[1, 2].numpy()).item(), rel=1e-14)

    def test_dtype(self):
        assert compute_avr(torch.rand(4, 4, dtype=torch.float64)).dtype == torch.float64
        assert compute_avr(torch.rand(4, 4, dtype=torch.float16)).dtype == torch.float32

    def test_strides_come_as_ints_pairs_and_numpy_ints(self):
        P = noise(8, 8) ** 2
        expected = reference.avr(P, (2, 2))
        for stride in (2, (2, 2), [2, 2], np.int64(2), (np.int32(2), 2)):
            assert compute_avr(P, stride).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("cutoff", ["radial", "separable"])
    @pytest.mark.parametrize("exclude_dc", [False, True])
    def test_gradient_reaches_the_map(self, cutoff, exclude_dc):
        x = torch.from_numpy(noise(2, 2, 3, 4)).requires_grad_()

        def penalty(t):
            return compute_avr(compute_power_spectrum(t), (2, 1), cutoff=cutoff, exclude_dc=exclude_dc)

        assert torch.autograd.gradcheck(penalty, (x,), fast_mode=True)

    def test_grids_cached_under_inference_mode_serve_gradients(self):
        x = torch.from_numpy(noise(11, 19))  # a size no other test uses: the grids are made here
        with torch.inference_mode():
            compute_avr(compute_power_spectrum(x))
            compute_am(x)
        x.requires_grad_()
        (compute_avr(compute_power_spectrum(x)) + compute_am(x)).backward()
        assert x.grad.abs().max().item() > 0

    @pytest.mark.parametrize(
        "stride", [0, -1, (0, 2), (2, 0), (2,), (), (2, 2, 0), 2.5, (2.0, 2.0), None, "2", True]
    )
    def test_bad_stride(self, stride):
        with pytest.raises(SpectralError, match="compute_avr: stride must be ≥ 1 on every axis, got"):
            compute_avr(torch.ones(4, 4), stride)

    @pytest.mark.parametrize(
        ("P", "options", "sentence"),
        [
            (torch.ones(4, 4), {"cutoff": "square"}, "cutoff must be 'radial' or 'separable', got 'square'"),
            (torch.ones(4), {}, r"expected shape \(…, H, W\), got \(4,\)"),
            (torch.ones(4, 4, dtype=torch.int32), {}, "expected a real floating-point map, got torch.int32"),
            (torch.ones(4, 0), {}, r"the map is empty, got shape \(4, 0\)"),
            (torch.full((4, 4), math.nan), {}, "the power has NaN or infinite values"),
            (torch.full((4, 4), math.nan), {"exclude_dc": True}, "the power has NaN or infinite values"),
            ("P", {}, "expected a torch tensor or a numpy array, got str"),
        ],
    )  # fmt: skip
    def test_bad_input(self, P, options, sentence):
        with pytest.raises(SpectralError, match=f"compute_avr: {sentence}"):
            compute_avr(P, **options)


LATTICES = [
    ((8, 8), (2, 2), (0, 0)), ((8, 8), (2, 2), (1, 1)), ((8, 6), (2, 2), (1, 0)), ((7, 9), (2, 2), (0, 0)),
    ((7, 9), (2, 2), (1, 1)), ((14, 14), (2, 2), (0, 1)), ((33, 47), (2, 2), (0, 0)),
    ((12, 9), (3, 3), (2, 1)), ((10, 11), (3, 3), (0, 0)), ((16, 16), (4, 4), (3, 2)),
    ((15, 18), (4, 4), (1, 0)), ((8, 9), (2, 1), (1, 0)),
    ((9, 8), (1, 2), (2, 1)), ((7, 8), (1, 1), (0, 0)), ((12, 20), (3, 2), (1, 1)), ((1, 1), (2, 2), (0, 0)),
    ((2, 2), (2, 2), (1, 0)), ((1, 9), (2, 2), (0, 1)), ((5, 5), (7, 7), (4, 0)),
]  # fmt: skip


class TestAm:
    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    @pytest.mark.parametrize("difference", ["complex", "magnitude"])
    def test_equals_the_residual_form(self, size, stride, phase, difference):
        x = noise(2, 3, *size)
        expected = [reference.am(image, stride, phase, difference=difference) for image in x]
        am = compute_am(x, stride, phase, difference=difference)
        assert am.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)
        single = compute_am(x.astype(np.float32), stride, phase, difference=difference)
        assert single.dtype == torch.float32
        assert single.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("size", [(2, 2), (4, 4), (6, 6), (8, 8), (10, 6), (14, 14), (12, 18), (28, 28)])
    def test_equals_equations_3_to_7(self, size):
        # N = size / 2 both even (N/2 is a bin, zeroed) and odd (it is not)
        x = noise(3, *size)
        assert compute_am(x, 2).item() == pytest.approx(reference.am_paper(x), rel=1e-11)

    @pytest.mark.parametrize(("n", "stride"), [(9, 3), (12, 3), (12, 4), (20, 4), (10, 5), (5, 1)])
    def test_equals_the_four_corners_at_other_strides(self, n, stride):
        x = noise(2, n, n)
        assert compute_am(x, stride).item() == pytest.approx(
            reference.am_paper(x, stride), rel=1e-11, abs=1e-13
        )

    def test_float64_to_the_last_digits(self):
        x = noise(1, 64, 64)
        assert compute_am(x).item() == pytest.approx(reference.am(x, (2, 2)), rel=1e-13)

    @pytest.mark.parametrize(
        ("size", "stride", "k", "l", "expected"),
        [
            ((16, 16), 2, 0, 6, 1),  # folds to two bins of amplitude ½
            ((16, 16), 2, 5, 1, 1),
            ((16, 16), 2, 5, 7, 1),
            ((16, 16), 2, 3, 2, 0),  # below the limit
            ((24, 24), 3, 5, 0, 1),
            ((16, 16), (2, 1), 6, 0, 1),
            ((16, 16), (2, 1), 0, 6, 0),  # stride 1 on this axis: nothing to fold
            ((16, 16), (1, 2), 0, 6, 1),
        ],
    )
    def test_tone_gives_its_amplitude(self, size, stride, k, l, expected):  # noqa: E741
        for amplitude in (1, 0.25):
            assert compute_am(amplitude * tone(size, k, l), stride).item() == pytest.approx(
                amplitude * expected, rel=1e-12, abs=1e-12
            )

    def test_checkerboard_folds_onto_dc(self):
        assert compute_am(3 * checkerboard((8, 8)), 2).item() == pytest.approx(3, rel=1e-12)
        assert compute_am_relative(checkerboard((8, 8))).item() == pytest.approx(1, rel=1e-12)

    def test_the_new_nyquist_bin_counts_on_every_decimated_axis(self):
        assert compute_am(tone((8, 8), 2, 0, angle=0), 2).item() == pytest.approx(1, rel=1e-12)
        assert compute_am(tone((8, 8), 2, 1, angle=0), (2, 1)).item() == pytest.approx(1, rel=1e-12)

    @pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 6)])
    def test_nothing_folds_along_an_axis_that_keeps_its_samples(self, size):
        # METRICS.md, rules added after use: L leaves an axis of stride 1 alone, its Nyquist bin too.
        for k in range(size[0] // 2 + 1):
            along = tone(size, k, 0, angle=0.3)
            for metric in (compute_am, compute_am_relative, compute_alias_power_ratio):
                assert metric(along, (1, 2)).item() == pytest.approx(0, abs=1e-12)
        for metric in (compute_am, compute_am_relative, compute_alias_power_ratio):
            assert metric(noise(2, *size), 1).item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize(
        ("size", "stride"),
        [
            ((8, 8), (1, 2)), ((7, 10), (3, 1)), ((8, 6), (2, 2)), ((4, 6, 6), (1, 2, 2)),
            ((5, 6, 7), (2, 1, 3)), ((3, 2, 8), (1, 1, 2)),
        ],
    )  # fmt: skip
    def test_alias_power_of_white_noise_is_the_share_of_bins_cut(self, size, stride):
        # The mean over white noise is the mean over unit impulses. L is a projection onto the bins it keeps,
        # which every sample sees alike: 1 − Π (2K + 1)/N over the axes that are decimated.
        impulses = torch.eye(math.prod(size), dtype=torch.float64).view(-1, 1, *size)
        kept, residual = split_aliases(impulses, stride, 0, None)
        ratio = residual.square().sum() / kept.square().sum()
        low = [Fraction(2 * ((n - 1) // (2 * s)) + 1, n) for n, s in zip(size, stride, strict=True) if s > 1]
        assert ratio.item() == pytest.approx(float(1 - math.prod(low)), rel=1e-12)

    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    def test_zero_on_band_limited_maps(self, size, stride, phase):
        x = reference.low_pass(noise(2, *size), stride)
        for metric in (compute_am, compute_am_relative):
            assert metric(x, stride, phase).item() == pytest.approx(0, abs=1e-12)
        assert compute_alias_power_ratio(x, stride, phase).item() == pytest.approx(0, abs=1e-24)

    def test_constant_is_zero(self):
        for size in SIZES:
            assert compute_am(torch.full(size, 0.3, dtype=torch.float64)).item() == pytest.approx(
                0, abs=1e-13
            )

    @QUICK
    @given(st.integers(1, 11), st.integers(1, 11), st.integers(1, 4), st.integers(1, 4), st.floats(1e-3, 1e3))
    def test_linear_in_amplitude(self, height, width, s_h, s_w, gain):
        x, stride = noise(2, height, width), (s_h, s_w)
        am = compute_am(x, stride).item()
        for factor in (gain, -gain):
            assert compute_am(factor * x, stride).item() == pytest.approx(
                gain * am, rel=1e-9, abs=1e-12 * gain
            )
            for free in (compute_am_relative, compute_alias_power_ratio):
                assert free(factor * x, stride).item() == pytest.approx(
                    free(x, stride).item(), rel=1e-9, abs=1e-12
                )

    @QUICK
    @given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.data())
    def test_a_phase_is_a_roll_where_the_stride_divides(self, n_h, n_w, s_h, s_w, data):
        x = torch.from_numpy(noise(2, n_h * s_h, n_w * s_w))
        phase = (data.draw(st.integers(0, s_h - 1)), data.draw(st.integers(0, s_w - 1)))
        rolled = x.roll((-phase[0], -phase[1]), (1, 2))
        for metric in (compute_am, compute_am_relative, compute_alias_power_ratio):
            expected = metric(rolled, (s_h, s_w)).item()
            assert metric(x, (s_h, s_w), phase).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_size_crops_the_lattice_after_the_low_pass(self):
        x = noise(2, 3, 12, 11)
        expected = [reference.am(image, (2, 2), (1, 0), (4, 3)) for image in x]
        assert compute_am(x, 2, (1, 0), (4, 3)).tolist() == pytest.approx(expected, rel=1e-11)
        assert torch.equal(compute_am(x, 2, size=(6, 6)), compute_am(x, 2))

    def test_mean_over_channels_per_image(self):
        x = noise(4, 3, 8, 8)
        per_map = [[reference.am(x[b, c][None], (2, 2)) for c in range(3)] for b in range(4)]
        assert compute_am(x).tolist() == pytest.approx(np.mean(per_map, axis=1).tolist(), rel=1e-11)
        assert compute_am(x[0]).item() == pytest.approx(np.mean(per_map[0]), rel=1e-11)
        assert compute_am(x[0, 0]).item() == pytest.approx(per_map[0][0], rel=1e-11)

    def test_magnitude_hides_what_only_turns_the_phase(self):
        # Low tone cos + its alias −2cos: the sum is −cos, of the same magnitude as the alias-free spectrum.
        x = tone((16, 16), 0, 2, angle=0) - 2 * tone((16, 16), 0, 6, angle=0)
        assert compute_am(x).item() == pytest.approx(2, rel=1e-12)
        assert compute_am(x, difference="magnitude").item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_raised(self, dtype):
        x = torch.from_numpy(noise(2, 3, 10, 8)).to(dtype)
        assert torch.equal(compute_am(x), compute_am(x.float()))

    def test_autocast_does_not_round_it(self):
        x = torch.from_numpy(noise(2, 16, 16)).float()
        with torch.autocast("cpu", torch.bfloat16):
            inside = compute_am(x)
        assert torch.equal(inside, compute_am(x))

    @pytest.mark.parametrize(("stride", "phase"), [(2, 0), ((2, 1), (1, 0)), (3, 1)])
    def test_gradients(self, stride, phase):
        x = torch.from_numpy(noise(2, 2, 4, 5)).requires_grad_()
        for metric in (compute_am, compute_am_relative, compute_alias_power_ratio):
            assert torch.autograd.gradcheck(lambda t, m=metric: m(t, stride, phase), (x,), fast_mode=True)

    def test_gradient_of_a_silent_map_is_finite(self):
        x = torch.zeros(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
        (compute_am(x) + compute_am_relative(x) + compute_alias_power_ratio(x)).sum().backward()
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize(
        ("x", "options", "sentence"),
        [
            (torch.ones(4), {}, r"expected shape \(H, W\), \(C, H, W\) or \(B, C, H, W\), got \(4,\)"),
            (torch.ones(4, 4, dtype=torch.uint8), {}, "expected a real floating-point map, got torch.uint8"),
            (torch.ones(4, 0), {}, "the map is empty"),
            (torch.full((4, 4), math.nan), {}, "the map has NaN or infinite values"),
            (torch.ones(4, 4), {"stride": 0}, "stride must be ≥ 1 on every axis, got 0"),
            (torch.ones(4, 4), {"phase": -1}, "samples from -1 in steps of 2 don't fit a map of 4"),
            (torch.ones(4, 4), {"phase": (0, 4)}, "0 samples from 4 in steps of 2 don't fit a map of 4"),
            (torch.ones(4, 4), {"phase": 0.5}, "phase must be ≥ 0 on every axis, got 0.5"),
            (torch.ones(4, 4), {"size": (3, 2)}, "3 samples from 0 in steps of 2 don't fit a map of 4"),
            (torch.ones(4, 4), {"size": (0, 2)}, "0 samples from 0 in steps of 2 don't fit a map of 4"),
            (torch.ones(4, 4), {"size": "ab"}, "size must be ≥ 1 on every axis, got 'ab'"),
        ],
    )
    def test_bad_input(self, x, options, sentence):
        for metric in (compute_am, compute_am_relative, compute_alias_power_ratio):
            with pytest.raises(SpectralError, match=f"{metric.__name__}: .*{sentence}"):
                metric(x, **options)

    def test_bad_difference(self):
        with pytest.raises(SpectralError, match="difference must be 'complex' or 'magnitude', got 'phase'"):
            compute_am(torch.ones(4, 4), difference="phase")


class TestAmRelatives:
    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    def test_equal_the_reference(self, size, stride, phase):
        x = noise(2, 3, *size)
        relative = [reference.am_relative(image, stride, phase) for image in x]
        power = [reference.alias_power_ratio(image, stride, phase) for image in x]
        assert compute_am_relative(x, stride, phase).tolist() == pytest.approx(relative, rel=1e-10, abs=1e-12)
        assert compute_alias_power_ratio(x, stride, phase).tolist() == pytest.approx(
            power, rel=1e-10, abs=1e-20
        )
        single = torch.from_numpy(x).float()
        assert compute_am_relative(single, stride, phase).tolist() == pytest.approx(
            relative, rel=1e-5, abs=1e-6
        )
        assert compute_alias_power_ratio(single, stride, phase).tolist() == pytest.approx(
            power, rel=1e-5, abs=1e-6
        )

    def test_pooled_over_channels_not_averaged(self):
        quiet, loud = tone((16, 16), 0, 2), 3 * tone((16, 16), 0, 7)
        x = torch.stack([quiet, loud])
        assert compute_am_relative(x).item() == pytest.approx(3 / 4, rel=1e-10)
        assert compute_alias_power_ratio(x).item() == pytest.approx(9 / 10, rel=1e-10)

    def test_all_three_from_one_split(self):
        x = noise(2, 3, 9, 8)
        metrics = compute_alias_metrics(x, (2, 1), (1, 0))
        assert torch.equal(metrics["am"], compute_am(x, (2, 1), (1, 0)))
        assert torch.equal(metrics["am_relative"], compute_am_relative(x, (2, 1), (1, 0)))
        assert torch.equal(metrics["alias_power_ratio"], compute_alias_power_ratio(x, (2, 1), (1, 0)))

    def test_decibels(self):
        x = 0.1 * tone((16, 16), 0, 7) + tone((16, 16), 2, 0)  # orthogonal after decimation: 0.01 / 1.01
        assert compute_alias_power_ratio(x).item() == pytest.approx(0.01 / 1.01, rel=1e-10)
        assert compute_alias_power_ratio(x, db=True).item() == pytest.approx(
            10 * math.log10(0.01 / 1.01), rel=1e-10
        )
        assert compute_alias_power_ratio(torch.ones(4, 4), db=True).item() == -math.inf

    def test_silent_maps_give_zero(self):
        x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
        x[1, 0] = checkerboard((8, 8))
        assert compute_am(x).tolist() == pytest.approx([0, 1 / 3])
        assert compute_am_relative(x).tolist() == pytest.approx([0, 1])
        assert compute_alias_power_ratio(x).tolist() == pytest.approx([0, 1])


VIDEO = [
    ((4, 6, 8), (1, 2, 2), (0, 0, 0)), ((5, 7, 6), (2, 2, 2), (1, 0, 1)), ((4, 9, 5), (2, 3, 1), (0, 2, 0)),
    ((1, 8, 6), (1, 2, 2), (0, 1, 0)), ((3, 1, 9), (1, 1, 2), (0, 0, 0)),
    ((2, 3, 4, 5), (1, 2, 2, 3), (0, 0, 1, 0)),
]  # fmt: skip


class TestMoreAxes:
    @pytest.mark.parametrize(("size", "stride", "phase"), VIDEO)
    def test_avr_equals_exact_loops(self, size, stride, phase):
        x = noise(2, *size)
        P = compute_power_spectrum(x, axes=len(size))
        for cutoff in ("radial", "separable"):
            expected = reference.avr_nd(x, stride, cutoff)
            assert compute_avr(P, stride, cutoff).item() == pytest.approx(expected, rel=1e-11)
            assert (
                violation_mask(size, stride, cutoff).tolist()
                == (reference.violations_nd(size, stride, cutoff) > 0).tolist()
            )
        no_dc = compute_power_spectrum(x - x.mean(tuple(range(1, x.ndim)), keepdims=True), axes=len(size))
        assert compute_avr(P, stride, exclude_dc=True).item() == pytest.approx(
            compute_avr(no_dc, stride).item(), rel=1e-10
        )

    def test_ellipsoid_is_decided_in_integers(self):
        # 2² + 3² + 6² = 7² on the limit of 7 bins in 28; one more bin on any axis is beyond
        on = {(2, 3, 6), (6, 2, 3), (-3, 6, -2)}
        mask = violation_mask((28, 28, 28), (2, 2, 2))
        for k in on:
            assert not mask[tuple(14 + i for i in k)]
            assert mask[tuple(14 + i + (i > 0) - (i < 0) for i in k)]
        # sides whose common multiple is their product: the squares stay within 64 bits
        assert violation_mask((127, 128, 129), (127, 128, 129)).sum().item() == 127 * 128 * 129 - 1

    @pytest.mark.parametrize(("size", "stride", "phase"), VIDEO)
    def test_am_equals_the_residual_form(self, size, stride, phase):
        x = noise(2, 3, *size)
        axes = tuple(range(1, len(size) + 1))
        for image, am, relative, power in zip(
            x,
            compute_am(x, stride, phase),
            compute_am_relative(x, stride, phase),
            compute_alias_power_ratio(x, stride, phase),
            strict=True,
        ):
            kept, residual = reference.split_nd(image, stride, phase)
            distance = np.abs(np.fft.fftn(residual, axes=axes)).sum()
            assert am.item() == pytest.approx(distance / kept.size, rel=1e-10, abs=1e-13)
            whole = np.abs(np.fft.fftn(kept, axes=axes)).sum()
            assert relative.item() == pytest.approx(distance / whole, rel=1e-10, abs=1e-13)
            ratio = (residual**2).sum() / (kept**2).sum()
            assert power.item() == pytest.approx(ratio, rel=1e-10, abs=1e-20)
        assert compute_am(x[0], stride, phase).item() == pytest.approx(compute_am(x, stride, phase)[0].item())

    @pytest.mark.parametrize("difference", ["complex", "magnitude"])
    def test_one_frame_is_an_image(self, difference):
        x = torch.from_numpy(noise(2, 3, 7, 8))
        video = compute_am(x[:, :, None], (1, 2, 2), (0, 1, 0), (1, 3, 4), difference)
        torch.testing.assert_close(
            video, compute_am(x, (2, 2), (1, 0), (3, 4), difference), rtol=1e-12, atol=0
        )

    def test_a_signal_is_a_row(self):
        x = noise(1, 1, 12)  # (C, 1, T)
        kept, residual = reference.split_nd(x[:, 0], (3,), (1,))
        expected = np.abs(np.fft.fft(residual)).sum() / kept.size
        assert compute_am(x, (1, 3), (0, 1)).item() == pytest.approx(expected, rel=1e-11)

    @pytest.mark.parametrize("function", [compute_avr, compute_am])
    def test_too_few_axes(self, function):
        with pytest.raises(
            SpectralError, match=rf"{function.__name__}: expected shape .*T, H, W\).*, got \(4, 4\)"
        ):
            function(torch.ones(4, 4), (2, 2, 2))


class TestPrecision:
    def test_fast_products_are_switched_off_and_on_again(self):
        def switches():
            backends = (torch.backends.cuda.matmul, torch.backends.mkldnn, torch.backends.mkldnn)
            names = ("allow_tf32", "matmul", "fp32_precision")
            found = [getattr(b, n, None) for b, n in zip(backends, names, strict=True)]
            return [torch.get_float32_matmul_precision(), *(getattr(f, "fp32_precision", f) for f in found)]

        x = torch.from_numpy(noise(2, 64, 64)).float()
        expected = compute_am(x)
        torch.set_float32_matmul_precision("medium")
        try:
            before = switches()
            assert torch.equal(compute_am(x), expected)
            assert switches() == before
            with pytest.raises(RuntimeError, match="stop"), exact_products(torch.device("cpu")):
                raise RuntimeError("stop")
            assert switches() == before
        finally:
            torch.set_float32_matmul_precision("highest")

    @pytest.mark.parametrize("stride", [2, 3, 4, (2, 1), 16])
    @pytest.mark.parametrize("size", [(224, 224), (57, 64), (33, 47)])
    def test_band_limited_float32_maps(self, size, stride):
        steps = (stride, stride) if isinstance(stride, int) else stride
        edge = (size[1] - 1) // (2 * steps[1])
        x = torch.stack(
            [torch.from_numpy(reference.low_pass(noise(*size), steps)), tone(size, 0, edge)]
        ).float()
        for single in x:
            assert 0 <= compute_am_relative(single, stride).item() < 1e-6
        assert compute_am(x[:, None], stride).dtype == torch.float32


class TestAliasCategories:
    NAMES = ("nonaliased", "aliased", "tangled", "nopass")

    @pytest.mark.parametrize(
        ("size", "stride"),
        [
            ((8, 8), (2, 2)), ((6, 10), (2, 2)), ((9, 12), (3, 3)), ((8, 12), (4, 2)), ((6, 5), (2, 1)),
            ((4, 6, 4), (1, 2, 2)),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("threshold", [0.0, 6.0, 20.0])
    def test_equals_the_loop_over_bins(self, size, stride, threshold):
        for seed in range(3):
            x = noise(*size, seed=seed)
            found = compute_alias_categories(x, stride, threshold_db=threshold)
            expected = reference.alias_categories(x, stride, threshold)
            assert tuple(found) == self.NAMES
            assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(
        ("x", "category", "bins"),
        [
            (tone((16, 16), 0, 3), "nonaliased", 2),
            (tone((16, 16), 0, 6), "aliased", 2),
            (tone((16, 16), 5, 7), "aliased", 2),
            (tone((16, 16), 2, 0) + tone((16, 16), 6, 8), "tangled", 2),  # (6, 8) folds onto (−2, 0)
            (tone((16, 16), 0, 4, angle=0), "tangled", 1),  # ±4 meet in the new Nyquist bin
            (checkerboard((16, 16)), "aliased", 1),
            (torch.full((16, 16), 0.3), "nonaliased", 1),
            (torch.zeros(16, 16), "nopass", 64),
        ],
    )
    def test_closed_forms(self, x, category, bins):
        found = compute_alias_categories(x)
        assert found[category].item() == pytest.approx(bins / 64)
        assert found["nopass"].item() == pytest.approx(1 if category == "nopass" else 1 - bins / 64)

    @pytest.mark.parametrize(("level", "category"), [(0.11, "tangled"), (0.09, "nonaliased")])
    def test_threshold_in_decibels_of_amplitude(self, level, category):
        x = tone((16, 16), 0, 2, angle=0.5 * math.pi) + level * tone((16, 16), 0, 6, angle=0.0)
        assert compute_alias_categories(x)[category].item() == pytest.approx(2 / 64)
        assert compute_alias_categories(x, threshold_db=30)["tangled"].item() == pytest.approx(2 / 64)

    @QUICK
    @given(st.data())
    def test_is_a_partition(self, data):
        size = [data.draw(st.integers(1, 12)) for _ in range(2)]
        stride = tuple(data.draw(st.integers(1, 4)) for _ in size)
        phase = tuple(data.draw(st.integers(0, min(s, n) - 1)) for s, n in zip(stride, size, strict=True))
        x = torch.from_numpy(noise(2, 3, *size, seed=data.draw(st.integers(0, 9))))
        x[0, 0] = 0
        found = compute_alias_categories(x, stride, phase, threshold_db=data.draw(st.floats(0, 40)))
        bins = 3 * math.prod(len(range(p, n, s)) for p, n, s in zip(phase, size, stride, strict=True))
        counts = torch.stack(list(found.values())) * bins
        assert counts.dtype == torch.float64
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
        assert counts.round().sum(0).tolist() == [bins, bins]
        assert found["nopass"][0].item() >= 1 / 3
        assert compute_alias_categories(-7.5 * x, stride, phase)["tangled"].tolist() == pytest.approx(
            compute_alias_categories(x, stride, phase)["tangled"].tolist()
        )

    @pytest.mark.parametrize(("size", "stride", "phase"), LATTICES)
    def test_components_fold_onto_the_decimated_spectrum(self, size, stride, phase):
        x = torch.from_numpy(noise(*size))
        kept = x[phase[0] :: stride[0], phase[1] :: stride[1]]
        covered = torch.zeros(kept.shape[0] * stride[0], kept.shape[1] * stride[1], dtype=x.dtype)
        moved = x[phase[0] :, phase[1] :][: covered.shape[0], : covered.shape[1]]
        covered[: moved.shape[0], : moved.shape[1]] = moved
        components = fold_spectrum(torch.fft.fft2(covered), kept.shape)
        assert components.shape == (*kept.shape, stride[0] * stride[1])
        torch.testing.assert_close(components.mean(-1), torch.fft.fft2(kept), rtol=1e-10, atol=1e-10)
        # and the categories of a map are those of what the lattice covers
        found = compute_alias_categories(x, stride, phase)
        assert found == compute_alias_categories(covered, stride)

    def test_no_aliases_without_decimation(self):
        found = compute_alias_categories(tone((8, 8), 1, 2), 1)
        assert found["nonaliased"].item() == pytest.approx(2 / 64)
        found = compute_alias_categories(checkerboard((8, 8)), 1)
        assert found["nonaliased"].item() == pytest.approx(1 / 64)
        found = compute_alias_categories(tone((8, 8), 4, 1, angle=0), (1, 2))
        assert found["nonaliased"].item() == pytest.approx(2 / 32)

    def test_mirror_bins_are_treated_alike(self):
        # Of a real map's 5×5 bins all but DC come in mirror pairs: one category has an odd number.
        for seed in range(30):
            x = torch.from_numpy(noise(10, 10, seed=seed)).float()
            found = compute_alias_categories(x, threshold_db=3)
            whole = compute_alias_categories(x.flip((0, 1)).roll((1, 1), (0, 1)), threshold_db=3)
            counts = {name: round(25 * share.item()) for name, share in found.items()}
            assert sum(count % 2 for count in counts.values()) == 1
            assert whole == found  # the mirrored map

    def test_rounding_does_not_part_a_mirror_pair_at_the_threshold(self):
        parted = 0
        for half in (7, 11, 13):  # FFTs of some lengths give mirror bins alike, others don't
            x = torch.from_numpy(noise(2 * half, 2 * half)).float()
            spectrum = torch.fft.fft2(x) / 4
            largest = fold_spectrum(spectrum, (half, half)).sum(-1).abs().max()
            amplitude = spectrum.abs()
            lower = (amplitude < amplitude.flip((0, 1)).roll((1, 1), (0, 1))).nonzero().tolist()
            for k, l in lower[:60]:  # noqa: E741
                threshold = amplitude[k, l]  # the lower of the two doesn't pass, the other one would
                decibels = 20 * math.log10(largest / threshold)
                parted += bool(largest * 10 ** (-decibels / 20) == threshold)
                found = compute_alias_categories(x, threshold_db=decibels)
                # all bins but DC come in pairs
                assert sum(round(half**2 * share.item()) % 2 for share in found.values()) == 1
        if not parted:
            pytest.skip("mirror bins come out equal on this platform")

    def test_mean_over_channels_per_image(self):
        x = noise(2, 3, 9, 8)
        found = compute_alias_categories(x)
        for name in self.NAMES:
            single = [[compute_alias_categories(c)[name].item() for c in image] for image in x]
            assert found[name].tolist() == pytest.approx(np.mean(single, axis=1).tolist())
            assert compute_alias_categories(x[0])[name].item() == pytest.approx(found[name][0].item())

    @pytest.mark.parametrize(
        ("x", "options", "sentence"),
        [
            (torch.ones(4, 4), {"threshold_db": -1}, "threshold_db must be ≥ 0, got -1"),
            (torch.ones(4, 4), {"threshold_db": math.nan}, "threshold_db must be ≥ 0, got nan"),
            (torch.ones(4), {}, r"expected shape \(H, W\)"),
            (torch.full((4, 4), math.nan), {}, "the map has NaN or infinite values"),
            (torch.ones(4, 4), {"size": (3, 2)}, "3 samples from 0 in steps of 2 don't fit a map of 4"),
        ],
    )
    def test_bad_input(self, x, options, sentence):
        with pytest.raises(SpectralError, match=f"compute_alias_categories: {sentence}"):
            compute_alias_categories(x, **options)


class Circular(nn.Module):
    """A convolution with circular padding, batch norm and dropout, then global average pooling."""

    def __init__(self, stride: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride, 1, padding_mode="circular")
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def seeded(module_type, *args, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return module_type(*args, **kwargs).double()


class TestSis:
    @pytest.mark.parametrize(("stride", "size"), [(2, 8), (2, 7), (3, 10)])
    def test_equals_the_definition(self, stride, size):
        model = seeded(Circular, stride)
        images = noise(4, 3, size, size)
        model.eval()

        def logits_of(image):
            with torch.no_grad():
                return model(torch.from_numpy(image)[None])[0].numpy()

        expected = [reference.sis(logits_of, image) for image in images]
        assert min(expected) > 1e-9
        model.train()
        sis = compute_sis(model, torch.from_numpy(images))
        assert sis.dtype == torch.float64
        assert sis.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-17)

    @pytest.mark.parametrize(("dtype", "tiny"), [(torch.float64, 1e-28), (torch.float32, 1e-12)])
    def test_invariant_model_gives_zero_not_noise(self, dtype, tiny):
        model = seeded(Circular).to(dtype)
        model.fc.weight.data *= 30  # confident predictions, far from the uniform one
        images = torch.from_numpy(noise(3, 3, 9, 8)).to(dtype)
        assert compute_sis(model, images).max().item() < tiny
        assert compute_sis(lambda x: x.new_ones(len(x), 4), images).tolist() == [0, 0, 0]

    def test_all_four_neighbours_count_equally(self):
        # The model answers class 0 unless the bright pixel comes to (1, 1): each direction gives ¼.
        def model(x):
            bright = x[:, 0, 1, 1] > 0
            return torch.stack([torch.where(bright, -1e3, 1e3), torch.where(bright, 1e3, -1e3)], 1)

        for row, column in ((2, 1), (0, 1), (1, 2), (1, 0)):
            image = torch.zeros(1, 1, 4, 4)
            image[0, 0, row, column] = 1
            assert compute_sis(model, image).item() == pytest.approx(0.25, abs=1e-15), (row, column)
        for row, column in ((2, 2), (0, 0), (3, 1), (1, 3)):
            image = torch.zeros(1, 1, 4, 4)
            image[0, 0, row, column] = 1
            assert compute_sis(model, image).item() == 0

    def test_shifts_are_circular(self):
        def model(x):
            edge = x[:, 0, 0, 0]
            return torch.stack([1e3 * edge, -1e3 * edge], 1)

        image = -torch.ones(1, 1, 3, 5)
        image[0, 0, 2, 0] = 1  # one step up wraps around to the first row
        assert compute_sis(model, image).item() == pytest.approx(0.25, abs=1e-15)

    def test_at_most_one(self):
        parity = checkerboard((4, 4))
        assert (
            compute_sis(
                lambda x: 1e4 * torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], 1), parity[None, None]
            ).item()
            == 1
        )

    def test_batch_does_not_matter(self):
        model, images = seeded(Circular, 2), torch.from_numpy(noise(5, 3, 8, 8))
        whole = compute_sis(model, images)
        assert whole.shape == (5,)
        for i in range(5):
            single = compute_sis(model, images[i : i + 1])
            assert single.shape == (1,)
            assert single.item() == pytest.approx(whole[i].item(), rel=1e-9)

    def test_model_is_left_as_it_was(self):
        model = seeded(Circular, 2)
        model.train()
        model.bn.eval()  # a frozen layer inside a training model
        flags = {name: module.training for name, module in model.named_modules()}
        state = {name: value.clone() for name, value in model.state_dict().items()}
        sis = compute_sis(model, torch.from_numpy(noise(2, 3, 8, 8)))
        assert {name: module.training for name, module in model.named_modules()} == flags
        assert sorted(flags.values()) == [False, True, True, True, True]
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not sis.requires_grad
        assert all(p.grad is None for p in model.parameters())

    def test_batch_norm_in_training_mode_learns_nothing(self):
        model = seeded(Circular, 2).train()
        mean, count = model.bn.running_mean.clone(), model.bn.num_batches_tracked.clone()
        compute_sis(model, torch.from_numpy(noise(4, 3, 8, 8)))
        assert torch.equal(model.bn.running_mean, mean)
        assert torch.equal(model.bn.num_batches_tracked, count)

    def test_flags_return_after_an_exception(self):
        class Broken(Circular):
            def forward(self, x):
                raise RuntimeError("broken on purpose")

        model = seeded(Broken).train()
        model.drop.eval()
        with pytest.raises(SpectralError, match="broken on purpose"):
            compute_sis(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
        assert model.training
        assert model.bn.training
        assert not model.drop.training

    def test_in_place_model_leaves_the_images_alone(self):
        images = torch.from_numpy(noise(2, 2, 6, 6))
        before = images.clone()
        sis = compute_sis(lambda x: x.sub_(0.5).mean((2, 3)), images)
        assert torch.equal(images, before)
        assert sis.max().item() < 1e-28

    def test_outputs_with_logits(self):
        model, images = seeded(Circular, 2), torch.from_numpy(noise(2, 3, 8, 8))
        expected = compute_sis(model, images)
        wrappers = (
            lambda x: {"logits": model.eval()(x), "loss": None},
            lambda x: SimpleNamespace(logits=model.eval()(x)),
        )
        for wrapped in wrappers:
            torch.testing.assert_close(compute_sis(wrapped, images), expected, rtol=1e-12, atol=0)

    def test_half_logits_are_compared_in_float64(self):
        def model(x):
            return x[:, :, 0, 0].half()

        image = noise(3, 8, 8)
        expected = reference.sis(lambda x: model(torch.from_numpy(x)[None])[0].double().numpy(), image)
        sis = compute_sis(model, torch.from_numpy(image)[None])
        assert sis.dtype == torch.float64
        assert sis.item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(
        ("model", "sentence"),
        [
            (lambda x: x, r"logits of shape \(2, K ≥ 2\), got \(2, 3, 4, 4\)"),
            (lambda x: x.mean((1, 2, 3)), r"logits of shape \(2, K ≥ 2\), got \(2,\)"),
            (lambda x: x.mean((2, 3))[:, :1], r"got \(2, 1\)"),
            (lambda x: x.mean((2, 3))[:1], r"got \(1, 3\)"),
            (lambda x: (None, x.mean((2, 3))), "got tuple of 2"),
            (lambda x: (x,), r"got \(2, 3, 4, 4\), which is a map"),
            (lambda x: {"scores": x.mean((2, 3))}, "got dict"),
            (lambda x: x.mean((2, 3)) * math.nan, "the model's logits have NaN or infinite values"),
        ],
    )
    def test_bad_models(self, model, sentence):
        with pytest.raises(SpectralError, match=sentence):
            compute_sis(model, torch.ones(2, 3, 4, 4))

    @pytest.mark.parametrize(
        ("images", "got"), [(torch.ones(3, 4, 4), r"\(3, 4, 4\)"), (np.ones((1, 3, 4, 4)), "ndarray")]
    )
    def test_bad_images(self, images, got):
        with pytest.raises(
            SpectralError, match=rf"compute_sis: expected images of shape \(B, C, H, W\), got {got}"
        ):
            compute_sis(lambda x: x.mean((2, 3)), images)

    def test_instability_of_known_distributions(self):
        p = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]])
        q = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
        expected = [(0 + 1) / 2, (0 + 1 - math.sqrt(0.5)) / 2]
        assert compute_instability(p, [p, q]).tolist() == pytest.approx(expected, rel=1e-14)

    def test_tiny_differences_survive(self):
        # 1 − cos ≈ angle²/2, far below the rounding of the cosine itself
        angle = 1e-10
        p, q = (
            torch.tensor([[1.0, 0.0]]),
            torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64),
        )
        assert compute_instability(p, [q]).item() == pytest.approx(angle**2 / 2, rel=1e-6)


def test_evaluation_mode_of_a_plain_function_does_nothing():
    with evaluation_mode(len):
        pass
    layer = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    layer[1].eval()
    with evaluation_mode(layer):
        assert not any(module.training for module in layer.modules())
    assert [module.training for module in layer.modules()] == [True, True, False, False]


@pytest.mark.parametrize("function", [compute_alias_power_ratio, compute_am_relative])
def test_what_is_scale_free_is_right_up_to_the_largest_float(function):
    x = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(SpectralError, match="too large"):
        compute_am(1e308 * x)
    assert float(function(1e308 * x)) == pytest.approx(float(function(x)), rel=1e-12)


@pytest.mark.parametrize("exclude_dc", [False, True])
def test_avr_of_powers_whose_sum_is_no_number_is_right(exclude_dc):
    above = float(reference.violations((8, 8), (2, 2), "radial").sum())
    found = compute_avr(torch.full((8, 8), 1.7e308, dtype=torch.float64), 2, exclude_dc=exclude_dc)
    assert float(found) == pytest.approx(above / (64 - exclude_dc), rel=1e-14)


@pytest.mark.parametrize("size", [1e-140, 1e-30, 1e30, 1e140])
def test_instability_and_jitter_know_no_scale(size):
    z = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    for function in (compute_instability, compute_logit_jitter):
        usual = function(z[0], [z[1], z[2]])
        torch.testing.assert_close(
            function(size * z[0], [size * z[1], size * z[2]]), usual, rtol=1e-9, atol=0
        )
    for outside in (1e-200, 1e200):
        with pytest.raises(SpectralError, match="can't be squared"):
            compute_logit_spread(outside * z[0])
